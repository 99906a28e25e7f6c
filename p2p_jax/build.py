"""From a config to an experiment, which knows no ConfigDict any more."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh as meshes
from p2p_jax.config import Config, flatten
from p2p_jax.data import SOURCES, EvalFrames, Fit, Form, Frames, Splits, fitting
from p2p_jax.data.labels import Colour, Labels, read_palette
from p2p_jax.data.pairs import raise_if
from p2p_jax.figures import directions
from p2p_jax.images import Values
from p2p_jax.judges import load as load_judges
from p2p_jax.metrics import least_size
from p2p_jax.networks import (
    abstract_state,
    make_gan,
    make_generator,
    make_policy,
    task_options,
)
from p2p_jax.objectives import RATES, WEIGHTS
from p2p_jax.optim import BATCH_SCALING, Plateau, ScheduleOptions, factor
from p2p_jax.scores import FILES, Judges
from p2p_jax.state import Gan, TrainState
from p2p_jax.validate import data_options, fit, resolved


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long and how to train; see the keys of the same names in `config.base`."""

    batch_size: int
    steps: int
    steps_per_dispatch: int
    shuffle: bool
    cache: str
    cache_share: float
    substitutes: bool
    threads: int
    log_every: int
    eval_every: int
    sample_every: int
    save_every: int
    keep: int
    best: str
    on_nan: str
    on_save_error: str
    init_from: str
    init_nets: str
    early_stop: int = 0
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How to evaluate; see the keys of the same names in `config.base`.

    Attributes:
      palette: the colours of the classes of targets, where there are any.
      judges: networks of others that were asked for.
    """

    batch_size: int
    metrics: tuple[str, ...]
    split: str
    dropout: bool
    running: bool
    ema: bool
    sample_count: int
    threads: int
    bootstrap: int
    seeds: int
    kid_subset: int
    kid_subsets: int
    segmenter: str
    palette: tuple[Colour, ...]
    judges: Judges


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run needs, built from a config.

    Attributes:
      config: every key and value, as it is saved.
      seed: of everything random.
      gan: networks, losses and optimisers for training.
      eval_gan: the same, normalising each image by its own statistics.
      mesh: the devices.
      form: of the convolutions.
      train_frames: the pairs to train on, as arrays of one shape.
      eval_frames: the pairs to evaluate on.
      labels: the classes of targets that are label maps, or None.
      notes: what the user should know about the data.
      train: see `TrainOptions`.
      eval: see `EvalOptions`.
      hyper: (step, rows) to `[rows, len(HYPER)]`: rates and weights of the steps from `step` on.
      plateau: from what a checkpoint saved of it, or None, to a factor of the rates that follows
        evaluations; None where the schedule has no such thing.
    """

    config: dict[str, Any]
    seed: int
    gan: Gan
    eval_gan: Gan
    mesh: Mesh
    form: str
    train_frames: Frames
    eval_frames: EvalFrames
    labels: Labels | None
    notes: tuple[str, ...]
    train: TrainOptions
    eval: EvalOptions
    hyper: Callable[[int, int], np.ndarray]
    plateau: Callable[[dict[str, Any] | None], Plateau] | None

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state, laid out over the mesh; nothing is computed."""
        return abstract_state(self.gan, self.mesh)


def build(
    config: Config,
    log: Callable[[str], None],
    training: bool = True,
    target: dict[str, Any] | None = None,
) -> Experiment:
    """Opens the data and assembles networks, losses and options; compiles nothing.

    Args:
      config: free of problems, as `validate` tells.
      log: is told what takes time.
      training: False for evaluation alone, which training pairs need not fit.
      target: the fields of the `Form` that targets had in training, for sources without any.

    Raises:
      DataError: what is wrong with the data, all of it.
    """
    config = resolved(config)
    mesh = meshes.make_mesh(config.mesh.devices, config.mesh.spatial)
    splits = SOURCES[config.data.source].open(data_options(config), log)
    gan = make_gan(config)
    generator: Any = gan.generator
    least = getattr(generator, "min_size", 1)
    how = fit(config, gan.augment.methods, generator.size_step, least)
    raise_if(_few_images(config, splits))
    raise_if([*channel_problems(gan, splits), *_size_problems(splits, how, training)])
    frames, held = Frames(splits.train, how), EvalFrames(splits.eval, how)
    if target and not held.forms[1].channels:
        held.forms = (held.forms[0], Form(**{**target, "channels": 0}))
    sizes = {name: least_size(name, config.eval.lpips_backbone) for name in config.eval.metrics}
    raise_if([text for name, least in sizes.items() for text in tiny_images(held, name, least)])
    gan = dataclasses.replace(
        gan,
        augment=dataclasses.replace(gan.augment, load_size=frames.load_size if training else None),
        values=stored_values(config, gan, held.forms),
    )
    alone = make_generator(config, gan.task.channels[1], gan.task.output, own_statistics=True)
    examples = len(splits.train)
    steps = config.train.steps or math.ceil(
        config.train.epochs * examples / config.train.batch_size
    )
    return Experiment(
        config=config.to_dict(),
        seed=config.seed,
        gan=gan,
        eval_gan=dataclasses.replace(gan, generator=alone),
        mesh=mesh,
        form=make_policy(config).form,
        train_frames=frames,
        eval_frames=held,
        labels=_labels(config) if gan.task.labelled[1] else None,
        notes=splits.notes,
        train=_train_options(config, steps),
        eval=EvalOptions(
            batch_size=config.eval.batch_size or mesh.size,
            metrics=tuple(config.eval.metrics),
            split=_eval_name(config),
            dropout=config.eval.dropout,
            running=config.eval.norm_stats == "running",
            ema=config.eval.ema,
            sample_count=config.eval.sample_count,
            threads=_threads(config),
            bootstrap=config.eval.bootstrap,
            seeds=config.eval.seeds,
            kid_subset=config.eval.kid_subset,
            kid_subsets=config.eval.kid_subsets,
            segmenter=config.eval.segmenter,
            palette=_palette(config, gan),
            judges=_judges(config),
        ),
        hyper=_hyper(config, steps, examples),
        plateau=_plateau(config),
    )


def varied(experiment: Experiment, config: Config) -> Experiment:
    """The same data and networks with the seed, the rates and the weights of another config.

    Args:
      experiment: from `build`.
      config: that differs from its own in what `alike.problems` allows.
    """
    config, examples = resolved(config), len(experiment.train_frames)
    return dataclasses.replace(
        experiment,
        config=config.to_dict(),
        seed=config.seed,
        hyper=_hyper(config, experiment.train.steps, examples),
        plateau=_plateau(config),
    )


def _few_images(config: Config, splits: Splits) -> list[str]:
    """Nothing to evaluate, or too little for what is asked for."""
    count = len(splits.eval)
    if not count:
        return [f"data.eval_split: {_eval_name(config)!r} holds no image to evaluate"]
    return [
        f"eval.metrics: {name} needs at least {least} images to evaluate, not {count}"
        for name, least in {"fid": 2, "kid": 4}.items()
        if name in config.eval.metrics and count < least
    ]


def _palette(config: Config, gan: Gan) -> tuple[Colour, ...]:
    """The colours of the classes of targets; where these are pictures, as `data.palette` says."""
    if gan.task.labelled[1]:
        return task_options(config).palette
    named = "iou" in config.eval.metrics and config.data.task == "translate"
    return read_palette(config.data.palette) if named else ()


def _judges(config: Config) -> Judges:
    """The networks of others that are asked for, and no more, as each takes its time to read."""
    keys = {key for name in config.eval.metrics for key in FILES.get(name, ())}
    if not keys:
        return Judges()

    def asked(key: str, file: str) -> str:
        return os.path.expanduser(file) if key in keys else ""

    return load_judges(
        asked("eval.inception", config.eval.inception),
        asked("eval.lpips", config.eval.lpips),
        asked("eval.lpips_network", config.eval.lpips_network),
        config.eval.lpips_backbone,
    )


def _eval_name(config: Config) -> str:
    """What to call what is evaluated."""
    if not SOURCES[config.data.source].trains and not config.eval.split:
        return config.data.source
    return config.eval.split or config.data.eval_split


def _labels(config: Config) -> Labels:
    """The classes in the colours that pictures of them have."""
    options = task_options(config)
    return Labels(options.palette, options.classes, 0)


def channel_problems(gan: Gan, splits: Splits) -> list[str]:
    """Where what is stored is not what the networks are to see."""
    problems = []
    for split, source in (("train", splits.train), ("eval", splits.eval)):
        shapes = ((1, *gan.augment.crop_size, form.channels) for form in source.forms)
        pair = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
        try:
            jax.eval_shape(gan.task.encode, *pair)
        except ValueError as error:
            problems.append(f"data.channels: {split} split: {error}")
    return problems


def _size_problems(splits: Splits, how: Fit, training: bool) -> list[str]:
    problems = fitting.problems(splits.train, how, "train") if training else []
    return problems + fitting.problems(splits.eval, how, "eval", evaluation=True)


def tiny_images(frames: EvalFrames, name: str, least: int) -> list[str]:
    """Images of fewer pixels a side than a metric needs."""
    small = [i for i in range(len(frames)) if min(frames.content(i)) < least]
    if not small:
        return []
    height, width = frames.content(small[0])
    return [
        f"eval.metrics: {name} needs at least {least} pixels a side, which {len(small)} of "
        f"{len(frames)} images to evaluate have not (first {frames.names[small[0]]}: "
        f"{height}x{width}, height x width); leave {name} out, or remove them"
    ]


def stored_values(config: Config, gan: Gan, forms: tuple[Form, Form]) -> tuple[Values, Values]:
    """What stored numbers mean: by default all that the type holds; classes are themselves."""
    values = []
    ranges = (config.data.source_range, config.data.target_range)
    for form, (low, high), classes in zip(forms, ranges, gan.task.labelled, strict=True):
        if classes:
            low, high = 0.0, 255.0
        elif low == high:
            low, high = 0.0, 65535.0 if form.dtype == "uint16" else 255.0
        values.append(Values(form.dtype, low, high))
    return values[0], values[1]


def _train_options(config: Config, steps: int) -> TrainOptions:
    train, data = config.train, config.data
    return TrainOptions(
        batch_size=train.batch_size,
        steps=steps,
        steps_per_dispatch=train.steps_per_dispatch,
        shuffle=data.shuffle,
        cache=data.cache,
        cache_share=data.cache_share,
        substitutes=data.on_error == "substitute",
        threads=_threads(config),
        log_every=train.log_every,
        eval_every=train.eval_every,
        sample_every=train.sample_every,
        save_every=train.save_every,
        keep=train.keep,
        best=train.best,
        on_nan=train.on_nan,
        on_save_error=train.on_save_error,
        init_from=train.init_from,
        init_nets=train.init_nets,
        early_stop=train.early_stop,
        tensorboard=train.tensorboard,
    )


def _threads(config: Config) -> int:
    return config.data.threads or os.cpu_count() or 1


def _hyper(config: Config, steps: int, examples: int) -> Callable[[int, int], np.ndarray]:
    """Rates and weights by step; all plain numbers, so that the config is not kept."""
    options, batch_size, flat = _schedule(config), config.train.batch_size, flatten(config)
    scale = BATCH_SCALING[config.optim.batch_scaling](batch_size)
    rates = [scale * flat[f"optim.{name.removesuffix('_lr')}.lr"] for name in RATES]
    weights = [flat[f"loss.{name}"] for name in WEIGHTS]
    dtype = "float64" if config.train.precision == "float64" else "float32"

    def hyper(step: int, rows: int) -> np.ndarray:
        # Rows beyond the run's end are never used.
        factors = [
            factor(options, min(s, steps - 1), steps, examples, batch_size)
            for s in range(step, step + rows)
        ]
        return np.array([[rate * f for rate in rates] + weights for f in factors], dtype)

    return hyper


def _schedule(config: Config) -> ScheduleOptions:
    optim = config.optim
    return ScheduleOptions(
        name=optim.schedule,
        decay_from=optim.decay_from,
        decay_every=optim.decay_every,
        decay_factor=optim.decay_factor,
        patience=optim.patience,
        warmup_steps=optim.warmup_steps,
        by_epoch=optim.by_epoch,
    )


def _plateau(config: Config) -> Callable[[dict[str, Any] | None], Plateau] | None:
    if config.optim.schedule != "plateau":
        return None
    mode = directions(config.eval.metrics)[config.train.best]
    optim = _schedule(config)
    return lambda saved: Plateau(mode, optim.decay_factor, optim.patience, saved)
