"""The command line: flags and config overrides, with every mistake reported together."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from p2p_jax import mesh, peers, storage
from p2p_jax.config import Config, base, coerce, flatten, merge, unknown_key
from p2p_jax.older import modern
from p2p_jax.storage import AnyPath
from p2p_jax.validate import resolved, validate
from p2p_jax.words import ConfigError, near, split

FLAGS = ("config", "workdir", "mode", "allow_config_change", *peers.FLAGS, "help")
SWITCHES = ("allow_config_change", "help")
MODES = ("train", "eval")


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
      mode: one of `MODES`.
      workdir: the run's folder.
      config: complete and valid.
      allow_config_change: whether a resumed run may go on with another config.
    """

    mode: str
    workdir: AnyPath
    config: Config
    allow_config_change: bool


def parse(argv: Sequence[str]) -> Command:
    """Reads a command line, and meets the other processes where there are any.

    Args:
      argv: without the program's name.

    Raises:
      Alone: not all of them came.
      ConfigError: all that is wrong with flags, keys, types and values.
    """
    flags, overrides, problems = split(argv, FLAGS, SWITCHES)
    mode = flags.get("mode", "train")
    if mode not in MODES:
        problems.append(f"--mode: {mode!r} is not one of {', '.join(MODES)}{near(mode, MODES)}")
    if not flags.get("workdir"):
        if mode == "train" and flags.get("config"):
            flags["workdir"] = str(_usual_workdir(flags["config"]))
        else:
            problems.append("--workdir: needed, the run's folder, as in --workdir=runs/facades")
    workdir, found = run_folder("--workdir", flags.get("workdir", ""))
    problems += found
    loaded, found = _load(mode, flags, workdir)
    problems += found
    config, found = override(loaded or base(), overrides)
    problems += found
    if mode == "eval":  # which shares no image, on whatever devices there are
        config = merge(config, {"mesh.spatial": 1})
    config = resolved(config)
    try:
        others = peers.found(flags, os.environ)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    peers.start(others, config.mesh.start_timeout, config.mesh.heartbeat_timeout)
    if loaded is not None:  # the defaults alone are nothing to complain about
        mesh.use_precision(config.train.precision)
        problems += validate(config, training=mode != "eval")
    peers.together(lambda: _refuse(problems))
    return Command(mode, workdir, config, "allow_config_change" in flags)


def run_folder(key: str, text: str) -> tuple[AnyPath, list[str]]:
    """A run's folder, on disk or in a bucket, and what keeps it from being looked at."""
    try:
        workdir = storage.at(text)
    except OSError as error:
        return Path(), [f"{key}: {error}"]
    reason = storage.unreachable(workdir) if storage.is_remote(workdir) else ""
    return (Path(), [f"{key}: {reason}"]) if reason else (workdir, [])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


def _usual_workdir(config: str) -> Path:
    """`runs/NAME` of `configs/NAME.py`, `runs/NAME_ARG` of `configs/NAME.py:ARG`."""
    path, argument = _file_and_argument(config)
    return Path("runs") / "_".join([path.stem, *argument])


def _file_and_argument(text: str) -> tuple[Path, list[str]]:
    """The parts of `FILE` or `FILE:ARG`."""
    name, colon, argument = text.rpartition(":")
    whole = not colon or Path(text).is_file()
    return (Path(text), []) if whole else (Path(name), [argument])


def _load(mode: str, flags: dict[str, str], workdir: AnyPath) -> tuple[Config | None, list[str]]:
    """The config before overrides, or what is wrong with it; a workdir has one of its own."""
    try:
        if mode == "eval":  # of a workdir that was named
            named = flags.get("workdir") and workdir != Path()
            return (saved_config(workdir), []) if named else (None, [])
        if flags.get("config"):
            return config_file(flags["config"]), []
        if (workdir / "config.json").is_file() and flags.get("workdir"):
            return saved_config(workdir), []
        return None, ["--config: needed, as in --config=configs/quickstart.py"]
    except ConfigError as error:
        return None, error.problems


def config_file(text: str) -> Config:
    """What `get_config()` of a Python file returns, or `get_config(ARG)` for `FILE:ARG`.

    Raises:
      ConfigError: it is no such file, or fails.
    """
    path, arguments = _file_and_argument(text)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise ConfigError([f"--config: {path} is not a file{near(str(path), beside)}{there}"])
    spec = importlib.util.spec_from_file_location("p2p_jax_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError([f"--config: {path} is not a Python file"])
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    except Exception as error:  # whatever somebody's file raises, say where
        trace, line = error.__traceback__, None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(path):
                line = trace.tb_lineno
            trace = trace.tb_next
        line = line or getattr(error, "lineno", None)
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError([f"--config: {path}{f':{line}' if line else ''}: {what[0]}"]) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError([f"--config: get_config() of {path} must return p2p_jax.config.base()"])
    return _checked(config.to_dict(), str(path))


def saved_config(workdir: AnyPath, key: str = "--workdir") -> Config:
    """The config saved in a workdir.

    Args:
      workdir: of the run.
      key: what to call it where it is none.

    Raises:
      ConfigError: there is none, or it is not a config.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError([f"{key}: {workdir} holds no config.json; is it the folder of a run?"])
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError([f"{path}: not JSON: {error}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: not a JSON object of keys and values"])
    return _checked(values, str(path))


def _checked(values: dict[str, Any], where: str) -> Config:
    """Nested values as a config: keys that an older version did not have get their defaults."""
    try:
        return merge(base(), modern(flatten(ConfigDict(values))))
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error


def override(config: Config, overrides: dict[str, str]) -> tuple[Config, list[str]]:
    """Sets what can be set of the texts by dotted key; says what cannot."""
    problems = []
    defaults = flatten(base())
    values = {}
    for key, text in overrides.items():
        if key not in defaults:
            problems.append(f"--config.{unknown_key(key, defaults)}")
            continue
        try:
            values[key] = coerce(key, read_value(text, defaults[key]), defaults[key])
        except ConfigError as error:
            problems += [f"--config.{problem}" for problem in error.problems]
    return merge(config, values), problems


def read_value(text: str, like: Any) -> Any:
    """A value written on a command line, read as the type of `like` where it can be."""
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(like, tuple) and like and isinstance(like[0], str):
        return tuple(word.strip(" '\"") for word in text.strip("()[] ").split(",") if word.strip())
    try:
        value = ast.literal_eval(text or "()")
    except (ValueError, SyntaxError):
        return text
    return value
