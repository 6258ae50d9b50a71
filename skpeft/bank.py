"""Many fitted estimators over the same texts, with one shared encoder."""

import threading

import numpy as np
from sklearn.exceptions import NotFittedError

from skpeft._base import BaseAdapterEstimator
from skpeft._data import check_samples
from skpeft._shared import SharedPass
from skpeft.encoders.base import same_features
from skpeft.heads import ask


class AdapterBank:
    """Predict several tasks over the same texts with one shared encoder.

    Texts are tokenised once and the frozen blocks below the lowest adapted one of all
    tasks run once; from there on each task has its own pass. Where all adapters are
    `LoRA`, whatever their ranks and layers, or none, they are stacked: rows of different
    tasks go through the blocks together, each with the update of its task.

    Parameters
    ----------
    estimators : dict of str to estimator
        Fitted `AdapterClassifier` and `AdapterRegressor` by the name of their task. Their
        encoder, its options, device and precision must be the same; adapters, layers and
        heads may differ. They are kept, not copied: one that is fitted again counts as it
        is now.

    Raises
    ------
    TypeError
        If `estimators` is no dict of names and estimators.
    sklearn.exceptions.NotFittedError
        If one is not fitted.
    ValueError
        If they differ in what must be the same.

    Examples
    --------
    >>> from skpeft import AdapterBank, AdapterClassifier, AdapterRegressor
    >>> texts = ["good film", "bad film", "good book", "bad book"]
    >>> tone = AdapterClassifier("tiny", random_state=0).fit(texts, ["+", "-", "+", "-"])
    >>> stars = AdapterRegressor("tiny", random_state=0).fit(texts, [5.0, 1.0, 4.0, 2.0])
    >>> bank = AdapterBank({"tone": tone, "stars": stars})
    >>> sorted(bank.predict(texts))
    ['stars', 'tone']
    >>> bank.predict(["good play", "bad play"], task=["tone", "tone"])
    array(['+', '-'], dtype=object)
    """

    def __init__(self, estimators):
        self.estimators = _checked(estimators)
        self._lock = threading.Lock()
        self._pass = None

    def predict(self, X, task=None):
        """Predict all tasks for each text, or for each text the one that is named.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.
        task : str, sequence of str of shape (n_samples,) or None, default=None
            Name of the task, one for all rows or one a row. None: all tasks.

        Returns
        -------
        dict of str to ndarray, or ndarray
            By task what `predict` of each estimator gives; with one `task` that of it. With
            a task for each row an array of shape (n_samples,) and dtype object, whose
            entries are arrays where an estimator predicts several labels or numbers.

        Raises
        ------
        ValueError
            If a task is not known, or there is not one for each row.
        """
        if task is None:
            return self._ask("predict", X, list(self.estimators))
        if isinstance(task, str):
            self._check_tasks([task])
            return self._ask("predict", X, [task])[task]
        samples = self._samples(X)
        names = np.asarray(task, dtype=object)
        if names.shape != (len(samples),):
            raise ValueError(
                f"task has shape {names.shape} for {len(samples)} rows; give one name, or "
                "one name a row."
            )
        self._check_tasks(names)
        every = np.arange(len(samples))
        features = self._features(samples, every, names)
        predictions = np.empty(len(samples), dtype=object)
        for name in dict.fromkeys(names):
            rows = np.flatnonzero(names == name)
            chosen = np.stack([features[row] for row in rows])
            found = self.estimators[name].head_.predict(chosen)
            for row, one in zip(
                rows, found if found.ndim == 2 else found.tolist(), strict=True
            ):
                predictions[row] = one
        return predictions

    def predict_proba(self, X):
        """Predict class probabilities of the tasks that have them.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.

        Returns
        -------
        dict of str to ndarray of shape (n_samples, n_classes)
            Columns in the order of the estimator's `classes_`; regressors are left out.
        """
        has = [n for n, e in self.estimators.items() if hasattr(e, "predict_proba")]
        return self._ask("predict_proba", X, has)

    def transform(self, X):
        """Adapted embeddings of each task.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.

        Returns
        -------
        dict of str to ndarray of shape (n_samples, dim)
            What `transform` of each estimator gives.
        """
        return self._all_features(X, list(self.estimators))

    def _ask(self, method, X, tasks):
        """Output of one method of each head."""
        features = self._all_features(X, tasks) if tasks else {}
        return {
            task: ask(self.estimators[task].head_, method, features[task])
            for task in tasks
        }

    def _all_features(self, X, tasks):
        samples = self._samples(X)
        rows = np.repeat(np.arange(len(samples)), len(tasks))
        found = self._features(
            samples, rows, np.array(tasks * len(samples), dtype=object)
        )
        return {task: np.stack(found[i :: len(tasks)]) for i, task in enumerate(tasks)}

    def _samples(self, X):
        _check_fitted(self.estimators)
        first = next(iter(self.estimators.values()))
        return check_samples(first, X, first._network.encoder.modality, reset=False)

    def _features(self, samples, rows, tasks):
        """Features of each pair of a row and a task, one array a pair."""
        _check_agree(self.estimators)
        with self._lock:
            used = {n: e._found_network().live for n, e in self.estimators.items()}
            items = next(iter(used.values())).prepare(samples)
            if self._pass is None or self._pass.is_stale(used):
                self._pass = SharedPass(used, items)
            return self._pass.features(items, rows, tasks)

    def _check_tasks(self, names):
        unknown = [name for name in dict.fromkeys(names) if name not in self.estimators]
        if unknown:
            raise ValueError(
                f"task holds {unknown}, which this bank does not have. Its tasks are "
                f"{sorted(self.estimators)}."
            )

    def __repr__(self):
        return f"AdapterBank({self.estimators!r})"

    def __getstate__(self):
        return {"estimators": self.estimators}

    def __setstate__(self, state):
        self.__init__(state["estimators"])


def _checked(estimators):
    """A dict of its own of fitted estimators over one encoder."""
    if not isinstance(estimators, dict) or not estimators:
        raise TypeError(
            f"{estimators!r} was given to AdapterBank; a dict of names and fitted estimators "
            "is expected, such as {'tone': clf}."
        )
    for name, estimator in estimators.items():
        if not isinstance(name, str) or not isinstance(estimator, BaseAdapterEstimator):
            raise TypeError(
                f"{name!r}: {estimator!r} was given to AdapterBank; a task has a str as "
                "name and is a fitted AdapterClassifier or AdapterRegressor, such as the last "
                "step of a pipeline."
            )
    _check_fitted(estimators)
    _check_agree(estimators)
    return dict(estimators)


def _check_fitted(estimators):
    """Raise a `NotFittedError` where a task's estimator is not fitted, or no longer."""
    for name, estimator in estimators.items():
        try:
            estimator._check_fitted()
        except NotFittedError as error:
            raise NotFittedError(
                f"The estimator of task {name!r} is not fitted. {error}"
            ) from error


def _check_agree(estimators):
    """Raise a `ValueError` where a task's encoder is not that of the first one."""
    (first, one), *others = ((n, e._network) for n, e in estimators.items())
    for name, other in others:
        if one.n_features != other.n_features:
            raise ValueError(
                f"The task {first!r} reads an X of {one.n_features} columns, a sample's "
                f"texts or numbers, and {name!r} one of {other.n_features}. A bank reads one "
                "X for all tasks: make one for each kind."
            )
        differs = [
            what
            for what in ("device", "precision")
            if getattr(one, what) != getattr(other, what)
        ]
        same = one.fingerprint == other.fingerprint
        if not (same and same_features(one.probe, other.probe)):
            differs.append("encoder or its options")
        if differs:
            raise ValueError(
                f"The tasks {first!r} and {name!r} differ in {', '.join(differs)}: "
                f"{one.encoder!r} and {other.encoder!r}. A bank runs one encoder for all; "
                "fit both on the same, with the same options, device and precision."
            )
