"""Metrics against scikit-image and numpy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers import quick_jit
from scipy.ndimage import correlate1d
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from p2p_jax.metrics import METRICS, MS_SSIM_SIZE, l1, least_size, ms_ssim, ssim


def run(name, fake, target):
    """A metric, compiled."""
    return np.asarray(quick_jit(METRICS[name].fn)(fake, target))


def pairs(size, n=4):
    """Smooth images and copies with ever more noise, as 8-bit images in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (n, 4, 4, 3))
    big = np.kron(coarse, np.ones((1, -(-size[0] // 4), -(-size[1] // 4), 1)))
    target = big[:, : size[0], : size[1]]
    noise = rng.normal(size=target.shape) * np.array([1, 5, 20, 90]).reshape(4, 1, 1, 1)
    return tuple(np.round(np.clip(x, 0, 255)) / 255 for x in (target + noise, target))


def reference_ssim(a, b):
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
        channel_axis=-1,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (11, 11), (11, 30)])
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-4), ("float64", 1e-10)])
def test_ssim_and_psnr_are_those_of_scikit_image(size, dtype, tolerance):
    fake, target = pairs(size)
    with jax.enable_x64(dtype == "float64"):
        got = [run(name, fake.astype(dtype), target.astype(dtype)) for name in ("ssim", "psnr")]
    each = list(zip(fake, target, strict=True))
    wanted = [reference_ssim(a, b) for a, b in each]
    assert max(wanted) > 0.9 and min(wanted) < 0.7
    assert np.abs(got[0] - wanted).max() < tolerance
    wanted = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in each]
    assert np.abs(got[1] / wanted - 1).max() < tolerance


def test_l1_and_l2_are_means_per_example():
    fake, target = pairs((12, 16))
    got = [run(name, fake.astype(np.float32), target.astype(np.float32)) for name in ("l1", "l2")]
    assert got[0].shape == got[1].shape == (4,)
    assert np.allclose(got[0], np.abs(fake - target).mean((1, 2, 3)), rtol=1e-5)
    each = [mean_squared_error(a, b) for a, b in zip(fake, target, strict=True)]
    assert np.allclose(got[1], each, rtol=1e-5)


def reference_ms_ssim(fake, target):
    """Of images `[b, h, w, c]`, with SciPy's filters."""
    kernel = np.exp(-np.square(np.arange(-5, 6) / 1.5) / 2)
    kernel /= kernel.sum()

    def blur(x):
        x = correlate1d(correlate1d(x, kernel, 1), kernel, 2)
        return x[:, 5:-5, 5:-5]

    def halved(x):
        x = correlate1d(correlate1d(x, [0.5, 0.5], 1, origin=-1, mode="nearest"), [0.5, 0.5], 2,
                        origin=-1, mode="nearest")  # fmt: skip
        return x[:, ::2, ::2]

    result = 1
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mu, nu = blur(fake), blur(target)
        var = blur(fake**2) - mu**2 + blur(target**2) - nu**2
        alike = (2 * (blur(fake * target) - mu * nu) + 9e-4) / (var + 9e-4)
        if scale == 4:
            alike *= (2 * mu * nu + 1e-4) / (mu**2 + nu**2 + 1e-4)
        result = result * np.maximum(alike.mean((1, 2)), 0) ** weight
        fake, target = halved(fake), halved(target)
    return result.mean(-1)


def test_ms_ssim_is_that_of_the_paper():
    # The least, which is odd at each scale, and one that is even at some.
    fake, target = pairs((MS_SSIM_SIZE, 178))
    fake[3, ..., 0] = 1 - target[3, ..., 0]  # contrast the other way round counts as nothing
    got = run("ms_ssim", fake.astype(np.float32), target.astype(np.float32))
    wanted = reference_ms_ssim(fake, target)
    assert wanted[0] > 0.99 and wanted[3] < 0.7
    assert np.abs(got - wanted).max() < 1e-4


@pytest.mark.parametrize("size", [(160, 161), (161, 160)])
def test_an_image_too_small_for_all_scales_has_no_ms_ssim(size):
    x = np.zeros((1, *size, 3), np.float32)
    with pytest.raises(ValueError, match="161 pixels a side"):
        ms_ssim(x, x)


def test_the_least_sizes():
    assert [least_size(name) for name in ("l1", "ssim", "ms_ssim", "fid")] == [1, 11, 161, 1]
    assert least_size("lpips") == 31 and least_size("lpips", "vgg") == 16


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_equal_images(level):
    """Flat ones too: nothing is divided by zero, and noise is not infinitely far below."""
    x = np.full((2, 12, 16, 3), level, np.float32)
    x[1, :6] = 0.5
    assert (run("l1", x, x) == 0).all()
    assert np.allclose(run("psnr", x, x), 100, atol=1e-4)
    assert np.allclose(run("ssim", x, x), 1, atol=1e-5)


def test_equal_images_at_all_scales():
    x = np.full((1, MS_SSIM_SIZE, MS_SSIM_SIZE, 1), 0.3, np.float32)
    assert np.allclose(run("ms_ssim", x, x), 1, atol=1e-5)


def test_opposite_images_are_the_worst():
    black, white = np.zeros((1, 12, 12, 3), np.float32), np.ones((1, 12, 12, 3), np.float32)
    assert l1(black, white)[0] == 1
    assert abs(run("psnr", black, white)[0]) < 1e-5
    assert run("ssim", black, white)[0] < 1e-3


def test_the_better_way_of_each():
    assert set(METRICS) == {"l1", "l2", "psnr", "ssim", "ms_ssim", "accuracy"}
    for name, metric in METRICS.items():
        size = max(16, metric.least)
        fake, target = (x.astype(np.float32) for x in pairs((size, size)))
        good, bad = run(name, fake, target)[[0, 3]]
        assert metric.mode == ("max" if good > bad else "min")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_accuracy_is_the_share_of_pixels_that_are_wholly_equal(dtype):
    rng = np.random.default_rng(1)
    target = rng.integers(0, 256, (3, 10, 12, 3))
    fake = target.copy()
    wrong = rng.uniform(size=(3, 10, 12)) < np.array([0, 0.3, 1]).reshape(3, 1, 1)
    channel = rng.integers(0, 3, wrong.shape)
    # One level in one channel is enough.
    fake[wrong, channel[wrong]] += np.where(fake[wrong, channel[wrong]] < 255, 1, -1)
    with jax.enable_x64(dtype == "float64"):
        got = run("accuracy", *((x / 255).astype(dtype) for x in (fake, target)))
    assert got.dtype == dtype and got.shape == (3,)
    assert np.allclose(got, 1 - wrong.mean((1, 2)), rtol=1e-6)
    assert got[0] == 1 and got[2] == 0


@pytest.mark.parametrize("size", [(10, 11), (11, 10), (4, 64)])
def test_an_image_smaller_than_the_window_has_no_ssim(size):
    x = np.zeros((1, *size, 3), np.float32)
    with pytest.raises(ValueError, match=rf"11 pixels a side, not \({size[0]}, {size[1]}\)"):
        ssim(x, x)
