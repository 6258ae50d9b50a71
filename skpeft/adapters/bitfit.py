"""Learned differences of biases."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skpeft.adapters.base import AdaptedLayer, WithRoles, folded, widths, zeros


class BitFit(WithRoles):
    r"""Learned differences of biases.

    A layer :math:`f(x)`, linear or a normalisation, becomes :math:`f(x) + b`. The
    difference :math:`b` starts at zero, so the adapted layer starts as the frozen one. A
    layer that has no bias gets one.

    Parameters
    ----------
    roles : sequence of str or None, default=None
        Layers of a block that are adapted; see `skpeft.adapters.ROLES` and `NORM_ROLES`.
        None means all that the encoder has.

    References
    ----------
    .. [1] Ben Zaken et al. (2022). BitFit: Simple Parameter-efficient Fine-tuning for
       Transformer-based Masked Language-models. ACL.

    Examples
    --------
    >>> from skpeft.adapters import BitFit
    >>> BitFit(roles=["query", "ffn_in"]).count({"query": (384, 384), "ffn_in": (384, 1536)})
    1920
    """

    default_learning_rate = 7.5e-3
    adapts_norms = True
    _parameter_constraints = {"roles": ["array-like", None]}

    def __init__(self, *, roles: Sequence[str] | None = None) -> None:
        self.roles = roles

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with a difference added to its output."""
        return Shifted(layer)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``out`` for each layer."""
        return sum(n_out for _, n_out in sites.values())


class Shifted(AdaptedLayer):
    """A frozen layer and what is added to its output."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        n_out = widths(base)[1]
        self.shift = nn.Parameter(zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        output = self.base(x)
        return (output + self.shift).to(output.dtype)

    def merged(self) -> nn.Module | None:
        """Layer with the difference in its bias."""
        layer = folded(self.base)
        if not isinstance(layer, nn.Linear | nn.LayerNorm):
            return None
        shift = self.shift.detach()
        bias = shift.clone() if layer.bias is None else layer.bias.detach() + shift
        layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer
