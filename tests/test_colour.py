"""Colour spaces against scikit-image."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from helpers import quick_jit
from skimage import color

from p2p_jax.colour import lab_to_rgb, rgb_to_lab

# Types, and how near Lab (in its units) and sRGB come to scikit-image's.
PRECISIONS = [("float32", 1e-2, 1e-4), ("float64", 1e-10, 1e-10)]


def grid():
    """All colours of 18 levels a channel, black and white among them, `[2, 54, 54, 3]` uint8."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(2, 54, 54, 3)


@pytest.mark.parametrize("dtype,lab_error,rgb_error", PRECISIONS)
def test_lab_is_that_of_scikit_image(dtype, lab_error, rgb_error):
    rgb = grid() / 255
    wanted = color.rgb2lab(rgb)
    with jax.enable_x64(dtype == "float64"):
        lab = quick_jit(rgb_to_lab)(rgb.astype(dtype))
        back = quick_jit(lab_to_rgb)(wanted.astype(dtype))
    assert lab.dtype == back.dtype == dtype
    assert np.abs(np.asarray(lab) - wanted).max() < lab_error
    assert np.abs(np.asarray(back) - color.lab2rgb(wanted)).max() < rgb_error
    # Black is not a special case.
    assert rgb[0, 0, 0].sum() == 0 and np.abs(np.asarray(lab)[0, 0, 0]).max() < lab_error


@pytest.mark.parametrize("dtype,lab_error,rgb_error", PRECISIONS)
def test_colours_that_srgb_lacks_are_clipped_as_by_scikit_image(dtype, lab_error, rgb_error):
    rng = np.random.default_rng(1)
    lab = rng.uniform((0, -110, -110), (100, 110, 110), (2, 30, 40, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of the colours it clips
        wanted = color.lab2rgb(lab)
    with jax.enable_x64(dtype == "float64"):
        got = np.asarray(quick_jit(lab_to_rgb)(lab.astype(dtype)))
    assert (wanted == 0).any() and (wanted == 1).any()
    assert np.abs(got - wanted).max() < rgb_error
    assert got.min() == 0 and got.max() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_colours_survive_the_way_to_lab_and_back(dtype):
    with jax.enable_x64(dtype == "float64"):
        back = quick_jit(lambda x: lab_to_rgb(rgb_to_lab(x)))(grid().astype(dtype) / 255)
        levels = np.round(np.asarray(back) * 255)
    assert (levels == grid()).all()
