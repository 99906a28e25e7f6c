"""Files that grow by lines: on a disk, and in a bucket, which cannot append."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from p2p_jax.storage import AnyPath, write_atomic


class Appended:
    """A file that grows; whatever fails, it ends with a whole line."""

    def __init__(self, path: AnyPath) -> None:
        self._file = open(path, "ab", buffering=0)
        self._size = self._safe = self._file.seek(0, os.SEEK_END)  # whole lines; those synced
        self._lines: list[bytes] = []  # since the last sync
        self._done = 0  # of them in the file

    def write(self, line: bytes, put_every: float) -> None:
        """Appends a line, after those that wait."""
        del put_every
        self._lines.append(line)
        self._flush()

    def sync(self) -> None:
        """Forces all lines to disk. Where that fails, all since the last time wait again."""
        self._flush()
        try:
            os.fsync(self._file.fileno())
        except OSError:
            # What the system held of them may be gone, and it says so only once.
            self._size, self._done = self._safe, 0
            self._cut()
            raise
        self._safe, self._lines, self._done = self._size, [], 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _flush(self) -> None:
        self._cut()
        try:
            for line in self._lines[self._done :]:
                left = memoryview(line)
                while left:  # a disk with little room takes a part first, and then nothing
                    left = left[self._file.write(left) :]
                self._size, self._done = self._size + len(line), self._done + 1
        except BaseException:  # also a Ctrl-C between two parts
            self._cut()
            raise

    def _cut(self) -> None:
        """Takes off what is there of a line that was not written to its end."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            os.ftruncate(self._file.fileno(), self._size)


class Put:
    """An object in a bucket, which can only be put as a whole."""

    def __init__(self, path: AnyPath, kept: bytes, check: Callable[[], None]) -> None:
        """Goes on from what is there; before each put, `check` raises if it may not be replaced."""
        self._path, self._data, self._check = path, bytearray(kept), check
        self._safe, self._last = len(kept), time.monotonic()
        self._putting = ThreadPoolExecutor(1)  # training need not wait
        self._under_way: Future[None] | None = None

    def write(self, line: bytes, put_every: float) -> None:
        """Keeps a line, and begins a put where the last one is long ago."""
        self._data += line
        idle = self._under_way is None or self._under_way.done()
        if idle and time.monotonic() - self._last >= put_every:
            self._last = time.monotonic()
            # If it fails, the next one or `sync` puts the same and more.
            self._under_way = self._putting.submit(self._put, bytes(self._data))

    def sync(self) -> None:
        """Puts all lines, unless they were."""
        if self._safe < len(self._data):
            data = bytes(self._data)
            self._putting.submit(self._put, data).result()
            self._safe, self._last = len(data), time.monotonic()

    def close(self) -> None:
        """Waits for a put under way."""
        self._putting.shutdown()

    def _put(self, data: bytes) -> None:
        self._check()
        write_atomic(self._path, data)
