"""The part `start`: from the start of a process to its first step, and from a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from p2p_jax import checkpoint, report
from p2p_jax.bench.data import generated, quiet
from p2p_jax.bench.loop import SMALL, few_evaluated
from p2p_jax.bench.rows import Options, Row, row
from p2p_jax.build import build
from p2p_jax.config import Config, merge
from p2p_jax.data import SOURCES
from p2p_jax.process import Failure
from p2p_jax.validate import data_options

_LOOK_SECONDS = 0.01  # between looks at what a run has logged


def start(options: Options) -> list[Row]:
    """Seconds of `python -m p2p_jax.main` until its first step is done, each in its own process.

    They are one after another: with nothing compiled; with what the first compiled; and resumed
    from the checkpoint of the second. Data is prepared before. Evaluation and pictures of step 0
    are in the first two, as in any fresh run. Last, of restoring that checkpoint alone.

    Raises:
      Failure: a run failed; has the last of what it printed.
    """
    config = options.config
    if config is None:
        config = merge(generated(options, "few", 32), SMALL)
    every = {f"train.{name}_every": 1 for name in ("log", "save")}
    config = merge(config, {"train.steps": 1, **every, **few_evaluated(config)})
    # Prepares it; nothing here may take hold of a device that the runs need.
    SOURCES[config.data.source].open(data_options(config), quiet(options))
    compiled = options.folder / "compiled"
    runs = (
        ("nothing compiled", "cold", 1),
        ("compiled before", "warm", 1),
        ("resumed, compiled before", "warm", 2),
    )
    rows = []
    for form, name, steps in runs:
        options.log(f"start: {form}")
        seconds = first_step(config, options.folder / f"start_{name}", steps, compiled)
        rows.append(_row(config, form, seconds))
    return [*rows, _row(config, "restore alone", _restored(config, options.folder / "start_warm"))]


def _row(config: Config, form: str, seconds: float) -> Row:
    return row(
        "start",
        form,
        precision=config.train.precision,
        batch_size=config.train.batch_size,
        ms=1e3 * seconds,
        seconds=seconds,
    )


def first_step(config: Config, workdir: Path, steps: int, compiled: Path) -> float:
    """Seconds from the start of a process that trains to its line of step `steps`.

    Args:
      config: which logs every step.
      workdir: of the run; goes on where its checkpoint stands, if there is one.
      steps: of the whole run.
      compiled: the folder where JAX keeps what it compiles.

    Raises:
      Failure: it ended otherwise.
    """
    if not (workdir / "config.json").exists():  # else it goes on
        report.write_json(workdir / "config.json", config.to_dict())
    argv = [f"--workdir={workdir}", f"--config.train.steps={steps}"]
    root = str(Path(__file__).parents[2])
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    printed = workdir.with_suffix(".txt")
    with printed.open("w") as file:
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "p2p_jax.main", *argv],
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            log = workdir / "metrics.jsonl"
            while not (done := _logged(log, steps)) and process.poll() is None:
                time.sleep(_LOOK_SECONDS)
            seconds = time.monotonic() - begin
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    if code or not (done or _logged(log, steps)):
        last = "\n".join(printed.read_text().splitlines()[-5:])
        raise Failure(f"--parts=start: a run ended with exit code {code}: {last}")
    return seconds


def _logged(log: Path, step: int) -> bool:
    """Whether a log tells of the end of a step; its last line may be half written."""
    if not log.exists():
        return False
    for line in log.read_text().splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            return False
        if told["split"] == "train" and told["step"] >= step:
            return True
    return False


def _restored(config: Config, workdir: Path) -> float:
    """Seconds of reading the newest checkpoint of a run onto the devices."""
    experiment = build(config, lambda line: None)
    manager = checkpoint.open_manager(workdir, config.train.keep, lambda: None)
    try:
        like = checkpoint.split(experiment.abstract_state())
        begin = time.monotonic()
        restored = checkpoint.restore(manager, like, lambda line: None)
        assert restored is not None
        return time.monotonic() - begin
    finally:
        checkpoint.close(manager)
