"""PNG images, of which Pillow decodes the pixels and no more."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from p2p_jax.data.exif import orientation
from p2p_jax.data.pillow import pixels
from p2p_jax.data.refusals import limit, refuse


def png(data: bytes, indexed: bool) -> tuple[np.ndarray, int]:
    """By Pillow, or by imagecodecs with 16 bits, half of which Pillow would drop."""
    chunks = _chunks(data)
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if methods not in ([0, 0, 0], [0, 0, 1]) or (bits == 16 and colour not in (0, 2, 4, 6)):
        raise ValueError(f"no PNG has {bits} bits of colour type {colour}, methods {methods}")
    limit(height, width)
    frames = int.from_bytes(chunks[b"acTL"][:4], "big") if b"acTL" in chunks else 1
    refuse(frames != 1 and f"{frames} frames (animated)", "save one of them")
    turned = orientation(chunks.get(b"eXIf", b""))
    if bits == 16:
        import imagecodecs

        refuse(max(height, width) > 10**6 and f"{width}x{height} pixels", "cut it into parts")
        image = np.asarray(imagecodecs.png_decode(_bare(data, b"IHDR IDAT IEND")))
        image = image.reshape(height, width, -1)
    else:
        from PIL.PngImagePlugin import PngImageFile

        image = pixels(
            PngImageFile(io.BytesIO(_bare(data, b"IHDR PLTE IDAT IEND"))),
            indexed or colour == 3,
        )
    if colour == 3 and not indexed:
        return _coloured(image, chunks), turned
    if colour == 0 and bits < 8:
        levels = 2**bits - 1
        if indexed:
            return (image // (255 // levels) if bits > 1 else image), turned
        return _keyed(image, chunks, 255 // levels), turned
    return _keyed(image, chunks, 1) if colour in (0, 2) else image, turned


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks by name, the first of each; the pixels' are empty. Checks sums, and the end."""
    chunks: dict[bytes, bytes] = {}
    for name, start, end in _walk(data):
        if not name[0] & 32 and zlib.crc32(data[start - 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise ValueError(f"wrong checksum of the PNG chunk {name!r}")
        chunks.setdefault(name, b"" if name == b"IDAT" else data[start:end])
    return chunks


def _walk(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, start, end) of each chunk's content, up to IEND."""
    at, walk = 8, []
    while not walk or walk[-1][0] != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise ValueError("the PNG ends early")
        walk.append((data[at + 4 : at + 8], at + 8, end))
        at = end + 4
    return walk


def _bare(data: bytes, names: bytes) -> bytes:
    """The PNG with no other chunks, so that nothing it says besides goes wrong or is printed."""
    keep = names.split()
    parts = [data[start - 8 : end + 4] for name, start, end in _walk(data) if name in keep]
    return data[:8] + b"".join(parts)


def _coloured(indices: np.ndarray, chunks: dict[bytes, bytes]) -> np.ndarray:
    """Colours of a PNG's palette, with alpha where it has any; the palette may be too short."""
    table = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    if b"tRNS" in chunks:
        alpha = np.full(len(table), 255, np.uint8)
        given = np.frombuffer(chunks[b"tRNS"], np.uint8)[: len(table)]
        alpha[: len(given)] = given
        table = np.concatenate([table, alpha[:, None]], axis=1)
    return table[indices[..., 0]]


def _keyed(image: np.ndarray, chunks: dict[bytes, bytes], scale: int) -> np.ndarray:
    """With alpha, where a PNG names one colour that is transparent, in levels of `scale`."""
    if b"tRNS" not in chunks:
        return image
    key = np.frombuffer(chunks[b"tRNS"], ">u2")[: image.shape[-1]] * scale
    top = np.iinfo(image.dtype).max
    alpha = np.where((image == key).all(-1, keepdims=True), 0, top).astype(image.dtype)
    return np.concatenate([image, alpha], axis=-1)
