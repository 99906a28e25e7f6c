"""Ending a run where evaluations stop getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from p2p_jax.build import TrainOptions
from p2p_jax.report import number, plain


class Early:
    """Counts evaluations in a row that are no better than the best before.

    Any better value is progress; NaN and infinities are none. What was counted of another figure,
    or of one that was evaluated otherwise, is forgotten.
    """

    def __init__(
        self,
        options: TrainOptions,
        mode: str,
        identity: Mapping[str, Any],
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts afresh, or goes on.

        Args:
          options: with `early_stop`, how many end the run, 0 for never, and the figure, `best`.
          mode: `min` or `max`, which values are better.
          identity: what evaluations depend on.
          saved: what `saved` returned.
        """
        self._patience, self._figure = options.early_stop, f"eval/{options.best}"
        self._sign = 1 if mode == "max" else -1
        self._of = {"figure": self._figure, **plain(identity)}
        fresh: dict[str, Any] = {"best": None, "step": 0, "bad": 0}
        self._state = fresh if saved is None or saved["of"] != self._of else dict(saved)

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return 0 < self._patience <= self._state["bad"]

    def update(self, value: float, step: int) -> None:
        """Takes an evaluation's value, and the step it is of."""
        best = self._state["best"]
        if math.isfinite(value) and (best is None or self._sign * value > self._sign * best):
            self._state = {"best": float(value), "step": step, "bad": 0}
        else:
            self._state["bad"] += 1

    def saved(self) -> dict[str, Any]:
        """JSON of all that it knows."""
        return {**self._state, "of": self._of}

    def told(self, step: int) -> str:
        """What to say where it ended a run."""
        best = "none was finite"
        if self._state["best"] is not None:
            best = f"the best is {number(self._state['best'])} at step {self._state['step']}"
        return (
            f"ended early at step {step}: {self._state['bad']} evaluations without progress of "
            f"{self._figure} ({best}); a larger train.early_stop, or 0, goes on"
        )
