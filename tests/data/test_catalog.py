"""Data sets of TFDS that others have prepared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from p2p_jax.data import SOURCES, DataError, builders
from tests.data.making import contents, encoded, noise, options, quiet, sets, unused

TFDS = SOURCES["tfds"]


def prepared(root, features, splits, name="others", version="1.0.0", file_format="array_record"):
    """A set as tfds writes it; `splits` hold examples as they are to be encoded."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    folder = root / name / version
    folder.mkdir(parents=True)
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name="x"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )
    writer = SequentialWriter(info, 3, file_format=file_format)
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return folder


def bytes_of(image):
    import io

    return io.BytesIO(encoded(image))


@pytest.fixture
def two(tmp_path):
    """Two encoded images an example, and more that nobody asked for; two splits of many files."""
    import tensorflow_datasets as tfds

    features = {
        "photo": tfds.features.Image(shape=(None, None, 3)),
        "map": tfds.features.Image(shape=(None, None, 1)),
        "title": tfds.features.Text(),
        "number": tfds.features.ClassLabel(num_classes=9),
    }
    splits = {
        split: [
            {"photo": bytes_of(noise(i + k, 8, 8)), "map": bytes_of(noise(i + k, 8, 8, 1)),
             "title": "t", "number": i}
            for i in range(count)
        ]
        for k, (split, count) in enumerate((("train", 7), ("test", 2)))
    }  # fmt: skip
    return prepared(tmp_path / "sets", features, splits)


@pytest.mark.parametrize("way", ["AtoB", "BtoA"])
def test_two_images_an_example(two, tmp_path, way):
    before = contents(two)
    where = options("tfds", two, tmp_path / "c", features=("photo", "map"), eval_split="test",
                    direction=way)  # fmt: skip
    assert TFDS.check(where) == []
    train, held, notes = TFDS.open(where, quiet)
    assert (len(train), len(held), notes) == (7, 2, ())
    assert train.names == tuple(f"{i}" for i in range(7))
    for pairs, k in ((train, 0), (held, 1)):
        for i in range(len(pairs)):
            sides = (noise(i + k, 8, 8), noise(i + k, 8, 8, 1))[:: 1 if way == "AtoB" else -1]
            assert all((a == b).all() for a, b in zip(pairs[i], sides, strict=True))
    assert contents(two) == before
    assert "tensorflow" not in sys.modules


def test_by_name_in_a_folder_of_sets_and_the_whole_of_the_validation_held_out(two, tmp_path):
    where = options("tfds", two.parents[1], tmp_path / "c", name="others", features=("map",))
    train, held, notes = TFDS.open(where, quiet)
    assert len(train) + len(held) == 7 and "there is no split 'val'" in notes[0]
    i = int(train.names[0])
    assert (train[0].source == noise(i, 8, 8, 1)[:, :4]).all()
    assert (train[0].target == noise(i, 8, 8, 1)[:, 4:]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays(tmp_path, dtype):
    import tensorflow_datasets as tfds

    features = {"pair": tfds.features.Tensor(shape=(4, 6, 5), dtype=dtype)}
    made = [noise(i, 4, 6, 5, dtype) for i in range(3)]
    folder = prepared(tmp_path / "sets", features, {"train": [{"pair": x} for x in made]})
    where = options("tfds", folder, tmp_path / "c", features=("pair",), eval_split="train",
                    ranges=((0.0, 65535.0), (0.0, 65535.0)))  # fmt: skip
    train = TFDS.open(where, quiet).train
    for i in range(3):
        assert (train[i].source == made[i][:, :3]).all() and train[i].source.dtype == dtype


def test_it_is_copied_once_and_changes_are_noticed(two, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    where = options("tfds", two, tmp_path / "c", features=("photo", "map"), eval_split="test")
    first = TFDS.open(where, quiet).train.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(builders, "_build", unused)
        assert TFDS.open(where, quiet).train.fingerprint == first
    assert len(sets(tmp_path / "c")) == 2
    (path,) = two.glob("*train*00000*")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"'train' of others/1.0.0.* cannot be read"):
        TFDS.open(where, quiet)


@pytest.mark.parametrize(
    "changes,wanted",
    [
        (dict(features=("photo", "maps")), r"data.features: 'maps' is no feature .*map, number"),
        (dict(features=()), r"data.features: \(\) must be one image"),
        (
            dict(features=("photo",), train_split="tr"),
            r"data.train_split: no split 'tr'; .*test, train",
        ),
        (dict(features=("photo",), hold_out=False), r"eval.split: no split 'val'; there are test"),
        (
            dict(features=("number",), eval_split="test"),
            r"train\[0\] number of record 0: values of type int64",
        ),
    ],
)
def test_what_is_wrong_is_told(two, tmp_path, changes, wanted):
    with pytest.raises(DataError, match=wanted):
        TFDS.open(options("tfds", two, tmp_path / "c", **changes), quiet)


def test_sets_that_are_not_there(tmp_path, two):
    for where, wanted in (
        (options("tfds", "", tmp_path / "c"), r"data.name: '' is empty.*pix2pix/facades"),
        (options("tfds", "", tmp_path / "c", name="pix2pix"), r"is not one of pix2pix/facades"),
        (options("tfds", tmp_path / "no", tmp_path / "c", name="x"), r"no' does not exist"),
        (
            options("tfds", two.parents[1], tmp_path / "c", name="x"),
            r"data.name: .*'x' is found .*tfds build",
        ),
        (options("tfds", two.parent, tmp_path / "c"), r"data.name: .*tfds build"),
    ):
        with pytest.raises(DataError, match=wanted):
            TFDS.open(where, quiet)


def test_other_file_formats_are_refused_with_what_helps(two, tmp_path):
    info = two / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"is stored as tfrecord; .*--file_format=array_record"):
        TFDS.open(options("tfds", two, tmp_path / "c"), quiet)


def test_an_empty_split_is_told(tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    examples = [{"image": bytes_of(noise(i))} for i in range(2)]
    folder = prepared(tmp_path / "sets", features, {"train": examples, "val": []})
    with pytest.raises(DataError, match="val"):
        TFDS.open(options("tfds", folder, tmp_path / "c"), quiet)
    assert Path(folder).exists()
