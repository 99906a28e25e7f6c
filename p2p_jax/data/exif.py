"""Which way up an image is to be shown."""

from __future__ import annotations

import struct

import numpy as np


def orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 where there is none; a broken block has none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    at = struct.unpack_from(order + "I", exif, 4)[0]
    count = struct.unpack_from(order + "H", exif, at)[0] if at + 2 <= len(exif) else 0
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == 0x0112:
            value = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def upright(image: np.ndarray, turned: int) -> np.ndarray:
    """Undoes an EXIF orientation: 1 is upright, 2 to 8 as TIFF 6.0 numbers them."""
    if turned >= 5:
        image = image.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        image = image[::-1]
    if turned in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
