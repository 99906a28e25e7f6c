"""Evaluation: the same whatever the batch, the devices and the place, and all of it on disk."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import quick_jit, turned
from PIL import Image
from running import STEPS, blocks, files, finished, get_config, start

from p2p_jax import checkpoint, pictures, report
from p2p_jax.build import build
from p2p_jax.config import merge
from p2p_jax.data import DataError
from p2p_jax.evaluate import Evaluator
from p2p_jax.flags import saved_config
from p2p_jax.main import main
from p2p_jax.state import init
from p2p_jax.validate import validate

COUNT, SIZE, SHOWN = 5, 32, 3


@functools.cache
def _made(**changes):
    """(experiment, evaluator, the trained generator) for the run's config with changes."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    workdir = finished()[0]
    experiment = build(merge(saved_config(workdir), changes), lambda text: None)
    like = {"gen": checkpoint.split(experiment.abstract_state())["gen"]}
    found = checkpoint.restore(checkpoint.open_reader(workdir), like, pytest.fail)
    assert found.step == STEPS
    return experiment, Evaluator(experiment), found.items["gen"]


@functools.cache
def _result(**changes):
    _, evaluator, gen = _made(**changes)
    return evaluator(gen)


ONE = {"mesh__devices": 1, "eval__batch_size": 1}


def _rows(result):
    return np.array([[v for k, v in row.items() if k != "name"] for row in result.examples])


def _folder():
    return finished()[0] / "eval" / "val" / str(STEPS)


def _metrics():
    return json.loads((_folder() / "metrics.json").read_text())


def _picture(kind, name):
    return np.asarray(Image.open(_folder() / kind / f"{name}.png"))


# --- what it depends on --------------------------------------------------------------------------


def test_layouts_in_memory_do_not_matter():
    _, evaluator, gen = _made(**ONE)
    assert (_rows(evaluator(turned(gen))) == _rows(_result(**ONE))).all()


@pytest.mark.parametrize(
    ("devices", "batch"),
    [(1, 3), (4, 8), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(2, 2), (1, 8), (4, 4)])],
)
def test_neither_batches_nor_devices_matter(devices, batch):
    other = _result(mesh__devices=devices, eval__batch_size=batch)
    assert [row["name"] for row in other.examples] == [r["name"] for r in _result(**ONE).examples]
    np.testing.assert_allclose(_rows(other), _rows(_result(**ONE)), rtol=1e-6, atol=1e-6)


def test_nor_does_the_place_in_the_split():
    _, evaluator, gen = _made(**ONE)
    whole = {i: images.fake for i, images, _ in evaluator._translate(gen)}
    shown = {i: images.fake for i, images, _ in evaluator._translate(gen, evaluator._shown)}
    assert list(shown) == [0, 2, 4]
    assert all((whole[i] == shown[i]).all() for i in shown)


def test_dropout_is_the_noise_of_the_seed_and_can_be_turned_off():
    assert (_rows(_result(**ONE)) != _rows(_result(**ONE, seed=1))).any()
    off, other = (_result(**ONE, eval__dropout=False, seed=seed) for seed in (0, 1))
    assert (_rows(off) == _rows(other)).all()
    assert (_rows(off) != _rows(_result(**ONE))).any()


def test_the_averaged_weights():
    _, evaluator, gen = _made(**ONE)
    by_hand = evaluator({**gen, "params": gen["ema"]})
    assert _rows(_result(**ONE, eval__ema=True)).tolist() == _rows(by_hand).tolist()
    assert (_rows(by_hand) != _rows(_result(**ONE))).any()


def test_running_statistics_without_dropout_are_a_plain_network():
    changes = {"eval__dropout": False, "eval__norm_stats": "running"}
    experiment, _, gen = _made(**ONE, **changes)
    result = _result(**ONE, **changes)
    apply = jax.jit(lambda x: experiment.gan.generator.apply(
        {"params": gen["params"], "stats": gen["stats"]}, x, None, True))  # fmt: skip
    for i, row in enumerate(result.examples):
        pair = experiment.eval_frames[i]
        fake = np.asarray(apply(pair.source[None].astype(np.float32) / 127.5 - 1))[0]
        fake = np.clip(np.round((fake + 1) * 127.5), 0, 255)
        l1 = np.abs(fake - pair.target.astype(np.float64)).mean() / 255
        assert row["eval/l1"] == pytest.approx(l1, abs=1e-5)  # a rare rounding of one pixel
    assert (_rows(result) != _rows(_result(**ONE, eval__dropout=False))).any()


def test_fewer_metrics_and_examples():
    result = _result(**ONE, eval__metrics=("l1",), eval__examples=2)
    assert result.means.keys() == {"eval/l1"}
    whole = [{k: row[k] for k in ("name", "eval/l1")} for row in _result(**ONE).examples]
    assert result.examples == whole[:2]


def test_the_baseline_is_the_median_image():
    experiment, evaluator, _ = _made(**ONE)
    _result(**ONE)
    targets = np.stack([experiment.eval_frames[i].target for i in range(COUNT)]).astype(np.float64)
    constant = np.median(targets, axis=0)
    l1 = np.abs(targets - constant).mean() / 255
    error = np.square((targets - constant) / 255).mean((1, 2, 3))
    assert evaluator.baseline["eval/l1"] == pytest.approx(l1, rel=1e-5)
    assert evaluator.baseline["eval/psnr"] == pytest.approx(
        np.mean(-10 * np.log10(error)), rel=1e-5
    )
    assert _metrics()["baseline"] == pytest.approx(evaluator.baseline, rel=1e-5)


# --- images of several sizes ---------------------------------------------------------------------

# Out of order as far as canvases go: by 16s, the first and the third have one of 48x32.
SIZES = ((40, 32), (24, 60), (33, 20), (32, 64))


def _trees(path, sizes, kinds=(".png", ".png"), make=blocks):
    """Two trees of images, the same to train and to evaluate on; what is in them by (side, i)."""
    made = {}
    for k, side in enumerate("AB"):
        for split in ("train", "val"):
            (path / side / split).mkdir(parents=True)
            for i, size in enumerate(sizes):
                made[k, i] = image = make((k, i), size)
                pictures.save(path / side / split / f"{i}{kinds[k]}", image)
    return made


def _mixed(tmp_path, **changes):
    """(experiment, evaluation into tmp_path / 'out', what is stored) by the trained generator."""
    stored = changes.pop("stored", None) or _trees(tmp_path / "data", SIZES)
    values = {key.replace("__", "."): value for key, value in changes.items()}
    values |= {"data.source": "paired_folders", "data.path": str(tmp_path / "data")}
    values |= {"data.prepared_dir": str(tmp_path / "prepared"), "data.max_examples": 0}
    experiment = build(merge(saved_config(finished()[0]), values), lambda text: None, False)
    gen = jax.tree.map(np.asarray, _made(**ONE)[2])  # on whatever devices
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    return experiment, Evaluator(experiment)(gen, tmp_path / "out"), stored


def _read(path):
    return np.asarray(Image.open(path))


PAD = {"data__crop_size": (48, 64), "data__load_size": (36, 34)}
WIDTH = {"data__crop_size": (64, 32), "data__load_size": (36, 32)}


@pytest.mark.parametrize(
    ("mode", "changes"),
    [("crop", {}), *(pytest.param(*p, marks=pytest.mark.slow)
                     for p in (("pad", PAD), ("scale_width", WIDTH)))],
)  # fmt: skip
def test_pictures_come_back_in_the_size_they_are_stored_in(tmp_path, mode, changes):
    changes = changes | ONE | {"data__preprocess": mode, "eval__metrics": ("l1",)}
    _, result, stored = _mixed(tmp_path, **changes | {"eval__batch_size": 2})
    assert [row["name"] for row in result.examples] == ["0", "1", "2", "3"]
    for i, size in enumerate(SIZES):
        source, fake, target = (
            _read(tmp_path / "out" / kind / f"{i}.png") for kind in ("source", "images", "target")
        )
        assert source.shape == fake.shape == target.shape == (*size, 3)
        assert len(np.unique(fake.reshape(-1, 3), axis=0)) > size[0]
        if mode != "scale_width":  # nothing is resized
            assert (source == stored[0, i]).all() and (target == stored[1, i]).all()
            l1 = np.abs(fake.astype(float) - target).mean() / 255
            assert result.examples[i]["eval/l1"] == pytest.approx(l1, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "changes"), [("crop", {}), ("pad", PAD), ("scale_width", WIDTH)])
def test_sizes_leave_metrics_independent_of_batches(tmp_path, mode, changes):
    changes = changes | {"data__preprocess": mode}
    stored = _trees(tmp_path / "data", SIZES)
    _, one, _ = _mixed(tmp_path, stored=stored, **changes | ONE)
    kept = files(tmp_path / "out")
    for devices, batch in ((1, 3), (4, 8)):
        more = {"mesh__devices": devices, "eval__batch_size": batch}
        _, other, _ = _mixed(tmp_path, stored=stored, **changes | more)
        assert [row["name"] for row in other.examples] == [row["name"] for row in one.examples]
        np.testing.assert_allclose(_rows(other), _rows(one), rtol=1e-5, atol=1e-6)
        assert files(tmp_path / "out").keys() == kept.keys()


def test_an_image_without_a_structural_similarity_is_named(tmp_path):
    sizes = (*SIZES, (10, 32))
    stored = _trees(tmp_path / "data", sizes)
    with pytest.raises(DataError, match=r"1 of 5 images .* \(first 4: 10x32, height x width\)"):
        _mixed(tmp_path, stored=stored, **PAD | ONE | {"data__preprocess": "pad"})
    without = {"data__preprocess": "pad", "eval__metrics": ("l1",)}
    assert len(_mixed(tmp_path, stored=stored, **PAD | ONE | without)[1].examples) == 5


# --- what kinds of files ------------------------------------------------------------------------


def _fresh(tmp_path, **changes):
    """The evaluation of a generator as it begins, and where its pictures are."""
    values = {
        "data.source": "paired_folders", "data.path": str(tmp_path / "data"),
        "data.prepared_dir": str(tmp_path / "prepared"), "data.load_size": (32, 32),
        "data.max_examples": 0, "model.generator.depth": 2, "model.generator.dropout": (),
        "model.init_gain": 0.5,  # so that there is something to see
        "mesh.devices": 1, "eval.batch_size": 2, "eval.metrics": ("l1",),
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    config = merge(get_config(), values)
    assert validate(config) == []
    experiment = build(config, lambda text: None)
    state = quick_jit(lambda: init(experiment.gan, 0))()
    result = Evaluator(experiment)(checkpoint.split(state)["gen"], tmp_path / "out")
    assert [row["name"] for row in result.examples] == ["0", "1"]
    return result, tmp_path / "out"


def _deep(seed, size, channels=1):
    return np.random.default_rng(seed).integers(0, 4096, (*size, channels)).astype(np.uint16)


def test_grey_of_16_bits_gives_grey_of_16_bits(tmp_path):
    made = _trees(tmp_path / "data", [(32, 32)] * 2, make=_deep)
    result, out = _fresh(
        tmp_path, data__channels=(1, 1), data__target_range=(0.0, 4095.0), data__flip=False
    )
    for i in range(2):
        fake = _read(out / "images" / f"{i}.png")
        assert fake.dtype == np.uint16 and fake.shape == (32, 32)
        assert 255 < fake.max() <= 4095 and len(np.unique(fake)) > 256
        target = _read(out / "target" / f"{i}.png")
        assert target.dtype == np.uint8 and target.shape == (32, 32)
        assert np.abs(target - made[1, i][..., 0] / 4095 * 255).max() <= 0.51
        # The figures are those of the pictures.
        l1 = np.abs(np.rint(fake / 4095 * 255) - target).mean() / 255
        assert result.examples[i]["eval/l1"] == pytest.approx(l1, abs=1e-3)


def test_five_channels_come_as_arrays_beside_pictures_to_look_at(tmp_path):
    five = functools.partial(blocks, channels=5)
    _trees(tmp_path / "data", [(32, 32)] * 2, (".npy", ".npy"), five)
    _, out = _fresh(tmp_path, data__channels=(5, 5))
    for i in range(2):
        fake = np.load(out / "images" / f"{i}.npy")
        assert fake.shape == (32, 32, 5) and fake.dtype == np.uint8
        assert (_read(out / "images" / f"{i}.png") == fake[..., :3]).all()
        assert _read(out / "target" / f"{i}.png").shape == (32, 32, 3)
    assert sorted(p.name for p in (out / "target").iterdir()) == ["0.png", "1.png"]


def test_targets_that_are_classes_come_as_numbers_beside_their_colours(tmp_path):
    palette = np.array([[0, 0, 170], [255, 0, 0], [10, 200, 30]], np.uint8)

    def make(seed, size):
        return palette[blocks(seed, size)[..., 0] % 3] if seed[0] else blocks(seed, size)

    made = _trees(tmp_path / "data", [(32, 32)] * 2, make=make)
    _, out = _fresh(
        tmp_path, data__source="labels", data__labels="target",
        data__palette="#0000aa #ff0000 #0ac81e", loss__cross_entropy=1.0,
    )  # fmt: skip
    for i in range(2):
        numbers = _read(out / "classes" / f"{i}.png")
        assert numbers.dtype == np.uint8 and numbers.shape == (32, 32)
        assert set(np.unique(numbers)) <= {0, 1, 2}
        assert (palette[numbers] == _read(out / "images" / f"{i}.png")).all()
        assert (_read(out / "target" / f"{i}.png") == made[1, i]).all()
    assert not (out / "classes").joinpath("0.npy").exists()


def test_photos_without_targets_are_translated_by_a_trained_run(tmp_path, capsys):
    workdir, photos = tmp_path / "run", tmp_path / "photos"
    shutil.copytree(finished()[0], workdir)
    before = files(workdir)
    for name in ("a", "sub/b"):
        pictures.save(photos / f"{name}.png", blocks(len(name), (32, 32)))
    flags = ["--config.data.source=single", f"--config.data.path={photos}"]
    flags += [f"--config.data.prepared_dir={tmp_path / 'prepared'}", "--config.mesh.devices=1"]
    assert main(["--mode=eval", f"--workdir={workdir}", *flags]) == 0
    capsys.readouterr()
    after = files(workdir)
    assert {name: after[name] for name in before} == before
    out = workdir / "eval" / "single" / str(STEPS)
    new = {str((workdir / name).relative_to(out)) for name in set(after) - set(before)}
    names = [f"{kind}/{name}.png" for kind in ("source", "images") for name in ("a", "sub/b")]
    assert new == {"index.html", "metrics.json", *names}
    assert (_read(out / "source" / "sub" / "b.png") == blocks(5, (32, 32))).all()
    assert len(np.unique(_read(out / "images" / "a.png"))) > 10
    metrics = json.loads((out / "metrics.json").read_text())
    assert not any(name.startswith("eval/") for name in metrics)
    assert metrics["per_example"] == [{"name": "a"}, {"name": "sub/b"}]
    page = (out / "index.html").read_text()
    assert "repeat(2, 1fr)" in page and "target" not in page.partition("<main")[2]


# --- what it leaves ------------------------------------------------------------------------------


def test_the_means_are_those_of_the_examples():
    metrics = _metrics()
    rows = metrics["per_example"]
    assert len(rows) == metrics["examples"] == COUNT and metrics["step"] == STEPS
    for name in ("eval/l1", "eval/psnr", "eval/ssim"):
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-12)
    assert metrics["better"] == {"eval/l1": "min", "eval/psnr": "max", "eval/ssim": "max"}
    switches = {name: metrics[name] for name in ("split", "norm_stats", "dropout", "ema")}
    assert switches == {"split": "val", "norm_stats": "batch", "dropout": True, "ema": False}


def test_every_picture_lies_under_its_own_name():
    source = _made(**ONE)[0].eval_frames
    rows = {row["name"]: row for row in _metrics()["per_example"]}
    assert list(rows) == list(source.names)
    for kind in ("source", "images", "target"):
        assert {p.stem for p in (_folder() / kind).iterdir()} == set(rows)
    for i, (name, row) in enumerate(rows.items()):
        assert (_picture("source", name) == source[i].source).all()
        assert (_picture("target", name) == source[i].target).all()
        # The figures are those of the very pictures.
        fake, target = (_picture(k, name).astype(np.float64) for k in ("images", "target"))
        assert row["eval/l1"] == pytest.approx(np.abs(fake - target).mean() / 255, rel=1e-5)
        psnr = -10 * np.log10(np.square((fake - target) / 255).mean())
        assert row["eval/psnr"] == pytest.approx(psnr, rel=1e-5)
    page = (_folder() / "index.html").read_text()
    assert all(f"images/{name}.png" in page for name in rows)


def test_the_log_has_the_same_figures():
    lines = [row for row in report.read(finished()[0]) if row["split"] == "val"]
    assert [row["step"] for row in lines] == [0, 7, STEPS]
    metrics = _metrics()
    for name in ("eval/l1", "eval/psnr", "eval/ssim"):
        assert lines[-1][name] == metrics[name]
    assert len({row["eval/l1"] for row in lines}) == 3


def test_the_grid_is_a_row_of_three_for_each_fixed_pair():
    experiment, evaluator, gen = _made(**ONE)
    grid = evaluator.grid(gen)
    side = 3 * SIZE + 2 * 4
    assert grid.shape == (SHOWN * SIZE + (SHOWN - 1) * 4, side, 3) and grid.dtype == np.uint8
    for row, i in enumerate((0, 2, 4)):
        top = row * (SIZE + 4)
        assert (grid[top : top + SIZE, :SIZE] == experiment.eval_frames[i].source).all()
        assert (grid[top : top + SIZE, -SIZE:] == experiment.eval_frames[i].target).all()
    with Image.open(finished()[0] / "samples" / f"{STEPS}.png") as saved:
        assert saved.size == grid.shape[1::-1]


@pytest.mark.slow
def test_evaluating_afterwards_gives_the_same_to_the_bit(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    wanted = files(workdir / "eval")
    shutil.rmtree(workdir / "eval")
    ran = start("--mode=eval", f"--workdir={workdir}")
    assert ran.returncode == 0, ran.stderr
    assert f"step {STEPS}" in ran.stdout
    assert files(workdir / "eval") == wanted
