"""Rows of numbers."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skpeft._cloning import ByReference
from skpeft._validation import HasMethods, Integral, Interval
from skpeft.encoders import _registry
from skpeft.encoders._tiny import ROLE_TABLE, ColumnEmbedding, TinyTransformer, seeded
from skpeft.encoders.base import (
    Backbone,
    Encoder,
    Item,
    addresses,
    alias_memo,
    digest,
    probe_features,
    refuse_inference,
    tensors_of,
)

N_HEADS = 8
# What every module of torch holds: its tensors, parts and hooks.
_OF_TORCH = vars(nn.Module()).keys() - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, torch.dtype)
# Lists in lists and so on that are looked into: one may hold itself.
_MOST_NESTED = 8


class ArrayEncoder(ByReference, Encoder):
    """Frozen encoder of numeric rows: a small seeded transformer, or a module given.

    The default is random but fixed by `seed`: each column of X becomes a token of a
    two-block transformer. It serves tests, teaching and scikit-learn's own checks.
    With `module`, any pretrained torch model of numeric rows takes its place.

    Parameters
    ----------
    module : torch.nn.Module or None, default=None
        Maps a float tensor of shape (batch, n_features) to features of shape
        (batch, dim). It is shared, never changed. None: the seeded transformer.
    role_table : dict of str to str, or None, default=None
        For `module`: under "blocks" the path of its list of blocks ("" for the module
        itself as the only block), under each role the path of its linear layer inside a
        block. Without one, only ``adapter=None`` and ``adapter="full"`` can be used.
    hidden_size : int, default=32
        Width of the seeded transformer, a multiple of 8 up to 1024.
    n_layers : int, default=2
        Blocks of the seeded transformer, up to 32.
    seed : int, default=0
        Fixes the weights of the seeded transformer.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skpeft import AdapterClassifier
    >>> from skpeft.encoders import ArrayEncoder
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = AdapterClassifier(ArrayEncoder(), random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    modality = "array"
    _shared_parameters = ("module",)
    _parameter_constraints = {
        "module": [HasMethods(["forward", "state_dict"]), None],
        "role_table": [dict, None],
        # Bounds from above too: a folder that somebody sends names these numbers.
        "hidden_size": [Interval(Integral, 8, 1024, closed="both")],
        "n_layers": [Interval(Integral, 1, 32, closed="both")],
        "seed": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self, module=None, *, role_table=None, hidden_size=32, n_layers=2, seed=0
    ):
        self.module = module
        self.role_table = role_table
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.seed = seed

    def load(
        self, *, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        """Return the frozen backbone."""
        self.validate()
        if self.module is not None:
            return self._load_given(n_features, device, dtype)
        if self.hidden_size % 8:
            raise ValueError(
                f"hidden_size={self.hidden_size} was given to ArrayEncoder; it must be a "
                "multiple of 8, the number of attention heads being 8. Try 32."
            )
        key = (
            "array",
            n_features,
            self.hidden_size,
            self.n_layers,
            self.seed,
            device,
            dtype,
        )
        return _registry.get(key, lambda: self._build_seeded(n_features, device, dtype))

    def _build_seeded(
        self, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        def build() -> nn.Module:
            embed = ColumnEmbedding(n_features, self.hidden_size)
            return TinyTransformer(embed, self.hidden_size, self.n_layers, N_HEADS)

        module = seeded(build, self.seed)
        fingerprint = digest(module)
        return ArrayBackbone(
            module.to(device, dtype),
            fingerprint=fingerprint,
            role_table=ROLE_TABLE,
            family="tiny",
            n_heads=N_HEADS,
        )

    def _load_given(
        self, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        refuse_inference(self.module)
        try:
            shared = copy.deepcopy(self.module, alias_memo(self.module))
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"The module given to ArrayEncoder cannot be copied ({error}). Leave out what "
                "copy.deepcopy refuses: of torch.nn.utils.weight_norm and pruning "
                "remove_weight_norm and prune.remove leave the weights alone, and "
                "torch.nn.utils.parametrizations can be copied."
            ) from error
        module = RowModule(shared).eval()
        fingerprint, places = digest(shared), addresses(shared)
        with _buffers_left_alone(shared):
            probe = _probe_rows(module, n_features)
        # By content: the owner may change more than tensors, and ids are used again.
        structure = _structure(shared)  # which the rows of the probe may not show
        key = ("given", fingerprint, probe.tobytes(), structure, places, device, dtype)
        found = _registry.get(
            key,
            lambda: ArrayBackbone(
                module.to(device, dtype),
                fingerprint=fingerprint,
                role_table=None,
                family=type(shared).__name__,
                root="model",
                probe=probe,
                rowwise=_is_rowwise(module, n_features),
            ),
            share=False,
        )
        return found.with_role_table(self.role_table)


@contextmanager
def _buffers_left_alone(module: nn.Module) -> Iterator[None]:
    """Inside, a module is run; should that change its buffers, they are put back."""
    before = {n: (b, b._version, b.clone()) for n, b in module.named_buffers()}
    changed = []
    try:
        yield
    finally:
        for name, (buffer, version, copied) in before.items():
            if buffer._version != version:
                changed.append(name)
                with torch.no_grad():
                    buffer.copy_(copied)
    if changed:
        raise ValueError(
            f"The module given to ArrayEncoder changes its buffers {sorted(changed)} whenever "
            "it is run, in evaluation mode too, but it is shared and must stay as it is. Let "
            "its forward leave them alone where self.training is False."
        )


def _probe_rows(module: nn.Module, n_features: int) -> np.ndarray:
    """Features of three fixed rows, which also show that the module fits the contract."""
    try:
        features = _features_of(module, _trial_rows(module, 3, n_features))
    except RuntimeError as error:
        raise ValueError(
            f"The module given to ArrayEncoder cannot take rows of {n_features} numbers "
            f"({error}). Pass as many columns as it was made for."
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 3:
        shape = tuple(getattr(features, "shape", ()))
        raise ValueError(
            f"The module given to ArrayEncoder made a {type(features).__name__} of shape "
            f"{shape} of 3 rows; a tensor of shape (3, dim) is expected. Wrap it in a "
            "module that returns features of shape (batch, dim)."
        )
    return features.float().cpu().numpy()


def _is_rowwise(module: nn.Module, n_features: int) -> bool:
    """Whether rows come out with the same bits beside other numbers of rows.

    Those times a single column do not.
    """
    rows = _trial_rows(module, 96, n_features)
    together = _features_of(module, rows)
    return all(
        torch.equal(_features_of(module, rows[:n]), together[:n])
        for n in (17, 18, 19, 23, 27, 31, 41, 47, 53, 59, 63, 73, 85)
    )


def _trial_rows(module: nn.Module, n_rows: int, n_features: int) -> Tensor:
    """Fixed rows of numbers, of the type and in the place of a module's weights."""
    weight = next(module.parameters(), torch.zeros(0))
    numbers = torch.linspace(-1, 1, n_rows * n_features, device="cpu")
    return numbers.reshape(n_rows, n_features).to(weight)


def _features_of(module: nn.Module, rows: Tensor) -> Any:
    """What a module makes of rows."""
    return probe_features(module, {"values": rows})


def _structure(module: nn.Module) -> tuple:
    """What a module says of itself, and the plain values that its parts hold."""
    known = {id(tensor) for tensor in tensors_of(module)}
    values = [
        (name, key, found)
        for name, part in module.named_modules()
        for key, value in sorted(vars(part).items())
        if key not in _OF_TORCH and (found := _told(value, known)) is not None
    ]
    return repr(module), repr(values)


def _told(value: Any, known: set[int], depth: int = 0) -> Any:
    """A value as it can be compared; None of what cannot, or is known by its id."""
    if isinstance(value, Tensor):
        if id(value) in known or value.layout != torch.strided or value.is_meta:
            return None
        raw = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        return tuple(value.shape), str(value.dtype), _hashed(raw.numpy())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, str(value.dtype), _hashed(value)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple) and depth < _MOST_NESTED:
        return [_told(own, known, depth + 1) for own in value]
    if isinstance(value, set | frozenset) and depth < _MOST_NESTED:
        return sorted(repr(_told(own, known, depth + 1)) for own in value)
    return repr(value) if isinstance(value, _PLAIN) else None


def _hashed(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()


class RowModule(nn.Module):
    """Hands the values of a batch to a module that takes a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Map a batch to features of shape (batch, dim)."""
        return self.model(batch["values"])


class ArrayBackbone(Backbone):
    """Frozen encoder of numeric rows."""

    @property
    def identity(self) -> tuple:
        """As of all backbones, and the parts of the module and what they say of themselves."""
        return *super().identity, self._structure

    @cached_property
    def _structure(self) -> tuple:
        return _structure(self.module)

    def prepare(self, samples: Sequence) -> list[Item]:
        """One item a row."""
        rows = np.asarray(samples)
        if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
            rows = rows.astype(np.float64)
        return [{"values": row} for row in rows]

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Stack rows to a tensor of shape (batch, n_features)."""
        return {
            "values": torch.from_numpy(np.stack([item["values"] for item in items]))
        }
