"""Trains a translator, or evaluates one.

    python -m p2p_jax.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE ...]
    python -m p2p_jax.main --mode=eval --workdir=DIR [--config.KEY=VALUE ...]

FILE is a Python file like those in configs/; the ARGUMENT of those is a dialect: paper, junyanz,
affinelayer, tf_tutorial or seed. Training goes on where DIR's newest checkpoint stands, without
--config by DIR's own; with another config than it was trained with, --allow_config_change is
needed. Evaluation takes DIR's own config. The KEYs are explained in p2p_jax/config.py.
Exit codes: 0 done, 2 bad config or input, 75 stopped by a signal with everything saved (run again),
anything else a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2p_jax import evaluate, finetune, summary, train
from p2p_jax.build import Experiment, build
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError, field_changes
from p2p_jax.console import Console
from p2p_jax.flags import Command, parse, saved_config
from p2p_jax.report import last_start


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(
        lambda: _run(parse(argv)), "interrupted; nothing since the newest checkpoint is saved"
    )


def _newest(workdir: Path) -> int | None:
    """The newest step that a run has a checkpoint of; 0 where its networks came from elsewhere."""
    names = [step.name for step in (workdir / "checkpoints").glob("[0-9]*")]
    # A save that was cut short leaves another name.
    return max((int(name) for name in names if name.isdigit()), default=None)


def _check_changes(command: Command) -> dict[str, list]:
    """What differs from the config that the workdir was trained with.

    Raises:
      ConfigError: it makes another run of it, and that was not allowed.
    """
    newest = _newest(command.workdir)
    if newest is None or not (command.workdir / "config.json").exists():
        return {}
    saved = saved_config(command.workdir)
    _check_beginning(command, saved)
    changes = field_changes(saved, command.config)
    if newest == 0:  # nothing was trained yet: only the networks are given
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


def _check_place(command: Command) -> None:
    """Raises ConfigError where a run's own pictures would be among the photos it is trained on."""
    data, workdir = command.config.data, command.workdir.resolve()
    if data.source not in ("colorization", "inpaint", "edges") or "://" in data.path:
        return
    path = Path(data.path).expanduser().resolve()
    if workdir.is_relative_to(path) and not (path / data.train_split).is_dir():
        raise ConfigError(
            [
                f"--workdir: {command.workdir} lies inside data.path, of which every picture is "
                "trained on; choose a folder outside, or move the photos to "
                f"{path / data.train_split}"
            ]
        )


def _check_data(command: Command, experiment: Experiment, before: dict[str, Any]) -> None:
    """Raises ConfigError where a run that has begun would go on with other training pairs."""
    known = before.get("data", {}).get("train", {})
    now, count = experiment.train_frames.fingerprint, len(experiment.train_frames)
    if not _newest(command.workdir) or known.get("fingerprint", now) == now:
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


def _run(command: Command) -> int:
    console = Console()
    changes = {}
    if command.mode == "train":
        _check_place(command)
        changes = _check_changes(command)
        if command.config.train.init_from and _newest(command.workdir) is None:
            finetune.check(command.config, console)
    training = command.mode == "train"
    before = last_start(command.workdir)
    experiment = build(command.config, console.note, training, before.get("target"))
    if training:
        _check_data(command, experiment, before)
    told = summary.rows(experiment, training)
    console.header([*told, ("workdir", str(command.workdir))])
    for note in experiment.notes:
        console.note(note)
    if command.mode == "eval":
        evaluate.run(experiment, command.workdir, console)
        return 0
    return train.train(experiment, command.workdir, console, changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
