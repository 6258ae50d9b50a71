"""Estimators that choose their adapter by cross-validation."""

import sys
import time
from collections.abc import Iterable
from itertools import groupby, product
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
from joblib import effective_n_jobs
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.metrics import check_scoring
from sklearn.model_selection import PredefinedSplit, check_cv
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import indexable

from skpeft._data import split_by
from skpeft._validation import (
    Integral,
    Real,
    check_sample_weight,
    given_weights,
    warn,
)
from skpeft.classifier import AdapterClassifier
from skpeft.regressor import AdapterRegressor

_CHOSEN = ("adapter", "rank", "layers", "learning_rate")


def survivors(n_candidates, n_folds):
    """How many candidates are still there in each fold, the first to the last.

    The half of them that looks worst is left out after fold 1, 3, 7 and so on: each round
    has twice the folds of the one before and half its candidates, so as many fits, as in
    sequential halving [1]_.

    Parameters
    ----------
    n_candidates, n_folds : int
        How many there are of each.

    Returns
    -------
    list of int
        One number for each fold.

    References
    ----------
    .. [1] Karnin, Koren and Somekh (2013). Almost Optimal Exploration in Multi-Armed
       Bandits. ICML.
    """
    rounds = [(fold + 1).bit_length() - 1 for fold in range(n_folds)]
    return [-(-n_candidates // 2**n_halvings) for n_halvings in rounds]


class BaseAdapterCV:
    """What the estimators with cross-validation add to those without.

    Their `fit` takes no validation rows: the folds are the evidence.
    """

    _kind: ClassVar[type]

    @staticmethod
    def _constraints(kind):
        """Parameter constraints: those of one estimator, and of the search over it."""
        chosen = {*_CHOSEN, "warm_start"}
        shared = {
            n: c for n, c in kind._parameter_constraints.items() if n not in chosen
        }
        lists = ("adapters", "ranks", "layers", "learning_rates")
        return {
            **shared,
            **{name: ["array-like"] for name in lists},
            "cv": ["cv_object"],
            "scoring": [str, callable, None],
            "refit": ["boolean"],
            "eliminate": ["boolean"],
            "n_jobs": [Integral, None],
        }

    def fit(self, X, y=None, sample_weight=None, *, groups=None):
        """Cross-validate the candidates, then fit the best on all rows.

        If an error is raised, an earlier fit stays as it was. Ctrl-C during the search
        ends it and leaves the object unfitted. Ctrl-C while the last fit trains its
        adapters ends that training and keeps the best state so far, except in what
        `clone` has made.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As for the estimator without cross-validation.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows in every fit; scores do not use them. Rows of weight 0 are
            removed before the folds are made, or from the folds that `cv` lists.
        groups : array-like of shape (n_samples,) or None, default=None
            Groups of rows, for splitters that keep these together.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter, X, y or a weight is invalid.
        TypeError
            If X is no sequence of samples.
        """
        self._validate_params()
        try:
            learned = self._search(X, y, sample_weight, groups)
        except KeyboardInterrupt:  # this fit was wanted, not an earlier one
            self._forget()
            raise
        self._forget()
        vars(self).update(learned)
        return self

    def _search(self, X, y, sample_weight, groups):
        """Fitted attributes; nothing of the object is changed before all is done."""
        candidates = self._candidates()
        model = self._model(candidates[0])
        learned, data = self._learned_of_input(model, X, y, sample_weight)
        X, groups = indexable(X, groups)
        kept = np.flatnonzero(check_sample_weight(sample_weight, X))
        n_rows, X = len(X), _safe_indexing(X, kept)
        folds = self._folds(n_rows, kept, X, data.y, groups)
        y = _plain(y, data.y, kept)
        scorer = check_scoring(model, self.scoring)
        results = self._race(candidates, X, y, data.weights, folds, scorer)
        best = int(results["rank_test_score"].argmin())
        learned |= {
            "n_splits_": len(folds),
            "cv_results_": results,
            "best_index_": best,
            "best_params_": candidates[best],
            "best_score_": results["mean_test_score"][best],
        }
        if self.refit:
            learned |= self._refit(candidates[best], X, y, data.weights)
        return learned

    @staticmethod
    def _learned_of_input(model, X, y, sample_weight):
        """Refuse what every fold would; what the columns of X teach, and rows that count."""
        from skpeft.encoders import resolve_encoder

        modality = resolve_encoder(model.encoder).modality
        data = model._check_rows(X, y, sample_weight, modality, reset=True)
        model._learn_target(data.y, getattr(y, "columns", None))
        return _learned(model), data

    def _folds(self, n_rows, kept, X, y, groups):
        """Places of the training rows and of the held-out ones among those that are kept."""
        cv = check_cv(self.cv, y, classifier=self._task == "classification")
        place = np.arange(len(kept))
        if isinstance(self.cv, Iterable | PredefinedSplit):  # has numbers of all rows
            place = np.full(n_rows, -1)
            place[kept] = np.arange(len(kept))
            splits = cv.split()
        else:
            groups = None if groups is None else _safe_indexing(groups, kept)
            splits = split_by(cv, X, y, groups)
        folds = [[place[np.asarray(rows)] for rows in parts] for parts in splits]
        folds = [[rows[rows >= 0] for rows in parts] for parts in folds]
        if not folds:
            raise ValueError(f"cv={self.cv!r} gives no folds. Give at least one.")
        for i, (train, test) in enumerate(folds):
            self._check_fold(i, train, test, y)
        return folds

    def _check_fold(self, i, train, test, y):
        """Refuse a fold from which nothing can be learned, or seen."""
        if not (len(train) and len(test)):
            raise ValueError(
                f"Fold {i} of cv has {len(train)} rows to train on and {len(test)} to "
                "score, where rows of weight 0 do not count. Give folds that have both."
            )
        if self._task == "classification" and y.ndim == 1:
            classes = np.unique(y[train])
            if len(classes) < 2:
                raise ValueError(
                    f"The {len(train)} training rows of fold {i} hold one class only, "
                    f"{classes.tolist()}. Give more rows of the others, or folds that have "
                    "them."
                )

    def _refit(self, params, X, y, sample_weight):
        """Fitted attributes of one candidate on all rows, and that candidate itself."""
        start = time.perf_counter()
        best = self._model(params)
        best._keeps_interrupted = self._keeps_interrupted
        if hasattr(self, "_skl_callbacks"):  # scikit-learn's watch the last fit
            best.set_callbacks(*self._skl_callbacks)
        best.fit(X, y, sample_weight)
        own = {"best_estimator_": best, "refit_time_": time.perf_counter() - start}
        return {**_learned(best), **own}

    def _candidates(self):
        """All combinations; an adapter whose capacity is not free takes no rank."""
        from skpeft.adapters import takes_rank

        choices = [
            (
                [adapter],
                self.ranks if takes_rank(adapter) else [None],
                ["auto"] if adapter is None else self.layers,
                [None] if adapter is None else self.learning_rates,
            )
            for adapter in self.adapters
        ]
        if not choices or not all(len(values) for of in choices for values in of):
            raise ValueError(
                "adapters, ranks, layers and learning_rates must each hold at least one "
                "value, so that there is a candidate. Leave them out for their defaults."
            )
        found = [
            dict(zip(_CHOSEN, values, strict=True))
            for of in choices
            for values in product(*of)
        ]
        for params in found:
            try:
                self._model(params)._validate_params()
            except ValueError as error:
                raise type(error)(
                    f"The candidate {params} cannot be fitted: {error} Each entry of "
                    "adapters, ranks, layers and learning_rates is one value to be tried."
                ) from error
        return found

    def _model(self, params):
        """Unfitted estimator of one candidate."""
        shared = self._kind().get_params(deep=False)
        own = self.get_params(deep=False)
        given = {n: own[n] for n in shared if n in own and n not in _CHOSEN}
        return self._kind(**given, **params).__sklearn_clone__()

    def _race(self, candidates, X, y, sample_weight, folds, scorer):
        """Scores fold by fold, of fewer candidates each time if some are eliminated."""
        shape = len(candidates), len(folds)
        scores, seconds = np.full(shape, np.nan), np.full((2, *shape), np.nan)
        failed = np.zeros(shape, dtype=bool)
        n_left = [len(candidates)] * len(folds)
        if self.eliminate:
            n_left = survivors(*shape)
        order = np.arange(len(candidates))
        for some in self._rounds(n_left):
            if some[0]:
                means = scores[order, : some[0]].mean(axis=1)
                order = order[np.argsort(-means, kind="stable")[: n_left[some[0]]]]
            cases = [(i, j) for i in some for j in order]
            data = X, y, sample_weight
            trials = (
                Trial(self._quiet(candidates[j]), data, folds[i]) for i, j in cases
            )
            errors = {}
            for (i, j), (score, times, error) in zip(
                cases,
                Parallel(n_jobs=self.n_jobs)(delayed(t.run)(scorer) for t in trials),
                strict=True,
            ):
                scores[j, i], seconds[:, j, i] = score, times
                self._tell(i, len(folds), candidates[j], score, sum(times))
                if error is not None:
                    failed[j, i] = True
                    errors.setdefault(j, (i, error))
            some_out = self.eliminate and len(order) < len(candidates)
            order = order[~failed[order].any(axis=1)]
            _tell_failures(candidates, errors, len(order), some_out)
        return _results(candidates, scores, seconds, failed)

    def _quiet(self, params):
        """Unfitted estimator of one candidate, for a trial, of which the search tells."""
        return self._model(params).set_params(verbose=max(int(self.verbose) - 1, 0))

    def _tell(self, fold, n_folds, params, score, seconds):
        """One line about a trial."""
        if self.verbose:
            what = f"fold {fold + 1} of {n_folds}, {params}: {score:.3f} in {seconds:.1f} s"
            sys.stderr.write(f"{type(self).__name__}: {what}\n")

    def _rounds(self, n_left):
        """Numbers of the folds between two eliminations, or one by one."""
        folds = range(len(n_left))
        if effective_n_jobs(self.n_jobs) == 1:
            return [[fold] for fold in folds]
        return [list(some) for _, some in groupby(folds, n_left.__getitem__)]

    def score(self, X, y, sample_weight=None):
        """Score of the best estimator, by `scoring`.

        Parameters
        ----------
        X : sequence of samples
            As in `fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, if `scoring` takes them.

        Returns
        -------
        float
            By `scoring`; without it accuracy of a classifier, R² of a regressor.
        """
        self._found_network()
        return check_scoring(self.best_estimator_, self.scoring)(
            self.best_estimator_, X, y, **given_weights(sample_weight)
        )

    def _found_network(self):
        """As of all estimators; it is the best one's too, which learns of another place."""
        self._check_fitted()
        self.best_estimator_.device = self.device
        try:
            return self.best_estimator_._found_network()
        except OSError:
            network = super()._found_network()
            self.best_estimator_.encoder = self.encoder
            return network

    def _check_fitted(self):
        if hasattr(self, "cv_results_") and not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "refit=False was given, so the candidates were compared and none was fitted "
                "on all rows. Use refit=True, or fit an estimator with best_params_."
            )
        super()._check_fitted()

    def save_pretrained(self, folder):
        """Save the best estimator as a folder without pickle.

        Parameters
        ----------
        folder : str or path
            As for the estimator without cross-validation, which reads it too, with its
            `from_pretrained`.
        """
        self._found_network()
        self.best_estimator_.save_pretrained(folder)


def _plain(y, checked, kept):
    """Targets of the kept rows in types of numpy; a frame stays one for its names."""
    if checked.ndim == 1 or not hasattr(y, "columns"):
        return checked
    y = _safe_indexing(y, kept)
    return y.astype(checked.dtype) if hasattr(y, "astype") else y


def _learned(estimator):
    """What a fit has left in an estimator."""
    private = ("_network", "_n_features_out")
    return {n: v for n, v in vars(estimator).items() if n.endswith("_") or n in private}


def _tell_failures(candidates, errors, n_left, some_out):
    """Warn of candidates that failed, with fold and error; raise where none is left."""
    last, raised = np.inf, None
    if errors and not n_left:
        last, raised = max(errors.values(), key=itemgetter(0))
    for i, (fold, error) in errors.items():
        if fold < last:
            message = f"The candidate {candidates[i]} failed in fold {fold} and is out: {error}"
            warn(message, FitFailedWarning)
    if raised is not None:
        if some_out:
            raised.add_note(
                f"All candidates still in the race have failed after fold {last}; others were "
                "out before. eliminate=False runs each on all folds until it fails."
            )
        raise raised


class Trial(NamedTuple):
    """A candidate in a fold: an unfitted model, (X, y, weights), and numbers of rows."""

    model: Any
    data: tuple
    fold: tuple

    def run(self, scorer):
        """Score, seconds of fit and of scoring, and what went wrong."""
        train, test = self.fold
        model, start = self.model, time.perf_counter()
        try:
            model.fit(*self._rows(train))
            between = time.perf_counter()
            X, y, _ = self._rows(test)
            given = scorer(model, X, y)
            try:
                score = float(given)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"scoring returned {given!r:.80}; one number is expected, by which the "
                    "candidates are compared."
                ) from error
            if np.isnan(score):
                raise ValueError(
                    f"The score on {len(test)} held-out rows is NaN. Use a scoring that is "
                    "defined for the rows of every fold, or other folds."
                )
        except Exception as error:  # this candidate is out, with a warning
            return np.nan, (np.nan, np.nan), error
        return score, (between - start, time.perf_counter() - between), None

    def _rows(self, rows):
        """X, y and weights of some rows."""
        return [
            None if values is None else _safe_indexing(values, rows)
            for values in self.data
        ]


def _moments(values):
    """Mean and standard deviation of each row, but for NaN; NaN where there is nothing."""
    known = ~np.isnan(values)
    n_known = known.sum(axis=1)
    with np.errstate(invalid="ignore"):  # of nothing, and of infinite scores
        means = np.where(known, values, 0).sum(axis=1) / n_known
        squares = np.where(known, values - means[:, None], 0) ** 2
        return means, np.sqrt(squares.sum(axis=1) / n_known)


def _is_number(value):
    return isinstance(value, Integral | Real) and not isinstance(value, bool)


def _results(candidates, scores, seconds, failed):
    """Scores and seconds in the form of `cv_results_`; NaN where there is none."""
    results = {"params": candidates}
    for name in _CHOSEN:
        values = [params[name] for params in candidates]
        dtype = np.result_type(*values) if all(map(_is_number, values)) else object
        results[f"param_{name}"] = np.ma.empty(len(values), dtype)
        for i, value in enumerate(values):  # of which one may be a list
            results[f"param_{name}"][i] = value
    n_folds = (failed | ~np.isnan(scores)).sum(axis=1)
    for i, column in enumerate(scores.T):
        results[f"split{i}_test_score"] = column
    times = zip(("fit_time", "score_time"), seconds, strict=True)
    for name, values in [("test_score", scores), *times]:
        results[f"mean_{name}"], results[f"std_{name}"] = _moments(values)
    results["n_splits"] = n_folds
    # First who did not fail, then who was kept for more folds, then the higher mean.
    means = results["mean_test_score"]
    means = np.where(np.isnan(means), -np.inf, means)
    keys = list(zip(~failed.any(axis=1), n_folds, means, strict=True))
    ranks = [1 + sum(other > key for other in keys) for key in keys]
    results["rank_test_score"] = np.array(ranks, dtype=np.int32)
    return results


class AdapterClassifierCV(BaseAdapterCV, AdapterClassifier):  # type: ignore[misc]
    """Classifier of texts whose adapter is chosen by cross-validation.

    Every combination of `adapters`, `ranks`, `layers` and `learning_rates` is a candidate.
    Over the folds the candidates that look worst are left out, so that 4 of them in 5 folds
    take 10 fits instead of 20; the best is then fitted on all rows, and the object behaves
    as that `AdapterClassifier`.

    Parameters
    ----------
    encoder : str, SentenceTransformer or Encoder, \
            default="sentence-transformers/all-MiniLM-L6-v2"
        As in `AdapterClassifier`.
    adapters : sequence, default=("lora",)
        Values of `adapter` to be tried.
    ranks : sequence of int or None, default=(2, 4, 8, 16)
        Values of `rank`. An adapter without a capacity, one that starts
        from saved weights, or None, is tried once.
    layers : sequence, default=("auto",)
        Values of `layers`, each of which may be a sequence of indices.
    learning_rates : sequence of float or None, default=(None,)
        Values of `learning_rate`; None is the adapter's own.
    cv : int, splitter, iterable or None, default=None
        As in `GridSearchCV`: folds, stratified for classes; None: 5.
    scoring : str, callable or None, default=None
        As in `GridSearchCV`; None: accuracy.
    refit : bool, default=True
        Whether to fit the best candidate on all rows; without, nothing can be predicted.
    eliminate : bool, default=True
        Whether the half of the candidates with the lowest mean so far is left out of later
        folds, after fold 1, 3, 7 and so on [1]_. False: the scores are those of
        `GridSearchCV`, all of them, where no weights are given.
    n_jobs : int or None, default=None
        Processes in which the fits between two eliminations run, as in `GridSearchCV`. None:
        one by one, unless inside `joblib.parallel_config`.
    objective, head, class_weight, label_texts : object
        As in `AdapterClassifier`, for every candidate.
    max_epochs, batch_size, weight_decay, warmup_fraction, shrinkage : object
        As in `AdapterClassifier`.
    early_stopping, validation_fraction, n_iter_no_change, tol : object
        As in `AdapterClassifier`.
    random_state : int, RandomState or None, default=None
        As in `AdapterClassifier`, for every fit.
    verbose : int, default=0
        0 is silent; 1 tells score and seconds of each fit of the search, and then of the
        last fit as `AdapterClassifier` does; 2 of all fits as that does.
    callback, device, precision : object
        As in `AdapterClassifier`.

    Attributes
    ----------
    cv_results_ : dict of str to ndarray
        As of `GridSearchCV`: "params", "param_rank" and so on, "split0_test_score" and so
        on, "mean_test_score", "rank_test_score", and seconds. A fold that a candidate
        was left out of has NaN; "n_splits" is the number of folds that it was in.
    best_params_ : dict
        The chosen "adapter", "rank", "layers" and "learning_rate".
    best_score_ : float
        Mean score of the chosen candidate over all folds.
    best_index_ : int
        Its place in `cv_results_`.
    best_estimator_ : AdapterClassifier
        The chosen candidate, fitted on all rows. Its fitted attributes, such as
        `classes_` and `head_`, are those of this object too.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds of the last fit.

    See Also
    --------
    AdapterClassifier : One adapter.
    sklearn.model_selection.GridSearchCV : Search over any parameter.

    References
    ----------
    .. [1] Karnin, Koren and Somekh (2013). Almost Optimal Exploration in Multi-Armed
       Bandits. ICML.

    Examples
    --------
    >>> from skpeft import AdapterClassifierCV
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
    >>> clf = AdapterClassifierCV("tiny", ranks=(2, 4), cv=2, random_state=0)
    >>> clf.fit(texts, ["air", "air", "stay", "stay"]).best_params_["rank"]
    2
    """

    _kind = AdapterClassifier
    _parameter_constraints: ClassVar[dict] = BaseAdapterCV._constraints(
        AdapterClassifier
    )

    def __init__(
        self,
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        *,
        adapters=("lora",),
        ranks=(2, 4, 8, 16),
        layers=("auto",),
        learning_rates=(None,),
        cv=None,
        scoring=None,
        refit=True,
        eliminate=True,
        n_jobs=None,
        objective="auto",
        head=None,
        class_weight=None,
        label_texts=None,
        max_epochs=None,
        batch_size=None,
        weight_decay=0.01,
        warmup_fraction=0.1,
        shrinkage="auto",
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=5,
        tol=1e-4,
        random_state=None,
        verbose=0,
        callback=None,
        device="auto",
        precision="auto",
    ):
        self.encoder = encoder
        self.adapters = adapters
        self.ranks = ranks
        self.layers = layers
        self.learning_rates = learning_rates
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.eliminate = eliminate
        self.n_jobs = n_jobs
        self.objective = objective
        self.head = head
        self.class_weight = class_weight
        self.label_texts = label_texts
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.shrinkage = shrinkage
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback
        self.device = device
        self.precision = precision


class AdapterRegressorCV(BaseAdapterCV, AdapterRegressor):  # type: ignore[misc]
    """Regressor of texts whose adapter is chosen by cross-validation.

    Every combination of `adapters`, `ranks`, `layers` and `learning_rates` is a candidate.
    Over the folds the candidates that look worst are left out, so that 4 of them in 5 folds
    take 10 fits instead of 20; the best is then fitted on all rows, and the object behaves
    as that `AdapterRegressor`.

    Parameters
    ----------
    encoder : str, SentenceTransformer or Encoder, \
            default="sentence-transformers/all-MiniLM-L6-v2"
        As in `AdapterRegressor`.
    adapters : sequence, default=("lora",)
        Values of `adapter` to be tried.
    ranks : sequence of int or None, default=(2, 4, 8, 16)
        Values of `rank`. An adapter without a capacity, one that starts
        from saved weights, or None, is tried once.
    layers : sequence, default=("auto",)
        Values of `layers`, each of which may be a sequence of indices.
    learning_rates : sequence of float or None, default=(None,)
        Values of `learning_rate`; None is the adapter's own.
    cv : int, splitter, iterable or None, default=None
        As in `GridSearchCV`: folds; None: 5.
    scoring : str, callable or None, default=None
        As in `GridSearchCV`; None: R2.
    refit : bool, default=True
        Whether to fit the best candidate on all rows; without, nothing can be predicted.
    eliminate : bool, default=True
        Whether the half of the candidates with the lowest mean so far is left out of later
        folds, after fold 1, 3, 7 and so on [1]_. False: the scores are those of
        `GridSearchCV`, all of them, where no weights are given.
    n_jobs : int or None, default=None
        Processes in which the fits between two eliminations run, as in `GridSearchCV`. None:
        one by one, unless inside `joblib.parallel_config`.
    objective, head : object
        As in `AdapterRegressor`, for every candidate.
    max_epochs, batch_size, weight_decay, warmup_fraction, shrinkage : object
        As in `AdapterRegressor`.
    early_stopping, validation_fraction, n_iter_no_change, tol : object
        As in `AdapterRegressor`.
    random_state : int, RandomState or None, default=None
        As in `AdapterRegressor`, for every fit.
    verbose : int, default=0
        0 is silent; 1 tells score and seconds of each fit of the search, and then of the
        last fit as `AdapterRegressor` does; 2 of all fits as that does.
    callback, device, precision : object
        As in `AdapterRegressor`.

    Attributes
    ----------
    cv_results_ : dict of str to ndarray
        As of `GridSearchCV`: "params", "param_rank" and so on, "split0_test_score" and so
        on, "mean_test_score", "rank_test_score", and seconds. A fold that a candidate
        was left out of has NaN; "n_splits" is the number of folds that it was in.
    best_params_ : dict
        The chosen "adapter", "rank", "layers" and "learning_rate".
    best_score_ : float
        Mean score of the chosen candidate over all folds.
    best_index_ : int
        Its place in `cv_results_`.
    best_estimator_ : AdapterRegressor
        The chosen candidate, fitted on all rows. Its fitted attributes, such as
        `head_`, are those of this object too.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds of the last fit.

    See Also
    --------
    AdapterRegressor : One adapter.
    sklearn.model_selection.GridSearchCV : Search over any parameter.

    References
    ----------
    .. [1] Karnin, Koren and Somekh (2013). Almost Optimal Exploration in Multi-Armed
       Bandits. ICML.

    Examples
    --------
    >>> from skpeft import AdapterRegressorCV
    >>> texts = ["one", "one one", "one one one", "one one one one"]
    >>> reg = AdapterRegressorCV("tiny", ranks=(2, 4), cv=2, random_state=0)
    >>> sorted(reg.fit(texts, [1, 2, 3, 4]).best_params_)
    ['adapter', 'layers', 'learning_rate', 'rank']
    """

    _kind = AdapterRegressor
    _parameter_constraints: ClassVar[dict] = BaseAdapterCV._constraints(
        AdapterRegressor
    )

    def __init__(
        self,
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        *,
        adapters=("lora",),
        ranks=(2, 4, 8, 16),
        layers=("auto",),
        learning_rates=(None,),
        cv=None,
        scoring=None,
        refit=True,
        eliminate=True,
        n_jobs=None,
        objective="auto",
        head=None,
        max_epochs=None,
        batch_size=None,
        weight_decay=0.01,
        warmup_fraction=0.1,
        shrinkage="auto",
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=5,
        tol=1e-4,
        random_state=None,
        verbose=0,
        callback=None,
        device="auto",
        precision="auto",
    ):
        self.encoder = encoder
        self.adapters = adapters
        self.ranks = ranks
        self.layers = layers
        self.learning_rates = learning_rates
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.eliminate = eliminate
        self.n_jobs = n_jobs
        self.objective = objective
        self.head = head
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.shrinkage = shrinkage
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback
        self.device = device
        self.precision = precision
