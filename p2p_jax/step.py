"""The training step and the sampling function, compiled for a mesh.

One update, after Isola et al. 2017, section 3.3: the generator runs forward once; the discriminator
is updated on real and fake; then the generator, by the gradient that its loss has through the
*updated* discriminator.

Randomness is a function of (seed, step, position in the global batch) alone, whatever the layout.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax.images import resize
from p2p_jax.objectives import HYPER, discriminator_gradients, generator_cotangent
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
    """The mean over devices: one all-reduce for the whole tree."""
    return jax.lax.pmean(tree, axis)


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


def update(
    gan: Gan, state: TrainState, source: Array, target: Array, hyper: dict[str, Array]
) -> tuple[TrainState, Array]:
    """One update of both networks; runs on each device, over the mesh axis `gan.axis`.

    Args:
      gan: the networks.
      state: the same on all devices.
      source: `[b, h, w, c]`, this device's examples, in 0..255.
      target: `[b, h, w, c']`, likewise.
      hyper: scalars by name; see `objectives.HYPER`.

    Returns:
      The new state, and the losses in the order of `gan.metric_names`, means over all devices.
    """
    axis = gan.axis
    b = source.shape[0]
    key = jax.random.fold_in(state.key, state.step)
    positions = jax.lax.axis_index(axis) * b + jnp.arange(b, dtype=jnp.int32)
    augment_keys = example_keys(key, AUGMENT, positions)
    pair = gan.task.encode(
        *(gan.augment(augment_keys, x.astype(gan.dtype)) for x in (source, target))
    )
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


def make_train_step(gan: Gan, mesh: Mesh, steps_per_dispatch: int) -> jax.stages.Wrapped:
    """The jitted function that trains for up to `steps_per_dispatch` updates.

    Its arguments are (state, batch, hyper, count): `batch` is the pair (source, target), uint8
    `[k, b, h, w, c]` with the global batch b split over `data`; `hyper` is `[k, len(HYPER)]`;
    `count`, an int32 scalar, is how many of the k steps to do. State is donated. It returns the
    state and the losses `[k, len(gan.metric_names)]`, of which the first `count` rows hold.

    A loop with a traced trip count serves every count with one compilation.
    """

    def dispatch(state: TrainState, batch: Any, hyper: Array, count: Array):
        def body(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, losses = carry
            source, target = (jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in batch)
            state, row = update(gan, state, source, target, dict(zip(HYPER, hyper[i], strict=True)))
            return state, losses.at[i].set(row.astype(losses.dtype))

        losses = jnp.zeros((steps_per_dispatch, len(gan.metric_names)), hyper.dtype)
        return jax.lax.fori_loop(0, count, body, (state, losses))

    sharded = jax.shard_map(
        dispatch,
        mesh=mesh,
        in_specs=(P(), P(None, gan.axis), P(), P()),
        out_specs=(P(), P()),
        axis_names={gan.axis},
    )
    replicated = NamedSharding(mesh, P())
    return jax.jit(
        sharded,
        donate_argnums=0,
        in_shardings=(replicated, NamedSharding(mesh, P(None, gan.axis)), replicated, replicated),
        out_shardings=replicated,
    )


def make_sample(gan: Gan, mesh: Mesh, running: bool, dropout: bool) -> jax.stages.Wrapped:
    """The jitted function that translates a batch.

    Its arguments are (params, stats, key, source, target, identities): the generator's variables,
    the run's key, images uint8 `[b, h, w, c]`, and `[b]` uint32 numbers that tell examples apart,
    from which their dropout and noise come. Returns pictures of source, fake and target, uint8 of
    the crop size, split over `data` like the batch.

    Args:
      gan: the networks. Its generator's `norm_group` should be 1 unless `running`, so that no
        result depends on its neighbours in the batch.
      mesh: with the axis `gan.axis`.
      running: normalise by running statistics, not the images' own.
      dropout: leave dropout and noise on.
    """
    size, method = gan.augment.crop_size, gan.augment.method

    def sample(params: Tree, stats: Tree, key: Array, source: Array, target: Array, ids: Array):
        pair = (resize(x.astype(gan.dtype), size, method) for x in (source, target))
        source, target = gan.task.encode(*pair)
        keys = example_keys(key, EVALUATE, ids) if dropout else None
        variables = {"params": params, "stats": stats}
        fake: Any = gan.generator.apply(variables, source, keys, running)
        shown = (gan.task.show(source, image) for image in (fake, target))
        return gan.task.show_source(source), *shown

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
