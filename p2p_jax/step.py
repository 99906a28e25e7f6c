"""The training step and the sampling function, compiled for a mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax.images import Size, Values, from_signed, resize
from p2p_jax.objectives import HYPER
from p2p_jax.readers import STREAMED, Reader
from p2p_jax.state import Gan, TrainState, specs
from p2p_jax.update import EVALUATE, as_levels, example_keys, update

Array = jax.Array
Tree = Any


def make_train_step(
    gan: Gan, mesh: Mesh, steps_per_dispatch: int, reader: Reader = STREAMED, members: int = 0
) -> jax.stages.Wrapped:
    """The jitted function that trains for up to `steps_per_dispatch` updates.

    Its arguments are (state, batch, hyper, count): `batch` is what `reader` reads, by default the
    images of k steps; `hyper` is `[k, len(HYPER)]`; `count`, an int32 scalar, is how many of the k
    steps to do. State is donated. It returns the state and the losses
    `[k, len(gan.metric_names)]`, of which the first `count` rows hold.

    With `members`, so many runs are trained at once, on a mesh of one device. State, what
    `reader.members` tells of the batch, and `hyper` have them as their first axis; losses are a
    tuple, an array for each.

    A loop with a traced trip count serves every count with one compilation.

    Raises:
      ValueError: members on several devices.
    """
    if members and mesh.size > 1:
        raise ValueError(f"members={members} are trained on one device, not on {mesh.size}")

    def dispatch(state: TrainState, batch: Any, hyper: Array, count: Array):
        def body(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, losses = carry
            # Nothing of the update is fused with the reading: it is the same program, and gives the
            # same bits, wherever the examples come from.
            examples = reader.take(batch, i, gan.axis)
            source, target, sizes = jax.lax.optimization_barrier(examples)
            weights = dict(zip(HYPER, hyper[i], strict=True))
            state, row = update(gan, state, source, target, sizes, weights)
            return state, losses.at[i].set(row.astype(losses.dtype))

        losses = jnp.zeros((steps_per_dispatch, len(gan.metric_names)), hyper.dtype)
        return jax.lax.fori_loop(0, count, body, (state, losses))

    def together(state: TrainState, batch: Any, hyper: Array, count: Array):
        axes = (0, reader.members, 0, None)
        state, losses = jax.vmap(dispatch, axes)(state, batch, hyper, count)
        return state, tuple(losses)

    held = specs(gan, mesh.shape[gan.axis]) if gan.shard_optimizer and not members else P()
    given = (P() if members else reader.specs(gan.axis), P(), P())
    sharded = jax.shard_map(
        together if members else dispatch,
        mesh=mesh,
        in_specs=(held, *given),
        out_specs=(held, P()),
        axis_names={gan.axis},
        check_vma=mesh.shape[gan.axis]
        > 1,  # the check would demand means over devices, which one skips
    )
    # Left to itself, XLA copies the state out of its usual layout and back in each dispatch on TPU.
    layout = Layout.AUTO if mesh.devices.flat[0].platform == "tpu" else None
    state = jax.tree.map(lambda spec: Format(layout, NamedSharding(mesh, spec)), held)
    rest = jax.tree.map(lambda spec: NamedSharding(mesh, spec), given)
    return jax.jit(
        sharded,
        donate_argnums=0,
        in_shardings=(state, *rest),
        out_shardings=(state, NamedSharding(mesh, P())),
    )


def laid_out_for(step_fn: jax.stages.Compiled, state: TrainState) -> TrainState:
    """The state with its arrays in the layouts in memory that a compiled step takes, and leaves."""
    # The layout of a typed key is told as that of the numbers in it, which it does not take.
    arrays, wanted = (tree._replace(key=()) for tree in (state, step_fn.input_formats[0][0]))
    if jax.tree.map(lambda x: x.format, arrays) == wanted:
        return state
    return jax.jit(lambda tree: tree, out_shardings=wanted)(arrays)._replace(key=state.key)


class Sampled(NamedTuple):
    """What `make_sample` gives for a batch.

    Attributes:
      source: picture, uint8 `[b, h, w, c]`.
      fake: picture.
      target: picture; None where there are no targets.
      stored: the fake as targets are stored, `[b, h, w, c]`; None where that is uint8 in 0..255, as
        the picture is, or where the generator does not give images.
    """

    source: Array
    fake: Array
    target: Array | None
    stored: Array | None


def make_sample(
    gan: Gan, mesh: Mesh, running: bool, dropout: bool, device_size: Size | None = None
) -> jax.stages.Wrapped:
    """The jitted function that translates a batch into `Sampled`.

    Its arguments are (params, stats, key, source, target, identities): the generator's variables,
    the run's key, images as stored `[b, h, w, c]` in a size that the generator can take, and `[b]`
    uint32 numbers that tell examples apart, from which their dropout and noise come. What it gives
    is split like the batch, over all axes of the mesh: no image is shared. It compiles for each
    size of images.

    Args:
      gan: the networks. Its generator's `norm_group` should be 1 unless `running`, so that no
        result depends on its neighbours in the batch.
      mesh: of devices.
      running: normalise by running statistics, not the images' own.
      dropout: leave dropout and noise on.
      device_size: (height, width) to resize images to first; None: they are of their size already.
    """

    def as_stored(fake: Array, channels: int) -> Array | None:
        if gan.values[1] == Values() or gan.task.output != "tanh":
            return None
        # Tasks may have made targets grey, or of three channels; else they are something other than
        # what is stored, as the colours of a lightness are.
        fits = fake.shape[3] in (1, 3, channels) or not channels
        return from_signed(fake, gan.values[1]) if fits else None

    def sample(params: Tree, stats: Tree, key: Array, source: Array, target: Array, ids: Array):
        pair, channels = as_levels(gan, source, target), target.shape[3]
        if device_size:
            pair = [
                resize(images, device_size, method)
                for images, method in zip(pair, gan.augment.methods, strict=True)
            ]
        source, target = gan.task.encode(*pair)
        keys = example_keys(key, EVALUATE, ids) if dropout else None
        variables = {"params": params, "stats": stats}
        fake: Any = gan.generator.apply(variables, source, keys, running)
        return Sampled(
            source=gan.task.show_source(source),
            fake=gan.task.show(source, fake),
            target=gan.task.show(source, target) if channels else None,
            stored=as_stored(fake, channels),
        )

    split = P(tuple(mesh.axis_names))
    return jax.jit(
        jax.shard_map(
            sample,
            mesh=mesh,
            in_specs=(P(), P(), P(), split, split, split),
            out_specs=split,
            axis_names=set(mesh.axis_names),
        )
    )
