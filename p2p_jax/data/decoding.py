"""Encoded images to arrays, in the channels and the type that their files hold."""

from __future__ import annotations

import io
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from p2p_jax.data.exif import orientation, upright
from p2p_jax.data.pillow import bmp, pixels, webp
from p2p_jax.data.png import png
from p2p_jax.data.refusals import TYPES, Unfit, limit, refuse, retype
from p2p_jax.data.tiff import tiff

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy")

_KINDS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"RIFF....WEBP", "webp"),
    (b"BM", "bmp"),
    (rb"II[*+]\0", "tiff"),
    (rb"MM\0[*+]", "tiff"),
    (rb"\x93NUMPY", "npy"),
)
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"PK\3\4", "a zip or .npz archive"),
    (b"....ftyp", "HEIF, AVIF or a film"),
    (rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL", "JPEG XL"),
    (b"8BPS", "a Photoshop document"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (b"%PDF", "a PDF"),
    (rb"\s*<", "SVG or other text"),
)
_WRITABLE = "PNG, JPEG, WebP, BMP, TIFF or .npy"


class Facts(NamedTuple):
    """What `examine` found out about an image; plain values, as JSON holds them.

    Attributes:
      height: in pixels, upright.
      width: likewise.
      channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; any number in TIFF and .npy.
      dtype: 'uint8', 'uint16' or 'float32'.
      low: the smallest value.
      high: the largest value.
      format: 'jpeg', 'png', 'webp', 'bmp', 'tiff' or 'npy'.
    """

    height: int
    width: int
    channels: int
    dtype: str
    low: float
    high: float
    format: str


def decode(data: bytes, indexed: bool = False) -> np.ndarray:
    """Decodes an image to `[h, w, c]` uint8, uint16 or float32, turned upright as EXIF says.

    The first bytes decide the kind. What has two levels becomes 0 and 255.

    Args:
      data: of the whole file.
      indexed: gives the indices of an image with a palette instead of its colours, 0 and 1 of
        one with two levels, and 2- and 4-bit grey as stored: `[h, w, 1]` uint8. Others as ever.

    Raises:
      ValueError: it is broken, or of a kind that cannot be used: what, why and the remedy.
    """
    return _decode(data, indexed)[1]


def examine(data: bytes, indexed: bool = False) -> Facts:
    """Decodes all of an image and tells what it is; `decode` says more.

    Raises:
      ValueError: as `decode`.
    """
    kind, image = _decode(data, indexed)
    height, width, channels = image.shape
    low, high = float(image.min()), float(image.max())
    return Facts(height, width, channels, str(image.dtype), low, high, kind)


def fitted(image: np.ndarray, channels: int, alpha: str) -> np.ndarray:
    """`[h, w, c]` in as many channels as asked for: grey repeated, transparency done away with.

    Args:
      image: 2 and 4 channels hold alpha last where `channels` is 1 or 3.
      channels: wanted.
      alpha: 'drop' it, or lay the image over 'white' or 'black'; anything else refuses.

    Raises:
      ValueError: that cannot be done, and what can.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if have in (2, 4) and channels in (have - 1, 3):
        return fitted(_over(image, alpha), channels, alpha)
    if (have, channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    raise ValueError(f"{have} channels where others have {channels}; save all images in one mode")


def _over(image: np.ndarray, alpha: str) -> np.ndarray:
    """The image without its last channel, laid over `alpha`."""
    colours, opacity = image[..., :-1], image[..., -1:]
    if alpha == "drop":
        return np.ascontiguousarray(colours)
    if alpha not in ("white", "black"):
        raise ValueError(
            f"{image.shape[-1]} channels, the last one alpha (transparency), where alpha={alpha!r} "
            "does not say how to do away with it; save it without, or choose drop, white or black"
        )
    if image.dtype.kind != "u":
        raise ValueError(
            f"alpha in {image.dtype}, of which it is unknown what opaque is; alpha='drop' leaves it"
        )
    # The largest type holds top * top + top // 2 for top = 65535; top is odd, so nothing ties.
    top = np.uint32(np.iinfo(image.dtype).max)
    opacity = opacity.astype(np.uint32)
    mixed = colours * opacity + (top * (top - opacity) if alpha == "white" else np.uint32(0))
    return ((mixed + top // 2) // top).astype(image.dtype)


def _decode(data: bytes, indexed: bool) -> tuple[str, np.ndarray]:
    kind = next((kind for magic, kind in _KINDS if re.match(magic, data, re.DOTALL)), "")
    if not kind:
        other = next((name for magic, name in _OTHERS if re.match(magic, data, re.DOTALL)), "")
        refuse(other and f"{other} is not supported", f"save it as {_WRITABLE}")
        begins = f"it begins with {data[:8]!r}, as no known image" if data else "an empty file"
        raise ValueError(f"broken or truncated ({begins}); replace or remove it")
    try:
        image, turned = _DECODERS[kind](data, indexed)
    except (Unfit, ImportError):
        raise
    except Exception as error:  # libraries raise many kinds for broken files
        reason = str(error) or type(error).__name__
        raise ValueError(f"broken or truncated ({reason}); replace or remove it") from error
    if image.dtype.kind == "f":
        image = _finite(image)
    return kind, upright(image, turned)


def _finite(image: np.ndarray) -> np.ndarray:
    """As float32; refuses what that cannot hold."""
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        row, column, channel = np.argwhere(~np.isfinite(image))[0].tolist()
        raise Unfit(
            f"NaN, infinite or beyond float32 at row {row}, column {column}, channel {channel}; "
            "put numbers there"
        )
    return image


def _jpeg(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """By simplejpeg, or by Pillow where that knows no name for the sampling.

    They agree bit for bit on every kind of JPEG tried (both carry libjpeg-turbo: the accurate DCT
    and upsampling, all subsamplings, progressive, grey, RGB), so the faster one is used. The
    choice depends on the header alone.
    """
    import simplejpeg

    height, width, channels, bits, exif = _jpeg_header(data)
    limit(height, width, channels)
    refuse(
        channels == 4 and "mode CMYK or YCCK", "convert it to RGB (magick mogrify -colorspace sRGB)"
    )
    refuse(channels not in (1, 3) and f"{channels} channels in a JPEG", "convert it to RGB")
    refuse(bits != 8 and f"{bits} bits a channel in a JPEG", "save it as 16-bit PNG or TIFF")
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        from PIL.JpegImagePlugin import JpegImageFile

        image = pixels(JpegImageFile(io.BytesIO(data)), indexed)
    else:
        mode = "GRAY" if channels == 1 else "RGB"
        image = simplejpeg.decode_jpeg(data, mode, fastdct=False, fastupsample=False)
    return image, orientation(exif)


def _jpeg_header(data: bytes) -> tuple[int, int, int, int, bytes]:
    """(height, width, channels, bits a channel, EXIF block) from the segments before the pixels.

    Opening the file by Pillow would tell as much and take a good part of the time of decoding.
    """
    at, frame, huffman, exif = 2, None, False, b""
    while True:
        while data[at : at + 2] == b"\xff\xff":  # padding
            at += 1
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF:
            raise ValueError(f"no JPEG segment at byte {at}")
        marker, size = head[1], head[2] << 8 | head[3]
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", data, at + 4)
            huffman = marker <= 0xC2
        elif marker == 0xE1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + size]
        at += 2 + size
    if frame is None:
        raise ValueError("no JPEG frame header")
    bits, height, width, channels = frame
    # Each block of 8x8 takes a bit at least, of a component that may have half of the pixels.
    if huffman and height * width > 1024 * len(data):
        raise ValueError(f"{len(data)} bytes for {width}x{height} pixels")
    return height, width, channels, bits, exif


def _npy(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """The header is read as numpy writes it, first: its own reader warns, and takes memory."""
    small = data[6:7] == b"\1"
    start = 10 if small else 12
    length = int.from_bytes(data[8:start], "little")
    header = re.fullmatch(
        rb"\{'descr': '([^']*)', 'fortran_order': (?:True|False), 'shape': \(([\d, ]*)\), *\}\s*",
        data[start : start + length],
    )
    if header is None:
        refuse(b"'descr': [" in data[:200] and "records (structured)", retype(".npy"))
        raise ValueError("no header as numpy.save writes it")
    try:
        dtype = np.dtype(header[1].decode())
    except TypeError:
        raise ValueError(f"unknown type {header[1]!r}") from None
    refuse(dtype.name not in TYPES and f"values of type {dtype.name}", retype(".npy"))
    shape = tuple(int(side) for side in header[2].decode().split(",") if side.strip())
    refuse(len(shape) not in (2, 3) and f"shape {shape}", "save it as [h, w] or [h, w, c]")
    limit(*shape)
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) - start - length != wanted:
        raise ValueError(f"{len(data) - start - length} bytes of values instead of {wanted}")
    image = np.load(io.BytesIO(data), allow_pickle=False)
    image = image.astype(dtype.newbyteorder("="), copy=False).reshape(*shape[:2], -1)
    if dtype.kind == "b":
        image = image.astype(np.uint8) * np.uint8(1 if indexed else 255)
    return image, 1


_DECODERS = {"jpeg": _jpeg, "png": png, "webp": webp, "bmp": bmp, "tiff": tiff, "npy": _npy}
