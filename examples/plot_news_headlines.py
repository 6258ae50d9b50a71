"""
News from headlines
===================

Five classes of BBC news, eight labelled headlines of each: a first model, what it takes for
what, and how sure it is.
"""

# %%
# The rows to learn from, and 500 others.
from news_headlines import draw, drop_blank_and_repeated, read_headlines

texts, labels = drop_blank_and_repeated(*read_headlines())
train, test = draw(labels, 8, 0)

# %%
# ``adapter=None`` trains nothing in the encoder: a linear model on its embeddings. What
# adapters add is seen against it.
from skpeft import AdapterClassifier

models = {
    "linear probe": AdapterClassifier(adapter=None, random_state=0),
    "adapters": AdapterClassifier(random_state=0),
}
for name, model in models.items():
    model.fit(texts[train], labels[train])
    print(f"{name}: accuracy {model.score(texts[test], labels[test]):.3f}")

# %%
# Rows are the true classes, columns what was predicted.
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

_, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    ConfusionMatrixDisplay.from_estimator(
        model,
        texts[test],
        labels[test],
        ax=ax,
        cmap="cividis",
        colorbar=False,
        xticks_rotation=45,
    )
    ax.set_title(name)
plt.show()

# %%
# Where it is most sure and wrong, a headline may well belong to two classes.
proba = models["adapters"].predict_proba(texts[test])
predicted = models["adapters"].classes_[proba.argmax(axis=1)]
order = (-proba.max(axis=1)).argsort()
for i in [i for i in order if predicted[i] != labels[test][i]][:5]:
    row = texts[test][i], labels[test][i], predicted[i], proba[i].max()
    print("{}: {}, taken for {} with {:.2f}".format(*row))
