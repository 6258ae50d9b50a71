"""Scores of an estimator as features of another one, out of fold where rows were seen."""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, get_tags, indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples, check_is_fitted

from skpeft._data import check_labels, n_columns, split_by
from skpeft._validation import HasMethods, Integral, given_weights, validate_spec, warn
from skpeft.heads import ask


class AdapterScores(TransformerMixin, BaseEstimator):
    """Turn an estimator's probabilities, or predictions, into features.

    Adapted features of training rows carry their labels, so that any model fitted on
    top trusts them blindly. This transformer gives scores instead: `fit_transform`
    gives those of each training row from an estimator that has not seen the row, as
    `sklearn.preprocessing.TargetEncoder` does; `transform` gives those of the estimator
    fitted on all rows.

    Parameters
    ----------
    estimator : estimator
        Classifier with `predict_proba`, or regressor; it is cloned.
    cv : int, cross-validation generator or iterable, default=5
        How `fit_transform` splits the rows; an int is the number of folds, stratified
        by class where there is one a row. Each row must be in exactly one test fold, as
        with `KFold`, `StratifiedKFold` or `GroupKFold`, which wants `groups`;
        `TimeSeriesSplit`, `ShuffleSplit` and `RepeatedKFold` are refused.
    shuffle : bool, default=True
        Whether rows are shuffled before they go into folds, where `cv` is an int.
    random_state : int, RandomState or None, default=None
        Decides the shuffling.
    n_jobs : int or None, default=None
        Folds fitted at the same time.

    Attributes
    ----------
    estimator_ : estimator
        Fitted on all rows.

    Examples
    --------
    >>> from skpeft import AdapterClassifier, AdapterScores
    >>> texts = ["good film", "bad film", "good book", "bad book"]
    >>> scores = AdapterScores(AdapterClassifier("tiny", random_state=0), cv=2)
    >>> scores.fit_transform(texts, ["+", "-", "+", "-"]).shape
    (4, 2)
    >>> scores.get_feature_names_out()
    array(['adapterscores_+', 'adapterscores_-'], dtype=object)
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "cv": ["cv_object"],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self, estimator, *, cv=5, shuffle=True, random_state=None, n_jobs=None
    ):
        self.estimator = estimator
        self.cv = cv
        self.shuffle = shuffle
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X, y, sample_weight=None, groups=None):
        """Fit the estimator on all rows.

        Parameters
        ----------
        X : sequence of samples
            As the estimator takes it.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, for the fit of the estimator.
        groups : array-like of shape (n_samples,) or None, default=None
            Ignored here; `fit_transform` gives them to `cv`.

        Returns
        -------
        self : object
            The fitted transformer.

        Raises
        ------
        ValueError
            If the estimator has nothing to give as scores.
        """
        validate_spec(self)
        return self._keep(self._fit_all(X, y, sample_weight), y)

    def transform(self, X):
        """Give scores of the estimator that was fitted on all rows.

        Parameters
        ----------
        X : sequence of samples
            New rows. For the rows given to `fit` use `fit_transform`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_outputs)
            Probabilities in the order of the classes or labels, or predictions.
        """
        check_is_fitted(self)
        return _as_columns(ask(self.estimator_, self._method, X))

    def fit_transform(self, X, y, sample_weight=None, groups=None):
        """Fit on all rows, and give each row's scores out of fold.

        Parameters
        ----------
        X : sequence of samples
            As the estimator takes it.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, for all fits of the estimator.
        groups : array-like of shape (n_samples,) or None, default=None
            For a `cv` that keeps rows of one group together, such as `GroupKFold`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_outputs)
            Probabilities in the order of the classes or labels, or predictions.

        Raises
        ------
        ValueError
            If `cv` does not test each row once, or the estimator has nothing to give.
        TypeError
            If X cannot be split into rows.
        """
        validate_spec(self)
        y = y.toarray() if scipy.sparse.issparse(y) else y
        splits = self._splits(X, y, groups)
        fitted = self._fit_all(X, y, sample_weight)
        scores = self._out_of_fold(fitted, X, y, sample_weight, splits)
        self._keep(fitted, y)
        return _as_columns(scores)

    def _fit_all(self, X, y, sample_weight):
        """A copy of the estimator, fitted on all rows."""
        if not hasattr(self.estimator, self._method):
            raise ValueError(
                f"estimator={self.estimator!r} has no {self._method}, whose output would be "
                "the features. Use a classifier, or a head, that has it."
            )
        return clone(self.estimator).fit(X, y, **given_weights(sample_weight))

    def _keep(self, fitted, y):
        self._n_targets = n_columns(y)
        self.estimator_ = fitted
        return self

    def _splits(self, X, y, groups):
        """Numbers of the training and of the test rows of each fold."""
        is_sequence = any(hasattr(X, n) for n in ("__getitem__", "shape", "__array__"))
        if isinstance(X, dict) or not is_sequence:
            raise TypeError(
                f"X is a {type(X).__name__}; a list, array, Series or frame is expected. "
                "Turn it into a list first."
            )
        cv = self.cv
        if isinstance(cv, Integral) and y is not None:
            cv = self._splitter(y)
        if is_classifier(self.estimator):
            check_labels(y)
        splitter = check_cv(cv, y, classifier=is_classifier(self.estimator))
        rows, splits = np.arange(_num_samples(X)), split_by(splitter, X, y, groups)
        try:
            splits = [(rows[train], rows[test]) for train, test in splits]
        except IndexError:  # of rows that there are not
            splits = []
        tested = np.concatenate([rows[:0], *(test for _, test in splits)])
        if not np.array_equal(np.sort(tested), rows):
            raise ValueError(
                f"cv={self.cv!r:.80} leaves rows without a score, or scores rows twice; "
                "each row must be in exactly one test fold. Give KFold, StratifiedKFold "
                "or GroupKFold (which wants groups=...)."
            )
        return splits

    def _out_of_fold(self, fitted, X, y, sample_weight, splits):
        """Scores of all rows, in the columns of the estimator fitted on all of them."""
        X, y = indexable(X, y)
        found = Parallel(n_jobs=self.n_jobs)(
            delayed(_score_fold)(
                clone(self.estimator), X, y, sample_weight, fold, self._method
            )
            for fold in splits
        )
        parts = [scores for scores, _ in found]
        if is_classifier(fitted):
            _tell_absent([classes for _, classes in found], fitted.classes_)
            parts = [_in_columns(*part, fitted.classes_) for part in found]
        tested = np.concatenate([test for _, test in splits])
        return np.concatenate(parts)[np.argsort(tested)]

    def _splitter(self, y):
        """Splitter into so many folds, if there are rows enough."""
        by_class = is_classifier(self.estimator) and n_columns(y) == 1
        kind = StratifiedKFold if by_class else KFold
        y = np.asarray(y)
        sizes = Counter(np.ravel(y).tolist()).values() if by_class else [len(y)]
        most = max(sizes, default=0)
        if self.cv > most:
            raise ValueError(
                f"cv={self.cv} folds are to be made, but the "
                f"{'largest class has' if by_class else 'data have'} {most} rows. Give a "
                "smaller cv, or more rows."
            )
        state = self.random_state if self.shuffle else None
        if self.shuffle and state is None:  # the global generator is left alone
            state = np.random.RandomState()
        return kind(self.cv, shuffle=self.shuffle, random_state=state)

    def get_feature_names_out(self, input_features=None):
        """Names of the columns: of the classes or labels, or of the predictions.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Ignored; the columns are scores.

        Returns
        -------
        ndarray of str
            One name a column.
        """
        check_is_fitted(self)
        n = self._n_targets
        ends: Iterable = (
            ["prediction"] if n == 1 else map("prediction{}".format, range(n))
        )
        if is_classifier(self.estimator_):
            classes = self.estimator_.classes_
            ends = range(n) if isinstance(classes, list) else classes
        return np.array([f"adapterscores_{end}" for end in ends], dtype=object)

    @property
    def n_features_in_(self):
        """Number of features seen by the fitted estimator."""
        check_is_fitted(self)
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self):
        """Names of features seen by the fitted estimator."""
        check_is_fitted(self)
        return self.estimator_.feature_names_in_

    @property
    def _method(self):
        return "predict_proba" if is_classifier(self.estimator) else "predict"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        inner = self.estimator
        if hasattr(inner, "__sklearn_tags__") and not isinstance(inner, type):
            tags.input_tags = get_tags(inner).input_tags
        # Of texts too: a pipeline does not tell what its first step takes.
        tags.input_tags.string = True
        return tags


def _as_columns(scores):
    return scores[:, None] if scores.ndim == 1 else scores


def _score_fold(estimator, X, y, sample_weight, fold, method):
    """Scores of the test rows by a fit on the others, and the classes of these."""
    train, test = fold
    samples, targets = _safe_split(estimator, X, y, train)
    unseen, _ = _safe_split(estimator, X, y, test, train)
    if np.ndim(sample_weight):
        sample_weight = _safe_indexing(sample_weight, train)
    estimator.fit(samples, targets, **given_weights(sample_weight))
    return ask(estimator, method, unseen), getattr(estimator, "classes_", None)


def _n_classes(classes):
    return sum(map(len, classes)) if isinstance(classes, list) else len(classes)


def _in_columns(scores, known, classes):
    """Scores in the columns of all classes: 0 where a fold did not know one."""
    if isinstance(classes, list) or len(known) == len(classes):
        return scores
    whole = np.zeros((len(scores), len(classes)), scores.dtype)
    whole[:, np.isin(classes, known)] = scores
    return whole


def _tell_absent(known, classes):
    """Warn of folds whose training rows lack a class."""
    n_short = sum(_n_classes(some) < _n_classes(classes) for some in known)
    if n_short:
        warn(
            f"The training rows of {n_short} of {len(known)} folds lack a class, whose "
            "probability is 0 in these folds. Give more rows of it, or another cv.",
            RuntimeWarning,
        )
