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

Exit codes: 0 done, 2 bad input, 1 something failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from p2p_jax import mesh as meshes
from p2p_jax.bench import machine, nets, step, table, torch_step, words
from p2p_jax.bench.facades import DISPATCH, METRIC_NAMES, Evaluation, Pairs, Run, read
from p2p_jax.bench.rows import Options, Problems, Row, in_turn, row, write
from p2p_jax.bench.subject import chosen

BATCHES = (64, 1, 16)  # of the training step; facades come after the first
FORMS = ("plain", "polyphase")
# Mode of torch.compile and precision, the likeliest first; all channels_last. CUDA graphs spare the
# time that starting kernels takes, of which large batches have enough anyway.
_TORCH_LARGE = (("default", "bfloat16"), ("", "bfloat16"))
_TORCH_SMALL = (("reduce-overhead", "bfloat16"), *_TORCH_LARGE[::-1], ("", "tf32"))
_LARGE = 64
# Seconds that a thing is taken to need until one of its kind was seen.
_NEEDED = {"ours": 60.0, "eager": 15.0, "compiled": 75.0, "turns": 20.0, "facades": 180.0}
_REFERENCE = 110.0  # kept for the float32 run
_NUMBERS = {"batch-size": ("64", 1), "images": ("80000", 1), "evaluate-every": ("8000", 1)}
_FLAGS = ("data", "json", "minutes", "lr", "seconds", *_NUMBERS, "help")


class Clock:
    """Says what still fits into the time that there is.

    Args:
      seconds: in all, from now on.
      now: gives the time in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds
        self._needed = dict(_NEEDED)
        self._seen: set[str] = set()

    def left(self) -> float:
        """Seconds."""
        return self._end - self._now()

    def refuses(self, kind: str, kept: float = 0.0, needed: float = 0.0) -> str:
        """Why a thing of a kind does not fit any more, or ''.

        Args:
          kind: of `_NEEDED`.
          kept: seconds that are to be left after it.
          needed: seconds that it takes, where that is known better.
        """
        needed, there = needed or self._needed[kind], self.left() - kept
        return (
            ""
            if needed <= there
            else f"needs about {needed:.0f} s, and {max(there, 0):.0f} s are to spare"
        )

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Learns from what runs within how long its kind takes: as long as the longest."""
        begin = self._now()
        yield
        took = self._now() - begin
        self._needed[kind] = max(took, self._needed[kind]) if kind in self._seen else took
        self._seen.add(kind)


class Request(NamedTuple):
    """What a command line asks for; see the module."""

    data: Path | None
    output: Path | None
    seconds: float
    lr: float
    batch_size: int
    images: int
    every: int
    each: float


@dataclasses.dataclass
class Measuring:
    """What all parts share.

    Attributes:
      request: what is asked for.
      clock: of the whole.
      options: of measurements.
      peaks: by precision, see `step`.
      found: the rows so far.
      machine: what every row is told with.
      failed: whether a part was.
    """

    request: Request
    clock: Clock
    options: Options
    peaks: dict[str, Any]
    found: list[Row]
    machine: dict[str, Any]
    failed: bool = False

    def add(self, name: str, part: Callable[[], list[Row]]) -> None:
        """Does a part, tells its rows and keeps them; one that fails does not end the others."""
        try:
            made = part()
        except Exception as error:
            traceback.print_exc()
            made = [row(name, "", error=f"{type(error).__name__}: {error}".splitlines()[0])]
            self.failed = True
        self.found += made
        _freed()
        for line in ["", *table.lines(made), *_told(made)]:
            _note(line)
        if self.request.output is not None:
            write(self.request.output, [each | {"machine": self.machine} for each in self.found])


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    # Else this process would take nearly all of a GPU's memory for itself, and PyTorch have none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        return _run(_parse(argv))
    except Problems as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2


def _run(request: Request) -> int:
    clock = Clock(request.seconds)
    pairs = None
    if request.data is not None:
        pairs = read(request.data, nets.standard("bfloat16").augment.crop_size)
    known = machine.machine() | {"load": os.getloadavg()[0], "devices": machine.devices()}
    for name, text in machine.machine_rows(known):
        _note(f"{name:<9}  {text}")
    _note("devices    {count} {kind}, {platform}".format(**known["devices"]))
    options = Options(folder=Path(), log=_note, seconds=request.each)
    measuring = Measuring(request, clock, options, {}, [], known)

    # Kept for what comes later and tells more.
    first, kept = (_NEEDED["facades"], _REFERENCE) if pairs else (0.0, 0.0)
    measuring.add("peak", lambda: _peak(measuring))
    measuring.add("step", lambda: _step(measuring, BATCHES[0], first))
    measuring.add("facades", lambda: _facades(measuring, pairs))
    for batch in BATCHES[1:]:
        measuring.add("step", lambda batch=batch: _step(measuring, batch, kept))
    measuring.add("facades", lambda: _reference(measuring, pairs))
    _note(f"\n{request.seconds - clock.left():.0f} s in all")
    return int(measuring.failed)


def _note(line: str) -> None:
    print(line, flush=True)


def _freed() -> None:
    """Gives back what a part had on the device."""
    gc.collect()
    if sys.modules.get("torch") is not None:
        step.freed()


# --- parts ---------------------------------------------------------------------------------------


def _peak(measuring: Measuring) -> list[Row]:
    device = jax.devices()[0]
    precisions = ("bfloat16", "tf32", "float32")
    made = []
    for precision in precisions if device.platform == "gpu" else precisions[::2]:
        measuring.peaks[precision] = found = step.peaks_of(device, precision)
        made.append(row("peak", "", precision=precision, **found, device_kind=device.device_kind))
    return made


def _step(measuring: Measuring, batch: int, kept: float) -> list[Row]:
    """All that fits of a batch size; ours and the best two of theirs take turns."""
    subject, clock = chosen(measuring.options), measuring.clock
    made: list[Row] = []
    ways: list[step.Way] = []

    def ours(form: str) -> None:
        known = row("step", form, precision="bfloat16", batch_size=batch)
        if why := clock.refuses("ours", kept):
            made.append(known | {"skipped": why})
            return
        _note(f"step: compiling batch {batch}, form {form}")
        with clock.timed("ours"):
            way = step.ours(measuring.options, step.STEP, subject, batch, "bfloat16", form)
        (ways if isinstance(way, step.Way) else made).append(way)  # type: ignore[arg-type]

    # The form that was fastest comes first; the other, last of all, if there is time.
    first, *others = sorted(FORMS, key=lambda form: form != _best_form(measuring))
    ours(first)
    trials, theirs = _theirs(measuring, batch, kept)
    for form in others:
        ours(form)
    ways += theirs
    if not ways:
        return trials + made
    _note(f"step: measuring {len(ways)} ways with batch {batch}, in turn")
    with clock.timed("turns"):
        rates = in_turn({i: way.rate for i, way in enumerate(ways)})
    for i, way in enumerate(ways):
        rate = statistics.median(rates[i])
        made.append(way.row | {"images_per_sec": rate, "ms": 1e3 * batch / rate})
        made[-1]["rounds"] = rates[i]
    work = step.STEP.work(subject, subject.make("bfloat16", "plain"), batch)
    for each in made + trials:
        if each["images_per_sec"] and each["precision"] in measuring.peaks:
            each["model_flops"] = work
            each |= step.shares(each, work, measuring.peaks, jax.devices()[0])
    return step.compared(trials + made)


def _theirs(measuring: Measuring, batch: int, kept: float) -> tuple[list[Row], list[step.Way]]:
    """Trials of PyTorch's likeliest forms, and the two fastest of them, ready to run."""
    platform = jax.devices()[0].platform
    device = step.TORCH_DEVICES.get(platform)
    known = row("step", "", batch_size=batch, devices=1) | {"impl": "torch"}
    if device is None or not torch_step.available():
        why = f"there is no PyTorch for {platform} here" if device is None else "torch is missing"
        return [known | {"skipped": why}], []
    there = torch_step.forms(device, ("bfloat16", "tf32"))
    trials: list[Row] = []
    ready: list[tuple[float, step.Way]] = []
    for mode, precision in _TORCH_SMALL if batch < _LARGE else _TORCH_LARGE:
        form = torch_step.TorchForm(mode, precision, True)
        if form not in there:
            continue
        trial = known | {"form": form.name, "precision": precision}
        trials.append(trial)
        kind = "compiled" if mode else "eager"
        if why := measuring.clock.refuses(kind, kept):
            trial["skipped"] = why
            continue
        _note(f"step: trying torch, batch {batch}, {precision}, {form.name}")
        trial["trial"] = True
        with measuring.clock.timed(kind):
            found = step.tried(measuring.options, step.STEP, form, trial)
        if found is not None:
            ready = sorted([*ready, found], key=lambda pair: -pair[0])[: step.TORCH_KEPT]
        del found
        _freed()
    return trials, [way for _, way in ready]


def _ours(measuring: Measuring) -> list[Row]:
    """Our training steps so far that were measured, the fastest first."""
    rows = [r for r in measuring.found if r["part"] == "step" and r["impl"] == "p2p_jax"]
    return sorted((r for r in rows if r["images_per_sec"]), key=lambda r: -r["images_per_sec"])


def _best_form(measuring: Measuring) -> str:
    return next((r["form"] for r in _ours(measuring)), FORMS[0])


def _facades(measuring: Measuring, pairs: tuple[Pairs, Pairs] | None) -> list[Row]:
    """The whole training in bfloat16, and its metrics along the way."""
    request, form = measuring.request, _best_form(measuring)
    known = row("facades", form, precision="bfloat16", batch_size=request.batch_size)
    rates = [r["images_per_sec"] for r in _ours(measuring) if r["batch_size"] == request.batch_size]
    needed = request.images / rates[0] + _NEEDED["ours"] if rates else 0.0
    why = "no --data" if pairs is None else measuring.clock.refuses("facades", needed=needed)
    if pairs is None or why:
        return [known | {"skipped": why}]
    mesh = meshes.make_mesh(1)
    gan = nets.standard("bfloat16", form)
    _note(f"facades: compiling batch {request.batch_size}, bfloat16")
    run = Run(pairs[0], gan, mesh, request.batch_size, request.lr, request.images)
    _note(f"facades: training on {request.images} images")
    # Generators are put aside and evaluated afterwards: nothing interrupts the training.
    kept = {0: run.generator()}
    begin = time.perf_counter()
    for images in range(request.every, request.images + 1, request.every):
        run.train(images)
        kept[images] = run.generator()
    losses = run.losses()
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    evaluation = Evaluation(pairs[1], gan, mesh)
    told = [{"images": images, **evaluation(gen)} for images, gen in kept.items()]
    known |= _figures(run, seconds, losses, told)
    known |= {"evaluate_seconds": time.perf_counter() - begin, "baseline": evaluation.baseline()}
    return [known]


def _reference(measuring: Measuring, pairs: tuple[Pairs, Pairs] | None) -> list[Row]:
    """As many images in float32 with batch 1 as there is time for, and both side by side."""
    request, clock = measuring.request, measuring.clock
    known = row("facades", "auto", precision="float32", batch_size=1)
    why = "no --data" if pairs is None else clock.refuses("ours")
    if pairs is None or why:
        return [known | {"skipped": why}]
    mesh = meshes.make_mesh(1)
    gan = nets.standard()
    _note("facades: compiling batch 1, float32")
    run = Run(pairs[0], gan, mesh, 1, nets.RECIPE["gen_lr"], request.images)
    evaluation = Evaluation(pairs[1], gan, mesh)
    told = [{"images": 0, **evaluation(run.generator())}]
    seconds = 0.0
    _note("facades: training in float32")
    while run.seen < request.images:
        # As far as the next evaluation, or not at all.
        missing = request.every - run.seen % request.every
        if (run.seen and missing * seconds / run.seen > clock.left()) or clock.left() < 0:
            break
        begin = time.perf_counter()
        run.train(run.seen + min(missing, DISPATCH))
        losses = run.losses()
        seconds += time.perf_counter() - begin
        if run.seen % request.every == 0:
            told.append({"images": run.seen, **evaluation(run.generator())})
            known |= _figures(run, seconds, losses, told)
    if not known["images_per_sec"]:
        rate = f"{run.seen / seconds:.3g} images/s" if run.seen else "no time"
        return [known | {"skipped": f"{request.every} images were out of reach at {rate}"}]
    return [known, *_beside(measuring, known)]


def _figures(
    run: Run, seconds: float, losses: dict[str, float], told: list[dict[str, float]]
) -> Row:
    return {
        "images_per_sec": run.seen / seconds,
        "ms": 1e3 * run.batch_size * seconds / run.seen,
        "images": run.seen,
        "lr": run.lr,
        "train_seconds": seconds,
        "compile_seconds": run.compile_seconds,
        "losses": losses,
        "evaluations": list(told),
    }


def _beside(measuring: Measuring, reference: Row) -> list[Row]:
    """The metrics of both runs after the same number of images."""
    images = reference["images"]
    there = [r for r in measuring.found if r["part"] == "facades" and r.get("evaluations")]
    made = []
    for each in [*there, reference]:
        at = [e for e in each["evaluations"] if e["images"] == images]
        made += [
            row("equal", each["form"], precision=each["precision"], batch_size=each["batch_size"])
            | found
            for found in at
        ]
    return made


# --- telling -------------------------------------------------------------------------------------


def _told(rows: list[Row]) -> list[str]:
    """What the table does not show of rows."""
    told = []
    for each in rows:
        names = [each[k] for k in ("part", "impl", "form", "precision", "batch_size") if each[k]]
        name = ", ".join(map(str, names))
        if "skipped" in each:
            told.append(f"{name}: left out: {each['skipped']}")
        if each["part"] == "peak" and each.get("peak_flops"):
            told.append(f"{name}: {each['peak_flops'] / 1e12:.4g} TFLOP/s of matrix products")
        if "train_seconds" in each:
            told.append(
                f"{name}: {each['images']} images in {each['train_seconds']:.1f} s, after "
                f"{each['compile_seconds']:.1f} s of compiling; on val:"
            )
            shown = [*each["evaluations"], {"images": "constant", **each.get("baseline", {})}]
            told += _metrics(shown if "baseline" in each else shown[:-1])
        if each["part"] == "equal":
            told += [f"{name}:", *_metrics([each])]
    return told


def _metrics(found: list[dict[str, Any]]) -> list[str]:
    names = ("images", *METRIC_NAMES)
    return table.aligned([names, *([table.cell(each[name]) for name in names] for each in found)])


# --- the command line ----------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> Request:
    """What is asked for.

    Raises:
      Problems: all that is wrong.
    """
    flags, overrides, problems = words.split(argv, _FLAGS)
    problems += [f"--config.{key}: there is no config here" for key in overrides]
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
    output = Path(flags["json"]) if flags.get("json") else None
    if output is not None and output.exists():
        problems.append(f"--json: {output} exists already; use another name")
    elif output is not None and not output.parent.is_dir():
        problems.append(f"--json: there is no folder {output.parent}")
    if problems:
        raise Problems(problems)
    sizes = (numbers[name] for name in _NUMBERS)
    return Request(data, output, seconds, lr, *sizes, each=each)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
