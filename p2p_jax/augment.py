"""Where a pair is cut out of what is stored, and how it is varied; inside compiled programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from p2p_jax.colour import grey
from p2p_jax.images import Size, check_method, pad, resample, resize, tables

Array = jax.Array

FITS = ("crop", "pad")
# What an example's key is folded with for each draw beside crop and mirroring, which have the
# children 0 to 2 of its split: fixed numbers, as a resumed run depends on them.
VERTICAL, TURN, BRIGHTNESS, CONTRAST, SATURATION = 3, 4, 5, 6, 7


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random jitter, mirroring and more, the same geometry for both images of a pair.

    Resizing and cropping at random, and mirroring, are the paper's (Isola et al. 2017, 6.2). The
    order is: resize, crop or pad, mirror, turn; then, of the source alone, brightness, contrast and
    saturation, each clipped to 0..255. What is off is neither drawn nor computed.

    Attributes:
      load_size: (height, width) the images are resized to; None leaves them as they are.
      crop_size: (height, width) of what comes out.
      flip: mirror half of the pairs left to right.
      methods: how to resize source and target, of `images.RESIZE`.
      fit: how `crop_size` comes about: `crop`, cut out at a random place, or `pad`, continued by
        mirror images; see `images.pad`.
      flip_vertical: turn half of the pairs upside down.
      rotate: by 0, 1, 2 or 3 quarter turns.
      brightness: the source is multiplied by a number drawn from [1 - this, 1 + this].
      contrast: likewise its distance from its mean luma, one number for the image.
      saturation: likewise from the luma of each pixel; grey has none, and stays as it is.

    Raises:
      ValueError: an unknown method or fit, a size that cannot be cut out or padded, quarter turns
        of what is not square, a strength outside of [0, 1].
    """

    load_size: Size | None
    crop_size: Size
    flip: bool
    methods: tuple[str, str] = ("bilinear", "bilinear")
    fit: str = "crop"
    flip_vertical: bool = False
    rotate: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        """Checks what can be checked without images."""
        for method in self.methods:
            check_method(method)
        if self.fit not in FITS:
            raise ValueError(f"fit is one of {', '.join(FITS)}, not {self.fit!r}")
        if self.rotate and self.crop_size[0] != self.crop_size[1]:
            raise ValueError(f"only squares can make quarter turns, not {_by(self.crop_size)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is from 0 to 1, not {getattr(self, name)}")
        if self.load_size is not None:
            self._check_room(self.load_size)

    def _check_room(self, have: tuple[int, ...]) -> None:
        pairs = list(zip(have, self.crop_size, strict=True))
        if self.fit == "crop" and any(h < c for h, c in pairs):
            raise ValueError(f"{_by(self.crop_size)} cannot be cut out of {_by(have)}")
        if self.fit == "pad" and any(h > c for h, c in pairs):
            raise ValueError(f"{_by(have)} cannot be padded to {_by(self.crop_size)}")

    def draw(self, key: Array, size: Any = None) -> tuple[Array, Array, Array]:
        """The crop's top and left (pixels, int32) and whether to mirror, of one example's key.

        Args:
          key: of the example.
          size: (height, width) that is cut out of, numbers or int32 scalars; None: `load_size`.
        """
        size = self.crop_size if self.fit == "pad" else self.load_size if size is None else size
        top_key, left_key, flip_key = jax.random.split(key, 3)
        spare = [have - crop for have, crop in zip(size, self.crop_size, strict=True)]
        top = jax.random.randint(top_key, (), 0, spare[0] + 1, jnp.int32)
        left = jax.random.randint(left_key, (), 0, spare[1] + 1, jnp.int32)
        return top, left, _bits(flip_key, 1).astype(bool) & self.flip

    def __call__(
        self, keys: Array, source: Array, target: Array, sizes: Array | None = None
    ) -> tuple[Array, Array]:
        """Brings pairs to `crop_size`, and varies them.

        Args:
          keys: `[b]` typed keys, one per example.
          source: `[b, h, w, c]`, floating, 0..255; c may be 0.
          target: `[b, h, w, c']`, likewise.
          sizes: int32 `[b, 2]`, the (height, width) that each pair fills of h and w from the top
            left; None: all. Callers see to it that they fit `crop_size` as `fit` demands.

        Returns:
          Source and target, `[b, crop height, crop width, c]` of the same types.

        Raises:
          ValueError: images of different sizes, or such as do not fit; sizes where something is to
            be resized; saturation of other than 1 or 3 channels.
        """
        have = source.shape[1:3]
        if self.load_size is None:
            if have != target.shape[1:3]:
                raise ValueError(f"source is {_by(have)}, target {_by(target.shape[1:3])}")
            if sizes is None:
                self._check_room(have)
        elif sizes is not None:
            raise ValueError("images of several sizes are not resized to load_size here")
        if self.saturation and source.shape[3] not in (0, 1, 3):
            raise ValueError(f"saturation needs a source of 1 or 3 channels, not {source.shape[3]}")
        return jax.vmap(self._one)(keys, source, target, sizes)

    def _one(
        self, key: Array, source: Array, target: Array, size: Array | None
    ) -> tuple[Array, Array]:
        if self.load_size is not None:
            have: Any = self.load_size
        else:
            have = source.shape[:2] if size is None else (size[0], size[1])
        top, left, mirrored = self.draw(key, have)

        def geometry(image: Array, method: str) -> Array:
            if not image.shape[2]:
                return jnp.zeros_like(image, shape=(*self.crop_size, 0))
            if self.fit == "pad":
                image = self._padded(image, method, size)
            else:
                image = self._cut(image, method, top, left)
            image = jnp.where(mirrored, image[:, ::-1], image)
            return self._turned(key, image)

        source, target = (
            geometry(image, method)
            for image, method in zip((source, target), self.methods, strict=True)
        )
        return self._recoloured(key, source), target

    def _padded(self, image: Array, method: str, size: Array | None) -> Array:
        images = image[None]
        if self.load_size is not None:
            images = resize(images, self.load_size, method)
        return pad(images, self.crop_size, None if size is None else size[None])[0]

    def _cut(self, image: Array, method: str, top: Array, left: Array) -> Array:
        if self.load_size in (None, image.shape[:2]):
            corner = (top, left, jnp.int32(0))
            return jax.lax.dynamic_slice(image, corner, (*self.crop_size, image.shape[2]))
        # Resizing and cropping in one: only the crop's pixels are computed.
        both = tables(method, image.shape[:2], self.load_size, image.dtype)
        rows, columns = (
            jax.lax.dynamic_slice_in_dim(table, start, size)
            for table, start, size in zip(both, (top, left), self.crop_size, strict=True)
        )
        return resample(method, image, rows, columns)

    def _turned(self, key: Array, image: Array) -> Array:
        if self.flip_vertical:
            down = _bits(jax.random.fold_in(key, VERTICAL), 1).astype(bool)
            image = jnp.where(down, image[::-1], image)
        if self.rotate:
            quarters = _bits(jax.random.fold_in(key, TURN), 2)
            image = jnp.where(quarters & 1, jnp.rot90(image), image)
            image = jnp.where(quarters & 2, image[::-1, ::-1], image)
        return image

    def _recoloured(self, key: Array, image: Array) -> Array:
        """Brightness, contrast and saturation of `[h, w, c]`, 0..255."""
        if not image.shape[2]:
            return image

        def scaled(image: Array, about: Array | float, purpose: int, strength: float) -> Array:
            factor = jax.random.uniform(
                jax.random.fold_in(key, purpose), (), jnp.float32, 1 - strength, 1 + strength
            ).astype(image.dtype)
            return jnp.clip(about + factor * (image - about), 0, 255)

        if self.brightness:
            image = scaled(image, 0, BRIGHTNESS, self.brightness)
        if self.contrast:
            image = scaled(image, _luma(image).mean(), CONTRAST, self.contrast)
        if self.saturation and image.shape[2] == 3:
            image = scaled(image, _luma(image), SATURATION, self.saturation)
        return image


def _bits(key: Array, count: int) -> Array:
    """So many random bits, as a number; the same with and without 64 bits."""
    return jax.random.bits(key, (), jnp.uint32) >> (32 - count)


def _luma(image: Array) -> Array:
    """`[h, w, 1]`; of other than 3 channels their mean."""
    return grey(image) if image.shape[2] == 3 else image.mean(2, keepdims=True)


def _by(size: Any) -> str:
    return "x".join(map(str, size))
