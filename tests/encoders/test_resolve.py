"""From the estimators' `encoder` to a spec."""

import pytest
from torch import nn

from skpeft import AdapterClassifier
from skpeft.encoders import (
    ENCODERS,
    ArrayEncoder,
    TextEncoder,
    TinyTextEncoder,
    resolve_encoder,
)
from tests import models


@pytest.mark.parametrize("name", ENCODERS)
def test_resolve_encoder_by_short_name_gives_its_class(name):
    assert type(resolve_encoder(name)) is ENCODERS[name]


def test_resolve_encoder_takes_other_names_for_text_models():
    spec = resolve_encoder("some/model")
    assert isinstance(spec, TextEncoder)
    assert spec.model == "some/model"


def test_resolve_encoder_copies_a_spec():
    spec = TinyTextEncoder(seed=3)
    assert resolve_encoder(spec) is not spec
    assert resolve_encoder(spec).get_params() == spec.get_params()


def test_resolve_encoder_takes_a_loaded_model_by_reference(plain_folder):
    model = models.load(plain_folder("bert"))
    assert resolve_encoder(model).model is model
    assert resolve_encoder(TextEncoder(model)).model is model


@pytest.mark.parametrize("encoder", [nn.Linear(2, 2), 3, TextEncoder], ids=repr)
def test_resolve_encoder_of_something_else_is_a_type_error(encoder):
    with pytest.raises(TypeError, match=r"encoder must be .* ArrayEncoder\(module"):
        resolve_encoder(encoder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TinyTextEncoder(hidden_size=30), "hidden_size=30 .* multiple of 4"),
        (ArrayEncoder(hidden_size=36), "hidden_size=36 .* multiple of 8"),
    ],
    ids=str,
)
def test_toy_encoder_of_odd_width_is_refused(spec, message):
    import torch

    with pytest.raises(ValueError, match=message):
        spec.load(n_features=2, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    "spec",
    [
        TinyTextEncoder(n_layers=0),
        TinyTextEncoder(max_length=0),
        TinyTextEncoder(seed=-1),
        ArrayEncoder(n_layers=1.5),
        ArrayEncoder(module="bert"),
    ],
    ids=str,
)
def test_toy_encoder_with_wrong_parameter_is_refused(spec):
    (name,) = (n for n, v in spec.get_params().items() if v != getattr(type(spec)(), n))
    with pytest.raises(
        ValueError, match=f"'{name}' parameter of {type(spec).__name__}"
    ):
        resolve_encoder(spec)


def test_path_is_a_folder_by_its_name(plain_folder):
    folder = plain_folder("bert")
    assert resolve_encoder(folder).model == str(folder)


def test_folder_in_the_home_is_named_in_full(plain_folder, monkeypatch, tmp_path):
    (tmp_path / "model").symlink_to(plain_folder("bert"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_encoder("~/model").model == str(plain_folder("bert").resolve())


def test_model_of_transformers_gets_the_way_out_and_not_its_layers(plain_folder):
    from transformers import AutoModel

    with pytest.raises(TypeError, match="type BertModel") as error:
        AdapterClassifier(AutoModel.from_pretrained(plain_folder("bert"))).fit(
            ["a", "b"], [0, 1]
        )
    assert "SentenceTransformer that has it" in str(error.value)
    assert len(str(error.value)) < 500
