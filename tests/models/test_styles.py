"""What a style decides: norms, first values, biases, spectral normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths, quick_jit, rel, scrambled

from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import BIASES, INITIALISERS, Conv, ConvNorm, Style, biased, kernel_init
from p2p_jax.models.norms import NORMS, GroupNorm

PLAIN64 = Policy(dtype="float64", param_dtype="float64")
SHAPE = (3, 5, 6, 8)


def images(seed=0):
    return np.random.default_rng(seed).normal(2, 3, SHAPE) * np.arange(1, 9)


def normalised(x, groups):
    """Each example over its pixels and each of so many groups of channels."""
    out = np.zeros_like(x)
    size = x.shape[-1] // groups
    for example, made in zip(x, out, strict=True):
        for g in range(groups):
            part = example[..., g * size : (g + 1) * size]
            made[..., g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return out


# --- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm,groups,affine",
    [("instance", 8, False), ("instance_affine", 8, True), ("layer", 1, True), ("group", 8, True)],
)
def test_norms_within_an_example(norm, groups, affine):
    with jax.enable_x64(True):
        net = ConvNorm(8, "point", Style(PLAIN64, norm=norm, bias="last"))
        x = images()
        v = scrambled(jax.eval_shape(lambda: net.init(jax.random.key(0), x, False)))
        v["params"]["conv"]["kernel"] = np.eye(8)[None, None]
        got = {r: quick_jit(lambda v, x, r=r: net.apply(v, x, r))(v, x) for r in (False, True)}
        alone = quick_jit(lambda v, x: net.apply(v, x, False))(v, x[1:2])
    wanted = normalised(x, groups)
    if affine:
        wanted = wanted * v["params"]["norm"]["scale"] + v["params"]["norm"]["bias"]
    else:
        assert "norm" not in v["params"]
    assert "stats" not in v
    assert rel(got[False], wanted) < 1e-12
    assert (got[True] == got[False]).all()  # there is nothing running
    assert rel(alone, wanted[1:2]) < 1e-12


@pytest.mark.parametrize(
    "channels,groups", [(64, 32), (48, 24), (8, 8), (7, 7), (96, 32), (62, 31)]
)
def test_group_norm_has_as_many_groups_as_divide_the_channels(channels, groups):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 3, 4, channels))
        net = GroupNorm(32, PLAIN64, affine=False)
        assert rel(net.apply({}, x, False), normalised(x, groups)) < 1e-12


@pytest.mark.parametrize("norm", [n for n in NORMS if n != "none"])
def test_eps_and_first_scales_are_those_of_the_style(norm):
    x = jnp.zeros((2, 4, 4, 512)).at[0, 0, 0].set(1e-3)
    draws = {}
    for std in (0.0, 0.02):
        style = Style(Policy(), norm=norm, norm_eps=0.25, norm_scale_std=std, bias="last")
        net = ConvNorm(512, "point", style)
        v = quick_jit(lambda net=net: net.init(jax.random.key(0), x, False))()
        draws[std] = v["params"].get("norm", {}).get("scale")
        y = net.apply(v, x, False, mutable=["stats"])[0]
        assert np.abs(y).max() < 1e-2  # the variance is nothing beside eps
    if norm == "instance":
        assert draws == {0.0: None, 0.02: None}
    else:
        assert (draws[0.0] == 1).all()
        assert abs(np.std(draws[0.02]) / 0.02 - 1) < 5 / np.sqrt(1024)


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_is_normalised_in_float32(norm):
    style = Style(Policy(dtype="bfloat16", precision="default"), norm=norm, bias="last")
    net = ConvNorm(8, "point", style)
    x = images().astype(np.float32)
    v = quick_jit(lambda: net.init(jax.random.key(0), x, False))()
    y, _ = net.apply(v, x, False, mutable=["stats"])
    assert y.dtype == jnp.bfloat16 and np.isfinite(np.asarray(y, np.float32)).all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(v))


# --- biases --------------------------------------------------------------------------------------


def test_biases():
    table = {  # (normed, first, last)
        "all": {(1, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1)},
        "first": {(0, 1, 0)},
        "last": {(0, 0, 1)},
        "ends": {(0, 1, 0), (0, 0, 1)},
        "unnormed": {(0, 0, 0), (0, 1, 0), (0, 0, 1)},
    }
    assert set(BIASES) == {"auto", *table}
    for bias, where in table.items():
        for case in table["all"]:
            got = biased(Style(Policy(), bias=bias), *map(bool, case))
            assert got == (case in where), (bias, case)
    for norm in NORMS:
        settled = Style(Policy(), norm=norm).settled("last").bias
        assert settled == ("all" if norm == "instance" else "last")
        assert Style(Policy(), norm=norm, bias="first").settled("last").bias == "first"


# --- first values --------------------------------------------------------------------------------


def kernels(init, transposed, shape=(4, 4, 24, 40), gain=0.02, dtype="float32"):
    draw = kernel_init(Style(Policy(), init=init, init_gain=gain), transposed)
    return np.asarray(quick_jit(lambda: draw(jax.random.key(3), shape, dtype))())


@pytest.mark.parametrize("transposed", [False, True])
def test_spread_of_first_values(transposed):
    """As torch.nn.init counts fans: dimension 1 of (out, in, kh, kw), or of (in, out, kh, kw)."""
    fan_in, fan_out = (16 * 40, 16 * 24) if transposed else (16 * 24, 16 * 40)
    wanted = {
        "normal": 0.02,
        "xavier": 0.02 * np.sqrt(2 / (fan_in + fan_out)),
        "kaiming": np.sqrt(2 / fan_in),
    }
    assert set(INITIALISERS) == {*wanted, "orthogonal"}
    for init, std in wanted.items():
        drawn = kernels(init, transposed)
        assert abs(drawn.std() / std - 1) < 5 / np.sqrt(2 * drawn.size), init
        assert abs(drawn.mean()) < 5 * std / np.sqrt(drawn.size)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 24, 40), (1, 1, 40, 24), (1, 1, 24, 40)])
def test_orthogonal_first_values(transposed, shape):
    """Rows of (out, rest), or of (in, rest) where transposed, or columns where rows are more."""
    drawn = kernels("orthogonal", transposed, shape, gain=0.5).astype(np.float64)
    rows = np.moveaxis(drawn, 2 if transposed else 3, 0)
    rows = rows.reshape(rows.shape[0], -1)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    assert np.allclose(gram, 0.25 * np.eye(len(gram)), atol=1e-6)


@pytest.mark.parametrize("init", INITIALISERS)
def test_first_values_are_the_same_with_64_bits(init):
    single = kernels(init, False)
    with jax.enable_x64(True):
        double = kernels(init, False, dtype="float64")
    assert double.dtype == np.float64
    tolerance = 1e-6 if init == "orthogonal" else 0  # a decomposition may be reordered
    assert np.abs(single - double).max() <= tolerance


# --- spectral normalisation ----------------------------------------------------------------------


def spectral(kind="conv", size=9, features=7):
    with jax.enable_x64(True):
        net = Conv(features, kind, True, Style(PLAIN64, spectral=True))
        x = np.random.default_rng(0).normal(size=(2, size, size, 3))
        v = quick_jit(lambda: net.init(jax.random.key(0), x))()
        v = jax.tree.map(np.array, v)
        v["params"]["kernel"] = np.random.default_rng(1).normal(size=v["params"]["kernel"].shape)
        return net, x, v


def test_spectral_norm_divides_by_the_largest_singular_value():
    net, x, v = spectral()
    with jax.enable_x64(True):
        apply = quick_jit(lambda v, x: net.apply(v, x, mutable=["stats"]))
        left = v["stats"]["left"]
        for _ in range(200):
            y, new = apply({**v, "stats": {"left": left}}, x)
            left = np.asarray(new["stats"]["left"])
        kernel = v["params"]["kernel"]
        sigma = np.linalg.svd(kernel.reshape(-1, 7), compute_uv=False)[0]
        plain = Conv(7, "conv", True, Style(PLAIN64))
        wanted = plain.apply({"params": {**v["params"], "kernel": kernel / sigma}}, x)
    assert rel(y, wanted) < 1e-9


def test_one_pass_is_one_round_of_the_power_method_with_its_gradient():
    """Miyato et al. 2018: the vectors are constants to the gradient, the kernel in sigma is not."""
    net, x, v = spectral("down", 8)
    kernel, left = v["params"]["kernel"], v["stats"]["left"]
    matrix = kernel.reshape(-1, 7)
    right = matrix @ left / np.linalg.norm(matrix @ left)
    new_left = matrix.T @ right / np.linalg.norm(matrix.T @ right)
    sigma = new_left @ matrix.T @ right
    with jax.enable_x64(True):
        g = np.random.default_rng(2).normal(size=(2, 4, 4, 7))

        def loss(kernel):
            params = {**v["params"], "kernel": kernel}
            y, new = net.apply({"params": params, "stats": v["stats"]}, x, mutable=["stats"])
            return (y * g).sum(), new["stats"]["left"]

        got, stored = quick_jit(jax.grad(loss, has_aux=True))(kernel)
        plain = Conv(7, "down", True, Style(PLAIN64))

        def through(kernel):
            return (plain.apply({"params": {**v["params"], "kernel": kernel}}, x) * g).sum()

        inner = np.asarray(quick_jit(jax.grad(through))(kernel / sigma))
        frozen = net.apply(v, x)  # without a place to store it, the vector stays
    assert rel(stored, new_left) < 1e-12
    outer = np.outer(right, new_left).reshape(kernel.shape)
    wanted = inner / sigma - (inner * kernel).sum() / sigma**2 * outer
    assert rel(got, wanted) < 1e-10
    assert frozen.shape == (2, 4, 4, 7)


def test_spectral_kernels_begin_with_a_unit_vector():
    _, _, v = spectral()
    assert set(paths(v)) == {"params/kernel", "params/bias", "stats/left"}
    assert abs(np.linalg.norm(v["stats"]["left"]) - 1) < 1e-6
