"""From a config to its networks and their state; no data is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from p2p_jax import mesh as meshes
from p2p_jax.augment import Augment
from p2p_jax.config import Config
from p2p_jax.data import SOURCES
from p2p_jax.data.labels import Labels, colours, read_palette
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.models import DISCRIMINATORS, GENERATORS, MultiScale
from p2p_jax.models.conv import Policy, policy_for
from p2p_jax.models.layers import REMAT, Style
from p2p_jax.models.options import DiscriminatorOptions, GeneratorOptions
from p2p_jax.optim import adam
from p2p_jax.state import Gan, TrainState, init, specs
from p2p_jax.tasks import TASKS, Task, TaskOptions

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


def make_policy(config: Config) -> Policy:
    """How to compute on the devices at hand."""
    platform = jax.devices()[0].platform
    form = config.train.conv_form
    if not _spatial(config):
        return policy_for(platform, config.train.precision, form)
    # Of the plain form alone XLA exchanges borders of bands, and not whole images.
    policy = policy_for(platform, config.train.precision, "plain" if form == "auto" else form)
    return dataclasses.replace(policy, grad="xla")


def _spatial(config: Config) -> str | None:
    return meshes.SPATIAL if config.mesh.spatial > 1 else None


def make_generator(config: Config, channels: int, output: str, own_statistics: bool = False) -> Any:
    """The generator of a config.

    Args:
      config: free of problems.
      channels: of the images it makes.
      output: what it ends in; see `models.layers.OUTPUTS`.
      own_statistics: normalise each image by its own, whatever `norm_group` says, so that no result
        depends on neighbours in a batch.
    """
    style = _style(config, config.model.generator).but(output=output)
    if own_statistics:
        style = style.but(norm_group=1)
    options = _options(GeneratorOptions, config.model.generator)
    return GENERATORS[options.name](options, style, channels)


def make_discriminator(config: Config) -> Any:
    """The discriminator of a config, or those for several scales in one."""
    chosen = config.model.discriminator
    style = _style(config, chosen).but(spectral=chosen.spectral)
    options = _options(DiscriminatorOptions, chosen)
    judge: nn.Module = DISCRIMINATORS[options.name](options, style)
    return judge if chosen.scales == 1 else MultiScale((judge,) * chosen.scales)


def make_task(config: Config) -> Task:
    """The task of a config: the one it names, or the one that its source is for.

    Raises:
      ValueError: what the task is told does not suit it, or a palette cannot be read.
    """
    name = config.data.task
    return TASKS[SOURCES[config.data.source].task if name == "auto" else name](task_options(config))


def task_options(config: Config) -> TaskOptions:
    """What the task of a config needs to know.

    Raises:
      ValueError: a palette that cannot be read.
    """
    data = config.data
    options = TaskOptions(channels=data.channels, labels=data.labels, hole=data.hole)
    if data.task != "labels" and (data.task != "auto" or data.source != "labels"):
        return options
    known = read_palette(data.palette)
    palette = colours(Labels(known, len(known) or data.classes, data.label_tolerance))
    return dataclasses.replace(options, classes=len(palette), palette=palette)


def make_augment(config: Config, task: Task) -> Augment:
    """How pairs are cut out and varied, where all that is stored is of one size, or of any.

    Widths to which heights follow (`scale_width`) are not known here: nothing is resized then.
    """
    data = config.data
    return Augment(
        load_size=data.load_size if data.preprocess == "resize_and_crop" else None,
        crop_size=data.crop_size,
        flip=data.flip,
        methods=task.methods(data.resize),
        fit="crop" if data.preprocess.endswith("crop") else "pad",
        flip_vertical=data.flip_vertical,
        rotate=data.rotate,
        brightness=data.brightness,
        contrast=data.contrast,
        saturation=data.saturation,
    )


def make_gan(config: Config) -> Gan:
    """Networks, losses and optimisers of a config; no data is needed."""
    policy, loss, optim = make_policy(config), config.loss, config.optim
    task = make_task(config)
    return Gan(
        generator=make_generator(config, task.channels[1], task.output),
        discriminator=make_discriminator(config),
        gen_tx=adam(optim.gen.b1, optim.gen.b2, optim.gen.eps),
        disc_tx=adam(optim.disc.b1, optim.disc.b2, optim.disc.eps),
        adversarial=ADVERSARIAL[loss.adversarial],
        reconstruction=tuple((name, fn) for name, fn in RECONSTRUCTION.items() if loss[name]),
        feature_matching=bool(loss.feature_matching),
        simultaneous=config.train.simultaneous,
        augment=make_augment(config, task),
        task=task,
        ema_decay=config.train.ema_decay,
        dtype=policy.param_dtype,
        axis=meshes.AXIS,
        spatial=_spatial(config),
        accumulate=config.train.accumulate,
        remat=REMAT[config.train.remat],
        skip_nonfinite=config.train.on_nan == "skip",
        shard_optimizer=config.train.shard_optimizer,
    )


def _options(kind: type, section: Config) -> Any:
    return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})


def _style(config: Config, section: Config) -> Style:
    model = config.model
    return Style(
        policy=make_policy(config),
        axis=meshes.AXIS,
        norm=section.norm,
        norm_group=section.norm_group,
        norm_eps=model.norm_eps,
        norm_momentum=model.norm_momentum,
        norm_scale_std=model.norm_scale_std,
        bias=section.bias,
        slope=section.slope,
        init=model.init,
        init_gain=model.init_gain,
        spatial=_spatial(config),
    )


def abstract_state(gan: Gan, mesh: Mesh) -> TrainState:
    """Shapes and types of a state, laid out over the mesh; nothing is computed."""
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        jax.eval_shape(lambda: init(gan, 0)),
        specs(gan, mesh.shape[gan.axis]),
    )


def draw(
    gan: Gan, seed: int, like: TrainState, parts: Callable[[TrainState], Any] = lambda s: s
) -> Any:
    """Draws a fresh state.

    Args:
      gan: the networks.
      seed: of what is drawn.
      like: the state's shapes and layout, from `abstract_state`.
      parts: keeps what is wanted of a state; the rest is never computed.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    drawing = jax.jit(
        lambda: parts(init(gan, seed)),
        out_shardings=jax.tree.map(lambda x: x.sharding, parts(like)),
        # XLA's CPU backend takes longer to optimise the random draws than to do them.
        compiler_options={"xla_backend_optimization_level": 1} if on_cpu else None,
    )
    return drawing()
