"""Faults made on purpose, and what came of them: the table of docs/faults.md.

    OMP_NUM_THREADS=1 python examples/benchmarks/faults.py --seed 0 --out faults.jsonl
    python examples/benchmarks/faults.py --only "bits flipped in a folder" --scale 0.1
    python examples/benchmarks/faults.py --report --out faults.jsonl

Toy encoders, no download. Each fault is tried many times; every trial ends in an outcome,
and one that breaks a promise begins with "BROKEN" and makes the exit status 1. It needs
the calls of Unix: signals, fork, resource limits.
"""

import argparse
import contextlib
import ctypes
import dis
import errno
import functools
import gc
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor
from skpeft.adapters import ADAPTERS, Bottleneck, LoRA
from skpeft.encoders import ENCODERS, TextEncoder, TinyTextEncoder, _registry
from skpeft.objectives import OBJECTIVES, CrossEntropy

TEXTS = [f"{word} {thing}" for word in ("good", "bad") for thing in "abcdef"]
LABELS = ["+"] * 6 + ["-"] * 6
PAIRS = list(zip(TEXTS, TEXTS, strict=True))
FAULTS = {}


def fault(n_trials):
    """Register a function that runs so many trials and yields an outcome of each."""

    def register(function):
        FAULTS[function.__doc__.splitlines()[0].rstrip(".")] = (function, n_trials)
        return function

    return register


def fitted(**parameters):
    """A classifier on the toy encoder, fitted on few texts."""
    options = {"encoder": "tiny", "random_state": 0, "max_epochs": 2, "shrinkage": 0.0}
    return AdapterClassifier(**{**options, **parameters}).fit(TEXTS, LABELS)


def refused(error, *words):
    """Outcome of an error: refused where it is of the right kind and says enough."""
    message = str(error)
    if isinstance(error, ValueError | TypeError) and len(message) > 25:
        missing = [word for word in words if word not in message]
        if not missing:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            return f"refused with {kind.__name__}"
        return f"BROKEN: {missing} not in {message[:80]!r}"
    return f"BROKEN: {type(error).__name__}: {message[:80]}"


def sound(model, X):
    """Whether a fitted estimator is whole and answers each row."""
    found = model.predict(X)
    first, second = model.transform(X), model.transform(X)
    whole = len(found) == len(first) and np.array_equal(first, second)
    if hasattr(model, "classes_"):
        whole &= set(found.tolist()) <= set(model.classes_.tolist())
    return bool(whole and np.isfinite(first).all())


# Input

SCRIPTS = [
    "\u0627\u0644\u0633\u0644\u0627\u0645", "\u05e9\u05dc\u05d5\u05dd", "\u4f60\u597d",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0421\u043b\u043e\u0432\u043e", "\ud55c\uae00",
    "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "e\u0301" * 9, "\u202eabc", "\ufeff",
]  # fmt: skip


def odd_text(rng):
    """One text that somebody's table may hold."""
    kind = rng.randint(12)
    if kind == 0:
        return ""
    if kind == 1:
        return " \t\n\u00a0\u200b"[: 1 + rng.randint(5)]
    if kind == 2:
        return SCRIPTS[rng.randint(len(SCRIPTS))]
    if kind == 3:
        points = rng.randint(1, 0x110000, size=rng.randint(1, 30))
        return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    if kind == 4:
        return "a\x00b" * rng.randint(1, 4)
    if kind == 5:
        return "zxqj " * rng.randint(1, 300)
    if kind == 6 and rng.rand() < 0.02:
        return "word " * 200_000
    return " ".join(TEXTS[rng.randint(len(TEXTS))] for _ in range(rng.randint(1, 4)))


def boxed(texts, rng):
    """The same texts in one of the containers that hold them."""
    kinds = [
        list,
        tuple,
        lambda x: np.array(x, dtype=object),
        lambda x: np.array(x, dtype=object)[:, None],
        lambda x: pd.Series(x, index=np.arange(len(x))[::-1], dtype=object),
        lambda x: pd.DataFrame({"text": x}),
        lambda x: list(zip(x, x[::-1], strict=True)),
    ]
    return kinds[rng.randint(len(kinds))](texts)


WRONG_TEXTS = [
    None,
    np.nan,
    3,
    b"bytes",
    {},
    1.5,
    pd.NA,
    object(),
    ["a", "b", "c"],
    True,
]
WRONG_X = [
    None, "text", b"text", 7, {}, {"a"}, [], (), iter(["a"]), np.zeros((4, 2)), np.zeros(3),
    np.zeros((2, 2, 2), dtype=object), scipy.sparse.eye(3).tocsr(), pd.DataFrame(),
    pd.DataFrame({"a": ["x"] * 4, "b": ["y"] * 4, "c": ["z"] * 4}), [[]], [["a"], ["a", "b"]],
    object(), range(4), np.array(["2020-01-01"] * 4, dtype="datetime64[D]"),
]  # fmt: skip
WRONG_Y = [
    None,
    "labels",
    5,
    {},
    [[1, 2]],
    np.zeros((4, 3)),
    [object()] * 4,
    [b"x", "x", 1, 2],
]
WRONG_WEIGHTS = [
    "heavy",
    [np.nan],
    [-1.0],
    [np.inf],
    [0.0],
    [[1.0, 2.0]],
    {},
    [None],
    ["a"],
]


def spoilt(case, rng):
    """A case with one thing wrong, or merely odd; words that the error must hold."""
    n, words = len(case["texts"]), ()
    kind = rng.randint(13)
    if kind == 0:
        i = rng.randint(n)
        texts = list(case["texts"])
        texts[i] = WRONG_TEXTS[rng.randint(len(WRONG_TEXTS))]
        pair = (
            i > 0 and rng.rand() < 0.3
        )  # the first row decides whether rows are pairs
        case["X"] = [(t, "x") for t in texts] if pair else texts
        words = (f"X[{i}",) if i else ()
    elif kind == 1:
        i = rng.randint(n)
        case["X"] = [*case["texts"][:i], "a \udc80 b", *case["texts"][i + 1 :]]
        words = (f"X[{i}]", "surrogate")
    elif kind == 2:
        case["X"] = WRONG_X[rng.randint(len(WRONG_X))]
    elif kind == 3:
        case["y"] = WRONG_Y[rng.randint(len(WRONG_Y))]
    elif kind == 4:
        case["y"] = list(case["y"])
        case["y"][rng.randint(n)] = [None, np.nan, np.inf, -np.inf, object(), "x", 3.5][
            rng.randint(7)
        ]
    elif kind == 5:
        case["y"] = (
            list(case["y"])[: rng.randint(n)] if rng.rand() < 0.5 else [1] * (n + 1)
        )
    elif kind == 6:
        case["sample_weight"] = WRONG_WEIGHTS[rng.randint(len(WRONG_WEIGHTS))]
        if isinstance(case["sample_weight"], list) and rng.rand() < 0.8:
            weights = case["sample_weight"] * n
            if weights[0] != 0.0 and rng.rand() < 0.5:
                weights[rng.randint(n) :] = [1.0] * len(weights[rng.randint(n) :])
            case["sample_weight"] = weights[:n]
    elif kind == 7:
        case["y"] = [case["y"][0]] * n
    elif kind == 8:
        case["X"], case["y"] = case["texts"][:1], case["y"][:1]
    elif kind == 9:
        case["y"] = np.arange(n)
    elif kind == 10:
        case["X"] = [case["texts"][0]] * n
    elif kind == 11:
        more = {"X_val": case["texts"], "y_val": list(case["y"])}
        change = rng.randint(5)
        if change == 0:
            del more["y_val"]
        elif change == 1:
            del more["X_val"]
        elif change == 2:
            more["y_val"][0] = "unseen"
        elif change == 3:
            more["X_val"] = WRONG_X[rng.randint(len(WRONG_X))]
        case["more"] = more
    else:
        wrong = [
            {"class_weight": {"none": 1}},
            {"class_weight": {"+": -1.0}},
            {"class_weight": "even"},
            {"label_texts": {1: 2}},
            {"label_texts": {"none": "x"}},
        ]
        case["parameters"] = wrong[rng.randint(len(wrong))]
    return words


@fault(18_000)
def odd_input(rng, n):
    """Odd and wrong texts, targets and weights."""
    models = {
        (kind, adapter): kind("tiny", adapter=adapter, **FAST).fit(TEXTS, y)
        for kind, y in (
            (AdapterClassifier, LABELS),
            (AdapterRegressor, np.arange(12.0)),
        )
        for adapter in (None, "lora")
    }
    keys = list(models)
    for _ in range(n):
        key = keys[rng.choice(4, p=[0.6, 0.06, 0.3, 0.04])]
        yield one_input(models[key], rng)


FAST = {"random_state": 0, "max_epochs": 1, "shrinkage": 0.0, "device": "cpu"}


def one_input(model, rng):
    """Fit, or ask, a fitted model; refused input must leave it as it was."""
    size = rng.randint(2, 7)
    texts = [odd_text(rng) for _ in range(size)]
    is_classifier = isinstance(model, AdapterClassifier)
    y = np.resize(["+", "-"], size) if is_classifier else rng.randn(size)
    case = {"texts": texts, "X": boxed(texts, rng), "y": y}
    words = spoilt(case, rng) if rng.rand() < 0.6 else ()
    parameters = case.get("parameters", {})
    if not is_classifier:
        parameters = {}
    former = dict(vars(model))
    asked = rng.rand() < 0.3
    try:
        if asked:
            found = model.predict(case["X"])
            return "valid result" if len(found) else "BROKEN: no answer"
        model.set_params(**parameters)
        model.fit(
            case["X"], case["y"], case.get("sample_weight"), **case.get("more", {})
        )
    except Exception as error:
        model.set_params(**{name: former[name] for name in parameters})
        same = vars(model).keys() == former.keys() and all(
            value is former[name] for name, value in vars(model).items()
        )
        return refused(error, *words) if same else "BROKEN: the earlier fit is lost"
    model.set_params(**{name: former[name] for name in parameters})
    whole = sound(model, case["X"])
    return "valid result" if whole else "BROKEN: fitted, but not whole"


@fault(2_000)
def odd_numbers(rng, n):
    """Odd and wrong rows of numbers."""
    X = rng.randn(8, 3)
    model = AdapterClassifier("array", adapter=None, **FAST).fit(X, [0, 1] * 4)
    values = [np.nan, np.inf, -np.inf, 1e38, 1e300, 1e-300, -0.0, 2**60]
    for _ in range(n):
        rows = rng.randn(8, rng.choice([0, 1, 3, 4]))
        if rows.size and rng.rand() < 0.7:
            rows.flat[rng.randint(rows.size)] = values[rng.randint(len(values))]
        kinds = [
            "float64",
            "float32",
            "float16",
            "object",
            "complex64",
            "int64",
            "bool",
            "U9",
        ]
        former = dict(vars(model))
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = rows.astype(kinds[rng.randint(len(kinds))])
                model.fit(rows, [0, 1] * 4)
        except Exception as error:
            same = all(value is former[name] for name, value in vars(model).items())
            yield refused(error) if same else "BROKEN: the earlier fit is lost"
            continue
        yield "valid result" if sound(model, rows) else "BROKEN: fitted, but not whole"


# Parameters

JUNK = [
    object(), "no such name", "", -1, 0, 1.5, -0.5, 1e300, np.nan, np.inf, b"x", {}, [], (),
    {"a"}, 1j, True, None, np.zeros(2), print, [None], ["a"], int, 10**30, np.float32(0.5),
]  # fmt: skip


def specs():
    """One of each spec, and the estimators."""
    kinds = [kind for name, kind in ADAPTERS.items()]
    kinds += [*ENCODERS.values(), TextEncoder, *OBJECTIVES.values()]
    return [kind() for kind in kinds]


@fault(2)
def junk_parameters(rng, n):
    """Junk for every parameter of estimators and specs."""
    for _ in range(n):
        for kind, y in (
            (AdapterClassifier, LABELS),
            (AdapterRegressor, np.arange(12.0)),
        ):
            for name in kind().get_params():
                yield from (junk(kind("tiny", **FAST), name, v, y) for v in JUNK)
        for spec in specs():
            for name in spec.get_params():
                yield from (junk_of_spec(spec, name, value) for value in JUNK)


def junk(model, name, value, y):
    if name == "max_epochs" and isinstance(value, int) and value > 1:
        return "taken"  # and would take long
    if name == "callback" and callable(value):
        return "taken"  # what it raises is its own
    try:
        model.set_params(**{name: value}).fit(TEXTS, y)
    except (ValueError, TypeError) as error:
        known = name in str(error) or (
            name in ("encoder", "device") and len(str(error)) > 40
        )
        return (
            "refused by name"
            if known
            else f"BROKEN: {name}={value!r:.20}: {error!r:.90}"
        )
    except OSError as error:
        known = name == "encoder" and isinstance(value, str)
        return (
            "refused by name"
            if known
            else f"BROKEN: {name}={value!r:.20}: {error!r:.90}"
        )
    except Exception as error:
        return f"BROKEN: {name}={value!r:.20}: {error!r:.90}"
    return (
        "taken" if sound(model, TEXTS) else f"BROKEN: {name}={value!r:.20} fits halfway"
    )


def junk_of_spec(spec, name, value):
    try:
        clone(spec).set_params(**{name: value}).validate()
    except (ValueError, TypeError) as error:
        named = name in str(error)
        return (
            "refused by name"
            if named
            else f"BROKEN: {name}={value!r:.20}: {error!r:.90}"
        )
    except Exception as error:
        return f"BROKEN: {name}={value!r:.20}: {error!r:.90}"
    return "taken"


# Training


@fault(300)
def absurd_rates(rng, n):
    """Learning rates from 1 to 1e30."""
    for _ in range(n):
        rate = 10.0 ** rng.uniform(0, 30)
        y, kind = (
            (LABELS, AdapterClassifier) if rng.rand() < 0.7 else (np.arange(12.0), None)
        )
        kind = kind or AdapterRegressor
        model = kind(
            "tiny",
            adapter=["lora", "bottleneck", "full", "bitfit"][rng.randint(4)],
            learning_rate=rate,
            max_epochs=4,
            batch_size=4,
            shrinkage=["auto", 0.0][rng.randint(2)],
            random_state=0,
        )
        if kind is AdapterClassifier:
            model.set_params(objective=["contrastive", "cross_entropy"][rng.randint(2)])
        more = {"X_val": TEXTS, "y_val": y} if rng.rand() < 0.5 else {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model.fit(TEXTS, y, **more)
            except ValueError as error:
                bare = not hasattr(model, "head_") and "learning_rate" in str(error)
                yield (
                    "error that names learning_rate"
                    if bare
                    else f"BROKEN: {error!r:.90}"
                )
                continue
        if not sound(model, TEXTS):
            yield "BROKEN: fitted, but not whole"
        elif any("learning_rate" in str(w.message) for w in caught):
            yield "fitted, with a warning"
        else:
            yield "fitted, finite"


class OutOfMemory(CrossEntropy):
    """Objective for which the memory of the device never suffices at one step."""

    def __init__(self, step=0):
        self.step = step

    def value(self, outputs, targets):
        """Loss of each row, until the step comes."""
        OutOfMemory.left -= 1
        if OutOfMemory.left < 0:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB."
            )
        return super().value(outputs, targets)


@fault(100)
def out_of_memory(rng, n):
    """Device memory that runs out in training."""
    for _ in range(n):
        model = AdapterClassifier(
            "tiny", objective=OutOfMemory(), batch_size=4, max_epochs=4
        )
        if rng.rand() < 0.5:
            model.set_params(objective="cross_entropy", random_state=0).fit(
                TEXTS, LABELS
            )
            model.set_params(objective=OutOfMemory())
        OutOfMemory.left = rng.randint(12)
        try:
            model.fit(TEXTS, LABELS)
            yield "BROKEN: no error"
        except MemoryError as error:
            left = [
                name for name in vars(model) if name.endswith("_") or name[0] == "_"
            ]
            good = "batch_size=4" in str(error) and not left
            yield (
                "MemoryError that names batch_size, unfitted"
                if good
                else f"BROKEN: {left}"
            )


@contextlib.contextmanager
def interrupted_after(seconds):
    """A KeyboardInterrupt after some time, wherever Python is then."""

    def strike(*_):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


class AtLine:
    """Context in which a line of skpeft, counted as they run, raises KeyboardInterrupt.

    Not where a `with` block is about to be left: a trace is asked there, but Python looks
    for no interrupt before the context is closed.
    """

    def __init__(self, number=None):
        self.number, self.count = number, 0

    def __enter__(self):
        self.former = sys.gettrace()  # of a debugger, or of what measures coverage
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(self.former)

    def _enter(self, frame, *_):
        ours = str(Path(skpeft.__file__).parent)
        return self._strike if frame.f_code.co_filename.startswith(ours) else None

    def _strike(self, frame, event, _):
        if event == "line" and not leaves_with(frame.f_code, frame.f_lasti):
            self.count += 1
            if self.count == self.number:
                raise KeyboardInterrupt
        return self._strike


@functools.cache
def leaves_with(code, offset):
    """Whether what comes next is the call that closes a context, with None three times."""
    ahead = (i for i in dis.get_instructions(code) if i.offset >= offset)
    read = [i.opname == "LOAD_CONST" and i.argval is None for i in islice(ahead, 5)]
    return any(all(read[i : i + 3]) for i in range(3) if len(read) >= i + 3)


def unfitted():
    """A model with dropout, and no clone: of these nothing is kept after an interrupt."""
    return AdapterClassifier(
        "tiny", adapter=LoRA(2, dropout=0.2), max_epochs=3, random_state=0
    )


def plain_fit():
    """That model fitted, what it predicts, and how long its fit takes."""
    model = unfitted().fit(TEXTS, LABELS)
    start = time.perf_counter()
    model.fit(TEXTS, LABELS)
    return model, model.predict_proba(TEXTS), time.perf_counter() - start


@fault(200)
def interrupts(rng, n):
    """KeyboardInterrupt at a random moment of fit."""
    plain, expected, usual = plain_fit()
    for _ in range(n):
        moment = interrupted_after(max(1e-4, rng.uniform(0, 1.1 * usual)))
        yield interrupt(plain, moment, rng, expected)


@fault(150)
def interrupts_by_line(rng, n):
    """KeyboardInterrupt at a random line of our code in fit."""
    plain, expected, _ = plain_fit()
    with AtLine() as trace:
        unfitted().fit(TEXTS, LABELS)
    for _ in range(n):
        # Half of them at the beginning and the end, where attributes are set.
        edge = rng.randint(400)
        number = [1 + rng.randint(trace.count), 1 + edge, trace.count - edge][
            rng.choice(3, p=[0.5, 0.25, 0.25])
        ]
        yield interrupt(plain, AtLine(number), rng, expected)


def interrupt(plain, moment, rng, expected):
    """Outcome of a fit that is interrupted at a moment, with or without an earlier fit."""
    model, outcome = unfitted(), "fitted to the end"
    if rng.rand() < 0.5:
        model.fit(PAIRS, LABELS[::-1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with moment:
                model.fit(TEXTS, LABELS)
        except KeyboardInterrupt:
            outcome = "interrupted"
    if caught and outcome != "interrupted":
        outcome = "fitted, with a warning"
    return after_interrupt(model, outcome, vars(plain).keys(), expected)


def after_interrupt(model, outcome, names, expected):
    """Outcome, checked: unfitted altogether, or whole; and the process works on."""
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        return "BROKEN: gradients stay switched off"
    if outcome == "interrupted":
        learned = vars(model).keys() - model.get_params(deep=False).keys()
        if learned and vars(model).keys() != names:
            return f"BROKEN: half fitted: {sorted(learned)}"
        outcome = "fitted whole" if learned else "unfitted"
    if outcome == "unfitted":
        try:
            model.predict(TEXTS)
            return "BROKEN: predicts unfitted"
        except NotFittedError:
            pass
    else:
        earlier = model._network.n_features == 2  # a fit that was not begun leaves it
        X = PAIRS if earlier else TEXTS
        if vars(model).keys() != names or not sound(model, X):
            return "BROKEN: fitted, but not whole"
        outcome = "the earlier fit, whole" if earlier else outcome
    again = clone(model).fit(TEXTS, LABELS).predict_proba(TEXTS)
    return (
        outcome if np.array_equal(again, expected) else "BROKEN: the next fit differs"
    )


# Files


@contextlib.contextmanager
def scratch():
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def forked(work):
    """Process number of a copy of this process that does some work and is no more."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
            work()
        status = 0
    finally:
        os._exit(status)


def status_of(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@fault(800)
def kills(rng, n):
    """SIGKILL at a random moment of save_pretrained over an earlier model."""
    old, new = fitted(), fitted(random_state=1)
    known = {
        m.predict_proba(TEXTS).tobytes(): name
        for m, name in ((old, "old"), (new, "new"))
    }
    with scratch() as place:
        start = time.perf_counter()
        new.save_pretrained(place / "model")
        usual = time.perf_counter() - start
        for _ in range(n):
            shutil.rmtree(place)
            old.save_pretrained(place / "model")
            number = forked(lambda: new.save_pretrained(place / "model"))
            time.sleep(rng.uniform(0, 2.5 * usual))
            os.kill(number, signal.SIGKILL)
            status_of(number)
            yield after_kill(place / "model", known)


def after_kill(folder, known):
    """What is in a folder: one of the known models, whole, or a word where it is."""
    try:
        model = AdapterClassifier.from_pretrained(folder)
        name = known.get(model.predict_proba(TEXTS).tobytes())
        return f"the {name} model, whole" if name else "BROKEN: neither model"
    except FileNotFoundError as error:
        (aside,) = folder.parent.glob(".model.*.old")
        if str(aside) not in str(error):
            return "BROKEN: nobody says where the model is"
        aside.rename(folder)
        return after_kill(folder, known).replace(
            ", whole", ", aside where the error says"
        )
    except Exception as error:
        return f"BROKEN: {error!r:.90}"


@fault(3_000)
def flips(rng, n):
    """One bit flipped in a file of a saved folder."""
    model = fitted(adapter=[LoRA(2), Bottleneck(2)][rng.randint(2)])
    with scratch() as place:
        model.save_pretrained(place / "model")
        files = {
            path: path.read_bytes() for path in sorted((place / "model").iterdir())
        }
        for _ in range(n):
            path = list(files)[rng.randint(len(files))]
            data = bytearray(files[path])
            # Headers are short beside tensors: half of the flips go to the first bytes.
            reach = len(data) if rng.rand() < 0.5 else min(len(data), 200)
            data[rng.randint(reach)] ^= 1 << rng.randint(8)
            path.write_bytes(data)
            yield after_change(place / "model", model, path.name)
            path.write_bytes(files[path])


@fault(1_000)
def cuts(rng, n):
    """A file of a saved folder cut short, or with more at its end."""
    model = fitted()
    with scratch() as place:
        model.save_pretrained(place / "model")
        files = {
            path: path.read_bytes() for path in sorted((place / "model").iterdir())
        }
        for _ in range(n):
            path = list(files)[rng.randint(len(files))]
            data = files[path]
            cut = data[: rng.randint(len(data))]
            path.write_bytes(
                cut if rng.rand() < 0.7 else data + rng.bytes(rng.randint(1, 50))
            )
            yield after_change(place / "model", model, path.name)
            path.write_bytes(files[path])


def after_change(folder, model, name):
    try:
        found = AdapterClassifier.from_pretrained(folder).predict_proba(TEXTS)
    except ValueError as error:
        return (
            "refused"
            if name in str(error)
            else f"BROKEN: {name} not named: {error!r:.90}"
        )
    except Exception as error:
        return f"BROKEN: {error!r:.90}"
    if not np.array_equal(found, model.predict_proba(TEXTS)):
        return f"BROKEN: {name}: other answers"
    return (
        "the model card, which is not read"
        if name == "README.md"
        else f"BROKEN: {name}"
    )


@fault(2_000)
def joblib_tensors(rng, n):
    """One bit flipped among the trained tensors of a joblib file."""
    model = fitted()
    file = io.BytesIO()
    joblib.dump(model, file)
    data = file.getvalue()
    places = []
    for array in model._network.state().values():
        start = data.find(array.tobytes()) if array.any() else -1
        if start >= 0:
            places.append((start, array.nbytes))
    if not places:
        yield "BROKEN: the tensors are not found in the file"
    for _ in range(n):
        start, size = places[rng.randint(len(places))]
        changed = bytearray(data)
        changed[start + rng.randint(size)] ^= 1 << rng.randint(8)
        try:
            joblib.load(io.BytesIO(changed)).predict(TEXTS)
            yield "BROKEN: loaded"
        except ValueError as error:
            yield "refused" if "damaged" in str(error) else f"BROKEN: {error!r:.90}"


@fault(600)
def joblib_anywhere(rng, n):
    """One bit flipped anywhere in a joblib file."""
    model = fitted()
    file = io.BytesIO()
    joblib.dump(model, file)
    data, expected = file.getvalue(), model.predict_proba(TEXTS)
    for _ in range(n):
        changed = bytearray(data)
        changed[rng.randint(len(data))] ^= 1 << rng.randint(8)
        yield in_child(lambda changed=changed: after_flip(changed, expected))


def after_flip(data, expected):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = joblib.load(io.BytesIO(data)).predict_proba(TEXTS)
    except Exception:
        return "an error"
    same = np.shape(found) == expected.shape and np.array_equal(found, expected)
    return "same answers" if same else "other answers, by another head (not promised)"


def in_child(work):
    """Outcome of work that could bring its process down: done in a copy of this one."""
    reader, writer = os.pipe()

    def child():
        resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
        os.write(writer, work().encode())

    number = forked(child)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read().decode()
    status = status_of(number)
    return answer or f"BROKEN: the process ended with {status}"


@fault(300)
def disk_full(rng, n):
    """A disk that is full at some byte of a save."""
    old, new = fitted(), fitted(random_state=1)
    with scratch() as place:
        old.save_pretrained(place / "model")
        former = contents(place / "model")
        for _ in range(n):
            limit = int(rng.randint(0, max(map(len, former.values()))))

            def save(limit=limit):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                try:
                    new.save_pretrained(place / "model")
                    return "BROKEN: saved"
                except OSError:
                    return "OSError, the old model whole"

            outcome = in_child(save)
            left = (
                os.listdir(place) == ["model"] and contents(place / "model") == former
            )
            yield outcome if left else "BROKEN: the old model is not whole"
    try:
        with open("/dev/full", "wb") as full:
            joblib.dump(new, full)
        yield "BROKEN: dumped to a full device"
    except OSError:
        yield "joblib.dump: OSError"


@contextlib.contextmanager
def mounted(options):
    """Folder that is a file system of its own, or None where mounting is refused."""
    with scratch() as place:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            done = False
        try:
            yield place if done else None
        finally:
            if done:
                subprocess.run(["umount", str(place)], check=True)


@fault(200)
def small_disk(rng, n):
    """A small file system that is full, of bytes or of files, in a save."""
    old, new = fitted(), fitted(random_state=1)
    known = {
        m.predict_proba(TEXTS).tobytes(): name
        for m, name in ((old, "old"), (new, "new"))
    }
    with scratch() as place:
        old.save_pretrained(place / "model")
        size = sum(map(len, contents(place / "model").values()))
    for _ in range(n):
        # Of files: the old folder fits, and mostly the new one does not fit beside it.
        n_files = 8 + rng.randint(9) if rng.rand() < 0.3 else 0
        with mounted(f"size=16m,nr_inodes={n_files}") as place:
            if place is None:
                yield "skipped: mounting a file system is refused here"
                continue
            old.save_pretrained(place / "model")
            room = shutil.disk_usage(place).free - rng.randint(4 * size)
            (place / "rest").write_bytes(bytes(0 if n_files else room))
            yield after_full(new, place, known)


def after_full(model, place, known):
    """Outcome of a save for which there may not be enough room."""
    former = contents(place / "model")
    try:
        model.save_pretrained(place / "model")
    except OSError as error:
        if error.errno != errno.ENOSPC or "No space left" not in str(error):
            return f"BROKEN: {error!r:.90}"
        same = contents(place / "model") == former
        clean = sorted(os.listdir(place)) == ["model", "rest"]
        whole = same and clean and "old" in after_kill(place / "model", known)
        return (
            "OSError, the old model whole" if whole else "BROKEN: the old is not whole"
        )
    whole = "new" in after_kill(place / "model", known)
    return (
        "room enough, the new model whole" if whole else "BROKEN: the new is not whole"
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@fault(20)
def read_only(rng, n):
    """A folder that must not be written to."""
    old, new = fitted(), fitted(random_state=1)
    with scratch() as place:
        old.save_pretrained(place / "in" / "model")
        former = contents(place / "in" / "model")
        for path in (place, place / "in" / "model"):
            path.chmod(0o755)
        (place / "in").chmod(0o555)
        for _ in range(n):

            def save():
                if os.geteuid() == 0:
                    os.setuid(65534)
                try:
                    new.save_pretrained(place / "in" / "model")
                    return "BROKEN: saved"
                except PermissionError:
                    return "PermissionError, the old model whole"

            outcome = in_child(save)
            same = contents(place / "in" / "model") == former
            yield outcome if same else "BROKEN: the old model is not whole"
        (place / "in").chmod(0o755)


@fault(50)
def several_savers(rng, n):
    """Four processes that save to one name at the same time."""
    models = [fitted(random_state=i) for i in range(4)]
    known = {m.predict_proba(TEXTS).tobytes(): f"{i}" for i, m in enumerate(models)}

    def save_often(model, folder):
        for _ in range(5):
            model.save_pretrained(folder)

    for _ in range(n):
        with scratch() as place:
            numbers = [
                forked(lambda m=m: save_often(m, place / "model")) for m in models
            ]
            statuses = [status_of(number) for number in numbers]
            found = after_kill(place / "model", known)
            clean = os.listdir(place) == ["model"] and not any(statuses)
            good = clean and "BROKEN" not in found
            yield "one of the four, whole" if good else f"BROKEN: {statuses} {found}"


# Many at once


def jobs():
    """Estimators of different kinds on one shared encoder."""
    adapters = [
        None,
        "lora",
        "bottleneck",
        "prefix",
        "ia3",
        "bitfit",
        "layer_norm",
        "ladder",
    ]
    options = {"encoder": "tiny", "random_state": 0, "max_epochs": 2}
    return [AdapterClassifier(adapter=adapter, **options) for adapter in adapters]


@fault(10)
def threads(rng, n):
    """Sixteen threads that fit, predict and load on one encoder."""
    models = jobs()
    expected = [
        clone(model).fit(TEXTS, LABELS).predict_proba(TEXTS) for model in models
    ]
    kept = [clone(model).fit(TEXTS, LABELS) for model in models]
    files = [pickle.dumps(model) for model in kept]

    def work(i, outcomes):
        kind = i % len(models)
        ways = [
            lambda: clone(models[kind]).fit(TEXTS, LABELS),
            lambda: kept[kind],
            lambda: pickle.loads(files[kind]),
        ]
        try:
            for way in ways[i % 3 :] + ways[: i % 3]:
                same = np.array_equal(way().predict_proba(TEXTS), expected[kind])
                outcomes.append("equal to those alone" if same else "BROKEN: others")
        except Exception as error:
            outcomes.append(f"BROKEN: {error!r:.90}")

    for _ in range(n):
        outcomes = []
        started = [
            threading.Thread(target=work, args=(i, outcomes), daemon=True)
            for i in rng.permutation(16)
        ]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(timeout=120)
        if any(thread.is_alive() for thread in started):
            yield "BROKEN: a thread waits for ever"
        yield from outcomes


def resident():
    """Bytes of memory that the process holds, after what is free was given back."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@fault(500)
def leaks(rng, n):
    """Fits and deletions, and what memory they leave."""
    memory, objects = [], []
    every, limit = max(1, n // 20), 2**15
    gc.collect()
    # Others in this process may use some.
    before = len(_registry._alive), len(_registry._fingerprints)
    with skpeft.config_context(cache_bytes=limit):
        for i in range(n):
            encoder = TinyTextEncoder(seed=i // 4)  # another one after four fits
            fitted(encoder=encoder, adapter=["lora", "bottleneck", "full", None][i % 4])
            if i % every == every - 1:
                memory.append(resident())
                objects.append(len(gc.get_objects()))
        gc.collect()
        kept = len(_registry._alive), len(_registry._fingerprints)
        few = all(now <= was + 2 for now, was in zip(kept, before, strict=True))
        bounded = few and skpeft.cache_info().n_bytes <= limit
    half = len(memory) // 2  # what is loaded once comes first
    slope = growth(memory[half:]) / every
    more = growth(objects[half:]) / every
    word = f"{slope:+.0f} bytes and {more:+.2f} objects a fit"
    if not bounded:
        word += f"; {kept} encoders, {skpeft.cache_info()}"
    flat = slope < 5_000 and more < 1 and bounded
    yield from [word if flat else f"BROKEN: {word}"] * n


def growth(values):
    """Slope of values over their number, where at least three are there."""
    if len(values) < 3:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


# The table


def run(name, seed, scale=1.0):
    """Trials of one fault: a record."""
    function, n_trials = FAULTS[name]
    rng = np.random.RandomState(seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = Counter(function(rng, max(1, round(n_trials * scale))))
    return {
        "fault": name,
        "seed": seed,
        "trials": sum(outcomes.values()),
        "outcomes": dict(outcomes.most_common()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(records):
    """Records as Markdown."""
    rows = ["| fault | trials | what happened |", "| --- | --- | --- |"]
    for record in records:
        happened = "; ".join(f"{word}: {n:,}" for word, n in record["outcomes"].items())
        rows.append(f"| {record['fault']} | {record['trials']:,} | {happened} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the trials")
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--report", action="store_true", help="print what --out holds")
    args = parser.parse_args()
    if args.report:
        lines = args.out.read_text().splitlines()
        records = {record["fault"]: record for record in map(json.loads, lines)}
        print(table(records.values()))
        return
    records = []
    for name in args.only or FAULTS:
        records.append(run(name, args.seed, args.scale))
        print(json.dumps(records[-1], ensure_ascii=False), file=sys.stderr, flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    print(table(records))
    broken = [word for r in records for word in r["outcomes"] if "BROKEN" in word]
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
