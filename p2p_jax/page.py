"""The page of an evaluation: figures, curves and a gallery, without network.

The page itself is one file; it shows the pictures beside it in `source/`, `images/` and `target/`,
and small copies of them in `thumbs/`. Its parts are in `templates/`.
"""

from __future__ import annotations

import html
import importlib.resources
import json
import math
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from p2p_jax import report, thumbs
from p2p_jax.storage import AnyPath, write_atomic
from p2p_jax.thumbs import Copy, Job

_FOLDERS = {"source": "source", "images": "output", "target": "target"}  # and what they hold
_HEAD = ("step", "images", "split")  # of a line of metrics.jsonl, before its figures
_POINTS = 600  # of a curve, at most
_PARTS = ("base", "figures", "curves", "viewer", "gallery")

Row = Mapping[str, Any]


def write_eval_page(
    folder: AnyPath,
    *,
    title: str,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    baseline_name: str,
    rows: Sequence[Row],
    targets: bool = True,
    intervals: Mapping[str, Sequence[float]] | None = None,
    about: Mapping[str, str] | None = None,
    better: Mapping[str, str] | None = None,
    log: Sequence[Row] = (),
    identity: Mapping[str, Any] | None = None,
    legend: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes `index.html` over the pictures in `source/`, `images/` and `target/`.

    Args:
      folder: where the page goes and the three folders of `NAME.png` are; gets `thumbs/`.
      title: heading of the page.
      metrics: figures of the split by name, as `eval/l1`; those of one class are
        `eval/GROUP/CLASS`.
      baseline: the same of the trivial answer, where it has them.
      baseline_name: what the trivial answer is.
      rows: one an example: `name` (the NAME of its pictures), and its metrics by name.
      targets: whether there are any.
      intervals: of figures that have one, its two ends.
      about: of figures that need it, how they were made.
      better: `min` or `max`, by name of the figure.
      log: lines of metrics.jsonl, for the curves.
      identity: what else is to be known of the evaluation; `step` and `split` are its place in the
        log.
      legend: names of classes, and their colours as `#rrggbb`.

    Raises:
      ValueError: a picture cannot be read, and which.
    """
    kinds = list(_FOLDERS)[: 3 if targets else 2]
    better, identity = better or {}, identity or {}
    names = _per_image(metrics, rows)
    step, split = identity.get("step"), identity.get("split")
    data = {
        "kind": "eval",
        "title": title,
        "facts": [[key.replace("_", " "), _fact(value)] for key, value in identity.items()],
        "runs": [{"name": title}],
        "figures": _figures(metrics, baseline, intervals or {}, about or {}, better),
        "baselineName": baseline_name,
        "heads": [_FOLDERS[kind] for kind in kinds],
        "left": 1,
        "right": 2 if targets else 1,
        "metrics": [{"name": short(name), "better": better.get(name)} for name in names],
        "rows": _rows(folder, kinds, rows, names),
        "step": step,
        "legend": legend,
        **curves([_with_own(log, step, split, metrics)], baseline, better),
    }
    write_atomic(folder / "index.html", assemble("eval", title, data))


def assemble(kind: str, title: str, data: Mapping[str, Any]) -> bytes:
    """The file of a page.

    Args:
      kind: `eval` or `compare`: the script that puts the parts together.
      title: of the window.
      data: what the scripts show.
    """
    # Nothing in a JSON block may look like the end of it.
    block = json.dumps(report.plain(data), allow_nan=False, separators=(",", ":"))
    block = block.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    parts = {
        "title": html.escape(title),
        "style": _template("style.css"),
        "data": block,
        "script": "\n".join(_template(f"{part}.js") for part in (*_PARTS, kind)),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _template("page.html"))
    return text.encode(errors="backslashreplace")


def _template(name: str) -> str:
    return (importlib.resources.files("p2p_jax") / "templates" / name).read_text("utf-8")


def short(name: str) -> str:
    """A figure's name for people."""
    return name.removeprefix("eval/")


def rounded(value: float | None) -> float | None:
    """To six digits, which no chart can tell from all; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(report.plain(value))
    # A fingerprint: enough of it to tell two apart.
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{24,}", text) else text


# --- figures and rows ----------------------------------------------------------------------------


def _figures(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
    about: Mapping[str, str],
    better: Mapping[str, str],
) -> list[dict[str, Any]]:
    return [
        {
            "name": short(name),
            "better": better.get(name),
            "values": [value],
            "intervals": [_ends(intervals.get(name))],
            "baseline": baseline.get(name),
            "about": about.get(name, ""),
        }
        for name, value in metrics.items()
    ]


def _ends(interval: Sequence[float] | None) -> list[float] | None:
    """An interval, unless an end of it is not finite."""
    return list(interval) if interval and all(map(math.isfinite, interval)) else None


def _per_image(metrics: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """Names of the metrics that examples have, in the order of the figures."""
    found = dict.fromkeys(name for row in rows for name in row if name != "name")
    return [*(name for name in metrics if name in found), *(n for n in found if n not in metrics)]


def _rows(
    folder: AnyPath, kinds: Sequence[str], rows: Sequence[Row], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Examples for the page; makes the small copies of their pictures."""
    jobs = [
        Job(folder / kind / f"{row['name']}.png", folder / "thumbs" / kind / row["name"])
        for row in rows
        for kind in kinds
    ]
    copies = iter(thumbs.make(jobs))
    found = []
    for row in rows:
        own = {kind: next(copies) for kind in kinds}
        shown = own["images"] or next(filter(None, own.values()), None)
        found.append(
            {
                "name": row["name"],
                "size": shown and shown.size,
                "pictures": [
                    picture(folder, copy, f"{kind}/{row['name']}.png") for kind, copy in own.items()
                ],
                "values": [[rounded(row.get(name)) for name in names]],
            }
        )
    return found


def picture(folder: AnyPath, copy: Copy | None, whole: str = "") -> list[str] | str | None:
    """Addresses of a small copy and of the picture itself, from a page in `folder`; None: neither.

    Args:
      folder: of the page.
      copy: the small copy.
      whole: the picture, from `folder`; by default it is the copy.
    """
    if copy is None:
        return None
    small = address(str(copy.path.relative_to(folder)))
    return [small, address(whole)] if whole and small != address(whole) else small


def address(path: str) -> str:
    """A relative path as a link; names of files need be no text."""
    return urllib.parse.quote(os.fsencode(path))


# --- curves --------------------------------------------------------------------------------------


def _with_own(
    log: Sequence[Row], step: int | None, split: str | None, metrics: Mapping[str, float]
) -> list[Row]:
    """The log with this very evaluation in it, whether or not it was written there yet."""
    if step is None or split is None or not metrics:
        return list(log)
    others = [row for row in log if (row["step"], row.get("split")) != (step, split)]
    return sorted([*others, {"step": step, "split": split, **metrics}], key=lambda r: r["step"])


def curves(
    logs: Sequence[Sequence[Row]],
    baseline: Mapping[str, float] | None = None,
    better: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Curves of runs for the page.

    Args:
      logs: of each run, its lines of metrics.jsonl.
      baseline: of the trivial answer, by figure.
      better: `min` or `max`, by figure.

    Returns:
      `curves`: of each figure the series of the runs; long ones are thinned to means of several
      lines, and `thinned` tells of how many at most.
    """
    splits = {str(row.get("split")) for log in logs for row in log} - {"train"}
    series: dict[str, list[dict[str, Any]]] = {}
    thinned = 1
    for run, log in enumerate(logs):
        points: dict[str, list[tuple[int, float | None]]] = {}
        for row in log:
            split = str(row.get("split"))
            of = f" of {split}" if split != "train" and len(splits) > 1 else ""
            for name, value in row.items():
                if name not in _HEAD and (value is None or isinstance(value, int | float)):
                    points.setdefault(name + of, []).append((row["step"], value))
        for name, found in points.items():
            every = -(-len(found) // _POINTS)
            thinned = max(thinned, every)
            parts = [found[i : i + every] for i in range(0, len(found), every)]
            series.setdefault(name, []).append({"run": run, "points": [_mean(p) for p in parts]})
    return {
        "curves": [
            {
                "name": name,
                "better": (better or {}).get(name.partition(" of ")[0]),
                "baseline": (baseline or {}).get(name),
                "series": found,
            }
            for name, found in sorted(series.items(), key=lambda item: _place(item[0]))
            if any(len(each["points"]) > 1 for each in found)  # one point is no curve
        ],
        "thinned": thinned,
    }


def _mean(points: Sequence[tuple[int, float | None]]) -> list[Any]:
    values = [v for _, v in points if v is not None and math.isfinite(v)]
    return [points[-1][0], rounded(sum(values) / len(values)) if values else None]


def _place(name: str) -> int:
    """Losses first, then evaluations, then the rest."""
    kinds = ("loss", "eval")
    kind = name.partition("/")[0]
    return kinds.index(kind) if kind in kinds else len(kinds)
