"""Optimisers and learning-rate schedules.

Rates are not part of the optimiser: the step multiplies by them, from an array argument, so that a
schedule never recompiles. All else here is plain numbers on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax


def adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without its learning rate (Kingma and Ba 2015); eps outside the root, as in PyTorch.

    To rounding it is `optax.scale_by_adam`, with its state, in as few passes over the leaves as can
    be.
    """

    def update(
        updates: Any, state: optax.OptState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (g * g), state.nu, updates)

        # XLA's CPU backend makes no loop of several results: it would compute the moments once more
        # for the update, from copies of the old ones. Elsewhere one loop does all three. Each by
        # itself, as some may be a device's own and others the same on all.
        mu, nu = jax.lax.platform_dependent(
            mu,
            nu,
            cpu=lambda *both: jax.tree.map(jax.lax.optimization_barrier, both),
            default=lambda *both: both,
        )

        def updated(m: jax.Array, v: jax.Array) -> jax.Array:
            c1, c2 = (1 - jnp.asarray(b, m.dtype) ** count for b in (b1, b2))
            return m * (1 / c1) / (jnp.sqrt(v * (1 / c2)) + eps)

        return jax.tree.map(updated, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


@dataclass(frozen=True)
class ScheduleOptions:
    """How the rates change; see `factor`.

    Attributes:
      name: a key of `SCHEDULES`.
      decay_from: the share of the run after which `linear` falls, in [0, 1]; with 1 it never does.
      decay_every: the share of the run after which `step` falls each time, in (0, 1].
      decay_factor: what `step` and `plateau` multiply by each time, in (0, 1].
      patience: the evaluations without progress that `plateau` bears.
      warmup_steps: the updates in which the rates rise to their full height; 0: none.
      by_epoch: change only where an epoch begins, as in PyTorch, not at every update.
    """

    name: str
    decay_from: float
    decay_every: float
    decay_factor: float
    patience: int
    warmup_steps: int
    by_epoch: bool


# --- schedules: a tick in [0, ticks) to the factor of the rates; a tick is a step or an epoch ----


@functools.cache
def _share(value: float) -> Fraction:
    """The simplest fraction that is meant: 29 of 100 ticks for 0.29, which is a bit less."""
    return Fraction(value).limit_denominator(10**9) or Fraction(value)


def constant(tick: int, ticks: int, options: ScheduleOptions) -> float:
    """One, always."""
    del tick, ticks, options
    return 1.0


def linear(tick: int, ticks: int, options: ScheduleOptions) -> float:
    """One, then falling by equal parts; zero would come right after the last tick.

    By epochs it is `1 - max(0, epoch + epoch_count - n_epochs) / (n_epochs_decay + 1)` of
    pytorch-CycleGAN-and-pix2pix, with its `epoch_count` of 1.
    """
    start = int(ticks * _share(options.decay_from))
    return min(1.0, (ticks - tick) / (ticks - start + 1))


def step_decay(tick: int, ticks: int, options: ScheduleOptions) -> float:
    """One, times `decay_factor` each time that `decay_every` of the run has passed."""
    return options.decay_factor ** int(tick // (ticks * _share(options.decay_every)))


def cosine(tick: int, ticks: int, options: ScheduleOptions) -> float:
    """Half a wave from one to zero (Loshchilov and Hutter 2017, equation 5, no restarts)."""
    del options
    return 0.5 * (1 + math.cos(math.pi * tick / ticks))


SCHEDULES: dict[str, Callable[[int, int, ScheduleOptions], float]] = {
    "constant": constant,
    "linear": linear,
    "step": step_decay,
    "cosine": cosine,
    "plateau": constant,  # the factor of `Plateau`, which knows the evaluations, comes on top
}


def factor(
    options: ScheduleOptions, step: int, steps: int, examples: int, batch_size: int
) -> float:
    """What all rates are multiplied by at an update, but for `Plateau`.

    Args:
      options: the schedule and its options.
      step: updates done before this one, in [0, steps).
      steps: updates of the whole run.
      examples: training examples, of which each epoch has as many; used with `by_epoch` alone.
      batch_size: examples of an update; likewise.

    Returns:
      The schedule at the step, or at the epoch in which the step begins, times the warm-up; in
      [0, 1].
    """
    tick, ticks = step, steps
    if options.by_epoch:
        # In integers, as examples / batch_size is seldom a whole number. The run has as many epochs
        # as its steps begin in: rounding up to a whole last step begins no other. Where a step is
        # longer than an epoch, those count that no step begins in.
        tick = step * batch_size // examples
        last = (steps - 1) * batch_size // examples
        ticks = max(last + 1, steps * batch_size // examples)
    value = SCHEDULES[options.name](tick, ticks, options)
    if options.warmup_steps > 0:
        value *= min(1.0, (step + 1) / options.warmup_steps)
    return value


class Plateau:
    """A factor of the rates that falls when evaluations stop getting better.

    It is `ReduceLROnPlateau(mode, decay_factor, patience, threshold=0.01)` of PyTorch, with a rate
    of 1 and without its least change. Only with values below zero does it differ: there, even a
    slightly worse one passes for better.

    Attributes:
      scale: the factor, 1 at first.
    """

    THRESHOLD = 0.01  # better is better by this share of the best value, at least

    def __init__(
        self, mode: str, decay_factor: float, patience: int, saved: dict[str, Any] | None = None
    ):
        """Starts afresh, or goes on.

        Args:
          mode: which values are better, `min` or `max`.
          decay_factor: what `scale` is multiplied by.
          patience: the updates in a row without progress after which the next one lets it fall.
          saved: what `saved` returned.

        Raises:
          ValueError: an unknown mode.
        """
        if mode not in ("min", "max"):
            raise ValueError(f"mode: {mode!r} must be 'min' or 'max'")
        self._sign = 1 if mode == "max" else -1
        self._decay_factor, self._patience = decay_factor, patience
        saved = saved or {"scale": 1.0, "best": None, "bad": 0}
        self.scale: float = saved["scale"]
        self._best: float | None = saved["best"]
        self._bad: int = saved["bad"]

    def update(self, value: float) -> None:
        """Takes an evaluation's value; NaN and infinities are no progress."""
        value = float(value)
        if self._better(value):
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad > self._patience:
            self.scale, self._bad = self.scale * self._decay_factor, 0

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        # Higher by a share of its size where more is better, also below zero; else lower.
        share = math.copysign(self.THRESHOLD, self._sign * self._best)
        return self._sign * value > self._sign * self._best * (1 + share)

    def saved(self) -> dict[str, Any]:
        """All that an evaluation changes, for JSON."""
        return {"scale": self.scale, "best": self._best, "bad": self._bad}


# By name, what the rates, which are then for batches of one, are multiplied by, of the batch size:
# nothing; Goyal et al. 2017, section 2.1; Krizhevsky 2014, section 5.
BATCH_SCALING: dict[str, Callable[[int], float]] = {
    "none": lambda batch_size: 1.0,
    "linear": float,
    "sqrt": math.sqrt,
}
