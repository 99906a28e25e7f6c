"""Small data sets for the tests, and what their pixels must be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from p2p_jax.data import DataOptions


def options(source: str, path, prepared, **changes) -> DataOptions:
    return DataOptions(source, path=str(path), prepared_dir=str(prepared), **changes)


def noise(seed: int, height: int = 8, width: int = 16, channels: int = 3, dtype=np.uint8):
    """[h, w, c] of values that tell the seed, places and channels apart."""
    drawn = np.random.default_rng(seed)
    if dtype == np.float32:
        return drawn.random((height, width, channels), np.float32)
    return drawn.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def save(path: Path, image: np.ndarray, **how) -> np.ndarray:
    """Writes `[h, w, c]` without loss (but for JPEG), by its suffix; gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, image)
    elif image.dtype == np.uint16 or image.dtype.kind == "f":
        import tifffile

        tifffile.imwrite(path, image)
    else:
        plain = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(plain).save(path, **how)
    return image


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
    return buffer.getvalue()


def halves(root: Path, train: int = 6, val: int = 2, **shape) -> dict[str, list[np.ndarray]]:
    """A folder of images side by side, of several kinds; gives the whole images by split."""
    made: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            suffix = ("png", "BMP", "npy")[i % 3]
            made[split].append(noise(i + 100 * (split == "val"), **shape))
            save(root / split / f"p{i}.{suffix}", made[split][-1])
    return made


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(path)): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns)
        for p in sorted(path.rglob("*"))
    }


def sets(prepared: Path) -> list[Path]:
    return sorted(prepared.glob("pairs-*"))


def quiet(line: str) -> None:
    pass


def unused(*args, **named):
    raise AssertionError("must not be called")
