"""The regressor on the tiny encoder: what fit promises, accepts, refuses and leaves."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from skpeft import AdapterRegressor
from skpeft.adapters import LoRA
from skpeft.encoders import TinyTextEncoder
from skpeft.objectives import CrossEntropy, Huber

THINGS = ["film", "book", "play", "song", "car", "tea", "house", "tree"]
VALUES = {"good": 4.0, "fair": 2.5, "bad": -1.0}
TEXTS = [f"{word} {thing}" for thing in THINGS for word in VALUES]
Y = np.array([VALUES[word] for _ in THINGS for word in VALUES])
NEW_TEXTS = ["good work", "fair work", "bad work", "a good cup of tea", ""]
NEW_Y = np.array([4.0, 2.5, -1.0, 4.0, 1.0])
ADAPTERS = ["lora", "bottleneck", "full", None]


def make(**parameters):
    return AdapterRegressor(
        **{"encoder": "tiny", "random_state": 0, "max_epochs": 4, **parameters}
    )


def fitted(**parameters):
    return make(**parameters).fit(TEXTS, Y)


def same_model(one, two):
    np.testing.assert_array_equal(one.transform(NEW_TEXTS), two.transform(NEW_TEXTS))
    np.testing.assert_array_equal(one.predict(NEW_TEXTS), two.predict(NEW_TEXTS))
    return True


# What is learned ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["squared_error", "huber", Huber(delta=0.5)], ids=str
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_fit_on_texts_whose_first_word_has_the_value_learns_it(adapter, objective):
    reg = make(adapter=adapter, objective=objective, max_epochs=None)
    assert reg.fit(TEXTS, Y).score(TEXTS, Y) > 0.9


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_fit_leaves_every_bit_of_the_frozen_encoder(adapter):
    backbone = TinyTextEncoder().load(
        n_features=1, device=torch.device("cpu"), dtype=torch.float32
    )
    tensors = backbone.module.state_dict().values()
    before = [tensor.numpy().tobytes() for tensor in tensors]
    reg = fitted(adapter=adapter)
    reg.predict(TEXTS)
    assert reg._network.live.backbone is backbone
    assert [tensor.numpy().tobytes() for tensor in tensors] == before


def test_fit_without_adapter_equals_the_head_on_transformed_texts():
    reg = fitted(adapter=None, head=Ridge(alpha=0.3))
    alone = Ridge(alpha=0.3).fit(reg.transform(TEXTS), Y)
    expected = alone.predict(reg.transform(NEW_TEXTS))
    np.testing.assert_array_equal(reg.predict(NEW_TEXTS), expected)
    assert (reg.n_epochs_, reg.loss_curve_, reg.n_trainable_params_) == (0, [], 0)


def test_fit_lowers_the_loss():
    losses = fitted(max_epochs=20).loss_curve_
    assert len(losses) == 20
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", ["lora", None])
@pytest.mark.parametrize(("factor", "offset"), [(1e3, 0.0), (1e-3, 0.0), (1.0, 1e3)])
def test_fit_to_a_target_in_other_units_predicts_in_these_units(
    adapter, factor, offset
):
    parameters = {"adapter": adapter, "precision": "float64"}
    expected = fitted(**parameters).predict(NEW_TEXTS) * factor + offset
    found = make(**parameters).fit(TEXTS, Y * factor + offset).predict(NEW_TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * factor)


def test_dates_are_told_apart_by_the_minute():
    dates = 1.7e9 + 60.0 * np.arange(len(TEXTS))
    found = make().fit(TEXTS, dates).predict(NEW_TEXTS)
    shifted = make().fit(TEXTS, dates - 1.7e9).predict(NEW_TEXTS)
    np.testing.assert_allclose(found - 1.7e9, shifted, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("factor", [1e-46, 1e150])
def test_numbers_that_float32_does_not_hold_are_learned(factor):
    expected = fitted().predict(NEW_TEXTS).astype(np.float64) * factor
    found = make().fit(TEXTS, Y * factor).predict(NEW_TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_default_head_is_a_ridge_regression_of_the_numbers():
    reg = fitted()
    features = reg.transform(TEXTS).astype(np.float64)
    alone = Ridge(alpha=reg.head_.alpha).fit(features, Y)
    np.testing.assert_allclose(reg.head_.coef_, alone.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        reg.predict(NEW_TEXTS), alone.predict(reg.transform(NEW_TEXTS)), atol=1e-4
    )


def test_default_device_of_torch_is_of_no_consequence():
    with torch.device("meta"):
        found = make().fit(TEXTS, Y).predict(NEW_TEXTS)
    np.testing.assert_array_equal(found, fitted().predict(NEW_TEXTS))


def test_predictions_are_one_float_a_row():
    predictions = fitted().predict(NEW_TEXTS)
    assert predictions.shape == (len(NEW_TEXTS),)
    assert np.issubdtype(predictions.dtype, np.floating)


def test_regressor_has_no_methods_of_classifiers():
    for name in ("predict_proba", "decision_function", "classes_"):
        assert not hasattr(fitted(), name)


@pytest.mark.parametrize("adapter", ["lora", None])
def test_constant_target_is_predicted(adapter):
    reg = make(adapter=adapter).fit(TEXTS, np.full(len(TEXTS), 7.0))
    np.testing.assert_allclose(reg.predict(NEW_TEXTS), 7.0, atol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", None])
def test_one_row_is_learned(adapter):
    reg = make(adapter=adapter).fit(["good"], [3.0])
    np.testing.assert_allclose(reg.predict(["good"]), [3.0], atol=1e-4)


@pytest.mark.parametrize("n_rows", [2, 3, 4])
def test_few_rows_are_learned(n_rows):
    reg = make().fit(TEXTS[:n_rows], Y[:n_rows])
    assert np.isfinite(reg.predict(TEXTS)).all()
    assert np.isfinite(reg.loss_curve_).all()


def test_huber_is_less_drawn_by_an_outlier_than_squared_error():
    y = Y.copy()
    y[0] = 1000.0
    gap = {}
    for objective in ("squared_error", Huber(delta=0.05)):
        reg = make(objective=objective, max_epochs=1, learning_rate=1e-12).fit(TEXTS, y)
        gap[str(objective)] = reg.loss_curve_[0]
    assert gap["Huber(delta=0.05)"] < gap["squared_error"]


@pytest.mark.parametrize("kind", [list, np.float32, np.int32], ids=lambda k: k.__name__)
def test_target_of_whole_numbers_in_any_type_is_the_same(kind):
    y = np.round(Y)
    given = y.tolist() if kind is list else y.astype(kind)
    assert same_model(make().fit(TEXTS, given), make().fit(TEXTS, y))


# Weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", None])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_sample_weight_zero_equals_removal_of_the_row(adapter, batch_size):
    weights = np.arange(len(TEXTS)) % 4 + 0.0
    kept = np.flatnonzero(weights)
    parameters = {"adapter": adapter, "batch_size": batch_size}
    zeroed = make(**parameters).fit(TEXTS, Y, sample_weight=weights)
    removed = make(**parameters).fit(
        [TEXTS[i] for i in kept], Y[kept], sample_weight=weights[kept]
    )
    assert same_model(zeroed, removed)


def test_sample_weight_of_ones_equals_none():
    weighted = make().fit(TEXTS, Y, sample_weight=np.ones(len(TEXTS)))
    found, expected = (reg.predict(NEW_TEXTS) for reg in (weighted, fitted()))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sample_weight_draws_predictions_to_the_heavier_rows():
    texts, y = ["tea", "tea"] * 6, [0.0, 1.0] * 6
    low = make().fit(texts, y, sample_weight=[5.0, 1.0] * 6).predict(["tea"])
    high = make().fit(texts, y, sample_weight=[1.0, 5.0] * 6).predict(["tea"])
    assert low < 0.5 < high


@pytest.mark.parametrize("weights", [np.zeros(len(TEXTS)), -np.ones(len(TEXTS)), [1.0]])
def test_sample_weight_that_cannot_be_is_refused(weights):
    with pytest.raises(ValueError, match=r"(?i)sample.weight"):
        make().fit(TEXTS, Y, sample_weight=weights)


def test_weights_for_head_that_takes_none_are_refused():
    with pytest.raises(ValueError, match=r"KNeighborsRegressor\(\) takes no"):
        make(head=KNeighborsRegressor()).fit(
            TEXTS, Y, sample_weight=np.ones(len(TEXTS))
        )


# Stopping early, callbacks, warm start ------------------------------------------------


def test_early_stopping_with_x_val_stops_without_gain_after_patience():
    reg = make(max_epochs=30, n_iter_no_change=3, tol=1e6)
    reg.fit(TEXTS, Y, X_val=NEW_TEXTS, y_val=NEW_Y)
    assert reg.n_epochs_ == len(reg.validation_scores_) == 1 + 3
    assert max(reg.validation_scores_) <= 0  # negative losses


def test_early_stopping_with_x_val_keeps_the_best_state():
    validation = {"X_val": NEW_TEXTS, "y_val": -NEW_Y}  # training makes it worse
    parameters = {"max_epochs": 10, "learning_rate": 0.05, "n_iter_no_change": 10}
    reg = make(shrinkage=0.0, **parameters).fit(TEXTS, Y, **validation)
    best = int(np.argmax(reg.validation_scores_)) + 1
    assert best < reg.n_epochs_ == 10, "the case must be one where the last is not best"
    parameters["callback"] = lambda record: record["epoch"] == best
    stopped = make(shrinkage=0.0, **parameters)
    assert same_model(reg, stopped.fit(TEXTS, Y, **validation))


def test_early_stopping_true_splits_rows_off_but_fits_the_head_on_all():
    reg = fitted(
        early_stopping=True, n_iter_no_change=1, tol=1e6, head=KNeighborsRegressor()
    )
    assert reg.n_epochs_ == len(reg.validation_scores_) == 2
    assert reg.head_.n_samples_fit_ == len(TEXTS)


def test_early_stopping_true_with_one_row_says_what_to_do():
    with pytest.raises(ValueError, match=r"early_stopping=True .* X_val"):
        make(early_stopping=True).fit(["good"], [1.0])


def test_callback_sees_every_epoch_and_stops_training():
    records = []

    def callback(record):
        records.append(record)
        return record["epoch"] == 3

    reg = fitted(callback=callback)
    assert [record["loss"] for record in records] == reg.loss_curve_
    assert reg.n_epochs_ == 3


def test_interrupt_in_callback_keeps_what_there_is_and_warns():
    def callback(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    reg = make(shrinkage=0.0, callback=callback)
    with pytest.warns(UserWarning, match="interrupted after 2 of 4 epochs"):
        reg.fit(TEXTS, Y)
    assert same_model(
        reg, fitted(shrinkage=0.0, callback=lambda record: record["epoch"] == 2)
    )


class InterruptedHead(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        raise KeyboardInterrupt

    def predict(self, X):
        raise AssertionError("never fitted")


def test_interrupt_in_the_fit_of_the_head_leaves_nothing_fitted():
    reg = fitted()
    with pytest.raises(KeyboardInterrupt):
        reg.set_params(head=InterruptedHead()).fit(TEXTS, Y)
    with pytest.raises(NotFittedError):
        reg.predict(TEXTS)


def test_head_that_classifies_is_refused():
    with pytest.raises(ValueError, match="head of a regression estimator must do regr"):
        fitted(head=LogisticRegression())


def test_warm_start_goes_on_from_the_last_fit():
    reg = fitted(warm_start=True, learning_rate=0.01, max_epochs=10, shrinkage=0.0)
    before, losses = reg.transform(TEXTS), list(reg.loss_curve_)
    reg.set_params(learning_rate=1e-12, max_epochs=2).fit(TEXTS, Y)
    np.testing.assert_allclose(reg.transform(TEXTS), before, atol=1e-5)
    assert reg.loss_curve_[:10] == losses
    assert reg.n_epochs_ == len(reg.loss_curve_) == 12


@pytest.mark.parametrize("changed", [{"adapter": "bottleneck"}, {"rank": 2}], ids=str)
def test_warm_start_after_a_change_of_the_network_is_refused(changed):
    reg = fitted(warm_start=True)
    before = reg.predict(TEXTS)
    with pytest.raises(ValueError, match="Set warm_start=False to start anew"):
        reg.set_params(**changed).fit(TEXTS, Y)
    np.testing.assert_array_equal(reg.predict(TEXTS), before)


# What is left as it was ---------------------------------------------------------------


@pytest.mark.parametrize("objective", ["squared_error", "huber"])
def test_fit_leaves_the_global_generators_and_the_terminal(objective, capfd):
    fitted()  # loads the encoder
    before = torch.get_rng_state(), repr(np.random.get_state()), torch.get_num_threads()
    fitted(objective=objective, adapter=LoRA(dropout=0.3), early_stopping=True)
    after = torch.get_rng_state(), repr(np.random.get_state()), torch.get_num_threads()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert capfd.readouterr() == ("", "")


def test_random_state_decides_the_result():
    parameters = {"adapter": LoRA(dropout=0.3), "batch_size": 4}
    one, other = (fitted(random_state=seed, **parameters) for seed in (1, 2))
    assert same_model(one, fitted(random_state=1, **parameters))
    assert not np.array_equal(one.transform(TEXTS), other.transform(TEXTS))


@pytest.mark.parametrize(
    ("X", "y", "parameters"),
    [
        (list(range(24)), Y, {}),
        (TEXTS[:3], Y, {}),
        (TEXTS, None, {}),
        (TEXTS, ["a"] * 24, {}),
        (TEXTS, Y, {"objective": "hubber"}),
        (TEXTS, Y, {"layers": [7]}),
        ([(text, text) for text in TEXTS], Y[:3], {}),
    ],
    ids=[
        "numbers",
        "lengths",
        "no y",
        "words",
        "objective",
        "layers",
        "pairs and lengths",
    ],
)
def test_fit_that_is_refused_leaves_the_earlier_one(X, y, parameters):
    reg = fitted()
    before = reg.predict(TEXTS)
    with pytest.raises(ValueError, match=r"\w"):
        reg.set_params(**parameters).fit(X, y)
    assert reg.n_features_in_ == 1
    np.testing.assert_array_equal(reg.predict(TEXTS), before)


@pytest.mark.parametrize("scale", [1e-150, 1e-170, 1e-300])
def test_numbers_however_small_are_learned(scale):
    """Their squares are 0 in a float64."""
    found = make().fit(TEXTS, Y * scale).predict(NEW_TEXTS) / scale
    np.testing.assert_allclose(found, fitted().predict(NEW_TEXTS), rtol=1e-3, atol=1e-3)


def test_one_row_of_nearly_all_weight_does_not_break_training():
    weights = np.ones(len(TEXTS))
    weights[0] = 1e12
    reg = make(batch_size=4).fit(TEXTS, Y, weights)
    assert np.isfinite(reg.loss_curve_).all()
    assert reg.predict(TEXTS[:1]) == pytest.approx(Y[:1], abs=1e-3)


# What is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y"),
        ([np.nan, *Y[1:]], "Input y contains NaN"),
        ([np.inf, *Y[1:]], "Input y contains infinity"),
        ([None, *Y[1:]], "Input y contains NaN"),
        (["good", *Y[1:]], "could not convert|dtype"),
        (np.stack([Y, Y], axis=1)[None], "1d array|dim 3"),
        (Y[:-1], "inconsistent"),
        (
            [1e300, -1e300] * (len(TEXTS) // 2),
            r"y holds numbers up to 1e\+300.*Divide them",
        ),
    ],
    ids=["None", "NaN", "infinity", "inside", "word", "axes", "length", "huge"],
)
def test_target_that_is_no_column_of_numbers_is_refused(y, message):
    reg = make()
    with pytest.raises(ValueError, match=message):
        reg.fit(TEXTS, y)
    with pytest.raises(NotFittedError):
        reg.predict(TEXTS)


def test_column_of_numbers_is_flattened_with_a_warning():
    with pytest.warns(UserWarning, match="column-vector"):
        reg = make().fit(TEXTS, Y[:, None])
    assert same_model(reg, fitted())


@pytest.mark.parametrize("objective", ["cross_entropy", CrossEntropy()], ids=str)
def test_objective_for_classification_is_refused(objective):
    with pytest.raises(ValueError, match=r"regression.*'squared_error'"):
        fitted(objective=objective)


def test_unknown_objective_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="Did you mean 'squared_error'"):
        fitted(objective="squared_eror")


@pytest.mark.parametrize("adapter", [None, "full"])
def test_rank_for_adapter_without_capacity_is_refused(adapter):
    with pytest.raises(ValueError, match="rank=4 was given"):
        fitted(adapter=adapter, rank=4)


def test_numbers_for_a_text_encoder_are_refused():
    with pytest.raises(ValueError, match=r"holds numbers.*ArrayEncoder"):
        make().fit(np.ones((len(TEXTS), 3)), Y)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_texts_for_an_encoder_of_numbers_are_refused(kind):
    with pytest.raises(ValueError, match="X holds text"):
        make(encoder="array").fit(kind(TEXTS), Y)


def test_columns_in_a_dict_are_not_taken_for_texts():
    with pytest.raises(ValueError, match="Expected 2D array, got scalar"):
        make(encoder="array").fit({"a": Y, "b": Y}, Y)


# Heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [KNeighborsRegressor(1), RandomForestRegressor(5, random_state=0)],
    ids=str,
)
def test_head_is_fitted_as_a_copy_on_adapted_features(head):
    reg = fitted(head=head)
    assert not hasattr(head, "n_features_in_")
    assert type(reg.head_) is type(head)
    alone = type(head)(**head.get_params()).fit(reg.transform(TEXTS), Y)
    expected = alone.predict(reg.transform(NEW_TEXTS))
    np.testing.assert_array_equal(reg.predict(NEW_TEXTS), expected)


def test_labels_are_refused_with_the_name_of_the_classifier():
    with pytest.raises(ValueError, match=r"no number.*use AdapterClassifier"):
        AdapterRegressor("tiny").fit(["a", "b"], ["good", "bad"])
