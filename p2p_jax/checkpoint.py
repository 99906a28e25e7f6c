"""Checkpoints: Orbax behind a few functions.

A checkpoint `checkpoints/STEP/` is labelled with the number of updates done and has three items:
`gen` (`params`, `stats`, `ema`: all that inference needs), `train` (the rest of the state) and
`meta` (JSON, with a fingerprint of every array, as a flipped bit in an array file restores without
complaint). It says nothing of the devices or processes that it was made on, nor depends on them.

With several processes, all must call each function that takes a manager, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from p2p_jax import peers, storage
from p2p_jax.fingerprints import examine, fingerprint, whole
from p2p_jax.manager import TEMPORARY, Manager, best_of, open_manager, open_reader
from p2p_jax.process import Failure
from p2p_jax.restore import FORMAT, CheckpointError, Restored, digest, first_line, restore
from p2p_jax.state import NetState, TrainState

__all__ = [
    "CheckpointError", "NotFiniteState", "Restored", "SaveFailed", "best_of", "close",
    "fingerprint", "join", "latest", "open_manager", "open_reader", "restore", "save", "settle",
    "split",
]  # fmt: skip

Tree = Any


class SaveFailed(Failure):
    """A checkpoint could not be written; those from before are as they were.

    Attributes:
      step: that it was of.
    """

    def __init__(self, step: int, text: str) -> None:
        """Takes the step, and what to tell."""
        super().__init__(text)
        self.step = step


class NotFiniteState(Failure):
    """A state with NaN or infinities in it, which is not worth a checkpoint."""


def save(
    manager: Manager,
    state: TrainState,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
) -> None:
    """Begins to save a state under its step; the arrays may be donated as soon as this returns.

    What goes wrong while it is written is raised by the next `save`, `settle` or `close`.

    Args:
      manager: from `open_manager`.
      state: what to save.
      meta: JSON to keep beside it.
      metrics: evaluation results of this very step, if there are any.

    Raises:
      CheckpointError: a checkpoint of this or a later step exists.
      NotFiniteState: there is NaN or infinity in the state. Nothing is written.
      SaveFailed: the save before this one failed, and this one was not begun; it can be tried.
    """
    settle(manager)
    step, newest = int(state.step), latest(manager)
    if newest is not None and step <= newest:  # forced, Orbax would save it
        raise CheckpointError(
            f"step {step} cannot be saved: {manager.directory} already holds step {newest}"
        )
    parts = split(state)
    looks = {name: examine(part) for name, part in parts.items()}
    bad = [f"{name}/{path}" for name, (_, paths) in looks.items() for path in paths]
    if bad:
        more = f" and {len(bad) - 3} more arrays" if len(bad) > 3 else ""
        raise NotFiniteState(
            f"the state of step {step} is not saved: there is NaN or infinity in "
            f"{', '.join(bad[:3])}{more}"
        )
    meta = {
        "format": FORMAT,
        "fingerprints": {name: numbers for name, (numbers, _) in looks.items()},
        **meta,
    }
    copies = jax.tree.map(_own_copy, parts)
    manager.saving, manager.newest = (step, newest), step
    if peers.first():
        try:
            manager.save(
                step,
                metrics=dict(metrics) if metrics else None,
                force=True,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonSave({**meta, "digest": digest(meta)}),
                    **{name: ocp.args.StandardSave(part) for name, part in copies.items()},
                ),
            )
        except Exception as error:  # other processes cannot hear of it here
            manager.failure = error


def settle(manager: Manager) -> None:
    """Waits for the save under way, if there is one.

    Raises:
      SaveFailed: it failed. Nothing of it is left; other steps can be saved, or this one again.
    """
    if manager.saving is None:
        return
    (step, newest), manager.saving = manager.saving, None
    told, error = _ended(manager, step)
    told = peers.gather(told)[0]
    if told:
        manager.newest = newest
        raise SaveFailed(step, told) from error


def latest(manager: Manager) -> int | None:
    """The newest step saved, or being saved."""
    return manager.newest


def close(manager: Manager) -> None:
    """Waits for the save under way and closes; waits for no other process, as one may have failed.

    Raises:
      SaveFailed: the save failed. Only the process that writes hears of it here; see `settle`.
    """
    try:
        if manager.saving is not None:
            (step, _), manager.saving = manager.saving, None
            told, error = _ended(manager, step)
            if told:
                raise SaveFailed(step, told) from error
    finally:
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


def _own_copy(x: jax.Array) -> Any:
    """A copy to write, which donation of the state leaves alone.

    With one process it is made on the devices, so that training need not wait. With several it is
    made in the host memory of process 0 alone, one array after the other, as it may be in pieces on
    the devices of all because none has room for the whole state.
    """
    if jax.process_count() == 1 or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.copy(x)  # on CPU what is fetched may be the device's own memory
    piece = jax.block_until_ready(whole(x))
    return np.array(piece.addressable_data(0)) if peers.first() else None


def _ended(manager: Manager, step: int) -> tuple[str, Exception | None]:
    """Waits for a save in the process that writes; what to tell of it and why, where it failed."""
    if not peers.first():
        return "", None
    error, manager.failure = manager.failure, None
    try:
        manager.wait_until_finished()
    except Exception as raised:
        error = error or raised
    if error is None:
        return "", None
    _clear(manager, step)
    kept = ", ".join(str(n) for n in sorted(manager.all_steps()))
    there = f"those of steps {kept} are intact" if kept else "there is none from before"
    return (
        f"checkpoint {step} was not saved: {_reason(error)}; {there} ({manager.directory})",
        error,
    )


def _reason(error: Exception) -> str:
    """Why a save failed, in the system's words where it was the system."""
    text = first_line(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as TensorStore quotes it
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f" ({error.filename})" if error.filename else "")
    elif code:
        text = os.strerror(int(code[1]))
    return f"there is no room: {text}" if storage.no_room(error) else text


def _clear(manager: Manager, step: int) -> None:
    """Removes what a failed save left, and has Orbax forget it."""
    end = time.monotonic() + 30
    # The folder itself may be what is wrong; libraries for buckets raise many kinds.
    with contextlib.suppress(Exception):
        while time.monotonic() < end:  # writes of other files of it may still be under way
            manager.refresh()
            left = _unfinished(manager, step)
            if not left:
                break
            for path in left:
                with contextlib.suppress(Exception):
                    path.rmtree()
            time.sleep(0.1)


def _unfinished(manager: Manager, step: int) -> list[Any]:
    """Folders of a step that were not completed; in a bucket they have its name from the start."""
    named = storage.is_remote(manager.directory) and step not in manager.all_steps()
    return [
        path
        for path in manager.directory.iterdir()
        if path.name.startswith(f"{step}{TEMPORARY}") or (named and path.name == str(step))
    ]
