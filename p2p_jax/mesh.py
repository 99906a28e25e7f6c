"""Devices: their number, the mesh over them, and how arrays lie on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def use_precision(precision: str) -> None:
    """Turns 64-bit arrays on for `float64` and off otherwise; before any array is made."""
    jax.config.update("jax_enable_x64", precision == "float64")


def make_mesh(devices: int) -> Mesh:
    """A mesh of the first `devices` devices (0 is all), its one axis splitting the batch.

    Raises:
      ValueError: there are fewer devices.
    """
    there = jax.devices()
    if devices > len(there):
        raise ValueError(f"{devices} devices asked for, {len(there)} are there")
    count = devices or len(there)
    # Auto: under the default, Explicit, every array operation would have to name its sharding.
    return jax.make_mesh((count,), (AXIS,), devices=there[:count], axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def put_split(mesh: Mesh, tree: Any, axis: int) -> Any:
    """Puts this process's numpy arrays on its devices, split along `axis` over the mesh."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Puts numpy arrays, the same in every process, on all devices."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def local_slice(batch_size: int) -> slice:
    """This process's part of a global batch."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
