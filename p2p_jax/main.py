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

from p2p_jax import evaluate, finetune, summary, train
from p2p_jax.build import build
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError, field_changes
from p2p_jax.console import Console
from p2p_jax.flags import Command, parse, saved_config


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
        changes = _check_changes(command)
        if command.config.train.init_from and _newest(command.workdir) is None:
            finetune.check(command.config, console)
    experiment = build(command.config, console.note, command.mode == "train")
    told = summary.rows(experiment, command.mode == "train")
    console.header([*told, ("workdir", str(command.workdir))])
    for note in experiment.notes:
        console.note(note)
    if command.mode == "eval":
        evaluate.run(experiment, command.workdir, console)
        return 0
    return train.train(experiment, command.workdir, console, changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
