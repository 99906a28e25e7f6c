"""Trains in several processes on this one machine, and starts them again when they stop.

    python launch/local.py --processes=N --devices=M [--gpus] [--restarts=R] [--grace=SECONDS]
        [--port=P] [--dry-run] -- --config=FILE --workdir=DIR [...]

What follows `--` is handed to each of N times `python -m p2p_jax.main`, with --coordinator,
--num_processes and --process_id. Each process has M simulated CPU devices; with --gpus M GPUs.

Process 0 prints as if it were alone; lines of the others begin with their number. SIGINT, SIGTERM
and SIGUSR1 are handed to all processes, which save and end. The processes start again, all of them,

- after exit code 75 (stopped with everything saved) that was not asked for here: always;
- when one of them died, and with it the others: R times (3) without progress between. Progress is
  exit code 75, or a newer checkpoint in the --workdir, where that is a local folder.

Exit codes: 0 all are done; 2 bad input; 75 stopped by a signal with everything saved; else that of
the first process that died, 128 and more for a signal.

Needs Python alone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

DONE, BAD_INPUT, STOPPED = 0, 2, 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OURS = ("--coordinator", "--num_processes", "--process_id")
_TICK = 0.05  # seconds between looks at what has ended
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Options(NamedTuple):
    """What the command line says.

    Attributes:
      processes: how many.
      devices: of each process.
      gpus: whether they are GPUs.
      restarts: after deaths without progress between.
      grace: seconds that the others have to end by themselves once one has died.
      port: of process 0; 0: a free one at each start.
      program: arguments of Python.
      args: of the program.
      dry_run: whether only to print.
    """

    processes: int
    devices: int
    gpus: bool = False
    restarts: int = 3
    grace: float = 60.0
    port: int = 0
    program: tuple[str, ...] = ("-m", "p2p_jax.main")
    args: tuple[str, ...] = ()
    dry_run: bool = False


def parse(argv: Sequence[str]) -> Options:
    """Reads a command line; a wrong one ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, required=True, help="of each process")
    parser.add_argument("--gpus", action="store_true", help="GPUs, not simulated CPU devices")
    parser.add_argument("--restarts", type=int, default=3, help="after deaths, without progress")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to outlive a dead one")
    parser.add_argument("--port", type=int, default=0, help="of process 0; default: a free one")
    parser.add_argument("--program", default="-m p2p_jax.main", help="arguments of Python")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    parser.add_argument("args", nargs="*", help="of the program, after --")
    given = parser.parse_args(argv)
    for name, low in (("processes", 1), ("devices", 1), ("restarts", 0), ("grace", 0), ("port", 0)):
        if not getattr(given, name) >= low:
            parser.error(f"--{name}: {getattr(given, name)} is below {low}")
    if given.port > 65535:
        parser.error(f"--port: {given.port} is above 65535")
    for arg in given.args:
        if arg.split("=")[0] in OURS:
            parser.error(f"{arg}: is set for each process here; leave it out")
    visible = _visible_gpus(os.environ)
    if given.gpus and visible is not None and len(visible) < given.processes * given.devices:
        parser.error(
            f"--gpus: {given.processes} processes of {given.devices} need "
            f"{given.processes * given.devices}, and CUDA_VISIBLE_DEVICES names {len(visible)}"
        )
    words = vars(given) | {
        "program": tuple(shlex.split(given.program)),
        "args": tuple(given.args),
    }
    return Options(**words)


def _visible_gpus(env: os._Environ[str] | dict[str, str]) -> list[str] | None:
    """The GPUs that may be used; None: all there are."""
    text = env.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [name for name in text.split(",") if name]


def settings(options: Options, index: int, env: dict[str, str]) -> dict[str, str]:
    """The environment variables that are set for a process.

    Args:
      options: of the command line.
      index: of the process.
      env: what is set already; of its CUDA_VISIBLE_DEVICES each process gets its part.
    """
    first = index * options.devices
    places = range(first, first + options.devices)
    if options.gpus:
        visible = _visible_gpus(env)
        names = [str(i) if visible is None else visible[i] for i in places]
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(names),
            # All of them: within a SLURM job JAX would take one a process.
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(options.devices))),
            "PYTHONUNBUFFERED": "1",
        }
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "PYTHONUNBUFFERED": "1",
    }


def command(options: Options, index: int, port: int | str) -> list[str]:
    """The command line of a process."""
    who = (f"127.0.0.1:{port}", str(options.processes), str(index))
    flags = [f"{name}={value}" for name, value in zip(OURS, who, strict=True)]
    return [sys.executable, *options.program, *options.args, *flags]


def plan(options: Options, env: dict[str, str]) -> str:
    """What would be done, as a shell would be told."""
    lines = []
    for index in range(options.processes):
        sets = [f"{k}={shlex.quote(v)}" for k, v in settings(options, index, env).items()]
        words = shlex.join(command(options, index, options.port or "PORT"))
        lines.append(" ".join([*sets, words, "&"]))
    if not options.port:
        lines.insert(0, "# PORT is one that is free at each start")
    lines += [
        "# starts all of them again: after exit code 75 that no signal sent here asked for;",
        f"# when one dies, {options.restarts} times without progress between, once the others have "
        f"ended, {options.grace:g} s after it at the latest",
    ]
    return "\n".join(lines)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def newest_checkpoint(args: Iterable[str]) -> int:
    """The newest step in the folder that --workdir names; -1 where there is none to see."""
    for arg in args:
        if arg.startswith("--workdir="):
            folder = Path(arg.partition("=")[2]) / "checkpoints"
            with contextlib.suppress(OSError):
                return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=-1)
    return -1


def outcome(codes: Sequence[int], asked: bool) -> tuple[int, str]:
    """What a group's exit codes, negative for a signal, in the order of their ends, come to.

    Args:
      codes: of all processes.
      asked: whether a signal sent here asked them to end.

    Returns:
      An exit code, and what to do: 'leave', 'again' (there was progress) or 'retry'.
    """
    if BAD_INPUT in codes:
        return BAD_INPUT, "leave"
    bad = [code for code in codes if code not in (DONE, STOPPED)]
    if bad:
        code = bad[0] if bad[0] > 0 else 128 - bad[0]
        return code, "leave" if asked else "retry"
    if STOPPED in codes:
        return STOPPED, "leave" if asked else "again"
    return DONE, "leave"


class Lines:
    """Turns what a process writes into whole lines, each after a prefix."""

    def __init__(self, prefix: str, out: IO[bytes]) -> None:
        """Takes what every line begins with, and where they go."""
        self._prefix, self._out, self._rest = prefix.encode(), out, b""

    def feed(self, data: bytes) -> None:
        """Passes on what is complete."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._out.write(self._prefix + line + b"\n")
        self._out.flush()

    def close(self) -> None:
        """Passes on the rest."""
        if self._rest:
            self.feed(b"\n")


def _tie_to_parent() -> Callable[[], None] | None:
    """What a child runs first, so that the system kills it when this process dies of anything."""
    if not sys.platform.startswith("linux"):
        return None  # there a `kill -9` of the launcher leaves the processes to themselves
    prctl = ctypes.CDLL(None).prctl  # looked up here: little is allowed after a fork
    parent = os.getpid()

    def tie() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os._exit(1)

    return tie


class Group:
    """The processes of one start."""

    def __init__(self, options: Options, port: int) -> None:
        """Starts them."""
        self._grace = options.grace
        self._selector = selectors.DefaultSelector()
        self._children: list[subprocess.Popen[bytes]] = []
        self._ended: dict[int, int] = {}  # exit codes by process, in the order of their ends
        self._deadline = float("inf")
        tie = _tie_to_parent()
        env = dict(os.environ)
        try:
            for index in range(options.processes):
                # In a process group of its own, for Ctrl-C reaches all of the terminal's: it would
                # come twice, from there and from here, and a second one means to leave at once.
                child = subprocess.Popen(
                    command(options, index, port),
                    env=env | settings(options, index, env),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                    preexec_fn=tie,
                )
                self._children.append(child)
                for pipe, out in (
                    (child.stdout, sys.stdout.buffer),
                    (child.stderr, sys.stderr.buffer),
                ):
                    assert pipe is not None
                    os.set_blocking(pipe.fileno(), False)
                    lines = Lines(f"[{index}] " if index else "", out)
                    self._selector.register(pipe, selectors.EVENT_READ, (index, lines))
        except BaseException:
            self.kill()
            raise

    def send(self, number: int) -> None:
        """Hands a signal to all that still run."""
        for index, child in enumerate(self._children):
            if index not in self._ended:
                child.send_signal(number)

    def kill(self) -> None:
        """Ends those that still run, and whatever they have started."""
        for index, child in enumerate(self._children):
            if index not in self._ended:
                _kill_group(child.pid)
                child.wait()

    def turn(self) -> list[int] | None:
        """Waits a moment, passes lines on, and sees who has ended.

        Returns:
          The exit codes in the order of ends, once there are all; else None.
        """
        for key, _ in self._selector.select(_TICK):
            self._read(key)
        for index, child in enumerate(self._children):
            if index not in self._ended and child.poll() is not None:
                self._note_end(index, child.returncode)
        if len(self._ended) == len(self._children):
            return list(self._ended.values())
        if time.monotonic() > self._deadline:
            left = [i for i in range(len(self._children)) if i not in self._ended]
            say(f"killing {_named(left)}, {self._grace:g} s after another one died")
            for index in left:
                _kill_group(self._children[index].pid)
            self._deadline = float("inf")
        return None

    def _note_end(self, index: int, code: int) -> None:
        self._ended[index] = code
        _kill_group(self._children[index].pid)  # what it may have started and left
        for key in list(self._selector.get_map().values()):
            if key.data[0] == index and self._read(key):
                self._close(key)
        if code not in (DONE, STOPPED):
            say(f"process {index} ended with {_words(code)}")
            self._deadline = min(self._deadline, time.monotonic() + self._grace)

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Passes on what is there; tells whether there may be more later."""
        while True:
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                self._close(key)
                return False
            key.data[1].feed(data)

    def _close(self, key: selectors.SelectorKey) -> None:
        key.data[1].close()
        self._selector.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        for key in list(self._selector.get_map().values()):
            self._close(key)
        self._selector.close()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _named(indices: Sequence[int]) -> str:
    return f"process{'es' * (len(indices) > 1)} {', '.join(map(str, indices))}"


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def say(text: str) -> None:
    """Writes a line of the launcher's own."""
    print(f"local.py: {text}", file=sys.stderr, flush=True)


class Signals:
    """Collects the signals that this process gets."""

    def __init__(self) -> None:
        self.asked = False
        self._waiting: list[int] = []

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked = True
        self._waiting.append(number)

    def take(self) -> list[int]:
        """Those that came since the last time."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.pop(0))
        return taken


def run(options: Options) -> int:
    """Runs the processes to their end, over as many starts as it takes; gives the exit code."""
    left, newest = options.restarts, newest_checkpoint(options.args)
    with Signals() as signals:
        while True:
            with Group(options, options.port or free_port()) as group:
                codes = None
                while codes is None:
                    for number in signals.take():
                        group.send(number)
                    codes = group.turn()
            code, then = outcome(codes, signals.asked)
            before, newest = newest, newest_checkpoint(options.args)
            if then == "leave" or signals.asked:
                return code
            if then == "again" or newest > before:
                left = options.restarts
            if then == "retry":
                if left == 0:
                    say(f"not started again: died {options.restarts + 1} times without progress")
                    return code
                left -= 1
            say(f"starting again after {_words(code)}")


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    options = parse(argv)
    if options.dry_run:
        print(plan(options, dict(os.environ)))
        return DONE
    return run(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
