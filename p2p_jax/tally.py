"""Sums of what steps report, between two lines of the log."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from p2p_jax.process import Failure

MOST_SKIPPED = 10  # updates in a row, after which something is wrong that skipping does not mend


class NotFinite(Failure):
    """A loss is NaN or infinite.

    Attributes:
      step: whose loss it is.
    """

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


class Losses:
    """Losses since the last line of the log, summed in the order of steps.

    The sums go into checkpoints, so that a resumed run writes the line that it would have written.

    Attributes:
      skipped: how many updates since the last line were none, as they were not finite.
    """

    def __init__(self, names: tuple[str, ...], saved: dict[str, Any], skip: bool = False) -> None:
        """Begins, or goes on from what a checkpoint saved.

        Args:
          names: of the losses.
          saved: from `saved`, or empty.
          skip: the step leaves out updates that are not finite, and reports NaN for them.
        """
        self._names, self._skip = names, skip
        self.count: int = saved.get("count", 0)
        self._sums = np.array(saved.get("sums", [0.0] * len(names)), np.float64)
        self.skipped: int = saved.get("skipped", 0)
        self._in_a_row: int = saved.get("in_a_row", 0)
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
            if np.isfinite(row).all():
                self._sums += row
                self.count += 1
                self._in_a_row = 0
            else:
                self._not_finite(step - count + 1 + i, row)

    def _not_finite(self, step: int, row: np.ndarray) -> None:
        advice = "lower optim.gen.lr and optim.disc.lr, or see whether the data is sound"
        if not self._skip:
            values = ", ".join(f"{n} {v:g}" for n, v in zip(self._names, row, strict=True))
            raise NotFinite(
                f"a loss of step {step} is not finite ({values}); the newest checkpoint is from "
                f"before it: {advice}, or train.on_nan=skip or rollback",
                step,
            )
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise NotFinite(
                f"{self._in_a_row} updates in a row up to step {step} were skipped, as losses or "
                f"gradients were not finite; {advice}",
                step,
            )

    def take(self) -> dict[str, float]:
        """The means, NaN where all updates were skipped, and begins anew."""
        means = self._sums / self.count if self.count else np.full_like(self._sums, np.nan)
        self._sums, self.count, self.skipped = np.zeros_like(self._sums), 0, 0
        return dict(zip(self._names, means.tolist(), strict=True))

    def saved(self) -> dict[str, Any]:
        """What to keep in a checkpoint."""
        kept = {"count": self.count, "sums": self._sums.tolist()}
        return kept | ({"skipped": self.skipped, "in_a_row": self._in_a_row} if self._skip else {})
