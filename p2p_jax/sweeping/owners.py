"""Controllers of one sweep, on one or several machines: which of them live.

Each holds a lock on a file of its own, which the system drops with the process, and renews what is
in it. Of one on this machine the lock tells; of one on another, both: a disk may know locks of one
machine alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from p2p_jax.process import Busy, alone_in

_PAUSE = 0.1


class Owners:
    """This controller among the others.

    Attributes:
      name: by which trials name this one.
    """

    RENEW = 10.0  # seconds between two renewals
    STALE = 90.0  # seconds without one after which a controller of another machine is dead

    def __init__(self, folder: Path) -> None:
        """Takes a name; `folder` is the sweep's."""
        self._folder = folder / "controllers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._path = self._folder / f"{self.name}.json"
        self._file: IO[str] | None = None
        self._count, self._renewed = 0, 0.0
        self._seen: dict[str, tuple[str, float]] = {}  # others: what they wrote, and since when

    def __enter__(self) -> Owners:
        self._file = open(self._path, "w")
        with contextlib.suppress(OSError):  # a disk without locks: renewals alone tell
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.renew()
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._file
        self._path.unlink(missing_ok=True)
        self._file.close()

    def renew(self) -> None:
        """To be called often; shows the others that this one lives."""
        assert self._file
        if self._count and time.monotonic() - self._renewed < self.RENEW:
            return
        self._count, self._renewed = self._count + 1, time.monotonic()
        record = {"host": socket.gethostname(), "pid": os.getpid(), "count": self._count}
        self._file.seek(0)
        self._file.write(json.dumps(record) + "\n")
        self._file.truncate()
        self._file.flush()

    def lives(self, name: str) -> bool:
        """Whether a controller lives, or may: of one elsewhere that is not known at once."""
        if name == self.name:
            return True
        path = self._folder / f"{name}.json"
        try:
            with open(path) as file:
                locked, text = _locked(file), file.read()
        except FileNotFoundError:
            return False  # it ended in order
        here = _field(text, "host") == socket.gethostname() or not text
        if locked is not None and (locked or here):
            return locked
        return not self._stale(name, text)

    def _stale(self, name: str, text: str) -> bool:
        """Whether what it wrote has not changed for long, as seen by this process."""
        seen, since = self._seen.get(name, ("", 0.0))
        if name not in self._seen or seen != text:
            self._seen[name] = (text, time.monotonic())
            return False
        return time.monotonic() - since > self.STALE


def _locked(file: IO[str]) -> bool | None:
    """Whether another process has the lock of a file; None where the disk knows none."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _field(text: str, key: str) -> Any:
    try:
        return json.loads(text)[key]
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the sweep's own lock: of all its controllers one at a time decides who runs what."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(alone_in(folder / "deciding"))
                break
            except Busy:
                time.sleep(_PAUSE)
        yield
