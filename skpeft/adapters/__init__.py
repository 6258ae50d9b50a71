"""Adapter specs: one class a method.

`ADAPTERS` maps the short names that estimators take to the classes.
"""

from sklearn.base import clone

from skpeft._validation import one_of
from skpeft.adapters.base import ROLES, AdaptedLayer, Adapter, GeneratorDropout
from skpeft.adapters.bottleneck import Bottleneck
from skpeft.adapters.full import FullFineTuning
from skpeft.adapters.lora import LoRA

ADAPTERS = {
    "lora": LoRA,
    "bottleneck": Bottleneck,
    "full": FullFineTuning,
}

__all__ = [
    "ADAPTERS",
    "ROLES",
    "AdaptedLayer",
    "Adapter",
    "Bottleneck",
    "FullFineTuning",
    "GeneratorDropout",
    "LoRA",
    "resolve_adapter",
]


def resolve_adapter(
    adapter: str | Adapter | None, rank: int | None = None
) -> Adapter | None:
    """Turn the estimators' `adapter` and `rank` into a spec of their own.

    Parameters
    ----------
    adapter : str, Adapter or None
        A name in `ADAPTERS`, a spec, or None for no adapter.
    rank : int or None
        Overrides the capacity of the adapter where given.

    Returns
    -------
    Adapter or None
        A checked copy; the given spec is left as it is.

    Raises
    ------
    ValueError
        For an unknown name, a parameter out of range, or a rank where there is none.
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
    if isinstance(adapter, str):
        if adapter not in ADAPTERS:
            raise ValueError(one_of(adapter, ADAPTERS, "adapter"))
        spec = ADAPTERS[adapter]()
    elif isinstance(adapter, Adapter):
        spec = clone(adapter)
    else:
        raise TypeError(
            f"adapter must be a name, an instance of an adapter or None, got {adapter!r}. "
            "Pass for example 'lora' or LoRA(rank=4)."
        )
    if rank is not None:
        spec = spec.with_capacity(rank)
    spec.validate()
    return spec
