"""Fitted estimators as torch modules of their own, for use without scikit-learn."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor, nn

from skpeft._data import check_texts
from skpeft._network import AdapterNetwork
from skpeft._sites import merge
from skpeft.encoders.base import Backbone


def private_module(network: AdapterNetwork) -> nn.Module:
    """Copy of what maps batches to features, in float32; adapters merged where they merge.

    Every tensor is copied, the frozen ones too: whoever gets the copy may train it or
    change its type, and the encoder that all estimators share must not notice.
    """
    network.live.backbone.check_unchanged()
    module = merge(copy.deepcopy(network.live.module))
    return module.float().eval().requires_grad_(False)


def _check_whole(network: AdapterNetwork, method: str) -> None:
    """Refuse an encoder that reads texts in windows, which are joined outside the module."""
    if getattr(network.encoder, "long_text", "truncate") == "chunk":
        raise ValueError(
            f"{method}() was called, but encoder={network.encoder!r} reads long texts in "
            "windows and joins them outside of the exported module, which would give "
            "other features for such texts. Fit with long_text='truncate' for an export, "
            "or save the estimator with joblib.dump or save_pretrained()."
        )


@torch.inference_mode(False)  # the copy may be trained
def to_sentence_transformer(network: AdapterNetwork) -> Any:
    """Make a `SentenceTransformer` whose `encode` gives the network's features.

    Raises
    ------
    ValueError
        If the network reads pairs, or no texts, or its encoder is not a transformers model,
        or reads long texts in windows.
    """
    backbone: Any = network.live.backbone
    if not hasattr(backbone, "to_sentence_transformer"):
        raise ValueError(
            f"to_sentence_transformer() was called, but encoder={network.encoder!r} is no "
            "TextEncoder, and only that has a tokenizer and a transformer to make a "
            "SentenceTransformer of. Use to_torch(), which takes every encoder."
        )
    if network.n_features == 2:
        raise ValueError(
            "to_sentence_transformer() was called on an estimator of pairs of texts; a "
            "SentenceTransformer embeds single texts, and the features of a pair are "
            "made of both. Use to_torch(), which takes the token ids of pairs."
        )
    _check_whole(network, "to_sentence_transformer")
    return backbone.to_sentence_transformer(private_module(network))


class LinearMap(NamedTuple):
    """Weight of shape (n_outputs, dim), intercept of shape (n_outputs,)."""

    weight: np.ndarray
    intercept: np.ndarray
    one_column: bool

    def layer(self, device: torch.device) -> nn.Linear:
        """Linear layer in float32."""
        n_outputs, dim = self.weight.shape
        how = {"device": "cpu", "dtype": torch.float32}  # whatever the defaults are
        layer = torch.nn.utils.skip_init(nn.Linear, dim, n_outputs, **how)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.intercept))
        return layer.to(device).requires_grad_(False)


def linear_map(head: Any, method: str, dim: int) -> LinearMap:
    """Read the linear map off a fitted head by asking it, whatever it is made of.

    Pipelines of linear steps are linear too, so what counts is what the head answers: at
    zero and the unit vectors, which give the map, and at random rows of many lengths,
    which show whether that is all.

    Parameters
    ----------
    head : estimator
        A fitted head.
    method : str
        Name of the method that gives raw predictions.
    dim : int
        Width of the features.

    Raises
    ------
    ValueError
        If the head is not linear.
    """
    ask: Callable | None = getattr(head, method, None)
    if ask is None:
        raise _not_linear(head, f"has no {method}")
    random_state = np.random.RandomState(0)
    some = random_state.randn(64, dim) * np.logspace(-3, 2, 64)[:, None]
    given = np.asarray(ask(np.concatenate([np.zeros((1, dim)), np.eye(dim), some])))
    answers = given.astype(np.float64).reshape(len(given), -1)
    intercept, rest = answers[0], answers[1:]
    weight = (rest[:dim] - intercept).T
    found = some @ weight.T + intercept
    magnitude = np.abs(some) @ np.abs(weight.T) + np.abs(intercept)
    if not (np.abs(found - rest[dim:]) <= 1e-6 * magnitude).all():
        raise _not_linear(head, f"has a {method} that is not linear")
    return LinearMap(weight, intercept, given.ndim == 1)


def _not_linear(head: Any, reason: str) -> ValueError:
    return ValueError(
        f"to_torch() was called, but the head {head!r} {reason}; a linear one is expected, "
        "such as LogisticRegression, LinearSVC or Ridge. Fit with such a head or with "
        "head=None, or export the features alone with to_sentence_transformer()."
    )


class Predictor(nn.Module):
    """From a batch to raw predictions: encoder with adapters, then a linear layer.

    Parameters
    ----------
    encoder : torch.nn.Module
        Maps a batch, a dict of tensors, to features (batch, dim).
    head : LinearMap
        From features to raw predictions.
    reader : Backbone
        Makes batches; holds no weights.
    """

    _checked: Callable

    def __init__(self, encoder: nn.Module, head: LinearMap, reader: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        weight = next(encoder.parameters(), torch.zeros(0))  # there may be none
        self.head = head.layer(weight.device)
        self.one_column = head.one_column
        self._reader = reader

    def prepare(self, X: Sequence) -> dict[str, Tensor]:
        """Make one batch of samples, by the names under which `forward` takes its parts.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit` of the estimator; the number of columns is not compared.
        """
        samples = self._checked(X)
        batch = self._reader.collate(self._reader.prepare(samples))
        weight = self.head.weight
        return {
            name: part.to(
                weight.device, weight.dtype if part.is_floating_point() else None
            )
            for name, part in batch.items()
        }

    def raw(self, batch: dict[str, Tensor]) -> Tensor:
        """Raw predictions, of shape (batch,) where the head gives one number a sample."""
        outputs = self.head(self.encoder(batch))
        return outputs.squeeze(1) if self.one_column else outputs


class TextPredictor(Predictor):
    """From token ids to raw predictions."""

    _checked = staticmethod(check_texts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        second_input_ids: Tensor | None = None,
        second_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Map token ids (batch, seq), as `prepare` makes them, to raw predictions."""
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "second_input_ids": second_input_ids,
            "second_attention_mask": second_attention_mask,
        }
        return self.raw({name: x for name, x in batch.items() if x is not None})


class ArrayPredictor(Predictor):
    """From rows of numbers to raw predictions."""

    _checked = staticmethod(check_array)

    def forward(self, values: Tensor) -> Tensor:
        """Map rows (batch, n_features) to raw predictions."""
        return self.raw({"values": values})


@torch.inference_mode(False)
def to_torch(network: AdapterNetwork, head: Any, method: str, dim: int) -> Predictor:
    """Make one module of a network and a fitted linear head.

    Parameters
    ----------
    network : AdapterNetwork
        Gives the features.
    head : estimator
        A fitted head.
    method : str
        Name of the method of the head that gives raw predictions.
    dim : int
        Width of the features.

    Raises
    ------
    ValueError
        If the head is not linear, or the encoder reads long texts in windows.
    """
    _check_whole(network, "to_torch")
    linear = linear_map(head, method, dim)
    kind = TextPredictor if network.encoder.modality == "text" else ArrayPredictor
    return kind(private_module(network), linear, network.live.backbone.reader()).eval()
