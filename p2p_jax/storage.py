"""Folders and files of a run, on disk or in a bucket (gs:// and s3://, through epath).

A bucket has no folders, cannot append, and replaces an object whole. What its library remembers of
listings may be old, a size too; so what other processes write is read here, past all that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A path of pathlib, or of etils.epath, which has the same methods.
AnyPath = Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As libraries that have no error of the system quote it.
_FULL_TEXTS = tuple(os.strerror(number).lower() for number in _FULL)
_TEMP = re.compile(r"\.(\d+|[0-9a-f]{8})\.tmp$")  # numbers are of older versions
_SEEN = re.compile(r"^\.seen-[0-9a-f]{32}$")  # see sharing.py
_LIVE = 5.0  # seconds after which nobody has a small file under his hands any more
# What may be otherwise the next time: of the machine, or of the way to the disk or bucket.
_PASSING = (
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
)  # fmt: skip
_PASSING_TEXT = re.compile(  # of XLA and TensorStore
    r"\b(RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED)\b|"
    rf"os_error_code='({'|'.join(map(str, _PASSING))})'"
)
_EXTRAS = {"gs": "'p2p_jax[gcp]'", "s3": "s3fs"}


def at(path: str) -> AnyPath:
    """A path of the user's; `gs://` and the like need the extra `gcp`.

    Raises:
      OSError: the home folder that `~` names is not known, or the scheme is not.
    """
    if "://" not in path:
        try:
            return Path(path).expanduser()
        except RuntimeError as error:
            raise OSError(str(error)) from error
    # Where TensorFlow is installed, epath would import it for buckets.
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    try:
        return epath.Path(path)
    except KeyError as error:  # of a scheme that it does not know
        raise OSError(f"{path.split('://')[0]}:// is not known; gs:// and s3:// are") from error


def is_remote(path: AnyPath) -> bool:
    """Whether the path lies in a bucket."""
    return "://" in str(path)


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root; one in a bucket is (its own `absolute` would put it on the disk)."""
    return path if is_remote(path) else Path(os.fspath(path)).absolute()


def unreachable(path: AnyPath) -> str:
    """Why a path cannot be looked at, and what to do; '' where it can, be it there or not."""
    try:
        path.exists()
    except ImportError as error:
        scheme = str(path).split("://")[0]
        return f"{path} needs pip install {_EXTRAS.get(scheme, scheme)} ({error})"
    except Exception as error:  # libraries for buckets raise many kinds
        return f"{path} cannot be looked at ({_line(error)})"
    return ""


def found(path: AnyPath) -> bytes | None:
    """All of a file as it is at this moment, or None where there is none."""
    try:
        if is_remote(path):
            return _bucket(path).cat_file(str(path))
        return Path(os.fspath(path)).read_bytes()
    except FileNotFoundError:
        return None


def create(path: AnyPath, data: bytes) -> bool:
    """Writes a file unless there is one; False where there is. Of several only one succeeds."""
    try:
        if is_remote(path):
            _bucket(path).pipe_file(str(path), data, mode="create")
        else:
            with open(path, "xb") as file:
                file.write(data)
    except FileExistsError:
        return False
    return True


def write_atomic(path: AnyPath, data: bytes, durable: bool = True) -> None:
    """Replaces a file in one move, creating its folder; `durable` also outlives a power cut.

    In a bucket that is one put.
    """
    if is_remote(path):
        _bucket(path).pipe_file(str(path), data)
        return
    path = Path(os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: in containers all machines have the same.
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def sweep(folder: AnyPath, deep: bool = False) -> None:
    """Removes what processes that were killed left half done in a folder.

    Args:
      folder: where nobody else calls `write_atomic`.
      deep: those below it as well; there others may write: what is new stays.
    """
    if is_remote(folder):
        return
    root = Path(os.fspath(folder))
    for path in (root.rglob if deep else root.glob)(".*"):
        seen = _SEEN.search(path.name)  # maybe of a process that will meet our lock
        if seen or _TEMP.search(path.name):
            with contextlib.suppress(OSError):
                if not (deep or seen) or time.time() - path.stat().st_mtime > _LIVE:
                    path.unlink()


def forget(path: AnyPath) -> None:
    """Drops what is remembered of listings of the bucket; for after others wrote or moved there."""
    if is_remote(path):
        _bucket(path).invalidate_cache()


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, tells of a full disk, a quota or a size limit."""
    return any(
        getattr(each, "errno", None) in _FULL
        or any(text in str(each).lower() for text in _FULL_TEXTS)
        for each in _chain(error)
    )


def passing(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, tells of this moment and not of what was read.

    An error of the disk itself (EIO) is not one.
    """
    return any(
        isinstance(each, MemoryError | ConnectionError | TimeoutError)
        or getattr(each, "errno", None) in _PASSING
        or _http(each) in (408, 429, *range(500, 600))
        or _PASSING_TEXT.search(str(each)) is not None
        for each in _chain(error)
    )


def _http(error: BaseException) -> int | None:
    """The status of an answer that a library for buckets raises."""
    for name in ("code", "status"):
        with contextlib.suppress(TypeError, ValueError):
            return int(getattr(error, name, None))  # type: ignore[arg-type]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that led to it."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo.append(each.__cause__ or each.__context__)
            if isinstance(each, BaseExceptionGroup):
                todo += each.exceptions


def _bucket(path: AnyPath) -> Any:
    """What epath itself reads and writes with: another of its kind would remember other listings.

    Where epath uses TensorFlow nevertheless, it has none.
    """
    return path._backend.fs(str(path))


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
