"""What a run leaves behind: metrics, run record, pictures.

Every file but the growing ``metrics.jsonl`` is written beside its place and moved there, so that a
reader (or a crash) never meets half of one. With several processes, only one may write.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

import p2p_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_atomic(path: pathlib.Path, data: bytes, durable: bool = True) -> None:
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


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars as numbers, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float | None) -> str:
    """A figure as people read it; ``-`` where there is none."""
    return "-" if value is None else f"{value:.4g}"


def write_json(path: pathlib.Path, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically. NaN and infinities become null."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    # What is left of a name that is not valid text becomes a JSON escape.
    write_atomic(pathlib.Path(path), (text + "\n").encode(errors="backslashreplace"))


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
    write_atomic(pathlib.Path(path), buffer.getvalue(), durable=False)


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
        write_atomic(path, b"".join(line for line, row in _lines(path) if row["step"] <= step))
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
        row = plain(head | {name: float(value) for name, value in scalars.items()})
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


def last_start(workdir: pathlib.Path) -> dict[str, Any]:
    """The newest entry of ``run.json``; empty where there is none that can be read."""
    try:
        return json.loads((pathlib.Path(workdir) / "run.json").read_bytes())["starts"][-1]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}


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
