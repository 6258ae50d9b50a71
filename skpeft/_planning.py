"""From the parameters of an estimator and checked rows to all that a fit needs."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.base import clone
from sklearn.utils import check_random_state

from skpeft._data import Data, split_rows
from skpeft._network import AdapterNetwork
from skpeft._shrinkage import State, between
from skpeft._training import (
    History,
    Rows,
    Settings,
    default_batch_size,
    rows_to_start,
)
from skpeft._validation import warn
from skpeft.adapters import HiRA, resolve_adapter
from skpeft.adapters.base import Adapter
from skpeft.encoders.base import Encoder, Item
from skpeft.objectives import Objective

# When adapter="auto" is HiRA in all blocks, and how that is trained; see `auto_is_hira`.
_HIRA_CLASSES = 5  # at least
_HIRA_ROWS_EACH = 16  # of each class, at least
_HIRA_ROWS = 1000  # in all, fewer
_HIRA_EPOCHS = 3
_HIRA_MOST = 2.4  # largest factor of the adapter's own learning rate


@dataclass(frozen=True)
class Plan:
    """What a fit works on once nothing in the input can be wrong any more.

    `start` is the state in which the adapters change nothing, `start_rows` are those that a
    linear layer starts from, `past` what earlier fits did
    before a warm start. `held_out` says whether the user gave the validation rows.
    `y` holds the targets as the user gave them, and `target` encodes them for training.
    `weights` are those that the user asked for, None where all rows count the same.
    """

    network: AdapterNetwork
    start: State
    objective: Objective
    settings: Settings | None
    past: History
    rows: Rows
    training: Rows
    validation: Rows | None
    start_rows: Rows | None
    held_out: bool
    random_state: RandomState
    target: Any
    y: np.ndarray
    weights: np.ndarray | None
    head: Any
    shrinkage: float | str
    keeps_interrupted: bool

    @property
    def items(self) -> list[Item]:
        """All prepared samples, each once."""
        # Rows that were split off are among `rows` already.
        if self.validation is None or not self.held_out:
            return self.rows.items
        return [*self.rows.items, *self.validation.items]


def make_plan(
    estimator: Any,
    encoder: Encoder,
    objective: Objective,
    data: Data,
    target: Any,
    held_out: Data | None,
) -> Plan:
    """Build the network and prepare the rows: all that can fail for a wrong input.

    Parameters
    ----------
    estimator : estimator
        Its parameters say what is wanted; with `warm_start` its last fit is continued.
    encoder, objective
        What its parameters of these names stand for.
    data : Data
        Checked rows.
    target : Target
        What was learned from their y.
    held_out : Data or None
        Checked validation rows of the user.
    """
    random_state = estimator.random_state
    if random_state is None:  # fresh entropy: the global generator is left alone
        random_state = np.random.RandomState()
    random_state = check_random_state(random_state)
    seed = int(random_state.randint(2**31 - 1))
    warm = estimator.warm_start and estimator.__sklearn_is_fitted__()
    own_y = data.y[: len(data.y) - data.n_label_texts]
    hira = auto_is_hira(estimator, objective, own_y, warm)
    if warm:  # shrinkage drew the last fit back to the start that its seed gives
        seed = estimator._network.seed
    network, hira = _network(estimator, encoder, seed, hira, warm)
    start = network.state()
    frozen = network.trains and _needs_frozen(estimator, network, objective)
    rows, validation = _prepare(estimator, network, data, held_out, target, frozen)
    past = _continue_last_fit(estimator, network, start) if warm else History()
    training = rows
    may_split = held_out is None and estimator.early_stopping != "auto"
    if may_split and estimator.early_stopping:
        training, validation = _split(
            rows, objective.task, estimator.validation_fraction, random_state
        )
    settings, start_rows = None, None
    if network.trains:
        if objective.needs_predictions:
            start_rows = _start_rows(network, training, objective.task, random_state)
        settings = _settings(
            estimator, network, objective, training, validation, hira=hira
        )
    return Plan(
        network=network,
        start=start,
        objective=objective,
        settings=settings,
        past=past,
        rows=rows,
        training=training,
        validation=validation,
        start_rows=start_rows,
        held_out=held_out is not None,
        random_state=random_state,
        target=target,
        y=data.y,
        weights=estimator._total_weights(data, target),
        head=estimator.head,
        shrinkage=estimator.shrinkage,
        keeps_interrupted=estimator._keeps_interrupted,
    )


def auto_is_hira(
    estimator: Any, objective: Objective, y: np.ndarray, warm: bool
) -> bool:
    """Whether adapter="auto" is HiRA in all blocks, and not LoRA.

    Several classes with 16 rows each or more gain from changes of full rank in all blocks,
    as full fine-tuning makes them; with fewer rows these learn them by heart, with more
    there are steps enough for a small rank, and for few classes that suffices. A rank that
    is given is that of LoRA, so that ranks are compared and not methods. What a warm start
    goes on from stays as it is.

    Parameters
    ----------
    estimator : estimator
        Its `adapter` may be "auto", its `rank` None.
    objective : Objective
        Whether it contrasts classes.
    y : ndarray
        Targets of the rows, without texts about labels.
    warm : bool
        Whether this is a warm start.
    """
    if not (isinstance(estimator.adapter, str) and estimator.adapter == "auto"):
        return False
    if warm:
        return isinstance(estimator._network.adapter, HiRA)
    return estimator.rank is None and objective.balanced_batches and _suffices(y)


def _suffices(y: np.ndarray) -> bool:
    """Whether rows and classes are such that "auto" changes whole weights."""
    counts = np.unique(y, return_counts=True)[1]
    enough = len(counts) >= _HIRA_CLASSES and counts.min() >= _HIRA_ROWS_EACH
    return bool(enough and len(y) < _HIRA_ROWS)


def _network(
    estimator: Any, encoder: Encoder, seed: int, hira: bool, warm: bool
) -> tuple[AdapterNetwork, bool]:
    """Encoder with the adapter asked for; whether it is the HiRA that "auto" stands for."""

    def build(adapter: Any, layers: Any) -> AdapterNetwork:
        return AdapterNetwork(
            encoder,
            resolve_adapter(adapter, estimator.rank),
            layers,
            n_features=estimator.n_features_in_,
            device=estimator.device,
            precision=estimator.precision,
            seed=seed,
        )

    layers = clone(estimator.layers, safe=False)
    # Always: wrong parameters raise the same error whatever the number of rows.
    network = build(estimator.adapter, layers)
    if not hira:
        return network, False
    try:
        return build("hira", None if isinstance(layers, str) else layers), True
    except ValueError:  # some of the linear layers are not plain ones, as HiRA needs
        if warm:
            raise
        return network, False


def _needs_frozen(
    estimator: Any, network: AdapterNetwork, objective: Objective
) -> bool:
    """Whether features of all rows before training are needed."""
    judges = estimator.shrinkage == "auto" and estimator.head is None
    chooses = estimator.head is None and objective.task == "regression"
    # Where these are not the frozen encoder's, a warm start could not ask for them later.
    starts = objective.needs_predictions and network.starts_from_file
    return judges or chooses or starts


def _start_rows(
    network: AdapterNetwork, training: Rows, task: str, random_state: RandomState
) -> Rows:
    """Rows that the linear layer starts from, with their features."""
    some = rows_to_start(training, task, random_state)
    if some.frozen is not None:
        return some
    return replace(some, frozen=network.start_features(some.items))


def _prepare(
    estimator: Any,
    network: AdapterNetwork,
    data: Data,
    held_out: Data | None,
    target: Any,
    needs_frozen: bool,
) -> tuple[Rows, Rows | None]:
    """Tokenise all rows at once; those of `data`, and those held out if there are any."""
    given = [data] if held_out is None else [data, held_out]
    items = network.live.prepare([sample for part in given for sample in part.samples])
    found = []
    for part in given:
        own, items = items[: len(part.y)], items[len(part.y) :]
        frozen = network.start_features(own) if needs_frozen else None
        weights = _unit_weights(estimator._total_weights(part, target), len(own))
        found.append(
            Rows(own, target.encode(part.y), weights, part.n_label_texts, frozen)
        )
    return found[0], None if held_out is None else found[1]


def _unit_weights(weights: np.ndarray | None, n_rows: int) -> np.ndarray:
    """One weight a row, 1 on the mean."""
    if weights is None:
        return np.ones(n_rows)
    if not weights.any():
        raise ValueError(
            "All validation rows have weight 0, by sample_weight_val or class_weight, "
            "so nothing can be seen on them. Give other rows, or none."
        )
    weights = weights / weights.max()  # large and small ones, without overflow
    return weights / weights.mean()


def _split(
    rows: Rows, task: str, fraction: float, random_state: RandomState
) -> tuple[Rows, Rows]:
    """Rows for training, and a fraction for validation."""
    own = rows.own
    strata = own.targets if task == "classification" else None
    kept, left = split_rows(len(own.items), fraction, strata, random_state)
    if strata is not None:  # every class needs a row to be learned from
        first = np.unique(own.targets, return_index=True)[1]
        missing = first[~np.isin(own.targets[first], own.targets[kept])]
        kept, left = np.append(kept, missing), np.setdiff1d(left, missing)
    if not own.weights[left].any():
        raise ValueError(
            f"early_stopping=True split off {len(left)} validation rows, all of classes "
            "that have weight 0 by class_weight, so nothing can be seen on them. Give "
            "X_val and y_val, a larger validation_fraction, or early_stopping=False."
        )
    training = replace(
        rows.take(rows.with_label_texts(kept)), n_label_texts=rows.n_label_texts
    )
    return training, rows.take(left)


def _settings(
    estimator: Any,
    network: AdapterNetwork,
    objective: Objective,
    training: Rows,
    validation: Rows | None,
    *,
    hira: bool,
) -> Settings:
    """Settings of the training loop, with each None replaced by what it stands for."""
    assert network.adapter is not None
    n_rows, batch_size = len(training.items), estimator.batch_size
    if objective.balanced_batches:
        if batch_size is not None and batch_size < 4:
            raise ValueError(
                f"batch_size={batch_size} was given, but {objective!r} compares the rows "
                "of a batch; give at least 4, so that two rows of two classes fit in."
            )
        if np.bincount(training.targets).max() < 2:
            warn(
                f"No class has two rows, so {objective!r} has nothing to draw together and "
                "the adapters stay as they are. If X and y were swapped, it is fit(X, y) "
                "with the labels last; else add rows, or use objective='cross_entropy'.",
            )
    n_tokens = float(np.mean(network.live.lengths(training.items)))
    n_epochs = _HIRA_EPOCHS if hira else objective.default_epochs(n_rows)
    n_epochs = estimator.max_epochs or n_epochs
    batch_size = batch_size or default_batch_size(objective, n_tokens)
    factor = objective.learning_rate_factor(n_epochs * -(-n_rows // batch_size))
    factor = min(factor, _HIRA_MOST) if hira else factor
    stops = validation is not None and estimator.early_stopping
    return Settings(
        max_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate=estimator.learning_rate
        or factor * network.adapter.default_learning_rate,
        weight_decay=estimator.weight_decay,
        warmup_fraction=estimator.warmup_fraction,
        patience=estimator.n_iter_no_change if stops else None,
        tol=estimator.tol,
        verbose=estimator.verbose,
        callback=estimator.callback,
        # Of an encoder some weights may be for other uses and get no gradients.
        check_gradients=not network.adapter.trains_encoder,
    )


def _continue_last_fit(
    estimator: Any, network: AdapterNetwork, start: State
) -> History:
    """Start a network from what the last fit trained; gives what happened so far."""
    last, strength = estimator._network, 1.0 - estimator.shrinkage_
    state = last.state()
    try:
        network.live.load_state(state)
        if 0.01 < strength < 1.0:  # undo the shrinkage, which would add up
            network.live.load_state(between(start, state, 1.0 / strength))
    except ValueError as error:
        raise ValueError(
            "warm_start=True continues the last fit, but the adapter or its layers "
            f"have changed since ({error}). Set warm_start=False to start anew."
        ) from error
    if repr(_but_dropout(last.adapter)) != repr(_but_dropout(network.adapter)):
        raise ValueError(
            f"warm_start=True continues the last fit, of {last.adapter!r}, but "
            f"adapter is now {network.adapter!r}. Set warm_start=False to start anew."
        )
    if not last.knows(network.live.backbone):
        raise ValueError(
            "warm_start=True continues the last fit, but the encoder has changed "
            "since. Set warm_start=False to start anew."
        )
    return History(list(estimator.loss_curve_), list(estimator.validation_scores_))


def _but_dropout(adapter: Adapter | None) -> list[Adapter]:
    """Copies of what a spec is made of that do not tell how it is trained."""
    return [
        clone(m).set_params(dropout=0.0) if hasattr(m, "dropout") else m
        for m in (adapter.members if adapter is not None else ())
    ]
