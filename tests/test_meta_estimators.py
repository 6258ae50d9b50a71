"""Both estimators inside every meta-estimator of scikit-learn; the docs say the same."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import (
    RFE,
    RFECV,
    SelectFromModel,
    SequentialFeatureSelector,
)
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, RANSACRegressor, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    PredefinedSplit,
    RandomizedSearchCV,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import (
    OneVsOneClassifier,
    OneVsRestClassifier,
    OutputCodeClassifier,
)
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import all_estimators
from sklearn.utils.parallel import Parallel

from skpeft import (
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    AdapterScores,
    compare_strategies,
)
from skpeft import scores as module

PAGE = Path(__file__).parents[1] / "docs" / "meta_estimators.md"
WORDS = {
    "air": ["plane", "flight", "wing"],
    "rail": ["train", "track", "tunnel"],
    "sea": ["ship", "port", "sail"],
}
LABELS = np.array(list(WORDS) * 16)
VALUES = np.searchsorted(list(WORDS), LABELS) * 1.0
N_NEW = 12  # the last rows are not seen in fits
FORMS = ["list", "column", "numbers"]


def as_texts():
    rng = np.random.RandomState(0)
    return [
        " ".join([*rng.choice(WORDS[y], 2), rng.choice(["x", "y"])]) for y in LABELS
    ]


def as_numbers():
    """Two columns that tell the classes apart, and one of noise."""
    rng = np.random.RandomState(0)
    known = np.stack([VALUES, VALUES == 1], axis=1) * 3.0
    return np.column_stack(
        [known + 0.3 * rng.randn(*known.shape), rng.randn(len(known))]
    )


SAMPLES = {
    "list": as_texts(),
    "array": np.array(as_texts(), dtype=object)[:, None],
    "frame": pd.DataFrame({"text": as_texts()}),
    "numbers": as_numbers(),
}
TARGETS = {
    "labels": LABELS,
    "two labels": np.where(LABELS == "air", "yes", "no"),
    "labels or -1": np.where(np.arange(48) % 4 == 1, -1, VALUES).astype(int),
    "columns of labels": np.stack([LABELS, LABELS[::-1]], axis=1),
    "columns of 0 and 1": np.stack([LABELS == "air", LABELS == "sea"], axis=1).astype(
        int
    ),
    "values": VALUES,
    "columns of values": np.stack([VALUES, 2 - VALUES], axis=1),
}


def rows_of(X, part):
    return X.iloc[part] if hasattr(X, "iloc") else X[part]


def data_for(form, target):
    """Rows for a fit, and new ones; a column of texts is a frame, or an (n, 1) array."""
    seen, new = slice(None, -N_NEW), slice(-N_NEW, None)
    if form == "column":
        form = "array" if "values" in target else "frame"
    X, y = SAMPLES[form], TARGETS[target]
    truth = VALUES if target == "labels or -1" else y
    return SimpleNamespace(
        X=rows_of(X, seen),
        y=y[seen],
        X_new=rows_of(X, new),
        y_new=truth[new],
        form=form,
    )


def quality(y, guess):
    """Accuracy of labels, R2 of numbers."""
    if np.asarray(y).dtype.kind == "f" and len(np.unique(y)) > 2:
        return r2_score(y, guess)
    return np.mean(np.asarray(y) == guess)


def predicted(make):
    """Fit a meta-estimator around the estimator, and predict rows that it has not seen."""

    def run(estimator, data):
        model = make(estimator).fit(data.X, data.y)
        guess = model.predict(data.X_new)
        assert np.shape(guess) == np.shape(data.y_new)
        if is_classifier(estimator):
            columns = np.reshape(data.y, (len(data.y), -1)).T
            found = model.classes_ if data.y.ndim == 2 else [model.classes_]
            for classes, column in zip(found, columns, strict=True):
                assert list(classes) == sorted(set(column.tolist()) - {-1})
        return quality(data.y_new, guess)

    return run


def before(final):
    """Steps of a pipeline: the estimator as a transformer before a linear model."""
    return lambda step: make_pipeline(step, final)


def in_memory(final):
    def run(estimator, data):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            pipe = Pipeline([("adapt", estimator), ("model", final)], memory=folder)
            score = predicted(lambda _: pipe)(estimator, data)
            again = clone(pipe).fit(
                data.X, data.y
            )  # the first step comes from the disk
        first, second = (p.predict(data.X_new) for p in (pipe, again))
        np.testing.assert_array_equal(first, second)
        return score

    return run


def in_union(final):
    def make(estimator):
        frozen = clone(estimator).set_params(adapter=None)
        return make_pipeline(FeatureUnion([("a", estimator), ("b", frozen)]), final)

    return predicted(make)


def in_columns(final):
    def run(estimator, data):
        which = "text" if data.form == "frame" else [0, 1]
        which = [0] if data.form in ("list", "array") else which
        columns = ColumnTransformer([("adapt", estimator, which)])
        return predicted(lambda _: make_pipeline(columns, final))(estimator, data)

    return run


def searched(kind, **options):
    return predicted(
        lambda e: kind(e, {"rank": [2, 4]}, cv=2, error_score="raise", **options)
    )


def halved(kind, **options):
    """Candidates get more rows, or more epochs, the fewer there are."""
    more = {"random_state": 0, **options}

    def run(estimator, data):
        score = 1.0
        for resource in ({}, {"resource": "max_epochs", "max_resources": 2}):
            search = kind(
                estimator,
                {"rank": [2, 4]},
                cv=2,
                factor=2,
                error_score="raise",
                **resource,
                **more,
            )
            score = min(score, predicted(lambda _, s=search: s)(estimator, data))
            assert search.n_resources_[-1] > search.n_resources_[0]
        return score

    return run


def of_all_methods(estimator, data):
    """cross_val_predict by every method that gives something of a row."""
    methods = ["predict"]
    if is_classifier(estimator):
        methods += ["predict_proba", "predict_log_proba", "decision_function"]
    found = []
    for method in methods:
        out = cross_val_predict(estimator, data.X, data.y, cv=2, method=method)
        if method != "predict":
            assert out.shape == (len(data.y), 3)
            out = np.unique(data.y)[out.argmax(axis=1)]
        found.append(quality(data.y, out))
    return min(found)


def with_few_permutations(estimator, data):
    score, others, p_value = permutation_test_score(
        estimator, data.X, data.y, cv=2, n_permutations=5, random_state=0
    )
    assert p_value == 1 / 6
    assert others.max() < score
    return score


def of_importance(estimator, data):
    """How much accuracy or R2 is lost when the columns are shuffled, one by one."""
    estimator.fit(data.X, data.y)
    found = permutation_importance(
        estimator, data.X_new, data.y_new, n_repeats=2, random_state=0
    )
    assert found.importances_mean.shape == (np.shape(data.X)[1],)
    return found.importances_mean.max()


def of_selection(estimator, data):
    """Whether the column of noise is the one left out."""
    selector = SequentialFeatureSelector(estimator, n_features_to_select=2, cv=2)
    chosen = selector.fit(data.X, data.y).get_support()
    return float(list(chosen) == [True, True, False])


def frozen(estimator, data):
    fitted = clone(estimator).fit(data.X, data.y)
    shuffled = SimpleNamespace(**{**vars(data), "y": data.y[::-1]})
    return predicted(lambda _: FrozenEstimator(fitted))(estimator, shuffled)


def calibrated(method):
    def run(estimator, data):
        (known,) = CalibratedClassifierCV._parameter_constraints["method"]
        if method not in known.options:
            pytest.skip(f"method={method!r} is there from scikit-learn 1.8 on")
        model = CalibratedClassifierCV(estimator, method=method, cv=3)
        return predicted(lambda _: model)(estimator, data)

    return run


def voted(kind, **options):
    return predicted(
        lambda e: kind([("a", e), ("b", clone(e).set_params(adapter=None))], **options)
    )


LINEAR, LOGISTIC = Ridge(), LogisticRegression()
FLAT = "Expected 2D array, got 1D array"
TEXT = "could not convert string to float|Unable to convert array of bytes/strings"
COEF = "should have `coef_` or `feature_importances_`"
FLAT_ONLY = {"list": FLAT}
NO_TEXT = {"list": FLAT, "column": TEXT}


class Row(NamedTuple):
    """One line of the table: what runs, on what, and which forms of X it refuses."""

    names: str
    classify: Callable | None = None
    regress: Callable | None = None
    refuses: dict = {}
    target: tuple = ("labels", "values")
    least: float = 0.8


ROWS = [
    Row("`Pipeline`", in_memory(LOGISTIC), in_memory(LINEAR)),
    Row("`FeatureUnion`", in_union(LOGISTIC), in_union(LINEAR)),
    Row(
        "`ColumnTransformer`",
        in_columns(LOGISTIC),
        in_columns(LINEAR),
        refuses={"list": "Expected 2D|must be|1D|tuple index|no attribute"},
    ),
    Row("`GridSearchCV`", searched(GridSearchCV), searched(GridSearchCV)),
    Row(
        "`RandomizedSearchCV`",
        *[searched(RandomizedSearchCV, n_iter=2, random_state=0)] * 2,
    ),
    Row("`HalvingGridSearchCV`", *[halved(HalvingGridSearchCV)] * 2),
    Row(
        "`HalvingRandomSearchCV`",
        *[halved(HalvingRandomSearchCV, n_candidates=2)] * 2,
    ),
    Row(
        "`cross_validate`, `cross_val_score`",
        *[lambda e, d: cross_validate(e, d.X, d.y, cv=2)["test_score"].mean()] * 2,
    ),
    Row("`cross_val_predict`", of_all_methods, of_all_methods),
    Row(
        "`learning_curve`",
        *[
            lambda e, d: learning_curve(
                e, d.X, d.y, cv=2, train_sizes=[0.7, 1.0], shuffle=True, random_state=0
            )[2][-1].mean()
        ]
        * 2,
    ),
    Row(
        "`validation_curve`",
        *[
            lambda e, d: validation_curve(
                e, d.X, d.y, param_name="rank", param_range=[2, 4], cv=2
            )[1].mean()
        ]
        * 2,
    ),
    Row("`permutation_test_score`", with_few_permutations, with_few_permutations),
    Row('`CalibratedClassifierCV(method="sigmoid")`', calibrated("sigmoid")),
    Row('`CalibratedClassifierCV(method="isotonic")`', calibrated("isotonic")),
    Row('`CalibratedClassifierCV(method="temperature")`', calibrated("temperature")),
    Row(
        "`TunedThresholdClassifierCV`",
        predicted(lambda e: TunedThresholdClassifierCV(e, cv=2)),
        target=("two labels", None),
    ),
    Row(
        "`FixedThresholdClassifier`",
        predicted(
            lambda e: FixedThresholdClassifier(e, threshold=0.4, pos_label="yes")
        ),
        target=("two labels", None),
    ),
    Row(
        "`VotingClassifier`, `VotingRegressor`",
        voted(VotingClassifier, voting="soft"),
        voted(VotingRegressor),
    ),
    Row(
        "`StackingClassifier`, `StackingRegressor`",
        predicted(lambda e: StackingClassifier([("a", e)], cv=2)),
        predicted(lambda e: StackingRegressor([("a", e)], cv=2)),
    ),
    Row(
        "`BaggingClassifier`, `BaggingRegressor`",
        predicted(lambda e: BaggingClassifier(e, n_estimators=2, random_state=0)),
        predicted(lambda e: BaggingRegressor(e, n_estimators=2, random_state=0)),
        refuses=FLAT_ONLY,
    ),
    Row(
        "`AdaBoostClassifier`, `AdaBoostRegressor`",
        predicted(lambda e: AdaBoostClassifier(e, n_estimators=2, random_state=0)),
        predicted(lambda e: AdaBoostRegressor(e, n_estimators=2, random_state=0)),
        refuses=FLAT_ONLY,
    ),
    Row("`OneVsRestClassifier`", predicted(OneVsRestClassifier)),
    Row("`OneVsOneClassifier`", predicted(OneVsOneClassifier), refuses=NO_TEXT),
    Row(
        "`OutputCodeClassifier`",
        predicted(lambda e: OutputCodeClassifier(e, code_size=2, random_state=0)),
    ),
    Row(
        "`MultiOutputClassifier`, `MultiOutputRegressor`",
        predicted(MultiOutputClassifier),
        predicted(MultiOutputRegressor),
        target=("columns of labels", "columns of values"),
    ),
    Row(
        "`ClassifierChain`, `RegressorChain`",
        predicted(ClassifierChain),
        predicted(RegressorChain),
        refuses=NO_TEXT,
        target=("columns of 0 and 1", "columns of values"),
    ),
    Row(
        "`TransformedTargetRegressor`",
        regress=predicted(
            lambda e: TransformedTargetRegressor(
                e, func=np.log1p, inverse_func=np.expm1
            )
        ),
    ),
    Row(
        "`SelfTrainingClassifier`",
        predicted(SelfTrainingClassifier),
        refuses=NO_TEXT,
        target=("labels or -1", None),
    ),
    Row(
        "`RANSACRegressor`",
        regress=predicted(
            lambda e: RANSACRegressor(e, min_samples=0.8, random_state=0)
        ),
        refuses=NO_TEXT,
    ),
    Row("`FrozenEstimator`", frozen, frozen),
    Row("`permutation_importance`", of_importance, of_importance, FLAT_ONLY, least=0.4),
    Row("`SequentialFeatureSelector`", of_selection, of_selection, NO_TEXT),
    Row(
        "`RFE`, `RFECV`",
        predicted(lambda e: make_pipeline(RFE(e), LOGISTIC)),
        predicted(lambda e: make_pipeline(RFECV(e, cv=2), LINEAR)),
        refuses={**NO_TEXT, "numbers": COEF},
    ),
    Row(
        "`SelectFromModel`",
        *[predicted(lambda e: make_pipeline(SelectFromModel(e), LOGISTIC))] * 2,
        refuses={"list": FLAT, "column": COEF, "numbers": COEF},
    ),
]
# Its estimator predicts one column of numbers from the others; it is experimental.
LEFT_OUT = {"IterativeImputer"}


def cases():
    for row in ROWS:
        runs = (AdapterClassifier, row.classify), (AdapterRegressor, row.regress)
        for (kind, run), target in zip(runs, row.target, strict=True):
            for form in FORMS if run else []:
                name = f"{kind.__name__}-{row.names}-{form}"
                yield pytest.param(kind, run, row, form, target, id=name)


@pytest.mark.parametrize(("kind", "run", "row", "form", "target"), list(cases()))
def test_estimator_in_meta_estimator_learns_or_is_refused(kind, run, row, form, target):
    encoder = "array" if form == "numbers" else "tiny"
    estimator = kind(encoder, max_epochs=1, shrinkage=0.0, random_state=0)
    data = data_for(form, target)
    if form in row.refuses:
        with pytest.raises((ValueError, TypeError), match=row.refuses[form]):
            run(estimator, data)
    else:
        assert run(estimator, data) > row.least


def listed(names):
    return re.findall(r"`(\w+)", names)


def test_table_has_every_meta_estimator_of_scikit_learn():
    takes = {"estimator", "estimators", "regressor", "steps", "transformers"}
    takes.add("transformer_list")
    found = {
        name
        for name, kind in all_estimators()
        if takes & set(inspect.signature(kind).parameters)
    }
    assert len(found) > 30
    assert found - {n for row in ROWS for n in listed(row.names)} == LEFT_OUT & found


def test_table_of_the_docs_is_the_table_of_the_tests():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(names, *answers) for names, *answers, _ in cells] == [
        (row.names, *("no" if form in row.refuses else "yes" for form in FORMS))
        for row in ROWS
    ]
    assert all(reason for _, *answers, reason in cells if "no" in answers)
    noted = [
        names for names, *answers, reason in cells if reason and "no" not in answers
    ]
    assert noted == ["`StackingClassifier`, `StackingRegressor`"]


def read(numbers):
    """Texts by the numbers of their rows."""
    return np.array(as_texts())[np.asarray(numbers)[:, 0].astype(int)]


@pytest.mark.parametrize(
    "row",
    [r for r in ROWS if r.refuses is NO_TEXT and "Feature" not in r.names],
    ids=lambda row: row.names,
)
def test_row_numbers_bring_texts_into_what_takes_numbers_alone(row):
    numbers = np.arange(len(LABELS))[:, None]
    for kind, run, target in zip(
        (AdapterClassifier, AdapterRegressor), row[1:3], row.target, strict=True
    ):
        if run is None:
            continue
        model = kind("tiny", max_epochs=1, shrinkage=0.0, random_state=0)
        data = data_for("list", target)
        data.X, data.X_new = numbers[:-N_NEW], numbers[-N_NEW:]
        reader = FunctionTransformer(read)
        assert run(make_pipeline(reader, model), data) > row.least


def test_chain_over_row_numbers_sees_the_links_before():
    clf = AdapterClassifier("tiny", max_epochs=1, shrinkage=0.0, random_state=0)
    scores = make_pipeline(FunctionTransformer(read), AdapterScores(clf, cv=2))
    columns = ColumnTransformer([("text", scores, [0])], remainder="passthrough")
    Y = TARGETS["columns of 0 and 1"]
    numbers = np.arange(len(Y))[:, None]
    chain = ClassifierChain(make_pipeline(columns, LogisticRegression()))
    chain.fit(numbers[:-N_NEW], Y[:-N_NEW])
    assert [link[-1].n_features_in_ for link in chain.estimators_] == [2, 3]
    assert np.mean(chain.predict(numbers[-N_NEW:]) == Y[-N_NEW:]) > 0.8


def test_importance_of_a_text_column_is_above_that_of_noise():
    rng = np.random.RandomState(0)
    frame = pd.DataFrame({"noise": rng.randn(len(LABELS)), "text": as_texts()})
    clf = AdapterClassifier("tiny", max_epochs=1, shrinkage=0.0, random_state=0)
    columns = ColumnTransformer(
        [
            ("text", AdapterScores(clf, cv=2), "text"),
            ("noise", "passthrough", ["noise"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression()).fit(frame, LABELS)
    found = permutation_importance(model, frame, LABELS, n_repeats=2, random_state=0)
    noise, text = found.importances_mean
    assert text > noise + 0.3


# Scores -------------------------------------------------------------------------------


def of_one_epoch(kind=AdapterClassifier, **parameters):
    return kind("tiny", max_epochs=1, random_state=0, **parameters)


def numbering(make):
    def fit_predict(estimator, y=LABELS):
        return make(estimator).fit(SAMPLES["frame"], y).predict(SAMPLES["frame"])

    return fit_predict


@pytest.mark.parametrize(
    "labels_of",
    [
        numbering(lambda e: StackingClassifier([("a", e)], cv=2)),
        numbering(lambda e: VotingClassifier([("a", e)])),
        numbering(lambda e: BaggingClassifier(e, n_estimators=1, random_state=0)),
        lambda e: np.unique(LABELS)[
            cross_val_predict(
                e, as_texts(), LABELS, cv=2, method="predict_proba"
            ).argmax(1)
        ],
    ],
    ids=["stacking", "voting", "bagging", "cross_val_predict"],
)
def test_meta_estimator_that_numbers_labels_takes_parameters_that_name_numbers(
    labels_of,
):
    texts, weights = ["plane", "train", "ship"], [2.0, 1.0, 1.0]
    for name, values in ("label_texts", texts), ("class_weight", weights):
        named = {name: dict(zip(WORDS, values, strict=True))}
        with pytest.raises(ValueError, match=name):
            labels_of(of_one_epoch(**named))
        numbered = {name: dict(enumerate(values))}
        assert np.mean(labels_of(of_one_epoch(**numbered)) == LABELS) > 0.8


def test_calibration_by_one_fit_takes_labels_that_are_numbers():
    labels_of = numbering(lambda e: CalibratedClassifierCV(e, cv=2, ensemble=False))
    clf = of_one_epoch(label_texts={0: "plane"})
    with pytest.raises(ValueError, match="label_texts has the keys"):
        labels_of(clf)
    assert np.mean(labels_of(clf, VALUES.astype(int)) == VALUES) > 0.8


INDICATORS = pd.DataFrame({"wing": LABELS == "air", "wet": LABELS == "sea"}).astype(int)


@pytest.mark.parametrize(
    ("y", "parameters"),
    [
        (LABELS, {"label_texts": {"air": "a plane"}}),
        (LABELS, {"class_weight": {"air": 9.0, "rail": 1.0, "sea": 1.0}}),
        (VALUES.astype(int) + 1, {"label_texts": {1: "a plane", 2: "a train"}}),
        (VALUES.astype(int) * 2, {"class_weight": {0: 9.0, 2: 1.0, 4: 1.0}}),
        (INDICATORS, {"label_texts": {"wet": "a ship"}}),
        (LABELS[:, None], {"label_texts": {"air": "a plane"}}),
    ],
    ids=["texts", "weights", "numbers", "weighted numbers", "columns", "one column"],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_scores_of_parameters_that_name_labels_are_those_of_fits_by_hand(y, parameters):
    clf, texts = of_one_epoch(**parameters), SAMPLES["frame"]
    folds = list(KFold(2, shuffle=True, random_state=0).split(texts))
    found = AdapterScores(clf, cv=folds).fit_transform(texts, y)
    for train, test in folds:
        new = clone(clf).fit(texts.iloc[train], rows_of(y, train))
        np.testing.assert_array_equal(found[test], new.predict_proba(texts.iloc[test]))


BY_LABEL = np.argsort(LABELS, kind="stable")  # so that folds in order lack classes
TWO_VALUES = np.stack([np.arange(48) < 16, LABELS == "air"], axis=1).astype(int)


@pytest.mark.parametrize(
    ("estimator", "X", "y"),
    [
        (of_one_epoch(), as_texts(), LABELS),
        (of_one_epoch(), np.array(as_texts())[BY_LABEL], LABELS[BY_LABEL]),
        (RandomForestClassifier(3, random_state=0), as_numbers(), TWO_VALUES),
        (of_one_epoch(), as_texts(), INDICATORS.to_numpy()),
        (of_one_epoch(AdapterRegressor), as_texts(), VALUES),
        (
            of_one_epoch(AdapterRegressor),
            SAMPLES["frame"],
            TARGETS["columns of values"],
        ),
        (of_one_epoch(), pd.Series(as_texts(), range(48, 96)), list(LABELS)),
        (KernelRidge(kernel="precomputed"), as_numbers() @ as_numbers().T, VALUES),
    ],
    ids=[
        "classes",
        "classes absent",
        "values of labels absent",
        "labels",
        "numbers",
        "columns of numbers",
        "series and list",
        "kernel",
    ],
)
@pytest.mark.filterwarnings("ignore:Number of classes|The training rows:RuntimeWarning")
def test_scores_are_those_of_cross_val_predict(estimator, X, y):
    method = "predict_proba" if is_classifier(estimator) else "predict"
    expected = cross_val_predict(estimator, X, y, cv=KFold(3), method=method)
    if isinstance(expected, list):
        expected = np.stack([of_label[:, 1] for of_label in expected], axis=1)
    found = AdapterScores(estimator, cv=KFold(3)).fit_transform(X, y)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected.reshape(len(y), -1))


def test_scores_come_from_as_many_jobs_as_are_given(monkeypatch):
    given = []

    def in_threads(n_jobs):
        given.append(n_jobs)
        return Parallel(n_jobs=n_jobs, backend="threading")

    monkeypatch.setattr(module, "Parallel", in_threads)
    alone, shared = (
        AdapterScores(of_one_epoch(), cv=KFold(2), n_jobs=n_jobs)
        for n_jobs in (None, 2)
    )
    found = shared.fit_transform(as_texts(), LABELS)
    np.testing.assert_array_equal(found, alone.fit_transform(as_texts(), LABELS))
    assert given == [2, None]


def test_scores_are_0_with_a_warning_where_a_fold_lacks_a_class():
    scores = AdapterScores(of_one_epoch(), cv=KFold(3))
    with pytest.warns(RuntimeWarning, match="3 of 3 folds lack a class") as told:
        found = scores.fit_transform(np.array(as_texts())[BY_LABEL], LABELS[BY_LABEL])
    np.testing.assert_array_equal(
        found == 0, np.repeat(np.eye(3, dtype=bool), 16, axis=0)
    )
    assert [warning.filename for warning in told] == [__file__]
    scores = AdapterScores(RandomForestClassifier(3, random_state=0), cv=KFold(3))
    with pytest.warns(RuntimeWarning, match="1 of 3 folds lack a class"):
        assert (scores.fit_transform(as_numbers(), TWO_VALUES)[:16, 0] == 0).all()


@pytest.mark.parametrize(
    "weight", [2.0, list(np.linspace(0, 1, 48))], ids=["one", "list"]
)
def test_scores_take_the_weights_that_the_estimator_takes(weight):
    clf, texts, weights = of_one_epoch(), np.array(as_texts()), np.full(48, weight)
    scores = AdapterScores(clf, cv=KFold(2))
    found = scores.fit_transform(texts, LABELS, sample_weight=weight)
    for train, test in KFold(2).split(texts):
        new = clone(clf).fit(texts[train], LABELS[train], weights[train])
        np.testing.assert_array_equal(found[test], new.predict_proba(texts[test]))


def test_scores_of_unshuffled_folds_are_those_of_plain_stratified_folds():
    plain, shuffled = (
        AdapterScores(of_one_epoch(), cv=2, shuffle=shuffle, random_state=0)
        for shuffle in (False, True)
    )
    folds = AdapterScores(of_one_epoch(), cv=StratifiedKFold(2))
    found = plain.fit_transform(as_texts(), LABELS)
    np.testing.assert_array_equal(found, folds.fit_transform(as_texts(), LABELS))
    assert (found != shuffled.fit_transform(as_texts(), LABELS)).any()


ONCE = "each row must be in exactly one test fold. Give KFold"


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (TimeSeriesSplit(2), rf"cv=TimeSeriesSplit\(.* leaves rows .* {ONCE}"),
        (ShuffleSplit(2, random_state=0), rf"cv=ShuffleSplit\(.* {ONCE}"),
        (RepeatedKFold(n_splits=2, n_repeats=2), rf"cv=RepeatedKFold\(.* {ONCE}"),
        (PredefinedSplit(np.arange(48) % 3 - 1), rf"cv=PredefinedSplit\(.* {ONCE}"),
        ([(range(48), [48])], rf"cv=\[\(range.* {ONCE}"),
        ([], rf"cv=\[\] leaves .* {ONCE}"),
        (GroupKFold(2), r"cv=GroupKFold\(.* Pass groups=\.\.\., with"),
        (StratifiedKFold(20), "n_splits=20 cannot be greater"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_folds_that_give_no_score_a_row_are_refused_before_a_fit(
    cv, message, monkeypatch
):
    scores = AdapterScores(of_one_epoch(), cv=cv)
    monkeypatch.setattr(AdapterClassifier, "fit", lambda *_: pytest.fail("a fit"))
    with pytest.raises(ValueError, match=message):
        scores.fit_transform(as_texts(), LABELS)
    assert not hasattr(scores, "estimator_")


def test_scores_of_fold_that_fails_leave_what_was_fitted_before():
    y = np.repeat(["air", "sea"], 24)  # each fold is trained on one class
    scores = AdapterScores(of_one_epoch(), cv=KFold(2))
    with pytest.raises(ValueError, match="one class only"):
        scores.fit_transform(as_texts(), y)
    assert not hasattr(scores, "estimator_")
    before = scores.fit(as_texts(), LABELS).estimator_
    with pytest.raises(ValueError, match="one class only"):
        scores.fit_transform(as_texts(), y)
    assert scores.estimator_ is before
    assert scores.transform(as_texts()).shape == (48, 3)


def test_scores_of_rows_that_cannot_be_split_are_refused_with_a_remedy():
    scores = AdapterScores(of_one_epoch(), cv=2)
    with pytest.raises(TypeError, match=r"X is a generator; .* Turn it into a list"):
        scores.fit_transform((text for text in as_texts()), LABELS)
    folds = AdapterScores(of_one_epoch(), cv=StratifiedKFold(2))
    with pytest.raises(ValueError, match=r"y\[0\] is None: every row needs a label"):
        folds.fit_transform(as_texts(), [None, *LABELS[1:]])


def test_scores_without_a_seed_leave_the_global_generator_alone():
    before, estimator = np.random.get_state(), AdapterClassifier("tiny", max_epochs=1)
    AdapterScores(estimator, cv=2).fit_transform(as_texts(), LABELS)
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert np.random.get_state()[2:] == before[2:]


# Interrupts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        lambda clf, X: clone(clf).fit(X, LABELS),
        lambda clf, X: cross_validate(clf, X, LABELS, cv=2),
        lambda clf, X: GridSearchCV(clf, {"rank": [1, 2]}, cv=2).fit(X, LABELS),
        lambda clf, X: OneVsRestClassifier(clf).fit(X, LABELS),
        lambda clf, X: AdapterScores(clf, cv=2).fit_transform(X, LABELS),
        lambda clf, X: compare_strategies(X, LABELS, ["lora"], estimator=clf, cv=2),
    ],
    ids=["clone", "cross_validate", "search", "one vs rest", "scores", "compare"],
)
def test_interrupt_ends_what_fits_clones(run):
    epochs = []

    def callback(record):
        epochs.append(record["epoch"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(AdapterClassifier("tiny", callback=callback), as_texts())
    assert epochs == [1]


@pytest.mark.parametrize("nested", [False, True])
def test_interrupt_of_the_last_fit_of_a_search_keeps_it_unless_that_is_a_clone(nested):
    epochs = []

    def callback(record):
        epochs.append(record["epoch"])
        if len(epochs) == 3:  # two folds of one epoch, then the fit on all rows
            raise KeyboardInterrupt

    own = {"max_epochs": 1, "shrinkage": 0.0, "random_state": 0}
    cv = AdapterClassifierCV("tiny", ranks=[2], cv=2, callback=callback, **own)
    if nested:
        with pytest.raises(KeyboardInterrupt):
            cross_validate(cv, as_texts(), LABELS, cv=2)
    else:
        with pytest.warns(UserWarning, match="interrupted after 1 of 1 epochs"):
            cv.fit(as_texts(), LABELS)
        assert cv.score(as_texts(), LABELS) > 0
    assert len(epochs) == 3
