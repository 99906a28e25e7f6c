"""Restoring the newest sound checkpoint, and getting those that are not out of the way."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from p2p_jax import peers, storage
from p2p_jax.fingerprints import fingerprint, names
from p2p_jax.manager import ASIDE, Manager
from p2p_jax.process import Failure

Tree = Any
_PAUSE = 1.0  # seconds before another try, where the error may pass
FORMAT = 1  # of the items; raised when old checkpoints need another reader


class CheckpointError(Failure):
    """No checkpoint of a workdir can be restored."""


class Restored(NamedTuple):
    """What `restore` found: the step, the items asked for, and the JSON saved with them."""

    step: int
    items: dict[str, Tree]
    meta: dict[str, Any]


def restore(
    manager: Manager,
    like: Mapping[str, Tree],
    warn: Callable[[str], None],
    set_aside: bool = False,
    only: int | None = None,
) -> Restored | None:
    """Restores the newest sound checkpoint, or returns None where there never was one.

    A checkpoint that some process cannot read twice, or whose arrays are not those that were saved,
    is passed over by all.

    Args:
      manager: from `open_manager` or `open_reader`.
      like: abstract arrays, with shardings, of the items wanted.
      warn: is told what was damaged, and why.
      set_aside: rename what was damaged to `STEP.damaged`, out of the way of the steps that will be
        saved again; wants a manager for writing.
      only: the one step to restore; None where it never was.

    Raises:
      CheckpointError: there are checkpoints, but none is sound; or there were; or one cannot be
        read for reasons that may pass.
      Problems: processes found different things.
    """
    steps, left = peers.gather((sorted(manager.all_steps(), reverse=True), _left(manager)))[0]
    if not steps and left:
        raise CheckpointError(
            f"{manager.directory} holds {', '.join(left)} and no checkpoint: this run had some. "
            f"Begin again in another --workdir, or move that folder away; what may be sound can be "
            f"renamed to its step, as in 100{ASIDE} to 100"
        )
    if only is not None:
        steps = [step for step in steps if step == only]
    reasons = []
    for step in steps:
        found, reason = _twice(manager, step, like, warn)
        if found is None:
            reasons.append(f"checkpoint {step}: {reason}")
            warn(reasons[-1])
            continue
        if set_aside and step != steps[0]:
            for bad in (s for s in steps if s > step):
                name = _set_aside(manager, bad)
                warn(f"checkpoint {bad} was moved to {name}")
            manager.refresh()
            manager.newest = step
        return found
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {manager.directory} is sound: {'; '.join(reasons)}. "
            "Nothing was changed"
        )
    return None


def digest(meta: Mapping[str, Any]) -> str:
    """A number of JSON, however it is laid out."""
    text = json.dumps(json.loads(json.dumps(meta)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    line = text[0] if text else "no message"
    return f"{type(error).__name__}: {line if len(line) <= 300 else line[:300] + '...'}"


def _twice(
    manager: Manager, step: int, like: Mapping[str, Tree], warn: Callable[[str], None]
) -> tuple[Restored | None, str]:
    """Reads a checkpoint as `_attempt`, and once more where something was wrong.

    Raises:
      CheckpointError: what is wrong tells nothing of the checkpoint.
    """
    found, reason, passes = _attempt(manager, step, like)
    if found is not None:
        return found, ""
    time.sleep(_PAUSE if passes else 0)
    before = reason
    found, reason, passes = _attempt(manager, step, like)
    if found is not None:
        warn(f"checkpoint {step} could be read at the second try alone; at the first: {before}")
    elif passes:
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} cannot be read now: {reason}. Nothing was "
            "changed; run again"
        )
    return found, reason


def _attempt(
    manager: Manager, step: int, like: Mapping[str, Tree]
) -> tuple[Restored | None, str, bool]:
    """Reads a checkpoint in all processes.

    Returns:
      It, or None where it is not sound in one of them; why; whether that may be otherwise the next
      time.

    Raises:
      Problems: processes found different things.
    """
    items, meta, error = {}, {}, None
    try:
        items, meta = _read(manager, step, like)
    except Exception as raised:  # Orbax raises whatever the damage leads to, bare Exception too
        error = raised
    reason, passes = _of_all(error and first_line(error), storage.passing(error))
    if error is not None:
        error = None
        _drop_leftovers()
    if not reason:  # fingerprints are taken by all processes together, or by none
        # Each may have read its own, as with a `train.init_from` on its machine.
        peers.agree(f"what checkpoint {step} holds", digest(meta["fingerprints"])[:16])
        reason, passes = _of_all(_difference(items, meta), False)
    return (None if reason else Restored(step, items, meta)), reason, passes


def _of_all(reason: str | None, passes: bool) -> tuple[str, bool]:
    """What the first process has to say that has something to say; whether all that may pass."""
    told = peers.gather((reason, passes))
    bad = [(i, text, passes) for i, (text, passes) in enumerate(told) if text]
    if not bad:
        return "", False
    index, text, _ = bad[0]
    return f"process {index}: {text}" if len(told) > 1 else text, all(p for *_, p in bad)


def _read(manager: Manager, step: int, like: Mapping[str, Tree]) -> tuple[dict, dict]:
    wanted = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
    found = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **wanted))
    meta = found["meta"]
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']}; this version reads {FORMAT}")
    saved = meta.pop("digest", None)  # which older versions did not write
    if saved is not None and saved != digest(meta):
        raise ValueError("meta is not what was saved")
    for name, tree in like.items():
        if len(meta["fingerprints"][name]) != len(jax.tree.leaves(tree)):
            raise ValueError(f"{name} was saved with another number of arrays")
    return {name: found[name] for name in like}, meta


def _difference(items: Mapping[str, Tree], meta: Mapping[str, Any]) -> str | None:
    """Which array is not the one that was saved."""
    for name, tree in items.items():
        pairs = zip(names(tree), fingerprint(tree), meta["fingerprints"][name], strict=True)
        wrong = [path for path, here, saved in pairs if here != saved]
        if wrong:
            return f"{name}/{wrong[0]} is not what was saved (of {len(wrong)} such arrays)"
    return None


def _left(manager: Manager) -> list[str]:
    """Folders beside the checkpoints that were ones."""
    folder = manager.directory
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if ASIDE in path.name)


def _set_aside(manager: Manager, step: int) -> str:
    """Renames a checkpoint, once for all processes; gives its new name."""

    def rename() -> str:
        folder = manager.directory / str(step)
        names = (f"{step}{ASIDE}" + (f"-{n}" if n else "") for n in range(1000))
        aside = next(path for name in names if not (path := folder.with_name(name)).exists())
        if peers.first():
            folder.rename(aside)
        return aside.name

    return peers.gather(peers.together(rename))[0]


def _drop_leftovers() -> None:
    """Ends reads that a failed one left under way, without asyncio's pages about each."""
    logger = logging.getLogger("asyncio")
    logger.disabled = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()
    logger.disabled = False
