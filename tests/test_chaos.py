"""A run that is killed again and again, by any signal and at any moment, is the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from running import CONFIG, ROOT, arrays, assert_same_arrays, environment, files, finished, start

from p2p_jax import report

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
KILLS = int(os.environ.get("P2P_JAX_KILLS", "20"))
STEPS = 3 * KILLS  # enough for all kills, as few get no further than the one before
# Always saving, or about to: most moments are in the middle of something.
FLAGS = (
    f"--config.train.steps={STEPS}", "--config.train.save_every=1", "--config.train.log_every=1",
    "--config.train.steps_per_dispatch=3", "--config.train.eval_every=7",
    "--config.train.sample_every=9",
)  # fmt: skip
UNTOUCHED = ("images_per_sec", "data_wait_frac")


def _lines(workdir):
    return [
        {k: v for k, v in row.items() if k not in UNTOUCHED and not k.startswith("seconds/")}
        for row in report.read(workdir)
    ]


def _disturbed(workdir, draw):
    """Starts the run and kills it; gives the signal, or None where it was done before, and code."""
    number = draw.choice(SIGNALS)
    # One in four anywhere from the first import on, the others while it trains.
    early = draw.random() < 0.25
    delay = draw.uniform(0, 5) if early else draw.uniform(0, 1.5)
    running = subprocess.Popen(
        [sys.executable, "-m", "p2p_jax.main", CONFIG, f"--workdir={workdir}", *FLAGS],
        env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    try:
        text = ""
        while not early and "compiled in" not in text:
            line = running.stdout.readline()
            if not line:
                break
            text += line
        time.sleep(delay)
        done = running.poll() is not None
        running.send_signal(number)
        text += running.communicate(timeout=120)[0]
    finally:
        running.kill()
    return None if done else number, running.returncode, text


@pytest.mark.slow
def test_any_signal_at_any_moment_changes_nothing(tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    draw, shared = random.Random(seed), set(os.listdir("/dev/shm"))
    kills, early, text = 0, 0, f"seed {seed}\n"
    while kills < KILLS:
        number, code, printed = _disturbed(tmp_path, draw)
        text += f"{kills}: {number!r} -> {code}\n{printed}\n"
        if number is None or code == 0:
            assert code == 0, text  # it was done before; then the run was too short
            break
        kills += 1
        early += "compiled in" not in printed
        assert code in (75, 130, -number), text
        assert code != 130 or number == signal.SIGINT, text
    print(text)
    last = start(CONFIG, f"--workdir={tmp_path}", *FLAGS)
    assert last.returncode == 0, text + last.stdout + last.stderr
    assert kills == KILLS and early < kills, text
    whole, _ = finished(*FLAGS)
    assert_same_arrays(arrays(whole, STEPS), arrays(tmp_path, STEPS))
    assert _lines(tmp_path) == _lines(whole), text
    steps = [row["step"] for row in report.read(tmp_path) if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    for folder in ("samples", "eval"):
        assert files(whole / folder) == files(tmp_path / folder)
    # Nothing is left behind.
    there = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert there == sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    assert set(os.listdir("/dev/shm")) <= shared
