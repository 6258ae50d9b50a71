"""Accuracy and cost of learning from few labelled texts, method by method.

Runs every method on the same splits of the same sets and appends one JSON line a run to
``--out``; a run that is there already is not repeated, so a stopped benchmark goes on
where it was. ``--report`` prints the table of what is there.

    python examples/benchmarks/few_shot.py --data FOLDER --sets trec6 emotion \
        --shots 8 16 --splits 5 --methods probe_cv setfit skpeft --out few_shot.jsonl

FOLDER holds NAME.train.csv.gz and NAME.test.csv.gz with columns text (or text_a and
text_b) and label. For classes a shot is a row of each class (all its rows, where it has
fewer), or, with ``--draw rows``, any row, so that classes have their own shares; for
numbers it is a row. Split s takes the rows by a permutation with seed s. The method
``skpeft_label_texts`` reads ``--label-texts FILE``, JSON of {set: {label: text}}. With
``--encoder`` skpeft's methods, the probes and SetFit run on another encoder; runs of two
encoders go to two files.
"""

import argparse
import io
import json
import os
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from peers import ENCODER, CosineOfPairs, PeftRegressor, PeftTrainer, SetFit
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


def probe_cv(y, class_weight=None):
    """Logistic regression whose penalty is chosen by 5-fold cross-validation."""
    folds = min(5, np.unique(y, return_counts=True)[1].min())
    if folds < 2:
        return LogisticRegression(max_iter=1000, class_weight=class_weight)
    return LogisticRegressionCV(
        class_weight=class_weight,
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
    "probe_balanced": lambda seed, y: AdapterClassifier(
        adapter=None, head=probe_cv(y, "balanced")
    ),
    "head_only": lambda seed, y: AdapterClassifier(adapter=None),
    "skpeft": lambda seed, y: AdapterClassifier(random_state=seed),
    "lora": lambda seed, y: AdapterClassifier(adapter="lora", random_state=seed),
    "no_shrinkage": lambda seed, y: AdapterClassifier(shrinkage=0.0, random_state=seed),
    "bfloat16": lambda seed, y: AdapterClassifier(
        precision="bfloat16", random_state=seed
    ),
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
    "lora_wide": lambda seed, y: AdapterClassifier(
        adapter=LoRA(32, roles=None), layers=None, max_epochs=3, random_state=seed
    ),
    "hira": lambda seed, y: AdapterClassifier(
        adapter="hira", layers=None, max_epochs=3, random_state=seed
    ),
    "full": lambda seed, y: AdapterClassifier(adapter="full", random_state=seed),
    "setfit": SetFit,
    "peft_trainer": PeftTrainer,
    # How the learning rate of peft_trainer was chosen, on splits beyond those reported.
    **{
        f"peft_trainer_{rate}": partial(PeftTrainer, learning_rate=float(rate))
        for rate in ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2")
    },
}
REGRESSORS = {
    "tfidf": lambda seed, y: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), RidgeCV(ALPHAS)
    ),
    "probe": lambda seed, y: AdapterRegressor(adapter=None, head=RidgeCV(ALPHAS)),
    "head_only": lambda seed, y: AdapterRegressor(adapter=None),
    "skpeft": lambda seed, y: AdapterRegressor(random_state=seed),
    "huber": lambda seed, y: AdapterRegressor(objective="huber", random_state=seed),
    "hira": lambda seed, y: AdapterRegressor(adapter="hira", random_state=seed),
    "full": lambda seed, y: AdapterRegressor(adapter="full", random_state=seed),
    "peft_trainer": PeftRegressor,
    "cosine": CosineOfPairs,
}


def read(folder, name):
    """Training and test rows: X_train, y_train, X_test, y_test."""
    parts = []
    for split in ("train", "test"):
        frame = pd.read_csv(folder / f"{name}.{split}.csv.gz", keep_default_na=False)
        columns = ["text_a", "text_b"] if "text_a" in frame else "text"
        parts += [frame[columns], frame["label"]]
    return parts


def draw(y, shots, seed, how="class"):
    """Row numbers of one split."""
    order = np.random.RandomState(seed).permutation(len(y))
    if how == "rows" or type_of_target(y) == "continuous":
        return order[:shots]
    labels = np.asarray(y)[order]
    return np.sort(
        np.concatenate([order[labels == c][:shots] for c in np.unique(labels)])
    )


def calibration_error(y, proba, classes, n_bins=15):
    """Expected calibration error: mean gap of confidence and accuracy over bins."""
    sure = proba.max(axis=1)
    right = classes[proba.argmax(axis=1)] == y
    bins = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, right.astype(float) - sure, minlength=n_bins)
    return np.abs(gaps).sum() / len(y)


def build(method, name, split, y, encoder, hints):
    """The estimator of a method, on an encoder."""
    numbers = type_of_target(y) == "continuous"
    if method == "skpeft_label_texts" and not numbers:
        estimator = AdapterClassifier(label_texts=hints[name], random_state=split)
    elif method == "setfit" and not numbers:
        return CLASSIFIERS[method](split, y, encoder)
    else:
        estimator = (REGRESSORS if numbers else CLASSIFIERS)[method](split, y)
    if isinstance(estimator, AdapterClassifier | AdapterRegressor):
        return estimator.set_params(encoder=encoder)
    if encoder != ENCODER:
        raise ValueError(f"The method {method} has no other encoder than the default.")
    return estimator


def run_one(method, name, shots, split, parts, args, hints):
    """Fit and score one method on one split; a dict for the results file."""
    X_train, y_train, X_test, y_test = parts
    rows = draw(y_train, shots, split, args.draw)
    X, y = X_train.iloc[rows], y_train.iloc[rows].to_numpy()
    X_test, y_test = (part.iloc[: args.test_rows] for part in (X_test, y_test))
    y_test = y_test.to_numpy()
    numbers = type_of_target(y_train) == "continuous"
    estimator = build(method, name, split, y, args.encoder, hints)
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
            "ece": calibration_error(y_test, proba, np.asarray(estimator.classes_)),
        }
    return {
        "set": name,
        "draw": args.draw,
        "shots": shots,
        "split": split,
        "method": method,
        "n_train": len(y),
        "n_test": len(y_test),
        **{key: round(float(value), 5) for key, value in scores.items()},
        "fit_seconds": round(wall, 3),
        "fit_cpu_seconds": round(cpu, 3),
        "trained": int(getattr(estimator, "n_trainable_params_", 0)),
        "shrinkage": float(getattr(estimator, "shrinkage_", 0.0)),
        "bytes": file.getbuffer().nbytes,
        "threads": torch.get_num_threads(),
        "note": getattr(estimator, "note", ""),
    }


def tidy(results, baseline):
    """Frame of all runs, with each run's gain over the baseline on the same rows."""
    frame = pd.DataFrame(results)
    for column in ("accuracy", "spearman", "macro_f1", "log_loss", "ece", "r2"):
        frame[column] = frame.get(column, pd.Series(dtype=float))
    frame["draw"] = frame.get("draw", pd.Series(dtype=str)).fillna("class")
    frame["score"] = frame["accuracy"].fillna(frame["spearman"])
    frame["second"] = frame["macro_f1"].fillna(frame["r2"])
    key = ["set", "draw", "shots", "split"]
    base = frame[frame.method == baseline].set_index(key)
    for name in ("score", "fit_seconds"):
        found = frame.set_index(key).index.map(base[name]).to_numpy(dtype=float)
        frame[f"base_{name}"] = found
    frame["gain"] = frame["score"] - frame["base_score"]
    return frame


def interval(gains):
    """Mean and half of the 95 % interval (Student's t) of paired gains, as text."""
    gains = gains.dropna()
    if len(gains) < 2:
        return f"{gains.mean():+.3f}", "n/a"
    half = t.ppf(0.975, len(gains) - 1) * gains.std() / len(gains) ** 0.5
    return f"{gains.mean():+.3f}", f"{half:.3f}"


def table(head, rows):
    """Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def report(results, baseline):
    """Two tables: every set by itself, and means over the sets that have the baseline."""
    frame = tidy(results, baseline)
    rows = [
        [
            *group[:3],
            group[3],
            len(part),
            f"{part['score'].mean():.3f}",
            f"{part['score'].std():.3f}",
            *interval(part["gain"]),
            f"{part['second'].mean():.3f}",
            f"{part['log_loss'].mean():.2f}",
            f"{part['ece'].mean():.3f}",
            f"{part['fit_seconds'].mean():.1f}",
            f"{part['fit_cpu_seconds'].mean():.1f}",
            f"{part['trained'].iloc[0]:,}",
            f"{part['bytes'].iloc[0]:,}",
            ", ".join(sorted(set(part["note"]) - {""})),
        ]
        for group, part in frame.groupby(["set", "draw", "shots", "method"])
    ]
    head = ["set", "draw", "shots", "method", "splits", "accuracy or Spearman", "sd"]
    head += [f"minus {baseline}", "+-95 %", "macro F1 or R2", "log loss", "ECE"]
    head += ["fit wall s", "fit CPU s", "trained", "bytes", "note"]
    means = []
    paired = frame[frame["gain"].notna()]
    for group, part in paired.groupby(["draw", "shots", "method"]):
        means.append(
            [
                *group,
                part["set"].nunique(),
                len(part),
                f"{part.groupby('set')['score'].mean().mean():.3f}",
                *interval(part.groupby("split")["gain"].mean()),
                f"{part.groupby('set')['log_loss'].mean().mean():.2f}",
                f"{part.groupby('set')['ece'].mean().mean():.3f}",
                f"{part['base_fit_seconds'].sum() / part['fit_seconds'].sum():.1f}",
            ]
        )
    mean_head = ["draw", "shots", "method", "sets", "runs", "mean score"]
    mean_head += [f"minus {baseline}", "+-95 %", "log loss", "ECE"]
    mean_head += [f"time of {baseline} / own"]
    return f"{table(head, rows)}\n\n{table(mean_head, means)}"


def runs_of(out, keys, places, run):
    """Runs that a file of JSON lines holds, and of other places those made now.

    A place is a tuple with a value for each of `keys`; what `run` gives for it is appended
    to the file with these.
    """
    lines = out.read_text().splitlines() if out.exists() else []
    done = [json.loads(line) for line in lines]
    known = {tuple(run[key] for key in keys) for run in done}
    for place in places:
        if place not in known:
            done.append(dict(zip(keys, place, strict=True)) | run(*place))
            with out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    return done


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=["trec6"])
    parser.add_argument("--shots", nargs="+", type=int, default=[8])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first-split", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["probe", "skpeft"])
    parser.add_argument("--draw", choices=["class", "rows"], default="class")
    parser.add_argument("--label-texts", type=Path, help="JSON of {set: {label: text}}")
    parser.add_argument("--encoder", default=ENCODER, help="name or folder")
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
        warm = AdapterClassifier(encoder=args.encoder, adapter=None)
        warm.fit(["a", "b"], [0, 1])
        hints = json.loads(args.label_texts.read_text()) if args.label_texts else {}
        done = {
            (r["set"], r.get("draw", "class"), r["shots"], r["split"], r["method"])
            for r in results
        }
        for name in args.sets:
            parts = read(args.data, name)
            for split in range(args.first_split, args.first_split + args.splits):
                for shots in args.shots:
                    for method in args.methods:
                        if (name, args.draw, shots, split, method) in done:
                            continue
                        result = run_one(method, name, shots, split, parts, args, hints)
                        results.append(result)
                        with args.out.open("a") as file:
                            file.write(json.dumps(result) + "\n")
                        print(json.dumps(result), flush=True)
    print(report(results, args.baseline))


if __name__ == "__main__":
    main()
