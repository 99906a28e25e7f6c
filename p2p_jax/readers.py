"""How the compiled step takes its examples out of what it is given: batches, or a whole set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Array = jax.Array
Shape = tuple[int, ...]
Examples = tuple[Array, Array, Array | None]


class Reader(NamedTuple):
    """A kind of argument that holds the examples of several steps.

    Attributes:
      specs: from the mesh axis, how the argument is split over the devices (a prefix of its tree).
      take: from the argument, as one device sees it, the number of a step and the mesh axis, to
        this device's examples of the step: source and target `[b, h, w, c]` as stored, and their
        sizes int32 `[b, 2]` or None.
      members: where runs are trained together, the axis of the argument over them (a prefix of its
        tree): 0 for what each has of its own, None for what they share.
    """

    specs: Callable[[str], Any]
    take: Callable[[Any, Array, str], Examples]
    members: Any


def _row(x: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _streamed(batch: Any, i: Array, axis: str) -> Examples:
    del axis
    source, target, *sizes = jax.tree.map(lambda x: _row(x, i), tuple(batch))
    return source, target, sizes[0] if sizes else None


# Of (source, target) or (source, target, sizes): images `[k, b, h, w, c]`, sizes `[k, b, 2]` or
# None, the global batch b split over the devices.
STREAMED = Reader(lambda axis: P(None, axis), _streamed, 0)


def cached(shapes: tuple[Shape, Shape], rows: int | None = None) -> Reader:
    """Reads a set that the devices hold: of (arrays, indices).

    `arrays` is (source, target, sizes or None): images as rows `[n, h * w * c]`, so that no device
    pads their few channels to the width of its registers, and sizes int32 `[n, 2]`. `indices` is
    int32 `[k, b]`, the global batch b split over the devices.

    Args:
      shapes: (h, w, c) of the frames of source and target.
      rows: how many each device holds, in the order of the mesh; None: each holds all.
    """
    own = (None, 0)
    if rows is None:
        take = functools.partial(_replicated, shapes)
        return Reader(lambda axis: (P(), P(None, axis)), take, own)
    take = functools.partial(_sharded, shapes, rows)
    return Reader(lambda axis: (P(axis), P(None, axis)), take, own)


def _take(rows: Array, indices: Array) -> Array:
    return rows.at[indices].get(mode="promise_in_bounds")


def _shaped(shapes: tuple[Shape, Shape], taken: Any) -> Examples:
    source, target = (x.reshape(len(x), *s) for x, s in zip(taken[:2], shapes, strict=True))
    return source, target, taken[2]


def _replicated(shapes: tuple[Shape, Shape], batch: Any, i: Array, axis: str) -> Examples:
    del axis
    arrays, indices = batch
    wanted = _row(indices, i)
    return _shaped(shapes, jax.tree.map(lambda x: _take(x, wanted), tuple(arrays)))


def _sharded(shapes: tuple[Shape, Shape], held: int, batch: Any, i: Array, axis: str) -> Examples:
    """One exchange: each device sends to each other what it may hold of the other's examples.

    Nothing is added up, so that every type and value arrives as it was.
    """
    arrays, indices = batch
    wanted = _row(indices, i)
    everyone = jax.lax.all_gather(wanted, axis)  # [devices, b]
    # Of examples that others hold it sends any row: the receiver does not look at it.
    mine = jnp.clip(everyone - jax.lax.axis_index(axis) * held, 0, held - 1)
    holder, place = wanted // held, jnp.arange(len(wanted), dtype=jnp.int32)

    def exchanged(rows: Array) -> Array:
        got = jax.lax.all_to_all(_take(rows, mine), axis, 0, 0, tiled=True)  # [devices, b, ...]
        return got.at[holder, place].get(mode="promise_in_bounds")

    return _shaped(shapes, jax.tree.map(exchanged, tuple(arrays)))
