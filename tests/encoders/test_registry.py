"""One frozen copy of each encoder a process, shared and never changed."""

import copy
import gc
import io
import json
import pickle
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skpeft import AdapterClassifier, clear_cache
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder, _registry
from skpeft.encoders._text import Weights
from skpeft.encoders.base import Seal
from tests import models

LABELS = [0, 1, 0, 1, 0, 1, 0]
CPU = torch.device("cpu")
TWO = (["good film", "bad film", "good book", "bad book"], [1, 0, 1, 0])


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_cache()
    yield
    clear_cache()


@pytest.fixture
def folder(plain_folder):
    return plain_folder("bert")


@pytest.fixture
def model(folder):
    return models.load(folder)


@pytest.fixture
def count_loads(monkeypatch):
    """Number of times that a model was made of its files."""
    calls = []
    whole = TextEncoder._open

    def counted(self):
        calls.append(self.model)
        time.sleep(0.05)  # long enough for other threads to come
        return whole(self)

    monkeypatch.setattr(TextEncoder, "_open", counted)
    return calls


def load(encoder, dtype=torch.float32):
    return encoder.load(n_features=1, device=CPU, dtype=dtype)


def fitted(encoder, adapter="lora", **parameters):
    clf = AdapterClassifier(
        encoder, adapter=adapter, max_epochs=2, random_state=0, **parameters
    )
    return clf.fit(models.TEXTS, LABELS)


def frozen_addresses(clf):
    module = clf._network.live.module
    frozen = (t for t in module.parameters() if not t.requires_grad)
    return {tensor.data_ptr() for tensor in frozen}


def addresses(module):
    return {tensor.data_ptr() for tensor in module.parameters()}


def test_estimators_share_tensors_however_the_folder_is_spelt(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    spelt = [str(folder), f"{folder}/", folder.name, f"./{folder.name}"]
    fits = [fitted(name) for name in spelt]
    fits.append(fitted(TextEncoder(str(folder), max_length=16), "bottleneck"))
    found = [frozen_addresses(clf) for clf in fits]
    assert found[0]
    assert all(other == found[0] for other in found)


def test_two_folders_with_the_same_content_share_tensors(tmp_path):
    twins = [
        fitted(str(models.save_plain(tmp_path / name, "bert", seed=3)))
        for name in ("one", "other")
    ]
    assert frozen_addresses(twins[0]) == frozen_addresses(twins[1])
    assert twins[0]._network.fingerprint == twins[1]._network.fingerprint


def test_folders_with_unlike_content_do_not_share(plain_folder):
    one, other = (fitted(str(plain_folder("bert", seed))) for seed in (0, 4))
    assert not frozen_addresses(one) & frozen_addresses(other)
    assert one._network.fingerprint != other._network.fingerprint


def test_folders_whose_tokenizers_cut_other_ends_do_not_share(plain_folder, tmp_path):
    right, long = plain_folder("bert"), [text * 9 for text in models.TEXTS]
    left = cut_on_the_left(right, tmp_path / "left")
    one, other = (
        AdapterClassifier(str(folder), adapter=None).fit(long[:4], [0, 1] * 2)
        for folder in (right, left)
    )
    for clf, folder in ((one, right), (other, left)):
        expected = models.load(folder).encode(long)
        np.testing.assert_allclose(clf.transform(long), expected, atol=1e-5)
    assert np.abs(one.transform(long) - other.transform(long)).max() > 1e-3


def cut_on_the_left(folder, target):
    """Copy of a model's folder whose tokenizer keeps the end of long texts."""
    shutil.copytree(folder, target)
    file = target / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "truncation_side": "left"}))
    return target


def test_models_that_differ_only_on_long_texts_do_not_share(tmp_path):
    plain = models.save_plain(tmp_path / "plain", "mistral")
    config = json.loads((plain / "config.json").read_text())
    near = shutil.copytree(plain, tmp_path / "near")
    (near / "config.json").write_text(json.dumps(config | {"sliding_window": 9}))
    one, other = (load(TextEncoder(str(folder))) for folder in (plain, near))
    text = models.TEXTS[4]
    batches = [backbone.collate(backbone.prepare([text])) for backbone in (one, other)]
    with torch.no_grad():
        features = [b.module(x) for b, x in zip((one, other), batches, strict=True)]
    assert (features[0] - features[1]).abs().max() > 1e-3
    expected = torch.from_numpy(models.load(near).encode([text]))
    torch.testing.assert_close(features[1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda model: setattr(model, "max_seq_length", 8), "length"),
        (lambda model: setattr(model, "truncate_dim", 8), "truncation"),
        (lambda model: setattr(model[1], "pooling_mode", "cls"), "pooling"),
        (lambda model: model.prompts.update(query="a "), "prompt"),
        (lambda model: model.pop(2), "parts"),
        (lambda model: setattr(model.tokenizer, "truncation_side", "left"), "side"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_loaded_model_set_otherwise_is_read_anew(folder, change, name):
    model = models.with_pooling(
        folder, prompts={"query": "query : "}, default_prompt_name="query"
    )
    long = [text * 4 for text in models.TEXTS]
    clf = fitted(model, None)
    before = clf.transform(long)
    np.testing.assert_allclose(before, model.encode(long), atol=1e-5)
    change(model)
    again = fitted(model, None)
    np.testing.assert_allclose(again.transform(long), model.encode(long), atol=1e-5)
    np.testing.assert_array_equal(clf.transform(long), before)
    assert again._network.fingerprint != clf._network.fingerprint


def test_dtypes_are_kept_apart(folder):
    encoder = TextEncoder(str(folder))
    single, double = (load(encoder, t) for t in (torch.float32, torch.float64))
    assert {p.dtype for p in single.module.parameters()} == {torch.float32}
    assert {p.dtype for p in double.module.parameters()} == {torch.float64}
    assert single.fingerprint == double.fingerprint


def test_eight_threads_load_once(folder, count_loads):
    encoder = TextEncoder(str(folder))
    with ThreadPoolExecutor(8) as pool:
        backbones = list(pool.map(load, [encoder] * 8))
    assert len(count_loads) == 1
    assert len({frozenset(addresses(b.module)) for b in backbones}) == 1


def test_clones_folds_and_refits_load_once(folder, count_loads):
    clf = AdapterClassifier(str(folder), max_epochs=1)
    for _ in range(3):
        clone(clf).fit(models.TEXTS, LABELS)  # dropped at once, as a search does
        gc.collect()
    assert len(count_loads) == 1


def test_only_the_encoder_used_last_is_held(plain_folder):
    held = []
    for seed in (0, 4):
        backbone = load(TextEncoder(str(plain_folder("bert", seed))))
        held.append(weakref.ref(backbone._weights))
        del backbone
    gc.collect()
    assert held[0]() is None
    assert held[1]() is not None


def test_clear_cache_frees_the_memory(folder):
    backbone = load(TextEncoder(str(folder)))
    weights = weakref.ref(backbone._weights)
    parameter = weakref.ref(next(backbone.module.parameters()))
    del backbone
    gc.collect()
    assert weights() is not None
    clear_cache()
    gc.collect()
    assert weights() is None
    assert parameter() is None


def test_clear_cache_leaves_fitted_estimators_at_work(folder, count_loads):
    clf = fitted(str(folder))
    expected = clf.predict_proba(models.TEXTS)
    clear_cache()
    np.testing.assert_array_equal(clf.predict_proba(models.TEXTS), expected)
    assert len(count_loads) == 1


def test_loaded_model_dropped_by_its_owner_is_freed(folder):
    model = models.load(folder)
    clf = fitted(model)
    tensor = weakref.ref(next(model[0].auto_model.parameters()))
    del model
    clf = pickle.loads(pickle.dumps(clf))
    clear_cache()
    gc.collect()
    assert tensor() is None
    assert len(clf.predict(models.TEXTS)) == len(LABELS)


def test_load_that_fails_leaves_no_trace():
    def fail():
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        _registry.get("key", fail)
    backbone = load(TinyTextEncoder(seed=9))
    assert _registry.get("key", lambda: backbone) is backbone


# A model of the user's own ------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, "lora", "bottleneck", "full"])
def test_own_model_gives_the_same_bits_after_fits(model, adapter):
    before = model.encode(models.TEXTS)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for _ in range(2):
        fitted(model, adapter).predict(models.TEXTS)
    np.testing.assert_array_equal(model.encode(models.TEXTS), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(flags)


def test_own_model_shares_its_memory(model):
    own = addresses(model)
    for adapter in (None, "lora", "bottleneck"):
        assert frozen_addresses(fitted(model, adapter)) == own
    full = fitted(model, "full")
    assert not addresses(full._network.live.module) & own


def train_in_place(model, fused=False):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    features = models.tokenize(model, ["good film"])
    model(features)["sentence_embedding"].sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        train_in_place,
        lambda model: train_in_place(model, fused=True),  # counts no version up
        lambda model: [p.data.mul_(2) for p in model.parameters()],  # neither does this
        lambda model: model.load_state_dict(
            {name: -tensor for name, tensor in model.state_dict().items()}
        ),
    ],
    ids=["trained", "trained by a fused optimizer", "data", "other weights loaded"],
)
def test_own_model_changed_later_is_noticed(model, change):
    clf = fitted(model)
    clf.predict(models.TEXTS)
    change(model)
    with pytest.raises(RuntimeError, match="changed in place after fit"):
        clf.predict(models.TEXTS)
    again = clone(clf).fit(models.TEXTS, LABELS)
    np.testing.assert_allclose(
        fitted(model, None).transform(models.TEXTS),
        model.encode(models.TEXTS),
        atol=1e-4,  # of features of size 4
    )
    assert again._network.fingerprint != clf._network.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to("meta"),
        lambda model: model.train(),
        lambda model: model.requires_grad_(False),
        lambda model: setattr(model[0].tokenizer, "model_max_length", 4),
    ],
    ids=["half", "double", "meta", "train", "frozen", "tokenizer"],
)
def test_own_model_moved_later_does_not_break_ours(model, change):
    clf = fitted(model)
    expected = clf.predict_proba(models.TEXTS)
    change(model)
    np.testing.assert_array_equal(clf.predict_proba(models.TEXTS), expected)


def test_own_model_in_training_mode_stays_so_and_is_used_in_evaluation(model):
    expected = model.encode(models.TEXTS)
    model.train()
    clf = fitted(model, None)
    np.testing.assert_allclose(clf.transform(models.TEXTS), expected, atol=1e-5)
    assert model.training


def test_own_model_is_kept_by_reference(model):
    clf = fitted(model)
    for other in (clone(clf), copy.deepcopy(clf)):
        assert other.encoder is model
    spec = TextEncoder(model)
    for other in (clone(AdapterClassifier(spec)), copy.deepcopy(fitted(spec))):
        assert other.encoder is not spec
        assert other.encoder.model is model
    copied = copy.deepcopy(clf)
    assert frozen_addresses(copied) == frozen_addresses(clf)
    np.testing.assert_array_equal(
        copied.predict_proba(models.TEXTS), clf.predict_proba(models.TEXTS)
    )


def test_own_module_of_rows_is_shared_and_watched():
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh())
    X = np.random.RandomState(0).randn(20, 3)
    clf = AdapterClassifier(ArrayEncoder(module), adapter=None).fit(X, X[:, 0] > 0)
    assert frozen_addresses(clf) == addresses(module)
    assert clone(clf).encoder.module is module
    with torch.no_grad():
        module[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place after fit"):
        clf.predict(X)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "bfloat16", "float16", "complex64", "int64", "bool"]
)
def test_tensors_of_all_types_are_watched(dtype):
    module = torch.nn.Module()
    module.register_buffer("empty", torch.zeros(0, dtype=getattr(torch, dtype)))
    module.register_buffer("kept", torch.zeros(2, 12, dtype=getattr(torch, dtype)))
    seal = Seal(module)
    assert not seal.broken
    module.kept.data.logical_not_() if dtype == "bool" else module.kept.data.add_(1)
    assert seal.broken


@pytest.mark.parametrize("shape", [(16, 16), (384, 1536), (384, 384), (7, 512)])
def test_columns_of_a_matrix_are_watched(shape):
    module = torch.nn.Module()
    module.register_buffer("weight", torch.ones(shape))
    seal = Seal(module)
    module.weight.data[:, 1:] *= -1
    assert seal.broken


@pytest.mark.parametrize("in_place", [False, True])
def test_modules_that_differ_in_no_weight_are_not_confused(in_place):
    def module(act):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 16), act, torch.nn.Linear(16, 8))

    X = 10 * np.random.RandomState(0).randn(30, 4)
    first = module(torch.nn.ReLU())
    before = AdapterClassifier(ArrayEncoder(first), adapter=None).fit(X, X[:, 0] > 0)
    before.transform(X)
    second = first if in_place else module(torch.nn.ReLU6())
    second[1] = torch.nn.ReLU6()
    clf = AdapterClassifier(ArrayEncoder(second), adapter=None).fit(X, X[:, 0] > 0)
    with torch.no_grad():
        expected = second(torch.from_numpy(X).float()).numpy()
    np.testing.assert_allclose(clf.transform(X), expected, rtol=1e-5, atol=1e-5)


# Pickles ------------------------------------------------------------------------------

N_BYTES = 4 * 27_000  # of the tiny encoder's weights, roughly


def test_own_module_whose_weights_do_not_lie_in_a_row_is_watched():
    module = torch.nn.Linear(3, 4)
    module.weight = torch.nn.Parameter(torch.randn(3, 4).T)
    assert not module.weight.is_contiguous()
    X = np.random.RandomState(0).randn(6, 3)
    clf = AdapterClassifier(ArrayEncoder(module), adapter=None).fit(X, [0, 1] * 3)
    clf.predict(X)
    module.weight.data.mul_(1.5)
    with pytest.raises(RuntimeError, match="were changed in place"):
        clf.predict(X)


def test_own_module_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        module = torch.nn.Linear(3, 4)
    clf = AdapterClassifier(ArrayEncoder(module), adapter=None)
    with pytest.raises(ValueError, match=r"inside torch\.inference_mode"):
        clf.fit(np.random.RandomState(0).randn(6, 3), [0, 1] * 3)


def test_pickle_of_a_model_loaded_from_a_folder_holds_its_name(model, recwarn):
    clf = fitted(model)
    data = pickle.dumps(clf)
    assert len(data) < N_BYTES / 2
    assert not [w for w in recwarn if "carries all its weights" in str(w.message)]
    loaded = pickle.loads(data)
    assert isinstance(loaded.encoder.model, str)
    np.testing.assert_array_equal(
        loaded.predict_proba(models.TEXTS), clf.predict_proba(models.TEXTS)
    )


def test_pickle_of_a_pooled_model_loaded_from_a_folder_holds_its_name(pooled_folder):
    clf = fitted(models.load(pooled_folder("mpnet", "cls")))
    data = pickle.dumps(clf)
    assert len(data) < N_BYTES / 2
    np.testing.assert_array_equal(
        pickle.loads(data).transform(models.TEXTS), clf.transform(models.TEXTS)
    )


def test_pickle_of_a_model_built_in_memory_carries_the_weights_and_warns(folder):
    model = models.with_pooling(folder, pooling="cls")  # no folder has this pooling
    clf = fitted(model)
    with pytest.warns(UserWarning, match=r"carries all its weights.*include_weights"):
        data = pickle.dumps(clf)
    assert len(data) > N_BYTES / 2
    loaded = pickle.loads(data)
    np.testing.assert_array_equal(
        loaded.predict_proba(models.TEXTS), clf.predict_proba(models.TEXTS)
    )


def test_pickle_of_a_model_trained_after_loading_carries_the_weights(model):
    train_in_place(model)
    clf = fitted(model)
    with pytest.warns(UserWarning, match="carries all its weights"):
        loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
        loaded.predict_proba(models.TEXTS), clf.predict_proba(models.TEXTS)
    )


@pytest.mark.parametrize(("damage", "seed"), [("gone", 6), ("cut short", 7)])
def test_pickle_of_a_model_whose_folder_no_longer_gives_it_carries_the_weights(
    tmp_path, damage, seed
):
    # Each case has weights of its own: of the same, a second pickle need not tell again.
    folder = models.save_plain(tmp_path / "model", "bert", seed=seed)
    clf = fitted(models.load(folder))
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        weights = folder / "model.safetensors"
        data = weights.read_bytes()
        weights.unlink()  # the loaded model still reads from that file
        weights.write_bytes(data[:1000])
    with pytest.warns(UserWarning, match="carries all its weights"):
        loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(
        loaded.predict_proba(models.TEXTS), clf.predict_proba(models.TEXTS)
    )


def test_pickle_of_a_name_on_the_hub_holds_the_name():
    loaded = pickle.loads(pickle.dumps(TextEncoder("nobody/some-model")))
    assert loaded.model == "nobody/some-model"


def test_pickle_carries_the_weights_of_one_model_once(folder):
    model = models.with_pooling(folder, pooling="cls")
    clf = fitted(TextEncoder(model, include_weights=True))
    buffer = io.BytesIO()
    pickle.dump(clf, buffer)
    module_bytes = sum(4 * t.numel() for t in model.parameters())
    assert buffer.tell() < 1.9 * module_bytes


@pytest.mark.parametrize("given_as", ["folder", "loaded model"])
def test_pickle_with_weights_works_where_the_folder_is_gone(tmp_path, given_as):
    folder = models.save_plain(tmp_path / "model", "bert", seed=5)
    given = str(folder) if given_as == "folder" else models.load(folder)
    clf = fitted(TextEncoder(given, include_weights=True))
    expected = clf.predict_proba(models.TEXTS)
    (tmp_path / "clf.pickle").write_bytes(pickle.dumps(clf))
    np.save(tmp_path / "texts.npy", np.array(models.TEXTS))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    code = (
        "import sys, pickle, numpy\n"
        "clf = pickle.load(open(sys.argv[1], 'rb'))\n"
        "numpy.save(sys.argv[3], clf.predict_proba(numpy.load(sys.argv[2])))"
    )
    files = [str(tmp_path / name) for name in ("clf.pickle", "texts.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-6)


def test_pickle_without_weights_where_the_folder_is_gone_says_what_is_needed(tmp_path):
    folder = models.save_plain(tmp_path / "model", "bert", seed=6)
    clf = fitted(str(folder))
    expected = clf.predict_proba(models.TEXTS)
    loaded = pickle.loads(pickle.dumps(clf))
    clear_cache()
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="model' is needed"):
        loaded.predict(models.TEXTS)
    loaded.set_params(encoder=str(moved))
    np.testing.assert_array_equal(loaded.predict_proba(models.TEXTS), expected)


def test_weights_share_what_they_are_given_and_freeze_their_own(model):
    weights = Weights(model, CPU, torch.float32)
    assert addresses(weights.module) == addresses(model)
    assert not any(p.requires_grad for p in weights.module.parameters())


# What no digest of tensors shows ------------------------------------------------------


@pytest.mark.parametrize("change", ["config", "vocabulary", "side"])
def test_folder_edited_after_fit_is_refused(plain_folder, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(plain_folder("bert"), folder)
    data = pickle.dumps(AdapterClassifier(str(folder), adapter=None).fit(*TWO))
    if change == "config":
        file = folder / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "layer_norm_eps": 1.0}))
    elif change == "side":
        shutil.rmtree(folder)
        cut_on_the_left(plain_folder("bert"), folder)
    else:
        file = folder / "tokenizer.json"
        words = json.loads(file.read_text())
        vocabulary = words["model"]["vocab"]
        vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
        file.write_text(json.dumps(words))
    clear_cache()
    with pytest.raises(ValueError, match="fingerprint"):
        pickle.loads(data).predict(TWO[0])


def test_fits_on_modules_that_follow_each_other_get_their_own_features():
    net, X = torch.nn.Linear(2, 4), np.random.RandomState(0).randn(8, 2)
    expected = net(torch.from_numpy(X).float()).detach().numpy()
    for factor in range(1, 30):
        module = Scaled(net, factor)
        clf = AdapterClassifier(ArrayEncoder(module), adapter=None)
        features = clf.fit(X, [0, 1] * 4).transform(X)
        np.testing.assert_allclose(features, factor * expected, rtol=1e-5)
        del module


def test_refit_sees_what_its_owner_changed_in_a_loaded_model():
    module, X = Scaled(torch.nn.Linear(2, 4), 1), np.random.RandomState(0).randn(8, 2)
    clf = AdapterClassifier(ArrayEncoder(module), adapter=None)
    first = clf.fit(X, [0, 1] * 4).transform(X)
    module.factor = 5
    np.testing.assert_allclose(
        clf.fit(X, [0, 1] * 4).transform(X), 5 * first, rtol=1e-5
    )


class Scaled(torch.nn.Module):
    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


@pytest.mark.parametrize("made", ["columns", "shape", "tuple"])
def test_module_that_does_not_fit_the_contract_is_refused(made):
    module = torch.nn.Linear(3 if made == "columns" else 2, 4)
    if made == "shape":
        module = torch.nn.Sequential(module, torch.nn.Flatten(0))
    elif made == "tuple":
        module = torch.nn.LSTM(2, 4)
    with pytest.raises(ValueError, match="given to ArrayEncoder"):
        AdapterClassifier(ArrayEncoder(module), adapter=None).fit(np.eye(2), [0, 1])


def test_model_fitted_or_loaded_under_autocast_is_known_again(folder):
    texts, labels = TWO
    clf = AdapterClassifier(str(folder), adapter=None).fit(texts, labels)
    clear_cache()
    with torch.autocast("cpu"):
        within = AdapterClassifier(str(folder), adapter=None).fit(texts, labels)
        loaded = pickle.loads(pickle.dumps(clf)).predict_proba(texts)
    clear_cache()
    np.testing.assert_array_equal(loaded, clf.predict_proba(texts))
    again = pickle.loads(pickle.dumps(within)).predict_proba(texts)
    np.testing.assert_array_equal(again, clf.predict_proba(texts))


class Capped(torch.nn.Module):
    """Numbers beyond `cap`, which no tensor holds, count as that."""

    def __init__(self, cap):
        super().__init__()
        self.cap = cap
        self.register_buffer("matrix", torch.eye(2))

    def forward(self, x):
        return x.clamp(-self.cap, self.cap) @ self.matrix


def test_own_modules_that_differ_in_a_plain_value_are_not_confused():
    X = np.array([[50.0, -1], [-50, 1], [3, 4], [-3, -4]])

    def features(module):
        clf = AdapterClassifier(ArrayEncoder(module), adapter=None)
        return clf.fit(X, [0, 1, 0, 1]).transform(X)

    for module in (Capped(5.0), Capped(100.0)):
        np.testing.assert_allclose(features(module), X.clip(-module.cap, module.cap))
    module.cap = 2.0
    np.testing.assert_allclose(features(module), X.clip(-2, 2))
