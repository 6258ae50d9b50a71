"""
An adapter of your own
======================

An adapter names the layers it acts on and wraps them. All else, from sharing the frozen
encoder to saving, is there already. This one, the Hadamard adapter of Chen et al. (2023),
scales and shifts the output of attention, element by element.
"""

# %%
# The layer starts as the identity: factors of one, offsets of zero. ``merged`` puts both
# into the weights, for export. ``count`` is the formula of the trained parameters.
import copy

import torch
from torch import nn

from skpeft.adapters import AdaptedLayer, Adapter


class ScaledShifted(AdaptedLayer):
    def __init__(self, base):
        super().__init__(base)
        self.factor = nn.Parameter(torch.ones(base.out_features))
        self.offset = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, x):
        return self.base(x) * self.factor + self.offset

    def merged(self):
        layer = copy.deepcopy(self.base)
        with torch.no_grad():
            layer.weight.mul_(self.factor[:, None])
            layer.bias.mul_(self.factor).add_(self.offset)
        return layer


class Hadamard(Adapter):
    """Scale and shift the output of attention."""

    default_learning_rate = 1e-2

    def target_roles(self):
        return ("attention_output",)

    def wrap(self, layer, role, generator):
        return ScaledShifted(layer)

    def count(self, sites):
        return sum(2 * n_out for _, n_out in sites.values())


# %%
# It goes wherever an adapter goes.
from news_headlines import drop_blank_and_repeated, read_headlines
from sklearn.model_selection import StratifiedShuffleSplit

from skpeft import AdapterClassifier, compare_strategies

texts, labels = drop_blank_and_repeated(*read_headlines())
results = compare_strategies(
    texts,
    labels,
    {"linear probe": None, "Hadamard": Hadamard(), "LoRA": "lora"},
    estimator=AdapterClassifier(random_state=0),
    cv=StratifiedShuffleSplit(3, train_size=40, test_size=150, random_state=0),
)
print(results[["mean_test_score", "std_test_score", "n_trained_params"]].to_string())

# %%
import matplotlib.pyplot as plt

from skpeft import StrategyDisplay

StrategyDisplay.from_results(results, cost="n_trained_params")
plt.show()

# %%
# The adapter merges into the weights, so an ordinary `SentenceTransformer` can hold it.
clf = AdapterClassifier(adapter=Hadamard(), random_state=0).fit(
    texts[::60], labels[::60]
)
model = clf.to_sentence_transformer()
difference = abs(model.encode(list(texts[:5])) - clf.transform(texts[:5])).max()
print(f"largest difference of the exported features: {difference:.1e}")
