"""A tiny seeded text encoder: no download, for tests, teaching and doctests."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval
from skpeft.encoders import _registry
from skpeft.encoders._tiny import ROLE_TABLE, TinyTransformer, WordEmbedding, seeded
from skpeft.encoders.base import (
    LEAST_HEAD_WIDTH,
    Backbone,
    Encoder,
    Item,
    digest,
    pad,
    warn_cut,
)

_N_BUCKETS = 2048
N_HEADS = 4


class TinyTextEncoder(Encoder):
    """Random but fixed text encoder of about 85 thousand weights.

    Words, punctuation marks and a separator between the texts of a pair are hashed to
    token ids; a small transformer follows. It knows nothing about language and needs no
    file, so examples and tests that use it run anywhere in a moment.

    Parameters
    ----------
    max_length : int, default=64
        Tokens kept of a sample, the rest is cut off; up to 65,536.
    hidden_size : int, default=32
        Width, a multiple of 4 up to 1024.
    n_layers : int, default=2
        Transformer blocks, up to 32.
    seed : int, default=0
        Fixes the weights.

    Examples
    --------
    >>> from skpeft import AdapterClassifier
    >>> from skpeft.encoders import TinyTextEncoder
    >>> texts = ["good film", "bad film", "good book", "bad book"]
    >>> clf = AdapterClassifier(TinyTextEncoder(), random_state=0)
    >>> clf.fit(texts, ["+", "-", "+", "-"]).predict(["good play", "bad play"])
    array(['+', '-'], dtype='<U1')
    """

    _parameter_constraints = {
        # Bounds from above too: a folder that somebody sends names these numbers.
        "max_length": [Interval(Integral, 1, 2**16, closed="both")],
        "hidden_size": [Interval(Integral, 4, 1024, closed="both")],
        "n_layers": [Interval(Integral, 1, 32, closed="both")],
        "seed": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, *, max_length=64, hidden_size=32, n_layers=2, seed=0):
        self.max_length = max_length
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.seed = seed

    def load(
        self, *, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        """Return the frozen backbone."""
        self.validate()
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} was given to TinyTextEncoder; it must be "
                "a multiple of 4, the number of attention heads. Try 32."
            )
        shape = (self.max_length, self.hidden_size, self.n_layers, self.seed)
        return _registry.get(
            ("tiny", *shape, device, dtype), lambda: self._build(device, dtype)
        )

    def _build(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        def build() -> nn.Module:
            embed = WordEmbedding(_N_BUCKETS, self.max_length, self.hidden_size)
            return TinyTransformer(embed, self.hidden_size, self.n_layers, N_HEADS)

        module = seeded(build, self.seed)
        fingerprint = digest(module, self.max_length)
        module = module.to(device, dtype)
        return TinyTextBackbone(module, self.max_length, self.hidden_size, fingerprint)


class TinyTextBackbone(Backbone):
    """Hashes words; frozen transformer."""

    def __init__(
        self, module: nn.Module, max_length: int, width: int, fingerprint: str
    ) -> None:
        super().__init__(
            module,
            fingerprint=fingerprint,
            role_table=ROLE_TABLE,
            family="tiny",
            n_heads=N_HEADS,
            rowwise=width // N_HEADS >= LEAST_HEAD_WIDTH,
        )
        self.max_length = max_length
        self.steady = True

    def prepare(self, samples: Sequence) -> list[Item]:
        """Token ids of each text or pair; the first id, 1, stands for the start."""
        rows = [self._ids(sample) for sample in samples]
        n_cut = sum(len(ids) > self.max_length for ids in rows)
        remedy = "Give TinyTextEncoder a larger max_length."
        warn_cut(n_cut, len(rows), self.max_length, remedy)
        return [{"input_ids": ids[: self.max_length]} for ids in rows]

    def _ids(self, sample: str | tuple[str, str]) -> np.ndarray:
        ids = [1]
        for text in (sample,) if isinstance(sample, str) else sample:
            words = re.findall(r"\w+|[^\w\s]", text.lower())
            ids += [3 + zlib.crc32(word.encode()) % (_N_BUCKETS - 3) for word in words]
            ids.append(2)
        return np.array(ids, dtype=np.int64)

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Pad to the longest of the batch."""
        ids, mask = pad([item["input_ids"] for item in items])
        return {"input_ids": ids, "attention_mask": mask.bool()}

    def length(self, item: Item) -> int:
        """Number of tokens."""
        return len(item["input_ids"])
