"""Fits that train together: each is what it would be by itself."""

import gc
import math
import pickle
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context, get_config
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning, NotFittedError

from skpeft import (
    AdapterClassifier,
    AdapterClassifierCV,
    AdapterRegressor,
    AdapterRegressorCV,
    _lockstep,
    _shared,
    _training,
)
from skpeft._lockstep import Lockstep, run_together
from skpeft._network import AdapterNetwork
from skpeft.adapters import LoRA
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders import TextEncoder, TinyTextEncoder, _tiny
from skpeft.objectives import OBJECTIVES, CrossEntropy
from tests.models import random_rows

TEXTS, LABELS, NUMBERS = random_rows([1 + i % 8 for i in range(40)])
OWN = {"encoder": "tiny", "random_state": 0, "max_epochs": 3, "precision": "float64"}
# Sums in another order, through some dozen steps of Adam, whose first ones are of full size
# however small a gradient is.
ROUNDING = 1e-7
KINDS = pytest.mark.parametrize(
    ("kind", "y"),
    [(AdapterClassifierCV, LABELS), (AdapterRegressorCV, NUMBERS)],
    ids=["clf", "reg"],
)


def fits(models, data):
    """Jobs that fit copies of models."""

    def job(model, X, y):
        def run(learn):
            model._learn = learn
            return model.fit(X, y)

        return run

    return [job(clone(model), X, y) for model, (X, y) in zip(models, data, strict=True)]


def assert_as_alone(models, data, atol=ROUNDING):
    """Fit models together, and each by itself."""
    found = run_together(fits(models, data))
    for one, model, (X, y) in zip(found, models, data, strict=True):
        alone = clone(model).fit(X, y)
        np.testing.assert_allclose(one.transform(X), alone.transform(X), atol=atol)
        np.testing.assert_allclose(one.loss_curve_, alone.loss_curve_, atol=atol)
        assert one.shrinkage_ == pytest.approx(alone.shrinkage_, abs=1e-5)
        gap = np.abs(one.transform(X) - one.transform_frozen(X)).max()
        assert model.adapter is None or gap > 1e-3
    return found


@pytest.fixture
def stacked(monkeypatch):
    """How many fits went through together, pass by pass; 1: a step alone."""
    counts = []
    stacked, alone = _lockstep.Lockstep._learn_stacked, _lockstep.Step.learn_alone

    def counted(self, steps):
        done = stacked(self, steps)
        counts.extend([len(steps)] * done)
        return done

    def counted_alone(self):
        counts.append(1)
        alone(self)

    monkeypatch.setattr(_lockstep.Lockstep, "_learn_stacked", counted)
    monkeypatch.setattr(_lockstep.Step, "learn_alone", counted_alone)
    return counts


@pytest.fixture
def together(monkeypatch):
    """Let the searches train together, as they do on a GPU."""
    for kind in (AdapterClassifierCV, AdapterRegressorCV):
        monkeypatch.setattr(kind, "_trains_together", lambda self: True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_learn_as_alone(name, stacked):
    task = OBJECTIVES[name].task
    kind = AdapterRegressor if task == "regression" else AdapterClassifier
    y = NUMBERS if task == "regression" else LABELS
    if task.startswith("multi"):
        y = np.stack([LABELS == "+", NUMBERS > 20], axis=1).astype(int)
    models = [kind(**OWN, objective=name, rank=rank) for rank in (1, 4, 3)]
    assert_as_alone(models, [(TEXTS, y)] * 3)
    assert set(stacked) == {3}


def test_ranks_layers_rates_rows_and_lengths_differ(stacked):
    models = [
        AdapterClassifier(**OWN, rank=2, layers=[1]),
        AdapterClassifier(**OWN, rank=8, layers=[0], learning_rate=1e-2),
        AdapterClassifier(**{**OWN, "max_epochs": 7}, batch_size=8),
        AdapterClassifier(**{**OWN, "random_state": 5}, adapter=LoRA(roles=None)),
        AdapterClassifier(**OWN, adapter=LoRA(3, alpha=1.0, roles=["key", "ffn_in"])),
    ]
    data = [(TEXTS, LABELS), (TEXTS[:30], LABELS[:30]), (TEXTS[7:], LABELS[7:])]
    assert_as_alone(models, [*data, *data[:2]])
    assert max(stacked) == 5
    assert min(stacked) < 5  # those that go on after others


def test_adapters_that_do_not_stack_have_passes_of_their_own(stacked):
    adapters = ["lora", "ia3", LoRA(dropout=0.3), None, "bottleneck", LoRA(4), "hira"]
    models = [AdapterClassifier(**OWN, adapter=adapter) for adapter in adapters]
    assert_as_alone(models, [(TEXTS, LABELS)] * len(models))
    assert set(stacked) == {1, 2}


def test_adapters_none_of_which_stacks(stacked):
    models = [
        AdapterClassifier(**OWN, adapter=adapter) for adapter in ("ia3", "prefix")
    ]
    assert_as_alone(models, [(TEXTS, LABELS)] * 2)
    assert set(stacked) == {1}


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "albert"])
def test_families_of_encoders_learn_as_alone(family, plain_folder, stacked):
    own = OWN | {"encoder": str(plain_folder(family))}
    models = [AdapterClassifier(**own, rank=rank) for rank in (2, 4)]
    # Groups of another size move ALBERT's features by 7e-7 too.
    assert_as_alone(models, [(TEXTS, LABELS)] * 2, atol=1e-5)
    assert max(stacked) == 2


def test_encoder_that_mixes_rows_with_positions_does_not_stack(plain_folder, stacked):
    own = OWN | {"encoder": str(plain_folder("deberta-v2"))}
    models = [AdapterClassifier(**own, rank=rank) for rank in (2, 4)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 2)
    assert set(stacked) == {1}


def test_long_texts_in_windows_learn_as_alone(plain_folder, stacked):
    encoder = TextEncoder(str(plain_folder("bert")), long_text="chunk", max_length=12)
    texts = [f"{text} {text} {text}" for text in TEXTS]
    models = [AdapterClassifier(**OWN | {"encoder": encoder}, rank=r) for r in (2, 4)]
    assert_as_alone(models, [(texts, LABELS)] * 2)
    assert set(stacked) == {2}


def test_rows_of_numbers_learn_as_alone(stacked):
    X = np.random.RandomState(0).normal(size=(40, 6))
    models = [AdapterClassifier(**OWN | {"encoder": "array"}, rank=r) for r in (2, 4)]
    assert_as_alone(models, [(X, LABELS)] * 2)
    assert set(stacked) == {2}


def test_no_more_tokens_go_through_at_once_than_a_fit_keeps(monkeypatch, stacked):
    monkeypatch.setattr(_lockstep, "TOKENS_KEPT", 300)
    models = [AdapterClassifier(**OWN, rank=rank) for rank in (1, 2, 3, 4)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 4)
    assert 1 < max(stacked) < 4


def test_of_many_fits_some_wait(monkeypatch, stacked):
    monkeypatch.setattr(_lockstep, "_AT_ONCE", 2)
    models = [AdapterClassifier(**OWN, rank=rank) for rank in (1, 2, 3)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 3)
    assert max(stacked) == 2


def test_same_bits_again_whoever_comes_first():
    models = [AdapterClassifier(**OWN, rank=rank, layers=1) for rank in (1, 2, 4)]
    data = [(TEXTS[:20], LABELS[:20]), (TEXTS, LABELS), (TEXTS[:30], LABELS[:30])]
    first, again = (run_together(fits(models, data)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.transform(TEXTS), two.transform(TEXTS))


def test_frozen_tensors_keep_their_bits():
    encoder = TinyTextEncoder()
    clf = AdapterClassifier(**OWN | {"encoder": encoder}).fit(TEXTS, LABELS)
    shared = dict(clf._network.live.backbone.module.named_parameters())
    before = {name: tensor.clone() for name, tensor in shared.items()}
    models = [AdapterClassifier(**OWN | {"encoder": encoder}, rank=r) for r in (2, 4)]
    run_together(fits(models, [(TEXTS, LABELS)] * 2))
    assert len(before) > 10
    assert all(torch.equal(before[name], tensor) for name, tensor in shared.items())


class Moody(CrossEntropy):
    """Refuses batches of one size."""

    def __init__(self, size=0):
        self.size = size

    def value(self, outputs, targets):
        if len(outputs) == self.size:
            raise RuntimeError("not today")
        return super().value(outputs, targets)


def assert_fails_alone(wrong, message):
    """Fit a model together with one that fails."""
    calm = AdapterClassifier(**OWN, layers=[1])

    def caught(job):
        def run(learn):
            try:
                return job(learn)
            except (RuntimeError, ValueError) as error:
                return str(error)

        return run

    jobs = fits([calm, wrong], [(TEXTS, LABELS)] * 2)
    found, told = run_together([caught(job) for job in jobs])
    assert message in told
    alone = clone(calm).fit(TEXTS, LABELS)
    np.testing.assert_allclose(
        found.transform(TEXTS), alone.transform(TEXTS), atol=ROUNDING
    )


@pytest.mark.parametrize("rate", [1e8, 1e25])
def test_fit_that_diverges_fails_alone(rate, stacked):
    wild = AdapterClassifier(**OWN, learning_rate=rate, objective="cross_entropy")
    assert_fails_alone(wild, "learning_rate")
    assert 2 in stacked


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_error_of_one_step_is_that_of_its_fit(adapter):
    moody = AdapterClassifier(
        **OWN, objective=Moody(10), batch_size=10, adapter=adapter
    )
    assert_fails_alone(moody, "not today")


class WithoutGraph(CrossEntropy):
    """Forgets where its values come from."""

    def value(self, outputs, targets):
        return super().value(outputs, targets).detach()


def test_loss_without_gradient_is_an_error_of_its_fit():
    lost = AdapterClassifier(**OWN, objective=WithoutGraph())
    assert_fails_alone(lost, "does not require grad")


class BrokenBackward(CrossEntropy):
    """Has no way back."""

    def value(self, outputs, targets):
        values = super().value(outputs, targets)
        values.register_hook(self.refuse)
        return values

    def refuse(self, gradient):
        raise RuntimeError("no way back")


def test_backward_pass_that_raises_is_an_error_of_its_fit():
    broken = AdapterClassifier(**OWN, objective=BrokenBackward())
    assert_fails_alone(broken, "no way back")


def test_pass_that_needs_too_much_memory_is_made_smaller(monkeypatch, stacked):
    forward = _shared.SharedPass.forward

    def limited(self, items, *pairs):
        if len(items) > 2.5 * len(TEXTS):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, items, *pairs)

    monkeypatch.setattr(_shared.SharedPass, "forward", limited)
    models = [AdapterClassifier(**OWN, rank=rank) for rank in (1, 2, 3, 4)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 4)
    assert 1 in stacked
    assert 1 < max(stacked) < 4


def test_where_the_trial_of_sharing_fails_each_goes_alone(monkeypatch, stacked):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_lockstep, "SharedPass", fails)
    models = [AdapterClassifier(**OWN, rank=rank) for rank in (1, 2)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 2)
    assert set(stacked) == {1}


def test_steps_of_uneven_size_count_as_the_largest(monkeypatch):
    lockstep = Lockstep(5)
    lockstep._limit = 40
    monkeypatch.setattr(lockstep, "_size", lambda step: step)
    groups = list(lockstep._few_by_few([30, 1, 9, 10, 20, 2, math.inf, 10]))
    assert groups == [[1, 2, 9, 10], [10, 20], [30], [math.inf]]


def test_adapters_with_dropout_draw_what_they_draw_alone():
    models = [AdapterClassifier(**OWN, adapter=LoRA(r, dropout=0.4)) for r in (2, 4)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 2)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_rows_of_a_network_stand_side_by_side(owners):
    route = _shared.Route(torch.device("cpu"), trained=True)
    route.lead(np.array(owners))
    present = route.present.tolist()
    slots = route.slots.view(len(present), -1).tolist()
    assert present == sorted(set(owners))
    for network, rows in zip(present, slots, strict=True):
        assert {owners[row] for row in rows} == {network}
    assert route.slots[route.places].tolist() == list(range(len(owners)))


def test_rows_that_come_mixed_up_are_refused():
    base = torch.nn.Linear(3, 2)
    update = LoRALinear(base, 1, 1.0, 0.0, torch.Generator())
    route = _shared.Route(torch.device("cpu"), trained=True)
    layer = _shared.StackedLoRA(base, [update, None], route)
    route.lead(np.array([0, 1]))
    assert layer(torch.zeros(2, 5, 3)).shape == (2, 5, 2)
    with pytest.raises(ValueError, match="10 rows came to a layer in a batch of 2"):
        layer(torch.zeros(10, 3))


@pytest.mark.parametrize("trained", [True, False])
def test_in_bfloat16_stacked_updates_are_computed_in_float32(trained):
    base = torch.nn.Linear(6, 5)
    for tensor in base.parameters():
        tensor.data.zero_()
    updates = [
        LoRALinear(base, rank, 1.0, 0.0, torch.Generator().manual_seed(rank))
        for rank in (2, 4)
    ]
    for update in updates:
        torch.nn.init.normal_(update.lora_B, generator=torch.Generator().manual_seed(0))
    route = _shared.Route(torch.device("cpu"), trained=trained)
    layer = _shared.StackedLoRA(base, updates, route)
    owners = np.array([0, 1, 0])
    route.lead(owners)
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    for row, owner in enumerate(owners):
        exact = updates[owner].double()(x[row].double())
        gap = (found[row] - exact).abs()
        assert bool((gap <= 2**-8 * exact.abs() + 1e-6).all())  # rounded once


@KINDS
@pytest.mark.parametrize("eliminate", [True, False])
def test_search_finds_what_it_finds_alone(kind, y, eliminate, together, monkeypatch):
    cv = kind(
        **OWN,
        ranks=[1, 2, 4],
        learning_rates=[1e-3, 1e-2],
        cv=4,
        eliminate=eliminate,
    )
    found = clone(cv).fit(TEXTS, y)
    monkeypatch.undo()
    alone = clone(cv).fit(TEXTS, y)
    for name in [f"split{i}_test_score" for i in range(4)]:
        np.testing.assert_allclose(
            found.cv_results_[name], alone.cv_results_[name], atol=1e-6
        )
    assert found.best_params_ == alone.best_params_
    n_splits = found.cv_results_["n_splits"].tolist()
    assert n_splits == alone.cv_results_["n_splits"].tolist()
    assert (found.cv_results_["mean_fit_time"] > 0).all()


@pytest.mark.parametrize(
    "scoring", [lambda m, X, y: -len(pickle.dumps(m)), lambda m, X, y: id(deepcopy(m))]
)
def test_scorer_may_copy_the_model(scoring, together):
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2, scoring=scoring)
    assert np.isfinite(cv.fit(TEXTS, LABELS).best_score_)


def test_scorers_are_asked_one_by_one(together):
    main = threading.current_thread()

    def score(model, X, y):
        return float(threading.current_thread() is main)

    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2, scoring=score)
    assert cv.fit(TEXTS, LABELS).best_score_ == 1.0


def test_only_fits_that_can_share_passes_are_alive_together(together, stacked):
    alive = []

    def score(model, X, y):
        networks = [o for o in gc.get_objects() if type(o) is AdapterNetwork]
        alive.append(len(networks))
        return 1.0

    cv = AdapterClassifierCV(
        **OWN, adapters=["full", "hira"], layers=[1, 2], cv=2, scoring=score
    )
    gc.collect()
    before = len([o for o in gc.get_objects() if type(o) is AdapterNetwork])
    cv.set_params(ranks=[2], refit=False).fit(TEXTS, LABELS)
    assert max(alive) <= before + 2
    assert not stacked


@pytest.mark.parametrize(
    ("sizes", "ranks"), [([11, 12], [1, 2]), ([13, 11, 12], [3, 4, 1, 2])]
)
def test_candidates_that_all_fail_in_one_round(sizes, ranks, together, monkeypatch):
    def score(model, X, y):
        if len(X) == 10 + model.rank:
            raise ValueError(f"not rank {model.rank}")
        return -float(model.rank)

    folds = [(np.arange(20), np.arange(20, 20 + size)) for size in sizes]
    own = {"ranks": ranks, "cv": folds, "eliminate": len(ranks) > 2}
    for _ in range(2):  # together, and one by one
        first = pytest.warns(FitFailedWarning, match="fold .* out: not rank 1")
        with first, pytest.raises(ValueError, match="not rank 2") as caught:
            AdapterClassifierCV(**OWN, **own, scoring=score).fit(TEXTS, LABELS)
        assert hasattr(caught.value, "__notes__") == own["eliminate"]
        monkeypatch.undo()


def test_candidates_train_together_where_there_is_a_gpu_and_no_callback(monkeypatch):
    def asks(**params):
        return AdapterClassifierCV("tiny", **params)._trains_together()

    assert not asks(device="cpu")
    monkeypatch.setattr(
        "skpeft._device.resolve_device", lambda device: torch.device("cuda")
    )
    assert asks()
    assert not asks(n_jobs=2)
    assert not asks(callback=print)
    assert not asks(verbose=1)


def test_rounds_hold_folds_of_equally_many_candidates():
    cv = AdapterClassifierCV("tiny")
    assert cv._rounds([4, 2, 2, 1, 1], True) == [[0], [1, 2], [3, 4]]
    assert cv._rounds([2, 2, 2], True) == [[0, 1, 2]]


def test_processes_get_the_fits_of_a_round_at_once():
    cv = AdapterClassifierCV("tiny", n_jobs=2)
    assert cv._rounds([2, 1, 1], False) == [[0], [1, 2]]
    assert AdapterClassifierCV("tiny")._rounds([2, 1, 1], False) == [[0], [1], [2]]


def test_settings_of_scikit_learn_hold_in_the_threads():
    with config_context(assume_finite=True, display="text"):
        found = run_together([lambda learn: get_config()] * 2)
    assert [(c["assume_finite"], c["display"]) for c in found] == [(True, "text")] * 2


@pytest.mark.parametrize("epoch", [1, 3])
def test_interrupt_ends_all_fits(epoch, together, monkeypatch):
    cv = AdapterClassifierCV(**OWN, ranks=[2, 4], cv=2).fit(TEXTS, LABELS)
    n_threads = threading.active_count()
    steps, step = [], _training.update

    def interrupted(*args):
        steps.append(1)
        if len(steps) == epoch:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(_training, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cv.fit(TEXTS, LABELS)
    assert len(steps) <= epoch + 1
    assert threading.active_count() == n_threads
    with pytest.raises(NotFittedError):
        cv.predict(TEXTS)


def test_thread_that_cannot_start_ends_the_others(monkeypatch):
    class Few(_lockstep.ThreadPoolExecutor):
        def submit(self, run, attend, seat, job):
            if seat == 1:
                raise RuntimeError("can't start new thread")
            return super().submit(run, attend, seat, job)

    monkeypatch.setattr(_lockstep, "ThreadPoolExecutor", Few)
    models = [AdapterClassifier(**OWN, rank=rank) for rank in (1, 2)]
    with pytest.raises(RuntimeError, match="start new thread"):
        run_together(fits(models, [(TEXTS, LABELS)] * 2))


def test_interrupt_counts_while_a_step_runs():
    lockstep, error = Lockstep(1), KeyboardInterrupt()
    thread = threading.Thread(target=lockstep.stop, args=(error,))
    with lockstep._meeting:  # as whoever runs a step
        thread.start()
        thread.join(0.2)
        assert lockstep._stopped is error
    thread.join()


class FlippingBlock(_tiny.Block):
    """Turns the order of rows, and back."""

    def forward(self, hidden, mask):
        return super().forward(hidden.flip(0), mask.flip(0)).flip(0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_encoder_that_mixes_rows_is_noticed_and_does_not_stack(
    precision, monkeypatch, stacked
):
    monkeypatch.setattr(_tiny, "Block", FlippingBlock)
    own = OWN | {"encoder": TinyTextEncoder(seed=987), "precision": precision}
    models = [AdapterClassifier(**own, rank=rank) for rank in (2, 4)]
    assert_as_alone(models, [(TEXTS, LABELS)] * 2)
    assert set(stacked) == {1}
