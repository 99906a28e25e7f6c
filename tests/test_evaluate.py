"""Evaluation: the same whatever the batch, the devices and the place, and all of it on disk."""

from __future__ import annotations

import copy
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import quick_jit, turned
from PIL import Image
from running import STEPS, blocks, files, finished, get_config, start

from p2p_jax import checkpoint, inference, pictures, report
from p2p_jax.build import build
from p2p_jax.config import merge
from p2p_jax.console import Console
from p2p_jax.data import SOURCES, DataError
from p2p_jax.data.labels import Labels, to_indices
from p2p_jax.distances import frechet
from p2p_jax.evaluate import Evaluator, eval_folder, identity
from p2p_jax.flags import saved_config
from p2p_jax.images import resize
from p2p_jax.main import main
from p2p_jax.networks import make_gan
from p2p_jax.scores import Judge, Judges
from p2p_jax.state import init
from p2p_jax.validate import resolved, validate

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
    result, out = _fresh(
        tmp_path, data__source="labels", data__task="labels", data__labels="target",
        data__palette="#0000aa #ff0000 #0ac81e", loss__cross_entropy=1.0,
        eval__metrics=("l1", "iou"),
    )  # fmt: skip
    for i in range(2):
        numbers = _read(out / "classes" / f"{i}.png")
        assert numbers.dtype == np.uint8 and numbers.shape == (32, 32)
        assert set(np.unique(numbers)) <= {0, 1, 2}
        same = (palette[numbers] == made[1, i]).all(-1).mean()
        assert result.examples[i]["eval/pixel_accuracy"] == pytest.approx(same)
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
    assert '"heads":["source","output"]' in page


# --- figures of the whole -----------------------------------------------------------------------

PALETTE = "#0000aa #ff0000 #0ac81e"
COLOURS = np.array([[0, 0, 170], [255, 0, 0], [10, 200, 30]], np.uint8)
ALL = ("l1", "lab", "iou", "fcn")


def _coloured(seed, size):
    return COLOURS[blocks(seed, size)[..., 0] % 3]


def _segmenter(folder):
    """The folder of a run from photos to classes, as it begins."""
    config = merge(get_config(), {
        "data.source": "labels", "data.task": "labels", "data.labels": "target",
        "data.path": "elsewhere", "data.palette": PALETTE, "data.load_size": (18, 18),
        "data.crop_size": (16, 16), "model.generator.depth": 2, "model.generator.dropout": (),
        "model.init_gain": 0.5, "train.ema_decay": 0.0,
    })  # fmt: skip
    report.write_json(folder / "config.json", resolved(config).to_dict())
    state = quick_jit(lambda: init(make_gan(config), 3))()._replace(step=np.int32(7))
    manager = checkpoint.open_manager(folder, 2, lambda: None)
    checkpoint.save(manager, state, {}, None)
    checkpoint.close(manager)
    return folder


@functools.cache
def _judged(tmp_path, devices, batch, sizes=((32, 32),) * 5, **changes):
    """An evaluation by all that looks at the whole, of pairs of label maps."""
    if not (tmp_path / "data").exists():
        _trees(tmp_path / "data", sizes, make=_coloured)
        _segmenter(tmp_path / "segmenter")
    values = {
        "data.source": "paired_folders", "data.path": str(tmp_path / "data"),
        "data.prepared_dir": str(tmp_path / "prepared"), "data.load_size": (32, 32),
        "data.max_examples": 0, "data.palette": PALETTE, "model.generator.depth": 2,
        "model.generator.dropout": (1,), "model.init_gain": 0.5, "mesh.devices": devices,
        "eval.batch_size": batch, "eval.metrics": ALL, "eval.examples": 0, "eval.bootstrap": 40,
        "eval.segmenter": str(tmp_path / "segmenter"), "train.batch_size": 4,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    config = merge(get_config(), values)
    assert validate(config) == []
    experiment = build(config, lambda text: None)
    evaluator = Evaluator(experiment, warn=pytest.fail)
    state = quick_jit(lambda: init(experiment.gan, 0))()
    gen = jax.tree.map(np.asarray, checkpoint.split(state)["gen"])
    return experiment, evaluator, evaluator(gen, tmp_path / f"out{devices}{batch}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("judged")


def _same(one, other):
    for found, wanted in ((other.means, one.means), (other.real, one.real)):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert other.intervals.keys() == one.intervals.keys()
    for name, ends in one.intervals.items():
        assert other.intervals[name] == pytest.approx(ends, rel=1e-6, abs=1e-6)
    for found, wanted in zip(other.examples, one.examples, strict=True):
        assert found.pop("name") == wanted.pop("name") and found.keys() == wanted.keys()
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_figures_of_the_whole_do_not_depend_on_batches_or_devices(place):
    _, _, one = _judged(place, 1, 1)
    assert {"eval/lab_l", "eval/mean_iou", "eval/fcn_mean_iou"} <= one.means.keys()
    for devices, batch in ((1, 3), (4, 4)):
        other = _judged(place, devices, batch)[2]
        _same(copy.deepcopy(one), copy.deepcopy(other))


@pytest.mark.slow
def test_classes_are_those_of_the_nearest_colours_of_the_pictures(place):
    experiment, evaluator, result = _judged(place, 1, 1)
    labels = Labels(tuple(map(tuple, COLOURS.tolist())), 3, 255)
    confused = np.zeros((3, 3))
    for row in result.examples:
        fake, target = (
            to_indices(_read(place / "out11" / kind / f"{row['name']}.png"), labels)
            for kind in ("images", "target")
        )
        np.add.at(confused, (target.reshape(-1), fake.reshape(-1)), 1)
        assert row["eval/pixel_accuracy"] == pytest.approx((fake == target).mean())
    right, wanted, given = np.diag(confused), confused.sum(1), confused.sum(0)
    iou = right / (wanted + given - right)
    assert result.means["eval/pixel_accuracy"] == pytest.approx(right.sum() / confused.sum())
    assert result.means["eval/mean_iou"] == pytest.approx(iou.mean())
    assert result.means["eval/iou/#ff0000"] == pytest.approx(iou[1])
    assert result.means["eval/class_accuracy"] == pytest.approx((right / wanted).mean())
    # The best constant label map has in each pixel the class that most targets have.
    targets = np.stack([to_indices(experiment.eval_frames[i].target, labels) for i in range(5)])
    most = np.stack([(targets == k).sum(0) for k in range(3)]).max(0)
    assert evaluator.baseline["eval/pixel_accuracy"] == pytest.approx(most.mean() / 5)


@pytest.mark.slow
def test_a_segmenter_of_this_framework_judges_photos(place):
    """By hand: resized, translated to classes, and compared with the source's classes."""
    _, evaluator, result = _judged(place, 1, 1)
    run = inference.restore(place / "segmenter")
    labels = Labels(tuple(map(tuple, COLOURS.tolist())), 3, 255)
    assert run.step == 7

    def accuracy(kind):
        right = []
        for row in result.examples:
            photo, source = (
                _read(place / "out11" / k / f"{row['name']}.png") for k in (kind, "source")
            )
            small = resize(np.asarray(photo, np.float32)[None], (16, 16))
            made = run.gan.generator.apply(
                {"params": run.params, "stats": run.stats}, small / 127.5 - 1, None, False
            )
            wanted = to_indices(source, labels)[1::2, 1::2, 0]  # nearest: centres lie on edges
            right.append(np.asarray(made).argmax(-1)[0] == wanted)
        return np.mean(right)

    assert result.means["eval/fcn_pixel_accuracy"] == pytest.approx(accuracy("images"), abs=2e-3)
    assert result.real["eval/fcn_pixel_accuracy"] == pytest.approx(accuracy("target"), abs=2e-3)
    assert "segmenter" in evaluator.measures.about(5)["eval/fcn_mean_iou"]
    assert evaluator.measures.identity["segmenter"].endswith("at step 7")


@pytest.mark.slow
def test_networks_of_others_judge_what_was_made(place, monkeypatch):
    """With a network that averages blocks in the place of Inception."""

    def features(params, images):
        blocks = images.reshape(len(images), 2, images.shape[1] // 2, 2, -1, 3)
        return params * blocks.mean((2, 4)).reshape(len(images), -1)

    loaded = []

    def load(*files):
        loaded.append(files)
        return Judges(Judge(np.full((1, 1), 3, np.float32), "weights.pth (sha256 0123)"))

    monkeypatch.setattr("p2p_jax.scores.inception.features", features)
    monkeypatch.setattr("p2p_jax.build.load_judges", load)
    (place / "weights.pth").write_bytes(b"")
    changes = {"eval__metrics": ("l1", "fid", "kid"), "eval__inception": str(place / "weights.pth")}
    _, evaluator, one = _judged(place, 1, 1, **changes)
    assert loaded == [(str(place / "weights.pth"), "", "", "alex")]
    rows = [np.stack([_read(place / "out11" / kind / f"{i}.png") for i in range(5)]) / 255
            for kind in ("images", "target")]  # fmt: skip
    made, real = (np.asarray(features(3, x)).astype(np.float64) for x in rows)
    assert one.means["eval/fid"] == pytest.approx(frechet(made, real), rel=1e-4)
    assert {"eval/kid", "eval/kid_se"} <= one.means.keys()
    assert one.intervals.keys() == {"eval/l1"} == set(one.examples[0]) - {"name"}
    assert evaluator.baseline.keys() == {"eval/l1"}
    about = evaluator.measures.about(5)
    for name in ("eval/fid", "eval/kid"):
        assert "weights.pth (sha256 0123)" in about[name] and "5 outputs" in about[name]
    assert evaluator.measures.identity == {"inception": "weights.pth (sha256 0123)"}
    other = _judged(place, 4, 4, **changes)[2]
    assert other.means == pytest.approx(one.means, rel=1e-4)


@pytest.mark.slow
def test_images_of_several_sizes_are_judged_alike(tmp_path):
    sizes = ((40, 32), (24, 60), (33, 20), (32, 64), (40, 32))
    changes = {"data__preprocess": "pad", "data__crop_size": (48, 64), "data__load_size": (36, 34)}
    one = _judged(tmp_path, 1, 1, sizes, **changes)[2]
    assert one.real and one.means["eval/pixel_accuracy"] > 0
    _same(copy.deepcopy(one), copy.deepcopy(_judged(tmp_path, 2, 4, sizes, **changes)[2]))


@pytest.mark.slow
def test_seeds_of_dropout_are_averaged_and_their_spread_is_told():
    one = [_result(**ONE, seed=seed) for seed in (0, 1)]
    both = _result(**ONE, eval__seeds=2)
    for name, mean in both.means.items():
        values = [result.means[name] for result in one]
        assert mean == pytest.approx(np.mean(values), rel=1e-9)
        assert both.spread[name] == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    np.testing.assert_allclose(_rows(both), np.mean([_rows(r) for r in one], 0), rtol=1e-9)
    assert one[0].spread == {}


def test_intervals_hold_the_means_and_are_the_same_each_time():
    one = _result(**ONE)
    assert one.intervals.keys() == one.means.keys()
    values = np.array([row["eval/l1"] for row in one.examples])
    low, high = one.intervals["eval/l1"]
    assert values.min() <= low < one.means["eval/l1"] < high <= values.max()
    evaluator, gen = _made(**ONE)[1:]
    assert (
        evaluator(gen).intervals
        == one.intervals
        == {name: tuple(ends) for name, ends in _metrics()["intervals"].items()}
    )
    assert _result(**ONE, eval__bootstrap=0).intervals == {}


def test_figures_found_before_are_not_overwritten_by_fewer(tmp_path):
    experiment, evaluator, _ = _made(**ONE)
    folder = tmp_path / "eval" / "val" / "3"
    assert eval_folder(tmp_path, experiment, evaluator, 3) == folder
    found = {k: v for k, v in identity(experiment, evaluator).items() if v is not None}
    for better, name in (({"eval/l1": "min"}, "3"), ({"eval/fid": "min"}, "3_2")):
        report.write_json(folder / "metrics.json", found | {"better": better})
        assert eval_folder(tmp_path, experiment, evaluator, 3).name == name
    report.write_json(folder / "metrics.json", found | {"better": {}, "seeds": 3})
    assert eval_folder(tmp_path, experiment, evaluator, 3).name == "3_2"


def test_the_console_is_told_in_short(capsys):
    figures = {"eval/l1": 0.2, "eval/fcn_mean_iou": 0.5, "eval/iou/#0000aa": 0.25}
    figures |= {"eval/iou/#ff0000": 0.75, "eval/fid": 60.0}
    Console().evaluation(
        3, "val", 50, figures, {"eval/l1": 0.3}, "copy",
        intervals={"eval/l1": (0.19, 0.21)}, spread={"eval/l1": 0.001},
        real={"eval/fcn_mean_iou": 0.8}, about={"eval/fid": "FID: weights.pth, 50 outputs"},
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "evaluation at step 3: val, 50 examples",
        "  l1            0.2       (copy: 0.3)  [0.19, 0.21]  ±0.001 over seeds",
        "  fcn_mean_iou  0.5       (real photos: 0.8)",
        "  fid           60        (copy: -)",
        "  iou: #0000aa 0.25, #ff0000 0.75",
        "  fid: FID: weights.pth, 50 outputs",
    ]


def test_no_image_is_an_error(monkeypatch):
    opened = SOURCES["synthetic"].open

    def empty(options, log):
        splits = opened(options, log)
        return splits._replace(eval=type("Empty", (), {"__len__": lambda self: 0})())

    monkeypatch.setitem(SOURCES, "synthetic", SOURCES["synthetic"]._replace(open=empty))
    with pytest.raises(DataError, match=r"data\.eval_split: 'val' holds no image to evaluate"):
        build(get_config(), lambda text: None)


@pytest.mark.parametrize(("name", "least"), [("fid", 2), ("kid", 4)])
def test_too_few_images_for_a_distribution_are_an_error(name, least):
    config = merge(get_config(), {"eval.metrics": ("l1", name), "eval.examples": least - 1})
    with pytest.raises(DataError, match=f"{name} needs at least {least} images to evaluate"):
        build(config, lambda text: None)


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
