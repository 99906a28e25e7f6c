"""Search spaces: what a sweep may set the keys of a config to.

A space is a Python file whose `get_space()` returns a dict of dotted keys:

    from p2p_jax.space import choice, integers, log, uniform

    def get_space():
        return {
            "loss.l1": choice(0.0, 10.0, 100.0),
            "optim.gen.lr": log(1e-5, 1e-3),
            "train.batch_size": integers(1, 8),
        }
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from p2p_jax import mesh
from p2p_jax.config import Config, ConfigError, base, coerce, flatten, merge, unknown_key
from p2p_jax.validate import resolved, validate
from p2p_jax.words import near

_ALL = 64  # points up to which each combination is tried; above, one key at a time
# What a sweep decides itself, or what would make the figures of trials those of different things.
_JUDGING = "trials could not be compared"
_OWNED = {
    "data.source": _JUDGING, "data.path": _JUDGING, "data.name": _JUDGING,
    "data.features": _JUDGING, "data.url": _JUDGING, "data.direction": _JUDGING,
    "data.eval_split": _JUDGING, "data.split_seed": _JUDGING, "data.task": _JUDGING,
    "data.channels": _JUDGING, "data.crop_size": _JUDGING, "data.preprocess": _JUDGING,
    "data.resize": _JUDGING, "data.source_range": _JUDGING, "data.target_range": _JUDGING,
    "train.steps": "trials are pruned by where they stand at the same step",
    "train.epochs": "trials are pruned by where they stand at the same step",
    "train.eval_every": "trials are pruned by where they stand at the same step",
    "train.best": "it is what --metric says",
    "train.early_stop": "trials are ended by --pruner",
}  # fmt: skip
_OWNED_GROUPS = {"eval.": _JUDGING, "mesh.": "devices are those of --devices"}


class Dimension(NamedTuple):
    """What one key may be set to.

    Attributes:
      kind: `choice`, `float` or `int`.
      values: those of a choice; else (low, high), both ends included.
      log: whether numbers are drawn evenly by their logarithm.
      step: between two numbers; None: any.
    """

    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None

    def told(self) -> str:
        """The dimension, in words; equal ones have the same."""
        inner = ", ".join(map(repr, self.values))
        more = ", log=True" * self.log + (f", step={self.step!r}" if self.step else "")
        return f"{self.kind}({inner}{more})"

    def grid(self) -> tuple[Any, ...] | None:
        """All of its values; None where there is no end of them."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        if self.kind == "float" and not self.step:
            return None
        step = self.step or 1
        count = math.floor((high - low) / step + 1e-9)
        return tuple(low + i * step for i in range(count + 1))


Space = Mapping[str, Dimension]


def choice(*values: Any) -> Dimension:
    """One of the values, of which no one is nearer to another."""
    return Dimension("choice", tuple(tuple(v) if isinstance(v, list) else v for v in values))


def uniform(low: float, high: float, step: float | None = None) -> Dimension:
    """A number from `low` to `high`; with `step`, one of `low`, `low + step` and so on."""
    return Dimension("float", (low, high), step=step)


def log(low: float, high: float) -> Dimension:
    """A number from `low` to `high`, as likely between 1 and 10 as between 10 and 100."""
    return Dimension("float", (low, high), log=True)


def integers(low: int, high: int, step: int = 1, log: bool = False) -> Dimension:
    """A whole number from `low` to `high`, both included."""
    return Dimension("int", (low, high), log=log, step=None if step == 1 else step)


def load(text: str) -> Space:
    """What `get_space()` of a Python file returns.

    Raises:
      ConfigError: it is no such file, or fails, or returns something else.
    """
    path = Path(text)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise ConfigError([f"--space: {path} is not a file{near(str(path), beside)}{there}"])
    spec = importlib.util.spec_from_file_location("p2p_jax_space", path)
    if spec is None or spec.loader is None:
        raise ConfigError([f"--space: {path} is not a Python file"])
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        space = module.get_space()
    except Exception as error:  # whatever somebody's file raises
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError([f"--space: {path}: {what}"]) from error
    if not isinstance(space, Mapping) or not space:
        raise ConfigError([f"--space: get_space() of {path} must return a dict of dotted keys"])
    return dict(space)


def checked(space: Mapping[str, Any], config: Config) -> Space:
    """The space with values of the config's types.

    Args:
      space: what `load` returned.
      config: that all trials share.

    Raises:
      ConfigError: all that is wrong with its keys, types, ranges and values.
    """
    defaults, found, problems = flatten(base()), {}, []
    for key, dimension in space.items():
        if key not in defaults:
            problems.append(f"--space: {unknown_key(str(key), defaults)}")
        elif reason := _owned(key):
            problems.append(f"--space: {key}: not in a sweep, as {reason}; leave it out")
        elif not isinstance(dimension, Dimension):
            problems.append(
                f"--space: {key}: {dimension!r} is not choice(...), log(low, high), "
                "uniform(low, high) or integers(low, high) of p2p_jax.space"
            )
        else:
            found[key], wrong = _typed(key, dimension, defaults[key])
            problems += [f"--space: {problem}" for problem in wrong]
    if problems:
        raise ConfigError(problems)
    problems = [f"--space: {problem}" for problem in _refused(found, config)]
    if problems:
        raise ConfigError(problems)
    return found


def _owned(key: str) -> str:
    """Why a key may not be in a space; '' where it may."""
    groups = (reason for group, reason in _OWNED_GROUPS.items() if key.startswith(group))
    return _OWNED.get(key) or next(groups, "")


def _typed(key: str, dimension: Dimension, like: Any) -> tuple[Dimension, list[str]]:
    """The dimension in the type of the key, and what is wrong with it."""
    problems, values = [], []
    if not dimension.values:
        problems.append(f"{key}: choice() has no values")
    for value in dimension.values:
        try:
            values.append(coerce(key, value, like))
        except ConfigError as error:
            problems += error.problems
    if problems:
        return dimension, problems
    if len({repr(value) for value in values}) < len(values):
        problems.append(f"{key}: {dimension.told()} has a value twice")
    if dimension.kind == "choice":
        return dimension._replace(values=tuple(values)), problems
    if dimension.kind == "int" and type(like) is not int:
        problems.append(f"{key}: integers(...) is for whole numbers; use uniform or log")
    if dimension.kind == "float" and type(like) is not float:
        problems.append(f"{key}: {_named(dimension)} is for numbers; use integers or choice")
    low, high = dimension.values
    if not problems and not (math.isfinite(low) and math.isfinite(high) and low < high):
        problems.append(f"{key}: {dimension.told()}: the first must be below the second")
    if not problems and dimension.log and low <= 0:
        problems.append(f"{key}: {dimension.told()}: a logarithm needs numbers above 0")
    if dimension.step is not None and not dimension.step > 0:
        problems.append(f"{key}: {dimension.told()}: the step must be above 0")
    if dimension.log and dimension.step:
        problems.append(f"{key}: {dimension.told()}: log=True takes no step")
    return dimension._replace(values=tuple(values)), problems


def _named(dimension: Dimension) -> str:
    return "log(...)" if dimension.log else "uniform(...)"


def _refused(space: Space, config: Config) -> Iterator[str]:
    """What validation says of the space's values, each with the values it was said of."""
    mesh.use_precision(config.train.precision)
    seen = set()
    for point in points(space):
        try:
            found = validate(resolved(merge(config, point)))
        except ConfigError as error:
            found = error.problems
        for problem in found:
            if problem not in seen:
                seen.add(problem)
                with_ = ", ".join(f"{key}={value!r}" for key, value in point.items())
                of = problem.split(":")[0]
                yield problem if of in point else f"{problem} (with {with_})"


def points(space: Space) -> list[dict[str, Any]]:
    """Values to try: each choice and both ends, in all combinations where they are few."""
    ends = {key: dimension.values for key, dimension in space.items()}
    if math.prod(map(len, ends.values())) <= _ALL:
        return [
            dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())
        ]
    first = {key: values[0] for key, values in ends.items()}
    return [first | {key: value} for key, values in ends.items() for value in values]


def setting(value: Any) -> str:
    """A value as it is written after `--config.KEY=`; read back, it is the same to the last bit."""
    return value if isinstance(value, str) else repr(value)
