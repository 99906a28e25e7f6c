"""A run's folder out of tensors of the published PyTorch layout: config and first state."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from p2p_jax import checkpoint, mesh, report
from p2p_jax.config import Config, ConfigError, flatten, merge
from p2p_jax.console import Console
from p2p_jax.networks import abstract_state, draw, make_task
from p2p_jax.state import Gan, NetState, TrainState
from p2p_jax.weights.detect import (
    GENERATOR,
    detect_discriminator,
    detect_generator,
    reference_dropout,
    settled_bias,
)
from p2p_jax.weights.layout import Arrays, Network, layout, to_flax

DROPOUT = f"{GENERATOR}dropout"
Tree = Any


def occupied(workdir: Path) -> list[str]:
    """Why a folder cannot become a run's; nothing is overwritten."""
    files = [path for path in (workdir, *workdir.parents) if path.exists() and not path.is_dir()]
    if files:
        return [f"--workdir: {files[0]} is not a folder"]
    there = [
        name for name in ("config.json", "run.json", "checkpoints") if (workdir / name).exists()
    ]
    if there:
        return [f"--workdir: {workdir} holds {there[0]} already; use a new folder"]
    return []


@contextlib.contextmanager
def blaming(flag: str, problems: list[str]) -> Iterator[None]:
    """Collects what is wrong into `problems`, called by the flag that it came from, if any."""
    try:
        yield
    except ConfigError as error:
        problems += [f"{flag}: {problem}" if flag else problem for problem in error.problems]


def settled(
    config: Config,
    tensors: dict[str, Arrays],
    flags: dict[str, str],
    overrides: Collection[str],
    console: Console,
) -> tuple[Config, dict[str, Network]]:
    """The config with what the tensors decide, and what decides the keys of the files.

    Args:
      config: before that.
      tensors: of `input` and perhaps `discriminator`, cleaned, by key.
      flags: the command line's.
      overrides: keys of the config that were set there.
      console: is told of what was guessed or overruled.

    Raises:
      ConfigError: they are not what they should be.
    """
    problems: list[str] = []
    networks = {}
    values: dict[str, Any] = {}
    with blaming(f"--input: {flags['input']}", problems):
        networks["input"], values = detect_generator(tensors["input"])
    if "discriminator" in tensors and values:
        with blaming(f"--discriminator: {flags['discriminator']}", problems):
            networks["discriminator"], found = detect_discriminator(
                tensors["discriminator"], values["data.channels"]
            )
            values |= found
    if problems:
        raise ConfigError(problems)
    if "discriminator" not in tensors:
        console.note("no --discriminator was given: a fresh one is drawn, as the config has it")
    if DROPOUT in overrides:
        values.pop(DROPOUT, None)
    elif networks["input"].kind == "unet":
        blocks = values[DROPOUT] = reference_dropout(networks["input"].size)
        console.note(
            f"dropout cannot be seen in a U-Net's tensors; as in the reference, {DROPOUT}={blocks}"
            + f" (trained with --no_dropout: --config.{DROPOUT}= with nothing after it)"
            * bool(blocks)
        )
    flat = flatten(config)
    if values.get("data.channels") == (1, 2) and flat["data.task"] == "translate":
        console.note("1 channel to 2: if that is colorization, add --config.data.task=colorize")
    with contextlib.suppress(ValueError):  # which is said later, with all else
        if make_task(config).channels == values["data.channels"]:
            del values["data.channels"]  # colorize has another name for them, too
    changed = {k: v for k, v in values.items() if not _alike(k, flat[k], values, networks)}
    for key, value in changed.items():
        # Without a file, only what was asked for is contradicted.
        if key != DROPOUT and ("config" in flags or key in overrides):
            console.warn(f"{key}: {flat[key]!r} -> {value!r}, as the tensors say")
    return merge(config, changed), networks


def _alike(key: str, old: Any, values: dict[str, Any], networks: dict[str, Network]) -> bool:
    """Whether a key's old value means the same network as the one the tensors tell."""
    section, _, leaf = key.rpartition(".")
    new = values[key]
    if leaf == "upsample":
        return old in ("auto", "deconv")
    if leaf == "innermost_norm":
        return old in ("auto", "no")
    if leaf == "skip_activation":
        return old in ("auto", "relu")
    if leaf == "dropout" and networks["input"].kind == "resnet":
        return bool(old) == bool(new)
    if leaf == "bias":
        kind = networks["input" if section == "model.generator" else "discriminator"].kind
        norm = values[f"{section}.norm"]
        return settled_bias(kind, norm, old) == settled_bias(kind, norm, new)
    return old == new


def filled(
    gan: Gan,
    seed: int,
    networks: dict[str, Network],
    tensors: dict[str, Arrays],
    flags: dict[str, str],
) -> TrainState:
    """A fresh state with the networks of the files.

    Args:
      gan: of the settled config.
      seed: of what is drawn.
      networks: by flag, as `settled` gives them.
      tensors: likewise.
      flags: the command line's.

    Raises:
      ConfigError: tensors that are missing, left over or of another shape.
    """
    grid = mesh.make_mesh(1)
    like, problems = abstract_state(gan, grid), []
    found: dict[str, NetState] = {}
    for flag, net in (("input", like.gen), ("discriminator", like.disc)):
        if flag in tensors:
            with blaming(f"--{flag}: {flags[flag]}", problems):
                found[flag] = _placed(net, networks[flag], tensors[flag])
    if problems:
        raise ConfigError(problems)

    def parts(state: TrainState) -> TrainState:
        """Without the arrays that the files have."""
        bare = state._replace(gen=NetState({}, {}, state.gen.opt_state), ema={})
        if "discriminator" not in found:
            return bare
        return bare._replace(disc=NetState({}, {}, state.disc.opt_state))

    state = draw(gan, seed, like, parts)
    for flag, name in (("input", "gen"), ("discriminator", "disc")):
        if flag in found:
            fresh = getattr(state, name)
            net = found[flag]._replace(opt_state=fresh.opt_state)
            state = state._replace(**{name: net})
    return state._replace(ema=jax.tree.map(jnp.copy, state.gen.params) if gan.ema_decay else {})


def _placed(net: NetState, network: Network, tensors: Arrays) -> NetState:
    """An abstract network with a file's tensors, laid out as it is."""
    wanted = by_path(net.params, net.stats)
    entries = layout(network, wanted)
    arrays = to_flax(tensors, entries, {path: x.shape for path, x in wanted.items()})
    placed = {
        path: jax.device_put(array.astype(wanted[path].dtype), wanted[path].sharding)
        for path, array in arrays.items()
    }
    tree = traverse_util.unflatten_dict(placed, sep="/")
    return NetState(tree["params"], tree.get("stats", {}), None)


def by_path(params: Tree, stats: Tree) -> dict[str, Any]:
    """Arrays by paths like `params/enc1/conv/kernel`."""
    return traverse_util.flatten_dict({"params": params, "stats": stats}, sep="/")


def save(workdir: Path, config: Config, state: TrainState, meta: dict[str, Any]) -> None:
    """Writes the run's folder beside its place and moves it there, so that no half of one stays."""
    near = workdir.absolute()
    while not near.is_dir():
        near = near.parent
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=near, ignore_cleanup_errors=True) as d:
        stage = Path(d) / "workdir"
        stage.mkdir()
        report.write_json(stage / "config.json", config.to_dict())
        report.write_run(stage, report.environment() | meta)
        manager = checkpoint.open_manager(stage, config.train.keep, lambda: None)
        try:
            checkpoint.save(manager, state, {}, None)
        finally:
            checkpoint.close(manager)
        if not workdir.exists():
            workdir.parent.mkdir(parents=True, exist_ok=True)
            stage.rename(workdir)
            return
        for name in ("run.json", "checkpoints", "config.json"):
            (stage / name).rename(workdir / name)
