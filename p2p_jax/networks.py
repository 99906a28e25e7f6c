"""From a config to its networks; no data is needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from p2p_jax import mesh
from p2p_jax.config import Config
from p2p_jax.models import DISCRIMINATORS, GENERATORS, MultiScale
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import Style
from p2p_jax.models.options import DiscriminatorOptions, GeneratorOptions

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


def make_policy(config: Config) -> Policy:
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


def make_generator(config: Config, channels: int, own_statistics: bool = False) -> Any:
    """The generator of a config.

    Args:
      config: free of problems.
      channels: of the images it makes.
      own_statistics: normalise each image by its own, whatever `norm_group` says, so that no result
        depends on neighbours in a batch.
    """
    style = _style(config, config.model.generator)
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


def _options(kind: type, section: Config) -> Any:
    return kind(**{field.name: section[field.name] for field in dataclasses.fields(kind)})


def _style(config: Config, section: Config) -> Style:
    model = config.model
    return Style(
        policy=make_policy(config),
        axis=mesh.AXIS,
        norm=section.norm,
        norm_group=section.norm_group,
        norm_eps=model.norm_eps,
        norm_momentum=model.norm_momentum,
        norm_scale_std=model.norm_scale_std,
        bias=section.bias,
        slope=section.slope,
        init=model.init,
        init_gain=model.init_gain,
    )
