"""From a config to an experiment, and every shipped config for two steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import QUICK, fresh

from p2p_jax.build import build
from p2p_jax.config import base, merge, validate
from p2p_jax.losses import RECONSTRUCTION
from p2p_jax.step import HYPER, make_train_step

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


def experiment(**changes):
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    config = merge(base(), values)
    assert validate(config) == []
    return build(config, silent)


# --- lengths and schedules -----------------------------------------------------------------------


def test_columns_of_the_schedule():
    e = experiment(
        optim__gen__lr=1e-3, optim__disc__lr=3e-3, loss__disc=0.25, loss__gan=2.0, loss__l1=50.0,
        loss__l2=4.0, optim__schedule="linear", optim__decay_from=0.5,
    )  # fmt: skip
    table = e.hyper(0, 12)
    assert table.shape == (12, len(HYPER)) and table.dtype == np.float32
    # Ten steps, the last five falling to what would be zero at the eleventh; then never used.
    factors = np.array([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    columns = dict(zip(HYPER, table.T, strict=True))
    assert np.allclose(columns["gen_lr"], 1e-3 * factors, rtol=1e-6)
    assert np.allclose(columns["disc_lr"], 3e-3 * factors, rtol=1e-6)
    for name, weight in dict(disc=0.25, gan=2.0, l1=50.0, l2=4.0).items():
        assert (columns[name] == weight).all()
    for step in (0, 3, 9):
        assert (e.hyper(step, 3) == e.hyper(0, 12)[step : step + 3]).all()


def test_the_constant_schedule_is_the_default_and_does_not_fall():
    e = experiment()
    assert (e.hyper(0, 10) == e.hyper(0, 10)[:1]).all()
    assert np.allclose(e.hyper(9, 1)[0], [2e-4, 2e-4, 0.5, 1, 100, 0])


@pytest.mark.parametrize(
    "steps,epochs,wanted", [(7, 9.0, 7), (0, 2.0, 3), (0, 2.5, 4), (0, 0.1, 1)]
)
def test_steps_win_over_epochs_which_round_up(steps, epochs, wanted):
    """Six pairs in batches of four."""
    e = experiment(train__steps=steps, train__epochs=epochs)
    assert len(e.train_source) == 6
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
        assert (net.policy.dtype, net.policy.param_dtype) == (dtype, param_dtype)
        assert net.policy.precision == products
        # On this platform.
        assert (net.policy.form, net.policy.grad) == ("polyphase", "taps")
    assert experiment(train__conv_form="plain").gan.generator.policy.form == "plain"


def test_options_reach_the_networks():
    e = experiment(
        model__generator__norm_group=2, model__generator__skips=False,
        model__discriminator__norm="none",
        data__flip=False, train__ema_decay=0.5, loss__l2=1.0, loss__l1=0.0,
    )  # fmt: skip
    gan = e.gan
    assert gan.generator.widths == (4, 8) and gan.generator.dropped == (1,)
    assert gan.generator.norm_group == 2 and not gan.generator.skips
    assert gan.discriminator.norm == "none" and gan.discriminator.layers == 1
    assert gan.augment.load_size == (36, 36) and gan.augment.crop_size == (32, 32)
    assert not gan.augment.flip and gan.ema_decay == 0.5
    assert gan.reconstruction == (("l2", RECONSTRUCTION["l2"]),)
    assert gan.metric_names == ("loss/disc", "loss/gen_gan", "loss/gen_l2")
    # Evaluation normalises each image alone, so that it does not depend on its neighbours.
    assert e.eval_gan.generator.norm_group == 1
    assert e.eval_gan.generator.widths == gan.generator.widths
    assert e.mesh.size == 2 and e.eval.batch_size == 2
    assert [name for name, _ in e.eval.metrics] == ["l1", "psnr", "ssim"]
    hash(gan)


def test_the_summary_says_what_will_run():
    rows = dict(experiment().summary())
    assert rows["devices"].startswith("2 x ") and "cpu" in rows["devices"]
    e = experiment()
    state = e.abstract_state()
    for name, net in (("generator", state.gen), ("discriminator", state.disc)):
        size = sum(x.size for x in jax.tree.leaves(net.params))
        assert f"{size:,} parameters" in rows[name]
    assert "14x14 patches of 16x16" in rows["discriminator"]
    assert "float32" in rows["precision"] and "polyphase" in rows["precision"]
    assert "synthetic" in rows["data"]
    assert "6 " in rows["pairs"] and f"{len(e.eval_source)} " in rows["pairs"]
    assert "36x36" in rows["images"] and "32x32" in rows["images"] and "mirrored" in rows["images"]
    assert "10 " in rows["steps"] and "batch 4" in rows["steps"] and "6.67" in rows["steps"]


def test_full_size_parameters_are_in_the_summary():
    config = merge(base(), {"data.source": "synthetic", "mesh.devices": 1})
    rows = dict(build(config, silent).summary())
    assert "54,413,955" in rows["generator"]
    assert "2,768,705" in rows["discriminator"]
    assert "30x30 patches of 70x70" in rows["discriminator"]


# --- shipped configs -----------------------------------------------------------------------------


def shipped(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
QUICKEST = "quickstart"


@pytest.mark.parametrize(
    "name", [n if n == QUICKEST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_two_steps_of_each_shipped_config(name):
    e, args = shrunk(name)
    before = jax.tree.map(np.array, args[0].gen.params)
    state, losses = make_train_step(e.gan, e.mesh, 2).lower(*args).compile(QUICK)(*args)
    assert int(state.step) == 2
    assert losses.shape == (2, len(e.gan.metric_names)) and np.isfinite(losses).all()
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.gen.params), strict=True):
        assert np.isfinite(new).all() and (old != new).any()


@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_config_makes_a_step(name):
    """Traced only: all shapes and types fit, at the sizes that users have."""
    config = merge(shipped(name), {"data.source": "synthetic", "data.path": "", "mesh.devices": 1})
    assert validate(config) == []
    e = build(config, silent)
    rows, b = e.train.steps_per_dispatch, e.train.batch_size
    image = jax.ShapeDtypeStruct((rows, b, *e.train_source.size, 3), np.uint8)
    step = make_train_step(e.gan, e.mesh, rows)
    state, losses = step.eval_shape(
        e.abstract_state(), (image, image), e.hyper(0, rows), np.int32(1)
    )
    assert losses.shape == (rows, len(e.gan.metric_names))
    for old, new in zip(jax.tree.leaves(e.abstract_state()), jax.tree.leaves(state), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)


def shrunk(name):
    """The experiment of a shipped config on tiny networks, and two steps' arguments."""
    config = merge(shipped(name), {
        "data.source": "synthetic", "data.path": "", "data.max_examples": 4,
        "data.load_size": (70, 70), "data.crop_size": (64, 64),
        "model.generator.depth": 4, "model.generator.base_features": 4,
        "model.discriminator.base_features": 4,
        "mesh.devices": 1, "train.batch_size": 1, "train.steps": 2, "train.steps_per_dispatch": 2,
    })  # fmt: skip
    assert validate(config) == []
    e = build(config, silent)
    pairs = [e.train_source[i] for i in range(2)]
    batch = tuple(np.stack([pair[k] for pair in pairs])[:, None] for k in range(2))
    state = jax.device_put(fresh(e.gan, e.seed), jax.NamedSharding(e.mesh, jax.P()))
    return e, (state, batch, e.hyper(0, 2), np.int32(2))
