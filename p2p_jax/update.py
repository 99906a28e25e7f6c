"""One update of both networks, on each device of a mesh.

After Isola et al. 2017, section 3.3: the generator runs forward once; the discriminator is updated
on real and fake; then the generator, by the gradient that its loss has through the *updated*
discriminator.

Randomness is a function of (seed, step, position in the global batch) alone, whatever the layout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2p_jax import zero
from p2p_jax.images import to_levels
from p2p_jax.models.bands import banded
from p2p_jax.objectives import RATES, discriminator_gradients, generator_cotangent
from p2p_jax.state import Gan, NetState, TrainState

Array = jax.Array
Tree = Any
# Purposes that keys are folded with: fixed numbers, as a resumed run depends on them.
AUGMENT, DROPOUT, EVALUATE, MIX = 1, 2, 3, 4


# Losses by name, gradients, and running statistics of a network.
Gradients = tuple[dict[str, Array], Tree, Tree]


def example_keys(key: Array, purpose: int, positions: Array) -> Array:
    """`[b]` keys of the examples at these places of the global batch."""
    key = jax.random.fold_in(key, purpose)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def _pmean(tree: Tree, axis: str) -> Tree:
    """The mean over devices: one all-reduce for the whole tree; of one device, itself."""
    return jax.lax.pmean(tree, axis) if jax.lax.axis_size(axis) > 1 else tree


def _varying(tree: Tree, axis: str) -> Tree:
    """Marks replicated arrays as each device's own."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to="varying"), tree)


def _own(net: NetState, axis: str) -> NetState:
    """A network with parameters that count as each device's own, so that gradients stay unsummed.

    Otherwise the gradients arrive summed over devices, and averaging them again would leave n times
    the gradient, which Adam nearly hides.
    """
    params, stats = _varying((net.params, net.stats), axis)
    return net._replace(params=params, stats=stats)


def _reduced(gan: Gan, made: Gradients) -> Gradients:
    """Means over devices; of gradients the device's share, where it has one of the optimiser."""
    if not gan.shard_optimizer:
        return _pmean(made, gan.axis)
    parts, grads, stats = made
    mean = functools.partial(_pmean, axis=gan.axis)
    grads, (parts, stats) = zero.scattered(grads, mean, (parts, stats), gan.axis)
    return parts, grads, stats


def _apply_gradients(
    net: NetState,
    tx: optax.GradientTransformation,
    grads: Tree,
    stats: Tree,
    lr: Array,
    shared: str | None = None,
) -> NetState:
    """Updates a network; `shared` is the mesh axis that gradients and averages are split over."""
    old = zero.shares(net.params, shared) if shared else net.params
    updates, opt_state = tx.update(grads, net.opt_state, old)
    params = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), old, updates)
    if shared:
        params = zero.whole(params, net.params, shared)
    return NetState(params, stats, opt_state)


def _sound(gan: Gan, rates: Tree, reduced: tuple[Gradients, ...]) -> Array:
    """Whether an update may be done: on all devices or none.

    That is where losses, rates, statistics, gradients and their squares, which the optimiser
    averages, are finite.
    """
    values = [rates]
    for parts, grads, stats in reduced:
        values += [parts, stats, jax.tree.map(jnp.square, grads)]
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(values)]).all()
    if not gan.shard_optimizer or jax.lax.axis_size(gan.axis) == 1:
        return finite
    # Each device has seen its share of the gradients alone.
    own = finite & (jax.lax.axis_index(gan.axis) >= 0)
    return jax.lax.psum(1 - own.astype(jnp.int32), gan.axis) == 0


def as_levels(gan: Gan, source: Array, target: Array) -> tuple[Array, Array]:
    """Stored images as floating levels 0..255."""
    levels = (
        to_levels(images, values, gan.dtype)
        for images, values in zip((source, target), gan.values, strict=True)
    )
    return next(levels), next(levels)


class Examples(NamedTuple):
    """What the networks get of a device's examples: `[b, h, w, c]`, and `[b]` keys of each."""

    source: Array
    target: Array
    dropout_keys: Array
    mix_keys: Array


def _examples(
    gan: Gan, state: TrainState, source: Array, target: Array, sizes: Array | None
) -> Examples:
    b = source.shape[0]
    key = jax.random.fold_in(state.key, state.step)
    positions = jax.lax.axis_index(gan.axis) * b + jnp.arange(b, dtype=jnp.int32)
    levels = as_levels(gan, source, target)
    pair = gan.task.encode(*gan.augment(example_keys(key, AUGMENT, positions), *levels, sizes))
    # What is augmented is small; each device does it whole, and keeps its band.
    pair = (banded(images, gan.spatial) for images in pair)
    return Examples(*pair, *(example_keys(key, purpose, positions) for purpose in (DROPOUT, MIX)))


def _averaged(gan: Gan, fn: Callable[[Examples], Gradients], examples: Examples) -> Gradients:
    """The mean of `fn` over parts of the examples; what it needs in between is there for one alone.

    As losses are means over examples and statistics those of groups, it is `fn` of all of them.

    Raises:
      ValueError: the examples are not so many equal parts.
    """
    n, b = gan.accumulate, examples.source.shape[0]
    if b % n:
        raise ValueError(f"accumulate={n} does not divide the {b} examples of a device")
    parts = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), examples)
    kinds = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], parts))
    zeros = _varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kinds), gan.axis)

    def add(sums: Gradients, part: Examples) -> tuple[Gradients, None]:
        return jax.tree.map(jnp.add, sums, fn(part)), None

    sums, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / n, sums)


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
    axis, shared = gan.axis, gan.axis if gan.shard_optimizer else None
    examples = _examples(gan, state, source, target, sizes)
    local_gen, local_disc = _own(state.gen, axis), _own(state.disc, axis)

    def translated(part: Examples) -> tuple[Array, Any, Tree]:
        def forward(params: Tree) -> tuple[Array, Tree]:
            variables = {"params": params, "stats": local_gen.stats}
            out, new = gan.generator.apply(
                variables, part.source, part.dropout_keys, mutable=["stats"]
            )
            return out, new.get("stats", {})

        return jax.vjp(gan.remat(forward), local_gen.params, has_aux=True)

    def judged(part: Examples, fake: Array, *_: Any) -> Gradients:
        pair = (part.source, part.target)
        fake = jax.lax.stop_gradient(fake)
        return discriminator_gradients(gan, local_disc, part.mix_keys, pair, fake, hyper)

    def taught(seen: NetState, part: Examples, fake: Array, pull: Any, stats: Tree) -> Gradients:
        pair = (part.source, part.target)
        parts, cotangent = generator_cotangent(gan, seen, pair, fake, hyper)
        return parts, pull(cotangent)[0], stats

    made = translated(examples) if gan.accumulate == 1 else None

    def over(fn: Callable[..., Gradients]) -> Gradients:
        if made:
            return fn(examples, *made)
        # Translated once for each network: what gradients need is too much to keep of all parts.
        return _averaged(gan, lambda part: fn(part, *translated(part)), examples)

    of_disc = disc_parts, grads, stats = _reduced(gan, over(judged))
    disc = _apply_gradients(state.disc, gan.disc_tx, grads, stats, hyper["disc_lr"], shared)

    seen = local_disc if gan.simultaneous else _own(disc, axis)
    of_gen = parts, grads, stats = _reduced(gan, over(functools.partial(taught, seen)))
    gen = _apply_gradients(state.gen, gan.gen_tx, grads, stats, hyper["gen_lr"], shared)

    ema = (
        jax.tree.map(
            lambda e, p: gan.ema_decay * e + (1 - gan.ema_decay) * p, state.ema, gen.params
        )
        if gan.ema_decay
        else {}
    )
    parts |= disc_parts
    losses = jnp.stack([parts[name.removeprefix("loss/")] for name in gan.metric_names])
    new = TrainState(state.step + 1, gen, disc, ema, state.key)
    if gan.skip_nonfinite:
        rates = [hyper[name] for name in RATES]
        sound = _sound(gan, rates, (of_disc, of_gen))
        old = state._replace(step=new.step)
        new = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)
        losses = jnp.where(sound, losses, jnp.nan)
    return new, losses
