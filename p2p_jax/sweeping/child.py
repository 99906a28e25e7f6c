"""The process that trains a trial, and what is seen of it from outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2p_jax import report
from p2p_jax.sweeping import tied
from p2p_jax.sweeping.places import Place

_TAIL = 1 << 16  # bytes of a log that are searched for a reason
_BUSY = re.compile(r"is being trained by ")


class Child:
    """A training that runs at a place; its output is appended to a log."""

    def __init__(
        self, words: Sequence[str], place: Place, env: Mapping[str, str], log: Path
    ) -> None:
        """Starts it.

        Args:
          words: the command line.
          place: that it keeps to.
          env: of the process, before the place's own.
          log: a file.
        """
        cores = ",".join(map(str, place.cores)) or "-"
        self._log = log
        self._begun = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as out:
            # In a process group of its own, for Ctrl-C reaches all of the terminal's: it would come
            # twice, from there and from here, and a second one means to leave at once.
            self._process = subprocess.Popen(
                [sys.executable, str(tied.__file__), str(os.getpid()), cores, *words],
                env={**env, **place.env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._asked = 0.0

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self, grace: float) -> None:
        """Asks it to save and end; `grace` seconds after the first time, it is killed."""
        if not self._asked:
            self._asked = time.monotonic()
            self._send(signal.SIGTERM)
        elif time.monotonic() - self._asked > grace:
            self.kill()

    def kill(self) -> None:
        """Ends it and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def reason(self) -> str:
        """Why it ended: its last line that names an error, else its last line."""
        code = self._process.returncode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = self._lines()
        errors = [line for line in lines if line.startswith("error: ")]
        last = (errors or lines or [""])[-1].removeprefix("error: ").strip()
        return last or f"exit code {code}"

    def reason_of(self, workdir: Path) -> str:
        """Why the run in a folder, one of several, has failed; '' where it has not."""
        head = f"error: {workdir}: "
        found = [line.removeprefix(head) for line in self._lines() if line.startswith(head)]
        return found[-1] if found else ""

    def _lines(self) -> list[str]:
        """The last that it has said."""
        with open(self._log, "rb") as file:
            file.seek(max(self._begun, os.fstat(file.fileno()).st_size - _TAIL))
            return [line for line in file.read().decode(errors="replace").splitlines() if line]

    def was_busy(self) -> bool:
        """Whether it ended as another process still trained in its folder."""
        return self._process.returncode == 1 and bool(_BUSY.search(self.reason()))

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def orphan(workdir: Path) -> str:
    """Who still trains in a folder, as its lock says, after asking it to end; '' if nobody does.

    Args:
      workdir: of a trial whose controller is dead.
    """
    try:
        with open(workdir / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return ""
            except BlockingIOError:
                text = file.read().strip()
    except OSError:  # no such file, or no such locks: the training itself will see
        return ""
    found = re.match(r"process (\d+) on (\S+) ", text)
    if found and found[2] == socket.gethostname():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(found[1]), signal.SIGTERM)
    return text or "another process"


def newest_checkpoint(workdir: Path) -> int:
    """The newest step that is saved; -1 where there is none."""
    with contextlib.suppress(OSError):
        names = [path.name for path in (workdir / "checkpoints").iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=-1)
    return -1


class Lines:
    """The evaluations of a run that grows."""

    def __init__(self, workdir: Path, figure: str) -> None:
        """Takes the run's folder, and the figure's name as in `eval.metrics`."""
        self._workdir, self._key = workdir, f"eval/{figure}"
        self._stamp: Any = None
        self._rows: list[tuple[int, int, float | None]] = []

    def read(self) -> list[tuple[int, int, float | None]]:
        """(step, images, value) of each evaluation after the first step; None is not finite."""
        with contextlib.suppress(OSError, ValueError):  # a broken file is for the run to tell of
            stat = (self._workdir / "metrics.jsonl").stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp != self._stamp:
                rows = report.read(self._workdir)
                self._rows = [
                    (row["step"], row["images"], row[self._key])
                    for row in rows
                    if row["step"] and row.get("split") != "train" and self._key in row
                ]
                self._stamp = stamp
        return self._rows
