"""What specs take and refuse, and how what they make starts."""

import ast
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from numpydoc.docscrape import ClassDoc
from torch import nn

from skpeft import AdapterClassifier
from skpeft.adapters import (
    ADAPTERS,
    IA3,
    NORM_ROLES,
    ROLES,
    AdaptedLayer,
    Adapter,
    BitFit,
    Bottleneck,
    Combination,
    FullFineTuning,
    HiRA,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
    Stack,
    unrounded,
)
from skpeft.adapters.base import Handover, widths
from skpeft.objectives import OBJECTIVES

# What sets the capacity of a method, for those that have one.
CAPACITIES = {
    LoRA: "rank",
    Bottleneck: "bottleneck_dim",
    LadderSide: "side_dim",
    Prefix: "length",
}
WIDTH = 400


def stack():
    """One block with all its layers, of one width."""
    layers = {role: nn.Linear(WIDTH, WIDTH) for role in ROLES}
    layers |= {role: nn.LayerNorm(WIDTH) for role in NORM_ROLES}
    return Stack([layers], blocks=[nn.Identity()], root=nn.Identity())


def attached(spec, block=None, seed=0):
    """Tensors that a spec adds to a block, by name."""
    block = block or stack()
    roles = spec.roles_in({role: role for role in block.sites[0]})
    sites = [{role: block.sites[0][role] for role in roles}]
    (layers,) = spec.attach(
        Stack(sites, block.blocks, block.root), torch.Generator("cpu").manual_seed(seed)
    )
    return {
        f"{role}.{name}": tensor
        for role, layer in layers.items()
        for name, tensor in layer.named_parameters()
        if "base." not in name
    }


SPECS = [
    LoRA(2),
    LoRA(2, use_dora=True),
    HiRA(2),
    IA3(),
    BitFit(),
    LayerNormTuning(),
    Bottleneck(3),
    Bottleneck(3, placement="parallel", scaling="learned"),
    Prefix(3),
    LadderSide(3),
]


# Parameters


@pytest.mark.parametrize("kind", ADAPTERS.values())
def test_every_parameter_of_a_spec_has_a_constraint(kind):
    assert kind._parameter_constraints.keys() == kind().get_params().keys()


@pytest.mark.parametrize("kind", [*ADAPTERS.values(), *OBJECTIVES.values()])
def test_defaults_are_those_of_the_docstring(kind):
    told = {
        parameter.name: parameter.type.partition("default=")[2]
        for parameter in ClassDoc(kind)["Parameters"]
    }
    signature = inspect.signature(kind).parameters
    given = {name: parameter.default for name, parameter in signature.items()}
    assert {name: ast.literal_eval(text) for name, text in told.items()} == given


@pytest.mark.parametrize(("kind", "name"), CAPACITIES.items())
def test_capacity_goes_from_1_to_65536(kind, name):
    for value in (1, 2**16):
        spec = kind().with_capacity(value)
        spec.validate()
        assert spec.get_params()[name] == value
    for value in (0, 2**16 + 1):
        with pytest.raises(ValueError, match=f"'{name}'.*Got {value}"):
            kind().with_capacity(value).validate()


@pytest.mark.parametrize(
    ("kind", "name", "taken", "refused"),
    [
        (LoRA, "dropout", [0, 0.99], [-1e-9, 1]),
        (LoRA, "alpha", [None, 1e-9, 1e6], [0, -1]),
        (Bottleneck, "dropout", [0, 0.99], [-1e-9, 1]),
        (Bottleneck, "scaling", [None, "learned", 1e-9, 1e6], [0, -1, "fixed"]),
        (Bottleneck, "activation", ["relu", "gelu", "silu", "tanh"], ["elu"]),
    ],
)
def test_range_of_a_parameter_is_the_one_in_its_docstring(kind, name, taken, refused):
    for value in taken:
        kind(**{name: value}).validate()
    for value in refused:
        with pytest.raises(ValueError, match=f"'{name}' parameter of {kind.__name__}"):
            kind(**{name: value}).validate()


@pytest.mark.parametrize("kind", [LoRA, HiRA, IA3])
def test_frozen_adapter_needs_weights(kind):
    with pytest.raises(ValueError, match=r"frozen=True was given .* without weights"):
        kind(frozen=True).validate()
    spec = kind(frozen=True, weights="folder")
    spec.validate()
    assert (spec.frozen, spec.weights) == (True, "folder")


def test_input_role_of_ia3_is_one_that_there_is():
    with pytest.raises(ValueError, match=r"input_roles.*Did you mean 'ffn_in'"):
        IA3(input_roles=("ffn_inn",)).validate()
    IA3(roles=("key",), input_roles=("value",)).validate()  # which changes nothing
    IA3(roles=("own",), input_roles=("own",)).validate()
    IA3(roles=np.array(["key"]), input_roles=np.array(["key"])).validate()


def test_member_of_a_list_does_not_start_from_weights():
    with pytest.raises(ValueError, match="stands by itself"):
        Combination([LoRA(weights="folder"), BitFit()]).validate()


def test_roles_at_which_specs_act():
    assert FullFineTuning().target_roles() == ()
    assert LayerNormTuning().target_roles() == NORM_ROLES
    both = Combination([LoRA(), IA3()]).target_roles()
    assert both == ("query", "value", "key", "ffn_out")


@pytest.mark.parametrize("kind", [LoRA, HiRA, BitFit])
def test_roles_that_are_left_to_the_encoder_name_none(kind):
    kind(roles=None).validate()
    assert kind(roles=None).target_roles() == ()
    assert kind(roles=["key"]).target_roles() == ("key",)


def test_fused_layer_stands_for_queries_keys_and_values_alone_where_these_are_not_there():
    fused = {"blocks": "b", "query_key_value": "qkv"}
    assert LoRA(roles=["key", "ffn_in"]).roles_in(fused) == (
        "query_key_value",
        "ffn_in",
    )
    both = {**fused, "query": "q"}
    assert LoRA(roles=["query", "key"]).roles_in(both) == ("query", "query_key_value")


def test_layer_norm_tuning_finds_normalisations_by_the_end_of_their_role():
    table = {"blocks": "b", "query": "q", "own_norm": "n", "ffn_norm": "m"}
    assert LayerNormTuning().roles_in(table) == ("own_norm", "ffn_norm")
    assert LayerNormTuning().roles_in({"blocks": "b", "query": "q"}) == NORM_ROLES


# An adapter of one's own


class Bare(Adapter):
    """Nothing but what has to be there."""

    def target_roles(self):
        return ("query",)


def test_adapter_that_says_nothing_else_is_trained_has_no_capacity_and_no_norms():
    spec = Bare()
    assert (spec.frozen, spec.weights, spec.capacity) == (False, None, None)
    assert (spec.trains_encoder, spec.adapts_norms) == (False, False)
    assert spec.members == [spec]
    spec.validate()


@pytest.mark.parametrize(
    "ask",
    [
        lambda spec: spec.target_roles(),
        lambda spec: spec.wrap(nn.Identity(), "query", torch.Generator()),
        lambda spec: spec.count({}),
        lambda spec: spec.release(nn.Identity()),
    ],
)
def test_what_an_adapter_does_not_define_is_an_error(ask):
    with pytest.raises(NotImplementedError):
        ask(Adapter())


class VectorLinear(AdaptedLayer):
    """Trained vectors between random matrices that stay, after Kopiczko et al. (2024)."""

    def __init__(self, base, generator, *, part=None, kind="parameter"):
        super().__init__(base)
        n_in, n_out = widths(base)
        self.down = nn.Parameter(
            torch.empty(4, n_in).normal_(generator=generator), requires_grad=False
        )
        up = torch.empty(n_out, 4).normal_(generator=generator)
        if kind == "parameter":
            self.up = nn.Parameter(up, requires_grad=False)
        else:
            self.register_buffer("up", up, persistent=kind == "persistent")
        self.inner = nn.Parameter(torch.full((4,), 0.1))
        self.outer = nn.Parameter(torch.zeros(n_out))
        self.part = part or nn.Identity()

    def forward(self, x):
        output = self.base(x)
        with unrounded(x):
            inner = nn.functional.linear(x.to(self.down.dtype), self.down) * self.inner
            update = nn.functional.linear(self.part(inner), self.up) * self.outer
        return (output + update).to(output.dtype)


class Vectors(Bare):
    """Random matrices are made anew from the generator, so nothing but vectors is saved."""

    def __init__(self, part=None, kind="parameter"):
        self.part = part
        self.kind = kind

    def wrap(self, layer, role, generator):
        return VectorLinear(layer, generator, part=self.part, kind=self.kind)

    def count(self, sites):
        return sum(4 + n_out for _, n_out in sites.values())


TEXTS = [f"{word} {thing}" for thing in ("film", "book", "tea") for word in "ab"]


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.filterwarnings("ignore:precision='bfloat16'")
def test_frozen_tensors_of_an_adapter_come_along(kind, precision):
    own = {"learning_rate": 0.1, "precision": precision, "random_state": 0}
    clf = AdapterClassifier("tiny", adapter=Vectors(kind=kind), **own)
    clf.fit(TEXTS, list("ab") * 3)
    frozen = AdapterClassifier("tiny", adapter=None).fit(TEXTS, list("ab") * 3)
    features = clf.transform(TEXTS)
    assert np.abs(features - frozen.transform(TEXTS)).max() > 1e-3
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.transform(TEXTS), features)


class Mode(nn.Module):
    """Tells by its output in which mode it is."""

    def forward(self, x):
        return 2 * x if self.training else x


def test_modules_of_an_adapter_are_in_evaluation_mode():
    fits = [
        AdapterClassifier(
            "tiny", adapter=Vectors(part), learning_rate=0.1, random_state=0
        ).fit(TEXTS, list("ab") * 3)
        for part in (Mode(), None)
    ]
    assert fits[0].loss_curve_ == fits[1].loss_curve_
    features = [clf.transform(TEXTS) for clf in fits]
    np.testing.assert_array_equal(*features)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Vectors(nn.Dropout(0.3)), "a Dropout at 'part'.*Use .*GeneratorDropout"),
        (Vectors(nn.Sequential(nn.AlphaDropout())), "an? AlphaDropout at 'part.0'"),
        (Vectors(nn.BatchNorm1d(4)), "the persistent buffer 'part.running_mean'"),
        (Vectors(kind="persistent"), "the persistent buffer 'up'.*persistent=False"),
    ],
    ids=["dropout", "inside", "batch norm", "buffer"],
)
def test_parts_of_an_adapter_that_would_be_lost_or_random_are_refused(adapter, message):
    with pytest.raises(TypeError, match=message):
        AdapterClassifier("tiny", adapter=adapter).fit(TEXTS, list("ab") * 3)


# How it starts


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tensors_are_float32_on_the_cpu_whatever_torch_makes_by_default(spec):
    block, former = stack(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = attached(spec, block).values()
    finally:
        torch.set_default_dtype(former)
    assert {(t.dtype, t.device.type) for t in made} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_start_depends_on_the_generator_alone(spec):
    torch.manual_seed(0)
    first = attached(spec)
    torch.manual_seed(1)
    again, other = attached(spec), attached(spec, seed=1)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].unique().numel() > 1]
    assert all(not torch.equal(first[name], other[name]) for name in drawn)
    by_design = isinstance(spec, LoRA | HiRA | Bottleneck | Prefix | LadderSide)
    assert bool(drawn) == by_design


@pytest.mark.parametrize("spec", [LoRA(200), Bottleneck(200), LadderSide(200)], ids=str)
def test_layer_down_starts_uniform_up_to_the_root_of_the_width(spec):
    # As nn.Linear: variance 1 / (3 n), bound 1 / sqrt(n).
    tensors = attached(spec)
    downs = [t for name, t in tensors.items() if name.endswith(("lora_A", "down"))]
    assert downs
    for down in downs:
        bound = 1 / math.sqrt(WIDTH)
        assert 0.99 * bound < down.max() <= bound
        assert -bound <= down.min() < -0.99 * bound
        assert float(down.detach().std()) == pytest.approx(
            bound / math.sqrt(3), rel=0.01
        )


def test_prefix_starts_from_a_standard_normal():
    tensors = attached(Prefix(200))
    for name in ("key", "value"):
        (values,) = {id(t): t for n, t in tensors.items() if n.endswith(name)}.values()
        assert float(values.detach().mean()) == pytest.approx(0, abs=0.02)
        assert float(values.detach().std()) == pytest.approx(1, rel=0.02)


def test_blocks_have_one_head_unless_told():
    sites = {role: nn.Linear(6, 6) for role in ("query", "attention_output")}
    (layers,) = Prefix(2).attach(Stack([sites]), torch.Generator())
    memory = layers["query"].memory
    with torch.no_grad():
        memory.gate.fill_(1.0)
        query = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
        shares = (query @ memory.key.T / 6**0.5).softmax(dim=-1)
        torch.testing.assert_close(memory(query), shares @ memory.value)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_count_is_that_of_the_tensors_where_layers_are_not_square(spec):
    shapes = {"query": (6, 8), "key": (6, 8), "value": (6, 8)}
    shapes |= {"attention_output": (8, 6), "ffn_in": (6, 11), "ffn_out": (11, 6)}
    layers = {role: nn.Linear(*shape) for role, shape in shapes.items()}
    shapes |= dict.fromkeys(NORM_ROLES, (6, 6))
    layers |= {role: nn.LayerNorm(6) for role in NORM_ROLES}
    block = Stack([layers], [nn.Identity()], nn.Identity())
    found = {id(tensor): tensor.numel() for tensor in attached(spec, block).values()}
    roles = spec.roles_in({role: role for role in shapes})
    assert sum(found.values()) == spec.count({role: shapes[role] for role in roles})


def test_prefix_is_as_wide_as_what_attention_gathers():
    sites = {"query": nn.Linear(6, 8), "attention_output": nn.Linear(8, 6)}
    (layers,) = Prefix(3).attach(Stack([sites], n_heads=2), torch.Generator())
    assert layers["query"].memory.key.shape == (3, 8)
    gathered = torch.zeros(2, 8)
    layers["query"](torch.zeros(2, 6))
    assert layers["attention_output"](gathered).shape == (2, 6)


# Layers


def test_attributes_of_the_frozen_layer_are_those_of_its_adapted_one():
    base = nn.Linear(3, 4)
    layer = AdaptedLayer(AdaptedLayer(base))
    assert layer.weight is base.weight
    assert (layer.in_features, layer.out_features) == (3, 4)
    with pytest.raises(AttributeError, match="no_such_name"):
        layer.no_such_name  # noqa: B018
    assert layer.merged() is None


def test_handover_keeps_the_first_value_and_gives_it_once():
    waiting = Handover()
    waiting.put(1)
    waiting.put(2)
    assert waiting.take() == 1
    with pytest.raises(KeyError):
        waiting.take()
    waiting.put(3)
    waiting.clear()
    with pytest.raises(KeyError):
        waiting.take()


def test_value_that_nobody_took_is_gone_in_the_next_pass():
    root = nn.Identity()
    waiting = Handover(root)
    waiting.put(1)
    root(torch.zeros(1))
    waiting.put(2)
    assert waiting.take() == 2
