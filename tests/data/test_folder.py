"""Folders of the user's: found, explained, only read; on a disk and in a bucket."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import SOURCES, DataError
from tests.data.making import contents, halves, noise, options, quiet, save, unused

ROOT = Path(__file__).resolve().parents[2]
FACADES = ROOT.parent / "shared" / "data" / "facades"
FOLDER, TREES, PHOTOS = (SOURCES[n] for n in ("folder", "paired_folders", "colorization"))


@pytest.fixture
def folder(tmp_path):
    halves(tmp_path / "data")
    return tmp_path / "data"


def test_the_users_folder_is_only_read(folder, tmp_path):
    before = contents(folder)
    lines = []
    train, held, notes = FOLDER.open(options("folder", folder, tmp_path / "c"), lines.append)
    assert train.names == tuple(f"p{i}" for i in range(6)) and held.names == ("p0", "p1")
    assert notes == () and contents(folder) == before
    assert any("preparing 6 pairs of 'train'" in line for line in lines)
    assert any("prepared 2 examples of 2 pairs of 'val'" in line for line in lines)
    with pytest.raises(IndexError):
        train[6]


def test_other_files_are_told_and_hidden_ones_ignored(folder, tmp_path):
    (folder / "train/readme.txt").write_text("x")
    (folder / "train/.hidden.png").write_text("x")
    (folder / "train/below.png").mkdir()
    train, _, notes = FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert len(train) == 6 and len(notes) == 1
    assert "1 files are not images and were left out: readme.txt" in notes[0]


def test_examples_are_capped(folder, tmp_path):
    few = options("folder", folder, tmp_path / "c", max_examples=4, eval_examples=1)
    train, held, _ = FOLDER.open(few, quiet)
    assert train.names == ("p0", "p1", "p2", "p3") and held.names == ("p0",)
    every = FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert every.train.fingerprint != train.fingerprint


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,wanted",
    [
        (lambda p: options("folder", "", p / "c"), r"^data.path: '' is empty"),
        (lambda p: options("folder", p / "dat", p / "c"), r"dat' does not exist.*mean .*data\?"),
        (lambda p: options("folder", p / "data/train/p0.png", p / "c"), r"is a file.*try .*train"),
        (lambda p: options("folder", p / "data/train", p / "c"), r"found 6 images directly in it"),
        (
            lambda p: options("folder", p / "data", p / "c", train_split="tr"),
            r"'tr' \(data.train_split\); .*found images in train, val; name one",
        ),
        (
            lambda p: options("folder", p / "data", p / "c", eval_split="text", hold_out=False),
            r"^eval.split: 'text' is no split of .*data'; found images in train, val",
        ),
        (
            lambda p: options("folder", p / "data", p / "data/c"),
            r"^data.prepared_dir: .*inside data.path",
        ),
        (
            lambda p: options("folder", p / "data", "gs://b/c"),
            r"^data.prepared_dir: .*this machine",
        ),
        (lambda p: options("folder", "~nobody-here/x", p / "c"), r"cannot be looked at"),
        (
            lambda p: options("folder", p / "data", p / "c", train_split="x" * 300),
            r"^data.path: .*cannot be looked at \(.*name too long",
        ),
        (
            lambda p: options("paired_folders", p / "data", p / "c"),
            r"expected are PATH/A/SPLIT .*side by side, use data.source=folder",
        ),
    ],
)
def test_a_wrong_path_is_explained(folder, tmp_path, make, wanted):
    bad = make(tmp_path)
    (problem,) = SOURCES[bad.source].check(bad)
    with pytest.raises(DataError, match=wanted):
        SOURCES[bad.source].open(bad, unused)
    assert problem.startswith(("data.", "eval."))
    assert FOLDER.check(options("folder", folder, tmp_path / "c")) == []


@pytest.mark.parametrize(
    "files,source,wanted",
    [
        (["train/A/a.png", "train/B/a.png"], "folder", r"data.train_split: .*paired_folders"),
        (["A/train/a.png", "B/train/a.png"], "folder", r"two trees A and B: use .*paired_folders"),
        (["day/A/a.png", "day/B/a.png"], "folder", r"two trees A and B: use .*paired_folders"),
        (["trainA/a.png", "trainB/a.png"], "paired_folders", r"move them to A/train and B/train"),
        (["trainA/a.png", "trainB/a.png"], "folder", r"move them to A/train and B/train"),
        (["train/a.gif"], "folder", r"holds no image; allowed are .jpg.*found a.gif"),
        (["train/a.png"], "folder", r"at least 2 are needed to hold one out"),
        (
            ["A/train/a.png", "B/val/a.png"],
            "paired_folders",
            r"train: there is no folder .*B/train",
        ),
        (["A/train/a.png", "B/train/b.png"], "paired_folders", r"have no partner"),
        (["notes.txt", "x/y.txt"], "folder", r"found x/, notes.txt; check data.path"),
        ([], "colorization", r"holds no image|has no split"),
    ],
)
def test_unusual_layouts_are_explained(tmp_path, files, source, wanted):
    (tmp_path / "data").mkdir()
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"")
    problems = SOURCES[source].check(options(source, tmp_path / "data", tmp_path / "c"))
    with pytest.raises(AssertionError, match=wanted):
        raise AssertionError("\n".join(problems))
    with pytest.raises(DataError, match=wanted):
        SOURCES[source].open(options(source, tmp_path / "data", tmp_path / "c"), unused)


def test_folders_below_a_split_are_read_too(tmp_path):
    """Nothing is left out in silence; an archive of the same files gives the same pairs."""
    for name in ("train/a.png", "train/x/a.png", "train/x/y/b.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "data" / name)
    found = options("folder", tmp_path / "data", tmp_path / "c", max_examples=0)
    splits = SOURCES["folder"].open(found, quiet)
    assert sorted([*splits.train.names, *splits.eval.names]) == ["a", "x/a", "x/y/b"]


def test_an_empty_evaluation_split_is_no_reason_to_hold_out(folder, tmp_path):
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    (problem,) = FOLDER.check(options("folder", folder, tmp_path / "c"))
    assert problem.startswith("data.eval_split: 'val'") and "remove it to hold out" in problem


def test_all_bad_images_are_named_at_once(folder, tmp_path):
    train = folder / "train"
    (train / "p0.png").write_bytes((train / "p0.png").read_bytes()[:-30])
    save(train / "p2.npy", noise(1, channels=5))
    save(train / "p3.png", noise(1, width=15))
    (train / "p9.png").symlink_to(tmp_path / "nowhere")
    (train / "q.png").symlink_to("q.png")
    (folder / "val/p1.BMP").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    text = str(caught.value)
    for wanted in (
        "train[0] ", "p0.png: broken or truncated", "p3.png: width 15 is odd",
        "p9.png: cannot be read (No such file or directory)", "q.png: cannot be read (Too many",
        "4 of 3 channels (first", "1 of 5 channels (first train[2] p2)", "val[1] ",
        "p1.BMP: broken or truncated (an empty file)",
    ):  # fmt: skip
        assert wanted in text or ("3 of 3 channels" in text and wanted.startswith("4 of 3")), text
    assert len(caught.value.problems) == 7  # the last two are of source and of target
    assert not list((tmp_path / "c").glob("unfinished-*"))


def test_twenty_problems_are_shown_and_the_rest_counted(folder, tmp_path):
    for i in range(30):
        (folder / f"train/x{i:02d}.jpg").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "and 10 more"


def test_a_mended_file_is_enough(folder, tmp_path):
    good = (folder / "train/p0.png").read_bytes()
    (folder / "train/p0.png").write_bytes(good[:50])
    where = options("folder", folder, tmp_path / "c")
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(DataError, match=r"train\[0\] .*p0.png: broken or truncated"):
            FOLDER.open(where, quiet)
    (folder / "train/p0.png").write_bytes(good)
    assert len(FOLDER.open(where, quiet).train) == 6


# --- photos alone --------------------------------------------------------------------------------


def test_photos_may_lie_directly_in_the_folder_or_below_it(tmp_path):
    made = {
        n: save(tmp_path / "p" / n, noise(i)) for i, n in enumerate(["a.png", "x/b.png", "c.npy"])
    }
    train, held, notes = PHOTOS.open(options("colorization", tmp_path / "p", tmp_path / "c"), quiet)
    assert sorted([*train.names, *held.names]) == ["a", "c", "x/b"]
    assert notes[0].startswith("there is no folder 'train' in ")
    assert "all 3 images there are taken, in these folders too: x." in notes[0]
    for source in (train, held):
        for i, name in enumerate(source.names):
            want = next(image for file, image in made.items() if file.startswith(name))
            assert (source[i].target == want).all() and source[i].source.shape == (8, 16, 0)


def test_a_misspelt_split_is_not_taken_for_photos_in_the_folder(tmp_path):
    save(tmp_path / "p/trian/a.png", noise(0))
    save(tmp_path / "p/val/b.png", noise(1))
    (problem,) = PHOTOS.check(options("colorization", tmp_path / "p", tmp_path / "c"))
    assert "has no split 'train'" in problem and "found images in trian, val" in problem


# --- in a bucket ---------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket is a folder of this machine; any other use of a remote path fails."""
    import builtins

    from etils.epath import gpath

    root = tmp_path / "bucket"
    inner = gpath.backend_lib.os_backend

    class Fake:
        def __getattr__(self, name):
            def call(path, *args, **named):
                path = os.fspath(path)
                if path.startswith("gs://"):
                    assert path.startswith("gs://bucket"), path
                    path = str(root) + path[len("gs://bucket") :]
                return getattr(inner, name)(path, *args, **named)

            return call

    monkeypatch.setattr(gpath._GPath, "_backend", property(lambda self: Fake()))
    real = builtins.open

    def guarded(file, *args, **named):
        assert "gs:/" not in str(file), file
        return real(file, *args, **named)

    monkeypatch.setattr(builtins, "open", guarded)
    return root


def test_a_folder_in_a_bucket(bucket, tmp_path):
    made = halves(bucket / "data")
    where = options("folder", "gs://bucket/data", tmp_path / "c")
    assert FOLDER.check(where) == []
    train, held, _ = FOLDER.open(where, quiet)
    assert all((train[i].source == made["train"][i][:, :8]).all() for i in range(6))
    assert len(held) == 2
    fingerprint = train.fingerprint
    save(bucket / "data/train/p0.png", noise(50))
    train = FOLDER.open(where, quiet).train
    assert train.fingerprint != fingerprint and (train[0].target == noise(50)[:, 8:]).all()
    (bucket / "data/train/p1.BMP").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\[1\] gs://bucket/data/train/p1.BMP: broken"):
        FOLDER.open(where, quiet)
    (problem,) = FOLDER.check(options("folder", "gs://bucket/dat", tmp_path / "c"))
    assert "did you mean gs://bucket/data?" in problem
    assert not Path("gs:").exists()


def test_trees_photos_and_manifests_in_a_bucket(bucket, tmp_path):
    for i in range(3):
        for side in "AB":
            save(bucket / f"t/{side}/train/deep/{i}.png", noise(i + 10 * (side == "B")))
    (bucket / "list.csv").write_text(
        "a,b\n"
        + "".join(f"t/A/train/deep/{i}.png,gs://bucket/t/B/train/deep/{i}.png\n" for i in range(3))
    )
    for source, path in (("paired_folders", "t"), ("manifest", "list.csv"), ("inpaint", "t")):
        where = options(source, f"gs://bucket/{path}", tmp_path / "c", eval_split="")
        assert SOURCES[source].check(where) == []
        train, held, _ = SOURCES[source].open(where, quiet)
        if source != "inpaint":
            assert len(train) + len(held) == 3
            for side in (train, held):
                for i, name in enumerate(side.names):
                    assert (side[i].target == noise(int(name[-1]) + 10)).all()
    for name in ("labels", "single", "tfds"):
        where = options(name, "gs://bucket/none", tmp_path / "c", classes=2)
        assert any("gs://bucket/none" in problem for problem in SOURCES[name].check(where))


def test_a_bucket_without_the_extra_is_explained(tmp_path, monkeypatch):
    from etils.epath import gpath

    def missing(self):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(gpath._GPath, "_backend", property(missing))
    for name, source in SOURCES.items():
        if name != "synthetic":
            where = options(name, "gs://bucket/x", tmp_path / "c", classes=2)
            problems = source.check(where)
            assert any("p2p_jax[gcp]" in problem for problem in problems), (name, problems)


# --- real pairs ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not FACADES.is_dir(), reason="the facades are not here")
def test_real_facades(tmp_path):
    where = options("folder", FACADES, tmp_path, direction="BtoA")
    train, held, notes = FOLDER.open(where, quiet)
    assert (len(train), len(held)) == (400, 50) and notes == ()
    assert (train.sizes == 256).all() and (held.sizes == 256).all()
    for source, split, i in [(train, "train", 0), (train, "train", 399), (held, "val", 17)]:
        with Image.open(FACADES / split / f"{source.names[i]}.jpg") as image:
            whole = np.asarray(image)
        assert (source[i].target == whole[:, :256]).all()
        assert (source[i].source == whole[:, 256:]).all()
