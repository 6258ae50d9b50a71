"""What adapters are trained for: one class an objective.

`OBJECTIVES` maps the short names that estimators take to the classes.
"""

from typing import ClassVar

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn

from skpeft._validation import Interval, Real, WithParameters, one_of, validate_spec


class Objective(WithParameters):
    """Base class of training objectives.

    An objective gives one value per row, never a mean and never a weight: the training
    step applies the weights, once. To add one, subclass it, define `value` and the class
    attributes, and add a line to `OBJECTIVES`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpeft import AdapterRegressor
    >>> from skpeft.objectives import Objective
    >>> class AbsoluteError(Objective):
    ...     task, needs_predictions = "regression", True
    ...
    ...     def value(self, outputs, targets):
    ...         return (outputs.flatten() - targets).abs()
    >>> reg = AdapterRegressor("tiny", objective=AbsoluteError(), random_state=0)
    >>> bool(np.isfinite(reg.fit(["a", "b b", "c c c"], [1, 2, 3]).loss_curve_).all())
    True
    """

    #: "classification", "multi-label classification" or "regression".
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

        Tensors that it makes belong on the device of `outputs`.

        Parameters
        ----------
        outputs : Tensor of shape (batch, dim) or (batch, n_outputs)
            Features, or raw predictions where `needs_predictions`.
        targets : Tensor of shape (batch,) or (batch, n_outputs)
            Class indices (int64), indicators of labels, or standardised numbers.

        Returns
        -------
        Tensor of shape (batch,)
        """
        raise NotImplementedError

    def default_epochs(self, n_rows: int) -> int:
        """Epochs where the user names none: many for few rows, few for many."""
        return int(np.clip(round(2500 / n_rows), 3, 20))

    def learning_rate_factor(self, n_steps: int) -> float:
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

    def learning_rate_factor(self, n_steps: int) -> float:
        """Few large steps do as well as many small ones: 4 for six steps, 1 for many."""
        return float(np.clip(4.0 * (6 / n_steps) ** 0.5, 1.0, 4.0))

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        unit = nn.functional.normalize(outputs, dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        lowest = torch.finfo(unit.dtype).min  # finite, for a batch of a single row
        temperature: float | Tensor | None = self.temperature
        if temperature is None:
            n_classes = self._n_classes(targets).to(unit.dtype)
            temperature = 0.2 * (6 / n_classes).sqrt().clamp(max=1.0)
        similarity = (unit @ unit.T / temperature).masked_fill(itself, lowest)
        log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
        overlap = self._overlap(targets).to(unit.dtype).masked_fill(itself, 0.0)
        total = torch.where(overlap > 0, -overlap * log_share, 0.0).sum(dim=1)
        return total / overlap.sum(dim=1).clamp(min=torch.finfo(unit.dtype).tiny)

    def _overlap(self, targets: Tensor) -> Tensor:
        """How much each row is to be drawn to each other, of shape (batch, batch)."""
        return targets[:, None] == targets[None, :]

    def _n_classes(self, targets: Tensor) -> Tensor:
        """Number of classes in a batch, a tensor so that nobody waits for a GPU."""
        ordered = targets.sort().values
        return 1 + (ordered[1:] != ordered[:-1]).sum()


class LabelContrastive(Contrastive):
    r"""Supervised contrastive loss of rows that share labels, inside the batch.

    As `Contrastive`, but each other row counts by its overlap with row :math:`i`: the
    number of labels that both have, divided by the number of labels that one of them has. The
    value is the mean with these weights, and 0 where nothing overlaps. With one label a
    row it equals `Contrastive`.

    Parameters
    ----------
    temperature : float or None, default=None
        As for `Contrastive`; None counts the labels in a batch.

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import LabelContrastive
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    >>> LabelContrastive(temperature=1.0).value(features, labels)
    tensor([0.3133, 0.3133, 0.0000])
    """

    task = "multi-label classification"
    balanced_batches = False

    def _overlap(self, targets: Tensor) -> Tensor:
        both, n_labels = targets @ targets.T, targets.sum(dim=1)
        either = n_labels[:, None] + n_labels[None, :] - both
        return both / either.clamp(min=1)

    def _n_classes(self, targets: Tensor) -> Tensor:
        return targets.any(dim=0).sum().clamp(min=1)


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


class BinaryCrossEntropy(Objective):
    """Cross-entropy of each label of a linear layer trained jointly with the adapters.

    The value of a row is the sum over labels. The layer starts from the closed-form
    probe on the frozen features.

    Examples
    --------
    >>> import torch
    >>> from skpeft.objectives import BinaryCrossEntropy
    >>> BinaryCrossEntropy().value(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([1.3863])
    """

    task = "multi-label classification"
    needs_predictions = True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, of shape (batch,)."""
        return nn.functional.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none"
        ).sum(dim=1)


class SquaredError(Objective):
    """Half the squared error of a linear layer trained jointly with the adapters.

    Targets are standardised, and of several numbers the mean is taken. The layer starts
    from ridge regression on the frozen features.

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
        return 0.5 * (outputs - targets.view_as(outputs)).square().mean(dim=1)


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
            outputs,
            targets.view_as(outputs),
            reduction="none",
            delta=float(self.delta),
        ).mean(dim=1)


OBJECTIVES = {
    "contrastive": Contrastive,
    "label_contrastive": LabelContrastive,
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "huber": Huber,
}
# By task, and whether samples are pairs of texts.
_AUTO = {
    ("classification", False): "contrastive",
    ("classification", True): "cross_entropy",
    ("multi-label classification", False): "label_contrastive",
    ("multi-label classification", True): "binary_cross_entropy",
    ("regression", False): "squared_error",
    ("regression", True): "squared_error",
}

__all__ = [
    "OBJECTIVES",
    "BinaryCrossEntropy",
    "Contrastive",
    "CrossEntropy",
    "Huber",
    "LabelContrastive",
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
    task : {"classification", "multi-label classification", "regression"}
        What the targets are.
    pairs : bool, default=False
        Whether samples are pairs of texts. The class of a pair says how its two texts
        relate, so that "auto" is then no contrastive objective.

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
            f"{objective!r} is an objective for {objective.task}, but y asks for {task}. "
            f"Names for {task}: {['auto', *fitting]}."
        )
    spec = clone(objective)
    spec.validate()
    return spec
