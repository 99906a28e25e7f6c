"""The sizes that a generator sees: of whole images, and of tiles of larger ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import jax
import numpy as np

from p2p_jax import tiles
from p2p_jax.inference import Inference
from p2p_jax.networks import make_generator
from p2p_jax.tiles import Plan, Size

_FINE = 8  # pixels that tiles begin at multiples of where nothing would make them exact


def padded(image: np.ndarray, canvas: Size) -> np.ndarray:
    """Continued to the bottom and right by its mirror image, again and again if need be."""
    spare = [(0, whole - part) for whole, part in zip(canvas, image.shape[:2], strict=True)]
    return np.pad(image, (*spare, (0, 0)), "symmetric") if any(map(any, spare)) else image


class Canvases:
    """What sizes a generator takes.

    Attributes:
      step: of which height and width are multiples.
    """

    def __init__(self, inference: Inference, deterministic: bool) -> None:
        """Takes a generator, and whether it draws nothing."""
        generator = inference.gan.generator
        self._config = inference.config
        norm = inference.config.model.generator.norm
        self._fixed = norm == "none" or (norm == "batch" and inference.running)
        self._deterministic = deterministic
        self.step: int = getattr(generator, "size_step", 1)
        self._least: int = getattr(generator, "min_size", 1)

    def of(self, size: Sequence[int]) -> Size:
        """(height, width) that the network sees of an image of this size: no more than it needs."""
        step = self.step
        height, width = (-(-max(side, self._least) // step) * step for side in size[:2])
        return height, width

    # --- tiles -----------------------------------------------------------------------------------

    @cached_property
    def reach(self) -> int | None:
        """How far from a tile's inner edge what is made is not that of the whole, in pixels.

        None where it is nowhere the same, as each tile has statistics or draws of its own; or
        where that is beyond thousands of pixels.
        """
        if not self._fixed or not self._deterministic:
            return None
        # How far does not depend on how many features there are.
        thin = self._config.copy_and_resolve_references().unlock()
        chosen = thin.model.generator
        chosen.norm, chosen.base_features, chosen.noise = "none", 1, 0
        chosen.features = (1,) * len(chosen.features)
        thin.train.conv_form, thin.train.precision, thin.mesh.spatial = "plain", "float32", 1
        with jax.enable_x64(False):
            return tiles.reach(make_generator(thin, 1, "tanh"), self.step, self._least)

    @property
    def enough(self) -> int | None:
        """The least overlap that makes the result of tiles that of the whole; None: none does."""
        return None if self.reach is None else -(-2 * self.reach // self.step) * self.step

    def problems(self, tile: Size, overlap: int | None = None) -> list[str]:
        """What is wrong with tiles of this (height, width), and such an overlap of theirs."""
        problems, fits = [], self.of(tile)
        if fits != tuple(tile):
            problems.append(
                f"--tile: {tile[0]},{tile[1]} does not fit the network, which wants multiples of "
                f"{self.step}: {fits[0]},{fits[1]} would do"
            )
        if overlap is not None and not 0 <= overlap < min(tile):
            problems.append(f"--overlap: {overlap} is not in 0 to {min(tile) - 1}, below the tile")
        if self._config.data.task == "inpaint":
            problems.append("--tile: inpaint cuts its hole out of the middle of the whole image")
        return problems

    def plan(self, size: Sequence[int], tile: Size, overlap: int | None = None) -> Plan:
        """Where the tiles of an image lie, and whether their result is that of the whole.

        Args:
          size: (height, width) of the image.
          tile: of each, such as `problems` has nothing against; likewise:
          overlap: of neighbours, at least; None: what makes the result exact where three quarters
            of the tile are enough for that, and else a quarter.
        """
        step, least, enough = self.step, min(tile), self.enough
        if overlap is None:
            overlap = enough if enough is not None and 4 * enough <= 3 * least else least // 4
        exact = enough is not None and enough <= min(overlap, least - step)
        unit = step if exact else int(np.gcd(step, _FINE))
        shared = min(-(-overlap // unit) * unit, least - unit)
        height, width = (
            whole if whole <= side else -(-length // unit) * unit
            for whole, side, length in zip(self.of(size), tile, size[:2], strict=True)
        )
        margin = (self.reach or 0) if exact else 0
        return tiles.plan((height, width), tile, shared, unit, margin, exact)

    def told(self, plan: Plan) -> str:
        """What is to be said of tiles that lie like this."""
        height, width = plan.tile
        head = f"tiles of {height}x{width} that overlap by {plan.overlap}"
        if plan.exact:
            return f"{head} make what the whole image would, to rounding"
        if not self._deterministic:
            why = "each draws dropout or noise of its own"
        elif self.reach is None and not self._fixed:
            why = "each is normalised by statistics of its own"
        elif self.enough is None:
            why = "the network sees farther than any tile"
        else:
            why = f"an overlap of {self.enough}, in larger tiles where need be, would make them so"
        return f"{head} do not quite make what the whole image would: {why}"
