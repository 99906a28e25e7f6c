"""Prepares images once, as ArrayRecord in the layout of TFDS, and reads them back.

What is prepared comes from an `Origin`: files, or an archive. A prepared set is named after its
content and what was done to it, written in one pass into a temporary folder beside, and renamed
when complete, under a lock that dies with its process; so it is prepared once, noticed to be out of
date, and never read half-finished. Images that cannot be read are recorded with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from p2p_jax.data.decoding import Facts, examine
from p2p_jax.data.files import AnyPath, passing, read
from p2p_jax.data.pairs import DataError, Log

LAYOUT = 2  # of a prepared set; part of its folder's name
_INDEX = "index.json"
_UNFINISHED = "unfinished-pairs-"  # no name of a user's: such folders are removed
_SHARD = 2048  # examples of one file of a prepared set
_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one clock tick
_LOG_SECONDS = 2.0
_AT_ONCE = 256, 1 << 24  # examples, and bytes of them, that are written together
_WORKERS = min(os.cpu_count() or 1, 16)

T = TypeVar("T")
R = TypeVar("R")


class Blob(NamedTuple):
    """One example on its way in: where it comes from, or its bytes.

    Attributes:
      split: of the example.
      name: unique in its split; a relative path without suffix.
      files: to read; their names for messages, where `data` is there already.
      data: the content of each file, or empty.
    """

    split: str
    name: str
    files: tuple[AnyPath, ...]
    data: tuple[bytes, ...] = ()


class Origin(Protocol):
    """What is to be prepared."""

    @property
    def what(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def where(self) -> str:
        """Its place, by which its content is remembered."""
        ...

    def stamp(self) -> tuple[str, int]:
        """What tells that anything changed, and the time of the latest change in ns."""
        ...

    def content(self) -> str:
        """Digest of all names and bytes."""
        ...

    def blobs(self) -> Iterator[Blob]:
        """All examples; may raise DataError where the origin as a whole is unfit."""
        ...


class Recipe(NamedTuple):
    """What is done to the files of an example before they are stored.

    Attributes:
      key: tells recipes apart, versions and options included; '' for none.
      apply: from the content of the files to what is stored. Raises ValueError where it cannot be
        done. To be pickled where `processes`.
      processes: whether it is worth several processes, rather than threads.
    """

    key: str = ""
    apply: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] | None = None
    processes: bool = False


class Row(NamedTuple):
    """What is known of one stored example.

    Attributes:
      name: see `Blob`.
      files: names of its files, for messages.
      digests: of their content.
      facts: of each stored image; empty where there is a problem.
      problem: why it cannot be used, or ''.
    """

    name: str
    files: tuple[str, ...]
    digests: tuple[str, ...]
    facts: tuple[Facts, ...]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set.

    Attributes:
      folder: where it lies.
      content: digest of all that it was made of, and of how.
      rows: by split, what is known of each example, in the order of the records.
      records: by split, the serialised examples by row.
      others: names of files of the origin that were not used.
    """

    folder: Path
    content: str
    rows: dict[str, tuple[Row, ...]]
    records: dict[str, Sequence[Any]]
    others: tuple[str, ...] = ()

    def blobs(self, split: str, row: int) -> tuple[bytes, bytes]:
        """The stored images of an example; the second may be empty.

        Raises:
          OSError: the prepared copy is damaged.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        kind: Any = tf_example_pb2  # generated code, which a type checker cannot look into
        try:
            # TFDS' own way from bytes to numpy takes as long as a tenth of decoding a JPEG.
            example = kind.Example.FromString(self.records[split][row])
            image, second, name = (
                example.features.feature[key].bytes_list.value[0]
                for key in ("image", "second", "name")
            )
            stored = os.fsdecode(name)
            if stored != self.rows[split][row].name:
                raise ValueError(f"record {row} is of '{stored}'")
        except Exception as error:  # ArrayRecord raises many kinds
            if passing(error):
                raise
            hint = f"the prepared copy {self.folder} is damaged: remove it and run again"
            raise OSError(f"{hint} ({error})") from error
        return image, second


def prepare(origin: Origin, recipe: Recipe, cache: Path, log: Log) -> Prepared:
    """Opens the prepared set of `origin`, preparing it if there is none.

    Args:
      origin: what to prepare; only read.
      recipe: what to do to it.
      cache: holds prepared sets.
      log: takes progress, a line at a time.

    Raises:
      DataError: the origin as a whole is unfit, or the cache.
    """
    with usable(cache):
        files, before = content_of(origin, cache, log)
        content = sha(f"{files} {recipe.key}".encode())
        target = cache / f"pairs-v{LAYOUT}-{content[:32]}"
        prepared = opened(target)
        if prepared is None:
            with locked(cache, log):
                prepared = opened(target)  # by another process meanwhile
                if prepared is None:
                    _build(origin, before, recipe, content, target, log)
        return prepared or open_prepared(target)


@contextlib.contextmanager
def usable(cache: Path) -> Iterator[None]:
    """Makes the folder of prepared sets; what goes wrong with it becomes a DataError."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            [f"data.prepared_dir: '{cache}' cannot be used ({error}); it must be writable and have "
             "room for a copy of the data; choose another folder"]
        ) from error  # fmt: skip


def prepared_dir(chosen: str) -> Path:
    """The folder that prepared data is kept in."""
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2p_jax"


# --- content -------------------------------------------------------------------------------------


def content_of(origin: Origin, cache: Path, log: Log) -> tuple[str, str]:
    """Digest of all names and bytes, remembered as long as nothing's stamp changes; and that."""
    memo = cache / "memo" / f"{sha(os.fsencode(origin.where))[:32]}.json"
    before, newest = origin.stamp()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["stamp"] == before:
            return str(known["content"]), before
    log(f"looking at {origin.what}")
    content = origin.content()
    if origin.stamp()[0] != before:
        raise DataError([f"data.path: {origin.what} changed while it was read; run again"])
    if time.time_ns() - newest > _SETTLED_NS:
        with contextlib.suppress(OSError):  # what others prepared may be read without it
            memo.parent.mkdir(exist_ok=True)
            _put(memo, json.dumps({"stamp": before, "content": content}))
    return content, before


def _put(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def sha(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], processes: bool = False
) -> Iterator[R]:
    """`map` over threads or processes; in order, and only a few items ahead of the consumer."""
    pool: Executor
    if processes:  # not forked: threads of others may hold locks
        pool = ProcessPoolExecutor(_WORKERS, multiprocessing.get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(_WORKERS)
    begun: deque = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 4 * _WORKERS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(["data: a process that prepares images was killed; run again"]) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --- preparation ---------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(cache: Path, log: Log) -> Iterator[None]:
    """Keeps other processes from preparing in the same folder."""
    with open(cache / "prepare.lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that prepares data in {cache}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(
    origin: Origin, before: str, recipe: Recipe, content: str, target: Path, log: Log
) -> None:
    """Writes all examples below a temporary folder and renames it to `target`.

    `before` is the stamp that the origin had when its content was digested.
    """
    for junk in [
        *target.parent.glob(f"{_UNFINISHED}*"),
        target,
    ]:  # of a killed process; we hold the lock
        shutil.rmtree(junk, ignore_errors=True)
    begin = time.monotonic()
    log(f"preparing {origin.what} in {target}")
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        folder = temporary / "set"
        folder.mkdir()
        splits = write(origin.blobs(), recipe, _info(folder), log)
        if origin.stamp()[0] != before:
            raise DataError([f"data.path: {origin.what} changed while it was prepared; run again"])
        write_index(folder, content, splits)
        folder.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    count = sum(map(len, splits.values()))
    log(f"prepared {count} examples of {origin.what} in {time.monotonic() - begin:.1f} s")


def _sync(folder: Path) -> None:
    """Forces a folder to disk: a rename may reach it before the data."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _made(recipe: Recipe, blob: Blob) -> tuple[Row, tuple[bytes, ...]]:
    """What is to be stored of one example, and what is known of it; in a thread or a process."""
    names = tuple(str(file) for file in blob.files)
    data = blob.data
    try:
        data = data or tuple(map(read, blob.files))
        digests = tuple(map(sha, data))
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        return Row(blob.name, names, (), (), reason), ()
    try:
        stored = recipe.apply(data) if recipe.apply else data
        return Row(blob.name, names, digests, tuple(map(examine, stored))), stored
    except ValueError as error:
        return Row(blob.name, names, digests, (), str(error)), ()


def write(blobs: Iterator[Blob], recipe: Recipe, info: Any, log: Log) -> dict[str, tuple[Row, ...]]:
    """Writes a TFDS data set in one pass; gives what is known of each example, by split.

    Args:
      blobs: the examples.
      recipe: what to do to each.
      info: the set's `tfds.core.DatasetInfo`, with `features` and the folder to write to.
      log: takes progress.
    """
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    batch = _Batch(SequentialWriter(info, _SHARD, file_format="array_record"))
    splits: dict[str, list[Row]] = {}
    told, total = time.monotonic(), 0
    # A blob's split is needed after it has come back; it is not sent along.
    sent: deque[str] = deque()

    def sending() -> Iterator[Blob]:
        for blob in blobs:
            sent.append(blob.split)
            yield blob

    for row, stored in ordered_map(functools.partial(_made, recipe), sending(), recipe.processes):
        split = sent.popleft()
        batch.add(split, row.name, stored, new=split not in splits)
        splits.setdefault(split, []).append(row)
        total += 1
        if time.monotonic() - told > _LOG_SECONDS:
            log(f"prepared {total} examples")
            told = time.monotonic()
    batch.close()
    return {split: tuple(rows) for split, rows in splits.items()}


class _Batch:
    """Examples on their way to a writer, which writes its description anew at each call."""

    def __init__(self, writer: Any) -> None:
        self._writer, self._count, self._bytes = writer, 0, 0
        self._waiting: dict[str, list[dict[str, bytes]]] = {}

    def add(self, split: str, name: str, stored: tuple[bytes, ...], new: bool) -> None:
        if new:
            self._writer.initialize_splits([_stored_name(split)])
        first, second = (*stored, b"", b"")[:2]
        example = {"image": first, "second": second, "name": os.fsencode(name)}
        self._waiting.setdefault(_stored_name(split), []).append(example)
        self._count, self._bytes = self._count + 1, self._bytes + len(first) + len(second)
        if self._count >= _AT_ONCE[0] or self._bytes >= _AT_ONCE[1]:
            self._write(self._writer.add_examples, self._waiting)
            self._waiting, self._count, self._bytes = {}, 0, 0

    def close(self) -> None:
        self._write(self._writer.add_examples, self._waiting)
        self._write(self._writer.close_all)

    def _write(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except RuntimeError as error:  # what ArrayRecord raises where the disk is full
            raise OSError(str(error)) from error


def _stored_name(split: str) -> str:
    """What a split is called on disk: its name where TFDS takes it."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9_]*", split)
    return split if plain and split != "all" else f"split_{sha(os.fsencode(split))[:16]}"


def _info(folder: Path) -> Any:
    """What TFDS is to know of a set: encoded images as they are, and names."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name="pairs",
        version=tfds.core.Version(f"{LAYOUT}.0.0"),
        data_dir=os.fspath(folder),
        module_name=__name__,
    )
    return tfds.core.DatasetInfo(builder=identity, features=features(), disable_shuffling=True)


def features() -> Any:
    """What an example holds: encoded images as they are (the second may be empty), and a name."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict({"image": text(), "second": text(), "name": text()})


def write_index(
    folder: Path, content: str, splits: dict[str, tuple[Row, ...]], others: Sequence[str] = ()
) -> None:
    """Writes what is known of the examples beside the records; with it the set is complete."""
    files = {path.name: _mark(path) for path in folder.iterdir() if path.name != _INDEX}
    index = {
        "layout": LAYOUT, "content": content, "files": files, "others": others, "splits": splits,
    }  # fmt: skip
    text = json.dumps(index)
    _sync(folder)
    _put(folder / _INDEX, f"{sha(text.encode())}\n{text}")
    _sync(folder)


def _mark(path: Path) -> list:
    """By what a file of a set is known: records, which hold sums of their own, by their size."""
    size = path.stat().st_size
    return [size, "" if ".array_record" in path.name else sha(path.read_bytes())]


# --- reading -------------------------------------------------------------------------------------


class NotPrepared(OSError):
    """There is no complete and sound prepared set."""


def opened(target: Path) -> Prepared | None:
    """A prepared set; None where there is none, or it is incomplete or damaged."""
    with contextlib.suppress(NotPrepared):
        return open_prepared(target)


def open_prepared(target: Path) -> Prepared:
    """Opens a complete prepared set of this layout.

    Raises:
      NotPrepared: it is none.
    """
    try:
        return _open(target)
    except Exception as error:  # whatever json and TFDS raise for damaged files
        if passing(error) or isinstance(error, ImportError):
            raise  # the set may be sound
        raise NotPrepared(f"{target} is not a complete prepared set ({error})") from error


def _open(target: Path) -> Prepared:
    import tensorflow_datasets as tfds

    total, _, text = (target / _INDEX).read_bytes().partition(b"\n")
    if sha(text).encode() != total:
        raise ValueError(f"{_INDEX} is damaged")
    index = json.loads(text)
    if index["layout"] != LAYOUT:
        raise ValueError(f"layout {index['layout']}")
    for name, mark in index["files"].items():
        if _mark(target / name) != mark:
            raise ValueError(f"{name} is damaged")
    rows = {split: tuple(map(_row, rows)) for split, rows in index["splits"].items()}
    builder: Any = tfds.builder_from_directory(target)  # its decorators hide the signature
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = {
        split: builder.as_data_source(_stored_name(split), deserialize_method=raw) for split in rows
    }
    return Prepared(target, index["content"], rows, records, tuple(index["others"]))


def _row(stored: list[Any]) -> Row:
    name, files, digests, facts, problem = stored
    return Row(name, tuple(files), tuple(digests), tuple(Facts(*f) for f in facts), problem)
