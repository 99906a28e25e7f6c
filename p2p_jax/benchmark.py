"""Measures this implementation on this machine.

    python -m p2p_jax.benchmark [--parts=data,wait,prepare] [--json=FILE] [--seconds=N] [--pairs=N]
        [--steps=N] [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...]

Parts, all of them by default:

    data     images/s of decoding alone, of the feed with each data.cache, and how near that comes
             to what all cores could decode: its ratio
    wait     the share of its time that training waits for data, with each data.cache, over --steps
    prepare  images/s of preparing --pairs pairs, and memory after each fifth of them; its ratio is
             that of memory at the end to that after the first fifth

Without --config, pairs are generated: JPEGs of 512x256, in a temporary folder. --seconds is how
long each of three measurements takes, of which the median counts. --json writes all rows to a new
file. Figures of a machine that has other work are of no use.

Exit codes: 0 done, 2 bad input, 1 a failure.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from p2p_jax import benchmarks, mesh
from p2p_jax.benchmarks import Options, Row
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError
from p2p_jax.console import Console
from p2p_jax.flags import config_file, override, split
from p2p_jax.rates import aligned, machine, machine_rows, size
from p2p_jax.report import number, write_json
from p2p_jax.validate import resolved, validate

PARTS: dict[str, Callable[[Options], list[Row]]] = {
    "data": benchmarks.data,
    "wait": benchmarks.wait,
    "prepare": benchmarks.preparation,
}
FLAGS = ("parts", "json", "seconds", "pairs", "steps", "config", "help")
COLUMNS = ("part", "form", "precision", "batch_size", "images_per_sec", "ms", "ratio")


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv, Console()), "interrupted; nothing was written")


def _run(argv: Sequence[str], console: Console) -> int:
    parts, output, config, numbers = _parse(argv)
    found = machine()
    console.header(machine_rows(found))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="p2p-jax-benchmark-") as folder:
        options = Options(
            config=config,
            seconds=numbers["seconds"],
            pairs=int(numbers["pairs"]),
            steps=int(numbers["steps"]),
            folder=Path(folder),
            log=console.note,
        )
        for part in parts:
            rows += PARTS[part](options)
    console.note("")
    for line in aligned(_table(rows)):
        console.note(line)
    for row in rows:
        if extra := _extra(row):
            console.note(f"{row['part']}, {row['form']}: {extra}")
    if output is not None:
        write_json(output, [row | {"machine": found} for row in rows])
        console.done([("written", str(output))])
    return 0


_NUMBERS = {"seconds": ("2", 0), "pairs": ("5000", 10), "steps": ("400", 8)}  # default, least


def _parse(
    argv: Sequence[str],
) -> tuple[list[str], Path | None, Config | None, dict[str, float]]:
    """Parts, the file to write, the config, and numbers by flag.

    Raises:
      ConfigError: all that is wrong.
    """
    flags, overrides, problems = split(argv, FLAGS, ("help",))
    parts = flags.get("parts", ",".join(PARTS)).split(",")
    wrong = [part for part in parts if part not in PARTS]
    problems += [f"--parts: {part!r} is not one of {', '.join(PARTS)}" for part in wrong]
    numbers: dict[str, float] = {}
    for name, (default, least) in _NUMBERS.items():
        text = flags.get(name) or default
        try:
            value = int(text) if least else float(text)
            if not max(least, 1e-3) <= value < float("inf"):
                raise ValueError
            numbers[name] = value
        except ValueError:
            allowed = f"a whole number from {least} on" if least else "a number above 0"
            problems.append(f"--{name}: {text!r} is not {allowed}")
    output = Path(flags["json"]) if flags.get("json") else None
    if output is not None and output.exists():
        problems.append(f"--json: {output} exists already; use another name")
    config, found = _config(flags.get("config", ""), overrides)
    if problems + found:
        raise ConfigError(problems + found)
    return list(dict.fromkeys(parts)), output, config, numbers


def _config(file: str, overrides: dict[str, str]) -> tuple[Config | None, list[str]]:
    """The user's config, if there is one, and what is wrong with it."""
    if not file:
        return None, [f"--config.{key}: means nothing without --config" for key in overrides]
    try:
        config, problems = override(config_file(file), overrides)
    except ConfigError as error:
        return None, error.problems
    config = resolved(config)
    mesh.use_precision(config.train.precision)
    return config, problems + validate(config)


# --- what is printed -----------------------------------------------------------------------------


def _table(rows: Sequence[Row]) -> list[list[str]]:
    return [list(COLUMNS), *([_cell(row[column]) for column in COLUMNS] for row in rows)]


def _cell(value: Any) -> str:
    return number(value) if value is None or isinstance(value, float) else str(value)


def _extra(row: Row) -> str:
    """What a part tells beside the table."""
    if "data_wait_frac" in row:
        return f"{row['data_wait_frac']:.2%} of the time is spent waiting for data"
    if "memory" in row:
        at = zip(row["memory"], row["memory_at"], strict=True)
        seen = ", ".join(f"{size(held)} after {count}" for held, count in at)
        return f"memory {seen} pairs; peak {size(row['memory_peak'])} with all libraries"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
