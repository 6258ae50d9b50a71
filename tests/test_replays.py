"""Passes that are replayed, with what stands for recordings where there is no GPU.

What records kernels and replays them is tried by ``pytest --cuda tests/test_cuda.py``.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from skpeft import AdapterClassifier, _network, _replays
from skpeft._network import AdapterNetwork
from skpeft.adapters import LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder
from tests import models

TEXTS, LABELS, _ = models.random_rows([1 + i % 8 for i in range(30)])
NUMBERS = np.random.RandomState(0).randn(len(TEXTS), 3)
OWN = {"objective": "cross_entropy", "batch_size": 7, "max_epochs": 5}
OWN |= {"precision": "float64", "shrinkage": 0.0, "random_state": 0}


class Again:
    """Stands for a recording: computes the pass anew, from inputs of its own."""

    replayed = 0

    def __init__(self, run, inputs, trained, pool):
        self.run, self.trained = run, trained
        self.inputs = [tensor.clone() for tensor in inputs]

    def forward(self, inputs):
        type(self).replayed += 1
        for own, tensor in zip(self.inputs, inputs, strict=True):
            own.copy_(tensor)
        with torch.enable_grad():
            self.features = self.run(self.inputs)
        return self.features.detach()

    def backward(self, gradient):
        return torch.autograd.grad(
            self.features, self.trained, gradient, allow_unused=True
        )


class OtherFeatures(Again):
    def forward(self, inputs):
        return 1.01 * super().forward(inputs)


class OtherGradients(Again):
    def backward(self, gradient):
        return [t if t is None else 1.01 * t for t in super().backward(gradient)]


class NoGradient(Again):
    def backward(self, gradient):
        return [None, *super().backward(gradient)[1:]]


class Fails(Again):
    def __init__(self, *what):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def replay_by(monkeypatch):
    """Let fits replay passes, by recordings of a kind."""

    def replay_by(kind):
        kind.replayed, made = 0, []

        @contextmanager
        def replaying(self):
            self._replays = _replays.Replays(list(self.trainable().values()), 1e-9)
            made.append(self._replays)
            yield
            self._replays = None

        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(_replays, "Recording", kind)
        monkeypatch.setattr(AdapterNetwork, "replaying", replaying)
        return made

    return replay_by


def fitted(samples=TEXTS, encoder="tiny", **parameters):
    clf = AdapterClassifier(encoder, **OWN | parameters)
    return clf.fit(samples, LABELS)


def assert_same(found, expected):
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-9)
    samples = NUMBERS if found.n_features_in_ == 3 else TEXTS
    np.testing.assert_allclose(
        found.transform(samples), expected.transform(samples), atol=1e-9
    )


@pytest.mark.parametrize("layers", [None, 1], ids=str)
@pytest.mark.parametrize("encoder", ["bert", "mpnet", "qwen3", "tiny", "array"])
def test_replayed_passes_train_the_same_model(encoder, layers, plain_folder, replay_by):
    samples = NUMBERS if encoder == "array" else TEXTS
    kind = {"array": ArrayEncoder(), "tiny": "tiny"}.get(encoder)
    own = {"encoder": kind or str(plain_folder(encoder)), "layers": layers}
    expected = fitted(samples, **own)
    replay_by(Again)
    assert_same(fitted(samples, **own), expected)
    assert Again.replayed > 5


@pytest.mark.parametrize(
    "adapter", ["ia3", "bottleneck", "prefix", "ladder", ["lora", "ia3"]], ids=str
)
def test_replayed_passes_of_other_adapters_train_the_same(adapter, replay_by):
    expected = fitted(adapter=adapter)
    replay_by(Again)
    assert_same(fitted(adapter=adapter), expected)
    assert Again.replayed > 5


@pytest.mark.parametrize("kind", [OtherFeatures, OtherGradients, NoGradient, Fails])
def test_recording_that_is_not_the_pass_is_not_used(kind, replay_by):
    expected = fitted()
    made = replay_by(kind)
    assert_same(fitted(), expected)
    assert kind.replayed == (kind is not Fails)  # the trial
    assert [replays.able for replays in made] == [False]


def test_shapes_are_recorded_when_they_come_for_the_third_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(_replays, "Recording", Again)
    monkeypatch.setattr(Again, "replayed", 0)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    replays = _replays.Replays([weight], 1e-9)
    for n_rows, n_replayed in [(2, 0), (4, 0), (2, 0), (4, 0), (2, 2), (4, 4), (2, 5)]:
        x = torch.randn(n_rows, 3, dtype=torch.float64)
        found = replays.run(lambda tensors: tensors[0] * weight, [x])
        torch.testing.assert_close(found.detach(), x)
        (gradient,) = torch.autograd.grad(found.sum(), [weight])
        torch.testing.assert_close(gradient, x.sum(dim=0))
        assert Again.replayed == n_replayed


def test_more_shapes_than_fit_go_as_they_are(replay_by, monkeypatch):
    own = {"encoder": "tiny", "batch_size": 3}
    expected = fitted(**own)
    monkeypatch.setattr(_replays, "_MAX_RECORDINGS", 1)
    made = replay_by(Again)
    assert_same(fitted(**own), expected)
    assert [len(replays._recordings) for replays in made] == [1]
    assert made[0].able


@pytest.mark.parametrize("where", ["TOKENS_KEPT", "_GROUPS"])
def test_passes_in_several_parts_are_not_replayed(where, replay_by, monkeypatch):
    monkeypatch.setattr(_network, where, {"cpu": (16, 1)} if where == "_GROUPS" else 4)
    expected = fitted()
    replay_by(Again)
    assert_same(fitted(), expected)
    assert Again.replayed == 0


@pytest.mark.parametrize("adapter", [LoRA(dropout=0.1), "hira", "lora", None], ids=str)
def test_a_cpu_replays_nothing(adapter):
    network = fitted(adapter=adapter)._network
    with network.replaying():
        assert network._replays is None


@pytest.mark.parametrize("family", ["bert", "mpnet", "roberta", "qwen3"])
def test_padding_to_a_number_that_comes_again_changes_rounding_alone(
    family, plain_folder
):
    """As on a GPU; what the model can take is the limit."""
    encoder = TextEncoder(str(plain_folder(family)))
    network = fitted(encoder=encoder)._network
    backbone = network.live.backbone
    longest = " ".join(" ".join(TEXTS).split()[:25])
    items = network.prepare([*TEXTS[:5], longest])
    expected = network.features(items)
    backbone._step = 12
    shapes = [backbone.collate([item])["input_ids"].shape for item in items]
    assert len(items[-1]["input_ids"]) > 24
    assert shapes == [(1, 12)] * 5 + [(1, models.MAX_LENGTH)]  # and not 36
    np.testing.assert_allclose(network.features(items), expected, atol=1e-6)
