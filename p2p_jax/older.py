"""What older versions of this project saved, as this one has it."""

from __future__ import annotations

from typing import Any


def modern(flat: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that an older version began.

    Args:
      flat: dotted keys to values, as saved.

    Returns:
      Likewise, without keys that are no more, and with those whose default was another one.
    """
    flat = dict(flat)
    # Until a network had a name of its own for it.
    skips = flat.pop("model.generator.skips", True)
    if skips is False and flat.get("model.generator.name") == "unet":
        flat["model.generator.name"] = "encoder_decoder"
    # There was no other, and the key holds what was settled, not what was asked for.
    flat.setdefault("data.task", "translate")
    return flat
