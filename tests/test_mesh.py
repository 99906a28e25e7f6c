"""The mesh over the devices, and which of a batch lies where."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from p2p_jax.mesh import (
    arranged,
    batch_slots,
    every_axis,
    local_rows,
    make_mesh,
    put_replicated,
    put_split,
)


def test_one_axis_unless_images_are_shared():
    assert dict(make_mesh(0).shape) == {"data": 4}
    assert dict(make_mesh(3, 1).shape) == {"data": 3}
    mesh = make_mesh(4, 2)
    assert dict(mesh.shape) == {"data": 2, "spatial": 2}
    assert every_axis(mesh) == ("data", "spatial") and every_axis(make_mesh(2)) == ("data",)
    assert [d.id for d in mesh.devices.flat] == [0, 1, 2, 3]
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_devices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 devices asked for, 4 are there"):
        make_mesh(5)
    with pytest.raises(ValueError, match="4 devices are no groups of spatial=3; 1 or 2 or 4 would"):
        make_mesh(0, 3)


def fake(index, **changes):
    return SimpleNamespace(**(dict(id=index, device_kind="cpu", platform="cpu") | changes))


def test_images_are_shared_within_a_slice():
    """Slices take turns in the order of devices, as when processes are numbered across them."""
    devices = [fake(i, slice_index=i % 2) for i in range(8)]
    grid = arranged(devices, (4, 2))
    assert [[d.id for d in row] for row in grid] == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert [d.id for d in arranged(devices, (8,))] == [0, 2, 4, 6, 1, 3, 5, 7]
    # One device a slice: there is no better order.
    alone = [fake(i, slice_index=i) for i in range(4)]
    assert [[d.id for d in row] for row in arranged(alone, (2, 2))] == [[0, 1], [2, 3]]


def shuffled(shape=(4,)):
    names = ("data", "spatial")[: len(shape)]
    devices = np.array(jax.devices())[[2, 0, 3, 1]].reshape(shape)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("shape", "axes", "parts"),
    [((4,), "data", 4), ((2, 2), "data", 2), ((2, 2), ("data", "spatial"), 4)],
)
def test_rows_go_where_the_mesh_says_and_come_back(shape, axes, parts, axis):
    mesh = shuffled(shape)
    assert batch_slots(mesh, 8, axes).tolist() == list(range(8))
    x = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(
        (8, 2, 8, 3) if axis == 0 else (2, 8, 8, 3)
    )
    tree = put_split(mesh, {"x": x, "none": None}, axis, axes)
    assert tree["none"] is None and (np.asarray(tree["x"]) == x).all()
    size = 8 // parts
    for place, device in enumerate(mesh.devices.flat):
        part = place * parts // 4
        (data,) = [s.data for s in tree["x"].addressable_shards if s.device == device]
        assert (np.asarray(data) == x.take(range(part * size, (part + 1) * size), axis)).all()
    if axis == 0:
        assert (local_rows(tree["x"]) == x).all() and local_rows(tree["x"]).dtype == np.uint8


def test_parts_of_rows_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 4"):
        batch_slots(make_mesh(4), 6)
    with pytest.raises(ValueError, match="6 rows do not divide over 4"):
        put_split(make_mesh(4), np.zeros((6, 2)), 0)


# --- two processes -------------------------------------------------------------------------------


def check_as_one_of_two():
    """What one of two processes of two devices asserts; prints its places of the batch."""
    devices = np.array(jax.devices())
    turned = (AxisType.Auto,)
    for order, axes, shape in (
        ([0, 2, 1, 3], "data", (4,)),
        ([3, 1, 0, 2], ("data", "spatial"), (2, 2)),
        ([0, 2, 3, 1], "data", (2, 2)),
        ([0, 1, 2, 3], "data", (2, 2)),
    ):
        mesh = Mesh(
            devices[order].reshape(shape), ("data", "spatial")[: len(shape)],
            axis_types=turned * len(shape),
        )  # fmt: skip
        slots = batch_slots(mesh, 8, axes)
        whole = np.arange(16).reshape(8, 2)
        placed = put_split(mesh, whole[slots], 0, axes)
        assert placed.shape == (8, 2)
        assert (local_rows(placed) == whole[slots]).all()
        # What the global array holds: weighed sums tell any other order.
        weights = put_replicated(mesh, np.arange(1, 9, dtype=np.int32).reshape(8, 1) ** 2)
        total = jax.jit(lambda x, w: (x * w).sum())(placed, weights)
        assert int(total) == int((whole * np.arange(1, 9).reshape(8, 1) ** 2).sum())
        print("slots", *slots)


@pytest.mark.slow
def test_two_processes_find_their_places():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    code = (
        "import sys, jax\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
        "import test_mesh; test_mesh.check_as_one_of_two()"
    )
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(i)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    said = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            said.append([line for line in out.splitlines() if line.startswith("slots")])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    everything, halves = "slots 0 1 2 3 4 5 6 7", ("slots 0 1 2 3", "slots 4 5 6 7")
    # Devices 0 and 1 are the first process's.
    assert said[0] == ["slots 0 1 4 5", "slots 2 3 4 5", everything, halves[0]]
    assert said[1] == ["slots 2 3 6 7", "slots 0 1 6 7", everything, halves[1]]
