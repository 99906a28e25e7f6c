"""From stored pairs, of any sizes, to arrays that stack: resized, padded, and back again.

Where all pairs are stored in one size, the device resizes them; where sizes differ, the host must.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from p2p_jax.data.fitting import PREPROCESS, Fit, Size, by, problems
from p2p_jax.data.pairs import Batch, DataError, Pair, PairSource
from p2p_jax.data.substitute import Substituting

__all__ = ["PREPROCESS", "EvalFrames", "Fit", "Frames", "problems", "resized"]

# --- resizing on the host ------------------------------------------------------------------------


def resized(image: np.ndarray, size: Size, method: str) -> np.ndarray:
    """Resizes an image as `images.resize` does, up to rounding to the type it is stored in.

    Args:
      image: `[h, w, c]` uint8, uint16 or float32.
      size: (height, width) wanted; an image of that size is returned as it is.
      method: of `images.RESIZE`.

    Returns:
      `[*size, c]` of the same type; integers rounded and clipped to what it holds.
    """
    h, w, channels = image.shape
    if (h, w) == tuple(size):
        return image
    if not channels:
        return np.empty((*size, 0), image.dtype)
    if method == "nearest":  # in whole numbers, as on the device: a centre may lie on an edge
        rows, columns = (
            (2 * np.arange(wanted) + 1) * stored // (2 * wanted)
            for stored, wanted in zip((h, w), size, strict=True)
        )
        return image[rows[:, None], columns]
    if method == "area":
        return _stored(_covered(image, size), image.dtype)
    if image.dtype == np.uint8 and channels in (1, 3):
        whole = _pillow(image[..., 0] if channels == 1 else image, size, method)
        return whole.reshape(*size, channels)
    planes = (image[..., c].astype(np.float32) for c in range(channels))
    return _stored(np.stack([_pillow(plane, size, method) for plane in planes], -1), image.dtype)


def _stored(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return image
    return np.clip(np.rint(image), 0, np.iinfo(dtype).max).astype(dtype)


def _covered(image: np.ndarray, size: Size) -> np.ndarray:
    """The mean of what an output pixel covers; Pillow's box takes pixels wholly or not at all."""
    made = image.astype(np.float32)
    for axis, wanted in enumerate(size):
        stored = image.shape[axis]
        start, pixel = np.arange(wanted)[:, None] * stored, np.arange(stored) * wanted
        covered = np.minimum(start + stored, pixel + wanted) - np.maximum(start, pixel)
        weights = (np.maximum(covered, 0) / stored).astype(np.float32)
        made = np.moveaxis(np.tensordot(weights, made, (1, axis)), 0, axis)
    return made


def _pillow(image: np.ndarray, size: Size, method: str) -> np.ndarray:
    from PIL import Image

    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    made = Image.fromarray(image).resize((size[1], size[0]), resampling[method])
    return np.asarray(made)


# --- training ------------------------------------------------------------------------------------


class Frames:
    """A source of pairs as arrays of one shape, for training.

    Attributes:
      names: of the source.
      fingerprint: of the source.
      forms: of the source.
      shape: (height, width) of every frame.
      sizes: int32 `[n, 2]`, what each pair fills of its frame; None where all fill it.
      load_size: (height, width) the device is to resize to, or None.
      stored: the least and the most (height, width) of the stored pairs.
    """

    def __init__(self, source: PairSource, fit: Fit) -> None:
        """Wraps a source that `problems` has found nothing wrong with; nothing is read yet."""
        self.names, self.fingerprint, self.forms = source.names, source.fingerprint, source.forms
        self._source, self._fit = source, fit
        stored = np.asarray(source.sizes)
        self.stored = _size(stored.min(0)), _size(stored.max(0))
        scaled = fit.scaled(stored)
        on_device = fit.mode.resize != "no" and bool((stored == stored[0]).all())
        self._resizes = fit.mode.resize != "no" and not on_device
        self.load_size = _size(scaled[0]) if on_device else None
        filled = stored if on_device else scaled
        self.shape = _size(filled.max(0))
        self.sizes = None if (filled == self.shape).all() else filled.astype(np.int32)

    @property
    def bad(self) -> Set[int]:
        """Indices found unreadable so far, in whose place others stand."""
        return self._source.bad if isinstance(self._source, Substituting) else frozenset()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Batch:
        """Frame `i`: images `[*shape, c]`, and what the pair fills of them, int32 `[2]`.

        The rest is zero. The size is None where `sizes` is; it may differ from `sizes[i]` where
        another pair stands in for one that cannot be read.

        Raises:
          DataError: the pair cannot be read, or has not the size that it had.
        """
        pair = self._source[i]
        if self.sizes is None and not self._resizes and pair.source.shape[:2] == self.shape:
            return Batch(*pair)
        stored = np.array([pair.source.shape[:2]])
        size = _size(self._fit.scaled(stored)[0]) if self._resizes else _size(stored[0])
        grown = size[0] > self.shape[0] or size[1] > self.shape[1]
        fills = self.sizes is not None or size == self.shape
        if grown or not fills or self._fit.misfits(stored)[0]:
            raise _changed(self.names[i], stored[0], self._source.sizes[i])
        source, target = pair
        if self._resizes:
            source, target = (
                resized(x, size, m) for x, m in zip(pair, self._fit.methods, strict=True)
            )
        if self.sizes is None:
            return Batch(source, target)
        filled = np.array(size, np.int32)
        return Batch(_framed(source, self.shape), _framed(target, self.shape), filled)


def _framed(image: np.ndarray, shape: Size) -> np.ndarray:
    """The image at the top left of zeros."""
    frame = np.zeros((*shape, image.shape[2]), image.dtype)
    frame[: image.shape[0], : image.shape[1]] = image
    return frame


def _size(values: np.ndarray) -> Size:
    return int(values[0]), int(values[1])


def _changed(name: str, found: np.ndarray, known: np.ndarray) -> DataError:
    return DataError(
        [f"{name}: is {by(found)} now and was {by(known)} when the data was opened; start again"]
    )


# --- evaluation ----------------------------------------------------------------------------------


class EvalFrames:
    """A source of pairs for evaluation: whole images on canvases that the generator can take.

    Attributes:
      names: of the source.
      fingerprint: of the source.
      forms: of the source.
      device_size: (height, width) the device is to resize all pairs to, which are then given as
        they are stored; or None.
    """

    def __init__(self, source: PairSource, fit: Fit) -> None:
        """Wraps a source that `problems` has found nothing wrong with; nothing is read yet."""
        self.names, self.fingerprint, self.forms = source.names, source.fingerprint, source.forms
        self._source, self._fit = source, fit
        stored = np.asarray(source.sizes)
        whole = fit.mode.resize == "both"
        self.device_size = fit.crop_size if whole and (stored == stored[0]).all() else None
        crop = np.array(fit.crop_size)
        self._content = np.broadcast_to(crop, stored.shape) if whole else fit.scaled(stored)
        if fit.mode.fit == "crop" and not whole:
            steps = -(-np.maximum(self._content, fit.least) // fit.step)
            self._canvas = steps * fit.step
        else:
            self._canvas = np.broadcast_to(crop, stored.shape)

    def __len__(self) -> int:
        return len(self._source)

    def canvas(self, i: int) -> Size:
        """(height, width) that the generator sees of pair `i`, and gives."""
        return _size(self._canvas[i])

    def content(self, i: int) -> Size:
        """(height, width) that the image fills of its canvas, from the top left."""
        return _size(self._content[i])

    def __getitem__(self, i: int) -> Pair:
        """Pair `i` `[*canvas(i), c]`, mirrored where it does not fill it; or stored, see above.

        Raises:
          DataError: the pair cannot be read, or has not the size that it had.
        """
        pair = self._source[i]
        known = _size(self._source.sizes[i])
        if pair.source.shape[:2] != known:
            raise _changed(self.names[i], np.array(pair.source.shape), np.array(known))
        if self.device_size:
            return pair
        size, canvas = self.content(i), self.canvas(i)
        spare = [(0, whole - part) for whole, part in zip(canvas, size, strict=True)]
        images = (resized(x, size, m) for x, m in zip(pair, self._fit.methods, strict=True))
        # numpy mirrors again where the image is less than half the canvas.
        return Pair(*(np.pad(image, (*spare, (0, 0)), "symmetric") for image in images))

    def original(self, i: int) -> Pair:
        """Pair `i` as it is stored.

        Raises:
          DataError: the pair cannot be read.
        """
        return self._source[i]

    def restore(self, i: int, picture: np.ndarray, side: int = 1) -> np.ndarray:
        """What of `picture` `[*canvas(i), c]` is the image, in the size pair `i` is stored in.

        Args:
          i: the pair.
          picture: of any type that images are stored in.
          side: 0 for a source and 1 for a target or its likeness: they may resize differently.
        """
        h, w = self.content(i)
        return resized(picture[:h, :w], _size(self._source.sizes[i]), self._fit.methods[side])
