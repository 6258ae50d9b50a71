"""When something goes wrong nothing is lost: the faults of docs/faults.md, fewer of each."""

import importlib.util
import sys
import threading
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._cache import StateCache
from skpeft.adapters import ADAPTERS, Combination, LoRA
from skpeft.encoders import ArrayEncoder, TextEncoder, TinyTextEncoder
from skpeft.objectives import Contrastive, CrossEntropy, Huber, SquaredError

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
pytestmark = pytest.mark.skipif(
    not hasattr(__import__("os"), "fork"),
    reason="makes its faults with fork and signals",
)


def script(name):
    """A script of the benchmarks as a module; `soak` imports `faults` by its name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


faults = script("faults")
TEXTS, LABELS = faults.TEXTS, faults.LABELS
# So many trials of each; of those that are left out here a test below takes the place.
TRIALS = {
    "Odd and wrong texts, targets and weights": 300,
    "Odd and wrong rows of numbers": 60,
    "Learning rates from 1 to 1e30": 12,
    "Device memory that runs out in training": 6,
    "KeyboardInterrupt at a random moment of fit": 10,
    "KeyboardInterrupt at a random line of our code in fit": 10,
    "SIGKILL at a random moment of save_pretrained over an earlier model": 15,
    "One bit flipped in a file of a saved folder": 150,
    "A file of a saved folder cut short, or with more at its end": 60,
    "One bit flipped among the trained tensors of a joblib file": 60,
    "One bit flipped anywhere in a joblib file": 20,
    "A disk that is full at some byte of a save": 10,
    "A small file system that is full, of bytes or of files, in a save": 10,
    "A folder that must not be written to": 1,
    "Four processes that save to one name at the same time": 2,
    "Sixteen threads that fit, predict and load on one encoder": 1,
    "Fits and deletions, and what memory they leave": 40,
}


@pytest.mark.parametrize("name", TRIALS)
def test_fault_breaks_no_promise(name):
    record = faults.run(name, seed=1, scale=TRIALS[name] / faults.FAULTS[name][1])
    assert record["trials"] >= TRIALS[name]
    assert [word for word in record["outcomes"] if "BROKEN" in word] == []
    skipped = [word for word in record["outcomes"] if word.startswith("skipped")]
    if skipped:
        pytest.skip(skipped[0])


def test_every_fault_of_the_script_is_tried():
    rest = {"Junk for every parameter of estimators and specs"}
    assert TRIALS.keys() | rest == faults.FAULTS.keys()


def test_soak_of_some_seconds_shows_no_difference():
    record = script("soak").soak(seconds=20, seed=1)
    assert record["steps"] > 5
    assert record["failures"] == []


def test_page_of_faults_shows_each_fault_with_its_trials():
    page = (BENCHMARKS.parents[1] / "docs" / "faults.md").read_text()
    for name in faults.FAULTS:
        assert f"| {name} |" in page


# Input


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(
    st.lists(st.text(st.characters(), max_size=40), min_size=2, max_size=5), st.data()
)
def test_texts_of_any_characters_are_learned_or_refused_by_place(texts, data):
    y = np.resize(["+", "-"], len(texts))
    model = AdapterClassifier("tiny", adapter=None, shrinkage=0.0)
    wrong = [
        i for i, t in enumerate(texts) if any(0xD800 <= ord(c) < 0xE000 for c in t)
    ]
    if wrong:
        with pytest.raises(
            ValueError, match=rf"X\[{wrong[0]}\] holds a lone surrogate"
        ):
            model.fit(texts, y)
        return
    assert set(model.fit(texts, y).predict(texts)) <= {"+", "-"}


def test_text_of_a_megabyte_is_cut_and_learned():
    texts = ["word " * 200_000, "a", "b " * 500_000, ""]
    model = AdapterClassifier("tiny", max_epochs=1, random_state=0).fit(
        texts, [0, 1, 0, 1]
    )
    assert len(model.predict(texts)) == 4


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_target_that_is_not_finite_is_refused_with_a_remedy(kind, bad):
    y = np.resize([0.0, 1.0], 12)
    y[5] = bad
    with pytest.raises(ValueError, match=r"Input y contains .*fill or drop"):
        kind("tiny").fit(TEXTS, y)


def test_validation_rows_that_are_wrong_are_named_as_such():
    model = AdapterClassifier("tiny")
    with pytest.raises(ValueError, match=r"In the validation rows: X\[1\] is 3"):
        model.fit(TEXTS, LABELS, X_val=["a", 3], y_val=["+", "-"])
    with pytest.raises(TypeError, match="In the validation rows: X is a single str"):
        model.fit(TEXTS, LABELS, X_val="a", y_val=["+"])


def test_numbers_too_large_for_the_encoder_are_refused_at_predict():
    X = np.random.RandomState(0).randn(8, 2)
    model = AdapterClassifier("array", adapter=None).fit(X, [0, 1] * 4)
    with pytest.raises(
        ValueError, match=r"features of some samples are not finite.*scale"
    ):
        model.predict(np.full((1, 2), 1e38))


# Parameters: of each, values of a wrong type and values out of range

CAPACITY = [0, -1, 1.5, "8", None, [8], True, 2**16 + 1]
FLAG = ["yes", 2, 0.5, None, []]
ROLES = [5, 1.5, object(), [], ["query", 3]]
WRONG = {
    "rank": [0, -1, 1.5, "8", [8], True, 2**16 + 1],
    "layers": ["all", 0, 1.5, {}, True, [99], [0.5], 2**16 + 1],
    "objective": ["contrast", 5, None, {}, LoRA()],
    "head": ["ridge", 5, {}, object()],
    "max_epochs": [0, -1, 1.5, "5", [5], True],
    "batch_size": [0, -1, 1.5, "5", [5], True],
    "learning_rate": [0.0, -1.0, "auto", [0.1], np.nan, np.inf, 1e300, True],
    "weight_decay": [-0.1, "none", None, np.nan, np.inf, 1e300, True],
    "warmup_fraction": [-0.1, 1.5, "none", None, np.nan, True],
    "shrinkage": [-0.1, 1.5, "none", None, np.nan, True],
    "early_stopping": ["yes", 2, 0.5, None],
    "validation_fraction": [0.0, 1.0, 2, "half", None, np.nan],
    "n_iter_no_change": [0, 1.5, "5", None, True],
    "tol": [-1.0, "none", None, np.nan, True],
    "warm_start": FLAG,
    "random_state": ["seed", -1, 1.5, [1], True],
    "verbose": ["loud", -1, 1.5, None],
    "callback": ["print", 5, {}],
    "device": [5, None, "gpu", "cuda:99x", ""],
    "precision": ["float16", 32, None, "double"],
    "encoder": [5, None, [], {}, object()],
    "adapter": ["lroa", 5, object(), {}, [5], []],
}
OF_CLASSIFIER = {
    **WRONG,
    "class_weight": ["even", 5, [1, 2], {"none": 1.0}, {"+": -1.0, "-": 1}],
    "label_texts": ["good", 5, [1], {"none": "x"}, {"+": 5}],
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(AdapterClassifier, name) for name in OF_CLASSIFIER]
    + [(AdapterRegressor, name) for name in WRONG],
)
def test_wrong_parameter_of_an_estimator_is_refused_by_name(kind, name):
    y = LABELS if kind is AdapterClassifier else np.arange(12.0)
    for value in OF_CLASSIFIER[name]:
        model = kind(**{"encoder": "tiny", "early_stopping": True, name: value})
        with pytest.raises((ValueError, TypeError), match=name) as caught:
            model.fit(TEXTS, y)
        assert len(str(caught.value)) > 40, value
        assert set(vars(model)) == set(model.get_params(deep=False))


def test_every_parameter_of_the_estimators_is_in_the_table():
    assert OF_CLASSIFIER.keys() == AdapterClassifier().get_params().keys()
    assert WRONG.keys() == AdapterRegressor().get_params().keys()


RATE = [-0.1, 1.0, 1.5, "none", None, np.nan, True]
OF_SPECS = {
    "lora": {
        "rank": CAPACITY,
        "alpha": [0.0, -1.0, "x", [1.0], np.nan, True],
        "dropout": RATE,
        "roles": ROLES,
        "rank_stabilized": FLAG,
        "use_dora": FLAG,
        "weights": [5, [], {}],
        "frozen": FLAG,
    },
    "hira": {
        "rank": CAPACITY,
        "roles": ROLES,
        "weights": [5, [], {}],
        "frozen": FLAG,
    },
    "bottleneck": {
        "bottleneck_dim": CAPACITY,
        "placement": ["above", 5, None],
        "dropout": RATE,
        "activation": ["step", 5, None],
        "scaling": [0.0, -1.0, "x", [1.0], np.nan, True],
    },
    "ia3": {
        "roles": [*ROLES, None],
        "input_roles": [5, 1.5, object(), None],
        "weights": [5, [], {}],
        "frozen": FLAG,
    },
    "bitfit": {"roles": ROLES},
    "layer_norm": {},
    "prefix": {"length": CAPACITY},
    "ladder": {"side_dim": CAPACITY},
    "full": {},
}
SPECS = [
    *(
        (ADAPTERS[name](), parameter, v)
        for name, p in OF_SPECS.items()
        for parameter, v in p.items()
    ),
    *(
        (Contrastive(), "temperature", [v])
        for v in (0.0, -1.0, "x", [1.0], np.nan, True)
    ),
    *((Huber(), "delta", [v]) for v in (0.0, -1.0, "x", None, [1.0], np.nan, True)),
    *(
        (spec, name, values)
        for spec, top in ((TinyTextEncoder(), 1024), (ArrayEncoder(), 1024))
        for name, values in {
            "hidden_size": [0, 1, 1.5, "8", None, True, top + 1],
            "n_layers": [0, 1.5, "8", None, True, 33],
            "seed": [-1, 1.5, "0", None, True],
        }.items()
    ),
    (TinyTextEncoder(), "max_length", [0, 1.5, "8", None, True, 2**16 + 1]),
    (ArrayEncoder(), "module", ["x", 5, object()]),
    (ArrayEncoder(), "role_table", ["x", 5, []]),
    (TextEncoder(), "model", [5, None, object()]),
    (TextEncoder(), "max_length", [0, 1, 1.5, "8", True]),
    (TextEncoder(), "pooling", ["middle", 5, []]),
    (TextEncoder(), "prompt", [5, []]),
    (TextEncoder(), "long_text", ["cut", 5, None]),
    (TextEncoder(), "pair", ["both", 5, None]),
    (TextEncoder(), "revision", [5, []]),
    (TextEncoder(), "trust_remote_code", FLAG),
    (TextEncoder(), "role_table", ["x", 5, []]),
    (TextEncoder(), "include_weights", FLAG),
]


@pytest.mark.parametrize(
    ("spec", "name", "values"),
    SPECS,
    ids=[f"{type(s).__name__}-{n}" for s, n, _ in SPECS],
)
def test_wrong_parameter_of_a_spec_is_refused_by_name(spec, name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=name):
            clone(spec).set_params(**{name: value}).validate()


def test_every_parameter_of_the_specs_is_in_the_table():
    kinds = [*ADAPTERS.values(), Contrastive, CrossEntropy, SquaredError, Huber]
    kinds += [TinyTextEncoder, ArrayEncoder, TextEncoder]
    known = {(type(spec), name) for spec, name, _ in SPECS}
    assert known == {(kind, name) for kind in kinds for name in kind().get_params()}


@pytest.mark.parametrize("members", [5, "lora", [], [5], [Combination([LoRA()])]])
def test_wrong_members_of_a_combination_are_refused(members):
    with pytest.raises(ValueError, match="adapter"):
        Combination(members).validate()


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (
            AdapterClassifier(adapter=LoRA()),
            "adapter__rnak",
            "'rnak'.*LoRA.*Did you mean 'rank'",
        ),
        (
            AdapterClassifier(),
            "adapter__rank",
            "'auto' has no parameters.*such as LoRA",
        ),
        (AdapterClassifier(), "max_epochs__x", r"own\. Set max_epochs itself\."),
        (AdapterClassifier(), "adaptor", "AdapterClassifier.*Did you mean 'adapter'"),
        (AdapterClassifier(), "adaptor__rank", "Did you mean 'adapter'"),
        (AdapterRegressor(), "lr", "'lr' is not a known parameter of AdapterRegressor"),
        (TextEncoder(), "maxlength", "Did you mean 'max_length'"),
        (Contrastive(), "temprature", "Did you mean 'temperature'"),
    ],
    ids=str,
)
def test_name_with_a_slip_gets_the_right_one(model, name, words):
    before = model.get_params()
    with pytest.raises(ValueError, match=words):
        model.set_params(**{name: 3})
    assert model.get_params().keys() == before.keys()
    known = next(iter(model.get_params(deep=False)))
    with pytest.raises(ValueError, match=words):
        model.set_params(**{known: getattr(model, known), name: 3})


def test_grid_with_a_slip_gets_the_right_name():
    grid = {"adapter__rnak": [2]}
    search = GridSearchCV(AdapterClassifier("tiny", adapter=LoRA()), grid, cv=2)
    with pytest.raises(ValueError, match="Did you mean 'rank'"):
        search.fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("given", "name"), [({"adapter__rnak": 3}, "rnak"), ({"head__D": 3}, "D")], ids=str
)
def test_set_params_with_a_slip_sets_nothing(given, name):
    model = AdapterClassifier(adapter=LoRA(), head=LogisticRegression())
    before = {key: repr(value) for key, value in model.get_params().items()}
    new = {"max_epochs": 9, "adapter__dropout": 0.5, "head__C": 7.0}
    with pytest.raises(ValueError, match=f"'{name}'"):
        model.set_params(**new, **given)
    after = {key: repr(value) for key, value in model.get_params().items()}
    assert after == before


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("head__C", r"LogisticRegression\(\)"),
        ("objective__temperature", r"Contrastive\(\) in place of 'contrastive'"),
        ("encoder__max_length", r"TextEncoder\(name\)"),
        ("adapter__rank", r"LoRA\(\)"),
    ],
)
def test_parameter_of_a_part_that_has_none_names_what_has(name, instead):
    with pytest.raises(ValueError, match=f"such as {instead}"):
        AdapterClassifier().set_params(**{name: 1})


def test_set_params_of_a_part_and_its_parameter_at_once():
    model = AdapterClassifier().set_params(adapter__rank=3, adapter=LoRA())
    assert model.adapter.rank == 3


# Training


class Exploding(CrossEntropy):
    """Becomes what it was told from some step on."""

    def __init__(self, step=9, factor=np.nan):
        self.step = step
        self.factor = factor

    def value(self, outputs, targets):
        Exploding.count += 1
        loss = super().value(outputs, targets)
        return loss * self.factor if Exploding.count > self.step else loss


def exploding(factor, **parameters):
    Exploding.count = 0
    objective = Exploding(step=6, factor=factor)
    options = {"batch_size": 4, "max_epochs": 6, "shrinkage": 0.0, "random_state": 0}
    return AdapterClassifier("tiny", objective=objective, **options | parameters)


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e6])
def test_loss_that_explodes_ends_the_fit_with_an_error(factor):
    model = exploding(factor)
    with pytest.raises(
        ValueError, match=r"loss became .*learning_rate=.* give a lower"
    ):
        model.fit(TEXTS, LABELS)
    assert set(vars(model)) == set(model.get_params(deep=False))
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e6])
def test_loss_that_explodes_with_validation_rows_keeps_the_best_state(factor):
    # An epoch is three steps and one value on the validation rows.
    model = exploding(factor)
    with pytest.warns(
        UserWarning, match="loss became .*best of the 1 epochs before is kept"
    ):
        model.fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    assert (
        model.n_epochs_ == len(model.loss_curve_) == len(model.validation_scores_) == 1
    )
    Exploding.count = -1000
    short = clone(model).set_params(callback=lambda record: True)
    short.fit(TEXTS, LABELS, X_val=TEXTS, y_val=LABELS)
    np.testing.assert_array_equal(model.transform(TEXTS), short.transform(TEXTS))


def test_weights_that_are_no_longer_finite_end_the_fit():
    model = AdapterClassifier("tiny", max_epochs=2, learning_rate=1e30, shrinkage=0.0)
    with pytest.raises(ValueError, match="learning_rate"):
        model.fit(TEXTS, LABELS)
    assert not hasattr(model, "head_")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte"
        ),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_an_error_that_names_batch_size(error):
    def fail(record):
        raise error

    model = AdapterClassifier("tiny", callback=fail, batch_size=8, random_state=0)
    with pytest.raises(
        MemoryError, match=r"batch_size=8 \(.*smaller batch_size"
    ) as caught:
        model.fit(TEXTS, LABELS)
    assert caught.value.__cause__ is error
    assert set(vars(model)) == set(model.get_params(deep=False))


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError])
def test_other_errors_of_training_come_through_as_they_are(kind):
    error = kind("something else")

    def fail(record):
        raise error

    with pytest.raises(kind) as caught:
        AdapterClassifier("tiny", callback=fail).fit(TEXTS, LABELS)
    assert caught.value is error


def test_fit_that_fails_leaves_no_names_of_features():
    def fail(record):
        raise KeyError("mine")

    model = AdapterClassifier("tiny", random_state=0).fit(TEXTS, LABELS)
    assert len(model.get_feature_names_out()) == 32
    with pytest.raises(KeyError):
        model.set_params(callback=fail).fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        model.get_feature_names_out()


def test_dropout_that_was_left_on_does_not_reach_predictions():
    model = AdapterClassifier("tiny", adapter=LoRA(2, dropout=0.5), random_state=0)
    expected = model.fit(TEXTS, LABELS).transform(TEXTS)
    left_on = model._network.live.dropout(torch.Generator().manual_seed(0))
    with left_on:
        np.testing.assert_array_equal(model.transform(TEXTS), expected)


# Files


def test_pickle_of_changed_tensors_is_refused(tmp_path):
    model = AdapterClassifier("tiny", random_state=0).fit(TEXTS, LABELS)
    state = model._network.__getstate__()
    name = next(iter(state["_stored"]))
    state["_stored"][name] = state["_stored"][name] + 1
    with pytest.raises(ValueError, match=r"trained tensors .* damaged or was edited"):
        object.__new__(type(model._network)).__setstate__(state)


def test_joblib_file_written_aside_and_renamed_is_whole(tmp_path):
    """The lines of the docs."""
    import os

    model = AdapterClassifier("tiny", random_state=0).fit(TEXTS, LABELS)
    joblib.dump(model, tmp_path / "model.joblib.new")
    os.replace(tmp_path / "model.joblib.new", tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.predict(TEXTS), model.predict(TEXTS))


# Many at once


def test_fitted_models_of_a_cleared_process_hold_no_encoder_in_the_registry():
    from skpeft.encoders import _registry

    skpeft.clear_cache()
    for seed in range(20):
        encoder = TinyTextEncoder(seed=seed)
        AdapterClassifier(encoder, adapter=None).fit(TEXTS, LABELS)
    assert len(_registry._alive) <= 2
    assert len(_registry._fingerprints) <= 2
    skpeft.clear_cache()
    assert len(_registry._alive) == len(_registry._fingerprints) == 0


def test_threads_that_meet_one_refused_fit_go_on():
    model = AdapterClassifier("tiny", random_state=0).fit(TEXTS, LABELS)
    expected, outcomes = model.predict_proba(TEXTS), []

    def ask():
        for _ in range(5):
            outcomes.append(np.array_equal(model.predict_proba(TEXTS), expected))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        with pytest.raises(ValueError, match="X is empty"), warnings.catch_warnings():
            model.fit([], [])
    for thread in threads:
        thread.join(timeout=60)
    assert outcomes == [True] * 20


# Saving


def saved(folder, seed):
    model = AdapterClassifier("tiny", random_state=seed, max_epochs=1).fit(
        TEXTS, LABELS
    )
    model.save_pretrained(folder)
    return model


def test_interrupt_between_the_renames_of_a_save_puts_the_former_model_back(
    tmp_path, monkeypatch
):
    former = saved(tmp_path / "model", 0)
    other = saved(tmp_path / "other", 1)
    plain = Path.rename

    def strike(path, target):
        plain(path, target)
        if path.name == "model":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", strike)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(tmp_path / "model")
    monkeypatch.undo()
    loaded = AdapterClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.transform(TEXTS), former.transform(TEXTS))
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other"}


def test_save_that_another_process_comes_before_replaces_what_that_has_put_there(
    tmp_path, monkeypatch
):
    former = saved(tmp_path / "model", 0)
    model = saved(tmp_path / "other", 1)
    plain, calls = Path.rename, []

    def slow(path, target):
        calls.append(path.name)
        plain(path, target)
        if len(calls) == 1:  # the former model is aside: somebody else saves
            former.save_pretrained(tmp_path / "model")

    monkeypatch.setattr(Path, "rename", slow)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.undo()
    loaded = AdapterClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.transform(TEXTS), model.transform(TEXTS))
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other"}


def test_pickle_of_a_newer_format_is_refused_by_version():
    model = AdapterClassifier("tiny", adapter=None).fit(TEXTS, LABELS)
    state = {**model._network.__getstate__(), "format": 99, "skpeft": "7.5"}
    with pytest.raises(
        ValueError, match=r"skpeft 7\.5 in format 99.*Install skpeft>=7\.5"
    ):
        object.__new__(type(model._network)).__setstate__(state)


def test_texts_of_all_kinds_go_through_a_tokenizer(plain_folder):
    rng = np.random.RandomState(0)
    texts = [faults.odd_text(rng) for _ in range(200)]
    encoder = TextEncoder(str(plain_folder()), max_length=16)
    model = AdapterClassifier(encoder, adapter=None, random_state=0)
    model.fit(texts, np.resize(["+", "-"], 200))
    assert np.isfinite(model.transform(texts)).all()
    with pytest.raises(ValueError, match=r"X\[7\] holds a lone surrogate"):
        model.predict([*texts[:7], "\udc80"])


@pytest.mark.parametrize("number", range(1, 9))
def test_interrupt_where_something_is_dropped_leaves_the_cache_open(number):
    cache = StateCache(10_000)
    cache.put("a", [torch.zeros(4)])
    try:
        with faults.AtLine(number):
            cache.drop("a")
    except KeyboardInterrupt:
        pass
    assert not cache._lock.locked()
    cache.put("b", [torch.zeros(4)])
    assert cache.get("b") is not None
