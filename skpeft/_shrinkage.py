"""How far to trust adapters, and how sure to be, by rows that they have not seen.

The adapted network lies on a line from the frozen one, at strength 0, to the trained one,
at strength 1. The strength becomes the weight of the trained network against the frozen
one on held-out rows: shrinkage rather than a switch, since with few rows their losses are
noisy. A temperature for the head's probabilities comes from the same rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from scipy.special import log_expit, log_softmax

from skpeft._live import LiveNetwork
from skpeft._training import History, Rows, Settings, rows_to_start, train
from skpeft.heads import default_head, fit_head, logits
from skpeft.objectives import Objective

# Weights of the frozen and of the trained network before any evidence. Adapters help on
# most sets, and the evidence comes from half of the rows: they get the benefit of the doubt.
_PRIOR = np.array([1.0, 8.0])
# Standard deviation that the logarithm of the temperature has before any evidence.
_LOG_TEMPERATURE_SD = 0.2
_LOG_TEMPERATURES = np.linspace(-1.5, 2.0, 141)

State = dict[str, np.ndarray]


class HeldOut(NamedTuple):
    """Outputs of heads on rows they have not seen.

    Shapes: outputs (2, n_rows, n_outputs), or (2, n_rows) for one number, of the frozen and
    of the trained network; targets (n_rows,) or (n_rows, n_outputs); weights (n_rows,).
    """

    outputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class Verdict(NamedTuple):
    """Strength of the adapters in [0, 1], and temperature of the head."""

    strength: float
    temperature: float


def between(frozen: State, trained: State, strength: float) -> State:
    """State on the line from the frozen network to the trained one."""
    if strength in (0.0, 1.0):
        return trained if strength else frozen
    return {
        name: (1 - strength) * frozen[name] + strength * tensor
        for name, tensor in trained.items()
    }


def held_out(
    adapted: tuple[np.ndarray, np.ndarray], fitted: Rows, unseen: Rows, task: str
) -> HeldOut:
    """Outputs on unseen rows of default heads on frozen and on adapted features.

    Parameters
    ----------
    adapted : tuple of two ndarray of shape (n_rows, dim)
        Features of both parts from the trained network.
    fitted, unseen : Rows
        The rows that adapters and heads are fitted on, and those that they are evaluated
        on, with their features from the frozen network.
    task : {"classification", "multi-label classification", "regression"}
        What the targets are.
    """
    assert fitted.frozen is not None
    assert unseen.frozen is not None

    def outputs(features: np.ndarray, other: np.ndarray) -> np.ndarray:
        y, weights = fitted.targets, fitted.weights
        head = default_head(features, y, weights, fitted.frozen, task)
        head = fit_head(head, features, y, weights)
        return head.predict(other) if task == "regression" else logits(head, other)

    both = outputs(fitted.frozen, unseen.frozen), outputs(*adapted)
    return HeldOut(np.stack(both), unseen.targets, unseen.weights)


def fit_half(
    network: LiveNetwork,
    start: State,
    rows: Rows,
    objective: Objective,
    settings: Settings,
    random_state: RandomState,
) -> HeldOut | None:
    """Outputs on half of the rows from adapters and heads fitted on the other half.

    Costs half a fit: two such halves were not seen to judge better than one. Rows of the
    same content are in one half, and one row of the evidence where their targets are the
    same too. None where the rows do not suffice. The network is left as trained here.

    Parameters
    ----------
    network : LiveNetwork
        To be trained, from `start`.
    start : dict of str to ndarray
        State in which the adapters change nothing.
    rows : Rows
        All rows, label texts too, with their features in that state.
    objective, settings, random_state
        As for training on all rows.
    """
    own = rows.own
    same = network.copies(own.items)
    kept, left = half_of(own.targets, objective.task, random_state, same)
    left, weights = as_one(left, own, same)
    fitted = rows.with_label_texts(kept)
    if len(left) < 2 or not (weights.any() and rows.weights[fitted].any()):
        return None
    network.load_state(start)
    plain = replace(
        settings,
        patience=None,
        callback=None,
        title="held-out check",
        check_gradients=False,
    )
    half = replace(rows.take(fitted), n_label_texts=rows.n_label_texts)
    start_rows = None
    if objective.needs_predictions:
        start_rows = rows_to_start(half, objective.task, random_state)
    train(network, half, objective, plain, random_state, History(), start=start_rows)
    adapted = network.features(rows.items)
    features = adapted[fitted], adapted[left]
    unseen = replace(rows.take(left), weights=weights)
    return held_out(features, half, unseen, objective.task)


def on_validation_rows(
    network: LiveNetwork,
    trained: State,
    training: Rows,
    validation: Rows,
    task: str,
) -> HeldOut:
    """Outputs on validation rows, from the frozen and from the trained state."""
    network.load_state(trained)
    adapted = network.features(training.items), network.features(validation.items)
    return held_out(adapted, training, validation, task)


def half_of(
    targets: np.ndarray, task: str, random_state: RandomState, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows to fit on and to hold out: of each class one half.

    Parameters
    ----------
    targets : ndarray of shape (n_rows,) or (n_rows, n_outputs)
        Targets of the rows.
    task : str
        As of the objective.
    random_state : RandomState
        Draws the halves.
    same : ndarray of shape (n_rows,)
        For each row the number of the first one of the same content, which it goes with.
    """
    firsts = np.unique(same)
    order = firsts[random_state.permutation(len(firsts))]
    groups = (
        [order[targets[order] == c] for c in np.unique(targets)]
        if task == "classification"
        else [order]
    )
    chosen = np.concatenate([group[::2] for group in groups])
    if task == "classification":  # classes that only copies of other rows have
        absent = np.setdiff1d(targets, targets[np.isin(same, chosen)])
        chosen = np.append(chosen, same[np.isin(targets, absent)])
    kept = np.isin(same, chosen)
    return np.flatnonzero(kept), np.flatnonzero(~kept)


def as_one(
    numbers: np.ndarray, rows: Rows, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first of the rows of the same content and target, with the weight of all."""
    alike: dict[tuple[int, bytes], list[int]] = {}
    for number in numbers:
        key = int(same[number]), rows.targets[number].tobytes()
        alike.setdefault(key, []).append(number)
    weights = [rows.weights[every].sum() for every in alike.values()]
    return np.array([every[0] for every in alike.values()], dtype=int), np.array(
        weights
    )


def judge(evidence: HeldOut, task: str) -> Verdict:
    """Strength and temperature that held-out rows speak for.

    The weight of each network is its prior times the likelihood of the held-out rows: of
    their classes or labels at the best temperature, or of numbers with normal errors of
    their own variance. Labels count as independent of each other, and so do several numbers.
    """
    # Scaled to add up to the effective number of rows: one heavy row is still one row.
    weights = evidence.weights / evidence.weights.max()
    weights = weights * weights.sum() / np.square(weights).sum()
    if task == "regression":
        errors = np.square(evidence.outputs - evidence.targets)
        mean = np.average(
            errors.reshape(*errors.shape[:2], -1), axis=1, weights=weights
        )
        # Errors below rounding, as with a constant target, say nothing.
        logs = np.log(mean + np.finfo(float).eps)
        losses = 0.5 * weights.sum() * logs.sum(axis=1)
        temperatures = np.ones(len(losses))
    else:
        log_likelihood = _LOG_LIKELIHOODS[task]
        found = [
            _best_temperature(outputs, evidence.targets, weights, log_likelihood)
            for outputs in evidence.outputs
        ]
        losses, temperatures = np.array(found).T
    shares = _PRIOR * np.exp(losses.min() - losses)
    shares /= shares.sum()
    return Verdict(float(shares[1]), float(np.exp(shares @ np.log(temperatures))))


def _of_classes(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log likelihood of the class of each row."""
    return log_softmax(logits, axis=1)[np.arange(len(targets)), targets]


def _of_labels(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log likelihood of the labels of each row."""
    return log_expit(np.where(targets == 1, logits, -logits)).sum(axis=1)


_LOG_LIKELIHOODS = {
    "classification": _of_classes,
    "multi-label classification": _of_labels,
}


def _best_temperature(
    logits: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    log_likelihood: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """Lowest penalised log loss, summed over rows, and its temperature."""

    def loss(log_temperature: float) -> float:
        scores = log_likelihood(logits / np.exp(log_temperature), targets)
        penalty = 0.5 * (log_temperature / _LOG_TEMPERATURE_SD) ** 2
        return float(-(weights * scores).sum() + penalty)

    found = [loss(value) for value in _LOG_TEMPERATURES]
    best = int(np.argmin(found))
    return found[best], float(np.exp(_LOG_TEMPERATURES[best]))
