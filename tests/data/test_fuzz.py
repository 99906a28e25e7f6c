"""Mutated images, archives, manifests and palettes: each loads right, or is named in an error.

Everything goes through the public entries. The seeds are fixed, so a failure repeats. Each test
says how many cases it has at least; together they are more than 500.
"""

from __future__ import annotations

import csv
import dataclasses
import faulthandler
import gzip
import io
import json
import re
import struct
import sys
import tarfile
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from p2p_jax.config import base
from p2p_jax.data import SOURCES, DataError, DataOptions, read_palette
from p2p_jax.validate import validate

cv2 = pytest.importorskip("cv2")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

HANG = 120  # seconds after which a test is taken to hang: the process ends with all stacks
SLOW = 20.0  # seconds that opening one folder of 20 mutated files may take
SLOW_CASE = 5.0  # seconds that any other case may take
MEMORY = 1 << 28  # bytes that a test may take more at any time than before it
SOUND = 40  # images of each folder that are not mutated, so that there is always one to substitute
SIZE = (32, 48)  # of images, (height, width)


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) << 10


@pytest.fixture(autouse=True)
def bounded():
    """No test hangs, or takes more memory than it may."""
    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is that of now
        before = _memory("VmRSS")
    faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    if measured:
        assert _memory("VmHWM") - before < MEMORY


# --- mutations -----------------------------------------------------------------------------------

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with one to three things done to it, more often near its beginning."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        near = rng.random() < 0.4
        at = int(rng.integers(0, min(len(out), 128) if near else len(out)))
        span = int(rng.integers(1, 33))
        kind = rng.integers(0, 9)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            number = int(rng.choice(NUMBERS))
            out[at : at + 4] = number.to_bytes(4, str(rng.choice(["little", "big"])))
        elif kind == 3:
            del out[at : at + span]
        elif kind == 4:
            out[at:at] = rng.bytes(span)
        elif kind == 5:
            out[at:at] = out[at : at + span]
        elif kind == 6:
            out[at : at + span] = bytes(span)
        elif kind == 7:
            other = int(rng.integers(0, len(out)))
            out[at : at + span], out[other : other + span] = (
                out[other : other + span], out[at : at + span],
            )  # fmt: skip
        else:
            del out[max(1, int(rng.integers(0, len(out)))) :]
        if not out:
            break
    return bytes(out)


def resummed(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks mended, so that more than those is tried."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def rewrapped(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG of which the unpacked pixels, or the content of any chunk, is mutated."""
    at = data.index(rng.choice([b"IHDR", b"IDAT", b"IDAT"])) - 4
    size = int.from_bytes(data[at : at + 4], "big")
    name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
    if name == b"IDAT":
        body = zlib.compress(mutate(zlib.decompress(body), rng))
    else:
        body = mutate(body, rng)
    return data[:at] + chunk(name, body) + data[at + 12 + size :]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# --- images --------------------------------------------------------------------------------------


def picture(seed: int, dtype: str = "uint8") -> np.ndarray:
    """Smooth colours `[h, w, 3]` with some noise."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    noise = np.random.default_rng(seed).integers(0, 30, (*SIZE, 3))
    eight = (np.stack([7 * y + seed, 3 * x, 2 * (x + y)], -1) + noise) % 256
    if dtype == "uint8":
        return eight.astype(np.uint8)
    return (eight * 257).astype(np.uint16) if dtype == "uint16" else (eight / 7).astype(dtype)


def pillow(image: np.ndarray, kind: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).convert(mode).save(out, kind, **options)
    return out.getvalue()


def tiff(image: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, **{"photometric": "rgb"} | options)
    return out.getvalue()


def npy(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, image)
    return out.getvalue()


def png16(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


# Suffix and encoder by name; what lies in one folder must be of one type.
FORMATS = {
    "uint8": {
        "baseline.jpg": lambda i: pillow(i, "JPEG", quality=80),
        "progressive.jpeg": lambda i: pillow(i, "JPEG", progressive=True, subsampling=0),
        "grey.jpg": lambda i: pillow(i, "JPEG", "L"),
        "rgb.png": lambda i: pillow(i, "PNG"),
        "grey.png": lambda i: pillow(i, "PNG", "L"),
        "levels.png": lambda i: pillow(i, "PNG", "1"),
        "palette.png": lambda i: pillow(i, "PNG", "P"),
        "lossy.webp": lambda i: pillow(i, "WEBP", quality=80),
        "lossless.webp": lambda i: pillow(i, "WEBP", lossless=True),
        "rgb.bmp": lambda i: pillow(i, "BMP"),
        "palette.bmp": lambda i: pillow(i, "BMP", "P"),
        "plain.tif": lambda i: tiff(i),
        "lzw.tiff": lambda i: tiff(i, compression="lzw", predictor=True),
        "deflate.tif": lambda i: tiff(i, compression="zlib", rowsperstrip=9),
        "tiled.tiff": lambda i: tiff(i, tile=(16, 16)),
        "planar.tiff": lambda i: tiff(np.moveaxis(i, -1, 0).copy(), planarconfig="separate"),
        "big.tif": lambda i: tiff(i, bigtiff=True, byteorder=">"),
        "array.npy": npy,
    },
    "uint16": {
        "deep.png": png16,
        "deep.tif": lambda i: tiff(i),
        "packed.tiff": lambda i: tiff(i, compression="zlib", predictor=True),
        "deep.npy": lambda i: npy(i.astype(">u2")),
    },
    "float32": {
        "float.tif": lambda i: tiff(i),
        "double.npy": lambda i: npy(i.astype(np.float64)),
        "float.npy": npy,
    },
}


def readings(data: bytes, suffix: str) -> list[np.ndarray]:
    """What other libraries make of an image, as `[h, w, 3]`; nothing where none can read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(_readings(data, suffix))


def _readings(data: bytes, suffix: str) -> Iterator[np.ndarray]:
    found = []
    if suffix == "npy":
        try:
            with np.errstate(over="ignore"):
                array = np.load(io.BytesIO(data))
                found.append(array.astype(np.float32) if array.dtype.kind == "f" else array)
        except Exception:
            return
    else:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode in ("1", "L", "P", "RGB"):
                    found.append(np.array(ImageOps.exif_transpose(image).convert("RGB")))
        except Exception:
            pass
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            found.append(image if image is None or image.ndim == 2 else image[..., ::-1])
        except cv2.error:
            pass
    for image in found:
        if image is not None and image.ndim == 2:
            image = image[..., None]
        if image is not None and image.ndim == 3:
            yield np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def mixed(name: str) -> str:
    """The name with something before it that scatters broken and sound files among each other."""
    return f"{zlib.crc32(name.encode()) % 10**6:06d}{name}"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def named(text: str, names) -> set[str]:
    """The names of files that a message holds."""
    return {name for name in names if name in text}


def sift(options: DataOptions, files: dict[str, Path]) -> tuple[set[str], dict[str, np.ndarray]]:
    """Names of those of the files that errors name, and the images that the others are.

    Where the set as a whole is refused, the files that the error names are removed, and so on: for
    each problem it must name such a file.
    """
    out: set[str] = set()
    lines: list[str] = []
    for _ in range(len(files) + 1):
        try:
            lines.clear()
            loose = dataclasses.replace(options, on_error="substitute")
            splits = SOURCES[options.source].open(loose, lines.append)
            break
        except DataError as error:
            for problem in error.problems:
                assert named(problem, files), problem
            here = named(str(error), files)
            assert here.isdisjoint(out)
            for name in here:
                files[name].unlink()
                for other in files[name].parents[2].glob(f"B/*/{name.partition('.')[0]}.*"):
                    other.unlink()
            out |= here
    train = splits.train
    pairs = {name: train[i] for i, name in enumerate(train.names)}
    broken = {train.names[i] for i in train.bad}
    by_stem = {name.partition(".")[0]: name for name in files}
    for stem in broken:
        line = next(line for line in lines if line.startswith("substituted: ") and stem in line)
        assert "[" in line  # its index
        stand_in = pairs.pop(stem)
        assert any(np.array_equal(stand_in.source, pair.source) for pair in pairs.values())
    strict(options, {by_stem[stem] for stem in broken}, files)
    halves = options.source == "folder"
    images = {s: np.concatenate(p, 1) if halves else p.source for s, p in pairs.items()}
    return out | {by_stem[stem] for stem in broken}, images


def strict(options: DataOptions, broken: set[str], files: dict[str, Path]) -> None:
    """With on_error=fail all broken files are named, each in a sentence of its own, by path."""
    if not broken:
        SOURCES[options.source].open(options, lambda line: None)
        return
    with pytest.raises(DataError) as caught:
        SOURCES[options.source].open(options, lambda line: None)
    assert len(caught.value.problems) == len(broken)
    for name in broken:
        (problem,) = (p for p in caught.value.problems if str(files[name]) in p)
        assert "; " in problem or "(" in problem  # a reason, and mostly a remedy


def cases(dtype: str, seed: int, copies: int) -> list[tuple[str, bytes, bytes]]:
    """(name, original, mutated) of images of each format of a type, no more than 20 at once."""
    made = []
    for i in range(copies):
        for kind, (name, encode) in enumerate(FORMATS[dtype].items()):
            rng = np.random.default_rng([seed, i, kind])
            data = encode(picture(kind, dtype))
            worse = mutate(data, rng)
            if name.endswith("png") and rng.random() < 0.7:
                worse = rewrapped(data, rng) if rng.random() < 0.5 else resummed(worse)
            made.append((f"{mixed(f'case{i}-{kind}-')}.{name.rpartition('.')[2]}", data, worse))
    return made


def settle(made, tmp_path, make, read=readings) -> dict[str, int]:
    """Tries all cases, some at a time; counts them, and those named, the same and changed."""
    counts = dict(cases=0, named=0, same=0, changed=0)
    for start in range(0, len(made), 20):
        root, some = tmp_path / f"{start}", made[start : start + 20]
        options, files = make(root, some)
        prepared = str(tmp_path / "prepared")
        options = dataclasses.replace(options, path=str(root), prepared_dir=prepared)
        begin = time.monotonic()
        out, loaded = sift(options, files)
        assert time.monotonic() - begin < SLOW
        for name, original, worse in some:
            stem, _, suffix = name.partition(".")
            counts["cases"] += 1
            assert (name in out) != (stem in loaded), name
            if name in out:
                counts["named"] += 1
                continue
            same = any(np.array_equal(loaded[stem], i) for i in read(original, suffix))
            told = any(np.array_equal(loaded[stem], i) for i in read(worse, suffix))
            assert same or told, (name, "loads as neither before nor as others read it")
            counts["same" if same else "changed"] += 1
        assert {mixed(f"sound{i}") for i in range(SOUND)} <= loaded.keys()
    print(counts)
    return counts


def ranges(dtype: str):
    wide = (-3.5e38, 3.5e38)
    return (wide, wide) if dtype == "float32" else ((0.0, 0.0), (0.0, 0.0))


def halves(dtype: str):
    def make(root: Path, some):
        files = {name: write(root / "train" / name, worse) for name, _, worse in some}
        for i in range(SOUND):
            write(root / f"train/{mixed(f'sound{i}')}.npy", npy(picture(90 + i, dtype)))
        write(root / "val/v.npy", npy(picture(99, dtype)))
        return DataOptions("folder", ranges=ranges(dtype)), files

    return make


def trees(dtype: str, sound=None, **options):
    """Mutated images are A's; B's are sound ones."""

    def make(root: Path, some):
        files = {name: write(root / "A/train" / name, worse) for name, _, worse in some}
        for name in files:
            write(root / f"B/train/{name.partition('.')[0]}.npy", npy(picture(1, dtype)))
        for side in "AB":
            for i in range(SOUND):
                image = sound if side == "A" and sound is not None else picture(90 + i, dtype)
                write(root / side / f"train/{mixed(f'sound{i}')}.npy", npy(image))
            write(root / side / "val/v.npy", npy(image))
        given = {"source": "paired_folders", "ranges": ranges(dtype)} | options
        return DataOptions(**given), files

    return make


@pytest.mark.parametrize("dtype,copies", [("uint8", 10), ("uint16", 10), ("float32", 7)])
def test_images_side_by_side(tmp_path, dtype, copies):
    counts = settle(cases(dtype, 1, copies), tmp_path, halves(dtype))
    assert counts["cases"] == copies * len(FORMATS[dtype])
    assert counts["named"] > counts["cases"] / 4  # else the mutations are too tame


@pytest.mark.parametrize("dtype,copies", [("uint8", 7), ("uint16", 7), ("float32", 7)])
def test_images_in_two_trees(tmp_path, dtype, copies):
    counts = settle(cases(dtype, 2, copies), tmp_path, trees(dtype))
    assert counts["cases"] == copies * len(FORMATS[dtype])
    assert counts["named"] > counts["cases"] / 4


# --- palettes ------------------------------------------------------------------------------------

PALETTE = ((0, 0, 170), (255, 85, 0), (0, 170, 255), (255, 255, 255))


def label_png(rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A label map with a palette, and the same with that, its transparency or both mutated."""
    indices = np.kron(rng.integers(0, 4, (8, 12)), np.ones((4, 4))).astype(np.uint8)
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(sum(PALETTE, ()))
    out = io.BytesIO()
    image.save(out, "PNG")
    data = out.getvalue()
    at = data.index(b"PLTE") - 4
    before, plte, after = data[:at], data[at + 8 : at + 20], data[at + 24 :]
    worse, clear = plte, b""
    kind = rng.integers(0, 6)
    if kind < 3:
        worse = mutate(plte, rng)[: 3 * int(rng.integers(1, 5))] if kind else mutate(plte, rng)
    elif kind == 3:  # one colour in the place of another, and a colour more
        worse = plte[:3] * int(rng.integers(1, 3)) + plte[3:]
    if kind >= 4 or rng.random() < 0.2:
        clear = chunk(b"tRNS", rng.bytes(int(rng.integers(0, 7))))
    return data, before + chunk(b"PLTE", worse) + clear + after


def class_indices(data: bytes, suffix: str) -> list[np.ndarray]:
    """Class numbers by Pillow, in which colours stand for the class of the palette that equals."""
    del suffix
    try:
        with Image.open(io.BytesIO(data)) as image:
            colours = np.asarray(image.convert("RGB"))
    except Exception:
        return []
    equal = (colours[:, :, None] == np.array(PALETTE)).all(-1)
    return [equal.argmax(-1)[..., None]] if equal.any(-1).all() else []


def stored_indices(data: bytes, suffix: str) -> list[np.ndarray]:
    del suffix
    try:
        with Image.open(io.BytesIO(data)) as image:
            return [np.asarray(image)[..., None]]
    except Exception:
        return []


@pytest.mark.parametrize("seed,read,options", [
    (3, class_indices, {"palette": PALETTE}),
    (4, stored_indices, {"classes": 4}),
])  # fmt: skip
def test_palettes_of_images(tmp_path, seed, read, options):
    made = []
    for i in range(40):
        data, worse = label_png(np.random.default_rng([seed, i]))
        made.append((f"{mixed(f'label{i}-')}.png", data, worse))
    colours = "palette" in options
    sound = np.full((*SIZE, 3), PALETTE[1], np.uint8) if colours else np.ones(SIZE, np.uint8)
    make = trees("uint8", sound, source="labels", labels="source", **options)
    counts = settle(made, tmp_path, make, read)
    assert counts["cases"] == 40
    assert counts["same"] or counts["changed"]
    assert counts["named"] or not colours  # class numbers need no palette


def colour_texts(count: int) -> list[str]:
    texts = ["", ",", "#", "\0", "#0000aa\0", "\x0b#0000aa", "#0000aa;#ff0000", "\uff10" * 6]
    for i in range(count - len(texts)):
        rng = np.random.default_rng([5, i])
        colours = [f"#{n:06x}" for n in rng.integers(0, 1 << 24, int(rng.integers(1, 9)))]
        text = str(rng.choice([" ", ",", ", ", "\n"])).join(colours)
        if i % 4:
            text = mutate(text.encode(), rng).decode("latin-1")
        texts.append(text)
    return texts


def test_palettes_of_configs(tmp_path):
    write(tmp_path / "A/train/1.npy", npy(picture(0)))
    write(tmp_path / "B/train/1.npy", npy(picture(0)))
    seen = {True: 0, False: 0}
    for text in colour_texts(80):
        begin = time.monotonic()
        entries = text.replace(",", " ").split()
        sound = [re.fullmatch("#?([0-9a-fA-F]{6})", entry) for entry in entries]
        wrong = [entry for entry, match in zip(entries, sound, strict=True) if not match]
        numbers = [match[1].lower() for match in sound if match]
        fine = not wrong and len(set(numbers)) == len(numbers)
        seen[fine] += 1
        config = base()
        config.data.source, config.data.path, config.data.palette = "labels", str(tmp_path), text
        problems = [p for p in validate(config) if p.startswith("data.palette")]
        if fine:
            expected = tuple(tuple(bytes.fromhex(number)) for number in numbers)
            assert read_palette(text) == expected
            assert not problems or len(entries) < 2
        else:
            with pytest.raises(ValueError) as caught:
                read_palette(text)
            assert all(repr(entry) in str(caught.value) for entry in wrong)
            assert any(all(repr(entry) in problem for entry in wrong) for problem in problems)
        assert time.monotonic() - begin < SLOW_CASE
    assert min(seen.values()) >= 15


# --- archives ------------------------------------------------------------------------------------


def tar_of(images: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header_mutated(tar: bytes, rng: np.random.Generator) -> bytes:
    """One of the headers mutated, with its checksum mended."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        at = int(rng.choice([info.offset for info in opened]))
    header = bytearray(mutate(tar[at : at + 512], rng)[:512].ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + 512 :]


def archive(kind: int, rng: np.random.Generator) -> bytes:
    images = {
        f"facades/{split}/{i}.png": pillow(picture(i), "PNG")
        for split, numbers in (("train", (0, 1, 2)), ("val", (3,)))
        for i in numbers
    }
    if kind == 0:
        return mutate(gzip.compress(tar_of(images), mtime=0), rng)
    if kind == 1:
        return gzip.compress(mutate(tar_of(images), rng), mtime=0)
    if kind == 2:
        return gzip.compress(header_mutated(tar_of(images), rng), mtime=0)
    name = str(rng.choice(list(images)))
    images[name] = mutate(images[name], rng)
    return gzip.compress(tar_of(images), mtime=0)


def test_archives(tmp_path):
    originals = [picture(i) for i in range(4)]
    counts = dict(cases=0, named=0, loaded=0, dropped=0)
    for i in range(100):
        path = write(
            tmp_path / f"{i}/facades.tar.gz", archive(i % 4, np.random.default_rng([6, i]))
        )
        options = DataOptions(
            "tfds", str(path), "pix2pix/facades", prepared_dir=str(tmp_path / "p")
        )
        counts["cases"] += 1
        begin = time.monotonic()
        lines: list[str] = []
        try:
            splits = SOURCES["tfds"].open(options, lines.append)
        except DataError as error:
            inside = [p for p in error.problems if re.match(r"(train|val)\[\d\] \S*\d\.png: ", p)]
            assert inside or all(str(path) in problem for problem in error.problems), error
            counts["named"] += 1
            continue
        finally:
            assert time.monotonic() - begin < SLOW_CASE
        pairs = [s[k] for s in (splits.train, splits.eval) for k in range(len(s))]
        counts["loaded"] += 1
        for pair in pairs:
            image = np.concatenate(pair, 1)
            assert any(np.array_equal(image, original) for original in originals)
        if len(pairs) < 4:
            counts["dropped"] += 1
            assert any("not used" in line for line in (*lines, *splits.notes)), i
    print(counts)
    assert counts["cases"] == 100 and min(counts["named"], counts["loaded"]) > 5


# --- manifests -----------------------------------------------------------------------------------

ROWS = [
    ("a/0.npy", "b/0.npy", "train", "zero"),
    ("a/1.npy", "b/1.npy", "train", ""),
    ("a/2 spaced, and ü.npy", "b/2.npy", "train", "deep/two"),
    ("a/3.npy", "b/3.npy", "train", 'three "quoted"'),
    ("a/4.npy", "b/4.npy", "val", ""),
    ("a/5.npy", "b/5.npy", "val", "five"),
]


def manifest_text(kind: str, rows=ROWS) -> str:
    keys = ("a", "b", "split", "name")
    if kind == "jsonl":
        lines = (json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) for row in rows)
        return "\n".join(lines) + "\n"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([keys, *rows])
    return out.getvalue()


def crafted(kind: str) -> list[bytes]:
    """Manifests made to be difficult: the second line of pairs, or all."""
    text = manifest_text(kind)
    lines = text.split("\n")
    at = 1 if kind == "jsonl" else 2
    line = lines[at]
    worse = [
        line,
        line.replace("a/1", "a/0"),
        "\0",
        "\0" * 5000,
        '"',
        '""',
        '"' * 99,
        "'",
        "=1+1",
        "9" * 5000,
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 50_000,
        "x" * 300_000,
        "\x0b",
        "\x1c",
        "null",
        "true",
        "-1e999",
        "NaN",
        "[]",
        "{}",
        '""',
        "\ufeff" + line,
        line + line,
        line + ",",
        "," + line,
        ",,,",
        ",,,,,,,",
        line.upper(),
        line.replace("1", "\u0661"),
    ]
    if kind == "jsonl":
        given = {"a": "a/1.npy", "b": "b/1.npy"}
        odd = [{"name": n} for n in ("../x", "/x", "\0", "zero", 7, [1], {"x": 1}, "x" * 5000, ".")]
        odd += [{"split": s} for s in (3, [], ["train"], "\0", "../train", "", "x" * 5000)]
        odd += [{"a": v} for v in (3, 1e400, None, [], ["a/1.npy"], {"a": 1}, "", "a", "a/\0.npy")]
        odd += [{"a": "x" * 5000 + ".npy"}, {"A": "a/2.npy"}, {"source": "a/0.npy"}]
        # 'ftp://' is of no kind of path that there is; files.at must say so by an OSError.
        odd += [{"a": "a/../a/1.npy"}, {"a": "ftp://nowhere/1.npy"}, {"a": "~nobody/1.npy"}]
        worse += [json.dumps(given | change) for change in odd]
        worse += [json.dumps(given)[:-1] + tail for tail in (', "n": ' + "9" * 5000 + "}", ",}")]
        worse += [json.dumps(given | {k: "\ud800"}) for k in ("name", "split", "a")]
        worse += [json.dumps(given)[:-1] + ', "a": "a/2.npy"}']
    made = [[*lines[:at], text, *lines[at + 1 :]] for text in worse]
    made += [
        [],
        [""],
        lines[:1],
        lines[1:],
        lines[:at] + lines[at:] * 2,
        lines[::-1],
        ["\0", *lines],
    ]
    made.append(["a,b,split,name,a", *lines[1:]] if kind == "csv" else ["[", *lines, "]"])
    made.append(["a,b,split,x", *lines[1:]] if kind == "csv" else [" ".join(lines)])
    return ["\n".join(some).encode("utf-8", "surrogatepass") for some in made] + [
        text.encode("utf-16"), text.encode("latin-1"), text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(), text.encode() + b"\xff\xfe", b"\x1f\x8b" + text.encode(),
    ]  # fmt: skip


def rows_of(kind: str, text: str) -> list[dict]:
    """The rows of a manifest in which nothing is wrong, plainly read."""
    if kind == "jsonl":
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        head, *lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
        rows = [dict(zip(head, line, strict=True)) for line in lines]
    found = []
    for row in rows:
        row = {key.strip().lower(): value for key, value in row.items()}
        a = next(row[k] for k in ("a", "source", "input") if row.get(k))
        b = next(row[k] for k in ("b", "target", "output") if row.get(k))
        found.append(
            {"a": a.strip(), "b": b.strip(), "split": (row.get("split") or "train").strip()}
        )
    return found


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("manifests")
    for i, (a, b, *_) in enumerate(ROWS):
        write(root / a, npy(np.full((*SIZE, 3), i, np.uint8)))
        write(root / b, npy(np.full((*SIZE, 3), 100 + i, np.uint8)))
    return root


def look(path: Path, kind: str, data: bytes) -> str:
    """Opens one manifest: 'loaded' with all its pairs, or 'named' by line, else 'whole'."""
    options = DataOptions("manifest", str(path), prepared_dir=str(path.parent / "prepared"))
    try:
        splits = SOURCES["manifest"].open(options, lambda line: None)
    except DataError as error:
        where = re.compile(re.escape(str(path)) + r", line (\d+): .+", re.DOTALL)
        found = [where.match(problem) for problem in error.problems]
        more = re.fullmatch(r"and \d+ more", error.problems[-1])
        if any(found):
            assert all(found[: len(found) - bool(more)]), error.problems
            originals = set(manifest_text(kind).split("\n"))
            lines = data.decode("utf-8-sig").split("\n")
            for match in found[: len(found) - bool(more)]:
                number = int(match[1])
                assert 1 <= number <= data.count(b"\n") + data.count(b"\r") + 1
                if kind == "jsonl" and lines[number - 1] in originals:  # a sound line: named twice
                    assert "already, of line" in match[0]
            return "named"
        assert all(re.match(r"(data|eval)\.\w+: ", problem) for problem in error.problems)
        return "whole"
    rows = rows_of(kind, data.decode("utf-8-sig"))
    expected = []
    for row in rows:
        if row["split"] in ("train", "val"):
            files = (path.parent / row[side] for side in "ab")
            expected.append(tuple(int(np.load(file)[0, 0, 0]) for file in files))
    pairs = [s[i] for s in (splits.train, splits.eval) for i in range(len(s))]
    assert sorted((int(p.source[0, 0, 0]), int(p.target[0, 0, 0])) for p in pairs) == sorted(
        expected
    )
    return "loaded"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifests(pairs_folder, kind):
    made = crafted(kind)
    text = manifest_text(kind).encode()
    for i in range(80):
        made.append(mutate(text, np.random.default_rng([7, i])))
    counts: dict[str, int] = {}
    for i, data in enumerate(made):
        path = write(pairs_folder / f"{i}.{kind}", data)
        begin = time.monotonic()
        became = look(path, kind, data)
        assert time.monotonic() - begin < SLOW_CASE, data[:200]
        counts[became] = counts.get(became, 0) + 1
    print(len(made), counts)
    assert len(made) >= 120 and counts["named"] > 60 and counts["loaded"] > 5
