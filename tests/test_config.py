"""The config: every key is read, checked, kept in its type, and compared on resume."""

from __future__ import annotations

import inspect
import math
import re

import pytest
from running import ROOT, finished, get_config

from p2p_jax import build, data, networks, report
from p2p_jax.config import ConfigError, base, coerce, field_changes, flatten, merge
from p2p_jax.data import PREPROCESS, DataOptions
from p2p_jax.figures import directions
from p2p_jax.flags import parse, saved_config
from p2p_jax.models.norms import NORMS
from p2p_jax.models.options import DiscriminatorOptions, GeneratorOptions
from p2p_jax.objectives import HYPER, RATES
from p2p_jax.tasks import TASKS
from p2p_jax.validate import data_options, fit, resolved, validate

SOURCES = sorted((ROOT / "p2p_jax").rglob("*.py"))


def _problems(**values):
    return validate(merge(get_config(), {k.replace("__", "."): v for k, v in values.items()}))


def _one(**values):
    (problem,) = _problems(**values)
    return problem


# --- keys ----------------------------------------------------------------------------------------


def _read_somewhere(key):
    """Whether `build`, `networks`, `data_options`, the flags, data or a network reads the key."""
    path, _, leaf = key.rpartition(".")
    last = path.rpartition(".")[2]
    if key.startswith("loss.") and leaf in HYPER:
        return True
    if leaf == "lr" and f"{last}_lr" in RATES:
        return True
    readers = inspect.getsource(build) + inspect.getsource(networks)
    readers += inspect.getsource(data_options) + inspect.getsource(fit)
    readers += (ROOT / "p2p_jax" / "flags.py").read_text()
    forms = [rf"\b{re.escape(key)}\b", rf"\bconfig\.{re.escape(key)}\b"]
    if last:
        forms += [rf"\b{last}\.{leaf}\b", rf"\b{last}(\"\])?\[\"{leaf}\"\]"]
    options = {"generator": GeneratorOptions, "discriminator": DiscriminatorOptions}.get(last)
    if options:
        # What `networks` hands on by field names is read by a network; the rest by `networks`.
        if leaf in options.__dataclass_fields__ and leaf != "name":
            readers = "".join(p.read_text() for p in SOURCES if p.parent.name == "models")
        else:
            readers = inspect.getsource(networks)
        forms = [rf"\b(options|chosen|section)\.{leaf}\b"]
    handed_on = last == "data" and leaf in DataOptions.__dataclass_fields__
    if handed_on and leaf not in ("palette", "labels"):  # `data_options` does, by field names
        readers += "".join(p.read_text() for p in SOURCES if p.parent.name == "data")
        forms += [rf"\boptions\.{leaf}\b"]
    return any(re.search(form, readers) for form in forms)


@pytest.mark.parametrize("key", flatten(base()))
def test_no_key_is_without_use(key):
    assert _read_somewhere(key), key


def test_a_key_without_use_would_be_noticed():
    assert not _read_somewhere("train.on_inf")
    assert not _read_somewhere("model.generator.width")
    assert not _read_somewhere("model.norm_epsilon")
    assert not _read_somewhere("model.discriminator.depth")
    assert not _read_somewhere("data.canny_low")


@pytest.mark.parametrize(("options", "where"), [
    (build.TrainOptions, ("train", "begin", "early")),
    (build.EvalOptions, ("evaluate", "measures")),
])  # fmt: skip
def test_what_build_hands_on_is_used(options, where):
    text = "".join((ROOT / "p2p_jax" / f"{name}.py").read_text() for name in where)
    unused = [f for f in options.__dataclass_fields__
              if not re.search(rf"\b(options|eval|train)\.{f}\b", text)]  # fmt: skip
    assert unused == []


def test_flatten_and_merge_are_inverse():
    assert flatten(merge(base(), flatten(get_config()))) == flatten(get_config())


def test_merge_leaves_its_argument_alone():
    before = base()
    merged = merge(before, {"train.steps": 7})
    assert merged.train.steps == 7 and before.train.steps == 0


def test_merge_tells_all_problems():
    with pytest.raises(ConfigError) as caught:
        merge(base(), {"train.stesp": 1, "seed": "x", "optim.gen.lr": "fast"})
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0] == "train.stesp: no such key; did you mean train.steps?"


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "like", "want"),
    [
        (3, 1, 3),
        (3, 1.5, 3.0),
        (2.5, 1.0, 2.5),
        ("a", "", "a"),
        (True, False, True),
        ([1, 2], (5, 6), (1, 2)),
        ((1, 2), (5, 6), (1, 2)),
        (64, (5, 6), (64, 64)),
        (4, (), (4,)),
        (2, (1, 2, 3), (2,)),
        ([], (1, 2, 3), ()),
        ([4, 8], (), (4, 8)),
        (["l1"], ("l1", "psnr"), ("l1",)),
    ],
)
def test_coerce(value, like, want):
    got = coerce("a.b", value, like)
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    ("value", "like"),
    [
        ("4", 1), (2.0, 1), (True, 1), (None, 1), ([1], 1),
        ("4", 1.0), (True, 1.0), (None, 1.0),
        (1, "a"), (None, "a"), (("a",), "a"),
        (1, True), ("True", True),
        ("1,2", (1, 2)), ([1.5, 2], (1, 2)), (["a", 2], (1, 2)), (True, (1, 2)),
        ([1], ("l1",)), ("l1", ("l1",)),
    ],
)  # fmt: skip
def test_coerce_refuses_other_types(value, like):
    with pytest.raises(ConfigError) as caught:
        coerce("a.b", value, like)
    (problem,) = caught.value.problems
    assert problem.startswith(f"a.b: {value!r} ")


def test_a_config_survives_json(tmp_path):
    wanted = merge(get_config(), {"model.generator.features": (4, 8, 8, 8), "seed": 2**32 - 1,
                                  "eval.metrics": ("l1",), "model.generator.dropout": (),
                                  "optim.gen.lr": 1e-17, "data.path": "näme \"x\""})  # fmt: skip
    report.write_json(tmp_path / "config.json", wanted.to_dict())
    _assert_same(saved_config(tmp_path), wanted)


def test_the_config_that_a_run_saved_is_the_one_that_ran():
    """With the task said, which was left to the source."""
    assert get_config().data.task == "auto"
    _assert_same(saved_config(finished()[0]), merge(get_config(), {"data.task": "translate"}))


def _assert_same(got, want):
    got, want = flatten(got), flatten(want)
    assert got == want
    assert {k: _types(v) for k, v in got.items()} == {k: _types(v) for k, v in want.items()}


def _types(value):
    return (tuple, *map(type, value)) if isinstance(value, tuple) else type(value)


def test_a_key_that_an_older_version_did_not_save_has_its_default(tmp_path):
    values = get_config().to_dict()
    del values["train"]["keep"]
    report.write_json(tmp_path / "config.json", values)
    _assert_same(saved_config(tmp_path), get_config())


def test_a_saved_config_of_other_keys_is_refused(tmp_path):
    values = get_config().to_dict()
    values["train"]["kep"] = 2
    values["seed"] = "zero"
    report.write_json(tmp_path / "config.json", values)
    with pytest.raises(ConfigError) as caught:
        saved_config(tmp_path)
    text = str(caught.value)
    assert "train.kep: no such key; did you mean train.keep?" in text
    assert "seed: 'zero'" in text and text.count(str(tmp_path / "config.json")) == 2


# --- values --------------------------------------------------------------------------------------


def test_the_tiny_config_has_no_problem():
    assert _problems() == []


@pytest.mark.parametrize(
    ("key", "value", "hints"),
    [
        ("model.generator.name", "unett", ["did you mean 'unet'?", "unet_upsample"]),
        ("model.discriminator.name", "patchgam", ["did you mean 'patchgan'?"]),
        ("model.generator.norm", "instence", ["did you mean 'instance'?", *NORMS]),
        ("model.discriminator.norm", "batchnorm", ["did you mean 'batch'?", *NORMS]),
        ("model.generator.norm", "spectral", [*NORMS]),
        ("model.generator.norm_group", -1, ["0 (the whole batch) or more"]),
        ("model.discriminator.norm_group", -1, ["0 (the whole batch) or more"]),
        ("model.norm_eps", 0.0, ["above 0"]),
        ("model.norm_momentum", 1.0, ["in [0, 1)"]),
        ("model.norm_scale_std", -0.1, ["0 or more"]),
        ("model.generator.bias", "none", ["auto, all, first, last, ends, unnormed"]),
        ("model.generator.upsample", "bilinaer", ["did you mean 'bilinear'?", "pixel_shuffle"]),
        ("model.generator.innermost_norm", "maybe", ["auto, yes, no"]),
        ("model.generator.skip_activation", "elu", ["auto, relu, leaky"]),
        ("model.generator.slope", 1.5, ["in [0, 1]"]),
        ("model.generator.noise", -1, ["0 (none) or more"]),
        ("model.generator.blocks", 0, ["1 or more"]),
        ("model.init", "xavir", ["did you mean 'xavier'?", "orthogonal"]),
        ("model.init_gain", 0.0, ["above 0"]),
        ("model.discriminator.scales", 0, ["in [1, 8]"]),
        ("data.task", "colorise", ["did you mean 'colorize'?"]),
        ("data.resize", "bicubics", ["did you mean 'bicubic'?"]),
        ("data.channels", (3, 0), ["(source, target), both above 0"]),
        ("data.task", "inpant", ["did you mean 'inpaint'?", *TASKS]),
        ("data.preprocess", "scale_widht", ["did you mean 'scale_width'?", *PREPROCESS]),
        ("data.on_error", "skip", ["fail, substitute"]),
        ("data.cache", "devise", ["did you mean 'device'?", "none, host, device"]),
        ("data.alpha", "whit", ["did you mean 'white'?", "refuse, drop, white, black, keep"]),
        ("data.labels", "sources", ["did you mean 'source'?", "target, both"]),
        ("data.source_range", (1.0, 0.0), ["(low, high), or 0,0 for all that"]),
        ("data.source_range", (5.0, 5.0), ["(low, high)"]),
        ("data.target_range", (0.0, 1.0, 2.0), ["(low, high)"]),
        ("data.canny", (200, 100), ["(low, high) from 0"]),
        ("data.canny", (-1, 100), ["(low, high) from 0"]),
        ("data.canny", (1, 2, 3), ["(low, high) from 0"]),
        ("data.classes", -1, ["0 (as in data.palette) to 1024"]),
        ("data.classes", 1025, ["0 (as in data.palette) to 1024"]),
        ("data.label_tolerance", 256, ["in [0, 255]"]),
        ("data.hole", 0.0, ["in (0, 1)"]),
        ("data.hole", 1.0, ["in (0, 1)"]),
        ("data.cache_share", 0.0, ["in (0, 1]"]),
        ("data.cache_share", 1.5, ["in (0, 1]"]),
        ("data.brightness", -0.1, ["in [0, 1]"]),
        ("data.contrast", 1.1, ["in [0, 1]"]),
        ("data.saturation", 2.0, ["in [0, 1]"]),
        ("loss.gradient_penalty", -1.0, ["0 or more"]),
        ("loss.ssim", -1.0, ["0 or more"]),
        ("optim.decay_every", 0.0, ["in (0, 1]"]),
        ("optim.decay_factor", 1.5, ["in (0, 1]"]),
        ("optim.patience", -1, ["0 or more"]),
        ("optim.warmup_steps", -1, ["0 (none) or more"]),
        ("optim.batch_scaling", "liner", ["did you mean 'linear'?"]),
        ("train.init_nets", "generators", ["did you mean 'generator'?"]),
        ("data.direction", "BtoB", ["AtoB, BtoA"]),
        ("data.source", "synthetik", ["did you mean 'synthetic'?"]),
        ("data.cache", "hots", ["did you mean 'host'?"]),
        ("optim.schedule", "liner", ["did you mean 'linear'?"]),
        ("train.precision", "float23", ["did you mean 'float32'?", "bfloat16"]),
        ("loss.adversarial", "vanila", ["did you mean 'vanilla'?"]),
        ("eval.norm_stats", "runing", ["did you mean 'running'?"]),
        ("train.steps", -1, ["0 (train.epochs counts) or more"]),
        ("train.batch_size", 0, ["1 or more"]),
        ("train.keep", 1, ["2 or more"]),
        ("train.ema_decay", 1.0, ["in [0, 1)"]),
        ("train.log_every", 0, ["1 or more"]),
        ("optim.gen.b1", 1.0, ["in [0, 1)"]),
        ("optim.disc.lr", -1e-3, ["0 or more"]),
        ("data.crop_size", (0, 32), ["(height, width), both above 0"]),
        ("data.load_size", (40, 40, 40), ["(height, width), both above 0"]),
        ("seed", 2**32, ["in [0, 2**32)"]),
        ("eval.metrics", (), ["at least one"]),
        ("eval.bootstrap", -1, ["0 (no intervals)"]),
        ("eval.seeds", 0, ["in [1, 100]"]),
        ("eval.kid_subset", 1, ["2 or more"]),
        ("eval.kid_subsets", 1, ["2 or more"]),
        ("eval.lpips_backbone", "alxe", ["did you mean 'alex'?"]),
        ("train.early_stop", -1, ["0 (never) or more"]),
    ],
)
def test_a_value_that_is_not_allowed(key, value, hints):
    problem = next(p for p in _problems(**{key.replace(".", "__"): value}) if p.startswith(key))
    assert repr(value) in problem
    assert all(hint in problem for hint in hints), problem


@pytest.mark.parametrize(
    ("key", "value"),
    [("source_range", (0.0, 0.0)), ("source_range", (-1.0, 1.0)), ("target_range", (0.0, 4095.0)),
     ("canny", (0, 0)), ("canny", (50, 50)), ("hole", 0.99), ("cache_share", 1.0),
     ("label_tolerance", 255), ("brightness", 1.0), ("rotate", True), ("flip_vertical", True),
     ("on_error", "substitute"), ("cache", "device"), ("alpha", "keep")],
)  # fmt: skip
def test_values_at_the_edge_of_what_is_allowed(key, value):
    assert _problems(**{f"data__{key}": value}) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(value):
    assert any("optim.gen.lr" in p for p in _problems(optim__gen__lr=value))
    assert any("loss.l1" in p for p in _problems(loss__l1=value))


def test_an_unknown_metric_is_named_once_more_for_the_best():
    problems = _problems(eval__metrics=("l1", "sim"))
    assert "did you mean 'ssim'?" in problems[0]
    assert any("train.best" in p for p in _problems(eval__metrics=("psnr",)))


def _evaluated(**values):
    """Problems of the photo-sized config with such keys."""
    common = {"data__crop_size": (256, 256), "data__load_size": (256, 256)}
    found = _problems(**common | {f"eval__{k}": v for k, v in values.items()})
    return [p for p in found if "synthetic pairs" not in p]


def test_figures_need_what_they_are_made_with(tmp_path):
    (one,) = _evaluated(metrics=("l1", "fid", "kid"))
    assert one.startswith("eval.inception: needed for fid, kid in eval.metrics")
    (one,) = _evaluated(metrics=("l1", "fid"), inception="/nowhere/at/all.pth")
    assert one.startswith("eval.inception: '/nowhere/at/all.pth' is not a file; fid")
    assert [p.split(":")[0] for p in _evaluated(metrics=("l1", "lpips"))] == [
        "eval.lpips", "eval.lpips_network",
    ]  # fmt: skip
    for name in ("weights.pth", "lin.pth"):
        (tmp_path / name).write_bytes(b"")
    files = {"lpips": str(tmp_path / "lin.pth"), "lpips_network": str(tmp_path / "weights.pth")}
    assert _evaluated(metrics=("l1", "lpips"), **files) == []
    (one,) = _evaluated(metrics=("l1", "iou"))
    assert one.startswith("eval.metrics: iou needs to know classes")
    (one,) = _evaluated(metrics=("l1", "fcn"))
    assert one.startswith("eval.segmenter: needed for fcn")
    (one,) = _evaluated(metrics=("l1", "fcn"), segmenter=str(tmp_path))
    assert "holds no config.json" in one
    report.write_json(tmp_path / "config.json", get_config().to_dict())
    (one,) = _evaluated(metrics=("l1", "fcn"), segmenter=str(tmp_path))
    assert "is not a run from photos to class labels" in one
    labels = {"task": "labels", "labels": "target"}
    report.write_json(tmp_path / "config.json", {"data": labels})
    assert _evaluated(metrics=("l1", "fcn"), segmenter=str(tmp_path)) == []


def test_all_that_figures_lack_is_told_at_once():
    problems = _problems(eval__metrics=("fid", "lpips", "iou", "fcn", "ms_ssim", "sim"))
    text = "\n".join(problems)
    for start in ("eval.inception:", "eval.lpips:", "eval.lpips_network:", "eval.segmenter:",
                  "eval.metrics: iou", "eval.metrics: 'sim'", "train.best: 'l1'"):  # fmt: skip
        assert start in text


def test_classes_are_named_by_colours_or_by_the_task():
    named = {"eval__metrics": ("l1", "iou"), "data__palette": "#0000aa #ff0000"}
    assert _problems(**named) == []
    assert _one(**named | {"data__palette": "#0000aa #xyz"}).startswith("data.palette: entry 1")
    assert "of 3 channels" in _one(**named, data__channels=(3, 4))
    assert "iou compares classes" in _one(**named, data__task="grey")


def test_figures_of_colours_need_colours():
    assert "lab judge colours or grey" in _one(eval__metrics=("l1", "lab"), data__channels=(3, 5))
    assert _problems(eval__metrics=("l1", "lab")) == []


def test_images_too_small_for_several_scales():
    problem = _one(eval__metrics=("l1", "ms_ssim"))
    assert problem.startswith("eval.metrics: ms_ssim needs at least 1")
    assert _evaluated(metrics=("l1", "ms_ssim")) == []


def test_the_best_is_one_of_the_figures():
    assert _problems(train__best="lab_a", eval__metrics=("lab", "l1")) == []
    problem = _one(train__best="mean_iou")
    assert problem.startswith("train.best: 'mean_iou' is not known without iou in eval.metrics")
    assert "did you mean 'lab_l'?" in _one(train__best="labl")
    for figure, mode in {"fid": "min", "lab_l": "max", "fcn_mean_iou": "max"}.items():
        assert directions(("fid", "lab", "fcn"))[figure] == mode


def test_several_seeds_need_something_random():
    assert _problems(eval__seeds=3) == []
    assert "as eval.dropout is False" in _one(eval__seeds=3, eval__dropout=False)
    none = {"eval__seeds": 3, "model__generator__dropout": ()}
    assert "has no dropout and no noise" in _one(**none)
    assert _problems(**none, model__generator__noise=1) == []


def test_crop_larger_than_load():
    problem = _one(data__load_size=(32, 24))
    assert "data.crop_size: width 32 is larger than data.load_size's 24" in problem
    assert "crop at most 24, or load at least 32" in problem


def test_which_sizes_a_way_to_preprocess_looks_at():
    """Heights follow widths, or nothing is resized at all: what does not matter may be anything."""
    low, narrow = {"data__load_size": (16, 40)}, {"data__load_size": (40, 16)}
    assert "height 32 is larger than data.load_size's 16" in _one(**low)
    for mode in ("scale_width_and_crop", "crop", "pad", "none"):
        assert _problems(**low, data__preprocess=mode) == []
    wide = _one(**narrow, data__preprocess="scale_width_and_crop")
    assert "width 32 is larger than data.load_size's 16" in wide
    for mode in ("scale_width", "crop", "pad", "none"):
        assert _problems(**narrow, data__preprocess=mode) == []
    problem = _one(**low, data__preprocess="scale_width")
    assert problem.startswith("data.load_size: width 40 is larger than data.crop_size's 32")
    assert "use scale_width_and_crop" in problem


# --- source and task -----------------------------------------------------------------------------


def test_the_task_is_that_of_the_source_unless_said():
    assert base().data.task == "auto"
    wanted = {name: source.task for name, source in data.SOURCES.items()}
    assert wanted["labels"] == "labels" and wanted["inpaint"] == "inpaint"
    assert wanted["colorization"] == "colorize" and wanted["folder"] == "translate"
    for name, task in wanted.items():
        config = merge(base(), {"data.source": name})
        assert resolved(config).data.task == task and config.data.task == "auto"
        assert resolved(merge(config, {"data.task": "grey"})).data.task == "grey"
    # Of a source that there is not, the choices tell.
    assert resolved(merge(base(), {"data.source": "x"})).data.task == "auto"


@pytest.mark.parametrize(
    ("source", "task", "more", "says"),
    [
        ("single", "translate", {}, "data.source: 'single' has no targets to learn from"),
        ("single", "colorize", {}, "data.source: 'single' is for tasks that are given a source; "
                                   "colorize makes it out of the photo"),
        ("colorization", "translate", {}, "data.task: 'translate' needs pairs, and data.source="
                                          "colorization has photos alone; use one of colorize, "),
        ("colorization", "labels", {}, "data.task: 'labels' needs pairs"),
        ("inpaint", "translate", {}, "data.task: 'translate' needs pairs, and data.source=inpaint"),
        ("folder", "labels", {}, "data.task: 'labels' needs data.source=labels, not 'folder'"),
        ("labels", "translate", {}, "data.source: 'labels' needs data.task=labels, not"),
        ("labels", "labels", {}, "data.palette: labels need two classes or more"),
        ("labels", "labels", {"classes": 1}, "data.palette: labels need two classes or more"),
        ("labels", "labels", {"palette": "#00 #ff0000"}, "data.palette: entry 0, '#00', is not"),
        ("synthetic", "inpaint", {"channels": (1, 3)}, "data.channels: channels of inpaint are the "
                                                       "same on both sides"),
        ("synthetic", "grey", {"channels": (3, 1)}, "data.channels: channels of grey are (1, 3)"),
    ],
)  # fmt: skip
def test_a_source_and_a_task_that_do_not_fit(source, task, more, says):
    changes = {f"data__{key}": value for key, value in more.items()}
    problems = _problems(data__source=source, data__task=task, **changes)
    assert any(p.startswith(says) for p in problems), problems


@pytest.mark.parametrize(
    ("source", "task"),
    [("synthetic", task) for task in ("translate", "colorize", "grey", "inpaint")]
    + [(source, task) for source in ("colorization", "inpaint")
       for task in ("colorize", "grey", "inpaint")]
    + [("single", "translate"), ("single", "labels"), ("labels", "labels")],
)  # fmt: skip
def test_a_source_and_a_task_that_fit(source, task, tmp_path):
    """For all but single, to train on as well; other problems are of the folder alone."""
    changes = {"data.source": source, "data.task": task, "data.classes": 3 * (task == "labels")}
    problems = validate(merge(get_config(), changes), training=source != "single")
    assert problems == [p for p in problems if p.startswith("data.path: '' is empty")]


def test_cross_entropy_is_for_targets_that_are_classes():
    labels = {"data__source": "labels", "data__classes": 3, "loss__cross_entropy": 1.0}
    says = "loss.cross_entropy: needs data.task=labels and data.labels=target or both"
    assert _one(loss__cross_entropy=1.0) == says
    assert says in _problems(**labels, data__labels="source")
    for side in ("target", "both"):
        assert says not in _problems(**labels, data__labels=side)


def test_what_is_drawn_at_random_suits_sizes_and_task(tmp_path):
    problem = _one(data__rotate=True, data__crop_size=(32, 48), data__load_size=(40, 50))
    assert "data.rotate: quarter turns need a square data.crop_size, not (32, 48)" in problem
    for task in ("colorize", "grey", "inpaint"):
        problem = _one(data__task=task, data__contrast=0.1, data__brightness=0.1)
        assert problem.startswith("data.brightness, data.contrast: vary a source that is a picture")
        assert f"which {task} has none of" in problem
    one = _one(data__saturation=0.5, data__channels=(1, 3))
    assert one == "data.saturation: needs sources of 3 channels, not 1; leave at 0"
    assert _problems(data__contrast=0.5, data__channels=(1, 3)) == []
    assert _problems(data__saturation=0.5) == []
    labels = {"data__source": "labels", "data__path": str(tmp_path), "data__classes": 3}
    told = [any(p.startswith("data.brightness: vary a source") for p in
                _problems(**labels, data__labels=side, data__brightness=0.1))
            for side in ("source", "both", "target")]  # fmt: skip
    assert told == [True, True, False]


RESNET = {"model__generator__name": "resnet", "model__generator__dropout": ()}


def test_a_size_that_the_depth_does_not_allow():
    problem = _one(data__crop_size=(40, 32), data__load_size=(40, 40))
    assert "data.crop_size: (40, 32)" in problem and "model.generator.name=unet," in problem
    assert "multiples of 16" in problem and "model.generator.depth=3" in problem
    works = tuple(int(n) for n in re.search(r": (\d+) and (\d+) would do", problem).groups())
    assert _problems(data__crop_size=works, data__load_size=(64, 64)) == []
    sizes = {"data__crop_size": (40, 32), "data__load_size": (40, 40)}
    assert _problems(**sizes, model__generator__depth=3) == []
    # The residual generator halves twice, whatever the depth.
    assert _problems(**sizes, model__generator__name="resnet") == []
    problem = _one(data__crop_size=(34, 32), data__load_size=(40, 40), **RESNET)
    assert "name=resnet, which wants height and width to be multiples of 4: 32 and 32" in problem
    assert "depth" not in problem


def test_a_batch_that_does_not_divide_over_the_devices():
    problem = _one(train__batch_size=6)
    assert "train.batch_size: 6 does not divide over 4 devices" in problem
    assert "use a multiple of 4 (8)" in problem and "mesh.devices=1 or 2 or 3" in problem
    assert _problems(train__batch_size=6, mesh__devices=3) == []
    assert _problems(train__batch_size=8) == []
    assert "eval.batch_size: 3" in _one(eval__batch_size=3)


def test_more_devices_than_there_are():
    assert "mesh.devices: 9 is more than the 4" in _one(mesh__devices=9, train__batch_size=9)


def test_a_group_that_straddles_devices():
    problem = _one(train__batch_size=8, model__generator__norm_group=4)
    assert "model.generator.norm_group: 4 does not divide the 2 images of each of 4" in problem
    assert "one of 1, 2 does, or 0" in problem
    for group in (0, 1, 2):
        assert _problems(train__batch_size=8, model__discriminator__norm_group=group) == []


@pytest.mark.parametrize("net", ["generator", "discriminator"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_kind_of_norm_is_allowed(net, norm):
    assert _problems(**{f"model__{net}__norm": norm}) == []


@pytest.mark.parametrize("group", [0, 2])
def test_a_gradient_penalty_wants_images_judged_one_by_one(group):
    shared = {"mesh__devices": 1, "model__discriminator__norm_group": group}
    problem = _one(**shared, loss__adversarial="wgan-gp")
    assert problem.startswith(f"model.discriminator.norm_group: {group} lets images share")
    assert "loss.adversarial=wgan-gp" in problem and "model.discriminator.norm=layer" in problem
    # With statistics of each image, another norm, or another loss there is nothing to share.
    assert _problems(loss__adversarial="wgan-gp", model__discriminator__norm_group=1) == []
    for norm in set(NORMS) - {"batch"}:
        changes = shared | {"model__discriminator__norm": norm}
        assert _problems(**changes, loss__adversarial="wgan-gp") == []
    for loss in ("vanilla", "lsgan", "hinge"):
        assert _problems(**shared, loss__adversarial=loss) == []
    # Evaluation has no such loss.
    values = {k.replace("__", "."): v for k, v in shared.items()} | {"loss.adversarial": "wgan-gp"}
    assert validate(merge(get_config(), values), training=False) == []


def test_a_discriminator_without_a_logit():
    small = {"model__discriminator__layers": 4}
    problem = _one(**small)
    assert problem.startswith("model.discriminator.layers: 4 layers need at least 48 pixels a side")
    assert "data.crop_size is (32, 32)" in problem
    assert _problems(**small, data__crop_size=48, data__load_size=48) == []
    assert "at every scale" in _one(model__discriminator__scales=4)


def test_images_too_small_for_the_structural_similarity():
    tiny = {"data__crop_size": 8, "model__generator__depth": 3}

    def told(**changes):  # beside that the synthetic pairs are larger
        (problem, size) = _problems(**tiny, **changes)
        assert "too small for synthetic pairs" in size
        return problem

    assert told().startswith("eval.metrics: ssim needs at least 11 pixels")
    assert told(eval__metrics=("l1",), loss__ssim=1.0).startswith("loss.ssim: ssim needs at least")
    assert len(_problems(**tiny, eval__metrics=("l1",))) == 1


def test_channels_that_the_task_does_not_have():
    problem = _one(data__task="colorize", data__channels=(1, 3))
    assert problem.startswith("data.channels: channels of colorize are (1, 2)")
    assert _problems(data__task="colorize") == []


def test_dropout_beyond_the_decoder():
    assert "blocks [4] are not in [1, 3]" in _one(model__generator__dropout=(1, 4))


def test_all_at_once():
    problems = _problems(model__generator__name="x", train__keep=0, data__source="folder",
                         data__path="/nowhere/at/all", loss__l1=-1.0)  # fmt: skip
    text = "\n".join(problems)
    for key in ("model.generator.name", "train.keep", "loss.l1", "data.path: '/nowhere/at/all'"):
        assert key in text


# --- resume --------------------------------------------------------------------------------------


def _changes(old=None, **values):
    values = {k.replace("__", "."): v for k, v in values.items()}
    old = merge(get_config(), old or {})
    return field_changes(old, merge(old, values))


def test_no_change_is_none():
    assert _changes() == []


@pytest.mark.parametrize(
    "change",
    [
        {"train.steps": 99}, {"train.epochs": 3.0}, {"train.log_every": 1},
        {"train.eval_every": 1}, {"train.sample_every": 1}, {"train.save_every": 1},
        {"eval.ema": True}, {"eval.metrics": ("l1",)}, {"eval.batch_size": 4},
        {"data.cache": "host"}, {"data.threads": 3}, {"data.prepared_dir": "/x"},
        {"train.keep": 5}, {"train.best": "psnr"}, {"train.init_from": "/x"},
        {"train.init_nets": "generator"}, {"data.cache": "device"}, {"data.cache_share": 0.1},
        {"train.early_stop": 3}, {"eval.bootstrap": 0},
        {"train.accumulate": 2}, {"train.remat": "activations"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_may_change_freely(change):
    assert _changes(**{k.replace(".", "__"): v for k, v in change.items()}) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1), ("data.flip", False), ("data.load_size", (40, 40)), ("train.batch_size", 8),
        ("optim.gen.lr", 1e-3), ("model.generator.dropout", ()), ("train.ema_decay", 0.5),
        ("loss.l1", 10.0), ("train.precision", "bfloat16"), ("data.max_examples", 9),
        ("optim.schedule", "linear"), ("mesh.devices", 2), ("optim.schedule", "plateau"),
        ("model.generator.norm", "instance"), ("model.norm_eps", 1e-3), ("data.task", "colorize"),
        ("loss.feature_matching", 1.0), ("train.simultaneous", True), ("optim.warmup_steps", 5),
        ("data.preprocess", "crop"), ("data.on_error", "substitute"), ("data.rotate", True),
        ("data.target_range", (0.0, 1.0)), ("data.alpha", "white"), ("data.hole", 0.25),
    ],
)  # fmt: skip
def test_any_other_change_is_shown(key, value):
    old = flatten(get_config())[key]
    assert _changes(**{key.replace(".", "__"): value}) == [(key, old, value)]


def test_the_length_may_not_change_where_the_schedule_depends_on_it():
    linear = {"optim.schedule": "linear"}
    assert _changes(linear, train__steps=99) == [("train.steps", 12, 99)]
    assert _changes(linear, train__log_every=99) == []
    # Changing from the schedule is shown, whatever the length.
    assert ("optim.schedule", "linear", "constant") in _changes(linear, optim__schedule="constant")


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("train.eval_every", 7, 3), ("train.best", "l1", "psnr"), ("eval.examples", 5, 4),
        ("eval.ema", False, True), ("eval.norm_stats", "batch", "running"),
        ("eval.dropout", True, False), ("eval.split", "", "test"),
    ],
)  # fmt: skip
def test_evaluation_may_not_change_where_the_rates_follow_it(key, old, new):
    plateau = {"optim.schedule": "plateau"}
    change = {key.replace(".", "__"): new}
    assert _changes(plateau, **change) == [(key, old, new)]
    assert _changes({"optim.schedule": "linear"}, **change) == []


def test_plateau_leaves_the_length_and_other_intervals_free():
    plateau = {"optim.schedule": "plateau"}
    assert _changes(plateau, train__steps=99, train__epochs=3.0) == []
    for name in ("log", "sample", "save"):
        assert _changes(plateau, **{f"train__{name}_every": 99}) == []


# --- task configs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "configs").glob("*.py")))
def test_every_task_config_is_sound(name, tmp_path):
    flags = [f"--config={ROOT / 'configs' / name}", f"--workdir={tmp_path}"]
    # The paper's batch of one fits one device; a path is the user's.
    flags += ["--config.mesh.devices=1", "--config.data.source=synthetic"]
    assert parse(flags).mode == "train"
    first = (ROOT / "configs" / name).read_text()
    assert f"python -m p2p_jax.main --config=configs/{name}" in first


def test_statistics_that_run_need_a_norm_that_keeps_them():
    for norm in NORMS:
        problems = _problems(model__generator__norm=norm, eval__norm_stats="running")
        if norm == "batch":
            assert problems == []
        else:
            (problem,) = problems
            assert f"needs model.generator.norm=batch, not {norm}" in problem


def test_groups_of_images_matter_to_batch_norm_alone():
    changes = {"train__batch_size": 8, "model__generator__norm_group": 3}
    assert "does not divide" in _one(**changes)
    assert _problems(**changes, model__generator__norm="instance") == []


def test_one_image_shares_statistics_with_none():
    changes = {"loss__adversarial": "wgan-gp", "model__discriminator__norm_group": 0}
    assert _problems(**changes, train__batch_size=1, mesh__devices=1) == []


def test_a_list_of_levels_is_for_networks_that_have_levels():
    problem = _one(model__generator__name="resnet", model__generator__features=(4, 8))
    assert "levels of a U-Net, which resnet is not" in problem
