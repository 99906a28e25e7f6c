"""Normalisation: over groups of examples, or within each example. Arrays are `[b, h, w, c]`."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from p2p_jax.models.conv import Array, Policy

NORMS = ("batch", "instance", "instance_affine", "group", "layer", "none")
CHANNEL_GROUPS = 32  # of group norm, or as many up to that as divide the channels


class Normal(NamedTuple):
    """Initialiser N(mean, stddev), drawn in 32 bits so that x64 does not change the draw."""

    mean: float
    stddev: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Draws an array."""
        drawn = jax.random.normal(key, shape, jnp.float32)
        return (self.mean + self.stddev * drawn).astype(dtype)


def norm_layer(style: Any, name: str) -> nn.Module:
    """The norm of a `layers.Style`, called with (x, running)."""
    options: Any = dict(
        policy=style.policy, eps=style.norm_eps, scale_std=style.norm_scale_std, name=name
    )
    if style.norm == "batch":
        return BatchNorm(style.norm_group, axis=style.axis, momentum=style.norm_momentum, **options)
    return {
        "instance": lambda: GroupNorm(0, affine=False, **options),
        "instance_affine": lambda: GroupNorm(0, **options),
        "group": lambda: GroupNorm(CHANNEL_GROUPS, **options),
        "layer": lambda: GroupNorm(1, **options),
    }[style.norm]()


class BatchNorm(nn.Module):
    """Batch normalisation with statistics per group of consecutive examples.

    With `group=1` every image is normalised by its own statistics: the paper's batch size 1, at any
    batch size. Ioffe and Szegedy 2015; eps and momentum as in PyTorch (0.1 there is 0.9 here).

    Attributes:
      group: examples per group; 0 is the whole batch, over all devices of `axis`.
      policy: how it computes; statistics are at least float32.
      axis: the mesh axis that splits the batch, needed by `group=0` alone.
      eps: added to the variance.
      momentum: share of the old running statistics that is kept.
      scale_std: deviation of the first scales from 1.
    """

    group: int
    policy: Policy
    axis: str | None = None
    eps: float = 1e-5
    momentum: float = 0.9
    scale_std: float = 0.02

    @nn.compact
    def __call__(self, x: Array, running: bool) -> Array:
        """Normalises `[b, h, w, c]`; `running` uses the stored statistics and updates nothing.

        Raises:
          ValueError: the batch is not a whole number of groups.
        """
        b, c = x.shape[0], x.shape[-1]
        param_dtype = self.policy.param_dtype
        scale = self.param("scale", Normal(1.0, self.scale_std), (c,), param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), param_dtype)
        mean_avg = self.variable("stats", "mean", jnp.zeros, (c,), param_dtype)
        var_avg = self.variable("stats", "var", jnp.ones, (c,), param_dtype)
        group = b if running else self.group or b
        if b % group:
            raise ValueError(f"norm_group={group} does not divide the {b} examples of a device")
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y.reshape(b // group, group, *x.shape[1:])
        if running:
            mean, var = (v.value.reshape(1, 1, 1, 1, c) for v in (mean_avg, var_avg))
        else:
            mean, var = self._statistics(y)
            if self.is_mutable_collection("stats") and not self.is_initializing():
                self._update(mean_avg, var_avg, mean, var, y)
        y = (y - mean) * lax.rsqrt(var + self.eps)
        y = y * scale.reshape(1, 1, 1, 1, c) + bias.reshape(1, 1, 1, 1, c)
        return y.reshape(x.shape).astype(x.dtype)

    @property
    def _across(self) -> str | None:
        """The mesh axis that statistics are averaged over, where they are."""
        return self.axis if self.group == 0 and not self.is_initializing() else None

    def _statistics(self, y: Array) -> tuple[Array, Array]:
        across = self._across

        def mean_of(value: Array) -> Array:
            value = value.mean((1, 2, 3), keepdims=True)
            return lax.pmean(value, across) if across else value

        mean = mean_of(y)
        return mean, mean_of(jnp.square(y - mean))

    def _update(self, mean_avg, var_avg, mean, var, y) -> None:
        """Moves the running statistics towards this batch's, averaged over its groups."""
        across = self._across
        count = y.shape[1] * y.shape[2] * y.shape[3] * (lax.axis_size(across) if across else 1)
        unbias = count / max(count - 1, 1)  # PyTorch stores the unbiased variance
        for avg, new in ((mean_avg, mean), (var_avg, var * unbias)):
            new = new.mean((0, 1, 2, 3)).astype(avg.value.dtype)
            avg.value = self.momentum * avg.value + (1 - self.momentum) * new


class GroupNorm(nn.Module):
    """Normalisation of each example over its pixels and groups of its channels.

    One channel a group is instance normalisation (Ulyanov et al. 2016), one group in all is layer
    normalisation over the image (Ba et al. 2016); between them stand Wu and He 2018. No result
    depends on other examples, so there are no running statistics.

    Attributes:
      groups: channel groups, or the largest number up to it that divides the channels; 0 is one
        group a channel.
      policy: how it computes; statistics are at least float32.
      affine: whether each channel has a scale and a bias.
      eps: added to the variance.
      scale_std: deviation of the first scales from 1.
    """

    groups: int
    policy: Policy
    affine: bool = True
    eps: float = 1e-5
    scale_std: float = 0.02

    @nn.compact
    def __call__(self, x: Array, running: bool) -> Array:
        """Normalises `[b, h, w, c]`; `running` changes nothing."""
        del running
        b, h, w, c = x.shape
        groups = _divisor(c, self.groups or c)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(b, h, w, groups, c // groups)
        mean = y.mean((1, 2, 4), keepdims=True)
        var = jnp.square(y - mean).mean((1, 2, 4), keepdims=True)
        y = ((y - mean) * lax.rsqrt(var + self.eps)).reshape(x.shape)
        if self.affine:
            param_dtype = self.policy.param_dtype
            scale = self.param("scale", Normal(1.0, self.scale_std), (c,), param_dtype)
            bias = self.param("bias", nn.initializers.zeros, (c,), param_dtype)
            y = y * scale.reshape(1, 1, 1, c) + bias.reshape(1, 1, 1, c)
        return y.astype(x.dtype)


def _divisor(channels: int, most: int) -> int:
    """The largest divisor of `channels` up to `most`."""
    return next(n for n in range(min(most, channels), 0, -1) if channels % n == 0)
