"""Runs side by side on the same images: a page to look at.

    python -m p2p_jax.compare RUN RUN ... [--split=val] [--output=FOLDER] [--size=512]

RUN is the folder of a run that was evaluated, with --mode=eval or at the end of training; its
newest evaluation of the split is taken, or RUN@STEP names another. The first run is what the others
are compared with: figures with intervals, differences with paired bootstrap intervals, curves,
settings that differ, and a gallery that is sorted by where the runs differ most. Images are matched
by name; where the runs were evaluated on other data, only names that all have are compared, and the
page says so.

FOLDER, by default compare/RUN_vs_RUN, gets index.html, compare.json with the figures, and copies of
the pictures, at most SIZE pixels high. It is complete in itself and needs no network. Nothing of
the runs is changed, and nothing is overwritten but an older comparison of the same evaluations.

Exit codes: 0 done, 2 bad input, 1 a failure.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from p2p_jax import page, report, storage, thumbs
from p2p_jax.command import finish
from p2p_jax.comparison import column, common_names, figures, orders, settings
from p2p_jax.config import ConfigError
from p2p_jax.console import Console
from p2p_jax.evaluated import Run, read_runs
from p2p_jax.storage import AnyPath, write_atomic
from p2p_jax.words import number, split

FLAGS = ("split", "output", "size", "help")
RECORD = "compare.json"
_SIZE = 512


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv, Console()), "interrupted; the comparison is not complete")


def _run(argv: Sequence[str], console: Console) -> int:
    words, rest = _parted(argv)
    flags, _, problems = split(rest, FLAGS, ("help",))
    size = int(number("size", flags.get("size", str(_SIZE)), 16, problems))
    try:
        runs, of, notes = read_runs(words, flags.get("split", ""))
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    names, whole, more = common_names(runs)
    if not names:
        problems.append("the runs have no image in common: nothing to compare")
    identity = {"split": of, "evaluations": [str(run.folder) for run in runs]}
    output = _output(flags.get("output", ""), runs, identity, problems)
    if problems:
        raise ConfigError(problems)
    for note in (notes := [*notes, *more]):
        console.warn(note)
    write(output, runs, of, names, whole, notes, identity, size)
    _tell(console, runs, json.loads((output / RECORD).read_text())["figures"])
    console.done([("page", str(output / "index.html"))])
    return 0


def _parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Runs, and flags with their values."""
    runs, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            runs.append(word)
            continue
        rest.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            rest.append(words.pop(0))
    return runs, rest


# --- where it goes -------------------------------------------------------------------------------


def _output(
    text: str, runs: Sequence[Run], identity: dict[str, Any], problems: list[str]
) -> AnyPath:
    """The folder to write; adds to `problems` what is in its way."""
    if not text:
        name = "_vs_".join(re.sub(r"[^\w.@-]+", "_", run.label) for run in runs)[:120]
        first = storage.at("compare") / name
        names = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        return next(path for each in names if _free(path := first.with_name(each), identity))
    try:
        output = storage.at(text)
    except OSError as error:
        problems.append(f"--output: {error}")
        return storage.at("compare")
    if not _free(output, identity):
        problems.append(
            f"--output: {output} holds something else than a comparison of these evaluations; use "
            "another name"
        )
    return output


def _free(folder: AnyPath, identity: dict[str, Any]) -> bool:
    """Whether a folder is not there, empty, or of the very same comparison."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return not any(folder.iterdir())
    return isinstance(found, dict) and {key: found.get(key) for key in identity} == identity


# --- the page ------------------------------------------------------------------------------------


def write(
    output: AnyPath,
    runs: Sequence[Run],
    of: str,
    names: Sequence[str],
    whole: bool,
    notes: Sequence[str],
    identity: dict[str, Any],
    size: int = _SIZE,
) -> None:
    """Writes the page, its pictures and its record.

    Args:
      output: the folder.
      runs: what is compared; the first is what the others are compared with.
      of: the split.
      names: of the images.
      whole: whether these are all.
      notes: what the reader should know.
      identity: by which this comparison is known again.
      size: height of pictures at most, in pixels.

    Raises:
      ValueError: a picture cannot be read, and which.
    """
    compared = figures(runs, names, whole)
    better = {f"eval/{item['name']}": item["better"] for item in compared}
    keys = {key: better.get(key) for key in _metrics(runs)}
    record = {**identity, "images": len(names), "notes": list(notes), "figures": compared}
    # First of all, so that what is left of a comparison that was interrupted is known as one.
    report.write_json(output / RECORD, record)
    title = " · ".join(run.label for run in runs)
    rows, heads = _rows(output, runs, names, list(keys), size)
    data = {
        "kind": "compare",
        "title": title,
        "facts": [
            ["split", of],
            ["images", f"{len(names):,}"],
            *([run.label, f"step {run.found.get('step', 0):,}"] for run in runs),
        ],
        "notices": notes,
        "notes": [f"{item['name']}: {item['about']}" for item in compared if item["about"]],
        "runs": [{"name": run.label} for run in runs],
        "figures": compared,
        "heads": heads,
        "left": 1,  # the first run over the second
        "right": 2,
        "metrics": [{"name": page.short(key), "better": way} for key, way in keys.items()],
        "orders": orders(runs, names, keys),
        "rows": rows,
        "settings": settings(runs),
        "legend": [],
        **page.curves([run.log for run in runs], {}, {k: v for k, v in better.items() if v}),
    }
    write_atomic(output / "index.html", page.assemble("compare", title, data))


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Names of the metrics that images have in all runs."""
    found = [
        dict.fromkeys(key for row in run.examples.values() for key in row if key != "name")
        for run in runs
    ]
    return [key for key in found[0] if all(key in each for each in found)]


def _rows(
    output: AnyPath, runs: Sequence[Run], names: Sequence[str], keys: Sequence[str], size: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The examples, with copies of their pictures made, and what the pictures are."""
    first = runs[0].folder
    columns = [("source", first / "source", "source")]
    columns += [(str(i), run.folder / "images", run.label) for i, run in enumerate(runs, 1)]
    columns += [("target", first / "target", "target")] * (first / "target").is_dir()
    jobs = [
        thumbs.Job(folder / f"{name}.png", output / "pictures" / kind / name)
        for name in names
        for kind, folder, _ in columns
    ]
    copies = thumbs.make(jobs, size, apart=True, fine=True)
    values = [[column(run, names, key) for key in keys] for run in runs]
    rows = []
    for i, name in enumerate(names):
        own = copies[i * len(columns) : (i + 1) * len(columns)]
        shown = next(filter(None, own[1:]), own[0])
        rows.append(
            {
                "name": name,
                "size": shown and shown.size,
                "pictures": [page.picture(output, copy) for copy in own],
                "values": [[page.rounded(float(each[i])) for each in run] for run in values],
            }
        )
    return rows, [head for _, _, head in columns]


def _tell(console: Console, runs: Sequence[Run], compared: Sequence[dict[str, Any]]) -> None:
    """Prints the figures."""
    for item in compared:
        texts = []
        for value, found in zip(item["values"], item["differences"], strict=True):
            text = report.number(value)
            if found:
                ends = found["interval"]
                between = f", {ends[0]:+.3g} to {ends[1]:+.3g}" if ends else ""
                text += f" ({found['value']:+.3g}{between})"
            texts.append(text)
        named = zip(runs, texts, strict=True)
        console.note(f"{item['name']}: " + "  ".join(f"{run.label} {text}" for run, text in named))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
