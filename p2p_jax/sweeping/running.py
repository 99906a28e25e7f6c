"""Trials while they run: their process is watched, started again, pruned or stopped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import Trial, TrialState

from p2p_jax.console import Console
from p2p_jax.process import FAILED, STOPPED
from p2p_jax.sweeping import child as children
from p2p_jax.sweeping.child import Child, Lines
from p2p_jax.sweeping.places import Place
from p2p_jax.sweeping.study import PINNED, PLACE, STEPS, Trials

_LOOK = 0.5  # seconds between two looks at a run's lines
_OWNED = 5.0  # seconds between two looks at whether the trial is still this controller's
_AGAIN = 2.0  # seconds until a process that another one was in the way of is tried again


class Plan(NamedTuple):
    """What all trials of a controller share.

    Attributes:
      folder: the sweep's.
      figure: that is searched for the best of, as in `eval.metrics`.
      mode: `min` or `max`.
      env: of their processes, before the place's own.
      command: what follows `python` to train with some values in a workdir.
      together: likewise for several, by their workdirs.
      prunes: whether trials may be ended early.
      restarts: of a process that died, without a newer checkpoint between.
      grace: seconds to save and end.
    """

    folder: Path
    figure: str
    mode: str
    env: Mapping[str, str]
    command: Callable[[Path, Mapping[str, Any]], list[str]]
    prunes: bool
    together: Callable[[Mapping[Path, Mapping[str, Any]]], list[str]] = lambda members: []
    restarts: int = 3
    grace: float = 120.0

    def workdir(self, number: int) -> Path:
        """Of a trial."""
        return self.folder / "trials" / str(number)

    def best(self, values: Sequence[float | None]) -> float | None:
        """The best of some values; None where none is finite."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        return (min if self.mode == "min" else max)(finite, default=None)


class _Member:
    """One of the trials that a process trains."""

    def __init__(self, plan: Plan, trials: Trials, trial: Trial, place: Place) -> None:
        self._plan, self._trials, self.trial = plan, trials, trial
        self.number, self.workdir = trial.number, plan.workdir(trial.number)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(self.workdir, plan.figure)
        self._reported = {*trials.study._storage.get_trial(trial._trial_id).intermediate_values}
        trial.set_user_attr(PLACE, place.name)
        trial.set_user_attr(PINNED, place.command())
        # Whoever had it may have died between a report and its answer.
        self.is_pruned = bool(self._reported and plan.prunes and trial.should_prune())

    @property
    def values(self) -> dict[str, Any]:
        """What it sets keys of the config to."""
        return self._trials.values(self.trial)

    def is_mine(self) -> bool:
        """Whether this controller still runs it."""
        return self._trials.is_mine(self.trial)

    def report(self, prune: bool) -> None:
        """Hands new evaluations to the study, and hears whether to go on, if asked."""
        for step, _, value in self._lines.read():
            if step not in self._reported and value is not None and math.isfinite(value):
                self._reported.add(step)
                self.trial.report(value, step)
                if self._plan.prunes and prune:
                    self.is_pruned = self.is_pruned or self.trial.should_prune()

    def complete(self) -> None:
        """Records that it was trained to its end."""
        value = self._plan.best([value for _, _, value in self._lines.read()])
        if value is None:
            self.tell(TrialState.FAIL, f"eval/{self._plan.figure} was never finite")
        else:
            self.tell(TrialState.COMPLETE, "", value)

    def tell(self, state: TrialState, reason: str, value: float | None = None) -> None:
        """Records how it ended."""
        rows = self._lines.read()
        if rows:
            self.trial.set_user_attr(STEPS, rows[-1][0])
        self._trials.tell(self.trial, state, value, reason)

    def release(self) -> None:
        """Lets go of it; it is to go on later."""
        self._trials.release(self.trial)


class Running:
    """Trials of this controller at a place: one, or several that one process trains together."""

    def __init__(
        self, plan: Plan, trials: Trials, given: Sequence[Trial], place: Place, console: Console
    ) -> None:
        """Takes them over; the process begins with the first `turn`."""
        self._plan, self._console, self.place = plan, console, place
        self._members = [_Member(plan, trials, trial, place) for trial in given]
        self.numbers = [member.number for member in self._members]
        self._child: Child | None = None
        self._left, self._newest = plan.restarts, self._progress()
        self._stopping = False
        self._begin_at = self._look_at = self._owned_at = 0.0
        self._waits_for = ""

    @property
    def name(self) -> str:
        """What to call them."""
        numbers = ", ".join(map(str, self.numbers))
        return f"trial{'s' * (len(self.numbers) > 1)} {numbers}"

    @property
    def _is_pruned(self) -> bool:
        """Whether none is to go on; while one is, the others cost nothing."""
        return all(member.is_pruned for member in self._members)

    def _progress(self) -> int:
        """Rises with each checkpoint of any."""
        return sum(children.newest_checkpoint(member.workdir) for member in self._members)

    def turn(self, stopping: bool) -> bool:
        """Looks at them for a moment; True once they have ended, and that is recorded."""
        self._stopping = self._stopping or stopping
        now = time.monotonic()
        if now >= self._owned_at:
            self._owned_at = now + _OWNED
            if not all(member.is_mine() for member in self._members):
                return self._lost()
        if self._child is None:
            return self._idle(now)
        if now >= self._look_at and self._child.ended() is None:
            self._look_at = now + _LOOK
            self._report()
        if self._is_pruned or self._stopping:
            self._child.stop(self._plan.grace)
        code = self._child.ended()
        return code is not None and self._ended(code)

    def abandon(self) -> None:
        """Ends the process at once."""
        if self._child:
            self._child.kill()

    def _idle(self, now: float) -> bool:
        """Between two processes."""
        if self._is_pruned:
            return self._end(lambda member: member.tell(TrialState.PRUNED, ""))
        if self._stopping:
            return self._end(_Member.release)
        if now < self._begin_at:
            return False
        for member in self._members:
            if holder := children.orphan(member.workdir):
                if not self._waits_for:
                    self._console.note(f"{self.name}: waits until {holder} has saved and ended")
                self._waits_for, self._begin_at = holder, now + _AGAIN
                return False
        log = self._plan.folder / "trials" / f"{'-'.join(map(str, self.numbers))}.log"
        words = [sys.executable, *self._words()]
        self._child = Child(words, self.place, self._plan.env, log)
        return False

    def _words(self) -> list[str]:
        if len(self._members) == 1:
            return self._plan.command(self._members[0].workdir, self._members[0].values)
        return self._plan.together({member.workdir: member.values for member in self._members})

    def _report(self) -> None:
        for member in self._members:
            member.report(not self._stopping)

    def _ended(self, code: int) -> bool:
        """What becomes of trials whose process has ended."""
        assert self._child
        ended, self._child = self._child, None
        if code == 0:
            self._report()
            return self._end(_Member.complete)  # by itself, even where it was just told to end
        if code == FAILED and len(self._members) > 1:
            self._report()
            return self._end(lambda member: _end_of_several(member, ended))
        if self._is_pruned:
            return self._end(lambda member: member.tell(TrialState.PRUNED, ""))
        if ended.was_busy():
            self._begin_at = time.monotonic() + _AGAIN
            return False
        if code > 0 and code != STOPPED:
            reason = ended.reason()
            return self._end(lambda member: member.tell(TrialState.FAIL, reason))
        if self._stopping:
            return self._end(_Member.release)
        return self._again(code, ended.reason())

    def _again(self, code: int, reason: str) -> bool:
        """Starts a process anew where one was stopped or killed, within limits."""
        newest = self._progress()
        if newest > self._newest:
            self._left = self._plan.restarts
        self._newest = newest
        what = "was stopped" if code == STOPPED else f"was {reason}"
        if self._left == 0:
            more = f"{self._plan.restarts + 1} times without a newer checkpoint between"
            return self._end(lambda member: member.tell(TrialState.FAIL, f"{what} {more}"))
        self._left -= 1
        steps = [max(children.newest_checkpoint(m.workdir), 0) for m in self._members]
        at = " and ".join(map(str, sorted({*steps})))
        self._console.note(f"{self.name}: {what}; goes on from step {at}")
        return False

    def _end(self, how: Callable[[_Member], None]) -> bool:
        """Ends those that are still this controller's."""
        mine = [member for member in self._members if member.is_mine()]
        for member in mine:
            how(member)
        return True if len(mine) == len(self._members) else self._lost()

    def _lost(self) -> bool:
        self.abandon()
        self._console.warn(
            f"{self.name}: was taken over by another controller: this one had not been heard of "
            "for long"
        )
        return True


def _end_of_several(member: _Member, ended: Child) -> None:
    """Where some have failed, the others are done."""
    if reason := ended.reason_of(member.workdir):
        member.tell(TrialState.FAIL, reason)
    else:
        member.complete()
