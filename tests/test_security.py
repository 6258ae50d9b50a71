"""Nothing that a model or an encoder brings along is run unasked."""

import importlib.util
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from skpeft import AdapterClassifier, AdapterRegressor, _files, _folder
from skpeft.encoders import TextEncoder

ROOT = Path(__file__).parents[1]
TEXTS, LABELS = ["good film", "bad film", "good tea", "bad tea"], [0, 1, 0, 1]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A file that must not come into being."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def plain(plain_folder, tmp_path):
    return Path(shutil.copytree(plain_folder(), tmp_path / "plain"))


@pytest.fixture
def pooled(pooled_folder, tmp_path):
    return Path(shutil.copytree(pooled_folder(), tmp_path / "pooled"))


def fit(folder, **options):
    encoder = TextEncoder(str(folder), **options)
    return AdapterClassifier(encoder, adapter=None).fit(TEXTS, LABELS)


# Encoders


@pytest.mark.parametrize("form", ["zip", "bare"])
def test_weights_in_a_pickle_that_runs_code_are_refused(plain, mark, form):
    (plain / "model.safetensors").unlink()
    if form == "zip":
        torch.save({"weight": Bomb(mark)}, plain / "pytorch_model.bin")
    else:
        (plain / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=r"more than tensors.*model\.safetensors"):
        fit(plain)


def test_weights_in_a_pickle_of_tensors_are_read(plain):
    expected = fit(plain).transform(TEXTS)
    torch.save(load_file(plain / "model.safetensors"), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()
    np.testing.assert_allclose(fit(plain).transform(TEXTS), expected, atol=1e-6)


def test_weights_cut_short_are_an_error_that_names_the_encoder(plain):
    weights = plain / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"encoder .*plain.* could not be loaded"):
        fit(plain)


@pytest.mark.parametrize("name", ["own.Module", "os.system", "subprocess.Popen"])
def test_module_from_elsewhere_in_an_encoder_is_refused(
    pooled, mark, name, monkeypatch
):
    monkeypatch.syspath_prepend(str(pooled))  # the worst case: it could be imported
    (pooled / "own.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    )
    modules = json.loads((pooled / "modules.json").read_text())
    modules[-1]["type"] = name
    (pooled / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        fit(pooled)


def test_code_in_the_repository_of_an_encoder_is_run_only_with_consent(plain, mark):
    config = json.loads((plain / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Model", "AutoConfig": "own.Config"}
    config["model_type"] = "own"
    (plain / "config.json").write_text(json.dumps(config))
    (plain / "own.py").write_text(
        f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    )
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        fit(plain)
    with pytest.raises(Exception, match=r"own|Config"):  # which defines no such class
        fit(plain, trust_remote_code=True)
    assert mark.exists()
    mark.unlink()


# Folders


@pytest.fixture
def saved(tmp_path):
    model = AdapterClassifier("tiny", max_epochs=1, random_state=0).fit(TEXTS, LABELS)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder, change):
    """A folder whose recipe somebody changed who knows how digests are made."""
    recipe = json.loads((folder / _folder.RECIPE).read_text())
    change(recipe)
    recipe["sha256"] = _folder._digest(recipe)
    (folder / _folder.RECIPE).write_bytes(_files.json_bytes(recipe))
    return folder


CLAIMS = {
    "rank": lambda r: r["network"]["adapter"]["params"].update(rank=10**4),
    "a rank beyond all": lambda r: r["network"]["adapter"]["params"].update(rank=10**9),
    "width": lambda r: r["network"]["encoder"]["params"].update(hidden_size=10**6),
    "blocks": lambda r: r["network"]["encoder"]["params"].update(n_layers=10**6),
    "length": lambda r: r["network"]["encoder"]["params"].update(max_length=10**9),
    "columns": lambda r: r["network"].update(n_features=10**9),
    "features": lambda r: r["fitted"].update(_n_features_out=10**9),
    "trained weights": lambda r: r["fitted"].update(n_trainable_params_=10**9),
    "epochs": lambda r: r["fitted"].update(n_epochs_=10**9),
    "labels": lambda r: r["fitted"].update(
        classes_={"dtype": "<U999999", "values": [str(i) for i in range(500)]}
    ),
    "one class more": lambda r: r["fitted"]["classes_"]["values"].append(2),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_recipe_that_claims_other_sizes_is_refused_before_anything_is_built(
    saved, claim
):
    with pytest.raises(
        ValueError, match=r"contradicts|must be an int|large|is expected"
    ):
        AdapterClassifier.from_pretrained(rewritten(saved, CLAIMS[claim]))


def test_recipe_nested_without_end_is_refused(saved):
    for depth in (50, 900, 100_000):
        text = '{"format": ' + "[" * depth + "]" * depth + "}"
        (saved / _folder.RECIPE).write_text(text)
        with pytest.raises(
            ValueError, match=r"cannot be read as JSON .*(nested|recursion)"
        ):
            AdapterClassifier.from_pretrained(saved)


def test_tensor_file_whose_header_claims_too_much_is_refused(saved):
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    for size in (len(header), 2**40, 2**63):
        data = size.to_bytes(8, "little") + header
        with pytest.raises(ValueError, match="no whole safetensors file"):
            _files.parse_tensors(data, "file")


def test_head_that_would_unpack_to_more_than_its_file_is_refused(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    model = AdapterClassifier("tiny", adapter=None, head=LogisticRegression())
    folder = tmp_path / "model"
    model.fit(TEXTS, LABELS).save_pretrained(folder)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", " " * 10**7)
    (folder / _folder.HEAD).write_bytes(file.getvalue())

    def seal(recipe):
        recipe["files"][_folder.HEAD] = _files.sha256(file.getvalue())

    with pytest.raises(
        ValueError, match=r"head\.skops cannot be read .*would unpack to"
    ):
        AdapterClassifier.from_pretrained(rewritten(folder, seal))


def test_head_fitted_on_other_features_or_classes_is_refused(tmp_path):
    pytest.importorskip("skops", reason="skops is not installed")
    folder = tmp_path / "model"
    model = AdapterClassifier("tiny", adapter=None, head=LogisticRegression())
    model.fit(TEXTS, LABELS)
    whole = model.head_
    for X, y in ((np.eye(4), LABELS), (model.transform(TEXTS), ["a", "b", "a", "b"])):
        model.head_ = LogisticRegression().fit(X, y)
        model.save_pretrained(folder)
        with pytest.raises(ValueError, match="contradicts the rest"):
            AdapterClassifier.from_pretrained(folder)
    model.head_ = whole
    model.save_pretrained(folder)
    assert AdapterClassifier.from_pretrained(folder).predict(TEXTS).tolist() == LABELS


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_folder_holds_no_pickle(kind, tmp_path):
    kind("tiny", max_epochs=1).fit(TEXTS, LABELS).save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert path.suffix in (".json", ".safetensors", ".md")


# Dependencies


def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_audit_names_what_is_too_old_and_nothing_else():
    text = "# about\ntorch==2.6.0 CVE-1 bad\ntorch==2.10.0 CVE-2 worse\nskops==0.13.0 CVE-3\n"
    found = audit().audit(text, {"torch": "2.9.1+cpu", "skops": "0.13.0"})
    assert found == ["torch 2.9.1+cpu is installed; 2.10.0 is needed: CVE-2 worse"]
    assert audit().audit(text, {"torch": "2.10.0rc1"}) != []
    assert audit().audit(text, {"numpy": "1.0"}) == []


def test_audit_list_can_be_read_and_knows_our_dependencies():
    found = list(audit().advisories(audit().LIST.read_text()))
    assert {"torch", "transformers", "skops"} <= {name for name, *_ in found}
    assert all("CVE-" in about for *_, about in found)
