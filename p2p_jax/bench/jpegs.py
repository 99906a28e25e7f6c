"""Pictures to measure with where no data is at hand: JPEGs that cost what photos cost to decode."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from p2p_jax.bench.machine import cores

_PICTURES = 64  # different ones; others are these, shifted
_QUALITY = 90


@functools.cache
def picture(number: int, height: int = 256, width: int = 512) -> np.ndarray:
    """Noise with the spectrum of photos: each octave half as strong as the coarser one before."""
    from PIL import Image

    rng = np.random.default_rng(number)
    whole = np.zeros((height, width, 3), np.float32)
    octaves = range(1, height.bit_length())
    for octave in octaves:
        shape = 2**octave, 2 ** (octave + 1), 3
        coarse = (127.5 + 127.5 * rng.uniform(-1, 1, shape)).astype(np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        whole += (np.asarray(fine, np.float32) - 127.5) / 2 ** (octave / 2)
    return np.clip(127.5 + whole, 0, 255).astype(np.uint8)


def write_pairs(folder: Path, count: int) -> None:
    """Writes JPEGs 512x256 of quality 90, two halves each, to a new folder."""
    import simplejpeg

    folder.mkdir(parents=True)

    def write(number: int) -> None:
        image = np.roll(picture(number % _PICTURES), number // _PICTURES, 1)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), _QUALITY)
        (folder / f"{number:06d}.jpg").write_bytes(data)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))
