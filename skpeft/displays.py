"""Plots of fits and of comparisons, built and used as scikit-learn's displays are."""

import numpy as np
from sklearn.base import is_classifier
from sklearn.decomposition import PCA
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from skpeft._validation import check_matplotlib_support, one_of, warn

# Colours of Okabe and Ito, told apart by colour-blind people too, but for black and
# yellow, which a dark and a white background swallow. Markers say the same without colour.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = "os^DvP*"
_COSTS = {
    "mean_fit_time": "Fit (s)",
    "mean_score_time": "Predict and score held-out rows (s)",
    "n_trained_params": "Trained parameters",
    "saved_bytes": "Saved model (bytes)",
    "peak_memory_bytes": "Peak memory (bytes)",
}


def _style(i):
    """Colour and marker of the i-th of many."""
    turn, place = divmod(i, len(_COLORS))
    return {
        "color": _COLORS[place],
        "marker": _MARKERS[(place + turn) % len(_MARKERS)],
    }


def _options(kind, given, **ours):
    """Options for an artist of a kind: ours, but for what was given under any name."""
    from matplotlib.cbook import normalize_kwargs

    own = normalize_kwargs(given, kind)
    if "c" in own:  # of `scatter`
        del ours["color"]
    return {**normalize_kwargs(ours, kind), **own}


def _check_fitted(estimator):
    """Raise a `NotFittedError` as scikit-learn does; estimators of ours say why."""
    getattr(estimator, "_check_fitted", lambda: check_is_fitted(estimator))()


class TrainingDisplay:
    """Training loss and validation score over the epochs of a fit.

    It is recommended to use `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    losses : array-like of shape (n_epochs,)
        Mean training loss of each epoch.
    validation_scores : array-like of shape (n_epochs,) or None, default=None
        Validation score of each epoch.
    best_epoch : int or None, default=None
        Epoch to mark, counted from 1.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the loss.
    score_ax_ : matplotlib Axes or None
        Axes with the score, which share the epochs with `ax_`.
    figure_ : matplotlib Figure
        Figure that holds them.
    loss_line_ : matplotlib Line2D
        Losses.
    score_line_ : matplotlib Line2D or None
        Validation scores.
    best_line_ : matplotlib Line2D or None
        Mark of the best epoch.

    See Also
    --------
    EmbeddingDisplay : What adaptation did to the features.

    Examples
    --------
    >>> from skpeft import AdapterClassifier, TrainingDisplay
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
    >>> clf = AdapterClassifier(encoder="tiny", random_state=0)
    >>> clf.fit(texts, ["air", "air", "stay", "stay"])
    AdapterClassifier(encoder='tiny', random_state=0)
    >>> TrainingDisplay.from_estimator(clf)
    <...>
    """

    def __init__(self, *, losses, validation_scores=None, best_epoch=None):
        self.losses = losses
        self.validation_scores = validation_scores
        self.best_epoch = best_epoch

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, line_kw=None):
        """Make the display of a fitted estimator.

        Parameters
        ----------
        estimator : AdapterClassifier or AdapterRegressor
            Fitted, with an adapter.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        line_kw : dict or None, default=None
            Options of the lines, as `matplotlib.axes.Axes.plot` takes them.

        Returns
        -------
        TrainingDisplay
            The display, drawn. Its best epoch is the first with the highest validation
            score; with early stopping that epoch's state was kept, but for a warm start,
            where each fit compares its own epochs only.

        Raises
        ------
        ValueError
            If nothing was trained.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        _check_fitted(estimator)
        losses = getattr(estimator, "loss_curve_", None)
        if losses is None:
            raise ValueError(
                f"estimator is a {type(estimator).__name__}, which has no loss_curve_. Pass "
                "the fitted AdapterClassifier or AdapterRegressor itself, such as the last "
                "step of a pipeline or best_estimator_ of a search."
            )
        if not len(losses):
            raise ValueError(
                "The fit trained nothing, as with adapter=None, so there is no loss to "
                "show. Pass an estimator with an adapter that is trained."
            )
        scores = list(getattr(estimator, "validation_scores_", None) or [])
        best = int(np.argmax(scores)) + 1 if scores else None
        display = cls(losses=losses, validation_scores=scores or None, best_epoch=best)
        return display.plot(ax, line_kw=line_kw)

    def plot(self, ax=None, *, line_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        line_kw : dict or None, default=None
            Options of the lines, as `matplotlib.axes.Axes.plot` takes them.

        Returns
        -------
        TrainingDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        epochs = np.arange(1, len(self.losses) + 1)
        kw = _options(Line2D, line_kw, **_style(0), label="Training loss")
        (self.loss_line_,) = ax.plot(epochs, self.losses, **kw)
        ax.set(xlabel="Epoch", ylabel="Training loss")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_, self.figure_ = ax, ax.figure
        self.score_ax_ = self.score_line_ = self.best_line_ = None
        if self._scores_have_epochs():
            self.score_ax_ = ax.twinx()
            kw = _options(Line2D, line_kw, **_style(5), label="Validation score")
            (self.score_line_,) = self.score_ax_.plot(
                epochs, self.validation_scores, **kw
            )
            self.score_ax_.set_ylabel("Validation score")
            if self.best_epoch is not None:
                self.best_line_ = ax.axvline(
                    self.best_epoch,
                    color=plt.rcParams["text.color"],
                    linestyle="--",
                    label=f"Best epoch: {self.best_epoch}",
                )
        lines = (self.loss_line_, self.score_line_, self.best_line_)
        top = self.score_ax_ or ax  # the axes in front
        top.legend(handles=[line for line in lines if line is not None])
        return self

    def _scores_have_epochs(self):
        """Whether there is a score for each epoch."""
        if self.validation_scores is None:
            return False
        if len(self.validation_scores) == len(self.losses):
            return True
        warn(
            f"There are {len(self.validation_scores)} validation scores for "
            f"{len(self.losses)} epochs, as after warm_start=True with validation rows in "
            "some fits alone; the scores are left out.",
        )
        return False


class EmbeddingDisplay:
    """Features of the frozen encoder beside the adapted ones, in two dimensions.

    Each is projected on its own two principal components. Rows that were trained on look
    better apart than new rows do: show held-out rows.

    It is recommended to use `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    frozen, adapted : ndarray of shape (n_samples, 2)
        Projected features before and after adaptation.
    y : ndarray of shape (n_samples,)
        Labels or numbers.
    discrete : bool, default=True
        Whether `y` holds labels, which get a legend, or numbers, which get a colour bar.
    explained_variance_ratio : tuple of two ndarray of shape (2,) or None, default=None
        Shares of the variance that the components of each picture hold.

    Attributes
    ----------
    axes_ : ndarray of shape (2,) of matplotlib Axes
        Axes of the frozen and of the adapted features.
    figure_ : matplotlib Figure
        Figure that holds them.
    points_ : list of two lists of matplotlib PathCollection
        The points of both axes, one collection a class, or one for numbers.
    legend_ : matplotlib Legend or None
        Names of the classes.
    colorbar_ : matplotlib Colorbar or None
        Scale of the numbers.

    See Also
    --------
    TrainingDisplay : Loss and score over the epochs.

    Examples
    --------
    >>> from skpeft import AdapterClassifier, EmbeddingDisplay
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
    >>> labels = ["air", "air", "stay", "stay"]
    >>> clf = AdapterClassifier(encoder="tiny", random_state=0).fit(texts, labels)
    >>> EmbeddingDisplay.from_estimator(clf, texts, labels)
    <...>
    """

    def __init__(
        self, *, frozen, adapted, y, discrete=True, explained_variance_ratio=None
    ):
        self.frozen = frozen
        self.adapted = adapted
        self.y = y
        self.discrete = discrete
        self.explained_variance_ratio = explained_variance_ratio

    @classmethod
    def from_estimator(cls, estimator, X, y, *, ax=None, scatter_kw=None):
        """Make the display of a fitted estimator and some rows.

        Parameters
        ----------
        estimator : AdapterClassifier or AdapterRegressor
            Fitted.
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`, two rows or more.
        y : array-like of shape (n_samples,)
            Targets, by which the points are coloured. Where a row has several, one column
            of them.
        ax : array-like of two matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        scatter_kw : dict or None, default=None
            Options of the points, as `matplotlib.axes.Axes.scatter` takes them.

        Returns
        -------
        EmbeddingDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are fewer than two rows or features, X and y differ in length, or y
            has several columns.
        TypeError
            If the estimator has no frozen features.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        _check_fitted(estimator)
        if not hasattr(estimator, "transform_frozen"):
            raise TypeError(
                f"estimator is a {type(estimator).__name__}, which has no frozen features "
                "to show. Pass the fitted AdapterClassifier or AdapterRegressor itself, "
                "such as the last step of a pipeline or best_estimator_ of a search."
            )
        if np.ndim(y) == 2 and np.shape(y)[1] > 1:
            raise ValueError(
                f"y has {np.shape(y)[1]} columns; the points are coloured by one. Pass a "
                "column, such as y[:, 0], or y['name'] of a frame."
            )
        y = column_or_1d(y)
        features = estimator.transform_frozen(X), estimator.transform(X)
        check_consistent_length(features[0], y)
        if len(y) < 2:
            raise ValueError("X holds 1 row; two or more are needed to draw a picture.")
        if min(part.shape[1] for part in features) < 2:
            raise ValueError(
                "The features have 1 column; two or more are needed to draw a picture. "
                "Plot that column of transform(X) over y instead."
            )
        projections = [
            PCA(2, svd_solver="full").set_output(transform="default").fit(part)
            for part in features
        ]
        frozen, adapted = (
            pca.transform(part) for pca, part in zip(projections, features, strict=True)
        )
        display = cls(
            frozen=frozen,
            adapted=adapted,
            y=y,
            discrete=is_classifier(estimator),
            explained_variance_ratio=tuple(
                np.nan_to_num(pca.explained_variance_ratio_) for pca in projections
            ),
        )
        return display.plot(ax, scatter_kw=scatter_kw)

    def plot(self, ax=None, *, scatter_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : array-like of two matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        scatter_kw : dict or None, default=None
            Options of the points, as `matplotlib.axes.Axes.scatter` takes them.

        Returns
        -------
        EmbeddingDisplay
            The display itself.

        Raises
        ------
        ValueError
            If `ax` is not two axes.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        self.axes_ = np.ravel(np.asarray(ax, dtype=object))
        if len(self.axes_) != 2:
            raise ValueError(
                f"ax holds {len(self.axes_)} axes; two are needed, for the frozen and for "
                "the adapted features. Make them with plt.subplots(1, 2)."
            )
        self.figure_ = self.axes_[0].figure
        draw = self._draw_classes if self.discrete else self._draw_numbers
        self.points_ = []
        for i, (name, points) in enumerate(
            [("Frozen encoder", self.frozen), ("Adapted", self.adapted)]
        ):
            self.points_.append(draw(self.axes_[i], points, scatter_kw))
            names = [f"Component {k}" for k in (1, 2)]
            if self.explained_variance_ratio is not None:
                shares = self.explained_variance_ratio[i]
                names = [
                    f"{name} ({share:.0%} of variance)"
                    for name, share in zip(names, shares, strict=True)
                ]
            self.axes_[i].set(title=name, xlabel=names[0], ylabel=names[1])
        self.legend_ = self.colorbar_ = None
        if self.discrete:
            self.legend_ = self.axes_[1].legend(
                loc="center left",
                bbox_to_anchor=(1.02, 0.5),
                ncols=1 + len(self.points_[1]) // 20,
            )
        else:
            self.colorbar_ = self.figure_.colorbar(
                self.points_[1][0], ax=self.axes_[1], label="Target"
            )
        return self

    def _draw_classes(self, ax, points, kw):
        from matplotlib.collections import PathCollection

        found = []
        y = np.asarray(self.y)
        for i, label in enumerate(np.unique(y)):
            ours = {**_style(i), "label": str(label), "s": 18, "alpha": 0.8}
            own = _options(PathCollection, kw, **ours)
            found.append(ax.scatter(*points[y == label].T, **own))
        return found

    def _draw_numbers(self, ax, points, kw):
        from matplotlib import rcParams
        from matplotlib.collections import PathCollection

        if kw and {"c", "color"} & kw.keys():
            raise ValueError(
                "scatter_kw gives a colour, but that of a point shows its target, a number. "
                "Give 'cmap', which maps numbers to colours, or leave it out."
            )
        # The rim keeps both ends of the scale apart from a dark or a white background.
        rim = {"edgecolors": rcParams["text.color"], "linewidths": 0.4}
        kw = _options(PathCollection, kw, cmap="viridis", s=22, **rim)
        return [ax.scatter(*points.T, c=self.y, **kw)]


class StrategyDisplay:
    """Score of ways to adapt an encoder, over what they cost.

    It is recommended to use `from_results`. All parameters are stored as attributes.

    Parameters
    ----------
    results : DataFrame
        From `compare_strategies`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure that holds them.
    errorbars_ : list of matplotlib ErrorbarContainer
        Mean score and its standard deviation over the splits, one a strategy.

    See Also
    --------
    compare_strategies : Fit, score and measure the strategies.

    Examples
    --------
    >>> from skpeft import AdapterClassifier, StrategyDisplay, compare_strategies
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
    >>> labels = ["air", "air", "stay", "stay"]
    >>> tiny = AdapterClassifier("tiny", max_epochs=2, random_state=0)
    >>> results = compare_strategies(texts * 2, labels * 2, estimator=tiny, cv=2)
    >>> StrategyDisplay.from_results(results)
    <...>
    """

    def __init__(self, *, results):
        self.results = results

    @classmethod
    def from_results(cls, results, *, cost="mean_fit_time", ax=None, errorbar_kw=None):
        """Make the display of a comparison.

        Parameters
        ----------
        results : DataFrame
            From `compare_strategies`.
        cost : {"mean_fit_time", "mean_score_time", "n_trained_params", "saved_bytes", \
                "peak_memory_bytes"}, default="mean_fit_time"
            What stands on the horizontal axis.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        errorbar_kw : dict or None, default=None
            Options of the points, as `matplotlib.axes.Axes.errorbar` takes them.

        Returns
        -------
        StrategyDisplay
            The display, drawn.
        """
        check_matplotlib_support(f"{cls.__name__}.from_results")
        return cls(results=results).plot(ax, cost=cost, errorbar_kw=errorbar_kw)

    def plot(self, ax=None, *, cost="mean_fit_time", errorbar_kw=None):
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        cost : {"mean_fit_time", "mean_score_time", "n_trained_params", "saved_bytes", \
                "peak_memory_bytes"}, default="mean_fit_time"
            What stands on the horizontal axis.
        errorbar_kw : dict or None, default=None
            Options of the points, as `matplotlib.axes.Axes.errorbar` takes them.

        Returns
        -------
        StrategyDisplay
            The display itself.

        Raises
        ------
        ValueError
            If `cost` is not known, or the results lack a column or all its numbers.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.lines import Line2D

        results = self._checked(cost)
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        self.errorbars_ = [
            ax.errorbar(
                row[cost],
                row["mean_test_score"],
                yerr=row["std_test_score"],
                **_options(
                    Line2D,
                    errorbar_kw,
                    **_style(i),
                    linestyle="none",
                    capsize=4,
                    label=str(name),
                ),
            )
            for i, (name, row) in enumerate(results.iterrows())
        ]
        ax.set_xscale("log")
        score = results.attrs.get("score_name", "Score")
        ax.set(xlabel=_COSTS[cost], ylabel=f"{score}, mean ± std of splits")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _checked(self, cost):
        """Rows of the results that have the cost."""
        if cost not in _COSTS:
            raise ValueError(one_of(cost, _COSTS, "cost"))
        needed = ("mean_test_score", "std_test_score", cost)
        absent = [
            name for name in needed if name not in getattr(self.results, "columns", ())
        ]
        if absent:
            raise ValueError(
                f"results lacks the columns {absent}; a frame that compare_strategies has "
                "returned is expected."
            )
        known = self.results[self.results[cost].notna()]
        if known.empty:
            raise ValueError(
                f"The column {cost!r} of results holds no number. Choose another cost."
            )
        if len(known) < len(self.results):
            absent = [str(n) for n in self.results.index if n not in known.index]
            warn(f"{absent} are not drawn: the column {cost!r} has no number for them.")
        return known
