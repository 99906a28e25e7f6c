"""Where the time of a run goes, over all its starts."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping
from typing import Any

# In the order that they are told in. `lost` is what was done and never saved, so was done again; of
# a process that was killed, up to its last line of metrics: nothing tells how much longer it lived.
KINDS = ("start", "compile", "steps", "data_wait", "evaluation", "saves", "lost")


class Ledger:
    """Seconds by what they were spent on; each second counts once.

    What nothing else is known of goes to `start` until training begins, and then to `steps`. What a
    process does before there is a ledger (Python's start, imports) is not counted, nor is the time
    between two starts.
    """

    def __init__(self, begun: float) -> None:
        """Counts from `begun`, a time of `time.monotonic`."""
        self._spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._mark = begun
        self._kinds = ["start"]

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """What happens inside is of this kind; inside of another, that one waits."""
        self._pass()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._pass()
            self._kinds.pop()

    def begin_steps(self) -> None:
        """From now on, what nothing else is known of are steps."""
        self._pass()
        self._kinds[0] = "steps"

    def move(self, seconds: float, kind: str) -> None:
        """Of the steps so far, so many seconds were something else."""
        self._spent["steps"] -= seconds
        self._spent[kind] += seconds

    def go_on(self, saved: Mapping[str, float], reached: float) -> None:
        """Adds what a run had spent before.

        Args:
          saved: from the checkpoint that it goes on from.
          reached: seconds in all that the run is known to have reached before it ended.
        """
        for kind in KINDS:
            self._spent[kind] += saved.get(kind, 0.0)
        self._spent["lost"] += max(0.0, reached - sum(saved.values()))

    def saved(self) -> dict[str, float]:
        """Seconds by kind so far."""
        self._pass()
        return dict(self._spent)

    def scalars(self) -> dict[str, float]:
        """The same for a line of metrics, to a hundredth."""
        return {f"seconds/{kind}": round(spent, 2) for kind, spent in self.saved().items()}

    def told(self) -> str:
        """The same in words, what took no time left out."""
        spent = self.saved()
        parts = [
            f"{kind.replace('_', ' ')} {_words(seconds)}"
            for kind, seconds in spent.items()
            if round(seconds, 1)
        ]
        return f"{_words(sum(spent.values()))}: {', '.join(parts)}"

    def _pass(self) -> None:
        now = time.monotonic()
        self._spent[self._kinds[-1]] += now - self._mark
        self._mark = now


def reached(rows: list[dict[str, Any]]) -> float:
    """Seconds in all that a run had reached by the last line of its metrics that tells."""
    for row in reversed(rows):
        if all(f"seconds/{kind}" in row for kind in KINDS):
            return sum(float(row[f"seconds/{kind}"]) for kind in KINDS)
    return 0.0


def _words(seconds: float) -> str:
    """As people say it: 0.8 s, 42 s, 3:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if seconds < 3600 else text
