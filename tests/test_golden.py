"""Runs of older versions: their checkpoints load, and training goes on from them.

`golden/COMMIT.tar.xz` is the folder of a run that the version of that commit did with
`golden/tiny.py`, without pictures and without what tells of the machine.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from running import arrays, checkpoints, environment, start

from p2p_jax import checkpoint, report
from p2p_jax.config import base, flatten, merge
from p2p_jax.mesh import make_mesh
from p2p_jax.networks import abstract_state, make_gan
from p2p_jax.older import modern

# The first version that trained, and the first with other networks than the paper's.
VERSIONS = ("d53da4c", "5703a5e")
GOLDEN = Path(__file__).parent / "golden"
ONE_DEVICE = {"XLA_FLAGS": "--xla_backend_optimization_level=1"}


@pytest.fixture(params=VERSIONS)
def workdir(request, tmp_path):
    """A copy of such a run."""
    with tarfile.open(GOLDEN / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def _config(workdir):
    saved = json.loads((workdir / "config.json").read_text())
    flat = {}

    def walk(values, prefix):
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(saved, "")
    return merge(base(), modern(flat))


def test_the_checkpoints_load(workdir):
    gan = make_gan(_config(workdir))
    like = checkpoint.split(abstract_state(gan, make_mesh(1)))
    manager = checkpoint.open_reader(workdir)
    found = checkpoint.restore(manager, like, pytest.fail)
    assert found.step == 4
    saved = json.loads((workdir / "checkpoints" / "4" / "meta" / "metadata").read_text())
    for name in ("gen", "train"):  # which `restore` has compared as well
        assert checkpoint.fingerprint(found.items[name]) == saved["fingerprints"][name]
    best = checkpoint.best_of(manager, found.meta, "eval/l1", "min")
    assert best == {"metric": "eval/l1", "value": saved["best"], "step": 4}
    earlier = checkpoint.restore(manager, like, pytest.fail, only=2)
    assert earlier.step == 2


def test_keys_that_are_no_more():
    old = {"model.generator.name": "unet", "seed": 1}
    wanted = {"model.generator.name": "unet", "seed": 1, "data.task": "translate"}
    assert modern(old | {"model.generator.skips": True}) == modern(old) == wanted
    other = modern(old | {"model.generator.skips": False, "data.task": "colorize"})
    assert other["model.generator.name"] == "encoder_decoder" and other["data.task"] == "colorize"
    assert not modern(wanted).keys() - flatten(base()).keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "workdir",
    [
        "d53da4c",
        "5703a5e",
    ],
    indirect=True,
)
def test_it_evaluates_as_it_did_and_goes_on(workdir):
    before = report.read(workdir)
    (then,) = [row for row in before if row["step"] == 4 and row["split"] == "val"]
    env = environment(**ONE_DEVICE)
    ran = start("--mode=eval", f"--workdir={workdir}", env=env)
    assert ran.returncode == 0, ran.stderr
    assert "restored the checkpoint of step 4" in ran.stdout
    now = json.loads((workdir / "eval" / "val" / "4" / "metrics.json").read_text())
    for name in ("eval/l1", "eval/psnr", "eval/ssim"):
        # A pixel that rounds the other way is 1e-6 of the L1.
        assert now[name] == pytest.approx(then[name], rel=1e-4), name

    config = f"--config={GOLDEN / 'tiny.py'}"
    ran = start(config, f"--workdir={workdir}", "--config.train.steps=6", env=env)
    assert ran.returncode == 0, ran.stderr
    assert "resumed at step 4 of 6" in ran.stdout
    assert report.read(workdir)[: len(before)] == before
    assert checkpoints(workdir) == ["4", "6"]
    assert arrays(workdir, 6)["train/step"] == 6
    assert arrays(workdir, 6).keys() == arrays(workdir, 4).keys()
