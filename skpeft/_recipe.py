"""Parameters, specs and fitted attributes as JSON: values alone, no code."""

import re
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone

from skpeft._validation import one_of, warn
from skpeft.adapters import ADAPTERS, Combination, resolve_adapter
from skpeft.encoders import ENCODERS, TextEncoder, _hub, resolve_encoder
from skpeft.objectives import OBJECTIVES

_SPECS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *ADAPTERS.values(), Combination, *ENCODERS.values(), TextEncoder,
        *OBJECTIVES.values(),
    )
}  # fmt: skip
# Labels of the longest kind that anybody has; a JSON of some bytes may claim gigabytes.
_MOST_BYTES = 2**26


def is_count(value: Any) -> bool:
    """Whether a value out of JSON is a whole number of at least 0."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a number."""
    return type(value) in (int, float)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def are_names(value: Any) -> bool:
    """Whether a value out of JSON is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


#: Fitted attributes besides `classes_` and `head_`, and what they must be.
FITTED = {
    "n_features_in_": is_count,
    "_n_features_out": is_count,
    "n_epochs_": is_count,
    "n_trainable_params_": is_count,
    "n_frozen_params_": is_count,
    "shrinkage_": is_number,
    "temperature_": is_number,
    "loss_curve_": _are_numbers,
    "validation_scores_": _are_numbers,
    "feature_names_in_": are_names,
}


def encoded_parameters(estimator: Any) -> dict[str, Any]:
    """Parameters of an estimator, without the head, which has its own file."""
    given = estimator.get_params(deep=False)
    given["head"] = None
    for name in ("callback", "random_state"):  # a seed, a number, has a form in JSON
        if callable(given[name]) or hasattr(given[name], "randint"):
            warn(
                f"{name}={given[name]!r} has no form in JSON and is left out: the loaded "
                f"model has {name}=None, which matters in another fit only.",
            )
            given[name] = None
    if getattr(given["encoder"], "include_weights", False):
        warn(
            "include_weights=True counts for pickles; the saved folder does not hold the "
            "encoder's weights, which must be found where it is loaded. Keep the encoder "
            "beside it, or use joblib.dump.",
        )
    if not isinstance(given["encoder"], str):
        given["encoder"] = by_name(resolve_encoder(given["encoder"]))
    elif given["encoder"] not in ENCODERS:
        given["encoder"] = _hub.absolute(given["encoder"])
    if hasattr(given["adapter"], "peft_type"):
        given["adapter"] = resolve_adapter(given["adapter"])
    return {name: encoded(value, name) for name, value in given.items()}


def by_name(encoder: Any) -> Any:
    """The resolved spec, with a name in place of a loaded model."""
    model = getattr(encoder, "model", None)
    if model is None or isinstance(model, str) or not hasattr(encoder, "known_name"):
        return encoder
    name = encoder.known_name()
    if name is None:
        raise ValueError(
            "The encoder is a loaded model that no name or folder on this machine gives "
            "back, and the saved folder does not hold its weights. Save the model to a "
            "folder, pass that as encoder, and fit again; or use joblib.dump."
        )
    return clone(encoder).set_params(model=name)


def encoded(value: Any, name: str) -> Any:
    """A value as JSON that `decoded` gives back."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and np.isfinite(value):
        return float(value)
    if isinstance(value, tuple):
        return {"tuple": [encoded(item, name) for item in value]}
    if isinstance(value, list | range | np.ndarray):
        return [encoded(item, name) for item in value]
    if isinstance(value, dict):
        pairs = value.items()
        return {"pairs": [[encoded(k, name), encoded(v, name)] for k, v in pairs]}
    if isinstance(value, BaseEstimator) and _SPECS.get(type(value).__name__) is type(
        value
    ):
        params = value.get_params(deep=False)
        return {
            "class": type(value).__name__,
            "params": {key: encoded(params[key], f"{name}.{key}") for key in params},
        }
    raise ValueError(
        f"{name}={value!r} has no form in JSON, so the model cannot be saved without pickle. "
        "Use a name or a spec of skpeft in its place, or joblib.dump."
    )


def decoded(value: Any, name: str) -> Any:
    """What `encoded` wrote; objects at the top keep their keys."""
    if isinstance(value, list):
        return [decoded(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    if name in ("params", "network"):
        return {key: decoded(item, key) for key, item in value.items()}
    if value.keys() == {"tuple"}:
        return tuple(decoded(value["tuple"], name))
    if value.keys() == {"pairs"}:
        pairs = [(decoded(k, name), decoded(v, name)) for k, v in value["pairs"]]
        return dict(pairs)
    if value.keys() != {"class", "params"}:
        raise TypeError(f"{name} is {value!r}")
    if value["class"] not in _SPECS:
        raise ValueError(one_of(value["class"], _SPECS, "spec"))
    given = {k: decoded(v, f"{name}.{k}") for k, v in value["params"].items()}
    spec = _SPECS[value["class"]](**given)
    spec.validate()
    return spec


def encoded_attributes(estimator: Any) -> dict[str, Any]:
    """Fitted attributes of an estimator, but for the head."""
    names = [name for name in FITTED if hasattr(estimator, name)]
    found = {name: encoded(getattr(estimator, name), name) for name in names}
    if hasattr(estimator, "classes_"):
        classes = estimator.classes_
        if classes.dtype.kind not in "biufUO":
            raise ValueError(
                f"Labels of the type {classes.dtype} have no form in JSON. Fit with labels "
                "that are str, bool or numbers, or use joblib.dump."
            )
        found["classes_"] = {
            "dtype": classes.dtype.str,
            "values": encoded(classes.tolist(), "classes_"),
        }
    return found


def decoded_attributes(given: dict[str, Any], task: str) -> dict[str, Any]:
    """Fitted attributes, each of its kind, none missing and none more."""
    expected = {*FITTED} - {"feature_names_in_"}
    expected ^= {"classes_"} if task == "classification" else {"temperature_"}
    if given.keys() - {"feature_names_in_"} != expected:
        raise TypeError(f"fitted has the keys {sorted(given)}")
    found = {}
    for name, value in given.items():
        if name == "classes_":
            found[name] = _decoded_classes(value)
        elif FITTED[name](value):
            found[name] = value
        else:
            raise TypeError(f"{name} is {value!r}")
    if "feature_names_in_" in found:
        found["feature_names_in_"] = np.array(found["feature_names_in_"], dtype=object)
    return found


def _decoded_classes(given: Any) -> np.ndarray:
    """Sorted labels of the type that they had in fit."""
    dtype, values = given["dtype"], given["values"]
    scalars = isinstance(values, list) and all(
        isinstance(value, str | int | float) for value in values
    )
    if given.keys() != {"dtype", "values"} or not scalars:
        raise TypeError(f"classes_ is {given!r}")
    if not re.fullmatch(r"\|O|\|b1|\|[iu]1|[<>][iuf][248]|[<>]U\d{1,6}", dtype):
        raise TypeError(f"classes_ has the type {dtype!r}")
    if np.dtype(dtype).itemsize * len(values) > _MOST_BYTES:
        raise TypeError(f"classes_ has the type {dtype!r}, too large for its labels")
    classes = np.array(values, dtype=dtype)
    if classes.tolist() != values or len(set(values)) != len(values) or len(values) < 2:
        raise TypeError(f"classes_ is {given!r}")
    return classes
