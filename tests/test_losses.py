"""The losses, against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rel

from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION, l1, l2

VANILLA = ADVERSARIAL["vanilla"]


def cross_entropy(logits, label):
    """Binary cross entropy of probabilities, by its definition."""
    p = 1 / (1 + np.exp(-logits))
    return -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()


def test_vanilla_is_the_binary_cross_entropy():
    with jax.enable_x64(True):
        real, fake = np.random.default_rng(0).normal(0, 3, (2, 2, 5, 4, 1))
        wanted = cross_entropy(real, 1) + cross_entropy(fake, 0)
        assert rel(VANILLA.disc(real, fake), wanted) < 1e-12
        # Not saturating: the generator wants its images taken for real.
        assert rel(VANILLA.gen(fake), cross_entropy(fake, 1)) < 1e-12


def test_undecided_logits_cost_one_bit_a_side():
    zero = jnp.zeros((1, 2, 2, 1))
    assert VANILLA.disc(zero, zero) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert VANILLA.gen(zero) == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("logit", [1e3, 1e5])
def test_large_logits_overflow_nowhere(logit):
    big = jnp.full((1, 2, 2, 1), logit)
    assert VANILLA.disc(big, -big) == 0 and VANILLA.gen(big) == 0
    assert VANILLA.disc(-big, big) == 2 * logit and VANILLA.gen(-big) == logit
    for x in (big, -big):
        assert np.isfinite(jax.grad(VANILLA.gen)(x)).all()
        assert np.isfinite(jax.grad(VANILLA.disc)(x, x)).all()
    # Where the generator loses, its gradient is whole, one over the number of logits.
    assert np.allclose(jax.grad(VANILLA.gen)(-big), -0.25)


def test_reconstruction_is_a_mean_over_all_pixels():
    with jax.enable_x64(True):
        fake, target = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 5, 3))
        assert rel(l1(fake, target), np.abs(fake - target).mean()) < 1e-12
        assert rel(l2(fake, target), ((fake - target) ** 2).mean()) < 1e-12
    assert RECONSTRUCTION == {"l1": l1, "l2": l2}
