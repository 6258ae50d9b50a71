"""Hidden states that training leaves as they are: computed once, resumed from."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skpeft.adapters.base import BesideBlock
from skpeft.encoders.base import tensors_of


class Flow(threading.local):
    """Hidden states on their way between the halves of a module, for each thread."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.waiting: list[Tensor] = []


class StandIn(nn.Module):
    """Takes the place of a block; what model code asks the block for, it still finds."""

    def __init__(self, block: nn.Module, flow: Flow) -> None:
        super().__init__()
        self.__dict__["block"] = block  # beside the module tree, which is copied
        self.flow = flow

    def __getattr__(self, name: str) -> Any:
        """Attributes of the block where there are none of its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # such as how the block is copied
                raise
            return getattr(self.__dict__["block"], name)


class PassThrough(StandIn):
    """Stands in for a block that is left out: gives back the hidden states it gets."""

    def __init__(self, block: nn.Module, flow: Flow, beside: tuple | None) -> None:
        super().__init__(block, flow)
        # What follows the hidden states in the tuple that the block gives, if it does.
        self.beside = beside

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states, in the form in which the block gives its own."""
        return hidden if self.beside is None else (hidden, *self.beside)


class Exit(PassThrough):
    """Left-out block that notes the hidden states on their way, one tensor a call."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states, in the form in which the block gives its own."""
        self.flow.seen.append(hidden)
        return super().forward(hidden, *args, **kwargs)


class Entry(StandIn):
    """First adapted block, which takes waiting hidden states for those that come."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Output of the block, from hidden states put there before."""
        return self.__dict__["block"](self.flow.waiting.pop(0), *args, **kwargs)


class Noted(StandIn):
    """Frozen block beside which something is trained: notes what it gives."""

    def forward(self, *args: object, **kwargs: object) -> object:
        """Output of the frozen block."""
        output = self.__dict__["block"].base(*args, **kwargs)
        self.flow.seen.append(output[0] if isinstance(output, tuple) else output)
        return output


class Recalled(PassThrough):
    """Block beside which something is trained, with waiting hidden states for its output."""

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states after what is beside the block."""
        return super().forward(self.__dict__["block"].after(self.flow.waiting.pop(0)))


class Halves(NamedTuple):
    """The frozen part of a module, and what goes on from its hidden states.

    Both are trees of their own around the very same blocks and tensors.
    """

    lower: nn.Module
    upper: nn.Module
    flow: Flow
    # Whose output, or the one whose input, the hidden states are.
    place: tuple[str, ...]

    def states(self, batch: dict[str, Tensor]) -> list[list[Tensor]]:
        """Hidden states of each item: tensors (tokens, dim), those of a sequence together."""
        self.flow.seen.clear()
        with torch.no_grad():
            self.lower(batch)
        seen = list(self.flow.seen)
        self.flow.seen.clear()
        rows = [
            list(hidden) if mask is None else _real_tokens(hidden, mask)
            for hidden, mask in zip(seen, _masks(batch, len(seen)), strict=True)
        ]
        return [list(row) for row in zip(*rows, strict=True)]

    def resume(
        self, batch: dict[str, Tensor], states: Sequence[list[Tensor]]
    ) -> Tensor:
        """Features of a batch from the hidden states of its items."""
        return self.from_hidden(batch, gathered(batch, states))

    def from_hidden(self, batch: dict[str, Tensor], hidden: Sequence[Tensor]) -> Tensor:
        """Features of a batch from its hidden states."""
        self.flow.waiting[:] = hidden
        return self.upper(batch)


def gathered(batch: dict[str, Tensor], states: Sequence[list[Tensor]]) -> list[Tensor]:
    """Hidden states (batch, seq, dim) of a batch from those of its items."""
    sequences = list(zip(*states, strict=True))
    masks = _masks(batch, len(sequences))
    return [
        torch.stack(rows) if mask is None else _padded(rows, mask)
        for rows, mask in zip(sequences, masks, strict=True)
    ]


def halve(
    module: nn.Module,
    path: str,
    lowest: int,
    together: dict[str, Tensor],
    alone: dict[str, Tensor],
    tolerance: float = 1e-4,
) -> Halves | None:
    """Split a module at what is frozen, or give None where that would change its features.

    That is all below the lowest adapted block; where all that is trained stands beside
    blocks, it is every block.

    Parameters
    ----------
    module : torch.nn.Module
        Maps a batch to features. Left as it is.
    path : str
        Where its list of blocks is.
    lowest : int
        Index of the lowest adapted block.
    together, alone : dict of str to Tensor
        A batch, and its last item as a batch of one: on them it is tried whether the
        halves make up the whole, however items are grouped.
    tolerance : float, default=1e-4
        Largest difference of features that is taken for rounding, relative to their
        largest entry.
    """
    blocks = module.get_submodule(path)
    children = dict(blocks.named_children())
    read = [n for n, block in children.items() if _only_reads(block)]
    if _n_trained(module) > sum(_n_trained(children[n]) for n in read):
        read = []
    if not read and not lowest:
        return None  # nothing below, and nothing that only reads
    with torch.no_grad(), noting_calls(blocks) as calls:
        module(together)
    if not all(_is_plain(seen, together) for seen in calls.values()):
        return None
    output = next(iter(calls.values()))[0][1]
    beside = output[1:] if isinstance(output, tuple) else None
    names: list[str] = list(children)
    flow = Flow()
    lower: dict[str, nn.Module]
    upper: dict[str, nn.Module]
    left_out = {n: PassThrough(block, flow, beside) for n, block in children.items()}
    if read:
        lower = {n: Noted(children[n], flow) for n in read}
        above = names[names.index(read[-1]) + 1 :]
        upper = {n: left_out[n] for n in names if n not in above}
        upper |= {n: Recalled(children[n], flow, beside) for n in read}
    else:
        lower = {n: left_out[n] for n in names[lowest:]}
        lower[names[lowest]] = Exit(children[names[lowest]], flow, beside)
        upper = {n: left_out[n] for n in names[:lowest]}
        upper[names[lowest]] = Entry(children[names[lowest]], flow)
    halves = Halves(
        _with_blocks(module, path, lower),
        _with_blocks(module, path, upper),
        flow,
        ("after", path, *read) if read else ("before", path, names[lowest]),
    )
    whole = _make_up_the_whole(halves, module, together, alone, tolerance)
    return halves if whole else None


def _only_reads(block: nn.Module) -> bool:
    """Whether something is trained beside a block, and nothing in it."""
    return isinstance(block, BesideBlock) and not _n_trained(block.base)


def _n_trained(module: nn.Module) -> int:
    return sum(tensor.requires_grad for tensor in module.parameters())


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
    """Inside, note the first argument and the output of each call of a child.

    Those of this thread: others may predict with the same modules.
    """
    calls: dict[str, list[tuple]] = {name: [] for name, _ in blocks.named_children()}
    own = threading.get_ident()

    def note(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(_: nn.Module, args: tuple, output: object) -> None:
            if threading.get_ident() == own:
                calls[name].append((args[:1], output))

        return hook

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
    return len(calls) > 0 and all(
        _is_hidden(args, mask)
        and _is_hidden(output if isinstance(output, tuple) else (output,), mask)
        for (args, output), mask in zip(calls, masks, strict=True)
    )


def _is_hidden(values: tuple, mask: Tensor | None) -> bool:
    if not values or not isinstance(values[0], Tensor) or values[0].ndim != 3:
        return False
    if any(value is not None for value in values[1:]):
        return False
    return mask is None or values[0].shape[:2] == mask.shape


def _masks(batch: dict[str, Tensor], n_states: int) -> list[Tensor] | list[None]:
    """Real tokens for each of the hidden states of an item; None where all are real.

    Of several sequences in an item each has the same number of hidden states.
    """
    masks = [
        tensor.bool()
        for name, tensor in batch.items()
        if name.endswith("attention_mask")
    ]
    if not masks:
        return [None] * n_states
    return [mask for mask in masks for _ in range(n_states // len(masks))]


def _real_tokens(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    lengths = mask.sum(dim=1).tolist()
    return list(hidden[mask].split(lengths))


def _padded(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Hidden states (batch, seq, dim), zero at padding; nobody waits for a GPU here."""
    states = torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])
    real = mask.flatten()
    number = (real.cumsum(0) - 1).masked_fill_(~real, len(states) - 1)
    return states.index_select(0, number).view(*mask.shape, -1)


def _with_blocks(
    module: nn.Module, path: str, replacements: Mapping[str, nn.Module]
) -> nn.Module:
    """Copy of a module tree with other blocks; tensors and all else that is in blocks stay."""
    tensors = tensors_of(module)
    kept = islice(module.get_submodule(path).modules(), 1, None)
    new = copy.deepcopy(module, {id(part): part for part in chain(tensors, kept)})
    for name, block in replacements.items():
        setattr(new.get_submodule(path), name, block)
    return new
