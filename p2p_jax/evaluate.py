"""Evaluation: metrics and pictures from a generator's state."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import checkpoint, mesh, page, peers, pictures, report
from p2p_jax.build import Experiment
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.data import eval_batches
from p2p_jax.gallery import Gallery
from p2p_jax.metrics import METRICS
from p2p_jax.step import Sampled, make_sample
from p2p_jax.storage import AnyPath

Tree = Any
BASELINE = "best constant image"


class Interrupted(Exception):
    """An evaluation was left at the end of a batch, as a signal wished."""


class Evaluation(NamedTuple):
    """Results over a whole split.

    Attributes:
      means: metric names, as `eval/l1`, to the mean over examples.
      examples: for each example its `name` and metrics.
    """

    means: dict[str, float]
    examples: list[dict[str, Any]]


class Evaluator:
    """Evaluates generators of one experiment; compiles once, at first use.

    The result of an example depends on the generator, the run's seed and the example's name alone:
    not on its batch, its place, or the number of devices.

    Of several processes each reads, translates and writes its part of each batch, and all know the
    results.

    Attributes:
      baseline: metrics of the best constant image, known after the first evaluation.
    """

    def __init__(
        self, experiment: Experiment, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Prepares for an experiment; `stopping`, asked after each batch, interrupts."""
        self._experiment, self._stopping = experiment, stopping
        self.baseline: dict[str, float] = {}
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
        self._measure = jax.jit(
            lambda fake, target: {
                name: metric.fn(fake.astype(jnp.float32) / 255, target.astype(jnp.float32) / 255)
                for name, metric in options.metrics
            }
        )
        key = jax.random.key(experiment.seed, impl="threefry2x32")
        self._key = mesh.put_key(experiment.mesh, key)
        self._frames = experiment.eval_frames
        count = min(options.sample_count, len(self._frames))
        self._shown = [int(i) for i in np.linspace(0, len(self._frames) - 1, count).round()]

    def __call__(self, gen: Tree, folder: AnyPath | None = None) -> Evaluation:
        """Evaluates the split.

        Args:
          gen: the checkpoint item `gen`: params, stats and ema.
          folder: where to write all pictures, or None for none.

        Raises:
          Interrupted: as `stopping` told.
        """
        examples: dict[int, dict[str, Any]] = {}
        targets: list[np.ndarray] = []
        for i, images, metrics in self._translate(gen):
            examples[i] = {"name": self._frames.names[i], **metrics}
            if not self.baseline and images.target is not None:
                targets.append(self._gallery.measured(i, np.asarray(images.target)))
            if folder is not None:
                self._gallery.write(folder, i, images)
        if not self.baseline:
            everyone = [target for part in peers.gather(targets) for target in part]
            self.baseline = self._measure_baseline(everyone)
        examples = _merged(peers.gather(examples))
        rows = [examples[i] for i in sorted(examples)]
        return Evaluation(_means(rows), rows)

    def grid(self, gen: Tree) -> np.ndarray:
        """The picture of the fixed pairs, uint8: a row each of source, fake and target."""
        rows = {
            i: [pictures.as_shown(picture) for picture in self._gallery.shown(i, images)]
            for i, images, _ in self._translate(gen, self._shown)
        }
        rows = _merged(peers.gather(rows))
        return report.grid([rows[i] for i in sorted(rows)])

    def _measure_baseline(self, targets: list[np.ndarray]) -> dict[str, float]:
        """Metrics of the one image that, whatever the source, has the least L1: the median.

        There is none where targets differ in size.
        """
        if len({target.shape for target in targets}) != 1:
            return {}
        # Row by row, as the median copies what it is given.
        rows = [np.median([t[y] for t in targets], axis=0) for y in range(len(targets[0]))]
        constant = np.stack(rows).astype(np.uint8)
        examples = []
        for target in targets:
            examples += _rows(self._measure(constant[None], target[None]))
        return _means(examples)

    def _translate(
        self, gen: Tree, chosen: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Sampled, dict[str, float]]]:
        """Index, images and metrics of this process's part of all pairs or the chosen ones."""
        options, frames, grid = self._experiment.eval, self._frames, self._experiment.mesh
        params = gen["ema"] if options.ema else gen["params"]
        axes = grid.axis_names
        slots = mesh.batch_slots(grid, options.batch_size, axes)
        for everyone, indices, batch in eval_batches(
            frames, options.batch_size, options.threads, chosen, slots
        ):
            identities = np.zeros(len(batch.source), np.uint32)
            identities[: len(indices)] = [zlib.crc32(frames.names[i].encode()) for i in indices]
            pair = (batch.source, batch.target, identities)
            inputs = mesh.put_split(grid, pair, 0, axes)
            sampled = self._sample(params, gen["stats"], self._key, *inputs)
            metrics = self._metrics(sampled, everyone, indices)
            images = jax.tree.map(mesh.local_rows, sampled)
            for row, i in enumerate(indices):
                yield i, jax.tree.map(lambda x, row=row: x[row], images), metrics[row]
            if self._stopping():
                raise Interrupted

    def _metrics(
        self, sampled: Sampled, everyone: Sequence[int], indices: Sequence[int]
    ) -> list[dict[str, float]]:
        """Of each of our examples, on what of the canvas is the image."""
        if sampled.target is None:
            return [{} for _ in indices]
        whole = sampled.fake.shape[1:3]
        if all(self._frames.content(i) == whole for i in everyone):
            return _rows(self._measure(sampled.fake, sampled.target))[: len(indices)]
        images = [mesh.local_rows(x) for x in (sampled.fake, sampled.target)]
        rows = []
        for row, i in enumerate(indices):
            rows += _rows(self._measure(*(self._gallery.measured(i, x[row])[None] for x in images)))
        return rows


def _merged(parts: Sequence[dict[int, Any]]) -> dict[int, Any]:
    return {i: row for part in parts for i, row in part.items()}


def _rows(values: dict[str, Any]) -> list[dict[str, float]]:
    columns = {f"eval/{name}": mesh.local_rows(v).astype(np.float64) for name, v in values.items()}
    count = len(next(iter(columns.values())))
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(count)]


def _means(examples: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in examples[0] if name != "name"]
    return {name: float(np.mean([example[name] for example in examples])) for name in names}


def show(console: Console, experiment: Experiment, evaluator: Evaluator, step: int,
         result: Evaluation) -> None:  # fmt: skip
    """Prints an evaluation with the best constant image's figures beside it."""
    console.evaluation(
        step,
        experiment.eval.split,
        len(result.examples),
        result.means,
        evaluator.baseline,
        BASELINE,
    )


def write(
    workdir: AnyPath, experiment: Experiment, evaluator: Evaluator, step: int, gen: Tree
) -> Evaluation:
    """Evaluates with all pictures into `eval/SPLIT/STEP/`, and returns the results."""
    folder = eval_folder(workdir, experiment, step)
    result = evaluator(gen, folder)
    options = experiment.eval
    summary = {
        "step": step,
        "split": options.split,
        "examples": len(result.examples),
        **_identity(experiment),
        "better": {f"eval/{name}": METRICS[name].mode for name, _ in options.metrics},
        **result.means,
        "baseline": evaluator.baseline,
    }
    if not peers.first():
        return result
    report.write_json(folder / "metrics.json", {**summary, "per_example": result.examples})
    page.write_eval_page(
        folder,
        title=f"{options.split} at step {step}",
        metrics=result.means,
        baseline=evaluator.baseline,
        baseline_name=BASELINE,
        rows=result.examples,
        targets=bool(experiment.eval_frames.forms[1].channels),
    )
    return result


def _identity(experiment: Experiment) -> dict[str, Any]:
    """What an evaluation depends on beside the checkpoint."""
    options = experiment.eval
    return {
        "norm_stats": "running" if options.running else "batch",
        "dropout": options.dropout,
        "ema": options.ema,
        "data": experiment.eval_frames.fingerprint,
    }


def eval_folder(workdir: AnyPath, experiment: Experiment, step: int) -> AnyPath:
    """Where an evaluation's files are: `eval/SPLIT/STEP`, or `STEP_2` and so on.

    What other data or other options gave at the same step is never overwritten.
    """
    return peers.gather(_free_folder(workdir, experiment, step))[0]


def _free_folder(workdir: AnyPath, experiment: Experiment, step: int) -> AnyPath:
    first = workdir / "eval" / experiment.eval.split / str(step)
    identity = _identity(experiment)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{step}_{number}")
        try:
            found = json.loads((folder / "metrics.json").read_text())
        except (OSError, ValueError):  # not complete: nothing is lost
            return folder
        if {key: found.get(key) for key in identity} == identity:
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
    evaluator = Evaluator(experiment)
    result = write(workdir, experiment, evaluator, restored.step, restored.items["gen"])
    show(console, experiment, evaluator, restored.step, result)
    folder = eval_folder(workdir, experiment, restored.step)
    console.done(
        [("pictures", str(folder / "index.html")), ("metrics", str(folder / "metrics.json"))]
    )
