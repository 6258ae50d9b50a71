"""
What adaptation does to the features
====================================

The encoder was made to tell any two sentences apart. Adapters draw together what has the
same label and leave the encoder itself as it was, so both kinds of features can be looked
at side by side.
"""

# %%
# Headlines of BBC news: 8 of each class to learn from, and 500 others to look at. Rows that
# were learned from would look better apart than new ones do.
from news_headlines import draw, drop_blank_and_repeated, read_headlines

from skpeft import AdapterClassifier

texts, labels = drop_blank_and_repeated(*read_headlines())
train, test = draw(labels, 8, seed=0)
clf = AdapterClassifier(early_stopping=True, validation_fraction=0.25, random_state=0)
clf.fit(texts[train], labels[train])

# %%
# How training went. With early stopping the state of the best epoch is kept.
import matplotlib.pyplot as plt

from skpeft import TrainingDisplay

TrainingDisplay.from_estimator(clf)

# %%
# The two main directions of the features, before and after. A picture in two of several
# hundred dimensions is a hint, not evidence: that is the score.
from skpeft import EmbeddingDisplay

display = EmbeddingDisplay.from_estimator(clf, texts[test], labels[test])
display.figure_.suptitle(
    f"Held-out headlines, accuracy {clf.score(texts[test], labels[test]):.3f}"
)

# %%
# What the picture shows can be had as numbers. The silhouette says how near rows are to
# their own class rather than to the next one, from -1 to 1.
from sklearn.metrics import silhouette_score

for name, features in [
    ("frozen", clf.transform_frozen(texts[test])),
    ("adapted", clf.transform(texts[test])),
]:
    print(f"silhouette, {name}: {silhouette_score(features, labels[test]):.3f}")

# %%
# For a regressor the classes give way to a colour bar.
import numpy as np

from skpeft import AdapterRegressor

lengths = np.array([len(text) for text in texts])
reg = AdapterRegressor(random_state=0).fit(texts[train], lengths[train])
display = EmbeddingDisplay.from_estimator(reg, texts[test], lengths[test])
display.colorbar_.set_label("Letters in the headline")
plt.show()
