"""Loaded text encoders: the weights, and what reads texts and pools their tokens."""

import copy
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from skpeft._device import moved
from skpeft._validation import warn
from skpeft.encoders._families import FAMILIES, ROWWISE, STEADY
from skpeft.encoders.base import (
    LEAST_HEAD_WIDTH,
    Backbone,
    Item,
    addresses,
    alias_memo,
    digest,
    pad,
    probe_features,
    same_features,
    warn_cut,
)

if TYPE_CHECKING:
    from skpeft.encoders.text import TextEncoder

POOLINGS = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
# Token ids of these show which tokenizer a model has: case, accents, scripts, digits.
_PROBES = (
    "The Quick brown fox; 12.5%",
    "Ünïcödé",
    "Быстрая лиса",
    "快速的狐狸",
    "ثعلب",
)
# Texts that are cut into tokens together: their ids are lists of objects first.
_TEXTS_AT_ONCE = 64
# Share of texts of which the model may know less than half of the tokens without a warning.
_FEW_LOST = 0.1
# What a model raises that is no encoder of tokens, and what a device says of itself.
_REFUSALS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)
_OF_DEVICE = "allocate memory|out of memory|CUDA|cuDNN|CUBLAS|MPS"
# Batches whose passes a GPU replays are padded to a multiple of so many tokens.
_TOKENS_IN_STEP = 16
# What may follow the transformer where a GPU replays a pass, as `_describe` gives it.
_STEADY = {
    ("Pooling", "cls", True),
    ("Pooling", "mean", True),
    ("Dense", "None", None),
    ("Normalize", "None", None),
}
# Largest difference, relative to the largest entry, that is taken for rounding and not
# for an effect of padding: reduced precision rounds products of other shapes otherwise.
_PADDING_ROUNDS = 2e-2
# Before the names of what belongs to the second text of a pair.
_SECOND = "second_"


class Weights:
    """What is loaded once per model: the modules, the tokenizer, and their digest.

    The tensors of the given model are shared as long as device and dtype agree.

    Parameters
    ----------
    model : SentenceTransformer
        Its first module must be a transformer; the others pool its token features.
    device : torch.device
        Where the weights live.
    dtype : torch.dtype
        Floating-point type of the weights.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        transformer = getattr(model[0], "auto_model", None)
        tokenizer = getattr(model[0], "tokenizer", None)
        if transformer is None or tokenizer is None:
            raise ValueError(
                f"The first module of the given model is a {type(model[0]).__name__}; "
                "adapters need a transformers text encoder there. Pass a model that has "
                "one, such as sentence-transformers/all-MiniLM-L6-v2."
            )
        tail = list(model)[1:]
        module = TextModule(transformer, tail, model.truncate_dim)
        memo = alias_memo(module)
        module = copy.deepcopy(module, memo)
        config: Any = module.transformer.config
        config.use_cache = False  # decoders would keep every pass
        self.shell = copy.deepcopy(model[0], memo)  # around the transformer of `module`
        self.tokenizer = self.shell.tokenizer
        details = {**config.to_dict(), "_name_or_path": None}
        self.reading = _reading(self.tokenizer)
        self.config = repr((sorted(details.items(), key=str), self.reading))
        self.lock = threading.Lock()  # a fast tokenizer keeps its truncation as state
        self.lower_case = bool(getattr(model[0], "do_lower_case", False))
        self.max_length = model.max_seq_length
        self.prompt = (model.prompts or {}).get(model.default_prompt_name, "")
        self.similarity = model._similarity_fn_name
        ids = self._probe_ids()
        self.probe = self._probe(module.eval(), ids, model.device)
        self.addresses = addresses(module)
        self.fingerprint = digest(
            module,
            [_describe(part) for part in tail],
            ids,
            sorted(self.tokenizer.get_vocab().items()),
            (self.lower_case, self.max_length, model.truncate_dim, self.prompt),
            *_other_side(self.tokenizer),
        )
        self.module = module.to(device, dtype)
        self.side = self._padding_side(_array(ids[0] or [0]))

    def _probe_ids(self) -> list[list[int]]:
        """Token ids of a few texts, by which tokenizers are told apart."""
        read = [self.tokenizer(text, verbose=False) for text in _PROBES]
        if any(any(own.get("token_type_ids", ())) for own in read):
            raise ValueError(
                "The tokenizer of the given model gives token types other than 0 for a "
                "single text, as that of XLNet does, and skpeft does not pass them on. "
                "Pass another model."
            )
        return [own["input_ids"] for own in read]

    def _probe(
        self, module: "TextModule", ids: list[list[int]], device: torch.device
    ) -> np.ndarray:
        """Features of a few texts, which must be those that the model itself gives."""
        rows = [_array(row[:8] or [0]) for row in ids]
        tokens, mask = (part.to(device) for part in pad(rows))
        batch = {"input_ids": tokens, "attention_mask": mask}

        def of_its_own(batch: dict[str, Tensor]) -> Tensor:
            features = self.shell.eval()(dict(batch))
            for part in module.tail:
                features = part(features)
            return features["sentence_embedding"][:, : module.truncate_dim]

        try:
            ours, own = (
                probe_features(run, batch).float().cpu().numpy()
                for run in (module, of_its_own)
            )
        except _REFUSALS as error:
            if isinstance(error, RuntimeError) and re.search(_OF_DEVICE, str(error)):
                raise
            raise ValueError(
                "The given model cannot be run as a text encoder, from token ids to features "
                f"of tokens that are pooled ({type(error).__name__}: {error}). Pass one that "
                "can, such as sentence-transformers/all-MiniLM-L6-v2."
            ) from error
        if not same_features(own, ours):
            raise ValueError(
                "The given model computes other features than its transformer's last hidden "
                "states, pooled: its first module, a hook, or what pools several layers does "
                "more. Adapters would be trained for something else. Pass a model without "
                "that, or the plain transformers model by its folder."
            )
        return ours

    def _padding_side(self, row: np.ndarray) -> str:
        """End at which short texts are filled up: the tokenizer's, if that changes nothing."""
        fill, rows = self.tokenizer.pad_token_id or 0, [row, row[: len(row) // 2 + 1]]
        device = next(self.module.parameters()).device

        def features(rows: Sequence[np.ndarray], side: str) -> np.ndarray:
            ids, mask = (part.to(device) for part in pad(rows, fill, side))
            batch = {"input_ids": ids, "attention_mask": mask}
            return probe_features(self.module, batch)[-1].float().cpu().numpy()

        own = self.tokenizer.padding_side
        alone = features(rows[1:], own)
        for side in (own, "right"):
            if same_features(alone, features(rows, side), _PADDING_ROUNDS):
                return side
        warn(
            "The features that this encoder gives for a text depend on how far it is filled "
            "up to the length of others in its batch, so that a prediction may depend on what "
            "is predicted with it. Give another encoder where that matters."
        )
        return own

    def without_tensors(self) -> "Weights":
        """Copy with a tokenizer of its own, and nothing to run."""
        other = copy.copy(self)
        del other.module, other.shell
        return copy.deepcopy(other)

    def __getstate__(self) -> dict:
        return {name: part for name, part in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, lock=threading.Lock())


class TextModule(nn.Module):
    """A transformer and the modules that turn its token features into one vector.

    Parameters
    ----------
    transformer : torch.nn.Module
        Maps token ids to token features.
    tail : sequence of torch.nn.Module
        Pool these, and may project and scale the outcome.
    truncate_dim : int or None
        Numbers kept of an embedding.
    of_windows : bool, default=False
        Whether a batch holds windows, whose embeddings are still to be joined.
    """

    def __init__(
        self,
        transformer: nn.Module,
        tail: Sequence[nn.Module],
        truncate_dim: int | None,
        of_windows: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.tail = nn.ModuleList(tail)
        self.truncate_dim = truncate_dim
        self.of_windows = of_windows
        self.prompt_length = 0

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Map a batch to features (batch, dim), or (batch, 4 * dim + 1) for two texts."""
        if self.of_windows:
            return self.pool(batch)
        second = {
            name.removeprefix(_SECOND): tensor
            for name, tensor in batch.items()
            if name.startswith(_SECOND)
        }
        if not second:
            return self.embed(batch)
        return compare(
            self.embed({name: batch[name] for name in second}), self.embed(second)
        )

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Map token ids of single sequences to embeddings of shape (batch, dim)."""
        return self.scale(self.pool(batch))

    def pool(self, batch: dict[str, Tensor]) -> Tensor:
        """Embeddings of single sequences, before what scales them."""
        hidden = self.transformer(**batch, return_dict=True).last_hidden_state
        features = {
            **batch,
            "token_embeddings": hidden,
            "prompt_length": self.prompt_length,
        }
        for part in self.tail[: self._n_pooling]:
            features = part(features)
        return features["sentence_embedding"]

    def scale(self, embeddings: Tensor) -> Tensor:
        """Scale embeddings (batch, dim) to length one where the model does, and cut them."""
        for part in self.tail[self._n_pooling :]:
            embeddings = part({"sentence_embedding": embeddings})["sentence_embedding"]
        return embeddings[:, : self.truncate_dim]

    @property
    def _n_pooling(self) -> int:
        """Modules of the tail that come before the scaling at its end."""
        n = len(self.tail)
        while n and type(self.tail[n - 1]).__name__ == "Normalize":
            n -= 1
        return n


def compare(u: Tensor, v: Tensor) -> Tensor:
    """Features (batch, 4 * dim + 1) of pairs from the embeddings of both texts."""
    # The root makes the products as large as the entries, if these have length one.
    product = u * v * u.shape[1] ** 0.5
    cosine = nn.functional.cosine_similarity(u, v, dim=1).unsqueeze(1)
    return torch.cat([u, v, (u - v).abs(), product, 10.0 * cosine], dim=1)


class Frame(NamedTuple):
    """What stands in every window besides the text.

    Parameters
    ----------
    before, after : int
        Numbers of special tokens on either side.
    prompt : tuple of int
        Token ids of the prompt, which come after `before`.
    """

    before: int
    after: int
    prompt: tuple[int, ...]


class TextBackbone(Backbone):
    """Loaded weights under the options of a `TextEncoder`."""

    def __init__(self, weights: Weights, encoder: "TextEncoder") -> None:
        config: Any = weights.module.transformer.config
        tail = list(weights.module.tail)
        if encoder.pooling is not None:
            tail = _pooled_by(encoder.pooling, config.hidden_size)
        self._chunks = encoder.long_text == "chunk"
        whole = weights.module
        module = TextModule(whole.transformer, tail, whole.truncate_dim, self._chunks)
        super().__init__(
            module,
            fingerprint="",  # set below, when the options are known
            role_table=table_of(config),
            family=config.model_type,
            root="transformer",
            probe=weights.probe,
            n_heads=getattr(config, "num_attention_heads", 1),
            n_calls=_n_calls(config),
            rowwise=_is_rowwise(config),
        )
        self._weights = weights  # keeps the registry's entry alive
        self._pair = encoder.pair
        self._prompt = weights.prompt if encoder.prompt is None else encoder.prompt
        self._limit = _length_limit(weights)
        self.steady = _is_steady(config, tail)
        self._max_length = _checked_length(encoder.max_length, weights, self._limit)
        if self._prompt:
            ids = self._tokenize([self._prompt])["input_ids"][0]
            ends = bool(ids) and ids[-1] in weights.tokenizer.all_special_ids
            module.prompt_length = len(ids) - int(ends)
        options: tuple = (encoder.pooling, self._max_length, self._prompt, self._pair)
        if self._chunks:
            options += (encoder.long_text,)
            self._frame = self._find_frame()
        self.fingerprint = digest(nn.Module(), weights.fingerprint, options)

    @property
    def identity(self) -> tuple:
        """What decides about hidden states: equal for encoders that compute the same."""
        return *super().identity, self._weights.config

    def reader(self) -> Backbone:
        """Copy that prepares and collates samples, holds no weights and can be pickled."""
        other = cast(TextBackbone, super().reader())
        other._weights = self._weights.without_tensors()
        return other

    def to_sentence_transformer(self, module: TextModule) -> Any:
        """Model of single texts around an adapted copy of the module.

        Parameters
        ----------
        module : TextModule
            Nobody else's, and nobody else's later on.
        """
        from sentence_transformers import SentenceTransformer

        shell = self._weights.shell
        first = copy.deepcopy(shell, {id(shell.auto_model): module.transformer})
        first.max_seq_length = self._max_length
        first.tokenizer.padding_side = self._weights.side
        # The library calls `forward` of the transformer, past the hooks that adapters set.
        for key, hook in first.auto_model._forward_pre_hooks.items():
            if key not in shell.auto_model._forward_pre_hooks:
                first.register_forward_pre_hook(hook)
        _guard_folder(first.auto_model, shell.auto_model)
        model = SentenceTransformer(
            modules=[first, *module.tail],
            device=str(next(module.parameters()).device),
            similarity_fn_name=self._weights.similarity,
            truncate_dim=module.truncate_dim,
        )
        if self._prompt:  # as arguments they would make the library log a warning
            model.prompts = {**model.prompts, "default": self._prompt}
            model.default_prompt_name = "default"
        return model.eval().requires_grad_(True)

    def prepare(self, samples: Sequence) -> list[Item]:
        """Token ids of each text or pair, special tokens included."""
        if isinstance(samples[0], str):
            columns = {"input_ids": samples}
        else:
            first, second = zip(*samples, strict=True)
            if self._pair == "cross":
                return self._prepare_cross(first, second)
            columns = {"input_ids": first, f"{_SECOND}input_ids": second}
        items: list[Item] = [{} for _ in samples]
        cut: set[int] = set()
        for name, texts in columns.items():
            rows = self._ids(texts)
            self._warn_unknown(rows)
            windows: list[tuple[np.ndarray, ...]] = [(row,) for row in rows]
            for i, ids in self._beyond(rows, texts):
                cut.add(i)
                if self._chunks:
                    windows[i] = self._cut_up(ids)
            for item, own in zip(items, windows, strict=True):
                item[name] = own if self._chunks else own[0]
        if not self._chunks:
            self._warn(len(cut), len(items), "long_text='chunk' reads all of them.")
        return items

    def _prepare_cross(self, first: Sequence[str], second: Sequence[str]) -> list[Item]:
        """Token ids of pairs, both texts as one sequence."""
        encoded = self._tokenize([self._prompt + text for text in first], list(second))
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        parts = zip(*(encoded[name] for name in names), strict=True)
        items = [dict(zip(names, map(_array, row), strict=True)) for row in parts]
        rows = [item["input_ids"] for item in items]
        self._warn_unknown(rows, pairs=True)
        n_cut = sum(1 for _ in self._beyond(rows, first, second))
        self._warn(n_cut, len(items), "pair='bi' with long_text='chunk' reads all.")
        return items

    def _warn(self, n_cut: int, n_samples: int, remedy: str) -> None:
        remedy = f"TextEncoder with {remedy}"
        if self._max_length < self._limit:
            remedy += f" The model takes a max_length of up to {self._limit}."
        warn_cut(n_cut, n_samples, self._max_length, remedy)

    def _warn_unknown(self, rows: Sequence[np.ndarray], *, pairs: bool = False) -> None:
        """Tell where the model knows too few of the tokens to tell texts apart."""
        tokenizer = self._weights.tokenizer
        n_unknown = [np.count_nonzero(row == tokenizer.unk_token_id) for row in rows]
        if not any(n_unknown):
            return
        n_special = tokenizer.num_special_tokens_to_add(pair=pairs)
        n_own = np.array([len(row) for row in rows]) - n_special
        n_lost = np.count_nonzero(2 * np.array(n_unknown) > np.maximum(n_own, 1))
        if n_lost > _FEW_LOST * len(rows):
            warn(
                f"In {n_lost} of {len(rows)} texts ({n_lost / len(rows):.0%}) more than half "
                "of the tokens are unknown to the encoder, such as emoji or the letters of "
                "another language; all unknown tokens look alike to it. Give an encoder "
                "that was trained on such texts, such as a multilingual one.",
            )

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of single texts, after the prompt; never none at all."""
        filler, rows = [self._weights.tokenizer.pad_token_id or 0], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[start : start + _TEXTS_AT_ONCE]
            encoded = self._tokenize([self._prompt + text for text in some])
            rows += [_array(row or filler) for row in encoded["input_ids"]]
        return rows

    def _beyond(
        self,
        rows: Sequence[np.ndarray],
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of the samples that were cut, and all their token ids.

        Only rows that are full may have been cut; these are read again, a few at a time.
        """
        full = [i for i, row in enumerate(rows) if len(row) >= self._max_length]
        for start in range(0, len(full), _TEXTS_AT_ONCE):
            some = full[start : start + _TEXTS_AT_ONCE]
            encoded = self._tokenize(
                [self._prompt + texts[i] for i in some],
                None if pairs is None else [pairs[i] for i in some],
                whole=True,
            )
            for i, ids in zip(some, encoded["input_ids"], strict=True):
                if len(ids) > self._max_length:
                    yield i, _array(ids)

    def _find_frame(self) -> "Frame":
        """What stands in every window, with room for at least one token of the text."""
        bare = self._tokenize([_PROBES[0]], whole=True, special=False)["input_ids"][0]
        framed = self._tokenize([_PROBES[0]], whole=True)["input_ids"][0]
        prompt = self._tokenize([self._prompt], whole=True, special=False)["input_ids"]
        n_special = len(framed) - len(bare)
        starts = [n for n in range(n_special + 1) if framed[n : n + len(bare)] == bare]
        if not starts:
            raise ValueError(
                "long_text='chunk' was given, but the tokenizer of this model does not "
                "put its special tokens around a text, so no windows can be cut. Use "
                "long_text='truncate'."
            )
        frame = Frame(starts[0], n_special - starts[0], tuple(prompt[0]))
        if n_special + len(frame.prompt) >= self._max_length:
            raise ValueError(
                f"max_length={self._max_length} was given to TextEncoder with "
                f"long_text='chunk', but special tokens and prompt take "
                f"{n_special + len(frame.prompt)} tokens of each window, so there is no "
                "room for the text. Give a larger max_length, or a shorter prompt."
            )
        return frame

    def _cut_up(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Windows of a text that is too long for one; each token is in one of them."""
        before, after, prompt = self._frame
        own = ids[before : before + len(prompt)]
        # The last token of the prompt may have grown together with the text.
        before += int(np.cumprod(own == np.array(prompt)[: len(own)]).sum())
        end = len(ids) - after
        step = self._max_length - before - after
        return tuple(
            np.concatenate([ids[:before], ids[i : min(i + step, end)], ids[end:]])
            for i in range(before, end, step)
        )

    def _tokenize(
        self,
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        whole: bool = False,
        special: bool = True,
    ) -> Any:
        """Token ids, cut to `max_length` or whole, with or without special tokens."""
        if self._weights.lower_case:
            texts = [text.lower() for text in texts]
            pairs = None if pairs is None else [text.lower() for text in pairs]
        with self._weights.lock:
            return self._weights.tokenizer(
                texts,
                pairs,
                truncation=False if whole else "longest_first",
                max_length=None if whole else self._max_length,
                padding=False,
                add_special_tokens=special,
                return_attention_mask=False,
                verbose=False,  # of what is beyond the model's length
            )

    def windows(self, item: Item) -> list[Item]:
        """Windows of the texts of an item, one text after the other."""
        if not isinstance(item["input_ids"], tuple):  # one itself
            return [item]
        return [{"input_ids": ids} for windows in item.values() for ids in windows]

    def join(self, features: Tensor, items: Sequence[Item]) -> Tensor:
        """Features of items: of each text the mean of its windows, weighted by tokens."""
        if not self._chunks:
            return features
        texts = [windows for item in items for windows in item.values()]
        n_tokens = [np.array([len(ids) for ids in windows]) for windows in texts]
        shares = torch.from_numpy(np.concatenate([n / n.sum() for n in n_tokens]))
        shares = moved(shares, features.device, features.dtype)  # all at once
        parts = (features * shares[:, None]).split([len(windows) for windows in texts])
        means = torch.stack([part.sum(dim=0) for part in parts])
        embeddings = cast(TextModule, self.module).scale(means)
        if len(texts) == len(items):
            return embeddings
        return compare(embeddings[::2], embeddings[1::2])

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Pad to the longest of the batch."""
        return self._padded(items, 1)

    def collate_in_steps(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Pad to a multiple of 16 tokens, or to what the model can take."""
        return self._padded(items, _TOKENS_IN_STEP)

    def _padded(self, items: Sequence[Item], step: int) -> dict[str, Tensor]:
        tokenizer, side = self._weights.tokenizer, self._weights.side
        batch = {}
        for name in items[0]:
            is_id = name.endswith("input_ids")
            fill = (tokenizer.pad_token_id or 0) if is_id else 0
            rows = [item[name] for item in items]
            length = min(-(-max(map(len, rows)) // step) * step, self._limit)
            batch[name], mask = pad(rows, fill, side, length)
            if is_id:
                batch[name.replace("input_ids", "attention_mask")] = mask
        return batch

    def length(self, item: Item) -> int:
        """Number of tokens of a window."""
        return sum(_lengths(item))

    def shortest(self, item: Item) -> int:
        """Number of tokens of the shortest text in a window."""
        return min(_lengths(item), default=0)


def _lengths(item: Item) -> list[int]:
    return [len(ids) for name, ids in item.items() if name.endswith("input_ids")]


def _guard_folder(adapted: Any, frozen: nn.Module) -> None:
    """Let a transformer refuse to be saved where its folder would load as another model."""
    if adapted.state_dict().keys() != frozen.state_dict().keys():
        adapted.save_pretrained = _refuse_folder


def _refuse_folder(*_: Any, **__: Any) -> None:
    raise ValueError(
        "This model was to be saved to a folder, but it has adapters that cannot be merged "
        "into its layers, and the folder would be read without them. Save it whole, with "
        "joblib.dump or torch.save, or fit with adapters that merge, such as 'lora'."
    )


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def _other_side(tokenizer: Any) -> tuple:
    """The end that a tokenizer cuts of long texts, where it is not the usual one."""
    side = getattr(tokenizer, "truncation_side", "right")
    return () if side == "right" else (side,)


def _reading(tokenizer: Any) -> list:
    """How a tokenizer turns a text into what it looks up, as far as it can be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    names = ("normalizer", "pre_tokenizer", "post_processor")
    return [_content_of(getattr(backend, name, None)) for name in names]


def _content_of(part: Any) -> Any:
    """What a part of a tokenizer holds; of one that is written in Python, its kind."""
    try:
        return None if part is None else part.__getstate__()
    except Exception:  # a bare one, of the library
        return type(part).__name__


def _pooled_by(pooling: str, hidden_size: int) -> list[nn.Module]:
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling
    except ImportError:  # sentence-transformers 5
        from sentence_transformers.models import Pooling  # type: ignore[no-redef]

    return [Pooling(hidden_size, pooling_mode=pooling)]


def _describe(part: nn.Module) -> tuple:
    """Kind of a pooling or projection module, in the same words whatever the version."""
    modes: Any = getattr(part, "pooling_mode", None)
    if modes is None and hasattr(part, "get_pooling_mode_str"):
        modes = cast(Any, part).get_pooling_mode_str()
    return type(part).__name__, str(modes), getattr(part, "include_prompt", None)


def _length_limit(weights: Weights) -> int:
    """Tokens that a model can take."""
    says = weights.tokenizer.model_max_length  # immense where it does not know
    return _n_positions(weights.module.transformer) or (says if says < 10**6 else 512)


def _checked_length(asked: int | None, weights: Weights, limit: int) -> int:
    """Tokens kept of a sample: what was asked for, within what the model can take."""
    says = weights.tokenizer.model_max_length
    if asked is None:
        return min(weights.max_length or limit, says, limit)
    if asked > limit:
        raise ValueError(
            f"max_length={asked} was given to TextEncoder; this model takes at most "
            f"{limit} tokens. Give a smaller number, or None for the model's own."
        )
    return asked


def _is_rowwise(config: Any) -> bool:
    """Whether the bits of a token do not depend on what goes through with it."""
    if config.model_type not in ROWWISE:
        return False
    return config.hidden_size // config.num_attention_heads >= LEAST_HEAD_WIDTH


def _is_steady(config: Any, tail: Sequence[nn.Module]) -> bool:
    """Whether every batch of a shape starts the same kernels, as far as is known."""
    from transformers.utils import import_utils

    # Older versions ask the GPU whether a mask hides anything, also while it is recorded.
    knows = hasattr(import_utils, "is_cuda_stream_capturing")
    known = config.model_type in STEADY and all(_describe(p) in _STEADY for p in tail)
    # Others, such as flash_attention_2, ask the GPU how long the texts are.
    return knows and known and config._attn_implementation in ("sdpa", "eager")


def _n_calls(config: Any) -> int | None:
    """How often blocks run in a pass, where they share their weights."""
    shared = hasattr(config, "num_hidden_groups")
    return config.num_hidden_layers if shared else None


def table_of(config: Any) -> dict[str, str] | None:
    """Role table of a model family; None: not known, or of several layers in a block."""
    if getattr(config, "inner_group_num", 1) > 1:
        return None
    return FAMILIES.get(config.model_type)


def _n_positions(transformer: nn.Module) -> int | None:
    """Tokens for which a model has positions, where it tells."""
    for name, part in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            unused = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - unused  # RoBERTa counts from padding_idx + 1
    config: Any = transformer.config
    found = getattr(config, "max_position_embeddings", None) or 0
    return found if found > 0 else None
