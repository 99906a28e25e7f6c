"""Jitter, mirroring, resizing and scaling of images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from p2p_jax.images import Augment, resize, to_signed, to_uint8

LOAD, CROP = (20, 23), (16, 16)


@functools.partial(quick_jit, static_argnums=(0, 1))
def key_of(seed, n):
    """Keys of n examples."""
    return jax.random.split(jax.random.key(seed), n)


def drawn(augment, keys):
    """Top, left and mirroring of each key."""
    columns = quick_jit(jax.vmap(augment.draw))(keys)
    return list(zip(*map(np.asarray, columns), strict=True))


def draws(augment, n=4000):
    """Tops, lefts and mirrorings of n examples."""
    return tuple(np.array(x) for x in zip(*drawn(augment, key_of(0, n)), strict=True))


def pictures(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape)


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


@pytest.mark.parametrize("x64", [False, True])
def test_images_of_the_load_size_are_cut_exactly(x64):
    augment = Augment(LOAD, CROP, True)
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
    "stored,flip", [((16, 18), True), ((32, 40), True), ((20, 30), False), ((13, 23), True)]
)
def test_resizing_and_cropping_in_one_is_resizing_then_cropping(stored, flip):
    augment = Augment(LOAD, CROP, flip)
    with jax.enable_x64(True):
        images = pictures((6, *stored, 3))
        keys = key_of(2, 6)
        got = np.asarray(quick_jit(augment)(keys, images))
        enlarge = quick_jit(lambda x: jax.image.resize(x, (6, *LOAD, 3), "linear"))
        whole = np.asarray(enlarge(images))
        places = drawn(augment, keys)
    assert {flip for _, _, flip in places} == {0, 1} if flip else {0}
    for image, cut, (top, left, mirrored) in zip(whole, got, places, strict=True):
        wanted = image[top : top + 16, left : left + 16]
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(cut - wanted).max() < 1e-9


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
