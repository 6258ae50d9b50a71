"""Low-rank adaptation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval, Real
from skpeft.adapters.base import (
    ROLES,
    AdaptedLayer,
    GeneratorDropout,
    ReweightedLayer,
    SharedWithPeft,
    folded,
    is_plain_linear,
    unrounded,
    widths,
    zeros,
)


class LoRA(SharedWithPeft):
    r"""Low-rank update of frozen linear layers.

    A layer :math:`W x + b` becomes :math:`W x + b + s\, B A\, \mathrm{drop}(x)` with
    :math:`A` of shape (rank, in), :math:`B` of shape (out, rank) and scaling :math:`s`.
    :math:`B` starts at zero, so the adapted layer starts as the frozen one.

    Parameters
    ----------
    rank : int, default=8
        Rank of the update, at least 1. More rank, more trainable parameters. The default
        learning rate falls with its root, so that a step changes as much.
    alpha : float or None, default=None
        Numerator of the scaling, above 0. None means twice the rank, so that the
        scaling is 2 whatever the rank (with `rank_stabilized`, twice its root).
    dropout : float, default=0.0
        Probability of zeroing an input entry of the update in training, in [0, 1).
    roles : sequence of str or None, default=("query", "value")
        Layers of a block that are adapted; see `skpeft.adapters.ROLES`. None means all
        linear layers of a block that the encoder's role table names.
    rank_stabilized : bool, default=False
        Scale by ``alpha / sqrt(rank)`` in place of ``alpha / rank`` [2]_.
    use_dora : bool, default=False
        Learn the length of each row of the weight apart from its direction [3]_: the rows
        of :math:`W + s\, B A` are brought back to the length that they had in :math:`W`,
        times :math:`1 + m` with one learned :math:`m` a row, which starts at zero. As in
        the paper, no gradient goes through the lengths. In a list of adapters it stands
        before others on the same layer.
    weights : str or None, default=None
        Folder of an adapter that PEFT, sentence-transformers or skpeft has saved, from
        whose tensors it starts, and to which `shrinkage` of the estimator draws it back;
        see `from_pretrained`. It is read in fit alone. None: it starts as the identity.
    frozen : bool, default=False
        Whether the tensors of `weights` stay as they are, so that only a head is fitted.

    References
    ----------
    .. [1] Hu et al. (2022). LoRA: Low-Rank Adaptation of Large Language Models. ICLR.
    .. [2] Kalajdzievski (2023). A Rank Stabilization Scaling Factor for Fine-Tuning
       with LoRA. arXiv:2312.03732.
    .. [3] Liu et al. (2024). DoRA: Weight-Decomposed Low-Rank Adaptation. ICML.

    Examples
    --------
    >>> from skpeft.adapters import LoRA
    >>> LoRA(rank=4).scaling
    2.0
    >>> LoRA(rank=4).count({"query": (384, 384), "value": (384, 384)})
    6144
    """

    capacity = "rank"
    _parameter_constraints = {
        "rank": [Interval(Integral, 1, 2**16, closed="both")],
        "alpha": [Interval(Real, 0, None, closed="neither"), None],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "roles": ["array-like", None],
        "rank_stabilized": ["boolean"],
        "use_dora": ["boolean"],
        "weights": [str, None],
        "frozen": ["boolean"],
    }

    def __init__(
        self,
        rank: int = 8,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        roles: Sequence[str] | None = ("query", "value"),
        rank_stabilized: bool = False,
        use_dora: bool = False,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.roles = roles
        self.rank_stabilized = rank_stabilized
        self.use_dora = use_dora
        self.weights = weights
        self.frozen = frozen

    @property
    def default_learning_rate(self) -> float:  # type: ignore[override]
        """2e-3 for rank 8 at two layers of a block, and as large an update for others.

        Adam moves each entry of B by about the learning rate, so the norm of all updates
        in a block grows with the root of the rank and of the number of layers.
        """
        n_layers = len(set(self.target_roles() or ROLES))  # None: as many as most have
        return 2e-3 * math.sqrt(2 * 8 / (n_layers * self.rank))

    @property
    def scaling(self) -> float:
        """Factor on the low-rank update."""
        alpha = 2.0 * self.rank if self.alpha is None else float(self.alpha)
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with a low-rank update beside it."""
        if not self.use_dora:
            return LoRALinear(layer, self.rank, self.scaling, self.dropout, generator)
        if isinstance(layer, AdaptedLayer):
            raise ValueError(
                f"LoRA(use_dora=True) comes after another adapter on the role {role!r}, "
                "but it needs the frozen weight itself. Put it first in the list."
            )
        if not is_plain_linear(layer):
            raise ValueError(
                f"LoRA(use_dora=True) needs a plain torch.nn.Linear at the role {role!r}, "
                f"whose weight it takes apart; a {type(layer).__name__} is there, which "
                "computes in its own way. Leave use_dora=False, or leave the role out."
            )
        return DoRALinear(layer, self.rank, self.scaling, self.dropout, generator)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``rank * (in + out)`` for each layer, with `use_dora` another ``out``."""
        return sum(
            self.rank * (n_in + n_out) + self.use_dora * n_out
            for n_in, n_out in sites.values()
        )


class LoRALinear(ReweightedLayer):
    """A frozen linear layer and its low-rank update, which training keeps apart."""

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scaling: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base)
        n_in, n_out = widths(base)
        bound = 1.0 / math.sqrt(n_in)  # as kaiming_uniform_(a=sqrt(5))
        down = torch.empty(rank, n_in, dtype=torch.float32, device="cpu")
        self.lora_A = nn.Parameter(down.uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(zeros(n_out, rank))
        self.scaling = scaling
        self.dropout = GeneratorDropout(dropout)

    def update(self, x: Tensor) -> Tensor:
        """What the low-rank update adds, (..., in) to (..., out), in its own precision."""
        with unrounded(x):
            x = self.dropout(x.to(self.lora_A.dtype))
            down = self.scaling * nn.functional.linear(x, self.lora_A)
            return nn.functional.linear(down, self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self.ready is not None:
            return super().forward(x)
        output = self.base(x)
        return (output + self.update(x)).to(output.dtype)

    def updated(self, weight: Tensor) -> Tensor:
        """A weight of shape (out, in) and the low-rank update of it."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.lora_B, self.lora_A, alpha=self.scaling)

    def product(self) -> Tensor:
        """The updated weight."""
        return self.updated(self.base.weight)

    def takes_weight(self, training: bool) -> bool:
        """Where nothing is trained, around a plain linear layer."""
        return not training and self.is_linear and is_plain_linear(self.base)

    @property
    def is_linear(self) -> bool:
        """Whether the update is the product of matrices, which a subclass may alter."""
        return type(self).update is LoRALinear.update

    def merged(self) -> nn.Module | None:
        """Linear layer of the updated weight."""
        linear = folded(self.base) if self.is_linear else None
        if linear is not None:
            linear.weight.data = self.updated(linear.weight).detach()
        return linear


class DoRALinear(LoRALinear):
    """A frozen linear layer, its low-rank update, and the lengths of the weight's rows."""

    def __init__(self, base: nn.Module, *how: Any) -> None:
        super().__init__(base, *how)
        n_out = len(self.lora_B)
        self.magnitude = nn.Parameter(zeros(n_out))

    def factor(self) -> Tensor:
        """What each row of the updated weight is multiplied with, of shape (out,)."""
        with torch.no_grad():
            ratio = self.base.weight.norm(dim=1) / super().product().norm(dim=1)
        # A row of zeros has no length to keep: it stays as the update makes it.
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
        return ratio * (1.0 + self.magnitude)

    def product(self) -> Tensor:
        """The updated weight, each row brought to its length."""
        return self.factor()[:, None] * super().product()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self.ready is not None:
            return super().forward(x)
        plain = nn.functional.linear(x, self.base.weight)
        output = self.factor() * (plain + self.update(x))
        if self.base.bias is not None:
            output = output + self.base.bias
        return output.to(plain.dtype)

    def merged(self) -> nn.Module | None:
        """Linear layer of the updated weight."""
        # What is inside is a plain layer.
        return ReweightedLayer.merged(self) if self.is_linear else None
