"""An encoder with adapters in it, in memory: how samples go through."""

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skpeft import _prefix
from skpeft._cache import STATES, WEIGHTS
from skpeft._data import length_batches
from skpeft._device import any_shape, moved
from skpeft._replays import Replays
from skpeft._sites import join_paths
from skpeft.adapters.base import GeneratorDropout, ReweightedLayer, lent
from skpeft.encoders.base import Backbone, Item

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
# A matrix product of fewer rows than this, or than four a thread, may round a row
# otherwise than a larger product does. So batches whose results are cached are filled
# up to it, and a pass of fewer tokens in all does not resume from cached hidden states.
_LEAST_TOKENS = 16
# Where the features of the encoder alone are kept: behind all of it.
_FEATURES = ("features",)


class NotFiniteError(ValueError):
    """Loss, weights or features are no longer finite, or the loss grows without end."""


class LiveNetwork:
    """The module of an encoder with adapters in it, and how items go through.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    module : torch.nn.Module
        Maps a batch to features; shares the tensors of the encoder, and has its own for
        what is trained.
    lowest : int
        Index of the lowest adapted block.
    adapted : bool
        Whether there is an adapter.
    device : torch.device
        Where the tensors are.
    dtype : torch.dtype
        Type of weights and features.
    autocast : torch.dtype or None
        Type of the encoder's matrix products, where it is another.
    resumes : bool or None, default=None
        Whether features may be computed from hidden states that are kept; None: to be tried.
    """

    def __init__(
        self,
        backbone: Backbone,
        module: nn.Module,
        *,
        lowest: int,
        adapted: bool,
        device: torch.device,
        dtype: torch.dtype,
        autocast: torch.dtype | None,
        resumes: bool | None = None,
    ) -> None:
        self.backbone = backbone
        self.module = module
        self.lowest = lowest
        self.adapted = adapted
        self.device = device
        self.dtype = dtype
        self.autocast = autocast
        self.resumes = resumes
        parts = list(module.modules())
        self.dropouts = [p for p in parts if isinstance(p, GeneratorDropout)]
        self.reweighted = [p for p in parts if isinstance(p, ReweightedLayer)]
        if self.reweighted:  # what is kept of a network goes with it
            weakref.finalize(module, STATES.drop, _weights_of(module)).atexit = False
        self._halves: _prefix.Halves | None = None
        self._lock = threading.Lock()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name."""
        named = self.module.named_parameters()
        return {name: tensor for name, tensor in named if tensor.requires_grad}

    @property
    def n_frozen(self) -> int:
        """Number of frozen weights."""
        return sum(t.numel() for t in self.module.parameters() if not t.requires_grad)

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the trainable tensors as arrays on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True).numpy()
            for name, tensor in self.trainable().items()
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Set the trainable tensors; names and shapes must be the network's own."""
        load_tensors(self.module, state)

    @contextmanager
    def dropout(self, generator: torch.Generator | None) -> Iterator[None]:
        """Inside, dropout of the adapters draws from a generator, or rests with None."""
        parts = self.dropouts
        former = [part.generator for part in parts]
        for part in parts:
            part.generator = generator
        try:
            yield
        finally:
            for part, earlier in zip(parts, former, strict=True):
                part.generator = earlier

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the encoder runs: its products in the reduced type, if one is asked for."""
        # Without its cache, which `own_context` would keep: weights as they were cast first.
        autocast = torch.autocast(
            self.device.type,
            self.autocast,
            enabled=self.autocast is not None,
            cache_enabled=False,
        )
        with autocast, any_shape(self.device):
            yield

    def replays(self) -> AbstractContextManager[Replays | None]:
        """Inside, recorded passes of a fit, where a GPU can replay them; None: it cannot."""
        trained = list(self.trainable().values())
        able = (
            self.device.type == "cuda"
            and self.backbone.steady
            # Code that is not known may do something else at each pass.
            and all(_origin(part) in KNOWN_CODE for part in self.module.modules())
            and 0 < sum(t.numel() for t in trained) <= _MOST_TRAINED
            and not any(part.p for part in self.dropouts)  # with a generator of its own
            # What `ready` makes is made outside of the pass.
            and not any(part.takes_weight(True) for part in self.reweighted)
        )
        return Replays(trained, self._rounding) if able else nullcontext()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, weights that layers compute from what is trained are computed once."""
        training = torch.is_grad_enabled()
        parts = [p for p in self.reweighted if p.takes_weight(training)]
        with torch.autocast(self.device.type, enabled=False):
            weights = self._weights(parts) if parts else []
        # None for the others, whatever a context outside of this one lends them.
        own = dict.fromkeys(self.reweighted)
        with lent(own | dict(zip(parts, weights, strict=True))):
            yield

    def _weights(self, parts: list[ReweightedLayer]) -> list[Tensor]:
        """Weights that layers compute; without gradients they are kept like hidden states."""
        if torch.is_grad_enabled():
            return [part.product() for part in parts]
        place = _weights_of(self.module)
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
        device = self.device
        # A mode of torch, which costs time and takes an interrupt badly: where it is needed.
        # A tensor tells, also of `with torch.device(...)`, which torch 2.5 does not by name.
        usual = torch.empty(0).device in (torch.device("cpu"), device)
        place = nullcontext() if usual else device
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), place:
            yield

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
    def _halves_for(self, items: Sequence[Item]) -> _prefix.Halves | None:
        """The frozen part and the rest, where they make up the whole.

        It is tried once, on the first items that come; a fitted network keeps the outcome.
        """
        if self._halves is None and self.resumes is not False:
            with self._lock:  # a trial notes the calls of blocks, so one at a time
                if self._halves is None and self.resumes is not False:
                    self._halves = self._halve(items)
                    self.resumes = self._halves is not None
        return self._halves

    def _halve(self, items: Sequence[Item]) -> _prefix.Halves | None:
        """Split the module, and try the halves on some of the items."""
        if not self.adapted:
            return None
        with self.own_context(), torch.no_grad():
            return self.halves_at(self.lowest, self.module, self.some(items))

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
        root, table = self.backbone.root, self.backbone.role_table
        if table is None:
            return None
        path = join_paths(root, table["blocks"])
        batches = self._collate(some), self._collate(some[-1:])
        with self.computing():
            return _prefix.halve(module, path, lowest, *batches, self._rounding)

    def frozen_features(self, items: Sequence[Item]) -> np.ndarray:
        """Features of the encoder alone, of shape (n_items, dim); kept like hidden states."""
        self.backbone.check_unchanged()

        def frozen(windows: list[Item]) -> Tensor:
            kept = self.kept(_FEATURES, windows, self._frozen)
            return torch.stack([row for (row,) in kept])

        features = self._few_by_few(self.windows(items), frozen)
        return _finite(self.backbone.join(features, items).cpu().numpy())

    def _few_by_few(
        self, windows: list[Item], compute: Callable[[list[Item]], Tensor]
    ) -> Tensor:
        """Features of windows, in the order given.

        Equal windows are computed once, and windows of similar length together.
        """
        alike: dict[bytes, list[int]] = {}
        for number, window in enumerate(windows):
            alike.setdefault(content(window), []).append(number)
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
        features = self.backbone.module(batch)
        return [[row] for row in features.to(self.dtype)]

    @torch.inference_mode(False)  # what is kept must do for training too
    @torch.no_grad()
    def kept(
        self,
        where: tuple[str, ...],
        items: Sequence[Item],
        compute: Callable[[dict[str, Tensor]], list[list[Tensor]]],
    ) -> list[list[Tensor]]:
        """Outputs of a frozen part for items, from the cache or computed.

        On a CPU their bits do not depend on which items are asked for together: a batch
        holds items of one length, and enough tokens that the rounding of a row does not
        depend on the number of rows. With encoders where it always does, each item is a
        batch of its own.
        """
        backbone, place = self.backbone, self._place(where)
        keys = [(place, content(item)) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        found = {key: kept for key in wanted if (kept := STATES.get(key)) is not None}
        rowwise = backbone.rowwise_features if where == _FEATURES else backbone.rowwise
        together = rowwise or self.device.type != "cpu"
        missing: dict[tuple, list[tuple]] = {}
        for key, item in wanted.items():
            if key not in found:
                shapes = tuple(np.shape(array)[:1] for array in item.values())
                kind = shapes if together else key
                missing.setdefault(kind, []).append(key)
        for alike in missing.values():
            item = wanted[alike[0]]
            n_tokens = max(1, backbone.length(item))
            n_rows = max(1, backbone.shortest(item))
            for rows in self.groups([n_tokens] * len(alike)):
                some = [alike[row] for row in rows]
                least = -(-least_tokens() // n_rows)
                filled = [*some, *some[:1] * (least - len(some))]
                batch = self._collate([wanted[key] for key in filled])
                with self.computing():
                    states = compute(batch)
                for key, state in zip(some, states, strict=False):
                    # Not views, which would keep the whole batch.
                    found[key] = own = [tensor.clone() for tensor in state]
                    STATES.put(key, own)
        return [found[key] for key in keys]

    def _place(self, where: tuple[str, ...]) -> tuple:
        """Of which encoder, and from where in it, something is kept."""
        types = (str(self.device), self.dtype, self.autocast)
        return *self.backbone.identity, where, types

    def prepare(self, samples: Sequence) -> list[Item]:
        """Turn samples into items, once per fit or prediction."""
        return self.backbone.prepare(samples)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Number of tokens of each item, in all its windows."""
        backbone = self.backbone
        return [sum(map(backbone.length, backbone.windows(item))) for item in items]

    def copies(self, items: Sequence[Item]) -> np.ndarray:
        """For each item the number of the first one of the same content."""
        first: dict[tuple, int] = {}
        # The numbers of entries say where in the windows the second text of a pair begins.
        keys = [
            (*map(len, item.values()), *map(content, self.windows([item])))
            for item in items
        ]
        return np.array([first.setdefault(key, i) for i, key in enumerate(keys)])

    def windows(self, items: Sequence[Item]) -> list[Item]:
        """What goes through the module: the items, or windows of those that are long."""
        backbone = self.backbone
        return [window for item in items for window in backbone.windows(item)]

    def forward(self, items: Sequence[Item], replays: Replays | None = None) -> Tensor:
        """Adapted features of shape (n_items, dim), with gradients."""
        features = self.forward_windows(self.windows(items), replays)
        return self.backbone.join(features, items)

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
        recompute = torch.is_grad_enabled() and sum(lengths) > TOKENS_KEPT
        if recompute:
            run = self._checkpointed(run)
        elif replays is not None and replays.able and len(groups) == 1:
            run = partial(run, replays=replays)
        with nullcontext() if recompute else self.ready():
            features = torch.cat([run([items[i] for i in rows]) for rows in groups])
        order = torch.from_numpy(np.argsort(np.concatenate(groups)))
        features = features.index_select(0, moved(order, self.device))
        return features.to(self.dtype)

    def _is_to_resume(self, windows: Sequence[Item], lengths: Sequence[int]) -> bool:
        """Whether to go on from hidden states, made where there are none.

        In a prediction a single text goes through all blocks faster than it makes and uses
        states, with the same bits; nor is the split tried for it.
        """
        alone = len(windows) == 1 and not torch.is_grad_enabled()
        halves = self._halves if alone else self._halves_for(windows)
        n_rows = self.backbone.shortest(windows[0]) if alone else sum(lengths)
        if halves is None or n_rows < least_tokens():
            return False
        return not alone or (self._place(halves.place), content(windows[0])) in STATES

    def groups(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Numbers of the rows that go through together, by their lengths."""
        sizes = _GROUPS.get(self.device.type, _GROUPS_ELSEWHERE)
        return length_batches(lengths, *sizes)

    @property
    def _rounding(self) -> float:
        """Largest difference of two ways to compute the same that is taken for rounding."""
        return 1e-4 if self.autocast is None else 3e-2

    def _collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """One batch where the weights are, in their type."""
        return self._placed(self.backbone.collate(items))

    def _placed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device, dtype = self.device, self.dtype
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
        collate = self.backbone.collate
        if replays is not None:
            collate = self.backbone.collate_in_steps
            if n_items > _ROWS_IN_STEP:  # of few rows that would be most of the batch
                items = [*items, *[items[0]] * (-n_items % _ROWS_IN_STEP)]
        batch, hidden = self._placed(collate(items)), []
        names = tuple(batch)
        if halves is not None:
            states = self.kept(halves.place, items, halves.states)
            hidden = _prefix.gathered(batch, states)

        def compute(tensors: Sequence[Tensor]) -> Tensor:
            parts = dict(zip(names, tensors, strict=False))
            with self.computing():
                if halves is None:
                    return self.module(parts)
                return halves.from_hidden(parts, tensors[len(names) :])

        tensors = [*batch.values(), *hidden]
        if replays is None:
            return compute(tensors)
        return replays.run(names, compute, tensors)[:n_items]

    def _checkpointed(
        self, run: Callable[[Sequence[Item]], Tensor]
    ) -> Callable[[Sequence[Item]], Tensor]:
        """The same, whose activations are not kept: the backward pass computes them again."""
        dropouts = self.dropouts
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
        if not self.adapted and sum(self.lengths(items)) >= least_tokens():
            return self.frozen_features(items)
        self.backbone.check_unchanged()
        with torch.no_grad(), self.dropout(None):
            features = self._few_by_few(self.windows(items), self.forward_windows)
            return _finite(self.backbone.join(features, items).cpu().numpy())


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


def content(arrays: Mapping[str, np.ndarray]) -> bytes:
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
