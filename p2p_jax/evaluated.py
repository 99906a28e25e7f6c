"""The evaluations of runs that a command line names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from p2p_jax import report, storage
from p2p_jax.config import ConfigError, flatten
from p2p_jax.flags import run_folder, saved_config
from p2p_jax.storage import AnyPath

_STEP = re.compile(r"(\d+)(?:_(\d+))?")  # the folder of an evaluation


class Run(NamedTuple):
    """One evaluation of a run.

    Attributes:
      label: what to call it, unlike the others.
      workdir: of the run.
      folder: of the evaluation.
      found: its metrics.json.
      examples: the metrics of each image, by its name.
      log: lines of the run's metrics.jsonl.
      config: of the run, by dotted key.
    """

    label: str
    workdir: AnyPath
    folder: AnyPath
    found: dict[str, Any]
    examples: dict[str, dict[str, Any]]
    log: list[dict[str, Any]]
    config: dict[str, Any]


def read_runs(words: Sequence[str], split: str) -> tuple[list[Run], str, list[str]]:
    """The evaluations that `RUN` and `RUN@STEP` name.

    Args:
      words: of the command line.
      split: evaluated, or '' for the only one that all have, or `val`.

    Returns:
      The runs, the split, and what the user should know.

    Raises:
      ConfigError: all that is wrong.
    """
    problems, places = [], []
    for word in dict.fromkeys(words):
        place, found = _place(word)
        places, problems = [*places, place], problems + found
    if len(places) < 2:
        problems.append("two runs or more are needed, as in p2p_jax.compare runs/one runs/two")
    if problems:
        raise ConfigError(problems)
    split, found = _common_split(places, split)
    problems += found
    runs, notes = [], []
    for workdir, step in places if split else []:
        try:
            run, more = _read(workdir, split, step)
            runs, notes = [*runs, run], notes + more
        except ConfigError as error:
            problems += error.problems
    if len({str(run.folder) for run in runs}) < len(runs):
        problems.append("the same evaluation is named twice; other steps are named as RUN@STEP")
    if problems:
        raise ConfigError(problems)
    labels = _labels(runs)
    return [run._replace(label=labels[i]) for i, run in enumerate(runs)], split, notes


def _place(word: str) -> tuple[tuple[AnyPath, str], list[str]]:
    """The workdir and the step, if one is named."""
    path, at, step = word.rpartition("@")
    if not at or not _STEP.fullmatch(step):
        path, step = word, ""
    workdir, problems = run_folder(word, path)
    if not problems and not workdir.is_dir() and not storage.is_remote(workdir):
        problems = [f"{word}: there is no folder {workdir}"]
    return (storage.absolute(workdir), step), problems


def _common_split(places: Sequence[tuple[AnyPath, str]], split: str) -> tuple[str, list[str]]:
    """The split to compare, and for each run that lacks it which it has."""
    have = [_evaluations(workdir) for workdir, _ in places]
    common = [name for name in have[0] if all(name in each for each in have)]
    wanted = split or (common[0] if len(common) == 1 else "val")
    problems = []
    for (workdir, _), each in zip(places, have, strict=True):
        if wanted not in each:
            there = f"; there are {', '.join(each)}: use --split" if each else ""
            problems.append(
                f"{workdir}: holds no evaluation of {wanted!r}{there or '; evaluate it first'}"
            )
    return ("" if problems else wanted), problems


def _evaluations(workdir: AnyPath) -> dict[str, list[str]]:
    """The splits, and of each its complete evaluations, the newest first."""
    found: dict[str, list[str]] = {}
    top = workdir / "eval"
    for split in sorted(top.iterdir()) if top.is_dir() else []:
        steps = [
            step.name
            for step in (split.iterdir() if split.is_dir() else ())
            if _STEP.fullmatch(step.name) and (step / "metrics.json").is_file()
        ]
        if steps:
            found[split.name] = sorted(steps, key=_age, reverse=True)
    return found


def _age(name: str) -> tuple[int, int]:
    """The step; of several evaluations of it the first counts as the newest, being the run's."""
    match = _STEP.fullmatch(name)
    assert match
    return int(match[1]), -int(match[2] or 1)


def _read(workdir: AnyPath, split: str, step: str) -> tuple[Run, list[str]]:
    steps = _evaluations(workdir)[split]
    if step and step not in steps:
        raise ConfigError(
            [f"{workdir}@{step}: no such evaluation of {split!r}; there are {', '.join(steps)}"]
        )
    chosen, notes = step or steps[0], []
    others = [name for name in steps if _age(name)[0] == _age(chosen)[0] and name != chosen]
    if others and not step:
        notes.append(
            f"{workdir.name} has several evaluations of step {_age(chosen)[0]}, with other data or "
            f"options; {chosen} is taken, not {', '.join(f'@{name}' for name in others)}"
        )
    folder = workdir / "eval" / split / chosen
    try:
        found = json.loads((folder / "metrics.json").read_text("utf-8"))
        examples = {row["name"]: row for row in found["per_example"]}
        log = report.read(workdir)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{folder}: cannot be read as an evaluation ({error!r})"]) from error
    config = flatten(saved_config(workdir, key=str(workdir)))
    return Run(workdir.name, workdir, folder, found, examples, log, config), notes


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names as short as may be to tell the runs apart."""
    ways = (
        lambda run: run.workdir.name,
        lambda run: f"{run.workdir.name}@{run.folder.name}",
        lambda run: f"{run.workdir.parent.name}/{run.workdir.name}@{run.folder.name}",
        lambda run: f"{run.workdir}@{run.folder.name}",
    )
    found = [[way(run) for run in runs] for way in ways]
    return next(labels for labels in found if len(set(labels)) == len(labels))
