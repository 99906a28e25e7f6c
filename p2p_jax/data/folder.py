"""Pairs from a folder of side-by-side images."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from p2p_jax.data import builders
from p2p_jax.data.builders import SUFFIXES, images_in
from p2p_jax.data.pairs import (
    DataError,
    DataOptions,
    Pair,
    Splits,
    digest,
    oriented,
    raise_if,
)

_EVAL_SHARE = 0.1  # of a folder without an evaluation split


class FolderSource:
    """Side-by-side images of a prepared set; A is the left half, B the right half."""

    def __init__(
        self, split: str, prepared: builders.Prepared, rows: Sequence[int], direction: str
    ) -> None:
        """Takes the `rows` of a `builders.Prepared`, in this order."""
        self.names = tuple(prepared.stems[r] for r in rows)
        self.size = (prepared.size[0], prepared.size[1] // 2)
        self.fingerprint = digest("folder", prepared.content, self.size, *self.names)
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
        return oriented(image[:, :half], image[:, half:], self._direction)


def check_folder(options: DataOptions) -> list[str]:
    """Problems that a look at the folder shows; no image is opened."""
    problems: list[str] = []
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
    raise_if(check_folder(options))
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
    raise_if(problems)
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
    draws = [int(digest("split", seed, name)[:16], 16) / 2**64 for name in names]
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
