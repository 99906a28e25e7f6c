"""What a sweep leaves: best.json, a table, and a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table
from optuna.trial import FrozenTrial, TrialState

from p2p_jax import report
from p2p_jax.console import Console
from p2p_jax.sweeping import charts
from p2p_jax.sweeping.running import Plan
from p2p_jax.sweeping.study import PINNED, REASON, STEPS, Trials, word

BEST, PAGE = "best.json", "sweep.html"


def ordered(trials: Sequence[FrozenTrial], mode: str) -> list[FrozenTrial]:
    """Completed trials from the best on, then pruned ones, then the others."""
    kinds = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        kind = kinds.index(trial.state) if trial.state in kinds else len(kinds)
        value = trial.value if trial.value is not None else float("inf")
        return kind, value if mode == "min" else -value, trial.number

    return sorted(trials, key=place)


def best(plan: Plan, trials: Trials) -> FrozenTrial | None:
    """The best of the completed trials."""
    found = ordered(trials.all(), plan.mode)
    return found[0] if found and found[0].state == TrialState.COMPLETE else None


def write(plan: Plan, trials: Trials) -> None:
    """Writes best.json, once a trial is complete, and the page."""
    if (found := best(plan, trials)) is not None:
        report.write_json(
            plan.folder / BEST,
            {
                "trial": found.number,
                "metric": plan.figure,
                "better": plan.mode,
                "value": found.value,
                "params": trials.values(found),
                "command": command(plan, trials, found),
            },
        )
    charts.write(plan.folder / PAGE, plan, trials, ordered(trials.all(), plan.mode))


def command(plan: Plan, trials: Trials, trial: FrozenTrial) -> str:
    """What trains a trial in full in a new folder, where it was trained, as a shell is told."""
    words = plan.command(_new(plan.folder / "best"), trials.values(trial))
    return shlex.join([*trial.user_attrs.get(PINNED, []), "python", *words])


def _new(folder: Path) -> Path:
    """A folder of that name that is not there."""
    path, count = folder, 1
    while path.exists():
        count += 1
        path = folder.with_name(f"{folder.name}_{count}")
    return path


def tell(console: Console, plan: Plan, trials: Trials) -> int:
    """Prints all trials; the exit code says whether one is complete."""
    found = ordered(trials.all(), plan.mode)
    for line in table(plan, trials, found).splitlines():
        console.note(line.rstrip())
    winner = best(plan, trials)
    if winner is None:
        console.warn("no trial was completed")
        return 1
    rows: list[tuple[str, str]] = [
        ("best", f"trial {winner.number}, {plan.figure} {report.number(winner.value)}"),
        ("command", f"in {plan.folder / BEST}"),
        ("page", str(plan.folder / PAGE)),
    ]
    console.done(rows)
    return 0


def table(plan: Plan, trials: Trials, found: Sequence[FrozenTrial]) -> str:
    """Trials with state, values, figure, updates and reason, as lines of text."""
    keys = list(dict.fromkeys(key for each in found for key in trials.values(each)))
    made = rich.table.Table(box=rich.box.SIMPLE)
    for head in ("trial", "state", plan.figure, "steps", *keys, "reason"):
        made.add_column(head, overflow="fold")
    for each in found:
        values = trials.values(each)
        made.add_row(
            str(each.number),
            word(each.state),
            report.number(each.value),
            str(each.user_attrs.get(STEPS, "-")),
            *(_shown(values.get(key)) for key in keys),
            str(each.user_attrs.get(REASON, "")),
        )
    out = rich.console.Console(width=200, color_system=None, markup=False, force_terminal=False)
    with out.capture() as captured:
        out.print(made)
    return captured.get()


def _shown(value: Any) -> str:
    return report.number(value) if isinstance(value, float) else str(value)
