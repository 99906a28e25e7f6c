"""Prepares a folder of side-by-side images once, as ArrayRecord through TFDS, and reads it back.

The prepared set keeps the encoded bytes of each file as they are. It is named after its content,
built in a temporary folder beside and renamed when complete, under a lock that dies with its
process; so it is prepared once, noticed to be out of date, and never read half-finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from p2p_jax.data.decoding import decode, inspect
from p2p_jax.data.pairs import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LAYOUT = 1  # of a prepared set; part of its folder's name
# TFDS sorts a split in memory up to 1000 MB and needs TensorFlow beyond, so larger sets are written
# as several TFDS splits and read back as their sum.
_PART_BYTES = 256 << 20
_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one clock tick
_LOG_SECONDS = 2.0
_THREADS = min(os.cpu_count() or 1, 16)

Log = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


def images_in(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the images in `folder`, and of the other visible files."""
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_dir():
                continue
            known = entry.name.lower().endswith(SUFFIXES)
            (images if known else others).append(entry.name)
    return sorted(images), sorted(others)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set.

    Attributes:
      folder: where it lies.
      stems: names of the images without suffix, sorted by file name; the order of the records.
      size: (height, width) of every image, both halves together.
      content: digest of the names and bytes of all files.
      records: the encoded images, by row.
    """

    folder: Path
    stems: tuple[str, ...]
    size: tuple[int, int]
    content: str
    records: Sequence[Any]

    def image(self, row: int) -> np.ndarray:
        """Image `row`, [h, w, 3] uint8."""
        try:
            data = self.records[row]["image"]
        except Exception as error:  # ArrayRecord raises many kinds
            hint = f"the prepared copy {self.folder} is damaged: remove it and run again"
            raise OSError(f"{hint} ({error})") from error
        return decode(data)


def prepare(folder: Path, split: str, cache: Path, log: Log) -> Prepared:
    """Opens the prepared set of the images in `folder`, preparing it if there is none.

    Args:
      folder: holds the images; only read.
      split: what to call them in messages.
      cache: holds prepared sets.
      log: takes progress, a line at a time.

    Raises:
      DataError: naming every file that cannot be used, and why.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        content = _content(folder, cache)
        target = cache / f"pairs-v{LAYOUT}-{content[:32]}"
        if _index(target) is None:
            with _locked(cache, log):
                if _index(target) is None:  # not prepared by another process meanwhile
                    _build(folder, split, content, target, log)
        return _open(target)
    except OSError as error:
        raise DataError(
            [f"data.prepared_dir: '{cache}' cannot be used ({error}); it must be writable and have "
             "room for a copy of the data; choose another folder"]
        ) from error  # fmt: skip


# --- content -------------------------------------------------------------------------------------


def _content(folder: Path, cache: Path) -> str:
    """Digest of all names and bytes, remembered as long as no file's stat changes."""
    memo = cache / "memo" / f"{_sha(os.fsencode(folder.resolve()))[:32]}.json"
    before, newest = _manifest(folder)
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memo.read_text())
        if known["manifest"] == before:
            return known["content"]
    names = images_in(folder)[0]
    content = _combine(names, ordered_map(lambda name: _file_digest(folder / name), names))
    if _manifest(folder)[0] != before:
        raise DataError([f"data.path: '{folder}' changed while it was read; run again"])
    if time.time_ns() - newest > _SETTLED_NS:
        memo.parent.mkdir(exist_ok=True)
        partial = memo.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"manifest": before, "content": content}))
        partial.replace(memo)
    return content


def _manifest(folder: Path) -> tuple[str, int]:
    """Digest of what stat says of each image, and the time of the latest change in ns."""
    lines: list[tuple] = []
    newest = 0
    for name in images_in(folder)[0]:
        try:
            s = os.stat(folder / name)
        except OSError as error:  # told by _check, together with all else
            lines.append((name, str(error)))
            continue
        lines.append((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
        newest = max(newest, s.st_ctime_ns)
    return _sha(repr(lines).encode("utf-8", "surrogateescape")), newest


def _file_digest(path: Path) -> str:
    try:
        return _sha(path.read_bytes())
    except OSError:  # told by _check
        return "unreadable"


def _combine(names: Sequence[str], digests: Iterable[str]) -> str:
    pairs = zip(names, digests, strict=True)
    return _sha(b"".join(os.fsencode(n) + b"\0" + d.encode() + b"\n" for n, d in pairs))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int = 0) -> Iterator[R]:
    """`map` over threads; in order, and only a few items ahead of the consumer."""
    threads = threads or _THREADS
    pool = ThreadPoolExecutor(threads)
    begun: deque = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 4 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --- preparation ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(cache: Path, log: Log) -> Iterator[None]:
    with open(cache / "prepare.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that prepares data in {cache}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(folder: Path, split: str, content: str, target: Path, log: Log) -> None:
    """Checks all images, writes them below a temporary folder, renames it to `target`."""
    for junk in [*target.parent.glob("tmp-*"), target]:  # of a killed process; we hold the lock
        shutil.rmtree(junk, ignore_errors=True)
    names = images_in(folder)[0]
    begin = time.monotonic()
    log(f"preparing {len(names)} images of '{split}' in {target}")
    size, digests = _check(folder, split, names, log)
    if _combine(names, digests) != content:
        raise DataError([f"data.path: '{folder}' changed while it was prepared; run again"])
    temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=target.parent))
    try:
        written, parts = _write(folder, names, digests, temporary, log)
        index = {"layout": LAYOUT, "content": content, "count": len(names), "size": size,
                 "splits": {"all": names}, "parts": parts}  # fmt: skip
        (written / "index.json").write_text(json.dumps(index))
        for path in [*written.iterdir(), written]:  # a rename may reach the disk before the data
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        written.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log(f"prepared {len(names)} images of '{split}' in {time.monotonic() - begin:.1f} s")


def _check(
    folder: Path, split: str, names: Sequence[str], log: Log
) -> tuple[tuple[int, int], list[str]]:
    """Decodes every image; gives the size of all and the digest of each.

    Raises:
      DataError: with all problems.
    """

    def look(name: str) -> tuple[str, tuple[int, int] | None, str]:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            return "unreadable", None, f"cannot be read ({error.strerror})"
        try:
            return _sha(data), inspect(data), ""
        except ValueError as error:
            return _sha(data), None, str(error)

    problems, digests, sizes, first = _clashes(folder, split, names), [], Counter(), {}
    looked = ordered_map(look, names)
    for i, (digest, size, problem) in enumerate(_telling(looked, len(names), "checked", log)):
        digests.append(digest)
        if size is None:
            problems.append(f"{split}[{i}] {folder / names[i]}: {problem}")
        else:
            sizes[size] += 1
            first.setdefault(size, f"{split}[{i}] {names[i]}")
    if len(sizes) > 1:
        listed = ", ".join(f"{n} of {s[1]}x{s[0]} (first {first[s]})" for s, n in sizes.items())
        problems.append(f"data.path: '{folder}' mixes image sizes: {listed}; make them equal")
    if problems:
        raise DataError(problems)
    return next(iter(sizes)), digests


def _clashes(folder: Path, split: str, names: Sequence[str]) -> list[str]:
    """Files whose outputs would overwrite each other."""
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(Path(name).stem, []).append(name)
    return [
        f"{split}: {' and '.join(same)} in {folder} differ in suffix only, so their outputs would "
        "overwrite each other; rename or remove one"
        for same in by_stem.values()
        if len(same) > 1
    ]


def _telling(items: Iterable[T], total: int, what: str, log: Log) -> Iterator[T]:
    """Passes items on and logs every couple of seconds how many there were."""
    told = time.monotonic()
    for i, item in enumerate(items):
        if time.monotonic() - told > _LOG_SECONDS:
            log(f"{what} {i} of {total}")
            told = time.monotonic()
        yield item


def _write(
    folder: Path, names: Sequence[str], digests: Sequence[str], temporary: Path, log: Log
) -> tuple[Path, list[str]]:
    """Writes the files as a TFDS data set; gives its folder and the names of its parts."""
    import tensorflow_datasets as tfds

    parts: dict[str, list[int]] = {}
    room = 0
    for i, name in enumerate(names):
        room -= os.stat(folder / name).st_size
        if room < 0:
            room = _PART_BYTES
            parts[f"part{len(parts):05d}"] = []
        parts[f"part{len(parts) - 1:05d}"].append(i)

    def read(i: int) -> dict[str, bytes]:
        data = (folder / names[i]).read_bytes()
        if _sha(data) != digests[i]:
            raise DataError([f"data.path: '{folder / names[i]}' changed while it was prepared"])
        return {"image": data, "name": os.fsencode(names[i])}

    every = iter(_telling(ordered_map(read, range(len(names))), len(names), "wrote", log))
    examples = {part: ((i, next(every)) for i in rows) for part, rows in parts.items()}
    tfds.disable_progress_bar()  # progress goes through `log`
    builder = _builder_class()(examples, data_dir=temporary, file_format="array_record")
    builder.download_and_prepare(
        download_dir=temporary / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return Path(builder.data_dir), list(parts)


@functools.cache
def _builder_class() -> type:
    """The TFDS builder; a function, because TFDS takes half a second to import."""
    import tensorflow_datasets as tfds

    class SideBySide(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Encoded images and their names, in the order of their integer keys."""

        VERSION = tfds.core.Version(f"{LAYOUT}.0.0")
        # Nothing lies beside the class (checksums, citations); looking for it would need
        # importlib_resources, which TFDS imports but does not require.
        code_path = None

        def __init__(self, examples: dict[str, Iterable], **kwargs: Any) -> None:
            self._examples = examples
            super().__init__(**kwargs)

        def _info(self):
            features = {"image": tfds.features.Image(), "name": tfds.features.Text()}
            info = tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )
            # It would leave an empty folder in the system's temporary one each time.
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager):
            return dict(self._examples)

        def _generate_examples(self):
            raise NotImplementedError  # abstract in the base; the splits bring their examples

        def _log_download_bytes(self) -> None:
            """Prints nothing: `log` has told."""

        def _log_download_done(self) -> None:
            """Prints nothing: `log` will tell."""

    return SideBySide


# --- reading -------------------------------------------------------------------------------------


def _index(target: Path) -> dict[str, Any] | None:
    """The index of a complete prepared set of this layout, or None."""
    try:
        index = json.loads((target / "index.json").read_text())
    except (OSError, ValueError):
        return None
    return index if index.get("layout") == LAYOUT else None


def _open(target: Path) -> Prepared:
    import tensorflow_datasets as tfds

    index = _index(target)
    if index is None:
        raise OSError(f"{target} vanished while it was opened")
    builder: Any = tfds.builder_from_directory(target)  # its decorators hide the signature
    records = builder.as_data_source(
        "+".join(index["parts"]), decoders={"image": tfds.decode.SkipDecoding()}
    )
    if len(records) != index["count"]:
        raise OSError(f"{target} holds {len(records)} images instead of {index['count']}")
    stems = tuple(Path(name).stem for name in index["splits"]["all"])
    return Prepared(target, stems, tuple(index["size"]), index["content"], records)
