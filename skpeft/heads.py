"""Heads fitted on adapted features, and the closed-form start of a jointly trained one."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

# Strength of the penalty on features of unit mean square norm around their mean.
_C = 10.0
# The start of training must leave something to learn: a probe that fits the rows does not.
_START_ALPHA = 30.0
_ALPHAS = np.logspace(-3, 3, 13)
# Rows that are copied at a time: a copy of all rows would fill the memory.
_ROWS_AT_ONCE = 1024


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

    For labels it is turned from shares into log odds, to first order around the share of
    each label: a layer that took all labels for likely would push the features of all
    rows the same way.

    Parameters
    ----------
    features : ndarray of shape (n_samples, dim)
        Features before training.
    targets : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Class indices, which are regressed as indicators; indicators of labels; or
        standardised numbers.
    weights : ndarray of shape (n_samples,)
        Row weights.
    task : {"classification", "multi-label classification", "regression"}
        What the targets are.
    """
    centre = _centre(features, weights)
    scale = feature_scale(features, weights)
    outputs = (
        np.eye(int(targets.max()) + 1)[targets]
        if task == "classification"
        else targets.reshape(len(targets), -1)
    )
    unit = features - centre  # in place from here on: of many rows, copies fill memory
    unit /= scale
    ridge = Ridge(_START_ALPHA, copy_X=False).fit(unit, outputs, sample_weight=weights)
    coef = np.reshape(ridge.coef_, (outputs.shape[1], -1))
    intercept = np.reshape(ridge.intercept_, -1)
    if task == "multi-label classification":
        share = (intercept * len(features) + 0.5) / (len(features) + 1)
        coef, intercept = coef / (share * (1 - share))[:, None], logit(share)
    return Start(centre, scale, coef, intercept)


def feature_scale(features: np.ndarray, weights: np.ndarray) -> float:
    """Root of the mean square distance of features from their mean; 1 if that is 0.

    If one row has nearly all of the weight, the weighted distance is nearly 0; so at
    least a thousandth of the distance without weights is returned.
    """
    centre, square, plain = _centre(features, weights), 0.0, 0.0
    for rows in gen_batches(len(features), _ROWS_AT_ONCE):
        off = features[rows] - centre
        each = np.einsum("ij,ij->i", off, off, dtype=np.float64)
        square += each @ weights[rows]
        plain += each.sum()
    least = 1e-6 * plain / len(features)
    return float(np.sqrt(max(square / weights.sum(), least))) or 1.0


def _centre(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of features, in their own number type."""
    total = np.einsum("ij,i->j", features, weights, dtype=np.float64)
    return (total / weights.sum()).astype(features.dtype)


class LabelwiseLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regressions, one a label, as one linear model.

    A label that all training rows have, or none, gets no coefficients and as intercept
    the log odds of its share, with half a row added on either side.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty on the coefficients, the same for each label.
    max_iter : int, default=1000
        Steps of the solver at most.

    Attributes
    ----------
    coef_ : ndarray of shape (n_labels, dim)
        Coefficients.
    intercept_ : ndarray of shape (n_labels,)
        Intercepts.
    classes_ : ndarray of shape (n_labels,)
        Numbers of the labels.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 1000) -> None:
        self.C = C
        self.max_iter = max_iter

    def fit(self, X, y, sample_weight=None):
        """Fit to indicators `y` of shape (n_samples, n_labels)."""
        weights = np.ones(len(X)) if sample_weight is None else sample_weight
        fits = [self._fit_label(X, label, weights) for label in np.transpose(y)]
        self.coef_, self.intercept_ = map(np.stack, zip(*fits, strict=True))
        self.classes_ = np.arange(len(fits))
        self.n_features_in_ = X.shape[1]
        return self

    def _fit_label(self, X, y, weights):
        """Coefficients and intercept of one label."""
        if (y == y[0]).all():
            return np.zeros(X.shape[1]), logit((y.sum() + 0.5) / (len(y) + 1))
        fitted = LogisticRegression(C=self.C, max_iter=self.max_iter)
        fitted.fit(X, y, sample_weight=weights)
        return fitted.coef_[0], fitted.intercept_[0]

    def decision_function(self, X):
        """Log odds, of shape (n_samples, n_labels)."""
        check_is_fitted(self)
        return X @ self.coef_.T + self.intercept_

    def predict_proba(self, X):
        """Probability of each label, of shape (n_samples, n_labels)."""
        return expit(self.decision_function(X))

    def predict(self, X):
        """Indicators of the labels, of shape (n_samples, n_labels)."""
        return (self.decision_function(X) > 0).astype(np.int64)


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
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    weights : ndarray of shape (n_samples,)
        Row weights.
    frozen : ndarray of shape (n_samples, dim) or None
        Features before training, on which the penalty of a regressor is chosen, for each
        output by itself; without them it is fixed.
    task : {"classification", "multi-label classification", "regression"}
        What the targets are.
    """
    scale = feature_scale(features, weights)
    unit = weights.mean()  # of weights: the penalty must not depend on it
    if task in _CLASSIFIERS:
        return _CLASSIFIERS[task](C=_C / scale**2 / unit, max_iter=1000)
    if len(y) < 3 or frozen is None:
        return Ridge(alpha=scale**2 * unit)
    frozen_scale = feature_scale(frozen, weights)
    chosen = RidgeCV(_ALPHAS * len(y), alpha_per_target=y.ndim == 2)
    chosen.fit(frozen / frozen_scale, y, sample_weight=weights / unit)
    alpha = chosen.alpha_ if y.ndim == 2 else float(chosen.alpha_)
    return Ridge(alpha=alpha * scale**2 * unit)


_CLASSIFIERS = {
    "classification": LogisticRegression,
    "multi-label classification": LabelwiseLogisticRegression,
}


def weight_argument(head) -> str:
    """Name under which the fit of a head takes row weights.

    Raises
    ------
    ValueError
        If it takes none.
    """
    last, steps = head, []
    while isinstance(last, Pipeline | BaseSearchCV):
        if isinstance(last, Pipeline):
            steps.append(last.steps[-1][0])
            last = last.steps[-1][1]
        else:
            last = last.estimator
    if not has_fit_parameter(last, "sample_weight"):
        raise ValueError(
            f"sample_weight or class_weight was given, but head={head!r} takes no "
            "sample_weight in fit. Use a head that does, or leave the weights out."
        )
    if get_config()["enable_metadata_routing"]:
        return "sample_weight"  # for which the steps of a pipeline ask themselves
    return "__".join([*steps, "sample_weight"])


def fit_head(
    head,
    features: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
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
    weights : ndarray of shape (n_samples,) or None
        Row weights, which the head must take; None: no weights.

    Raises
    ------
    ValueError
        If the head takes no weights but has to, or not several targets.
    """
    given = {} if weights is None else {weight_argument(head): weights}
    try:
        return clone(head).fit(features, y, **given)
    except ValueError as error:
        if y.ndim == 1:
            raise
        raise ValueError(
            f"head={head!r} could not be fitted to targets of shape {y.shape} ({error}). A "
            "head for several targets is expected; OneVsRestClassifier and "
            "MultiOutputRegressor make one of any other."
        ) from error


def in_units(head: Ridge, mean: np.ndarray, scale: np.ndarray) -> None:
    """Turn a head of standardised numbers into one of the numbers themselves, in place.

    Parameters
    ----------
    head : Ridge
        Fitted to ``(y - mean) / scale``. In float64 from here on: a number may be large
        and its differences small, as those of dates are.
    mean, scale : ndarray of shape () or (n_outputs,)
        Of each number.
    """
    head.coef_ = (head.coef_.T * scale).T
    head.intercept_ = head.intercept_ * scale + mean


def ask(head, method: str, features) -> np.ndarray:
    """Output of one method of a fitted head, as one array.

    Forests and neighbours give a list of the probabilities of 0 and 1 for each label, or
    of only one of them where the training rows had no other. Of that comes the probability
    of 1, of shape (n_samples, n_labels).
    """
    outputs = getattr(head, method)(features)
    if not isinstance(outputs, list):
        return outputs
    if not all(np.isin(values, [0, 1]).all() for values in head.classes_):
        raise ValueError(
            f"{method} of {head!r} gives probabilities of several columns of classes, not of "
            "labels 0 and 1. Use one AdapterScores for each column of y."
        )
    pairs = zip(outputs, head.classes_, strict=True)
    return np.stack([p @ np.equal(values, 1) for p, values in pairs], axis=1)


def logits(head: LogisticRegression, features: np.ndarray) -> np.ndarray:
    """Log odds of each class or label, of shape (n_samples, n_outputs)."""
    scores = head.decision_function(features)
    return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores


def divide_logits(head: LogisticRegression, temperature: float) -> None:
    """Divide the logits of a fitted head by a temperature, in place [1]_.

    References
    ----------
    .. [1] Guo et al. (2017). On Calibration of Modern Neural Networks. ICML.
    """
    head.coef_ = head.coef_ / temperature
    head.intercept_ = head.intercept_ / temperature
