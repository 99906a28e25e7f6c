"""Runs' evaluations on the same images: what they have in common and how sure the difference is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2p_jax import report
from p2p_jax.evaluated import Run

_SWITCHES = ("norm_stats", "dropout", "ema", "seeds", "judges")  # of metrics.json
RESAMPLES, SEED = 1000, 0


def common_names(runs: Sequence[Run]) -> tuple[list[str], bool, list[str]]:
    """Images that all runs have, whether these are all that any has, and what is to be said."""
    names = [name for name in runs[0].examples if all(name in run.examples for run in runs)]
    whole = all(len(run.examples) == len(names) for run in runs)
    same = len({json.dumps(run.found.get("data")) for run in runs}) == 1
    notes = []
    if not whole or not same:
        counts = ", ".join(f"{run.label} {len(run.examples)}" for run in runs)
        why = "other data" if not same else "other images"
        notes.append(
            f"The runs were evaluated on {why} (images: {counts}). Compared are the {len(names)} "
            "of the same name; source and target are those of the first run"
            + ("." if whole else ", and figures of whole sets are left out.")
        )
    return names, whole, notes


def figures(runs: Sequence[Run], names: Sequence[str], whole: bool) -> list[dict[str, Any]]:
    """Figures that a run or more have, with intervals and differences to the first run.

    Args:
      runs: the first is what the others are compared with.
      names: of the images compared.
      whole: whether these are all; otherwise only figures that are means over images are known.

    Returns:
      One each: `name`, `better`, `about`, and for each run `values`, `intervals` and `differences`
      (`value` and `interval`; None for the first).
    """
    keys = dict.fromkeys(
        key for run in runs for key in run.found if key.startswith("eval/")
    )  # in the order of the files
    found = [_figure(key, runs, names, whole) for key in keys]
    return [item for item in found if any(value is not None for value in item["values"])]


def _figure(key: str, runs: Sequence[Run], names: Sequence[str], whole: bool) -> dict[str, Any]:
    columns = [column(run, names, key) for run in runs]
    values, intervals, means = [], [], []
    for run, each in zip(runs, columns, strict=True):
        stored, mean = run.found.get(key), _mean(each)
        # A figure may share its name with a metric of images without being the mean of it.
        same = mean is not None and (
            not whole or stored is None or math.isclose(mean, stored, rel_tol=1e-6, abs_tol=1e-9)
        )
        means.append(same)
        values.append(stored if whole else mean if same else None)
        kept = run.found.get("intervals", {}).get(key) if whole else None
        intervals.append(kept or (interval(each) if same else None))
    better = [run.found.get("better", {}).get(key) for run in runs]
    about = [run.found.get("about", {}).get(key) for run in runs]
    differences: list[dict[str, Any] | None] = [None]
    for i in range(1, len(runs)):
        base, own = values[0], values[i]
        paired = interval(columns[i] - columns[0]) if means[0] and means[i] else None
        if base is None or own is None:
            differences.append(None)
        else:
            differences.append({"value": own - base, "interval": paired})
    return {
        "name": key.removeprefix("eval/"),
        "better": next(filter(None, better), None),
        "about": next(filter(None, about), ""),
        "values": values,
        "intervals": intervals,
        "differences": differences,
    }


def column(run: Run, names: Sequence[str], key: str) -> np.ndarray:
    """A metric of the images, float64 `[n]`; NaN where there is none."""
    found = [run.examples[name].get(key) for name in names]
    return np.array([math.nan if value is None else value for value in found], np.float64)


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def interval(values: np.ndarray) -> list[float] | None:
    """The 95% percentile interval of a mean, by drawing its parts anew with replacement.

    Differences of pairs make it a paired bootstrap (Efron and Tibshirani 1993, section 13.3).

    Args:
      values: `[n]`; what is not finite does not count.

    Returns:
      Its two ends, or None for less than two values.
    """
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        return None
    rng = np.random.default_rng(SEED)  # the same images are drawn for all: they stay paired
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) @ values / count
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [float(low), float(high)]


def settings(runs: Sequence[Run]) -> list[list[Any]]:
    """Keys of configs and switches of evaluations that differ, with the value of each run."""
    rows = [_differing(key, [run.config.get(key) for run in runs]) for key in runs[0].config]
    for key in _SWITCHES:
        rows.append(_differing(f"(evaluation) {key}", [run.found.get(key) for run in runs]))
    return [row for row in rows if row]


def _differing(key: str, values: Sequence[Any]) -> list[Any] | None:
    texts = [v if isinstance(v, str) else json.dumps(report.plain(v)) for v in values]
    return [key, texts] if len(set(texts)) > 1 else None


def orders(
    runs: Sequence[Run], names: Sequence[str], keys: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Ways to sort the images: by how much the runs differ, and where one gains on the first.

    Args:
      runs: the runs.
      names: of the images.
      keys: metrics of the images, and which way is better.
    """
    found = []
    for key, better in keys.items():
        columns, name = [column(run, names, key) for run in runs], key.removeprefix("eval/")
        spread = np.max(columns, axis=0) - np.min(columns, axis=0)
        found.append(_order(name, f"{name}: where they differ", spread))
        for run, each in zip(runs[1:], columns[1:], strict=True):
            gain = (each - columns[0]) * (-1 if better == "min" else 1)
            what = "better" if better else "higher"
            found.append(_order(f"{name} {run.label}", f"{name}: {run.label} {what}", gain))
    return found


def _order(key: str, label: str, values: np.ndarray) -> dict[str, Any]:
    return {"key": key, "label": label, "better": "min", "values": values.tolist()}
