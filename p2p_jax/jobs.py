"""What `predict` has to do: inputs read and judged, translated in batches or tiles, and written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from p2p_jax.console import Console
from p2p_jax.data import DataError
from p2p_jax.data.files import MAX_FILE, AnyPath, read
from p2p_jax.inputs import WRITTEN, Found, Item, file_suffix, outputs
from p2p_jax.progress import Progress
from p2p_jax.results import write
from p2p_jax.tiles import Size
from p2p_jax.translator import Translator

_HELD = 2**28  # bytes of decoded inputs that are kept from the check on
_SHOWN = 5


class Job(NamedTuple):
    """What a command line asks for, as far as it can be told without the network."""

    workdir: AnyPath
    found: Found
    output: str
    options: dict[str, Any]
    size: Size | None
    tile: Size | None
    overlap: int | None
    suffix: str
    overwrite: bool


class Checked(NamedTuple):
    """An input that can be used: its image, where it is kept, its size, and where it goes."""

    item: Item
    size: Size
    image: np.ndarray | None
    path: AnyPath | None


# --- what is there -------------------------------------------------------------------------------


def checked(job: Job, translator: Translator, console: Console) -> list[Checked]:
    """All inputs, read once.

    Raises:
      DataError: all that is wrong with them, with where they go, and with tiles.
    """
    form, problems = translator.stored.target, []
    suffix = suffix_of(job, translator)
    if suffix == ".png" and form.suffix != ".png":
        problems.append(
            f"--suffix: a .png does not hold {form.channels} channels of {form.dtype}; "
            f"{form.suffix} does"
        )
    if job.tile:
        problems += translator.canvases.problems(job.tile, job.overlap)
    paths, wrong = outputs(job.found.items, job.output, suffix, job.overwrite)
    problems += wrong
    kept, room, beyond = [], _HELD, []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for item, found in _ahead(pool, job.found.items, translator):
            try:
                image = found.result()
            except DataError as error:
                problems += error.problems
                continue
            outside = translator.stored.beyond(image)
            beyond += [f"{item}: {outside}"] if outside else []
            room -= image.nbytes
            keeps = room >= 0 or item.file is None
            kept.append((item, (image.shape[0], image.shape[1]), image if keeps else None))
    if problems:
        raise DataError(problems)
    more = len(beyond) - _SHOWN
    for text in [*beyond[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]:
        console.warn(text)
    return [
        Checked(item, size, image, path)
        for (item, size, image), path in zip(kept, paths, strict=True)
    ]


def suffix_of(job: Job, translator: Translator) -> str:
    """Of results: as asked for, as `--output` is named, or what holds them."""
    named = file_suffix(job.output)
    return job.suffix or (named if named in WRITTEN else "") or translator.stored.target.suffix


def _ahead(
    pool: ThreadPoolExecutor, items: Sequence[Item], translator: Translator
) -> Iterator[tuple[Item, Future[np.ndarray]]]:
    """Decodes in threads, some images ahead."""
    ahead = 2 * (os.cpu_count() or 1)
    begun = [pool.submit(_read, item, translator) for item in items[:ahead]]
    for i, item in enumerate(items):
        yield item, begun.pop(0)
        if i + ahead < len(items):
            begun.append(pool.submit(_read, items[i + ahead], translator))


def _read(item: Item, translator: Translator) -> np.ndarray:
    """An input as the translator takes it.

    Raises:
      DataError: it cannot be read or used.
    """
    try:
        data = read(item.file) if item.file is not None else sys.stdin.buffer.read(MAX_FILE)
        return translator.stored.read(data)
    except (OSError, ValueError, ImportError) as error:
        raise DataError([f"{item}: {error}"]) from error


# --- work ----------------------------------------------------------------------------------------


def is_tiled(job: Job, translator: Translator, one: Checked) -> bool:
    """Whether an input is larger than the tiles that are wanted."""
    canvas = translator.canvases.of(one.size)
    return job.tile is not None and (canvas[0] > job.tile[0] or canvas[1] > job.tile[1])


def image_of(one: Checked, translator: Translator) -> np.ndarray:
    """The image of an input.

    Raises:
      DataError: it was changed since it was checked.
    """
    image = _read(one.item, translator) if one.image is None else one.image
    if image.shape[:2] != one.size:
        raise DataError([f"{one.item}: was changed meanwhile; run again"])
    return image


def _batches(job: Job, translator: Translator, work: list[Checked]) -> list[list[Checked]]:
    """Images of one canvas together; those that are translated in tiles alone."""
    groups: dict[Any, list[Checked]] = {}
    for i, one in enumerate(work):
        canvas = translator.canvases.of(job.size or one.size)
        groups.setdefault(i if is_tiled(job, translator, one) else canvas, []).append(one)
    count = job.options["batch_size"]
    return [group[i : i + count] for group in groups.values() for i in range(0, len(group), count)]


def translate(
    job: Job, translator: Translator, work: list[Checked], console: Console, out: Any
) -> Progress:
    """Translates and writes, decoding a batch ahead.

    Args:
      job: what to do.
      translator: to do it with.
      work: the inputs, as `checked`.
      console: is told how far it is.
      out: standard output.

    Raises:
      DataError: an input was changed since it was checked.
      Failure: the device's memory does not suffice.
    """
    batches, suffix = _batches(job, translator, work), suffix_of(job, translator)
    palette = translator.target_palette
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        progress = Progress(console, len(work), sum(_parts(job, translator, one) for one in work))
        ahead: list[list[Future[np.ndarray]]] = []
        writing: list[Future[None]] = []
        for i, batch in enumerate(batches):
            for later in batches[i + len(ahead) : i + 2]:
                ahead.append([pool.submit(image_of, one, translator) for one in later])
            with progress.waiting():
                images = [found.result() for found in ahead.pop(0)]
            if is_tiled(job, translator, batch[0]):
                assert job.tile is not None
                tick = progress.tick
                made = [translator.tiled(images[0], job.tile, job.overlap, tick=tick)]
            else:
                made = translator(images, size=job.size)
                progress.tick(len(batch))
            for one, image in zip(batch, made, strict=True):
                writing.append(pool.submit(write, one.path, suffix, image, palette, out))
            while len(writing) > 2 * len(batch):
                writing.pop(0).result()
            progress.images += len(batch)
        for written in writing:
            written.result()
    return progress


def _parts(job: Job, translator: Translator, one: Checked) -> int:
    if not is_tiled(job, translator, one):
        return 1
    assert job.tile is not None
    return len(translator.canvases.plan(one.size, job.tile, job.overlap).places)
