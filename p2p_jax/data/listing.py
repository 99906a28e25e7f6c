"""Which files make a pair: side by side, in two trees, listed in a manifest, or one photo alone.

Only names are looked at here. Each function gives the items, sorted by name, and all problems.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from p2p_jax.data.decoding import SUFFIXES
from p2p_jax.data.files import AnyPath, at, entries, real

_SHOWN = 5


class Item(NamedTuple):
    """What becomes one pair.

    Attributes:
      name: unique; a relative path without suffix.
      files: the image of both, or those of A and B.
    """

    name: str
    files: tuple[AnyPath, ...]


class Listing(NamedTuple):
    """Items, what is wrong with them, and files that are no images."""

    items: list[Item]
    problems: list[str]
    others: list[str]


def few(names: Sequence[str], shown: int = _SHOWN) -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(map(plain, names[:shown])) + (f" and {more} more" if more > 0 else "")


def plain(name: str) -> str:
    """The name, with what is no text in it escaped, so that it can be printed."""
    return name.encode("utf-8", "backslashreplace").decode()


def unprintable(names: Sequence[str]) -> str:
    """What is wrong with names that are no text: pages and logs are to name the pairs."""
    wrong = [name for name in names if plain(name) != name]
    return f"{len(wrong)} names are not UTF-8: {few(wrong)}; rename these" if wrong else ""


def is_image(name: str) -> bool:
    """Whether the name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def images_in(folder: AnyPath, deep: bool = False) -> tuple[list[str], list[str]]:
    """Relative names of the images in a folder, and of the other visible files, each sorted.

    A link that leads back to a folder above it is among the others.

    Args:
      folder: to look in.
      deep: in the folders below it, too.
    """
    images: list[str] = []
    others: list[str] = []
    waiting = [(folder, "", frozenset({real(folder)}))]
    while waiting:
        here, prefix, above = waiting.pop()
        for name, is_folder in entries(here):
            if not is_folder:
                (images if is_image(name) else others).append(prefix + name)
            elif deep:
                true = real(here / name)
                if true in above:
                    others.append(prefix + name)
                else:
                    waiting.append((here / name, f"{prefix}{name}/", above | {true}))
    return sorted(images), sorted(others)


def singles(folder: AnyPath, split: str, deep: bool) -> Listing:
    """One image an item: both halves side by side, or a photo alone."""
    images, others = images_in(folder, deep)
    stems, problems = _by_stem(images, split, str(folder))
    items = [Item(stem, (folder / name,)) for stem, name in stems.items()]
    return Listing(items, problems, others)


def trees(a: AnyPath, b: AnyPath, split: str) -> Listing:
    """Pairs of equal relative names below two folders, whatever their suffixes."""
    (in_a, others_a), (in_b, others_b) = images_in(a, True), images_in(b, True)
    stems_a, problems_a = _by_stem(in_a, split, str(a))
    stems_b, problems_b = _by_stem(in_b, split, str(b))
    problems = problems_a + problems_b
    for mine, theirs, here, there in ((stems_a, stems_b, a, b), (stems_b, stems_a, b, a)):
        alone = [name for stem, name in mine.items() if stem not in theirs]
        if alone:
            problems.append(
                f"{split}: {len(alone)} of {len(mine)} images in {here} have no partner of the "
                f"same name in {there}: {few(alone, 50)}; add the partners or remove these"
            )
    items = [
        Item(stem, (a / stems_a[stem], b / stems_b[stem]))
        for stem in sorted(stems_a.keys() & stems_b.keys())
    ]
    return Listing(items, problems, [f"A/{n}" for n in others_a] + [f"B/{n}" for n in others_b])


def _by_stem(names: Sequence[str], split: str, where: str) -> tuple[dict[str, str], list[str]]:
    """Names by their stems; those that differ in suffix only are a problem."""
    stems: dict[str, str] = {}
    clashes: dict[str, list[str]] = {}
    for name in names:
        stem = name.rpartition(".")[0]  # all have a suffix
        if stem in stems:
            clashes.setdefault(stem, [stems[stem]]).append(name)
        stems.setdefault(stem, name)
    problem = unprintable(names)
    problems = [f"{split}: in {where} {problem}"] if problem else []
    problems += [
        f"{split}: {' and '.join(same)} in {where} differ in suffix only, so their outputs would "
        "overwrite each other; rename or remove one"
        for same in clashes.values()
    ]
    return dict(sorted(stems.items())), problems


# --- manifests -----------------------------------------------------------------------------------

_COLUMNS = {"a": ("a", "source", "input"), "b": ("b", "target", "output")}


def manifest(path: AnyPath) -> tuple[dict[str, list[Item]], list[str]]:
    """Items by split of a CSV file with a head line, or of JSON lines, and all problems.

    Columns or keys: `a` and `b` (or `source` and `target`), the files, relative to the manifest's
    folder; perhaps `split`, train where there is none; perhaps `name`, else that of a without
    suffix.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"data.path: '{path}' cannot be read as text ({error})"]
    splits: dict[str, list[Item]] = {}
    problems: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for line, row, problem in _rows(str(path), text):
        if not problem:
            entry, problem = _entry(path, row)
            if entry is not None:
                split, item = entry
                first = seen.setdefault((split, item.name), line)
                if first == line:
                    splits.setdefault(split, []).append(item)
                else:
                    problem = f"{split} has a pair named '{item.name}' already, of line {first}"
        if problem:
            problems.append(f"{path}, line {line}: {problem}")
    return {split: sorted(items) for split, items in splits.items()}, problems


def _rows(name: str, text: str) -> Iterator[tuple[int, Any, str]]:
    """(line, row, problem) of each line that is not empty."""
    if name.lower().endswith((".jsonl", ".ndjson", ".json")):
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, None, f"is not JSON ({error})"
                continue
            problem = "" if isinstance(row, dict) else "is not a JSON object such as {'a': ...}"
            yield number, row, problem
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        head = reader.fieldnames or ()
        lacking = _lacking({str(name).strip().lower(): "a.png" for name in head})
        if lacking:
            yield 1, None, lacking
            return
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, None, f"needs {len(reader.fieldnames or ())} columns"
            else:
                yield reader.line_num, row, ""
    except csv.Error as error:
        yield reader.line_num, None, f"is not CSV ({error})"


def _entry(path: AnyPath, row: dict[str, Any]) -> tuple[tuple[str, Item] | None, str]:
    """The split and the item of one row, or what is wrong with it."""
    row = {str(key).strip().lower(): value for key, value in row.items()}
    found = {}
    for side, columns in _COLUMNS.items():
        values = [row[c] for c in columns if row.get(c)]
        if len(values) != 1 or not isinstance(values[0], str) or "\0" in values[0]:
            return None, _lacking(row) or f"'{side}' must be the name of one file"
        found[side] = values[0].strip()
        if not is_image(found[side]):
            return None, f"'{found[side]}' is no image; allowed are {', '.join(SUFFIXES)}"
    split = row.get("split") or "train"
    name = row.get("name") or str(PurePosixPath(found["a"]).with_suffix(""))
    for key, value in (("split", split), ("name", name)):
        if not isinstance(value, str) or "\0" in value or plain(value) != value:
            return None, f"{key} {value!r} is not text"
    if not row.get("name"):  # what may lie outside the folder still needs a name inside it
        name = "/".join(p for p in PurePosixPath(name).parts if p not in ("/", "..", "."))
    name = str(PurePosixPath(name))
    if name.startswith("/") or ".." in PurePosixPath(name).parts or name == ".":
        return None, f"name '{name}' is not a relative path without '..'"
    try:
        files = tuple(at(f) if _absolute(f) else path.parent / f for f in found.values())
        missing = [str(f) for f in files if not f.is_file()]
    except (OSError, ValueError, ImportError) as error:
        return None, f"cannot be looked at ({error})"
    if missing:
        return None, f"{' and '.join(missing)} does not exist"
    return (split.strip(), Item(name, files)), ""


def _lacking(row: dict[str, Any]) -> str:
    """Which column there is not, or not once."""
    there = f"; there are {few(sorted(row))}" if row else ""
    for side, columns in _COLUMNS.items():
        if sum(bool(row.get(column)) for column in columns) != 1:
            return f"needs a file in one column '{side}' (or '{columns[1]}'){there}"
    return ""


def _absolute(name: str) -> bool:
    return "://" in name or name.startswith(("/", "~"))
