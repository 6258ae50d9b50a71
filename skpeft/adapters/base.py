"""The adapter contract: a spec names roles, and wraps the frozen layers found there."""

from typing import ClassVar

import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from skpeft._validation import validate_spec

#: Places in a transformer block, in the order in which data passes through them.
ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")


class Adapter(BaseEstimator):
    """Base class of adapter specs.

    A spec holds hyperparameters alone, never data or tensors, so it clones, prints and
    tunes like any scikit-learn estimator. To write a method, subclass it and define

    - `wrap(layer, role, generator)`, which returns the module that replaces a frozen
      linear layer and, at the start, computes exactly what that layer computed;
    - `count(sites)`, the formula of its trainable parameters in one block;
    - the class attributes below.

    The network decides about devices, traversal and freezing. A method whose parts span
    several layers of a block overrides `attach` instead of `wrap`.
    """

    #: Name of the parameter that `rank` of the estimators overrides; None: no capacity.
    capacity: ClassVar[str | None] = None
    #: Learning rate used where the estimator's `learning_rate` is None.
    default_learning_rate: ClassVar[float] = 1e-3
    #: Whether the method trains the encoder's own weights, on a private copy.
    trains_encoder: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {}

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        raise NotImplementedError

    def wrap(
        self, layer: nn.Linear, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return the module that replaces one frozen layer.

        Parameters
        ----------
        layer : torch.nn.Linear
            The frozen layer, shared with other networks: never changed.
        role : str
            The role of the layer, one of `ROLES` or a role of the user's own table.
        generator : torch.Generator
            Source of the initial values, on the CPU.
        """
        raise NotImplementedError

    def attach(
        self, sites: dict[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, nn.Module]:
        """Return the replacements for the layers of one block.

        Parameters
        ----------
        sites : dict of str to torch.nn.Linear
            The frozen layers at `target_roles()`, by role.
        generator : torch.Generator
            Source of the initial values, on the CPU.
        """
        return {
            role: self.wrap(layer, role, generator) for role, layer in sites.items()
        }

    def release(self, module: nn.Module) -> None:
        """Give a module trainable copies of its weights, in place.

        Only for methods with `trains_encoder`.

        Parameters
        ----------
        module : torch.nn.Module
            Part of a network's own tree, whose tensors are still shared.
        """
        raise NotImplementedError

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """Number of trainable parameters in one block, by formula.

        Parameters
        ----------
        sites : dict of str to (int, int)
            Input and output width of each layer at `target_roles()`.
        """
        raise NotImplementedError

    def with_capacity(self, rank: int) -> "Adapter":
        """Copy of the spec with its capacity set to `rank`.

        Raises
        ------
        ValueError
            If the method has no capacity.
        """
        if self.capacity is None:
            raise ValueError(
                f"rank={rank!r} was given, but {type(self).__name__} has no capacity to "
                "set. Leave rank=None here; in a search use a list of grids, one for the "
                "adapters with a rank and one for those without."
            )
        return clone(self).set_params(**{self.capacity: rank})

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        validate_spec(self)


class AdaptedLayer(nn.Module):
    """Base of the modules that replace a frozen linear layer.

    The frozen layer stays reachable as `base`. Every other parameter is the adapter's.

    Parameters
    ----------
    base : torch.nn.Linear
        The frozen layer, shared with other networks.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """Frozen weight, for model code that looks at its dtype or device."""
        return self.base.weight


class GeneratorDropout(nn.Module):
    """Dropout that draws from the generator of the fit, not from the global one.

    It is active while the network lends it a generator, which it does in training only.

    Parameters
    ----------
    p : float
        Probability of zeroing an entry, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries of `x` with probability `p` and scale the rest, in training only."""
        if self.generator is None or self.p == 0.0:
            return x
        keep = torch.empty_like(x).bernoulli_(1.0 - self.p, generator=self.generator)
        return x * keep / (1.0 - self.p)
