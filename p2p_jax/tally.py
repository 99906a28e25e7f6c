"""Sums of what steps report, between two lines of the log."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from p2p_jax.process import Failure


class NotFinite(Failure):
    """A loss is NaN or infinite."""


class Losses:
    """Losses since the last line of the log, summed in the order of steps.

    The sums go into checkpoints, so that a resumed run writes the line that it would have written.
    """

    def __init__(self, names: tuple[str, ...], saved: dict[str, Any]) -> None:
        self._names = names
        self.count: int = saved.get("count", 0)
        self._sums = np.array(saved.get("sums", [0.0] * len(names)), np.float64)
        self._late: tuple[int, int, jax.Array] | None = None

    def add(self, step: int, count: int, losses: jax.Array) -> None:
        """Takes a dispatch's losses, not yet computed, and settles those of the one before."""
        late, self._late = self._late, (step, count, losses)
        self._settle(late)

    def settle(self) -> None:
        """Waits for the last dispatch.

        Raises:
          NotFinite: naming the step.
        """
        late, self._late = self._late, None
        self._settle(late)

    def _settle(self, late: tuple[int, int, jax.Array] | None) -> None:
        if late is None:
            return
        step, count, losses = late
        for i, row in enumerate(np.asarray(losses, np.float64)[:count]):
            if not np.isfinite(row).all():
                values = ", ".join(f"{n} {v:g}" for n, v in zip(self._names, row, strict=True))
                raise NotFinite(
                    f"a loss of step {step - count + 1 + i} is not finite ({values}); the newest "
                    "checkpoint is from before it: lower optim.gen.lr and optim.disc.lr, or see "
                    "whether the data is sound"
                )
            self._sums += row
            self.count += 1

    def take(self) -> dict[str, float]:
        """The means, and begins anew."""
        means = dict(zip(self._names, (self._sums / self.count).tolist(), strict=True))
        self._sums, self.count = np.zeros_like(self._sums), 0
        return means

    def saved(self) -> dict[str, Any]:
        """What to keep in a checkpoint."""
        return {"count": self.count, "sums": self._sums.tolist()}
