"""What training would make of data: what does not fit, memory, rates, a contact sheet."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np

from p2p_jax.bench.rates import all_threads, feed_rate, one_thread, streaming
from p2p_jax.build import channel_problems, stored_values, tiny_images
from p2p_jax.config import Config
from p2p_jax.contact import contact_sheet
from p2p_jax.data import DataError, EvalFrames, Fit, Frames, PairSource, Splits, fitting
from p2p_jax.data.pipeline import empty
from p2p_jax.data.survey import Chosen, Part, Survey
from p2p_jax.metrics import least_size
from p2p_jax.networks import make_gan, task_options
from p2p_jax.state import Gan
from p2p_jax.validate import fit


class Outlook(NamedTuple):
    """What would become of the data.

    Attributes:
      problems: what of it the config does not fit.
      pairs: how many to train on can be used.
      networks: rows of a name and a text: how the networks would see them.
      pair_bytes: memory that one pair takes, decoded.
      threads: that decode in training.
      rates: pairs per second by what does it; empty where they cannot be measured.
      sheet: the contact sheet `[h, w, 3]` uint8, or None.
      missing: why there are no rates or no sheet, or ''.
    """

    problems: list[str]
    pairs: int
    networks: list[tuple[str, str]]
    pair_bytes: int
    threads: int
    rates: dict[str, float]
    sheet: np.ndarray | None
    missing: str


def outlook(config: Config, found: Survey, seconds: float) -> Outlook:
    """Tries what training would do.

    Args:
      config: free of problems.
      found: the data.
      seconds: that each measurement takes.
    """
    gan = make_gan(config)
    how = fit(config, gan.augment.methods, gan.generator.size_step)
    threads = config.data.threads or os.cpu_count() or 1
    used = {part.title: _used(part, config) for part in found.parts}
    sizes = {name: least_size(name, config.eval.lpips_backbone) for name in config.eval.metrics}
    problems, usable = _unfit(gan, how, found, used, sizes), None
    training = next((part for part in found.parts if not part.evaluates), None)
    if training is not None:
        usable = _usable(training, used[training.title], how)
    if usable is None:
        missing = "there is no pair to try"
        return Outlook(problems, 0, _networks(config, gan, None), 0, threads, {}, None, missing)
    frames = Frames(usable, how)
    gan = dataclasses.replace(
        gan,
        augment=dataclasses.replace(gan.augment, load_size=frames.load_size),
        values=stored_values(config, gan, frames.forms),
    )
    pair_bytes = sum(part.nbytes for part in empty(frames, 1) if part is not None)
    rates, sheet, missing = {}, None, ""
    try:
        rates = _rates(config, frames, threads, seconds)
        palette = task_options(config).palette
        sheet = contact_sheet(usable, frames, gan, palette, config.seed)
    except (DataError, ValueError) as error:
        missing = str(error).splitlines()[0]
    networks = _networks(config, gan, frames)
    return Outlook(problems, len(usable), networks, pair_bytes, threads, rates, sheet, missing)


def _used(part: Part, config: Config) -> PairSource | None:
    """What of a part is trained on or evaluated: broken pairs are not evaluated."""
    if part.source is None:
        return None
    if part.evaluates:
        return Chosen(part.source, part.sound[: config.eval.examples or None])
    most = config.data.max_examples
    if not 0 < most < len(part.source):
        return part.source
    return Chosen(part.source, range(most))


def _unfit(
    gan: Gan, how: Fit, found: Survey, used: dict[str, PairSource | None], sizes: dict[str, int]
) -> list[str]:
    """What the preprocess mode, the task or a metric, by its least size, cannot take."""
    problems = []
    for part in found.parts:
        source = used[part.title]
        if source is not None and len(source):
            problems += fitting.problems(source, how, part.title, part.evaluates)
            if part.evaluates and not problems:
                evaluated = EvalFrames(source, how)
                for name, least in sizes.items():
                    problems += tiny_images(evaluated, name, least)
    there = [source for source in used.values() if source is not None]
    if there:
        problems += channel_problems(gan, Splits(there[0], there[-1], ()))
    return problems


def _usable(part: Part, source: PairSource | None, how: Fit) -> PairSource | None:
    """The pairs to train on that can be read and fit."""
    if source is None:
        return None
    wrong = how.misfits(np.asarray(source.sizes))
    indices = [i for i in range(len(source)) if i not in part.broken and not wrong[i]]
    return Chosen(source, indices) if indices else None


def _networks(config: Config, gan: Gan, frames: Frames | None) -> list[tuple[str, str]]:
    """How the networks would see the pairs."""
    data = config.data
    source, target = gan.task.channels
    mode = data.preprocess
    if mode.startswith(("resize", "scale")):
        mode += f", load_size {_by(data.load_size)}"
    rows = [
        ("task", f"{data.task}, from {source} to {target} channels"),
        ("crop", f"{_by(gan.augment.crop_size)} ({mode})"),
    ]
    if frames is not None:
        resized = frames.load_size not in (None, frames.shape)
        device = f", resized to {_by(frames.load_size)} on the device" if resized else ""
        rows.append(("frames", f"{_by(frames.shape)} from the host{device}"))
        ranges = [f"{v.low:g} to {v.high:g}" for v in gan.values]
        classes = gan.task.labelled
        texts = ["classes" if c else r for c, r in zip(classes, ranges, strict=True)]
        rows.append(("values", f"source {texts[0]}, target {texts[1]}"))
    return rows


def _by(size: Any) -> str:
    return "x".join(map(str, size))


def _rates(config: Config, frames: Frames, threads: int, seconds: float) -> dict[str, float]:
    """Pairs per second."""
    batch, steps = config.train.batch_size, config.train.steps_per_dispatch
    count = range(len(frames))
    return {
        "one thread": one_thread(frames.__getitem__, count, seconds),
        f"{threads} threads": all_threads(frames.__getitem__, count, seconds, threads),
        "feed": feed_rate(streaming(frames, batch, threads, steps=steps), batch, seconds),
    }
