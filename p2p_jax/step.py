"""The training step and the sampling function, compiled for a mesh.

One update, after Isola et al. 2017, section 3.3: the generator runs forward once; the discriminator
is updated on real and fake; then the generator, by the gradient that its loss has through the
*updated* discriminator.

Randomness is a function of (seed, step, position in the global batch) alone, whatever the layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax.images import Size, Values, from_signed, resize, to_levels
from p2p_jax.objectives import HYPER, discriminator_gradients, generator_cotangent
from p2p_jax.readers import STREAMED, Reader
from p2p_jax.state import Gan, NetState, TrainState

Array = jax.Array
Tree = Any
# Purposes that keys are folded with: fixed numbers, as a resumed run depends on them.
AUGMENT, DROPOUT, EVALUATE, MIX = 1, 2, 3, 4


def example_keys(key: Array, purpose: int, positions: Array) -> Array:
    """`[b]` keys of the examples at these places of the global batch."""
    key = jax.random.fold_in(key, purpose)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def _pmean(tree: Tree, axis: str) -> Tree:
    """The mean over devices: one all-reduce for the whole tree; of one device, itself."""
    return jax.lax.pmean(tree, axis) if jax.lax.axis_size(axis) > 1 else tree


def _varying(tree: Tree, axis: str) -> Tree:
    """Marks replicated arrays as each device's own, so that their gradients stay unsummed.

    Otherwise the gradients arrive summed over devices, and averaging them again would leave n times
    the gradient, which Adam nearly hides.
    """
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to="varying"), tree)


def _apply_gradients(
    net: NetState, tx: optax.GradientTransformation, grads: Tree, stats: Tree, lr: Array
) -> NetState:
    updates, opt_state = tx.update(grads, net.opt_state, net.params)
    params = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), net.params, updates)
    return NetState(params, stats, opt_state)


def _levels(gan: Gan, source: Array, target: Array) -> tuple[Array, Array]:
    """Stored images as floating levels 0..255."""
    levels = (
        to_levels(images, values, gan.dtype)
        for images, values in zip((source, target), gan.values, strict=True)
    )
    return next(levels), next(levels)


def update(
    gan: Gan,
    state: TrainState,
    source: Array,
    target: Array,
    sizes: Array | None,
    hyper: dict[str, Array],
) -> tuple[TrainState, Array]:
    """One update of both networks; runs on each device, over the mesh axis `gan.axis`.

    Args:
      gan: the networks.
      state: the same on all devices.
      source: `[b, h, w, c]`, this device's examples as they are stored.
      target: `[b, h, w, c']`, likewise.
      sizes: int32 `[b, 2]`, the (height, width) that they fill of it, or None: all.
      hyper: scalars by name; see `objectives.HYPER`.

    Returns:
      The new state, and the losses in the order of `gan.metric_names`, means over all devices.
    """
    axis = gan.axis
    b = source.shape[0]
    key = jax.random.fold_in(state.key, state.step)
    positions = jax.lax.axis_index(axis) * b + jnp.arange(b, dtype=jnp.int32)
    augment_keys = example_keys(key, AUGMENT, positions)
    levels = _levels(gan, source, target)
    pair = gan.task.encode(*gan.augment(augment_keys, *levels, sizes))
    dropout_keys = example_keys(key, DROPOUT, positions)

    local_gen, local_disc = _varying(state.gen, axis), _varying(state.disc, axis)

    def forward(params: Tree) -> tuple[Array, Tree]:
        out, new = gan.generator.apply(
            {"params": params, "stats": local_gen.stats}, pair[0], dropout_keys, mutable=["stats"]
        )
        return out, new.get("stats", {})

    fake, pull, gen_stats = jax.vjp(forward, local_gen.params, has_aux=True)

    mix_keys = example_keys(key, MIX, positions)
    disc_parts, grads, stats = discriminator_gradients(
        gan, local_disc, mix_keys, pair, jax.lax.stop_gradient(fake), hyper
    )
    disc_parts, grads, stats = _pmean((disc_parts, grads, stats), axis)
    disc = _apply_gradients(state.disc, gan.disc_tx, grads, stats, hyper["disc_lr"])

    seen = local_disc if gan.simultaneous else _varying(disc, axis)
    parts, cotangent = generator_cotangent(gan, seen, pair, fake, hyper)
    (gen_grads,) = pull(cotangent)
    parts, grads, stats = _pmean((parts, gen_grads, gen_stats), axis)
    gen = _apply_gradients(state.gen, gan.gen_tx, grads, stats, hyper["gen_lr"])

    ema = (
        jax.tree.map(
            lambda e, p: gan.ema_decay * e + (1 - gan.ema_decay) * p, state.ema, gen.params
        )
        if gan.ema_decay
        else {}
    )
    parts |= disc_parts
    losses = jnp.stack([parts[name.removeprefix("loss/")] for name in gan.metric_names])
    return TrainState(state.step + 1, gen, disc, ema, state.key), losses


def make_train_step(
    gan: Gan, mesh: Mesh, steps_per_dispatch: int, reader: Reader = STREAMED
) -> jax.stages.Wrapped:
    """The jitted function that trains for up to `steps_per_dispatch` updates.

    Its arguments are (state, batch, hyper, count): `batch` is what `reader` reads, by default the
    images of k steps; `hyper` is `[k, len(HYPER)]`; `count`, an int32 scalar, is how many of the k
    steps to do. State is donated. It returns the state and the losses
    `[k, len(gan.metric_names)]`, of which the first `count` rows hold.

    A loop with a traced trip count serves every count with one compilation.
    """

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

    specs = (P(), reader.specs(gan.axis), P(), P())
    sharded = jax.shard_map(
        dispatch,
        mesh=mesh,
        in_specs=specs,
        out_specs=(P(), P()),
        axis_names={gan.axis},
        check_vma=mesh.size > 1,  # the check would demand means over devices, which one skips
    )
    return jax.jit(
        sharded,
        donate_argnums=0,
        in_shardings=jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs),
        out_shardings=NamedSharding(mesh, P()),
    )


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
    is split over `data` like the batch. It compiles for each size of images.

    Args:
      gan: the networks. Its generator's `norm_group` should be 1 unless `running`, so that no
        result depends on its neighbours in the batch.
      mesh: with the axis `gan.axis`.
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
        pair, channels = _levels(gan, source, target), target.shape[3]
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

    split = P(gan.axis)
    return jax.jit(
        jax.shard_map(
            sample,
            mesh=mesh,
            in_specs=(P(), P(), P(), split, split, split),
            out_specs=split,
            axis_names={gan.axis},
        )
    )
