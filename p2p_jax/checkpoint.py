"""Checkpoints: Orbax behind a few functions.

A checkpoint `checkpoints/STEP/` is labelled with the number of updates done and has three items:
`gen` (`params`, `stats`, `ema`: all that inference needs), `train` (the rest of the state) and
`meta` (JSON, with a fingerprint of every array, as a flipped bit in an array file restores without
complaint).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from p2p_jax.process import Failure
from p2p_jax.state import NetState, TrainState

Tree = Any
FORMAT = 1  # of the items; raised when old checkpoints need another reader


class CheckpointError(Failure):
    """No checkpoint of a workdir can be restored."""


class Restored(NamedTuple):
    """What `restore` found: the step, the items asked for, and the JSON saved with them."""

    step: int
    items: dict[str, Tree]
    meta: dict[str, Any]


def open_manager(workdir: Path, keep: int, best: str, mode: str) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, for writing.

    Args:
      workdir: holds `checkpoints/`, made if missing.
      keep: latest ones that are kept.
      best: the metric whose best one is kept as well.
      mode: `min` or `max`, which way that metric is better.
    """
    _quiet()
    worst = math.inf if mode == "min" else -math.inf

    def score(metrics: Mapping[str, float]) -> float:
        value = metrics.get(best, worst)
        return value if math.isfinite(value) else worst

    kept = [
        preserve.LatestN(keep),
        preserve.BestN(
            get_metric_fn=score, reverse=mode == "min", n=1, keep_checkpoints_without_metrics=False
        ),
    ]
    options = ocp.CheckpointManagerOptions(
        best_fn=score,
        best_mode=mode,
        preservation_policy=preserve.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def open_reader(workdir: Path) -> ocp.CheckpointManager | None:
    """The checkpoints of a workdir, for reading alone; None where there are none."""
    _quiet()
    folder = (workdir / "checkpoints").absolute()
    if not folder.is_dir():
        return None
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))


def _quiet() -> None:
    # Orbax explains itself at length; what matters comes as an exception.
    logging.getLogger("absl").setLevel(logging.ERROR)


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
) -> None:
    """Begins to save a state under its step; the arrays may be donated as soon as this returns.

    Args:
      manager: from `open_manager`.
      state: what to save.
      meta: JSON to keep beside it.
      metrics: evaluation results of this very step, if there are any.

    Raises:
      CheckpointError: a checkpoint of this or a later step exists.
    """
    step, newest = int(state.step), latest(manager)
    if newest is not None and step <= newest:  # forced, Orbax would save it
        raise CheckpointError(
            f"step {step} cannot be saved: {manager.directory} already holds step {newest}"
        )
    # On CPU a host copy may be the device's own memory, which donation overwrites.
    parts = jax.tree.map(jnp.copy, split(state))
    meta = {
        "format": FORMAT,
        "fingerprints": {name: fingerprint(part) for name, part in parts.items()},
        **meta,
    }
    manager.save(
        step,
        metrics=dict(metrics) if metrics else None,
        force=True,
        args=ocp.args.Composite(
            meta=ocp.args.JsonSave(meta),
            **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
        ),
    )


def latest(manager: ocp.CheckpointManager) -> int | None:
    """The newest step saved, or being saved."""
    return manager.latest_step()


def restore(
    manager: ocp.CheckpointManager,
    like: Mapping[str, Tree],
    warn: Callable[[str], None],
    set_aside: bool = False,
    only: int | None = None,
) -> Restored | None:
    """Restores the newest sound checkpoint, or returns None where there never was one.

    A checkpoint that cannot be read, or whose arrays are not those that were saved, is passed over.

    Args:
      manager: from `open_manager` or `open_reader`.
      like: abstract arrays, with shardings, of the items wanted.
      warn: is told what was damaged, and why.
      set_aside: rename what was damaged to `STEP.damaged`, out of the way of the steps that will be
        saved again; wants a manager for writing.
      only: the one step to restore; None where it never was.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    if only is not None:
        steps = [step for step in steps if step == only]
    reasons = []
    for step in steps:
        try:
            items, meta = _read(manager, step, like)
        except Exception as error:  # Orbax raises whatever the damage leads to, bare Exception too
            reason = f"checkpoint {step}: {_first_line(error)}"
            reasons.append(reason)
            warn(reason)
            continue
        if set_aside and step != steps[0]:
            for bad in (s for s in steps if s > step):
                warn(f"checkpoint {bad} was moved to {_set_aside(manager, bad).name}")
            manager.reload()
        return Restored(step, items, meta)
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {manager.directory} is sound: {'; '.join(reasons)}. "
            "Nothing was changed"
        )
    return None


def close(manager: ocp.CheckpointManager) -> None:
    """Waits for the last save and raises what went wrong in it."""
    manager.wait_until_finished()
    manager.close()


def split(state: TrainState) -> dict[str, Tree]:
    """The items `gen` and `train` of a state."""
    gen = {"params": state.gen.params, "stats": state.gen.stats, "ema": state.ema}
    train = {
        "step": state.step,
        "key": state.key,
        "gen_opt": state.gen.opt_state,
        "disc": state.disc._asdict(),
    }
    return {"gen": gen, "train": train}


def join(gen: Tree, train: Tree) -> TrainState:
    """The state of two items; the inverse of `split`."""
    return TrainState(
        step=train["step"],
        gen=NetState(gen["params"], gen["stats"], train["gen_opt"]),
        disc=NetState(**train["disc"]),
        ema=gen["ema"],
        key=train["key"],
    )


def fingerprint(tree: Tree) -> list[int]:
    """A 32-bit number for each array of a tree, which any change of a single bit changes."""
    return [int(x) for x in jax.device_get([_fingerprint(leaf) for leaf in jax.tree.leaves(tree)])]


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    width = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).ravel().astype(jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * odd, dtype=jnp.uint32)


def _read(manager: ocp.CheckpointManager, step: int, like: Mapping[str, Tree]):
    wanted = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    found = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **wanted))
    meta = found["meta"]
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']}; this version reads {FORMAT}")
    for name, tree in like.items():
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
        pairs = zip(paths, fingerprint(found[name]), meta["fingerprints"][name], strict=True)
        wrong = [path for path, here, saved in pairs if here != saved]
        if wrong:
            raise ValueError(
                f"{name}{wrong[0]} is not what was saved (of {len(wrong)} such arrays)"
            )
    return {name: found[name] for name in like}, meta


def _set_aside(manager: ocp.CheckpointManager, step: int) -> Path:
    folder = Path(manager.directory) / str(step)
    aside = next(
        path
        for n in range(1000)
        if not (path := folder.with_name(f"{step}.damaged" + (f"-{n}" if n else ""))).exists()
    )
    return folder.rename(aside)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
