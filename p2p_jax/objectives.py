"""What each network minimises, and the gradient of it; on one device's examples.

Losses are Isola et al. 2017, section 3.1, and those that later work put in their place.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from p2p_jax.losses import RECONSTRUCTION, feature_matching, gradient_penalty
from p2p_jax.state import Gan, NetState

Array = jax.Array
Tree = Any

# Columns of the array that holds what may change from step to step without compiling anew.
RATES = ("gen_lr", "disc_lr")
WEIGHTS = ("disc", "gan", "gradient_penalty", "feature_matching", *RECONSTRUCTION)
HYPER = (*RATES, *WEIGHTS)


def _sum(values: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, values)


def _judge(gan: Gan, disc: NetState, source: Array, image: Array) -> tuple[Any, Tree]:
    """What the discriminator makes of images, and the statistics that this leaves."""
    out, new = gan.discriminator.apply(
        {"params": disc.params, "stats": disc.stats}, source, image, mutable=["stats"]
    )
    return out, new.get("stats", {})


def discriminator_gradients(
    gan: Gan,
    disc: NetState,
    keys: Array,
    pair: tuple[Array, Array],
    fake: Array,
    hyper: dict[str, Array],
) -> tuple[dict[str, Array], Tree, Tree]:
    """Losses, gradients and statistics of the discriminator on one device's examples.

    Args:
      gan: the networks.
      disc: the discriminator before its update.
      keys: `[b]`, for the places between real and fake where a gradient penalty is taken.
      pair: source and target, `[b, h, w, c]` in [-1, 1] each.
      fake: like target; no gradient flows into it.
      hyper: scalars by name; see `HYPER`.

    Returns:
      The unweighted losses by name, the gradients of their weighted sum, and the new running
      statistics. Losses of several scales are added up.
    """
    source, target = pair

    def loss_fn(params: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        net = disc._replace(params=params)
        on_fake, stats = _judge(gan, net, source, fake)
        on_real, stats = _judge(gan, net._replace(stats=stats), source, target)
        scales = zip(on_real, on_fake, strict=True)
        parts = {"disc": _sum(gan.adversarial.disc(real[-1], fake[-1]) for real, fake in scales)}
        total = parts["disc"]
        if gan.adversarial.penalty:
            parts["disc_penalty"] = _penalty(gan, net, keys, pair, fake)
            total = total + hyper["gradient_penalty"] * parts["disc_penalty"]
        return hyper["disc"] * total, (parts, stats)

    grads, (parts, stats) = jax.grad(gan.remat(loss_fn), has_aux=True)(disc.params)
    return parts, grads, stats


def _penalty(
    gan: Gan, disc: NetState, keys: Array, pair: tuple[Array, Array], fake: Array
) -> Array:
    """The gradient penalty (Gulrajani et al. 2017) at a random place between real and fake.

    The gradient is with respect to the image, of the sum of all logits of all scales.
    """
    source, target = pair
    share = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1), jnp.float32))(keys)
    share = share.astype(target.dtype)
    between = share * target + (1 - share) * fake

    def total(image: Array) -> Array:
        scales, _ = _judge(gan, disc, source, image)
        return _sum(maps[-1].sum() for maps in scales)

    return gradient_penalty(jax.grad(total)(between))


def generator_cotangent(
    gan: Gan, disc: NetState, pair: tuple[Array, Array], fake: Array, hyper: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    """Losses of the generator, and the gradient of their weighted sum with respect to its output.

    Args:
      gan: the networks.
      disc: the discriminator that the generator sees.
      pair: source and target, `[b, h, w, c]` in [-1, 1] each.
      fake: like target.
      hyper: scalars by name; see `HYPER`.

    Returns:
      The unweighted losses by name, and the gradient, shaped like fake. Adversarial losses of
      several scales are added up.
    """
    source, target = pair

    def loss_fn(fake: Array) -> tuple[Array, dict[str, Array]]:
        # The statistics that these passes would leave are dropped: they belong to the update.
        on_fake, _ = _judge(gan, disc, source, fake)
        parts = {"gan": _sum(gan.adversarial.gen(maps[-1]) for maps in on_fake)}
        if gan.feature_matching:
            on_real, _ = _judge(gan, disc, source, target)
            parts["feature_matching"] = feature_matching(on_fake, on_real)
        parts |= {name: fn(fake, target) for name, fn in gan.reconstruction}
        total = _sum(hyper[name] * value for name, value in parts.items())
        return total, {f"gen_{name}": value for name, value in parts.items()}

    cotangent, parts = jax.grad(gan.remat(loss_fn), has_aux=True)(fake)
    return parts, cotangent
