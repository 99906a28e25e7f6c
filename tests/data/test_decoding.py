"""Decoding agrees with Pillow and with what was written; what cannot be used is refused."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from p2p_jax.data import decoding, refusals
from p2p_jax.data.decoding import Facts, decode, examine, fitted
from p2p_jax.data.exif import upright

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")


def picture(height: int = 48, width: int = 70, channels: int = 3, dtype="uint8") -> np.ndarray:
    """Smooth colours with noise and hard edges `[h, w, c]`; all of the type's range."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([3 * y, 2 * x, y + x, 255 - y][:channels], -1)
    noise = np.random.default_rng(0).integers(0, 40, smooth.shape)
    eight = ((smooth + noise + 90 * ((x // 7 + y // 5) % 2)[..., None]) % 256).astype(np.uint8)
    if dtype == "uint8":
        return eight
    low = np.random.default_rng(1).integers(0, 256, eight.shape)
    sixteen = (eight.astype(np.uint16) * 256 + low).astype(np.uint16)
    return sixteen if dtype == "uint16" else (sixteen / 7 - 4000).astype(dtype)


def noise(channels: int, dtype: str = "uint8", shape=(13, 22)) -> np.ndarray:
    values = np.random.default_rng(2).integers(0, 65536, (*shape, channels))
    return ((values - 30000) / 3 if "float" in dtype else values).astype(dtype)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(image: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, **options)
    return out.getvalue()


def npy(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, image)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, bits: int, colour: int, *more: bytes) -> bytes:
    """A PNG of stored numbers `[h, w, c]`, packed by hand."""
    height, width, _ = values.shape
    if bits == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        flat = values.reshape(height, -1, 1).astype(np.uint8)
        rows = np.packbits(np.unpackbits(flat, axis=-1)[..., 8 - bits :].reshape(height, -1), 1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def by_pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def check(data: bytes, expected: np.ndarray, indexed: bool = False) -> None:
    """Decoding gives just this, in an array of its own, and `examine` tells so."""
    image = decode(data, indexed)
    assert image.dtype == expected.dtype and image.dtype.isnative
    np.testing.assert_array_equal(image, expected)
    facts = examine(data, indexed)
    assert facts[:4] == (*expected.shape, str(expected.dtype))
    assert facts[4:6] == (expected.min(), expected.max())
    assert Facts(*json.loads(json.dumps(facts))) == facts
    assert image.flags.c_contiguous
    image[:] = 0


def refused(data: bytes, reason: str, indexed: bool = False) -> None:
    for read in (decode, examine):
        with pytest.raises(ValueError, match=reason):
            read(data, indexed)


# JPEG


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


def test_other_jpegs_equal_pillow():
    grey = encode(picture(channels=1), "JPEG")
    check(grey, by_pillow(grey, "L"))
    assert examine(grey).channels == 1 and examine(grey).format == "jpeg"
    for data in (
        encode(picture(), "JPEG", keep_rgb=True, subsampling=0),
        encode(picture(), "JPEG", restart_marker_blocks=3),
        encode(picture(), "JPEG", comment=b"\xff\xd9" * 9, icc_profile=b"x" * 70_000),
    ):
        check(data, by_pillow(data))


def test_a_sampling_without_a_name_is_left_to_pillow():
    import simplejpeg

    # All components of such a JPEG share their tables, so that its blocks decode in any order.
    data = bytearray(encode(picture(64, 64), "JPEG", keep_rgb=True, subsampling=0))
    at = data.index(b"\xff\xc0") + 11
    assert data[at] == data[at + 3] == data[at + 6] == 0x11
    data[at], data[at + 3], data[at + 6] = 0x22, 0x21, 0x12
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg_header(bytes(data))
    assert by_pillow(bytes(data)).std() > 20
    check(bytes(data), by_pillow(bytes(data)))
    refused(bytes(data[:-2000]), "broken or truncated")


def test_cmyk_and_deep_jpegs_are_refused():
    for image in (picture(channels=4), noise(4)):
        data = encode(Image.fromarray(image, "CMYK"), "JPEG")
        refused(data, "mode CMYK or YCCK; convert it to RGB")
    deep = bytearray(encode(picture(), "JPEG"))
    deep[deep.index(b"\xff\xc0") + 4] = 12
    refused(bytes(deep), "12 bits a channel in a JPEG; save it as 16-bit PNG")


# Upright


def exif_of(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0][: 5 - kind]))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    make = struct.pack(order + "HHII", 0x010F, 2, 1, 0)
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return head + struct.pack(order + "H", 2) + make + entry + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = [
        encode(picture(), "JPEG", exif=b"Exif\0\0" + exif_of(orientation, order, kind))
        for order, kind in (("<", 3), (">", 3), ("<", 4), (">", 4))
    ]
    files += [encode(picture(), kind, exif=exif) for kind in ("JPEG", "PNG")]
    files.append(encode(picture(), "WEBP", exif=exif.tobytes(), lossless=True))
    files.append(encode(picture(), "TIFF", exif=exif, tiffinfo={0x0112: orientation}))
    turned = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        check(data, expected)
        same = expected.shape == picture().shape
        turned.append(not same or np.abs(expected - picture().astype(float)).mean() > 20)
    assert all(turned) or orientation == 1
    sixteen = png(noise(3, "uint16"), 16, 2, chunk(b"eXIf", exif_of(orientation)))
    expected = upright(noise(3, "uint16"), orientation)
    check(sixteen, expected)


FAR = b"II*\0\xff\xff\xff\xff" + bytes(40)


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", exif_of(9), exif_of(0), exif_of(6)[:20], FAR, b"nonsense" * 4]
)
def test_a_broken_orientation_is_none(exif):
    data = encode(picture(), "JPEG")
    block = b"Exif\0\0" + exif
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    np.testing.assert_array_equal(decode(data), decode(encode(picture(), "JPEG")))


# PNG, BMP, WebP


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_gives_the_numbers_stored(channels):
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    check(encode(picture(channels=channels), "PNG"), picture(channels=channels))
    check(png(noise(channels), 8, colour), noise(channels))
    sixteen = noise(channels, "uint16")
    squeezed = sixteen[..., 0] if channels == 1 else sixteen
    for data in (png(sixteen, 16, colour), bytes(imagecodecs.png_encode(squeezed))):
        for indexed in (False, True):
            check(data, sixteen, indexed)
        assert examine(data).format == "png"


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(bits):
    stored = noise(1) & (2**bits - 1)
    data = png(stored, bits, 0)
    check(data, by_pillow(data, "L"))
    check(data, stored * np.uint8(255 // (2**bits - 1)))
    check(data, stored, indexed=True)
    clear = png(stored, bits, 0, chunk(b"tRNS", struct.pack(">H", 1)))
    alpha = np.where(stored == 1, 0, 255).astype(np.uint8)
    check(clear, np.concatenate([decode(data), alpha], -1))
    check(clear, stored, indexed=True)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_colour_becomes_alpha(bits, channels):
    stored = noise(channels, f"uint{bits}") % 251
    stored[2:5, 3:9] = (7, 8, 9)[:channels]
    key = chunk(b"tRNS", struct.pack(f">{channels}H", *(7, 8, 9)[:channels]))
    data = png(stored, bits, 0 if channels == 1 else 2, key)
    alpha = np.where((stored == stored[2, 3]).all(-1, keepdims=True), 0, 2**bits - 1)
    check(data, np.concatenate([stored, alpha.astype(stored.dtype)], -1))
    if bits == 8:
        check(data, by_pillow(data, "LA" if channels == 1 else "RGBA"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette(bits):
    stored = noise(1) & (2**bits - 1)
    stored[0, :2, 0] = 0, 1
    table = noise(3, shape=(1, 2**bits))[0]
    colours = chunk(b"PLTE", table.tobytes())
    data = png(stored, bits, 3, colours)
    check(data, table[stored[..., 0]])
    check(data, by_pillow(data))
    check(data, stored, indexed=True)
    clear = png(stored, bits, 3, colours, chunk(b"tRNS", b"\x40\x00"))
    check(clear, by_pillow(clear, "RGBA"))
    assert set(np.unique(decode(clear)[..., 3])) >= {0, 0x40}
    check(clear, stored, indexed=True)
    refused(png(stored, bits, 3, chunk(b"PLTE", table[:1].tobytes())), "broken.*out of bounds")


def test_palettes_of_pillow():
    image = Image.fromarray(picture()).quantize(16)
    for kind in ("PNG", "BMP", "TIFF"):
        data = encode(image, kind)
        check(data, by_pillow(data))
        check(data, np.asarray(image)[..., None], indexed=True)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_two_levels(kind):
    image = Image.fromarray(picture()).convert("1")
    expected = np.asarray(image)[..., None]
    assert 0 < expected.mean() < 1
    check(encode(image, kind), expected * np.uint8(255))
    check(encode(image, kind), expected.astype(np.uint8), indexed=True)


def bmp_with_alpha(image: np.ndarray) -> bytes:
    height, width, _ = image.shape
    body = image[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    head = struct.pack("<IiiHHI5I4I", 108, width, height, 1, 32, 3, len(body), 0, 0, 0, 0, *masks)
    start = 14 + 108
    return b"BM" + struct.pack("<III", start + len(body), 0, start) + head + bytes(52) + body


def test_bmp_and_webp():
    for channels in (1, 3):
        check(encode(picture(channels=channels), "BMP"), picture(channels=channels))
    check(
        encode(picture(channels=4), "BMP"), picture(channels=4)[..., :3]
    )  # Pillow writes no alpha
    check(bmp_with_alpha(picture(channels=4)), picture(channels=4))
    for channels in (3, 4):
        data = encode(picture(channels=channels), "WEBP", lossless=True, exact=True)
        check(data, picture(channels=channels))
    lossy = encode(picture(), "WEBP")
    check(lossy, by_pillow(lossy))
    assert examine(lossy).format == "webp" and examine(encode(picture(), "BMP")).format == "bmp"


def run_lengths(ended: bool = True) -> bytes:
    """A BMP of 4 by 2 pixels, two runs of equal ones a row."""
    table = bytes(range(0, 64)) * 16
    body = b"\2\1\2\2\0\0\2\3\2\4\0\0\0\1"
    start = 14 + 40 + len(table)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, len(body), 0, 0, 0, 0)
    data = b"BM" + struct.pack("<III", start + len(body), 0, start) + head + table + body
    return data if ended else data[:-2]


def test_run_lengths():
    rows = np.array([[3, 3, 4, 4], [1, 1, 2, 2]], np.uint8)[..., None]
    check(run_lengths(), rows, indexed=True)
    refused(run_lengths(ended=False), "broken or truncated")


# TIFF


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_tiff_gives_the_numbers_stored(channels, dtype):
    image = noise(channels, dtype)
    squeezed = image[..., 0] if channels == 1 else image
    contiguous = {"planarconfig": "contig"} if channels > 1 else {}
    for more in ({}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True},
                 {"compression": "zlib", "tile": (16, 16)}, {"rowsperstrip": 3},
                 {"byteorder": ">"}, {"bigtiff": True}):  # fmt: skip
        data = tiff(squeezed, photometric="minisblack", **contiguous, **more)
        for indexed in (False, True):
            check(data, image, indexed)
        assert examine(data).format == "tiff"
        if channels == 3:
            check(tiff(image, photometric="rgb", **more), image)
        if channels > 1:
            planes = np.moveaxis(image, -1, 0)
            check(tiff(planes, photometric="minisblack", planarconfig="separate", **more), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiffs_of_pillow(mode, compression):
    image = Image.fromarray(picture()).convert(mode if mode != "I;16" else "F")
    if mode == "I;16":
        image = Image.fromarray(picture(channels=1, dtype="uint16")[..., 0])
    expected = np.asarray(image)
    expected = expected if expected.ndim == 3 else expected[..., None]
    data = encode(image, "TIFF", compression=compression)
    check(data, expected * np.uint8(255) if mode == "1" else expected)


def test_tiff_of_jpeg_and_of_fax():
    for image in (picture(), picture(channels=1)):
        data = encode(image, "TIFF", compression="jpeg")
        check(data, by_pillow(data, "RGB" if image.shape[-1] == 3 else "L"))
    image = Image.fromarray(picture()).convert("1")
    expected = np.asarray(image)[..., None] * np.uint8(255)
    for compression in ("group3", "group4"):
        check(encode(image, "TIFF", compression=compression), expected)


def test_tiff_of_light_zero():
    for image in (picture(channels=1), picture(channels=1, dtype="uint16")):
        data = tiff(image[..., 0], photometric="miniswhite")
        check(data, np.iinfo(image.dtype).max - image)
        if image.dtype == np.uint8:
            check(data, by_pillow(data, "L"))
    levels = picture(channels=1) > 128
    data = tiff(levels[..., 0], photometric="miniswhite")
    check(data, ~levels * np.uint8(255))
    check(data, by_pillow(data, "L"))


def palette_tiff(stored: np.ndarray, bits: int, table: np.ndarray) -> bytes:
    """A TIFF of indices `[h, w, 1]` into colours `[2**bits, 3]` uint16, packed by hand."""
    height, width, _ = stored.shape
    rows = np.packbits(np.unpackbits(stored, axis=-1)[..., 8 - bits :].reshape(height, -1), 1)
    body, colours = rows.tobytes(), table.T.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
            (262, 3, 1, 3), (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, height),
            (279, 4, 1, len(body)), (320, 3, table.size, 8 + len(body))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    end = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body) + len(colours)) + body + colours + end


@pytest.mark.parametrize("bits", [2, 4])
def test_tiff_of_few_bits(bits):
    stored = noise(1, shape=(13, 24)) & (2**bits - 1)
    data = tiff(stored[..., 0], photometric="minisblack", bitspersample=bits)
    check(data, stored * np.uint8(255 // (2**bits - 1)))
    check(data, by_pillow(data, "L"))
    check(data, stored, indexed=True)
    table = noise(3, "uint16", shape=(1, 2**bits))[0]
    data = palette_tiff(stored, bits, table)
    check(data, (table >> 8).astype(np.uint8)[stored[..., 0]])
    check(data, by_pillow(data))
    check(data, stored, indexed=True)


@pytest.mark.parametrize("tag", [324, 325])
def test_a_tile_left_out_is_refused(tag):
    data = bytearray(FILES["tiff tiles"])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        entry = file.pages[0].tags[tag]
    assert entry.count == 2
    data[entry.valueoffset : entry.valueoffset + entry.valuebytecount // 2] = bytes(
        entry.valuebytecount // 2
    )
    refused(bytes(data), "tags, strips or tiles are missing")


def test_too_few_strips_are_refused():
    data = bytearray(FILES["tiff zlib"])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        rows = file.pages[0].tags["RowsPerStrip"]
    assert rows.value == 13
    data[rows.valueoffset] = 5
    refused(bytes(data), "broken or truncated")


def test_tiff_of_other_floating_types():
    half = noise(3, "float16")
    check(tiff(half, photometric="rgb"), half.astype(np.float32))
    double = noise(2, "float64")
    check(tiff(double, photometric="minisblack", planarconfig="contig"), double.astype(np.float32))


def test_pages_declared_as_samples():
    image = noise(5, "float32")
    planes = np.moveaxis(image, -1, 0)
    for more in ({}, {"ome": True}, {"imagej": True}):
        check(tiff(planes, photometric="minisblack", metadata={"axes": "CYX"}, **more), image)
    refused(tiff(planes, photometric="minisblack"), "5 pages; save one of them")
    refused(tiff(planes, photometric="minisblack", metadata={"axes": "ZYX"}), "5 pages")


def test_small_copies_in_a_tiff_are_passed_over():
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(picture(), photometric="rgb")
        writer.write(picture()[::2, ::2], photometric="rgb", subfiletype=1)
    check(out.getvalue(), picture())


@pytest.mark.parametrize("image,options,reason", [
    (noise(1, "int32")[..., 0], {}, "type int32; a TIFF must hold uint8, uint16"),
    (noise(1, "uint32")[..., 0], {}, "type uint32"),
    (noise(1, "int8")[..., 0], {}, "type int8"),
    (noise(1, "float32")[..., 0].astype("complex64"), {}, "type complex64"),
    (noise(4), {"photometric": "separated"}, "CMYK.*convert it to RGB"),
    (noise(3), {"photometric": "cielab"}, "colours CIELAB; convert"),
    (noise(3), {"photometric": "ycbcr"}, "colours YCBCR; convert"),
    (noise(1)[..., 0], {"photometric": "cfa"}, "colours CFA"),
    (noise(1, "float32")[..., 0], {"photometric": "miniswhite"}, "MINISWHITE with 1 samples"),
    (noise(4), {"photometric": "rgb", "extrasamples": ["assocalpha"]}, "multiplied by their alpha"),
    (noise(1, "uint16")[..., 0] % 1024, {"bitspersample": 10}, "10 bits a sample; save it with 8"),
    (np.array([[1, np.nan]], "float32"), {}, "NaN.*row 0, column 1, channel 0; put numbers"),
    (np.array([[1, 2], [np.inf, 3]], "float32"), {}, "infinite.*row 1, column 0"),
    (np.array([[1e300, 3]]), {}, "beyond float32"),
    (noise(513), {"planarconfig": "contig"}, "513 channels; at most 512"),
])  # fmt: skip
def test_unfit_tiffs(image, options, reason):
    refused(tiff(image, **({"photometric": "minisblack"} | options)), reason)


# .npy


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", ">u2", "float32", ">f4", "float16", "float64"]
)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_npy_gives_the_numbers_stored(channels, dtype):
    image = noise(channels, np.dtype(dtype).name).astype(dtype)
    kept = {"f": "float32"}.get(np.dtype(dtype).kind, np.dtype(dtype).name)
    check(npy(image), image.astype(kept))
    check(npy(np.asfortranarray(image)), image.astype(kept), indexed=True)
    check(npy(image[..., 0]), image[..., :1].astype(kept))
    assert examine(npy(image)).format == "npy"
    other = io.BytesIO()
    np.lib.format.write_array(other, image, version=(2, 0))
    check(other.getvalue(), image.astype(kept))


def test_npy_of_two_levels():
    levels = noise(1) > 100
    check(npy(levels), levels * np.uint8(255))
    check(npy(levels[..., 0]), levels.astype(np.uint8), indexed=True)


@pytest.mark.parametrize("data,reason", [
    (npy(noise(3, "int64")), "type int64; a .npy must hold uint8"),
    (npy(noise(3, "int16")), "type int16"),
    (npy(noise(1, "float32").astype(complex)), "type complex128"),
    (npy(np.array([["a", "b"]])), "type str"),
    (npy(np.array([[None, 1]])), "type object"),
    (npy(np.zeros((2, 2), [("a", "u1"), ("b", "u1")])), r"records \(structured\)"),
    (npy(noise(3)[0, 0]), r"shape \(3,\); save it as \[h, w\]"),
    (npy(noise(3)[None]), r"shape \(1, 13, 22, 3\)"),
    (npy(noise(3)[:0]), "22x0 pixels.*empty"),
    (npy(noise(3)[..., :0]), "0 channels; it is empty"),
    (npy(noise(513)), "513 channels"),
    (npy(noise(3))[:-1], "broken or truncated .857 bytes of values instead of 858"),
    (npy(noise(3)) + b"\0", "859 bytes of values instead of 858"),
    (npy(noise(3))[:60], "broken or truncated"),
    (npy(np.array([[0.5, np.nan]])), "NaN"),
    (npy(np.array([[-np.inf]], "float16")), "infinite"),
    (npy(np.array([[1e39]])), "beyond float32"),
])  # fmt: skip
def test_unfit_npys(data, reason):
    refused(data, reason)


# What is broken, too large or of another kind


def whole_files() -> dict[str, bytes]:
    """One small file of each kind, whose last byte belongs to it."""
    small = picture(21, 30)
    return {
        "jpeg": encode(small, "JPEG"),
        "jpeg grey": encode(small[..., :1], "JPEG"),
        "jpeg progressive": encode(small, "JPEG", progressive=True),
        "png": encode(small, "PNG"),
        "png palette": encode(Image.fromarray(small).quantize(8), "PNG", transparency=3),
        "png 16": png(noise(3, "uint16"), 16, 2),
        "png 2": png(noise(1) % 4, 2, 0),
        "webp": encode(small, "WEBP"),
        "webp lossless": encode(noise(4), "WEBP", lossless=True),
        "bmp": encode(small, "BMP"),
        "bmp runs": run_lengths(),
        "tiff": tiff(small),
        "tiff zlib": tiff(noise(5, "float32"), photometric="minisblack", planarconfig="contig",
                          compression="zlib"),
        "tiff lzw": encode(small, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encode(small, "TIFF", compression="jpeg"),
        "tiff tiles": tiff(noise(3, "uint16"), tile=(16, 16), photometric="rgb"),
        "tiff fax": encode(Image.fromarray(small).convert("1"), "TIFF", compression="group4"),
        "npy": npy(small),
    }  # fmt: skip


FILES = whole_files()


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_are_refused(kind):
    data = FILES[kind]
    examine(data)
    for missing in (1, 2, 3, 4, 5, 12, 13, 40, len(data) // 2, len(data) - 9):
        refused(data[:-missing], "broken or truncated")


def test_headers_that_no_png_has(capfd):
    for at, value in ((24, 3), (25, 3), (26, 1), (27, 1), (28, 2)):
        data = bytearray(FILES["png 16"])
        data[at] = value
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        refused(bytes(data), "broken or truncated")
    refused(png(np.zeros((1, 10**6 + 1, 1)), 16, 0), "1000001x1 pixels; cut it into parts")
    assert capfd.readouterr() == ("", "")
    odd = png(noise(3, "uint16"), 16, 2, chunk(b"PLTE", b"ab"), chunk(b"iCCP", b"x"))
    check(odd, noise(3, "uint16"))
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_a_png_is_refused():
    for kind in ("png", "png palette", "png 16"):
        data = bytearray(FILES[kind])
        data[data.index(b"IDAT") + 30] ^= 4
        refused(bytes(data), "wrong checksum of the PNG chunk b'IDAT'")


def test_other_kinds_are_named():
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - picture())]}
    for data, reason in (
        (b"", "an empty file"),
        (b"not an image", "begins with b'not an i'"),
        (b"\xff\xd8\xff", "broken or truncated.*no JPEG segment"),
        (encode(picture(), "GIF"), "a GIF is not supported; save it as PNG"),
        (encode(picture(), "JPEG2000"), "JPEG 2000 is not supported"),
        (b"PK\3\4" + bytes(20), "archive"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"<svg></svg>", "SVG"),
        (encode(picture(), "WEBP", **frames), r"2 frames \(animated\); save one"),
        (encode(picture(), "PNG", **frames), r"2 frames \(animated\); save one"),
        (encode(picture(), "TIFF", **frames), "2 pages; save one"),
        (png(noise(1), 8, 0, chunk(b"acTL", b"\0")), "0 frames"),
    ):
        refused(data, reason)


def test_the_suffixes_are_of_what_can_be_read():
    names = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    names |= {"tif": "TIFF", "tiff": "TIFF"}
    assert decoding.SUFFIXES == tuple(f".{name}" for name in (*names, "npy"))
    for name, kind in names.items():
        assert Image.registered_extensions()[f".{name}"] == kind
        assert decode(encode(picture(), kind)).shape == (48, 70, 3)


def bombs(side: int) -> list[bytes]:
    """Small files that claim to be large."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    deep = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    png_files = [
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", h) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        for h in (head, deep)
    ]
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    large = bytearray(tiff(picture(), photometric="rgb", metadata=None, compression="zlib"))
    for tag in (256, 257):
        entry = large.index(struct.pack("<HHI", tag, 4, 1))
        large[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, side)
    tile = bytearray(tiff(picture(), photometric="rgb", metadata=None, tile=(16, 16)))
    for tag in (322, 323):
        entry = tile.index(struct.pack("<HHI", tag, 4, 1))
        tile[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, side)
    array = npy(picture()).replace(b"(48, 70, 3), }", f"({side}, {side}), }}".encode()[:14])
    return [*png_files, bytes(jpeg), bytes(bmp), bytes(large), bytes(tile), array]


def test_bombs_are_refused_without_memory():
    for data in FILES.values():
        decode(data)  # imports what it needs
    tracemalloc.start()
    try:
        for data in bombs(99968):
            refused(data, "more than 134217728|broken or truncated")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_limits_come_before_decoding(monkeypatch):
    monkeypatch.setattr(refusals, "MAX_PIXELS", 200)
    for kind, data in FILES.items():
        if kind != "bmp runs":
            refused(data, r"\d+x\d+ pixels; more than 200: cut it into parts")
    monkeypatch.setattr(refusals, "MAX_PIXELS", 2**27)
    monkeypatch.setattr(refusals, "MAX_VALUES", 500)
    refused(npy(noise(3)), "22x13 pixels of 3 channels; more than 500 values")


def test_large_images_raise_no_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # Pillow warns above, fails at the double
    for channels in (1, 3):
        check(encode(picture(36, 48, channels), "PNG"), picture(36, 48, channels))
        check(encode(picture(36, 48, channels), "BMP"), picture(36, 48, channels))
    assert decode(encode(picture(36, 48), "WEBP")).shape == (36, 48, 3)


def test_empty_images_are_refused():
    refused(png(np.zeros((1, 0, 3)), 8, 2), "0x1 pixels.*empty")
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 2] = b"\0\0"
    refused(bytes(jpeg), "70x0 pixels.*empty")


# Mutated files


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files_decode_or_are_refused(kind, capfd):
    random = np.random.default_rng(sum(kind.encode()))
    threads, outcomes = threading.active_count(), []
    for i in range(24):
        data = bytearray(FILES[kind])
        reach = len(data) if i % 2 else min(len(data), 220)  # headers are the more delicate
        for at in random.integers(0, reach, random.integers(1, 5)):
            data[at] = random.choice([0, 1, 255, random.integers(256), data[at] ^ 1])
        start = time.monotonic()
        for indexed in (False, True):
            try:
                image = decode(bytes(data), indexed)
                assert image.ndim == 3 and str(image.dtype) in ("uint8", "uint16", "float32")
                outcomes.append(True)
            except ValueError as error:
                assert str(error)
                outcomes.append(False)
        assert time.monotonic() - start < 5
    assert not all(outcomes)
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_several_threads_decode_at_once():
    kinds = list(FILES)
    expected = {kind: decode(FILES[kind]) for kind in kinds}
    wrong: list[object] = []

    def work(offset: int) -> None:
        for i in range(60):
            kind = kinds[(i + offset) % len(kinds)]
            if not np.array_equal(decode(FILES[kind]), expected[kind]):
                wrong.append(kind)
            if i % 7 == 0:
                with pytest.raises(ValueError):
                    decode(FILES["tiff"][:-9])

    workers = [threading.Thread(target=work, args=(7 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_what_tifffile_logs_elsewhere_is_left_alone(caplog):
    import logging

    decode(FILES["tiff"])
    logging.getLogger("tifffile").error("of someone else")
    assert "of someone else" in caplog.text


# Channels


def test_fitted_repeats_grey_and_leaves_what_fits():
    for dtype in ("uint8", "uint16", "float32"):
        grey = noise(1, dtype)
        np.testing.assert_array_equal(fitted(grey, 3, "refuse"), np.concatenate([grey] * 3, -1))
        for channels in (1, 2, 3, 4, 7):
            image = noise(channels, dtype)
            assert fitted(image, channels, "keep") is image


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("have,channels", [(2, 1), (4, 3), (2, 3)])
def test_fitted_lays_the_image_over_white_or_black(dtype, have, channels):
    image = noise(have, dtype, shape=(64, 65))
    image[0, :5, -1] = 0
    image[0, 5:9, -1] = top = np.iinfo(dtype).max
    colours, alpha = image[..., :-1].astype(float), image[..., -1:] / top
    for name, ground in (("white", top), ("black", 0)):
        expected = np.floor(colours * alpha + ground * (1 - alpha) + 0.5)
        got = fitted(image, channels, name)
        assert got.dtype == dtype and got.shape == (64, 65, channels)
        np.testing.assert_array_equal(got, np.broadcast_to(expected, got.shape))
        assert (got[0, :5] == ground).all()
        np.testing.assert_array_equal(got[0, 5:9, :1], image[0, 5:9, :1])
    drop = fitted(image, channels, "drop")
    np.testing.assert_array_equal(drop, np.broadcast_to(image[..., :-1], drop.shape))


@pytest.mark.parametrize("have,channels,alpha,reason", [
    (4, 3, "refuse", "4 channels, the last one alpha.*choose drop, white or black"),
    (2, 1, "keep", "2 channels, the last one alpha"),
    (3, 1, "drop", "3 channels where others have 1; save all images in one mode"),
    (3, 4, "drop", "3 channels where others have 4"),
    (1, 2, "keep", "1 channels where others have 2"),
    (4, 1, "white", "4 channels where others have 1"),
    (5, 3, "drop", "5 channels where others have 3"),
])  # fmt: skip
def test_fitted_refuses_what_would_be_guessed(have, channels, alpha, reason):
    with pytest.raises(ValueError, match=reason):
        fitted(noise(have), channels, alpha)


def test_fitted_cannot_lay_floating_numbers_over():
    image = noise(4, "float32")
    np.testing.assert_array_equal(fitted(image, 3, "drop"), image[..., :3])
    with pytest.raises(ValueError, match=r"alpha in float32.*'drop'"):
        fitted(image, 3, "white")


@pytest.mark.parametrize("tag", [258, 277])  # BitsPerSample, SamplesPerPixel
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_without_a_tag_that_has_a_default_is_broken(tag, dtype, compression):
    data = bytearray(tiff(noise(3, dtype), photometric="rgb", compression=compression))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[tag].offset
    data[at : at + 2] = (60000).to_bytes(2, "little")
    refused(bytes(data), "broken or truncated|values of type")


def test_a_tiff_of_grey_holds_as_many_bytes_as_its_pixels_take():
    data = bytearray(tiff(noise(1), photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        at, width = tags[258].offset, tags[256].valueoffset
    for change, value in ((at, 60000), (width, 12), (width, 11)):
        worse = bytearray(data)
        worse[change : change + 2] = value.to_bytes(2, "little")
        refused(bytes(worse), "bytes of pixels instead of")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_few_bytes_takes_no_memory_for_many_pixels(progressive):
    plain = encode(
        np.zeros((4000, 4000, 1), np.uint8), "JPEG", progressive=progressive, optimize=True
    )
    assert decode(plain).shape == (4000, 4000, 1)  # hardly smaller can they be
    data = bytearray(encode(picture(), "JPEG", progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 11000, 11000)
    refused(bytes(data), "bytes for 11000x11000 pixels")
