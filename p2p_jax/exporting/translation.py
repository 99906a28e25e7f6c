"""The function that is exported: stored images to stored images, whatever lies between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2p_jax.images import Size, Values, from_signed, to_levels
from p2p_jax.inference import Inference, makes_sources
from p2p_jax.models.conv import Policy

Array = jax.Array
DTYPE = "float32"  # that exports compute in, in full products, whatever a run was trained in


class Side(NamedTuple):
    """What images are as they go in, or come out.

    Attributes:
      dtype: uint8, uint16 or float32.
      channels: how many.
      low: the number that is -1 for the networks; of class numbers 0.
      high: the number that is 1; of class numbers the last one.
      what: they show.
    """

    dtype: str
    channels: int
    low: float
    high: float
    what: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.dtype}, {self.channels} channels, {self.low:g} to {self.high:g}: {self.what}"


class Translation(NamedTuple):
    """What is exported.

    Attributes:
      fn: `[b, h, w, given.channels]` to `[b, h, w, made.channels]`; where `seeded`, of uint32
        `[b]`, too, one for each image, that its dropout and noise come from.
      given: what `fn` takes.
      made: what it gives.
      seeded: whether dropout and noise are on.
      step: height and width must be multiples of it.
      least: and no less than this.
      size: the only (height, width) that it takes, or None.
    """

    fn: Callable[..., Any]
    given: Side
    made: Side
    seeded: bool
    step: int
    least: int
    size: Size | None

    def sizes(self) -> str:
        """What sizes it takes, for people."""
        if self.size:
            return f"{self.size[0]}x{self.size[1]} (height x width)"
        bound = f" from {self.least} on" if self.least > self.step else ""
        return f"any height and width that are multiples of {self.step}{bound}"

    def arguments(self, batch: Any, size: tuple[Any, Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and types of what `fn` takes."""
        images = jax.ShapeDtypeStruct((batch, *size, self.given.channels), self.given.dtype)
        seeds = (jax.ShapeDtypeStruct((batch,), jnp.uint32),) * self.seeded
        return images, *seeds


def translation(
    inference: Inference, dropout: bool = False, size: Size | None = None
) -> Translation:
    """The function of a run's generator, on its own: with its weights, in the plain form.

    Args:
      inference: the generator.
      dropout: whether dropout and noise stay on.
      size: the only (height, width) that it is to take; None: any that fit the network.
    """
    gan = inference.gan
    of_target = makes_sources(gan)
    generator = plain(gan.generator)
    variables = jax.tree.map(
        lambda x: np.asarray(x, DTYPE), {"params": inference.params, "stats": inference.stats}
    )
    given, values = _given(inference, of_target)
    shown = gan.values[1] == Values() or gan.task.output != "tanh"
    channels = inference.target.channels

    def fn(images: Array, seeds: Array | None = None) -> Array:
        levels = to_levels(images, values, DTYPE)
        nothing = levels[..., :0]
        pair = (nothing, levels) if of_target else (levels, nothing)
        source, _ = gan.task.encode(*pair)
        keys = None if seeds is None else jax.vmap(_key)(seeds)
        fake: Any = generator.apply(variables, source, keys, inference.running)
        # As `step.make_sample` has it: tasks may make something else than what is stored.
        if shown or (channels and fake.shape[3] not in (1, 3, channels)):
            return gan.task.show(source, fake)
        return from_signed(fake, gan.values[1])

    least = -(-getattr(generator, "min_size", 1) // generator.size_step) * generator.size_step
    taken = Translation(fn, given, given, dropout, generator.size_step, least, size)
    made: Any = jax.eval_shape(fn, *taken.arguments(1, size or (least, least)))
    return taken._replace(made=_side_made(inference, made))


def _key(seed: Array) -> Array:
    # Threefry is written out in what is exported, so that all platforms draw the same.
    return jax.random.key(seed, impl="threefry2x32")


def plain(generator: Any) -> Any:
    """The generator with every convolution as it is defined, on one device, in full products."""
    style = generator.style.but(policy=Policy(), axis=None, spatial=None)
    return generator.clone(style=style)


def _given(inference: Inference, of_target: bool) -> tuple[Side, Values]:
    """What images are as they go in."""
    gan, form = inference.gan, inference.target if of_target else inference.source
    values = gan.values[1 if of_target else 0]
    if gan.task.labelled[0]:
        last = gan.task.channels[0] - 1
        return Side(form.dtype, 1, 0, last, "the number of each pixel's class"), values
    what = "photos, of which the task makes what is translated" if of_target else "sources"
    return Side(form.dtype, form.channels, values.low, values.high, what), values


def _side_made(inference: Inference, made: jax.ShapeDtypeStruct) -> Side:
    """What images are as they come out."""
    gan, (channels, dtype) = inference.gan, (made.shape[3], np.dtype(made.dtype).name)
    if gan.task.labelled[1]:
        return Side(dtype, channels, 0, 255, "the likeliest class of each pixel, in its colour")
    if dtype == "uint8" and gan.values[1].dtype != "uint8":
        return Side(dtype, channels, 0, 255, "pictures of targets")
    low, high = (gan.values[1].low, gan.values[1].high) if gan.values[1] != Values() else (0, 255)
    return Side(dtype, channels, low, high, "targets")
