"""
Search for a rank
=================

`rank` sets the capacity of an adapter. A search is scikit-learn's own; all candidates and
folds share one frozen encoder in memory.
"""

# %%
from news_headlines import drop_blank_and_repeated, read_headlines
from sklearn.model_selection import StratifiedShuffleSplit

texts, labels = drop_blank_and_repeated(*read_headlines())
splits = StratifiedShuffleSplit(3, train_size=40, test_size=150, random_state=0)

# %%
# With ``shrinkage=0.0`` there is no second fit, so that a search takes two thirds of the
# time; the model for use may have it again.
import matplotlib.pyplot as plt
from sklearn.model_selection import ValidationCurveDisplay

from skpeft import AdapterClassifier

_, ax = plt.subplots(layout="constrained")
display = ValidationCurveDisplay.from_estimator(
    AdapterClassifier(shrinkage=0.0, random_state=0),
    texts,
    labels,
    param_name="rank",
    param_range=[1, 4, 16],
    cv=splits,
    score_type="test",
    score_name="Accuracy",
    std_display_style="errorbar",
    errorbar_kw={"color": "#D55E00", "marker": "o", "capsize": 4},
    ax=ax,
)
ax.set_xticks([1, 4, 16], ["1", "4", "16"])
ax.set_xlabel("Rank of LoRA")
plt.show()

# %%
# Differences smaller than the bars are noise: then the smaller rank is the better choice.
for rank, scores in zip(display.param_range, display.test_scores, strict=True):
    print(f"rank {rank}: {scores.mean():.3f} ± {scores.std():.3f}")
