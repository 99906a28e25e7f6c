"""Measures this implementation on this machine.

    python -m p2p_jax.benchmark [--parts=step,infer] [--json=FILE] [--against=torch]
        [--compile-for=v5e:2x4] [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...] [...]

Parts, all of them by default, in about ten minutes on two cores:

    start    seconds from the start of the process to the end of its first step: with nothing
             compiled, with what an earlier run compiled, and resumed; and of restoring alone
    data     images/s of decoding alone, of the feed with each data.cache, and how near that comes
             to what all cores could decode: its ratio
    prepare  images/s of preparing --pairs pairs, and memory after each fifth of them; its ratio is
             that of memory at the end to that after the first fifth
    loop     images/s of training over --steps with logging and saves, with each data.cache, and the
             share of its time that it waits for data; its ratio is that to the step alone
    step     images/s of the compiled training step, on examples that the device holds
    infer    images/s of the generator alone, without dropout

Without --config, `step` and `infer` measure the paper's networks, `start` and `loop` small ones, on
generated pairs: JPEGs of 512x256, in a temporary folder. With it, all but `prepare` measure what it
trains. `step`, `infer` and --compile-for need neither data nor the libraries that read it.

Of the parts `step` and `infer`:

    --batch-sizes=1,16     images a step, over all devices; by default 1,4 on CPU, else 1,16,64
    --precisions=float32   of float32, tf32, bfloat16; by default those that suit the device
    --forms=auto           of the convolutions: auto, plain, polyphase, products
    --devices=1            to use; 0 is all
    --against=torch        the same in PyTorch, on one device, in the same turns. The ratio is to
                           its fastest form of the same precision, ratio_best to the fastest of
                           all. Each is tried first; the best two of a precision take turns with us
    --torch-forms=eager,compile   which of its forms; torch.compile takes minutes on a CPU

They report MFU as well, the share of the device's peak that the networks' work comes to: of a peak
that matrix products reach here in that precision, and of the data sheet's where that is known; and
what the compiled program says of itself: operations, bytes accessed, memory, all-reduces; of a
TPU's, the bytes that go to and from its memory as well.

--compile-for compiles the step of the paper's networks for a slice of a TPU pod that need not be
there (it needs the package libtpu, and three to six minutes for each program), and tells the same,
and how long the device needs at least to move so many bytes and to do so many operations.
--batch-sizes is by device then, 32 by default, and --precisions bfloat16. Alone, no part runs.

--seconds is how long each of three measurements takes, of which the median counts; they alternate.
--json writes all rows to a new file, also where a later part fails. Figures of a machine that has
other work are of no use.

Exit codes: 0 done, 2 bad input, 130 interrupted, 1 a failure.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2p_jax import words
from p2p_jax.bench import machine, table
from p2p_jax.bench.rows import Options, Row, write
from p2p_jax.command import finish
from p2p_jax.words import ConfigError

# Module of `p2p_jax.bench` and function by part. `start` comes first: its processes need the
# devices that this one takes hold of after it.
PARTS = {
    "start": ("start", "start"),
    "data": ("data", "data"),
    "prepare": ("data", "preparation"),
    "loop": ("loop", "loop"),
    "step": ("step", "step"),
    "infer": ("step", "infer"),
}
NUMBERS = {  # default, least
    "seconds": ("2", 0),
    "pairs": ("5000", 10),
    "steps": ("400", 16),
}
LISTS = {  # what is allowed
    "precisions": ("float32", "tf32", "bfloat16"),
    "forms": ("auto", "plain", "polyphase", "products"),
    "torch-forms": ("eager", "compile"),
}
FLAGS = (
    *("parts", "json", *NUMBERS, "batch-sizes", *LISTS, "devices", "against", "compile-for"),
    *("config", "help"),
)
_IDLE = 0.25  # of the cores, that may be at work elsewhere
_COMPUTING = ("loop", "step", "infer")  # on devices, in this process


class Request(NamedTuple):
    """What a command line asks for.

    Attributes:
      parts: names of `PARTS`.
      topology: to compile for, or ''.
      output: where to write rows, if anywhere.
      options: of the parts; their folder is not known yet.
    """

    parts: tuple[str, ...]
    topology: str
    output: Path | None
    options: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(_parse(argv)), "interrupted")


def _note(line: str) -> None:
    print(line, flush=True)


def _run(request: Request) -> int:
    found = machine.machine() | {"load": os.getloadavg()[0]}
    for name, text in machine.machine_rows(found):
        _note(f"{name:<9}  {text}")
    if found["load"] > _IDLE * found["cores"]:
        # PyTorch's threads wait for each other at every operation: it slows down a hundredfold.
        _note(
            f"warning: this machine has other work (load {found['load']:.2g}): figures are of no "
            "use, and those of PyTorch least of all"
        )
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="p2p-jax-benchmark-") as folder:
            options = Options(folder=Path(folder), log=_note, **request.options)
            for part in request.parts:
                if part in _COMPUTING and "devices" not in found:
                    found["devices"] = machine.devices()
                    _note("devices    {count} {kind}, {platform}".format(**found["devices"]))
                rows += _function(part)(options)
                _keep(request.output, rows, found)  # whatever becomes of the next
            if request.topology:
                from p2p_jax.bench.programs import compile_for

                rows += compile_for(request.topology, options)
    finally:  # what was measured so far took its time
        if rows:
            _note("")
            for line in table.lines(rows):
                _note(line)
        _keep(request.output, rows, found)
    if rows and request.output is not None:
        _note(f"written    {request.output}")
    return 0


def _keep(output: Path | None, rows: list[Row], found: dict[str, Any]) -> None:
    if rows and output is not None:
        write(output, [row | {"machine": found} for row in rows])


def _function(part: str) -> Callable[[Options], list[Row]]:
    """What measures a part.

    Raises:
      ConfigError: it needs a library that is not installed.
    """
    module, name = PARTS[part]
    try:
        return getattr(importlib.import_module(f"p2p_jax.bench.{module}"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            [
                f"--parts: {part!r} needs the package {error.name}, which is not installed; step "
                "and infer need jax, flax, optax and numpy alone"
            ]
        ) from error


# --- the command line ----------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> Request:
    """What is asked for.

    Raises:
      ConfigError: all that is wrong.
    """
    flags, overrides, problems = words.split(argv, FLAGS, ("help",))
    usual = "" if flags.get("compile-for") else ",".join(PARTS)
    parts = words.listed("parts", flags.get("parts", usual), tuple(PARTS), problems)
    options: dict[str, Any] = {}
    for name, (default, least) in NUMBERS.items():
        value = words.number(name, flags.get(name) or default, least, problems)
        options[name] = int(value) if least else value
    for name, allowed in LISTS.items():
        key = name.replace("-", "_")
        options[key] = words.listed(name, flags.get(name, ""), allowed, problems)
    sizes = [text for text in flags.get("batch-sizes", "").split(",") if text]
    numbers = (words.number("batch-sizes", text, 1, problems) for text in sizes)
    options["batch_sizes"] = tuple(dict.fromkeys(map(int, numbers)))
    if flags.get("devices", "1") != "0":
        options["devices"] = int(words.number("devices", flags.get("devices", "1"), 1, problems))
    else:
        options["devices"] = 0
    problems += _torch(flags, options, parts)
    output = words.new_file("json", flags.get("json", ""), problems)
    options["config"], found = _config(flags.get("config", ""), overrides)
    if problems + found:
        raise ConfigError(problems + found)
    ordered = tuple(part for part in PARTS if part in parts)
    return Request(ordered, flags.get("compile-for", ""), output, options)


def _torch(flags: dict[str, str], options: dict[str, Any], parts: Sequence[str]) -> list[str]:
    """Settles which forms of PyTorch are measured; what is wrong with that."""
    against = flags.get("against", "")
    if against not in ("", "torch"):
        return [f"--against: {against!r} is not torch"]
    if not against:
        options["torch_forms"] = ()
        return ["--torch-forms: means nothing without --against=torch"] * ("torch-forms" in flags)
    options["torch_forms"] = options["torch_forms"] or LISTS["torch-forms"]
    problems = []
    if not {"step", "infer"} & set(parts):
        problems.append("--against: is of the parts step and infer, and neither is asked for")
    if flags.get("config"):
        problems.append("--against: PyTorch has the paper's networks; leave out --config")
    if importlib.util.find_spec("torch") is None:
        problems.append("--against: torch is not installed; pip install torch")
    # Else this process would take nearly all of a GPU's memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return problems


def _config(file: str, overrides: dict[str, str]) -> tuple[Any, list[str]]:
    """The user's config, if there is one, and what is wrong with it."""
    if not file:
        return None, [f"--config.{key}: means nothing without --config" for key in overrides]
    from p2p_jax import mesh
    from p2p_jax.flags import config_file, override
    from p2p_jax.validate import resolved, validate

    try:
        config, problems = override(config_file(file), overrides)
    except ConfigError as error:
        return None, error.problems
    config = resolved(config)
    mesh.use_precision(config.train.precision)
    return config, problems + validate(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
