"""Every way of adapting on the same splits: accuracy, seconds, parameters, bytes.

    python examples/benchmarks/methods.py --data FOLDER --sets trec6 emotion ag_news cr \
        --shots 16 --splits 3 --out methods.jsonl

FOLDER is as for few_shot.py, whose splits are used. ``--rates`` tries learning rates in
place of each method's own, without shrinkage: so the defaults were found. Results are
appended line by line, and what is there already is not run again.
"""

import argparse
import io
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from few_shot import draw, probe_cv, read, runs_of

from skpeft import AdapterClassifier
from skpeft.adapters import (
    IA3,
    BitFit,
    Bottleneck,
    HiRA,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
)

METHODS = {
    "lora": LoRA(),
    "lora_rank_1": LoRA(1),
    "lora_rank_2": LoRA(2),
    "lora_rank_32": LoRA(32),
    "dora": LoRA(use_dora=True),
    "lora_all_roles": LoRA(
        roles=("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
    ),
    "hira": HiRA(),
    "bottleneck": Bottleneck(),
    "pfeiffer": Bottleneck(placement="pfeiffer"),
    "parallel": Bottleneck(placement="parallel"),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "layer_norm": LayerNormTuning(),
    "prefix": Prefix(),
    "ladder": LadderSide(),
    "lora+bitfit": [LoRA(), BitFit()],
    "full": "full",
    "probe_cv": None,
}


def run_one(args, name, split, method, rate):
    """One fit: what the table needs, as a dict."""
    X_train, y_train, X_test, y_test = read(args.data, name)
    rows = draw(y_train, args.shots, split)
    X, y = X_train.iloc[rows], y_train.iloc[rows]
    some = np.random.RandomState(split).permutation(len(y_test))[: args.test_rows]
    clf = AdapterClassifier(
        adapter=METHODS[method],
        head=probe_cv(y) if method == "probe_cv" else None,
        learning_rate=rate,
        shrinkage="auto" if rate is None else 0.0,
        random_state=split,
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    clf.fit(X, y)
    seconds = time.perf_counter() - start, time.process_time() - start_cpu
    file = io.BytesIO()
    joblib.dump(clf, file)
    return {
        "accuracy": round(clf.score(X_test.iloc[some], y_test.iloc[some]), 5),
        "fit_seconds": round(seconds[0], 3),
        "fit_cpu_seconds": round(seconds[1], 3),
        "trained": clf.n_trainable_params_,
        "shrinkage": round(clf.shrinkage_, 3),
        "bytes": file.tell(),
    }


def report(frame):
    """Markdown table: a row for each method and rate, accuracy for each set."""
    keys = ["method", "rate"]
    scores = frame.pivot_table("accuracy", keys, "set", dropna=False).dropna(how="all")
    scores.insert(0, "mean", scores.mean(axis=1))
    costs = frame.groupby(keys, dropna=False)[
        ["fit_cpu_seconds", "shrinkage", "trained", "bytes"]
    ].mean()
    whole = scores.join(costs).reset_index().sort_values("mean", ascending=False)
    print("| " + " | ".join(map(str, whole.columns)) + " |")
    print("|" + " --- |" * whole.shape[1])
    for row in whole.itertuples(index=False):
        cells = [f"{x:.3f}" if isinstance(x, float) and x < 1 else x for x in row]
        cells = [f"{x:,.1f}" if isinstance(x, float) else x for x in cells]
        print("| " + " | ".join(map(str, cells)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--sets", nargs="+", default=["trec6", "emotion", "ag_news", "cr"]
    )
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--first-split", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[None])
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    places = [
        (name, args.shots, split, method, rate)
        for split in range(args.first_split, args.first_split + args.splits)
        for name in args.sets
        for method in args.methods
        for rate in args.rates
    ]

    def run(name, shots, split, method, rate):
        found = run_one(args, name, split, method, rate)
        return {"threads": args.threads, "test_rows": args.test_rows} | found

    keys = ("set", "shots", "split", "method", "rate")
    done = runs_of(args.out, keys, [] if args.report else places, run)
    report(pd.DataFrame([run for run in done if run["shots"] == args.shots]))


if __name__ == "__main__":
    main()
