"""Fits that train together: each step of all of them goes through one module at once."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
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
    optimizer: torch.optim.Optimizer
    loss_of: LossOf
    loss: Tensor | None = None
    error: BaseException | None = None

    def learn_alone(self) -> None:
        """Take the step as a fit by itself does."""
        try:
            with self.network.own_context():
                self.loss = learn(
                    self.network, self.items, self.optimizer, self.loss_of
                )
        except Exception as error:  # raised again by the fit
            self.error = error


class Lockstep:
    """Where fits, in a thread each, meet at every step.

    Who comes waits until all fits that are not over have come; the last runs the step of
    all. Networks with LoRA are stacked as in a bank; others take their steps in turn, and
    so do all where a pass of several fails.

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
        self._places: dict[int, int] | None = None
        self._limit = float(TOKENS_KEPT)
        self._stopped: BaseException | None = None

    def learn(self, seat: int, *what: Any) -> Tensor:
        """Do what `skpeft._training.learn` does, for the fit that has the seat."""
        step = Step(seat, *what)
        with self._meeting:
            self._steps.append(step)
            self._run_if_complete()
            self._meeting.wait_for(
                lambda: step.loss is not None or step.error or self._stopped
            )
        if step.loss is not None:
            return step.loss
        error, step.error = step.error or self._stopped, None
        assert error is not None
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def leave(self) -> None:
        """A fit is over: nobody waits for it any more."""
        with self._meeting:
            self._n_fits -= 1
            self._run_if_complete()

    def stop(self, error: BaseException) -> None:
        """Raise an error in all fits at their next step."""
        # First, as an interrupt may come while the lock is waited for.
        self._stopped = error
        with self._meeting:
            self._meeting.notify_all()

    def _run_if_complete(self) -> None:
        if not self._steps or len(self._steps) < self._n_fits or self._stopped:
            return
        # In an order that does not depend on who came first, which rounding would show.
        steps, self._steps = sorted(self._steps, key=lambda step: step.seat), []
        try:
            self._run(steps)
        except BaseException as error:
            for step in steps:
                step.error = error
        self._meeting.notify_all()

    @torch.inference_mode(False)
    def _run(self, steps: Sequence[Step]) -> None:
        if self._places is None:
            try:
                self._shared = share(steps)
            except Exception:  # each goes alone, then
                self._shared = None
            known = self._shared.networks if self._shared else []
            self._places = {id(network): place for place, network in enumerate(known)}
        for some in self._few_by_few(steps):
            if len(some) > 1 and self._learn_stacked(some):
                continue
            for step in some:
                step.learn_alone()

    def _few_by_few(self, steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
        """Steps that go through together, with no more tokens than a fit alone would keep.

        Each counts as the largest of them, which it is filled up to.
        """
        some: list[Step] = []
        for size, step in sorted(
            ((self._size(s), s) for s in steps), key=itemgetter(0)
        ):
            if some and (len(some) + 1) * size > self._limit:
                yield some
                some = []
            some.append(step)
        yield some

    def _size(self, step: Step) -> float:
        """Tokens of a step; without end where it cannot be stacked."""
        if id(step.network) not in (self._places or ()):
            return math.inf
        return sum(step.network.lengths(step.items))

    def _learn_stacked(self, steps: Sequence[Step]) -> bool:
        """Gradients of several fits in one pass: as they share no trained tensor, their own."""
        assert self._shared is not None
        assert self._places is not None
        items = [item for step in steps for item in step.items]
        counts = [len(step.items) for step in steps]
        owners = np.repeat([self._places[id(step.network)] for step in steps], counts)
        try:
            with steps[0].network.own_context():
                for step in steps:
                    step.optimizer.zero_grad()
                features = self._shared.forward(items, np.arange(len(items)), owners)
                parts = features.split(counts)
                losses = [s.loss_of(part) for s, part in zip(steps, parts, strict=True)]
                torch.autograd.backward(losses)
        except Exception:  # of one of them, which finds it by itself, or lack of memory
            self._limit = len(steps) * max(map(self._size, steps)) / 2
            return False
        for step, loss in zip(steps, losses, strict=True):
            step.loss = loss.detach()
        return True


def share(steps: Sequence[Step]) -> SharedPass | None:
    """One pass for the networks whose updates can be stacked; None where there is none."""
    able = {
        str(step.seat): step.network
        for step in steps
        if updates_of(step.network) is not None
        and not any(part.p for part in step.network.live.dropouts)
    }
    if len(able) < 2:
        return None
    with stirred(list(able.values())):
        items = [item for step in steps for item in step.items]
        shared = SharedPass(able, items, trained=True)
    return shared if shared.stacked else None


@contextmanager
def stirred(networks: Sequence[AdapterNetwork]) -> Iterator[None]:
    """Inside, networks differ from each other, which before training they do not."""
    states = [network.state() for network in networks]
    random = RandomState(0)

    def other(tensor: np.ndarray) -> np.ndarray:
        return tensor + random.normal(0, 0.01, tensor.shape).astype(tensor.dtype)

    try:
        for network, state in zip(networks, states, strict=True):
            network.load_state({name: other(t) for name, t in state.items()})
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
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

    def attend(seat: int, job: Callable[[Learn], Any]) -> Any:
        place = nullcontext() if gpu is None else torch.cuda.device(gpu)
        try:
            with config_context(**config), place:  # which each thread has of its own
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
