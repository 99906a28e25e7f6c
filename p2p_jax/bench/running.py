"""Compiled programs with their data on the device, to be run again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax import mesh as meshes
from p2p_jax.bench import nets, programs
from p2p_jax.bench.subject import Subject
from p2p_jax.images import to_levels
from p2p_jax.objectives import HYPER
from p2p_jax.readers import cached
from p2p_jax.state import Gan
from p2p_jax.step import laid_out_for, make_train_step

_EXAMPLES = 64  # that the devices hold


class Training:
    """Training steps that read examples which the devices hold: no host input, no waiting.

    Args:
      subject: what is trained.
      gan: as `subject.make` gives it.
      mesh: of the devices.
      batch_size: over all of them.
      dispatch: steps that the devices do without asking.

    Attributes:
      told: what the compiled program says of itself; see `programs.described`.
    """

    def __init__(
        self, subject: Subject, gan: Gan, mesh: Mesh, batch_size: int, dispatch: int
    ) -> None:
        source, target = subject.images(gan, _EXAMPLES, subject.frame)
        shapes = (source.shape[1:], target.shape[1:])
        sizes = (
            np.tile(np.array(subject.frame, np.int32), (_EXAMPLES, 1)) if subject.sized else None
        )
        held = (*(images.reshape(_EXAMPLES, -1) for images in (source, target)), sizes)
        order = np.random.default_rng(1).integers(0, _EXAMPLES, (dispatch, batch_size), np.int32)
        self._batch = (
            meshes.put_replicated(mesh, held),
            meshes.put_split(mesh, order, 1),
        )
        self._hyper = meshes.put_replicated(mesh, subject.hyper(dispatch))
        self._counts = [meshes.put_replicated(mesh, np.int32(n)) for n in range(dispatch + 1)]
        step = make_train_step(gan, mesh, dispatch, cached(shapes))
        like = nets.abstract(gan, mesh)
        self._compiled = step.lower(like, self._batch, self._hyper, self._counts[0]).compile()
        self._state = laid_out_for(self._compiled, nets.draw(gan, mesh))
        self.told = programs.described(self._compiled)
        if gan.accumulate > 1:  # the parts of a batch are a loop, of which only one is counted
            self.told |= dict.fromkeys(programs.COUNTED)

    def steps(self, count: int) -> None:
        """Trains for so many steps and waits until they are done."""
        losses: Any = None
        most = len(self._counts) - 1
        while count > 0:
            now = self._counts[min(count, most)]
            self._state, losses = self._compiled(self._state, self._batch, self._hyper, now)
            count -= most
        jax.block_until_ready((self._state.step, losses))


class Inference:
    """Translations of a batch that the devices hold, by the generator alone, without dropout.

    Arguments and attributes are those of `Training`.
    """

    def __init__(
        self, subject: Subject, gan: Gan, mesh: Mesh, batch_size: int, dispatch: int
    ) -> None:
        del dispatch  # each batch is one
        images = subject.images(gan, batch_size, gan.augment.crop_size)
        stored = [meshes.put_split(mesh, x, 0) for x in images]
        translate = translation(gan, mesh)
        state = nets.draw(gan, mesh)
        self._arguments = (state.gen.params, state.gen.stats, *stored)
        self._compiled = translate.lower(*self._arguments).compile()
        self.told = programs.described(self._compiled)

    def steps(self, count: int) -> None:
        """Translates the batch so many times and waits until that is done."""
        made: Any = None
        for _ in range(count):
            made = self._compiled(*self._arguments)
        jax.block_until_ready(made)


def translation(gan: Gan, mesh: Mesh) -> Any:
    """The jitted function of (params, stats, source, target), as they are stored, to fakes.

    The target only shows how the task sees a pair.
    """
    split = P(gan.axis)

    def translate(params: Any, stats: Any, source: jax.Array, target: jax.Array) -> jax.Array:
        pair = (
            to_levels(images, values, gan.dtype)
            for images, values in zip((source, target), gan.values, strict=True)
        )
        seen, _ = gan.task.encode(*pair)
        fake: Any = gan.generator.apply({"params": params, "stats": stats}, seen, None)
        return fake

    sharded = jax.shard_map(
        translate, mesh=mesh, in_specs=(P(), P(), split, split), out_specs=split,
        axis_names={gan.axis},
    )  # fmt: skip
    return jax.jit(sharded)


# --- work ----------------------------------------------------------------------------------------


def training_work(subject: Subject, gan: Gan, batch_size: int) -> float | None:
    """Operations of a training step, counted where every convolution is as it is defined."""
    gan, mesh = nets.plain(gan), meshes.make_mesh(1)
    split = NamedSharding(mesh, P(None, gan.axis))
    shape = (1, batch_size, *subject.frame)
    batch: Any = [
        jax.ShapeDtypeStruct((*shape, channels), dtype, sharding=split)
        for channels, dtype in subject.stored
    ]
    if subject.sized:
        batch.append(jax.ShapeDtypeStruct((1, batch_size, 2), np.int32, sharding=split))
    else:
        batch.append(None)
    hyper = jax.ShapeDtypeStruct((1, len(HYPER)), gan.dtype)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    step = make_train_step(gan, mesh, 1)
    return programs.costs(step.lower(nets.abstract(gan, mesh), tuple(batch), hyper, count))["flops"]


def inference_work(subject: Subject, gan: Gan, batch_size: int) -> float | None:
    """Operations of a translation, likewise."""
    gan, mesh = nets.plain(gan), meshes.make_mesh(1)
    gen = nets.abstract(gan, mesh).gen
    batch = [
        jax.ShapeDtypeStruct((batch_size, *gan.augment.crop_size, channels), dtype)
        for channels, dtype in subject.stored
    ]
    return programs.costs(translation(gan, mesh).lower(gen.params, gen.stats, *batch))["flops"]


# --- time ----------------------------------------------------------------------------------------


def timed(steps: Callable[[int], None], count: int) -> float:
    """Seconds that each of so many steps takes."""
    begin = time.perf_counter()
    steps(count)
    return (time.perf_counter() - begin) / count


def enough(steps: Callable[[int], None], seconds: float) -> int:
    """How many steps fill so many seconds; also warms them up."""
    steps(1)
    each = timed(steps, 1)
    if each < seconds / 8:
        each = timed(steps, 4)
    return max(1, round(seconds / each))
