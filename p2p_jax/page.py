"""The page of an evaluation: metrics and a gallery, in one file without network."""

from __future__ import annotations

import html
import json
import os
import string
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from p2p_jax import report
from p2p_jax.storage import AnyPath, write_atomic

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.5rem .3rem 0; text-align: right; border-bottom: 1px solid #8884; }
th { font-weight: 500; }
tr > :first-child { text-align: left; }
.grid { display: grid; grid-template-columns: repeat($columns, 1fr); gap: .5rem; }
.head { position: sticky; top: 0; padding: .5rem 0; background: Canvas; }
figure { margin: 0 0 1.5rem; }
img { display: block; width: 100%; height: auto; background: #8882; border-radius: 3px; }
figcaption { margin-top: .3rem; overflow-wrap: anywhere; }
figcaption span { opacity: .7; margin-left: 1rem; font-variant-numeric: tabular-nums; }
</style>
<h1>$title</h1>
<table><thead><tr><th></th><th>model</th><th>$beside</th></tr></thead>
<tbody>$table</tbody></table>
<p><label>Sort by <select id="key">$options</select></label>
<label><input type="checkbox" id="down"> descending</label></p>
<div class="grid head">$heads</div>
<main id="rows">$figures</main>
<script>
const main = document.getElementById("rows"), all = [...main.children];
const key = document.getElementById("key"), down = document.getElementById("down");
const value = (row) => JSON.parse(row.dataset.row)[key.value] ?? null;
function sort() {
  const sign = down.checked ? -1 : 1;
  all.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const by = typeof x === "string" ? x.localeCompare(y, "en", {numeric: true}) : x - y;
    return sign * by;
  });
  main.append(...all);
}
key.onchange = down.onchange = sort;
sort();  // a reload may have kept another choice
</script>
</html>
""")


_COLUMNS = (("source", "source"), ("images", "output"), ("target", "target"))  # folder, heading


def _figure(row: Mapping[str, Any], columns: Sequence[tuple[str, str]]) -> str:
    """One example: its pictures, then its name and metrics."""
    name = html.escape(row["name"])
    file = html.escape(urllib.parse.quote(os.fsencode(row["name"] + ".png")))
    pictures = "".join(
        f'<a href="{folder}/{file}">'
        f'<img src="{folder}/{file}" loading="lazy" alt="{label} of {name}"></a>'
        for folder, label in columns
    )
    values = "".join(
        f"<span>{html.escape(key)} {report.number(value)}</span>"
        for key, value in row.items()
        if key != "name"
    )
    data = html.escape(json.dumps(report.plain(row), allow_nan=False))
    return (
        f'<figure data-row="{data}"><div class="grid">{pictures}</div>'
        f"<figcaption>{name}{values}</figcaption></figure>\n"
    )


def write_eval_page(
    folder: AnyPath,
    *,
    title: str,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    baseline_name: str,
    rows: Sequence[Mapping[str, Any]],
    targets: bool = True,
) -> None:
    """Writes ``index.html`` over the pictures in ``source/``, ``images/`` and ``target/``.

    Args:
        folder: where the page goes and the three folders of ``NAME.png`` are.
        title: heading of the page.
        metrics: means over the split, by name.
        baseline: the same of the trivial answer; a missing one is shown as ``-``.
        baseline_name: what the trivial answer is.
        rows: one an example: ``name`` (the NAME of its pictures), and its metrics by name.
        targets: whether there are any.
    """
    table = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{report.number(value)}</td>"
        f"<td>{report.number(baseline.get(name))}</td></tr>\n"
        for name, value in metrics.items()
    )
    columns = _COLUMNS if targets else _COLUMNS[:2]
    keys = list(dict.fromkeys(key for row in rows for key in ("name", *row)))
    page = _PAGE.substitute(
        title=html.escape(title),
        table=table,
        beside=html.escape(baseline_name),
        options="".join(f"<option>{html.escape(key)}</option>" for key in keys),
        figures="".join(_figure(row, columns) for row in rows),
        heads="".join(f"<b>{label}</b>" for _, label in columns),
        columns=len(columns),
    )
    write_atomic(folder / "index.html", page.encode(errors="backslashreplace"))
