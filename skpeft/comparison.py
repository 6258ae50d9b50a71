"""Which way of adapting the encoder to use, tried on the user's own data."""

import ctypes
import gc
import io
import sys
import threading
from collections.abc import Mapping

import joblib
import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv, cross_validate
from sklearn.utils.multiclass import type_of_target

from skpeft._cache import STATES
from skpeft._data import split_by
from skpeft.classifier import AdapterClassifier
from skpeft.regressor import AdapterRegressor

_NAMES = {None: "linear probe", "auto": "adapters", "full": "full fine-tuning"}
_SAMPLING_SECONDS = 0.002


def compare_strategies(
    X, y, strategies=(None, "auto", "full"), *, estimator=None, cv=5, scoring=None,
    groups=None, verbose=0,
):  # fmt: skip
    """Fit ways of adapting an encoder by cross-validation, and measure what they cost.

    All are fitted on the same splits, one fit at a time. The encoder is loaded before
    anything is measured, and hidden states that earlier fits have kept are forgotten, so
    that the order of the strategies does not matter; a search over related strategies
    shares these states and costs less than the sum.

    Parameters
    ----------
    X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
        As in `AdapterClassifier.fit`.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    strategies : sequence or dict, default=(None, "auto", "full")
        What to compare: values of the parameter `adapter`, or estimators of any kind that
        read X, such as a pipeline with `TfidfVectorizer`. A dict names them.
    estimator : AdapterClassifier, AdapterRegressor or None, default=None
        Holds all other parameters; its `rank` goes to the adapters that have one. None:
        `AdapterRegressor` with its defaults where `y` holds fractions, else
        `AdapterClassifier`; for whole numbers as targets pass ``AdapterRegressor()``. Give
        it a `random_state` for equal results.
    cv : int, cross-validation generator or iterable, default=5
        As in `sklearn.model_selection.cross_validate`.
    scoring : str, callable or None, default=None
        One score, as in `cross_validate`; None is that of the estimator, accuracy or R².
    groups : array-like of shape (n_samples,) or None, default=None
        For a `cv` that keeps rows of one group together, such as `GroupKFold`.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar on stderr.

    Returns
    -------
    DataFrame
        One row a strategy, in the order given, with

        - mean_test_score, std_test_score: over the splits;
        - mean_fit_time, mean_score_time: seconds to fit, and to predict and score the
          held-out rows, of a split;
        - n_trained_params: trained weights of adapters, or encoder, and a linear head; NaN
          for estimators of others;
        - saved_bytes: size of the fitted model of the first split as joblib saves it;
        - peak_memory_bytes: what the process held at most while it fitted and scored one
          split, beyond what it held before. See Notes.

    Raises
    ------
    ImportError
        If pandas is not installed.
    ValueError
        If `strategies` is empty or names two alike, or `estimator` has no adapter.

    See Also
    --------
    StrategyDisplay : A picture of the result.

    Notes
    -----
    Memory is the resident set of this process, read every 2 milliseconds. Before each fit
    garbage is collected and, on Linux with glibc, memory that is free goes back to the
    system; elsewhere a fit may reuse memory that an earlier one freed, which is not
    counted, so that only the number of the first strategy is reliable. Peaks shorter
    than that, other processes and the memory of a GPU are not seen; other threads of
    this process are. The column is NaN where `psutil` is not installed.

    Examples
    --------
    >>> from skpeft import AdapterClassifier, compare_strategies
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"] * 2
    >>> labels = ["air", "air", "stay", "stay"] * 2
    >>> tiny = AdapterClassifier("tiny", max_epochs=2, random_state=0)
    >>> found = compare_strategies(
    ...     texts, labels, [None, "lora"], estimator=tiny, cv=2
    ... )
    >>> found.index.tolist()
    ['linear probe', 'lora']
    >>> found["n_trained_params"].is_monotonic_increasing
    True
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "compare_strategies gives a frame of pandas, which is not installed. Run: "
            "pip install pandas"
        ) from error
    from skpeft._training import Progress

    if estimator is None:
        numbers = type_of_target(y, input_name="y").startswith("continuous")
        estimator = AdapterRegressor() if numbers else AdapterClassifier()
    models = _models(strategies, estimator)
    if not (scoring is None or isinstance(scoring, str) or callable(scoring)):
        raise ValueError(
            f"scoring={scoring!r} was given; one score is expected, as a name or a callable."
        )
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    splits = split_by(splitter, X, y, groups)
    _warm_up(estimator, X, y, splits[0])
    rows = {}
    with Progress(
        total=len(models) * len(splits), unit="fit", disable=not verbose
    ) as bar:
        for name, model in models.items():
            bar.set_description(name)
            runs = []
            for split in splits:
                try:
                    runs.append(_run(model, X, y, split, scoring, size=not runs))
                except Exception as error:
                    error.add_note(f"This happened to the strategy {name!r}.")
                    raise
                bar.update()
            rows[name] = _summary(runs)
    results = pandas.DataFrame.from_dict(rows, orient="index")
    results.attrs["score_name"] = _score_name(scoring, estimator)
    return results.rename_axis("strategy")


def _models(strategies, estimator):
    """Unfitted models by name."""
    known = hasattr(estimator, "get_params") and not isinstance(estimator, type)
    if not known or "adapter" not in estimator.get_params():
        raise ValueError(
            f"estimator={estimator!r} was given; an AdapterClassifier or AdapterRegressor "
            "is expected, whose adapter is set. Others go into strategies by name."
        )
    if isinstance(strategies, str) or not hasattr(strategies, "__len__"):
        raise ValueError(
            f"strategies={strategies!r} was given; expected is a list of adapters and "
            "estimators, or a dict of name to one of these."
        )
    if not isinstance(strategies, Mapping):
        named = [(_name_of(strategy), strategy) for strategy in strategies]
        if len(dict(named)) < len(named):
            raise ValueError(
                f"strategies={strategies!r} holds two that are alike. Leave one out, or "
                "name them in a dict."
            )
        strategies = dict(named)
    if not strategies:
        raise ValueError("strategies is empty; give at least one, such as 'lora'.")
    return {
        str(name): clone(strategy)
        if hasattr(strategy, "fit")
        else _with_adapter(estimator, strategy)
        for name, strategy in strategies.items()
    }


def _with_adapter(estimator, adapter):
    """Unfitted copy with another adapter, and without a rank where that has none."""
    from skpeft.adapters import takes_rank

    rank = estimator.rank if takes_rank(adapter) else None
    return clone(estimator).set_params(adapter=adapter, rank=rank)


def _name_of(strategy):
    if strategy is None or isinstance(strategy, str):
        return _NAMES.get(strategy, strategy)
    return " ".join(repr(strategy).split())


def _warm_up(estimator, X, y, split):
    """Load libraries and encoder, so that no strategy is charged with it."""
    probe = clone(estimator).set_params(
        adapter=None, rank=None, head=None, verbose=0, warm_start=False
    )
    cross_validate(probe, X, y, cv=[split], error_score="raise")


def _run(model, X, y, split, scoring, *, size):
    """Fit and score on one split; what came out, and what it took."""
    STATES.clear()
    with PeakMemory() as memory:
        found = cross_validate(
            model, X, y, cv=[split], scoring=scoring, return_estimator=True,
            error_score="raise",
        )  # fmt: skip
    fitted = found["estimator"][0]
    return {
        "score": found["test_score"][0],
        "fit_time": found["fit_time"][0],
        "score_time": found["score_time"][0],
        "n_trained": _n_trained(fitted),
        "memory": memory.n_bytes,
        "saved": _saved_bytes(fitted) if size else np.nan,
    }


def _summary(runs):
    """One row of the result."""

    def column(name):
        return np.array([run[name] for run in runs], dtype=float)

    return {
        "mean_test_score": column("score").mean(),
        "std_test_score": column("score").std(),
        "mean_fit_time": column("fit_time").mean(),
        "mean_score_time": column("score_time").mean(),
        "n_trained_params": runs[0]["n_trained"],
        "saved_bytes": runs[0]["saved"],
        "peak_memory_bytes": column("memory").max(),
    }


def _n_trained(model):
    """Trained weights, those of a linear head counted."""
    if not hasattr(model, "n_trainable_params_"):
        return np.nan
    head = (getattr(model.head_, name, None) for name in ("coef_", "intercept_"))
    return model.n_trainable_params_ + sum(
        np.size(part) for part in head if part is not None
    )


def _saved_bytes(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    return file.tell()


def _score_name(scoring, estimator):
    if isinstance(scoring, str):
        return scoring
    if scoring is not None:
        return getattr(scoring, "__name__", "Score")
    return "Accuracy" if is_classifier(estimator) else "R²"


class PeakMemory:
    """Inside a with block, how far the memory of the process rises above its start.

    Attributes
    ----------
    n_bytes : int or nan
        The highest rise of the resident set; nan without psutil.
    """

    def __enter__(self):
        self.n_bytes, self._thread = np.nan, None
        try:
            import psutil
        except ImportError:
            return self
        _give_back_free_memory()
        self._resident = lambda: psutil.Process().memory_info().rss
        self._start, self.n_bytes = self._resident(), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        if self._thread is not None:
            self._done.set()
            self._thread.join()

    def _watch(self):
        ended = False
        while not ended:
            ended = self._done.wait(_SAMPLING_SECONDS)
            self.n_bytes = max(self.n_bytes, self._resident() - self._start)


def _give_back_free_memory():
    """Let the system have what is free, so that using it again shows."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
