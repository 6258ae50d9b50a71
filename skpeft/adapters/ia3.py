"""Learned factors on activations."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skpeft._validation import one_of
from skpeft.adapters.base import (
    FUSED_ROLE,
    ROLES,
    AdaptedLayer,
    SharedWithPeft,
    folded,
    widths,
    zeros,
)


class IA3(SharedWithPeft):
    r"""Learned factors on keys, values and the feed-forward's inner activations.

    The output of a layer becomes :math:`(1 + l) \odot (W x + b)`; at `input_roles` it is the
    input that is scaled, :math:`W ((1 + l) \odot x) + b`. The factors differ from one by
    :math:`l`, which starts at zero, so the adapted layer starts as the frozen one. Where
    queries, keys and values come out of one layer, its whole output is scaled.

    Parameters
    ----------
    roles : sequence of str, default=("key", "value", "ffn_out")
        Layers of a block that are adapted; see `skpeft.adapters.ROLES`.
    input_roles : sequence of str, default=("ffn_out",)
        Those of them whose input is scaled, not the output.
    weights : str or None, default=None
        Folder of an adapter that PEFT, sentence-transformers or skpeft has saved, from
        whose tensors it starts, and to which `shrinkage` of the estimator draws it back;
        see `from_pretrained`. It is read in fit alone. None: it starts as the identity.
    frozen : bool, default=False
        Whether the tensors of `weights` stay as they are, so that only a head is fitted.

    References
    ----------
    .. [1] Liu et al. (2022). Few-Shot Parameter-Efficient Fine-Tuning is Better and
       Cheaper than In-Context Learning. NeurIPS.

    Examples
    --------
    >>> from skpeft.adapters import IA3
    >>> IA3().count({"key": (384, 384), "value": (384, 384), "ffn_out": (1536, 384)})
    2304
    """

    default_learning_rate = 2.5e-2
    _parameter_constraints = {
        "roles": ["array-like"],
        "input_roles": ["array-like"],
        "weights": [str, None],
        "frozen": ["boolean"],
    }

    def __init__(
        self,
        *,
        roles: Sequence[str] = ("key", "value", "ffn_out"),
        input_roles: Sequence[str] = ("ffn_out",),
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        self.roles = roles
        self.input_roles = input_roles
        self.weights = weights
        self.frozen = frozen

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        super().validate()
        # Those that are not adapted do nothing.
        known = {*ROLES, FUSED_ROLE, *(() if self.roles is None else self.roles)}
        for role in self.input_roles:
            if role not in known:
                raise ValueError("input_roles: " + one_of(role, known, "role"))

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with factors on its output, or at `input_roles` on its input."""
        return ScaledInput(layer) if role in self.input_roles else ScaledOutput(layer)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``out`` for each layer, and ``in`` for those of `input_roles`."""
        return sum(shape[role not in self.input_roles] for role, shape in sites.items())


class ScaledOutput(AdaptedLayer):
    """A frozen linear layer whose output is scaled."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        n_out = widths(base)[1]
        self.scale = nn.Parameter(zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        output = self.base(x)
        return (output * (1.0 + self.scale)).to(output.dtype)

    def merged(self) -> nn.Module | None:
        """Linear layer with scaled rows and bias."""
        linear = folded(self.base)
        if linear is not None:
            factor = (1.0 + self.scale).detach()
            linear.weight.data *= factor[:, None]
            if linear.bias is not None:
                linear.bias.data *= factor
        return linear


class ScaledInput(AdaptedLayer):
    """A frozen linear layer whose input is scaled."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        n_in = widths(base)[0]
        self.scale = nn.Parameter(zeros(n_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.base(x * (1.0 + self.scale))

    def merged(self) -> nn.Module | None:
        """Linear layer with scaled columns."""
        linear = folded(self.base)
        if linear is not None:
            linear.weight.data *= (1.0 + self.scale).detach()
        return linear
