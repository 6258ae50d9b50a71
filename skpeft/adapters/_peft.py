"""LoRA, HiRA and IA3 in PEFT's words: its configuration, names and shapes of tensors."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skpeft._files import parse_json, parse_tensors, read_file
from skpeft.adapters.base import ROLES, AdaptedLayer, Adapter, linear_roles
from skpeft.adapters.hira import HiRA, HiRALinear
from skpeft.adapters.ia3 import IA3, ScaledInput, ScaledOutput
from skpeft.adapters.lora import DoRALinear, LoRA, LoRALinear
from skpeft.encoders._families import FAMILIES

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
#: What stands before the path of a layer in the name of a tensor.
PREFIX = "base_model.model."
_NAME = re.compile(
    re.escape(PREFIX)
    + r"(?P<path>.+)\.(?P<part>(lora_A|lora_B|lora_magnitude_vector)\.weight|hira_[AB]|ia3_l)"
)
# PEFT writes it without the ending and reads both; transformers finds it only with it.
_MAGNITUDE = "lora_magnitude_vector.weight"
#: Our class of each method that PEFT has too.
KINDS = {"LORA": LoRA, "HIRA": HiRA, "IA3": IA3}
_PARTS = {
    "LORA": {"lora_A.weight", "lora_B.weight"},
    "HIRA": {"hira_A", "hira_B"},
    "IA3": {"ia3_l"},
}
_METHODS = "LoRA, HiRA and IA3"
# How each says that its tensors start.
_STARTS = ("init_lora_weights", "init_ia3_weights", "init_weights")
# Fields that say what we say too, or nothing about what is computed.
_HONOURED = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "target_modules", "r", "lora_alpha", "lora_dropout",
    "use_rslora", "use_dora", *_STARTS, "feedforward_modules",
    "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
# In a file, the names of the tensors say which layers are meant.
_TOLD_BY_FILE = {"layers_to_transform", "layers_pattern", "exclude_modules"}
# These act in training alone, and what is saved is trained.
_IDLE_IN_FILE = {"hira_dropout"}
# These start other than at the frozen encoder without touching its weights.
_STARTS_IN_FILE = (True, False, "gaussian", "eva", "orthogonal")


class Saved(NamedTuple):
    """A folder as PEFT writes it: configuration, and parts by the path of the layer."""

    config: dict[str, Any]
    layers: dict[str, dict[str, np.ndarray]]


def tensors_of(layer: AdaptedLayer) -> dict[str, Tensor]:
    """Tensors that PEFT keeps for a layer which computes the same.

    Parameters
    ----------
    layer : LoRALinear, HiRALinear, ScaledOutput or ScaledInput
        A layer of one of these methods.
    """
    with torch.no_grad():
        if isinstance(layer, ScaledInput):
            return {"ia3_l": (1.0 + layer.scale)[None, :]}
        if isinstance(layer, ScaledOutput):
            return {"ia3_l": (1.0 + layer.scale)[:, None]}
        if isinstance(layer, HiRALinear):
            return {"hira_A": layer.hira_A.detach(), "hira_B": layer.hira_B.detach()}
        assert isinstance(layer, LoRALinear)
        found: dict[str, Tensor] = {}
        found |= {"lora_A.weight": layer.lora_A, "lora_B.weight": layer.lora_B}
        if isinstance(layer, DoRALinear):
            found[_MAGNITUDE] = layer.factor() * _lengths(layer)
        return {part: tensor.detach() for part, tensor in found.items()}


def fill(module: nn.Module, start: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Set the tensors of adapted layers from those of PEFT, in place.

    Parameters
    ----------
    module : torch.nn.Module
        Holds the layers.
    start : mapping of str to mapping of str to ndarray
        For the path of each layer what `tensors_of` gives.

    Raises
    ------
    ValueError
        If a tensor has another shape than the layer has.
    """
    for path, parts in start.items():
        layer: Any = module.get_submodule(path)
        shapes = {
            part: tuple(tensor.shape) for part, tensor in tensors_of(layer).items()
        }
        given = {part: array.shape for part, array in parts.items()}
        if shapes != given:
            raise ValueError(
                f"The saved adapter has tensors of the shapes {given} for the layer "
                f"{path!r}; {shapes} is expected. Pass the encoder that it was trained on."
            )
        with torch.no_grad():
            _fill_layer(layer, {p: torch.from_numpy(a) for p, a in parts.items()})


def _fill_layer(layer: AdaptedLayer, parts: Mapping[str, Tensor]) -> None:
    if isinstance(layer, ScaledInput | ScaledOutput):
        layer.scale.copy_(parts["ia3_l"].flatten() - 1.0)
        return
    if isinstance(layer, HiRALinear):
        layer.hira_A.copy_(parts["hira_A"])
        layer.hira_B.copy_(parts["hira_B"])
        return
    layer.lora_A.copy_(parts["lora_A.weight"])
    layer.lora_B.copy_(parts["lora_B.weight"])
    if isinstance(layer, DoRALinear):
        layer.magnitude.zero_()
        start = layer.factor() * _lengths(layer)
        learned = parts[_MAGNITUDE].to(start) / start - 1.0
        layer.magnitude.copy_(torch.where(learned.isfinite(), learned, 0.0))


def _lengths(layer: DoRALinear) -> Tensor:
    """Lengths of the rows of the weight with the low-rank update, of shape (out,)."""
    weight: Any = layer.base.weight
    return (weight + layer.scaling * layer.lora_B @ layer.lora_A).norm(dim=1)


def config_of(
    spec: Adapter, layers: Mapping[str, AdaptedLayer], base: str | None
) -> dict[str, Any]:
    """PEFT's configuration of a trained adapter.

    Parameters
    ----------
    spec : LoRA, HiRA or IA3
        The method.
    layers : mapping of str to AdaptedLayer
        Its layers by their path in the transformers model. Each is named in full: a name
        alone would stand for the layers of all blocks.
    base : str or None
        Name of the encoder.
    """
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": sorted(layers),
        "task_type": "FEATURE_EXTRACTION",
    }
    if isinstance(spec, IA3):
        inputs = [p for p, layer in layers.items() if isinstance(layer, ScaledInput)]
        return {**config, "peft_type": "IA3", "feedforward_modules": sorted(inputs)}
    if isinstance(spec, HiRA):
        return {**config, "peft_type": "HIRA", "r": int(spec.rank)}
    assert isinstance(spec, LoRA)
    alpha = 2 * spec.rank if spec.alpha is None else spec.alpha
    return {
        **config,
        "peft_type": "LORA",
        "r": int(spec.rank),
        "lora_alpha": np.asarray(alpha).item(),
        "lora_dropout": float(spec.dropout),
        "use_rslora": bool(spec.rank_stabilized),
        "use_dora": bool(spec.use_dora),
        "bias": "none",
    }


def read(folder: str | os.PathLike) -> Saved:
    """Read a folder that PEFT, sentence-transformers or we have written.

    Parameters
    ----------
    folder : str or Path
        Holds adapter_config.json and adapter_model.safetensors.

    Raises
    ------
    OSError
        If a file is missing.
    ValueError
        If a file is damaged, or asks for what we do not compute.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder on this machine; expected is one that PEFT has "
            "saved. Download an adapter of a hub with huggingface_hub.snapshot_download, "
            "and pass the folder that it returns."
        )
    if not (place / TENSORS).is_file() and (place / "adapter_model.bin").is_file():
        raise ValueError(
            f"The folder {str(folder)!r} holds its tensors as a pickle, adapter_model.bin, "
            "which could run code and is not opened. Save it again with a current peft, "
            f"which writes {TENSORS}."
        )
    config = parse_json(read_file(place, CONFIG), CONFIG)
    kind = _kind_of(config)
    _check_fields(config, _HONOURED | _TOLD_BY_FILE | _IDLE_IN_FILE)
    for field in _STARTS:
        start = config.get(field, True)
        if start not in _STARTS_IN_FILE:
            raise ValueError(
                _refusal(field, start)
                + " It changes the weights of the encoder, which stay frozen here."
            )
    tensors = parse_tensors(read_file(place, TENSORS), TENSORS)
    return Saved(config, _by_layer(tensors, kind, bool(config.get("use_dora"))))


def split(name: str) -> tuple[str, str]:
    """Path of the layer and part of it in the name of a tensor of PEFT."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"The tensor {name!r} in {TENSORS} is none of {_METHODS} of linear layers, so what "
            "it does would be lost. Get the file again, or train without what the "
            "tensor belongs to, such as modules_to_save."
        )
    return match["path"], match["part"]


def _by_layer(
    tensors: Mapping[str, np.ndarray], kind: str, use_dora: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Tensors by the path of their layer; each layer has all that the method needs."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        is_short = ends_with(name, _MAGNITUDE.removesuffix(".weight"))
        path, part = split(f"{name}.weight" if is_short else name)
        if part in layers.setdefault(path, {}):
            raise ValueError(f"{TENSORS} holds {name!r} twice. Get the file again.")
        layers[path][part] = array
    expected = _PARTS[kind] | ({_MAGNITUDE} if use_dora else set())
    for path, parts in layers.items():
        if parts.keys() != expected:
            raise ValueError(
                f"For the layer {path!r}, {TENSORS} holds {sorted(parts)}; "
                f"{sorted(expected)} is expected. The file is damaged: get it again."
            )
    if not layers:
        raise ValueError(f"{TENSORS} holds no tensor. Get the file again.")
    return layers


def _kind_of(config: Mapping[str, Any]) -> str:
    """Method of a configuration, known to be one of ours."""
    kind = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    if kind not in KINDS:
        raise ValueError(
            f"peft_type={kind!r} was given by PEFT's configuration; those that skpeft "
            f"shares with PEFT are {sorted(KINDS)}. Use a spec of skpeft.adapters instead."
        )
    return kind


def _check_fields(config: Mapping[str, Any], honoured: Iterable[str]) -> None:
    """Refuse a field that is set and that we do not honour."""
    for name, value in config.items():
        unset = value in (None, False, "none", [], {}, ()) or value == set()
        if name not in honoured and not unset:
            raise ValueError(_refusal(name, value))


def _refusal(field: str, value: object) -> str:
    return (
        f"{field}={value!r} of PEFT's configuration cannot be honoured by skpeft, which "
        f"trains {_METHODS} of linear layers in transformer blocks only. Leave the field at "
        "its default."
    )


def spec_from_folder(
    kind: type[Adapter], folder: str | os.PathLike, frozen: bool
) -> Any:
    """Spec of an adapter that PEFT has saved, which starts from its tensors.

    Parameters
    ----------
    kind : type
        The class that is asked for.
    folder : str or Path
        As for `read`.
    frozen : bool
        Whether the tensors stay as they are.
    """
    saved = read(folder)
    found = KINDS[_kind_of(saved.config)]
    if found is not kind:
        raise ValueError(
            f"The folder {str(folder)!r} holds a {found.__name__}, not a {kind.__name__}. "
            f"Use {found.__name__}.from_pretrained."
        )
    # A factor on the input is a row, one on the output a column.
    inputs = [
        path
        for path, parts in saved.layers.items()
        if "ia3_l" in parts and parts["ia3_l"].shape[0] == 1
    ]
    fitting = _in_families(_roles_of_paths, saved.layers, inputs)
    if len(fitting) != 1:
        raise ValueError(
            f"The layers of the adapter in {str(folder)!r}, such as "
            f"{next(iter(saved.layers))!r}, are not all linear layers of the blocks of a "
            f"known family: {sorted(FAMILIES)}. With a role_table of your own, write "
            f"{kind.__name__}(..., roles=..., weights=folder)."
        )
    spec: Any = kind(
        **parameters(saved.config),
        **_places(kind, *fitting.pop()),
        weights=str(Path(folder).expanduser().resolve()),
        frozen=frozen,
    )
    spec.validate()
    return spec


def start_of(
    adapter: Adapter,
    roles: Sequence[str],
    blocks: Sequence[str],
    table: Mapping[str, str],
    linear: Sequence[str],
) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """Tensors of `adapter.weights` by block and role, known to be all that are needed.

    Parameters
    ----------
    adapter : LoRA, HiRA or IA3
        A spec with `weights`.
    roles : sequence of str
        Roles at which it acts.
    blocks : sequence of str
        Paths of the blocks of the encoder.
    table : mapping of str to str
        Its role table.
    linear : sequence of str
        Paths of its linear layers.

    Raises
    ------
    OSError
        If a file is missing.
    ValueError
        If the saved adapter fits neither the spec nor the encoder.
    """
    assert adapter.weights is not None
    saved = read(adapter.weights)
    _check_parameters(adapter, saved.config)
    known = {
        f"{block}.{inside}".strip("."): (i, role)
        for i, block in enumerate(blocks)
        for role, inside in _linear_roles(table).items()
    }
    found, fronts = {}, set()
    for name, parts in saved.layers.items():
        path = next((path for path in known if ends_with(name, path)), None)
        if path is None:
            raise ValueError(
                f"The adapter in {adapter.weights!r} changes the layer {name!r}, which is "
                "no linear layer of a block of this encoder. Pass the encoder that it was "
                "trained on."
            )
        found[known[path]] = parts
        fronts.add(name.removesuffix(path))
    # A model that was part of another one has the same path before all of its layers.
    if len(fronts) > 1:
        raise ValueError(
            f"The adapter in {adapter.weights!r} is of several models at once, at "
            f"{sorted(fronts)}, but there is one encoder here. Save that of one model."
        )
    front = fronts.pop()
    missing = sorted(_targeted(saved.config, [front + name for name in linear]))
    missing = [name for name in missing if name not in saved.layers]
    asked = {(i, role) for i, _ in found for role in roles}
    if missing or asked != found.keys():
        raise ValueError(
            f"The adapter in {adapter.weights!r} has tensors for {sorted(found)} (block and "
            f"role); expected are {sorted(asked)} by {adapter!r}, and by its own "
            f"target_modules also {missing}. The same roles are adapted in each block. Get "
            f"the file again, and use {type(adapter).__name__}.from_pretrained."
        )
    return found


def _targeted(config: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Layers that a configuration means, where it lists them plainly; else none."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(key) for key in _TOLD_BY_FILE):
        return []
    return [name for name in names if any(ends_with(name, str(t)) for t in targets)]


def _check_parameters(adapter: Adapter, config: Mapping[str, Any]) -> None:
    """Refuse a spec that does not say what the saved adapter does; dropout is free."""
    if type(adapter) is not KINDS[_kind_of(config)]:
        raise ValueError(
            f"weights={adapter.weights!r} was given to {type(adapter).__name__}, but a "
            f"{config['peft_type']} is saved there. Use the spec of that method."
        )
    for name, value in parameters(config).items():
        given: Any = getattr(adapter, name)
        if name == "alpha" and given is None:
            given = 2 * config.get("r", 8)
        if name != "dropout" and given != value:
            raise ValueError(
                f"{name}={given!r} was given with weights={adapter.weights!r}, but the "
                f"adapter saved there has {name}={value!r}. Use "
                f"{type(adapter).__name__}.from_pretrained, and leave rank=None in the "
                "estimator."
            )


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a spec, but for its roles, that a configuration gives."""
    kind = KINDS[_kind_of(config)]
    if kind is IA3:
        return {}
    if kind is HiRA:
        return {"rank": config.get("r", 32)}
    return {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rank_stabilized": config.get("use_rslora", False),
        "use_dora": config.get("use_dora", False),
    }


def spec_from_config(config: Any) -> Adapter:
    """Translate a `peft.PeftConfig`.

    Parameters
    ----------
    config : peft.LoraConfig, peft.HiraConfig or peft.IA3Config
        `target_modules` may name the layers of a known family. None stands for the
        default roles of our method, "all-linear" for all linear layers of the blocks.

    Raises
    ------
    ValueError
        For a method or a field that cannot be honoured.
    """
    fields = config.to_dict()
    kind = KINDS[_kind_of(fields)]
    _check_fields(fields, _HONOURED)
    for field in _STARTS:
        if fields.get(field, True) is not True:
            raise ValueError(_refusal(field, fields[field]))
    given, options = fields.get("target_modules"), parameters(fields)
    if given is None:
        return kind(**options)
    if given == "all-linear" and kind is not IA3:
        return kind(**options, roles=None)
    if isinstance(given, str):
        raise ValueError(
            f"target_modules={given!r} of PEFT's configuration is a pattern; skpeft takes "
            "a list of names. Or pass the roles: LoRA(roles=...)."
        )
    inputs = fields.get("feedforward_modules") or []
    inputs = [inputs] if isinstance(inputs, str) else inputs
    fitting = _in_families(_roles_of_names, given, inputs)
    if len(fitting) != 1:
        raise ValueError(
            f"target_modules={sorted(given)} of PEFT's configuration"
            + (f" with feedforward_modules={sorted(inputs)}" if kind is IA3 else "")
            + f" cannot be honoured: that means {sorted(fitting) or 'no roles'} in the "
            f"known families of models. Give the roles themselves: {kind.__name__}(roles=...)"
            f", of {list(ROLES)}."
        )
    return kind(**options, **_places(kind, *fitting.pop()))


def _places(
    kind: type[Adapter], roles: tuple[str, ...], scaled: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Parameters that say where a method acts."""
    return {"roles": roles, **({"input_roles": scaled} if kind is IA3 else {})}


def _in_families(
    roles_of: Callable, layers: Iterable[str], inputs: Iterable[str]
) -> set[tuple]:
    """Roles of layers, and of those whose input is scaled, in families that have all."""
    pairs = [(roles_of(layers, t), roles_of(inputs, t)) for t in FAMILIES.values()]
    return {
        (roles, tuple(role for role in scaled if role in roles))
        for roles, scaled in pairs
        if roles is not None and scaled is not None
    }


def _linear_roles(table: Mapping[str, str]) -> dict[str, str]:
    return {role: table[role] for role in linear_roles(table)}


def _roles_of_paths(
    paths: Iterable[str], table: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Roles in one family of layers given by their whole path; None: not all are there."""
    pattern = re.compile(rf"(?:.+\.)?{re.escape(table['blocks'])}\.\d+\.(.+)")
    matches = [pattern.fullmatch(path) for path in paths]
    inside = {match and match[1] for match in matches}
    known = _linear_roles(table)
    if not inside <= set(known.values()):
        return None
    return tuple(role for role, path in known.items() if path in inside)


def _roles_of_names(
    names: Iterable[str], table: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Roles in one family of layers given by the end of their path, as PEFT matches them."""
    known, roles = _linear_roles(table), set()
    for name in names:
        found = {role for role, path in known.items() if ends_with(path, name)}
        if not found:
            return None
        roles |= found
    return tuple(role for role in known if role in roles)


def ends_with(path: str, name: str) -> bool:
    """Whether a dotted path is a name, or ends with it."""
    return path == name or path.endswith("." + name)
