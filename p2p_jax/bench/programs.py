"""What compiled programs say of themselves, and the training step compiled for TPUs elsewhere.

Three figures tell of bytes. `bytes_accessed` is XLA's cost analysis, which on a TPU counts each
prefetch into on-chip memory for a multiple of what it moves and what lies there as if it came from
HBM. `operation_bytes` is what operations have as operands and results, wherever that lies, without
prefetches; `hbm_bytes` is what is moved to and from HBM by operations and prefetches alike, and the
one to divide by the chip's bandwidth.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax.bench import nets, peak
from p2p_jax.bench.rows import Options, Row, row
from p2p_jax.bench.traffic import Traffic, arrays, traffic
from p2p_jax.objectives import HYPER
from p2p_jax.state import Gan
from p2p_jax.step import make_train_step
from p2p_jax.words import ConfigError

_COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "ragged-all-to-all", "collective-permute"),
    *("collective-broadcast", "reduce-scatter"),
)
# `%name = SHAPE all-reduce(...)`, or `all-reduce-start(...)`, whose `-done` is no other one.
_USE = re.compile(rf" = (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")


def collectives(text: str) -> tuple[dict[str, int], int]:
    """What a compiled program exchanges, from its text.

    One that the program does in a loop, or that it begins and ends apart, counts once.

    Returns:
      How many collectives of each kind there are, and the bytes that all-reduces give, each of
      which is one device's copy of the sum.
    """
    counts: collections.Counter[str] = collections.Counter()
    reduced = 0
    for shape, kind in _USE.findall(text):
        counts[kind] += 1
        if kind == "all-reduce":
            reduced += sum(array.size for array in arrays(shape))
    return dict(counts), reduced


# What is counted from the operations of a program, of which those of a loop count once.
COUNTED = ("flops", "bytes_accessed", *Traffic._fields)


def costs(program: Any) -> dict[str, Any]:
    """`flops` and `bytes_accessed` of a lowered or compiled program; None where it cannot tell."""
    found = program.cost_analysis()
    found = (found[0] if found else {}) if isinstance(found, list) else found or {}
    names = {"flops": "flops", "bytes_accessed": "bytes accessed"}
    told = {name: found.get(key, -1) for name, key in names.items()}
    return {name: float(value) if value > 0 else None for name, value in told.items()}


def described(compiled: Any) -> dict[str, Any]:
    """What a compiled program says of itself, per device; None where the backend does not tell.

    A loop's body counts once: of a program that trains for several steps, this is one of them.

    Returns:
      `flops`; `bytes_accessed`, of all operations, whether in memory or in a cache; `hbm_bytes`,
      `operation_bytes` and `outside_bytes`, of TPUs only, whose programs say which memory an array
      lies in: see `Traffic`; `peak_memory`, bytes that the program needs: arguments (state and
      images), temporaries, and those outputs that do not take the place of an argument;
      `temporaries`, alone, at their most; `all_reduces`, how many; `reduced_bytes`, what they sum;
      `collectives`, how many of each other kind.
    """
    text = compiled.as_text() or ""
    counts, reduced = collectives(text)
    moved = traffic(text)._asdict() if _platform(compiled) == "tpu" else {}
    return costs(compiled) | {
        **{name: moved.get(name) for name in Traffic._fields},
        **_memory(compiled.memory_analysis()),
        "all_reduces": counts.pop("all-reduce", 0),
        "reduced_bytes": reduced,
        "collectives": counts,
    }


def _platform(compiled: Any) -> str:
    """Of the devices that a program is for, which need not be there."""
    return next(iter(jax.tree.leaves(compiled.input_shardings)[0].device_set)).platform


def _memory(found: Any) -> Row:
    if found is None:
        return {"peak_memory": None, "temporaries": None}
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    temporaries = int(found.temp_size_in_bytes)
    return {"peak_memory": int(held) + temporaries, "temporaries": temporaries}


# --- compiled for devices that are not here ------------------------------------------------------


def compile_for(topology: str, options: Options) -> list[Row]:
    """The standard step, compiled for a slice of a TPU pod; a full-size one takes minutes.

    By default 32 images a device, in bfloat16.

    Raises:
      ConfigError: `libtpu` is missing, or knows no such topology.
    """
    rows = []
    with _topology(topology) as devices:
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        for precision in options.precisions or ("bfloat16",):
            for form in options.forms or ("auto",):
                gan = nets.standard(precision, form, platform="tpu")
                for batch in options.batch_sizes or (32,):
                    options.log(
                        f"compiling for {mesh.size} devices of {topology}: {batch} images each, "
                        f"{precision}, form {form}"
                    )
                    rows.append(_compiled(gan, mesh, batch, precision, form, topology))
    return rows


@contextlib.contextmanager
def _topology(name: str) -> Iterator[Sequence[Any]]:
    """The devices of a topology; the compiler for them looks for none here meanwhile."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            ["--compile-for: needs the package libtpu; install it by pip install 'p2p_jax[tpu]'"]
        )
    from jax.experimental import topologies

    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used, so nobody is disturbed
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        try:
            found = topologies.get_topology_desc(name, platform="tpu")
        except Exception as error:  # of whatever kind this version raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                [f"--compile-for: {name!r}: {reason}; a topology is written as v5e:2x4 or v4:2x2x1"]
            ) from error
        yield found.devices
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _compiled(gan: Gan, mesh: Mesh, batch: int, precision: str, form: str, topology: str) -> Row:
    shape = (1, batch * mesh.size, *gan.augment.crop_size)
    split = NamedSharding(mesh, P(None, mesh.axis_names[0]))
    pair = tuple(
        jax.ShapeDtypeStruct((*shape, channels), np.uint8, sharding=split)
        for channels in gan.task.channels
    )
    rates = jax.ShapeDtypeStruct((1, len(HYPER)), np.float32)
    count = jax.ShapeDtypeStruct((), np.int32)
    begin = time.perf_counter()
    lowered = make_train_step(gan, mesh, 1).lower(nets.abstract(gan, mesh), pair, rates, count)
    told = described(lowered.compile())
    kind = mesh.devices.flat[0].device_kind
    sheet = peak.SHEETS.get(peak.known(kind), {})
    # Sheets are of chips, and a device may be one of a chip's cores.
    cores = 1 + max(getattr(device, "core_on_chip", 0) for device in mesh.devices.flat)
    bandwidth, most = (sheet.get(key, 0) / cores for key in ("bandwidth", precision))
    return row(
        "compile",
        form,
        precision=precision,
        batch_size=batch * mesh.size,
        per_device=batch,
        topology=topology,
        devices=mesh.size,
        device_kind=kind,
        compile_seconds=time.perf_counter() - begin,
        # What the device needs at least to move and to compute so much.
        traffic_ms=_least(told["hbm_bytes"], bandwidth),
        arithmetic_ms=_least(told["flops"], most),
        **told,
    )


def _least(amount: float | None, rate: float) -> float | None:
    return 1e3 * amount / rate if amount and rate else None
