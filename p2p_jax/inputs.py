"""Which images a command line names, and where what is made of them is to lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from p2p_jax.data.decoding import SUFFIXES
from p2p_jax.data.files import AnyPath, at, entries, is_remote
from p2p_jax.data.listing import few, images_in, is_image
from p2p_jax.words import near

STREAM = "-"  # standard input or output
WRITTEN = (".png", ".tiff", ".npy")
_PATTERN = "*?["


class Item(NamedTuple):
    """An image to translate.

    Attributes:
      name: of its output, a relative path without suffix.
      file: it lies in; None: standard input.
    """

    name: str
    file: AnyPath | None

    def __str__(self) -> str:
        return "standard input" if self.file is None else str(self.file)


class Found(NamedTuple):
    """What a command line names.

    Attributes:
      items: the images.
      notes: what else was there.
      problems: what is wrong.
      single: whether a file was named, not a folder or pattern.
    """

    items: list[Item]
    notes: list[str]
    problems: list[str]
    single: bool = False


def find(text: str, output: str) -> Found:
    """Lists what `--input` names.

    Args:
      text: a file, a folder with all below it, a pattern with `*`, `?`, `[` or `**`, or `-`.
      output: what `--output` says; images below that folder are what was made before.
    """
    if text == STREAM:
        return Found([Item("standard input", None)], [], [])
    try:
        found = _find(text)
    except (OSError, ValueError, ImportError) as error:
        return Found([], [], [f"--input: {text} cannot be looked at ({error})"])
    if output in ("", STREAM) or found.single:
        return found
    inner = f"{_real(at(output))}/"
    kept = [item for item in found.items if not _real(item.file).startswith(inner)]
    left = len(found.items) - len(kept)
    if left:
        found.notes.append(f"{left} images below {output} were left out: they are results")
    if left and not kept:
        found.problems.append(f"--input: all images of {text} are below --output")
    return Found(kept, found.notes, found.problems)


def _find(text: str) -> Found:
    path = at(text)
    if path.is_dir():
        names, others = images_in(path, deep=True)
        return _listed(text, [(name, path / name) for name in names], others)
    if path.exists():
        return Found([Item(path.stem, path)], [], [], single=True)
    if any(sign in text for sign in _PATTERN):
        return _matched(text)
    beside = [name for name, _ in entries(path.parent)] if path.parent.is_dir() else []
    hint = near(path.name, beside, f"{path.parent}/") or "; check the spelling"
    return Found([], [], [f"--input: {text} does not exist{hint}"])


def _matched(text: str) -> Found:
    """What matches a pattern; names are relative to the folder before its first sign."""
    parts = PurePosixPath(text).parts
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in _PATTERN))
    # Of gs://bucket the parts are not to be joined by pathlib, which makes gs:/bucket of it.
    before = text[: text.index(parts[first])]
    root, pattern = at(before or "."), "/".join(parts[first:])
    pattern += "/*" if parts[-1] == "**" else ""
    found = sorted(path for path in root.glob(pattern) if not path.name.startswith("."))
    files = [(str(path.relative_to(root)), path) for path in found if path.is_file()]
    others = [name for name, _ in files if not is_image(name)]
    return _listed(text, [file for file in files if is_image(file[0])], others)


def _listed(text: str, images: Sequence[tuple[str, AnyPath]], others: Sequence[str]) -> Found:
    items = [Item(str(PurePosixPath(name).with_suffix("")), path) for name, path in images]
    if not items:
        there = f"; found {few(others)}" if others else ""
        problem = f"--input: {text} holds no image; allowed are {', '.join(SUFFIXES)}{there}"
        return Found([], [], [problem])
    left = f"left out of {text}, as no images: {few(others)}"
    return Found(items, [left] if others else [], [])


def file_suffix(output: str) -> str:
    """The suffix of `--output` where that names a file, and not a folder; else ''."""
    if output == STREAM or at(output).is_dir():
        return ""
    suffix = at(output).suffix
    return suffix if suffix.lower() in (*SUFFIXES, *WRITTEN) else ""


def outputs(
    items: Sequence[Item], output: str, suffix: str, overwrite: bool
) -> tuple[list[AnyPath | None], list[str]]:
    """Where the result of each image is to lie; None: standard output. And what is wrong.

    Args:
      items: the images.
      output: a folder, a file where there is one image, or `-`.
      suffix: of results in a folder.
      overwrite: whether results may be there already.
    """
    if output == STREAM:
        several = f"--output: - takes one image, not {len(items)}; name a folder"
        return [None] * len(items), [several] * (len(items) > 1)
    place = at(output)
    named = bool(file_suffix(output))
    if named and len(items) > 1:
        return [], [f"--output: {output} is one file, for {len(items)} images; name a folder"]
    if named and place.suffix != suffix:
        ways = f"images are written as {', '.join(WRITTEN)}"
        return [], [f"--output: {output} is no name for a {suffix}; {ways}"]
    if not named and items[0].file is None:
        return [], [f"--output: {output} is a folder; standard input needs a file, or -"]
    if not named and place.exists() and not place.is_dir():
        return [], [f"--output: {output} is a file; name another folder"]
    paths = [place] if named else [place / f"{item.name}{suffix}" for item in items]
    return list(paths), _in_the_way(items, paths, overwrite)


def _in_the_way(items: Sequence[Item], paths: Sequence[AnyPath], overwrite: bool) -> list[str]:
    """What would be written twice, or over something of the user's."""
    problems, makers = [], {}
    for item, path in zip(items, paths, strict=True):
        makers.setdefault(str(path), []).append(str(item))
    problems += [
        f"--input: {' and '.join(made)} would both become {path}; rename one"
        for path, made in makers.items()
        if len(made) > 1
    ]
    given = {_real(item.file) for item in items if item.file is not None}
    own = [str(path) for path in paths if _real(path) in given]
    if own:
        problems.append(f"--output: {few(own)} would overwrite an input; name another folder")
    there = [str(path) for path in paths if str(path) not in own and path.exists()]
    if there and not overwrite:
        problems.append(
            f"--output: {len(there)} of {len(paths)} results exist already ({few(there)}); use "
            "another folder, or --overwrite"
        )
    return problems


def _real(path: AnyPath) -> str:
    return str(path) if is_remote(path) else os.path.realpath(path)
