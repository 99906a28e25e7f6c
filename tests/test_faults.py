"""Saves that fail, and processes of which one fails: clear words, nothing lost, nobody waits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from running import ROOT, checkpoints, environment

from p2p_jax import checkpoint, fingerprints, peers
from p2p_jax.checkpoint import SaveFailed
from p2p_jax.mesh import make_mesh
from p2p_jax.state import NetState, TrainState
from p2p_jax.words import Problems

# When a write fails, Orbax closes its event loop under those that are still under way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LIMIT = 100_000  # bytes of a file, below those of a checkpoint and above those of anything else
STEPS = (1, 2, 3)


def _state(step, devices=0):
    """Different at each step; what an optimiser would keep is split over the devices."""
    mesh, draw = make_mesh(devices), np.random.default_rng(step)

    def put(x, *axes):
        x, sharding = np.asarray(x), NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def net():
        params = {"kernel": put(draw.standard_normal((8, 8000)).astype(np.float32))}
        moments = {
            "kernel": put(draw.standard_normal((8, 8000)).astype(np.float32), None, "data"),
            "bias": put(draw.standard_normal((4, 3)).astype(np.float32), "data"),
        }
        return NetState(params, {}, (moments, put(np.int32(step))))

    whole = NamedSharding(mesh, PartitionSpec())
    key = jax.jit(lambda: jax.random.key(step, impl="threefry2x32"), out_shardings=whole)()
    return TrainState(put(np.int32(step)), net(), net(), {}, key)


def _like(state):
    return checkpoint.split(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    )


def _numbers(step):
    return checkpoint.fingerprint(checkpoint.split(_state(step)))


def _sound(workdir, step, devices=0):
    """Whether the newest checkpoint is that of `step`, on so many devices."""
    reader = checkpoint.open_reader(workdir)
    found = checkpoint.restore(reader, _like(_state(step, devices)), pytest.fail)
    return found.step == step and checkpoint.fingerprint(found.items) == _numbers(step)


@contextlib.contextmanager
def _little_room():
    """No file may grow above the limit, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _saved(manager, step):
    checkpoint.save(manager, _state(step), {}, None)
    checkpoint.settle(manager)


@pytest.mark.parametrize("told_by", ["settle", "save", "close"])
def test_a_full_disk_is_told_and_older_checkpoints_stay(tmp_path, told_by):
    manager = checkpoint.open_manager(tmp_path, 2, lambda: None)
    for step in STEPS:
        _saved(manager, step)
    with _little_room():
        checkpoint.save(manager, _state(4), {}, None)
        with pytest.raises(SaveFailed) as caught:
            if told_by == "settle":
                checkpoint.settle(manager)
            elif told_by == "save":
                checkpoint.save(manager, _state(5), {}, None)
            else:
                checkpoint.close(manager)
    text = str(caught.value)
    assert text.startswith("checkpoint 4 was not saved: there is no room: File too large; ")
    assert "those of steps 2, 3 are intact" in text and caught.value.step == 4
    assert checkpoints(tmp_path) == ["2", "3"] and _sound(tmp_path, 3)
    if told_by == "close":
        return
    assert checkpoint.latest(manager) == 3
    checkpoint.settle(manager)  # told once
    # There is room again: the same step, and those after it, deleting what is not to be kept.
    for step in (4, 5):
        _saved(manager, step)
    checkpoint.close(manager)
    assert checkpoints(tmp_path) == ["4", "5"] and _sound(tmp_path, 5)


def test_the_first_save_of_all_may_fail(tmp_path):
    manager = checkpoint.open_manager(tmp_path, 2, lambda: None)
    with _little_room():
        checkpoint.save(manager, _state(1), {}, None)
        with pytest.raises(SaveFailed, match="there is none from before"):
            checkpoint.settle(manager)
    assert checkpoint.latest(manager) is None and checkpoints(tmp_path) == []
    assert checkpoint.restore(manager, _like(_state(1)), pytest.fail, set_aside=True) is None
    _saved(manager, 1)
    checkpoint.close(manager)
    assert _sound(tmp_path, 1)


def test_the_best_one_stays_until_a_better_one_is_complete(tmp_path):
    best = 1
    manager = checkpoint.open_manager(tmp_path, 2, lambda: best)
    for step in (*STEPS, 4):
        _saved(manager, step)
    assert checkpoints(tmp_path) == ["1", "3", "4"]
    best = 5
    with _little_room():
        checkpoint.save(manager, _state(5), {}, None)
        with pytest.raises(SaveFailed, match="those of steps 1, 3, 4 are intact"):
            checkpoint.settle(manager)
    _saved(manager, 6)  # whoever asks still believes in 5
    _saved(manager, 7)
    assert checkpoints(tmp_path) == ["1", "6", "7"]
    best = 8
    _saved(manager, 8)
    checkpoint.close(manager)
    assert checkpoints(tmp_path) == ["7", "8"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    manager = checkpoint.open_manager(tmp_path, 2, lambda: None)
    _saved(manager, 1)
    (tmp_path / "checkpoints").chmod(0o500)
    try:
        checkpoint.save(manager, _state(2), {}, None)
        with pytest.raises(SaveFailed, match="Permission denied"):
            checkpoint.settle(manager)
    finally:
        (tmp_path / "checkpoints").chmod(0o700)
    _saved(manager, 2)
    checkpoint.close(manager)


def test_a_folder_that_is_gone(tmp_path):
    """Whatever is raised as a save begins is told like what is raised later."""
    manager = checkpoint.open_manager(tmp_path, 2, lambda: None)
    _saved(manager, 1)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints").write_text("a file")
    checkpoint.save(manager, _state(2), {}, None)
    with pytest.raises(SaveFailed, match="checkpoint 2 was not saved"):
        checkpoint.settle(manager)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    _saved(manager, 2)
    checkpoint.close(manager)
    assert checkpoints(tmp_path) == ["1", "2"]


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_of_which_one_fails(tmp_path, devices):
    """Then one process reads on 4, 2 and 1 devices what two have saved on 2 or 4."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1"
    both = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(index), str(tmp_path)],
            env=environment(XLA_FLAGS=flags, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0], "\n".join(told)
    assert checkpoints(tmp_path) == ["3.damaged", "4", "6"]
    for count in (4, 2, 1):
        assert _sound(tmp_path, 6, count)


def _one_of_two(address, index, workdir):
    """What each process does; every assertion holds in both."""
    peers.start(peers.Peers("this test", address, 2, index), 60, 100)
    assert jax.process_count() == 2
    manager = checkpoint.open_manager(workdir, 2, lambda: None)
    like = _like(_state(1))
    with _one_whole_at_a_time() as gathered:
        for step in STEPS:
            _saved(manager, step)
    # Of three saves four arrays that are in pieces: to look at them, and to write them.
    assert len(gathered) == 3 * 4 * 2
    assert checkpoint.latest(manager) == 3

    # One cannot read what the other can.
    read = type(manager).restore

    def unreadable(self, step, **kwargs):
        if step == 3:
            raise OSError(5, "Input/output error")
        return read(self, step, **kwargs)

    if index == 1:
        type(manager).restore = unreadable
    warnings = []
    found = checkpoint.restore(manager, like, warnings.append, set_aside=True)
    type(manager).restore = read
    assert found.step == checkpoint.latest(manager) == 2, warnings
    assert checkpoint.fingerprint(found.items) == _numbers(2)
    assert warnings == [
        "checkpoint 3: process 1: OSError: [Errno 5] Input/output error",
        "checkpoint 3 was moved to 3.damaged",
    ]
    assert found.items["train"]["gen_opt"][0]["kernel"].sharding == like["train"]["gen_opt"][0][
        "kernel"].sharding  # fmt: skip

    # The one that writes has no room; both hear of it, and of no other.
    _saved(manager, 4)
    with _little_room() if index == 0 else contextlib.nullcontext():
        checkpoint.save(manager, _state(5), {}, None)
        with pytest.raises(SaveFailed, match="no room: File too large; those of steps 2, 4 are"):
            checkpoint.settle(manager)
    assert checkpoint.latest(manager) == 4
    bad = _state(6)
    bad.gen.params["kernel"] = bad.gen.params["kernel"] * np.float32(np.nan)
    with pytest.raises(checkpoint.NotFiniteState, match=r"in gen/params/kernel$"):
        checkpoint.save(manager, bad, {}, None)
    checkpoint.save(manager, _state(6), {}, {"eval/l1": 0.5})
    checkpoint.settle(manager)
    best = checkpoint.best_of(manager, {}, "eval/l1", "min")
    assert best == {"metric": "eval/l1", "value": 0.5, "step": 6}
    checkpoint.close(manager)

    # What each has for itself may be sound, and something else.
    own = workdir / f"own{index}" / "checkpoints"
    shutil.copytree(workdir / "checkpoints" / ("6", "4")[index], own / "6")
    reader = checkpoint.open_reader(own.parent)
    with pytest.raises(Problems, match="what checkpoint 6 holds: process 1 has '"):
        checkpoint.restore(reader, like, pytest.fail)


@contextlib.contextmanager
def _one_whole_at_a_time():
    """Fails where two arrays that lie in pieces are in one piece at a time; gives all of them."""
    gathered, whole = [], fingerprints.whole

    def counted(x):
        piece = whole(x)
        if piece is not x:
            assert all(before() is None for before in gathered)
            gathered.append(weakref.ref(piece))
        return piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "whole", counted)
        patch.setattr(fingerprints, "whole", counted)
        yield gathered


if __name__ == "__main__":
    _one_of_two(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
