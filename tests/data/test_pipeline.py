"""The order of examples, the feed and the evaluation batches."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from p2p_jax.data import Feed, HostCache, Pair, eval_batches, order


class Toy:
    """Pairs whose pixels tell their index; counts and slows reads, or fails at one index."""

    def __init__(self, size: int, *, bad: int = -1, delay: float = 0.0) -> None:
        self.names, self.fingerprint, self.size = [str(i) for i in range(size)], "toy", (4, 6)
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
    return Feed(source, plan=plan, **(options | changes))


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
    shared = HostCache(source)
    for _ in range(2):
        with feed(shared, [(0, 3)], cache="host", threads=1) as fed:
            list(fed)
    assert source.reads == 12
    assert len(shared) == 6 and shared.names == source.names and shared.size == source.size


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
        assert fed.waited == 0
        next(fed)
        assert 0.1 < fed.waited < 5
    with feed(Toy(5), [(0, 1), (1, 1)]) as fed:
        time.sleep(0.2)
        next(fed)
        assert fed.waited < 0.1


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size,batch_size", [(7, 3), (6, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("threads", [1, 4])
def test_eval_batches_cover_the_split_in_order(size, batch_size, threads):
    real = []
    for indices, batch in eval_batches(Toy(size), batch_size, threads):
        assert batch.source.shape == (batch_size, 4, 6, 3)
        filled = indices + [indices[-1]] * (batch_size - len(indices))
        assert batch.source[:, 0, 0, 0].tolist() == filled
        assert (batch.target == 255 - batch.source).all()
        real += indices
    assert real == list(range(size))


def test_eval_batches_clean_up_when_abandoned_and_when_failing():
    before = background()
    batches = eval_batches(Toy(200, delay=0.01), 20, 2)
    next(batches)
    batches.close()
    assert background() == before
    with pytest.raises(ValueError, match="broken"):
        list(eval_batches(Toy(9, bad=5), 2, 2))
    assert background() == before


def test_eval_batches_decode_only_one_batch_ahead():
    source = Toy(100)
    batches = eval_batches(source, 10, 2)
    next(batches)
    time.sleep(0.05)
    assert source.reads == 20
    batches.close()
