"""What is imported when, and which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skpeft

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "huggingface_hub",
    "polars",
    "peft",
    "safetensors",
    "skops",
    "tqdm",
)
# scikit-learn imports pandas by itself where that is installed.
WITH_SKLEARN = ("sklearn", "pandas", "scipy", "joblib")
ROOT = Path(skpeft.__file__).parent
# From the bottom to the top; of two names in one set neither sees the other.
LAYERS = [
    {"_validation", "_files", "_cache", "_callbacks"},
    {"_cloning", "_device"},
    {"objectives", "heads"},
    {"encoders"},
    {"adapters"},  # of encoders, only the names of layers: PEFT speaks in these
    {"_data", "_prefix"},
    {"_replays", "_sites"},
    {"_live"},
    {"_network"},
    {"_training", "_export", "_shared"},
    {"_shrinkage"},
    {"_planning"},
    {"_fitting"},
    {"_recipe"},
    {"_card"},
    {"_folder"},
    {"_base"},
    {"bank", "classifier", "displays", "regressor", "scores", "testing"},
    {"comparison", "search"},
    {"__main__"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def loaded_after(code):
    """Names in `sys.modules` of a new process after some code."""
    code = f"{code}\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import skpeft; dir(skpeft)", (*HEAVY, *WITH_SKLEARN)),
        (
            "from skpeft import AdapterClassifier, AdapterRegressor, AdapterScores\n"
            "clf = AdapterClassifier(); repr(clf); clf.get_params()\n"
            "AdapterScores(AdapterRegressor(rank=2))",
            HEAVY,
        ),
        (
            "from sklearn.base import clone; from skpeft import AdapterClassifier\n"
            "clone(AdapterClassifier(adapter='lora').set_params(rank=4))",
            HEAVY,
        ),
    ],
    ids=["import", "construct", "clone"],
)
def test_import_is_light(code, absent):
    assert not loaded_after(code) & set(absent)


def test_fit_on_numbers_needs_no_language_libraries():
    code = (
        "from skpeft import AdapterClassifier\n"
        "AdapterClassifier('array', max_epochs=1).fit([[0.0], [1.0]], [0, 1])"
    )
    absent = set(HEAVY) - {"torch", "tqdm"}
    assert not loaded_after(code) & absent


def test_public_names_are_there_and_others_are_an_error():
    assert set(dir(skpeft)) == set(skpeft.__all__)
    for name in skpeft.__all__:
        assert getattr(skpeft, name) is getattr(skpeft, name)
    with pytest.raises(AttributeError, match="no attribute 'AdapterTransformer'"):
        skpeft.AdapterTransformer  # noqa: B018


def imports_of(path):
    """Parts of skpeft that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            plain = node.module == "skpeft"
            names = [f"skpeft.{name}" for name in names] if plain else [node.module]
        yield from (n.split(".")[1] for n in names if n.startswith("skpeft."))


def test_modules_import_only_from_below():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    wrong = []
    for path in files:
        place = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in set(imports_of(path)) - {place}:
            if LEVELS[name] >= LEVELS[place]:
                wrong.append(f"{path.relative_to(ROOT)} imports skpeft.{name}")
    assert not wrong
    assert LEVELS.keys() == {
        path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files
    }
