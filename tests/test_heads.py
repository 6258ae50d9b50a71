"""The linear start of training and the default heads, against normal equations."""

import numpy as np
import pytest
from numpy.random import RandomState
from scipy.special import logit
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._training import Rows, rows_to_start
from skpeft.heads import (
    LabelwiseLogisticRegression,
    closed_form,
    default_head,
    divide_logits,
    feature_scale,
    logits,
    weight_argument,
)

RNG = np.random.RandomState(0)
X = RNG.randn(30, 4) * [1.0, 2.0, 0.5, 3.0] + [5.0, 0.0, -1.0, 2.0]
CLASSES = np.arange(30) % 3
LABELS = (RNG.rand(30, 2) < [0.3, 0.6]) + 0
NUMBERS = RNG.randn(30)
WEIGHTS = RNG.randint(1, 4, size=30)
TASKS = [
    ("classification", CLASSES, np.eye(3)[CLASSES]),
    ("regression", NUMBERS, NUMBERS[:, None]),
    ("regression", np.c_[NUMBERS, CLASSES], np.c_[NUMBERS, CLASSES]),
    ("multi-label classification", LABELS, LABELS),
]


@pytest.mark.parametrize(("task", "y", "outputs"), TASKS)
def test_start_solves_the_weighted_normal_equations(task, y, outputs):
    start = closed_form(X, y, WEIGHTS, task)
    centre = WEIGHTS @ X / WEIGHTS.sum()
    square = WEIGHTS @ np.square(X - centre).sum(axis=1) / WEIGHTS.sum()
    np.testing.assert_allclose(start.centre, centre)
    assert start.scale == pytest.approx(np.sqrt(square))
    unit = (X - centre) / np.sqrt(square)
    means = WEIGHTS @ outputs / WEIGHTS.sum()  # as features are centred: the intercept
    # 30 is the penalty of the start: strong, so that training has something to learn.
    gram = unit.T @ (WEIGHTS[:, None] * unit) + 30.0 * np.eye(4)
    coef = np.linalg.solve(gram, unit.T @ (WEIGHTS[:, None] * (outputs - means))).T
    if task == "multi-label classification":
        share = (means * 30 + 0.5) / 31
        coef, means = coef / (share * (1 - share))[:, None], logit(share)
    np.testing.assert_allclose(start.coef, coef, rtol=1e-6)
    np.testing.assert_allclose(start.intercept, means)


def test_scale_of_features_counts_a_weight_as_so_many_rows():
    repeated = np.repeat(X, WEIGHTS, axis=0)
    expected = np.sqrt(repeated.var(axis=0).sum())
    assert feature_scale(X, WEIGHTS) == pytest.approx(expected)
    assert feature_scale(np.ones((5, 3)), np.ones(5)) == 1.0


@pytest.mark.parametrize(("task", "y", "_"), TASKS)
@pytest.mark.parametrize("frozen", [X, None], ids=["frozen", "no frozen"])
def test_default_head_predicts_the_same_in_other_units(task, y, _, frozen):
    if frozen is None and task == "regression":
        y = y - y.mean(axis=0)
    found = []
    for units, factor in ((1.0, 1.0), (1e3, 1.0), (1.0, 7.0)):
        weights = WEIGHTS * factor
        features = None if frozen is None else frozen * units
        head = default_head(X * units, y, weights, features, task)
        head.set_params(**({} if task == "regression" else {"max_iter": 10_000}))
        head.fit((X - X.mean(axis=0)) * units, y, sample_weight=weights)
        method = "predict" if task == "regression" else "decision_function"
        found.append(getattr(head, method)((X - X.mean(axis=0)) * units))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-2, atol=1e-3)


def test_default_classification_head_has_penalty_10_at_unit_scale():
    scale = feature_scale(X, np.ones(30))
    head = default_head(X, CLASSES, np.ones(30), None, "classification")
    assert type(head) is LogisticRegression
    np.testing.assert_allclose(head.C, 10 / scale**2)  # as for features of unit norm


@pytest.mark.parametrize("n_rows", [2, 3])
def test_penalty_of_a_regressor_is_fixed_for_two_rows_and_chosen_from_three_on(n_rows):
    rows, ones = X[:n_rows], np.ones(n_rows)
    head = default_head(rows, NUMBERS[:n_rows], ones, rows, "regression")
    fixed = default_head(rows, NUMBERS[:n_rows], ones, None, "regression")
    scale = feature_scale(rows, ones)
    assert type(head) is type(fixed) is Ridge
    assert fixed.alpha == pytest.approx(scale**2)
    grid = np.logspace(-3, 3, 13) * n_rows * scale**2
    chosen = np.isclose(head.alpha, grid).any()
    assert chosen == (n_rows == 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_labelwise_regressions_are_those_of_scikit_learn(weighted):
    weights = WEIGHTS if weighted else None
    constant = np.zeros(30, dtype=int)
    y = np.c_[LABELS, constant, constant + 1]
    head = LabelwiseLogisticRegression(C=0.3).fit(X, y, sample_weight=weights)
    for i in range(2):
        one = LogisticRegression(C=0.3, max_iter=1000).fit(X, y[:, i], weights)
        np.testing.assert_allclose(head.coef_[i], one.coef_[0])
        np.testing.assert_allclose(head.intercept_[i], one.intercept_[0])
        shares = head.predict_proba(X)[:, i]
        np.testing.assert_allclose(shares, one.predict_proba(X)[:, 1])
        np.testing.assert_array_equal(head.predict(X)[:, i], one.predict(X))
    np.testing.assert_array_equal(head.coef_[2:], np.zeros((2, 4)))
    np.testing.assert_allclose(head.intercept_[2:], logit([0.5 / 31, 30.5 / 31]))
    assert head.classes_.tolist() == [0, 1, 2, 3]
    assert head.n_features_in_ == 4


@pytest.mark.parametrize("y", [CLASSES, CLASSES % 2], ids=["three", "two"])
def test_tempered_head_has_the_softmax_of_divided_logits(y):
    head = LogisticRegression().fit(X, y)
    raw = logits(head, X)
    assert raw.shape == (30, y.max() + 1)
    exponents = np.exp(raw)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X), shares)
    divide_logits(head, 2.5)
    exponents = np.exp(raw / 2.5)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict_proba(X), shares)


def test_weights_go_to_the_last_step_of_a_pipeline():
    assert weight_argument(Ridge()) == "sample_weight"
    piped = make_pipeline(StandardScaler(), SVC())
    assert weight_argument(piped) == "svc__sample_weight"


def rows_of(targets, weights=None, n_label_texts=0):
    """Rows whose items are their numbers."""
    n = len(targets)
    return Rows(
        [*range(n)], targets, np.ones(n) if weights is None else weights, n_label_texts
    )


@pytest.mark.parametrize("n_classes", [2, 600])
def test_layer_starts_from_512_rows_or_one_of_each_class(n_classes):
    classes = np.append(np.zeros(700, dtype=int), np.arange(n_classes))
    found = rows_to_start(rows_of(classes), "classification", RandomState(0))
    assert len(set(found.items)) == len(found.items) == max(512, n_classes)
    assert set(found.targets) == set(range(n_classes))


@pytest.mark.parametrize(("n", "task"), [(512, "classification"), (900, "regression")])
def test_layer_starts_from_all_rows_where_they_are_few_or_numbers(n, task):
    rows = rows_of(np.zeros(n, dtype=int))
    assert rows_to_start(rows, task, RandomState(0)) is rows


def test_layer_starts_from_rows_of_everywhere_and_all_hints_with_weights_of_mean_1():
    weights = np.full(2000, 1e-6)
    weights[::100] = 1.0
    rows = rows_of(np.ones((2000, 3)), weights, n_label_texts=5)
    found = rows_to_start(rows, "multi-label classification", RandomState(0))
    assert len(set(found.items)) == 512
    assert np.ptp(found.items) > 1000
    assert {*range(1995, 2000)} <= set(found.items)
    assert found.weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(
        found.weights / found.weights.max(), weights[found.items] / 1.0
    )


@pytest.mark.parametrize("shrinkage", [0.0, "auto"])
def test_features_that_are_not_finite_leave_an_earlier_fit_as_it_was(shrinkage):
    X = np.random.RandomState(0).randn(40, 6).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    clf = AdapterClassifier(
        "array", objective="cross_entropy", shrinkage=shrinkage, max_epochs=2
    ).fit(X, y)
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match="not finite"):
        clf.fit(X * np.float32(1e38), y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_more_rows_than_the_layer_starts_from_are_learned_as_well():
    words = ["good", "fine", "bad", "poor"]
    texts = [f"{words[i % 4]} {i}" for i in range(600)]
    labels = np.array(["+", "+", "-", "-"] * 150)
    labels[-1] = "?"
    clf = AdapterClassifier(
        "tiny", objective="cross_entropy", shrinkage=0.0, max_epochs=2, random_state=0
    )
    assert clf.fit(texts, labels).score(texts, labels) > 0.95
    assert clf.classes_.tolist() == ["+", "-", "?"]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (AdapterClassifier("tiny"), KMeans(2)),
        (AdapterClassifier("tiny"), make_pipeline(StandardScaler(), IsolationForest())),
        (AdapterRegressor("tiny"), KMeans(2)),
    ],
    ids=["clusters", "outliers", "regressor"],
)
def test_head_that_learns_no_targets_is_refused(model, head):
    with pytest.raises(ValueError, match=r"(?s)head=.* must do (classif|regress)"):
        model.set_params(head=head).fit(["a", "b", "c", "d"], [0, 1, 0, 1])


def test_search_as_head_takes_the_weights_of_what_it_searches():
    X = ["good film", "bad film", "good book", "bad book"] * 3
    y, weights = ["+", "-"] * 6, np.arange(1.0, 13.0)
    head = GridSearchCV(LogisticRegression(), {"C": [0.1]}, cv=2)
    clf = AdapterClassifier("tiny", adapter=None, head=head).fit(X, y, weights)
    alone = LogisticRegression(C=0.1).fit(clf.transform(X), y, weights)
    np.testing.assert_allclose(
        clf.predict_proba(X), alone.predict_proba(clf.transform(X))
    )
    pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    head = make_pipeline(GridSearchCV(pipe, {"logisticregression__C": [0.1]}, cv=2))
    clf.set_params(head=head).fit(X, y, weights)
    alone = pipe.fit(clf.transform(X), y, logisticregression__sample_weight=weights)
    np.testing.assert_allclose(
        clf.predict_proba(X), alone.predict_proba(clf.transform(X))
    )
    head = GridSearchCV(KNeighborsClassifier(1), {"p": [1]}, cv=2)
    with pytest.raises(ValueError, match="takes no sample_weight in fit"):
        clf.set_params(head=head).fit(X, y, weights)
