"""Pictures of any size and kind to what a translator takes, and what it makes to PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from p2p_jax.config import ConfigError
from p2p_jax.data.decoding import decode
from p2p_jax.data.frames import resized
from p2p_jax.data.labels import Labels, to_indices
from p2p_jax.images import Values
from p2p_jax.storage import AnyPath
from p2p_jax.translator import Translator

MAX_BYTES = 20 * 2**20  # of a file
MAX_PIXELS = 40_000_000  # of a picture, by its header
FITS = ("crop", "pad")
Size = tuple[int, int]
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class Refused(ValueError):
    """A request that is not served: its text, for people, says why and what would be.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# --- in ------------------------------------------------------------------------------------------


def opened(data: bytes) -> np.ndarray:
    """Decodes a picture to uint8 `[h, w, 3]`, transparency laid over white.

    How large it is is read from the header, before anything is decoded.

    Raises:
      Refused: it is no picture, is broken, too large, or of channels that are no colours.
    """
    height, width = _size(data)
    if height * width > MAX_PIXELS:
        raise Refused(
            413,
            f"This picture has {height * width / 1e6:.0f} megapixels ({width}x{height}); "
            f"up to {MAX_PIXELS // 10**6} can be taken. Make it smaller first.",
        )
    try:
        image = decode(data)
    except ValueError as error:
        raise Refused(422, f"This picture cannot be read: {error}.") from error
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8 or image.shape[-1] > 4:
        raise Refused(
            415,
            f"This picture has {image.shape[-1]} channels of {image.dtype}; here colours or grey "
            "of 8 or 16 bits can be drawn on. `python -m p2p_jax.predict` takes such files.",
        )
    if image.shape[-1] in (2, 4):
        colours, alpha = image[..., :-1].astype(np.uint32), image[..., -1:].astype(np.uint32)
        image = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def _size(data: bytes) -> Size:
    """(height, width) as the header says."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return image.height, image.width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(count[1]) / 1e6:,.0f}" if count else "too many"
        raise Refused(
            413,
            f"This picture has {size} megapixels; up to {MAX_PIXELS // 10**6} can be taken. "
            "Make it smaller first.",
        ) from error
    except Exception as error:  # plugins raise many kinds for broken files
        raise Refused(415, _unread(data)) from error


def _unread(data: bytes) -> str:
    """Why Pillow knows no such picture."""
    kinds = "PNG, JPEG, WebP, BMP and TIFF can"
    if not data:
        return f"This file is empty. {kinds} be read."
    if data.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM")):
        return "This picture is broken or cut off; save it anew."
    start = data[:64].decode("ascii", "replace").strip()
    if start.isprintable() or "\n" in start:
        return f"This is text, whatever its name says, and no picture. {kinds} be read."
    return f"This is no picture that can be read here. {kinds}; save it as one of them."


def fitted(image: np.ndarray, size: Size, way: str, method: str) -> np.ndarray:
    """A picture in another size, its aspect kept.

    Args:
      image: uint8 `[h, w, c]`.
      size: (height, width) wanted.
      way: 'crop', which cuts off what sticks out on both sides, or 'pad', which mirrors it there.
      method: to resize by, of `images.RESIZE`.

    Returns:
      uint8 `[*size, c]`.
    """
    (h, w), (height, width) = image.shape[:2], size
    if way == "crop":
        if w * height > h * width:
            part = h, max(1, round(h * width / height))
        else:
            part = max(1, round(w * height / width)), w
        top, left = (h - part[0]) // 2, (w - part[1]) // 2
        image = image[top : top + part[0], left : left + part[1]]
        return resized(np.ascontiguousarray(image), size, method)
    if w * height > h * width:
        scaled = max(1, round(h * width / w)), width
    else:
        scaled = height, max(1, round(w * height / h))
    image = resized(image, scaled, method)
    spare = [whole - part for whole, part in zip(size, scaled, strict=True)]
    edges = [(s // 2, s - s // 2) for s in spare]
    return np.pad(image, (*edges, (0, 0)), "symmetric")


def as_png(image: np.ndarray) -> bytes:
    """A uint8 picture `[h, w, c]` of 1 or 3 channels as PNG, quickly."""
    from PIL import Image

    out = io.BytesIO()
    shown = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(shown).save(out, "PNG", compress_level=1)
    return out.getvalue()


# --- translation ---------------------------------------------------------------------------------


# From a source as it is stored, and a number that dropout is drawn from, to what is made of it.
Make = Callable[[np.ndarray, int], np.ndarray]


class Easel:
    """A translator with pictures of 8 bits on both sides, of the one size it was trained at.

    Attributes:
      size: (height, width).
      grey: whether its sources have no colours.
      palette: of the classes of its sources; () where they are no label maps.
      noisy: whether results depend on the draw of dropout or noise.
    """

    def __init__(self, translator: Translator, make: Make) -> None:
        """Wraps a translator.

        Args:
          translator: knows sizes, and what sources and targets are stored as.
          make: translates by it.

        Raises:
          ConfigError: its sources are neither of colours nor of grey: none can be drawn.
        """
        self._stored, self._make = translator.stored, make
        self.size: Size = translator.crop_size
        self.palette, self.noisy = translator.palette, not translator.deterministic
        channels = self._stored.source.channels
        self.grey = channels == 1 and not self.palette
        if channels not in (1, 3):
            raise ConfigError(
                [
                    f"--workdir: its sources have {channels} channels, and only those of 1 or 3 "
                    "can be drawn; python -m p2p_jax.predict translates files of them"
                ]
            )
        self._values: Values = translator.inference.gan.values[1 if self._stored.swapped else 0]
        self._labels = Labels(self.palette, 0, 255)
        self._method = "nearest" if self.palette else "bilinear"

    def canvas(self, data: bytes, way: str = "crop") -> np.ndarray:
        """A picture as it is to be drawn on: uint8 `[*size, 3]`.

        Where sources are classes, each pixel gets the nearest class's colour.

        Args:
          data: of its file.
          way: of `FITS`.

        Raises:
          Refused: as `opened`.
        """
        image = fitted(opened(data), self.size, way, self._method)
        if self.palette:
            image = np.array(self.palette, np.uint8)[to_indices(image, self._labels)[..., 0]]
        return image

    def __call__(self, image: np.ndarray, noise: int = 0) -> np.ndarray:
        """Translates uint8 `[*size, 3]` to a picture, uint8 `[*size, 1 or 3]`.

        Args:
          image: what is drawn.
          noise: what dropout is drawn from, where it is on.
        """
        if self.palette:
            source = to_indices(image, self._labels)
        else:
            source = _scaled(image, self._values)
        return self._stored.shown(self._make(self._stored.fitted(source), noise))


def _scaled(image: np.ndarray, values: Values) -> np.ndarray:
    """Levels of 8 bits as sources are stored."""
    if (values.dtype, values.low, values.high) == ("uint8", 0, 255):
        return image
    levels = values.low + image.astype(np.float64) * ((values.high - values.low) / 255)
    if values.dtype == "float32":
        return levels.astype(np.float32)
    return np.clip(np.rint(levels), 0, np.iinfo(values.dtype).max).astype(values.dtype)


# --- examples ------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A picture of the evaluation split.

    Attributes:
      name: of the pair.
      source: uint8 `[h, w, 3]`, in the trained size.
      target: what it should become, likewise; None where that is not known.
    """

    name: str
    source: np.ndarray
    target: np.ndarray | None


def examples(workdir: AnyPath, count: int, easel: Easel) -> list[Example]:
    """Pictures of a run's newest evaluation, evenly chosen; those that cannot be read are not.

    Args:
      workdir: of the run; `eval/SPLIT/STEP/source/` holds them.
      count: how many at most.
      easel: makes them fit.
    """
    folder = _newest(workdir / "eval") if count else None
    if folder is None:
        return []
    files = sorted(path for path in (folder / "source").iterdir() if path.suffix == ".png")
    places = {round(i * (len(files) - 1) / max(1, count - 1)) for i in range(count)}
    found = []
    for path in (files[i] for i in sorted(places)):
        target = folder / "target" / path.name
        try:
            source = easel.canvas(path.read_bytes(), "crop")
            real = None
            if target.is_file():
                real = fitted(opened(target.read_bytes()), easel.size, "crop", "bilinear")
            found.append(Example(path.stem, source, real))
        except (OSError, Refused):
            continue
    return found


def _newest(folder: AnyPath) -> AnyPath | None:
    """Of all `SPLIT/STEP` and `SPLIT/STEP_2` with pictures that of the highest step."""
    found = []
    for split in folder.iterdir() if folder.is_dir() else ():
        for path in split.iterdir() if split.is_dir() else ():
            parts = re.fullmatch(r"(\d+)(?:_(\d+))?", path.name)
            if parts and (path / "source").is_dir() and any((path / "source").iterdir()):
                found.append((int(parts[1]), int(parts[2] or 1), split.name, path))
    return max(found, key=lambda entry: entry[:3])[-1] if found else None
