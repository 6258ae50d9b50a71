"""Passes that are replayed, with what stands for recordings where there is no GPU.

What records kernels and replays them is tried by ``pytest --cuda tests/test_cuda.py``.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig
from transformers.utils import import_utils

from skpeft import AdapterClassifier, AdapterRegressor, _live, _replays
from skpeft._live import LiveNetwork
from skpeft.adapters import LoRA
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.encoders._text import _is_steady
from skpeft.encoders.base import Seal
from skpeft.objectives import OBJECTIVES
from tests import models

TEXTS, LABELS, _ = models.random_rows([1 + i % 8 for i in range(30)])
NUMBERS = np.random.RandomState(0).randn(len(TEXTS), 3)
OWN = {"objective": "cross_entropy", "batch_size": 7, "max_epochs": 5}
OWN |= {"precision": "float64", "shrinkage": 0.0, "random_state": 0}


STREAM = object()


class Again:
    """Stands for a recording: computes the pass anew, from inputs of its own."""

    replayed = 0
    gone = 0

    def __init__(self, run, inputs, trained, place):
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
        found = torch.autograd.grad(
            self.features, self.trained, gradient, allow_unused=True
        )
        del self.features  # a recording holds no graph
        return found

    def reset(self):
        # Where others record on a stream, no graph of it may go.
        assert not any(_replays._IDLE_STREAMS.values())
        type(self).gone += 1


class Own(LoRA):
    """An adapter of a user, whose layers may do something else at each pass."""

    def wrap(self, layer, role, generator):
        return OwnLayer(layer, self.rank, self.scaling, self.dropout, generator)


class OwnLayer(LoRALinear):
    """Its layers."""


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
def no_gpu(monkeypatch):
    """Leave out what needs one."""
    monkeypatch.setattr(_replays, "new_place", lambda device: (STREAM, None))
    monkeypatch.setattr(_replays, "_IDLE_STREAMS", {torch.device("cpu"): []})
    monkeypatch.setattr(_replays, "has_room", lambda device: True)
    monkeypatch.setattr(
        _replays, "reset_after_failed_capture", lambda device, place: None
    )


@pytest.fixture
def replay_by(no_gpu, monkeypatch):
    """Let fits replay passes, by recordings of a kind."""

    def replay_by(kind):
        kind.replayed, kind.gone, made = 0, 0, []

        def replays(self):
            trained = list(self.trainable().values())
            made.append(_replays.Replays(trained, 1e-9))
            return made[-1]

        monkeypatch.setattr(_replays, "Recording", kind)
        monkeypatch.setattr(LiveNetwork, "replays", replays)
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
@pytest.mark.parametrize("encoder", ["bert", "roberta", "mpnet", "tiny", "array"])
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


def test_shapes_are_recorded_when_they_come_for_the_third_time(no_gpu, monkeypatch):
    monkeypatch.setattr(_replays, "Recording", Again)
    monkeypatch.setattr(Again, "replayed", 0)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    replays = _replays.Replays([weight], 1e-9)
    for n_rows, n_replayed in [(2, 0), (4, 0), (2, 0), (4, 0), (2, 2), (4, 4), (2, 5)]:
        x = torch.randn(n_rows, 3, dtype=torch.float64)
        found = replays.run(("x",), lambda tensors: tensors[0] * weight, [x])
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
    assert Again.gone == 1
    assert [replays.able for replays in made] == [True]


@pytest.mark.parametrize("where", ["TOKENS_KEPT", "_GROUPS"])
def test_passes_in_several_parts_are_not_replayed(where, replay_by, monkeypatch):
    monkeypatch.setattr(_live, where, {"cpu": (16, 1)} if where == "_GROUPS" else 4)
    expected = fitted()
    replay_by(Again)
    assert_same(fitted(), expected)
    assert Again.replayed == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_replayed_after_an_error_or_interrupt(error, no_gpu, monkeypatch):
    class Stops(Again):
        def __init__(self, *what):
            raise error

    settled = []
    monkeypatch.setattr(_replays, "Recording", Stops)
    monkeypatch.setattr(
        _replays, "reset_after_failed_capture", lambda *what: settled.append(what)
    )
    weight = torch.nn.Parameter(torch.ones(3))
    replays, ended = _replays.Replays([weight], 1e-4), 0
    for _ in range(5):
        try:
            replays.run((), lambda tensors: tensors[0] * weight, [torch.ones(2, 3)])
        except KeyboardInterrupt:
            ended += 1
    assert not replays.able
    assert settled == [(weight.device, (STREAM, None))]
    assert ended == (error is KeyboardInterrupt)


class WritesIntoItsBatch(torch.nn.Module):
    """As a pooling may that leaves a prompt out."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        features = self.inner(batch)
        batch["attention_mask"][:, :1] = 0
        return features


class Writing(TinyTextEncoder):
    """Tiny encoder whose module does so."""

    def load(self, **place):
        other = copy.copy(super().load(**place))
        other.module, other.root = WritesIntoItsBatch(other.module).eval(), "inner"
        other._seal = Seal(other.module)
        return other


def test_batch_that_a_pass_writes_into_is_recorded_as_it_came(replay_by):
    expected = fitted(encoder=Writing(), layers=None)
    replay_by(Again)
    assert_same(fitted(encoder=Writing(), layers=None), expected)
    assert Again.replayed > 5


@pytest.mark.parametrize(
    ("parameters", "replayed"),
    [
        ({}, True),
        ({"encoder": "tiny"}, True),
        ({"encoder": ArrayEncoder()}, False),
        ({"encoder": "mpnet"}, False),
        ({"encoder": "qwen3"}, False),
        ({"pooling": "cls"}, True),
        ({"pooling": "lasttoken"}, False),
        ({"adapter": LoRA(dropout=0.1)}, False),
        ({"adapter": "hira"}, False),
        ({"adapter": ["ia3", LoRA()]}, True),
        ({"adapter": None}, False),
        ({"adapter": Own()}, False),
    ],
    ids=str,
)
def test_what_is_known_is_replayed_on_a_gpu(
    parameters, replayed, plain_folder, monkeypatch
):
    given = {"encoder": "bert", **parameters}
    pooling = given.pop("pooling", None)
    if given["encoder"] in ("bert", "mpnet", "qwen3"):
        folder = str(plain_folder(given["encoder"]))
        given["encoder"] = TextEncoder(folder, pooling=pooling)
    samples = NUMBERS if isinstance(given["encoder"], ArrayEncoder) else TEXTS
    network = fitted(samples, **given)._network
    with network.live.replays() as replays:
        assert replays is None  # on a CPU nothing is
    monkeypatch.setattr(network.live, "device", torch.device("cuda"))
    # Older versions of transformers ask the GPU whether a mask hides anything.
    knows = hasattr(import_utils, "is_cuda_stream_capturing")
    knows = knows or given["encoder"] == "tiny"
    with network.live.replays() as replays:
        assert (replays is not None) == (replayed and knows)


@pytest.mark.parametrize("kind", ["sdpa", "eager", "flash_attention_2"])
def test_attention_that_asks_how_long_texts_are_is_not_replayed(kind):
    config = BertConfig()
    config._attn_implementation_internal = kind  # the public name wants it installed
    knows = hasattr(import_utils, "is_cuda_stream_capturing")
    assert _is_steady(config, []) == (knows and kind != "flash_attention_2")


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_no_graph_of_another_pass_is_there_while_one_is_recorded(
    objective, replay_by, monkeypatch
):
    """Its nodes belong to the usual stream, where nothing may go while another records."""
    stale = []

    def nodes(trained):
        return [torch.autograd.graph.get_gradient_edge(p).node for p in trained]

    class Watches(Again):
        def __init__(self, run, inputs, trained, place):
            stale.extend("seen" in node.metadata for node in nodes(trained))
            super().__init__(run, inputs, trained, place)

    run = _replays.Replays.run

    def marks(self, *what):
        features = run(self, *what)
        for node in nodes(self.trained):
            node.metadata["seen"] = True
        return features

    monkeypatch.setattr(_replays.Replays, "run", marks)
    replay_by(Watches)
    kind, y = AdapterClassifier, LABELS
    if OBJECTIVES[objective].task == "regression":
        kind, y = AdapterRegressor, np.arange(len(TEXTS))
    elif OBJECTIVES[objective].task.startswith("multi"):
        y = np.stack([LABELS == "+", np.arange(len(TEXTS)) % 2], axis=1).astype(int)
    kind("tiny", **OWN | {"objective": objective}).fit(TEXTS, y)
    assert stale
    assert not any(stale)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_stream_is_given_back_when_no_recording_is_left(error, replay_by):
    """However the fit ends."""
    made = replay_by(Again)

    def callback(record):
        if error is not None and record["epoch"] == 4:
            raise error

    clf = AdapterClassifier("tiny", **OWN, callback=callback)
    if error is ValueError:
        with pytest.raises(ValueError):
            clf.fit(TEXTS, LABELS)
    else:
        clf.fit(TEXTS, LABELS)
    assert [replays._place for replays in made] == [None]
    assert Again.gone > 1
    (idle,) = _replays._IDLE_STREAMS.values()
    assert idle == [STREAM]


def test_fit_leaves_no_gradients():
    trained = fitted()._network.live.trainable().values()
    assert all(tensor.grad is None for tensor in trained)


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 16, 17])
def test_objectives_see_the_rows_alone(n_rows, replay_by):
    network = fitted(batch_size=30)._network
    items = network.live.prepare(TEXTS[:n_rows])
    replay_by(Again)
    replays = network.live.replays()
    expected = network.live.forward(items)
    for _ in range(4):
        found = network.live.forward(items, replays)
        torch.testing.assert_close(found, expected)
    assert replays.able


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_to_a_number_that_comes_again_changes_rounding_alone(
    family, plain_folder
):
    """What the model can take is the limit."""
    network = fitted(encoder=str(plain_folder(family)))._network
    backbone = network.live.backbone
    longest = " ".join(" ".join(TEXTS).split()[:18])
    items = network.live.prepare([*TEXTS[:5], longest])
    shapes = [backbone.collate_in_steps([i])["input_ids"].shape for i in items]
    assert shapes == [(1, 16)] * 5 + [(1, models.MAX_LENGTH)]
    backbone._limit = 28
    assert backbone.collate_in_steps(items)["input_ids"].shape == (6, 28)
    with network.live.computing(), torch.no_grad():
        few, many = (
            network.live.module(collate(items))
            for collate in (backbone.collate, backbone.collate_in_steps)
        )
    torch.testing.assert_close(many, few, atol=1e-9, rtol=0.0)
