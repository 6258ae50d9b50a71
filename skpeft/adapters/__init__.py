"""Adapter specs: one class a method.

`ADAPTERS` maps the short names that estimators take to the classes.
"""

from collections.abc import Sequence

from sklearn.base import clone

from skpeft._validation import one_of
from skpeft.adapters.base import (
    FUSED_ROLE,
    NORM_ROLES,
    ROLES,
    AdaptedLayer,
    Adapter,
    BesideBlock,
    GeneratorDropout,
    Handover,
    ReweightedLayer,
    Stack,
    unrounded,
)
from skpeft.adapters.bitfit import BitFit
from skpeft.adapters.bottleneck import Bottleneck
from skpeft.adapters.combination import Combination
from skpeft.adapters.full import FullFineTuning
from skpeft.adapters.hira import HiRA
from skpeft.adapters.ia3 import IA3
from skpeft.adapters.ladder import LadderSide
from skpeft.adapters.layer_norm import LayerNormTuning
from skpeft.adapters.lora import LoRA
from skpeft.adapters.prefix import Prefix

ADAPTERS = {
    "lora": LoRA,
    "bottleneck": Bottleneck,
    "hira": HiRA,
    "ia3": IA3,
    "bitfit": BitFit,
    "layer_norm": LayerNormTuning,
    "prefix": Prefix,
    "ladder": LadderSide,
    "full": FullFineTuning,
}

__all__ = [
    "ADAPTERS",
    "FUSED_ROLE",
    "IA3",
    "NORM_ROLES",
    "ROLES",
    "AdaptedLayer",
    "Adapter",
    "BesideBlock",
    "BitFit",
    "Bottleneck",
    "Combination",
    "FullFineTuning",
    "GeneratorDropout",
    "Handover",
    "HiRA",
    "LadderSide",
    "LayerNormTuning",
    "LoRA",
    "Prefix",
    "ReweightedLayer",
    "Stack",
    "resolve_adapter",
    "unrounded",
]


def _by_name(name: str, *more: str) -> Adapter:
    """Spec of a method with its defaults; an error names `more` besides."""
    if name not in ADAPTERS:
        hint = " For no adapter pass None, which is no str." if name == "none" else ""
        raise ValueError(one_of(name, [*more, *ADAPTERS], "adapter") + hint)
    return ADAPTERS[name]()


def resolve_adapter(
    adapter: str | Adapter | Sequence[Adapter | str] | None,
    rank: int | None = None,
) -> Adapter | None:
    """Turn the estimators' `adapter` and `rank` into a spec of their own.

    Parameters
    ----------
    adapter : str, Adapter, sequence of these, peft.PeftConfig, or None
        "auto" for LoRA, a name in `ADAPTERS`, a spec, several at once, a configuration of
        PEFT's LoRA, HiRA or IA3, which is translated, or None for no adapter.
    rank : int or None
        Overrides the capacity of the adapter where given.

    Returns
    -------
    Adapter or None
        A checked copy; the given spec is left as it is.

    Raises
    ------
    ValueError
        For an unknown name, a parameter out of range, a rank where there is none, or a
        field of PEFT's configuration that cannot be honoured.
    TypeError
        If `adapter` is something else.

    Examples
    --------
    >>> from skpeft.adapters import resolve_adapter
    >>> resolve_adapter("lora", rank=4)
    LoRA(rank=4)
    """
    if adapter is None:
        if rank is not None:
            raise ValueError(
                f"rank={rank!r} was given with adapter=None, which trains no adapter. "
                "Leave rank=None here; in a search use a list of grids."
            )
        return None
    if isinstance(adapter, str) and adapter == "auto":
        spec = LoRA()
    elif isinstance(adapter, str):
        spec = _by_name(adapter, "auto")
    elif isinstance(adapter, Adapter):
        spec = clone(adapter)
    elif isinstance(adapter, list | tuple):
        spec = Combination(
            [
                _by_name(m) if isinstance(m, str) else clone(m, safe=False)
                for m in adapter
            ]
        )
    elif hasattr(adapter, "peft_type"):
        from skpeft.adapters._peft import spec_from_config

        spec = spec_from_config(adapter)
    else:
        raise TypeError(
            f"adapter must be a name, a spec of an adapter, a list of specs or None, got "
            f"{adapter!r}. Pass for example 'lora' or LoRA(rank=4)."
        )
    if rank is not None:
        spec = spec.with_capacity(rank)
    spec.validate()
    return spec


def takes_rank(adapter: str | Adapter | Sequence[Adapter | str] | None) -> bool:
    """Whether `rank` of an estimator may set the capacity of this adapter."""
    spec = resolve_adapter(adapter)
    return spec is not None and spec.capacity is not None and spec.weights is None
