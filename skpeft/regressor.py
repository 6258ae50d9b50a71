"""The regressor."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, column_or_1d

from skpeft._base import BaseAdapterEstimator
from skpeft._data import n_columns


@dataclass(frozen=True)
class NumberTarget:
    """Numbers as training sees them: standardised, each column by itself."""

    mean: Any
    scale: Any
    task: ClassVar[str] = "regression"

    @property
    def attributes(self) -> dict:
        """Fitted attributes: none beyond the shared ones."""
        return {}

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Number of standard deviations above the mean."""
        return (y - self.mean) / self.scale


class AdapterRegressor(RegressorMixin, BaseAdapterEstimator):
    """Regressor of texts that adapts a frozen encoder.

    It learns one number a text, or several with one encoder pass, a column each.

    Small adapters inside a frozen transformer are trained on the labelled rows; then a
    scikit-learn regressor, the head, is fitted on the adapted features. The encoder
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
    objective : {"auto", "squared_error", "huber"} or Objective, default="auto"
        What adapters are trained for; "auto" is "squared_error".
    head : regressor or None, default=None
        Fitted on adapted features at the end. None: a ridge regression whose penalty, one
        for each number, is chosen on frozen features.
    max_epochs : int or None, default=None
        Passes over the training rows. None: more for few rows, fewer for many.
    batch_size : int or None, default=None
        Rows of a training step. None: 32, fewer (down to 16) for long texts.
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
        `validation_fraction` of the rows; the head is fitted on all rows.
    validation_fraction : float, default=0.1
        Fraction of the rows split off for early stopping, in (0, 1).
    n_iter_no_change : int, default=5
        Epochs without a gain of `tol` after which training stops.
    tol : float, default=1e-4
        Smallest gain of the validation score that counts.
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
    head_ : regressor
        The fitted head; works on the output of `transform`.
    adapter_ : Adapter or None
        Spec of what was trained, with names and `rank` resolved.
    n_epochs_ : int
        Epochs trained.
    loss_curve_ : list of float
        Mean training loss of each epoch.
    validation_scores_ : list of float
        Validation score of each epoch, the negative loss; empty without validation rows.
    shrinkage_ : float
        How far the adapters were drawn back to the frozen encoder, in [0, 1].
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
    AdapterClassifier : The same for classes.
    AdapterScores : Out-of-fold scores, for models on top.

    References
    ----------
    .. [1] Loshchilov and Hutter (2019). Decoupled Weight Decay Regularization. ICLR.

    Examples
    --------
    >>> from skpeft import AdapterRegressor
    >>> texts = ["one", "one one", "one one one", "one one one one"]
    >>> reg = AdapterRegressor(encoder="tiny", random_state=0).fit(texts, [1, 2, 3, 4])
    >>> reg.predict(["one one one one"]).shape
    (1,)
    """

    _task = "regression"

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
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.callback = callback
        self.device = device
        self.precision = precision

    def _check_y(self, y):
        if n_columns(y) == 1:
            y = column_or_1d(y, warn=True)
        dtype = getattr(y, "dtype", None)
        if getattr(dtype, "kind", None) in ("M", "m"):
            raise ValueError(
                f"y is of type {dtype}; AdapterRegressor learns numbers. Turn times into "
                "numbers first, such as days: (y - y.min()).dt.days of a Series."
            )
        try:
            return check_array(
                y, ensure_2d=False, dtype=np.float64, order="C", input_name="y"
            )
        except (TypeError, ValueError) as error:
            if not re.search(r"could not convert|float\(\) argument", str(error)):
                raise
            raise ValueError(
                f"y holds what is no number ({error}); AdapterRegressor learns numbers. For "
                "labels use AdapterClassifier."
            ) from error

    def _learn_target(self, y, names=None):
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.std(y, axis=0)
        if not np.isfinite(scale).all():
            raise ValueError(
                f"y holds numbers up to {np.abs(y).max():.3g}, whose spread is beyond what "
                "a float64 holds. Divide them by a number, or fit by "
                "sklearn.compose.TransformedTargetRegressor."
            )
        spread = np.ptp(y, axis=0)
        unit = np.where(spread > 0, spread, 1.0)  # the squares of small numbers are 0
        scale = np.std(y / unit, axis=0) * unit
        # By rounding, the deviation of a constant need not be 0.
        varies = (spread > 0) & (scale > 0)
        return NumberTarget(np.mean(y, axis=0), np.where(varies, scale, 1.0))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
