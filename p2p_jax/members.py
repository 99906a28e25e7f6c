"""Trains several runs at once on one device, as members of one compiled program.

    python -m p2p_jax.members --config=FILE --members=JSON [--config.KEY=VALUE ...]

JSON maps the folder of each run to the keys that it sets, of the seed, rates and weights of losses:
    --members='{"runs/a": {"seed": 1}, "runs/b": {"seed": 2, "optim.gen.lr": 1e-4}}'
Each folder becomes that of an ordinary run, which `python -m p2p_jax.main` can go on with; its
figures are those that it would have had alone, to rounding. Run again, all go on from their newest
checkpoints.

Exit codes: 0 done; 2 bad config or input; 3 some runs ended with a failure, which is told with
their folders, and all others are done; 75 stopped by a signal with everything saved (run again); 1
another failure; 130 left at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2p_jax import alike, finetune, mesh, resuming
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError, merge
from p2p_jax.console import Console
from p2p_jax.flags import Command, config_file, override, run_folder
from p2p_jax.ledger import Ledger
from p2p_jax.lockstep import Lockstep
from p2p_jax.process import STOPPED, Early, Stop
from p2p_jax.space import setting
from p2p_jax.validate import resolved, validate
from p2p_jax.words import split

FLAGS = ("config", "members", "help")


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    ledger = Ledger(time.monotonic())
    return finish(
        lambda: _run(argv, ledger), "interrupted; nothing since the newest checkpoints is saved"
    )


def _run(argv: Sequence[str], ledger: Ledger) -> int:
    with Stop() as stop:
        try:
            commands, told = parse(argv)
            console = Console()
            changes = [_checked(command, console) for command in commands]
            return Lockstep(commands, told, console, ledger, stop).run(changes)
        except Early as name:
            print(f"stopped by {name} before training began; run again to begin", flush=True)
            return STOPPED


def parse(argv: Sequence[str]) -> tuple[list[Command], list[str]]:
    """Reads a command line: what each member trains, and what it sets, in words.

    Raises:
      ConfigError: all that is wrong with flags, keys, types and values.
    """
    flags, overrides, problems = split(argv, FLAGS, ("help",))
    config = None
    if not flags.get("config"):
        problems.append("--config: needed, as in --config=configs/facades.py")
    else:
        try:
            config = config_file(flags["config"])
        except ConfigError as error:
            problems += error.problems
    if config is not None:
        config, found = override(config, overrides)
        problems += found
    members = _members(flags.get("members", ""), problems)
    if problems or config is None:
        raise ConfigError(problems)
    mesh.use_precision(config.train.precision)
    commands = []
    for name, values in members.items():
        own, found = _member(name, values, config)
        commands += [own] if own else []
        problems += [text for text in found if text not in problems]
    if not problems:
        problems = alike.problems([command.config for command in commands])
    if not problems and (count := mesh.make_mesh(commands[0].config.mesh.devices).size) > 1:
        problems.append(
            f"mesh.devices: there are {count}, and members share one; set --config.mesh.devices=1"
        )
    if problems:
        raise ConfigError(problems)
    told = [
        "  ".join(f"{k}={setting(v)}" for k, v in values.items()) for values in members.values()
    ]
    return commands, told


def _members(text: str, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Folders, and the keys that each sets."""
    hint = """--members='{"runs/a": {"seed": 1}, "runs/b": {"seed": 2}}'"""
    if not text:
        problems.append(f"--members: needed, as in {hint}")
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        problems.append(f"--members: is not JSON ({error}); write {hint}")
        return {}
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(values, dict) for values in found.values())
    ):
        problems.append(f"--members: must map folders to keys and values, as in {hint}")
        return {}
    folders = [str(Path(name).expanduser().resolve()) for name in found]
    problems += [
        f"--members: {name} is named twice"
        for name, folder in zip(found, folders, strict=True)
        if folders.count(folder) > 1
    ]
    return found


def _member(name: str, values: dict[str, Any], config: Config) -> tuple[Command | None, list[str]]:
    """What one member trains, and what is wrong with it."""
    workdir, problems = run_folder("--members", name)
    try:
        own = resolved(merge(config, values))
    except ConfigError as error:
        return None, [*problems, *(f"--members: {name}: {text}" for text in error.problems)]
    problems += validate(own)
    return Command("train", workdir, own, False), problems


def _checked(command: Command, console: Console) -> dict[str, list[Any]]:
    """What differs from the config that a folder was trained with so far.

    Raises:
      ConfigError: it makes another run of it.
    """
    resuming.check_place(command)
    changes = resuming.check_changes(command)
    if command.config.train.init_from and resuming.newest(command.workdir) is None:
        finetune.check(command.config, console)
    return changes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
