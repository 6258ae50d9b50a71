"""Learned differences of the normalisations."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from skpeft.adapters.base import (
    NORM_ROLES,
    AdaptedLayer,
    Adapter,
    folded,
    widths,
    zeros,
)


class LayerNormTuning(Adapter):
    r"""Learned factors and offsets of the normalisations.

    A normalisation :math:`f(x)` becomes :math:`(1 + g) \odot f(x) + b`. Both start at
    zero, so the block starts as the frozen one. A normalisation that has no bias gets one.
    Those outside the blocks stay as they are.

    References
    ----------
    .. [1] Zhao et al. (2024). Tuning LayerNorm in Attention: Towards Efficient
       Multi-Modal LLM Finetuning. ICLR.

    Examples
    --------
    >>> from skpeft.adapters import LayerNormTuning
    >>> LayerNormTuning().count({"attention_norm": (384, 384), "ffn_norm": (384, 384)})
    1536
    """

    default_learning_rate = 7.5e-3
    adapts_norms = True

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts in every encoder."""
        return NORM_ROLES

    def roles_in(self, table: Mapping[str, str]) -> tuple[str, ...]:
        """All normalisations of one encoder."""
        return tuple(role for role in table if role.endswith("_norm")) or NORM_ROLES

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with a factor and an offset on its output."""
        return RescaledNorm(layer)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``2 * out`` for each normalisation."""
        return sum(2 * n_out for _, n_out in sites.values())


class RescaledNorm(AdaptedLayer):
    """A frozen normalisation, rescaled."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        n_out = widths(base)[1]
        self.scale = nn.Parameter(zeros(n_out))
        self.shift = nn.Parameter(zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        output = self.base(x)
        return (output * (1.0 + self.scale) + self.shift).to(output.dtype)

    def merged(self) -> nn.Module | None:
        """Normalisation with the factor and the offset in its own; RMS norms have no bias."""
        layer = folded(self.base)
        if not isinstance(layer, nn.LayerNorm):
            return None
        factor, shift = (1.0 + self.scale).detach(), self.shift.detach()
        bias = shift.clone() if layer.bias is None else layer.bias * factor + shift
        layer.weight = nn.Parameter(layer.weight * factor, requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer
