"""A folder of side-by-side images: checked, prepared once, split, read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import SOURCES, DataError, DataOptions, builders
from p2p_jax.data import folder as folders

ROOT = Path(__file__).resolve().parents[2]
FACADES = ROOT.parent / "shared" / "data" / "facades"
FOLDER = SOURCES["folder"]


def options(path, prepared, **changes) -> DataOptions:
    base = dict(
        source="folder", path=str(path), direction="AtoB", train_split="train", eval_split="val",
        load_size=(8, 8), crop_size=(8, 8), split_seed=0, prepared_dir=str(prepared),
        max_examples=0, eval_examples=0,
    )  # fmt: skip
    return DataOptions(**(base | changes))


def pixels(number: int, height: int = 8, width: int = 16) -> np.ndarray:
    """Left half and right half tell the number apart; uint8 [h, w, 3]."""
    image = np.full((height, width, 3), number, np.uint8)
    image[:, width // 2 :] = 255 - number
    image[0, 0] = (number, 1, 2)
    return image


def save(path: Path, number: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six training and two evaluation images as PNG, BMP and lossless WebP."""
    for i in range(6):
        save(tmp_path / f"data/train/p{i}.{['png', 'BMP'][i % 2]}", i)
    for i in range(2):
        save(tmp_path / f"data/val/q{i}.webp", 100 + i, lossless=True)
    return tmp_path / "data"


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(path)): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns)
        for p in sorted(path.rglob("*"))
    }


def sets(prepared: Path) -> list[Path]:
    return sorted(prepared.glob("pairs-*"))


def unused(*args):
    raise AssertionError("must not be called")


# --- preparing and reading -----------------------------------------------------------------------


def test_pairs_are_the_halves_in_the_order_of_the_names(folder, tmp_path):
    before = contents(folder)
    lines = []
    train, held, notes = FOLDER.open(options(folder, tmp_path / "cache"), lines.append)
    assert train.names == tuple(f"p{i}" for i in range(6)) and held.names == ("q0", "q1")
    assert train.size == held.size == (8, 8) and notes == ()
    for i in range(6):
        whole = pixels(i)
        assert (train[i].source == whole[:, :8]).all() and (train[i].target == whole[:, 8:]).all()
    assert (held[1].source == pixels(101)[:, :8]).all()
    back = FOLDER.open(options(folder, tmp_path / "cache", direction="BtoA"), print).train
    assert (back[2].source == train[2].target).all() and (back[2].target == train[2].source).all()
    assert contents(folder) == before
    assert any("preparing 6 images of 'train'" in line for line in lines)
    assert any("prepared 2 images of 'val'" in line for line in lines)
    with pytest.raises(IndexError):
        train[6]


def test_the_files_are_stored_as_they_are(folder, tmp_path):
    FOLDER.open(options(folder, tmp_path / "cache"), print)
    stored = builders.prepare(folder / "train", "train", tmp_path / "cache", unused)
    files = sorted((folder / "train").iterdir())
    assert [bytes(r["image"]) for r in stored.records] == [f.read_bytes() for f in files]
    assert [r["name"].decode() for r in stored.records] == [f.name for f in files]


def test_nothing_is_done_twice(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))  # the files are new; trust them
    first = FOLDER.open(options(folder, tmp_path / "cache"), print)
    before = contents(tmp_path / "cache")
    monkeypatch.setattr(builders, "ordered_map", unused)  # what reads files, to hash or to prepare
    second = FOLDER.open(options(folder, tmp_path / "cache"), unused)
    assert second.train.fingerprint == first.train.fingerprint
    assert contents(tmp_path / "cache") == before


def test_fresh_files_are_hashed_again_but_not_prepared_again(folder, tmp_path, monkeypatch):
    FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert not (tmp_path / "cache" / "memo").exists()
    monkeypatch.setattr(builders, "_build", unused)
    FOLDER.open(options(folder, tmp_path / "cache"), unused)


def test_a_changed_file_is_noticed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    old = FOLDER.open(options(folder, tmp_path / "cache"), print).train
    victim = folder / "train" / "p1.BMP"
    stat = victim.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    save(victim, 77)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and mtime are as before
    new = FOLDER.open(options(folder, tmp_path / "cache"), print).train
    assert new.fingerprint != old.fingerprint and len(sets(tmp_path / "cache")) == 3
    assert (new[1].source == pixels(77)[:, :8]).all()
    assert (old[1].source == pixels(1)[:, :8]).all()  # still readable
    (folder / "train" / "p5.BMP").rename(folder / "train" / "p6.BMP")  # same bytes, same order
    assert FOLDER.open(options(folder, tmp_path / "cache"), print).train.names[-1] == "p6"


def test_a_copied_folder_is_not_prepared_again(folder, tmp_path, monkeypatch):
    FOLDER.open(options(folder, tmp_path / "cache"), print)
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(builders, "_build", unused)
    FOLDER.open(options(tmp_path / "copy", tmp_path / "cache"), print)


def test_large_sets_are_written_in_parts_and_keep_their_order(folder, tmp_path, monkeypatch):
    for i in range(6, 40):
        save(folder / f"train/p{i}.png", i)
    monkeypatch.setattr(builders, "_PART_BYTES", 200)  # a PNG or two
    train = FOLDER.open(options(folder, tmp_path / "cache"), print).train
    parts = builders._index(train._prepared.folder)["parts"]
    assert len(parts) > 10
    assert list(train.names) == sorted(f"p{i}" for i in range(40))
    for i, name in enumerate(train.names):
        assert (train[i].source == pixels(int(name[1:]))[:, :8]).all()


def test_other_layouts_and_incomplete_sets_are_prepared_anew(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    FOLDER.open(options(folder, cache), print)
    for path in sets(cache):
        (path / "index.json").unlink()
    FOLDER.open(options(folder, cache), print)
    assert all((path / "index.json").exists() for path in sets(cache))
    monkeypatch.setattr(builders, "LAYOUT", 2)
    builders._builder_class.cache_clear()
    FOLDER.open(options(folder, cache), print)
    builders._builder_class.cache_clear()
    assert len(sets(cache)) == 4


def test_a_damaged_copy_is_named(folder, tmp_path):
    FOLDER.open(options(folder, tmp_path / "cache"), print)
    for path in (tmp_path / "cache").glob("pairs-*/*.array_record*"):
        data = bytearray(path.read_bytes())
        for i in range(0, len(data), 16):
            data[i] ^= 0x55
        path.write_bytes(data)
    with pytest.raises(DataError, match="damaged: remove it and run again"):
        FOLDER.open(options(folder, tmp_path / "cache"), print).train[0]


def test_the_cache_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.prepared_dir(options("x", "")) == tmp_path / "p2p_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folders.prepared_dir(options("x", "")) == Path.home() / ".cache" / "p2p_jax"


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.prepared_dir: .*cannot be used"):
        FOLDER.open(options(folder, tmp_path / "file" / "cache"), print)


def test_nothing_is_left_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(p.name[:6] for p in (tmp_path / "cache").iterdir()) == [
        "pairs-", "pairs-", "prepar",
    ]  # fmt: skip


# --- splits --------------------------------------------------------------------------------------


def test_examples_are_capped(folder, tmp_path):
    few = options(folder, tmp_path / "cache", max_examples=4, eval_examples=1)
    train, held, _ = FOLDER.open(few, print)
    assert train.names == ("p0", "p1", "p2", "p3") and held.names == ("q0",)
    every = FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert every.train.fingerprint != train.fingerprint


def test_a_missing_evaluation_split_is_held_out_and_told(folder, tmp_path):
    shutil.rmtree(folder / "val")
    train, held, notes = FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert sorted([*train.names, *held.names]) == [f"p{i}" for i in range(6)] and len(held) == 1
    assert "of 6 pairs 1 are held out for evaluation and 5 are trained on" in notes[0]
    assert len(sets(tmp_path / "cache")) == 1
    assert train.fingerprint != held.fingerprint
    for source in (train, held):
        for i, name in enumerate(source.names):
            assert (source[i].source == pixels(int(name[1:]))[:, :8]).all()


def test_an_empty_evaluation_split_holds_out_too(folder, tmp_path):
    _, held, notes = FOLDER.open(options(folder, tmp_path / "cache", eval_split=""), print)
    assert len(held) == 1 and notes[0].startswith("data.eval_split is empty: of 6 pairs")


def test_the_training_split_may_be_evaluated(folder, tmp_path):
    train, held, _ = FOLDER.open(options(folder, tmp_path / "cache", eval_split="train"), print)
    assert train.names == held.names and len(sets(tmp_path / "cache")) == 1


def test_the_held_out_pairs_stay_when_files_are_added():
    names = [f"image{i}" for i in range(300)]
    train, held = folders.seeded_split(names, 0)
    assert sorted(train + held) == list(range(300)) and 15 <= len(held) <= 50
    more = sorted([*names, *(f"another{i}" for i in range(100))])
    _, more_held = folders.seeded_split(more, 0)
    assert {names[i] for i in held} == {more[i] for i in more_held} & set(names)
    assert folders.seeded_split(names, 1)[1] != held


@pytest.mark.parametrize("seed", range(8))
def test_both_sides_of_a_small_split_have_one(seed):
    for count in (2, 3, 5):
        train, held = folders.seeded_split([f"n{i}" for i in range(count)], seed)
        assert train and held
    with pytest.raises(DataError, match="at least 2"):
        folders.seeded_split(["one"], seed)


def test_other_files_are_told_and_hidden_ones_ignored(folder, tmp_path):
    (folder / "train" / "readme.txt").write_text("x")
    (folder / "train" / ".hidden.png").write_text("x")
    (folder / "train" / "below.png").mkdir()
    train, _, notes = FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert len(train) == 6 and len(notes) == 1
    assert "1 files are not images and were left out: readme.txt" in notes[0]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,wanted",
    [
        (lambda p: options("", p / "c"), r"^data.path: '' is empty"),
        (lambda p: options(p / "dat", p / "c"), r"'.*dat' does not exist.*did you mean .*data\?"),
        (lambda p: options(p / "data/train/p0.png", p / "c"), r"is a file.*try .*train"),
        (lambda p: options(p / "data/train", p / "c"), r"found 6 images directly in it; move"),
        (lambda p: options(p / "data", p / "c", train_split="tr"), r"found images in train, val"),
        (
            lambda p: options(p / "data", p / "c", eval_split="text", hold_out=False),
            r"^eval.split: 'text' is no folder of .*data'; found images in train, val",
        ),
        (lambda p: options(p / "data", p / "data/c"), r"^data.prepared_dir: .*inside data.path"),
    ],
)  # fmt: skip
def test_a_wrong_path_is_explained(folder, tmp_path, make, wanted):
    bad = make(tmp_path)
    (problem,) = FOLDER.check(bad)
    with pytest.raises(DataError, match=wanted):
        FOLDER.open(bad, unused)
    assert problem.startswith(("data.", "eval."))
    assert FOLDER.check(options(folder, tmp_path / "c")) == []


def test_unusual_layouts_are_explained(tmp_path):
    save(tmp_path / "two/train/A/a.png", 1)
    save(tmp_path / "two/train/B/a.png", 1)
    (problem,) = FOLDER.check(options(tmp_path / "two", tmp_path / "c"))
    assert "two trees A and B" in problem and "join each pair" in problem
    (tmp_path / "none/train").mkdir(parents=True)
    (tmp_path / "none/train/a.tif").write_text("")
    (problem,) = FOLDER.check(options(tmp_path / "none", tmp_path / "c"))
    assert "holds no image" in problem and "a.tif" in problem
    save(tmp_path / "one/train/a.png", 1)
    (problem,) = FOLDER.check(options(tmp_path / "one", tmp_path / "c"))
    assert "at least 2" in problem
    (tmp_path / "one/val").mkdir()
    (problem,) = FOLDER.check(options(tmp_path / "one", tmp_path / "c"))
    assert problem.startswith("data.eval_split:") and "holds no image" in problem


def test_all_bad_images_are_named_at_once(folder, tmp_path):
    cache = tmp_path / "cache"
    train = folder / "train"
    (train / "p0.png").write_bytes((train / "p0.png").read_bytes()[:-30])
    Image.fromarray(pixels(1)).convert("RGBA").save(train / "p2.png")
    Image.fromarray(pixels(1)[:, :15]).save(train / "p4.png")
    Image.fromarray(pixels(1, 8, 32)).save(train / "p6.png")
    save(train / "p1.png", 1)
    (train / "p9.png").symlink_to(tmp_path / "nowhere")
    save(folder / "val/q2.png", 5)
    (folder / "val/q2.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options(folder, cache), print)
    text = str(caught.value)
    for wanted in (
        "train: p1.BMP and p1.png in", "train[0] ", "p0.png: broken or truncated",
        "p2.png: mode RGBA", "p4.png: width 15 is odd", "mixes image sizes",
        "4 of 16x8 (first train[1] p1.BMP), 1 of 32x8 (first train[7] p6.png)", "val[2] ",
        "q2.png: broken", "p9.png: cannot be read (No such file or directory)",
    ):  # fmt: skip
        assert wanted in text, text
    assert len(caught.value.problems) == 7 and sets(cache) == []
    assert not list(cache.glob("tmp-*"))


def test_twenty_problems_are_shown_and_the_rest_counted(folder, tmp_path):
    for i in range(30):
        (folder / f"train/x{i:02d}.jpg").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "and 10 more"


def test_splits_of_different_size_are_refused(folder, tmp_path):
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    Image.fromarray(pixels(1, 8, 32)).save(folder / "val/q.png")
    with pytest.raises(DataError, match="train has 16x8, val has 32x8"):
        FOLDER.open(options(folder, tmp_path / "cache"), print)


def test_a_file_that_changes_meanwhile_is_refused(folder, tmp_path, monkeypatch):
    write = builders._write

    def meddling(*args):
        save(folder / "train/p2.png", 99)
        return write(*args)

    monkeypatch.setattr(builders, "_write", meddling)
    with pytest.raises(DataError, match=r"p2.png' changed while it was prepared"):
        FOLDER.open(options(folder, tmp_path / "cache"), print)
    assert len(sets(tmp_path / "cache")) == 1  # of 'val', which did not change
    assert not list((tmp_path / "cache").glob("tmp-*"))


# --- several processes ---------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from p2p_jax.data import SOURCES, DataOptions, builders
path, prepared, gate = sys.argv[1:]
if gate:  # stop with everything written and nothing renamed
    def wait(handle):
        while not Path(gate).exists():
            time.sleep(0.01)
    os.fsync = wait
options = DataOptions("folder", path, "AtoB", "train", "val", (8, 8), (8, 8), 0, prepared, 0, 0)
opened = SOURCES["folder"].open(options, lambda line: print("LOG", line, flush=True))
print("OPENED", len(opened.train), opened.train[3].source[3, 3, 0], flush=True)
print("MODULES", *sorted({"tensorflow", "jax"} & set(sys.modules)), flush=True)
"""


def start(folder: Path, cache: Path, gate: Path | str = "", **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), str(cache), str(gate)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "", err
    return out


def written(cache: Path) -> bool:
    return any(cache.glob("tmp-*/*/*/index.json"))


def test_one_of_two_processes_prepares_and_the_other_waits(folder, tmp_path):
    cache, gate = tmp_path / "cache", tmp_path / "gate"
    first = start(folder, cache, gate)
    until(lambda: written(cache))
    second = start(folder, cache)
    assert "waiting for another process" in second.stdout.readline()
    assert sets(cache) == []
    gate.touch()
    outputs = [finish(first), finish(second)]
    assert sum(out.count("LOG prepared 6 images of 'train'") for out in outputs) == 1
    assert sum(out.count("LOG prepared 2 images of 'val'") for out in outputs) == 1
    assert all("OPENED 6 3" in out for out in outputs)
    assert len(sets(cache)) == 2 and not list(cache.glob("tmp-*"))


def test_a_killed_preparation_is_done_again(folder, tmp_path):
    cache = tmp_path / "cache"
    process = start(folder, cache, tmp_path / "never")
    until(lambda: written(cache))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert list(cache.glob("tmp-*")) and sets(cache) == []
    train = FOLDER.open(options(folder, cache), print).train
    assert len(train) == 6 and (train[3].source == pixels(3)[:, :8]).all()
    assert not list(cache.glob("tmp-*")) and len(sets(cache)) == 2


def test_a_fresh_process_stays_quiet_and_needs_no_tensorflow(folder, tmp_path):
    """The stub raises on import; anything but our own lines on the console fails the test."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/tensorflow.py").write_text("raise ImportError('TensorFlow was imported')")
    out = finish(start(folder, tmp_path / "c", PYTHONPATH=f"{tmp_path / 'stub'}{os.pathsep}{ROOT}"))
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["LOG"] * 4 + ["OPENED", "MODULES"]
    assert lines[-1] == "MODULES"


def test_importing_the_package_is_cheap():
    code = "import sys, p2p_jax.data as d; print(sorted({'jax', 'PIL', 'simplejpeg', " \
           "'tensorflow_datasets', 'array_record'} & set(sys.modules)))"  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert out.stdout.strip() == "[]"


# --- real pairs ----------------------------------------------------------------------------------


@pytest.mark.skipif(not FACADES.is_dir(), reason="the facades are not here")
def test_real_facades(tmp_path):
    train, held, notes = FOLDER.open(options(FACADES, tmp_path, direction="BtoA"), print)
    assert (len(train), len(held)) == (400, 50) and train.size == held.size == (256, 256)
    assert notes == ()
    for source, split, i in [(train, "train", 0), (train, "train", 399), (held, "val", 17)]:
        with Image.open(FACADES / split / f"{source.names[i]}.jpg") as image:
            whole = np.asarray(image)
        assert (source[i].target == whole[:, :256]).all()
        assert (source[i].source == whole[:, 256:]).all()
