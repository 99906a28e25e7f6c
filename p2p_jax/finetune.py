"""The networks of another run: to begin with, or to take elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2p_jax import checkpoint, mesh
from p2p_jax.checkpoint import Restored
from p2p_jax.config import Config, ConfigError, flatten, shortened
from p2p_jax.console import Console
from p2p_jax.flags import run_folder, saved_config
from p2p_jax.manager import Manager
from p2p_jax.networks import abstract_state, make_gan
from p2p_jax.state import Gan, NetState, TrainState
from p2p_jax.storage import AnyPath

Tree = Any
KEY = "train.init_from"
# Keys that make another function of the same parameters, or parameters of the same shape; not those
# that only matter when they are drawn.
_MEANING = (
    *("model.", "data.channels", "data.task", "data.labels", "data.palette", "data.classes"),
    *("data.source_range", "data.target_range", "data.hole"),
)
_DRAWN = ("model.init", "model.init_gain", "model.norm_scale_std")


def restore_networks(
    workdir: AnyPath,
    grid: Mesh,
    warn: Callable[[str], None],
    items: tuple[str, ...],
    step: int | None = None,
    key: str = "--workdir",
) -> tuple[Gan, Restored]:
    """The networks of a run's newest sound checkpoint, by the config it was trained with.

    Args:
      workdir: of the run; only read.
      grid: the devices to put them on.
      warn: is told what was damaged.
      items: of `checkpoint.split`, those to restore.
      step: the checkpoint to take instead of the newest.
      key: what to call the folder where something is wrong with it.

    Returns:
      The Gan, and the items.

    Raises:
      CheckpointError: there are checkpoints, but none is sound, or not the one wanted.
      ConfigError: the folder is not a run's, has no checkpoint yet, or none of that step, or is of
        64 bits where this process is not.
    """
    config, manager = _run(workdir, key)
    gan, steps = make_gan(config), sorted(manager.all_steps())
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps))
        raise ConfigError(
            [f"{key}: {workdir} holds no checkpoint of step {step}; there are {there}"]
        )
    parts = checkpoint.split(abstract_state(gan, grid))
    like = {name: parts[name] for name in items}
    restored = checkpoint.restore(manager, like, warn, only=step)
    assert restored is not None  # there are steps, and it raises where none is sound
    return gan, restored


def _run(workdir: AnyPath, key: str) -> tuple[Config, Manager]:
    """A run's config, and its checkpoints, of which there are some; see `restore_networks`."""
    config = saved_config(workdir, key)
    if (config.train.precision == "float64") != jax.config.read("jax_enable_x64"):
        raise ConfigError(
            [f"{key}: {workdir} has train.precision={config.train.precision}; use the same here"]
        )
    manager = checkpoint.open_reader(workdir)
    if not manager or not manager.all_steps():
        raise ConfigError([f"{key}: {workdir} holds no checkpoint yet; train first"])
    return config, manager


def check(config: Config, console: Console) -> None:
    """Whether a run can begin as `train.init_from` says; reads and compiles nothing large.

    Args:
      config: of the run that is to begin.
      console: is told what makes another function of the same weights.

    Raises:
      ConfigError: the folder is not a run's, has no checkpoint, is of 64 bits where this process is
        not, or has other networks.
    """
    (workdir, problems), nets = run_folder(KEY, config.train.init_from), config.train.init_nets
    if problems:
        raise ConfigError(problems)
    donor, _ = _run(workdir, KEY)
    grid = mesh.make_mesh(1)
    ours, theirs = (abstract_state(make_gan(c), grid) for c in (config, donor))
    wrong = _differences("generator", ours.gen, theirs.gen)
    way_out = "" if wrong else ", or take train.init_nets=generator"
    if nets == "both":
        wrong += _differences("discriminator", ours.disc, theirs.disc)
    if wrong:
        raise ConfigError(
            [
                *shortened(wrong),
                f"{KEY}: {workdir} has other networks; make model.*, data.task and data.channels "
                f"those of its config.json{way_out}",
            ]
        )
    here, there = flatten(config), flatten(donor)
    for key in here:
        other_net = nets == "generator" and key.startswith("model.discriminator.")
        if key.startswith(_MEANING) and key not in _DRAWN and not other_net:
            if here[key] != there[key]:
                console.warn(f"{key}: {here[key]!r}, but {there[key]!r} in {workdir}")


def begin_from(
    workdir: AnyPath, nets: str, state: TrainState, grid: Mesh, console: Console
) -> TrainState:
    """A fresh state with another run's networks; optimisers and step stay fresh.

    Args:
      workdir: of the other run, which `check` has nothing against.
      nets: `both`, or `generator`.
      state: drawn for this run.
      grid: its devices.
      console: is told where the networks come from.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: the folder is not a run's any more.
    """
    items = ("gen",) if nets == "generator" else ("gen", "train")
    _, restored = restore_networks(workdir, grid, console.warn, items, key=KEY)
    state = state._replace(gen=_put(state.gen, restored.items["gen"], grid))
    if state.ema:
        state = state._replace(ema=jax.tree.map(jnp.copy, state.gen.params))
    names = "generator"
    if nets == "both":
        names = "generator and discriminator"
        state = state._replace(disc=_put(state.disc, restored.items["train"]["disc"], grid))
    console.note(f"begins with the {names} of {workdir}, step {restored.step}")
    return state


def _put(fresh: NetState, found: Tree, grid: Mesh) -> NetState:
    replicated = mesh.replicated(grid)
    return fresh._replace(**{k: jax.device_put(found[k], replicated) for k in ("params", "stats")})


def _differences(name: str, ours: NetState, theirs: NetState) -> list[str]:
    """What two states of a network do not have in common, tensor by tensor."""

    def shapes(part: str, tree: Tree) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            f"{name} {part}/{'/'.join(str(key.key) for key in path)}": f"{x.dtype}{list(x.shape)}"
            for path, x in leaves
        }

    problems = []
    for part in ("params", "stats"):
        here, there = shapes(part, getattr(ours, part)), shapes(part, getattr(theirs, part))
        for path in sorted(here.keys() | there.keys()):
            one, other = (side.get(path, "absent") for side in (here, there))
            if one != other:
                problems.append(f"{path}: {one} in this run, {other} there")
    return problems
