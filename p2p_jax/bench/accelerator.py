"""Measures one accelerator in one command of less than ten minutes, the most telling first.

    python -m p2p_jax.bench.accelerator --data=FOLDER [--json=FILE] [--minutes=9]

It needs jax, flax, optax and numpy, and cv2 or Pillow to read FOLDER: train/*.jpg and val/*.jpg,
two images of 256x256 side by side, of which the right one is translated into the left one, as in
facades. Where torch is installed, its training step takes turns with ours. In this order:

    peak      of matrix products, in each precision: what MFU is a share of
    step      images/s of the training step in bfloat16, batch 64: two forms of the convolutions,
              and PyTorch in the forms that are likely its best; the two fastest take turns with us
    facades   200 epochs of 400 pairs in bfloat16, on a set that the device holds: seconds, and the
              metrics of val along the way
    step      batch 1, then 16
    facades   in float32 with batch 1, for the time that is left, and both runs' metrics side by
              side after as many images as it reached: the rows `equal`

What does not fit into the time any more is left out, and a row says so; so it does of what failed.
Rows are those of `p2p_jax.benchmark`, printed and written to --json as soon as a part is done.

    --minutes=9            to take, start to end; the last thing begun may run a little over
    --batch-size=64        of the bfloat16 run on facades
    --lr=2e-4              of both its networks; no rate follows the batch size by itself
    --images=80000         that it sees, a multiple of --evaluate-every
    --evaluate-every=8000  images, a multiple of --batch-size
    --seconds=1            that each of three measurements of a training step takes

Exit codes: 0 done, 2 bad input, 130 interrupted, 1 something failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from p2p_jax import words
from p2p_jax.bench import machine, nets
from p2p_jax.bench.accelerator_facades import facades, reference
from p2p_jax.bench.accelerator_step import peaks, steps
from p2p_jax.bench.clock import NEEDED, Clock
from p2p_jax.bench.facades import read
from p2p_jax.bench.measuring import Measuring, Request, note
from p2p_jax.bench.rows import Options
from p2p_jax.command import finish
from p2p_jax.words import ConfigError

BATCHES = (64, 1, 16)  # of the training step; facades come after the first
_REFERENCE = 110.0  # seconds kept for the float32 run
_NUMBERS = {"batch-size": ("64", 1), "images": ("80000", 1), "evaluate-every": ("8000", 1)}
_FLAGS = ("data", "json", "minutes", "lr", "seconds", *_NUMBERS, "help")


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    # Else this process would take nearly all of a GPU's memory for itself, and PyTorch have none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return finish(lambda: _run(_parse(argv)), "interrupted")


def _run(request: Request) -> int:
    clock = Clock(request.seconds)
    pairs = None
    if request.data is not None:
        pairs = read(request.data, nets.standard("bfloat16").augment.crop_size)
    known = machine.machine() | {"load": os.getloadavg()[0], "devices": machine.devices()}
    for name, text in machine.machine_rows(known):
        note(f"{name:<9}  {text}")
    note("devices    {count} {kind}, {platform}".format(**known["devices"]))
    options = Options(folder=Path(), log=note, seconds=request.each)
    measuring = Measuring(request, clock, options, {}, [], known)

    # Kept for what comes later and tells more.
    first, kept = (NEEDED["facades"], _REFERENCE) if pairs else (0.0, 0.0)
    measuring.add("peak", lambda: peaks(measuring))
    measuring.add("step", lambda: steps(measuring, BATCHES[0], first))
    measuring.add("facades", lambda: facades(measuring, pairs))
    for batch in BATCHES[1:]:
        measuring.add("step", lambda batch=batch: steps(measuring, batch, kept))
    measuring.add("facades", lambda: reference(measuring, pairs))
    note(f"\n{request.seconds - clock.left():.0f} s in all")
    return int(measuring.failed)


def _parse(argv: Sequence[str]) -> Request:
    """What is asked for.

    Raises:
      ConfigError: all that is wrong.
    """
    flags, _, problems = words.split(argv, _FLAGS, ("help",))
    numbers = {
        name: int(words.number(name, flags.get(name) or default, least, problems))
        for name, (default, least) in _NUMBERS.items()
    }
    seconds = 60 * words.number("minutes", flags.get("minutes", "9"), 0, problems)
    each = words.number("seconds", flags.get("seconds", "1"), 0, problems)
    try:
        lr = float(flags.get("lr") or nets.RECIPE["gen_lr"])
        if not 0 < lr < 1:
            raise ValueError
    except ValueError:
        lr = 0.0
        problems.append(f"--lr: {flags['lr']!r} is not a number between 0 and 1")
    for name, by in (("evaluate-every", "batch-size"), ("images", "evaluate-every")):
        if numbers[name] % numbers[by]:
            problems.append(f"--{name}: {numbers[name]} is no multiple of --{by}={numbers[by]}")
    data = Path(flags["data"]) if flags.get("data") else None
    output = words.new_file("json", flags.get("json", ""), problems)
    if problems:
        raise ConfigError(problems)
    sizes = (numbers[name] for name in _NUMBERS)
    return Request(data, output, seconds, lr, *sizes, each=each)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
