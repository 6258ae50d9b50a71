"""Many fitted estimators over the same texts, with one shared encoder."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skpeft import _prefix
from skpeft._base import BaseAdapterEstimator
from skpeft._data import check_samples
from skpeft._device import resolve_precision
from skpeft._network import AdapterNetwork, autocast_to
from skpeft.adapters.base import AdaptedLayer, unwrapped
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders.base import Item, same_features
from skpeft.heads import ask

# Largest difference taken for rounding, relative to the largest feature.
_ROUNDING = {None: 1e-5, torch.bfloat16: 3e-2}
# Of so many tasks at most the merged weights are in memory at once, where tasks run one by
# one; of more they are made for each batch.
_MERGED_AT_ONCE = 8


class AdapterBank:
    """Predict several tasks over the same texts with one shared encoder.

    Texts are tokenised once and the frozen blocks below the lowest adapted one of all
    tasks run once; from there on each task has its own pass. Where all adapters are
    `LoRA`, whatever their ranks and layers, or none, they are stacked: rows of different
    tasks go through the blocks together, each with the update of its task.

    Parameters
    ----------
    estimators : dict of str to estimator
        Fitted `AdapterClassifier` and `AdapterRegressor` by the name of their task. Their
        encoder, its options, device and precision must be the same; adapters, layers and
        heads may differ. They are kept, not copied: one that is fitted again counts as it
        is now.

    Examples
    --------
    >>> from skpeft import AdapterBank, AdapterClassifier, AdapterRegressor
    >>> texts = ["good film", "bad film", "good book", "bad book"]
    >>> tone = AdapterClassifier("tiny", random_state=0).fit(texts, ["+", "-", "+", "-"])
    >>> stars = AdapterRegressor("tiny", random_state=0).fit(texts, [5.0, 1.0, 4.0, 2.0])
    >>> bank = AdapterBank({"tone": tone, "stars": stars})
    >>> sorted(bank.predict(texts))
    ['stars', 'tone']
    >>> bank.predict(["good play", "bad play"], task=["tone", "tone"])
    array(['+', '-'], dtype=object)
    """

    def __init__(self, estimators):
        self.estimators = _checked(estimators)
        self._lock = threading.Lock()
        self._pass = None

    def predict(self, X, task=None):
        """Predict all tasks for each text, or for each text the one that is named.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.
        task : str, sequence of str of shape (n_samples,) or None, default=None
            Name of the task, one for all rows or one a row. None: all tasks.

        Returns
        -------
        dict of str to ndarray, or ndarray
            By task what `predict` of each estimator gives; with one `task` that of it. With
            a task for each row an array of shape (n_samples,) and dtype object, whose
            entries are arrays where an estimator predicts several labels or numbers.
        """
        if task is None:
            return self._ask("predict", X, list(self.estimators))
        if isinstance(task, str):
            self._check_tasks([task])
            return self._ask("predict", X, [task])[task]
        samples = self._samples(X)
        names = np.asarray(task, dtype=object)
        if names.shape != (len(samples),):
            raise ValueError(
                f"task has shape {names.shape} for {len(samples)} rows; give one name, or "
                "one name a row."
            )
        self._check_tasks(names)
        every = np.arange(len(samples))
        features = self._features(samples, every, names)
        predictions = np.empty(len(samples), dtype=object)
        for name in dict.fromkeys(names):
            rows = np.flatnonzero(names == name)
            chosen = np.stack([features[row] for row in rows])
            found = self.estimators[name].head_.predict(chosen)
            for row, one in zip(
                rows, found if found.ndim == 2 else found.tolist(), strict=True
            ):
                predictions[row] = one
        return predictions

    def predict_proba(self, X):
        """Predict class probabilities of the tasks that have them.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.

        Returns
        -------
        dict of str to ndarray of shape (n_samples, n_classes)
            Columns in the order of the estimator's `classes_`; regressors are left out.
        """
        has = [n for n, e in self.estimators.items() if hasattr(e, "predict_proba")]
        return self._ask("predict_proba", X, has)

    def transform(self, X):
        """Adapted embeddings of each task.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimators.

        Returns
        -------
        dict of str to ndarray of shape (n_samples, dim)
            What `transform` of each estimator gives.
        """
        return self._all_features(X, list(self.estimators))

    def _ask(self, method, X, tasks):
        """Output of one method of each head."""
        features = self._all_features(X, tasks)
        return {
            task: ask(self.estimators[task].head_, method, features[task])
            for task in tasks
        }

    def _all_features(self, X, tasks):
        samples = self._samples(X)
        rows = np.repeat(np.arange(len(samples)), len(tasks))
        found = self._features(
            samples, rows, np.array(tasks * len(samples), dtype=object)
        )
        return {task: np.stack(found[i :: len(tasks)]) for i, task in enumerate(tasks)}

    def _samples(self, X):
        first = next(iter(self.estimators.values()))
        return check_samples(first, X, first._network.encoder.modality, reset=False)

    def _features(self, samples, rows, tasks):
        """Features of each pair of a row and a task, one array a pair."""
        _check_agree(self.estimators)
        with self._lock:
            used = {name: e._network for name, e in self.estimators.items()}
            items = next(iter(used.values())).prepare(samples)
            if self._pass is None or self._pass.is_stale(used):
                self._pass = SharedPass(used, items)
            return self._pass.features(items, rows, tasks)

    def _check_tasks(self, names):
        unknown = sorted({str(name) for name in names} - self.estimators.keys())
        if unknown:
            raise ValueError(
                f"task holds {unknown}, which this bank does not have. Its tasks are "
                f"{sorted(self.estimators)}."
            )

    def __repr__(self):
        return f"AdapterBank({self.estimators!r})"

    def __getstate__(self):
        return {"estimators": self.estimators}

    def __setstate__(self, state):
        self.__init__(state["estimators"])


def _checked(estimators):
    """A dict of its own of fitted estimators over one encoder."""
    if not isinstance(estimators, dict) or not estimators:
        raise TypeError(
            f"{estimators!r} was given to AdapterBank; a dict of names and fitted estimators "
            "is expected, such as {'tone': clf}."
        )
    for name, estimator in estimators.items():
        if not isinstance(name, str) or not isinstance(estimator, BaseAdapterEstimator):
            raise TypeError(
                f"{name!r}: {estimator!r} was given to AdapterBank; a task has a str as "
                "name and is a fitted AdapterClassifier or AdapterRegressor."
            )
        check_is_fitted(
            estimator,
            msg=f"The estimator of task {name!r} is not fitted. Call fit first.",
        )
    _check_agree(estimators)
    return dict(estimators)


def _check_agree(estimators):
    """Raise a `ValueError` where a task's encoder is not that of the first one."""
    (first, one), *others = ((n, e._network) for n, e in estimators.items())
    for name, other in others:
        differs = [
            what
            for what in ("n_features", "device", "precision")
            if getattr(one, what) != getattr(other, what)
        ]
        same = one.fingerprint == other.fingerprint
        if not (same and same_features(one.probe, other.probe)):
            differs.append("encoder or its options")
        if differs:
            raise ValueError(
                f"The tasks {first!r} and {name!r} differ in {', '.join(differs)}: "
                f"{one.encoder!r} and {other.encoder!r}. A bank runs one encoder for all; "
                "fit both on the same, with the same options, device and precision."
            )


class Route:
    """Which network each row of the present batch is for; None: the frozen encoder alone."""

    rows: Tensor | None = None


class StackedLoRA(AdaptedLayer):
    """A frozen linear layer and one low-rank update for each network.

    Parameters
    ----------
    base : torch.nn.Module
        The frozen layer.
    updates : sequence of LoRALinear or None
        Of each network what stands here; lower ranks are filled up with zeros.
    route : Route
        Says which update a row gets.
    """

    def __init__(
        self, base: nn.Module, updates: Sequence[LoRALinear | None], route: Route
    ) -> None:
        super().__init__(base)
        known = [update for update in updates if update is not None]
        rank = max(len(update.lora_A) for update in known)
        n_in, n_out = known[0].lora_A.shape[1], len(known[0].lora_B)
        self.down: Tensor
        self.up: Tensor
        make = known[0].lora_A.new_zeros
        self.register_buffer("down", make(len(updates), n_in, rank))
        self.register_buffer("up", make(len(updates), rank, n_out))
        for i, update in enumerate(updates):
            if update is not None:
                own = len(update.lora_A)
                self.down[i, :, :own] = update.lora_A.detach().T
                self.up[i, :own] = update.scaling * update.lora_B.detach().T
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ..., in) to (batch, ..., out)."""
        output, rows = self.base(x), self.route.rows
        if rows is None:
            return output
        update = x.reshape(len(rows), -1, x.shape[-1]) @ self.down[rows] @ self.up[rows]
        return output + update.reshape(output.shape)


class Part(NamedTuple):
    """A module for some networks, and its halves where it can be split."""

    module: nn.Module
    halves: _prefix.Halves | None


class SharedPass:
    """Several networks over one frozen encoder: what they share runs once.

    Parameters
    ----------
    networks : dict of str to AdapterNetwork
        By task. Networks without an adapter are one.
    items : sequence of Item
        A few of them serve to try whether sharing gives the features of each network.
    """

    def __init__(
        self, networks: dict[str, AdapterNetwork], items: Sequence[Item]
    ) -> None:
        self.tasks = networks
        plain = next((n for n in networks.values() if n.adapter is None), None)
        own = [plain if n.adapter is None else n for n in networks.values()]
        self.networks = list({id(n): n for n in own if n is not None}.values())
        place = {id(network): i for i, network in enumerate(self.networks)}
        self.owner = {name: place[id(n)] for name, n in zip(networks, own, strict=True)}
        self.first = self.networks[0]
        self.route = Route()
        self._build(self.first.some(self.first.windows(items)))

    def is_stale(self, networks: dict[str, AdapterNetwork]) -> bool:
        """Whether a task was fitted again since."""
        return any(
            networks[name] is not network for name, network in self.tasks.items()
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self, some: Sequence[Item]) -> None:
        """Choose the widest sharing that gives the features of each network."""
        adapted = [n for n in self.networks if n.adapter is not None]
        lowest = min((n.live.lowest for n in adapted), default=0)
        modules = [n.live.module for n in self.networks]
        # The last shares nothing.
        ways = [(modules, False, lowest), (modules, False, 0)]
        if len(adapted) > 1 and (stacked := self._stack()) is not None:
            ways.insert(0, ([stacked], True, lowest))
        for modules, self.stacked, lowest in ways:
            self._set(modules, lowest, some)
            if self._is_right(some):
                return

    def _set(
        self, modules: Sequence[nn.Module], lowest: int, some: Sequence[Item]
    ) -> None:
        """Split modules at a block, all or none."""
        halves: list[_prefix.Halves | None] = [None] * len(modules)
        if lowest:
            self.route.rows = None
            halves = [self.first.halves_at(lowest, m, some) for m in modules]
        # All resume from the same states, or none does.
        if len({half and half.place for half in halves}) > 1:
            halves = [None] * len(modules)
        self.parts = [Part(m, h) for m, h in zip(modules, halves, strict=True)]

    def _stack(self) -> nn.Module | None:
        """Module with the updates of all networks in it; None where one is no plain LoRA."""
        updates: dict[str, list] = defaultdict(lambda: [None] * len(self.networks))
        for i, network in enumerate(self.networks):
            if network.adapter is not None and network.adapter.trains_encoder:
                return None
            for name, part in network.live.module.named_modules():
                if not isinstance(part, AdaptedLayer):
                    continue
                if type(part) is not LoRALinear or unwrapped(part) is not part.base:
                    return None
                updates[name][i] = part
        module = self.first.live.backbone.share_module()
        for name, layers in updates.items():
            base = module.get_submodule(name)
            module.set_submodule(name, StackedLoRA(base, layers, self.route))
        return module

    def _is_right(self, some: Sequence[Item]) -> bool:
        """Whether each network's features come out."""
        n = len(self.networks)
        rows, owners = (
            np.repeat(np.arange(len(some)), n),
            np.tile(np.arange(n), len(some)),
        )
        try:
            found = torch.stack(self._pairs(some, rows, owners))
        except Exception:  # of a model that mixes up rows, or gives layers other shapes
            return False
        tolerance = _ROUNDING[self.first.live.autocast]
        for i, network in enumerate(self.networks):
            expected = network.forward_windows(some)
            gap = (found[i::n] - expected).abs().max()
            if not bool(gap <= tolerance * max(1.0, float(expected.abs().max()))):
                return False
        return True

    def features(
        self, items: Sequence[Item], rows: np.ndarray, tasks: np.ndarray
    ) -> list[np.ndarray]:
        """Features of each pair of an item and a task.

        Parameters
        ----------
        items : sequence of Item
            The prepared samples.
        rows : ndarray of int of shape (n_pairs,)
            Numbers of items.
        tasks : ndarray of str of shape (n_pairs,)
            Names of tasks.
        """
        for backbone in {
            id(b): b for n in self.networks for b in [n.live.backbone]
        }.values():
            backbone.check_unchanged()
        owners = np.array([self.owner[task] for task in tasks], dtype=np.int64)
        pairs, inverse = np.unique(
            np.stack([rows, owners], axis=1), axis=0, return_inverse=True
        )
        ends = np.cumsum([len(self.first.windows([item])) for item in items])
        of_row = np.split(np.arange(ends[-1]), ends[:-1])
        counts = [len(of_row[row]) for row in pairs[:, 0]]
        asked = [] if self.stacked else [self.networks[i] for i in np.unique(owners)]
        at_once = len(asked) <= _MERGED_AT_ONCE
        with torch.no_grad(), ExitStack() as stack:
            for network in asked if at_once else ():
                stack.enter_context(network.ready())
            found = self._pairs(
                self.first.windows(items),
                np.concatenate([of_row[row] for row in pairs[:, 0]]),
                np.repeat(pairs[:, 1], counts),
                merge=not at_once,
            )
            features = self.first.live.backbone.join(
                torch.stack(found), [items[row] for row in pairs[:, 0]]
            )
        return list(features.cpu().numpy()[inverse.reshape(-1)])

    def _pairs(
        self,
        items: Sequence[Item],
        rows: np.ndarray,
        owners: np.ndarray,
        merge: bool = False,
    ) -> list[Tensor]:
        """Features of pairs, each of which is there once; `merge` for each batch anew."""
        first, found = self.first, [torch.empty(0)] * len(rows)
        dtype = resolve_precision(first.precision, first.live.device)[0]
        pairs_of: dict[int, list[int]] = defaultdict(list)
        for pair, row in enumerate(rows):
            pairs_of[row].append(pair)
        lengths = first.lengths(items)
        for group in first.groups(lengths):
            states = self._lower([items[row] for row in group])
            known = None if states is None else dict(zip(group, states, strict=True))
            pairs = np.array(
                [p for row in group for p in pairs_of[row]], dtype=np.int64
            )
            for chunk, part in self._chunks(pairs, owners, lengths, rows):
                batch = first._collate([items[row] for row in rows[chunk]])
                self.route.rows = torch.from_numpy(owners[chunk]).to(first.live.device)
                owner = self.networks[owners[chunk[0]]]
                ready = owner.ready() if merge else nullcontext()
                with ready, autocast_to(first.live):
                    if known is None or part.halves is None:
                        features = part.module(batch)
                    else:
                        kept = [known[row] for row in rows[chunk]]
                        features = part.halves.resume(batch, kept)
                for pair, feature in zip(chunk, features.to(dtype), strict=True):
                    found[pair] = feature
        return found

    def _lower(self, items: Sequence[Item]) -> list[list[Tensor]] | None:
        """Hidden states below the first adapted block of all, where modules are split."""
        halves = self.parts[0].halves
        if halves is None:
            return None
        self.route.rows = None
        return self.first.kept(halves.place, items, halves.states)

    def _chunks(
        self,
        pairs: np.ndarray,
        owners: np.ndarray,
        lengths: Sequence[int],
        rows: np.ndarray,
    ) -> Iterator[tuple[np.ndarray, Part]]:
        """Pairs that go through together: all together, or those of one network."""
        if self.stacked:
            for some in self.first.groups([lengths[row] for row in rows[pairs]]):
                yield pairs[some], self.parts[0]
            return
        for owner in np.unique(owners[pairs]):
            yield pairs[owners[pairs] == owner], self.parts[owner]
