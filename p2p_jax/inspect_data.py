"""Looks at data before anything is trained on it.

    python -m p2p_jax.inspect_data --config=FILE[:ARGUMENT] [--config.KEY=VALUE ...] [--output=DIR]

It tells what each split holds, what is wrong with it (all of it, where training stops at the first
kind), which pairs are there twice, how the networks will see them, how much memory they take, and
how fast this machine decodes them. With --output, DIR gets all that as inspect.json, and
contact.png: some pairs as they are stored, and as the networks see them in three variations. Data
is prepared on the way as for training, and stays prepared; nothing else is written.

Exit codes: 0 the data can be trained on as configured, 2 it cannot, or the config is bad (what is
wrong comes last), 1 a failure.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2p_jax import mesh
from p2p_jax.bench.machine import machine, machine_rows, memory
from p2p_jax.bench.table import aligned, size
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError, base, shortened
from p2p_jax.console import Console
from p2p_jax.data import SOURCES
from p2p_jax.data.files import at, is_remote
from p2p_jax.data.survey import Part, Side, Survey, survey
from p2p_jax.flags import config_file, override
from p2p_jax.inspection import Outlook, outlook
from p2p_jax.report import save_png, write_json
from p2p_jax.validate import data_options, resolved, validate
from p2p_jax.words import split

FLAGS = ("config", "output", "help")
FILES = ("inspect.json", "contact.png")
SECONDS = 1.0  # of each measurement
_SIZES, _GROUPS = 5, 10  # shown of many


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv, Console()), "interrupted; what was prepared stays prepared")


def _run(argv: Sequence[str], console: Console) -> int:
    config, output, problems = _parse(argv)
    options = data_options(config)
    where = options.name or options.path or "built in"
    found_machine = machine()
    console.header([("data", f"{options.source} ({where})"), *machine_rows(found_machine)])
    found = survey(options, console.note)
    expected = outlook(config, found, SECONDS)
    problems += [*found.problems, *expected.problems]
    if options.on_error == "fail":
        problems += [s for part in found.parts for s in part.broken.values()]
    problems = list(dict.fromkeys(problems))
    _show(console, found, expected, problems)
    if output:
        record = _record(found, expected, problems) | {"machine": found_machine}
        write_json(output / "inspect.json", record)
        if expected.sheet is not None:
            save_png(output / "contact.png", expected.sheet)
        written = FILES if expected.sheet is not None else FILES[:1]
        console.done([("written", f"{' and '.join(written)} in {output}")])
    if problems:
        raise ConfigError(shortened(problems))
    console.done([("verdict", "the data can be trained on as configured")])
    return 0


def _parse(argv: Sequence[str]) -> tuple[Config, Path | None, list[str]]:
    """The config, the folder to write to, and what keeps from training but not from looking.

    Raises:
      ConfigError: all that is wrong with flags and config; what is wrong with data is found later.
    """
    flags, overrides, problems = split(argv, FLAGS, ("help",))
    config, loaded = base(), False
    try:
        if flags.get("config"):
            config, loaded = config_file(flags["config"]), True
        else:
            problems.append("--config: needed, as in --config=configs/quickstart.py")
    except ConfigError as error:
        problems += error.problems
    config, found = override(config, overrides)
    config, problems = resolved(config), problems + found
    later = []
    if loaded:
        mesh.use_precision(config.train.precision)
        data = _listed(config)
        problems += [p for p in validate(config, training=False) if p not in data]
        later = [p for p in validate(config) if p not in data and p not in problems]
    output = Path(flags["output"]) if flags.get("output") else None
    if output is not None:
        problems += _occupied(output, config)
    if problems:
        raise ConfigError(problems)
    return config, output, later


def _listed(config: Config) -> list[str]:
    """What a glance at the data shows to be wrong; the survey tells it, and more."""
    if config.data.source not in SOURCES:
        return []
    try:
        return SOURCES[config.data.source].check(data_options(config))
    except ValueError:  # a palette that is none, which `validate` tells
        return []


def _occupied(output: Path, config: Config) -> list[str]:
    """Why a folder cannot be written to: nothing of the user's is overwritten, or added to."""
    there = [name for name in FILES if (output / name).exists()]
    if there:
        return [f"--output: {output} holds {' and '.join(there)} already; use another folder"]
    if output.exists() and not output.is_dir():
        return [f"--output: {output} is a file; give a folder"]
    path = config.data.path
    inside = path and not is_remote(path) and output.resolve().is_relative_to(at(path).resolve())
    return [f"--output: {output} lies inside data.path, which is only read"] if inside else []


# --- what is printed -----------------------------------------------------------------------------


def _show(console: Console, found: Survey, expected: Outlook, problems: list[str]) -> None:
    def block(title: str, lines: Sequence[str]) -> None:
        console.note("")
        console.note(title)
        for line in lines:
            console.note(f"  {line}")

    if found.parts:
        block("images", aligned(_image_rows(found.parts)))
        block("sizes (height x width)", aligned(_size_rows(found.parts)))
    for part in found.parts:
        lines = [text for text in part.broken.values() if text not in problems]
        if lines:  # others stand in for them
            lines = shortened(lines)
            block(f"{len(part.broken)} of {len(part.names)} of {part.title} are broken", lines)
    if found.notes:
        block("notes", found.notes)
    if found.duplicates:
        block(*_duplicate_lines(found))
    block("to the networks", aligned(expected.networks))
    if expected.pairs:
        whole = expected.pairs * expected.pair_bytes
        lines = [
            f"{expected.pairs} pairs of {size(expected.pair_bytes)} each: {size(whole)} for "
            f"data.cache=host or device; this machine has {size(memory())}"
        ]
        block("memory", lines)
    if expected.rates:
        rows = [("decoded by", "pairs/s"), *((k, f"{v:.0f}") for k, v in expected.rates.items())]
        block("rates", aligned(rows))
    if expected.missing:
        block("not tried", [expected.missing])
    console.note("")


def _image_rows(parts: Sequence[Part]) -> list[list[str]]:
    rows = [["split", "pairs", "broken", "side", "type", "channels", "format", "values"]]
    for part in parts:
        counts = [part.title, str(len(part.names)), str(len(part.broken))]
        for name, side in zip(("source", "target"), part.sides, strict=True):
            rows.append([*counts, name, *_kinds(side)])
            counts = ["", "", ""]
    return rows


def _kinds(side: Side | None) -> list[str]:
    if side is None:
        return ["-"] * 4
    values = "-"
    if side.low is not None:
        values = f"{side.low:g} to {side.high:g}{' (both halves)' * side.halves}"
    kinds = [_counted(kind) for kind in (side.dtypes, side.channels, side.formats)]
    return [*kinds, values]


def _counted(kinds: dict[str, int]) -> str:
    """'jpeg' where all are, else 'jpeg (12), png (3)'."""
    if len(kinds) == 1:
        return next(iter(kinds)) or "-"
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.items())


def _size_rows(parts: Sequence[Part]) -> list[list[str]]:
    rows = [["split", "different", "smallest", "largest", "most frequent"]]
    for part in parts:
        sizes = _sizes(part)
        if sizes is None:
            continue
        frequent = [f"{h}x{w} ({count})" for h, w, count in sizes["histogram"][:_SIZES]]
        more = len(sizes["histogram"]) - _SIZES
        frequent += [f"and {more} more"] * (more > 0)
        ends = ["x".join(map(str, sizes[end])) for end in ("min", "max")]
        rows.append([part.title, str(len(sizes["histogram"])), *ends, ", ".join(frequent)])
    return rows


def _sizes(part: Part) -> dict[str, Any] | None:
    """How often there is each size, the most frequent first, and the least and most each way."""
    if part.source is None:
        return None
    sizes = part.source.sizes[part.sound]
    counts = Counter((int(h), int(w)) for h, w in sizes).most_common()
    return {
        "histogram": [[h, w, count] for (h, w), count in counts],
        "min": sizes.min(0).tolist(),
        "max": sizes.max(0).tolist(),
    }


def _duplicate_lines(found: Survey) -> tuple[str, list[str]]:
    across = [group for group in found.duplicates if len({part for part, _ in group}) > 1]
    within = [group for group in found.duplicates if group not in across]
    lines = []
    for kind, groups in (("across splits", across), ("within a split", within)):
        shown = [" = ".join(f"{part} {name}" for part, name in group) for group in groups]
        more = len(shown) - _GROUPS
        lines += [f"{kind}: {text}" for text in shown[:_GROUPS]]
        lines += [f"{kind}: and {more} more"] * (more > 0)
    count = f"{len(across)} of them across splits, so that evaluation knows what was trained on"
    tail = count if across else "none across splits"
    return f"{len(found.duplicates)} groups of pairs with the same bytes, {tail}", lines


# --- what is written -----------------------------------------------------------------------------


def _record(found: Survey, expected: Outlook, problems: list[str]) -> dict[str, Any]:
    return {
        "sound": not problems,
        "problems": problems,
        "notes": found.notes,
        "splits": [_part_record(part) for part in found.parts],
        "duplicates": [
            {
                "across_splits": len({part for part, _ in group}) > 1,
                "pairs": [{"split": part, "name": name} for part, name in group],
            }
            for group in found.duplicates
        ],
        "networks": dict(expected.networks),
        "usable_pairs": expected.pairs,
        "bytes_decoded": expected.pairs * expected.pair_bytes,
        "threads": expected.threads,
        "pairs_per_sec": expected.rates,
        "not_tried": expected.missing,
    }


def _part_record(part: Part) -> dict[str, Any]:
    sides = zip(("source", "target"), part.sides, strict=True)
    return {
        "split": part.title,
        "evaluates": part.evaluates,
        "pairs": len(part.names),
        "broken": [
            {"index": i, "name": part.names[i], "problem": text} for i, text in part.broken.items()
        ],
        "sizes": _sizes(part),
        **{name: side and side._asdict() for name, side in sides},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
