"""What a run leaves behind: metrics, run record, pictures.

Every file but the growing ``metrics.jsonl`` is written beside its place and moved there, or put in
a bucket in one piece, so that a reader (or a crash) never meets half of one. With several
processes, only one may write.
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

import p2p_jax
from p2p_jax import growing, storage
from p2p_jax.process import Failure
from p2p_jax.storage import AnyPath, write_atomic

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


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


def write_json(path: AnyPath, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically. NaN and infinities become null."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    # What is left of a name that is not valid text becomes a JSON escape.
    write_atomic(path, (text + "\n").encode(errors="backslashreplace"))


def _check_picture(image: np.ndarray, where: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{where}: a picture must be uint8 of shape [h, w, 3] or [h, w, 1], "
            f"not {image.dtype} {list(image.shape)}"
        )


def save_png(path: AnyPath, image: np.ndarray) -> None:
    """Writes a uint8 picture `[h, w, 3]` or grey `[h, w, 1]` as PNG, atomically.

    Raises:
        ValueError: for any other shape or dtype.
    """
    _check_picture(image, str(path))
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue(), durable=False)


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


def _lines(path: AnyPath) -> list[tuple[bytes, dict[str, Any]]]:
    """The raw and the parsed lines of a metrics file, less a last line cut off by a crash."""
    raw = storage.found(path) or b""
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


def read(workdir: AnyPath) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; empty where there is no file yet.

    A last line that is still being written is left out; null stands for NaN or an infinity.

    Raises:
        ValueError: naming the line, when any other is not a JSON object with a `step`.
    """
    return [row for _, row in _lines(workdir / "metrics.jsonl")]


class MetricsLog:
    """Appends to ``metrics.jsonl``, after dropping what a restored run is about to write again.

    Lines stay in memory until `sync` has made sure of them, so that a full disk loses none. In a
    bucket, which cannot append, all lines stay, and the object is put anew from time to time.

    Args:
        workdir: the folder of the file, created where missing.
        step: the restored step: lines beyond it are dropped. -1 for a fresh run drops all.
        tolerate: whether a full disk (and whatever ails a bucket) is only told to `warn`, once
            until it works again; the lines are written then.
        warn: takes a sentence.
        again: a split whose lines of the restored step itself are dropped as well.
        check: raises a `Failure` where the file is not to be replaced any more; asked each time.

    Raises:
        Failure: the disk is full, or the bucket cannot be written to; or that of `check`.
        ValueError: naming the line, when one other than a cut-off last line cannot be read; the
            file is then left as it was.
    """

    PUT_EVERY = 30.0  # seconds from one put to the next, at least, where nobody syncs

    def __init__(
        self,
        workdir: AnyPath,
        step: int,
        tolerate: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        again: str = "",
        check: Callable[[], None] = lambda: None,
    ):
        self._path, self._tolerate, self._warn = workdir / "metrics.jsonl", tolerate, warn
        self._failing = False
        kept = b"".join(
            line
            for line, row in _lines(self._path)
            if row["step"] <= step and (row["step"], row.get("split")) != (step, again)
        )
        check()
        try:
            write_atomic(self._path, kept)
        except Exception as error:  # libraries for buckets raise many kinds
            raise self._failure(error) from error
        remote = storage.is_remote(self._path)
        self._file = (
            growing.Put(self._path, kept, check) if remote else growing.Appended(self._path)
        )

    def write(self, step: int, images: int, split: str, scalars: Mapping[str, float]) -> None:
        """Appends one line and hands it to the system; NaN and infinities are written as null.

        Args:
            step: updates done.
            images: training images seen.
            split: ``train``, or the split evaluated.
            scalars: names and values; names must not be one of the three above.

        Raises:
            Failure: as above, where it is not tolerated; the file ends with a whole line.
        """
        head = {"step": int(step), "images": int(images), "split": split}
        if clash := sorted(head.keys() & scalars.keys()):
            raise ValueError(f"metric names already taken by the line itself: {clash}")
        row = plain(head | {name: float(value) for name, value in scalars.items()})
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._try(lambda: self._file.write(line, self.PUT_EVERY))

    def sync(self) -> bool:
        """Forces what was written to disk; call it before the checkpoint of the same step.

        Returns:
            Whether all lines are safe. Where they are not, and that is tolerated, a checkpoint
            would count on lines that may yet be lost.
        """
        return self._try(self._file.sync)

    def close(self) -> None:
        """Syncs and closes the file.

        Raises:
            Failure: lines are left that there is still no room for, or that may not be written.
        """
        try:
            if not self.sync():
                raise Failure(f"the last lines of {self._path} could not be written")
        finally:
            self._file.close()

    def _try(self, act: Callable[[], None]) -> bool:
        """Whether it could be done; says so the first time that it could not."""
        try:
            act()
        except Exception as error:
            failure = self._failure(error)
            if failure is error or not self._tolerate:
                raise failure from error
            if not self._failing:
                self._warn(f"{self._path} cannot grow: {_reason(error)}; its lines wait in memory")
            self._failing = True
            return False
        self._failing = False
        return True

    def _failure(self, error: Exception) -> Exception:
        """What to raise for it: in a bucket anything can pass, on a disk only that it is full."""
        full = storage.no_room(error)
        if isinstance(error, Failure) or (not full and not storage.is_remote(self._path)):
            return error
        return Failure(
            f"{self._path} cannot grow: {_reason(error)}; {'make room and ' if full else ''}run "
            "again: everything up to the newest checkpoint is safe "
            "(train.on_save_error=continue would train on)"
        )


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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


def last_start(workdir: AnyPath) -> dict[str, Any]:
    """The newest entry of ``run.json``; empty where there is none that can be read."""
    try:
        return json.loads(storage.found(workdir / "run.json") or b"")["starts"][-1]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}


def write_run(workdir: AnyPath, entry: Mapping[str, Any]) -> None:
    """Appends `entry` to the starts in ``run.json``: ``{"starts": [first, ..., entry]}``.

    Raises:
        ValueError: when the file there is not such a record; it is then left as it was.
    """
    path = workdir / "run.json"
    record = {"starts": []}
    if (text := storage.found(path)) is not None:
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); mend it or move it away") from None
        if not isinstance(record, dict) or not isinstance(record.get("starts"), list):
            raise ValueError(f"{path} holds no list 'starts'; mend it or move it away")
    write_json(path, record | {"starts": [*record["starts"], entry]})
