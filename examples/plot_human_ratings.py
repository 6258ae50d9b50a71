"""
Numbers that people gave
========================

How good or bad does a word sound? For the lexicon of VADER ten people rated each word from
-4 to 4. `AdapterRegressor` learns their mean, beside a ridge on frozen embeddings.
"""

# %%
# The ratings come with the package vaderSentiment (Hutto and Gilbert, 2014). Words alone are
# kept, no emoticons.
import importlib.util
import json
import re
from pathlib import Path

import numpy as np

package = Path(importlib.util.find_spec("vaderSentiment").origin).parent
lines = (package / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
rows = [line.split("\t") for line in lines]
rows = [row for row in rows if re.fullmatch("[a-z]{3,}", row[0])]
words = np.array([row[0] for row in rows], dtype=object)
ratings = np.array([json.loads(row[3]) for row in rows])
mean = ratings.mean(axis=1)

# %%
# "abandon" and "abandoned" must not lie on both sides of the split, or it is too easy. Words
# with the same first five letters stay together. 300 to learn from, 600 others to look at.
from sklearn.model_selection import GroupShuffleSplit

splitter = GroupShuffleSplit(1, test_size=0.5, random_state=0)
train, test = next(splitter.split(words, groups=[word[:5] for word in words]))
rng = np.random.RandomState(0)
train, test = rng.permutation(train)[:300], rng.permutation(test)[:600]

# %%
# What may be hoped for: one of the ten, against the mean of the other nine.
from scipy.stats import spearmanr

others = (ratings[test].sum(axis=1) - ratings[test, 0]) / 9
print(f"one person: Spearman {spearmanr(ratings[test, 0], others)[0]:.3f}")

# %%
# With ``adapter=None`` the head, a ridge whose penalty is chosen on the training rows, reads
# the frozen embeddings.
import matplotlib.pyplot as plt

from skpeft import AdapterRegressor

_, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
for ax, (name, adapter) in zip(
    axes, [("Ridge on frozen embeddings", None), ("Adapters", "lora")], strict=True
):
    reg = AdapterRegressor(adapter=adapter, random_state=0)
    reg.fit(words[train], mean[train])
    predicted = reg.predict(words[test])
    rank, r2 = spearmanr(predicted, mean[test])[0], reg.score(words[test], mean[test])
    print(f"{name}: Spearman {rank:.3f}, R² {r2:.3f}")
    ax.plot([-4, 4], [-4, 4], ":", color=plt.rcParams["text.color"])
    ax.scatter(mean[test], predicted, s=10, alpha=0.5, color="#0072B2")
    ax.set(title=f"{name}: R² {r2:.2f}", xlabel="Mean of ten ratings")
axes[0].set_ylabel("Predicted")
plt.show()

# %%
# Where it errs most. A word by itself may be read in two ways, and not all raters agree.
residual = mean[test] - predicted
for i in np.argsort(-abs(residual))[:8]:
    word, rated = words[test][i], mean[test][i]
    spread = ratings[test][i].std()
    print(f"{word:15} rated {rated:+.1f} ± {spread:.1f}, predicted {predicted[i]:+.1f}")
