"""Adapters around layers that are no plain linear ones, or that nobody calls."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from skpeft import AdapterClassifier
from skpeft.adapters import IA3, BitFit, HiRA, LayerNormTuning, LoRA
from skpeft.encoders import ArrayEncoder

ROWS = np.random.RandomState(0).randn(60, 16).astype(np.float32)
LABELS = (ROWS[:, 0] * ROWS[:, 1] > 0).astype(int)


class Tripled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 3 + 1


def hooked(layer):
    layer.register_forward_hook(lambda module, args, output: output * 1.5)
    return layer


NOT_PLAIN = {
    "subclass": lambda: Tripled(16, 16),
    "hook": lambda: hooked(nn.Linear(16, 16)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(16, 16)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(16, 16)),
}
KINDS = pytest.mark.parametrize("kind", NOT_PLAIN)


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.last = layer, nn.Linear(16, 8)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Block(nn.Module):
    """Torch's own encoder layer behind a linear one."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(16, 16)
        self.own = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        return self.own(self.before(x))


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        hidden = x.unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean(dim=1)


PLACES = {
    "blocks": "blocks",
    "query": "before",
    "ffn_in": "own.linear1",
    "ffn_out": "own.linear2",
    "attention_output": "own.self_attn.out_proj",
}


def fit(module, table, adapter, **parameters):
    torch.manual_seed(0)
    encoder = ArrayEncoder(module, role_table=table)
    own = {"random_state": 0, "shrinkage": 0.0, "max_epochs": 3, **parameters}
    return AdapterClassifier(encoder, adapter=adapter, **own).fit(ROWS, LABELS)


def one_layer(kind, adapter, **parameters):
    table = {"blocks": "", "query": "first"}
    return fit(Net(NOT_PLAIN[kind]()).eval(), table, adapter, **parameters)


def exported(clf):
    module = clf.to_torch()
    with torch.no_grad():
        return module(**module.prepare(ROWS)).numpy()


@KINDS
@pytest.mark.parametrize(
    "adapter", [LoRA(4, roles=["query"]), BitFit(roles=["query"]), IA3(roles=["query"])]
)
def test_exports_of_layers_that_do_more_than_their_weight(kind, adapter):
    clf = one_layer(kind, adapter, learning_rate=0.02)
    assert np.abs(clf.transform(ROWS) - clf.transform_frozen(ROWS)).max() > 1e-3
    np.testing.assert_allclose(exported(clf), clf.decision_function(ROWS), atol=1e-4)


@KINDS
@pytest.mark.parametrize(
    "adapter", [LoRA(4, roles=["query"], use_dora=True), HiRA(4, roles=["query"])]
)
def test_what_needs_the_weight_itself_refuses_such_layers(kind, adapter):
    with pytest.raises(ValueError, match="at the role 'query'"):
        one_layer(kind, adapter)


def test_copies_of_adapted_layers_keep_the_adapter():
    clf = one_layer("weight_norm", LoRA(4, roles=["query"]), learning_rate=0.02)
    layer = clf._network.live.module.model.first
    other = copy.deepcopy(layer)
    assert type(other) is type(layer)
    torch.testing.assert_close(other.lora_B, layer.lora_B)
    found = copy.deepcopy(clf).transform(ROWS)
    np.testing.assert_array_equal(found, clf.transform(ROWS))


def test_adapters_in_encoder_layers_of_torch_take_part_in_predictions():
    roles = ["query", "ffn_in", "ffn_out"]
    clf = fit(Stacked(), PLACES, LoRA(4, roles=roles), learning_rate=0.02)
    network = clf._network
    trained = network.live.forward(network.live.prepare(ROWS)).detach().numpy()
    np.testing.assert_allclose(clf.transform(ROWS), trained, atol=1e-5)
    np.testing.assert_allclose(exported(clf), clf.decision_function(ROWS), atol=1e-4)
    pickle.dumps(clf.to_torch())
    state = network.state()
    zeroed = {
        name: array * ("linear" not in name) if "lora_B" in name else array
        for name, array in state.items()
    }
    network.live.load_state(zeroed)
    assert np.abs(clf.transform(ROWS) - trained).max() > 1e-3


@pytest.mark.parametrize("objective", ["contrastive", "cross_entropy"])
def test_adapters_that_nobody_calls_are_named(objective):
    idle = r"out_proj', 'model\.blocks\.1\.own\.self_attn\.out_proj'\] took no part"
    alone, beside = (
        LoRA(4, roles=[*more, "attention_output"]) for more in ((), ("query",))
    )
    with pytest.raises(ValueError, match=idle):
        fit(Stacked(), PLACES, alone, objective=objective)
    with pytest.warns(UserWarning, match=idle) as told:
        fit(Stacked(), PLACES, beside, objective=objective)
    assert len(told) == 1


class Gated(nn.Module):
    """A second block that runs where a row of the batch asks for it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Net(nn.Linear(16, 16)) for _ in range(2)])
        self.blocks[0].last = nn.Linear(16, 16)

    def forward(self, x):
        hidden = self.blocks[0](x)
        if bool((x[:, 0] > 2.0).any()):
            return self.blocks[1](hidden)
        return hidden[:, :8]


@pytest.mark.parametrize("layers", [[1], None])
def test_blocks_that_run_for_some_batches_are_trained(layers):
    table = {"blocks": "blocks", "query": "first"}
    own = {"layers": layers, "objective": "cross_entropy", "batch_size": 4}
    assert 0 < (ROWS[:, 0] > 2.0).sum() < 4  # most batches have none
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = fit(Gated(), table, LoRA(4, roles=["query"]), **own)
    trained = clf._network.state()["model.blocks.1.first.lora_B"]
    assert np.abs(trained).max() > 0


class Lifted(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x) + 1


def test_export_of_a_normalisation_of_another_kind():
    table = {"blocks": "", "attention_norm": "first"}
    clf = fit(Net(Lifted(16)), table, LayerNormTuning(), learning_rate=0.02)
    np.testing.assert_allclose(exported(clf), clf.decision_function(ROWS), atol=1e-4)
