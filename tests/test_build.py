"""From a config to an experiment, and every shipped config for two steps."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from p2p_jax import summary
from p2p_jax.build import build
from p2p_jax.config import base, merge
from p2p_jax.data import DataError
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.models import MultiScale
from p2p_jax.models.layers import REMAT
from p2p_jax.objectives import HYPER
from p2p_jax.tasks import TASKS, TaskOptions
from p2p_jax.validate import validate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = {
    "data.source": "synthetic",
    "data.load_size": (36, 36),
    "data.crop_size": (32, 32),
    "data.max_examples": 6,
    "model.generator.depth": 2,
    "model.generator.base_features": 4,
    "model.generator.dropout": (1,),
    "model.discriminator.layers": 1,
    "model.discriminator.base_features": 4,
    "mesh.devices": 2,
    "train.batch_size": 4,
    "train.steps": 10,
}


def silent(message):
    del message


def columns(table):
    """The columns of a table of rates and weights, by their names."""
    return dict(zip(HYPER, table.T, strict=True))


def experiment(**changes):
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    config = merge(base(), values)
    assert validate(config) == []
    return build(config, silent)


# --- lengths and schedules -----------------------------------------------------------------------


def test_columns_of_the_schedule():
    e = experiment(
        optim__gen__lr=1e-3, optim__disc__lr=3e-3, loss__disc=0.25, loss__gan=2.0, loss__l1=50.0,
        loss__l2=4.0, loss__gradient_penalty=7.0, loss__feature_matching=9.0,
        loss__smooth_l1=3.0, loss__charbonnier=5.0, loss__ssim=6.0, loss__cross_entropy=0.0,
        optim__schedule="linear", optim__decay_from=0.5,
    )  # fmt: skip
    table = e.hyper(0, 12)
    assert table.shape == (12, len(HYPER)) and table.dtype == np.float32
    # Ten steps, the last five falling to what would be zero at the eleventh; then never used.
    factors = np.array([6, 6, 6, 6, 6, 5, 4, 3, 2, 1, 1, 1]) / 6
    found = columns(table)
    assert np.allclose(found.pop("gen_lr"), 1e-3 * factors, rtol=1e-6)
    assert np.allclose(found.pop("disc_lr"), 3e-3 * factors, rtol=1e-6)
    weights = dict(
        disc=0.25, gan=2.0, gradient_penalty=7.0, feature_matching=9.0, l1=50.0, l2=4.0,
        smooth_l1=3.0, charbonnier=5.0, ssim=6.0, cross_entropy=0.0,
    )  # fmt: skip
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name] == weight).all(), name
    for step in (0, 3, 9):
        assert (e.hyper(step, 3) == e.hyper(0, 12)[step : step + 3]).all()


def test_the_constant_schedule_is_the_default_and_does_not_fall():
    e = experiment()
    assert (e.hyper(0, 10) == e.hyper(0, 10)[:1]).all()
    wanted = dict.fromkeys(HYPER, 0.0) | {"gen_lr": 2e-4, "disc_lr": 2e-4, "disc": 0.5, "gan": 1.0}
    wanted |= {"l1": 100.0, "gradient_penalty": 10.0}
    found = columns(e.hyper(9, 1))
    for name, value in wanted.items():
        assert np.allclose(found[name], value), name
    assert e.plateau is None


def test_rates_grow_with_the_batch_and_warm_up():
    for scaling, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        found = columns(experiment(optim__batch_scaling=scaling).hyper(0, 3))
        assert np.allclose(found["gen_lr"], 2e-4 * factor), scaling
        assert np.allclose(found["disc_lr"], 2e-4 * factor), scaling
    found = columns(experiment(optim__warmup_steps=4).hyper(0, 6))
    assert np.allclose(found["gen_lr"], 2e-4 * np.array([1, 2, 3, 4, 4, 4]) / 4)
    assert (found["gan"] == 1).all() and (found["l1"] == 100).all()


def test_by_epoch_rates_change_where_an_epoch_begins():
    """Six pairs in batches of four: steps 0 to 9 begin in epochs 0 0 1 2 2 3 4 4 5 6."""
    e = experiment(optim__schedule="linear", optim__decay_from=0.0, optim__by_epoch=True)
    epochs = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5, 6])
    assert np.allclose(columns(e.hyper(0, 10))["gen_lr"], 2e-4 * np.minimum(1, (7 - epochs) / 8))


def test_the_plateau_watches_the_best_metric_its_own_way():
    """More is better of psnr, less of l1; and what was saved is taken up."""
    values = {"optim__schedule": "plateau", "optim__patience": 1, "optim__decay_factor": 0.5}
    for best, fine in (("psnr", (1.0, 2.0, 3.0)), ("l1", (3.0, 2.0, 1.0))):
        e = experiment(**values, train__best=best)
        assert np.allclose(columns(e.hyper(0, 10))["gen_lr"], 2e-4)
        plateau = e.plateau(None)
        for value in fine:
            plateau.update(value)
        assert plateau.scale == 1
        plateau.update(2.0)
        again = e.plateau(plateau.saved())
        assert again.scale == 1
        again.update(2.0)
        assert again.scale == 0.5


@pytest.mark.parametrize(
    "steps,epochs,wanted", [(7, 9.0, 7), (0, 2.0, 3), (0, 2.5, 4), (0, 0.1, 1)]
)
def test_steps_win_over_epochs_which_round_up(steps, epochs, wanted):
    """Six pairs in batches of four."""
    e = experiment(train__steps=steps, train__epochs=epochs)
    assert len(e.train_frames) == 6
    assert e.train.steps == wanted


def test_rates_of_a_64_bit_run_are_64_bit():
    with jax.enable_x64(True):
        e = experiment(train__precision="float64")
        assert e.gan.dtype == "float64" and e.hyper(0, 1).dtype == np.float64
        assert {x.dtype for x in jax.tree.leaves(e.abstract_state().gen.params)} == {
            np.dtype("float64")
        }


# --- what is built -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision,dtype,param_dtype,products",
    [("float32", "float32", "float32", "highest"), ("tf32", "float32", "float32", "high"),
     ("bfloat16", "bfloat16", "float32", "default"), ("float64", "float64", "float64", "highest")],
)  # fmt: skip
def test_how_the_networks_compute(precision, dtype, param_dtype, products):
    gan = experiment(train__precision=precision).gan
    for net in (gan.generator, gan.discriminator):
        policy = net.style.policy
        assert (policy.dtype, policy.param_dtype) == (dtype, param_dtype)
        assert policy.precision == products
        # On this platform.
        assert (policy.form, policy.grad) == ("products", "products")
    assert experiment(train__conv_form="plain").gan.generator.style.policy.form == "plain"


def test_options_reach_the_networks():
    e = experiment(
        model__generator__norm_group=2, model__generator__name="encoder_decoder",
        model__discriminator__norm="none",
        data__flip=False, train__ema_decay=0.5, loss__l2=1.0, loss__l1=0.0,
        train__batch_size=8, train__accumulate=2, train__remat="activations",
    )  # fmt: skip
    gan = e.gan
    assert gan.accumulate == 2 and gan.remat is REMAT["activations"]
    assert experiment().gan.accumulate == 1 and experiment().gan.remat is REMAT["none"]
    assert gan.generator.widths == (4, 8) and gan.generator.dropped == (1,)
    assert gan.generator.style.norm_group == 2 and not gan.generator.skips
    assert gan.discriminator.style.norm == "none" and gan.discriminator.layers == 1
    assert experiment().gan.generator.skips
    assert gan.augment.load_size == (36, 36) and gan.augment.crop_size == (32, 32)
    assert not gan.augment.flip and gan.ema_decay == 0.5
    assert gan.reconstruction == (("l2", RECONSTRUCTION["l2"]),)
    assert gan.metric_names == ("loss/disc", "loss/gen_gan", "loss/gen_l2")
    # Evaluation normalises each image alone, so that it does not depend on its neighbours.
    assert e.eval_gan.generator.style.norm_group == 1
    assert e.eval_gan.generator.widths == gan.generator.widths
    assert e.mesh.size == 2 and e.eval.batch_size == 2
    assert e.eval.metrics == ("l1", "psnr", "ssim")
    hash(gan)


def test_the_style_reaches_the_networks():
    """What both have in common, and what each has of its own."""
    gan = experiment(
        model__init="xavier", model__init_gain=0.5, model__norm_eps=1e-3, model__norm_momentum=0.7,
        model__norm_scale_std=0.1, model__generator__norm="group", model__generator__bias="all",
        model__generator__slope=0.1, model__discriminator__norm="layer",
        model__discriminator__bias="first", model__discriminator__slope=0.3,
        model__discriminator__spectral=True,
    ).gan  # fmt: skip
    ours, theirs = gan.generator.style, gan.discriminator.style
    for style in (ours, theirs):
        assert (style.init, style.init_gain) == ("xavier", 0.5)
        assert (style.norm_eps, style.norm_momentum, style.norm_scale_std) == (1e-3, 0.7, 0.1)
        assert style.axis == gan.axis
    assert (ours.norm, ours.bias, ours.slope, ours.spectral) == ("group", "all", 0.1, False)
    assert (theirs.norm, theirs.bias, theirs.slope, theirs.spectral) == (
        "layer",
        "first",
        0.3,
        True,
    )


def test_losses_task_and_order_reach_the_step():
    plain = experiment().gan
    assert plain.adversarial is ADVERSARIAL["vanilla"]
    assert plain.task == TASKS["translate"](TaskOptions())
    assert not plain.feature_matching and not plain.simultaneous
    assert plain.augment.methods == ("bilinear", "bilinear")
    gan = experiment(
        loss__adversarial="wgan-gp", loss__feature_matching=3.0, train__simultaneous=True,
        data__task="colorize", data__resize="area", model__discriminator__scales=2,
        model__discriminator__conditional=False, model__generator__noise=2,
    ).gan  # fmt: skip
    assert gan.adversarial is ADVERSARIAL["wgan-gp"] and gan.feature_matching and gan.simultaneous
    assert gan.task.channels == (1, 2) and gan.generator.out_channels == 2
    assert gan.generator.noise == 2 and gan.augment.methods == ("area", "area")
    assert isinstance(gan.discriminator, MultiScale) and len(gan.discriminator.judges) == 2
    assert not any(judge.conditional for judge in gan.discriminator.judges)


def test_channels_that_are_not_stored_are_named():
    with pytest.raises(DataError) as caught:
        experiment(data__channels=(3, 4))
    train, held_out = caught.value.problems
    for split, problem in (("train", train), ("eval", held_out)):
        assert problem.startswith(f"data.channels: {split} split: target images are stored with 3")
    gan = experiment(data__channels=(1, 3)).gan
    assert gan.task.channels == (1, 3)


def test_the_summary_says_what_will_run():
    rows = dict(summary.rows(experiment()))
    assert rows["devices"].startswith("2 x ") and "cpu" in rows["devices"]
    e = experiment()
    state = e.abstract_state()
    for name, net in (("generator", state.gen), ("discriminator", state.disc)):
        size = sum(x.size for x in jax.tree.leaves(net.params))
        assert f"{size:,} parameters" in rows[name]
    assert "14x14 patches of 16x16" in rows["discriminator"]
    assert "float32" in rows["precision"] and "products" in rows["precision"]
    assert "synthetic" in rows["data"]
    assert "6 " in rows["pairs"] and f"{len(e.eval_frames)} " in rows["pairs"]
    assert "36x36" in rows["images"] and "32x32" in rows["images"] and "mirrored" in rows["images"]
    assert "10 " in rows["steps"] and "batch 4" in rows["steps"] and "6.67" in rows["steps"]


def test_full_size_parameters_are_in_the_summary():
    config = merge(base(), {"data.source": "synthetic", "mesh.devices": 1})
    rows = dict(summary.rows(build(config, silent)))
    assert "54,413,955" in rows["generator"]
    assert "2,768,705" in rows["discriminator"]
    assert "30x30 patches of 70x70" in rows["discriminator"]
