"""Encoded images to arrays, and what makes one unfit for training."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def decode(data: bytes) -> np.ndarray:
    """Decodes an 8-bit RGB or grey image to [h, w, 3] uint8; grey is repeated in each channel.

    simplejpeg and Pillow agree bit for bit on every kind of JPEG tried (both carry libjpeg-turbo:
    the accurate DCT and upsampling, all subsamplings, progressive, grey, RGB), so the faster one is
    used. The choice depends on the header alone.

    Raises:
      ValueError: if the image is broken or of another mode.
    """
    import simplejpeg
    from PIL import Image

    try:
        if _is_jpeg(data) and _jpeg_colours(data) in ("YCbCr", "RGB", "Gray"):
            return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("RGB", "L"):
                raise ValueError(f"mode {image.mode} is neither 8-bit RGB nor grey")
            return np.array(image.convert("RGB"))
    except ValueError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for broken files
        raise ValueError(str(error) or type(error).__name__) from error


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _jpeg_colours(data: bytes) -> str:
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:  # a sampling that its library has no name for; Pillow decides
        return "unknown"


def inspect(data: bytes) -> tuple[int, int]:
    """(height, width) of a side-by-side image that can be used; decodes all of it.

    Raises:
      ValueError: saying what is wrong and what to do.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse(_odd_mode(image, data), "convert it to 8-bit RGB or grey")
            frames = 1 if _is_jpeg(data) else getattr(image, "n_frames", 1)
            _refuse(frames > 1 and f"{frames} frames", "save one of them")
            turned = image.getexif().get(0x0112, 1)
            _refuse(
                turned in range(2, 9) and f"EXIF orientation {turned}",
                "turn the pixels themselves (magick mogrify -auto-orient) or strip the tag",
            )
            width = image.width
            _refuse(
                width % 2 == 1 and f"width {width} is odd",
                "two equal halves are needed, A on the left and B on the right",
            )
        height, width, _ = decode(data).shape
    except _Refused:
        raise
    except Exception as error:  # see decode
        raise ValueError(f"broken or truncated ({error}); replace or remove it") from error
    return height, width


class _Refused(ValueError):
    """An image that is whole but cannot be used."""


def _refuse(what: str | bool, remedy: str) -> None:
    if what:
        raise _Refused(f"{what}; {remedy}")


def _odd_mode(image: Any, data: bytes) -> str:
    """What keeps the image from being plain 8-bit RGB or grey; '' if it is."""
    names = {"P": "palette", "PA": "palette", "RGBA": "alpha", "LA": "alpha", "1": "bilevel"}
    if image.mode in names:
        return f"mode {image.mode} ({names[image.mode]})"
    if image.format == "PNG" and data[24] != 8:  # Pillow quietly drops half of 16-bit RGB
        return f"{data[24]} bits a channel"
    if image.mode not in ("RGB", "L"):
        return f"mode {image.mode}"
    return "transparency" if "transparency" in image.info else ""
