"""Runs a generator over batches of images of one size, on one device or several."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh as meshes
from p2p_jax.inference import Inference
from p2p_jax.process import Failure
from p2p_jax.step import Sampled, make_sample

Identified = tuple[np.ndarray, int]  # an image as it is given, and what its draws come from


def identity(image: np.ndarray, place: tuple[int, ...] = ()) -> int:
    """A number of 32 bits for an image's shape, type and pixels, and a place in it."""
    head = zlib.crc32(repr((image.shape, str(image.dtype), place)).encode())
    return zlib.crc32(np.ascontiguousarray(image).data.cast("B"), head)


class _Given:
    """Stands for a generator that has made its images already: its parameters are these."""

    def apply(self, variables: Any, source: Any, keys: Any, running: bool) -> Any:
        """What was made."""
        del source, keys, running
        return variables["params"]


class Runner:
    """Batches of images through a generator; programs are compiled once a size.

    Images are sources as stored, or targets where the task makes sources of these (`swapped`).
    """

    def __init__(
        self,
        inference: Inference,
        grid: Mesh,
        swapped: bool,
        dropout: bool,
        seed: int,
        batch_size: int,
    ) -> None:
        self._inference, self._grid, self._swapped = inference, grid, swapped
        self._dropout, self._batch_size = dropout, batch_size
        self._double = inference.config.train.precision == "float64"
        self._key = meshes.put_key(grid, jax.random.key(seed, impl="threefry2x32"))

    def whole(self, images: Iterable[Identified]) -> Iterator[Sampled]:
        """Translates images of one size; gives them one by one, as `step.make_sample` does."""
        return self._rows(self._sample, images)

    def unfinished(self, images: Iterable[Identified]) -> Iterator[np.ndarray]:
        """What the network itself makes of images of one size, float `[h, w, c]` each."""
        for row in self._rows(self._bare, images):
            yield np.asarray(row.fake)

    def finish(self, image: np.ndarray, made: np.ndarray) -> Sampled:
        """Of an image, and what the network made of it, what `whole` would have given."""
        nobody = np.zeros(1, np.uint32)
        with jax.enable_x64(self._double), _memory(made):
            key = jax.random.key(0, impl="threefry2x32")
            made = made[None].astype(self._inference.gan.dtype)
            row = self._finisher(made, {}, key, *self._sides(image[None]), nobody)
            return jax.tree.map(lambda x: np.asarray(x[0]), row)

    @cached_property
    def _sample(self) -> Any:
        return make_sample(self._inference.gan, self._grid, self._inference.running, self._dropout)

    @cached_property
    def _bare(self) -> Any:
        task = self._inference.gan.task._replace(
            show=lambda source, image: image, show_source=lambda source: source
        )
        gan = dataclasses.replace(self._inference.gan, task=task)
        return make_sample(gan, self._grid, self._inference.running, self._dropout)

    @cached_property
    def _finisher(self) -> Any:
        given: Any = _Given()
        gan = dataclasses.replace(self._inference.gan, generator=given)
        return make_sample(gan, meshes.make_mesh(1), running=False, dropout=False)

    def _rows(self, sample: Any, images: Iterable[Identified]) -> Iterator[Sampled]:
        batch: list[Identified] = []
        for image in images:
            batch.append(image)
            if len(batch) == self._batch_size:
                yield from self._batch(sample, batch)
                batch = []
        if batch:
            yield from self._batch(sample, batch)

    def _batch(self, sample: Any, batch: list[Identified]) -> Iterator[Sampled]:
        """Fills the batch up, so that one program serves the last one too."""
        rows = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
        stack = np.stack([image for image, _ in rows])
        inputs = (*self._sides(stack), np.array([number for _, number in rows], np.uint32))
        with jax.enable_x64(self._double), _memory(stack):
            placed = meshes.put_split(self._grid, inputs, 0, self._grid.axis_names)
            params, stats = self._inference.params, self._inference.stats
            made = jax.tree.map(np.asarray, sample(params, stats, self._key, *placed))
        for i in range(len(batch)):
            yield jax.tree.map(lambda x, i=i: x[i], made)

    def _sides(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target, one of them of no channels."""
        none = images[..., :0]
        return (none, images) if self._swapped else (images, none)


@contextlib.contextmanager
def _memory(images: np.ndarray) -> Iterator[None]:
    """Says what to do where a device has no room for them."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        height, width = images.shape[-3:-1]
        count = len(images) if images.ndim == 4 else 1
        raise Failure(
            f"the device's memory does not hold {count} of {height}x{width} pixels at once: use a "
            "smaller --batch_size, or --tile=H,W to translate parts that fade into each other"
        ) from error
