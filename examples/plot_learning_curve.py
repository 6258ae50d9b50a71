"""
How many labels are enough?
===========================

Labels cost more than computing. A learning curve tells what the next ones are likely to
bring, and from how many on adapters are worth more than a linear model on the frozen
embeddings. It is scikit-learn's own: the estimators need nothing special.
"""

# %%
from news_headlines import drop_blank_and_repeated, read_headlines
from sklearn.model_selection import StratifiedShuffleSplit

texts, labels = drop_blank_and_repeated(*read_headlines())
splits = StratifiedShuffleSplit(2, train_size=80, test_size=200, random_state=0)

# %%
# Both curves are learned on the same rows.
import matplotlib.pyplot as plt
from sklearn.model_selection import LearningCurveDisplay

from skpeft import AdapterClassifier

_, ax = plt.subplots(layout="constrained")
for name, adapter, color in [
    ("linear probe", None, "#0072B2"),
    ("adapters", "lora", "#D55E00"),
]:
    display = LearningCurveDisplay.from_estimator(
        AdapterClassifier(adapter=adapter, random_state=0),
        texts,
        labels,
        train_sizes=[20, 40, 80],
        cv=splits,
        shuffle=True,
        random_state=0,
        score_type="test",
        score_name="Accuracy",
        line_kw={"color": color, "marker": "o"},
        fill_between_kw={"color": color, "alpha": 0.2},
        ax=ax,
    )
    display.lines_[0].set_label(name)
    for size, scores in zip(display.train_sizes, display.test_scores, strict=True):
        print(f"{name}, {size} rows: {scores.mean():.3f}")
ax.set_xticks([20, 40, 80], ["20", "40", "80"])
ax.set_xlabel("Labelled headlines, of five classes")
ax.legend()
plt.show()
