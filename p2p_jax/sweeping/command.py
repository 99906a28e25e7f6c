"""A sweep from its command line on: study, controller and results are put together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optuna

from p2p_jax import report, space
from p2p_jax.console import Console
from p2p_jax.process import STOPPED, Stop
from p2p_jax.sweeping import results, study
from p2p_jax.sweeping.controller import Controller
from p2p_jax.sweeping.options import Options, parse
from p2p_jax.sweeping.owners import Owners, alone
from p2p_jax.sweeping.record import remember
from p2p_jax.sweeping.running import Plan
from p2p_jax.sweeping.study import Trials

CACHE = "JAX_COMPILATION_CACHE_DIR"


def run(argv: Sequence[str], stop: Stop) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    # Here nothing is computed: an accelerator is the trials' alone.
    jax.config.update("jax_platforms", "cpu")
    options, console = parse(argv), Console()
    options.folder.mkdir(parents=True, exist_ok=True)
    name = remember(options)
    env = {CACHE: str((options.folder / "compilation_cache").absolute()), **os.environ}

    def words(workdir: Path, values: Mapping[str, Any]) -> list[str]:
        return command(options, workdir, values)

    def together(members: Mapping[Path, Mapping[str, Any]]) -> list[str]:
        return command_of_several(options, members)

    prunes = options.pruner != "none"
    plan = Plan(options.folder, options.metric, options.mode, env, words, prunes, together)
    with Owners(options.folder) as owners:
        trials = _trials(options, name, owners)
        console.header(_told(options))
        stop.wait()

        def write() -> None:
            results.write(plan, trials)

        controller = Controller(
            plan, trials, owners, options.places, console, write, options.members
        )
        code = controller.run(options.trials, stop)
        write()
        if code == STOPPED:
            console.note("stopped with everything saved; run again to go on")
        return results.tell(console, plan, trials) if code == 0 else code


def command(options: Options, workdir: Path, values: Mapping[str, Any]) -> list[str]:
    """What follows `python` to train with some values in a folder."""
    told = dict(options.overrides) | {"train.best": options.metric}
    told |= {key: space.setting(value) for key, value in values.items()}
    return [
        *("-m", "p2p_jax.main", f"--config={options.file}", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in told.items()),
    ]


def command_of_several(options: Options, members: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What follows `python` to train several together, each with some values in a folder."""
    told = dict(options.overrides) | {"train.best": options.metric}
    each = {str(workdir): report.plain(values) for workdir, values in members.items()}
    return [
        *("-m", "p2p_jax.members", f"--config={options.file}", f"--members={json.dumps(each)}"),
        *(f"--config.{key}={value}" for key, value in told.items()),
    ]


def _trials(options: Options, name: str, owners: Owners) -> Trials:
    steps = options.config.train.steps
    least = options.least or options.config.train.eval_every
    least = min(least, steps or least)
    with alone(options.folder):  # several would each create it
        made = optuna.create_study(
            storage=study.open_storage(options.folder, options.storage),
            study_name=name,
            load_if_exists=True,
            direction="minimize" if options.mode == "min" else "maximize",
            pruner=study.make_pruner(options.pruner, least, steps, options.factor),
        )

    def sampler(index: int) -> optuna.samplers.BaseSampler:
        return study.make_sampler(options.sampler, options.space, options.seed, index)

    return Trials(made, options.folder, owners, options.space, sampler)


def _told(options: Options) -> list[tuple[str, str]]:
    return [
        ("search", f"{options.metric}, {options.mode}, {options.trials} trials, {options.sampler}"),
        *((key, dimension.told()) for key, dimension in options.space.items()),
        ("pruner", options.pruner),
        *([("together", f"{options.members} trials a program")] * (options.members > 1)),
        ("places", ", ".join(place.name for place in options.places)),
        ("workdir", str(options.folder)),
    ]
