"""A contact sheet: some pairs as they are stored, and as the networks see them in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax.data import Frames, PairSource
from p2p_jax.data.frames import resized
from p2p_jax.data.pairs import DataError
from p2p_jax.images import Values, to_levels
from p2p_jax.pictures import as_shown
from p2p_jax.report import grid
from p2p_jax.state import Gan
from p2p_jax.update import AUGMENT, example_keys

PAIRS, VERSIONS = 6, 3
_BAR = 8  # pixels between what is stored and what the networks see

Palette = Sequence[tuple[int, int, int]]


def contact_sheet(
    source: PairSource, frames: Frames, gan: Gan, palette: Palette, seed: int
) -> np.ndarray:
    """Rows of [source, target | source, target, three times as they are augmented].

    Pairs are spread evenly. What is stored is made smaller where it is larger than the crop; label
    maps are in the colours of their classes; a side that the task makes out of the other one is
    left out of what is stored.

    Args:
      source: the pairs; all can be read and fit.
      frames: the same pairs.
      gan: its augmentation, task and values are those of `frames`.
      palette: of the classes, where there are any.
      seed: of the run; the draws are those of its first steps for these places of the batch.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      DataError: a pair cannot be read, or they do not go together.
      ValueError: they are not what the task needs.
    """
    count = min(PAIRS, len(source))
    chosen = [int(i) for i in np.linspace(0, len(source) - 1, count).round()]
    seen = augmented(gan, frames, chosen, seed)
    rows = []
    for place, i in enumerate(chosen):
        sides = zip(source[i], gan.values, gan.task.labelled, strict=True)
        row = [
            stored_picture(image, values, palette if labelled else (), gan.augment.crop_size)
            for image, values, labelled in sides
            if image.shape[2]
        ]
        row.append(np.full((1, _BAR, 3), 255, np.uint8))
        for pictures in seen:
            row += [as_shown(part[place]) for part in pictures if part.shape[-1]]
        rows.append(row)
    return grid(rows)


def augmented(
    gan: Gan, frames: Frames, chosen: Sequence[int], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures `[b, h, w, c]` of sources and targets as the networks see them, some versions.

    Raises:
      DataError: a pair cannot be read, or they are of several types.
    """
    held = [frames[i] for i in chosen]
    for i, frame in zip(chosen, held, strict=True):
        have = [str(image.dtype) for image in frame[:2]]
        wanted = [form.dtype for form in frames.forms]
        if have != wanted:
            raise DataError([f"{frames.names[i]}: {have} where others are {wanted}"])
    stacked: Any = [None if part[0] is None else np.stack(part) for part in zip(*held, strict=True)]

    def seen(key: jax.Array, source: Any, target: Any, sizes: Any) -> tuple[jax.Array, jax.Array]:
        source, target = (
            to_levels(images, values, gan.dtype)
            for images, values in zip((source, target), gan.values, strict=True)
        )
        keys = example_keys(key, AUGMENT, jnp.arange(len(chosen), dtype=jnp.int32))
        pair = gan.task.encode(*gan.augment(keys, source, target, sizes))
        return gan.task.show_source(pair[0]), gan.task.show(*pair)

    compiled: Any = jax.jit(seen)
    with jax.default_device(_host()):
        key = jax.random.key(seed, impl="threefry2x32")
        versions = [compiled(jax.random.fold_in(key, step), *stacked) for step in range(VERSIONS)]
        return [(np.asarray(source), np.asarray(target)) for source, target in versions]


def _host() -> Any:
    """The processor, where jax was not told to leave it alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def stored_picture(
    image: np.ndarray, values: Values, palette: Palette, within: tuple[int, int]
) -> np.ndarray:
    """A stored image `[h, w, c]` to look at: uint8, grey or RGB, no larger than `within`."""
    if palette:
        image = np.array(palette, np.uint8)[np.minimum(image[..., 0], len(palette) - 1)]
    elif (str(image.dtype), values.low, values.high) != ("uint8", 0, 255):
        levels = (image.astype(np.float64) - values.low) * (255 / (values.high - values.low))
        image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    h, w = image.shape[:2]
    share = min(1.0, within[0] / h, within[1] / w)
    size = max(1, round(h * share)), max(1, round(w * share))
    return resized(as_shown(image), size, "nearest" if palette else "area")
