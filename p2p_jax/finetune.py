"""Beginning a run with the networks of another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2p_jax import checkpoint, mesh
from p2p_jax.build import abstract_state, make_gan
from p2p_jax.checkpoint import Restored
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.flags import saved_config
from p2p_jax.state import Gan, NetState, TrainState

Tree = Any
KEY = "train.init_from"
_SHOWN = 12  # differences listed before "and N more"


def restore_networks(
    workdir: Path,
    grid: Mesh,
    warn: Callable[[str], None],
    items: tuple[str, ...],
    step: int | None = None,
) -> tuple[Gan, Restored]:
    """The networks of a run's newest sound checkpoint, by the config it was trained with.

    Args:
      workdir: of the run; only read.
      grid: the devices to put them on.
      warn: is told what was damaged.
      items: of `checkpoint.split`, those to restore.
      step: the checkpoint to take instead of the newest.

    Returns:
      The Gan, and the items.

    Raises:
      CheckpointError: there are checkpoints, but none is sound, or not the one wanted.
      ConfigError: the folder is not a run's, has no checkpoint yet, or none of that step, or is of
        64 bits where this process is not.
    """
    config = saved_config(workdir)
    if (config.train.precision == "float64") != jax.config.read("jax_enable_x64"):
        raise ConfigError(
            [f"{workdir} has train.precision={config.train.precision}; use the same here"]
        )
    gan = make_gan(config)
    manager = checkpoint.open_reader(workdir)
    steps = sorted(manager.all_steps()) if manager else []
    if step is not None and steps and step not in steps:
        there = ", ".join(map(str, steps))
        raise ConfigError([f"{workdir} holds no checkpoint of step {step}; there are {there}"])
    parts = checkpoint.split(abstract_state(gan, grid))
    like = {name: parts[name] for name in items}
    restored = manager and checkpoint.restore(manager, like, warn, only=step)
    if restored is None:
        raise ConfigError([f"{workdir} holds no checkpoint yet; train first"])
    return gan, restored


def begin_from(
    workdir: Path, nets: str, state: TrainState, grid: Mesh, console: Console
) -> TrainState:
    """A fresh state with another run's networks; optimisers and step stay fresh.

    Args:
      workdir: of the other run.
      nets: `both`, or `generator`.
      state: drawn for this run.
      grid: its devices.
      console: is told where the networks come from.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: the folder is not a run's, or its networks are not this run's.
    """
    items = ("gen",) if nets == "generator" else ("gen", "train")
    try:
        _, restored = restore_networks(workdir, grid, console.warn, items)
    except ConfigError as error:
        raise ConfigError([f"{KEY}: {problem}" for problem in error.problems]) from error
    found = {"generator": restored.items["gen"]}
    if nets == "both":
        found["discriminator"] = restored.items["train"]["disc"]
    fresh = {"generator": state.gen, "discriminator": state.disc}
    problems = [p for name, tree in found.items() for p in _differences(name, fresh[name], tree)]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        raise ConfigError(
            [
                *problems[:_SHOWN],
                *more,
                f"{KEY}: {workdir} has other networks; make model.*, data.channels and "
                "train.precision those of its config.json"
                + (", or take train.init_nets=generator" if nets == "both" else ""),
            ]
        )
    console.note(f"begins with the {' and '.join(found)} of {workdir}, step {restored.step}")
    state = state._replace(gen=_put(state.gen, found["generator"], grid))
    if state.ema:
        state = state._replace(ema=jax.tree.map(jnp.copy, state.gen.params))
    if nets == "both":
        state = state._replace(disc=_put(state.disc, found["discriminator"], grid))
    return state


def _put(fresh: NetState, found: Tree, grid: Mesh) -> NetState:
    replicated = mesh.replicated(grid)
    return fresh._replace(**{k: jax.device_put(found[k], replicated) for k in ("params", "stats")})


def _differences(name: str, fresh: NetState, found: Tree) -> list[str]:
    """What two states of a network do not have in common, tensor by tensor."""

    def shapes(part: str, tree: Tree) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            f"{name} {part}/{'/'.join(str(key.key) for key in path)}": f"{x.dtype}{list(x.shape)}"
            for path, x in leaves
        }

    problems = []
    for part in ("params", "stats"):
        here, there = shapes(part, getattr(fresh, part)), shapes(part, found[part])
        for path in sorted(here.keys() | there.keys()):
            ours, theirs = (side.get(path, "absent") for side in (here, there))
            if ours != theirs:
                problems.append(f"{path}: {ours} in this run, {theirs} there")
    return problems
