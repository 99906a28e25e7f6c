"""Runs that are trained together are those that they would have been alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cpu_gan, fresh, hyper
from running import CONFIG, ROOT, STEPS, arrays, checkpoints, environment, pairs, start

from p2p_jax import alike, report
from p2p_jax.config import base, merge
from p2p_jax.members import parse
from p2p_jax.mesh import make_mesh
from p2p_jax.step import make_train_step
from p2p_jax.words import ConfigError

ONE = "--config.mesh.devices=1"
SEEDS = {f"seed{s}": {"seed": s} for s in (1, 2)}
RATE = {"optim.gen.lr": 1e-4, "optim.disc.lr": 5e-5}
MIXED = {
    "rate": {"seed": 1, "optim.gen.lr": 1e-4, "optim.disc.lr": 5e-5},
    "weight": {"loss.l1": 3.0, "optim.schedule": "linear", "optim.decay_from": 0.1},
}
FIGURES = ("loss/", "eval/")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def members(folder: Path, values: dict, *more: str) -> list[str]:
    told = json.dumps({str(folder / name): each for name, each in values.items()})
    return [sys.executable, "-m", "p2p_jax.members", CONFIG, f"--members={told}", ONE, *more]


def ran(folder: Path, values: dict, *more: str, code: int = 0, **env: str) -> str:
    found = subprocess.run(
        members(folder, values, *more),
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout + found.stderr


def figures(workdir: Path) -> list[dict]:
    """The log's steps, losses and evaluations."""
    return [
        {k: v for k, v in row.items() if k in ("step", "split") or k.startswith(FIGURES)}
        for row in report.read(workdir)
    ]


def assert_close_runs(one: Path, other: Path, tolerance: float) -> None:
    mine, wanted = figures(one), figures(other)
    assert [row.keys() for row in mine] == [row.keys() for row in wanted]
    for row, there in zip(mine, wanted, strict=True):
        for key, value in there.items():
            if isinstance(value, str):
                assert row[key] == value
            else:
                assert row[key] == pytest.approx(value, rel=tolerance), (key, row["step"])
    step = wanted[-1]["step"]
    mine, wanted = arrays(one, step), arrays(other, step)
    assert mine.keys() == wanted.keys()
    for path, array in wanted.items():
        assert mine[path].shape == array.shape and mine[path].dtype == array.dtype, path


# --- the step ------------------------------------------------------------------------------------


def test_seeds_and_rates_together_are_those_alone_over_twenty_steps(x64):
    gan, mesh, steps = cpu_gan("float64"), make_mesh(1), 20
    alone = make_train_step(gan, mesh, steps)
    together = make_train_step(gan, mesh, steps, members=4)
    count, rng = np.int32(steps), np.random.default_rng(0)
    for seeds, rates in (([0, 1, 2, 3], [2e-4] * 4), ([0] * 4, [1e-5, 1e-4, 2e-4, 2e-3])):
        drawn = rng.integers(0, 256, (4, 2, steps, 4, 20, 20, 3), np.uint8)
        batches = [(source, target, None) for source, target in drawn]
        given = [hyper(steps, gan, gen_lr=rate, disc_lr=rate) for rate in rates]
        found = [
            alone(jax.tree.map(jnp.copy, fresh(gan, seed)), batch, each, count)[1]
            for seed, batch, each in zip(seeds, batches, given, strict=True)
        ]
        states = stacked([fresh(gan, seed) for seed in seeds])
        batch = (np.stack(drawn[:, 0]), np.stack(drawn[:, 1]), None)
        state, losses = together(states, batch, np.stack(given), count)
        assert state.step.tolist() == [steps] * 4
        np.testing.assert_allclose(np.stack(losses), np.stack(found), rtol=1e-8)
        assert np.ptp(np.stack(losses)[:, -1], axis=0).min() > 1e-4  # they do differ


def test_members_are_refused_on_several_devices():
    with pytest.raises(ValueError, match="on one device, not on 2"):
        make_train_step(cpu_gan("float32"), make_mesh(2), 1, members=2)


# --- who may be together -------------------------------------------------------------------------


def test_all_that_makes_another_program_is_told_at_once():
    one = base()
    other = merge(one, {"train.batch_size": 2, "loss.l1": 0.0, "optim.gen.b1": 0.9, "seed": 3})
    keys = {text.split(":")[0] for text in alike.problems([one, other])}
    assert keys == {"train.batch_size", "loss.l1", "optim.gen.b1"}
    alone = merge(one, {"train.early_stop": 2, "train.on_nan": "rollback", "mesh.spatial": 2})
    keys = {text.split(":")[0] for text in alike.problems([alone, alone])}
    assert keys == {"train.early_stop", "train.on_nan", "mesh.spatial"}
    other = merge(one, {"seed": 1, "loss.disc": 0.0, "optim.schedule": "cosine", "loss.l1": 1.0})
    assert alike.problems([one, other]) == []


@pytest.mark.parametrize(
    "words, keys",
    [
        ((), ("--config", "--members")),
        ((CONFIG, "--members={}"), ("--members",)),
        ((CONFIG, "--members=[1"), ("--members",)),
        ((CONFIG, '--members={"a": {"sede": 1}, "b": {"optim.gen.lr": "x"}}', ONE), ("seed", "lr")),
        ((CONFIG, '--members={"a": {}, "./a": {}}', ONE), ("./a",)),
        ((CONFIG, '--members={"a": {}, "b": {"seed": 1}}'), ("mesh.devices",)),
        ((CONFIG, '--members={"a": {}, "b": {"data.flip": false}}', ONE), ("data.flip",)),
    ],
)
def test_mistakes_are_told(words, keys):
    with pytest.raises(ConfigError) as raised:
        parse(words)
    for key in keys:
        assert key in str(raised.value)


# --- whole runs ----------------------------------------------------------------------------------

F64 = ("--config.train.precision=float64", "--config.train.steps=20", "--config.train.log_every=1")


@pytest.mark.slow
def test_members_are_the_runs_that_they_would_have_been_alone(tmp_path):
    text = ran(tmp_path, MIXED, *F64)
    assert "compiled for 2 members" in text
    for name, own in MIXED.items():
        set_ = [f"--config.{key}={value}" for key, value in own.items()]
        alone = start(CONFIG, f"--workdir={tmp_path}/alone/{name}", ONE, *F64, *set_)
        assert alone.returncode == 0, alone.stderr
        assert_close_runs(tmp_path / name, tmp_path / "alone" / name, 1e-8)
        for kind in ("samples/18.png", "eval/val/20/index.html"):
            assert (tmp_path / name / kind).exists(), kind
    # Each can go on as a run by itself.
    longer = start(f"--workdir={tmp_path}/rate", "--config.train.steps=22")
    assert longer.returncode == 0 and "resumed at step 20" in longer.stdout, longer.stderr


@pytest.mark.slow
def test_members_that_stand_at_different_steps_meet_again(tmp_path):
    both, exact = SEEDS | {"rate": RATE}, "--config.train.precision=float64"
    ran(tmp_path / "whole", both, exact)
    # As a kill between two saves leaves them: one has 5 steps, two have none.
    ran(tmp_path / "parts", {"rate": RATE}, exact, "--config.train.steps=5")
    text = ran(tmp_path / "parts", both, exact)
    assert "resumed at step 5" in text
    sizes = [line.split()[2] for line in text.splitlines() if line.startswith("compiled for")]
    assert sizes == ["2", "3"]
    for name in both:
        # Shorter runs have had lines at their ends besides.
        mine = {(r["step"], r["split"]): r for r in figures(tmp_path / "parts" / name)}
        for row in figures(tmp_path / "whole" / name):
            there = mine[row["step"], row["split"]]
            for key, value in row.items():
                same = value if isinstance(value, str) else pytest.approx(value, rel=1e-8)
                assert there[key] == same or key.startswith("loss/"), (key, row["step"])


@pytest.mark.slow
def test_a_signal_saves_all_and_they_go_on_bit_for_bit(tmp_path):
    pairs(tmp_path / "data")
    changes = {
        "data.source": "folder",
        "data.path": tmp_path / "data",
        "data.cache": "device",
        "data.max_examples": 0,
        "train.steps": 40,
        "train.save_every": 1000,
        "train.log_every": 1,
    }
    more = [f"--config.{key}={value}" for key, value in changes.items()]
    ran(tmp_path / "whole", SEEDS, *more)
    with subprocess.Popen(
        members(tmp_path / "cut", SEEDS, *more),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        text = ""
        for line in process.stdout:
            text += line
            if "step 3/40" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75, text
    stopped = {name: checkpoints(tmp_path / "cut" / name)[-1] for name in SEEDS}
    assert len({*stopped.values()}) == 1 and 3 <= int(stopped["seed1"]) < 40
    ran(tmp_path / "cut", SEEDS, *more)
    for name in SEEDS:
        one, other = tmp_path / "cut" / name, tmp_path / "whole" / name
        assert figures(one) == figures(other)
        there, wanted = arrays(one, 40), arrays(other, 40)
        assert all(there[path].tobytes() == wanted[path].tobytes() for path in wanted)


@pytest.mark.slow
def test_one_that_fails_is_told_and_the_others_are_done(tmp_path):
    values = {"good": {"seed": 1}, "bad": {"optim.gen.lr": 1e300}}
    more = ("--config.train.precision=float64", "--config.data.cache=host")
    text = ran(tmp_path, values, *more, code=3)
    assert (
        f"error: {tmp_path}/bad: a loss of step" in text and f"error: {tmp_path}/good" not in text
    )
    assert checkpoints(tmp_path / "good")[-1] == str(STEPS)
    assert not (tmp_path / "bad" / "checkpoints" / str(STEPS)).exists()
    alone = start(CONFIG, f"--workdir={tmp_path}/alone", ONE, *more, "--config.seed=1")
    assert alone.returncode == 0, alone.stderr
    assert_close_runs(tmp_path / "good", tmp_path / "alone", 1e-8)


@pytest.mark.slow
def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path):
    holder = subprocess.Popen(
        members(tmp_path, SEEDS, "--config.train.steps=100000"), env=environment(), cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "seed2" / "lock").exists() and time.monotonic() < until:
            time.sleep(0.1)
        text = ran(tmp_path, {"other": {}, **SEEDS}, "--config.train.steps=100000", code=1)
        assert "is being trained by" in text
    finally:
        holder.kill()
        holder.wait()
