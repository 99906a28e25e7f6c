"""A look at data that need not be sound: what there is, what is wrong, what is there twice.

Where training stops at what it cannot use, this goes on, and says all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2p_jax.data.builders import Prepared, Row
from p2p_jax.data.decoding import Facts
from p2p_jax.data.folder import Gathered
from p2p_jax.data.pairs import DataError, DataOptions, Form, Log, Pair, PairSource, Splits, digest
from p2p_jax.data.records import RecordSource, Verdict, View, Views, judge
from p2p_jax.data.sources import GATHER, SOURCES
from p2p_jax.data.splits import open_splits, seeded_split


class Side(NamedTuple):
    """What is known of the images of one side of a split; counts by kind, the most frequent first.

    Attributes:
      dtypes: of the values.
      channels: of the images.
      formats: that they are stored in; '' where they are drawn.
      low: the smallest value; None where none was looked at.
      high: the largest value, likewise.
      halves: whether `low` and `high` are those of files that hold both sides.
    """

    dtypes: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    low: float | None
    high: float | None
    halves: bool


class Part(NamedTuple):
    """One split, or what is held out of it.

    Attributes:
      split: its name.
      held_out: whether it is held out of that split, as there is no other to evaluate on.
      evaluates: whether it is for evaluation alone.
      names: of all its pairs.
      broken: index to a sentence, of each pair that cannot be used.
      source: the pairs, broken ones among them; None where there is no sound one.
      sides: of source and target; None where it is made out of the other one.
      keys: for each pair what tells its content; empty where that is not known.
    """

    split: str
    held_out: bool
    evaluates: bool
    names: tuple[str, ...]
    broken: dict[int, str]
    source: PairSource | None
    sides: tuple[Side | None, Side | None]
    keys: tuple[tuple[str, ...], ...]

    @property
    def title(self) -> str:
        """What to call it."""
        name = self.split or "all"
        return f"held out of {name}" if self.held_out else name

    @property
    def sound(self) -> list[int]:
        """Indices of the pairs that can be used."""
        return [i for i in range(len(self.names)) if i not in self.broken]


class Survey(NamedTuple):
    """What there is.

    Attributes:
      parts: what is trained on first, then what is evaluated.
      problems: of the listing, and of splits as a whole; not those of single pairs.
      notes: sentences the user should see.
      duplicates: groups of pairs of the same bytes, each pair as (title of its part, name).
    """

    parts: tuple[Part, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    duplicates: tuple[tuple[tuple[str, str], ...], ...]


class Chosen:
    """Some pairs of a source."""

    def __init__(self, source: PairSource, indices: Sequence[int]) -> None:
        """Takes the pairs at `indices`, in this order."""
        self._source, self._indices = source, tuple(indices)
        self.names = tuple(source.names[i] for i in indices)
        self.forms, self.sizes = source.forms, np.asarray(source.sizes)[list(indices)]
        self.fingerprint = digest("chosen", source.fingerprint, self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Pair:
        return self._source[self._indices[i]]


def survey(options: DataOptions, log: Log) -> Survey:
    """Looks at the data of `options`, preparing it if need be.

    Args:
      options: of a source in `SOURCES`.
      log: told what takes time.
    """
    gather = GATHER.get(options.source)
    if gather is None:
        return _of_pairs(options, log)
    gathered = gather(options, log)
    problems = list(gathered.problems)
    views, options = gathered.views, gathered.options
    verdicts = {
        split: judge(split, prepared.rows[split], views, options)
        for split, prepared in gathered.sets.items()
        if split in prepared.rows
    }
    for verdict in verdicts.values():
        problems += verdict.problems
    parts, found = _parts(gathered, verdicts)
    problems += found
    notes = list(gathered.notes)
    broken = options.on_error == "fail" and any(part.broken for part in parts)
    if parts and not problems and not broken:  # there is still what splits must have in common
        try:
            splits = open_splits(gathered.sets, views, options, log, notes)
            notes, parts = list(splits.notes), _parts(gathered, verdicts, splits.train.forms)[0]
        except DataError as error:
            problems += error.problems
    return Survey(tuple(parts), tuple(problems), tuple(notes), duplicates(parts))


def _of_pairs(options: DataOptions, log: Log) -> Survey:
    """Of a source that is not made of prepared sets: what its pairs tell."""
    try:
        splits: Splits = SOURCES[options.source].open(options, log)
    except DataError as error:
        return Survey((), tuple(error.problems), (), ())
    parts = []
    for name, source in zip(
        (options.train_split, options.eval_split), (splits.train, splits.eval), strict=True
    ):
        sides = [_drawn(form, len(source)) if form.channels else None for form in source.forms]
        names = tuple(source.names)
        evaluates = source is splits.eval
        parts.append(Part(name, False, evaluates, names, {}, source, (sides[0], sides[1]), ()))
    return Survey(tuple(parts), (), splits.notes, ())


def _drawn(form: Form, count: int) -> Side:
    return Side({form.dtype: count}, {str(form.channels): count}, {"": count}, None, None, False)


# --- prepared sets -------------------------------------------------------------------------------


Forms = tuple[Form, Form]


def _parts(
    gathered: Gathered, verdicts: dict[str, Verdict], forms: Forms | None = None
) -> tuple[list[Part], list[str]]:
    """Both splits, or one and what is held out of it; and why nothing can be.

    Args:
      gathered: the sets.
      verdicts: on each of them.
      forms: that all of them can take; by default each its own.
    """
    problems: list[str] = []
    train, held = gathered.options.train_split, gathered.options.eval_split
    uses: list[tuple[str, bool, bool, Sequence[int]]] = [
        (split, False, split != train, range(len(verdict.rows)))
        for split, verdict in verdicts.items()
    ]
    alone = list(verdicts) == [train] and train != held
    if alone and gathered.options.hold_out and not gathered.problems:
        names = [row.name for row in verdicts[train].rows]
        try:
            rows, held_rows = seeded_split(names, gathered.options.split_seed)
            uses = [(train, False, False, rows), (train, True, True, held_rows)]
        except DataError as error:
            problems += error.problems
    parts = []
    for split, held_out, evaluates, rows in uses:
        verdict = verdicts[split]
        parts.append(_part(split, rows, gathered, verdict, forms or verdict.forms))
        parts[-1] = parts[-1]._replace(held_out=held_out, evaluates=evaluates)
    return parts, problems


def _part(
    split: str, rows: Sequence[int], gathered: Gathered, verdict: Verdict, forms: Forms
) -> Part:
    known = [verdict.rows[row] for row in rows]
    place = {row: i for i, row in enumerate(rows)}
    broken = {place[row]: sentence for row, sentence in verdict.broken if row in place}
    sound = [row for row in known if not row.problem]
    views: Views = gathered.views
    source = None
    if sound:
        prepared: Prepared = gathered.sets[split]
        alpha = gathered.options.alpha
        source = RecordSource(split, prepared, verdict.rows, rows, views, forms, alpha)
    sides = [_side(sound, view) if view and sound else None for view in views]
    names = tuple(row.name for row in known)
    keys = tuple(row.digests for row in known)
    return Part(split, False, False, names, broken, source, (sides[0], sides[1]), keys)


def _side(rows: Sequence[Row], view: View) -> Side:
    facts: list[Facts] = [row.facts[view.file] for row in rows]

    def counted(values: list[str]) -> dict[str, int]:
        return dict(Counter(values).most_common())

    return Side(
        counted([f.dtype for f in facts]),
        counted([str(f.channels) for f in facts]),
        counted([f.format for f in facts]),
        min(f.low for f in facts),
        max(f.high for f in facts),
        view.part != "whole",
    )


def duplicates(parts: Sequence[Part]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Groups of pairs whose files are the same byte for byte, within and across parts."""
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for part in parts:
        for name, key in zip(part.names, part.keys, strict=False):
            if key:  # nothing is known of what cannot be read
                groups.setdefault(key, []).append((part.title, name))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
