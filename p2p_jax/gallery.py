"""What a network made of examples, in the size and the kind that they are stored in."""

from __future__ import annotations

import numpy as np

from p2p_jax import pictures
from p2p_jax.build import Experiment
from p2p_jax.data.labels import to_indices
from p2p_jax.step import Sampled
from p2p_jax.storage import AnyPath

_FOLDERS = ("source", "images", "target")


class Gallery:
    """Pictures of the examples of one experiment's evaluation split.

    Examples are given as one row of `Sampled`, in numpy: without the leading axis.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._frames, self._labels = experiment.eval_frames, experiment.labels
        # Where a stored image can be looked at as it is.
        self._plain = [
            form.dtype == "uint8" and values.high == 255 and values.low == 0 and not labelled
            for form, values, labelled in zip(
                experiment.eval_frames.forms,
                experiment.gan.values,
                experiment.gan.task.labelled,
                strict=True,
            )
        ]

    def measured(self, i: int, image: np.ndarray) -> np.ndarray:
        """What of a canvas `[h, w, c]` is the image of example `i`."""
        h, w = self._frames.content(i)
        return image[:h, :w]

    def shown(self, i: int, images: Sampled) -> list[np.ndarray]:
        """Pictures of source, fake and, where there is one, target: uint8 `[h, w, c]`.

        Those of source and target are what is stored, where that can be looked at; otherwise they
        are what the networks see, resized back.
        """
        pair = self._frames.original(i)
        found = []
        for picture, side, stored in (
            (images.source, 0, pair.source),
            (images.fake, 1, None),
            (images.target, 1, pair.target),
        ):
            if picture is None:
                continue
            picture = np.asarray(picture)
            if stored is not None and self._plain[side] and stored.shape[-1] == picture.shape[-1]:
                found.append(stored)
            else:
                found.append(self._frames.restore(i, picture, side))
        return found

    def write(self, folder: AnyPath, i: int, images: Sampled) -> None:
        """Writes pictures to look at, and beside them the output in kind, where it is more.

        Names are those of the pairs: `source/NAME.png`, `images/NAME.png`, `target/NAME.png`; the
        output of 16 bits, or of a declared range, is `images/NAME.png` itself, of fractions or of
        channels that a PNG cannot hold `images/NAME.tiff` or `.npy`; classes are numbers in
        `classes/NAME.png`.
        """
        name, suffix = self._frames.names[i], self._frames.forms[1].suffix
        shown = self.shown(i, images)
        for kind, picture in zip(_FOLDERS, shown, strict=False):
            pictures.save(folder / kind / f"{name}.png", pictures.as_shown(picture))
        if images.stored is not None:
            output = self._frames.restore(i, np.asarray(images.stored))
            pictures.save(folder / "images" / f"{name}{suffix}", output)
        elif shown[1].shape[-1] not in (1, 3):
            pictures.save(folder / "images" / f"{name}{suffix}", shown[1])
        if self._labels:
            numbers = to_indices(shown[1], self._labels)
            pictures.save(folder / "classes" / f"{name}.png", numbers)
