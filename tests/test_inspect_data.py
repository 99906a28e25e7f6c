"""Looking at data before training: what is there, what is wrong with it, what the networks see."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from running import CONFIG, ROOT, environment, files, get_config

from p2p_jax import inspect_data
from p2p_jax.bench.table import aligned
from p2p_jax.build import build
from p2p_jax.config import merge
from p2p_jax.contact import augmented, contact_sheet, stored_picture
from p2p_jax.data import SOURCES, DataError, DataOptions
from p2p_jax.data.sources import GATHER
from p2p_jax.data.survey import Chosen, survey
from p2p_jax.images import Values

PALETTE = ((0, 0, 170), (255, 85, 0), (0, 255, 255))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(inspect_data, "SECONDS", 0.01)


def save(path: Path, height: int = 40, width: int = 48, seed: int = 0, channels: int = 3) -> Path:
    """An image of noise: another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return path


def copy(old: Path, new: Path, end: int | None = None) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(old.read_bytes()[:end])


@pytest.fixture
def trees(tmp_path) -> Path:
    """Six sound pairs of one size to train on, and two for evaluation."""
    root = tmp_path / "data"
    for k, side in enumerate("AB"):
        for i in range(6):
            save(root / side / "train" / f"p{i}.png", seed=10 * k + i)
        for i in range(2):
            save(root / side / "val" / f"q{i}.png", seed=100 + 10 * k + i)
    return root


@pytest.fixture
def halves(tmp_path) -> Path:
    """Five images side by side, and no split for evaluation."""
    for i in range(5):
        save(tmp_path / "data/train" / f"p{i}.png", 40, 96, seed=i)
    return tmp_path / "data"


def words(path: Path, source: str, **changes) -> list[str]:
    keys = {"data.source": source, "data.path": path, "data.prepared_dir": path.parent / "cache"}
    keys |= {"data.max_examples": 0} | {k.replace("__", "."): v for k, v in changes.items()}
    return [CONFIG, *(f"--config.{key}={value}" for key, value in keys.items())]


def look(capsys, *argv: str, code: int = 0) -> tuple[str, list[str]]:
    """What is printed, and the problems."""
    assert inspect_data.main(argv) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    errors = [line.removeprefix("error: ") for line in err.splitlines()]
    assert (code == 0) == (errors == []) and "Traceback" not in err, err
    return out, errors


def only(problems: list[str], *parts: str) -> str:
    """The one problem that has all of the parts."""
    found = [p for p in problems if all(part in p for part in parts)]
    assert len(found) == 1, (parts, problems)
    return found[0]


# --- problems ------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_named_at_once(trees, tmp_path, capsys):
    a, b = trees / "A" / "train", trees / "B" / "train"
    copy(b / "p4.png", b / "p4.png", -40)  # broken
    save(a / "p5.png", 30, 48, seed=5)  # not of its partner's size
    save(a / "lonely.png", seed=50)
    save(a / "p0.bmp", seed=51)  # clashes with p0.png
    (a / "notes.txt").write_text("no image")
    for side, folder in (("A", a), ("B", b)):
        copy(folder / "p1.png", folder / "twin.png")
        copy(folder / "p2.png", trees / side / "val" / "leak.png")
        save(folder / "small.png", 20, 24, seed=60 + ord(side))
        save(folder / "wide.png", 40, 80, seed=70 + ord(side))
    before = files(trees)
    output = tmp_path / "out"
    argv = words(trees, "paired_folders", data__preprocess="crop")
    printed, problems = look(capsys, *argv, f"--output={output}", code=2)
    assert files(trees) == before

    only(problems, "1 of 10 images", "lonely", "no partner")
    only(problems, "p0.bmp and p0.png", "differ in suffix only")
    only(problems, "train[4]", "p4.png", "broken or truncated")
    only(problems, "train[5]", "p5.png", "48x30 and 48x40 pixels")
    only(problems, "smaller than data.crop_size 32x32", "small: 20x24")
    assert len(problems) == 5
    assert "across splits: train p2 = val leak" in printed
    assert "within a split: train p1 = train twin" in printed
    assert "notes.txt" in printed
    assert "40x48 (5), " in printed and "40x80 (1)" in printed and "20x24 (1)" in printed

    record = json.loads((output / "inspect.json").read_text())
    assert record["problems"] == problems and record["sound"] is False
    train, held = record["splits"]
    assert (train["split"], train["pairs"], held["split"], held["pairs"]) == ("train", 9, "val", 3)
    assert [(b["index"], b["name"]) for b in train["broken"]] == [(4, "p4"), (5, "p5")]
    assert train["sizes"]["histogram"][0] == [40, 48, 5]
    assert (train["sizes"]["min"], train["sizes"]["max"]) == ([20, 24], [40, 80])
    assert train["source"]["dtypes"] == {"uint8": 7} and train["source"]["channels"] == {"3": 7}
    assert train["source"]["formats"] == {"png": 6, "bmp": 1}
    assert (train["source"]["low"], train["source"]["high"]) == (0, 255)
    assert {tuple(p["name"] for p in d["pairs"]): d["across_splits"] for d in
            record["duplicates"]} == {("p1", "twin"): False, ("p2", "leak"): True}  # fmt: skip
    # What can be used is tried all the same: neither broken nor too small.
    assert record["usable_pairs"] == 6
    assert record["bytes_decoded"] == 6 * (2 * 40 * 80 * 3 + 8)
    # A busy machine may finish none in the time.
    assert all(rate >= 0 for rate in record["pairs_per_sec"].values())
    with Image.open(output / "contact.png") as sheet:
        assert sheet.mode == "RGB" and sheet.height == 5 * 36 + 32


def test_what_training_would_stop_at_first_is_all_there(trees, capsys):
    """Every problem that opening the data tells is told, and more."""
    save(trees / "A/train/lonely.png", seed=50)
    options = DataOptions("paired_folders", str(trees), prepared_dir=str(trees.parent / "cache"))
    with pytest.raises(DataError) as caught:
        SOURCES["paired_folders"].open(options, print)
    _, problems = look(capsys, *words(trees, "paired_folders"), code=2)
    assert set(caught.value.problems) <= set(problems)


def test_types_that_differ_are_told_with_what_there_is(trees, tmp_path, capsys):
    pixels = np.full((40, 48, 3), 0.25, np.float32)
    np.save(trees / "A/train/p6.npy", pixels)
    save(trees / "B/train/p6.png", seed=9)
    argv = (*words(trees, "paired_folders"), f"--output={tmp_path / 'out'}")
    printed, problems = look(capsys, *argv, code=2)
    only(problems, "source images differ in type", "1 of float32")
    assert "uint8 (6), float32 (1)" in printed
    source = json.loads((tmp_path / "out/inspect.json").read_text())["splits"][0]["source"]
    assert source["formats"] == {"png": 6, "npy": 1}


def test_channels_that_the_task_cannot_take_are_told(tmp_path, capsys):
    for i in range(4):
        save(tmp_path / "data/train" / f"{i}.png", seed=i, channels=1)
    _, problems = look(capsys, *words(tmp_path / "data", "colorization"), code=2)
    assert problems and all("data.channels" in problem for problem in problems)


def test_pairs_that_others_stand_in_for_are_no_problem(trees, capsys):
    copy(trees / "A/train/p3.png", trees / "A/train/p3.png", -40)
    printed, _ = look(capsys, *words(trees, "paired_folders", data__on_error="substitute"))
    assert "1 of 6 of train are broken" in printed and "p3.png" in printed
    assert "can be trained on" in printed


def test_splits_that_do_not_go_together(trees, capsys):
    for i in range(2):
        np.save(trees / "A/val" / f"q{i}.npy", np.zeros((40, 48, 3), np.uint16))
        (trees / "A/val" / f"q{i}.png").unlink()
    _, problems = look(capsys, *words(trees, "paired_folders"), code=2)
    only(problems, "source images of the splits differ", "train uint8 of 3, val uint16 of 3")


def test_a_broken_split_and_nothing_else(tmp_path, capsys):
    (tmp_path / "data/train").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "data/train" / f"{i}.png").write_bytes(b"nothing")
    printed, problems = look(capsys, *words(tmp_path / "data", "folder"), code=2)
    for i in range(3):
        only(problems, f"train[{i}]", f"{i}.png", "broken or truncated")
    assert "there is no pair to try" in printed
    # Nothing can stand in for them.
    argv = words(tmp_path / "data", "folder", data__on_error="substitute")
    assert look(capsys, *argv, code=2)[1]


def test_an_empty_split_for_evaluation(halves, capsys):
    (halves / "val").mkdir()
    _, problems = look(capsys, *words(halves, "folder"), code=2)
    only(problems, "data.eval_split: 'val'", "holds no image")


def test_sources_without_targets_are_looked_at(halves, capsys):
    printed, problems = look(capsys, *words(halves / "train", "single"), code=2)
    only(problems, "'single' has no targets to learn from")
    assert len(problems) == 1 and "40x96 (5)" in printed


# --- what is sound -------------------------------------------------------------------------------


def test_sound_pairs_of_many_sizes(trees, tmp_path, capsys):
    for side in "AB":
        save(trees / side / "train/p6.png", 70, 50, seed=ord(side))
    argv = (*words(trees, "paired_folders"), f"--output={tmp_path / 'out'}")
    printed, _ = look(capsys, *argv)
    assert printed.splitlines()[-1] == "verdict  the data can be trained on as configured"
    record = json.loads((tmp_path / "out/inspect.json").read_text())
    assert record["sound"] and record["problems"] == [] and record["duplicates"] == []
    assert record["splits"][0]["sizes"]["histogram"] == [[40, 48, 6], [70, 50, 1]]
    assert record["networks"]["frames"] == "36x34 from the host"  # where sizes differ
    assert record["bytes_decoded"] == 7 * 2 * 36 * 34 * 3
    assert set(record["machine"]) == {"cpu", "cores", "memory", "versions"}


def test_a_pair_that_is_held_out_and_trained_on(halves, capsys):
    config = words(halves, "folder")
    for i in range(40):  # all alike: some are held out
        copy(halves / "train/p0.png", halves / "train" / f"same{i}.png")
    printed, _ = look(capsys, *config)
    assert "held out of train" in printed and "1 of them across splits" in printed
    assert "both halves" in printed


def test_synthetic_pairs(capsys, tmp_path):
    printed, _ = look(capsys, CONFIG, f"--output={tmp_path / 'out'}")
    record = json.loads((tmp_path / "out/inspect.json").read_text())
    assert [(s["split"], s["pairs"], s["evaluates"]) for s in record["splits"]] == [
        ("train", 10, False), ("val", 5, True),
    ]  # fmt: skip
    assert record["usable_pairs"] == 10 and "built in" in printed


def manifest(root: Path) -> Path:
    path = root.parent / "pairs.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "split"])
        for split in ("train", "val"):
            for a in sorted((root / "A" / split).iterdir()):
                rows.writerow([a, root / "B" / split / a.name, split])
    return path


def test_every_source_can_be_looked_at(trees, halves, capsys):
    assert set(SOURCES) - set(GATHER) == {"synthetic"}
    path = manifest(trees)
    found = survey(DataOptions("manifest", str(path), prepared_dir=str(path.parent / "c")), print)
    assert [len(part.names) for part in found.parts] == [6, 2] and found.problems == ()
    with path.open("a") as file:
        file.write("nowhere.png,nowhere.png,train\n")
    found = survey(DataOptions("manifest", str(path), prepared_dir=str(path.parent / "c")), print)
    only(list(found.problems), "nowhere.png", "line 10")
    assert [len(part.names) for part in found.parts] == [6, 2]


@pytest.mark.parametrize("source", ["edges", "inpaint", "colorization"])
def test_photos(source, halves, capsys):
    printed, _ = look(capsys, *words(halves, source))
    side = "png" if source == "edges" else "-"
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["train"])
    assert side in row.split()


def test_official_sets_in_an_archive(tmp_path, capsys):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            save(tmp_path / "facades" / split / f"{i}.jpg", 40, 96, seed=i + 10 * count)
    with tarfile.open(tmp_path / "facades.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "facades", "facades")
    argv = words(tmp_path / "facades.tar.gz", "tfds", data__name="pix2pix/facades")
    printed, _ = look(capsys, *argv)
    assert "jpeg" in printed and "40x48 (3)" in printed and "40x48 (2)" in printed
    argv = words(tmp_path / "facades.tar.gz", "tfds", data__name="pix2pix/facade")
    assert only(look(capsys, *argv, code=2)[1], "pix2pix/facade' is not one of")


# --- the contact sheet ---------------------------------------------------------------------------


def of_config(tmp_path, **changes):
    """Frames and networks of a config, as training has them."""
    keys = {"mesh.devices": 1} | {key.replace("__", "."): v for key, v in changes.items()}
    config = merge(get_config(), keys)
    return build(config, lambda line: None)


def test_the_sheet_has_what_is_stored_and_what_the_networks_see(tmp_path):
    experiment = of_config(tmp_path, data__load_size=(32, 32), data__flip=False)
    source = SOURCES["synthetic"].open(DataOptions("synthetic", crop_size=(32, 32)), print).train
    source = Chosen(source, range(10))
    sheet = contact_sheet(source, experiment.train_frames, experiment.gan, (), 0)
    assert sheet.shape == (6 * 32 + 5 * 4, 8 * 32 + 8 + 8 * 4, 3)
    chosen = [0, 2, 4, 5, 7, 9]
    starts = [0, 36, *(72 + 12 + 36 * k for k in range(6))]
    for row, i in enumerate(chosen):
        for column, left in enumerate(starts):
            cell = sheet[row * 36 : row * 36 + 32, left : left + 32]
            # Nothing is jittered: what the networks see is what is stored.
            assert (cell == source[i][column % 2]).all(), (row, column)


def test_both_images_are_varied_alike_and_each_time_anew(tmp_path):
    experiment = of_config(tmp_path, data__load_size=(32, 32))
    frames = experiment.train_frames
    seen = augmented(experiment.gan, frames, range(6), 0)
    assert len(seen) == 3
    mirrored = np.zeros((3, 6), bool)
    for version, pictures in enumerate(seen):
        for i in range(6):
            for stored, picture in zip(frames[i], pictures, strict=False):
                mirrored[version, i] = not (picture[i] == stored).all()
                wanted = stored[:, ::-1] if mirrored[version, i] else stored
                assert (picture[i] == wanted).all()
    assert mirrored.any() and not mirrored.all() and (mirrored[0] != mirrored[1]).any()


def test_the_variations_are_those_of_the_first_steps(tmp_path):
    """Places of a batch draw as in `update.update`: its key is the run's, folded with the step."""
    from p2p_jax.update import AUGMENT, example_keys

    experiment = of_config(tmp_path)
    gan, frames = experiment.gan, experiment.train_frames
    seen = augmented(gan, frames, [3, 1], 5)
    for step in (0, 2):
        key = jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), step)
        keys = example_keys(key, AUGMENT, np.arange(2))
        images = [np.stack([frames[i][k] for i in (3, 1)]).astype(np.float32) for k in (0, 1)]
        wanted, _ = gan.augment(keys, *images)
        assert np.abs(seen[step][0] - np.asarray(wanted)).max() <= 0.51


def test_label_maps_are_shown_in_their_colours(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for i in range(count):
            classes = rng.integers(0, 3, (40, 48))
            path = tmp_path / "data/A" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array(PALETTE, np.uint8)[classes]).save(path)
            save(tmp_path / "data/B" / split / f"{i}.png", seed=i)
    palette = " ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in PALETTE)
    argv = words(tmp_path / "data", "labels", data__palette=palette)
    printed, _ = look(capsys, *argv, f"--output={tmp_path / 'out'}")
    assert "labels, from 3 to 3 channels" in printed and "source classes" in printed
    with Image.open(tmp_path / "out/contact.png") as picture:
        sheet = np.asarray(picture)
    starts = [(0, 27, 32), *((2 * 36 + 12 + 72 * k, 32, 32) for k in range(3))]
    known = {*PALETTE, (255, 255, 255)}
    for left, h, w in starts:
        cell = sheet[:h, left : left + w].reshape(-1, 3)
        assert {tuple(map(int, c)) for c in cell} <= known and len(np.unique(cell, axis=0)) > 1
    look(capsys, *words(tmp_path / "data", "labels"), code=2)  # no palette


def test_stored_pictures_by_their_values():
    image = np.array([[[1000], [3000]], [[2000], [9000]]], np.uint16)
    shown = stored_picture(image, Values("uint16", 1000, 3000), (), (8, 8))
    assert shown.dtype == np.uint8 and shown[..., 0].tolist() == [[0, 255], [128, 255]]
    halved = stored_picture(np.full((64, 32, 4), 7, np.uint8), Values(), (), (16, 16))
    assert halved.shape == (16, 8, 3) and (halved == 7).all()


# --- the command line ----------------------------------------------------------------------------


def test_mistakes_are_told_together_and_nothing_is_read(tmp_path, capsys):
    argv = (CONFIG, "--config.data.crop=3", "--ouput=x", f"--output={tmp_path}")
    (tmp_path / "inspect.json").write_text("mine")
    _, problems = look(capsys, *argv, code=2)
    only(problems, "--config.data.crop", "no such key")
    only(problems, "--ouput", "did you mean --output")
    only(problems, "inspect.json already")
    assert (tmp_path / "inspect.json").read_text() == "mine"
    only(look(capsys, code=2)[1], "--config: needed")
    _, problems = look(capsys, CONFIG, "--config.model.generator.depth=20", code=2)
    only(problems, "model.generator.depth")
    only(look(capsys, CONFIG, "--config.data.source=nothing", code=2)[1], "data.source")


def test_nothing_is_written_into_the_data(halves, capsys):
    before = files(halves)
    _, problems = look(capsys, *words(halves, "folder"), f"--output={halves / 'out'}", code=2)
    only(problems, "--output", "inside data.path")
    assert files(halves) == before


def test_paths_that_lead_nowhere(tmp_path, capsys):
    for source in ("folder", "labels", "edges", "manifest", "single"):
        palette = {"data__palette": "#000000 #ffffff"} if source == "labels" else {}
        argv = words(tmp_path / "nothing", source, **palette)
        assert any("does not exist" in p for p in look(capsys, *argv, code=2)[1]), source


def test_columns_of_numbers_are_flush_right():
    assert aligned([["name", "n"], ["a", "1"], ["bb", "100"]]) == [
        "name    n", "a       1", "bb    100",
    ]  # fmt: skip
    assert aligned([["name", "kind"], ["a", "x"]]) == ["name  kind", "a     x"]


def test_as_a_command(trees, tmp_path):
    copy(trees / "A/train/p3.png", trees / "A/train/p3.png", -40)
    argv = (*words(trees, "paired_folders"), f"--output={tmp_path / 'out'}")
    command = [sys.executable, "-m", "p2p_jax.inspect_data", *argv]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 2 and "train[3]" in ran.stderr.splitlines()[-1], ran.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact.png", "inspect.json"]
