"""Trains a translator, or evaluates one.

    python -m p2p_jax.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE ...]
    python -m p2p_jax.main --mode=eval --workdir=DIR [--config.KEY=VALUE ...]

FILE is a Python file like those in configs/; the ARGUMENT of those is a dialect: paper, junyanz,
affinelayer, tf_tutorial or seed. Training goes on where DIR's newest checkpoint stands, without
--config by DIR's own; with another config than it was trained with, --allow_config_change is
needed. Evaluation takes DIR's own config. The KEYs are explained in p2p_jax/config.py.
Several processes train together where the environment says so (TPU pods, SLURM, Open MPI), or each
is told by --coordinator=HOST:PORT --num_processes=N --process_id=I; see docs/scaling.md.
Exit codes: 0 done, 2 bad config or input, 75 stopped by a signal with everything saved (run again),
anything else a failure.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Until `Stop` heeds it, Ctrl-C ends the process: raised in the callback of an import, it would
    # be told of and forgotten.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from p2p_jax import evaluate, finetune, peers, summary, train
from p2p_jax.build import Experiment, build
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError, field_changes, flatten
from p2p_jax.console import Console
from p2p_jax.flags import Command, parse, saved_config
from p2p_jax.ledger import Ledger
from p2p_jax.process import Early, Stop
from p2p_jax.report import last_start
from p2p_jax.sharing import seen_by_all
from p2p_jax.storage import AnyPath, is_remote


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    ledger = Ledger(time.monotonic())
    code = finish(
        lambda: _run(argv, ledger),
        "interrupted; nothing since the newest checkpoint is saved",
        peers.name,
    )
    if code not in (train.DONE, train.STOPPED) and peers.name():
        # The others would wait for an orderly end, and we for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _newest(workdir: AnyPath) -> int | None:
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


# What may differ between machines.
_OWN = ("data.path", "data.prepared_dir", "data.threads", "train.init_from")


def _check_same(command: Command) -> None:
    """Raises Problems where processes were told different things, all of them."""
    told = {k: v for k, v in flatten(command.config).items() if k not in _OWN}
    told |= {"--mode": command.mode, "--workdir": str(command.workdir)}
    peers.agree_all(told)


def _run(argv: Sequence[str], ledger: Ledger) -> int:
    with Stop() as stop:
        try:
            command = parse(argv)
            if peers.name():  # the others would wait for us
                stop.wait()
            console = Console(silent=not peers.first())
            _check_same(command)
            if command.mode == "eval":
                stop.forgo()
                return _evaluate(command, console)
            return _train(command, console, ledger, stop)
        except Early as name:
            print(f"stopped by {name} before training began; run again to begin", flush=True)
            if peers.name():  # nobody else knows
                os._exit(train.STOPPED)
            return train.STOPPED


def _evaluate(command: Command, console: Console) -> int:
    experiment = peers.together(lambda: _built(command, console))
    evaluate.run(experiment, command.workdir, console)
    return 0


def _train(command: Command, console: Console, ledger: Ledger, stop: Stop) -> int:
    seen_by_all(command.workdir)
    changes: dict[str, list] = {}

    def prepare() -> Experiment:
        nonlocal changes
        _check_place(command)
        changes = _check_changes(command)
        if command.config.train.init_from and _newest(command.workdir) is None:
            finetune.check(command.config, console)
        return _built(command, console)

    experiment = peers.together(prepare)
    peers.agree("data.path: the training pairs", experiment.train_frames.fingerprint)
    stop.wait()  # for the work under way, from now on
    # With several processes none of them left alone.
    if told := next((name for name in peers.gather(stop.name) if name), ""):
        raise Early(told)
    return train.train(experiment, command.workdir, console, changes, ledger, stop)


def _built(command: Command, console: Console) -> Experiment:
    """The experiment, told to the user."""
    training = command.mode == "train"
    before = last_start(command.workdir)

    def log(text: str) -> None:
        # Each process reads files that no other does.
        if peers.first():
            console.note(text)
        elif text.startswith("substituted"):
            print(f"{peers.name()}: {text}", flush=True)

    experiment = build(command.config, log, training, before.get("target"))
    if training:
        _check_data(command, experiment, before)
    told = summary.rows(experiment, training)
    console.header([*told, ("workdir", str(command.workdir))])
    for note in experiment.notes:
        console.note(note)
    return experiment


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
