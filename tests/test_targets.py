"""Targets of all kinds: several labels, several numbers, and labels of every type."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
    r2_score,
)
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler, normalize
from sklearn.svm import SVR, LinearSVC
from sklearn.utils import get_tags

from skpeft import (
    AdapterBank,
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    AdapterRegressorCV,
    AdapterScores,
)
from skpeft._shrinkage import HeldOut, judge
from skpeft.heads import LabelwiseLogisticRegression, default_head
from skpeft.objectives import Contrastive, CrossEntropy, LabelContrastive

THINGS = ["film", "book", "play", "song", "car", "tea", "house", "tree"]
WORDS = ["good red", "good", "red", ""]
TEXTS = [f"{words} {thing}".strip() for thing in THINGS for words in WORDS]
NAMES = ["good", "red"]
LABELS = np.array([[name in text.split() for name in NAMES] for text in TEXTS]) + 0
NUMBERS = LABELS @ [[3.0, -1.0], [0.5, 200.0]] + [1.0, -50.0]
NEW_TEXTS = ["good work", "a red cup of tea", "good and red", "work", ""]
ADAPTERS = ["lora", "bottleneck", None]


def classifier(**parameters):
    return AdapterClassifier(
        **{"encoder": "tiny", "random_state": 0, "max_epochs": 3, **parameters}
    )


def regressor(**parameters):
    return AdapterRegressor(
        **{"encoder": "tiny", "random_state": 0, "max_epochs": 3, **parameters}
    )


def log_odds_equal(one, two):
    found, expected = one.decision_function(NEW_TEXTS), two.decision_function(NEW_TEXTS)
    np.testing.assert_array_equal(found, expected)


# Several labels a row: what is learned ------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_labels_that_words_decide_are_learned(adapter):
    clf = classifier(adapter=adapter, max_epochs=None).fit(TEXTS, LABELS)
    assert clf.score(TEXTS, LABELS) > 0.9
    predicted = clf.predict(TEXTS)
    assert clf.score(TEXTS, LABELS) == accuracy_score(LABELS, predicted)
    np.testing.assert_array_equal(clf.classes_, [0, 1])


@pytest.mark.parametrize(
    "objective",
    ["label_contrastive", "binary_cross_entropy", LabelContrastive(0.3)],
    ids=str,
)
def test_objectives_of_labels_fall_and_learn(objective):
    clf = classifier(max_epochs=20, objective=objective).fit(TEXTS, LABELS)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert clf.score(TEXTS, LABELS) > 0.9


def test_layer_for_labels_starts_near_their_log_odds():
    # Its first loss is that of a probe, not that of a coin for each of many rare labels.
    y = np.zeros((len(TEXTS), 12), dtype=int)
    y[np.arange(0, len(TEXTS), 3), np.arange(0, len(TEXTS), 3) % 12] = 1
    parameters = {"max_epochs": 1, "learning_rate": 1e-12, "shrinkage": 0.0}
    clf = classifier(objective="binary_cross_entropy", **parameters).fit(TEXTS, y)
    shares = np.broadcast_to(y.mean(axis=0), y.shape)
    of_shares = -(np.log(np.where(y, shares, 1 - shares))).sum(axis=1).mean()
    assert clf.loss_curve_[0] < of_shares


@pytest.mark.parametrize("objective", ["label_contrastive", "binary_cross_entropy"])
def test_labels_train_in_batches_and_with_few_rows(objective):
    clf = classifier(objective=objective, batch_size=5).fit(TEXTS, LABELS)
    assert np.isfinite(clf.loss_curve_).all()
    clf = classifier(objective=objective).fit(TEXTS[:2], LABELS[:2])
    assert np.isfinite(clf.predict_proba(TEXTS)).all()


def test_default_head_equals_one_vs_rest_on_the_features():
    clf = classifier(adapter=None).fit(TEXTS, LABELS)
    rest = OneVsRestClassifier(LogisticRegression(C=clf.head_.C, max_iter=1000))
    features = clf.transform(TEXTS)
    rest.fit(features, LABELS)
    np.testing.assert_allclose(
        clf.predict_proba(NEW_TEXTS),
        rest.predict_proba(clf.transform(NEW_TEXTS)),
        rtol=1e-5,
    )


def test_default_head_with_weights_equals_a_logistic_regression_a_label():
    weights = np.arange(len(TEXTS)) % 3 + 0.5
    clf = classifier(adapter=None, precision="float64")
    clf.fit(TEXTS, LABELS, sample_weight=weights)
    features, new = clf.transform(TEXTS), clf.transform(NEW_TEXTS)
    for i, label in enumerate(LABELS.T):
        alone = LogisticRegression(C=clf.head_.C, max_iter=1000)
        alone.fit(features, label, sample_weight=weights / weights.mean())
        np.testing.assert_allclose(
            clf.predict_proba(NEW_TEXTS)[:, i],
            alone.predict_proba(new)[:, 1],
            rtol=1e-3,
        )


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("adapter", ["lora", None])
def test_label_that_is_constant_has_the_log_odds_of_its_share(constant, adapter):
    y = np.column_stack([LABELS, np.full(len(TEXTS), constant)])
    clf = classifier(adapter=adapter).fit(TEXTS, y)
    n = len(TEXTS)
    expected = logit((constant * n + 0.5) / (n + 1)) / clf.temperature_
    np.testing.assert_allclose(clf.decision_function(NEW_TEXTS)[:, 2], expected)
    assert (clf.predict(NEW_TEXTS)[:, 2] == constant).all()
    log_probabilities = clf.predict_log_proba(NEW_TEXTS)
    np.testing.assert_allclose(np.exp(log_probabilities), clf.predict_proba(NEW_TEXTS))


def test_label_texts_are_rows_with_that_label_alone():
    hints = {"red": "colour", "good": ["fine", "nice"]}
    y = pd.DataFrame(LABELS, columns=NAMES)
    told = classifier(label_texts=hints, shrinkage=0.0).fit(TEXTS, y)
    rows = [*TEXTS, "colour", "fine", "nice"]
    shown = classifier(shrinkage=0.0).fit(rows, [*LABELS, [0, 1], [1, 0], [1, 0]])
    np.testing.assert_allclose(
        told.predict_proba(NEW_TEXTS), shown.predict_proba(NEW_TEXTS), atol=1e-5
    )
    with pytest.raises(ValueError, match="expected are labels in y, such as"):
        classifier(label_texts={"blue": "sky"}).fit(TEXTS, y)


def test_names_of_columns_become_the_classes():
    clf = classifier(max_epochs=1).fit(TEXTS, pd.DataFrame(LABELS, columns=NAMES))
    assert clf.classes_.tolist() == NAMES
    log_odds_equal(clf, classifier(max_epochs=1).fit(TEXTS, LABELS))
    plain = classifier(max_epochs=1).fit(TEXTS, pd.DataFrame(LABELS))
    assert plain.classes_.tolist() == [0, 1]
    assert plain.classes_.dtype.kind == "i"


@pytest.mark.parametrize("adapter", ["lora", None])
def test_sample_weight_zero_equals_removal_of_a_row_with_labels(adapter):
    weights = np.arange(len(TEXTS)) % 4 + 0.0
    kept = np.flatnonzero(weights)
    zeroed = classifier(adapter=adapter).fit(TEXTS, LABELS, sample_weight=weights)
    removed = classifier(adapter=adapter).fit(
        [TEXTS[i] for i in kept], LABELS[kept], sample_weight=weights[kept]
    )
    log_odds_equal(zeroed, removed)


@pytest.mark.parametrize("objective", ["label_contrastive", "binary_cross_entropy"])
def test_early_stopping_of_labels_sees_validation_rows(objective):
    clf = classifier(objective=objective, max_epochs=9, n_iter_no_change=2, tol=1e6)
    y_val = scipy.sparse.csr_matrix(LABELS[:8])
    clf.fit(TEXTS, LABELS, X_val=TEXTS[:8], y_val=y_val)
    assert clf.n_epochs_ == len(clf.validation_scores_) == 1 + 2
    if objective == "binary_cross_entropy":
        assert max(clf.validation_scores_) <= 0  # negative losses
    split = classifier(early_stopping=True, n_iter_no_change=1, tol=1e6)
    assert split.fit(TEXTS, LABELS).n_epochs_ == 2


def test_validation_score_of_label_contrastive_ranks_means_of_labels():
    weights = np.arange(8) + 1.0
    clf = classifier(max_epochs=1, shrinkage=0.0)
    validation = {"X_val": NEW_TEXTS + TEXTS[:3], "sample_weight_val": weights}
    y_val = [[1, 0], [0, 1], [1, 1], [0, 0], [0, 0], *LABELS[:3]]
    clf.fit(TEXTS, LABELS, y_val=y_val, **validation)
    unit = normalize(clf.transform(TEXTS))
    means = normalize([unit[label == 1].mean(axis=0) for label in LABELS.T])
    scores = normalize(clf.transform(validation["X_val"])) @ means.T
    expected = label_ranking_average_precision_score(
        y_val, scores, sample_weight=weights
    )
    assert clf.validation_scores_ == [pytest.approx(expected)]


def test_warm_start_goes_on_from_a_fit_to_other_labels():
    clf = classifier(warm_start=True, shrinkage=0.0, learning_rate=0.01)
    clf.fit(TEXTS, LABELS[:, 0])
    before = clf.transform(NEW_TEXTS)
    clf.set_params(learning_rate=1e-12).fit(TEXTS, LABELS)
    np.testing.assert_allclose(clf.transform(NEW_TEXTS), before, atol=1e-5)
    assert clf.n_epochs_ == 6
    assert clf.predict(NEW_TEXTS).shape == (5, 2)


# How far adapters are trusted ---------------------------------------------------------


def test_judge_of_labels_follows_the_log_loss_at_the_best_temperature():
    rng = np.random.RandomState(0)
    scores = rng.normal(size=(4000, 3)) * [1, 2, 0.5]
    targets = (rng.uniform(size=scores.shape) < expit(scores)).astype(float)
    noise = rng.normal(size=scores.shape)
    outputs = np.stack([2 * scores, 2 * (scores + noise)])
    weights = rng.uniform(0.5, 2, len(scores))
    task = "multi-label classification"
    frozen_wins = judge(HeldOut(outputs, targets, weights), task)
    trained_wins = judge(HeldOut(outputs[::-1], targets, weights), task)
    assert frozen_wins.strength < 0.01
    assert trained_wins.strength > 0.99

    def loss(log_temperature):
        shares = expit(2 * scores / np.exp(log_temperature))
        return sum(
            log_loss(targets[:, i], shares[:, i], sample_weight=weights)
            for i in range(3)
        )

    expected = np.exp(minimize_scalar(loss, bounds=(-1, 2), method="bounded").x)
    for verdict in (frozen_wins, trained_wins):
        assert verdict.temperature == pytest.approx(expected, rel=0.05)


def test_judge_of_several_numbers_sums_over_them():
    rng = np.random.RandomState(0)
    targets = rng.normal(size=(60, 2))
    noise = rng.normal(size=(2, 60, 2)) * [[[0.8, 0.9]], [[0.9, 0.8]]]
    weights = np.ones(60)
    both = judge(HeldOut(targets + noise, targets, weights), "regression").strength
    odds = 1 / 8
    for i in range(2):
        outputs = targets[:, i] + noise[:, :, i]
        one = judge(HeldOut(outputs, targets[:, i], weights), "regression").strength
        odds *= one / (1 - one)
    assert both / (1 - both) == pytest.approx(odds)


def test_labels_that_nothing_decides_draw_adapters_back():
    rng = np.random.RandomState(1)
    X, y = rng.randn(60, 4), rng.randint(0, 2, (60, 3))
    clf = AdapterClassifier(
        "array",
        objective="binary_cross_entropy",
        max_epochs=60,
        learning_rate=0.05,
        random_state=0,
    )
    indifferent = 1 / 9  # what is left to the frozen encoder without any evidence
    assert clf.fit(X, y).shrinkage_ > 2 * indifferent


# Heads of the user's own --------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        KNeighborsClassifier(3),
        RandomForestClassifier(5, random_state=0),
        MLPClassifier((4,), max_iter=20, random_state=0),
        OneVsRestClassifier(LogisticRegression()),
        MultiOutputClassifier(LogisticRegression()),
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
        GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 3]}, cv=KFold(2)),
    ],
    ids=lambda head: type(head).__name__,
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_head_of_own_gives_one_array_of_probabilities(head):
    clf = classifier(head=head, max_epochs=1).fit(TEXTS, LABELS)
    features = clf.transform(NEW_TEXTS)
    alone = clone(head).fit(clf.transform(TEXTS), LABELS)
    expected = alone.predict_proba(features)
    if isinstance(expected, list):
        expected = np.column_stack([of_label[:, 1] for of_label in expected])
    found = clf.predict_proba(NEW_TEXTS)
    np.testing.assert_array_equal(found, expected)
    predicted = clf.predict(NEW_TEXTS)
    np.testing.assert_array_equal(predicted, alone.predict(features))
    assert predicted.dtype.kind == "i"


@pytest.mark.parametrize("constant", [0, 1])
def test_head_of_own_that_saw_one_value_of_a_label_gives_its_probability(constant):
    y = np.column_stack([LABELS, np.full(len(TEXTS), constant)])
    clf = classifier(head=KNeighborsClassifier(3), max_epochs=1).fit(TEXTS, y)
    found = clf.predict_proba(NEW_TEXTS)
    assert found.shape == (5, 3)
    assert (found[:, 2] == constant).all()


def test_head_without_probabilities_leaves_scores():
    clf = classifier(head=OneVsRestClassifier(LinearSVC()), max_epochs=1)
    clf.fit(TEXTS, LABELS)
    assert not hasattr(clf, "predict_proba")
    assert clf.decision_function(NEW_TEXTS).shape == (5, 2)


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (classifier(head=LogisticRegression(), max_epochs=1), LABELS),
        (regressor(head=SVR(), max_epochs=1), NUMBERS),
    ],
    ids=["classifier", "regressor"],
)
def test_head_for_one_target_is_refused_with_what_wraps_it(estimator, y):
    with pytest.raises(ValueError, match=r"shape \(32, 2\).*OneVsRestClassifier and "):
        estimator.fit(TEXTS, y)
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


# What is refused ----------------------------------------------------------------------

SEVERAL_CLASSES = np.column_stack([np.arange(len(TEXTS)) % 3, LABELS[:, 0]])
LISTS = [["good", "red"], ["good"], ["red"], []] * len(THINGS)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (SEVERAL_CLASSES, r"2 columns.*labels.*MultiOutputClassifier"),
        (LABELS * 2 - 1, r"0 and 1 are expected"),
        (LABELS + 1, r"0 and 1 are expected"),
        (LABELS * 0.5, r"holds .*0\.5.*0 and 1 are expected"),
        (np.where(LABELS, "a", "b"), r"'\w'.*MultiOutputClassifier"),
        (LABELS.astype(str), r"MultiOutputClassifier"),
        (np.where(LABELS, 1, np.nan), "y contains NaN"),
        (pd.DataFrame(LABELS).astype("Int64").replace(0, pd.NA), "y contains NaN"),
        (LISTS, "unlike length.*MultiLabelBinarizer"),
        ([*map(set, LISTS)], r"y\[0\] is .*one label a row.*MultiLabelBinarizer"),
        (pd.Series(LISTS), r"y\[0\] is \['good'.*one label a row.*MultiLabelBinarizer"),
        (np.where(LABELS, "a", "b").tolist(), "0 and 1.*MultiLabelBinarizer"),
        (LABELS[:-1], "inconsistent"),
        (LABELS[:, :, None], "dim 3|1d array"),
        (np.ones_like(LABELS), "All rows of y have the same labels"),
        (np.tile([1, 0], (len(TEXTS), 1)), "All rows of y have the same labels"),
        (pd.DataFrame(LABELS, columns=["a", "a"]), "unique column names|of its own"),
    ],
    ids=[
        "classes", "minus one", "two", "half", "words", "digits", "NaN", "NA", "lists",
        "sets", "lists in a Series", "even lists", "length", "axes", "ones", "all alike",
        "names",
    ],
)  # fmt: skip
def test_columns_that_are_no_indicators_are_refused(y, message):
    clf = classifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(TEXTS, y)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


def test_lists_of_labels_are_learned_by_the_way_that_the_error_names():
    indicators = MultiLabelBinarizer().fit_transform(LISTS)
    np.testing.assert_array_equal(indicators, LABELS)
    several = MultiOutputClassifier(classifier(max_epochs=1))
    predicted = several.fit(TEXTS, SEVERAL_CLASSES).predict(TEXTS)
    assert predicted.shape == SEVERAL_CLASSES.shape
    assert set(predicted[:, 0]) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "contrastive"}, "objective for multi-label classification"),
        (
            {"objective": "cross_entropy"},
            r"\['auto', 'binary_cross_entropy', 'label_contrastive'\]",
        ),
        ({"objective": CrossEntropy()}, "y asks for multi-label classification"),
        ({"objective": Contrastive()}, "y asks for multi-label classification"),
        ({"class_weight": "balanced"}, "thresholds on predict_proba"),
        ({"class_weight": {0: 1, 1: 2}}, "thresholds on predict_proba"),
    ],
    ids=str,
)
def test_parameters_for_one_label_a_row_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        classifier(**parameters).fit(TEXTS, LABELS)


def test_frames_of_labels_are_known_by_their_names():
    y = pd.DataFrame(LABELS, columns=["red", "good"])
    told = classifier(max_epochs=2).fit(TEXTS, y, X_val=TEXTS[:4], y_val=y[:4])
    assert told.classes_.tolist() == ["red", "good"]
    assert len(told.validation_scores_) == told.n_epochs_
    with pytest.raises(ValueError, match=r"name of its own|unique column names"):
        classifier().fit(TEXTS, y.set_axis(["red", "red"], axis=1))


def test_objective_of_labels_for_one_label_a_row_is_refused():
    with pytest.raises(ValueError, match="objective for classification"):
        classifier(objective="binary_cross_entropy").fit(TEXTS, LABELS[:, 0])


@pytest.mark.parametrize("make", [classifier, regressor])
@pytest.mark.parametrize(
    ("y_val", "message"),
    [
        (LABELS[:, 0], "y_val has 1 columns, but y has 2"),
        (np.column_stack([LABELS, LABELS]), "y_val has 4 columns, but y has 2"),
        (pd.DataFrame(LABELS, columns=["red", "good"]), r"columns \['red', 'good'\]"),
    ],
    ids=["one", "four", "names"],
)
def test_validation_targets_of_other_columns_are_refused(make, y_val, message):
    y = pd.DataFrame(LABELS, columns=NAMES)
    with pytest.raises(ValueError, match=message):
        make().fit(TEXTS, y, X_val=TEXTS, y_val=y_val)


def test_column_of_labels_is_one_label_a_row():
    for column in (LABELS[:, :1], pd.DataFrame({"good": LABELS[:, 0]})):
        with pytest.warns(UserWarning, match="column-vector"):
            clf = classifier(max_epochs=1).fit(TEXTS, column)
        assert clf.predict(NEW_TEXTS).shape == (5,)


# Several numbers a row ----------------------------------------------------------------


@pytest.mark.parametrize("objective", ["squared_error", "huber"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_numbers_that_words_decide_are_learned(adapter, objective):
    reg = regressor(adapter=adapter, objective=objective, max_epochs=None)
    reg.fit(TEXTS, NUMBERS)
    predicted = reg.predict(TEXTS)
    assert predicted.shape == NUMBERS.shape
    assert reg.score(TEXTS, NUMBERS) > 0.9
    assert reg.score(TEXTS, NUMBERS) == pytest.approx(r2_score(NUMBERS, predicted))


def test_numbers_without_adapter_are_each_learned_as_alone():
    noisy = NUMBERS + np.random.RandomState(0).randn(*NUMBERS.shape) * [3.0, 1.0]
    parameters = {"adapter": None, "precision": "float64"}
    both = regressor(**parameters).fit(TEXTS, noisy)
    for i, column in enumerate(noisy.T):
        alone = regressor(**parameters).fit(TEXTS, column)
        np.testing.assert_allclose(
            both.predict(NEW_TEXTS)[:, i], alone.predict(NEW_TEXTS), rtol=1e-6
        )
    assert len(set(both.head_.alpha)) == 2, (
        "the case must be one where penalties differ"
    )


def test_default_head_of_numbers_has_the_penalties_of_ridge_cv():
    rng = np.random.RandomState(0)
    features = rng.randn(40, 6)
    features /= np.sqrt(np.square(features - features.mean(0)).sum(1).mean())
    y = features @ rng.randn(6, 2) + rng.randn(40, 2) * [0.1, 1.0]
    head = default_head(features, y, np.ones(40), features, "regression")
    for alpha, column in zip(head.alpha, y.T, strict=True):
        chosen = RidgeCV(np.logspace(-3, 3, 13) * 40).fit(features, column)
        assert alpha == pytest.approx(chosen.alpha_)


@pytest.mark.parametrize("adapter", ["lora", None])
def test_units_of_one_number_change_its_predictions_in_these_units_alone(adapter):
    parameters = {"adapter": adapter, "precision": "float64"}
    expected = regressor(**parameters).fit(TEXTS, NUMBERS).predict(NEW_TEXTS)
    found = regressor(**parameters).fit(TEXTS, NUMBERS * [1e3, 1.0] + [0.0, 7.0])
    np.testing.assert_allclose(
        found.predict(NEW_TEXTS), expected * [1e3, 1.0] + [0.0, 7.0], rtol=1e-5
    )


@pytest.mark.parametrize("constant", [0.1, 7.0, 0.0])
@pytest.mark.parametrize("adapter", ["lora", None])
def test_number_that_is_constant_leaves_the_others(adapter, constant):
    y = np.column_stack([NUMBERS, np.full(len(TEXTS), constant)])
    reg = regressor(adapter=adapter, max_epochs=None).fit(TEXTS, y)
    predicted = reg.predict(TEXTS)
    np.testing.assert_allclose(predicted[:, 2], constant, atol=1e-5)
    assert r2_score(NUMBERS, predicted[:, :2]) > 0.9
    assert np.isfinite(reg.loss_curve_).all()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e-7])
def test_one_number_that_is_constant_gives_small_losses(constant):
    reg = regressor().fit(TEXTS, np.full(len(TEXTS), constant))
    assert max(reg.loss_curve_) < 1e-10


@pytest.mark.parametrize(
    "head",
    [
        KNeighborsRegressor(3),
        RandomForestRegressor(5, random_state=0),
        MultiOutputRegressor(SVR()),
        Ridge(),
    ],
    ids=lambda head: type(head).__name__,
)
def test_head_of_own_for_several_numbers_sees_them_all(head):
    reg = regressor(head=head, max_epochs=1).fit(TEXTS, NUMBERS)
    alone = clone(head).fit(reg.transform(TEXTS), NUMBERS)
    expected = alone.predict(reg.transform(NEW_TEXTS))
    np.testing.assert_array_equal(reg.predict(NEW_TEXTS), expected)


def test_weights_and_validation_rows_count_with_several_numbers():
    weights = np.arange(len(TEXTS)) % 4 + 0.0
    kept = np.flatnonzero(weights)
    validation = {"X_val": TEXTS[:8], "y_val": NUMBERS[:8]}
    zeroed = regressor().fit(TEXTS, NUMBERS, sample_weight=weights, **validation)
    removed = regressor().fit(
        [TEXTS[i] for i in kept],
        NUMBERS[kept],
        sample_weight=weights[kept],
        **validation,
    )
    assert len(zeroed.validation_scores_) == zeroed.n_epochs_
    found, expected = (reg.predict(NEW_TEXTS) for reg in (zeroed, removed))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.where(LABELS, np.nan, 1.0), "y contains NaN"),
        (np.where(LABELS, "a", "b"), "no number.*AdapterClassifier"),
        (np.zeros((len(TEXTS), 2, 2)), "dim 3|1d array"),
        ([[1.0, 2.0]] * (len(TEXTS) - 1) + [[1.0]], "unlike length"),
    ],
    ids=["NaN", "words", "axes", "ragged"],
)
def test_columns_that_are_no_numbers_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        regressor().fit(TEXTS, y)


# Where they go ------------------------------------------------------------------------

FITS = {
    "labels": lambda **p: classifier(**p).fit(TEXTS, LABELS),
    "named labels": lambda **p: classifier(**p).fit(
        TEXTS, pd.DataFrame(LABELS, columns=NAMES)
    ),
    "numbers": lambda **p: regressor(**p).fit(TEXTS, NUMBERS),
}


@pytest.mark.parametrize("adapter", ["lora", None])
@pytest.mark.parametrize("kind", FITS)
def test_saved_estimators_give_the_same_bits(kind, adapter, tmp_path):
    fitted = FITS[kind](adapter=adapter)
    fitted.save_pretrained(tmp_path / "model")
    assert "head.skops" not in [path.name for path in (tmp_path / "model").iterdir()]
    for loaded in (
        type(fitted).from_pretrained(tmp_path / "model"),
        pickle.loads(pickle.dumps(fitted)),
    ):
        np.testing.assert_array_equal(
            loaded.predict(NEW_TEXTS), fitted.predict(NEW_TEXTS)
        )
        np.testing.assert_equal(loaded.head_.get_params(), fitted.head_.get_params())
        if kind != "numbers":
            log_odds_equal(loaded, fitted)
            np.testing.assert_array_equal(loaded.classes_, fitted.classes_)
            assert loaded.classes_.dtype == fitted.classes_.dtype


@pytest.mark.parametrize("kind", FITS)
def test_torch_module_gives_the_raw_predictions(kind):
    fitted = FITS[kind]()
    module = fitted.to_torch()
    with torch.no_grad():
        found = module(**module.prepare(NEW_TEXTS)).numpy()
    method = fitted.predict if kind == "numbers" else fitted.decision_function
    np.testing.assert_allclose(found, method(NEW_TEXTS), rtol=1e-4, atol=1e-4)


def test_bank_gives_what_each_estimator_gives():
    labels, numbers = FITS["labels"](), FITS["numbers"]()
    forest = classifier(head=RandomForestClassifier(3, random_state=0)).fit(
        TEXTS, LABELS
    )
    one = classifier().fit(TEXTS, np.where(LABELS[:, 0], "+", "-"))
    tasks = {"labels": labels, "numbers": numbers, "forest": forest, "one": one}
    bank = AdapterBank(tasks)
    found = bank.predict(NEW_TEXTS)
    for name, estimator in tasks.items():
        expected = estimator.predict(NEW_TEXTS)
        assert found[name].shape == expected.shape
    np.testing.assert_allclose(
        bank.predict_proba(NEW_TEXTS)["labels"],
        labels.predict_proba(NEW_TEXTS),
        atol=1e-5,
    )
    assert bank.predict_proba(NEW_TEXTS)["forest"].shape == (5, 2)
    mixed = bank.predict(NEW_TEXTS, task=["labels", "numbers", "one", "one", "labels"])
    assert mixed.shape == (5,)
    np.testing.assert_array_equal(mixed[0], labels.predict(NEW_TEXTS)[0])
    np.testing.assert_allclose(mixed[1], numbers.predict(NEW_TEXTS)[1], rtol=1e-4)
    assert type(mixed[2]) is str


@pytest.mark.parametrize(
    ("estimator", "y", "names"),
    [
        (classifier(), LABELS, ["0", "1"]),
        (classifier(), pd.DataFrame(LABELS, columns=NAMES), NAMES),
        (regressor(), NUMBERS, ["prediction0", "prediction1"]),
        (RandomForestClassifier(3, random_state=0), LABELS, ["0", "1"]),
    ],
    ids=["labels", "named labels", "numbers", "forest"],
)
def test_scores_are_out_of_fold_and_named(estimator, y, names):
    X = TEXTS
    if isinstance(estimator, RandomForestClassifier):
        X = FITS["labels"](adapter=None).transform(TEXTS)
    scores = AdapterScores(estimator, cv=2, random_state=0)
    found = scores.fit_transform(X, y)
    assert found.shape == scores.transform(X).shape == (len(X), 2)
    expected = [f"adapterscores_{name}" for name in names]
    assert scores.get_feature_names_out().tolist() == expected
    cv = KFold(2, shuffle=True, random_state=0)
    for fitted, left in cv.split(X):
        part = np.asarray(y)[fitted]
        new = clone(estimator).fit([X[i] for i in fitted], part)
        unseen = [X[i] for i in left]
        if isinstance(estimator, AdapterRegressor):
            right = new.predict(unseen)
        else:
            right = new.predict_proba(unseen)
        if isinstance(right, list):
            right = np.column_stack([of_label[:, 1] for of_label in right])
        np.testing.assert_allclose(found[left], right, atol=1e-5)


def test_thresholds_by_label_are_chosen_out_of_fold():
    rare = LABELS * (np.arange(len(TEXTS)) % 3 == 0)[:, None]
    clf = classifier(adapter=None)
    shares = cross_val_predict(
        clf,
        TEXTS,
        rare,
        cv=KFold(4, shuffle=True, random_state=0),
        method="predict_proba",
    )
    assert shares.shape == rare.shape
    grid = np.linspace(0.05, 0.95, 19)
    chosen = np.array(
        [
            grid[np.argmax([f1_score(label, share > t) for t in grid])]
            for label, share in zip(rare.T, shares.T, strict=True)
        ]
    )
    at_half = f1_score(rare, shares > 0.5, average="macro", zero_division=0)
    assert f1_score(rare, shares > chosen, average="macro") > at_half
    predicted = clf.fit(TEXTS, rare).predict_proba(NEW_TEXTS) > chosen
    assert predicted.shape == (5, 2)


def test_search_over_labels_scores_by_any_metric():
    search = GridSearchCV(
        classifier(max_epochs=1), {"rank": [1, 4]}, cv=2, scoring="f1_micro"
    )
    assert 0 <= search.fit(TEXTS, LABELS).best_score_ <= 1


@pytest.mark.parametrize(
    ("kind", "y"),
    [
        (AdapterClassifierCV, LABELS),
        (AdapterClassifierCV, scipy.sparse.csr_matrix(LABELS)),
        (AdapterRegressorCV, NUMBERS),
    ],
    ids=["labels", "sparse labels", "numbers"],
)
def test_cross_validated_estimators_take_several_targets(kind, y):
    search = kind("tiny", adapters=[None], cv=2, random_state=0).fit(TEXTS, y)
    assert search.predict(NEW_TEXTS).shape == (5, 2)
    assert np.isfinite(search.best_score_)


def test_tags_say_what_targets_may_be():
    assert get_tags(classifier()).classifier_tags.multi_label
    assert not get_tags(classifier()).target_tags.multi_output  # of several classes
    assert get_tags(regressor()).target_tags.multi_output


# Labels of every type -----------------------------------------------------------------

HALF = np.arange(len(TEXTS)) % 2 == 0
THIRD = np.arange(len(TEXTS)) % 3
OF_EVERY_TYPE = {
    "str": np.where(HALF, "yes", "no"),
    "list of str": np.where(HALF, "yes", "no").tolist(),
    "object": np.where(HALF, "yes", "no").astype(object),
    "bool": HALF,
    "list of bool": HALF.tolist(),
    "int": THIRD * 10 - 5,
    "int8": THIRD.astype(np.int8),
    "uint16": THIRD.astype(np.uint16),
    "whole floats": THIRD.astype(float),
    "float32": THIRD.astype(np.float32),
    "ordinal": THIRD + 1,
    "strings of digits": np.array(["10", "9", "2"])[THIRD],
    "ints as objects": THIRD.astype(object),
    "bools as objects": HALF.astype(object),
    "pandas str": pd.Series(np.where(HALF, "yes", "no")),
    "pandas Int64": pd.Series(THIRD, dtype="Int64"),
    "pandas Float64": pd.Series(THIRD, dtype="Float64"),
    "pandas boolean": pd.Series(HALF, dtype="boolean"),
    "pandas string": pd.Series(np.where(HALF, "yes", "no"), dtype="string"),
    "pandas array of boolean": pd.array(HALF, dtype="boolean"),
    "pandas array of string": pd.array(np.where(HALF, "yes", "no"), dtype="string"),
    "pandas Index": pd.Index(np.where(HALF, "yes", "no")),
    "pandas category of ints": pd.Series(THIRD * 10, dtype="category"),
    "Categorical": pd.Categorical(np.where(HALF, "yes", "no")),
    "pandas category": pd.Series(np.where(HALF, "yes", "no"), dtype="category"),
    "pandas ordered": pd.Series(
        pd.Categorical(np.where(HALF, "low", "high"), ["low", "high"], ordered=True)
    ),
    "imbalanced": (np.arange(len(TEXTS)) < 2).astype(int),
}


# Of these scikit-learn makes numbers with a point; they are to come back as numpy has them.
IN_NUMPY = {
    "pandas Int64": THIRD.astype(np.int64),
    "pandas boolean": HALF,
    "pandas array of boolean": HALF,
}


def labels_or_error(fit):
    """Classes and predictions, or the type of the error."""
    try:
        fitted, X = fit()
    except (TypeError, ValueError) as error:
        return type(error)
    return fitted.classes_, fitted.predict(X)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", OF_EVERY_TYPE)
def test_labels_come_back_as_logistic_regression_gives_them(kind, weighted):
    y = OF_EVERY_TYPE[kind]
    in_numpy = IN_NUMPY.get(kind, y)
    weights = np.arange(len(TEXTS)) % 3 + 1.0 if weighted else None
    clf = classifier(max_epochs=1)
    expected = labels_or_error(
        lambda: (
            LogisticRegression().fit(np.eye(len(TEXTS)), in_numpy, weights),
            np.eye(len(TEXTS)),
        )
    )
    found = labels_or_error(lambda: (clf.fit(TEXTS, y, sample_weight=weights), TEXTS))
    if isinstance(expected, type):
        assert found is expected
        return
    np.testing.assert_array_equal(found[0], expected[0])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert type(ours[0]) is type(theirs[0])
    assert set(found[1].tolist()) <= set(expected[0].tolist())


def test_nullable_whole_numbers_beyond_a_float_stay_apart():
    large = 1_790_000_000_000_000_001 + np.arange(3)
    clf = classifier(adapter=None).fit(TEXTS, pd.Series(large[THIRD], dtype="Int64"))
    np.testing.assert_array_equal(clf.classes_, large)


@pytest.mark.parametrize("kind", ["ints as objects", "bools as objects"])
def test_labels_in_an_array_of_objects_are_refused_with_the_remedy(kind):
    with pytest.raises(ValueError, match=r"holds (int|bool)\. .*y\.astype\(int\)"):
        classifier().fit(TEXTS, OF_EVERY_TYPE[kind])


@pytest.mark.parametrize("make", [iter, set, lambda y: dict(enumerate(y))])
@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_targets_without_order_or_length_are_refused(kind, make):
    with pytest.raises(ValueError, match=r"y is a .*Turn it into a list first"):
        kind("tiny").fit(TEXTS, make(THIRD.tolist()))


@pytest.mark.parametrize("kind", OF_EVERY_TYPE)
def test_search_takes_labels_of_every_type_as_the_estimator_does(kind):
    y = OF_EVERY_TYPE[kind]
    search = AdapterClassifierCV("tiny", adapters=[None], cv=2, random_state=0)
    plain = classifier(adapter=None)
    expected = labels_or_error(lambda: (plain.fit(TEXTS, y), TEXTS))
    found = labels_or_error(lambda: (search.fit(TEXTS, y), TEXTS))
    if isinstance(expected, type):
        assert found is expected
        return
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    as_list = cross_val_score(plain, TEXTS, np.asarray(y).tolist(), cv=2)
    assert search.best_score_ == pytest.approx(as_list.mean())


NULLABLE = ["boolean", "Int8", "Int64", "Float64", "category"]


@pytest.mark.parametrize("dtype", NULLABLE)
def test_labels_in_a_frame_of_nullable_columns_are_those_of_plain_ones(dtype):
    frame = pd.DataFrame(LABELS, columns=NAMES)
    nullable = (frame == 1 if dtype == "boolean" else frame).astype(dtype)
    plain, found = classifier().fit(TEXTS, frame), classifier().fit(TEXTS, nullable)
    np.testing.assert_array_equal(found.predict(NEW_TEXTS), plain.predict(NEW_TEXTS))
    np.testing.assert_array_equal(found.classes_, NAMES)
    expected = accuracy_score(LABELS, found.predict(TEXTS))
    assert found.score(TEXTS, nullable) == pytest.approx(expected)
    for scoring in (None, "f1_macro"):
        scores = [
            AdapterClassifierCV(
                "tiny", adapters=[None], cv=2, scoring=scoring, random_state=0
            )
            .fit(TEXTS, y)
            .best_score_
            for y in (LABELS, nullable)
        ]
        assert scores[0] == scores[1]
    missing = nullable.copy()
    missing.iloc[3, 0] = None
    with pytest.raises(ValueError, match=r"contains NaN.*fill or drop"):
        classifier().fit(TEXTS, missing)


@pytest.mark.parametrize("weighted", [False, True])
def test_score_of_labels_is_the_share_of_rows_with_all_right(weighted):
    clf, weights = classifier().fit(TEXTS, LABELS), None
    wrong = LABELS.copy()
    wrong[:5, 0] = 1 - wrong[:5, 0]
    if weighted:
        weights = np.arange(len(TEXTS)) + 1.0
    right = (clf.predict(TEXTS) == wrong).all(axis=1)
    for y in (wrong, scipy.sparse.csr_matrix(wrong), wrong.tolist()):
        assert clf.score(TEXTS, y, weights) == pytest.approx(
            np.average(right, weights=weights)
        )


def test_score_of_labels_in_another_order_is_refused():
    frame = pd.DataFrame(LABELS, columns=[f"l{i}" for i in range(LABELS.shape[1])])
    clf = classifier(adapter=None).fit(TEXTS, frame)
    assert clf.score(TEXTS, frame) == clf.score(TEXTS, LABELS)
    other = frame.iloc[:, ::-1]
    with pytest.raises(ValueError, match=r"but was fitted with \['l0'.*same order"):
        clf.score(TEXTS, other)
    assert clf.score(TEXTS, other[list(clf.classes_)]) == clf.score(TEXTS, frame)
    plain = classifier(adapter=None).fit(TEXTS, LABELS)
    assert plain.score(TEXTS, frame) == clf.score(TEXTS, frame)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "category"])
@pytest.mark.parametrize("search", [False, True])
def test_numbers_of_nullable_types_are_those_of_plain_ones(dtype, search):
    whole = HALF if dtype == "boolean" else np.round(NUMBERS[:, 0] * 2)
    reg = regressor(adapter=None)
    if search:
        reg = AdapterRegressorCV("tiny", adapters=[None], cv=2, random_state=0)
    found, plain = (
        clone(reg).fit(TEXTS, y)
        for y in (pd.Series(whole, dtype=dtype), whole.astype(float))
    )
    np.testing.assert_array_equal(found.predict(NEW_TEXTS), plain.predict(NEW_TEXTS))
    if search:
        assert found.best_score_ == plain.best_score_


@pytest.mark.parametrize("kind", [str, int])
def test_150_classes_come_back_in_their_order(kind):
    words = [f"word{i}" for i in range(150)]
    labels = words if kind is str else [7 * i for i in range(150)]
    texts, y = [f"{word} {thing}" for word in words for thing in THINGS[:3]], []
    for label in labels:
        y += [label] * 3
    clf = classifier(max_epochs=1, shrinkage=0.0).fit(texts, y)
    expected = LogisticRegression().fit(clf.transform(texts), y)
    np.testing.assert_array_equal(clf.classes_, expected.classes_)
    assert clf.predict(texts).dtype == expected.predict(clf.transform(texts)).dtype
    assert clf.predict_proba(texts).shape == (450, 150)
    assert clf.score(texts, y) > 0.5


# The head by itself -------------------------------------------------------------------


def test_head_of_labels_is_one_linear_map():
    X = np.random.RandomState(0).randn(32, 4)
    head = LabelwiseLogisticRegression(C=0.3).fit(X, LABELS)
    assert (head.coef_.shape, head.intercept_.shape) == ((2, 4), (2,))
    np.testing.assert_allclose(
        head.decision_function(X), X @ head.coef_.T + head.intercept_
    )
    np.testing.assert_allclose(logit(head.predict_proba(X)), head.decision_function(X))
    assert clone(head).get_params() == {"C": 0.3, "max_iter": 1000}
    with pytest.raises(NotFittedError):
        clone(head).predict(X)


@pytest.mark.parametrize(
    "columns", [["good", 1], [("a", "good"), ("a", "red")], [1.5, 2.5]]
)
def test_names_of_labels_that_could_not_be_told_apart_are_refused(columns):
    y = pd.DataFrame(LABELS, columns=pd.Index(columns))
    with pytest.raises(ValueError, match="whose names are those of the labels"):
        classifier().fit(TEXTS, y)
    assert classifier().fit(TEXTS, y.set_axis([7, 9], axis=1)).classes_.tolist() == [
        7,
        9,
    ]


def test_scores_take_sparse_indicators_as_the_estimator_does():
    scores = AdapterScores(classifier(adapter=None), cv=2, random_state=0)
    np.testing.assert_array_equal(
        scores.fit_transform(TEXTS, scipy.sparse.csr_matrix(LABELS)),
        scores.fit_transform(TEXTS, LABELS),
    )


def test_labels_that_are_the_same_in_all_rows_are_named():
    y = pd.DataFrame({"rare": [0] * 6, "some": [0, 1] * 3, "always": [1] * 6})
    texts = ["good film", "bad film", "good book", "bad book", "tea", "coffee"]
    with pytest.warns(
        UserWarning, match=r"The labels \['rare', 'always'\] are the same"
    ):
        clf = AdapterClassifier("tiny", max_epochs=1, random_state=0).fit(texts, y)
    np.testing.assert_array_equal(clf.predict(texts)[:, [0, 2]], [[0, 1]] * 6)


DATES = pd.date_range("2026-01-01", periods=4)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (pd.Series(DATES), "datetime64.*Turn times into numbers"),
        (pd.DataFrame({"day": DATES}), "datetime64.*Turn times into numbers"),
        (DATES.to_list(), "y holds what is no number"),
    ],
    ids=["series", "frame", "list"],
)
def test_dates_as_numbers_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        AdapterRegressor("tiny").fit(["a", "b", "c", "d"], y)
