"""Small copies of pictures, for pages that show hundreds of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from p2p_jax import storage
from p2p_jax.storage import AnyPath, write_atomic

HEIGHT = 256  # pixels, at most; twice that across
SMALL = 12_000  # bytes: a picture of so few is its own small copy
_COLOURS = 64  # up to so many are a label map rather than a photo
_QUALITY = {False: 85, True: 93}
_READERS = 16  # threads for pictures in a bucket, which wait more than they work


class Copy(NamedTuple):
    """A small copy.

    Attributes:
      path: of the copy, or of the picture itself where none was needed.
      size: height and width of the picture itself, in pixels.
    """

    path: AnyPath
    size: tuple[int, int]


class Job(NamedTuple):
    """A picture to be copied.

    Attributes:
      picture: a PNG.
      stem: where the copy goes, without the suffix; that is .jpg for photos, .png for label maps.
    """

    picture: AnyPath
    stem: AnyPath


def make(
    jobs: Iterable[Job], height: int = HEIGHT, apart: bool = False, fine: bool = False
) -> list[Copy | None]:
    """Makes small copies, several at a time.

    A label map, that is a picture of a few colours, keeps exactly these.

    Args:
      jobs: the pictures.
      height: of a copy in pixels, at most; twice that across.
      apart: whether a picture of few bytes is copied as well, as it is.
      fine: photos at a higher quality.

    Returns:
      For each job its copy, or None where there is no picture.

    Raises:
      ValueError: a picture cannot be read, and which.
      OSError: a copy cannot be written.
    """
    jobs = list(jobs)
    remote = any(storage.is_remote(path) for job in jobs[:1] for path in job)
    threads = _READERS if remote else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: _copy(job, height, apart, fine), jobs))


def _copy(job: Job, height: int, apart: bool, fine: bool) -> Copy | None:
    data = storage.found(job.picture)
    if data is None:
        return None
    try:
        image = _shown(data)
    except Exception as error:  # plugins raise many kinds
        raise ValueError(f"{job.picture} cannot be read as a picture: {error}") from error
    size = (image.height, image.width)
    share = min(1.0, height / size[0], 2 * height / size[1])
    if share == 1 and len(data) <= SMALL:
        if not apart:
            return Copy(job.picture, size)
        suffix = ".png"
    else:
        data, suffix = _small(image, share, fine)
    path = job.stem.with_name(job.stem.name + suffix)  # a name may have dots of its own
    write_atomic(path, data, durable=False)
    return Copy(path, size)


def _shown(data: bytes) -> Any:
    """A PNG as an 8-bit picture of Pillow, grey or RGB.

    Its plugin is used by itself: `Image.open` warns of large images.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    image = PngImageFile(io.BytesIO(data))
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image.load()
    wanted = "L" if image.mode in ("1", "L", "LA") else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _small(image: Any, share: float, fine: bool) -> tuple[bytes, str]:
    """The copy's bytes and suffix."""
    from PIL.Image import Resampling

    few = image.getcolors(_COLOURS) is not None
    if share < 1:
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        image = image.resize(size, Resampling.NEAREST if few else Resampling.BOX)
    out = io.BytesIO()
    if few:
        image.save(out, "PNG", compress_level=9)
    else:
        image.save(out, "JPEG", quality=_QUALITY[fine], subsampling=0 if fine else 2)
    return out.getvalue(), ".png" if few else ".jpg"
