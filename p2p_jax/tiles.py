"""Large images in tiles: where they lie, how far a network sees, how what it makes is joined.

Tiles overlap. Where a network normalises by fixed statistics and draws nothing, what it makes of a
tile is what it makes of the whole, but for a margin along the edges that lie inside the image: its
`reach`. An overlap of twice that hides the margins of both neighbours, and the result is exact.
Otherwise neighbours fade into each other over all of their overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Size = tuple[int, int]

_SHORTEST, _LONGEST = 256, 8192  # strips that the reach is looked for in
# Lines that a seam is compared with: so far from it at most, and at multiples of so much: doublings
# of the size leave patterns of their own.
_NEAR, _PERIOD = 48, 8


class Plan(NamedTuple):
    """Where the tiles of an image lie.

    Attributes:
      canvas: (height, width) of the image with its mirrored border.
      tile: (height, width) of each tile; that of the canvas where one is enough.
      starts: rows and columns that tiles begin at; each row with each column makes a tile.
      margin: pixels along a tile's inner edges that are not used where overlaps allow.
      overlap: pixels that neighbours share at least.
      exact: whether what is joined is what would be made of the whole, to rounding.
    """

    canvas: Size
    tile: Size
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    margin: int
    overlap: int
    exact: bool

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, column) of the first pixel of each tile, row by row."""
        return list(itertools.product(*self.starts))


def plan(canvas: Size, tile: Size, overlap: int, unit: int, margin: int, exact: bool) -> Plan:
    """Lays tiles out evenly.

    Args:
      canvas: (height, width), multiples of `unit`.
      tile: (height, width), likewise; at most so large.
      overlap: of neighbours, at least; a multiple of `unit`, and less than the tile.
      unit: that tiles begin at multiples of.
      margin: see `Plan`.
      exact: of several tiles; one always is.
    """
    size = min(tile[0], canvas[0]), min(tile[1], canvas[1])
    rows, columns = (_starts(*sides, overlap, unit) for sides in zip(canvas, size, strict=True))
    alone = len(rows) * len(columns) == 1
    return Plan(canvas, size, (rows, columns), margin, overlap, exact or alone)


def _starts(length: int, tile: int, overlap: int, unit: int) -> tuple[int, ...]:
    if tile >= length:
        return (0,)
    steps = -(-(length - tile) // (tile - overlap))
    return tuple((length - tile) * i // steps // unit * unit for i in range(steps + 1))


# --- joining -------------------------------------------------------------------------------------


def weights(starts: Sequence[int], tile: int, margin: int) -> np.ndarray:
    """How much of what each tile makes counts, float32 `[n, tile]`; 1 in all for every pixel.

    Each tile is laid over those before it, and fades in where they overlap: over what is left of
    the overlap without the margins of both, or over all of it where that is nothing.
    """
    length = starts[-1] + tile
    fades = np.ones((len(starts), length))
    for i in range(1, len(starts)):
        shared = starts[i - 1] + tile - starts[i]
        skipped = margin if shared >= 2 * margin else 0
        place = np.arange(length) - starts[i] + 0.5 - skipped
        fade = np.clip(place / max(shared - 2 * skipped, 1e-9), 0, 1)
        fades[i] = fade * fade * (3 - 2 * fade)
    counts = fades.copy()
    for i in range(len(starts)):
        counts[i] *= np.prod(1 - fades[i + 1 :], axis=0)
    rows = [counts[i, start : start + tile] for i, start in enumerate(starts)]
    return np.stack(rows).astype(np.float32)


def joined(plan: Plan, made: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """What was made of all tiles as bands of the whole, from top to bottom.

    No more than a row of tiles is kept.

    Args:
      plan: the tiles.
      made: of each of `plan.places`, float32 `[*tile, c]`.

    Yields:
      The first row of a band, and the band `[rows, width, c]`; the next one begins where it ends.
    """
    tiles = iter(made)
    down, across = (
        weights(starts, side, plan.margin)
        for starts, side in zip(plan.starts, plan.tile, strict=True)
    )
    (height, width), rows = plan.canvas, plan.starts[0]
    kept = np.zeros((0, 0, 0), np.float32)
    for j, (top, end) in enumerate(zip(rows, [*rows[1:], height], strict=True)):
        for i, left in enumerate(plan.starts[1]):
            image = next(tiles)
            if not kept.size:
                kept = np.zeros((plan.tile[0], width, image.shape[2]), np.float32)
            share = down[j][:, None, None] * across[i][None, :, None]
            kept[:, left : left + plan.tile[1]] += share * image
        done = end - top
        yield top, kept[:done]
        kept = np.concatenate([kept[done:], np.zeros_like(kept[:done])])


def seams(image: np.ndarray, plan: Plan) -> float:
    """How visible the edges of tiles are: about 1 where they are not.

    The mean absolute difference of neighbouring pixels across the edges of tiles (and across the
    middle of each overlap), relative to that across lines near them, 8 pixels or a multiple away.

    Args:
      image: `[h, w, c]`, what was joined, or the top left of it.
      plan: the tiles it was joined of.
    """
    on, off = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(np.float32), axis=axis)).mean((1 - axis, 2))
        starts, tile = plan.starts[axis], plan.tile[axis]
        lines = set()
        for before, start in itertools.pairwise(starts):
            end = before + tile
            lines |= {start, end, (start + end) // 2}
        lines = {line - 1 for line in lines if 0 < line <= len(steps)}
        for line in sorted(lines):
            near = range(line - _NEAR, line + _NEAR + 1, _PERIOD)
            beside = [steps[k] for k in near if 0 <= k < len(steps) and k not in lines]
            if beside:
                on.append(steps[line])
                off.append(np.mean(beside))
    if not on:
        return 1.0
    return float(np.sum(on) / max(float(np.sum(off)), 1e-12)) if np.sum(on) else 1.0


# --- how far a network sees ----------------------------------------------------------------------


def reach(generator: Any, step: int, least: int = 1) -> int | None:
    """How far from where an image is cut what a generator makes is not that of the whole.

    Found by letting it translate an image of which one side of the cut is not a number: whatever
    looks there, be its weight 0, is none either. So it holds for any network; and for one that
    normalises over the image there is none.

    Args:
      generator: a module, called with (source), of one channel; as its widths do not matter, one
        with few features and without dropout. Its norm is `none`, where fixed statistics are meant.
      step: its sizes are multiples of this; so is the cut.
      least: and at least this.

    Returns:
      Pixels; None where it is beyond 4,096, or everything.
    """
    side = -(-max(least, step) // step) * step
    length = -(-_SHORTEST // (16 * side)) * 16 * side
    while length <= _LONGEST:
        found = [_reach(generator, length, shape) for shape in ((length, side), (side, length))]
        known = [pixels for pixels in found if pixels is not None]
        if len(known) == len(found):
            return max(known)
        length *= 2
    return None


def _reach(generator: Any, length: int, shape: Size) -> int | None:
    """The same along the axis of a strip that is of this length; None where that is too short."""
    axis, cut = shape.index(length), length // 2
    strips = np.zeros((2, length, min(shape), 1), np.float32)
    strips[0, :cut], strips[1, cut:] = np.nan, np.nan
    # Where kernels are applied by other means than sums, more would be no number than looks there.
    with jax.default_device(_cpu()):
        strips = strips if axis == 0 else strips.swapaxes(1, 2)
        shapes = jax.eval_shape(generator.init, jax.random.key(0), jnp.asarray(strips))
        ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
        made = np.asarray(jax.jit(generator.apply)(ones, strips))
    none: Any = np.isnan(made).any((2 - axis, 3))
    after, before = np.flatnonzero(none[0, cut:]), np.flatnonzero(none[1, :cut])
    pixels = max(len(after) and after[-1] + 1, len(before) and cut - before[0])
    return int(pixels) if pixels < cut else None


def _cpu() -> Any:
    """The first CPU device; None, the default one, where JAX was told to use none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
