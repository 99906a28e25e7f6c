"""Numbers that tell whether arrays are those that were saved, and whether all in them is finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

Tree = Any
_WIDTHS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def fingerprint(tree: Tree) -> list[int]:
    """A 32-bit number for each array of a tree, which any change of a single bit changes.

    It does not depend on how the arrays lie on devices; with several processes, all must ask.
    """
    return [number for number, _ in _looks(tree)]


def examine(tree: Tree) -> tuple[list[int], list[str]]:
    """The fingerprints of a tree, and the paths of arrays with NaN or infinities in them."""
    looks = _looks(tree)
    paths = names(tree)
    bad = [path for path, (_, finite) in zip(paths, looks, strict=True) if not finite]
    return [number for number, _ in looks], bad


def names(tree: Tree) -> list[str]:
    """The path of each array, as in `params/enc1/conv/kernel`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def whole(tree: Tree) -> Tree:
    """A tree with every array in one piece in every process; copies those that were not.

    With several processes, all must ask.
    """
    return jax.tree.map(lambda x: x if _in_reach(x) else _replicate(x), tree)


def _in_reach(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _replicate(x: jax.Array) -> jax.Array:
    assert isinstance(x.sharding, NamedSharding)
    return _copy(x, NamedSharding(x.sharding.mesh, PartitionSpec()))


def _copy(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.jit(jnp.copy, out_shardings=sharding)(x)


def _looks(tree: Tree) -> list[tuple[int, bool]]:
    looks = jax.device_get([_look(leaf) for leaf in jax.tree.leaves(whole(tree))])
    return [(int(number), bool(finite)) for number, finite in looks]


@jax.jit
def _look(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fingerprint of an array, and whether all of it is finite."""
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.array(True)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = jax.lax.bitcast_convert_type(x, _WIDTHS[x.dtype.itemsize]).ravel().astype(jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * odd, dtype=jnp.uint32), finite
