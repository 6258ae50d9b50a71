"""Low-rank adaptation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval, Real
from skpeft.adapters.base import AdaptedLayer, Adapter, GeneratorDropout


class LoRA(Adapter):
    r"""Low-rank update of frozen linear layers.

    A layer :math:`W x + b` becomes :math:`W x + b + s\, B A\, \mathrm{drop}(x)` with
    :math:`A` of shape (rank, in), :math:`B` of shape (out, rank) and scaling :math:`s`.
    :math:`B` starts at zero, so the adapted layer starts as the frozen one.

    Parameters
    ----------
    rank : int, default=8
        Rank of the update, at least 1. More rank, more trainable parameters.
    alpha : float or None, default=None
        Numerator of the scaling, above 0. None means twice the rank, so that the
        scaling is 2 whatever the rank (with `rank_stabilized`, twice its root).
    dropout : float, default=0.0
        Probability of zeroing an input entry of the update in training, in [0, 1).
    roles : sequence of str, default=("query", "value")
        Layers of a block that are adapted; see `skpeft.adapters.ROLES`.
    rank_stabilized : bool, default=False
        Scale by ``alpha / sqrt(rank)`` in place of ``alpha / rank`` [2]_.

    References
    ----------
    .. [1] Hu et al. (2022). LoRA: Low-Rank Adaptation of Large Language Models. ICLR.
    .. [2] Kalajdzievski (2023). A Rank Stabilization Scaling Factor for Fine-Tuning
       with LoRA. arXiv:2312.03732.

    Examples
    --------
    >>> from skpeft.adapters import LoRA
    >>> LoRA(rank=4).scaling
    2.0
    >>> LoRA(rank=4).count({"query": (384, 384), "value": (384, 384)})
    6144
    """

    capacity = "rank"
    default_learning_rate = 2e-3
    _parameter_constraints = {
        "rank": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither"), None],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "roles": ["array-like"],
        "rank_stabilized": ["boolean"],
    }

    def __init__(
        self,
        rank: int = 8,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        roles: Sequence[str] = ("query", "value"),
        rank_stabilized: bool = False,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.roles = roles
        self.rank_stabilized = rank_stabilized

    @property
    def scaling(self) -> float:
        """Factor on the low-rank update."""
        alpha = 2.0 * self.rank if self.alpha is None else float(self.alpha)
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        return tuple(self.roles)

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        super().validate()
        if not len(self.roles):
            raise ValueError(
                f"roles={self.roles!r} was given to LoRA, which would train nothing. Name at "
                "least one role, such as 'query', or use adapter=None."
            )

    def wrap(
        self, layer: nn.Linear, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with a low-rank update beside it."""
        return LoRALinear(layer, self.rank, self.scaling, self.dropout, generator)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``rank * (in + out)`` for each layer."""
        return sum(self.rank * (n_in + n_out) for n_in, n_out in sites.values())


class LoRALinear(AdaptedLayer):
    """A frozen linear layer and its low-rank update."""

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scaling: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base)
        bound = 1.0 / math.sqrt(base.in_features)  # as kaiming_uniform_(a=sqrt(5))
        down = torch.empty(rank, base.in_features, dtype=torch.float32, device="cpu")
        self.lora_A = nn.Parameter(down.uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(
            torch.zeros(base.out_features, rank, dtype=torch.float32, device="cpu")
        )
        self.scaling = scaling
        self.dropout = GeneratorDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        update = self.dropout(x) @ self.lora_A.T @ self.lora_B.T
        return self.base(x) + self.scaling * update
