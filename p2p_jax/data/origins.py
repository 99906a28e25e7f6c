"""What prepared sets are made of: listed files, and archives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from p2p_jax.data import archives
from p2p_jax.data.builders import Blob, ordered_map, sha
from p2p_jax.data.files import AnyPath, read, stamp
from p2p_jax.data.listing import Item, unprintable
from p2p_jax.data.pairs import DataError


def stamps(files: Iterable[AnyPath]) -> tuple[str, int]:
    """What tells that any of the files changed, and the time of the latest change in ns."""
    lines: list[tuple] = []
    newest = 0
    for file in files:
        try:
            seen, changed = stamp(file)
        except OSError as error:  # told when it is read, together with all else
            lines.append((str(file), str(error)))
            continue
        lines.append((str(file), *seen))
        newest = max(newest, changed)
    return sha(repr(lines).encode("utf-8", "surrogateescape")), newest


def _file_digest(file: AnyPath) -> str:
    try:
        return sha(read(file))
    except OSError:  # told when it is prepared
        return "unreadable"


class Files:
    """Listed files, by split."""

    def __init__(self, what: str, where: str, splits: Mapping[str, Sequence[Item]]) -> None:
        """Describes them; nothing is read yet.

        Args:
          what: what to call them in messages.
          where: their place, by which their content is remembered.
          splits: the items.
        """
        self.what, self.where, self._splits = what, where, splits

    def _files(self) -> Iterator[AnyPath]:
        for items in self._splits.values():
            for item in items:
                yield from item.files

    def stamp(self) -> tuple[str, int]:
        """See `builders.Origin`."""
        names = [(split, item.name) for split, items in self._splits.items() for item in items]
        seen, newest = stamps(self._files())
        return sha(repr((names, seen)).encode()), newest

    def content(self) -> str:
        """See `builders.Origin`."""
        digests = ordered_map(_file_digest, self._files())
        whole = hashlib.sha256()
        for split, items in self._splits.items():
            for item in items:
                own = [next(digests) for _ in item.files]
                suffixes = [os.path.splitext(str(file))[1] for file in item.files]
                whole.update(repr((split, item.name, suffixes, own)).encode(errors="replace"))
        return whole.hexdigest()

    def blobs(self) -> Iterator[Blob]:
        """See `builders.Origin`."""
        for split, items in self._splits.items():
            for item in items:
                yield Blob(split, item.name, item.files)


class Archive:
    """The images of an archive, in its folders by split."""

    def __init__(self, path: Path, splits: Collection[str] = archives.SPLITS) -> None:
        """Describes it; nothing is read yet.

        Args:
          path: of the archive.
          splits: names of folders that hold images.
        """
        self.what = f"the archive {path}"
        self._path, self._splits = path, tuple(sorted(splits))
        self.where = f"{path.resolve()} {self._splits}"
        self.others: list[str] = []  # files that were not used, once the blobs have ended

    def stamp(self) -> tuple[str, int]:
        """See `builders.Origin`."""
        return stamps([self._path])

    def content(self) -> str:
        """See `builders.Origin`."""
        try:
            with self._path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError([f"data.path: '{self._path}' cannot be read ({error})"]) from error
        usual = self._splits == tuple(sorted(archives.SPLITS))
        return content if usual else sha(repr((content, self._splits)).encode())

    def blobs(self) -> Iterator[Blob]:
        """See `builders.Origin`."""
        self.others.clear()
        for member in archives.members(self._path, others=self.others, splits=self._splits):
            problem = unprintable([member.file])
            if problem:
                raise DataError([f"'{self._path}': {problem}"])
            yield Blob(member.split, member.name, (member.file,), (member.data,))
