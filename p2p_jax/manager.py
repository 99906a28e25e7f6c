"""Orbax's manager of a workdir's checkpoints: opened for writing or reading, asked what is there.

With several processes the first one alone writes, and each reads by itself: so no process waits
inside Orbax for one that failed. What they found is compared outside of it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata import array_metadata_store

from p2p_jax import peers, storage
from p2p_jax.storage import AnyPath

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not completed
ASIDE = ".damaged"  # in the name of what is out of the way


class Manager(ocp.CheckpointManager):
    """Orbax's manager, and what has become of saves; of the same mind in all processes.

    Attributes:
      newest: the last step saved, or being saved.
      saving: the step being saved, and the newest before it.
      failure: what was raised as that save began.
    """

    newest: int | None = None
    saving: tuple[int, int | None] | None = None
    failure: Exception | None = None

    def metrics(self, step: int) -> Any:
        """Those saved with a step; None where there are none, or they cannot be read."""
        try:
            return super().metrics(step)
        except Exception:  # of a damaged file: the arrays may be sound, and opening reads them all
            return None

    def refresh(self) -> None:
        """Looks at the folder anew, after something else was done there than saving."""
        storage.forget(self.directory)
        self.reload()


class _Kept:
    """Preserves the latest checkpoints and the best one.

    Orbax asks as it begins to save, the new step included, and deletes what is not preserved once
    the new one is complete. Where that never is, the best one from before remains the best.
    """

    def __init__(self, latest: int, best: Callable[[], int | None]) -> None:
        self._latest, self._best = latest, best
        self._named: list[int] = []  # by `best`, last one last

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        best = self._best()
        self._named = [step for step in self._named if step != best and step in steps]
        if best is not None:
            self._named.append(best)
        kept = {*steps[-self._latest :], *[step for step in self._named if step in steps][-1:]}
        return [step in kept for step in steps]


def open_manager(workdir: AnyPath, keep: int, best: Callable[[], int | None]) -> Manager:
    """The checkpoints of a workdir, for writing; with several processes, all must open them.

    Args:
      workdir: holds `checkpoints/`, made if missing.
      keep: latest ones that are kept.
      best: the step of the best one, which is kept as well; asked at each save.
    """
    folder = _folder(workdir)
    writing = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: 0.0,  # without it, Orbax writes no metrics
        preservation_policy=_Kept(keep, best),
        cleanup_tmp_directories=True,
        create=False,
        # Else threads that wait for a folder outlive, by minutes, a save that could not make it.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=_alone(),
    )

    def made() -> Manager | None:
        if not peers.first():
            return None
        folder.mkdir(parents=True, exist_ok=True)
        return Manager(folder, options=writing, handler_registry=_handlers())

    manager = peers.together(made)
    manager = peers.together(lambda: manager or _reader(folder))
    if jax.process_count() > 1:
        _write_alone()
    manager.newest = peers.gather(manager.latest_step())[0]
    return manager


def open_reader(workdir: AnyPath) -> Manager | None:
    """The checkpoints of a workdir, for reading alone; None where there are none."""
    folder = _folder(workdir)
    return _reader(folder) if folder.is_dir() else None


def _folder(workdir: AnyPath) -> AnyPath:
    # Orbax explains itself at length; what matters comes as an exception.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if sys.unraisablehook is not _unless_ended:
        _before.append(sys.unraisablehook)
        sys.unraisablehook = _unless_ended
    return storage.absolute(workdir / "checkpoints")


_before: list[Any] = []
_OVERTAKEN = ("Event loop is closed", "Encountered error while reading array index")


def _unless_ended(raised: Any) -> None:
    """Prints what nothing can catch, but not for each read or write that a failed one overtook."""
    error = raised.exc_value
    if not str(error).startswith(_OVERTAKEN):
        _before[-1](raised)


def _reader(folder: AnyPath) -> Manager:
    options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=_alone())
    manager = Manager(folder, options=options, handler_registry=_handlers())
    manager.newest = manager.latest_step()
    return manager


def _alone() -> Any:
    """For Orbax: this process does all, and waits for no other."""
    here = {jax.process_index()}
    return ocp.options.MultiprocessingOptions(primary_host=None, active_processes=here)


def _handlers() -> Any:
    """Of the items of a checkpoint; those that Orbax takes by itself have process 0 wait."""
    registry, args = ocp.handlers.DefaultCheckpointHandlerRegistry(), ocp.args
    for name in ("gen", "train"):
        arrays = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
        registry.add(name, args.StandardSave, arrays)
        registry.add(name, args.StandardRestore, arrays)
    text = ocp.JsonCheckpointHandler(multiprocessing_options=_alone())
    registry.add("meta", args.JsonSave, text)
    registry.add("meta", args.JsonRestore, text)
    return registry


def _write_alone() -> None:
    """Has Orbax write arrays that are whole in this process, where others hold copies of them.

    Otherwise each process would be asked for its share. What is in host memory it need not copy:
    `checkpoint.save` hands over arrays that nobody else has.
    """
    handler = ocp.type_handlers.ArrayHandler(
        primary_host=None,
        replica_id=None,
        use_replica_parallel=False,
        array_metadata_store=array_metadata_store.Store(),
    )
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    numpy = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    ocp.type_handlers.register_type_handler(np.ndarray, numpy, override=True)


def best_of(
    manager: Manager, meta: Mapping[str, Any], metric: str, mode: str
) -> dict[str, Any] | None:
    """The best checkpoint of a run so far; with several processes, all must ask.

    Args:
      manager: from `open_manager`.
      meta: of the checkpoint that is gone on from.
      metric: that tells how good one is.
      mode: `min` or `max`, which way it is better.

    Returns:
      `metric`, `value` and `step`: what `meta` has as `best`, or, where that is of another metric
      or its step is not there any more, the best of those that are; None: there is none.
    """
    best, steps = meta.get("best"), manager.all_steps()
    if not isinstance(best, dict) or best["metric"] != metric or best["step"] not in steps:
        # Also of older versions, which saved the value alone.
        values = [(step, (manager.metrics(step) or {}).get(metric, math.nan)) for step in steps]
        values = [(step, value) for step, value in values if math.isfinite(value)]
        choose = min if mode == "min" else max
        best = None
        if values:
            step, value = choose(values, key=lambda pair: pair[1])
            best = {"metric": metric, "value": value, "step": step}
    return peers.gather(best)[0]
