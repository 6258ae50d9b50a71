"""scikit-learn's own callbacks, in those versions that have them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from skpeft import AdapterClassifier, AdapterClassifierCV, AdapterRegressor

pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")
from sklearn.callback import ProgressBar, ScoringMonitor

FRAME = pd.DataFrame({"text": ["good film", "bad film", "good book", "bad book"] * 3})
LABELS = np.array(["+", "-"] * 6)


def classifier(**parameters):
    options = {"max_epochs": 3, "shrinkage": 0.0, "random_state": 0, **parameters}
    return AdapterClassifier("tiny", **options)


class Recorder:
    """Notes each call, and asks to stop after some epochs."""

    def __init__(self, last=None):
        self.last = last
        self.calls = []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(f"begin {context.task_name} {context.task_id}")

    def on_fit_task_end(self, estimator, context, *, X=None, y=None):
        self.calls.append(f"end {context.task_name} {context.task_id}")
        return context.task_name == "epoch" and context.task_id == self.last


def test_callback_sees_every_epoch_and_then_the_fit():
    clf = classifier(max_epochs=2).set_callbacks(recorder := Recorder())
    clf.fit(FRAME, LABELS)
    inside = [f"{when} epoch {i}" for i in range(2) for when in ("begin", "end")]
    assert recorder.calls == ["setup", "begin fit 0", *inside, "end fit 0", "teardown"]


def test_callback_that_says_stop_ends_training():
    clf = classifier(max_epochs=5).set_callbacks(recorder := Recorder(last=1))
    clf.fit(FRAME, LABELS)
    assert clf.n_epochs_ == 2
    begun, ended = (
        [call.split()[1:] for call in recorder.calls if call.startswith(when)]
        for when in ("begin", "end")
    )
    assert sorted(begun) == sorted(ended)


def test_frozen_features_are_a_fit_without_epochs():
    clf = classifier(adapter=None).set_callbacks(recorder := Recorder())
    clf.fit(FRAME, LABELS)
    assert recorder.calls == ["setup", "begin fit 0", "end fit 0", "teardown"]


def test_callback_and_parameter_are_both_asked():
    seen = []
    clf = classifier(callback=lambda record: seen.append(record["epoch"]))
    clf.set_callbacks(recorder := Recorder(last=1)).fit(FRAME, LABELS)
    assert seen == [1, 2]
    assert "end epoch 1" in recorder.calls


def test_callbacks_are_torn_down_when_a_fit_fails():
    def fail(record):
        raise RuntimeError("no more")

    clf = classifier(callback=fail).set_callbacks(recorder := Recorder())
    with pytest.raises(RuntimeError, match="no more"):
        clf.fit(FRAME, LABELS)
    assert recorder.calls[-1] == "teardown"
    assert not [name for name in vars(clf) if "callback_fit" in name]


@pytest.mark.parametrize("kind", [AdapterClassifier, AdapterRegressor])
def test_monitored_scores_are_those_of_a_fit_that_long(kind):
    y = LABELS if kind is AdapterClassifier else np.arange(12.0)
    score = "neg_log_loss" if kind is AdapterClassifier else "neg_mean_squared_error"
    options = {"shrinkage": 0.0, "random_state": 0, "warmup_fraction": 0.0}
    est = kind("tiny", max_epochs=3, **options)
    est.set_callbacks(monitor := ScoringMonitor(scoring=score))
    weights = np.linspace(1, 2, len(y))
    est.fit(FRAME, y, sample_weight=weights)
    rows = monitor.get_logs().data_as_pandas.set_index("task_name")
    assert len(rows.loc["epoch"]) == 3
    assert rows.loc["fit", score] == rows.loc["epoch", score].iloc[-1]
    if kind is AdapterClassifier:
        loss = log_loss(y, est.predict_proba(FRAME), sample_weight=weights)
        assert rows.loc["fit", score] == pytest.approx(-loss)
    # One that the callback stops after two epochs has the second score.
    stopped = kind("tiny", max_epochs=3, callback=lambda r: r["epoch"] == 2, **options)
    stopped.set_callbacks(again := ScoringMonitor(scoring=score))
    stopped.fit(FRAME, y, sample_weight=weights)
    last = again.get_logs().data_as_pandas.set_index("task_name").loc["fit", score]
    assert last == rows.loc["epoch", score].iloc[1]


def test_being_watched_changes_nothing():
    alone = classifier().fit(FRAME, LABELS)
    watched = classifier().set_callbacks(ScoringMonitor(scoring="accuracy"))
    watched.fit(FRAME, LABELS)
    np.testing.assert_array_equal(
        alone.decision_function(FRAME), watched.decision_function(FRAME)
    )
    assert clone(watched)._skl_callbacks == watched._skl_callbacks


def test_progress_of_a_search_goes_down_to_the_epochs(capsys):
    pytest.importorskip("rich", reason="ProgressBar draws with rich")
    search = GridSearchCV(classifier(), {"rank": [2, 4]}, cv=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(FRAME, LABELS)
    shown = capsys.readouterr().out
    assert shown.count("AdapterClassifier - fit") >= 5  # two candidates, folds, refit
    assert search.n_features_in_ == 1


def test_callbacks_of_a_cross_validated_estimator_watch_its_last_fit():
    clf = AdapterClassifierCV(
        "tiny", ranks=(2, 4), cv=2, max_epochs=2, shrinkage=0.0, random_state=0
    )
    clf.set_callbacks(recorder := Recorder()).fit(FRAME, LABELS)
    assert recorder.calls.count("setup") == recorder.calls.count("teardown") == 1
    assert "end epoch 1" in recorder.calls
    assert "weights trained" in clf._repr_mimebundle_()["text/html"]
