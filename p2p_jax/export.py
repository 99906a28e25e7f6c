"""A trained generator as files that need no p2p_jax: to serve, to publish, to keep.

    python -m p2p_jax.export --workdir=DIR --output=FOLDER [--format=stablehlo,safetensors,onnx]

    stablehlo     model.stablehlo: a program with its weights, for JAX on CPU, CUDA and TPU
    onnx          model.onnx: the same for onnxruntime and its like
    safetensors   model.safetensors, config.json, export.json: weights by path

Without --format these are stablehlo and safetensors.

The programs take images as they are stored, as uint8 [batch, height, width, channels], and give
them so: what the task makes of them before and after the network is inside. They compute in
float32, whatever was trained in. README.md, a model card, says what they take and give, and how to
call them. Each file is read back and run beside what it was made of first. Further flags:

    --step=N              the checkpoint, instead of the newest
    --ema                 the averaged weights             (as eval.ema of the run, if not given)
    --norm_stats=NAME     batch: each image's own statistics, or running  (as eval.norm_stats)
    --dropout=True|False  with dropout and noise, from seeds that are an input; not in ONNX  (False)
    --size=H,W            for images of this size alone; otherwise any that fit the network

Python: `export.load(FOLDER)` makes a call of the weights, `export.load_safetensors(FOLDER)` the
generator itself. Nothing is overwritten. Exit codes: 0 done, 2 bad input, 1 a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from p2p_jax import mesh
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError
from p2p_jax.console import Console
from p2p_jax.data import SOURCES
from p2p_jax.exporting import formats
from p2p_jax.exporting.folder import write
from p2p_jax.exporting.tensors import load_safetensors
from p2p_jax.exporting.translation import translation
from p2p_jax.flags import run_folder, saved_config
from p2p_jax.images import Size
from p2p_jax.inference import restore
from p2p_jax.networks import make_gan
from p2p_jax.storage import AnyPath
from p2p_jax.words import listed, split

__all__ = ["load", "load_safetensors", "main", "translation"]

FLAGS = ("workdir", "output", "format", "step", "ema", "dropout", "norm_stats", "size", "help")


def load(folder: str | Path, dropout: bool = False) -> Callable[..., Any]:
    """Images to images, compiled for each shape, from an exported folder's safetensors.

    Args:
      folder: as `main` wrote it.
      dropout: whether dropout and noise are on; the call then takes seeds, uint32 `[b]`, as well.

    Raises:
      ConfigError: it is not such a folder; all that is wrong.
    """
    return jax.jit(translation(load_safetensors(folder), dropout).fn)


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv), "interrupted; nothing was written")


class Job(NamedTuple):
    """What is asked for; `ema` and `running` are None where the run's config decides."""

    workdir: AnyPath
    output: Path
    formats: tuple[str, ...]
    step: int | None
    ema: bool | None
    running: bool | None
    dropout: bool
    size: Size | None
    config: Config


def _run(argv: Sequence[str]) -> int:
    console = Console()
    job = _parse(argv)
    mesh.use_precision(job.config.train.precision)
    inference = restore(
        job.workdir, step=job.step, ema=job.ema, running=job.running, warn=console.warn
    )
    # What is exported computes in float32, with numbers of 32 bits.
    stored = jax.device_get((inference.params, inference.stats))
    inference = inference._replace(params=stored[0], stats=stored[1])
    mesh.use_precision("float32")
    precision = job.config.train.precision
    if precision != "float32" and job.formats != ("safetensors",):
        console.note(f"computes in float32; the run had train.precision={precision}")
    exported = translation(inference, job.dropout, job.size)
    rows = write(job.output, job.formats, inference, exported, job.workdir, console.note)
    console.done([("step", str(inference.step)), *rows, ("written", str(job.output))])
    return 0


# --- what is asked for ---------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> Job:
    """The flags, judged.

    Raises:
      ConfigError: all that is wrong with them.
    """
    words = ["--ema=True" if word == "--ema" else word for word in argv]
    flags, _, problems = split(words, FLAGS, ("help",))
    for name, example in (("workdir", "runs/facades"), ("output", "exported")):
        if not flags.get(name):
            problems.append(f"--{name}: needed, as in --{name}={example}")
    chosen = listed("format", flags.get("format", "stablehlo,safetensors"), tuple(formats.NEEDS),
                    problems)  # fmt: skip
    if not chosen and not problems:
        problems.append(f"--format: names none of {', '.join(formats.NEEDS)}")
    problems += [text for name in chosen if name in formats.NEEDS for text in formats.lacking(name)]
    output = Path(flags.get("output", ""))
    if flags.get("output") and output.exists() and (output.is_file() or any(output.iterdir())):
        problems.append(f"--output: {output} exists already; use another name")
    step = flags.get("step")
    if step is not None and not (step.isascii() and step.isdigit()):
        problems.append(f"--step: {step!r} is not a step, as in --step=20000")
    statistics = flags.get("norm_stats")
    if statistics not in (None, "batch", "running"):
        problems.append(f"--norm_stats: {statistics!r} is not one of batch, running")
    ema, dropout = (_truth(name, flags.get(name), problems) for name in ("ema", "dropout"))
    if dropout and "onnx" in chosen:
        problems.append("--dropout: ONNX would draw other numbers; leave one of the two out")
    size = _size(flags.get("size"), problems)
    workdir, config = Path(), None
    if flags.get("workdir"):
        workdir, wrong = run_folder("--workdir", flags["workdir"])
        problems += wrong
        try:
            config = None if wrong else saved_config(workdir)
        except ConfigError as error:
            problems += error.problems
    if config is not None:
        problems += _unfit(config, ema, statistics, size)
    if problems or config is None:
        raise ConfigError(problems)
    running = None if statistics is None else statistics == "running"
    return Job(workdir, output, chosen, None if step is None else int(step), ema, running,
               bool(dropout), size, config)  # fmt: skip


def _truth(name: str, text: str | None, problems: list[str]) -> bool | None:
    found = {None: None, "true": True, "false": False}
    key = text if text is None else text.lower()
    if key not in found:
        problems.append(f"--{name}: {text!r} is not True or False")
    return found.get(key)


def _size(text: str | None, problems: list[str]) -> Size | None:
    if text is None:
        return None
    try:
        h, w = map(int, text.replace("x", ",").split(","))
        return h, w
    except ValueError:
        problems.append(f"--size: {text!r} is not height,width, as in --size=256,256")
        return None


def _unfit(
    config: Config, ema: bool | None, statistics: str | None, size: Size | None
) -> list[str]:
    """What the run does not allow."""
    problems, data, generator = [], config.data, config.model.generator
    if ema and not config.train.ema_decay:
        problems.append("--ema: the run keeps no averaged weights: its train.ema_decay is 0")
    if statistics == "running" and generator.norm != "batch":
        problems.append(f"--norm_stats: running statistics are of batch norm, not {generator.norm}")
    task = SOURCES[data.source].task if data.task == "auto" else data.task
    if task == "inpaint" and size is None:
        h, w = data.crop_size
        problems.append(f"--size: needed for the task inpaint, as in --size={h},{w}")
    network: Any = make_gan(config).generator
    step, least = network.size_step, getattr(network, "min_size", 1)
    if size and any(side % step or side < max(least, step) for side in size):
        problems.append(
            f"--size: {size[0]},{size[1]} does not fit the network: multiples of {step} "
            f"from {max(least, step)} on do"
        )
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
