"""Devices: their number, the mesh over them, and how arrays lie on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
SPATIAL = "spatial"
Axes = str | tuple[str, ...]


def use_precision(precision: str) -> None:
    """Turns 64-bit arrays on for `float64` and off otherwise; before any array is made."""
    jax.config.update("jax_enable_x64", precision == "float64")


def make_mesh(devices: int, spatial: int = 1) -> Mesh:
    """A mesh of the first `devices` devices (0 is all), of all processes.

    Args:
      devices: how many.
      spatial: how many share each image. Above 1 the mesh has a second axis, `spatial`, beside
        `data`, which splits the batch.

    Raises:
      ValueError: there are fewer devices, or they are no groups of `spatial`.
    """
    there = jax.devices()
    if devices > len(there):
        raise ValueError(f"{devices} devices asked for, {len(there)} are there")
    count = devices or len(there)
    if count % spatial:
        fits = " or ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(f"{count} devices are no groups of spatial={spatial}; {fits} would do")
    shape, names = (count // spatial, spatial), (AXIS, SPATIAL)
    if spatial == 1:
        shape, names = shape[:1], names[:1]
    # Auto: under the default, Explicit, every array operation would have to name its sharding.
    types = (AxisType.Auto,) * len(names)
    return Mesh(arranged(there[:count], shape), names, axis_types=types)


def arranged(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Devices as a grid, neighbours of the last axis near each other, slices along the first.

    Args:
      devices: in the order of JAX. Slices are groups that a fast network joins within: those of
        several TPU pods, or machines with GPUs.
      shape: of the grid.
    """
    slices: dict[Any, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    last = math.prod(shape[1:])
    if any(len(part) % last for part in slices.values()):
        return np.asarray(devices).reshape(shape)
    lite = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")  # as jax.make_mesh has it
    return np.concatenate(
        [
            mesh_utils.create_device_mesh(
                (len(part) // last, *shape[1:]),
                part,
                allow_split_physical_axes=lite or last > 1,
            )
            for part in slices.values()
        ]
    )


def every_axis(mesh: Mesh) -> tuple[str, ...]:
    """All axes: where images are not shared, as in evaluation, all of them split the batch."""
    return tuple(mesh.axis_names)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def _shares(mesh: Mesh, axes: Axes) -> tuple[int, list[int]]:
    """How many equal parts an array is split into along axes, and which this process holds."""
    names = (axes,) if isinstance(axes, str) else axes
    parts = math.prod(mesh.shape[name] for name in names)
    held = NamedSharding(mesh, P(axes)).addressable_devices_indices_map((parts,)).values()
    return parts, sorted({index[0].start or 0 for index in held if index})


def batch_slots(mesh: Mesh, batch_size: int, axes: Axes = AXIS) -> np.ndarray:
    """The places of the global batch that this process's devices hold.

    They need not be neighbours, and processes whose devices share images hold the same.

    Args:
      mesh: the devices.
      batch_size: of the global batch.
      axes: that split it.

    Returns:
      int64 `[n]`, rising.

    Raises:
      ValueError: the batch is no whole number of parts.
    """
    parts, held = _shares(mesh, axes)
    if batch_size % parts:
        raise ValueError(f"a batch of {batch_size} does not divide over {parts} devices")
    return np.arange(batch_size).reshape(parts, -1)[held].reshape(-1)


def put_split(mesh: Mesh, tree: Any, axis: int, axes: Axes = AXIS) -> Any:
    """Puts this process's numpy arrays on its devices, split over the mesh.

    Args:
      mesh: the devices.
      tree: arrays that hold along `axis` what is this process's, in the order of `batch_slots`.
      axis: that is split.
      axes: of the mesh, that split it.

    Raises:
      ValueError: what is this process's is no whole number of parts.
    """
    sharding = NamedSharding(mesh, P(*[None] * axis, axes))
    parts, held = _shares(mesh, axes)
    places = {part: place for place, part in enumerate(held)}

    def put(x: np.ndarray) -> jax.Array:
        size, rest = divmod(x.shape[axis], len(held))
        if rest or not size:
            raise ValueError(f"{x.shape[axis]} rows do not divide over {len(held)} devices")

        def share(index: Any) -> np.ndarray:
            place = places[(index[axis].start or 0) // size]
            return x[(slice(None),) * axis + (slice(place * size, (place + 1) * size),)]

        shape = (*x.shape[:axis], size * parts, *x.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, share)

    return jax.tree.map(put, tree)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its first axis: each once, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Puts numpy arrays, the same in every process, on all devices."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def put_key(mesh: Mesh, key: jax.Array) -> jax.Array:
    """Puts a typed key, the same in every process, on all devices."""
    data, kind = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
    placed = jax.jit(
        lambda numbers: jax.random.wrap_key_data(numbers, impl=kind),
        out_shardings=replicated(mesh),
    )
    return placed(data)
