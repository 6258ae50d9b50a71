"""The checks of text estimators pass on ours, and each fails on one that breaks it."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC, LinearSVR

from skpeft import AdapterClassifier, AdapterRegressor, testing
from skpeft.testing import check_text_estimator, text_checks

KINDS = (AdapterClassifier, AdapterRegressor)
ESTIMATORS = [
    kind("tiny", adapter=adapter, max_epochs=3, random_state=0)
    for kind in KINDS
    for adapter in ("lora", None)
]


def each_check(estimators):
    return [
        pytest.param(
            estimator,
            check,
            id=f"{type(estimator).__name__}-{getattr(estimator, 'adapter', None)}"
            f"-{check.__name__}",
        )
        for estimator in estimators
        for check in text_checks(estimator)
    ]


@pytest.mark.parametrize(("estimator", "check"), each_check(ESTIMATORS))
def test_adapter_estimator_passes_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "last",
    [
        LogisticRegression(),
        LinearSVC(),
        CalibratedClassifierCV(LinearSVC(), cv=2),
        Ridge(),
        LinearSVR(),
    ],
    ids=str,
)
def test_pipeline_of_tfidf_passes_the_checks_that_apply(last):
    pipeline = make_pipeline(TfidfVectorizer(), last)
    reads_less = {  # neither frames nor pairs, and errors of the vectoriser's own kind
        "check_one_column_arrays",
        "check_pairs",
        "check_n_features_in",
        "check_input_that_is_no_text",
        "check_targets_that_do_not_fit",
        "check_pandas_texts",
        "check_pandas_columns",
        "check_polars_texts",
        "check_polars_columns",
    }
    checks = [c for c in text_checks(pipeline) if c.__name__ not in reads_less]
    assert len(checks) > 10
    for check in checks:
        check(pipeline)


@pytest.mark.parametrize(
    "head", [RidgeClassifier(), KNeighborsClassifier(2, weights="distance")], ids=str
)
@pytest.mark.parametrize("check", testing.MULTI_LABEL_CHECKS, ids=lambda c: c.__name__)
def test_head_with_some_of_the_methods_passes_checks_of_labels(check, head):
    check(AdapterClassifier("tiny", adapter=None, head=head, random_state=0))


# One broken estimator a check ---------------------------------------------------------


class ReturnsNothing(AdapterClassifier):
    def fit(self, X, y):
        super().fit(X, y)


class UnfittedGivesAttributeError(AdapterClassifier):
    def predict(self, X):
        return self.head_.predict(self.transform(X))


class UnfittedGivesAnAnswer(AdapterClassifier):
    def predict(self, X):
        return super().predict(X) if hasattr(self, "head_") else ["good"] * len(X)


class LearnsAnotherRowsTarget(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(X, list(y)[::-1])


class ReadsTuplesBackwards(AdapterClassifier):
    def predict(self, X):
        return super().predict(X[::-1] if isinstance(X, tuple) else X)


class PrintsRowsOfArrays(AdapterClassifier):
    def fit(self, X, y):
        return super().fit([str(row) for row in X], y)

    def _features(self, X):
        return super()._features([str(row) for row in X])


class ReadsFirstTextOfPairsInArrays(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(self._first(X), y)

    def _features(self, X):
        return super()._features(self._first(X))

    def _first(self, X):
        if isinstance(X, np.ndarray) and X.ndim == 2:
            return [(row[0], row[0]) for row in X]
        return X


class CountsLettersAsFeatures(AdapterClassifier):
    def fit(self, X, y):
        super().fit(X, y)
        self.n_features_in_ = len(X[0])
        return self


class ClonesWithWhatItLearned(AdapterClassifier):
    def __sklearn_clone__(self):
        return copy.deepcopy(self)


class DrawsFromTheGlobalGenerator(AdapterClassifier):
    def fit(self, X, y):
        weights = np.random.uniform(0.1, 1, len(y))
        return super().fit(X, y, sample_weight=weights)


class LearnsOnlyOnce(AdapterClassifier):
    def fit(self, X, y):
        return self if hasattr(self, "head_") else super().fit(X, y)


class RaisesItsOwnTolerance(AdapterClassifier):
    def fit(self, X, y):
        self.tol = 2 * self.tol
        return super().fit(X, y)


class StripsTextsInPlace(AdapterClassifier):
    def fit(self, X, y):
        for i in range(len(X)):
            X[i] = X[i].strip()
        return super().fit(X, y)


class LooksAtThePlaceInTheBatch(AdapterClassifier):
    def _features(self, X):
        features = super()._features(X)
        return features + np.linspace(0, 1, len(features))[:, None]


class NamesClassesByPlace(ClassifierMixin, BaseEstimator):
    """Without scores, so that labels alone show what it does."""

    def __init__(self, encoder="tiny", adapter=None, random_state=None):
        self.encoder, self.adapter = encoder, adapter
        self.random_state = random_state

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return self.classes_[np.arange(len(X)) % 2]


class ScalesByTheBatch(AdapterClassifier):
    def _features(self, X):
        features = super()._features(X)
        return features - features.mean(axis=0)


class RemembersWhatItPredicted(AdapterClassifier):
    def predict(self, X):
        self.last_ = super().predict(X)
        return self.last_


class CannotBePickled(AdapterClassifier):
    def fit(self, X, y):
        super().fit(X, y)
        self.rule_ = lambda x: x
        return self


class RoundsWhenPickled(AdapterClassifier):
    def __getstate__(self):
        state = super().__getstate__()
        if "head_" in state:
            state["head_"] = copy.deepcopy(state["head_"])
            state["head_"].coef_ = state["head_"].coef_.astype(np.float16)
        return state


class PrintsNumbers(AdapterClassifier):
    def fit(self, X, y):
        return super().fit([str(x) for x in X], y)

    def _features(self, X):
        return super()._features([str(x) for x in X])


class IsFittedByInputItRefuses(AdapterClassifier):
    def __sklearn_is_fitted__(self):
        return getattr(self, "tried", False)

    def fit(self, X, y):
        self.tried = True
        return super().fit(X, y)


class SaysLittle(AdapterClassifier):
    def fit(self, X, y):
        try:
            return super().fit(X, y)
        except ValueError:
            raise ValueError("bad input") from None


class CutsTheLongerOne(AdapterClassifier):
    def fit(self, X, y):
        if y is None:
            return super().fit(X, y)
        n = min(len(X), len(y))
        return super().fit(X[:n], y[:n])


class CountsInTheIndex(AdapterClassifier):
    def fit(self, X, y):
        y = [y[i] for i in range(len(y))]
        return super().fit([X[i] for i in range(len(X))], y)


class TakesRowsOfPolarsBackwards(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(self._read(X), list(self._read(y)))

    def _read(self, values):
        backwards = type(values).__module__.startswith("polars")
        return values[::-1] if backwards else values


class ForgetsColumnNames(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(np.asarray(X, dtype=object), y)

    def _features(self, X):
        return super()._features(np.asarray(X, dtype=object))


class SortsColumns(AdapterClassifier):
    def _features(self, X):
        if hasattr(X, "columns") and hasattr(self, "feature_names_in_"):
            X = X[[name for name in self.feature_names_in_ if name in X.columns]]
        return super()._features(X)


class GivesClassNumbers(AdapterClassifier):
    def predict(self, X):
        return np.searchsorted(self.classes_, super().predict(X))


class PrintsLabels(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(X, [str(label) for label in y])


class SwapsProbabilities(AdapterClassifier):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


class SwapsDecisions(AdapterClassifier):
    def decision_function(self, X):
        return -super().decision_function(X)


class GivesFloats(AdapterClassifier):
    def predict(self, X):
        return super().predict(X).astype(float)


class ForgetsNamesOfLabels(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(X, np.asarray(y) if hasattr(y, "columns") else y)


class ReadsFramesBackwards(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(X, y[::-1] if hasattr(y, "columns") else y)


class TakesAllForIndicators(AdapterClassifier):
    def fit(self, X, y):
        return super().fit(X, np.equal(np.array(y, dtype=object), 1).astype(int))


class GivesTheFirstNumber(AdapterRegressor):
    def predict(self, X):
        return super().predict(X)[:, 0]


class GivesTheMean(AdapterRegressor):
    def predict(self, X):
        found = super().predict(X)
        return np.broadcast_to(found.mean(axis=0), found.shape)


BROKEN = {
    "check_fit_returns_self": [ReturnsNothing],
    "check_unfitted_estimator_says_so": [
        UnfittedGivesAttributeError,
        UnfittedGivesAnAnswer,
    ],
    "check_learns_texts_that_differ_in_a_word": [LearnsAnotherRowsTarget],
    "check_sequences": [ReadsTuplesBackwards],
    "check_one_column_arrays": [PrintsRowsOfArrays],
    "check_pairs": [ReadsFirstTextOfPairsInArrays],
    "check_n_features_in": [CountsLettersAsFeatures],
    "check_clone": [ClonesWithWhatItLearned],
    "check_refit_gives_the_same": [DrawsFromTheGlobalGenerator],
    "check_refit_forgets_the_first": [LearnsOnlyOnce],
    "check_fit_changes_no_argument": [RaisesItsOwnTolerance, StripsTextsInPlace],
    "check_order_invariance": [LooksAtThePlaceInTheBatch, NamesClassesByPlace],
    "check_subset_invariance": [
        LooksAtThePlaceInTheBatch,
        NamesClassesByPlace,
        ScalesByTheBatch,
    ],
    "check_predict_changes_nothing": [RemembersWhatItPredicted],
    "check_pickle": [CannotBePickled, RoundsWhenPickled],
    "check_input_that_is_no_text": [
        PrintsNumbers,
        IsFittedByInputItRefuses,
        SaysLittle,
    ],
    "check_targets_that_do_not_fit": [CutsTheLongerOne],
    "check_pandas_texts": [CountsInTheIndex],
    "check_pandas_targets": [CountsInTheIndex],
    "check_pandas_columns": [ForgetsColumnNames, SortsColumns],
    "check_polars_texts": [TakesRowsOfPolarsBackwards],
    "check_polars_targets": [TakesRowsOfPolarsBackwards],
    "check_polars_columns": [ForgetsColumnNames, SortsColumns],
    "check_labels_come_back_as_given": [GivesClassNumbers, PrintsLabels],
    "check_decisions_agree": [SwapsProbabilities, SwapsDecisions],
    "check_several_labels": [SwapsProbabilities, GivesFloats],
    "check_containers_of_labels": [ForgetsNamesOfLabels, ReadsFramesBackwards],
    "check_indicators_that_do_not_fit": [TakesAllForIndicators],
    "check_several_numbers": [GivesTheFirstNumber, GivesTheMean],
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, kinds in BROKEN.items() for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_check_on_estimator_that_breaks_it_fails(name, kind):
    estimator = kind("tiny", adapter=None, random_state=0)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        getattr(testing, name)(estimator)


def test_broken_estimators_cover_every_check():
    checks = [*text_checks(ESTIMATORS[0]), *text_checks(ESTIMATORS[-1])]
    assert set(BROKEN) == {check.__name__ for check in checks}


# The list as a whole ------------------------------------------------------------------


def test_check_text_estimator_stops_at_the_first_check_that_fails():
    with pytest.raises(AssertionError, match="fit returned None"):
        check_text_estimator(ReturnsNothing("tiny", adapter=None))


def test_check_text_estimator_leaves_the_estimator_as_it_was():
    estimator = AdapterRegressor("tiny", adapter=None, random_state=7)
    before = dict(vars(estimator))
    check_text_estimator(estimator)
    assert vars(estimator) == before


def test_text_checks_of_regressor_hold_none_of_labels():
    of_classifier, of_regressor = (set(text_checks(kind("tiny"))) for kind in KINDS)
    assert of_classifier - of_regressor == {
        *testing.CLASSIFIER_CHECKS,
        *testing.MULTI_LABEL_CHECKS,
    }
    assert of_regressor - of_classifier == set(testing.MULTI_OUTPUT_CHECKS)
    one_number = make_pipeline(TfidfVectorizer(), LinearSVR())
    assert of_regressor - set(text_checks(one_number)) == set(
        testing.MULTI_OUTPUT_CHECKS
    )


def test_text_checks_without_pandas_and_polars_leave_theirs_out(monkeypatch):
    monkeypatch.setattr(testing, "find_spec", lambda name: None)
    names = {check.__name__ for check in text_checks(AdapterClassifier("tiny"))}
    assert "check_sequences" in names
    assert not [name for name in names if "pandas" in name or "polars" in name]
    testing.check_containers_of_labels(ESTIMATORS[1])


def test_check_of_estimator_with_tag_poor_score_lets_it_learn_nothing():
    class AlwaysTheSame(BaseEstimator):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.estimator_type = "classifier"
            tags.classifier_tags = type(
                ESTIMATORS[0].__sklearn_tags__().classifier_tags
            )(poor_score=True)
            return tags

    assert is_classifier(AlwaysTheSame())
    testing.check_learns_texts_that_differ_in_a_word(AlwaysTheSame())


def test_import_of_testing_adds_neither_torch_nor_frames_to_scikit_learn():
    code = (
        "import sys, sklearn.utils.validation; before = set(sys.modules);"
        "import skpeft.testing; added = set(sys.modules) - before;"
        "heavy = {'torch', 'transformers', 'pandas', 'polars'} & added;"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checks_can_be_pickled_for_parallel_runs():
    for check in text_checks(ESTIMATORS[0]):
        assert pickle.loads(pickle.dumps(check)) is check
