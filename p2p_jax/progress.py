"""How far a command with many images is."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator

from p2p_jax.console import Console

_DRAWN, _PRINTED = 0.5, 10.0  # seconds from one time to the next, on a terminal and elsewhere


class Progress:
    """A line that tells how far the work is: live on a terminal, now and then elsewhere.

    Attributes:
      images: done so far.
    """

    def __init__(self, console: Console, images: int, parts: int) -> None:
        """Begins.

        Args:
          console: to tell.
          images: in all.
          parts: pieces of work in all, as tiles; one an image otherwise.
        """
        self.images, self._total, self._parts, self._done = 0, images, parts, 0
        self._console, self._begun, self._waited = console, time.monotonic(), 0.0
        self._every = _DRAWN if sys.stdout.isatty() else _PRINTED
        self._next = self._begun + self._every
        console.progress(0, parts, {}, math.nan, 0, None)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for inputs."""
        since = time.monotonic()
        yield
        self._waited += time.monotonic() - since

    def tick(self, parts: int = 1) -> None:
        """So many pieces more are done."""
        self._done += parts
        now = time.monotonic()
        if now < self._next:
            self._console.tick(self._done)
            return
        self._next, spent = now + self._every, now - self._begun
        left = spent / self._done * (self._parts - self._done)
        if self._every == _DRAWN:
            rate = self._done / spent if self._parts == self._total else math.nan
            waited = self._waited / spent
            self._console.progress(self._done, self._parts, {}, rate, waited, left)
        else:
            self._console.note(f"{self._done} of {self._parts} done, {left:.0f} s left")

    def summary(self) -> str:
        """What was done, in words."""
        spent = time.monotonic() - self._begun
        tiles = f" in {self._parts} parts" if self._parts > self._total else ""
        return f"{self._total} image{'s' * (self._total != 1)}{tiles} in {spent:.3g} s"
