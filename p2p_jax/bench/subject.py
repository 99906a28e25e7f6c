"""What is trained and measured: the paper's networks, or those of a config with its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from p2p_jax.bench import nets
from p2p_jax.bench.rows import Options
from p2p_jax.state import Gan


@dataclasses.dataclass(frozen=True)
class Subject:
    """Networks to measure, and what their data is like.

    Attributes:
      make: from a precision and a form of the convolutions to the networks.
      frame: (height, width) of stored images.
      stored: channels and type of source and target.
      sized: whether the examples fill a part of their frame only.
      hyper: from a number of rows to rates and weights, `[rows, len(HYPER)]`.
      precision: to measure by default; '': what suits the device.
      batch_size: likewise; 0: several that suit the device.
      form: of the convolutions, likewise.
    """

    make: Callable[[str, str], Gan]
    frame: tuple[int, int]
    stored: tuple[tuple[int, str], tuple[int, str]]
    sized: bool
    hyper: Callable[[int], np.ndarray]
    precision: str = ""
    batch_size: int = 0
    form: str = "auto"

    def images(self, gan: Gan, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """So many sources and targets of a size, `[count, h, w, c]`, drawn at random."""
        rng = np.random.default_rng(0)
        drawn = []
        for (channels, dtype), labelled in zip(self.stored, gan.task.labelled, strict=True):
            values = rng.integers(0, 2 if labelled else 256, (count, *size, channels))
            drawn.append(values.astype(dtype))
        return drawn[0], drawn[1]


def chosen(options: Options) -> Subject:
    """The networks of the config, where there is one, or the paper's."""
    if options.config is not None:
        from p2p_jax.build import build

        return of_experiment(build(options.config, options.log), options.config)
    known = nets.standard()
    source, target = known.task.channels
    stored = ((source, "uint8"), (target, "uint8"))
    return Subject(nets.standard, known.augment.crop_size, stored, False, nets.hyper)


def of_experiment(experiment: Any, config: Any) -> Subject:
    """What a `build.Experiment` of a config trains."""
    from p2p_jax.config import merge
    from p2p_jax.networks import make_gan

    frames, known = experiment.train_frames, experiment.gan

    def make(precision: str, form: str) -> Gan:
        keys = {"train.precision": precision, "train.conv_form": form}
        gan = make_gan(merge(config, keys))
        return dataclasses.replace(gan, augment=known.augment, values=known.values)

    source, target = ((form.channels, form.dtype) for form in frames.forms)
    return Subject(
        make=make,
        frame=frames.shape,
        stored=(source, target),
        sized=frames.sizes is not None,
        hyper=lambda rows: experiment.hyper(0, rows),
        precision=config.train.precision,
        batch_size=config.train.batch_size,
        form=config.train.conv_form,
    )
