"""
Probabilities and thresholds
============================

A probability is of use if it means what it says: of the texts with 0.8 four in five should
be right. The default head gets its temperature from rows that the adapters have not seen.
Where an error of one kind costs more, the threshold is moved.
"""

# %%
# Is a headline about business? 80 labelled ones to learn from.
import numpy as np
from news_headlines import drop_blank_and_repeated, read_headlines
from sklearn.model_selection import train_test_split

texts, topics = drop_blank_and_repeated(*read_headlines())
labels = np.where(topics == "business", "business", "other")
X_train, X_test, y_train, y_test = train_test_split(
    texts, labels, train_size=80, test_size=600, stratify=labels, random_state=0
)

# %%
# With ``shrinkage=0.0`` the held-out check is left out, and with it the temperature.
from skpeft import AdapterClassifier

models = {
    "default": AdapterClassifier(random_state=0),
    "shrinkage=0.0": AdapterClassifier(shrinkage=0.0, random_state=0),
}
for model in models.values():
    model.fit(X_train, y_train)

# %%
# The nearer to the diagonal, the better; the Brier score, lower is better, says it in a
# number. One split of one set shows how to look, not which is better in general.
import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import brier_score_loss

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (name, model), color in zip(models.items(), ["#D55E00", "#0072B2"], strict=True):
    probabilities = model.predict_proba(X_test)[:, 0]  # of classes_[0], "business"
    score = brier_score_loss(y_test, probabilities, pos_label="business")
    CalibrationDisplay.from_predictions(
        y_test,
        probabilities,
        pos_label="business",
        n_bins=6,
        strategy="quantile",
        name=f"{name}, Brier {score:.3f}",
        color=color,
        ref_line=False,
        ax=left,
    )
left.plot([0, 1], [0, 1], ":", color=plt.rcParams["text.color"], label="perfect")
left.legend()
# sphinx_gallery_defer_figures

# %%
# Suppose that three in four of the business headlines must be found. The threshold is chosen
# on out-of-fold scores of the training rows, never on the test rows.
from sklearn.metrics import precision_recall_curve, recall_score
from sklearn.model_selection import cross_val_predict

model = models["default"]
seen = cross_val_predict(model, X_train, y_train, cv=3, method="predict_proba")[:, 0]
precision, recall, thresholds = precision_recall_curve(
    y_train, seen, pos_label="business"
)
threshold = thresholds[recall[:-1] >= 0.75].max()
right.plot(thresholds, recall[:-1], color="#009E73", label="recall")
right.plot(thresholds, precision[:-1], "--", color="#CC79A7", label="precision")
right.axvline(
    threshold, color=plt.rcParams["text.color"], label=f"threshold {threshold:.2f}"
)
right.set(xlabel="Threshold for business", ylabel="Out-of-fold score")
right.legend()
plt.show()

# %%
# `FixedThresholdClassifier` makes it part of the model.
from sklearn.model_selection import FixedThresholdClassifier

cautious = FixedThresholdClassifier(
    model, threshold=threshold, pos_label="business", response_method="predict_proba"
).fit(X_train, y_train)
for name, one in [("threshold 0.50", model), (f"threshold {threshold:.2f}", cautious)]:
    found = recall_score(y_test, one.predict(X_test), pos_label="business")
    print(f"{name}: recall {found:.3f} on new headlines")
