"""An encoder with adapters in it: shares what is frozen, owns what is trained."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn

import skpeft
from skpeft import _prefix
from skpeft._data import length_batches
from skpeft._validation import one_of
from skpeft.adapters.base import Adapter, GeneratorDropout
from skpeft.encoders import FAMILIES
from skpeft.encoders.base import Backbone, Encoder, Item, same_features

Layers = int | Sequence[int] | str | None
#: Layout of pickled networks; raised when an older version could not read a new one.
FORMAT = 1
# Tokens that go through at once, padding included: on a CPU, where 512 took 0.5 to 0.6 of
# the time of all at once and 256 took 0.9 to 1 of that of 512, and elsewhere.
_TOKENS_PER_GROUP = (256, 16384)


class Live(NamedTuple):
    """What exists only while a network is in use, and is rebuilt after unpickling."""

    backbone: Backbone
    module: nn.Module
    lowest: int
    device: torch.device
    autocast: torch.dtype | None


class AdapterNetwork:
    """A frozen encoder and the adapters attached to it.

    Its pickle holds the trained tensors as arrays and the recipe for all else; the
    encoder is found again at first use and must have the same fingerprint.

    Parameters
    ----------
    encoder : Encoder
        Spec of the frozen encoder.
    adapter : Adapter or None
        Spec of what is trained; None trains nothing.
    layers : "auto", int, sequence of int, or None
        Blocks that get adapters: the upper two thirds, the last n, those of the indices, or
        all.
    n_features : int
        Columns of X.
    device, precision : str
        As given to the estimator.
    seed : int
        Seed of the adapters' initial values.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapter: Adapter | None,
        layers: Layers,
        *,
        n_features: int,
        device: str,
        precision: str,
        seed: int,
    ) -> None:
        self.encoder = encoder
        self.adapter = adapter
        self.layers = layers
        self.n_features = n_features
        self.device = device
        self.precision = precision
        self.seed = seed
        self._lock = threading.Lock()
        self._halves: _prefix.Halves | None = None
        self._states: dict[int, list[Tensor]] = {}
        self._stored: dict[str, np.ndarray] | None = None
        self._live: Live | None = None
        self.fingerprint: str | None = None
        self.probe: np.ndarray | None = None
        backbone = self.live.backbone
        self.fingerprint, self.probe = backbone.fingerprint, backbone.probe

    @property
    def live(self) -> Live:
        """The parts in memory, built at first use."""
        if self._live is None:
            with self._lock:
                if self._live is None:
                    self._live = self._build()
        return self._live

    @torch.inference_mode(False)  # inference tensors could not be trained on
    def _build(self) -> Live:
        device = resolve_device(self.device)
        weight_dtype, autocast = resolve_precision(self.precision, device)
        backbone = self.encoder.load(
            n_features=self.n_features, device=device, dtype=weight_dtype
        )
        if self.fingerprint is not None and not self.knows(backbone):
            raise ValueError(
                f"This model was fitted on an encoder with fingerprint "
                f"{self.fingerprint[:16]}, but {self.encoder!r} now gives another one, with "
                f"{backbone.fingerprint[:16]}, or one that computes other features. The "
                "adapters belong to the former: put the same encoder back in its place, "
                "or fit again."
            )
        module, lowest = backbone.share_module(), 0
        if self.adapter is not None:
            generator = torch.Generator(device="cpu").manual_seed(self.seed)
            lowest = attach(module, backbone, self.adapter, self.layers, generator)
            for tensor in module.parameters():
                if tensor.requires_grad:
                    tensor.data = tensor.data.to(device, weight_dtype)
        if self._stored is not None:
            load_tensors(module, self._stored)
            self._stored = None
        return Live(backbone, module, lowest, device, autocast)

    def knows(self, backbone: Backbone) -> bool:
        """Whether a backbone is the one of the fit: same content, same features."""
        same = backbone.fingerprint == self.fingerprint
        return same and same_features(self.probe, backbone.probe)

    def relocate(self, encoder: Encoder) -> None:
        """Look for the encoder's weights where another spec says they are.

        All else that the spec says stays as it was at fit, and the fingerprint must agree.
        """
        former = self.encoder
        if not (hasattr(former, "model") and hasattr(encoder, "model")):
            _ = self.live  # nothing to look elsewhere for: raises what it raised before
            return
        self.encoder = clone(former).set_params(model=encoder.model)
        try:
            _ = self.live
        except (OSError, ValueError):
            self.encoder = former
            raise

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name."""
        named = self.live.module.named_parameters()
        return {name: tensor for name, tensor in named if tensor.requires_grad}

    @property
    def n_frozen(self) -> int:
        """Number of frozen weights."""
        return sum(
            t.numel() for t in self.live.module.parameters() if not t.requires_grad
        )

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the trainable tensors as arrays on the CPU."""
        if self._live is None and self._stored is not None:
            return self._stored
        return {
            name: tensor.detach().to("cpu", copy=True).numpy()
            for name, tensor in self.trainable().items()
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Set the trainable tensors; names and shapes must be the network's own."""
        load_tensors(self.live.module, state)

    @contextmanager
    def dropout(self, generator: torch.Generator | None) -> Iterator[None]:
        """Inside, dropout of the adapters draws from a generator, or rests with None."""
        parts = [
            p for p in self.live.module.modules() if isinstance(p, GeneratorDropout)
        ]
        former = [part.generator for part in parts]
        for part in parts:
            part.generator = generator
        try:
            yield
        finally:
            for part, earlier in zip(parts, former, strict=True):
                part.generator = earlier

    @contextmanager
    def own_context(self) -> Iterator[None]:
        """Inside, gradients, autocast and default device are as training needs them."""
        device = self.live.device
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), device:
            yield

    @contextmanager
    def frozen_states(self, items: Sequence[Item]) -> Iterator[None]:
        """Inside, what lies below the first adapted block is computed once for these items.

        Where that does not pay or cannot be done, every pass goes through all blocks.
        """
        try:
            if self.live.lowest and len(items):
                self._remember(items)
            yield
        finally:
            self._halves, self._states = None, {}

    @torch.inference_mode(False)
    def _remember(self, items: Sequence[Item]) -> None:
        """Fill `_states` by the identity of the items."""
        live = self.live
        lengths = [live.backbone.length(item) for item in items]
        groups = list(self._groups(lengths))
        path = _join(live.backbone.root, (live.backbone.role_table or {})["blocks"])
        # Items of all lengths, and the last of them by itself, as other batches will be.
        some = [items[i] for i in [*groups[0][:2], *groups[-1][-2:]]]
        with self.own_context(), torch.no_grad(), autocast_to(live):
            batches = self._collate(some), self._collate(some[-1:])
            rounding = 1e-4 if live.autocast is None else 3e-2
            halves = _prefix.halve(live.module, path, live.lowest, *batches, rounding)
            if halves is None:
                return
            n_bytes = 0
            for group in groups:
                rows = [items[i] for i in group]
                states = halves.states(self._collate(rows))
                n_bytes += sum(t.nbytes for state in states for t in state)
                if n_bytes > _prefix.LIMIT:
                    self._states.clear()
                    return
                self._states.update(zip(map(id, rows), states, strict=True))
        self._halves = halves

    def prepare(self, samples: Sequence) -> list[Item]:
        """Turn samples into items, once per fit or prediction."""
        return self.live.backbone.prepare(samples)

    def mean_length(self, items: Sequence[Item]) -> float:
        """Mean number of tokens."""
        return float(np.mean([self.live.backbone.length(item) for item in items]))

    def forward(self, items: Sequence[Item]) -> Tensor:
        """Adapted features of shape (n_items, dim), with gradients.

        Items go through in groups of like length, which saves padding, and come out in
        their own order.
        """
        live = self.live
        lengths = [live.backbone.length(item) for item in items]
        groups = list(self._groups(lengths))
        features = torch.cat([self._run([items[i] for i in rows]) for rows in groups])
        return features[torch.from_numpy(np.argsort(np.concatenate(groups)))]

    def _groups(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Row numbers that go through together."""
        return length_batches(
            lengths, _TOKENS_PER_GROUP[self.live.device.type != "cpu"]
        )

    def _collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One batch where the weights are, in their type."""
        live = self.live
        weight_dtype, _ = resolve_precision(self.precision, live.device)
        return {
            name: tensor.to(
                live.device, weight_dtype if tensor.is_floating_point() else None
            )
            for name, tensor in live.backbone.collate(items).items()
        }

    def _run(self, items: Sequence[Item]) -> Tensor:
        """Features of one group of items, from its known hidden states where there are."""
        live = self.live
        batch = self._collate(items)
        states = [self._states[id(i)] for i in items if id(i) in self._states]
        with autocast_to(live):
            if self._halves is not None and len(states) == len(items):
                features = self._halves.resume(batch, states)
            else:
                features = live.module(batch)
        return features.to(resolve_precision(self.precision, live.device)[0])

    def features(self, items: Sequence[Item]) -> np.ndarray:
        """Adapted features of shape (n_items, dim) as an array, without gradients."""
        self.live.backbone.check_unchanged()
        with torch.no_grad():
            return self.forward(items).cpu().numpy()

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        for name in ("_lock", "_live", "_halves", "_states"):
            del state[name]
        state["_stored"] = self.state()
        return {"format": FORMAT, "skpeft": skpeft.__version__, **state}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        written, version = state.pop("format"), state.pop("skpeft")
        if written > FORMAT:
            raise ValueError(
                f"This model was saved by skpeft {version} in format {written}; this is "
                f"skpeft {skpeft.__version__}, which reads formats up to {FORMAT}. Install "
                f"skpeft>={version}."
            )
        self.__dict__.update(state, _lock=threading.Lock(), _live=None)
        self._halves, self._states = None, {}

    def __deepcopy__(self, memo: dict) -> "AdapterNetwork":
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new


def attach(
    module: nn.Module,
    backbone: Backbone,
    adapter: Adapter,
    layers: Layers,
    generator: torch.Generator,
) -> int:
    """Put the layers of an adapter into a network's own module tree, in place.

    Returns the index of the lowest block that is no longer frozen.
    """
    if adapter.trains_encoder and (layers is None or isinstance(layers, str)):
        adapter.release(module)
        return 0
    table = check_table(backbone, adapter)
    blocks = find_blocks(module.get_submodule(backbone.root), table)
    if not blocks:
        raise ValueError(
            f"The role table says that the blocks are at {table['blocks']!r}, but nothing "
            "is inside. Give the path of the list of transformer blocks."
        )
    indices = layer_indices(layers, len(blocks))
    for block in (blocks[i] for i in indices):
        if adapter.trains_encoder:
            adapter.release(block)
            continue
        sites = {role: find_site(block, role, table) for role in adapter.target_roles()}
        for role, layer in adapter.attach(sites, generator).items():
            parent, _, name = table[role].rpartition(".")
            setattr(block.get_submodule(parent), name, layer)
    return indices[0]


def check_table(backbone: Backbone, adapter: Adapter) -> dict[str, str]:
    """Role table of a backbone, known to have the roles that an adapter acts on.

    Raises
    ------
    ValueError
        If the model family is not known, or lacks a role.
    """
    table = backbone.role_table
    if not adapter.trains_encoder and not adapter.target_roles():
        raise ValueError(f"{adapter!r} names no role, so it would adapt nothing.")
    if table is None:
        raise ValueError(
            f"The model family {backbone.family!r} is not known, so there is no telling "
            f"where adapters go. Known families: {sorted(FAMILIES)}. Pass role_table= to "
            "the encoder: a dict with the path of the list of blocks under 'blocks' and, "
            "for each role ('query', 'key', 'value', 'attention_output', 'ffn_in', "
            "'ffn_out'), the path of its linear layer inside a block. Linear layers "
            f"found: {linear_names(backbone.module.get_submodule(backbone.root))}."
        )
    for role in adapter.target_roles():
        if role not in table:
            roles = [name for name in table if name != "blocks"]
            raise ValueError(
                f"{adapter!r}: " + one_of(role, roles, "role of this encoder")
            )
    paths = [table[role] for role in adapter.target_roles()]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"{adapter!r} acts on the roles {adapter.target_roles()}, but in this encoder "
            f"these lead to one layer more than once: {paths}. Name each layer once."
        )
    return table


def find_blocks(root: nn.Module, table: dict[str, str]) -> list[nn.Module]:
    """Transformer blocks; a root without a list of them is one block."""
    path = table["blocks"]
    return list(root.get_submodule(path).children()) if path else [root]


def _join(*paths: str) -> str:
    return ".".join(path for path in paths if path)


def layer_indices(layers: Layers, n_blocks: int) -> list[int]:
    """Indices of the chosen blocks: the upper two thirds, all, the last n, or those named.

    Raises
    ------
    ValueError
        If a block is named that is not there.
    """
    if layers is None:
        return list(range(n_blocks))
    if isinstance(layers, str):  # "auto"
        return list(range(n_blocks // 3, n_blocks))
    if isinstance(layers, int | np.integer):
        indices, valid = (
            list(range(n_blocks - int(layers), n_blocks)),
            0 < layers <= n_blocks,
        )
    else:
        indices = list(layers)
        valid = bool(indices) and all(
            isinstance(i, int | np.integer) and -n_blocks <= i < n_blocks
            for i in indices
        )
    if not valid:
        raise ValueError(
            f"layers={layers!r} was given, but the encoder has {n_blocks} blocks: a number "
            f"from 1 to {n_blocks} means the last ones, a sequence holds indices from 0 to "
            f"{n_blocks - 1}, None means all, 'auto' the upper two thirds."
        )
    return sorted({int(i) % n_blocks for i in indices})


def find_site(block: nn.Module, role: str, table: dict[str, str]) -> nn.Linear:
    """Linear layer of a block that has a role."""
    try:
        site = block.get_submodule(table[role])
    except AttributeError:
        site = None
    if not isinstance(site, nn.Linear):
        found = "nothing" if site is None else f"a {type(site).__name__}"
        raise ValueError(
            f"The role table says that {role!r} is at {table[role]!r} of a block, but "
            f"{found} is there; adapters wrap torch.nn.Linear layers. Linear layers found "
            f"in the block: {linear_names(block)}."
        )
    return site


def linear_names(module: nn.Module) -> list[str]:
    """Paths of the linear layers in a module."""
    return [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear)
    ]


def load_tensors(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Copy arrays into the trainable tensors of a module; nothing missing, nothing left."""
    own = {name: t for name, t in module.named_parameters() if t.requires_grad}
    if own.keys() != state.keys():
        raise ValueError(
            "The stored tensors do not fit the adapters: missing "
            f"{sorted(own.keys() - state.keys())}, unknown {sorted(state.keys() - own.keys())}."
        )
    for name, tensor in own.items():
        if tuple(tensor.shape) != state[name].shape:
            raise ValueError(
                f"The stored tensor {name!r} has shape {state[name].shape}; "
                f"{tuple(tensor.shape)} is expected."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.array(state[name])))


def resolve_device(device: str) -> torch.device:
    """The torch device that "auto" or a name stands for."""
    if device != "auto":
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device={device!r} cannot be used on this machine ({reason}). Give "
                "'auto', 'cpu', or a device that torch finds here."
            ) from error
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(
    precision: str, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """Type of the weights, and type of matrix products where it differs."""
    if precision == "float64":
        return torch.float64, None
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.float32, torch.bfloat16
    return torch.float32, None


def autocast_to(live: Live) -> AbstractContextManager:
    """Context in which matrix products run in the reduced type, where one is asked for."""
    # Without its cache: inside `own_context` that would keep weights as they were cast first.
    return torch.autocast(
        live.device.type,
        live.autocast,
        enabled=live.autocast is not None,
        cache_enabled=False,
    )
