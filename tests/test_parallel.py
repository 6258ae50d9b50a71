"""Searches in several threads, processes and workers of a cluster give one result."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from skpeft import AdapterClassifier
from skpeft.encoders import TinyTextEncoder

WORDS = {"air": ["plane", "flight", "wing"], "sea": ["ship", "port", "sail"]}
LABELS = np.array(["air", "sea"] * 12)
RNG = np.random.RandomState(0)
TEXTS = [f"{RNG.choice(WORDS[y])} {RNG.choice(['x', 'y'])}" for y in LABELS]
#: How often this process has built the encoder of each seed.
BUILT: Counter = Counter()


class CountedEncoder(TinyTextEncoder):
    """Counts how often a process loads it."""

    def _build(self, device, dtype):
        BUILT[self.seed] += 1
        return super()._build(device, dtype)


def times_built(seed):
    return BUILT[seed]


def witness(estimator, X, y):
    """Score, and who computed it with what."""
    loss = -np.mean(np.log(estimator.predict_proba(X).max(axis=1)))
    return {
        "score": estimator.score(X, y) - loss,
        "process": os.getpid(),
        "thread": threading.get_ident(),
        "built": BUILT[estimator.encoder.seed],
        "torch_threads": torch.get_num_threads(),
    }


def search(seed, scoring=witness, **options):
    clf = AdapterClassifier(
        CountedEncoder(seed=seed), max_epochs=2, shrinkage=0.0, random_state=0
    )
    grid = {"rank": [1, 2, 4], "adapter": ["lora", "bottleneck"]}
    found = GridSearchCV(
        clf, grid, cv=2, scoring=scoring, refit="score", error_score="raise", **options
    )
    return found.fit(TEXTS, LABELS)


def of_splits(found, name):
    return np.stack([found.cv_results_[f"split{i}_test_{name}"] for i in range(2)])


@pytest.fixture(scope="module")
def alone():
    return search(seed=100)


def assert_same_result(found, alone):
    # To rounding: the number of threads of torch may differ.
    np.testing.assert_allclose(
        of_splits(found, "score"), of_splits(alone, "score"), rtol=1e-5
    )
    assert found.best_params_ == alone.best_params_
    np.testing.assert_allclose(
        found.predict_proba(TEXTS), alone.predict_proba(TEXTS), rtol=1e-4
    )


def test_search_in_processes_loads_the_encoder_once_in_each(alone):
    threads, environment = torch.get_num_threads(), dict(os.environ)
    with joblib.parallel_config(backend="loky"):
        found = search(seed=100, n_jobs=2)
    assert_same_result(found, alone)
    processes = set(of_splits(found, "process").ravel())
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2
    assert set(of_splits(found, "built").ravel()) == {1}
    # joblib shares the cores out among its processes, and torch keeps to that.
    share = max(1, joblib.cpu_count() // 2)
    assert of_splits(found, "torch_threads").max() <= max(share, threads)
    assert (torch.get_num_threads(), dict(os.environ)) == (threads, environment)


def test_search_in_threads_loads_the_encoder_once(alone):
    threads = torch.get_num_threads()
    with joblib.parallel_config(backend="threading"):
        found = search(seed=101, n_jobs=2)
    assert set(of_splits(found, "process").ravel()) == {os.getpid()}
    assert set(of_splits(found, "built").ravel()) == {1}
    assert set(of_splits(found, "torch_threads").ravel()) == {threads}
    assert torch.get_num_threads() == threads
    one_by_one = search(seed=101)
    assert_same_result(found, one_by_one)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    distributed = pytest.importorskip(
        "distributed", reason="skpeft[distributed] is not installed"
    )
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


def test_search_on_a_cluster_loads_the_encoder_once_in_each_worker(alone, cluster):
    assert set(cluster.run(times_built, 100).values()) == {0}
    with joblib.parallel_config(backend="dask"):
        found = search(seed=100)
    assert_same_result(found, alone)
    workers = cluster.run(os.getpid).values()
    assert set(of_splits(found, "process").ravel()) <= set(workers)
    assert len(set(of_splits(found, "process").ravel())) == 2
    assert set(cluster.run(times_built, 100).values()) == {1}


class DyingWitness:
    """Kills the worker that scores first, once."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, estimator, X, y):
        try:
            Path(self.mark).touch(exist_ok=False)
        except FileExistsError:
            return witness(estimator, X, y)
        os.kill(os.getpid(), signal.SIGKILL)


def test_search_on_a_cluster_survives_a_killed_worker(alone, cluster, tmp_path):
    before = set(cluster.run(os.getpid).values())
    mark = tmp_path / "killed"
    with joblib.parallel_config(backend="dask"):
        found = search(seed=100, scoring=DyingWitness(mark))
    assert mark.exists()
    cluster.wait_for_workers(2, timeout=60)
    assert len(before - set(cluster.run(os.getpid).values())) == 1
    assert_same_result(found, alone)


def label(part, model):
    """Labels of the texts in a part of a table, and the memory that it takes."""
    memory = psutil.Process().memory_info().rss
    return part.assign(
        label=model.predict(part["text"]), process=os.getpid(), memory=memory
    )


def test_labels_of_a_large_table_come_part_by_part_in_flat_memory(cluster):
    dask = pytest.importorskip("dask.dataframe", reason="dask[dataframe] is missing")
    encoder = TinyTextEncoder(hidden_size=4, n_layers=1)
    model = AdapterClassifier(encoder, max_epochs=1, shrinkage=0.0, random_state=0)
    model.fit(TEXTS, LABELS)
    words = RNG.choice([*WORDS["air"], *WORDS["sea"]], 100_000)
    frame = pd.DataFrame({"text": [f"{word} {i}" for i, word in enumerate(words)]})
    table = dask.from_pandas(frame, npartitions=50)
    meta = {"text": "object", "label": "object", "process": "i8", "memory": "i8"}
    found = table.map_partitions(label, model, meta=meta).compute()
    assert found["text"].tolist() == frame["text"].tolist()
    some = slice(None, None, 997)
    expected = model.predict(frame["text"].iloc[some])
    assert found["label"].iloc[some].tolist() == expected.tolist()
    # Parts come in their order; the memory that each found, by the worker that took it.
    parts = found[["process", "memory"]].iloc[:: len(frame) // table.npartitions]
    memory = max((of for _, of in parts["memory"].groupby(parts["process"])), key=len)
    assert len(memory) >= table.npartitions // 2
    early, late = np.array_split(memory.to_numpy(), 2)
    assert late.max() - early.max() < 20 * 2**20
