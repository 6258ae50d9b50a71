"""Check samples and targets, split off validation rows, put rows into batches."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.random import RandomState
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.validation import check_array, validate_data

# Batches that are cut from rows sorted by length: 16 of them had 4 % of padding, where
# random ones had 14 to 41 %.
_BATCHES_PER_POOL = 16


class Data(NamedTuple):
    """Checked samples, targets as the user gave them, and weights where there are any.

    The last `n_label_texts` rows are texts about labels, not rows of the user's.
    """

    samples: Sequence
    y: np.ndarray
    weights: np.ndarray | None
    n_label_texts: int = 0

    def take(self, indices: np.ndarray) -> "Data":
        """The rows of these numbers."""
        weights = None if self.weights is None else self.weights[indices]
        return Data(_safe_indexing(self.samples, indices), self.y[indices], weights)


def check_samples(estimator, X, modality: str, *, reset: bool) -> Sequence:
    """Check X by what the encoder reads.

    Parameters
    ----------
    estimator : estimator
        Takes or has `n_features_in_` and `feature_names_in_`.
    X : sequence or array-like
        As the user gave it.
    modality : {"text", "array"}
        What the encoder reads.
    reset : bool
        Whether the features are learned (fit) or compared (all else).

    Returns
    -------
    list of str, list of (str, str), or ndarray of shape (n_samples, n_features)
    """
    if modality == "array":
        _refuse_text(X)
        return validate_data(estimator, X, reset=reset, dtype="numeric")
    samples = check_texts(X)
    width = 1 if isinstance(samples[0], str) else len(samples[0])
    known = width if reset else estimator.n_features_in_
    if width != known:
        kinds = {1: "single texts", 2: "pairs of texts"}
        raise ValueError(
            f"X has {width} features, but {type(estimator).__name__} is expecting {known} "
            f"features as input: X holds {kinds[width]}, and fit was given {kinds[known]}. "
            "Pass the same columns as to fit."
        )
    shape_only = (
        X if hasattr(X, "columns") else np.empty((len(samples), width), dtype=object)
    )
    validate_data(estimator, shape_only, reset=reset, skip_check_array=True)
    return samples


def _refuse_text(X) -> None:
    is_sequence = hasattr(X, "__len__") and hasattr(X, "__iter__")
    is_sequence = is_sequence and getattr(X, "ndim", 1) == 1 and not isinstance(X, dict)
    first = next(iter(X), None) if is_sequence else None
    if isinstance(X, str | bytes) or isinstance(first, str):
        raise ValueError(
            "X holds text, but the encoder of this estimator reads rows of numbers. "
            "Expected 2D array, got 1D text instead; for texts pass "
            "encoder=TextEncoder(...) or the name of a model."
        )


def check_texts(X) -> list:
    """Texts, or pairs of texts, as a plain list.

    Parameters
    ----------
    X : sequence of str, Series, frame of one or two columns, or such an array
        One or two texts a sample.

    Returns
    -------
    list of str or list of (str, str)

    Raises
    ------
    TypeError
        If X is no sequence of samples.
    ValueError
        If a sample is not text, or X is empty or of a wrong shape.
    """
    rows = _rows(X)
    if not rows:
        raise ValueError(
            "Found array with 0 sample(s) while a minimum of 1 is required: X is empty. "
            "Pass at least one text."
        )
    if not isinstance(rows[0], str) and isinstance(rows[0], list | tuple):
        return _check_table(rows)
    return [_check_text(text, f"X[{i}]") for i, text in enumerate(rows)]


def _rows(X) -> list:
    """Samples as a list; those of a table as lists."""
    _refuse_no_sequence(X)
    if hasattr(X, "columns"):
        # Of pandas, which alone has such; a missing name may come twice.
        names = X.columns if hasattr(X, "iloc") else ()
        names = [name for name in names if not _is_missing(name)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"X has columns of the same name, {names}. Pass one column of texts, such "
                "as X.iloc[:, 0], or for pairs two of different names."
            )
        return np.asarray(X, dtype=object).tolist()
    n_axes = np.ndim(X) if hasattr(X, "__array__") else 1
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUT":
        raise ValueError(_no_text(X))
    if n_axes not in (1, 2):
        remedy = "Reshape it" if n_axes else "Pass one text as [text]"
        raise ValueError(
            f"X has {n_axes} dimensions; texts come as (n,), (n, 1) or, for pairs, "
            f"(n, 2). {remedy}."
        )
    if isinstance(X, np.ndarray):
        return X.tolist()
    return X.to_pylist() if hasattr(X, "to_pylist") else list(X)


def _refuse_no_sequence(X) -> None:
    """Raise a `TypeError` for what is not many samples in some order."""
    if isinstance(X, str | bytes | bytearray):
        raise TypeError(
            f"X is a single {type(X).__name__}; a sequence of texts is expected. For one "
            "sample pass a list of one: [text]."
        )
    if scipy.sparse.issparse(X):
        raise TypeError(
            "X is a sparse matrix of numbers; a sequence of texts is expected. Sparse "
            "input is not supported; pass the texts themselves."
        )
    has_no_order = X is None or isinstance(X, dict | set | frozenset)
    if has_no_order or not hasattr(X, "__len__"):
        remedy = "Turn it into a list first"
        if hasattr(X, "collect"):  # of polars, lazy
            remedy = "Call its collect() first"
        if has_no_order:
            remedy = "Give the texts, in order"
        raise TypeError(
            f"X is a {type(X).__name__}; a list, array, Series or frame of texts is "
            f"expected. {remedy}."
        )


def _no_text(X) -> str:
    kind = "numbers" if X.dtype.kind in "biufc" else "no text"
    return (
        f"X holds {kind} (dtype {X.dtype}), but the encoder of this estimator reads "
        "texts. Pass str, or encoder=ArrayEncoder() for rows of numbers."
    )


def _check_table(rows: list) -> list:
    width = len(rows[0])
    if width not in (1, 2):
        raise ValueError(
            f"X has rows of {width} entries; one text or a pair of texts a row is "
            "expected, so 1 or 2 columns. Select the text columns. Of lists of tokens join "
            "each to a text; of two lists of texts make pairs by list(zip(a, b))."
        )
    for i, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != width:
            raise ValueError(
                f"X[{i}] is {row!r:.80} of type {type(row).__name__}, but X[0] is a row "
                f"of {width}; every row must have as many texts. Give each row {width}."
            )
    table = [
        tuple(_check_text(text, f"X[{i}, {j}]") for j, text in enumerate(row))
        for i, row in enumerate(rows)
    ]
    return [row[0] for row in table] if width == 1 else table


def _check_text(text, place: str) -> str:
    if not isinstance(text, str):
        remedy = "Fill or drop missing entries."
        if not _is_missing(text):
            remedy = (
                "Select the column of texts, or turn them into str; for rows of numbers "
                "pass encoder=ArrayEncoder()."
            )
        if isinstance(text, bytes):
            remedy = "Decode them: [text.decode('utf-8') for text in X]."
        raise ValueError(
            f"{place} is {text!r:.80} of type {type(text).__name__}, but the encoder of "
            f"this estimator reads texts: every entry must be a str. {remedy}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{place} holds a lone surrogate, which no encoding can represent. Clean the "
            "text, for example with text.encode('utf-8', 'replace').decode()."
        ) from None
    return str.__str__(text)  # itself, also of a member of an Enum


_SEVERAL_LABELS = (
    "For several labels a row pass indicators of shape (n_samples, n_labels): "
    "sklearn.preprocessing.MultiLabelBinarizer makes them of lists of labels."
)


def plain_types(y):
    """Nullable whole numbers and booleans in the types of numpy; all else as it is."""
    # pandas names them so; as an array sklearn would make numbers with a point of them.
    own = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    return y if own is None or own.kind not in "biu" else y.to_numpy(dtype=own)


def check_labels(y) -> None:
    """Refuse labels that are missing, lists, or of types that cannot be sorted together.

    Raises
    ------
    ValueError
        Naming the first label that is missing or a list of labels, or the types.
    """
    if getattr(getattr(y, "dtype", None), "kind", None) == "T":
        raise ValueError(
            "y is of numpy's StringDType, which scikit-learn does not take as labels. Use "
            "y.tolist()."
        )
    if isinstance(y, np.ndarray) and (y.dtype.kind != "O" or y.ndim != 1):
        return
    if not isinstance(y, np.ndarray | list | tuple) and not hasattr(y, "to_list"):
        return
    labels = list(y)
    one_a_row = np.ndim(y) == 1
    for i, label in enumerate(labels):
        if one_a_row and isinstance(label, list | tuple | set | frozenset | np.ndarray):
            raise ValueError(
                f"y[{i}] is {label!r:.80}; one label a row is expected. {_SEVERAL_LABELS}"
            )
        if _is_missing(label):
            raise ValueError(
                f"y[{i}] is {label!r}: every row needs a label. Drop the rows without one."
            )
        if isinstance(label, str) and str(label) != str.__str__(label):
            raise ValueError(
                f"y[{i}] is {label!r}, which numpy takes for {str(label)!r}. Use the texts "
                "themselves: of members of an Enum [label.value for label in y]."
            )
    kinds = {type(label) for label in labels}
    if any(issubclass(kind, str) for kind in kinds):
        others = sorted(kind.__name__ for kind in kinds if not issubclass(kind, str))
        if others:
            raise ValueError(
                f"y mixes labels of types {[*others, 'str']}, which cannot be sorted. Use "
                "one type, for example str for all."
            )


def _is_missing(label) -> bool:
    """Whether a label is None, nan, or what pandas has for it."""
    if isinstance(label, float | np.floating):
        return bool(np.isnan(label))
    pandas = sys.modules.get("pandas")
    missing = [None, *(getattr(pandas, name, None) for name in ("NA", "NaT"))]
    return any(label is one for one in missing)


def look_swapped(samples: Sequence, y: np.ndarray) -> bool:
    """Whether texts repeat as labels do, and labels hardly as texts do not."""
    if not isinstance(samples[0], str) or y.ndim > 1 or not isinstance(y[0], str):
        return False
    return 5 * len(set(samples)) < len(y) < 2 * len(set(y))


def n_columns(y) -> int:
    """Number of columns of a target: 1 for a plain sequence.

    Raises
    ------
    ValueError
        If y is made of sequences of unlike length.
    """
    try:
        shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    except ValueError as error:
        raise ValueError(
            "y holds sequences of unlike length; one target a row is expected. "
            f"{_SEVERAL_LABELS}"
        ) from error
    if shape == () and y is not None:
        raise ValueError(
            f"y is a {type(y).__name__}; a sequence is expected, of one target a row. Turn "
            "it into a list first."
        )
    return shape[1] if len(shape) == 2 else 1


def check_indicators(y) -> np.ndarray:
    """Indicators of labels, of shape (n_samples, n_labels), as int64.

    Raises
    ------
    ValueError
        If an entry is missing, or neither 0 nor 1.
    """
    y = check_array(y, accept_sparse=True, dtype=None, input_name="y")
    y = y.toarray() if scipy.sparse.issparse(y) else y
    if y.dtype.kind not in "biuf":
        y = y.astype(object)
    wrong = ~((y == 0) | (y == 1)).astype(bool)
    if wrong.any():
        raise ValueError(
            f"y has {y.shape[1]} columns, which are taken for labels that a row has or not, "
            f"but holds {y[wrong][0]!r}; 0 and 1 are expected. {_SEVERAL_LABELS} For several "
            "columns of classes use "
            "sklearn.multioutput.MultiOutputClassifier(AdapterClassifier(...))."
        )
    return y.astype(np.int64, order="C")


def check_same_columns(y, y_val) -> None:
    """Refuse validation targets whose columns are not those of the training targets.

    Raises
    ------
    ValueError
        If number or names of the columns differ.
    """
    expected, found = n_columns(y), n_columns(y_val)
    if expected != found:
        raise ValueError(
            f"y_val has {found} columns, but y has {expected}; the same targets are expected."
        )
    if expected > 1 and hasattr(y, "columns") and hasattr(y_val, "columns"):
        names, others = list(y.columns), list(y_val.columns)
        if names != others:
            raise ValueError(
                f"y_val has the columns {others}, but y has {names}; the same names in the "
                "same order are expected."
            )


def split_by(splitter, X, y, groups) -> list:
    """Folds of a splitter; a `ValueError` says where it wants groups and there are none."""
    try:
        return list(splitter.split(X, y, groups))
    except (TypeError, ValueError) as error:
        wanted = get_routing_for_object(splitter).split.requests.get("groups") is True
        if groups is not None or not wanted:
            raise
        raise ValueError(
            f"cv={splitter!r} keeps rows of one group together, but there are no groups. "
            "Pass groups=..., with the group of each row."
        ) from error


def split_rows(n_rows: int, fraction: float, strata, random_state: RandomState):
    """Row numbers for training and validation, stratified where `strata` is given.

    Raises
    ------
    ValueError
        If the rows do not suffice for a split.
    """
    try:
        return train_test_split(
            np.arange(n_rows),
            test_size=fraction,
            stratify=strata,
            random_state=random_state,
        )
    except ValueError as error:
        alone = (
            strata is not None and np.unique(strata, return_counts=True)[1].min() < 2
        )
        another = "a larger" if fraction < 0.5 else "a smaller"
        remedy = (
            "other classes than those of one row" if alone else f"{another} fraction"
        )
        raise ValueError(
            f"early_stopping=True needs validation rows, and validation_fraction="
            f"{fraction} of {n_rows} rows cannot be split off ({error}). Give X_val "
            f"and y_val, {remedy}, or early_stopping=False."
        ) from error


def length_batches(
    lengths: Sequence[int], n_tokens: int, n_extra: int
) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, longest first, that cost least together.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    n_tokens : int
        Tokens of a batch at most, padding included; one row always fits.
    n_extra : int
        What a batch costs besides its tokens and their padding, in tokens.

    Yields
    ------
    ndarray of int
        Numbers of the rows of one batch.
    """
    order = np.argsort(np.negative(lengths), kind="stable")
    longest = np.maximum(np.asarray(lengths, dtype=np.int64)[order], 1)
    n_rows = len(order)
    # From the end on: the least cost of the rows that are left, and how many go first.
    cost, first = np.zeros(n_rows + 1, np.int64), np.zeros(n_rows, np.int64)
    for row in reversed(range(n_rows)):
        most = min(max(n_tokens // longest[row], 1), n_rows - row)
        sizes = np.arange(most, 0, -1)
        costs = longest[row] * sizes + cost[row + sizes]
        best = costs.argmin()
        cost[row], first[row] = costs[best] + n_extra, sizes[best]
    start = 0
    while start < n_rows:
        yield order[start : start + first[start]]
        start += first[start]


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, random_state: RandomState
) -> list[np.ndarray]:
    """Row numbers of one epoch in random batches of nearly equal size and like length.

    Rows are drawn at random into pools, and only within a pool sorted by length; of few
    batches each is a pool of its own.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    batch_size : int
        Rows of a batch at most.
    random_state : RandomState
        Source of the order.
    """
    n_batches = -(-len(lengths) // batch_size)
    batches = np.array_split(random_state.permutation(len(lengths)), n_batches)
    n_pooled = min(_BATCHES_PER_POOL, max(1, n_batches // 4))
    for start in range(0, n_batches, n_pooled):
        pool = slice(start, start + n_pooled)
        rows, sizes = np.concatenate(batches[pool]), list(map(len, batches[pool]))
        rows = rows[np.argsort(np.asarray(lengths)[rows], kind="stable")]
        batches[pool] = np.split(rows, np.cumsum(sizes)[:-1])
    return [batches[i] for i in random_state.permutation(n_batches)]


def balanced_batches(
    classes: np.ndarray, batch_size: int, random_state: RandomState
) -> list[np.ndarray]:
    """Row numbers of one epoch, each batch with equally many rows of its classes.

    A class that has fewer rows than its share of a batch gives all it has.

    Every class has a queue of its shuffled rows that starts anew when it is used up, so
    rows of rare classes come up more often. A batch holds at least two rows of each of
    its classes where they exist, and with many classes a part of these.

    Parameters
    ----------
    classes : ndarray of int of shape (n_rows,)
        Class of each row.
    batch_size : int
        Rows of a batch; with one batch an epoch all rows are in it, once.
    random_state : RandomState
        Source of the order.
    """
    if len(classes) <= batch_size:
        return [np.arange(len(classes))]
    members = {c: np.flatnonzero(classes == c) for c in np.unique(classes)}
    n_groups = min(len(members), max(1, batch_size // 2))
    per_class = batch_size // n_groups
    queues = {
        c: _endless(rows, min(per_class, len(rows)), random_state)
        for c, rows in members.items()
    }
    groups = _endless(np.array(list(members)), n_groups, random_state)
    return [
        np.concatenate([next(queues[c]) for c in next(groups)])
        for _ in range(-(-len(classes) // batch_size))
    ]


def _endless(
    values: np.ndarray, size: int, random_state: RandomState
) -> Iterator[np.ndarray]:
    """Draws of `size` distinct values, from one shuffled round after the other."""
    left = values[:0]
    while True:
        if len(left) < size:
            fresh = random_state.permutation(values)
            drawn = np.isin(fresh, left)
            left = np.concatenate([left, fresh[~drawn], fresh[drawn]])
        yield left[:size]
        left = left[size:]
