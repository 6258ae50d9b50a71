"""From the estimators' `adapter` and `rank` to a spec."""

import pytest

from skpeft.adapters import (
    ADAPTERS,
    Bottleneck,
    FullFineTuning,
    LoRA,
    resolve_adapter,
)


@pytest.mark.parametrize("name", ADAPTERS)
def test_resolve_adapter_by_name_gives_its_class_with_defaults(name):
    spec = resolve_adapter(name)
    assert type(spec) is ADAPTERS[name]
    assert spec.get_params() == ADAPTERS[name]().get_params()


def test_resolve_adapter_copies_a_spec_and_leaves_it_alone():
    spec = LoRA(4)
    resolved = resolve_adapter(spec, rank=2)
    assert (resolved.rank, spec.rank) == (2, 4)


@pytest.mark.parametrize("adapter", [LoRA(), Bottleneck()], ids=str)
def test_resolve_adapter_sets_its_capacity(adapter):
    assert getattr(resolve_adapter(adapter, rank=3), adapter.capacity) == 3


@pytest.mark.parametrize("adapter", [None, "full", FullFineTuning()], ids=str)
def test_resolve_adapter_refuses_rank_where_there_is_none(adapter):
    assert resolve_adapter(adapter) is None or resolve_adapter(adapter).trains_encoder
    with pytest.raises(ValueError, match=r"rank=4 was given.*rank=None"):
        resolve_adapter(adapter, rank=4)


def test_resolve_adapter_of_unknown_name_tells_the_nearest():
    with pytest.raises(ValueError, match=r"'lora2' is not a known adapter.*'lora'\?"):
        resolve_adapter("lora2")


def test_none_in_quotes_is_told_from_none():
    with pytest.raises(ValueError, match=r"For no adapter pass None, which is no str"):
        resolve_adapter("none")


@pytest.mark.parametrize("adapter", [LoRA, 4, {"rank": 4}], ids=str)
def test_resolve_adapter_of_something_else_is_a_type_error(adapter):
    with pytest.raises(TypeError, match="must be a name, a spec of an adapter, a list"):
        resolve_adapter(adapter)


def test_list_of_names_and_specs_stands_for_their_specs():
    spec = resolve_adapter(["lora", Bottleneck(4)])
    assert [type(member).__name__ for member in spec.members] == ["LoRA", "Bottleneck"]
    with pytest.raises(ValueError, match=r"'lra' is not a known adapter.*'lora'\?"):
        resolve_adapter(["lra"])


@pytest.mark.parametrize(
    ("name", "near"),
    [("LoRA", "lora"), ("LayerNormTuning", "layer_norm"), ("LadderSide", "ladder")],
)
def test_resolve_adapter_of_the_name_of_a_class_tells_the_short_one(name, near):
    with pytest.raises(ValueError, match=rf"Did you mean '{near}'\?"):
        resolve_adapter(name)
