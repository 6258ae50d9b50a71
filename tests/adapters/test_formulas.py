"""The small methods against their formulas, and IA3 against the layer of peft."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from skpeft import AdapterClassifier
from skpeft._network import AdapterNetwork
from skpeft.adapters import (
    IA3,
    ROLES,
    AdaptedLayer,
    BitFit,
    Bottleneck,
    Combination,
    HiRA,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
    Stack,
    resolve_adapter,
)
from skpeft.adapters.base import unwrapped
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from tests import models

N_IN, N_OUT = 6, 5


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def linear(bias=True):
    layer = nn.Linear(N_IN, N_OUT, bias=bias).double().requires_grad_(False)
    for seed, tensor in enumerate(layer.parameters()):
        tensor.copy_(normal(*tensor.shape, seed=seed))
    return layer


def norm(bias=True):
    layer = nn.LayerNorm(N_IN, bias=bias).double().requires_grad_(False)
    for seed, tensor in enumerate(layer.parameters()):
        tensor.copy_(normal(*tensor.shape, seed=seed))
    return layer


def randomised(module, std=0.5):
    """Give what is trained values that are not those of the start, in float64."""
    module.double()
    for seed, tensor in enumerate(module.parameters()):
        if tensor.requires_grad:
            tensor.data.copy_(std * normal(*tensor.shape, seed=seed))
    return module


def network_of(adapter, encoder=None, *, layers=None, precision="float64", std=0.5):
    network = AdapterNetwork(
        encoder or TinyTextEncoder(),
        adapter,
        layers,
        n_features=1,
        device="cpu",
        precision=precision,
        seed=0,
    )
    for seed, tensor in enumerate(network.live.trainable().values()):
        tensor.data.copy_(std * normal(*tensor.shape, seed=seed))
    return network


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("role", ["value", "ffn_out"])
def test_ia3_forward_and_gradients_equal_those_of_peft(role):
    peft = pytest.importorskip("peft", reason="peft, the reference, is not installed")
    ours = randomised(IA3().wrap(linear(), role, torch.Generator()))
    config = peft.IA3Config(
        target_modules=["site"], feedforward_modules=["site"] * (role == "ffn_out")
    )
    theirs = nn.ModuleDict({"site": linear()})
    theirs = peft.inject_adapter_in_model(config, theirs)["site"].double()
    factor = theirs.ia3_l["default"]
    with torch.no_grad():
        factor.copy_(1.0 + ours.scale.reshape(factor.shape))
    x = normal(3, 4, N_IN)
    our_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    our_output, their_output = ours(our_x), theirs(their_x)
    close(our_output, their_output)
    cotangent = normal(3, 4, N_OUT, seed=2)
    our_output.backward(cotangent)
    their_output.backward(cotangent)
    close(ours.scale.grad, factor.grad.flatten())
    close(our_x.grad, their_x.grad)


def rounded(x):
    return x.bfloat16().float()


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(4, roles=ROLES),
        Bottleneck(4, activation="gelu"),
        Bottleneck(4, placement="parallel"),
        IA3(roles=ROLES),
        BitFit(roles=ROLES),
        Prefix(5),
        LadderSide(16),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_in_bfloat16_adapters_compute_in_float32(adapter):
    """Around layers that change nothing only what comes out of each is rounded."""
    width = 8
    sites = {role: nn.Linear(width, width) for role in ROLES}
    for site in sites.values():
        nn.init.eye_(site.requires_grad_(False).weight)
        nn.init.zeros_(site.bias)
    root = nn.Identity()
    stack = Stack([sites], [nn.Identity()], root, n_heads=2)
    (replaced,) = adapter.attach(stack, torch.Generator().manual_seed(0))
    layers = nn.ModuleList(replaced.values())
    for seed, tensor in enumerate(layers.parameters()):
        if tensor.requires_grad:
            tensor.data.copy_(0.3 * normal(*tensor.shape, seed=seed))
    start = rounded(normal(3, 5, width).float())

    root(start)  # a pass begins
    expected = [start]
    for layer in layers:
        expected.append(rounded(layer(expected[-1])))
    assert not torch.equal(expected[-1], start)
    root(start)
    found = [start.bfloat16()]
    with torch.autocast("cpu", torch.bfloat16):
        for layer in layers:
            found.append(layer(found[-1]))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.float(), theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_bitfit_adds_to_the_bias_whether_there_is_one_or_not(bias):
    base, x = linear(bias), normal(7, N_IN)
    layer = randomised(BitFit().wrap(base, "query", torch.Generator()))
    offset = layer.shift + (base.bias if bias else 0.0)
    close(layer(x), x @ base.weight.T + offset)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_tuning_changes_weight_and_bias(bias):
    base, x = norm(bias), normal(7, N_IN)
    layer = randomised(LayerNormTuning().wrap(base, "ffn_norm", torch.Generator()))
    weight = base.weight * (1.0 + layer.scale)
    offset = (base.bias if bias else 0.0) * (1.0 + layer.scale) + layer.shift
    centred = x - x.mean(dim=1, keepdim=True)
    unit = centred / (x.var(dim=1, unbiased=False, keepdim=True) + base.eps).sqrt()
    close(layer(x), unit * weight + offset)


MERGEABLE = {
    "lora": (LoRA(2), linear()),
    "dora": (LoRA(2, use_dora=True), linear()),
    "dora-no-bias": (LoRA(2, use_dora=True), linear(bias=False)),
    "lora-no-bias": (LoRA(2), linear(bias=False)),
    "hira": (HiRA(2), linear()),
    "hira-no-bias": (HiRA(2), linear(bias=False)),
    "ia3": (IA3(), linear()),
    "ia3-no-bias": (IA3(), linear(bias=False)),
    "bitfit": (BitFit(), linear()),
    "bitfit-no-bias": (BitFit(), linear(bias=False)),
    "bitfit-norm": (BitFit(), norm()),
    "layer-norm": (LayerNormTuning(), norm()),
    "layer-norm-no-bias": (LayerNormTuning(), norm(bias=False)),
}


@pytest.mark.parametrize("role", ["query", "ffn_out"])
@pytest.mark.parametrize("case", MERGEABLE)
def test_merged_layer_computes_the_same_with_no_trace_of_the_adapter(case, role):
    spec, base = MERGEABLE[case]
    bits = [tensor.clone() for tensor in base.parameters()]
    layer = randomised(spec.wrap(base, role, torch.Generator()))
    merged, x = layer.merged(), normal(7, N_IN)
    assert type(merged) is type(base)
    close(merged(x), layer(x))
    assert (merged(x) - base(x)).abs().max() > 1e-2
    assert not any(tensor.requires_grad for tensor in merged.parameters())
    assert all(map(torch.equal, base.parameters(), bits))


@pytest.mark.parametrize("first", [LoRA(2, use_dora=True), HiRA(2)], ids=str)
def test_layers_around_each_other_merge_from_the_inside(first):
    layer, x = linear(), normal(7, N_IN)
    for spec in (first, IA3(), BitFit(), LoRA(1)):
        layer = randomised(spec.wrap(layer, "query", torch.Generator()))
    merged = layer.merged()
    assert type(merged) is nn.Linear
    close(merged(x), layer(x))


@pytest.mark.parametrize(
    "spec", [LoRA(2), IA3(), IA3(input_roles=()), BitFit()], ids=str
)
def test_layer_over_one_that_does_not_merge_does_not_merge(spec):
    inner = Bottleneck(2).wrap(linear(), "ffn_out", torch.Generator())
    outer = spec.wrap(inner, "ffn_out", torch.Generator())
    assert inner.merged() is None
    assert outer.merged() is None


def test_prefix_adds_a_gated_attention_of_its_own():
    n_heads, width, length = 2, 6, 3
    query, leave = (nn.Linear(width, width).double() for _ in range(2))
    stack = Stack([{"query": query, "attention_output": leave}], n_heads=n_heads)
    (layers,) = Prefix(length).attach(stack, torch.Generator().manual_seed(0))
    for layer in layers.values():
        randomised(layer)
    memory = layers["query"].memory
    x, mixed = normal(2, 4, width), normal(2, 4, width, seed=2)
    q = layers["query"](x)
    close(q, query(x))
    expected = mixed.clone()
    d = width // n_heads
    for b in range(2):
        for t in range(4):
            for h in range(n_heads):
                part = slice(h * d, (h + 1) * d)
                scores = memory.key[:, part] @ q[b, t, part] / d**0.5
                shares = scores.exp() / scores.exp().sum()
                seen = sum(shares[i] * memory.value[i, part] for i in range(length))
                expected[b, t, part] += memory.gate[part] * seen
    close(layers["attention_output"](mixed), leave(expected))


def test_prefix_of_a_fused_projection_takes_the_queries_which_come_first(plain_folder):
    encoder = TextEncoder(str(plain_folder("modernbert")))
    network = network_of(Prefix(2), encoder)
    block = network.live.module.transformer.layers[1].attn
    assert block.Wqkv.memory.key.shape == (2, models.WIDTH)
    seen = []
    block.Wqkv.memory.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block.Wqkv.base.register_forward_hook(lambda *a: seen.append(a[2]))
    network.live.features(network.live.prepare(["good film"]))
    torch.testing.assert_close(seen[1], seen[0][..., : models.WIDTH])


def hidden_states(network, items):
    """What each block of the tiny encoder gives, by itself."""
    backbone, seen = network.live.backbone, []
    module = backbone.share_module()
    hooks = [
        block.register_forward_hook(lambda *a: seen.append(a[2]))
        for block in module.blocks
    ]
    module(backbone.collate(items))
    assert len(hooks) == len(seen)
    return module, seen


def test_ladder_equals_its_formula():
    network = network_of(LadderSide(4))
    items = network.live.prepare(["good film", "a very bad and long book"])
    rungs = network.live.module.blocks
    _, hidden = hidden_states(network, items)
    state, total = 0.0, 0.0
    for rung, h in zip(rungs, hidden, strict=True):
        unit = (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        inner = nn.functional.gelu(unit @ rung.down.T + rung.down_bias)
        share = 1 / (1 + (-rung.mix).exp())
        state = share * state + (1 - share) * inner
        total = total + state @ rung.up.T
    out = hidden[-1] + total
    mask = network.live.backbone.collate(items)["attention_mask"].double().unsqueeze(-1)
    expected = (out * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(network.live.features(items), expected.detach().numpy())


def test_ladder_stands_around_a_module_that_is_one_block():
    rows = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    encoder = ArrayEncoder(rows, role_table={"blocks": "", "ffn_out": "2"})
    X = np.random.RandomState(0).randn(6, 3)
    networks = [
        AdapterNetwork(
            encoder, a, None, n_features=3, device="cpu", precision="float32", seed=0
        )
        for a in (None, LadderSide(2))
    ]
    frozen, found = (
        network.live.features(network.live.prepare(X)) for network in networks
    )
    np.testing.assert_array_equal(found, frozen)
    assert networks[1].live.forward(networks[1].live.prepare(X)).requires_grad


class Rounds(nn.Module):
    """Runs its blocks several times, or leaves out the last."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.owner = nn.ModuleDict(
            {"layer": nn.ModuleList(self.block() for _ in range(2))}
        )

    @staticmethod
    def block():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        for i in self.order:
            x = x + self.owner["layer"][i](x)
        return x


TABLE = {"blocks": "owner.layer", "query": "0", "ffn_in": "0", "ffn_out": "2"}
ROWS = np.random.RandomState(0).randn(8, 4)


def fit_rounds(order, adapter, **parameters):
    encoder = ArrayEncoder(Rounds(order), role_table=TABLE)
    clf = AdapterClassifier(encoder, adapter=adapter, max_epochs=2, **parameters)
    return clf.fit(ROWS, [0, 1] * 4)


@pytest.mark.parametrize(
    ("order", "layers"), [([0, 1, 0, 1], None), ([0, 1, 1], [1]), ([0], None)], ids=str
)
def test_ladder_beside_blocks_that_do_not_run_once_is_refused(order, layers):
    with pytest.raises(ValueError, match=r"run \d times in a pass"):
        fit_rounds(order, LadderSide(4), layers=layers)
    fit_rounds(order, LoRA(2, roles=["ffn_out"]), layers=layers)


@pytest.mark.parametrize("adapter", [LadderSide(4), Bottleneck(placement="parallel")])
def test_list_of_blocks_may_be_in_a_module_that_is_never_called(adapter):
    clf = fit_rounds([0, 1], adapter, layers=None)
    network, before = clf._network, clf.transform(ROWS)
    network.live.resumes, network.live._halves = False, None
    last = network.live.module.get_submodule("model.owner.layer.1")

    def stop(*_):
        raise KeyboardInterrupt

    handle = unwrapped(last)[2].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        clf.transform(ROWS + 1)
    handle.remove()
    np.testing.assert_allclose(clf.transform(ROWS), before, rtol=1e-5, atol=1e-6)


def test_full_training_leaves_tied_weights_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(3, 8, bias=False)
            self.down = nn.Linear(8, 8, bias=False)
            self.back = nn.Linear(8, 8, bias=False)
            self.back.weight = self.down.weight

        def forward(self, values):
            return self.back(torch.tanh(self.down(torch.tanh(self.up(values)))))

    X = np.random.RandomState(0).randn(12, 3)
    clf = AdapterClassifier(
        ArrayEncoder(Tied()),
        adapter="full",
        max_epochs=2,
        shrinkage=0.0,
        random_state=0,
    ).fit(X, [0, 1] * 6)
    assert clf.n_trainable_params_ == 3 * 8 + 8 * 8
    module = clf._network.live.module.model
    assert module.back.weight is module.down.weight
    frozen = clf._network.live.backbone.module.model
    assert not torch.equal(module.down.weight, frozen.down.weight)


def test_method_whose_wrap_gives_a_plain_module_is_refused():
    class Plain(LoRA):
        def wrap(self, layer, role, generator):
            return nn.Sequential(layer)

    with pytest.raises(TypeError, match="an AdaptedLayer is expected"):
        network_of(Plain())


def test_role_of_ones_own_may_have_any_name():
    table = {**TABLE, "block": "2"}
    encoder = ArrayEncoder(Rounds([0, 1]), role_table=table)
    clf = AdapterClassifier(encoder, adapter=LoRA(2, roles=["block"]), max_epochs=1)
    assert clf.fit(ROWS, [0, 1] * 4).n_trainable_params_ > 0


def test_lora_without_roles_named_acts_on_all_linear_layers(plain_folder):
    encoder = TextEncoder(str(plain_folder("qwen3")))
    names = network_of(LoRA(2, roles=None), encoder).live.trainable()
    assert len(names) == 3 * 7 * 2


def change_of_first_step(spec, n_layers):
    """Root mean square of what one step of Adam at the default rate adds to outputs."""
    generator = torch.Generator().manual_seed(0)
    x, total = torch.randn(500, 256, generator=generator), 0.0
    for _ in range(n_layers):
        base = nn.Linear(256, 256)
        layer = spec.wrap(base, "ffn_out", generator)
        own = [p for n, p in layer.named_parameters() if not n.startswith("base.")]
        optimizer = torch.optim.AdamW(own, lr=spec.default_learning_rate)
        before = layer(x)
        (before * torch.randn(before.shape, generator=generator)).sum().backward()
        optimizer.step()
        change = (layer(x) - before).detach()
        total += float((change - change.mean(dim=0)).square().mean())  # without biases
    return total**0.5


@pytest.mark.parametrize("rank", [1, 2, 8, 32])
@pytest.mark.parametrize("roles", [("value",), ("query", "value"), None])
def test_first_step_of_lora_is_as_large_whatever_the_rank_and_roles(rank, roles):
    spec = LoRA(rank, roles=roles)
    n_layers = 6 if roles is None else len(roles)
    expected = change_of_first_step(LoRA(), 2)
    assert change_of_first_step(spec, n_layers) == pytest.approx(expected, rel=0.1)


def test_default_learning_rate_of_lora_by_its_formula():
    assert LoRA().default_learning_rate == 2e-3
    assert LoRA(2).default_learning_rate == pytest.approx(4e-3)
    assert LoRA(32).default_learning_rate == pytest.approx(1e-3)
    assert LoRA(2, roles=["key"]).default_learning_rate == pytest.approx(4e-3 * 2**0.5)
    every = LoRA(roles=None).default_learning_rate
    assert every == pytest.approx(2e-3 / 3**0.5)


@pytest.mark.parametrize("rank", [1, 8, 128])
def test_first_step_of_hira_is_as_large_whatever_the_rank(rank):
    expected = change_of_first_step(HiRA(), 1)
    # The signs of many gradients together come near the gradient of the whole weight.
    assert change_of_first_step(HiRA(rank), 1) == pytest.approx(expected, rel=0.25)
    assert HiRA().default_learning_rate == 2.7e-3


@pytest.mark.parametrize("width", [8, 32, 128])
def test_first_step_of_a_bottleneck_is_as_large_whatever_its_width(width):
    expected = change_of_first_step(Bottleneck(), 1)
    # The fewer inner entries, the more their own chance counts.
    assert change_of_first_step(Bottleneck(width), 1) == pytest.approx(
        expected, rel=0.2
    )
    assert Bottleneck().default_learning_rate == 2e-3


def test_nothing_goes_back_through_the_blocks_of_a_ladder():
    network = network_of(LadderSide(4))
    network.live.resumes = False  # run all blocks
    outputs = []
    for rung in network.live.module.blocks:
        rung.base.register_forward_hook(lambda *a: outputs.append(a[2]))
    features = network.live.forward(network.live.prepare(["good film"]))
    assert features.requires_grad
    assert len(outputs) == 2
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("adapter", [LadderSide(4), Prefix(3)], ids=str)
@pytest.mark.parametrize("family", ["albert", "bert", "deberta-v2"])
def test_a_pass_that_was_broken_off_leaves_nothing_behind(
    plain_folder, family, adapter
):
    network = network_of(adapter, TextEncoder(str(plain_folder(family))))
    network.live.resumes = False  # run all blocks
    items = network.live.prepare(["good film", "bad book"])
    expected = network.live.features(items)
    end = network.live.backbone.role_table["ffn_out"]
    layers = [
        p for n, p in network.live.module.named_modules() if n.endswith(f".{end}")
    ]

    def stop(*_):
        raise KeyboardInterrupt

    for layer in (layers[0], layers[-1]):
        handle = layer.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            network.live.features(items)
        handle.remove()
        np.testing.assert_array_equal(network.live.features(items), expected)


@pytest.mark.parametrize("adapter", [LadderSide(4), Prefix(3)], ids=str)
def test_threads_share_a_network_whose_layers_hand_values_on(adapter):
    network = network_of(adapter)
    batches = [network.live.prepare([f"{word} film"] * 3) for word in "abcdefgh"]
    expected = [network.live.features(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(network.live.features, batches * 5))
    for features, right in zip(found, expected * 5, strict=True):
        np.testing.assert_array_equal(features, right)


def test_combination_stands_in_the_order_of_the_list():
    adapter = Combination([LoRA(2), IA3(roles=["query"]), BitFit(roles=["query"])])
    query = network_of(adapter).live.module.blocks[0].query
    kinds = []
    while isinstance(query, AdaptedLayer):
        kinds.append(type(query).__name__)
        query = query.base
    assert kinds == ["Shifted", "ScaledOutput", "LoRALinear"]


def test_methods_with_the_same_names_stand_around_one_layer():
    members = [BitFit(), LayerNormTuning(), LoRA(2), LoRA(3), LadderSide(2)]
    network = network_of(Combination([*members, LadderSide(3)]), std=0.0)
    n_blocks, n_norms = 2, 2
    n_tensors = 8 + 2 * n_norms + 4 + 4 + 4 + 4
    assert len(network.live.trainable()) == n_blocks * n_tensors
    plain = network_of(None)
    items = plain.live.prepare(["good film"])
    np.testing.assert_allclose(network.live.features(items), plain.live.features(items))


def test_combination_acts_where_its_members_act():
    spec = Combination([LoRA(roles=["value", "query"]), BitFit(roles=["query", "key"])])
    assert spec.target_roles() == ("value", "query", "key")


def test_combination_takes_the_lowest_learning_rate():
    rates = [spec.default_learning_rate for spec in (LoRA(), BitFit())]
    assert Combination([LoRA(), BitFit()]).default_learning_rate == min(rates)


@pytest.mark.parametrize("given", [[LoRA(4), BitFit()], (Prefix(2),)], ids=str)
def test_list_of_adapters_becomes_a_combination_of_copies(given):
    spec = resolve_adapter(given)
    assert [repr(m) for m in spec.members] == [repr(m) for m in given]
    assert not {id(m) for m in spec.members} & {id(m) for m in given}
    with pytest.raises(ValueError, match=r"rank=4 was given.*members of a list"):
        resolve_adapter(given, rank=4)


@pytest.mark.parametrize(
    "wrong", [[], [LoRA(), "full"], [None], [LoRA(rank=0)]], ids=str
)
def test_list_with_something_else_is_refused(wrong):
    with pytest.raises(ValueError, match=r"list|'rank' parameter of LoRA"):
        resolve_adapter(wrong)


def test_dora_after_another_adapter_on_its_layer_is_refused():
    adapter = Combination([BitFit(), LoRA(2, use_dora=True)])
    with pytest.raises(ValueError, match=r"use_dora=True.*Put it first in the list"):
        network_of(adapter)
    network_of(Combination([LoRA(2, use_dora=True), BitFit()]))


def test_method_for_linear_layers_refuses_a_normalisation():
    with pytest.raises(
        ValueError, match=r"acts on linear layers.*'ffn_norm'.*LayerNorm"
    ):
        network_of(LoRA(roles=["query", "ffn_norm"]))


def test_roles_of_queries_keys_and_values_stand_for_a_fused_layer_once():
    fused = {"blocks": "layers", "query_key_value": "qkv", "ffn_out": "out"}
    assert LoRA(roles=ROLES[:3]).roles_in(fused) == ("query_key_value",)
    assert IA3().roles_in(fused) == ("query_key_value", "ffn_out")
    assert LoRA().roles_in({"blocks": "", "query": "q"}) == ("query", "value")


def test_bitfit_acts_on_all_that_an_encoder_has():
    assert BitFit().roles_in({"blocks": "b", "query": "q", "own_norm": "n"}) == (
        "query",
        "own_norm",
    )


@pytest.mark.parametrize(
    "spec", [BitFit(roles=[]), IA3(roles=[]), LoRA(roles=[])], ids=str
)
def test_no_role_at_all_is_refused(spec):
    with pytest.raises(ValueError, match=r"roles=\[\] was given.*train nothing"):
        resolve_adapter(spec)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Prefix(0), r"'length' parameter of Prefix.*Got 0"),
        (LadderSide(0), r"'side_dim' parameter of LadderSide.*Got 0"),
        (Bottleneck(activation="elu"), r"'activation' parameter of Bottleneck.*'elu'"),
        (Bottleneck(scaling=0.0), r"'scaling' parameter of Bottleneck.*0.0"),
        (LoRA(use_dora="yes"), r"'use_dora' parameter of LoRA"),
        (LoRA(rank=True), r"'rank' parameter of LoRA must be a number. Got True"),
        (LoRA(roles=[["query"]]), r"a sequence of names is expected"),
        (Combination(LoRA(2)), r"'adapters' parameter of Combination"),
        ([Combination([LoRA(2)]), BitFit()], r"no list in the list"),
        (BitFit(roles="query"), r"'roles' parameter of BitFit.*'query'"),
    ],
    ids=str,
)
def test_wrong_parameter_is_refused(adapter, message):
    with pytest.raises(ValueError, match=message):
        resolve_adapter(adapter)
