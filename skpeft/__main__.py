"""The library at the shell, for tables in CSV files: ``python -m skpeft --help``.

A thin door to the same classes. Results go to stdout as CSV, all else to stderr. The exit
code is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
"""

import argparse
import csv
import gzip
import os
import sys
import warnings
import zlib
from collections import Counter
from contextlib import suppress

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import train_test_split

import skpeft
from skpeft.classifier import AdapterClassifier
from skpeft.regressor import AdapterRegressor

_EXAMPLES = """examples:
  python -m skpeft fit mails.csv --text body --label team -o model/
  python -m skpeft fit films.csv --text review --target stars -o model/
  python -m skpeft fit mails.csv --text body --label urgent --label legal -o model/
  python -m skpeft fit pairs.csv --text first --text second --label same -o model/
  python -m skpeft predict model/ new.csv --text body > answers.csv
  python -m skpeft compare mails.csv --text body --label team
  python -m skpeft info model/

Files are CSV in UTF-8 with a line of column names. Results come on stdout as CSV.
"""

_HELP = {
    "epilog": _EXAMPLES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}
_ERRORS = (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message):
        """End with code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(arguments=None):
    """Run one command.

    Parameters
    ----------
    arguments : list of str or None, default=None
        The command line after the name of the program; None: that of the process.

    Returns
    -------
    int
        Exit code: 0, 1 after an error, or 130 after Ctrl-C. A wrong command line exits
        with 2.
    """
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args.run(args)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            _note("interrupted")
            return 130
        except _ERRORS as error:
            reason = str(error) or type(error).__name__
            _note(f"error: {' '.join(reason.split())}")
            return 1
    return 0


def _parser():
    parser = Parser(
        prog="python -m skpeft",
        description="Adapt a frozen text encoder to a column of texts.",
        **_HELP,
    )
    parser.add_argument(
        "--version", action="version", version=f"skpeft {skpeft.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, add, text in (
        ("fit", _fit, _add_fit, "fit a model, score it on held-out rows, and save it"),
        (
            "predict",
            _predict,
            _add_predict,
            "write a table with a column of predictions",
        ),
        ("compare", _compare, _add_compare, "cross-validate ways to adapt the encoder"),
        ("info", _info, _add_model, "tell what is known of a saved model"),
    ):
        command = commands.add_parser(name, help=text, description=text, **_HELP)
        command.set_defaults(run=run)
        add(command)
    return parser


def _add_fit(parser):
    _add_data(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="where the model is saved: a new folder, or a saved model to replace",
    )
    parser.add_argument(
        "--adapter",
        type=_adapter,
        default="auto",
        help='default "auto"; "none" for none',
    )
    parser.add_argument(
        "--rank", type=int, help="capacity of the adapter (default: its own)"
    )
    parser.add_argument(
        "--test-share",
        type=_share,
        default=0.2,
        metavar="SHARE",
        help="share of the rows that is held out and scored; 0 fits on all (default 0.2)",
    )


def _add_predict(parser):
    _add_model(parser)
    parser.add_argument("file", help="CSV file")
    _add_text(parser)
    parser.add_argument(
        "--proba", action="store_true", help="add a column of probabilities a class"
    )


def _add_compare(parser):
    _add_data(parser)
    parser.add_argument(
        "--adapter",
        type=_adapter,
        action="append",
        help='may be given several times; "none" is a linear model on the frozen encoder '
        "(default: none, auto, full)",
    )
    parser.add_argument("--cv", type=_folds, default=5, help="folds (default 5)")


def _add_model(parser):
    parser.add_argument("model", help="folder of a saved model")


def _add_text(parser):
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="COLUMN",
        help="column of the texts; given twice, the two are a pair",
    )


def _add_data(parser):
    parser.add_argument("file", help="CSV file")
    _add_text(parser)
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--label",
        action="append",
        metavar="COLUMN",
        help="column of classes to predict; given several times, each holds 0 or 1, or True or "
        "False, and says whether a row has that label",
    )
    goal.add_argument(
        "--target",
        action="append",
        metavar="COLUMN",
        help="column of numbers to predict; may be given several times",
    )
    parser.add_argument(
        "--encoder",
        default=AdapterClassifier().encoder,
        help="name of a model on the Hugging Face hub, or its folder "
        "(default %(default)s)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="default 0")


def _share(text):
    expected = "a number of at least 0 and below 1"
    return _checked(text, float, lambda share: 0 <= share < 1, expected)


def _seed(text):
    expected = "a whole number from 0 to 2**32 - 1"
    return _checked(text, int, lambda seed: 0 <= seed < 2**32, expected)


def _folds(text):
    return _checked(text, int, lambda n: n >= 2, "a whole number of at least 2")


def _checked(text, kind, is_right, expected):
    """A number of the command line."""
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_right(number):
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected is {expected}")
    return number


def _adapter(text):
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f'{text!r} was given; expected is the name of an adapter, or "none"'
        )
    return None if text.lower() == "none" else text


# Commands


def _fit(args):
    from skpeft._folder import check_place
    from skpeft.adapters import resolve_adapter

    X, y = _read_data(args)
    check_place(args.output)
    resolve_adapter(args.adapter, args.rank)  # says what is wrong with them
    rest = None
    if args.test_share:
        strata = _strata(y, args)
        _check_classes(strata or [], args)
        try:
            X, rest, y, y_rest = train_test_split(
                X, y, test_size=args.test_share, random_state=args.seed, stratify=strata
            )
        except ValueError as error:
            raise ValueError(_share_wanted(X, strata, args, error)) from error
    kind = AdapterClassifier if args.label else AdapterRegressor
    model = kind(
        args.encoder,
        adapter=args.adapter,
        rank=args.rank,
        random_state=args.seed,
        verbose=1,
    )
    model = clone(model)  # of clones a fit that is interrupted is not kept
    model.fit(X, y)
    model.set_params(verbose=0).save_pretrained(args.output)
    _note(f"saved in {args.output}")
    facts = {"rows": len(X)}
    if rest is not None:
        score = _score(model)
        facts |= {"held_out_rows": len(rest), score: model.score(rest, y_rest)}
        if model.adapter is not None:
            probe = clone(model).set_params(adapter=None, rank=None).fit(X, y)
            facts[f"{score}_linear_probe"] = probe.score(rest, y_rest)
    _write(["name", "value"], facts.items())


def _share_wanted(X, strata, args, error):
    """What to say where rows cannot be held out as was asked for."""
    n_classes = len(set(strata or []))
    if np.ceil(args.test_share * len(X)) >= n_classes:
        return (
            f"--test-share {args.test_share}: {str(error).rstrip('.')}. "
            "--test-share 0 fits on all rows."
        )
    share = np.ceil(100 * n_classes / len(X)) / 100
    return (
        f"{n_classes} classes need as many held-out rows, and --test-share "
        f"{args.test_share} of {len(X)} rows does not give them. Give --test-share "
        f"{share:g}, or 0 to fit on all rows."
    )


def _strata(y, args):
    """Classes to split by, where each row has one."""
    return y if args.label and len(args.label) == 1 else None


def _check_classes(y, args):
    """Refuse classes of which no row can be held out."""
    counts = Counter(y)
    single = [label for label, count in counts.items() if count == 1]
    if single:
        named = ", ".join(map(repr, single[:3])) + (", ..." if single[3:] else "")
        every = len(single) == len(y)
        swapped = " Are --text and --label swapped?" if every else ""
        whole = "; --test-share 0 fits on all rows" if args.command == "fit" else ""
        raise ValueError(
            f"{len(single)} of {len(counts)} classes in the column {args.label[0]!r} have one "
            f"row each ({named}), so that none can be held out. Drop or join "
            f"them{whole}.{swapped}"
        )


def _predict(args):
    model = _load(args.model)
    columns, rows = _read(args.file)
    read = _filled(rows, [_column(columns, name, args.file) for name in args.text])
    if len(read) < len(rows):
        _note(f"rows without a prediction for lack of a text: {len(rows) - len(read)}")
    if not read:
        raise ValueError(f"{args.file} has no row with a text")
    X = _texts(columns, [rows[i] for i in read], args)
    if args.proba and not hasattr(model, "predict_proba"):
        raise ValueError(f"the model in {args.model} gives no probabilities")
    found = model.predict(X)
    names = ["prediction"]
    if found.ndim == 2:
        several = getattr(model, "classes_", range(found.shape[1]))
        names = [f"prediction of {name}" for name in several]
    added = np.reshape(found, (len(X), -1)).tolist()
    if args.proba:
        names += [f"probability of {label}" for label in model.classes_]
        added = [
            a + b for a, b in zip(added, model.predict_proba(X).tolist(), strict=True)
        ]
    taken = sorted(set(names) & set(columns))
    if taken:
        raise ValueError(f"{args.file} has the columns {taken} already; rename them")
    known = dict(zip(read, added, strict=True))
    blank = [""] * len(names)
    _write(
        [*columns, *names],
        ([*row, *known.get(i, blank)] for i, row in enumerate(rows)),
    )


def _compare(args):
    from skpeft.comparison import compare_strategies

    X, y = _read_data(args)
    strata = _strata(y, args)
    if strata and len(set(strata)) == len(strata):  # some rare classes do no harm here
        _check_classes(strata, args)
    kind = AdapterClassifier if args.label else AdapterRegressor
    try:
        results = compare_strategies(
            X,
            y,
            args.adapter or [None, "auto", "full"],
            estimator=kind(args.encoder, random_state=args.seed),
            cv=args.cv,
            verbose=1,
        )
    except ValueError as error:
        if "n_splits" not in str(error):
            raise
        raise ValueError(f"--cv {args.cv}: {error} Give fewer folds.") from error
    results.to_csv(sys.stdout, lineterminator="\n")


def _info(args):
    model = _load(args.model)
    parameters = model.get_params(deep=False)
    facts = {
        "estimator": type(model).__name__,
        **{name: parameters[name] for name in ("encoder", "adapter", "rank", "layers")},
        "adapter_": model.adapter_ or "none",
        "texts_a_row": model.n_features_in_,
        "trained_parameters": model.n_trainable_params_,
        "frozen_parameters": model.n_frozen_params_,
        "epochs": model.n_epochs_,
        "shrinkage": model.shrinkage_,
    }
    facts |= {f"class_{i}": c for i, c in enumerate(getattr(model, "classes_", ()))}
    _write(["name", "value"], facts.items())


def _score(model):
    return "accuracy" if hasattr(model, "classes_") else "r2"


def _load(folder):
    """Fitted model of the kind that the folder names."""
    from skpeft._folder import kind_of

    is_regressor = kind_of(folder) == AdapterRegressor.__name__
    kind = AdapterRegressor if is_regressor else AdapterClassifier
    return kind.from_pretrained(folder)


# Files and messages


def _read(file):
    """Column names and rows of a CSV file; every field stays text."""
    try:
        rows = _numbered_rows(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {file}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{file} is a folder; a CSV file is needed") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text; save it as CSV in UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is no whole gzip file ({error}); make it again"
        ) from error
    if len(rows) < 2:
        raise ValueError(
            f"{file} holds no rows; a line of column names and rows are needed"
        )
    (_, columns), *rows = rows
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise ValueError(
                f"{file} has {name} between its columns; save it with commas, or in Python: "
                f"pandas.read_csv({str(file)!r}, sep={separator!r}).to_csv('new.csv', "
                "index=False)"
            )
    for line, row in rows:
        if len(row) != len(columns):
            remedy = "put fields that hold commas in double quotes"
            if len(row) < len(columns):
                remedy = "a blank field still needs its comma"
            raise ValueError(
                f"{file}, line {line}: {len(row)} fields, but {len(columns)} column names; "
                f"{remedy}"
            )
    return columns, [row for _, row in rows]


def _numbered_rows(file):
    """Rows with the numbers of their lines, those without a field left out."""
    opener = gzip.open if str(file).lower().endswith(".gz") else open
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            return [(reader.line_num, row) for row in reader if row]
    finally:
        csv.field_size_limit(limit)


def _column(columns, name, file):
    n_such = columns.count(name)
    if n_such != 1:
        found = f"{n_such} columns" if n_such else "no column"
        raise ValueError(
            f"{file} has {found} named {name!r}, one is needed; "
            f"its columns, by its first line, are: {', '.join(map(_shown, columns))}"
        )
    return columns.index(name)


def _shown(name):
    return name if name == name.strip() else repr(name)  # else the blanks are not seen


def _filled(rows, places):
    """Numbers of the rows that are blank at none of some places."""
    return [i for i, row in enumerate(rows) if all(row[j].strip() for j in places)]


def _texts(columns, rows, args):
    """Texts, or pairs of texts."""
    if len(args.text) > 2:
        raise ValueError(
            f"--text was given {len(args.text)} times; it may be given once or twice"
        )
    if len(set(args.text)) < len(args.text):
        raise ValueError(f"--text names the column {args.text[0]!r} twice")
    places = [_column(columns, name, args.file) for name in args.text]
    if len(places) == 1:
        return [row[places[0]] for row in rows]
    return [tuple(row[place] for place in places) for row in rows]


def _read_data(args):
    """Texts and targets of the rows that have both."""
    columns, rows = _read(args.file)
    goals = args.label or args.target
    if len(set(goals)) < len(goals):
        raise ValueError(f"the columns to predict are {goals}; name each of them once")
    both = sorted({*goals} & {*args.text})
    if both:
        raise ValueError(
            f"the columns {both} are named as texts and as what is to be predicted, so that a "
            "model would read the answer; name other columns of texts"
        )
    needed = [_column(columns, name, args.file) for name in [*goals, *args.text]]
    kept = [rows[i] for i in _filled(rows, needed)]
    if len(kept) < len(rows):
        _note(f"rows left out for lack of a text or a target: {len(rows) - len(kept)}")
    if not kept:
        raise ValueError(f"{args.file} has no row with a text and a target")
    y = {
        name: [row[place].strip() for row in kept]
        for name, place in zip(goals, needed, strict=False)
    }
    if args.target or len(y) > 1:
        read = _number if args.target else _indicator
        y = {name: [read(value, name) for value in y[name]] for name in y}
    y = _frame(y) if len(y) > 1 else y[goals[0]]
    X = _texts(columns, kept, args)
    if len(set(X)) < len(X):
        _note(
            f"rows that repeat the text of another: {len(X) - len(set(X))}; with copies in "
            "both parts of a split, scores are too high"
        )
    return X, y


def _frame(columns):
    """Targets whose columns keep their names."""
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ImportError(
            "several columns to predict need pandas, which is not installed. Run: pip "
            "install pandas"
        ) from error
    return DataFrame(columns)


def _indicator(text, column):
    known = {"false": 0.0, "true": 1.0}.get(text.lower())  # as pandas writes booleans
    if known is None:
        with suppress(ValueError):
            known = float(text)
    if known not in (0.0, 1.0):
        raise ValueError(
            f"the column {column!r} holds {text!r}; where --label is given several times each "
            "column holds 0 or 1, or True or False, and says whether a row has that label"
        )
    return known


def _number(text, column):
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"the column {column!r} holds {text!r}, which is no number (decimals have a "
            "point); for one column of classes use --label, once"
        ) from None


def _write(columns, rows):
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    sys.stdout.flush()


def _note(message):
    sys.stderr.write(f"{message}\n")


def _show_warning(message, *_, **__):
    _note(f"warning: {' '.join(str(message).split())}")


if __name__ == "__main__":
    sys.exit(main())
