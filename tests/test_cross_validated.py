"""Estimators that choose their adapter: against GridSearchCV, and what they leave out."""

import inspect
import math
import pickle
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpydoc.docscrape import ClassDoc
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    PredefinedSplit,
    StratifiedKFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline

from skpeft import (
    AdapterBank,
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    AdapterRegressorCV,
    EmbeddingDisplay,
    TrainingDisplay,
    _training,
    clear_cache,
    config_context,
)
from skpeft.adapters import LoRA
from skpeft.encoders import TinyTextEncoder
from skpeft.search import survivors
from tests.models import random_rows

TEXTS, LABELS, NUMBERS = random_rows([5] * 30)
OWN = {"encoder": "tiny", "random_state": 0, "max_epochs": 2}
PAIRS = [
    (AdapterClassifierCV, AdapterClassifier, LABELS),
    (AdapterRegressorCV, AdapterRegressor, NUMBERS),
]
KINDS = pytest.mark.parametrize(("kind", "single", "y"), PAIRS, ids=["clf", "reg"])


@KINDS
@pytest.mark.parametrize("scoring", [None, "shared"])
def test_without_elimination_scores_are_those_of_grid_search(kind, single, y, scoring):
    if scoring:
        scoring = (
            "neg_log_loss" if kind is AdapterClassifierCV else "neg_mean_absolute_error"
        )
    rates = [1e-3, 1e-2]
    cv = kind(
        **OWN,
        ranks=[2, 4],
        learning_rates=rates,
        cv=3,
        scoring=scoring,
        eliminate=False,
    ).fit(TEXTS, y)
    grid = {"rank": [2, 4], "learning_rate": rates}
    search = GridSearchCV(single(**OWN), grid, cv=3, scoring=scoring).fit(TEXTS, y)
    found = {}
    for results in (cv.cv_results_, search.cv_results_):
        for i, params in enumerate(results["params"]):
            key = params["rank"], params["learning_rate"]
            names = [f"split{k}_test_score" for k in range(3)]
            names += ["mean_test_score", "std_test_score"]
            values = [results[name][i] for name in names]
            assert found.setdefault(key, values) == pytest.approx(values, abs=1e-12)
    assert len(found) == 4
    assert cv.best_score_ == pytest.approx(search.best_score_)
    best = {name: cv.best_params_[name] for name in grid}
    again = clone(search.estimator).set_params(**best).fit(TEXTS, y)
    np.testing.assert_array_equal(cv.predict(TEXTS), again.predict(TEXTS))
    assert set(search.cv_results_) <= set(cv.cv_results_)
    assert cv.score(TEXTS, y) == pytest.approx(search.score(TEXTS, y))


@KINDS
def test_score_takes_weights(kind, single, y):
    scoring = "accuracy" if kind is AdapterClassifierCV else "r2"
    weights = np.arange(len(y))
    for chosen in (None, scoring):
        cv = kind(**OWN, ranks=[2], cv=2, scoring=chosen).fit(TEXTS, y)
        expected = cv.best_estimator_.score(TEXTS, y, sample_weight=weights)
        assert cv.score(TEXTS, y, sample_weight=weights) == pytest.approx(expected)
    with pytest.raises(NotFittedError):
        kind(**OWN).score(TEXTS, y)


@KINDS
def test_elimination_scores_what_it_runs_as_grid_search_does(kind, single, y):
    ranks = [1, 2, 4, 8]
    cv = kind(**OWN, ranks=ranks, cv=5).fit(TEXTS, y)
    every = kind(**OWN, ranks=ranks, cv=5, eliminate=False, refit=False).fit(TEXTS, y)
    scores, expected = (
        np.array([results[f"split{i}_test_score"] for i in range(5)])
        for results in (cv.cv_results_, every.cv_results_)
    )
    ran = np.isfinite(scores)
    np.testing.assert_array_equal(scores[ran], expected[ran])
    assert ran.sum(axis=1).tolist() == [4, 2, 2, 1, 1]
    assert cv.cv_results_["n_splits"].tolist() == ran.sum(axis=0).tolist()
    # The winner was in every fold, and whoever left was no better than those who stayed.
    assert ran[:, cv.best_index_].all()
    assert cv.cv_results_["rank_test_score"][cv.best_index_] == 1
    for i in range(4):
        means = scores[: i + 1].mean(axis=0)
        left, stayed = ran[i] & ~ran[i + 1], ran[i + 1]
        assert not left.any() or means[left].max() <= means[stayed].min()


@given(st.integers(1, 60), st.integers(2, 12))
def test_survivors_start_with_all_and_end_with_few(n_candidates, n_folds):
    found = survivors(n_candidates, n_folds)
    assert len(found) == n_folds
    assert found[0] == n_candidates
    assert all(1 <= b <= a for a, b in pairwise(found))
    for fold, n_left in enumerate(found):
        n_halvings = math.floor(math.log2(fold + 1))
        assert n_left == math.ceil(n_candidates / 2**n_halvings)


def test_rounds_of_survivors_take_equal_numbers_of_fits():
    assert survivors(4, 5) == [4, 2, 2, 1, 1]
    assert survivors(8, 15) == [8] + [4] * 2 + [2] * 4 + [1] * 8


def test_object_behaves_as_its_best_estimator(tmp_path):
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2).fit(TEXTS, LABELS)
    best = cv.best_estimator_
    assert type(best) is AdapterClassifier
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        found, expected = (getattr(m, method)(TEXTS) for m in (cv, best))
        np.testing.assert_array_equal(found, expected)
    assert cv.score(TEXTS, LABELS) == best.score(TEXTS, LABELS)
    assert cv.classes_ is best.classes_
    assert cv.n_trainable_params_ == best.n_trainable_params_
    joblib.dump(cv, tmp_path / "cv.joblib")
    loaded = joblib.load(tmp_path / "cv.joblib")
    np.testing.assert_array_equal(loaded.predict(TEXTS), cv.predict(TEXTS))
    cv.save_pretrained(tmp_path / "folder")
    single = AdapterClassifier.from_pretrained(tmp_path / "folder")
    np.testing.assert_allclose(
        single.predict_proba(TEXTS), cv.predict_proba(TEXTS), atol=1e-6
    )


def test_adapters_of_all_kinds_are_candidates_once_each():
    cv = AdapterClassifierCV(
        **OWN,
        adapters=[None, "ia3", LoRA(dropout=0.1), "bottleneck"],
        ranks=[2, 4],
        layers=[1, [0], "auto"],
        cv=2,
    ).fit(TEXTS, LABELS)
    names = [
        (p["adapter"] if isinstance(p["adapter"], str | None) else "LoRA")
        for p in cv.cv_results_["params"]
    ]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    assert counts == {None: 1, "ia3": 3, "LoRA": 6, "bottleneck": 6}
    assert len(cv.cv_results_["mean_test_score"]) == 16


def test_groups_and_splitters_are_followed():
    groups = np.repeat(np.arange(6), 5)
    seen = []

    def score(model, X, y):
        seen.append(tuple(X))
        return model.score(X, y)

    cv = AdapterClassifierCV(
        **OWN, ranks=[2], cv=GroupKFold(3), scoring=score, refit=False
    )
    cv.fit(TEXTS, LABELS, groups=groups)
    expected = [
        tuple(np.array(TEXTS)[test])
        for _, test in GroupKFold(3).split(TEXTS, LABELS, groups)
    ]
    assert seen == expected
    assert cv.n_splits_ == 3


def test_weights_reach_every_fit_and_the_refit():
    weights = np.where(np.arange(30) % 2, 5.0, 0.5)
    folds = KFold(2, shuffle=True, random_state=0)
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=folds, scoring="neg_log_loss")
    cv.fit(TEXTS, LABELS, weights)
    for i, (train, test) in enumerate(folds.split(TEXTS)):
        one = AdapterClassifier(**OWN, rank=2)
        one.fit([TEXTS[j] for j in train], LABELS[train], weights[train])
        expected = -log_loss(LABELS[test], one.predict_proba([TEXTS[j] for j in test]))
        assert cv.cv_results_[f"split{i}_test_score"][0] == pytest.approx(expected)
    plain = AdapterClassifier(**OWN, rank=2).fit(TEXTS, LABELS, weights)
    np.testing.assert_array_equal(cv.transform(TEXTS), plain.transform(TEXTS))


WEIGHTS = np.arange(30) % 5 + 0.0  # six of them are 0
KEPT = np.flatnonzero(WEIGHTS)


def numbered(folds):
    """Folds of the kept rows, by the numbers of all rows, with the rows of weight 0 too."""
    left = np.flatnonzero(WEIGHTS == 0)
    return [
        (np.r_[KEPT[train], left], np.r_[left, KEPT[test]]) for train, test in folds
    ]


@KINDS
def test_rows_of_weight_zero_are_as_if_removed(kind, single, y):
    scoring = "neg_log_loss" if kind is AdapterClassifierCV else None
    parameters = {"cv": 3, "scoring": scoring}
    cv = kind(**OWN, **parameters, ranks=[2, 4], eliminate=False)
    found = cv.fit(pd.Series(TEXTS), pd.Series(y), WEIGHTS > 0)
    search = GridSearchCV(single(**OWN), {"rank": [2, 4]}, **parameters)
    search.fit([TEXTS[i] for i in KEPT], y[KEPT])
    for name in [*(f"split{i}_test_score" for i in range(3)), "mean_test_score"]:
        expected = search.cv_results_[name]
        np.testing.assert_allclose(found.cv_results_[name], expected, atol=1e-12)
    expected = search.best_estimator_.transform(TEXTS)
    np.testing.assert_array_equal(found.transform(TEXTS), expected)


@pytest.mark.parametrize("kind", ["list", "iterator", "predefined", "groups"])
def test_rows_of_weight_zero_are_in_no_fold_of_any_kind(kind):
    groups = np.arange(30) // 4
    test_fold = np.where(np.arange(30) < 7, -1, np.arange(30) % 2)
    folds = {
        "list": list(StratifiedKFold(3).split(KEPT, LABELS[KEPT])),
        "iterator": list(StratifiedKFold(3).split(KEPT, LABELS[KEPT])),
        "predefined": list(PredefinedSplit(test_fold[KEPT]).split()),
        "groups": list(GroupKFold(3).split(KEPT, groups=groups[KEPT])),
    }[kind]
    given = {
        "list": numbered(folds),
        "iterator": iter(numbered(folds)),
        "predefined": PredefinedSplit(test_fold),
        "groups": GroupKFold(3),
    }[kind]
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=given, scoring="neg_log_loss")
    cv.fit(TEXTS, LABELS, WEIGHTS, groups=groups)
    assert cv.n_splits_ == len(folds)
    for i, (train, test) in enumerate(folds):
        one = AdapterClassifier(**OWN, rank=2)
        rows = KEPT[train]
        one.fit([TEXTS[j] for j in rows], LABELS[rows], WEIGHTS[rows])
        unseen = [TEXTS[j] for j in KEPT[test]]
        shares = one.predict_proba(unseen)
        expected = -log_loss(LABELS[KEPT[test]], shares, labels=one.classes_)
        assert cv.cv_results_[f"split{i}_test_score"][0] == pytest.approx(expected)


def test_fold_whose_rows_all_have_weight_zero_is_refused():
    zero = np.flatnonzero(WEIGHTS == 0)
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=[(KEPT, zero)])
    with pytest.raises(ValueError, match=r"Fold 0 .* and 0 to score, .* weight 0"):
        cv.fit(TEXTS, LABELS, WEIGHTS)
    cv.fit(TEXTS, LABELS)
    assert cv.n_splits_ == 1


def test_candidate_that_fails_is_out_with_a_warning():
    cv = AdapterClassifierCV(
        **OWN, ranks=[2], layers=["auto", 99], cv=3, eliminate=False
    )
    with pytest.warns(FitFailedWarning, match="layers=99"):
        cv.fit(TEXTS, LABELS)
    assert cv.best_params_["layers"] == "auto"
    assert np.isnan(cv.cv_results_["mean_test_score"][1])
    assert cv.cv_results_["rank_test_score"].tolist() == [1, 2]


def test_warnings_of_a_search_stand_at_the_line_that_asked_for_it():
    encoder = TinyTextEncoder(max_length=4)  # cuts them all, in each of five fits
    cv = AdapterClassifierCV(
        encoder, ranks=[2, 4], cv=2, max_epochs=1, eliminate=False, random_state=0
    )
    with pytest.warns(UserWarning, match="were cut") as told:
        cv.fit(TEXTS, LABELS)
    line = inspect.currentframe().f_lineno - 1
    assert {(w.filename, w.lineno) for w in told} == {(__file__, line)}
    pipeline = make_pipeline("passthrough", AdapterClassifier(encoder, max_epochs=1))
    search = GridSearchCV(pipeline, {"adapterclassifier__rank": [2]}, cv=2)
    with pytest.warns(UserWarning, match="were cut") as told:
        search.fit(TEXTS, LABELS)
    line = inspect.currentframe().f_lineno - 1
    assert {(w.filename, w.lineno) for w in told} == {(__file__, line)}


class Wrapper(ClassifierMixin, BaseEstimator):
    """An estimator of the user's around ours."""

    def fit(self, X, y):
        encoder = TinyTextEncoder(max_length=4)
        self.model_ = AdapterClassifier(encoder, max_epochs=1).fit(X, y)
        self.line_ = inspect.currentframe().f_lineno - 1
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


def test_warnings_in_an_estimator_of_the_users_stand_at_its_line():
    with pytest.warns(UserWarning, match="were cut") as told:
        found = cross_validate(Wrapper(), TEXTS, LABELS, cv=2, return_estimator=True)
    line = found["estimator"][0].line_
    assert {(w.filename, w.lineno) for w in told} == {(__file__, line)}


def test_candidate_that_failed_is_not_fitted_again():
    fits = []

    def score(model, X, y):
        fits.append(model.layers)
        if model.layers == 1 and len(fits) > 2:
            raise RuntimeError("no score today")
        return float(model.layers == 1)

    cv = AdapterClassifierCV(
        **OWN, ranks=[2], layers=[1, 2], cv=3, eliminate=False, scoring=score
    )
    with pytest.warns(FitFailedWarning, match="no score today"):
        cv.fit(TEXTS, LABELS)
    assert fits == [1, 2, 1, 2, 2]
    assert cv.best_params_["layers"] == 2


def test_failure_of_all_that_are_left_says_so():
    def score(model, X, y):
        cv.n_asked += 1
        if cv.n_asked > 4:
            raise RuntimeError("no score today")
        return 1.0

    cv = AdapterClassifierCV(**OWN, ranks=[1, 2, 3, 4], cv=3, scoring=score)
    cv.n_asked = 0
    with pytest.raises(RuntimeError, match="no score today") as caught:
        cv.fit(TEXTS, LABELS)
    assert "others were out before" in caught.value.__notes__[0]


def test_error_of_all_candidates_is_raised_and_an_earlier_fit_survives():
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=2).fit(TEXTS, LABELS)
    before = cv.predict(TEXTS)
    with pytest.raises(ValueError, match="layers=99"):
        cv.set_params(layers=[99]).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(cv.predict(TEXTS), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranks": []}, "at least one value"),
        ({"ranks": [], "adapters": ["lora", "bitfit"]}, "at least one value"),
        ({"ranks": 4}, "'ranks' parameter"),
        ({"ranks": [2, -1]}, "'rank' parameter"),
        ({"learning_rates": [None, 0.0]}, "'learning_rate' parameter"),
        ({"adapters": "lora"}, "'adapters' parameter"),
        ({"adapters": ["lroa"]}, "lora"),
        ({"cv": 1}, "'cv' parameter"),
        ({"scoring": "acuracy"}, "acuracy"),
    ],
)
def test_wrong_parameter_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdapterClassifierCV(**OWN).set_params(**wrong).fit(TEXTS, LABELS)


@pytest.mark.parametrize("adapters", [[None], ["bitfit"]], ids=str)
def test_values_that_no_adapter_takes_may_be_left_out(adapters):
    cv = AdapterClassifierCV(**OWN, adapters=adapters, ranks=[], cv=2)
    assert cv.fit(TEXTS, LABELS).best_params_["rank"] is None


def test_without_refit_nothing_is_predicted():
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2, refit=False).fit(TEXTS, LABELS)
    assert cv.best_params_["rank"] in (2, 4)
    for ask in (cv.predict, lambda X: cv.score(X, LABELS), cv.transform):
        with pytest.raises(NotFittedError, match="refit=False was given"):
            ask(TEXTS)
    for show in (
        lambda: AdapterBank({"tone": cv}),
        lambda: TrainingDisplay.from_estimator(cv),
        lambda: EmbeddingDisplay.from_estimator(cv, TEXTS, LABELS),
    ):
        with pytest.raises(NotFittedError, match="refit=False was given"):
            show()
    assert "refit=False" in cv._repr_html_()
    cv.set_params(refit=True).fit(TEXTS, LABELS)
    expected = cv.predict(TEXTS)
    np.testing.assert_array_equal(cv.set_params(refit=False).predict(TEXTS), expected)


def test_threads_and_cache_change_no_score():
    first = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2, layers=[1])
    one = first.fit(TEXTS, LABELS).cv_results_
    with joblib.parallel_config(backend="threading", n_jobs=2):
        two = clone(first).fit(TEXTS, LABELS).cv_results_
    with config_context(cache_bytes=0):
        three = clone(first).fit(TEXTS, LABELS).cv_results_
    for other in (two, three):
        np.testing.assert_array_equal(one["mean_test_score"], other["mean_test_score"])


@KINDS
def test_parameters_are_those_of_the_single_estimator_and_documented(kind, single, y):
    own, other = (inspect.signature(k).parameters for k in (kind, single))
    chosen = {"adapter", "rank", "learning_rate", "warm_start"}
    lists = {"adapters", "ranks", "learning_rates"}
    search = {"cv", "scoring", "refit", "eliminate", "n_jobs"}
    assert own.keys() - other.keys() == lists | search
    assert other.keys() - own.keys() == chosen
    for name in own.keys() & other.keys() - {"layers"}:
        assert own[name].default == other[name].default
    documented = {n for p in ClassDoc(kind)["Parameters"] for n in p.name.split(", ")}
    assert documented == own.keys()


@KINDS
def test_object_is_transformer_and_module_too(kind, single, y):
    cv = kind(**OWN, ranks=[2, 4], cv=2).set_output(transform="pandas").fit(TEXTS, y)
    best = cv.best_estimator_
    frame = cv.transform(TEXTS)
    assert list(frame.columns) == list(cv.get_feature_names_out())
    np.testing.assert_array_equal(frame.to_numpy(), best.transform(TEXTS))
    found, expected = (m(**m.prepare(TEXTS)) for m in (cv.to_torch(), best.to_torch()))
    np.testing.assert_array_equal(found.detach(), expected.detach())


@pytest.mark.parametrize("place", ["first fit", "last fit"])
def test_failure_anywhere_leaves_an_earlier_fit_whole(place):
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=2).fit(TEXTS, LABELS)
    before, attributes = cv.predict(TEXTS), dict(vars(cv))
    n_fits = []

    def fail(record):
        n_fits.append(record["epoch"] == 1)
        if sum(n_fits) == (1 if place == "first fit" else 3):
            raise RuntimeError("stopped")

    attributes["callback"] = fail
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))  # of another width
    with pytest.raises(RuntimeError, match="stopped"):
        cv.set_params(callback=fail).fit(pairs, LABELS)
    assert vars(cv) == attributes
    np.testing.assert_array_equal(cv.predict(TEXTS), before)


def test_values_of_numpy_are_candidates_that_can_be_saved(tmp_path):
    cv = AdapterClassifierCV(
        **OWN, ranks=np.array([2]), learning_rates=np.array([1e-3]), cv=2
    ).fit(TEXTS, LABELS)
    cv.save_pretrained(tmp_path / "folder")
    loaded = AdapterClassifier.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(loaded.predict(TEXTS), cv.predict(TEXTS))


def test_one_weight_for_all_rows_is_no_weight():
    one = AdapterClassifierCV(**OWN, ranks=[2], cv=2).fit(TEXTS, LABELS, 2.0)
    all_rows = clone(one).fit(TEXTS, LABELS, np.full(30, 2.0))
    np.testing.assert_array_equal(one.transform(TEXTS), all_rows.transform(TEXTS))


@pytest.mark.filterwarnings("ignore:R\\^2 score is not well-defined")
def test_score_that_is_not_defined_decides_nothing():
    cv = AdapterRegressorCV(**OWN, ranks=[2, 4], cv=LeaveOneOut())
    with pytest.raises(ValueError, match="score on 1 held-out rows is NaN"):
        cv.fit(TEXTS[:6], NUMBERS[:6])
    cv.set_params(scoring="neg_mean_absolute_error").fit(TEXTS[:6], NUMBERS[:6])
    assert np.isfinite(cv.best_score_)


@pytest.mark.parametrize("value", ["high", {"f1": 0.5}, None, np.zeros(2)], ids=str)
def test_score_that_is_no_number_is_refused(value):
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=2, scoring=lambda *_: value)
    with pytest.raises(TypeError, match=r"scoring returned .*; one number is expected"):
        cv.fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"ranks": [2, 0]}, "candidate .*'rank': 0.*Each entry of .*ranks"),
        ({"layers": [0, 1]}, r"candidate .*'layers': 0.*Each entry of .*layers"),
    ],
    ids=str,
)
def test_candidate_out_of_range_is_named(own, words):
    with pytest.raises(ValueError, match=words):
        AdapterClassifierCV(**OWN, **own).fit(TEXTS, LABELS)


def test_encoder_that_moved_is_found_by_all_that_is_asked(pooled_folder, tmp_path):
    first = Path(shutil.copytree(pooled_folder(), tmp_path / "first"))
    own = OWN | {"encoder": str(first)}
    state = pickle.dumps(AdapterClassifierCV(**own, ranks=[2], cv=2).fit(TEXTS, LABELS))
    expected = pickle.loads(state).predict(TEXTS)
    clear_cache()
    first.rename(tmp_path / "second")

    def loaded():
        return pickle.loads(state).set_params(encoder=str(tmp_path / "second"))

    assert loaded().score(TEXTS, expected) == 1
    best = pickle.loads(state)
    best.best_estimator_.set_params(encoder=str(tmp_path / "second"))
    assert best.score(TEXTS, expected) == 1
    found = loaded()
    found.predict(TEXTS)
    assert found.best_estimator_.encoder == str(tmp_path / "second")
    loaded().save_pretrained(tmp_path / "model")
    again = AdapterClassifier.from_pretrained(tmp_path / "model")
    assert again.encoder == str(tmp_path / "second")
    np.testing.assert_array_equal(again.predict(TEXTS), expected)


def test_no_folds_are_refused():
    with pytest.raises(ValueError, match="gives no folds"):
        AdapterClassifierCV(**OWN, cv=[]).fit(TEXTS, LABELS)


def test_names_of_columns_go_with_an_earlier_fit():
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=2)
    cv.fit(pd.DataFrame({"text": TEXTS}), LABELS)
    assert cv.feature_names_in_.tolist() == ["text"]
    cv.set_params(refit=False).fit(TEXTS, LABELS)
    assert not hasattr(cv, "feature_names_in_")
    assert not hasattr(cv, "best_estimator_")


def test_adapter_from_saved_weights_is_one_candidate(tmp_path):
    AdapterClassifier(**OWN, rank=3).fit(TEXTS, LABELS).save_pretrained(tmp_path / "a")
    saved = LoRA(3, roles=("query", "value"), weights=str(tmp_path / "a"))
    cv = AdapterClassifierCV(**OWN, adapters=[saved], cv=2).fit(TEXTS, LABELS)
    assert [p["rank"] for p in cv.cv_results_["params"]] == [None]


@pytest.mark.parametrize("epoch", [1, 3])  # in training, and in the check after it
def test_interrupt_ends_the_search_and_forgets_an_earlier_one(epoch, monkeypatch):
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2).fit(TEXTS, LABELS)
    steps, step = [], _training.update

    def interrupted(*args):
        steps.append(1)
        if len(steps) == epoch:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(_training, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cv.fit(TEXTS, LABELS)
    assert len(steps) == epoch
    with pytest.raises(NotFittedError):
        cv.predict(TEXTS)


def test_fold_of_one_class_is_named():
    labels = np.array(["+"] * 29 + ["-"])
    folds = KFold(3)
    with pytest.raises(
        ValueError, match=r"20 training rows of fold 2 .* only, \['\+'\]"
    ):
        AdapterClassifierCV(**OWN, ranks=[2], cv=folds).fit(TEXTS, labels)


def test_fit_without_y_says_what_single_estimators_say():
    with pytest.raises(ValueError, match="requires y to be passed"):
        AdapterClassifierCV(**OWN).fit(TEXTS)


@pytest.mark.parametrize("form", [tuple, list, np.array, pd.Series])
@pytest.mark.parametrize("listed", [True, False])
def test_folds_may_be_of_any_kind_of_sequence(form, listed):
    class Splitter(KFold):
        def split(self, *data):
            for train, test in super().split(TEXTS):
                yield form(train.tolist()), form(test.tolist())

    cv = list(Splitter(2).split()) if listed else Splitter(2)
    found = AdapterClassifierCV(**OWN, ranks=[2], cv=cv).fit(TEXTS, LABELS)
    plain = AdapterClassifierCV(**OWN, ranks=[2], cv=KFold(2)).fit(TEXTS, LABELS)
    assert found.best_score_ == plain.best_score_


@pytest.mark.parametrize("eliminate", [True, False])
@pytest.mark.parametrize("infinite", [-np.inf, np.inf])
def test_infinite_scores_count_as_in_grid_search(infinite, eliminate):
    folds = [(np.arange(20), np.arange(20, 20 + n)) for n in (8, 9, 10)]

    def score(model, X, y):
        return infinite if (model.rank, len(X)) == (2, 8) else 0.1 * model.rank

    cv = AdapterClassifierCV(
        **OWN, ranks=[1, 2], cv=folds, scoring=score, eliminate=eliminate
    ).fit(TEXTS, LABELS)
    grid = GridSearchCV(AdapterClassifier(**OWN), {"rank": [1, 2]}, cv=folds)
    grid.set_params(scoring=score, refit=False, error_score="raise").fit(TEXTS, LABELS)
    assert cv.best_params_["rank"] == grid.best_params_["rank"]
    assert cv.best_score_ == pytest.approx(grid.best_score_)
    if not eliminate:
        np.testing.assert_allclose(
            cv.cv_results_["mean_test_score"], grid.cv_results_["mean_test_score"]
        )


def test_splitters_are_given_the_texts():
    class Noting(StratifiedKFold):
        def split(self, X, y=None, groups=None):
            Noting.seen = list(X)
            return super().split(X, y, groups)

    weights = np.ones(len(TEXTS))
    weights[1] = 0.0
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=Noting(2))
    cv.fit(TEXTS, LABELS, sample_weight=weights)
    assert Noting.seen == [text for i, text in enumerate(TEXTS) if i != 1]


def test_rounds_hold_folds_of_equally_many_candidates():
    cv = AdapterClassifierCV("tiny", n_jobs=2)
    assert cv._rounds([4, 2, 2, 1, 1]) == [[0], [1, 2], [3, 4]]
    assert cv._rounds([2, 2, 2]) == [[0, 1, 2]]
    assert AdapterClassifierCV("tiny")._rounds([2, 1, 1]) == [[0], [1], [2]]


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize(
    ("sizes", "ranks"), [([11, 12], [1, 2]), ([13, 11, 12], [3, 4, 1, 2])]
)
def test_candidates_that_all_fail_in_one_round(sizes, ranks, n_jobs):
    def score(model, X, y):
        if len(X) == 10 + model.rank:
            raise ValueError(f"not rank {model.rank}")
        return -float(model.rank)

    texts, labels, _ = random_rows([1 + i % 8 for i in range(40)])
    folds = [(np.arange(20), np.arange(20, 20 + size)) for size in sizes]
    own = {"ranks": ranks, "cv": folds, "eliminate": len(ranks) > 2, "scoring": score}
    cv = AdapterClassifierCV("tiny", max_epochs=1, n_jobs=n_jobs, **own)
    first = pytest.warns(FitFailedWarning, match="fold .* out: not rank 1")
    last = pytest.raises(ValueError, match="not rank 2")
    with joblib.parallel_backend("threading"), first, last as caught:
        cv.fit(texts, labels)
    assert hasattr(caught.value, "__notes__") == own["eliminate"]


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_a_verbose_search_tells_of_each_fit(verbose, capfd):
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2, eliminate=False)
    cv.set_params(verbose=verbose).fit(TEXTS, LABELS)
    told = capfd.readouterr().err
    for place in range(2):
        for i in range(2):
            score = cv.cv_results_[f"split{place}_test_score"][i]
            line = (
                f"fold {place + 1} of 2, {cv.cv_results_['params'][i]}: {score:.3f} in"
            )
            assert (line in told) == (verbose > 0)
    assert told.count("parameters trained") == [0, 1, 5][verbose]
    assert cv.best_estimator_.verbose == verbose


def test_groups_that_are_missing_are_asked_for():
    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=GroupKFold(3))
    with pytest.raises(ValueError, match=r"cv=GroupKFold\(.* Pass groups=\.\.\., with"):
        cv.fit(TEXTS, LABELS)


def test_n_jobs_none_follows_a_context_of_joblib():
    """As in scikit-learn: four fits wait for each other, which one by one they could not."""
    meeting = threading.Barrier(4, timeout=60)

    def score(model, X, y):
        meeting.wait()
        return 0.5

    cv = AdapterClassifierCV(**OWN, ranks=[2], cv=4, eliminate=False, scoring=score)
    with joblib.parallel_config("threading", n_jobs=4):
        cv.fit(TEXTS, LABELS)
    assert cv.best_score_ == 0.5


@pytest.mark.parametrize(
    ("ranks", "kind"),
    [([2, 4], "i"), (np.array([2, 4]), "i"), ([None, 2], "O")],
    ids=["numbers", "array", "mixed"],
)
def test_columns_of_parameters_have_the_types_of_grid_search(ranks, kind):
    cv = AdapterClassifierCV(**OWN, ranks=ranks, cv=2, eliminate=False)
    search = GridSearchCV(AdapterClassifier(**OWN), {"rank": list(ranks)}, cv=2)
    columns = [
        model.fit(TEXTS, LABELS).cv_results_["param_rank"] for model in (cv, search)
    ]
    assert [column.dtype.kind for column in columns] == [kind, kind]
    assert columns[0].tolist() == columns[1].tolist()
