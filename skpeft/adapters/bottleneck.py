"""Bottleneck adapters: serial after a sub-layer, or parallel to the feed-forward."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval, Real, StrOptions
from skpeft.adapters.base import (
    AdaptedLayer,
    Adapter,
    GeneratorDropout,
    Handover,
    Stack,
    unrounded,
    widths,
    zeros,
)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
_PLACES = {
    "houlsby": ("attention_output", "ffn_out"),
    "pfeiffer": ("ffn_out",),
    "parallel": ("ffn_in", "ffn_out"),
}


class Bottleneck(Adapter):
    r"""Small two-layer network beside the frozen sub-layers.

    With :math:`f(x) = U\, a(D\, \mathrm{drop}(x) + d) + u` of inner width `bottleneck_dim`
    and a non-linearity :math:`a`, the output :math:`h` of a sub-layer becomes
    :math:`h + s f(h)`; it is taken before the residual connection and its normalisation.
    The parallel form adds :math:`s f(x)` of the feed-forward's input :math:`x` to its
    output. :math:`U` and :math:`u` start at zero, so the block starts as the frozen one.

    Parameters
    ----------
    bottleneck_dim : int, default=32
        Inner width, at least 1. The default learning rate falls with its root, so that a
        step changes as much.
    placement : {"houlsby", "pfeiffer", "parallel"}, default="houlsby"
        Where the networks go: after attention and after the feed-forward [1]_, after
        the feed-forward only [2]_, or parallel to the feed-forward [3]_.
    dropout : float, default=0.0
        Probability of zeroing an input entry in training, in [0, 1).
    activation : {"relu", "gelu", "silu", "tanh"}, default="relu"
        The non-linearity.
    scaling : float, "learned" or None, default=None
        The factor :math:`s`, above 0. None means 1, and 4 for the parallel form as in
        [3]_; "learned" starts there and is trained, one number for each network.

    References
    ----------
    .. [1] Houlsby et al. (2019). Parameter-Efficient Transfer Learning for NLP. ICML.
    .. [2] Pfeiffer et al. (2021). AdapterFusion: Non-Destructive Task Composition for
       Transfer Learning. EACL.
    .. [3] He et al. (2022). Towards a Unified View of Parameter-Efficient Transfer
       Learning. ICLR.

    Examples
    --------
    >>> from skpeft.adapters import Bottleneck
    >>> Bottleneck(16, placement="pfeiffer").count({"ffn_out": (1536, 384)})
    12688
    """

    capacity = "bottleneck_dim"
    _parameter_constraints = {
        "bottleneck_dim": [Interval(Integral, 1, 2**16, closed="both")],
        "placement": [StrOptions(set(_PLACES))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "activation": [StrOptions(set(_ACTIVATIONS))],
        "scaling": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"learned"}),
            None,
        ],
    }

    def __init__(
        self,
        bottleneck_dim: int = 32,
        *,
        placement: str = "houlsby",
        dropout: float = 0.0,
        activation: str = "relu",
        scaling: float | str | None = None,
    ) -> None:
        self.bottleneck_dim = bottleneck_dim
        self.placement = placement
        self.dropout = dropout
        self.activation = activation
        self.scaling = scaling

    @property
    def default_learning_rate(self) -> float:  # type: ignore[override]
        """2e-3 for an inner width of 32, and as large a step of the outputs for others.

        Adam moves each entry of U by about the learning rate, so what a step changes grows
        with the root of the inner width.
        """
        return 2e-3 * math.sqrt(32 / self.bottleneck_dim)

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        return _PLACES[self.placement]

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` followed by a bottleneck with a skip connection."""
        width = widths(layer)[1]
        return SerialBottleneck(layer, self._network(width, width, generator))

    def attach(
        self, stack: Stack, generator: torch.Generator
    ) -> list[dict[str, nn.Module]]:
        """Return the replacements of frozen layers, by role, for each block."""
        if self.placement != "parallel":
            return super().attach(stack, generator)
        return [self._beside(sites, stack, generator) for sites in stack.sites]

    def _beside(
        self, sites: dict[str, nn.Module], stack: Stack, generator: torch.Generator
    ) -> dict[str, nn.Module]:
        """Feed-forward layers of one block with a bottleneck beside them."""
        entry, leave = sites["ffn_in"], sites["ffn_out"]
        network = self._network(widths(entry)[0], widths(leave)[1], generator)
        waiting = Handover(stack.root)
        return {
            "ffn_in": BranchEntry(entry, network, waiting),
            "ffn_out": BranchExit(leave, waiting),
        }

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``width * (in + out + 1) + out`` for each network, plus 1 for a learned scale."""
        if self.placement == "parallel":
            shapes = [(sites["ffn_in"][0], sites["ffn_out"][1])]
        else:
            shapes = [(n_out, n_out) for _, n_out in sites.values()]
        learned = self.scaling == "learned"
        return sum(
            self.bottleneck_dim * (n_in + n_out + 1) + n_out + learned
            for n_in, n_out in shapes
        )

    def _network(
        self, n_in: int, n_out: int, generator: torch.Generator
    ) -> "BottleneckNetwork":
        return BottleneckNetwork(n_in, n_out, self, generator)


class BottleneckNetwork(nn.Module):
    """Down-projection, non-linearity, up-projection, factor; zero at the start."""

    def __init__(
        self, n_in: int, n_out: int, spec: Bottleneck, generator: torch.Generator
    ) -> None:
        super().__init__()
        width, bound = spec.bottleneck_dim, 1.0 / math.sqrt(n_in)

        self.down = nn.Parameter(
            zeros(width, n_in).uniform_(-bound, bound, generator=generator)
        )
        self.down_bias = nn.Parameter(zeros(width))
        self.up = nn.Parameter(zeros(n_out, width))
        self.up_bias = nn.Parameter(zeros(n_out))
        self.dropout = GeneratorDropout(spec.dropout)
        self.activation = spec.activation
        start = 4.0 if spec.placement == "parallel" else 1.0
        self.scaling: Tensor | float
        if spec.scaling == "learned":
            self.scaling = nn.Parameter(zeros(1).fill_(start))
        else:
            self.scaling = start if spec.scaling is None else float(spec.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the precision of its own tensors."""
        with unrounded(x):
            x = self.dropout(x.to(self.down.dtype))
            inner = nn.functional.linear(x, self.down, self.down_bias)
            inner = _ACTIVATIONS[self.activation](inner)
            return self.scaling * nn.functional.linear(inner, self.up, self.up_bias)


class SerialBottleneck(AdaptedLayer):
    """A frozen linear layer, then a bottleneck with a skip connection."""

    def __init__(self, base: nn.Module, network: BottleneckNetwork) -> None:
        super().__init__(base)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        hidden = self.base(x)
        return (hidden + self.network(hidden)).to(hidden.dtype)


class BranchEntry(AdaptedLayer):
    """First feed-forward layer; a bottleneck beside it hands its output to the last one."""

    def __init__(
        self, base: nn.Module, network: BottleneckNetwork, waiting: Handover
    ) -> None:
        super().__init__(base)
        self.network = network
        self.waiting = waiting

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., inner)."""
        self.waiting.put(self.network(x))
        return self.base(x)


class BranchExit(AdaptedLayer):
    """Last feed-forward layer: adds what the bottleneck beside the first one left."""

    def __init__(self, base: nn.Module, waiting: Handover) -> None:
        super().__init__(base)
        self.waiting = waiting

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inner) to (..., out)."""
        output = self.base(x)
        return (output + self.waiting.take()).to(output.dtype)
