"""The classifier on the tiny encoder: what fit promises, accepts, refuses and leaves."""

import copy
import enum
import gc
import logging
import os
import pickle
import random
import threading
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import compute_sample_weight

import skpeft
from skpeft import AdapterClassifier, _planning, _shrinkage
from skpeft._training import schedule, update
from skpeft.adapters import BitFit, Bottleneck, LoRA
from skpeft.encoders import ArrayEncoder, TinyTextEncoder
from skpeft.objectives import Contrastive, CrossEntropy, SquaredError

THINGS = ["film", "book", "play", "song", "car", "tea", "house", "tree"]
TEXTS = [f"{word} {thing}" for thing in THINGS for word in ("good", "bad")]
LABELS = np.array(["+", "-"] * len(THINGS))
PAIRS = [(text, text) for text in TEXTS]
NEW_TEXTS = ["good work", "bad work", "a good cup of tea", "bad", "good good", ""]
NEW_LABELS = np.array(["+", "-", "+", "-", "+", "-"])
ADAPTERS = ["lora", "bottleneck", "full", Bottleneck(4, placement="parallel"), None]


def make(**parameters):
    return AdapterClassifier(
        **{"encoder": "tiny", "random_state": 0, "max_epochs": 4, **parameters}
    )


def fitted(**parameters):
    return make(**parameters).fit(TEXTS, LABELS)


def bits(module):
    return [
        tensor.detach().numpy().tobytes() for tensor in module.state_dict().values()
    ]


def nearest_mean_accuracy(clf, X_val, y_val):
    """Accuracy, on validation rows, of the nearest mean of the training rows' classes."""
    unit = clf.transform(TEXTS)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    means = np.stack([unit[label == LABELS].mean(axis=0) for label in clf.classes_])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.mean(
        clf.classes_[(clf.transform(X_val) @ means.T).argmax(axis=1)] == y_val
    )


def same_model(one, two):
    np.testing.assert_array_equal(one.transform(NEW_TEXTS), two.transform(NEW_TEXTS))
    np.testing.assert_array_equal(
        one.predict_proba(NEW_TEXTS), two.predict_proba(NEW_TEXTS)
    )
    return True


# What is learned ----------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_fit_on_texts_that_a_word_tells_apart_learns_them(adapter, objective):
    clf = make(adapter=adapter, objective=objective, max_epochs=None)
    assert clf.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_fit_leaves_every_bit_of_the_frozen_encoder(adapter):
    backbone = TinyTextEncoder().load(
        n_features=1, device=torch.device("cpu"), dtype=torch.float32
    )
    before = bits(backbone.module)
    clf = fitted(adapter=adapter)
    clf.predict(TEXTS)
    assert clf._network.live.backbone is backbone
    assert bits(backbone.module) == before


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_fit_with_adapter_changes_features_and_without_leaves_them(adapter):
    frozen = fitted(adapter=None).transform(TEXTS)
    changed = not np.array_equal(fitted(adapter=adapter).transform(TEXTS), frozen)
    assert changed == (adapter is not None)


def test_fit_without_adapter_equals_the_head_on_transformed_texts():
    head = LogisticRegression(C=3.0)
    clf = fitted(adapter=None, head=head)
    alone = LogisticRegression(C=3.0).fit(clf.transform(TEXTS), LABELS)
    expected = alone.predict_proba(clf.transform(NEW_TEXTS))
    np.testing.assert_array_equal(clf.predict_proba(NEW_TEXTS), expected)
    assert (clf.n_epochs_, clf.loss_curve_, clf.n_trainable_params_) == (0, [], 0)


def test_fit_with_contrastive_objective_lowers_the_loss():
    losses = fitted(max_epochs=20).loss_curve_
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_transform_gives_named_columns_and_frames_on_request():
    pytest.importorskip("pandas")
    clf = fitted()
    features = clf.transform(NEW_TEXTS)
    names = clf.get_feature_names_out()
    assert features.shape == (len(NEW_TEXTS), len(names))
    assert names[0] == "adapterclassifier0"
    frame = clf.set_output(transform="pandas").transform(NEW_TEXTS)
    assert list(frame.columns) == list(names)


def test_pairs_are_read_in_their_order():
    pairs = [("good", "bad"), ("bad", "good")] * 6
    clf = make(max_epochs=20).fit(pairs, ["first", "second"] * 6)
    assert clf.predict(pairs[:2]).tolist() == ["first", "second"]


# Counts and capacity ------------------------------------------------------------------


def test_n_params_follow_the_formula_and_add_up():
    blocks, width = 2, 32
    plain = fitted(adapter=None)
    lora = fitted(adapter=LoRA(rank=3), layers=None)
    full = fitted(adapter="full")
    assert lora.n_trainable_params_ == blocks * LoRA(3).count(
        {"query": (width, width), "value": (width, width)}
    )
    assert lora.n_frozen_params_ == plain.n_frozen_params_ == full.n_trainable_params_
    assert full.n_frozen_params_ == 0


def test_rank_overrides_the_capacity_of_the_adapter():
    def count(**parameters):
        return fitted(max_epochs=1, **parameters).n_trainable_params_

    assert count(adapter="lora", rank=2) == count(adapter=LoRA(rank=2))
    assert count(adapter=Bottleneck(16), rank=3) == count(adapter=Bottleneck(3))


def test_rank_leaves_the_given_spec_as_it_is():
    spec = LoRA(rank=8)
    fitted(adapter=spec, rank=2)
    assert spec.rank == 8


@pytest.mark.parametrize("adapter", [None, "full"])
def test_rank_for_adapter_without_capacity_is_refused(adapter):
    with pytest.raises(ValueError, match=r"rank=4 was given.*list of grids"):
        fitted(adapter=adapter, rank=4)


@pytest.mark.parametrize("layers", [1, [1], [-1], (1, 1)])
def test_layers_name_the_blocks_that_get_adapters(layers):
    every, chosen = fitted(layers=None), fitted(layers=layers)
    assert 2 * chosen.n_trainable_params_ == every.n_trainable_params_
    assert all("blocks.1." in name for name in chosen._network.live.trainable())


@pytest.mark.parametrize("layers", [3, [2], [-3], [0, 5], [], [0.5]], ids=str)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_layers_out_of_range_are_refused_with_the_number_there_is(layers, adapter):
    with pytest.raises(ValueError, match="the encoder has 2 blocks"):
        fitted(layers=layers, adapter=adapter)


@pytest.mark.parametrize(
    ("parameters", "nearest"),
    [
        ({"adapter": "lorra"}, "'lora'"),
        ({"adapter": "bottelneck"}, "'bottleneck'"),
        ({"objective": "crossentropy"}, "'cross_entropy'"),
        ({"adapter": LoRA(roles=("qery",))}, "'query'"),
    ],
    ids=str,
)
def test_unknown_name_is_refused_with_the_nearest_one(parameters, nearest):
    with pytest.raises(ValueError, match=f"Did you mean {nearest}"):
        fitted(**parameters)


@pytest.mark.parametrize("objective", ["huber", SquaredError()], ids=str)
def test_objective_for_regression_is_refused(objective):
    with pytest.raises(ValueError, match=r"classification.*'contrastive'"):
        fitted(objective=objective)


class FailingHead(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        raise ValueError("a reason of its own")

    def predict(self, X):
        raise NotImplementedError  # nothing is ever fitted


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"adapter": LoRA(rank=0)}, "rank"),
        ({"adapter": Bottleneck(dropout=1.0)}, "dropout"),
        ({"encoder": TinyTextEncoder(hidden_size=30)}, "hidden_size"),
        ({"objective": Contrastive(temperature=0)}, "temperature"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"device": "abacus"}, "device"),
        ({"class_weight": {"+": 1.0, "?": 2.0}}, "class_weight|\\?"),
        ({"class_weight": "even"}, "class_weight"),
        ({"class_weight": {"+": -1.0}}, "must be finite, at least 0, and not all 0"),
        ({"class_weight": {"+": 0, "-": 0}}, "finite, at least 0, and not all 0"),
        (
            {"head": Ridge()},
            "head of a classification estimator must do classification",
        ),
        ({"head": FailingHead()}, "a reason of its own"),
    ],
    ids=str,
)
def test_parameter_out_of_range_is_refused_by_name(parameters, name):
    clf = make(**parameters)
    with pytest.raises(ValueError, match=name):
        clf.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


def test_learning_rate_that_makes_the_loss_infinite_is_named():
    clf = make(objective="cross_entropy", learning_rate=1e30)
    with pytest.raises(
        ValueError, match=r"learning_rate=1e\+30 or weight_decay=.*too high"
    ):
        clf.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_precision_decides_the_type_of_features(precision):
    clf = fitted(precision=precision)
    expected = np.float64 if precision == "float64" else np.float32
    assert clf.transform(TEXTS).dtype == expected
    assert clf.score(TEXTS, LABELS) > 0.5


# Weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_sample_weight_zero_equals_removal_of_the_row(objective, batch_size):
    weights = np.arange(len(TEXTS)) % 4 + 0.0
    kept = np.flatnonzero(weights)
    parameters = {"objective": objective, "batch_size": batch_size}
    zeroed = make(**parameters).fit(TEXTS, LABELS, sample_weight=weights)
    removed = make(**parameters).fit(
        [TEXTS[i] for i in kept], LABELS[kept], sample_weight=weights[kept]
    )
    assert same_model(zeroed, removed)


def test_sample_weight_zero_of_a_whole_class_removes_the_class():
    labels = np.array(["+", "-", "?", "-"] * 4)
    clf = make().fit(TEXTS, labels, sample_weight=labels != "?")
    assert clf.classes_.tolist() == ["+", "-"]


def test_sample_weight_of_ones_equals_none():
    weighted = make().fit(TEXTS, LABELS, sample_weight=np.ones(len(TEXTS)))
    np.testing.assert_array_equal(
        weighted.transform(NEW_TEXTS), fitted().transform(NEW_TEXTS)
    )
    np.testing.assert_allclose(
        weighted.predict_proba(NEW_TEXTS), fitted().predict_proba(NEW_TEXTS), atol=1e-4
    )


@pytest.mark.parametrize("adapter", ["lora", None])
def test_sample_weight_draws_probability_to_the_heavier_class(adapter):
    heavy = make(adapter=adapter).fit(TEXTS, LABELS, np.where(LABELS == "+", 20.0, 1.0))
    gain = heavy.predict_proba(TEXTS) - fitted(adapter=adapter).predict_proba(TEXTS)
    assert gain[:, 0].mean() > 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(len(TEXTS)), "All entries of sample_weight are 0|non-zero"),
        (-np.ones(len(TEXTS)), "[Nn]egative"),
        (np.full(len(TEXTS), np.nan), "NaN"),
        (np.ones(3), "sample_weight"),
    ],
)
def test_sample_weight_that_cannot_be_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        make().fit(TEXTS, LABELS, sample_weight=weights)


class OneColumn(CrossEntropy):
    def value(self, outputs, targets):
        return super().value(outputs, targets)[:, None]


def test_objective_that_gives_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"OneColumn\(\) has shape \(16, 1\).*\(16,\)"):
        make(objective=OneColumn(), batch_size=16).fit(TEXTS, LABELS)


def light_and_heavy():
    """Short texts, and long ones that are all in batches of their own and hardly count."""
    short = [f"{word} film" for word in ("good", "bad") for _ in range(64)]
    long = [f"{word} film" + " and tea" * 15 for word in ("good", "bad") * 64]
    weights = np.r_[np.ones(len(short)), np.full(len(long), 1e-9)]
    return short + long, np.array([text[0] == "g" for text in short + long]), weights


@pytest.mark.parametrize("batch_size", [1, 16])
def test_labels_of_rows_that_hardly_count_change_hardly_anything(batch_size):
    X, y, weights = light_and_heavy()
    others = np.where(weights < 1, ~y, y)
    one, two = (
        make(
            objective="cross_entropy", batch_size=batch_size, max_epochs=1, shrinkage=0
        ).fit(X, labels, sample_weight=weights)
        for labels in (y, others)
    )
    gap = one.predict_proba(NEW_TEXTS) - two.predict_proba(NEW_TEXTS)
    assert np.abs(gap).max() <= 1e-4
    assert np.mean(one.predict(X[:128]) == y[:128]) == 1


def test_loss_of_an_epoch_is_the_weighted_mean_over_its_rows():
    X, y, _ = light_and_heavy()
    weights = np.random.RandomState(0).uniform(0.01, 5, len(X))
    own = {"objective": "cross_entropy", "learning_rate": 1e-12, "shrinkage": 0}
    whole, parts = (
        make(batch_size=size, max_epochs=1, **own).fit(X, y, weights)
        for size in (len(X), 4)
    )
    assert parts.loss_curve_[0] == pytest.approx(whole.loss_curve_[0], rel=1e-4)


def test_one_row_of_nearly_all_weight_does_not_break_training():
    weights = np.ones(len(TEXTS))
    weights[0] = 1e12
    clf = make(objective="cross_entropy", batch_size=4).fit(TEXTS, LABELS, weights)
    assert np.isfinite(clf.loss_curve_).all()
    assert clf.predict(TEXTS[:1]) == LABELS[:1]


def test_class_weight_equals_the_same_sample_weight():
    weights = np.where(LABELS == "+", 3.0, 0.5)
    by_class = make(class_weight={"+": 3.0, "-": 0.5}).fit(TEXTS, LABELS)
    assert same_model(by_class, make().fit(TEXTS, LABELS, sample_weight=weights))


def test_class_weight_balanced_evens_out_the_classes():
    labels = np.array(["+", "-", "-", "-"] * 4)
    weights = compute_sample_weight("balanced", labels)
    balanced = make(class_weight="balanced").fit(TEXTS, labels)
    assert same_model(balanced, make().fit(TEXTS, labels, sample_weight=weights))


def test_class_weight_and_sample_weight_are_multiplied():
    weights = np.linspace(0.5, 2, len(TEXTS))
    both = make(class_weight={"+": 2.0, "-": 1.0}).fit(TEXTS, LABELS, weights)
    product = weights * np.where(LABELS == "+", 2.0, 1.0)
    assert same_model(both, make().fit(TEXTS, LABELS, sample_weight=product))


def test_weights_for_head_that_takes_none_are_refused():
    clf = make(head=KNeighborsClassifier(), class_weight="balanced")
    with pytest.raises(ValueError, match=r"KNeighborsClassifier\(\) takes no"):
        clf.fit(TEXTS, LABELS)


# Stopping early -----------------------------------------------------------------------


def test_early_stopping_with_x_val_stops_without_gain_after_patience():
    clf = make(max_epochs=30, n_iter_no_change=3, tol=1e6)
    clf.fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    assert clf.n_epochs_ == 1 + 3
    assert len(clf.loss_curve_) == len(clf.validation_scores_) == 4


@pytest.mark.parametrize("early_stopping", [True, "auto"])
def test_early_stopping_with_x_val_keeps_the_best_state(early_stopping):
    clf = make(
        shrinkage=0.0,
        max_epochs=12,
        learning_rate=0.3,
        n_iter_no_change=12,
        early_stopping=early_stopping,
    )
    clf.fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    scores = clf.validation_scores_
    assert len(set(scores)) > 1, "the case must be one where epochs differ"
    assert nearest_mean_accuracy(clf, NEW_TEXTS, NEW_LABELS) == max(scores)


def test_early_stopping_off_with_x_val_scores_every_epoch_and_keeps_the_last():
    clf = make(
        shrinkage=0.0,
        early_stopping=False,
        n_iter_no_change=1,
        tol=1e6,
        learning_rate=0.3,
    )
    clf.fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    assert clf.n_epochs_ == len(clf.validation_scores_) == 4
    assert same_model(clf, fitted(shrinkage=0.0, learning_rate=0.3))


def test_early_stopping_auto_without_x_val_looks_at_nothing():
    clf = fitted(n_iter_no_change=1, tol=1e6)
    assert clf.n_epochs_ == 4
    assert clf.validation_scores_ == []


def test_early_stopping_true_splits_rows_off_but_fits_the_head_on_all():
    clf = fitted(
        early_stopping=True,
        validation_fraction=0.25,
        n_iter_no_change=1,
        tol=1e6,
        head=KNeighborsClassifier(),
    )
    assert clf.n_epochs_ == len(clf.validation_scores_) == 2
    assert {score * 4 % 1 for score in clf.validation_scores_} == {0.0}  # four rows
    assert clf.head_.n_samples_fit_ == len(TEXTS)


def test_early_stopping_true_with_a_class_of_one_row_says_what_to_do():
    labels = np.array(["?", *LABELS[1:]])
    with pytest.raises(ValueError, match=r"early_stopping=True .* X_val"):
        make(early_stopping=True).fit(TEXTS, labels)


def test_sample_weight_val_zero_equals_removal_of_the_row():
    parameters = {"max_epochs": 6, "learning_rate": 0.3}
    zeroed = make(**parameters).fit(
        TEXTS,
        LABELS,
        X_val=[*NEW_TEXTS, "good"],
        y_val=[*NEW_LABELS, "-"],
        sample_weight_val=[1] * 6 + [0],
    )
    removed = make(**parameters).fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    assert zeroed.validation_scores_ == removed.validation_scores_
    assert same_model(zeroed, removed)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"X_val": NEW_TEXTS}, "without y_val"),
        ({"y_val": NEW_LABELS}, "without X_val"),
        ({"sample_weight_val": np.ones(6)}, "without X_val"),
        ({"X_val": NEW_TEXTS, "y_val": ["?"] * 6}, r"labels that y does not: \['\?'\]"),
        ({"X_val": NEW_TEXTS, "y_val": [0, 1] * 3}, "labels that y does not"),
        ({"X_val": NEW_TEXTS, "y_val": NEW_LABELS[:2]}, "inconsistent"),
        ({"X_val": [("a", "b")] * 6, "y_val": NEW_LABELS}, "2 features"),
        ({"X_val": list(range(6)), "y_val": NEW_LABELS}, r"X\[0\] is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_validation_rows_that_do_not_fit_are_refused(validation, message):
    clf = make()
    with pytest.raises(ValueError, match=message):
        clf.fit(TEXTS, LABELS, **validation)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


# Callbacks and interrupts -------------------------------------------------------------


def test_callback_gets_a_record_after_each_epoch():
    records = []
    clf = make(callback=records.append, early_stopping=False)
    clf.fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["loss"] for record in records] == clf.loss_curve_
    assert [record["validation_score"] for record in records] == clf.validation_scores_


def test_callback_without_validation_rows_gets_no_score():
    records = []
    fitted(callback=records.append)
    assert {tuple(record) for record in records} == {("epoch", "loss")}


def test_callback_that_returns_true_stops_training():
    clf = fitted(callback=lambda record: record["epoch"] == 2)
    assert clf.n_epochs_ == 2
    assert clf.score(TEXTS, LABELS) > 0.5


def interrupt_after(n_epochs):
    def callback(record):
        if record["epoch"] == n_epochs:
            raise KeyboardInterrupt

    return callback


def test_interrupt_in_callback_keeps_what_there_is_and_warns():
    clf = make(shrinkage=0.0, callback=interrupt_after(2))
    with pytest.warns(UserWarning, match="interrupted after 2 of 4 epochs"):
        clf.fit(TEXTS, LABELS)
    assert clf.n_epochs_ == len(clf.loss_curve_) == 2
    assert same_model(
        clf, fitted(shrinkage=0.0, callback=lambda record: record["epoch"] == 2)
    )


def test_interrupt_before_the_end_of_an_epoch_ends_the_fit(monkeypatch):
    clf = fitted()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("skpeft._training.update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(TEXTS, LABELS)
    assert not hasattr(clf, "classes_")


def test_interrupt_in_the_first_epoch_of_a_warm_start_keeps_what_there_was(monkeypatch):
    clf = fitted(warm_start=True, shrinkage=0.0)
    expected, n_epochs = clf.transform(TEXTS), clf.n_epochs_

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("skpeft._training.update", interrupted)
    with pytest.warns(UserWarning, match="interrupted after 0 of"):
        clf.fit(TEXTS, LABELS)
    assert clf.n_epochs_ == n_epochs
    np.testing.assert_array_equal(clf.transform(TEXTS), expected)


def test_interrupt_in_callback_with_x_val_keeps_the_best_state():
    clf = make(
        shrinkage=0.0,
        max_epochs=12,
        learning_rate=0.3,
        n_iter_no_change=12,
        callback=interrupt_after(8),
    )
    with pytest.warns(UserWarning, match="the best state so far is kept"):
        clf.fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=NEW_LABELS)
    scores = clf.validation_scores_
    assert len(scores) == 8
    assert len(set(scores)) > 1, "the case must be one where epochs differ"
    assert nearest_mean_accuracy(clf, NEW_TEXTS, NEW_LABELS) == max(scores)


class InterruptedHead(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        raise KeyboardInterrupt

    def predict(self, X):
        raise AssertionError("never fitted")


def test_interrupt_in_the_fit_of_the_head_leaves_nothing_fitted():
    clf = fitted()
    clf.set_params(head=InterruptedHead())
    with pytest.raises(KeyboardInterrupt):
        clf.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)
    assert not [name for name in ("classes_", "head_") if hasattr(clf, name)]


def test_error_in_callback_comes_through_and_leaves_nothing_fitted():
    def callback(record):
        raise RuntimeError("disk is full")

    clf = fitted()
    clf.set_params(callback=callback)
    with pytest.raises(RuntimeError, match="disk is full"):
        clf.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


# Warm start ---------------------------------------------------------------------------


def test_warm_start_goes_on_from_the_last_fit():
    clf = fitted(warm_start=True, learning_rate=0.01, max_epochs=10, shrinkage=0.0)
    before, losses = clf.transform(TEXTS), list(clf.loss_curve_)
    clf.set_params(learning_rate=1e-12, max_epochs=2).fit(TEXTS, LABELS)
    np.testing.assert_allclose(clf.transform(TEXTS), before, atol=1e-5)
    assert clf.loss_curve_[:10] == losses
    assert clf.n_epochs_ == len(clf.loss_curve_) == 12
    np.testing.assert_allclose(clf.loss_curve_[10], clf.loss_curve_[11], rtol=1e-4)


def test_warm_start_of_an_adapter_without_dropout_goes_on():
    clf = fitted(adapter="bitfit", warm_start=True, shrinkage=0.0, learning_rate=0.01)
    before = clf.transform(TEXTS)
    clf.set_params(learning_rate=1e-12).fit(TEXTS, LABELS)
    np.testing.assert_allclose(clf.transform(TEXTS), before, atol=1e-5)
    assert clf.n_epochs_ == 8


def test_warm_start_with_another_dropout_in_a_list_goes_on():
    clf = fitted(adapter=[LoRA(), BitFit()], warm_start=True)
    clf.set_params(adapter=[LoRA(dropout=0.5), BitFit()]).fit(TEXTS, LABELS)
    assert clf.n_epochs_ == 8


def test_warm_start_off_starts_anew():
    clf = fitted()
    assert same_model(clf.fit(TEXTS, LABELS), fitted())
    assert clf.n_epochs_ == 4


def test_warm_start_of_unfitted_estimator_starts_anew():
    assert same_model(fitted(warm_start=True), fitted())


@pytest.mark.parametrize(
    "changed",
    [
        {"adapter": "bottleneck"},
        {"adapter": None},
        {"rank": 2},
        {"adapter": LoRA(alpha=3.0)},
        {"layers": 1},
        {"encoder": TinyTextEncoder(seed=1)},
    ],
    ids=str,
)
def test_warm_start_after_a_change_of_the_network_is_refused(changed):
    clf = fitted(warm_start=True)
    before = clf.predict_proba(TEXTS)
    with pytest.raises(ValueError, match="Set warm_start=False to start anew"):
        clf.set_params(**changed).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


# What is left as it was ---------------------------------------------------------------


def surroundings():
    """Global state of the process that a fit might change."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(np.random.get_state()),
        "random generator": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
        "loggers": [(id(o), getattr(o, "level", None)) for o in loggers],
        "handlers": [(id(o), len(getattr(o, "handlers", []))) for o in loggers],
        "numpy errors": np.geterr(),
        "warning filters": list(warnings.filters),
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"objective": "cross_entropy", "early_stopping": True, "batch_size": 4},
        {"adapter": LoRA(dropout=0.5)},
        {"adapter": "full", "random_state": None},
        {"adapter": None},
        {"verbose": 1},
    ],
    ids=str,
)
def test_fit_and_predict_leave_the_process_as_it_was(parameters):
    fitted()  # first use imports torch and loads the encoder
    before = surroundings()
    clf = fitted(**parameters)
    clf.predict_proba(TEXTS)
    clf.transform(TEXTS)
    after = surroundings()
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("encoder", ["tiny", "array"])
def test_loading_an_encoder_leaves_the_global_generators(encoder):
    X = TEXTS if encoder == "tiny" else np.random.RandomState(0).randn(len(TEXTS), 3)
    skpeft.clear_cache()
    gc.collect()
    before = torch.get_rng_state()
    make(encoder=encoder).fit(X, LABELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generators_do_not_decide_the_result():
    models = []
    for seed in (0, 1):
        state, numpy_state = torch.get_rng_state(), np.random.get_state()
        torch.manual_seed(seed)
        np.random.seed(seed)
        models.append(fitted(adapter=LoRA(dropout=0.3), batch_size=4))
        torch.set_rng_state(state)
        np.random.set_state(numpy_state)
    assert same_model(*models)


def test_random_state_decides_the_result():
    parameters = {"adapter": LoRA(dropout=0.3), "batch_size": 4}
    one, other = (fitted(random_state=seed, **parameters) for seed in (1, 2))
    assert same_model(one, fitted(random_state=1, **parameters))
    same_start = np.random.RandomState(1)
    assert same_model(one, fitted(random_state=same_start, **parameters))
    assert not np.array_equal(one.transform(TEXTS), other.transform(TEXTS))


def test_fit_inside_no_grad_trains_all_the_same():
    with torch.no_grad():
        clf = fitted()
    assert same_model(clf, fitted())


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_fit_and_predict_at_verbose_0_print_nothing(objective, capfd):
    fitted(objective=objective, early_stopping=True).predict(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_fit_at_verbose_1_shows_a_bar_on_stderr(capfd):
    fitted(verbose=1).predict(TEXTS)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "adapters" in printed.err
    assert "4/4" in printed.err
    assert "loss=" in printed.err


def test_fit_at_verbose_1_ends_with_a_line_of_summary(capfd):
    clf = make(verbose=1).fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    line = capfd.readouterr().err.splitlines()[-1]
    trained, frozen = clf.n_trainable_params_, clf.n_frozen_params_
    best = 1 + clf.validation_scores_.index(max(clf.validation_scores_))
    share = trained / (trained + frozen)
    assert line.startswith(
        f"AdapterClassifier: {trained:,} of {trained + frozen:,} parameters trained "
        f"({share:.2%}); {clf.n_epochs_} epochs, the best {best}; "
        f"shrinkage {clf.shrinkage_:.2f}; "
    )
    assert line.endswith(" s on cpu in float32")


def test_summary_names_no_best_epoch_where_some_have_no_score(capfd):
    clf = make(verbose=1, warm_start=True, max_epochs=2).fit(TEXTS, LABELS)
    clf.fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    line = capfd.readouterr().err.splitlines()[-1]
    assert f"; {clf.n_epochs_} epochs; " in line


# Rows and labels ----------------------------------------------------------------------


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"y holds one class only, \['a'\]"):
        make().fit(TEXTS, ["a"] * len(TEXTS))


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
def test_missing_label_is_named_by_its_row(missing):
    labels = [*LABELS[:2], missing, *LABELS[3:]]
    with pytest.raises(ValueError, match=r"y\[2\] is .*: every row needs a label"):
        make().fit(TEXTS, labels)


@pytest.mark.parametrize("name", ["nan", "NA", "NaT"])
def test_missing_label_of_pandas_is_named_by_its_row(name):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    missing = float("nan") if name == "nan" else getattr(pd, name)
    y = pd.Series(["a", "b", missing, "a", "b", *"ab"], dtype=object)
    with pytest.raises(ValueError, match=r"y\[2\] is .*: every row needs a label"):
        make().fit(["x"] * 7, y)


def test_class_that_early_stopping_cannot_hold_out_is_no_matter_of_the_fraction():
    labels = ["rare", *"ab" * ((len(TEXTS) - 1) // 2), "a"][: len(TEXTS)]
    clf = make(early_stopping=True, validation_fraction=0.5)
    with pytest.raises(ValueError, match="other classes than those of one row"):
        clf.fit(TEXTS, labels)


def test_pairs_for_a_model_of_single_texts_are_named():
    clf = make().fit(TEXTS, LABELS)
    with pytest.raises(
        ValueError, match="X holds pairs of texts, and fit was given single"
    ):
        clf.predict([("a", "b")])


@pytest.mark.parametrize("size", [1e300, 1e-200])
def test_weights_whose_products_are_no_numbers_are_refused(size):
    clf = make(class_weight={"+": size, "-": 1.0 if size > 1 else size})
    with pytest.raises(ValueError, match="beyond the numbers of float64"):
        clf.fit(TEXTS, LABELS, np.full(len(TEXTS), size))


def test_unknown_class_weight_is_named():
    with pytest.raises(
        ValueError, match="'class_weight' parameter of AdapterClassifier"
    ):
        make(class_weight="blanced").fit(TEXTS, LABELS)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        make().fit(["good"], ["+"])


@pytest.mark.parametrize("adapter", ["lora", None])
@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_two_rows_of_two_classes_are_enough(adapter, objective):
    clf = make(adapter=adapter, objective=objective)
    clf.fit(["good", "bad"], ["+", "-"])
    assert clf.predict(["good", "bad"]).tolist() == ["+", "-"]


@pytest.mark.parametrize("batch_size", [None, 4, 5])
@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_class_of_one_row_is_learned(objective, batch_size):
    texts, labels = [*TEXTS, "neither here nor there"], [*LABELS, "?"]
    clf = make(objective=objective, batch_size=batch_size).fit(texts, labels)
    assert clf.classes_.tolist() == ["+", "-", "?"]
    assert clf.predict_proba(texts).shape == (len(texts), 3)
    assert np.isfinite(clf.loss_curve_).all()


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_150_classes_are_learned(objective):
    labels = np.repeat(np.arange(150), 2) * 7 - 20
    texts = [
        f"topic{label} {word}" for label, word in zip(labels, "ab" * 150, strict=False)
    ]
    clf = make(objective=objective, max_epochs=2).fit(texts, labels)
    assert clf.classes_.tolist() == sorted(set(labels.tolist()))
    assert clf.predict_proba(texts).shape == (300, 150)
    assert clf.score(texts, labels) > 0.5


def test_labels_of_mixed_types_are_refused():
    mixed = np.array(["a", 1] * (len(TEXTS) // 2), dtype=object)
    with pytest.raises(ValueError, match=r"types? \['int', 'str'\]"):
        make().fit(TEXTS, mixed)


def test_labels_of_mixed_types_in_a_list_are_refused():
    with pytest.raises(ValueError, match=r"types? \['int', 'str'\]"):
        make().fit(TEXTS, ["a", 1] * (len(TEXTS) // 2))


@pytest.mark.parametrize("missing", [None, np.nan], ids=str)
def test_labels_with_a_missing_one_are_refused_as_missing(missing):
    y = np.array([missing, *LABELS[1:]], dtype=object)
    with pytest.raises(ValueError, match=r"^y\[0\] is (None|nan): every row needs"):
        make().fit(TEXTS, y)


def test_labels_of_pandas_with_a_missing_one_are_refused_as_missing():
    pd = pytest.importorskip("pandas")
    y = pd.Series([pd.NA, *LABELS[1:]], dtype=object)
    with pytest.raises(ValueError, match=r"NaN|NA|missing"):
        make().fit(TEXTS, y)


def test_validation_labels_with_a_missing_one_are_refused_as_missing():
    with pytest.raises(ValueError, match=r"NaN|None|missing"):
        make().fit(TEXTS, LABELS, X_val=NEW_TEXTS, y_val=[None, *NEW_LABELS[1:]])


def test_labels_that_are_continuous_are_refused():
    with pytest.raises(ValueError, match="continuous"):
        make().fit(TEXTS, np.linspace(0.1, 1, len(TEXTS)))


def test_column_of_labels_is_flattened_with_a_warning():
    with pytest.warns(UserWarning, match="column-vector"):
        clf = make().fit(TEXTS, LABELS[:, None])
    assert same_model(clf, fitted())


def test_numbers_for_a_text_encoder_are_refused():
    with pytest.raises(ValueError, match=r"holds numbers.*ArrayEncoder"):
        make().fit(np.ones((len(TEXTS), 3)), LABELS)


@pytest.mark.parametrize(
    "X",
    [TEXTS, np.array(TEXTS), np.array(TEXTS, dtype=object), np.array(TEXTS)[:, None]],
    ids=["list", "str", "object", "column"],
)
@pytest.mark.parametrize("encoder", ["array", ArrayEncoder()], ids=str)
def test_texts_for_an_encoder_of_numbers_are_refused(encoder, X):
    with pytest.raises(ValueError, match=r"(?i)2D array|strings?|text"):
        make(encoder=encoder).fit(X, LABELS)


def test_text_longer_than_the_encoder_reads_is_cut():
    clf = fitted(encoder=TinyTextEncoder(max_length=4))
    long = ["good film of a long summer", "good film of a short winter"]
    one, two = clf.transform(long)
    np.testing.assert_array_equal(one, two)


# An earlier fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y", "parameters"),
    [
        (list(range(16)), LABELS, {}),
        (TEXTS[:3], LABELS, {}),
        (TEXTS, None, {}),
        (TEXTS, ["a"] * 16, {}),
        (TEXTS, LABELS, {"adapter": "lorra"}),
        (TEXTS, LABELS, {"layers": 5}),
        (TEXTS, LABELS, {"max_epochs": -1}),
        (TEXTS, LABELS, {"device": "abacus"}),
        (PAIRS, LABELS[:3], {}),
        (PAIRS, ["a"] * 16, {}),
        (PAIRS, LABELS, {"layers": 5}),
    ],
    ids=[
        "numbers",
        "lengths",
        "no y",
        "one class",
        "adapter",
        "layers",
        "epochs",
        "device",
        "pairs and lengths",
        "pairs and one class",
        "pairs and layers",
    ],
)
def test_fit_that_is_refused_leaves_the_earlier_one(X, y, parameters):
    clf = fitted()
    before = clf.predict_proba(TEXTS)
    with pytest.raises(ValueError, match=r"\w"):
        clf.set_params(**parameters).fit(X, y)
    assert clf.n_features_in_ == 1
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_predict_that_is_refused_leaves_the_fit():
    clf = fitted()
    before = clf.predict_proba(TEXTS)
    for X in ([1, 2], [("a", "b")], []):
        with pytest.raises(ValueError, match="X"):
            clf.predict(X)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


# Heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "has_proba", "has_decision"),
    [
        (None, True, True),
        (KNeighborsClassifier(3), True, False),
        (RandomForestClassifier(5, random_state=0), True, False),
        (LinearSVC(), False, True),
    ],
    ids=str,
)
def test_head_decides_which_methods_there_are(head, has_proba, has_decision):
    for clf in (make(head=head), fitted(head=head)):
        assert hasattr(clf, "predict_proba") == has_proba
        assert hasattr(clf, "predict_log_proba") == has_proba
        assert hasattr(clf, "decision_function") == has_decision
    assert set(clf.predict(TEXTS)) <= {"+", "-"}
    assert clf.score(TEXTS, LABELS) > 0.5


def test_head_is_fitted_as_a_copy():
    head = KNeighborsClassifier(3)
    clf = fitted(head=head)
    assert not hasattr(head, "classes_")
    assert clf.head_.n_neighbors == 3
    assert clf.get_params()["head"] is head


def test_head_sees_adapted_features():
    clf = fitted(head=KNeighborsClassifier(1))
    alone = KNeighborsClassifier(1).fit(clf.transform(TEXTS), LABELS)
    expected = alone.predict(clf.transform(NEW_TEXTS))
    np.testing.assert_array_equal(clf.predict(NEW_TEXTS), expected)


# What a fit must not lose, or depend on -----------------------------------------------


def test_batch_too_small_to_compare_rows_is_refused():
    for batch_size in (1, 3):
        with pytest.raises(ValueError, match="at least 4"):
            make(batch_size=batch_size).fit(TEXTS, LABELS)
    make(batch_size=1, objective="cross_entropy", max_epochs=1).fit(TEXTS, LABELS)


def test_rows_that_are_each_alone_in_their_class_are_named():
    with pytest.warns(UserWarning, match="No class has two rows"):
        make().fit(["good", "bad", "tea"], ["+", "-", "?"])


def test_weights_that_the_head_cannot_take_are_refused_before_training():
    clf = make(head=KNeighborsClassifier(2)).fit(TEXTS, LABELS)
    before = clf.predict(TEXTS)
    with pytest.raises(ValueError, match="takes no sample_weight"):
        clf.fit(TEXTS, LABELS, sample_weight=np.ones(len(TEXTS)))
    np.testing.assert_array_equal(clf.predict(TEXTS), before)


def test_weights_reach_the_last_step_of_a_pipeline_as_head():
    head = make_pipeline(StandardScaler(), LogisticRegression())
    weights = np.where(np.array(LABELS) == "+", 1.0, 1e-3)
    clf = make(head=head, adapter=None).fit(TEXTS, LABELS, sample_weight=weights)
    assert (clf.predict(TEXTS) == "+").all()


@pytest.mark.parametrize("scale", [1e-4, 100.0])
def test_default_head_does_not_depend_on_the_scale_of_weights(scale):
    weights = np.full(len(TEXTS), scale)
    plain, scaled = (
        make(adapter=None).fit(TEXTS, LABELS, sample_weight=w).predict_proba(TEXTS)
        for w in (None, weights)
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-3)


def test_class_weight_is_learned_from_the_training_labels_alone():
    clf = make(class_weight={"-": 5.0})
    clf.fit(TEXTS, LABELS, X_val=["good tea"], y_val=["+"])
    assert len(clf.validation_scores_) == clf.n_epochs_


def test_interrupt_while_the_encoder_loads_leaves_the_estimator_unfitted(monkeypatch):
    clf = make().fit(TEXTS, LABELS)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyTextEncoder, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        clf.predict(TEXTS)


def test_fit_without_a_seed_leaves_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1:3]
    clf = make(random_state=None)
    first, second = (clf.fit(TEXTS, LABELS).loss_curve_ for _ in range(2))
    assert first != second
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1][0])
    assert np.random.get_state()[2] == before[1][1]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_fit_inside_contexts_of_torch_gives_the_same(adapter):
    expected = make(adapter=adapter).fit(TEXTS, LABELS).predict_proba(TEXTS)
    for context in (torch.autocast("cpu"), torch.no_grad(), torch.inference_mode()):
        with context:
            found = make(adapter=adapter).fit(TEXTS, LABELS).predict_proba(TEXTS)
        np.testing.assert_array_equal(found, expected)


# Texts about labels -------------------------------------------------------------------


def test_pairs_that_hold_the_target_are_warned_of():
    with pytest.warns(UserWarning, match="one text of each pair is the target itself"):
        make(adapter=None).fit(list(zip(TEXTS, LABELS, strict=True)), LABELS)


def test_label_texts_equal_further_rows():
    hints = {"+": ["good", "very good"], "-": "bad"}
    told = make(label_texts=hints, shrinkage=0.0).fit(TEXTS, LABELS)
    added = make(shrinkage=0.0).fit(
        [*TEXTS, "good", "very good", "bad"], [*LABELS, "+", "+", "-"]
    )
    assert same_model(told, added)


def test_label_texts_weigh_as_much_as_a_row_does():
    hints, weights = (
        {"+": ["good", "very good"], "-": []},
        np.linspace(1, 3, len(TEXTS)),
    )
    told = make(label_texts=hints, shrinkage=0.0).fit(TEXTS, LABELS, weights)
    added = make(shrinkage=0.0).fit(
        [*TEXTS, "good", "very good"], [*LABELS, "+", "+"], [*weights, 2.0, 2.0]
    )
    assert same_model(told, added)


def test_label_texts_without_a_text_change_nothing():
    assert same_model(fitted(label_texts={"+": []}), fitted())


@pytest.mark.parametrize("labels", [[0, 1], [False, True], ["no", "a longer label"]])
def test_label_texts_take_labels_of_any_type(labels):
    y = np.array(labels)[(LABELS == "+").astype(int)]
    clf = make(label_texts={y[1]: "bad", y[0]: "good"}).fit(TEXTS, y)
    assert clf.predict(["good film"]).tolist() == [y[0]]


def test_label_texts_are_never_held_out():
    hints = {"+": ["good"] * 30, "-": ["bad"] * 30}
    clf = make(label_texts=hints, early_stopping=True, validation_fraction=0.5)
    assert clf.fit(TEXTS[:8], LABELS[:8]).score(TEXTS, LABELS) == 1.0


def test_label_texts_of_labels_without_rows_are_left_out_with_a_warning():
    clf = make(label_texts={"+": "good", "?": "who knows"})
    with pytest.warns(UserWarning, match=r"speaks of \['\?'\]"):
        clf.fit(TEXTS, LABELS)
    assert clf.classes_.tolist() == ["+", "-"]


@pytest.mark.parametrize(
    ("hints", "X", "message"),
    [
        ({"?": "who knows"}, TEXTS, r"has the keys \['\?'\].*labels in y"),
        ({"+": None}, TEXTS, "a str or a list of str"),
        ({"+": ["good", 5]}, TEXTS, "a str or a list of str"),
        ({"+": "good"}, PAIRS, "does not hold single texts"),
        ({"+": "good\ud800"}, TEXTS, "lone surrogate"),
    ],
    ids=str,
)
def test_label_texts_that_cannot_be_are_refused(hints, X, message):
    with pytest.raises(ValueError, match=message):
        make(label_texts=hints).fit(X, LABELS)


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_early_stopping_never_splits_off_a_whole_class(objective):
    texts = [f"{text} {i}" for i in range(2) for text in TEXTS]
    y = [0] * 2 + [1] * 15 + [2] * 15
    clf = make(early_stopping=True, validation_fraction=0.8, objective=objective)
    assert clf.fit(texts, y).classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("scale", [1e-50, 1e4, 1e50])
def test_fit_does_not_depend_on_the_scale_of_weights(objective, scale):
    weights = np.linspace(1, 2, len(TEXTS))
    plain, scaled = (
        make(objective=objective).fit(TEXTS, LABELS, sample_weight=w)
        for w in (weights, scale * weights)
    )
    np.testing.assert_allclose(scaled.loss_curve_, plain.loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(
        scaled.predict_proba(TEXTS), plain.predict_proba(TEXTS), atol=1e-4
    )


def test_name_of_a_column_as_y_is_told_from_the_column():
    with pytest.raises(ValueError, match="Pass the column, such as frame"):
        AdapterClassifier("tiny").fit(["a b", "c d"], "label")


def test_swapped_texts_and_labels_are_pointed_out_though_some_texts_repeat():
    texts = [f"word{i} here" for i in range(20)]
    texts[1] = texts[0]
    teams = ["air", "sea"] * 10
    quick = AdapterClassifier("tiny", max_epochs=1, shrinkage=0.0, random_state=0)
    with pytest.warns(UserWarning, match="20 rows X has 2 different texts and y 19"):
        quick.fit(teams, texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick.fit(texts, teams)
        quick.fit(teams, teams)


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        (None, "Fill or drop missing entries."),
        (float("nan"), "Fill or drop missing entries."),
        (3, "Select the column of texts"),
        (b"a", "Decode them"),
    ],
)
def test_entry_that_is_no_text_gets_its_own_remedy(entry, remedy):
    with pytest.raises(ValueError, match=r"X\[1\] is") as caught:
        AdapterClassifier("tiny").fit(["a b", entry], ["x", "y"])
    assert remedy in str(caught.value)


# What looks like labels or weights ----------------------------------------------------


class Sign(str, enum.Enum):  # noqa: UP042 - a StrEnum prints as its value
    """Texts of a type of their own, which str() gives another name."""

    PLUS = "+"
    MINUS = "-"


SIGNS = [Sign(label) for label in LABELS]


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (SIGNS, r"\[label.value for label in y\]"),
        (np.array(SIGNS, dtype=object), r"\[label.value for label in y\]"),
        (np.array(LABELS, dtype=np.dtypes.StringDType()), r"y.tolist\(\)"),
    ],
    ids=["list", "objects", "StringDType"],
)
def test_labels_that_numpy_would_take_for_others_are_refused(labels, remedy):
    with pytest.raises(ValueError, match=remedy):
        make().fit(TEXTS, labels)


def test_texts_that_print_as_they_are_may_be_of_any_type():
    class Sign(enum.StrEnum):
        PLUS = "+"
        MINUS = "-"

    labels = [Sign(label) for label in LABELS]
    clf = make().fit(TEXTS, labels)
    assert same_model(clf, fitted())
    assert clf.score(TEXTS, labels) == fitted().score(TEXTS, LABELS) > 0.5


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_masked_entries_are_refused(name):
    rows = np.arange(len(TEXTS))
    hidden = np.ma.array(1 + rows % 2, mask=rows == 3)
    given = {"y": LABELS, name: hidden}
    with pytest.raises(ValueError, match=f"{name} is a masked array"):
        make().fit(TEXTS, **given)
    given[name] = np.ma.array(hidden.data)  # masked in no entry
    assert make().fit(TEXTS, **given).classes_.shape == (2,)


@pytest.mark.parametrize("weights", ["balanced", {"+": 1.0}])
def test_weights_by_class_are_not_weights_of_rows(weights):
    with pytest.raises(ValueError, match=r"sample_weight is .* go into class_weight"):
        make().fit(TEXTS, LABELS, sample_weight=weights)


@pytest.mark.parametrize(
    ("fraction", "remedy"), [(0.99, "a smaller fraction"), (0.01, "a larger fraction")]
)
def test_fraction_that_leaves_no_rows_on_one_side_says_which_way(fraction, remedy):
    clf = make(early_stopping=True, validation_fraction=fraction)
    with pytest.raises(ValueError, match=remedy):
        clf.fit(TEXTS, LABELS)


def test_validation_rows_all_of_classes_without_weight_are_refused():
    labels = ["-"] * 14 + ["+"] * 2
    weights = {"-": 0.0, "+": 1.0}
    clf = make(early_stopping=True, class_weight=weights, validation_fraction=0.15)
    with pytest.raises(ValueError, match="all of classes that have weight 0"):
        clf.fit(TEXTS, labels)


@pytest.mark.parametrize("verbose", [0, 1])
def test_fit_leaves_no_thread(verbose):
    before = set(threading.enumerate())
    fitted(verbose=verbose)
    assert set(threading.enumerate()) <= before


# Steps of training --------------------------------------------------------------------


def test_rate_warms_up_and_falls_in_a_straight_line():
    def rates(warmup_fraction, n_steps):
        settings = SimpleNamespace(warmup_fraction=warmup_fraction, learning_rate=6.0)
        return list(schedule(settings, n_steps))

    np.testing.assert_allclose(rates(0.25, 8), [3, 6, 6, 5, 4, 3, 2, 1])
    np.testing.assert_allclose(rates(0.0, 4), [6, 4.5, 3, 1.5])


def test_weights_decay_by_rate_times_decay_a_step():
    """Of a loss that depends on nothing all that is left of AdamW is the decay."""

    class Constant(CrossEntropy):
        def value(self, outputs, targets):
            return 0.0 * super().value(outputs, targets)

    def trained(weight_decay):
        return fitted(
            objective=Constant(), weight_decay=weight_decay, learning_rate=0.1,
            warmup_fraction=0.0, max_epochs=1, batch_size=8, shrinkage=0.0,
        )._network.state()  # fmt: skip

    start = trained(0.0)
    shrunk = (1 - 0.1 * 0.5) * (1 - 0.05 * 0.5)  # two steps, at the rate and half of it
    for name, decayed in trained(0.5).items():
        np.testing.assert_allclose(decayed, shrunk * start[name], rtol=1e-5)
    assert any(values.any() for values in start.values())


def test_gradients_are_clipped_to_length_one():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for gradient, step in (([3.0, 4.0, 0, 0], [0.6, 0.8, 0, 0]), ([0, 0, 0.3, 0],) * 2):
        weight.data.zero_()
        weight.grad = torch.tensor(gradient)
        update(optimizer, 1.0)
        np.testing.assert_allclose(-weight.detach(), step, rtol=1e-5)


def test_early_stopping_takes_booleans_of_numpy():
    held_out = {"X_val": NEW_TEXTS, "y_val": NEW_LABELS}
    assert fitted(early_stopping=np.True_).validation_scores_
    patient = {"max_epochs": 12, "n_iter_no_change": 1, "tol": 1e9}
    stopped = make(early_stopping=np.True_, **patient).fit(TEXTS, LABELS, **held_out)
    whole = make(early_stopping=np.False_, **patient).fit(TEXTS, LABELS, **held_out)
    assert (stopped.n_epochs_, whole.n_epochs_) == (2, 12)


def test_a_list_of_layers_that_is_changed_later_is_of_no_consequence():
    layers = [0]
    clf = fitted(layers=layers)
    expected = clf.predict_proba(NEW_TEXTS)
    layers.append(1)
    for other in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(other.predict_proba(NEW_TEXTS), expected)


def test_a_refit_does_not_keep_the_former_network():
    clf, seen = fitted(), []
    former = weakref.ref(clf._network)

    def look(record):
        gc.collect()
        seen.append(former() is None)

    clf.set_params(callback=look).fit(TEXTS, LABELS)
    assert seen == [True] * clf.n_epochs_


def test_device_may_be_set_where_a_model_is_loaded():
    clf = fitted()
    clf._network.device = clf.device = "cuda:7"  # as of a fit on a machine that has it
    data = pickle.dumps(clf)
    with pytest.raises(ValueError, match="'cuda:7' cannot be used"):
        pickle.loads(data).predict(NEW_TEXTS)
    loaded = pickle.loads(data).set_params(device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(NEW_TEXTS), fitted().predict(NEW_TEXTS)
    )


def test_label_texts_are_among_the_rows_that_a_linear_layer_starts_from(monkeypatch):
    n_label_texts = []

    def rows_to_start(rows, *others):
        n_label_texts.append(rows.n_label_texts)
        return plain(rows, *others)

    plain = _planning.rows_to_start
    for module in (_planning, _shrinkage):
        monkeypatch.setattr(module, "rows_to_start", rows_to_start)
    hints = {"+": "good", "-": "bad"}
    own = {"objective": "cross_entropy", "max_epochs": 1, "label_texts": hints}
    make(early_stopping=True, **own).fit(TEXTS, LABELS)
    assert n_label_texts == [2, 2]


def test_head_that_has_predict_once_it_is_fitted():
    single = [("forest", RandomForestClassifier(3, random_state=0))]
    clf = fitted(head=StackingClassifier(single, cv=2))
    assert clf.score(TEXTS, LABELS) > 0.7


@pytest.mark.parametrize(
    "head",
    [
        StandardScaler(),
        make_pipeline(StandardScaler()),
        make_pipeline(StandardScaler(), make_pipeline(StandardScaler())),
    ],
    ids=["step", "pipeline", "pipeline in a pipeline"],
)
def test_head_that_cannot_predict_is_refused(head):
    with pytest.raises(ValueError, match=r"StandardScaler\(\).* has no predict"):
        fitted(head=head)


@pytest.mark.parametrize("wrong", [LABELS, (TEXTS, LABELS)], ids=["y_val", "both"])
def test_validation_rows_in_the_place_of_weights_are_refused(wrong):
    message = (
        r"sample_weight holds what is no number.*go by name: .* X_val=\.\.\., y_val="
    )
    with pytest.raises(ValueError, match=message):
        make().fit(TEXTS, LABELS, wrong)


def test_weights_of_validation_rows_that_are_no_numbers_are_refused_by_name():
    validation = {"X_val": TEXTS, "y_val": LABELS, "sample_weight_val": LABELS}
    with pytest.raises(
        ValueError, match="In the validation rows: sample_weight"
    ) as found:
        make().fit(TEXTS, LABELS, **validation)
    assert "go by name" not in str(found.value)


def test_weights_of_other_classes_are_refused_with_those_that_there_are():
    clf = make(class_weight={"good": 2.0, "other": 1.0})
    with pytest.raises(ValueError, match=r"class_weight=.*of which y has \["):
        clf.fit(TEXTS, LABELS)
