"""Decoding agrees with Pillow bit for bit; images unfit for training are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data.decoding import decode, inspect


def picture(height: int = 48, width: int = 70, channels: int = 3) -> np.ndarray:
    """Smooth colours with noise and hard edges, uint8 [h, w, c]."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([3 * y, 2 * x, y + x, 255 - y][:channels], -1)
    noise = np.random.default_rng(0).integers(0, 40, smooth.shape)
    return ((smooth + noise + 90 * ((x // 7 + y // 5) % 2)[..., None]) % 256).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [(48, 70), (17, 34), (64, 128)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_jpeg_equals_pillow(size, subsampling):
    for quality in (10, 50, 75, 95):
        for progressive in (False, True):
            data = encode(picture(*size), "JPEG", quality=quality, subsampling=subsampling,
                          progressive=progressive)  # fmt: skip
            decoded = decode(data)
            assert decoded.shape == (*size, 3) and decoded.dtype == np.uint8
            np.testing.assert_array_equal(decoded, by_pillow(data))


def test_other_jpeg_colours_equal_pillow():
    for data in (
        encode(picture(channels=3)[..., 0], "JPEG"),
        encode(picture(), "JPEG", keep_rgb=True, subsampling=0),
        encode(picture(), "JPEG", restart_marker_blocks=3),
    ):
        np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_give_the_pixels_and_grey_is_repeated(kind):
    rgb, grey = picture(), picture()[..., 0]
    np.testing.assert_array_equal(decode(encode(rgb, kind)), rgb)
    np.testing.assert_array_equal(decode(encode(grey, kind)), np.stack([grey] * 3, -1))


def test_webp():
    np.testing.assert_array_equal(decode(encode(picture(), "WEBP", lossless=True)), picture())


def test_decoded_arrays_may_be_written_to():
    for kind in ("PNG", "JPEG"):
        decode(encode(picture(), kind))[:] = 0


def rgb16_png() -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write and reads as 8-bit."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(2))
    head = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), "JPEG", exif=exif.tobytes())


def animated() -> bytes:
    second = Image.fromarray(255 - picture())
    return encode(picture(), "WEBP", save_all=True, append_images=[second])


def alpha() -> np.ndarray:
    return picture(channels=4)


@pytest.mark.parametrize(
    "data,reason",
    [
        (encode(Image.fromarray(picture()).quantize(8), "PNG"), r"palette.*convert it to 8-bit"),
        (encode(alpha(), "PNG"), r"mode RGBA \(alpha\).*convert"),
        (encode(Image.fromarray(picture()[..., :2]), "PNG"), r"mode LA \(alpha\)"),
        (encode(Image.fromarray(alpha(), "CMYK"), "JPEG"), r"mode CMYK"),
        (encode(picture()[..., 0].astype(np.uint16) * 200, "PNG"), r"16 bits a channel"),
        (rgb16_png(), r"16 bits a channel"),
        (encode(Image.fromarray(picture()).convert("1"), "PNG"), r"mode 1 \(bilevel\)"),
        (encode(picture(), "PNG", transparency=(1, 2, 3)), r"transparency"),
        (encode(picture(20, 31), "PNG"), r"width 31 is odd.*two equal halves"),
        (turned(6), r"EXIF orientation 6; turn the pixels"),
        (turned(2), r"EXIF orientation 2"),
        (encode(picture(), "JPEG")[:-300], r"broken or truncated.*replace or remove"),
        (encode(picture(), "PNG")[:-300], r"broken or truncated"),
        (encode(picture(), "WEBP")[:-300], r"broken or truncated"),
        (encode(picture(), "BMP")[:-300], r"broken or truncated"),
        (b"", r"broken or truncated"),
        (b"\xff\xd8\xff", r"broken or truncated"),
        (b"not an image", r"broken or truncated"),
        (animated(), r"2 frames"),
    ],
)  # fmt: skip
def test_unfit_images_are_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        inspect(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_fit_images_pass(kind):
    assert inspect(encode(picture(), kind)) == (48, 70)
    assert inspect(encode(picture()[..., 0], kind)) == (48, 70)
    assert inspect(turned(1)) == (48, 70)


def test_decode_refuses_what_inspect_refuses():
    for data in (encode(alpha(), "PNG"), b"", encode(picture(), "JPEG")[:-300]):
        with pytest.raises(ValueError):
            decode(data)
