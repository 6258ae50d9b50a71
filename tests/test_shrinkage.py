"""How far adapters are trusted, on evidence made by hand and in whole fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from skpeft import AdapterClassifier, AdapterRegressor, _fitting, _shrinkage
from skpeft._shrinkage import HeldOut, as_one, between, half_of, judge
from skpeft._training import Rows
from skpeft.adapters import LoRA
from skpeft.heads import divide_logits, logits

THINGS = ["film", "book", "play", "song", "car", "tea", "pot", "road"]
TEXTS = [f"{word} {thing}" for thing in THINGS for word in ("good", "bad")]
LABELS = np.array(["+", "-"] * len(THINGS))


def evidence(right, n_rows=40, scale=1.0):
    """Two classes; in each network a share of the rows has the right sign."""
    targets = np.arange(n_rows) % 2
    outputs = np.zeros((len(right), n_rows, 2))
    for k, share in enumerate(right):
        sure = np.where(np.arange(n_rows) < share * n_rows, scale, -scale)
        outputs[k, np.arange(n_rows), targets] = sure
    return HeldOut(outputs, targets, np.ones(n_rows))


def test_judge_trusts_adapters_that_predict_better():
    assert judge(evidence([0.6, 0.9]), "classification").strength > 0.95


def test_judge_draws_adapters_that_predict_worse_to_the_frozen_encoder():
    assert judge(evidence([0.9, 0.5]), "classification").strength < 0.05


def test_judge_without_difference_stays_near_the_trained_adapters():
    strength = judge(evidence([0.7, 0.7]), "classification").strength
    assert strength == pytest.approx(8 / 9)


def test_judge_is_less_decided_with_fewer_rows():
    few, many = (judge(evidence([0.8, 0.7], n), "classification") for n in (10, 90))
    assert many.strength < few.strength


@pytest.mark.parametrize(("scale", "bound"), [(8.0, 1.2), (0.05, 0.85)])
def test_judge_tempers_heads_that_are_too_sure_and_sharpens_shy_ones(scale, bound):
    found = judge(evidence([0.8, 0.8], 2000, scale), "classification").temperature
    assert (found > bound) if bound > 1 else (found < bound)


def test_judge_with_many_rows_finds_the_temperature_that_made_the_labels():
    rng = np.random.RandomState(0)
    scores = rng.normal(size=(20000, 3))
    shares = softmax(scores, axis=1).cumsum(axis=1)
    targets = (rng.uniform(size=(20000, 1)) > shares).sum(axis=1)
    outputs = np.stack([2.0 * scores] * 2)
    found = judge(HeldOut(outputs, targets, np.ones(20000)), "classification")
    assert found.temperature == pytest.approx(2.0, rel=0.05)


def test_judge_of_numbers_follows_the_squared_error():
    rng = np.random.RandomState(0)
    targets = rng.normal(size=100)
    noise = np.array([0.3, 1.0])[:, None] * rng.normal(size=(2, 100))
    weights = np.ones(100)
    frozen_wins = judge(HeldOut(targets + noise, targets, weights), "regression")
    trained_wins = judge(HeldOut(targets + noise[::-1], targets, weights), "regression")
    assert frozen_wins.strength < 0.01 < 0.99 < trained_wins.strength
    assert frozen_wins.temperature == 1.0


def test_judge_of_exact_numbers_is_finite():
    targets = np.arange(6.0)
    found = judge(HeldOut(np.stack([targets] * 2), targets, np.ones(6)), "regression")
    assert found.strength == pytest.approx(8 / 9)


@pytest.mark.parametrize("scale", [1e-50, 5.0, 1e50])
def test_judge_does_not_depend_on_the_scale_of_weights(scale):
    base = evidence([0.8, 0.7], 20)
    scaled = HeldOut(base.outputs, base.targets, np.full(20, scale))
    assert judge(scaled, "classification") == pytest.approx(
        judge(base, "classification")
    )


@pytest.mark.parametrize("row", [0, 15])
def test_judge_takes_one_heavy_row_for_one_row(row):
    base = evidence([0.8, 0.7], 20)
    heavy = HeldOut(
        base.outputs, base.targets, np.where(np.arange(20) == row, 1e6, 1.0)
    )
    assert 0.5 < judge(heavy, "classification").strength < 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 99)
)
def test_half_of_classes_holds_out_half_of_each_and_never_all(sizes, seed):
    targets = np.repeat(np.arange(len(sizes)), sizes)
    kept, left = half_of(
        targets, "classification", np.random.RandomState(seed), np.arange(len(targets))
    )
    np.testing.assert_array_equal(np.sort([*kept, *left]), np.arange(len(targets)))
    held = np.bincount(targets[left.astype(int)], minlength=len(sizes))
    np.testing.assert_array_equal(held, np.array(sizes) // 2)


@pytest.mark.parametrize("n_rows", [1, 2, 9])
def test_half_of_numbers_holds_out_half(n_rows):
    own = np.arange(n_rows)
    kept, left = half_of(own, "regression", np.random.RandomState(0), own)
    assert (len(kept), len(left)) == (n_rows - n_rows // 2, n_rows // 2)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=2, max_size=20
    ),
    task=st.sampled_from(["classification", "regression"]),
    seed=st.integers(0, 99),
)
def test_rows_of_the_same_content_go_together(rows, task, seed):
    contents, targets = np.array(rows).T
    _, first, number = np.unique(contents, return_index=True, return_inverse=True)
    kept, left = half_of(targets, task, np.random.RandomState(seed), first[number])
    np.testing.assert_array_equal(np.sort([*kept, *left]), np.arange(len(rows)))
    assert not set(contents[kept]) & set(contents[left])
    if task == "classification":  # of each class some are learned from
        assert set(targets[kept]) == set(targets)
    weights = np.arange(1.0, 1 + len(rows))
    own = Rows([], targets, weights)
    numbers, sums = as_one(left, own, first[number])
    found = list(zip(contents[numbers], targets[numbers], strict=True))
    expected = {}
    for i in left:
        expected[rows[i]] = expected.get(rows[i], 0.0) + weights[i]
    assert dict(zip(found, sums, strict=True)) == expected
    assert len(found) == len(expected)


def test_copies_of_rows_are_no_evidence_of_their_own():
    """Labels drawn at random are not told from their texts, however often a row comes."""
    labels = np.random.RandomState(0).permutation(LABELS)
    once = make(max_epochs=20, random_state=0).fit(TEXTS, labels)
    often = make(max_epochs=20, random_state=0).fit(TEXTS * 4, np.tile(labels, 4))
    for clf in (once, often):
        assert clf.shrinkage_ > 0.05
        assert clf.temperature_ > 1.0


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_between_is_on_the_line_and_exact_at_its_ends(strength):
    frozen, trained = {"a": np.array([1.0, 2.0])}, {"a": np.array([3.0, 0.1])}
    found = between(frozen, trained, strength)["a"]
    np.testing.assert_allclose(
        found, frozen["a"] + strength * (trained["a"] - frozen["a"])
    )
    if strength == 1.0:
        assert found.tobytes() == trained["a"].tobytes()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_temper_divides_the_logits(n_classes):
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(40, 5)), np.arange(40) % n_classes
    head = LogisticRegression().fit(X, y)
    before = logits(head, X)
    np.testing.assert_allclose(
        log_softmax(before, axis=1), head.predict_log_proba(X), atol=1e-9
    )
    divide_logits(head, 2.5)
    np.testing.assert_allclose(logits(head, X), before / 2.5)


# Whole fits ---------------------------------------------------------------------------


def make(**parameters):
    return AdapterClassifier(**{"encoder": "tiny", "random_state": 0, **parameters})


def test_shrinkage_one_gives_the_features_of_the_frozen_encoder():
    adapted = make(shrinkage=1.0).fit(TEXTS, LABELS)
    frozen = make(adapter=None).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(adapted.transform(TEXTS), frozen.transform(TEXTS))
    np.testing.assert_array_equal(adapted.head_.coef_, frozen.head_.coef_)
    assert adapted.shrinkage_ == 1.0


def test_shrinkage_zero_does_not_alter_the_training():
    plain, auto = (make(shrinkage=s).fit(TEXTS, LABELS) for s in (0.0, "auto"))
    assert plain.loss_curve_ == auto.loss_curve_
    assert (plain.shrinkage_, plain.temperature_) == (0.0, 1.0)
    assert 0 <= auto.shrinkage_ < 1
    assert auto.temperature_ != 1.0


def test_shrinkage_auto_is_less_sure_where_labels_are_noise():
    rng = np.random.RandomState(0)
    words = ["red", "blue", "green", "cold", "warm", "old", "new", "big"]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(240)]
    noise = make().fit(texts, rng.randint(2, size=240))
    told = make().fit(texts, [("red" in text) for text in texts])
    assert told.shrinkage_ < 0.05
    assert noise.temperature_ > 1.1 > told.temperature_
    # Nothing can be known of such labels, and the probabilities say so.
    new = [" ".join(rng.choice(words, 6)) for _ in range(200)]
    random_labels = rng.randint(2, size=200)
    untempered = make(shrinkage=0.0).fit(texts, rng.randint(2, size=240))
    assert log_loss(random_labels, noise.predict_proba(new)) < log_loss(
        random_labels, untempered.predict_proba(new)
    )


def test_shrinkage_of_a_regressor_draws_back_what_is_worse_than_frozen_features():
    rng = np.random.RandomState(0)
    words = ["red", "blue", "green", "cold", "warm", "old", "new", "big"]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(160)]
    frozen = AdapterRegressor(encoder="tiny", adapter=None)
    y = frozen.fit(texts, rng.normal(size=160)).transform(texts)[:, 0]
    reg = AdapterRegressor(
        encoder="tiny", random_state=0, max_epochs=2, learning_rate=0.05
    )
    assert reg.fit(texts, y).shrinkage_ > 0.9


def test_head_of_the_user_gets_the_adapters_as_trained():
    clf = make(head=LogisticRegression()).fit(TEXTS, LABELS)
    assert (clf.shrinkage_, clf.temperature_) == (0.0, 1.0)
    plain = make(shrinkage=0.0).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(clf.transform(TEXTS), plain.transform(TEXTS))


def test_validation_rows_are_the_evidence_where_there_are_some():
    class Counted:
        epochs = 0

        def __call__(self, record):
            Counted.epochs += 1

    wrong = np.where(LABELS == "+", "-", "+")
    right, misled = (
        make(early_stopping=False, callback=Counted()).fit(
            TEXTS, LABELS, X_val=TEXTS * 4, y_val=np.tile(y, 4)
        )
        for y in (LABELS, wrong)
    )
    assert Counted.epochs == 12  # no fit beyond the two
    assert misled.shrinkage_ > 0.5 > right.shrinkage_
    assert misled.temperature_ > right.temperature_


def test_interrupt_of_the_second_fit_keeps_the_first(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_shrinkage, "half_of", interrupted)
    with pytest.warns(UserWarning, match="they stay as trained"):
        clf = make().fit(TEXTS, LABELS)
    plain = make(shrinkage=0.0).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), plain.predict_proba(TEXTS))


@pytest.mark.parametrize(("shrinkage", "expected"), [(1.0, 1.0), ("auto", 0.0)])
def test_number_holds_after_an_interrupt_too(shrinkage, expected):
    def interrupt(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    clf = make(shrinkage=shrinkage, callback=interrupt)
    with pytest.warns(UserWarning, match="Training was interrupted after 2"):
        clf.fit(TEXTS, LABELS)
    assert clf.shrinkage_ == expected
    gap = np.abs(clf.transform(TEXTS) - clf.transform_frozen(TEXTS)).max()
    assert (gap > 1e-3) == (expected == 0.0)


def test_held_out_rows_without_weight_are_no_evidence():
    weights = {"+": 1, "-": 0}
    texts, labels = TEXTS[:1] + TEXTS[1:10:2], ["+"] + ["-"] * 5
    clf = make(class_weight=weights, objective="cross_entropy").fit(texts, labels)
    assert (clf.shrinkage_, clf.temperature_) == (0.0, 1.0)
    with pytest.raises(ValueError, match="All validation rows have weight 0"):
        make(class_weight=weights).fit(TEXTS, LABELS, X_val=["bad"], y_val=["-"])


def test_warm_start_does_not_add_up_the_shrinkage():
    once = make(shrinkage=0.5).fit(TEXTS, LABELS)
    clf = make(shrinkage=0.5, warm_start=True, random_state=0).fit(TEXTS, LABELS)
    clf.set_params(learning_rate=1e-12, random_state=1)
    for _ in range(3):
        clf.fit(TEXTS, LABELS)
    for name, tensor in once._network.state().items():
        np.testing.assert_allclose(clf._network.state()[name], tensor, atol=1e-5)


def test_callback_sees_the_epochs_of_the_main_training_alone():
    records = []
    clf = make(callback=records.append, max_epochs=3).fit(TEXTS, LABELS)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert clf.n_epochs_ == 3


@pytest.mark.parametrize("value", [-0.1, 1.5, "some", None])
def test_shrinkage_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="'shrinkage' parameter"):
        make(shrinkage=value).fit(TEXTS, LABELS)


def test_warm_start_from_saved_weights_is_judged_against_these_weights(
    tmp_path, monkeypatch
):
    make(shrinkage=0.0).fit(TEXTS, LABELS).save_pretrained(tmp_path / "saved")
    adapter = LoRA(roles=("query", "value"), weights=str(tmp_path / "saved"))
    at_start = make(adapter=adapter, shrinkage=1.0).fit(TEXTS, LABELS)
    seen, find_verdict = [], _fitting.find_verdict

    def watched(plan, *args):
        seen.append(plan.rows.frozen)
        return find_verdict(plan, *args)

    monkeypatch.setattr(_fitting, "find_verdict", watched)
    clf = make(adapter=adapter, warm_start=True)
    clf.fit(TEXTS, LABELS).fit(TEXTS, LABELS)
    assert len(seen) == 2
    for frozen in seen:
        np.testing.assert_allclose(frozen, at_start.transform(TEXTS), atol=1e-5)
    assert np.abs(clf.transform(TEXTS) - at_start.transform(TEXTS)).max() > 0.01
