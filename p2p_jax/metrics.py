"""Image metrics per example, on 8-bit images read as [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SSIM_WINDOW = 11  # pixels: smaller images have no SSIM
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, the finest first
MS_SSIM_SIZE = 161  # halved, rounding up, until the window just fits at the coarsest scale
_C1, _C2 = 0.01**2, 0.03**2
LPIPS_SIZE = {"alex": 31, "vgg": 16}  # what the poolings of its backbones leave a pixel of


class Metric(NamedTuple):
    """A metric and which way is better.

    Attributes:
      fn: (fake, target), each `[b, h, w, c]` floating in [0, 1], to `[b]`.
      mode: `min` or `max`.
      least: pixels a side that it needs.
      about: what is to be printed beside it, if anything.
    """

    fn: Callable[[Array, Array], Array]
    mode: str
    least: int = 1
    about: str = ""


def l1(fake: Array, target: Array) -> Array:
    """Mean absolute error, `[b]` in [0, 1]."""
    return jnp.abs(fake - target).mean((1, 2, 3))


def l2(fake: Array, target: Array) -> Array:
    """Mean squared error, `[b]` in [0, 1]."""
    return jnp.square(fake - target).mean((1, 2, 3))


def psnr(fake: Array, target: Array) -> Array:
    """Peak signal-to-noise ratio, `[b]` in dB; equal images count as 100 dB, not infinity."""
    return -10 * jnp.log10(jnp.maximum(l2(fake, target), 1e-10))


def ssim(fake: Array, target: Array) -> Array:
    """Structural similarity, `[b]` in [-1, 1] (Wang et al. 2004).

    Gaussian window of 11x11 pixels with sigma 1.5, only where it lies wholly inside the image;
    range 1; each channel by itself, then their mean. It is scikit-image's
    `structural_similarity(gaussian_weights=True, use_sample_covariance=False, data_range=1)`.

    Raises:
      ValueError: an image smaller than the window.
    """
    _check_size("SSIM", fake, SSIM_WINDOW)
    mean_f, mean_t, var_f, var_t, cov = _moments(fake, target)
    top = (2 * mean_f * mean_t + _C1) * (2 * cov + _C2)
    bottom = (mean_f**2 + mean_t**2 + _C1) * (var_f + var_t + _C2)
    return (top / bottom).mean((1, 2, 3))


def _check_size(name: str, image: Array, least: int) -> None:
    if min(image.shape[1:3]) < least:
        raise ValueError(f"{name} needs {least} pixels a side, not {image.shape[1:3]}")


def _moments(fake: Array, target: Array) -> tuple[Array, ...]:
    """Means of both, their variances and covariance, of each window that lies in the image."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()

    # Two small sums along the axes, elementwise: a convolution would round in low precision
    # on accelerators, and variances here are differences of nearly equal numbers.
    x = jnp.stack([fake, target, fake * fake, target * target, fake * target])
    for axis in (2, 3):
        n = x.shape[axis] - SSIM_WINDOW + 1
        parts = [jax.lax.slice_in_dim(x, k, k + n, axis=axis) for k in range(SSIM_WINDOW)]
        x = sum((float(w) * p for w, p in zip(weights[1:], parts[1:], strict=True)),
                float(weights[0]) * parts[0])  # fmt: skip
    mean_f, mean_t, square_f, square_t, product = x
    return mean_f, mean_t, square_f - mean_f**2, square_t - mean_t**2, product - mean_f * mean_t


def ms_ssim(fake: Array, target: Array) -> Array:
    """Multi-scale structural similarity, `[b]` in [0, 1] (Wang, Simoncelli and Bovik 2003).

    Five scales, each half as fine as the one before: 2x2 pixels are averaged, an odd last row or
    column with itself. Contrast and structure of all scales, and luminance of the last, each its
    mean over the image and nothing where that is negative, to the power of `SCALE_WEIGHTS`, are
    multiplied; each channel by itself, then their mean.

    Raises:
      ValueError: an image smaller than `MS_SSIM_SIZE`.
    """
    _check_size("MS-SSIM", fake, MS_SSIM_SIZE)
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            fake, target = _halved(fake), _halved(target)
        mean_f, mean_t, var_f, var_t, cov = _moments(fake, target)
        alike = (2 * cov + _C2) / (var_f + var_t + _C2)
        if scale == len(SCALE_WEIGHTS) - 1:
            alike *= (2 * mean_f * mean_t + _C1) / (mean_f**2 + mean_t**2 + _C1)
        product *= jnp.maximum(alike.mean((1, 2)), 0) ** weight
    return product.mean(-1)  # pyright: ignore[reportAttributeAccessIssue]


def _halved(x: Array) -> Array:
    """Means of 2x2 pixels, `[b, h, w, c]`; what is missing at the end repeats the last."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c).mean((2, 4))


def accuracy(fake: Array, target: Array) -> Array:
    """Share of pixels, `[b]` in [0, 1], of which all channels are the same 8-bit level."""
    same = (jnp.abs(fake - target) < 0.5 / 255).all(-1)
    return same.astype(fake.dtype).mean((1, 2))


METRICS = {
    "l1": Metric(l1, "min"),
    "l2": Metric(l2, "min"),
    "psnr": Metric(psnr, "max"),
    "ssim": Metric(ssim, "max", SSIM_WINDOW),
    "ms_ssim": Metric(ms_ssim, "max", MS_SSIM_SIZE),
    "accuracy": Metric(accuracy, "max"),
}


def least_size(name: str, backbone: str = "alex") -> int:
    """Pixels a side that images need for a metric or score; `backbone` is that of `lpips`."""
    if name == "lpips":
        return LPIPS_SIZE[backbone]
    return METRICS[name].least if name in METRICS else 1
