"""Scores of an estimator as features of another one, out of fold where rows were seen."""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import scipy.sparse
from sklearn import get_config
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier
from sklearn.model_selection import (
    KFold,
    StratifiedKFold,
    check_cv,
    cross_val_predict,
)
from sklearn.utils.validation import check_is_fitted

from skpeft._data import n_columns
from skpeft._validation import HasMethods, Integral, given_weights
from skpeft.heads import ask, one_array


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
        by class where there is one a row.
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
        """
        self._validate_params()
        if not hasattr(self.estimator, self._method):
            raise ValueError(
                f"estimator={self.estimator!r} has no {self._method}, whose output would be "
                "the features. Use a classifier, or a head, that has it."
            )
        self.estimator_ = clone(self.estimator).fit(
            X, y, **given_weights(sample_weight)
        )
        self._n_targets = n_columns(y)
        return self

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
        """
        self._validate_params()
        y = y.toarray() if scipy.sparse.issparse(y) else y
        cv = self.cv
        if isinstance(cv, Integral) and y is not None:
            cv = self._splitter(y)
        self.fit(X, y, sample_weight)
        splitter = check_cv(cv, y, classifier=is_classifier(self.estimator))
        scores = cross_val_predict(
            self._asking(sample_weight),
            X,
            y,
            cv=list(splitter.split(X, y, groups)),
            n_jobs=self.n_jobs,
            method=self._method,
            params=given_weights(sample_weight),
        )
        return _as_columns(
            one_array(scores, getattr(self.estimator_, "classes_", None))
        )

    def _asking(self, sample_weight):
        """The estimator, asking for weights that came where scikit-learn routes them."""
        routed = get_config()["enable_metadata_routing"] and sample_weight is not None
        if not (routed and hasattr(self.estimator, "set_fit_request")):
            return self.estimator
        return clone(self.estimator).set_fit_request(sample_weight=True)

    def _splitter(self, y):
        """Splitter into so many folds, if there are rows enough."""
        by_class = is_classifier(self.estimator) and n_columns(y) == 1
        kind = StratifiedKFold if by_class else KFold
        sizes = Counter(np.ravel(y).tolist()).values() if by_class else [len(y)]
        most = max(sizes, default=0)
        if self.cv > most:
            raise ValueError(
                f"cv={self.cv} folds are to be made, but the "
                f"{'largest class has' if by_class else 'data have'} {most} rows. Give a "
                "smaller cv, or more rows."
            )
        state = self.random_state if self.shuffle else None
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
    def _method(self):
        return "predict_proba" if is_classifier(self.estimator) else "predict"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.string = True
        return tags


def _as_columns(scores):
    return scores[:, None] if scores.ndim == 1 else scores
