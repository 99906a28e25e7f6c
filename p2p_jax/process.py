"""A training process among others: the signals it gets, the workdir it has to itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from p2p_jax import lease
from p2p_jax.storage import AnyPath, is_remote

# How disks say that they have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
LEFT = 130  # exit code of a process that a second SIGINT ended


class Failure(Exception):
    """Ends a command with exit code 1; its text says why."""


class Busy(Failure):
    """Another process trains in the workdir."""


class Lost(Failure):
    """Another process took over the workdir."""


class Early(BaseException):
    """A signal, by its name, before training began: nothing is lost by leaving."""


class Stop:
    """What SIGINT, SIGTERM and SIGUSR1 do.

    At first SIGTERM and SIGUSR1 raise `Early`; from `wait` on, the first signal becomes a flag, and
    a second SIGINT leaves at once.

    Attributes:
      name: of the signal that came; '' where none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._handle(self.SIGNALS[1:], self._leave)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def wait(self) -> None:
        """From now on signals wait for the work under way."""
        self._handle(self.SIGNALS, self._note)

    def release(self) -> None:
        """From now on signals do what they did before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, numbers: Sequence[int], handler: Callable[..., None]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before = signal.signal(number, handler)
                self._before.setdefault(number, before)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Noted as well: raised where Python only tells of exceptions, it would be lost.
        self.name = signal.Signals(number).name
        raise Early(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Straight to the file descriptor: a handler may interrupt any print.
        if self.name and number == signal.SIGINT:
            os.write(2, b"\nleft at once; nothing since the newest checkpoint is saved\n")
            os._exit(LEFT)  # threads that save or decode would hold up an ordinary exit
        if not self.name:
            self.name = signal.Signals(number).name
            os.write(2, b"\nstopping after the work under way; once more leaves at once\n")


class Lock(NamedTuple):
    """The lock of a workdir, held.

    Attributes:
      lost: who took it away meanwhile, in words; '' where it is still held. In a bucket it asks
        there.
    """

    lost: Callable[[], str]

    def check(self) -> None:
        """To be called before what two processes must not both write.

        Raises:
          Lost: another process has it.
        """
        if holder := self.lost():
            raise Lost(
                f"the workdir was taken over by {holder}: this process did not renew its lock in "
                "time; what it did since its newest checkpoint is not saved"
            )


@contextlib.contextmanager
def alone_in(workdir: AnyPath, note: Callable[[str], None] = lambda text: None) -> Iterator[Lock]:
    """Holds the workdir's lock; of a process that was killed it is free.

    On a disk the system drops it with the process, however that ends. In a bucket, and on a disk
    without such locks, it is a `Lease`: free some time after the process ended.

    Args:
      workdir: made where missing.
      note: is told where it takes time to see whether the lock is free.

    Raises:
      Busy: another process trains here.
    """
    with contextlib.ExitStack() as stack:
        path = workdir / "lock"
        if not is_remote(workdir):
            Path(os.fspath(workdir)).mkdir(parents=True, exist_ok=True)
            if _flock(stack.enter_context(open(path, "a+")), workdir):
                yield Lock(lambda: "")
                return
            path = workdir / "lock.json"
        held = lease.Lease(path)
        stack.callback(held.release)  # also where Ctrl-C ends the wait
        if holder := held.take(note):
            raise Busy(_busy(workdir, holder))
        yield Lock(held.lost)


def _flock(file: IO[str], workdir: AnyPath) -> bool:
    """Locks a file and writes who did; False where the disk knows no such locks.

    Raises:
      Busy: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise Busy(_busy(workdir, file.read().strip() or "another process")) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    file.truncate(0)
    file.write(f"{lease.named()}\n")
    file.flush()
    return True


def _busy(workdir: AnyPath, holder: str) -> str:
    return f"{workdir} is being trained by {holder}; wait for it, or use another --workdir"
