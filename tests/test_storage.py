"""Files on disk and in a bucket: whole or not at all, and seen as they are."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from p2p_jax import page, peers, pictures, report, sharing, storage
from p2p_jax.process import Failure, Lost
from p2p_jax.words import Problems
from tests import buckets


@pytest.fixture
def bucket(monkeypatch):
    return buckets.make(monkeypatch)


@pytest.fixture(params=["disk", "epath", "bucket"])
def workdir(request, tmp_path, monkeypatch):
    """A folder that is not there yet, of each kind."""
    if request.param == "bucket":
        buckets.make(monkeypatch)
        return buckets.workdir()
    return (tmp_path if request.param == "disk" else epath.Path(tmp_path)) / "run"


# --- files ---------------------------------------------------------------------------------------


def test_files_of_each_kind(workdir):
    path = workdir / "deep" / "x"
    assert storage.found(path) is None and storage.unreachable(path) == ""
    storage.write_atomic(path, b"1")
    storage.write_atomic(path, b"22", durable=False)
    assert storage.found(path) == b"22"
    assert not storage.create(path, b"3") and storage.found(path) == b"22"
    assert storage.create(workdir / "y", b"4") and storage.found(workdir / "y") == b"4"
    assert sorted(p.name for p in workdir.iterdir()) == ["deep", "y"]


def test_what_others_put_is_seen_at_once(bucket):
    workdir = buckets.workdir()
    storage.write_atomic(workdir / "x", b"old")
    assert [p.name for p in workdir.iterdir()] == ["x"]
    bucket.by_another("gs://bucket/run/y", b"new")
    assert not (workdir / "y").exists()  # the library remembers the listing
    assert storage.found(workdir / "y") == b"new"
    storage.forget(workdir)
    assert (workdir / "y").exists()


def test_of_several_one_creates(tmp_path, bucket):
    for path in (tmp_path / "lock", buckets.workdir() / "lock"):
        made = []
        threads = [
            threading.Thread(target=lambda p=path, made=made: made.append(storage.create(p, b"x")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(made) == [False] * 7 + [True]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.absolute(storage.at("gs://b/c"))) == "gs://b/c"
    assert storage.absolute(storage.at("a")) == tmp_path / "a"
    assert storage.at("~") == Path.home() and storage.is_remote(storage.at("s3://b"))
    with pytest.raises(OSError, match="ftp:// is not known; gs:// and s3:// are"):
        storage.at("ftp://b/c")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("Please install gcsfs"), r"needs pip install 'p2p_jax\[gcp\]' \(Please"),
        (RuntimeError("no credentials\nat all"), r"cannot be looked at \(no credentials\)"),
    ],
)
def test_a_bucket_that_cannot_be_reached(bucket, monkeypatch, error, says):
    def fail(*args, **named):
        raise error

    monkeypatch.setattr(bucket, "exists", fail)
    with pytest.raises(AssertionError, match=r"^gs://bucket/run " + says):
        raise AssertionError(storage.unreachable(buckets.workdir()))


def test_what_a_killed_writer_left_is_swept(tmp_path, bucket):
    names = [".run.json.77.tmp", ".a.png.0123abcd.tmp", ".mine.tmp", "b.5.tmp", ".seen.5"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    storage.sweep(tmp_path)
    storage.sweep(tmp_path / "none")
    storage.sweep(buckets.workdir())
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])


def test_below_and_from_others_only_what_is_old_is_swept(tmp_path):
    folder, old = tmp_path / "eval" / "val" / "7" / "fake", time.time() - 60
    folder.mkdir(parents=True)
    left = [folder / ".x.png.0123abcd.tmp", folder / "x.png", tmp_path / f".seen-{'0f' * 16}"]
    new = [folder / ".y.png.0123abcd.tmp", tmp_path / f".seen-{'1e' * 16}"]
    for path in (*left, *new):
        path.write_bytes(b"")
    for path in left:
        os.utime(path, (old, old))
    storage.sweep(tmp_path)
    storage.sweep(tmp_path / "eval", deep=True)
    storage.sweep(tmp_path / "none", deep=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {left[1], *new}


def test_a_writer_that_is_killed_leaves_what_is_swept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *args, **named: None)
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            storage.write_atomic(tmp_path / "run.json", b"x")
    assert len(os.listdir(tmp_path)) == 1
    storage.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_from_other_errors():
    full = OSError(errno.ENOSPC, "x")
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert storage.no_room(OSError(number, "x"))
    wrapped = ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]")
    assert storage.no_room(wrapped)
    for chain in ("__cause__", "__context__"):
        error = RuntimeError("could not save")
        setattr(error, chain, full)
        assert storage.no_room(error)
    assert storage.no_room(ExceptionGroup("both", [ValueError("x"), full]))
    looped = ValueError("x")
    looped.__context__ = RuntimeError("y")
    looped.__context__.__context__ = looped
    for error in (None, OSError(errno.EIO, "x"), OSError("full"), looped, MemoryError()):
        assert not storage.no_room(error)


class Answer(Exception):
    """As libraries for buckets raise what the server says."""

    def __init__(self, code):
        super().__init__(f"HTTP {code}")
        self.code = code


def test_errors_of_the_moment_are_told_from_those_of_what_was_read():
    led = ValueError("cannot restore")
    led.__cause__ = OSError(errno.EMFILE, "Too many open files")
    passing = [
        MemoryError(), ConnectionResetError(), TimeoutError(), OSError(errno.ENOMEM, "x"), led,
        ExceptionGroup("both", [ValueError("x"), OSError(errno.ESTALE, "x")]), Answer(503),
        Answer("429"), ValueError("UNAVAILABLE: try later"),
        ValueError(f"reading failed [os_error_code='{errno.ENOMEM}']"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
    ]  # fmt: skip
    lasting = [
        None, OSError(errno.EIO, "x"), FileNotFoundError(), ValueError("DATA_LOSS: x"), Answer(404),
        json.JSONDecodeError("x", "y", 0), Exception("x"), Answer("none"),
        ValueError(f"reading failed [os_error_code='{errno.EIO}']"),
    ]  # fmt: skip
    assert [error for error in passing if not storage.passing(error)] == []
    assert [error for error in lasting if storage.passing(error)] == []


# --- a run's files -------------------------------------------------------------------------------


def test_all_reports_of_a_run(workdir):
    assert report.read(workdir) == [] and report.last_start(workdir) == {}
    for n in range(2):
        report.write_run(workdir, {"n": n})
        log = report.MetricsLog(workdir, 1 if n else -1)
        for step in (1, 2) if n == 0 else (2, 3):
            log.write(step, 4 * step, "train", {"a": step + 10 * n})
        assert log.sync()
        log.close()
    assert report.last_start(workdir) == {"n": 1}
    assert [row["a"] for row in report.read(workdir)] == [1, 12, 13]
    report.write_json(workdir / "config.json", {"a": float("nan")})
    assert json.loads((workdir / "config.json").read_text()) == {"a": None}
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    report.save_png(workdir / "samples" / "3.png", image)
    for name in ("a.png", "a.tiff", "a.npy"):
        pictures.save(workdir / "eval" / name, image)
    assert np.array_equal(np.load(io.BytesIO((workdir / "eval" / "a.npy").read_bytes())), image)
    page.write_eval_page(
        workdir / "eval", title="t", metrics={}, baseline={}, baseline_name="b", rows=[]
    )
    assert "<title>t</title>" in (workdir / "eval" / "index.html").read_text()
    found = {p.name for folder in (".", "samples", "eval") for p in (workdir / folder).iterdir()}
    assert found == {
        *("run.json", "metrics.jsonl", "config.json", "samples", "eval"),
        *("3.png", "a.png", "a.tiff", "a.npy", "index.html"),
    }
    (workdir / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        report.write_run(workdir, {})


# --- metrics in a bucket -------------------------------------------------------------------------


def _steps(data):
    return [json.loads(line)["step"] for line in data.splitlines()]


def test_lines_are_put_at_syncs_and_now_and_then(bucket, monkeypatch):
    log = report.MetricsLog(buckets.workdir(), -1)
    for step in (1, 2):
        log.write(step, step, "train", {})
    assert [_steps(data) for _, data in bucket.puts] == [[]]
    assert log.sync() and log.sync()  # the second has nothing to do
    assert [_steps(data) for _, data in bucket.puts[1:]] == [[1, 2]]
    monkeypatch.setattr(report.MetricsLog, "PUT_EVERY", 0.0)
    log.write(3, 3, "train", {})
    log._file._under_way.result()
    assert [_steps(data) for _, data in bucket.puts[2:]] == [[1, 2, 3]]
    monkeypatch.setattr(report.MetricsLog, "PUT_EVERY", 1e9)
    log.write(4, 4, "train", {})
    log.close()
    assert _steps(bucket.puts[-1][1]) == [1, 2, 3, 4]
    assert [row["step"] for row in report.read(buckets.workdir())] == [1, 2, 3, 4]


def test_a_put_that_fails_meanwhile_is_made_up_for(bucket, monkeypatch):
    monkeypatch.setattr(report.MetricsLog, "PUT_EVERY", 0.0)
    log = report.MetricsLog(buckets.workdir(), -1)
    bucket.broken = ConnectionError("away")
    for step in (1, 2):
        log.write(step, step, "train", {})
        assert log._file._under_way.exception() is bucket.broken
    bucket.broken = None
    assert log.sync()
    log.close()
    assert [row["step"] for row in report.read(buckets.workdir())] == [1, 2]


@pytest.mark.parametrize("tolerate", [False, True])
def test_who_has_lost_the_workdir_leaves_its_lines_alone(bucket, monkeypatch, tolerate):
    holder, theirs = [], b'{"step": 3, "split": "train"}\n'

    def check():
        if holder:
            raise Lost("taken over")

    log = report.MetricsLog(buckets.workdir(), -1, tolerate, check=check)
    log.write(1, 1, "train", {})
    assert log.sync()
    bucket.by_another("gs://bucket/run/metrics.jsonl", theirs)
    holder.append("another")
    monkeypatch.setattr(report.MetricsLog, "PUT_EVERY", 0.0)
    log.write(2, 2, "train", {})  # in the background
    with pytest.raises(Lost):
        log.sync()
    with pytest.raises(Lost):
        log.close()
    with pytest.raises(Lost):  # nor begins it again
        report.MetricsLog(buckets.workdir(), 1, tolerate, check=check)
    assert storage.found(buckets.workdir() / "metrics.jsonl") == theirs


@pytest.mark.parametrize("tolerate", [False, True])
def test_a_bucket_that_fails_at_a_sync(bucket, tolerate):
    told = []
    log = report.MetricsLog(buckets.workdir(), -1, tolerate, told.append)
    log.write(1, 1, "train", {})
    bucket.broken = ConnectionError("quota of the project")
    if not tolerate:
        with pytest.raises(Failure, match=r"gs://.*jsonl cannot grow: quota of the .* run again"):
            log.sync()
    else:
        assert not log.sync() and not log.sync()
        (text,) = told
        assert "quota of the project; its lines wait in memory" in text
    bucket.broken = None
    log.write(2, 2, "train", {})
    assert log.sync()
    log.close()
    assert [row["step"] for row in report.read(buckets.workdir())] == [1, 2]


# --- whether all see the same --------------------------------------------------------------------


class Together:
    """Threads that are processes to what asks `peers`."""

    def __init__(self, monkeypatch, count):
        self.count, self.own = count, threading.local()
        self._values, self._barrier = [None] * count, threading.Barrier(count, timeout=20)
        monkeypatch.setattr(peers, "first", lambda: self.own.index == 0)
        monkeypatch.setattr(peers, "gather", self._gather)

    def _gather(self, value):
        self._values[self.own.index] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def run(self, act):
        """What `act(index)` raised in each."""
        raised = [None] * self.count

        def one(index):
            self.own.index = index
            try:
                act(index)
            except Exception as error:
                raised[index] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def test_one_process_writes_nothing(tmp_path):
    sharing.seen_by_all(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_all_see_the_same(workdir, monkeypatch):
    raised = Together(monkeypatch, 3).run(lambda index: sharing.seen_by_all(workdir))
    assert raised == [None] * 3
    if storage.is_remote(workdir):  # where an empty folder is none
        assert not workdir.exists()
    else:
        assert os.listdir(workdir) == []


def test_who_sees_another_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "TIMEOUT", 0.2)
    folders = [tmp_path / name for name in ("a", "b", "a", "a/.seen")]
    raised = Together(monkeypatch, 4).run(lambda index: sharing.seen_by_all(folders[index]))
    assert len({str(error) for error in raised}) == 1
    assert isinstance(raised[0], Problems)
    one, three = raised[0].problems
    assert one.startswith("--workdir: process 1 on ") and f"{tmp_path}/b has no such file" in one
    assert one.endswith("use a folder that all machines share, at the same path, or "
                        "gs://BUCKET/FOLDER")  # fmt: skip
    assert three.startswith("--workdir: process 3 on ")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == []


def test_what_comes_late_is_waited_for(tmp_path, monkeypatch):
    real, asked = storage.found, []

    def late(path):
        asked.append(path)
        return real(path) if len(asked) > 3 else None

    monkeypatch.setattr(storage, "found", late)
    assert Together(monkeypatch, 2).run(lambda i: sharing.seen_by_all(tmp_path)) == [None] * 2
    assert len(asked) == 4


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("a file")
    raised = Together(monkeypatch, 2).run(lambda i: sharing.seen_by_all(tmp_path / "run"))
    for error in raised:
        assert isinstance(error, Problems)
        assert "--workdir: process 0 cannot write: " in str(error) and "run" in str(error)
