"""Pixels counted per image, by colour and by class, and what such counts say of a whole set.

Counting is for the device; figures are numpy's, of counts of n images stacked, with weights `[n]`
or `[m, n]` as `scores.Score.finish` has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import colour
from p2p_jax.resampling import Figures, as_figures, weighted

Array = jax.Array

_AB = 110  # beyond what a and b of sRGB colours reach
_BINS = 2 * _AB + 1


def lab(fake: Array, target: Array) -> Array:
    """Pixels in each bin of CIE L, a and b.

    Bins are 1 wide and lie around whole numbers, so that no grey, whose a and b are 0, is at an
    edge of one.

    Args:
      fake: `[b, h, w, 3]` uint8.
      target: the same.

    Returns:
      `[b, 2, 3, bins]` int32 of fake and target, and of L (from 0), a and b (from -110).
    """
    return jnp.stack([_histograms(x) for x in (fake, target)], 1)


def _histograms(image: Array) -> Array:
    values = colour.rgb_to_lab(image.astype(jnp.float32) / 255)
    offset = np.array([0, _AB, _AB], np.float32).reshape(1, 1, 1, 3)
    index = jnp.clip(jnp.round(values + offset).astype(jnp.int32), 0, _BINS - 1)
    index += _BINS * np.arange(3, dtype=np.int32).reshape(1, 1, 1, 3)
    return _count(index, 3 * _BINS).reshape(-1, 3, _BINS)


def _count(index: Array, size: int) -> Array:
    """How often each of 0..size-1 is in an image `[b, ...]`, `[b, size]`; others are left out."""
    count = jax.vmap(lambda i: jnp.zeros(size, jnp.int32).at[i].add(1, mode="drop"))
    return count(index.reshape(len(index), -1))


def intersections(names: Sequence[str], stacked: np.ndarray, weights: np.ndarray) -> Figures:
    """How far the distributions of fakes and targets over all pixels overlap, in [0, 1].

    The histogram intersection of pix2pix's colour statistics (Isola et al. 2017, figure 7; it does
    not tell its bins): the sum of the smaller share of each bin.

    Args:
      names: of L, a and b.
      stacked: what `lab` counted, of n images.
      weights: see above.
    """
    counts = weighted(stacked, weights)
    shares = counts / counts.sum(-1, keepdims=True)
    both = shares.min(-3).sum(-1)
    return as_figures({name: both[..., i] for i, name in enumerate(names)}, weights)


def confusion(classes: int, fake: Array, target: Array) -> Array:
    """Pixels of each pair of classes.

    Args:
      classes: how many there are.
      fake: class numbers, `[b, h, w, 1]` or `[b, h, w]`, of any integer type.
      target: the same; pixels that are of none of the classes are left out.

    Returns:
      `[b, classes, classes + 1]` int32 by target and fake; last, fakes of none of the classes.
    """
    fake, target = (x.reshape(len(x), -1).astype(jnp.int32) for x in (fake, target))
    known = (target >= 0) & (target < classes)
    fake = jnp.where((fake >= 0) & (fake < classes), fake, classes)
    size = classes * (classes + 1)
    index = jnp.where(known, target * (classes + 1) + fake, size)
    return _count(index, size).reshape(-1, classes, classes + 1)


def accuracies(names: Sequence[str], stacked: np.ndarray, weights: np.ndarray) -> Figures:
    """Pixel accuracy, class accuracy, mean IoU and `iou/NAME` of each class that occurs.

    Pixels of all images are counted together. Class accuracy is the mean over classes that occur in
    targets; mean IoU that over classes which occur in targets or fakes.

    Args:
      names: of the classes.
      stacked: what `confusion` counted, of n images.
      weights: see above; with `[m, n]` there is NaN where a class does not occur.

    Raises:
      ValueError: no pixel of the targets is of a class.
    """
    if not stacked.any():
        raise ValueError("no pixel of the targets is of one of the classes")
    counts = weighted(stacked, weights)
    right = np.diagonal(counts, axis1=-2, axis2=-1)  # the last column is not on it
    wanted, given = counts.sum(-1), counts[..., :-1].sum(-2)
    iou = _ratio(right, wanted + given - right)
    figures = {
        "pixel_accuracy": _ratio(right.sum(-1), wanted.sum(-1)),
        "class_accuracy": _mean_of_known(_ratio(right, wanted)),
        "mean_iou": _mean_of_known(iou),
    }
    each = {f"iou/{name}": iou[..., i] for i, name in enumerate(names)}
    return as_figures(figures | each, weights)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """NaN where there is nothing."""
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
