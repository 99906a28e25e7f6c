"""A tiny run that the tests of the effects share, and ways to start the command line.

The file is itself a config file: `--config=tests/running.py`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from p2p_jax.config import base

ROOT = Path(__file__).resolve().parents[1]
CONFIG = f"--config={Path(__file__).resolve()}"
STEPS = 12

# Sends signals to its own process once so many updates are done: no race with a clock.
_HOOKED = """
import os, sys
from p2p_jax import main, train
at, numbers = int(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")]
add = train.Losses.add
def hooked(self, step, count, losses):
    add(self, step, count, losses)
    while step >= at and numbers:
        os.kill(os.getpid(), numbers.pop(0))
train.Losses.add = hooked
sys.exit(main.main(sys.argv[3:]))
"""


def get_config():
    """32x32, jitter, mirroring, dropout, averaged weights, and intervals that divide nothing."""
    c = base()
    c.data.source = "synthetic"
    c.data.load_size = (36, 34)
    c.data.crop_size = (32, 32)
    c.data.max_examples = 10
    c.model.generator.depth = 4
    c.model.generator.base_features = 4
    c.model.generator.dropout = (1, 2)
    c.model.discriminator.layers = 1
    c.model.discriminator.base_features = 4
    c.optim.gen.lr = c.optim.disc.lr = 2e-3
    c.train.batch_size = 4
    c.train.steps = STEPS
    c.train.steps_per_dispatch = 4
    c.train.ema_decay = 0.9
    c.train.log_every = 4
    c.train.save_every = 5
    c.train.eval_every = 7
    c.train.sample_every = 9
    c.eval.examples = 5
    c.eval.sample_count = 3
    return c


def _scratch() -> Path:
    """A folder that lasts as long as the test run; all its processes have the same."""
    folder = Path(os.environ["P2P_JAX_TESTS"])
    folder.mkdir(exist_ok=True)
    return folder


def environment(cached: bool = True, **changes: str) -> dict[str, str]:
    """For a process of its own: four devices, and programs compiled quickly and once."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # The same programs as ever, less polished: a quarter of the time to compile.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
    }
    if not cached:
        del env["JAX_COMPILATION_CACHE_DIR"]  # of the tests; see conftest.py
    return env | changes


def start(*args: str, env: dict[str, str] | None = None, at: int = 0, signals: tuple = ()):
    """Runs `python -m p2p_jax.main`; with `signals`, it gets them after step `at`."""
    numbers = ",".join(str(int(number)) for number in signals)
    program = ["-c", _HOOKED, str(at), numbers] if signals else ["-m", "p2p_jax.main"]
    return subprocess.run(
        [sys.executable, *program, *args],
        env=env or environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def together(
    workdir: Path, *args: str, count: int = 2, devices: int = 2, at: int = 0, signals: tuple = ()
) -> list[subprocess.CompletedProcess[str]]:
    """Trains the tiny config in several processes; with `signals`, the last one gets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = environment(
        JAX_NUM_CPU_DEVICES=str(devices), XLA_FLAGS="--xla_backend_optimization_level=1"
    )
    numbers = ",".join(str(int(number)) for number in signals)
    running = []
    for i in range(count):
        hooked = signals and i == count - 1
        program = ["-c", _HOOKED, str(at), numbers] if hooked else ["-m", "p2p_jax.main"]
        flags = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={i}"]
        running.append(
            subprocess.Popen(
                [sys.executable, *program, CONFIG, f"--workdir={workdir}", *args, *flags],
                env=env,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        # Pipes of one must not fill while another is read.
        with ThreadPoolExecutor(count) as pool:
            texts = list(pool.map(lambda p: p.communicate(timeout=300), running))
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(p.args, p.returncode, *text)
        for p, text in zip(running, texts, strict=True)
    ]


def train_to(workdir: Path, code: int = 0, *args: str, **kwargs: Any) -> str:
    """Trains the tiny config; gives the standard output. Anything but `code` fails."""
    ran = start(CONFIG, f"--workdir={workdir}", *args, **kwargs)
    assert ran.returncode == code, f"exit code {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@functools.cache
def finished(*args: str) -> tuple[Path, str]:
    """A whole run that nothing disturbed, and what it printed. Do not write to it.

    Each is made once, by whichever process needs it first.

    Args:
      *args: flags, beside those of the tiny config.
    """
    name = hashlib.sha256(repr(args).encode()).hexdigest()[:16]
    workdir, printed = _scratch() / name, _scratch() / f"{name}.txt"
    with (_scratch() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(train_to(workdir, 0, *args))
    return workdir, printed.read_text()


def pairs(folder: Path, count: int = 6, size: tuple = (32, 32), suffix: str = "png"):
    """Writes side-by-side images, the right half the left one upside down; two for evaluation.

    Returns:
      Files by the names 'train/000' and so on.
    """
    written = {}
    for split, number in (("train", count), ("val", 2)):
        (folder / split).mkdir(parents=True)
        for i in range(number):
            left = blocks((i, number), size)
            written[f"{split}/{i:03d}"] = path = folder / split / f"{i:03d}.{suffix}"
            Image.fromarray(np.concatenate([left, left[::-1]], 1)).save(path)
    return written


def blocks(seed: Any, size: tuple, channels: int = 3) -> np.ndarray:
    """Squares of random colours, uint8 `[*size, channels]`."""
    rows, columns = (-(-side // 8) for side in size)
    drawn = np.random.default_rng(seed).integers(0, 256, (rows, columns, channels))
    return np.kron(drawn, np.ones((8, 8, 1))).astype(np.uint8)[: size[0], : size[1]]


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by Orbax alone."""
    flat = {}
    for item in ("gen", "train"):
        folder = (workdir / "checkpoints" / str(step) / item).absolute()
        with ocp.PyTreeCheckpointer() as reader:
            stored = reader.metadata(folder).item_metadata.tree
            kinds = _map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            _flatten(reader.restore(folder, restore_args=kinds), item, flat)
    return flat


def _map(fn: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(fn, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_map(fn, value) for value in tree]
    return fn(tree)


def _flatten(tree: Any, path: str, into: dict[str, np.ndarray]) -> None:
    if isinstance(tree, dict):
        tree = tree.items()
    elif isinstance(tree, list | tuple):
        tree = enumerate(tree)
    else:
        if hasattr(tree, "dtype") and "key<" in str(tree.dtype):
            import jax

            tree = jax.random.key_data(tree)
        into[path] = np.asarray(tree)
        return
    for key, value in tree:
        _flatten(value, f"{path}/{key}", into)


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit, all of them."""
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype and array.shape == other[path].shape, path
        assert array.tobytes() == other[path].tobytes(), path


def checkpoints(workdir: Path) -> list[str]:
    """Names of all that lies in `checkpoints/`."""
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"  # names the last process
    }
