"""Rows as a table for people; needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2p_jax.bench.rows import Row

COLUMNS = ("part", "impl", "form", "precision", "batch_size", "images_per_sec", "ms", "ratio")


def lines(rows: Sequence[Row]) -> list[str]:
    """The columns of all rows, and below them what else is to tell of each."""
    made = aligned([list(COLUMNS), *([cell(row[name]) for name in COLUMNS] for row in rows)])
    for row in rows:
        if extra := _extra(row):
            names = [row[name] for name in COLUMNS[:5] if row[name] is not None]
            made.append(f"{', '.join(map(str, names))}: {extra}")
    return made


def cell(value: Any) -> str:
    """A figure as people read it; ``-`` where there is none."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def size(count: float) -> str:
    """So many bytes in words."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:g} bytes"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its head; columns of numbers are flush right."""
    made = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        numbers = all(_is_number(text) for text in column[1:])
        made.append([text.rjust(width) if numbers else text.ljust(width) for text in column])
    return ["  ".join(texts).rstrip() for texts in zip(*made, strict=True)]


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(",", "").replace(".", "").isdecimal()


def _extra(row: Row) -> str:
    """What a part tells beside the table."""
    told = []
    if "error" in row:
        told.append(row["error"])
    if row.get("trial"):
        told.append("a trial")
    if "data_wait_frac" in row:
        told.append(f"{row['data_wait_frac']:.2%} of the time is spent waiting for data")
    if "memory" in row:
        at = zip(row["memory"], row["memory_at"], strict=True)
        seen = ", ".join(f"{size(held)} after {count}" for held, count in at)
        told.append(f"memory {seen} pairs; peak {size(row['memory_peak'])} with all libraries")
    if row.get("mfu"):
        told.append(f"MFU {row['mfu']:.1%} of {_rate(row['peak_flops'])} measured")
    if row.get("mfu_sheet"):
        told.append(f"{row['mfu_sheet']:.1%} of the data sheet's {_rate(row['sheet_flops'])}")
    if row.get("ratio_best"):
        told.append(f"{row['ratio_best']:.3g} times the best of torch in any precision")
    if "bytes_accessed" in row:
        told.append(_program(row))
    for name in ("traffic", "arithmetic"):
        if row.get(f"{name}_ms"):
            told.append(f"{name} takes {row[f'{name}_ms']:.4g} ms at least")
    return "; ".join(told)


def _rate(operations: float) -> str:
    return f"{operations / 1e12:.4g} TFLOP/s"


def _program(row: Row) -> str:
    """What a compiled program says of itself, for people."""
    told = []
    if row.get("flops"):
        told.append(f"{row['flops'] / 1e9:.4g} GFLOP")
    if row.get("bytes_accessed"):
        told.append(f"{size(row['bytes_accessed'])} accessed")
    if row.get("hbm_bytes"):
        outside = f"{size(row['outside_bytes'])} of it outside of loops"
        told.append(f"{size(row['hbm_bytes'])} to and from HBM ({outside})")
    if row.get("peak_memory"):
        told.append(f"{size(row['peak_memory'])} of memory")
    if row.get("all_reduces"):
        told.append(f"{row['all_reduces']} all-reduces of {size(row['reduced_bytes'])}")
    told += [f"{count} {kind}" for kind, count in row.get("collectives", {}).items()]
    return ", ".join(told)
