"""Kernels of a training step on a GPU, recorded once for each shape and replayed.

Starting kernels one by one takes a GPU's host longer than a small encoder takes the GPU.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

# Passes of a shape before it is recorded: recording takes about as long as three.
_PASSES_BEFORE = 2
# Shapes that are recorded at most: each holds what goes in, what comes out, and gradients.
_MAX_RECORDINGS = 32
# One at a time: who begins a recording waits for the GPU, which would spoil another's.
_RECORDING = threading.Lock()
# Of each GPU those that no fit records on: with a graph goes the memory for products of its
# stream, which other graphs of that stream use; and torch keeps some for every stream.
_IDLE_STREAMS: dict[torch.device, list[Any]] = {}

#: Maps tensors to features, with gradients for what is trained.
Pass = Callable[[Sequence[Tensor]], Tensor]


class Recording:
    """The kernels of one pass, forward and back, for tensors of the shapes of its inputs.

    Parameters
    ----------
    run : callable
        The pass.
    inputs : sequence of Tensor
        What goes in; none has gradients.
    trained : sequence of Parameter
        What gets gradients.
    place : tuple of torch.cuda.Stream and pool
        Where it is recorded, and memory that recordings share, which is safe as each goes
        forward and back before another one does.
    """

    def __init__(
        self,
        run: Pass,
        inputs: Sequence[Tensor],
        trained: Sequence[nn.Parameter],
        place: tuple,
    ) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.forward_graph = torch.cuda.CUDAGraph()
        self.backward_graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.device(self.inputs[0].device):
            with recording(self.forward_graph, *place):
                features = run(self.inputs)
            self.incoming = torch.zeros_like(features)
            with recording(self.backward_graph, *place):
                self.gradients = torch.autograd.grad(
                    features, trained, self.incoming, allow_unused=True
                )
        self.features = features.detach()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features of inputs, to be used before the next pass."""
        for own, tensor in zip(self.inputs, inputs, strict=True):
            own.copy_(tensor)
        self.forward_graph.replay()
        return self.features

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what is trained, from those of the features just given."""
        self.incoming.copy_(gradient)
        self.backward_graph.replay()
        return self.gradients

    def reset(self) -> None:
        """Let go of the kernels, also where something still holds the recording."""
        self.forward_graph.reset()
        self.backward_graph.reset()


@contextmanager
def recording(graph: Any, stream: Any, pool: Any) -> Iterator[None]:
    """Inside, kernels are recorded; other threads may use the GPU meanwhile."""
    how = {"stream": stream, "pool": pool, "capture_error_mode": "thread_local"}
    # The outer context goes back to the former stream whatever happens in the inner one.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, **how):
        yield


class Replayed(torch.autograd.Function):
    """A recorded pass as one operation."""

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, inputs: Sequence[Tensor], *trained: Tensor
    ) -> Tensor:
        """Features of inputs."""
        ctx.recording = recording
        return recording.forward(inputs).detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of what is trained, good until the next pass goes back."""
        own = ctx.recording.backward(gradient)
        # Others than the recording's, which autograd would copy before it keeps them.
        return (None, None, *(t if t is None else t.detach() for t in own))


class Replays:
    """Passes of one fit, each as it is or, of a shape seen before, from its recording.

    Where recording fails, or a recording gives something else than the pass it is of, none
    is used any more. It is a context, as recordings and their stream are to be given back.

    Parameters
    ----------
    trained : sequence of Parameter
        What gets gradients.
    tolerance : float
        Largest difference that is taken for rounding, relative to the length of the vector
        of features or gradients.
    """

    def __init__(self, trained: Sequence[nn.Parameter], tolerance: float) -> None:
        self.trained = list(trained)
        self.tolerance = tolerance
        self.able = True
        self._seen: Counter = Counter()
        self._recordings: dict[tuple, Recording] = {}
        self._place: tuple | None = None

    def __enter__(self) -> "Replays":
        return self

    def __exit__(self, *error: object) -> None:
        for found in self._recordings.values():
            found.reset()
        self._recordings.clear()
        if (
            self._place is not None
        ):  # only now: others record on the stream that is free
            _IDLE_STREAMS[self.trained[0].device].append(self._place[0])
            self._place = None

    def run(
        self, names: tuple[str, ...], run: Pass, inputs: Sequence[Tensor]
    ) -> Tensor:
        """Features that a pass gives for inputs, with gradients for what is trained.

        Inputs of other names are those of another pass.
        """
        shape = (names, *((tensor.shape, tensor.dtype) for tensor in inputs))
        self._seen[shape] += 1
        if self._is_to_record(shape):
            self._record(shape, run, inputs)
        if shape not in self._recordings:
            return run(inputs)
        return Replayed.apply(self._recordings[shape], inputs, *self.trained)

    def _is_to_record(self, shape: tuple) -> bool:
        return (
            self.able
            and shape not in self._recordings
            and self._seen[shape] > _PASSES_BEFORE
            and len(self._recordings) < _MAX_RECORDINGS
            and has_room(self.trained[0].device)
        )

    def _record(self, shape: tuple, run: Pass, inputs: Sequence[Tensor]) -> None:
        if self._place is None:
            self._place = new_place(self.trained[0].device)
        try:
            found = Recording(run, inputs, self.trained, self._place)
            self.able = self._is_right(found, run, inputs)
        except BaseException as error:
            self.able = False
            reset_after_failed_capture(self.trained[0].device, self._place)
            # Of code that copies from the CPU or asks the GPU for numbers, or lack of memory.
            if not isinstance(error, Exception):
                raise
        if self.able:
            self._recordings[shape] = found
        else:
            self._recordings.clear()

    def _is_right(self, found: Recording, run: Pass, inputs: Sequence[Tensor]) -> bool:
        """Whether features and gradients come out as without a recording."""
        inputs = [tensor.clone() for tensor in inputs]  # a pass may write into them
        features = found.forward(inputs)
        expected = run(inputs)
        # Not along the features: of length one, they have no gradient there.
        direction = expected.detach().roll(1, -1)
        gradients = torch.autograd.grad(
            expected, self.trained, direction, allow_unused=True
        )
        # Of gradients all together: one by one some are nothing but rounding.
        return self._is_close([features], [expected.detach()]) and self._is_close(
            found.backward(direction), gradients
        )

    def _is_close(
        self, found: Sequence[Tensor | None], expected: Sequence[Tensor | None]
    ) -> bool:
        if [t is None for t in found] != [t is None for t in expected]:
            return False
        known = [t for t in expected if t is not None]
        gaps = [
            a - b
            for a, b in zip(found, expected, strict=True)
            if a is not None and b is not None
        ]
        return bool(_norm(gaps) <= self.tolerance * _norm(known))


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Length of all numbers of tensors as one vector."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def new_place(device: torch.device) -> tuple:
    """Stream and memory for the recordings of one fit."""
    with _RECORDING:
        idle = _IDLE_STREAMS.setdefault(device, [])
        stream = idle.pop() if idle else torch.cuda.Stream(device)
    return stream, torch.cuda.graph_pool_handle()


def has_room(device: torch.device) -> bool:
    """Whether twice the memory that single passes took at most is free."""
    used = torch.cuda.memory_allocated(device)
    free = (
        torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - used
    )
    return 2 * (torch.cuda.max_memory_allocated(device) - used) <= free


def reset_after_failed_capture(device: torch.device, place: tuple) -> None:
    """Put right what a recording that failed has left behind in torch.

    Its allocator goes on giving memory to that recording, and its own generator of random
    numbers waits for the end of one: so another is made that cannot fail. Torch 2.13.0
    keeps the memory of the one that failed.
    """
    stream, pool = place
    names = "_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"
    with suppress(Exception):  # where there is nothing left
        # The second before torch 2.8.
        end = next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))
        end(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    with (
        suppress(Exception),
        _RECORDING,
        torch.cuda.device(device),
        recording(torch.cuda.CUDAGraph(), stream, torch.cuda.graph_pool_handle()),
    ):
        torch.zeros(1, device=device)
