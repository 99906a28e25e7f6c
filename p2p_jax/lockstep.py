"""Runs that are trained together: each has its own folder, log, evaluations and checkpoints.

A member is a `Trainer` that does not ask for steps but is given them: all that is not the step it
does as a run by itself would.

Where numbers of one member are not finite, those of others may become so: XLA makes convolutions of
several out of one whose kernel is zero between members, and zero times infinity is no number. So
each whose loss is not finite is trained again from its newest checkpoint, by itself: whose own
fault it was, fails.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import begin, mesh, resuming, summary
from p2p_jax.build import Experiment, build, varied
from p2p_jax.checkpoint import NotFiniteState
from p2p_jax.console import Console
from p2p_jax.data import Feed, HostCache, IndexFeed
from p2p_jax.evaluate import Evaluator
from p2p_jax.flags import Command
from p2p_jax.ledger import Ledger
from p2p_jax.process import FAILED, STOPPED, Early, Failure, Lock, Stop
from p2p_jax.report import last_start, number
from p2p_jax.state import TrainState
from p2p_jax.step import laid_out_for
from p2p_jax.tally import NotFinite
from p2p_jax.train import DONE, LOG, Trainer, feed, hold


class Voice(Console):
    """What one member says, on the console of all: a line each, with its name before it."""

    def __init__(self, name: str, console: Console) -> None:
        """Speaks as `name`."""
        super().__init__(silent=True)
        self._name, self._shared = name, console

    def note(self, text: str) -> None:
        """Prints a line."""
        self._shared.note(f"{self._name}: {text}")

    def warn(self, text: str) -> None:
        """Prints a line that asks for attention."""
        self._shared.warn(f"{self._name}: {text}")

    def progress(
        self,
        step: int,
        total: int,
        scalars: Mapping[str, float],
        images_per_sec: float,
        data_wait: float,
        seconds_left: float | None,
    ) -> None:
        """Prints its losses; how fast all are, and the time left, the shared one shows."""
        stats = [f"{name.removeprefix('loss/')} {number(v)}" for name, v in scalars.items()]
        if stats:
            self.note("  ".join([f"step {step}/{total}", *stats]))
        self._shared.progress(step, total, {}, images_per_sec, data_wait, seconds_left)

    def evaluation(
        self,
        step: int,
        split: str,
        count: int,
        metrics: Mapping[str, float],
        baseline: Mapping[str, float],
        baseline_name: str,
        **more: Any,
    ) -> None:
        """Prints the figures, and those of the trivial answer."""
        del split, count, more
        told = [
            f"{key.removeprefix('eval/')} {number(value)} ({number(baseline.get(key))})"
            for key, value in metrics.items()
            if "/" not in key.removeprefix("eval/")
        ]
        self.note(f"evaluation at step {step}: {'  '.join(told)} ({baseline_name} in brackets)")

    def done(self, rows: Sequence[tuple[str, str]]) -> None:
        """Nothing: all end together."""


class Member(Trainer):
    """One run of several.

    Attributes:
      name: its folder.
      step: updates done.
      state: of these; None while the program has it.
      meta: what was saved with the state that it went on from.
      left: what a signal left undone of what is due.
      is_alone: trained by itself from now on.
      failed: why it cannot go on; '' where it can.
    """

    state: TrainState | None = None
    meta: Mapping[str, Any] = {}
    step = 0
    _waits = True

    def __init__(
        self,
        experiment: Experiment,
        command: Command,
        voice: Voice,
        ledger: Ledger,
        stop: Stop,
        lock: Lock,
        evaluator: Evaluator | None,
    ) -> None:
        """Takes what all share, and its own."""
        super().__init__(experiment, command.workdir, voice, ledger, stop, lock, evaluator)
        self.name, self.failed = str(command.workdir), ""
        self.left: list[str] = []
        self.is_alone = False
        self._opened = contextlib.ExitStack()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.options.steps and not self.left

    @property
    def goes_on(self) -> bool:
        """Whether there are steps to do."""
        return not self.failed and self.step < self.options.steps

    def restore(self) -> float:
        """Gets its state; gives the seconds that the run so far is known to have reached."""
        seconds = self._before()
        self.state, self.meta = begin.restored(self.experiment, self.manager, self.console)
        self.step = int(self.state.step)
        if self.meta:
            self.console.note(f"resumed at step {self.step} of {self.options.steps}")
        return seconds

    def open(self, changes: dict[str, list[Any]]) -> None:
        """Opens its log, and does what is due before the next step."""
        self._record(changes)
        self._begin()

    def go_back(self) -> None:
        """To the newest checkpoint, to be trained by itself from there on."""
        self._opened.close()
        self._settle()
        self.is_alone, self.left = True, []
        self.state, self.meta = begin.restored(self.experiment, self.manager, self.console)
        self.step = int(self.state.step)
        self.console.warn(f"a loss is not finite: trained again from step {self.step}, by itself")
        self._begin()

    def close(self) -> None:
        """Closes its log, and lets go of its checkpoints."""
        self._opened.close()
        super().close()

    def _begin(self) -> None:
        enter = self._opened.enter_context
        self.log = enter(self._log_from(self.step, dict(self.meta)))
        self.board = enter(self._board_from(self.step))
        due = self._prepare(self.step, dict(self.meta))
        assert self.state
        self.left = list(due) if self.ballot.now() else self._do(self.state, self.step, due)

    def set_out(self, examples: Feed | IndexFeed, is_first: bool) -> None:
        """Begins to train on what a feed gives; there may have been another one before.

        Args:
          examples: the feed.
          is_first: of those that share it; the others' waiting is the same.
        """
        given, self._waits = getattr(self, "feed", None), is_first
        self._replaced -= given.replaced if given else 0
        self._set_out(self.step, examples)

    def hyper(self, first: int) -> np.ndarray:
        """Rates and weights of a dispatch."""
        return self._hyper(first)

    def after(self, count: int, losses: jax.Array, state: Callable[[], TrainState]) -> None:
        """Takes what `count` more steps gave, and does what is due; `state` makes its own."""
        self.step += count
        self.losses.add(self.step, count, losses)
        if due := self.due(self.step):
            # What is only logged needs none.
            given: Any = state() if due != [LOG] else None
            self.left = self._do(given, self.step, due)

    def _account(self, waited: float) -> None:
        if self._waits:
            super()._account(waited)

    def end(self) -> None:
        """Sees that all is saved."""
        if self.is_done:
            self._finish(self.step)
        else:
            assert self.state
            self._stopped(self.state, self.step, self.left)


class Lockstep:
    """Trains members with one program, those together that stand at the same step."""

    def __init__(
        self,
        commands: Sequence[Command],
        told: Sequence[str],
        console: Console,
        ledger: Ledger,
        stop: Stop,
    ) -> None:
        """Takes what each member trains, as `alike.problems` allows, and what it sets, in words."""
        self._commands, self._told = commands, told
        self._console, self._ledger, self._stop = console, ledger, stop
        self._programs: dict[int, Any] = {}

    def run(self, changes: Sequence[dict[str, list[Any]]]) -> int:
        """Trains all to their end or until a signal; gives the exit code.

        Args:
          changes: of each, keys of the config that differ from the run so far, for the record.

        Raises:
          Busy: another process trains one of them.
          ConfigError: `train.init_from` does not fit.
          DataError: an example cannot be read.
        """
        with contextlib.ExitStack() as opened:
            opened.callback(self._console.close)
            self._members = self._made(opened)
            self._stop.wait()
            if self._stop.name:
                raise Early(self._stop.name)
            reached = [self._guarded(member, member.restore) or 0.0 for member in self._members]
            spent = max(
                (member.meta.get("seconds", {}) for member in self._members),
                key=lambda seconds: sum(seconds.values()),
            )
            self._ledger.go_on(spent, max(reached))
            for member, change in zip(self._members, changes, strict=True):
                self._guarded(member, functools.partial(member.open, change))
            self._ledger.begin_steps()
            while (cohort := self._cohort()) and not self._stop.name:
                self._train(*cohort)
            return self._end()

    # --- beginning -------------------------------------------------------------------------------

    def _made(self, opened: contextlib.ExitStack) -> list[Member]:
        """The members, each with its folder to itself."""
        first = self._commands[0]
        locks = [
            opened.enter_context(hold(command.workdir, self._console.note))
            for command in self._commands
        ]
        before = [last_start(command.workdir) for command in self._commands]
        target = next((each["target"] for each in before if each.get("target")), None)
        whole = build(first.config, self._console.note, True, target)
        for command, each in zip(self._commands, before, strict=True):
            resuming.check_data(command, whole, each)
        members: list[Member] = []
        for command, lock in zip(self._commands, locks, strict=True):
            experiment = varied(whole, command.config)
            voice = Voice(str(command.workdir), self._console)
            judge = members[0].evaluator.of(experiment) if members else None
            member = Member(experiment, command, voice, self._ledger, self._stop, lock, judge)
            members.append(member)
            opened.callback(member.close)
        self._console.header(
            [
                *summary.rows(whole, True),
                *((member.name, text) for member, text in zip(members, self._told, strict=True)),
            ]
        )
        for note in whole.notes:
            self._console.note(note)
        self._experiment = whole
        self._store, self._frames = begin.fill(whole, self._console), whole.train_frames
        if whole.train.cache == "host":
            self._frames = HostCache(whole.train_frames)
        return members

    def _guarded(self, member: Member, action: Callable[[], Any]) -> Any:
        """Does something of a member, unless it has failed; where it fails, the others go on."""
        if member.failed:
            return None
        try:
            return action()
        except (NotFinite, NotFiniteState) as error:
            if member.is_alone or len(self._members) == 1:
                return self._fail(member, error)
            return self._guarded(member, member.go_back)
        except Failure as error:
            return self._fail(member, error)

    def _fail(self, member: Member, error: Failure) -> None:
        member.failed = str(error)
        self._console.warn(f"{member.name}: has failed: {error}")

    # --- steps -----------------------------------------------------------------------------------

    def _cohort(self) -> tuple[list[Member], int] | None:
        """Those that are furthest behind, and the step where others wait for them."""
        going = [member for member in self._members if member.goes_on]
        there = [member for member in going if not member.is_alone] or going[:1]
        if not there:
            return None
        step = min(member.step for member in there)
        ahead = [member.step for member in there if member.step > step]
        behind = [member for member in there if member.step == step]
        return behind, min(ahead, default=self._experiment.train.steps)

    def _train(self, cohort: list[Member], end: int) -> None:
        """Trains some from the step that they stand at to `end`, or until a signal."""
        program, step = self._program(len(cohort)), cohort[0].step
        state = laid_out_for(program, self._stacked([member.state for member in cohort]))
        for member in cohort:
            member.state = None  # its memory is free now
        with contextlib.ExitStack() as closing:
            feeds: dict[int, Feed | IndexFeed] = {}
            for member in cohort:
                seed = member.experiment.seed
                if is_first := seed not in feeds:
                    feeds[seed] = closing.enter_context(self._feed(member.experiment, step, end))
                member.set_out(feeds[seed], is_first)
            self._console.progress(step, self._experiment.train.steps, {}, math.nan, math.nan, None)
            for items in zip(*feeds.values(), strict=True):
                first, count, _ = items[0]
                given = {seed: item[2] for seed, item in zip(feeds, items, strict=True)}
                batch = self._batch([given[member.experiment.seed] for member in cohort])
                placed = mesh.put_replicated(
                    self._experiment.mesh,
                    (np.stack([member.hyper(first) for member in cohort]), np.int32(count)),
                )
                state, losses = program(state, batch, *placed)
                for i, (member, row) in enumerate(zip(cohort, losses, strict=True)):
                    own = functools.partial(_member, state, i)
                    self._guarded(member, functools.partial(member.after, count, row, own))
                self._console.tick(first + count)
                left = any(member.left or self._stop.name for member in cohort)
                if left or any(member.failed or member.state for member in cohort):
                    break
        for i, member in enumerate(cohort):
            if not member.failed and member.state is None:
                member.state = _member(state, i)

    def _program(self, count: int) -> Any:
        """The compiled step of so many members."""
        if count not in self._programs:
            begun = time.monotonic()
            with self._ledger.on("compile"):
                self._programs[count] = begin.compiled(
                    self._experiment, self._experiment.abstract_state(), self._store, count
                )
            took = time.monotonic() - begun
            self._console.note(f"compiled for {count} members in {took:.0f} s")
        return self._programs[count]

    def _stacked(self, states: Sequence[TrainState | None]) -> TrainState:
        place = mesh.replicated(self._experiment.mesh)
        return jax.jit(
            lambda *given: jax.tree.map(lambda *x: jnp.stack(x), *given), out_shardings=place
        )(*states)

    def _feed(self, experiment: Experiment, step: int, end: int) -> Feed | IndexFeed:
        return feed(experiment, step, lambda batch: batch, self._store, self._frames, end)

    def _batch(self, batches: Sequence[Any]) -> Any:
        """What the program takes: that of each member, one after the other."""
        together = jax.tree.map(lambda *x: np.stack(x), *batches)
        placed = mesh.put_replicated(self._experiment.mesh, together)
        return (self._store.arrays, placed) if self._store else placed

    # --- the end ---------------------------------------------------------------------------------

    def _end(self) -> int:
        for member in self._members:
            self._guarded(member, member.end)
        self._console.done([("time", self._ledger.told())])
        failed = [member for member in self._members if member.failed]
        for member in failed:
            print(f"error: {member.name}: {member.failed}", file=sys.stderr, flush=True)
        if self._stop.name and not all(m.failed or m.is_done for m in self._members):
            self._console.note(f"stopped by {self._stop.name}; all is saved, run again to go on")
            return STOPPED
        return FAILED if failed else DONE


@jax.jit
def _member(state: TrainState, i: int | jax.Array) -> TrainState:
    """The state of one."""
    return jax.tree.map(lambda x: x[i], state)
