"""Resizing and padding of images, and what their numbers mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from PIL import Image

from p2p_jax.images import RESIZE, Values, from_signed, pad, resize, to_levels, to_signed

LOAD = (20, 23)


def pictures(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape)


def resized(images, size, method, dtype=np.float64):
    """`resize`, compiled, in one precision."""
    with jax.enable_x64(dtype == np.float64):
        got = quick_jit(lambda x: resize(x, size, method))(np.asarray(images, dtype))
        assert got.dtype == dtype
        return np.asarray(got)


def test_resize():
    images = pictures((2, 12, 20, 3)).astype(np.float32)
    assert (resize(images, (12, 20)) == images).all()
    got = np.asarray(resize(jnp.asarray(images), (6, 10)))
    assert got.shape == (2, 6, 10, 3)
    # Antialiased: in the middle, the weights 1 3 3 1 of a triangle twice as wide.
    rows = np.tensordot([1, 3, 3, 1], images[:, 3:7], (0, 1)) / 8
    wanted = np.tensordot([1, 3, 3, 1], rows[:, 7:11], (0, 1)) / 8
    assert np.allclose(got[:, 2, 4], wanted, rtol=1e-5)
    flat = np.full((1, 5, 7, 3), 77, np.float32)
    assert np.allclose(resize(flat, (16, 9)), 77, rtol=1e-6)


SIZES = [((16, 18), LOAD), (LOAD, (7, 9)), ((9, 30), (21, 11))]


def clear(stored, wanted):
    """The output pixels whose centre lies within an input pixel, not on the edge of two."""
    return np.flatnonzero((2 * np.arange(wanted) + 1) * stored % (2 * wanted))


@pytest.mark.parametrize("stored,wanted", SIZES)
@pytest.mark.parametrize("method,name", [("bilinear", "linear"), ("bicubic", "cubic")])
def test_bilinear_and_bicubic_are_those_of_jax(method, name, stored, wanted):
    # Far enough from 0 and 255 that nothing is clipped.
    images = 100 + pictures((2, *stored, 3)) / 4
    with jax.enable_x64(True):
        theirs = np.asarray(jax.image.resize(images, (2, *wanted, 3), name))
    assert np.abs(resized(images, wanted, method) - theirs).max() < 1e-11
    assert np.abs(resized(images, wanted, method, np.float32) - theirs).max() < 1e-4


def covered(image, wanted):
    """The mean of the input that each output pixel covers, by loops over both."""
    out = np.zeros((*wanted, image.shape[2]))
    (h, w), (stored_h, stored_w) = wanted, image.shape[:2]
    for i, j in np.ndindex(*wanted):
        top, bottom = i * stored_h / h, (i + 1) * stored_h / h
        left, right = j * stored_w / w, (j + 1) * stored_w / w
        for y, x in np.ndindex(stored_h, stored_w):
            high = min(bottom, y + 1) - max(top, y)
            wide = min(right, x + 1) - max(left, x)
            if high > 0 and wide > 0:
                area = (bottom - top) * (right - left)
                out[i, j] += image[y, x] * high * wide / area
    return out


@pytest.mark.parametrize("stored,wanted", [((16, 18), (18, 20)), ((11, 9), (7, 5)), SIZES[-1]])
def test_area_is_the_mean_of_what_a_pixel_covers(stored, wanted):
    images = pictures((1, *stored, 2))
    assert np.abs(resized(images, wanted, "area")[0] - covered(images[0], wanted)).max() < 1e-11


def by_pil(image, size, how):
    return np.asarray(Image.fromarray(image).resize(size[::-1], how))


@pytest.mark.parametrize(
    "method,how,stored,wanted,levels",
    [
        # PIL rounds between the two axes. Of these, all its versions begin with the columns.
        ("bicubic", Image.Resampling.BICUBIC, (256, 256), (286, 286), 1),
        ("bicubic", Image.Resampling.BICUBIC, (90, 70), (64, 48), 1),
        ("bilinear", Image.Resampling.BILINEAR, (90, 70), (64, 48), 1),
        ("area", Image.Resampling.BOX, (96, 120), (32, 30), 1),
        ("nearest", Image.Resampling.NEAREST, (256, 200), (286, 286), 0),
        ("nearest", Image.Resampling.NEAREST, (96, 121), (33, 30), 0),
    ],
)
def test_levels_are_those_of_pil(method, how, stored, wanted, levels):
    image = np.random.default_rng(4).choice([0, 20, 128, 255], (*stored, 3)).astype(np.uint8)
    theirs = by_pil(image, wanted, how).astype(float)
    got = resized(image[None], wanted, method, np.float32)[0]
    assert got.min() >= 0 and got.max() < 255.001
    if method == "nearest":  # PIL adds up the centres, so that on an edge its rounding decides
        rows, columns = (clear(s, w) for s, w in zip(stored, wanted, strict=True))
        got, theirs = (x[rows][:, columns] for x in (got, theirs))
    assert np.abs(np.round(got) - theirs).max() <= levels


def test_bicubic_overshoots_no_further_than_the_levels():
    image = np.zeros((1, 8, 8, 1))
    image[:, 2:6, 2:6] = 255
    got = resized(image, (24, 24), "bicubic")
    assert got.min() == 0 and got.max() == 255
    # Inside, it would be beyond white without the clip.
    assert (got[0, 10:14, 10:14] == 255).any()


@pytest.mark.parametrize("method", RESIZE)
@pytest.mark.parametrize("stored,wanted", SIZES)
def test_constants_stay_and_mirror_images_are_mirrored(stored, wanted, method):
    flat = np.full((1, *stored, 3), 77)
    assert np.abs(resized(flat, wanted, method) - 77).max() < 1e-12
    images = pictures((1, *stored, 3))
    got = resized(images, wanted, method)
    again = resized(images[:, ::-1, ::-1], wanted, method)[:, ::-1, ::-1]
    if method == "nearest":  # a centre that lies on an edge takes the pixel after it
        inside = [clear(s, w) for s, w in zip(stored, wanted, strict=True)]
        assert all(map(len, inside))
        got, again = (x[:, inside[0]][:, :, inside[1]] for x in (got, again))
    assert np.abs(again - got).max() < 1e-11


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_invents_no_value_and_takes_the_pixel_of_the_centre(dtype):
    images = pictures((1, 6, 9, 2)).astype(dtype)
    # The second row's centre lies on the edge of rows 0 and 1: (1 + 1/2) * 6 / 9 = 1.
    rows, columns = [0, 1, 1, 2, 3, 3, 4, 5, 5], [1, 4, 7]
    got = resized(images, (9, 3), "nearest", dtype)
    assert (got == images[:, rows][:, :, columns]).all()


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match=r"'box'.*bilinear, bicubic, area, nearest"):
        resize(jnp.zeros((1, 4, 4, 3)), (4, 4), "box")


# --- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (8, 9), (7, 20), (15, 19), (40, 50)])
def test_padding_is_that_of_numpy(size, x64):
    """However often what there is must be mirrored."""
    true = np.array([[7, 9], [1, 1], [2, 5], [7, 1]], np.int32)
    with jax.enable_x64(x64):
        images = pictures((4, 7, 9, 2)).astype(np.float64 if x64 else np.float32)
        whole = np.asarray(quick_jit(lambda x: pad(x, size))(images))
        parts = np.asarray(quick_jit(lambda x, sizes: pad(x, size, sizes))(images, true))
    assert whole.dtype == parts.dtype == images.dtype
    for i, (h, w) in enumerate(true):
        for got, stored in ((whole[i], images[i]), (parts[i], images[i, :h, :w])):
            more = [(0, n - s) for n, s in zip(size, stored.shape[:2], strict=True)]
            assert (got == np.pad(stored, (*more, (0, 0)), "symmetric")).all()


def test_integers_and_nothing_can_be_padded():
    images = np.arange(24, dtype=np.uint16).reshape(2, 3, 4, 1)
    got = pad(jnp.asarray(images), (5, 5))
    assert got.dtype == np.uint16 and (got[:, 3] == got[:, 2]).all()
    # What fills up a batch may be of no size; it only must not harm.
    assert pad(jnp.asarray(images), (5, 5), jnp.zeros((2, 2), jnp.int32)).shape == (2, 5, 5, 1)
    assert pad(jnp.zeros((2, 3, 4, 0)), (5, 5)).shape == (2, 5, 5, 0)


def test_padding_does_not_shrink():
    for size in ((3, 9), (9, 3)):
        with pytest.raises(ValueError, match=f"4x5 cannot be padded to {size[0]}x{size[1]}"):
            pad(jnp.zeros((1, 4, 5, 3)), size)


# --- what numbers mean ---------------------------------------------------------------------------

UINT16 = Values("uint16", 0, 65535)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", [Values(), UINT16, Values("uint16", 1000, 1255)])
def test_all_levels_survive_the_way_to_signed_and_back(values, dtype):
    with jax.enable_x64(dtype == "float64"):
        stored = np.arange(values.low, values.high + 1, dtype=values.dtype).reshape(1, 16, -1, 1)
        levels = quick_jit(lambda x: to_levels(x, values, dtype))(stored)
        assert levels.dtype == dtype
        assert levels.min() == 0 and abs(levels.max() - 255) < 1e-4
        signed = to_signed(levels, dtype)
        assert signed.dtype == dtype
        assert signed.min() == -1 and abs(signed.max() - 1) < 1e-6
        back = quick_jit(lambda x: from_signed(x, values))(signed)
        assert back.dtype == values.dtype and (back == stored).all()


@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32"])
def test_levels_that_are_levels_are_only_cast(stored):
    numbers = np.arange(1000, dtype=stored) if stored != "uint8" else np.arange(256, dtype=stored)
    values = Values(stored, 0.0, 255.0)
    assert (to_levels(jnp.asarray(numbers), values, "float32") == numbers).all()
    made = jax.make_jaxpr(lambda x: to_levels(x, values, "float32"))(numbers)
    assert {e.primitive.name for e in made.eqns} <= {"convert_element_type"}


def test_floats_keep_their_range():
    values = Values("float32", -3.0, 5.0)
    stored = np.linspace(-4, 6, 41).astype(np.float32)
    levels = to_levels(jnp.asarray(stored), values, "float32")
    assert np.allclose(levels, (stored + 3) / 8 * 255, atol=1e-4)
    back = from_signed(to_signed(levels, "float32"), values)
    assert back.dtype == np.float32 and np.allclose(back, stored, atol=1e-5)  # also what is beyond


def test_whole_numbers_are_rounded_to_nearest_and_clipped_to_their_type():
    x = jnp.array([-1.5, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 253.6 / 127.5 - 1, 1.0, 7.0])
    assert from_signed(x).tolist() == [0, 0, 0, 1, 254, 255, 255]
    x = jnp.array([-3.0, -1.0, 0.0, 1.0, 1e3])
    assert from_signed(x, Values("uint16", 100, 300)).tolist() == [0, 100, 200, 300, 65535]
