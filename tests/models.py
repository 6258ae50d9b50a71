"""Tiny random transformers models of the known families, written to folders."""

from pathlib import Path

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

try:
    from sentence_transformers.sentence_transformer import modules
except ImportError:  # sentence-transformers 5
    from sentence_transformers import models as modules

WIDTH, N_LAYERS, MAX_LENGTH = 64, 3, 32
WORDS = [
    "good",
    "bad",
    "film",
    "book",
    "play",
    "song",
    "car",
    "tea",
    "pot",
    "the",
    "a",
    "of",
    "and",
    "was",
    "very",
    "not",
    "green",
    "small",
    "long",
    "winter",
    "query",
    "passage",
    ":",
    ",",
    ".",
    "!",
]
TEXTS = [
    "good film",
    "Bad film, very bad!",
    "the good play of a long winter was not bad .",
    "book",
    "a small green tea pot and the song of the long long winter : good , good , good !",
    "zebra xylophone",  # not in the vocabulary: spelt letter by letter
    "",
]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))


def config_of(family: str) -> transformers.PretrainedConfig:
    """Configuration of a tiny model of one family."""
    common = {
        "vocab_size": len(vocabulary("bert")),
        "hidden_size": WIDTH,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "initializer_range": 0.2,  # so that attention and depth matter
    }
    bert = {**common, "max_position_embeddings": MAX_LENGTH}
    # These count positions from the id of padding on, 1, and leave out both.
    roberta = {**common, "max_position_embeddings": MAX_LENGTH + 2, "pad_token_id": 1}
    one_type = {**roberta, "type_vocab_size": 1}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    grouped = {**bert, **special, "num_key_value_heads": 2, "head_dim": WIDTH // 4}
    distilbert = {
        "vocab_size": common["vocab_size"],
        "dim": WIDTH,
        "n_layers": N_LAYERS,
        "n_heads": 4,
        "hidden_dim": 96,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.2,
    }
    deberta = {
        **bert,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "type_vocab_size": 0,
        "position_biased_input": False,
    }
    modernbert = {
        **bert,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "local_attention": 8,
        "initializer_cutoff_factor": 3.0,
    }
    gemma = {
        **grouped,
        "query_pre_attn_scalar": WIDTH // 4,
        "sliding_window": 8,
        "use_bidirectional_attention": True,
    }
    kind, parameters = {
        "albert": (transformers.AlbertConfig, {**bert, "embedding_size": 16}),
        "bert": (transformers.BertConfig, bert),
        "camembert": (transformers.CamembertConfig, one_type),
        "deberta-v2": (transformers.DebertaV2Config, deberta),
        "distilbert": (transformers.DistilBertConfig, distilbert),
        "electra": (transformers.ElectraConfig, {**bert, "embedding_size": 16}),
        "gemma2": (transformers.Gemma2Config, {**grouped, "sliding_window": 8}),
        "gemma3_text": (transformers.Gemma3TextConfig, gemma),
        "llama": (transformers.LlamaConfig, grouped),
        "mistral": (transformers.MistralConfig, {**grouped, "sliding_window": 8}),
        "modernbert": (transformers.ModernBertConfig, modernbert),
        "mpnet": (transformers.MPNetConfig, roberta),
        "qwen2": (
            transformers.Qwen2Config,
            bert | special | {"num_key_value_heads": 2},
        ),
        "qwen3": (transformers.Qwen3Config, grouped),
        "roberta": (transformers.RobertaConfig, one_type),
        "xlm-roberta": (transformers.XLMRobertaConfig, one_type),
        # Of a family that has no role table.
        "megatron-bert": (transformers.MegatronBertConfig, bert),
    }[family]
    return kind(**parameters)


DECODERS = ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def special_tokens(family: str) -> dict[str, str]:
    """Names of the special tokens, in the order of their ids."""
    if family in ("camembert", "roberta", "xlm-roberta", "mpnet"):
        return {
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
        }
    return {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }


def vocabulary(family: str) -> list[str]:
    """Special tokens, whole words, letters, and letters inside a word."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        *special_tokens(family).values(),
        *WORDS,
        *(letter for letter in letters if letter not in WORDS),
        *(f"##{letter}" for letter in letters),
    ]


def tokenizer_of(family: str, max_length: int = MAX_LENGTH) -> PreTrainedTokenizerFast:
    """Lower-casing word-piece tokenizer with the special tokens of a family."""
    names = special_tokens(family)
    ids = {token: i for i, token in enumerate(vocabulary(family))}
    tokenizer = Tokenizer(WordPiece(ids, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    start, end = names["cls_token"], names["sep_token"]
    doubled = f"{end} {end}" if start == "<s>" else end
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {doubled} $B:1 {end}:1",
        special_tokens=[(start, ids[start]), (end, ids[end])],
    )
    inputs = ["input_ids", "attention_mask"]
    if family in ("albert", "bert", "electra", "megatron-bert"):
        inputs.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=inputs,
        padding_side="left" if family in DECODERS else "right",
        **names,
    )


def save_plain(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a transformers folder: model and tokenizer, no word about pooling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config_of(family))
    model.save_pretrained(folder)
    tokenizer_of(family).save_pretrained(folder)
    return folder


def with_pooling(
    plain: Path, *, pooling: str = "mean", **options
) -> SentenceTransformer:
    """Model in memory: a transformer, a pooling, and the scaling to length one."""
    transformer = modules.Transformer(str(plain))
    parts = [transformer, modules.Pooling(WIDTH, pooling_mode=pooling)]
    if options.pop("normalize", True):
        parts.append(modules.Normalize())
    return SentenceTransformer(modules=parts, device="cpu", **options)


def load(folder: Path | str) -> SentenceTransformer:
    """Model as the library loads it."""
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def tokenize(model: SentenceTransformer, texts: list[str]) -> dict:
    """Batch as the library makes it; version 5 has another name for that."""
    return (getattr(model, "preprocess", None) or model.tokenize)(texts)


def random_rows(lengths):
    """Texts of so many words, and for each a class of two and a number."""
    random = np.random.RandomState(0)
    texts = [" ".join(random.choice(WORDS, length)) for length in lengths]
    labels = np.array(["+" if text.count("o") % 2 else "-" for text in texts])
    return texts, labels, np.array([float(len(text)) for text in texts])
