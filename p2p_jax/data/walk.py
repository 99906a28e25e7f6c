"""What archives of all kinds have in common: what lies in them, and how far they were read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from p2p_jax.data.decoding import SUFFIXES
from p2p_jax.data.pairs import DataError, Log

MAX_OTHERS = 100  # names of files that are no images
LAYOUT = "images lie in NAME/train, NAME/val and NAME/test, or in these without NAME"

# Encoded images hardly shrink in an archive, and even raw masks seldom to a hundredth of a whole
# set, while deflate reaches a thousandth and bzip2 far less. What little comes first harms nobody.
_RATIO = 200
_FREE = 64 << 20

_EVERY = 2.0  # seconds between two lines of progress
_ALLOWED = "allowed are .tar, .tar.gz, .tar.bz2, .tar.xz and .zip"
_ANEW = "delete it and run again, or download it anew"


class Entry(NamedTuple):
    """Anything that lies in an archive; `kind` is 'file', 'folder' or what is not allowed."""

    file: str
    kind: str
    size: int
    read: Callable[[], bytes]


class Walk:
    """How far an archive was read, for messages."""

    def __init__(self, path: Path, log: Log | None, others: list[str]) -> None:
        """At the start; `others` takes the names of files that are not used."""
        self.path, self.images, self.count, self.last = path, 0, 0, ""
        self.read, self.size, self.ended = 0, 1, False
        self._log, self._others, self._passed = log, others, 0
        self._next = time.monotonic() + _EVERY

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around each call of a reader: those raise almost anything for a broken archive."""
        try:
            yield
        except DataError:
            raise
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise DataError([f"'{self.path}' cannot be read: {error.strerror}"]) from error
        except Exception as error:
            raise self.broken(str(error) or type(error).__name__) from error

    def broken(self, why: str) -> DataError:
        """What to raise where reading fails, with the place."""
        last = f"last good one: {self.last!r}" if self.last else "the first one"
        at = "at its end" if self.ended else f"at member {self.count + 1} ({last})"
        return DataError([f"'{self.path}' is truncated or broken {at}: {why}; {_ANEW}"])

    def no_archive(self) -> DataError:
        """What to raise where nothing could be read."""
        return DataError([f"'{self.path}' is no archive; {_ALLOWED}"])

    def pass_over(self, file: str) -> None:
        """Counts a file that is not used."""
        self._passed += 1
        if len(self._others) < MAX_OTHERS:
            self._others.append(file)

    def progress(self) -> None:
        """Says now and then how far it is."""
        if self._log and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            amount = f"{self.read / 1e6:.0f} of {self.size / 1e6:.0f} MB"
            self._log(f"reading {self.path.name}: {amount}, {self.images} images")

    def end(self, strays: Collection[str]) -> None:
        """Raises where there was no image; tells of what was not used.

        Args:
          strays: a few folders that hold images and are no split.
        """
        some = ", ".join(map(repr, self._others[:5])) + (", ..." if self._passed > 5 else "")
        if not self.images and strays:
            named = ", ".join(map(repr, sorted(strays)))
            raise DataError(
                [f"'{self.path}' has no image in a split; {LAYOUT}; images are in {named}"]
            )
        if not self.images:
            found = f"found are {some}" if some else "nothing else is in it"
            allowed = ", ".join(SUFFIXES)
            raise DataError([f"'{self.path}' holds no image; allowed are {allowed}; {found}"])
        if self._log and self._passed:
            self._log(f"{self.path.name}: {self._passed} files were not used: {some}")


def refuse_bomb(path: Path, unpacked: int, packed: int) -> None:
    """Raises where so many bytes come of so few that they are made to harm."""
    if unpacked > _FREE and unpacked > _RATIO * packed:
        raise DataError(
            [
                f"'{path}' unpacks to more than {_RATIO} times its size; images never shrink that "
                "much: unpack it by hand if you trust it, and give the folder"
            ]
        )
