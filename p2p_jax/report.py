"""What a run leaves behind and shows: metrics, run record, console, pictures, evaluation page.

Every file but the growing ``metrics.jsonl`` is written beside its place and moved there, so that a
reader (or a crash) never meets half of one. With several processes, only one may write.
"""

from __future__ import annotations

import datetime
import html
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import string
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.live
import rich.text
from PIL import Image

import p2p_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_REFRESH_SECONDS = 0.1
# A terminal obeys these wherever they come from, a file name included.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(9), *range(11, 32), *range(127, 160))}


# Files.


def _write_atomic(path: pathlib.Path, data: bytes, durable: bool = True) -> None:
    """Replaces `path` in one move, creating its folder; `durable` also outlives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars as numbers, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: pathlib.Path, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically. NaN and infinities become null."""
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    # What is left of a name that is not valid text becomes a JSON escape.
    _write_atomic(pathlib.Path(path), (text + "\n").encode(errors="backslashreplace"))


def _check_picture(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{where}: a picture must be uint8 of shape [h, w, 3] or [h, w, 1], "
            f"not {image.dtype} {list(image.shape)}"
        )


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes a uint8 picture `[h, w, 3]` or grey `[h, w, 1]` as PNG, atomically.

    Raises:
        ValueError: for any other shape or dtype.
    """
    _check_picture(image, str(path))
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    _write_atomic(pathlib.Path(path), buffer.getvalue(), durable=False)


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Tiles pictures on white, `gap` pixels apart.

    Args:
        rows: uint8 pictures `[h, w, 3]` or grey `[h, w, 1]`; sizes may differ (each row is as high
            as its highest picture, each column as wide as its widest), and so may row lengths.
        gap: pixels between pictures; none around the outside.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        ValueError: when there is no picture, or one has another dtype or shape.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("grid needs at least one row, and one picture in each row")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            _check_picture(image, f"grid, picture {c} of row {r}")
    heights = [max(image.shape[0] for image in row) for row in rows]
    columns = max(len(row) for row in rows)
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(columns)]
    size = (sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1), 3)
    canvas = np.full(size, 255, np.uint8)
    for r, row in enumerate(rows):
        top = sum(heights[:r]) + gap * r
        for c, image in enumerate(row):
            left = sum(widths[:c]) + gap * c
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


# Metrics.


def _lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The raw and the parsed lines of a metrics file, less a last line cut off by a crash."""
    raw = path.read_bytes() if path.exists() else b""
    rows = []
    lines = raw.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("not an object with a whole number 'step'")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise ValueError(
                f"{path}, line {number}: {error}. The line reads {line[:80]!r}; "
                "mend it, or move the file away to start a new one"
            ) from None
        rows.append((line.rstrip(b"\r\n") + b"\n", row))
    return rows


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; empty where there is no file yet.

    A last line that is still being written is left out; null stands for NaN or an infinity.

    Raises:
        ValueError: naming the line, when any other is not a JSON object with a `step`.
    """
    return [row for _, row in _lines(pathlib.Path(workdir) / "metrics.jsonl")]


class MetricsLog:
    """Appends to ``metrics.jsonl``, after dropping what a restored run is about to write again.

    Args:
        workdir: the folder of the file, created where missing.
        step: the restored step: lines beyond it are dropped. -1 for a fresh run drops all.

    Raises:
        ValueError: naming the line, when one other than a cut-off last line cannot be read; the
            file is then left as it was.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        path = pathlib.Path(workdir) / "metrics.jsonl"
        _write_atomic(path, b"".join(line for line, row in _lines(path) if row["step"] <= step))
        self._file = path.open("ab")

    def write(self, step: int, images: int, split: str, scalars: Mapping[str, float]) -> None:
        """Appends one line and hands it to the system; NaN and infinities are written as null.

        Args:
            step: updates done.
            images: training images seen.
            split: ``train``, or the split evaluated.
            scalars: names and values; names must not be one of the three above.
        """
        head = {"step": int(step), "images": int(images), "split": split}
        if clash := sorted(head.keys() & scalars.keys()):
            raise ValueError(f"metric names already taken by the line itself: {clash}")
        row = _plain(head | {name: float(value) for name, value in scalars.items()})
        # One write of a whole line: a crash tears the last line at most.
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces what was written to disk; call it before the checkpoint of the same step."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes the file."""
        self.sync()
        self._file.close()


# The run record.


def _git(folder: pathlib.Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that tracks `folder`; None where there is none."""
    # GIT_DIR and its like, set inside hooks, would answer for another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def ask(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # A virtual environment inside somebody's checkout is not tracked by it.
        ask("ls-files", "--error-unmatch", "__init__.py")
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """What a result may depend on beside config and data: versions, devices, source state.

    Starts jax's backend, so call it after the distributed start-up.
    """
    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"p2p_jax": p2p_jax.__version__},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "git": _git(pathlib.Path(__file__).parent),
    }


def write_run(workdir: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Appends `entry` to the starts in ``run.json``: ``{"starts": [first, ..., entry]}``.

    Raises:
        ValueError: when the file there is not such a record; it is then left as it was.
    """
    path = pathlib.Path(workdir) / "run.json"
    record = {"starts": []}
    if path.exists():
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); mend it or move it away") from None
        if not isinstance(record, dict) or not isinstance(record.get("starts"), list):
            raise ValueError(f"{path} holds no list 'starts'; mend it or move it away")
    write_json(path, record | {"starts": [*record["starts"], entry]})


# The console.


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _left(seconds: float | None) -> list[str]:
    """The time left in words, where it is known."""
    if seconds is None or not math.isfinite(seconds):
        return []
    return [f"{datetime.timedelta(seconds=max(0, round(seconds)))} left"]


class Console:
    """What a user sees on standard output.

    On a terminal one live line stays at the bottom and all else is printed above it. Anywhere else
    (a file, a pipe, a batch system) each call prints plain lines, never wrapped and never coloured.
    """

    def __init__(self) -> None:
        self._out = rich.console.Console(
            file=sys.stdout,
            # Not left to rich: FORCE_COLOR would put escape codes into log files.
            force_terminal=sys.stdout.isatty(),
            force_jupyter=False,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._tty = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: rich.live.Live | None = None
        self._step = self._total = 0
        self._stats: list[str] = []
        self._end: float | None = None
        self._drawn = 0.0

    def _print(self, text: str, style: str = "") -> None:
        # A file name need not be valid text, nor the terminal able to show it.
        encoding = self._out.encoding
        text = text.translate(_CONTROLS).encode(encoding, "backslashreplace").decode(encoding)
        self._out.print(rich.text.Text(text, style), soft_wrap=not self._tty)

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """Prints names and values in two aligned columns: the resolved run, at its start."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._print(f"{name:<{width}}  {value}")

    def note(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a line that asks for attention."""
        self._print(f"warning: {text}", "yellow")

    def progress(
        self,
        step: int,
        total: int,
        scalars: Mapping[str, float],
        images_per_sec: float,
        data_wait: float,
        seconds_left: float | None,
    ) -> None:
        """Shows how the run stands: a new live line on a terminal, one more line elsewhere.

        Called before the first step with no `scalars` and NaN, it puts up the bar of a terminal.

        Args:
            step: updates done, of `total`.
            total: updates in the whole run.
            scalars: losses by name; without any, nothing is printed elsewhere than on a terminal.
            images_per_sec: end to end; NaN where it is not known yet.
            data_wait: fraction of the time spent waiting for data, 0 to 1.
            seconds_left: estimate, or None where there is none yet.
        """
        stats = [f"{name.removeprefix('loss/')} {_number(v)}" for name, v in scalars.items()]
        if not math.isnan(images_per_sec):
            stats += [f"{_number(images_per_sec)} images/s", f"data wait {data_wait:.0%}"]
        if not self._tty:
            if scalars:
                self._print("  ".join([f"step {step}/{total}", *stats, *_left(seconds_left)]))
            return
        self._step, self._total, self._stats = step, total, stats
        self._end = None if seconds_left is None else time.monotonic() + seconds_left
        if self._live is None:
            # No refresh thread: it would compete with the one that feeds the device.
            self._live = rich.live.Live(
                get_renderable=self._line,
                console=self._out,
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
            # Hidden, it would stay so after a kill.
            self._out.show_cursor(True)
        self._draw()

    def tick(self, step: int) -> None:
        """Moves the bar on; cheap enough for every dispatch. Elsewhere than on a terminal: nothing.

        Before the first `progress` there is no bar to move.
        """
        self._step = step
        if self._live is not None and time.monotonic() - self._drawn >= _REFRESH_SECONDS:
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn = time.monotonic()
        self._live.refresh()

    def _line(self) -> rich.text.Text:
        """The live line, made to fit: without its bar, then cut, where the terminal is narrow."""
        left = None if self._end is None else self._end - time.monotonic()
        count = f"{self._step}/{self._total} "
        tail = " " + "  ".join([*self._stats, *_left(left)])
        # One column stays free: some terminals wrap when the last is written.
        width = self._out.width - 1
        room = min(30, width - len(count) - len(tail))
        line = rich.text.Text(count, "bold", no_wrap=True, end="")
        if room >= 5:
            full, rest = ("#", "-") if self._out.options.ascii_only else ("━", "─")
            done = round(room * min(1.0, self._step / max(1, self._total)))
            line.append(full * done, "cyan").append(rest * (room - done), "dim")
        line.append(tail, "not bold")
        line.truncate(max(1, width))
        return line

    def evaluation(
        self,
        step: int,
        split: str,
        count: int,
        metrics: Mapping[str, float],
        baseline: Mapping[str, float],
        baseline_name: str,
    ) -> None:
        """Prints the metrics of an evaluation with those of a trivial answer beside them.

        Args:
            step: updates done.
            split: what was evaluated.
            count: number of examples.
            metrics: values by name.
            baseline: the same metrics of the trivial answer; a missing one is shown as ``-``.
            baseline_name: what the trivial answer is.
        """
        self._print(f"evaluation at step {step}: {split}, {count} examples", "bold")
        names = [name.removeprefix("eval/") for name in metrics]
        width = max((len(name) for name in names), default=0)
        for name, (key, value) in zip(names, metrics.items(), strict=True):
            beside = f"({baseline_name}: {_number(baseline.get(key))})"
            self._print(f"  {name:<{width}}  {_number(value):<8}  {beside}")

    def done(self, rows: Sequence[tuple[str, str]]) -> None:
        """Takes the live line away and prints the closing summary, aligned like the header."""
        self.close()
        self.header(rows)

    def close(self) -> None:
        """Takes the live line away and gives the terminal back; may be called more than once."""
        if self._live is not None:
            self._live.stop()
            self._live = None


# The evaluation page.

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
.grid { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.head { position: sticky; top: 0; padding: .5rem 0; background: Canvas; }
figure { margin: 0 0 1.5rem; }
img { display: block; width: 100%; height: auto; background: #8882; border-radius: 3px; }
figcaption { margin-top: .3rem; overflow-wrap: anywhere; }
figcaption span { opacity: .7; margin-left: 1rem; font-variant-numeric: tabular-nums; }
</style>
<h1>$title</h1>
<table><thead><tr><th></th><th>model</th><th>baseline</th></tr></thead>
<tbody>$table</tbody></table>
<p><label>Sort by <select id="key">$options</select></label>
<label><input type="checkbox" id="down"> descending</label></p>
<div class="grid head"><b>source</b><b>output</b><b>target</b></div>
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


def _figure(row: Mapping[str, Any]) -> str:
    """One example: its three pictures, then its name and metrics."""
    name = html.escape(row["name"])
    file = html.escape(urllib.parse.quote(os.fsencode(row["name"] + ".png")))
    pictures = "".join(
        f'<a href="{folder}/{file}">'
        f'<img src="{folder}/{file}" loading="lazy" alt="{label} of {name}"></a>'
        for folder, label in (("source", "source"), ("images", "output"), ("target", "target"))
    )
    values = "".join(
        f"<span>{html.escape(key)} {_number(value)}</span>"
        for key, value in row.items()
        if key != "name"
    )
    data = html.escape(json.dumps(_plain(row), allow_nan=False))
    return (
        f'<figure data-row="{data}"><div class="grid">{pictures}</div>'
        f"<figcaption>{name}{values}</figcaption></figure>\n"
    )


def write_eval_page(
    folder: pathlib.Path,
    *,
    title: str,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Writes ``index.html`` over the pictures in ``source/``, ``images/`` and ``target/``.

    Args:
        folder: where the page goes and the three folders of ``NAME.png`` are.
        title: heading of the page.
        metrics: means over the split, by name.
        baseline: the same of the trivial answer; a missing one is shown as ``-``.
        rows: one an example: ``name`` (the NAME of its pictures), and its metrics by name.
    """
    table = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_number(value)}</td>"
        f"<td>{_number(baseline.get(name))}</td></tr>\n"
        for name, value in metrics.items()
    )
    keys = list(dict.fromkeys(key for row in rows for key in ("name", *row)))
    page = _PAGE.substitute(
        title=html.escape(title),
        table=table,
        options="".join(f"<option>{html.escape(key)}</option>" for key in keys),
        figures="".join(_figure(row) for row in rows),
    )
    _write_atomic(pathlib.Path(folder) / "index.html", page.encode(errors="backslashreplace"))
