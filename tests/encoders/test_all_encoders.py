"""What every kind of encoder promises to the network."""

import numpy as np
import pytest
import torch

from skpeft import clear_cache
from skpeft.encoders import ENCODERS, ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.encoders.base import pad
from tests import models

CPU = torch.device("cpu")
NUMBERS = np.random.RandomState(0).randn(len(models.TEXTS), 3)

# A row: the spec, samples, a spec that gives other features.
TABLE = {
    "tiny": (TinyTextEncoder(), models.TEXTS, TinyTextEncoder(seed=1)),
    "tiny-pairs": (TinyTextEncoder(), models.PAIRS, TinyTextEncoder(n_layers=1)),
    "array": (ArrayEncoder(), NUMBERS, ArrayEncoder(seed=1)),
    "array-module": (
        ArrayEncoder(torch.nn.Linear(3, 4)),
        NUMBERS,
        ArrayEncoder(torch.nn.Linear(3, 4)),
    ),
    "text": (TextEncoder("bert"), models.TEXTS, TextEncoder("mpnet")),
    "text-pairs": (TextEncoder("bert"), models.PAIRS, TextEncoder("roberta")),
    "text-cross": (
        TextEncoder("bert", pair="cross"),
        models.PAIRS,
        TextEncoder("mpnet", pair="cross"),
    ),
}


@pytest.fixture(params=TABLE)
def case(request, plain_folder):
    """Spec, samples, spec of another encoder; families become folders."""
    spec, samples, other = TABLE[request.param]
    if isinstance(spec, TextEncoder):
        spec, other = (TextEncoder(str(plain_folder(s.model))) for s in (spec, other))
    return spec, samples, other


def load(spec, samples, dtype=torch.float32):
    n_features = 1 if isinstance(samples[0], str) else len(samples[0])
    return spec.load(n_features=n_features, device=CPU, dtype=dtype)


def features_of(backbone, samples):
    dtype = next(backbone.module.parameters()).dtype
    batch = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in backbone.collate(backbone.prepare(samples)).items()
    }
    with torch.no_grad():
        return backbone.module(batch)


def test_table_has_a_row_for_every_registered_encoder():
    kinds = {type(spec) for spec, *_ in TABLE.values()}
    assert kinds == {*ENCODERS.values(), TextEncoder}


def test_features_are_one_vector_a_sample(case):
    spec, samples, _ = case
    features = features_of(load(spec, samples), samples)
    assert features.ndim == 2
    assert len(features) == len(samples)
    assert torch.isfinite(features).all()
    assert len(np.unique(features.numpy().round(6), axis=0)) == len(samples)


def test_backbone_is_frozen_and_at_rest(case):
    spec, samples, _ = case
    module = load(spec, samples).module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


def test_batches_are_on_the_cpu_with_a_mask_of_the_real_tokens(case):
    spec, samples, _ = case
    backbone = load(spec, samples)
    items = backbone.prepare(samples)
    batch = backbone.collate(items)
    assert {tensor.device.type for tensor in batch.values()} == {"cpu"}
    assert {len(tensor) for tensor in batch.values()} == {len(samples)}
    masks = [mask for name, mask in batch.items() if name.endswith("attention_mask")]
    if masks:
        lengths = [backbone.length(item) for item in items]
        assert sum(mask.sum(dim=1) for mask in masks).tolist() == lengths
        assert all(mask.any(dim=0).all() for mask in masks)  # no longer than needed


def test_fingerprint_is_the_same_after_loading_anew_and_tells_encoders_apart(case):
    spec, samples, other = case
    backbone = load(spec, samples)
    first, features = backbone.fingerprint, features_of(backbone, samples)
    clear_cache()
    again = load(spec, samples)
    assert again.fingerprint == first
    assert torch.equal(features_of(again, samples), features)
    assert load(other, samples).fingerprint != first


def test_equal_specs_share_their_tensors(case):
    spec, samples, _ = case
    one, other = load(spec, samples), load(spec, samples)
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_share_module_copies_the_tree_and_no_tensor(case):
    spec, samples, _ = case
    backbone = load(spec, samples)
    tree = backbone.share_module()
    assert tree is not backbone.module
    pairs = zip(tree.parameters(), backbone.module.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert not {id(part) for part in tree.modules()} & {
        id(part) for part in backbone.module.modules()
    }


def test_float64_gives_nearly_the_same(case):
    spec, samples, _ = case
    single = features_of(load(spec, samples), samples)
    double = features_of(load(spec, samples, torch.float64), samples)
    assert double.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), double.numpy(), atol=1e-4)


def test_loading_leaves_the_global_generators_alone(case):
    spec, samples, _ = case
    clear_cache()
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(spec, samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()


def test_array_encoder_takes_read_only_rows_of_any_number_type():
    backbone = load(ArrayEncoder(), NUMBERS)
    rows = np.arange(6).reshape(2, 3)
    expected = features_of(backbone, rows.astype(float))
    for dtype in (np.int8, np.uint16, bool, np.float16):
        given = rows.astype(dtype)
        given.setflags(write=False)
        if dtype is not bool:
            assert torch.equal(features_of(backbone, given), expected)
        else:
            whole = features_of(backbone, given.astype(float))
            assert torch.equal(features_of(backbone, given), whole)


def test_tiny_text_encoder_tells_pairs_from_joined_texts_and_cuts():
    backbone = load(TinyTextEncoder(max_length=5), models.TEXTS)
    pair, joined = backbone.prepare([("good", "film"), "good film"])
    assert pair["input_ids"].tolist() != joined["input_ids"].tolist()
    (long,) = backbone.prepare(["good film " * 10])
    assert backbone.length(long) == 5


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [9, 9, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_pad_fills_up_to_the_longest(side, ids, mask):
    found_ids, found_mask = pad([np.array([5, 6, 7]), np.array([8])], 9, side)
    assert found_ids.tolist() == ids
    assert found_mask.tolist() == mask
