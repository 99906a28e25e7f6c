"""Tasks: what becomes of a stored pair before the networks see it, and how to look at it after."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax.colour import grey, grey_of_lightness, lab_to_rgb, rgb_to_lab
from p2p_jax.images import from_signed, to_signed

Array = jax.Array
Channels = tuple[int, int]
Colour = tuple[int, int, int]
Encode = Callable[[Array, Array], tuple[Array, Array]]

# Lightness 0..100 and the two opponents are divided by these; those of sRGB stay within 108.
_LIGHTNESS, _OPPONENT = 50.0, 110.0
_LABELLED = {"source": (True, False), "target": (False, True), "both": (True, True)}


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What tasks need to know; each takes what concerns it.

    Attributes:
      channels: wanted of source and target.
      classes: of `labels`, how many.
      labels: of `labels`, which side is class numbers: `source`, `target` or `both`.
      palette: of `labels`, a colour (red, green, blue) for each class.
      hole: of `inpaint`, the share of height and width that is cut out of the middle.
    """

    channels: Channels = (3, 3)
    classes: int = 0
    labels: str = "source"
    palette: tuple[Colour, ...] = ()
    hole: float = 0.5


class Task(NamedTuple):
    """What becomes of a stored pair before the networks see it, and how to look at the outcome.

    Attributes:
      channels: of source and target, as the networks see them.
      encode: stored (source, target), floating levels `[b, h, w, c]` in 0..255 or numbers of
        classes, to those that the networks see, in [-1, 1] or 1 for the class and 0 for the others.
        Raises ValueError where the stored channels do not fit.
      show: (source, image) as the networks see them, the image a target or its likeness, to the
        image's picture: uint8 `[b, h, w, c]`, c that of the image or 3.
      show_source: the source as the networks see it to its picture, likewise.
      output: what the generator ends in; see `models.layers.OUTPUTS`.
      labelled: whether source and target are class numbers.
    """

    channels: Channels
    encode: Encode
    show: Callable[[Array, Array], Array]
    show_source: Callable[[Array], Array]
    output: str = "tanh"
    labelled: tuple[bool, bool] = (False, False)

    def methods(self, method: str) -> tuple[str, str]:
        """How to resize source and target: as said, but for classes, which cannot be mixed."""
        source, target = ("nearest" if labelled else method for labelled in self.labelled)
        return source, target


def _fitted(name: str, image: Array, channels: int) -> Array:
    """The image with so many channels: as it is, grey, or grey three times."""
    stored = image.shape[-1]
    if stored == channels:
        return image
    if (stored, channels) == (3, 1):
        return grey(image)
    if (stored, channels) == (1, 3):
        return jnp.repeat(image, 3, -1)
    if stored == 0 and name == "target":  # there are none: only the source is translated
        return image
    if stored == 0:
        raise ValueError(f"there are no {name} images, which this task needs")
    raise ValueError(
        f"{name} images are stored with {stored} channels and wanted with {channels}; "
        f"only 3 can become 1 (grey), and 1 can become 3"
    )


def _picture(image: Array) -> Array:
    return from_signed(image)


def _show(source: Array, image: Array) -> Array:
    del source
    return _picture(image)


# All are cached, so that equal options give equal tasks: they are part of what a program is
# compiled for.


@functools.cache
def translate(options: TaskOptions) -> Task:
    """Source to target as they are stored, of any channels.

    Colours may be made grey, and grey may be repeated.
    """

    def encode(source: Array, target: Array) -> tuple[Array, Array]:
        fitted = (
            _fitted(name, image, channels)
            for name, image, channels in zip(
                ("source", "target"), (source, target), options.channels, strict=True
            )
        )
        source, target = (to_signed(image, image.dtype) for image in fitted)
        return source, target

    return Task(options.channels, encode, _show, _picture)


def _check_photo(name: str, target: Array) -> None:
    if target.shape[-1] != 3:
        raise ValueError(
            f"target images are stored with {target.shape[-1]} channels; {name} needs photos of 3"
        )


def _colorize_encode(source: Array, target: Array) -> tuple[Array, Array]:
    del source
    _check_photo("colorize", target)
    lab = rgb_to_lab(target / 255)
    return lab[..., :1] / _LIGHTNESS - 1, lab[..., 1:] / _OPPONENT


def _colorize_show(source: Array, image: Array) -> Array:
    lab = jnp.concatenate([(source + 1) * _LIGHTNESS, image * _OPPONENT], -1)
    return _picture(2 * lab_to_rgb(lab) - 1)


def _colorize_show_source(source: Array) -> Array:
    return _picture(2 * grey_of_lightness((source + 1) * _LIGHTNESS) - 1)


@functools.cache
def colorize(options: TaskOptions) -> Task:
    """Lightness to colour (Zhang et al. 2016; Isola et al. 2017): photos give both.

    The stored source is ignored. Of the stored target, the source is L / 50 - 1 `[b, h, w, 1]`, the
    target ab / 110 `[b, h, w, 2]`.

    Args:
      options: channels are (1, 2), which they always are, or (3, 3) as stored.

    Raises:
      ValueError: if channels are others.
    """
    if options.channels not in ((1, 2), (3, 3)):
        raise ValueError(
            f"channels of colorize are (1, 2), lightness and colour, not {options.channels}; "
            f"leave them at (3, 3) or say (1, 2)"
        )
    return Task((1, 2), _colorize_encode, _colorize_show, _colorize_show_source)


def _grey_encode(source: Array, target: Array) -> tuple[Array, Array]:
    del source
    _check_photo("grey", target)
    return to_signed(grey(target), target.dtype), to_signed(target, target.dtype)


@functools.cache
def grey_to_colour(options: TaskOptions) -> Task:
    """Grey to the photo that it was made of; the stored source is ignored.

    Args:
      options: channels are (1, 3), which they always are, or (3, 3) as stored.

    Raises:
      ValueError: if channels are others.
    """
    if options.channels not in ((1, 3), (3, 3)):
        raise ValueError(
            f"channels of grey are (1, 3), grey and colour, not {options.channels}; "
            f"leave them at (3, 3) or say (1, 3)"
        )
    return Task((1, 3), _grey_encode, _show, _picture)


def _middle(size: tuple[int, ...], share: float) -> np.ndarray:
    """Whether a pixel is in the hole, `[1, h, w, 1]`."""
    inside = np.zeros((1, *size, 1), bool)
    hole = [int(share * length + 0.5) for length in size]
    top, left = ((length - cut) // 2 for length, cut in zip(size, hole, strict=True))
    inside[:, top : top + hole[0], left : left + hole[1]] = True
    return inside


@functools.cache
def inpaint(options: TaskOptions) -> Task:
    """Images without their middle to whole ones (Pathak et al. 2016).

    The stored source is ignored; it is the target with a white middle, `hole` of each side long,
    rounded to whole pixels.

    Args:
      options: equal channels.

    Raises:
      ValueError: if channels differ, or the hole is no share.
    """
    channels = options.channels
    if channels[0] != channels[1]:
        raise ValueError(f"channels of inpaint are the same on both sides, not {channels}")
    if not 0 < options.hole <= 1:
        raise ValueError(f"hole is a share of each side above 0 and up to 1, not {options.hole}")

    def encode(source: Array, target: Array) -> tuple[Array, Array]:
        del source
        target = to_signed(_fitted("target", target, channels[1]), target.dtype)
        inside = _middle(target.shape[1:3], options.hole)
        return jnp.where(inside, jnp.ones((), target.dtype), target), target

    return Task(channels, encode, _show, _picture)


@functools.cache
def labels(options: TaskOptions) -> Task:
    """Class numbers to an image, the other way round, or to other class numbers.

    What is stored with one channel of numbers below `classes` becomes as many channels, 1 for the
    class that a pixel has and 0 for the others, and is shown in the colours of the palette. Where
    targets are classes the generator ends in softmax: what it makes are probabilities, of which the
    likeliest is shown.

    Args:
      options: with `classes` colours in the palette.

    Raises:
      ValueError: an unknown side, fewer than two classes, another number of colours.
    """
    classes, palette = options.classes, options.palette
    if options.labels not in _LABELLED:
        raise ValueError(f"labels is one of {', '.join(_LABELLED)}, not {options.labels!r}")
    if classes < 2 or len(palette) != classes:
        raise ValueError(
            f"labels need two classes or more, each with a colour, "
            f"not {classes} classes with {len(palette)} colours"
        )
    labelled = _LABELLED[options.labels]

    def encode(source: Array, target: Array) -> tuple[Array, Array]:
        source, target = (
            _one_hot(name, image, classes) if classed
            else to_signed(_fitted(name, image, channels), image.dtype)
            for name, image, classed, channels in zip(
                ("source", "target"), (source, target), labelled, options.channels, strict=True
            )
        )  # fmt: skip
        return source, target

    def coloured(image: Array) -> Array:
        return jnp.asarray(palette, jnp.uint8)[image.argmax(-1)]

    source_channels, target_channels = (
        classes if classed else channels
        for classed, channels in zip(labelled, options.channels, strict=True)
    )
    return Task(
        channels=(source_channels, target_channels),
        encode=encode,
        show=(lambda source, image: coloured(image)) if labelled[1] else _show,
        show_source=coloured if labelled[0] else _picture,
        output="softmax" if labelled[1] else "tanh",
        labelled=labelled,
    )


def _one_hot(name: str, image: Array, classes: int) -> Array:
    if image.shape[-1] == 0 and name == "target":
        return image
    if image.shape[-1] != 1:
        raise ValueError(
            f"{name} images are stored with {image.shape[-1]} channels; labels have 1, the class"
        )
    numbers = jnp.arange(classes, dtype=image.dtype).reshape(1, 1, 1, -1)
    return (image == numbers).astype(image.dtype)


TASKS: dict[str, Callable[[TaskOptions], Task]] = {
    "translate": translate,
    "colorize": colorize,
    "grey": grey_to_colour,
    "inpaint": inpaint,
    "labels": labels,
}
