"""The procedural pairs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from p2p_jax.data import SOURCES, DataError, DataOptions, synthetic


def options(**changes) -> DataOptions:
    base = dict(
        source="synthetic", path="", direction="AtoB", train_split="train", eval_split="val",
        crop_size=(64, 64), split_seed=0, prepared_dir="", max_examples=0,
        eval_examples=0,
    )  # fmt: skip
    return DataOptions(**(base | changes))


@pytest.fixture(scope="module")
def pairs():
    """Labels and photos of 200 training and 32 evaluation pairs."""
    train = [synthetic.render(i, (64, 64)) for i in range(200)]
    held = [synthetic.render(synthetic.EVAL_FIRST + i, (64, 64)) for i in range(32)]
    return train, held


def l1(a, b) -> float:
    return float(np.abs(a.astype(np.float64) - b).mean() / 255)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (33, 90), (120, 40), (256, 256)])
def test_any_size(size):
    for index in (0, 7, synthetic.EVAL_FIRST):
        for image in synthetic.render(index, size):
            assert image.shape == (*size, 3) and image.dtype == np.uint8


def test_a_pair_depends_on_its_index_alone():
    first = synthetic.render(5, (64, 64))
    for other in (6, 7):
        synthetic.render(other, (64, 64))
    again = synthetic.render(5, (64, 64))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != synthetic.render(6, (64, 64))[0]).any()


def test_the_drawing_changes_only_with_its_version():
    labels = b"".join(synthetic.render(i, (64, 64))[0].tobytes() for i in range(8))
    assert synthetic.VERSION == 1
    assert hashlib.sha256(labels).hexdigest()[:16] == "bc779c9c22de5662"


def test_labels_are_flat_and_known(pairs):
    known = set(synthetic.LABELS.values())
    assert len(known) == len(synthetic.LABELS)
    seen = {tuple(c) for a, _ in pairs[0] for c in np.unique(a.reshape(-1, 3), axis=0).tolist()}
    assert seen == known  # each occurs, and nothing else


def test_parts_are_symmetric_so_that_a_mirrored_pair_is_plausible():
    for unit in (0.5, 1.0, 2.3, 4.0):
        for width in (9, 10, 31, 40):
            parts = [
                *(synthetic._wall(m, 25, width, unit) for m in synthetic._WALLS),
                synthetic._pane(12, width, unit, "window"),
                synthetic._pane(12, width, unit, "lit"),
                synthetic._door(14, width, unit),
                synthetic._front(16, width, unit),
                synthetic._awning(5, width, unit),
                synthetic._rails(6, width, unit),
            ]
            for part in parts:
                np.testing.assert_array_equal(part, part[:, ::-1])


def test_the_photo_follows_from_the_labels_but_not_from_an_average(pairs):
    """What a translator can gain: the median photo is a poor guess, the label's colour a fair one.

    The noise, which nobody can guess, is small beside both.
    """
    train, held = pairs
    median = np.median([b for _, b in train], axis=0)
    colours = {}
    for label in synthetic.LABELS.values():
        masks = [(a == label).all(-1) for a, _ in train]
        inside = [b[m] for m, (_, b) in zip(masks, train, strict=True)]
        colours[label] = np.concatenate(inside).mean(0)
    by_median = np.mean([l1(b, median) for _, b in held])
    by_label = []
    for a, b in held:
        guess = np.zeros(b.shape)
        for label, colour in colours.items():
            guess[(a == label).all(-1)] = colour
        by_label.append(l1(b, guess))
    noise = np.abs(np.arange(-4, 5)).mean() / 255
    assert by_median > 0.15
    assert np.mean(by_label) < 0.7 * by_median
    assert noise < 0.1 * np.mean(by_label)


def test_splits_are_disjoint_and_capped():
    opened = SOURCES["synthetic"].open(options(), print)
    assert (len(opened.train), len(opened.eval)) == (2000, 64)
    names = [*opened.train.names, *opened.eval.names]
    assert len(set(names)) == 2064 and names[12] == "synthetic_000012"
    few = SOURCES["synthetic"].open(options(max_examples=5, eval_examples=3), print)
    assert (len(few.train), len(few.eval)) == (5, 3)
    assert few.train.fingerprint != opened.train.fingerprint != opened.eval.fingerprint
    with pytest.raises(IndexError):
        few.train[5]


def test_direction_and_size():
    there = SOURCES["synthetic"].open(options(crop_size=(40, 56)), print).train
    back = SOURCES["synthetic"].open(options(crop_size=(40, 56), direction="BtoA"), print).train
    assert set(map(tuple, there.sizes)) == {(40, 56)} == {there[3].source.shape[:2]}
    assert (there[3].source == synthetic.render(3, (40, 56))[0]).all()
    assert (there[3].source == back[3].target).all() and (there[3].target == back[3].source).all()


def test_all_problems_are_named():
    bad = options(crop_size=(16, 64))
    problems = SOURCES["synthetic"].check(bad)
    assert [p.split(":")[0] for p in problems] == ["data.crop_size"]
    with pytest.raises(DataError, match=r"data.crop_size: \(16, 64\)"):
        SOURCES["synthetic"].open(bad, print)
