"""PEFT and sentence-transformers read our adapters, and we read theirs."""

import functools
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft.adapters import IA3, ROLES, BitFit, HiRA, LoRA, resolve_adapter
from skpeft.adapters._peft import CONFIG, TENSORS
from skpeft.encoders import TextEncoder
from tests import models

peft = pytest.importorskip("peft", reason="peft, the other side, is not installed")
transformers = pytest.importorskip("transformers")

# peft asks transformers in a way that this deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

peft_has_hira = pytest.mark.skipif(
    not hasattr(peft, "HiraConfig"), reason="HiRA came with peft 0.20, this is older"
)
FAMILIES = ("bert", "roberta", "mpnet", "distilbert")
TEXTS = [text for text in models.TEXTS if text] * 2
LABELS = np.tile([0, 1], 6)
OURS = {
    "lora": LoRA(),
    "lora-all-roles": LoRA(3, alpha=5, roles=ROLES, dropout=0.1),
    "lora-rank-stabilized": LoRA(2, rank_stabilized=True),
    "dora": LoRA(2, use_dora=True, roles=ROLES),
    "dora-rank-stabilized": LoRA(2, use_dora=True, rank_stabilized=True, alpha=3),
    "hira": HiRA(4),
    "hira-some-roles": HiRA(2, roles=("query", "ffn_out")),
    "ia3": IA3(),
    "ia3-all-roles": IA3(roles=ROLES),
}
# For each family the names of query, value, and the two layers of the feed-forward.
NAMES = {
    "bert": ["query", "value", "intermediate.dense", "encoder.layer.1.output.dense"],
    "roberta": ["query", "value", "intermediate.dense"],
    "mpnet": ["attn.q", "attn.v", "intermediate.dense"],
    "distilbert": ["q_lin", "v_lin", "lin1", "lin2"],
}
CONFIGS = {
    "lora": {"r": 2},
    "rslora": {"r": 4, "use_rslora": True, "lora_alpha": 6, "lora_dropout": 0.2},
    "dora": {"r": 2, "use_dora": True},
    "some-layers": {"r": 2, "layers_to_transform": [1]},
}


def fitted(encoder, adapter, **parameters):
    options = {"max_epochs": 3, "random_state": 0, "shrinkage": 0.0, **parameters}
    return AdapterClassifier(encoder, adapter=adapter, **options).fit(TEXTS, LABELS)


def plain(folder):
    return transformers.AutoModel.from_pretrained(folder).eval()


def embed(model, family):
    """Means over real tokens, as a model of transformers and its tokenizer give them."""
    batch = models.tokenizer_of(family)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def disturb(model, seed=0):
    """Move the tensors of an adapter as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if any(part in name for part in ("lora_", "hira_", "ia3_")):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model


def trained_by_peft(model, config):
    return disturb(peft.get_peft_model(model, config)).eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, plain_folder):
    """Make, once, an adapter folder of PEFT, and what the model with it gives."""

    @functools.cache
    def make(family="bert", name="lora"):
        folder = tmp_path_factory.mktemp("theirs") / name
        config = CONFIGS[name]
        targets = NAMES[family][:3] if name != "lora" else NAMES[family][:2]
        config = peft.LoraConfig(**config, target_modules=targets)
        model = trained_by_peft(plain(plain_folder(family)), config)
        model.save_pretrained(folder)
        return folder, embed(model, family)

    return make


@pytest.fixture
def copied(theirs, tmp_path):
    """Folder of PEFT, to be changed."""
    return Path(shutil.copytree(theirs()[0], tmp_path / "adapter"))


# Ours to theirs


@pytest.mark.parametrize("layers", ["auto", [0, 2]], ids=str)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[peft_has_hira] * n.startswith("hira")) for n in OURS],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_sentence_transformers_read_ours(
    plain_folder, tmp_path, family, name, layers
):
    folder = plain_folder(family)
    clf = fitted(str(folder), OURS[name], layers=layers)
    clf.save_pretrained(tmp_path / "model")
    expected = clf.transform(TEXTS)
    frozen = embed(plain(folder), family)
    assert np.abs(expected - frozen).max() > 1e-3
    with warnings.catch_warnings():
        # There, a missing or an unknown key is a warning.
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(plain(folder), tmp_path / "model")
    close(embed(model.eval(), family), expected)
    sentences = models.load(folder)
    sentences.load_adapter(str(tmp_path / "model"))
    close(sentences.encode(TEXTS), expected)


def test_regressor_of_pairs_is_read_too(plain_folder, tmp_path):
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    reg = AdapterRegressor(str(plain_folder()), random_state=0, max_epochs=2)
    reg.fit(pairs, np.arange(12.0)).save_pretrained(tmp_path / "model")
    model = peft.PeftModel.from_pretrained(plain(plain_folder()), tmp_path / "model")
    close(reg.transform(pairs)[:, : models.WIDTH], embed(model.eval(), "bert"))


def test_methods_that_peft_lacks_get_no_configuration(plain_folder, tmp_path):
    clf = fitted(str(plain_folder()), BitFit())
    clf.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / CONFIG).exists()


# Theirs to ours


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_adapter_of_peft_gives_its_embeddings(
    plain_folder, theirs, family, name
):
    folder, expected = theirs(family, name)
    spec = LoRA.from_pretrained(folder, frozen=True)
    clf = fitted(str(plain_folder(family)), spec, shrinkage="auto")
    close(clf.transform(TEXTS), expected)
    assert clf.n_trainable_params_ == clf.n_epochs_ == clf.shrinkage_ == 0
    assert clf.loss_curve_ == []


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_of_peft_gives_its_embeddings(plain_folder, tmp_path, family):
    names = NAMES[family]
    ends = {"distilbert": ["lin2"], "mpnet": []}.get(family, [])
    config = peft.IA3Config(
        target_modules=[*names[:3], *ends], feedforward_modules=ends
    )
    model = trained_by_peft(plain(plain_folder(family)), config)
    model.save_pretrained(tmp_path / "adapter")
    spec = IA3.from_pretrained(tmp_path / "adapter", frozen=True)
    clf = fitted(str(plain_folder(family)), spec)
    close(clf.transform(TEXTS), embed(model, family))


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen3"])
def test_ia3_as_peft_places_it_by_itself_gives_its_embeddings(
    plain_folder, tmp_path, family
):
    model = trained_by_peft(plain(plain_folder(family)), peft.IA3Config())
    model.save_pretrained(tmp_path / "adapter")
    spec = IA3.from_pretrained(tmp_path / "adapter", frozen=True)
    clf = fitted(str(plain_folder(family)), spec)
    close(clf.transform(TEXTS), embed(model, family))


@peft_has_hira
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_hira_of_peft_gives_its_embeddings(plain_folder, tmp_path, family, frozen):
    config = peft.HiraConfig(r=3, target_modules=NAMES[family][:3], hira_dropout=0.1)
    model = trained_by_peft(plain(plain_folder(family)), config)
    model.save_pretrained(tmp_path / "adapter")
    spec = HiRA.from_pretrained(tmp_path / "adapter", frozen=frozen)
    assert spec.rank == 3
    clf = fitted(str(plain_folder(family)), spec, shrinkage=1.0)
    close(clf.transform(TEXTS), embed(model, family))


def test_all_linear_layers_of_peft_are_all_of_a_block(plain_folder):
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    model = peft.get_peft_model(plain(plain_folder("qwen3")), config)
    clf = fitted(str(plain_folder("qwen3")), config, layers=None)
    assert clf.n_trainable_params_ == model.get_nb_trainable_parameters()[0]


def test_dora_of_peft_is_read_where_the_encoder_is_in_another_type(
    plain_folder, tmp_path
):
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=["query"])
    model = trained_by_peft(plain(plain_folder("bert")), config)
    model.save_pretrained(tmp_path / "adapter")
    spec = LoRA.from_pretrained(tmp_path / "adapter", frozen=True)
    clf = fitted(str(plain_folder("bert")), spec, precision="float64")
    close(clf.transform(TEXTS), embed(model, "bert"))


@pytest.mark.parametrize("inside", [".", "my_adapter"])
def test_adapter_in_a_snapshot_of_the_hub_is_read(plain_folder, tmp_path, inside):
    repository = tmp_path / "models--me--mine"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc" / inside
    model = trained_by_peft(
        plain(plain_folder("bert")), peft.LoraConfig(r=2, target_modules=["query"])
    )
    model.save_pretrained(blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert LoRA.from_pretrained(snapshot).rank == 2
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(Path(__file__))
    with pytest.raises(ValueError, match="link that leads out of it"):
        LoRA.from_pretrained(snapshot)


@pytest.mark.parametrize("part", ["model", "transformer"])
def test_adapter_of_sentence_transformers_gives_its_embeddings(
    pooled_folder, tmp_path, part
):
    model = models.load(pooled_folder("mpnet", "mean"))
    try:
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["attn.q", "attn.v"]))
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"this transformers refuses peft {peft.__version__}: {error}")
    disturb(model)
    if part == "model":
        model.save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    else:
        model[0].auto_model.save_pretrained(tmp_path / "adapter")
    spec = LoRA.from_pretrained(tmp_path / "adapter", frozen=True)
    clf = fitted(str(pooled_folder("mpnet", "mean")), spec)
    close(clf.transform(TEXTS), model.encode(TEXTS))


def test_adapter_of_a_model_inside_another_is_read(plain_folder, tmp_path):
    outer = torch.nn.ModuleDict({"bert": plain(plain_folder())})
    config = peft.LoraConfig(r=2, target_modules=["query"])
    peft.inject_adapter_in_model(config, outer)
    disturb(outer)
    state = peft.get_peft_model_state_dict(outer_of(outer, config))
    (tmp_path / "adapter").mkdir()
    tensors = {f"base_model.model.{k}": t.numpy() for k, t in state.items()}
    save_file(tensors, tmp_path / "adapter" / TENSORS)
    text = json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["query"]})
    (tmp_path / "adapter" / CONFIG).write_text(text)
    spec = LoRA.from_pretrained(tmp_path / "adapter", frozen=True)
    clf = fitted(str(plain_folder()), spec)
    close(clf.transform(TEXTS), embed(outer["bert"], "bert"))


def outer_of(module, config):
    """What `get_peft_model_state_dict` wants to find."""
    module.peft_config = {"default": config}
    return module


def test_adapter_of_peft_is_where_training_starts(plain_folder, theirs):
    folder, expected = theirs()
    encoder = str(plain_folder())
    spec = LoRA.from_pretrained(folder)
    assert (spec.rank, spec.alpha, spec.roles) == (2, 8, ("query", "value"))
    near = fitted(encoder, spec, learning_rate=1e-9, weight_decay=0.0, max_epochs=1)
    close(near.transform(TEXTS), expected)
    far = fitted(encoder, spec, max_epochs=5)
    assert far.n_epochs_ == 5
    assert far.n_trainable_params_ > 0
    assert np.abs(far.transform(TEXTS) - expected).max() > 1e-3
    undone = fitted(encoder, spec, shrinkage=1.0)  # back to where it started
    close(undone.transform(TEXTS), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_folder_of_the_start_is_not_needed_after_fit(
    plain_folder, copied, tmp_path, frozen
):
    spec = LoRA.from_pretrained(copied, frozen=frozen)
    clf = fitted(str(plain_folder()), spec)
    expected = clf.predict_proba(TEXTS)
    clf.save_pretrained(tmp_path / "model")
    data = pickle.dumps(clf)
    shutil.rmtree(copied)
    for other in (
        clf,
        pickle.loads(data),
        pickle.loads(pickle.dumps(pickle.loads(data))),
        AdapterClassifier.from_pretrained(tmp_path / "model"),
    ):
        np.testing.assert_array_equal(other.predict_proba(TEXTS), expected)
    with pytest.raises(FileNotFoundError, match="is no folder on this machine"):
        clf.fit(TEXTS, LABELS)


def test_warm_start_goes_on_from_a_saved_adapter(plain_folder, theirs):
    spec = LoRA.from_pretrained(theirs()[0])
    clf = fitted(str(plain_folder()), spec, warm_start=True)
    before = clf.transform(TEXTS)
    clf.fit(TEXTS, LABELS)
    assert clf.n_epochs_ == 6
    assert np.abs(clf.transform(TEXTS) - before).max() > 1e-6


@pytest.mark.parametrize("name", OURS)
def test_ours_comes_back_as_a_spec(plain_folder, tmp_path, name):
    clf = fitted(str(plain_folder()), OURS[name])
    clf.save_pretrained(tmp_path / "model")
    kind = type(OURS[name])
    spec = kind.from_pretrained(tmp_path / "model", frozen=True)
    other = fitted(str(plain_folder()), spec)
    assert other._network.layers == [1, 2]
    np.testing.assert_allclose(
        other.transform(TEXTS), clf.transform(TEXTS), rtol=1e-6, atol=1e-6
    )
    given = OURS[name].get_params()
    for key in given.keys() - {"weights", "frozen", "alpha", "roles"}:
        assert getattr(spec, key) == given[key]
    assert set(spec.roles) == set(given["roles"] or ROLES)
    assert getattr(spec, "scaling", 1.0) == getattr(OURS[name], "scaling", 1.0)


def test_spec_with_weights_clones_and_is_searched(plain_folder, theirs):
    spec = LoRA.from_pretrained(theirs()[0])
    assert clone(spec).get_params() == spec.get_params()
    clf = AdapterClassifier(
        str(plain_folder()), adapter=spec, max_epochs=1, random_state=0
    )
    search = GridSearchCV(clf, {"adapter": [spec, None]}, cv=2).fit(TEXTS, LABELS)
    assert search.predict(TEXTS).shape == (12,)


@pytest.mark.parametrize("layers", [[1], -2, None, 1, [0, 2]], ids=str)
def test_layers_that_disagree_with_the_file_are_refused(plain_folder, theirs, layers):
    folder, _ = theirs("bert", "some-layers")
    clf = AdapterClassifier(
        str(plain_folder()), adapter=LoRA.from_pretrained(folder), layers=layers
    )
    if layers == [1]:
        clf.set_params(max_epochs=1).fit(TEXTS, LABELS)
        assert clf._network.layers == [1]
        return
    with pytest.raises(ValueError, match=r"layers"):
        clf.fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "rank=4 was given.*has rank=2"),
        ({"alpha": None}, "alpha=4 was given.*has alpha=8"),
        ({"rank_stabilized": True}, "rank_stabilized=True was given"),
        ({"use_dora": True}, "use_dora=True was given"),
        ({"roles": ["query"]}, "acts|tensors for"),
        ({"roles": ["query", "value", "key"]}, "tensors for"),
    ],
    ids=str,
)
def test_spec_that_disagrees_with_the_file_is_refused(
    plain_folder, theirs, change, message
):
    spec = LoRA.from_pretrained(theirs()[0]).set_params(**change)
    with pytest.raises(ValueError, match=message):
        fitted(str(plain_folder()), spec)


def test_rank_of_the_estimator_that_disagrees_is_refused(plain_folder, theirs):
    spec = LoRA.from_pretrained(theirs()[0])
    with pytest.raises(ValueError, match="leave rank=None"):
        fitted(str(plain_folder()), spec, rank=4)


def test_adapter_of_another_encoder_is_refused(plain_folder, theirs):
    spec = LoRA.from_pretrained(theirs("bert")[0])
    with pytest.raises(ValueError, match="no linear layer of a block of this encoder"):
        fitted(str(plain_folder("distilbert")), spec)
    with pytest.raises(ValueError, match="no linear layer of a block of this encoder"):
        fitted("tiny", spec)


def test_saved_adapter_in_a_list_is_refused(theirs):
    with pytest.raises(ValueError, match="stands by itself"):
        resolve_adapter([LoRA.from_pretrained(theirs()[0]), BitFit()])


def test_folder_of_another_method_is_refused_by_name(plain_folder, theirs):
    folder, _ = theirs()
    with pytest.raises(ValueError, match=r"holds a LoRA, not a IA3. Use LoRA.from"):
        IA3.from_pretrained(folder)
    with pytest.raises(ValueError, match="was given to IA3, but a LORA is saved there"):
        fitted(str(plain_folder()), IA3(weights=str(folder)))


@pytest.mark.parametrize("kind", [LoRA, HiRA, IA3])
def test_frozen_without_weights_is_refused(kind):
    with pytest.raises(ValueError, match=r"frozen=True was given .* without weights"):
        resolve_adapter(kind(frozen=True))


def test_folder_of_no_known_family_asks_for_the_roles(copied):
    def rename_blocks(tensors, name):
        for name in list(tensors):
            tensors[name.replace("encoder.layer", "parts")] = tensors.pop(name)

    edit_tensors(rename_blocks)(copied)
    with pytest.raises(ValueError, match=r"known family.*LoRA\(\.\.\., roles="):
        LoRA.from_pretrained(copied)


def test_unknown_family_is_read_with_its_role_table(plain_folder, theirs, tmp_path):
    folder, expected = theirs()
    table = {"blocks": "encoder.layer", "first": "attention.self.query"}
    table["second"] = "attention.self.value"
    encoder = TextEncoder(str(plain_folder()), role_table=table)
    options = {"alpha": 8, "weights": str(folder), "frozen": True}
    clf = fitted(encoder, LoRA(2, roles=("first", "second"), **options))
    close(clf.transform(TEXTS), expected)


# Folders that were tampered with


def edit_tensors(change):
    def tamper(folder):
        tensors = load_file(folder / TENSORS)
        change(tensors, sorted(tensors)[0])
        save_file(tensors, folder / TENSORS)

    return tamper


def edit_config(**changes):
    def tamper(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    return tamper


def without_layer(tensors, name):
    for part in ("lora_A", "lora_B"):
        tensors.pop(name.replace("lora_A", part))


def misplace(tensors, name):
    for part in ("lora_A", "lora_B"):
        former = name.replace("lora_A", part)
        tensors[former.replace("layer.0", "layer.7")] = tensors.pop(former)


def two_models(tensors, name):
    for part in ("lora_A", "lora_B"):
        former = name.replace("lora_A", part)
        tensors[former.replace("encoder.", "other.encoder.")] = tensors[former]


TAMPERINGS = {
    "missing": edit_tensors(lambda tensors, name: tensors.pop(name)),
    "missing layer": edit_tensors(without_layer),
    "extra": edit_tensors(lambda tensors, name: tensors.update(x=tensors[name])),
    "extra part": edit_tensors(
        lambda t, n: t.update(
            {n.replace("lora_A.weight", "lora_magnitude_vector"): t[n]}
        )
    ),
    "renamed": edit_tensors(
        lambda tensors, name: tensors.update({name + "s": tensors.pop(name)})
    ),
    "misplaced": edit_tensors(misplace),
    "given twice": edit_tensors(
        lambda t, n: t.update(
            {
                n.replace("lora_A.weight", f"lora_magnitude_vector{end}"): t[n][0]
                for end in ("", ".weight")
            }
        )
    ),
    "of two models": edit_tensors(two_models),
    "path": edit_tensors(
        lambda tensors, name: tensors.update({"../../" + name: tensors.pop(name)})
    ),
    "shape": edit_tensors(lambda t, n: t.update({n: t[n][:, :-1]})),
    "rank": edit_tensors(lambda t, n: t.update({n: t[n][:1]})),
    "nan": edit_tensors(lambda t, n: t.update({n: np.full_like(t[n], np.nan)})),
    "integers": edit_tensors(lambda t, n: t.update({n: t[n].astype(np.int64)})),
    "empty": edit_tensors(lambda tensors, name: tensors.clear()),
    "truncated": lambda folder: (folder / TENSORS).write_bytes(
        (folder / TENSORS).read_bytes()[:-10]
    ),
    "no tensors": lambda folder: (folder / TENSORS).unlink(),
    "pickle": lambda folder: (folder / TENSORS).rename(folder / "adapter_model.bin"),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "config cut": lambda folder: (folder / CONFIG).write_text('{"peft_type": "LORA"'),
    "config of other rank": edit_config(r=4),
    "rank of another type": edit_config(r="2"),
    "dropout out of range": edit_config(lora_dropout=1.5),
    "other method": edit_config(peft_type="IA3"),
    "unknown method": edit_config(peft_type="LOKR"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_adapter_folder_that_was_tampered_with_is_refused(
    plain_folder, copied, tampering
):
    TAMPERINGS[tampering](copied)
    with pytest.raises((ValueError, OSError)) as caught:
        fitted(str(plain_folder()), LoRA.from_pretrained(copied))
    assert len(str(caught.value)) > 60


def test_link_that_leads_out_is_refused(copied, tmp_path):
    (copied / TENSORS).rename(tmp_path / "elsewhere")
    (copied / TENSORS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link that leads out"):
        LoRA.from_pretrained(copied)


REFUSED_FIELDS = {
    "bias": "lora_only",
    "modules_to_save": ["classifier"],
    "rank_pattern": {"query": 4},
    "alpha_pattern": {"query": 4},
    "fan_in_fan_out": True,
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [1, 2],
    "target_parameters": ["x"],
    "lora_bias": True,
    "some_field_of_the_future": 3,
}


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_field_of_a_folder_that_cannot_be_honoured_is_named(copied, field):
    edit_config(**{field: REFUSED_FIELDS[field]})(copied)
    with pytest.raises(ValueError, match=rf"{field}=.*cannot be honoured"):
        LoRA.from_pretrained(copied)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "loftq", "corda"])
def test_start_that_changes_the_encoder_is_named(copied, start):
    edit_config(init_lora_weights=start)(copied)
    with pytest.raises(ValueError, match=r"init_lora_weights=.*cannot be honoured"):
        LoRA.from_pretrained(copied)


def test_unknown_fields_at_their_default_are_fine(copied):
    edit_config(a=None, b=False, c=[], d={}, e="none", init_lora_weights="gaussian")(
        copied
    )
    assert LoRA.from_pretrained(copied).rank == 2


# Configurations as adapter


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (peft.LoraConfig(), LoRA(8, alpha=8)),
        (
            peft.LoraConfig(
                r=4,
                lora_alpha=6,
                lora_dropout=0.1,
                use_rslora=True,
                use_dora=True,
                target_modules=["value", "query", "key"],
            ),
            LoRA(
                4,
                alpha=6,
                dropout=0.1,
                rank_stabilized=True,
                use_dora=True,
                roles=("query", "key", "value"),
            ),
        ),
        (
            peft.LoraConfig(target_modules=["q_lin", "ffn.lin2"]),
            LoRA(alpha=8, roles=("query", "ffn_out")),
        ),
        (
            peft.LoraConfig(target_modules="all-linear"),
            LoRA(alpha=8, roles=None),
        ),
        (peft.IA3Config(), IA3()),
        (
            peft.IA3Config(
                target_modules=["k_lin", "v_lin", "lin2"], feedforward_modules=["lin2"]
            ),
            IA3(roles=("key", "value", "ffn_out")),
        ),
        (
            peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
            IA3(roles=("key", "value"), input_roles=()),
        ),
        (
            peft.IA3Config(
                target_modules=["key", "value", "output.dense"],
                feedforward_modules=["output.dense"],
            ),
            IA3(
                roles=("key", "value", "attention_output", "ffn_out"),
                input_roles=("attention_output", "ffn_out"),
            ),
        ),
        (
            peft.IA3Config(target_modules=["lin2"], feedforward_modules=[]),
            IA3(roles=("ffn_out",), input_roles=()),
        ),
    ],
    ids=lambda value: type(value).__name__,  # sets print in any order
)
def test_configuration_of_peft_is_translated(config, spec):
    found = resolve_adapter(config)
    assert type(found) is type(spec)
    assert found.get_params() == spec.get_params()


@peft_has_hira
@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"target_modules": ["q_lin", "lin2"]}, HiRA(roles=("query", "ffn_out"))),
        ({"r": 4, "target_modules": "all-linear"}, HiRA(4)),
        ({"r": 4}, HiRA(4)),
        ({"hira_dropout": 0.1}, None),
        ({"init_weights": "gaussian"}, None),
    ],
    ids=str,
)
def test_hira_configuration_of_peft_is_translated_or_refused(fields, spec):
    config = peft.HiraConfig(**fields)
    if spec is None:
        with pytest.raises(ValueError, match=f"{next(iter(fields))}=.* cannot be"):
            resolve_adapter(config)
    else:
        found = resolve_adapter(config)
        assert type(found) is HiRA
        assert found.get_params() == spec.get_params()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.LoraConfig(bias="all"), "bias='all'"),
        (peft.LoraConfig(init_lora_weights=False), "init_lora_weights=False"),
        (peft.LoraConfig(init_lora_weights="gaussian"), "init_lora_weights='gaussian'"),
        (peft.LoraConfig(modules_to_save=["pooler"]), r"modules_to_save=\['pooler'\]"),
        (peft.LoraConfig(rank_pattern={"query": 2}), "rank_pattern"),
        (peft.LoraConfig(target_modules=r".*query"), "is a pattern"),
        (peft.LoraConfig(target_modules=["dense"]), "cannot be honoured.*roles"),
        (peft.LoraConfig(target_modules=["word_embeddings"]), "no roles"),
        (
            peft.LoraConfig(target_modules=["query"], layers_to_transform=[1]),
            "layers_to_transform",
        ),
        (
            peft.IA3Config(target_modules=["dense"], feedforward_modules=["dense"]),
            "feedforward_modules",
        ),
        (peft.LoKrConfig(), "peft_type='LOKR'"),
        (peft.PromptTuningConfig(num_virtual_tokens=2), "peft_type='PROMPT_TUNING'"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_configuration_that_cannot_be_honoured_names_the_field(config, message):
    with pytest.raises(ValueError, match=message):
        resolve_adapter(config)


def test_configuration_as_adapter_equals_its_translation(plain_folder, tmp_path):
    encoder, config = str(plain_folder()), peft.LoraConfig(r=2, lora_alpha=4)
    clf = fitted(encoder, config)
    np.testing.assert_array_equal(
        clf.transform(TEXTS), fitted(encoder, LoRA(2)).transform(TEXTS)
    )
    assert clone(clf).adapter.r == 2
    clf.save_pretrained(tmp_path / "model")
    other = AdapterClassifier.from_pretrained(tmp_path / "model")
    assert other.adapter.get_params() == LoRA(2, alpha=4).get_params()
    np.testing.assert_array_equal(other.predict(TEXTS), clf.predict(TEXTS))
