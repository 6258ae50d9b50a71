"""What adapters are trained for: one class an objective.

`OBJECTIVES` maps the short names that estimators take to the classes.
"""

from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from skpeft._validation import Interval, Real, one_of, validate_spec


class Objective(BaseEstimator):
    """Base class of training objectives.

    An objective gives one value per row, never a mean and never a weight: the training
    step applies the weights, once. To add one, subclass it, define `value` and the class
    attributes, and add a line to `OBJECTIVES`.
    """

    #: "classification" or "regression".
    task: ClassVar[str]
    #: Whether `value` gets raw predictions of a jointly trained linear layer instead of
    #: features.
    needs_predictions: ClassVar[bool] = False
    #: Whether batches draw the same number of rows from every class.
    balanced_batches: ClassVar[bool] = False
    #: Rows of a training step where the user names no number.
    default_batch_size: ClassVar[int] = 32
    _parameter_constraints: ClassVar[dict] = {}

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row.

        Parameters
        ----------
        outputs : Tensor of shape (batch, dim) or (batch, n_outputs)
            Features, or raw predictions where `needs_predictions`.
        targets : Tensor of shape (batch,)
            Class indices (int64), or standardised numbers.

        Returns
        -------
        Tensor of shape (batch,)
        """
        raise NotImplementedError

    def default_epochs(self, n_rows: int) -> int:
        """Epochs where the user names none: many for few rows, few for many."""
        return int(np.clip(round(2500 / n_rows), 3, 20))

    def pace(self, n_steps: int) -> float:
        """Factor on the adapter's own learning rate where the user names none."""
        return 1.0

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        validate_spec(self)


class Contrastive(Objective):
    r"""Supervised contrastive loss inside the batch.

    Features are scaled to length one. For a row :math:`i` with the set :math:`P(i)` of
    other rows of its class in the batch, the value is the mean over :math:`p \in P(i)`
    of :math:`-\log \frac{\exp(z_i z_p / t)}{\sum_{a \ne i} \exp(z_i z_a / t)}` [1]_,
    and 0 where the row is alone in its class. No list of pairs is made; memory is
    linear in the number of training rows.

    Parameters
    ----------
    temperature : float or None, default=None
        The :math:`t` above, above 0. Lower separates near rows of other classes harder.
        None: 0.2 for up to six classes in a batch and less for more,
        :math:`0.2 (6 / n)^{1/2}` for :math:`n` classes.

    References
    ----------
    .. [1] Khosla et al. (2020). Supervised Contrastive Learning. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import Contrastive
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> Contrastive(temperature=1.0).value(features, torch.tensor([0, 0, 1]))
    tensor([0.3133, 0.3133, 0.0000])
    """

    task = "classification"
    balanced_batches = True
    default_batch_size = 128  # every row of it is compared with every other
    _parameter_constraints = {
        "temperature": [Interval(Real, 0, None, closed="neither"), None]
    }

    def __init__(self, temperature: float | None = None) -> None:
        self.temperature = temperature

    def default_epochs(self, n_rows: int) -> int:
        """Epochs where the user names none: six, fewer for many rows."""
        return int(np.clip(round(1500 / n_rows), 3, 6))

    def pace(self, n_steps: int) -> float:
        """Few large steps do as well as many small ones: 4 for six steps, 1 for many."""
        return float(np.clip(4.0 * (6 / n_steps) ** 0.5, 1.0, 4.0))

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        unit = nn.functional.normalize(outputs, dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        lowest = torch.finfo(unit.dtype).min  # finite, for a batch of a single row
        temperature = self.temperature
        if temperature is None:
            temperature = 0.2 * min(1.0, (6 / len(targets.unique())) ** 0.5)
        similarity = (unit @ unit.T / temperature).masked_fill(itself, lowest)
        log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
        positive = (targets[:, None] == targets[None, :]) & ~itself
        total = torch.where(positive, -log_share, 0.0).sum(dim=1)
        return total / positive.sum(dim=1).clamp(min=1)


class CrossEntropy(Objective):
    """Cross-entropy of a linear layer trained jointly with the adapters.

    The layer starts from the closed-form probe on the frozen features.

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import CrossEntropy
    >>> CrossEntropy().value(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.6931])
    """

    task = "classification"
    needs_predictions = True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


class SquaredError(Objective):
    """Half the squared error of a linear layer trained jointly with the adapters.

    Targets are standardised. The layer starts from ridge regression on the frozen
    features.

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import SquaredError
    >>> SquaredError().value(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor([2.])
    """

    task = "regression"
    needs_predictions = True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        return 0.5 * (outputs.squeeze(1) - targets).square()


class Huber(Objective):
    """Huber loss of a linear layer trained jointly with the adapters.

    As `SquaredError`, but linear beyond `delta`, so that outliers weigh less [1]_.

    Parameters
    ----------
    delta : float, default=1.0
        Where the loss becomes linear, in standard deviations of the target, above 0.

    References
    ----------
    .. [1] Huber (1964). Robust Estimation of a Location Parameter. Annals of
       Mathematical Statistics 35 (1).

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import Huber
    >>> Huber(delta=1.0).value(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor([1.5000])
    """

    task = "regression"
    needs_predictions = True
    _parameter_constraints = {"delta": [Interval(Real, 0, None, closed="neither")]}

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        return nn.functional.huber_loss(
            outputs.squeeze(1), targets, reduction="none", delta=float(self.delta)
        )


OBJECTIVES = {
    "contrastive": Contrastive,
    "cross_entropy": CrossEntropy,
    "squared_error": SquaredError,
    "huber": Huber,
}
# By task, and whether samples are pairs of texts.
_AUTO = {
    ("classification", False): "contrastive",
    ("classification", True): "cross_entropy",
    ("regression", False): "squared_error",
    ("regression", True): "squared_error",
}

__all__ = [
    "OBJECTIVES",
    "Contrastive",
    "CrossEntropy",
    "Huber",
    "Objective",
    "SquaredError",
    "resolve_objective",
]


def resolve_objective(
    objective: str | Objective, task: str, *, pairs: bool = False
) -> Objective:
    """Turn the estimators' `objective` into a spec of their own.

    Parameters
    ----------
    objective : str or Objective
        "auto", a name in `OBJECTIVES`, or a spec.
    task : {"classification", "regression"}
        What the estimator does.
    pairs : bool, default=False
        Whether samples are pairs of texts. Classes of these lie in how two texts relate,
        and "auto" does not draw the texts of a class together then.

    Returns
    -------
    Objective
        A checked copy; the given object is left as it is.

    Raises
    ------
    ValueError
        For an unknown name, a parameter out of range, or an objective of another task.
    TypeError
        If `objective` is something else.

    Examples
    --------
    >>> from skpeft.objectives import resolve_objective
    >>> resolve_objective("auto", "regression")
    SquaredError()
    """
    fitting = [name for name, kind in OBJECTIVES.items() if kind.task == task]
    if isinstance(objective, str):
        name = _AUTO[task, pairs] if objective == "auto" else objective
        if name not in fitting:
            raise ValueError(one_of(name, ["auto", *fitting], f"objective for {task}"))
        return OBJECTIVES[name]()
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be a name or an instance of an objective, got {objective!r}. "
            f"Names for {task}: {['auto', *fitting]}."
        )
    if objective.task != task:
        raise ValueError(
            f"{objective!r} is an objective for {objective.task}, but the estimator does "
            f"{task}. Names for {task}: {['auto', *fitting]}."
        )
    spec = clone(objective)
    spec.validate()
    return spec
