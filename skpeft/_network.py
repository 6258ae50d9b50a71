"""An encoder with adapters in it: shares what is frozen, owns what is trained."""

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skpeft
from skpeft import _prefix
from skpeft._cache import STATES, WEIGHTS
from skpeft._data import length_batches
from skpeft._device import (
    any_shape,
    moved,
    resolve_device,
    resolve_precision,
    warn_slow,
)
from skpeft._replays import Replays
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
from skpeft.adapters.base import Adapter, GeneratorDropout, ReweightedLayer, lent
from skpeft.encoders.base import Backbone, Encoder, Item, same_features, tensors_of

#: Layout of pickled networks; raised when an older version could not read a new one.
FORMAT = 1
# Tokens that go through at once at most, padding included, and how many more would take as
# long as a pass does whatever its size: on a CPU, and elsewhere, where few passes count. On a
# CPU 512 were no faster, and took 1.4 times the memory for each further text; 256 were slower.
_GROUPS = {"cpu": (384, 40)}
_GROUPS_ELSEWHERE = (16384, 16384)
# Of a training step with more, what a group of windows leaves for the backward pass is not
# kept but computed again: long texts would fill the memory. At 8192 tokens it is 1 GB with
# the default encoder and adapters.
TOKENS_KEPT = 8192
# Of more that is trained no passes are recorded on a GPU: each recording holds gradients.
_MOST_TRAINED = 4_000_000
# Packages whose modules are known to do the same at each pass.
KNOWN_CODE = {"skpeft", "torch", "transformers", "sentence_transformers"}
# Batches whose passes a GPU replays are filled up to a multiple of so many rows.
_ROWS_IN_STEP = 8
# Of how many windows features are asked for at once: many small tensors scatter the memory.
_WINDOWS_AT_ONCE = 1024
# A row of a matrix product may have other bits than in a larger one where there are fewer rows
# than this, or than four for each thread. What is asked for with fewer tokens in all is neither
# kept nor looked up.
_LEAST_TOKENS = 16
# Where the features of the encoder alone are kept: behind all of it.
_FEATURES = ("features",)


class NotFiniteError(ValueError):
    """Loss, weights or features are no longer finite, or the loss grows without end."""


class Live(NamedTuple):
    """What exists only while a network is in use, and is rebuilt after unpickling."""

    backbone: Backbone
    module: nn.Module
    dropouts: list[GeneratorDropout]
    reweighted: list[ReweightedLayer]
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
        self.resumes: bool | None = None
        self._stored: dict[str, np.ndarray] | None = None
        self._live: Live | None = None
        self.fingerprint: str | None = None
        self.probe: np.ndarray | None = None
        self.root = ""
        backbone = self.live.backbone
        warn_slow(self.live.device, self.live.autocast)
        self.fingerprint, self.probe = backbone.fingerprint, backbone.probe
        self.root = backbone.root

    @property
    def live(self) -> Live:
        """The parts in memory, built at first use."""
        if self._live is None:
            with self._lock:
                if self._live is None:
                    self._live = self._build()
                    self._stored = None  # now: what stops a build must lose nothing
        return self._live

    @property
    def is_live(self) -> bool:
        """Whether the parts are in memory."""
        return self._live is not None

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
        dropouts = [p for p in module.modules() if isinstance(p, GeneratorDropout)]
        reweighted = [p for p in module.modules() if isinstance(p, ReweightedLayer)]
        if reweighted:  # what is kept of a network goes with it
            weakref.finalize(module, STATES.drop, _weights_of(module)).atexit = False
        return Live(backbone, module, dropouts, reweighted, lowest, device, autocast)

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
    def n_trained(self) -> int:
        """Number of weights that fit trains."""
        return sum(t.numel() for t in self.trainable().values()) if self.trains else 0

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
        stored = self._stored  # read once: another thread may be building
        if self._live is None and stored is not None:
            return stored
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
        parts = self.live.dropouts
        former = [part.generator for part in parts]
        for part in parts:
            part.generator = generator
        try:
            yield
        finally:
            for part, earlier in zip(parts, former, strict=True):
                part.generator = earlier

    def replays(self) -> Replays | None:
        """Recorded passes of a fit, where a GPU can replay them; None: it cannot."""
        live, trained = self.live, list(self.trainable().values())
        able = (
            live.device.type == "cuda"
            and live.backbone.steady
            # Code that is not known may do something else at each pass.
            and all(_origin(part) in KNOWN_CODE for part in live.module.modules())
            and 0 < sum(t.numel() for t in trained) <= _MOST_TRAINED
            and not any(part.p for part in live.dropouts)  # with a generator of its own
            # What `ready` makes is made outside of the pass.
            and not any(part.takes_weight(True) for part in live.reweighted)
        )
        return Replays(trained, self._rounding) if able else None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, weights that layers compute from what is trained are computed once."""
        training = torch.is_grad_enabled()
        parts = [p for p in self.live.reweighted if p.takes_weight(training)]
        with torch.autocast(self.live.device.type, enabled=False):
            weights = self._weights(parts) if parts else []
        # None for the others, whatever a context outside of this one lends them.
        own = dict.fromkeys(self.live.reweighted)
        with lent(own | dict(zip(parts, weights, strict=True))):
            yield

    def _weights(self, parts: list[ReweightedLayer]) -> list[Tensor]:
        """Weights that layers compute; without gradients they are kept like hidden states."""
        if torch.is_grad_enabled():
            return [part.product() for part in parts]
        place = _weights_of(self.live.module)
        trained = [t for part in parts for t in part.own_tensors()]
        kept = STATES.get(place)
        # By content: a fused optimizer leaves the versions of tensors as they were.
        if kept is None or not all(map(torch.equal, kept, trained)):
            kept = [tensor.detach().clone() for tensor in trained]
            kept += [part.product() for part in parts]
            STATES.put(place, kept)
        return kept[len(trained) :]

    @contextmanager
    def own_context(self) -> Iterator[None]:
        """Inside, gradients, autocast and default device are as training needs them."""
        device = self.live.device
        # A mode of torch, which costs time and takes an interrupt badly: where it is needed.
        # A tensor tells, also of `with torch.device(...)`, which torch 2.5 does not by name.
        usual = torch.empty(0).device in (torch.device("cpu"), device)
        place = nullcontext() if usual else device
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), place:
            yield

    @torch.inference_mode(False)  # what is kept must do for training too
    @torch.no_grad()
    def remember(self, items: Sequence[Item]) -> None:
        """Compute what training leaves as it is for all items at once, where it is kept.

        Items of like length so come together; what is beyond the limit of the cache comes
        when it is needed.
        """
        items = self.windows(items)
        n_bytes, halves = 0, self._halves_for(items)
        if halves is None:
            return
        for group in self.groups(self.lengths(items)):
            some = [items[i] for i in group]
            states = self.kept(halves.place, some, halves.states)
            n_bytes += sum(tensor.nbytes for state in states for tensor in state)
            if n_bytes >= STATES.limit:
                return

    @torch.inference_mode(False)
    @torch.no_grad()
    def _halves_for(self, items: Sequence[Item]) -> _prefix.Halves | None:
        """The frozen part and the rest, where they make up the whole.

        It is tried once, on the first items that come; a fitted network keeps the outcome.
        """
        _ = self.live  # built before the lock is taken, which building takes too
        if self._halves is None and self.resumes is not False:
            with self._lock:  # a trial notes the calls of blocks, so one at a time
                if self._halves is None and self.resumes is not False:
                    self._halves = self._halve(items)
                    self.resumes = self._halves is not None
        return self._halves

    def _halve(self, items: Sequence[Item]) -> _prefix.Halves | None:
        """Split the module, and try the halves on some of the items."""
        if self.adapter is None:
            return None
        with self.own_context(), torch.no_grad():
            return self.halves_at(self.live.lowest, self.live.module, self.some(items))

    def some(self, windows: Sequence[Item]) -> list[Item]:
        """A few windows of all lengths, on which something can be tried."""
        order = np.argsort(np.negative(self.lengths(windows)), kind="stable")
        return [windows[i] for i in dict.fromkeys([*order[:2], *order[-2:]])]

    def halves_at(
        self, lowest: int, module: nn.Module, some: Sequence[Item]
    ) -> _prefix.Halves | None:
        """Halves of a module around this encoder, split below a block; None: impossible.

        They are tried on some items together, and on the last by itself.
        """
        live = self.live
        if live.backbone.role_table is None:
            return None
        path = join_paths(live.backbone.root, live.backbone.role_table["blocks"])
        batches = self._collate(some), self._collate(some[-1:])
        with computing(live):
            return _prefix.halve(module, path, lowest, *batches, self._rounding)

    def start_features(self, items: Sequence[Item]) -> np.ndarray:
        """Features of shape (n_items, dim) before training, without gradients.

        They are the frozen encoder's own, but for an adapter that starts from saved
        weights: then the network must be in its start.
        """
        if self.adapter is not None and self.adapter.weights is not None:
            return self.features(items)
        return self.frozen_features(items)

    def frozen_features(self, items: Sequence[Item]) -> np.ndarray:
        """Features of the encoder alone, of shape (n_items, dim); kept like hidden states."""
        self.live.backbone.check_unchanged()

        def frozen(windows: list[Item]) -> Tensor:
            kept = self.kept(_FEATURES, windows, self._frozen)
            return torch.stack([row for (row,) in kept])

        features = self._few_by_few(self.windows(items), frozen)
        return _finite(self.live.backbone.join(features, items).cpu().numpy())

    def _few_by_few(
        self, windows: list[Item], compute: Callable[[list[Item]], Tensor]
    ) -> Tensor:
        """Features of windows in their order, asked for some at a time by their lengths.

        What several windows hold is asked for once.
        """
        alike: dict[bytes, list[int]] = {}
        for number, window in enumerate(windows):
            alike.setdefault(_content(window), []).append(number)
        places = list(alike.values())
        order = np.argsort(self.lengths([windows[p[0]] for p in places]), kind="stable")
        features = torch.empty(0)
        for start in range(0, len(order), _WINDOWS_AT_ONCE):
            part = [places[i] for i in order[start : start + _WINDOWS_AT_ONCE]]
            rows = compute([windows[p[0]] for p in part])
            if not len(features):
                features = rows.new_empty(len(windows), rows.shape[1])
            sources = np.repeat(np.arange(len(part)), list(map(len, part)))
            features[torch.from_numpy(np.concatenate(part))] = rows[sources]
        return features

    def _frozen(self, batch: dict[str, Tensor]) -> list[list[Tensor]]:
        """Features of a batch from the encoder as it is."""
        features = self.live.backbone.module(batch)
        return [[row] for row in features.to(self._weight_dtype)]

    @torch.inference_mode(False)
    @torch.no_grad()
    def kept(
        self,
        where: tuple[str, ...],
        items: Sequence[Item],
        compute: Callable[[dict[str, Tensor]], list[list[Tensor]]],
    ) -> list[list[Tensor]]:
        """What frozen parts give for items, from the cache or computed.

        It comes out the same whatever is asked for together: batches hold items of one
        length, and tokens enough for products that do not depend on the number of rows; of
        encoders whose rows do depend on it each item is a batch.
        """
        backbone, place = self.live.backbone, self._place(where)
        keys = [(place, _content(item)) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        found = {key: kept for key in wanted if (kept := STATES.get(key)) is not None}
        rowwise = backbone.rowwise_features if where == _FEATURES else backbone.rowwise
        together = rowwise or self.live.device.type != "cpu"
        missing: dict[tuple, list[tuple]] = {}
        for key, item in wanted.items():
            if key not in found:
                shapes = tuple(np.shape(array)[:1] for array in item.values())
                kind = shapes if together else key
                missing.setdefault(kind, []).append(key)
        for alike in missing.values():
            item = wanted[alike[0]]
            n_tokens, n_rows = (
                max(1, count(item)) for count in (backbone.length, backbone.shortest)
            )
            for rows in self.groups([n_tokens] * len(alike)):
                some = [alike[row] for row in rows]
                least = -(-least_tokens() // n_rows)
                filled = [*some, *some[:1] * (least - len(some))]
                batch = self._collate([wanted[key] for key in filled])
                with computing(self.live):
                    states = compute(batch)
                for key, state in zip(some, states, strict=False):
                    # Not views, which would keep the whole batch.
                    found[key] = own = [tensor.clone() for tensor in state]
                    STATES.put(key, own)
        return [found[key] for key in keys]

    def _place(self, where: tuple[str, ...]) -> tuple:
        """Of which encoder, and from where in it, something is kept."""
        live = self.live
        types = (str(live.device), self.precision, live.autocast)
        return *live.backbone.identity, where, types

    def prepare(self, samples: Sequence) -> list[Item]:
        """Turn samples into items, once per fit or prediction."""
        return self.live.backbone.prepare(samples)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Number of tokens of each item, in all its windows."""
        backbone = self.live.backbone
        return [sum(map(backbone.length, backbone.windows(item))) for item in items]

    def windows(self, items: Sequence[Item]) -> list[Item]:
        """What goes through the module: the items, or windows of those that are long."""
        backbone = self.live.backbone
        return [window for item in items for window in backbone.windows(item)]

    def forward(self, items: Sequence[Item], replays: Replays | None = None) -> Tensor:
        """Adapted features of shape (n_items, dim), with gradients."""
        features = self.forward_windows(self.windows(items), replays)
        return self.live.backbone.join(features, items)

    def forward_windows(
        self, items: Sequence[Item], replays: Replays | None = None
    ) -> Tensor:
        """What the module gives for windows, with gradients.

        They go through in groups of like length, which saves padding, and come out in
        their own order.
        """
        lengths = self.lengths(items)
        groups = list(self.groups(lengths))
        resumes = self._is_to_resume(items, lengths)
        run: Callable = partial(self._run, resumes=resumes)
        lean = torch.is_grad_enabled() and sum(lengths) > TOKENS_KEPT
        if lean:
            run = self._lean(run)
        elif replays is not None and replays.able and len(groups) == 1:
            run = partial(run, replays=replays)
        with nullcontext() if lean else self.ready():
            features = torch.cat([run([items[i] for i in rows]) for rows in groups])
        order = torch.from_numpy(np.argsort(np.concatenate(groups)))
        features = features.index_select(0, moved(order, self.live.device))
        return features.to(self._weight_dtype)

    def _is_to_resume(self, windows: Sequence[Item], lengths: Sequence[int]) -> bool:
        """Whether to go on from hidden states, made where there are none.

        In a prediction a single text goes through all blocks faster than it makes and uses
        states, with the same bits; nor is the split tried for it.
        """
        alone = len(windows) == 1 and not torch.is_grad_enabled()
        halves = self._halves if alone else self._halves_for(windows)
        n_rows = self.live.backbone.shortest(windows[0]) if alone else sum(lengths)
        if halves is None or n_rows < least_tokens():
            return False
        return not alone or (self._place(halves.place), _content(windows[0])) in STATES

    def groups(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Numbers of the rows that go through together, by their lengths."""
        sizes = _GROUPS.get(self.live.device.type, _GROUPS_ELSEWHERE)
        return length_batches(lengths, *sizes)

    @property
    def _rounding(self) -> float:
        """Largest difference of two ways to compute the same that is taken for rounding."""
        return 1e-4 if self.live.autocast is None else 3e-2

    @property
    def _weight_dtype(self) -> torch.dtype:
        return resolve_precision(self.precision, self.live.device)[0]

    def _collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One batch where the weights are, in their type."""
        return self._placed(self.live.backbone.collate(items))

    def _placed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device, dtype = self.live.device, self._weight_dtype
        return {name: moved(tensor, device, dtype) for name, tensor in batch.items()}

    def _run(
        self,
        items: Sequence[Item],
        *,
        resumes: bool,
        replays: Replays | None = None,
    ) -> Tensor:
        """Features of one group of items, through all blocks or from their hidden states."""
        n_items, halves = len(items), self._halves if resumes else None
        collate = self.live.backbone.collate
        if replays is not None:
            collate = self.live.backbone.collate_in_steps
            if n_items > _ROWS_IN_STEP:  # of few rows that would be most of the batch
                items = [*items, *[items[0]] * (-n_items % _ROWS_IN_STEP)]
        batch, hidden = self._placed(collate(items)), []
        names = tuple(batch)
        if halves is not None:
            states = self.kept(halves.place, items, halves.states)
            hidden = _prefix.gathered(batch, states)

        def compute(tensors: Sequence[Tensor]) -> Tensor:
            parts = dict(zip(names, tensors, strict=False))
            with computing(self.live):
                if halves is None:
                    return self.live.module(parts)
                return halves.go_on(parts, tensors[len(names) :])

        tensors = [*batch.values(), *hidden]
        if replays is None:
            return compute(tensors)
        return replays.run(names, compute, tensors)[:n_items]

    def _lean(
        self, run: Callable[[Sequence[Item]], Tensor]
    ) -> Callable[[Sequence[Item]], Tensor]:
        """The same, whose activations are not kept: the backward pass computes them again."""
        dropouts = self.live.dropouts
        generator = dropouts[0].generator if dropouts else None

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            if generator is None:
                return nullcontext(), nullcontext()
            return nullcontext(), drawing(generator, generator.get_state())

        return lambda items: checkpoint(
            run,
            items,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=contexts,
        )

    def features(self, items: Sequence[Item]) -> np.ndarray:
        """Adapted features of shape (n_items, dim) as an array, without gradients."""
        if self.adapter is None and sum(self.lengths(items)) >= least_tokens():
            return self.start_features(items)
        self.live.backbone.check_unchanged()
        with torch.no_grad(), self.dropout(None):
            features = self._few_by_few(self.windows(items), self.forward_windows)
            return _finite(self.live.backbone.join(features, items).cpu().numpy())

    def __getstate__(self) -> dict:
        state = self._state()
        about = {"format": FORMAT, "skpeft": skpeft.__version__}
        # To be found undamaged.
        return {**about, "digest": _content(state["_stored"]), **state}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        written, version = state.pop("format"), state.pop("skpeft")
        if written > FORMAT:
            raise ValueError(
                f"This model was saved by skpeft {version} in format {written}; this is "
                f"skpeft {skpeft.__version__}, which reads formats up to {FORMAT}. Install "
                f"skpeft>={version}."
            )
        if state.pop("digest") != _content(state["_stored"]):
            raise ValueError(
                "The trained tensors of this model are not those that were saved: the file "
                "is damaged or was edited. Copy or download it again, or fit anew."
            )
        self._take(state)

    def _state(self) -> dict[str, Any]:
        """What describes the network, and copies of its trained tensors."""
        state = self.__dict__.copy()
        for name in ("_lock", "_live", "_halves"):
            del state[name]
        return {**state, "_stored": self.state()}

    def _take(self, state: dict[str, Any]) -> None:
        """Become the network of a state; the encoder is found at first use."""
        self.resumes = None
        self.__dict__.update(state, _lock=threading.Lock(), _live=None, _halves=None)


def _origin(part: nn.Module) -> str:
    """Package that a module's code comes from."""
    return type(part).__module__.partition(".")[0]


def _weights_of(module: nn.Module) -> tuple[str, int]:
    """Where weights that the layers of a module have computed are kept."""
    return WEIGHTS, id(module)


def least_tokens() -> int:
    """How many tokens go through together where bits must not depend on the company."""
    return max(_LEAST_TOKENS, 4 * torch.get_num_threads())


def _finite(features: np.ndarray) -> np.ndarray:
    """Refuse features with which nobody could go on."""
    if not np.isfinite(features).all():
        raise NotFiniteError(
            "The features of some samples are not finite. In fit, learning_rate or "
            "weight_decay is probably too high for this adapter: give a lower one. Else "
            "numbers in X are too large for the encoder: scale them."
        )
    return features


def _content(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Digest of a prepared sample, or of trained tensors."""
    state = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.digest()


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


@contextmanager
def drawing(generator: torch.Generator, state: Tensor) -> Iterator[None]:
    """Inside, a generator goes on from another state; afterwards from where it was."""
    former = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(former)


@contextmanager
def computing(live: Live) -> Iterator[None]:
    """Inside, an encoder runs: its products in the reduced type, where one is asked for."""
    # Without its cache: inside `own_context` that would keep weights as they were cast first.
    autocast = torch.autocast(
        live.device.type,
        live.autocast,
        enabled=live.autocast is not None,
        cache_enabled=False,
    )
    with autocast, any_shape(live.device):
        yield
