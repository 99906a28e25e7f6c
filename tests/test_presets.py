"""Every shipped config in every dialect: what it sets, that it fits, that it runs."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from p2p_jax.build import build
from p2p_jax.config import ConfigError, base, flatten, merge
from p2p_jax.data import official
from p2p_jax.dialects import DIALECTS, base_in
from p2p_jax.flags import config_file
from p2p_jax.main import main
from p2p_jax.mesh import make_mesh
from p2p_jax.networks import abstract_state
from p2p_jax.objectives import HYPER
from p2p_jax.step import make_train_step
from p2p_jax.validate import resolved, validate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
# Needs no files, fits any machine.
FED = {"data.source": "synthetic", "data.name": "", "mesh.devices": 1}


def preset(name, dialect):
    return config_file(f"{CONFIGS / name}.py:{dialect}")


def every_preset(quick):
    """All configs in all dialects; those that `quick` says so of are for every run."""
    return pytest.mark.parametrize(
        ("name", "dialect"),
        [
            pytest.param(name, dialect, marks=[pytest.mark.slow] * (not quick(name, dialect)))
            for name in NAMES
            for dialect in DIALECTS
        ],
    )


# --- dialects ------------------------------------------------------------------------------------

# What the implementations have, point by point, whether or not it is this project's default.
POINTS = [
    "data.resize", "loss.disc", "train.simultaneous", "optim.schedule", "optim.gen.eps",
    "model.norm_eps", "model.norm_momentum", "model.norm_scale_std",
    "model.generator.name", "model.generator.depth", "model.generator.dropout",
    "model.generator.norm_group", "model.generator.bias", "model.generator.innermost_norm",
    "model.generator.skip_activation", "model.generator.slope",
]  # fmt: skip
TABLE = {
    "paper": ["bilinear", 0.5, False, "constant", 1e-8, 1e-5, 0.9, 0.02,
              "unet", 8, (1, 2, 3), 1, "auto", "auto", "auto", 0.2],
    "junyanz": ["bicubic", 0.5, False, "linear", 1e-8, 1e-5, 0.9, 0.02,
                "unet", 8, (2, 3, 4), 0, "auto", "auto", "auto", 0.2],
    "affinelayer": ["area", 1.0, False, "constant", 1e-8, 1e-5, 0.9, 0.02,
                    "unet", 8, (1, 2, 3), 0, "all", "yes", "auto", 0.2],
    "tf_tutorial": ["nearest", 1.0, True, "constant", 1e-7, 1e-3, 0.99, 0.0,
                    "unet", 8, (1, 2, 3), 0, "last", "yes", "leaky", 0.3],
    "seed": ["bilinear", 0.5, False, "constant", 1e-8, 1e-5, 0.9, 0.02,
             "unet_upsample", 7, (1, 2, 3), 1, "auto", "auto", "auto", 0.2],
}  # fmt: skip


def test_the_table_has_every_dialect():
    assert TABLE.keys() == DIALECTS.keys()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_values_of_a_dialect(dialect):
    flat = flatten(base_in(dialect))
    assert [flat[point] for point in POINTS] == TABLE[dialect]
    # Both networks and both optimisers alike.
    for key in ("norm_group", "bias", "slope"):
        assert flat[f"model.discriminator.{key}"] == flat[f"model.generator.{key}"]
    assert flat["optim.disc.eps"] == flat["optim.gen.eps"]
    # The points above are all there are.
    told = {*POINTS, "optim.by_epoch", "optim.disc.eps"}
    told |= {f"model.discriminator.{key}" for key in ("norm_group", "bias", "slope")}
    defaults = flatten(base())
    assert {key for key in flat if flat[key] != defaults[key]} <= told


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_says_only_what_is_different(dialect):
    defaults = flatten(base())
    restated = {"optim.decay_from"}  # the default is junyanz's
    for key, value in DIALECTS[dialect].items():
        assert key in defaults
        assert type(value) is type(defaults[key])
        assert (value != defaults[key]) is (key not in restated), key


def test_junyanz_has_half_of_its_epochs_at_full_rate():
    changes = FED | {"data.max_examples": 4, "train.epochs": 8.0, "train.batch_size": 2}
    e = build(merge(base_in("junyanz"), changes), lambda _: None)
    rates = e.hyper(0, e.train.steps)[:, HYPER.index("gen_lr")] / 2e-4
    epochs = [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert np.allclose(rates, np.repeat(epochs, 2), rtol=1e-6)


def test_an_unknown_dialect_names_the_choices():
    with pytest.raises(ConfigError) as raised:
        base_in("junyans")
    assert raised.value.problems == [
        "dialect 'junyans' is not one of paper, junyanz, affinelayer, tf_tutorial, seed; "
        "did you mean 'junyanz'?"
    ]
    with pytest.raises(ConfigError) as raised:
        base_in("x")
    assert str(raised.value).endswith("tf_tutorial, seed")


def test_an_unknown_dialect_on_the_command_line(capsys, tmp_path):
    assert main([f"--config={CONFIGS / 'facades.py'}:jnyanz", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert "dialect 'jnyanz' is not one of paper, " in err and "did you mean 'junyanz'?" in err
    assert not (tmp_path / "run").exists()


# --- configs -------------------------------------------------------------------------------------

# Epochs, batch, jitter, mirroring, direction (Isola et al. 2017, section 6.2, and their scripts).
RECIPES = {
    "facades": (200, 1, True, True, "BtoA"),
    "cityscapes": (200, 1, True, True, "BtoA"),
    "maps": (200, 1, True, True, "AtoB"),
    "edges2shoes": (15, 4, False, False, "AtoB"),
    "edges2handbags": (15, 4, False, False, "AtoB"),
    "night2day": (17, 4, True, True, "BtoA"),
    "colorization": (6, 4, False, True, "AtoB"),
    "inpainting": (25, 4, False, True, "AtoB"),
    "folder": (200, 1, True, True, "AtoB"),
}
SETS = ("facades", "cityscapes", "maps", "edges2shoes", "edges2handbags", "night2day")
# Where other pairs come from, and what they are for.
OTHERS = {
    "colorization": ("colorization", "colorize"),
    "inpainting": ("inpaint", "inpaint"),
    "folder": ("folder", "translate"),
}


def test_there_is_a_recipe_for_every_config():
    assert {*RECIPES, "quickstart"} == set(NAMES)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, dialect):
    c = preset(name, dialect)
    epochs, batch, jitter, flip, direction = RECIPES[name]
    if name in ("facades", "folder") and dialect == "tf_tutorial":
        epochs = 150
    assert (c.train.epochs, c.train.steps) == (epochs, 0)
    assert c.train.batch_size == batch
    assert c.data.crop_size == (256, 256)
    assert c.data.load_size == ((286, 286) if jitter else (256, 256))
    assert c.data.flip is flip
    assert c.data.direction == direction
    source, task = OTHERS.get(name, ("tfds", "translate"))
    assert c.data.source == source and resolved(c).data.task == task
    assert c.data.name == (f"pix2pix/{name}" if name in SETS else "")
    # Statistics of the whole batch wherever it has more than one image.
    assert batch == 1 or c.model.generator.norm_group == c.model.discriminator.norm_group == 0
    # Nothing that a dialect settles is unsettled, and no other key of the networks or losses.
    flat, wanted = flatten(c), flatten(base_in(dialect))
    for key in wanted:
        if key.startswith(("model.", "loss.", "optim.")) and not key.endswith(".norm_group"):
            assert flat[key] == wanted[key], key


@pytest.mark.parametrize("dialect", DIALECTS)
def test_quickstart_is_small_in_every_dialect(dialect):
    c = preset("quickstart", dialect)
    assert c.model.generator.depth == 5 and c.model.generator.dropout == (1,)
    assert c.data.crop_size == (64, 64) and c.data.source == "synthetic"
    assert (
        c.loss.disc == base_in(dialect).loss.disc and c.data.resize == base_in(dialect).data.resize
    )


@pytest.mark.parametrize("name", NAMES)
def test_paper_is_the_dialect_by_default(name):
    assert flatten(config_file(f"{CONFIGS / name}.py")) == flatten(preset(name, "paper"))


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_a_config_gives_its_command(name):
    text = (CONFIGS / f"{name}.py").read_text()
    command = f"python -m p2p_jax.main --config=configs/{name}.py"
    assert command in text
    if name in SETS:  # nothing more is needed
        assert f"{command}\n" in text and "`train`" in text
        assert "`val`" in text or "`test`" in text
        assert f"--config.data.path=FILE_OR_FOLDER` takes\n{name}.tar.gz" in text.replace(
            f" {name}.tar.gz", f"\n{name}.tar.gz"
        )
    elif name != "quickstart":
        assert re.search(rf"{re.escape(command)}.* --config.data.path=(FOLDER|PATH)\n", text)
        assert "`train/`" in text and "`val/`" in text


def test_official_sets_are_those_that_there_are_configs_of():
    assert set(official.SETS) == set(SETS)


# --- the step, at the sizes that users have ------------------------------------------------------


@functools.cache
def lowered_step(gan, rows, batch, size):
    """The training step on one device, traced and lowered: what it takes and gives."""
    mesh = make_mesh(1)
    state = abstract_state(gan, mesh)
    image = jax.ShapeDtypeStruct((rows, batch, *size, 3), np.uint8)
    hyper = jax.ShapeDtypeStruct((rows, len(HYPER)), np.float32)
    count = jax.ShapeDtypeStruct((), np.int32)
    return state, make_train_step(gan, mesh, rows).lower(state, (image, image), hyper, count)


@every_preset(quick=lambda name, dialect: name == "facades" and dialect in ("paper", "junyanz"))
def test_the_step_at_full_size(name, dialect):
    config = merge(preset(name, dialect), FED)
    assert validate(config) == []
    e = build(config, lambda _: None)
    rows = e.train.steps_per_dispatch
    old, lowered = lowered_step(e.gan, rows, e.train.batch_size, e.train_frames.shape)
    new, losses = lowered.out_info
    assert losses.shape == (rows, len(e.gan.metric_names))
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
