"""LoRA against its formula, and against the layer of peft."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from torch import nn

from skpeft import AdapterClassifier
from skpeft._network import AdapterNetwork
from skpeft.adapters import ROLES, LoRA, resolve_adapter
from skpeft.adapters.lora import DoRALinear, LoRALinear
from skpeft.encoders import TinyTextEncoder

N_IN, N_OUT, RANK = 12, 20, 4


def frozen_layer(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(N_IN, N_OUT).requires_grad_(False)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(generator=generator)
    return layer


def adapted_layer(spec, seed=0):
    """Adapted layer whose update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = spec.wrap(frozen_layer(), "query", generator)
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)
        if spec.use_dora:
            layer.magnitude.normal_(std=0.3, generator=generator)
    return layer


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({}, 2.0),
        ({"alpha": 2}, 0.5),
        ({"alpha": 2, "rank_stabilized": True}, 1.0),
        ({"alpha": 2, "use_dora": True}, 0.5),
    ],
    ids=str,
)
def test_lora_forward_and_gradients_equal_those_of_peft(parameters, scaling):
    peft = pytest.importorskip("peft", reason="peft, the reference, is not installed")
    ours = adapted_layer(LoRA(RANK, **parameters))
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=parameters.get("alpha", 2 * RANK),
        use_rslora=parameters.get("rank_stabilized", False),
        use_dora=parameters.get("use_dora", False),
        target_modules=["site"],
    )
    theirs = nn.ModuleDict({"site": frozen_layer()})
    theirs = peft.inject_adapter_in_model(config, theirs)["site"]
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    with torch.no_grad():
        down.copy_(ours.lora_A)
        up.copy_(ours.lora_B)
        if ours.__class__ is DoRALinear:
            lengths = ours.base.weight.norm(dim=1) * (1.0 + ours.magnitude)
            theirs.lora_magnitude_vector["default"].weight.copy_(lengths)
    assert theirs.scaling["default"] == pytest.approx(scaling)
    x, cotangent = normal(3, 5, N_IN), normal(3, 5, N_OUT, seed=2)
    our_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    our_output, their_output = ours(our_x), theirs(their_x)
    close(our_output, their_output)
    our_output.backward(cotangent)
    their_output.backward(cotangent)
    close(ours.lora_A.grad, down.grad)
    close(ours.lora_B.grad, up.grad)
    close(our_x.grad, their_x.grad)
    if parameters.get("use_dora"):
        grad = theirs.lora_magnitude_vector["default"].weight.grad
        close(ours.magnitude.grad, grad * ours.base.weight.norm(dim=1))


def test_dora_keeps_the_lengths_of_rows_times_the_learned_factor():
    layer = adapted_layer(LoRA(3, use_dora=True))
    weight = layer.merged().weight
    expected = layer.base.weight.norm(dim=1) * (1.0 + layer.magnitude).abs()
    close(weight.norm(dim=1), expected)
    updated = layer.base.weight + layer.scaling * layer.lora_B @ layer.lora_A
    cosine = torch.cosine_similarity(weight, updated, dim=1)
    close(cosine, (1.0 + layer.magnitude).sign())


def test_dora_of_a_row_of_zeros_is_finite():
    base = frozen_layer()
    with torch.no_grad():
        base.weight[2] = 0.0
    layer = LoRA(3, use_dora=True).wrap(base, "query", torch.Generator())
    x = normal(4, N_IN)
    close(layer(x), base(x))
    layer(x).sum().backward()
    with torch.no_grad():
        layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
    close((layer(x) - base(x))[:, 2], layer.update(x)[:, 2])
    assert all(t.grad.isfinite().all() for t in (layer.lora_B, layer.magnitude))


@pytest.mark.parametrize("spec", [LoRA(3), LoRA(3, alpha=1, rank_stabilized=True)])
def test_lora_forward_equals_the_explicit_weight_update(spec):
    layer = adapted_layer(spec)
    weight = layer.base.weight + spec.scaling * layer.lora_B @ layer.lora_A
    x = normal(7, N_IN)
    close(layer(x), x @ weight.T + layer.base.bias)
    assert not torch.allclose(layer(x), layer.base(x), atol=1e-2)


def test_network_with_lora_equals_one_with_the_weights_written_in():
    roles = ROLES
    network = AdapterNetwork(
        TinyTextEncoder(),
        LoRA(2, roles=roles),
        None,
        n_features=1,
        device="cpu",
        precision="float64",
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    merged = copy.deepcopy(network.live.backbone.module)
    with torch.no_grad():
        for name, part in network.live.module.named_modules():
            if isinstance(part, LoRALinear):
                part.lora_B.normal_(std=0.1, generator=generator)
                merged.get_submodule(name).weight += part.scaling * (
                    part.lora_B @ part.lora_A
                )
        items = network.live.prepare(["good film", "a bad and long book"])
        expected = merged(network.live.backbone.collate(items))
    np.testing.assert_allclose(
        network.live.features(items), expected.numpy(), atol=1e-10
    )


def test_lora_starts_with_no_update_and_a_seeded_direction():
    layers = [
        LoRA(RANK).wrap(frozen_layer(), "query", torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert not layers[0].lora_B.any()
    assert torch.equal(layers[0].lora_A, layers[1].lora_A)
    assert not torch.equal(layers[0].lora_A, layers[2].lora_A)
    assert layers[0].lora_A.abs().max() <= N_IN**-0.5
    x = normal(4, N_IN)
    assert torch.equal(layers[0](x), layers[0].base(x))


def test_lora_without_bias_is_wrapped_too():
    base = nn.Linear(N_IN, N_OUT, bias=False)
    layer = LoRA(RANK).wrap(base, "query", torch.Generator())
    x = normal(4, N_IN)
    assert torch.equal(layer(x), base(x))


def test_dropout_acts_on_the_update_alone_and_in_training_alone():
    layer = adapted_layer(LoRA(RANK, dropout=0.5))
    x = normal(200, N_IN)
    exact = layer(x)
    assert torch.equal(layer(x), exact)
    layer.dropout.generator = torch.Generator().manual_seed(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.dropout.generator = torch.Generator().manual_seed(0)
    assert torch.equal(layer(x), first)
    # Kept entries are scaled, so that the mean over many draws is the exact update.
    mean = torch.stack([layer(x) for _ in range(400)]).mean(dim=0)
    spread = (first - exact).std()
    assert (mean - exact).std() < 0.1 * spread  # 1 / sqrt(400) is 0.05
    layer.dropout.generator = None
    layer.lora_B.data.zero_()
    layer.dropout.generator = torch.Generator().manual_seed(0)
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("rank", [1, 2, 8, 64])
def test_scaling_does_not_move_with_rank(rank):
    assert LoRA(rank).scaling == LoRA().scaling
    assert LoRA().with_capacity(rank).scaling == LoRA().scaling
    assert LoRA(rank, alpha=6).scaling == 6 / rank
    assert LoRA(rank, alpha=6, rank_stabilized=True).scaling == 6 / rank**0.5


def test_lora_spec_clones_prints_and_takes_parameters():
    spec = LoRA(4, dropout=0.1, roles=["query"])
    copied = clone(spec)
    assert copied is not spec
    assert copied.get_params() == spec.get_params()
    assert repr(spec) == "LoRA(dropout=0.1, rank=4, roles=['query'])"
    assert repr(LoRA()) == "LoRA()"
    assert spec.set_params(rank=2).target_roles() == ("query",)
    assert spec.scaling == 2.0


def test_lora_parameters_are_set_through_an_estimator_as_a_search_does():
    spec = LoRA(4)
    for grid in ParameterGrid({"adapter__dropout": [0.0, 0.3], "adapter__rank": [2]}):
        clf = clone(AdapterClassifier("tiny", adapter=spec)).set_params(**grid)
        assert clf.adapter.dropout == grid["adapter__dropout"]
        assert clf.adapter.rank == 2
    assert (spec.rank, spec.dropout) == (4, 0.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank": 0}, r"'rank' parameter of LoRA.*Got 0"),
        ({"rank": 2.0}, r"'rank' parameter of LoRA.*Got 2.0"),
        ({"alpha": 0}, r"'alpha' parameter of LoRA.*Got 0"),
        ({"dropout": 1.0}, r"'dropout' parameter of LoRA.*Got 1.0"),
        ({"roles": "query"}, r"'roles' parameter of LoRA.*Got 'query'"),
        ({"rank_stabilized": "yes"}, r"'rank_stabilized' parameter of LoRA"),
    ],
    ids=str,
)
def test_lora_with_wrong_parameter_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        resolve_adapter(LoRA(**parameters))


def test_lora_with_unknown_role_names_the_nearest():
    clf = AdapterClassifier("tiny", adapter=LoRA(roles=("qeury",)))
    with pytest.raises(ValueError, match=r"'qeury' is not a known role.*'query'\?"):
        clf.fit(["a", "b"], [0, 1])


def test_lora_without_roles_is_refused():
    with pytest.raises(ValueError, match=r"roles=\(\) was given to LoRA.*'query'"):
        resolve_adapter(LoRA(roles=()))


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_weight_is_not_rounded_by_autocast_of_the_caller(use_dora):
    generator = torch.Generator().manual_seed(0)
    layer = LoRA(4, use_dora=use_dora).wrap(nn.Linear(16, 8), "query", generator)
    nn.init.normal_(layer.lora_B, generator=generator)
    expected = layer.merged().weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.merged().weight, expected)
