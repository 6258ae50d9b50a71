"""
Which texts should be labelled next?
====================================

Labels cost more than texts. A model that has seen a few can name those of the texts of which
it is least sure; somebody labels these, the model is fitted again, and names the next. Here
BBC headlines play the texts, and their known classes the person who labels. Random order is
what this has to beat.
"""

# %%
# 20 labels at first, then three rounds of 20 out of 200 texts; 300 others to score.
import numpy as np
from news_headlines import drop_blank_and_repeated, read_headlines

texts, labels = drop_blank_and_repeated(*read_headlines())


def split(seed):
    """Row numbers of the first labels, of the pool without labels, and for scoring."""
    order = np.random.RandomState(seed).permutation(len(labels))
    first = np.concatenate([order[labels[order] == c][:4] for c in np.unique(labels)])
    rest = order[~np.isin(order, first)]
    return first, rest[:200], rest[200:500]


# %%
# Unsure is where the two likeliest classes are close. With ``warm_start=True`` each fit goes on
# from the adapters of the round before, and what the frozen blocks give for a text is kept
# from round to round (`skpeft.cache_info`).
from skpeft import AdapterClassifier


def unsure_first(proba, rng):
    second, first = np.sort(proba, axis=1)[:, -2:].T
    return np.argsort(first - second, kind="stable")


def random_order(proba, rng):
    return rng.permutation(len(proba))


def accuracies(choose, seed):
    """Accuracy before the first round and after each."""
    known, pool, test = split(seed)
    rng, found = np.random.RandomState(seed), []
    clf = AdapterClassifier(warm_start=True, shrinkage=0.0, random_state=seed)
    for _ in range(4):
        clf.fit(texts[known], labels[known])
        found.append(clf.score(texts[test], labels[test]))
        chosen = choose(clf.predict_proba(texts[pool]), rng)[:20]
        known, pool = np.append(known, pool[chosen]), np.delete(pool, chosen)
    return found


# %%
# Thin lines are single splits. Before you pay for a way of choosing, see how often it is ahead.
import matplotlib.pyplot as plt

n_labels = [20, 40, 60, 80]
_, ax = plt.subplots(layout="constrained")
for choose, color in [(random_order, "#0072B2"), (unsure_first, "#D55E00")]:
    name = choose.__name__.replace("_", " ")
    runs = np.array([accuracies(choose, seed) for seed in range(2)])
    ax.plot(n_labels, runs.T, color=color, alpha=0.3)
    ax.plot(n_labels, runs.mean(axis=0), "o-", color=color, label=name)
    print(f"{name}: {' '.join(f'{mean:.3f}' for mean in runs.mean(axis=0))}")
ax.set(xlabel="Labels", ylabel="Accuracy", xticks=n_labels)
ax.legend()
plt.show()
