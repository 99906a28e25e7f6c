"""What a translator takes and makes, as images are stored: channels, types, classes, pictures."""

from __future__ import annotations

import numpy as np

from p2p_jax.data import Form, read_palette
from p2p_jax.data.decoding import decode, fitted
from p2p_jax.data.labels import Labels, to_indices
from p2p_jax.inference import Inference, makes_sources
from p2p_jax.networks import task_options
from p2p_jax.step import Sampled

Colour = tuple[int, int, int]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2


class Stored:
    """What images of both sides are stored as.

    Attributes:
      swapped: whether the task makes sources of targets, so that what is given is a target.
      source: what is to be given: channels, type.
      target: what is made: channels, type, and the suffix of files that hold it without loss.
      palette: colours of the classes of sources; () where they are no label maps.
      target_palette: of targets, likewise.
    """

    def __init__(self, inference: Inference, alpha: str) -> None:
        """Takes what a run tells, and what becomes of transparency: drop, white, black or keep."""
        config, task = inference.config, inference.gan.task
        colours = task_options(config).palette
        self.swapped = makes_sources(inference.gan)
        self.palette: tuple[Colour, ...] = colours if task.labelled[0] else ()
        self.target_palette: tuple[Colour, ...] = colours if task.labelled[1] else ()
        self.source = inference.target if self.swapped else inference.source
        self.target = _made(inference, len(self.target_palette))
        self._values = inference.gan.values[1]
        self._taken = inference.gan.values[1 if self.swapped else 0]
        self._alpha, self._by_colour = alpha, bool(read_palette(config.data.palette))
        self._labels = Labels(self.palette, 0, config.data.label_tolerance)

    def read(self, data: bytes) -> np.ndarray:
        """Decodes a file's image as for training; see `fitted`.

        Label maps are told by the palette. Where there is none, or one channel holds other values
        than the greys of it, these are the classes.

        Raises:
          ValueError: it cannot be read or used: what, why and the remedy.
        """
        image = decode(data, indexed=bool(self.palette) and not self._by_colour)
        if self.palette and self._by_colour and image.shape[-1] == 1:
            try:
                return to_indices(image, self._labels)
            except ValueError:
                if image.max() >= len(self.palette):
                    raise
        return self.fitted(image)

    def fitted(self, image: np.ndarray) -> np.ndarray:
        """An image as sources are stored.

        Grey becomes as many channels as sources have; colours become grey where they are (by their
        luma, which grey in three channels has unchanged); transparency is settled. Of label maps,
        colours become classes; one channel is the classes themselves.

        Args:
          image: `[h, w, c]` or `[h, w]`.

        Returns:
          `[h, w, c]`.

        Raises:
          ValueError: what it is, and what it should be.
        """
        image = np.asarray(image)
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"{list(image.shape)} is no image; one is [h, w, c], not empty")
        channels, wanted = image.shape[-1], self.source
        if self.palette:
            if channels in (2, 4):
                image = fitted(image, channels - 1, self._alpha)
            plain = image.shape[-1] == 1
            return to_indices(image, Labels((), len(self.palette)) if plain else self._labels)
        if str(image.dtype) != wanted.dtype:
            raise ValueError(
                f"{image.dtype}, where the translator was trained on {wanted.dtype}; convert it"
            )
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError("NaN or infinities in it; put numbers there")
        if wanted.channels == 1 and channels in (3, 4):
            luma = fitted(image, 3, self._alpha) @ _LUMA
            luma = luma if image.dtype.kind == "f" else np.rint(luma)
            return luma.astype(image.dtype)[..., None]
        return fitted(image, wanted.channels, self._alpha)

    def beyond(self, image: np.ndarray) -> str:
        """What of a source lies beyond the range that was declared for training; '' for nothing."""
        values = self._taken
        low, high = float(image.min()), float(image.max())
        if self.palette or (values.low <= low and high <= values.high):
            return ""
        return f"values of {low:g} to {high:g}, beyond {values.low:g} to {values.high:g}"

    def kept(self, made: Sampled) -> np.ndarray:
        """Of what was made of one image `[h, w, c]`, what is kept: in kind, or as classes."""
        picture = np.asarray(made.fake)
        if self.target_palette:
            return to_indices(picture, Labels(self.target_palette))
        return picture if made.stored is None else np.asarray(made.stored)

    def levels(self, made: np.ndarray) -> np.ndarray:
        """Of what was made, levels of 0..255, float32; classes are themselves."""
        levels, values = made.astype(np.float32), self._values
        if self.target_palette or made.dtype != np.dtype(values.dtype):
            return levels  # a picture, as it is
        return (levels - values.low) * (255 / (values.high - values.low))

    def shown(self, made: np.ndarray) -> np.ndarray:
        """A picture to look at, uint8 `[h, w, 1 or 3]`, of what was made, `[h, w, c]`."""
        if self.target_palette:
            return np.array(self.target_palette, np.uint8)[made[..., 0]]
        picture = np.clip(np.rint(self.levels(made)), 0, 255).astype(np.uint8)
        return picture[..., : 1 if picture.shape[-1] < 3 else 3]


def _made(inference: Inference, classes: int) -> Form:
    """What is made: what targets are, but for what the task makes of them."""
    task, target = inference.gan.task, inference.target
    if classes:
        return Form(1, "uint8" if classes <= 256 else "uint16", ".png")
    if task.channels == (1, 2):  # lightness and colours make a photo
        return Form(3)
    suffix = ".tiff" if target.suffix == ".png" and task.channels[1] > 4 else target.suffix
    return Form(task.channels[1], target.dtype, suffix)
