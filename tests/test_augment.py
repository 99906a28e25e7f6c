"""Where pairs are cut out or padded, mirrored and turned, and how sources are recoloured."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations, quick_jit, rel
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from p2p_jax.augment import Augment
from p2p_jax.images import resize

LOAD, CROP = (20, 23), (16, 16)
SIZES = np.array([[16, 23], [20, 16], [17, 18], [20, 23]], np.int32)
LUMA = np.array([0.299, 0.587, 0.114])


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


def pictures(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(dtype)


def run(augment, keys, *pair, sizes=None):
    """Source and target, compiled."""
    return tuple(map(np.asarray, quick_jit(augment)(keys, *pair, sizes)))


# --- the crop and its mirror image ---------------------------------------------------------------


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


@pytest.mark.parametrize("load_size", [LOAD, None])
@pytest.mark.parametrize("x64,method", [(False, "bilinear"), (True, "bicubic")])
def test_images_of_the_load_size_are_cut_exactly(x64, method, load_size):
    augment = Augment(load_size, CROP, True, (method, method))
    with jax.enable_x64(x64):
        images = pictures((8, *LOAD, 3), dtype=np.float64 if x64 else np.float32)
        keys = key_of(1, 8)
        got, other = run(augment, keys, images, images[..., :2])
        places = drawn(Augment(LOAD, CROP, True), keys)
    assert len({flip for _, _, flip in places}) == 2
    assert got.dtype == images.dtype and (other == got[..., :2]).all()
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
    """Each side by its own method."""
    methods = (method, "nearest")
    augment = Augment(LOAD, CROP, flip, methods)
    with jax.enable_x64(True):
        images = pictures((6, *stored, 3))
        keys = key_of(2, 6)
        both = run(augment, keys, images, images)
        places = drawn(augment, keys)
        whole = [np.asarray(resize(jnp.asarray(images), LOAD, m)) for m in methods]
    assert {flip for _, _, flip in places} == {0, 1} if flip else {0}
    for name, resized, got in zip(methods, whole, both, strict=True):
        for image, cut, (top, left, mirrored) in zip(resized, got, places, strict=True):
            wanted = image[top : top + 16, left : left + 16]
            wanted = wanted[:, ::-1] if mirrored else wanted
            assert np.abs(cut - wanted).max() <= (0 if name == "nearest" else 1e-9)


@pytest.mark.parametrize("stored", [LOAD, (16, 18), (32, 40)])
def test_source_and_target_are_treated_alike(stored):
    augment = Augment(LOAD, CROP, True, flip_vertical=True, rotate=True)
    source = pictures((16, *stored, 3), dtype=np.float32)
    keys = key_of(3, 16)
    got, other = run(augment, keys, source, 255 - source)
    assert np.allclose(other, 255 - got, atol=1e-3)
    # Each example has its own place.
    same = run(augment, keys, np.broadcast_to(source[:1], source.shape), source)[0]
    assert len({crop.tobytes() for crop in same}) > 10


# --- frames of several sizes, and padding --------------------------------------------------------


@pytest.mark.parametrize("fit,crop", [("crop", CROP), ("pad", (24, 24)), ("pad", (61, 47))])
def test_frames_of_several_sizes_are_treated_as_each_image_alone(fit, crop):
    square = crop[0] == crop[1]
    augment = Augment(
        None, crop, True, fit=fit, flip_vertical=True, rotate=square,
        brightness=0.2, contrast=0.3, saturation=0.4,
    )  # fmt: skip
    source, target = pictures((4, *LOAD, 3), 1, np.float32), pictures((4, *LOAD, 2), 2, np.float32)
    keys = key_of(4, 4)
    for x, (h, w) in zip((*source, *target), (*SIZES, *SIZES), strict=True):
        x[h:], x[:, w:] = np.nan, np.nan  # never seen
    got = run(augment, keys, source, target, sizes=SIZES)
    for i, (h, w) in enumerate(SIZES):
        alone = run(augment, keys[i : i + 1], source[i : i + 1, :h, :w], target[i : i + 1, :h, :w])
        assert got[0].shape[1:] == (*crop, 3)
        assert np.abs(got[0][i] - alone[0][0]).max() < 1e-3
        assert (got[1][i] == alone[1][0]).all()


@pytest.mark.parametrize("flip", [False, True])
def test_padding_is_that_of_numpy_and_then_mirrored(flip):
    crop = (31, 50)
    augment = Augment(None, crop, flip, fit="pad")
    images = pictures((6, *LOAD, 3), dtype=np.float32)
    keys = key_of(5, 6)
    got, other = run(augment, keys, images, images)
    assert (got == other).all()
    mirrored = [m and flip for _, _, m in drawn(Augment(LOAD, CROP, True), keys)]
    assert not flip or set(mirrored) == {0, 1}
    for image, cut, flipped in zip(images, got, mirrored, strict=True):
        wanted = np.pad(image, ((0, 11), (0, 27), (0, 0)), "symmetric")
        assert (cut == (wanted[:, ::-1] if flipped else wanted)).all()


def test_images_are_resized_and_then_padded():
    augment = Augment(LOAD, (24, 24), False, ("bicubic", "nearest"), fit="pad")
    images = pictures((2, 31, 17, 3), dtype=np.float32)
    both = run(augment, key_of(6, 2), images, images)
    for method, got in zip(augment.methods, both, strict=True):
        whole = np.asarray(resize(jnp.asarray(images), LOAD, method))
        wanted = np.pad(whole, ((0, 0), (0, 4), (0, 1), (0, 0)), "symmetric")
        assert np.abs(got - wanted).max() <= (0 if method == "nearest" else 1e-3)


def test_what_fits_stays_as_it_is():
    images = pictures((2, *CROP, 3), dtype=np.float32)
    for sizes in (None, np.full((2, 2), 16, np.int32)):
        got, other = run(Augment(None, CROP, False, fit="pad"), key_of(6, 2), images, images,
                         sizes=sizes)  # fmt: skip
        assert (got == images).all() and (other == images).all()


@pytest.mark.parametrize("kind", ["resize", "crop", "pad", "sizes"])
def test_images_without_channels_pass_through(kind):
    load, fit = {"resize": (LOAD, "crop"), "pad": (None, "pad")}.get(kind, (None, "crop"))
    augment = Augment(
        load, (24, 24) if fit == "pad" else CROP, True, fit=fit, flip_vertical=True, rotate=True,
        brightness=0.2, contrast=0.2, saturation=0.2,
    )  # fmt: skip
    stored = (30, 40) if kind == "resize" else LOAD
    sizes = SIZES if kind == "sizes" else None
    empty = np.zeros((4, *stored, 0), np.float32)
    images = pictures((4, *stored, 3), dtype=np.float32)
    keys = key_of(7, 4)
    source, target = run(augment, keys, empty, images, sizes=sizes)
    assert source.shape == (4, *augment.crop_size, 0) and source.dtype == np.float32
    assert (target == run(augment, keys, images, images, sizes=sizes)[1]).all()
    assert run(augment, keys, images, empty, sizes=sizes)[1].shape == source.shape


# --- turns ---------------------------------------------------------------------------------------


def turned(n=4000, **changes):
    """Which of the quarter turns (counterclockwise) each of n examples makes, and the upside-down.

    By an image of 2x2 pixels, whose images under both tell all apart.
    """
    image = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    images = np.broadcast_to(image, (n, 2, 2, 1))
    got, other = run(Augment((2, 2), (2, 2), False, **changes), key_of(0, n), images, 3 - images)
    assert (other == 3 - got).all()
    kinds = {np.rot90(image, k).tobytes(): k for k in range(4)} | {image[::-1].tobytes(): 4}
    return np.array([kinds[x.tobytes()] for x in got])


def test_quarter_turns_are_those_of_numpy_and_even():
    counts = np.bincount(turned(rotate=True))
    assert len(counts) == 4 and (abs(counts - 1000) < 5 * np.sqrt(4000 * 3 / 16)).all()


def test_half_are_turned_upside_down():
    counts = np.bincount(turned(flip_vertical=True))
    assert set(np.flatnonzero(counts)) == {0, 4}
    assert abs(counts[4] - 2000) < 5 * np.sqrt(4000 / 4)


def test_nothing_is_drawn_that_is_off():
    """Not even computed; and what is on changes no draw of crop and mirroring."""

    def randoms(**changes):
        augment = Augment(LOAD, CROP, True, **changes)
        images = jnp.zeros((2, *LOAD, 3))
        made = jax.make_jaxpr(augment)(key_of(0, 2), images, images)
        return sum(e.primitive.name.startswith("random_") for e in equations(made))

    fewest = randoms()
    for name in ("flip_vertical", "rotate"):
        assert randoms(**{name: True}) > fewest
    for name in ("brightness", "contrast", "saturation"):
        assert randoms(**{name: 0.5}) > fewest and randoms(**{name: 0.0}) == fewest
    images = pictures((8, *LOAD, 3), dtype=np.float32)
    plain, varied = (
        run(Augment(LOAD, CROP, True, contrast=c), key_of(1, 8), images, images) for c in (0, 0.5)
    )
    assert (plain[1] == varied[1]).all() and (plain[0] != varied[0]).any()


# --- colours -------------------------------------------------------------------------------------


def luma(images):
    return images @ LUMA[:, None] if images.shape[-1] == 3 else images.mean(-1, keepdims=True)


def recoloured(images, factors):
    """By the formulas; `factors` holds those of brightness, contrast and saturation."""

    def scaled(x, about, factor):
        return np.clip(about + factor.reshape(-1, 1, 1, 1) * (x - about), 0, 255)

    x = scaled(images, 0, factors[0])
    x = scaled(x, luma(x).mean((1, 2, 3), keepdims=True), factors[1])
    return scaled(x, luma(x), factors[2])


@functools.cache
def factors(n, strength=0.25):
    """The factors of n examples, found out by an image in which nothing is clipped."""
    image = np.array([[[[120, 90, 60], [100, 110, 140]]]])
    images = np.broadcast_to(image, (n, 1, 2, 3)).astype(np.float32)
    abouts = (0 * image, luma(image).mean() + 0 * image, luma(image) + 0 * image)
    found = []
    for name, about in zip(("brightness", "contrast", "saturation"), abouts, strict=True):
        augment = Augment((1, 2), (1, 2), False, **{name: strength})
        got, target = run(augment, key_of(0, n), images, images)
        assert (target == images).all()
        each = (got - about) / (image - about)
        assert (np.ptp(each, axis=(1, 2, 3)) < 1e-4).all()  # one factor an image
        found.append(each.mean((1, 2, 3)))
    return np.array(found)


def test_factors_are_uniform_and_none_follows_from_another():
    n = 4000
    found = factors(n)
    for column in found:
        assert column.min() > 0.75 - 1e-5 and column.max() < 1.25 + 1e-5
        seen, _ = np.histogram(column, 10, (0.75, 1.25))
        assert (abs(seen - n / 10) < 5 * np.sqrt(n * 0.09)).all()
    others = draws(Augment(LOAD, CROP, True), n)
    turns, upside = turned(n, rotate=True), turned(n, flip_vertical=True)
    together = np.corrcoef([*found, *others, turns & 1, turns & 2, upside])
    assert (abs(together - np.eye(9)) < 5 / np.sqrt(n)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_colours_follow_the_formulas_in_their_order(dtype):
    """At the same draws with 64 bits; what is clipped is clipped in between, too."""
    images = pictures((8, 16, 16, 3), 3, dtype)
    augment = Augment(CROP, CROP, False, brightness=0.25, contrast=0.25, saturation=0.25)
    with jax.enable_x64(dtype == np.float64):
        got, target = run(augment, key_of(0, 8), images, images)
    assert got.dtype == dtype and (target == images).all()
    wanted = recoloured(images.astype(np.float64), factors(4000)[:, :8])
    assert (wanted == 255).any() and (wanted == 0).any()
    assert np.abs(got - wanted).max() < 0.01


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_contrast_and_brightness_of_any_channels(channels):
    images = pictures((8, 16, 16, channels), 4, np.float32)
    augment = Augment(CROP, CROP, False, brightness=0.25, contrast=0.25)
    got, _ = run(augment, key_of(0, 8), images, images)
    each = factors(4000)[:, :8].copy()
    each[2] = 1
    assert np.abs(got - recoloured(images, each)).max() < 0.01


def test_without_saturation_only_the_luma_is_left():
    """The least factor of strength 1 is near 0."""
    images = pictures((64, 4, 4, 3), 5, np.float32)
    got, _ = run(Augment((4, 4), (4, 4), False, saturation=1.0), key_of(0, 64), images, images)
    least = (factors(4000, 0.25)[2, :64] - 1).argmin()
    assert np.ptp(got[least], axis=-1).max() < 0.1 * np.ptp(images[least], axis=-1).max()
    assert np.abs(luma(got[least]) - luma(images[least])).max() < 0.01


# --- where it runs, and what is refused ----------------------------------------------------------


# By weights, by indices, and everything at once.
@pytest.mark.parametrize("case", ["bicubic", "nearest", "all"])
def test_augment_in_a_loop_on_several_devices_is_that_on_one(case):
    if case == "all":
        augment = Augment(None, (24, 24), True, fit="pad", flip_vertical=True, rotate=True,
                          brightness=0.3, contrast=0.3, saturation=0.3)  # fmt: skip
        sizes = np.array([[16, 18], [9, 18], [16, 7], [5, 5]], np.int32)
    else:
        augment, sizes = Augment(LOAD, CROP, True, (case, case)), None
    images = pictures((3, 4, 16, 18, 3), dtype=np.float32)
    keys = key_of(5, 4)

    def loop(keys, images, sizes):
        def body(i, out):
            both = augment(keys, images[i], images[i, ..., :0], sizes)
            return jax.tree.map(lambda whole, row: whole.at[i].set(row), out, both)

        shape = (*images.shape[:2], *augment.crop_size)
        start = tuple(jnp.zeros_like(images, shape=(*shape, c)) for c in (3, 0))
        return jax.lax.fori_loop(0, 3, body, start)

    mesh = Mesh(np.array(jax.devices()[:2]), "data")
    out = P(None, "data")
    split = (P("data"), out, None if sizes is None else P("data"))
    sharded = jax.shard_map(loop, mesh=mesh, in_specs=split, out_specs=out)
    got, empty = map(np.asarray, quick_jit(sharded)(keys, images, sizes))
    assert empty.shape == (*got.shape[:-1], 0)
    for row, cut in zip(images, got, strict=True):
        assert rel(cut, run(augment, keys, row, row, sizes=sizes)[0]) < 1e-5


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(methods=("bilinear", "lanczos")), r"'lanczos'.*bilinear, bicubic, area, nearest"),
        (dict(fit="stretch"), "crop, pad, not 'stretch'"),
        (dict(crop_size=(21, 20)), "21x20 cannot be cut out of 20x23"),
        (dict(crop_size=(20, 24), fit="pad", load_size=(20, 25)), "20x25 cannot be padded"),
        (dict(crop_size=(16, 18), rotate=True), "squares.*16x18"),
        (dict(brightness=-0.1), "brightness is from 0 to 1, not -0.1"),
        (dict(saturation=1.5), "saturation is from 0 to 1, not 1.5"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Augment(**(dict(load_size=LOAD, crop_size=CROP, flip=True) | changes))


@pytest.mark.parametrize(
    "changes,shapes,sizes,message",
    [
        (dict(), (LOAD, LOAD), SIZES, "several sizes"),
        (dict(load_size=None), (LOAD, (20, 24)), None, "source is 20x23, target 20x24"),
        (dict(load_size=None), ((15, 23),) * 2, None, "16x16 cannot be cut out of 15x23"),
        (dict(load_size=None, fit="pad"), (LOAD, LOAD), None, "20x23 cannot be padded to 16x16"),
    ],
)
def test_images_that_do_not_fit_are_named(changes, shapes, sizes, message):
    augment = Augment(**(dict(load_size=LOAD, crop_size=CROP, flip=True) | changes))
    with pytest.raises(ValueError, match=message):
        augment(key_of(0, 4), *(jnp.zeros((4, *shape, 3)) for shape in shapes), sizes)


def test_saturation_of_other_than_colours_is_refused():
    augment = Augment(LOAD, CROP, True, saturation=0.5)
    with pytest.raises(ValueError, match="source of 1 or 3 channels, not 4"):
        augment(key_of(0, 1), jnp.zeros((1, *LOAD, 4)), jnp.zeros((1, *LOAD, 3)))


def test_grey_has_no_saturation():
    images = pictures((4, *LOAD, 1), dtype=np.float32)
    plain, varied = (
        run(Augment(LOAD, CROP, True, saturation=s), key_of(1, 4), images, images)[0]
        for s in (0, 0.5)
    )
    assert (plain == varied).all()
