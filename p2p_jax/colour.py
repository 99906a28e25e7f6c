"""Colour spaces: sRGB, CIE Lab, grey."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

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


def grey(rgb: Array) -> Array:
    """The luma of `[..., 3]` as `[..., 1]`, in its range."""
    return _weighted(rgb, _LUMA)[..., None]


def grey_of_lightness(lightness: Array) -> Array:
    """The grey in [0, 1], an sRGB value, that has a CIE lightness in 0..100."""
    return _gamma(_expand((lightness + 16) / 116))
