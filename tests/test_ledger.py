"""Where the time of a run goes."""

from __future__ import annotations

import pytest

from p2p_jax import ledger
from p2p_jax.ledger import KINDS, Ledger, reached


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until told."""
    now = [100.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    return now


def test_each_second_counts_once(clock):
    book = Ledger(98.0)
    clock[0] += 3
    with book.on("compile"):
        clock[0] += 7
    book.begin_steps()
    clock[0] += 20
    with book.on("evaluation"):
        clock[0] += 4
        with book.on("saves"):
            clock[0] += 1
        clock[0] += 2
    book.move(5, "data_wait")
    wanted = dict.fromkeys(KINDS, 0.0)
    wanted |= {"start": 5, "compile": 7, "steps": 15, "evaluation": 6, "saves": 1, "data_wait": 5}
    assert book.saved() == wanted and sum(wanted.values()) == clock[0] - 98


def test_what_fails_is_counted_too(clock):
    book = Ledger(100.0)
    with pytest.raises(ValueError), book.on("saves"):
        clock[0] += 2
        raise ValueError
    clock[0] += 1
    assert book.saved()["saves"] == 2 and book.saved()["start"] == 1


def test_a_run_that_was_killed_has_lost_what_it_did_since_its_checkpoint(clock):
    before = Ledger(100.0)
    before.begin_steps()
    clock[0] += 10
    saved = before.saved()
    clock[0] += 6
    rows = [{"step": 5} | before.scalars(), {"step": 5, "split": "val"}]
    assert reached(rows) == 16 and reached([{"step": 1}]) == 0
    book = Ledger(clock[0])
    book.go_on(saved, reached(rows))
    assert book.saved()["lost"] == 6 and book.saved()["steps"] == 10
    book = Ledger(clock[0])
    book.go_on(saved, 9.0)  # the last line was written before the checkpoint
    assert book.saved()["lost"] == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.84, "0.8 s"), (42.2, "42 s"), (185, "3:05"), (3723, "1:02:03")]
)
def test_in_words(clock, seconds, words):
    book = Ledger(100.0)
    clock[0] += seconds
    assert book.told() == f"{words}: start {words}"
