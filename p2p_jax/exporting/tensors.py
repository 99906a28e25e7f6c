"""Weights as safetensors with the config that makes a network of them, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from p2p_jax import mesh
from p2p_jax.build import stored_values
from p2p_jax.config import Config, ConfigError, shortened
from p2p_jax.data import Form
from p2p_jax.flags import saved_config
from p2p_jax.inference import Inference
from p2p_jax.networks import abstract_state, make_gan, make_generator

FILE, ABOUT = "model.safetensors", "export.json"
# Of the machine that trained, or of nobody else's concern.
_PATHS = ("data.path", "train.init_from", "eval.inception", "eval.lpips", "eval.lpips_network",
          "eval.segmenter")  # fmt: skip
_HERE = {"data.prepared_dir": "", "mesh.spatial": 1, "mesh.devices": 0,
         "train.shard_optimizer": False}  # fmt: skip


def packed(inference: Inference) -> bytes:
    """The weights by path, as `params/enc1/conv/kernel` and `stats/enc2/norm/mean`."""
    tree = {"params": inference.params, "stats": inference.stats}
    tensors = {
        path: np.ascontiguousarray(array)
        for path, array in traverse_util.flatten_dict(tree, sep="/").items()
    }
    return safetensors.numpy.save(tensors, metadata={"format": "p2p_jax"})


def portable(config: Config) -> dict[str, Any]:
    """The config without what is of one machine alone: of paths the last name is left."""
    config = config.copy_and_resolve_references().unlock()
    for key, value in _HERE.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    for key in _PATHS:
        section, leaf = key.split(".")
        config[section][leaf] = Path(config[section][leaf].rstrip("/")).name
    return config.to_dict()


def about(inference: Inference) -> dict[str, Any]:
    """What it takes to use the weights, beside the config."""
    return {
        "step": inference.step,
        "averaged": inference.averaged,
        "norm_stats": "running" if inference.running else "batch",
        "source": inference.source._asdict(),
        "target": inference.target._asdict(),
    }


def load_safetensors(folder: str | Path) -> Inference:
    """The generator of an exported folder, ready to translate as one of a run is.

    Args:
      folder: with model.safetensors, config.json and export.json.

    Raises:
      ConfigError: something of it is missing, damaged, or does not fit the rest; all that is wrong.
    """
    folder = Path(folder)
    config, told = saved_config(folder, "folder"), _told(folder / ABOUT)
    if (config.train.precision == "float64") != jax.config.read("jax_enable_x64"):
        raise ConfigError(
            [f"{folder}: the run has train.precision={config.train.precision}; use the same here"]
        )
    try:
        tensors = safetensors.numpy.load_file(folder / FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError([f"{folder / FILE}: {error}"]) from error
    gan = make_gan(config)
    like = abstract_state(gan, mesh.make_mesh(1)).gen
    wanted = traverse_util.flatten_dict({"params": like.params, "stats": like.stats}, sep="/")
    _compare(folder / FILE, tensors, wanted)
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    forms = told["source"], told["target"]
    alone = make_generator(config, gan.task.channels[1], gan.task.output, own_statistics=True)
    return Inference(
        config=config,
        gan=dataclasses.replace(gan, generator=alone, values=stored_values(config, gan, forms)),
        params=tree["params"],
        stats=tree.get("stats", {}),
        step=told["step"],
        running=told["norm_stats"] == "running",
        source=forms[0],
        target=forms[1],
        averaged=told["averaged"],
    )


def _told(path: Path) -> dict[str, Any]:
    """What `about` wrote, with its forms."""
    try:
        told = json.loads(path.read_text())
        forms = {side: Form(**told[side]) for side in ("source", "target")}
        return {"step": told["step"], "averaged": told["averaged"],
                "norm_stats": told["norm_stats"]} | forms  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError([f"{path}: not as p2p_jax.export writes it ({reason})"]) from error


def _compare(path: Path, tensors: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
    problems = []
    for name in sorted(tensors.keys() | wanted.keys()):
        here, there = (
            f"{side[name].dtype}{list(side[name].shape)}" if name in side else "absent"
            for side in (tensors, wanted)
        )
        if here != there:
            problems.append(f"{path}: {name} is {here}; config.json makes it {there}")
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{path}: {name} holds values that are not finite")
    if problems:
        raise ConfigError(shortened(problems))
