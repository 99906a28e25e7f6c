"""A lock where the system has none: a file that whoever holds it renews."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from p2p_jax import storage
from p2p_jax.storage import AnyPath


class Lease:
    """A file that one process at a time holds, in a bucket or on a disk.

    Whether another holds it is seen by its changing while this process watches: clocks of machines
    differ.
    """

    RENEW = 20.0  # seconds between two renewals
    STALE = 90.0  # seconds without one after which nobody holds it
    SETTLE = 2.0  # seconds in which one who takes it over meets another who does

    def __init__(self, path: AnyPath) -> None:
        self._path, self._token, self._count = path, secrets.token_hex(16), 0
        self._since = _now()
        self._reason = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self, note: Callable[[str], None]) -> str:
        """Takes the file, waiting for up to `STALE` seconds to see whether one holds it.

        Args:
          note: is told that it waits.

        Returns:
          '' where it is held from now on; otherwise who holds it.
        """
        seen, begun = None, 0.0
        while not storage.create(self._path, self._text()):
            now = storage.found(self._path)
            if self._is_mine(now):  # a try that failed after all had succeeded
                break
            if seen is None and now is not None:
                seen, begun = now, time.monotonic()
                note(
                    f"{self._path} was left or is held by {who(now)}; waiting up to "
                    f"{self.STALE:.0f} s to see which"
                )
            elif now is not None and now != seen:
                return who(now)
            elif now is not None and time.monotonic() - begun > self.STALE:
                storage.write_atomic(self._path, self._text())
                time.sleep(self.SETTLE)
                if not self._is_mine(now := storage.found(self._path)):
                    return who(now)
                break
            time.sleep(self.RENEW / 4)
        self._thread.start()
        return ""

    def lost(self) -> str:
        """Who took the file away, in words; '' where it is still held."""
        # Whatever kind a bucket's library raises: what cannot be asked now is asked the next time.
        with contextlib.suppress(Exception):
            self._look()
        return self._reason

    def release(self) -> None:
        """Removes the file, if it is held."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self.RENEW)  # a renewal under way would bring it back
        with contextlib.suppress(Exception):  # it is taken over then, after a while
            if self._is_mine(storage.found(self._path)):
                self._path.unlink(missing_ok=True)

    def _look(self) -> bool:
        """Whether the file is still held; one that was removed is made again."""
        if not self._reason:
            now = storage.found(self._path)
            if now is None and not storage.create(self._path, self._text()):
                now = storage.found(self._path)
            if now is not None and not self._is_mine(now):
                self._reason = who(now)
        return not self._reason

    def _keep(self) -> None:
        while not self._reason and not self._ended.wait(self.RENEW):
            with contextlib.suppress(Exception):  # there are several tries before it is stale
                if self._look():
                    self._count += 1
                    storage.write_atomic(self._path, self._text(), durable=False)

    def _text(self) -> bytes:
        """The file: who holds it, and a number that changes with each renewal."""
        held = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": self._since,
            "token": self._token,
            "count": self._count,
        }
        return json.dumps(held).encode() + b"\n"

    def _is_mine(self, text: bytes | None) -> bool:
        return text is not None and self._token.encode() in text


def named() -> str:
    """This process, its machine and the time, as `who` has them."""
    return f"process {os.getpid()} on {socket.gethostname()} since {_now()}"


def who(text: bytes | None) -> str:
    """Who holds a file, as it says."""
    try:
        return "process {process} on {host} since {since}".format(**json.loads(text or b""))
    except (ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")
