"""Heads fitted on adapted features, and the closed-form start of a jointly trained one."""

from typing import NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

# Strength of the penalty on features of unit mean square norm around their mean.
_C = 10.0
# The start of training must leave something to learn: a probe that fits the rows does not.
_START_ALPHA = 30.0
_ALPHAS = np.logspace(-3, 3, 13)


class Start(NamedTuple):
    """Linear map of features that were centred and divided by one number.

    Shapes: centre (dim,), coef (n_outputs, dim), intercept (n_outputs,).
    """

    centre: np.ndarray
    scale: float
    coef: np.ndarray
    intercept: np.ndarray


def closed_form(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, task: str
) -> Start:
    """Ridge regression on features, as the start of a linear layer.

    Parameters
    ----------
    features : ndarray of shape (n_samples, dim)
        Features before training.
    targets : ndarray of shape (n_samples,)
        Class indices, which are regressed as indicators, or standardised numbers.
    weights : ndarray of shape (n_samples,)
        Row weights.
    task : {"classification", "regression"}
        What the targets are.
    """
    centre = np.average(features, axis=0, weights=weights)
    scale = feature_scale(features, weights)
    outputs = (
        np.eye(int(targets.max()) + 1)[targets]
        if task == "classification"
        else targets[:, None]
    )
    ridge = Ridge(_START_ALPHA).fit(
        (features - centre) / scale, outputs, sample_weight=weights
    )
    coef = np.reshape(ridge.coef_, (outputs.shape[1], -1))
    return Start(centre, scale, coef, np.reshape(ridge.intercept_, -1))


def feature_scale(features: np.ndarray, weights: np.ndarray) -> float:
    """Root of the mean square distance of features from their mean; 1 if that is 0."""
    centre = np.average(features, axis=0, weights=weights)
    square = np.average(np.square(features - centre).sum(axis=1), weights=weights)
    return float(np.sqrt(square)) or 1.0


def default_head(
    features: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    frozen: np.ndarray | None,
    task: str,
):
    """Linear head whose penalty does not depend on how the training rows were adapted.

    Adapted training features look separable, so nothing is chosen on them.

    Parameters
    ----------
    features : ndarray of shape (n_samples, dim)
        Adapted features: only their scale is used.
    y : ndarray of shape (n_samples,)
        Targets.
    weights : ndarray of shape (n_samples,)
        Row weights.
    frozen : ndarray of shape (n_samples, dim) or None
        Features before training, on which the penalty of a regressor is chosen; without
        them it is fixed.
    task : {"classification", "regression"}
        What the targets are.
    """
    scale = feature_scale(features, weights)
    unit = weights.mean()  # of weights: the penalty must not depend on it
    if task == "classification":
        return LogisticRegression(C=_C / scale**2 / unit, max_iter=1000)
    if len(y) < 3 or frozen is None:
        return Ridge(alpha=scale**2 * unit)
    frozen_scale = feature_scale(frozen, weights)
    chosen = RidgeCV(_ALPHAS * len(y))
    chosen.fit(frozen / frozen_scale, y, sample_weight=weights / unit)
    return Ridge(alpha=float(chosen.alpha_) * scale**2 * unit)


def weight_argument(head) -> str:
    """Name under which the fit of a head takes row weights.

    Raises
    ------
    ValueError
        If it takes none.
    """
    last = head.steps[-1][1] if isinstance(head, Pipeline) else head
    if not has_fit_parameter(last, "sample_weight"):
        raise ValueError(
            f"sample_weight or class_weight was given, but head={head!r} takes no "
            "sample_weight in fit. Use a head that does, or leave the weights out."
        )
    step = f"{head.steps[-1][0]}__" if isinstance(head, Pipeline) else ""
    return f"{step}sample_weight"


def fit_head(
    head, features: np.ndarray, y: np.ndarray, weights: np.ndarray, weighted: bool
):
    """Fit a copy of a head on adapted features.

    Parameters
    ----------
    head : estimator
        Any scikit-learn classifier or regressor; it is cloned.
    features : ndarray of shape (n_samples, dim)
        Adapted features.
    y : ndarray of shape (n_samples,)
        Targets as the user gave them.
    weights : ndarray of shape (n_samples,)
        Row weights.
    weighted : bool
        Whether the user asked for weights, so that the head must take them.

    Raises
    ------
    ValueError
        If the head takes no weights but has to.
    """
    if not weighted:
        return clone(head).fit(features, y)
    return clone(head).fit(features, y, **{weight_argument(head): weights})


def logits(head: LogisticRegression, features: np.ndarray) -> np.ndarray:
    """Logarithms of the odds of each class, of shape (n_samples, n_classes)."""
    scores = head.decision_function(features)
    return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores


def temper(head: LogisticRegression, temperature: float) -> None:
    """Divide the logits of a fitted head by a temperature, in place [1]_.

    References
    ----------
    .. [1] Guo et al. (2017). On Calibration of Modern Neural Networks. ICML.
    """
    head.coef_ = head.coef_ / temperature
    head.intercept_ = head.intercept_ / temperature
