"""Convolutions as matrix products, in every way that shapes may choose, against XLA's own."""

from __future__ import annotations

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
    "products": {"_FEW": 10**9, "_VERY_FEW": 10**9, "_MANY": 10**9, "_LARGE": 0, "_NARROW": 0},
    "rearranged": {"_FEW": 10**9, "_VERY_FEW": 0, "_LARGE": 10**9, "_NARROW": 0},
    "convolutions": {"_FEW": 0, "_VERY_FEW": 0, "_MANY": 0, "_NARROW": 0, "_CHUNKS": 2},
    "narrow": {"_FEW": 0, "_VERY_FEW": 0, "_MANY": 0, "_NARROW": 10**9},
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


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_three_against_the_convolution_and_its_gradients(shape, choice, monkeypatch):
    for name, value in CHOICES[choice].items():
        monkeypatch.setattr(products, name, value)

    def both(x, y, k, g):
        wanted, pull = jax.vjp(lambda x, k: oracle(x, k, g), x, k)
        return (gather(x, k, g), lift(y, k, g), correlate(x, y, g)), (wanted, *pull(y))

    with jax.enable_x64(True):
        for coarse_first in (False, True):
            g = Geometry(*shape, coarse_first, "highest")
            got, wanted = quick_jit(both, static_argnums=3)(*arrays(g), g)
            for name, a, b in zip(("gather", "lift", "correlate"), got, wanted, strict=True):
                assert a.dtype == np.float64 and rel(a, b) < 1e-12, (name, coarse_first)


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


def test_the_thresholds_choose_among_all_ways():
    """At the sizes of the paper's networks both convolutions and products are used."""

    def primitives(fn, *shapes):
        made = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
        return {eqn.primitive.name for eqn in made.eqns}

    def down(size, c, o):
        g = Geometry(4, 2, ONE, (size, size), False, "highest")
        return primitives(lambda x, k: gather.fun(x, k, g), (1, size, size, c), (4, 4, c, o))

    assert "conv_general_dilated" in down(128, 64, 128)
    assert "conv_general_dilated" not in down(8, 512, 512)


def test_a_kernel_without_phases_is_refused():
    g = Geometry(5, 2, ONE, (8, 8), True, "highest")
    y = jnp.zeros((1, *g.coarse, 2))
    with pytest.raises(ValueError, match="5x5 kernel at stride 2"):
        products._lift_in_phases(y, jnp.zeros((5, 5, 2, 3)), g)


def test_every_tap_has_its_place():
    g = Geometry(4, 2, ONE, (6, 6), False, "highest")
    assert g.taps == list(itertools.product(range(4), range(4)))
    assert g.coarse == (3, 3)
