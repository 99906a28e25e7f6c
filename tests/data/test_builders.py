"""Preparing: once, whole or not at all, noticed to be out of date, damage noticed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from p2p_jax.data import SOURCES, DataError, builders
from p2p_jax.data.builders import Blob, Recipe, opened, ordered_map, prepare
from p2p_jax.data.listing import Item
from p2p_jax.data.origins import Files
from tests.data.making import contents, halves, noise, options, quiet, save, sets, unused

ROOT = Path(__file__).resolve().parents[2]
FOLDER = SOURCES["folder"]


@pytest.fixture
def folder(tmp_path):
    halves(tmp_path / "data")
    return tmp_path / "data"


def origin(root, split="train"):
    files = sorted((root / split).iterdir())
    return Files("some", str(root), {split: [Item(f.stem, (f,)) for f in files]})


# --- once ----------------------------------------------------------------------------------------


def test_the_files_are_stored_as_they_are_in_their_order(folder, tmp_path):
    held = prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    files = sorted((folder / "train").iterdir())
    assert [held.blobs("train", i) for i in range(6)] == [(f.read_bytes(), b"") for f in files]
    assert [row.name for row in held.rows["train"]] == [f.stem for f in files]
    assert [row.files for row in held.rows["train"]] == [(str(f),) for f in files]
    assert [row.digests[0] for row in held.rows["train"]] == [
        builders.sha(f.read_bytes()) for f in files
    ]


def test_tfds_reads_what_was_prepared(folder, tmp_path):
    import tensorflow_datasets as tfds

    prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    (made,) = sets(tmp_path / "c")
    records = tfds.builder_from_directory(made).as_data_source("train")
    assert [r["name"] for r in records] == [f"p{i}".encode() for i in range(6)]


def test_nothing_is_done_twice(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))  # the files are new; trust them
    first = FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    before = contents(tmp_path / "c")
    monkeypatch.setattr(builders, "ordered_map", unused)  # what prepares
    monkeypatch.setattr("p2p_jax.data.origins.ordered_map", unused)  # what hashes
    second = FOLDER.open(options("folder", folder, tmp_path / "c"), unused)
    assert second.train.fingerprint == first.train.fingerprint
    assert contents(tmp_path / "c") == before


def test_fresh_files_are_hashed_again_but_not_prepared_again(folder, tmp_path, monkeypatch):
    FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert not (tmp_path / "c/memo").exists()
    monkeypatch.setattr(builders, "_build", unused)
    FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)


def test_a_copied_folder_is_not_prepared_again(folder, tmp_path, monkeypatch):
    FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(builders, "_build", unused)
    FOLDER.open(options("folder", tmp_path / "copy", tmp_path / "c"), quiet)


def test_a_cache_of_others_is_read_without_writing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    shutil.rmtree(tmp_path / "c/memo")

    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builders, "_put", refuse)
    assert len(FOLDER.open(options("folder", folder, tmp_path / "c"), quiet).train) == 6


# --- out of date ---------------------------------------------------------------------------------


def test_a_changed_file_is_noticed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    where = options("folder", folder, tmp_path / "c")
    old = FOLDER.open(where, quiet).train
    victim, before = folder / "train/p1.BMP", noise(1)
    stat = victim.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    save(victim, noise(77))
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and mtime are as before
    new = FOLDER.open(where, quiet).train
    assert new.fingerprint != old.fingerprint and len(sets(tmp_path / "c")) == 3
    assert (new[1].source == noise(77)[:, :8]).all()
    assert (old[1].source == before[:, :8]).all()  # still readable
    (folder / "train/p5.npy").rename(folder / "train/p6.npy")  # same bytes, same order
    assert FOLDER.open(where, quiet).train.names[-1] == "p6"


def test_other_names_for_the_same_files_are_noticed(folder, tmp_path, monkeypatch):
    """As in a manifest whose column `name` is edited: no file changes."""
    monkeypatch.setattr(builders, "_SETTLED_NS", -(10**15))
    files = sorted((folder / "train").iterdir())
    for names in ("abcdef", "ghijkl", "abcdef"):
        items = [Item(name, (file,)) for name, file in zip(names, files, strict=True)]
        held = prepare(Files("some", "here", {"train": items}), Recipe(), tmp_path / "c", quiet)
        assert "".join(row.name for row in held.rows["train"]) == names


def test_a_change_while_waiting_for_the_lock_is_noticed(folder, tmp_path, monkeypatch):
    """Else a set would be named after content that it does not hold."""
    locked = builders.locked

    def late(cache, log):
        save(folder / "train/p1.BMP", noise(99))
        return locked(cache, log)

    monkeypatch.setattr(builders, "locked", late)
    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    assert sets(tmp_path / "c") == [] and not list((tmp_path / "c").glob("unfinished-*"))


@pytest.mark.parametrize("when", ["content", "blobs"])
def test_a_file_that_changes_meanwhile_is_refused(folder, tmp_path, monkeypatch, when):
    inner = getattr(Files, when)

    def meddling(self):
        time.sleep(0.02)
        save(folder / "train/p2.npy", noise(99))
        return inner(self)

    monkeypatch.setattr(Files, when, meddling)
    with pytest.raises(DataError, match="changed while it was"):
        prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    assert sets(tmp_path / "c") == [] and not list((tmp_path / "c").glob("unfinished-*"))


def test_what_cannot_be_read_now_is_not_remembered(folder, tmp_path, monkeypatch):
    """A network folder that fails once must not leave a set in which files are 'unreadable'."""
    real, failing = Path.read_bytes, {"p3"}

    def read(path):
        if path.stem in failing and path.parent.name == "train":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(DataError, match=r"train/p3.png' cannot be read now .*run again"):
        prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    assert sets(tmp_path / "c") == []
    failing.clear()
    held = prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    assert not any(row.problem for row in held.rows["train"])


def test_other_recipes_and_layouts_make_other_sets(folder, tmp_path, monkeypatch):
    content = set()
    for key in ("", "one", "two"):
        content.add(prepare(origin(folder), Recipe(key), tmp_path / "c", quiet).content)
    assert len(content) == len(sets(tmp_path / "c")) == 3
    monkeypatch.setattr(builders, "LAYOUT", builders.LAYOUT + 1)
    content.add(prepare(origin(folder), Recipe(), tmp_path / "c", quiet).content)
    assert len(content) == 3 and len(sets(tmp_path / "c")) == 4


# --- damage --------------------------------------------------------------------------------------


def flipped(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["index.json", "dataset_info.json", "features.json"])
def test_a_set_whose_description_is_damaged_is_prepared_anew(folder, tmp_path, name):
    draw = random.Random(name)
    want = prepare(origin(folder), Recipe(), tmp_path / "c", quiet)
    for attempt in range(4):
        path = sets(tmp_path / "c")[0] / name
        if attempt == 0:
            path.unlink()
        elif attempt == 1:
            path.write_bytes(path.read_bytes()[:-7])
        else:
            flipped(path, draw.randrange(8 * path.stat().st_size))
        lines = []
        got = prepare(origin(folder), Recipe(), tmp_path / "c", lines.append)
        assert any("preparing" in line for line in lines)
        assert got.rows == want.rows and got.content == want.content
        assert got.blobs("train", 5) == want.blobs("train", 5)


def test_no_damage_to_the_records_gives_other_pixels(folder, tmp_path):
    """Flipped bits and cut ends: the same pixels, an error that says where, or prepared anew."""
    where = options("folder", folder, tmp_path / "c")
    pairs = FOLDER.open(where, quiet).train
    want = [pairs[i] for i in range(6)]
    (made,) = [path for path in sets(tmp_path / "c") if list(path.glob("*-train.*"))]
    (records,) = made.glob("*.array_record*")
    good = records.read_bytes()
    bits = [8 * at + bit for at, byte in enumerate(good) if byte for bit in range(8)]
    draw, seen = random.Random(0), {"same": 0, "error": 0, "anew": 0}
    damages = [draw.choice(bits) for _ in range(180)] + [
        -draw.randrange(1, len(good)) for _ in "1" * 20
    ]
    for damage in damages:
        if damage < 0:
            records.write_bytes(good[:damage])
        else:
            flipped(records, damage)
        lines = []
        pairs = FOLDER.open(where, lines.append).train
        seen["anew"] += any("preparing" in line for line in lines)
        for i in range(6):
            try:
                pair = pairs[i]
            except DataError as error:
                text = str(error)
                assert text.startswith(f"train[{i}] p{i}: the prepared copy {made} is damaged")
                assert "remove it and run again" in text
                seen["error"] += 1
            else:
                assert all((a == b).all() for a, b in zip(pair, want[i], strict=True))
                seen["same"] += 1
        records.write_bytes(good)
    assert seen["same"] > 600 and seen["error"] > 60 and seen["anew"] >= 20, seen


def test_swapped_records_are_noticed(tmp_path):
    """Whole and sound, but those of another set."""
    for name in ("one", "two"):
        halves(tmp_path / name)
    for path in (tmp_path / "two/train").iterdir():
        path.rename(path.with_name("q" + path.name))
    one, two = (
        prepare(origin(tmp_path / name), Recipe(), tmp_path / "c", quiet) for name in ("one", "two")
    )
    with pytest.raises(OSError, match="is damaged: remove it"):
        builders.Prepared(one.folder, one.content, one.rows, two.records).blobs("train", 2)


# --- the cache -----------------------------------------------------------------------------------


def test_the_cache_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert builders.prepared_dir("") == tmp_path / "p2p_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert builders.prepared_dir("") == Path.home() / ".cache" / "p2p_jax"


def test_a_cache_that_cannot_be_made_is_named_once(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        FOLDER.open(options("folder", folder, tmp_path / "file" / "c"), quiet)
    assert len(caught.value.problems) == 1  # though there are two splits
    assert re.match(r"data.prepared_dir: .*cannot be used", str(caught.value))


def test_nothing_is_left_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    FOLDER.open(options("folder", folder, tmp_path / "c"), quiet)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(p.name[:6] for p in (tmp_path / "c").iterdir()) == ["pairs-", "pairs-", "prepar"]


@pytest.mark.parametrize("split", ["all", "a-b", "Nacht & Tag", "2024", "a/b", "train"])
def test_splits_may_have_any_name(folder, tmp_path, split):
    files = [Item(f.stem, (f,)) for f in sorted((folder / "train").iterdir())]
    held = prepare(Files("some", "here", {split: files}), Recipe(), tmp_path / "c", quiet)
    assert held.blobs(split, 2)[0] == files[2].files[0].read_bytes()
    assert opened(held.folder).rows == held.rows


def test_several_splits_lie_in_one_set_in_any_order(tmp_path):
    class Mixed:
        what = where = "mixed"

        def stamp(self):
            return "", 0

        def content(self):
            return "mixed"

        def blobs(self):
            for i in range(600):
                split = ("train", "val")[i % 3 == 0]
                yield Blob(split, f"{i}", ("there",), (noise(i, 1, 2).tobytes(),))

    store = Recipe("npy", npy)
    held = prepare(Mixed(), store, tmp_path / "c", quiet)
    assert {split: len(rows) for split, rows in held.rows.items()} == {"val": 200, "train": 400}
    for split, rows in held.rows.items():
        for i, row in enumerate(rows):
            assert held.blobs(split, i)[0].endswith(noise(int(row.name), 1, 2).tobytes())


def npy(data):
    import io

    out = io.BytesIO()
    np.save(out, np.frombuffer(data[0], np.uint8).reshape(1, 2, 3))
    return (out.getvalue(),)


def test_items_are_taken_only_a_little_ahead():
    taken = []

    def items():
        for i in range(10_000):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: i * i, items())
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) < 100
    results.close()


# --- several processes ---------------------------------------------------------------------------

SCRIPT = """
import resource, sys, time
from pathlib import Path
from p2p_jax.data import SOURCES, DataOptions, builders
path, prepared, gate, limit = sys.argv[1:]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if gate:  # stop with everything written and nothing renamed
    def wait(folder):
        while not Path(gate).exists():
            time.sleep(0.01)
    builders._sync = wait
options = DataOptions("folder", path, prepared_dir=prepared)
try:
    opened = SOURCES["folder"].open(options, lambda line: print("LOG", line, flush=True))
except builders.DataError as error:
    print("ERROR", error)
    raise SystemExit
print("OPENED", len(opened.train), opened.train[3].source.sum(), flush=True)
print("MODULES", *sorted({"tensorflow", "jax"} & set(sys.modules)), flush=True)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start(folder, cache, gate="", limit=0, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, (folder, cache, gate, limit))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def finish(process) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    return out


def written(cache) -> bool:
    return any(cache.glob("unfinished-*/set/features.json"))


def test_one_of_two_processes_prepares_and_the_other_waits(folder, tmp_path):
    cache, gate = tmp_path / "c", tmp_path / "gate"
    first = start(folder, cache, gate)
    until(lambda: written(cache))
    second = start(folder, cache)
    line = ""
    while "waiting for another process" not in line:
        line = second.stdout.readline()
        assert line and "preparing" not in line
    assert sets(cache) == []
    gate.touch()
    outputs = [finish(first), finish(second)]
    for split, count in (("train", 6), ("val", 2)):
        told = f"LOG prepared {count} examples of {count} pairs of '{split}'"
        assert sum(out.count(told) for out in outputs) == 1
    total = noise(3)[:, :8].sum()
    assert all(f"OPENED 6 {total}" in out for out in outputs)
    assert len(sets(cache)) == 2 and not list(cache.glob("unfinished-*"))


def test_a_killed_preparation_is_done_again(folder, tmp_path):
    cache = tmp_path / "c"
    process = start(folder, cache, tmp_path / "never")
    until(lambda: written(cache))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert list(cache.glob("unfinished-*")) and sets(cache) == []
    train = FOLDER.open(options("folder", folder, cache), quiet).train
    assert len(train) == 6 and (train[3].source == noise(3)[:, :8]).all()
    assert not list(cache.glob("unfinished-*")) and len(sets(cache)) == 2


def test_what_is_not_ours_in_the_cache_is_left_alone(folder, tmp_path):
    """A user may choose a folder in which other things lie."""
    cache = tmp_path / "c"
    for name in ("tmp-thesis/a.txt", "pairs-of-shoes/b.txt", "prepare.lock", "train/c.png"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("mine")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    FOLDER.open(options("folder", folder, cache), quiet)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_fresh_process_stays_quiet_and_needs_no_tensorflow(folder, tmp_path):
    """The stub raises on import; anything but our own lines on the console fails the test."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/tensorflow.py").write_text("raise ImportError('TensorFlow was imported')")
    out = finish(start(folder, tmp_path / "c", PYTHONPATH=f"{tmp_path / 'stub'}{os.pathsep}{ROOT}"))
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["LOG"] * 6 + ["OPENED", "MODULES", "PEAK"]
    assert lines[-2] == "MODULES"


def test_a_full_disk_leaves_nothing_behind(folder, tmp_path):
    for i in range(40):  # random bytes, which do not shrink
        save(folder / f"train/large{i}.npy", noise(i, 32, 64))
    out = finish(start(folder, tmp_path / "c", limit=150_000))
    assert "ERROR data.prepared_dir: " in out and "room for a copy" in out
    assert not list((tmp_path / "c").glob("unfinished-*"))
    assert len(FOLDER.open(options("folder", folder, tmp_path / "c"), quiet).train) == 46


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path):
    """400 and 1600 pairs of 24 kB: what is held grows by what is known of each pair alone."""
    peaks = []
    for count in (400, 1600):
        root = tmp_path / str(count)
        for i in range(count):
            save(root / f"train/p{i}.npy", noise(i, 64, 128))
        halves(root, 0, 2)
        peaks.append(int(finish(start(root, tmp_path / f"c{count}")).split("PEAK")[1]))
    assert peaks[1] - peaks[0] < 12_000, peaks  # kB, of the 28,800 that there are more


@pytest.mark.slow
def test_progress_is_told_of(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_LOG_SECONDS", 0.02)
    lines = []
    slow = Recipe("slow", slowly)
    prepare(origin(folder), slow, tmp_path / "c", lines.append)
    assert any(re.fullmatch(r"prepared \d examples", line) for line in lines)
    assert re.fullmatch(r"prepared 6 examples of some in \d+\.\d s", lines[-1])


def slowly(data):
    time.sleep(0.05)
    return data


def test_importing_the_package_is_cheap():
    heavy = {"jax", "PIL", "simplejpeg", "cv2", "tifffile", "tensorflow_datasets", "array_record"}
    code = f"import sys, p2p_jax.data; print(sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert out.stdout.strip() == "[]"


def test_pairs_are_read_from_many_threads_at_once(folder, tmp_path):
    train = FOLDER.open(options("folder", folder, tmp_path / "c"), quiet).train
    with ThreadPoolExecutor(8) as pool:
        for i, pair in zip(
            range(6), pool.map(train.__getitem__, list(range(6)) * 50), strict=False
        ):
            assert (pair.source == noise(i % 6)[:, :8]).all()
