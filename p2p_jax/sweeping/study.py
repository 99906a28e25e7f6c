"""The study: which trial comes next, and who runs it. The only module that knows Optuna's kinds."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from p2p_jax.process import Failure
from p2p_jax.space import Dimension, Space
from p2p_jax.sweeping.owners import Owners, alone

SAMPLERS = ("random", "tpe", "grid")
PRUNERS = ("none", "halving", "hyperband")
JOURNAL = "study.journal"
# What is noted of a trial.
OWNER, REASON, STEPS, PLACE, PINNED = "owner", "reason", "steps", "place", "pinned"
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Grid(GridSampler):
    """Each point once; it is not the sampler that says when all are done."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Does nothing: the original would stop a loop that there is not."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if dimension.kind == "choice":
        return CategoricalDistribution([encoded(value) for value in dimension.values])
    low, high = dimension.values
    if dimension.step:  # the last that is reached
        high = low + math.floor((high - low) / dimension.step + 1e-9) * dimension.step
    if dimension.kind == "int":
        return IntDistribution(low, high, log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def encoded(value: Any) -> Any:
    """A value as a storage can hold it."""
    return repr(value) if isinstance(value, tuple) else value


def decoded(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values as the config has them, in the order of the space."""
    values = {}
    for key, dimension in space.items():
        if key in params:
            known = {encoded(v): v for v in dimension.values} if dimension.kind == "choice" else {}
            values[key] = known.get(params[key], params[key])
    return values


def points(space: Space) -> int | None:
    """How many points a grid has; None where it has no end."""
    grids = [dimension.grid() for dimension in space.values()]
    return None if None in grids else math.prod(len(grid or ()) for grid in grids)


def make_sampler(name: str, space: Space, seed: int, number: int) -> BaseSampler:
    """The sampler of one trial.

    One each, so that a draw is a function of seed, number and the trials before, whoever makes it
    and however often controllers have died.
    """
    own = (seed * 1_000_003 + number) % 2**32
    if name == "random":
        return RandomSampler(seed=own)
    if name == "tpe":
        return TPESampler(seed=own)
    # Its seed is the order of the grid: the same for all.
    values = {key: [encoded(v) for v in d.grid() or ()] for key, d in space.items()}
    return Grid(values, seed=seed % 2**32)


def make_pruner(name: str, least: int, most: int, factor: int) -> optuna.pruners.BasePruner:
    """A pruner; `least` and `most` are updates, 0 for what the trials tell."""
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(least or "auto", factor)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(max(1, least), most or "auto", factor)
    return optuna.pruners.NopPruner()


def open_storage(folder: Path, url: str) -> BaseStorage:
    """The journal in the sweep's folder, or the database at an address.

    Raises:
      Failure: the database cannot be reached.
    """
    if not url:
        path = folder / JOURNAL
        _mend(path)
        return JournalStorage(JournalFileBackend(str(path)))
    try:
        return RDBStorage(url)
    except Exception as error:  # libraries for databases raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Failure(f"--storage: {hidden(url)} cannot be opened: {reason}") from error


def _mend(path: Path) -> None:
    """Drops a last line that was cut off by a power cut or a full disk; it would spoil the next."""
    if not path.exists() or path.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock = JournalFileSymlinkLock(str(path))  # that the others write under
    lock.acquire()
    try:
        raw = path.read_bytes()
        os.truncate(path, raw.rfind(b"\n") + 1)
    finally:
        lock.release()


def hidden(url: str) -> str:
    """An address without its password."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


class Trials:
    """The trials of a sweep, as this controller sees and takes them."""

    def __init__(
        self,
        study: optuna.Study,
        folder: Path,
        owners: Owners,
        space: Space,
        sampler: Callable[[int], BaseSampler],
    ) -> None:
        """Takes what all controllers share, this one's name, and the sampler of each number."""
        self.study, self._folder, self._owners = study, folder, owners
        self._space, self._sampler = space, sampler
        self._distributions = {key: distribution(d) for key, d in space.items()}

    def all(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def next(self, count: int) -> tuple[Trial, bool] | None:
        """A trial to run now, if there is one, and whether it was begun before.

        One whose controller is dead or has let go of it comes first, with the number and values it
        has; a new one only where there are fewer than `count`.
        """
        with alone(self._folder):
            trials = self.all()
            for each in trials:
                if each.state == TrialState.RUNNING and not self._is_owned(each):
                    self.study.sampler = self._sampler(each.number)
                    return self._owned(Trial(self.study, each._trial_id)), True
            if len(trials) >= count:
                return None
            self.study.sampler = self._sampler(len(trials))
            return self._owned(self.study.ask()), False

    def _owned(self, trial: Trial) -> Trial:
        """Makes a trial this controller's, and draws what it lacks."""
        trial.set_user_attr(OWNER, self._owners.name)
        for key, each in self._distributions.items():
            # One that was killed in the midst of drawing has some already.
            trial._suggest(key, each)
        return trial

    def _is_owned(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER, "")
        return bool(owner) and self._owners.lives(owner)

    def is_mine(self, trial: Trial) -> bool:
        """Whether this controller still runs it; a machine that slept may have lost it."""
        now = self.study._storage.get_trial(trial._trial_id)
        mine = now.user_attrs.get(OWNER) == self._owners.name
        return mine and now.state == TrialState.RUNNING

    def values(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """What a trial sets keys of the config to."""
        return decoded(self._space, trial.params)

    def release(self, trial: Trial) -> None:
        """Lets go of a trial that is to go on later."""
        trial.set_user_attr(OWNER, "")

    def tell(self, trial: Trial, state: TrialState, value: float | None, reason: str) -> None:
        """Records how a trial ended."""
        if reason:
            trial.set_user_attr(REASON, reason)
        self.study.tell(trial, value if state == TrialState.COMPLETE else None, state)


def word(state: TrialState) -> str:
    """A state, for people."""
    return _WORDS[state]
