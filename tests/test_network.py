"""The network: what it shares, owns, stores and refuses."""

import copy
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from skpeft import AdapterBank, AdapterClassifier, _live, clear_cache
from skpeft._device import resolve_device, resolve_precision
from skpeft._network import FORMAT, AdapterNetwork
from skpeft.adapters import Bottleneck, LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder

TEXTS = ["good film", "a bad and very long book that does not end", "tea", ""]


def build(adapter=None, encoder=None, *, layers=None, precision="float32", seed=0):
    return AdapterNetwork(
        TinyTextEncoder() if encoder is None else encoder,
        LoRA(2) if adapter is None else adapter,
        layers,
        n_features=1,
        device="cpu",
        precision=precision,
        seed=seed,
    )


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.live.trainable().values():
        tensor.data.normal_(std=0.1, generator=generator)
    return network


def test_network_of_one_seed_starts_from_the_same_bits():
    one, same, other = (build(seed=seed).state() for seed in (0, 0, 1))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    network = build(Bottleneck(dropout=0.5))
    generator = torch.Generator().manual_seed(0)
    with network.live.dropout(generator):
        network.live.forward(network.live.prepare(TEXTS))
    assert torch.equal(torch.get_rng_state(), before)


def test_item_may_hold_single_numbers():
    """An encoder of one's own says what its items hold."""
    network = randomise(build(LoRA(2), ArrayEncoder(), layers=[1]))
    items = network.live.prepare(np.arange(20.0)[:, None])  # enough to be kept
    numbered = [item | {"number": np.array(i)} for i, item in enumerate(items)]
    np.testing.assert_array_equal(
        network.live.features(numbered), network.live.features(items)
    )


def test_features_of_alike_items_stand_in_each_place(monkeypatch):
    network = randomise(build())
    monkeypatch.setattr(_live, "_WINDOWS_AT_ONCE", 2)
    order = np.array([3, 0, 1, 0, 2, 1, 0, 3])
    features = network.live.features(network.live.prepare([TEXTS[i] for i in order]))
    alone = network.live.features(network.live.prepare(TEXTS))
    np.testing.assert_allclose(features, alone[order], atol=1e-6)


def test_features_come_out_in_the_order_of_the_items(monkeypatch):
    network = randomise(build())
    items = network.live.prepare(TEXTS)
    whole = network.live.features(items)
    monkeypatch.setitem(_live._GROUPS, "cpu", (1, 0))  # one item a group
    np.testing.assert_allclose(network.live.features(items), whole, atol=1e-6)


def test_features_have_no_graph_and_forward_has_one():
    network = randomise(build())
    items = network.live.prepare(TEXTS)
    features = network.live.features(items)
    assert isinstance(features, np.ndarray)
    forward = network.live.forward(items)
    assert forward.requires_grad
    np.testing.assert_allclose(forward.detach().numpy(), features, atol=1e-5)


def test_features_in_float64_are_near_those_in_float32():
    single, double = (build(precision=p) for p in ("float32", "float64"))
    double.live.load_state({k: v.astype(np.float64) for k, v in single.state().items()})
    found = double.live.features(double.live.prepare(TEXTS))
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        single.live.features(single.live.prepare(TEXTS)), found, atol=1e-5
    )


def test_network_counts_frozen_and_trainable_tensors():
    network = build(LoRA(2))
    frozen = network.live.backbone.module.parameters()
    assert network.live.n_frozen == sum(tensor.numel() for tensor in frozen)
    trainable = network.live.trainable().values()
    assert sum(tensor.numel() for tensor in trainable) == 2 * 2 * 2 * (32 + 32)


def test_two_networks_of_one_backbone_do_not_touch_each_other():
    one, other = randomise(build(), seed=1), randomise(build(), seed=2)
    items = one.live.prepare(TEXTS)
    before = one.live.features(items)
    randomise(other, seed=3)
    np.testing.assert_array_equal(one.live.features(items), before)
    assert np.abs(before - other.live.features(items)).max() > 1e-3


def test_dropout_context_lends_its_generator_and_takes_it_back():
    network = randomise(build(LoRA(4, dropout=0.5)))
    items = network.live.prepare(TEXTS)
    merged = network.live.features(items)
    generator = torch.Generator().manual_seed(0)

    def forward():
        return network.live.forward(items).detach().numpy()

    exact = forward()
    with network.live.dropout(generator):
        assert np.abs(forward() - exact).max() > 1e-4
        np.testing.assert_array_equal(network.live.features(items), merged)
        with network.live.dropout(None):
            np.testing.assert_array_equal(forward(), exact)
        assert np.abs(forward() - exact).max() > 1e-4
    np.testing.assert_array_equal(forward(), exact)
    with pytest.raises(KeyError), network.live.dropout(generator):
        raise KeyError
    np.testing.assert_array_equal(forward(), exact)


def test_training_enters_no_mode_of_torch_where_the_default_device_is_the_own():
    from torch.overrides import _get_current_function_mode_stack

    network = build()
    with network.live.own_context():
        assert _get_current_function_mode_stack() == []
    with torch.device("meta"), network.live.own_context():
        assert torch.zeros(1).device == network.live.device


def test_state_is_a_copy():
    network = randomise(build())
    state = network.state()
    kept = {name: array.copy() for name, array in state.items()}
    randomise(network, seed=7)
    assert all((state[name] == kept[name]).all() for name in kept)


def test_load_state_takes_read_only_arrays():
    network, state = build(), randomise(build()).state()
    for array in state.values():
        array.setflags(write=False)
    network.live.load_state(state)
    assert all((network.state()[name] == state[name]).all() for name in state)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_load_state_that_does_not_fit_changes_nothing(change):
    network = randomise(build())
    before, state = network.state(), randomise(build(), seed=9).state()
    name = list(state)[-1]
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state["head"] = state[name]
    else:
        state[name] = state[name].T.copy()
    with pytest.raises(ValueError, match=name if change != "unknown" else "head"):
        network.live.load_state(state)
    after = network.state()
    assert all((after[n] == before[n]).all() for n in before)


def test_pickle_holds_the_trained_tensors_and_little_else():
    network = build(LoRA(16), TinyTextEncoder(hidden_size=128))
    trained = sum(array.nbytes for array in network.state().values())
    assert trained < len(pickle.dumps(network)) < trained + 4096


def test_pickle_of_a_loaded_network_needs_no_encoder():
    data = pickle.dumps(randomise(build()))
    network = pickle.loads(data)
    network.encoder.set_params(seed=5)  # not the encoder that it was fitted on
    again = pickle.loads(pickle.dumps(network))
    assert all((again.state()[n] == a).all() for n, a in network.state().items())
    with pytest.raises(ValueError, match="fingerprint"):
        again.live.prepare(TEXTS)
    with pytest.raises(ValueError, match="fingerprint"):  # and not a second time
        again.live.prepare(TEXTS)


def test_pickle_of_a_later_format_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("skpeft._network.FORMAT", FORMAT + 1)
    data = pickle.dumps(build())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"format {FORMAT + 1}.*Install skpeft>="):
        pickle.loads(data)


def test_loaded_network_is_built_once_by_many_threads(monkeypatch):
    network = randomise(build())
    items = network.live.prepare(TEXTS)
    expected = network.live.features(items)
    loaded = pickle.loads(pickle.dumps(network))
    calls = []
    whole = AdapterNetwork._build
    monkeypatch.setattr(
        AdapterNetwork, "_build", lambda self: calls.append(1) or whole(self)
    )
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(loaded.live.features, [items] * 8):
            np.testing.assert_array_equal(found, expected)
    assert len(calls) == 1


def test_deepcopy_is_independent_and_shares_the_frozen_tensors():
    network = randomise(build())
    items = network.live.prepare(TEXTS)
    before = network.live.features(items)
    copied = copy.deepcopy(network)
    np.testing.assert_array_equal(copied.live.features(items), before)
    randomise(copied, seed=8)
    np.testing.assert_array_equal(network.live.features(items), before)
    assert copied.live.backbone is network.live.backbone


def test_relocate_finds_the_same_encoder_elsewhere(plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder("bert"), tmp_path / "model")
    network = randomise(build(encoder=TextEncoder(str(folder), max_length=8)))
    items = network.live.prepare(TEXTS)
    expected = network.live.features(items)
    loaded = pickle.loads(pickle.dumps(network))
    moved = folder.rename(tmp_path / "moved")
    loaded.relocate(TextEncoder(str(moved)))
    assert loaded.encoder.max_length == 8
    np.testing.assert_array_equal(
        loaded.live.features(loaded.live.prepare(TEXTS)), expected
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda clf, folder: clf.predict(TEXTS),
        lambda clf, folder: clf.to_torch(),
        lambda clf, folder: clf.to_sentence_transformer(),
        lambda clf, folder: clf.save_pretrained(folder),
        lambda clf, folder: AdapterBank({"task": clf}).predict(TEXTS),
    ],
    ids=["predict", "torch", "sentence-transformer", "folder", "bank"],
)
def test_whoever_asks_first_finds_an_encoder_that_was_moved(
    plain_folder, tmp_path, ask
):
    folder = shutil.copytree(plain_folder("bert"), tmp_path / "model")
    clf = AdapterClassifier(str(folder), max_epochs=1)
    clf.fit(TEXTS, np.arange(len(TEXTS)) % 2)
    loaded = pickle.loads(pickle.dumps(clf))
    moved = folder.rename(tmp_path / "moved")
    clear_cache()
    with pytest.raises(OSError, match=r"set_params\(encoder="):
        ask(loaded, tmp_path / "saved")
    ask(loaded.set_params(encoder=str(moved)), tmp_path / "saved")
    assert loaded._network.encoder.model == str(moved)


def test_relocate_to_another_encoder_is_refused_and_undone(plain_folder):
    network = build(encoder=TextEncoder(str(plain_folder("bert"))))
    loaded = pickle.loads(pickle.dumps(network))
    with pytest.raises(ValueError, match="fingerprint"):
        loaded.relocate(TextEncoder(str(plain_folder("bert", 4))))
    assert loaded.encoder.model == str(plain_folder("bert"))
    assert len(loaded.live.features(loaded.live.prepare(TEXTS))) == len(TEXTS)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_device_by_name_is_that_device(device):
    assert resolve_device(device).type == "cpu"


def test_device_auto_is_one_that_is_there():
    device = resolve_device("auto")
    assert torch.ones(1, device=device).device.type == device.type
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xla", "fpga"])
def test_device_that_is_not_there_is_refused(device):
    match = f"device='{device}' cannot be used"
    with pytest.raises(ValueError, match=match) as caught:
        resolve_device(device)
    assert len(str(caught.value)) < 400  # torch's own runs over a page


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", (torch.float32, None)),
        ("auto", "cuda", (torch.float32, torch.bfloat16)),
        ("float32", "cuda", (torch.float32, None)),
        ("float64", "cpu", (torch.float64, None)),
        ("bfloat16", "cpu", (torch.float32, torch.bfloat16)),
    ],
)
def test_precision_gives_types_of_weights_and_products(precision, device, expected):
    assert resolve_precision(precision, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("capabilities", "n_warnings"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, 1),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, 0),
        ({}, 0),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_one_warning_a_fit(
    monkeypatch, capabilities, n_warnings
):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: capabilities, raising=False
    )
    clf = AdapterClassifier(
        "tiny", precision="bfloat16", device="cpu", max_epochs=1, random_state=0
    )
    texts, labels = ["good film", "bad film", "good book", "bad book"], [0, 1, 0, 1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(texts, labels).predict(texts)
    slow = [c for c in caught if "precision='bfloat16'" in str(c.message)]
    assert len(slow) == n_warnings
    trained = clf._network.live.trainable().values()
    assert {tensor.dtype for tensor in trained} == {torch.float32}


def test_adapter_with_two_roles_on_one_layer_is_refused():
    table = {"blocks": "", "query": "0", "key": "0"}
    encoder = ArrayEncoder(torch.nn.Sequential(torch.nn.Linear(1, 2)), role_table=table)
    build(LoRA(2, roles=("query",)), encoder)
    with pytest.raises(ValueError, match="one layer more than once"):
        build(LoRA(2, roles=("query", "key")), encoder)


@pytest.mark.parametrize("library", ["cuda", "mps"])
def test_device_auto_is_the_accelerator_that_torch_finds(library, monkeypatch):
    for name, module in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda name=name: name == library)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = {"cuda": torch.device("cuda", 1), "mps": torch.device("mps")}
    assert resolve_device("auto") == found[library]


class Nowhere(LoRA):
    """A method of the user's own that forgets to say where it acts."""

    def target_roles(self):
        return ()


def test_adapter_that_names_no_role_is_refused():
    with pytest.raises(ValueError, match=r"Nowhere.* names no role"):
        AdapterClassifier("tiny", adapter=Nowhere(2)).fit(TEXTS, [0, 1, 0, 1])


class Blockless(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.none = torch.nn.Linear(4, 4), torch.nn.ModuleList()

    def forward(self, values):
        return self.map(values)


def test_table_whose_list_of_blocks_is_empty_is_refused():
    encoder = ArrayEncoder(Blockless(), role_table={"blocks": "none", "query": "x"})
    with pytest.raises(ValueError, match="'none', but nothing is inside"):
        AdapterClassifier(encoder, layers=None).fit(np.eye(4), [0, 1, 0, 1])


class Lost(TinyTextEncoder):
    """Its weights are there at first, and gone later."""

    gone = False

    def load(self, **place):
        if Lost.gone:
            raise OSError("the disk with the weights is not there")
        return super().load(**place)


def test_encoder_that_is_gone_says_so_at_each_prediction(monkeypatch):
    clf = AdapterClassifier(Lost(), max_epochs=1, random_state=0)
    clf.fit(TEXTS, [0, 1, 0, 1])
    expected = clf.predict_proba(TEXTS)
    loaded = pickle.loads(pickle.dumps(clf))
    monkeypatch.setattr(Lost, "gone", True)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk with the weights is not there"):
            loaded.predict(TEXTS)
    monkeypatch.setattr(Lost, "gone", False)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), expected)
