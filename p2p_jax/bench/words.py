"""The words of the benchmark's command line; needs no library."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def split(
    argv: Sequence[str], allowed: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Takes a command line of `--name=value` or `--name value` apart.

    It is `flags.split`, which needs the libraries that configs do.

    Returns:
      Flags, overrides of the config by dotted key, and problems.
    """
    flags: dict[str, str] = {}
    overrides: dict[str, str] = {}
    problems = []
    words = list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            problems.append(f"{name}: not a flag; flags are --name=value")
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                problems.append(f"{name}: needs a value, as in {name}=VALUE")
                continue
            value = words.pop(0)
        name = name.removeprefix("--")
        if name.startswith("config."):
            overrides[name.removeprefix("config.")] = value
        elif name in allowed:
            flags[name] = value
        else:
            near = difflib.get_close_matches(name, allowed, 1)
            meant = f"; did you mean --{near[0]}?" if near else ""
            there = ", ".join(f"--{flag}" for flag in allowed)
            problems.append(
                f"--{name}: no such flag{meant}; there are {there} and --config.KEY=VALUE"
            )
    return flags, overrides, problems


def listed(name: str, text: str, allowed: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    """The words of a list with commas, each once; adds to `problems` what is not allowed."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    problems += [
        f"--{name}: {word!r} is not one of {', '.join(allowed)}"
        for word in words
        if word not in allowed
    ]
    return words


def number(name: str, text: str, least: int, problems: list[str]) -> float:
    """A whole number from `least` on, or with 0 any above 0; adds to `problems` what is not."""
    try:
        value = int(text) if least else float(text)
        if max(least, 1e-3) <= value < float("inf"):
            return value
    except ValueError:
        pass
    allowed = f"a whole number from {least} on" if least else "a number above 0"
    problems.append(f"--{name}: {text!r} is not {allowed}")
    return least or 1.0
