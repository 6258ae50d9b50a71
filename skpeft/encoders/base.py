"""The encoder contract: a spec that loads a frozen backbone, and what a backbone does."""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from skpeft._validation import WithParameters, validate_spec, warn

#: One prepared sample: arrays by the name under which the module takes them.
Item = dict[str, Any]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Encoder(WithParameters):
    """Base class of encoder specs.

    A spec says which encoder is meant and holds no weights of its own. To support a
    new kind of input, subclass it and define `load`.

    Examples
    --------
    >>> from skpeft.encoders import Encoder, TinyTextEncoder
    >>> encoder = TinyTextEncoder()
    >>> isinstance(encoder, Encoder), encoder.modality
    (True, 'text')
    """

    #: What samples are: "text" (str, or pairs of str) or "array" (rows of numbers).
    modality: ClassVar[str] = "text"
    _parameter_constraints: ClassVar[dict] = {}

    def load(
        self, *, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> "Backbone":
        """Return the frozen backbone, one per process for equal parameters.

        Parameters
        ----------
        n_features : int
            Columns of X: texts of a sample, or numbers in a row.
        device : torch.device
            Where the weights live.
        dtype : torch.dtype
            Floating-point type of the weights.

        Raises
        ------
        OSError
            If the weights cannot be found.
        """
        raise NotImplementedError

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        validate_spec(self)


#: On several threads the bits of narrower attention heads depended on what they ran beside.
LEAST_HEAD_WIDTH = 16


class Backbone:
    """A frozen encoder, ready to be shared by many networks.

    Parameters
    ----------
    module : torch.nn.Module
        Maps a batch, a dict of tensors, to features of shape (batch, dim).
    fingerprint : str
        Digest of the weights and of all else that decides the features.
    role_table : dict of str to str, or None
        Under "blocks" the path of the list of transformer blocks in `module`, and under
        each role the path of its linear layer inside a block. None: not known.
    family : str
        Name of the model family, for messages.
    root : str, default=""
        Path in `module` from which the role table starts.
    probe : ndarray or None, default=None
        Features of a few fixed samples: they show what no digest of tensors does, such as
        another activation function or configuration. None where nothing can differ.
    n_heads : int, default=1
        Attention heads.
    n_calls : int or None, default=None
        How often blocks run in a pass, all together, where they share weights; None: each
        of them once.
    rowwise : bool, default=True
        Whether, on a CPU, the bits of a token's results do not depend on what else is
        in the batch. If they do, what is cached of an item is computed for it alone.
        Frozen features are computed so also if there are tensors outside of `root`.

    Examples
    --------
    >>> import torch
    >>> from skpeft.encoders import TinyTextEncoder
    >>> cpu = torch.device("cpu")
    >>> backbone = TinyTextEncoder().load(n_features=1, device=cpu, dtype=torch.float32)
    >>> items = backbone.prepare(["good film", "tea"])
    >>> len(backbone.module(backbone.collate(items)))
    2
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        fingerprint: str,
        role_table: dict[str, str] | None,
        family: str,
        root: str = "",
        probe: np.ndarray | None = None,
        n_heads: int = 1,
        n_calls: int | None = None,
        rowwise: bool = True,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self.role_table = role_table
        self.family = family
        self.root = root
        self.probe = probe
        # Short: it is part of the key of all that is kept.
        bits = None if probe is None else probe.tobytes()
        self._probe_digest = bits and hashlib.blake2b(bits, digest_size=16).digest()
        self.n_heads = n_heads
        self.n_calls = n_calls
        # A product with a single column takes other ways for other numbers of rows.
        parts = module.get_submodule(root).modules()
        linear = (part for part in parts if isinstance(part, nn.Linear))
        rowwise = rowwise and all(m.out_features > 1 for m in linear)
        self.rowwise = rowwise
        # What has weights behind the encoder multiplies one row an item, not one a token.
        inside = f"{root}." if root else ""
        named = chain(self.module.named_parameters(), self.module.named_buffers())
        self.rowwise_features = rowwise and all(n.startswith(inside) for n, _ in named)
        #: Whether every batch of a shape starts the same kernels, which a GPU can replay.
        self.steady = False
        self._seal = Seal(self.module)

    @property
    def identity(self) -> tuple:
        """What decides about hidden states: equal for encoders that compute the same."""
        return self.fingerprint, self._probe_digest

    def prepare(self, samples: Sequence) -> list[Item]:
        """Turn samples into items, once per fit or prediction."""
        raise NotImplementedError

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make one batch on the CPU, padded.

        The mask of real tokens, if there is padding, has a name that ends in
        "attention_mask"; an item of several sequences has one for each, in their order.
        """
        raise NotImplementedError

    def collate_in_steps(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make one batch, padded to a multiple of some tokens, if that is possible."""
        return self.collate(items)

    def windows(self, item: Item) -> list[Item]:
        """Parts of an item that go through the module one by one, each as an item."""
        return [item]

    def join(self, features: Tensor, items: Sequence[Item]) -> Tensor:
        """Features of items, from those of their windows, which come in their order."""
        return features

    def length(self, item: Item) -> int:
        """Tokens of a window, for batches of like length."""
        return 1

    def shortest(self, item: Item) -> int:
        """Tokens of the shortest sequence in a window; each goes through by itself."""
        return self.length(item)

    def share_module(self) -> nn.Module:
        """Copy the module tree; every tensor stays the very same one."""
        tensors = tensors_of(self.module)
        return copy.deepcopy(self.module, {id(tensor): tensor for tensor in tensors})

    def reader(self) -> "Backbone":
        """Copy that prepares and collates samples, holds no weights and can be pickled."""
        other = copy.copy(self)
        other.module, other.probe = nn.Identity(), None
        other._seal = Seal(other.module)
        return other

    def with_role_table(self, role_table: dict[str, str] | None) -> "Backbone":
        """Same backbone with the user's own role table, where one is given."""
        if role_table is None:
            return self
        if "blocks" not in role_table:
            raise ValueError(
                f"role_table={role_table!r} was given; it must hold under 'blocks' the "
                "path of the list of transformer blocks, and under each role the path of "
                "its linear layer inside a block."
            )
        root = self.module.get_submodule(self.root)
        paths = [name for name, _ in root.named_modules()]
        if role_table["blocks"] not in paths:
            lists = [n for n, m in root.named_modules() if isinstance(m, nn.ModuleList)]
            raise ValueError(
                f"The role table says that the blocks are at {role_table['blocks']!r}, but "
                f"nothing is there. Lists of modules found: {lists}."
            )
        other = copy.copy(self)
        other.role_table = dict(role_table)
        return other

    def check_unchanged(self) -> None:
        """Raise a `RuntimeError` if shared weights were changed by their owner."""
        if self._seal.broken:
            raise RuntimeError(
                "The weights of the loaded model that was passed as encoder were changed "
                "in place after fit, for example by training it, and the fitted adapters "
                "belong to the former weights. Fit again, or pass the model's name or "
                "folder as encoder, so that the weights are not shared with your object."
            )


def warn_cut(n_cut: int, n_samples: int, max_length: int, remedy: str) -> None:
    """Tell that samples were cut, where any were."""
    if n_cut:
        warn(
            f"{n_cut} of {n_samples} texts ({n_cut / n_samples:.0%}) are longer than "
            f"max_length={max_length} tokens and were cut; what is beyond is not read. "
            + remedy,
        )


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module."""
    return chain(module.parameters(), module.buffers())


def probe_features(module: Callable, batch: dict[str, Tensor]) -> Any:
    """Features of a fixed batch, whatever autocast or gradient mode the caller is in."""
    device = next(iter(batch.values())).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        return module(batch)


def same_features(
    probe: np.ndarray | None, other: np.ndarray | None, tolerance: float = 1e-4
) -> bool:
    """Whether two probes agree to what devices and versions differ in rounding."""
    if probe is None or other is None:
        return True
    if np.array_equal(probe, other, equal_nan=True):
        return True
    atol = tolerance * float(np.abs(probe).max())
    return np.allclose(probe, other, rtol=0, atol=atol)


def refuse_inference(module: nn.Module) -> None:
    """Raise a `ValueError` if a module holds tensors made in inference mode."""
    if any(t.is_inference() for t in tensors_of(module)):
        raise ValueError(
            "The given model was loaded inside torch.inference_mode(), which leaves "
            "tensors that cannot take part in training. Load it outside."
        )


def addresses(module: nn.Module) -> tuple:
    """Where the tensors of a module are in memory."""
    return tuple(t.data_ptr() for t in tensors_of(module))


class Seal:
    """Addresses, versions and samples of all tensors: broken when any is changed.

    Fused optimizers and writes to `.data` do not count the version up, so some values
    of each tensor are looked at too; a training step moves nearly all of them.

    Parameters
    ----------
    module : torch.nn.Module
        Whose tensors are watched.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors = list(tensors_of(module))
        self._some = [_some_values(tensor.detach()) for tensor in self._tensors]
        on_cpu = all(tensor.device.type == "cpu" for tensor in self._tensors)
        # Each prediction looks: as arrays that takes half of the time.
        self._arrays = [some.numpy() for some in self._some] if on_cpu else None
        self._state = self._look()

    def _look(self) -> tuple:
        places = [(tensor.data_ptr(), tensor._version) for tensor in self._tensors]
        if self._arrays is not None:
            return places, b"".join(array.tobytes() for array in self._arrays)
        some = torch.cat([values.reshape(-1) for values in self._some])
        return places, some.cpu().numpy().tobytes()

    @property
    def broken(self) -> bool:
        """Whether a tensor is not what it was."""
        return self._look() != self._state


def _some_values(tensor: Tensor) -> Tensor:
    """View of at least 16 values, where there are so many, from all over a tensor.

    In a matrix they come from different columns. As integers of the same bits: numpy does
    not know all types, and nan is not equal to nan.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_contiguous():
        step = max(1, tensor.numel() // 16)
        while math.gcd(step, *tensor.shape[-1:]) > 1:
            step -= 1
        some = tensor.view(-1)[::step]
    else:
        n_each = 16 ** (1 / tensor.ndim)  # never a copy, which would not see changes
        some = tensor[
            tuple(slice(None, None, max(1, int(n / n_each))) for n in tensor.shape)
        ]
    return some.view(_INTEGERS[tensor.element_size()])


def alias_memo(module: nn.Module) -> dict[int, Any]:
    """Memo for `copy.deepcopy`: frozen aliases that share memory with the tensors."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach()
    return memo


def digest(module: nn.Module, *details: object) -> str:
    """Hash names, types, shapes and bytes of all tensors, and `details`."""
    state = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        state.update(memoryview(data.numpy()))
    for detail in details:
        state.update(repr(detail).encode())
    return state.hexdigest()


def pad(
    rows: Sequence[np.ndarray],
    value: int = 0,
    side: str = "right",
    length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Stack rows of ids, filled up to the longest.

    Parameters
    ----------
    rows : sequence of ndarray of int
        Token ids, one array a sample.
    value : int, default=0
        What fills up.
    side : {"right", "left"}, default="right"
        Which end is filled up.
    length : int, default=0
        Ids of a row at least.

    Returns
    -------
    ids, mask : Tensor of shape (batch, seq)
        Both int64; the mask is 1 at real tokens.
    """
    longest = max(length, *(len(row) for row in rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        place = (
            slice(0, len(row)) if side == "right" else slice(longest - len(row), None)
        )
        ids[i, place] = row
        mask[i, place] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
