"""Encoder specs: one class a kind of input.

`ENCODERS` maps short names that estimators take to classes; every other string is the
name or folder of a text model.
"""

import os

from sklearn.base import clone

from skpeft.encoders import _hub
from skpeft.encoders._families import FAMILIES
from skpeft.encoders._registry import clear_cache
from skpeft.encoders.array import ArrayEncoder
from skpeft.encoders.base import Backbone, Encoder
from skpeft.encoders.text import TextEncoder
from skpeft.encoders.tiny import TinyTextEncoder

ENCODERS = {"array": ArrayEncoder, "tiny": TinyTextEncoder}

__all__ = [
    "ENCODERS",
    "FAMILIES",
    "ArrayEncoder",
    "Backbone",
    "Encoder",
    "TextEncoder",
    "TinyTextEncoder",
    "clear_cache",
    "resolve_encoder",
]


def resolve_encoder(encoder):
    """Turn the estimators' `encoder` into a spec of their own.

    Parameters
    ----------
    encoder : str, path, Encoder or SentenceTransformer
        A name in `ENCODERS`, a model name or folder, a spec, or a loaded model.

    Returns
    -------
    Encoder
        A checked copy; the given object is left as it is.

    Raises
    ------
    ValueError
        For a parameter out of range.
    TypeError
        If `encoder` is something else.

    Examples
    --------
    >>> from skpeft.encoders import resolve_encoder
    >>> resolve_encoder("tiny")
    TinyTextEncoder()
    """
    if isinstance(encoder, os.PathLike):
        spec = TextEncoder(os.fspath(encoder))
    elif isinstance(encoder, str):
        spec = ENCODERS[encoder]() if encoder in ENCODERS else TextEncoder(encoder)
    elif isinstance(encoder, Encoder):
        spec = clone(encoder)
    elif hasattr(encoder, "encode") and hasattr(encoder, "state_dict"):
        spec = TextEncoder(encoder)
    else:
        raise TypeError(
            f"encoder must be a model name or folder, a loaded SentenceTransformer or an "
            f"encoder spec, got an object of type {type(encoder).__name__}. Of a model "
            "of transformers pass the name or folder, or a SentenceTransformer that "
            "has it as its first module; of a torch module that reads rows of numbers pass "
            "ArrayEncoder(module=...)."
        )
    spec.validate()
    model = getattr(spec, "model", None)
    if isinstance(model, str):
        spec.model = _hub.absolute(model)
    return spec
