"""Figures of sets in which images count differently often, and from that how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Tree = Any
Figures = dict[str, Any]

_AT_ONCE = 100  # resamples


def weighted(stacked: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums over examples `[n, ...]` with weights `[n]` or `[m, n]`, float64: counts stay exact."""
    return np.tensordot(weights.astype(np.float64), np.asarray(stacked, np.float64), (-1, 0))


def as_figures(values: Mapping[str, np.ndarray], weights: np.ndarray) -> Figures:
    """Of one set (weights `[n]`) floats, without what is NaN; of several `[m, n]`, arrays `[m]`."""
    if weights.ndim > 1:
        return dict(values)
    return {name: float(value) for name, value in values.items() if not np.isnan(value)}


def mean(rows: Mapping[str, np.ndarray], weights: np.ndarray) -> Figures:
    """The `finish` of per-image metrics: weighted means of columns `[n]`, as `Score.finish`."""
    total = weights.sum(-1)
    return as_figures({name: weighted(row, weights) / total for name, row in rows.items()}, weights)


def bootstrap(
    stacked: Tree, finish: Callable[[Tree, np.ndarray], Figures], count: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals that hold 95% of the figures of resampled sets (percentile bootstrap).

    Args:
      stacked: as `finish` takes it, over all n images.
      finish: `Score.finish` of a score that may be resampled, or `mean`.
      count: how many resamples of n images.
      seed: decides which.

    Returns:
      Figure names, of those that the whole set has, to (low, high).
    """
    n = len(jax.tree.leaves(stacked)[0])
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count)
    parts = [finish(stacked, weights[i : i + _AT_ONCE]) for i in range(0, count, _AT_ONCE)]
    intervals = {}
    for name in finish(stacked, np.ones(n, np.int64)):
        values = np.concatenate([part[name] for part in parts])
        low, high = np.nanpercentile(values, (2.5, 97.5))
        intervals[name] = float(low), float(high)
    return intervals
