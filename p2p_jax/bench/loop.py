"""The part `loop`: `main`'s own loop, with its logging and saves, against the step alone."""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2p_jax import report, train
from p2p_jax.bench import running
from p2p_jax.bench.data import generated, quiet
from p2p_jax.bench.rows import Options, Row, row
from p2p_jax.bench.subject import of_experiment
from p2p_jax.build import Experiment, build
from p2p_jax.config import Config, merge
from p2p_jax.console import Console

LINES, SAVES = 16, 4  # of the log, and checkpoints, in a run
_WARM = LINES // SAVES  # lines of the time in which caches fill
WAYS = (("none", 8), ("host", 1), ("host", 8), ("device", 1), ("device", 8))
SMALL = {
    "data.load_size": (72, 72),
    "data.crop_size": (64, 64),
    "model.generator.depth": 4,
    "model.generator.base_features": 16,
    "model.generator.dropout": (1,),
    "model.discriminator.layers": 2,
    "model.discriminator.base_features": 16,
    "train.batch_size": 4,
    "eval.examples": 1,
    "eval.sample_count": 1,
}


def loop(options: Options) -> list[Row]:
    """Training with each cache, with one and with eight steps a dispatch.

    Each run has the step alone measured before and after it, which the ratio is to. Rates are of a
    run's last three quarters, two of its four saves included.
    """
    config = options.config
    if config is None:
        config = merge(generated(options, "few", 32), SMALL)
    steps = options.steps // LINES * LINES
    config = merge(config, _fixed(config, steps))
    alone: dict[int, tuple[Callable[[], float], list[float]]] = {}
    found = []
    for cache, dispatch in WAYS:
        options.log(f"loop: training {steps} steps, cache {cache}, {dispatch} a dispatch")
        keys = {"data.cache": cache, "train.steps_per_dispatch": dispatch}
        experiment = build(merge(config, keys), quiet(options))
        if dispatch not in alone:
            alone[dispatch] = _step(experiment, config, dispatch, options.seconds), []
        measure, rates = alone[dispatch]
        rates.append(measure())
        lines = _trained(experiment, options.folder / f"loop_{cache}_{dispatch}")
        rates.append(measure())
        found.append((cache, dispatch, experiment, lines[_WARM:]))
    rows = []
    for cache, dispatch, experiment, lines in found:
        rate, waited = steady(lines)
        step = statistics.median(alone[dispatch][1])
        rows.append(
            row(
                "loop",
                f"cache {cache}, {dispatch} a dispatch",
                precision=config.train.precision,
                batch_size=experiment.train.batch_size,
                images_per_sec=rate,
                ratio=rate / step,
                ratio_step=rate / step,
                step_images_per_sec=step,
                data_wait_frac=waited,
                steps=steps,
                steps_per_dispatch=dispatch,
                devices=experiment.mesh.size,
            )
        )
    return rows


def _fixed(config: Config, steps: int) -> dict[str, Any]:
    """What a run of so many steps must have, to be measured."""
    # All pairs are to be seen while the caches fill.
    most = max(1, steps // SAVES * config.train.batch_size)
    return {
        "data.max_examples": min(config.data.max_examples or most, most),
        "train.steps": steps,
        "train.log_every": steps // LINES,
        "train.save_every": steps // SAVES,
        "train.eval_every": steps,
        "train.sample_every": steps,
        **few_evaluated(config),
    }


def few_evaluated(config: Config) -> dict[str, Any]:
    """So few images to evaluate that a run spends its time elsewhere."""
    return {"eval.examples": min(config.eval.examples or 4, 4)}


def _step(
    experiment: Experiment, config: Config, dispatch: int, seconds: float
) -> Callable[[], float]:
    """What measures the images per second of the step alone, of the same experiment."""
    subject = of_experiment(experiment, config)
    batch = experiment.train.batch_size
    ready = running.Training(subject, experiment.gan, experiment.mesh, batch, dispatch)
    count = running.enough(ready.steps, seconds)
    return lambda: batch / running.timed(ready.steps, count)


def steady(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Images per second over all these lines of a log, and the share of the time that waited.

    Lines are of equally many images; one with a save in it counts as much as any other.
    """
    seconds = [1 / line["images_per_sec"] for line in lines]
    waited = [line["data_wait_frac"] * time for line, time in zip(lines, seconds, strict=True)]
    return len(lines) / sum(seconds), sum(waited) / sum(seconds)


def _trained(experiment: Experiment, workdir: Path) -> list[dict[str, Any]]:
    """The lines that a training leaves in its log; it prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        if train.train(experiment, workdir, Console(), {}) != train.DONE:
            raise KeyboardInterrupt  # what was measured so far would be of another length
    return [line for line in report.read(workdir) if line["split"] == "train"]
