"""All that may be wrong with a config, said at once and before anything is read or compiled."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax

from p2p_jax.config import EVERY, Config, flatten
from p2p_jax.data import SOURCES, DataOptions
from p2p_jax.images import RESIZE
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.metrics import METRICS, SSIM_WINDOW
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.layers import BIASES, INITIALISERS
from p2p_jax.models.norms import NORMS
from p2p_jax.networks import PRECISIONS, make_discriminator, make_generator
from p2p_jax.optim import BATCH_SCALING, SCHEDULES
from p2p_jax.tasks import TASKS

UPSAMPLE = ("deconv", "nearest", "bilinear", "pixel_shuffle")
GENERATOR_LOSSES = ("gan", "feature_matching", *RECONSTRUCTION)


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
    return [
        *_sizes(config),
        *_channels(config),
        *_batch(flat, training),
        *(_penalty(flat) if training else ()),
        *_data(config),
    ]


def _data(config: Config) -> list[str]:
    return SOURCES[config.data.source].check(data_options(config))


def _choices(flat: dict[str, Any]) -> Iterator[str]:
    allowed: dict[str, Collection[str]] = {
        "data.source": SOURCES,
        "data.direction": ("AtoB", "BtoA"),
        "data.cache": ("none", "host"),
        "data.task": TASKS,
        "data.resize": RESIZE,
        "model.generator.name": GENERATORS,
        "model.generator.upsample": ("auto", *UPSAMPLE),
        "model.generator.norm": NORMS,
        "model.generator.bias": BIASES,
        "model.generator.innermost_norm": ("auto", "yes", "no"),
        "model.generator.skip_activation": ("auto", "relu", "leaky"),
        "model.discriminator.name": DISCRIMINATORS,
        "model.discriminator.norm": NORMS,
        "model.discriminator.bias": BIASES,
        "model.init": INITIALISERS,
        "loss.adversarial": ADVERSARIAL,
        "optim.schedule": SCHEDULES,
        "optim.batch_scaling": BATCH_SCALING,
        "train.precision": PRECISIONS,
        "train.conv_form": ("auto", "plain", "polyphase"),
        "train.init_nets": ("both", "generator"),
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
        ("data.channels", _is_size, "(source, target), both above 0"),
        ("model.generator.depth", lambda v: 2 <= v <= 16, "in [2, 16]"),
        ("model.generator.features", lambda v: all(f > 0 for f in v), "all above 0"),
        ("model.generator.blocks", lambda v: v >= 1, "1 or more"),
        ("model.generator.noise", lambda v: v >= 0, "0 (none) or more"),
        ("model.discriminator.layers", lambda v: 0 <= v <= 8, "in [0, 8]"),
        ("model.discriminator.scales", lambda v: 1 <= v <= 8, "in [1, 8]"),
        ("model.init_gain", lambda v: 0 < v < math.inf, "above 0"),
        ("model.norm_eps", lambda v: 0 < v < math.inf, "above 0"),
        ("model.norm_momentum", lambda v: 0 <= v < 1, "in [0, 1)"),
        ("model.norm_scale_std", lambda v: 0 <= v < math.inf, "0 or more"),
        ("mesh.devices", lambda v: v >= 0, "0 (all) or more"),
        ("train.batch_size", lambda v: v >= 1, "1 or more"),
        ("train.steps", lambda v: v >= 0, "0 (train.epochs counts) or more"),
        ("train.keep", lambda v: v >= 2, "2 or more, so that a damaged checkpoint loses little"),
        ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
        ("train.steps_per_dispatch", lambda v: v >= 1, "1 or more"),
        ("optim.decay_from", lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("optim.decay_every", lambda v: 0 < v <= 1, "in (0, 1]"),
        ("optim.decay_factor", lambda v: 0 < v <= 1, "in (0, 1]"),
        ("optim.patience", lambda v: v >= 0, "0 or more"),
        ("optim.warmup_steps", lambda v: v >= 0, "0 (none) or more"),
        ("eval.batch_size", lambda v: v >= 0, "0 (one image a device) or more"),
        ("eval.examples", lambda v: v >= 0, "0 (all) or more"),
        ("eval.metrics", lambda v: len(v) > 0, "at least one"),
        ("eval.sample_count", lambda v: v >= 1, "1 or more"),
    ]
    rules += [(f"train.{k}_every", lambda v: v >= 1, "1 or more") for k in EVERY]
    for net in ("generator", "discriminator"):
        rules.append((f"model.{net}.base_features", lambda v: v >= 1, "1 or more"))
        rules.append((f"model.{net}.norm_group", lambda v: v >= 0, "0 (the whole batch) or more"))
        rules.append((f"model.{net}.slope", lambda v: 0 <= v <= 1, "in [0, 1]"))
    for weight in ("disc", *GENERATOR_LOSSES, "gradient_penalty"):
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
    if not any(flat[f"loss.{name}"] for name in GENERATOR_LOSSES):
        yield "loss: all weights of the generator are 0; set loss.gan or loss.l1"
    if flat["eval.norm_stats"] == "running" and flat["model.generator.norm"] != "batch":
        yield (
            "eval.norm_stats: 'running' needs model.generator.norm=batch, not "
            f"{flat['model.generator.norm']}, which keeps no statistics; use 'batch'"
        )
    if flat["eval.ema"] and not flat["train.ema_decay"]:
        yield "eval.ema: True needs train.ema_decay above 0, for example 0.999"
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: {value!r} must be finite"


def _is_size(value: Any) -> bool:
    return len(value) == 2 and min(value) > 0


def _sizes(config: Config) -> Iterator[str]:
    """Load, crop, networks and metrics must fit each other."""
    load, crop = config.data.load_size, config.data.crop_size
    for axis, name in enumerate(("height", "width")):
        if crop[axis] > load[axis]:
            yield (
                f"data.crop_size: {name} {crop[axis]} is larger than data.load_size's {load[axis]};"
                f" crop at most {load[axis]}, or load at least {crop[axis]}"
            )
    yield from _generator(config)
    *_, coarsest = make_discriminator(config).patches(*crop)
    if min(coarsest.height, coarsest.width) < 1:
        disc = config.model.discriminator
        yield (
            f"model.discriminator.layers: {disc.layers} layers need at least {_least(config)} "
            f"pixels a side{' at every scale' * (disc.scales > 1)}, data.crop_size is {crop}"
        )
    uses = {"eval.metrics": "ssim" in config.eval.metrics, "loss.ssim": config.loss.ssim}
    for key, used in uses.items():
        if used and min(crop) < SSIM_WINDOW:
            yield f"{key}: ssim needs at least {SSIM_WINDOW} pixels, data.crop_size is {crop}"


def _least(config: Config) -> int:
    """The smallest square image that each scale of the discriminator makes a logit of."""
    disc = make_discriminator(config)
    return next(n for n in range(1, 1 << 16) if disc.patches(n, n)[-1].height > 0)


def _generator(config: Config) -> Iterator[str]:
    """The crop must be halved as often as the generator wants, and its lists fit its depth."""
    crop, chosen = config.data.crop_size, config.model.generator
    generator = make_generator(config, config.data.channels[1])
    levels = hasattr(generator, "widths")  # only a U-Net halves as often as depth says
    depth = len(chosen.features) or chosen.depth
    if levels and chosen.features and len(chosen.features) != chosen.depth:
        yield (
            f"model.generator.features: {len(chosen.features)} levels, but "
            f"model.generator.depth is {chosen.depth}; make them equal"
        )
    step, least = generator.size_step, getattr(generator, "min_size", 1)
    if any(size % step or size < least for size in crop):
        works = " and ".join(str(_near(max(size, least), step)) for size in crop)
        other = ""
        if levels and step == 2**depth and _depth(crop) >= 2:
            other = f", or model.generator.depth={_depth(crop)}"
        yield (
            f"data.crop_size: {crop} does not fit model.generator.name={chosen.name}, which wants "
            f"height and width to be multiples of {step}: {works} would do{other}"
        )
    if not levels and chosen.features:
        yield (
            f"model.generator.features: {chosen.features} are the levels of a U-Net, which "
            f"{chosen.name} is not; use model.generator.base_features"
        )
    bad = [k for k in chosen.dropout if not 1 <= k < depth]
    if levels and bad:
        yield f"model.generator.dropout: blocks {bad} are not in [1, {depth - 1}]"


def _near(size: int, step: int) -> int:
    return max(step, round(size / step) * step)


def _depth(crop: tuple[int, int]) -> int:
    return min((size & -size).bit_length() - 1 for size in crop)


def _channels(config: Config) -> Iterator[str]:
    try:
        TASKS[config.data.task](config.data.channels)
    except ValueError as error:
        yield f"data.channels: {error}"


def _penalty(flat: dict[str, Any]) -> Iterator[str]:
    """A gradient penalty is taken image by image, so no image may change another's judgement."""
    shared = flat["model.discriminator.norm"] == "batch"
    if ADVERSARIAL[flat["loss.adversarial"]].penalty and shared:
        group = flat["model.discriminator.norm_group"]
        if group != 1 and not (group == 0 and flat["train.batch_size"] == 1):
            yield (
                f"model.discriminator.norm_group: {group} lets images share statistics, which "
                f"loss.adversarial={flat['loss.adversarial']} does not allow; use 1, or "
                "model.discriminator.norm=layer"
            )


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
        used = group and flat[f"model.{net}.norm"] == "batch"
        if used and flat["train.batch_size"] % devices == 0 and share % group:
            fits = [n for n in range(1, share + 1) if share % n == 0]
            yield (
                f"model.{net}.norm_group: {group} does not divide the {share} images of each of "
                f"{devices} devices; one of {', '.join(map(str, fits))} does, or 0"
            )
