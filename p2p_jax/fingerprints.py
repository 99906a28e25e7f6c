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


def whole(x: Any) -> Any:
    """An array in one piece in every process; a copy, on each device, where it was not.

    With several processes, all must ask.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    assert isinstance(x.sharding, NamedSharding)
    replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
    return jax.jit(jnp.copy, out_shardings=replicated)(x)


def _looks(tree: Tree) -> list[tuple[int, bool]]:
    looks = jax.device_get([_look_at(leaf) for leaf in jax.tree.leaves(tree)])
    return [(int(number), bool(finite)) for number, finite in looks]


def _look_at(x: Any) -> tuple[jax.Array, jax.Array]:
    piece = whole(x)
    look = _look(piece)
    # One after the other: all in one piece might not fit.
    return look if piece is x else jax.block_until_ready(look)


@jax.jit
def _look(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fingerprint of an array, and whether all of it is finite."""
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.array(True)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = jax.lax.bitcast_convert_type(x, _WIDTHS[x.dtype.itemsize]).ravel().astype(jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * odd, dtype=jnp.uint32), finite
