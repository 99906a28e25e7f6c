"""The training loop: dispatch, log, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from p2p_jax import begin, board, checkpoint, evaluate, mesh, peers, report, storage
from p2p_jax.begin import Begun
from p2p_jax.board import Board
from p2p_jax.build import Experiment, TrainOptions
from p2p_jax.checkpoint import NotFiniteState, SaveFailed
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.data import Feed, Frames, HostCache, IndexFeed
from p2p_jax.early import Early
from p2p_jax.evaluate import Evaluator, Interrupted
from p2p_jax.figures import directions
from p2p_jax.ledger import Ledger, reached
from p2p_jax.objectives import RATES
from p2p_jax.process import STOPPED, Failure, Lock, Stop, alone_in
from p2p_jax.report import MetricsLog
from p2p_jax.state import TrainState
from p2p_jax.step import laid_out_for
from p2p_jax.storage import AnyPath
from p2p_jax.store import Store
from p2p_jax.tally import Losses, NotFinite

DONE = 0
RETRIES = 3  # of the stretch from one checkpoint on, where losses are not finite
# What may be due after a step, in this order. A checkpoint comes last: it implies the rest.
LOG, EVALUATION, GRID, SAVE = "log", "evaluation", "grid", "save"
PICTURES = "pictures"  # of the evaluation before, where that ends the run early


def plan(options: TrainOptions, step: int, end: int | None = None) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of each dispatch from `step` to `end`, by default all.

    A dispatch ends early where something is due, so no interval need divide another.
    """
    every = (options.log_every, options.eval_every, options.sample_every, options.save_every)
    end = options.steps if end is None else end
    while step < end:
        due = min(step - step % n + n for n in every)
        count = min(options.steps_per_dispatch, due - step, end - step)
        yield step, count
        step += count


def feed(
    experiment: Experiment,
    step: int,
    put: Callable[[Any], Any],
    store: Store | None = None,
    frames: Frames | HostCache | None = None,
    end: int | None = None,
) -> Feed | IndexFeed:
    """What a run's steps are trained on: images, or where they are in a store.

    Args:
      experiment: of the run.
      step: the first one.
      put: takes images, or indices, to the devices.
      store: the whole set on the devices, or None.
      frames: those of the experiment, by default as they are.
      end: the step before which to end, by default the run's.
    """
    options = experiment.train
    common: Any = dict(
        batch_size=options.batch_size,
        local=mesh.batch_slots(experiment.mesh, options.batch_size),
        seed=experiment.seed,
        shuffle=options.shuffle,
        plan=plan(options, step, end),
        steps_per_dispatch=options.steps_per_dispatch,
        put=put,
    )
    own = experiment.train_frames
    if store:
        bad = frozenset().union(*peers.gather(frozenset(own.bad)))  # each read its part
        return IndexFeed(len(own), **common, bad=bad)
    return Feed(frames or own, **common, threads=options.threads, cache=options.cache)


@contextlib.contextmanager
def hold(workdir: AnyPath, note: Callable[[str], None]) -> Iterator[Lock]:
    """Has a workdir to itself, and clears away what a killed process left there.

    Raises:
      Busy: another process trains in it.
    """
    with alone_in(workdir, note) as lock:
        for folder in (workdir, workdir / "samples"):
            storage.sweep(folder)
        storage.sweep(workdir / "eval", deep=True)  # where --mode=eval may be at work
        yield lock


class Trainer:
    """One run in one process, which may be one of several."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: AnyPath,
        console: Console,
        ledger: Ledger | None = None,
        stop: Stop | None = None,
        lock: Lock | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.experiment, self.options = experiment, experiment.train
        if self.options.tensorboard and (found := board.problems(workdir)):
            raise ConfigError(found)
        self.workdir, self.console = workdir, console
        self.ledger = ledger or Ledger(time.monotonic())
        self.stop, self.lock = stop or Stop(), lock
        self.ballot = peers.Ballot(lambda: bool(self.stop.name))
        self.evaluator = evaluator or Evaluator(experiment, self.ballot.now, console.warn)
        self.metric = f"eval/{self.options.best}"
        self.mode = directions(experiment.eval.metrics)[self.options.best]
        self.best: dict[str, Any] | None = None  # metric, value and step of the best checkpoint
        self._best_before = self.best
        self.manager = checkpoint.open_manager(
            workdir, self.options.keep, lambda: self.best["step"] if self.best else None
        )

    def close(self) -> None:
        """Waits for the save under way, and lets go of the checkpoints."""
        checkpoint.close(self.manager)

    def run(self, changes: dict[str, list[Any]]) -> int:
        """Trains to the end or until a signal; see `train`."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.close)
            closing.callback(self.console.close)
            seconds = peers.together(self._before)
            begun = begin.begin(
                self.experiment,
                self.manager,
                self.console,
                self.ledger,
                lambda meta: self._early(meta).over,
            )
            # Only now: what could not go on leaves the record of the run so far as it is.
            peers.together(lambda: self._record(changes))
            self.ledger.go_on(begun.meta.get("seconds", {}), seconds)
            self.ledger.begin_steps()
            return self._repeated(begun)

    def _before(self) -> float:
        """Seconds that the run so far is known to have reached; process 0 alone reads its lines."""
        if not peers.first():
            return 0.0
        rows = report.read(self.workdir)
        begin.check_afresh(self.manager, self.workdir, rows)
        return reached(rows)

    def _record(self, changes: dict[str, list[Any]]) -> None:
        """Writes what is trained, and on what."""
        if peers.first():
            self._check_lock()
            _record(self.experiment, self.workdir, changes)

    def _check_lock(self) -> None:
        if self.lock:
            self.lock.check()

    def _repeated(self, begun: Begun) -> int:
        """Trains; where a loss is not finite, again from the newest checkpoint, if so wished."""
        state, meta, restored, attempt = begun.state, begun.meta, -1, 0
        while True:
            try:
                with contextlib.ExitStack() as opened:
                    self.log = opened.enter_context(self._log_from(int(state.step), meta))
                    self.board = opened.enter_context(self._board_from(int(state.step)))
                    return self._train(begun, state, meta)
            except (NotFinite, NotFiniteState) as error:
                if self.options.on_nan != "rollback":
                    raise
                before, reason = restored, str(error)
            self._settle()
            restored = checkpoint.latest(self.manager) or 0
            attempt = attempt + 1 if restored == before else 1
            if attempt > RETRIES:
                raise Failure(f"{RETRIES} more tries from step {restored} on have failed: {reason}")
            self.console.warn(f"{reason}. Back to step {restored}, try {attempt} of {RETRIES}")
            state, meta = begin.restored(self.experiment, self.manager, self.console, attempt)
            state = laid_out_for(begun.step_fn, state)

    def _log_from(self, step: int, meta: dict[str, Any]) -> Any:
        """The log, less what will be written again."""
        if not peers.first():
            return contextlib.nullcontext()
        again = self.experiment.eval.split if EVALUATION in meta.get("due", ()) else ""
        tolerate, warn = self.options.on_save_error == "continue", self.console.warn
        return contextlib.closing(
            MetricsLog(self.workdir, step or -1, tolerate, warn, again, self._check_lock)
        )

    def _board_from(self, step: int) -> contextlib.AbstractContextManager[Board | None]:
        """TensorBoard's, likewise."""
        if not (self.options.tensorboard and peers.first()):
            return contextlib.nullcontext()
        return contextlib.closing(Board(self.workdir, step or -1, report.read(self.workdir)))

    def _prepare(self, step: int, meta: dict[str, Any]) -> list[str]:
        """Goes on from what was saved with a state; gives what is due before the next step."""
        self.best = checkpoint.best_of(self.manager, meta, self.metric, self.mode)
        skip = self.options.on_nan == "skip"
        self.losses = Losses(self.experiment.gan.metric_names, meta.get("losses", {}), skip)
        self.plateau = self.experiment.plateau and self.experiment.plateau(meta.get("plateau"))
        self.early = self._early(meta)
        # Since the last line of the run so far.
        self._replaced = -meta.get("replaced", 0) if peers.first() else 0
        return meta.get("due", []) if step else [EVALUATION, GRID]

    def _train(self, begun: Begun, state: TrainState, meta: dict[str, Any]) -> int:
        step, steps = int(state.step), self.options.steps
        due = self._prepare(step, meta)
        if self.ballot.now():
            return self._stopped(state, step, due)
        if left := self._do(state, step, due):
            return self._stopped(state, step, left)
        if self.early.over and step < steps:
            return self._ended(state, step)
        if begun.step_fn is None:
            self.console.note(f"all {steps} steps are done; train.steps adds more")
            return self._finish(step)
        self._set_out(step, self._feed(begun.store, step))
        self.console.progress(step, steps, {}, math.nan, math.nan, None)
        with self.feed:
            for first, count, batch in self.feed:
                vote = self.ballot.cast()
                placed = mesh.put_replicated(
                    self.experiment.mesh, (self._hyper(first), np.int32(count))
                )
                state, losses = begun.step_fn(state, batch, *placed)
                step = first + count
                self.losses.add(step, count, losses)
                self.console.tick(step)
                left = self._do(state, step, self.due(step))
                ended = step == steps or self.early.over
                if left or (self.ballot.count(vote) and not ended):
                    return self._stopped(state, step, left)
                if ended:
                    break
        return self._finish(step)

    def _early(self, meta: dict[str, Any]) -> Early:
        identity = evaluate.identity(self.experiment, self.evaluator)
        return Early(self.options, self.mode, identity, meta.get("early"))

    def _ended(self, state: TrainState, step: int) -> int:
        """What a run leaves that has ended early, where a smaller patience says so only now."""
        folder = evaluate.eval_folder(self.workdir, self.experiment, self.evaluator, step)
        if not peers.gather((folder / "metrics.json").exists())[0]:
            if left := self._do(state, step, [PICTURES, GRID]):
                return self._stopped(state, step, left)
        return self._finish(step)

    def _hyper(self, first: int) -> np.ndarray:
        """Rates and weights of a dispatch."""
        hyper = self.experiment.hyper(first, self.options.steps_per_dispatch)
        if self.plateau:
            hyper[:, : len(RATES)] *= self.plateau.scale
        return hyper

    def _set_out(self, step: int, examples: Feed | IndexFeed) -> None:
        """Begins to train on what a feed gives."""
        self.feed = examples
        self._begun, self._marked, self._waited = (time.monotonic(), step), step, 0.0
        self._mark = time.monotonic()

    def _feed(self, store: Store | None, step: int) -> Feed | IndexFeed:
        def put(batch: Any) -> Any:
            placed = mesh.put_split(self.experiment.mesh, batch, 1)
            return (store.arrays, placed) if store else placed

        return feed(self.experiment, step, put, store)

    def due(self, step: int) -> list[str]:
        """What is due after `step` updates."""
        options = self.options
        every = {
            LOG: options.log_every,
            EVALUATION: options.eval_every,
            GRID: options.sample_every,
            SAVE: options.save_every,
        }
        return [kind for kind, n in every.items() if step % n == 0 or step == options.steps]

    def _do(self, state: TrainState, step: int, due: Sequence[str]) -> list[str]:
        """Does what is due; returns what a signal left undone of it, to be done on resume."""
        means, to_do = None, list(due)
        while to_do:
            try:
                if to_do[0] == LOG:
                    self._log(step)
                elif to_do[0] == EVALUATION:
                    means = self._evaluate(state, step)
                    over = self.early.over
                    if self._better(step, means) and SAVE not in to_do:
                        to_do.append(SAVE)
                    if self.early.over and not over and step < self.options.steps:
                        to_do[1:] = [PICTURES, GRID, SAVE]
                elif to_do[0] == PICTURES:
                    self._pictures(state, step)
                elif to_do[0] == GRID:
                    self._sample(state, step)
                elif checkpoint.latest(self.manager) != step:
                    self._save(state, step, means)
            except Interrupted:
                return [kind for kind in to_do if kind != SAVE]
            del to_do[0]
        return []

    def _better(self, step: int, means: dict[str, float]) -> bool:
        if self.best and self.manager.saving and self.manager.saving[0] == self.best["step"]:
            self._settle()  # it may yet fail
        value = means[self.metric]
        # Not at an end that a longer run would not have.
        if self.plateau and step and step % self.options.eval_every == 0:
            self.plateau.update(value)
        if step and step % self.options.eval_every == 0:
            self.early.update(value, step)
        if not step or not math.isfinite(value):
            return False
        sign = 1 if self.mode == "min" else -1
        better = self.best is None or sign * value < sign * self.best["value"]
        if better:
            self._best_before = self.best
            self.best = {"metric": self.metric, "value": value, "step": step}
        return better

    def _log(self, step: int) -> None:
        self.losses.settle()
        skipped = self.losses.skipped
        means = self.losses.take()
        now = time.monotonic()
        seconds, steps = now - self._mark, step - self._marked
        rate = steps * self.options.batch_size / seconds
        waited = self.feed.waited - self._waited
        self._account(waited)
        self._mark, self._marked, self._waited = now, step, self.feed.waited
        start, first = self._begun
        left = (now - start) / (step - first) * (self.options.steps - step)
        scalars = {**means, "images_per_sec": rate, "data_wait_frac": waited / seconds}
        if self.options.substitutes:
            scalars["data/substituted"] = self._substituted()
            self._replaced = self.feed.replaced
        if self.options.on_nan == "skip":
            scalars["train/skipped"] = skipped
        self._write(step, "train", scalars | self.ledger.scalars())
        self.console.progress(step, self.options.steps, means, rate, waited / seconds, left)

    def _account(self, waited: float) -> None:
        """Of the time since the last line, so many seconds were spent on waiting for data."""
        self.ledger.move(waited, "data_wait")

    def _substituted(self) -> int:
        """How many examples, in all processes, were others' since the last line.

        Processes that share images have read the same ones.
        """
        options = self.options
        rows = mesh.batch_slots(self.experiment.mesh, options.batch_size).tolist()
        counts = peers.gather((tuple(rows), self.feed.replaced - self._replaced))
        return sum(dict(reversed(counts)).values())

    def _write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        if self.log:
            self.log.write(step, step * self.options.batch_size, split, scalars)
        if self.board:
            with self._room():
                self.board.write({"step": step, "split": split, **scalars})

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        gen = checkpoint.split(state)["gen"]
        with self.ledger.on("evaluation"):
            if step:
                self.losses.settle()
            if step == self.options.steps:
                result = evaluate.write(self.workdir, self.experiment, self.evaluator, step, gen)
            else:
                result = self.evaluator(gen)
        self._write(step, self.experiment.eval.split, result.means)
        evaluate.show(self.console, self.experiment, self.evaluator, step, result)
        return result.means

    def _pictures(self, state: TrainState, step: int) -> None:
        """Of an evaluation that turned out to be the last."""
        with self.ledger.on("evaluation"):
            gen = checkpoint.split(state)["gen"]
            evaluate.write(self.workdir, self.experiment, self.evaluator, step, gen)

    def _sample(self, state: TrainState, step: int) -> None:
        with self.ledger.on("evaluation"):
            picture = self.evaluator.grid(checkpoint.split(state)["gen"])
            if peers.first():
                with self._room():
                    report.save_png(self.workdir / "samples" / f"{step}.png", picture)
                    if self.board:
                        self.board.image(step, picture)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """For what training can do without, where the disk is full and that is tolerated."""
        try:
            yield
        except Exception as error:  # libraries for buckets raise many kinds
            tolerable = storage.is_remote(self.workdir) or storage.no_room(error)
            if self.options.on_save_error == "stop" or not tolerable:
                raise
            self.console.warn(f"{error}; training goes on")

    def _save(
        self,
        state: TrainState,
        step: int,
        means: dict[str, float] | None,
        due: Sequence[str] = (),
    ) -> None:
        self.losses.settle()
        self._settle()  # before `best` is told: it may be of a save that failed
        if not peers.gather(peers.together(self._may_save))[0]:
            self._not_saved(step)
            self.console.warn(f"checkpoint {step} is left out: metrics.jsonl cannot grow")
            return
        meta = {"losses": self.losses.saved(), "best": self.best, "due": list(due)}
        if self.options.substitutes:
            meta["replaced"] = self._substituted()
        if self.plateau:
            meta["plateau"] = self.plateau.saved()
        if self.options.early_stop:
            meta["early"] = self.early.saved()
        with self.ledger.on("saves"):
            meta["seconds"] = self.ledger.saved()
            checkpoint.save(self.manager, state, meta, means)

    def _may_save(self) -> bool:
        """Whether all lines before a checkpoint are safe; only process 0 knows."""
        if not self.log:
            return False
        self._check_lock()
        if self.board:
            with self._room():
                self.board.sync()
        return self.log.sync()

    def _settle(self) -> None:
        """Waits for the save under way."""
        try:
            with self.ledger.on("saves"):
                checkpoint.settle(self.manager)
        except SaveFailed as error:
            if self.options.on_save_error == "stop":
                raise
            self._not_saved(error.step)
            self.console.warn(f"{error}; training goes on")

    def _not_saved(self, step: int) -> None:
        """The best checkpoint is not this one."""
        if self.best and self.best["step"] == step:
            self.best = self._best_before

    def _saved(self, step: int) -> None:
        """Waits for the last save.

        Raises:
          SaveFailed: it failed, or was left out.
        """
        with self.ledger.on("saves"):
            checkpoint.settle(self.manager)
        newest = checkpoint.latest(self.manager)
        if newest != step:
            raise SaveFailed(
                step,
                f"checkpoint {step} was left out, as metrics.jsonl could not grow; run again to go "
                f"on from {f'step {newest}' if newest else 'the beginning'}",
            )

    def _stopped(self, state: TrainState, step: int, due: Sequence[str]) -> int:
        """Saves, what is still due after this step included."""
        names = peers.gather(self.stop.name)
        told = f"stopped by {next(name for name in names if name)}"
        if not step:
            self.console.done([(told, "before the first step; run again to begin")])
            return STOPPED
        if checkpoint.latest(self.manager) != step:
            self._save(state, step, None, due)
        self._saved(step)
        rows = [(told, f"saved at step {step}; run again to go on"), ("time", self.ledger.told())]
        self.console.done(rows)
        return STOPPED

    def _finish(self, step: int) -> int:
        self._saved(step)
        if self.early.over and step < self.options.steps:
            self.console.note(self.early.told(step))
        folder = evaluate.eval_folder(self.workdir, self.experiment, self.evaluator, step)
        rows = [
            ("grid", self.workdir / "samples" / f"{step}.png"),
            ("pictures", folder / "index.html"),
            ("metrics", self.workdir / "metrics.jsonl"),
            ("checkpoints", self.workdir / "checkpoints"),
            ("time", self.ledger.told()),
        ]
        self.console.done([(name, str(path)) for name, path in rows])
        return DONE


def train(
    experiment: Experiment,
    workdir: AnyPath,
    console: Console,
    changes: dict[str, list[Any]],
    ledger: Ledger | None = None,
    stop: Stop | None = None,
) -> int:
    """Trains `experiment` in `workdir`, going on where its newest checkpoint stands.

    Args:
      experiment: what to train.
      workdir: the run's folder, made if missing.
      console: what the user sees.
      changes: keys of the config that differ from the run so far, for the record.
      ledger: what the time was spent on so far; by default it counts from now.
      stop: knows of signals; by default one that begins now.

    Returns:
      0 when all steps are done, 75 when a signal stopped the run with everything saved.

    Raises:
      Busy: another process trains in this workdir.
      Lost: another process has taken the workdir over.
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: `train.init_from` does not fit.
      DataError: an example cannot be read.
      NotFinite: a loss is NaN or infinite.
      SaveFailed: a checkpoint cannot be written.
    """
    with contextlib.ExitStack() as held:
        stop = stop or held.enter_context(Stop())
        stop.wait()

        def take() -> Lock | None:
            return held.enter_context(hold(workdir, console.note)) if peers.first() else None

        lock = peers.together(take)
        return Trainer(experiment, workdir, console, ledger, stop, lock).run(changes)


def _record(experiment: Experiment, workdir: AnyPath, changes: dict[str, list[Any]]) -> None:
    """Writes what is trained, and on what."""
    report.write_json(workdir / "config.json", experiment.config)
    data = {
        split: {"examples": len(source), "fingerprint": source.fingerprint}
        for split, source in (
            ("train", experiment.train_frames),
            (f"eval ({experiment.eval.split})", experiment.eval_frames),
        )
    }
    source, target = (form._asdict() for form in experiment.train_frames.forms)
    forms = {"source": source, "target": target}  # what pictures and translations are stored as
    report.write_run(
        workdir, {**report.environment(), "data": data, **forms, "config_changes": changes}
    )
