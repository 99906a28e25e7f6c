"""From prepared sets to the split that is trained on and the one that is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2p_jax.data.builders import Prepared
from p2p_jax.data.pairs import (
    DataError,
    DataOptions,
    Form,
    Log,
    PairSource,
    Splits,
    digest,
    raise_if,
)
from p2p_jax.data.records import RecordSource, Verdict, Views, judge, range_problems
from p2p_jax.data.substitute import Substituting

_EVAL_SHARE = 0.1  # of a set without an evaluation split


def open_splits(
    sets: Mapping[str, Prepared],
    views: Views,
    options: DataOptions,
    log: Log,
    notes: Sequence[str] = (),
) -> Splits:
    """Judges what was prepared and gives both splits.

    Args:
      sets: by split, the prepared set that holds it; the training split, and that for evaluation
        where there is one.
      views: where source and target are in them.
      options: what the user wants.
      log: told of each pair that another one stands in for.
      notes: to be told beside those found here.

    Raises:
      DataError: with all that is wrong with the sets and their examples.
    """
    train, held = options.train_split, options.eval_split
    verdicts = {
        split: judge(split, prepared.rows.get(split, ()), views, options)
        for split, prepared in sets.items()
    }
    notes = list(notes)
    problems = []
    for split, verdict in verdicts.items():
        problems += verdict.problems
        if options.on_error == "fail" or len(verdict.broken) == len(verdict.rows):
            problems += [sentence for _, sentence in verdict.broken]
        else:
            notes += _broken_notes(split, verdict, split != held)
    rows_by_split = {split: verdict.rows for split, verdict in verdicts.items()}
    raise_if(problems + range_problems(rows_by_split, views, options))
    forms = _common({split: verdict.forms for split, verdict in verdicts.items()})
    rows: Sequence[int] = range(len(verdicts[train].rows))
    if held in sets:
        held_rows: Sequence[int] = range(len(verdicts[held].rows))
    else:
        names = [row.name for row in verdicts[train].rows]
        rows, held_rows = seeded_split(names, options.split_seed)
        missing = f"there is no split '{held}'" if held else "data.eval_split is empty"
        notes.append(
            f"{missing}: of {len(names)} pairs {len(held_rows)} are held out for "
            f"evaluation and {len(rows)} are trained on (data.split_seed={options.split_seed})."
        )
        held = train
    broken = {i for i, _ in verdicts[held].broken}
    held_rows = [row for row in held_rows if row not in broken][: options.eval_examples or None]
    rows = rows[: options.max_examples or None]
    if not set(rows) - {i for i, _ in verdicts[train].broken} or not held_rows:
        raise DataError([f"data.path: no sound pair is left of '{train}' or '{held}'"])

    def source(split: str, chosen: Sequence[int]) -> PairSource:
        known = verdicts[split].rows
        return RecordSource(split, sets[split], known, chosen, views, forms, options.alpha)

    training = source(train, rows)
    if options.on_error == "substitute":
        training = Substituting(training, log)
    return Splits(training, source(held, held_rows), tuple(notes))


def _broken_notes(split: str, verdict: Verdict, training: bool) -> list[str]:
    if not verdict.broken:
        return []
    what = "another pair is trained on for each" if training else "they are left out of evaluation"
    first = "; ".join(sentence for _, sentence in verdict.broken[:3])
    more = "; ..." if len(verdict.broken) > 3 else ""
    count = len(verdict.broken)
    return [f"{split}: {count} of {len(verdict.rows)} cannot be used, {what}: {first}{more}."]


def _common(forms: Mapping[str, tuple[Form, Form]]) -> tuple[Form, Form]:
    """The forms that all splits can take.

    Raises:
      DataError: there are none.
    """
    common, problems = [], []
    for side in (0, 1):
        of_side = {split: pair[side] for split, pair in forms.items()}
        channels = {form.channels for form in of_side.values()}
        dtypes = {form.dtype for form in of_side.values()}
        if len(dtypes) > 1 or (len(channels) > 1 and not channels <= {1, 3}):
            listed = ", ".join(f"{s} {f.dtype} of {f.channels}" for s, f in of_side.items())
            what = ("source", "target")[side]
            problems.append(f"{what} images of the splits differ in type or channels: {listed}")
        first = next(iter(of_side.values()))
        common.append(first._replace(channels=max(channels)))
    raise_if(problems)
    return common[0], common[1]


def seeded_split(names: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, about a tenth, at least one each.

    Each name is decided by its own hash, so it stays on its side when others come or go. Only where
    no hash of so few names says that it is held out, the nearest is: that one may go back when more
    come.

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
