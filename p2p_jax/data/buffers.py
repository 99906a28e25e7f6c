"""Memory for batches, used again once nobody holds what was in it."""

from __future__ import annotations

import sys

import numpy as np


def _holders(arrays: list[np.ndarray], i: int) -> int:
    return sys.getrefcount(arrays[i])


# What the count is where nothing but the list holds an array; interpreters differ.
_NOBODY = _holders([np.empty(1)], 0)


class Buffers:
    """Arrays of one shape and type.

    A fresh array of many megabytes costs the system as much to clear, page by page, as an eighth of
    decoding what goes into it. So arrays are kept, and given again when the count of references
    says that neither the consumer, nor a view, nor a device that shares or still copies the memory
    holds them. Not for several threads at once.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, most: int) -> None:
        """Keeps at most so many arrays; nothing is allocated yet."""
        self._shape, self._dtype, self._most = shape, dtype, most
        self._kept: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """An array that nobody else holds; what is in it is undefined."""
        for i in range(len(self._kept)):
            if _holders(self._kept, i) == _NOBODY:
                return self._kept[i]
        fresh = np.empty(self._shape, self._dtype)
        if len(self._kept) < self._most:
            self._kept.append(fresh)
        return fresh
