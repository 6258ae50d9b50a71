"""The same on a CUDA GPU, and what only a GPU can show: ``pytest --cuda tests/test_cuda.py``.

On a CPU the whole module is one skip.
"""

import copy
import gc
import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

import skpeft
from skpeft import (
    AdapterBank,
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    _replays,
)
from skpeft._training import Linear, Rows, mean_objective, update
from skpeft.adapters import LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.encoders._families import STEADY
from skpeft.encoders.base import Seal
from skpeft.objectives import OBJECTIVES
from tests import models
from tests.adapters.test_all_adapters import METHODS

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU is seen; give --cuda on a machine that has one", True)

X = [f"{text} {word}" for text in models.TEXTS for word in ("good", "bad", "green")]
Y = np.arange(len(X)) % 3
NUMBERS = np.random.RandomState(0).randn(len(X), 3)
# Largest difference from a CPU in float32, relative to the largest feature.
ROUNDING = {"float32": 1e-3, "float64": 1e-9, "auto": 0.1}


def fitted(encoder, device="cuda", estimator=AdapterClassifier, **parameters):
    options = {"max_epochs": 2, "shrinkage": 0.0, "random_state": 0, **parameters}
    return estimator(encoder, device=device, **options).fit(X, Y)


def gap(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(params=["bert", "mpnet", "deberta-v2", "tiny", "array"])
def case(request, plain_folder):
    """Encoder and samples."""
    if request.param == "array":
        return ArrayEncoder(), NUMBERS
    if request.param == "tiny":
        return "tiny", X
    return str(plain_folder(request.param)), X


@pytest.mark.parametrize("precision", ROUNDING)
def test_fit_agrees_with_that_on_a_cpu(case, precision):
    encoder, samples = case

    def features(device):
        clf = AdapterClassifier(
            encoder,
            device=device,
            precision="float32"
            if device == "cpu" and precision == "auto"
            else precision,
            max_epochs=2,
            shrinkage=0.0,
            random_state=0,
        )
        return clf.fit(samples, Y).transform(samples)

    frozen = AdapterClassifier(encoder, adapter=None, device="cpu").fit(samples, Y)
    expected = features("cpu")
    assert gap(features("cuda"), expected) <= ROUNDING[precision]
    assert gap(frozen.transform(samples), expected) > 5e-3


def test_auto_is_the_gpu_with_products_in_bfloat16():
    clf = fitted("tiny", device="auto")
    live = clf._network.live
    assert live.device.type == "cuda"
    assert live.autocast == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in clf._network.live.trainable().values())
    assert clf.transform(X).dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_every_method_trains_and_leaves_frozen_bits(plain_folder, method, precision):
    encoder = str(plain_folder("bert"))
    frozen = fitted(encoder, adapter=None, precision=precision)
    module = frozen._network.live.backbone.module
    before = {name: t.clone() for name, t in module.state_dict().items()}
    clf = fitted(encoder, adapter=METHODS[method], precision=precision)
    assert gap(clf.transform(X), frozen.transform(X)) > 1e-3
    shared = clf._network.live.backbone.module.state_dict()
    assert all(
        t.data_ptr() == shared[n].data_ptr() for n, t in module.state_dict().items()
    )
    assert all(torch.equal(before[n], t) for n, t in shared.items())


@pytest.mark.parametrize("layers", [None, 1], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_step_does_not_make_the_processor_wait(name, layers, precision):
    objective = OBJECTIVES[name]()
    regresses = objective.task == "regression"
    several = objective.task.startswith("multi")
    kind = AdapterRegressor if regresses else AdapterClassifier
    y = np.eye(3, dtype=int)[Y] if several else Y.astype(float) if regresses else Y
    model = kind(
        "tiny", layers=layers, device="cuda", precision=precision, max_epochs=1
    )
    network = model.fit(X, y)._network.live
    items = network.prepare(X)
    targets = y.astype(float) if several or regresses else y
    rows = Rows(items, targets, np.ones(len(X)), frozen=network.frozen_features(items))
    linear = (
        Linear(network, rows, objective.task) if objective.needs_predictions else None
    )
    parameters = [
        *network.trainable().values(),
        *(linear.parameters() if linear else ()),
    ]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    generator = torch.Generator(device="cuda").manual_seed(0)
    with network.own_context(), network.dropout(generator):
        for mode in ("default", "error", "error"):  # the first fills the cache
            torch.cuda.set_sync_debug_mode(mode)
            try:
                optimizer.zero_grad()
                features = network.forward(items)
                mean_objective(features, linear, rows, objective, 1.0).backward()
                update(optimizer, 1e-3)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("layers", [None, 1], ids=str)
def test_same_seed_gives_the_same_model(plain_folder, layers):
    folder = str(plain_folder("bert"))
    first, again = (fitted(folder, layers=layers).transform(X) for _ in range(2))
    assert gap(again, first) <= 1e-2


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_cache_alters_nothing_but_rounding(plain_folder, precision):
    folder = str(plain_folder("bert"))
    with skpeft.config_context(cache_bytes=0):
        without = fitted(folder, layers=1, precision=precision).transform(X)
    skpeft.clear_cache()
    kept = fitted(folder, layers=1, precision=precision)
    assert skpeft.cache_info().hits > 0
    assert gap(kept.transform(X), without) <= ROUNDING[precision]


@pytest.mark.parametrize("adapter", ["lora", LoRA(use_dora=True), "hira"], ids=str)
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_merged_weights_give_the_features_of_training(adapter, precision):
    clf = fitted("tiny", adapter=adapter, precision=precision, layers=None)
    network = clf._network.live
    with network.own_context(), network.dropout(None):
        expected = network.forward(network.prepare(X)).detach().cpu().numpy()
    assert gap(clf.transform(X), expected) <= ROUNDING[precision] / 2


@pytest.mark.parametrize("include_weights", [False, True])
def test_file_written_with_a_gpu_is_read_without(
    plain_folder, tmp_path, include_weights
):
    encoder = TextEncoder(str(plain_folder("bert")), include_weights=include_weights)
    clf = fitted(encoder, device="auto", precision="float32")
    joblib.dump(clf, tmp_path / "model.joblib")
    np.save(tmp_path / "texts.npy", np.array(X))
    code = (
        "import joblib, numpy as np, sys, torch; assert not torch.cuda.is_available(); "
        "clf = joblib.load(sys.argv[1] + '/model.joblib'); "
        "X = np.load(sys.argv[1] + '/texts.npy'); "
        "np.save(sys.argv[1] + '/found.npy', clf.transform(list(X)))"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=hidden)
    found = np.load(tmp_path / "found.npy")
    assert gap(found, clf.transform(X)) <= ROUNDING["float32"]


def test_pickle_and_copy_on_the_gpu_give_the_same_bits(tmp_path):
    clf = fitted("tiny")
    joblib.dump(clf, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.transform(X), clf.transform(X))


def test_searches_find_the_candidates_of_a_cpu(plain_folder):
    folder = str(plain_folder("bert"))
    common = {"max_epochs": 2, "shrinkage": 0.0, "random_state": 0}
    scores = {}
    for device in ("cpu", "cuda"):
        own = {"device": device, "precision": "float32", **common}
        grid = GridSearchCV(AdapterClassifier(folder, **own), {"rank": [2, 8]}, cv=2)
        chosen = AdapterClassifierCV(folder, ranks=[2, 8], cv=2, eliminate=False, **own)
        for name, search in (("grid", grid), ("cv", chosen)):
            found = search.fit(X, Y).cv_results_["mean_test_score"]
            scores[device, name] = found
    for name in ("grid", "cv"):
        # A row or two at the border may fall otherwise.
        np.testing.assert_allclose(
            scores["cuda", name], scores["cpu", name], atol=2.5 / len(X)
        )


@pytest.mark.parametrize("second", ["lora", "bottleneck"])
def test_bank_gives_the_features_of_each_model(plain_folder, second):
    folder = str(plain_folder("bert"))
    own = {
        "one": fitted(folder, rank=2, precision="float32"),
        "two": fitted(folder, adapter=second, layers=1, precision="float32"),
    }
    found = AdapterBank(own).transform(X)
    for name, clf in own.items():
        assert gap(found[name], clf.transform(X)) <= 1e-4


def test_exported_model_computes_on_the_gpu(pooled_folder):
    clf = fitted(str(pooled_folder()), precision="float32")
    model = clf.to_sentence_transformer()
    assert model.device.type == "cuda"
    found = model.encode(X, show_progress_bar=False)
    assert gap(found, clf.transform(X)) <= 1e-4


def test_owner_who_trains_a_shared_model_is_noticed(pooled_folder):
    model = models.load(pooled_folder()).to("cuda")
    clf = fitted(model, precision="float32")
    clf.predict(X)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.01)
    with pytest.raises(RuntimeError, match="changed"):
        clf.predict(X)


def test_long_texts_train_with_little_memory(plain_folder, monkeypatch):
    encoder = TextEncoder(str(plain_folder("bert")), long_text="chunk")
    texts = [" ".join([text] * 20) for text in X]

    def features():
        own = {"max_epochs": 2, "shrinkage": 0.0, "random_state": 0, "layers": None}
        clf = AdapterClassifier(encoder, device="cuda", precision="float32", **own)
        return clf.fit(texts, Y).transform(texts)

    plain = features()
    monkeypatch.setattr("skpeft._live.TOKENS_KEPT", 64)
    assert gap(features(), plain) <= ROUNDING["float32"]


def test_memory_of_the_gpu_goes_with_the_models():
    fitted("tiny")
    skpeft.clear_cache()
    gc.collect()
    before = torch.cuda.memory_allocated()
    several = [fitted("tiny", random_state=seed) for seed in range(5)]
    for clf in several:
        clf.predict(X)
    assert torch.cuda.memory_allocated() > before
    del several, clf
    skpeft.clear_cache()
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_too_little_memory_says_what_takes_less(plain_folder):
    folder = str(plain_folder("bert"))
    fitted(folder)
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        1.05 * torch.cuda.memory_reserved() / free
    )
    try:
        clf = AdapterClassifier(folder, layers=None, batch_size=10_000, max_epochs=1)
        with pytest.raises(MemoryError, match="batch_size"):
            clf.fit(X * 200, np.tile(Y, 200))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not hasattr(clf, "head_")


def test_threads_predict_on_one_gpu(plain_folder):
    clf = fitted(str(plain_folder("bert")), precision="float32")
    expected, found = clf.transform(X), {}

    def ask(i):
        found[i] = clf.transform(X)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(gap(features, expected) <= 1e-4 for features in found.values())


@pytest.fixture
def recordings(monkeypatch):
    """Of each shape that came again in this test whether its passes are recorded now."""
    found, record = [], _replays.Replays._record

    def noted(self, shape, *what):
        record(self, shape, *what)
        found.append(shape in self._recordings)

    monkeypatch.setattr(_replays.Replays, "_record", noted)
    return found


def stepped(encoder, samples, **parameters):
    """Features of a fit of enough small steps for shapes to come again."""
    own = {"layers": None, "max_epochs": 10, "batch_size": 12, "shrinkage": 0.0}
    own |= {"device": "cuda", "random_state": 0, "objective": "cross_entropy"}
    clf = AdapterClassifier(encoder, **own | parameters)
    return clf.fit(samples, Y).transform(samples)


@pytest.mark.parametrize("layers", [None, 1], ids=str)
@pytest.mark.parametrize("precision", ROUNDING)
def test_replayed_steps_train_the_same_model(
    case, precision, layers, recordings, monkeypatch
):
    encoder, samples = case
    own = {"precision": precision, "layers": layers}
    replayed = stepped(encoder, samples, **own)
    known = encoder == "tiny" or ("bert-" in str(encoder) and "deberta" not in encoder)
    assert bool(recordings) == known
    assert all(recordings)
    monkeypatch.setattr("skpeft._live._MOST_TRAINED", -1)
    n_recordings = len(recordings)
    assert gap(replayed, stepped(encoder, samples, **own)) <= ROUNDING[precision]
    assert len(recordings) == n_recordings


@pytest.mark.parametrize("family", sorted(STEADY))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_steps_of_families_that_are_known_are_replayed(
    plain_folder, family, pooling, recordings, monkeypatch
):
    encoder = TextEncoder(str(plain_folder(family)), pooling=pooling)
    replayed = stepped(encoder, X, precision="float32")
    assert recordings
    assert all(recordings)
    monkeypatch.setattr("skpeft._live._MOST_TRAINED", -1)
    plain = stepped(encoder, X, precision="float32")
    assert gap(replayed, plain) <= ROUNDING["float32"]


@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_of_every_method_train_the_same(
    plain_folder, method, monkeypatch
):
    encoder = str(plain_folder("bert"))
    own = {"adapter": METHODS[method], "precision": "float64"}
    replayed = stepped(encoder, X, **own)
    monkeypatch.setattr("skpeft._live._MOST_TRAINED", -1)
    assert gap(replayed, stepped(encoder, X, **own)) <= ROUNDING["float64"]


class Inner(torch.nn.Module):
    """A module, and what its Python code does besides at each pass."""

    def __init__(self, inner, besides):
        super().__init__()
        self.inner, self.besides = inner, besides

    def forward(self, batch):
        return self.besides(self.inner(batch))


def asks(features):
    """Ask the GPU for a number, which no recording can."""
    return features if float(features.detach().sum()) < 1e9 else -features


PASSES = itertools.count()


def counts(features):
    """Give something else at each pass, of which a recording knows one."""
    return features * (1.0 + 0.01 * (next(PASSES) % 7))


class Besides(TinyTextEncoder):
    """Tiny encoder with other Python code around its module."""

    def __init__(self, besides=asks):
        super().__init__()
        self.besides = besides

    def load(self, **place):
        backbone = super().load(**place)
        other = copy.copy(backbone)
        other.module = Inner(backbone.module, self.besides).eval()
        other.root = "inner"
        other._seal = Seal(other.module)
        return other


@pytest.mark.parametrize("besides", [asks, counts])
def test_passes_that_cannot_be_replayed_are_not(besides, recordings, monkeypatch):
    monkeypatch.setattr("skpeft._live.KNOWN_CODE", {"skpeft", "torch", "tests"})
    stream, reserved = torch.cuda.current_stream(), []
    for _ in range(3):
        features = stepped(Besides(besides), X, precision="float32")
        skpeft.clear_cache()
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert recordings == [False] * 3
    assert torch.cuda.current_stream() == stream
    assert torch.rand(2, device="cuda").unique().numel() == 2
    assert reserved[2] <= reserved[1] + 2**22
    plain = stepped("tiny", X, precision="float32")
    assert recordings[-1]
    if besides is asks:
        assert gap(features, plain) <= ROUNDING["float32"]


def test_fits_in_threads_record_one_after_the_other(plain_folder, recordings):
    folder = str(plain_folder("bert"))
    expected = stepped(folder, X, precision="float32")
    n_recordings = len(recordings)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda _: stepped(folder, X, precision="float32"), range(4))
        )
    assert len(recordings) == 5 * n_recordings
    assert all(recordings)
    assert all(gap(features, expected) <= ROUNDING["float32"] for features in found)


def test_a_fit_beside_predictions_in_other_threads_is_the_same(
    plain_folder, recordings
):
    folder = str(plain_folder("bert"))
    expected = stepped(folder, X, precision="float32")
    other = fitted(folder, random_state=1, precision="float32")
    known, failed, over = other.transform(X), [], threading.Event()

    def predict():
        while not over.is_set():
            try:
                failed.extend([gap(other.transform(X), known)] if not failed else [])
                failed[:] = [g for g in failed if g > 1e-4]
            except Exception as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        found = stepped(folder, X, precision="float32")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert all(recordings)
    assert gap(found, expected) <= ROUNDING["float32"]


@pytest.mark.parametrize("former", [True, False])
def test_setting_of_attention_is_as_it_was(former, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: former)
    set_to = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", set_to.append)
    fitted("tiny").predict(X)
    assert set_to[-1] is former
    assert False in set_to
