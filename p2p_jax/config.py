"""Every key of a config, and what may stand in it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from p2p_jax.data import SOURCES, DataOptions
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.metrics import METRICS, SSIM_WINDOW
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.optim import SCHEDULES

# ConfigDict resolves attributes at run time, which a type checker cannot follow.
Config = Any

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


class ConfigError(Exception):
    """What is wrong with a config or command line, one sentence a problem; all of them at once."""

    def __init__(self, problems: Collection[str]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def base() -> Config:
    """The defaults: the paper's facades recipe, on whatever devices there are."""
    c = ConfigDict()
    c.seed = 0  # of everything random: initial weights, order, jitter, dropout

    c.data = d = ConfigDict()
    d.source = "folder"  # folder (PATH/train/*.jpg, side by side) or synthetic
    d.path = ""  # the folder; it is only read
    d.name = ""  # what to call the data in reports; empty: the folder's name, or the source's
    d.direction = "AtoB"  # AtoB: the left half is the source; BtoA: the right half is
    d.train_split = "train"  # sub-folder to train on
    d.eval_split = "val"  # sub-folder to evaluate on; where it is missing, a tenth is held out
    d.split_seed = 0  # decides which tenth
    d.load_size = (286, 286)  # (height, width) that images are resized to,
    d.crop_size = (256, 256)  # and that are cut out of them at random, for the networks
    d.flip = True  # mirror half of the pairs
    d.shuffle = True  # a new order every epoch
    d.cache = "none"  # none: decode every time; host: keep decoded pairs in memory
    d.threads = 0  # that decode; 0 is one a core
    d.max_examples = 0  # train on this many pairs at most; 0 is all
    d.prepared_dir = ""  # for prepared data; empty is p2p_jax in the user's cache directory

    c.model = ConfigDict()
    c.model.generator = g = ConfigDict()
    g.name = "unet"  # unet or unet_upsample
    g.depth = 8  # levels, each halving the size
    g.base_features = 64  # features of the first level; doubled by each, up to eightfold
    g.features = ()  # or the features of each level, one by one
    g.upsample = "auto"  # deconv or nearest; auto is what the named network is known for
    g.norm = "batch"  # batch or none
    g.norm_group = 1  # images that share statistics; 1 as at batch size 1; 0: the whole batch
    g.bias = "auto"  # convolutions with a bias: last, or unnormed (all that no norm follows)
    g.skips = True  # join encoder and decoder levels
    g.dropout = (1, 2, 3)  # decoder blocks, counted from the innermost, that drop half
    c.model.discriminator = m = ConfigDict()
    m.name = "patchgan"
    m.layers = 3  # of stride 2; 3 makes the 70x70 PatchGAN of five convolutions
    m.base_features = 64
    m.norm = "batch"
    m.norm_group = 1

    c.loss = loss = ConfigDict()
    loss.adversarial = "vanilla"
    loss.disc = 0.5  # weight of the discriminator's loss
    loss.gan = 1.0  # weight of the generator's adversarial loss
    loss.l1 = 100.0  # weight of the mean absolute error, in [-1, 1]
    loss.l2 = 0.0  # weight of the mean squared error

    c.optim = o = ConfigDict()
    o.gen = ConfigDict({"lr": 2e-4, "b1": 0.5, "b2": 0.999, "eps": 1e-8})
    o.disc = ConfigDict({"lr": 2e-4, "b1": 0.5, "b2": 0.999, "eps": 1e-8})
    o.schedule = "constant"  # constant, or linear: constant, then falling towards zero
    o.decay_from = 0.5  # the share of the run after which linear falls

    c.mesh = ConfigDict()
    c.mesh.devices = 0  # devices to train on; 0 is all

    c.train = t = ConfigDict()
    t.batch_size = 1  # over all devices
    t.steps = 0  # updates of each network; above 0 it wins over
    t.epochs = 200.0  # passes over the training pairs
    t.steps_per_dispatch = 1  # updates that the device does without asking
    t.precision = "float32"  # float32 (full products), tf32, bfloat16 or float64
    t.conv_form = "auto"  # plain or polyphase; auto is what is faster on the device
    t.ema_decay = 0.0  # of averaged generator weights, kept beside the others; 0: none
    t.log_every = 50  # steps; likewise below
    t.eval_every = 2000
    t.sample_every = 2000
    t.save_every = 1000
    t.keep = 2  # latest checkpoints kept
    t.best = "l1"  # the metric whose best checkpoint is kept as well

    c.eval = e = ConfigDict()
    e.batch_size = 0  # 0 is one image a device
    e.metrics = ("l1", "psnr", "ssim")
    e.split = ""  # empty is data.eval_split
    e.examples = 0  # evaluate this many pairs at most; 0 is all
    e.ema = False  # use the averaged weights
    e.dropout = True  # dropout stays on, as in the paper, where it is the noise
    e.norm_stats = "batch"  # batch: each image's own statistics, as in the paper; or running
    e.sample_count = 6  # pairs in the grid
    return c.lock()


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unknown_key(key: str, known: Collection[str]) -> str:
    """Says that a dotted key does not exist, and which one may have been meant."""
    leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.75)
    near = near or [leaf[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf, 1)]
    return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "")


def coerce(key: str, value: Any, like: Any) -> Any:
    """A value as the type that `base` has for the key.

    Integers become floats, lists become tuples, and one number stands for both sides of a size or
    for a tuple of one.

    Raises:
      ConfigError: it is of another type.
    """
    kind = type(like)
    if kind is tuple:
        if type(value) is int and (not like or type(like[0]) is int):
            return (value, value) if len(like) == 2 else (value,)
        if isinstance(value, list | tuple):
            element = type(like[0]) if like else int
            if all(type(v) is element for v in value):
                return tuple(value)
            raise ConfigError([f"{key}: {value!r} must hold {_MANY[element]} only"])
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError([f"{key}: {value!r} is not {_KINDS[kind]}; the default is {like!r}"])


_MANY = {int: "whole numbers", str: "words"}
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a tuple, as in 256,256",
}


def merge(config: Config, values: dict[str, Any]) -> Config:
    """A config with dotted keys set.

    Raises:
      ConfigError: unknown keys or wrong types, all of them.
    """
    config = config.copy_and_resolve_references()
    flat, problems = flatten(config), []
    for key, value in values.items():
        if key not in flat:
            problems.append(unknown_key(key, flat))
            continue
        try:
            *path, leaf = key.split(".")
            node = config
            for part in path:
                node = node[part]
            node[leaf] = coerce(key, value, flatten(base())[key])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config.lock()


def data_options(config: Config) -> DataOptions:
    """What `p2p_jax.data` needs of a config."""
    data = config.data
    return DataOptions(
        source=data.source,
        path=data.path,
        direction=data.direction,
        train_split=data.train_split,
        eval_split=config.eval.split or data.eval_split,
        hold_out=not config.eval.split,
        load_size=data.load_size,
        crop_size=data.crop_size,
        split_seed=data.split_seed,
        prepared_dir=data.prepared_dir,
        max_examples=data.max_examples,
        eval_examples=config.eval.examples,
    )


def validate(config: Config, training: bool = True) -> list[str]:
    """All that is wrong with a config: each problem with its key, value and what is allowed.

    Reads no data and compiles nothing; it counts the devices, and looks whether folders exist.

    Args:
      config: with every key of `base`, in its types.
      training: False leaves out what only training needs.
    """
    flat = flatten(config)
    problems = [*_choices(flat), *_ranges(flat)]
    if problems:  # the checks below take names and numbers for granted
        return problems + (_data(config) if config.data.source in SOURCES else [])
    return [*_sizes(config), *_batch(flat, training), *_data(config)]


def _data(config: Config) -> list[str]:
    return SOURCES[config.data.source].check(data_options(config))


def _choices(flat: dict[str, Any]) -> Iterator[str]:
    allowed: dict[str, Collection[str]] = {
        "data.source": SOURCES,
        "data.direction": ("AtoB", "BtoA"),
        "data.cache": ("none", "host"),
        "model.generator.name": GENERATORS,
        "model.generator.upsample": ("auto", "deconv", "nearest"),
        "model.generator.norm": ("batch", "none"),
        "model.generator.bias": ("auto", "last", "unnormed"),
        "model.discriminator.name": DISCRIMINATORS,
        "model.discriminator.norm": ("batch", "none"),
        "loss.adversarial": ADVERSARIAL,
        "optim.schedule": SCHEDULES,
        "train.precision": PRECISIONS,
        "train.conv_form": ("auto", "plain", "polyphase"),
        "train.best": METRICS,
        "eval.norm_stats": ("batch", "running"),
    }
    for key, names in allowed.items():
        yield from _one_of(key, flat[key], names)
    for name in flat["eval.metrics"]:
        yield from _one_of("eval.metrics", name, METRICS)
    if flat["train.best"] in METRICS and flat["train.best"] not in flat["eval.metrics"]:
        yield f"train.best: {flat['train.best']!r} must be one of eval.metrics, so that it is known"


def _one_of(key: str, value: str, names: Collection[str]) -> Iterator[str]:
    if value not in names:
        near = difflib.get_close_matches(value, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{key}: {value!r} is not one of {', '.join(names)}{hint}"


def _ranges(flat: dict[str, Any]) -> Iterator[str]:
    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("seed", lambda v: 0 <= v < 2**32, "in [0, 2**32)"),
        ("data.threads", lambda v: v >= 0, "0 (one a core) or more"),
        ("data.max_examples", lambda v: v >= 0, "0 (all) or more"),
        ("data.load_size", _is_size, "(height, width), both above 0"),
        ("data.crop_size", _is_size, "(height, width), both above 0"),
        ("model.generator.depth", lambda v: 2 <= v <= 16, "in [2, 16]"),
        ("model.generator.features", lambda v: all(f > 0 for f in v), "all above 0"),
        ("model.discriminator.layers", lambda v: 1 <= v <= 8, "in [1, 8]"),
        ("mesh.devices", lambda v: v >= 0, "0 (all) or more"),
        ("train.batch_size", lambda v: v >= 1, "1 or more"),
        ("train.steps", lambda v: v >= 0, "0 (train.epochs counts) or more"),
        ("train.keep", lambda v: v >= 2, "2 or more, so that a damaged checkpoint loses little"),
        ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
        ("train.steps_per_dispatch", lambda v: v >= 1, "1 or more"),
        ("optim.decay_from", lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("eval.batch_size", lambda v: v >= 0, "0 (one image a device) or more"),
        ("eval.examples", lambda v: v >= 0, "0 (all) or more"),
        ("eval.metrics", lambda v: len(v) > 0, "at least one"),
        ("eval.sample_count", lambda v: v >= 1, "1 or more"),
    ]
    rules += [(f"train.{k}_every", lambda v: v >= 1, "1 or more") for k in _EVERY]
    for net in ("generator", "discriminator"):
        rules.append((f"model.{net}.base_features", lambda v: v >= 1, "1 or more"))
        rules.append((f"model.{net}.norm_group", lambda v: v >= 0, "0 (the whole batch) or more"))
    for weight in ("disc", "gan", *RECONSTRUCTION):
        rules.append((f"loss.{weight}", lambda v: 0 <= v < math.inf, "0 or more"))
    for net in ("gen", "disc"):
        rules.append((f"optim.{net}.lr", lambda v: 0 <= v < math.inf, "0 or more"))
        rules += [(f"optim.{net}.{b}", lambda v: 0 <= v < 1, "in [0, 1)") for b in ("b1", "b2")]
        rules.append((f"optim.{net}.eps", lambda v: 0 < v < math.inf, "above 0"))
    for key, holds, allowed in rules:
        if not holds(flat[key]):
            yield f"{key}: {flat[key]!r} must be {allowed}"
    if flat["train.steps"] == 0 and not 0 < flat["train.epochs"] < math.inf:
        yield f"train.epochs: {flat['train.epochs']!r} must be above 0, or set train.steps"
    if not any(flat[f"loss.{name}"] for name in ("gan", *RECONSTRUCTION)):
        yield "loss: all weights of the generator are 0; set loss.gan or loss.l1"
    if flat["eval.ema"] and not flat["train.ema_decay"]:
        yield "eval.ema: True needs train.ema_decay above 0, for example 0.999"
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: {value!r} must be finite"


_EVERY = ("log", "eval", "sample", "save")


def _is_size(value: Any) -> bool:
    return len(value) == 2 and min(value) > 0


def _sizes(config: Config) -> Iterator[str]:
    """Load, crop, depth, patches and metrics must fit each other."""
    load, crop = config.data.load_size, config.data.crop_size
    generator, disc = config.model.generator, config.model.discriminator
    for axis, name in enumerate(("height", "width")):
        if crop[axis] > load[axis]:
            yield (
                f"data.crop_size: {name} {crop[axis]} is larger than data.load_size's {load[axis]};"
                f" crop at most {load[axis]}, or load at least {crop[axis]}"
            )
    depth = len(generator.features) or generator.depth
    step = 2**depth
    if generator.features and len(generator.features) != generator.depth:
        yield (
            f"model.generator.features: {len(generator.features)} levels, but "
            f"model.generator.depth is {generator.depth}; make them equal"
        )
    if any(size % step for size in crop):
        works = " and ".join(str(_near(size, step)) for size in crop)
        yield (
            f"data.crop_size: {crop} does not halve {depth} times; with model.generator.depth="
            f"{depth} height and width must be multiples of {step}: {works} would do, or a depth "
            f"of at most {_depth(crop)}"
        )
    bad = [k for k in generator.dropout if not 1 <= k < depth]
    if bad:
        yield f"model.generator.dropout: blocks {bad} are not in [1, {depth - 1}]"
    least = 3 * 2**disc.layers
    if min(crop) < least:
        yield (
            f"model.discriminator.layers: {disc.layers} layers need at least {least}x{least} "
            f"pixels, data.crop_size is {crop}"
        )
    if "ssim" in config.eval.metrics and min(crop) < SSIM_WINDOW:
        yield f"eval.metrics: ssim needs at least {SSIM_WINDOW} pixels, data.crop_size is {crop}"


def _near(size: int, step: int) -> int:
    return max(step, round(size / step) * step)


def _depth(crop: tuple[int, int]) -> int:
    return min((size & -size).bit_length() - 1 for size in crop)


def _batch(flat: dict[str, Any], training: bool) -> Iterator[str]:
    """The batch must divide over the devices, and groups must not straddle them."""
    there = jax.device_count()
    devices = flat["mesh.devices"] or there
    if devices > there:
        yield f"mesh.devices: {devices} is more than the {there} that are there"
        return
    for key in ("eval.batch_size", *["train.batch_size"] * training):
        size = flat[key]
        if size % devices:
            fits = [n for n in range(1, min(size, there) + 1) if size % n == 0]
            yield (
                f"{key}: {size} does not divide over {devices} devices; use a multiple of "
                f"{devices} ({max(1, round(size / devices)) * devices}), or mesh.devices="
                f"{' or '.join(map(str, fits))}"
            )
    share = flat["train.batch_size"] // devices
    for net in ("generator", "discriminator") if training else ():
        group = flat[f"model.{net}.norm_group"]
        if group and flat["train.batch_size"] % devices == 0 and share % group:
            fits = [n for n in range(1, share + 1) if share % n == 0]
            yield (
                f"model.{net}.norm_group: {group} does not divide the {share} images of each of "
                f"{devices} devices; one of {', '.join(map(str, fits))} does, or 0"
            )


def field_changes(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of the changes that would make a resumed run another run.

    Lengths, intervals, evaluation and how data is fetched may change freely; the length not where
    the learning rate depends on it.
    """
    before, after = flatten(old), flatten(new)
    free = {"train.keep", "train.best", "data.cache", "data.threads", "data.prepared_dir"}
    free |= {f"train.{k}_every" for k in _EVERY}
    if new.optim.schedule == "constant":
        free |= {"train.steps", "train.epochs"}
    return [
        (key, before.get(key), after[key])
        for key in after
        if before.get(key) != after[key] and key not in free and not key.startswith("eval.")
    ]
