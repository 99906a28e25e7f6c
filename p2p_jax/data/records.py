"""Pairs out of a prepared set, and what may be wrong with them as a set.

What is known of every stored image was found when it was prepared, so a set is judged without
reading it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from p2p_jax.data.builders import Prepared, Row
from p2p_jax.data.decoding import Facts, decode, fitted
from p2p_jax.data.files import passing
from p2p_jax.data.listing import few
from p2p_jax.data.pairs import DataError, DataOptions, Form, Pair, digest
from p2p_jax.data.recipes import cut

_PNG = ("uint8", "uint16"), (1, 2, 3, 4)  # what a PNG holds without loss


class View(NamedTuple):
    """Where an image of a pair is: which stored one, and its `whole`, `left` or `right`."""

    file: int
    part: str = "whole"


Views = tuple[View | None, View | None]  # of source and target; None: made out of the other one


class RecordSource:
    """Some examples of one split of a prepared set, seen as pairs."""

    def __init__(
        self,
        split: str,
        prepared: Prepared,
        known: Sequence[Row],
        rows: Sequence[int],
        views: Views,
        forms: tuple[Form, Form],
        alpha: str,
    ) -> None:
        """Takes the `rows` of a split, in this order.

        Args:
          split: of the set.
          prepared: the set.
          known: what is known of all its examples; see `judge`.
          rows: to take, in this order.
          views: where source and target are.
          forms: what they have in common; see `judge`.
          alpha: what becomes of transparency.
        """
        self._known, self._split, self._prepared = known, split, prepared
        self._rows, self._views, self._alpha = tuple(rows), views, alpha
        self.forms = forms
        self.names = tuple(self._known[r].name for r in rows)
        seen = [_size(self._known[r], views) for r in rows]
        usual = next((s for s in seen if s), (1, 1))  # stands in for what cannot be read
        self.sizes = np.array([s or usual for s in seen], np.int32).reshape(-1, 2)
        self.fingerprint = digest("records", prepared.content, views, forms, alpha, *self.names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self._rows):
            raise IndexError(f"{self._split}[{i}]: there are {len(self._rows)} pairs")
        row = self._rows[i]
        try:
            if self._known[row].problem:
                raise ValueError(self._known[row].problem)
            blobs = self._prepared.blobs(self._split, row)
            images: dict[int, np.ndarray] = {}
            found = [self._image(blobs, images, v, f) for v, f in self._sides()]
        except Exception as error:  # whatever a reader or decoder raises, say where
            if passing(error):
                raise
            raise DataError([f"{self._split}[{i}] {self.names[i]}: {error}"]) from error
        source, target = found
        if source is None:
            assert target is not None
            source = target[..., :0]
        return Pair(source, source[..., :0] if target is None else target)

    def _sides(self) -> Iterable[tuple[View | None, Form]]:
        return zip(self._views, self.forms, strict=True)

    def _image(
        self,
        blobs: tuple[bytes, bytes],
        images: dict[int, np.ndarray],
        view: View | None,
        form: Form,
    ) -> np.ndarray | None:
        if view is None:
            return None
        if view.file not in images:
            images[view.file] = decode(blobs[view.file])
        return fitted(cut(images[view.file], view.part), form.channels, self._alpha)


def _size(row: Row, views: Views) -> tuple[int, int] | None:
    view = views[0] or views[1]
    assert view is not None
    return None if row.problem else _cut_size(row.facts[view.file], view)


def _cut_size(facts: Facts, view: View) -> tuple[int, int]:
    return facts.height, facts.width // (1 if view.part == "whole" else 2)


class Verdict(NamedTuple):
    """What a split is fit for.

    Attributes:
      rows: with the problems of single examples told.
      forms: of source and target, where there is no problem.
      broken: (row, sentence) of each example that cannot be used.
      problems: of the set as a whole.
    """

    rows: tuple[Row, ...]
    forms: tuple[Form, Form]
    broken: list[tuple[int, str]]
    problems: list[str]


def judge(split: str, rows: Sequence[Row], views: Views, options: DataOptions) -> Verdict:
    """What single examples and a split as a whole may be used for.

    Args:
      split: its name.
      rows: what is known of its examples.
      views: where source and target are.
      options: what the user wants of them.
    """
    judged = tuple(row if row.problem else _own_problem(row, views) for row in rows)
    broken = [
        (i, f"{split}[{i}] {' and '.join(row.files)}: {row.problem}")
        for i, row in enumerate(judged)
        if row.problem
    ]
    sound = [(i, row) for i, row in enumerate(judged) if not row.problem]
    if not sound:
        problems = [] if broken else [f"{split}: there are no examples"]
        return Verdict(judged, (Form(0), Form(0)), broken, problems)
    forms, problems = [], []
    for side, view in zip(("source", "target"), views, strict=True):
        if view is None:
            forms.append(Form(0))
            continue
        examples = [(i, row, row.facts[view.file]) for i, row in sound]
        form, wrong = _form(split, side, examples, options)
        forms.append(form)
        problems += wrong
    # What is made out of the other side, or not there at all, is of its type.
    given = max(forms, key=lambda form: form.channels)
    forms = [form if form.channels else given._replace(channels=0) for form in forms]
    return Verdict(judged, (forms[0], forms[1]), broken, problems)


def _own_problem(row: Row, views: Views) -> Row:
    """The row, with what keeps its two images from being a pair."""
    sizes = []
    for view in views:
        if view is None:
            continue
        facts = row.facts[view.file]
        if view.part != "whole" and facts.width % 2:
            return row._replace(
                problem=f"width {facts.width} is odd; two equal halves are needed, A on the left "
                "and B on the right"
            )
        sizes.append(_cut_size(facts, view))
    if len(set(sizes)) > 1:
        named = " and ".join(f"{w}x{h}" for h, w in sizes)
        return row._replace(
            problem=f"the two images are of {named} pixels (width x height); a pair needs equal "
            "sizes; resize one to fit the other"
        )
    return row


Example = tuple[int, Row, Facts]


def _form(
    split: str, side: str, examples: Sequence[Example], options: DataOptions
) -> tuple[Form, list[str]]:
    """What the images of one side have in common, and what keeps them from having it."""
    problems = []
    counts = Counter(facts.dtype for _, _, facts in examples)
    if len(counts) > 1:
        listed = _listed(split, examples, lambda facts: facts.dtype)
        problems.append(f"{split}: {side} images differ in type: {listed}; convert them to one")
    channels, wrong = _channels(split, side, examples, options.alpha)
    problems += wrong
    dtype = next(iter(counts))
    suffix = ".png"
    if dtype not in _PNG[0] or channels not in _PNG[1]:
        suffix = ".npy" if all(f.format == "npy" for _, _, f in examples) else ".tiff"
    return Form(channels, dtype, suffix), problems


def _channels(
    split: str, side: str, examples: Sequence[Example], alpha: str
) -> tuple[int, list[str]]:
    """How many channels the images get: grey among colour is repeated, transparency is settled."""
    counts = Counter(facts.channels for _, _, facts in examples)
    clear = [c for c in counts if c in (2, 4) and _is_picture(c, examples)]
    if clear and alpha == "refuse":
        with_alpha = [f"{split}[{i}] {row.name}" for i, row, f in examples if f.channels in clear]
        problem = (
            f"{split}: {len(with_alpha)} of {len(examples)} {side} images have transparency "
            f"({few(with_alpha)}); data.alpha says what becomes of it: drop, white or black (laid "
            "over it), or keep, as a channel"
        )
        return max(counts), [problem]
    wanted = set(counts)
    if clear and alpha != "keep":
        wanted = {c - 1 if c in clear else c for c in counts}
    if wanted <= {1, 3} or len(wanted) == 1:
        return max(wanted), []
    listed = _listed(split, examples, lambda facts: f"{facts.channels} channels")
    return max(wanted), [f"{split}: {side} images differ in channels: {listed}; make them equal"]


def _is_picture(channels: int, examples: Sequence[Example]) -> bool:
    """Whether so many channels mean transparency: not in arrays and TIFFs, which hold anything."""
    return any(f.channels == channels and f.format not in ("npy", "tiff") for _, _, f in examples)


def range_problems(
    splits: Mapping[str, Sequence[Row]], views: Views, options: DataOptions
) -> list[str]:
    """Values of all splits that a declared range does not cover, or that none is declared for.

    Args:
      splits: what is known of the examples; see `Verdict.rows`.
      views: where source and target are.
      options: hold the ranges.
    """
    problems = []
    for side, view, declared in zip(("source", "target"), views, options.ranges, strict=True):
        if view is None or options.labels in (side, "both"):
            continue
        named = [
            (f"{split}[{i}] {row.name}", row.facts[view.file])
            for split, rows in splits.items()
            for i, row in enumerate(rows)
            if not row.problem
        ]
        problems += _range_problem(side, named, *declared)
    return problems


def _range_problem(
    side: str, named: Sequence[tuple[str, Facts]], low: float, high: float
) -> list[str]:
    if not named:
        return []
    least, most = min(f.low for _, f in named), max(f.high for _, f in named)
    key = f"data.{side}_range"
    if low == high:
        if all(facts.dtype != "float32" for _, facts in named):
            return []
        return [
            f"{key}: the {side} images hold fractions, from {least:.7g} to {most:.7g}; say which "
            f"values are to become -1 and 1, as in --config.{key}={least:.7g},{most:.7g}"
        ]
    outside = [(name, f) for name, f in named if f.low < low or f.high > high]
    if not outside:
        return []
    name, facts = outside[0]
    return [
        f"{key}: ({low:g}, {high:g}) does not hold the values of {len(outside)} of {len(named)} "
        f"{side} images (first {name}: {facts.low:.7g} to {facts.high:.7g}); those of all are "
        f"{least:.7g} to {most:.7g}"
    ]


def _listed(split: str, examples: Sequence[Example], what: Callable[[Facts], str]) -> str:
    """How many there are of each kind, with the first."""
    kinds: dict[str, list[str]] = {}
    for i, row, facts in examples:
        kinds.setdefault(what(facts), []).append(f"{split}[{i}] {row.name}")
    return ", ".join(f"{len(v)} of {kind} (first {v[0]})" for kind, v in kinds.items())
