"""Colour spaces, and tasks: what becomes of a stored pair before the networks see it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax.images import to_signed, to_uint8

Array = jax.Array
Channels = tuple[int, int]

# Linear sRGB to CIE XYZ and its white, D65 at 2 degrees, to the digits that scikit-image uses.
_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE = (0.95047, 1.0, 1.08883)
# ITU-R 601-2, which PIL's mode L and the reference implementations use.
_LUMA = (0.299, 0.587, 0.114)
# Lightness 0..100 and the two opponents are divided by these; those of sRGB stay within 108.
_LIGHTNESS, _OPPONENT = 50.0, 110.0


def _weighted(image: Array, weights: tuple[float, ...]) -> Array:
    """Sum over channels, `[..., 3]` to `[...]`; elementwise, as a dot may be of low precision."""
    return sum(
        (image[..., i] * w for i, w in enumerate(weights[1:], 1)), image[..., 0] * weights[0]
    )


def _mixed(image: Array, matrix: np.ndarray) -> Array:
    """Each pixel of `[..., 3]` multiplied by a 3x3 matrix."""
    return jnp.stack([_weighted(image, tuple(row)) for row in matrix.tolist()], -1)


# In the pieces below, the power is of a number that is never negative, so that the branch which is
# not taken makes no NaN either.


def _linear(rgb: Array) -> Array:
    """Undoes the gamma of sRGB (IEC 61966-2-1)."""
    power = ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4
    return jnp.where(rgb > 0.04045, power, rgb / 12.92)


def _gamma(linear: Array) -> Array:
    """The gamma of sRGB (IEC 61966-2-1), clipped to [0, 1]."""
    power = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.clip(jnp.where(linear > 0.0031308, power, linear * 12.92), 0, 1)


def _compress(t: Array) -> Array:
    """The function f of CIE Lab."""
    root = jnp.cbrt(jnp.maximum(t, 0.008856))
    return jnp.where(t > 0.008856, root, 7.787 * t + 16 / 116)


def _expand(f: Array) -> Array:
    """Inverse of `_compress`."""
    return jnp.where(f > 0.2068966, f * f * f, (f - 16 / 116) / 7.787)


def rgb_to_lab(rgb: Array) -> Array:
    """From sRGB to CIE Lab (D65, 2 degrees), the same as scikit-image's `rgb2lab`.

    Args:
      rgb: `[b, h, w, 3]` in [0, 1].

    Returns:
      `[b, h, w, 3]` of the same type: L in 0..100, a and b within 108 of 0.
    """
    xyz = _mixed(_linear(rgb), _XYZ)
    x, y, z = (_compress(xyz[..., i] / white) for i, white in enumerate(_WHITE))
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: Array) -> Array:
    """From CIE Lab (D65, 2 degrees) to sRGB, the same as scikit-image's `lab2rgb`.

    Args:
      lab: `[b, h, w, 3]`, L in 0..100.

    Returns:
      `[b, h, w, 3]` of the same type in [0, 1]; colours that sRGB lacks are clipped to it.
    """
    y = (lab[..., 0] + 16) / 116
    x = lab[..., 1] / 500 + y
    z = jnp.maximum(y - lab[..., 2] / 200, 0)
    xyz = [_expand(f) * white for f, white in zip((x, y, z), _WHITE, strict=True)]
    return _gamma(_mixed(jnp.stack(xyz, -1), np.linalg.inv(_XYZ)))


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
        return _weighted(image, _LUMA)[..., None]
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
    luminance = _expand(((source + 1) * _LIGHTNESS + 16) / 116)
    return to_uint8(2 * _gamma(luminance) - 1)


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
