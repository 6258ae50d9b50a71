"""Checks of estimators whose samples are texts, in the manner of `check_estimator`.

scikit-learn's own suite feeds rows of numbers, and skips estimators that read text. The
checks here cover what it leaves out. Each is a function of an unfitted estimator, raises
`AssertionError` with a message that says what was given and what came of it, and leaves
the estimator as it was.
"""

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from warnings import catch_warnings, simplefilter

import numpy as np
import scipy.sparse
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

__all__ = [
    "CLASSIFIER_CHECKS",
    "MULTI_LABEL_CHECKS",
    "MULTI_OUTPUT_CHECKS",
    "PANDAS_CHECKS",
    "POLARS_CHECKS",
    "TEXT_CHECKS",
    "check_text_estimator",
    "text_checks",
]

_THINGS = (
    "film",
    "book",
    "small green tea pot",
    "play",
    "song of the long winter",
    "car",
)
_TEXTS = [f"{word} {thing}" for thing in _THINGS for word in ("good", "bad")]
_PAIRS = list(zip(_TEXTS, reversed(_TEXTS), strict=True))
_GOOD = np.array([text.startswith("good") for text in _TEXTS])
# Of three labels, the last of which no row has; some rows have none.
_LABELS = np.stack([_GOOD, np.arange(12) % 3 == 0, np.zeros(12)], axis=1).astype(int)
# Of two numbers, and a third that is the same in all rows.
_NUMBERS = np.stack([_GOOD * 3.0, np.arange(12) % 4 / 10, np.full(12, 0.1)], axis=1)
_COLUMNS = ["title", "body"]
_METHODS = ("predict", "predict_proba", "decision_function", "transform")
_TOLERANCE = 1e-5  # of invariances in float32, relative to the largest output


def check_text_estimator(estimator):
    """Check that a text classifier or regressor keeps scikit-learn's contract.

    It is meant for estimators that read texts as `AdapterClassifier` does: a sequence
    of str, a column of a frame, or two columns of texts (pairs), with `n_features_in_`
    and `feature_names_in_`, and errors for all that is no text. Others pass the checks
    that apply to them: a pipeline of `TfidfVectorizer` and a linear model reads neither
    frames nor pairs and turns down numbers with an `AttributeError`. For such an
    estimator choose from `text_checks`.

    Parameters
    ----------
    estimator : estimator
        Unfitted classifier or regressor. It is cloned, never changed; every parameter
        `random_state`, nested ones too, is set to 0 in the clones. Few epochs make the
        checks quick.

    Raises
    ------
    AssertionError
        From the first check that fails.

    See Also
    --------
    text_checks : The single checks, for pytest.

    Notes
    -----
    Checks of pandas and polars input run only where these libraries are installed.

    Examples
    --------
    >>> from skpeft import AdapterClassifier
    >>> from skpeft.testing import check_text_estimator
    >>> check_text_estimator(AdapterClassifier("tiny", max_epochs=2, random_state=0))
    """
    for check in text_checks(estimator):
        check(estimator)


def text_checks(estimator) -> list[Callable]:
    """List the checks that apply to an estimator.

    `TEXT_CHECKS` are for all, `CLASSIFIER_CHECKS` for classifiers, `MULTI_LABEL_CHECKS`
    for those with the tag `multi_label`, `MULTI_OUTPUT_CHECKS` for regressors with the tag
    `multi_output`, `PANDAS_CHECKS` and `POLARS_CHECKS` for places where these libraries are
    installed.

    Parameters
    ----------
    estimator : estimator
        A classifier gets the checks of labels too.

    Returns
    -------
    list of callable
        Each takes the estimator.

    See Also
    --------
    check_text_estimator : Runs them all.

    Examples
    --------
    In a test module, with one test a check:

    >>> import pytest
    >>> from skpeft import AdapterClassifier
    >>> from skpeft.testing import text_checks
    >>> clf = AdapterClassifier("tiny", random_state=0)
    >>> @pytest.mark.parametrize("check", text_checks(clf), ids=lambda c: c.__name__)
    ... def test_classifier_passes_check(check):
    ...     check(clf)
    """
    checks = list(TEXT_CHECKS)
    if find_spec("pandas"):
        checks += PANDAS_CHECKS
    if find_spec("polars"):
        checks += POLARS_CHECKS
    tags = get_tags(estimator)
    if is_classifier(estimator):
        checks += CLASSIFIER_CHECKS
        if tags.classifier_tags.multi_label:
            checks += MULTI_LABEL_CHECKS
    elif tags.target_tags.multi_output:
        checks += MULTI_OUTPUT_CHECKS
    return checks


# What is given: texts in many containers ----------------------------------------------


def check_sequences(estimator):
    """A list, a tuple and arrays of the same texts give the same predictions."""
    containers = {
        "a tuple": tuple(_TEXTS),
        "an array of dtype object": np.array(_TEXTS, dtype=object),
        "an array of dtype str": np.array(_TEXTS),
    }
    _check_containers(estimator, _TEXTS, containers)


def check_one_column_arrays(estimator):
    """An array of one column, or a list of rows of one text, is read as its texts."""
    containers = {
        "an (n, 1) array of dtype object": np.array(_TEXTS, dtype=object)[:, None],
        "an (n, 1) array of dtype str": np.array(_TEXTS)[:, None],
        "a list of rows of one text": [[text] for text in _TEXTS],
    }
    _check_containers(estimator, _TEXTS, containers)


def check_pairs(estimator):
    """Pairs of texts are read from a list of rows and from (n, 2) arrays alike."""
    containers = {
        "a list of lists of two texts": [list(pair) for pair in _PAIRS],
        "an (n, 2) array of dtype object": np.array(_PAIRS, dtype=object),
        "an (n, 2) array of dtype str": np.array(_PAIRS),
    }
    _check_containers(estimator, _PAIRS, containers)


def check_pandas_texts(estimator):
    """A pandas Series, whatever its dtype and index, is its texts, and so is a frame."""
    import pandas as pd

    index = np.roll(np.arange(len(_TEXTS)), 5)
    text = pd.Series(_TEXTS, name="text")
    containers = {
        "a pandas Series of the default dtype": text,
        "a pandas Series of dtype object": text.astype(object),
        "a pandas Series of dtype 'string'": text.astype("string"),
        "a pandas Series of dtype 'category'": text.astype("category"),
        "a pandas Series with an index out of order": text.set_axis(index),
        "a pandas Index": pd.Index(_TEXTS),
        "a pandas frame of one column": text.to_frame(),
        "a pandas frame of dtype object": text.to_frame().astype(object),
    }
    _check_containers(estimator, _TEXTS, containers)


def check_polars_texts(estimator):
    """A polars Series or frame of one column is read as the texts in it."""
    import polars as pl

    text = pl.Series("text", _TEXTS)
    containers = {
        "a polars Series": text,
        "a polars Series of dtype Categorical": text.cast(pl.Categorical),
        "a polars frame of one column": text.to_frame(),
    }
    _check_containers(estimator, _TEXTS, containers)


def check_pandas_targets(estimator):
    """A target in a pandas Series, whatever its index, is the numbers or labels in it."""
    import pandas as pd

    y = pd.Series(_target(estimator))
    containers = {
        "a pandas Series": y,
        "a pandas Series with an index out of order": y.set_axis(np.roll(y.index, 3)),
    }
    if is_classifier(estimator):
        unused = pd.CategoricalDtype(["other", "good", "bad"], ordered=True)
        containers |= {
            "a categorical pandas Series": y.astype("category"),
            "a pandas Categorical with a class unused": pd.Categorical(y, dtype=unused),
        }
    _check_targets(estimator, containers)


def check_polars_targets(estimator):
    """A target in a polars Series is the numbers or labels in it."""
    import polars as pl

    y = pl.Series(_target(estimator))
    containers = {"a polars Series": y}
    if is_classifier(estimator):
        containers["a categorical polars Series"] = y.cast(pl.Categorical)
    _check_targets(estimator, containers)


def check_pandas_columns(estimator):
    """Names and order of the columns of a pandas frame are learned and compared."""
    import pandas as pd

    _check_columns(estimator, pd.DataFrame(_PAIRS, columns=_COLUMNS), "pandas")


def check_polars_columns(estimator):
    """Names and order of the columns of a polars frame are learned and compared."""
    import polars as pl

    frame = pl.DataFrame(_PAIRS, schema=_COLUMNS, orient="row")
    _check_columns(estimator, frame, "polars")


def check_n_features_in(estimator):
    """`n_features_in_` is 1 for texts and 2 for pairs, and the other kind is refused."""
    for X, other, width in ((_TEXTS, _PAIRS, 1), (_PAIRS, _TEXTS, 2)):
        fitted = _fit(estimator, X)
        found = getattr(fitted, "n_features_in_", None)
        assert found == width, (
            f"n_features_in_ is {found} after fit on rows of {width} texts; expected "
            f"{width}."
        )
        _must_refuse(
            lambda fitted=fitted, other=other: fitted.predict(other),
            f"predict on rows of {3 - width} texts after fit on rows of {width}",
            r"\b[12]\b|features|columns|pairs?",
        )
        with _must_work(
            f"fit on rows of {3 - width} texts after one on rows of {width}"
        ):
            fitted.fit(other, _target(estimator))
        assert fitted.n_features_in_ == 3 - width, (
            f"n_features_in_ is {fitted.n_features_in_} after a second fit, on rows of "
            f"{3 - width} texts."
        )


# What fit promises --------------------------------------------------------------------


def check_fit_returns_self(estimator):
    """Fit returns the estimator itself."""
    new = _seeded_clone(estimator)
    with _must_work("fit on a list of texts"):
        returned = new.fit(list(_TEXTS), _target(estimator))
    assert returned is new, f"fit returned {returned!r}; expected the estimator itself."


def check_learns_texts_that_differ_in_a_word(estimator):
    """Training rows that one word tells apart are told apart, or `poor_score` is set."""
    with _must_work("reading __sklearn_tags__"):
        tags = estimator.__sklearn_tags__()
    kind = tags.classifier_tags if is_classifier(estimator) else tags.regressor_tags
    if kind is not None and kind.poor_score:
        return
    fitted = _fit(estimator)
    with _must_work("score on the training rows"):
        score = fitted.score(list(_TEXTS), _target(estimator))
    assert score > 0.5, (
        f"The score on training rows that one word tells apart is {score:.2f}; expected "
        "more than 0.5. Set the tag poor_score if that is meant."
    )


def check_clone(estimator):
    """A clone has the same parameters, is not fitted, and fits to the same model."""
    fitted = _fit(estimator)
    with _must_work("clone of a fitted estimator"):
        new = clone(fitted)
    _must_be_unfitted(new, "clone of a fitted estimator")
    for name, value in fitted.get_params(deep=False).items():
        copied = new.get_params(deep=False)[name]
        assert repr(copied) == repr(value), (
            f"clone has {name}={copied!r}; expected {value!r}."
        )
    with _must_work("fit of a clone"):
        new.fit(list(_TEXTS), _target(estimator))
    _must_be_equal(_outputs(new, _TEXTS), _outputs(fitted, _TEXTS), "a clone")


def check_refit_gives_the_same(estimator):
    """With a fixed random_state, fit gives the same model each time."""
    fitted = _fit(estimator)
    expected = _outputs(fitted, _TEXTS)
    _must_be_equal(_outputs(_fit(estimator), _TEXTS), expected, "a second estimator")
    with _must_work("second fit on the same rows"):
        fitted.fit(list(_TEXTS), _target(estimator))
    _must_be_equal(_outputs(fitted, _TEXTS), expected, "a second fit")


def check_refit_forgets_the_first(estimator):
    """A fit on other rows and targets leaves no trace in the next one."""
    new = _fit(estimator, _TEXTS[:8], _target(estimator, n_labels=3)[:8])
    with _must_work("second fit on other rows"):
        new.fit(list(_TEXTS), _target(estimator))
    expected = _outputs(_fit(estimator), _TEXTS)
    _must_be_equal(_outputs(new, _TEXTS), expected, "a fit after one on other rows")


def check_fit_changes_no_argument(estimator):
    """Fit leaves the parameters as they are, and X and y, which may be read-only."""
    new = _seeded_clone(estimator)
    before = new.get_params(deep=True)
    words = repr(new)
    X, y = np.array(_TEXTS, dtype=object), np.array(_target(estimator))
    X_before, y_before = X.copy(), y.copy()
    X.flags.writeable = y.flags.writeable = False
    with _must_work("fit on read-only arrays"):
        new.fit(X, y)
    after = new.get_params(deep=True)
    changed = [
        name
        for name in before
        if after[name] is not before[name] and repr(after[name]) != repr(before[name])
    ]
    assert not changed, f"fit changed the parameters {changed}."
    assert repr(new) == words, f"fit changed {words} to {new!r}."
    assert np.array_equal(X, X_before), "fit changed X in place."
    assert np.array_equal(y, y_before), "fit changed y in place."


def check_unfitted_estimator_says_so(estimator):
    """Every prediction of an unfitted estimator raises NotFittedError."""
    new = _seeded_clone(estimator)
    for method in _methods(new):
        try:
            getattr(new, method)(list(_TEXTS))
        except NotFittedError:
            continue
        except Exception as error:
            raise AssertionError(
                f"{method} of an unfitted estimator raised {_short(error)}; expected "
                "NotFittedError."
            ) from error
        raise AssertionError(
            f"{method} of an unfitted estimator gave a result; expected NotFittedError."
        )


# What predictions promise -------------------------------------------------------------


def check_order_invariance(estimator):
    """Predictions of rows in another order are the predictions in that order."""
    fitted = _fit(estimator)
    order = np.random.RandomState(0).permutation(len(_TEXTS))
    expected = {name: out[order] for name, out in _outputs(fitted, _TEXTS).items()}
    moved = _outputs(fitted, [_TEXTS[i] for i in order])
    _must_be_equal(moved, expected, "rows in another order", _TOLERANCE)


def check_subset_invariance(estimator):
    """The prediction of a row does not depend on the rows beside it."""
    fitted = _fit(estimator)
    expected = _outputs(fitted, _TEXTS)
    single = [_outputs(fitted, [text]) for text in _TEXTS]
    joined = {name: np.concatenate([out[name] for out in single]) for name in expected}
    _must_be_equal(joined, expected, "rows predicted one by one", _TOLERANCE)


def check_predict_changes_nothing(estimator):
    """Predictions leave the attributes as they are, and come out alike each time."""
    fitted = _fit(estimator)
    before = dict(vars(fitted))
    expected = _outputs(fitted, _TEXTS)
    after = vars(fitted)
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or after.get(name, before) is not before[name]
    )
    assert not changed, f"Predicting changed the attributes {changed}."
    _must_be_equal(_outputs(fitted, _TEXTS), expected, "a second call")


def check_pickle(estimator):
    """A pickled and loaded estimator predicts the same bits."""
    fitted = _fit(estimator)
    expected = _outputs(fitted, _TEXTS)
    with _must_work("pickling"):
        loaded = pickle.loads(pickle.dumps(fitted))
    _must_be_equal(_outputs(loaded, _TEXTS), expected, "a loaded pickle")


# What is refused ----------------------------------------------------------------------


def check_input_that_is_no_text(estimator):
    """All that is no text is refused, by name or place, and leaves nothing fitted."""
    y = _target(estimator)
    fitted = _fit(estimator)
    for given, X, names in _no_texts():
        new = _seeded_clone(estimator)
        _must_refuse(lambda new=new, X=X: new.fit(X, y), f"fit on {given}", names)
        _must_be_unfitted(new, f"fit on {given}")
        _must_refuse(lambda X=X: fitted.predict(X), f"predict on {given}", names)
    with _must_work("predict after input that was refused"):
        fitted.predict(list(_TEXTS))


def check_targets_that_do_not_fit(estimator):
    """A target of None, of another length, or with NaN is refused before fitting."""
    y = _target(estimator)
    n = len(y)
    several = get_tags(estimator).target_tags.multi_output
    table = [[a, a] for a in y]
    gap = np.array([np.nan, *np.arange(len(y) - 1.0) % 2])
    for given, wrong, names in (
        ("y=None", None, r"\by\b|None|target"),
        ("a y that is shorter than X", y[:-1], r"inconsistent|length|samples"),
        ("a y that is longer than X", [*y, y[0]], r"inconsistent|length|samples"),
        ("a y with NaN in it", gap, r"NaN|nan|missing"),
        ("a y with None in it", [None, *y[1:]], r"NaN|nan|None|missing|label"),
        ("a y of three axes", np.zeros((n, 2, 2)), r"1d|column|shape|dim|multi"),
        *([] if several else [("a y of two columns", table, "1d|column|shape|multi")]),
    ):
        new = _seeded_clone(estimator)
        action = lambda new=new, wrong=wrong: new.fit(list(_TEXTS), wrong)
        _must_refuse(action, f"fit with {given}", names)
        _must_be_unfitted(new, f"fit with {given}")


# What classifiers promise -------------------------------------------------------------


def check_labels_come_back_as_given(estimator):
    """Labels may be str, int or bool, in any order, and come back as they were."""
    given_as = {"an array": np.array, "a list": list}
    by_number = _fit(estimator, y=np.where(_GOOD, 1, 0)).predict(list(_TEXTS))
    for given, high, low in (
        ("str", "good", "bad"),
        ("str that look like numbers", "9", "10"),
        ("int with gaps", 7, -3),
        ("bool", True, False),
    ):
        labels = [high if good else low for good in _GOOD]
        expected = np.where(by_number == 1, high, low)
        for kind, container in given_as.items():
            what = f"labels of {given} in {kind}"
            fitted = _fit(estimator, y=container(labels), given=f"{what} (as y)")
            _must_have_classes(fitted, sorted({high, low}), what)
            _must_predict(fitted, expected, what)
    swapped = _fit(estimator, y=np.where(_GOOD, "a", "b").astype(object))
    what = "labels in an array of dtype object, the last of them first"
    _must_have_classes(swapped, ["a", "b"], what)


def check_decisions_agree(estimator):
    """Predictions are the classes of the highest probability and of the best score."""
    for n_labels in (2, 3):
        fitted = _fit(estimator, y=_target(estimator, n_labels))
        outputs = _outputs(fitted, _TEXTS)
        best = fitted.classes_.tolist().index
        predicted = np.array([best(label) for label in outputs["predict"].tolist()])
        if "predict_proba" in outputs:
            _check_probabilities(fitted, outputs["predict_proba"], predicted)
        if "decision_function" in outputs:
            scores = outputs["decision_function"]
            shape = (len(_TEXTS),) if n_labels == 2 else (len(_TEXTS), n_labels)
            assert scores.shape == shape, (
                f"decision_function gave shape {scores.shape} for {n_labels} classes; "
                f"expected {shape}."
            )
            chosen = scores > 0 if n_labels == 2 else scores.argmax(axis=1)
            assert (chosen == predicted).all(), (
                f"predict and decision_function disagree for {n_labels} classes."
            )


def _check_probabilities(fitted, probabilities, predicted):
    shape = (len(_TEXTS), len(fitted.classes_))
    assert probabilities.shape == shape, (
        f"predict_proba gave shape {probabilities.shape}; expected {shape}."
    )
    assert (probabilities >= 0).all(), "predict_proba gave a negative number."
    assert np.allclose(probabilities.sum(axis=1), 1, atol=_TOLERANCE), (
        "The rows of predict_proba do not sum to 1."
    )
    assert (probabilities.argmax(axis=1) == predicted).all(), (
        f"predict and predict_proba disagree for {len(fitted.classes_)} classes."
    )
    if hasattr(fitted, "predict_log_proba"):
        with _must_work("predict_log_proba on a list"):
            log_probabilities = fitted.predict_log_proba(list(_TEXTS))
        assert np.allclose(np.exp(log_probabilities), probabilities, atol=_TOLERANCE), (
            "predict_log_proba is not the logarithm of predict_proba."
        )


# Several labels, or several numbers, a row ---------------------------------------------


def check_several_labels(estimator):
    """A label is predicted where its probability is above a half, its score above 0."""
    outputs = _outputs(_fit(estimator, y=_LABELS, given="several labels"), _TEXTS)
    for method in {*outputs} - {"transform"}:
        found = outputs[method].shape
        assert found == _LABELS.shape, (
            f"{method} gave shape {found} for {_LABELS.shape[1]} labels; expected "
            f"{_LABELS.shape}, in one array."
        )
    predicted = outputs["predict"]
    assert predicted.dtype.kind == "i", (
        f"predict gave dtype {predicted.dtype} for several labels; expected int."
    )
    for method, middle in (("predict_proba", 0.5), ("decision_function", 0.0)):
        if method in outputs:
            assert ((outputs[method] > middle) == predicted).all(), (
                f"predict and {method} disagree for several labels."
            )
    if "predict_proba" in outputs:
        assert (
            (outputs["predict_proba"] >= 0) & (outputs["predict_proba"] <= 1)
        ).all(), "predict_proba gave a number outside of 0 and 1 for several labels."


def check_containers_of_labels(estimator):
    """Indicators of labels may be a list, an array, sparse or a frame with names."""
    fitted = _fit(estimator, y=_LABELS, given="several labels")
    expected = _outputs(fitted, _TEXTS)
    _must_have_classes(fitted, [0, 1, 2], "an array of three labels")
    names = ["good", "third", "none"]
    containers = {
        "a list of lists": _LABELS.tolist(),
        "an array of bool": _LABELS == 1,
        "an array of floats": _LABELS.astype(float),
        "a sparse matrix": scipy.sparse.csr_matrix(_LABELS),
        "a sparse array": scipy.sparse.csc_array(_LABELS),
        **_frames(_LABELS, names),
    }
    for given, y in containers.items():
        fitted = _fit(estimator, y=y, given=f"a list, with labels in {given},")
        if "frame" in given:
            _must_have_classes(fitted, names, f"labels in {given}")
        _must_be_equal(_outputs(fitted, _TEXTS), expected, f"labels in {given}")


def check_indicators_that_do_not_fit(estimator):
    """Columns that hold something else than 0 and 1 are refused before fitting."""
    for given, entry in (("2", 2), ("-1", -1), ("NaN", np.nan), ("a word", "good")):
        wrong = _LABELS.astype(object)
        wrong[4, 1] = entry
        new = _seeded_clone(estimator)
        action = lambda new=new, wrong=wrong: new.fit(list(_TEXTS), wrong.tolist())
        _must_refuse(
            action, f"fit with columns with {given} in them", "label|multi|NaN"
        )
        _must_be_unfitted(new, f"fit with columns with {given} in them")


def check_several_numbers(estimator):
    """Several numbers a row come back in their columns, a constant one as it was."""
    containers = {
        "an array": _NUMBERS,
        "a list of lists": _NUMBERS.tolist(),
        **_frames(_NUMBERS, ["a", "b", "c"]),
    }
    expected = None
    for given, y in containers.items():
        fitted = _fit(estimator, y=y, given=f"a list, with numbers in {given},")
        outputs = _outputs(fitted, _TEXTS)
        expected = expected or outputs
        _must_be_equal(outputs, expected, f"numbers in {given}", _TOLERANCE)
    found = expected["predict"]
    assert found.shape == _NUMBERS.shape, (
        f"predict gave shape {found.shape} for {_NUMBERS.shape[1]} numbers; expected "
        f"{_NUMBERS.shape}."
    )
    gap = np.abs(found - _NUMBERS)
    assert gap[:, 2].max() < 1e-3, (
        "A number that is constant is not predicted as it was."
    )
    assert get_tags(estimator).regressor_tags.poor_score or gap[:, 0].mean() < 1.5, (
        "The number that the first word decides is predicted no better than its mean."
    )


def _frames(array, names):
    """The array in the frames of the libraries that are installed."""
    frames = {}
    if find_spec("pandas"):
        import pandas as pd

        index = np.roll(np.arange(len(array)), 3)
        frames["a pandas frame"] = pd.DataFrame(array, columns=names, index=index)
    if find_spec("polars"):
        import polars as pl

        frames["a polars frame"] = pl.DataFrame(array, schema=names)
    return frames


#: Checks of every text estimator.
TEXT_CHECKS = (
    check_fit_returns_self,
    check_unfitted_estimator_says_so,
    check_learns_texts_that_differ_in_a_word,
    check_sequences,
    check_one_column_arrays,
    check_pairs,
    check_n_features_in,
    check_clone,
    check_refit_gives_the_same,
    check_refit_forgets_the_first,
    check_fit_changes_no_argument,
    check_order_invariance,
    check_subset_invariance,
    check_predict_changes_nothing,
    check_pickle,
    check_input_that_is_no_text,
    check_targets_that_do_not_fit,
)
#: Checks that need pandas.
PANDAS_CHECKS = (check_pandas_texts, check_pandas_targets, check_pandas_columns)
#: Checks that need polars.
POLARS_CHECKS = (check_polars_texts, check_polars_targets, check_polars_columns)
#: Checks of classifiers.
CLASSIFIER_CHECKS = (
    check_labels_come_back_as_given,
    check_decisions_agree,
)
#: Checks of classifiers that take several labels a row.
MULTI_LABEL_CHECKS = (
    check_several_labels,
    check_containers_of_labels,
    check_indicators_that_do_not_fit,
)
#: Checks of regressors that take several numbers a row.
MULTI_OUTPUT_CHECKS = (check_several_numbers,)


# How the checks work ------------------------------------------------------------------


def _no_texts() -> Iterator[tuple[str, object, str]]:
    """What is given, X, and a pattern of which the message must hold something."""
    n = len(_TEXTS)

    def with_third(entry):
        return [*_TEXTS[:2], entry, *_TEXTS[3:]]

    yield "an array of floats", np.linspace(0, 1, n), "number|float|dtype"
    yield "an (n, 2) array of floats", np.ones((n, 2)), "number|float|dtype"
    yield "a list of int", list(range(n)), r"\b0\b|int|number"
    yield "a list with a number in it", with_third(7), r"\b2\b|int"
    yield "a list with None in it", with_third(None), r"\b2\b|None"
    yield "a list with NaN in it", with_third(np.nan), r"\b2\b|nan|NaN"
    yield "a list with bytes in it", with_third(b"good car"), r"\b2\b|bytes"
    yield "a list with a pair in it", with_third(_PAIRS[2]), r"\b2\b|tuple"
    yield "a list of bytes", [text.encode() for text in _TEXTS], r"\b0\b|bytes"
    yield "an array of bytes", np.array(_TEXTS, dtype="S"), r"bytes|\bS|text"
    yield "rows of three texts", [[text] * 3 for text in _TEXTS], r"\b3\b|column"
    yield "rows of unlike length", [*_PAIRS[:2], ("a",), *_PAIRS[3:]], r"\b2\b|row"
    yield "an array of three axes", np.full((n, 1, 1), "a"), r"\b3\b|dim"
    yield (
        "a pair with None in it",
        [*_PAIRS[:2], ("a", None), *_PAIRS[3:]],
        r"\b2\b|None",
    )
    yield "an empty list", [], "empty|0 sample|at least"
    yield "a string", _TEXTS[0], "str|sequence|list"
    yield "bytes", _TEXTS[0].encode(), "bytes|sequence|list"
    yield "None", None, "None"


def _check_containers(estimator, samples, containers):
    """Fit and predict on each container as on the plain list."""
    expected = _outputs(_fit(estimator, samples), samples)
    for given, X in containers.items():
        fitted = _fit(estimator, X, given=given)
        _must_be_equal(_outputs(fitted, X, given), expected, given)


def _check_targets(estimator, containers):
    """Fit with the target in each container as with the plain list."""
    expected = _outputs(_fit(estimator), _TEXTS)
    for given, y in containers.items():
        fitted = _fit(estimator, y=y, given=f"a list, with y in {given},")
        if is_classifier(estimator):
            _must_have_classes(fitted, ["bad", "good"], f"y in {given}")
        _must_be_equal(_outputs(fitted, _TEXTS), expected, f"y in {given}")


def _check_columns(estimator, frame, library):
    fitted = _fit(estimator, frame, given=f"a {library} frame of two columns")
    names = list(getattr(fitted, "feature_names_in_", []))
    assert names == _COLUMNS, (
        f"feature_names_in_ is {names} after fit on a {library} frame with the columns "
        f"{_COLUMNS}."
    )
    expected = _outputs(_fit(estimator, _PAIRS), _PAIRS)
    found = _outputs(fitted, frame, f"a {library} frame of two columns")
    _must_be_equal(found, expected, f"a {library} frame of two columns")
    renamed = frame.copy() if library == "pandas" else frame.clone()
    renamed.columns = ["title", "text"]
    for given, other in (
        ("its columns in another order", frame[_COLUMNS[::-1]]),
        ("another column name", renamed),
        ("one column less", frame[_COLUMNS[:1]]),
    ):
        _must_refuse(
            lambda other=other: fitted.predict(other),
            f"predict on a {library} frame with {given}",
            "name|column|order|features",
        )


def _target(estimator, n_labels=2):
    """Labels, or numbers, that the first word of a text decides."""
    if is_classifier(estimator):
        labels = ["bad", "good", "other"]
        third = n_labels == 3
        return [
            labels[2] if third and i % 3 == 0 else labels[int(good)]
            for i, good in enumerate(_GOOD)
        ]
    return [float(good * 3 - 1 + 0.01 * i * n_labels) for i, good in enumerate(_GOOD)]


def _seeded_clone(estimator):
    new = clone(estimator)
    seeds = [
        name
        for name in new.get_params(deep=True)
        if name == "random_state" or name.endswith("__random_state")
    ]
    return new.set_params(**dict.fromkeys(seeds, 0))


def _fit(estimator, X=None, y=None, given="a list"):
    new = _seeded_clone(estimator)
    X = list(_TEXTS) if X is None else X
    with _must_work(f"fit on {given}"):
        return new.fit(X, _target(estimator) if y is None else y)


def _methods(estimator):
    return [method for method in _METHODS if hasattr(estimator, method)]


def _outputs(fitted, X, given="a list") -> dict[str, np.ndarray]:
    """Output of every method for prediction."""
    outputs = {}
    for method in _methods(fitted):
        with _must_work(f"{method} on {given}"):
            outputs[method] = np.asarray(getattr(fitted, method)(X))
    return outputs


def _must_be_equal(found, expected, given, tolerance=0.0):
    """Compare outputs method by method; classes within rounding of each other may swap."""
    for method, right in expected.items():
        left = found[method]
        assert left.shape == right.shape, (
            f"{method} for {given} has shape {left.shape}; expected {right.shape}."
        )
        if not np.issubdtype(right.dtype, np.number):
            scored = tolerance and {"predict_proba", "decision_function"} & {*expected}
            assert scored or (left == right).all(), (
                f"{method} for {given} gives other labels than were expected."
            )
            continue
        error = float(np.abs(left - right).max())
        allowed = tolerance * max(1.0, float(np.abs(right).max()))
        assert error <= allowed, (
            f"{method} for {given} differs by {error:.2g} from what was expected; "
            f"allowed is {allowed:.2g}."
        )


def _must_have_classes(fitted, expected, given):
    found = list(getattr(fitted, "classes_", []))
    assert found == expected, (
        f"classes_ holds {found} for {given}; expected {expected}."
    )


def _must_predict(fitted, expected, given):
    with _must_work(f"predict after fit with {given}"):
        found = np.asarray(fitted.predict(list(_TEXTS)))
    expected = expected.tolist()
    alike = found.tolist() == expected and type(found.tolist()[0]) is type(expected[0])
    assert alike, (
        f"predict gave {found.tolist()} for {given}; expected {expected}, as with other "
        "labels in the same order."
    )


def _must_be_unfitted(estimator, after):
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return
    raise AssertionError(f"After {after} the estimator passes for fitted.")


@contextmanager
def _must_work(what):
    """Turn errors into failures that say what was done; ignore warnings of names."""
    with catch_warnings():
        simplefilter("ignore", UserWarning)
        try:
            yield
        except Exception as error:
            raise AssertionError(f"{what} raised {_short(error)}.") from error


def _must_refuse(action, given, names):
    """Expect an error whose message matches a pattern that names what is wrong."""
    raised = None
    with catch_warnings():
        simplefilter("ignore", UserWarning)
        try:
            action()
        except Exception as error:
            raised = error
    assert raised is not None, (
        f"{given} was accepted; expected ValueError or TypeError."
    )
    assert isinstance(raised, ValueError | TypeError), (
        f"{given} raised {_short(raised)}; expected ValueError or TypeError."
    )
    assert re.search(names, str(raised)), (
        f"{given} raised {_short(raised)}, which neither says what is wrong nor where: "
        f"nothing in it matches {names!r}."
    )


def _short(error):
    return f"{type(error).__name__}: {error!s:.200}"
