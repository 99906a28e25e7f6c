"""The page of a sweep: trials, curves, what matters most, and parallel coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from p2p_jax import page, report
from p2p_jax.storage import write_atomic
from p2p_jax.sweeping.running import Plan
from p2p_jax.sweeping.study import REASON, STEPS, Trials, word

_CURVES = 30  # runs with curves: the best


def write(path: Path, plan: Plan, trials: Trials, found: Sequence[FrozenTrial]) -> None:
    """Writes the page.

    Args:
      path: of the file; trials are linked from its folder.
      plan: of the sweep.
      trials: the sweep's.
      found: them in their order on the page.
    """
    ended = sum(trial.state.is_finished() for trial in found)
    drawn = [trial for trial in found if trial.state != TrialState.FAIL][:_CURVES]
    logs = [_log(plan.workdir(trial.number)) for trial in drawn]
    title = f"Sweep {plan.folder.name}"
    data: dict[str, Any] = {
        "kind": "sweep",
        "title": title,
        "facts": [
            ["metric", plan.figure],
            ["better", {"min": "lower", "max": "higher"}[plan.mode]],
            ["trials", f"{ended:,} of {len(found):,} ended"],
        ],
        "notices": [],
        "metric": plan.figure,
        "better": plan.mode,
        "metrics": [],
        "rows": [],
        "runs": [{"name": f"trial {trial.number}"} for trial in drawn],
        "keys": list(dict.fromkeys(key for each in found for key in trials.values(each))),
        "trials": [_row(plan, trials, trial) for trial in found],
        "importance": importance(trials),
        **page.curves(logs, {}, {f"eval/{plan.figure}": plan.mode}),
    }
    write_atomic(path, page.assemble("sweep", title, data), durable=False)


def _row(plan: Plan, trials: Trials, trial: FrozenTrial) -> dict[str, Any]:
    workdir = plan.workdir(trial.number)
    return {
        "number": trial.number,
        "state": word(trial.state),
        "value": page.rounded(trial.value),
        "steps": trial.user_attrs.get(STEPS),
        "reason": trial.user_attrs.get(REASON, ""),
        "params": {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in trials.values(trial).items()
        },
        "report": _report(workdir, plan.folder),
    }


def _report(workdir: Path, folder: Path) -> str:
    """The address of a run's newest page; '' where it has none."""
    pages = [p for p in workdir.glob("eval/*/*/index.html") if p.parent.name.isdigit()]
    if not pages:
        return ""
    newest = max(pages, key=lambda p: (int(p.parent.name), str(p)))
    return page.address(str(newest.relative_to(folder)))


def _log(workdir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run; none where its file cannot be read."""
    try:
        return [row for row in report.read(workdir) if row.get("split") != "train"]
    except (OSError, ValueError):
        return []


def importance(trials: Trials) -> list[list[Any]]:
    """Keys with their share in what makes trials differ, the largest first (PED-ANOVA).

    It is the best that are told from the others: a tenth, where trials are few five or a third.
    Very few tell nothing: then it is empty.
    """
    complete = [trial for trial in trials.all() if trial.state == TrialState.COMPLETE]
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge = PedAnovaImportanceEvaluator(
                target_quantile=min(1 / 3, max(0.1, 5 / len(complete)))
            )
            found = optuna.importance.get_param_importances(trials.study, evaluator=judge)
    except (ValueError, RuntimeError, ZeroDivisionError):
        return []
    return [[key, page.rounded(value)] for key, value in found.items()]
