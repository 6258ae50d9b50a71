"""The comparison of strategies agrees with scikit-learn, and measures what is so."""

import io
import mmap
import os
import sys
import time

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor, compare_strategies
from skpeft.adapters import Bottleneck, LoRA
from skpeft.comparison import PeakMemory

pytest.importorskip("pandas", reason="pandas is not installed")

WORDS = [("plane", "air"), ("flight", "air"), ("ship", "sea"), ("port", "sea")]
TEXTS = [f"{word} {end}" for word, _ in WORDS for end in "abcdef"]
LABELS = [label for _, label in WORDS for _ in "abcdef"]
TINY = AdapterClassifier("tiny", max_epochs=2, random_state=0)
MB = 2**20


def test_scores_are_those_of_cross_val_score_on_the_same_splits():
    cv = StratifiedKFold(2, shuffle=True, random_state=np.random.RandomState(0))
    splits = list(StratifiedKFold(2, shuffle=True, random_state=0).split(TEXTS, LABELS))
    words = make_pipeline(CountVectorizer(), LogisticRegression())
    found = compare_strategies(
        TEXTS,
        LABELS,
        {"probe": None, "adapters": "lora", "words": words},
        estimator=TINY,
        cv=cv,
        scoring="neg_log_loss",
    )
    assert found.index.tolist() == ["probe", "adapters", "words"]
    assert found.index.name == "strategy"
    models = [AdapterClassifier("tiny", adapter=None, random_state=0), TINY, words]
    for name, model in zip(found.index, models, strict=True):
        expected = cross_val_score(
            model, TEXTS, LABELS, cv=splits, scoring="neg_log_loss"
        )
        assert found.loc[name, "mean_test_score"] == pytest.approx(expected.mean())
        assert found.loc[name, "std_test_score"] == pytest.approx(expected.std())
    assert found.attrs["score_name"] == "neg_log_loss"
    assert not hasattr(words[-1], "coef_")  # the user's own is left unfitted


def test_groups_are_kept_together():
    words = make_pipeline(CountVectorizer(), LogisticRegression())
    groups = np.arange(len(TEXTS)) % 3
    own = {"cv": GroupKFold(3), "groups": groups}
    found = compare_strategies(TEXTS, LABELS, {"words": words}, **own)
    expected = cross_val_score(words, TEXTS, LABELS, **own)
    assert found.loc["words", "mean_test_score"] == pytest.approx(expected.mean())
    with pytest.raises(ValueError, match=r"cv=GroupKFold\(.* Pass groups=\.\.\., with"):
        compare_strategies(TEXTS, LABELS, {"words": words}, cv=GroupKFold(3))


def test_parameters_and_bytes_are_those_of_the_fitted_model():
    found = compare_strategies(TEXTS, LABELS, estimator=TINY, cv=2)
    assert found.index.tolist() == ["linear probe", "adapters", "full fine-tuning"]
    train, _ = next(StratifiedKFold(2).split(TEXTS, LABELS))
    model = TINY.fit([TEXTS[i] for i in train], [LABELS[i] for i in train])
    file = io.BytesIO()
    joblib.dump(model, file)
    assert found.loc["adapters", "saved_bytes"] == pytest.approx(file.tell(), abs=64)
    dim = model.transform(TEXTS[:1]).shape[1]
    assert found.loc["linear probe", "n_trained_params"] == dim + 1
    trained = model.n_trainable_params_ + dim + 1
    assert found.loc["adapters", "n_trained_params"] == trained
    assert found["n_trained_params"].is_monotonic_increasing
    assert (found[["mean_fit_time", "mean_score_time"]] > 0).all(axis=None)
    assert found.attrs["score_name"] == "Accuracy"


def test_numbers_as_targets_are_regressed_and_specs_are_named_by_their_repr():
    numbers = np.linspace(0, 1, len(TEXTS))
    reg = AdapterRegressor("tiny", max_epochs=1, random_state=0)
    cv = KFold(2, shuffle=True, random_state=0)
    found = compare_strategies(
        TEXTS, numbers, [LoRA(2), ["lora", "bitfit"]], estimator=reg, cv=cv
    )
    assert found.index.tolist() == ["LoRA(rank=2)", "['lora', 'bitfit']"]
    assert found.attrs["score_name"] == "R²"


def test_score_that_is_a_function_gives_its_name():
    def share_right(model, X, y):
        return model.score(X, y)

    scores = {}
    for scoring in (None, share_right, make_scorer(accuracy_score)):
        found = compare_strategies(
            TEXTS, LABELS, [None], estimator=TINY, cv=2, scoring=scoring
        )
        scores[found.attrs["score_name"]] = found.loc["linear probe", "mean_test_score"]
    assert list(scores) == ["Accuracy", "share_right", "Score"]
    assert len(set(scores.values())) == 1


def test_kind_of_estimator_follows_the_targets(monkeypatch):
    made = []
    for kind in (AdapterClassifier, AdapterRegressor):
        tiny = kind("tiny", adapter=None)
        monkeypatch.setattr(
            skpeft.comparison,
            kind.__name__,
            lambda tiny=tiny: made.append(tiny) or tiny,
        )
    compare_strategies(TEXTS, LABELS, [None], cv=2)
    compare_strategies(TEXTS, np.linspace(0, 1, len(TEXTS)), [None], cv=2)
    assert [type(tiny).__name__ for tiny in made] == [
        "AdapterClassifier",
        "AdapterRegressor",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategies": "lora"}, "expected is a list of adapters"),
        ({"strategies": []}, "strategies is empty"),
        ({"strategies": ["lora", "lora"]}, "two that are alike"),
        ({"strategies": ["lroa"]}, "Did you mean 'lora'"),
        ({"estimator": LogisticRegression()}, "AdapterClassifier or AdapterRegressor"),
        ({"scoring": ["accuracy", "f1"]}, "one score is expected"),
        ({"cv": 40}, "n_splits=40"),
    ],
)
def test_wrong_argument_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        compare_strategies(TEXTS, LABELS, **{"estimator": TINY, "cv": 2, **given})


def test_error_in_a_fit_names_the_strategy():
    far = {"near": None, "far": LoRA(roles=("nowhere",))}
    with pytest.raises(ValueError, match="nowhere") as caught:
        compare_strategies(TEXTS, LABELS, far, estimator=TINY, cv=2)
    assert caught.value.__notes__ == ["This happened to the strategy 'far'."]


def test_rank_goes_to_the_strategies_that_have_one():
    ways = [None, "lora", "bottleneck", "bitfit", "full", ["lora", "bitfit"]]
    ranked = AdapterClassifier("tiny", rank=2, max_epochs=1, random_state=0)
    found = compare_strategies(TEXTS, LABELS, ways, estimator=ranked, cv=2)
    specs = [LoRA(2), Bottleneck(2)]
    for name, spec in zip(["lora", "bottleneck"], specs, strict=True):
        own = AdapterClassifier("tiny", adapter=spec, max_epochs=1, random_state=0)
        own.fit(TEXTS, LABELS)
        head = own.transform(TEXTS[:1]).shape[1] + 1
        assert found.loc[name, "n_trained_params"] == own.n_trainable_params_ + head
    assert ranked.rank == 2


def test_missing_pandas_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        compare_strategies(TEXTS, LABELS, estimator=TINY)


def test_verbose_shows_a_bar_and_the_default_nothing(capfd):
    compare_strategies(TEXTS, LABELS, [None], estimator=TINY, cv=2)
    assert capfd.readouterr() == ("", "")
    compare_strategies(TEXTS, LABELS, [None], estimator=TINY, cv=2, verbose=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "linear probe: 100%" in err
    assert "2/2" in err


def test_class_in_place_of_an_estimator_is_refused():
    with pytest.raises(ValueError, match=r"estimator=.* is expected, whose adapter"):
        compare_strategies(TEXTS, LABELS, estimator=AdapterClassifier)


# Memory -------------------------------------------------------------------------------


class Hungry(ClassifierMixin, BaseEstimator):
    """Touches so many bytes in fit, in pieces that the heap keeps after use."""

    def __init__(self, n_bytes=0):
        self.n_bytes = n_bytes

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.n_ = sum(len(part) for part in [b"x" * 8192] * 2)
        pieces = [bytes([i % 256]) * 8192 for i in range(self.n_bytes // 8192)]
        self.n_ += len(pieces)
        time.sleep(
            0.05
        )  # peaks are looked for every 2 ms, on a busy machine less often
        return self

    def predict(self, X):
        return np.repeat(self.classes_[0], len(X))


@pytest.mark.skipif(
    sys.platform != "linux", reason="free memory is given back on Linux"
)
def test_peak_memory_is_what_a_fit_touched_whatever_was_fitted_before():
    pytest.importorskip("psutil", reason="psutil is not installed")
    sizes = {"first": 60, "large": 120, "again": 60, "small": 2}
    models = {name: Hungry(size * MB) for name, size in sizes.items()}
    found = compare_strategies(TEXTS, LABELS, models, estimator=TINY, cv=2)
    for name, size in sizes.items():
        peak = found.loc[name, "peak_memory_bytes"] / MB
        assert 0.8 * size <= peak <= 1.1 * size + 12, name
    assert found["n_trained_params"].isna().all()


@pytest.mark.parametrize("there", ["another system", "another C library"])
def test_peak_memory_is_measured_where_free_memory_cannot_be_given_back(
    monkeypatch, there
):
    pytest.importorskip("psutil", reason="psutil is not installed")
    if there == "another system":
        monkeypatch.setattr(sys, "platform", "win32")
    else:
        monkeypatch.setattr(skpeft.comparison.ctypes, "CDLL", lambda name: object())
    with PeakMemory() as memory, mmap.mmap(-1, 64 * MB) as fresh:
        fresh.write(b"x" * (64 * MB))
    assert memory.n_bytes >= 0.8 * 64 * MB


def test_peak_memory_is_nan_without_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with PeakMemory() as memory:
        os.getpid()
    assert np.isnan(memory.n_bytes)
