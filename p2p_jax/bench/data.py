"""The parts that concern data alone: reading it (`data`), and preparing it (`prepare`)."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p2p_jax.bench.jpegs import write_pairs
from p2p_jax.bench.machine import cores
from p2p_jax.bench.rates import all_threads, feed_rate, indices_alone, one_thread, streaming
from p2p_jax.bench.rows import Options, Row, in_turn, row
from p2p_jax.build import build
from p2p_jax.config import Config, base, merge
from p2p_jax.data import Frames, HostCache
from p2p_jax.data.builders import Blob, Prepared, Recipe, prepare
from p2p_jax.data.decoding import decode
from p2p_jax.data.folder import HALVES
from p2p_jax.data.origins import Files
from p2p_jax.data.pairs import Log
from p2p_jax.data.sources import GATHER, SOURCES
from p2p_jax.validate import data_options

PAIRS = 256  # that `data` reads, where they are generated


# --- generated pairs -----------------------------------------------------------------------------


def generated(options: Options, name: str, count: int, **changes: Any) -> Config:
    """A config of generated pairs, so many to train on."""
    path = options.folder / name
    if not path.exists():
        options.log(f"generating {count} pairs of JPEG")
        write_pairs(path / "train", count)
        write_pairs(path / "val", 2)
    keys = {
        "data.path": str(path),
        "data.prepared_dir": str(options.folder / "prepared"),
        "mesh.devices": 1,
    }
    return merge(base(), keys | {key.replace("__", "."): v for key, v in changes.items()})


def quiet(options: Options) -> Log:
    """Of what is generated, preparing is not worth a word."""
    return options.log if options.config else lambda line: None


# --- data ----------------------------------------------------------------------------------------


def data(options: Options) -> list[Row]:
    """Raw decoding, and the feeds with each cache, in turn.

    The ratio is to as many times one thread's rate as there are cores; what all of them reach of it
    together, decoding and nothing else, is the most that a feed can.
    """
    config = options.config or generated(options, "pairs", PAIRS, train__batch_size=16)
    log = quiet(options)
    experiment = build(config, log)
    frames, batch = experiment.train_frames, experiment.train.batch_size
    threads, steps = experiment.train.threads, experiment.train.steps_per_dispatch
    raw, blobs = _raw(config, frames, log)
    options.log("decoding all pairs into memory")
    kept = HostCache(frames)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(kept.__getitem__, range(len(kept))))
    ways: dict[str, Callable[[], float]] = {
        "raw decode, one thread": lambda: one_thread(raw, blobs, options.seconds),
        "raw decode, all threads": lambda: all_threads(raw, blobs, options.seconds, threads),
        "feed, cache none": lambda: feed_rate(
            streaming(frames, batch, threads, steps=steps), batch, options.seconds
        ),
        "feed, cache host": lambda: feed_rate(
            streaming(kept, batch, threads, "host", steps), batch, options.seconds
        ),
        "indices, cache device": lambda: feed_rate(
            indices_alone(len(frames), batch, steps), batch, options.seconds
        ),
    }
    rates = {way: statistics.median(found) for way, found in in_turn(ways).items()}
    ideal = cores() * rates["raw decode, one thread"]
    shared = {"cores": cores(), "threads": threads, "frame": list(frames.shape)}
    rows = []
    for way, rate in rates.items():
        alone = way.startswith("raw")
        against = way in ("raw decode, all threads", "feed, cache none")
        ratio = rate / ideal if against else None
        size = 1 if alone else batch
        rows.append(row("data", way, batch_size=size, images_per_sec=rate, ratio=ratio, **shared))
    return rows


def _raw(config: Config, frames: Frames, log: Log) -> tuple[Callable[[Any], Any], Sequence[Any]]:
    """What decodes a pair and does nothing else, and the stored pairs, in memory."""
    options = data_options(config)
    if options.source not in GATHER:  # there is nothing stored: pairs are drawn
        source = SOURCES[options.source].open(options, log).train
        return source.__getitem__, range(len(source))
    gathered = GATHER[options.source](options, log)
    split = gathered.options.train_split
    prepared: Prepared = gathered.sets[split]
    used = {view.file for view in gathered.views if view is not None}
    rows = [i for i, known in enumerate(prepared.rows[split]) if not known.problem]
    rows = rows[: min(len(frames), 512)]
    stored = [[prepared.blobs(split, i)[file] for file in used] for i in rows]
    return _decode_all, stored


def _decode_all(files: Sequence[bytes]) -> None:
    import simplejpeg

    for file in files:
        if file[:2] == b"\xff\xd8":
            simplejpeg.decode_jpeg(file, "RGB", fastdct=False, fastupsample=False)
        else:
            decode(file)


# --- prepare -------------------------------------------------------------------------------------


def preparation(options: Options) -> list[Row]:
    """The rate of preparing pairs, and what memory it takes, in a process of its own."""
    config = generated(options, "many", options.pairs)
    every = max(1, options.pairs // 5)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned) as pool:
        found = pool.submit(prepared_anew, config.data.path, str(options.folder), every).result()
    count, seconds = found["pairs"], found["seconds"]
    return [
        row(
            "prepare",
            "JPEG 512x256",
            images_per_sec=count / seconds,
            ratio=found["memory"][-1] / found["memory"][0],
            pairs=count,
            seconds=seconds,
            memory_at=[min(every * (i + 1), count) for i in range(len(found["memory"]))],
            memory=found["memory"],
            memory_peak=found["peak"],
        )
    ]


class _Watched:
    """An origin that notes the memory of its process as its examples are taken."""

    def __init__(self, files: Files, every: int) -> None:
        self.what, self.where, self._files, self._every = files.what, files.where, files, every
        self.seen: list[int] = []

    def stamp(self) -> tuple[str, int]:
        return self._files.stamp()

    def content(self) -> str:
        return self._files.content()

    def blobs(self) -> Iterator[Blob]:
        for count, blob in enumerate(self._files.blobs(), 1):
            yield blob
            if count % self._every == 0:
                self.seen.append(resident())


def prepared_anew(path: str, folder: str, every: int) -> dict[str, Any]:
    """Prepares the training split below `path`; memory is in bytes, after each `every` pairs."""
    listing = HALVES.locate(Path(path), "train")
    assert listing is not None
    origin = _Watched(Files("the pairs", path, {"train": listing.items}), every)
    begin = time.perf_counter()
    prepared = prepare(origin, Recipe(), Path(folder) / "anew", lambda line: None)
    seconds = time.perf_counter() - begin
    peak = resident("VmHWM")
    count = len(prepared.rows["train"])
    return {"pairs": count, "seconds": seconds, "memory": origin.seen, "peak": peak}


def resident(kind: str = "RssAnon") -> int:
    """Bytes of memory of this process, by a name of `/proc/self/status`.

    Without that file the most that it ever had, which on some systems counts its parent's.

    Args:
      kind: 'RssAnon', what is its own, without files it has mapped; 'VmHWM', the most of all.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
