"""The device and the number types that a network computes with."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skpeft._validation import warn

_LOCK = threading.Lock()
# Who is inside of `any_shape`, each with what torch was set to before the first of them.
_INSIDE: dict[object, bool] = {}


def resolve_device(device: str) -> torch.device:
    """The torch device that "auto" or a name stands for."""
    if device != "auto":
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            named = "Expected one of" not in reason  # else torch lists all there are
            example = "" if "cuda" in device else ", such as 'cuda' for a GPU of NVIDIA"
            raise ValueError(
                f"device={device!r} cannot be used on this machine"
                f"{f' ({reason})' if named else ''}. Give 'auto', 'cpu', or a device that "
                f"torch finds here{example}."
            ) from error
    elif torch.cuda.is_available():
        found = torch.device("cuda")
    else:
        found = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if (
        found.type == "cuda" and found.index is None
    ):  # which one it is differs by thread
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def resolve_precision(
    precision: str, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """Type of the weights, and type of matrix products where it differs."""
    if precision == "float64":
        return torch.float64, None
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.float32, torch.bfloat16
    return torch.float32, None


def moved(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Move a CPU tensor to a device, without waiting for it.

    Parameters
    ----------
    tensor : Tensor
        On the CPU, or there already.
    device : torch.device
        Where it goes.
    dtype : torch.dtype or None, default=None
        Its type there, where it holds floating-point numbers; None: its own.
    """
    if not tensor.is_floating_point():
        dtype = None
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device, dtype)
    return tensor.to(dtype).pin_memory().to(device, non_blocking=True)


@contextmanager
def any_shape(device: torch.device) -> Iterator[None]:
    """Inside, attention on a GPU does not mind that every batch has another shape.

    For each shape cuDNN makes a plan first, which takes as long as a whole training step;
    torch's other kernels make none. The setting is torch's own, for all threads, and goes
    back when the last leaves.
    """
    if device.type != "cuda":
        yield
        return
    own, cuda = object(), torch.backends.cuda
    try:
        with _LOCK:
            before = cuda.cudnn_sdp_enabled()
            _INSIDE[own] = next(iter(_INSIDE.values()), before)
            if cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled():
                cuda.enable_cudnn_sdp(False)
        yield
    finally:
        with _LOCK:
            former = _INSIDE.pop(own, None)  # None: interrupted before
            if former is not None and not _INSIDE:
                cuda.enable_cudnn_sdp(former)


def warn_slow(device: torch.device, products: torch.dtype | None) -> None:
    """Tell where matrix products in bfloat16 are asked of a processor that has none."""
    ask = getattr(torch.cpu, "get_capabilities", dict)  # older versions cannot tell
    known = [has for name, has in ask().items() if "bf16" in name]
    if device.type == "cpu" and products == torch.bfloat16 and known and not any(known):
        warn(
            "precision='bfloat16' was given, but this processor has no instructions for "
            "it, so matrix products are slower and less exact than in float32. Use "
            "precision='auto' or 'float32' here.",
        )
