"""Class labels: from the colours or the numbers of label maps to indices, and back to colours."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

Colour = tuple[int, int, int]

_AT_ONCE = 2**22  # distances looked at together: a few megabytes


class Labels(NamedTuple):
    """How a label map names its classes.

    Attributes:
      palette: (red, green, blue) of each class in 0..255; empty: pixel values are the classes.
      classes: how many there are, where there is no palette.
      tolerance: the largest distance in a channel at which a colour still counts as a class's.
    """

    palette: tuple[Colour, ...] = ()
    classes: int = 0
    tolerance: int = 0

    @property
    def count(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Number of classes."""
        return len(self.palette) or self.classes


def read_palette(text: str) -> tuple[Colour, ...]:
    """Colours such as '#0000aa #0000ff' (red, green, blue), parted by blanks or commas.

    Raises:
      ValueError: naming each entry that is no colour or stands there twice.
    """
    entries = re.findall(r"[^\s,]+", text)
    problems, palette = [], []
    for place, entry in enumerate(entries):
        if not re.fullmatch(r"#?[0-9a-fA-F]{6}", entry):
            problems.append(f"entry {place}, {entry!r}, is not six hexadecimal digits as '#00ff7f'")
            continue
        red, green, blue = bytes.fromhex(entry.removeprefix("#"))
        if (red, green, blue) in palette:
            problems.append(f"entry {place}, {entry!r}, repeats a colour before it")
        palette.append((red, green, blue))
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(palette)


def to_indices(image: np.ndarray, labels: Labels) -> np.ndarray:
    """The class of each pixel.

    With a palette that is the one of the nearest colour, by the largest distance in a channel; of
    equally near ones the first.

    Args:
      image: `[h, w, 3]` or `[h, w, 1]` (grey) uint8 with a palette; else `[h, w, 1]` integers.
      labels: how classes are named.

    Returns:
      `[h, w, 1]` uint8, or uint16 where there are more than 256 classes.

    Raises:
      ValueError: pixels are of no class: which, and what would help.
    """
    dtype = np.uint8 if labels.count <= 256 else np.uint16
    if not labels.palette:
        _check_values(image, labels.classes)
        return image.astype(dtype)
    if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{image.shape[-1]} channels of {image.dtype}, where a palette needs grey or RGB of "
            "uint8; without a palette the values of 1 channel are the classes"
        )
    return _by_palette(image, labels).astype(dtype)[..., None]


def colours(labels: Labels) -> tuple[Colour, ...]:
    """The palette; without one, distinct colours of which the first is black.

    The made-up ones are as in the PASCAL VOC development kit: from the lowest bits of the class
    up, each three become one bit of red, green and blue, the highest bits first.
    """
    if labels.palette:
        return labels.palette
    return tuple((_spread(i), _spread(i >> 1), _spread(i >> 2)) for i in range(labels.classes))


def _spread(bits: int) -> int:
    """Bits 0, 3, 6, ... as bits 7, 6, 5, ..."""
    return sum((bits >> 3 * i & 1) << 7 - i for i in range(8))


def _check_values(image: np.ndarray, classes: int) -> None:
    if image.shape[-1] != 1 or image.dtype.kind not in "ui":
        raise ValueError(
            f"{image.shape[-1]} channels of {image.dtype}, where class numbers are 1 channel of "
            "integers; for classes by colour set data.palette"
        )
    for value, at in ((image.max(), image.argmax()), (image.min(), image.argmin())):
        if not 0 <= value < classes:
            row, column, _ = (int(i) for i in np.unravel_index(at, image.shape))
            raise ValueError(
                f"value {value} at row {row}, column {column}, where {classes} classes are 0 to "
                f"{classes - 1}; set data.classes to more than the largest value of all images "
                f"(here {image.max()}), or data.palette where the values are levels of grey"
            )


def _packed(image: np.ndarray) -> np.ndarray:
    """Colours `[..., 3]` or grey `[..., 1]` uint8 as one number `[...]` uint32 each."""
    if image.shape[-1] == 1:
        return image[..., 0] * np.uint32(0x010101)
    red, green, blue = (image[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Undoes `_packed`: `[n]` to `[n, 3]`, int16 so that differences fit."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.int16)


def _by_palette(image: np.ndarray, labels: Labels) -> np.ndarray:
    """Classes `[h, w]`: exact colours are looked up, the distinct others compared with all."""
    packed = _packed(image)
    known = _packed(np.array(labels.palette, np.uint8))
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], packed)
    found = order[np.minimum(place, len(order) - 1)]
    other = known[found] != packed
    if other.any():
        distinct, inverse = np.unique(packed[other], return_inverse=True)
        nearest, distance = _nearest(distinct, labels.palette)
        if distance.max() > labels.tolerance:
            _refuse(packed, other, inverse, nearest, distance, labels)
        found[other] = nearest[inverse]
    return found


def _nearest(packed: np.ndarray, palette: tuple[Colour, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(class, distance) of the colour of the palette nearest to each of `[n]`."""
    known = np.array(palette, np.int16)
    step = max(1, _AT_ONCE // len(known))
    nearest, least = [], []
    for start in range(0, len(packed), step):
        apart = np.zeros((len(known), len(packed[start : start + step])), np.int16)
        for channel, values in enumerate(_unpacked(packed[start : start + step]).T):
            np.maximum(apart, np.abs(known[:, channel, None] - values), out=apart)
        nearest.append(apart.argmin(0))
        least.append(apart.min(0))
    return np.concatenate(nearest), np.concatenate(least)


def _refuse(
    packed: np.ndarray,
    other: np.ndarray,
    inverse: np.ndarray,
    nearest: np.ndarray,
    distance: np.ndarray,
    labels: Labels,
) -> None:
    """Raises for the pixels `other`, of which some are too far from all classes."""
    far = np.zeros(packed.shape, np.int16)
    far[other] = distance[inverse]
    row, column = (int(i) for i in np.argwhere(far > labels.tolerance)[0])
    place = inverse[int(other.reshape(-1)[: row * packed.shape[1] + column].sum())]
    count = int((far > labels.tolerance).sum())
    red, green, blue = labels.palette[nearest[place]]
    raise ValueError(
        f"{count} of {packed.size} pixels have the colour of no class; the first, at row {row}, "
        f"column {column}, is #{packed[row, column]:06x}, of which the nearest is "
        f"#{red:02x}{green:02x}{blue:02x} (class {nearest[place]}), {distance[place]} away in a "
        f"channel, where data.label_tolerance is {labels.tolerance}; {distance.max()} would take "
        "each of these pixels to its nearest class; else add what is missing to data.palette"
    )
