"""What TensorBoard shows of a run: the lines of metrics.jsonl, and the grids of samples.

It is looked at by `tensorboard --logdir=WORKDIR/tensorboard`, a program to be installed beside the
extra `tensorboard`.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from p2p_jax import storage
from p2p_jax.config import ConfigError
from p2p_jax.storage import AnyPath

FOLDER = "tensorboard"
_HEAD = ("step", "images", "split")  # of a line of metrics.jsonl


def problems(workdir: AnyPath | None = None) -> list[str]:
    """What keeps from writing for TensorBoard, at all or in a `workdir`."""
    found = []
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        found.append(f"train.tensorboard: needs pip install 'p2p_jax[tensorboard]' ({error})")
    if workdir is not None and storage.is_remote(workdir):
        found.append(f"train.tensorboard: needs a workdir on a disk, and {workdir} is in a bucket")
    return found


class Board:
    """Writes files of events; nothing is lost that was written before the last `sync`.

    Each time a run goes on there is one more file, which begins by taking back whatever earlier
    ones tell of later steps; TensorBoard reads all of them as one.
    """

    def __init__(self, workdir: AnyPath, step: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Opens `WORKDIR/tensorboard`.

        Args:
          workdir: of the run, on a disk.
          step: the restored step; steps beyond it will be written again. Less than 0 for a fresh
            run, which takes everything back.
          rows: the lines of metrics.jsonl that are kept, for a run that had no board so far.

        Raises:
          ConfigError: tensorboardX is missing, or the run is in a bucket.
        """
        if found := problems(workdir):
            raise ConfigError(found)
        # Not its SummaryWriter, which writes from another thread: what fails there is never heard
        # of, and its `flush` does not wait.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        folder = workdir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        fresh = not any(folder.glob("events.*"))
        # Two of the same second would have the same name, and begin with an empty file.
        self._file = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")
        if fresh:
            for row in rows:
                self.write(row)
        else:
            kind = self._event.SessionLog
            start = kind(status=kind.START)
            self._put(step + 1, session_log=start)
        self.sync()

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a line of metrics.jsonl; what is not finite is left out.

        A figure of training keeps its name, as `loss/disc`; `eval/l1` of a split is `SPLIT/l1`.
        """
        split = row.get("split", "train")
        values = []
        for name, value in row.items():
            if name in _HEAD or value is None or not np.isfinite(value):
                continue
            tag = name if split == "train" else f"{split}/{name.removeprefix('eval/')}"
            values.append(self._summary.Summary.Value(tag=tag, simple_value=float(value)))
        if values:
            self._put(row["step"], summary=self._summary.Summary(value=values))

    def image(self, step: int, picture: np.ndarray, tag: str = "samples") -> None:
        """Adds a picture, uint8 `[h, w, 3]` or `[h, w, 1]`."""
        out = io.BytesIO()
        pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
        # Not a PNG: each byte's share in a checksum is taken by a loop in Python.
        Image.fromarray(pixels).save(out, "JPEG", quality=92, subsampling=0)
        height, width, channels = picture.shape
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=out.getvalue()
        )
        value = self._summary.Summary.Value(tag=tag, image=image)
        self._put(step, summary=self._summary.Summary(value=[value]))

    def sync(self) -> None:
        """Hands all to the system; call it before the checkpoint of the same step."""
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _put(self, step: int, **what: Any) -> None:
        self._file.write_event(self._event.Event(wall_time=time.time(), step=int(step), **what))
