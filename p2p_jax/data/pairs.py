"""The types of the data package: pairs, their sources, what those need to know, what goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from p2p_jax.words import Problems

_SHOWN = 20  # problems listed before "and N more"
DTYPES = ("uint8", "uint16", "float32")  # that images are stored in
Log = Callable[[str], None]


class Pair(NamedTuple):
    """One example: `source` and `target`, each `[h, w, c]` uint8, uint16 or float32, of one size.

    Either may have 0 channels: the task makes it out of the other one.
    """

    source: np.ndarray
    target: np.ndarray


class Batch(NamedTuple):
    """Frames of pairs, stacked along leading axes.

    Attributes:
      source: for example `[b, h, w, c]`, in its stored type.
      target: likewise.
      sizes: int32 `[b, 2]`, the (height, width) that each pair fills of its frame, from the top
        left; None where all fill it.
    """

    source: np.ndarray
    target: np.ndarray
    sizes: np.ndarray | None = None


class Form(NamedTuple):
    """What the images of one side of a set have in common.

    Attributes:
      channels: 0 where the task makes them out of the other side.
      dtype: one of `DTYPES`.
      suffix: of files that hold such images without loss: '.png', '.tiff' or '.npy'.
    """

    channels: int
    dtype: str = "uint8"
    suffix: str = ".png"


class DataError(Problems):
    """What is wrong with the data."""


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What a source needs to know; the keys of the same names in `config.base` say more.

    Attributes:
      source: key of `SOURCES`.
      path: the user's folder or file; only read.
      name: of a TFDS data set.
      features: of it: the image of both halves, or those of A and B.
      url: where official sets are downloaded from instead.
      direction: 'AtoB' (A is the source) or 'BtoA'.
      train_split: of the training pairs.
      eval_split: of the evaluation pairs; where it is missing a part is held out.
      crop_size: (height, width) the networks see; synthetic pairs are drawn at this size.
      split_seed: decides which pairs are held out.
      prepared_dir: where prepared data is kept; '' is p2p_jax under the user's cache directory.
      max_examples: training pairs used at most; 0 is all.
      eval_examples: evaluation pairs used at most; 0 is all.
      on_error: 'fail', or 'substitute' for another pair of the set where one cannot be read.
      alpha: what becomes of transparency: refuse, drop, white, black or keep.
      ranges: (low, high) of the values of source and target; (0, 0) is all that the type holds.
      canny: both thresholds of the edges.
      labels: which side holds class labels: '', 'source', 'target' or 'both'.
      palette: colours of the classes, (red, green, blue) each; empty: values are the classes.
      classes: how many there are.
      label_tolerance: the largest distance in a channel at which a colour counts as a label's.
      hold_out: whether pairs may be held out; otherwise `eval_split` must exist.
    """

    source: str
    path: str = ""
    name: str = ""
    features: tuple[str, ...] = ("image",)
    url: str = ""
    direction: str = "AtoB"
    train_split: str = "train"
    eval_split: str = "val"
    crop_size: tuple[int, int] = (256, 256)
    split_seed: int = 0
    prepared_dir: str = ""
    max_examples: int = 0
    eval_examples: int = 0
    on_error: str = "fail"
    alpha: str = "refuse"
    ranges: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    canny: tuple[int, int] = (100, 200)
    labels: str = ""
    palette: tuple[tuple[int, int, int], ...] = ()
    classes: int = 0
    label_tolerance: int = 0
    hold_out: bool = True


class PairSource(Protocol):
    """Pairs by index. `__getitem__` may be called from several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each pair: unique, and fit to be a relative path without suffix."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of the content."""
        ...

    @property
    def forms(self) -> tuple[Form, Form]:
        """What all sources, and all targets, have in common."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """(height, width) of each pair as stored, int32 `[n, 2]`."""
        ...

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """Pair `i`, for i in [0, len).

        Raises:
          DataError: it cannot be read, by its index and name.
        """
        ...


class Splits(NamedTuple):
    """Both splits, and sentences the user should see."""

    train: PairSource
    eval: PairSource
    notes: tuple[str, ...]


class Source(NamedTuple):
    """A kind of data.

    Attributes:
      check: lists problems of the options, without reading an image.
      open: prepares if need be and gives the splits; told what takes time.
      task: of `TASKS`, what such pairs are for.
      trains: False where there are no targets to learn from.
    """

    check: Callable[[DataOptions], list[str]]
    open: Callable[[DataOptions, Log], Splits]
    task: str = "translate"
    trains: bool = True


def oriented(a: np.ndarray, b: np.ndarray, direction: str) -> Pair:
    """The pair of images A and B; 'AtoB' makes A the source."""
    return Pair(a, b) if direction == "AtoB" else Pair(b, a)


def raise_if(problems: list[str]) -> None:
    """Raises a DataError where there are problems; of very many, the first."""
    if problems:
        raise DataError(shown(problems))


def shown(problems: list[str]) -> list[str]:
    """The problems; of very many, the first, and how many more there are."""
    if len(problems) <= _SHOWN:
        return problems
    return [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]


def digest(*parts: object) -> str:
    """A hex digest of what the parts print as."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
