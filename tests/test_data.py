"""Texts are read as they are, and rows are put into batches without losing any."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from skpeft._data import (
    Data,
    balanced_batches,
    check_texts,
    length_batches,
    shuffled_batches,
    split_rows,
)

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

surrogates_excluded = st.characters(exclude_categories=["Cs"])
texts = st.text(surrogates_excluded, max_size=20)
no_texts = st.one_of(
    st.none(), st.integers(), st.floats(), st.binary(max_size=5), st.booleans()
)
seeds = st.integers(0, 2**32 - 1)


# check_texts --------------------------------------------------------------------------


@given(st.lists(texts, min_size=1))
@example([""])
@example(["ab", "cd"])  # texts of two letters are no pairs
def test_check_texts_of_texts_in_any_container_gives_the_list(rows):
    objects = np.array(rows, dtype=object)
    for X in (rows, tuple(rows), objects, objects[:, None], [[row] for row in rows]):
        assert check_texts(X) == rows


@given(st.lists(st.tuples(texts, texts), min_size=1))
def test_check_texts_of_pairs_in_any_container_gives_tuples(rows):
    objects = np.empty((len(rows), 2), dtype=object)
    objects[:] = rows
    for X in (rows, tuple(rows), [list(row) for row in rows], objects):
        assert check_texts(X) == rows


@given(st.lists(texts, min_size=1))
def test_check_texts_gives_plain_str(rows):
    class Word(str):
        __slots__ = ()

    class Named(Word):
        __slots__ = ()

        def __str__(self):
            return "name"

    kinds = np.str_, Word, Named
    for kind in kinds:
        assert check_texts([kind(row) for row in rows]) == [
            str.__str__(kind(r)) for r in rows
        ]
    for X in (np.array(rows), *([kind(row) for row in rows] for kind in kinds)):
        assert {type(text) for text in check_texts(X)} == {str}


@given(st.lists(texts, min_size=1), no_texts, st.data())
def test_check_texts_with_one_entry_that_is_no_text_names_its_place(rows, bad, data):
    place = data.draw(st.integers(0, len(rows)))
    X = [*rows[:place], bad, *rows[place:]]
    kind = type(bad).__name__
    with pytest.raises(ValueError, match=rf"^X\[{place}\] is .*of type {kind}"):
        check_texts(X)


@given(st.lists(st.tuples(texts, texts), min_size=1), no_texts, st.data())
def test_check_texts_with_pair_that_is_no_text_names_its_place(rows, bad, data):
    i, j = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 1))
    table = [list(row) for row in rows]
    table[i][j] = bad
    with pytest.raises(ValueError, match=rf"^X\[{i}, {j}\] is "):
        check_texts(table)


@given(
    st.lists(st.lists(texts, min_size=1, max_size=2), min_size=2).filter(
        lambda rows: len({len(row) for row in rows}) == 2
    )
)
def test_check_texts_with_rows_of_unlike_width_names_the_first_odd_one(rows):
    odd = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
    with pytest.raises(ValueError, match=rf"^X\[{odd}\] is "):
        check_texts(rows)


@pytest.mark.parametrize(
    ("X", "kind", "message"),
    [
        ("one text", TypeError, "single str"),
        (b"one text", TypeError, "single bytes"),
        (None, TypeError, "NoneType"),
        ({"a": "b"}, TypeError, "dict.*Give the texts, in order"),
        ({"a"}, TypeError, "set"),
        ((t for t in "ab"), TypeError, "generator"),
        (3, TypeError, "int"),
        ([], ValueError, "X is empty"),
        (np.array([], dtype=object), ValueError, "X is empty"),
        (np.arange(3), ValueError, "holds numbers .dtype int64"),
        (np.ones((3, 2), dtype=np.float32), ValueError, "holds numbers .dtype float32"),
        (np.array([b"a"]), ValueError, "holds no text .dtype .S1"),
        (
            np.array(["2020-01-01"], dtype="M8[D]"),
            ValueError,
            "holds no text .dtype date",
        ),
        (np.full((2, 2, 2), "a"), ValueError, "3 dimensions"),
        (np.array("a"), ValueError, r"0 dimensions.*Pass one text as \[text\]"),
        ([["a", "b", "c"]] * 2, ValueError, "rows of 3 entries"),
        ([[]] * 2, ValueError, "rows of 0 entries"),
        ([["a", "b"], "ab"], ValueError, r"X\[1\] is 'ab' of type str"),
        (["a", ["a", "b"]], ValueError, r"X\[1\] is \['a', 'b'\] of type list"),
        (["fine", "\ud800"], ValueError, r"X\[1\] holds a lone surrogate"),
    ],
    ids=lambda value: repr(value)[:30].replace("\n", ""),
)
def test_check_texts_of_what_holds_no_texts_says_so(X, kind, message):
    with pytest.raises(kind, match=message):
        check_texts(X)


def test_check_texts_of_sparse_matrix_says_so():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="sparse"):
        check_texts(sparse.eye(3, format="csr"))


def test_check_texts_of_pandas_reads_values_not_index():
    pd = pytest.importorskip("pandas")
    rows = ["a", "b", "c"]
    for dtype in (None, object, "string", "category"):
        series = pd.Series(rows, index=[2, 0, 1], dtype=dtype)
        assert check_texts(series) == rows
        assert check_texts(series.to_frame()) == rows
    pairs = pd.DataFrame({"one": rows, "two": rows[::-1]}, index=[1, 1, 1])
    assert check_texts(pairs) == list(zip(rows, rows[::-1], strict=True))


@pytest.mark.parametrize("dtype", [None, object, "string"])
def test_check_texts_of_pandas_with_missing_entry_names_its_place(dtype):
    pd = pytest.importorskip("pandas")
    series = pd.Series(["a", None, "c"], dtype=dtype)
    with pytest.raises(ValueError, match=r"^X\[1\] is "):
        check_texts(series)
    with pytest.raises(ValueError, match=r"^X\[1, 0\] is "):
        check_texts(series.to_frame())


@pytest.mark.parametrize("name", [float("nan"), pd.NA, None])
def test_columns_without_a_name_are_told_from_those_of_the_same_name(name):
    frame = pd.DataFrame([["a", "b"]], columns=pd.Index([name, name], dtype=object))
    assert check_texts(frame) == [("a", "b")]


def test_check_texts_of_polars_reads_values():
    pl = pytest.importorskip("polars")
    rows = ["a", "b", "c"]
    assert check_texts(pl.Series(rows)) == rows
    assert check_texts(pl.DataFrame({"text": rows})) == rows
    assert check_texts(pl.DataFrame({"one": rows, "two": rows})) == [
        (t, t) for t in rows
    ]
    with pytest.raises(ValueError, match=r"^X\[2\] is None"):
        check_texts(pl.Series(["a", "b", None]))
    with pytest.raises(
        TypeError, match=r"is a LazyFrame; .* Call its collect\(\) first"
    ):
        check_texts(pl.LazyFrame({"text": rows}))
    with pytest.raises(ValueError, match=r"^X\[0\] is 1 of type int"):
        check_texts(pl.Series([1, 2]))


def test_check_texts_of_pyarrow_reads_values():
    pa = pytest.importorskip("pyarrow")
    rows = ["a", "b", "a"]
    for column in (pa.array(rows), pa.chunked_array([rows[:1], rows[1:]])):
        assert check_texts(column) == check_texts(column.dictionary_encode()) == rows
    assert check_texts(pa.table({"text": rows})) == rows
    pairs = [(text, text) for text in rows]
    assert check_texts(pa.table({"one": rows, "two": rows})) == pairs
    with pytest.raises(ValueError, match=r"^X\[1\] is None"):
        check_texts(pa.array(["a", None]))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), r"same name, \['t', 't'\]"),
        ([b"a", b"b"], r"X\[0\] is b'a' .*\. Decode them"),
        (
            [["a", "b", "c"], ["d", "e", "f"]],
            r"rows of 3 entries.*tokens join.*zip\(a, b\)",
        ),
    ],
    ids=["names", "bytes", "tokens"],
)
def test_texts_of_a_wrong_kind_are_refused_with_a_way_out(X, message):
    with pytest.raises(ValueError, match=message):
        check_texts(X)


def test_columns_without_a_name_are_no_columns_of_one_name():
    frame = pd.DataFrame([["a", "b"]], columns=[np.nan, np.nan])
    assert check_texts(frame) == [("a", "b")]


# Data ---------------------------------------------------------------------------------


@given(st.lists(texts, min_size=1), st.data())
def test_data_take_gives_the_rows_of_the_numbers(rows, data):
    n = len(rows)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1))), dtype=int)
    part = Data(rows, np.arange(n), np.arange(n) / n).take(chosen)
    assert list(part.samples) == [rows[i] for i in chosen]
    np.testing.assert_array_equal(part.y, chosen)
    np.testing.assert_array_equal(part.weights, chosen / n)
    assert Data(rows, np.arange(n), None).take(chosen).weights is None


# length_batches -----------------------------------------------------------------------


lengths_of_rows = st.lists(st.integers(0, 600), min_size=1, max_size=300)
costs_of_batches = st.integers(1, 4000), st.integers(0, 400)


@given(lengths_of_rows, *costs_of_batches)
def test_length_batches_are_a_partition_of_limited_size(lengths, n_tokens, n_extra):
    batches = [batch.tolist() for batch in length_batches(lengths, n_tokens, n_extra)]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or padded <= n_tokens


@given(lengths_of_rows, *costs_of_batches)
def test_length_batches_come_longest_first(lengths, n_tokens, n_extra):
    batches = length_batches(lengths, n_tokens, n_extra)
    found = [lengths[i] for batch in batches for i in batch]
    assert found == sorted(lengths, reverse=True)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(1, 100),
    st.integers(0, 60),
)
def test_length_batches_cost_least_of_all_partitions(lengths, n_tokens, n_extra):
    def cost(sizes):
        """Tokens with padding and extra ones; without end where a batch is too large."""
        total, rows = 0, sorted(lengths, reverse=True)
        for size in sizes:
            padded = size * rows[0]
            if size > 1 and padded > n_tokens:
                return np.inf
            total, rows = total + padded + n_extra, rows[size:]
        return total

    found = [len(batch) for batch in length_batches(lengths, n_tokens, n_extra)]
    inner = range(1, len(lengths))
    cuts = (c for n in range(len(lengths)) for c in combinations(inner, n))
    least = min(cost(np.diff([0, *cut, len(lengths)])) for cut in cuts)
    assert cost(found) == least


# shuffled_batches ---------------------------------------------------------------------


@given(lengths_of_rows, st.integers(1, 400), seeds)
def test_shuffled_batches_are_a_partition_of_nearly_equal_size(lengths, size, seed):
    n = len(lengths)
    batches = shuffled_batches(lengths, size, RandomState(seed))
    assert sorted(np.concatenate(batches)) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-n // size)


@given(seeds)
def test_shuffled_batches_of_many_rows_need_little_padding(seed):
    lengths = np.random.RandomState(seed).randint(5, 40, 1000)
    batches = shuffled_batches(lengths, 16, RandomState(seed))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    in_order = np.array_split(np.random.RandomState(seed).permutation(1000), 63)
    assert padded < 1.1 * lengths.sum()
    assert padded < 0.7 * sum(len(b) * lengths[b].max() for b in in_order)


def test_shuffled_batches_of_few_rows_are_drawn_whatever_the_lengths():
    lengths = list(range(8))  # a pool holds one batch only, so all pairs may come up
    pairs = {
        tuple(sorted(batch.tolist()))
        for seed in range(200)
        for batch in shuffled_batches(lengths, 2, RandomState(seed))
    }
    assert len(pairs) == 28


def test_shuffled_batches_come_in_any_order_of_length():
    lengths = np.arange(160)
    first = {shuffled_batches(lengths, 4, RandomState(i))[0].min() for i in range(40)}
    assert min(first) < 40 < 120 < max(first)


# balanced_batches ---------------------------------------------------------------------

class_lists = st.lists(st.integers(0, 6), min_size=1, max_size=150).map(np.array)


@given(class_lists, st.integers(0, 100), seeds)
def test_balanced_batches_that_hold_all_rows_hold_each_once(classes, spare, seed):
    batches = balanced_batches(classes, len(classes) + spare, RandomState(seed))
    assert [batch.tolist() for batch in batches] == [list(range(len(classes)))]


@given(class_lists, st.integers(2, 40), seeds)
def test_balanced_batches_hold_as_many_rows_of_one_class_as_of_another(
    classes, size, seed
):
    available = np.bincount(classes)
    for batch in balanced_batches(classes, min(size, len(classes)), RandomState(seed)):
        if len(batch) == len(classes):
            continue  # all rows in one batch, as they are
        counts = np.bincount(classes[batch], minlength=len(available))
        share = counts.max()
        for label in np.flatnonzero(counts):
            assert counts[label] == min(share, available[label])


@given(class_lists, st.integers(2, 40), seeds)
@example(np.array([0, 0, 0, 1, 1, 1, 2, 2, 2]), 6, 0)
def test_balanced_batches_hold_two_different_rows_of_a_class_where_they_exist(
    classes, size, seed
):
    available = np.bincount(classes)
    for batch in balanced_batches(classes, size, RandomState(seed)):
        assert len(set(batch.tolist())) == len(batch) <= size or len(classes) <= size
        counts = np.bincount(classes[batch], minlength=len(available))
        for label in np.flatnonzero(counts):
            assert counts[label] >= min(2, available[label])


@given(class_lists, st.integers(2, 40), seeds)
def test_balanced_batches_are_as_many_as_the_rows_need(classes, size, seed):
    batches = balanced_batches(classes, size, RandomState(seed))
    assert len(batches) == -(-len(classes) // size)


@given(st.integers(2, 7), st.integers(4, 20), st.integers(1, 5), seeds)
def test_balanced_batches_of_equal_classes_use_every_row_equally_often(
    n_classes, per_class, per_batch, seed
):
    classes = np.repeat(np.arange(n_classes), per_class)
    size = n_classes * max(2, min(per_batch, per_class - 1))
    rows = np.concatenate(balanced_batches(classes, size, RandomState(seed)))
    times = np.bincount(rows, minlength=len(classes))
    assert times.max() - times.min() <= 1


def test_balanced_batches_of_many_classes_go_through_all_of_them():
    classes = np.repeat(np.arange(30), 4)
    batches = balanced_batches(classes, 20, RandomState(0))
    for batch in batches:
        assert (np.unique(classes[batch], return_counts=True)[1] == 2).all()
        assert len(batch) == 20
    first_three = np.concatenate(batches[:3])
    assert set(classes[first_three]) == set(range(30))


def test_balanced_batches_of_rare_class_repeat_it_from_batch_to_batch():
    classes = np.array([0] * 60 + [1] * 2)
    batches = balanced_batches(classes, 8, RandomState(0))
    assert len(batches) == 8
    for batch in batches:
        assert {60, 61} <= set(batch.tolist())


@given(class_lists, st.integers(1, 40), seeds)
def test_batches_of_the_same_seed_are_the_same(classes, size, seed):
    for make in (
        lambda state: balanced_batches(classes, size, state),
        lambda state: shuffled_batches(classes, size, state),
    ):
        one, two = make(RandomState(seed)), make(RandomState(seed))
        assert [b.tolist() for b in one] == [b.tolist() for b in two]


def test_batches_of_another_seed_and_of_the_next_epoch_are_others():
    classes = np.tile([0, 1], 50)
    state = RandomState(0)
    for make in (
        lambda state: balanced_batches(classes, 10, state),
        lambda state: shuffled_batches([1] * 100, 10, state),
    ):
        orders = {
            tuple(np.concatenate(make(s))) for s in (state, state, RandomState(1))
        }
        assert len(orders) == 3


# split_rows ---------------------------------------------------------------------------


@given(st.integers(2, 200), st.floats(0.05, 0.5), seeds)
def test_split_rows_gives_two_parts_that_share_nothing(n, fraction, seed):
    kept, left = split_rows(n, fraction, None, RandomState(seed))
    assert sorted([*kept, *left]) == list(range(n))
    assert len(left) == int(np.ceil(fraction * n))


@given(st.integers(2, 20), st.integers(2, 20), seeds)
def test_split_rows_with_strata_keeps_their_shares(n_zero, n_one, seed):
    strata = np.array([0] * n_zero + [1] * n_one)
    _, left = split_rows(len(strata), 0.5, strata, RandomState(seed))
    assert abs(np.sum(strata[left] == 0) - n_zero / 2) <= 1


@given(seeds)
def test_split_rows_of_the_same_seed_are_the_same(seed):
    one, two = (split_rows(30, 0.2, None, RandomState(seed)) for _ in range(2))
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize(
    ("n", "fraction", "strata"),
    [
        (1, 0.1, None),
        (10, 0.1, np.arange(10) % 2),  # one row for two classes
        (10, 0.5, np.array([0] * 9 + [1])),  # a class of one row
    ],
)
def test_split_rows_of_too_few_rows_says_what_to_do(n, fraction, strata):
    with pytest.raises(ValueError, match=r"early_stopping=True .* X_val"):
        split_rows(n, fraction, strata, RandomState(0))
