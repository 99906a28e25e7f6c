"""The table of sources: where pairs come from.

A source is two functions, `check` (cheap, says all that is wrong) and `open` (may prepare data),
and the task that its pairs are for. To add one, write the two and add a line to `SOURCES`. Where
the pairs come out of prepared sets, a line in `GATHER` lets the sets be looked at before they are
judged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from p2p_jax.data import folder, recipes, synthetic
from p2p_jax.data.builders import Recipe
from p2p_jax.data.catalog import check_tfds, gather_tfds, open_tfds
from p2p_jax.data.files import at
from p2p_jax.data.folder import (
    HALVES,
    PHOTOS,
    TREES,
    Gathered,
    Layout,
    check_folder,
    gather_folder,
    open_folder,
)
from p2p_jax.data.labels import Labels
from p2p_jax.data.pairs import (
    DataOptions,
    Form,
    Log,
    Pair,
    Source,
    Splits,
    digest,
    oriented,
    raise_if,
)
from p2p_jax.data.records import View, Views


class SyntheticSource:
    """Procedural pairs `first` .. `first + count - 1`, drawn when asked for."""

    def __init__(self, first: int, count: int, size: tuple[int, int], direction: str) -> None:
        """Describes the range; nothing is drawn yet."""
        self.names = tuple(f"synthetic_{first + i:06d}" for i in range(count))
        self.forms = (Form(3), Form(3))
        self.sizes = np.tile(np.array(size, np.int32), (count, 1))
        self.fingerprint = digest("synthetic", synthetic.VERSION, size, first, count)
        self._first, self._size, self._direction = first, size, direction

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self.names):
            raise IndexError(f"pair {i} of {len(self.names)}")
        return oriented(*synthetic.render(self._first + i, self._size), self._direction)


def check_synthetic(options: DataOptions) -> list[str]:
    """Problems of the options for synthetic pairs."""
    problems: list[str] = []
    if min(options.crop_size) < synthetic.MIN_SIZE:
        problems.append(
            f"data.crop_size: {options.crop_size} is too small for synthetic pairs; both sides "
            f"must be at least {synthetic.MIN_SIZE}; try (64, 64)"
        )
    return problems


def open_synthetic(options: DataOptions, log: Log) -> Splits:
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


# How a folder is read: its layout, where source and target are, options, what is done beforehand.
Plan = tuple[Layout, Views, DataOptions, Recipe]


def _halves(options: DataOptions) -> Plan:
    return HALVES, folder.two_halves(options), options, Recipe()


def _trees(options: DataOptions) -> Plan:
    return TREES, folder.two_files(options), options, Recipe()


def _photos(options: DataOptions) -> Plan:
    return PHOTOS, (None, View(0)), options, Recipe()


def _edges(options: DataOptions) -> Plan:
    return PHOTOS, folder.two_files(options), options, recipes.edges(options.canny)


def _open(plan: Callable[[DataOptions], Plan], options: DataOptions, log: Log) -> Splits:
    layout, views, options, recipe = plan(options)
    return open_folder(layout, views, options, log, recipe)


def _gather(plan: Callable[[DataOptions], Plan], options: DataOptions, log: Log) -> Gathered:
    problems = folder.check_path(options, "the images")
    if problems:  # some plans look into the folder
        return Gathered({}, (None, None), options, [], problems)
    layout, views, options, recipe = plan(options)
    return gather_folder(layout, views, options, log, recipe)


# --- labels --------------------------------------------------------------------------------------


def _layout(options: DataOptions) -> Layout:
    """Label maps come side by side with their photos, or in trees: whichever there is."""
    path = at(options.path)
    split = options.train_split
    here = (path / "A" / split, path / split / "A", path / "A")
    halves = (path / split).is_dir() and not here[1].is_dir()
    return TREES if any(place.is_dir() for place in here) and not halves else HALVES


def check_labels(options: DataOptions) -> list[str]:
    """Problems of a folder of label maps and photos."""
    problems = _class_problems(options)
    wants = f"{HALVES.wants}, or {TREES.wants}"
    wrong = folder.check_path(options, wants)
    return problems + (wrong or check_folder(_layout(options), options))


def _class_problems(options: DataOptions) -> list[str]:
    problems = []
    if not options.palette and not options.classes:
        problems.append(
            "data.palette: say which colours the classes have, as '#0000aa #ff0000', or, where the "
            "values of pixels are the classes, how many there are, as data.classes"
        )
    if options.palette and options.classes not in (0, len(options.palette)):
        problems.append(
            f"data.classes: {options.classes} is not the {len(options.palette)} colours of "
            "data.palette; leave it 0"
        )
    return problems


def _gather_labels(options: DataOptions, log: Log) -> Gathered:
    problems = _class_problems(options)
    if problems:  # nothing could be made class numbers
        return Gathered({}, (None, None), options, [], problems)
    return _gather(_label_maps, options, log)


def _labels(options: DataOptions) -> Labels:
    count = len(options.palette) or options.classes
    return Labels(options.palette, count, options.label_tolerance)


def open_labels(options: DataOptions, log: Log) -> Splits:
    """Prepares label maps as class numbers, and opens them with their photos."""
    raise_if(check_labels(options))
    return _open(_label_maps, options, log)


def _label_maps(options: DataOptions) -> Plan:
    layout = _layout(options)
    places = ((0, "left"), (0, "right")) if layout is HALVES else ((0, "whole"), (1, "whole"))
    sides = ("source", "target") if options.direction == "AtoB" else ("target", "source")
    maps = [options.labels in (side, "both") for side in sides]
    parts = tuple((*place, is_map) for place, is_map in zip(places, maps, strict=True))
    recipe = recipes.label_maps(_labels(options), parts)
    views = tuple(View(k, "whole" if is_map else part) for k, (_, part, is_map) in enumerate(parts))
    ways: Views = (views[0], views[1]) if options.direction == "AtoB" else (views[1], views[0])
    return layout, ways, options, recipe


# --- images alone --------------------------------------------------------------------------------


def _alone(options: DataOptions) -> DataOptions:
    """The evaluation split where there is one, or else the folder itself, for both splits."""
    split = options.eval_split or options.train_split
    return dataclasses.replace(options, train_split=split, eval_split=split)


def check_single(options: DataOptions) -> list[str]:
    """Problems of a folder of images without targets."""
    problems = folder.check_path(options, PHOTOS.wants)
    return problems or check_folder(PHOTOS, _alone(options))


def open_single(options: DataOptions, log: Log) -> Splits:
    """Images to translate; there is nothing to train on."""
    raise_if(check_single(options))
    return _open(_images, options, log)


def _images(options: DataOptions) -> Plan:
    recipe = Recipe()
    if options.labels in ("source", "both"):
        recipe = recipes.label_maps(_labels(options), ((0, "whole", True),))
    return PHOTOS, (View(0), None), _alone(options), recipe


def _check(layout: Layout, options: DataOptions) -> list[str]:
    return check_folder(layout, options)


SOURCES: dict[str, Source] = {
    "synthetic": Source(check_synthetic, open_synthetic),
    "folder": Source(functools.partial(_check, HALVES), functools.partial(_open, _halves)),
    "paired_folders": Source(functools.partial(_check, TREES), functools.partial(_open, _trees)),
    "manifest": Source(folder.check_manifest, folder.open_manifest),
    "tfds": Source(check_tfds, open_tfds),
    "labels": Source(check_labels, open_labels, "labels"),
    "edges": Source(functools.partial(_check, PHOTOS), functools.partial(_open, _edges)),
    "colorization": Source(
        functools.partial(_check, PHOTOS), functools.partial(_open, _photos), "colorize"
    ),
    "inpaint": Source(
        functools.partial(_check, PHOTOS), functools.partial(_open, _photos), "inpaint"
    ),
    "single": Source(check_single, open_single, trains=False),
}

# What there is of a source, sound or not, before it is judged.
GATHER: dict[str, Callable[[DataOptions, Log], Gathered]] = {
    "folder": functools.partial(_gather, _halves),
    "paired_folders": functools.partial(_gather, _trees),
    "manifest": folder.gather_manifest,
    "tfds": gather_tfds,
    "labels": _gather_labels,
    "edges": functools.partial(_gather, _edges),
    "colorization": functools.partial(_gather, _photos),
    "inpaint": functools.partial(_gather, _photos),
    "single": functools.partial(_gather, _images),
}
