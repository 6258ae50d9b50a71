"""
What adaptation does to the features
====================================

The encoder was made to tell any two sentences apart. Adapters draw together what has the
same label and leave the encoder itself as it was, so both kinds of features can be looked
at side by side.
"""

# %%
# Headlines of BBC news: 8 of each class to learn from, 100 to see when to stop, and 400
# others to look at. Rows that were learned from would look better apart than new ones do.
from news_headlines import draw, drop_blank_and_repeated, read_headlines

from skpeft import AdapterClassifier

texts, labels = drop_blank_and_repeated(*read_headlines())
train, others = draw(labels, 8, seed=0)
stop, test = others[:100], others[100:]
clf = AdapterClassifier(random_state=0)
clf.fit(texts[train], labels[train], X_val=texts[stop], y_val=labels[stop])

# %%
# How training went. With validation rows the state of the best epoch is kept.
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
plt.show()
