"""Fits, predictions, saves, loads, kills and threads at random, for as long as asked.

    OMP_NUM_THREADS=1 python examples/benchmarks/soak.py --minutes 10 --seed 0

Toy encoders, no download; the calls of Unix. Each answer is compared, to the bit, with that
of the same estimator fitted alone before. Memory is looked at all the time. The last line is
a record in JSON; the exit status is 1 if an answer was another one, a step failed, or memory
grew by more than 5 MB from the second quarter of the time to the last.
"""

import argparse
import gc
import io
import json
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from collections import Counter

import joblib
import numpy as np
from faults import (
    LABELS,
    TEXTS,
    after_kill,
    forked,
    interrupted_after,
    jobs,
    resident,
    scratch,
    status_of,
)
from sklearn.base import clone

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor

N_THREADS = 4
GROWN = 5 * 2**20  # bytes


class Subject:
    """An estimator, fitted, and what it answers."""

    def __init__(self, model):
        is_classifier = isinstance(model, AdapterClassifier)
        self.y = LABELS if is_classifier else np.arange(float(len(TEXTS)))
        self.method = "predict_proba" if is_classifier else "predict"
        self.model = model.fit(TEXTS, self.y)
        self.expected = self.answer(self.model)

    def answer(self, model):
        return getattr(model, self.method)(TEXTS)

    def check(self, model):
        if not np.array_equal(self.answer(model), self.expected):
            raise AssertionError("another answer")


def fit(subject, *_):
    subject.check(clone(subject.model).fit(TEXTS, subject.y))


def predict(subject, rng, _):
    row = rng.randint(len(TEXTS))
    subject.check(subject.model)
    getattr(subject.model, subject.method)(
        [TEXTS[row], f"a new text {rng.randint(10**6)}"]
    )


def pickled(subject, *_):
    file = io.BytesIO()
    joblib.dump(subject.model, file)
    file.seek(0)
    subject.check(joblib.load(file))


def folder(subject, rng, place):
    name = place / f"{threading.get_ident()}"
    subject.model.save_pretrained(name)
    subject.check(type(subject.model).from_pretrained(name))


def refuse(subject, rng, _):
    wrong = [[], None, [1, 2], ["a", None], "text", np.zeros((3, 3))]
    try:
        subject.model.fit(wrong[rng.randint(len(wrong))], subject.y)
    except (TypeError, ValueError):
        subject.check(subject.model)
    else:
        raise AssertionError("wrong input was taken")


def clear(*_):
    skpeft.clear_cache()


def interrupt(subject, rng, _):
    model = clone(subject.model)
    try:
        with interrupted_after(rng.uniform(1e-3, 0.2)):
            model.fit(TEXTS, subject.y)
    except KeyboardInterrupt:
        pass
    fit(subject)


def kill(subject, rng, place):
    if not isinstance(subject.model, AdapterClassifier):
        return
    name = place / f"{rng.randint(10**9)}" / "model"
    subject.model.save_pretrained(name)
    number = forked(lambda: subject.model.save_pretrained(name))
    time.sleep(rng.uniform(0, 0.05))
    os.kill(number, signal.SIGKILL)
    status_of(number)
    outcome = after_kill(name, {subject.expected.tobytes(): "same"})
    if "BROKEN" in outcome:
        raise AssertionError(outcome)


CALM = [fit, predict, pickled, folder, clear]
STEPS = [*CALM, refuse, interrupt, kill]


def together(subjects, rng, place, failures, counts):
    """Steps in several threads at once."""
    choices = [
        (
            CALM[rng.randint(len(CALM))],
            subjects[rng.randint(len(subjects))],
            rng.randint(10**6),
        )
        for _ in range(N_THREADS)
    ]

    def work(step, subject, seed):
        attempt(step, subject, np.random.RandomState(seed), place, failures, counts)

    threads = [threading.Thread(target=work, args=choice) for choice in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        if thread.is_alive():
            failures.append("a thread waits for ever")


def attempt(step, subject, rng, place, failures, counts):
    try:
        step(subject, rng, place)
    except Exception as error:
        failures.append(f"{step.__name__}: {error!r:.200}")
    counts[step.__name__] += 1


def soak(seconds, seed):
    """Run for some seconds: a record of what was done and what came of it."""
    rng, counts, failures, memory = np.random.RandomState(seed), Counter(), [], []
    options = {"encoder": "tiny", "random_state": 0, "max_epochs": 2}
    subjects = [Subject(model) for model in [*jobs(), AdapterRegressor(**options)]]
    start = last = time.perf_counter()
    with scratch() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while (now := time.perf_counter()) < start + seconds:
            if rng.rand() < 0.1:
                together(subjects, rng, place, failures, counts)
                counts["rounds of threads"] += 1
            else:
                step = STEPS[rng.randint(len(STEPS))]
                subject = subjects[rng.randint(len(subjects))]
                attempt(step, subject, rng, place, failures, counts)
            if now - last > seconds / 200:
                memory.append(resident())
                last = now
    quarter = max(1, len(memory) // 4)
    early, late = (
        statistics.median(part)
        for part in (memory[quarter : 2 * quarter], memory[-quarter:])
    )
    return {
        "seed": seed,
        "seconds": round(time.perf_counter() - start),
        "steps": sum(counts.values()) - counts["rounds of threads"],
        "of_each": dict(counts.most_common()),
        "failures": failures,
        "memory_mb": [round(early / 2**20, 1), round(late / 2**20, 1)],
        "flat": late - early < GROWN,
        "objects": len(gc.get_objects()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    record = soak(60 * args.minutes, args.seed)
    print(json.dumps(record))
    sys.exit(0 if record["flat"] and not record["failures"] else 1)


if __name__ == "__main__":
    main()
