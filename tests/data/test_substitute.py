"""Other examples in the place of unreadable ones."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from p2p_jax.data.pairs import DataError, Form, Pair
from p2p_jax.data.substitute import Substituting


class Broken:
    """Pairs whose pixels tell their index, some of them unreadable."""

    def __init__(self, size, bad, fingerprint="broken"):
        self.names = [f"n{i}" for i in range(size)]
        self.fingerprint, self.forms = fingerprint, (Form(1), Form(1))
        self.sizes = np.full((size, 2), 4, np.int32)
        self.broken, self.reads, self._lock = set(bad), [], threading.Lock()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        with self._lock:
            self.reads.append(i)
        if i in self.broken:
            raise DataError([f"train[{i}] n{i}: truncated"])
        return Pair(*(np.full((4, 4, 1), i, np.uint8),) * 2)


def values(source, order):
    return {i: int(source[i].source[0, 0, 0]) for i in order}


def test_substitutes_depend_on_the_data_alone():
    bad = {3, 4, 11, 19}
    warned = []
    source = Substituting(Broken(20, bad), warned.append)
    got = values(source, range(20))
    assert all(got[i] == i for i in set(range(20)) - bad)
    assert all(got[i] not in bad for i in bad)
    assert source.bad == bad
    assert sorted(warned) == sorted(f"substituted: train[{i}] n{i}: truncated" for i in bad)
    assert got == values(Substituting(Broken(20, bad), warned.append), reversed(range(20)))
    with ThreadPoolExecutor(4) as pool:
        shared = Substituting(Broken(20, bad), warned.append)
        assert got == dict(zip(range(20), pool.map(lambda i: values(shared, [i])[i], range(20)),
                               strict=True))  # fmt: skip
    others = values(Substituting(Broken(20, bad, "other"), warned.append), range(20))
    assert [others[i] for i in bad] != [got[i] for i in bad]


def test_every_other_example_may_stand_in():
    """Each index has its own, and none is tried twice for one index."""
    source = Substituting(Broken(200, []), lambda text: None)
    firsts = {next(source._others(i)) for i in range(200)}
    assert len(firsts) > 100
    for size in (2, 3, 7, 10, 200):
        small = Substituting(Broken(size, []), lambda text: None)
        for i in range(size):
            others = list(small._others(i))
            assert len(set(others)) == len(others) == min(size - 1, 9) and i not in others


def test_what_failed_once_is_not_read_again_and_warned_of_once():
    warned = []
    inner = Broken(5, {2})
    source = Substituting(inner, warned.append)
    for _ in range(3):
        source[2]
    assert inner.reads.count(2) == 1 and len(warned) == 1
    assert source.bad == {2}


def test_a_callback_may_ask_what_is_bad():
    seen = []
    source = Substituting(Broken(5, {2}), lambda text: seen.append(source.bad))
    source[2]
    assert seen == [{2}]


def test_ten_failures_in_a_row_are_an_error_that_names_them():
    inner = Broken(30, range(30))
    with pytest.raises(DataError) as error:
        Substituting(inner, lambda text: None)[7]
    head, *named = error.value.problems
    assert head == "no pair to substitute: 10 in a row cannot be read"
    assert len(set(named)) == 10 and named[0] == "train[7] n7: truncated"
    assert len(inner.reads) == 10


@pytest.mark.parametrize("size", [1, 3])
def test_small_sets_may_have_none_that_can_be_read(size):
    with pytest.raises(DataError, match=f"{size} in a row"):
        Substituting(Broken(size, range(size)), lambda text: None)[0]
    if size == 3:
        assert values(Substituting(Broken(3, {0, 1}), lambda text: None), [0, 1]) == {0: 2, 1: 2}


def test_other_errors_are_not_swallowed():
    class Buggy(Broken):
        def __getitem__(self, i):
            raise IndexError(i)

    with pytest.raises(IndexError):
        Substituting(Buggy(3, []), lambda text: None)[0]


def test_broken_pairs_in_a_row_are_stepped_over():
    """Files of one batch break together: what is tried lies scattered, not beside them."""
    source = Substituting(Broken(60, range(20, 32)), lambda text: None)
    assert not set(values(source, range(20, 32)).values()) & set(range(20, 32))
