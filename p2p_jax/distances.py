"""Distances between two sets of features: Frechet's, of FID, and the kernel's, of KID; numpy."""

from __future__ import annotations

import numpy as np

_ROWS = 1024  # of a Gram matrix at once


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions with the sets' means and covariances.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) (Heusel et al. 2017). With S1 = A'A and
    S2 = B'B the last trace is the sum of the singular values of A B', whose squares are the
    eigenvalues of S1^(1/2) S2 S1^(1/2); nothing is inverted and no root of a rounding error taken,
    so singular covariances, as of fewer examples than features, are as good as others.

    Args:
      x: `[n, d]`, at least 2 examples.
      y: `[m, d]`, likewise.
    """
    (mean_x, root_x), (mean_y, root_y) = _normal(x), _normal(y)
    shared = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    spread = np.square(root_x).sum() + np.square(root_y).sum()
    return float(np.square(mean_x - mean_y).sum() + spread - 2 * shared)


def _normal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[d]`, and a matrix A `[min(n, d), d]` of which A'A is the (unbiased) covariance."""
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least 2 examples, not {len(x)}")
    x = np.asarray(x, np.float64)
    mean = x.mean(0)
    root = (x - mean) / np.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root


def kernel(x: np.ndarray, y: np.ndarray, size: int, count: int, seed: int) -> np.ndarray:
    """Squared maximum mean discrepancies of random subsets, unbiased, so also below 0.

    The kernel is (x.y / d + 1)^3 (Binkowski et al. 2018).

    Args:
      x: `[n, d]`.
      y: `[m, d]`.
      size: examples of each set in a subset, without repetition; at least 2.
      count: how many subsets.
      seed: decides which.

    Returns:
      `[count]`.

    Raises:
      ValueError: subsets larger than a set, or of less than 2.
    """
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(f"subsets of {size}, where 2 to {min(len(x), len(y))} examples make one")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rng = np.random.default_rng(seed)
    in_x, in_y = (_subsets(rng, len(z), size, count) for z in (x, y))
    within = _sums(x, x, in_x, in_x, True) + _sums(y, y, in_y, in_y, True)
    return within / (size * (size - 1)) - 2 * _sums(x, y, in_x, in_y, False) / size**2


def _subsets(rng: np.random.Generator, n: int, size: int, count: int) -> np.ndarray:
    """`[count, n]`: 1 for each of a subset, else 0."""
    chosen = np.zeros((count, n))
    for row in chosen:
        row[rng.permutation(n)[:size]] = 1
    return chosen


def _sums(
    x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray, same: bool
) -> np.ndarray:
    """For each subset `[count]`, the kernel summed over its pairs; if `same`, of different ones."""
    total = np.zeros(len(in_x))
    for start in range(0, len(x), _ROWS):  # the whole matrix could be large
        rows = slice(start, start + _ROWS)
        values = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        if same:
            values[np.arange(len(values)), np.arange(start, start + len(values))] = 0
        total += (in_x[:, rows] @ values * in_y).sum(1)
    return total
