"""The commands at the shell: CSV in, CSV out, one line for what is wrong."""

import csv
import gzip
import io
import subprocess
import sys

import numpy as np
import pytest

import skpeft.__main__
from skpeft import AdapterClassifier, AdapterRegressor, __version__, _training
from skpeft.__main__ import _parser, main

WORDS = {"air": ["plane", "flight", "wing"], "sea": ["ship", "port", "sail"]}
ROWS = [
    (f"{first} {second} {end}", label, len(first), f"{first}, quoted")
    for label, words in WORDS.items()
    for first in words
    for second in words
    for end in ("None", "nan", "£5")
]
COLUMNS = ("body", "team", "size", "other")
BODIES, TEAMS, SIZES, OTHERS = map(list, zip(*ROWS, strict=True))
TINY = ("--encoder", "tiny")


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "mails.csv", ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a classifier that was fitted on all rows."""
    folder = tmp_path_factory.mktemp("shell")
    table = write(folder / "mails.csv", ROWS)
    goal = ("--text", "body", "--label", "team", "--test-share", 0)
    assert main(words("fit", table, *goal, "-o", folder / "model", *TINY)) == 0
    return folder / "model"


def write(path, rows, columns=COLUMNS, encoding="utf-8-sig"):
    with open(path, "w", newline="", encoding=encoding) as opened:
        csv.writer(opened).writerows([columns, *rows])
    return path


def words(*arguments):
    return [str(argument) for argument in arguments]


def run(capsys, *arguments):
    """Rows on stdout, and stderr, of a command that succeeds."""
    capsys.readouterr()
    code = main(words(*arguments))
    out, err = capsys.readouterr()
    assert code == 0, err
    return list(csv.reader(io.StringIO(out))), err


def refused(capsys, *arguments):
    """The one line that says what is wrong."""
    capsys.readouterr()
    assert main(words(*arguments)) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == ""
    assert last.startswith("error: ")
    assert "Traceback" not in err
    return last


def test_fit_scores_held_out_rows_and_saves_the_model(file, tmp_path, capsys):
    folder = tmp_path / "model"
    goal = ("--text", "body", "--label", "team")
    own = ("-o", folder, "--rank", 3, *TINY)
    (head, *facts), err = run(capsys, "fit", file, *goal, *own)
    assert head == ["name", "value"]
    facts = dict(facts)
    assert facts["rows"] == "43"  # 54 rows less a fifth
    assert facts["held_out_rows"] == "11"
    assert 0 <= float(facts["accuracy"]) <= 1
    frozen = ("-o", tmp_path / "frozen", "--adapter", "none", *TINY)
    (_, *alone), _ = run(capsys, "fit", file, *goal, *frozen)
    assert facts["accuracy_linear_probe"] == dict(alone)["accuracy"]
    assert "accuracy_linear_probe" not in dict(alone)
    assert "parameters trained" in err
    assert f"saved in {folder}" in err
    loaded = AdapterClassifier.from_pretrained(folder)
    assert set(loaded.classes_) == {"air", "sea"}
    assert (loaded.verbose, loaded.rank) == (0, 3)
    own = ("-o", tmp_path / "none", "--rank", 3, "--adapter", "none", *TINY)
    assert "rank=3" in refused(capsys, "fit", file, *goal, *own)


def test_predict_writes_the_table_with_predictions_and_probabilities(
    model, file, capsys
):
    (head, *rows), err = run(
        capsys, "predict", model, file, "--text", "body", "--proba"
    )
    assert err == ""
    more = ["prediction", "probability of air", "probability of sea"]
    assert head == [*COLUMNS, *more]
    assert [tuple(row[:4]) for row in rows] == [tuple(map(str, row)) for row in ROWS]
    clf = AdapterClassifier("tiny", random_state=0).fit(BODIES, TEAMS)
    assert [row[4] for row in rows] == clf.predict(BODIES).tolist()
    shown = np.array([row[5:] for row in rows], dtype=float)
    np.testing.assert_allclose(shown, clf.predict_proba(BODIES), atol=1e-5)


@pytest.mark.parametrize("proba", [[], ["--proba"]])
def test_rows_without_a_text_are_predicted_to_be_nothing(
    proba, model, tmp_path, capsys
):
    table = "n,body\n1,plane lands\n2,  \n3,\n4,ship sails\n"
    (tmp_path / "blank.csv").write_text(table, encoding="utf-8")
    (_, *rows), err = run(
        capsys, "predict", model, tmp_path / "blank.csv", "--text", "body", *proba
    )
    assert err == "rows without a prediction for lack of a text: 2\n"
    assert [row[0] for row in rows] == list("1234")
    given = [all(row[2:]) for row in rows]
    assert given == [True, False, False, True]
    assert not any(rows[1][2:] + rows[2][2:])
    (tmp_path / "blank.csv").write_text("n,body\n1,\n", encoding="utf-8")
    told = refused(capsys, "predict", model, tmp_path / "blank.csv", "--text", "body")
    assert "has no row with a text" in told


def test_pairs_and_numbers_are_fitted_and_predicted(file, tmp_path, capsys):
    texts, folder = ("--text", "body", "--text", "other"), tmp_path / "model"
    goal = ("--target", "size", "--adapter", "none", "--test-share", "0.25")
    (_, *facts), _ = run(capsys, "fit", file, *texts, *goal, "-o", folder, *TINY)
    assert [name for name, _ in facts] == ["rows", "held_out_rows", "r2"]
    (_, *rows), _ = run(capsys, "predict", folder, file, *texts)
    loaded = AdapterRegressor.from_pretrained(folder)
    expected = loaded.predict(list(zip(BODIES, OTHERS, strict=True)))
    np.testing.assert_allclose([float(row[-1]) for row in rows], expected, rtol=1e-6)
    assert "gives no probabilities" in refused(
        capsys, "predict", folder, file, *texts, "--proba"
    )


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_several_labels_or_numbers_get_a_column_each(kind, file, tmp_path, capsys):
    y = np.array([[team == "air", "None" in body] for body, team, *_ in ROWS]) + 0
    model = kind("tiny", adapter=None, random_state=0).fit(BODIES, y)
    model.save_pretrained(tmp_path / "model")
    (columns, *rows), _ = run(
        capsys, "predict", tmp_path / "model", file, "--text", "body"
    )
    assert columns == [*COLUMNS, "prediction of 0", "prediction of 1"]
    found = [[float(value) for value in row[-2:]] for row in rows]
    np.testing.assert_allclose(found, model.predict(BODIES), rtol=1e-6)


@pytest.mark.parametrize(
    ("goal", "kind", "shown"),
    [
        ("--label", AdapterClassifier, ["air", "odd"]),
        ("--target", AdapterRegressor, [0, 1]),
    ],
)
def test_several_columns_are_learned_as_in_python(goal, kind, shown, tmp_path, capsys):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    y = pd.DataFrame({"air": [team == "air" for team in TEAMS], "odd": [0, 1] * 27}) + 0
    rows = list(zip(BODIES, y["air"], y["odd"], strict=True))
    table = write(tmp_path / "a.csv", rows, ("body", "air", "odd"))
    data, folder = ("--text", "body", goal, "air", goal, "odd"), tmp_path / "model"
    way = ("--adapter", "none", *TINY)
    (_, *facts), _ = run(capsys, "fit", table, *data, *way, "-o", folder)
    assert [name for name, _ in facts][:2] == ["rows", "held_out_rows"]
    run(capsys, "fit", table, *data, *way, "-o", tmp_path / "all", "--test-share", 0)
    (columns, *found), _ = run(
        capsys, "predict", tmp_path / "all", table, "--text", "body"
    )
    assert columns[3:] == [f"prediction of {name}" for name in shown]
    expected = kind("tiny", adapter=None, random_state=0).fit(BODIES, y).predict(BODIES)
    found = [[float(value) for value in row[3:]] for row in found]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    (_, row), _ = run(capsys, "compare", table, *data, "--cv", 2, *way)
    assert row[0] == "linear probe"


def test_several_labels_that_are_not_0_and_1_are_refused(file, tmp_path, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    goal = ("--text", "body", "-o", tmp_path / "new", *TINY)
    message = refused(capsys, "fit", file, *goal, "--label", "size", "--label", "team")
    assert (
        "the column 'size' holds '5'; where --label is given several times" in message
    )


def test_several_labels_may_be_written_as_pandas_writes_booleans(tmp_path, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    answers = []
    kinds = {"a": ("False", "True"), "b": ("0", "1"), "c": ("0.00", "1.00")}
    for name, (no, yes) in kinds.items():
        marks = {"air": (yes, no), "sea": (no, yes)}
        rows = [(text, *marks[team]) for text, team, *_ in ROWS]
        file = write(tmp_path / f"{name}.csv", rows, ("body", "air", "sea"))
        goal = ("--text", "body", "--label", "air", "--label", "sea", *TINY)
        answers.append(run(capsys, "fit", file, *goal, "-o", tmp_path / name)[0])
    assert answers[0] == answers[1] == answers[2]


def test_compressed_file_is_read_and_blanks_in_names_are_shown(file, tmp_path, capsys):
    packed = tmp_path / "mails.csv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    goal = ("--text", "body", "--adapter", "none", *TINY)
    plain, _ = run(capsys, "fit", file, *goal, "--label", "team", "-o", tmp_path / "a")
    found, _ = run(
        capsys, "fit", packed, *goal, "--label", "team", "-o", tmp_path / "b"
    )
    assert found == plain
    for content in (packed.read_bytes()[:-20], file.read_bytes()):
        packed.write_bytes(content)
        message = refused(capsys, "fit", packed, *goal, "--label", "team", "-o", file)
        assert f"{packed} is no whole gzip file" in message
    blank = write(tmp_path / "blank.csv", [("ship", "sea")], ("body", " team"))
    message = refused(
        capsys, "fit", blank, *goal, "--label", "team", "-o", tmp_path / "c"
    )
    assert "are: body, ' team'" in message


def test_compare_writes_one_row_a_strategy(file, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    goal = ("--text", "body", "--label", "team", "--cv", 2)
    ways = ("--adapter", "none", "--adapter", "bitfit")
    (head, *rows), err = run(capsys, "compare", file, *goal, *ways, *TINY)
    assert head[:3] == ["strategy", "mean_test_score", "std_test_score"]
    assert [row[0] for row in rows] == ["linear probe", "bitfit"]
    assert "4/4" in err


def test_info_tells_what_was_fitted(model, capsys):
    (_, *facts), _ = run(capsys, "info", model)
    facts, clf = dict(facts), AdapterClassifier.from_pretrained(model)
    assert facts["estimator"] == "AdapterClassifier"
    assert facts["encoder"] == "tiny"
    assert facts["trained_parameters"] == str(clf.n_trainable_params_)
    assert (facts["class_0"], facts["class_1"]) == ("air", "sea")


def test_rows_without_text_or_label_are_left_out_of_a_fit_and_told(tmp_path, capsys):
    file = write(
        tmp_path / "mails.csv", [*ROWS, ("", "air", 1, ""), ("ship", " ", 1, "")]
    )
    goal = ("--text", "body", "--label", "team", "--adapter", "none", "--test-share", 0)
    (_, *facts), err = run(capsys, "fit", file, *goal, "-o", tmp_path / "m", *TINY)
    assert dict(facts) == {"rows": "54"}
    assert "rows left out for lack of a text or a target: 2" in err


def test_repeated_texts_are_told(file, tmp_path, capsys):
    goal = ("--text", "body", "--label", "team", "--adapter", "none", *TINY)
    _, err = run(capsys, "fit", file, *goal, "-o", tmp_path / "a")
    assert "rows that repeat" not in err
    again = write(tmp_path / "again.csv", [*ROWS, *ROWS[:3]])
    _, err = run(capsys, "fit", again, *goal, "-o", tmp_path / "b")
    assert "rows that repeat the text of another: 3;" in err


def test_wrong_content_is_one_line_and_code_1(file, model, tmp_path, capsys):
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    texts = ("--text", "body")
    missing = tmp_path / "no.csv"
    message = refused(capsys, "fit", missing, *goal)
    assert message == f"error: there is no file {missing}"
    message = refused(capsys, "predict", model, file, "--text", "boby")
    assert "has no column named 'boby', one is needed" in message
    assert "are: body, team, size, other" in message
    message = refused(capsys, "fit", file, *texts, "--target", "team", *goal[4:])
    assert (
        "'team' holds 'air', which is no number (decimals have a point); for one column of "
        "classes use --label, once" in message
    )
    message = refused(capsys, "fit", file, *goal, "--adapter", "lroa")
    assert "Did you mean 'lora'" in message
    assert "is no folder" in refused(capsys, "predict", tmp_path / "no", file, *texts)
    assert "is no folder" in refused(capsys, "info", tmp_path / "no")
    three = ("--text", "body", "--text", "other", "--text", "size")
    assert "given 3 times" in refused(capsys, "predict", model, file, *three)
    again = write(tmp_path / "b.csv", [("x", "y")], ("body", "prediction"))
    assert "['prediction'] already" in refused(capsys, "predict", model, again, *texts)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"body,team\n", "holds no rows"),
        (b"body,team\n,x\n", "has no row with a text and a target"),
        (
            b"body,team\na,b,c\n",
            "line 2: 3 fields, but 2 column names; put fields that",
        ),
        (b"body,team\na,b\nc\n", "line 3: 1 fields, but 2 column names; a blank field"),
        (b"body,team\n\xa35,money\n", "is not UTF-8"),
        (b"body,body,team\na,b,c\n", "has 2 columns named 'body'"),
        (b"body;team\na, b;c\n", "semicolons between its columns; save it with commas"),
        (b"body;team\na, b;c\n", "mails.csv', sep=';').to_csv('new.csv', index=False)"),
        (b"body\tteam\na, b\tc\n", "tabs between its columns; save it with commas"),
        (b"body,team\na,x\nb,x\nc,y\n", "1 of 2 classes in the column 'team'"),
        (b"body,team\na,1\nb,2\nc,3\nd,4", "each ('1', '2', '3', ...)"),
        (b"body,team\na,1\nb,2\nc,3\nd,4", "Are --text and --label swapped?"),
        (
            b"body,team\na,x\nb,x\nc,y\nd,y\n",
            "2 classes need as many held-out rows, and --test-share 0.2 of 4 rows does "
            "not give them. Give --test-share 0.5, or 0 to fit on all rows.",
        ),
    ],
)
def test_unusable_file_is_one_line_and_code_1(content, message, tmp_path, capsys):
    file = tmp_path / "mails.csv"
    file.write_bytes(content)
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    assert message in refused(capsys, "fit", file, *goal)


def test_share_that_is_named_holds_out_enough(tmp_path, capsys):
    file = tmp_path / "mails.csv"
    rows = [f"mail {i},team {i % 7}" for i in range(17)]
    file.write_text("\n".join(["body,team", *rows]))
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    share = (
        refused(capsys, "fit", file, *goal).split("Give --test-share ")[1].split(",")[0]
    )
    assert main(["fit", str(file), *map(str, goal), "--test-share", share]) == 0


def test_wrong_adapter_is_said_before_too_few_rows(tmp_path, capsys):
    file = tmp_path / "mails.csv"
    file.write_text("body,team\na,x\nb,x\nc,y\nd,y\n")
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    message = refused(capsys, "fit", file, *goal, "--adapter", "lorra")
    assert "Did you mean 'lora'?" in message


def test_too_many_folds_are_named_as_the_option(tmp_path, capsys):
    file = tmp_path / "mails.csv"
    file.write_text("body,team\na,x\nb,x\nc,y\nd,y\n")
    goal = ("--text", "body", "--label", "team", "--adapter", "none", *TINY)
    message = refused(capsys, "compare", file, *goal)
    assert "--cv 5" in message
    assert "Give fewer folds" in message


def test_classes_of_one_row_cannot_be_compared(tmp_path, capsys):
    pytest.importorskip("pandas", reason="pandas is not installed")
    way = ("--cv", 2, "--adapter", "none", *TINY)
    goal = ("--text", "body", "--label", "team", *way)
    rows = [(f"mail {i}", i) for i in range(8)]
    own = write(tmp_path / "own.csv", rows, ("body", "team"))
    message = refused(capsys, "compare", own, *goal)
    assert "8 of 8 classes in the column 'team' have one row each" in message
    assert message.endswith("Drop or join them. Are --text and --label swapped?")
    rare = write(tmp_path / "rare.csv", [*ROWS, ("lone", "alone", 1, "")])
    (_, row), err = run(capsys, "compare", rare, *goal)
    assert row[0] == "linear probe"
    assert "has only 1 members" in err


@pytest.mark.parametrize("share", ["0.97", "0.999"])
def test_share_that_leaves_too_little_is_not_called_too_small(
    share, file, tmp_path, capsys
):
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    message = refused(capsys, "fit", file, *goal, "--test-share", share)
    assert message.startswith(f"error: --test-share {share}: ")
    assert "train" in message
    assert message.endswith("--test-share 0 fits on all rows.")


def test_largest_seed_fits(file, tmp_path, capsys):
    goal = ("--text", "body", "--label", "team", "--adapter", "none", *TINY)
    run(capsys, "fit", file, *goal, "-o", tmp_path / "m", "--seed", 2**32 - 1)


def test_limit_of_a_field_is_left_as_found(file, tmp_path, capsys):
    former = csv.field_size_limit(1000)
    try:
        goal = ("--label", "team", "-o", tmp_path / "new", *TINY)
        long = write(tmp_path / "long.csv", [*ROWS, ("x", "air", 1, "z" * 2000)])
        for table, reason in ((long, "named 'x'"), (tmp_path / "no.csv", "no file")):
            assert reason in refused(capsys, "fit", table, "--text", "x", *goal)
            assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(former)


def test_column_to_predict_is_named_once(file, tmp_path, capsys):
    goal = ("--label", "team", "--label", "team", "-o", tmp_path / "new", *TINY)
    assert "name each of them once" in refused(
        capsys, "fit", file, "--text", "body", *goal
    )


def test_folder_with_other_files_is_refused_before_the_fit(file, tmp_path, capsys):
    goal = ("--text", "body", "--label", "team", "-o", tmp_path, *TINY)
    refused(capsys, "fit", file, *goal)
    assert file.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["fit", "a.csv"], "--text"),
        (["fit", "a.csv", "--text", "a", "-o", "m"], "--label --target is required"),
        (
            ["fit", "a.csv", "--text=a", "--label=b", "--target=c", "-o=m"],
            "not allowed",
        ),
        (["fit", "a.csv", "--test-share", "1"], "at least 0 and below 1"),
        (
            ["fit", "a.csv", "--test-share", "abc"],
            "'abc' was given; expected is a number of at least 0 and below 1",
        ),
        (
            ["fit", "a.csv", "--seed", "-1"],
            "--seed: '-1' was given; expected is a whole number from 0 to 2**32 - 1",
        ),
        (["compare", "a.csv", "--seed", str(2**32)], "--seed: '4294967296' was given"),
        (["fit", "a.csv", "--seed", "1.5"], "--seed: '1.5' was given"),
        (
            ["compare", "a.csv", "--cv", "1"],
            "--cv: '1' was given; expected is a whole number of at least 2",
        ),
        (["compare", "a.csv", "--cv", "two"], "--cv: 'two' was given"),
        (["fit", "a.csv", "--adapter", ""], 'the name of an adapter, or "none"'),
        (["compare", "a.csv", "--adapter", " "], 'the name of an adapter, or "none"'),
        (["guess"], "invalid choice"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--help" in line


def test_warning_is_one_line_on_stderr(model, tmp_path, capsys):
    table = write(tmp_path / "long.csv", [("plane " * 100,)], ["body"])
    rows, err = run(capsys, "predict", model, table, "--text", "body")
    assert len(rows) == 2
    (line,) = err.splitlines()
    assert line.startswith("warning: 1 of 1 texts (100%) are longer than max_length=64")


def test_interrupt_is_one_line_and_code_130(file, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt  # as Ctrl-C does

    monkeypatch.setattr(_training, "update", interrupted)
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    assert main(words("fit", file, *goal)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("skpeft._fitting.run", "Give a smaller batch_size"),
        ("skpeft.classifier.AdapterClassifier.fit", "error: MemoryError"),
    ],
)
def test_memory_that_runs_out_is_one_line_and_code_1(
    place, message, file, tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(place, fail)
    goal = ("--text", "body", "--label", "team", "-o", tmp_path / "new", *TINY)
    assert message in refused(capsys, "fit", file, *goal)
    assert not (tmp_path / "new").exists()


def test_reader_that_has_seen_enough_is_no_error(model, tmp_path):
    # More than a pipe holds, so that the writer is still at it when the reader leaves.
    table = write(tmp_path / "many.csv", [*ROWS, ("x", "y", 1, "z" * 200_000)])
    command = [sys.executable, "-m", "skpeft", *words("predict", model, table)]
    with subprocess.Popen(
        [*command, "--text", "body"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"body,team")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help"])
    assert caught.value.code == 0
    assert "python -m skpeft fit mails.csv --text body" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"skpeft {__version__}\n"


def test_each_option_of_each_command_has_a_help_text():
    subparsers = next(a for a in _parser()._actions if isinstance(a.choices, dict))
    assert set(subparsers.choices) == {"fit", "predict", "compare", "info"}
    for name, parser in subparsers.choices.items():
        bare = [action.dest for action in parser._actions if not action.help]
        assert bare == [], name


def test_exit_codes_are_documented():
    for text in (skpeft.__main__.__doc__, main.__doc__):
        assert "130 after Ctrl-C" in text


def test_commands_run_from_the_shell(model, file, tmp_path):
    command = [sys.executable, "-m", "skpeft", *words("predict", model, file)]
    done = subprocess.run(
        [*command, "--text", "body"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "body,team,size,other,prediction"
    assert len(done.stdout.splitlines()) == 1 + len(ROWS)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "team", "--label", "team"], "would read the answer"),
        (["--text", "body", "--text", "body", "--label", "team"], "'body' twice"),
    ],
    ids=["answer", "twice"],
)
def test_column_of_two_roles_is_refused(tmp_path, capsys, options, message):
    table = write(tmp_path / "t.csv", [("a", "x"), ("b", "y")] * 3, ["body", "team"])
    out = tmp_path / "model"
    assert message in refused(capsys, "fit", table, *options, "-o", out)
    assert not out.exists()


def test_folder_in_place_of_a_file_is_named(tmp_path, capsys):
    message = refused(capsys, "compare", tmp_path, "--text", "a", "--label", "b")
    assert f"{tmp_path} is a folder; a CSV file is needed" in message
