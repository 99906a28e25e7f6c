"""From frames to batches: a feed that stays ahead of the device, and batches for evaluation."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from p2p_jax.data.buffers import Buffers
from p2p_jax.data.frames import EvalFrames, Frames
from p2p_jax.data.order import count_in, order
from p2p_jax.data.pairs import Batch, Pair

_TASKS_PER_THREAD = 4  # small enough to even out, large enough to cost nothing


class HostCache:
    """Frames that keep each one in memory, decoded, from its first use on.

    Safe to share between threads and feeds: two that meet at a new frame decode the same values.
    """

    def __init__(self, frames: Frames) -> None:
        """Wraps `frames`; nothing is read yet."""
        self.names, self.fingerprint, self.forms = frames.names, frames.fingerprint, frames.forms
        self.shape, self.sizes, self.load_size = frames.shape, frames.sizes, frames.load_size
        self._frames = frames
        self._kept: list[Batch | None] = [None] * len(frames)

    @property
    def bad(self) -> Set[int]:
        """See `Frames.bad`."""
        return self._frames.bad

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Batch:
        frame = self._kept[i]
        if frame is None:
            source, target, size = self._frames[i]
            whole = np.ascontiguousarray(source), np.ascontiguousarray(target)
            frame = self._kept[i] = Batch(*whole, size)
        return frame


class Feed:
    """Batches for the training step, built ahead in the background.

    Iterating gives `(first_step, count, put(batch))` for each entry of the plan; the images of
    `batch` are [steps_per_dispatch, local_batch, h, w, c] in their stored types, its sizes
    [steps_per_dispatch, local_batch, 2] or None; zero from `count` on, and their memory not used
    again before the consumer and the device have let go of it. An
    exception raised in the background (by the source, the plan or `put`) is raised here. Close it,
    or use it as a context manager: no thread is left then.

    Attributes:
      waited: seconds that the consumer has been blocked so far.
      replaced: how many of the examples given so far stand in for one that cannot be read.
    """

    def __init__(
        self,
        frames: Frames | HostCache,
        *,
        batch_size: int,
        local: slice | Sequence[int] | np.ndarray,
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
          frames: the examples.
          batch_size: images of a step, over all processes.
          local: which of these, in [0, batch_size) and rising, are this process's.
          seed: of the order.
          shuffle: whether to permute each epoch.
          threads: that decode.
          cache: 'none', or 'host' to keep decoded frames in memory.
          plan: (first_step, count) for each dispatch, count <= steps_per_dispatch; steps are
            counted from 0; may be endless, and is read only as far as needed.
          steps_per_dispatch: length of the leading axis.
          put: takes a batch to the device; called in the background, in order.
          prefetch: dispatches kept ready.

        Raises:
          ValueError: for an argument out of range.
        """
        slots = np.arange(batch_size)[local]
        if cache not in ("none", "host"):
            raise ValueError(f"cache: '{cache}' is not allowed; a feed takes 'none' or 'host'")
        if not len(slots) or len(frames) < 1:
            raise ValueError(f"nothing to feed: {len(frames)} pairs, slots {local} of {batch_size}")
        if min(threads, prefetch, steps_per_dispatch) < 1:
            raise ValueError("threads, prefetch and steps_per_dispatch must be at least 1")
        keep = cache == "host"
        self._frames = HostCache(frames) if keep and isinstance(frames, Frames) else frames
        self._batch_size, self._slots = batch_size, slots
        self._seed, self._shuffle = seed, shuffle
        self._length, self._put, self._prefetch = steps_per_dispatch, put, prefetch
        self._threads = threads
        # Decoding, ready and at the consumer's: more are never under way.
        like, most = empty(frames, 1), prefetch + 3
        rows = steps_per_dispatch * len(slots)
        self._room_for = [
            None if x is None else Buffers((rows, *x.shape[1:]), str(x.dtype), most) for x in like
        ]
        self.waited, self.replaced = 0.0, 0
        self._ready: deque[tuple[tuple[int, int, Any], int]] = deque()
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
                item, replaced = self._ready.popleft()
                self.replaced += replaced
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
        begun: deque[_Begun] = deque()
        try:
            while self._room(len(begun)):
                entry = next(plan, None)
                if entry is not None:
                    begun.append(self._begin(*entry))
                if begun and (entry is None or len(begun) > 1):
                    self._hand_on(begun.popleft())
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

    def _begin(self, first: int, count: int) -> _Begun:
        """Hands the decoding of one dispatch to the pool."""
        if first < 0 or not 0 < count <= self._length:
            raise ValueError(
                f"plan: ({first}, {count}) is not allowed; the step must be >= 0 and the count in "
                f"1 .. {self._length} (steps_per_dispatch)"
            )
        everyone = order(
            self._seed,
            len(self._frames),
            first * self._batch_size,
            count * self._batch_size,
            self._shuffle,
        )
        indices = everyone.reshape(count, self._batch_size)[:, self._slots].reshape(-1)
        room: list[Any] = [part and part.take() for part in self._room_for]
        flat = Batch(*room)
        for part in flat:
            if part is not None:
                part[len(indices) :] = 0
        parts = self._threads * _TASKS_PER_THREAD
        futures = decode(self._pool, self._frames, indices, flat, parts)
        lead = (self._length, len(self._slots))
        source, target = (x.reshape(*lead, *x.shape[1:]) for x in flat[:2])
        sizes = None if flat.sizes is None else flat.sizes.reshape(*lead, 2)
        batch = Batch(source, target, sizes)
        return _Begun((first, count), indices, batch, futures)

    def _hand_on(self, begun: _Begun) -> None:
        for future in begun.futures:
            future.result()
        replaced = count_in(self._frames.bad, begun.indices)
        item = (*begun.entry, self._put(begun.batch))
        with self._change:
            if not self._stopped:
                self._ready.append((item, replaced))
            self._change.notify_all()


class _Begun(NamedTuple):
    """A dispatch that is being decoded."""

    entry: tuple[int, int]
    indices: np.ndarray
    batch: Batch
    futures: list[Future]


def empty(frames: Frames | HostCache, rows: int) -> Batch:
    """Room for so many frames, `[rows, *shape, c]`; what it holds is undefined."""
    source, target = (
        np.empty((rows, *frames.shape, form.channels), form.dtype) for form in frames.forms
    )
    return Batch(source, target, None if frames.sizes is None else np.empty((rows, 2), np.int32))


def decode(
    pool: ThreadPoolExecutor,
    frames: Frames | HostCache,
    indices: np.ndarray,
    into: Batch,
    parts: int,
) -> list[Future]:
    """Begins to write the frames of `indices` to the first rows of `into`, in so many parts."""
    chunks = np.array_split(np.arange(len(indices)), min(parts, len(indices)))
    return [pool.submit(_fill, frames, indices, chunk, into) for chunk in chunks]


def _fill(frames: Frames | HostCache, indices: np.ndarray, places: np.ndarray, into: Batch) -> None:
    for place in places:
        for array, value in zip(into, frames[int(indices[place])], strict=True):
            if array is not None:
                array[place] = value


class EvalBatch(NamedTuple):
    """A process's part of a batch for evaluation.

    Attributes:
      everyone: indices of the real examples of the whole batch.
      indices: of those that are in `batch`, of which they are the first.
      batch: `[slots, h, w, c]`, filled up with the last example of the canvas.
    """

    everyone: list[int]
    indices: list[int]
    batch: Batch


def eval_batches(
    frames: EvalFrames,
    batch_size: int,
    threads: int,
    indices: Sequence[int] | None = None,
    local: slice | Sequence[int] | np.ndarray = slice(None),
) -> Iterator[EvalBatch]:
    """Pairs as batches of one canvas each, one batch decoded ahead.

    Pairs of one canvas come together and in order, and canvases in the order of their first pairs.

    Args:
      frames: the pairs.
      batch_size: of every batch, over all processes.
      threads: that decode.
      indices: of the pairs wanted, by default all.
      local: which of [0, batch_size), rising, are this process's; by default all.
    """
    slots = np.arange(batch_size)[local]
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(frames)) if indices is None else indices:
        groups.setdefault(frames.canvas(i), []).append(i)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="eval")
    begun: deque[tuple[list[int], list[int], list[Future[Pair]]]] = deque()
    try:
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                everyone = group[start : start + batch_size]
                mine = [everyone[slot] for slot in slots if slot < len(everyone)]
                # A batch without any of ours is of examples that do not matter.
                wanted = mine or everyone[-1:]
                futures = [pool.submit(frames.__getitem__, i) for i in wanted]
                begun.append((everyone, mine, futures))
                if len(begun) > 1:
                    yield _collect(*begun.popleft(), len(slots))
        while begun:
            yield _collect(*begun.popleft(), len(slots))
    finally:  # also when the consumer walks away
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    everyone: list[int], mine: list[int], futures: list[Future[Pair]], rows: int
) -> EvalBatch:
    pairs = [future.result() for future in futures]
    pairs += [pairs[-1]] * (rows - len(pairs))
    batch = Batch(*(np.stack(images) for images in zip(*pairs, strict=True)))
    return EvalBatch(everyone, mine, batch)
