"""How fast pairs are decoded, and how fast feeds give them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from p2p_jax.data import Feed, Frames, HostCache, IndexFeed

_AHEAD = 4  # batches that a feed may have ready, or nearly, when a measurement begins


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
