"""All that may be wrong with a config, said at once and before anything is read or compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from p2p_jax import board
from p2p_jax.config import Config, flatten
from p2p_jax.data import PREPROCESS, SOURCES, DataOptions, Fit, read_palette
from p2p_jax.figures import small
from p2p_jax.losses import ADVERSARIAL
from p2p_jax.metrics import SSIM_WINDOW
from p2p_jax.models.bands import LEAST
from p2p_jax.networks import make_discriminator, make_generator, make_task
from p2p_jax.rules import PHOTOMETRIC, choices, ranges
from p2p_jax.tasks import TASKS

# What a task is told; it takes their values for granted.
_OF_TASKS = {
    *("data.source", "data.task", "data.channels", "data.labels", "data.classes", "data.hole"),
}


def data_options(config: Config) -> DataOptions:
    """What `p2p_jax.data` needs of a config."""
    data = config.data
    same = {field.name for field in dataclasses.fields(DataOptions)} & set(data)
    options = {name: data[name] for name in same - {"palette", "labels"}}
    labels = data.task == "labels"
    return DataOptions(
        **options
        | {
            "eval_split": config.eval.split or data.eval_split,
            "hold_out": not config.eval.split,
            "eval_examples": config.eval.examples,
            "ranges": (data.source_range, data.target_range),
            "labels": data.labels if labels else "",
            "palette": read_palette(data.palette) if labels else (),
        }
    )


def fit(config: Config, methods: tuple[str, str], step: int, least: int = 1) -> Fit:
    """How pairs of any size become arrays of one.

    Args:
      config: free of problems.
      methods: how sources and targets are resized.
      step: what the generator's inputs must be a multiple of.
      least: what they must be at least.
    """
    data = config.data
    return Fit(data.preprocess, data.load_size, data.crop_size, methods, step, least)


def resolved(config: Config) -> Config:
    """The config with `data.task` said, where it is left to the source."""
    if config.data.task == "auto" and config.data.source in SOURCES:
        config = config.copy_and_resolve_references()
        config.data.task = SOURCES[config.data.source].task
    return config.lock()


def validate(config: Config, training: bool = True) -> list[str]:
    """All that is wrong with a config: each problem with its key, value and what is allowed.

    Reads no data and compiles nothing; it counts the devices, and looks whether folders exist.

    Args:
      config: with every key of `base`, in its types.
      training: False leaves out what only training needs.
    """
    config = resolved(config)
    flat = flatten(config)
    problems = [*choices(flat), *ranges(flat)]
    named = {problem.split(":")[0] for problem in problems}
    if not named & _OF_TASKS:
        problems += _task(config, training)
    if problems:  # the checks below take names and numbers for granted
        palette = any(problem.startswith("data.palette") for problem in problems)
        return problems + (_data(config) if config.data.source in SOURCES and not palette else [])
    return [
        *_sizes(config),
        *_variations(config),
        *_batch(flat, training),
        *(_spatial(config) if training else ()),
        *(_penalty(flat) if training else ()),
        *_data(config),
        *(board.problems() if training and config.train.tensorboard else ()),
    ]


def _data(config: Config) -> list[str]:
    return SOURCES[config.data.source].check(data_options(config))


def _task(config: Config, training: bool) -> Iterator[str]:
    """The task must suit the source, and be told what it needs to know."""
    data = config.data
    source = SOURCES.get(data.source)
    if source is None or data.task not in TASKS:
        return
    if training and not source.trains:
        yield (
            f"data.source: {data.source!r} has no targets to learn from; it is for "
            f"--mode=eval of a trained workdir"
        )
    alone = ("colorize", "grey", "inpaint")  # tasks that make the source out of the target
    photos = ("colorization", "inpaint")
    if data.source in photos and data.task not in alone:
        yield (
            f"data.task: {data.task!r} needs pairs, and data.source={data.source} has photos alone;"
            f" use one of {', '.join(alone)}"
        )
    if data.source == "single" and data.task in alone:
        yield (
            f"data.source: 'single' is for tasks that are given a source; {data.task} makes it out "
            "of the photo: use data.source=colorization"
        )
    if data.task == "labels" and data.source not in ("labels", "single"):
        yield f"data.task: 'labels' needs data.source=labels, not {data.source!r}"
    if data.source == "labels" and data.task != "labels":
        yield f"data.source: 'labels' needs data.task=labels, not {data.task!r}"
    try:
        make_task(config)
    except ValueError as error:
        key = "data.palette" if data.task == "labels" else "data.channels"
        yield f"{key}: {error}"
    if config.loss.cross_entropy and (data.task != "labels" or data.labels == "source"):
        yield "loss.cross_entropy: needs data.task=labels and data.labels=target or both"


def _variations(config: Config) -> Iterator[str]:
    """What is drawn at random must suit sizes and task."""
    data = config.data
    if data.rotate and data.crop_size[0] != data.crop_size[1]:
        yield f"data.rotate: quarter turns need a square data.crop_size, not {data.crop_size}"
    used = [f"data.{name}" for name in PHOTOMETRIC if data[name]]
    task = make_task(config)
    if used and (task.labelled[0] or data.task in ("colorize", "grey", "inpaint")):
        yield (
            f"{', '.join(used)}: vary a source that is a picture of its own, which {data.task} has "
            "none of; leave at 0"
        )
    elif data.saturation and data.channels[0] != 3:
        yield f"data.saturation: needs sources of 3 channels, not {data.channels[0]}; leave at 0"


def _sizes(config: Config) -> Iterator[str]:
    """Load, crop, networks and metrics must fit each other."""
    load, crop, mode = config.data.load_size, config.data.crop_size, config.data.preprocess
    axes = {"resize_and_crop": (0, 1), "scale_width_and_crop": (1,)}.get(mode, ())
    if mode == "scale_width" and load[1] > crop[1]:
        yield (
            f"data.load_size: width {load[1]} is larger than data.crop_size's {crop[1]}, to which "
            "data.preprocess=scale_width pads; make it at most that, or use scale_width_and_crop"
        )
    for axis, name in enumerate(("height", "width")):
        if axis in axes and crop[axis] > load[axis]:
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
    if config.loss.ssim and min(crop) < SSIM_WINDOW:
        yield f"loss.ssim: ssim needs at least {SSIM_WINDOW} pixels, data.crop_size is {crop}"
    # Cropped to train on, whole images may be larger; what they are, `build` sees.
    if PREPROCESS[mode].fit != "crop" or PREPROCESS[mode].resize == "both":
        for text in small(config.eval.metrics, crop, config.eval.lpips_backbone):
            yield f"eval.metrics: {text}, data.crop_size is {crop}"


def _least(config: Config) -> int:
    """The smallest square image that each scale of the discriminator makes a logit of."""
    disc = make_discriminator(config)
    return next(n for n in range(1, 1 << 16) if disc.patches(n, n)[-1].height > 0)


def _generator(config: Config) -> Iterator[str]:
    """The crop must be halved as often as the generator wants, and its lists fit its depth."""
    crop, chosen = config.data.crop_size, config.model.generator
    generator = make_generator(config, 3, "tanh")
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
        yield (
            f"model.generator.dropout: blocks {bad} are not in [1, {depth - 1}]; leave it empty "
            "for no dropout"
        )


def _near(size: int, step: int) -> int:
    return max(step, round(size / step) * step)


def _depth(crop: tuple[int, int]) -> int:
    return min((size & -size).bit_length() - 1 for size in crop)


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
    devices, spatial = flat["mesh.devices"] or there, flat["mesh.spatial"]
    if devices > there:
        yield f"mesh.devices: {devices} is more than the {there} that are there"
        return
    if devices < there and jax.process_count() > 1:
        yield f"mesh.devices: several processes use all of their {there} devices; leave it at 0"
        return
    if devices % spatial:
        yield (
            f"mesh.spatial: {spatial} does not divide the {devices} devices; one of "
            f"{_divisors(devices)} does"
        )
        return
    ours = jax.local_device_count()
    if jax.process_count() > 1 and spatial % ours and ours % spatial:
        yield (
            f"mesh.spatial: {spatial} devices would be parts of several processes of {ours} "
            "devices; use a divisor or a multiple of that"
        )
        return
    # Evaluation shares no image: there each device has its own.
    yield from _divided(flat, "eval.batch_size", devices, 1)
    if training:
        yield from _divided(flat, "train.batch_size", devices, spatial)
        if flat["train.batch_size"] % (devices // spatial) == 0:
            yield from _parts(flat, devices // spatial)


def _divided(flat: dict[str, Any], key: str, devices: int, spatial: int) -> Iterator[str]:
    size, parts = flat[key], devices // spatial
    if size % parts:
        most = min(size, jax.device_count() // spatial)
        fits = [n * spatial for n in range(1, most + 1) if size % n == 0]
        of = "devices" if spatial == 1 else f"groups of mesh.spatial={spatial} devices"
        yield (
            f"{key}: {size} does not divide over {parts} {of}; use a multiple of "
            f"{parts} ({max(1, round(size / parts)) * parts}), or mesh.devices="
            f"{' or '.join(map(str, fits))}"
        )


def _spatial(config: Config) -> Iterator[str]:
    """Images that devices share must have bands of rows, and no layer that needs whole ones."""
    devices, height = config.mesh.spatial, config.data.crop_size[0]
    if devices == 1:
        return
    # Of the image and of what first halves it; what lies deeper may be uneven, or too little.
    if height % (2 * devices) or height < 2 * LEAST * devices:
        count = config.mesh.devices or jax.device_count()
        fits = [
            n
            for n in range(1, min(count, height // (2 * LEAST)) + 1)
            if height % (2 * n) == 0 and count % n == 0
        ]
        yield (
            f"mesh.spatial: {devices} devices cannot share a data.crop_size of height {height}, "
            f"which must be a multiple of {2 * devices}, at least {2 * LEAST * devices}; of this "
            f"height, {' or '.join(map(str, fits or [1]))} devices can"
        )
    shared = f"mesh.spatial={devices}"
    if config.train.conv_form not in ("auto", "plain"):
        yield (
            f"train.conv_form: {config.train.conv_form!r} needs whole images, which {shared} "
            "splits; use auto or plain"
        )
    chosen = config.model.generator
    if chosen.name == "resnet":
        yield (
            f"model.generator.name: 'resnet' mirrors images at their borders, for which {shared} "
            "would exchange them whole; use unet, unet_upsample or encoder_decoder"
        )
    if chosen.upsample == "bilinear":
        yield (
            f"model.generator.upsample: 'bilinear' repeats the borders of images, for which "
            f"{shared} would exchange them whole; use deconv, nearest or pixel_shuffle"
        )
    if ADVERSARIAL[config.loss.adversarial].penalty:
        yield (
            f"loss.adversarial: the gradient penalty of {config.loss.adversarial!r} would gather "
            f"what {shared} splits; use vanilla, lsgan or hinge"
        )


def _parts(flat: dict[str, Any], devices: int) -> Iterator[str]:
    """Nor must groups straddle the parts of a device's share."""
    share, parts = flat["train.batch_size"] // devices, flat["train.accumulate"]
    if share % parts:
        yield (
            f"train.accumulate: {parts} does not divide the {share} images of each of {devices} "
            f"devices; one of {_divisors(share)} does"
        )
        return
    for net in ("generator", "discriminator"):
        group, whole = flat[f"model.{net}.norm_group"], ", or 0" if parts == 1 else ""
        if flat[f"model.{net}.norm"] != "batch":
            continue
        if group and (share // parts) % group:
            of = f" in {parts} parts" if parts > 1 else ""
            yield (
                f"model.{net}.norm_group: {group} does not divide the {share} images of each of "
                f"{devices} devices{of}; one of {_divisors(share // parts)} does{whole}"
            )
        elif not group and parts > 1:
            yield (
                f"model.{net}.norm_group: 0 takes statistics of the whole batch, of which "
                f"train.accumulate={parts} has a part at a time; use one of "
                f"{_divisors(share // parts)}"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
