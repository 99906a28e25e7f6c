"""From a config to an experiment: the only reader of the ConfigDict."""

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
from p2p_jax.config import Config, data_options, flatten
from p2p_jax.data import SOURCES, PairSource
from p2p_jax.images import Augment
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.metrics import METRICS, Metric
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import DiscriminatorOptions, GeneratorOptions
from p2p_jax.optim import SCHEDULES, adam
from p2p_jax.state import Gan, TrainState, count, init
from p2p_jax.step import HYPER


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
      train_source: the pairs to train on.
      eval_source: the pairs to evaluate on.
      notes: what the user should know about the data.
      train: see `TrainOptions`.
      eval: see `EvalOptions`.
      hyper: (step, rows) to `[rows, len(HYPER)]`: rates and weights of the steps from `step` on.
    """

    config: dict[str, Any]
    seed: int
    gan: Gan
    eval_gan: Gan
    mesh: Mesh
    train_source: PairSource
    eval_source: PairSource
    notes: tuple[str, ...]
    train: TrainOptions
    eval: EvalOptions
    hyper: Callable[[int, int], np.ndarray]

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state, laid out over the mesh; nothing is computed."""
        shapes = jax.eval_shape(lambda: init(self.gan, self.seed))
        sharding = meshes.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    def summary(self) -> list[tuple[str, str]]:
        """What will run, in rows of a name and a text, for the start."""
        shapes = self.abstract_state()
        train, augment, config = self.train, self.gan.augment, self.config
        devices = self.mesh.devices.ravel()
        networks: Any = (self.gan.generator, self.gan.discriminator)
        disc = networks[1]
        patches = _by(disc.output_size(size) for size in augment.crop_size)
        names = [config["model"][net]["name"] for net in ("generator", "discriminator")]
        data = config["data"]
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
                f"{config['train']['precision']}, {networks[0].policy.form} convolutions",
            ),
            ("generator", f"{names[0]}, {count(shapes.gen.params):,} parameters"),
            (
                "discriminator",
                f"{names[1]}, {count(shapes.disc.params):,} parameters; {patches} patches of "
                f"{_by([disc.receptive_field] * 2)} pixels",
            ),
            ("data", f"{data['source']} ({where}), {data['direction']}"),
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
      config: free of problems, as `config.validate` tells.
      log: is told what takes time.

    Raises:
      DataError: what is wrong with the data, all of it.
    """
    mesh = meshes.make_mesh(config.mesh.devices)
    splits = SOURCES[config.data.source].open(data_options(config), log)
    gan = _gan(config)
    own_statistics = dataclasses.replace(gan.generator, norm_group=1)  # type: ignore[arg-type]
    steps = config.train.steps or math.ceil(
        config.train.epochs * len(splits.train) / config.train.batch_size
    )
    return Experiment(
        config=config.to_dict(),
        seed=config.seed,
        gan=gan,
        eval_gan=dataclasses.replace(gan, generator=own_statistics),
        mesh=mesh,
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
        hyper=_hyper(config, steps),
    )


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
    )


def _threads(config: Config) -> int:
    return config.data.threads or os.cpu_count() or 1


def _policy(config: Config) -> Policy:
    """How to compute on the devices at hand."""
    platform = jax.devices()[0].platform
    precision = config.train.precision
    dtype = precision if precision in ("float64", "bfloat16") else "float32"
    form = config.train.conv_form
    if form == "auto":
        form = "polyphase" if platform == "cpu" else "plain"
    return Policy(
        dtype=dtype,
        param_dtype="float64" if precision == "float64" else "float32",
        precision={"tf32": "high", "bfloat16": "default"}.get(precision, "highest"),
        form=form,
        grad="taps" if platform == "cpu" else "xla",
    )


def _gan(config: Config) -> Gan:
    policy, loss = _policy(config), config.loss
    channels = (3, 3)
    generator = GeneratorOptions(**config.model.generator)
    disc = DiscriminatorOptions(**config.model.discriminator)
    return Gan(
        generator=GENERATORS[generator.name](generator, policy, channels[1], meshes.AXIS),
        discriminator=DISCRIMINATORS[disc.name](disc, policy, meshes.AXIS),
        gen_tx=adam(config.optim.gen.b1, config.optim.gen.b2, config.optim.gen.eps),
        disc_tx=adam(config.optim.disc.b1, config.optim.disc.b2, config.optim.disc.eps),
        adversarial=ADVERSARIAL[loss.adversarial],
        reconstruction=tuple((name, fn) for name, fn in RECONSTRUCTION.items() if loss[name]),
        augment=Augment(config.data.load_size, config.data.crop_size, config.data.flip),
        channels=channels,
        ema_decay=config.train.ema_decay,
        dtype=policy.param_dtype,
        axis=meshes.AXIS,
    )


def _hyper(config: Config, steps: int) -> Callable[[int, int], np.ndarray]:
    """Rates and weights by step; all plain numbers, so that the config is not kept."""
    factor, decay_from = SCHEDULES[config.optim.schedule], config.optim.decay_from
    flat = flatten(config)
    rates = (flat["optim.gen.lr"], flat["optim.disc.lr"])
    weights = [flat[f"loss.{name}"] for name in HYPER[2:]]
    dtype = "float64" if config.train.precision == "float64" else "float32"

    def hyper(step: int, rows: int) -> np.ndarray:
        # Rows beyond the run's end are never used.
        factors = [factor(min(s, steps - 1), steps, decay_from) for s in range(step, step + rows)]
        return np.array([[rate * f for rate in rates] + weights for f in factors], dtype)

    return hyper
