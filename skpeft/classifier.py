"""The classifier."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, column_or_1d

from skpeft._base import BaseAdapterEstimator
from skpeft._data import (
    Data,
    check_indicators,
    check_labels,
    check_texts,
    n_columns,
    plain_types,
)
from skpeft._validation import Integral, StrOptions, warn


@dataclass(frozen=True)
class ClassTarget:
    """Classes as training sees them: indices into sorted labels."""

    classes: np.ndarray
    class_weights: np.ndarray | None
    task: ClassVar[str] = "classification"

    @property
    def attributes(self) -> dict:
        """Fitted attributes."""
        return {"classes_": self.classes}

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Class index of each label, int64."""
        unknown = np.setdiff1d(y, self.classes)
        if len(unknown):
            raise ValueError(
                f"y_val holds labels that y does not: {unknown.tolist()}. Every label "
                "needs at least one training row."
            )
        return np.searchsorted(self.classes, y)

    def rows_of(self, labels: list) -> np.ndarray:
        """Targets of rows that have one label each."""
        return np.asarray(labels, dtype=self.classes.dtype)


@dataclass(frozen=True)
class LabelTarget:
    """Several labels a row as training sees them: indicators."""

    classes: np.ndarray
    class_weights: ClassVar[None] = None
    task: ClassVar[str] = "multi-label classification"

    @property
    def attributes(self) -> dict:
        """Fitted attributes."""
        return {"classes_": self.classes}

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Indicators as numbers with which a loss can be computed."""
        return y.astype(np.float64)

    def rows_of(self, labels: list) -> np.ndarray:
        """Targets of rows that have one label each."""
        places = [self.classes.tolist().index(label) for label in labels]
        return np.eye(len(self.classes), dtype=np.int64)[places]


def _head_has(method):
    """Whether the head, fitted or to be fitted, has a method."""

    def check(estimator):
        head = getattr(estimator, "head_", estimator.head)
        if head is not None:
            getattr(head, method)
        return True

    return check


class AdapterClassifier(ClassifierMixin, BaseAdapterEstimator):
    """Classifier of texts that adapts a frozen encoder.

    Each text has one of several classes, or any number of labels: for these, y is a
    matrix of 0 and 1, with a column for each label.

    Small adapters inside a frozen transformer are trained on the labelled rows; then a
    scikit-learn classifier, the head, is fitted on the adapted features. The encoder
    itself never changes and is shared by all estimators of the process.

    Parameters
    ----------
    encoder : str, SentenceTransformer or Encoder, \
            default="sentence-transformers/all-MiniLM-L6-v2"
        Name of a model on the Hugging Face hub or folder, a loaded model, or a spec of
        `skpeft.encoders`.
    adapter : str, Adapter, sequence of these, PeftConfig or None, default="auto"
        What is trained: "lora", "hira", "bottleneck", "prefix", "ia3", "bitfit",
        "layer_norm" or "ladder", a spec of `skpeft.adapters` or several at once, None for
        the head alone on frozen features, or "full" for every weight of a private copy of
        the encoder. A `LoraConfig`, `HiraConfig` or `IA3Config` of PEFT is translated.
        "auto" is "lora". One exception: a classifier with a contrastive objective and no
        `rank`, at least 5 classes, at least 16 rows of each and fewer than 1,000 rows in all
        takes "hira", in all blocks and for three epochs unless `layers` and `max_epochs` say
        otherwise. `adapter_` tells which it was.
    rank : int or None, default=None
        Overrides the capacity of the adapter (rank of LoRA, width of a bottleneck or of a
        ladder, length of a prefix); None keeps the adapter's own. Adapters without a
        capacity, and lists, refuse it.
    layers : "auto", int, sequence of int or None, default="auto"
        Transformer blocks that get adapters: the upper two thirds, the last n, those of
        the indices, or all. What lies below is computed once in a fit. With "auto",
        ``adapter="full"`` trains all blocks and the embeddings, and ``adapter="auto"`` all
        blocks where it is "hira".
    objective : str or Objective, default="auto"
        What adapters are trained for. For one class a text "contrastive" or, the default
        for pairs of texts, "cross_entropy"; for several labels a text
        "label_contrastive" or, the default for pairs, "binary_cross_entropy".
    head : classifier or None, default=None
        Fitted on adapted features at the end. None: a logistic regression, or one for
        each label, whose penalty is fixed relative to the scale of the features.
    max_epochs : int or None, default=None
        Passes over the training rows. None: more for few rows, fewer for many.
    batch_size : int or None, default=None
        Rows of a training step. None: the objective's own, 128 where rows are contrasted,
        else 32; fewer (down to 16) for long texts.
    learning_rate : float or None, default=None
        Peak learning rate of AdamW [1]_. None: the adapter's own, times the objective's
        `learning_rate_factor`, which is above 1 where there are few steps.
    weight_decay : float, default=0.01
        Decoupled weight decay of the trained weights.
    warmup_fraction : float, default=0.1
        Fraction of the steps in which the learning rate rises; then it falls to 0.
    shrinkage : "auto" or float in [0, 1], default="auto"
        How far the trained adapters are drawn back to the frozen encoder: 0 leaves them
        as trained, 1 undoes them. "auto" chooses it by rows that the adapters have not
        seen; where adapters help, it is near 0. These rows are `X_val` or, without it,
        one half of the rows, after a second fit on the other half; the rows that
        `early_stopping` splits off are not used for this. The temperature of the
        default classification head's probabilities comes from the same rows. With a
        `head` of yours, "auto" leaves the adapters as trained.
    early_stopping : bool or "auto", default="auto"
        Whether to stop when the score on validation rows no longer rises, and to keep
        the best state. "auto": if `X_val` is given. True without `X_val` splits off
        `validation_fraction` of the rows, stratified by class; the head is fitted on all
        rows.
    validation_fraction : float, default=0.1
        Fraction of the rows split off for early stopping, in (0, 1).
    n_iter_no_change : int, default=5
        Epochs without a gain of `tol` after which training stops.
    tol : float, default=1e-4
        Smallest gain of the validation score that counts.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, for adapters and head. Not for several labels a text.
    label_texts : dict of label to str or list of str, or None, default=None
        What labels mean, in words, such as ``{"joy": "the writer feels joy"}``: each
        text is learned from as one more row of its class, or with that label alone. Helps
        with few rows.
    warm_start : bool, default=False
        Whether fit goes on from the adapters of the last fit.
    random_state : int, RandomState or None, default=None
        Decides initial values, batches, dropout and splits. Same seed, same result, if a
        `head` that draws numbers has a seed of its own.
    verbose : int, default=0
        0 is silent; 1 shows a progress bar and a line of summary on stderr.
    callback : callable or None, default=None
        Called after each epoch with a dict with "epoch", "loss" and, with validation
        rows, "validation_score"; returns True to stop.
    device : str, default="auto"
        "auto" (a GPU if there is one) or a device name of torch. Resolved again after
        loading, so that it can be set for a loaded model.
    precision : {"auto", "float32", "float64", "bfloat16"}, default="auto"
        "auto" is "float32" on a CPU and "bfloat16" on a CUDA GPU: products of the encoder
        in that type; adapters, optimizer and head in float32. A processor that has no
        instructions for it gets a warning.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels as given to `fit`, sorted. For several labels a text the names of the columns
        if y was a frame, else their numbers.
    head_ : classifier
        The fitted head; works on the output of `transform`.
    adapter_ : Adapter or None
        Spec of what was trained, with "auto", names and `rank` resolved.
    n_epochs_ : int
        Epochs trained.
    loss_curve_ : list of float
        Mean training loss of each epoch.
    validation_scores_ : list of float
        Validation score of each epoch; empty without validation rows. Accuracy of the
        nearest class mean for "contrastive", average precision of the ranking of the
        labels by their means for "label_contrastive", else the negative loss.
    shrinkage_ : float
        How far the adapters were drawn back to the frozen encoder, in [0, 1].
    temperature_ : float
        What the logits of the default head were divided by; 1 for another head.
    n_trainable_params_ : int
        Trained weights in the encoder and its adapters, the head not counted.
    n_frozen_params_ : int
        Weights of the encoder that were left as they are.
    n_features_in_ : int
        Columns of X: 1 for texts, 2 for pairs.
    feature_names_in_ : ndarray of str
        Column names, if X was a frame.

    See Also
    --------
    AdapterRegressor : The same for numbers.
    AdapterScores : Out-of-fold scores, for models on top.

    References
    ----------
    .. [1] Loshchilov and Hutter (2019). Decoupled Weight Decay Regularization. ICLR.

    Examples
    --------
    >>> from skpeft import AdapterClassifier
    >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
    >>> clf = AdapterClassifier(encoder="tiny", random_state=0)
    >>> clf.fit(texts, ["air", "air", "stay", "stay"]).predict(["flights"])
    array(['air'], dtype='<U4')
    """

    _task = "classification"
    _parameter_constraints: ClassVar[dict] = {
        **BaseAdapterEstimator._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_texts": [dict, None],
    }

    def __init__(
        self,
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        *,
        adapter="auto",
        rank=None,
        layers="auto",
        objective="auto",
        head=None,
        max_epochs=None,
        batch_size=None,
        learning_rate=None,
        weight_decay=0.01,
        warmup_fraction=0.1,
        shrinkage="auto",
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=5,
        tol=1e-4,
        class_weight=None,
        label_texts=None,
        warm_start=False,
        random_state=None,
        verbose=0,
        callback=None,
        device="auto",
        precision="auto",
    ):
        self.encoder = encoder
        self.adapter = adapter
        self.rank = rank
        self.layers = layers
        self.objective = objective
        self.head = head
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.shrinkage = shrinkage
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.class_weight = class_weight
        self.label_texts = label_texts
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback
        self.device = device
        self.precision = precision

    def _check_y(self, y):
        if n_columns(y) > 1:
            return check_indicators(y)
        check_labels(y)
        y = column_or_1d(plain_types(y), warn=True)
        if y.dtype.kind == "O" and len(y) and not isinstance(y[0], str):
            kinds = sorted({type(label).__name__ for label in y})
            raise ValueError(
                f"Unknown label type: y has the type object and holds {', '.join(kinds)}. "
                "Labels are str, whole numbers or booleans, in an array of that type. Use "
                "for example y.astype(int), or y.astype(str)."
            )
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        return y

    def _learn_target(self, y, names=None):
        if y.ndim == 2:
            return self._learn_labels(y, names)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only, {classes.tolist()}; a classifier needs rows of "
                "at least 2 classes. Add rows of another class; those of weight 0 do not count."
            )
        return ClassTarget(classes, self._class_weights(classes, y))

    def _learn_labels(self, y, names):
        names = range(y.shape[1]) if names is None else [*names]
        if not any(all(isinstance(n, kind) for n in names) for kind in (str, Integral)):
            raise ValueError(
                f"y has the columns {names}, whose names are those of the labels; all str or "
                "all whole numbers are expected. Rename them, for example with "
                "y.columns = [str(name) for name in y.columns]."
            )
        classes = np.array(names)
        if len(set(classes.tolist())) != y.shape[1]:
            raise ValueError(
                f"y has the columns {names}; a name of its own is expected for each label."
            )
        if (y == y[0]).all():
            raise ValueError(
                "All rows of y have the same labels, so there is nothing to learn. Add rows "
                "that have others."
            )
        if self.class_weight is not None:
            raise ValueError(
                f"class_weight={self.class_weight!r} was given, but with several labels a "
                "row there are no classes to weight. Leave it None; for rare labels choose "
                "thresholds on predict_proba, and for rows that count more sample_weight."
            )
        same = classes[(y == y[0]).all(axis=0)].tolist()
        if same:
            warn(
                f"The labels {same} are the same in all rows, so that nothing is learned of "
                "them. Add rows that have others, or drop them from y.",
            )
        return LabelTarget(classes)

    def _class_weights(self, classes, y):
        """Weight of each class, learned from the training labels; None: all the same."""
        if self.class_weight is None:
            return None
        try:
            found = compute_class_weight(self.class_weight, classes=classes, y=y)
        except ValueError as error:
            raise ValueError(
                f"class_weight={self.class_weight!r} was given ({error}). A number for each "
                f"label is expected, of which y has {classes.tolist()[:10]}. Inside "
                "VotingClassifier, StackingClassifier and CalibratedClassifierCV these are "
                "the numbers of the classes."
            ) from error
        if not (np.isfinite(found).all() and found.min() >= 0 < found.max()):
            raise ValueError(
                f"class_weight={self.class_weight!r} was given; the weights of the classes "
                "must be finite, at least 0, and not all 0."
            )
        return found

    def _with_label_texts(self, data, target):
        if not self.label_texts:
            return data
        if not isinstance(data.samples[0], str):
            raise ValueError(
                "label_texts was given, but X does not hold single texts; texts about "
                "labels can only stand beside such. Leave label_texts=None."
            )
        texts, labels = self._label_rows(target.classes.tolist())
        if not texts:
            return data
        weights = data.weights
        if weights is not None:
            weights = np.append(weights, np.full(len(texts), weights.mean()))
        y = np.concatenate([data.y, target.rows_of(labels)])
        return Data([*data.samples, *check_texts(texts)], y, weights, len(texts))

    def _label_rows(self, classes):
        """Texts of `label_texts`, and the label of each; of known labels alone."""
        texts, labels, absent = [], [], []
        for label, given in self.label_texts.items():
            given = [given] if isinstance(given, str) else given
            if not isinstance(given, list | tuple) or not all(
                isinstance(text, str) for text in given
            ):
                raise ValueError(
                    f"label_texts={{{label!r}: {given!r}}} was given; expected is a str or "
                    "a list of str for each label."
                )
            if label not in classes:
                absent.append(label)
                continue
            texts += given
            labels += [label] * len(given)
        if len(absent) == len(self.label_texts):
            raise ValueError(
                f"label_texts has the keys {absent}; expected are labels in y, such as "
                f"{classes[:10]}. Inside VotingClassifier, StackingClassifier and "
                "CalibratedClassifierCV these are the numbers of the classes."
            )
        if absent:
            warn(
                f"label_texts speaks of {absent}, which no row has; these are left out.",
            )
        return texts, labels

    def _total_weights(self, data, target):
        if target.class_weights is None:
            return data.weights
        by_class = target.class_weights[target.encode(data.y)]
        if data.weights is None:
            return by_class
        with np.errstate(over="ignore"):
            weights = by_class * data.weights
        if not (np.isfinite(weights).all() and weights.any() == by_class.any()):
            raise ValueError(
                f"The products of class_weight (up to {by_class.max():.3g}) and sample_weight "
                f"(up to {data.weights.max():.3g}) are beyond the numbers of float64. Divide "
                "one of them by its largest."
            )
        return weights

    @available_if(_head_has("predict_proba"))
    def predict_proba(self, X):
        """Predict probabilities of classes, or of each label.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`. Rows sum to 1, except for several labels a text.
        """
        return self._ask_head("predict_proba", X)

    @available_if(_head_has("predict_proba"))
    def predict_log_proba(self, X):
        """Predict the logarithm of the probabilities.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    @available_if(_head_has("decision_function"))
    def decision_function(self, X):
        """Confidence scores of the head.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes one score, positive for ``classes_[1]``. For several labels a
            text one score a label, positive where it is predicted.
        """
        return self._ask_head("decision_function", X)

    def score(self, X, y, sample_weight=None):
        """Accuracy; with several labels a text the share of rows with all of them right.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            True classes, or indicators of labels.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows.

        Returns
        -------
        float
            In [0, 1].
        """
        if n_columns(y) > 1:
            self._check_fitted()
            own = np.asarray(self.classes_).tolist()
            names = list(getattr(y, "columns", ()))
            by_name = own != [*range(len(own))]
            if by_name and names != own and set(names) == set(own):
                raise ValueError(
                    f"y has the columns {names}, but was fitted with {own}; the same order is "
                    "expected. Pass y[list(clf.classes_)]."
                )
            y = check_indicators(y)
        return super().score(X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
