"""HiRA against its formula, and against the layer of peft."""

import pytest
import torch
from torch import nn

from skpeft import AdapterClassifier
from skpeft.adapters import HiRA, LoRA

N_IN, N_OUT, RANK = 12, 20, 2


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def frozen_layer(bias=True):
    layer = nn.Linear(N_IN, N_OUT, bias=bias).double().requires_grad_(False)
    for seed, tensor in enumerate(layer.parameters()):
        tensor.copy_(normal(*tensor.shape, seed=seed))
    return layer


def adapted_layer(bias=True):
    """Adapted layer whose factors are not one."""
    layer = HiRA(RANK).wrap(frozen_layer(bias), "query", torch.Generator()).double()
    layer.hira_B.data.copy_(normal(N_OUT, RANK, seed=5))
    return layer


def test_forward_and_gradients_equal_those_of_peft():
    peft = pytest.importorskip("peft", reason="peft, the reference, is not installed")
    ours = adapted_layer()
    if not hasattr(peft, "HiraConfig"):
        pytest.skip("HiRA came with peft 0.20, this is older")
    config = peft.HiraConfig(r=RANK, target_modules=["site"])
    theirs = nn.ModuleDict({"site": frozen_layer()})
    theirs = peft.inject_adapter_in_model(config, theirs)["site"].double()
    A, B = theirs.hira_A["default"], theirs.hira_B["default"]
    with torch.no_grad():
        A.copy_(ours.hira_A)
        B.copy_(ours.hira_B)
    x, cotangent = normal(3, 5, N_IN), normal(3, 5, N_OUT, seed=2)
    our_x, their_x = (x.clone().requires_grad_() for _ in range(2))
    our_output, their_output = ours(our_x), theirs(their_x)
    torch.testing.assert_close(our_output, their_output)
    our_output.backward(cotangent)
    their_output.backward(cotangent)
    torch.testing.assert_close(ours.hira_A.grad, A.grad)
    torch.testing.assert_close(ours.hira_B.grad, B.grad)
    torch.testing.assert_close(our_x.grad, their_x.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_each_weight_is_multiplied_by_its_own_factor(bias):
    layer, x = adapted_layer(bias), normal(N_IN)
    A, B, W = layer.hira_A, layer.hira_B, layer.base.weight
    expected = [
        sum(
            W[i, j] * (1 + sum(B[i, k] * A[k, j] for k in range(RANK))) * x[j]
            for j in range(N_IN)
        )
        + (layer.base.bias[i] if bias else 0.0)
        for i in range(N_OUT)
    ]
    torch.testing.assert_close(layer(x), torch.stack(expected))


def test_gradients_equal_finite_differences():
    layer, x = adapted_layer(), normal(4, N_IN).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, A, B: torch.func.functional_call(
            layer, {"hira_A": A, "hira_B": B}, (x,)
        ),
        (x, layer.hira_A, layer.hira_B),
    )


def test_change_of_the_weight_is_of_full_rank():
    layer = adapted_layer()
    change = layer.merged().weight - layer.base.weight
    assert torch.linalg.matrix_rank(change) == min(N_IN, N_OUT) > RANK
    lora = LoRA(RANK).wrap(frozen_layer(), "query", torch.Generator()).double()
    lora.lora_B.data.copy_(normal(N_OUT, RANK, seed=5))
    change = lora.merged().weight - lora.base.weight
    assert torch.linalg.matrix_rank(change) == RANK


def test_starts_as_the_frozen_layer_with_factors_drawn_from_the_generator():
    base, x = frozen_layer().float(), normal(4, N_IN).float()
    layers = [
        HiRA(500).wrap(base, "query", torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(layers[0](x), base(x))
    assert torch.equal(layers[0].hira_A, layers[1].hira_A)
    assert not torch.equal(layers[0].hira_A, layers[2].hira_A)
    A = layers[0].hira_A.detach()
    assert -1 < A.min() < -0.99
    assert 0.99 < A.max() < 1
    assert abs(float(A.mean())) < 0.03  # 3 standard errors are 0.022


def test_after_another_adapter_it_is_refused():
    texts, y = ["good", "bad", "fine", "poor"], [1, 0, 1, 0]
    clf = AdapterClassifier("tiny", adapter=[LoRA(2), HiRA(2)], layers=None)
    with pytest.raises(ValueError, match=r"HiRA comes after another .* Put it first"):
        clf.fit(texts, y)
    clf.set_params(adapter=[HiRA(2), LoRA(2)]).fit(texts, y)
    assert clf.n_trainable_params_ > 0
