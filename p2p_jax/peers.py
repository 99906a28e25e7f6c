"""Processes that train one run together: how they find, hear and wait for one another.

Everything here is the same in a run of one process, where there is nobody to ask.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import pickle
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from p2p_jax.process import Failure
from p2p_jax.words import ConfigError, Problems

T = TypeVar("T")
FLAGS = ("coordinator", "num_processes", "process_id")
# Named by users of Kubernetes and the like, and by launch/local.py.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PORT = 8476


@dataclasses.dataclass(frozen=True)
class Peers:
    """Who trains together.

    Attributes:
      how: what said so.
      coordinator: HOST:PORT of process 0; None: JAX finds it, as it does the rest.
      count: of processes.
      index: of this one.
      device: the one of the machine's GPUs that is this process's; None: all it sees, or as JAX
        finds.
    """

    how: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    device: int | None = None


class Alone(Failure):
    """Another process did not come, or failed."""


def found(flags: Mapping[str, str], env: Mapping[str, str]) -> Peers | None:
    """What flags or the environment say of other processes; None: there are none.

    Flags win over the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    those over what SLURM, Open MPI and TPU machines tell.

    Raises:
      ConfigError: they are incomplete, or no numbers.
    """
    named = {name: flags[name] for name in FLAGS if flags.get(name)}
    if named:
        return _explicit({f"--{name}": named.get(name) for name in FLAGS}, "flags")
    # The address alone is also set for programs that find out the rest by themselves.
    if any(env.get(name) for name in _VARIABLES[1:]):
        return _explicit({name: env.get(name) for name in _VARIABLES}, "environment")
    coordinator = env.get(_VARIABLES[0])
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun, and not by sbatch or salloc
        return Peers("SLURM")
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if not coordinator and "OMPI_MCA_orte_hnp_uri" not in env:  # of Open MPI 4
            raise ConfigError(
                [
                    "JAX_COORDINATOR_ADDRESS: Open MPI started several processes and does not say "
                    "where the first one is; set it to HOST:PORT of a machine's free port, as in "
                    "mpirun -x JAX_COORDINATOR_ADDRESS=node1:8476"
                ]
            )
        count, index = int(env["OMPI_COMM_WORLD_SIZE"]), int(env["OMPI_COMM_WORLD_RANK"])
        return Peers("Open MPI", coordinator, count, index, _own_device(env))
    return Peers("TPU") if _on_tpu(env) else None


def _own_device(env: Mapping[str, str]) -> int | None:
    """Which of a machine's GPUs is this process's, where Open MPI started several there."""
    several = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")) > 1
    chosen = len(env.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    if not several or chosen or env.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    return int(env["OMPI_COMM_WORLD_LOCAL_RANK"])


def _explicit(given: dict[str, str | None], how: str) -> Peers:
    """All three of them, checked."""
    missing = [name for name, value in given.items() if not value]
    problems = [f"{name}: needed beside {_others(given, name)}" for name in missing]
    address, *texts = given.items()
    numbers = []
    for name, text in texts:
        if text and not text.isdecimal():
            problems.append(f"{name}: {text!r} is not a whole number from 0 on")
        elif text:
            numbers.append(int(text))
    host, colon, port = (address[1] or "").rpartition(":")
    if address[1] and not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        problems.append(f"{address[0]}: {address[1]!r} is not HOST:PORT, as in node1:{_PORT}")
    if len(numbers) == 2 and not 0 <= numbers[1] < numbers[0]:
        problems.append(
            f"{texts[1][0]}: {numbers[1]} is not below {texts[0][0]}={numbers[0]}; the first is 0"
        )
    if problems:
        raise ConfigError(problems)
    return Peers(how, address[1], numbers[0], numbers[1])


def _others(given: Mapping[str, Any], name: str) -> str:
    return " and ".join(other for other in given if other != name)


def _on_tpu(env: Mapping[str, str]) -> bool:
    """Whether this is a machine with TPUs that JAX is to use, and may be one of a slice's.

    Those of notebook services say that they are alone, and have nobody to ask for more.
    """
    if env.get("JAX_PLATFORMS", "tpu") not in ("", "tpu", "tpu,cpu"):
        return False
    hosts = env.get("TPU_WORKER_HOSTNAMES") or env.get("TPU_PROCESS_ADDRESSES")
    told = hosts is not None or "TPU_SKIP_MDS_QUERY" in env
    several = "," in (hosts or "") or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
    if told and not several:
        return False
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start(peers: Peers | None, start_timeout: float, heartbeat_timeout: float) -> None:
    """Waits until all processes are there; before anything is asked of JAX's devices.

    Args:
      peers: from `found`.
      start_timeout: seconds to wait.
      heartbeat_timeout: seconds after which a process that is not heard of ends the others.

    Raises:
      Alone: not all came.
    """
    if peers is None:
        return
    # Its signal handler would take SIGTERM away from us.
    jax.config.update("jax_enable_preemption_service", False)
    who = "this process" if peers.index is None else f"process {peers.index} of {peers.count}"
    where = f" at {peers.coordinator}" if peers.coordinator else ""
    text = (
        f"{who} (told by {peers.how}) did not meet all others{where} within {start_timeout:g} s: "
        "see whether each was started, with the same address and count, and can reach it; "
        "mesh.start_timeout waits longer"
    )

    def give_up() -> None:
        os.write(2, f"error: {text}\n".encode())
        os._exit(1)

    # Where the others do not come, the runtime aborts the process; this says why, before that.
    watch = threading.Timer(start_timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.count,
            peers.index,
            local_device_ids=peers.device,
            # Where we know them all, a scheduler around us does not matter, nor how it would share
            # out a machine's devices.
            cluster_detection_method=None if peers.coordinator is None else "deactivate",
            initialization_timeout=int(start_timeout) + 30,
            heartbeat_timeout_seconds=int(heartbeat_timeout),
        )
    except Exception as error:  # of whatever kind the runtime raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Alone(f"{text}. JAX says: {reason}") from error
    finally:
        watch.cancel()


def first() -> bool:
    """Whether this process is the one that writes what there is one of."""
    return jax.process_index() == 0


def name() -> str:
    """This process in words; '' where it is the only one."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def gather(value: T) -> list[T]:
    """The values of all processes, in their order, in all of them; each must call this."""
    if jax.process_count() == 1:
        return [value]
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)
    ]


def together(run: Callable[[], T]) -> T:
    """Runs something in every process; where it fails in one, it fails in all.

    What it runs must not wait for other processes.

    Raises:
      Alone: it failed in another process alone.
      Problems: likewise, because of its input.
    """
    if jax.process_count() == 1:
        return run()
    error, value = None, None
    try:
        value = run()
    except Exception as raised:
        error = raised
    told = gather(None if error is None else _told(error))
    if error is not None:
        raise error
    for index, reason in enumerate(told):
        if reason is not None:
            problems, text = reason
            where = f"process {index} of {len(told)}"
            if problems:
                raise Problems([f"{where}: {problem}" for problem in problems])
            raise Alone(f"{where} failed: {text}")
    return value  # type: ignore[return-value]


def _told(error: Exception) -> tuple[list[str], str]:
    problems = list(error.problems) if isinstance(error, Problems) else []
    return problems, f"{type(error).__name__}: {error}"


def agree(what: str, value: Any) -> None:
    """Sees that a value is the same in all processes.

    Raises:
      Problems: naming those where it is another than in process 0.
    """
    agree_all({what: value})


def agree_all(values: Mapping[str, Any]) -> None:
    """Sees that values are the same in all processes.

    Args:
      values: by what to call them; the same names in all processes.

    Raises:
      Problems: naming those that are not, and where they are others than in process 0.
    """
    everyone = gather(dict(values))
    problems = []
    for what, wanted in everyone[0].items():
        other = [i for i, theirs in enumerate(everyone) if theirs[what] != wanted]
        problems += [
            f"{what}: process {i} has {everyone[i][what]!r}, process 0 has {wanted!r}; all must "
            "have the same"
            for i in other[:3]
        ]
    if problems:
        raise Problems(problems)


class Ballot:
    """Asks all processes at the same place whether one of them wishes to stop.

    With several processes a vote is a small program on the devices, which is done after what was
    given to them before; so a vote that is cast ahead of long work and counted after costs nothing.
    """

    def __init__(self, wish: Callable[[], bool]) -> None:
        """Takes what tells whether this process wishes it."""
        self._wish = wish
        self._max: Any = None

    def cast(self) -> Any:
        """Begins a vote; every process must, and in the same order among its programs."""
        if jax.process_count() == 1:
            return None
        if self._max is None:
            mesh = jax.make_mesh(
                (jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,)
            )
            split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._split = split
            self._max = jax.jit(lambda x: x.max(), out_shardings=whole)
        mine = np.full(jax.local_device_count(), self._wish(), np.int32)
        return self._max(jax.make_array_from_process_local_data(self._split, mine))

    def count(self, vote: Any) -> bool:
        """The outcome of a vote: whether any process wished it when it cast its vote."""
        return self._wish() if vote is None else bool(int(vote))

    def now(self) -> bool:
        """Casts and counts."""
        return self.count(self.cast())
