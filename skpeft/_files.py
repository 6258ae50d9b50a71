"""Folders of plain files: read strictly, written whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

# What is deeper could bring down whoever walks through it.
_MOST_LEVELS = 40
# How often a save gives way to another one of the same moment.
_ATTEMPTS = 100


def read_file(folder: Path, name: str) -> bytes:
    """Content of one file of a folder.

    Parameters
    ----------
    folder : Path
        An existing folder.
    name : str
        One of the names that the caller knows, never one that a file gave.

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ValueError
        If it is a link that leads out of the folder.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"The folder {str(folder)!r} holds no file {name!r}, which is needed. Copy or "
            "download the whole folder again."
        )
    if path.resolve().parent not in _homes(folder.resolve()):
        raise ValueError(
            f"{name!r} in the folder {str(folder)!r} is a link that leads out of it, to "
            f"{str(path.resolve())!r}. Put the file itself in its place."
        )
    return path.read_bytes()


def _homes(folder: Path) -> list[Path]:
    """Folders in which the files of a folder may be.

    The cache of the hub client keeps snapshots as links to files beside them.
    """
    homes = [folder]
    for parent in folder.parents:  # the model may be in a folder of its repository
        if parent.name == "snapshots":
            homes.append(parent.parent / "blobs")
    return homes


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Object in a JSON text, which must be one, each key once, all numbers finite.

    Parameters
    ----------
    data : bytes
        The text.
    where : str
        Name of the file, for messages.

    Raises
    ------
    ValueError
        If it is anything else.
    """

    def refuse(text: str) -> None:
        raise ValueError(f"the number {text} is not finite")

    def finite(text: str) -> float:
        number = float(text)
        if not np.isfinite(number):
            refuse(text)
        return number

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    try:
        found = json.loads(
            data, parse_constant=refuse, parse_float=finite, object_pairs_hook=once
        )
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} in place of an object")
        level = [found]
        for _ in range(_MOST_LEVELS):
            level = [part for whole in level for part in _parts(whole)]
        if level:
            raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} cannot be read as JSON ({error}). The file is damaged or was edited: "
            "copy or download the folder again."
        ) from error
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def parse_tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Arrays of floating-point numbers in a safetensors file, all of them finite.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for messages.

    Raises
    ------
    ValueError
        If it is damaged, or holds something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{where} is no whole safetensors file ({error}). Copy or download the folder "
            "again."
        ) from error
    plain = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    for name, tensor in tensors.items():
        if tensor.dtype not in plain or not torch.isfinite(tensor).all():
            raise ValueError(
                f"The tensor {name!r} in {where}, of type {tensor.dtype}, must hold finite "
                "numbers of 16 to 64 bits with a fraction, and does not, so nothing is "
                "loaded. Save the model again."
            )
    return {
        # numpy knows no bfloat16
        name: (t.float() if t.dtype == torch.bfloat16 else t).numpy()
        for name, t in tensors.items()
    }


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON text of an object, the same for equal objects."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def sha256(data: bytes) -> str:
    """Digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def tensor_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as a safetensors file."""
    from safetensors.numpy import save

    # It writes memory as it lies, whatever the strides say.
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shaped = {name: array.reshape(arrays[name].shape) for name, array in whole.items()}
    return save(shaped, metadata={"format": "pt"})


def write_folder(
    folder: Path, contents: Mapping[str, bytes], known: Collection[str], mark: str
) -> None:
    """Write files aside, then put their folder in its place by renaming.

    Parameters
    ----------
    folder : Path
        Where they go. What is there already must hold known files only.
    contents : mapping of str to bytes
        The files by name.
    known : collection of str
        Names of all files that such a folder may hold.
    mark : str
        Name of the file that every such folder holds.

    Raises
    ------
    ValueError
        If something else is in the way.
    """
    folder = folder.resolve()
    check_free(folder, known, mark)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (_aside(folder, uuid.uuid4().hex, end) for end in ("new", "old"))
    done = False
    try:
        new.mkdir()
        for name, data in contents.items():
            _write(new / name, data)
        _put(new, folder, old)
        done = True
    finally:
        shutil.rmtree(new, ignore_errors=True)
        # Else the former model is there under its other name.
        if done or folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _put(new: Path, folder: Path, old: Path) -> None:
    """Rename a new folder to its place, and what is there to `old`, which is left.

    Of several processes that do so at the same time, the last one wins.
    """
    for left in reversed(range(_ATTEMPTS)):
        shutil.rmtree(old, ignore_errors=True)
        try:
            with suppress(FileNotFoundError):  # nothing is there
                folder.rename(old)
            new.rename(folder)
            return
        except BaseException as error:
            taken = getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST)
            if taken and left:
                continue  # another process was faster: replace what it has put there
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def left_aside(folder: Path) -> list[Path]:
    """Former folders of that name which a save left when its process died."""
    folder = folder.resolve()
    if not folder.parent.is_dir():
        return []
    return sorted(
        path
        for path in folder.parent.iterdir()
        if path.name.startswith(f".{folder.name}.") and path.name.endswith(".old")
    )


def _aside(folder: Path, middle: str, end: str) -> Path:
    return folder.parent / f".{folder.name}.{middle}.{end}"


def check_free(folder: Path, known: Collection[str], mark: str) -> None:
    try:
        with os.scandir(folder) as entries:
            is_file = {entry.name: entry.is_file() for entry in entries}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ValueError(
            f"{str(folder)!r} is a file; a model is saved as a folder. Give another name."
        ) from None
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(
            f"{str(folder)!r} is the working directory, or holds it; saving replaces a whole "
            "folder. Give the name of a new folder in it."
        )
    ours = {name for name in known if mark in is_file and is_file.get(name)}
    others = sorted(is_file.keys() - ours)
    if others:
        raise ValueError(
            f"The folder {str(folder)!r} holds {others[:5]}, which are not of a saved model; "
            "saving replaces the whole folder. Give a new or an empty one."
        )


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
