"""Search spaces: what they may hold, and what is refused before a trial begins."""

from __future__ import annotations

import pytest
from running import ROOT, get_config

from p2p_jax.config import ConfigError, flatten, merge
from p2p_jax.flags import read_value
from p2p_jax.space import checked, choice, integers, load, log, setting, uniform


def problems(space: dict) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        checked(space, get_config())
    return raised.value.problems


def test_values_get_the_types_of_the_config():
    space = checked({"loss.l1": choice(0, 10), "train.batch_size": integers(4, 8)}, get_config())
    assert [type(v) for v in space["loss.l1"].values] == [float, float]
    assert [type(v) for v in space["train.batch_size"].values] == [int, int]


def test_all_that_is_wrong_is_said_at_once():
    found = problems(
        {
            "loss.ganz": choice(1.0, 2.0),
            "optim.gen.lr": log(1e-3, 1e-5),
            "optim.disc.lr": log(0.0, 1e-5),
            "train.batch_size": uniform(1, 8),
            "model.generator.name": choice("unet", 3),
            "loss.l2": 5.0,
            "loss.ssim": integers(0, 3),
            "loss.smooth_l1": choice(),
            "loss.charbonnier": choice(1.0, 1),
        }
    )
    assert len(found) == 9, found
    for key, word in (
        ("loss.ganz", "did you mean loss.gan"),
        ("optim.gen.lr", "below"),
        ("optim.disc.lr", "above 0"),
        ("train.batch_size", "integers"),
        ("model.generator.name", "3"),
        ("loss.l2", "choice"),
        ("loss.ssim", "uniform"),
        ("loss.smooth_l1", "no values"),
        ("loss.charbonnier", "twice"),
    ):
        assert any(key in each and word in each for each in found), (key, word, found)


@pytest.mark.parametrize(
    "key", ["train.steps", "train.epochs", "train.eval_every", "train.best", "eval.examples"]
)
def test_what_a_sweep_decides_is_refused(key):
    (found,) = problems({key: choice(flatten(get_config())[key])})
    assert key in found and "leave it out" in found


def test_what_validation_refuses_is_refused():
    found = problems({"model.generator.name": choice("unet", "unit"), "loss.l1": choice(-1.0, 1.0)})
    assert any("model.generator.name: 'unit'" in each for each in found), found
    assert any("loss.l1: -1.0" in each for each in found), found
    assert len(found) == 2  # not once a combination


def test_a_combination_alone_that_does_not_fit_is_named():
    space = {"model.generator.depth": choice(4, 9), "loss.l1": choice(1.0, 10.0)}
    found = problems(space)
    assert any("depth" in each for each in found), found


def test_a_grid_holds_both_ends():
    assert choice(1, 3).grid() == (1, 3)
    assert integers(1, 8, step=3).grid() == (1, 4, 7)
    assert uniform(0.0, 0.3, step=0.1).grid() == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert log(1e-5, 1e-3).grid() is None and uniform(0.0, 1.0).grid() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.gen.lr", 0.1 + 0.2),
        ("optim.gen.lr", 1e-05),
        ("train.batch_size", 8),
        ("data.flip", False),
        ("model.generator.dropout", ()),
        ("model.generator.dropout", (1,)),
        ("model.generator.name", "resnet"),
        ("eval.metrics", ("l1", "psnr")),
    ],
)
def test_a_value_written_on_a_command_line_is_read_back(key, value):
    like = flatten(get_config())[key]
    config = merge(get_config(), {key: read_value(setting(value), like)})
    assert flatten(config)[key] == value and type(flatten(config)[key]) is type(value)


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "rates.py").write_text("def get_space():\n    return 3\n")
    (tmp_path / "broken.py").write_text("def get_space():\n    return {1/0}\n")
    for name, word in (("rate.py", "did you mean"), ("rates.py", "dict"), ("broken.py", "zero")):
        with pytest.raises(ConfigError, match=word):
            load(str(tmp_path / name))


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "configs" / "sweeps").glob("*.py"))
)
def test_the_examples_are_spaces(name):
    path = ROOT / "configs" / "sweeps" / name
    assert checked(load(str(path)), merge(get_config(), {"mesh.devices": 1}))
