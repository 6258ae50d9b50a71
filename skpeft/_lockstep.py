"""Fits that train together: each step of all of them goes through one module at once."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from sklearn import config_context, get_config
from torch import Tensor

from skpeft._network import TOKENS_KEPT, AdapterNetwork
from skpeft._shared import SharedPass, updates_of
from skpeft._training import Learn, LossOf, learn
from skpeft.encoders.base import Item

# Fits, each with a thread, that train together; of more the others wait.
_AT_ONCE = 32


@dataclass
class Step:
    """What a fit has come for, and what came of it."""

    seat: int
    network: AdapterNetwork
    items: Sequence[Item]
    loss_of: LossOf
    loss: Tensor | None = None
    error: BaseException | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of all items."""
        return sum(self.network.lengths(self.items))


class Lockstep:
    """Where fits, in a thread each, meet at every step.

    Who comes waits until all fits that are not over have come; the last runs the step of
    all. Gradients of the sum of their losses are those of each, as they share no trained
    tensor. Networks with LoRA are stacked as in a bank; others have a pass of their own.

    Parameters
    ----------
    n_fits : int
        How many are to come.
    """

    def __init__(self, n_fits: int) -> None:
        self._n_fits = n_fits
        self._meeting = threading.Condition()
        self._steps: list[Step] = []
        self._shared: SharedPass | None = None
        self._stopped: BaseException | None = None

    def learn(
        self, seat: int, network: AdapterNetwork, items: Sequence[Item], loss_of: LossOf
    ) -> Tensor:
        """Gradients of the loss of the fit with a seat; gives the loss."""
        step = Step(seat, network, items, loss_of)
        with self._meeting:
            self._steps.append(step)
            self._run_if_complete()
            self._meeting.wait_for(
                lambda: step.loss is not None or step.error or self._stopped
            )
        if step.loss is not None:
            return step.loss
        error = step.error or self._stopped
        assert error is not None
        raise error

    def leave(self) -> None:
        """A fit is over: nobody waits for it any more."""
        with self._meeting:
            self._n_fits -= 1
            self._run_if_complete()

    def stop(self, error: BaseException) -> None:
        """Raise an error in all fits at their next step."""
        with self._meeting:
            self._stopped = error
            self._meeting.notify_all()

    def _run_if_complete(self) -> None:
        if not self._steps or len(self._steps) < self._n_fits or self._stopped:
            return
        # In an order that does not depend on who came first, which rounding would show.
        steps, self._steps = sorted(self._steps, key=lambda step: step.seat), []
        try:
            self._run(steps)
        except BaseException as error:
            _fail(steps, error)
        self._meeting.notify_all()

    @torch.inference_mode(False)
    def _run(self, steps: Sequence[Step]) -> None:
        if self._shared is None:
            self._shared = share(steps)
        known = self._shared.networks if self._shared.stacked else []
        places = {id(network): place for place, network in enumerate(known)}
        for some in _few_by_few(steps, places):
            try:
                with some[0].network.own_context():
                    self._run_some(some, places)
            except Exception as error:
                _fail(some, error)

    def _run_some(self, steps: Sequence[Step], places: dict[int, int]) -> None:
        if len(steps) == 1:
            step = steps[0]
            step.loss = learn(step.network, step.items, step.loss_of)
            return
        assert self._shared is not None
        items = [item for step in steps for item in step.items]
        counts = [len(step.items) for step in steps]
        owners = np.repeat([places[id(step.network)] for step in steps], counts)
        features = self._shared.forward(items, np.arange(len(items)), owners)
        losses = {}
        for i, part in enumerate(features.split(counts)):
            try:
                losses[i] = steps[i].loss_of(part)
            except Exception as error:  # which the others do not share
                _fail([steps[i]], error)
        if losses:
            torch.stack([*losses.values()]).sum().backward()
        for i, loss in losses.items():
            steps[i].loss = loss.detach()


def _fail(steps: Sequence[Step], error: BaseException) -> None:
    """Let fits raise an error that came up in their step, whichever of them ran it."""
    for step in steps:
        if step.loss is None:
            step.error = error


def _few_by_few(
    steps: Sequence[Step], places: dict[int, int]
) -> Iterator[Sequence[Step]]:
    """Steps that go through together: as many tokens as a fit alone would keep."""
    some: list[Step] = []
    n_tokens = 0
    for step in steps:
        if id(step.network) not in places:
            yield [step]
            continue
        if some and n_tokens + step.n_tokens > TOKENS_KEPT:
            yield some
            some, n_tokens = [], 0
        some.append(step)
        n_tokens += step.n_tokens
    if some:
        yield some


def share(steps: Sequence[Step]) -> SharedPass:
    """One pass for the networks whose updates can be stacked."""
    able = {
        str(step.seat): step.network
        for step in steps
        if updates_of(step.network) is not None
        and not any(part.p for part in step.network.live.dropouts)
    }
    able = able or {"": steps[0].network}
    with stirred(list(able.values())):
        return SharedPass(able, steps[0].items)


@contextmanager
def stirred(networks: Sequence[AdapterNetwork]) -> Iterator[None]:
    """Inside, networks differ from each other, which before training they do not."""
    states = [network.state() for network in networks]
    random = RandomState(0)
    try:
        for network, state in zip(networks, states, strict=True):
            network.load_state(
                {
                    name: random.normal(scale=0.1, size=tensor.shape).astype(
                        tensor.dtype
                    )
                    for name, tensor in state.items()
                }
            )
        yield
    finally:
        for network, state in zip(networks, states, strict=True):
            network.load_state(state)


def run_together(jobs: Sequence[Callable[[Learn], Any]]) -> list[Any]:
    """Results of jobs, each of which fits by the `learn` that it is given.

    An error that a job lets out, or an interrupt, ends all of them.
    """
    return [
        result
        for start in range(0, len(jobs), _AT_ONCE)
        for result in _run_at_once(jobs[start : start + _AT_ONCE])
    ]


def _run_at_once(jobs: Sequence[Callable[[Learn], Any]]) -> list[Any]:
    lockstep, config = Lockstep(len(jobs)), get_config()

    def attend(seat: int, job: Callable[[Learn], Any]) -> Any:
        try:
            with config_context(**config):  # which each thread has of its own
                return job(partial(lockstep.learn, seat))
        except BaseException as error:
            lockstep.stop(error)
            raise
        finally:
            lockstep.leave()

    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            futures = [
                pool.submit(copy_context().run, attend, seat, job)
                for seat, job in enumerate(jobs)
            ]
            return [future.result() for future in futures]
        except BaseException as error:
            lockstep.stop(error)
            raise
