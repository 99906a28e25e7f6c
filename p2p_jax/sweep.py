"""Searches for a config's best values: many short trainings, each on an accelerator of its own.

    python -m p2p_jax.sweep --config=FILE --space=FILE --workdir=DIR --trials=N
        [--devices=auto|gpu:0,gpu:1|tpu:0|cpu|cpu:0-3,cpu:4-7|cpu/2] [--sampler=tpe|random|grid]
        [--pruner=none|halving|hyperband] [--min_steps=N] [--reduction=4] [--metric=NAME]
        [--seed=0] [--storage=URL] [--vmap=K] [--config.KEY=VALUE ...]

The space is a file like those in configs/sweeps/. DIR gets trials/NUMBER, each the folder of an
ordinary run; sweep.html and best.json with the command that trains the best one again. Needs the
extra `sweep`: pip install 'p2p_jax[sweep]'. Run again, it goes on where it was; several may run at
once with one DIR, on one or several machines. N trials end as complete, pruned or failed. With
--vmap=K, each process trains K trials as one program (seeds, rates and weights of losses alone).

Exit codes: 0 all N trials have ended; 2 bad input; 75 stopped by a signal with everything saved
(run again); 1 a failure, or no trial was completed; 130 left at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from p2p_jax.command import finish
from p2p_jax.process import STOPPED, Early, Stop
from p2p_jax.words import ConfigError


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv), "interrupted; trials go on from their newest checkpoints")


def _run(argv: Sequence[str]) -> int:
    with Stop() as stop:
        try:
            try:
                import optuna
            except ImportError as error:
                raise ConfigError(
                    [f"sweeps need optuna: pip install 'p2p_jax[sweep]' ({error})"]
                ) from error
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            from p2p_jax.sweeping import command

            return command.run(argv, stop)
        except Early as name:
            print(f"stopped by {name} before a trial began; run again to begin", flush=True)
            return STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
