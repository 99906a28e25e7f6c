"""One trial while it runs: its process is watched, started again, pruned or stopped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import Trial, TrialState

from p2p_jax.console import Console
from p2p_jax.process import STOPPED
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
    restarts: int = 3
    grace: float = 120.0

    def workdir(self, number: int) -> Path:
        """Of a trial."""
        return self.folder / "trials" / str(number)

    def best(self, values: Sequence[float | None]) -> float | None:
        """The best of some values; None where none is finite."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        return (min if self.mode == "min" else max)(finite, default=None)


class Running:
    """A trial of this controller at a place."""

    def __init__(
        self, plan: Plan, trials: Trials, trial: Trial, place: Place, console: Console
    ) -> None:
        """Takes it over; the process begins with the first `turn`."""
        self._plan, self._trials, self._trial, self._console = plan, trials, trial, console
        self.place, self.number = place, trial.number
        self.workdir = plan.workdir(trial.number)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(self.workdir, plan.figure)
        self._reported = {*trials.study._storage.get_trial(trial._trial_id).intermediate_values}
        self._child: Child | None = None
        self._left, self._newest = plan.restarts, children.newest_checkpoint(self.workdir)
        self._pruned = self._stopping = False
        self._begin_at = self._look_at = self._owned_at = 0.0
        self._waits_for = ""
        trial.set_user_attr(PLACE, place.name)
        trial.set_user_attr(PINNED, place.command())
        # Whoever had it may have died between a report and its answer.
        self._pruned = bool(self._reported and plan.prunes and trial.should_prune())

    def turn(self, stopping: bool) -> bool:
        """Looks at it for a moment; True once it has ended, and that is recorded."""
        self._stopping = self._stopping or stopping
        now = time.monotonic()
        if now >= self._owned_at:
            self._owned_at = now + _OWNED
            if not self._trials.is_mine(self._trial):
                return self._lost()
        if self._child is None:
            return self._idle(now)
        if now >= self._look_at and self._child.ended() is None:
            self._look_at = now + _LOOK
            self._report()
        if self._pruned or self._stopping:
            self._child.stop(self._plan.grace)
        code = self._child.ended()
        return code is not None and self._ended(code)

    def abandon(self) -> None:
        """Ends the process at once."""
        if self._child:
            self._child.kill()

    def _idle(self, now: float) -> bool:
        """Between two processes."""
        if self._pruned:
            return self._tell(TrialState.PRUNED, "")
        if self._stopping:
            return self._release()
        if now < self._begin_at:
            return False
        if holder := children.orphan(self.workdir):
            if not self._waits_for:
                self._console.note(f"trial {self.number}: waits until {holder} has saved and ended")
            self._waits_for, self._begin_at = holder, now + _AGAIN
            return False
        words = self._plan.command(self.workdir, self._trials.values(self._trial))
        log = self.workdir.parent / f"{self.number}.log"
        self._child = Child([sys.executable, *words], self.place, self._plan.env, log)
        return False

    def _report(self) -> None:
        """Hands new evaluations to the study, and hears whether to go on."""
        for step, _, value in self._lines.read():
            if step not in self._reported and value is not None and math.isfinite(value):
                self._reported.add(step)
                self._trial.report(value, step)
                if self._plan.prunes and not self._stopping:
                    self._pruned = self._pruned or self._trial.should_prune()

    def _ended(self, code: int) -> bool:
        """What becomes of a trial whose process has ended."""
        assert self._child
        ended, self._child = self._child, None
        if code == 0:
            self._report()
            return self._complete()  # by itself, even where it was just told to end
        if self._pruned:
            return self._tell(TrialState.PRUNED, "")
        if ended.was_busy():
            self._begin_at = time.monotonic() + _AGAIN
            return False
        if code > 0 and code != STOPPED:
            return self._tell(TrialState.FAIL, ended.reason())
        if self._stopping:
            return self._release()
        return self._again(code, ended.reason())

    def _again(self, code: int, reason: str) -> bool:
        """Starts a process anew where one was stopped or killed, within limits."""
        newest = children.newest_checkpoint(self.workdir)
        if newest > self._newest:
            self._left = self._plan.restarts
        self._newest = newest
        what = "was stopped" if code == STOPPED else f"was {reason}"
        if self._left == 0:
            more = f"{self._plan.restarts + 1} times without a newer checkpoint between"
            return self._tell(TrialState.FAIL, f"{what} {more}")
        self._left -= 1
        self._console.note(f"trial {self.number}: {what}; goes on from step {max(newest, 0)}")
        return False

    def _complete(self) -> bool:
        value = self._plan.best([value for _, _, value in self._lines.read()])
        if value is None:
            return self._tell(TrialState.FAIL, f"eval/{self._plan.figure} was never finite")
        return self._tell(TrialState.COMPLETE, "", value)

    def _tell(self, state: TrialState, reason: str, value: float | None = None) -> bool:
        if not self._trials.is_mine(self._trial):
            return self._lost()
        rows = self._lines.read()
        if rows:
            self._trial.set_user_attr(STEPS, rows[-1][0])
        self._trials.tell(self._trial, state, value, reason)
        return True

    def _release(self) -> bool:
        if self._trials.is_mine(self._trial):
            self._trials.release(self._trial)
        return True

    def _lost(self) -> bool:
        self.abandon()
        self._console.warn(
            f"trial {self.number} was taken over by another controller: this one had not been heard"
            " of for long"
        )
        return True
