"""Where a model is looked for before a hub is asked."""

import threading
import time

import pytest

from skpeft import AdapterClassifier
from skpeft.encoders import TextEncoder, _hub
from tests import models

DEFAULT = _hub.DEFAULT_NAMES[0]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty local cache, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(folder))
    return folder


@pytest.fixture
def package(monkeypatch, tmp_path):
    """An installed package with weights that are not the published ones."""
    folder = tmp_path / "site" / "package_of_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    models.save_plain(folder / "model", "bert")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(_hub, "_PACKAGE", "package_of_weights")
    return folder / "model"


def put_into_cache(cache, repo, *, weights=True, revision="main"):
    """Lay out a snapshot as the hub's client does."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    models.save_plain(snapshot, "bert")
    if not weights:
        (snapshot / "model.safetensors").unlink()
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text("0" * 40)
    return snapshot


def test_locate_takes_a_folder_first(cache, tmp_path, monkeypatch):
    put_into_cache(cache, "some/model")
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _hub.locate("some/model", None).resolve() == tmp_path / "some" / "model"


def test_locate_takes_the_local_cache_next(cache):
    snapshot = put_into_cache(cache, "some/model")
    assert _hub.locate("some/model", None) == snapshot
    assert _hub.locate("some/model", "0" * 40) == snapshot
    assert _hub.locate("some/model", "other") is None


def test_locate_adds_the_owner_of_short_names(cache):
    snapshot = put_into_cache(cache, "sentence-transformers/tiny")
    assert _hub.locate("tiny", None) == snapshot


def test_locate_passes_over_a_cache_without_weights(cache):
    put_into_cache(cache, "some/model", weights=False)
    assert _hub.locate("some/model", None) is None


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_locate_knows_weights_in_several_files(cache, kind):
    snapshot = put_into_cache(cache, "some/model", weights=False)
    (snapshot / f"{kind}.index.json").write_text("{}")
    assert _hub.locate("some/model", None) == snapshot


@pytest.mark.parametrize("name", ["nobody/no-model", "", "a b", "a/b/c", "-x-"])
def test_locate_of_a_name_that_is_nowhere_gives_none(cache, name):
    assert _hub.locate(name, None) is None


@pytest.mark.parametrize("name", _hub.DEFAULT_NAMES)
def test_package_with_other_weights_is_refused(cache, package, name):
    with pytest.raises(ValueError, match=r"have sha256 .* published ones") as caught:
        AdapterClassifier(name).fit(["a", "b"], [0, 1])
    assert _hub._PACKAGE_SHA256 in str(caught.value)


def test_package_with_the_published_weights_is_taken(cache, package, monkeypatch):
    import hashlib

    digest = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(_hub, "_PACKAGE_SHA256", digest)
    assert _hub.locate(DEFAULT, None) == package
    clf = AdapterClassifier(adapter=None).fit(models.TEXTS, [0, 1] * 3 + [0])
    assert clf.transform(models.TEXTS).shape == (len(models.TEXTS), models.WIDTH)


def test_package_stands_for_the_default_name_alone(cache, package):
    assert _hub.locate("some/model", None) is None
    assert _hub.locate(DEFAULT, "some-revision") is None


def test_cache_goes_before_the_package(cache, package):
    snapshot = put_into_cache(cache, DEFAULT)
    assert _hub.locate(DEFAULT, None) == snapshot


def test_default_name_without_package_is_not_found(cache, monkeypatch):
    monkeypatch.setattr(_hub, "_PACKAGE", "no_such_package_of_weights")
    assert _hub.locate(DEFAULT, None) is None


def test_file_state_tells_a_changed_folder(tmp_path):
    (tmp_path / "a").write_text("1")
    first = _hub.file_state(tmp_path)
    assert _hub.file_state(tmp_path) == first
    (tmp_path / "a").write_text("12")
    second = _hub.file_state(tmp_path)
    (tmp_path / "b").write_text("")
    assert len({first, second, _hub.file_state(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("mini", ["mini", "sentence-transformers/mini"]),
        ("some/mini", ["some/mini"]),
    ],
)
def test_hub_is_asked_for_each_place_where_a_model_may_be(monkeypatch, name, asked):
    import huggingface_hub

    seen = []

    class Hub:
        def model_info(self, repo, **_):
            seen.append(repo)
            if repo != "sentence-transformers/mini":
                raise RuntimeError(f"no {repo}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    if name == "mini":
        _hub.check_reachable(name, None)
    else:
        with pytest.raises(OSError, match="no some/mini"):
            _hub.check_reachable(name, None)
    assert seen == asked


def test_revision_is_asked_of_the_hub(monkeypatch):
    import sentence_transformers

    asked = []

    def refused(*names, **options):
        asked.append((*names, options["revision"]))
        raise OSError("that is enough")

    monkeypatch.setattr(_hub, "check_reachable", lambda *_: None)
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", refused)
    with pytest.raises(OSError, match="that is enough"):
        TextEncoder("some/other-model", revision="v2")._open()
    assert asked == [("some/other-model", "v2")]


@pytest.mark.parametrize("saved", [False, True])
def test_folder_that_holds_no_encoder_is_refused(tmp_path, saved):
    if saved:
        clf = AdapterClassifier("tiny", max_epochs=1).fit(["a", "b"], [0, 1])
        clf.save_pretrained(tmp_path)
    words = r"AdapterClassifier\.from_pretrained" if saved else "none of modules.json"
    with pytest.raises(OSError, match=words):
        AdapterClassifier(str(tmp_path)).fit(["a", "b"], [0, 1])


def test_folder_of_an_adapter_with_its_encoder_is_one(plain_folder, tmp_path):
    """As sentence-transformers reads it: the configuration names the encoder."""
    _hub.check_holds_encoder(plain_folder("bert"))
    (tmp_path / "adapter_config.json").write_text("{}")
    _hub.check_holds_encoder(tmp_path)


def test_name_of_nobodys_home_is_a_name():
    assert _hub.absolute("~nobody-of-this-name/x") == "~nobody-of-this-name/x"


def test_threads_that_load_leave_the_loggers_as_they_were():
    from transformers.utils import logging

    before = logging.get_verbosity()

    def load(seconds):
        with _hub.quiet_loading():
            time.sleep(seconds)

    threads = [threading.Thread(target=load, args=(s,)) for s in (0.1, 0.3)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert logging.get_verbosity() == before
