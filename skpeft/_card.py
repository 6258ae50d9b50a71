"""The model card of a saved estimator, headed by the metadata that the Hub reads."""

import json
from pathlib import Path
from typing import Any

from skpeft._recipe import by_name
from skpeft.adapters.base import SharedWithPeft

_TASKS = {
    ("classification", "text"): "text-classification",
    ("classification", "array"): "tabular-classification",
    ("regression", "array"): "tabular-regression",
}
_TEXT = """---
{metadata}
---

# {kind}

A skpeft estimator on {encoder}. {whole}

```python
from skpeft import {kind}

model = {kind}.from_pretrained("path/to/this/folder")
model.predict(X)
```
{peft}
## Training

`{settings}`

{facts}
"""
_PEFT = """
The adapter alone is in PEFT's format, in `adapter_config.json` and
`adapter_model.safetensors`: `peft.PeftModel.from_pretrained` and
`SentenceTransformer.load_adapter` read it.
"""


def card(estimator: Any) -> str:
    """Text about a fitted estimator: how to load it, how it was trained, what is known."""
    network, kind = estimator._network, type(estimator).__name__
    model = getattr(network.encoder, "model", None)
    on_hub = isinstance(model, str) and not Path(model).exists()
    is_shared = isinstance(network.adapter, SharedWithPeft)
    return _TEXT.format(
        metadata="\n".join(_metadata(estimator, model if on_hub else None)),
        kind=kind,
        encoder=f"`{model}`" if on_hub else f"a `{type(network.encoder).__name__}`",
        whole="The trained weights of the encoder are here, its other files are not."
        if _trains_encoder(network)
        else "The encoder stays frozen and is not in this folder.",
        peft=_PEFT if is_shared and network.encoder.modality == "text" else "",
        settings=" ".join(repr(_shown(estimator)).split()),
        facts="\n".join(f"- {fact}" for fact in _facts(estimator)),
    )


def _trains_encoder(network: Any) -> bool:
    return network.adapter is not None and network.adapter.trains_encoder


def _metadata(estimator: Any, base: str | None) -> list[str]:
    """Lines of YAML; texts in JSON's form, which YAML reads."""
    network = estimator._network
    task = _TASKS.get((estimator._task, network.encoder.modality))
    tags = ["skpeft", "scikit-learn"]
    if network.adapter is not None:
        tags += ["adapter", type(network.adapter).__name__]
    lines = ["library_name: skpeft"]
    if task is not None:
        lines.append(f"pipeline_tag: {task}")
    if base is not None:
        relation = "finetune" if _trains_encoder(network) else "adapter"
        lines += [f"base_model: {json.dumps(base)}", f"base_model_relation: {relation}"]
    return [*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]


def _facts(estimator: Any) -> list[str]:
    """What is known of the fit."""
    facts = [
        f"adapter: `{' '.join(repr(estimator._network.adapter).split())}`",
        f"trained weights: {estimator.n_trainable_params_:,}",
        f"frozen weights of the encoder: {estimator.n_frozen_params_:,}",
        f"epochs: {estimator.n_epochs_}",
        f"shrinkage towards the start of training: {estimator.shrinkage_:.3f} of 1",
        f"head: `{type(estimator.head_).__name__}`",
    ]
    if hasattr(estimator, "classes_"):
        facts.append(f"classes: {len(estimator.classes_)}")
    if estimator.validation_scores_:
        facts.append(f"best validation score: {max(estimator.validation_scores_):.4f}")
    return facts


def _shown(estimator: Any) -> Any:
    """Copy whose repr tells the parameters that differ from the defaults."""
    given = {**estimator.get_params(deep=False), "callback": None}
    if not isinstance(given["encoder"], str):
        given["encoder"] = by_name(estimator._network.encoder)
    if hasattr(given["random_state"], "randint"):
        given["random_state"] = None
    return type(estimator)(**given)
