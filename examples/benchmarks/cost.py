"""What learning and predicting cost, against peers and against the arithmetic.

    OMP_NUM_THREADS=1 python examples/benchmarks/cost.py --data FOLDER --what fit limit
    python examples/benchmarks/cost.py --report --out cost.jsonl

FOLDER is as for few_shot.py. Every measurement is a process of its own that loads the
encoder first; results are appended line by line. ``--what``:

- ``fit``: one fit at several numbers of rows, skpeft against peers; where there is a GPU,
  whose first fit in a process takes longer, the seconds of another one too;
- ``step``: a training step of adapters in all blocks, and on a GPU the same replayed;
- ``limit``: matrix products that the training loop must do, at the rate that the machine
  reached for products of the same shapes just after, over the seconds that it took;
- ``search``: 4 ranks by 5 folds and the refit: `GridSearchCV` with the cache of hidden
  states, without, 21 cold fits one by one, `AdapterClassifierCV`, and 21 fits of PEFT's
  LoRA by skorch;
- ``predict``: 1, 32 and 5,000 texts, in float32 and in bfloat16, against
  `SentenceTransformer.encode` and the head;
- ``one``: one text by a fitted model and by the bare module with its tokenizer, in turn;
- ``first``: the first prediction of a loaded model in a new process, against a process that
  loads the encoder with sentence-transformers, imports scikit-learn and encodes one text;
- ``growth``: seconds and memory of a fit as rows, classes or tokens are added, texts made
  unlike each other.

Seconds are of the processor, which other programs disturb less than those of the clock,
and which say little where a GPU is used: there the clock's count;
memory is the peak of the process beyond what it held before.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import joblib
import numpy as np
import torch
from few_shot import draw, read
from peers import ENCODER, PeftSkorch, PeftTrainer, SetFit, locate
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, check_cv

import skpeft
from skpeft import AdapterClassifier, AdapterClassifierCV
from skpeft._cache import STATES
from skpeft._training import update


def rows_of(args, n, name="trec6"):
    """Texts and labels: the first rows of a set, made unlike each other beyond its end."""
    X, y, *_ = read(args.data, name)
    order = np.random.RandomState(0).permutation(len(y))
    chosen = np.resize(order, n)
    texts = [
        X.iloc[row] if i < len(order) else f"{X.iloc[row]} {i // len(order)}"
        for i, row in enumerate(chosen)
    ]
    return texts, y.to_numpy()[chosen]


def warm():
    """Load the encoder and run it once, which is no part of what is measured."""
    AdapterClassifier(adapter=None).fit(["good film", "bad film"], [0, 1])


@contextmanager
def measured(found):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    yield
    found["seconds"] = time.perf_counter() - start
    found["cpu_seconds"] = time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["peak_mb"] = (peak - before) / 1024


def fit(args, method, n, name, epochs):
    """One fit; with `epochs`, of as many text-steps for each method."""
    warm()
    X, y = rows_of(args, n, name)
    own = {"random_state": 0, "max_epochs": epochs}
    make = {
        "skpeft": lambda: AdapterClassifier(**own),
        "no_shrinkage": lambda: AdapterClassifier(shrinkage=0.0, **own),
        "same_steps": lambda: AdapterClassifier(
            objective="cross_entropy", batch_size=16, layers=None, shrinkage=0.0, **own
        ),
        "full": lambda: AdapterClassifier(adapter="full", **own),
        "setfit": lambda: SetFit(0, y),
        "peft_trainer": lambda: PeftTrainer(0, y),
        "peft_skorch": lambda: PeftSkorch(0, y),
    }

    def once():
        model, found = make[method](), {}
        if method.startswith("peft") and epochs is not None:
            model.epochs = epochs
        STATES.clear()
        with measured(found):
            model.fit(X, y)
        return found

    found = once()
    if torch.cuda.is_available():
        found["again_seconds"] = once()["seconds"]
    return found


def step(args, n, replayed):
    """Median seconds of a training step of n texts, adapters in all blocks."""
    X, y = rows_of(args, 600)
    clf = AdapterClassifier(layers=None, max_epochs=1, shrinkage=0.0, random_state=0)
    network, seconds = clf.fit(X, y)._network.live, []
    items = sorted(network.prepare(X), key=network.backbone.length)[-n - 50 : -50]
    optimizer = torch.optim.AdamW(network.trainable().values(), fused=True)
    recorded = network.replays() if replayed else nullcontext()
    with network.own_context(), recorded as replays:
        for _ in range(35):
            start = time.perf_counter()
            optimizer.zero_grad()
            network.forward(items, replays).square().mean().backward()
            update(optimizer, 1e-4)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[5:])}


def rate_of(n_tokens, shapes):
    """Floating-point operations a second in products of these shapes."""
    x = {n_in: torch.randn(n_tokens, n_in) for n_in, _ in shapes}
    w = [torch.randn(n_out, n_in) for n_in, n_out in shapes]

    def once():
        start = time.process_time()
        for weight, (n_in, _) in zip(w, shapes, strict=True):
            torch.nn.functional.linear(x[n_in], weight)
        return time.process_time() - start

    seconds = statistics.median([once() for _ in range(60)][10:])
    return sum(2 * n_tokens * n_in * n_out for n_in, n_out in shapes) / seconds


def limit(args, n, epochs):
    """Share of the training loop's time that its matrix products need at least."""
    warm()
    X, y = rows_of(args, n)
    times = []
    clf = AdapterClassifier(
        shrinkage=0.0,
        max_epochs=epochs,
        random_state=0,
        callback=lambda record: times.append(time.process_time()) and False,
    )
    clf.fit(X, y)
    network = clf._network.live
    config = network.module.transformer.config
    n_tokens = sum(map(network.backbone.length, network.prepare(X)))
    width, inner = config.hidden_size, config.intermediate_size
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    n_blocks = config.num_hidden_layers - network.lowest
    # Forward, and back through activations: frozen weights need no gradient of their own.
    products = 2 * n_blocks * sum(2 * n_tokens * i * o for i, o in shapes)
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    rate = rate_of(256, shapes)
    return {"cpu_seconds": seconds, "rate": rate, "share": products / rate / seconds}


def search(args, method, layers):
    """A search over ranks."""
    warm()
    X, y, *_ = read(args.data, "trec6")
    rows, found, ranks = draw(y, 16, 0), {}, [2, 4, 8, 16]
    X, y = X.iloc[rows], y.iloc[rows]
    one = AdapterClassifier(adapter="lora", layers=layers, random_state=0)
    if method == "cv":
        own = {"layers": [layers], "cv": 5, "random_state": 0}
        model = AdapterClassifierCV(ranks=ranks, **own)
    elif method == "cold":
        model = OneByOne(lambda rank, y: clone(one).set_params(rank=rank), ranks)
    elif method == "peft_skorch":
        model = OneByOne(lambda rank, y: PeftSkorch(0, y, rank=rank), ranks)
    else:
        model = GridSearchCV(one, {"rank": ranks}, cv=5)
    n_bytes = 0 if method == "no_cache" else 2**28
    with skpeft.config_context(cache_bytes=n_bytes), measured(found):
        model.fit(X, y)
    scores = model.cv_results_["mean_test_score"]
    return found | {"scores": list(scores), "best": model.best_params_["rank"]}


class OneByOne:
    """The fits of a grid search, each as if it were the first of its process."""

    def __init__(self, make, ranks):
        self.make, self.ranks = make, ranks

    def fit(self, X, y):
        folds = [*check_cv(5, y, classifier=True).split(X, y)]

        def fitted(rank, rows):
            skpeft.clear_cache()
            return self.make(rank, y).fit(X.iloc[rows], y.iloc[rows])

        scores = [
            np.mean(
                [
                    np.mean(fitted(rank, train).predict(X.iloc[test]) == y.iloc[test])
                    for train, test in folds
                ]
            )
            for rank in self.ranks
        ]
        self.cv_results_ = {"mean_test_score": scores}
        self.best_params_ = {"rank": self.ranks[int(np.argmax(scores))]}
        fitted(self.best_params_["rank"], np.arange(len(y)))


def predict(args, method, n):
    """Predictions of a fitted model, texts not seen before."""
    X, y = rows_of(args, 96)
    precision = "bfloat16" if method == "bfloat16" else "auto"
    clf = AdapterClassifier(shrinkage=0.0, precision=precision, random_state=0)
    clf.fit(X, y)
    texts = rows_of(args, 96 + 2 * n)[0][96:]
    found, runs = {}, []
    if method != "encode":
        ask = clf.predict
    else:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(locate(ENCODER, None)))

        def ask(X):
            return clf.head_.predict(model.encode(X, show_progress_bar=False))

    ask(texts[:n])
    for _ in range(1 if n > 32 else 15):
        STATES.clear()
        with measured(found):
            ask(texts[n:])
        runs.append(dict(found))
    return {name: statistics.median(run[name] for run in runs) for name in found}


def one(args):
    """Median seconds of one text, of two ways in turn, and their ratio."""
    X, y = rows_of(args, 96)
    clf = AdapterClassifier(shrinkage=0.0, random_state=0).fit(X, y)
    network = clf._network.live
    frozen = network.backbone

    def bare(X):
        with torch.no_grad(), network.computing():
            batch = frozen.collate(frozen.prepare(X))
            batch = {name: t.to(network.device) for name, t in batch.items()}
            frozen.module(batch).cpu()

    seconds = {"skpeft": [], "bare": []}
    for text in rows_of(args, 96 + 150)[0][96:]:
        for name, ask in (("skpeft", clf.predict), ("bare", bare)):
            start = time.perf_counter()
            ask([text])
            seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(own) for name, own in seconds.items()}
    return found | {"ratio": found["skpeft"] / found["bare"]}


FIRST = {
    "skpeft": "import joblib; print(joblib.load(sys.argv[1]).predict([sys.argv[3]]))",
    "encode": (
        "import sklearn.linear_model; from sentence_transformers import "
        "SentenceTransformer as S; "
        "print(S(sys.argv[2]).encode([sys.argv[3]]).shape)"
    ),
}


def first(args):
    """Processor seconds of a process from its start to its first answer, of both in turn."""
    X, y = rows_of(args, 96)
    clf = AdapterClassifier(shrinkage=0.0, random_state=0).fit(X, y)
    seconds = {name: [] for name in FIRST}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.joblib")
        joblib.dump(clf, file)
        given = [file, str(locate(ENCODER, None)), X[0]]
        for _ in range(6):
            for name, code in FIRST.items():
                command = [sys.executable, "-c", f"import sys; {code}", *given]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, check=True, capture_output=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent = after.ru_utime + after.ru_stime
                seconds[name].append(spent - before.ru_utime - before.ru_stime)
    # The first of each reads from the disk what the others find in memory.
    skpeft_, encode = (np.array(values[1:]) for values in seconds.values())
    return {
        "skpeft_seconds": statistics.median(skpeft_),
        "encode_seconds": statistics.median(encode),
        "ratio": statistics.median(skpeft_ / encode),
    }


def growth(args, n, cache_bytes, n_classes=6, n_copies=1):
    """A fit of one epoch; texts are repeated within themselves to be longer."""
    warm()
    X, y = rows_of(args, n)
    X = [" ".join([text] * n_copies) for text in X]
    if n_classes != 6:
        y = np.arange(n) % n_classes
    found = {}
    with skpeft.config_context(cache_bytes=cache_bytes), measured(found):
        AdapterClassifier(max_epochs=1, shrinkage=0.0, random_state=0).fit(X, y)
    return found


# Fits of as many steps as a peer's: rows, set, epochs.
_SAME_STEPS = [(1000, "trec6", 3), (4000, "trec6", 1), (1000, "cuad_clauses", 1)]
MEASURES = {
    f.__name__: f for f in (fit, step, limit, search, predict, one, first, growth)
}


def plan(args):
    """What is to be measured, one dict a process."""
    peers = ["skpeft", "no_shrinkage", *args.peers]
    cases = {
        "fit": [
            {"method": method, "n": n, "name": name, "epochs": args.epochs}
            for name in args.sets
            for n in args.rows
            for method in peers
        ]
        + [
            {"method": method, "n": n, "name": name, "epochs": epochs}
            for n, name, epochs in _SAME_STEPS
            for method in ("same_steps", "peft_trainer", "peft_skorch")
        ],
        "step": [
            {"n": n, "replayed": replayed}
            for n in (16, 128)
            for replayed in (False, True)[: 1 + torch.cuda.is_available()]
        ],
        "limit": [{"n": 1000, "epochs": 3}],
        "search": [
            {"method": method, "layers": 3}
            for method in ("grid", "no_cache", "cold", "cv", "peft_skorch")
        ],
        "predict": [
            {"method": method, "n": n}
            for n in (1, 32, 5000)
            for method in ("skpeft", "bfloat16", "encode")
        ],
        "one": [{}],
        "first": [{}],
        "growth": [
            {"n": n, "cache_bytes": size}
            for n in (250, 1000, 4000, 16000, 64000)
            for size in (0, 256 * 2**20)
        ]
        + [{"n": 1000, "cache_bytes": 0, "n_classes": n} for n in (2, 20, 150)]
        + [{"n": 1000, "cache_bytes": 0, "n_copies": n} for n in (2, 4, 8)],
    }
    return [(what, case) for what in args.what for case in cases[what]]


def label(run):
    """What was measured, and where, if that was noted: machines do not mix."""
    return " ".join([json.dumps(run["case"]), run.get("about", "")]).strip()


def report(runs):
    """One Markdown table for each kind of measurement: medians over repeats."""
    kinds = {}
    for run in runs:
        names = tuple(n for n in run["found"] if n not in ("scores", "best"))
        kinds.setdefault((run["what"], names), {}).setdefault(label(run), []).append(
            run
        )
    for (what, names), cases in kinds.items():
        print(f"\n*{what}*\n\n| case | runs | {' | '.join(names)} |")
        print("|" + " --- |" * (len(names) + 2))
        for case, own in cases.items():
            medians = (statistics.median(run["found"][n] for run in own) for n in names)
            cells = " | ".join(f"{median:.4g}" for median in medians)
            print(f"| {case} | {len(own)} | {cells} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--what", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--sets", nargs="+", default=["trec6", "cuad_clauses"])
    parser.add_argument("--rows", nargs="+", type=int, default=[128, 1000])
    parser.add_argument("--peers", nargs="*", default=["peft_trainer"])
    parser.add_argument("--epochs", type=int, help="a part of a fit; SetFit takes all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("cost.jsonl"))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        what, case = json.loads(args.one)
        print(json.dumps(MEASURES[what](args, **case)))
        return
    if not args.report:
        # Repeats are the outer loop: what disturbs the machine disturbs all cases.
        for what, case in plan(args) * args.repeats:
            command = [sys.executable, __file__, "--data", str(args.data)]
            command += [
                "--threads",
                str(args.threads),
                "--one",
                json.dumps([what, case]),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            run = {"what": what, "case": case, "threads": args.threads, "found": found}
            with args.out.open("a") as file:
                file.write(json.dumps(run) + "\n")
    report([json.loads(line) for line in args.out.read_text().splitlines()])


if __name__ == "__main__":
    main()
