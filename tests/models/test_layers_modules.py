"""Grouped normalisation against numpy, and dropout whose masks follow the example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PLAIN64, quick_jit, rel
from jax.sharding import PartitionSpec as P

from p2p_jax.mesh import AXIS, make_mesh
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import Conv, ConvNorm, Style, dropout, leaky_relu
from p2p_jax.models.norms import BatchNorm

SHAPE = (4, 5, 6, 3)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def variables(channels=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    draw = {
        "params": {"scale": rng.normal(1, 0.5, channels), "bias": rng.normal(size=channels)},
        "stats": {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2, channels)},
    }
    return jax.tree.map(lambda x: x.astype(dtype), draw)


def normalised(x, params, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


# --- BatchNorm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 4, 0])
def test_statistics_per_group_and_their_running_averages(x64, group):
    x = np.random.default_rng(1).normal(2, 3, SHAPE) * np.arange(1, 5).reshape(4, 1, 1, 1)
    v = variables()
    norm = BatchNorm(group, PLAIN64)
    got, new = quick_jit(lambda v, x: norm.apply(v, x, False, mutable=["stats"]))(v, x)

    parts = np.split(x, 4 // (group or 4))
    wanted = [normalised(p, v["params"], p.mean((0, 1, 2)), p.var((0, 1, 2))) for p in parts]
    assert rel(got, np.concatenate(wanted)) < 1e-12
    mean = np.mean([p.mean((0, 1, 2)) for p in parts], 0)
    var = np.mean([p.var((0, 1, 2), ddof=1) for p in parts], 0)  # unbiased, as PyTorch stores it
    assert rel(new["stats"]["mean"], 0.9 * v["stats"]["mean"] + 0.1 * mean) < 1e-12
    assert rel(new["stats"]["var"], 0.9 * v["stats"]["var"] + 0.1 * var) < 1e-12


def test_gradients_flow_through_the_statistics(x64):
    """As in differences of the definition in numpy."""
    x, g = np.random.default_rng(2).normal(size=(2, *SHAPE))
    v = variables()

    def loss(x):
        parts = np.split(x, 2)
        y = [normalised(p, v["params"], p.mean((0, 1, 2)), p.var((0, 1, 2))) for p in parts]
        return (np.concatenate(y) * g).sum()

    norm = BatchNorm(2, PLAIN64)
    got = quick_jit(jax.grad(lambda x: (norm.apply(v, x, False) * g).sum()))(x)
    for index in [(0, 0, 0, 0), (1, 4, 5, 2), (3, 2, 1, 1)]:
        step = np.zeros(SHAPE)
        step[index] = 1e-5
        assert got[index] == pytest.approx((loss(x + step) - loss(x - step)) / 2e-5, rel=1e-6)


def test_running_statistics_are_used_and_kept(x64):
    x = np.random.default_rng(3).normal(size=(3, *SHAPE[1:]))
    v = variables()
    # No number of groups fits three images: it does not matter here.
    got, new = BatchNorm(2, PLAIN64).apply(v, x, True, mutable=["stats"])
    assert rel(got, normalised(x, v["params"], v["stats"]["mean"], v["stats"]["var"])) < 1e-12
    assert all((new["stats"][k] == v["stats"][k]).all() for k in ("mean", "var"))


def test_a_fresh_norm_has_unit_statistics(x64):
    x = np.random.default_rng(4).normal(5, 2, SHAPE)
    v = BatchNorm(0, PLAIN64, axis=AXIS).init(jax.random.key(0), x, False)
    assert (v["stats"]["mean"] == 0).all() and (v["stats"]["var"] == 1).all()
    assert (v["params"]["bias"] == 0).all()


def test_one_pixel_alone_leaves_finite_statistics():
    v = variables(dtype=np.float32)
    y, new = BatchNorm(1, Policy()).apply(v, np.ones((2, 1, 1, 3), np.float32), False,
                                          mutable=["stats"])  # fmt: skip
    assert np.allclose(y, v["params"]["bias"][None, None, None])
    assert np.allclose(new["stats"]["var"], 0.9 * v["stats"]["var"])


@pytest.mark.parametrize("group", [3, 8])
def test_a_group_that_does_not_divide_is_refused(group):
    with pytest.raises(ValueError, match=rf"norm_group={group} .* the 4 examples"):
        BatchNorm(group, Policy()).apply(
            variables(dtype=np.float32), np.ones(SHAPE, np.float32), False
        )


def test_bfloat16_activations_keep_float32_statistics():
    policy = Policy(dtype="bfloat16", precision="default")
    # A large mean: in bfloat16 the variance would be lost entirely.
    x = jnp.asarray(np.random.default_rng(5).normal(100, 1, (2, 8, 8, 3)), jnp.bfloat16)
    v = variables(dtype=np.float32)
    norm = BatchNorm(0, policy)
    y, new = quick_jit(lambda v, x: norm.apply(v, x, False, mutable=["stats"]))(v, x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    assert new["stats"]["var"].dtype == new["stats"]["mean"].dtype == np.float32
    assert rel(new["stats"]["mean"], 0.9 * v["stats"]["mean"] + 0.1 * exact.mean((0, 1, 2))) < 1e-6
    var = 0.9 * v["stats"]["var"] + 0.1 * exact.var((0, 1, 2), ddof=1)
    assert rel(new["stats"]["var"], var) < 1e-5
    wanted = normalised(exact, v["params"], exact.mean((0, 1, 2)), exact.var((0, 1, 2)))
    assert rel(np.asarray(y, np.float64), wanted) < 2**-8  # half a unit of bfloat16, rounded once


def test_the_whole_batch_is_that_of_all_devices(x64):
    x = np.random.default_rng(6).normal(size=SHAPE) * np.arange(1, 5).reshape(4, 1, 1, 1)
    v = variables()

    def apply(axis):
        norm = BatchNorm(0, PLAIN64, axis=axis)
        return lambda x: norm.apply(v, x, False, mutable=["stats"])

    wanted, stats = quick_jit(apply(None))(x)
    sharded = jax.shard_map(apply(AXIS), mesh=make_mesh(4), in_specs=P(AXIS),
                            out_specs=(P(AXIS), P()))  # fmt: skip
    got, new = quick_jit(sharded)(x)
    assert rel(got, wanted) < 1e-12
    for name, wanted in stats["stats"].items():
        assert rel(new["stats"][name], wanted) < 1e-12, name


# --- ConvNorm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conv", "down", "up", "nearest"])
def test_bias_is_added_in_the_type_of_activations(kind):
    module = Conv(4, kind, True, Style(Policy(dtype="bfloat16", precision="default")))
    x = jnp.ones((1, 4, 4, 3))
    v = quick_jit(module.init)(jax.random.key(0), x)
    assert v["params"]["kernel"].dtype == v["params"]["bias"].dtype == jnp.float32
    lifted = {"params": v["params"] | {"bias": jnp.arange(4.0)}}
    apply = quick_jit(module.apply)
    bare, biased = (np.asarray(apply(p, x)) for p in (v, lifted))
    assert bare.dtype == biased.dtype == jnp.bfloat16
    added = biased.astype(np.float32) - bare.astype(np.float32)
    assert np.allclose(added, np.arange(4), atol=0.02) and np.abs(bare).max() > 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_only_what_is_asked_for_has_parameters(bias, norm):
    style = Style(Policy(), norm=norm, bias="all" if bias else "last")
    module = ConvNorm(4, "down", style)
    v = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)), False))
    assert set(v["params"]) == ({"conv", "norm"} if norm == "batch" else {"conv"})
    assert set(v["params"]["conv"]) == ({"kernel", "bias"} if bias else {"kernel"})
    assert ("stats" in v) == (norm == "batch")


# --- dropout -------------------------------------------------------------------------------------


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def mask(keys, index=1, shape=(6, 5, 3), dtype=jnp.float32, **options):
    drop = quick_jit(lambda x, keys: dropout(x, keys, index, **options))
    return np.asarray(drop(np.ones((len(keys), *shape), dtype), keys), np.float32)


@pytest.mark.parametrize("rate,factor", [(0.5, 2.0), (0.25, 4 / 3)])
def test_the_share_dropped_and_the_scale_of_the_rest(rate, factor):
    got = mask(keys(8), shape=(32, 32, 4), rate=rate)
    assert set(np.unique(got)) == {np.float32(0), np.float32(factor)}
    assert abs((got == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / got.size)
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 4)).astype(np.float32)
    assert np.allclose(dropout(jnp.asarray(x), keys(8), 1, rate), x * got, rtol=1e-6)


def test_masks_depend_on_key_and_layer_alone():
    k = keys(4)
    whole = mask(k)
    assert all((whole[i] != whole[j]).any() for i in range(4) for j in range(i))
    assert (mask(k[::-1]) == whole[::-1]).all()
    assert (mask(k[2:3]) == whole[2:3]).all()
    assert (mask(k) == whole).all()
    assert (mask(k, index=2) != whole).any((1, 2, 3)).all()
    assert (mask(k, dtype=jnp.bfloat16) == whole).all()
    with jax.enable_x64(True):
        assert (mask(k, dtype=jnp.float64) == whole).all()


@pytest.mark.parametrize("devices", [2, 4])
def test_masks_are_the_same_however_the_batch_is_split(devices):
    k = keys(4)
    x = jnp.ones((4, 6, 5, 3))
    split = jax.shard_map(lambda x, k: dropout(x, k, 1), mesh=make_mesh(devices),
                          in_specs=P(AXIS), out_specs=P(AXIS))  # fmt: skip
    assert (np.asarray(quick_jit(split)(x, k)) == mask(k)).all()
    # An outer vmap, as over several models.
    over = quick_jit(jax.vmap(lambda x, k: dropout(x, k, 1)))
    twice = over(x.reshape(2, 2, 6, 5, 3), k.reshape(2, 2))
    assert (np.asarray(twice).reshape(4, 6, 5, 3) == mask(k)).all()


def test_without_keys_or_rate_nothing_changes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
    assert (dropout(x, None, 1) == x).all()
    assert (dropout(x, keys(4), 1, 0.0) == x).all()


# --- LeakyReLU -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_leaky_relu_and_its_derivatives_are_those_of_its_definition(slope):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)

    def second(fn):
        slopes = jax.grad(lambda x: (jnp.sin(fn(x)) * x).sum())
        return jax.grad(lambda x: jnp.square(slopes(x)).sum())(x)

    def plain(x):
        return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)

    def ours(x):
        return leaky_relu(x, slope)

    assert np.allclose(ours(x), plain(x), rtol=1e-6)
    assert np.allclose(second(ours), second(plain), rtol=1e-5, atol=1e-6)
    # As PyTorch has it.
    assert jax.grad(lambda x: ours(x))(0.0) == np.float32(slope)


def test_leaky_relu_keeps_what_it_gives_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.bfloat16)
    y, pull = jax.vjp(lambda x: leaky_relu(x, 0.2), x)
    kept = jax.tree.leaves(pull)
    assert y.dtype == jnp.bfloat16 and len(kept) == 1 and (kept[0] == y).all()
