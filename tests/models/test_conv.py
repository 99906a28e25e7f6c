"""All forms of the convolutions and both kinds of gradients, against loops over the definition."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, oracle_conv, quick_jit, rel

from p2p_jax.models.conv import (
    Policy,
    conv,
    conv_down,
    conv_up,
    depth_to_space,
    space_to_depth,
    upsample_conv,
)


def _conv(x, w, policy):
    return conv(x, w, ((1, 1), (1, 1)), policy)


FUNCTIONS = {"down": conv_down, "up": conv_up, "nearest": upsample_conv, "conv": _conv}
WAYS = [*itertools.product(("plain", "polyphase"), ("xla", "products")), ("products", "products")]
SIZES = {
    "down": [(6, 6), (4, 10), (7, 5), (6, 3), (2, 2)],
    "up": [(4, 4), (2, 5), (3, 1), (1, 1), (2, 2)],
    "nearest": [(2, 5), (3, 1), (1, 1)],
    "conv": [(4, 7)],
}
CASES = [(kind, size) for kind, sizes in SIZES.items() for size in sizes]


def arrays(kind, size, dtype, batch=2, channels=3, features=2):
    """Input, kernel and a cotangent of the output."""
    rng = np.random.default_rng(sum(size))
    k = 3 if kind == "nearest" else 4
    x = rng.normal(size=(batch, *size, channels))
    w = rng.normal(size=(k, k, channels, features))
    g = rng.normal(size=oracle_conv(kind, x, w).shape)
    return tuple(a.astype(dtype) for a in (x, w, g))


def all_ways(kind, dtype, x, w, g):
    """Output and both gradients, by form and kind of gradient."""

    def one(form, grad, x, w, g):
        policy = Policy(dtype=dtype, param_dtype=dtype, form=form, grad=grad)
        y, pull = jax.vjp(lambda x, w: FUNCTIONS[kind](x, w, policy), x, w)
        return y, *pull(g)

    return quick_jit(lambda *a: {way: one(*way, *a) for way in WAYS})(x, w, g)


def check(kind, size, dtype, tolerance):
    x, w, g = arrays(kind, size, dtype)
    x64, w64, g64 = (a.astype(np.float64) for a in (x, w, g))
    wanted = oracle_conv(kind, x64, w64), *oracle_conv(kind, x64, w64, g64)
    for way, got in all_ways(kind, dtype, x, w, g).items():
        for name, a, b in zip(("output", "input's", "kernel's"), got, wanted, strict=True):
            assert a.dtype == dtype
            assert rel(a, b) < tolerance, (way, name)


@pytest.mark.parametrize("kind,size", CASES)
def test_values_and_gradients_in_float64(kind, size):
    with jax.enable_x64(True):
        check(kind, size, "float64", 1e-12)


@pytest.mark.parametrize("kind,size", [("down", (7, 4)), ("up", (3, 4)), ("nearest", (2, 3))])
def test_values_and_gradients_in_float32(kind, size):
    check(kind, size, "float32", 1e-5)


def test_down_drops_the_last_odd_row_and_column():
    """As in PyTorch, whose windows must lie wholly inside the padded image."""
    x, w, _ = arrays("down", (7, 5), "float32")
    for form in ("plain", "polyphase"):
        assert conv_down(x, w, Policy(form=form)).shape == (2, 3, 2, 2)


@pytest.mark.parametrize(
    "kind,form",
    [("down", "plain"), ("up", "plain"), ("down", "polyphase"), ("nearest", "polyphase")],
)
def test_second_derivatives_go_through_products(kind, form):
    with jax.enable_x64(True):
        x, w, _ = arrays(kind, (4, 4), "float64", batch=1, channels=2)

        def penalty(grad, x, w):
            policy = Policy(dtype="float64", form=form, grad=grad)

            def loss(x, w):
                return jnp.sin(FUNCTIONS[kind](x, w, policy)).sum()

            return sum(jnp.square(g).sum() for g in jax.grad(loss, (0, 1))(x, w))

        both = {
            grad: lambda x, w, grad=grad: jax.grad(penalty, (1, 2))(grad, x, w)
            for grad in ("xla", "products")
        }
        got = quick_jit(lambda x, w: {name: fn(x, w) for name, fn in both.items()})(x, w)
        for a, b in zip(got["products"], got["xla"], strict=True):
            assert rel(a, b) < 1e-12


def test_space_to_depth_orders_row_column_channel():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = np.asarray(space_to_depth(jnp.asarray(x)))
    assert y.shape == (2, 2, 3, 12)
    for row, column, c in itertools.product(range(2), range(2), range(3)):
        assert (y[..., row * 6 + column * 3 + c] == x[:, row::2, column::2, c]).all()
    assert (depth_to_space(jnp.asarray(y)) == x).all()


@pytest.mark.parametrize("grad", ["xla", "products"])
@pytest.mark.parametrize("form", ["plain", "polyphase"])
def test_precision_reaches_every_product(form, grad):
    """Forward and backward: a product left at the default would be rounded on accelerators."""

    def loss(x, w, v):
        policy = Policy(precision="highest", form=form, grad=grad)
        return conv_up(conv_down(x, w, policy), v, policy).sum()

    x, w, _ = arrays("down", (4, 4), "float32")
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, w, w[:, :, :2])
    products = [
        eqn.params["precision"]
        for eqn in equations(jaxpr)
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) >= 6
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}
