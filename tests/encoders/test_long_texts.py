"""Texts beyond `max_length`: the warning where they are cut, the windows where not."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from skpeft import (
    AdapterBank,
    AdapterClassifier,
    AdapterRegressor,
    _live,
    cache_info,
    clear_cache,
    config_context,
)
from skpeft._network import AdapterNetwork
from skpeft.adapters import BitFit, LoRA
from skpeft.encoders import FAMILIES, TextEncoder, TinyTextEncoder
from skpeft.encoders._text import POOLINGS
from tests import models

CPU = torch.device("cpu")
LONG = [
    "the good play of a long winter was not bad . " * 4,
    "book",
    "zebra " * 5,
    "a small green tea pot , " * 12,
    "bad film ! " * 3,
]
LABELS = [0, 1, 0, 1, 1]


def load(encoder, n_features=1, dtype=torch.float32):
    return encoder.load(n_features=n_features, device=CPU, dtype=dtype)


def network_of(encoder, adapter=None, n_features=1, precision="float32"):
    """Network whose adapters are not at their start."""
    network = AdapterNetwork(
        encoder,
        adapter or LoRA(2),
        1,
        n_features=n_features,
        device="cpu",
        precision=precision,
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.live.trainable().values():
        tensor.data.normal_(std=0.3, generator=generator)
    return network


def test_pairs_parted_elsewhere_are_no_copies(pooled_folder):
    encoder = TextEncoder(str(pooled_folder()), max_length=8, long_text="chunk")
    network = network_of(encoder, n_features=2).live
    first, second, third = (" ".join([word] * 30) for word in ("film", "book", "tea"))
    pairs = [(f"{first} {second}", third), (first, f"{second} {third}"), (first, third)]
    items = network.prepare([*pairs, *pairs])
    np.testing.assert_array_equal(network.copies(items), [0, 1, 2, 0, 1, 2])


def windows_by_hand(folder, text, max_length):
    """Token ids of the windows, as the tokenizers library cuts them."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer(
        text, truncation=True, max_length=max_length, return_overflowing_tokens=True
    )["input_ids"]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def messages(caught):
    return [str(c.message) for c in caught if "were cut" in str(c.message)]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    words=st.lists(st.sampled_from([*models.WORDS, "zebra"]), max_size=60),
    max_length=st.integers(7, 32),
    prompt=st.sampled_from(["", "query : ", "long winter "]),
    family=st.sampled_from(["bert", "roberta", "qwen3"]),
)
def test_windows_hold_every_token_once_between_prompt_and_special_tokens(
    plain_folder, words, max_length, prompt, family
):
    folder, text = str(plain_folder(family)), " ".join(words)
    tokenizer = models.tokenizer_of(family)

    def bare(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    encoder = TextEncoder(
        folder, max_length=max_length, prompt=prompt, long_text="chunk"
    )
    backbone = load(encoder)
    (item,) = backbone.prepare([text])
    windows = [w["input_ids"].tolist() for w in backbone.windows(item)]
    start, end = [tokenizer.cls_token_id, *bare(prompt)], [tokenizer.sep_token_id]
    assert all(w[: len(start)] == start and w[-1:] == end for w in windows)
    assert [len(w) for w in windows[:-1]] == [max_length] * (len(windows) - 1)
    assert len(windows[-1]) <= max_length
    assert [i for w in windows for i in w[len(start) : -1]] == bare(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_scaled_mean_over_the_tokens_of_all_windows(
    pooled_folder, plain_folder, family
):
    folder = pooled_folder(family, "mean")
    model = AutoModel.from_pretrained(str(plain_folder(family)), dtype=torch.float32)
    expected = []
    for text in LONG:
        windows = windows_by_hand(folder, text, 16)
        with torch.no_grad():
            hidden = [
                model(torch.tensor([ids])).last_hidden_state[0] for ids in windows
            ]
        expected.append(torch.cat(hidden).mean(dim=0).numpy())
    encoder = TextEncoder(str(folder), max_length=16, long_text="chunk")
    clf = AdapterClassifier(encoder, adapter=None).fit(LONG, LABELS)
    np.testing.assert_allclose(clf.transform(LONG), unit(expected), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_features_of_every_pooling_are_the_weighted_mean_of_those_of_windows(
    plain_folder, pooling, normalize
):
    folder = plain_folder("bert")
    options = {"normalize": normalize, "truncate_dim": 10}
    model = models.with_pooling(folder, pooling=pooling, **options)
    expected = []
    for text in LONG:
        windows = windows_by_hand(folder, text, 8)
        rows = []
        for ids in windows:
            ids = torch.tensor([ids])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                features = model[1](model[0](batch))
            rows.append(features["sentence_embedding"][0].numpy())
        expected.append(np.average(rows, axis=0, weights=[len(w) for w in windows]))
    if normalize:
        expected = unit(expected)
    encoder = TextEncoder(model, max_length=8, long_text="chunk")
    clf = AdapterClassifier(encoder, adapter=None).fit(LONG, LABELS)
    found = clf.transform(LONG)
    np.testing.assert_allclose(found, np.array(expected)[:, :10], atol=1e-5)


def test_model_with_a_dense_part_projects_windows_before_they_are_joined(plain_folder):
    model = models.with_pooling(plain_folder("bert"), normalize=False)
    model.append(models.modules.Dense(models.WIDTH, 12))
    short = TextEncoder(model, max_length=8)
    texts = ["good film bad film good book", " bad bad very bad song tea"]
    first, second = (
        AdapterClassifier(short, adapter=None).fit(texts, [0, 1]).transform(texts)
    )
    encoder = TextEncoder(model, max_length=8, long_text="chunk")
    clf = AdapterClassifier(encoder, adapter=None).fit(texts, [0, 1])
    found = clf.transform(["".join(texts)])
    np.testing.assert_allclose(found, [(first + second) / 2], atol=1e-6)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_window_carries_the_prompt(plain_folder, include_prompt):
    model = models.with_pooling(plain_folder("bert"), normalize=False)
    model[1].include_prompt = include_prompt
    encoder = TextEncoder(model, prompt="long winter ", max_length=8, long_text="chunk")
    clf = AdapterClassifier(encoder, adapter=None).fit(LONG, LABELS)
    parts = ["good film bad film", "a green tea pot", "book"]
    rows = model.encode(parts, prompt="long winter ")
    expected = np.average(rows, axis=0, weights=[8, 8, 5])
    np.testing.assert_allclose(clf.transform([" ".join(parts)])[0], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "qwen3"])
def test_texts_that_fit_have_the_bits_that_they_have_when_truncated(
    pooled_folder, family
):
    folder = str(pooled_folder(family, "mean"))
    cut, chunked = (
        network_of(TextEncoder(folder, long_text=long_text))
        for long_text in ("truncate", "chunk")
    )
    expected = cut.live.features(cut.live.prepare(models.TEXTS))
    found = chunked.live.features(chunked.live.prepare(models.TEXTS))
    np.testing.assert_array_equal(found, expected)


def test_pairs_compare_the_joined_embeddings_of_both_texts(plain_folder):
    folder = str(plain_folder("bert"))
    pairs = list(zip(LONG, reversed(LONG), strict=True))
    encoder = TextEncoder(folder, max_length=16, long_text="chunk")
    u = AdapterRegressor(encoder, adapter=None).fit(LONG, LABELS).transform(LONG)
    v = u[::-1]
    cosine = (unit(u) * unit(v)).sum(axis=1, keepdims=True)
    root = np.sqrt(u.shape[1])
    expected = np.hstack([u, v, np.abs(u - v), root * u * v, 10 * cosine])
    reg = AdapterRegressor(encoder, adapter=None).fit(pairs, LABELS)
    np.testing.assert_allclose(reg.transform(pairs), expected, atol=1e-4)
    cut, chunked = (
        network_of(TextEncoder(folder, long_text=long_text), n_features=2)
        for long_text in ("truncate", "chunk")
    )
    np.testing.assert_allclose(
        chunked.live.features(chunked.live.prepare(models.PAIRS)),
        cut.live.features(cut.live.prepare(models.PAIRS)),
        atol=1e-4,
    )


def test_features_do_not_depend_on_order_and_company(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=16, long_text="chunk")
    network = network_of(encoder)
    items = network.live.prepare(LONG)
    found = network.live.features(items)
    mixed = network.live.features([items[i] for i in (3, 0, 2)])
    np.testing.assert_allclose(mixed, found[[3, 0, 2]], atol=1e-5)


def loss_of(network, items):
    with network.live.own_context():
        return (network.live.forward(items) ** 3).sum()


def gradients(network, items):
    for tensor in network.live.trainable().values():
        tensor.grad = None
    loss_of(network, items).backward()
    return {name: t.grad.clone() for name, t in network.live.trainable().items()}


def test_gradients_through_all_windows_are_finite_differences(pooled_folder):
    encoder = TextEncoder(
        str(pooled_folder("bert", "mean")), max_length=8, long_text="chunk"
    )
    network = network_of(encoder, precision="float64")
    items = network.live.prepare(LONG)
    found = gradients(network, items)
    generator = torch.Generator().manual_seed(1)
    step = 1e-6
    direction = {
        name: torch.randn(grad.shape, generator=generator, dtype=grad.dtype)
        for name, grad in found.items()
    }
    values = []
    for sign in (1, -2):
        for name, tensor in network.live.trainable().items():
            tensor.data += sign * step * direction[name]
        values.append(loss_of(network, items).item())
    slope = (values[0] - values[1]) / (2 * step)
    expected = sum(float((found[n] * direction[n]).sum()) for n in found)
    assert slope == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapter", [LoRA(2, dropout=0.5), BitFit()], ids=str)
def test_activations_computed_again_give_the_same_gradients(
    plain_folder, monkeypatch, adapter
):
    encoder = TextEncoder(str(plain_folder()), max_length=8, long_text="chunk")
    network = network_of(encoder, adapter)
    items = network.live.prepare(LONG)
    network.live.remember(items)  # as fit does; a trial would draw from the generator
    found = []
    for kept in (10**9, 0):
        monkeypatch.setattr(_live, "TOKENS_KEPT", kept)
        generator = torch.Generator().manual_seed(0)
        with network.live.dropout(generator):
            found.append((gradients(network, items), generator.get_state()))
    (kept, state), (lean, lean_state) = found
    for name, grad in kept.items():
        torch.testing.assert_close(lean[name], grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(state, lean_state)
    assert any(grad.abs().max() > 0 for grad in kept.values())


def test_windows_of_one_text_go_through_in_bounded_groups(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=32, long_text="chunk")
    clf = AdapterClassifier(encoder, layers=None, max_epochs=1).fit(LONG, LABELS)
    sizes = []
    transformer = clf._network.live.module.transformer
    hook = transformer.register_forward_hook(
        lambda module, args, output: sizes.append(output.last_hidden_state.numel())
    )
    words = np.random.RandomState(0).choice(models.WORDS, 6000)
    clf.predict([" ".join(words)])
    hook.remove()
    assert sum(sizes) > 6000 * models.WIDTH
    assert max(sizes) <= _live._GROUPS["cpu"][0] * models.WIDTH


def test_cache_of_hidden_states_changes_no_bit(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=16, long_text="chunk")
    network = network_of(encoder)
    items = network.live.prepare(LONG)
    clear_cache()
    network.live.remember(items)
    n_windows = len({_live.content(w) for w in network.live.windows(items)})
    assert n_windows > len(LONG)
    assert cache_info().n_samples == n_windows
    kept = network.live.features(items)
    with config_context(cache_bytes=0):
        np.testing.assert_array_equal(network.live.features(items), kept)


@pytest.mark.parametrize("adapter", ["lora", "full", "prefix", "ladder"])
def test_classifier_reads_beyond_the_cut_and_comes_back_from_everywhere(
    plain_folder, tmp_path, adapter
):
    head = "the song of a long winter and the tea pot " * 2
    texts = [head + end for end in ("good good good", "bad bad bad") * 4]
    labels = ["+", "-"] * 4
    encoder = TextEncoder(str(plain_folder()), max_length=16, long_text="chunk")
    clf = AdapterClassifier(
        encoder,
        adapter=adapter,
        label_texts={"+": "good " * 30},
        max_epochs=4,
        random_state=0,
    ).fit(texts, labels)
    assert clf.score(texts, labels) == 1.0
    clf.set_params(encoder__long_text="truncate")
    with pytest.warns(UserWarning, match="were cut"):
        clf.fit(texts, labels)
    with pytest.warns(UserWarning, match="were cut"):
        assert len(np.unique(clf.predict_proba(texts), axis=0)) == 1
    clf.set_params(encoder__long_text="chunk").fit(texts, labels)
    loaded = pickle.loads(pickle.dumps(clf))
    clf.save_pretrained(tmp_path / "model")
    folder = AdapterClassifier.from_pretrained(tmp_path / "model")
    for other in (loaded, folder):
        assert other.encoder.long_text == "chunk"
        np.testing.assert_array_equal(other.transform(texts), clf.transform(texts))


def test_other_way_of_reading_is_another_encoder(plain_folder):
    chunked, cut = (
        load(TextEncoder(str(plain_folder()), long_text=way)).fingerprint
        for way in ("chunk", "truncate")
    )
    assert chunked != cut


def test_bank_gives_what_each_estimator_gives(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=16, long_text="chunk")
    estimators = {
        "a": AdapterClassifier(encoder, random_state=0),
        "b": AdapterClassifier(encoder, adapter=LoRA(4), layers=1, random_state=1),
        "c": AdapterClassifier(encoder, adapter=None),
    }
    for estimator in estimators.values():
        estimator.fit(LONG, LABELS)
    bank = AdapterBank(estimators)
    for name, found in bank.transform(LONG).items():
        expected = estimators[name].transform(LONG)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    tasks = ["a", "b", "c", "a", "b"]
    expected = [estimators[t].predict([x])[0] for t, x in zip(tasks, LONG, strict=True)]
    np.testing.assert_array_equal(bank.predict(LONG, task=tasks), expected)


def test_fit_and_predict_warn_once_with_the_share_that_was_cut(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=10)
    exact = "good " * 8  # with two special tokens as long as the limit
    clf = AdapterClassifier(encoder, max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit([*LONG, exact], [*LABELS, 0], X_val=LONG[:2], y_val=LABELS[:2])
    (message,) = messages(caught)
    assert "5 of 8 texts (62%)" in message
    assert "max_length=10" in message
    assert "long_text='chunk'" in message
    assert "up to 32" in message
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.predict([exact, "book"])
        assert messages(caught) == []
        clf.predict(LONG[:2])
        assert ["1 of 2 texts (50%)" in text for text in messages(caught)] == [True]


@pytest.mark.parametrize("pair", ["bi", "cross"])
def test_pairs_of_which_a_text_is_cut_count_once(plain_folder, pair):
    encoder = TextEncoder(str(plain_folder()), max_length=10, pair=pair)
    pairs = [("good " * 20, "bad " * 20), ("good", "bad"), ("book", "film " * 20)]
    with pytest.warns(UserWarning, match=r"2 of 3 texts .* long_text='chunk'"):
        load(encoder, 2).prepare(pairs)


def test_tiny_encoder_warns_too():
    clf = AdapterClassifier(TinyTextEncoder(max_length=4), max_epochs=1)
    with pytest.warns(UserWarning, match=r"1 of 3 texts \(33%\) .* larger max_length"):
        clf.fit(["good very good film", "bad film", "a book"], [0, 1, 1])


def test_nothing_is_said_where_all_is_read(plain_folder):
    encoder = TextEncoder(str(plain_folder()), max_length=8, long_text="chunk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = AdapterClassifier(encoder, max_epochs=1).fit(LONG, LABELS)
        assert len(clf.predict(LONG)) == len(LONG)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"long_text": "cut"}, "'long_text' parameter of TextEncoder"),
        ({"pair": "cross"}, "pair='cross', which reads both texts as one sequence"),
        ({"max_length": 2}, "take 2 tokens of each window, so there is no room"),
        ({"max_length": 4, "prompt": "query : "}, "take 4 tokens of each window"),
    ],
    ids=str,
)
def test_windows_that_cannot_be_are_refused(plain_folder, parameters, message):
    encoder = TextEncoder(str(plain_folder()), long_text="chunk")
    clf = AdapterClassifier(encoder.set_params(**parameters))
    with pytest.raises(ValueError, match=message):
        clf.fit(np.array(models.PAIRS, dtype=object), np.arange(7) % 2)


@pytest.mark.parametrize("method", ["to_torch", "to_sentence_transformer"])
def test_exports_that_cannot_hold_windows_are_refused(plain_folder, method):
    encoder = TextEncoder(str(plain_folder()), long_text="chunk")
    clf = AdapterClassifier(encoder, max_epochs=1).fit(LONG, LABELS)
    with pytest.raises(ValueError, match="joins them outside of the exported module"):
        getattr(clf, method)()
