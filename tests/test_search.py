"""Search and composition as scikit-learn users do it."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import get_tags

from skpeft import AdapterClassifier, AdapterRegressor, AdapterScores
from skpeft.adapters import LoRA

RNG = np.random.RandomState(0)
WORDS = {"air": ["plane", "flight", "wing"], "sea": ["ship", "port", "sail"]}
LABELS = np.array(["air", "sea"] * 12)
TEXTS = np.array(
    [" ".join([*RNG.choice(WORDS[y], 2), RNG.choice(["x", "y"])]) for y in LABELS]
)


def classifier(**parameters):
    return AdapterClassifier("tiny", random_state=0, max_epochs=3, **parameters)


@pytest.mark.parametrize(
    "grid",
    [
        {"rank": [2, 4]},
        {"adapter": ["lora", "bottleneck"], "rank": [2, 4]},
        {"layers": [None, 1, [0]]},
        {"objective": ["contrastive", "cross_entropy"]},
        [{"adapter": [None, "full"]}, {"adapter": ["lora"], "rank": [2]}],
    ],
    ids=str,
)
def test_grid_search_over_parameters_finds_a_fitted_winner(grid):
    search = GridSearchCV(classifier(), grid, cv=2, error_score="raise").fit(
        TEXTS, LABELS
    )
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert search.best_score_ > 0.9
    assert search.predict(TEXTS).shape == LABELS.shape


def test_grid_search_over_nested_spec_parameter_prefers_the_better_value():
    # A rank-1 adapter that hardly learns against one that does, by training loss.
    search = GridSearchCV(
        classifier(adapter=LoRA()),
        {"adapter__alpha": [1e-9, 16.0]},
        scoring=lambda est, X, y: -est.loss_curve_[-1],
        cv=2,
        error_score="raise",
    )
    assert search.fit(TEXTS, LABELS).best_params_ == {"adapter__alpha": 16.0}


def test_grid_search_in_two_processes_gives_the_same_labels():
    grid = {"rank": [2, 4]}
    alone, shared = (
        GridSearchCV(classifier(), grid, cv=2, n_jobs=n, error_score="raise").fit(
            TEXTS, LABELS
        )
        for n in (None, 2)
    )
    assert alone.best_params_ == shared.best_params_
    agree = np.mean(alone.predict(TEXTS) == shared.predict(TEXTS))
    assert agree >= 0.99
    np.testing.assert_allclose(
        alone.cv_results_["mean_test_score"], shared.cv_results_["mean_test_score"]
    )


def test_classifier_in_pipeline_and_cross_validation():
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipe = make_pipeline(lower, classifier())
    assert cross_val_score(pipe, [t.upper() for t in TEXTS], LABELS, cv=3).mean() > 0.9
    proba = cross_val_predict(classifier(), TEXTS, LABELS, cv=3, method="predict_proba")
    assert proba.shape == (len(TEXTS), 2)
    assert np.allclose(proba.sum(axis=1), 1)


def test_transform_feeds_another_model_and_names_its_columns():
    clf = classifier().set_output(transform="pandas").fit(TEXTS, LABELS)
    frame = clf.transform(TEXTS)
    assert list(frame.columns) == list(clf.get_feature_names_out())
    assert frame.shape == (len(TEXTS), 32)
    features = clf.set_output(transform="default").transform(TEXTS)
    np.testing.assert_array_equal(clf.head_.predict(features), clf.predict(TEXTS))


def test_scores_beside_numeric_columns_in_column_transformer():
    frame = pd.DataFrame({"text": TEXTS, "n": RNG.randn(len(TEXTS))})
    columns = ColumnTransformer(
        [
            ("text", AdapterScores(classifier(), cv=3), "text"),
            ("n", StandardScaler(), ["n"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression())
    assert cross_val_score(model, frame, LABELS, cv=3).mean() > 0.9
    names = model.fit(frame, LABELS)[0].get_feature_names_out()
    assert list(names) == ["text__adapterscores_air", "text__adapterscores_sea", "n__n"]


def test_scores_of_training_rows_are_out_of_fold():
    # Labels are random, so nothing can be known about a row that was not seen.
    texts = [f"{i} {RNG.randint(1000)}" for i in range(60)]
    y = RNG.permutation([0, 1] * 30)
    clf = AdapterClassifier("tiny", random_state=0, max_epochs=60, learning_rate=1e-2)
    scores = AdapterScores(clf, cv=3, random_state=0)
    honest = scores.fit_transform(texts, y)[:, 1]
    leaked = scores.transform(texts)[:, 1]
    leaked_accuracy, honest_accuracy = (
        np.mean((p > 0.5) == y) for p in (leaked, honest)
    )
    assert honest_accuracy < 0.75  # chance is 0.5, with standard deviation 0.065
    assert leaked_accuracy > honest_accuracy + 0.2
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    by_hand = cross_val_predict(clf, texts, y, cv=folds, method="predict_proba")
    np.testing.assert_array_equal(honest, by_hand[:, 1])


def test_weights_and_groups_reach_all_fits_of_scores():
    weights, groups = (
        np.tile([1.0, 2.0, 0.0], len(TEXTS) // 3),
        np.arange(len(TEXTS)) // 4,
    )
    folds = GroupKFold(3)
    scores = AdapterScores(classifier(), cv=folds)
    found = scores.fit_transform(TEXTS, LABELS, sample_weight=weights, groups=groups)
    whole = classifier().fit(TEXTS, LABELS, weights)
    np.testing.assert_array_equal(scores.transform(TEXTS), whole.predict_proba(TEXTS))
    texts = np.array(TEXTS, dtype=object)
    for fit, unseen in folds.split(TEXTS, LABELS, groups):
        part = classifier().fit(texts[fit], LABELS[fit], weights[fit])
        np.testing.assert_array_equal(found[unseen], part.predict_proba(texts[unseen]))


def test_weights_are_routed_to_scores_where_they_are_asked_for():
    frame = pd.DataFrame({"text": TEXTS})
    weights = np.tile([1.0, 2.0, 0.0], len(TEXTS) // 3)
    with sklearn.config_context(enable_metadata_routing=True):
        scores = AdapterScores(classifier(), cv=2).set_fit_request(sample_weight=True)
        columns = ColumnTransformer([("text", scores, "text")])
        columns.fit_transform(frame, LABELS, sample_weight=weights)
        unasked = ColumnTransformer([("text", AdapterScores(classifier()), "text")])
        with pytest.raises(UnsetMetadataPassedError, match="AdapterScores"):
            unasked.fit_transform(frame, LABELS, sample_weight=weights)
        inner = classifier().set_fit_request(sample_weight=True)
        pipe = make_pipeline(FunctionTransformer(), inner)
        piped = AdapterScores(pipe, cv=2, random_state=0)
        of_pipe = piped.fit_transform(TEXTS, LABELS, sample_weight=weights)
        plain = AdapterScores(classifier(), cv=2, random_state=0)
        of_single = plain.fit_transform(TEXTS, LABELS, sample_weight=weights)
        np.testing.assert_array_equal(of_pipe, of_single)
    whole = classifier().fit(TEXTS, LABELS, weights)
    np.testing.assert_array_equal(columns.transform(frame), whole.predict_proba(TEXTS))


def test_scores_of_classifier_without_probabilities_are_refused():
    with pytest.raises(ValueError, match="has no predict_proba"):
        AdapterScores(LinearSVC()).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("estimator", "y", "message"),
    [
        (classifier(), list("aab"), r"cv=3 .* the largest class has 2 rows"),
        (AdapterRegressor("tiny"), [1.0, 2.0], r"cv=3 .* the data have 2 rows"),
        (classifier(), [], r"cv=3 .* the largest class has 0 rows"),
    ],
    ids=["classes", "numbers", "empty"],
)
def test_too_few_rows_for_folds_are_refused_before_a_fit(
    estimator, y, message, monkeypatch
):
    monkeypatch.setattr(type(estimator), "fit", lambda *_: pytest.fail("a fit"))
    with pytest.raises(ValueError, match=message):
        AdapterScores(estimator, cv=3).fit_transform(TEXTS[: len(y)], y)


def test_scores_of_regressor_are_one_column_of_predictions():
    y = np.array([text.count("plane") for text in TEXTS], dtype=float)
    scores = AdapterScores(AdapterRegressor("tiny", random_state=0), cv=3)
    assert scores.fit_transform(TEXTS, y).shape == (len(TEXTS), 1)
    np.testing.assert_array_equal(
        scores.transform(TEXTS)[:, 0], scores.estimator_.predict(TEXTS)
    )
    assert list(scores.get_feature_names_out()) == ["adapterscores_prediction"]


def test_scores_follow_folds_that_are_given():
    y = np.array([text.count("plane") for text in TEXTS], dtype=float)
    reg = AdapterRegressor("tiny", max_epochs=1, random_state=0)
    folds = KFold(3, shuffle=True, random_state=1)
    scores = AdapterScores(reg, cv=folds).fit_transform(TEXTS, y)
    expected = cross_val_predict(reg, TEXTS, y, cv=folds)
    np.testing.assert_array_equal(scores[:, 0], expected)


def test_optuna_searches_adapters_and_learning_rates():
    pytest.importorskip(
        "optuna_integration.sklearn", reason="optuna-integration[sklearn] is not there"
    )
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.exceptions import ExperimentalWarning
    from optuna_integration import OptunaSearchCV

    space = {
        "adapter": CategoricalDistribution(["lora", "bottleneck"]),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    }
    with pytest.warns(ExperimentalWarning):
        search = OptunaSearchCV(
            classifier(), space, cv=2, n_trials=3, random_state=0, error_score="raise"
        )
    search.fit(list(TEXTS), LABELS)
    assert len(search.trials_) == 3
    assert search.best_score_ > 0.9
    assert search.best_params_["adapter"] in {"lora", "bottleneck"}
    assert search.predict(list(TEXTS)).tolist() == LABELS.tolist()


def test_scores_of_several_columns_of_classes_are_refused():
    model = MultiOutputClassifier(
        AdapterClassifier("tiny", max_epochs=1, random_state=0)
    )
    y = np.array([[1, 2], [2, 3], [3, 4]] * 4)
    scores = AdapterScores(model, cv=2)
    with pytest.raises(ValueError, match="one AdapterScores for each column of y"):
        scores.fit_transform(TEXTS[:12], y)
    assert not hasattr(scores, "estimator_")


def test_scores_tell_the_features_of_their_estimator():
    frame = pd.DataFrame({"body": TEXTS[:12]})
    scores = AdapterScores(classifier(), cv=2)
    assert not hasattr(scores, "n_features_in_")
    assert get_tags(AdapterScores(None)).input_tags.string  # refused in fit alone
    scores.fit(frame, list("ab") * 6)
    assert scores.n_features_in_ == 1
    assert scores.feature_names_in_.tolist() == ["body"]
