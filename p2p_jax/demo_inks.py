"""What to draw with: the colours of a label set, black on white for edges, or any colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from p2p_jax.config import Config
from p2p_jax.data import synthetic

Colour = tuple[int, int, int]

# The CMP Facade Database's classes in the order of its numbers, as the usual set colours them.
_FACADES: dict[str, Colour] = {
    "background": (0, 0, 222), "facade": (0, 48, 255), "window": (0, 128, 255),
    "door": (0, 207, 255), "cornice": (32, 255, 223), "sill": (112, 255, 143),
    "balcony": (192, 255, 63), "blind": (255, 239, 0), "decoration": (255, 159, 0),
    "molding": (255, 80, 0), "pillar": (255, 0, 0), "shop": (174, 0, 0),
}  # fmt: skip
_KNOWN = (synthetic.LABELS, _FACADES)
_NEAR = 12  # in a channel; a JPEG of label maps strays so far
_FLAT = 6
_MOST = 32  # colours found in pictures
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_PHOTO: dict[str, Colour] = {
    "black": _BLACK, "slate": (72, 80, 92), "silver": (178, 182, 188), "white": _WHITE,
    "sky": (126, 178, 224), "sea": (38, 92, 148), "leaf": (74, 124, 58), "grass": (142, 172, 82),
    "sand": (222, 198, 150), "brick": (166, 82, 62), "wood": (112, 76, 48), "skin": (228, 178, 148),
}  # fmt: skip


class Inks(NamedTuple):
    """What a source is drawn with.

    Attributes:
      kind: 'labels' (classes, no other colour has a meaning), 'palette' (a label map, though the
        networks see it as a picture), 'edges', 'grey' or 'photo'.
      colours: to choose from, and what they mean where that is known.
      background: what a fresh canvas is filled with.
      size: of the brush at first, in pixels.
    """

    kind: str
    colours: tuple[tuple[Colour, str], ...]
    background: Colour
    size: int

    @property
    def free(self) -> bool:
        """Whether any other colour may be drawn with."""
        return self.kind in ("palette", "photo")

    @property
    def palette(self) -> tuple[Colour, ...]:
        """The colours alone."""
        return tuple(colour for colour, _ in self.colours)


def inks(
    config: Config, classes: Sequence[Colour], grey: bool, pictures: Sequence[np.ndarray]
) -> Inks:
    """What the sources of a run are drawn with.

    Args:
      config: of the run.
      classes: colours of the sources' classes, where they are classes.
      grey: whether sources have no colours.
      pictures: examples of sources, uint8 `[h, w, 3]`.
    """
    side = min(config.data.crop_size)
    if classes:
        names = _names(classes)
        return _made("labels", zip(classes, names, strict=True), pictures, classes[0], side)
    if config.data.source == "edges" or config.data.name.split("/")[-1].startswith("edges2"):
        pens = ((_BLACK, "edge"), (_WHITE, "paper"))
        return Inks("edges", pens, _WHITE, max(1, round(side / 128)))
    for known in _KNOWN:
        if _share(pictures, np.array(list(known.values()))) > 0.4:
            pairs = ((colour, name) for name, colour in known.items())
            return _made("palette", pairs, pictures, next(iter(known.values())), side)
    if grey:
        levels = (0, 51, 102, 153, 204, 255)
        pairs = (((level, level, level), f"{level / 255:.0%} bright") for level in levels)
        return _made("grey", pairs, (), (153, 153, 153), side)
    if found := _found(pictures):
        pairs = zip(found, [""] * len(found), strict=True)
        return _made("palette", pairs, pictures, found[0], side)
    pairs = ((colour, name) for name, colour in _PHOTO.items())
    return _made("photo", pairs, (), _WHITE, side)


def _made(
    kind: str,
    pairs: Iterable[tuple[Colour, str]],
    pictures: Sequence[np.ndarray],
    background: Colour,
    side: int,
) -> Inks:
    """With the colour that most of the pictures is for a background, where there are any."""
    colours = tuple(pairs)
    if len(pictures):
        palette = np.array([colour for colour, _ in colours])
        counts = np.bincount(np.concatenate([_places(p, palette, 255) for p in pictures]))
        background = colours[int(counts.argmax())][0]
    return Inks(kind, colours, background, max(2, round(side / 16)))


def _names(classes: Sequence[Colour]) -> list[str]:
    for known in _KNOWN:
        if set(classes) <= set(known.values()):
            names = {colour: name for name, colour in known.items()}
            return [names[colour] for colour in classes]
    return [f"class {i}" for i in range(len(classes))]


def _places(picture: np.ndarray, palette: np.ndarray, near: int) -> np.ndarray:
    """For each pixel that lies so near to a colour of the palette its place there."""
    pixels = picture.reshape(-1, 3).astype(np.int16)[::3]
    distances = np.stack([np.abs(pixels - colour).max(1) for colour in palette.astype(np.int16)])
    return distances.argmin(0)[distances.min(0) <= near]


def _share(pictures: Sequence[np.ndarray], palette: np.ndarray) -> float:
    """How much of the pictures lies near to colours of the palette: of the rarer part of them.

    What has the commonest colour does not count: the background of product photos is one as well.
    """
    if not pictures:
        return 0.0
    places = np.concatenate([_places(picture, palette, _NEAR) for picture in pictures])
    whole = sum(-(-picture.shape[0] * picture.shape[1] // 3) for picture in pictures)
    most = np.bincount(places, minlength=1).max()
    return float((len(places) - most) / max(1, whole - most))


def _found(pictures: Sequence[np.ndarray]) -> list[Colour]:
    """The few colours that pictures are made of, the commonest first; none where there are many."""
    if not pictures:
        return []
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:4096]
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.int16)
    left, found = np.ones(len(values), bool), []
    for i in order:
        if left[i] and len(found) < _MOST:
            near = left & (np.abs(colours - colours[i]).max(1) <= _FLAT)
            left &= ~near
            found.append((int(counts[near].sum()), tuple(colours[i].tolist())))
    found.sort(reverse=True)
    whole, most = len(packed), found[0][0]
    rest = sum(count for count, _ in found[1:])
    if rest < 0.5 * (whole - most) or (len(found) == 1 and most < whole):
        return []
    return _apart([colour for count, colour in found if count >= 0.002 * whole])


def _apart(colours: list[Colour]) -> list[Colour]:
    """Without those that are shades of one before them."""
    kept: list[Colour] = []
    for colour in colours:
        if all(max(abs(a - b) for a, b in zip(colour, k, strict=True)) > 24 for k in kept):
            kept.append(colour)
    return kept
