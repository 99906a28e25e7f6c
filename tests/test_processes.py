"""Several processes train as one does."""

from __future__ import annotations

import os
import re
import signal
import time

import numpy as np
import pytest
from running import STEPS, arrays, checkpoints, finished, start, together, train_to

from p2p_jax import report

DOUBLE = "--config.train.precision=float64"
FOUR = "--config.mesh.devices=4"


def _codes(ran, *codes):
    assert tuple(p.returncode for p in ran) == codes, "\n".join(p.stdout + p.stderr for p in ran)


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_are_one(tmp_path):
    """A signal to the second stops both at the same step; both go on; then one alone goes on."""
    flags = (DOUBLE, "--config.train.log_every=1")
    whole, printed = finished(*flags, FOUR)
    ran = together(tmp_path, *flags, at=5, signals=(signal.SIGTERM,))
    _codes(ran, 75, 75)
    assert "stopped by SIGTERM" in ran[0].stdout and "step" not in ran[1].stdout
    saved = max(int(step) for step in checkpoints(tmp_path))
    assert 5 <= saved < STEPS and f"saved at step {saved}; run again" in ran[0].stdout
    # The optimisers' averages split over both processes may come and go.
    split = "--config.train.shard_optimizer=True"
    ran = together(tmp_path, *flags, split, "--config.train.steps=10")
    _codes(ran, 0, 0)
    assert f"resumed at step {saved}" in ran[0].stdout
    # On other devices, in one process, to the end: as if it had been there all the time.
    train_to(tmp_path, 0, *flags, FOUR, "--config.train.steps=12", "--allow_config_change")
    wanted, rows = (
        [row for row in report.read(folder) if row["split"] == "train"]
        for folder in (whole, tmp_path)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in wanted] == [*range(1, 13)]
    one, two = (re.findall(r"constant image: [^)]+", text) for text in (printed, ran[0].stdout))
    assert two and set(one) == set(two)
    for row, other in zip(rows, wanted, strict=True):
        losses = [name for name in row if name.startswith("loss/")]
        assert len(losses) >= 3
        for name in losses:
            assert row[name] == pytest.approx(other[name], rel=1e-9, abs=0), (row["step"], name)
    theirs, ours = arrays(whole, STEPS), arrays(tmp_path, STEPS)
    for name, x in theirs.items():
        assert np.abs(x - ours[name]).max(initial=0) <= 1e-7 * np.abs(x).max(initial=1), name


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_others(tmp_path):
    begun = time.monotonic()
    flags = ("--config.mesh.heartbeat_timeout=10", "--config.train.save_every=1")
    ran = together(tmp_path, *flags, at=7, signals=(signal.SIGKILL,))
    assert ran[1].returncode == -signal.SIGKILL and ran[0].returncode not in (0, 75)
    assert time.monotonic() - begun < 300  # all of it, on a machine with other work
    # What was saved is there, and one process goes on with it.
    told = re.search(r"resumed at step (\d+)", train_to(tmp_path, 0))
    assert told and int(told[1]) >= 3


@pytest.mark.slow
def test_a_peer_that_does_not_come_is_told_of(tmp_path):
    flags = ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1")
    ran = start("--config=configs/quickstart.py", f"--workdir={tmp_path}", *flags,
                "--config.mesh.start_timeout=3")  # fmt: skip
    assert ran.returncode == 1
    assert "process 1 of 2 (told by flags) did not meet all others at 127.0.0.1:9" in ran.stderr
    assert not os.listdir(tmp_path)
