"""Facades on one device: pairs in memory, a training that the device holds whole, its metrics."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh as meshes
from p2p_jax.bench import nets
from p2p_jax.metrics import METRICS
from p2p_jax.objectives import HYPER
from p2p_jax.readers import cached
from p2p_jax.state import Gan
from p2p_jax.step import laid_out_for, make_sample, make_train_step
from p2p_jax.words import ConfigError

DISPATCH = 50  # steps that the device does without asking
METRIC_NAMES = ("l1", "psnr", "ssim")
_TOGETHER = 25  # pairs, that are evaluated at a time
_SUFFIXES = (".jpg", ".jpeg", ".png")


class Pairs(NamedTuple):
    """Pairs in memory.

    Attributes:
      source: uint8 `[n, h, w, 3]`.
      target: likewise.
    """

    source: np.ndarray
    target: np.ndarray


def read(folder: Path, size: tuple[int, int]) -> tuple[Pairs, Pairs]:
    """All pairs of `train` and of `val`, by name: the right half is the source.

    Args:
      folder: with both.
      size: (height, width) of each half.

    Raises:
      ConfigError: what is missing, unreadable or of another size, all at once.
    """
    problems: list[str] = []
    decode = _decoder()
    if decode is None:
        raise ConfigError(["--data: reading images needs cv2 or Pillow; neither is installed"])
    splits = []
    for split in ("train", "val"):
        files = sorted(p for p in (folder / split).glob("*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            problems.append(
                f"--data: there are no images ({', '.join(_SUFFIXES)}) in {folder / split}"
            )
        both = []
        for file in files:
            image = decode(file)
            if image is None:
                problems.append(f"--data: {file} cannot be read as an image")
            elif image.shape[:2] != (size[0], 2 * size[1]):
                shape = f"{image.shape[1]}x{image.shape[0]}"
                problems.append(f"--data: {file} is {shape}, not {2 * size[1]}x{size[0]}")
            else:
                both.append(image)
        splits.append(both)
    if problems:
        raise ConfigError(problems)
    stacked = (np.stack(both) for both in splits)
    train, val = (Pairs(x[:, :, size[1] :], x[:, :, : size[1]]) for x in stacked)
    return train, val


def _decoder() -> Callable[[Path], np.ndarray | None] | None:
    """From a file to RGB, uint8 `[h, w, 3]`, or None where it is no image; by cv2, else Pillow."""
    if importlib.util.find_spec("cv2") is not None:
        cv2: Any = importlib.import_module("cv2")

        def by_cv2(file: Path) -> np.ndarray | None:
            found = cv2.imread(str(file), cv2.IMREAD_COLOR)
            return None if found is None else found[:, :, ::-1]

        return by_cv2
    if importlib.util.find_spec("PIL") is None:
        return None
    pil: Any = importlib.import_module("PIL.Image")

    def by_pil(file: Path) -> np.ndarray | None:
        try:
            with pil.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError):  # as Pillow calls some broken files
            return None

    return by_pil


class Run:
    """Training from a fresh state on pairs that the device holds.

    Args:
      pairs: to train on.
      gan: the networks.
      mesh: of one device.
      batch_size: a divisor of `images`.
      lr: of both networks, throughout.
      images: that are seen at most, each epoch in an order of its own.

    Attributes:
      seen: images so far.
      compile_seconds: that the compilation took.
      batch_size: as given.
      lr: as given.
    """

    def __init__(
        self, pairs: Pairs, gan: Gan, mesh: Mesh, batch_size: int, lr: float, images: int
    ) -> None:
        self.seen, self.batch_size, self.lr = 0, batch_size, lr
        self._mesh, self._names = mesh, gan.metric_names
        count = len(pairs.source)
        rng = np.random.default_rng(0)
        epochs = [rng.permutation(count) for _ in range(-(-images // count))]
        self._order = np.concatenate(epochs)[:images].astype(np.int32).reshape(-1, batch_size)
        held = (*(np.ascontiguousarray(x).reshape(count, -1) for x in pairs), None)
        self._held = meshes.put_replicated(mesh, held)
        hyper = nets.hyper(DISPATCH)
        hyper[:, [HYPER.index("gen_lr"), HYPER.index("disc_lr")]] = lr
        self._hyper = meshes.put_replicated(mesh, hyper)
        self._losses: Any = None
        begin = time.perf_counter()
        reader = cached((pairs.source.shape[1:], pairs.target.shape[1:]))
        program = make_train_step(gan, mesh, DISPATCH, reader)
        self._compiled = program.lower(nets.abstract(gan, mesh), *self._arguments(0)).compile()
        self.compile_seconds = time.perf_counter() - begin
        self._state = laid_out_for(self._compiled, nets.draw(gan, mesh))
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        jax.block_until_ready(self.generator())

    def train(self, images: int) -> None:
        """Goes on until so many were seen, a multiple of `batch_size`; does not wait for it."""
        while self.seen < images:
            count = min(DISPATCH, (images - self.seen) // self.batch_size)
            self._state, losses = self._compiled(self._state, *self._arguments(count))
            self._losses = losses[count - 1]
            self.seen += count * self.batch_size

    def losses(self) -> dict[str, float]:
        """Of the last step, by name; waits for it.

        Raises:
          FloatingPointError: one is not finite.
        """
        found = dict(zip(self._names, np.asarray(self._losses).tolist(), strict=True))
        if not all(map(np.isfinite, found.values())):
            raise FloatingPointError(f"after {self.seen} images the losses are {found}")
        return found

    def generator(self) -> Any:
        """Its variables as they are now, (params, stats); training goes on without them."""
        return self._copy((self._state.gen.params, self._state.gen.stats))

    def _arguments(self, count: int) -> tuple[Any, ...]:
        """Of the compiled program, for so many of the next steps."""
        first = self.seen // self.batch_size
        chosen = np.zeros((DISPATCH, self.batch_size), np.int32)
        chosen[:count] = self._order[first : first + count]
        batch = (self._held, meshes.put_split(self._mesh, chosen, 1))
        return batch, self._hyper, meshes.put_replicated(self._mesh, np.int32(count))


class Evaluation:
    """Metrics of generators, as `p2p_jax.evaluate` has them without dropout.

    Images normalise by their own statistics, are rounded to 8 bits and read as [0, 1].

    Args:
      pairs: to evaluate on.
      gan: the networks, of `norm_group` 1.
      mesh: of one device.
    """

    def __init__(self, pairs: Pairs, gan: Gan, mesh: Mesh) -> None:
        self._pairs, self._mesh = pairs, mesh
        self._sample = make_sample(gan, mesh, running=False, dropout=False)
        self._key = jax.random.key(0, impl="threefry2x32")
        self._measure = jax.jit(
            lambda fake, target: {
                name: METRICS[name].fn(
                    fake.astype(jnp.float32) / 255, target.astype(jnp.float32) / 255
                )
                for name in METRIC_NAMES
            }
        )

    def __call__(self, generator: Any) -> dict[str, float]:
        """Means over all pairs, for the variables (params, stats)."""
        count = len(self._pairs.source)
        rows: list[dict[str, Any]] = []
        for first in range(0, count, _TOGETHER):
            # The last ones are filled up, so that one compilation serves all.
            wanted = np.arange(first, first + _TOGETHER) % count
            ids = np.zeros(_TOGETHER, np.uint32)
            put = meshes.put_split(self._mesh, (*(x[wanted] for x in self._pairs), ids), 0)
            made = self._sample(*generator, self._key, *put)
            found = self._measure(made.fake, made.target)
            real = min(_TOGETHER, count - first)
            rows.append({name: np.asarray(x, np.float64)[:real] for name, x in found.items()})
        return {
            name: float(np.concatenate([each[name] for each in rows]).mean())
            for name in METRIC_NAMES
        }

    def baseline(self) -> dict[str, float]:
        """The same of the one image that is nearest to all targets, their median."""
        targets = self._pairs.target
        constant = np.median(targets, axis=0).astype(np.uint8)[None]
        found = [self._measure(constant, target[None]) for target in targets]
        return {name: float(np.mean([x[name] for x in found])) for name in METRIC_NAMES}
