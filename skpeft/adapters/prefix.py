"""Learned keys and values, seen by every token."""

import math

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval
from skpeft.adapters.base import (
    FUSED_ROLE,
    AdaptedLayer,
    Adapter,
    Handover,
    Stack,
    unrounded,
    widths,
    zeros,
)


class Prefix(Adapter):
    r"""Learned keys and values that every token of a block attends to.

    With the queries :math:`q` of a head of width :math:`d`, and `length` learned keys
    :math:`K` and values :math:`V`, what the head has gathered from the tokens is added to
    by :math:`g \odot \mathrm{softmax}(q K^\top / \sqrt{d})\, V`. As in [2]_, prefix and
    tokens have a softmax each, and the gate :math:`g`, one number a channel, starts at
    zero, so the block starts as the frozen one. The prefix takes no place in the sequence:
    masks, positions and the length that a text may have stay as they are.

    Parameters
    ----------
    length : int, default=16
        Number of learned keys and values of a block, at least 1.

    References
    ----------
    .. [1] Li and Liang (2021). Prefix-Tuning: Optimizing Continuous Prompts for
       Generation. ACL.
    .. [2] Zhang et al. (2024). LLaMA-Adapter: Efficient Fine-tuning of Large Language
       Models with Zero-initialized Attention. ICLR.

    Examples
    --------
    >>> from skpeft.adapters import Prefix
    >>> Prefix(10).count({"query": (384, 384), "attention_output": (384, 384)})
    8064
    """

    capacity = "length"
    default_learning_rate = 2.5e-2
    _parameter_constraints = {"length": [Interval(Integral, 1, 2**16, closed="both")]}

    def __init__(self, length: int = 16) -> None:
        self.length = length

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        return ("query", "attention_output")

    def attach(
        self, stack: Stack, generator: torch.Generator
    ) -> list[dict[str, nn.Module]]:
        """Return the replacements of frozen layers, by role, for each block."""
        return [self._around(sites, stack, generator) for sites in stack.sites]

    def _around(
        self, sites: dict[str, nn.Module], stack: Stack, generator: torch.Generator
    ) -> dict[str, nn.Module]:
        """Query and output layer of one block with a prefix between them."""
        role = "query" if "query" in sites else FUSED_ROLE
        leave, waiting = sites["attention_output"], Handover(stack.root)
        width = widths(leave)[0]
        memory = PrefixMemory(self.length, width, stack.n_heads, generator)
        return {
            role: PrefixEntry(sites[role], memory, waiting),
            "attention_output": PrefixExit(leave, waiting),
        }

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``(2 * length + 1) * in`` of the attention's output layer."""
        return (2 * self.length + 1) * sites["attention_output"][0]


class PrefixMemory(nn.Module):
    """Learned keys and values of one block, and the gate on what they give."""

    def __init__(
        self, length: int, width: int, n_heads: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_heads = n_heads

        def normal() -> nn.Parameter:
            values = torch.empty(length, width, dtype=torch.float32, device="cpu")
            return nn.Parameter(values.normal_(generator=generator))

        self.key, self.value = normal(), normal()
        self.gate = nn.Parameter(zeros(width))

    def forward(self, query: Tensor) -> Tensor:
        """Map queries (..., heads * d) to what is added to the gathered values."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.n_heads, -1))

        with unrounded(query):
            query = heads(query.to(self.key.dtype))
            scores = torch.einsum("...hd,lhd->...hl", query, heads(self.key))
            shares = (scores / math.sqrt(query.shape[-1])).softmax(dim=-1)
            seen = torch.einsum("...hl,lhd->...hd", shares, heads(self.value))
            return self.gate * seen.flatten(-2)


class PrefixEntry(AdaptedLayer):
    """Layer that computes the queries; what the prefix makes of them is handed on."""

    def __init__(
        self, base: nn.Module, memory: PrefixMemory, waiting: Handover
    ) -> None:
        super().__init__(base)
        self.memory = memory
        self.waiting = waiting

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out); queries come first in a fused layer."""
        output = self.base(x)
        self.waiting.put(self.memory(output[..., : self.memory.gate.numel()]))
        return output


class PrefixExit(AdaptedLayer):
    """Output layer of attention: also gets what the prefix gave."""

    def __init__(self, base: nn.Module, waiting: Handover) -> None:
        super().__init__(base)
        self.waiting = waiting

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.base((x + self.waiting.take()).to(x.dtype))
