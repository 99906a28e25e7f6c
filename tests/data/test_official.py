"""The sets of pix2pix's authors: downloaded or at hand, whole or not at all."""

from __future__ import annotations

import gzip
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from p2p_jax.data import SOURCES, DataError, builders, official
from p2p_jax.data.official import builder_class
from tests.data.making import contents, encoded, halves, noise, options, quiet, unused

ROOT = Path(__file__).resolve().parents[2]
TFDS = SOURCES["tfds"]
COUNTS = {"train": 5, "val": 2, "test": 1}


def archive(counts=COUNTS, extra=()):
    """Bytes of a facades.tar.gz."""
    out = io.BytesIO()
    files = [
        (f"facades/{split}/{i}.png", encoded(noise(i + 10 * k)))
        for k, (split, count) in enumerate(counts.items())
        for i in range(count)
    ]
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in [*files, *extra]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.asked, self.cut = archive(), [], None
        self.url = f"http://127.0.0.1:{self.server_port}/sets/"

    def handle_error(self, request, client_address):
        pass  # connections that the test cuts


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.data is None or self.path != "/sets/facades.tar.gz":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data[: self.server.cut])


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("p2p_jax.data.download.PAUSES", ())
    monkeypatch.setattr(
        "p2p_jax.data.download.download.__kwdefaults__", dict(pauses=(), timeout=5.0)
    )
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def where(server, tmp_path, path="", **changes):
    url = server.url if server else "http://127.0.0.1:9/none"
    return options("tfds", path, tmp_path / "c", name="pix2pix/facades", url=url, **changes)


def right(splits, train=5, held=2, shift=10):
    assert (len(splits.train), len(splits.eval)) == (train, held)
    for pairs, first in ((splits.train, 0), (splits.eval, shift)):
        for i, name in enumerate(pairs.names):
            whole = noise(int(name) + first)
            assert (pairs[i].source == whole[:, :8]).all()
            assert (pairs[i].target == whole[:, 8:]).all()


def left(tmp_path):
    """What lies in the cache besides the lock and the memo."""
    return sorted(
        str(p.relative_to(tmp_path / "c")) for p in (tmp_path / "c").rglob("*")
        if p.is_file() and p.name != "prepare.lock" and "memo" not in p.parts
    )  # fmt: skip


def test_it_is_a_builder_of_tfds_with_a_config_a_set():
    import tensorflow_datasets as tfds

    made = builder_class()
    assert issubclass(made, tfds.core.GeneratorBasedBuilder) and made is builder_class()
    assert [c.name for c in made.BUILDER_CONFIGS] == [
        "facades", "cityscapes", "maps", "edges2shoes", "edges2handbags", "night2day",
    ]  # fmt: skip
    assert str(made.VERSION) == official.VERSION


def test_a_download_is_prepared_removed_and_not_needed_again(server, tmp_path):
    import tensorflow_datasets as tfds

    lines = []
    splits = TFDS.open(where(server, tmp_path), lines.append)
    right(splits)
    assert server.asked == ["/sets/facades.tar.gz"] and splits.notes == ()
    assert "prepared pix2pix/facades: 5 train, 2 val, 1 test" in lines
    assert not list((tmp_path / "c").rglob("*.tar.gz*"))
    begin = time.monotonic()
    again = TFDS.open(where(None, tmp_path), unused)
    assert time.monotonic() - begin < 5 and again.train.fingerprint == splits.train.fingerprint
    right(TFDS.open(where(None, tmp_path, eval_split="test"), quiet), 5, 1, 20)
    (folder,) = (tmp_path / "c").glob("official-*/pix2pix/facades/*")
    builder = tfds.builder_from_directory(folder)
    assert builder.info.full_name == "pix2pix/facades/2.0.0"
    records = builder.as_data_source("train")
    assert [bytes(r["image"]) for r in records] == [encoded(noise(i)) for i in range(5)]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("bad", ["404", "page", "cut", "truncated", "hostile", "empty"])
def test_a_bad_download_is_told_and_a_later_run_succeeds(server, tmp_path, bad):
    good = server.data
    if bad == "404":
        server.data = None
    elif bad == "page":
        server.data = b"<html>please log in</html>"
    elif bad == "cut":
        server.cut = len(good) // 2
    elif bad == "truncated":
        server.data = good[: len(good) // 2]
    elif bad == "hostile":
        server.data = archive(extra=[("facades/train/../../../evil.png", encoded(noise(0)))])
    else:
        server.data = archive({}, [("facades/readme.txt", b"x")])
    with pytest.raises(DataError):
        TFDS.open(where(server, tmp_path), quiet)
    assert not [name for name in left(tmp_path) if ".part" not in name], left(tmp_path)
    assert not list((tmp_path / "c").glob("official-*"))
    assert not list(tmp_path.rglob("evil*"))
    server.data, server.cut = good, None
    right(TFDS.open(where(server, tmp_path), quiet))
    assert not list((tmp_path / "c").rglob("*.tar.gz*"))


def test_a_damaged_set_is_downloaded_anew(server, tmp_path):
    TFDS.open(where(server, tmp_path), quiet)
    (index,) = (tmp_path / "c").rglob("index.json")
    index.write_bytes(index.read_bytes()[:-5])
    right(TFDS.open(where(server, tmp_path), quiet))
    (known,) = (tmp_path / "c").glob("official/*.json")
    known.write_text("{")
    right(TFDS.open(where(server, tmp_path), quiet))
    assert len(server.asked) == 3 and len(list((tmp_path / "c").glob("official-*"))) == 1


def test_of_two_at_once_one_downloads(server, tmp_path, monkeypatch):
    opened, lines, threads = [], [], []
    download = official.download

    def open_it():
        opened.append(TFDS.open(where(server, tmp_path), lines.append))

    def meanwhile(*args):
        """The other one comes while the first one downloads."""
        if not threads:
            threads.append(threading.Thread(target=open_it))
            threads[0].start()
            end = time.monotonic() + 20
            while not any("waiting for another" in line for line in lines):
                assert time.monotonic() < end
                time.sleep(0.01)
        return download(*args)

    monkeypatch.setattr(official, "download", meanwhile)
    open_it()
    threads[0].join()
    assert len(opened) == 2 and len(server.asked) == 1
    right(opened[0])
    right(opened[1])


def test_what_a_killed_process_left_is_removed(server, tmp_path):
    """Killed after it was prepared and before the archive was removed."""
    TFDS.open(where(server, tmp_path), quiet)
    (tmp_path / "c/official/facades.tar.gz").write_bytes(b"x")
    TFDS.open(where(None, tmp_path), unused)
    assert not (tmp_path / "c/official/facades.tar.gz").exists()


# --- an archive, or what was unpacked, at hand ---------------------------------------------------


def test_an_archive_at_hand_is_kept_and_prepared_once(tmp_path, monkeypatch):
    path = tmp_path / "my facades.tgz"
    path.write_bytes(archive(extra=[("facades/train/readme.txt", b"x"), ("facades/0.png", b"y")]))
    before = path.read_bytes()
    chosen = where(None, tmp_path, path)
    assert TFDS.check(chosen) == []
    splits = TFDS.open(chosen, quiet)
    right(splits)
    assert path.read_bytes() == before
    assert splits.notes == (
        "files of the archive that were not used: facades/train/readme.txt, facades/0.png.",
    )
    monkeypatch.setattr(official, "write", unused)
    again = TFDS.open(chosen, quiet)
    right(again)
    assert again.notes == splits.notes  # also where it is not read any more


def test_an_archive_with_other_splits(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive({"train": 3, "day": 5, "night": 2}))
    for train, held, counts in (("day", "night", (5, 2)), ("train", "night", (3, 2))):
        splits = TFDS.open(where(None, tmp_path, path, train_split=train, eval_split=held), quiet)
        assert (len(splits.train), len(splits.eval)) == counts
    with pytest.raises(DataError) as caught:
        TFDS.open(where(None, tmp_path, path, train_split="x", hold_out=False), quiet)
    assert "there is no split 'x'; pix2pix/facades has train" in caught.value.problems[0]
    assert caught.value.problems[1].startswith("eval.split: there is no split 'val'")


def test_an_unpacked_folder(tmp_path):
    halves(tmp_path / "facades")
    before = contents(tmp_path / "facades")
    splits = TFDS.open(where(None, tmp_path, tmp_path / "facades"), quiet)
    assert (len(splits.train), len(splits.eval)) == (6, 2)
    assert contents(tmp_path / "facades") == before


def test_a_corrupt_image_is_named_by_its_place_in_the_archive(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(
        archive(extra=[("facades/train/bad.jpg", b"\xff\xd8\xff"), ("facades/val/9.png", b"")])
    )
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            TFDS.open(where(None, tmp_path, path), quiet)
        assert [p.split(": broken")[0] for p in caught.value.problems] == [
            "train[5] facades/train/bad.jpg", "val[2] facades/val/9.png",
        ]  # fmt: skip
    splits = TFDS.open(where(None, tmp_path, path, on_error="substitute"), quiet)
    assert len(splits.train) == 6 and len(splits.eval) == 2 and len(splits.notes) == 2


@pytest.mark.parametrize(
    "data,wanted",
    [
        (lambda: archive()[:-200], "is truncated or broken"),
        (lambda: b"x" * 100, "is no archive"),
        (lambda: gzip.compress(b""), "archive|truncated|no image"),
        (lambda: archive(extra=[("/etc/x.png", b"x")]), "leads out of the archive"),
        (lambda: archive(extra=[("facades/train/0.jpg", b"x")]), "comes twice"),
    ],
)
def test_a_bad_archive_leaves_nothing_prepared_and_is_kept(tmp_path, data, wanted):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data())
    with pytest.raises(DataError, match=wanted):
        TFDS.open(where(None, tmp_path, path), quiet)
    assert path.exists() and left(tmp_path) == [] and not list((tmp_path / "c").glob("official-*"))


def test_what_is_wrong_with_the_options_is_told(tmp_path):
    for changes, wanted in (
        (dict(name="pix2pix/facade"), r"data.name: 'pix2pix/facade' is not one of pix2pix/facades"),
        (dict(name="pix2pix/maps", path=str(tmp_path / "none")), r"none' does not exist"),
        (dict(name="pix2pix/maps", prepared_dir="gs://b/c", path=__file__), r"data.prepared_dir"),
    ):
        bad = options(
            "tfds", changes.pop("path", ""), changes.pop("prepared_dir", tmp_path), **changes
        )
        (problem,) = TFDS.check(bad)
        with pytest.raises(AssertionError, match=wanted):
            raise AssertionError(problem)
        with pytest.raises(DataError, match=wanted):
            TFDS.open(bad, unused)


# --- killed --------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
from p2p_jax.data import SOURCES, DataOptions, builders, official
path, prepared = sys.argv[1:]
def stop(*args):
    print("WRITTEN", flush=True)
    time.sleep(1000)
setattr(builders, "_sync", stop)
options = DataOptions("tfds", path, "pix2pix/facades", prepared_dir=prepared)
SOURCES["tfds"].open(options, print)
"""


def test_a_killed_preparation_is_done_again(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive())
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(path), str(tmp_path / "c")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = ""
    while "WRITTEN" not in line:
        line = process.stdout.readline()
        assert line
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not list((tmp_path / "c").rglob("index.json"))
    lines = []
    right(TFDS.open(where(None, tmp_path, path), lines.append))
    assert any("preparing" in line for line in lines)
    assert not list((tmp_path / "c").rglob("*incomplete*"))


def test_a_disk_error_is_told_as_such(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive())

    def full(self, *args):
        raise RuntimeError("write() failed: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            "tensorflow_datasets.core.sequential_writer.SequentialWriter.add_examples", full
        )
        with pytest.raises(DataError, match=r"data.prepared_dir: .*No space left"):
            TFDS.open(where(None, tmp_path, path), quiet)
    assert left(tmp_path) == []
    right(TFDS.open(where(None, tmp_path, path), quiet))
    assert builders.prepared_dir("x") == Path("x")
