"""A whole set of frames in the memory of the devices: no input pipeline while training runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax.data.frames import Frames
from p2p_jax.data.pairs import Batch, DataError, Log
from p2p_jax.data.pipeline import decode, empty
from p2p_jax.mesh import AXIS
from p2p_jax.readers import Reader, cached

Array = jax.Array
_CHUNK = 32 * 2**20  # bytes that are decoded and sent at once


class Store(NamedTuple):
    """Frames on the devices.

    Attributes:
      arrays: (source, target, sizes or None): `[n, h * w * c]` each in its stored type, and int32
        `[n, 2]`; on each device all rows, or its share of them, filled up by zeros.
      reader: how the step takes examples out of (arrays, indices).
    """

    arrays: tuple[Array, Array, Array | None]
    reader: Reader


def placing(rows: int, row_bytes: int, memory: int, share: float, devices: int) -> str:
    """How a set is laid out over devices: 'replicated' where one may hold it, or 'sharded'.

    Args:
      rows: of the set.
      row_bytes: of each.
      memory: bytes of a device.
      share: of it that the set may take.
      devices: how many.

    Raises:
      DataError: not even a share of it fits; says what is needed and what would do.
    """
    allowed = int(memory * share)
    if rows * row_bytes <= allowed:
        return "replicated"
    split = -(-rows // devices) * row_bytes
    if split <= allowed:
        return "sharded"
    fitting = allowed // row_bytes * devices
    ways = ["data.cache=host"]
    if fitting:
        ways.append(f"data.max_examples={fitting}")
    if split <= memory:
        hundredths = -(-100 * split // memory)
        ways.append(f"data.cache_share={hundredths / 100:g} if the networks leave as much")
    over = "the device" if devices == 1 else f"each of {devices} devices"
    raise DataError(
        [
            f"data.cache=device: the {rows} pairs are {_size(rows * row_bytes)}, which is "
            f"{_size(split)} on {over}, and data.cache_share={share:g} of its {_size(memory)} "
            f"allows {_size(allowed)}; use {', or '.join(ways)}"
        ]
    )


def _size(count: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"


def device_memory(mesh: Mesh) -> int:
    """Bytes that each device of the mesh has at least, in all processes."""
    local = mesh.local_devices
    stats = [device.memory_stats() for device in local]
    if all(stats):
        least = min(s["bytes_limit"] for s in stats)
    else:  # the devices are parts of this machine
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        least = whole // jax.local_device_count()
    if jax.process_count() == 1:
        return least
    kilobytes = np.array(least // 1024, np.int32)  # 64 bits may be off; these serve 2 TB
    return int(np.min(multihost_utils.process_allgather(kilobytes))) * 1024


def fill(
    frames: Frames,
    mesh: Mesh,
    share: float,
    threads: int,
    log: Log,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Decodes all frames and puts them on the devices, in pieces: host memory stays flat.

    Where there are several processes, each decodes what its own devices hold.

    Args:
      frames: the set.
      mesh: the devices.
      share: of a device's memory that the set may take.
      threads: that decode.
      log: is told how the set lies.
      on_progress: told how many frames of how many this process has put where they belong.

    Raises:
      DataError: the set does not fit, or a frame cannot be read.
    """
    shapes = [(*frames.shape, form.channels) for form in frames.forms]
    row = empty(frames, 1)
    row_bytes = sum(part.nbytes for part in row if part is not None)
    devices = mesh.shape[AXIS]  # those that share images hold the same
    place = placing(len(frames), row_bytes, device_memory(mesh), share, devices)
    rows = len(frames) if place == "replicated" else -(-len(frames) // devices)
    whole = _size(len(frames) * row_bytes)
    if place == "replicated":
        log(f"{len(frames)} pairs ({whole}) are kept in the memory of each device")
        spans = [(0, len(frames), mesh.local_devices)]
    else:
        log(f"{len(frames)} pairs ({whole}) are kept in the memory of {devices} devices together")
        spans = [
            (min(i * rows, len(frames)), min((i + 1) * rows, len(frames)), here)
            for i, group in enumerate(mesh.devices.reshape(devices, -1))
            if (here := [device for device in group if device in mesh.local_devices])
        ]
    parts = _upload(frames, spans, rows, row_bytes, threads, on_progress)
    sharding = NamedSharding(mesh, P() if place == "replicated" else P(AXIS))
    length = rows if place == "replicated" else rows * devices

    def whole_array(*pieces: Array) -> Array:
        shape = (length, *pieces[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(pieces))

    arrays = jax.tree.map(whole_array, *parts)
    return Store(arrays, cached((shapes[0], shapes[1]), None if place == "replicated" else rows))


def _upload(
    frames: Frames,
    spans: Sequence[tuple[int, int, Sequence[Any]]],
    rows: int,
    row_bytes: int,
    threads: int,
    on_progress: Callable[[int, int], None],
) -> list[Any]:
    """The arrays of each device, `rows` rows, holding the frames of its span (start, stop)."""
    parts = []
    total, before = sum(stop - start for start, stop, _ in spans), 0
    piece = max(1, _CHUNK // max(row_bytes, 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for start, stop, devices in spans:
            held = [_zeros(frames, rows, device) for device in devices]
            for at, chunk in _chunks(pool, frames, start, stop, piece, threads):
                held = [
                    _written(whole, jax.device_put(chunk, device), np.int32(at - start))
                    for whole, device in zip(held, devices, strict=True)
                ]
                # Pieces on their way would pile up in host memory.
                jax.block_until_ready(held)
                on_progress(before + at - start + len(chunk[0]), total)
            parts += held
            before += stop - start
    return parts


def _zeros(frames: Frames, rows: int, device: Any) -> tuple[Array, Array, Array | None]:
    source, target, sizes = (_flat(part) for part in empty(frames, 1))

    def zeros(like: np.ndarray) -> Array:
        return jnp.zeros((rows, *like.shape[1:]), like.dtype, device=device)

    return zeros(source), zeros(target), None if sizes is None else zeros(sizes)


def _flat(part: np.ndarray | None) -> Any:
    return None if part is None else part.reshape(len(part), int(np.prod(part.shape[1:])))


def _chunks(
    pool: ThreadPoolExecutor, frames: Frames, start: int, stop: int, piece: int, threads: int
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Frames start .. stop as rows, `piece` at a time with the first one's index; one ahead."""
    begun: list[tuple[int, Batch, list[Any]]] = []
    for at in [*range(start, stop, piece), None]:
        if at is not None:
            indices = np.arange(at, min(at + piece, stop))
            into = empty(frames, len(indices))
            begun.append((at, into, decode(pool, frames, indices, into, 4 * threads)))
        if len(begun) > (at is not None):
            first, batch, futures = begun.pop(0)
            for future in futures:
                future.result()
            yield first, tuple(_flat(part) for part in batch)


@functools.partial(jax.jit, donate_argnums=0)
def _written(whole: Any, chunk: Any, at: Array) -> Any:
    return jax.tree.map(
        lambda x, part: jax.lax.dynamic_update_slice(x, part, (at, jnp.int32(0))), whole, chunk
    )
