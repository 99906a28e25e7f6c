"""What is done once to images when they are prepared: edges of photos, labels to class numbers."""

from __future__ import annotations

import functools
import io

import numpy as np

from p2p_jax.data.builders import Recipe
from p2p_jax.data.decoding import decode
from p2p_jax.data.labels import Labels, to_indices

_VERSION = 1  # of what is done; prepared sets of another one are made anew


def png(image: np.ndarray) -> bytes:
    """A grey image `[h, w, 1]` of 8 or 16 bits, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def edges(thresholds: tuple[int, int]) -> Recipe:
    """From a photo to its edges and the photo.

    Edges are black on white, as in edges2shoes: Canny's (1986) of the 8-bit luma after a Gaussian
    blur of sigma 1, by OpenCV, with L2 norms of the 3x3 Sobel gradient and these thresholds.
    """
    key = f"edges {_VERSION} {thresholds}"
    return Recipe(key, functools.partial(_edges, thresholds), processes=True)


def _edges(thresholds: tuple[int, int], data: tuple[bytes, ...]) -> tuple[bytes, ...]:
    import cv2

    photo = decode(data[0])
    if photo.dtype != np.uint8 or photo.shape[-1] not in (1, 3):
        raise ValueError(
            f"{photo.dtype} of {photo.shape[-1]} channels; edges are found in photos of 8 bits, "
            "grey or RGB; convert it"
        )
    cv2.setNumThreads(1)  # there are processes enough
    luma = photo[..., 0] if photo.shape[-1] == 1 else cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    soft = cv2.GaussianBlur(luma, (5, 5), 1.0)
    low, high = thresholds
    found = cv2.Canny(soft, float(low), float(high), apertureSize=3, L2gradient=True)
    return png(255 - np.asarray(found)[..., None]), data[0]


def label_maps(labels: Labels, parts: tuple[tuple[int, str, bool], ...]) -> Recipe:
    """From images to those with the label maps among them as class numbers.

    Args:
      labels: the classes.
      parts: of A and of B: which file, its part (`whole`, `left` or `right`), and whether it is a
        label map. Others are stored as they are.
    """
    key = f"labels {_VERSION} {labels} {parts}"
    return Recipe(key, functools.partial(_label_maps, labels, parts))


def _label_maps(
    labels: Labels, parts: tuple[tuple[int, str, bool], ...], data: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    stored = []
    for file, part, is_map in parts:
        if is_map:
            image = cut(decode(data[file], indexed=not labels.palette), part)
            stored.append(png(to_indices(image, labels)))
        else:
            stored.append(data[file])
    return tuple(stored)


def cut(image: np.ndarray, part: str) -> np.ndarray:
    """The part of `[h, w, c]`: `whole`, or its `left` or `right` half.

    Raises:
      ValueError: it has no two equal halves.
    """
    if part == "whole":
        return image
    width = image.shape[1]
    if width % 2:
        raise ValueError(
            f"width {width} is odd; two equal halves are needed, A on the left and B on the right"
        )
    return image[:, : width // 2] if part == "left" else image[:, width // 2 :]
