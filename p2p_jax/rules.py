"""What each key of a config may be, taken by itself."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

from p2p_jax.config import EVERY
from p2p_jax.data import PREPROCESS, SOURCES
from p2p_jax.figures import FIGURES, problems
from p2p_jax.images import RESIZE
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.metrics import LPIPS_SIZE
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.conv import FORMS
from p2p_jax.models.layers import BIASES, INITIALISERS, REMAT
from p2p_jax.models.norms import NORMS
from p2p_jax.networks import PRECISIONS
from p2p_jax.optim import BATCH_SCALING, SCHEDULES
from p2p_jax.tasks import TASKS

UPSAMPLE = ("deconv", "nearest", "bilinear", "pixel_shuffle")
PHOTOMETRIC = ("brightness", "contrast", "saturation")
GENERATOR_LOSSES = ("gan", "feature_matching", *RECONSTRUCTION)


def choices(flat: dict[str, Any]) -> Iterator[str]:
    """Words that are none of those allowed."""
    allowed: dict[str, Collection[str]] = {
        "data.source": SOURCES,
        "data.direction": ("AtoB", "BtoA"),
        "data.cache": ("none", "host", "device"),
        "data.on_error": ("fail", "substitute"),
        "data.alpha": ("refuse", "drop", "white", "black", "keep"),
        "data.preprocess": PREPROCESS,
        "data.labels": ("source", "target", "both"),
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
        "train.conv_form": ("auto", *FORMS),
        "train.remat": REMAT,
        "train.on_nan": ("stop", "skip", "rollback"),
        "train.on_save_error": ("stop", "continue"),
        "train.init_nets": ("both", "generator"),
        "train.best": [figure for figures in FIGURES.values() for figure in figures],
        "eval.norm_stats": ("batch", "running"),
        "eval.lpips_backbone": LPIPS_SIZE,
    }
    for key, names in allowed.items():
        yield from _one_of(key, flat[key], names)
    for name in flat["eval.metrics"]:
        yield from _one_of("eval.metrics", name, FIGURES)
    if flat["data.task"] in TASKS:
        yield from problems(flat)


def _one_of(key: str, value: str, names: Collection[str]) -> Iterator[str]:
    if value not in names:
        near = difflib.get_close_matches(value, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{key}: {value!r} is not one of {', '.join(names)}{hint}"


def ranges(flat: dict[str, Any]) -> Iterator[str]:
    """Numbers out of range, and what contradicts itself whatever the data is."""
    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("seed", lambda v: 0 <= v < 2**32, "in [0, 2**32)"),
        ("data.threads", lambda v: v >= 0, "0 (one a core) or more"),
        ("data.max_examples", lambda v: v >= 0, "0 (all) or more"),
        ("data.load_size", _is_size, "(height, width), both above 0"),
        ("data.crop_size", _is_size, "(height, width), both above 0"),
        ("data.channels", _is_size, "(source, target), both above 0"),
        ("data.source_range", _is_range, "(low, high), or 0,0 for all that 8 or 16 bits hold"),
        ("data.target_range", _is_range, "(low, high), or 0,0 for all that 8 or 16 bits hold"),
        ("data.canny", lambda v: len(v) == 2 and 0 <= v[0] <= v[1], "(low, high) from 0"),
        ("data.classes", lambda v: 0 <= v <= 1024, "0 (as in data.palette) to 1024"),
        ("data.label_tolerance", lambda v: 0 <= v <= 255, "in [0, 255]"),
        ("data.hole", lambda v: 0 < v < 1, "in (0, 1)"),
        ("data.cache_share", lambda v: 0 < v <= 1, "in (0, 1]"),
        *((f"data.{k}", lambda v: 0 <= v <= 1, "in [0, 1]") for k in PHOTOMETRIC),
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
        ("mesh.spatial", lambda v: v >= 1, "1 (whole images) or more"),
        ("mesh.start_timeout", lambda v: v >= 1, "1 or more, in seconds"),
        ("mesh.heartbeat_timeout", lambda v: v >= 5, "5 or more, in seconds"),
        ("train.batch_size", lambda v: v >= 1, "1 or more"),
        ("train.accumulate", lambda v: v >= 1, "1 (the whole batch at once) or more"),
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
        ("eval.bootstrap", lambda v: 0 <= v <= 100_000, "0 (no intervals) to 100000"),
        ("eval.seeds", lambda v: 1 <= v <= 100, "in [1, 100]"),
        ("eval.kid_subset", lambda v: v >= 2, "2 or more"),
        ("eval.kid_subsets", lambda v: v >= 2, "2 or more"),
        ("train.early_stop", lambda v: v >= 0, "0 (never) or more"),
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


def _is_range(value: Any) -> bool:
    return len(value) == 2 and (value[0] < value[1] or value == (0, 0))
