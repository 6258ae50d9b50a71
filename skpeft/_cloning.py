"""Copies of an estimator that share a loaded model instead of duplicating it."""

import copy
from typing import ClassVar

from sklearn.base import BaseEstimator


class ByReference:
    """Mixin for estimators and specs whose parameters may hold a loaded model.

    `sklearn.base.clone` and `copy.deepcopy` copy every parameter value. A loaded
    encoder has to be shared instead: fifty clones must hold one encoder.
    Subclasses name the parameters in `_shared_parameters`; a value that is itself a
    spec (it has `get_params`) or plain text is still cloned as usual.
    """

    _shared_parameters: ClassVar[tuple[str, ...]] = ()

    def _shared_values(self):
        values = {name: getattr(self, name) for name in self._shared_parameters}
        return {
            name: value
            for name, value in values.items()
            if not (
                value is None or isinstance(value, str) or hasattr(value, "get_params")
            )
        }

    def __sklearn_clone__(self):
        shared = self._shared_values()
        bare = object.__new__(type(self))
        bare.__dict__.update(self.__dict__, **dict.fromkeys(shared))
        new = BaseEstimator.__sklearn_clone__(bare)
        for name, value in shared.items():
            setattr(new, name, value)
        return new

    def __copy__(self):
        new = object.__new__(type(self))  # not by way of the state for pickles
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo):
        memo.update({id(value): value for value in self._shared_values().values()})
        new = object.__new__(type(self))
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            new.__dict__[name] = copy.deepcopy(value, memo)
        return new
