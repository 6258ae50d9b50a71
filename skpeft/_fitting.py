"""The run of a fit: train the adapters, find out how far to trust them, fit the head."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from skpeft._live import NotFiniteError
from skpeft._planning import Plan
from skpeft._shrinkage import (
    HeldOut,
    Verdict,
    between,
    fit_half,
    judge,
    on_validation_rows,
)
from skpeft._training import History, train
from skpeft._validation import warn
from skpeft.heads import default_head, divide_logits, fit_head, in_units

# How torch says it where it has no kind of its own for it: on a CPU, and on Apple's GPUs.
_NO_MEMORY = "can't allocate memory|out of memory"
_TRUSTED = Verdict(strength=1.0, temperature=1.0)


def run(plan: Plan) -> dict[str, Any]:
    """Do what is planned; gives the fitted attributes of the estimator."""
    network, history, verdict = plan.network.live, plan.past, _TRUSTED
    network.remember(plan.items)
    if plan.settings is not None:
        new = History()
        finished = train_adapters(plan, new)
        history += new
        trained = network.state()
        verdict = find_verdict(plan, len(history.losses), trained, finished)
        network.load_state(between(plan.start, trained, verdict.strength))
    features = network.features(plan.rows.items)
    head = head_on(features, plan)
    learned = {"head_": head, "shrinkage_": 1.0 - verdict.strength}
    if plan.objective.task != "regression":
        learned["temperature_"] = verdict.temperature
        if verdict.temperature != 1.0:
            divide_logits(head, verdict.temperature)
    return {
        **learned,
        "loss_curve_": history.losses,
        "validation_scores_": history.scores,
        "n_epochs_": len(history.losses),
        "n_trainable_params_": plan.network.n_trained,
        "n_frozen_params_": network.n_frozen,
        "_n_features_out": features.shape[1],
        "_network": plan.network,
    }


def snapshot(plan: Plan) -> dict[str, Any]:
    """Fitted attributes as if training had stopped, with the adapters as they are."""
    network = copy.deepcopy(plan.network)
    features = network.live.features(plan.rows.items)
    return {
        "head_": head_on(features, plan),
        "_n_features_out": features.shape[1],
        "_network": network,
    }


def train_adapters(plan: Plan, history: History) -> bool:
    """Train the adapters; False if the user interrupted it.

    After an interrupt, or a step whose loss is not finite, the best state so far is kept
    where there is one.
    """
    assert plan.settings is not None
    try:
        train(
            plan.network.live,
            plan.training,
            plan.objective,
            plan.settings,
            plan.random_state,
            history,
            plan.validation,
            plan.start_rows,
        )
    except KeyboardInterrupt:
        if not plan.keeps_interrupted or not (history.losses or plan.past.losses):
            raise
        warn(
            f"Training was interrupted after {len(history.losses)} of "
            f"{plan.settings.max_epochs} epochs; the best state so far is kept and the "
            "head is fitted on it.",
        )
        return False
    except NotFiniteError as error:
        if plan.settings.patience is None or not history.scores:
            raise
        del history.losses[len(history.scores) :]  # of the epoch that had no score
        warn(
            f"{error} Training was stopped; the best of the {len(history.scores)} "
            "epochs before is kept.",
        )
    return True


def find_verdict(
    plan: Plan, n_epochs: int, trained: dict[str, np.ndarray], finished: bool
) -> Verdict:
    """How far to trust the trained adapters, and how sure the head may be."""
    if plan.shrinkage != "auto":
        return Verdict(1.0 - float(plan.shrinkage), 1.0)
    if plan.head is not None or not finished:
        return _TRUSTED
    assert plan.settings is not None
    network, task = plan.network.live, plan.objective.task
    try:
        if plan.held_out:
            assert plan.validation is not None
            evidence: HeldOut | None = on_validation_rows(
                network, trained, plan.training, plan.validation, task
            )
        else:
            settings = replace(plan.settings, max_epochs=n_epochs)
            evidence = fit_half(
                network,
                plan.start,
                plan.rows,
                plan.objective,
                settings,
                plan.random_state,
            )
    except (KeyboardInterrupt, NotFiniteError) as error:
        if isinstance(error, KeyboardInterrupt) and not plan.keeps_interrupted:
            raise
        reason = str(error) or "an interrupt"
        warn(
            "How far to trust the adapters could not be found out on held-out rows "
            f"({reason}); they stay as trained. shrinkage=0.0 leaves this step out.",
        )
        return _TRUSTED
    return _TRUSTED if evidence is None else judge(evidence, task)


def head_on(features: np.ndarray, plan: Plan) -> Any:
    """Fit the head of the user, or the default one, on adapted features."""
    if plan.head is not None:
        return fit_head(plan.head, features, plan.y, plan.weights)
    weights, task = plan.rows.weights, plan.objective.task
    y = plan.rows.targets if task == "regression" else plan.y
    frozen = plan.rows.frozen if plan.network.trains else features
    head = default_head(features, y, weights, frozen, task)
    head = fit_head(head, features, y, None if plan.weights is None else weights)
    if task == "regression":
        in_units(head, plan.target.mean, plan.target.scale)
    return head


@contextmanager
def memory_error_explained(batch_size: int | None) -> Iterator[None]:
    """If the body runs out of memory, the error says what takes less of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (known or re.search(_NO_MEMORY, reason)):
            raise
        raise MemoryError(
            f"The memory of the device did not suffice for fit with batch_size={batch_size!r} "
            f"({reason}). Give a smaller batch_size, such as 8, a smaller layers, or as "
            "encoder a spec with a smaller max_length."
        ) from error
