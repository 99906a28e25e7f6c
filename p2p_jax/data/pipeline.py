"""From pairs to batches: the order of examples, and a feed that stays ahead of the device.

Which example stands where is a pure function of (seed, step, position in the global batch), so
neither threads, hosts nor a restart change it, and there is no iterator state to save.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from p2p_jax.data.pairs import Batch, Pair, PairSource

_TASKS_PER_THREAD = 4  # small enough to even out, large enough to cost nothing


def order(seed: int, size: int, start: int, count: int, shuffle: bool) -> np.ndarray:
    """Example indices at global positions start .. start + count - 1, int64 [count].

    Position p lies in epoch p // size; each epoch is a permutation of range(size) of its own, or
    range(size) itself without `shuffle`.

    Raises:
      ValueError: if `size` is not positive or `start` or `count` is negative.
    """
    if size < 1 or start < 0 or count < 0:
        raise ValueError(f"order: size {size} must be > 0, start {start} and count {count} >= 0")
    positions = np.arange(start, start + count, dtype=np.int64)
    if not shuffle:
        return positions % size
    epochs = positions // size
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(seed, size, int(epoch))[positions[here] % size]
    return indices


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    # Raw output of a bit generator is the same in every numpy version; that of
    # Generator.permutation is not.
    key = np.array([seed % 2**64, epoch], np.uint64)
    permutation = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
    permutation.flags.writeable = False
    return permutation


class HostCache:
    """A source that keeps each decoded pair in memory from its first use on.

    Safe to share between threads and feeds: two that meet at a new pair decode the same values.
    """

    def __init__(self, source: PairSource) -> None:
        """Wraps `source`; nothing is read yet."""
        self.names, self.fingerprint, self.size = source.names, source.fingerprint, source.size
        self._source = source
        self._pairs: list[Pair | None] = [None] * len(source)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Pair:
        pair = self._pairs[i]
        if pair is None:
            pair = self._pairs[i] = Pair(*map(np.ascontiguousarray, self._source[i]))
        return pair


class Feed:
    """Batches for the training step, built ahead in the background.

    Iterating gives `(first_step, count, put(batch))` for each entry of the plan; the arrays of
    `batch` are [steps_per_dispatch, local_batch, h, w, c] uint8, fresh each time, zero from
    `count` on. An exception raised in the background (by the source, the plan or `put`) is raised
    here. Close it, or use it as a context manager: no thread is left then.

    Attributes:
      waited: seconds that the consumer has been blocked so far.
    """

    def __init__(
        self,
        source: PairSource,
        *,
        batch_size: int,
        local: slice,
        seed: int,
        shuffle: bool,
        threads: int,
        cache: str,
        plan: Iterable[tuple[int, int]],
        steps_per_dispatch: int,
        put: Callable[[Batch], Any],
        prefetch: int = 2,
    ) -> None:
        """Starts building at once.

        Args:
          source: the examples.
          batch_size: images of a step, over all processes.
          local: which of these, [0, batch_size), are this process's.
          seed: of the order.
          shuffle: whether to permute each epoch.
          threads: that decode.
          cache: 'none', or 'host' to keep decoded pairs in memory.
          plan: (first_step, count) for each dispatch, count <= steps_per_dispatch; steps are
            counted from 0; may be endless, and is read only as far as needed.
          steps_per_dispatch: length of the leading axis.
          put: takes a batch to the device; called in the background, in order.
          prefetch: dispatches kept ready.

        Raises:
          ValueError: for an argument out of range.
        """
        slots = range(batch_size)[local]
        if cache not in ("none", "host"):
            raise ValueError(f"cache: '{cache}' is not allowed; a feed takes 'none' or 'host'")
        if not slots or len(source) < 1:
            raise ValueError(f"nothing to feed: {len(source)} pairs, slots {local} of {batch_size}")
        if min(threads, prefetch, steps_per_dispatch) < 1:
            raise ValueError("threads, prefetch and steps_per_dispatch must be at least 1")
        keep = cache == "host" and not isinstance(source, HostCache)
        self._source = HostCache(source) if keep else source
        self._batch_size, self._slots = batch_size, slots
        self._seed, self._shuffle = seed, shuffle
        self._length, self._put, self._prefetch = steps_per_dispatch, put, prefetch
        self._threads = threads
        self._shapes: list[tuple[int, ...]] = []
        self.waited = 0.0
        self._ready: deque[tuple[int, int, Any]] = deque()
        self._change = threading.Condition()
        self._stopped = self._finished = False
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._thread = threading.Thread(
            target=self._run, args=(iter(plan),), name="feed", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> tuple[int, int, Any]:
        with self._change:
            if not self._ready and not self._finished and not self._stopped:
                begin = time.monotonic()
                try:
                    while not self._ready and not self._finished and not self._stopped:
                        self._change.wait()
                finally:
                    self.waited += time.monotonic() - begin
            if self._stopped:
                raise RuntimeError("the feed is closed")
            if self._ready:
                item = self._ready.popleft()
                self._change.notify_all()
                return item
        if isinstance(self._error, StopIteration):
            raise RuntimeError("the source or put raised StopIteration") from self._error
        raise self._error or StopIteration

    def close(self) -> None:
        """Stops the background work, waits for its threads to end, drops what was ready."""
        with self._change:
            self._stopped = True
            self._ready.clear()
            self._change.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._thread.join()

    def _run(self, plan: Iterator[tuple[int, int]]) -> None:
        """The background thread: keeps one dispatch decoding while the one before is handed on."""
        begun: deque[tuple[int, int, Batch, list[Future]]] = deque()
        try:
            while self._room(len(begun)):
                entry = next(plan, None)
                if entry is not None:
                    begun.append(self._begin(*entry))
                if begun and (entry is None or len(begun) > 1):
                    self._hand_on(*begun.popleft())
                elif entry is None:
                    break
        except BaseException as error:  # raised again in the consumer, unless it has closed us
            self._error = error
        finally:
            del begun
            with self._change:
                self._finished = True
                self._change.notify_all()

    def _room(self, begun: int) -> bool:
        """Waits until another dispatch may be built; false when told to stop."""
        with self._change:
            while len(self._ready) + begun > self._prefetch and not self._stopped:
                self._change.wait()
            return not self._stopped

    def _begin(self, first: int, count: int) -> tuple[int, int, Batch, list[Future]]:
        """Hands the decoding of one dispatch to the pool."""
        if first < 0 or not 0 < count <= self._length:
            raise ValueError(
                f"plan: ({first}, {count}) is not allowed; the step must be >= 0 and the count in "
                f"1 .. {self._length} (steps_per_dispatch)"
            )
        if not self._shapes:  # not in __init__: an example that cannot be read is raised later
            self._shapes = [image.shape for image in self._source[0]]
        lead = (self._length, len(self._slots))
        batch = Batch(*(np.empty((*lead, *shape), np.uint8) for shape in self._shapes))
        size = len(self._source)
        everyone = order(
            self._seed, size, first * self._batch_size, count * self._batch_size, self._shuffle
        )
        indices = everyone.reshape(count, self._batch_size)[:, list(self._slots)].reshape(-1)
        flat = [part.reshape(-1, *part.shape[2:]) for part in batch]
        for part in flat:
            part[len(indices) :] = 0
        chunks = np.array_split(np.arange(len(indices)), self._threads * _TASKS_PER_THREAD)
        futures = [
            self._pool.submit(_fill, self._source, indices, chunk, flat)
            for chunk in chunks
            if len(chunk)
        ]
        return first, count, batch, futures

    def _hand_on(self, first: int, count: int, batch: Batch, futures: list[Future]) -> None:
        for future in futures:
            future.result()
        item = (first, count, self._put(batch))
        with self._change:
            if not self._stopped:
                self._ready.append(item)
            self._change.notify_all()


def _fill(
    source: PairSource, indices: np.ndarray, places: np.ndarray, into: Sequence[np.ndarray]
) -> None:
    for place in places:
        pair = source[int(indices[place])]
        for array, image in zip(into, pair, strict=True):
            array[place] = image


def eval_batches(
    source: PairSource, batch_size: int, threads: int
) -> Iterator[tuple[list[int], Batch]]:
    """All pairs in order, as batches [batch_size, h, w, c] uint8, one batch decoded ahead.

    Yields:
      The indices of the real examples, and the batch; the last is filled up with its last example.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="eval")
    begun: deque[tuple[list[int], list[Future[Pair]]]] = deque()
    try:
        for start in range(0, len(source), batch_size):
            indices = list(range(start, min(start + batch_size, len(source))))
            begun.append((indices, [pool.submit(source.__getitem__, i) for i in indices]))
            if len(begun) > 1:
                yield _collect(*begun.popleft(), batch_size)
        while begun:
            yield _collect(*begun.popleft(), batch_size)
    finally:  # also when the consumer walks away
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    indices: list[int], futures: list[Future[Pair]], batch_size: int
) -> tuple[list[int], Batch]:
    pairs = [future.result() for future in futures]
    pairs += [pairs[-1]] * (batch_size - len(pairs))
    return indices, Batch(*(np.stack(images) for images in zip(*pairs, strict=True)))
