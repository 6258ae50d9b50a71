"""Accuracy and cost of learning from few labelled texts, method by method.

Runs every method on the same splits of the same sets and appends one JSON line a run to
``--out``; a run that is there already is not repeated, so a stopped benchmark goes on
where it was. ``--report`` prints the table of what is there.

    python examples/benchmarks/few_shot.py --data FOLDER --sets trec6 emotion \
        --shots 8 16 --splits 5 --methods probe skpeft --out few_shot.jsonl

FOLDER holds NAME.train.csv.gz and NAME.test.csv.gz with columns text (or text_a and
text_b) and label. For classes a shot is a row of each class (all its rows, where it has
fewer); for numbers it is a row. Split s takes the rows by a permutation with seed s.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from peers import PeftTrainer, SetFit
from scipy.stats import spearmanr, t
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import f1_score, log_loss, r2_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.multiclass import type_of_target

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft.adapters import Bottleneck, LoRA

ALPHAS = np.logspace(-3, 3, 13)


def probe_cv(y):
    """Logistic regression whose penalty is chosen by 5-fold cross-validation."""
    folds = min(5, np.unique(y, return_counts=True)[1].min())
    if folds < 2:
        return LogisticRegression(max_iter=1000)
    return LogisticRegressionCV(
        Cs=np.logspace(-2, 4, 7),
        l1_ratios=(0.0,),
        cv=StratifiedKFold(folds),
        max_iter=1000,
        use_legacy_attributes=False,
    )


# name -> estimator, given seed and training labels
CLASSIFIERS = {
    "tfidf": lambda seed, y: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000)
    ),
    "probe": lambda seed, y: AdapterClassifier(
        adapter=None, head=LogisticRegression(max_iter=1000)
    ),
    "probe_cv": lambda seed, y: AdapterClassifier(adapter=None, head=probe_cv(y)),
    "head_only": lambda seed, y: AdapterClassifier(adapter=None),
    "skpeft": lambda seed, y: AdapterClassifier(random_state=seed),
    "cross_entropy": lambda seed, y: AdapterClassifier(
        objective="cross_entropy", random_state=seed
    ),
    "bottleneck": lambda seed, y: AdapterClassifier(
        adapter="bottleneck", random_state=seed
    ),
    "pfeiffer": lambda seed, y: AdapterClassifier(
        adapter=Bottleneck(placement="pfeiffer"), random_state=seed
    ),
    "lora_all_roles": lambda seed, y: AdapterClassifier(
        adapter=LoRA(
            roles=("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
        ),
        random_state=seed,
    ),
    "full": lambda seed, y: AdapterClassifier(adapter="full", random_state=seed),
    "setfit": SetFit,
    "peft_trainer": PeftTrainer,
}
REGRESSORS = {
    "tfidf": lambda seed, y: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), RidgeCV(ALPHAS)
    ),
    "probe": lambda seed, y: AdapterRegressor(adapter=None, head=RidgeCV(ALPHAS)),
    "head_only": lambda seed, y: AdapterRegressor(adapter=None),
    "skpeft": lambda seed, y: AdapterRegressor(random_state=seed),
    "huber": lambda seed, y: AdapterRegressor(objective="huber", random_state=seed),
    "full": lambda seed, y: AdapterRegressor(adapter="full", random_state=seed),
}


def read(folder, name):
    """Training and test rows: X_train, y_train, X_test, y_test."""
    parts = []
    for split in ("train", "test"):
        frame = pd.read_csv(folder / f"{name}.{split}.csv.gz", keep_default_na=False)
        columns = ["text_a", "text_b"] if "text_a" in frame else "text"
        parts += [frame[columns], frame["label"]]
    return parts


def draw(y, shots, seed):
    """Row numbers of one split."""
    order = np.random.RandomState(seed).permutation(len(y))
    if type_of_target(y) == "continuous":
        return order[:shots]
    labels = np.asarray(y)[order]
    return np.sort(
        np.concatenate([order[labels == c][:shots] for c in np.unique(labels)])
    )


def run_one(method, name, shots, split, parts, test_rows):
    """Fit and score one method on one split; a dict for the results file."""
    X_train, y_train, X_test, y_test = parts
    rows = draw(y_train, shots, split)
    X, y = X_train.iloc[rows], y_train.iloc[rows].to_numpy()
    X_test, y_test = X_test.iloc[:test_rows], y_test.iloc[:test_rows].to_numpy()
    numbers = type_of_target(y_train) == "continuous"
    estimator = (REGRESSORS if numbers else CLASSIFIERS)[method](split, y)
    wall, cpu = time.perf_counter(), time.process_time()
    estimator.fit(X, y)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    file = io.BytesIO()
    joblib.dump(estimator, file)
    predicted = estimator.predict(X_test)
    if numbers:
        scores = {
            "spearman": spearmanr(y_test, predicted).statistic,
            "r2": r2_score(y_test, predicted),
        }
    else:
        proba = estimator.predict_proba(X_test)
        scores = {
            "accuracy": float(np.mean(predicted == y_test)),
            "macro_f1": f1_score(y_test, predicted, average="macro"),
            "log_loss": log_loss(y_test, proba, labels=estimator.classes_),
        }
    return {
        "set": name,
        "shots": shots,
        "split": split,
        "method": method,
        "n_train": len(y),
        "n_test": len(y_test),
        **{key: round(float(value), 5) for key, value in scores.items()},
        "fit_seconds": round(wall, 3),
        "fit_cpu_seconds": round(cpu, 3),
        "trained": int(getattr(estimator, "n_trainable_params_", 0)),
        "bytes": file.getbuffer().nbytes,
        "threads": torch.get_num_threads(),
        "note": getattr(estimator, "note", ""),
    }


def report(results, baseline):
    """Markdown table: mean, standard deviation, paired difference to a baseline."""
    frame = pd.DataFrame(results)
    frame["score"] = frame.get("accuracy", pd.Series(dtype=float))
    if "spearman" in frame:
        frame["score"] = frame["score"].fillna(frame["spearman"])
    key = ["set", "shots", "split"]
    base = frame[frame.method == baseline].set_index(key)["score"]
    frame["gain"] = frame["score"] - frame.set_index(key).index.map(base).to_numpy()
    lines = [
        f"| set | shots | method | splits | score | sd | minus {baseline} | +-95 % | "
        "log loss | fit s | trained | bytes |",
        "| --- " * 12 + "|",
    ]
    for (name, shots, method), part in frame.groupby(
        ["set", "shots", "method"], sort=True
    ):
        half = t.ppf(0.975, len(part) - 1) * part["gain"].std() / len(part) ** 0.5
        loss = part["log_loss"].mean() if "log_loss" in part else np.nan
        lines.append(
            f"| {name} | {shots} | {method} | {len(part)} | {part['score'].mean():.3f} | "
            f"{part['score'].std():.3f} | {part['gain'].mean():+.3f} | {half:.3f} | "
            f"{loss:.2f} | {part['fit_seconds'].median():.1f} | "
            f"{part['trained'].iloc[0]:,} | {part['bytes'].iloc[0]:,} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=["trec6"])
    parser.add_argument("--shots", nargs="+", type=int, default=[8])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["probe", "skpeft"])
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("few_shot.jsonl"))
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--baseline", default="probe")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    results = [json.loads(line) for line in lines]
    if not args.report:
        if args.data is None:
            parser.error("--data FOLDER is needed to run")
        # The first fit of a process loads libraries and the encoder: not to be timed.
        AdapterClassifier(adapter=None).fit(["a", "b"], [0, 1])
        done = {(r["set"], r["shots"], r["split"], r["method"]) for r in results}
        for name in args.sets:
            parts = read(args.data, name)
            for split in range(args.splits):
                for shots in args.shots:
                    for method in args.methods:
                        if (name, shots, split, method) in done:
                            continue
                        result = run_one(
                            method, name, shots, split, parts, args.test_rows
                        )
                        results.append(result)
                        with args.out.open("a") as file:
                            file.write(json.dumps(result) + "\n")
                        print(json.dumps(result), flush=True)
    print(report(results, args.baseline))


if __name__ == "__main__":
    main()
