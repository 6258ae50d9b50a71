"""An encoder with adapters in it: shares what is frozen, owns what is trained."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

import skpeft
from skpeft._device import resolve_device, resolve_precision, warn_slow
from skpeft._live import LiveNetwork, content, load_tensors
from skpeft._sites import (
    Layers,
    attach,
    block_indices,
    block_paths,
    join_paths,
    known_table,
    linear_names,
    roles_at,
)
from skpeft.adapters import _peft
from skpeft.adapters.base import Adapter
from skpeft.encoders.base import Backbone, Encoder, Item, same_features, tensors_of

#: Layout of pickled networks; raised when an older version could not read a new one.
FORMAT = 1


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
        self.resumes: bool | None = None  # of what was unpickled; see `LiveNetwork`
        self._stored: dict[str, np.ndarray] | None = None
        self._live: LiveNetwork | None = None
        self.fingerprint: str | None = None
        self.probe: np.ndarray | None = None
        backbone = self.live.backbone
        warn_slow(self.live.device, self.live.autocast)
        self.fingerprint, self.probe = backbone.fingerprint, backbone.probe
        self.root = backbone.root

    @property
    def live(self) -> LiveNetwork:
        """What is in memory, built at first use."""
        if self._live is None:
            with self._lock:
                if self._live is None:
                    self._live = self._build()
                    self._stored = None  # now: what stops a build must lose nothing
        return self._live

    @property
    def is_live(self) -> bool:
        """Whether it is in memory."""
        return self._live is not None

    @torch.inference_mode(False)  # inference tensors could not be trained on
    def _build(self) -> LiveNetwork:
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
            start = self._start(backbone)
            generator = torch.Generator(device="cpu").manual_seed(self.seed)
            lowest = attach(module, backbone, self.adapter, self.layers, generator)
            module.eval()
            known = {id(tensor) for tensor in tensors_of(backbone.module)}
            for tensor in tensors_of(module):
                if id(tensor) not in known:
                    dtype = weight_dtype if tensor.is_floating_point() else None
                    tensor.data = tensor.data.to(device, dtype)
            _peft.fill(module, start)
        if self._stored is not None:
            load_tensors(module, self._stored)
        return LiveNetwork(
            backbone,
            module,
            lowest=lowest,
            adapted=self.adapter is not None,
            device=device,
            dtype=weight_dtype,
            autocast=autocast,
            resumes=self.resumes,
        )

    def _start(self, backbone: Backbone) -> dict[str, dict[str, np.ndarray]]:
        """Tensors of a saved adapter to start from, by the path of their layer.

        The blocks that get adapters become those of the file.
        """
        adapter = self.adapter
        if adapter is None or adapter.weights is None or self._stored is not None:
            return {}  # `_stored`: the network was fitted, and has its own
        table, blocks = known_table(backbone), block_paths(backbone)
        found = _peft.start_of(
            adapter,
            roles_at(backbone, adapter),
            blocks,
            table,
            linear_names(backbone.module.get_submodule(backbone.root)),
        )
        indices = sorted({i for i, _ in found})
        if isinstance(self.layers, str):
            # Blocks that share their weights cannot be named; they are adapted all at once.
            self.layers = indices if backbone.n_calls is None else "auto"
        if block_indices(backbone, self.layers, len(blocks)) != indices:
            raise ValueError(
                f"layers={self.layers!r} was given, but the adapter in {adapter.weights!r} "
                f"adapts the blocks {indices} of {len(blocks)}. Leave layers='auto', which "
                "takes the blocks of the file."
            )
        paths = {
            (i, r): join_paths(backbone.root, blocks[i], table[r]) for i, r in found
        }
        return {paths[site]: parts for site, parts in found.items()}

    @property
    def trains(self) -> bool:
        """Whether there is an adapter that is trained."""
        return self.adapter is not None and not self.adapter.frozen

    @property
    def starts_from_file(self) -> bool:
        """Whether the adapter starts from saved weights, and not from the encoder as it is."""
        return self.adapter is not None and self.adapter.weights is not None

    @property
    def n_trained(self) -> int:
        """Number of weights that fit trains."""
        tensors = self.live.trainable().values() if self.trains else ()
        return sum(tensor.numel() for tensor in tensors)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "AdapterNetwork":
        """Network of a fit, from what describes it and its trained tensors."""
        new = object.__new__(cls)
        new._take(state)
        return new

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

    def state(self) -> dict[str, np.ndarray]:
        """Trained tensors as arrays on the CPU, which nobody may change."""
        stored = self._stored  # read once: another thread may be building
        if self._live is None and stored is not None:
            return stored
        return self.live.state()

    def start_features(self, items: Sequence[Item]) -> np.ndarray:
        """Features of shape (n_items, dim) before training, without gradients.

        They are the frozen encoder's own, but for an adapter that starts from saved
        weights: then the network must be in its start.
        """
        if self.starts_from_file:
            return self.live.features(items)
        return self.live.frozen_features(items)

    def __getstate__(self) -> dict:
        state = self._state()
        about = {"format": FORMAT, "skpeft": skpeft.__version__}
        # By the digest damage is noticed when it is read.
        return {**about, "digest": content(state["_stored"]), **state}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        written, version = state.pop("format"), state.pop("skpeft")
        if written > FORMAT:
            raise ValueError(
                f"This model was saved by skpeft {version} in format {written}; this is "
                f"skpeft {skpeft.__version__}, which reads formats up to {FORMAT}. Install "
                f"skpeft>={version}."
            )
        if state.pop("digest") != content(state["_stored"]):
            raise ValueError(
                "The trained tensors of this model are not those that were saved: the file "
                "is damaged or was edited. Copy or download it again, or fit anew."
            )
        self._take(state)

    def _state(self) -> dict[str, Any]:
        """What describes the network, and its trained tensors, which nobody may change."""
        state = self.__dict__.copy()
        del state["_lock"]
        live = state.pop("_live")
        if live is not None:
            state["resumes"] = live.resumes
        return {**state, "_stored": self.state()}

    def _take(self, state: dict[str, Any]) -> None:
        """Become the network of a state; the encoder is found at first use."""
        self.resumes = None
        self.__dict__.update(state, _lock=threading.Lock(), _live=None)
