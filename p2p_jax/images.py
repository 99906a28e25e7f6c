"""Image arithmetic inside compiled programs: ranges of values, resizing and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Size = tuple[int, int]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _keys(x: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -1/2 (Keys 1981), as PIL, and PyTorch where it antialiases."""
    x = np.abs(x)
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, far, 0))


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(1, keepdims=True)


def _kernel_weights(
    kernel: Callable[[np.ndarray], np.ndarray], stored: int, wanted: int
) -> np.ndarray:
    """The kernel around each output pixel's centre, widened where it shrinks (antialiasing)."""
    scale = stored / wanted
    centre = (np.arange(wanted) + 0.5) * scale - 0.5
    # What falls outside the image is left out, and the rest weighs the more for it.
    return _normalised(kernel((np.arange(stored) - centre[:, None]) / max(scale, 1)))


def _bilinear(stored: int, wanted: int) -> np.ndarray:
    return _kernel_weights(_triangle, stored, wanted)


def _bicubic(stored: int, wanted: int) -> np.ndarray:
    return _kernel_weights(_keys, stored, wanted)


def _area(stored: int, wanted: int) -> np.ndarray:
    """How much of each input pixel an output pixel covers, in whole numbers until the end."""
    start, pixel = np.arange(wanted)[:, None] * stored, np.arange(stored) * wanted
    covered = np.minimum(start + stored, pixel + wanted) - np.maximum(start, pixel)
    return _normalised(np.maximum(covered, 0))


def _nearest(stored: int, wanted: int) -> np.ndarray:
    """floor((i + 1/2) * stored / wanted), in whole numbers, as a centre can lie on an edge."""
    return ((2 * np.arange(wanted) + 1) * stored // (2 * wanted)).astype(np.int32)


# (stored, wanted) pixels along one axis -> weights `[wanted, stored]`, or the indices `[wanted]` of
# the pixels that are taken as they are.
RESIZE: dict[str, Callable[[int, int], np.ndarray]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "area": _area,
    "nearest": _nearest,
}


def check_method(method: str) -> None:
    """Raises ValueError where there is no such way to resize."""
    if method not in RESIZE:
        raise ValueError(f"no way to resize is called {method!r}; there are {', '.join(RESIZE)}")


def _along(axis: int, image: Array, table: Array) -> Array:
    """Resamples one axis of `[h, w, c]` by the weights or indices of `RESIZE`."""
    if table.ndim == 1:
        index: list[Any] = [slice(None)] * axis + [table]
        return image.at[tuple(index)].get(mode="promise_in_bounds")
    # On accelerators the default is a few bits short of telling 256 levels apart.
    sums = ("oh,hwc->owc", "ow,hwc->hoc")[axis]
    return jnp.einsum(sums, table, image, precision=jax.lax.Precision.HIGHEST)


def resample(method: str, image: Array, rows: Array, columns: Array) -> Array:
    """Resamples both axes of `[h, w, c]` by `tables`, or by parts of them.

    Columns first, and bicubic clipped after each, as PIL 12 does it (13 begins with the rows where
    they shrink more): clipped once, a picture of hard edges is up to 30 levels from it.
    """
    for axis, table in ((1, columns), (0, rows)):
        image = _along(axis, image, table)
        if method == "bicubic":  # the only one that overshoots
            image = jnp.clip(image, 0, 255)
    return image


def tables(method: str, stored: tuple[int, ...], wanted: Size, dtype: Any) -> list[Array]:
    """`RESIZE` of both axes: constants of the program, computed in double precision."""
    both = (RESIZE[method](s, w) for s, w in zip(stored, wanted, strict=True))
    return [jnp.asarray(t, t.dtype if t.ndim == 1 else dtype) for t in both]


def resize(images: Array, size: Size, method: str = "bilinear") -> Array:
    """Resizes images; those of the size already are returned as they are.

    Args:
      images: `[b, h, w, c]`, floating, 0..255.
      size: (height, width) wanted.
      method: of `RESIZE`. `bilinear` and `bicubic` (Keys' kernel, clipped to 0..255) antialias
        where they shrink; `area` is the mean of the input that an output pixel covers; `nearest`
        takes the pixel that its centre lies in, and so invents no value.

    Returns:
      `[b, *size, c]` of the same type.

    Raises:
      ValueError: if there is no such method.
    """
    check_method(method)
    if images.shape[1:3] == size:
        return images
    both = tables(method, images.shape[1:3], size, images.dtype)
    return jax.vmap(lambda image: resample(method, image, *both))(images)


def _mirrored(stored: Any, wanted: int) -> Array:
    """Which of `stored` pixels each of `wanted` is: there and back, over and over."""
    place = jnp.arange(wanted, dtype=jnp.int32) % (2 * stored)
    return jnp.minimum(place, 2 * stored - 1 - place)


def pad(images: Array, size: Size, sizes: Array | None = None) -> Array:
    """Continues images to the bottom and right by their mirror images.

    As numpy's `pad` with mode `symmetric`: the last pixel comes twice, and what is less than half
    as large as wanted is mirrored again.

    Args:
      images: `[b, h, w, c]`.
      size: (height, width) wanted.
      sizes: int32 `[b, 2]`, the (height, width), of at least one pixel, that each image fills from
        the top left; what lies beyond is not looked at. None: all of it. Of larger ones than wanted
        the top left is kept: callers see to it that there are none.

    Returns:
      `[b, *size, c]` of the same type.

    Raises:
      ValueError: without sizes, images larger than wanted.
    """

    def one(image: Array, true: Any) -> Array:
        rows, columns = (_mirrored(true[axis], size[axis]) for axis in (0, 1))
        return _along(1, _along(0, image, rows), columns)

    if sizes is not None:
        # No pixel at all, as what fills up a batch may say, would be divided by.
        return jax.vmap(one)(images, jnp.maximum(sizes, 1))
    have = images.shape[1:3]
    if have == size:
        return images
    if have[0] > size[0] or have[1] > size[1]:
        raise ValueError(f"{have[0]}x{have[1]} cannot be padded to {size[0]}x{size[1]}")
    return jax.vmap(lambda image: one(image, have))(images)


# --- what numbers mean ---------------------------------------------------------------------------


class Values(NamedTuple):
    """What the stored numbers of images mean.

    Attributes:
      dtype: they are stored in: uint8, uint16 or float32.
      low: the number that becomes level 0, and -1 for the networks.
      high: the number that becomes level 255, and 1.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0


def to_levels(images: Array, values: Values, dtype: Any) -> Array:
    """Stored numbers to floating levels: low..high to 0..255, what lies beyond likewise.

    Where low is 0 and high 255 they are only cast, so that whole numbers stay exact.
    """
    images = images.astype(dtype)
    if (values.low, values.high) == (0, 255):
        return images
    return (images - values.low) / ((values.high - values.low) / 255)


def to_signed(images: Array, dtype: Any) -> Array:
    """Levels 0..255 to floating [-1, 1]."""
    return images.astype(dtype) / 127.5 - 1


_UINT8 = Values()


def from_signed(images: Array, values: Values = _UINT8) -> Array:
    """Floating [-1, 1] to stored numbers: low..high, in the type they are stored in.

    For whole numbers rounded to nearest and clipped to what the type holds.
    """
    numbers = (images + 1) * ((values.high - values.low) / 2)
    if values.low:
        numbers = numbers + values.low
    if jnp.issubdtype(values.dtype, jnp.integer):
        info = jnp.iinfo(values.dtype)
        numbers = jnp.clip(jnp.round(numbers), info.min, info.max)
    return numbers.astype(values.dtype)
