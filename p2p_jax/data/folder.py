"""Sources that read the user's files: side by side, in two trees, photos alone, or a manifest."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from p2p_jax.data.builders import Prepared, Recipe, prepare, prepared_dir
from p2p_jax.data.decoding import SUFFIXES
from p2p_jax.data.files import AnyPath, at, is_remote
from p2p_jax.data.listing import Item, Listing, entries, few, images_in, manifest, singles, trees
from p2p_jax.data.origins import Files
from p2p_jax.data.pairs import DataError, DataOptions, Log, Splits, raise_if, shown
from p2p_jax.data.records import View, Views
from p2p_jax.data.splits import open_splits

# From the user's folder and a split's name to what the split holds; None where it is not there.
Locate = Callable[[AnyPath, str], Listing | None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which files lie in a folder.

    Attributes:
      wants: what is expected below PATH, for messages.
      locate: finds a split.
      loose: whether PATH itself may be the training split.
    """

    wants: str
    locate: Locate
    loose: bool = False


def _locate_halves(path: AnyPath, split: str) -> Listing | None:
    folder = path / split
    if not split or not folder.is_dir():
        return None
    if (folder / "A").is_dir() and (folder / "B").is_dir():
        problem = (
            f"data.train_split: '{split}' of {path} holds two trees A and B: use "
            "data.source=paired_folders"
        )
        return Listing([], [problem], [])
    return singles(folder, split, deep=True)


def _locate_trees(path: AnyPath, split: str) -> Listing | None:
    for a, b in (
        (path / "A" / split, path / "B" / split),
        (path / split / "A", path / split / "B"),
    ):
        if split and (a.is_dir() or b.is_dir()):
            missing = [str(folder) for folder in (a, b) if not folder.is_dir()]
            if missing:
                problem = f"{split}: there is no folder {missing[0]} beside its partner; add it"
                return Listing([], [problem], [])
            return trees(a, b, split)
    return None


def _locate_photos(path: AnyPath, split: str) -> Listing | None:
    folder = path / split if split else path
    return singles(folder, split, deep=True) if folder.is_dir() else None


HALVES = Layout("PATH/SPLIT/*.jpg, each with A on the left and B on the right", _locate_halves)
TREES = Layout(
    "PATH/A/SPLIT and PATH/B/SPLIT, or PATH/SPLIT/A and PATH/SPLIT/B, with equal names",
    _locate_trees,
)
PHOTOS = Layout("photos in PATH/SPLIT, or in PATH itself", _locate_photos, loose=True)


def check_path(options: DataOptions, wants: str, folder: bool = True) -> list[str]:
    """Problems of `data.path` and `data.prepared_dir`; nothing below them is looked at."""
    kind = "folder" if folder else "file"
    if not options.path:
        return [f"data.path: '' is empty; give the {kind} that holds {wants}"]
    try:
        path = at(options.path)
        if not path.exists():
            near = path.parent.iterdir() if path.parent.is_dir() else ()
            close = difflib.get_close_matches(path.name, [p.name for p in near], 1)
            hint = f"did you mean {path.parent / close[0]}?" if close else "check the spelling"
            return [f"data.path: '{path}' does not exist; it must be a {kind}; {hint}"]
        if path.is_dir() != folder:
            other = "file" if folder else "folder"
            hint = f"; try {path.parent}" if folder else ""
            return [f"data.path: '{path}' is a {other}; it must be a {kind}{hint}"]
    except (OSError, ValueError) as error:
        return [f"data.path: '{options.path}' cannot be looked at ({error})"]
    except ImportError as error:
        return [f"data.path: '{options.path}' needs the extra gcp: pip install 'p2p_jax[gcp]' "
                f"({error})"]  # fmt: skip
    if is_remote(options.prepared_dir):
        return [f"data.prepared_dir: '{options.prepared_dir}' must be a folder of this machine"]
    if folder and not is_remote(path) and _inside(prepared_dir(options.prepared_dir), path):
        return [
            f"data.prepared_dir: '{prepared_dir(options.prepared_dir)}' lies inside data.path, "
            "which is only read; choose another folder, or '' for the user's cache directory"
        ]
    return []


def _inside(folder: Path, path: Path) -> bool:
    return folder.resolve().is_relative_to(path.resolve())


def check_folder(layout: Layout, options: DataOptions) -> list[str]:
    """Problems that a look at the folder shows; no image is opened."""
    problems = check_path(options, layout.wants)
    return problems or _locate_all(layout, options)[1]


def _notes(layout: Layout, options: DataOptions, found: Mapping[str, Listing]) -> list[str]:
    notes = [
        f"{split}: {len(listing.others)} files are not images and were left out: "
        f"{few(listing.others)}."
        for split, listing in found.items()
        if listing.others
    ]
    for split, listing in found.items():
        if layout.loose and not (at(options.path) / split).is_dir():
            below = sorted({item.name.split("/")[0] for item in listing.items if "/" in item.name})
            which = f", in these folders too: {few(below)}" if below else ""
            notes.append(
                f"there is no folder '{split}' in '{options.path}': all {len(listing.items)} "
                f"images there are taken{which}."
            )
    return notes


def _locate_all(layout: Layout, options: DataOptions) -> tuple[dict[str, Listing], list[str]]:
    """The wanted splits that there are, and all problems."""
    try:
        return _located(layout, options)
    except OSError as error:  # a folder that may not be read, a name that is too long
        return {}, [f"data.path: '{options.path}' cannot be looked at ({error})"]


def _located(layout: Layout, options: DataOptions) -> tuple[dict[str, Listing], list[str]]:
    path = at(options.path)
    found: dict[str, Listing] = {}
    problems: list[str] = []
    train, held = options.train_split, options.eval_split
    for split in dict.fromkeys((train, held)):
        listing = layout.locate(path, split) if split else None
        if listing is not None:
            found[split] = listing
    # Where both are one and hold_out is off, the split was asked for by name.
    if layout.loose and not found and (options.hold_out or train != held):
        whole = layout.locate(path, "")
        if whole is not None and whole.items:
            found[train] = whole
    if train not in found:
        key = "eval.split" if train == held and not options.hold_out else "data.train_split"
        problems.append(
            f"data.path: '{path}' has no split '{train}' ({key}); expected are {layout.wants}; "
            f"{_instead(path, layout)}"
        )
        return found, problems
    for split, listing in found.items():
        problems += listing.problems
        if not listing.items and not listing.problems:
            key = "data.train_split" if split == train else "data.eval_split"
            hint = "" if split == train else "; fill it, or remove it to hold out a tenth"
            if layout is HALVES:
                hint = _deeper(path / split) or hint
            if listing.others:
                hint = f"; found {few(listing.others)}{hint}"
            problems.append(
                f"{key}: '{split}' of '{path}' holds no image; allowed are {', '.join(SUFFIXES)}"
                f"{hint}"
            )
    if held not in found:
        if not options.hold_out:
            problems.append(
                f"eval.split: '{held}' is no split of '{path}'; {_instead(path, layout)}"
            )
        elif len(found[train].items) == 1:
            problems.append(
                f"data.path: '{path}' holds 1 pair to train on and there is no evaluation split; "
                "at least 2 are needed to hold one out; add images or an evaluation split"
            )
    return found, problems


def _deeper(folder: AnyPath) -> str:
    """What to do about images that lie below the folder of a split."""
    below = [name for name, is_folder in entries(folder) if is_folder]
    if {"A", "B"} <= set(below):
        return "; found folders A and B in it: use data.source=paired_folders"
    filled = [name for name in below if images_in(folder / name)[0]]
    return f"; found images in {few(filled)} below it; move them up" if filled else ""


def _instead(path: AnyPath, layout: Layout) -> str:
    """What there is instead, and what to do about it."""
    listed = entries(path)
    folders = [name for name, is_folder in listed if is_folder]
    images, others = images_in(path)
    if layout is not TREES and ({"A", "B"} <= set(folders) or _two_trees(path, folders)):
        return "found two trees A and B: use data.source=paired_folders"
    if {f"train{side}" for side in "AB"} <= set(folders):
        return "found trainA and trainB: move them to A/train and B/train"
    if images:
        return f"found {len(images)} images directly in it; move them into a folder below it"
    filled = [name for name in folders if images_in(path / name)[0]]
    if filled and layout is TREES:
        return (
            f"found images in {few(filled)}: if each holds both halves side by side, use "
            "data.source=folder"
        )
    if filled:
        return f"found images in {few(filled)}; name one of them in data.train_split"
    seen = [*(f"{name}/" for name in folders), *others]
    return f"found {few(seen) or 'nothing'}; check data.path"


def _two_trees(path: AnyPath, folders: list[str]) -> bool:
    return any((path / name / "A").is_dir() and (path / name / "B").is_dir() for name in folders)


def open_folder(
    layout: Layout, views: Views, options: DataOptions, log: Log, recipe: Recipe | None = None
) -> Splits:
    """Prepares the folder if need be and opens it.

    Raises:
      DataError: with every problem of the folder and of its images.
    """
    raise_if(check_path(options, layout.wants))
    found, problems = _locate_all(layout, options)
    raise_if(problems)
    items = {split: listing.items for split, listing in found.items()}
    return open_items(
        items, views, options, log, recipe or Recipe(), _notes(layout, options, found)
    )


def open_items(
    splits: dict[str, list[Item]],
    views: Views,
    options: DataOptions,
    log: Log,
    recipe: Recipe,
    notes: list[str],
) -> Splits:
    """Prepares listed items, each split in a set of its own, and opens them."""
    gathered = gather_items(splits, views, options, log, recipe, notes, [])
    raise_if(list(gathered.problems))
    return open_splits(gathered.sets, views, options, log, notes)


class Gathered(NamedTuple):
    """What there is of some data, sound or not; nothing of it is judged yet.

    Attributes:
      sets: by split, the prepared set that holds it, as far as there is one.
      views: where source and target are in them.
      options: what the user wants.
      notes: sentences the user should see.
      problems: what keeps the data as a whole from being opened.
    """

    sets: Mapping[str, Prepared]
    views: Views
    options: DataOptions
    notes: Sequence[str]
    problems: Sequence[str]


def gather_folder(
    layout: Layout, views: Views, options: DataOptions, log: Log, recipe: Recipe | None = None
) -> Gathered:
    """Prepares what there is of the folder if need be; where `open_folder` raises, this tells."""
    problems = check_path(options, layout.wants)
    if problems:
        return Gathered({}, views, options, [], problems)
    found, problems = _locate_all(layout, options)
    items = {split: listing.items for split, listing in found.items()}
    return gather_items(
        items, views, options, log, recipe or Recipe(), _notes(layout, options, found), problems
    )


def gather_items(
    splits: Mapping[str, Sequence[Item]],
    views: Views,
    options: DataOptions,
    log: Log,
    recipe: Recipe,
    notes: Sequence[str],
    problems: Sequence[str],
) -> Gathered:
    """Prepares listed items, each split in a set of its own; adds to the problems."""
    cache, problems, sets = prepared_dir(options.prepared_dir), list(problems), {}
    for split, items in splits.items():
        if not items:  # which is a problem told already
            continue
        what = f"{len(items)} pairs of '{split}' of {options.path}"
        where = (
            f"{at(options.path)} {split}"
            if is_remote(at(options.path))
            else str(Path(options.path).expanduser().resolve() / split)
        )
        try:
            sets[split] = prepare(Files(what, where, {split: items}), recipe, cache, log)
        except DataError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return Gathered(sets, views, options, notes, problems)


# --- manifests -----------------------------------------------------------------------------------


_LINES = "a line for each pair: CSV with columns a and b, or JSON lines with these keys"


def check_manifest(options: DataOptions) -> list[str]:
    """Problems of a manifest; no image is opened."""
    problems = check_path(options, _LINES, folder=False)
    return problems or shown(_manifest_splits(options)[1])


def _manifest_splits(options: DataOptions) -> tuple[dict[str, list[Item]], list[str]]:
    splits, problems = manifest(at(options.path))
    train, held = options.train_split, options.eval_split
    there = f"there are {few(sorted(splits)) or 'none'}"
    if train not in splits and not problems:
        problems.append(f"data.train_split: {options.path} has no split '{train}'; {there}")
    if held not in splits and not options.hold_out:
        problems.append(f"eval.split: {options.path} has no split '{held}'; {there}")
    return {s: splits[s] for s in dict.fromkeys((train, held)) if s in splits}, problems


def open_manifest(options: DataOptions, log: Log) -> Splits:
    """Prepares the pairs of a manifest if need be and opens them."""
    raise_if(check_path(options, _LINES, folder=False))
    splits, problems = _manifest_splits(options)
    raise_if(problems)
    return open_items(splits, two_files(options), options, log, Recipe(), [])


def gather_manifest(options: DataOptions, log: Log) -> Gathered:
    """Prepares what there is of a manifest's pairs; where `open_manifest` raises, this tells."""
    views, problems = two_files(options), check_path(options, _LINES, folder=False)
    splits, found = ({}, []) if problems else _manifest_splits(options)
    return gather_items(splits, views, options, log, Recipe(), [], [*problems, *found])


# --- views ---------------------------------------------------------------------------------------


def _ways(a: View, b: View, options: DataOptions) -> Views:
    return (a, b) if options.direction == "AtoB" else (b, a)


def two_halves(options: DataOptions) -> Views:
    """A is the left half of the one image, B the right one."""
    return _ways(View(0, "left"), View(0, "right"), options)


def two_files(options: DataOptions) -> Views:
    """A is the first file, B the second."""
    return _ways(View(0), View(1), options)
