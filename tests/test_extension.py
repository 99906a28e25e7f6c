"""What it takes to add a part: a function, and a line in a dict; nothing else knows of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from running import ROOT, environment

# Stands for the function and the line that would be written into the files themselves, which are
# read before anything else.
_ADDED = """
import sys
import flax.linen as nn
import jax.numpy as jnp

from p2p_jax import losses, models
from p2p_jax.models.layers import Conv

class Toy(nn.Module):
    channels: int
    style: object
    size_step = 2

    @nn.compact
    def __call__(self, x, keys=None, running=False):
        x = nn.relu(Conv(4, "down", True, self.style)(x))
        return jnp.tanh(Conv(self.channels, "up", True, self.style)(x))

def toy(options, style, channels):
    return Toy(channels, style)

def quartic(fake, target):
    return ((fake - target) ** 4).mean()

models.GENERATORS["toy"] = toy
losses.RECONSTRUCTION["quartic"] = quartic

from p2p_jax.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_toy_generator_and_a_toy_loss_take_a_function_and_a_line_each(tmp_path):
    def run(*args):
        command = [sys.executable, "-c", _ADDED, f"--workdir={tmp_path / 'run'}", *args]
        return subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )

    flags = [
        "--config=tests/running.py", "--config.model.generator.name=toy",
        "--config.loss.quartic=3", "--config.loss.l1=0", "--config.train.steps=2",
        "--config.eval.examples=2", "--config.mesh.devices=1", "--config.data.crop_size=34,34",
    ]  # fmt: skip
    ran = run(*flags)
    assert ran.returncode == 0, ran.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (train,) = (row for row in rows if row["split"] == "train")
    assert train["loss/gen_quartic"] > 0 and "loss/gen_l1" not in train
    assert "toy, " in ran.stdout
    # It goes on, and is evaluated, like any other.
    assert run(*flags, "--config.train.steps=3").returncode == 0
    assert run("--mode=eval").returncode == 0
    assert (tmp_path / "run" / "eval" / "val" / "3" / "metrics.json").exists()
    # Wrong sizes are refused by what it says of itself.
    ran = run(*flags, "--config.data.crop_size=33,34")
    assert ran.returncode == 2 and "multiples of 2" in ran.stderr
