"""What a training consists of: the static networks and losses, and the arrays that change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from p2p_jax import zero
from p2p_jax.augment import Augment
from p2p_jax.images import Values
from p2p_jax.losses import Adversarial
from p2p_jax.tasks import Task

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True)
class Gan:
    """All that is fixed while a run lasts; compiled programs close over it.

    Attributes:
      generator: called with (source, keys, running).
      discriminator: called with (source, image, running); gives, for each scale, what each of its
        layers makes, logits last.
      gen_tx: the generator's optimiser, without its rate.
      disc_tx: the discriminator's.
      adversarial: the pair of losses.
      reconstruction: names and losses of (fake, target).
      feature_matching: whether the discriminator's layers are compared on fake and real.
      simultaneous: whether the generator's loss is seen through the discriminator from before its
        update.
      augment: where a pair is cut out of what is stored.
      task: what of it the networks see.
      ema_decay: of the generator's averaged parameters; 0 keeps none.
      dtype: of images and losses inside the step, and of parameters.
      axis: the mesh axis that splits the batch.
      spatial: the mesh axis over which devices share images, or None; see `models.bands`.
      values: what the stored numbers of source and target mean.
      accumulate: parts of a device's examples that are computed one after another.
      remat: makes of a function one that keeps less for its gradients and computes it again.
      skip_nonfinite: whether an update of which something is not finite leaves all but the step as
        it was; its losses are all NaN then.
      shard_optimizer: whether each device keeps a share of the optimisers' state; see `zero`.
    """

    generator: nn.Module
    discriminator: nn.Module
    gen_tx: optax.GradientTransformation
    disc_tx: optax.GradientTransformation
    adversarial: Adversarial
    reconstruction: tuple[tuple[str, Any], ...]
    feature_matching: bool
    simultaneous: bool
    augment: Augment
    task: Task
    ema_decay: float
    dtype: str
    axis: str
    spatial: str | None = None
    values: tuple[Values, Values] = (Values(), Values())
    accumulate: int = 1
    remat: Callable[[Callable], Callable] = lambda fn: fn
    skip_nonfinite: bool = False
    shard_optimizer: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what a step reports, in the order of its columns."""
        return (
            "loss/disc",
            *["loss/disc_penalty"] * self.adversarial.penalty,
            "loss/gen_gan",
            *["loss/gen_feature_matching"] * self.feature_matching,
            *(f"loss/gen_{name}" for name, _ in self.reconstruction),
        )


class NetState(NamedTuple):
    """One network: parameters, running statistics of its norms, optimiser state."""

    params: Tree
    stats: Tree
    opt_state: Tree


class TrainState(NamedTuple):
    """Everything that training changes; arrays only.

    Attributes:
      step: int32 scalar, updates done.
      gen: the generator.
      disc: the discriminator.
      ema: averaged parameters of the generator, or an empty dict.
      key: the run's typed threefry key; never changes.
    """

    step: Array
    gen: NetState
    disc: NetState
    ema: Tree
    key: Array


def init(gan: Gan, seed: int) -> TrainState:
    """Draws a fresh state; a function of the seed alone."""
    key = jax.random.key(seed, impl="threefry2x32")
    gen_key, disc_key = jax.random.split(jax.random.fold_in(key, 0))
    h, w = gan.augment.crop_size
    source = jnp.zeros((1, h, w, gan.task.channels[0]), gan.dtype)
    target = jnp.zeros((1, h, w, gan.task.channels[1]), gan.dtype)
    gen = _net(gan.generator.init(gen_key, source), gan.gen_tx)
    disc = _net(gan.discriminator.init(disc_key, source, target), gan.disc_tx)
    # Copies: one buffer must not be donated twice.
    ema = jax.tree.map(jnp.copy, gen.params) if gan.ema_decay else {}
    return TrainState(jnp.zeros((), jnp.int32), gen, disc, ema, key)


def specs(gan: Gan, parts: int) -> TrainState:
    """How each array of a state is split over `gan.axis`, which has so many parts."""
    like: TrainState = jax.eval_shape(lambda: init(gan, 0))

    def of(net: NetState) -> Any:
        whole = jax.tree.map(lambda _: P(), net)
        split = zero.optimiser_specs(net.opt_state, net.params, gan.axis, parts)
        return whole._replace(opt_state=split) if gan.shard_optimizer else whole

    whole = jax.tree.map(lambda _: P(), like)
    return whole._replace(gen=of(like.gen), disc=of(like.disc))


def _net(variables: Any, tx: optax.GradientTransformation) -> NetState:
    return NetState(variables["params"], variables.get("stats", {}), tx.init(variables["params"]))


def count(params: Tree) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
