"""The preprocess modes: what they make of sizes, and which images do not fit.

A mode is a way to resize, and a way to fit what comes of it into `crop_size`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from p2p_jax.data.pairs import PairSource

Size = tuple[int, int]


class Mode(NamedTuple):
    """A way to bring images to the size that the networks see.

    Attributes:
      resize: 'both' sides, the 'width' with the height following, or 'no'.
      fit: 'crop' at random, 'pad' at bottom and right by mirroring, or 'exact'.
    """

    resize: str
    fit: str


PREPROCESS: dict[str, Mode] = {
    "resize_and_crop": Mode("both", "crop"),
    "scale_width_and_crop": Mode("width", "crop"),
    "scale_width": Mode("width", "pad"),
    "crop": Mode("no", "crop"),
    "pad": Mode("no", "pad"),
    "none": Mode("no", "exact"),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """What is to become of images.

    Attributes:
      preprocess: of `PREPROCESS`.
      load_size: (height, width) that images are resized to, as far as the mode does.
      crop_size: (height, width) that the networks see in training.
      methods: of `images.RESIZE`, how sources and targets are resized.
      step: what the generator's inputs must be a multiple of, in both directions.
      least: what they must be at least.
    """

    preprocess: str
    load_size: Size
    crop_size: Size
    methods: tuple[str, str] = ("bilinear", "bilinear")
    step: int = 1
    least: int = 1

    @property
    def mode(self) -> Mode:
        """The ways to resize and to fit."""
        return PREPROCESS[self.preprocess]

    def scaled(self, sizes: np.ndarray) -> np.ndarray:
        """(height, width) `[n, 2]` of images of these sizes once they are resized for training."""
        sizes = np.asarray(sizes, np.int64)
        if self.mode.resize == "no":
            return sizes
        height, width = self.load_size
        if self.mode.resize == "both":
            return np.broadcast_to(np.array([height, width]), sizes.shape)
        h, w = sizes[:, 0], sizes[:, 1]
        heights = np.maximum(1, (2 * h * width + w) // (2 * w))  # rounded, in whole numbers
        return np.stack([heights, np.full_like(heights, width)], 1)

    def misfits(self, sizes: np.ndarray, evaluation: bool = False) -> np.ndarray:
        """Which of the stored sizes `[n, 2]` do not fit, bool `[n]`."""
        scaled, crop = self.scaled(sizes), np.array(self.crop_size)
        if self.mode.fit == "pad":
            wrong = scaled > crop
        elif self.mode.fit == "exact":
            wrong = scaled != crop
        else:
            wrong = (scaled < crop) & (not evaluation and self.mode.resize != "both")
        return np.logical_or(wrong[:, 0], wrong[:, 1])


# --- what does not fit ---------------------------------------------------------------------------

_RELATION = {"crop": "smaller than", "pad": "larger than", "exact": "not of"}


def problems(source: PairSource, fit: Fit, split: str, evaluation: bool = False) -> list[str]:
    """What of a split does not fit, in at most one sentence; no image is read.

    Args:
      source: the split.
      fit: what is to become of it.
      split: its name.
      evaluation: whole images are translated then, so that none is too small to be cropped.
    """
    sizes = np.asarray(source.sizes)
    wrong = np.flatnonzero(fit.misfits(sizes, evaluation))
    if not len(wrong):
        return []
    first = int(wrong[0])
    stored, scaled = sizes[first], fit.scaled(sizes[first : first + 1])[0]
    becomes = ""
    if fit.mode.resize == "width":
        becomes = f", which data.load_size's width of {fit.load_size[1]} makes {by(scaled)}"
    verb = "image is" if len(wrong) == 1 == len(sizes) else "images are"
    ways = _modes(sizes, fit, evaluation) + _keys(sizes, fit)
    return [
        f"{len(wrong)} of {len(sizes)} {verb} {_RELATION[fit.mode.fit]} data.crop_size "
        f"{by(fit.crop_size)} (first {split}[{first}] {source.names[first]}: "
        f"{by(stored)}{becomes}, height x width); use {', or '.join(ways)}"
    ]


def _modes(sizes: np.ndarray, fit: Fit, evaluation: bool) -> list[str]:
    """Other modes that all these sizes fit."""
    others = (dataclasses.replace(fit, preprocess=name) for name in PREPROCESS)
    fitting = [o.preprocess for o in others if not o.misfits(sizes, evaluation).any()]
    return [f"data.preprocess={_or(fitting)}"]


def _keys(sizes: np.ndarray, fit: Fit) -> list[str]:
    """What else could be changed so that all these sizes fit."""
    scaled, crop, step = fit.scaled(sizes), np.array(fit.crop_size), fit.step
    least, most = np.minimum(scaled.min(0), crop), np.maximum(scaled.max(0), crop)
    if fit.mode.fit == "exact":
        one_size = (scaled == scaled[0]).all() and not (scaled[0] % step).any()
        return [f"a crop_size of {by(scaled[0])}"] * bool(one_size)
    # The height that is wanted, as a width: how far the images may or must be scaled.
    h, w = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    if fit.mode.fit == "pad":
        ways = [f"a crop_size of at least {by(-(-most // step) * step)}"]
        width = min(int((crop[0] * w // h).min()), fit.crop_size[1])
        bound = "at most"
    else:
        largest = least // step * step
        ways = [f"a crop_size of at most {by(largest)}"] * bool(largest.all())
        width, bound = max(int((-(-crop[0] * w // h)).max()), fit.crop_size[1]), "at least"
    if fit.mode.resize == "width" and width:
        ways.append(f"a load_size of width {bound} {width}")
    return ways


def _or(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"


def by(size: Size | np.ndarray) -> str:
    """A size in words: '256x512'."""
    return f"{size[0]}x{size[1]}"
