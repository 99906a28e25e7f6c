"""Networks of others that judge pictures, from the weight files of a user."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2p_jax.config import ConfigError, shortened
from p2p_jax.models import inception as inception_v3
from p2p_jax.models import perceptual
from p2p_jax.scores import Judge, Judges
from p2p_jax.weights import files
from p2p_jax.weights.layout import COUNTER

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

# How the sha256 of pytorch-fid's file begins, with which most published figures were made.
_FID_FILE = "6726825d"
_FID_NAME = f"pt_inception-2015-12-05-{_FID_FILE}.pth"


def load(
    inception: str = "",
    lpips: str = "",
    lpips_network: str = "",
    lpips_backbone: str = "alex",
) -> Judges:
    """Reads the files there are; an empty name leaves out what needs it.

    Args:
      inception: Inception v3 as pytorch-fid publishes it (`pt_inception-2015-12-05-6726825d.pth`).
      lpips: the linear layers of LPIPS v0.1 (`weights/v0.1/alex.pth` or `vgg.pth` there).
      lpips_network: its backbone in torchvision's layout (`features.0.weight`, ...). Both may be
        the one file of a whole LPIPS module's state dict.
      lpips_backbone: `alex` or `vgg`.

    Raises:
      ConfigError: what is wrong with the files, all at once.
    """
    problems: list[str] = []
    if lpips_backbone not in perceptual.BACKBONES:
        known = " or ".join(perceptual.BACKBONES)
        raise ConfigError([f"eval.lpips_backbone: {lpips_backbone!r} must be {known}"])
    if bool(lpips) != bool(lpips_network):
        lacking = "eval.lpips" if not lpips else "eval.lpips_network"
        problems.append(f"{lacking}: LPIPS needs both eval.lpips and eval.lpips_network")
    first = inception and _attempt(lambda: _inception(_path(inception)), problems)
    second = None
    if lpips and lpips_network:
        second = _lpips(_path(lpips), _path(lpips_network), lpips_backbone, problems)
    if problems:
        raise ConfigError(problems)
    return Judges(first or None, second, lpips_backbone)


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _attempt(read: Callable[[], Any], problems: list[str]) -> Any:
    """What `read` gives; None where it raises, after adding to the problems."""
    try:
        return read()
    except ConfigError as error:
        problems += error.problems
    return None


def _inception(path: Path) -> Judge:
    """Inception v3 for FID and KID."""
    wanted = f"wanted is Inception v3 with the keys of pytorch-fid's {_FID_NAME}"
    tensors, note = _read(path, inception_v3.shapes(), ("AuxLogits.", "fc."), wanted)
    about = f"Inception v3 of {identity(path)}{note}"
    if not _digest(path).startswith(_FID_FILE):
        about += f", which is not pytorch-fid's own file ({_FID_FILE})"
    return Judge(inception_v3.convert(tensors), about)


def _lpips(linear: Path, network: Path, backbone: str, problems: list[str]) -> Judge | None:
    shapes = perceptual.linear_shapes(backbone), perceptual.backbone_shapes(backbone)
    full = {"alex": "AlexNet", "vgg": "VGG16"}[backbone]
    wanted = f"wanted are the linear layers of LPIPS v0.1 for eval.lpips_backbone={backbone}"
    lin = _attempt(
        lambda: _read(linear, shapes[0], ("features.", "scaling_layer."), wanted), problems
    )
    wanted = f"wanted is {full} in torchvision's layout, for eval.lpips_backbone={backbone}"
    net = _attempt(
        lambda: _read(network, shapes[1], ("classifier.", "lin", "scaling_layer."), wanted),
        problems,
    )
    if lin is None or net is None:
        return None
    about = (
        f"LPIPS v0.1 with {full} of {identity(network)}{net[1]}, linear layers of "
        f"{identity(linear)}{lin[1]}"
    )
    return Judge(perceptual.convert(net[0], lin[0], backbone), about)


def identity(path: Path) -> str:
    """A file's name and the first 8 hexadecimal digits of its sha256."""
    return f"{path.name} (sha256 {_digest(path)[:8]})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, shapes: Shapes, ignored: tuple[str, ...], wanted: str) -> tuple[Tensors, str]:
    """Tensors of the shapes wanted, and a note on what became of them."""
    tensors, notes = files.read(path)
    tensors = {_key(key): tensor for key, tensor in tensors.items()}
    problems = [f"{path}: lacks {key}" for key in shapes if key not in tensors]
    for key, tensor in tensors.items():
        if f".{key}".endswith(COUNTER) or (key not in shapes and key.startswith(ignored)):
            continue
        if key not in shapes:
            problems.append(f"{path}: {key} belongs to no layer of it")
        elif tensor.shape != shapes[key]:
            problems.append(f"{path}: {key} is {tensor.shape}, not {shapes[key]}")
    if problems:
        raise ConfigError([*shortened(problems), f"{path}: {wanted}"])
    return tensors, "".join(f" ({note.removeprefix(f'{path}: ')})" for note in notes)


def _key(key: str) -> str:
    """Names that LPIPS has for the same thing: in later versions, and in its whole module."""
    key = re.sub(r"^lins\.(\d)\.", r"lin\1.", key)
    return re.sub(r"^net\.slice\d\.", "features.", key)
