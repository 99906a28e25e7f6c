"""Image arithmetic inside compiled programs: scaling, resizing, jitter and mirroring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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


def _check(method: str) -> None:
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


def _resample(method: str, image: Array, rows: Array, columns: Array) -> Array:
    """Both axes of `[h, w, c]`.

    Columns first, and bicubic clipped after each, as PIL 12 does it (13 begins with the rows where
    they shrink more): clipped once, a picture of hard edges is up to 30 levels from it.
    """
    for axis, table in ((1, columns), (0, rows)):
        image = _along(axis, image, table)
        if method == "bicubic":  # the only one that overshoots
            image = jnp.clip(image, 0, 255)
    return image


def _tables(method: str, stored: tuple[int, ...], wanted: Size, dtype: Any) -> list[Array]:
    """`RESIZE` of both axes: constants of the program, computed in double precision."""
    tables = [RESIZE[method](s, w) for s, w in zip(stored, wanted, strict=True)]
    return [jnp.asarray(t, t.dtype if t.ndim == 1 else dtype) for t in tables]


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random jitter and mirroring, alike for both images of a pair (Isola et al. 2017, 6.2).

    Attributes:
      load_size: (height, width) the images are resized to.
      crop_size: (height, width) cut out of them at a random place.
      flip: mirror half of the pairs left to right.
      method: how to resize, of `RESIZE`; see `resize`.

    Raises:
      ValueError: if there is no such method.
    """

    load_size: Size
    crop_size: Size
    flip: bool
    method: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self.method)

    def draw(self, key: Array) -> tuple[Array, Array, Array]:
        """The crop's top and left (pixels, int32) and whether to mirror, of one example's key."""
        top_key, left_key, flip_key = jax.random.split(key, 3)
        spare = [load - crop for load, crop in zip(self.load_size, self.crop_size, strict=True)]
        top = jax.random.randint(top_key, (), 0, spare[0] + 1, jnp.int32)
        left = jax.random.randint(left_key, (), 0, spare[1] + 1, jnp.int32)
        mirrored = (jax.random.bits(flip_key, (), jnp.uint32) >> 31).astype(bool)
        return top, left, mirrored & self.flip

    def __call__(self, keys: Array, images: Array) -> Array:
        """Resizes, crops and mirrors.

        Args:
          keys: `[b]` typed keys, one per example; both images of a pair get the same.
          images: `[b, h, w, c]`, floating, 0..255.

        Returns:
          `[b, crop height, crop width, c]` of the same type and range.
        """
        return jax.vmap(self._one)(keys, images)

    def _one(self, key: Array, image: Array) -> Array:
        top, left, mirrored = self.draw(key)
        if image.shape[:2] == self.load_size:
            corner = (top, left, jnp.int32(0))
            image = jax.lax.dynamic_slice(image, corner, (*self.crop_size, image.shape[2]))
        else:
            # Resizing and cropping in one: only the crop's pixels are computed.
            tables = _tables(self.method, image.shape[:2], self.load_size, image.dtype)
            rows, columns = (
                jax.lax.dynamic_slice_in_dim(table, start, size)
                for table, start, size in zip(tables, (top, left), self.crop_size, strict=True)
            )
            image = _resample(self.method, image, rows, columns)
        return jnp.where(mirrored, image[:, ::-1], image)


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
    _check(method)
    if images.shape[1:3] == size:
        return images
    tables = _tables(method, images.shape[1:3], size, images.dtype)
    return jax.vmap(lambda image: _resample(method, image, *tables))(images)


def to_signed(images: Array, dtype: Any) -> Array:
    """uint8 0..255 to floating [-1, 1]."""
    return images.astype(dtype) / 127.5 - 1


def to_uint8(images: Array) -> Array:
    """Floating [-1, 1] to uint8 0..255, rounded to nearest."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
