"""What adapter="auto" trains, and weights that are computed once for all."""

import copy
import gc
import threading

import numpy as np
import pytest
import torch

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._cache import STATES
from skpeft.adapters import Adapter, BitFit, HiRA, LoRA, ReweightedLayer
from skpeft.adapters.hira import HiRALinear
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders import ArrayEncoder

WORDS = ["good", "bad", "odd", "fine", "poor", "strange", "nice", "awful", "unusual"]


def texts(n):
    return [f"{WORDS[i % 9]} {i}" for i in range(n)]


def labels(n, n_classes=5):
    return np.arange(n) % n_classes


def fitted(n=15, n_classes=5, **parameters):
    options = {"random_state": 0, "shrinkage": 0.0, **parameters}
    return AdapterClassifier("tiny", **options).fit(texts(n), labels(n, n_classes))


@pytest.mark.parametrize(
    ("n", "n_classes"), [(15, 5), (79, 5), (1000, 5), (300, 4), (150, 10)]
)
def test_with_few_rows_or_many_or_few_classes_it_is_lora(n, n_classes):
    clf, plain = fitted(n, n_classes), fitted(n, n_classes, adapter="lora")
    assert repr(clf._network.adapter) == "LoRA()"
    assert clf._network.layers == "auto"
    np.testing.assert_array_equal(clf.transform(texts(9)), plain.transform(texts(9)))


def test_one_rare_class_suffices_for_lora():
    y = np.append(np.repeat(np.arange(5), 40), [5] * 15)
    clf = AdapterClassifier("tiny", max_epochs=1, shrinkage=0.0)
    assert repr(clf.fit(texts(215), y)._network.adapter) == "LoRA()"
    more = clf.fit([*texts(215), "odd"], np.append(y, 5))
    assert repr(more._network.adapter) == "HiRA()"


# Three steps, and 24: so many of the contrastive loss go at twice the adapter's own rate.
@pytest.mark.parametrize(("n", "pace"), [(80, 2.4), (999, 2.0)])
def test_many_classes_with_some_dozen_rows_get_hira_in_all_blocks(n, pace):
    clf = fitted(n)
    own = {"adapter": "hira", "layers": None, "max_epochs": 3}
    plain = fitted(n, learning_rate=pace * HiRA().default_learning_rate, **own)
    assert repr(clf._network.adapter) == "HiRA()"
    assert clf._network.layers is None
    assert clf.n_epochs_ == 3
    np.testing.assert_array_equal(clf.transform(texts(9)), plain.transform(texts(9)))


def test_what_the_user_says_holds():
    clf = fitted(260, layers=1, max_epochs=1)
    assert repr(clf._network.adapter) == "HiRA()"
    assert clf._network.layers == 1
    assert clf.n_epochs_ == 1
    assert isinstance(fitted(260, adapter=LoRA())._network.adapter, LoRA)


def test_rank_that_is_given_is_that_of_lora():
    clf = fitted(260, rank=4, max_epochs=1)
    assert repr(clf.adapter_) == "LoRA(rank=4)"
    assert clf._network.layers == "auto"


def test_objectives_that_do_not_contrast_classes_keep_lora():
    X, y = texts(260), labels(260)
    clf = AdapterClassifier("tiny", objective="cross_entropy", max_epochs=1)
    assert isinstance(clf.fit(X, y)._network.adapter, LoRA)
    several = np.stack([y == 0, y < 2], axis=1).astype(int)
    clf = AdapterClassifier("tiny", max_epochs=1).fit(X, several)
    assert isinstance(clf._network.adapter, LoRA)
    reg = AdapterRegressor("tiny", max_epochs=1).fit(X, y.astype(float))
    assert isinstance(reg._network.adapter, LoRA)


@pytest.mark.parametrize(("first", "then", "kind"), [(20, 300, LoRA), (300, 20, HiRA)])
def test_warm_start_goes_on_with_what_was_trained(first, then, kind):
    clf = fitted(first, warm_start=True)
    n_epochs = clf.n_epochs_
    clf.fit(texts(then), labels(then))
    assert isinstance(clf._network.adapter, kind)
    assert clf.n_epochs_ > n_epochs


def test_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"one of \['auto', .*'hira'"):
        fitted(adapter="automatic")


# Weights that are computed once


@pytest.fixture
def hira():
    skpeft.clear_cache()
    yield fitted(adapter=HiRA(2), layers=None, max_epochs=2)
    skpeft.clear_cache()


def products(monkeypatch):
    """List that grows by one with each weight that is computed."""
    calls, plain = [], HiRALinear.product

    def counted(layer):
        calls.append(layer)
        return plain(layer)

    monkeypatch.setattr(HiRALinear, "product", counted)
    return calls


def test_weights_are_computed_once_and_kept_within_the_limit(hira, monkeypatch):
    calls = products(monkeypatch)
    X = [f"{word} {'long ' * i}" for i in range(40) for word in WORDS]
    STATES.clear()
    expected = hira.transform(X)  # some groups of tokens
    n_layers = len(hira._network.live.reweighted)
    assert len(calls) == n_layers > 0
    np.testing.assert_array_equal(hira.transform(X), expected)
    hira.transform(X[:1])
    assert len(calls) == n_layers
    with skpeft.config_context(cache_bytes=0):
        np.testing.assert_array_equal(hira.transform(X), expected)
        np.testing.assert_array_equal(hira.transform(X), expected)
    assert len(calls) == 3 * n_layers
    assert all(part.ready is None for part in hira._network.live.reweighted)


def test_training_computes_each_weight_once_a_step(monkeypatch):
    calls = products(monkeypatch)
    X = [f"{word} {'long ' * i}" for i in range(9) for word in WORDS]
    clf = AdapterClassifier(
        "tiny",
        adapter=HiRA(2),
        layers=None,
        max_epochs=1,
        shrinkage=0.0,
        batch_size=128,
    ).fit(X, labels(81))
    network = clf._network
    assert (
        len([*network.live.groups(network.live.lengths(network.live.prepare(X)))]) > 1
    )
    # One step, and once without gradients for the head.
    assert len(calls) == 2 * len(network.live.reweighted)


def test_weights_follow_what_is_trained(hira):
    X, network = texts(9), hira._network
    before = hira.transform(X)
    state = network.state()
    network.live.load_state({n: 2 * a if "_B" in n else a for n, a in state.items()})
    doubled = hira.transform(X)
    assert np.abs(doubled - before).max() > 1e-6
    other = copy.deepcopy(hira)
    np.testing.assert_array_equal(other.transform(X), doubled)
    network.live.load_state(state)
    np.testing.assert_array_equal(hira.transform(X), before)
    np.testing.assert_array_equal(other.transform(X), doubled)


def test_weights_follow_a_fused_optimizer(hira):
    X, network = texts(9), hira._network
    before = hira.transform(X)
    optimizer = torch.optim.AdamW(network.live.trainable().values(), lr=0.1, fused=True)
    items = network.live.prepare(X)
    network.live.forward(items).square().sum().backward()
    optimizer.step()
    after = hira.transform(X)
    assert np.abs(after - before).max() > 1e-3
    STATES.clear()
    np.testing.assert_array_equal(hira.transform(X), after)


def test_each_network_has_weights_of_its_own(hira):
    other = fitted(adapter=HiRA(2), layers=None, max_epochs=2, random_state=1)
    X = texts(9)
    alone = [clf.transform(X) for clf in (hira, other)]
    for _ in range(2):
        for clf, expected in zip((hira, other), alone, strict=True):
            np.testing.assert_array_equal(clf.transform(X), expected)
    assert np.abs(alone[0] - alone[1]).max() > 1e-6


def test_threads_predict_the_same(hira):
    X = texts(60)
    expected, found = hira.transform(X), []
    STATES.clear()
    threads = [
        threading.Thread(target=lambda: found.append(hira.transform(X)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for features in found:
        np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-7)


class Shifted(ReweightedLayer):
    """A weight from a product of matrices, which autocast would round."""

    def __init__(self, base):
        super().__init__(base)
        self.left = torch.nn.Parameter(torch.full((len(base.weight), 2), 0.01))
        self.right = torch.nn.Parameter(torch.full((2, base.weight.shape[1]), 0.33))

    def product(self):
        return self.base.weight + self.left @ self.right


class Shift(Adapter):
    def target_roles(self):
        return ("query",)

    def wrap(self, layer, role, generator):
        return Shifted(layer)


def test_autocast_of_the_caller_leaves_no_rounded_weight_behind():
    clf = fitted(adapter=Shift(), layers=None, max_epochs=1)
    STATES.clear()
    expected = clf.transform(texts(9))
    STATES.clear()
    with torch.autocast("cpu", torch.bfloat16):
        clf.transform(texts(9))
    np.testing.assert_array_equal(clf.transform(texts(9)), expected)


def test_gradients_are_those_of_a_step_that_keeps_no_activations(monkeypatch):
    def grads(n_kept):
        monkeypatch.setattr("skpeft._live.TOKENS_KEPT", n_kept)
        network = fitted(adapter=HiRA(2), layers=None, max_epochs=1)._network
        items = network.live.prepare(texts(20))
        with network.live.own_context():
            network.live.forward(items).square().sum().backward()
        return {n: t.grad for n, t in network.live.trainable().items()}

    plain, lean = grads(10**6), grads(8)
    assert plain.keys() == lean.keys()
    for name, grad in plain.items():
        np.testing.assert_allclose(grad, lean[name], rtol=1e-4, atol=1e-5)
        assert grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:precision='bfloat16'")
def test_bfloat16_weights_are_computed_in_float32():
    clf = fitted(adapter=HiRA(2), layers=None, max_epochs=1, precision="bfloat16")
    layer = clf._network.live.reweighted[0]
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.product()
    assert weight.dtype == torch.float32
    assert torch.equal(weight, layer.product())
    found = fitted(adapter=HiRA(2), layers=None, max_epochs=1).transform(texts(9))
    np.testing.assert_allclose(clf.transform(texts(9)), found, atol=0.1)


class Own(HiRALinear):
    """Computes a weight that is a parameter itself."""

    def __init__(self, base):
        super().__init__(base, 1, torch.Generator())
        self.own = torch.nn.Parameter(2.0 * base.weight.detach())

    def product(self):
        return self.own


class OwnWeights(HiRA):
    def wrap(self, layer, role, generator):
        return Own(layer)


def test_weight_may_be_a_parameter():
    clf = fitted(adapter=OwnWeights(1), layers=None, max_epochs=1)
    X, names = texts(9), set(clf._network.live.trainable())
    before = clf.transform(X)
    assert set(clf._network.live.trainable()) == names
    assert any(name.endswith(".own") for name in names)
    np.testing.assert_array_equal(copy.deepcopy(clf).transform(X), before)


def test_wide_networks_come_back_from_a_pickle_and_a_folder(tmp_path):
    clf = fitted(260)
    clf.save_pretrained(tmp_path / "model")
    X = texts(30)
    for other in (
        copy.deepcopy(clf),
        AdapterClassifier.from_pretrained(tmp_path / "model"),
    ):
        np.testing.assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
        assert other.adapter == "auto"


def test_texts_about_labels_are_no_rows():
    hints = {i: ["some words"] * 22 for i in range(5)}
    assert repr(fitted(50, label_texts=hints).adapter_) == "LoRA()"
    hints = {i: ["some words"] for i in range(5)}
    assert repr(fitted(160, label_texts=hints).adapter_) == "HiRA()"
    assert repr(fitted(999, label_texts=hints, max_epochs=1).adapter_) == "HiRA()"


class Scaled(torch.nn.Linear):
    """Computes in its own way."""

    def forward(self, x):
        return 3 * super().forward(x)


class Rows(torch.nn.Module):
    """Three layers, of which the last is no plain one."""

    def __init__(self):
        super().__init__()
        kinds = torch.nn.Linear, torch.nn.Linear, Scaled
        names = "first", "second", "third"
        for name, kind in zip(names, kinds, strict=True):
            self.add_module(name, kind(4, 4))

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("n", [100, 165])
def test_encoder_without_the_roles_of_lora_is_refused_for_any_number_of_rows(n):
    table = {"blocks": "", "ffn_in": "first", "ffn_out": "second"}
    encoder = skpeft.encoders.ArrayEncoder(Rows(), role_table=table)
    X = np.random.RandomState(0).randn(n, 4)
    with pytest.raises(ValueError, match="'query' is not a known role"):
        AdapterClassifier(encoder).fit(X, labels(n))


@pytest.mark.parametrize(
    "role", [{"ffn_in": "third"}, {"ffn_in": "first"}, {"ffn_in": "nothing"}], ids=str
)
def test_auto_is_lora_where_hira_cannot_be(role):
    table = {"blocks": "", "query": "first", "value": "second", **role}
    encoder = skpeft.encoders.ArrayEncoder(Rows(), role_table=table)
    X, y = np.random.RandomState(0).randn(160, 4), labels(160)
    clf = AdapterClassifier(encoder, max_epochs=2, random_state=0).fit(X, y)
    assert repr(clf.adapter_) == "LoRA()"
    with pytest.raises(ValueError, match=r"HiRA|role table"):
        clf.set_params(adapter="hira").fit(X, y)


def test_auto_stands_alone():
    with pytest.raises(
        ValueError, match=r"'auto' is not a known adapter; .*\['bitfit'"
    ):
        fitted(adapter=["auto"])


def test_the_trained_spec_is_an_attribute_of_a_fitted_estimator():
    clf = AdapterClassifier("tiny", rank=3)
    assert not hasattr(clf, "adapter_")
    clf.fit(texts(15), labels(15))
    assert repr(clf.adapter_) == "LoRA(rank=3)"
    assert fitted(adapter=None).adapter_ is None


def test_kept_weights_go_with_their_network(hira):
    STATES.clear()
    hira.transform(texts(9))
    other = copy.deepcopy(hira)
    other.transform(texts(9))
    n_bytes = skpeft.cache_info().n_bytes
    del other
    gc.collect()
    weights = [part.base.weight for part in hira._network.live.reweighted]
    assert weights
    n_freed = n_bytes - skpeft.cache_info().n_bytes
    assert n_freed > sum(weight.nbytes for weight in weights)
    assert skpeft.cache_info().n_bytes <= skpeft.cache_info().limit


class Low(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.a = torch.nn.Parameter(torch.full((base.out_features, 1), 0.1))
        self.b = torch.nn.Parameter(torch.zeros(1, base.in_features))


class InParts(ReweightedLayer):
    """Its parameters are those of a module inside."""

    def __init__(self, base):
        super().__init__(base)
        self.low = Low(base)

    def product(self):
        return self.base.weight + self.low.a @ self.low.b


class InnerModules(HiRA):
    def wrap(self, layer, role, generator):
        return InParts(layer)


def test_weights_follow_parameters_of_inner_modules():
    clf = fitted(adapter=InnerModules(1), shrinkage="auto", max_epochs=4)
    before = clf.transform(texts(9))
    STATES.clear()
    np.testing.assert_array_equal(clf.transform(texts(9)), before)


def test_bank_computes_each_weight_once(monkeypatch):
    models = {
        str(seed): fitted(adapter=HiRA(2), layers=None, max_epochs=2, random_state=seed)
        for seed in range(2)
    }
    X = [f"{word} {'long ' * i}" for i in range(40) for word in WORDS]
    bank = skpeft.AdapterBank(models)
    bank.transform(X[:2])
    STATES.clear()
    calls = products(monkeypatch)
    found = bank.transform(X)
    assert len(calls) == 2 * len(models["0"]._network.live.reweighted)
    for name, clf in models.items():
        np.testing.assert_allclose(found[name], clf.transform(X), rtol=1e-5, atol=1e-6)


LORAS = [LoRA(4), LoRA(4, use_dora=True), LoRA(1, roles=None, rank_stabilized=True)]


def unmerged(network, X):
    """Features by the layers that training uses."""
    live = network.live
    with live.dropout(None), live.own_context():  # which keeps gradients
        return live.forward(live.prepare(X)).detach().numpy()


@pytest.mark.parametrize("adapter", LORAS, ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.filterwarnings("ignore:precision='bfloat16'")
def test_predictions_merge_low_rank_updates(adapter, precision):
    clf = fitted(adapter=adapter, layers=None, max_epochs=2, precision=precision)
    parts = clf._network.live.reweighted
    assert parts
    assert all(part.takes_weight(training=False) for part in parts)
    assert not any(part.takes_weight(training=True) for part in parts)
    X = texts(20)
    expected = unmerged(clf._network, X)
    gap = np.abs(clf.transform(X) - expected).max() / np.abs(expected).max()
    assert gap <= {"float32": 1e-5, "float64": 1e-13, "bfloat16": 0.03}[precision]
    frozen = AdapterClassifier("tiny", adapter=None).fit(X, labels(20)).transform(X)
    assert np.abs(expected - frozen).max() > 1e-2


def test_merged_weights_follow_further_training():
    clf = fitted(adapter=LoRA(4), max_epochs=2, warm_start=True)
    before = clf.transform(texts(9))
    clf.fit(texts(20), labels(20))
    after = clf.transform(texts(9))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, unmerged(clf._network, texts(9)), atol=1e-5)


def test_update_around_another_adapter_is_not_merged():
    clf = fitted(adapter=[BitFit(), LoRA(4)], layers=None, max_epochs=2)
    parts = clf._network.live.reweighted
    assert parts
    assert not any(part.takes_weight(training=False) for part in parts)
    np.testing.assert_array_equal(
        clf.transform(texts(9)), unmerged(clf._network, texts(9))
    )


def test_threads_have_merged_weights_of_their_own():
    """What one thread lends to layers, another one that trains does not see."""
    network = fitted(adapter=LoRA(4), max_epochs=2)._network
    part, seen = network.live.reweighted[0], []
    with torch.no_grad(), network.live.ready():
        thread = threading.Thread(target=lambda: seen.append(part.ready))
        thread.start()
        thread.join()
        assert part.ready is not None
    assert seen == [None]
    assert part.ready is None


class Cautious(torch.nn.Module):
    """Blocks that leave autocast around a layer, and one more thing that they do."""

    class Block(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.q = torch.nn.Linear(width, width)

        def forward(self, hidden):
            with torch.autocast("cpu", enabled=False):
                return hidden.float() + torch.tanh(self.q(hidden.float()))

    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Linear(4, 16)
        self.blocks = torch.nn.ModuleList(self.Block(16) for _ in range(3))

    def forward(self, x):
        hidden = self.emb(x)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def fitted_on(module, adapter, **parameters):
    """Fitted network and rows."""
    X = np.random.RandomState(0).randn(30, 4)
    encoder = ArrayEncoder(module, role_table={"blocks": "blocks", "query": "q"})
    clf = AdapterClassifier(encoder, adapter=adapter, random_state=0, **parameters)
    return clf.fit(X, labels(30)), X


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(roles=["query"]),
        LoRA(roles=["query"], use_dora=True),
        HiRA(4, roles=["query"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:precision='bfloat16'")
def test_merged_weights_serve_layers_outside_of_autocast(adapter):
    clf, X = fitted_on(Cautious(), adapter, precision="bfloat16", shrinkage=0.0)
    np.testing.assert_allclose(clf.transform(X), unmerged(clf._network, X), atol=0.05)


def doubled(module, args, output):
    return 2 * output


def shift(module, args):
    return (args[0] + 1,)


@pytest.mark.parametrize("how", ["hook", "pre-hook", "own forward"])
def test_layers_that_do_more_than_their_weight_says_are_not_merged(how):
    module = Cautious()
    for block in module.blocks:
        if how == "hook":
            block.q.register_forward_hook(doubled)
        elif how == "pre-hook":
            block.q.register_forward_pre_hook(shift)
        else:
            block.q.forward = torch.tanh
    clf, X = fitted_on(module, LoRA(roles=["query"]), shrinkage=0.0)
    np.testing.assert_allclose(clf.transform(X), unmerged(clf._network, X), atol=1e-5)
    with pytest.raises(ValueError, match="computes in its own way"):
        fitted_on(module, HiRA(4, roles=["query"]))


class Gated(LoRA):
    def wrap(self, layer, role, generator):
        return GatedLinear(layer, self.rank, self.scaling, self.dropout, generator)


class GatedLinear(LoRALinear):
    def update(self, x):
        return 3 * torch.tanh(super().update(x))


def test_subclass_with_another_update_predicts_with_it():
    clf = fitted(adapter=Gated(4), layers=None, max_epochs=2)
    found, X = clf.transform(texts(9)), texts(9)
    np.testing.assert_array_equal(found, unmerged(clf._network, X))
    assert all(part.merged() is None for part in clf._network.live.reweighted)


def test_rows_of_dora_keep_their_lengths_under_autocast():
    layer = torch.nn.Linear(64, 64)
    generator = torch.Generator().manual_seed(0)
    dora = LoRA(use_dora=True).wrap(layer, "query", generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dora.factor(), torch.ones(64))
        weight = dora.product()
    assert torch.equal(weight, layer.weight)


def test_gradients_inside_of_a_prediction_take_no_lent_weight():
    network = fitted(adapter=LoRA(4), layers=None, max_epochs=1)._network
    items = network.live.prepare(texts(9))
    with torch.no_grad(), network.live.ready(), torch.enable_grad():
        assert network.live.forward(items).requires_grad


def test_bank_makes_only_the_weights_that_are_asked_for(monkeypatch):
    models = {
        str(seed): fitted(adapter=HiRA(2), layers=None, max_epochs=1, random_state=seed)
        for seed in range(3)
    }
    bank = skpeft.AdapterBank(models)
    bank.transform(texts(2))
    STATES.clear()
    calls = products(monkeypatch)
    bank.predict(texts(2), task=["1", "1"])
    n_layers = len(models["1"]._network.live.reweighted)
    assert len(calls) == n_layers
    monkeypatch.setattr("skpeft._shared._MERGED_AT_ONCE", 1)
    found = bank.transform(texts(9))
    assert len(calls) > n_layers
    for name, clf in models.items():
        np.testing.assert_allclose(
            found[name], clf.transform(texts(9)), rtol=1e-5, atol=1e-6
        )
