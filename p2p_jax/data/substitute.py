"""Other examples in the place of those that cannot be read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

from p2p_jax.data.pairs import DataError, Pair, PairSource, digest

_IN_A_ROW = 10  # that fail: so many, and it is not a few broken files


class Substituting:
    """A source whose unreadable pairs are each replaced by another one, always the same.

    Which one depends on the source's fingerprint and the index alone: neither on threads, nor on
    what was read before.
    """

    def __init__(self, source: PairSource, warn: Callable[[str], None]) -> None:
        """Wraps `source`.

        Args:
          source: which raises DataError where a pair cannot be read.
          warn: told once for each index that is bad; called from threads, one at a time.
        """
        self.names, self.fingerprint = source.names, source.fingerprint
        self.forms, self.sizes = source.forms, source.sizes
        self._source, self._warn = source, warn
        self._reasons: dict[int, list[str]] = {}
        self._lock = threading.RLock()  # a callback may ask what is bad

    def __len__(self) -> int:
        return len(self._source)

    @property
    def bad(self) -> frozenset[int]:
        """Indices that have been found unreadable so far."""
        with self._lock:
            return frozenset(self._reasons)

    def __getitem__(self, i: int) -> Pair:
        """Pair `i`, or the first that can be read of those that stand in for it.

        Raises:
          DataError: 10 pairs in a row cannot be read, or none at all; names all of them.
        """
        pair = self._read(i)
        if pair is not None:
            return pair
        tried = [i]
        for j in self._others(i):
            pair = self._read(j)
            if pair is not None:
                return pair
            tried.append(j)
        reasons = [reason for j in tried for reason in self._reasons[j]]
        raise DataError([f"no pair to substitute: {len(tried)} in a row cannot be read", *reasons])

    def _others(self, i: int) -> Iterator[int]:
        """What to try for `i`, in order: scattered over the set, as broken files come in rows."""
        tried = {i}
        for attempt in itertools.count():
            if len(tried) == min(len(self), _IN_A_ROW):
                return
            j = int(digest("substitute", self.fingerprint, i, attempt), 16) % len(self)
            if j not in tried:
                tried.add(j)
                yield j

    def _read(self, i: int) -> Pair | None:
        """Pair `i`, or None where it cannot be read; what failed once is not tried again."""
        if i in self._reasons:
            return None
        try:
            return self._source[i]
        except DataError as error:
            with self._lock:
                if i not in self._reasons:
                    self._reasons[i] = error.problems
                    self._warn(f"substituted: {error}")
            return None
