"""Hadamard high-rank adaptation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skpeft._validation import Integral, Interval
from skpeft.adapters.base import (
    AdaptedLayer,
    ReweightedLayer,
    SharedWithPeft,
    is_plain_linear,
    widths,
    zeros,
)


class HiRA(SharedWithPeft):
    r"""Frozen weights times learned factors, one for each entry, of low rank together.

    A layer :math:`W x + b` becomes :math:`(W \odot (1 + B A))\, x + b` with :math:`A` of
    shape (rank, in) and :math:`B` of shape (out, rank). The change :math:`W \odot B A` is
    of full rank, though it has no more parameters than LoRA's [1]_. :math:`B` starts at
    zero, so the adapted layer starts as the frozen one; :math:`A` is drawn uniformly from
    -1 to 1, as it scales weights and not inputs.

    A step costs as much as one of full fine-tuning of the same layers, since the gradient
    of the whole weight is computed. In a list of adapters it stands before others on the
    same layer.

    Parameters
    ----------
    rank : int, default=32
        Rank of the factors, at least 1. More rank, more trainable parameters. The default
        learning rate falls with its root, so that a step changes as much.
    roles : sequence of str or None, default=None
        Layers of a block that are adapted; see `skpeft.adapters.ROLES`. None means all
        linear layers of a block that the encoder's role table names.
    weights : str or None, default=None
        Folder of an adapter that PEFT, sentence-transformers or skpeft has saved, from
        whose tensors it starts, and to which `shrinkage` of the estimator draws it back;
        see `from_pretrained`. It is read in fit alone. None: it starts as the identity.
    frozen : bool, default=False
        Whether the tensors of `weights` stay as they are, so that only a head is fitted.

    References
    ----------
    .. [1] Huang et al. (2025). HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for
       Large Language Models. ICLR.

    Examples
    --------
    >>> from skpeft.adapters import HiRA
    >>> HiRA(rank=4).count({"query": (384, 384), "value": (384, 384)})
    6144
    """

    capacity = "rank"
    _parameter_constraints = {
        "rank": [Interval(Integral, 1, 2**16, closed="both")],
        "roles": ["array-like", None],
        "weights": [str, None],
        "frozen": ["boolean"],
    }

    def __init__(
        self,
        rank: int = 32,
        *,
        roles: Sequence[str] | None = None,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        self.rank = rank
        self.roles = roles
        self.weights = weights
        self.frozen = frozen

    @property
    def default_learning_rate(self) -> float:  # type: ignore[override]
        """2.7e-3 for rank 32, and as large a change of the weights for others.

        Adam moves each entry of B by about the learning rate, so the factors move by it
        times the root of the rank.
        """
        return 2.7e-3 * math.sqrt(32 / self.rank)

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return `layer` with factors on its weight."""
        if isinstance(layer, AdaptedLayer):
            raise ValueError(
                f"HiRA comes after another adapter on the role {role!r}, but it needs the "
                "frozen weight itself. Put it first in the list."
            )
        if not is_plain_linear(layer):
            raise ValueError(
                f"HiRA needs a plain torch.nn.Linear at the role {role!r}, whose weight it "
                f"scales; a {type(layer).__name__} is there, which computes in its own way. "
                "Use LoRA, or leave the role out."
            )
        return HiRALinear(layer, self.rank, generator)

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """``rank * (in + out)`` for each layer."""
        return sum(self.rank * (n_in + n_out) for n_in, n_out in sites.values())


class HiRALinear(ReweightedLayer):
    """A frozen linear layer whose weight is multiplied entry by entry."""

    def __init__(self, base: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__(base)
        n_in, n_out = widths(base)
        A = torch.empty(rank, n_in, dtype=torch.float32, device="cpu")
        self.hira_A = nn.Parameter(A.uniform_(-1.0, 1.0, generator=generator))
        self.hira_B = nn.Parameter(zeros(n_out, rank))

    def product(self) -> Tensor:
        """The weight times its factors, of shape (out, in), in the precision of both."""
        weight: Tensor = self.base.weight
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addcmul(weight, weight, self.hira_B @ self.hira_A)
