"""The command line of translating: names, kinds, what is refused before anything is computed."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from running import ROOT, environment, files
from trained import image, run, smooth

from p2p_jax.data.decoding import decode
from p2p_jax.predict import main
from p2p_jax.translator import load

PLAIN = {"model__generator__dropout": ()}


@functools.cache
def loaded(workdir, options):
    return load(workdir, warn=pytest.fail, **dict(options))


@pytest.fixture(autouse=True)
def each_is_loaded_once(monkeypatch):
    def once(workdir, warn, **options):
        return loaded(workdir, tuple(sorted(options.items(), key=str)))

    monkeypatch.setattr("p2p_jax.predict.load", once)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three pictures of two sizes, one of them in a folder, and what is none."""
    for i, name in enumerate(("one.png", "deep/er/two.bmp", "three.png")):
        save(tmp_path / "photos" / name, image(i, (18, 30) if i < 2 else (16, 16)))
    (tmp_path / "photos" / "readme.txt").write_text("no image")
    return tmp_path / "photos"


def predict(given, output, *flags, workdir=None):
    workdir = run(**PLAIN) if workdir is None else workdir
    words = [f"--workdir={workdir}", f"--input={given}", f"--output={output}", *flags]
    return main([*words, "--devices=1"])


def read(path):
    return decode(path.read_bytes())


def test_a_folder_with_all_below_it(photos, tmp_path, capsys):
    before, out = files(photos), tmp_path / "made"
    assert predict(photos, out) == 0
    assert sorted(files(out)) == ["deep/er/two.png", "one.png", "three.png"]
    translate = load(run(**PLAIN))
    for name, suffix in (("one", "png"), ("deep/er/two", "bmp"), ("three", "png")):
        wanted = translate(read(photos / f"{name}.{suffix}"))
        assert np.abs(read(out / f"{name}.png").astype(int) - wanted).max() <= 1
    assert files(photos) == before
    told = capsys.readouterr().out
    assert "readme.txt" in told and "3, of 2 sizes" in told and "trained at 16x16" in told
    # What is there stays, unless it is said that it need not.
    (out / "one.png").write_bytes(b"mine")
    assert predict(photos, out) == 2
    assert "3 of 3 results exist already" in capsys.readouterr().err
    assert (out / "one.png").read_bytes() == b"mine"
    assert predict(photos, out, "--overwrite") == 0
    assert read(out / "one.png").shape == (18, 30, 3)


def test_results_below_the_inputs_are_no_inputs(photos, capsys):
    assert predict(photos, photos / "made", "--size=16") == 0
    assert predict(photos, photos / "made", "--size=16,16", "--overwrite") == 0
    assert sorted(files(photos / "made")) == ["deep/er/two.png", "one.png", "three.png"]
    assert "3 images below" in capsys.readouterr().out


def test_a_pattern_and_a_file(photos, tmp_path):
    assert predict(f"{photos}/**/*.[bp]*", tmp_path / "made", "--suffix=.tiff") == 0
    assert sorted(files(tmp_path / "made")) == ["deep/er/two.tiff", "one.tiff", "three.tiff"]
    assert predict(photos / "three.png", tmp_path / "alone.png") == 0
    assert (read(tmp_path / "alone.png") == read(tmp_path / "made" / "three.tiff")).all()
    assert predict(photos / "three.png", tmp_path / "folder") == 0
    assert sorted(files(tmp_path / "folder")) == ["three.png"]


def test_standard_input_and_output(photos, tmp_path, monkeypatch, capsysbinary):
    data = (photos / "one.png").read_bytes()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    assert predict("-", "-") == 0
    told = capsysbinary.readouterr()
    assert predict(photos / "one.png", tmp_path / "one.png") == 0
    assert told.out == (tmp_path / "one.png").read_bytes()
    assert b"translated" in told.err


def test_all_bad_inputs_are_told_and_nothing_is_written(photos, tmp_path, capsys):
    (photos / "text.png").write_text("not a picture")
    (photos / "cut.png").write_bytes((photos / "one.png").read_bytes()[:100])
    save(photos / "clear.png", image(channels=4))
    save(photos / "one.jpg", image())
    assert predict(photos, tmp_path / "made", "--tile=15,16", "--suffix=.npy") == 2
    told = capsys.readouterr().err
    assert all(word in told for word in ("text.png", "cut.png", "clear.png", "--tile: 15,16"))
    assert "one.jpg and" in told and "would both become" in told
    assert "Traceback" not in told and not (tmp_path / "made").exists()


def test_all_bad_flags_are_told(photos, tmp_path, capsys):
    flags = [
        "--steps=3",
        "--dropout=maybe",
        "--size=a,b",
        "--overlap=3",
        "--suffix=.jpg",
        "--seed=x",
    ]
    assert main([f"--workdir={tmp_path}", "--input=nowhere.png", *flags]) == 2
    told = capsys.readouterr().err.splitlines()
    wanted = ["--steps: no such flag; did you mean --step?", "--output: needed", "holds no config",
              "nowhere.png does not exist", "'a,b' is not height and width", "--overlap: means",
              "'.jpg' is not one of", "'x' is not a whole", "'maybe' is not True"]  # fmt: skip
    assert len(told) == len(wanted)
    assert all(any(part in line for line in told) for part in wanted)


@pytest.mark.parametrize("given,output,reason", [
    ("photos", "-", "- takes one image, not 3"),
    ("photos", "made.png", "made.png is one file, for 3 images"),
    ("photos", "photos/one.png", "one.png is one file, for 3 images"),
    ("photos", "photos/readme.txt", "is a file; name another folder"),
    ("photos/one.png", "made.jpg", "no name for a .png"),
    ("photos/one.png", "photos", "would overwrite an input"),
    ("photos/readme.txt", "made", "broken or truncated"),
    ("photos/*.gif", "made", "holds no image"),
    ("-", "made", "standard input needs a file"),
])  # fmt: skip
def test_outputs_that_do_not_fit(given, output, reason, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    assert predict(given, output, "--overwrite") == 2
    assert reason in capsys.readouterr().err
    assert files(tmp_path) == before


def test_tiles_are_told_and_an_image_within_one_is_whole(photos, tmp_path, capsys):
    save(photos / "large.png", smooth((70, 90)))
    shutil.rmtree(photos / "deep")
    flags = ["--tile=32,32", "--norm_stats=running"]
    assert predict(photos, tmp_path / "made", *flags) == 0
    told = capsys.readouterr().out
    assert "tiles of 32x32 that overlap by 16 make what the whole image would" in told
    translate = load(run(**PLAIN), norm_stats="running")
    for name in ("one", "three", "large"):
        wanted = translate(read(photos / f"{name}.png")).astype(int)
        assert np.abs(read(tmp_path / "made" / f"{name}.png") - wanted).max() <= 1


@pytest.mark.slow
def test_tiles_that_are_not_the_whole_are_told(tmp_path, capsys):
    save(tmp_path / "large.png", smooth((70, 90)))
    assert predict(tmp_path / "large.png", tmp_path / "own", "--tile=32,32") == 0
    told = capsys.readouterr().out
    assert "do not quite make" in told and "statistics of its own" in told and "seams" in told


@pytest.mark.slow
def test_classes_are_indices_into_their_colours(tmp_path):
    palette = "#000000 #ff0000 #00ff00"
    workdir = run(data__task="labels", data__labels="target", data__palette=palette, **PLAIN)
    save(tmp_path / "photo.png", smooth((20, 28)))
    assert predict(tmp_path / "photo.png", tmp_path / "made", workdir=workdir) == 0
    data = (tmp_path / "made" / "photo.png").read_bytes()
    classes = load(workdir)(read(tmp_path / "photo.png"))
    assert (decode(data, indexed=True) == classes).all()
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    assert (decode(data) == colours[classes[..., 0]]).all()


def test_help_is_the_docstring(capsys):
    assert main(["--help"]) == 0
    assert "--overlap=N" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command(photos, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "p2p_jax.predict", f"--workdir={run()}", f"--input={photos}",
         f"--output={tmp_path / 'made'}", "--ema=False", "--batch_size=2"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert sorted(files(tmp_path / "made")) == ["deep/er/two.png", "one.png", "three.png"]
    assert "drawn from seed 0" in ran.stdout and "\x1b" not in ran.stdout
