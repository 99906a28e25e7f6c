"""What a workdir must be for a run to begin in it, or go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2p_jax.build import Experiment
from p2p_jax.config import Config, ConfigError, field_changes
from p2p_jax.flags import Command, saved_config
from p2p_jax.storage import AnyPath, is_remote


def newest(workdir: AnyPath) -> int | None:
    """The newest step that a run has a checkpoint of; 0 where its networks came from elsewhere."""
    names = [step.name for step in (workdir / "checkpoints").glob("[0-9]*")]
    # A save that was cut short leaves another name.
    return max((int(name) for name in names if name.isdigit()), default=None)


def check_changes(command: Command) -> dict[str, list]:
    """What differs from the config that the workdir was trained with.

    Raises:
      ConfigError: it makes another run of it, and that was not allowed.
    """
    step = newest(command.workdir)
    if step is None or not (command.workdir / "config.json").exists():
        return {}
    saved = saved_config(command.workdir)
    _check_beginning(command, saved)
    changes = field_changes(saved, command.config)
    if step == 0:  # nothing was trained yet: only the networks are given
        networks = ("data.channels", "data.task", "train.precision", "train.ema_decay")
        changes = [c for c in changes if c[0] in networks or c[0].startswith("model.")]
    if changes and not command.allow_config_change:
        rows = [f"{key}: {old!r} so far, {new!r} now" for key, old, new in changes]
        raise ConfigError(
            [
                *rows,
                f"--workdir: {command.workdir} was trained with another config; undo the change"
                f"{'s' * (len(changes) > 1)}, use a new --workdir, or add --allow_config_change",
            ]
        )
    return {key: [old, new] for key, old, new in changes}


def check_place(command: Command) -> None:
    """Raises ConfigError where a run's own pictures would be among the photos it is trained on."""
    data = command.config.data
    if data.source not in ("colorization", "inpaint", "edges"):
        return
    if "://" in data.path or is_remote(command.workdir):
        return
    workdir = command.workdir.resolve()
    path = Path(data.path).expanduser().resolve()
    if workdir.is_relative_to(path) and not (path / data.train_split).is_dir():
        raise ConfigError(
            [
                f"--workdir: {command.workdir} lies inside data.path, of which every picture is "
                "trained on; choose a folder outside, or move the photos to "
                f"{path / data.train_split}"
            ]
        )


def check_data(command: Command, experiment: Experiment, before: dict[str, Any]) -> None:
    """Raises ConfigError where a run that has begun would go on with other training pairs."""
    known = before.get("data", {}).get("train", {})
    now, count = experiment.train_frames.fingerprint, len(experiment.train_frames)
    if not newest(command.workdir) or known.get("fingerprint", now) == now:
        return
    if not command.allow_config_change:
        raise ConfigError(
            [
                f"data.path: the {count} training pairs are not the {known.get('examples')} that "
                f"{command.workdir} was trained with so far: files were added, removed, renamed or "
                "changed; undo that, use a new --workdir, or add --allow_config_change"
            ]
        )


def _check_beginning(command: Command, saved: Config) -> None:
    """Raises ConfigError where a run that has begun is to begin from another one."""
    wanted = command.config.train.init_from
    if wanted and wanted != saved.train.init_from:
        raise ConfigError(
            [
                f"train.init_from: {command.workdir} has begun already, and cannot begin with the "
                f"networks of {wanted}; leave it out, or use a new --workdir"
            ]
        )
