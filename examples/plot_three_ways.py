"""
Which way of adapting should I use?
===================================

A linear model on frozen embeddings, adapters inside the frozen encoder, or every weight:
`compare_strategies` fits them on the same splits of your data and tells what each scores
and costs. Any other estimator that reads texts may stand beside them; here it is a linear
model on words.
"""

# %%
# Headlines of BBC news in five classes. To learn from there are 8 of each class, so that
# the example is done in a minute; the scores are those of 150 others.
from news_headlines import drop_blank_and_repeated, read_headlines
from sklearn.model_selection import StratifiedShuffleSplit

texts, labels = drop_blank_and_repeated(*read_headlines())
splits = StratifiedShuffleSplit(3, train_size=40, test_size=150, random_state=0)

# %%
# One call fits and measures all. Values of the parameter `adapter` stand for
# `AdapterClassifier` with that adapter; all else comes from `estimator`.
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skpeft import AdapterClassifier, compare_strategies

results = compare_strategies(
    texts,
    labels,
    {
        "words": make_pipeline(TfidfVectorizer(), LogisticRegression()),
        "linear probe": None,
        "adapters": "lora",
        "full fine-tuning": "full",
    },
    estimator=AdapterClassifier(random_state=0),
    cv=splits,
    verbose=1,
)
print(results.T.to_string(float_format="{:,.3f}".format))

# %%
# The same as pictures: to the left is cheap, to the top is good. Three splits tell large
# differences alone; where the bars overlap, take the cheaper way or more splits.
import matplotlib.pyplot as plt

from skpeft import StrategyDisplay

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, cost in zip(axes, ["mean_fit_time", "saved_bytes"], strict=True):
    StrategyDisplay.from_results(results, cost=cost, ax=ax)
figure.suptitle("Headlines in five classes, 8 of each to learn from")
plt.show()
