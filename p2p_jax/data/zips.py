"""What lies in a zip."""

from __future__ import annotations

import functools
import stat
import zipfile
from collections.abc import Generator
from pathlib import Path

from p2p_jax.data.walk import Entry, Walk, refuse_bomb


def zip_entries(path: Path, walk: Walk) -> Generator[Entry]:
    """Its entries, in their order."""
    walk.size, unpacked = path.stat().st_size, 0
    with walk.step():
        archive = zipfile.ZipFile(path)
    with archive:
        if len(archive.infolist()) & 0xFFFF != _count(path) != 0xFFFF:
            raise walk.broken("the list of its files is not of the length that it says")
        for info in archive.infolist():
            unpacked += info.file_size
            refuse_bomb(path, unpacked, walk.size)
            read = functools.partial(_data, archive, info)
            yield Entry(info.filename, _kind(info), info.file_size, read)
            walk.count += 1
            walk.read += info.compress_size


def _count(path: Path) -> int:
    """How many files the end record says there are, 16 bits of it; 65535 is also 'see zip64'."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 22))  # the longest comment, and itself
        tail = file.read()
    at = tail.rfind(b"PK\5\6") + 10  # APPNOTE 4.3.16
    return int.from_bytes(tail[at : at + 2], "little")


def _data(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size + 1)  # without a number it unpacks all, whatever it says


def _kind(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        return "encrypted"
    # The rest unpack without a limit to what they take of memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packed in a rare way"
    if info.is_dir():
        return "folder"
    if kind == stat.S_IFLNK:
        return "a link"
    return "file" if kind in (0, stat.S_IFREG) else "a device or the like"
