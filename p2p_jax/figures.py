"""What `eval.metrics` may name: the figures of each, which way they are better, what they need."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from p2p_jax import storage
from p2p_jax.data.labels import read_palette
from p2p_jax.metrics import METRICS, least_size
from p2p_jax.scores import COLOUR, FILES
from p2p_jax.scores import FIGURES as SCORES

# A name to its figures and which way each is better, `min` or `max`. `iou` and `fcn` have those of
# each class as well, as `iou/NAME`.
FIGURES: dict[str, dict[str, str]] = {
    **{name: {name: metric.mode} for name, metric in METRICS.items()},
    "lpips": {"lpips": "min"},
    **SCORES,
    "fcn": {f"fcn_{name}": mode for name, mode in SCORES["iou"].items()},
}


def directions(names: Sequence[str]) -> dict[str, str]:
    """The figures of names of `FIGURES`, each with `min` or `max`."""
    return {figure: mode for name in names for figure, mode in FIGURES[name].items()}


def problems(flat: dict[str, Any]) -> Iterator[str]:
    """What the figures that are asked for lack.

    Looks whether files exist, and reads no more than the config of `eval.segmenter`.

    Args:
      flat: dotted keys to values of `config.base`, of which words and numbers may still be wrong.
    """
    names = [name for name in flat["eval.metrics"] if name in FIGURES]
    best, known = flat["train.best"], directions(names)
    giving = next((name for name, figures in FIGURES.items() if best in figures), None)
    if giving and best not in known:
        yield (
            f"train.best: {best!r} is not known without {giving} in eval.metrics; add it there, or "
            f"use one of {', '.join(known) or 'l1, psnr, ssim'}"
        )
    yield from _files(flat, names)
    if "iou" in names:
        yield from _classes(flat)
    if "fcn" in names:
        yield from _segmenter(flat)
    channels = _picture_channels(flat)
    coloured = [name for name in names if name in (*COLOUR, "fcn")]
    if coloured and channels not in (1, 3):
        yield (
            f"eval.metrics: {', '.join(coloured)} judge colours or grey, not targets of {channels} "
            "channels (data.channels); leave out"
        )
    random = flat["model.generator.dropout"] or flat["model.generator.noise"]
    if flat["eval.seeds"] > 1 and not (flat["eval.dropout"] and random):
        why = "eval.dropout is False" if random else "the generator has no dropout and no noise"
        yield f"eval.seeds: {flat['eval.seeds']} would all give the same, as {why}; use 1"


def _files(flat: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Weights of networks of others are files of the user's."""
    needing: dict[str, list[str]] = {}
    for name in names:
        for key in FILES.get(name, ()):
            needing.setdefault(key, []).append(name)
    for key, by in needing.items():
        if not flat[key]:
            yield f"{key}: needed for {', '.join(by)} in eval.metrics: the file of its weights"
        elif not os.path.isfile(os.path.expanduser(flat[key])):
            yield f"{key}: {flat[key]!r} is not a file; {', '.join(by)} in eval.metrics need it"


def _classes(flat: dict[str, Any]) -> Iterator[str]:
    """Where targets are no classes, colours must name them."""
    task = flat["data.task"]
    if task == "labels":
        if flat["data.labels"] == "source":
            yield (
                "eval.metrics: iou compares classes of targets, and data.labels=source has them in "
                "sources alone; leave iou out"
            )
    elif task != "translate":
        yield f"eval.metrics: iou compares classes of targets, which {task} has none of; leave out"
    else:
        try:
            count = len(read_palette(flat["data.palette"]))
        except ValueError as error:
            yield f"data.palette: {error}"
            return
        if count < 2:
            yield (
                "eval.metrics: iou needs to know classes: the colours of targets in data.palette, "
                "as '#0000aa #ff0000', or data.source=labels"
            )
        elif flat["data.channels"][1:] not in ((1,), (3,)):
            yield (
                f"eval.metrics: iou by data.palette needs targets of 3 channels (or 1, grey), "
                f"not {flat['data.channels']}"
            )


def _segmenter(flat: dict[str, Any]) -> Iterator[str]:
    """It must be a run of this framework, from photos to class labels."""
    folder, key = flat["eval.segmenter"], "eval.segmenter"
    if flat["data.task"] not in ("translate", "labels"):
        yield (
            f"eval.metrics: fcn compares with sources that are label maps, which "
            f"{flat['data.task']} has none of; leave fcn out"
        )
    elif flat["data.task"] == "labels" and flat["data.labels"] == "target":
        yield "eval.metrics: fcn judges photos, and data.labels=target makes labels; use iou"
    if not folder:
        yield f"{key}: needed for fcn in eval.metrics: the folder of a run from photos to labels"
        return
    try:
        found = storage.found(storage.at(folder) / "config.json")
        data = json.loads(found or b"{}").get("data", {})
        side = data.get("labels") if data.get("task") == "labels" else None
    except (OSError, ValueError, AttributeError) as error:
        yield f"{key}: {folder}: its config.json cannot be read: {error}"
        return
    if not found:
        yield f"{key}: {folder!r} holds no config.json; is it the folder of a run?"
    elif side != "target":
        yield (
            f"{key}: {folder} is not a run from photos to class labels; train one with "
            "data.source=labels and data.labels=target"
        )


def _picture_channels(flat: dict[str, Any]) -> int:
    """Channels of the pictures of targets."""
    fixed = {"colorize": 3, "grey": 3}
    if flat["data.task"] == "labels" and flat["data.labels"] != "source":
        return 3
    return fixed.get(flat["data.task"]) or flat["data.channels"][-1]


def small(names: Sequence[str], size: Sequence[int], backbone: str) -> Iterator[str]:
    """Which of the names cannot judge images of this size, and what they need.

    Args:
      names: of `FIGURES`.
      size: (height, width).
      backbone: of lpips.
    """
    for name in names:
        if min(size) < least_size(name, backbone):
            yield f"{name} needs at least {least_size(name, backbone)} pixels"
