"""Losses: adversarial ones as (discriminator, generator) pairs, reconstruction ones by name.

Each takes arrays of one device's examples and returns their mean, a scalar; the step weighs them
and averages over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Adversarial(NamedTuple):
    """A pair of losses on logits `[b, h, w, 1]`.

    Attributes:
      disc: of the logits of real and of fake images, the sum of both sides.
      gen: of the logits of fake images.
    """

    disc: Callable[[Array, Array], Array]
    gen: Callable[[Array], Array]


def _mean(values: Array) -> Array:
    """The mean of `[b, h, w, c]`, by image first: so device counts differ in one short sum."""
    return values.mean((1, 2, 3)).mean()


def _vanilla_disc(real_logits: Array, fake_logits: Array) -> Array:
    return _mean(jax.nn.softplus(-real_logits)) + _mean(jax.nn.softplus(fake_logits))


def _vanilla_gen(fake_logits: Array) -> Array:
    return _mean(jax.nn.softplus(-fake_logits))


def l1(fake: Array, target: Array) -> Array:
    """Mean absolute error of `[b, h, w, c]` in [-1, 1] (Isola et al. 2017, equation 3)."""
    return _mean(jnp.abs(fake - target))


def l2(fake: Array, target: Array) -> Array:
    """Mean squared error of `[b, h, w, c]` in [-1, 1]."""
    return _mean(jnp.square(fake - target))


# Cross entropy on logits with the non-saturating generator loss (Goodfellow et al. 2014; Isola et
# al. 2017, section 3.3).
ADVERSARIAL = {"vanilla": Adversarial(_vanilla_disc, _vanilla_gen)}
RECONSTRUCTION = {"l1": l1, "l2": l2}
