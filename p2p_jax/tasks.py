"""Tasks: what becomes of a stored pair before the networks see it, and how to look at it after."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from p2p_jax.colour import grey, grey_of_lightness, lab_to_rgb, rgb_to_lab
from p2p_jax.images import to_signed, to_uint8

Array = jax.Array
Channels = tuple[int, int]

# Lightness 0..100 and the two opponents are divided by these; those of sRGB stay within 108.
_LIGHTNESS, _OPPONENT = 50.0, 110.0


class Task(NamedTuple):
    """What becomes of a stored pair before the networks see it, and how to look at the outcome.

    Attributes:
      channels: of source and target, as the networks see them.
      encode: stored (source, target), floating `[b, h, w, c]` in 0..255, to those that the networks
        see, in [-1, 1]. Raises ValueError where the stored channels do not fit.
      show: (source, image) as the networks see them, the image a target or its likeness, to the
        image's picture: uint8 `[b, h, w, c]` with c as stored or 1.
      show_source: the source as the networks see it to its picture, likewise.
    """

    channels: Channels
    encode: Callable[[Array, Array], tuple[Array, Array]]
    show: Callable[[Array, Array], Array]
    show_source: Callable[[Array], Array]


def _fitted(name: str, image: Array, channels: int) -> Array:
    """The image with so many channels: as it is, or grey."""
    stored = image.shape[-1]
    if stored == channels:
        return image
    if (stored, channels) == (3, 1):
        return grey(image)
    raise ValueError(
        f"{name} images are stored with {stored} channels and wanted with {channels}; "
        f"only 3 can be turned into another number, 1 (grey)"
    )


def _translate_encode(channels: Channels, source: Array, target: Array) -> tuple[Array, Array]:
    fitted = _fitted("source", source, channels[0]), _fitted("target", target, channels[1])
    return to_signed(fitted[0], source.dtype), to_signed(fitted[1], target.dtype)


def _translate_show(source: Array, image: Array) -> Array:
    del source
    return to_uint8(image)


# Cached, so that equal channels give equal tasks: they are part of what a program is compiled for.
@functools.cache
def translate(channels: Channels) -> Task:
    """Source to target as they are stored, except that either may be made grey."""
    encode = functools.partial(_translate_encode, channels)
    return Task(channels, encode, _translate_show, to_uint8)


def _colorize_encode(source: Array, target: Array) -> tuple[Array, Array]:
    del source
    if target.shape[-1] != 3:
        raise ValueError(
            f"target images are stored with {target.shape[-1]} channels; colorize needs photos of 3"
        )
    lab = rgb_to_lab(target / 255)
    return lab[..., :1] / _LIGHTNESS - 1, lab[..., 1:] / _OPPONENT


def _colorize_show(source: Array, image: Array) -> Array:
    lab = jnp.concatenate([(source + 1) * _LIGHTNESS, image * _OPPONENT], -1)
    return to_uint8(2 * lab_to_rgb(lab) - 1)


def _colorize_show_source(source: Array) -> Array:
    return to_uint8(2 * grey_of_lightness((source + 1) * _LIGHTNESS) - 1)


@functools.cache
def colorize(channels: Channels) -> Task:
    """Lightness to colour (Zhang et al. 2016; Isola et al. 2017): photos give both.

    The stored source is ignored. Of the stored target, the source is L / 50 - 1 `[b, h, w, 1]`, the
    target ab / 110 `[b, h, w, 2]`.

    Args:
      channels: (1, 2), which it always is, or (3, 3) as stored.

    Raises:
      ValueError: if channels are others.
    """
    if channels not in ((1, 2), (3, 3)):
        raise ValueError(
            f"channels of colorize are (1, 2), lightness and colour, not {channels}; "
            f"leave them at (3, 3) or say (1, 2)"
        )
    return Task((1, 2), _colorize_encode, _colorize_show, _colorize_show_source)


# From the channels asked for, (source, target).
TASKS: dict[str, Callable[[Channels], Task]] = {"translate": translate, "colorize": colorize}
