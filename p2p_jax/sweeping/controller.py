"""The loop of a controller: as many trials at a time as there are places, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from optuna.trial import TrialState

from p2p_jax.console import Console
from p2p_jax.process import STOPPED, Stop
from p2p_jax.report import number
from p2p_jax.sweeping.owners import Owners
from p2p_jax.sweeping.places import Place
from p2p_jax.sweeping.running import Plan, Running
from p2p_jax.sweeping.study import REASON, Trials, word

_TICK = 0.1
_ASK = 2.0  # seconds until a place that found no trial asks again


class Controller:
    """Runs trials at its places; there may be others of the same sweep."""

    def __init__(
        self,
        plan: Plan,
        trials: Trials,
        owners: Owners,
        places: Sequence[Place],
        console: Console,
        write: Callable[[], None],
        members: int = 1,
    ) -> None:
        """Takes all of it; `write` is called after each trial, `members` share a process."""
        self._members = members
        self._plan, self._trials, self._owners = plan, trials, owners
        self._free, self._running = list(places), list[Running]()
        self._console, self._write = console, write
        self._ask_at = 0.0

    def run(self, count: int, stop: Stop) -> int:
        """Runs trials until `count` have ended, or a signal came; gives the exit code."""
        try:
            while True:
                self._owners.renew()
                if not stop.name:
                    self._fill(count)
                self._turn(bool(stop.name))
                if stop.name and not self._running:
                    return STOPPED
                if not self._running and self._all_ended(count):
                    return 0
                time.sleep(_TICK)
        finally:
            for each in self._running:
                each.abandon()

    def _fill(self, count: int) -> None:
        """Gives a trial to each free place, while there are any."""
        while self._free and time.monotonic() >= self._ask_at:
            given = []
            while len(given) < self._members and (found := self._trials.next(count)) is not None:
                given.append(found)
            if not given:
                self._ask_at = time.monotonic() + _ASK
                return
            place = self._free.pop(0)
            for trial, again in given:
                values = "  ".join(f"{k}={v}" for k, v in self._trials.values(trial).items())
                how = "goes on" if again else "begins"
                self._console.note(f"trial {trial.number} {how} on {place.name}: {values}")
            trials = [trial for trial, _ in given]
            self._running.append(Running(self._plan, self._trials, trials, place, self._console))

    def _turn(self, stopping: bool) -> None:
        for each in list(self._running):
            if each.turn(stopping):
                self._running.remove(each)
                self._free.append(each.place)
                self._ask_at = 0.0
                for index in each.numbers:
                    self._tell(index)

    def _tell(self, index: int) -> None:
        trial = self._trials.all()[index]
        if trial.state.is_finished():
            value = "" if trial.value is None else f" {self._plan.figure} {number(trial.value)}"
            reason = trial.user_attrs.get(REASON, "") if trial.state == TrialState.FAIL else ""
            text = f"trial {index} {word(trial.state)}:{value}{f' {reason}' if reason else ''}"
            self._console.note(text.removesuffix(":"))
            self._write()

    def _all_ended(self, count: int) -> bool:
        trials = self._trials.all()
        return len(trials) >= count and all(trial.state.is_finished() for trial in trials)
