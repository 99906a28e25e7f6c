"""What a sweep's folder remembers of it, so that it goes on as it began."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from p2p_jax import report
from p2p_jax.config import flatten
from p2p_jax.sweeping import study
from p2p_jax.sweeping.options import Options
from p2p_jax.sweeping.owners import alone
from p2p_jax.words import ConfigError

RECORD = "sweep.json"
_FREE = ("data.path", "data.prepared_dir", "data.threads")  # what may differ between machines


def _identity(options: Options) -> dict[str, Any]:
    """What must stay the same for a study to go on."""
    return report.plain(
        {
            "metric": options.metric,
            "better": options.mode,
            "sampler": options.sampler,
            "seed": options.seed,
            "pruner": options.pruner,
            "min_steps": options.least,
            "reduction": options.factor,
            "storage": study.hidden(options.storage),
            "space": {key: dimension.told() for key, dimension in options.space.items()},
            "config": flatten(options.config),
        }
    )


def remember(options: Options) -> str:
    """The study's name; the first controller writes down what the sweep is.

    Raises:
      ConfigError: what differs from the sweep that the folder is of.
    """
    path, now = options.folder / RECORD, _identity(options)
    with alone(options.folder):
        if not path.exists():
            name = f"{options.folder.name}-{secrets.token_hex(4)}" if options.storage else "sweep"
            report.write_json(path, {"study": name, **now})
            return name
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError([f"--workdir: {path} is not JSON ({error})"]) from error
    old, new = _flat(before), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    changed = [key for key in changed if key not in ("study", *(f"config.{k}" for k in _FREE))]
    if changed:
        raise ConfigError(
            [
                *(f"{key}: {old.get(key)!r} so far, {new.get(key)!r} now" for key in changed),
                f"--workdir: {options.folder} is of another sweep; undo the "
                f"change{'s' * (len(changed) > 1)}, or use a new --workdir",
            ]
        )
    return before["study"]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in record.items():
        inner = value if isinstance(value, dict) else None
        flat |= {f"{key}.{k}": v for k, v in inner.items()} if inner is not None else {key: value}
    return flat
