"""The command line of a sweep: all that is wrong with it is told together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from p2p_jax import alike, space, storage
from p2p_jax.config import Config, merge
from p2p_jax.figures import directions
from p2p_jax.flags import config_file, override
from p2p_jax.space import Space
from p2p_jax.sweeping import places, study
from p2p_jax.sweeping.places import Place
from p2p_jax.sweeping.study import PRUNERS, SAMPLERS
from p2p_jax.validate import resolved, validate
from p2p_jax.words import ConfigError, near, number, split

FLAGS = (
    *("config", "space", "workdir", "trials", "devices", "sampler", "pruner", "min_steps"),
    *("reduction", "metric", "seed", "storage", "vmap", "help"),
)
_CHOICES = {"sampler": "tpe", "pruner": "none"}


class Options(NamedTuple):
    """What a command line asks for; see `python -m p2p_jax.sweep --help`."""

    folder: Path
    config: Config
    file: str
    overrides: Mapping[str, str]
    space: Space
    trials: int
    places: Sequence[Place]
    sampler: str
    pruner: str
    least: int
    factor: int
    metric: str
    mode: str
    seed: int
    storage: str
    members: int


def parse(argv: Sequence[str]) -> Options:
    """Reads a command line.

    Raises:
      ConfigError: all that is wrong with it, the config and the space.
    """
    flags, overrides, problems = split(argv, FLAGS, ("help",))
    for name, hint in (("config", "configs/facades.py"), ("space", "configs/sweeps/facades.py")):
        if not flags.get(name):
            problems.append(f"--{name}: needed, as in --{name}={hint}")
    folder = _folder(flags.get("workdir", ""), problems)
    words = {name: flags.get(name, default) for name, default in _CHOICES.items()}
    for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if words[name] not in allowed:
            problems.append(
                f"--{name}: {words[name]!r} is not one of {', '.join(allowed)}"
                f"{near(words[name], allowed)}"
            )
    if "trials" not in flags and words["sampler"] != "grid":
        problems.append("--trials: needed, how many, as in --trials=20")
    trials = int(number("trials", flags.get("trials", str(10**9)), 1, problems))
    least = int(number("min_steps", flags["min_steps"], 1, problems)) if "min_steps" in flags else 0
    factor = int(number("reduction", flags.get("reduction", "4"), 2, problems))
    members = int(number("vmap", flags.get("vmap", "1"), 1, problems))
    seed = _seed(flags.get("seed", "0"), problems)
    config, metric, mode, found = _config(flags, overrides, problems)
    try:
        there = places.parse(flags.get("devices", "auto"), os.environ)
    except ConfigError as error:
        there, problems = [], [*problems, *error.problems]
    if config is not None and found is not None and words["sampler"] == "grid":
        endless = [key for key, dimension in found.items() if dimension.grid() is None]
        problems += [
            f"--sampler: a grid of {key} has no end; use choice or integers, uniform with a step, "
            "or another sampler"
            for key in endless
        ]
    if config is not None and found is not None and members > 1:
        problems += [f"--vmap: {text}" for text in _apart(found, config)]
    if problems or config is None or found is None:
        raise ConfigError(problems)
    if words["sampler"] == "grid":
        trials = min(trials, study.points(found) or trials)
    return Options(
        folder, config, flags["config"], overrides, found, trials, there, words["sampler"],
        words["pruner"], least, factor, metric, mode, seed, flags.get("storage", ""), members,
    )  # fmt: skip


def _apart(found: Space, config: Config) -> list[str]:
    """Why trials of a space cannot be trained together."""
    return alike.problems([resolved(merge(config, point)) for point in space.points(found)])


def _folder(text: str, problems: list[str]) -> Path:
    if not text:
        problems.append("--workdir: needed, the sweep's folder, as in --workdir=runs/sweep")
    elif storage.is_remote(text):
        problems.append(f"--workdir: {text}: a sweep needs a disk, which its machines share")
    else:
        folder = Path(text).expanduser()
        if (folder / "config.json").exists():
            problems.append(f"--workdir: {folder} is the folder of a run; use another")
        return folder
    return Path()


def _seed(text: str, problems: list[str]) -> int:
    if not text.isdigit():
        problems.append(f"--seed: {text!r} is not a whole number from 0 on")
        return 0
    return int(text)


def _config(
    flags: Mapping[str, str], overrides: Mapping[str, str], problems: list[str]
) -> tuple[Config | None, str, str, Space | None]:
    """The config that trials share, the metric and its direction, and the space."""
    try:
        config = config_file(flags["config"]) if flags.get("config") else None
    except ConfigError as error:
        config, problems[:] = None, [*problems, *error.problems]
    found = None
    try:
        found = space.load(flags["space"]) if flags.get("space") else None
    except ConfigError as error:
        problems += error.problems
    if config is None:
        return None, "", "", None
    config, wrong = override(config, dict(overrides))
    problems += wrong
    for key in sorted({*overrides} & {*(found or ())}):
        problems.append(f"--config.{key}: is in the space as well; leave it out of one of them")
    metric = flags.get("metric", config.train.best).removeprefix("eval/")
    known = _known(config)
    if metric not in known:
        problems.append(
            f"--metric: {metric!r} is not a figure of eval.metrics, which are {', '.join(known)}"
            f"{near(metric, known)}; losses are none: a GAN's say nothing of its pictures"
        )
        return None, "", "", None
    # The checkpoint of the value that a trial is judged by is kept.
    config = resolved(merge(config, {"train.best": metric}))
    if found is not None:
        try:
            found = space.checked(found, config)
        except ConfigError as error:
            found = None
            problems += error.problems
    elif not wrong:
        problems += validate(config)
    return config, metric, known[metric], found


def _known(config: Config) -> dict[str, str]:
    try:
        return directions(config.eval.metrics)
    except KeyError:  # named by validation
        return {config.train.best: "min"}
