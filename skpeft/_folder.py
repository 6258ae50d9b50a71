"""A fitted estimator as a folder of JSON and safetensors, which runs no code when loaded.

`skpeft.json` is the recipe. It holds the digest of the other files and of itself, so that
damage and edits show; it cannot show that somebody wrote all of them anew.
"""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

import skpeft
from skpeft import _network
from skpeft._card import card
from skpeft._files import (
    check_free,
    json_bytes,
    left_aside,
    parse_json,
    parse_tensors,
    read_file,
    sha256,
    tensor_bytes,
    write_folder,
)
from skpeft._recipe import (
    are_names,
    by_name,
    decoded,
    decoded_attributes,
    encoded,
    encoded_attributes,
    encoded_parameters,
    is_count,
    is_number,
)
from skpeft._sites import join_paths
from skpeft.adapters import AdaptedLayer, _peft, resolve_adapter
from skpeft.encoders import resolve_encoder
from skpeft.heads import LabelwiseLogisticRegression

#: Layout of the folder; raised when an older version could not read a new one.
FORMAT = 1
RECIPE, CARD = "skpeft.json", "README.md"
ARRAYS, HEAD = "skpeft.safetensors", "head.skops"
_FILES = {RECIPE, CARD, ARRAYS, HEAD, _peft.CONFIG, _peft.TENSORS}
_KEYS = {
    "format", "skpeft", "versions", "estimator", "params", "fitted", "network", "head",
    "files", "sha256",
}  # fmt: skip
_NETWORK_KEYS = {
    "encoder", "adapter", "layers", "n_features", "device", "precision", "seed",
    "fingerprint", "root",
}  # fmt: skip
_DEPENDENCIES = (
    "numpy", "scikit-learn", "sentence-transformers", "torch", "transformers",
)  # fmt: skip
#: Default heads: their parameters and fitted arrays that are kept.
_HEADS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "LogisticRegression": (LogisticRegression, ("C", "max_iter")),
    "LabelwiseLogisticRegression": (
        LabelwiseLogisticRegression,
        ("C", "max_iter"),
    ),
    "Ridge": (Ridge, ("alpha",)),
}
_CODE = "trust_remote_code"
_AGAIN = "Copy or download the folder again."


def save(estimator: Any, folder: str | os.PathLike) -> None:
    """Write a fitted estimator to a folder, whole or not at all.

    Parameters
    ----------
    estimator : AdapterClassifier or AdapterRegressor
        Fitted.
    folder : str or path
        New, empty, or a model saved earlier, which is replaced.

    Raises
    ------
    ValueError
        If a parameter has no form in JSON, or something else is in the way.
    """
    network = estimator._network
    if network.adapter is not None:
        network = estimator._found_network()
    contents, exact = _adapter_files(network)
    arrays = {**exact, **({} if network.probe is None else {"probe": network.probe})}
    head = None
    if estimator.head is None and _is_default(estimator.head_):
        head, more = _plain_head(estimator.head_)
        arrays |= more
    else:
        skops = _import_skops()
        contents[HEAD] = skops.dumps({"head": estimator.head, "head_": estimator.head_})
    if arrays:
        contents[ARRAYS] = tensor_bytes(arrays)
    recipe = {
        "format": FORMAT,
        "skpeft": skpeft.__version__,
        "versions": _versions(),
        "estimator": type(estimator).__name__,
        "params": encoded_parameters(estimator),
        "fitted": encoded_attributes(estimator),
        "network": _encoded_network(network),
        "head": head,
        "files": {name: sha256(data) for name, data in sorted(contents.items())},
    }
    recipe["sha256"] = _digest(recipe)
    contents[RECIPE] = json_bytes(recipe)
    contents[CARD] = card(estimator).encode()
    write_folder(Path(folder).expanduser(), contents, _FILES, RECIPE)


def check_place(folder: str | os.PathLike) -> None:
    """Refuse a folder that `save` would refuse, before a long fit."""
    check_free(Path(folder).expanduser().resolve(), _FILES, RECIPE)


def kind_of(folder: str | os.PathLike) -> Any:
    """Name of the estimator that a folder says it holds; nothing else is checked."""
    return parse_json(read_file(_existing(folder), RECIPE), RECIPE).get("estimator")


def load(kind: Any, folder: str | os.PathLike, trusted: list[str] | None) -> Any:
    """Read a fitted estimator from a folder, after all in it has been checked.

    Parameters
    ----------
    kind : type
        Class of the estimator.
    folder : str or path
        Written by `save`.
    trusted : list of str or None
        What may be used beyond data: types of a head, "trust_remote_code".

    Raises
    ------
    OSError
        If the folder or a file in it is missing.
    ValueError
        If anything is not as `save` writes it, or not trusted.
    """
    if isinstance(trusted, str):
        raise TypeError(f"trusted must be a list of str, got {trusted!r}.")
    place = _existing(folder)
    recipe = _checked_recipe(kind, parse_json(read_file(place, RECIPE), RECIPE))
    contents = _checked_contents(place, recipe)
    try:
        estimator = kind(**decoded(recipe["params"], "params"))
        attributes = decoded_attributes(recipe["fitted"], estimator._task)
        network, arrays = _decoded_network(recipe["network"], contents)
        trusted = list(trusted or [])
        _check_code(estimator.encoder, trusted)
        _check_code(network["encoder"], trusted)
        if HEAD in contents:
            heads = _load_skops(contents[HEAD], trusted)
            estimator.head, attributes["head_"] = heads["head"], heads["head_"]
        else:
            attributes["head_"] = _restored_head(recipe["head"], arrays, attributes)
        if arrays:
            raise ValueError(
                f"{ARRAYS} holds tensors that nothing asks for: {sorted(arrays)}. {_AGAIN}"
            )
        estimator._validate_params()
        shared = ("encoder", "adapter", "layers", "device", "precision")
        kind(**{name: network[name] for name in shared})._validate_params()
        _check_agreement(attributes, network)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{RECIPE} in {str(place)!r} does not say what skpeft {recipe['skpeft']} writes "
            f"there ({error}). It was edited: copy or download the folder again."
        ) from error
    vars(estimator).update(attributes)
    estimator._network = _network.AdapterNetwork.restore(network)
    return estimator


def _check_agreement(fitted: dict[str, Any], network: dict[str, Any]) -> None:
    """Refuse what contradicts itself, before anything is built as large as it says."""
    stored, adapter = network["_stored"], network["adapter"]
    sizes = {size for array in stored.values() for size in array.shape}
    capacities = [
        getattr(member, member.capacity)
        for member in (adapter.members if adapter is not None else ())
        if member.capacity is not None
    ]
    head: Any = fitted["head_"]
    classes: Any = fitted.get("classes_")
    labels: list[Any] = [classes]
    if classes is not None:
        labels.append(np.arange(len(classes)))  # of several labels a row: their columns
    known: Any = getattr(head, "classes_", classes)
    if isinstance(known, list):  # of heads of several labels: the values of each
        known = np.arange(len(known))
    agree = {
        "n_features_in_": fitted["n_features_in_"] == network["n_features"],
        "n_epochs_": fitted["n_epochs_"] == len(fitted["loss_curve_"]),
        "n_trainable_params_": fitted["n_trainable_params_"]
        in (0, sum(array.size for array in stored.values())),
        "adapter": sizes.issuperset(capacities),
        "head": getattr(head, "n_features_in_", fitted["_n_features_out"])
        == fitted["_n_features_out"],
        "classes_": any(np.array_equal(known, given) for given in labels),
    }
    wrong = [name for name, is_right in agree.items() if not is_right]
    if wrong:
        raise TypeError(f"what it says about {wrong} contradicts the rest")


def _existing(folder: str | os.PathLike) -> Path:
    place = Path(folder).expanduser()
    if place.is_dir():
        if (place / _peft.CONFIG).is_file() and not (place / RECIPE).is_file():
            raise FileNotFoundError(
                f"The folder {str(folder)!r} holds no file {RECIPE!r}, so it is an adapter "
                "without a head, or not the whole model. Copy the whole folder again; or "
                "fit with an adapter that starts from this one, such as "
                f"adapter=LoRA.from_pretrained({str(folder)!r})."
            )
        return place
    aside = left_aside(place)
    if place.is_file():
        hint = "It is a file: joblib.load reads what joblib.dump has written."
    elif aside:
        former = str(aside[-1])
        hint = (
            f"A save that was cut short left the former model in {former!r}: rename it."
        )
    else:
        hint = (
            "Download a model of a hub with huggingface_hub.snapshot_download, and pass "
            "the folder that it returns."
        )
    raise FileNotFoundError(
        f"{str(folder)!r} is no folder on this machine; expected is one that "
        f"save_pretrained has written. {hint}"
    )


def _checked_recipe(kind: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """Recipe of a known format, undamaged, of an estimator of this kind."""
    version, written = recipe.get("format"), recipe.get("skpeft")
    if type(version) is int and version > FORMAT:
        raise ValueError(
            f"This folder was saved by skpeft {written} in format {version}; this is skpeft "
            f"{skpeft.__version__}, which reads formats up to {FORMAT}. Install "
            f"skpeft>={written}."
        )
    if type(version) is not int or version < 1 or recipe.keys() != _KEYS:
        raise ValueError(
            f"{RECIPE} has format={version!r} and the keys {sorted(recipe)}; expected is a "
            f"format from 1 to {FORMAT} with the keys {sorted(_KEYS)}. It was edited or is "
            "of something else: copy or download the folder again."
        )
    if recipe["sha256"] != _digest(recipe):
        raise ValueError(
            f"{RECIPE} was edited or damaged since it was saved: its sha256 is not the one "
            "that it names. Copy or download the folder again, or fit and save anew."
        )
    if recipe["estimator"] != kind.__name__:
        raise ValueError(
            f"The folder holds a model of {recipe['estimator']!r}, but {kind.__name__} was "
            f"asked to load it. Use {recipe['estimator']}.from_pretrained."
        )
    parts = ("params", "fitted", "network", "files")
    if not all(isinstance(recipe[part], dict) for part in parts):
        raise ValueError(
            f"{RECIPE}: each of {parts} must be an object. Save the model anew."
        )
    return recipe


def _checked_contents(place: Path, recipe: dict[str, Any]) -> dict[str, bytes]:
    """The other files, each as its digest says; exactly those that the recipe needs."""
    adapter = recipe["network"].get("adapter")
    names = {kind.__name__ for kind in _peft.KINDS.values()}
    shared = isinstance(adapter, dict) and adapter.get("class") in names
    needed = {
        HEAD: recipe["head"] is None,
        _peft.TENSORS: adapter is not None,
        _peft.CONFIG: shared,
    }
    files = set(recipe["files"]) - {ARRAYS}
    if files != {name for name, is_needed in needed.items() if is_needed}:
        raise ValueError(
            f"{RECIPE} lists the files {sorted(recipe['files'])}, which are not those of the "
            f"model that it describes. {_AGAIN}"
        )
    contents = {}
    for name in sorted(_FILES & recipe["files"].keys()):
        contents[name] = read_file(place, name)
        found, expected = sha256(contents[name]), recipe["files"][name]
        if found != expected:
            raise ValueError(
                f"{name} was changed or damaged since it was saved: its sha256 is {found}, "
                f"{expected} is expected. {_AGAIN}"
            )
    return contents


# Tensors of the adapter


def _adapter_files(network: Any) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files of what was trained, and arrays that PEFT's form of them rounds."""
    if network.adapter is None:
        return {}, {}
    if type(network.adapter) not in _peft.KINDS.values():
        return {_peft.TENSORS: tensor_bytes(network.state())}, {}
    live, tensors, layers = network.live, {}, {}
    for name, layer in live.module.named_modules():
        if isinstance(layer, AdaptedLayer):
            path = name.removeprefix(f"{live.backbone.root}.")
            layers[path] = layer
            for part, tensor in _peft.tensors_of(layer).items():
                tensors[f"{_peft.PREFIX}{path}.{part}"] = tensor.cpu().numpy()
    base = getattr(by_name(network.encoder), "model", None)
    config = _peft.config_of(network.adapter, layers, base)
    exact = {
        f"exact.{name}": array
        for name, array in network.state().items()
        if name.endswith((".scale", ".magnitude"))
    }
    files = {_peft.CONFIG: json_bytes(config), _peft.TENSORS: tensor_bytes(tensors)}
    return files, exact


_OUR_NAMES = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector.weight": "magnitude",
    "hira_A": "hira_A",
    "hira_B": "hira_B",
    "ia3_l": "scale",
}


def _our_state(
    tensors: dict[str, np.ndarray], arrays: dict[str, np.ndarray], root: str
) -> dict[str, np.ndarray]:
    """Our tensors out of PEFT's names; what PEFT's form rounds comes out of `arrays`."""
    state = {}
    for name, array in tensors.items():
        path, part = _peft.split(name)
        own = join_paths(root, path, _OUR_NAMES[part])
        if part.startswith(("lora_A", "lora_B", "hira")):
            state[own] = array
            continue
        exact = arrays.pop(f"exact.{own}", None)
        if exact is None or exact.size != array.size:
            raise ValueError(
                f"The tensor {name!r} in {_peft.TENSORS} is not one that belongs to the "
                f"model. {_AGAIN}"
            )
        if part == "ia3_l" and not np.array_equal(1 + exact, array.ravel()):
            raise ValueError(
                f"The tensor {name!r} differs between {_peft.TENSORS} and {ARRAYS}. "
                + _AGAIN
            )
        state[own] = exact
    return state


# The network


def _encoded_network(network: Any) -> dict[str, Any]:
    return {
        "encoder": encoded(by_name(network.encoder), "encoder"),
        "adapter": encoded(network.adapter, "adapter"),
        "layers": encoded(network.layers, "layers"),
        "n_features": network.n_features,
        "device": network.device,
        "precision": network.precision,
        "seed": network.seed,
        "fingerprint": network.fingerprint,
        "root": network.root,
    }


def _decoded_network(
    given: dict[str, Any], contents: Mapping[str, bytes]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """State of a network, and the arrays that belong to something else."""
    if given.keys() != _NETWORK_KEYS:
        raise TypeError(f"network has the keys {sorted(given)}")
    found = decoded(given, "network")
    if not are_names([found["fingerprint"], found["root"]]):
        raise TypeError("fingerprint and root must be str")
    if not (is_count(found["seed"]) and is_count(found["n_features"])):
        raise TypeError("seed and n_features must be whole numbers of at least 0")
    found["encoder"] = resolve_encoder(found["encoder"])
    found["adapter"] = resolve_adapter(found["adapter"])
    arrays = parse_tensors(contents[ARRAYS], ARRAYS) if ARRAYS in contents else {}
    found["probe"] = arrays.pop("probe", None)
    state = {}
    if _peft.TENSORS in contents:
        state = parse_tensors(contents[_peft.TENSORS], _peft.TENSORS)
    if _peft.CONFIG in contents:
        state = _our_state(state, arrays, found["root"])
    dtype = np.float64 if found["precision"] == "float64" else np.float32
    for name, array in state.items():
        if array.dtype != dtype:
            raise ValueError(
                f"The tensor {name!r} in {_peft.TENSORS} is of the type {array.dtype}; "
                f"{np.dtype(dtype)} is expected. {_AGAIN}"
            )
    return {**found, "_stored": state}, arrays


def _check_code(encoder: Any, trusted: list[str]) -> None:
    if getattr(encoder, _CODE, False) and _CODE not in trusted:
        raise ValueError(
            f"The encoder of this model, {encoder!r}, would run code from its own "
            f"repository. If you trust that, pass trusted=[{_CODE!r}, ...]."
        )


# Heads


def _is_default(head: Any) -> bool:
    """Whether a fitted head is one that JSON and arrays give back."""
    kind, names = _HEADS.get(type(head).__name__, (None, ()))
    if type(head) is not kind:
        return False
    given = head.get_params()
    return given == kind(**{name: given[name] for name in names}).get_params()


def _plain_head(head: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A default head as JSON and arrays."""
    parameters = _HEADS[type(head).__name__][1]
    coef = np.asarray(head.coef_)
    # Rounding in a product depends on the order in memory.
    by_column = bool(coef.ndim == 2 and coef.flags.f_contiguous)
    form = {
        "class": type(head).__name__,
        "params": {name: encoded(getattr(head, name), name) for name in parameters},
        "by_column": by_column,
    }
    return form, {
        "head.coef": coef.T if by_column else coef,
        "head.intercept": np.asarray(head.intercept_),
    }


def _restored_head(
    form: Any, arrays: dict[str, np.ndarray], attributes: dict[str, Any]
) -> Any:
    """The fitted default head."""
    if not isinstance(form, dict) or form.keys() != {"class", "params", "by_column"}:
        raise TypeError(f"head is {form!r}")
    classes = attributes.get("classes_")
    kind, parameters = _HEADS[form["class"]]
    given = form["params"]
    if (kind is Ridge) != (classes is None) or given.keys() != set(parameters):
        raise TypeError(f"head is {form!r}")
    # A ridge regression of several numbers has a penalty for each.
    given = {n: np.array(v) if isinstance(v, list) else v for n, v in given.items()}
    for value in (one for v in given.values() for one in np.ravel(v).tolist()):
        if not (is_number(value) and value > 0):
            raise TypeError(f"head has the parameters {given!r}")
    coef, intercept = arrays.pop("head.coef"), arrays.pop("head.intercept")
    coef = coef.T if form["by_column"] else coef
    width = attributes["_n_features_out"]
    rows: tuple[int, ...]
    if classes is None:
        rows = intercept.shape[:1]
    else:
        is_binary = kind is LogisticRegression and len(classes) == 2
        rows = (1 if is_binary else len(classes),)
    shapes = ((*rows, width), rows)
    if (coef.shape, intercept.shape) != shapes:
        raise ValueError(
            f"The head in {ARRAYS} has the shapes {(coef.shape, intercept.shape)}; {shapes} "
            f"is expected. {_AGAIN}"
        )
    head = kind(**given)
    head.coef_, head.intercept_ = coef, intercept[()]
    head.n_features_in_ = width
    if kind is LogisticRegression:
        head.classes_ = classes
    elif kind is LabelwiseLogisticRegression:
        head.classes_ = np.arange(len(intercept))
    return head


def _import_skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            "A head of your own goes into a folder without pickle by way of skops, which "
            "is not installed: pip install skops. Or use head=None, or joblib."
        ) from error
    return skops.io


def _load_skops(data: bytes, trusted: list[str]) -> dict[str, Any]:
    """The head as given and as fitted, if all types in the file are trusted."""
    io = _import_skops()
    try:
        with ZipFile(BytesIO(data)) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > len(data):  # `save` compresses nothing
            raise ValueError(f"{len(data)} bytes would unpack to {size}")
        unknown = sorted(set(io.get_untrusted_types(data=data)) - set(trusted))
    except Exception as error:  # of many kinds, by what is wrong with the archive
        raise ValueError(f"{HEAD} cannot be read ({error}). {_AGAIN}") from error
    if unknown:
        raise ValueError(
            f"The head in {HEAD} is made of types that are not known to be safe: {unknown}. "
            "If you trust where the folder comes from, pass "
            f"trusted={sorted({*trusted, *unknown})!r}."
        )
    kinds = [name for name in trusted if name != _CODE]
    try:
        heads = io.loads(data, trusted=kinds)
    except Exception as error:
        raise ValueError(f"{HEAD} cannot be read ({error}). {_AGAIN}") from error
    known = isinstance(heads, dict) and heads.keys() == {"head", "head_"}
    if not known or not hasattr(heads["head_"], "predict"):
        raise ValueError(f"{HEAD} holds no head. {_AGAIN}")
    return heads


def _digest(recipe: Mapping[str, Any]) -> str:
    """Digest of all that a recipe says, but for the digest itself."""
    return sha256(json_bytes({key: recipe[key] for key in recipe if key != "sha256"}))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _DEPENDENCIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not all are needed for rows of numbers
            continue
    return found
