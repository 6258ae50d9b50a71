"""Adapter fine-tuning of frozen text encoders as scikit-learn estimators."""

from importlib import import_module

__version__ = "0.1.0"

# Public names and the modules that hold them. They are imported on first use, so that
# `import skpeft` needs neither torch nor transformers.
_PUBLIC = {
    "AdapterBank": "skpeft.bank",
    "AdapterClassifier": "skpeft.classifier",
    "AdapterClassifierCV": "skpeft.search",
    "AdapterRegressor": "skpeft.regressor",
    "AdapterRegressorCV": "skpeft.search",
    "AdapterScores": "skpeft.scores",
    "EmbeddingDisplay": "skpeft.displays",
    "StrategyDisplay": "skpeft.displays",
    "TrainingDisplay": "skpeft.displays",
    "cache_info": "skpeft._cache",
    "clear_cache": "skpeft.encoders",
    "compare_strategies": "skpeft.comparison",
    "config_context": "skpeft._cache",
    "adapters": None,
    "encoders": None,
    "objectives": None,
    "testing": None,
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skpeft' has no attribute {name!r}")
    home = _PUBLIC[name]
    if home is None:
        return import_module(f"skpeft.{name}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
