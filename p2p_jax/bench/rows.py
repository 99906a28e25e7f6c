"""Rows of results, what is asked for, and measuring in turn; needs no library."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROUNDS = 3  # of each measurement, in turn; the median counts
FIGURES = ("precision", "batch_size", "images_per_sec", "ms", "ratio")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
      config: the user's `config.Config`, or None: each part says what it takes instead.
      seconds: that each measurement takes in each round.
      pairs: that `prepare` prepares.
      steps: that `loop` trains for.
      batch_sizes: of `step` and `infer`; empty: what suits the device. `compile_for` likewise.
      precisions: likewise.
      forms: of the convolutions in those parts, likewise.
      devices: of those two parts, how many; 0 is all.
      torch_forms: of 'eager' and 'compile', what to set against; empty: nothing.
      folder: for whatever is generated.
      log: told what takes time.
    """

    folder: Path
    log: Callable[[str], None]
    config: Any = None
    seconds: float = 2.0
    pairs: int = 5000
    steps: int = 400
    batch_sizes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    devices: int = 1
    torch_forms: tuple[str, ...] = ()


def row(part: str, form: str, **found: Any) -> Row:
    """A row of results; figures that make no sense for it are None."""
    values: Row = {"part": part, "impl": "p2p_jax", "form": form}
    values |= dict.fromkeys(FIGURES)
    values |= found
    if values["ms"] is None and values["images_per_sec"]:
        values["ms"] = 1000 * (values["batch_size"] or 1) / values["images_per_sec"]
    return values


def in_turn(ways: dict[Any, Callable[[], float]]) -> dict[Any, list[float]]:
    """Each measured once a round, so that what disturbs the machine disturbs all alike."""
    found: dict[Any, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, measure in ways.items():
            found[way].append(measure())
    return found


# --- how they are kept ---------------------------------------------------------------------------


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as JSON, in one move; figures that are not finite become null."""
    text = json.dumps(_finite(list(rows)), indent=2, allow_nan=False)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text + "\n")
    beside.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
