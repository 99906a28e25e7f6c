"""A training process among others: the signals it gets, the workdir it has to itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from p2p_jax import lease
from p2p_jax.storage import AnyPath, is_remote

# How disks say that they have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
LEFT = 130  # exit code of a process that a second SIGINT ended
STOPPED = 75  # of one that a signal ended with everything saved
FAILED = 3  # of one that trained several runs of which some have failed, and all others are done


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

    At first they raise, SIGINT `KeyboardInterrupt` and the others `Early`; from `wait` on, the
    first one becomes a flag, and a SIGINT after it leaves at once. Both hold, too, while the main
    thread computes or waits outside of Python, where no handler runs.

    Attributes:
      name: of the signal that came; '' where none did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    GRACE = 2.0  # seconds for the main thread to hear of a signal before training

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}
        self._heard, self._waits = threading.Event(), False
        self._write, self._others = -1, -1

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._listen()
            self._handle(self._raise)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def wait(self) -> None:
        """From now on signals wait for the work under way."""
        if self._before:
            self._handle(self._note)
            self._waits = True

    def release(self) -> None:
        """From now on signals do what they did before."""
        while self._before:
            signal.signal(*self._before.popitem())
        if self._write >= 0:
            signal.set_wakeup_fd(self._others)
            os.close(self._write)
            self._write = -1

    def forgo(self) -> None:
        """`release`; a signal that came meanwhile comes again."""
        self.release()
        if self.name:
            signal.raise_signal(signal.Signals[self.name])

    def _handle(self, handler: Callable[..., None]) -> None:
        for number in self.SIGNALS:
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        # Noted as well: raised where Python only tells of exceptions, as in the callbacks of an
        # import, it would be lost.
        self._note(number, frame)
        self._heard.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Early(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.name = self.name or signal.Signals(number).name

    def _listen(self) -> None:
        """Begins a thread that hears of each signal at once."""
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._others = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(read,), name="signals", daemon=True).start()

    def _hear(self, read: int) -> None:
        is_first = True
        with open(read, "rb", buffering=0) as pipe:
            for (number,) in iter(lambda: pipe.read(1), b""):
                if number in self.SIGNALS:
                    self._heard_of(number, is_first)
                    is_first = False

    def _heard_of(self, number: int, is_first: bool) -> None:
        # Straight to the file descriptor: the main thread may be in the middle of a print. And
        # without an orderly exit, which threads that save or decode would hold up.
        self._note(number, None)
        if self._waits and is_first:
            os.write(2, b"\nstopping after the work under way; Ctrl-C leaves at once\n")
        elif self._waits and number == signal.SIGINT:
            os.write(2, b"\nleft at once; nothing since the newest checkpoint is saved\n")
            os._exit(LEFT)
        elif not self._waits and not self._heard.wait(self.GRACE) and not self._waits:
            os.write(2, f"\nstopped by {self.name} before training began\n".encode())
            os._exit(LEFT if number == signal.SIGINT else STOPPED)


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
