"""TIFF images: what tifffile makes of them is checked for what it would make up."""

from __future__ import annotations

import io
import logging
import math
import struct
import threading
from typing import Any

import numpy as np

from p2p_jax.data.refusals import MAX_CHANNELS, TYPES, limit, refuse, retype

_heard = threading.local()  # what tifffile logs while this thread decodes


def _overhear(record: logging.LogRecord) -> bool:
    lines = getattr(_heard, "lines", None)
    if lines is None:
        return True
    if record.levelno >= logging.ERROR:
        lines.append(record.getMessage())
    return False


def tiff(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """By tifffile, which logs broken tags as errors and goes on without them."""
    import tifffile

    logging.getLogger("tifffile").addFilter(_overhear)
    _heard.lines = []
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            image, page = _read(file, data)
            if _heard.lines:
                raise ValueError(_heard.lines[0])
            return _levels(image, page, indexed), _orientation(page)
    finally:
        _heard.lines = None


def _read(file: Any, data: bytes) -> tuple[np.ndarray, Any]:
    """The stored numbers `[h, w, c]`, and the (first) page they are from."""
    count = len(file.pages)
    refuse(count > MAX_CHANNELS and f"{count} pages", "save one of them")
    pages = [page for page in file.pages if not page.is_reduced] or [file.pages[0]]
    if _heard.lines:
        raise ValueError(_heard.lines[0])
    if stack := len(pages) > 1:
        declared = len(file.series) == 1 and file.series[0].axes in ("CYX", "SYX")
        refuse(not declared and f"{count} pages", "save one of them, or all as one's samples")
    page = pages[0]
    refuse(page.axes not in ("YX", "YXS", "SYX") and f"axes {page.axes}", "save one plane")
    shape = page.imagelength, page.imagewidth, page.samplesperpixel * len(pages)
    limit(*shape)
    for each in pages:
        refuse(each.shape != page.shape and "pages of several sizes", "save one of them")
        _fit(each)
        _whole(each, data)
    image = (file.series[0] if stack else page).asarray(maxworkers=1)
    image = np.asarray(image, image.dtype.newbyteorder("="))
    if stack or page.axes == "SYX":
        refuse(page.axes == "YXS" and f"{count} pages of several samples", "save one of them")
        return np.moveaxis(image.reshape(shape[2], *shape[:2]), 0, -1), page
    return image.reshape(shape), page


def _fit(page: Any) -> None:
    """Refuses what the numbers of a page may mean besides grey, colours, alpha or samples."""
    colour = getattr(page.photometric, "name", str(page.photometric))
    bits, samples, dtype = page.bitspersample, page.samplesperpixel, str(page.dtype)
    convert = "convert it to RGB or grey"
    jpeg = page.compression in (6, 7)  # those are converted as they are decoded
    plain = ("MINISBLACK", "RGB", "MINISWHITE", "PALETTE", *(("YCBCR",) if jpeg else ()))
    refuse(colour == "SEPARATED" and "colours CMYK (SEPARATED)", convert)
    refuse(colour not in plain and f"colours {colour}", convert)
    refuse(dtype not in TYPES and f"values of type {dtype}", retype("TIFF"))
    wide = {"bool": (1,), "uint8": (8, 4, 2) if samples == 1 else (8,)}
    usual = wide.get(dtype, (8 * np.dtype(dtype).itemsize,))
    refuse(bits not in usual and f"{bits} bits a sample", "save it with 8 or 16")
    if colour in ("MINISWHITE", "PALETTE"):
        odd = samples != 1 or dtype not in ("bool", "uint8", "uint16")
        odd = odd or (colour == "PALETTE" and dtype == "uint16")
        refuse(odd and f"{colour} with {samples} samples of type {dtype}", convert)
    refuse(
        1 in tuple(page.extrasamples) and "colours multiplied by their alpha (associated)",
        "save it with unassociated alpha",
    )


def _whole(page: Any, data: bytes) -> None:
    """Raises where something is missing, which tifffile would make up for."""
    form = page.parent.tiff
    tags = struct.unpack_from(form.tagnoformat, data, page.offset)[0]
    end = page.offset + form.tagnosize + tags * form.tagsize + form.offsetsize
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    whole = all(0 < at and 0 < size and at + size <= len(data) for at, size in parts)
    if end > len(data) or not whole or len(parts) < math.prod(page.chunked):
        raise ValueError("tags, strips or tiles are missing")
    # A tag that is gone has a default, by which the pixels would be read as others: one bit each,
    # or one sample.
    stored = page.tags.valueof(258)  # BitsPerSample
    given = len(stored) if isinstance(stored, tuple) else 1
    rgb = getattr(page.photometric, "name", "") == "RGB"
    if given not in (1, page.samplesperpixel) or (rgb and (not stored or page.samplesperpixel < 3)):
        raise ValueError(
            f"bits per sample {stored} do not go with {page.samplesperpixel} samples per pixel"
        )
    wanted = _bytes(page)
    if page.compression == 1 and not wanted <= sum(page.databytecounts) < wanted + 8 * len(parts):
        raise ValueError(f"{sum(page.databytecounts)} bytes of pixels instead of {wanted}")


def _bytes(page: Any) -> int:
    """What the pixels take uncompressed; rows begin at whole bytes, tiles are whole."""
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    height, width = page.imagelength, page.imagewidth
    if page.is_tiled:
        height = -(-height // page.tilelength) * page.tilelength
        across = -(-width // page.tilewidth)
        width = page.tilewidth
    else:
        across = 1
    row = -(-width * (page.samplesperpixel // planes) * page.bitspersample // 8)
    return planes * height * across * row


def _levels(image: np.ndarray, page: Any, indexed: bool) -> np.ndarray:
    """Stored numbers to levels or colours."""
    colour = getattr(page.photometric, "name", "")
    top = 2**page.bitspersample - 1
    if colour == "MINISWHITE":
        image = (top - image.astype(np.int32)).astype(image.dtype)
    if colour == "PALETTE":
        image = image.astype(np.uint8)
        if indexed:
            return image
        table = page.colormap >> 8 if page.colormap.max() > 255 else page.colormap
        return table.astype(np.uint8).T[image[..., 0]]
    if image.dtype.kind == "b" or (image.dtype == np.uint8 and top < 255):
        return image.astype(np.uint8) * np.uint8(1 if indexed else 255 // top)
    return image


def _orientation(page: Any) -> int:
    value = page.tags.valueof(0x0112, 1)
    return value if value in range(1, 9) else 1
