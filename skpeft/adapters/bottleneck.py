"""Bottleneck adapters: serial after a sub-layer, or parallel to the feed-forward."""

import math
import threading

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval, Real, StrOptions
from skpeft.adapters.base import AdaptedLayer, Adapter, GeneratorDropout

_PLACES = {
    "houlsby": ("attention_output", "ffn_out"),
    "pfeiffer": ("ffn_out",),
    "parallel": ("ffn_in", "ffn_out"),
}


class Bottleneck(Adapter):
    r"""Small two-layer network beside the frozen sub-layers.

    With :math:`f(x) = U\, \mathrm{relu}(D\, \mathrm{drop}(x) + d) + u` of inner width
    `bottleneck_dim`, the output :math:`h` of a sub-layer becomes :math:`h + f(h)`; it is
    taken before the residual connection and its normalisation. The parallel form adds
    :math:`s\,f(x)` of the feed-forward's input :math:`x` to its output, with :math:`s`
    = 4. :math:`U` and :math:`u` start at zero, so the block starts as the frozen one.

    Parameters
    ----------
    bottleneck_dim : int, default=32
        Inner width, at least 1.
    placement : {"houlsby", "pfeiffer", "parallel"}, default="houlsby"
        Where the networks go: after attention and after the feed-forward [1]_, after
        the feed-forward only [2]_, or parallel to the feed-forward [3]_.
    dropout : float, default=0.0
        Probability of zeroing an input entry in training, in [0, 1).

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
    default_learning_rate = 2e-3
    _parameter_constraints = {
        "bottleneck_dim": [Interval(Integral, 1, None, closed="left")],
        "placement": [StrOptions(set(_PLACES))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        bottleneck_dim: int = 32,
        *,
        placement: str = "houlsby",
        dropout: float = 0.0,
    ) -> None:
        self.bottleneck_dim = bottleneck_dim
        self.placement = placement
        self.dropout = dropout

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        return _PLACES[self.placement]

    def wrap(
        self, layer: nn.Linear, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` followed by a bottleneck with a skip connection."""
        width = layer.out_features
        return SerialBottleneck(layer, self._network(width, width, generator))

    def attach(
        self, sites: dict[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, nn.Module]:
        """Return the replacements for the layers of one block."""
        if self.placement != "parallel":
            return super().attach(sites, generator)
        entry, leave = sites["ffn_in"], sites["ffn_out"]
        network = self._network(entry.in_features, leave.out_features, generator)
        branch = ParallelBranch(network, scaling=4.0)
        return {
            "ffn_in": BranchEntry(entry, branch),
            "ffn_out": BranchExit(leave, branch),
        }

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``width * (in + out + 1) + out`` for each network."""
        if self.placement == "parallel":
            shapes = [(sites["ffn_in"][0], sites["ffn_out"][1])]
        else:
            shapes = [(n_out, n_out) for _, n_out in sites.values()]
        return sum(
            self.bottleneck_dim * (n_in + n_out + 1) + n_out for n_in, n_out in shapes
        )

    def _network(
        self, n_in: int, n_out: int, generator: torch.Generator
    ) -> "BottleneckNetwork":
        return BottleneckNetwork(
            n_in, self.bottleneck_dim, n_out, self.dropout, generator
        )


class BottleneckNetwork(nn.Module):
    """Down-projection, ReLU, up-projection; zero at the start."""

    def __init__(
        self,
        n_in: int,
        width: int,
        n_out: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device="cpu")

        self.down = nn.Parameter(
            zeros(width, n_in).uniform_(-bound, bound, generator=generator)
        )
        self.down_bias = nn.Parameter(zeros(width))
        self.up = nn.Parameter(zeros(n_out, width))
        self.up_bias = nn.Parameter(zeros(n_out))
        self.dropout = GeneratorDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        inner = nn.functional.linear(self.dropout(x), self.down, self.down_bias).relu()
        return nn.functional.linear(inner, self.up, self.up_bias)


class SerialBottleneck(AdaptedLayer):
    """A frozen linear layer, then a bottleneck with a skip connection."""

    def __init__(self, base: nn.Linear, network: BottleneckNetwork) -> None:
        super().__init__(base)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        hidden = self.base(x)
        return hidden + self.network(hidden)


class ParallelBranch(nn.Module):
    """A bottleneck whose output waits between the two feed-forward layers.

    The waiting value is kept per thread, so that threads can share a fitted network.
    """

    def __init__(self, network: BottleneckNetwork, scaling: float) -> None:
        super().__init__()
        self.network = network
        self.scaling = scaling
        self.waiting = threading.local()

    def enter(self, x: Tensor) -> None:
        """Run the bottleneck on the feed-forward's input."""
        self.waiting.value = self.scaling * self.network(x)

    def leave(self) -> Tensor:
        """Hand out the waiting value, once."""
        return self.waiting.__dict__.pop("value")


class BranchEntry(AdaptedLayer):
    """First feed-forward layer: also starts the parallel branch."""

    def __init__(self, base: nn.Linear, branch: ParallelBranch) -> None:
        super().__init__(base)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., inner)."""
        self.branch.enter(x)
        return self.base(x)


class BranchExit(AdaptedLayer):
    """Last feed-forward layer: adds what the parallel branch computed."""

    def __init__(self, base: nn.Linear, branch: ParallelBranch) -> None:
        super().__init__(base)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inner) to (..., out)."""
        return self.base(x) + self.branch.leave()
