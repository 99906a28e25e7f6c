"""Measuring, for benchmarks and inspections: the machine, rates, and tables of them."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p2p_jax.data import Feed, Frames, HostCache, IndexFeed

_PACKAGES = ("jax", "jaxlib", "numpy", "simplejpeg", "pillow")
_AHEAD = 4  # batches that a feed may have ready, or nearly, when a measurement begins


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, memory in bytes, and versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
        model = names[0] if names else model
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "cpu": model,
        "cores": cores(),
        "memory": memory(),
        "versions": {"python": platform.python_version()} | versions,
    }


def machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `machine` found, as rows of a name and a text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        ("processor", f"{found['cpu']}, {found['cores']} cores, {size(found['memory'])} of memory"),
        ("versions", versions),
    ]


def size(count: float) -> str:
    """So many bytes in words."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:g} bytes"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its head; columns of numbers are flush right."""
    made = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        numbers = all(_is_number(cell) for cell in column[1:])
        made.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*made, strict=True)]


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "").isdecimal()


# --- rates ---------------------------------------------------------------------------------------


def one_thread(function: Callable[[Any], Any], items: Sequence[Any], seconds: float) -> float:
    """Calls per second of `function`, on one item after another, over and over."""
    done, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        function(items[done % len(items)])
        done += 1
    return done / passed


def all_threads(
    function: Callable[[Any], Any], items: Sequence[Any], seconds: float, threads: int
) -> float:
    """Calls per second of `function` in several threads, each from a place of its own."""

    def work(thread: int) -> int:
        at, done = thread * len(items) // threads, 0
        while time.perf_counter() < end:
            function(items[(at + done) % len(items)])
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        end = begin + seconds
        done = sum(pool.map(work, range(threads)))
        return done / (time.perf_counter() - begin)


def feed_rate(feed: Feed | IndexFeed, batch_size: int, seconds: float) -> float:
    """Images per second that a feed with an endless plan gives a consumer which does nothing.

    The feed is closed then. What it had made before the consumer came is not counted.
    """
    with feed:
        for _ in itertools.islice(feed, _AHEAD):
            pass
        done, passed, begin = 0, 0.0, time.perf_counter()
        while passed < seconds:
            _, count, _ = next(feed)
            done += count
            passed = time.perf_counter() - begin
        return done * batch_size / passed


def endless(count: int) -> Iterator[tuple[int, int]]:
    """A plan of dispatches of `count` steps."""
    return ((first, count) for first in itertools.count(0, count))


def streaming(
    frames: Frames | HostCache, batch_size: int, threads: int, cache: str = "none", steps: int = 1
) -> Feed:
    """A feed without end that puts nothing on a device."""
    return Feed(
        frames,
        batch_size=batch_size,
        local=slice(None),
        seed=0,
        shuffle=True,
        threads=threads,
        cache=cache,
        plan=endless(steps),
        steps_per_dispatch=steps,
        put=_nowhere,
    )


def indices_alone(count: int, batch_size: int, steps: int = 1) -> IndexFeed:
    """A feed without end of the indices of `count` examples."""
    return IndexFeed(
        count,
        batch_size=batch_size,
        local=slice(None),
        seed=0,
        shuffle=True,
        plan=endless(steps),
        steps_per_dispatch=steps,
        put=_nowhere,
    )


def _nowhere(batch: Any) -> Any:
    return batch
