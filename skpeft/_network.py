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
from skpeft._data import length_batches
from skpeft._validation import one_of
from skpeft.adapters.base import Adapter, GeneratorDropout
from skpeft.encoders import FAMILIES
from skpeft.encoders.base import Backbone, Encoder, Item, same_features

Layers = int | Sequence[int] | None
#: Layout of pickled networks; raised when an older version could not read a new one.
FORMAT = 1
# Tokens that go through at once, padding included: on a CPU, where 512 took 0.5 to 0.6 of
# the time of all at once (short and long texts, batches of 24 to 64), and elsewhere.
_TOKENS_PER_GROUP = (512, 16384)


class Live(NamedTuple):
    """What exists only while a network is in use, and is rebuilt after unpickling."""

    backbone: Backbone
    module: nn.Module
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
    layers : int, sequence of int, or None
        Blocks that get adapters: the last n, those of the indices, or all.
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
        module = backbone.share_module()
        if self.adapter is not None:
            generator = torch.Generator(device="cpu").manual_seed(self.seed)
            attach(module, backbone, self.adapter, self.layers, generator)
            for tensor in module.parameters():
                if tensor.requires_grad:
                    tensor.data = tensor.data.to(device, weight_dtype)
        if self._stored is not None:
            load_tensors(module, self._stored)
            self._stored = None
        return Live(backbone, module, device, autocast)

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

    def without_adapter(self) -> "AdapterNetwork":
        """Network of the same frozen encoder alone."""
        return AdapterNetwork(
            self.encoder,
            None,
            None,
            n_features=self.n_features,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
        )

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
        groups = list(
            length_batches(lengths, _TOKENS_PER_GROUP[live.device.type != "cpu"])
        )
        features = torch.cat([self._run([items[i] for i in rows]) for rows in groups])
        return features[torch.from_numpy(np.argsort(np.concatenate(groups)))]

    def _run(self, items: Sequence[Item]) -> Tensor:
        """Features of one group of items."""
        live = self.live
        weight_dtype, _ = resolve_precision(self.precision, live.device)
        batch = {
            name: tensor.to(
                live.device, weight_dtype if tensor.is_floating_point() else None
            )
            for name, tensor in live.backbone.collate(items).items()
        }
        with autocast_to(live):
            features = live.module(batch)
        return features.to(weight_dtype)

    def features(self, items: Sequence[Item]) -> np.ndarray:
        """Adapted features of shape (n_items, dim) as an array, without gradients."""
        self.live.backbone.check_unchanged()
        with torch.no_grad():
            return self.forward(items).cpu().numpy()

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        del state["_lock"], state["_live"]
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
) -> None:
    """Put the layers of an adapter into a network's own module tree, in place."""
    if adapter.trains_encoder and layers is None:
        adapter.release(module)
        return
    table = check_table(backbone, adapter)
    for block in choose_blocks(module.get_submodule(backbone.root), table, layers):
        if adapter.trains_encoder:
            adapter.release(block)
            continue
        sites = {role: find_site(block, role, table) for role in adapter.target_roles()}
        for role, layer in adapter.attach(sites, generator).items():
            parent, _, name = table[role].rpartition(".")
            setattr(block.get_submodule(parent), name, layer)


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


def choose_blocks(
    root: nn.Module, table: dict[str, str], layers: Layers
) -> list[nn.Module]:
    """Transformer blocks that get adapters."""
    path = table["blocks"]
    blocks = list(root.get_submodule(path).children()) if path else [root]
    return [blocks[i] for i in layer_indices(layers, len(blocks))]


def layer_indices(layers: Layers, n_blocks: int) -> list[int]:
    """Indices of the chosen blocks: all, the last n, or those named.

    Raises
    ------
    ValueError
        If a block is named that is not there.
    """
    if layers is None:
        return list(range(n_blocks))
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
            f"{n_blocks - 1}, None means all."
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
    return torch.autocast(
        live.device.type, live.autocast, enabled=live.autocast is not None
    )
