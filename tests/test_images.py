"""Jitter, mirroring, resizing and scaling of images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image

from p2p_jax.images import RESIZE, Augment, resize, to_signed, to_uint8

LOAD, CROP = (20, 23), (16, 16)


@functools.partial(quick_jit, static_argnums=(0, 1))
def key_of(seed, n):
    """Keys of n examples."""
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def drawing(load_size, crop_size, flip):
    """The draws of many keys, compiled once for all methods, which they do not depend on."""
    return quick_jit(jax.vmap(Augment(load_size, crop_size, flip).draw))


def drawn(augment, keys):
    """Top, left and mirroring of each key."""
    columns = drawing(augment.load_size, augment.crop_size, augment.flip)(keys)
    return list(zip(*map(np.asarray, columns), strict=True))


def draws(augment, n=4000):
    """Tops, lefts and mirrorings of n examples."""
    return tuple(np.array(x) for x in zip(*drawn(augment, key_of(0, n)), strict=True))


def pictures(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape)


def resized(images, size, method, dtype=np.float64):
    """`resize`, compiled, in one precision."""
    with jax.enable_x64(dtype == np.float64):
        got = quick_jit(lambda x: resize(x, size, method))(np.asarray(images, dtype))
        assert got.dtype == dtype
        return np.asarray(got)


def test_crops_cover_all_places_evenly_and_half_are_mirrored():
    n = 4000
    top, left, mirrored = draws(Augment(LOAD, CROP, True), n)
    for places, spare in ((top, 4), (left, 7)):
        assert places.dtype == np.int32
        seen = np.bincount(places, minlength=spare + 1)
        assert len(seen) == spare + 1
        p = 1 / (spare + 1)
        assert (abs(seen - n * p) < 5 * np.sqrt(n * p * (1 - p))).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    # None follows from another.
    assert (abs(np.corrcoef([top, left, mirrored]) - np.eye(3)) < 5 / np.sqrt(n)).all()


def test_nothing_is_left_to_chance_without_room_and_mirroring():
    top, left, mirrored = draws(Augment(CROP, CROP, False), 100)
    assert not top.any() and not left.any() and not mirrored.any()


def test_draws_are_the_same_with_64_bits():
    augment = Augment(LOAD, CROP, True)
    single = draws(augment, 50)
    with jax.enable_x64(True):
        double = draws(augment, 50)
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(single, double, strict=True))


@pytest.mark.parametrize("x64,method", [(False, "bilinear"), (True, "bicubic")])
def test_images_of_the_load_size_are_cut_exactly(x64, method):
    augment = Augment(LOAD, CROP, True, method)
    with jax.enable_x64(x64):
        images = pictures((8, *LOAD, 3)).astype(np.float64 if x64 else np.float32)
        keys = key_of(1, 8)
        got = np.asarray(quick_jit(augment)(keys, images))
        places = drawn(augment, keys)
    assert len({flip for _, _, flip in places}) == 2
    for image, cut, (top, left, mirrored) in zip(images, got, places, strict=True):
        wanted = image[top : top + 16, left : left + 16]
        assert (cut == (wanted[:, ::-1] if mirrored else wanted)).all()


@pytest.mark.parametrize(
    "method,stored,flip",
    [
        ("bilinear", (16, 18), True),
        ("bilinear", (32, 40), True),
        ("bilinear", (20, 30), False),
        ("bilinear", (13, 23), True),
        ("bicubic", (16, 40), True),
        ("area", (16, 40), False),
        ("nearest", (16, 40), True),
    ],
)
def test_resizing_and_cropping_in_one_is_resizing_then_cropping(method, stored, flip):
    augment = Augment(LOAD, CROP, flip, method)
    with jax.enable_x64(True):
        images = pictures((6, *stored, 3))
        keys = key_of(2, 6)
        got = np.asarray(quick_jit(augment)(keys, images))
        places = drawn(augment, keys)
    whole = resized(images, LOAD, method)
    assert {flip for _, _, flip in places} == {0, 1} if flip else {0}
    for image, cut, (top, left, mirrored) in zip(whole, got, places, strict=True):
        wanted = image[top : top + 16, left : left + 16]
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(cut - wanted).max() <= (0 if method == "nearest" else 1e-9)


@pytest.mark.parametrize("stored", [LOAD, (16, 18), (32, 40)])
def test_source_and_target_are_treated_alike(stored):
    augment = quick_jit(Augment(LOAD, CROP, True))
    source = pictures((16, *stored, 3)).astype(np.float32)
    keys = key_of(3, 16)
    target = 255 - source
    assert np.allclose(augment(keys, target), 255 - np.asarray(augment(keys, source)), atol=1e-3)
    # Each example has its own place.
    same = np.asarray(augment(keys, np.broadcast_to(source[:1], source.shape)))
    assert len({crop.tobytes() for crop in same}) > 10


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


@pytest.mark.parametrize("method", ["bicubic", "nearest"])  # by weights, and by indices
def test_augment_in_a_loop_on_several_devices_is_that_on_one(method):
    augment = Augment(LOAD, CROP, True, method)
    images = pictures((3, 4, 16, 18, 3)).astype(np.float32)
    keys = key_of(5, 4)

    def loop(keys, images):
        def body(i, out):
            return out.at[i].set(augment(keys, images[i]))

        start = jnp.zeros_like(images, shape=(*images.shape[:2], *CROP, 3))
        return jax.lax.fori_loop(0, 3, body, start)

    mesh = Mesh(np.array(jax.devices()[:2]), "data")
    split = (P("data"), P(None, "data"))
    sharded = jax.shard_map(loop, mesh=mesh, in_specs=split, out_specs=split[1])
    got = np.asarray(quick_jit(sharded)(keys, images))
    for row, cut in zip(images, got, strict=True):
        assert np.allclose(cut, quick_jit(augment)(keys, row), rtol=1e-5, atol=1e-4)


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match=r"'lanczos'.*bilinear, bicubic, area, nearest"):
        Augment(LOAD, CROP, True, "lanczos")
    with pytest.raises(ValueError, match="'box'"):
        resize(jnp.zeros((1, 4, 4, 3)), (4, 4), "box")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_levels_survive_the_way_to_signed_and_back(dtype):
    with jax.enable_x64(dtype == "float64"):
        levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        signed = to_signed(jnp.asarray(levels), dtype)
        assert signed.dtype == dtype
        assert signed.min() == -1 and signed.max() == 1
        back = to_uint8(signed)
        assert back.dtype == np.uint8 and (back == levels).all()


def test_to_uint8_rounds_to_nearest_and_clips():
    x = jnp.array([-1.5, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 253.6 / 127.5 - 1, 1.0, 7.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 254, 255, 255]
