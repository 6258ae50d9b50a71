"""The training loop: plain functions over a network, an objective and rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.metrics import label_ranking_average_precision_score
from torch import Tensor, nn
from tqdm import tqdm

from skpeft._data import balanced_batches, shuffled_batches
from skpeft._device import moved
from skpeft._live import LiveNetwork, NotFiniteError
from skpeft._replays import Replays
from skpeft._validation import warn
from skpeft.encoders.base import Item
from skpeft.heads import closed_form
from skpeft.objectives import Objective

_MAX_GRADIENT_NORM = 1.0
_TOKENS_PER_STEP = 4096
# Of classes, the linear layer starts from so many rows at most: it is to leave something to
# learn. Of numbers from all, whose features are needed for the head anyway.
_START_ROWS = 512
# A loss that is so many times that of the first step, or of 1, comes to nothing.
_EXPLODED = 100.0


@dataclass(frozen=True)
class Rows:
    """Prepared rows: items, targets of shape (n,), weights of shape (n,).

    The last `n_label_texts` are texts about labels: always learned from, never held out.
    `frozen` are features before training, of shape (n, dim), where anybody asks for them.
    """

    items: list[Item]
    targets: np.ndarray
    weights: np.ndarray
    n_label_texts: int = 0
    frozen: np.ndarray | None = None

    @property
    def own(self) -> "Rows":
        """The rows without texts about labels."""
        return self.take(np.arange(len(self.items) - self.n_label_texts))

    def take(self, indices: np.ndarray) -> "Rows":
        """The rows of these numbers, all as rows of the user."""
        return Rows(
            [self.items[i] for i in indices],
            self.targets[indices],
            self.weights[indices],
            frozen=None if self.frozen is None else self.frozen[indices],
        )

    def with_label_texts(self, indices: np.ndarray) -> np.ndarray:
        """These row numbers, and those of all texts about labels."""
        n_rows = len(self.items)
        return np.concatenate([indices, np.arange(n_rows - self.n_label_texts, n_rows)])


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know, resolved: no "auto", no None but where said."""

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    patience: int | None
    tol: float
    verbose: int
    callback: Callable[[dict[str, Any]], bool | None] | None
    title: str = "adapters"
    check_gradients: bool = True  # whether each adapted layer gets some


@dataclass
class History:
    """What happened, one entry an epoch."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __add__(self, other: "History") -> "History":
        return History(self.losses + other.losses, self.scores + other.scores)


class Linear(nn.Module):
    """Linear layer trained jointly with the adapters, on features of unit scale.

    It starts from a ridge regression on some rows, which hold their features.
    """

    def __init__(self, network: LiveNetwork, rows: Rows, task: str) -> None:
        super().__init__()
        features = rows.frozen
        assert features is not None
        start = closed_form(features, rows.targets, rows.weights, task)
        device, dtype = network.device, torch.from_numpy(features).dtype

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device, dtype)

        self.centre, self.scale = tensor(start.centre), float(start.scale)
        self.weight = nn.Parameter(tensor(start.coef))
        self.bias = nn.Parameter(tensor(start.intercept))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, dim) to raw predictions (batch, n_outputs)."""
        unit = (features - self.centre) / self.scale
        return nn.functional.linear(unit, self.weight, self.bias)


def rows_to_start(rows: Rows, task: str, random_state: RandomState) -> Rows:
    """Rows from which a linear layer starts: each class and all label texts are among them."""
    n_rows = len(rows.items)
    if n_rows <= _START_ROWS or task == "regression":
        return rows
    order = random_state.permutation(n_rows)
    first = order[:0]
    if task == "classification":
        first = order[np.unique(rows.targets[order], return_index=True)[1]]
    forced = np.unique(rows.with_label_texts(first))
    chosen = np.append(forced, order[~np.isin(order, forced)])
    some = rows.take(chosen[: max(_START_ROWS, len(forced))])
    return replace(some, weights=some.weights / some.weights.mean())


@torch.inference_mode(False)  # under it there are no gradients
def train(
    network: LiveNetwork,
    rows: Rows,
    objective: Objective,
    settings: Settings,
    random_state: RandomState,
    history: History,
    validation: Rows | None = None,
    start: Rows | None = None,
) -> None:
    """Train the adapters of a network, in place.

    With validation rows and patience the state of the best epoch is kept, else the last;
    after an interrupt too.

    Parameters
    ----------
    network : LiveNetwork
        Its trainable tensors are changed.
    rows : Rows
        Training rows.
    objective : Objective
        What is minimised.
    settings : Settings
        Length, step size, stopping.
    random_state : RandomState
        Source of batches and dropout.
    history : History
        Gets an entry after each epoch.
    validation : Rows or None, default=None
        Rows on which each epoch is scored.
    start : Rows or None, default=None
        Rows from which a linear layer starts, with their features, where the objective
        asks for one.

    Raises
    ------
    NotFiniteError
        If loss or weights are no longer finite, or the loss has grown beyond all measure.
    """
    linear = None if start is None else Linear(network, start, objective.task)
    best = Best(settings.patience, settings.tol)
    generator = torch.Generator(device=network.device)
    generator.manual_seed(int(random_state.randint(2**31 - 1)))
    try:
        with (
            network.own_context(),
            progress(settings) as bar,
            network.dropout(generator),
            network.replays() as replays,
        ):
            for loss in epochs(
                network, linear, rows, objective, settings, random_state, replays
            ):
                history.losses.append(loss)
                if validation is not None:
                    score = validation_score(
                        network, linear, rows, validation, objective
                    )
                    history.scores.append(score)
                    best.update(score, network)
                bar.update(1)
                bar.set_postfix(
                    {k: round(v, 4) for k, v in _last(history).items() if k != "epoch"}
                )
                asked = settings.callback is not None and settings.callback(
                    _last(history)
                )
                if asked or best.exhausted:
                    break
    finally:
        for tensor in network.trainable().values():
            tensor.grad = None  # nobody needs it any more
        if best.state is not None:
            network.load_state(best.state)


def epochs(
    network: LiveNetwork,
    linear: Linear | None,
    rows: Rows,
    objective: Objective,
    settings: Settings,
    random_state: RandomState,
    replays: Replays | None,
) -> Iterator[float]:
    """Run the epochs one by one, giving the mean loss of each."""
    trained = network.trainable()
    parameters = [*trained.values(), *(linear.parameters() if linear else [])]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=network.device.type in ("cpu", "cuda"),
    )
    lengths = network.lengths(rows.items)
    n_batches = -(-len(rows.items) // settings.batch_size)
    rate = schedule(settings, n_batches * settings.max_epochs)
    limit, unit = 0.0, float(rows.weights.mean())
    reached: set[str] = set()
    for epoch in range(settings.max_epochs):
        losses: list[Tensor] = []
        for numbers in batches(rows, lengths, objective, settings, random_state):
            batch = rows.take(numbers)
            optimizer.zero_grad()
            features = network.forward(batch.items, replays)
            loss = mean_objective(features, linear, batch, objective, unit)
            if loss.requires_grad:
                loss.backward()
            losses.append(loss.detach())
            del features, loss  # no pass could be recorded beside the graph of another
            if not epoch:
                reached |= {_layer(n) for n, p in trained.items() if p.grad is not None}
            update(optimizer, next(rate))
        if not epoch and settings.check_gradients:
            check_gradients(network, reached)
        mean = float(torch.stack(losses).mean())
        limit = limit or _EXPLODED * max(float(losses[0]), 1.0)
        check_finite(mean, limit, parameters, settings)
        yield mean


def check_finite(
    mean: float, limit: float, parameters: Sequence[Tensor], settings: Settings
) -> None:
    """Raise a `NotFiniteError` where the loss of an epoch, or a weight, has exploded."""
    finite = torch.stack([p.isfinite().all() for p in parameters]).all()
    if mean < limit and finite:
        return
    reason = f"The training loss became {mean:.3g}"
    if mean < limit:
        reason = "Trained weights became infinite or NaN"
    raise NotFiniteError(
        f"{reason}. learning_rate={settings.learning_rate} or weight_decay="
        f"{settings.weight_decay} is probably too high for this adapter; give a "
        "lower one."
    )


def check_gradients(network: LiveNetwork, reached: set[str]) -> None:
    """Name layers of adapters that are not among those to which gradients have come.

    Raises
    ------
    ValueError
        If they have come to none.
    """
    layers = dict.fromkeys(map(_layer, network.trainable()))
    idle = [layer for layer in layers if layer not in reached]
    if not idle:
        return
    message = (
        f"The adapters at {idle} took no part in what was minimised in the first epoch. The "
        "code of the encoder probably leaves these layers out, or reads their weights and "
        "does not call them; or the objective gives no gradients. Leave their roles out of "
        "the adapter, or give other layers."
    )
    if not reached:
        raise ValueError(message)
    warn(message)


def _layer(name: str) -> str:
    """Path of the layer that holds a tensor."""
    return name.rpartition(".")[0]


def default_batch_size(objective: Objective, n_tokens: float) -> int:
    """Rows of a step where the user names no number: fewer for long texts.

    Parameters
    ----------
    objective : Objective
        Says how many rows it likes to see together.
    n_tokens : float
        Mean tokens of a row. Memory grows with the tokens of a step.
    """
    return int(np.clip(_TOKENS_PER_STEP / n_tokens, 16, objective.default_batch_size))


def batches(
    rows: Rows,
    lengths: Sequence[int],
    objective: Objective,
    settings: Settings,
    random_state: RandomState,
) -> list[np.ndarray]:
    """Row numbers of one epoch's batches."""
    if objective.balanced_batches:
        return balanced_batches(rows.targets, settings.batch_size, random_state)
    return shuffled_batches(lengths, settings.batch_size, random_state)


def update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step of an optimizer at a learning rate, along clipped gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
    optimizer.step()


def mean_objective(
    features: Tensor,
    linear: Linear | None,
    batch: Rows,
    objective: Objective,
    unit: float,
) -> Tensor:
    """Mean of the objective over rows, each times its weight in units of `unit`.

    The unit is that of all batches: a batch of light rows counts little.
    """
    outputs = features if linear is None else linear(features)
    device, dtype = features.device, features.dtype
    targets = moved(torch.from_numpy(batch.targets), device, dtype)
    weights = moved(torch.from_numpy(batch.weights / unit), device, dtype)
    value = objective.value(outputs, targets)
    if value.shape != weights.shape:
        raise ValueError(
            f"The value of objective={objective!r} has shape {tuple(value.shape)} for a "
            f"batch of {len(weights)} rows; one number a row is expected, of shape "
            f"({len(weights)},)."
        )
    return (value * weights).mean()


def schedule(settings: Settings, n_steps: int) -> Iterator[float]:
    """Learning rate of each step: linear warm-up, then linear decay to zero."""
    n_warmup = math.ceil(settings.warmup_fraction * n_steps)
    for step in range(n_steps):
        up = (step + 1) / n_warmup if n_warmup else 1.0
        down = (n_steps - step) / max(n_steps - n_warmup, 1)
        yield settings.learning_rate * min(up, down, 1.0)


def validation_score(
    network: LiveNetwork,
    linear: Linear | None,
    rows: Rows,
    validation: Rows,
    objective: Objective,
) -> float:
    """Score of the present state on validation rows, higher is better.

    The negative objective where a linear layer is trained; else, by the cosine between
    adapted features and the means of classes, the weighted accuracy of the nearest mean or,
    for several labels a row, the average precision of their ranking.
    """
    held_out = torch.from_numpy(network.features(validation.items))
    if linear is not None:
        held_out, mean = held_out.to(network.device), float(validation.weights.mean())
        with torch.no_grad():
            loss = mean_objective(held_out, linear, validation, objective, mean)
        return -float(loss)
    unit = nn.functional.normalize(torch.from_numpy(network.features(rows.items)))
    weights, targets = map(torch.from_numpy, (rows.weights, rows.targets))
    multilabel = targets.ndim == 2
    members = targets if multilabel else nn.functional.one_hot(targets)
    means = members.to(unit).T @ (unit * weights.to(unit)[:, None])
    scores = (held_out @ nn.functional.normalize(means).T).numpy()
    given, weight = validation.targets, validation.weights
    if multilabel:
        return float(
            label_ranking_average_precision_score(given, scores, sample_weight=weight)
        )
    return float(np.average(scores.argmax(axis=1) == given, weights=weight))


class Best:
    """Remembers the state of the best epoch, and when to stop waiting for a better one."""

    def __init__(self, patience: int | None, tol: float) -> None:
        self.patience = patience
        self.tol = tol
        self.score = -math.inf
        self.state: dict[str, np.ndarray] | None = None
        self._target = -math.inf
        self._waited = 0

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs in a row brought no gain of `tol`."""
        return self.patience is not None and self._waited >= self.patience

    def update(self, score: float, network: LiveNetwork) -> None:
        """Take note of the score of an epoch."""
        if self.patience is None:
            return
        if score > self.score:
            self.score, self.state = score, network.state()
        if score > self._target + self.tol:
            self._target, self._waited = score, 0
        else:
            self._waited += 1


class Progress(tqdm):
    """Progress bar that starts no thread to watch it."""

    monitor_interval = 0


def progress(settings: Settings) -> tqdm:
    """Progress bar over epochs, on stderr, silent unless verbose."""
    return Progress(
        total=settings.max_epochs,
        desc=settings.title,
        unit="epoch",
        disable=not settings.verbose,
    )


def _last(history: History) -> dict[str, Any]:
    record: dict[str, Any] = {"epoch": len(history.losses), "loss": history.losses[-1]}
    if history.scores:
        record["validation_score"] = history.scores[-1]
    return record
