"""The benchmark command: its rows, its table, and what its measurements measure. No speed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from running import CONFIG, ROOT, environment

from p2p_jax import benchmark, benchmarks, jpegs, rates
from p2p_jax.data import Frames, HostCache
from p2p_jax.data.fitting import Fit
from p2p_jax.data.sources import SyntheticSource

KEYS = {"part", "impl", "form", "precision", "batch_size", "images_per_sec", "ms", "ratio"}
MACHINE = {"cpu", "cores", "memory", "versions"}


def measured(tmp_path, *argv: str) -> list[dict]:
    """The rows that a command line writes."""
    path = tmp_path / "rows.json"
    assert benchmark.main([*argv, f"--json={path}"]) == 0
    rows = json.loads(path.read_text())
    for row in rows:
        assert row.keys() > KEYS and row["impl"] == "p2p_jax"
        assert row["images_per_sec"] > 0 and row["ms"] > 0
        size = row["batch_size"] or 1
        assert row["ms"] == pytest.approx(1000 * size / row["images_per_sec"])
        assert row["machine"].keys() == MACHINE and row["machine"]["cores"] >= 1
        versions = row["machine"]["versions"]
        assert {"python", "jax", "numpy", "simplejpeg", "pillow"} < versions.keys()
    return rows


# --- parts ---------------------------------------------------------------------------------------


def test_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "PAIRS", 6)
    rows = measured(tmp_path, "--parts=data", "--seconds=0.05")
    assert [(row["form"], row["batch_size"]) for row in rows] == [
        ("raw decode, one thread", 1),
        ("raw decode, all threads", 1),
        ("feed, cache none", 16),
        ("feed, cache host", 16),
        ("indices, cache device", 16),
    ]
    raw, together, none, host, device = rows
    ideal = raw["cores"] * raw["images_per_sec"]
    assert none["ratio"] == pytest.approx(none["images_per_sec"] / ideal)
    assert together["ratio"] == pytest.approx(together["images_per_sec"] / ideal)
    assert raw["ratio"] is host["ratio"] is device["ratio"] is None
    assert none["frame"] == [256, 256]
    printed = capsys.readouterr().out
    assert "processor" in printed and "simplejpeg" in printed
    table = [line.split() for line in printed.splitlines()]
    assert list(benchmark.COLUMNS) in table
    assert sum(line[:1] == ["data"] for line in table) == 5


def test_data_of_a_config(tmp_path):
    keys = ("--config.mesh.devices=1", "--config.data.threads=3")
    rows = measured(tmp_path, "--parts=data", "--seconds=0.01", CONFIG, *keys)
    assert [row["batch_size"] for row in rows] == [1, 1, 4, 4, 4]
    assert rows[2]["frame"] == [32, 32] and rows[2]["threads"] == 3


TINY = [
    f"--config.{key}"
    for key in (
        "mesh.devices=1", "data.load_size=32", "data.crop_size=32", "model.generator.depth=2",
        "model.generator.base_features=2", "model.generator.dropout=", "train.batch_size=2",
        "model.discriminator.base_features=2", "train.steps_per_dispatch=1", "eval.metrics=l1",
    )
]  # fmt: skip


def test_wait_looks_at_the_later_half_of_a_training_with_each_cache(tmp_path, monkeypatch, capsys):
    seen = []

    def trained(experiment, workdir):
        seen.append((experiment, workdir))
        waits, speeds = [0.9, 0.8, 0.02, 0.04], [1.0, 1.0, 10.0, 30.0]
        return [
            {"data_wait_frac": wait, "images_per_sec": speed}
            for wait, speed in zip(waits, speeds, strict=True)
        ]

    monkeypatch.setattr(benchmarks, "_trained", trained)
    rows = measured(tmp_path, "--parts=wait", "--steps=8", CONFIG, *TINY)
    assert [row["form"] for row in rows] == ["cache none", "cache host", "cache device"]
    for row, (experiment, _) in zip(rows, seen, strict=True):
        assert row["data_wait_frac"] == pytest.approx(0.03) and row["images_per_sec"] == 20
        assert row["precision"] == "float32" and row["batch_size"] == 2
        options = experiment.train
        assert row["form"] == f"cache {options.cache}"
        assert options.steps == options.save_every == options.eval_every == 8
        # All pairs are seen well before that half.
        assert len(experiment.train_frames) == 4
    assert len({workdir for _, workdir in seen}) == 3
    assert capsys.readouterr().out.count("3.00% of the time is spent waiting for data") == 3


@pytest.mark.slow
def test_wait(tmp_path, capsys):
    rows = measured(tmp_path, "--parts=wait", "--steps=8", CONFIG, *TINY)
    assert [row["steps"] for row in rows] == [8, 8, 8]
    assert all(0 <= row["data_wait_frac"] <= 1 for row in rows)
    assert rows[2]["data_wait_frac"] == 0
    assert "step 8/8" not in capsys.readouterr().out


def test_prepare(tmp_path, capsys):
    (row,) = measured(tmp_path, "--parts=prepare", "--pairs=20")
    assert (row["form"], row["pairs"], row["memory_at"]) == ("JPEG 512x256", 20, [4, 8, 12, 16, 20])
    assert len(row["memory"]) == 5 and min(row["memory"]) > 2**20
    assert row["ratio"] == pytest.approx(row["memory"][-1] / row["memory"][0])
    assert row["memory_peak"] >= max(row["memory"])
    assert row["images_per_sec"] == pytest.approx(20 / row["seconds"])
    assert "after 20 pairs" in capsys.readouterr().out


# --- how it is measured --------------------------------------------------------------------------


def test_measurements_take_turns():
    told = []
    ways = {name: lambda name=name: told.append(name) or float(len(told)) for name in "abc"}
    found = benchmarks.in_turn(ways)
    assert told == list("abc") * benchmarks.ROUNDS
    assert found["b"] == [2.0, 5.0, 8.0] and statistics.median(found["b"]) == 5.0


def test_rates_count_what_is_done():
    asked = []

    def slow(item: int) -> None:
        asked.append(item)
        time.sleep(0.01)

    assert 20 < rates.one_thread(slow, [7, 8, 9], 0.2) <= 100
    assert asked[:4] == [7, 8, 9, 7]
    asked.clear()
    # Sleeping threads do not share a core: twice as many do twice as much.
    assert 60 < rates.all_threads(slow, range(4), 0.3, 4) <= 400
    assert set(asked) == {0, 1, 2, 3}


def test_the_rate_of_a_feed_is_that_of_its_frames():
    class Slow(SyntheticSource):
        def __getitem__(self, i):
            time.sleep(0.01)
            return super().__getitem__(0)

    frames = Frames(Slow(0, 8, (32, 32), "AtoB"), Fit("none", (32, 32), (32, 32)))
    frames[0]
    slow = rates.feed_rate(rates.streaming(frames, 4, 1), 4, 0.3)
    assert 5 < slow <= 110
    kept = HostCache(frames)
    for i in range(8):
        kept[i]
    fast = rates.feed_rate(rates.streaming(kept, 4, 1, "host"), 4, 0.1)
    assert fast > slow
    assert rates.feed_rate(rates.indices_alone(8, 4), 4, 0.05) > 0


def test_memory_that_is_used_is_seen():
    before = benchmarks.resident()
    held = np.ones(2**26, np.uint8)
    grown = benchmarks.resident() - before
    assert 0.8 * held.nbytes < grown < 2 * held.nbytes
    assert benchmarks.resident("VmHWM") >= benchmarks.resident()


def test_generated_pairs_are_as_photos_are(tmp_path):
    jpegs.write_pairs(tmp_path / "pairs", 66)
    paths = sorted((tmp_path / "pairs").iterdir())
    assert len(paths) == 66 and len({path.read_bytes() for path in paths}) == 66
    # Facades at this size and quality are 30 to 60 kB.
    assert all(20_000 < path.stat().st_size < 100_000 for path in paths)
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image, np.float32)
    assert pixels.shape == (256, 512, 3) and 20 < pixels.std() < 90
    near, far = np.abs(np.diff(pixels, axis=1)).mean(), np.abs(pixels[:, 64:] - pixels[:, :-64])
    assert near < 0.5 * far.mean()  # neighbours are alike


# --- the command line ----------------------------------------------------------------------------


def test_mistakes_are_told_together(tmp_path, capsys):
    (tmp_path / "rows.json").write_text("mine")
    argv = ["--parts=data,sleep", "--seconds=0", "--pairs=3", "--steps=x", "--config.seed=1"]
    assert benchmark.main([*argv, f"--json={tmp_path / 'rows.json'}", "--part=data"]) == 2
    errors = capsys.readouterr().err.splitlines()
    for text in ("'sleep' is not one of data, wait, prepare", "--seconds: '0'", "--pairs: '3'",
                 "--steps: 'x'", "--config.seed: means nothing", "exists already",
                 "did you mean --parts?"):  # fmt: skip
        assert sum(text in error for error in errors) == 1, (text, errors)
    assert len(errors) == 7 and (tmp_path / "rows.json").read_text() == "mine"
    assert benchmark.main(["--parts=data", "--config=nowhere.py"]) == 2
    assert benchmark.main(["--parts=data", CONFIG, "--config.train.batch_size=0"]) == 2
    assert "train.batch_size" in capsys.readouterr().err


def test_help(capsys):
    assert benchmark.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in benchmark.PARTS)


def test_as_a_command(tmp_path):
    argv = ["--parts=prepare", "--pairs=10", f"--json={tmp_path / 'rows.json'}"]
    command = [sys.executable, "-m", "p2p_jax.benchmark", *argv]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert json.loads((tmp_path / "rows.json").read_text())[0]["pairs"] == 10
