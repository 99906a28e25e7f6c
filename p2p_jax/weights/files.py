"""Files of PyTorch weights: `.pth` and `.pt` with the package torch, `.safetensors` without."""

from __future__ import annotations

import collections
import importlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from p2p_jax.config import ConfigError, shortened
from p2p_jax.report import write_atomic
from p2p_jax.weights.layout import COUNTER

SUFFIXES = (".pth", ".pt", ".safetensors")
_HALVES = (np.dtype(np.float16), np.dtype(jnp.bfloat16))
_SAVE = "save a state dict, as in torch.save(net.state_dict(), FILE)"


def suffix_problems(path: Path) -> list[str]:
    """What is wrong with a file's name, or with what there is to read and write such files."""
    if path.suffix not in SUFFIXES:
        return [f"{path}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"]
    if path.suffix != ".safetensors":
        try:
            _torch()
        except ImportError as error:
            return [
                f"{path}: {path.suffix} files need the package torch ({error}); "
                "pip install 'p2p_jax[torch]', or use .safetensors"
            ]
    return []


def _torch() -> Any:
    return importlib.import_module("torch")


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a state dict; nothing in the file is run.

    Returns:
      Tensors by key, float32 or float64 (and counters), and what the user should know.

    Raises:
      ConfigError: the file cannot be read, or holds something else; all that is wrong.
    """
    problems = suffix_problems(path)
    if not path.is_file():
        problems.append(f"{path}: {'not a file' if path.exists() else 'there is no such file'}")
    if problems:
        raise ConfigError(problems)
    load = _load_safetensors if path.suffix == ".safetensors" else _load_torch
    try:
        tensors = load(path)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    return _checked(path, tensors)


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise ConfigError([f"{path}: not a sound safetensors file: {_line(error)}"]) from error


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch()
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise ConfigError([f"{path}: {_why(error)}"]) from error
    if not isinstance(held, Mapping):
        raise ConfigError([f"{path}: holds a {type(held).__name__}, not a state dict; {_SAVE}"])
    others = [
        f"{path}: {key!r} is a {type(value).__name__}, not a tensor; {_SAVE}"
        for key, value in held.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if others:
        raise ConfigError(shortened(others))
    return {key: _from_torch(torch, f"{path}: {key}", value) for key, value in held.items()}


def _why(error: Exception) -> str:
    """Why torch did not load a file, without its advice to run what is in it."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"refused: to load it would run code ({code[1]}); {_SAVE}"
    if isinstance(error, pickle.UnpicklingError):
        return f"not a sound file of weights alone; {_SAVE}"
    return f"not a sound file of weights: {_line(error)}"


def _from_torch(torch: Any, where: str, tensor: Any) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ConfigError([f"{where}: is sparse, quantised or without values; store it plainly"])
    if tensor.dtype == torch.bfloat16:  # which numpy itself lacks
        return tensor.detach().view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.detach().numpy()


def _checked(path: Path, tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Floats of 32 bits at least, and finite."""
    problems = [f"{path}: holds no tensors"] if not tensors else []
    found: dict[str, np.ndarray] = {}
    halves: collections.Counter[str] = collections.Counter()
    for key, tensor in tensors.items():
        if f".{key}".endswith(COUNTER):
            found[key] = tensor
        elif tensor.dtype in _HALVES:
            halves[tensor.dtype.name] += 1
            found[key] = tensor.astype(np.float32)
        elif tensor.dtype in (np.float32, np.float64):
            found[key] = tensor
        else:
            problems.append(f"{path}: {key} is of {tensor.dtype}, not floating-point numbers")
            continue
        if not np.isfinite(found[key]).all():
            problems.append(f"{path}: {key} holds values that are not finite")
    if problems:
        raise ConfigError(shortened(problems))
    return found, [f"{path}: {n} tensors of {kind} became float32" for kind, n in halves.items()]


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict, all of it or nothing."""
    if path.suffix == ".safetensors":
        write_atomic(path, safetensors.numpy.save(dict(tensors), metadata={"format": "pt"}))
        return
    torch = _torch()
    buffer = io.BytesIO()
    held = {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}
    torch.save(collections.OrderedDict(held), buffer)
    write_atomic(path, buffer.getvalue())


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
