"""Hidden states below the first adapted block: computed once, resumed from in training."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Bytes of hidden states that a fit keeps at most; beyond, every step runs all blocks.
LIMIT = 512 * 2**20


class StandIn(nn.Module):
    """Takes the place of a block; what model code asks the block for, it still finds."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block  # beside the module tree, which is copied

    def __getattr__(self, name: str) -> Any:
        """Attributes of the block where there are none of its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)


class PassThrough(StandIn):
    """Stands in for a block that is left out: gives back the hidden states it gets."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__(block)
        self.as_tuple = as_tuple

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states, in the form in which the block gives its own."""
        return (hidden,) if self.as_tuple else hidden


class Exit(PassThrough):
    """Left-out block that notes the hidden states on their way, one tensor a call."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__(block, as_tuple)
        self.seen: list[Tensor] = []

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states, in the form in which the block gives its own."""
        self.seen.append(hidden)
        return super().forward(hidden, *args, **kwargs)


class Entry(StandIn):
    """First adapted block, which takes waiting hidden states for those that come."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.waiting: list[Tensor] = []

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Output of the block, from hidden states put there before."""
        return self.__dict__["block"](self.waiting.pop(0), *args, **kwargs)


class Halves(NamedTuple):
    """A module up to its first adapted block, and from there on.

    Both are trees of their own around the very same blocks and tensors.
    """

    lower: nn.Module
    upper: nn.Module
    exit: Exit
    entry: Entry

    def states(self, batch: dict[str, Tensor]) -> list[list[Tensor]]:
        """Hidden states of each item, one tensor (tokens, dim) a sequence of it."""
        self.exit.seen.clear()
        with torch.no_grad():
            self.lower(batch)
        seen = list(self.exit.seen)
        self.exit.seen.clear()
        rows = [
            list(hidden) if mask is None else _real_tokens(hidden, mask)
            for hidden, mask in zip(seen, _masks(batch, len(seen)), strict=True)
        ]
        return [list(row) for row in zip(*rows, strict=True)]

    def resume(
        self, batch: dict[str, Tensor], states: Sequence[list[Tensor]]
    ) -> Tensor:
        """Features of a batch from the hidden states of its items."""
        sequences = list(zip(*states, strict=True))
        masks = _masks(batch, len(sequences))
        self.entry.waiting[:] = [
            torch.stack(rows) if mask is None else _padded(rows, mask)
            for rows, mask in zip(sequences, masks, strict=True)
        ]
        return self.upper(batch)


def halve(
    module: nn.Module,
    path: str,
    lowest: int,
    together: dict[str, Tensor],
    alone: dict[str, Tensor],
    tolerance: float = 1e-4,
) -> Halves | None:
    """Split a module at a block, or give None where that would change its features.

    Parameters
    ----------
    module : torch.nn.Module
        Maps a batch to features. Left as it is.
    path : str
        Where its list of blocks is.
    lowest : int
        Index of the block from which the upper half starts, above 0.
    together, alone : dict of str to Tensor
        A batch, and its last item as a batch of one: on them it is tried whether the
        halves make up the whole, however items are grouped.
    tolerance : float, default=1e-4
        Largest difference of features that is taken for rounding, relative to their
        largest entry.
    """
    blocks = module.get_submodule(path)
    with torch.no_grad(), noting_calls(blocks) as calls:
        module(together)
    if not all(_is_plain(seen, together) for seen in calls.values()):
        return None
    as_tuple = isinstance(next(iter(calls.values()))[0][1], tuple)
    children = dict(blocks.named_children())
    names = list(children)
    left_out = {n: PassThrough(block, as_tuple) for n, block in children.items()}
    leave, entry = (
        Exit(children[names[lowest]], as_tuple),
        Entry(children[names[lowest]]),
    )
    above, below = names[lowest:], names[:lowest]
    lower = {**{n: left_out[n] for n in above}, names[lowest]: leave}
    upper = {**{n: left_out[n] for n in below}, names[lowest]: entry}
    halves = Halves(
        _with_blocks(module, path, lower),
        _with_blocks(module, path, upper),
        leave,
        entry,
    )
    whole = _make_up_the_whole(halves, module, together, alone, tolerance)
    return halves if whole else None


def _make_up_the_whole(
    halves: Halves,
    module: nn.Module,
    together: dict[str, Tensor],
    alone: dict[str, Tensor],
    tolerance: float,
) -> bool:
    """Whether features come out the same, also where items are grouped otherwise."""
    try:
        with torch.no_grad():
            states = halves.states(together)
            for batch, known in ((together, states), (alone, states[-1:])):
                expected, found = module(batch), halves.resume(batch, known)
                gap = (found - expected).abs().max()
                if not bool(gap <= tolerance * expected.abs().max()):
                    return False
    except Exception:  # whatever a model's own code raises when it misses its blocks
        return False
    return True


@contextmanager
def noting_calls(blocks: nn.Module) -> Iterator[dict[str, list[tuple]]]:
    """Inside, note the first argument and the output of each call of a child."""
    calls: dict[str, list[tuple]] = {name: [] for name, _ in blocks.named_children()}

    def note(name: str) -> Callable[[nn.Module, tuple, object], None]:
        return lambda _, args, output: calls[name].append((args[:1], output))

    hooks = [
        block.register_forward_hook(note(name))
        for name, block in blocks.named_children()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _is_plain(calls: list[tuple], batch: dict[str, Tensor]) -> bool:
    """Whether a block maps hidden states of (batch, seq, dim), and nothing else, to such."""
    masks = _masks(batch, len(calls))
    return len(masks) == len(calls) > 0 and all(
        _is_hidden(args, mask)
        and _is_hidden(output if isinstance(output, tuple) else (output,), mask)
        for (args, output), mask in zip(calls, masks, strict=True)
    )


def _is_hidden(values: tuple, mask: Tensor | None) -> bool:
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 3:
        return False
    return mask is None or values[0].shape[:2] == mask.shape


def _masks(batch: dict[str, Tensor], n_sequences: int) -> list[Tensor] | list[None]:
    """Real tokens of each sequence that an item holds; None where there is no padding."""
    masks = [
        tensor.bool()
        for name, tensor in batch.items()
        if name.endswith("attention_mask")
    ]
    return masks or [None] * n_sequences


def _real_tokens(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    lengths = mask.sum(dim=1).tolist()
    return list(hidden[mask].split(lengths))


def _padded(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    real = torch.cat(list(rows))
    hidden = real.new_zeros(*mask.shape, real.shape[1])
    hidden[mask] = real
    return hidden


def _with_blocks(
    module: nn.Module, path: str, replacements: Mapping[str, nn.Module]
) -> nn.Module:
    """Copy of a module tree with other blocks; tensors and all else that is in blocks stay."""
    tensors = chain(module.parameters(), module.buffers())
    kept = islice(module.get_submodule(path).modules(), 1, None)
    new = copy.deepcopy(module, {id(part): part for part in chain(tensors, kept)})
    for name, block in replacements.items():
        setattr(new.get_submodule(path), name, block)
    return new
