"""Role tables point to the layers they name, in every known family."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from skpeft import AdapterClassifier
from skpeft._network import AdapterNetwork
from skpeft._sites import find_site
from skpeft.adapters import ROLES, LadderSide, LoRA
from skpeft.adapters.lora import LoRALinear
from skpeft.encoders import FAMILIES, ArrayEncoder, TextEncoder, TinyTextEncoder
from tests import models

LABELS = [0, 1, 0, 1, 0, 1, 0]
CPU = torch.device("cpu")
# A family that has no role table; its layers have the names of BERT's.
UNKNOWN = "megatron-bert"
TABLE = FAMILIES["bert"]


def linear_roles(table):
    return [r for r in table if r != "blocks" and not r.endswith("_norm")]


def load(encoder, n_features=1):
    return encoder.load(n_features=n_features, device=CPU, dtype=torch.float32)


def blocks_of(backbone):
    root = backbone.module.get_submodule(backbone.root)
    return list(root.get_submodule(backbone.role_table["blocks"]))


@pytest.fixture(params=[*FAMILIES, "tiny", "array"])
def backbone(request, plain_folder):
    """Loaded backbone with 3 blocks."""
    if request.param == "tiny":
        return load(TinyTextEncoder(n_layers=3, hidden_size=models.WIDTH))
    if request.param == "array":
        return load(ArrayEncoder(n_layers=3, hidden_size=models.WIDTH), 2)
    return load(TextEncoder(str(plain_folder(request.param))))


def batch_of(backbone):
    is_text = backbone.family != "tiny" or hasattr(backbone, "max_length")
    samples = models.TEXTS[:3] if is_text else np.eye(3, 2, dtype=np.float32)
    return backbone.collate(backbone.prepare(samples))


def test_roles_are_linear_layers_of_the_right_shape(backbone):
    blocks = blocks_of(backbone)
    assert len(blocks) == (1 if backbone.n_calls else 3)
    width = models.WIDTH
    roles = linear_roles(backbone.role_table)
    for block in blocks:
        sites = {role: find_site(block, role, backbone.role_table) for role in roles}
        assert len({id(site) for site in sites.values()}) == len(roles)
        shapes = {r: (site.in_features, site.out_features) for r, site in sites.items()}
        grouped = width // 2 if backbone.family in models.DECODERS else width
        if "query_key_value" in shapes:
            assert shapes["query_key_value"] == (width, 3 * width)
        else:
            assert shapes["query"] == (width, width)
            assert shapes["key"] == shapes["value"] == (width, grouped)
        assert shapes["attention_output"] == (width, width)
        inner, out = shapes["ffn_out"]
        assert inner > width
        assert out == width
        is_gated = backbone.family == "modernbert"  # gate and values in one layer
        assert shapes["ffn_in"] == (width, inner * (2 if is_gated else 1))
        assert shapes.get("ffn_gate", (width, inner)) == (width, inner)


def test_linear_layers_of_a_block_all_have_a_role(backbone):
    for block in blocks_of(backbone):
        found = {n for n, part in block.named_modules() if isinstance(part, nn.Linear)}
        roles = linear_roles(backbone.role_table)
        assert found == {backbone.role_table[role] for role in roles}


def test_normalisations_of_a_block_all_have_a_role(backbone):
    # Those of single heads, which some decoders have, are no place for adapters.
    roles = [role for role in backbone.role_table if role.endswith("_norm")]
    assert len(roles) >= 2
    paths = {backbone.role_table[role] for role in roles}
    for block in blocks_of(backbone):
        found = {
            name
            for name, part in block.named_modules()
            if getattr(part, "weight", None) is not None
            and part.weight.ndim == 1
            and len(part.weight) == models.WIDTH
        }
        left_out = {p for p in paths if isinstance(block.get_submodule(p), nn.Identity)}
        assert found == paths - left_out


def test_roles_run_in_the_order_in_which_data_passes(backbone):
    seen = []
    roles = linear_roles(backbone.role_table)
    handles = [
        find_site(block, role, backbone.role_table).register_forward_hook(
            lambda *_, place=(i, role): seen.append(place)
        )
        for i, block in enumerate(blocks_of(backbone))
        for role in roles
    ]
    with torch.no_grad():
        backbone.module(batch_of(backbone))
    for handle in handles:
        handle.remove()
    blocks = [block for block, _ in seen]
    assert blocks == sorted(blocks)
    assert set(blocks) == set(range(len(blocks_of(backbone))))
    for i in set(blocks):
        once = list(dict.fromkeys(role for block, role in seen if block == i))
        attention, rest = once[:-3], once[-3:]
        if "ffn_gate" in roles:
            attention, rest = once[:-4], once[-4:]
            assert rest == ["attention_output", "ffn_gate", "ffn_in", "ffn_out"]
        else:
            assert rest == ["attention_output", "ffn_in", "ffn_out"]
        assert set(attention) in ({"query", "key", "value"}, {"query_key_value"})


def test_query_and_key_decide_where_to_look_and_value_what_is_seen(backbone):
    # With queries (or keys) of zero all tokens are looked at alike: the values are
    # averaged, so what goes into the output projection is the same at every token that
    # sees the same others. With values of zero nothing is seen. This tells the three
    # apart, but for the order of query and key, which attention treats alike.
    network_module = backbone.share_module()
    root = network_module.get_submodule(backbone.root)
    block = root.get_submodule(backbone.role_table["blocks"])[0]
    batch = {name: t[:1] for name, t in batch_of(backbone).items()}
    seen = {}

    def look(module, arguments):
        seen["mixed"] = arguments[0].detach()

    find_site(block, "attention_output", backbone.role_table).register_forward_pre_hook(
        look
    )
    fused = "query_key_value" in backbone.role_table

    def mixed_without(part):
        role = "query_key_value" if fused else part

        def blank(module, arguments, output):
            if not fused:
                return torch.zeros_like(output)
            parts = dict(
                zip(("query", "key", "value"), output.chunk(3, -1), strict=True)
            )
            parts[part] = torch.zeros_like(parts[part])
            return torch.cat(list(parts.values()), dim=-1)

        site = find_site(block, role, backbone.role_table)
        handle = site.register_forward_hook(blank)
        with torch.no_grad():
            network_module(batch)
        handle.remove()
        return seen["mixed"][0]

    # Positions count without a query in some, others see only what is before or near.
    all_alike = backbone.family not in {"mpnet", "deberta-v2", *models.DECODERS}
    for part in ("query", "key"):
        mixed = mixed_without(part)
        assert mixed.abs().max() > 1e-3
        if all_alike:
            torch.testing.assert_close(mixed, mixed[:1].expand_as(mixed))
    assert not mixed_without("value").any()


def test_unknown_family_is_refused_with_all_that_helps(plain_folder):
    folder = str(plain_folder(UNKNOWN))
    with pytest.raises(ValueError, match=f"'{UNKNOWN}' is not known") as caught:
        AdapterClassifier(folder).fit(models.TEXTS, LABELS)
    message = str(caught.value)
    for family in FAMILIES:
        assert f"'{family}'" in message
    assert "role_table=" in message
    assert "encoder.layer.0.attention.self.query" in message
    for role in ROLES:
        assert f"'{role}'" in message


def test_unknown_family_works_without_adapter_and_in_full(plain_folder):
    folder = str(plain_folder(UNKNOWN))
    for adapter in (None, "full"):
        clf = AdapterClassifier(folder, adapter=adapter, max_epochs=1, random_state=0)
        assert len(clf.fit(models.TEXTS, LABELS).predict(models.TEXTS)) == len(LABELS)


def test_role_table_given_makes_an_unknown_family_work(plain_folder):
    encoder = TextEncoder(str(plain_folder(UNKNOWN)), role_table=TABLE)
    adapter = LoRA(2, roles=ROLES)
    clf = AdapterClassifier(encoder, adapter=adapter, layers=None, random_state=0)
    clf.fit(models.TEXTS, LABELS)
    assert clf.n_trainable_params_ == 3 * 2 * (4 * 128 + 2 * 160)
    module = clf._network.live.module
    layer = module.get_submodule("transformer.encoder.layer.2.attention.self.value")
    assert isinstance(layer, LoRALinear)
    assert layer.lora_B.any()


def test_role_table_given_overrides_that_of_a_known_family(plain_folder):
    table = {"blocks": "encoder.layer", "query": "attention.self.key"}
    encoder = TextEncoder(str(plain_folder("bert")), role_table=table)
    clf = AdapterClassifier(encoder, adapter=LoRA(roles=["query"]), max_epochs=1)
    clf.fit(models.TEXTS, LABELS)
    assert all("self.key.lora" in name for name in clf._network.live.trainable())
    with pytest.raises(ValueError, match=r"'value' is not a known role.*\['query'\]"):
        clf.set_params(adapter="lora").fit(models.TEXTS, LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "attention.self.q"}, r"'attention.self.q'.*nothing is there"),
        ({"query": "attention.self"}, r"a Bert\w*SelfAttention is there.*self\.query"),
    ],
    ids=["no layer", "no linear layer"],
)
def test_role_table_that_points_elsewhere_is_refused(plain_folder, change, message):
    table = {**FAMILIES["bert"], **change}
    encoder = TextEncoder(str(plain_folder("bert")), role_table=table)
    with pytest.raises(ValueError, match=message):
        AdapterClassifier(encoder).fit(models.TEXTS, LABELS)


def test_role_table_without_blocks_is_refused(plain_folder):
    encoder = TextEncoder(str(plain_folder("bert")), role_table={"query": "a"})
    with pytest.raises(ValueError, match="under 'blocks' the path"):
        AdapterClassifier(encoder).fit(models.TEXTS, LABELS)


def test_role_table_with_wrong_path_of_blocks_is_refused(plain_folder):
    table = {**FAMILIES["bert"], "blocks": "encoder.layers"}
    encoder = TextEncoder(str(plain_folder("bert")), role_table=table)
    with pytest.raises(ValueError, match=r"'encoder\.layers'.*'encoder\.layer'"):
        AdapterClassifier(encoder).fit(models.TEXTS, LABELS)


class Rows(nn.Module):
    """A user's own pretrained model of numeric rows."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
            for _ in range(2)
        )

    def forward(self, x):
        for part in self.body:
            x = x + part["down"](part["up"](x).tanh())
        return x


@pytest.mark.parametrize(
    ("module", "table"),
    [
        (Rows(), {"blocks": "body", "ffn_in": "up", "ffn_out": "down"}),
        (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
            {"blocks": "", "ffn_in": "0", "ffn_out": "2"},
        ),
    ],
    ids=["blocks", "one block"],
)
def test_role_table_of_a_given_module_of_rows_works(module, table):
    X = np.random.RandomState(0).randn(30, 4)
    y = X[:, 0] * X[:, 1] > 0
    bits = [tensor.clone() for tensor in module.state_dict().values()]
    encoder = ArrayEncoder(module, role_table=table)
    adapter = LoRA(2, roles=["ffn_in", "ffn_out"])
    clf = AdapterClassifier(encoder, adapter=adapter, random_state=0).fit(X, y)
    n_blocks = 1 if table["blocks"] == "" else 2
    assert clf.n_trainable_params_ == n_blocks * 2 * (4 + 8 + 8 + 4)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert all(map(torch.equal, module.state_dict().values(), bits))
    assert all(tensor.requires_grad for tensor in module.parameters())


def test_given_module_of_rows_without_table_is_refused_for_adapters():
    X = np.random.RandomState(0).randn(6, 4)
    with pytest.raises(ValueError, match=r"'Rows' is not known.*body\.0\.up"):
        AdapterClassifier(ArrayEncoder(Rows())).fit(X, [0, 1] * 3)


def test_block_that_is_the_module_itself_takes_layers_of_one():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    network = AdapterNetwork(
        ArrayEncoder(module, role_table={"blocks": "", "query": "0"}),
        LoRA(1, roles=["query"]),
        1,
        n_features=4,
        device="cpu",
        precision="float32",
        seed=0,
    )
    assert sum(t.numel() for t in network.live.trainable().values()) == 8


def test_albert_whose_groups_hold_several_layers_is_not_taken_as_known(tmp_path):
    config = models.config_of("albert")
    config.inner_group_num = 2
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    models.tokenizer_of("albert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'albert' is not known"):
        AdapterClassifier(str(tmp_path)).fit(models.TEXTS, LABELS)


@pytest.mark.parametrize(("n_layers", "n_groups"), [(4, 2), (4, 3)])
def test_albert_of_several_groups_trains_one_adapter_a_group(
    tmp_path, n_layers, n_groups
):
    config = models.config_of("albert")
    config.num_hidden_layers, config.num_hidden_groups = n_layers, n_groups
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    models.tokenizer_of("albert").save_pretrained(tmp_path)
    for adapter, n_tensors in ((LoRA(2), 4), (LadderSide(4), 4)):
        clf = AdapterClassifier(str(tmp_path), adapter=adapter, random_state=0)
        clf.fit(models.TEXTS, LABELS)
        network = clf._network
        assert len(network.live.trainable()) == n_groups * n_tensors
        found = clf.transform(models.TEXTS)
        network.live.resumes, network.live._halves = False, None
        np.testing.assert_allclose(clf.transform(models.TEXTS), found, atol=1e-5)
