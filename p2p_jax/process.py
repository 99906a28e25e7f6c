"""A training process among others: the signals it gets, the workdir it has to itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LEFT = 130  # exit code of a process that a second SIGINT ended


class Failure(Exception):
    """Ends a command with exit code 1; its text says why."""


class Busy(Failure):
    """Another process trains in the workdir."""


class Stop:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into a flag; a second SIGINT leaves at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Straight to the file descriptor: a handler may interrupt any print.
        if self.name and number == signal.SIGINT:
            os.write(2, b"\nleft at once; nothing since the newest checkpoint is saved\n")
            os._exit(LEFT)  # threads that save or decode would hold up an ordinary exit
        if not self.name:
            self.name = signal.Signals(number).name
            os.write(2, b"\nstopping after the work under way; once more leaves at once\n")


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock; the system drops it with the process, however that ends.

    Raises:
      Busy: another process trains here.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Busy(f"{workdir} is being trained by {file.read().strip()}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
