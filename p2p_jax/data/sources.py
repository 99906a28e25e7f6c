"""The table of sources: where pairs come from.

A source is two functions, `check` (cheap, says all that is wrong) and `open` (may prepare data).
To add one, write the two and add a line to `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable

from p2p_jax.data import synthetic
from p2p_jax.data.folder import check_folder, open_folder
from p2p_jax.data.pairs import DataOptions, Pair, Source, Splits, digest, oriented, raise_if


class SyntheticSource:
    """Procedural pairs `first` .. `first + count - 1`, drawn when asked for."""

    def __init__(self, first: int, count: int, size: tuple[int, int], direction: str) -> None:
        """Describes the range; nothing is drawn yet."""
        self.names = tuple(f"synthetic_{first + i:06d}" for i in range(count))
        self.size = size
        self.fingerprint = digest("synthetic", synthetic.VERSION, size, first, count)
        self._first, self._direction = first, direction

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self.names):
            raise IndexError(f"pair {i} of {len(self.names)}")
        return oriented(*synthetic.render(self._first + i, self.size), self._direction)


def check_synthetic(options: DataOptions) -> list[str]:
    """Problems of the options for synthetic pairs."""
    problems: list[str] = []
    if min(options.crop_size) < synthetic.MIN_SIZE:
        problems.append(
            f"data.crop_size: {options.crop_size} is too small for synthetic pairs; both sides "
            f"must be at least {synthetic.MIN_SIZE}; try (64, 64)"
        )
    return problems


def open_synthetic(options: DataOptions, log: Callable[[str], None]) -> Splits:
    """Synthetic pairs at `options.crop_size`; the two splits share no index."""
    del log  # nothing to prepare
    raise_if(check_synthetic(options))
    train = options.max_examples or synthetic.TRAIN_EXAMPLES
    held = min(options.eval_examples or synthetic.EVAL_EXAMPLES, synthetic.EVAL_EXAMPLES)
    size, way = options.crop_size, options.direction
    return Splits(
        SyntheticSource(0, min(train, synthetic.TRAIN_EXAMPLES), size, way),
        SyntheticSource(synthetic.EVAL_FIRST, held, size, way),
        (),
    )


SOURCES: dict[str, Source] = {
    "synthetic": Source(check_synthetic, open_synthetic),
    "folder": Source(check_folder, open_folder),
}
