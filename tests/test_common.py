"""scikit-learn's own checks, all of them, over rows of numbers."""

import inspect

import pytest
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.estimator_checks import (
    check_classifier_multioutput,
    check_param_validation,
    estimator_checks_generator,
    parametrize_with_checks,
)

from skpeft import (
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    AdapterRegressorCV,
    AdapterScores,
)

# float64, since the invariance checks compare at 1e-7.
ESTIMATORS = [
    kind("array", random_state=0, precision="float64", device="cpu")
    for kind in (AdapterClassifier, AdapterRegressor)
] + [
    kind(
        "array", ranks=(1, 2), cv=2, max_epochs=1, random_state=0, precision="float64",
        device="cpu",
    )
    for kind in (AdapterClassifierCV, AdapterRegressorCV)
]  # fmt: skip
SCORES = [
    AdapterScores(single, cv=2, random_state=0)
    for single in (LogisticRegression(), Ridge())
]
WEIGHTS = "check_sample_weight_equivalence_on_dense_data"
EXPECTED = {
    WEIGHTS: "a row of weight 2 is one row of a batch, a repeated row is two: batches, "
    "and with them the steps of training, differ"
}
OUT_OF_FOLD = dict.fromkeys(
    ("check_transformer_general", "check_transformer_data_not_an_array"),
    "scores of training rows are of fits without them, and so not those of transform",
)


@parametrize_with_checks(
    [*ESTIMATORS, *SCORES],
    expected_failed_checks=lambda estimator: (
        OUT_OF_FOLD if isinstance(estimator, AdapterScores) else EXPECTED
    ),
)
def test_estimator_on_numeric_rows_passes_check(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it a check is skipped
    check(estimator)


@pytest.mark.parametrize("estimator", SCORES, ids=str)
@pytest.mark.parametrize("name", OUT_OF_FOLD)
def test_checks_of_scores_fail_for_the_reason_given_alone(estimator, name):
    every = estimator_checks_generator(estimator, mark=None)
    (check,) = {
        c.func.__name__: c for _, c in every if c.func.__name__ == name
    }.values()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_estimator_on_numeric_rows_runs_the_whole_list(estimator):
    names = {
        getattr(check, "func", check).__name__
        for _, check in estimator_checks_generator(estimator, mark=None)
    }
    assert len(names) > 50
    assert "check_fit2d_1sample" in names
    assert WEIGHTS in names
    several = (
        "check_classifiers_multilabel_representation_invariance"
        if is_classifier(estimator)
        else "check_regressor_multioutput"
    )
    assert several in names


def test_classifier_passes_the_check_of_estimators_with_several_outputs():
    # Not in the list without the tag `multi_output`, which stands for several classes in
    # each column; the check itself gives labels.
    check_classifier_multioutput("AdapterClassifier", ESTIMATORS[0])


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_estimator_with_wrong_parameter_is_refused_before_fitting(estimator):
    check_param_validation(type(estimator).__name__, estimator)
    names = set(inspect.signature(type(estimator)).parameters)
    assert names == set(estimator._parameter_constraints)
