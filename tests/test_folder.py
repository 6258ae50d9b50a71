"""Folders hold what was learned, run no code, and are refused when tampered with."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skpeft import AdapterClassifier, AdapterRegressor, _files, _folder, _recipe
from skpeft.adapters import IA3, Adapter, BitFit, Bottleneck, HiRA, LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.objectives import Contrastive, CrossEntropy

GOLDEN = Path(__file__).parent / "golden"
TEXTS = [f"{word} {thing}" for word in ("good", "bad", "odd") for thing in "abcdef"]
LABELS = np.repeat(["+", "-", "?"], 6)
ADAPTERS = [
    None,
    "lora",
    LoRA(2, use_dora=True, dropout=0.1, roles=["query", "ffn_in", "ffn_out"]),
    HiRA(3, roles=["value", "ffn_out"]),
    IA3(),
    Bottleneck(4, placement="parallel", scaling="learned"),
    "bitfit",
    "layer_norm",
    "prefix",
    "ladder",
    [LoRA(2), BitFit()],
    "full",
]


class Majority(ClassifierMixin, BaseEstimator):
    """A head that no library knows."""

    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.best_ = int(np.argmax(counts))
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[self.best_])


class OwnAdapter(Adapter):
    """A method of the user's own."""


def fitted(kind=AdapterClassifier, y=LABELS, X=TEXTS, **parameters):
    options = {"encoder": "tiny", "random_state": 0, "max_epochs": 2, **parameters}
    return kind(**options).fit(X, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a classifier; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    fitted(adapter=IA3(), shrinkage=0.0).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """Copy of that folder, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def same(first, second, X=TEXTS):
    for method in ("predict", "predict_proba", "transform"):
        if hasattr(first, method):
            expected = getattr(first, method)(X)
            found = getattr(second, method)(X)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def saved_and_loaded(model, folder, **options):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, **options)


# What comes back


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_classifier_saved_and_loaded_is_equal_to_the_bit(adapter, tmp_path):
    clf = fitted(adapter=adapter)
    other = saved_and_loaded(clf, tmp_path / "model")
    assert repr(other) == repr(clf)
    same(clf, other)
    same(clf, pickle.loads(pickle.dumps(other)))
    again = saved_and_loaded(
        AdapterClassifier.from_pretrained(tmp_path / "model"), tmp_path / "again"
    )
    same(clf, again)


@pytest.mark.parametrize("y", [np.arange(18.0), np.arange(18) % 2], ids=str)
def test_regressor_saved_and_loaded_is_equal_to_the_bit(y, tmp_path):
    reg = fitted(AdapterRegressor, y, adapter="bottleneck")
    same(reg, saved_and_loaded(reg, tmp_path / "model"))


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"],
        ["", "ünï", "\ud800"],
        [False, True],
        [-1, 3, 7],
        [-2.0, 3.0],
        np.array([0.0, 1.0], dtype=np.float32),
        np.array(["b", "a"], dtype=object),
        np.array([1, 2], dtype=np.int8),
    ],
    ids=repr,
)
def test_labels_of_any_type_come_back(labels, tmp_path):
    clf = fitted(y=np.resize(labels, len(TEXTS)))
    other = saved_and_loaded(clf, tmp_path / "model")
    assert other.classes_.dtype == clf.classes_.dtype
    np.testing.assert_array_equal(other.classes_, clf.classes_)
    assert [type(label) for label in other.classes_] == [
        type(label) for label in clf.classes_
    ]
    same(clf, other)


def test_pairs_frames_and_float64_come_back(tmp_path):
    frame = pd.DataFrame({"first": TEXTS, "second": TEXTS[::-1]})
    clf = fitted(X=frame, precision="float64")
    other = saved_and_loaded(clf, tmp_path / "model")
    np.testing.assert_array_equal(other.feature_names_in_, ["first", "second"])
    same(clf, other, frame)
    with pytest.raises(ValueError, match="feature names"):
        other.predict(frame.rename(columns={"first": "other"}))


def test_rows_of_numbers_come_back(tmp_path):
    X = np.random.RandomState(0).randn(18, 3)
    clf = fitted(X=X, encoder=ArrayEncoder(seed=3), adapter="lora")
    same(clf, saved_and_loaded(clf, tmp_path / "model"), X)


def test_text_encoder_comes_back_by_name(pooled_folder, tmp_path):
    encoder = TextEncoder(str(pooled_folder()), max_length=16, prompt="query : ")
    clf = fitted(encoder=encoder)
    other = saved_and_loaded(clf, tmp_path / "model")
    assert other.encoder.get_params() == encoder.get_params()
    same(clf, other)


def test_loaded_model_as_encoder_comes_back_by_its_folder(pooled_folder, tmp_path):
    from tests import models

    model = models.load(pooled_folder())
    clf = fitted(encoder=model)
    other = saved_and_loaded(clf, tmp_path / "model")
    assert other.encoder.model == str(Path(pooled_folder()).resolve())
    same(clf, other)


def test_parameters_and_attributes_come_back(tmp_path):
    parameters = {
        "layers": [0, 1],
        "objective": Contrastive(0.3),
        "class_weight": {"+": 1.0, "-": 2, "?": 0.5},
        "label_texts": {"+": ["fine", "nice"], "-": "poor"},
        "batch_size": np.int64(8),
        "learning_rate": np.float64(0.01),
        "early_stopping": True,
        "validation_fraction": 0.2,
        "verbose": 0,
    }
    clf = fitted(**parameters)
    other = saved_and_loaded(clf, tmp_path / "model")
    for name in parameters.keys() - {"objective"}:
        assert getattr(other, name) == parameters[name]
    assert repr(other.objective) == repr(parameters["objective"])
    for name in _recipe.FITTED.keys() - {"feature_names_in_"}:
        assert getattr(other, name) == getattr(clf, name), name
    same(clf.fit(TEXTS, LABELS), other.fit(TEXTS, LABELS))


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_every_fitted_attribute_is_kept(kind):
    y = LABELS if kind is AdapterClassifier else np.arange(18.0)
    model = fitted(kind, y, X=pd.DataFrame({"text": TEXTS}))
    learned = vars(model).keys() - model.get_params(deep=False).keys()
    known = {*_recipe.FITTED, "classes_", "head_", "_network"}
    if kind is AdapterRegressor:
        known -= {"classes_", "temperature_"}
    assert learned == known


def test_warm_start_goes_on_after_loading(tmp_path):
    clf = fitted(warm_start=True, shrinkage=0.0)
    other = saved_and_loaded(clf, tmp_path / "model")
    same(clf.fit(TEXTS, LABELS), other.fit(TEXTS, LABELS))
    assert other.n_epochs_ == 4


def test_folder_loads_in_a_new_process_without_unpickling(whole, tmp_path):
    clf = AdapterClassifier.from_pretrained(whole)
    code = (
        "import sys, numpy, sklearn.linear_model, torch\n"
        "from skpeft import AdapterClassifier\n"
        "def refuse(event, _):\n"
        "    assert event not in ('pickle.find_class', 'os.system', 'subprocess.Popen')\n"
        "sys.addaudithook(refuse)\n"
        "clf = AdapterClassifier.from_pretrained(sys.argv[1])\n"
        "numpy.save(sys.argv[2], clf.predict_proba(sys.argv[3:]))"
    )
    out = tmp_path / "out.npy"
    command = [sys.executable, "-c", code, str(whole), str(out), *TEXTS]
    subprocess.run(command, check=True)
    np.testing.assert_array_equal(np.load(out), clf.predict_proba(TEXTS))


def test_loading_does_not_look_for_the_encoder(whole, monkeypatch):
    def fail(*_, **__):
        raise OSError("not here")

    monkeypatch.setattr(TinyTextEncoder, "load", fail)
    clf = AdapterClassifier.from_pretrained(whole)
    with pytest.raises(OSError, match="not here"):
        clf.predict(TEXTS)


def test_folder_that_moved_encoder_is_set_to(pooled_folder, tmp_path):
    first = Path(shutil.copytree(pooled_folder(), tmp_path / "first"))
    clf = fitted(encoder=str(first))
    expected = clf.predict_proba(TEXTS)
    clf.save_pretrained(tmp_path / "model")
    first.rename(tmp_path / "second")
    other = AdapterClassifier.from_pretrained(tmp_path / "model")
    other.set_params(encoder=str(tmp_path / "second"))
    np.testing.assert_array_equal(other.predict_proba(TEXTS), expected)


def test_size_of_folder_is_near_the_trained_bytes(tmp_path):
    clf = fitted(encoder=TinyTextEncoder(hidden_size=256), adapter="lora", rank=16)
    clf.save_pretrained(tmp_path / "model")
    size = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    trained = 4 * clf.n_trainable_params_
    assert trained < size < 1.1 * trained + 64 * 1024


# Heads


def test_head_of_scikit_learn_comes_back(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    head = make_pipeline(StandardScaler(), SVC())
    clf = fitted(head=head)
    other = saved_and_loaded(clf, tmp_path / "model")
    assert repr(other) == repr(clf)
    same(clf, other)
    reg = fitted(AdapterRegressor, np.arange(18.0), head=KNeighborsRegressor(3))
    same(reg, saved_and_loaded(reg, tmp_path / "model"))


def test_head_with_a_list_of_classes_comes_back(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    several = np.arange(18)[:, None] // [1, 2, 4] % 2
    clf = fitted(y=several, head=KNeighborsClassifier(3))
    assert isinstance(clf.head_.classes_, list)
    same(clf, saved_and_loaded(clf, tmp_path / "model"))


@pytest.mark.parametrize("head", [SVC(), LogisticRegression(solver="saga")], ids=str)
def test_head_that_the_parameter_no_longer_tells_comes_back(tmp_path, head):
    pytest.importorskip("skops", reason="skops is not installed")
    clf = fitted(head=head).set_params(head=None)
    other = saved_and_loaded(clf, tmp_path / "model")
    assert other.head is None
    assert repr(other.head_) == repr(clf.head_)
    same(clf, other)


def test_head_of_unknown_type_is_shown_and_needs_trust(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    clf = fitted(head=Majority())
    clf.save_pretrained(tmp_path / "model")
    name = f"{__name__}.Majority"
    with pytest.raises(
        ValueError, match=rf"not known to be safe.*trusted=\['{name}'\]"
    ):
        AdapterClassifier.from_pretrained(tmp_path / "model")
    with pytest.raises(TypeError, match="list of str"):
        AdapterClassifier.from_pretrained(tmp_path / "model", trusted=name)
    same(clf, AdapterClassifier.from_pretrained(tmp_path / "model", trusted=[name]))


def test_head_of_own_without_skops_names_the_extra(tmp_path, monkeypatch):
    clf = fitted(head=LogisticRegression())
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(ImportError, match=r"pip install skops"):
        clf.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_head_file_that_is_damaged_is_refused(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    fitted(head=LogisticRegression()).save_pretrained(tmp_path / "model")
    head = tmp_path / "model" / _folder.HEAD
    head.write_bytes(head.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"head.skops was changed or damaged"):
        AdapterClassifier.from_pretrained(tmp_path / "model")
    reseal(tmp_path / "model")
    with pytest.raises(ValueError, match=r"head.skops cannot be read"):
        AdapterClassifier.from_pretrained(tmp_path / "model")


# What has no form


def test_head_file_that_holds_no_head_is_refused(tmp_path):
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    clf = fitted(adapter=None, head=LogisticRegression())
    clf.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / _folder.HEAD
    damaged = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(damaged, "w") as new:
        for part in old.infolist():
            data = old.read(part)
            new.writestr(part, data[:-8] if part.filename.endswith("npy") else data)
    for data, message in (
        (damaged.getvalue(), "cannot be read"),
        (skops.dumps({"head": 1, "head_": 2}), "holds no head"),
        (skops.dumps(clf.head_), "holds no head"),
    ):
        file.write_bytes(data)
        reseal(tmp_path / "model")
        with pytest.raises(ValueError, match=rf"head\.skops {message}"):
            AdapterClassifier.from_pretrained(tmp_path / "model")


def test_labels_without_a_form_are_refused(tmp_path):
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="datetime64[D]")
    clf = fitted(y=np.repeat(days, 6))
    with pytest.raises(ValueError, match=r"datetime64\[D\] have no form in JSON"):
        clf.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_version_of_a_library_that_says_none_is_left_out(tmp_path, monkeypatch):
    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)  # as in a frozen application
        return plain(name)

    plain = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    clf = fitted()
    same(clf, saved_and_loaded(clf, tmp_path / "model"))
    recipe = json.loads((tmp_path / "model" / _folder.RECIPE).read_text())
    assert recipe["versions"]["numpy"] == np.__version__
    assert "torch" not in recipe["versions"]


def test_callback_and_random_generator_are_left_out_with_a_word(tmp_path):
    clf = fitted(callback=print, random_state=np.random.RandomState(0))
    with pytest.warns(UserWarning, match="is left out") as caught:
        clf.save_pretrained(tmp_path / "model")
    assert {str(w.message).split("=")[0] for w in caught} == {
        "callback",
        "random_state",
    }
    assert {w.filename for w in caught} == {__file__}
    other = AdapterClassifier.from_pretrained(tmp_path / "model")
    assert other.callback is other.random_state is None
    same(clf, other)


def test_parameter_without_a_form_is_refused(tmp_path):
    import torch

    X = np.random.RandomState(0).randn(18, 3)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh())
    clf = fitted(X=X, encoder=ArrayEncoder(module), adapter=None)
    with pytest.raises(ValueError, match=r"(?s)encoder.module=.*has no form.*joblib"):
        clf.save_pretrained(tmp_path / "model")
    clf = fitted().set_params(adapter=OwnAdapter())
    with pytest.raises(ValueError, match=r"adapter=OwnAdapter\(\) has no form in JSON"):
        clf.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_loaded_model_without_a_name_is_refused(plain_folder, tmp_path):
    from tests import models

    clf = fitted(encoder=models.with_pooling(plain_folder(), pooling="max"))
    with pytest.raises(ValueError, match="no name or folder on this machine"):
        clf.save_pretrained(tmp_path / "model")


def test_saving_with_a_loaded_encoder_leaves_the_filters_of_warnings_to_other_threads(
    pooled_folder, tmp_path, monkeypatch
):
    from sentence_transformers import SentenceTransformer

    clf = fitted(encoder=SentenceTransformer(str(pooled_folder()), device="cpu"))
    before, seen, known_name = list(warnings.filters), [], TextEncoder.known_name

    def noted(encoder):
        seen.append(list(warnings.filters))
        return known_name(encoder)

    monkeypatch.setattr(TextEncoder, "known_name", noted)
    clf.save_pretrained(tmp_path / "model")
    assert seen
    assert all(filters == before for filters in seen)


def test_unfitted_estimator_is_not_saved(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        AdapterClassifier().save_pretrained(tmp_path / "model")


def test_encoder_with_code_of_its_own_needs_trust(pooled_folder, tmp_path):
    encoder = TextEncoder(str(pooled_folder()), trust_remote_code=True)
    fitted(encoder=encoder).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"run code.*trusted=\['trust_remote_code'"):
        AdapterClassifier.from_pretrained(tmp_path / "model")
    AdapterClassifier.from_pretrained(tmp_path / "model", trusted=["trust_remote_code"])


# Tampering


def reseal(folder):
    """Write all digests anew, as somebody would who knows the format."""
    recipe = json.loads((folder / _folder.RECIPE).read_text())
    for name in recipe["files"]:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            recipe["files"][name] = _files.sha256(data)
    recipe["sha256"] = _folder._digest(recipe)
    (folder / _folder.RECIPE).write_bytes(_files.json_bytes(recipe))


def edit_tensors(file, change):
    def tamper(folder):
        tensors = load_file(folder / file)
        change(tensors, next(name for name in sorted(tensors) if name != "probe"))
        save_file(tensors, folder / file)

    return tamper


def edit_recipe(change):
    def tamper(folder):
        recipe = json.loads((folder / _folder.RECIPE).read_text())
        change(recipe)
        (folder / _folder.RECIPE).write_text(json.dumps(recipe))

    return tamper


def put(*path):
    """Change of a recipe: the last of the arguments becomes the value at the others."""

    def change(recipe):
        *way, last, value = path
        for key in way:
            recipe = recipe[key]
        recipe[last] = value

    return change


def take(*path):
    def change(recipe):
        *way, last = path
        for key in way:
            recipe = recipe[key]
        del recipe[last]

    return change


def rename(tensors, name):
    tensors[name + "x"] = tensors.pop(name)


def poison(tensors, name):
    tensors[name] = np.full_like(tensors[name], np.nan)


TENSOR_CHANGES = {
    "missing": lambda tensors, name: tensors.pop(name),
    "extra": lambda tensors, name: tensors.update(other=tensors[name]),
    "renamed": rename,
    "shape": lambda tensors, name: tensors.update({name: tensors[name][:-1]}),
    "nan": poison,
    "dtype": lambda tensors, name: tensors.update(
        {name: tensors[name].astype(np.float16)}
    ),
    "integer": lambda tensors, name: tensors.update({name: np.ones(3, dtype=np.int64)}),
}
TENSOR_FILES = (_folder._peft.TENSORS, _folder.ARRAYS)


@pytest.mark.parametrize("resealed", [False, True], ids=["plain", "resealed"])
@pytest.mark.parametrize("change", TENSOR_CHANGES)
@pytest.mark.parametrize("file", TENSOR_FILES)
def test_folder_with_other_tensors_is_refused(folder, file, change, resealed):
    edit_tensors(file, TENSOR_CHANGES[change])(folder)
    if resealed:
        reseal(folder)
    with pytest.raises(ValueError, match=r"tensor|was changed or damaged") as caught:
        AdapterClassifier.from_pretrained(folder).predict(TEXTS)
    if not resealed:
        assert file in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_own_tensors_of_another_size_are_refused(change, tmp_path):
    fitted(adapter="bottleneck").save_pretrained(tmp_path / "model")
    edit_tensors(_folder._peft.TENSORS, TENSOR_CHANGES[change])(tmp_path / "model")
    reseal(tmp_path / "model")
    with pytest.raises(ValueError, match=r"n_trainable_params_.*contradicts the rest"):
        AdapterClassifier.from_pretrained(tmp_path / "model")


def test_own_tensors_of_another_type_are_refused(tmp_path):
    fitted(adapter="bottleneck").save_pretrained(tmp_path / "model")
    edit_tensors(_folder._peft.TENSORS, TENSOR_CHANGES["dtype"])(tmp_path / "model")
    reseal(tmp_path / "model")
    with pytest.raises(ValueError, match=r"type float16; float32 is expected"):
        AdapterClassifier.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("change", ["renamed"])
def test_own_names_that_were_changed_are_refused_at_first_use(change, tmp_path):
    fitted(adapter="bottleneck").save_pretrained(tmp_path / "model")
    edit_tensors(_folder._peft.TENSORS, TENSOR_CHANGES[change])(tmp_path / "model")
    reseal(tmp_path / "model")
    clf = AdapterClassifier.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="stored tensor"):
        clf.predict(TEXTS)


@pytest.mark.parametrize("resealed", [False, True], ids=["plain", "resealed"])
@pytest.mark.parametrize("file", [*TENSOR_FILES, _folder.RECIPE, _folder._peft.CONFIG])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_folder_with_truncated_file_is_refused(folder, file, part, resealed):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(part * len(data))])
    if resealed and file != _folder.RECIPE:
        reseal(folder)
        if file == _folder._peft.CONFIG:  # of use to PEFT alone
            return
    with pytest.raises(ValueError, match=r"damaged|whole safetensors file"):
        AdapterClassifier.from_pretrained(folder)


@pytest.mark.parametrize("file", [*TENSOR_FILES, _folder.RECIPE, _folder._peft.CONFIG])
def test_folder_with_missing_file_is_refused(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"holds no file '{file}'"):
        AdapterClassifier.from_pretrained(folder)


def test_folder_of_an_adapter_alone_is_refused_with_what_reads_it(folder):
    (folder / _folder.RECIPE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"adapter=LoRA\.from_pretrained\('.*'\)"
    ):
        AdapterClassifier.from_pretrained(folder)


def test_file_in_place_of_a_folder_is_refused_with_what_reads_it(tmp_path):
    (tmp_path / "model.joblib").write_bytes(b"some")
    with pytest.raises(FileNotFoundError, match=r"is a file: joblib\.load"):
        AdapterClassifier.from_pretrained(tmp_path / "model.joblib")


@pytest.mark.parametrize("file", [*TENSOR_FILES, _folder.RECIPE, _folder._peft.CONFIG])
def test_folder_with_link_that_leads_out_is_refused(folder, file, tmp_path):
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link that leads out"):
        AdapterClassifier.from_pretrained(folder)


def test_snapshot_of_the_hub_cache_with_its_links_is_read(whole, tmp_path):
    snapshot = tmp_path / "models--me--model" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(whole.iterdir()):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    same(
        AdapterClassifier.from_pretrained(whole),
        AdapterClassifier.from_pretrained(snapshot),
    )


RECIPE_CHANGES = {
    "unknown key": put("more", 1),
    "missing key": take("head"),
    "format": put("format", "1"),
    "format zero": put("format", 0),
    "unknown parameter": put("params", "learning", 1),
    "parameter of another type": put("params", "max_epochs", "many"),
    "parameter out of range": put("params", "tol", -1.0),
    "params no object": put("params", [1]),
    "class from elsewhere": put(
        "params", "adapter", {"class": "os.system", "params": {}}
    ),
    "spec with more": put("params", "adapter", {"class": "LoRA", "params": {}, "x": 1}),
    "spec of unknown parameter": put(
        "network", "adapter", "params", {"__reduce__": ["os.system"]}
    ),
    "spec with wrong value": put("network", "adapter", "params", {"roles": 5}),
    "encoder of another kind": put("network", "encoder", 5),
    "encoder an adapter": put("network", "encoder", {"class": "LoRA", "params": {}}),
    "adapter an encoder": put(
        "network", "adapter", {"class": "TinyTextEncoder", "params": {}}
    ),
    "adapter a name": put("network", "adapter", "ia3"),
    "network key": put("network", "more", 1),
    "fingerprint": put("network", "fingerprint", 5),
    "root": put("network", "root", ["x"]),
    "seed": put("network", "seed", -1),
    "layers": put("network", "layers", "all"),
    "precision": put("network", "precision", "int8"),
    "attribute missing": take("fitted", "shrinkage_"),
    "attribute more": put("fitted", "__class__", 1),
    "attribute of another type": put("fitted", "n_epochs_", "2"),
    "curve": put("fitted", "loss_curve_", [1, "x"]),
    "names": put("fitted", "feature_names_in_", [1]),
    "classes twice": put("fitted", "classes_", "values", ["+", "+", "?"]),
    "classes too few": put("fitted", "classes_", "values", ["+", "-"]),
    "classes type": put("fitted", "classes_", "dtype", "|V8"),
    "classes object": put("fitted", "classes_", "values", [{}, [], None]),
    "classes cut": put("fitted", "classes_", "values", ["++", "-", "?"]),
    "head": put("head", {"class": "eval", "params": {}, "by_column": True}),
    "head no object": put("head", [1]),
    "head of a regressor": lambda recipe: recipe["head"].update(
        {"class": "Ridge", "params": {"alpha": 1.0}}
    ),
    "head parameter": put("head", "params", {"C": "1", "max_iter": 5}),
    "head shape": lambda recipe: recipe["head"].update(
        by_column=not recipe["head"]["by_column"]
    ),
    "no head": put("head", None),
    "path in files": put("files", "../secret", "0" * 64),
    "absolute path in files": put("files", "/etc/passwd", "0" * 64),
    "file less": take("files", "adapter_config.json"),
    "files no object": put("files", ["a"]),
}


@pytest.mark.parametrize("change", RECIPE_CHANGES)
def test_recipe_that_was_edited_is_refused(folder, change):
    edit_recipe(RECIPE_CHANGES[change])(folder)
    with pytest.raises(ValueError, match=r"edited|expected"):
        AdapterClassifier.from_pretrained(folder)
    reseal(folder) if change != "files no object" else None
    with pytest.raises(
        ValueError, match=r"skpeft\.|[Ee]xpected|must be|known"
    ) as caught:
        AdapterClassifier.from_pretrained(folder)
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "list in place of an object"),
        ("", "cannot be read as JSON"),
        ('{"format": NaN}', "not finite"),
        ('{"format": 1, "format": 1}', "given twice"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"format": 1}', "expected is a format"),
        ("\x00\xff", "cannot be read as JSON"),
    ],
)
def test_recipe_that_is_no_recipe_is_refused(folder, text, message):
    (folder / _folder.RECIPE).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        AdapterClassifier.from_pretrained(folder)


def test_folder_of_a_newer_version_is_refused_by_name(folder):
    def later(recipe):
        recipe.update(format=2, skpeft="7.5", new_key=1)

    edit_recipe(later)(folder)
    with pytest.raises(
        ValueError, match=r"skpeft 7.5 in format 2.*Install skpeft>=7.5"
    ):
        AdapterClassifier.from_pretrained(folder)


def test_folder_of_another_estimator_is_refused(whole):
    with pytest.raises(ValueError, match=r"Use AdapterClassifier.from_pretrained"):
        AdapterRegressor.from_pretrained(whole)


def test_folder_with_another_encoder_is_refused_at_first_use(folder):
    edit_recipe(put("network", "encoder", "params", "seed", 1))(folder)
    reseal(folder)
    clf = AdapterClassifier.from_pretrained(folder)
    with pytest.raises(ValueError, match="fitted on an encoder with fingerprint"):
        clf.predict(TEXTS)


def test_no_folder_is_an_error_that_says_what_is_expected(tmp_path):
    for name in ("none", "none/deeper"):
        with pytest.raises(FileNotFoundError, match="snapshot_download"):
            AdapterClassifier.from_pretrained(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file 'skpeft\.json'"):
        AdapterClassifier.from_pretrained(tmp_path)


# Writing


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_saved_twice_is_the_same_and_nothing_is_left(whole, tmp_path):
    clf = AdapterClassifier.from_pretrained(whole)
    for _ in range(2):
        clf.save_pretrained(str(tmp_path / "deep" / "model"))
        assert contents(tmp_path / "deep" / "model") == contents(whole)
    assert os.listdir(tmp_path / "deep") == ["model"]


def test_empty_folder_is_filled_and_a_link_stays_one(whole, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    AdapterClassifier.from_pretrained(whole).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == contents(whole)


@pytest.mark.parametrize("name", ["notes.txt", "adapter_config.json"])
def test_folder_of_something_else_is_left_alone(whole, tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text("mine")
    clf = AdapterClassifier.from_pretrained(whole)
    with pytest.raises(ValueError, match="not of a saved model"):
        clf.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is a file"):
        clf.save_pretrained(tmp_path / "model" / name)
    assert contents(tmp_path / "model") == {name: b"mine"}


@pytest.mark.parametrize("step", range(1, 4))
def test_save_that_fails_leaves_the_former_model_whole(
    folder, tmp_path, monkeypatch, step
):
    former, calls = contents(folder), []
    plain = Path.rename if step > 1 else os.fsync

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == max(step - 1, 1):
            raise OSError("disk full")
        return plain(*arguments)

    clf = fitted()
    if step == 1:
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        clf.save_pretrained(folder)
    assert contents(folder) == former
    assert os.listdir(tmp_path) == ["model"]


def test_save_that_cannot_put_the_former_model_back_says_where_it_is(
    folder, tmp_path, monkeypatch
):
    former, calls = contents(folder), []
    plain = Path.rename

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError("disk gone")
        return plain(*arguments)

    clf = fitted()
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk gone"):
        clf.save_pretrained(folder)
    (aside,) = _files.left_aside(folder)
    assert contents(aside) == former
    with pytest.raises(FileNotFoundError, match="left the former model in"):
        AdapterClassifier.from_pretrained(folder)


def test_save_replaces_what_another_process_has_put_there_meanwhile(
    whole, folder, tmp_path, monkeypatch
):
    plain, calls = Path.rename, []

    def rename(path, target):
        calls.append(path)
        if len(calls) == 2:  # the former model is aside, ours not yet in its place
            shutil.copytree(whole, folder)
        return plain(path, target)

    clf = fitted(adapter="bitfit")
    monkeypatch.setattr(Path, "rename", rename)
    clf.save_pretrained(folder)
    assert len(calls) == 4
    same(clf, AdapterClassifier.from_pretrained(folder))
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("step", [1, 2])
def test_process_that_dies_leaves_the_former_model_whole(folder, tmp_path, step):
    former = contents(folder)
    code = (
        "import os, sys; from pathlib import Path; from skpeft import AdapterClassifier\n"
        "clf = AdapterClassifier.from_pretrained(sys.argv[1])\n"
        "plain, calls = Path.rename, []\n"
        "def die(*arguments):\n"
        "    calls.append(1)\n"
        "    os._exit(7) if len(calls) == int(sys.argv[2]) else plain(*arguments)\n"
        "Path.rename = die\n"
        "clf.save_pretrained(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(folder), str(step)]
    assert subprocess.run(command).returncode == 7
    if step == 2:  # between two renames: the former model has another name
        with pytest.raises(
            FileNotFoundError, match="left the former model in"
        ) as caught:
            AdapterClassifier.from_pretrained(folder)
        (aside,) = tmp_path.glob(".model.*.old")
        assert str(aside) in str(caught.value)
        aside.rename(folder)
    assert contents(folder) == former


# The model card


def test_card_is_read_by_the_hub_client(whole, pooled_folder, tmp_path):
    from huggingface_hub import ModelCard

    data = ModelCard.load(whole / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("skpeft", "text-classification")
    assert data.base_model is None
    assert {"skpeft", "scikit-learn", "IA3"} <= set(data.tags)
    for adapter, relation in (("full", "finetune"), (LoRA(2), "adapter")):
        clf = fitted(encoder=str(pooled_folder()), adapter=adapter)
        clf._network.encoder.set_params(model="someone/a-model: 'odd' # name")
        clf.save_pretrained(tmp_path / "model")
        card = ModelCard.load(tmp_path / "model" / "README.md")
        assert card.data.base_model == "someone/a-model: 'odd' # name"
        assert card.data.base_model_relation == relation
    assert "PeftModel" in card.text
    assert f"{clf.n_trainable_params_:,}" in card.text
    X = np.random.RandomState(0).randn(18, 3)
    fitted(AdapterRegressor, X[:, 0], X, encoder="array").save_pretrained(
        tmp_path / "model"
    )
    data = ModelCard.load(tmp_path / "model" / "README.md").data
    assert data.pipeline_tag == "tabular-regression"


# Files of earlier versions


def golden_folders():
    return sorted(path.parent for path in GOLDEN.glob("*/*/skpeft.json"))


@pytest.mark.parametrize(
    "folder", golden_folders(), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_folder_of_every_released_format_is_read(folder):
    known = json.loads((folder.parent / "expected.json").read_text())
    expected = known[folder.name]
    if folder.name == "classifier":
        model = AdapterClassifier.from_pretrained(folder)
        found = model.predict_proba(known["X"])
        assert model.classes_.tolist() == expected["classes"]
    else:
        found = AdapterRegressor.from_pretrained(folder).predict(known["X"])
    np.testing.assert_allclose(found, expected["output"], rtol=1e-5, atol=1e-5)


def test_golden_folders_are_there_and_small():
    assert {path.name for path in golden_folders()} == {"classifier", "regressor"}
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000


def test_objective_of_own_parameters_comes_back(tmp_path):
    clf = fitted(objective=CrossEntropy())
    assert isinstance(saved_and_loaded(clf, tmp_path / "model").objective, CrossEntropy)


@pytest.mark.parametrize("inside", [".", ".."])
def test_saving_over_the_working_directory_is_refused(tmp_path, monkeypatch, inside):
    (tmp_path / "model" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model" / ("below" if inside == ".." else ""))
    with pytest.raises(ValueError, match="is the working directory, or holds it"):
        fitted().save_pretrained(inside)
    assert Path.cwd().is_dir()


@pytest.mark.parametrize("name", ["tiny", "array"])
def test_name_of_an_encoder_stays_one_beside_a_folder_of_that_name(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    X = TEXTS if name == "tiny" else np.random.RandomState(0).randn(len(LABELS), 2)
    clf = fitted(encoder=name, X=X)
    for _ in range(2):
        clf.save_pretrained(name)
    loaded = AdapterClassifier.from_pretrained(name)
    assert loaded.encoder == name
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
    loaded.fit(X, LABELS)


def test_directory_under_the_name_of_a_file_is_not_deleted(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    (folder / "README.md" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="README"):
        fitted().save_pretrained(folder)
    assert (folder / "README.md" / "precious").read_text() == "mine"


def test_encoder_in_a_relative_folder_is_found_from_elsewhere(
    plain_folder, tmp_path, monkeypatch
):
    shutil.copytree(plain_folder("bert"), tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    clf = fitted(encoder="bert")
    expected = clf.predict(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    clf.save_pretrained("model")
    assert "base_model" not in (tmp_path / "elsewhere/model/README.md").read_text()
    loaded = AdapterClassifier.from_pretrained("model")
    np.testing.assert_array_equal(loaded.predict(TEXTS), expected)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(clf)).predict(TEXTS), expected
    )


def test_former_model_of_any_name_is_found_aside(tmp_path):
    aside = _files._aside(tmp_path / "model[1]*", "0", "old")
    aside.mkdir()
    assert _files.left_aside(tmp_path / "model[1]*") == [aside]
    with pytest.raises(FileNotFoundError, match="left the former model"):
        AdapterClassifier.from_pretrained(tmp_path / "model[1]*")


@pytest.mark.parametrize("text", ["1e999", "-1e400", "NaN", "Infinity"])
def test_json_with_a_number_beyond_floats_is_refused(text):
    with pytest.raises(ValueError, match=r"cannot be read .*not finite"):
        _files.parse_json(b'{"a": %s}' % text.encode(), "file.json")


@pytest.mark.parametrize(
    "classes",
    [
        {"dtype": "<i8", "values": [2**80, 1]},
        {"dtype": "<i1", "values": [1000, 1]},
    ],
    ids=str,
)
def test_classes_that_do_not_fit_their_type_are_refused(folder, classes):
    recipe = json.loads((folder / "skpeft.json").read_text())
    recipe["fitted"]["classes_"] = classes
    recipe["sha256"] = _folder._digest(recipe)
    (folder / "skpeft.json").write_bytes(_files.json_bytes(recipe))
    with pytest.raises(ValueError, match="copy or download the folder again"):
        AdapterClassifier.from_pretrained(folder)


def test_folder_says_that_it_does_not_hold_the_weights_asked_for(
    plain_folder, tmp_path
):
    encoder = TextEncoder(str(plain_folder("bert")), include_weights=True)
    with pytest.warns(UserWarning, match="does not hold the encoder's weights"):
        fitted(encoder=encoder).save_pretrained(tmp_path / "model")
