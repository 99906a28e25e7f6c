"""Weights of the reference PyTorch implementation to a run's folder, and back.

    python -m p2p_jax.convert --input=latest_net_G.pth [--discriminator=latest_net_D.pth]
        --workdir=DIR [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...]
    python -m p2p_jax.convert --workdir=DIR --output=latest_net_G.pth [--net=G|D] [--step=N] [--ema]

The first makes DIR, with config.json and a checkpoint of step 0, which p2p_jax.main evaluates or
trains on. What the networks are is told by the tensors; all else by --config, which without FILE is
the reference's recipe. Without --discriminator a fresh one is drawn.

The second writes the generator (--net=G) or the discriminator of DIR's newest checkpoint, or that
of step N; --ema takes the generator's averaged weights.

Files end in .pth or .pt, which need the package torch, or in .safetensors. Nothing in a file is run
and nothing is overwritten. Exit codes: 0 done, 2 bad input, 1 a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from p2p_jax import mesh, storage
from p2p_jax.command import finish
from p2p_jax.config import Config, ConfigError
from p2p_jax.console import Console
from p2p_jax.dialects import base_in
from p2p_jax.finetune import restore_networks
from p2p_jax.flags import config_file, override, saved_config
from p2p_jax.networks import make_gan
from p2p_jax.validate import resolved, validate
from p2p_jax.weights.detect import clean
from p2p_jax.weights.export import hints, network_of, refusals
from p2p_jax.weights.files import read, suffix_problems, write
from p2p_jax.weights.layout import Arrays, layout, to_torch
from p2p_jax.weights.load import blaming, by_path, filled, occupied, save, settled
from p2p_jax.words import split

SWITCHES = ("ema", "help")
FLAGS = {
    "input": ("input", "discriminator", "workdir", "config", "help"),
    "output": ("workdir", "output", "net", "step", "ema", "help"),
}


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv, Console()), "interrupted; nothing was written")


def _run(argv: Sequence[str], console: Console) -> int:
    allowed = list(dict.fromkeys(name for names in FLAGS.values() for name in names))
    flags, overrides, problems = split(argv, allowed, SWITCHES)
    ways = [way for way in FLAGS if way in flags]
    if len(ways) != 1:
        problems.append("--input or --output: one of them is needed, the file to read or to write")
        raise ConfigError(problems)
    if not flags.get("workdir"):
        problems.append("--workdir: needed, the folder of the run, as in --workdir=runs/facades")
    for way in ways:
        wrong = [name for name in flags if name not in FLAGS[way]]
        wrong += [f"config.{key}" for key in overrides if way == "output"]
        problems += [f"--{name}: means nothing beside --{way}" for name in wrong]
    run = weights_in if ways == ["input"] else weights_out
    run(flags, overrides, problems, console)
    return 0


# --- in ------------------------------------------------------------------------------------------


def weights_in(
    flags: dict[str, str], overrides: dict[str, str], problems: list[str], console: Console
) -> None:
    """Makes a run's folder of one or two files.

    Args:
      flags: by name.
      overrides: texts by dotted key.
      problems: found so far.
      console: is told what was found, and what was decided.

    Raises:
      ConfigError: all that is wrong.
    """
    workdir = Path(flags.get("workdir", ""))
    config, found = _recipe(flags.get("config", ""), overrides)
    problems += [*found, *occupied(workdir)] if flags.get("workdir") else found
    tensors = {}
    for flag in ("input", "discriminator"):
        if flag in flags:
            with blaming(f"--{flag}", problems):
                tensors[flag], notes = read(Path(flags[flag]))
                tensors[flag], more = clean(tensors[flag])
                for note in (*notes, *more):
                    console.note(note)
    if problems:
        raise ConfigError(problems)
    config, networks = settled(config, tensors, flags, overrides, console)
    mesh.use_precision(config.train.precision)
    # Where the data lies may be said later.
    later = ("data.path:", "data.source:")
    problems = [p for p in validate(config, training=False) if not p.startswith(later)]
    if problems:
        raise ConfigError(problems)
    gan = make_gan(config)
    doubles = any(x.dtype == np.float64 for held in tensors.values() for x in held.values())
    if doubles and gan.dtype == "float32":
        console.note("weights of float64 were rounded to float32, which train.precision has")
    state = filled(gan, config.seed, networks, tensors, flags)
    save(workdir, config, state, {"converted": {flag: Path(flags[flag]).name for flag in tensors}})
    _summary(config, tensors, workdir, console)


def _recipe(file: str, overrides: dict[str, str]) -> tuple[Config, list[str]]:
    """The config before the tensors have their say."""
    problems = []
    config = base_in("junyanz")
    if file:
        with blaming("", problems):
            config = config_file(file)
    config, found = override(config, overrides)
    return resolved(config), problems + found


def _summary(config: Config, tensors: dict[str, Arrays], workdir: Path, console: Console) -> None:
    gen, disc = config.model.generator, config.model.discriminator
    size = f"{gen.blocks} blocks" if gen.name == "resnet" else f"{gen.depth} levels"
    features = gen.features or gen.base_features
    source, target = config.data.channels
    layers = f"{disc.layers} layers, " * (disc.name == "patchgan")
    drawn = "" if "discriminator" in tensors else ", drawn afresh"
    console.done(
        [
            (
                "generator",
                f"{gen.name}, {size}, {features} features, {gen.norm} norm, "
                f"{source} to {target} channels",
            ),
            (
                "discriminator",
                f"{disc.name}, {layers}{disc.base_features} features, {disc.norm} norm{drawn}",
            ),
            ("workdir", str(workdir)),
        ]
    )


# --- out -----------------------------------------------------------------------------------------


def weights_out(
    flags: dict[str, str], overrides: dict[str, str], problems: list[str], console: Console
) -> None:
    """Writes a network of a run as a file of the published layout.

    Args:
      flags: by name.
      overrides: none are allowed, which `problems` says already.
      problems: found so far.
      console: is told what the reference must know.

    Raises:
      CheckpointError: there is no sound checkpoint, or none of the step asked for.
      ConfigError: all that is wrong.
    """
    del overrides
    net, step, config = flags.get("net", "G"), flags.get("step"), None
    if net not in ("G", "D"):
        problems.append(f"--net: {net!r} is not one of G, D")
    if step is not None and not (step.isascii() and step.isdigit()):
        problems.append(f"--step: {step!r} is not a step, as in --step=20000")
    if "output" in flags:
        problems += [f"--output: {p}" for p in suffix_problems(Path(flags["output"]))]
        if Path(flags["output"]).exists():
            problems.append(f"--output: {flags['output']} exists already; use another name")
    if flags.get("workdir"):
        with blaming("", problems):
            config = saved_config(storage.at(flags["workdir"]))
            problems += _unfit(config, net, "ema" in flags)
    if problems or config is None:
        raise ConfigError(problems)
    mesh.use_precision(config.train.precision)
    item = "gen" if net == "G" else "train"
    gan, restored = restore_networks(
        storage.at(flags["workdir"]),
        mesh.make_mesh(1),
        console.warn,
        (item,),
        None if step is None else int(step),
    )
    held = restored.items[item] if net == "G" else restored.items[item]["disc"]
    arrays = by_path(held["ema" if "ema" in flags else "params"], held["stats"])
    entries = layout(network_of(config, net), arrays)
    write(Path(flags["output"]), to_torch(jax.device_get(arrays), entries))
    if gan.dtype != "float32":
        console.note(f"weights of {gan.dtype} were rounded to float32")
    if "ema" in flags and held["stats"]:
        console.note("running statistics are those of the weights that were not averaged")
    for hint in hints(config, net):
        console.note(hint)
    console.done([("step", str(restored.step)), ("written", flags["output"])])


def _unfit(config: Config, net: str, ema: bool) -> list[str]:
    """Why a network of a run cannot be written."""
    problems = refusals(config, net)
    if ema and net == "D":
        problems.append("--ema: there are averaged weights of the generator alone, --net=G")
    elif ema and not config.train.ema_decay:
        problems.append("--ema: the run keeps no averaged weights: its train.ema_decay is 0")
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
