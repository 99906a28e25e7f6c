"""Losses: adversarial ones as (discriminator, generator) pairs, reconstruction ones by name.

Each takes arrays of one device's examples and returns their mean, a scalar; the step weighs them
and averages over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2p_jax import metrics

Array = jax.Array


class Adversarial(NamedTuple):
    """A pair of losses on logits `[b, h, w, 1]`.

    Attributes:
      disc: of the logits of real and of fake images, the sum of both sides.
      gen: of the logits of fake images.
      penalty: whether the discriminator's loss needs `gradient_penalty` as well.
    """

    disc: Callable[[Array, Array], Array]
    gen: Callable[[Array], Array]
    penalty: bool = False


def _mean(values: Array) -> Array:
    """The mean of `[b, h, w, c]`, by image first: so device counts differ in one short sum."""
    return values.mean((1, 2, 3)).mean()


def _wide(values: Array) -> Array:
    """In float32, or as they are where that is more."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


# --- adversarial ---------------------------------------------------------------------------------


def _vanilla_disc(real_logits: Array, fake_logits: Array) -> Array:
    return _mean(jax.nn.softplus(-real_logits)) + _mean(jax.nn.softplus(fake_logits))


def _vanilla_gen(fake_logits: Array) -> Array:
    return _mean(jax.nn.softplus(-fake_logits))


def _lsgan_disc(real_logits: Array, fake_logits: Array) -> Array:
    return _mean(jnp.square(real_logits - 1)) + _mean(jnp.square(fake_logits))


def _lsgan_gen(fake_logits: Array) -> Array:
    return _mean(jnp.square(fake_logits - 1))


def _hinge_disc(real_logits: Array, fake_logits: Array) -> Array:
    return _mean(jax.nn.relu(1 - real_logits)) + _mean(jax.nn.relu(1 + fake_logits))


def _wgan_disc(real_logits: Array, fake_logits: Array) -> Array:
    return _mean(fake_logits) - _mean(real_logits)


def _minus_mean(fake_logits: Array) -> Array:
    return -_mean(fake_logits)


def gradient_penalty(gradients: Array) -> Array:
    """How far the norms of gradients are from one (Gulrajani et al. 2017, equation 3).

    Args:
      gradients: `[b, h, w, c]`, of the discriminator's output, summed over logits, with respect to
        its input, one per example.

    Returns:
      The mean square of (norm - 1); its gradient is finite everywhere, and zero where all
      gradients are.
    """
    flat = _wide(gradients).reshape(gradients.shape[0], -1)
    return jnp.square(optax.safe_norm(flat, 0.0, axis=1) - 1).mean()


ADVERSARIAL = {
    # Cross entropy on logits with the non-saturating generator loss (Goodfellow et al. 2014; Isola
    # et al. 2017, section 3.3).
    "vanilla": Adversarial(_vanilla_disc, _vanilla_gen),
    # Squares, towards 1 for real and 0 for fake (Mao et al. 2017, equation 9, not halved).
    "lsgan": Adversarial(_lsgan_disc, _lsgan_gen),
    # Margins of one on either side (Lim and Ye 2017).
    "hinge": Adversarial(_hinge_disc, _minus_mean),
    # The earth mover's distance, by a discriminator of slope one (Gulrajani et al. 2017).
    "wgan-gp": Adversarial(_wgan_disc, _minus_mean, penalty=True),
}

# --- reconstruction ------------------------------------------------------------------------------


def l1(fake: Array, target: Array) -> Array:
    """Mean absolute error of `[b, h, w, c]` in [-1, 1] (Isola et al. 2017, equation 3)."""
    # Not jnp.abs, whose gradient at zero is 1: here, equal pixels have none, as in PyTorch.
    difference = fake - target
    return _mean(difference * jnp.sign(difference))


def l2(fake: Array, target: Array) -> Array:
    """Mean squared error of `[b, h, w, c]` in [-1, 1]."""
    return _mean(jnp.square(fake - target))


def smooth_l1(fake: Array, target: Array) -> Array:
    """Mean of half the square of differences below 1, and of the others less a half.

    Of `[b, h, w, c]` in [-1, 1]; PyTorch's `smooth_l1_loss` (Girshick 2015, equation 3).
    """
    return _mean(optax.losses.huber_loss(fake, target, delta=1.0))


def charbonnier(fake: Array, target: Array) -> Array:
    """Mean of sqrt(difference^2 + 0.001^2) of `[b, h, w, c]` in [-1, 1] (Lai et al. 2017)."""
    return _mean(jnp.sqrt(jnp.square(fake - target) + 1e-6))


def ssim(fake: Array, target: Array) -> Array:
    """One minus the structural similarity of `[b, h, w, c]` in [-1, 1], in [0, 2].

    Raises:
      ValueError: images smaller than the window of `metrics.ssim`.
    """
    return 1 - metrics.ssim((fake + 1) / 2, (target + 1) / 2).mean()


def cross_entropy(fake: Array, target: Array) -> Array:
    """Mean over pixels of the cross entropy of probabilities, in nats.

    Args:
      fake: probabilities of classes, `[b, h, w, c]` in at least float32, as after softmax; the
        loss and its gradient hold down to the least normal number, below which there is none.
      target: 1 for the class that it is, 0 for the others, likewise.
    """
    logs = jnp.log(jnp.maximum(fake, jnp.finfo(fake.dtype).tiny))
    return _mean(-(target * logs).sum(-1, keepdims=True))


RECONSTRUCTION = {
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "charbonnier": charbonnier,
    "ssim": ssim,
    "cross_entropy": cross_entropy,
}

# --- features ------------------------------------------------------------------------------------


def feature_matching(
    fake: tuple[tuple[Array, ...], ...], real: tuple[tuple[Array, ...], ...]
) -> Array:
    """Distance of a discriminator's activations (Wang et al. 2018, equation 4, as in its code).

    Args:
      fake: by scale, the activations of each layer, `[b, h, w, c]`, on fake images; the last ones
        of a scale, its logits, are left out.
      real: likewise on real images; no gradient flows into them.

    Returns:
      The mean over scales of 4 times the mean over layers of their mean absolute difference, in at
      least float32.
    """
    scales = []
    for ours, theirs in zip(fake, real, strict=True):
        layers = [
            l1(_wide(a), jax.lax.stop_gradient(_wide(b)))
            for a, b in zip(ours[:-1], theirs[:-1], strict=True)
        ]
        scales.append(4 * jnp.stack(layers).mean())
    return jnp.stack(scales).mean()
