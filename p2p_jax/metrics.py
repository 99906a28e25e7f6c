"""Image metrics per example, on 8-bit images read as [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SSIM_WINDOW = 11  # pixels: smaller images have no SSIM


class Metric(NamedTuple):
    """A metric and which way is better.

    Attributes:
      fn: (fake, target), each `[b, h, w, c]` floating in [0, 1], to `[b]`.
      mode: `min` or `max`.
    """

    fn: Callable[[Array, Array], Array]
    mode: str


def l1(fake: Array, target: Array) -> Array:
    """Mean absolute error, `[b]` in [0, 1]."""
    return jnp.abs(fake - target).mean((1, 2, 3))


def psnr(fake: Array, target: Array) -> Array:
    """Peak signal-to-noise ratio, `[b]` in dB; equal images count as 100 dB, not infinity."""
    return -10 * jnp.log10(jnp.maximum(jnp.square(fake - target).mean((1, 2, 3)), 1e-10))


def ssim(fake: Array, target: Array) -> Array:
    """Structural similarity, `[b]` in [-1, 1] (Wang et al. 2004).

    Gaussian window of 11x11 pixels with sigma 1.5, only where it lies wholly inside the image;
    range 1; each channel by itself, then their mean. It is scikit-image's
    `structural_similarity(gaussian_weights=True, use_sample_covariance=False, data_range=1)`.

    Raises:
      ValueError: an image smaller than the window.
    """
    if min(fake.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, not {fake.shape[1:3]}")
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()

    def blur(x: Array) -> Array:
        # Two small sums along the axes, elementwise: a convolution would round in low precision
        # on accelerators, and variances here are differences of nearly equal numbers.
        for axis in (1, 2):
            n = x.shape[axis] - SSIM_WINDOW + 1
            parts = [jax.lax.slice_in_dim(x, k, k + n, axis=axis) for k in range(SSIM_WINDOW)]
            x = sum((float(w) * p for w, p in zip(weights[1:], parts[1:], strict=True)),
                    float(weights[0]) * parts[0])  # fmt: skip
        return x

    mean_f, mean_t = blur(fake), blur(target)
    var_f = blur(fake * fake) - mean_f**2
    var_t = blur(target * target) - mean_t**2
    cov = blur(fake * target) - mean_f * mean_t
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_f * mean_t + c1) * (2 * cov + c2)
    bottom = (mean_f**2 + mean_t**2 + c1) * (var_f + var_t + c2)
    return (top / bottom).mean((1, 2, 3))


def accuracy(fake: Array, target: Array) -> Array:
    """Share of pixels, `[b]` in [0, 1], of which all channels are the same 8-bit level."""
    same = (jnp.abs(fake - target) < 0.5 / 255).all(-1)
    return same.astype(fake.dtype).mean((1, 2))


METRICS = {
    "l1": Metric(l1, "min"),
    "psnr": Metric(psnr, "max"),
    "ssim": Metric(ssim, "max"),
    "accuracy": Metric(accuracy, "max"),
}
