"""Parameter constraints and error messages, shared by estimators and specs.

The only file that imports private names of scikit-learn.
"""

from difflib import get_close_matches
from numbers import Integral, Real

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
    "check_sample_weight",
    "one_of",
    "validate_spec",
]


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
    validate_parameter_constraints(
        spec._parameter_constraints, spec.get_params(deep=False), type(spec).__name__
    )


def one_of(name, options, what):
    """Message for an unknown name: what was given, what exists, the nearest one."""
    options = sorted(options)
    near = get_close_matches(str(name), options, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is not a known {what}; expected one of {options}.{hint}"
