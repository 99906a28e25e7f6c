"""What TensorBoard is given, read back record by record."""

from __future__ import annotations

import builtins
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from p2p_jax import storage
from p2p_jax.board import Board
from p2p_jax.config import ConfigError


@pytest.fixture
def events():
    """Reads all events of a folder, in the order of the files' times of birth."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    def read(workdir):
        found = []
        for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
            data = path.read_bytes()
            while data:
                (size,) = struct.unpack_from("<Q", data)
                body = data[12 : 12 + size]
                (check,) = struct.unpack_from("<I", data, 12 + size)
                assert check == masked_crc32c(body)
                found.append(Event.FromString(body))
                data = data[16 + size :]
        return found

    return read


def _row(step, split="train", **figures):
    return {"step": step, "images": 4 * step, "split": split, **figures}


def _shown(events):
    """Steps and values by tag, as TensorBoard has them: a start takes later steps back."""
    shown = {}
    for event in events:
        if event.HasField("session_log"):
            for steps in shown.values():
                for step in [s for s in steps if s >= event.step]:
                    del steps[step]
        for value in event.summary.value:
            shown.setdefault(value.tag, {})[event.step] = round(value.simple_value, 5)
    return shown


def test_lines_and_pictures_arrive(tmp_path, events):
    board = Board(tmp_path, -1)
    board.write(_row(1, **{"loss/disc": 0.5, "loss/gen_l1": None, "loss/nan": float("nan")}))
    board.write(_row(2, "val", **{"eval/l1": 0.25}))
    picture = np.full((12, 20, 3), 77, np.uint8)
    board.image(2, picture)
    board.image(3, picture[..., :1])
    board.close()
    *_, rgb, grey = (found := events(tmp_path))
    assert _shown(found[:-2]) == {"loss/disc": {1: 0.5}, "val/l1": {2: 0.25}}
    for event, mode in ((rgb, "RGB"), (grey, "L")):
        (value,) = event.summary.value
        assert (value.tag, value.image.height, value.image.width) == ("samples", 12, 20)
        with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
            assert image.mode == mode and abs(np.asarray(image).astype(int) - 77).max() <= 2


def test_a_resumed_run_takes_back_what_it_writes_again(tmp_path, events):
    first = Board(tmp_path, -1)
    for step in (1, 2, 3, 4):
        first.write(_row(step, a=float(step)))
    first.sync()  # and is killed
    kept = [_row(step, a=float(step)) for step in (1, 2)]
    second = Board(tmp_path, 2, kept)  # within the same second
    second.write(_row(3, a=33.0))
    second.close()
    assert _shown(events(tmp_path)) == {"a": {1: 1.0, 2: 2.0, 3: 33.0}}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    first.close()


def test_a_run_that_had_no_board_is_told_from_its_beginning(tmp_path, events):
    Board(tmp_path, 2, [_row(1, a=1.0), _row(2, a=2.0)]).close()
    assert _shown(events(tmp_path)) == {"a": {1: 1.0, 2: 2.0}}


def test_a_fresh_run_takes_everything_back(tmp_path, events):
    old = Board(tmp_path, -1)
    old.write(_row(0, "val", **{"eval/l1": 1.0}))
    old.close()
    Board(tmp_path, -1).close()
    assert _shown(events(tmp_path)) == {"val/l1": {}}


def test_what_was_synced_outlives_a_kill(tmp_path, events):
    board = Board(tmp_path, -1)
    board.write(_row(1, a=1.0))
    board.sync()
    assert _shown(events(tmp_path)) == {"a": {1: 1.0}}
    board.close()


def test_what_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "tensorboardX":
            raise ImportError("none")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'p2p_jax\[tensorboard\]'"):
        Board(tmp_path, -1)
    assert not any(tmp_path.iterdir())


def test_a_bucket_is_refused():
    pytest.importorskip("tensorboardX")
    with pytest.raises(ConfigError, match="needs a workdir on a disk"):
        Board(storage.at("gs://bucket/run"), -1)
