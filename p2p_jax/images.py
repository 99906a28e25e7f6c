"""Image arithmetic inside compiled programs: scaling, resizing, jitter and mirroring."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random jitter and mirroring, alike for both images of a pair (Isola et al. 2017, 6.2).

    Attributes:
      load_size: (height, width) the images are resized to.
      crop_size: (height, width) cut out of them at a random place.
      flip: mirror half of the pairs left to right.
    """

    load_size: Size
    crop_size: Size
    flip: bool

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
          images: `[b, h, w, c]`, floating.

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
            # Resizing and cropping in one: bilinear sampling of the crop's pixels alone.
            scale = [s / n for s, n in zip(self.load_size, image.shape[:2], strict=True)]
            image = jax.image.scale_and_translate(
                image,
                (*self.crop_size, image.shape[2]),
                (0, 1),
                jnp.array(scale, image.dtype),
                -jnp.stack([top, left]).astype(image.dtype),
                "linear",
            )
        return jnp.where(mirrored, image[:, ::-1], image)


def resize(images: Array, size: Size) -> Array:
    """`[b, h, w, c]` to `[b, *size, c]`: bilinear, antialiased where it shrinks."""
    if images.shape[1:3] == size:
        return images
    shape = (images.shape[0], *size, images.shape[3])
    return jax.image.resize(images, shape, "linear")


def to_signed(images: Array, dtype: Any) -> Array:
    """uint8 0..255 to floating [-1, 1]."""
    return images.astype(dtype) / 127.5 - 1


def to_uint8(images: Array) -> Array:
    """Floating [-1, 1] to uint8 0..255, rounded to nearest."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
