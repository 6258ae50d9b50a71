"""scikit-learn's callbacks, which its versions before 1.9 do not have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's mixin; adds no `set_callbacks`."""


class Epochs:
    """Tells callbacks of the epochs of a fit, as a callback of the training loop.

    The loop calls it at the end of an epoch; there the next epoch is begun at once. If
    training stops, so that it never runs, `close` ends it as an empty task.
    """

    def __init__(self, context: Any, told: dict, settings: Any) -> None:
        self._context = context
        self._told = told
        self._settings = settings
        self._n_begun = 0
        self._epoch: Any = None
        self._begin()

    def _begin(self) -> None:
        self._epoch = None
        if self._n_begun < self._settings.max_epochs:
            self._n_begun += 1
            self._epoch = self._context.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._told)

    def __call__(self, record: dict[str, Any]) -> bool:
        """End an epoch; whether anybody asks to stop."""
        own = self._settings.callback
        asked = bool(own is not None and own(record))
        asked |= self._epoch.call_on_fit_task_end(**self._told)
        self._begin()
        return asked

    def close(self) -> None:
        """End the epoch that never ran, if there is one."""
        if self._epoch is not None:
            self._epoch.call_on_fit_task_end(estimator=self._told["estimator"])


@contextmanager
def fit_callbacks(
    estimator: Any, settings: Any, snapshot: Callable[[], dict], **data: Any
) -> Iterator[Any]:
    """Tell the callbacks of an estimator how its fit goes on.

    Parameters
    ----------
    estimator : estimator
        Being fitted.
    settings : Settings or None
        Of the training loop; None if nothing is trained.
    snapshot : callable
        Gives the attributes of the estimator as if training had stopped; called only if a
        callback asks for a fitted estimator.
    **data
        X, y and metadata of the fit.

    Yields
    ------
    Settings or None
        Settings for the training loop that tell the callbacks.
    """
    if not hasattr(estimator, "_skl_callbacks"):
        yield settings
        return
    from sklearn.callback import with_callbacks

    told = {"estimator": estimator, **data}
    n_epochs = 0 if settings is None else settings.max_epochs
    try:
        context = estimator._init_callback_context(max_subtasks=n_epochs)
        context.call_on_fit_task_begin(**told)
        if settings is None:
            yield settings
        else:
            within = {**told, "reconstruction_attributes": snapshot}
            epochs = Epochs(context, within, settings)
            yield replace(settings, callback=epochs)
            epochs.close()
        context.call_on_fit_task_end(**told, reconstruction_attributes={})
    finally:  # after any method that it decorates, it tears the callbacks down
        with_callbacks(lambda estimator: None)(estimator)
