"""What every adapter method promises, on every encoder.

A new method is one row in `METHODS`. Where a method differs, its spec says so
(`trains_encoder`); nothing below asks for a method by name.
"""

import functools
import hashlib
import pickle

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from skpeft import AdapterClassifier
from skpeft._network import AdapterNetwork, layer_indices
from skpeft._training import History, Rows, Settings, train
from skpeft.adapters import ADAPTERS, ROLES, Bottleneck, FullFineTuning, LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.objectives import Contrastive

METHODS = {
    "lora": LoRA(),
    "lora-all-roles-dropout": LoRA(4, roles=ROLES, dropout=0.1),
    "lora-rank-stabilized": LoRA(4, rank_stabilized=True, alpha=8),
    "bottleneck-houlsby": Bottleneck(8),
    "bottleneck-pfeiffer": Bottleneck(8, placement="pfeiffer"),
    "bottleneck-parallel": Bottleneck(8, placement="parallel", dropout=0.1),
    "full": FullFineTuning(),
}
FAMILIES = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert")
ENCODERS = (*FAMILIES, "tiny", "array")

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
    return network.prepare(TEXTS if is_text else NUMBERS)


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
    train(network, rows, Contrastive(0.5), settings, RandomState(0), history)
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
    return [
        {
            role: block.get_submodule(backbone.role_table[role])
            for role in method.target_roles()
        }
        for block in root.get_submodule(backbone.role_table["blocks"])
    ]


def test_table_has_a_row_for_every_registered_method():
    assert {type(spec) for spec in METHODS.values()} == set(ADAPTERS.values())


def test_new_network_computes_what_the_frozen_encoder_does(encoder, method):
    frozen, adapted = build(encoder, None), build(encoder, method)
    np.testing.assert_allclose(
        adapted.features(items_of(adapted)),
        frozen.features(items_of(frozen)),
        rtol=0,
        atol=1e-6,
    )


def test_training_changes_features_and_leaves_frozen_bits(encoder, method):
    network = build(encoder, method)
    items = items_of(network)
    shared = list(network.live.backbone.module.state_dict().values())
    addresses = {tensor.data_ptr() for tensor in shared}
    bits, features = digest(shared), network.features(items)
    frozen = build(encoder, None).features(items)
    fit(network)
    assert digest(shared) == bits
    network.live.backbone.check_unchanged()
    trainable = network.trainable().values()
    assert not addresses & {tensor.data_ptr() for tensor in trainable}
    assert np.abs(network.features(items) - features).max() > 1e-6
    np.testing.assert_array_equal(build(encoder, None).features(items), frozen)


def test_every_adapter_tensor_gets_a_gradient_and_moves(encoder, method):
    network = build(encoder, method)
    tensors = network.trainable()
    if method.trains_encoder:  # an encoder may hold tensors its features do not use
        table = network.live.backbone.role_table
        ends = tuple(f".{table[role]}.weight" for role in ROLES)
        tensors = {name: t for name, t in tensors.items() if name.endswith(ends)}
        assert len(tensors) == 3 * len(ROLES)
    assert tensors
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    fit(network)
    without = [n for n, t in tensors.items() if t.grad is None or not t.grad.any()]
    assert not without
    assert not [n for n, t in tensors.items() if torch.equal(t, before[n])]


def test_trainable_count_is_what_the_formula_says(encoder, method):
    network = build(encoder, method)
    found = sum(tensor.numel() for tensor in network.trainable().values())
    if method.trains_encoder:
        parameters = network.live.backbone.module.parameters()
        assert found == sum(parameter.numel() for parameter in parameters)
        return
    blocks = [
        {role: (s.in_features, s.out_features) for role, s in sites.items()}
        for sites in sites_of(network, method)
    ]
    assert len(blocks) == 3
    assert found == sum(method.count(sites) for sites in blocks)


def test_features_do_not_depend_on_the_rows_beside(encoder, method):
    network = build(encoder, method)
    fit(network)
    items = items_of(network)
    together = network.features(items)
    order = RandomState(1).permutation(len(items))
    np.testing.assert_allclose(
        network.features([items[i] for i in order]), together[order], atol=1e-5
    )
    alone = np.concatenate([network.features([item]) for item in items])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_state_and_pickle_give_the_same_bits_back(encoder, method):
    network = build(encoder, method)
    fit(network)
    items, state = items_of(network), network.state()
    expected = network.features(items)
    other = build(encoder, method, seed=1)
    other.load_state(state)
    np.testing.assert_array_equal(other.features(items), expected)
    loaded = pickle.loads(pickle.dumps(network))
    assert loaded.state().keys() == state.keys()
    np.testing.assert_array_equal(loaded.features(items), expected)
    assert all((loaded.state()[name] == state[name]).all() for name in state)


def test_bfloat16_trains_and_gives_finite_float32(encoder, method):
    network = build(encoder, method, precision="bfloat16")
    losses = fit(network).losses
    assert np.isfinite(losses).all()
    features = network.features(items_of(network))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert {t.dtype for t in network.trainable().values()} == {torch.float32}
    exact = build(encoder, method).features(items_of(network))
    near = build(encoder, method, precision="bfloat16").features(items_of(network))
    # bfloat16 has 8 bits: a share of 1/256 a product, some of them in a row
    assert np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


def test_loss_falls(encoder, method):
    losses = fit(build(encoder, method), n_epochs=8).losses
    assert losses[-1] < losses[0]


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


@pytest.mark.parametrize(("layers", "expected"), [(2, {1, 2}), ([0], {0})], ids=str)
def test_layers_choose_the_blocks_that_are_trained(encoder, method, layers, expected):
    network = build(encoder, method, layers)
    backbone = network.live.backbone
    path = f"{backbone.root}.{backbone.role_table['blocks']}.".removeprefix(".")
    names = list(network.trainable())
    assert all(name.startswith(path) for name in names)
    assert {int(name.removeprefix(path).split(".")[0]) for name in names} == expected
    items = items_of(network)
    before = build(encoder, None).features(items)
    fit(network)
    assert np.abs(network.features(items) - before).max() > 1e-6


@pytest.mark.parametrize("layers", [4, 0, -1, [3], [-4], [], [0.5], ["a"]], ids=str)
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
