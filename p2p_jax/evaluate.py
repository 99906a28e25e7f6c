"""Evaluation: metrics and pictures from a generator's state."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import checkpoint, mesh, page, report
from p2p_jax.build import Experiment
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.data import Pair, PairSource, eval_batches
from p2p_jax.metrics import METRICS
from p2p_jax.step import make_sample

Tree = Any
BASELINE = "best constant image"


class Evaluation(NamedTuple):
    """Results over a whole split.

    Attributes:
      means: metric names, as `eval/l1`, to the mean over examples.
      examples: for each example its `name` and metrics.
    """

    means: dict[str, float]
    examples: list[dict[str, Any]]


class Translated(NamedTuple):
    """One example, uint8 `[h, w, c]` each."""

    name: str
    source: np.ndarray
    fake: np.ndarray
    target: np.ndarray


class _Chosen:
    """Some examples of a source."""

    def __init__(self, source: PairSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        self.names = [source.names[i] for i in indices]
        self.fingerprint, self.size = source.fingerprint, source.size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Pair:
        return self._source[self._indices[i]]


class Evaluator:
    """Evaluates generators of one experiment; compiles once, at first use.

    The result of an example depends on the generator, the run's seed and the example's name alone:
    not on its batch, its place, or the number of devices.

    Attributes:
      baseline: metrics of the best constant image, known after the first evaluation.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.baseline: dict[str, float] = {}
        options = experiment.eval
        gan = experiment.gan if options.running else experiment.eval_gan
        self._sample = make_sample(gan, experiment.mesh, options.running, options.dropout)
        self._measure = jax.jit(
            lambda fake, target: {
                name: metric.fn(fake.astype(jnp.float32) / 255, target.astype(jnp.float32) / 255)
                for name, metric in options.metrics
            }
        )
        key = jax.random.key(experiment.seed, impl="threefry2x32")
        self._key = jax.device_put(key, mesh.replicated(experiment.mesh))
        source = experiment.eval_source
        count = min(options.sample_count, len(source))
        self._shown = _Chosen(
            source, [int(i) for i in np.linspace(0, len(source) - 1, count).round()]
        )

    def __call__(self, gen: Tree, folder: Path | None = None) -> Evaluation:
        """Evaluates the split.

        Args:
          gen: the checkpoint item `gen`: params, stats and ema.
          folder: where to write all pictures, or None for none.
        """
        examples, targets = [], []
        for images, metrics in self._translate(gen, self._experiment.eval_source):
            examples.append({"name": images.name, **metrics})
            if not self.baseline:
                targets.append(images.target)
            if folder is not None:
                for kind, picture in zip(("source", "images", "target"), images[1:], strict=True):
                    report.save_png(folder / kind / f"{images.name}.png", picture)
        self.baseline = self.baseline or self._measure_baseline(targets)
        return Evaluation(_means(examples), examples)

    def grid(self, gen: Tree) -> np.ndarray:
        """The picture of the fixed pairs, uint8: a row each of source, fake and target."""
        rows = [images[1:] for images, _ in self._translate(gen, self._shown)]
        return report.grid(rows)

    def _measure_baseline(self, targets: list[np.ndarray]) -> dict[str, float]:
        """Metrics of the one image that, whatever the source, has the least L1: the median."""
        # Row by row, as the median copies what it is given.
        rows = [np.median([t[y] for t in targets], axis=0) for y in range(len(targets[0]))]
        constant = np.stack(rows).astype(np.uint8)
        examples = []
        for target in targets:
            examples += _rows(self._measure(constant[None], target[None]))
        return _means(examples)

    def _batches(self, source: PairSource):
        options = self._experiment.eval
        return eval_batches(source, options.batch_size, options.threads)

    def _translate(
        self, gen: Tree, source: PairSource
    ) -> Iterator[tuple[Translated, dict[str, float]]]:
        grid = self._experiment.mesh
        params = gen["ema"] if self._experiment.eval.ema else gen["params"]
        for indices, batch in self._batches(source):
            names = [source.names[i] for i in indices]
            identities = np.zeros(len(batch.source), np.uint32)
            identities[: len(names)] = [zlib.crc32(name.encode()) for name in names]
            inputs = mesh.put_split(grid, (batch.source, batch.target, identities), 0)
            images = self._sample(params, gen["stats"], self._key, *inputs)
            rows = _rows(self._measure(images[1], images[2]))
            source_image, fake, target = (np.asarray(x) for x in images)
            for i, name in enumerate(names):
                yield Translated(name, source_image[i], fake[i], target[i]), rows[i]


def _rows(values: dict[str, Any]) -> list[dict[str, float]]:
    columns = {f"eval/{name}": np.asarray(v, np.float64) for name, v in values.items()}
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
    workdir: Path, experiment: Experiment, evaluator: Evaluator, step: int, gen: Tree
) -> Evaluation:
    """Evaluates with all pictures into `eval/SPLIT/STEP/`, and returns the results."""
    folder = eval_folder(workdir, experiment, step)
    result = evaluator(gen, folder)
    options = experiment.eval
    summary = {
        "step": step,
        "split": options.split,
        "examples": len(result.examples),
        "norm_stats": "running" if options.running else "batch",
        "dropout": options.dropout,
        "ema": options.ema,
        "better": {f"eval/{name}": METRICS[name].mode for name, _ in options.metrics},
        **result.means,
        "baseline": evaluator.baseline,
    }
    report.write_json(folder / "metrics.json", {**summary, "per_example": result.examples})
    page.write_eval_page(
        folder,
        title=f"{options.split} at step {step}",
        metrics=result.means,
        baseline=evaluator.baseline,
        baseline_name=BASELINE,
        rows=result.examples,
    )
    return result


def eval_folder(workdir: Path, experiment: Experiment, step: int) -> Path:
    """Where an evaluation's files are."""
    return workdir / "eval" / experiment.eval.split / str(step)


def run(experiment: Experiment, workdir: Path, console: Console) -> None:
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
