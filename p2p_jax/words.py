"""The words of a command line, taken apart and judged; the standard library is enough for it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path


class Problems(Exception):
    """What is wrong with what a user gave, one sentence a problem; all of them at once."""

    def __init__(self, problems: Collection[str]) -> None:
        """Keeps the sentences in `problems`; `str()` joins them by newlines."""
        # What is no text in a file's name could not be printed.
        self.problems = [p.encode("utf-8", "backslashreplace").decode() for p in problems]
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ConfigError(Problems):
    """What is wrong with a config or a command line."""


def split(
    argv: Sequence[str], allowed: Sequence[str], switches: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Takes a command line of `--name=value` or `--name value` apart.

    Args:
      argv: without the program's name.
      allowed: names of flags; with `config` among them, `config.KEY` is allowed as well.
      switches: those of them that take no value.

    Returns:
      Flags, overrides by dotted key, and problems.
    """
    flags: dict[str, str] = {}
    overrides: dict[str, str] = {}
    problems = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            problems.append(f"{word}: not a flag; flags are --name=value")
            continue
        name, equals, value = word[2:].partition("=")
        switch = name in switches
        if not equals and not switch:
            if not words or words[0].startswith("--"):
                problems.append(f"--{name}: needs a value, as in --{name}=VALUE")
                continue
            value = words.pop(0)
        if switch and value not in ("", "true", "True"):
            problems.append(f"--{name}: takes no value, not {value!r}")
        if name.startswith("config.") and "config" in allowed:
            overrides[name.removeprefix("config.")] = value
        elif name in allowed:
            flags[name] = value
        else:
            problems.append(_unknown(name, allowed))
    return flags, overrides, problems


def _unknown(name: str, allowed: Sequence[str]) -> str:
    """Says that there is no such flag, and which there are."""
    there = [f"--{flag}" for flag in allowed]
    if "config" in allowed:
        there.append("--config.KEY=VALUE")
    return (
        f"--{name}: no such flag{near(name, allowed, '--')}; there are "
        f"{', '.join(there[:-1])} and {there[-1]}"
    )


def near(word: str, words: Iterable[str], prefix: str = "") -> str:
    """Asks whether another word was meant, where one is like it; else ''."""
    found = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


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


def new_file(name: str, text: str, problems: list[str]) -> Path | None:
    """A file to write, if one is named; adds to `problems` what is in its way."""
    if not text:
        return None
    path = Path(text)
    if path.exists():
        problems.append(f"--{name}: {path} exists already; use another name")
    elif not path.parent.is_dir():
        problems.append(f"--{name}: there is no folder {path.parent}")
    return path
