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
import traceback
from collections.abc import Sequence

from p2p_jax import evaluate, train
from p2p_jax.build import build
from p2p_jax.checkpoint import CheckpointError
from p2p_jax.config import ConfigError, field_changes
from p2p_jax.console import Console
from p2p_jax.data import DataError
from p2p_jax.flags import Command, parse, saved_config
from p2p_jax.process import Busy

BAD_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    try:
        command = parse(argv)
        changes = _check_changes(command)
        return _run(command, changes)
    except (ConfigError, DataError) as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except (CheckpointError, train.NotFinite, Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing since the newest checkpoint is saved", file=sys.stderr)
        return 130
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _check_changes(command: Command) -> dict[str, list]:
    """What differs from the config that the workdir was trained with.

    Raises:
      ConfigError: it makes another run of it, and that was not allowed.
    """
    names = [step.name for step in (command.workdir / "checkpoints").glob("[0-9]*")]
    steps = [int(name) for name in names if name.isdigit()]  # a save cut short leaves another name
    if command.mode != "train" or not steps or not (command.workdir / "config.json").exists():
        return {}
    changes = field_changes(saved_config(command.workdir), command.config)
    if max(steps) == 0:  # networks that came from elsewhere: only they are given
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


def _run(command: Command, changes: dict[str, list]) -> int:
    console = Console()
    experiment = build(command.config, console.note)
    console.header([*experiment.summary(), ("workdir", str(command.workdir))])
    for note in experiment.notes:
        console.note(note)
    if command.mode == "eval":
        evaluate.run(experiment, command.workdir, console)
        return 0
    return train.train(experiment, command.workdir, console, changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
