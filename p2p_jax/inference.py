"""A run's generator to translate with, of its checkpoint's item `gen` alone; data is not opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh, report, storage
from p2p_jax.build import stored_values
from p2p_jax.config import Config, ConfigError
from p2p_jax.data import Form
from p2p_jax.finetune import restore_networks
from p2p_jax.flags import saved_config
from p2p_jax.networks import make_generator
from p2p_jax.state import Gan
from p2p_jax.storage import AnyPath

Tree = Any


class Inference(NamedTuple):
    """A generator with all that it takes to use it.

    Attributes:
      config: of the run.
      gan: of it; its generator normalises each image by itself unless `running`, and shares no
        image between devices.
      params: of the generator, the averaged ones where those were asked for.
      stats: running statistics of its norms; empty where it has none.
      step: updates done.
      running: normalise by the running statistics, not the images' own.
      source: what sources are stored as; of 0 channels where the task makes them of targets.
      target: what targets are stored as.
      averaged: whether the parameters are the averaged ones.
    """

    config: Config
    gan: Gan
    params: Tree
    stats: Tree
    step: int
    running: bool
    source: Form
    target: Form
    averaged: bool = False


def restore(
    workdir: AnyPath,
    *,
    step: int | None = None,
    ema: bool | None = None,
    running: bool | None = None,
    grid: Mesh | None = None,
    warn: Callable[[str], None] = print,
) -> Inference:
    """The generator of a run, ready to translate on any devices of any machine.

    A run of `train.precision=float64` needs 64-bit arrays turned on (`mesh.use_precision`, or
    `jax.enable_x64`), any other needs them off.

    Args:
      workdir: of the run; only read.
      step: the checkpoint to take instead of the newest sound one.
      ema: whether to take the averaged weights; None: as the run's `eval.ema` says.
      running: whether to normalise by running statistics; None: as its `eval.norm_stats` says.
      grid: the devices to put the arrays on; None: the first one.
      warn: is told what was damaged.

    Raises:
      CheckpointError: there are checkpoints, but none is sound, or not the one wanted.
      ConfigError: the folder is not a run's, has no checkpoint yet, or none of that step, keeps no
        averaged weights, or is of 64 bits where this process is not.
    """
    config = saved_config(workdir)
    ema = config.eval.ema if ema is None else ema
    running = config.eval.norm_stats == "running" if running is None else running
    if ema and not config.train.ema_decay:
        raise ConfigError(
            ["--ema: the run keeps no averaged weights: its train.ema_decay is 0; leave it out"]
        )
    grid = mesh.make_mesh(1) if grid is None else grid
    gan, restored = restore_networks(workdir, grid, warn, ("gen",), step)
    gen = restored.items["gen"]
    source, target = forms(config, gan, workdir)
    return Inference(
        config=config,
        gan=_alone(config, gan, (source, target)),
        params=gen["ema" if ema else "params"],
        stats=gen["stats"],
        step=restored.step,
        running=bool(running),
        source=source,
        target=target,
        averaged=bool(ema),
    )


def _alone(config: Config, gan: Gan, stored: tuple[Form, Form]) -> Gan:
    """The networks as they are on devices that share nothing, images on their own."""
    local = config.copy_and_resolve_references()
    local.mesh.spatial = 1
    generator = make_generator(local, gan.task.channels[1], gan.task.output, own_statistics=True)
    return dataclasses.replace(
        gan,
        generator=generator,
        spatial=None,
        shard_optimizer=False,
        values=stored_values(config, gan, stored),
    )


def forms(config: Config, gan: Gan, workdir: AnyPath) -> tuple[Form, Form]:
    """What sources and targets of a run are stored as, by its newest start.

    What a run does not tell, as those of older versions, is of 8 bits and the channels configured.
    """
    told, found = report.last_start(workdir), []
    for side, channels, labelled in zip(
        ("source", "target"), config.data.channels, gan.task.labelled, strict=True
    ):
        if gan.task.channels == (1, 2) or (gan.task.channels == (1, 3) and makes_sources(gan)):
            channels = 3  # of photos, whatever of them the networks see
        usual = Form(1 if labelled else channels)
        known = {k: v for k, v in told.get(side, {}).items() if k in Form._fields}
        found.append(usual._replace(**known))
    if makes_sources(gan):
        found[0] = found[1]._replace(channels=0)
    return found[0], found[1]


def makes_sources(gan: Gan) -> bool:
    """Whether the task makes sources of targets, as of a photo its lightness."""
    return any(_encodes(gan, 0, channels) for channels in (3, gan.task.channels[1]))


def _encodes(gan: Gan, *channels: int) -> bool:
    pair = (jax.ShapeDtypeStruct((1, *gan.augment.crop_size, c), np.float32) for c in channels)
    try:
        jax.eval_shape(gan.task.encode, *pair)
    except ValueError:
        return False
    return True


def at(workdir: AnyPath) -> AnyPath:
    """A workdir given as text or as a path.

    Raises:
      ConfigError: it cannot be looked at.
    """
    try:
        path = storage.at(workdir) if isinstance(workdir, str) else workdir
    except OSError as error:
        raise ConfigError([f"--workdir: {error}"]) from error
    reason = storage.unreachable(path) if storage.is_remote(path) else ""
    if reason:
        raise ConfigError([f"--workdir: {reason}"])
    return path
