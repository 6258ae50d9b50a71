"""Resuming from hidden states below the first adapted block changes no feature."""

import copy
import gc
import pickle
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from sklearn.base import clone
from torch import nn

from skpeft import (
    AdapterClassifier,
    AdapterRegressor,
    _cache,
    _live,
    _prefix,
    cache_info,
    clear_cache,
    config_context,
)
from skpeft._cache import WEIGHTS, StateCache
from skpeft._network import AdapterNetwork
from skpeft.adapters import Bottleneck, Combination, LadderSide, LoRA
from skpeft.encoders import FAMILIES, ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.encoders.base import Seal
from tests import models

LABELS = np.arange(len(models.TEXTS)) % 2


def network_of(encoder, layers=1, adapter=None, n_features=1, precision="float32"):
    network = AdapterNetwork(
        encoder,
        adapter or LoRA(2),
        layers,
        n_features=n_features,
        device="cpu",
        precision=precision,
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.live.trainable().values():
        tensor.data.normal_(std=0.3, generator=generator)
    return network


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_cache()
    yield
    clear_cache()


def whole(network, items):
    """Features of each item by itself, through all blocks."""
    with torch.no_grad():
        rows = [network.live.module(network.live._collate([item])) for item in items]
    return torch.cat(rows).numpy()


def check_resumed(network, samples):
    """Features are those of all blocks, and come from what is kept."""
    items = network.live.prepare(samples)
    expected = whole(network, items)
    network.live.remember(items)
    assert network.live.resumes
    assert cache_info().n_samples == len({_live.content(item) for item in items})
    lower_calls = []
    root = network.live.module.get_submodule(network.live.backbone.root)
    blocks = root.get_submodule(network.live.backbone.role_table["blocks"])
    hook = blocks[0].register_forward_hook(lambda *_: lower_calls.append(1))
    found = network.live.features(items)
    chosen = [2, 0, *range(3, len(items))]
    some = network.live.features([items[i] for i in chosen])
    hook.remove()
    assert lower_calls == []
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * size)
    np.testing.assert_allclose(some, expected[chosen], atol=1e-5 * size)
    with config_context(cache_bytes=0):
        np.testing.assert_array_equal(network.live.features(items), found)


def skip_with_attention(family):
    if family == "electra" and transformers.__version__.startswith("4."):
        pytest.skip("blocks give attention weights too, so all of them always run")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2, [1]], ids=str)
def test_resumed_features_of_every_family_are_those_of_all_blocks(
    plain_folder, family, layers
):
    if family == "albert":
        pytest.skip("no block lies below another: all are one")
    skip_with_attention(family)
    check_resumed(
        network_of(TextEncoder(str(plain_folder(family))), layers), models.TEXTS
    )


@pytest.mark.parametrize("family", [*FAMILIES, "tiny"])
@pytest.mark.parametrize("layers", [None, "auto", [0]], ids=str)
def test_blocks_that_are_only_read_run_once(plain_folder, family, layers):
    if family == "albert" and layers == [0]:
        pytest.skip("all blocks are one, so none can be chosen")
    skip_with_attention(family)
    own = family == "tiny"
    encoder = TinyTextEncoder() if own else TextEncoder(str(plain_folder(family)))
    network = network_of(encoder, layers, LadderSide(8))
    items = network.live.prepare(models.TEXTS)
    expected = whole(network, items)
    end = network.live.backbone.role_table["ffn_out"]
    calls = []
    hooks = [
        part.register_forward_hook(lambda *_: calls.append(1))
        for path, part in network.live.module.named_modules()
        if path.endswith(f".{end}")
    ]
    assert hooks
    network.live.remember(items)
    calls.clear()
    found = network.live.forward(items)
    assert bool(calls) == (layers == [0])  # what lies above still runs
    gradients = torch.autograd.grad(
        found.square().sum(), list(network.live.trainable().values())
    )
    for hook in hooks:
        hook.remove()
    size = np.abs(expected).max()
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5 * size)
    network.live._halves, network.live.resumes = None, False
    plain = torch.autograd.grad(
        network.live.forward(items).square().sum(),
        list(network.live.trainable().values()),
    )
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max())


def test_blocks_beside_which_others_train_are_not_taken_as_read():
    adapter = Combination([LadderSide(8), LoRA(2)])
    network = network_of(TinyTextEncoder(), layers=None, adapter=adapter)
    items = network.live.prepare(models.TEXTS)
    network.live.remember(items)
    assert network.live.resumes is False


@pytest.mark.parametrize("pair", ["bi", "cross"])
def test_resumed_features_of_pairs_are_those_of_all_blocks(plain_folder, pair):
    encoder = TextEncoder(str(plain_folder("bert")), pair=pair)
    check_resumed(network_of(encoder, n_features=2), models.PAIRS)


@pytest.mark.parametrize(
    "adapter", [Bottleneck(4), Bottleneck(4, placement="parallel")], ids=str
)
def test_resumed_features_of_other_adapters_are_those_of_all_blocks(adapter):
    check_resumed(network_of(TinyTextEncoder(), adapter=adapter), models.TEXTS)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_resumed_features_of_numbers_are_those_of_all_blocks(precision):
    rows = np.random.RandomState(0).normal(size=(20, 5))
    network = network_of(ArrayEncoder(), n_features=5, precision=precision)
    check_resumed(network, rows)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_texts_that_the_tokenizer_fills_up_on_the_left_are_resumed(
    plain_folder, family
):
    model = models.load(plain_folder(family))
    model[0].tokenizer.padding_side = "left"
    check_resumed(network_of(TextEncoder(model)), models.TEXTS)


def test_resumed_gradients_are_those_of_all_blocks():
    network = network_of(TinyTextEncoder())
    items = network.live.prepare(models.TEXTS)

    def gradients():
        for tensor in network.live.trainable().values():
            tensor.grad = None
        network.live.forward(items).square().sum().backward()
        return [tensor.grad.clone() for tensor in network.live.trainable().values()]

    found = gradients()
    assert network.live.resumes
    network.live._halves, network.live.resumes = None, False
    expected = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adapters_in_the_first_block_leave_nothing_to_resume_from():
    network = network_of(TinyTextEncoder(), layers=None)
    items = network.live.prepare(models.TEXTS)
    network.live.remember(items)
    assert network.live.resumes is False
    assert cache_info().n_samples == 0


@pytest.mark.parametrize("layers", [1, 2])
def test_blocks_whose_attributes_the_model_reads_are_resumed(tmp_path, layers):
    config = transformers.ModernBertConfig(
        vocab_size=len(models.vocabulary("bert")),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    transformers.ModernBertModel(config).save_pretrained(tmp_path)
    models.tokenizer_of("bert").save_pretrained(tmp_path)
    table = {"blocks": "layers", "qkv": "attn.Wqkv"}
    encoder = TextEncoder(str(tmp_path), role_table=table)
    check_resumed(network_of(encoder, layers, LoRA(2, roles=["qkv"])), models.TEXTS)


class MaskOfItsOwn(TinyTextEncoder):
    """Its batches call the mask otherwise, so padding cannot be told from tokens."""

    def load(self, **place):
        backbone = super().load(**place)
        module, collate = backbone.module, backbone.collate

        class Renamed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = module

            def forward(self, batch):
                return self.inner(
                    {"input_ids": batch["input_ids"], "attention_mask": batch["real"]}
                )

        other = copy.copy(backbone)
        other.module = Renamed().eval()
        other.root = "inner"
        other._seal = Seal(other.module)

        def collate_renamed(items):
            batch = collate(items)
            return {"input_ids": batch["input_ids"], "real": batch["attention_mask"]}

        other.collate = collate_renamed
        return other


def test_encoder_that_hides_its_padding_goes_through_all_blocks():
    texts = ["good film", "a bad and very long book that does not end", "tea", "car"]
    clf = AdapterClassifier(MaskOfItsOwn(), layers=1, random_state=0)
    assert clf.fit(texts * 2, [0, 1, 0, 1] * 2).n_epochs_ == 6


class LooksBack(nn.Module):
    """Every block also sees what came before the one below it: no hidden state says all."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, batch):
        hidden = earlier = batch["values"]
        for block in self.blocks:
            hidden, earlier = torch.tanh(block(hidden) + earlier), hidden
        return hidden.mean(dim=1)


def test_model_that_cannot_be_resumed_is_not_halved():
    generator = torch.Generator().manual_seed(0)
    batch = {"values": torch.randn(6, 4, 8, generator=generator)}
    alone = {"values": batch["values"][-1:]}
    assert _prefix.halve(LooksBack(), "blocks", 2, batch, alone) is None


class Passing(nn.Module):
    """Its blocks hand on more than the hidden states of tokens, or something else."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.blocks = nn.ModuleList(PassingBlock(what) for _ in range(3))

    def forward(self, batch):
        hidden = batch["values"].mean(dim=1) if self.what == "rows" else batch["values"]
        for i, block in enumerate(self.blocks):
            if not (self.what == "left out" and i == 1):
                hidden = block(hidden)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden if self.what == "rows" else hidden.mean(dim=1)


class PassingBlock(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.map = what, nn.Linear(8, 8)

    def forward(self, hidden):
        hidden = torch.tanh(self.map(hidden))
        return {"pair": (hidden, hidden.mean()), "nothing": (hidden, None)}.get(
            self.what, hidden
        )


@pytest.mark.parametrize(
    ("what", "halved"),
    [("nothing", True), ("pair", False), ("rows", False), ("left out", False)],
)
def test_blocks_that_hand_on_more_than_hidden_states_are_not_halved(what, halved):
    generator = torch.Generator().manual_seed(0)
    batch = {"values": torch.randn(6, 4, 8, generator=generator)}
    alone = {"values": batch["values"][-1:]}
    found = _prefix.halve(Passing(what), "blocks", 2, batch, alone)
    assert (found is not None) == halved


@pytest.mark.parametrize("estimator", [AdapterClassifier, AdapterRegressor])
def test_fit_does_not_depend_on_what_is_kept(estimator, plain_folder):
    def fitted():
        est = estimator(str(plain_folder("bert")), max_epochs=2, random_state=0)
        return est.fit(models.TEXTS, LABELS)

    with config_context(cache_bytes=0):
        without = fitted()
        assert cache_info().n_samples == 0
    first, again = fitted(), fitted()
    assert cache_info().hits
    for est in (first, again):
        np.testing.assert_array_equal(est.loss_curve_, without.loss_curve_)
        expected = without.transform(models.TEXTS)
        np.testing.assert_array_equal(est.transform(models.TEXTS), expected)


def test_fit_does_not_depend_on_what_was_fitted_before(plain_folder):
    def fitted(texts, labels):
        clf = AdapterClassifier(
            str(plain_folder("mpnet")), max_epochs=2, random_state=0
        )
        return clf.fit(texts, labels)

    alone = fitted(models.TEXTS, LABELS)
    clear_cache()
    for n in (2, 3, 5):  # the same texts in other company
        fitted(models.TEXTS[:n], LABELS[:n])
    after = fitted(models.TEXTS, LABELS)
    expected = alone.transform(models.TEXTS)
    np.testing.assert_array_equal(after.transform(models.TEXTS), expected)


def test_other_estimators_and_predict_find_what_was_kept(plain_folder):
    folder = str(plain_folder("bert"))
    clf = AdapterClassifier(folder, max_epochs=1, random_state=0)
    clf.fit(models.TEXTS, LABELS)
    computed = cache_info().misses
    assert computed == 2 * len(models.TEXTS)  # hidden states and frozen features
    clf.predict(models.TEXTS)
    AdapterClassifier(folder, rank=2, max_epochs=1).fit(models.TEXTS, LABELS)
    AdapterRegressor(folder, adapter="bottleneck", max_epochs=1).fit(
        models.TEXTS, LABELS
    )
    assert cache_info().misses == computed
    clf.set_params(layers=[2]).fit(
        models.TEXTS, LABELS
    )  # from elsewhere in the encoder
    assert cache_info().misses == computed + len(models.TEXTS)


def test_features_without_adapters_are_kept_for_every_way_of_adapting(plain_folder):
    folder = str(plain_folder("bert"))
    frozen = AdapterClassifier(folder, adapter=None).fit(models.TEXTS, LABELS)
    computed = cache_info().misses
    assert computed == len(models.TEXTS)
    expected = frozen.transform(models.TEXTS)
    AdapterClassifier(folder, adapter="ia3", layers=None, max_epochs=1).fit(
        models.TEXTS, LABELS
    )
    assert cache_info().misses == computed
    with config_context(cache_bytes=0):
        anew = frozen.transform(models.TEXTS[::-1])
    np.testing.assert_array_equal(anew[::-1], expected)


def test_text_by_itself_goes_through_all_blocks_at_once(plain_folder):
    clf = AdapterClassifier(str(plain_folder("bert")), max_epochs=1, random_state=0)
    clf.fit(models.TEXTS, LABELS)
    for text in ("good film", "good film " * 12):
        asked = cache_info()
        one = clf.transform([text])
        assert cache_info() == asked
        np.testing.assert_allclose(
            one, clf.transform([text, *models.TEXTS])[:1], atol=1e-5
        )


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "albert"])
def test_text_by_itself_has_the_same_bits_from_what_is_kept(plain_folder, family):
    skip_with_attention(family)
    clf = AdapterClassifier(str(plain_folder(family)), layers=1, max_epochs=1)
    clf.fit(models.TEXTS, LABELS)
    text = "good film " * 12
    alone = clf.transform([text])
    clf.transform([text, *models.TEXTS])  # keeps it
    hits = cache_info().hits
    np.testing.assert_array_equal(clf.transform([text]), alone)
    assert cache_info().hits == hits + clf._network.live.resumes


def test_first_text_of_a_loaded_model_does_not_wait_for_a_trial_of_the_split(
    plain_folder,
):
    clf = AdapterClassifier(str(plain_folder("bert")), layers=1, max_epochs=1)
    loaded = pickle.loads(pickle.dumps(clf.fit(models.TEXTS, LABELS)))
    text = "good film " * 12
    first = loaded.transform([text])
    assert loaded._network.live._halves is None
    loaded.transform([text, *models.TEXTS])
    assert loaded._network.live.resumes
    np.testing.assert_array_equal(loaded.transform([text]), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_has_the_same_bits_whatever_was_fitted_before(plain_folder, family):
    """What another fit has kept was computed in other company."""
    words = np.random.RandomState(0)
    texts = [
        " ".join(words.choice(models.WORDS[:20], words.randint(6, 16)))
        for _ in range(48)
    ]

    def probabilities(step=1, **parameters):
        clf = AdapterClassifier(
            str(plain_folder(family)), random_state=0, batch_size=8, **parameters
        )
        rows = texts[::step]
        return clf.fit(rows, np.arange(len(rows)) % 2).predict_proba(texts)

    first = probabilities(max_epochs=2)
    clear_cache()
    probabilities(3, max_epochs=1)
    np.testing.assert_array_equal(probabilities(max_epochs=2), first)
    with config_context(cache_bytes=0):
        np.testing.assert_array_equal(probabilities(max_epochs=2), first)


def random_texts(lengths, seed=0):
    words = np.random.RandomState(seed)
    return [" ".join(words.choice(models.WORDS[:20], length)) for length in lengths]


def bert_in(folder, **config):
    """Encoder of a BERT of two blocks with random weights, saved in a folder."""
    n_words = len(models.vocabulary("bert"))
    config = transformers.BertConfig(
        vocab_size=n_words, num_hidden_layers=2, max_position_embeddings=64, **config
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    models.tokenizer_of("bert").save_pretrained(folder)
    return TextEncoder(str(folder))


@pytest.mark.parametrize("n_heads", [2, 8])
@pytest.mark.parametrize("n_threads", [1, 2, 16, 64])
def test_what_is_kept_has_the_same_bits_in_any_company(tmp_path, n_threads, n_heads):
    """On many threads short products have pieces of few rows, with bits of their own.

    So have, on several, attention heads of 8 numbers.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    network = network_of(bert_in(tmp_path, num_attention_heads=n_heads, **sizes))
    items = network.live.prepare(random_texts([*range(3, 24)] * 4))
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        halves = network.live._halves_for(items)
        together = network.live.kept(halves.place, items, halves.states)
        features = network.live.frozen_features(items)
        clear_cache()
        for i, item in enumerate(items):
            (alone,) = network.live.kept(halves.place, [item], halves.states)
            assert torch.equal(alone[0], together[i][0])
            np.testing.assert_array_equal(
                network.live.frozen_features([item])[0], features[i]
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "step"), [("text", 2), ("array", 3)])
def test_features_behind_a_single_column_do_not_depend_on_company(kind, step, tmp_path):
    if kind == "text":
        sizes = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 1}
        lengths = np.random.RandomState(5).randint(1, 28, 14)
        encoder, X = bert_in(tmp_path, **sizes), random_texts(lengths, seed=5)
    else:
        torch.manual_seed(17)
        layers = nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2)
        encoder = ArrayEncoder(nn.Sequential(*layers))
        X = np.random.RandomState(17).randn(450, 2)
    clf = AdapterClassifier(encoder, adapter=None).fit(X, np.arange(len(X)) % 2)
    network = clf._network.live
    items = network.prepare(X)
    clear_cache()
    together = network.frozen_features(items)
    clear_cache()
    network.frozen_features(items[::step])
    np.testing.assert_array_equal(network.frozen_features(items), together)


class Whitening(nn.Module):
    """Multiplies embeddings with a matrix that is no parameter."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("W", torch.randn(models.WIDTH, 40, generator=generator))

    def forward(self, features):
        vector = features["sentence_embedding"] @ self.W
        return {**features, "sentence_embedding": vector}


@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize(
    "projection", [lambda: models.modules.Dense(models.WIDTH, 40), Whitening]
)
def test_projections_behind_the_encoder_have_the_same_bits_in_any_company(
    plain_folder, projection, adapter
):
    """They multiply one row an item: of a text by itself a single row."""
    model = models.with_pooling(plain_folder("bert"), normalize=False)
    model.append(projection())
    texts = random_texts([*range(14, 20)] * 4)

    def fitted(rows):
        clf = AdapterClassifier(model, adapter=adapter, max_epochs=1, random_state=0)
        return clf.fit(texts[:rows], np.arange(rows) % 2)

    expected = fitted(24).predict_proba(texts)
    clear_cache()
    other = fitted(2)
    for text in texts:
        other.predict([text])
    np.testing.assert_array_equal(fitted(24).predict_proba(texts), expected)


def test_pairs_with_a_short_text_have_the_same_bits_in_any_company(plain_folder):
    """Each text goes through by itself, so the shorter one decides how many rows are few."""
    network = network_of(
        TextEncoder(str(plain_folder("bert")), pair="bi"), n_features=2
    )
    items = network.live.prepare([("good", text) for text in random_texts([14] * 12)])
    expected = network.live.frozen_features(items)
    clear_cache()
    for item, row in zip(items, expected, strict=True):
        np.testing.assert_array_equal(network.live.frozen_features([item])[0], row)


def test_interrupt_while_something_is_kept_hides_no_bytes(monkeypatch):
    cache, size, calls = StateCache(10_000), _cache._size, []

    def interrupted(tensors):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return size(tensors)

    monkeypatch.setattr(_cache, "_size", interrupted)
    for number in range(3):
        try:
            cache.put(("place", number), [torch.zeros(2000)])
        except KeyboardInterrupt:
            assert len(calls) == 2
    kept = sum(size(tensors) for tensors in cache._entries.values())
    assert kept <= cache.info().n_bytes <= cache.limit


def test_interrupt_inside_of_the_cache_does_not_break_it(monkeypatch):
    cache, size = StateCache(10_000), _cache._size
    for number in range(4):
        cache.put(("place", number), [torch.zeros(100)])

    def interrupted(tensors):
        raise KeyboardInterrupt

    monkeypatch.setattr(_cache, "_size", interrupted)
    with pytest.raises(KeyboardInterrupt), cache.limited(0):
        pass
    monkeypatch.setattr(_cache, "_size", size)
    with cache.limited(0):
        assert cache.info()[:2] == (0, 0)
    cache.put(("place", 0), [torch.zeros(100)])
    assert cache.info()[:2] == (1, size([torch.zeros(100)]))


def test_encoders_do_not_find_each_others_states(plain_folder):
    for seed in (0, 1):
        clf = AdapterClassifier(str(plain_folder("bert", seed)), max_epochs=1)
        clf.fit(models.TEXTS, LABELS)
        assert cache_info().misses == 2 * (seed + 1) * len(models.TEXTS)
    for precision in ("float64", "bfloat16"):
        hits = cache_info().hits
        clf.set_params(precision=precision).fit(models.TEXTS[:5], LABELS[:5])
        assert cache_info().hits > hits  # of its own only
    assert cache_info().misses == 4 * len(models.TEXTS) + 4 * 5


def test_loaded_model_resumes_as_the_fitted_one(plain_folder):
    clf = AdapterClassifier(str(plain_folder("bert")), random_state=0)
    clf.fit(models.TEXTS, LABELS)
    expected = clf.transform(models.TEXTS)
    data = pickle.dumps(clf)
    clear_cache()
    loaded = pickle.loads(data)
    np.testing.assert_array_equal(loaded.transform(models.TEXTS), expected)
    assert loaded._network.live.resumes


def test_drop_waits_where_its_own_thread_holds_the_lock():
    cache = StateCache(10_000)
    cache.put("a", [torch.zeros(4)])
    with cache._lock:  # as where the garbage collector runs inside of `put`
        cache.drop("a")
    assert cache.info().n_samples == 0
    cache.put("b", [torch.zeros(4)])
    cache.drop("b")
    assert cache.get("b") is None


def test_cache_keeps_within_its_limit_and_lets_the_oldest_go():
    cache = StateCache(3 * (1024 + 400))
    for key in "abc":
        cache.put(key, [torch.zeros(100)])
    assert cache.get("a") is not None
    cache.put("d", [torch.zeros(100)])
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    info = cache.info()
    assert (info.n_samples, info.n_bytes) == (3, info.limit)
    cache.put("d", [torch.ones(50)])  # in place of what it had
    assert cache.get("d")[0].sum() == 50
    assert (cache.info().n_samples, cache.info().n_bytes) == (3, info.limit - 200)
    cache.put("e", [torch.zeros(1000)])  # beyond the limit by itself
    assert (cache.info().n_samples, cache.get("e")) == (3, None)
    cache.drop("d")
    cache.drop("d")
    assert (cache.info().n_samples, cache.info().n_bytes) == (2, 2 * (1024 + 400))
    cache.put("f", [torch.zeros(1)])
    with cache.limited(0):
        assert cache.info().n_bytes == 0


def test_keys_take_no_more_than_what_is_counted_for_them(pooled_folder):
    clf = AdapterClassifier(str(pooled_folder()), adapter=None)
    clf.fit(["a b", "c d"], [0, 1])
    texts = random_texts([20] * 200)
    clf.predict(texts[:1])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for text in texts[1:]:
        clf.predict([text])
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before  # without the numbers of tensors
    tracemalloc.stop()
    info = cache_info()
    assert info.n_samples >= len(texts)
    n_bytes = sum(t.nbytes for kept in _cache.STATES._entries.values() for t in kept)
    assert held < info.n_bytes - n_bytes


class Gated(nn.Module):
    """Rows times a single column, and none of them comes out."""

    def __init__(self):
        super().__init__()
        self.inner, self.gate = nn.Linear(25, 64), nn.Parameter(torch.ones(64))

    def forward(self, x):
        inner = self.inner(x)
        return inner * (inner @ self.gate).sigmoid()[:, None]


@pytest.mark.parametrize("n_before", [17, 23, 50])
@pytest.mark.parametrize(
    "build",
    [lambda: nn.Sequential(nn.Linear(25, 64), nn.Tanh(), nn.Linear(64, 1)), Gated],
    ids=["single output", "gated"],
)
def test_module_with_a_single_column_has_the_same_bits_in_any_company(build, n_before):
    reg = AdapterRegressor(ArrayEncoder(build()), adapter=None, random_state=0)
    X = np.random.RandomState(0).randn(403, 25).astype("float32")
    expected = clone(reg).fit(X, X[:, 0]).predict(X)
    clear_cache()
    clone(reg).fit(X[:n_before], X[:n_before, 0])
    again = clone(reg).fit(X, X[:, 0]).predict(X)
    np.testing.assert_array_equal(again, expected)


def test_limits_of_two_threads_end_in_any_order():
    before = cache_info().limit
    first, second = config_context(cache_bytes=5), config_context(cache_bytes=7)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cache_info().limit == 7
    second.__exit__(None, None, None)
    assert cache_info().limit == before


def test_config_context_sets_the_limit_and_takes_it_back():
    before = cache_info().limit
    with pytest.raises(KeyError), config_context(cache_bytes=5):  # noqa: PT012
        assert cache_info().limit == 5
        raise KeyError
    assert cache_info().limit == before


@pytest.mark.parametrize("wrong", [-1, 1.5, "1 GB", None, True], ids=repr)
def test_config_context_refuses_what_is_no_number_of_bytes(wrong):
    with (
        pytest.raises(ValueError, match="cache_bytes="),
        config_context(cache_bytes=wrong),
    ):
        pass


def test_threads_fit_and_predict_with_one_cache(plain_folder):
    folder = str(plain_folder("bert"))

    def fitted(rank):
        clf = AdapterClassifier(folder, rank=rank, max_epochs=2, random_state=0)
        clf.fit(models.TEXTS, LABELS)
        return clf.transform(models.TEXTS)

    expected = [fitted(rank) for rank in (1, 2, 3, 4)]
    clear_cache()
    with config_context(cache_bytes=20_000), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fitted, [1, 2, 3, 4] * 2))
    for one, other in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_that_come_first_to_a_loaded_model_try_it_once(
    plain_folder, monkeypatch
):
    clf = AdapterClassifier(str(plain_folder("bert")), max_epochs=1, random_state=0)
    clf.fit(models.TEXTS, LABELS)
    batches = [models.TEXTS[i:] for i in range(4)] * 4
    expected = [clf.transform(batch) for batch in batches]
    network = pickle.loads(pickle.dumps(clf))._network
    network.live.resumes = None  # not tried yet
    items = [network.live.prepare(batch) for batch in batches]
    trials, halve = [], _prefix.halve

    def slow(*arguments):
        trials.append(1)
        time.sleep(0.05)  # long enough for other threads to come
        return halve(*arguments)

    monkeypatch.setattr(_prefix, "halve", slow)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(network.live.features, items))
    assert network.live.resumes
    assert len(trials) == 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_is_zero_also_beside_rows_without_a_token():
    rows = [torch.zeros(0, 2), torch.ones(2, 2), torch.full((1, 2), 3.0)]
    mask = torch.tensor([[0, 0], [1, 1], [0, 1]]).bool()
    found = _prefix._padded(rows, mask)
    assert found[..., 0].tolist() == [[0, 0], [1, 1], [0, 3]]
    assert not _prefix._padded([torch.zeros(0, 4)] * 2, torch.zeros(2, 3).bool()).any()


def test_merged_weights_of_few_networks_are_kept():
    size = 1024 + 400
    cache = StateCache(32 * size)  # a sixteenth of it are two entries
    for i in range(4):
        cache.put(("sample", i), [torch.zeros(100)])
        cache.put((WEIGHTS, i), [torch.zeros(100)])
    assert [i for i in range(4) if cache.get((WEIGHTS, i)) is not None] == [2, 3]
    assert cache.info() == (4, 6 * size, 32 * size, 0, 0)
    cache.put((WEIGHTS, 4), [torch.zeros(1000)])  # more than that, but the last one
    assert [i for i in range(5) if (WEIGHTS, i) in cache] == [4]
    cache.put((WEIGHTS, 5), [torch.zeros(20_000)])  # beyond the limit itself
    assert (WEIGHTS, 5) not in cache
    assert [i for i in range(4) if ("sample", i) in cache] == [0, 1, 2, 3]


def test_calls_of_another_thread_are_not_taken_for_own_ones():
    blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
    own, other = torch.zeros(1, 2, 3), torch.ones(4, 5, 3)
    with _prefix.noting_calls(blocks) as calls, ThreadPoolExecutor(1) as pool:
        pool.submit(blocks[0], other).result()
        blocks[1](blocks[0](own))
    assert [len(calls[name]) for name in ("0", "1")] == [1, 1]
    assert calls["0"][0][0][0] is own
