"""What every adapter method promises, on every encoder.

A new method is one row in `METHODS`. Where a method differs, its spec says so
(`trains_encoder`); nothing below asks for a method by name.
"""

import functools
import hashlib
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch.utils._python_dispatch import TorchDispatchMode

from skpeft import AdapterClassifier
from skpeft._export import private_module
from skpeft._network import AdapterNetwork
from skpeft._sites import layer_indices
from skpeft._training import History, Rows, Settings, train
from skpeft.adapters import (
    ADAPTERS,
    IA3,
    ROLES,
    BitFit,
    Bottleneck,
    Combination,
    FullFineTuning,
    HiRA,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
)
from skpeft.adapters.base import AdaptedLayer, unwrapped, widths
from skpeft.encoders import FAMILIES, ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.objectives import Contrastive

METHODS = {
    "lora": LoRA(),
    "lora-all-roles-dropout": LoRA(4, roles=ROLES, dropout=0.1),
    "lora-rank-stabilized": LoRA(4, rank_stabilized=True, alpha=8),
    "bottleneck-houlsby": Bottleneck(8),
    "bottleneck-pfeiffer": Bottleneck(8, placement="pfeiffer"),
    "bottleneck-parallel": Bottleneck(8, placement="parallel", dropout=0.1),
    "bottleneck-learned-scale": Bottleneck(8, activation="gelu", scaling="learned"),
    "lora-dora": LoRA(4, use_dora=True, roles=ROLES),
    "ia3": IA3(),
    "hira": HiRA(4),
    "bitfit": BitFit(),
    "layer-norm": LayerNormTuning(),
    "prefix": Prefix(5),
    "ladder": LadderSide(16),
    "combination": Combination([LoRA(4), BitFit(), Prefix(3), LadderSide(8)]),
    "full": FullFineTuning(),
}
# These run the code of a family that is in the table, through the same role table.
ALIKE = {"camembert", "gemma2", "llama", "mistral", "qwen2"}
ENCODERS = (*(name for name in FAMILIES if name not in ALIKE), "tiny", "array")
# Of float32, through a few blocks, for features of up to 3: it differs by processor.
ROUNDING = 1e-5

N_FEATURES = 3
THINGS = ("film", "book", "small green tea pot", "song of the long winter")
TEXTS = [f"{word} {thing}" for thing in THINGS for word in ("good", "bad")]
NUMBERS = RandomState(0).randn(len(TEXTS), N_FEATURES)
CLASSES = np.tile([1, 0], len(THINGS))


@pytest.fixture(scope="module")
def make_encoder(plain_folder):
    """Spec of an encoder by name."""

    @functools.cache
    def make(name):
        own = {
            "tiny": TinyTextEncoder(n_layers=3),
            "array": ArrayEncoder(n_layers=3),
        }
        return own[name] if name in own else TextEncoder(str(plain_folder(name)))

    return make


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, make_encoder):
    return make_encoder(request.param)


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return METHODS[request.param]


def build(encoder, method, layers=None, *, seed=0, precision="float32"):
    return AdapterNetwork(
        encoder,
        method,
        layers,
        n_features=1 if encoder.modality == "text" else N_FEATURES,
        device="cpu",
        precision=precision,
        seed=seed,
    )


def items_of(network):
    is_text = network.encoder.modality == "text"
    return network.live.prepare(TEXTS if is_text else NUMBERS)


def fit(network, n_epochs=3, learning_rate=None):
    """Train on all rows as one batch."""
    rate = network.adapter.default_learning_rate
    settings = Settings(
        max_epochs=n_epochs,
        batch_size=len(CLASSES),
        learning_rate=learning_rate or rate,
        weight_decay=0.01,
        warmup_fraction=0.0,
        patience=None,
        tol=0.0,
        verbose=0,
        callback=None,
    )
    rows = Rows(items_of(network), CLASSES, np.ones(len(CLASSES)))
    history = History()
    train(network.live, rows, Contrastive(0.5), settings, RandomState(0), history)
    return history


def digest(tensors):
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.detach().numpy().tobytes())
    return state.hexdigest()


def sites_of(network, method):
    """Frozen layers where a method acts, one dict of roles a block."""
    backbone = network.live.backbone
    root = backbone.module.get_submodule(backbone.root)
    table = backbone.role_table
    blocks = [
        {role: block.get_submodule(table[role]) for role in method.roles_in(table)}
        for block in root.get_submodule(table["blocks"])
    ]
    return [
        {role: x for role, x in sites.items() if not isinstance(x, torch.nn.Identity)}
        for sites in blocks
    ]


def test_table_has_a_row_for_every_registered_method():
    registered = {*ADAPTERS.values(), Combination}
    assert {type(spec) for spec in METHODS.values()} == registered


class Trained(NamedTuple):
    """A network after some steps, and what was seen on the way."""

    network: AdapterNetwork
    frozen: np.ndarray  # features of the encoder by itself
    fresh: np.ndarray  # features before the first step
    start: dict[str, np.ndarray]  # trainable tensors then
    digests: list[str]  # of the frozen tensors, before and after
    losses: list[float]
    reached: dict[str, bool]


@pytest.fixture(scope="module")
def trained(encoder, method):
    """The network of one method in one encoder, trained once for several tests."""
    frozen, network = build(encoder, None), build(encoder, method)
    items = items_of(network)
    shared = list(network.live.backbone.module.state_dict().values())
    network.live.resumes = False  # all blocks run, in the batches of the frozen encoder
    features, start, before = (
        network.live.features(items),
        network.state(),
        digest(shared),
    )
    network.live.resumes = None
    reached = {}
    for name, tensor in network.live.trainable().items():
        tensor.register_post_accumulate_grad_hook(
            lambda t, name=name: reached.update({name: bool(t.grad.any())})
        )
    losses = fit(network, n_epochs=8).losses
    digests = [before, digest(shared)]
    frozen_features = frozen.live.features(items)
    return Trained(network, frozen_features, features, start, digests, losses, reached)


def test_new_network_computes_what_the_frozen_encoder_does(trained):
    np.testing.assert_allclose(trained.fresh, trained.frozen, rtol=0, atol=ROUNDING)


def test_training_changes_features_and_leaves_frozen_bits(trained):
    network = trained.network
    backbone = network.live.backbone
    assert trained.digests[0] == trained.digests[1]
    backbone.check_unchanged()
    addresses = {t.data_ptr() for t in backbone.module.state_dict().values()}
    assert not addresses & {t.data_ptr() for t in network.live.trainable().values()}
    items = items_of(network)
    assert np.abs(network.live.features(items) - trained.fresh).max() > ROUNDING
    again = build(network.encoder, None).live.features(items)
    np.testing.assert_array_equal(again, trained.frozen)


def test_loss_falls(trained):
    assert trained.losses[-1] < trained.losses[0]


def test_every_adapter_tensor_gets_a_gradient_and_moves(trained):
    network = trained.network
    tensors = network.live.trainable()
    if network.adapter.trains_encoder:  # some tensors of an encoder have no effect
        table = network.live.backbone.role_table
        linear = [r for r in table if r != "blocks" and not r.endswith("_norm")]
        ends = tuple(f".{table[role]}.weight" for role in linear)
        tensors = {name: t for name, t in tensors.items() if name.endswith(ends)}
        assert len(tensors) == (1 if network.live.backbone.n_calls else 3) * len(linear)
    assert tensors
    assert not [name for name in tensors if not trained.reached.get(name)]
    now = network.state()
    assert not [n for n in tensors if (now[n] == trained.start[n]).all()]


def test_trainable_count_is_what_the_formula_says(trained, method):
    network = trained.network
    found = sum(tensor.numel() for tensor in network.live.trainable().values())
    if method.trains_encoder:
        parameters = network.live.backbone.module.parameters()
        assert found == sum(parameter.numel() for parameter in parameters)
        return
    blocks = [
        {role: widths(site) for role, site in sites.items()}
        for sites in sites_of(network, method)
    ]
    assert len(blocks) == (1 if network.live.backbone.n_calls else 3)
    assert found == sum(method.count(sites) for sites in blocks)


def test_features_do_not_depend_on_the_rows_beside(trained):
    network = trained.network
    items = items_of(network)
    together = network.live.features(items)
    order = RandomState(1).permutation(len(items))
    np.testing.assert_allclose(
        network.live.features([items[i] for i in order]), together[order], atol=ROUNDING
    )
    alone = np.concatenate([network.live.features([item]) for item in items])
    np.testing.assert_allclose(alone, together, atol=ROUNDING)


def test_state_and_pickle_give_the_same_bits_back(trained):
    network = trained.network
    items, state = items_of(network), network.state()
    expected = network.live.features(items)
    other = build(network.encoder, network.adapter, seed=1)
    other.live.load_state(state)
    np.testing.assert_array_equal(other.live.features(items), expected)
    loaded = pickle.loads(pickle.dumps(network))
    assert loaded.state().keys() == state.keys()
    np.testing.assert_array_equal(loaded.live.features(items), expected)
    assert all((loaded.state()[name] == state[name]).all() for name in state)


def test_merged_equals_unmerged(trained):
    network = trained.network
    items, bits = items_of(network), digest(network.live.module.state_dict().values())
    expected = network.live.features(items)
    merged = private_module(network)
    found = merged(network.live._collate(items)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    left = [part for part in merged.modules() if isinstance(part, AdaptedLayer)]
    can_merge = [p for p in left if type(p).merged is not AdaptedLayer.merged]
    plain = (torch.nn.Linear, torch.nn.LayerNorm)
    assert not [part for part in can_merge if isinstance(unwrapped(part), plain)]
    # nothing is shared, and nothing of the network has moved
    own, other = (
        {t.data_ptr() for t in m.state_dict().values()}
        for m in (merged, network.live.module)
    )
    assert not own & other
    assert digest(network.live.module.state_dict().values()) == bits


def test_bfloat16_trains_and_gives_finite_float32(trained):
    network = build(
        trained.network.encoder, trained.network.adapter, precision="bfloat16"
    )
    near = network.live.features(items_of(network))
    # bfloat16 has 8 bits: a share of 1/256 a product, some of them in a row
    gap = np.linalg.norm(near - trained.fresh)
    assert gap < 0.1 * np.linalg.norm(trained.fresh)
    losses = fit(network, n_epochs=2).losses
    assert np.isfinite(losses).all()
    features = network.live.features(items_of(network))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert {t.dtype for t in network.live.trainable().values()} == {torch.float32}


class Casts(TorchDispatchMode):
    """Notes what is cast to another type, by where it is in memory."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.places.add(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def test_bfloat16_rounds_no_trained_tensor(trained):
    method = trained.network.adapter
    network = build(trained.network.encoder, method, precision="bfloat16")
    items = items_of(network)
    with Casts() as casts, network.live.own_context():
        network.live.forward(items).sum().backward()
    own = {tensor.data_ptr() for tensor in network.live.trainable().values()}
    assert casts.places
    # Of the encoder's own weights, where it trains these, copies are rounded.
    assert bool(casts.places & own) == method.trains_encoder


@pytest.mark.parametrize("layers", [2, [0]], ids=str)
def test_layers_choose_the_blocks_that_are_trained(encoder, method, layers):
    if build(encoder, None).live.backbone.n_calls:  # one adapter for all repeats
        with pytest.raises(ValueError, match=r"layers=.* share their weights"):
            build(encoder, method, layers)
        return
    network = build(encoder, method, layers)
    backbone = network.live.backbone
    path = f"{backbone.root}.{backbone.role_table['blocks']}.".removeprefix(".")
    names = list(network.live.trainable())
    assert all(name.startswith(path) for name in names)
    expected = {1, 2} if layers == 2 else {0}
    assert {int(name.removeprefix(path).split(".")[0]) for name in names} == expected
    items = items_of(network)
    before = build(encoder, None).live.features(items)
    fit(network, n_epochs=3)
    assert np.abs(network.live.features(items) - before).max() > 1e-6


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2]),
        (1, [2]),
        (2, [1, 2]),
        (3, [0, 1, 2]),
        (np.int64(1), [2]),
        ([0], [0]),
        ((2, 0), [0, 2]),
        (np.array([1]), [1]),
        ([-1, 2], [2]),
    ],
    ids=str,
)
def test_layer_indices_are_the_last_ones_or_those_named(layers, expected):
    assert layer_indices(layers, 3) == expected


@pytest.mark.parametrize(
    "layers",
    [4, 0, -1, [3], [-4], [], [0.5], ["a"], [False, True], np.array([False, True])],
    ids=str,
)
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers=.* 3 blocks"):
        layer_indices(layers, 3)


@pytest.mark.parametrize("adapter", [LoRA(4), Bottleneck(4), "full"], ids=str)
def test_training_in_bfloat16_follows_that_in_float32(adapter):
    texts = [
        f"{word} {thing}" for thing in ["film", "book", "tea", "car"] for word in "ab"
    ]
    losses = [
        AdapterClassifier(
            "tiny",
            adapter=adapter,
            precision=precision,
            learning_rate=5e-3,
            shrinkage=0.0,
            random_state=0,
        )
        .fit(texts, list("ab") * 4)
        .loss_curve_
        for precision in ("float32", "bfloat16")
    ]
    fall = losses[0][0] - losses[0][-1]
    assert fall > 0.05
    np.testing.assert_allclose(losses[1], losses[0], atol=0.1 * fall)
