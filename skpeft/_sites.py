"""Adapters in a module tree: where they go by the roles of layers, put in, folded back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from skpeft._validation import one_of
from skpeft.adapters.base import WHOLE_BLOCK, AdaptedLayer, Adapter, Stack, unwrapped
from skpeft.encoders import FAMILIES
from skpeft.encoders.base import Backbone

Layers = int | Sequence[int] | str | None
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip


def attach(
    module: nn.Module,
    backbone: Backbone,
    adapter: Adapter,
    layers: Layers,
    generator: torch.Generator,
) -> int:
    """Put the layers of an adapter into a network's own module tree, in place.

    Returns the index of the lowest block that is no longer frozen.
    """
    if adapter.trains_encoder and (layers is None or isinstance(layers, str)):
        adapter.release(module)
        return 0
    table = known_table(backbone)
    paths = [join_paths(backbone.root, path) for path in block_paths(backbone)]
    blocks = [module.get_submodule(path) for path in paths]
    indices = block_indices(backbone, layers, len(blocks))
    chosen = [blocks[i] for i in indices]
    if adapter.trains_encoder:
        for block in chosen:
            adapter.release(block)
        return indices[0]
    for member in adapter.members:
        roles = roles_at(backbone, member)
        stack = Stack(
            [find_sites(block, roles, table, member) for block in chosen],
            [module.get_submodule(paths[i]) for i in indices],
            root=module.get_submodule(backbone.root),
            n_heads=backbone.n_heads,
            n_calls=backbone.n_calls,
        )
        for i, replaced in zip(indices, member.attach(stack, generator), strict=True):
            for role, layer in replaced.items():
                _check_layer(layer, member)
                if role == WHOLE_BLOCK:
                    module.set_submodule(paths[i], layer)
                else:
                    blocks[i].set_submodule(table[role], layer)
    _leave_fast_path(module)
    return indices[0]


def _leave_fast_path(module: nn.Module) -> None:
    """Let torch's own encoder layers call what they hold.

    Without gradients they hand the weights of their linear layers to one kernel, past the
    adapters, unless there is a hook.
    """
    for part in module.modules():
        adapted = any(isinstance(inner, AdaptedLayer) for inner in part.modules())
        if isinstance(part, nn.TransformerEncoderLayer) and adapted:
            part.register_forward_pre_hook(_do_nothing)


def _do_nothing(*_: Any) -> None:
    """Hook, by a name so that it can be pickled."""


def _check_layer(layer: nn.Module, adapter: Adapter) -> None:
    """Refuse a replacement of a layer that would misbehave inside a network."""
    if not isinstance(layer, AdaptedLayer):
        raise TypeError(
            f"{adapter!r} replaced a layer by a {type(layer).__name__}; an "
            "AdaptedLayer is expected, so that the frozen layer inside is known."
        )
    for name, part in layer.named_modules():
        if isinstance(part, _DROPOUTS) and not f"{name}.".startswith("base."):
            raise TypeError(
                f"{adapter!r} has a {type(part).__name__} at {name!r}, which would draw "
                "from the global generator. Use skpeft.adapters.GeneratorDropout."
            )
    state = layer.state_dict().keys()
    for name, _ in layer.named_buffers():
        if name in state and not name.startswith("base."):
            raise TypeError(
                f"{adapter!r} has the persistent buffer {name!r}, but of an adapter only "
                "what is trained is saved. Make it a parameter; or, if `wrap` always makes "
                "the same, register it with persistent=False."
            )


def block_paths(backbone: Backbone) -> list[str]:
    """Path of each transformer block, from the root of a backbone."""
    path = known_table(backbone)["blocks"]
    blocks = backbone.module.get_submodule(join_paths(backbone.root, path))
    names = [name for name, _ in blocks.named_children()] if path else [""]
    if not names:
        raise ValueError(
            f"The role table says that the blocks are at {path!r}, but nothing is inside. "
            "Give the path of the list of transformer blocks."
        )
    return [join_paths(path, name) for name in names]


def known_table(backbone: Backbone) -> dict[str, str]:
    """Role table of a backbone; a `ValueError` where its family is not known."""
    table = backbone.role_table
    if table is None:
        raise ValueError(
            f"The model family {backbone.family!r} is not known, so there is no telling "
            f"where adapters go. Known families: {sorted(FAMILIES)}. Pass role_table= to "
            "the encoder: a dict with the path of the list of blocks under 'blocks' and, "
            "for each role ('query', 'key', 'value', 'attention_output', 'ffn_in', "
            "'ffn_out'), the path of its linear layer inside a block. Linear layers "
            f"found: {linear_names(backbone.module.get_submodule(backbone.root))}."
        )
    return table


def roles_at(backbone: Backbone, adapter: Adapter) -> tuple[str, ...]:
    """Roles at which an adapter acts in an encoder, known to be there.

    Raises
    ------
    ValueError
        If the encoder lacks a role, or two roles lead to one layer.
    """
    table = known_table(backbone)
    roles = adapter.roles_in(table)
    if not roles:
        raise ValueError(f"{adapter!r} names no role, so it would adapt nothing.")
    for role in roles:
        if role not in table or role == "blocks":
            known = [name for name in table if name != "blocks"]
            raise ValueError(
                f"{adapter!r}: " + one_of(role, known, "role of this encoder")
            )
    paths = [table[role] for role in roles]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"{adapter!r} acts on the roles {roles}, but in this encoder these lead to "
            f"one layer more than once: {paths}. Name each layer once."
        )
    return roles


def block_indices(backbone: Backbone, layers: Layers, n_blocks: int) -> list[int]:
    """Indices of the chosen blocks; where blocks share their weights, all or none."""
    if backbone.n_calls is None:
        return layer_indices(layers, n_blocks)
    if not (layers is None or isinstance(layers, str)):
        raise ValueError(
            f"layers={layers!r} was given, but the blocks of this encoder (family "
            f"{backbone.family!r}) share their weights, so one adapter serves all "
            f"{backbone.n_calls} of them. Leave layers='auto', or None."
        )
    return list(range(n_blocks))


def layer_indices(layers: Layers, n_blocks: int) -> list[int]:
    """Indices of the chosen blocks: the upper two thirds, all, the last n, or those named.

    Raises
    ------
    ValueError
        If a block is named that is not there.
    """
    if layers is None:
        return list(range(n_blocks))
    if isinstance(layers, str):  # "auto"
        return list(range(n_blocks // 3, n_blocks))
    if isinstance(layers, int | np.integer):
        indices = list(range(n_blocks - int(layers), n_blocks))
        valid = 0 < layers <= n_blocks
    else:
        indices = list(layers)
        valid = bool(indices) and all(
            isinstance(i, int | np.integer)
            and not isinstance(i, bool)  # of a mask
            and -n_blocks <= i < n_blocks
            for i in indices
        )
    if not valid:
        raise ValueError(
            f"layers={layers!r} was given, but the encoder has {n_blocks} blocks: a number "
            f"from 1 to {n_blocks} means the last ones, a sequence holds indices from 0 to "
            f"{n_blocks - 1}, None means all, 'auto' the upper two thirds."
        )
    return sorted({int(i) % n_blocks for i in indices})


def find_sites(
    block: nn.Module, roles: Sequence[str], table: dict[str, str], adapter: Adapter
) -> dict[str, nn.Module]:
    """Layers of a block by role; a normalisation that the block does without is left out."""
    found = {role: find_site(block, role, table) for role in roles}
    for role, layer in found.items():
        if not (adapter.adapts_norms or isinstance(unwrapped(layer), nn.Linear)):
            raise ValueError(
                f"{adapter!r} acts on linear layers, but the role {role!r} of this encoder "
                f"is a {type(layer).__name__}. Name other roles, or use LayerNormTuning."
            )
    return {r: x for r, x in found.items() if not isinstance(x, nn.Identity)}


def find_site(block: nn.Module, role: str, table: dict[str, str]) -> nn.Module:
    """Layer of a block that has a role: linear, or a normalisation where its name says so."""
    try:
        site: Any = block.get_submodule(table[role])
    except AttributeError:
        site = None
    is_norm = role.endswith("_norm") and getattr(site, "weight", None) is not None
    is_left_out = role.endswith("_norm") and isinstance(site, nn.Identity)
    if not (isinstance(unwrapped(site), nn.Linear) or is_norm or is_left_out):
        found = "nothing" if site is None else f"a {type(site).__name__}"
        raise ValueError(
            f"The role table says that {role!r} is at {table[role]!r} of a block, but "
            f"{found} is there; adapters wrap torch.nn.Linear layers. Linear layers found "
            f"in the block: {linear_names(block)}."
        )
    return site


def linear_names(module: nn.Module) -> list[str]:
    """Paths of the linear layers in a module."""
    return [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear)
    ]


def merge(module: nn.Module) -> nn.Module:
    """Fold adapters into their layers, in place and wherever that can be done.

    Adapters that have no merged form stay, around layers that are merged inside.

    Parameters
    ----------
    module : torch.nn.Module
        A tree that nobody else uses.

    Returns
    -------
    torch.nn.Module
        The module, or what it was merged to.
    """
    done: dict[int, nn.Module] = {}

    def replaced(part: nn.Module) -> nn.Module:
        if id(part) not in done:  # one module may stand in several places
            layer = part.merged() if isinstance(part, AdaptedLayer) else None
            done[id(part)] = layer or part
            if layer is None:
                for name, child in list(part.named_children()):
                    setattr(part, name, replaced(child))
        return done[id(part)]

    return replaced(module)


def join_paths(*paths: str) -> str:
    return ".".join(path for path in paths if path)
