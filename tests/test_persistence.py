"""Pickles hold what was learned, and find the encoder again."""

import copy
import io
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._network import AdapterNetwork
from skpeft.adapters import Bottleneck, LoRA
from skpeft.encoders import ArrayEncoder, TinyTextEncoder

TEXTS = [f"{word} {thing}" for word in ("good", "bad") for thing in "abcdefgh"]
LABELS = ["+"] * 8 + ["-"] * 8
ADAPTERS = [
    None,
    "lora",
    "full",
    LoRA(2, dropout=0.1),
    Bottleneck(4, placement="parallel"),
]


def fitted(**parameters):
    return AdapterClassifier("tiny", random_state=0, **parameters).fit(TEXTS, LABELS)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_classifier_pickled_and_copied_predicts_bit_equal(adapter):
    clf = fitted(adapter=adapter)
    expected = clf.predict_proba(TEXTS)
    for other in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(other.predict_proba(TEXTS), expected)
        np.testing.assert_array_equal(other.transform(TEXTS), clf.transform(TEXTS))


def test_regressor_pickled_predicts_bit_equal():
    reg = AdapterRegressor("tiny", random_state=0).fit(TEXTS, np.arange(16.0))
    other = pickle.loads(pickle.dumps(reg))
    np.testing.assert_array_equal(other.predict(TEXTS), reg.predict(TEXTS))


def test_classifier_loaded_in_new_process_predicts_bit_equal(tmp_path):
    clf = fitted()
    joblib.dump(clf, tmp_path / "model.joblib")
    joblib.dump(TEXTS, tmp_path / "texts.joblib")
    code = (
        "import sys, joblib, numpy; clf, texts = map(joblib.load, sys.argv[1:3]);"
        "numpy.save(sys.argv[3], clf.predict_proba(texts))"
    )
    files = [str(tmp_path / n) for n in ("model.joblib", "texts.joblib", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    np.testing.assert_array_equal(np.load(files[2]), clf.predict_proba(TEXTS))


def test_classifier_refitted_in_new_process_gives_the_same_bits(tmp_path):
    code = (
        "import sys, numpy, torch; torch.set_num_threads(int(sys.argv[2]));"
        "from tests.test_persistence import fitted, TEXTS;"
        "numpy.save(sys.argv[1], fitted(adapter='bottleneck').predict_proba(TEXTS))"
    )
    import torch

    out = str(tmp_path / "out.npy")
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, out, threads], check=True)
    first, second = (fitted(adapter="bottleneck") for _ in range(2))
    np.testing.assert_array_equal(
        first.predict_proba(TEXTS), second.predict_proba(TEXTS)
    )
    np.testing.assert_array_equal(np.load(out), first.predict_proba(TEXTS))


def test_pickle_size_is_near_the_trained_bytes():
    clf = AdapterClassifier(TinyTextEncoder(hidden_size=256), rank=16, random_state=0)
    clf.fit(TEXTS, LABELS)
    size = len(pickle.dumps(clf))
    trained = 4 * clf.n_trainable_params_
    assert trained < size < 1.1 * trained + 64 * 1024
    assert size < clf.n_frozen_params_


def test_pickle_truncated_is_an_error(tmp_path):
    data = pickle.dumps(fitted())
    for end in (len(data) // 4, len(data) // 2, len(data) - 1):
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            pickle.load(io.BytesIO(data[:end]))


def test_loaded_model_with_other_encoder_is_refused():
    clf = pickle.loads(pickle.dumps(fitted()))
    clf._network.encoder.set_params(seed=1)
    with pytest.raises(ValueError, match=r"fitted on an encoder with fingerprint"):
        clf.predict(TEXTS)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_loaded_model_with_wrong_tensors_is_refused(change):
    clf = pickle.loads(pickle.dumps(fitted()))
    stored = clf._network._stored
    name = next(iter(stored))
    if change == "missing":
        del stored[name]
    elif change == "extra":
        stored["other"] = stored[name]
    else:
        stored[name] = stored[name][:-1]
    with pytest.raises(ValueError, match="stored tensor"):
        clf.predict(TEXTS)


def test_clone_of_fitted_is_unfitted_and_equal_in_parameters():
    clf = fitted(adapter=LoRA(2))
    copied = clone(clf)
    assert not hasattr(copied, "head_")
    assert copied.get_params()["adapter__rank"] == 2
    assert copied.adapter is not clf.adapter


def test_callback_survives_clone_and_deepcopy_by_reference():
    calls = []
    clf = AdapterClassifier("tiny", callback=calls.append, max_epochs=2)
    for other in (clone(clf), copy.deepcopy(clf)):
        assert other.callback == clf.callback
        other.fit(TEXTS, LABELS)
    assert [record["epoch"] for record in calls] == [1, 2, 1, 2]


def test_many_fitted_models_share_the_frozen_tensors():
    models = [fitted(adapter=a) for a in (None, "lora", "bottleneck")]
    addresses = [
        {
            t.data_ptr()
            for t in m._network.live.module.parameters()
            if not t.requires_grad
        }
        for m in models
    ]
    assert addresses[0] == addresses[1] == addresses[2]
    own = fitted(adapter="full")._network.live.module.parameters()
    assert not {t.data_ptr() for t in own} & addresses[0]


def test_array_encoder_of_given_module_pickles_with_it():
    import torch

    torch_module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh())
    X = np.random.RandomState(0).randn(20, 3)
    clf = AdapterClassifier(ArrayEncoder(torch_module), adapter=None).fit(
        X, X[:, 0] > 0
    )
    other = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(other.predict_proba(X), clf.predict_proba(X))


def test_build_that_is_interrupted_loses_no_trained_tensor(monkeypatch):
    clf = AdapterClassifier("tiny", max_epochs=2, shrinkage=0.0, random_state=0)
    texts = ["good film", "bad film", "good tea", "bad tea"]
    clf.fit(texts, [1, 0, 1, 0])
    loaded, whole = pickle.loads(pickle.dumps(clf)), AdapterNetwork._build

    def interrupted(self):
        whole(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapterNetwork, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaded.predict(texts)
    monkeypatch.undo()
    for again in (pickle.loads(pickle.dumps(loaded)), loaded):
        np.testing.assert_array_equal(again.transform(texts), clf.transform(texts))
    assert np.abs(clf.transform(texts) - clf.transform_frozen(texts)).max() > 1e-3
