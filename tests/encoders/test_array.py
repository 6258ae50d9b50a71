"""Modules of the user's: told apart by what they hold, and left as they are."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from skpeft import AdapterClassifier
from skpeft.adapters import LoRA
from skpeft.encoders import ArrayEncoder

ROWS = np.random.RandomState(0).randn(40, 4).astype(np.float32) * 4
LABELS = np.arange(40) % 2


class Clipped(nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.layer, self.limit = nn.Linear(4, 8), limit

    def forward(self, x):
        limit = self.limit["high"] if isinstance(self.limit, dict) else self.limit[0]
        return self.layer(x.clamp(max=float(limit)))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x):
        self.n_calls += 1
        return self.layer(x)


def features(module):
    clf = AdapterClassifier(ArrayEncoder(module), adapter=None).fit(ROWS, LABELS)
    return clf.transform(ROWS)


def computed(module):
    with torch.no_grad():
        return module(torch.from_numpy(ROWS)).numpy()


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        np.array,
        list,
        lambda values: [np.array(values[0])],
        lambda values: {"high": values[0]},
        lambda values: {"high": np.float32(values[0])},
    ],
    ids=["tensor", "array", "list", "list of arrays", "dict", "number of numpy"],
)
def test_modules_that_differ_in_what_they_hold_beside_tensors(kind):
    one, other = Clipped(kind([2.0])), Clipped(kind([9.0]))
    other.load_state_dict(one.state_dict())
    np.testing.assert_allclose(features(one), computed(one), atol=1e-5)
    np.testing.assert_allclose(features(other), computed(other), atol=1e-5)
    one.limit = kind([5.0])
    np.testing.assert_allclose(features(one), computed(one), atol=1e-5)


def test_modules_may_hold_what_cannot_be_compared():
    module = Clipped([2.0])
    module.own = [torch.eye(3).to_sparse(), torch.empty(2, device="meta"), object(), 1j]
    module.own.append(module.own)
    np.testing.assert_allclose(features(module), computed(module), atol=1e-5)


def test_module_that_changes_its_buffers_is_refused_and_left_as_it_was():
    module = Counting()
    with pytest.raises(ValueError, match=r"changes its buffers \['n_calls'\]"):
        features(module)
    assert module.n_calls == 0


def test_module_that_fails_is_left_as_it_was_too():
    module = Counting()
    module.layer = nn.Linear(5, 8)
    with pytest.raises(ValueError, match="cannot take rows of 4 numbers"):
        features(module)
    assert module.n_calls == 0


def test_module_that_cannot_be_copied_is_refused():
    module = nn.Sequential(nn.Linear(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        nn.utils.weight_norm(module[0])
    with pytest.raises(ValueError, match=r"cannot be copied .*parametrizations"):
        features(module)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + torch.tanh(self.query(x)))


def test_compiled_module_learns_and_answers_as_it_does_uncompiled():
    def fitted(module, path):
        table = {"blocks": path, "query": "query"}
        encoder = ArrayEncoder(module, role_table=table)
        own = {"max_epochs": 3, "shrinkage": 0.0, "random_state": 0}
        adapter = LoRA(4, roles=("query",))
        return AdapterClassifier(encoder, adapter=adapter, **own).fit(ROWS, LABELS)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(Block(), Block(), Block()))
    plain = fitted(module, "1")
    compiled = fitted(torch.compile(module, backend="eager"), "_orig_mod.1")
    expected = plain.transform(ROWS)
    np.testing.assert_allclose(compiled.transform(ROWS), expected, atol=1e-4)
    module = compiled.to_torch()
    found = module(**module.prepare(ROWS)).detach().numpy()
    np.testing.assert_allclose(found, compiled.decision_function(ROWS), atol=1e-4)
    assert np.abs(plain.transform(ROWS) - plain.transform_frozen(ROWS)).max() > 0.01


def test_module_without_parameters_is_exported():
    clf = AdapterClassifier(ArrayEncoder(nn.Identity()), adapter=None)
    clf.fit(ROWS, LABELS)
    module = clf.to_torch()
    found = module(**module.prepare(ROWS)).detach().numpy()
    np.testing.assert_allclose(found, clf.decision_function(ROWS), atol=1e-4)
