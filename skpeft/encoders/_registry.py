"""One frozen copy of each encoder per process."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from skpeft._cache import STATES

_lock = threading.RLock()
_alive: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_fingerprints: dict[Hashable, Hashable] = {}
_most_recent: Any = None


def get(key: Hashable, load: Callable[[], Any], *, share: bool = True) -> Any:
    """Return the object known as `key`, loading it once, whatever the thread.

    The object used last is held strongly, so that a search, which drops every model
    after scoring it, does not load again; the others live while somebody uses them.

    Parameters
    ----------
    key : hashable
        What identifies the object before it is loaded.
    load : callable
        Makes the object; it has a `fingerprint`. Called under the lock.
    share : bool, default=True
        Whether an object with the same content under another key may be handed out.
    """
    global _most_recent
    with _lock:
        found = _alive.get(_fingerprints.get(key))
        if found is None:
            for gone in [k for k, c in _fingerprints.items() if c not in _alive]:
                del _fingerprints[gone]
            found = load()
            content = _content(found) if share else key
            found = _alive.setdefault(content, found)
            _fingerprints[key] = content
        _most_recent = found
        return found


def clear_cache() -> None:
    """Forget all encoders and hidden states that are held for later use.

    Memory is returned as soon as no fitted estimator uses an encoder any more.

    Examples
    --------
    >>> import skpeft
    >>> skpeft.clear_cache()
    """
    global _most_recent
    with _lock:
        _most_recent = None
        _fingerprints.clear()
        _alive.clear()
    STATES.clear()


def _content(loaded: Any) -> tuple:
    """What makes two loaded objects the same: tensors, function, device and dtype.

    Of the function, a probe shows what a few short samples do; a configuration may say
    more, such as how far tokens of long texts see.
    """
    weight = next(loaded.module.parameters())
    probe = None if loaded.probe is None else loaded.probe.tobytes()
    config = getattr(loaded, "config", None)
    return loaded.fingerprint, probe, config, str(weight.device), str(weight.dtype)
