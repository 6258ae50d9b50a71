"""Resuming from hidden states below the first adapted block changes no feature."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from skpeft import AdapterClassifier, AdapterRegressor, _prefix
from skpeft._network import AdapterNetwork
from skpeft.adapters import Bottleneck, LoRA
from skpeft.encoders import FAMILIES, ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.encoders.base import tensor_state
from tests import models

LABELS = np.arange(len(models.TEXTS)) % 2


def network_of(encoder, layers=1, adapter=None, n_features=1, precision="float32"):
    network = AdapterNetwork(
        encoder,
        adapter or LoRA(2),
        layers,
        n_features=n_features,
        device="cpu",
        precision=precision,
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.trainable().values():
        tensor.data.normal_(std=0.3, generator=generator)
    return network


def check_resumed(network, samples):
    """Features inside `frozen_states` are those outside, and really resumed."""
    items = network.prepare(samples)
    expected = network.features(items)
    lower_calls = []
    root = network.live.module.get_submodule(network.live.backbone.root)
    blocks = root.get_submodule(network.live.backbone.role_table["blocks"])
    with network.frozen_states(items):
        assert len(network._states) == len(items)
        hook = blocks[0].register_forward_hook(lambda *_: lower_calls.append(1))
        found = network.features(items)
        some = network.features([items[2], items[0]])
        hook.remove()
    assert lower_calls == []
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * size)
    np.testing.assert_allclose(some, expected[[2, 0]], atol=1e-5 * size)
    assert network._states == {}
    np.testing.assert_array_equal(network.features(items), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2, [1]], ids=str)
def test_resumed_features_of_every_family_are_those_of_all_blocks(
    plain_folder, family, layers
):
    check_resumed(
        network_of(TextEncoder(str(plain_folder(family))), layers), models.TEXTS
    )


@pytest.mark.parametrize("pair", ["bi", "cross"])
def test_resumed_features_of_pairs_are_those_of_all_blocks(plain_folder, pair):
    encoder = TextEncoder(str(plain_folder("bert")), pair=pair)
    check_resumed(network_of(encoder, n_features=2), models.PAIRS)


@pytest.mark.parametrize(
    "adapter", [Bottleneck(4), Bottleneck(4, placement="parallel")], ids=str
)
def test_resumed_features_of_other_adapters_are_those_of_all_blocks(adapter):
    check_resumed(network_of(TinyTextEncoder(), adapter=adapter), models.TEXTS)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_resumed_features_of_numbers_are_those_of_all_blocks(precision):
    rows = np.random.RandomState(0).normal(size=(9, 5))
    network = network_of(ArrayEncoder(), n_features=5, precision=precision)
    check_resumed(network, rows)


@pytest.mark.parametrize(("family", "resumes"), [("roberta", True), ("bert", False)])
def test_padding_on_the_left_is_resumed_where_positions_do_not_count_it(
    plain_folder, family, resumes
):
    model = models.load(plain_folder(family))
    model[0].tokenizer.padding_side = "left"
    network = network_of(TextEncoder(model))
    if resumes:
        check_resumed(network, models.TEXTS)
    else:  # hidden states depend on how many are padded along
        items = network.prepare(models.TEXTS)
        with network.frozen_states(items):
            assert network._states == {}


def test_resumed_gradients_are_those_of_all_blocks():
    network = network_of(TinyTextEncoder())
    items = network.prepare(models.TEXTS)

    def gradients():
        for tensor in network.trainable().values():
            tensor.grad = None
        network.forward(items).square().sum().backward()
        return [tensor.grad.clone() for tensor in network.trainable().values()]

    expected = gradients()
    with network.frozen_states(items):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adapters_in_the_first_block_leave_nothing_to_resume_from():
    network = network_of(TinyTextEncoder(), layers=None)
    items = network.prepare(models.TEXTS)
    with network.frozen_states(items):
        assert network._states == {}


@pytest.mark.parametrize(
    ("encoder", "samples"),
    [(TinyTextEncoder(), models.TEXTS), (ArrayEncoder(), np.ones((7, 50)))],
    ids=["text", "array"],
)
def test_hidden_states_beyond_the_limit_are_not_kept(monkeypatch, encoder, samples):
    monkeypatch.setattr(_prefix, "LIMIT", 5000)  # bytes; a token has 128
    network = network_of(encoder, n_features=np.shape(samples)[-1])
    items = network.prepare(samples)
    with network.frozen_states(items):
        assert network._states == {}
        network.features(items)


@pytest.mark.parametrize("layers", [1, 2])
def test_blocks_whose_attributes_the_model_reads_are_resumed(tmp_path, layers):
    config = transformers.ModernBertConfig(
        vocab_size=len(models.vocabulary("bert")),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    transformers.ModernBertModel(config).save_pretrained(tmp_path)
    models.tokenizer_of("bert").save_pretrained(tmp_path)
    table = {"blocks": "layers", "qkv": "attn.Wqkv"}
    encoder = TextEncoder(str(tmp_path), role_table=table)
    check_resumed(network_of(encoder, layers, LoRA(2, roles=["qkv"])), models.TEXTS)


class MaskOfItsOwn(TinyTextEncoder):
    """Its batches call the mask otherwise, so padding cannot be told from tokens."""

    def load(self, **place):
        backbone = super().load(**place)
        module, collate = backbone.module, backbone.collate

        class Renamed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = module

            def forward(self, batch):
                return self.inner(
                    {"input_ids": batch["input_ids"], "attention_mask": batch["real"]}
                )

        other = copy.copy(backbone)
        other.module = Renamed().eval()
        other.root = "inner"
        other._state = tensor_state(other.module)

        def collate_renamed(items):
            batch = collate(items)
            return {"input_ids": batch["input_ids"], "real": batch["attention_mask"]}

        other.collate = collate_renamed
        return other


def test_encoder_that_hides_its_padding_goes_through_all_blocks():
    texts = ["good film", "a bad and very long book that does not end", "tea", "car"]
    clf = AdapterClassifier(MaskOfItsOwn(), layers=1, random_state=0)
    assert clf.fit(texts * 2, [0, 1, 0, 1] * 2).n_epochs_ == 6


class LooksBack(nn.Module):
    """Every block also sees what came before the one below it: no hidden state says all."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, batch):
        hidden = earlier = batch["values"]
        for block in self.blocks:
            hidden, earlier = torch.tanh(block(hidden) + earlier), hidden
        return hidden.mean(dim=1)


def test_model_that_cannot_be_resumed_is_not_halved():
    generator = torch.Generator().manual_seed(0)
    batch = {"values": torch.randn(6, 4, 8, generator=generator)}
    alone = {"values": batch["values"][-1:]}
    assert _prefix.halve(LooksBack(), "blocks", 2, batch, alone) is None


@pytest.mark.parametrize("estimator", [AdapterClassifier, AdapterRegressor])
def test_fit_does_not_depend_on_what_is_resumed(estimator, monkeypatch):
    def fitted():
        est = estimator("tiny", layers=1, max_epochs=2, random_state=0)
        return est.fit(models.TEXTS, LABELS)

    resumed = fitted()
    monkeypatch.setattr(_prefix, "LIMIT", 0)
    whole = fitted()
    np.testing.assert_allclose(resumed.loss_curve_, whole.loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(
        resumed.transform(models.TEXTS), whole.transform(models.TEXTS), atol=1e-3
    )


def test_fitted_network_holds_no_hidden_states():
    clf = AdapterClassifier("tiny", layers=1, random_state=0).fit(models.TEXTS, LABELS)
    assert (clf._network._states, clf._network._halves) == ({}, None)
