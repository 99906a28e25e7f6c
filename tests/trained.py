"""Folders of runs that were never trained: tiny networks with random weights, to translate with."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from helpers import scrambled

from p2p_jax import checkpoint, report
from p2p_jax.config import base, merge
from p2p_jax.networks import make_gan
from p2p_jax.state import init
from p2p_jax.validate import resolved

FLOATS = {"channels": 3, "dtype": "float32", "suffix": ".tiff"}


def config(**changes: Any) -> Any:
    """Two levels of two features on 16x16 images; changes with `__` for the dots of keys."""
    values = {
        "data.source": "synthetic",
        "data.load_size": (16, 16),
        "data.crop_size": (16, 16),
        "model.generator.depth": 2,
        "model.generator.base_features": 2,
        "model.generator.blocks": 1,
        "model.generator.dropout": (1,),
        "train.conv_form": "plain",  # compiles in a third of the time
        "model.discriminator.layers": 1,
        "model.discriminator.base_features": 2,
    }
    return resolved(merge(base(), values | {k.replace("__", "."): v for k, v in changes.items()}))


@functools.cache
def _folder() -> Path:
    root = Path(os.environ["P2P_JAX_TESTS"])
    root.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=root))


@functools.cache
def _saved(items: tuple, forms: tuple) -> Path:
    with jax.enable_x64(dict(items).get("train__precision") == "float64"):
        return _save(items, forms)


def _drawn(params: Any, seed: int) -> Any:
    """Random parameters, the last ones small, so that no output is all black and white."""
    params = scrambled(params, seed)
    last = max(name for name in params if name.startswith("dec"))
    share = 0.01 if "res1" in params else 0.2
    return params | {last: jax.tree.map(lambda x: x * np.asarray(share, x.dtype), params[last])}


def _save(items: tuple, forms: tuple) -> Path:
    chosen = config(**dict(items))
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    gan = make_gan(chosen)
    state: Any = jax.eval_shape(lambda: init(gan, 0))
    gen = state.gen._replace(
        params=_drawn(state.gen.params, 1), stats=scrambled(state.gen.stats, 2)
    )
    averaged = _drawn(gen.params, 3) if gan.ema_decay else {}
    state = state._replace(gen=gen, ema=averaged, key=())
    state = jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else np.zeros(x.shape, x.dtype), state
    )
    state = state._replace(key=jax.random.key(0, impl="threefry2x32"))
    report.write_json(folder / "config.json", chosen.to_dict())
    report.write_run(folder, {name: dict(form) for name, form in forms})
    manager = checkpoint.open_manager(folder, 2, lambda: None)
    checkpoint.save(manager, state, {}, None)
    checkpoint.close(manager)
    return folder


def run(source: dict | None = None, target: dict | None = None, **changes: Any) -> Path:
    """The folder of such a run; do not write to it.

    Args:
      source: what it says that sources are stored as; None: nothing, as of older versions.
      target: likewise.
      **changes: of `config`.
    """
    told = {"source": source, "target": target}
    forms = tuple((k, tuple(sorted(v.items()))) for k, v in told.items() if v is not None)
    return _saved(tuple(sorted(changes.items())), forms)


def image(seed: int = 0, size: tuple = (16, 16), channels: int = 3, top: int = 256) -> np.ndarray:
    """Random numbers `[*size, channels]` below `top`, uint8 or uint16."""
    drawn = np.random.default_rng(seed).integers(0, top, (*size, channels))
    return drawn.astype(np.uint8 if top <= 256 else np.uint16)


def smooth(size: tuple, seed: int = 0) -> np.ndarray:
    """A picture without edges, uint8 `[*size, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(side)[tuple([slice(None)] + [None] * (1 - k))] for k, side in enumerate(size))
    waves = [
        np.sin(y / rng.uniform(9, 30) + rng.uniform(0, 6))
        + np.cos(x / rng.uniform(9, 30) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return (127.5 + 60 * np.stack(waves, -1)).astype(np.uint8)
