"""The training loop: restore, dispatch, log, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from p2p_jax import checkpoint, evaluate, finetune, mesh, report, store
from p2p_jax.build import Experiment, TrainOptions
from p2p_jax.console import Console
from p2p_jax.data import Batch, Feed, IndexFeed
from p2p_jax.evaluate import Evaluator
from p2p_jax.networks import draw
from p2p_jax.objectives import RATES
from p2p_jax.process import Stop, alone_in
from p2p_jax.readers import STREAMED
from p2p_jax.report import MetricsLog
from p2p_jax.state import TrainState
from p2p_jax.step import laid_out_for, make_train_step
from p2p_jax.store import Store
from p2p_jax.tally import Losses

DONE, STOPPED = 0, 75


def plan(options: TrainOptions, step: int) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of each dispatch from `step` on.

    A dispatch ends early where something is due, so no interval need divide another.
    """
    every = (options.log_every, options.eval_every, options.sample_every, options.save_every)
    while step < options.steps:
        due = min(step - step % n + n for n in every)
        count = min(options.steps_per_dispatch, due - step, options.steps - step)
        yield step, count
        step += count


class Trainer:
    """One run in one process."""

    def __init__(self, experiment: Experiment, workdir: Path, console: Console) -> None:
        self.experiment, self.options = experiment, experiment.train
        self.workdir, self.console = workdir, console
        self.evaluator = Evaluator(experiment)
        self.metric = f"eval/{self.options.best}"
        self.mode = dict(experiment.eval.metrics)[self.options.best].mode
        self.manager = checkpoint.open_manager(workdir, self.options.keep, self.metric, self.mode)
        self.best: float | None = None
        self.store: Store | None = None

    def run(self) -> int:
        """Trains to the end or until a signal; see `train`."""
        with Stop() as stop, contextlib.ExitStack() as self.closing:
            self.closing.callback(checkpoint.close, self.manager)
            self.closing.callback(self.console.close)
            return self._run(stop)

    def _run(self, stop: Stop) -> int:
        step_fn, state, meta = self._start()
        if step_fn is None:
            self.console.note(f"all {self.options.steps} steps are done; train.steps adds more")
            return self._finish(state)
        step = int(state.step)
        self.best = meta.get("best")
        self.losses = Losses(self.experiment.gan.metric_names, meta.get("losses", {}))
        self.plateau = self.experiment.plateau and self.experiment.plateau(meta.get("plateau"))
        log = MetricsLog(self.workdir, step or -1)
        self.log = self.closing.enter_context(contextlib.closing(log))
        if step == 0:
            self._evaluate(state, last=False)
            self._sample(state)
        self._begun, self._marked, self._waited = (time.monotonic(), step), step, 0.0
        self._replaced = -meta.get("replaced", 0)  # since the last line of the run so far
        self._mark = time.monotonic()
        self.console.progress(step, self.options.steps, {}, math.nan, math.nan, None)
        with self._feed(step) as self.feed:
            for first, count, batch in self.feed:
                placed = mesh.put_replicated(
                    self.experiment.mesh, (self._hyper(first), np.int32(count))
                )
                state, losses = step_fn(state, batch, *placed)
                step = first + count
                self.losses.add(step, count, losses)
                self.console.tick(step)
                self._due(state, step)
                if stop.name and step < self.options.steps:
                    return self._stopped(state, step, stop.name)
        return self._finish(state)

    def _hyper(self, first: int) -> np.ndarray:
        """Rates and weights of a dispatch."""
        hyper = self.experiment.hyper(first, self.options.steps_per_dispatch)
        if self.plateau:
            hyper[:, : len(RATES)] *= self.plateau.scale
        return hyper

    def _start(self) -> tuple[Any, TrainState, dict[str, Any]]:
        """Restores the newest checkpoint or draws a state, and compiles the step meanwhile.

        Returns:
          The compiled step, or None where all steps are done; the state; what was saved with it.
        """
        experiment, options = self.experiment, self.options
        abstract = experiment.abstract_state()
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            to_do = (checkpoint.latest(self.manager) or 0) < options.steps
            compiling = pool.submit(self._compile, abstract) if to_do else None
            like = checkpoint.split(abstract)
            restored = checkpoint.restore(self.manager, like, self.console.warn, set_aside=True)
            if restored is None:
                meta, state = {}, self._initial(abstract)
            else:
                meta, state = restored.meta, checkpoint.join(**restored.items)
                if restored.step == 0:  # networks from elsewhere; all that is random begins here
                    key = jax.random.key(experiment.seed, impl="threefry2x32")
                    state = state._replace(key=jax.device_put(key, abstract.key.sharding))
                self.console.note(f"resumed at step {restored.step} of {options.steps}")
            if restored and restored.step >= options.steps:
                return None, state, meta
            step_fn = compiling.result() if compiling else self._compile(abstract)
        state = laid_out_for(step_fn, state)
        self.console.note(f"compiled in {time.monotonic() - begun:.0f} s")
        return step_fn, state, meta

    def _compile(self, abstract: TrainState) -> Any:
        experiment, rows = self.experiment, self.options.steps_per_dispatch
        hyper = experiment.hyper(0, rows)
        count = jax.ShapeDtypeStruct((), np.int32)
        self.store = self._fill()
        if self.store:
            indices = jax.ShapeDtypeStruct((rows, self.options.batch_size), np.int32)
            batch, reader = (self.store.arrays, indices), self.store.reader
        else:
            batch, reader = self._abstract_batch(rows), STREAMED
        step_fn = make_train_step(experiment.gan, experiment.mesh, rows, reader)
        return step_fn.lower(abstract, batch, hyper, count).compile()

    def _abstract_batch(self, rows: int) -> Batch:
        frames, lead = self.experiment.train_frames, (rows, self.options.batch_size)
        images: Any = [
            jax.ShapeDtypeStruct((*lead, *frames.shape, form.channels), form.dtype)
            for form in frames.forms
        ]
        sizes: Any = None if frames.sizes is None else jax.ShapeDtypeStruct((*lead, 2), np.int32)
        return Batch(images[0], images[1], sizes)

    def _fill(self) -> Store | None:
        """The whole set on the devices, where that is asked for.

        Raises:
          DataError: it does not fit.
        """
        options, experiment = self.options, self.experiment
        if options.cache != "device":
            return None
        begun = time.monotonic()
        filled = store.fill(
            experiment.train_frames,
            experiment.mesh,
            options.cache_share,
            options.threads,
            self.console.note,
        )
        self.console.note(f"decoded and stored in {time.monotonic() - begun:.1f} s")
        return filled

    def _initial(self, abstract: TrainState) -> TrainState:
        """A fresh state, with the networks of another run where that is asked for."""
        options, experiment = self.options, self.experiment
        state = draw(experiment.gan, experiment.seed, abstract)
        if not options.init_from:
            return state
        return finetune.begin_from(
            Path(options.init_from), options.init_nets, state, experiment.mesh, self.console
        )

    def _feed(self, step: int) -> Feed | IndexFeed:
        experiment, options = self.experiment, self.options
        common: Any = dict(
            batch_size=options.batch_size,
            local=mesh.local_slice(options.batch_size),
            seed=experiment.seed,
            shuffle=options.shuffle,
            plan=plan(options, step),
            steps_per_dispatch=options.steps_per_dispatch,
        )

        def put(batch: Any) -> Any:
            return mesh.put_split(experiment.mesh, batch, 1)

        frames = experiment.train_frames
        if self.store:
            arrays = self.store.arrays
            return IndexFeed(len(frames), **common, put=lambda i: (arrays, put(i)), bad=frames.bad)
        return Feed(frames, **common, threads=options.threads, cache=options.cache, put=put)

    def _due(self, state: TrainState, step: int) -> None:
        """Does what is due after `step` updates. A checkpoint comes last: it implies the rest."""
        options = self.options
        last = step == options.steps
        if step % options.log_every == 0 or last:
            self._log(step)
        means = None
        better = False
        if step % options.eval_every == 0 or last:
            self.losses.settle()
            means = self._evaluate(state, last)
            better = self._better(means)
            # Not at an end that a longer run would not have.
            if self.plateau and step % options.eval_every == 0:
                self.plateau.update(means[self.metric])
        if step % options.sample_every == 0 or last:
            self._sample(state)
        if step % options.save_every == 0 or last or better:
            self._save(state, means)

    def _better(self, means: dict[str, float]) -> bool:
        value = means[self.metric]
        if not math.isfinite(value):
            return False
        better = self.best is None or (
            value < self.best if self.mode == "min" else value > self.best
        )
        if better:
            self.best = value
        return better

    def _log(self, step: int) -> None:
        self.losses.settle()
        means = self.losses.take()
        now = time.monotonic()
        seconds, steps = now - self._mark, step - self._marked
        rate = steps * self.options.batch_size / seconds
        wait = (self.feed.waited - self._waited) / seconds
        self._mark, self._marked, self._waited = now, step, self.feed.waited
        start, first = self._begun
        left = (now - start) / (step - first) * (self.options.steps - step)
        scalars = {**means, "images_per_sec": rate, "data_wait_frac": wait}
        if self.options.substitutes:
            scalars["data/substituted"] = self.feed.replaced - self._replaced
            self._replaced = self.feed.replaced
        self.log.write(step, step * self.options.batch_size, "train", scalars)
        self.console.progress(step, self.options.steps, means, rate, wait, left)

    def _evaluate(self, state: TrainState, last: bool) -> dict[str, float]:
        step, gen = int(state.step), checkpoint.split(state)["gen"]
        if last:
            result = evaluate.write(self.workdir, self.experiment, self.evaluator, step, gen)
        else:
            result = self.evaluator(gen)
        images = step * self.options.batch_size
        self.log.write(step, images, self.experiment.eval.split, result.means)
        evaluate.show(self.console, self.experiment, self.evaluator, step, result)
        return result.means

    def _sample(self, state: TrainState) -> None:
        picture = self.evaluator.grid(checkpoint.split(state)["gen"])
        report.save_png(self.workdir / "samples" / f"{int(state.step)}.png", picture)

    def _save(self, state: TrainState, means: dict[str, float] | None) -> None:
        self.losses.settle()
        self.log.sync()
        meta = {"losses": self.losses.saved(), "best": self.best}
        if self.options.substitutes:
            meta["replaced"] = self.feed.replaced - self._replaced
        if self.plateau:
            meta["plateau"] = self.plateau.saved()
        checkpoint.save(self.manager, state, meta, means)

    def _stopped(self, state: TrainState, step: int, name: str) -> int:
        if checkpoint.latest(self.manager) != step:
            self._save(state, None)
        self.console.done([(f"stopped by {name}", f"saved at step {step}; run again to go on")])
        return STOPPED

    def _finish(self, state: TrainState) -> int:
        steps = int(state.step)
        folder = evaluate.eval_folder(self.workdir, self.experiment, steps)
        rows = [
            ("grid", self.workdir / "samples" / f"{steps}.png"),
            ("pictures", folder / "index.html"),
            ("metrics", self.workdir / "metrics.jsonl"),
            ("checkpoints", self.workdir / "checkpoints"),
        ]
        self.console.done([(name, str(path)) for name, path in rows])
        return DONE


def train(
    experiment: Experiment, workdir: Path, console: Console, changes: dict[str, list[Any]]
) -> int:
    """Trains `experiment` in `workdir`, going on where its newest checkpoint stands.

    Args:
      experiment: what to train.
      workdir: the run's folder, made if missing.
      console: what the user sees.
      changes: keys of the config that differ from the run so far, for the record.

    Returns:
      0 when all steps are done, 75 when a signal stopped the run with everything saved.

    Raises:
      Busy: another process trains in this workdir.
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: `train.init_from` does not fit.
      DataError: an example cannot be read.
      NotFinite: a loss is NaN or infinite.
    """
    with alone_in(workdir):
        report.write_json(workdir / "config.json", experiment.config)
        data = {
            split: {"examples": len(source), "fingerprint": source.fingerprint}
            for split, source in (
                ("train", experiment.train_frames),
                (f"eval ({experiment.eval.split})", experiment.eval_frames),
            )
        }
        target = experiment.train_frames.forms[1]._asdict()  # what a translation is stored as
        entry = {**report.environment(), "data": data, "target": target, "config_changes": changes}
        report.write_run(workdir, entry)
        return Trainer(experiment, workdir, console).run()
