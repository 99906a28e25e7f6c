"""Each device its share of the optimiser's state: ZeRO, stage 1 (Rajbhandari et al. 2020).

Gradients of kernels are summed to the device that keeps their averages alone, which updates its
share of the parameters; then the devices exchange what is new. As much is sent as without. Vectors,
which are small, and kernels of which no dimension divides are kept by all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

Array = jax.Array
Tree = Any


def split_axis(shape: tuple[int, ...], parts: int) -> int | None:
    """The largest dimension of a kernel that so many parts divide, the first of equals; or None."""
    fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or len(shape) < 2 or not fits:
        return None
    return max(fits, key=lambda axis: (shape[axis], -axis))


def spec(shape: tuple[int, ...], axis: str, parts: int) -> P:
    """How what an optimiser keeps of a parameter is split over a mesh axis."""
    where = split_axis(shape, parts)
    return P() if where is None else P(*[None] * where, axis)


def optimiser_specs(opt_state: Tree, params: Tree, axis: str, parts: int) -> Tree:
    """`spec` of each array of an optimiser's state; what is not like the parameters is whole."""
    structure = jax.tree.structure(params)

    def like_params(tree: Tree) -> bool:
        return jax.tree.structure(tree) == structure

    def specs(tree: Tree) -> Tree:
        if not like_params(tree):
            return P()
        return jax.tree.map(lambda x: spec(x.shape, axis, parts), tree)

    return jax.tree.map(specs, opt_state, is_leaf=like_params)


def scattered(
    grads: Tree, mean: Callable[[Tree], Tree], rest: Tree, axis: str
) -> tuple[Tree, Tree]:
    """Means over devices: of gradients this device's share, and what is not split as a whole.

    Args:
      grads: of the parameters, each device's own.
      mean: over devices, of a tree at once.
      rest: what else is averaged.
      axis: of the mesh.

    Returns:
      The gradients, and the rest.
    """
    parts = jax.lax.axis_size(axis)
    leaves, structure = jax.tree.flatten(grads)
    split = [split_axis(x.shape, parts) for x in leaves]
    kept = [x for x, where in zip(leaves, split, strict=True) if where is None]
    kept, rest = mean((kept, rest))
    averaged = iter(kept)
    shares = [
        next(averaged)
        if where is None
        else jax.lax.psum_scatter(x, axis, scatter_dimension=where, tiled=True) / parts
        for x, where in zip(leaves, split, strict=True)
    ]
    return jax.tree.unflatten(structure, shares), rest


def shares(params: Tree, axis: str) -> Tree:
    """This device's share of parameters that all devices have."""

    def share(x: Array, where: int) -> Array:
        size = x.shape[where] // jax.lax.axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, where)

    return _mapped(share, params, params, axis)


def whole(params: Tree, like: Tree, axis: str) -> Tree:
    """All devices' shares of parameters, shaped like the whole ones, on each of them."""

    def gathered(x: Array, where: int) -> Array:
        return jax.lax.all_gather(x, axis, axis=where, tiled=True, to="invarying")

    return _mapped(gathered, params, like, axis)


def _mapped(fn: Callable[[Array, int], Array], tree: Tree, like: Tree, axis: str) -> Tree:
    """Applies `fn` of (array, dimension) to what is split; `like` has the shapes of the whole."""
    parts = jax.lax.axis_size(axis)

    def one(x: Array, like: Array) -> Array:
        where = split_axis(like.shape, parts)
        return x if where is None else fn(x, where)

    return jax.tree.map(one, tree, like)
