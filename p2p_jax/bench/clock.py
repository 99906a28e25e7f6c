"""Says what still fits into the time that a command has; needs no library."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

# Seconds that a thing is taken to need until one of its kind was seen: a form of ours, a trial of
# PyTorch as it is or compiled, measuring in turns, and a whole training.
NEEDED = {"ours": 60.0, "eager": 15.0, "compiled": 75.0, "turns": 20.0, "facades": 180.0}


class Clock:
    """Says what still fits into the time that there is.

    Args:
      seconds: in all, from now on.
      now: gives the time in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds
        self._needed = dict(NEEDED)
        self._seen: set[str] = set()

    def left(self) -> float:
        """Seconds."""
        return self._end - self._now()

    def refuses(self, kind: str, kept: float = 0.0, needed: float = 0.0) -> str:
        """Why a thing of a kind does not fit any more, or ''.

        Args:
          kind: of `NEEDED`.
          kept: seconds that are to be left after it.
          needed: seconds that it takes, where that is known better.
        """
        needed, there = needed or self._needed[kind], self.left() - kept
        return (
            ""
            if needed <= there
            else f"needs about {needed:.0f} s, and {max(there, 0):.0f} s are to spare"
        )

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Learns from what runs within how long its kind takes: as long as the longest."""
        begin = self._now()
        yield
        took = self._now() - begin
        self._needed[kind] = max(took, self._needed[kind]) if kind in self._seen else took
        self._seen.add(kind)
