"""What the parts of `accelerator` share: the request, the clock, the rows and how they are told."""

from __future__ import annotations

import dataclasses
import gc
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from p2p_jax.bench import step, table
from p2p_jax.bench.clock import Clock
from p2p_jax.bench.facades import METRIC_NAMES
from p2p_jax.bench.rows import Options, Row, row, write

FORMS = ("plain", "polyphase")  # of the convolutions; the first, until one was measured


class Request(NamedTuple):
    """What a command line asks for; see `accelerator`.

    Attributes:
      data: folder of facades, if any.
      output: where to write rows, if anywhere.
      seconds: in all.
      lr: of the bfloat16 run on facades.
      batch_size: likewise.
      images: that it sees.
      every: so many images it is evaluated.
      each: seconds that a measurement takes.
    """

    data: Path | None
    output: Path | None
    seconds: float
    lr: float
    batch_size: int
    images: int
    every: int
    each: float


@dataclasses.dataclass
class Measuring:
    """What all parts share.

    Attributes:
      request: what is asked for.
      clock: of the whole.
      options: of measurements.
      peaks: by precision, see `step`.
      found: the rows so far.
      machine: what every row is told with.
      failed: whether a part was.
    """

    request: Request
    clock: Clock
    options: Options
    peaks: dict[str, Any]
    found: list[Row]
    machine: dict[str, Any]
    failed: bool = False

    def add(self, name: str, part: Callable[[], list[Row]]) -> None:
        """Does a part, tells its rows and keeps them; one that fails does not end the others."""
        try:
            made = part()
        except Exception as error:
            traceback.print_exc()
            made = [row(name, "", error=f"{type(error).__name__}: {error}".splitlines()[0])]
            self.failed = True
        self.found += made
        freed()
        for line in ["", *table.lines(made), *_told(made)]:
            note(line)
        if self.request.output is not None:
            write(self.request.output, [each | {"machine": self.machine} for each in self.found])

    def ours(self) -> list[Row]:
        """Our training steps so far that were measured, the fastest first."""
        rows = [r for r in self.found if r["part"] == "step" and r["impl"] == "p2p_jax"]
        return sorted((r for r in rows if r["images_per_sec"]), key=lambda r: -r["images_per_sec"])

    def best_form(self) -> str:
        """Of the convolutions in our fastest step so far."""
        return next((r["form"] for r in self.ours()), FORMS[0])


def note(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def freed() -> None:
    """Gives back what a part had on the device."""
    gc.collect()
    if sys.modules.get("torch") is not None:
        step.freed()


# --- telling -------------------------------------------------------------------------------------


def _told(rows: list[Row]) -> list[str]:
    """What the table does not show of rows."""
    told = []
    for each in rows:
        names = [each[k] for k in ("part", "impl", "form", "precision", "batch_size") if each[k]]
        name = ", ".join(map(str, names))
        if "skipped" in each:
            told.append(f"{name}: left out: {each['skipped']}")
        if each["part"] == "peak" and each.get("peak_flops"):
            told.append(f"{name}: {each['peak_flops'] / 1e12:.4g} TFLOP/s of matrix products")
        if "train_seconds" in each:
            told.append(
                f"{name}: {each['images']} images in {each['train_seconds']:.1f} s, after "
                f"{each['compile_seconds']:.1f} s of compiling; on val:"
            )
            shown = [*each["evaluations"], {"images": "constant", **each.get("baseline", {})}]
            told += _metrics(shown if "baseline" in each else shown[:-1])
        if each["part"] == "equal":
            told += [f"{name}:", *_metrics([each])]
    return told


def _metrics(found: list[dict[str, Any]]) -> list[str]:
    names = ("images", *METRIC_NAMES)
    return table.aligned([names, *([table.cell(each[name]) for name in names] for each in found)])
