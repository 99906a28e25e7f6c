"""What will run, in words, for the start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from p2p_jax.build import Experiment
from p2p_jax.data import Form
from p2p_jax.rules import PHOTOMETRIC
from p2p_jax.state import count

Row = tuple[str, str]  # a name and a text


def rows(experiment: Experiment, training: bool = True) -> list[Row]:
    """What will be trained, or evaluated."""
    shapes, config = experiment.abstract_state(), experiment.config
    devices = experiment.mesh.devices.ravel()
    disc: Any = experiment.gan.discriminator
    patches = "; ".join(
        f"{p.height}x{p.width} patches of {p.field}x{p.field} pixels"
        for p in disc.patches(*experiment.gan.augment.crop_size)
    )
    names = [config["model"][net]["name"] for net in ("generator", "discriminator")]
    data = config["data"]
    way = data["direction"] if data["task"] == "translate" else data["task"]
    where = data["name"] or data["path"] or "built in"
    held = f"{len(experiment.eval_frames)} to evaluate ({experiment.eval.split})"
    common = [
        ("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"),
        ("precision", f"{config['train']['precision']}, {experiment.form} convolutions"),
        ("generator", f"{names[0]}, {count(shapes.gen.params):,} parameters"),
        ("discriminator", f"{names[1]}, {count(shapes.disc.params):,} parameters; {patches}"),
        ("data", f"{data['source']} ({where}), {way}"),
    ]
    if not training:
        return [*common, ("pairs", held)]
    train, examples = experiment.train, len(experiment.train_frames)
    epochs = train.steps * train.batch_size / examples
    early = f", or until {train.best} makes no progress" if train.early_stop else ""
    return [
        *common,
        ("pairs", f"{examples} to train on, {held}"),
        ("images", _images(experiment)),
        ("steps", f"{train.steps:,} of batch {_batch(experiment)}: {epochs:.3g} epochs{early}"),
    ]


def _batch(experiment: Experiment) -> str:
    parts = experiment.gan.accumulate
    return f"{experiment.train.batch_size}" + (f" in {parts} parts" if parts > 1 else "")


def _images(experiment: Experiment) -> str:
    """What is stored, and what becomes of it before the networks see it."""
    frames, augment = experiment.train_frames, experiment.gan.augment
    kinds = [_kind(form) for form in frames.forms]
    least, most = frames.stored
    parts = [_by(most) if least == most else f"from {_by(least)} to {_by(most)}"]
    parts[0] += f" {kinds[0]}" if kinds[0] == kinds[1] else f" {' to '.join(kinds)}"
    loaded = augment.load_size or frames.shape
    if loaded != most or (least != most and frames.sizes is None):
        parts.append(f"resized to {_by(loaded)}")
    if augment.fit == "pad":
        parts += [f"padded to {_by(augment.crop_size)}"] * (augment.crop_size != loaded)
    elif augment.crop_size != loaded:
        parts.append(f"cropped to {_by(augment.crop_size)}")
    parts += ["mirrored"] * augment.flip + ["turned upside down"] * augment.flip_vertical
    parts += ["rotated"] * augment.rotate
    varied = [name for name in PHOTOMETRIC if getattr(augment, name)]
    parts += [f"{', '.join(varied)} of the source varied"] * bool(varied)
    return ", ".join(parts)


def _kind(form: Form) -> str:
    names = {0: "none", 1: "grey", 3: "RGB", 4: "RGBA"}
    return f"{names.get(form.channels, f'{form.channels} channels')} {form.dtype}"


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
