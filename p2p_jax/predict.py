"""Translates pictures with a trained run; its data is not needed.

    python -m p2p_jax.predict --workdir=DIR --input=FILE|FOLDER|PATTERN|- --output=FOLDER|FILE|-

Each result has the name of its input, as NAME.png for NAME.jpg, below the folders that it lay in,
and its size. It is of the kind that targets were in training: 8 or 16 bits, any channels; classes
are indices into a palette of their colours. Further flags:

    --step=N              the checkpoint, instead of the newest
    --ema                 the averaged weights             (as eval.ema of the run, if not given)
    --dropout=True|False  with dropout and noise, or not   (as eval.dropout)
    --norm_stats=NAME     batch: each image's own statistics, or running  (as eval.norm_stats)
    --seed=N              of dropout and noise             (the run's)
    --size=H,W            resize to this first, and back; otherwise the native size is translated
    --tile=H,W            what is larger, in tiles that fade into each other
    --overlap=N           of tiles; by default what makes them exact, or a quarter
    --batch_size=N        images of one size at once       (one a device)
    --devices=N           that share a batch               (all)
    --alpha=NAME          drop, or lay transparent pictures over white or black (as data.alpha)
    --suffix=.png         or .tiff or .npy, of the results
    --overwrite           results that exist already

A folder is taken with all below it. `-` is standard input or output; what is told goes to standard
error then. A size that the network cannot take is continued to the bottom and right by its mirror
image, no farther than needed, and cut off again; where the network normalises by statistics of the
image, that border counts. The same picture, weights and seed give the same result, whatever else is
translated: dropout is drawn from the seed and the picture's own pixels, in tiles from their place
as well. With running statistics (or no norm) and no dropout, tiles that overlap enough give what
the whole would; otherwise the difference is measured on the first picture and told.

All inputs are read before anything is computed; if one cannot be used, all such are named and
nothing is written. Exit codes: 0 done, 2 bad input, 1 a failure.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence

import jax

from p2p_jax import mesh
from p2p_jax.command import finish
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.flags import run_folder, saved_config
from p2p_jax.inputs import STREAM, WRITTEN, Found, find
from p2p_jax.jobs import Checked, Job, checked, image_of, is_tiled, translate
from p2p_jax.process import Failure
from p2p_jax.tiles import Size
from p2p_jax.translator import Translator, load
from p2p_jax.words import number, split

SWITCHES = ("overwrite", "help")
FLAGS = (
    *("workdir", "input", "output", "step", "ema", "dropout", "norm_stats", "seed", "size"),
    *("tile", "overlap", "batch_size", "devices", "alpha", "suffix", *SWITCHES),
)
_MANY = 4  # sizes, each of which takes a program


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv), "interrupted; what was written is whole")


def _run(argv: Sequence[str]) -> int:
    words = ["--ema=True" if word == "--ema" else word for word in argv]
    flags, _, problems = split(words, FLAGS, SWITCHES)
    out = sys.stdout
    with contextlib.ExitStack() as held:
        if flags.get("output") == STREAM:
            held.enter_context(contextlib.redirect_stdout(sys.stderr))
        console = Console()
        held.callback(console.close)
        job = _parse(flags, problems)
        for note in job.found.notes:
            console.note(note)
        translator = load(job.workdir, warn=console.warn, **job.options)
        work = checked(job, translator, console)
        _tell(job, translator, work, console)
        done = translate(job, translator, work, console, out)
        where = "standard output" if job.output == STREAM else job.output
        console.done([("translated", done.summary()), ("written", where)])
    return 0


# --- what is asked for ---------------------------------------------------------------------------


def _parse(flags: dict[str, str], problems: list[str]) -> Job:
    """The flags, judged.

    Raises:
      ConfigError: all that is wrong with them.
    """
    for name, example in (("workdir", "runs/facades"), ("input", "photos"), ("output", "made")):
        if not flags.get(name):
            problems.append(f"--{name}: needed, as in --{name}={example}")
    workdir, wrong = run_folder("--workdir", flags.get("workdir", ""))
    problems += wrong
    if flags.get("workdir") and not wrong:
        try:
            mesh.use_precision(saved_config(workdir).train.precision)
        except ConfigError as error:
            problems += error.problems
    found = Found([], [], [])
    if flags.get("input"):
        found = find(flags["input"], flags.get("output", ""))
        problems += found.problems
    size, tile = (_size(name, flags, problems) for name in ("size", "tile"))
    if size and tile:
        problems.append("--size: means nothing beside --tile; use one of them")
    if "overlap" in flags and not tile:
        problems.append("--overlap: means nothing without --tile")
    suffix = flags.get("suffix", "")
    if suffix and suffix not in WRITTEN:
        problems.append(f"--suffix: {suffix!r} is not one of {', '.join(WRITTEN)}")
    overlap = _whole("overlap", flags, 0, problems)
    options = {
        "step": _whole("step", flags, 0, problems),
        "seed": _whole("seed", flags, 0, problems),
        "ema": _truth("ema", flags, problems),
        "dropout": _truth("dropout", flags, problems),
        "norm_stats": flags.get("norm_stats"),
        "alpha": flags.get("alpha"),
        **_devices(flags, len(found.items) if not tile else 0, problems),
    }
    if problems:
        raise ConfigError(problems)
    return Job(
        workdir, found, flags["output"], options, size, tile, overlap, suffix, "overwrite" in flags
    )


def _devices(flags: dict[str, str], images: int, problems: list[str]) -> dict[str, int]:
    """Devices and batch size: one image a device, on as many as there is work for."""
    there = len(jax.devices())
    batch = _whole("batch_size", flags, 1, problems)
    devices = _whole("devices", flags, 0, problems)
    if devices is None:
        devices = math.gcd(batch, there) if batch else min(there, images or there)
    return {"devices": devices, "batch_size": batch or devices or there}


def _whole(name: str, flags: dict[str, str], least: int, problems: list[str]) -> int | None:
    text = flags.get(name)
    if text is None or text == "0" == str(least):
        return None if text is None else 0
    return int(number(name, text, 1, problems))


def _truth(name: str, flags: dict[str, str], problems: list[str]) -> bool | None:
    text = flags.get(name)
    values = {"true": True, "1": True, "false": False, "0": False}
    if text is not None and text.lower() not in values:
        problems.append(f"--{name}: {text!r} is not True or False")
    return None if text is None else values.get(text.lower())


def _size(name: str, flags: dict[str, str], problems: list[str]) -> Size | None:
    text = flags.get(name)
    if text is None:
        return None
    sides = text.split(",")
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) == 2 and all(s.isascii() and s.isdigit() and 0 < int(s) < 2**20 for s in sides):
        return int(sides[0]), int(sides[1])
    problems.append(f"--{name}: {text!r} is not height and width in pixels, as in 512,512")
    return None


# --- what is told ---------------------------------------------------------------------------------


def _tell(job: Job, translator: Translator, work: list[Checked], console: Console) -> None:
    """What is about to happen; of tiles, how far they are from the whole."""
    inference, (h, w) = translator.inference, translator.crop_size
    sizes = {translator.canvases.of(job.size or one.size) for one in work}
    tiled = [one for one in work if is_tiled(job, translator, one)]
    console.header(
        [
            ("translator", f"{job.workdir}, step {translator.step}, trained at {h}x{w}"),
            ("statistics", "running" if inference.running else "each image's own"),
            ("weights", "averaged" if inference.averaged else "as trained"),
            ("images", f"{len(work)}, of {len(sizes)} size{'s' * (len(sizes) > 1)} as padded"),
        ]
    )
    for note in translator.notes:
        console.note(note)
    if len(sizes) > _MANY and not job.tile:
        console.note(
            f"each of {len(sizes)} sizes takes a program, compiled once; --size=H,W needs one"
        )
    if tiled:
        _tell_tiles(job, translator, tiled[0], console)


def _tell_tiles(job: Job, translator: Translator, one: Checked, console: Console) -> None:
    assert job.tile is not None
    plan = translator.canvases.plan(one.size, job.tile, job.overlap)
    if plan.exact:
        console.note(translator.canvases.told(plan))
        return
    try:
        found = translator.difference(image_of(one, translator), job.tile, job.overlap)
    except Failure:
        console.warn(f"{translator.canvases.told(plan)}; memory does not suffice to measure it")
        return
    unit = "of the classes" if translator.target_palette else "levels of 255"
    console.warn(
        f"{translator.canvases.told(plan)}. On {found.size[0]}x{found.size[1]} pixels of "
        f"{one.item} they are {found.mean:.3g} {unit} apart on average, {found.worst:.3g} at "
        f"most; seams {found.seams:.2f} (1: none to be seen)"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
