"""A trained translator as a Python call.

    import p2p_jax

    translate = p2p_jax.load("runs/facades")
    pictures = translate(images)

Images are arrays as decoded: `[h, w, c]` (or grey `[h, w]`), a stack `[b, h, w, c]`, or a list of
any sizes. What comes back is of the sizes given, in the type that targets were stored in.

A result depends on the weights, the image and, where dropout or noise is on, the seed: their draws
come from the seed and the image's own pixels, never from its place, its neighbours in a batch, the
batch size or the number of devices. Sizes that the network cannot take are continued to the bottom
and right by their mirror image, by no more than the network needs, and cut off again; where it
normalises by statistics of the image, that border is part of them. Tiles of a larger image draw
from the seed, the whole image's pixels and their own place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from p2p_jax import mesh as meshes
from p2p_jax import tiles
from p2p_jax.canvases import Canvases, padded
from p2p_jax.config import ConfigError
from p2p_jax.data import DataError
from p2p_jax.data.frames import resized
from p2p_jax.flags import saved_config
from p2p_jax.inference import Inference, at, restore
from p2p_jax.runner import Runner, identity
from p2p_jax.storage import AnyPath
from p2p_jax.stored import Stored
from p2p_jax.tiles import Plan, Size


def load(
    workdir: AnyPath,
    *,
    step: int | None = None,
    ema: bool | None = None,
    dropout: bool | None = None,
    norm_stats: str | None = None,
    seed: int | None = None,
    alpha: str | None = None,
    batch_size: int = 1,
    devices: int = 1,
    warn: Callable[[str], None] = print,
) -> Translator:
    """The translator that a run has trained; its data is not needed.

    Args:
      workdir: the run's folder, on disk or in a bucket.
      step: of the checkpoint; None: the newest sound one.
      ema: take the averaged weights; None: as the run's `eval.ema` says; likewise below.
      dropout: leave dropout and noise on; None: `eval.dropout`.
      norm_stats: `batch`, each image's own, or `running`; None: `eval.norm_stats`.
      seed: of dropout and noise; None: the run's.
      alpha: what becomes of transparency: drop, white or black; None: `data.alpha`.
      batch_size: images of one size that are translated at once.
      devices: that share a batch; 0 is all.
      warn: is told what was damaged.

    Raises:
      CheckpointError: there is no sound checkpoint.
      ConfigError: the folder is not a run's, has not that checkpoint, or something does not fit.
    """
    workdir, problems, there = at(workdir), [], len(jax.devices())
    config = saved_config(workdir)
    if not 0 <= devices <= there:
        problems.append(f"--devices: {devices} is not in 0 (all) to {there}, those there are")
    elif batch_size < 1 or batch_size % (devices or there):
        problems.append(f"--batch_size: {batch_size} is no multiple of {devices or there} devices")
    if norm_stats not in (None, "batch", "running"):
        problems.append(f"--norm_stats: {norm_stats!r} is not one of batch, running")
    if alpha not in (None, "drop", "white", "black"):
        problems.append(f"--alpha: {alpha!r} is not one of drop, white, black")
    if seed is not None and not 0 <= seed < 2**32:
        problems.append(f"--seed: {seed} is not in 0 to {2**32 - 1}")
    if problems:
        raise ConfigError(problems)
    running = None if norm_stats is None else norm_stats == "running"
    with jax.enable_x64(config.train.precision == "float64"):
        grid = meshes.make_mesh(devices)
        return Translator(
            restore(workdir, step=step, ema=ema, running=running, grid=grid, warn=warn),
            workdir,
            grid,
            dropout=config.eval.dropout if dropout is None else dropout,
            seed=config.seed if seed is None else seed,
            alpha=alpha or config.data.alpha,
            batch_size=batch_size,
        )


class Difference(NamedTuple):
    """How far tiles are from the whole, measured on a part of an image that both were made of.

    Attributes:
      size: (height, width) of that part.
      mean: mean absolute difference, in levels of 0..255; of classes the share of other ones.
      worst: the largest; of classes 1 where there is any.
      seams: how much more the edges of tiles stand out than the same lines of the whole: the
        quotient of `tiles.seams` of both. About 1: not at all.
    """

    size: Size
    mean: float
    worst: float
    seams: float


class Translator:
    """Translates images; made by `load`. May be called from several threads.

    Attributes:
      inference: the generator and what belongs to it.
      workdir: of the run.
      step: updates done.
      stored: what images of both sides are stored as; reads files and makes pictures.
      channels: of a source as stored, and of what is made.
      palette: colours of the classes of sources; () where they are no label maps.
      target_palette: of what is made, likewise.
      crop_size: (height, width) it was trained at.
      canvases: the sizes that it sees of images, and of tiles of them.
      size_step: height and width are continued to multiples of this.
      deterministic: whether the seed does not matter, as there is neither dropout nor noise.
      notes: what the user should know of how it translates.
    """

    def __init__(
        self,
        inference: Inference,
        workdir: AnyPath,
        grid: Mesh,
        *,
        dropout: bool,
        seed: int,
        alpha: str,
        batch_size: int,
    ) -> None:
        config, gan = inference.config, inference.gan
        chosen = config.model.generator
        self.inference, self.workdir, self.step = inference, workdir, inference.step
        self.stored = Stored(inference, alpha)
        self.channels = (self.stored.source.channels, self.stored.target.channels)
        self.palette, self.target_palette = self.stored.palette, self.stored.target_palette
        self.crop_size: Size = tuple(config.data.crop_size)
        self._methods = gan.task.methods(config.data.resize)
        self.deterministic = not (dropout and (chosen.dropout or chosen.noise))
        self.canvases = Canvases(inference, self.deterministic)
        self.size_step = self.canvases.step
        draws = not self.deterministic
        self._runner = Runner(inference, grid, self.stored.swapped, draws, seed, batch_size)
        self.notes = (*self._drawn(seed), *self._normalised())

    def _drawn(self, seed: int) -> Iterator[str]:
        if not self.deterministic:
            yield (
                f"dropout or noise is on: drawn from seed {seed} and each image's own pixels (of a "
                "tile, from its place too)"
            )

    def _normalised(self) -> Iterator[str]:
        running, chosen = self.inference.running, self.inference.config.model.generator
        if chosen.norm != "batch":
            return
        if running and self.inference.averaged:
            yield "running statistics are those of the weights that were not averaged"
        if running or chosen.norm_group == 1:
            return
        yield (
            "trained with statistics of several images at once: here each image is normalised by "
            "its own, as in evaluation, so that no result depends on its neighbours; "
            "norm_stats=running takes the averages of training"
        )
        if getattr(self.inference.gan.generator, "innermost_norm", False):
            step = self.size_step
            yield (
                f"images of up to {step}x{step} are one pixel at the innermost level, of which "
                "their own statistics leave nothing; norm_stats=running does"
            )

    # --- whole -----------------------------------------------------------------------------------

    def __call__(
        self, images: Any, *, names: Sequence[str] | None = None, size: Size | None = None
    ) -> Any:
        """Translates images.

        Args:
          images: one `[h, w, c]` or `[h, w]`, a stack `[b, h, w, c]`, or a list of any sizes; see
            `Stored.fitted` for what may be in them.
          names: of them, for messages.
          size: (height, width) to resize them to first; results are resized back.

        Returns:
          One `[h, w, c]`, a stack, or a list, as given; classes are numbers `[h, w, 1]`.

        Raises:
          DataError: all images that cannot be used.
          Failure: the device's memory does not suffice.
        """
        several = isinstance(images, list | tuple)
        given = images if several else np.asarray(images)
        single = not isinstance(given, list | tuple) and given.ndim != 4
        fits, problems = [], []
        for i, image in enumerate([given] if single else given):
            try:
                fits.append(self.stored.fitted(image))
            except ValueError as error:
                problems.append(f"{names[i] if names else f'image {i}'}: {error}")
        if problems:
            raise DataError(problems)
        made = self._whole(fits, size)
        if single:
            return made[0]
        return made if several or not made else np.stack(made)

    def _whole(self, images: list[np.ndarray], size: Size | None) -> list[np.ndarray]:
        """Translates images that fit, those of one canvas together."""
        sized = [resized(x, size, self._methods[0]) if size else x for x in images]
        groups: dict[Size, list[int]] = {}
        for i, image in enumerate(sized):
            groups.setdefault(self.canvases.of(image.shape), []).append(i)
        made = {}
        for canvas, group in groups.items():
            filled = (padded(sized[i], canvas) for i in group)
            rows = self._runner.whole((image, identity(image)) for image in filled)
            for i, row in zip(group, rows, strict=True):
                height, width = sized[i].shape[:2]
                kept = self.stored.kept(row)[:height, :width]
                made[i] = resized(kept, _size(images[i]), self._methods[1])
        return [made[i] for i in range(len(images))]

    # --- in tiles --------------------------------------------------------------------------------

    def tiled(
        self,
        image: Any,
        tile: Size,
        overlap: int | None = None,
        *,
        tick: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Translates an image in tiles that fade into each other.

        Args:
          image: as `__call__` takes it.
          tile: (height, width); see `Canvases.problems`.
          overlap: see `Canvases.plan`.
          tick: is called after each tile.

        Returns:
          `[h, w, c]` as of `__call__`; equal to that, to rounding, where its plan is `exact`.

        Raises:
          ConfigError: what `Canvases.problems` tells.
          DataError: the image cannot be used.
          Failure: the device's memory does not suffice.
        """
        problems = self.canvases.problems(tile, overlap)
        if problems:
            raise ConfigError(problems)
        try:
            image = self.stored.fitted(image)
        except ValueError as error:
            raise DataError([f"image: {error}"]) from error
        bands = list(self._bands(image, self.canvases.plan(image.shape, tile, overlap), tick))
        return np.concatenate(bands)[: image.shape[0]]

    def _bands(
        self, image: np.ndarray, plan: Plan, tick: Callable[[], None]
    ) -> Iterator[np.ndarray]:
        canvas, (height, width) = padded(image, plan.canvas), plan.tile
        number = identity(canvas)

        def cut(place: tuple[int, int]) -> tuple[np.ndarray, int]:
            top, left = place
            alone = len(plan.places) == 1  # then it is the whole
            own = number if alone else identity(np.array([number], np.uint32), place)
            return canvas[top : top + height, left : left + width], own

        def made() -> Iterator[np.ndarray]:
            for fake in self._runner.unfinished(map(cut, plan.places)):
                yield fake
                tick()

        for top, band in tiles.joined(plan, made()):
            # All of one height, as each takes a program.
            rows, full = len(band), (height, plan.canvas[1])
            row = self._runner.finish(padded(canvas[top : top + rows], full), padded(band, full))
            yield self.stored.kept(row)[:rows, : image.shape[1]]

    def difference(self, image: Any, tile: Size, overlap: int | None = None) -> Difference:
        """How far tiles are from the whole: of two neighbouring tiles in the middle of an image.

        Raises:
          Failure: the device's memory does not suffice for both at once.
        """
        image = self.stored.fitted(image)
        plan, size = self.canvases.plan(image.shape, tile, overlap), list(_size(image))
        axis = 1 if len(plan.starts[1]) > 1 else 0
        for k, whole in enumerate(_size(image)):
            size[k] = min(whole, 2 * tile[k] - plan.overlap if k == axis else tile[k])
        top, left = ((all_ - some) // 2 for all_, some in zip(image.shape, size, strict=False))
        part = image[top : top + size[0], left : left + size[1]]
        whole, made = self._whole([part], None)[0], self.tiled(part, tile, overlap)
        apart = np.abs(self.stored.levels(whole) - self.stored.levels(made))
        apart = apart > 0 if self.target_palette else apart
        laid = self.canvases.plan(part.shape, tile, overlap)
        edges, same = (tiles.seams(self.stored.shown(x), laid) for x in (made, whole))
        seams = edges / max(same, 1e-6)
        return Difference(_size(part), float(apart.mean()), float(apart.max()), seams)


def _size(image: np.ndarray) -> Size:
    return image.shape[0], image.shape[1]
