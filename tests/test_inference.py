"""A generator from its checkpoint alone: whichever weights were asked for, on any devices."""

from __future__ import annotations

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from trained import config, run

from p2p_jax import checkpoint, mesh
from p2p_jax.config import ConfigError
from p2p_jax.data import SOURCES, Form
from p2p_jax.inference import at, forms, makes_sources, restore
from p2p_jax.networks import make_gan

GOLDEN = Path(__file__).parent / "golden"


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(one, other):
    return all((a == b).all() for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.fixture
def no_data(monkeypatch):
    def refuse(*_):
        pytest.fail("data was opened")

    monkeypatch.setitem(
        SOURCES, "synthetic", SOURCES["synthetic"]._replace(check=refuse, open=refuse)
    )


@pytest.mark.usefixtures("no_data")
def test_the_run_of_an_older_version(tmp_path):
    with tarfile.open(GOLDEN / "5703a5e.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    found = restore(tmp_path, warn=pytest.fail)
    assert found.step == 4 and not found.running and not found.averaged
    assert found.source == found.target == Form(3)
    averaged = restore(tmp_path, ema=True, running=True, step=2, warn=pytest.fail)
    assert averaged.step == 2 and averaged.running and averaged.averaged
    manager = checkpoint.open_reader(tmp_path)
    shapes = {k: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), v)
              for k, v in (("params", found.params), ("stats", found.stats))}  # fmt: skip
    like = {"gen": {**shapes, "ema": shapes["params"]}}
    for got, step, key in ((found, 4, "params"), (averaged, 2, "ema")):
        gen = checkpoint.restore(manager, like, pytest.fail, only=step).items["gen"]
        assert same(got.params, gen[key]) and same(got.stats, gen["stats"])
    assert not same(found.params, averaged.params)
    with pytest.raises(ConfigError, match=r"no checkpoint of step 3; there are 2, 4"):
        restore(tmp_path, step=3)


def test_what_a_run_does_not_have_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"keeps no averaged weights: its train.ema_decay is 0"):
        restore(run(), ema=True)
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        restore(tmp_path)
    with pytest.raises(ConfigError, match=r"no such|is not known"):
        at("ftp://somewhere/run")
    assert at(str(tmp_path)) == tmp_path


def test_the_generator_stands_alone():
    found = restore(
        run(model__generator__norm_group=0, mesh__spatial=2, eval__norm_stats="running"),
        grid=mesh.make_mesh(2),
    )
    assert found.running
    style = found.gan.generator.style
    assert style.norm_group == 1 and style.spatial is None
    kernel = jax.tree.leaves(found.params)[0]
    assert len(kernel.sharding.device_set) == 2


def test_forms_are_those_of_the_newest_start():
    target = {"channels": 3, "dtype": "uint16", "suffix": ".png"}
    source = {"channels": 5, "dtype": "float32", "suffix": ".npy"}
    found = restore(run(source, target, data__source_range=(-2.0, 4.0), data__channels=(5, 3)))
    assert found.source == Form(**source) and found.target == Form(**target)
    assert found.gan.values[0] == ("float32", -2.0, 4.0)
    assert found.gan.values[1] == ("uint16", 0.0, 65535.0)


@pytest.mark.parametrize("task,channels,given", [
    ("colorize", (1, 2), 3), ("grey", (1, 3), 3), ("inpaint", (1, 1), 1), ("inpaint", (4, 4), 4),
])  # fmt: skip
def test_tasks_that_make_sources_take_targets(task, channels, given, tmp_path):
    chosen = config(data__task=task, data__channels=channels)
    gan = make_gan(chosen)
    assert makes_sources(gan)
    assert [form.channels for form in forms(chosen, gan, tmp_path)] == [0, given]


def test_other_tasks_take_sources():
    assert not makes_sources(make_gan(config()))
