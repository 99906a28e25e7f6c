"""Writing what a translator made, in kind."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2p_jax import pictures
from p2p_jax.storage import AnyPath, write_atomic

Colour = tuple[int, int, int]
_INDEXED = 256  # classes that a palette holds


def write(
    path: AnyPath | None, suffix: str, image: np.ndarray, palette: Sequence[Colour], out: Any
) -> None:
    """Writes an image in one move.

    Args:
      path: the file; None: `out`.
      suffix: `.png`, `.tiff` or `.npy`, which a file has.
      image: `[h, w, c]`; with a palette, classes.
      palette: colours of classes. A PNG of up to 256 holds the classes as indices into it, so that
        it looks like the colours and reads as either.
      out: a stream of text over bytes.
    """
    if path is not None:
        _write(path, image, palette)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"image{suffix}"
        _write(file, image, palette)
        out.buffer.write(file.read_bytes())
        out.buffer.flush()


def _write(path: AnyPath, image: np.ndarray, palette: Sequence[Colour]) -> None:
    if path.suffix.lower() == ".png" and 0 < len(palette) <= _INDEXED:
        write_atomic(path, _indexed(image[..., 0], palette), durable=False)
    else:
        pictures.save(path, image)


def _indexed(classes: np.ndarray, palette: Sequence[Colour]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(classes))
    image.putpalette([level for colour in palette for level in colour])
    image.save(out, "PNG")
    return out.getvalue()
