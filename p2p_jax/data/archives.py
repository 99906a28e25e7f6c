"""Images out of an archive, one after the other, without unpacking it to the disk.

An archive is input like any other: nothing in it is trusted, and nothing in it is passed over
without a word.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from p2p_jax.data.decoding import SUFFIXES
from p2p_jax.data.pairs import DataError, Log
from p2p_jax.data.walk import LAYOUT, Entry, Walk, refuse_bomb
from p2p_jax.data.zips import zip_entries

SPLITS = ("train", "val", "test")
MAX_MEMBER = 256 << 20  # bytes; an image of 65536 x 1024 RGB pixels fits even uncompressed

_MAX_HEADER = 64 << 10  # of names and attributes, which tarfile holds in memory and parses slowly
_CHUNK = 1 << 16
_EXTENSIONS = b"xgXLK"  # types of such headers
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


class Member(NamedTuple):
    """An image of an archive.

    Attributes:
      split: the folder of the split: 'train', 'val' or 'test'.
      name: its path below that folder, with '/' and without suffix; unique in the split.
      file: its path in the archive, as it stands there.
      data: the encoded image.
    """

    split: str
    name: str
    file: str
    data: bytes


def members(
    path: Path,
    log: Log | None = None,
    others: list[str] | None = None,
    splits: Collection[str] = SPLITS,
) -> Iterator[Member]:
    """Reads the images of an archive in the order they lie there, one in memory at a time.

    Hidden files and those that systems leave behind ('._1.jpg', '.DS_Store', '__MACOSX', ...) are
    skipped. Errors come when they are met, the last check only after the last image: what was
    yielded counts once the iterator has ended by itself.

    Args:
      path: a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip file, told apart by content.
      log: told of progress every two seconds, and at the end of files that were not used.
      others: names of up to 100 files that are no images or lie in no split are appended.
      splits: names of folders that hold images.

    Raises:
      DataError: it is no archive, truncated or broken; a member is a link or a device, lies
        outside of the archive, comes twice or is too large; it unpacks to too much; there is no
        image, or none in the folder of a split.
    """
    walk = Walk(path, log, [] if others is None else others)
    sorter = _Sorter(path, splits)
    with walk.step(), path.open("rb") as file:
        start = file.read(10)
    is_zip = start.startswith(_ZIP)
    entries = zip_entries(path, walk) if is_zip else _tar_entries(path, start, walk)
    with contextlib.closing(entries) as found:
        for entry in found:
            place = sorter.place(entry)
            if place:
                with walk.step():
                    data = entry.read()
                if len(data) != entry.size:
                    raise walk.broken("it holds less than it says")
                walk.images += 1
                yield Member(*place, entry.file, data)
            elif place is None:
                walk.pass_over(entry.file)
            walk.last = entry.file
            walk.progress()
    walk.end(sorter.strays)


class _Sorter:
    """Tells images from other files, and refuses what must not be in an archive."""

    def __init__(self, path: Path, splits: Collection[str]) -> None:
        self._path, self._splits = path, splits
        self._seen: set[tuple[str, str]] = set()
        self._root: tuple[str, ...] | None = None
        self.strays: set[str] = set()  # a few folders that hold images and are no split

    def place(self, entry: Entry) -> tuple[str, str] | tuple[()] | None:
        """(split, name) of an image; () for nothing, junk; None for another file."""
        parts = self._parts(entry.file)
        if entry.kind not in ("file", "folder"):
            raise self._refused(entry, f"is {entry.kind}; allowed are files and folders")
        if entry.size > MAX_MEMBER:
            limit = f"allowed are {MAX_MEMBER >> 20} MiB"
            raise self._refused(entry, f"is too large ({entry.size} bytes); {limit}")
        if entry.kind == "folder" or any(p.startswith(".") or p in _JUNK for p in parts):
            return ()
        if not entry.file.lower().endswith(SUFFIXES):
            return None
        at = next((i for i, part in enumerate(parts[:-1]) if part in self._splits), None)
        if at is None:
            if len(self.strays) < 5:
                self.strays.add("/".join(parts[:-1]) or ".")
            return None
        return self._image(entry, tuple(parts[:at]), parts[at], "/".join(parts[at + 1 :]))

    def _image(self, entry: Entry, root: tuple[str, ...], split: str, file: str) -> tuple[str, str]:
        self._root = root if self._root is None else self._root
        if root != self._root:
            roots = f"'{'/'.join(root)}' and '{'/'.join(self._root)}'"
            raise self._refused(entry, f"lies in a second set ({roots}); {LAYOUT}")
        place = split, file.rpartition(".")[0]
        if place in self._seen:
            raise self._refused(entry, "comes twice; names, without suffix, must differ in a split")
        self._seen.add(place)
        return place

    def _parts(self, file: str) -> list[str]:
        # Archives of Windows may part folders by backslashes, and those must not hide a '..'.
        plain = file.replace("\\", "/")
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        if plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain):
            raise DataError(
                [f"'{self._path}': {file!r} leads out of the archive; allowed are relative paths"]
            )
        return parts

    def _refused(self, entry: Entry, why: str) -> DataError:
        return DataError([f"'{self._path}': {entry.file!r} {why}"])


class _Unpacked(io.RawIOBase):
    """The bytes of a tar, unpacked as they are asked for; refuses a bomb."""

    def __init__(self, raw: BinaryIO, start: bytes, walk: Walk) -> None:
        self._raw, self._walk, self.count = raw, walk, 0
        walk.size = walk.path.stat().st_size
        self._stream: io.BufferedIOBase | BinaryIO = raw
        if start.startswith(b"\x1f\x8b"):
            self._stream = gzip.GzipFile(fileobj=raw)
        elif re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", start):
            self._stream = bz2.BZ2File(raw)
        elif start.startswith(b"\xfd7zXZ"):
            self._stream = lzma.LZMAFile(raw)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        self.count += len(data)
        self._walk.read = self._raw.tell()
        refuse_bomb(self._walk.path, self.count, self._walk.read)
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Header(tarfile.TarInfo):
    """A header that is broken never passes for the end of the archive, as it does for tarfile."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark of the end
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _MAX_HEADER):
            raise tarfile.ReadError("a header says an impossible size")
        return header


def _tar_entries(path: Path, start: bytes, walk: Walk) -> Generator[Entry]:
    with path.open("rb") as raw, _Unpacked(raw, start, walk) as unpacked:
        with walk.step():
            try:
                tar = tarfile.open(fileobj=unpacked, mode="r|", bufsize=_CHUNK, tarinfo=_Header)
            except tarfile.ReadError as error:
                if unpacked.count:
                    raise walk.no_archive() from error
                raise
        with tar:
            while True:
                with walk.step():
                    info = tar.next()
                if info is None:
                    break
                yield Entry(
                    info.name, _tar_kind(info), info.size, functools.partial(_tar_data, tar, info)
                )
                walk.count += 1
                # Else it keeps every header.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            walk.ended = True
            with walk.step():
                _end(tar)


def _tar_data(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None  # None is for what is no file
    with file:
        return file.read()


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issparse():
        return "a sparse file"
    if info.isreg():
        return "file"
    return "a link" if info.issym() or info.islnk() else "a device or the like"


def _end(tar: tarfile.TarFile) -> None:
    """Reads on behind the mark of the end, so that the checksum of what was packed is compared."""
    stream = tar.fileobj
    assert stream is not None
    # One block of zeros ends an archive for tarfile, but every archive is written with two.
    if any(stream.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("an empty header")
    while stream.read(_CHUNK):
        pass
