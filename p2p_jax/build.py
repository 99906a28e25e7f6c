"""From a config to an experiment, which knows no ConfigDict any more."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh as meshes
from p2p_jax.config import Config, flatten
from p2p_jax.data import SOURCES, DataError, PairSource, Splits
from p2p_jax.metrics import METRICS, Metric
from p2p_jax.networks import abstract_state, make_gan, make_generator, make_policy
from p2p_jax.objectives import RATES, WEIGHTS
from p2p_jax.optim import BATCH_SCALING, Plateau, ScheduleOptions, factor
from p2p_jax.state import Gan, TrainState, count
from p2p_jax.validate import data_options


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long and how to train; see the keys of the same names in `config.base`."""

    batch_size: int
    steps: int
    steps_per_dispatch: int
    shuffle: bool
    cache: str
    threads: int
    log_every: int
    eval_every: int
    sample_every: int
    save_every: int
    keep: int
    best: str
    init_from: str
    init_nets: str


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How to evaluate; see the keys of the same names in `config.base`."""

    batch_size: int
    metrics: tuple[tuple[str, Metric], ...]
    split: str
    dropout: bool
    running: bool
    ema: bool
    sample_count: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run needs, built from a config.

    Attributes:
      config: every key and value, as it is saved.
      seed: of everything random.
      gan: networks, losses and optimisers for training.
      eval_gan: the same, normalising each image by its own statistics.
      mesh: the devices.
      form: of the convolutions.
      train_source: the pairs to train on.
      eval_source: the pairs to evaluate on.
      notes: what the user should know about the data.
      train: see `TrainOptions`.
      eval: see `EvalOptions`.
      hyper: (step, rows) to `[rows, len(HYPER)]`: rates and weights of the steps from `step` on.
      plateau: from what a checkpoint saved of it, or None, to a factor of the rates that follows
        evaluations; None where the schedule has no such thing.
    """

    config: dict[str, Any]
    seed: int
    gan: Gan
    eval_gan: Gan
    mesh: Mesh
    form: str
    train_source: PairSource
    eval_source: PairSource
    notes: tuple[str, ...]
    train: TrainOptions
    eval: EvalOptions
    hyper: Callable[[int, int], np.ndarray]
    plateau: Callable[[dict[str, Any] | None], Plateau] | None

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state, laid out over the mesh; nothing is computed."""
        return abstract_state(self.gan, self.mesh)

    def summary(self) -> list[tuple[str, str]]:
        """What will run, in rows of a name and a text, for the start."""
        shapes = self.abstract_state()
        train, augment, config = self.train, self.gan.augment, self.config
        devices = self.mesh.devices.ravel()
        disc: Any = self.gan.discriminator
        patches = "; ".join(
            f"{p.height}x{p.width} patches of {p.field}x{p.field} pixels"
            for p in disc.patches(*augment.crop_size)
        )
        names = [config["model"][net]["name"] for net in ("generator", "discriminator")]
        data = config["data"]
        way = data["direction"]
        if data["task"] != "translate":
            way = f"{data['task']} the {'right' if way == 'AtoB' else 'left'} image"
        where = data["name"] or data["path"] or "built in"
        images = _by(self.train_source.size)
        if augment.load_size != tuple(self.train_source.size):
            images += f", resized to {_by(augment.load_size)}"
        if augment.crop_size != augment.load_size:
            images += f", cropped to {_by(augment.crop_size)}"
        images += ", mirrored" * augment.flip
        epochs = train.steps * train.batch_size / len(self.train_source)
        return [
            ("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"),
            (
                "precision",
                f"{config['train']['precision']}, {self.form} convolutions",
            ),
            ("generator", f"{names[0]}, {count(shapes.gen.params):,} parameters"),
            (
                "discriminator",
                f"{names[1]}, {count(shapes.disc.params):,} parameters; {patches}",
            ),
            ("data", f"{data['source']} ({where}), {way}"),
            (
                "pairs",
                f"{len(self.train_source)} to train on, {len(self.eval_source)} to evaluate "
                f"({self.eval.split})",
            ),
            ("images", images),
            ("steps", f"{train.steps:,} of batch {train.batch_size}: {epochs:.3g} epochs"),
        ]


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def build(config: Config, log: Callable[[str], None]) -> Experiment:
    """Opens the data and assembles networks, losses and options; compiles nothing.

    Args:
      config: free of problems, as `validate` tells.
      log: is told what takes time.

    Raises:
      DataError: what is wrong with the data, all of it.
    """
    mesh = meshes.make_mesh(config.mesh.devices)
    splits = SOURCES[config.data.source].open(data_options(config), log)
    gan = make_gan(config)
    _check_channels(gan, splits)
    alone = make_generator(config, gan.task.channels[1], own_statistics=True)
    examples = len(splits.train)
    steps = config.train.steps or math.ceil(
        config.train.epochs * examples / config.train.batch_size
    )
    return Experiment(
        config=config.to_dict(),
        seed=config.seed,
        gan=gan,
        eval_gan=dataclasses.replace(gan, generator=alone),
        mesh=mesh,
        form=make_policy(config).form,
        train_source=splits.train,
        eval_source=splits.eval,
        notes=splits.notes,
        train=_train_options(config, steps),
        eval=EvalOptions(
            batch_size=config.eval.batch_size or mesh.size,
            metrics=tuple((name, METRICS[name]) for name in config.eval.metrics),
            split=config.eval.split or config.data.eval_split,
            dropout=config.eval.dropout,
            running=config.eval.norm_stats == "running",
            ema=config.eval.ema,
            sample_count=config.eval.sample_count,
            threads=_threads(config),
        ),
        hyper=_hyper(config, steps, examples),
        plateau=_plateau(config),
    )


def _check_channels(gan: Gan, splits: Splits) -> None:
    """Raises DataError where what is stored is not what the networks are to see."""
    problems = []
    for split, source in (("train", splits.train), ("eval", splits.eval)):
        pair = (jax.ShapeDtypeStruct((1, *x.shape), np.float32) for x in source[0])
        try:
            jax.eval_shape(gan.task.encode, *pair)
        except ValueError as error:
            problems.append(f"data.channels: {split} split: {error}")
    if problems:
        raise DataError(problems)


def _train_options(config: Config, steps: int) -> TrainOptions:
    train, data = config.train, config.data
    return TrainOptions(
        batch_size=train.batch_size,
        steps=steps,
        steps_per_dispatch=train.steps_per_dispatch,
        shuffle=data.shuffle,
        cache=data.cache,
        threads=_threads(config),
        log_every=train.log_every,
        eval_every=train.eval_every,
        sample_every=train.sample_every,
        save_every=train.save_every,
        keep=train.keep,
        best=train.best,
        init_from=train.init_from,
        init_nets=train.init_nets,
    )


def _threads(config: Config) -> int:
    return config.data.threads or os.cpu_count() or 1


def _hyper(config: Config, steps: int, examples: int) -> Callable[[int, int], np.ndarray]:
    """Rates and weights by step; all plain numbers, so that the config is not kept."""
    options, batch_size, flat = _schedule(config), config.train.batch_size, flatten(config)
    scale = BATCH_SCALING[config.optim.batch_scaling](batch_size)
    rates = [scale * flat[f"optim.{name.removesuffix('_lr')}.lr"] for name in RATES]
    weights = [flat[f"loss.{name}"] for name in WEIGHTS]
    dtype = "float64" if config.train.precision == "float64" else "float32"

    def hyper(step: int, rows: int) -> np.ndarray:
        # Rows beyond the run's end are never used.
        factors = [
            factor(options, min(s, steps - 1), steps, examples, batch_size)
            for s in range(step, step + rows)
        ]
        return np.array([[rate * f for rate in rates] + weights for f in factors], dtype)

    return hyper


def _schedule(config: Config) -> ScheduleOptions:
    optim = config.optim
    return ScheduleOptions(
        name=optim.schedule,
        decay_from=optim.decay_from,
        decay_every=optim.decay_every,
        decay_factor=optim.decay_factor,
        patience=optim.patience,
        warmup_steps=optim.warmup_steps,
        by_epoch=optim.by_epoch,
    )


def _plateau(config: Config) -> Callable[[dict[str, Any] | None], Plateau] | None:
    if config.optim.schedule != "plateau":
        return None
    mode, optim = METRICS[config.train.best].mode, _schedule(config)
    return lambda saved: Plateau(mode, optim.decay_factor, optim.patience, saved)
