"""Where trials run: each on an accelerator, or a set of cores, of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from glob import glob
from typing import NamedTuple

from p2p_jax.words import ConfigError


class Place(NamedTuple):
    """Where one trial at a time runs.

    Attributes:
      name: as --devices has it, such as `gpu:0`, `tpu:3` or `cpu:0-3`.
      env: environment variables that keep a process to it.
      cores: of the machine, that it keeps to; empty: all.
    """

    name: str
    env: Mapping[str, str]
    cores: tuple[int, ...] = ()

    def command(self) -> list[str]:
        """The words before a command line that runs there."""
        words = [f"{key}={value}" for key, value in self.env.items()]
        cores = ",".join(map(str, self.cores))
        pinned = ["taskset", "-c", cores] if cores and sys.platform == "linux" else []
        return [*(["env", *words] if words else []), *pinned]


_WHOLE = Place("cpu", {"JAX_PLATFORMS": "cpu"})


def parse(text: str, env: Mapping[str, str]) -> list[Place]:
    """The places that --devices names.

    Args:
      text: `auto`; or words with commas between: `gpu:0`, `tpu:0`, `cpu:0-3` (cores) or `cpu/2`
        (all cores in two equal parts).
      env: the environment; of its CUDA_VISIBLE_DEVICES the GPUs are counted.

    Raises:
      ConfigError: all words that are none of these, or name what there is not.
    """
    if text in ("", "auto"):
        return _auto(env)
    places: list[Place] = []
    problems = []
    for word in _words(text):
        try:
            places += _place(word, env)
        except ValueError as error:
            problems.append(f"--devices: {word!r}: {error}")
    names = [place.name for place in places]
    problems += [f"--devices: {name} is named twice" for name in {*names} if names.count(name) > 1]
    if not places and not problems:
        problems.append("--devices: names none; use auto, gpu:0,gpu:1, tpu:0, cpu:0-3 or cpu/2")
    if problems:
        raise ConfigError(problems)
    return places


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _place(word: str, env: Mapping[str, str]) -> list[Place]:
    if word == "cpu":
        return [_WHOLE]
    kind, _, which = word.partition(":")
    if re.fullmatch(r"cpu/[1-9]\d*", word):
        return _parts(int(word[4:]))
    if kind == "cpu":
        return [_cpu(_cores(which))]
    if kind in ("gpu", "tpu") and which.isdigit():
        return [_gpu(int(which), env) if kind == "gpu" else _tpu(int(which))]
    raise ValueError("is not auto, gpu:N, tpu:N, cpu, cpu:FIRST-LAST (cores) or cpu/PARTS")


def _auto(env: Mapping[str, str]) -> list[Place]:
    """Each GPU there is, else each TPU chip, else one place with all cores."""
    wanted = env.get("JAX_PLATFORMS", "")
    if wanted != "cpu":
        if count := len(_gpus(env)):
            return [_gpu(i, env) for i in range(count)]
        if chips := glob("/dev/accel*") or glob("/dev/vfio/[0-9]*"):
            return [_tpu(i) for i in range(len(chips))]
    return [_WHOLE]


def _gpus(env: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that may be used, as CUDA_VISIBLE_DEVICES has them."""
    if (text := env.get("CUDA_VISIBLE_DEVICES")) is not None:
        return _words(text)
    if not (tool := shutil.which("nvidia-smi")):
        return []
    told = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(len(re.findall(r"^GPU \d+", told, re.MULTILINE)))]


def _gpu(index: int, env: Mapping[str, str]) -> Place:
    names = _gpus(env)
    if names and index >= len(names):
        raise ValueError(f"there are {len(names)} GPUs, of which the last is gpu:{len(names) - 1}")
    name = names[index] if names else str(index)
    return Place(f"gpu:{index}", {"CUDA_VISIBLE_DEVICES": name})


def _tpu(index: int) -> Place:
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return Place(f"tpu:{index}", {"TPU_VISIBLE_CHIPS": str(index), **bounds})


def usable() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _parts(count: int) -> list[Place]:
    cores = usable()
    if count > len(cores):
        raise ValueError(f"there are {len(cores)} cores")
    size = len(cores) // count
    return [_cpu(cores[i * size : (i + 1) * size]) for i in range(count)]


def _cores(text: str) -> list[int]:
    """The cores of `0-3`, or of `4`."""
    if not re.fullmatch(r"\d+(-\d+)?", text):
        raise ValueError("cores are cpu:FIRST-LAST, as cpu:0-3")
    first, _, last = text.partition("-")
    cores = list(range(int(first), int(last or first) + 1))
    there = usable()
    if not cores or not {*cores} <= {*there}:
        raise ValueError(f"there are the cores {_span(there)}")
    return cores


def _cpu(cores: list[int]) -> Place:
    return Place(f"cpu:{_span(cores)}", {"JAX_PLATFORMS": "cpu"}, tuple(cores))


def _span(cores: list[int]) -> str:
    whole = cores == list(range(cores[0], cores[-1] + 1))
    return (
        ".".join(map(str, cores))
        if not whole
        else (f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else str(cores[0]))
    )
