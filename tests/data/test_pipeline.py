"""The order of examples, the feed and the evaluation batches."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from p2p_jax.data.frames import EvalFrames, Fit, Frames
from p2p_jax.data.order import IndexFeed, order
from p2p_jax.data.pairs import DataError, Form, Pair
from p2p_jax.data.pipeline import Feed, HostCache, eval_batches
from p2p_jax.data.substitute import Substituting

EXACT = Fit("none", (4, 6), (4, 6))


class Toy:
    """Pairs whose pixels tell their index; counts and slows reads, or fails at one index."""

    def __init__(self, size: int, *, bad: int = -1, delay: float = 0.0) -> None:
        self.names, self.fingerprint = [str(i) for i in range(size)], "toy"
        self.sizes, self.forms = np.full((size, 2), (4, 6), np.int32), (Form(3), Form(3))
        self.bad, self.delay, self.reads = bad, delay, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Pair:
        with self._lock:
            self.reads += 1
        time.sleep(self.delay)
        if i == self.bad:
            raise ValueError(f"train[{i}] is broken")
        return Pair(np.full((4, 6, 3), i, np.uint8), np.full((4, 6, 3), 255 - i, np.uint8))


def feed(source, plan, **changes) -> Feed:
    options = dict(
        batch_size=4, local=slice(0, 4), seed=3, shuffle=True, threads=2, cache="none",
        steps_per_dispatch=3, put=lambda batch: batch,
    )  # fmt: skip
    frames = source if isinstance(source, HostCache) else Frames(source, EXACT)
    return Feed(frames, plan=plan, **(options | changes))


def background() -> set[threading.Thread]:
    return set(threading.enumerate())


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_each_epoch_is_a_permutation_of_its_own(size):
    epochs = order(5, size, 0, 6 * size, True).reshape(6, size)
    assert (np.sort(epochs) == np.arange(size)).all()
    if size == 64:
        assert len({tuple(epoch) for epoch in epochs}) == 6


def test_order_can_be_entered_anywhere():
    whole = order(0, 10, 0, 100, True)
    for start, count in [(0, 0), (3, 4), (7, 30), (95, 5), (20, 10)]:
        part = order(0, 10, start, count, True)
        assert part.dtype == np.int64
        assert (part == whole[start : start + count]).all()


def test_seeds_differ_and_negative_and_large_seeds_work():
    orders = [tuple(order(seed, 50, 0, 50, True)) for seed in (0, 1, -1, 2**63, 2**64 - 2)]
    assert len(set(orders)) == len(orders)


def test_order_is_the_same_on_every_machine():
    assert order(0, 10, 0, 20, True).tolist() == [
        0, 2, 9, 1, 8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4, 1, 0, 6, 9,
    ]  # fmt: skip


def test_without_shuffling_the_order_is_that_of_the_source():
    assert order(9, 4, 2, 7, False).tolist() == [2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("size,start,count", [(0, 0, 1), (3, -1, 1), (3, 0, -1)])
def test_order_refuses_nonsense(size, start, count):
    with pytest.raises(ValueError, match="size"):
        order(0, size, start, count, True)


# --- feed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("length,plan", [(1, [(0, 1), (1, 1), (2, 1)]), (4, [(5, 4), (9, 1)])])
@pytest.mark.parametrize("local", [slice(0, 5), slice(2, 4), slice(1, 5, 2)])
def test_batches_are_those_of_a_plain_loop(cache, threads, length, plan, local):
    source = Toy(7)
    with feed(
        source, plan, batch_size=5, local=local, threads=threads, cache=cache,
        steps_per_dispatch=length,
    ) as fed:  # fmt: skip
        got = list(fed)
    assert [(first, count) for first, count, _ in got] == plan
    slots = range(5)[local]
    for first, count, batch in got:
        assert batch.source.shape == (length, len(slots), 4, 6, 3)
        assert batch.source.dtype == batch.target.dtype == np.uint8
        for step in range(length):
            if step >= count:
                assert not batch.source[step].any() and not batch.target[step].any()
                continue
            wanted = order(3, 7, (first + step) * 5, 5, True)[local]
            assert (batch.source[step, :, 0, 0, 0] == wanted).all()
            assert (batch.source[step] == wanted[:, None, None, None]).all()
            assert (batch.target[step] == 255 - wanted[:, None, None, None]).all()


def test_processes_together_make_the_global_batch():
    parts = []
    for host in range(2):
        with feed(Toy(9), [(3, 2)], local=slice(2 * host, 2 * host + 2)) as fed:
            parts.append(next(fed)[2].source)
    with feed(Toy(9), [(3, 2)]) as fed:
        assert (np.concatenate(parts, axis=1) == next(fed)[2].source).all()


def test_arrays_are_fresh_each_time():
    with feed(Toy(7), [(0, 3), (3, 3), (6, 3)]) as fed:
        kept = [batch for _, _, batch in fed]
    assert not np.shares_memory(kept[0].source, kept[1].source)
    assert (kept[0].source[0, :, 0, 0, 0] == order(3, 7, 0, 4, True)).all()


def test_host_cache_reads_each_pair_once():
    source = Toy(6)
    with feed(source, [(3 * i, 3) for i in range(6)], cache="host", threads=1) as fed:
        list(fed)
    assert source.reads == 6
    shared = HostCache(Frames(source, EXACT))
    for _ in range(2):
        with feed(shared, [(0, 3)], cache="host", threads=1) as fed:
            list(fed)
    assert source.reads == 12
    assert len(shared) == 6 and shared.names == source.names and shared.shape == (4, 6)


def test_an_endless_plan_is_read_only_as_far_as_needed():
    taken = []

    def plan():
        for step in itertools.count():
            taken.append(step)
            yield step, 1

    with feed(Toy(5), plan(), prefetch=2, steps_per_dispatch=1) as fed:
        for _ in range(3):
            next(fed)
        time.sleep(0.1)
    assert 5 <= len(taken) <= 8  # 3 taken, 2 ready, and what is being built


@pytest.mark.parametrize("take", [0, 1, 3])
def test_closing_early_leaves_no_thread(take):
    before = background()
    fed = feed(Toy(50, delay=0.01), ((i, 1) for i in itertools.count()), batch_size=40,
               local=slice(0, 40))  # fmt: skip
    for _ in range(take):
        next(fed)
    begin = time.monotonic()
    fed.close()
    assert time.monotonic() - begin < 2
    assert background() == before
    fed.close()  # again is fine
    with pytest.raises(RuntimeError, match="closed"):
        next(fed)


def test_finishing_leaves_no_thread():
    before = background()
    with feed(Toy(5), [(0, 1)]) as fed:
        assert len(list(fed)) == 1
        assert list(fed) == []
    assert background() == before


@pytest.mark.parametrize("cache", ["none", "host"])
def test_what_the_source_raises_reaches_the_consumer_after_the_good_batches(cache):
    bad = int(order(3, 12, 4, 1, True)[0])  # first needed in step 1
    before = background()
    with feed(Toy(12, bad=bad), ((i, 1) for i in itertools.count()), cache=cache) as fed:
        assert next(fed)[0] == 0
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"train\[{bad}\] is broken"):
                next(fed)
    assert background() == before


def test_an_unreadable_first_example_is_raised_by_the_iterator():
    with feed(Toy(3, bad=0), [(0, 1)]) as fed, pytest.raises(ValueError, match="broken"):
        next(fed)


def test_what_put_and_plan_raise_reaches_the_consumer():
    def put(batch):
        raise OSError("no device")

    def plan():
        yield 0, 1
        raise KeyError("plan")

    with feed(Toy(5), [(0, 1)], put=put) as fed, pytest.raises(OSError, match="no device"):
        next(fed)
    with feed(Toy(5), plan()) as fed, pytest.raises(KeyError, match="plan"):
        list(fed)


@pytest.mark.parametrize("entry", [(0, 4), (0, 0), (-1, 1)])
def test_an_impossible_plan_is_refused(entry):
    with feed(Toy(5), [entry]) as fed, pytest.raises(ValueError, match="steps_per_dispatch"):
        next(fed)


@pytest.mark.parametrize(
    "changes", [{"cache": "disk"}, {"threads": 0}, {"local": slice(4, 9)}, {"prefetch": 0}]
)
def test_a_feed_refuses_nonsense_and_starts_no_thread(changes):
    before = background()
    with pytest.raises(ValueError):
        feed(Toy(5), [(0, 1)], **changes)
    assert background() == before


def test_put_gets_the_batches_in_order_and_in_the_background():
    seen = []

    def put(batch):
        seen.append(threading.current_thread())
        return len(seen)

    with feed(Toy(5), [(i, 1) for i in range(6)], put=put) as fed:
        assert [item[2] for item in fed] == [1, 2, 3, 4, 5, 6]
    assert threading.current_thread() not in seen


def test_waited_counts_the_time_the_consumer_was_blocked():
    with feed(Toy(5, delay=0.03), [(0, 3)], threads=1) as fed:
        assert 0 <= fed.waited < 1
        next(fed)
        assert 0.1 < fed.waited < 5
    with feed(Toy(5), [(0, 1), (1, 1)]) as fed:
        time.sleep(0.2)
        next(fed)
        assert fed.waited < 0.1


# --- other types and sizes -----------------------------------------------------------------------


class Varied:
    """Pairs of several sizes: nothing as sources, float32 targets that tell their index."""

    sizes = np.array([(4, 6), (5, 5), (7, 4), (4, 4)], np.int32)
    forms = Form(0), Form(2, "float32", ".npy")
    names, fingerprint = tuple("abcd"), "varied"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Pair:
        h, w = self.sizes[i]
        return Pair(np.empty((h, w, 0), np.uint8), np.full((h, w, 2), i + 0.5, np.float32))


@pytest.mark.parametrize("cache", ["none", "host"])
def test_frames_keep_their_type_and_bring_their_size(cache):
    frames = Frames(Varied(), Fit("crop", (9, 9), (4, 4)))
    with Feed(
        frames, batch_size=3, local=slice(1, 3), seed=0, shuffle=True, threads=2, cache=cache,
        plan=[(0, 2), (2, 1)], steps_per_dispatch=2, put=lambda batch: batch,
    ) as fed:  # fmt: skip
        for first, count, batch in fed:
            assert batch.source.shape == (2, 2, 7, 6, 0) and batch.source.dtype == np.uint8
            assert batch.target.shape == (2, 2, 7, 6, 2) and batch.target.dtype == np.float32
            assert batch.sizes.shape == (2, 2, 2) and batch.sizes.dtype == np.int32
            wanted = order(0, 4, 3 * first, 3 * count, True).reshape(count, 3)[:, 1:]
            assert (batch.sizes[:count] == Varied.sizes[wanted]).all()
            for step, slot in np.ndindex(count, 2):
                h, w = Varied.sizes[wanted[step, slot]]
                image = batch.target[step, slot]
                assert (image[:h, :w] == wanted[step, slot] + 0.5).all()
                assert image.sum() == 2 * h * w * (wanted[step, slot] + 0.5)
            assert not batch.target[count:].any() and not batch.sizes[count:].any()


# --- substitutes ---------------------------------------------------------------------------------


class Flawed(Toy):
    """Some pairs cannot be read, as `DataError` tells."""

    def __init__(self, size: int, bad: set[int]) -> None:
        super().__init__(size)
        self.flaws = bad

    def __getitem__(self, i: int) -> Pair:
        if i in self.flaws:
            raise DataError([f"train[{i}] {i}: truncated"])
        return super().__getitem__(i)


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("threads", [1, 3])
def test_substitutes_are_counted_where_they_are_given(cache, threads):
    bad = {0, 5, 6}
    plan = [(0, 3), (3, 2), (5, 3), (8, 3)]
    alone = Substituting(Flawed(9, bad), lambda text: None)
    stand_in = [int(alone[i].source[0, 0, 0]) for i in range(9)]
    source = Substituting(Flawed(9, bad), lambda text: None)
    with feed(source, plan, threads=threads, cache=cache) as fed:
        assert fed.replaced == 0
        given = 0
        for first, count, batch in fed:
            wanted = order(3, 9, first * 4, count * 4, True)
            time.sleep(0.01)  # what is built ahead does not count yet
            given += sum(int(i) in bad for i in wanted)
            assert fed.replaced == given
            got = batch.source[:count, :, 0, 0, 0].reshape(-1)
            assert got.tolist() == [stand_in[i] for i in wanted]
    assert given > 0 and source.bad == bad


# --- indices alone -------------------------------------------------------------------------------


def test_indices_are_those_of_the_examples():
    plan = [(0, 3), (3, 1), (4, 2)]
    with (
        IndexFeed(
            7, batch_size=5, local=slice(1, 4), seed=3, shuffle=True, plan=plan,
            steps_per_dispatch=3, put=lambda indices: indices, bad={2, 3},
        ) as indices,
        feed(Toy(7), plan, batch_size=5, local=slice(1, 4)) as examples,
    ):  # fmt: skip
        replaced = 0
        for few, (first, count, batch) in zip(indices, examples, strict=True):
            assert few[:2] == (first, count)
            assert few[2].dtype == np.int32 and few[2].shape == (3, 3)
            assert (few[2] == batch.source[..., 0, 0, 0]).all()
            replaced += np.isin(few[2][:count], (2, 3)).sum()
            assert indices.replaced == replaced
        assert 0 <= indices.waited < 1 and replaced > 0


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size,batch_size", [(7, 3), (6, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("threads", [1, 4])
def test_eval_batches_cover_the_split_in_order(size, batch_size, threads):
    real = []
    for everyone, indices, batch in eval_batches(EvalFrames(Toy(size), EXACT), batch_size, threads):
        assert batch.source.shape == (batch_size, 4, 6, 3) and everyone == indices
        filled = indices + [indices[-1]] * (batch_size - len(indices))
        assert batch.source[:, 0, 0, 0].tolist() == filled
        assert (batch.target == 255 - batch.source).all()
        real += indices
    assert real == list(range(size))


@pytest.mark.parametrize("slots", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]]])
def test_eval_batches_of_several_processes_are_parts_of_one(slots):
    """Of 5 examples in batches of 4 the second has none for most of them."""
    whole = list(eval_batches(EvalFrames(Toy(5), EXACT), 4, 2))
    for local in slots:
        source = Toy(5)
        parts = list(eval_batches(EvalFrames(source, EXACT), 4, 2, local=local))
        for (everyone, indices, batch), (all_of_it, _, reference) in zip(parts, whole, strict=True):
            assert everyone == all_of_it
            assert indices == [all_of_it[slot] for slot in local if slot < len(all_of_it)]
            assert (batch.source == reference.source[local]).all()
        assert source.reads == len(local) + 1


def test_eval_batches_clean_up_when_abandoned_and_when_failing():
    before = background()
    batches = eval_batches(EvalFrames(Toy(200, delay=0.01), EXACT), 20, 2)
    next(batches)
    batches.close()
    assert background() == before
    with pytest.raises(ValueError, match="broken"):
        list(eval_batches(EvalFrames(Toy(9, bad=5), EXACT), 2, 2))
    assert background() == before


def test_eval_batches_decode_only_one_batch_ahead():
    source = Toy(100)
    batches = eval_batches(EvalFrames(source, EXACT), 10, 2)
    next(batches)
    time.sleep(0.05)
    assert source.reads == 20
    batches.close()


def test_eval_batches_have_one_canvas_each():
    frames = EvalFrames(Varied(), Fit("crop", (9, 9), (4, 4), step=4))
    assert [frames.canvas(i) for i in range(4)] == [(4, 8), (8, 8), (8, 4), (4, 4)]
    frames = EvalFrames(Varied(), Fit("crop", (9, 9), (4, 4), step=8))
    got = [
        (i, b.target.shape, b.target[:, 0, 0, 0].tolist()) for _, i, b in eval_batches(frames, 3, 2)
    ]
    assert got == [
        ([0, 1, 2], (3, 8, 8, 2), [0.5, 1.5, 2.5]), ([3], (3, 8, 8, 2), [3.5, 3.5, 3.5]),
    ]  # fmt: skip
    frames = EvalFrames(Varied(), Fit("crop", (9, 9), (4, 4), step=5))
    assert [frames.canvas(i) for i in range(4)] == [(5, 10), (5, 5), (10, 5), (5, 5)]
    got = [(i, b.target.shape[:3]) for _, i, b in eval_batches(frames, 2, 2)]
    assert got == [([0], (2, 5, 10)), ([1, 3], (2, 5, 5)), ([2], (2, 10, 5))]
    got = [(i, b.target.shape[:3]) for _, i, b in eval_batches(frames, 2, 2, indices=[3, 0, 1])]
    assert got == [([3, 1], (2, 5, 5)), ([0], (2, 5, 10))]
