"""Optimisers and learning-rate schedules.

Rates are not part of the optimiser: the step multiplies by them, from an array argument, so that a
schedule never recompiles.
"""

from __future__ import annotations

import optax


def adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without its learning rate (Kingma and Ba 2015); eps outside the root, as in PyTorch."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def constant(step: int, steps: int, decay_from: float) -> float:
    """One, always."""
    del step, steps, decay_from
    return 1.0


def linear(step: int, steps: int, decay_from: float) -> float:
    """One, then linearly towards zero, which would come right after the last update.

    Args:
      step: updates done before this one, in [0, steps).
      steps: updates of the whole run.
      decay_from: the share of the run after which the rate falls, in [0, 1].

    Returns:
      The factor of the rate, in (0, 1].
    """
    start = min(int(steps * decay_from), steps - 1)
    return min(1.0, (steps - step) / (steps - start))


SCHEDULES = {"constant": constant, "linear": linear}
