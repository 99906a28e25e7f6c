"""Evaluation: metrics and pictures from a generator's state."""

from __future__ import annotations

import copy
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from p2p_jax import checkpoint, mesh, page, peers, pictures, report
from p2p_jax.build import Experiment
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.data import eval_batches
from p2p_jax.gallery import Gallery
from p2p_jax.measures import Finished, Kept, Measures, colour_name
from p2p_jax.step import Sampled, make_sample
from p2p_jax.storage import AnyPath

Tree = Any
BASELINE = "best constant image"


class Interrupted(Exception):
    """An evaluation was left at the end of a batch, as a signal wished."""


class Evaluation(NamedTuple):
    """Results over a whole split, by figures as `eval/l1`.

    Attributes:
      means: figures of the split: means over examples, or of all of them together; with several
        seeds, means over these.
      examples: for each example its `name` and figures.
      intervals: of figures, the two ends of what holds 95% of them over resampled examples.
      spread: of figures, the standard deviation over several seeds.
      real: figures of real photos in place of generated ones, where a segmenter judges both.
    """

    means: dict[str, float]
    examples: list[dict[str, Any]]
    intervals: dict[str, tuple[float, float]]
    spread: dict[str, float]
    real: dict[str, float]


class Evaluator:
    """Evaluates generators of one experiment; compiles once, at first use.

    The result of an example depends on the generator, the run's seed and the example's name alone:
    not on its batch, its place, or the number of devices.

    Of several processes each reads, translates and writes its part of each batch, and all know the
    results.

    Attributes:
      baseline: figures of the best constant image, known after the first evaluation.
      real: of real photos, likewise, where a segmenter judges.
      measures: what is measured.
    """

    def __init__(
        self,
        experiment: Experiment,
        stopping: Callable[[], bool] = lambda: False,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Prepares for an experiment.

        Args:
          experiment: whose generators and split these are.
          stopping: asked after each batch; interrupts.
          warn: is told what of the segmenter's checkpoints was damaged.

        Raises:
          CheckpointError: none of the segmenter's is sound.
          ConfigError: it is none.
        """
        self._experiment, self._stopping = experiment, stopping
        self.baseline: dict[str, float] = {}
        self.real: dict[str, float] = {}
        options = experiment.eval
        gan = experiment.gan if options.running else experiment.eval_gan
        self._sample = make_sample(
            gan,
            experiment.mesh,
            options.running,
            options.dropout,
            experiment.eval_frames.device_size,
        )
        self._gallery = Gallery(experiment)
        self.measures = Measures(experiment, warn)
        self._keys = _keys(experiment)
        self._frames = experiment.eval_frames
        count = min(options.sample_count, len(self._frames))
        self._shown = [int(i) for i in np.linspace(0, len(self._frames) - 1, count).round()]

    def of(self, experiment: Experiment) -> Evaluator:
        """One for an experiment that differs in its seed alone; what is compiled is shared."""
        other = copy.copy(self)
        other._experiment, other._keys = experiment, _keys(experiment)
        return other

    def __call__(self, gen: Tree, folder: AnyPath | None = None) -> Evaluation:
        """Evaluates the split.

        Args:
          gen: the checkpoint item `gen`: params, stats and ema.
          folder: where to write all pictures, those of the first seed, or None for none. Intervals
            of figures that are no means over examples are found with pictures alone, as they take
            a while.

        Raises:
          Interrupted: as `stopping` told.
        """
        first = not self.baseline and not self.real
        targets: dict[int, np.ndarray] = {}
        seeds: list[list[Kept]] = []
        for number in range(len(self._keys)):
            kept: dict[int, Kept] = {}
            for i, images, row in self._translate(gen, seed=number, real=first and not number):
                kept[i] = row
                if number:
                    continue
                if first and images.target is not None:
                    targets[i] = self._gallery.measured(i, np.asarray(images.target))
                if folder is not None:
                    self._gallery.write(folder, i, images)
            seeds.append(_in_order(kept))
        if first:
            constant = _in_order(self.measures.constant(targets))
            self.baseline = _once(lambda: self.measures.baseline(constant))
        found: Finished = _once(lambda: self.measures.finish(seeds, sure=folder is not None))
        self.real = self.real or found.real
        rows = [
            {"name": name, **row}
            for name, row in zip(self._frames.names, found.examples, strict=True)
        ]
        return Evaluation(found.means, rows, found.intervals, found.spread, self.real)

    def grid(self, gen: Tree) -> np.ndarray:
        """The picture of the fixed pairs, uint8: a row each of source, fake and target."""
        rows = {
            i: [pictures.as_shown(picture) for picture in self._gallery.shown(i, images)]
            for i, images, _ in self._translate(gen, self._shown)
        }
        return report.grid(_in_order(rows))

    def _translate(
        self,
        gen: Tree,
        chosen: Sequence[int] | None = None,
        seed: int = 0,
        real: bool = False,
    ) -> Iterator[tuple[int, Sampled, Kept]]:
        """Index, images and what is kept of this process's part of all pairs.

        Of the chosen ones, where some are, nothing is measured.
        """
        options, frames, grid = self._experiment.eval, self._frames, self._experiment.mesh
        params = gen["ema"] if options.ema else gen["params"]
        axes = mesh.every_axis(grid)
        slots = mesh.batch_slots(grid, options.batch_size, axes)
        for everyone, indices, batch in eval_batches(
            frames, options.batch_size, options.threads, chosen, slots
        ):
            identities = np.zeros(len(batch.source), np.uint32)
            identities[: len(indices)] = [zlib.crc32(frames.names[i].encode()) for i in indices]
            pair = (batch.source, batch.target, identities)
            inputs = mesh.put_split(grid, pair, 0, axes)
            sampled = self._sample(params, gen["stats"], self._keys[seed], *inputs)
            kept = [Kept({}, {})] * len(indices)
            if chosen is None:
                kept = self.measures.collect(sampled, everyone, indices, real)
            images = jax.tree.map(mesh.local_rows, sampled)
            for row, i in enumerate(indices):
                yield i, jax.tree.map(lambda x, row=row: x[row], images), kept[row]
            if self._stopping():
                raise Interrupted


def _keys(experiment: Experiment) -> list[jax.Array]:
    """Of dropout and noise, by seed."""
    seeds = [(experiment.seed + k) % 2**32 for k in range(experiment.eval.seeds)]
    keys = [jax.random.key(seed, impl="threefry2x32") for seed in seeds]
    return [mesh.put_key(experiment.mesh, key) for key in keys]


def _in_order(here: dict[int, Any]) -> list[Any]:
    """What all processes have, by example."""
    everyone = {i: row for part in peers.gather(here) for i, row in part.items()}
    return [everyone[i] for i in sorted(everyone)]


def _once(make: Callable[[], Any]) -> Any:
    """What process 0 makes, in all of them: so that they decide alike, to the last bit."""
    return peers.gather(peers.together(lambda: make() if peers.first() else None))[0]


def show(console: Console, experiment: Experiment, evaluator: Evaluator, step: int,
         result: Evaluation) -> None:  # fmt: skip
    """Prints an evaluation with the best constant image's figures beside it."""
    count = len(result.examples)
    console.evaluation(
        step,
        experiment.eval.split,
        count,
        result.means,
        evaluator.baseline,
        BASELINE,
        intervals=result.intervals,
        spread=result.spread,
        real=result.real,
        about=evaluator.measures.about(count),
    )


def write(
    workdir: AnyPath, experiment: Experiment, evaluator: Evaluator, step: int, gen: Tree
) -> Evaluation:
    """Evaluates with all pictures into `eval/SPLIT/STEP/`, and returns the results."""
    folder = eval_folder(workdir, experiment, evaluator, step)
    result = evaluator(gen, folder)
    if not peers.first():
        return result
    options, count = experiment.eval, len(result.examples)
    head = {"step": step, "split": options.split, "examples": count}
    known = identity(experiment, evaluator)
    head |= {key: value for key, value in known.items() if value is not None}
    better = evaluator.measures.better
    about = _about(evaluator, result)
    summary = {**head, "better": better, **result.means, "intervals": result.intervals}
    optional = {"about": about, "spread": result.spread, "real": result.real}
    summary |= {key: value for key, value in optional.items() if value}
    summary |= {"baseline": evaluator.baseline, "per_example": result.examples}
    report.write_json(folder / "metrics.json", summary)
    page.write_eval_page(
        folder,
        title=f"{options.split} at step {step}",
        metrics=result.means,
        intervals=result.intervals,
        about=about,
        better=better,
        baseline=evaluator.baseline,
        baseline_name=BASELINE,
        rows=result.examples,
        targets=bool(experiment.eval_frames.forms[1].channels),
        log=_curves(workdir),
        identity=head,
        legend=[(colour_name(c), colour_name(c)) for c in options.palette],
    )
    return result


def _curves(workdir: AnyPath) -> list[dict[str, Any]]:
    """The log without what depends on the clock, so that equal runs leave equal pages."""

    def lasting(key: str) -> bool:
        return key in ("step", "images", "split") or key.startswith(("loss/", "eval/"))

    return [
        {key: value for key, value in row.items() if lasting(key)} for row in report.read(workdir)
    ]


def _about(evaluator: Evaluator, result: Evaluation) -> dict[str, str]:
    """What is to be known of each figure, that of real photos and the spread over seeds too."""
    found = evaluator.measures.about(len(result.examples))
    for notes, text in ((result.real, "Real photos: {}"), (result.spread, "Over seeds: ±{}")):
        for name, value in notes.items():
            known = found.get(name)
            note = text.format(report.number(value))
            found[name] = f"{note}. {known}" if known else note
    return found


def identity(experiment: Experiment, evaluator: Evaluator) -> dict[str, Any]:
    """What figures depend on beside the checkpoint; None is as if it were not there."""
    options = experiment.eval
    return {
        "norm_stats": "running" if options.running else "batch",
        "dropout": options.dropout,
        "ema": options.ema,
        "data": experiment.eval_frames.fingerprint,
        "seeds": options.seeds if options.seeds > 1 else None,
        "judges": evaluator.measures.identity or None,
    }


def eval_folder(
    workdir: AnyPath, experiment: Experiment, evaluator: Evaluator, step: int
) -> AnyPath:
    """Where an evaluation's files are: `eval/SPLIT/STEP`, or `STEP_2` and so on.

    What other data or other options gave at the same step is never overwritten, nor are figures
    that this evaluation has not.
    """
    return peers.gather(_free_folder(workdir, experiment, evaluator, step))[0]


def _free_folder(
    workdir: AnyPath, experiment: Experiment, evaluator: Evaluator, step: int
) -> AnyPath:
    first = workdir / "eval" / experiment.eval.split / str(step)
    wanted, figures = identity(experiment, evaluator), set(evaluator.measures.better)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{step}_{number}")
        try:
            found = json.loads((folder / "metrics.json").read_text())
        except (OSError, ValueError):  # not complete: nothing is lost
            return folder
        same = {key: found.get(key) for key in wanted} == wanted
        if same and figures.issuperset(found.get("better", ())):
            return folder
    raise AssertionError("unreachable")


def run(experiment: Experiment, workdir: AnyPath, console: Console) -> None:
    """Restores the newest sound checkpoint's generator, evaluates it and writes the pictures.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: there is no checkpoint yet.
    """
    manager = checkpoint.open_reader(workdir)
    like = {"gen": checkpoint.split(experiment.abstract_state())["gen"]}
    restored = manager and checkpoint.restore(manager, like, console.warn)
    if restored is None:
        raise ConfigError([f"--workdir: {workdir} holds no checkpoint yet; train first"])
    console.note(f"restored the checkpoint of step {restored.step}")
    evaluator = Evaluator(experiment, warn=console.warn)
    result = write(workdir, experiment, evaluator, restored.step, restored.items["gen"])
    show(console, experiment, evaluator, restored.step, result)
    folder = eval_folder(workdir, experiment, evaluator, restored.step)
    console.done(
        [("pictures", str(folder / "index.html")), ("metrics", str(folder / "metrics.json"))]
    )
