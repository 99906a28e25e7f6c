"""What is wrong with a set is told right, all at once; what is not wrong is read right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import SOURCES, DataError
from p2p_jax.data.builders import Row
from p2p_jax.data.decoding import Facts
from p2p_jax.data.records import View, judge
from tests.data.making import halves, noise, options, quiet, save


def opened(tmp_path, source="folder", **changes):
    changes = {"eval_split": "train", **changes}
    return SOURCES[source].open(options(source, tmp_path / "d", tmp_path / "c", **changes), quiet)


def problems(tmp_path, source="folder", **changes):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, source, **changes)
    return caught.value.problems


def test_grey_among_colour_is_repeated(tmp_path):
    grey = save(tmp_path / "d/train/a.png", noise(0, channels=1))
    colour = save(tmp_path / "d/train/b.png", noise(1))
    train = opened(tmp_path).train
    assert [form.channels for form in train.forms] == [3, 3]
    assert (train[0].source == np.repeat(grey[:, :8], 3, -1)).all()
    assert (train[1].target == colour[:, 8:]).all()


def test_grey_alone_stays_grey_unless_the_other_split_has_colour(tmp_path):
    save(tmp_path / "d/train/a.png", noise(0, channels=1))
    assert opened(tmp_path).train[0].source.shape == (8, 8, 1)
    save(tmp_path / "d/val/a.png", noise(0))
    train, held, _ = opened(tmp_path, eval_split="val")
    assert train[0].source.shape == held[0].source.shape == (8, 8, 3)
    assert train.forms == held.forms


def rgba(seed):
    return noise(seed, channels=4)


def over(image, ground):
    colours, alpha = image[..., :3].astype(float), image[..., 3:].astype(float) / 255
    return np.floor(colours * alpha + ground * (1 - alpha) + 0.5)


def test_transparency_is_settled_as_said(tmp_path):
    clear = [save(tmp_path / f"d/train/{i}.png", rgba(i)) for i in range(2)]
    said = problems(tmp_path)
    assert len(said) == 2  # of source and of target
    assert said[0].startswith("train: 2 of 2 source images have transparency (train[0] 0, train[1]")
    assert "data.alpha says what becomes of it" in said[0]
    dropped = opened(tmp_path, alpha="drop").train
    assert (dropped[1].source == clear[1][:, :8, :3]).all()
    for name, ground in (("white", 255), ("black", 0)):
        train = opened(tmp_path, alpha=name).train
        assert np.abs(train[0].target - over(clear[0][:, 8:], ground)).max() <= 1
        assert train.forms[0].channels == 3
    kept = opened(tmp_path, alpha="keep").train
    assert (kept[0].source == clear[0][:, :8]).all() and kept.forms[0].channels == 4
    prints = {opened(tmp_path, alpha=a).train.fingerprint for a in ("drop", "white", "keep")}
    assert len(prints) == 3


def test_transparency_among_images_without(tmp_path):
    clear = save(tmp_path / "d/train/a.png", rgba(0))
    grey = save(tmp_path / "d/train/b.png", noise(1, channels=1))
    save(tmp_path / "d/train/c.png", noise(2))
    assert "1 of 3 source images have transparency (train[0] a)" in problems(tmp_path)[0]
    train = opened(tmp_path, alpha="drop").train
    assert (train[0].source == clear[:, :8, :3]).all()
    assert (train[1].source == np.repeat(grey[:, :8], 3, -1)).all()
    said = problems(tmp_path, alpha="keep")
    assert "source images differ in channels: 1 of 4 channels (first train[0] a), 1 of 1" in said[0]


def test_arrays_of_many_channels_have_no_transparency(tmp_path):
    made = save(tmp_path / "d/train/a.npy", noise(0, channels=4))
    wide = save(tmp_path / "d/val/a.npy", noise(0, channels=4))
    train, held, _ = opened(tmp_path, eval_split="val")
    assert (train[0].source == made[:, :8]).all() and (held[0].target == wide[:, 8:]).all()


@pytest.mark.parametrize("suffix,channels", [("tif", 1), ("tif", 3), ("npy", 3)])
def test_sixteen_bits_stay(tmp_path, suffix, channels):
    made = save(tmp_path / f"d/train/a.{suffix}", noise(0, channels=channels, dtype=np.uint16))
    train = opened(tmp_path).train
    assert train[0].source.dtype == np.uint16 and (train[0].target == made[:, 8:]).all()
    assert train.forms[0].dtype == "uint16" and train.forms[0].suffix == ".png"


def test_mixed_types_are_told_with_the_first_of_each(tmp_path):
    save(tmp_path / "d/train/a.png", noise(0))
    save(tmp_path / "d/train/b.npy", noise(1, dtype=np.uint16))
    save(tmp_path / "d/train/c.npy", noise(2, channels=7))
    said = problems(tmp_path)
    wanted = (
        "train: source images differ in type: 2 of uint8 (first train[0] a), 1 of uint16 (first"
    )
    assert said[0].startswith(wanted)
    assert said[1].startswith("train: source images differ in channels: 2 of 3 channels (first")
    assert len(said) == 4 and "target" in said[2]


def test_splits_that_differ_are_told(tmp_path):
    save(tmp_path / "d/train/a.png", noise(0))
    save(tmp_path / "d/val/a.npy", noise(0, dtype=np.uint16))
    said = problems(tmp_path, eval_split="val")
    assert said[0] == (
        "source images of the splits differ in type or channels: train uint8 of 3, val uint16 of 3"
    )
    assert len(said) == 2


# --- ranges --------------------------------------------------------------------------------------


def test_fractions_need_a_range_which_is_suggested_once_for_all_splits(tmp_path):
    for split, top in (("train", 0.5), ("val", 0.75)):
        image = noise(0, dtype=np.float32) * 0.5
        image[0, 0], image[0, 1], image[0, 8], image[0, 9] = 0.0, top, 0.125, top
        save(tmp_path / f"d/{split}/a.npy", image)
    said = problems(tmp_path, eval_split="val")
    assert len(said) == 2
    assert said[0].startswith(
        "data.source_range: the source images hold fractions, from 0 to 0.75;"
    )
    assert said[0].endswith("as in --config.data.source_range=0,0.75")
    ranges = ((0.0, 0.75), (0.0, 0.75))
    train, held, _ = opened(tmp_path, eval_split="val", ranges=ranges)
    assert train[0].source.dtype == held[0].source.dtype == np.float32
    assert train.forms[0].suffix == ".npy"
    said = problems(tmp_path, eval_split="val", ranges=((0.0, 0.75), (0.0, 0.6)))
    assert len(said) == 1 and said[0].startswith(
        "data.target_range: (0, 0.6) does not hold the values of 1 of 2 target images (first val[0]"
    )


def test_ranges_of_whole_numbers_are_checked_where_declared(tmp_path):
    image = save(tmp_path / "d/train/a.npy", noise(0, dtype=np.uint16) % 4096)
    assert opened(tmp_path, ranges=((0, 4095), (0, 0))).train.forms[0].dtype == "uint16"
    (said,) = problems(tmp_path, ranges=((0, 0), (0, 100)))
    assert f"(first train[0] a: {image.min()} to {image.max()})" in said


def test_labels_have_no_range(tmp_path):
    save(tmp_path / "d/train/a.npy", noise(0, 8, 16, 1) % 3)
    ranges = ((0.0, 1.0), (0.0, 0.0))
    changes = dict(labels="source", classes=3, ranges=ranges)
    assert (opened(tmp_path, "labels", **changes).train[0].source < 3).all()


# --- sizes ---------------------------------------------------------------------------------------


def test_pairs_may_differ_in_size_and_both_of_a_pair_may_not(tmp_path):
    shapes = [(8, 16), (10, 6), (1, 1)]
    for i, (h, w) in enumerate(shapes):
        save(tmp_path / f"d/A/train/{i}.png", noise(i, h, w))
        save(tmp_path / f"d/B/train/{i}.png", noise(i, h, w))
    train = opened(tmp_path, "paired_folders").train
    assert train.sizes.tolist() == [list(s) for s in shapes]
    save(tmp_path / "d/B/train/1.png", noise(0, 6, 10))
    (said,) = problems(tmp_path, "paired_folders")
    assert said.startswith("train[1] ") and "A/train/1.png and " in said
    assert "of 6x10 and 10x6 pixels (width x height)" in said


def test_odd_widths_and_turned_photos(tmp_path):
    """The width counts as it is upright: one photo of 7x8 is turned to an even width."""
    (tmp_path / "d/train").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, 8, 7)).save(tmp_path / "d/train/a.jpg", exif=exif)
    Image.fromarray(noise(0, 7, 8)).save(tmp_path / "d/train/b.jpg", exif=exif)
    Image.fromarray(noise(0, 8, 8)).save(tmp_path / "d/train/c.jpg")
    (said,) = problems(tmp_path)
    assert "b.jpg: width 7 is odd; two equal halves" in said


def facts(**changes):
    base = dict(height=8, width=16, channels=3, dtype="uint8", low=0.0, high=255.0, format="png")
    return Facts(**(base | changes))


def test_a_large_split_is_judged_in_no_time():
    rows = [Row(f"n{i}", (f"f{i}",), ("d",), (facts(),)) for i in range(50_000)]
    rows[77] = rows[77]._replace(facts=(), problem="broken")
    views = View(0, "left"), View(0, "right")
    verdict = judge("train", rows, views, options("folder", "x", "y"))
    assert verdict.broken == [(77, "train[77] f77: broken")] and not verdict.problems


def test_an_index_outside_is_an_index_error(tmp_path):
    halves(tmp_path / "d")
    train = opened(tmp_path).train
    for i in (-1, 6):
        with pytest.raises(IndexError, match=r"train\[-?\d\]: there are 6 pairs"):
            train[i]
