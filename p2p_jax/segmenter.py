"""A run from photos to class labels as the judge of photos: the FCN-score in general form.

The paper asks a segmentation network whether generated photos show what their label maps say. Here
that network is a run of this framework, trained with data.source=labels and data.labels=target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from p2p_jax import inference, mesh
from p2p_jax.config import ConfigError
from p2p_jax.data.labels import Colour
from p2p_jax.images import resize
from p2p_jax.networks import task_options
from p2p_jax.words import Problems

Array = jax.Array
KEY = "eval.segmenter"


def class_numbers(images: Array, palette: Sequence[Colour]) -> Array:
    """The class of each pixel: that of the nearest colour, as `data.labels.to_indices` has it.

    Nearest by the largest distance in a channel; of equally near colours the first.

    Args:
      images: uint8 `[b, h, w, 3]`, or grey `[b, h, w, 1]`.
      palette: a colour for each class.

    Returns:
      int32 `[b, h, w, 1]`.
    """
    known = jnp.asarray(np.asarray(palette, np.int32))
    levels = images.astype(jnp.int32)

    def closer(number: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
        least, nearest = found
        apart = jnp.abs(levels - known[number].reshape(1, 1, 1, 3)).max(-1)
        return jnp.minimum(least, apart), jnp.where(apart < least, number, nearest)

    # One colour after another: all distances at once would be many times the images.
    begin = jnp.full(images.shape[:3], 256, jnp.int32), jnp.zeros(images.shape[:3], jnp.int32)
    return jax.lax.fori_loop(0, len(palette), closer, begin)[1][..., None]


class Segmenter:
    """A trained network that tells the class of each pixel of a photo.

    Photos are resized, as its config says (`data.resize`), to the `data.crop_size` that it was
    trained at, and label maps to the same by nearest neighbour, once their colours are classes.
    Dropout is off, so that it says the same of the same photo; statistics and averaged weights are
    those of its own eval.norm_stats and eval.ema.

    Attributes:
      palette: the colours of its classes.
      size: (height, width) that it looks at.
      about: what it is, in words.
      identity: what tells it from others: its folder and step.
    """

    def __init__(self, folder: str, grid: Mesh, warn: Callable[[str], None]) -> None:
        """Restores the newest sound checkpoint of a run.

        Args:
          folder: of the run; only read.
          grid: devices of this process, all of which share batches.
          warn: is told what was damaged.

        Raises:
          CheckpointError: there are checkpoints, but none is sound.
          ConfigError: it is no such run.
        """
        try:
            run = inference.restore(inference.at(folder), grid=grid, warn=warn)
        except Problems as error:
            told = [problem.replace("--workdir:", f"{KEY}:", 1) for problem in error.problems]
            raise ConfigError(told) from error
        if run.gan.task.labelled != (False, True):
            raise ConfigError([f"{KEY}: {folder} is not a run from photos to class labels"])
        self.palette = task_options(run.config).palette
        self.size = run.gan.augment.crop_size
        self.identity = f"{folder} at step {run.step}"
        self.about = f"segmenter {self.identity}, photos of {self.size[0]}x{self.size[1]}"
        self._grid = grid
        self._variables = mesh.put_replicated(grid, {"params": run.params, "stats": run.stats})
        method, split = run.gan.augment.methods[0], P(mesh.AXIS)
        self._fit = jax.jit(lambda x: resize(x.astype(run.gan.dtype), self.size, method))
        self._classes = jax.jit(
            lambda x: resize(class_numbers(x, self.palette), self.size, "nearest")
        )

        def classify(variables: Any, levels: Array) -> Array:
            source, _ = run.gan.task.encode(levels, levels[..., :0])
            made: Any = run.gan.generator.apply(variables, source, None, run.running)
            return made.argmax(-1)[..., None].astype(jnp.int32)

        self._classify = jax.jit(
            jax.shard_map(classify, mesh=grid, in_specs=(P(), split), out_specs=split)
        )

    def fit(self, photos: Array | np.ndarray) -> Array:
        """Photos, uint8 `[b, h, w, c]`, in the size that `classify` takes: levels 0..255."""
        return self._fit(photos)

    def classify(self, levels: Array | np.ndarray) -> Array:
        """Classes `[b, *size, 1]` of what `fit` made; the devices divide b."""
        return self._classify(self._variables, levels)

    def wanted(self, maps: Array | np.ndarray) -> Array:
        """Classes `[b, *size, 1]` of pictures of label maps, uint8 `[b, h, w, 1|3]`."""
        return self._classes(maps)
