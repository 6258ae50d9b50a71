"""Parameter constraints, error messages and warnings, shared by estimators and specs.

The private names of scikit-learn that checks of parameters need are imported here.
"""

import inspect
import traceback
import warnings
from difflib import get_close_matches
from numbers import Integral, Real

from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = [
    "HasMethods",
    "Integral",
    "Interval",
    "Real",
    "StrOptions",
    "WithParameters",
    "check_matplotlib_support",
    "check_roles",
    "check_sample_weight",
    "check_start",
    "given_weights",
    "one_of",
    "validate_spec",
    "warn",
]


# Packages by way of which a user calls this one.
_BETWEEN = ("sklearn.", "joblib.")
# What has parameters of its own, by the parameter that takes it.
_OBJECTS = {
    "adapter": "LoRA() in place of 'lora'",
    "encoder": "TextEncoder(name) in place of the name",
    "objective": "Contrastive() in place of 'contrastive'",
    "head": "LogisticRegression()",
}


def validate_spec(spec):
    """Check the parameters of a spec against its `_parameter_constraints`.

    Parameters
    ----------
    spec : estimator without data
        An adapter, encoder or objective spec.

    Raises
    ------
    sklearn.utils._param_validation.InvalidParameterError
        A `ValueError` that names the parameter, what it may be and what was given.
    """
    given, constraints = spec.get_params(deep=False), spec._parameter_constraints
    validate_parameter_constraints(constraints, given, type(spec).__name__)
    for name, value in given.items():
        allowed = constraints.get(name, "no_validation")
        if allowed == "no_validation" or not isinstance(value, bool):
            continue
        if not {"boolean", "verbose"} & set(map(str, allowed)):
            raise ValueError(
                f"The {name!r} parameter of {type(spec).__name__} must be a number. Got "
                f"{value!r} instead."
            )


class WithParameters(BaseEstimator):
    """Base class of estimators and specs: a name that is not known gets the nearest one."""

    def set_params(self, **params):
        """Set parameters, those of a part as ``<part>__<parameter>``.

        Parameters
        ----------
        **params : dict
            Values by name.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If a name is not known, here or in a part; the object stays as it was then.
        """
        own = self.get_params(deep=False)
        for key in params:
            name, nested, _ = key.partition("__")
            if name not in own:
                raise ValueError(one_of(name, own, f"parameter of {self}"))
            part = params.get(name, own[name])
            if nested and not hasattr(part, "set_params"):
                advice = f"Set {name} itself."
                if name in _OBJECTS:
                    advice = f"Pass an object as {name}, such as {_OBJECTS[name]}."
                raise ValueError(
                    f"{key} was given, but {name}={part!r} has no parameters of its own. "
                    f"{advice}"
                )
        before = self.get_params()
        try:
            return super().set_params(**params)
        except Exception:
            super().set_params(**before)
            raise


def one_of(name, options, what):
    """Message for an unknown name: what was given, what exists, the nearest one."""
    options = sorted(options)
    # Names of classes are near too: "LayerNormTuning" to "layer_norm".
    bare = {option.replace("_", "").lower(): option for option in options}
    near = get_close_matches(str(name).replace("_", "").lower(), bare, n=1)
    hint = f" Did you mean {bare[near[0]]!r}?" if near else ""
    return f"{name!r} is not a known {what}; expected one of {options}.{hint}"


def given_weights(sample_weight):
    """Keyword arguments of a method that takes weights: none where there are none."""
    return {} if sample_weight is None else {"sample_weight": sample_weight}


def check_roles(spec):
    """Refuse a spec whose `roles` name nothing."""
    if not all(isinstance(role, str) for role in spec.roles):
        raise ValueError(
            f"roles={spec.roles!r} was given to {type(spec).__name__}; a sequence of names "
            "is expected, such as ['query', 'value']."
        )
    if not len(spec.roles):
        raise ValueError(
            f"roles={spec.roles!r} was given to {type(spec).__name__}, which would train "
            "nothing. Name at least one role, such as 'query', or use adapter=None."
        )


def check_start(spec):
    """Refuse a spec that stays as it starts, but starts as the identity."""
    if spec.frozen and spec.weights is None:
        name = type(spec).__name__
        raise ValueError(
            f"frozen=True was given to {name} without weights, so it would do nothing. "
            f"Use {name}.from_pretrained(folder, frozen=True), or adapter=None."
        )


def warn(message, category=UserWarning):
    """Issue a warning that points at the line of the user's code that called skpeft.

    Frames of scikit-learn and joblib in between, as in a search, are skipped.

    Parameters
    ----------
    message : str
        What was seen, and what to do.
    category : type, default=UserWarning
        Kind of the warning.
    """
    frames = traceback.walk_stack(inspect.currentframe())
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    place = max(i for i, name in enumerate(modules) if name.startswith("skpeft.")) + 1
    while place < len(modules) and modules[place].startswith(_BETWEEN):
        place += 1
    warnings.warn(message, category, stacklevel=place + 1)
