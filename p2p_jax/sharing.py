"""Whether all processes of a run see one and the same workdir."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time

from p2p_jax import peers, storage
from p2p_jax.storage import AnyPath
from p2p_jax.words import Problems

TIMEOUT = 10.0  # seconds in which what one machine wrote is to reach the others
_PAUSE = 0.1


def seen_by_all(workdir: AnyPath) -> None:
    """Sees that all processes have the same workdir; each must call this, after `peers.start`.

    Process 0 writes a hidden file with a random word there, which all others must read, and removes
    it. A run of one process has nothing to see, and nothing is written.

    Args:
      workdir: made where missing, by process 0 alone.

    Raises:
      Problems: naming the processes that do not see it, their machines and what they take for it;
        in all processes.
    """
    told = peers.gather(secrets.token_hex(16) if peers.first() else "")
    if len(told) == 1:
        return
    # Its name is new as well: nobody can have looked for it, and remember that it is not there.
    word, path = told[0].encode(), workdir / f".seen-{told[0]}"
    try:
        wrong = _write(path, word) if peers.first() else ""
        if failed := peers.gather(wrong)[0]:
            raise Problems([f"--workdir: process 0 cannot write: {failed}"])
        if not peers.first():
            wrong = _read(path, word)
        here = f"{socket.gethostname()} does not see what process 0 writes in its workdir"
        told = peers.gather(f"{here}: {storage.absolute(workdir)} {wrong}" if wrong else "")
    finally:
        if peers.first():
            with contextlib.suppress(Exception):  # what hindered it was told; or it hurts nobody
                path.unlink(missing_ok=True)
    problems = [f"--workdir: process {i} on {text}" for i, text in enumerate(told) if text]
    if problems:
        advice = "use a folder that all machines share, at the same path, or gs://BUCKET/FOLDER"
        raise Problems([f"{problem}; {advice}" for problem in problems])


def _write(path: AnyPath, word: bytes) -> str:
    """What went wrong as process 0 wrote; '' if nothing."""
    try:
        storage.write_atomic(path, word)
    except Exception as error:  # libraries for buckets raise many kinds
        return f"{socket.gethostname()}: {path.parent} ({error})"
    return ""


def _read(path: AnyPath, word: bytes) -> str:
    """What is wrong with the file as another process sees it; '' if nothing."""
    begun = time.monotonic()
    while True:
        try:
            wrong = "" if storage.found(path) == word else "has no such file"
        except Exception as error:
            wrong = f"cannot be read ({error})"
        if not wrong or time.monotonic() - begun > TIMEOUT:
            return wrong
        time.sleep(_PAUSE)
