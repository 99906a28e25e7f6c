"""Images that several devices share: each has a band of rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

Array = jax.Array

LEAST = 2  # rows of a band; of less there is more to exchange than to compute


def _devices(axis: str | None) -> int:
    """How many share an image here; in evaluation the axis splits the batch, so none do."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis is not None and axis in mesh.auto_axes else 1


def _whole(x: Array) -> Array:
    return jax.lax.with_sharding_constraint(x, P())


def banded(x: Array, axis: str | None) -> Array:
    """Has `[b, h, w, c]` lie in bands of rows over a mesh axis, where the program is split over it.

    With fewer rows than bands need, each device has them all. Rows that do not divide, as those of
    a discriminator's last layers, lie as what they are made of: XLA fills up the last band.

    Args:
      x: images or activations.
      axis: of the mesh; None: no images are shared.
    """
    devices, rows = _devices(axis), x.shape[1]
    if devices == 1:
        return x
    if rows < LEAST * devices:
        return _whole(x)
    return x if rows % devices else jax.lax.with_sharding_constraint(x, P(None, axis))


def convolved(
    fn: Callable[[Array, Array], Array], x: Array, kernel: Array, axis: str | None
) -> Array:
    """`fn` of images or activations and a kernel, by bands of rows where what it gives has them.

    Left to itself where rows are few, XLA splits kernels by their features and gathers them.
    """
    devices = _devices(axis)
    if devices == 1:
        return fn(x, kernel)
    kernel = _whole(kernel)
    rows = min(x.shape[1], jax.eval_shape(fn, x, kernel).shape[1])
    if rows < LEAST * devices:
        return banded(_whole(fn(_whole(x), kernel)), axis)
    return banded(fn(x, kernel), axis)
