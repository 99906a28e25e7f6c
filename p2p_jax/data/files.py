"""Folders and files, on disk or in a bucket (gs://, through epath)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from p2p_jax.data.pairs import DataError
from p2p_jax.storage import AnyPath as AnyPath
from p2p_jax.storage import at as at
from p2p_jax.storage import is_remote as is_remote

MAX_FILE = 1 << 30  # bytes: what is larger is not one image
# What stays so until somebody changes the file, or the way to it.
_LASTING = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENXIO,
)  # fmt: skip


def entries(folder: AnyPath) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of all that lies in a folder and is not hidden, sorted."""
    if isinstance(folder, Path) and not is_remote(folder):
        with os.scandir(folder) as found:
            listed = [(entry.name, _is_folder(entry)) for entry in found]
    else:
        listed = [(path.name, path.is_dir()) for path in folder.iterdir()]
    return sorted(entry for entry in listed if not entry[0].startswith("."))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: told when it is read
        return False


def passing(error: BaseException) -> bool:
    """Whether an error tells of the machine at this moment, and not of what was read."""
    short = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in short


def read(path: AnyPath) -> bytes:
    """All of a file.

    Raises:
      OSError: it cannot be read, and would not be the next time; or it is no ordinary file, or one
        of more than `MAX_FILE` bytes.
      DataError: it cannot be read now; that may pass, so nothing is to be remembered of it.
    """
    try:
        if isinstance(path, Path) and not is_remote(path):
            seen = os.stat(path)
            if not stat.S_ISREG(seen.st_mode):
                raise OSError(errno.ENXIO, "is no ordinary file")
            if seen.st_size > MAX_FILE:
                raise OSError(errno.ENXIO, f"is of {seen.st_size} bytes, above {MAX_FILE}")
        return path.read_bytes()
    except Exception as error:  # libraries for buckets raise many kinds
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in _LASTING:
            raise
        raise DataError([f"'{path}' cannot be read now ({error}); run again"]) from error


def real(folder: AnyPath) -> str:
    """By what a folder is known, whatever links lead to it; buckets have none."""
    return str(folder) if is_remote(folder) else os.path.realpath(folder)


def stamp(path: AnyPath) -> tuple[tuple, int]:
    """What tells that a file changed, and when it last did, in ns.

    Raises:
      OSError: it cannot be looked at.
    """
    if isinstance(path, Path) and not is_remote(path):
        s = os.stat(path)
        return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino), s.st_ctime_ns
    s: Any = path.stat()  # of epath, which has other names
    return (s.length, s.mtime), int(s.mtime * 1e9)
