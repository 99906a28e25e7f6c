"""The tasks: what they make of stored pairs, and their pictures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from PIL import Image
from skimage import color

from p2p_jax.images import to_signed
from p2p_jax.tasks import TASKS, TaskOptions

PALETTE = ((0, 0, 170), (255, 0, 0), (10, 200, 30), (255, 255, 255))


def task_of(name, channels=(3, 3), **options):
    return TASKS[name](TaskOptions(channels, **options))


def labels_of(side, channels=(3, 3)):
    return task_of("labels", channels, classes=4, labels=side, palette=PALETTE)


def grid():
    """All colours of 18 levels a channel, black and white among them, `[2, 54, 54, 3]` uint8."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(2, 54, 54, 3)


def photos(channels=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (2, 6, 8, channels)).astype(np.float32)


OPTIONS = {"labels": dict(classes=4, palette=PALETTE)}


@pytest.mark.parametrize("name", TASKS)
def test_equal_options_give_equal_tasks(name):
    task = task_of(name, **OPTIONS.get(name, {}))
    assert task is task_of(name, **OPTIONS.get(name, {})) and hash(task) == hash(task)
    # What comes out has the channels that it says, and pictures are 8-bit.
    stored = (photos(1) // 64 if name == "labels" else photos(3), photos(3, seed=1))
    pair = quick_jit(task.encode)(*stored)
    assert tuple(x.shape for x in pair) == tuple((2, 6, 8, c) for c in task.channels)
    for picture in (task.show(*pair), task.show_source(pair[0])):
        assert picture.dtype == np.uint8 and picture.shape[:3] == (2, 6, 8)
    assert task.output == "tanh"
    wanted = ("nearest" if name == "labels" else "area", "area")
    assert task.methods("area") == wanted


@pytest.mark.parametrize("name", ["colorize", "grey", "inpaint"])
def test_photos_alone_are_enough(name):
    task = task_of(name)
    photo, none = photos(3), photos(0)
    for ours, theirs in zip(task.encode(none, photo), task.encode(photo, photo), strict=True):
        assert (ours == theirs).all()


# --- translate -----------------------------------------------------------------------------------


def test_translate_leaves_pairs_as_they_are():
    task = task_of("translate", (3, 1))
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
        task = task_of("translate", (1, 3))
        source, target = quick_jit(task.encode)(grid().astype(dtype), grid().astype(dtype))
        assert source.dtype == target.dtype == dtype
        assert source.shape == (2, 54, 54, 1) and target.shape == (2, 54, 54, 3)
        assert (np.asarray(task.show(source, target)) == grid()).all()
        grey = np.asarray(source)[..., 0] * 127.5 + 127.5
    luma = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in grid()])
    assert np.abs(grey - luma).max() < 0.51  # PIL rounds it
    assert np.abs(grey - grid() @ np.array([0.299, 0.587, 0.114])).max() < 1e-4


def test_translate_repeats_grey():
    task = task_of("translate", (3, 1))
    stored = photos(1)
    source, target = task.encode(jnp.asarray(stored), jnp.asarray(stored))
    assert (np.asarray(task.show_source(source)) == np.round(stored).repeat(3, -1)).all()
    assert target.shape[-1] == 1


def test_translate_takes_any_equal_channels():
    task = task_of("translate", (5, 7))
    source, target = photos(5), photos(7, seed=1)
    got = quick_jit(task.encode)(source, target)
    assert (np.asarray(task.show(*got)) == np.round(target)).all()
    assert (np.asarray(task.show_source(got[0])) == np.round(source)).all()


@pytest.mark.parametrize(
    "channels,stored,message",
    [
        ((3, 3), (4, 3), "source images are stored with 4 channels and wanted with 3"),
        ((3, 1), (3, 4), "target images are stored with 4 channels and wanted with 1"),
        ((2, 3), (3, 3), "source images are stored with 3 channels and wanted with 2"),
        ((5, 3), (1, 3), "source images are stored with 1 channels and wanted with 5"),
        ((3, 3), (0, 3), "there are no source images"),
    ],
)
def test_translate_names_channels_that_do_not_fit(channels, stored, message):
    with pytest.raises(ValueError, match=message):
        task_of("translate", channels).encode(*(jnp.asarray(photos(c)) for c in stored))


# --- colorize ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_colorize_splits_photos_and_joins_them_again(dtype):
    task = task_of("colorize", (3, 3))
    assert task.channels == (1, 2) and task is task_of("colorize", (3, 3))
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
    task = task_of("colorize", (1, 2))
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
    task = task_of("colorize", (1, 2))
    source, target = quick_jit(task.encode)(photo, photo)
    shown = quick_jit(task.show_source)(source)
    assert shown.dtype == np.uint8 and (np.asarray(shown) == levels).all()
    # Grey has no colour, but for the digits of the white point.
    assert abs(np.asarray(target)).max() < 1e-3


def test_colorize_names_channels_that_do_not_fit():
    for channels in ((3, 1), (1, 3), (2, 1)):
        with pytest.raises(ValueError, match=r"\(1, 2\).*not \(\d, \d\)"):
            task_of("colorize", channels)
    with pytest.raises(ValueError, match="stored with 1 channels"):
        task_of("colorize", (1, 2)).encode(jnp.asarray(photos(3)), jnp.asarray(photos(1)))


# --- grey ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_grey_is_made_of_the_photo(dtype):
    for channels in ((3, 3), (1, 3)):
        task = task_of("grey", channels)
        assert task.channels == (1, 3)
    with jax.enable_x64(dtype == "float64"):
        photo = grid().astype(dtype)
        source, target = quick_jit(task.encode)(0 * photo[..., :1], photo)
        assert source.dtype == target.dtype == dtype
        assert (np.asarray(task.show(source, target)) == grid()).all()
        shown = np.asarray(task.show_source(source))[..., 0]
        luma = np.asarray(source)[..., 0] * 127.5 + 127.5
    assert np.abs(luma - grid() @ np.array([0.299, 0.587, 0.114])).max() < 1e-4
    assert (np.abs(shown - luma) < 0.501).all()


def test_grey_names_channels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"grey are \(1, 3\).*not \(1, 1\)"):
        task_of("grey", (1, 1))
    with pytest.raises(ValueError, match="stored with 1 channels; grey needs photos of 3"):
        task_of("grey").encode(photos(1), photos(1))


# --- inpaint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size,hole,box",
    [
        ((256, 256), 0.5, (64, 192, 64, 192)),
        ((8, 12), 0.25, (3, 5, 4, 7)),
        ((7, 5), 0.5, (1, 5, 1, 4)),  # 3.5 and 2.5 are rounded up
        ((10, 10), 0.34, (3, 6, 3, 6)),
        ((4, 4), 0.1, (2, 2, 2, 2)),  # nothing is left of it
    ],
)
def test_the_hole_is_in_the_middle_and_white(size, hole, box):
    task = task_of("inpaint", hole=hole)
    photo = np.random.default_rng(0).uniform(0, 200, (2, *size, 3)).astype(np.float32)
    source, target = map(np.asarray, quick_jit(task.encode)(255 - photo, photo))
    wanted = target.copy()
    wanted[:, box[0] : box[1], box[2] : box[3]] = 1
    assert (source == wanted).all() and source.dtype == np.float32
    assert np.abs(target - (photo / 127.5 - 1)).max() < 1e-6 and target.max() < 1


def test_inpaint_of_any_channels():
    for channels, stored in (((1, 1), 3), ((1, 1), 1), ((5, 5), 5), ((3, 3), 1)):
        task = task_of("inpaint", channels)
        pair = task.encode(photos(0), photos(stored))
        assert task.channels == channels == tuple(x.shape[-1] for x in pair)
    with pytest.raises(ValueError, match="stored with 4 channels and wanted with 3"):
        task_of("inpaint").encode(photos(0), photos(4))


def test_inpaint_names_what_cannot_be():
    with pytest.raises(ValueError, match=r"same on both sides, not \(3, 1\)"):
        task_of("inpaint", (3, 1))
    for hole in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match=f"up to 1, not {hole}"):
            task_of("inpaint", hole=hole)


# --- labels --------------------------------------------------------------------------------------


def classes(seed=0):
    return np.random.default_rng(seed).integers(0, 4, (2, 6, 8, 1))


SIDES = {"source": (4, 3), "target": (3, 4), "both": (4, 4)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", SIDES)
def test_labels_become_one_channel_a_class(side, dtype):
    task = labels_of(side)
    assert task.channels == SIDES[side]
    assert task.output == ("tanh" if side == "source" else "softmax")
    labelled = [channels == 4 for channels in SIDES[side]]
    assert task.methods("bicubic") == tuple("nearest" if x else "bicubic" for x in labelled)
    numbers = classes(0), classes(1)
    stored = [
        n if x else photos(3, i) for i, (n, x) in enumerate(zip(numbers, labelled, strict=True))
    ]
    with jax.enable_x64(dtype == "float64"):
        pair = quick_jit(task.encode)(*(x.astype(dtype) for x in stored))
        pictures = quick_jit(task.show_source)(pair[0]), quick_jit(task.show)(*pair)
        assert all(x.dtype == dtype for x in pair)
        pair = tuple(map(np.asarray, pair))
    for image, picture, x, number, classed in zip(
        pair, pictures, stored, numbers, labelled, strict=True
    ):
        assert picture.dtype == np.uint8
        if classed:
            assert (image == np.eye(4)[number[..., 0]]).all()
            assert (np.asarray(picture) == np.array(PALETTE)[number[..., 0]]).all()
        else:
            assert np.abs(image - (x / 127.5 - 1)).max() < 1e-6
            assert (np.asarray(picture) == np.round(x)).all()


def test_the_likeliest_class_is_shown():
    task = labels_of("target")
    made = np.array([[[[0.1, 0.2, 0.4, 0.3], [0.28, 0.24, 0.24, 0.24]]]], np.float32)
    shown = task.show(np.zeros((1, 1, 2, 3), np.float32), made)
    assert shown.tolist() == [[[list(PALETTE[2]), list(PALETTE[0])]]]


def test_many_classes_are_told_apart():
    palette = tuple((i % 256, i // 256, 7) for i in range(1000))
    task = task_of("labels", classes=1000, labels="source", palette=palette)
    numbers = np.arange(1000, dtype=np.float32).reshape(1, 25, 40, 1)
    source, _ = quick_jit(task.encode)(numbers, np.zeros((1, 25, 40, 3), np.float32))
    assert (np.asarray(source).argmax(-1) == numbers[..., 0]).all() and (source.sum(-1) == 1).all()
    assert (np.asarray(task.show_source(source))[0] == np.array(palette).reshape(25, 40, 3)).all()


def test_the_other_side_of_labels_is_made_grey_or_repeated():
    source, target = labels_of("target", (1, 3)).encode(photos(3), jnp.asarray(classes(), "f"))
    assert source.shape[-1] == 1 and target.shape[-1] == 4
    source, target = labels_of("source").encode(jnp.asarray(classes(), "f"), photos(1))
    assert source.shape[-1] == 4 and target.shape[-1] == 3


def test_labels_name_what_cannot_be():
    with pytest.raises(ValueError, match="source, target, both, not 'left'"):
        labels_of("left")
    for count, palette in ((0, ()), (1, PALETTE[:1]), (5, PALETTE), (3, PALETTE)):
        with pytest.raises(ValueError, match=f"not {count} classes with {len(palette)} colours"):
            task_of("labels", classes=count, palette=palette)
    with pytest.raises(ValueError, match="source images are stored with 3 channels; labels have 1"):
        labels_of("source").encode(photos(3), photos(3))
    with pytest.raises(ValueError, match="target images are stored with 3 channels and wanted wi"):
        labels_of("source", (3, 2)).encode(photos(1), photos(3))
