"""Images by the plugins of Pillow; WebP and BMP."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from p2p_jax.data.exif import orientation
from p2p_jax.data.refusals import Unfit, limit, refuse


def pixels(image: Any, indexed: bool) -> np.ndarray:
    """`[h, w, c]` of what a plugin of Pillow opened.

    The plugins are used by themselves: `Image.open` guesses the kind, and warns of large images.
    """
    limit(image.height, image.width)
    with image:
        if image.mode == "1":
            found = np.array(image).astype(np.uint8) * (1 if indexed else 255)
        elif image.mode == "P" and not indexed:
            found = np.array(image.convert("RGB"))
        elif image.mode in ("L", "LA", "P", "RGB", "RGBA"):
            found = np.array(image)
        else:
            raise Unfit(f"mode {image.mode}; convert it to 8-bit RGB or grey")
    return found[..., None] if found.ndim == 2 else found


def webp(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """A WebP of one frame, and its orientation."""
    from PIL.WebPImagePlugin import WebPImageFile

    image = WebPImageFile(io.BytesIO(data))
    refuse(image.n_frames != 1 and f"{image.n_frames} frames (animated)", "save one of them")
    return pixels(image, indexed), orientation(image.info.get("exif", b""))


def bmp(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """A BMP, which is upright."""
    from PIL.BmpImagePlugin import BmpImageFile

    image = BmpImageFile(io.BytesIO(data))
    limit(image.height, image.width)
    declared = int.from_bytes(data[2:6], "little")
    if len(data) < declared:  # Pillow takes the end of a file for that of run lengths
        raise ValueError(f"{len(data)} bytes of {declared}")
    runs = image.info.get("compression") in (1, 2)
    if runs and image.height * image.width > 128 * len(data):  # two bytes make 255 at most
        raise ValueError("run lengths of less than the pixels")
    return pixels(image, indexed), 1
