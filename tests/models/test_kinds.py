"""The kinds of convolution beside the paper's: 3x3 ones, mirrored borders, other ways to double."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from helpers import quick_jit, rel

from p2p_jax.models.conv import Policy, space_to_depth
from p2p_jax.models.layers import KINDS, Conv, Style

WAYS = [*itertools.product(("plain", "polyphase"), ("xla", "products")), ("products", "products")]
NEW = ("point", "reflect3", "reflect7", "down3", "up3", "bilinear", "pixel_shuffle")


def correlate(x, w, stride=1):
    """Sums over the kernel where it lies wholly inside `[b, h, w, c]`, by loops."""
    k = w.shape[0]
    h, wide = ((size - k) // stride + 1 for size in x.shape[1:3])
    y = np.zeros((x.shape[0], h, wide, w.shape[-1]))
    for i, j in itertools.product(range(h), range(wide)):
        part = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
        y[:, i, j] = np.tensordot(part, w, 3)
    return y


def around(x, reach, mode="constant"):
    return np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode=mode)


def spread(x, w):
    """ConvTranspose2d(3, stride=2, padding=1, output_padding=1): a stamp for each input pixel."""
    b, h, wide, _ = x.shape
    y = np.zeros((b, 2 * h + 2, 2 * wide + 2, w.shape[-1]))
    for i, j in itertools.product(range(h), range(wide)):
        stamp = np.einsum("bc,klco->bklo", x[:, i, j], w)
        y[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += stamp
    return y[:, 1 : 2 * h + 1, 1 : 2 * wide + 1]


def shuffled(y):
    """`[b, h, w, 4o]` as `[b, 2h, 2w, o]`, outputs ordered (row, column, o)."""
    b, h, w, c = y.shape
    out = np.zeros((b, 2 * h, 2 * w, c // 4))
    for row, column in itertools.product(range(2), range(2)):
        first = (2 * row + column) * (c // 4)
        out[:, row::2, column::2] = y[..., first : first + c // 4]
    return out


def doubled(x):
    """Bilinear, half-pixel centres."""
    b, h, w, c = x.shape
    with jax.enable_x64(True):
        return np.asarray(jax.image.resize(x, (b, 2 * h, 2 * w, c), "linear"))


ORACLES = {
    "point": correlate,
    "reflect3": lambda x, w: correlate(around(x, 1, "reflect"), w),
    "reflect7": lambda x, w: correlate(around(x, 3, "reflect"), w),
    "down3": lambda x, w: correlate(around(x, 1), w, 2),
    "up3": spread,
    "bilinear": lambda x, w: correlate(around(doubled(x), 1), w),
    "pixel_shuffle": lambda x, w: shuffled(correlate(around(x, 1), w)),
}


def arrays(kind, size=(6, 8)):
    rng = np.random.default_rng(0)
    k, phases = KINDS[kind].size, KINDS[kind].phases
    return rng.normal(size=(2, *size, 3)), rng.normal(size=(k, k, 3, 2 * phases))


@pytest.mark.parametrize("kind", NEW)
def test_values_and_gradients(kind):
    """In every form; a gradient is what a small step along it tells, the map being linear."""
    x, w = arrays(kind)
    wanted = ORACLES[kind](x, w)
    g = np.random.default_rng(1).normal(size=wanted.shape)
    dx, dw = (np.random.default_rng(2).normal(size=a.shape) for a in (x, w))

    def one(way, x, w):
        policy = Policy("float64", "float64", form=way[0], grad=way[1])
        y, pull = jax.vjp(lambda x, w: KINDS[kind].fn(x, w, policy), x, w)
        return y, *pull(g)

    with jax.enable_x64(True):
        results = quick_jit(lambda x, w: {way: one(way, x, w) for way in WAYS})(x, w)
    for way, (y, gx, gw) in jax.tree.map(np.asarray, results).items():
        assert rel(y, wanted) < 1e-12, way
        assert np.isclose((gx * dx).sum(), (g * ORACLES[kind](dx, w)).sum(), rtol=1e-10), way
        assert np.isclose((gw * dw).sum(), (g * ORACLES[kind](x, dw)).sum(), rtol=1e-10), way


@pytest.mark.parametrize("kind", NEW)
def test_gradients_of_the_cpu_avoid_gradient_convolutions(kind):
    """No dilated convolution, which XLA's CPU backend runs slowly, in either direction."""
    x, w = (a.astype(np.float32) for a in arrays(kind))
    policy = Policy(form="products", grad="products")

    def loss(x, w):
        return KINDS[kind].fn(x, w, policy).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w))
    assert "conv_general_dilated" in text or "dot_general" in text
    assert "lhs_dilation=(2, 2)" not in text and "rhs_dilation=(2, 2)" not in text


@pytest.mark.parametrize("kind", ["up3", "bilinear", "pixel_shuffle", "down3", "reflect7"])
def test_sizes(kind):
    out = jax.eval_shape(
        lambda x: Conv(5, kind, True, Style(Policy())).init_with_output(jax.random.key(0), x)[0],
        jax.ShapeDtypeStruct((2, 8, 12, 3), np.float32),
    )
    factor = {"down3": 0.5, "reflect7": 1}.get(kind, 2)
    assert out.shape == (2, 8 * factor, 12 * factor, 5)


def test_shuffling_undoes_space_to_depth():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    assert (shuffled(np.asarray(space_to_depth(x))) == x).all()
