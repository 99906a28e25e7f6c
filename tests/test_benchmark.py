"""The benchmark command: its rows, its table, and what its measurements measure. No speed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from running import CONFIG, ROOT, environment

from p2p_jax import benchmark
from p2p_jax.bench import data, loop, programs, table
from p2p_jax.bench.rows import row

KEYS = {"part", "impl", "form", "precision", "batch_size", "images_per_sec", "ms", "ratio"}
MACHINE = {"cpu", "cores", "memory", "versions"}


def measured(tmp_path, *argv: str) -> list[dict]:
    """The rows that a command line writes."""
    path = tmp_path / "rows.json"
    assert benchmark.main([*argv, f"--json={path}"]) == 0
    rows = json.loads(path.read_text())
    for found in rows:
        assert found.keys() > KEYS and found["impl"] == "p2p_jax"
        assert found["ms"] > 0
        if found["part"] != "start":
            size = found["batch_size"] or 1
            assert found["ms"] == pytest.approx(1000 * size / found["images_per_sec"])
        assert found["machine"].keys() >= MACHINE and found["machine"]["cores"] >= 1
        versions = found["machine"]["versions"]
        assert {"python", "jax", "numpy", "simplejpeg", "pillow"} < versions.keys()
    return rows


# --- parts ---------------------------------------------------------------------------------------


def test_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "PAIRS", 6)
    rows = measured(tmp_path, "--parts=data", "--seconds=0.05")
    assert [(r["form"], r["batch_size"]) for r in rows] == [
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
    printed_rows = [line.split() for line in printed.splitlines()]
    assert list(table.COLUMNS) in printed_rows
    assert sum(line[:1] == ["data"] for line in printed_rows) == 5


def test_data_of_a_config(tmp_path):
    keys = ("--config.mesh.devices=1", "--config.data.threads=3")
    rows = measured(tmp_path, "--parts=data", "--seconds=0.01", CONFIG, *keys)
    assert [r["batch_size"] for r in rows] == [1, 1, 4, 4, 4]
    assert rows[2]["frame"] == [32, 32] and rows[2]["threads"] == 3


def test_prepare(tmp_path, capsys):
    (found,) = measured(tmp_path, "--parts=prepare", "--pairs=20")
    assert (found["form"], found["pairs"], found["memory_at"]) == (
        "JPEG 512x256",
        20,
        [4, 8, 12, 16, 20],
    )
    assert len(found["memory"]) == 5 and min(found["memory"]) > 2**20
    assert found["ratio"] == pytest.approx(found["memory"][-1] / found["memory"][0])
    assert found["memory_peak"] >= max(found["memory"])
    assert found["images_per_sec"] == pytest.approx(20 / found["seconds"])
    assert "after 20 pairs" in capsys.readouterr().out


TINY = [
    f"--config.{key}"
    for key in (
        "mesh.devices=1", "data.load_size=32", "data.crop_size=32", "model.generator.depth=2",
        "model.generator.base_features=2", "model.generator.dropout=", "train.batch_size=2",
        "model.discriminator.base_features=2", "train.steps_per_dispatch=1", "eval.metrics=l1",
    )
]  # fmt: skip


@pytest.mark.slow
def test_what_a_config_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "WAYS", (("device", 8),))
    argv = ["--parts=infer,step,loop", "--steps=16", "--seconds=0.02", CONFIG, *TINY]
    looped, step, infer = measured(tmp_path, *argv)
    assert looped["steps"] == 16 and 0 <= looped["data_wait_frac"] <= 1
    assert looped["ratio"] == pytest.approx(
        looped["images_per_sec"] / looped["step_images_per_sec"]
    )
    for made in (step, infer):
        assert (made["batch_size"], made["precision"], made["ratio"]) == (2, "float32", None)
        assert 0 < made["model_flops"] < 1e9 and made["flops"] > 0 and made["peak_memory"] > 0
    assert infer["part"] == "infer" and infer["model_flops"] < step["model_flops"] / 3
    printed = capsys.readouterr().out
    assert "step 16/16" not in printed and printed.count("waiting for data") == 1
    assert printed.count("MFU") == 2


# Stands in for everything that reads configs and data.
_BARE = """
import sys
blocked = {blocked!r}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
from p2p_jax import benchmark
from p2p_jax.bench import nets, peak
measured, standard = peak.measured, nets.standard
peak.measured = lambda device, precision: measured(device, precision, size=128)
nets.standard = lambda *args, **options: standard(*args, **(options | dict(tiny=True)))
sys.exit(benchmark.main(sys.argv[1:]))
"""
ABSENT = (
    *("ml_collections", "tensorflow_datasets", "tensorflow", "grain", "array_record", "simplejpeg"),
    *("orbax", "PIL", "cv2", "tifffile", "imagecodecs", "torch", "safetensors"),
)


def bare(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BARE.format(blocked=ABSENT), *argv]
    # The cache of compiled programs looks for some of them, and warns.
    env = environment(cached=False)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_the_step_alone_needs_no_data(tmp_path):
    path = tmp_path / "rows.json"
    argv = ["--parts=step,infer", "--batch-sizes=2", "--seconds=0.02", f"--json={path}"]
    ran = bare(*argv)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    step, infer = json.loads(path.read_text())
    assert [step["part"], infer["part"]] == ["step", "infer"]
    for made in (step, infer):
        assert (made["batch_size"], made["precision"], made["devices"]) == (2, "float32", 1)
        assert made["images_per_sec"] == sorted(made["rounds"])[1]
        assert made["mfu"] == pytest.approx(
            made["model_flops"] * made["images_per_sec"] / 2 / made["peak_flops"]
        )
        assert made["machine"]["devices"]["platform"] == "cpu"


def test_a_library_that_is_missing_is_named():
    ran = bare("--parts=data")
    assert ran.returncode == 2
    assert "error: --parts: 'data' needs the package" in ran.stderr, ran.stderr


# --- the command line ----------------------------------------------------------------------------


def test_mistakes_are_told_together(tmp_path, capsys):
    (tmp_path / "rows.json").write_text("mine")
    argv = ["--parts=data,sleep", "--seconds=0", "--pairs=3", "--steps=x", "--config.seed=1"]
    argv += ["--batch-sizes=0,1,b", "--precisions=half", "--forms=auto,round", "--devices=-1"]
    argv += ["--against=jax", "word", "--seconds"]
    assert benchmark.main([*argv, f"--json={tmp_path / 'rows.json'}", "--part=data"]) == 2
    errors = capsys.readouterr().err.splitlines()
    for text in ("'sleep' is not one of start, data, prepare", "--seconds: '0'", "--pairs: '3'",
                 "--steps: 'x'", "--config.seed: means nothing", "exists already",
                 "did you mean --parts?", "--batch-sizes: '0'", "--batch-sizes: 'b'",
                 "'half' is not one of float32", "'round' is not one of auto", "--devices: '-1'",
                 "'jax' is not torch", "word: not a flag", "--seconds: needs a value"):  # fmt: skip
        assert sum(text in error for error in errors) == 1, (text, errors)
    assert len(errors) == 15 and (tmp_path / "rows.json").read_text() == "mine"
    assert benchmark.main(["--parts=data", "--config=nowhere.py"]) == 2
    assert benchmark.main(["--parts=data", CONFIG, "--config.train.batch_size=0"]) == 2
    assert "train.batch_size" in capsys.readouterr().err


def test_what_torch_is_set_against(monkeypatch, capsys):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["--against=torch", "--parts=data", CONFIG]) == 2
    errors = capsys.readouterr().err
    assert "neither is asked for" in errors and "leave out --config" in errors
    assert "pip install torch" in errors
    assert benchmark.main(["--parts=step", "--torch-forms=eager"]) == 2
    assert "means nothing without --against" in capsys.readouterr().err


def test_rows_outlast_a_part_that_fails(tmp_path, monkeypatch, capsys):
    def fails(options):
        raise RuntimeError("no more")

    found = {"data": lambda options: [row("data", "a", images_per_sec=2.0)], "step": fails}
    monkeypatch.setattr(benchmark, "_function", found.__getitem__)
    path = tmp_path / "rows.json"
    assert benchmark.main(["--parts=step,data", f"--json={path}"]) == 1
    (kept,) = json.loads(path.read_text())
    assert (kept["form"], kept["ms"]) == ("a", 500)
    assert capsys.readouterr().err.endswith("error: RuntimeError: no more\n")


def test_a_machine_with_other_work_is_told(monkeypatch, capsys):
    for load, told in ((0.0, False), (1e3, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        monkeypatch.setattr(benchmark, "_function", lambda part: lambda options: [])
        assert benchmark.main(["--parts=data"]) == 0
        assert ("other work" in capsys.readouterr().out) is told


def test_no_part_runs_where_only_compiling_is_asked_for(monkeypatch):
    asked = []

    def compiled(topology, options):
        asked.append((topology, options.batch_sizes))
        return []

    monkeypatch.setattr(programs, "compile_for", compiled)
    assert benchmark.main(["--compile-for=v5e:2x4", "--batch-sizes=2,4"]) == 0
    assert asked == [("v5e:2x4", (2, 4))]


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
