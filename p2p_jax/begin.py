"""How training begins: a state from the newest checkpoint or drawn, and the compiled step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax import checkpoint, finetune, mesh, storage, store
from p2p_jax.build import Experiment
from p2p_jax.checkpoint import CheckpointError
from p2p_jax.console import Console
from p2p_jax.data import Batch
from p2p_jax.ledger import Ledger
from p2p_jax.manager import Manager
from p2p_jax.networks import draw
from p2p_jax.readers import STREAMED
from p2p_jax.state import TrainState
from p2p_jax.step import laid_out_for, make_train_step
from p2p_jax.storage import AnyPath
from p2p_jax.store import Store

# What a run's key is folded with where it tries a stretch again; no step is so large.
_RETRY = 2**31


class Begun(NamedTuple):
    """What the loop needs.

    Attributes:
      step_fn: the compiled step; None where all steps are done, or the run has ended early.
      state: to go on from.
      meta: what was saved with it; empty where it is fresh.
      store: the whole set on the devices, or None.
    """

    step_fn: Any
    state: TrainState
    meta: dict[str, Any]
    store: Store | None


def check_afresh(manager: Manager, workdir: AnyPath, rows: Sequence[dict[str, Any]]) -> None:
    """Sees that a run that had checkpoints is not begun afresh where they are gone.

    Lines beyond the second save tell of a first one that was complete: it is waited for then. Those
    before may be of a run that was killed in the middle of it, and has nothing to go on from.

    Args:
      manager: of its checkpoints.
      workdir: of the run.
      rows: of its metrics.

    Raises:
      CheckpointError: there are such lines, and nothing else is in `checkpoints/`.
    """
    folder = manager.directory
    if checkpoint.latest(manager) is not None or (folder.exists() and any(folder.iterdir())):
        return  # what there may be beside checkpoints, `checkpoint.restore` tells of
    try:
        every = json.loads(storage.found(workdir / "config.json") or b"")["train"]["save_every"]
        least = 2 * int(every)
    except (ValueError, KeyError, TypeError):
        return
    step = max((row["step"] for row in rows), default=0)
    if step > least:
        raise CheckpointError(
            f"{workdir / 'metrics.jsonl'} tells of {step} steps, with a checkpoint every {every}, "
            f"and {folder} is empty: bring the checkpoints back (was the folder copied "
            "without them, is a disk not mounted?), or begin again in another --workdir, or move "
            "metrics.jsonl away"
        )


def begin(
    experiment: Experiment,
    manager: Manager,
    console: Console,
    ledger: Ledger,
    ended: Callable[[dict[str, Any]], bool],
) -> Begun:
    """Restores the newest checkpoint or draws a state, and compiles the step meanwhile.

    Args:
      experiment: what is trained.
      manager: of its checkpoints.
      console: is told what is under way.
      ledger: of the time.
      ended: whether what was saved with a state says that the run has ended early.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: `train.init_from` does not fit.
      DataError: the set does not fit on the devices.
    """
    options = experiment.train
    abstract = experiment.abstract_state()
    # Whether a run has ended early is known once its state is: then compiling waits for that.
    to_do = (checkpoint.latest(manager) or 0) < options.steps and not options.early_stop
    # Before the threads part: several processes must do what they do together in one order.
    filled = fill(experiment, console) if to_do else None
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(compiled, experiment, abstract, filled) if to_do else None
        state, meta = restored(experiment, manager, console)
        step = int(state.step)
        if meta:
            console.note(f"resumed at step {step} of {options.steps}")
        if step >= options.steps or ended(meta):
            return Begun(None, state, meta, None)
        with ledger.on("compile"):
            if compiling is None:  # a checkpoint that was passed over was the last
                filled = fill(experiment, console)
                compiling = pool.submit(compiled, experiment, abstract, filled)
            step_fn = compiling.result()
            state = laid_out_for(step_fn, state)
    console.note(f"compiled in {time.monotonic() - begun:.0f} s")
    return Begun(step_fn, state, meta, filled)


def restored(
    experiment: Experiment, manager: Manager, console: Console, attempt: int = 0
) -> tuple[TrainState, dict[str, Any]]:
    """The state of the newest sound checkpoint, or a fresh one, and what was saved with it.

    Args:
      experiment: what is trained.
      manager: of its checkpoints.
      console: is told what was damaged.
      attempt: how often the stretch from there on has failed: each draws other jitter and dropout.

    Raises:
      CheckpointError: there are checkpoints, but none is sound.
      ConfigError: `train.init_from` does not fit.
    """
    abstract = experiment.abstract_state()
    like = checkpoint.split(abstract)
    found = checkpoint.restore(manager, like, console.warn, set_aside=True)
    if found is None:
        meta, state = {}, _initial(experiment, console, abstract)
    else:
        meta, state = found.meta, checkpoint.join(**found.items)
        if found.step == 0:  # networks from elsewhere; all that is random begins here
            key = jax.random.key(experiment.seed, impl="threefry2x32")
            state = state._replace(key=mesh.put_key(experiment.mesh, key))
    if attempt:
        key = jax.random.wrap_key_data(jnp.array(np.asarray(jax.random.key_data(state.key))))
        key = jax.random.fold_in(key, _RETRY + attempt)
        state = state._replace(key=mesh.put_key(experiment.mesh, key))
    return state, meta


def _initial(experiment: Experiment, console: Console, abstract: TrainState) -> TrainState:
    """A fresh state, with the networks of another run where that is asked for."""
    options = experiment.train
    state = draw(experiment.gan, experiment.seed, abstract)
    if not options.init_from:
        return state
    return finetune.begin_from(
        storage.at(options.init_from), options.init_nets, state, experiment.mesh, console
    )


def compiled(
    experiment: Experiment, abstract: TrainState, filled: Store | None, members: int = 0
) -> Any:
    """The compiled step.

    Args:
      experiment: what is trained.
      abstract: a run's state.
      filled: the whole set on the devices, or None.
      members: how many runs are trained at once; 0: one by itself. See `step.make_train_step`.
    """
    rows, batch_size = experiment.train.steps_per_dispatch, experiment.train.batch_size
    given = experiment.hyper(0, rows)
    hyper: Any = jax.ShapeDtypeStruct(given.shape, given.dtype)
    count = jax.ShapeDtypeStruct((), np.int32)
    if filled:
        indices = jax.ShapeDtypeStruct((rows, batch_size), np.int32)
        batch, reader = (filled.arrays, indices), filled.reader
    else:
        batch, reader = _abstract_batch(experiment), STREAMED
    step_fn = make_train_step(experiment.gan, experiment.mesh, rows, reader, members)
    if members:
        one = (batch, reader.members) if filled else ((batch,), (reader.members,))
        batch = [
            tree if axis is None else _many(tree, members) for tree, axis in zip(*one, strict=True)
        ]
        batch = tuple(batch) if filled else batch[0]
        abstract, hyper = _many((abstract, hyper), members)
    return step_fn.lower(abstract, batch, hyper, count).compile()


def _many(tree: Any, members: int) -> Any:
    """Shapes of an array for each member."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=x.sharding), tree
    )


def _abstract_batch(experiment: Experiment) -> Batch:
    frames, options = experiment.train_frames, experiment.train
    lead = (options.steps_per_dispatch, options.batch_size)
    images: Any = [
        jax.ShapeDtypeStruct((*lead, *frames.shape, form.channels), form.dtype)
        for form in frames.forms
    ]
    sizes: Any = None if frames.sizes is None else jax.ShapeDtypeStruct((*lead, 2), np.int32)
    return Batch(images[0], images[1], sizes)


def fill(experiment: Experiment, console: Console) -> Store | None:
    """The whole set on the devices, where that is asked for.

    Raises:
      DataError: it does not fit.
    """
    options = experiment.train
    if options.cache != "device":
        return None
    begun = time.monotonic()
    filled = store.fill(
        experiment.train_frames,
        experiment.mesh,
        options.cache_share,
        options.threads,
        console.note,
    )
    console.note(f"decoded and stored in {time.monotonic() - begun:.1f} s")
    return filled
