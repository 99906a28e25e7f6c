"""The reporting layer: nothing torn, nothing twice, nothing that a name could break."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pty
import re
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from p2p_jax import console as consoles
from p2p_jax import process, report

ROWS = [("config", "[bold]odd[/bold] :smile:"), ("workdir", "a\udcff\x1b[31m")]


def _lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def _log(workdir, steps, restored=-1):
    log = report.MetricsLog(workdir, restored)
    for step in steps:
        log.write(step, 4 * step, "train", {"loss/disc": 0.5 * step})
    log.close()


# Metrics.


def test_a_line_holds_step_images_split_and_scalars(tmp_path):
    log = report.MetricsLog(tmp_path / "new", -1)
    log.write(np.int64(3), 12, "val", {"eval/l1": np.float32(0.25), "eval/psnr": 20})
    # Readable before any sync or close.
    (line,) = _lines(tmp_path / "new")
    want = '{"step": 3, "images": 12, "split": "val", "eval/l1": 0.25, "eval/psnr": 20.0}'
    assert line == want
    assert report.read(tmp_path / "new") == [json.loads(want)]
    log.close()


def test_values_that_json_lacks_become_null(tmp_path):
    log = report.MetricsLog(tmp_path, -1)
    values = {"a": float("nan"), "b": float("inf"), "c": np.float32("-inf"), "d": 1.0}
    log.write(1, 1, "train", values)
    log.close()
    (row,) = report.read(tmp_path)
    assert [row[name] for name in "abcd"] == [None, None, None, 1.0]


def test_a_scalar_may_not_replace_a_field_of_the_line(tmp_path):
    log = report.MetricsLog(tmp_path, -1)
    with pytest.raises(ValueError, match=r"\['split', 'step'\]"):
        log.write(1, 1, "train", {"step": 2.0, "split": 1.0, "loss": 0.0})
    log.close()
    assert _lines(tmp_path) == []


def test_a_fresh_run_drops_all_and_a_restored_one_what_lies_beyond(tmp_path):
    _log(tmp_path, [0, 1, 2, 3])
    before = _lines(tmp_path)
    _log(tmp_path, [3, 4], restored=2)
    assert _lines(tmp_path)[:3] == before[:3]  # to the letter
    assert [row["step"] for row in report.read(tmp_path)] == [0, 1, 2, 3, 4]
    _log(tmp_path, [], restored=0)
    assert [row["step"] for row in report.read(tmp_path)] == [0]
    _log(tmp_path, [1])
    assert [row["step"] for row in report.read(tmp_path)] == [1]


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "ima', b"{", b"\0\0\0", b'{"step": 3, "split": "\xc3']
)
def test_a_torn_last_line_is_dropped(tmp_path, tail):
    _log(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert [row["step"] for row in report.read(tmp_path)] == [1, 2]
    _log(tmp_path, [3], restored=9)
    assert [row["step"] for row in report.read(tmp_path)] == [1, 2, 3]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    _log(tmp_path, [3], restored=2)
    assert [row["step"] for row in report.read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "bad", [b"{oops\n", b"[1]\n", b'{"step": "2"}\n', b'{"a": 1}\n', b"\n", b"\xff\n"]
)
@pytest.mark.parametrize("last", [b"", b'{"step": 3}\n'])
def test_another_unreadable_line_is_named_and_the_file_left_alone(tmp_path, bad, last):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + last)
    for act in (lambda: report.MetricsLog(tmp_path, 5), lambda: report.read(tmp_path)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
            act()
    assert path.read_bytes() == b'{"step": 1}\n' + bad + last
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_no_file_reads_as_no_lines(tmp_path):
    assert report.read(tmp_path) == []


# Metrics on a full disk.


@contextlib.contextmanager
def _largest(size):
    """Files of this process cannot grow beyond `size` bytes: writes are cut short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _write(log, *steps):
    for step in steps:
        log.write(step, step, "train", {"a": 0.5})


def _steps(workdir):
    return [row["step"] for row in report.read(workdir)]


@pytest.mark.parametrize("more", [0, 1, 30, 50])  # of the third line
def test_a_full_disk_ends_the_run_with_a_whole_line(tmp_path, more):
    log = report.MetricsLog(tmp_path, -1)
    _write(log, 1, 2)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with _largest(size + more):
        says = r"metrics\.jsonl cannot grow: File too large; make room and run again: .*checkpoint"
        with pytest.raises(process.Failure, match=says):
            _write(log, 3)
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
        with pytest.raises(process.Failure, match=says):
            log.close()
    assert _steps(tmp_path) == [1, 2]


def test_a_full_disk_that_is_tolerated_loses_no_line(tmp_path):
    told = []
    log = report.MetricsLog(tmp_path, -1, tolerate=True, warn=told.append)
    _write(log, 1)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with _largest(size + 60):  # room for one line and a part
        _write(log, 2, 3, 4)
        assert not log.sync()
        assert _steps(tmp_path) == [1, 2]
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert told == [
        f"{tmp_path}/metrics.jsonl cannot grow: File too large; its lines wait in memory"
    ]
    _write(log, 5)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5] and log.sync()
    with _largest(size):
        _write(log, 6)
        assert len(told) == 2  # another time
    log.close()
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_lines_that_are_left_at_the_end_are_told(tmp_path):
    log = report.MetricsLog(tmp_path, -1, tolerate=True)
    with _largest(10):
        _write(log, 1)
        with pytest.raises(process.Failure, match=r"last lines of .*metrics\.jsonl could not be"):
            log.close()
    assert _steps(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_a_sync_finds_no_room_for_is_written_again(tmp_path, monkeypatch, number):
    told = []
    log = report.MetricsLog(tmp_path, -1, tolerate=True, warn=told.append)
    _write(log, 1)
    assert log.sync()
    _write(log, 2, 3)
    with monkeypatch.context() as patch:  # as NFS and quotas say it: late
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(number, "full")))
        assert not log.sync()
        assert _steps(tmp_path) == [1]
    _write(log, 4)
    assert _steps(tmp_path) == [1, 2, 3, 4] and len(told) == 1
    log.close()


def test_other_errors_are_raised_as_they_are(tmp_path, monkeypatch):
    log = report.MetricsLog(tmp_path, -1, tolerate=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            log.sync()
    log.close()


def test_no_room_to_begin_with(tmp_path):
    _log(tmp_path, [1, 2])
    with _largest(10), pytest.raises(process.Failure, match="cannot grow: File too large; make"):
        report.MetricsLog(tmp_path, 2)
    assert _steps(tmp_path) == [1, 2] and os.listdir(tmp_path) == ["metrics.jsonl"]


# Pictures and JSON.


def _picture(height, width, value, channels=3):
    return np.full((height, width, channels), value, np.uint8)


def test_grid_places_each_picture_and_leaves_white_between():
    grid = report.grid([[_picture(2, 3, 10), _picture(2, 3, 20, 1)], [_picture(2, 3, 30)]], gap=1)
    want = np.full((5, 7), 255)
    want[:2, :3], want[:2, 4:], want[3:, :3] = 10, 20, 30
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid, np.repeat(want[..., None], 3, -1))


def test_grid_makes_room_for_the_largest():
    grid = report.grid([[_picture(2, 2, 1), _picture(4, 1, 2)], [_picture(1, 5, 3)]], gap=2)
    assert grid.shape == (4 + 2 + 1, 5 + 2 + 1, 3)
    assert (grid[:4, 7:] == 2).all() and (grid[2:4, :5] == 255).all() and (grid[6:, :5] == 3).all()


@pytest.mark.parametrize("rows", [[], [[]], [[_picture(2, 2, 0)], []]])
def test_grid_refuses_to_be_empty(rows):
    with pytest.raises(ValueError, match="at least one row"):
        report.grid(rows)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.uint8), _picture(2, 2, 0, 4)]
)
def test_other_pictures_are_refused_by_name(tmp_path, image):
    with pytest.raises(ValueError, match="picture 1 of row 0"):
        report.grid([[_picture(2, 2, 0), image]])
    with pytest.raises(ValueError, match=r"x\.png: a picture must be uint8"):
        report.save_png(tmp_path / "x.png", image)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_reads_back(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    path = tmp_path / "new" / "folder" / "x.png"
    report.save_png(path, image)
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.asarray(file).reshape(5, 7, channels), image)
    assert os.listdir(path.parent) == ["x.png"]


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    report.write_json(
        path, {"a": np.float32(0.5), "b": [float("nan"), (1, np.int32(2))], "ü": "\udcff"}
    )
    want = {"a": 0.5, "b": [None, [1, 2]], "ü": "\udcff"}
    assert json.loads(path.read_text()) == want
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == want
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_failed_move_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    report.write_json(tmp_path / "x.json", 1)

    def fail(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        report.write_json(tmp_path / "x.json", 2)
    assert (tmp_path / "x.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["x.json"]


# The run record.


def test_each_start_is_appended(tmp_path):
    for n in range(3):
        report.write_run(tmp_path, {"n": n})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == {"starts": [{"n": 0}, {"n": 1}, {"n": 2}]}


@pytest.mark.parametrize("text", ["{", "[]", '{"starts": 1}'])
def test_a_foreign_run_record_is_not_overwritten(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json .*move it away"):
        report.write_run(tmp_path, {})
    assert (tmp_path / "run.json").read_text() == text


def test_environment_names_versions_and_devices():
    found = report.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"].keys() == {
        *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "p2p_jax"),
    }
    assert found["devices"] == {"platform": "cpu", "kind": "cpu", "count": 4, "processes": 1}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])


def test_git_state_of_a_checkout_and_of_other_folders(tmp_path, monkeypatch):
    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *identity, *args], check=True, capture_output=True)

    assert report._git(tmp_path) is None
    git("init", "-q")
    (tmp_path / "__init__.py").write_text("")
    assert report._git(tmp_path) is None  # inside a checkout, but not tracked by it
    git("add", ".")
    git("commit", "-qm", "x")
    clean = report._git(tmp_path)
    assert clean is not None and re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert clean["dirty"] is False
    (tmp_path / "__init__.py").write_text("changed")
    assert report._git(tmp_path) == clean | {"dirty": True}
    monkeypatch.setenv("PATH", "")
    assert report._git(tmp_path) is None


# The console.


def _use(console):
    console.header(ROWS)
    console.progress(0, 10, {}, float("nan"), 0.0, None)
    for step in (5, 10):
        console.tick(step)
        console.progress(step, 10, {"loss/disc": 0.69315}, 12.345, 0.031, 3725.0)
    console.evaluation(10, "val", 50, {"eval/l1": 0.2, "eval/psnr": 18.0}, {"eval/l1": 0.3}, "copy")
    console.note("[red]note[/red]")
    console.warn("[oops]")
    console.done([("steps", "10")])
    console.close()


def test_without_a_terminal_the_lines_are_plain_and_unwrapped(monkeypatch):
    # Both would make rich take a file for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "20")
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    _use(consoles.Console())
    out.flush()
    line = "disc 0.6932  12.35 images/s  data wait 3%  1:02:05 left"
    assert out.buffer.getvalue().decode().splitlines() == [
        "config   [bold]odd[/bold] :smile:",
        r"workdir  a\udcff\x1b[31m",
        f"step 5/10  {line}",
        f"step 10/10  {line}",
        "evaluation at step 10: val, 50 examples",
        "  l1    0.2       (copy: 0.3)",
        "  psnr  18        (copy: -)",
        "[red]note[/red]",
        "warning: [oops]",
        "steps  10",
    ]


def _on_a_terminal(monkeypatch, width, use):
    """What `use(console)` sends to a terminal `width` columns wide."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "20")
    chunks = []

    def drain():  # while it is written: a terminal holds a few kilobytes and then blocks
        with contextlib.suppress(OSError):  # how the end of a terminal reads
            while chunk := os.read(reader, 4096):
                chunks.append(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    with open(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        use(consoles.Console())
        monkeypatch.undo()
    thread.join()
    os.close(reader)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("width", [1, 2, 7, 20, 60, 200])
def test_the_live_line_fits_any_terminal(monkeypatch, width):
    text = _on_a_terminal(monkeypatch, width, _use)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
    assert all(len(line) <= width for line in plain.splitlines())
    assert ("10/10 ━━" in plain) == (width == 200)
    assert "\x1b[31m" not in text
    assert text.rindex("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor shows


def test_a_tick_moves_the_bar_but_not_at_every_call(monkeypatch):
    def use(console):
        console.tick(1)  # no bar yet
        console.progress(2, 10**6, {"loss/disc": 1.0}, 1.0, 0.0, None)
        monkeypatch.setattr(consoles, "_REFRESH_SECONDS", 1e9)
        for step in range(100, 200):
            console.tick(step)
        monkeypatch.setattr(consoles, "_REFRESH_SECONDS", 0.0)
        console.tick(333)
        console.close()

    text = _on_a_terminal(monkeypatch, 80, use)
    # One draw each, and one more by rich as it stops.
    assert re.findall(r"(\d+)/1000000", text) == ["2", "333", "333"]
