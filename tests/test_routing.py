"""Weights and validation rows reach the estimators through scikit-learn's routing."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skpeft import AdapterClassifier, AdapterRegressor

X = ["Good film", "Bad film", "Good book", "Bad book", "Good play", "Bad play"] * 2
LABELS = np.array(["+", "-"] * 6)
X_VAL, Y_VAL = ["GOOD show", "BAD show", "GOOD art"], ["+", "-", "+"]
WEIGHTS = np.linspace(1.0, 3.0, 12)
OPTIONS = {"max_epochs": 2, "random_state": 0}
REQUESTS = {"sample_weight": True, "X_val": True, "y_val": True}


@pytest.fixture(autouse=True)
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def shout(texts):
    return [text.upper() for text in texts]


class Noting(AdapterClassifier):
    """Keeps what fit was given."""

    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None):
        self.given = list(X), sample_weight, X_val, y_val
        return super().fit(X, y, sample_weight, X_val=X_val, y_val=y_val)


def test_pipeline_hands_on_weights_and_transforms_validation_texts():
    clf = Noting("tiny", **OPTIONS).set_fit_request(**REQUESTS)
    pipe = Pipeline(
        [("shout", FunctionTransformer(shout)), ("clf", clf)], transform_input=["X_val"]
    )
    pipe.fit(X, LABELS, sample_weight=WEIGHTS, X_val=X_VAL, y_val=Y_VAL)
    texts, weights, held_out, targets = pipe[-1].given
    assert texts == shout(X)
    assert list(held_out) == shout(X_VAL)
    assert targets == Y_VAL
    np.testing.assert_array_equal(weights, WEIGHTS)
    by_hand = AdapterClassifier("tiny", **OPTIONS)
    by_hand.fit(shout(X), LABELS, WEIGHTS, X_val=shout(X_VAL), y_val=Y_VAL)
    np.testing.assert_array_equal(
        pipe.decision_function(X_VAL), by_hand.decision_function(shout(X_VAL))
    )


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_search_gives_each_fold_its_weights_and_all_validation_rows(kind):
    y, y_val = LABELS, Y_VAL
    if kind is AdapterRegressor:
        y, y_val = (LABELS == "+") * 1.0, [1.0, 0.0, 1.0]
    est = kind("tiny", **OPTIONS)
    est.set_fit_request(**REQUESTS).set_score_request(sample_weight=True)
    search = GridSearchCV(est, {"rank": [2]}, cv=2, error_score="raise")
    search.fit(X, y, sample_weight=WEIGHTS, X_val=X_VAL, y_val=y_val)
    folds = [(np.arange(6, 12), np.arange(6)), (np.arange(6), np.arange(6, 12))]
    for i, (train, test) in enumerate(folds):
        by_hand = clone(est).set_params(rank=2)
        rows = [X[j] for j in train]
        by_hand.fit(rows, y[train], WEIGHTS[train], X_val=X_VAL, y_val=y_val)
        score = by_hand.score([X[j] for j in test], y[test], WEIGHTS[test])
        assert search.cv_results_[f"split{i}_test_score"][0] == pytest.approx(score)
    assert len(search.best_estimator_.validation_scores_) > 0


def test_cross_validation_hands_on_what_was_asked_for():
    clf = AdapterClassifier("tiny", **OPTIONS)
    clf.set_fit_request(**REQUESTS).set_score_request(sample_weight=False)
    found = cross_validate(
        clf,
        X,
        LABELS,
        cv=2,
        return_estimator=True,
        params={"sample_weight": WEIGHTS, "X_val": X_VAL, "y_val": Y_VAL},
    )
    assert all(len(fitted.validation_scores_) == 2 for fitted in found["estimator"])


def test_head_in_a_pipeline_gets_the_weights_that_its_steps_ask_for():
    last = LogisticRegression().set_fit_request(sample_weight=True)
    scale = StandardScaler().set_fit_request(sample_weight=False)
    clf = AdapterClassifier("tiny", head=make_pipeline(scale, last), **OPTIONS)
    with sklearn.config_context(enable_metadata_routing=False):
        expected = clone(clf).fit(X, LABELS, WEIGHTS).predict_proba(X)
        without = clone(clf).fit(X, LABELS).predict_proba(X)
    found = clf.fit(X, LABELS, WEIGHTS).predict_proba(X)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - without).max() > 1e-6


def test_what_was_not_asked_for_is_refused():
    clf = AdapterClassifier("tiny", **OPTIONS)
    with pytest.raises(ValueError, match=r"sample_weight.* not explicitly set"):
        cross_validate(clf, X, LABELS, cv=2, params={"sample_weight": WEIGHTS})
