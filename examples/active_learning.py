"""Which texts should be labelled next? Unsure ones first, or in random order?

Labels cost more than texts. A model that has seen a few asks for those of the texts of
which it is least sure, is fitted again, and asks again. Here BBC headlines play the
texts, their known classes play the person who labels, and the same number of labels in
random order is what it has to beat.

    python examples/active_learning.py

Each fit goes on from the adapters of the round before (``warm_start=True``). What the frozen
blocks give for a text is kept from round to round (`skpeft.cache_info`).
"""

import argparse
import sys
import time

import numpy as np
from news_headlines import drop_blank_and_repeated, positive, read_headlines

from skpeft import AdapterClassifier

FIRST = 4  # labels of a class before the first round
ROUNDS = 3
ASKED = 20  # labels of a round
POOL = 200
TEST_ROWS = 300


def unsure_first(proba, rng):
    """Row numbers by the margin between the two likeliest classes, smallest first."""
    second, first = np.sort(proba, axis=1)[:, -2:].T
    return np.argsort(first - second, kind="stable")


def random_order(proba, rng):
    """Row numbers in random order."""
    return rng.permutation(len(proba))


WAYS = {"random order": random_order, "unsure first": unsure_first}


def split(labels, seed):
    """Row numbers of the first labels, of the pool without labels, and for testing."""
    order = np.random.RandomState(seed).permutation(len(labels))
    first = np.concatenate(
        [order[labels[order] == name][:FIRST] for name in np.unique(labels)]
    )
    rest = order[~np.isin(order, first)]
    return first, rest[:POOL], rest[POOL : POOL + TEST_ROWS]


def accuracies(texts, labels, choose, seed, encoder):
    """Accuracy on the test rows before the first round and after each."""
    known, pool, test = split(labels, seed)
    rng = np.random.RandomState(seed)
    clf = AdapterClassifier(encoder, warm_start=True, shrinkage=0.0, random_state=seed)
    found = []
    for number in range(ROUNDS + 1):
        clf.fit(texts[known], labels[known])
        found.append(np.mean(clf.predict(texts[test]) == labels[test]))
        if number < ROUNDS:
            chosen = choose(clf.predict_proba(texts[pool]), rng)[:ASKED]
            known, pool = np.append(known, pool[chosen]), np.delete(pool, chosen)
    return found


def table(results, n_first):
    """Mean accuracy over the splits, a line for each number of labels."""
    lines = [f"| labels | {' | '.join(results)} |", "| ---: | ---: | ---: |"]
    for number in range(ROUNDS + 1):
        means = [np.mean(found, axis=0)[number] for found in results.values()]
        labels = n_first + number * ASKED
        lines.append(f"| {labels} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


def reading(results):
    """One sentence on the last round."""
    random, unsure = (np.array(found)[:, -1] for found in results.values())
    ahead = int(np.sum(unsure > random))
    return (
        f"After the last round, unsure first is ahead of random order by "
        f"{np.mean(unsure - random):+.3f} on average, and in {ahead} of {len(random)} "
        "splits."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=positive, default=2, help="random splits")
    parser.add_argument(
        "--encoder",
        default=AdapterClassifier().encoder,
        help='model name or folder, or "tiny", which knows no language',
    )
    args = parser.parse_args()
    texts, labels = drop_blank_and_repeated(*read_headlines())
    n_first = FIRST * len(np.unique(labels))
    print(
        f"{n_first} labels at first, then {ROUNDS} rounds of {ASKED} out of {POOL} texts; "
        f"{TEST_ROWS} others for testing, {args.splits} random splits.",
        flush=True,
    )
    start = time.perf_counter()
    results = {
        name: [
            accuracies(texts, labels, choose, seed, args.encoder)
            for seed in range(args.splits)
        ]
        for name, choose in WAYS.items()
    }
    print(f"\n{table(results, n_first)}\n\n{reading(results)}")
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
