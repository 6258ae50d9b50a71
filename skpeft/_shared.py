"""Several networks over one frozen encoder: what they share runs once."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from skpeft import _prefix
from skpeft._device import moved
from skpeft._live import LiveNetwork
from skpeft.adapters.base import AdaptedLayer, unrounded, unwrapped
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders.base import Item

# Largest difference taken for rounding, relative to the largest feature.
_ROUNDING = {None: 1e-5, torch.bfloat16: 3e-2}
# Of so many networks at most the merged weights are in memory at once, where networks run
# one by one; of more they are made for each batch.
_MERGED_AT_ONCE = 8


class Route:
    """Which network each row of the present batch is for.

    Parameters
    ----------
    device : torch.device
        Where the batch is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """From here on rows are for the frozen encoder alone."""
        self.owners: Tensor | None = None

    def assign(self, owners: np.ndarray) -> None:
        """Say of each row which network it is for."""
        self.owners = moved(torch.from_numpy(owners), self.device)


class StackedLoRA(AdaptedLayer):
    """A frozen linear layer and the low-rank update of each network.

    Parameters
    ----------
    base : torch.nn.Module
        The frozen layer.
    updates : sequence of LoRALinear or None
        Of each network what stands here.
    route : Route
        Says which update a row gets.
    """

    def __init__(
        self,
        base: nn.Module,
        updates: Sequence[LoRALinear | None],
        route: Route,
    ) -> None:
        super().__init__(base)
        self.route = route
        # Of all updates, lower ranks filled up with zeros: (n_networks, rank, in or out).
        known = next(update for update in updates if update is not None)
        none = known.lora_A[:0], known.lora_B.T[:0]
        pairs = [
            none if u is None else (u.lora_A, u.scaling * u.lora_B.T) for u in updates
        ]
        down, up = map(list, zip(*pairs, strict=True))
        self.down = pad_sequence(down, batch_first=True)
        self.up = pad_sequence(up, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ..., in) to (batch, ..., out)."""
        output, owners = self.base(x), self.route.owners
        if owners is None:
            return output
        if len(x) != len(owners):
            raise ValueError(
                f"{len(x)} rows came to a layer in a batch of {len(owners)}: it cannot be "
                "told whose they are."
            )
        rows = x.reshape(len(x), -1, x.shape[-1])
        with unrounded(x):
            rows = rows.to(self.weight.dtype)
            update = rows @ self.down[owners].mT @ self.up[owners]
        return (output + update.reshape(output.shape)).to(output.dtype)


def updates_of(network: LiveNetwork) -> dict[str, LoRALinear] | None:
    """Where a network has which update, if it has nothing else; None if it does."""
    found: dict[str, LoRALinear] = {}
    for name, part in network.module.named_modules():
        if not isinstance(part, AdaptedLayer):
            continue
        if type(part) is not LoRALinear or unwrapped(part) is not part.base:
            return None
        found[name] = part
    own = {id(tensor) for part in found.values() for tensor in part.own_tensors()}
    return found if own >= set(map(id, network.trainable().values())) else None


class Part(NamedTuple):
    """A module for some networks, and its halves where it can be split."""

    module: nn.Module
    halves: _prefix.Halves | None


class SharedPass:
    """Several networks over one frozen encoder: what they share runs once.

    Parameters
    ----------
    networks : dict of str to LiveNetwork
        By task. Networks without an adapter are one.
    items : sequence of Item
        A few of them serve to try whether sharing gives the features of each network.
    """

    def __init__(
        self,
        networks: dict[str, LiveNetwork],
        items: Sequence[Item],
    ) -> None:
        self.tasks = networks
        plain = next((n for n in networks.values() if not n.adapted), None)
        own = [n if n.adapted else plain or n for n in networks.values()]
        self.networks = list(dict.fromkeys(own))
        place = {network: i for i, network in enumerate(self.networks)}
        self.owner = {name: place[n] for name, n in zip(networks, own, strict=True)}
        self.first = self.networks[0]
        self.route = Route(self.first.device)
        self._build(self.first.some(self.first.windows(items)))

    def is_stale(self, networks: dict[str, LiveNetwork]) -> bool:
        """Whether there is another task, or one was fitted again."""
        return networks.keys() != self.tasks.keys() or any(
            networks[name] is not network for name, network in self.tasks.items()
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(self, some: Sequence[Item]) -> None:
        """Choose the widest sharing that gives the features of each network."""
        adapted = [n for n in self.networks if n.adapted]
        lowest = min((n.lowest for n in adapted), default=0)
        modules = [n.module for n in self.networks]
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
            self.route.clear()
            halves = [self.first.halves_at(lowest, m, some) for m in modules]
        # All resume from the same states, or none does.
        if len({half and half.place for half in halves}) > 1:
            halves = [None] * len(modules)
        self.parts = [Part(m, h) for m, h in zip(modules, halves, strict=True)]

    def _stack(self) -> nn.Module | None:
        """Module with the updates of all networks in it; None where one is no plain LoRA."""
        updates: dict[str, list] = defaultdict(lambda: [None] * len(self.networks))
        for i, network in enumerate(self.networks):
            own = updates_of(network)
            if own is None:
                return None
            for name, update in own.items():
                updates[name][i] = update
        module = self.first.backbone.share_module()
        for name, layers in updates.items():
            base = module.get_submodule(name)
            module.set_submodule(name, StackedLoRA(base, layers, self.route))
        return module

    def _is_right(self, some: Sequence[Item]) -> bool:
        """Whether each network's features come out."""
        n = len(self.networks)
        rows = np.repeat(np.arange(len(some)), n)
        owners = np.tile(np.arange(n), len(some))
        try:
            found = torch.stack(self._pairs(some, rows, owners))
        except Exception:  # of a model that mixes up rows, or gives layers other shapes
            return False
        tolerance = _ROUNDING[self.first.autocast]
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
        for backbone in {network.backbone for network in self.networks}:
            backbone.check_unchanged()
        owners = np.array([self.owner[task] for task in tasks], dtype=np.int64)
        pairs, inverse = np.unique(
            np.stack([rows, owners], axis=1), axis=0, return_inverse=True
        )
        asked = [] if self.stacked else [self.networks[i] for i in np.unique(owners)]
        at_once = len(asked) <= _MERGED_AT_ONCE
        with torch.no_grad(), ExitStack() as stack:
            for network in asked if at_once else ():
                stack.enter_context(network.ready())
            features = self._features(items, pairs[:, 0], pairs[:, 1], not at_once)
        return list(features.cpu().numpy()[inverse.reshape(-1)])

    def _features(
        self, items: Sequence[Item], rows: np.ndarray, owners: np.ndarray, merge: bool
    ) -> Tensor:
        """Features (n_pairs, dim) of pairs of an item and a network, each there once.

        `merge` makes weights for each batch anew.
        """
        ends = np.cumsum([len(self.first.windows([item])) for item in items])
        of_row = np.split(np.arange(ends[-1]), ends[:-1])
        found = self._pairs(
            self.first.windows(items),
            np.concatenate([of_row[row] for row in rows]),
            np.repeat(owners, [len(of_row[row]) for row in rows]),
            merge,
        )
        return self.first.backbone.join(
            torch.stack(found), [items[row] for row in rows]
        )

    def _pairs(
        self,
        items: Sequence[Item],
        rows: np.ndarray,
        owners: np.ndarray,
        merge: bool = False,
    ) -> list[Tensor]:
        """Features of pairs of a window and a network, in their order."""
        first, found = self.first, [torch.empty(0)] * len(rows)
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
                self.route.assign(owners[chunk])
                owner = self.networks[owners[chunk[0]]]
                ready = owner.ready() if merge else nullcontext()
                with ready, first.computing():
                    if known is None or part.halves is None:
                        features = part.module(batch)
                    else:
                        kept = [known[row] for row in rows[chunk]]
                        features = part.halves.resume(batch, kept)
                for pair, feature in zip(chunk, features.to(first.dtype), strict=True):
                    found[pair] = feature
        return found

    def _lower(self, items: Sequence[Item]) -> list[list[Tensor]] | None:
        """Hidden states below the first adapted block of all, where modules are split."""
        halves = self.parts[0].halves
        if halves is None:
            return None
        self.route.clear()
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
