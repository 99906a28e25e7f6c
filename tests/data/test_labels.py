"""Label maps become indices as a slow, plain way finds them; what is of no class is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data.labels import Labels, colours, read_palette, to_indices

PALETTE = ((0, 0, 170), (0, 0, 255), (0, 85, 255), (255, 170, 0), (255, 255, 255), (0, 0, 0))


def plain_way(image: np.ndarray, palette) -> tuple[np.ndarray, np.ndarray]:
    """(class, distance) `[h, w]` by all distances of all pixels."""
    apart = np.abs(image[:, :, None].astype(int) - np.array(palette)).max(-1)
    return apart.argmin(-1), apart.min(-1)


def label_map(classes: int, shape=(37, 41)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, (*shape, 1))


@pytest.mark.parametrize("text,expected", [
    ("#0000aa #0000ff", ((0, 0, 170), (0, 0, 255))),
    ("0000AA,#0055Ff", ((0, 0, 170), (0, 85, 255))),
    (" #ffffff,\n 010203 , #000000, ", ((255, 255, 255), (1, 2, 3), (0, 0, 0))),
    ("", ()),
    (" , ", ()),
])  # fmt: skip
def test_read_palette(text, expected):
    assert read_palette(text) == expected


def test_read_palette_names_all_that_is_wrong():
    with pytest.raises(ValueError) as caught:
        read_palette("#0000aa red #fff 0000AA #00ff000 #00ff00 #00FF00")
    message = str(caught.value)
    for part in ("entry 1, 'red'", "entry 2, '#fff'", "entry 3, '0000AA', repeats",
                 "entry 4, '#00ff000'", "entry 6, '#00FF00', repeats"):  # fmt: skip
        assert part in message
    assert "entry 0" not in message and "entry 5" not in message


def test_count():
    assert Labels(PALETTE).count == 6
    assert Labels((), 19).count == 19
    assert Labels().count == 0


@pytest.mark.parametrize("classes", [1, 2, 6, 256, 300])
def test_exact_colours(classes):
    random = np.random.default_rng(1)
    codes = random.choice(2**24, classes, replace=False)
    palette = tuple((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in codes)
    expected = label_map(classes)
    image = np.array(palette, np.uint8)[expected[..., 0]]
    got = to_indices(image, Labels(palette))
    assert got.dtype == (np.uint16 if classes > 256 else np.uint8)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("spread", [2, 30, 400])
def test_nearest_colours(spread, monkeypatch):
    random = np.random.default_rng(2)
    exact = np.array(PALETTE)[label_map(6)[..., 0]]
    noise = random.integers(-spread, spread + 1, exact.shape) * (random.random(exact.shape) < 0.5)
    image = np.clip(exact + noise, 0, 255).astype(np.uint8)
    nearest, apart = plain_way(image, PALETTE)
    labels = Labels(PALETTE, tolerance=int(apart.max()))
    np.testing.assert_array_equal(to_indices(image, labels)[..., 0], nearest)
    monkeypatch.setattr("p2p_jax.data.labels._AT_ONCE", 50)
    np.testing.assert_array_equal(to_indices(image, labels)[..., 0], nearest)
    with pytest.raises(ValueError, match="no class"):
        to_indices(image, labels._replace(tolerance=labels.tolerance - 1))


def test_of_equally_near_colours_the_first_counts():
    palette = ((20, 0, 0), (0, 0, 0), (10, 10, 0))
    image = np.array([[[10, 0, 0], [10, 5, 0], [5, 5, 0]]], np.uint8)
    np.testing.assert_array_equal(plain_way(image, palette)[0], [[0, 2, 1]])
    got = to_indices(image, Labels(palette, tolerance=10))
    np.testing.assert_array_equal(got[..., 0], [[0, 2, 1]])
    same = Labels(((9, 9, 9), (1, 2, 3), (9, 9, 9)))
    assert to_indices(np.full((1, 1, 3), 9, np.uint8), same).item() == 0
    many = Labels(tuple((i % 7, 0, 0) for i in range(250)))
    image = np.array([[[i, 0, 0] for i in range(7)]], np.uint8)
    np.testing.assert_array_equal(to_indices(image, many)[..., 0], [range(7)])


def test_a_jpeg_of_labels():
    blocks = np.repeat(np.repeat(label_map(6, (8, 9)), 16, 0), 16, 1)
    out = io.BytesIO()
    Image.fromarray(np.array(PALETTE, np.uint8)[blocks[..., 0]]).save(out, "JPEG", quality=95,
                                                                      subsampling=0)  # fmt: skip
    image = np.asarray(Image.open(out).convert("RGB"))
    assert not np.array_equal(image, np.array(PALETTE)[blocks[..., 0]])
    got = to_indices(image, Labels(PALETTE, tolerance=60))
    assert (got == blocks).mean() > 0.99


def test_a_grey_map_of_colours():
    image = np.array([[[0], [255], [3]]], np.uint8)
    got = to_indices(image, Labels(PALETTE, tolerance=3))
    np.testing.assert_array_equal(got[..., 0], [[5, 4, 5]])


def test_pixels_of_no_class_are_named():
    image = np.zeros((4, 5, 3), np.uint8)
    image[1, 1] = (0, 2, 0)  # within the tolerance
    image[2, 2] = (0, 3, 0)
    image[2, 3] = (0, 90, 250)
    image[3, 0] = (7, 0, 3)
    image[3, 4] = (0, 90, 250)
    with pytest.raises(ValueError) as caught:
        to_indices(image, Labels(PALETTE, tolerance=4))
    message = str(caught.value)
    for part in ("3 of 20 pixels", "row 2, column 3, is #005afa", "#0055ff (class 2), 5 away",
                 "label_tolerance is 4; 7 would take", "data.palette"):  # fmt: skip
        assert part in message
    assert to_indices(image, Labels(PALETTE, tolerance=7))[3, 0, 0] == 5
    with pytest.raises(ValueError, match=r"5 of 20 pixels.*row 1, column 1, is #000200"):
        to_indices(image, Labels(PALETTE))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_values_are_classes(dtype):
    image = label_map(12).astype(dtype)
    got = to_indices(image, Labels((), 12))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, image)
    image[5, 7] = 37
    with pytest.raises(ValueError, match=r"value 37 at row 5, column 7, where 12 classes are 0 to "
                                         r"11; set data.classes.*data.palette"):  # fmt: skip
        to_indices(image, Labels((), 12))
    if dtype != "uint8":
        image[5, 7] = 299
        assert to_indices(image, Labels((), 300)).dtype == np.uint16
        assert to_indices(image, Labels((), 300)).max() == 299


def test_negative_values_are_refused():
    image = label_map(12)
    image[1, 2] = -1
    with pytest.raises(ValueError, match="value -1 at row 1, column 2"):
        to_indices(image, Labels((), 12))


@pytest.mark.parametrize("image,labels,reason", [
    (np.zeros((2, 2, 3), np.uint8), Labels((), 4), "3 channels of uint8.*set data.palette"),
    (np.zeros((2, 2, 1), np.float32), Labels((), 4), "1 channels of float32.*integers"),
    (np.zeros((2, 2, 4), np.uint8), Labels(PALETTE), "4 channels of uint8.*grey or RGB"),
    (np.zeros((2, 2, 3), np.uint16), Labels(PALETTE), "3 channels of uint16.*uint8"),
])  # fmt: skip
def test_images_that_hold_no_labels(image, labels, reason):
    with pytest.raises(ValueError, match=reason):
        to_indices(image, labels)


def test_colours():
    assert colours(Labels(PALETTE, 9)) == PALETTE
    made = colours(Labels((), 1000))
    assert len(set(made)) == 1000 and all(0 <= v <= 255 for colour in made for v in colour)
    # As published with the development kit.
    assert made[:8] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128),
                        (128, 0, 128), (0, 128, 128), (128, 128, 128))  # fmt: skip
    assert made[8] == (64, 0, 0) and made[255] == (224, 224, 192)
    assert colours(Labels((), 3)) == made[:3]


def test_colours_and_indices_undo_each_other():
    image = label_map(40)
    made = colours(Labels((), 40))
    shown = np.array(made, np.uint8)[image[..., 0]]
    np.testing.assert_array_equal(to_indices(shown, Labels(made)), image)
