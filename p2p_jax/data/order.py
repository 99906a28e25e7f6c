"""The order of examples.

Which example stands where is a pure function of (seed, step, position in the global batch), so
neither threads, hosts nor a restart change it, and there is no iterator state to save.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import numpy as np


def order(seed: int, size: int, start: int, count: int, shuffle: bool) -> np.ndarray:
    """Example indices at global positions start .. start + count - 1, int64 [count].

    Position p lies in epoch p // size; each epoch is a permutation of range(size) of its own, or
    range(size) itself without `shuffle`.

    Raises:
      ValueError: if `size` is not positive or `start` or `count` is negative.
    """
    if size < 1 or start < 0 or count < 0:
        raise ValueError(f"order: size {size} must be > 0, start {start} and count {count} >= 0")
    positions = np.arange(start, start + count, dtype=np.int64)
    if not shuffle:
        return positions % size
    epochs = positions // size
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(seed, size, int(epoch))[positions[here] % size]
    return indices


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    # Raw output of a bit generator is the same in every numpy version; that of
    # Generator.permutation is not.
    key = np.array([seed % 2**64, epoch], np.uint64)
    permutation = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
    permutation.flags.writeable = False
    return permutation


def count_in(bad: Set[int], indices: np.ndarray) -> int:
    """How many of the indices are bad; each place counts."""
    return int(np.isin(indices, list(bad)).sum()) if bad else 0


class IndexFeed:
    """What `Feed` gives, for frames that the devices hold already: their indices alone.

    Iterating gives `(first_step, count, put(indices))`, the indices int32
    [steps_per_dispatch, local_batch], fresh each time, zero from `count` on.

    Attributes:
      waited: seconds that the consumer has been blocked so far.
      replaced: how many of the examples given so far stand in for one that could not be read.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        local: slice | Sequence[int] | np.ndarray,
        seed: int,
        shuffle: bool,
        plan: Iterable[tuple[int, int]],
        steps_per_dispatch: int,
        put: Callable[[np.ndarray], Any],
        bad: Set[int] = frozenset(),
    ) -> None:
        """Reads nothing.

        Args:
          size: number of examples.
          batch_size: images of a step, over all processes.
          local: which of these, in [0, batch_size) and rising, are this process's.
          seed: of the order.
          shuffle: whether to permute each epoch.
          plan: (first_step, count) for each dispatch, count <= steps_per_dispatch.
          steps_per_dispatch: length of the leading axis.
          put: takes indices to the device.
          bad: indices in whose place others stand.
        """
        self._size, self._batch_size, self._slots = size, batch_size, np.arange(batch_size)[local]
        self._seed, self._shuffle, self._plan = seed, shuffle, iter(plan)
        self._length, self._put, self._bad = steps_per_dispatch, put, bad
        self.waited, self.replaced = 0.0, 0

    def __enter__(self) -> IndexFeed:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> IndexFeed:
        return self

    def __next__(self) -> tuple[int, int, Any]:
        begun = time.monotonic()
        try:
            return self._next()
        finally:
            self.waited += time.monotonic() - begun

    def _next(self) -> tuple[int, int, Any]:
        first, count = next(self._plan)
        batch = self._batch_size
        everyone = order(self._seed, self._size, first * batch, count * batch, self._shuffle)
        indices = np.zeros((self._length, len(self._slots)), np.int32)
        indices[:count] = everyone.reshape(count, batch)[:, self._slots]
        self.replaced += count_in(self._bad, indices[:count].reshape(-1))
        return first, count, self._put(indices)

    def close(self) -> None:
        """Does nothing: there is no background work."""
