"""A side network that reads the frozen blocks."""

import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval
from skpeft.adapters.base import (
    WHOLE_BLOCK,
    Adapter,
    BesideBlock,
    Stack,
    unrounded,
    widths,
    zeros,
)


class LadderSide(Adapter):
    r"""Small network beside the encoder, fed by the hidden states of its blocks.

    Beside block :math:`i` with hidden states :math:`h_i` of width :math:`n`, the state of
    the side network, of width `side_dim`, becomes

    .. math::
        s_i = \mu_i s_{i-1} + (1 - \mu_i)\, a(D_i \hat{h_i} + d_i), \qquad
        \mu_i = \mathrm{sigmoid}(\alpha_i),

    with :math:`\hat h` the hidden states brought to mean 0 and variance 1, and the
    non-linearity :math:`a` (GELU). To what the last block gives, :math:`\sum_i U_i s_i` is
    added. :math:`U_i` starts at zero, so the encoder starts as the frozen one. Nothing
    goes back through the blocks, and what they give is computed once in a fit, which so
    costs hardly more than a frozen pass.

    Parameters
    ----------
    side_dim : int, default=64
        Width of the side network, at least 1.

    Notes
    -----
    The side network of [1]_ is a transformer; this one treats each token by itself, as
    tokens have met in the hidden states that it reads.

    References
    ----------
    .. [1] Sung et al. (2022). LST: Ladder Side-Tuning for Parameter and Memory Efficient
       Transfer Learning. NeurIPS.

    Examples
    --------
    >>> from skpeft.adapters import LadderSide
    >>> LadderSide(48).count({"ffn_out": (1536, 384)})
    36913
    """

    capacity = "side_dim"
    default_learning_rate = 1e-3
    _parameter_constraints = {"side_dim": [Interval(Integral, 1, 2**16, closed="both")]}

    def __init__(self, side_dim: int = 64) -> None:
        self.side_dim = side_dim

    def target_roles(self) -> tuple[str, ...]:
        """Roles that tell the width of the hidden states."""
        return ("ffn_out",)

    def attach(
        self, stack: Stack, generator: torch.Generator
    ) -> list[dict[str, nn.Module]]:
        """Return a rung around each block."""
        assert stack.root is not None
        climb = Climb(stack.n_calls or len(stack.blocks))
        stack.root.register_forward_pre_hook(climb.begin)
        stack.root.register_forward_hook(climb.end)
        replaced: list[dict[str, nn.Module]] = []
        for block, sites in zip(stack.blocks, stack.sites, strict=True):
            width = widths(sites["ffn_out"])[1]
            replaced.append(
                {WHOLE_BLOCK: Rung(block, width, self.side_dim, climb, generator)}
            )
        return replaced

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``side_dim * (2 * out + 1) + 1`` for a block of hidden width ``out``."""
        return self.side_dim * (2 * sites["ffn_out"][1] + 1) + 1


class Climb(nn.Module):
    """How far the side network has come in the present pass, for each thread."""

    def __init__(self, n_rungs: int) -> None:
        super().__init__()
        self.n_rungs = n_rungs
        self._pass = threading.local()

    def begin(self, *_: Any) -> None:
        """Start a pass."""
        self._pass.__dict__.update(state=0.0, total=0.0, n_done=0)

    def end(self, *_: Any) -> None:
        """Refuse a pass that went otherwise than was thought."""
        n_done = self._pass.n_done
        if n_done not in (0, self.n_rungs):  # 0 where states are computed to be kept
            raise ValueError(
                f"LadderSide stands beside blocks that run {n_done} times in a pass of this "
                f"encoder, where {self.n_rungs} was expected: once each. Choose blocks that "
                "run once by layers=, or use another adapter."
            )

    def step(self, rung: "Rung", hidden: Tensor) -> Tensor:
        """Hidden states after a rung: those of the last one get what all have gathered."""
        now = self._pass
        now.state, gathered = rung.climb(hidden, now.state)
        now.total, now.n_done = now.total + gathered, now.n_done + 1
        if now.n_done < self.n_rungs:
            return hidden
        return (hidden + now.total).to(hidden.dtype)

    def __reduce__(self) -> tuple[type, tuple]:
        return Climb, (self.n_rungs,)  # a copy is in no pass


class Rung(BesideBlock):
    """A frozen block and the part of the side network beside it."""

    def __init__(
        self,
        base: nn.Module,
        width: int,
        side_dim: int,
        climb: Climb,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base)
        bound = 1.0 / math.sqrt(width)

        self.down = nn.Parameter(
            zeros(side_dim, width).uniform_(-bound, bound, generator=generator)
        )
        self.down_bias = nn.Parameter(zeros(side_dim))
        self.mix = nn.Parameter(zeros(1))
        self.up = nn.Parameter(zeros(width, side_dim))
        self.progress = climb

    def climb(self, hidden: Tensor, state: Tensor | float) -> tuple[Tensor, Tensor]:
        """Next state of the side network, and what it adds to the encoder's output."""
        with unrounded(hidden):
            hidden = hidden.to(self.down.dtype)
            unit = nn.functional.layer_norm(hidden, hidden.shape[-1:])
            inner = nn.functional.linear(unit, self.down, self.down_bias)
            share = self.mix.sigmoid()
            state = share * state + (1.0 - share) * nn.functional.gelu(inner)
            return state, nn.functional.linear(state, self.up)

    def after(self, hidden: Tensor) -> Tensor:
        """Hidden states of the block; the last rung adds what all have gathered."""
        return self.progress.step(self, hidden)
