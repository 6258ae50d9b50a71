"""Many tasks over the same texts: AdapterBank against one predict after another.

Fits 16 classifiers on the default encoder, for a moment each, since what counts here is
prediction. Every measurement is a process of its own, which loads the fitted models and
predicts short texts of 3 to 15 words: every task for each text, and one task a text. It
prints, as a table in Markdown, the median of the processor seconds of a call, which other
programs disturb less than those of the clock; those of the first call, in which a bank is
put together and tried; and the peak memory of the process.

    OMP_NUM_THREADS=1 python examples/benchmarks/bank.py
    python examples/benchmarks/bank.py --tasks 1 4 --rows 100 --adapter bottleneck
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np

from skpeft import AdapterBank, AdapterClassifier

WORDS = [
    *("late", "goal", "wins", "the", "derby", "captain", "out", "with", "knee"),
    *("bank", "cuts", "lending", "rate", "retail", "sales", "slump", "in", "june"),
    *("new", "phone", "chip", "doubles", "battery", "life", "browser", "update"),
]
WAYS = ("separate", "bank", "separate, one task a text", "bank, one task a text")


def make_texts(n_rows, seed):
    random_state = np.random.RandomState(seed)
    sizes = random_state.randint(3, 16, n_rows)
    return [" ".join(random_state.choice(WORDS, size)) for size in sizes]


def fit(n_tasks, args, folder):
    texts = make_texts(16, 0)
    for i in range(n_tasks):
        labels = np.random.RandomState(i).permutation(np.arange(16) % 4)
        clf = AdapterClassifier(
            args.encoder,
            adapter=args.adapter,
            layers=args.layers or "auto",
            max_epochs=2,
            shrinkage=0.0,
            random_state=i,
        )
        joblib.dump(clf.fit(texts, labels), folder / f"{i}.joblib")


def one_task_a_text(estimators, texts, names):
    found = np.empty(len(texts), dtype=object)
    for name, estimator in estimators.items():
        rows = np.flatnonzero(names == name)
        if len(rows):
            found[rows] = estimator.predict([texts[row] for row in rows])
    return found


def measure(way, n_tasks, n_rows, n_repeats, folder):
    """Seconds of a call, of the first one, and peak memory of this process."""
    estimators = {str(i): joblib.load(folder / f"{i}.joblib") for i in range(n_tasks)}
    texts = make_texts(n_rows, 1)
    names = np.random.RandomState(2).choice(list(estimators), n_rows).astype(object)
    if way == "separate":
        call = lambda: {name: e.predict(texts) for name, e in estimators.items()}
    elif way == "bank":
        bank = AdapterBank(estimators)
        call = lambda: bank.predict(texts)
    elif way.startswith("separate"):
        call = lambda: one_task_a_text(estimators, texts, names)
    else:
        bank = AdapterBank(estimators)
        call = lambda: bank.predict(texts, task=names)
    next(iter(estimators.values())).predict(texts[:1])  # the encoder is in memory
    seconds = []
    for _ in range(n_repeats + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return {
        "first": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_elsewhere(way, n_tasks, args, folder):
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    command += ["--tasks", str(n_tasks), "--rows", str(args.rows)]
    command += ["--repeats", str(args.repeats)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--layers", type=int, help="adapters in the last ones only")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        found = measure(args.way, args.tasks[0], args.rows, args.repeats, args.folder)
        print(json.dumps(found))
        return
    print(f"{args.rows} texts, adapter={args.adapter!r}, layers={args.layers}\n")
    print("| tasks | way | seconds | first call | peak memory, MB |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        fit(max(args.tasks), args, Path(folder))
        for n_tasks in args.tasks:
            for way in WAYS:
                row = measure_elsewhere(way, n_tasks, args, folder)
                print(
                    f"| {n_tasks} | {way} | {row['seconds']:.2f} | {row['first']:.2f} | "
                    f"{row['peak_mb']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
