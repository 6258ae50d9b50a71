"""What the displays draw: axes, labels, points, legends, colours."""

import sys

import numpy as np
import pytest
import sklearn
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skpeft import (
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    EmbeddingDisplay,
    StrategyDisplay,
    TrainingDisplay,
)
from skpeft import displays as module

plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")
from matplotlib.colors import to_rgb  # noqa: E402

TEXTS = [f"{word} {end}" for word in ("plane", "ship", "car") for end in "abcdef"]
LABELS = np.repeat(["air", "sea", "land"], 6)
NUMBERS = np.arange(18.0)


@pytest.fixture(autouse=True)
def _closed_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def clf():
    clf = AdapterClassifier("tiny", max_epochs=4, random_state=0)
    return clf.fit(TEXTS, LABELS, X_val=TEXTS[::2], y_val=LABELS[::2])


@pytest.fixture(scope="module")
def reg():
    return AdapterRegressor("tiny", max_epochs=3, random_state=0).fit(TEXTS, NUMBERS)


@pytest.fixture
def results():
    return pd.DataFrame(
        {
            "mean_test_score": [0.7, 0.8],
            "std_test_score": [0.02, 0.03],
            "mean_fit_time": [0.1, 4.0],
            "saved_bytes": [2e4, np.nan],
            "peak_memory_bytes": [np.nan, np.nan],
        },
        index=["linear probe", "lora"],
    )


def texts_of(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", ["c", "color"])
def test_options_may_have_any_of_their_names(clf, reg, results, name):
    red, display = {name: "red"}, TrainingDisplay.from_estimator
    assert display(reg, line_kw=red).loss_line_.get_color() == "red"
    assert display(reg, line_kw={"lw": 5}).loss_line_.get_linewidth() == 5
    display = EmbeddingDisplay.from_estimator
    (points, *_), _ = display(clf, TEXTS, LABELS, scatter_kw=red).points_
    assert to_rgb(points.get_facecolor()[0][:3]) == to_rgb("red")
    (points,), _ = display(reg, TEXTS, NUMBERS, scatter_kw={"linewidth": 3}).points_
    assert points.get_linewidth() == [3]
    with pytest.raises(ValueError, match="shows its target"):
        display(reg, TEXTS, NUMBERS, scatter_kw=red)
    display = StrategyDisplay.from_results
    assert display(results, errorbar_kw={"ls": "-"}).errorbars_[0][0].get_ls() == "-"
    assert display(results, errorbar_kw=red).errorbars_[0][0].get_color() == "red"


# Training -----------------------------------------------------------------------------


def test_training_display_shows_loss_score_and_best_epoch(clf):
    shown = TrainingDisplay.from_estimator(clf)
    epochs = list(range(1, clf.n_epochs_ + 1))
    assert list(shown.loss_line_.get_xdata()) == epochs
    assert list(shown.loss_line_.get_ydata()) == clf.loss_curve_
    assert list(shown.score_line_.get_ydata()) == clf.validation_scores_
    best = 1 + clf.validation_scores_.index(max(clf.validation_scores_))
    assert shown.best_epoch == best
    assert set(shown.best_line_.get_xdata()) == {best}
    assert shown.ax_.get_xlabel() == "Epoch"
    assert shown.ax_.get_ylabel() == "Training loss"
    assert shown.score_ax_.get_ylabel() == "Validation score"
    labels = ["Training loss", "Validation score", f"Best epoch: {best}"]
    assert texts_of(shown.score_ax_.get_legend()) == labels
    assert shown.figure_ is shown.ax_.figure
    ticks = shown.ax_.xaxis.get_major_locator()()
    assert all(tick == int(tick) for tick in ticks)


def test_training_display_without_validation_has_the_loss_alone(reg):
    shown = TrainingDisplay.from_estimator(reg)
    assert shown.score_ax_ is shown.score_line_ is shown.best_line_ is None
    assert texts_of(shown.ax_.get_legend()) == ["Training loss"]


def test_training_display_draws_on_given_axes_with_given_options(reg):
    figure, ax = plt.subplots()
    shown = TrainingDisplay.from_estimator(reg, ax=ax, line_kw={"linewidth": 5})
    assert shown.ax_ is ax
    assert shown.figure_ is figure
    assert shown.loss_line_.get_linewidth() == 5
    assert plt.get_fignums() == [figure.number]


def test_training_display_of_what_trained_nothing_is_refused():
    probe = AdapterClassifier("tiny", adapter=None).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="trained nothing, as with adapter=None"):
        TrainingDisplay.from_estimator(probe)
    with pytest.raises(ValueError, match="last step of a pipeline"):
        TrainingDisplay.from_estimator(make_pipeline(probe))
    assert not plt.get_fignums()


def test_scores_of_some_fits_alone_are_left_out_with_a_warning():
    shown = TrainingDisplay(losses=[3.0, 2.0, 1.0], validation_scores=[0.5])
    with pytest.warns(UserWarning, match="1 validation scores for 3 epochs"):
        shown.plot()
    assert shown.score_line_ is None


def test_training_display_shows_the_last_fit_of_a_search():
    search = AdapterClassifierCV(
        "tiny",
        ranks=[1],
        cv=2,
        max_epochs=2,
        early_stopping=True,
        validation_fraction=0.4,
        random_state=0,
    ).fit(TEXTS, LABELS)
    shown = TrainingDisplay.from_estimator(search)
    assert shown.validation_scores == search.validation_scores_
    assert shown.best_epoch in (1, 2)


def test_training_display_of_scores_without_a_best_epoch_marks_none():
    shown = TrainingDisplay(losses=[3.0, 2.0], validation_scores=[0.5, 0.6]).plot()
    assert list(shown.score_line_.get_ydata()) == [0.5, 0.6]
    assert shown.best_line_ is None
    labels = ["Training loss", "Validation score"]
    assert texts_of(shown.score_ax_.get_legend()) == labels


# Embeddings ---------------------------------------------------------------------------


def test_embeddings_are_the_principal_components_of_both_features(clf):
    shown = EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS)
    frozen = AdapterClassifier("tiny", adapter=None).fit(TEXTS, LABELS).transform(TEXTS)
    for i, features in enumerate((frozen, clf.transform(TEXTS))):
        pca = PCA(2).fit(features)
        expected = pca.transform(features)
        for collection, label in zip(shown.points_[i], np.unique(LABELS), strict=True):
            drawn = np.asarray(collection.get_offsets())
            # Signs of components are free.
            np.testing.assert_allclose(
                np.abs(drawn), np.abs(expected[label == LABELS]), atol=1e-4
            )
            assert collection.get_label() == label
        share = f"({pca.explained_variance_ratio_[0]:.0%} of variance)"
        assert share in shown.axes_[i].get_xlabel()
    assert not np.allclose(shown.frozen, shown.adapted)
    titles = [ax.get_title() for ax in shown.axes_]
    assert titles == ["Frozen encoder", "Adapted"]
    assert texts_of(shown.legend_) == ["air", "land", "sea"]
    assert shown.colorbar_ is None


def test_embeddings_of_numbers_have_a_colour_bar(reg):
    shown = EmbeddingDisplay.from_estimator(reg, TEXTS, NUMBERS)
    assert shown.legend_ is None
    assert [len(points) for points in shown.points_] == [1, 1]
    np.testing.assert_array_equal(shown.points_[0][0].get_array(), NUMBERS)
    assert shown.points_[0][0].get_cmap().name == "viridis"
    assert (shown.colorbar_.vmin, shown.colorbar_.vmax) == (0, 17)
    assert shown.colorbar_.ax.get_ylabel() == "Target"


def test_embeddings_of_pairs_and_of_rows_of_numbers_are_drawn():
    pairs = [(text, TEXTS[0]) for text in TEXTS]
    clf = AdapterClassifier("tiny", max_epochs=1, random_state=0).fit(pairs, LABELS)
    assert EmbeddingDisplay.from_estimator(clf, pairs, LABELS).frozen.shape == (18, 2)
    X = np.random.RandomState(0).randn(18, 4)
    clf = AdapterClassifier("array", max_epochs=1, random_state=0).fit(X, LABELS)
    assert EmbeddingDisplay.from_estimator(clf, X, LABELS).adapted.shape == (18, 2)


def test_embeddings_go_to_two_given_axes_and_no_other_number(clf):
    figure, axes = plt.subplots(1, 2)
    shown = EmbeddingDisplay.from_estimator(
        clf, TEXTS, LABELS, ax=axes, scatter_kw={"alpha": 0.3}
    )
    assert list(shown.axes_) == list(axes)
    assert shown.points_[0][0].get_alpha() == 0.3
    with pytest.raises(ValueError, match="ax holds 1 axes; two are needed"):
        shown.plot(axes[0])
    assert plt.get_fignums() == [figure.number]


def test_embeddings_without_shares_of_variance_name_the_components_alone():
    points = np.arange(6.0).reshape(3, 2)
    shown = EmbeddingDisplay(frozen=points, adapted=-points, y=LABELS[:3]).plot()
    for ax in shown.axes_:
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Component 1", "Component 2")


@pytest.mark.parametrize("kind", [list, np.array, pd.Series])
def test_points_given_by_hand_are_drawn_whatever_holds_their_labels(kind):
    points = np.arange(8.0).reshape(4, 2)
    y = kind(["a", "b", "a", "a"])
    shown = EmbeddingDisplay(frozen=points, adapted=-points, y=y).plot()
    assert [len(p.get_offsets()) for p in shown.points_[0]] == [3, 1]


def test_embeddings_of_wrong_input_are_refused(clf):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS[:-1])
    with pytest.raises(ValueError, match="1 row; two or more"):
        EmbeddingDisplay.from_estimator(clf, TEXTS[:1], LABELS[:1])
    with pytest.raises(ValueError, match=r"y has 2 columns; .* such as y\[:, 0\]"):
        EmbeddingDisplay.from_estimator(clf, TEXTS, np.ones((18, 2)))
    with pytest.raises(TypeError, match="LogisticRegression, which has no frozen"):
        EmbeddingDisplay.from_estimator(
            LogisticRegression().fit([[0], [1]], [0, 1]), TEXTS, LABELS
        )


def test_embeddings_are_the_same_where_transformers_give_frames(clf):
    expected = EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS)
    with sklearn.config_context(transform_output="pandas"):
        shown = EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS)
    np.testing.assert_array_equal(shown.frozen, expected.frozen)
    np.testing.assert_array_equal(shown.adapted, expected.adapted)


class Narrow(AdapterClassifier):
    """As of an encoder of one number a text."""

    def transform(self, X):
        return super().transform(X)[:, :1]

    def transform_frozen(self, X):
        return super().transform_frozen(X)[:, :1]


def test_embeddings_of_one_feature_are_refused():
    clf = Narrow("tiny", max_epochs=1, random_state=0).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="features have 1 column; two or more"):
        EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS)


def test_embeddings_of_several_labels_are_coloured_by_the_column_that_is_passed():
    labelled = pd.DataFrame({"air": LABELS == "air", "wet": LABELS == "sea"})
    tagger = AdapterClassifier("tiny", max_epochs=2, random_state=0)
    tagger.fit(TEXTS, labelled)
    shown = EmbeddingDisplay.from_estimator(tagger, TEXTS, labelled["wet"])
    assert texts_of(shown.legend_) == ["False", "True"]
    assert [len(points.get_offsets()) for points in shown.points_[1]] == [12, 6]


# Strategies ---------------------------------------------------------------------------


def test_strategies_are_points_with_error_bars_over_their_cost(results):
    shown = StrategyDisplay.from_results(results)
    points = [bar.lines[0].get_xydata()[0].tolist() for bar in shown.errorbars_]
    assert points == [[0.1, 0.7], [4.0, 0.8]]
    ends = [bar.lines[2][0].get_segments()[0][:, 1] for bar in shown.errorbars_]
    np.testing.assert_allclose(ends, [[0.68, 0.72], [0.77, 0.83]])
    assert shown.ax_.get_xscale() == "log"
    assert shown.ax_.get_xlabel() == "Fit (s)"
    assert shown.ax_.get_ylabel() == "Score, mean ± std of splits"
    assert texts_of(shown.ax_.get_legend()) == ["linear probe", "lora"]


def test_strategies_over_another_cost_show_those_that_have_it(results):
    results.attrs["score_name"] = "Accuracy"
    shown = StrategyDisplay.from_results(results, cost="saved_bytes")
    assert shown.ax_.get_xlabel() == "Saved model (bytes)"
    assert shown.ax_.get_ylabel().startswith("Accuracy")
    assert texts_of(shown.ax_.get_legend()) == ["linear probe"]


def test_strategies_go_to_given_axes(results):
    figure, ax = plt.subplots()
    shown = StrategyDisplay.from_results(results, ax=ax)
    assert shown.ax_ is ax
    assert plt.get_fignums() == [figure.number]


def test_strategies_of_wrong_results_are_refused(results):
    shown = StrategyDisplay(results=results)
    with pytest.raises(ValueError, match="Did you mean 'saved_bytes'"):
        shown.plot(cost="saved_byte")
    with pytest.raises(ValueError, match="'peak_memory_bytes' of results holds no num"):
        shown.plot(cost="peak_memory_bytes")
    with pytest.raises(ValueError, match=r"lacks the columns \['n_trained_params'\]"):
        shown.plot(cost="n_trained_params")
    with pytest.raises(ValueError, match="compare_strategies"):
        StrategyDisplay.from_results([0.7, 0.8])


# All ----------------------------------------------------------------------------------


def luminance(color):
    """Relative luminance of the Web Content Accessibility Guidelines."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color
    ]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("background", ["white", "#111111"])
def test_colours_stand_out_from_light_and_dark_backgrounds(background):
    for color in module._COLORS:
        pair = sorted((luminance(to_rgb(color)), luminance(to_rgb(background))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 2, color


def test_many_classes_differ_in_colour_or_marker():
    styles = [module._style(i) for i in range(40)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 40
    assert len({style["color"] for style in styles[:6]}) == 6
    assert len({style["marker"] for style in styles[:6]}) == 6


def test_nothing_is_black_on_a_dark_background(clf, reg, results):
    with plt.style.context("dark_background"):
        shown = [
            TrainingDisplay.from_estimator(clf),
            EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS),
            EmbeddingDisplay.from_estimator(reg, TEXTS, NUMBERS),
            StrategyDisplay.from_results(results),
        ]
        for display in shown:
            display.figure_.canvas.draw()
            lines = display.figure_.findobj(plt.Line2D)
            texts = display.figure_.findobj(plt.Text)
            colors = [line.get_color() for line in lines]
            colors += [text.get_color() for text in texts if text.get_text()]
            assert all(max(to_rgb(color)) > 0.3 for color in colors)
        rim = shown[2].points_[0][0].get_edgecolor()[0]
        assert tuple(rim[:3]) == (1, 1, 1)


def test_picture_holds_the_colour_of_each_class(clf):
    shown = EmbeddingDisplay.from_estimator(
        clf, TEXTS, LABELS, scatter_kw={"alpha": 1.0, "s": 100}
    )
    shown.figure_.canvas.draw()
    pixels = np.asarray(shown.figure_.canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    for color in module._COLORS[:3]:
        wanted = np.round(np.array(to_rgb(color)) * 255)
        assert (np.abs(pixels - wanted).max(axis=1) <= 1).sum() > 50


@pytest.mark.parametrize(
    "show",
    [
        lambda clf, frame: TrainingDisplay.from_estimator(clf),
        lambda clf, frame: TrainingDisplay(losses=[1.0]).plot(),
        lambda clf, frame: EmbeddingDisplay.from_estimator(clf, TEXTS, LABELS),
        lambda clf, frame: StrategyDisplay.from_results(frame),
    ],
)
def test_missing_matplotlib_is_named_with_the_caller(show, clf, results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Display\.\w+ requires matplotlib.*pip"):
        show(clf, results)


# Frozen features ----------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "prefix", "full"])
def test_frozen_features_are_those_of_a_fit_without_adapter(adapter):
    probe = AdapterClassifier("tiny", adapter=None).fit(TEXTS, LABELS)
    clf = AdapterClassifier("tiny", adapter=adapter, max_epochs=1, random_state=0)
    frozen = clf.fit(TEXTS, LABELS).transform_frozen(TEXTS)
    np.testing.assert_allclose(frozen, probe.transform(TEXTS), atol=1e-6)
    assert np.abs(frozen - clf.transform(TEXTS)).max() > 1e-4
