"""The types of the data package: pairs, their sources, what those need to know, what goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

_SHOWN = 20  # problems listed before "and N more"


class Pair(NamedTuple):
    """One example: `source` and `target`, each [h, w, c] uint8 in [0, 255]."""

    source: np.ndarray
    target: np.ndarray


class Batch(NamedTuple):
    """Pairs stacked along leading axes, for example [b, h, w, c] uint8."""

    source: np.ndarray
    target: np.ndarray


class DataError(Exception):
    """What is wrong with the data, one sentence a problem; all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keeps the sentences in `problems`; `str()` joins them by newlines."""
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What a source needs to know.

    Attributes:
      source: key of `SOURCES`.
      path: the user's folder; only read.
      direction: 'AtoB' (A is the source) or 'BtoA'.
      train_split: folder of the training pairs, below `path`.
      eval_split: folder of the evaluation pairs; where it is missing a part is held out.
      load_size: (height, width) an image is resized to before cropping.
      crop_size: (height, width) the networks see; synthetic pairs are drawn at this size.
      split_seed: decides which pairs are held out.
      prepared_dir: where prepared data is kept; '' is p2p_jax under the user's cache directory.
      max_examples: training pairs used at most; 0 is all.
      eval_examples: evaluation pairs used at most; 0 is all.
      hold_out: whether pairs may be held out; otherwise `eval_split` must exist.
    """

    source: str
    path: str
    direction: str
    train_split: str
    eval_split: str
    load_size: tuple[int, int]
    crop_size: tuple[int, int]
    split_seed: int
    prepared_dir: str
    max_examples: int
    eval_examples: int
    hold_out: bool = True


class PairSource(Protocol):
    """Pairs by index. `__getitem__` may be called from several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each pair: unique, and fit to be a file name without extension."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of the content."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of each of the two images as stored."""
        ...

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """Pair `i`, for i in [0, len)."""
        ...


class Splits(NamedTuple):
    """Both splits, and sentences the user should see."""

    train: PairSource
    eval: PairSource
    notes: tuple[str, ...]


class Source(NamedTuple):
    """A kind of data: `check(options)` lists problems, `open(options, log)` gives the splits."""

    check: Callable[[DataOptions], list[str]]
    open: Callable[[DataOptions, Callable[[str], None]], Splits]


def oriented(a: np.ndarray, b: np.ndarray, direction: str) -> Pair:
    """The pair of images A and B; 'AtoB' makes A the source."""
    return Pair(a, b) if direction == "AtoB" else Pair(b, a)


def raise_if(problems: list[str]) -> None:
    """Raises a DataError where there are problems; of very many, the first."""
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise DataError(problems)


def digest(*parts: object) -> str:
    """A hex digest of what the parts print as."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
