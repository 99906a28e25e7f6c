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

if __name__ == "__main__":
    # Until `Stop` heeds it, Ctrl-C ends the process: raised in the callback of an import, it would
    # be told of and forgotten.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from p2p_jax import evaluate, finetune, peers, resuming, summary, train
from p2p_jax.build import Experiment, build
from p2p_jax.command import finish
from p2p_jax.config import flatten
from p2p_jax.console import Console
from p2p_jax.flags import Command, parse
from p2p_jax.ledger import Ledger
from p2p_jax.process import Early, Stop
from p2p_jax.report import last_start
from p2p_jax.sharing import seen_by_all


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
        resuming.check_place(command)
        changes = resuming.check_changes(command)
        if command.config.train.init_from and resuming.newest(command.workdir) is None:
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
        resuming.check_data(command, experiment, before)
    told = summary.rows(experiment, training)
    console.header([*told, ("workdir", str(command.workdir))])
    for note in experiment.notes:
        console.note(note)
    return experiment


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
