"""Hidden states of frozen blocks, kept for whoever in this process asks for them again."""

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

_ENTRY_BYTES = 1024  # of keys and objects around the tensors of an entry, roughly
#: First part of the keys of entries that are merged weights of a network, and no sample's.
WEIGHTS = "weights"
# Those of several networks may take this part of the limit: a fitted model is small, and
# many are to stay so.
_WEIGHTS_PART = 16


class CacheInfo(NamedTuple):
    """What the cache of hidden states holds, and how often it was of use.

    Attributes
    ----------
    n_samples : int
        Samples whose hidden states are kept; one of two encoders counts twice.
    n_bytes : int
        Memory that they take, in bytes, and with them the merged weights of adapted layers
        that networks predict with: those of the last one, and of others up to a sixteenth
        of the limit in all.
    limit : int
        Bytes that they may take.
    hits, misses : int
        How often what was asked for was there, or had to be computed, since the last
        `clear_cache`.
    """

    n_samples: int
    n_bytes: int
    limit: int
    hits: int
    misses: int


class StateCache:
    """Tensors by key within a limit of bytes; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self._limits = [[limit]]
        self._lock = threading.Lock()
        self._dropped: deque[Sequence[Hashable]] = deque()
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._entries: OrderedDict[Sequence[Hashable], list[Any]] = OrderedDict()
            self._n_bytes = self._hits = self._misses = 0

    def get(self, key: Sequence[Hashable]) -> list[Any] | None:
        """What was kept under a key, or None."""
        with self._lock:
            self._sweep()
            found = self._entries.get(key)
            if key[0] != WEIGHTS:
                self._hits += found is not None
                self._misses += found is None
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def __contains__(self, key: Sequence[Hashable]) -> bool:
        """Whether something is kept under a key, which does not count as asking for it."""
        with self._lock:
            return key in self._entries

    def put(self, key: Sequence[Hashable], tensors: list[Any]) -> None:
        """Store tensors that nobody changes later, in place of any under the key."""
        with self._lock:
            self._sweep()
            self._forget(key)
            size = _size(tensors)
            if size <= self.limit:  # else all others would go, and it too
                if key[0] == WEIGHTS:
                    self._make_room_for_weights(size)
                self._n_bytes += size  # first: what stops this here must not hide bytes
                self._entries[key] = tensors
                self._shrink()

    def drop(self, key: Sequence[Hashable]) -> None:
        """Forget an entry that can no longer be asked for.

        The garbage collector may call this at any point, even while this thread holds
        the lock; then the next call that takes the lock removes the entry.
        """
        self._dropped.append(key)
        # Not by `acquire`: an interrupt right after it would leave the lock shut.
        if not self._lock.locked():
            with self._lock:
                self._sweep()

    @contextmanager
    def limited(self, n_bytes: int) -> Iterator[None]:
        """Inside, keep at most these bytes; the limit that was set last holds."""
        own = [n_bytes]  # an object of its own, whatever the number
        try:
            with self._lock:
                self._limits.append(own)
                self._shrink()
            yield
        finally:
            with self._lock:
                self._limits = [other for other in self._limits if other is not own]
                self._shrink()

    @property
    def limit(self) -> int:
        """Bytes that may be kept."""
        return self._limits[-1][0]

    def info(self) -> CacheInfo:
        """Present state."""
        with self._lock:
            self._sweep()
            n_samples = sum(key[0] != WEIGHTS for key in self._entries)
            counts = n_samples, self._n_bytes, self.limit
            return CacheInfo(*counts, self._hits, self._misses)

    def _sweep(self) -> None:
        while self._dropped:
            self._forget(self._dropped.popleft())

    def _forget(self, key: Sequence[Hashable]) -> None:
        if key in self._entries:
            self._n_bytes -= _size(self._entries.pop(key))

    def _make_room_for_weights(self, n_bytes: int) -> None:
        keys = [key for key in self._entries if key[0] == WEIGHTS]
        n_bytes += sum(_size(self._entries[key]) for key in keys)
        for key in keys:
            if n_bytes > self.limit // _WEIGHTS_PART:
                n_bytes -= _size(self._entries[key])
                self._forget(key)

    def _shrink(self) -> None:
        while self._entries and self._n_bytes > self.limit:
            _, tensors = self._entries.popitem(last=False)
            self._n_bytes -= _size(tensors)
        if not self._entries:
            self._n_bytes = 0  # whatever an interrupt has left half counted


def _size(tensors: list[Any]) -> int:
    return _ENTRY_BYTES + sum(tensor.nbytes for tensor in tensors)


#: The one cache of the process.
STATES = StateCache(256 * 2**20)


@contextmanager
def config_context(*, cache_bytes: int) -> Iterator[None]:
    """Set how much memory hidden states of frozen blocks may take, inside a with block.

    What lies below the lowest adapted block gives the same for a text whenever it is
    asked, so it is kept for later epochs, folds, candidates, estimators and predictions.
    Results do not depend on it. The limit is one of the whole process, all threads.

    Parameters
    ----------
    cache_bytes : int
        Largest number of bytes; what exceeds it is dropped at once. 0 keeps nothing.
        Outside of such a block the limit is 256 MiB.

    Yields
    ------
    None
        Nothing.

    Raises
    ------
    ValueError
        If `cache_bytes` is no whole number of at least 0.

    Examples
    --------
    >>> import skpeft
    >>> with skpeft.config_context(cache_bytes=0):
    ...     skpeft.cache_info().limit
    0
    """
    if isinstance(cache_bytes, bool) or not hasattr(cache_bytes, "__index__"):
        raise ValueError(
            f"cache_bytes={cache_bytes!r} was given; a whole number is needed."
        )
    if cache_bytes < 0:
        raise ValueError(
            f"cache_bytes={cache_bytes!r} was given; it must be at least 0, which keeps "
            "nothing."
        )
    with STATES.limited(int(cache_bytes)):
        yield


def cache_info() -> CacheInfo:
    """Tell what the cache of hidden states holds.

    Returns
    -------
    CacheInfo
        A named tuple of n_samples, n_bytes, limit, hits and misses.

    Examples
    --------
    >>> import skpeft
    >>> skpeft.cache_info().limit
    268435456
    """
    return STATES.info()
