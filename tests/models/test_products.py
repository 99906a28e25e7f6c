"""Convolutions as matrix products, in all ways that shapes may choose, against XLA's own."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, rel

from p2p_jax.models import products
from p2p_jax.models.products import Geometry, correlate, gather, lift

ONE, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
# Thresholds: as they are; everything as products; everything as convolutions, images one by one.
CHOICES = {
    "as it is": {},
    "products": {
        "_FEW": 10**9,
        "_VERY_FEW": 10**9,
        "_SOME": 10**9,
        "_THIN": 0,
        "_LARGE": 0,
        "_NARROW": 0,
    },
    "rearranged": {"_FEW": 10**9, "_VERY_FEW": 0, "_LARGE": 10**9, "_NARROW": 0},
    "convolutions": {
        "_FEW": 0,
        "_VERY_FEW": 0,
        "_SOME": 0,
        "_WHOLE": 0,
        "_NARROW": 0,
        "_CHUNKS": 2,
    },
    "coarse is narrow": {"_FEW": 0, "_NARROW": 40},
    "narrow": {"_FEW": 0, "_VERY_FEW": 0, "_SOME": 0, "_NARROW": 10**9},
}
SHAPES = [
    (4, 2, ONE, (6, 8)),
    (4, 2, ONE, (7, 5)),
    (3, 2, ONE, (6, 4)),
    (4, 1, ONE, (5, 6)),
    (7, 1, NONE, (9, 8)),
    (3, 1, ONE, (4, 3)),
    (1, 1, NONE, (3, 4)),
]


def arrays(g: Geometry, batch=3, c=3, o=2):
    rng = np.random.default_rng(sum(g.size) + g.kernel)
    x = rng.normal(size=(batch, *g.size, c))
    y = rng.normal(size=(batch, *g.coarse, o))
    k = rng.normal(size=(g.kernel, g.kernel, *((o, c) if g.coarse_first else (c, o))))
    return x, y, k


def oracle(x, k, g: Geometry):
    return jax.lax.conv_general_dilated(
        x,
        k.swapaxes(2, 3) if g.coarse_first else k,
        (g.stride, g.stride),
        g.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


GEOMETRIES = [Geometry(*shape, first, "highest") for shape in SHAPES for first in (False, True)]


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("products", "narrow")))
        for name in CHOICES
    ],
)
def test_all_three_against_the_convolution_and_its_gradients(choice, monkeypatch):
    for name, value in CHOICES[choice].items():
        monkeypatch.setattr(products, name, value)

    def both(x, y, k, g):
        wanted, pull = jax.vjp(lambda x, k: oracle(x, k, g), x, k)
        return (gather(x, k, g), lift(y, k, g), correlate(x, y, g)), (wanted, *pull(y))

    with jax.enable_x64(True):
        given = [arrays(g) for g in GEOMETRIES]
        every = quick_jit(lambda a: [both(*x, g) for x, g in zip(a, GEOMETRIES, strict=True)])
        for g, (got, wanted) in zip(GEOMETRIES, every(given), strict=True):
            for name, a, b in zip(("gather", "lift", "correlate"), got, wanted, strict=True):
                assert a.dtype == np.float64 and rel(a, b) < 1e-12, (name, g)


@pytest.mark.parametrize("coarse_first", [False, True])
def test_derivatives_of_all_three_are_each_other(coarse_first):
    """To second order, by small steps: the maps are linear in each argument."""
    g = Geometry(4, 2, ONE, (6, 6), coarse_first, "highest")
    with jax.enable_x64(True):
        x, y, k = (jnp.asarray(a) for a in arrays(g, batch=2))
        for fn, a, b in ((gather, x, k), (lift, y, k), (correlate, x, y)):

            def loss(a, b, fn=fn):
                return jnp.sin(fn(a, b, g)).sum()

            def slope(a, b, loss=loss):
                return sum(jnp.square(d).sum() for d in jax.grad(loss, (0, 1))(a, b))

            rng = np.random.default_rng(0)
            da, db = (rng.normal(size=v.shape) for v in (a, b))
            for function in (loss, slope):
                grads = quick_jit(jax.grad(function, (0, 1)))(a, b)
                function = quick_jit(function)
                told = sum((grad * d).sum() for grad, d in zip(grads, (da, db), strict=True))
                h = 1e-6
                ahead, behind = (function(a + s * da, b + s * db) for s in (h, -h))
                assert np.isclose(told, (ahead - behind) / (2 * h), rtol=1e-6), (fn, function)


def test_large_images_are_convolved_and_small_ones_multiplied():

    def primitives(fn, *shapes):
        made = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
        return {eqn.primitive.name for eqn in made.eqns}

    def down(size, c, o):
        g = Geometry(4, 2, ONE, (size, size), False, "highest")
        return primitives(lambda x, k: gather.fun(x, k, g), (1, size, size, c), (4, 4, c, o))

    assert "conv_general_dilated" in down(128, 64, 128)
    assert "conv_general_dilated" not in down(8, 512, 512)


@pytest.mark.parametrize("kernel,stride", [(5, 2), (1, 2), (4, 3)])
def test_a_stride_that_does_not_suit_the_kernel_is_refused(kernel, stride):
    with pytest.raises(ValueError, match=f"stride {stride} with a {kernel}x{kernel} kernel"):
        Geometry(kernel, stride, ONE, (8, 8), True, "highest")


@pytest.mark.parametrize("coarse_first", [False, True])
def test_sums_in_bfloat16_are_rounded_once(coarse_first):
    """As those of a convolution are: an error of one rounding, however many taps are added up."""
    g = Geometry(4, 2, ONE, (8, 8), coarse_first, "default")
    x, y, k = (jnp.asarray(a, jnp.bfloat16) for a in arrays(g, batch=2, c=16, o=16))
    wide = [a.astype(jnp.float32) for a in (x, y, k)]
    exact = dataclasses.replace(g, precision="highest")
    for fn, places in ((gather, (0, 2)), (lift, (1, 2)), (correlate, (0, 1))):
        got = fn(*((x, y, k)[n] for n in places), g)
        assert got.dtype == jnp.bfloat16
        wanted = np.asarray(fn(*(wide[n] for n in places), exact))
        error = np.abs(np.asarray(got, np.float32) - wanted)
        assert (error <= 2.0**-8 * np.abs(wanted) + 1e-4).all(), fn


def test_every_tap_has_its_place():
    g = Geometry(4, 2, ONE, (6, 6), False, "highest")
    assert g.taps == list(itertools.product(range(4), range(4)))
    assert g.coarse == (3, 3)
