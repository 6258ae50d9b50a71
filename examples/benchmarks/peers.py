"""Other libraries' ways of learning from few texts, behind fit and predict_proba.

Each is used as its own documentation shows. The encoder is loaded by the constructor, so
that timing `fit` leaves loading out, as it does for skpeft.
"""

import tempfile

import numpy as np
import torch

from skpeft.encoders import TextEncoder
from skpeft.encoders._hub import locate

ENCODER = TextEncoder().model
LIMIT = 2500  # steps; beyond, SetFit draws a fixed number of pairs a row


class Peer:
    """What the peers share: classes, and the label of the highest probability."""

    def __init__(self, seed, y):
        self.seed = seed
        self.classes_, self.sizes = np.unique(y, return_counts=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class SetFit(Peer):
    """SetFit: every weight fine-tuned on pairs of texts, then logistic regression."""

    def __init__(self, seed, y, encoder=ENCODER):
        super().__init__(seed, y)
        from setfit import SetFitModel

        self.model = SetFitModel.from_pretrained(str(locate(encoder, None)))
        self.n_trainable_params_ = sum(
            p.numel() for p in self.model.model_body.parameters()
        )

    def fit(self, X, y):
        from datasets import Dataset
        from setfit import Trainer, TrainingArguments

        rows = Dataset.from_dict(
            {"text": list(X), "label": np.searchsorted(self.classes_, y).tolist()}
        )
        # By default SetFit oversamples positive pairs to the number of negative ones.
        n_positive = np.sum(self.sizes * (self.sizes - 1) / 2)
        n_negative = len(y) * (len(y) - 1) / 2 - n_positive
        self.note = "defaults"
        options = {}
        if 2 * n_negative / 16 > LIMIT:
            options, self.note = {"num_iterations": 20}, "num_iterations=20"
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                seed=self.seed,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
                **options,
            )
            Trainer(model=self.model, args=settings, train_dataset=rows).train()
        return self

    def predict_proba(self, X):
        return self.model.predict_proba(
            list(X), as_numpy=True, show_progress_bar=False
        ).astype(float)

    def __getstate__(self):
        return {"model": self.model}


class PeftTrainer(Peer):
    """PEFT's LoRA on query and value, trained by transformers' Trainer."""

    epochs, batch_size = 20, 16

    def __init__(self, seed, y, learning_rate=2e-3, rank=8):
        super().__init__(seed, y)
        self.learning_rate, self.rank = learning_rate, rank
        self.build(len(self.classes_))

    def build(self, n_outputs):
        import transformers
        from peft import LoraConfig, get_peft_model

        transformers.set_seed(self.seed)
        folder = str(locate(ENCODER, None))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=n_outputs, dtype="float32"
        )
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=["query", "value"],
        )
        self.model = get_peft_model(base, config)
        self.n_trainable_params_ = sum(
            p.numel() for p in self.model.parameters() if p.requires_grad
        )

    def encode(self, X, y=None):
        rows = self.tokenizer(list(X), truncation=True, max_length=256)["input_ids"]
        items = [{"input_ids": row} for row in rows]
        for item, label in zip(items, [] if y is None else y, strict=False):
            item["labels"] = label
        return items

    def trainer(self, folder, rows):
        import transformers

        return transformers.Trainer(
            model=self.model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                seed=self.seed,
                learning_rate=self.learning_rate,
                num_train_epochs=self.epochs,
                per_device_train_batch_size=self.batch_size,
                per_device_eval_batch_size=64,
                warmup_steps=0.1,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                bf16=torch.cuda.is_available(),  # as skpeft does on a GPU
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=rows,
            data_collator=transformers.DataCollatorWithPadding(self.tokenizer),
        )

    def fit(self, X, y):
        with tempfile.TemporaryDirectory() as folder:
            rows = self.encode(X, np.searchsorted(self.classes_, y).tolist())
            self.trainer(folder, rows).train()
        return self

    def predict_proba(self, X):
        from scipy.special import softmax

        with tempfile.TemporaryDirectory() as folder:
            found = self.trainer(folder, None).predict(self.encode(X))
        return softmax(found.predictions.astype(float), axis=1)

    def __getstate__(self):
        trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        return {k: v for k, v in self.model.state_dict().items() if k in trained}


class PeftSkorch(PeftTrainer):
    """The same model trained by skorch, as a scikit-learn estimator of PyTorch."""

    def fit(self, X, y):
        import skorch
        from torch import nn

        class Logits(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask):
                return self.model(
                    input_ids=input_ids, attention_mask=attention_mask
                ).logits

        class Pairs(list, torch.utils.data.Dataset):
            pass

        def collate(rows):
            ids = [{"input_ids": row} for row, _ in rows]
            batch = self.tokenizer.pad(ids, return_tensors="pt")
            parts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return parts, torch.tensor([label for _, label in rows])

        rows = [item["input_ids"] for item in self.encode(X)]
        labels = np.searchsorted(self.classes_, y).tolist()
        net = skorch.NeuralNetClassifier(
            Logits,
            module__model=self.model,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            lr=self.learning_rate,
            max_epochs=self.epochs,
            batch_size=self.batch_size,
            iterator_train__shuffle=True,
            iterator_train__collate_fn=collate,
            train_split=None,
            device="cuda" if torch.cuda.is_available() else "cpu",
            verbose=0,
        )
        net.fit(Pairs(zip(rows, labels, strict=True)), None)
        return self


class PeftRegressor(PeftTrainer):
    """The same with one output and squared error, on standardised targets."""

    def __init__(self, seed, y):
        self.seed, self.learning_rate, self.rank = seed, 2e-3, 8
        self.build(1)

    def fit(self, X, y):
        self.mean, self.scale = y.mean(), y.std()
        with tempfile.TemporaryDirectory() as folder:
            rows = self.encode(X, ((y - self.mean) / self.scale).tolist())
            self.trainer(folder, rows).train()
        return self

    def predict(self, X):
        with tempfile.TemporaryDirectory() as folder:
            found = self.trainer(folder, None).predict(self.encode(X))
        return self.mean + self.scale * found.predictions.astype(float).ravel()


class CosineOfPairs:
    """Cosine of the two frozen embeddings of a pair: nothing is learned."""

    n_trainable_params_ = 0

    def __init__(self, seed, y):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(locate(ENCODER, None)), device="cpu")

    def fit(self, X, y):
        return self

    def predict(self, X):
        first, second = (
            self.model.encode(list(X.iloc[:, i]), normalize_embeddings=True)
            for i in (0, 1)
        )
        return (first * second).sum(axis=1)

    def __getstate__(self):
        return {}
