"""Where pairs come from: the types, the options and the table of sources.

A source is two functions, `check` (cheap, says all that is wrong) and `open` (may prepare data).
To add one, write the two and add a line to `SOURCES`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from p2p_jax.data import synthetic

if TYPE_CHECKING:
    from p2p_jax.data import builders

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SHOWN = 20  # problems listed before "and N more"
_EVAL_SHARE = 0.1  # of a folder without an evaluation split


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


# --- synthetic -----------------------------------------------------------------------------------


class SyntheticSource:
    """Procedural pairs `first` .. `first + count - 1`, drawn when asked for."""

    def __init__(self, first: int, count: int, size: tuple[int, int], direction: str) -> None:
        """Describes the range; nothing is drawn yet."""
        self.names = tuple(f"synthetic_{first + i:06d}" for i in range(count))
        self.size = size
        self.fingerprint = _digest("synthetic", synthetic.VERSION, size, first, count)
        self._first, self._direction = first, direction

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self.names):
            raise IndexError(f"pair {i} of {len(self.names)}")
        return _oriented(*synthetic.render(self._first + i, self.size), self._direction)


def check_synthetic(options: DataOptions) -> list[str]:
    """Problems of the options for synthetic pairs."""
    problems = _check_common(options)
    if min(options.crop_size) < synthetic.MIN_SIZE:
        problems.append(
            f"data.crop_size: {options.crop_size} is too small for synthetic pairs; both sides "
            f"must be at least {synthetic.MIN_SIZE}; try (64, 64)"
        )
    return problems


def open_synthetic(options: DataOptions, log: Callable[[str], None]) -> Splits:
    """Synthetic pairs at `options.crop_size`; the two splits share no index."""
    del log  # nothing to prepare
    _raise_if(check_synthetic(options))
    train = options.max_examples or synthetic.TRAIN_EXAMPLES
    held = min(options.eval_examples or synthetic.EVAL_EXAMPLES, synthetic.EVAL_EXAMPLES)
    size, way = options.crop_size, options.direction
    return Splits(
        SyntheticSource(0, min(train, synthetic.TRAIN_EXAMPLES), size, way),
        SyntheticSource(synthetic.EVAL_FIRST, held, size, way),
        (),
    )


# --- folder of side-by-side images ---------------------------------------------------------------


class FolderSource:
    """Side-by-side images of a prepared set; A is the left half, B the right half."""

    def __init__(
        self, split: str, prepared: builders.Prepared, rows: Sequence[int], direction: str
    ) -> None:
        """Takes the `rows` of a `builders.Prepared`, in this order."""
        self.names = tuple(prepared.stems[r] for r in rows)
        self.size = (prepared.size[0], prepared.size[1] // 2)
        self.fingerprint = _digest("folder", prepared.content, self.size, *self.names)
        self._split, self._prepared, self._rows = split, prepared, tuple(rows)
        self._direction = direction

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self._rows):
            raise IndexError(f"{self._split}[{i}]: there are {len(self._rows)} pairs")
        try:
            image = self._prepared.image(self._rows[i])
        except Exception as error:  # whatever a reader or decoder raises, say where
            raise DataError([f"{self._split}[{i}] {self.names[i]}: {error}"]) from error
        half = image.shape[1] // 2
        return _oriented(image[:, :half], image[:, half:], self._direction)


def images_in(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the images in `folder`, and of the other visible files."""
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_dir():
                continue
            known = entry.name.lower().endswith(SUFFIXES)
            (images if known else others).append(entry.name)
    return sorted(images), sorted(others)


def check_folder(options: DataOptions) -> list[str]:
    """Problems that a look at the folder shows; no image is opened."""
    problems = _check_common(options)
    path = Path(options.path).expanduser()
    if not options.path:
        want = f"PATH/{options.train_split}/*.jpg, each with A on the left and B on the right"
        return [*problems, f"data.path: '' is empty; give the folder that holds {want}"]
    if not path.exists():
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        close = difflib.get_close_matches(path.name, [p.name for p in near if p.is_dir()], 1)
        hint = f"did you mean {path.parent / close[0]}?" if close else "check the spelling"
        return [*problems, f"data.path: '{path}' does not exist; it must be a folder; {hint}"]
    if not path.is_dir():
        return [*problems, f"data.path: '{path}' is a file; it must be a folder; try {path.parent}"]
    if prepared_dir(options).resolve().is_relative_to(path.resolve()):
        problems.append(
            f"data.prepared_dir: '{prepared_dir(options)}' lies inside data.path, which is only "
            "read; choose another folder, or '' for the user's cache directory"
        )
    return problems + _check_splits(path, options)


def _check_splits(path: Path, options: DataOptions) -> list[str]:
    train, held = path / options.train_split, path / options.eval_split
    if not options.train_split or not train.is_dir():
        return [
            f"data.path: '{path}' has no folder '{options.train_split}' (data.train_split); "
            f"side-by-side images are expected in {train}; {_found(path)}"
        ]
    problems = []
    images, _ = images_in(train)
    if not images:
        problems.append(
            f"data.path: '{train}' holds no image; allowed are {', '.join(SUFFIXES)}; "
            f"{_found(train)}"
        )
    if options.eval_split and held.exists():
        if not held.is_dir() or not images_in(held)[0]:
            problems.append(
                f"data.eval_split: '{held}' holds no image; allowed are {', '.join(SUFFIXES)}; "
                "fill it, or remove it to hold out a tenth of the training pairs"
            )
    elif not options.hold_out:
        problems.append(
            f"eval.split: '{options.eval_split}' is no folder of '{path}'; {_found(path)}"
        )
    elif len(images) == 1:
        problems.append(
            f"data.path: '{train}' holds 1 image and there is no evaluation split; at least 2 are "
            "needed to hold one out; add images or an evaluation folder"
        )
    return problems


def _found(folder: Path) -> str:
    """What there is instead, and what to do about it."""
    images, others = images_in(folder)
    below = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if {"A", "B"} <= set(below):
        return (
            "found two trees A and B, which this source does not read; join each pair side by "
            "side into one image, A on the left"
        )
    if images:
        return f"found {len(images)} images directly in it; move them into a folder below it"
    filled = [name for name in below if images_in(folder / name)[0]]
    if filled:
        return f"found images in {', '.join(filled[:5])}; name one of them in data.train_split"
    seen = [*(f"{name}/" for name in below), *others]
    return f"found {', '.join(seen[:5]) or 'nothing'}; check data.path"


def open_folder(options: DataOptions, log: Callable[[str], None]) -> Splits:
    """Prepares the folder if need be and opens it.

    Raises:
      DataError: with every problem of the folder and of its images.
    """
    from p2p_jax.data import builders  # reads images and TFDS, which take a while to import

    _raise_if(check_folder(options))
    path = Path(options.path).expanduser()
    wanted = [options.train_split]
    if options.eval_split and (path / options.eval_split).is_dir():
        wanted.append(options.eval_split)
    sets, problems, notes = {}, [], []
    for split in dict.fromkeys(wanted):
        try:
            sets[split] = builders.prepare(path / split, split, prepared_dir(options), log)
        except DataError as error:
            problems += error.problems
        others = images_in(path / split)[1]
        if others:
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            notes.append(f"{split}: {len(others)} files are not images and were left out: {named}.")
    if len({p.size for p in sets.values()}) > 1:
        sizes = ", ".join(f"{s} has {p.size[1]}x{p.size[0]}" for s, p in sets.items())
        problems.append(f"data.path: the splits differ in image size: {sizes}; make them equal")
    _raise_if(problems)
    train = sets[options.train_split]
    rows: Sequence[int] = range(len(train.stems))
    held_name = options.eval_split
    if len(wanted) > 1:
        held, held_rows = sets[options.eval_split], range(len(sets[options.eval_split].stems))
    else:
        held, held_name = train, f"{options.train_split} (held out)"
        rows, held_rows = seeded_split(train.stems, options.split_seed)
        why = (
            f"{path / options.eval_split} does not exist"
            if options.eval_split
            else ("data.eval_split is empty")
        )
        notes.append(
            f"{why}: of {len(train.stems)} pairs "
            f"{len(held_rows)} are held out for evaluation and {len(rows)} are trained on "
            f"(data.split_seed={options.split_seed})."
        )
    rows = rows[: options.max_examples or None]
    held_rows = held_rows[: options.eval_examples or None]
    return Splits(
        FolderSource(options.train_split, train, rows, options.direction),
        FolderSource(held_name, held, held_rows, options.direction),
        tuple(notes),
    )


def seeded_split(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, about a tenth, at least one each.

    Each name is decided by its own hash, so it stays on its side when others come or go.

    Raises:
      DataError: where there are fewer than two names.
    """
    if len(names) < 2:
        raise DataError([f"data.path: {len(names)} pair cannot be split; at least 2 are needed"])
    draws = [int(_digest("split", seed, name)[:16], 16) / 2**64 for name in names]
    by_draw = sorted(range(len(names)), key=draws.__getitem__)
    count = sum(draw < _EVAL_SHARE for draw in draws)
    held = set(by_draw[: min(max(count, 1), len(names) - 1)])
    return [i for i in range(len(names)) if i not in held], sorted(held)


def prepared_dir(options: DataOptions) -> Path:
    """The folder that prepared data is kept in."""
    if options.prepared_dir:
        return Path(options.prepared_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2p_jax"


# --- shared --------------------------------------------------------------------------------------


def _oriented(a: np.ndarray, b: np.ndarray, direction: str) -> Pair:
    return Pair(a, b) if direction == "AtoB" else Pair(b, a)


def _check_common(options: DataOptions) -> list[str]:
    problems = []
    if options.direction not in ("AtoB", "BtoA"):
        problems.append(
            f"data.direction: '{options.direction}' is not allowed; use 'AtoB' or 'BtoA'"
        )
    for key in ("max_examples", "eval_examples"):
        count = getattr(options, key)
        if count < 0:
            problems.append(f"data.{key}: {count} is negative; use a count, or 0 for all")
    return problems


def _raise_if(problems: list[str]) -> None:
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise DataError(problems)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()


SOURCES: dict[str, Source] = {
    "synthetic": Source(check_synthetic, open_synthetic),
    "folder": Source(check_folder, open_folder),
}
