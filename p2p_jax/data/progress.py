"""How far a download is, for people."""

from __future__ import annotations

import time

from p2p_jax.data.pairs import Log

_EVERY = 2.0  # seconds between two lines of progress


class Progress:
    """Says now and then how far it is."""

    def __init__(self, name: str, have: int, total: int | None, log: Log) -> None:
        """Starts the clock.

        Args:
          name: of what is downloaded.
          have: bytes there already.
          total: bytes there will be, where that is known.
          log: told of it every two seconds.
        """
        self._name, self._total, self._log = name, total, log
        self._start, self._began = have, time.monotonic()
        self._next = self._began + _EVERY

    def amount(self, have: int) -> str:
        """So many bytes, of how many."""
        total = self._total
        digits = 0 if max(have, total or 0) >= 10e6 else 1
        if total is None:
            return f"{have / 1e6:.{digits}f} MB"
        return f"{have / 1e6:.{digits}f} of {total / 1e6:.{digits}f} MB"

    def __call__(self, have: int) -> None:
        """Takes how many bytes are there now."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        speed = (have - self._start) / (now - self._began)
        left = ""
        if self._total is not None:
            left = f", {_duration((self._total - have) / max(speed, 1.0))} left"
        amount = self.amount(have)
        self._log(f"downloading {self._name}: {amount}, {speed / 1e6:.1f} MB/s{left}")


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:.0f} MB" if count >= 10e6 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
