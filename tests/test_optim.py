"""Adam against numpy, and the schedules."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers import quick_jit, rel

from p2p_jax.optim import SCHEDULES, adam, constant, linear
from p2p_jax.state import NetState
from p2p_jax.step import _apply_gradients


@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("b1,b2,eps", [(0.5, 0.999, 1e-8), (0.9, 0.99, 1e-6)])
def test_adam_is_that_of_the_paper(dtype, tolerance, b1, b2, eps):
    """Kingma and Ba 2015, algorithm 1, with a rate that changes; eps outside the root."""
    rng = np.random.default_rng(0)
    p = rng.normal(size=(6, 7))
    # Some gradients no larger than eps, where it matters on which side of the root that stands.
    grads = rng.normal(size=(8, 6, 7)) * np.geomspace(1, eps, 7)
    rates = np.linspace(1e-2, 1e-3, 8)
    m, v, wanted = 0.0, 0.0, p.copy()
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        wanted = wanted - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    with jax.enable_x64(dtype == "float64"):
        tx = adam(b1, b2, eps)
        params = {"p": p.astype(dtype)}
        net = NetState(params, {"mean": np.zeros(3, dtype)}, tx.init(params))
        stats = {"mean": np.ones(3, dtype)}
        step = quick_jit(lambda net, g, lr: _apply_gradients(net, tx, {"p": g}, stats, lr))
        for g, lr in zip(grads.astype(dtype), rates.astype(dtype), strict=True):
            net = step(net, g, lr)
        assert net.params["p"].dtype == dtype
        assert rel(net.params["p"] - params["p"], wanted - p) < tolerance * 10
        assert rel(net.params["p"], wanted) < tolerance
        assert (net.stats["mean"] == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 57])
@pytest.mark.parametrize("decay_from", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_linear_falls_towards_but_never_to_zero(steps, decay_from):
    factors = [linear(step, steps, decay_from) for step in range(steps)]
    assert factors[0] == 1.0
    assert all(0 < f <= 1 for f in factors)
    start = min(int(steps * decay_from), steps - 1)
    assert all(f == 1 for f in factors[: start + 1])
    falls = -np.diff(factors[start:])
    assert (falls > 0).all()
    assert np.allclose(falls, 1 / (steps - start))  # in equal parts, the last of which ends at zero
    assert factors[-1] == pytest.approx(1 / (steps - start))
    assert linear(steps, steps, decay_from) == 0


def test_constant_is_one():
    assert {constant(step, 10, 0.5) for step in range(10)} == {1.0}
    assert SCHEDULES == {"constant": constant, "linear": linear}
