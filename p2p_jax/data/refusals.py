"""What may be whole but cannot be used, and how large an image may be."""

from __future__ import annotations

MAX_PIXELS = 2**27  # of an image; Pillow refuses little more
MAX_VALUES = 2**29  # pixels times channels
MAX_CHANNELS = 512
TYPES = ("bool", "uint8", "uint16", "float16", "float32", "float64")  # of TIFF and .npy


class Unfit(ValueError):
    """An image that may be whole but cannot be used."""


def refuse(what: str | bool, remedy: str) -> None:
    """Raises Unfit where there is something; `flag and text` says what."""
    if what:
        raise Unfit(f"{what}; {remedy}")


def limit(height: int, width: int, channels: int = 1) -> None:
    """Refuses what is empty or would not fit in memory, before any is taken."""
    size = f"{width}x{height} pixels"
    refuse(min(height, width, channels) < 1 and f"{size}, {channels} channels", "it is empty")
    refuse(channels > MAX_CHANNELS and f"{channels} channels", f"at most {MAX_CHANNELS} may be")
    refuse(height * width > MAX_PIXELS and f"{size}", f"more than {MAX_PIXELS}: cut it into parts")
    refuse(
        height * width * channels > MAX_VALUES and f"{size} of {channels} channels",
        f"more than {MAX_VALUES} values: cut it into parts",
    )


def retype(kind: str) -> str:
    """What to do about values of another type than `TYPES`."""
    return f"a {kind} must hold uint8, uint16, float32, float16, float64 or bool"
