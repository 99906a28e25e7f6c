"""The parts `step`, the training step alone, and `infer`, the generator alone; and PyTorch's."""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax

from p2p_jax import mesh as meshes
from p2p_jax.bench import peak, running
from p2p_jax.bench.rows import Options, Row, in_turn, row
from p2p_jax.bench.subject import Subject, chosen
from p2p_jax.words import ConfigError

TORCH_KEPT = 2  # of the forms of a precision, after a trial
_TRIAL_SECONDS = 1.0
_WARM_STEPS = 3  # in which PyTorch compiles
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured.

    Attributes:
      name: of the part.
      ours: `running.Training` or `running.Inference`.
      work: operations of one step, from the subject, networks and batch size.
      theirs: the class of `torch_step` that does the same.
    """

    name: str
    ours: type[running.Training] | type[running.Inference]
    work: Callable[[Subject, Any, int], float | None]
    theirs: str


STEP = Part("step", running.Training, running.training_work, "TorchTraining")
INFER = Part("infer", running.Inference, running.inference_work, "TorchInference")


@dataclasses.dataclass
class Way:
    """One way to do it, ready to run.

    Attributes:
      row: what is known of it before it was measured.
      steps: runs it so many times and waits.
      count: how many take as long as a measurement should.
    """

    row: Row
    steps: Callable[[int], None]
    count: int

    def rate(self) -> float:
        """Images per second, now."""
        return self.row["batch_size"] / running.timed(self.steps, self.count)


def step(options: Options) -> list[Row]:
    """The compiled training step, on examples that the device holds."""
    return _measured(options, STEP)


def infer(options: Options) -> list[Row]:
    """The generator alone."""
    return _measured(options, INFER)


def _measured(options: Options, part: Part) -> list[Row]:
    """All ways of a batch size are compiled and warmed up, and then take turns."""
    device = jax.devices()[0]
    mesh = _mesh(options)
    subject = chosen(options)
    usual_sizes, usual_precisions = _usual(device.platform)
    sizes = options.batch_sizes or (subject.batch_size,) * bool(subject.batch_size) or usual_sizes
    precisions = options.precisions or (subject.precision,) * bool(subject.precision)
    precisions = precisions or usual_precisions
    parts = subject.make(precisions[0], "plain").accumulate
    if wrong := [str(size) for size in sizes if size % (mesh.size * parts)]:
        into = f" in {parts} parts each, as train.accumulate has it" if parts > 1 else ""
        raise ConfigError(
            [f"--batch-sizes: {', '.join(wrong)} cannot be split over {mesh.size} devices{into}"]
        )
    options.log(f"{part.name}: measuring matrix products in {', '.join(precisions)}")
    peaks = {precision: peaks_of(device, precision) for precision in precisions}
    rows: list[Row] = []
    for batch in sizes:
        work = part.work(subject, subject.make(precisions[0], "plain"), batch)
        found = _batch(options, part, subject, batch, precisions)
        for made in found:
            made["model_flops"] = work
            made |= shares(made, work, peaks, device)
        rows += compared(found)
        gc.collect()
    return rows


def _mesh(options: Options) -> Any:
    try:
        return meshes.make_mesh(options.devices)
    except ValueError as error:
        raise ConfigError([f"--devices: {error}"]) from error


def _usual(platform: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Batch sizes and precisions that suit a platform."""
    if platform == "cpu":
        return (1, 4), ("float32",)
    return (1, 16, 64), ("float32", *["tf32"] * (platform != "tpu"), "bfloat16")


def peaks_of(device: Any, precision: str) -> dict[str, float | None]:
    """Operations a second: measured, and by the data sheet, where known."""
    return {
        "peak_flops": peak.measured(device, precision),
        "sheet_flops": peak.sheet(device, precision),
    }


def shares(made: Row, work: float | None, peaks: dict[str, Any], device: Any) -> Row:
    """What share of its peaks a device reaches, on the work that the networks are."""
    peaks = peaks[made["precision"]]
    rate = made["images_per_sec"]
    found: Row = dict(peaks)
    for name, key in (("mfu", "peak_flops"), ("mfu_sheet", "sheet_flops")):
        done = work and rate and work * rate / made["batch_size"] / made["devices"]
        found[name] = done / peaks[key] if done and peaks[key] else None
    return found | {"device_kind": device.device_kind}


def compared(rows: list[Row]) -> list[Row]:
    """Sets ours against the best of theirs that took turns, of the same precision and of any."""
    theirs = [
        r for r in rows if r["impl"] == "torch" and r["images_per_sec"] and not r.get("trial")
    ]

    def best(precision: str | None) -> float | None:
        rates = [r["images_per_sec"] for r in theirs if precision in (None, r["precision"])]
        return max(rates, default=None)

    for made in rows:
        if made["impl"] == "torch" or not made["images_per_sec"]:
            continue
        for name, precision in (("ratio", made["precision"]), ("ratio_best", None)):
            against = best(precision)
            made[name] = made["images_per_sec"] / against if against else None
    return rows


def _batch(
    options: Options, part: Part, subject: Subject, batch: int, precisions: tuple[str, ...]
) -> list[Row]:
    """The rows of a batch size: trials and failures, then what took turns."""
    ways: list[Way] = []
    rows: list[Row] = []
    for precision in precisions if options.torch_forms else ():
        trials, kept = _theirs(options, part, batch, precision)
        rows, ways = rows + trials, ways + kept
    for precision in precisions:
        for form in options.forms or (subject.form,):
            options.log(f"{part.name}: compiling batch {batch}, {precision}, form {form}")
            made = ours(options, part, subject, batch, precision, form)
            if isinstance(made, Way):
                ways.append(made)
            else:
                rows.append(made)
    options.log(f"{part.name}: measuring {len(ways)} ways with batch {batch}, in turn")
    rates = in_turn({i: way.rate for i, way in enumerate(ways)})
    for i, way in enumerate(ways):
        rate = statistics.median(rates[i])
        known = {"images_per_sec": rate, "ms": 1e3 * batch / rate, "rounds": rates[i]}
        rows.append(way.row | known)
    return rows


def ours(
    options: Options, part: Part, subject: Subject, batch: int, precision: str, form: str
) -> Way | Row:
    """A way, or a row that says that there is not enough memory for it."""
    mesh = _mesh(options)
    dispatch = 4 if mesh.devices.flat[0].platform == "cpu" else 8
    gan = subject.make(precision, form)
    policy = gan.generator.style.policy  # type: ignore[attr-defined]
    known = row(part.name, policy.form, precision=precision, batch_size=batch, devices=mesh.size)
    try:
        ready = part.ours(subject, gan, mesh, batch, dispatch)
        count = running.enough(ready.steps, options.seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return known | {"error": "out of memory"}
    return Way(known | ready.told | {"steps_per_dispatch": dispatch}, ready.steps, count)


# --- PyTorch -------------------------------------------------------------------------------------


def _theirs(
    options: Options, part: Part, batch: int, precision: str
) -> tuple[list[Row], list[Way]]:
    """A short trial of each form, as rows, and the fastest forms, ready to run."""
    trials: list[Row] = []
    ready: list[tuple[float, Way]] = []
    for form in _forms(options, precision):
        options.log(f"{part.name}: trying torch, batch {batch}, {precision}, {form.name}")
        known = row(
            part.name, form.name, precision=precision, batch_size=batch, devices=1, trial=True
        )
        known["impl"] = "torch"
        made = tried(options, part, form, known)
        trials.append(known)
        if made is not None:
            ready.append(made)
            ready = sorted(ready, key=lambda pair: -pair[0])[:TORCH_KEPT]
        freed()
    return trials, [way for _, way in ready]


def _forms(options: Options, precision: str) -> Iterator[Any]:
    from p2p_jax.bench import torch_step

    platform = jax.devices()[0].platform
    if platform not in TORCH_DEVICES:
        raise ConfigError([f"--against=torch: there is no PyTorch for {platform} here"])
    for form in torch_step.forms(TORCH_DEVICES[platform], (precision,)):
        if ("compile" if form.compiled else "eager") in options.torch_forms:
            yield form


def tried(options: Options, part: Part, form: Any, known: Row) -> tuple[float, Way] | None:
    """Fills in a row by what a trial gives, or by why there is none; rate and way."""
    from p2p_jax.bench import torch_step

    device, batch = TORCH_DEVICES[jax.devices()[0].platform], known["batch_size"]
    try:
        ready = getattr(torch_step, part.theirs)(form, batch, device)
        ready.steps(_WARM_STEPS)
        each = running.timed(ready.steps, 1)
        each = running.timed(ready.steps, max(1, round(_TRIAL_SECONDS / each)))
    except Exception as error:  # a form that does not run here is no reason to measure no other
        reason = (str(error).strip().splitlines() or [""])[0]
        known["error"] = f"{type(error).__name__}: {reason}"
        return None
    known |= {"images_per_sec": batch / each, "ms": 1e3 * each}
    fields = {key: value for key, value in known.items() if key != "trial"}
    count = max(1, round(options.seconds / each))
    return batch / each, Way(fields, ready.steps, count)


def freed() -> None:
    """Gives back what forms that were dropped had on the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
