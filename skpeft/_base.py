"""What classifier and regressor share: constraints, the way through fit, features."""

import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from sklearn.base import (
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skpeft._callbacks import CallbackSupportMixin, fit_callbacks
from skpeft._cloning import ByReference
from skpeft._validation import (
    HasMethods,
    Integral,
    Interval,
    Real,
    StrOptions,
    WithParameters,
    check_sample_weight,
    given_weights,
    validate_spec,
    warn,
)

# Learned from X before training, and needed by it.
_OF_INPUT = ("n_features_in_", "feature_names_in_")


class BaseAdapterEstimator(
    ByReference,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    WithParameters,
):
    """Shared parts of the estimators. Heavy libraries are imported at the first fit."""

    _task: ClassVar[str]
    # Whether Ctrl-C while adapters are trained stops the training alone: fit then keeps
    # the best state so far. Clones, which searches and meta-estimators fit, raise it
    # instead.
    _keeps_interrupted = True
    _shared_parameters = ("encoder", "callback")
    _parameter_constraints: ClassVar[dict] = {
        "encoder": "no_validation",  # `resolve_encoder` says more
        "adapter": [
            str,
            HasMethods(["attach", "count"]),
            HasMethods(["to_dict", "from_pretrained"]),  # a peft.PeftConfig
            list,
            tuple,
            None,
        ],
        "rank": [Interval(Integral, 1, 2**16, closed="both"), None],
        "layers": [
            StrOptions({"auto"}),
            Interval(Integral, 1, 2**16, closed="both"),
            "array-like",
            None,
        ],
        "objective": [str, HasMethods(["value"])],
        "head": [HasMethods(["fit"]), None],  # some have `predict` once they are fitted
        "max_epochs": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, 1e30, closed="right"), None],
        "shrinkage": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "weight_decay": [Interval(Real, 0, 1e30, closed="both")],
        "warmup_fraction": [Interval(Real, 0, 1, closed="both")],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "callback": [callable, None],
        "device": [str],
        "precision": [StrOptions({"auto", "float32", "float64", "bfloat16"})],
    }

    def fit(
        self,
        X,
        y=None,
        sample_weight=None,
        *,
        X_val=None,
        y_val=None,
        sample_weight_val=None,
    ):
        """Train the adapters, then fit the head on adapted features.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            Texts, pairs of texts in two columns, or rows of numbers, as the encoder
            reads them: of plain Python, numpy, pandas, polars or pyarrow.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets. With several columns a label indicator matrix of 0 and 1 for a
            classifier, several numbers a row for a regressor.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, at least 0, for adapters and head. Rows of weight 0 are
            removed before anything else.
        X_val : like X, or None, default=None
            Rows on which early stopping looks.
        y_val : array-like or None, default=None
            Targets of `X_val`.
        sample_weight_val : array-like or None, default=None
            Weights of `X_val`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter, X, y or a weight is invalid.
        TypeError
            If X is no sequence of samples, or encoder, adapter or objective has an
            unsupported type.
        OSError
            If the encoder cannot be found.
        MemoryError
            If the memory of the device does not suffice.
        """
        self._validate_params()
        from skpeft import _fitting

        start = time.perf_counter()
        given = given_weights(sample_weight)
        with _fitting.memory_error_explained(self.batch_size):
            plan, target = self._plan(
                X, y, sample_weight, (X_val, y_val, sample_weight_val)
            )
            try:  # from here on, fit succeeds or leaves nothing
                self._forget(*_OF_INPUT)
                with fit_callbacks(
                    self,
                    plan.settings,
                    lambda: _fitting.snapshot(plan) | target.attributes,
                    X=X,
                    y=y,
                    metadata=given,
                ) as settings:
                    learned = _fitting.run(replace(plan, settings=settings))
                    vars(self).update(target.attributes | learned)
            except BaseException:
                self._forget()
                raise
        if self.verbose:
            sys.stderr.write(f"{self._summary(time.perf_counter() - start)}\n")
        return self

    def _plan(self, X, y, sample_weight, validation):
        """Plan of the fit and its target; if the input is refused, nothing has changed."""
        former = dict(vars(self))
        try:
            return self._check_all(X, y, sample_weight, validation)
        except BaseException as error:
            self._forget()
            # After an interrupt nothing is left: this fit was wanted, not the earlier one.
            if isinstance(error, Exception):
                vars(self).update(former)
            raise

    def _check_all(self, X, y, sample_weight, validation):
        """Refuse what is wrong with parameters and data; give the plan of the fit."""
        from skpeft._planning import make_plan
        from skpeft.encoders import resolve_encoder
        from skpeft.objectives import resolve_objective

        encoder = resolve_encoder(self.encoder)
        self._check_head(sample_weight)
        data = self._check_rows(X, y, sample_weight, encoder.modality, reset=True)
        pairs = encoder.modality == "text" and self.n_features_in_ == 2
        target = self._learn_target(data.y, getattr(y, "columns", None))
        objective = resolve_objective(self.objective, target.task, pairs=pairs)
        data = self._with_label_texts(data, target)
        held_out = self._check_validation(*validation, encoder.modality, y)
        plan = make_plan(self, encoder, objective, data, target, held_out)
        return plan, target

    def _summary(self, seconds):
        """One line about the fit, which took these seconds."""
        from skpeft._device import resolve_precision

        device, trained = self._network.live.device, self.n_trainable_params_
        types = resolve_precision(self.precision, device)
        total = trained + self.n_frozen_params_
        scores = self.validation_scores_  # after warm starts, perhaps not of all epochs
        best = np.argmax(scores) + 1 if len(scores) == self.n_epochs_ > 0 else 0
        parts = [
            f"{trained:,} of {total:,} parameters trained ({trained / total:.2%})",
            f"{self.n_epochs_} epochs" + (f", the best {best}" if best else ""),
            f"shrinkage {self.shrinkage_:.2f}",
            f"{seconds:.1f} s on {device} in {types[1] or types[0]}",
        ]
        return f"{type(self).__name__}: {'; '.join(parts)}".replace("torch.", "")

    def _validate_params(self):
        validate_spec(self)

    def _forget(self, *kept):
        """Drop what a fit learned, but for the attributes named."""
        vars(self).pop("_network", None)  # first: without it, nothing counts as fitted
        vars(self).pop("_n_features_out", None)
        for name in [name for name in vars(self) if name.endswith("_")]:
            if name not in kept:
                delattr(self, name)

    def _check_rows(self, X, y, sample_weight, modality, *, reset):
        """Check X, y and weights, and drop the rows of weight 0."""
        from skpeft._data import Data, check_samples, look_swapped

        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. "
                "Call fit(X, y) with one target a row."
            )
        samples = check_samples(self, X, modality, reset=reset)
        y = self._check_target(y)
        check_consistent_length(samples, y)
        if isinstance(samples[0], tuple) and y.tolist() in map(
            list, zip(*samples, strict=True)
        ):
            warn(
                "X is read as pairs of texts, and one text of each pair is the target "
                "itself. Pass the column of texts alone.",
            )
        if reset and self._task == "classification" and look_swapped(samples, y):
            warn(
                f"Of {len(y)} rows X has {len(set(samples))} different texts and y "
                f"{len(set(y))} different labels. If X and y were swapped, it is fit(X, y) "
                "with the labels last.",
            )
        if sample_weight is None:
            return Data(samples, y, None)
        weights = self._check_weights(sample_weight, samples, reset=reset)
        return Data(samples, y, weights).take(np.flatnonzero(weights))

    def _check_target(self, y):
        """Targets as an array, without gaps."""
        if isinstance(y, str):
            raise ValueError(
                f"y is {y!r:.80}, a single str; one target a row is expected. Pass the "
                "column, such as frame['label'], and not its name."
            )
        _refuse_masked("y", y)
        try:
            return self._check_y(y)
        except ValueError as error:
            if not str(error).startswith(("Input y contains", "Input contains")):
                raise
            raise ValueError(
                f"{str(error).rstrip('.')}. Every row needs a target that is there and "
                "finite: fill or drop the others."
            ) from error

    @staticmethod
    def _check_weights(sample_weight, samples, *, reset):
        """Weights of rows as float64, not all 0."""
        _refuse_masked("sample_weight", sample_weight)
        if isinstance(sample_weight, str | dict):
            raise ValueError(
                f"sample_weight is {sample_weight!r:.80}; one number of at least 0 a row is "
                "expected. Weights by class go into class_weight."
            )
        try:
            weights = check_sample_weight(
                sample_weight, samples, dtype=np.float64, ensure_non_negative=True
            )
        except (TypeError, ValueError) as error:
            starts = "could not convert", "setting an array", "float() argument"
            if not str(error).startswith(starts):
                raise
            hint = " Validation rows go by name: fit(X, y, X_val=..., y_val=...)."
            raise type(error)(
                f"sample_weight holds what is no number ({error}). One number a row is "
                f"expected.{hint if reset else ''}"
            ) from error
        if not weights.any():
            raise ValueError(
                "All entries of sample_weight are 0, so no row is left to learn from. "
                "Give at least one row a positive weight."
            )
        return weights

    def _check_validation(self, X_val, y_val, sample_weight_val, modality, y):
        from skpeft._data import check_same_columns

        if X_val is None:
            if y_val is not None or sample_weight_val is not None:
                raise ValueError("y_val or sample_weight_val was given without X_val.")
            return None
        if y_val is None:
            raise ValueError("X_val was given without y_val, its targets. Pass both.")
        try:
            check_same_columns(y, y_val)
            return self._check_rows(
                X_val, y_val, sample_weight_val, modality, reset=False
            )
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"In the validation rows: {error}") from error

    def _with_label_texts(self, data, target):
        """Data with further rows at the end, which are learned from and never held out."""
        return data

    def _total_weights(self, data, target):
        """Row weights of a data set, or None where all count the same."""
        return data.weights

    def _check_head(self, sample_weight):
        """Refuse a head of the other kind, or one that cannot take the weights given."""
        from skpeft.heads import weight_argument

        last = self.head
        while isinstance(last, Pipeline) and last.steps:
            last = last.steps[-1][1]
        if self.head is not None and not hasattr(type(last), "predict"):
            raise ValueError(
                f"head={self.head!r} has no predict; an estimator of scikit-learn that does "
                f"{self._task} is expected, or a pipeline that ends in one."
            )
        kind = "regressor" if self._task == "regression" else "classifier"
        kinds = (kind, None)  # some tell theirs by `predict` alone
        if self.head is not None and get_tags(self.head).estimator_type not in kinds:
            raise ValueError(
                f"head={self.head!r} was given to {type(self).__name__}; the head of a "
                f"{self._task} estimator must do {self._task} too."
            )
        weighted = sample_weight is not None or getattr(self, "class_weight", None)
        if self.head is not None and weighted:
            weight_argument(self.head)

    def _features(self, X, *, frozen=False):
        """Features of new samples, adapted ones or those of the frozen encoder."""
        from skpeft._data import check_samples

        self._check_fitted()
        samples = check_samples(self, X, self._network.encoder.modality, reset=False)
        network = self._found_network().live
        items = network.prepare(samples)
        return network.frozen_features(items) if frozen else network.features(items)

    def _found_network(self):
        """The network of the fit, once its encoder is found."""
        from skpeft.encoders import resolve_encoder

        self._check_fitted()
        if not self._network.is_live:  # loaded, perhaps where there is no such device
            self._network.device = self.device
        try:
            _ = self._network.live
        except OSError:  # not where it was at fit: perhaps the parameter was corrected
            self._network.relocate(resolve_encoder(self.encoder))
        return self._network

    def _ask_head(self, method, X):
        """Output of one method of the head on adapted features."""
        from skpeft.heads import ask

        features = self._features(X)  # says so where nothing is fitted
        return ask(self.head_, method, features)

    def transform(self, X):
        """Adapted embeddings.

        Those of training rows carry their labels: a second model fitted on them trusts
        them blindly. `AdapterScores` gives out-of-fold scores for that.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, dim)
            Features on which `head_` works.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        ValueError
            If X is not as in `fit`, or another encoder is found under the name.
        OSError
            If the encoder of a loaded estimator is not found.
        RuntimeError
            If the owner of a shared encoder has changed it since the fit.
        """
        return self._features(X)

    def transform_frozen(self, X):
        """Compute embeddings of the encoder without the adapters.

        What a fit with ``adapter=None`` works on, to be compared with `transform`.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, dim)
            Features before any adapter.

        See Also
        --------
        EmbeddingDisplay : A picture of both.
        """
        return self._features(X, frozen=True)

    def predict(self, X):
        """Predict targets.

        Parameters
        ----------
        X : sequence of str, Series, frame or array-like of shape (n_samples, n_features)
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Class labels as given to `fit`, or numbers. For several labels a row their
            indicators, 0 and 1.
        """
        return self._ask_head("predict", X)

    def save_pretrained(self, folder):
        """Save the fitted estimator as a folder without pickle.

        The folder holds the trained tensors, the head and the parameters as safetensors
        and JSON, a model card, and of LoRA, HiRA and IA3 the configuration with which
        PEFT and sentence-transformers read them. It does not hold the encoder.

        Parameters
        ----------
        folder : str or path
            A new or an empty folder, or a model saved earlier, which is replaced: the new
            one is written aside and renamed.

        Raises
        ------
        ValueError
            If a parameter cannot be written without pickle, or something else than a
            saved model is in the folder.
        ImportError
            If `head` was given and skops, which saves it, is not installed.
        """
        self._check_fitted()
        from skpeft import _folder

        _folder.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder, *, trusted=None):
        """Load a fitted estimator from a folder that `save_pretrained` has written.

        No code in the folder is run, and nothing in it is used before all has been
        checked. The encoder is looked for at the first prediction.

        Parameters
        ----------
        folder : str or path
            The folder.
        trusted : list of str or None, default=None
            What is trusted beyond data: types in a head of other libraries, by the names
            that the error without them tells, and "trust_remote_code" for an encoder that
            runs code of its own.

        Returns
        -------
        estimator : object
            The fitted estimator.

        Raises
        ------
        OSError
            If the folder or a file in it is missing.
        ValueError
            If the folder was changed or damaged, is of another estimator or of a newer
            version, or asks for what is not trusted.
        TypeError
            If `trusted` is a single str.
        ImportError
            If the head is in skops' format and skops is not installed.
        """
        from skpeft import _folder

        return _folder.load(cls, folder, trusted)

    def to_sentence_transformer(self):
        """Make a plain `SentenceTransformer` whose `encode` equals `transform`.

        It is a copy in float32 that shares no tensor with the estimator: train it, change
        its type, save it. Adapters are merged into the layers (LoRA, HiRA, IA3,
        BitFit, LayerNormTuning, and those of full fine-tuning); others stay as submodules, and
        such a model is saved with joblib or `torch.save`, not to a folder.

        Returns
        -------
        SentenceTransformer
            Model with the encoder's options: length, pooling, prompt, number of
            dimensions.

        Raises
        ------
        ValueError
            If the estimator reads pairs of texts, or its encoder is no `TextEncoder`, or
            reads long texts in windows.

        See Also
        --------
        to_torch : The head too, from token ids to raw predictions.

        Examples
        --------
        >>> from skpeft import AdapterClassifier
        >>> clf = AdapterClassifier(random_state=0)
        >>> clf.fit(texts, labels)  # doctest: +SKIP
        >>> clf.to_sentence_transformer().save("folder")  # doctest: +SKIP
        """
        from skpeft._export import to_sentence_transformer

        return to_sentence_transformer(self._found_network())

    def to_torch(self):
        """Make one `torch.nn.Module` of encoder, adapters and a linear head.

        It is a copy in float32 that shares no tensor with the estimator, with the adapters
        merged where they merge, and `torch.export` and `torch.onnx.export` take it. Its
        `forward` takes token ids and attention mask, of shape (batch, seq), or rows of
        numbers, and gives what `decision_function` gives, or `predict` of a regressor. Its
        `prepare` makes them from samples, with the encoder's tokenizer, length and prompt.

        Returns
        -------
        torch.nn.Module
            Maps the parts of a batch to raw predictions, of shape (batch,) for one number
            and two classes, else (batch, n_outputs).

        Raises
        ------
        ValueError
            If the head is not linear, or the encoder reads long texts in windows.

        See Also
        --------
        to_sentence_transformer : The features alone.

        Examples
        --------
        >>> from skpeft import AdapterClassifier
        >>> texts = ["cheap flights", "book a flight", "hotel rooms", "a room for two"]
        >>> clf = AdapterClassifier(encoder="tiny", random_state=0)
        >>> clf.fit(texts, ["air", "air", "stay", "stay"])
        AdapterClassifier(encoder='tiny', random_state=0)
        >>> module = clf.to_torch()
        >>> module(**module.prepare(["flights", "two rooms"])).shape
        torch.Size([2])
        """
        from skpeft._export import to_torch

        network = self._found_network()
        method = "decision_function" if self._task == "classification" else "predict"
        return to_torch(network, self.head_, method, self._n_features_out)

    @property
    def adapter_(self):
        """Spec of what was trained, with "auto", names and `rank` resolved; None: nothing."""
        self._check_fitted()
        return self._network.adapter

    def _check_fitted(self):
        check_is_fitted(self)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_network")

    def __sklearn_clone__(self):
        new = super().__sklearn_clone__()
        new._keeps_interrupted = False
        return new

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        reads_text = (
            self.encoder != "array"
            and getattr(self.encoder, "modality", "text") == "text"
        )
        tags.input_tags.string = reads_text
        tags.input_tags.one_d_array = reads_text
        tags.input_tags.two_d_array = not reads_text
        tags.transformer_tags.preserves_dtype = []
        tags.target_tags.required = True
        return tags

    def _sk_visual_block_(self):
        """What scikit-learn's HTML shows: once fitted, how much was trained, and where."""
        caption = None
        if self.__sklearn_is_fitted__():
            from skpeft._device import resolve_device

            n_trained, n_frozen = self.n_trainable_params_, self.n_frozen_params_
            caption = (
                f"{n_trained:,} of {n_trained + n_frozen:,} weights trained "
                f"({n_trained / (n_trained + n_frozen):.2%}), head not counted, "
                f"on {resolve_device(self._network.device)}"
            )
        # The parts of scikit-learn's own block, which has no public name.
        return SimpleNamespace(
            kind="single",
            names=type(self).__name__,
            name_details=str(self),
            name_caption=caption,
            doc_link_label=None,
        )

    def __getstate__(self):
        state = dict(super().__getstate__())
        if "encoder" in self._shared_values():  # a loaded model: goes by name if it can
            from skpeft.encoders import resolve_encoder

            state["encoder"] = resolve_encoder(self.encoder)
        return state


def _refuse_masked(name, values):
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"{name} is a masked array of which some entries are hidden. Drop those "
            "rows, or fill them."
        )
