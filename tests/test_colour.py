"""Colour spaces against scikit-image, and the tasks that encode stored pairs."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from PIL import Image
from skimage import color

from p2p_jax.colour import lab_to_rgb, rgb_to_lab
from p2p_jax.images import to_signed
from p2p_jax.tasks import TASKS

# Types, and how near Lab (in its units) and sRGB come to scikit-image's.
PRECISIONS = [("float32", 1e-2, 1e-4), ("float64", 1e-10, 1e-10)]


def grid():
    """All colours of 18 levels a channel, black and white among them, `[2, 54, 54, 3]` uint8."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(2, 54, 54, 3)


def photos(channels=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (2, 6, 8, channels)).astype(np.float32)


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


def test_translate_leaves_pairs_as_they_are():
    task = TASKS["translate"]((3, 1))
    source, target = photos(3), photos(1, seed=1)
    got = quick_jit(task.encode)(source, target)
    assert task.channels == (3, 1)
    for signed, stored in zip(got, (source, target), strict=True):
        assert np.allclose(signed, to_signed(jnp.asarray(stored), "float32"), atol=1e-6)
    # Each is shown for itself.
    assert (np.asarray(task.show(*got)) == np.round(target)).all()
    assert (np.asarray(task.show_source(got[0])) == np.round(source)).all()
    assert task.show(*got).dtype == task.show_source(got[0]).dtype == np.uint8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_translate_makes_grey_by_the_luma_of_pil(dtype):
    with jax.enable_x64(dtype == "float64"):
        task = TASKS["translate"]((1, 3))
        source, target = quick_jit(task.encode)(grid().astype(dtype), grid().astype(dtype))
        assert source.dtype == target.dtype == dtype
        assert source.shape == (2, 54, 54, 1) and target.shape == (2, 54, 54, 3)
        assert (np.asarray(task.show(source, target)) == grid()).all()
        grey = np.asarray(source)[..., 0] * 127.5 + 127.5
    luma = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in grid()])
    assert np.abs(grey - luma).max() < 0.51  # PIL rounds it
    assert np.abs(grey - grid() @ np.array([0.299, 0.587, 0.114])).max() < 1e-4


@pytest.mark.parametrize(
    "channels,stored,message",
    [
        ((3, 3), (1, 3), "source images are stored with 1 channels and wanted with 3"),
        ((3, 1), (3, 4), "target images are stored with 4 channels and wanted with 1"),
        ((2, 3), (3, 3), "source images are stored with 3 channels and wanted with 2"),
    ],
)
def test_translate_names_channels_that_do_not_fit(channels, stored, message):
    with pytest.raises(ValueError, match=message):
        TASKS["translate"](channels).encode(*(jnp.asarray(photos(c)) for c in stored))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_colorize_splits_photos_and_joins_them_again(dtype):
    task = TASKS["colorize"]((3, 3))
    assert task.channels == (1, 2) and task is TASKS["colorize"]((3, 3))
    photo = grid()
    with jax.enable_x64(dtype == "float64"):
        source, target = quick_jit(task.encode)(photos(1).astype(dtype), photo.astype(dtype))
        shown = np.asarray(quick_jit(task.show)(source, target))
    assert source.shape == (2, 54, 54, 1) and target.shape == (2, 54, 54, 2)
    assert source.dtype == target.dtype == dtype
    lab = color.rgb2lab(photo)
    assert np.abs(np.asarray(source)[..., 0] - (lab[..., 0] / 50 - 1)).max() < 1e-4
    assert np.abs(np.asarray(target) - lab[..., 1:] / 110).max() < 1e-4
    assert max(abs(np.asarray(x)).max() for x in (source, target)) < 1 + 1e-6
    assert shown.dtype == np.uint8 and (shown == photo).all()


def test_colorize_shows_the_image_in_the_light_of_the_source():
    task = TASKS["colorize"]((1, 2))
    source, image = np.full((1, 4, 4, 1), 0.2, "f"), np.zeros((1, 4, 4, 2), "f")
    image[..., 0] = 0.4
    show = quick_jit(task.show)
    got = np.asarray(show(source, image))
    wanted = color.lab2rgb(np.broadcast_to([60.0, 44.0, 0.0], (1, 4, 4, 3)))
    assert np.abs(got - wanted * 255).max() <= 0.51
    # Far outside of sRGB it is clipped, not wrapped.
    wild = np.asarray(show(source, np.ones_like(image)))
    assert (wild == wild[0, 0, 0]).all() and wild[0, 0, 0].tolist() == [255, 0, 0]


def test_colorize_shows_its_source_as_grey():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    photo = jnp.asarray(np.repeat(levels, 3, -1), "float32")
    task = TASKS["colorize"]((1, 2))
    source, target = quick_jit(task.encode)(photo, photo)
    shown = quick_jit(task.show_source)(source)
    assert shown.dtype == np.uint8 and (np.asarray(shown) == levels).all()
    # Grey has no colour, but for the digits of the white point.
    assert abs(np.asarray(target)).max() < 1e-3


def test_colorize_names_channels_that_do_not_fit():
    for channels in ((3, 1), (1, 3), (2, 1)):
        with pytest.raises(ValueError, match=r"\(1, 2\).*not \(\d, \d\)"):
            TASKS["colorize"](channels)
    with pytest.raises(ValueError, match="stored with 1 channels"):
        TASKS["colorize"]((1, 2)).encode(jnp.asarray(photos(3)), jnp.asarray(photos(1)))
