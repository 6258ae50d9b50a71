"""The adapter contract: a spec names roles, and wraps the frozen layers found there."""

import copy
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from skpeft._validation import (
    WithParameters,
    check_roles,
    check_start,
    validate_spec,
)

#: Linear layers of a transformer block, in the order in which data passes through them.
ROLES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
#: One layer that computes queries, keys and values, in encoders that have it.
FUSED_ROLE = "query_key_value"
#: Normalisations of a transformer block.
NORM_ROLES = ("attention_norm", "ffn_norm")
#: Stands for the block itself where an adapter says what it replaces.
WHOLE_BLOCK = ""
_IN_FUSED = ("query", "key", "value")


@dataclass(frozen=True)
class Stack:
    """The chosen blocks of an encoder, as adapters see them.

    Parameters
    ----------
    sites : sequence of dict of str to torch.nn.Module
        For each block its frozen layers by role, those at which the adapter acts.
    blocks : sequence of torch.nn.Module, default=()
        The blocks themselves, for adapters that stand around a whole block.
    root : torch.nn.Module or None, default=None
        The model that runs the blocks; called once a pass.
    n_heads : int, default=1
        Attention heads.
    n_calls : int or None, default=None
        How often blocks run in a pass, all together; None: each once.

    Examples
    --------
    >>> from torch import nn
    >>> from skpeft.adapters import Stack
    >>> stack = Stack([{"query": nn.Linear(4, 4)}, {"query": nn.Linear(4, 4)}])
    >>> [sites["query"].in_features for sites in stack.sites]
    [4, 4]
    """

    sites: Sequence[dict[str, nn.Module]]
    blocks: Sequence[nn.Module] = ()
    root: nn.Module | None = None
    n_heads: int = 1
    n_calls: int | None = None


class Adapter(WithParameters):
    """Base class of adapter specs.

    A spec holds hyperparameters alone, never data or tensors, so it clones, prints and
    tunes like any scikit-learn estimator. To write a method, subclass it and define

    - `target_roles()`, the places at which it acts;
    - `wrap(layer, role, generator)`, which returns the `AdaptedLayer` that replaces a
      frozen layer and, at the start, computes exactly what that layer computed;
    - `count(sites)`, the formula of its trainable parameters in one block;
    - the class attributes below.

    The network decides about devices, number types, traversal and freezing. A method whose
    parts span several layers overrides `attach` instead of `wrap`. Only what is trained is
    saved, so what else a layer has must come out the same whenever `wrap` is called. Modules
    are in evaluation mode throughout; for dropout there is `GeneratorDropout`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skpeft import AdapterClassifier
    >>> from skpeft.adapters import AdaptedLayer, Adapter
    >>> class Scaled(AdaptedLayer):
    ...     def __init__(self, base):
    ...         super().__init__(base)
    ...         self.factor = nn.Parameter(torch.ones(base.out_features))
    ...
    ...     def forward(self, x):
    ...         return self.factor * self.base(x)
    >>> class OutputScaling(Adapter):
    ...     def target_roles(self):
    ...         return ("value",)
    ...
    ...     def wrap(self, layer, role, generator):
    ...         return Scaled(layer)
    ...
    ...     def count(self, sites):
    ...         return sum(n_out for _, n_out in sites.values())
    >>> clf = AdapterClassifier("tiny", adapter=OutputScaling(), random_state=0)
    >>> clf.fit(["good", "fine", "bad", "poor"], [1, 1, 0, 0]).n_trainable_params_ > 0
    True
    """

    #: Name of the parameter that `rank` of the estimators overrides; None: no capacity.
    capacity: ClassVar[str | None] = None
    #: Learning rate used where the estimator's `learning_rate` is None.
    default_learning_rate: ClassVar[float] = 1e-3
    #: Whether the method trains the encoder's own weights, on a private copy.
    trains_encoder: ClassVar[bool] = False
    #: Whether the method can act on normalisations, besides linear layers.
    adapts_norms: ClassVar[bool] = False
    #: Folder of a saved adapter from which it starts; None: it starts as the identity.
    weights: str | None = None
    #: Whether it stays as it starts, and is not trained.
    frozen: bool = False
    _parameter_constraints: ClassVar[dict] = {}

    @property
    def members(self) -> "Sequence[Adapter]":
        """The methods that make it up, in the order in which they are attached."""
        return [self]

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts."""
        raise NotImplementedError

    def roles_in(self, table: Mapping[str, str]) -> tuple[str, ...]:
        """Roles of one encoder at which the method acts, each once.

        Where an encoder computes queries, keys and values in one layer, that layer stands
        for each of them.

        Parameters
        ----------
        table : mapping of str to str
            Role table of the encoder.
        """
        fused = FUSED_ROLE in table
        roles = [
            FUSED_ROLE if fused and role in _IN_FUSED and role not in table else role
            for role in self.target_roles()
        ]
        return tuple(dict.fromkeys(roles))

    def wrap(
        self, layer: nn.Module, role: str, generator: torch.Generator
    ) -> nn.Module:
        """Return the `AdaptedLayer` that replaces one frozen layer.

        Parameters
        ----------
        layer : torch.nn.Module
            The frozen layer, shared with other networks: never changed.
        role : str
            The role of the layer, one of `ROLES`, `NORM_ROLES` or of the encoder's table.
        generator : torch.Generator
            Source of the initial values, on the CPU.
        """
        raise NotImplementedError

    def attach(
        self, stack: Stack, generator: torch.Generator
    ) -> list[dict[str, nn.Module]]:
        """Return the replacements of frozen layers, by role, for each block.

        They are `AdaptedLayer`; one of the whole block has the role `WHOLE_BLOCK`.

        Parameters
        ----------
        stack : Stack
            The blocks and their frozen layers.
        generator : torch.Generator
            Source of the initial values, on the CPU.
        """
        return [
            {role: self.wrap(layer, role, generator) for role, layer in sites.items()}
            for sites in stack.sites
        ]

    def release(self, module: nn.Module) -> None:
        """Give a module trainable copies of its weights, in place.

        Only for methods with `trains_encoder`.

        Parameters
        ----------
        module : torch.nn.Module
            Part of a network's own tree, whose tensors are still shared.
        """
        raise NotImplementedError

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """Number of trainable parameters in one block, by formula.

        Parameters
        ----------
        sites : dict of str to (int, int)
            Input and output width of each layer, by role.
        """
        raise NotImplementedError

    def with_capacity(self, rank: int) -> "Adapter":
        """Copy of the spec with its capacity set to `rank`.

        Raises
        ------
        ValueError
            If the method has no capacity.
        """
        if self.capacity is None:
            raise ValueError(
                f"rank={rank!r} was given, but {type(self).__name__} has no capacity to "
                "set. Leave rank=None here, and set what the members of a list have in "
                "their own specs; in a search use a list of grids, one for the adapters "
                "with a rank and one for those without."
            )
        return clone(self).set_params(**{self.capacity: rank})

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        validate_spec(self)


class WithRoles(Adapter):
    """Base class of the methods with a parameter `roles`.

    None stands for all linear layers of a block, and its normalisations where the method
    can act on them.
    """

    roles: Sequence[str] | None

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which the method acts; none named where it is all."""
        return () if self.roles is None else tuple(self.roles)

    def roles_in(self, table: Mapping[str, str]) -> tuple[str, ...]:
        """Roles of one encoder at which the method acts."""
        if self.roles is not None:
            return super().roles_in(table)
        if self.adapts_norms:
            return tuple(role for role in table if role != "blocks")
        return linear_roles(table)

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        super().validate()
        if self.roles is not None:
            check_roles(self)


class SharedWithPeft(WithRoles):
    """Base class of the methods that PEFT has too, and may have trained.

    They have the parameters `weights` and `frozen` besides.
    """

    def validate(self) -> None:
        """Check the parameters; raises `ValueError` naming the one that is wrong."""
        super().validate()
        check_start(self)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, frozen: bool = False
    ) -> "SharedWithPeft":
        """Spec of a trained adapter, saved by PEFT, sentence-transformers or skpeft.

        Its parameters are those of the saved one. The blocks are those that it adapts:
        leave ``layers="auto"`` in the estimator.

        Parameters
        ----------
        folder : str or path
            Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        frozen : bool, default=False
            Whether its tensors stay as they are, so that only a head is fitted, in place
            of being where training starts.

        Returns
        -------
        Adapter
            Of this class, to be passed as `adapter` of an estimator.

        Raises
        ------
        OSError
            If a file is missing.
        ValueError
            If a file is damaged, or the adapter is none that skpeft can compute.
        """
        from skpeft.adapters._peft import spec_from_folder  # which knows this class

        return spec_from_folder(cls, folder, frozen)


def linear_roles(table: Mapping[str, str]) -> tuple[str, ...]:
    """Roles in a table that are linear layers."""
    norms = [role for role in table if role.endswith("_norm")]
    return tuple(role for role in table if role not in ("blocks", *norms))


class AdaptedLayer(nn.Module):
    """Base of the modules that replace a frozen layer.

    The frozen layer stays reachable as `base`, and attributes that this module lacks,
    such as `weight` or `in_features`, are looked up on it. Every parameter outside
    `base` is the adapter's; computations with them belong inside `unrounded`. The
    output must have the number type of the frozen layer's output, which in reduced
    precision is not that of these parameters.

    Parameters
    ----------
    base : torch.nn.Module
        The frozen layer, shared with other networks, or one that is adapted already.

    Examples
    --------
    >>> from torch import nn
    >>> from skpeft.adapters import AdaptedLayer
    >>> layer = AdaptedLayer(nn.Linear(4, 2))
    >>> layer.in_features, layer.weight is layer.base.weight
    (4, True)
    """

    base: Any

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        """Attributes of the frozen layer where there are none of its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # such as how the frozen layer is copied
                raise
            return getattr(super().__getattr__("base"), name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter of the adapter, even where the frozen layer has one of the name."""
        self._parameters[name] = param

    def merged(self) -> nn.Module | None:
        """New layer, of the frozen one's kind, that computes the same; None: there is none."""
        return None


class Lent(threading.local):
    """Weights that layers apply for the time being, for each thread."""

    def __init__(self) -> None:
        self.weights: dict[ReweightedLayer, Tensor | None] = {}


_LENT = Lent()


@contextmanager
def lent(weights: Mapping["ReweightedLayer", Tensor | None]) -> Iterator[None]:
    """Inside, in this thread, layers apply these weights, or with None compute their own."""
    former = _LENT.weights
    _LENT.weights = {**former, **weights}
    try:
        yield
    finally:
        _LENT.weights = former


class ReweightedLayer(AdaptedLayer):
    """Base of adapted linear layers that compute a weight of their own from the frozen one.

    The network computes it once for all that goes through together, and again when one of
    its parameters has changed. Subclasses define `product`.

    Parameters
    ----------
    base : torch.nn.Module
        The frozen linear layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skpeft.adapters import ReweightedLayer
    >>> class Doubled(ReweightedLayer):
    ...     def product(self):
    ...         return 2 * self.base.weight
    >>> base, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
    >>> torch.equal(Doubled(base)(x), 2 * base(x))
    True
    """

    @property
    def ready(self) -> Tensor | None:
        """The product, where somebody has computed it already for the time being."""
        if torch.compiler.is_compiling():  # which would keep the weight of this moment
            return None
        return _LENT.weights.get(self)

    def product(self) -> Tensor:
        """The weight that is applied, of shape (out, in)."""
        raise NotImplementedError

    def takes_weight(self, training: bool) -> bool:
        """Whether the product is what the layer applies, in training or else."""
        return True

    def own_tensors(self) -> list[Tensor]:
        """What the weight is computed from, besides the frozen one."""
        named = self.named_parameters()
        return [tensor for name, tensor in named if not name.startswith("base.")]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        weight = self.ready
        if weight is None:
            weight = self.product()
        return nn.functional.linear(x, weight, self.base.bias)

    def merged(self) -> nn.Module | None:
        """Linear layer of that weight."""
        linear = folded(self.base)
        if linear is not None:
            linear.weight.data = self.product().detach()
        return linear


class BesideBlock(AdaptedLayer):
    """Base of the modules that stand around a whole block and only read what it gives.

    As nothing that is trained goes through the block, what it gives need be computed only
    once for each sample. Subclasses define `after`.

    Parameters
    ----------
    base : torch.nn.Module
        The frozen block.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skpeft.adapters import BesideBlock
    >>> class Doubled(BesideBlock):
    ...     def after(self, hidden):
    ...         return 2 * hidden
    >>> Doubled(nn.Identity())(torch.ones(1, 1, 2))
    tensor([[[2., 2.]]])
    """

    def after(self, hidden: Tensor) -> Tensor:
        """Hidden states (batch, seq, dim) to go on with, given those of the block."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the block, whose hidden states may be the first of several parts."""
        output = self.base(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.after(output[0]), *output[1:])
        return self.after(output)


def unwrapped(layer: nn.Module) -> nn.Module:
    """The frozen layer inside adapted ones."""
    while isinstance(layer, AdaptedLayer):
        layer = layer.base
    return layer


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear, by a weight and a bias that it holds, and nothing besides."""
    return type(layer).forward is nn.Linear.forward and _does_as_its_kind(layer)


def _does_as_its_kind(layer: nn.Module) -> bool:
    """Whether nobody has added to what layers of this kind compute."""
    changed = layer._forward_hooks or layer._forward_pre_hooks
    return not (changed or "forward" in vars(layer) or is_parametrized(layer))


def unrounded(x: Tensor) -> AbstractContextManager:
    """Return a context in which an adapter computes in the precision of its tensors.

    In reduced precision the products of the encoder are rounded, and not those of adapters.

    Parameters
    ----------
    x : Tensor
        On the device in question.

    Returns
    -------
    context manager
        Inside, autocast is off.

    Examples
    --------
    >>> import torch
    >>> from skpeft.adapters import unrounded
    >>> x = torch.ones(1, 1)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     rounded = x @ x
    ...     with unrounded(x):
    ...         exact = x @ x
    >>> rounded.dtype, exact.dtype
    (torch.bfloat16, torch.float32)
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def folded(layer: nn.Module) -> Any:
    """Copy of a frozen layer with the adapters around it folded in; None: impossible.

    It is where a layer computes more than its weight and bias say.
    """
    if isinstance(layer, AdaptedLayer):
        return layer.merged()
    norm = type(layer).forward is nn.LayerNorm.forward and _does_as_its_kind(layer)
    return copy.deepcopy(layer) if norm or is_plain_linear(layer) else None


def widths(layer: nn.Module) -> tuple[int, int]:
    """Width of what goes into a layer and of what comes out."""
    if isinstance(unwrapped(layer), nn.Linear):
        return layer.in_features, layer.out_features  # type: ignore[return-value]
    n_features: int = layer.weight.numel()  # type: ignore[operator]
    return n_features, n_features


def zeros(*shape: int) -> Tensor:
    """Zeros in float32 on the CPU, whatever torch's defaults are."""
    return torch.zeros(*shape, dtype=torch.float32, device="cpu")


class Handover(nn.Module):
    """A value that one layer leaves for a later one of the same pass, for each thread.

    Where the first layer runs several times before the other takes the value, as DeBERTa's
    query layer does for positions, it is the first time that counts.

    Parameters
    ----------
    root : torch.nn.Module or None, default=None
        The model that runs the layers: nothing is left from one of its passes to the next.

    Examples
    --------
    >>> from skpeft.adapters import Handover
    >>> handover = Handover()
    >>> handover.put("first")
    >>> handover.put("second")
    >>> handover.take()
    'first'
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        super().__init__()
        self._slot = threading.local()
        if root is not None:
            root.register_forward_pre_hook(self.clear)

    def clear(self, *_: Any) -> None:
        """Forget a value that nobody took."""
        self._slot.__dict__.clear()

    def put(self, value: Any) -> None:
        """Leave a value, unless one waits already."""
        self._slot.__dict__.setdefault("value", value)

    def take(self) -> Any:
        """Get the value, once."""
        return self._slot.__dict__.pop("value")

    def __reduce__(self) -> tuple[type, tuple]:
        return Handover, ()  # a copy has nothing to hand over


class GeneratorDropout(nn.Module):
    """Dropout that draws from the generator of the fit, not from the global one.

    It is active while the network lends it a generator, which it does in training only.

    Parameters
    ----------
    p : float
        Probability of zeroing an entry, in [0, 1).

    Examples
    --------
    >>> import torch
    >>> from skpeft.adapters import GeneratorDropout
    >>> dropout = GeneratorDropout(0.5)
    >>> dropout(torch.ones(3))
    tensor([1., 1., 1.])
    >>> dropout.generator = torch.Generator().manual_seed(0)
    >>> set(dropout(torch.ones(100)).tolist()) == {0.0, 2.0}
    True
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries of `x` with probability `p` and scale the rest, in training only."""
        if self.generator is None or self.p == 0.0:
            return x
        keep = torch.empty_like(x).bernoulli_(1.0 - self.p, generator=self.generator)
        return x * keep / (1.0 - self.p)
