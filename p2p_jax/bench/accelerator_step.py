"""The parts `peak` and `step` of `accelerator`: matrix products, and the training step in turns."""

from __future__ import annotations

import statistics

import jax

from p2p_jax.bench import step, torch_step
from p2p_jax.bench.measuring import FORMS, Measuring, freed, note
from p2p_jax.bench.rows import Row, in_turn, row
from p2p_jax.bench.subject import chosen

# Mode of torch.compile and precision, the likeliest first; all channels_last. CUDA graphs spare the
# time that starting kernels takes, of which large batches have enough anyway.
_TORCH_LARGE = (("default", "bfloat16"), ("", "bfloat16"))
_TORCH_SMALL = (("reduce-overhead", "bfloat16"), *_TORCH_LARGE[::-1], ("", "tf32"))
_LARGE = 64


def peaks(measuring: Measuring) -> list[Row]:
    """Of matrix products, in each precision; keeps them in `measuring`."""
    device = jax.devices()[0]
    precisions = ("bfloat16", "tf32", "float32")
    made = []
    for precision in precisions if device.platform == "gpu" else precisions[::2]:
        measuring.peaks[precision] = found = step.peaks_of(device, precision)
        made.append(row("peak", "", precision=precision, **found, device_kind=device.device_kind))
    return made


def steps(measuring: Measuring, batch: int, kept: float) -> list[Row]:
    """All that fits of a batch size; ours and the best two of theirs take turns.

    Args:
      measuring: what all parts share.
      batch: images a step.
      kept: seconds that are to be left for what comes later.
    """
    subject, clock = chosen(measuring.options), measuring.clock
    made: list[Row] = []
    ways: list[step.Way] = []

    def ours(form: str) -> None:
        known = row("step", form, precision="bfloat16", batch_size=batch)
        if why := clock.refuses("ours", kept):
            made.append(known | {"skipped": why})
            return
        note(f"step: compiling batch {batch}, form {form}")
        with clock.timed("ours"):
            way = step.ours(measuring.options, step.STEP, subject, batch, "bfloat16", form)
        (ways if isinstance(way, step.Way) else made).append(way)  # type: ignore[arg-type]

    # The form that was fastest comes first; the other, last of all, if there is time.
    first, *others = sorted(FORMS, key=lambda form: form != measuring.best_form())
    ours(first)
    trials, theirs = _theirs(measuring, batch, kept)
    for form in others:
        ours(form)
    ways += theirs
    if not ways:
        return trials + made
    note(f"step: measuring {len(ways)} ways with batch {batch}, in turn")
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
        note(f"step: trying torch, batch {batch}, {precision}, {form.name}")
        trial["trial"] = True
        with measuring.clock.timed(kind):
            found = step.tried(measuring.options, step.STEP, form, trial)
        if found is not None:
            ready = sorted([*ready, found], key=lambda pair: -pair[0])[: step.TORCH_KEPT]
        del found
        freed()
    return trials, [way for _, way in ready]
