"""Many tasks with one encoder: what the estimators say by themselves, in fewer passes."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from skpeft import (
    AdapterBank,
    AdapterClassifier,
    AdapterRegressor,
    _shared,
    clear_cache,
    config_context,
)
from skpeft.adapters import IA3, Bottleneck, LadderSide, LoRA, Prefix
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder, _tiny
from tests import models

TEXTS, PAIRS = models.TEXTS, models.PAIRS
NUMBERS = np.random.RandomState(0).randn(len(TEXTS), 3)
FAMILIES = ("bert", "mpnet", "distilbert", "roberta", "xlm-roberta")
STACKED = {
    "intent": {"adapter": LoRA(4)},
    "tone": {"adapter": LoRA(2, roles=("key", "ffn_out"), alpha=3), "layers": None},
    "priority": {"adapter": LoRA(3, rank_stabilized=True), "layers": 1},
    "plain": {"adapter": None},
}
LOOPED = {
    "intent": {"adapter": LoRA(4)},
    "tone": {"adapter": [IA3(), Prefix(3), LadderSide(8)], "layers": [1, 2]},
    "priority": {"adapter": Bottleneck(4, placement="parallel")},
    "other": {"adapter": "full", "layers": 1},
    "plain": {"adapter": None},
    "plain again": {"adapter": None},
}


def fit_one(encoder, X, i, **parameters):
    common = {"max_epochs": 2, "shrinkage": 0.0, "random_state": i, **parameters}
    if i % 3 == 2:
        return AdapterRegressor(encoder, **common).fit(X, np.arange(len(X)) * 1.0)
    labels = np.array(["a", "b", "c"])[(np.arange(len(X)) + i) % (3 - i % 2)]
    return AdapterClassifier(encoder, **common).fit(X, labels)


def fit(encoder, tasks, X=TEXTS):
    return {
        name: fit_one(encoder, X, i, **parameters)
        for i, (name, parameters) in enumerate(tasks.items())
    }


def assert_equals_single(bank, X):
    found = bank.transform(X)
    for name, estimator in bank.estimators.items():
        np.testing.assert_allclose(
            found[name], estimator.transform(X), rtol=1e-5, atol=1e-5
        )
    predictions, probabilities = bank.predict(X), bank.predict_proba(X)
    assert list(predictions) == list(bank.estimators)
    for name, estimator in bank.estimators.items():
        if isinstance(estimator, AdapterRegressor):
            np.testing.assert_allclose(
                predictions[name], estimator.predict(X), atol=1e-4
            )
            assert name not in probabilities
        else:
            np.testing.assert_array_equal(predictions[name], estimator.predict(X))
            expected = estimator.predict_proba(X)
            np.testing.assert_allclose(probabilities[name], expected, atol=1e-5)


@pytest.fixture(scope="module", params=[*FAMILIES, "options", "bi", "tiny", "array"])
def case(request, plain_folder):
    """Encoder and samples."""
    if request.param in FAMILIES:
        return str(plain_folder(request.param)), TEXTS
    folder = str(plain_folder("bert"))
    return {
        "options": (TextEncoder(folder, max_length=7, prompt="query: "), TEXTS),
        "bi": (TextEncoder(folder), PAIRS),
        "tiny": (TinyTextEncoder(n_layers=3), TEXTS),
        "array": (ArrayEncoder(n_layers=3), NUMBERS),
    }[request.param]


@pytest.mark.parametrize("tasks", [STACKED, LOOPED], ids=["stacked", "looped"])
def test_bank_equals_single_estimators(case, tasks):
    encoder, X = case
    bank = AdapterBank(fit(encoder, tasks, X))
    assert_equals_single(bank, X)
    assert_equals_single(bank, X[1:2])
    assert bank._pass.stacked == (tasks is STACKED)


@pytest.mark.parametrize("tasks", [STACKED, LOOPED], ids=["stacked", "looped"])
def test_mixed_batch_equals_single_estimators(case, tasks):
    encoder, X = case
    bank = AdapterBank(fit(encoder, tasks, X))
    names = np.random.RandomState(0).choice(list(tasks), len(X))
    found = bank.predict(X, task=list(names))
    assert found.dtype == object
    for i, name in enumerate(names):
        expected = bank.estimators[name].predict(X[i : i + 1])[0]
        if not isinstance(expected, str):
            assert found[i] == pytest.approx(expected, abs=1e-4)
        else:
            assert found[i] == expected


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "adapters",
    [
        ("lora", "ladder"),
        ("hira", "ladder"),
        (LadderSide(8), LadderSide(4)),
    ],
    ids=str,
)
def test_networks_that_resume_from_other_states_equal_the_estimators(adapters, order):
    places = zip(adapters, ("auto", 1), strict=True)
    tasks = {f"{i}": {"adapter": a, "layers": n} for i, (a, n) in enumerate(places)}
    fitted = fit(TinyTextEncoder(n_layers=6), tasks)
    assert_equals_single(AdapterBank(dict([*fitted.items()][::order])), TEXTS)


class TwoLists(nn.Module):
    """Two lists of blocks, one after the other."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.first = nn.ModuleList(TwoListsBlock() for _ in range(2))
        self.second = nn.ModuleList(TwoListsBlock() for _ in range(2))

    def forward(self, values):
        hidden = self.embed(values.unsqueeze(-1))
        for block in [*self.first, *self.second]:
            hidden = block(hidden)
        return hidden.mean(dim=1)


class TwoListsBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(16, 16)

    def forward(self, hidden):
        return hidden + torch.tanh(self.map(hidden))


def test_states_of_two_lists_of_blocks_are_not_confused():
    torch.manual_seed(0)
    module, X = TwoLists(), np.random.RandomState(0).randn(40, 4)
    tasks = {
        name: fit_one(
            ArrayEncoder(module, role_table={"blocks": name, "map": "map"}),
            X,
            1,
            adapter=LoRA(2, roles=["map"]),
            layers=[1],
            learning_rate=0.05,
        )
        for name in ("second", "first")
    }
    found = {name: estimator.transform(X) for name, estimator in tasks.items()}
    for name, estimator in tasks.items():
        assert estimator._network.live.resumes
        clear_cache()
        np.testing.assert_array_equal(estimator.transform(X), found[name])
    clear_cache()
    assert_equals_single(AdapterBank(tasks), X)


def counted(bank, monkeypatch):
    """Calls of each block of the frozen encoder, whoever makes them."""
    calls = []
    blocks = bank._pass.parts[0].module.get_submodule("blocks")
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    return calls


def test_blocks_below_the_lowest_adapter_run_once_and_a_mixed_batch_is_one_pass(
    monkeypatch,
):
    tasks = {str(i): {"adapter": LoRA(2), "layers": 1} for i in range(4)}
    encoder = TinyTextEncoder(
        n_layers=3, hidden_size=64
    )  # whose rows go through together
    bank = AdapterBank(fit(encoder, tasks))
    texts = ["good film", "bad book"]
    bank.predict(texts)
    calls = counted(bank, monkeypatch)
    with config_context(cache_bytes=0):
        bank.predict(texts, task=["0", "3"])
        assert calls == [0, 1, 2]
        calls.clear()
        bank.predict(texts)
        assert calls == [0, 1, 2]
    bank.predict(texts)
    calls.clear()
    bank.predict(texts)  # hidden states are kept, for estimators as for the bank
    assert calls == [2]


def test_one_name_gives_what_the_estimator_gives():
    bank = AdapterBank(fit("tiny", STACKED))
    found = bank.predict(TEXTS, task="tone")
    expected = bank.estimators["tone"].predict(TEXTS)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_bank_of_one_and_bank_without_adapters_equal_the_estimators():
    assert_equals_single(AdapterBank(fit("tiny", {"a": {"adapter": LoRA(2)}})), TEXTS)
    plain = {name: {"adapter": None} for name in "abc"}
    bank = AdapterBank(fit("tiny", plain))
    assert_equals_single(bank, TEXTS)
    assert len(bank._pass.networks) == 1


def test_bank_of_a_trained_encoder_and_lora_equals_the_estimators():
    tasks = {"a": {"adapter": "full", "layers": 1}, "b": {"adapter": LoRA(2)}}
    bank = AdapterBank(fit("tiny", tasks))
    assert_equals_single(bank, TEXTS)
    assert not bank._pass.stacked


class Folding(TinyTextEncoder):
    """Its layers see tokens of all rows in a shape of its own, so stacking cannot work."""

    def __init__(self, fold="tokens first", *, n_layers=2):
        super().__init__(n_layers=n_layers)
        self.fold = fold

    def load(self, **place):
        # Built anew: what is loaded by name is shared with other encoders.
        backbone = self._build(place["device"], place["dtype"])
        for block in backbone.module.blocks:
            for role in ("query", "key", "value"):
                setattr(block, role, Folded(getattr(block, role), self.fold))
        table = {**backbone.role_table, "value": "value.layer", "query": "query.layer"}
        return backbone.with_role_table(table)


class Folded(nn.Module):
    def __init__(self, layer, fold):
        super().__init__()
        self.layer, self.fold = layer, fold

    def forward(self, x):
        if self.fold == "tokens first":
            return self.layer(x.transpose(0, 1)).transpose(0, 1)
        flat = x.reshape(-1, x.shape[-1])
        return self.layer(torch.cat([flat, flat[:1]]))[:-1].view_as(x)


@pytest.mark.parametrize("fold", ["tokens first", "one more"])
def test_encoder_whose_layers_see_no_rows_is_not_stacked(fold):
    bank = AdapterBank(fit(Folding(fold), {n: {"adapter": LoRA(2)} for n in "ab"}))
    assert_equals_single(bank, TEXTS)
    assert not bank._pass.stacked


def test_repr_names_the_estimators():
    estimators = fit("tiny", {"tone": {"adapter": None}})
    assert repr(AdapterBank(estimators)) == f"AdapterBank({estimators!r})"


def test_bank_counts_an_estimator_as_it_is_now():
    bank = AdapterBank(fit("tiny", STACKED))
    before = bank.transform(TEXTS)["tone"]
    bank.estimators["tone"].set_params(random_state=9).fit(TEXTS, list("abcabca"))
    assert np.abs(bank.transform(TEXTS)["tone"] - before).max() > 1e-3
    assert_equals_single(bank, TEXTS)


def test_bank_says_which_estimator_is_no_longer_fitted():
    one = AdapterClassifier("tiny", max_epochs=1, random_state=0)
    one.fit(TEXTS, [0, 1] * (len(TEXTS) // 2) + [0] * (len(TEXTS) % 2))
    bank = AdapterBank({"one": one})

    def failing(record):
        raise RuntimeError("callback")

    with pytest.raises(RuntimeError, match="callback"):
        one.set_params(callback=failing).fit(TEXTS[:4], [0, 1, 0, 1])
    with pytest.raises(NotFittedError, match="task 'one' is not fitted"):
        bank.predict(TEXTS)


def test_bank_is_pickled_and_serves_many_threads():
    bank = AdapterBank(fit("tiny", STACKED))
    loaded = pickle.loads(pickle.dumps(bank))
    expected = bank.transform(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(loaded.transform, [TEXTS] * 8):
            for name, features in expected.items():
                np.testing.assert_allclose(found[name], features, atol=1e-6)


def test_estimators_are_as_before():
    estimators = fit("tiny", STACKED)
    before = {name: e.transform(TEXTS) for name, e in estimators.items()}
    AdapterBank(estimators).predict(TEXTS)
    for name, estimator in estimators.items():
        np.testing.assert_array_equal(estimator.transform(TEXTS), before[name])


@pytest.mark.parametrize("given", [{}, [1], {"a": 1}, {1: None}, None], ids=str)
def test_what_is_no_dict_of_estimators_is_refused(given):
    with pytest.raises(TypeError, match="given to AdapterBank"):
        AdapterBank(given)


def test_estimator_that_is_not_fitted_is_refused_by_name():
    fitted = fit("tiny", {"a": {"adapter": None}})
    with pytest.raises(NotFittedError, match="task 'b' is not fitted"):
        AdapterBank({**fitted, "b": AdapterClassifier("tiny")})


def test_models_of_single_texts_and_of_pairs_are_refused_together():
    pair = AdapterClassifier("tiny", adapter=None)
    pair.fit([("a", "b"), ("c", "d")], [0, 1])
    with pytest.raises(ValueError, match=r"'a' reads .* 1 columns.*'b' one of 2"):
        AdapterBank({**fit("tiny", {"a": {"adapter": None}}), "b": pair})


@pytest.mark.parametrize(
    ("encoder", "more", "what"),
    [
        (TinyTextEncoder(seed=1), {}, "encoder or its options"),
        (TinyTextEncoder(max_length=5), {}, "encoder or its options"),
        ("tiny", {"precision": "float64"}, "precision"),
    ],
    ids=str,
)
def test_estimators_on_different_encoders_are_refused_by_name(encoder, more, what):
    one = fit("tiny", {"a": {"adapter": None}})
    other = fit(encoder, {"b": {"adapter": None, **more}})
    with pytest.raises(ValueError, match=rf"tasks 'a' and 'b' differ in {what}"):
        AdapterBank({**one, **other})


def test_tasks_that_are_not_there_or_do_not_fit_the_rows_are_refused():
    bank = AdapterBank(fit("tiny", STACKED))
    with pytest.raises(ValueError, match=r"\['mood'\].*Its tasks are \['intent'"):
        bank.predict(TEXTS, task="mood")
    with pytest.raises(ValueError, match=r"\['mood'\]"):
        bank.predict(TEXTS[:2], task=["tone", "mood"])
    numbered = AdapterBank({"1": bank.estimators["tone"]})
    with pytest.raises(ValueError, match=r"\[1\], which this bank does not have"):
        numbered.predict(TEXTS[:2], task=[1, 1])
    with pytest.raises(ValueError, match=r"shape \(1,\) for 7 rows"):
        bank.predict(TEXTS, task=["tone"])


def test_bank_of_regressors_has_no_probabilities():
    texts = ["good film", "bad film", "good book", "bad book"]
    stars = AdapterRegressor("tiny", max_epochs=1, random_state=0).fit(
        texts, [5, 1, 4, 2]
    )
    assert AdapterBank({"stars": stars}).predict_proba(texts) == {}


def test_task_that_is_added_later_is_answered():
    estimators = fit(TinyTextEncoder(), {"intent": {"adapter": LoRA(2)}})
    bank = AdapterBank(estimators)
    bank.predict(TEXTS)
    bank.estimators["tone"] = fit_one(TinyTextEncoder(), TEXTS, 1, adapter=LoRA(3))
    assert_equals_single(bank, TEXTS)


def test_rows_that_come_mixed_up_are_refused():
    base = nn.Linear(3, 2)
    update = LoRALinear(base, 1, 1.0, 0.0, torch.Generator())
    route = _shared.Route(torch.device("cpu"))
    layer = _shared.StackedLoRA(base, [update, None], route)
    route.assign(np.array([0, 1]))
    assert layer(torch.zeros(2, 5, 3)).shape == (2, 5, 2)
    with pytest.raises(ValueError, match="10 rows came to a layer in a batch of 2"):
        layer(torch.zeros(10, 3))


def test_in_bfloat16_stacked_updates_are_computed_in_float32():
    base = nn.Linear(6, 5)
    for tensor in base.parameters():
        tensor.data.zero_()
    updates = [
        LoRALinear(base, rank, 1.0, 0.0, torch.Generator().manual_seed(rank))
        for rank in (2, 4)
    ]
    for update in updates:
        nn.init.normal_(update.lora_B, generator=torch.Generator().manual_seed(0))
    route = _shared.Route(torch.device("cpu"))
    with torch.no_grad():
        layer = _shared.StackedLoRA(base, updates, route)
    owners = np.array([0, 1, 0])
    route.assign(owners)
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    for row, owner in enumerate(owners):
        exact = updates[owner].double()(x[row].double())
        gap = (found[row] - exact).abs()
        assert bool((gap <= 2**-8 * exact.abs() + 1e-6).all())  # rounded once


class FlippingBlock(_tiny.Block):
    """Turns the order of rows, and back."""

    def forward(self, hidden, mask):
        return super().forward(hidden.flip(0), mask.flip(0)).flip(0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_encoder_that_mixes_rows_is_noticed_and_not_stacked(precision, monkeypatch):
    monkeypatch.setattr(_tiny, "Block", FlippingBlock)
    encoder = TinyTextEncoder(seed=987)
    bank = AdapterBank(
        {
            name: fit_one(encoder, TEXTS, i, rank=2 + i, precision=precision)
            for i, name in enumerate(("one", "two"))
        }
    )
    assert_equals_single(bank, TEXTS)
    assert not bank._pass.stacked
