"""Evaluation: the same whatever the batch, the devices and the place, and all of it on disk."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from running import STEPS, files, finished, start

from p2p_jax import checkpoint, report
from p2p_jax.build import build
from p2p_jax.config import merge
from p2p_jax.evaluate import Evaluator
from p2p_jax.flags import saved_config

COUNT, SIZE, SHOWN = 5, 32, 3


@functools.cache
def _made(**changes):
    """(experiment, evaluator, the trained generator) for the run's config with changes."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    workdir = finished()[0]
    experiment = build(merge(saved_config(workdir), changes), lambda text: None)
    like = {"gen": checkpoint.split(experiment.abstract_state())["gen"]}
    found = checkpoint.restore(checkpoint.open_reader(workdir), like, pytest.fail)
    assert found.step == STEPS
    return experiment, Evaluator(experiment), found.items["gen"]


@functools.cache
def _result(**changes):
    _, evaluator, gen = _made(**changes)
    return evaluator(gen)


ONE = {"mesh__devices": 1, "eval__batch_size": 1}


def _rows(result):
    return np.array([[v for k, v in row.items() if k != "name"] for row in result.examples])


def _folder():
    return finished()[0] / "eval" / "val" / str(STEPS)


def _metrics():
    return json.loads((_folder() / "metrics.json").read_text())


def _picture(kind, name):
    return np.asarray(Image.open(_folder() / kind / f"{name}.png"))


# --- what it depends on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "batch"),
    [(1, 3), (4, 8), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(2, 2), (1, 8), (4, 4)])],
)
def test_neither_batches_nor_devices_matter(devices, batch):
    other = _result(mesh__devices=devices, eval__batch_size=batch)
    assert [row["name"] for row in other.examples] == [r["name"] for r in _result(**ONE).examples]
    np.testing.assert_allclose(_rows(other), _rows(_result(**ONE)), rtol=1e-6, atol=1e-6)


def test_nor_does_the_place_in_the_split():
    experiment, evaluator, gen = _made(**ONE)
    whole = {images.name: images.fake for images, _ in evaluator._translate(
        gen, experiment.eval_source)}  # fmt: skip
    shown = {images.name: images.fake for images, _ in evaluator._translate(gen, evaluator._shown)}
    assert list(shown) == [list(whole)[i] for i in (0, 2, 4)]
    assert all((whole[name] == shown[name]).all() for name in shown)


def test_dropout_is_the_noise_of_the_seed_and_can_be_turned_off():
    assert (_rows(_result(**ONE)) != _rows(_result(**ONE, seed=1))).any()
    off, other = (_result(**ONE, eval__dropout=False, seed=seed) for seed in (0, 1))
    assert (_rows(off) == _rows(other)).all()
    assert (_rows(off) != _rows(_result(**ONE))).any()


def test_the_averaged_weights():
    _, evaluator, gen = _made(**ONE)
    by_hand = evaluator({**gen, "params": gen["ema"]})
    assert _rows(_result(**ONE, eval__ema=True)).tolist() == _rows(by_hand).tolist()
    assert (_rows(by_hand) != _rows(_result(**ONE))).any()


def test_running_statistics_without_dropout_are_a_plain_network():
    changes = {"eval__dropout": False, "eval__norm_stats": "running"}
    experiment, _, gen = _made(**ONE, **changes)
    result = _result(**ONE, **changes)
    apply = jax.jit(lambda x: experiment.gan.generator.apply(
        {"params": gen["params"], "stats": gen["stats"]}, x, None, True))  # fmt: skip
    for i, row in enumerate(result.examples):
        pair = experiment.eval_source[i]
        fake = np.asarray(apply(pair.source[None].astype(np.float32) / 127.5 - 1))[0]
        fake = np.clip(np.round((fake + 1) * 127.5), 0, 255)
        l1 = np.abs(fake - pair.target.astype(np.float64)).mean() / 255
        assert row["eval/l1"] == pytest.approx(l1, abs=1e-5)  # a rare rounding of one pixel
    assert (_rows(result) != _rows(_result(**ONE, eval__dropout=False))).any()


def test_fewer_metrics_and_examples():
    result = _result(**ONE, eval__metrics=("l1",), eval__examples=2)
    assert result.means.keys() == {"eval/l1"}
    whole = [{k: row[k] for k in ("name", "eval/l1")} for row in _result(**ONE).examples]
    assert result.examples == whole[:2]


def test_the_baseline_is_the_median_image():
    experiment, evaluator, _ = _made(**ONE)
    _result(**ONE)
    targets = np.stack([experiment.eval_source[i].target for i in range(COUNT)]).astype(np.float64)
    constant = np.median(targets, axis=0)
    l1 = np.abs(targets - constant).mean() / 255
    error = np.square((targets - constant) / 255).mean((1, 2, 3))
    assert evaluator.baseline["eval/l1"] == pytest.approx(l1, rel=1e-5)
    assert evaluator.baseline["eval/psnr"] == pytest.approx(
        np.mean(-10 * np.log10(error)), rel=1e-5
    )
    assert _metrics()["baseline"] == pytest.approx(evaluator.baseline, rel=1e-5)


# --- what it leaves ------------------------------------------------------------------------------


def test_the_means_are_those_of_the_examples():
    metrics = _metrics()
    rows = metrics["per_example"]
    assert len(rows) == metrics["examples"] == COUNT and metrics["step"] == STEPS
    for name in ("eval/l1", "eval/psnr", "eval/ssim"):
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-12)
    assert metrics["better"] == {"eval/l1": "min", "eval/psnr": "max", "eval/ssim": "max"}
    switches = {name: metrics[name] for name in ("split", "norm_stats", "dropout", "ema")}
    assert switches == {"split": "val", "norm_stats": "batch", "dropout": True, "ema": False}


def test_every_picture_lies_under_its_own_name():
    source = _made(**ONE)[0].eval_source
    rows = {row["name"]: row for row in _metrics()["per_example"]}
    assert list(rows) == list(source.names)
    for kind in ("source", "images", "target"):
        assert {p.stem for p in (_folder() / kind).iterdir()} == set(rows)
    for i, (name, row) in enumerate(rows.items()):
        assert (_picture("source", name) == source[i].source).all()
        assert (_picture("target", name) == source[i].target).all()
        # The figures are those of the very pictures.
        fake, target = (_picture(k, name).astype(np.float64) for k in ("images", "target"))
        assert row["eval/l1"] == pytest.approx(np.abs(fake - target).mean() / 255, rel=1e-5)
        psnr = -10 * np.log10(np.square((fake - target) / 255).mean())
        assert row["eval/psnr"] == pytest.approx(psnr, rel=1e-5)
    page = (_folder() / "index.html").read_text()
    assert all(f"images/{name}.png" in page for name in rows)


def test_the_log_has_the_same_figures():
    lines = [row for row in report.read(finished()[0]) if row["split"] == "val"]
    assert [row["step"] for row in lines] == [0, 7, STEPS]
    metrics = _metrics()
    for name in ("eval/l1", "eval/psnr", "eval/ssim"):
        assert lines[-1][name] == metrics[name]
    assert len({row["eval/l1"] for row in lines}) == 3


def test_the_grid_is_a_row_of_three_for_each_fixed_pair():
    experiment, evaluator, gen = _made(**ONE)
    grid = evaluator.grid(gen)
    side = 3 * SIZE + 2 * 4
    assert grid.shape == (SHOWN * SIZE + (SHOWN - 1) * 4, side, 3) and grid.dtype == np.uint8
    for row, i in enumerate((0, 2, 4)):
        top = row * (SIZE + 4)
        assert (grid[top : top + SIZE, :SIZE] == experiment.eval_source[i].source).all()
        assert (grid[top : top + SIZE, -SIZE:] == experiment.eval_source[i].target).all()
    with Image.open(finished()[0] / "samples" / f"{STEPS}.png") as saved:
        assert saved.size == grid.shape[1::-1]


@pytest.mark.slow
def test_evaluating_afterwards_gives_the_same_to_the_bit(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    wanted = files(workdir / "eval")
    shutil.rmtree(workdir / "eval")
    ran = start("--mode=eval", f"--workdir={workdir}")
    assert ran.returncode == 0, ran.stderr
    assert f"step {STEPS}" in ran.stdout
    assert files(workdir / "eval") == wanted
