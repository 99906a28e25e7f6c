"""A run that is stopped, killed or lengthened is the run that nothing disturbed, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from running import (
    CONFIG,
    ROOT,
    STEPS,
    arrays,
    assert_same_arrays,
    checkpoints,
    environment,
    files,
    finished,
    pairs,
    start,
    train_to,
)

from p2p_jax import report
from p2p_jax.data import order
from p2p_jax.main import main
from p2p_jax.mesh import make_mesh
from p2p_jax.store import device_memory

TIMES = ("images_per_sec", "data_wait_frac")


def _lines(workdir):
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k not in TIMES and not k.startswith("seconds/")}
        for row in report.read(workdir)
    ]


def _assert_same_run(one, other, step=STEPS):
    assert_same_arrays(arrays(one, step), arrays(other, step))
    assert _lines(one) == _lines(other)
    for folder in ("samples", "eval"):
        assert files(one / folder) == files(other / folder)


def test_the_checkpoint_holds_all_that_training_changes():
    names = arrays(finished()[0], STEPS)
    train = ("gen_opt", "disc/params", "disc/stats", "disc/opt_state", "step", "key")
    gen = ("params", "stats", "ema")
    for part in (*(f"gen/{name}" for name in gen), *(f"train/{name}" for name in train)):
        assert any(name.startswith(part) for name in names), part
    assert names["train/step"] == STEPS
    # Training moved them all, so that equality below says something.
    gen = {k.removeprefix("gen/"): v for k, v in names.items() if k.startswith("gen/")}
    kernels = [k.removeprefix("params/") for k in gen if k.startswith("params/")]
    assert any((gen[f"params/{k}"] != gen[f"ema/{k}"]).any() for k in kernels)


def test_sigterm_in_the_middle_loses_nothing(tmp_path):
    printed = train_to(tmp_path, 75, at=9, signals=(signal.SIGTERM,))
    assert "stopped by SIGTERM" in printed and "saved at step 9; run again" in printed
    assert "9" in checkpoints(tmp_path)
    assert "resumed at step 9" in train_to(tmp_path)
    _assert_same_run(finished()[0], tmp_path)
    steps = [row["step"] for row in report.read(tmp_path) if row["split"] == "train"]
    assert steps == [4, 8, 12]


@pytest.mark.slow
def test_where_examples_are_kept_changes_nothing(tmp_path):
    """Nor does another place to keep them in the middle of a run, or how many threads decode."""
    device = ("--config.data.cache=device", "--config.data.threads=3")
    printed = train_to(tmp_path, 75, *device, at=9, signals=(signal.SIGTERM,))
    assert "10 pairs (61.4 kB) are kept in the memory of each device" in printed
    printed = train_to(tmp_path, 0, "--config.data.cache=host", "--config.data.threads=1")
    assert "resumed at step 9" in printed and "kept in the memory" not in printed
    _assert_same_run(finished()[0], tmp_path)


PAIR = 2 * 32 * 32 * 3  # bytes


def _room(rows, devices):
    """The flag that leaves room for so many pairs on each of so many devices."""
    return f"--config.data.cache_share={(rows * PAIR + 100) / device_memory(make_mesh(devices))!r}"


def test_a_set_that_does_not_fit_is_refused_with_numbers(tmp_path, capsys):
    """Ten pairs on four devices are three on some."""
    flags = [CONFIG, f"--workdir={tmp_path}", "--config.data.cache=device", _room(2, 4)]
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert "error: data.cache=device: the 10 pairs are 61.4 kB, which is 18.4 kB on each" in err
    assert "use data.cache=host, or data.max_examples=8, or data.cache_share=" in err
    assert "Traceback" not in err and report.read(tmp_path) == []
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_all_ways_to_keep_examples_are_one(tmp_path):
    mesh = "--config.mesh.devices=4"
    ways = {
        "replicated": ["--config.data.cache=device", _room(10, 4)],
        "sharded": ["--config.data.cache=device", _room(3, 4)],
    }
    plain, _ = finished(mesh, "--config.data.threads=1")
    for name, flags in ways.items():
        printed = train_to(tmp_path / name, 0, mesh, *flags)
        assert ("in the memory of 4 devices together" in printed) is (name == "sharded")
        assert ("in the memory of each device" in printed) is (name == "replicated")
        _assert_same_run(plain, tmp_path / name)


# --- examples that cannot be read ----------------------------------------------------------------

BROKEN = (3, 7)


@pytest.fixture
def harmed(tmp_path, monkeypatch):
    """Flags for ten pairs of which two cannot be read."""
    for name, path in pairs(tmp_path / "data", count=10, suffix="jpg").items():
        if name in [f"train/{i:03d}" for i in BROKEN]:
            path.write_bytes(path.read_bytes()[:-60])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ["--config.data.source=folder", f"--config.data.path={tmp_path / 'data'}"]


def _substituted(workdir):
    return {row["step"]: row["data/substituted"] for row in _lines(workdir) if "eval/l1" not in row}


@pytest.mark.slow
def test_substitutes_are_counted_over_a_stop_and_resume(tmp_path, harmed):
    """Logs at 4, 8 and 12 and a stop at 9: the line at 12 knows of step 9."""
    flags = (*harmed, "--config.data.on_error=substitute")
    parts = tmp_path / "parts"
    printed = train_to(parts, 75, *flags, at=9, signals=(signal.SIGTERM,), env=environment())
    assert "003.jpg" in printed and "007.jpg" in printed
    assert "resumed at step 9" in train_to(
        parts, 0, *flags, "--config.data.cache=host", env=environment()
    )
    wanted = {}
    for step in (4, 8, 12):
        wanted[step] = int(np.isin(order(0, 10, 4 * (step - 4), 16, True), BROKEN).sum())
    assert _substituted(parts) == wanted and len(set(wanted.values())) > 1


@pytest.mark.slow
def test_with_substitutes_it_is_the_run_that_nothing_disturbed(tmp_path, harmed):
    flags = (*harmed, "--config.data.on_error=substitute")
    whole = tmp_path / "whole"
    train_to(whole, 0, *flags, env=environment())
    assert sum(_substituted(whole).values()) > 0
    kept, parts = "--config.data.cache=device", tmp_path / "parts"
    # After a line of the log; streamed pairs have the test before.
    train_to(parts, 75, *flags, kept, at=9, signals=(signal.SIGTERM,), env=environment())
    train_to(parts, 0, *flags, kept, env=environment())
    _assert_same_run(whole, parts)


def test_without_substitutes_the_file_is_named(tmp_path, harmed, capsys):
    assert main([CONFIG, f"--workdir={tmp_path / 'run'}", *harmed]) == 2
    err = capsys.readouterr().err
    for i in BROKEN:
        assert f"error: train[{i}] {tmp_path / 'data' / 'train' / f'{i:03d}.jpg'}: " in err
    assert len(err.splitlines()) == 2 and not (tmp_path / "run").exists()


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    before = files(workdir)
    monkeypatch.setattr("p2p_jax.begin.make_train_step", None)  # nothing to compile
    assert main([CONFIG, f"--workdir={workdir}"]) == 0
    assert f"all {STEPS} steps are done" in capsys.readouterr().out
    after = files(workdir)
    # That it was started is noted in run.json.
    assert before.pop("run.json") != after.pop("run.json")
    assert before == after


@pytest.mark.slow
def test_without_the_compilation_cache_as_well(tmp_path):
    train_to(tmp_path, 75, at=5, signals=(signal.SIGTERM,))
    train_to(tmp_path, 0, env=environment(cached=False))
    _assert_same_run(finished()[0], tmp_path)


@pytest.mark.slow
def test_a_plateau_goes_on_where_it_stood(tmp_path):
    """Its count of evaluations without progress and its factor are in the checkpoint."""
    flags = (
        "--config.optim.schedule=plateau", "--config.optim.patience=1",
        "--config.train.eval_every=1", "--config.optim.gen.lr=1e-5",  # too slow for progress
    )  # fmt: skip
    (whole, _), parts = finished(*flags), tmp_path / "parts"
    train_to(parts, 75, *flags, at=9, signals=(signal.SIGTERM,))
    stood = _plateau(parts, 9)
    assert "resumed at step 9" in train_to(parts, 0, *flags)
    _assert_same_run(whole, parts)
    assert _plateau(parts, STEPS) == _plateau(whole, STEPS)
    # It had something to lose: rates had fallen.
    assert 0 < stood["scale"] < 1 and stood["best"] > 0


@pytest.mark.slow
def test_a_plateau_does_not_know_where_a_run_was_to_end(tmp_path):
    """A longer run has no evaluation at a shorter one's end, so that one does not count."""
    flags = (
        "--config.optim.schedule=plateau", "--config.optim.patience=0",
        "--config.train.eval_every=4", "--config.optim.gen.lr=1e-5",
    )  # fmt: skip
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    train_to(whole, 0, *flags)
    train_to(longer, 0, *flags, "--config.train.steps=10")
    train_to(longer, 0, *flags)
    assert _plateau(longer, STEPS) == _plateau(whole, STEPS)
    assert_same_arrays(arrays(longer, STEPS), arrays(whole, STEPS))


def _plateau(workdir, step):
    """What a checkpoint holds of the plateau."""
    found = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return found["plateau"]


@pytest.mark.slow
def test_the_second_ctrl_c_leaves_at_once(tmp_path):
    ran = start(CONFIG, f"--workdir={tmp_path}", at=9, signals=(signal.SIGINT, signal.SIGINT))
    assert ran.returncode == 130, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "9" not in checkpoints(tmp_path)  # nothing more was done
    train_to(tmp_path)
    _assert_same_run(finished()[0], tmp_path)


@pytest.mark.slow
def test_ctrl_c_from_outside(tmp_path):
    command = [sys.executable, "-m", "p2p_jax.main", CONFIG, f"--workdir={tmp_path}"]
    command += ["--config.train.steps=1000000", "--config.train.eval_every=1000000"]
    command += ["--config.train.sample_every=1000000", "--config.train.save_every=1000000"]
    running = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not any(row["split"] == "train" for row in _lines(tmp_path)):
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 75, err
    (step,) = re.findall(r"saved at step (\d+)", out)
    assert checkpoints(tmp_path)[-1] == step
