"""Preprocess modes: what fits, frames for training, canvases for evaluation and the way back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax import images
from p2p_jax.data.frames import PREPROCESS, EvalFrames, Fit, Frames, problems, resized
from p2p_jax.data.pairs import DataError, Form, Pair

FORMS = Form(3), Form(1)


class Sized:
    """Noisy pairs of given sizes; as told, or as found on reading."""

    def __init__(self, sizes, forms=FORMS, found=None):
        self.names = [f"{'ab'[i % 2]}/{i}" for i in range(len(sizes))]
        self.fingerprint, self.forms = "sized", forms
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.found = sizes if found is None else found

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return Pair(*(noise(rng, (*self.found[i], f.channels), f.dtype) for f in self.forms))


def noise(rng, shape, dtype):
    if dtype == "float32":
        return rng.uniform(-2, 2, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def fit(preprocess, load=(10, 12), crop=(8, 8), methods=("bilinear", "nearest"), step=1):
    return Fit(preprocess, load, crop, methods, step)


MIXED = [(9, 12), (20, 30), (8, 8), (16, 9)]


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PREPROCESS)
def test_what_fits_has_no_problems(mode):
    sizes = {
        "scale_width": [(6, 12), (5, 9)], "pad": [(1, 1), (8, 8), (3, 8)], "none": [(8, 8)] * 2,
    }.get(mode, MIXED)  # fmt: skip
    load = (8, 8) if mode == "scale_width" else (10, 12)
    assert problems(Sized(sizes), fit(mode, load), "train") == []
    assert problems(Sized(sizes), fit(mode, load), "val", evaluation=True) == []


def test_images_too_small_to_be_cropped():
    sizes = [(300, 400)] * 7 + [(200, 300), (512, 200), (256, 255)]
    wanted = fit("crop", (286, 286), (256, 256))
    assert problems(Sized(sizes), wanted, "train") == [
        "3 of 10 images are smaller than data.crop_size 256x256 (first train[7] b/7: 200x300, "
        "height x width); use data.preprocess=resize_and_crop, or a crop_size of at most 200x200"
    ]
    # Translated whole, none is too small.
    assert problems(Sized(sizes), wanted, "val", evaluation=True) == []
    # The generator cannot take every size.
    (coarse,) = problems(Sized(sizes), fit("crop", (286, 286), (256, 256), step=64), "train")
    assert coarse.endswith(", or a crop_size of at most 192x192")
    (none,) = problems(Sized(sizes), fit("crop", (286, 286), (256, 256), step=256), "train")
    assert none.endswith("height x width); use data.preprocess=resize_and_crop")


def test_images_too_low_once_their_width_is_scaled():
    source = Sized([(300, 300), (100, 300)])
    wanted = fit("scale_width_and_crop", (286, 286), (256, 256))
    (problem,) = problems(source, wanted, "train")
    assert problem == (
        "1 of 2 images are smaller than data.crop_size 256x256 (first train[1] b/1: 100x300, which "
        "data.load_size's width of 286 makes 95x286, height x width); use "
        "data.preprocess=resize_and_crop, or a crop_size of at most 95x256, or a load_size of "
        "width at least 768"
    )
    # What it says would do, does.
    for other in (
        fit("resize_and_crop", (286, 286), (256, 256)),
        fit("scale_width_and_crop", (286, 286), (95, 256)),
        fit("scale_width_and_crop", (286, 768), (256, 256)),
    ):
        assert problems(source, other, "train") == []
    narrow = fit("scale_width_and_crop", (286, 767), (256, 256))
    assert narrow.misfits(np.array([[100, 300]])).tolist() == [False]  # 255.67 rounds up
    assert fit("scale_width_and_crop", (1, 766), (256, 256)).misfits(np.array([[100, 300]]))[0]


def test_images_too_large_to_be_padded():
    (problem,) = problems(Sized([(9, 8), (10, 30)]), fit("pad", step=4), "train")
    assert problem == (
        "2 of 2 images are larger than data.crop_size 8x8 (first train[0] a/0: 9x8, "
        "height x width); use data.preprocess=resize_and_crop or crop, or a crop_size of at least "
        "12x32"
    )
    (problem,) = problems(Sized([(9, 6)]), fit("scale_width", (12, 8)), "train", evaluation=True)
    assert "1 of 1 image is larger than data.crop_size 8x8 (first train[0] a/0: 9x6" in problem
    assert problem.endswith(", or a load_size of width at most 5")
    assert problems(Sized([(9, 6)]), fit("scale_width", (12, 5)), "train") == []


def test_images_of_another_size_than_the_networks_see():
    (problem,) = problems(Sized([(8, 8), (6, 8)]), fit("none"), "train")
    assert problem == (
        "1 of 2 images are not of data.crop_size 8x8 (first train[1] b/1: 6x8, height x width); "
        "use data.preprocess=resize_and_crop, scale_width_and_crop or pad"
    )
    (problem,) = problems(Sized([(6, 4)] * 2), fit("none", step=2), "train")
    assert problem.endswith(", or a crop_size of 6x4")
    (problem,) = problems(Sized([(6, 4)] * 2), fit("none", step=4), "train")
    assert "a crop_size of" not in problem


# --- resizing on the host ------------------------------------------------------------------------


@pytest.mark.parametrize("method", images.RESIZE)
@pytest.mark.parametrize("size", [(7, 30), (25, 10), (13, 17)])
@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, "uint8"), (3, "uint8"), (4, "uint8"), (2, "uint16"), (3, "float32")],
)
def test_the_host_resizes_as_the_device_does(method, size, channels, dtype):
    image = noise(np.random.default_rng(0), (13, 17, channels), dtype)
    if dtype != "uint8":  # the device knows levels: keep what bicubic makes within them
        image = (image.astype(np.float64) % 200 / 2 + 60).astype(dtype)
    got = resized(image, size, method)
    assert got.shape == (*size, channels) and got.dtype == image.dtype
    wanted = np.asarray(images.resize(jnp.asarray(image[None], jnp.float32), size, method))[0]
    if method == "nearest" or size == image.shape[:2]:
        assert (got == wanted).all()
    elif method == "bicubic" and dtype == "uint8":  # clipped at another place, see `images`
        assert np.abs(got - wanted).max() < 40 and np.abs(got - wanted).mean() < 1.5
    elif method == "bilinear" and dtype == "uint8" and channels in (1, 3):
        # Between its two passes Pillow rounds to whole numbers.
        assert np.abs(got - wanted).max() < 1.1
    else:
        assert np.abs(got - wanted).max() <= (1e-4 if dtype == "float32" else 0.501)


def test_images_of_the_size_and_those_without_channels_need_no_resizing():
    image = noise(np.random.default_rng(0), (4, 5, 3), "uint8")
    assert resized(image, (4, 5), "bicubic") is image
    for dtype in ("uint8", "float32"):
        empty = resized(np.empty((4, 5, 0), dtype), (7, 2), "bilinear")
        assert empty.shape == (7, 2, 0) and empty.dtype == dtype


def test_integers_are_clipped_not_wrapped():
    edge = np.zeros((8, 8, 2), np.uint16)
    edge[:, 4:] = 65535
    made = resized(edge, (8, 21), "bicubic")
    assert made.min() == 0 and made.max() == 65535
    assert (made[:, :5] == 0).all() and (made[:, -5:] == 65535).all()


# --- training ------------------------------------------------------------------------------------


def check_frames(frames, source, sizes, methods):
    """Each frame holds its pair, resized to the size it should have, and zeros."""
    for i, size in enumerate(sizes):
        *pair, filled = frames[i]
        for image, stored, method in zip(pair, source[i], methods, strict=True):
            assert image.shape[:2] == frames.shape and image.dtype == stored.dtype
            inside = image[: size[0], : size[1]]
            assert (inside == resized(stored, size, method)).all()
            image = image.copy()
            image[: size[0], : size[1]] = 0
            assert not image.any()
        if frames.sizes is None:
            assert filled is None and tuple(size) == frames.shape
        else:
            assert filled.dtype == frames.sizes.dtype == np.int32
            assert tuple(filled) == tuple(frames.sizes[i]) == tuple(size)


@pytest.mark.parametrize(
    ("mode", "load_size"),
    [
        ("resize_and_crop", (10, 12)), ("scale_width_and_crop", (9, 12)), ("scale_width", (9, 12)),
        ("crop", None), ("pad", None), ("none", None),
    ],
)  # fmt: skip
def test_pairs_of_one_size_are_left_to_the_device(mode, load_size):
    source = Sized([(12, 16)] * 3)
    frames = Frames(source, fit(mode, crop=(12, 16) if mode in ("pad", "none") else (9, 12)))
    assert frames.shape == (12, 16) and frames.load_size == load_size and frames.sizes is None
    assert (frames.names, frames.fingerprint, frames.forms, len(frames)) == (
        source.names, "sized", source.forms, 3,
    )  # fmt: skip
    check_frames(frames, source, [(12, 16)] * 3, ("nearest", "nearest"))
    assert all(type(x) is int for x in frames.shape + (load_size or ()))


@pytest.mark.parametrize(
    ("mode", "shape", "sizes"),
    [
        ("resize_and_crop", (10, 12), [(10, 12)] * 4),
        # 9, 8, 12 and 21 and a third
        ("scale_width_and_crop", (21, 12), [(9, 12), (8, 12), (12, 12), (21, 12)]),
        ("crop", (20, 30), MIXED),
    ],
)
def test_pairs_of_several_sizes_are_resized_and_padded_here(mode, shape, sizes):
    source = Sized(MIXED, (Form(3), Form(1, "float32", ".npy")))
    frames = Frames(source, fit(mode, methods=("area", "nearest")))
    assert frames.shape == shape and frames.load_size is None
    assert (frames.sizes is None) == (mode == "resize_and_crop")
    check_frames(frames, source, sizes, ("area", "nearest"))


def test_heights_are_rounded_in_whole_numbers_and_never_nothing():
    scaled = Fit("scale_width", (1, 7), (9, 9)).scaled(np.array([[1, 2], [1, 200], [3, 2]]))
    assert scaled.tolist() == [[4, 7], [1, 7], [11, 7]]  # 3.5 and 10.5 upwards


def test_sides_without_channels_pass():
    source = Sized(MIXED, (Form(0), Form(3, "uint16")))
    frame = Frames(source, fit("crop"))[2]
    assert frame.source.shape == (20, 30, 0) and frame.target.shape == (20, 30, 3)
    assert Frames(source, fit("resize_and_crop"))[1].source.shape == (10, 12, 0)


@pytest.mark.parametrize(
    ("mode", "sizes", "found"),
    [
        ("resize_and_crop", [(12, 16)] * 2, (12, 15)), ("crop", MIXED[:2], (20, 31)),
        ("crop", MIXED[:2], (7, 12)), ("pad", [(4, 4), (3, 5)], (4, 6)),
    ],
)  # fmt: skip
def test_pairs_that_are_not_what_they_were_are_named(mode, sizes, found):
    frames = Frames(Sized(sizes, found=[sizes[0], found]), fit(mode))
    assert frames[0].source.shape[:2] == frames.shape
    with pytest.raises(DataError, match=rf"^b/1: is {found[0]}x{found[1]} now and was "):
        frames[1]


def test_what_stands_in_for_another_brings_its_own_size():
    frames = Frames(Sized([(9, 12), (20, 30)], found=[(20, 30), (9, 12)]), fit("crop"))
    assert frames[0].sizes.tolist() == [20, 30] and frames[1].sizes.tolist() == [9, 12]


# --- evaluation ----------------------------------------------------------------------------------

CANVASES = {
    # mode: stored sizes, content and canvas of each; crop 8x8, load 10x12, step 4
    "resize_and_crop": (MIXED, [(8, 8)] * 4, [(8, 8)] * 4),
    "scale_width_and_crop": (
        MIXED,
        [(9, 12), (8, 12), (12, 12), (21, 12)],
        [(12, 12), (8, 12), (12, 12), (24, 12)],
    ),
    "scale_width": ([(4, 12), (8, 12)], [(4, 12), (8, 12)], [(16, 16)] * 2),
    "crop": (MIXED, MIXED, [(12, 12), (20, 32), (8, 8), (16, 12)]),
    "pad": ([(1, 2), (8, 8), (3, 8)], [(1, 2), (8, 8), (3, 8)], [(8, 8)] * 3),
    "none": ([(8, 8)] * 2, [(8, 8)] * 2, [(8, 8)] * 2),
}


def mirrored(image, canvas):
    """By its definition: there and back, over and over."""
    rows, columns = (
        [(2 * n - 1 - p % (2 * n)) if p % (2 * n) >= n else p % (2 * n) for p in range(wanted)]
        for n, wanted in zip(image.shape, canvas, strict=False)
    )
    return image[rows][:, columns]


@pytest.mark.parametrize("mode", PREPROCESS)
def test_whole_images_on_canvases_and_back(mode):
    sizes, contents, canvases = CANVASES[mode]
    crop = (16, 16) if mode == "scale_width" else (8, 8)
    source = Sized(sizes, (Form(3), Form(2, "uint16")))
    frames = EvalFrames(source, fit(mode, crop=crop, methods=("bicubic", "nearest"), step=4))
    assert frames.device_size is None and len(frames) == len(sizes)
    for i, (size, content, canvas) in enumerate(zip(sizes, contents, canvases, strict=True)):
        assert frames.canvas(i) == canvas and frames.content(i) == content
        pair = frames[i]
        for image, stored, method in zip(pair, source[i], ("bicubic", "nearest"), strict=True):
            assert (image == mirrored(resized(stored, content, method), canvas)).all()
            assert image.dtype == stored.dtype
        for side in (0, 1):
            back = frames.restore(i, pair[side], side)
            assert back.shape == source[i][side].shape
            if content == size:
                assert (back == source[i][side]).all()
        inside = pair.target[: content[0], : content[1]]
        assert (frames.restore(i, pair.target) == resized(inside, size, "nearest")).all()


def test_pairs_of_one_size_are_evaluated_as_stored_and_resized_by_the_device():
    source = Sized([(12, 16)] * 2)
    frames = EvalFrames(source, fit("resize_and_crop", step=4))
    assert frames.device_size == (8, 8) == frames.canvas(1) == frames.content(1)
    assert all((a == b).all() for a, b in zip(frames[1], source[1], strict=True))
    made = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert (frames.restore(1, made) == resized(made, (12, 16), "nearest")).all()
    assert (frames.restore(1, made, 0) == resized(made, (12, 16), "bilinear")).all()
    # Other modes pad, which the device does not.
    assert EvalFrames(source, fit("scale_width_and_crop")).device_size is None


def test_images_to_evaluate_that_are_not_what_they_were_are_named():
    frames = EvalFrames(Sized(MIXED, found=[*MIXED[:3], (16, 8)]), fit("crop"))
    with pytest.raises(DataError, match=r"^b/3: is 16x8 now and was 16x9 when"):
        frames[3]


def test_sides_without_channels_are_padded_too():
    frames = EvalFrames(Sized([(3, 3), (5, 6)], (Form(0), Form(3))), fit("pad"))
    assert frames[0].source.shape == (8, 8, 0) and frames[0].target.shape == (8, 8, 3)
