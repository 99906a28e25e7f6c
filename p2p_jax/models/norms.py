"""Normalisation: over groups of examples, or within each example. Arrays are `[b, h, w, c]`."""

from __future__ import annotations

import functools
import math
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


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Moments(NamedTuple):
    """Mean and variance of each group, at least float32; reduced axes have length 1."""

    mean: Array
    var: Array


class Axes(NamedTuple):
    """What is normalised together.

    Attributes:
      pixels: the axes, but for the first, that the parameters do not have.
      channels: those of a group's channels, which they do.
      across: a mesh axis that pixels are split over as well, or None.
    """

    pixels: tuple[int, ...]
    channels: tuple[int, ...] = ()
    across: str | None = None

    def mean(self, values: Array) -> Array:
        """Over all of them."""
        value = values.mean(self.pixels + self.channels, keepdims=True)
        return lax.pmean(value, self.across) if self.across else value


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalised(
    x: Array, scale: Array | None, bias: Array | None, eps: float, axes: Axes
) -> tuple[Array, Moments]:
    """Normalises by the mean and variance over some axes.

    The backward pass keeps the input alone, as it is stored, and computes the rest again: what a
    network's norms would keep otherwise is as much as all its activations, in float32.

    Args:
      x: `[n, ..., channels]`.
      scale: of the result; the shape of x with length 1 for n and the pixels. None: 1.
      bias: likewise; None with the scale: 0.
      eps: added to the variance.
      axes: of x.

    Returns:
      The result, like x, and the moments, which pass no gradient on.
    """
    return _computed(x, scale, bias, eps, axes)


def _computed(
    x: Array, scale: Array | None, bias: Array | None, eps: float, axes: Axes
) -> tuple[Array, Moments]:
    y = _wide(x)
    mean = axes.mean(y)
    var = axes.mean(jnp.square(y - mean))
    return _affine(y, mean, var, scale, bias, eps).astype(x.dtype), Moments(mean, var)


def _affine(
    y: Array, mean: Array, var: Array, scale: Array | None, bias: Array | None, eps: float
) -> Array:
    y = (y - mean) * lax.rsqrt(var + eps)
    return y if scale is None or bias is None else y * scale + bias


def _forward(x: Array, scale: Array | None, bias: Array | None, eps: float, axes: Axes):
    # Not `normalised`: second derivatives go through what is kept, which that passes none on to.
    y, moments = _computed(x, scale, bias, eps, axes)
    return (y, moments), (x, scale, moments)


def _backward(eps: float, axes: Axes, saved: Any, bars: tuple[Array, Moments]):
    x, scale, (mean, var) = saved
    bar, root = _wide(bars[0]), lax.rsqrt(var + eps)
    unit = (_wide(x) - mean) * root
    # Sums over pixels serve the parameters and, over each group's channels, the input.
    ones, units = (v.sum(axes.pixels, keepdims=True) for v in (bar, bar * unit))
    count = math.prod(x.shape[axis] for axis in axes.pixels + axes.channels)

    def scaled(values: Array) -> Array:
        return values if scale is None else values * scale

    def share(sums: Array) -> Array:
        value = scaled(sums).sum(axes.channels, keepdims=True) / count
        return lax.pmean(value, axes.across) if axes.across else value

    dx = (root * (scaled(bar) - share(ones) - unit * share(units))).astype(x.dtype)
    if scale is None:
        return dx, None, None
    dscale, dbias = (sums.sum(0, keepdims=True).astype(scale.dtype) for sums in (units, ones))
    return dx, dscale, dbias


normalised.defvjp(_forward, _backward)


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
        # Parameters do not depend on the one example that they are drawn with.
        group = b if running or self.is_initializing() else self.group or b
        if b % group:
            raise ValueError(f"norm_group={group} does not divide the {b} examples of a device")
        y = x.reshape(b // group, group, *x.shape[1:])
        scale, bias = (v.reshape(1, 1, 1, 1, c) for v in (scale, bias))
        if running:
            mean, var = (v.value.reshape(1, 1, 1, 1, c) for v in (mean_avg, var_avg))
            y = _affine(_wide(y), mean, var, scale, bias, self.eps)
            return y.reshape(x.shape).astype(x.dtype)
        # The mesh axis that statistics are averaged over, where they are.
        shared = self.group == 0 and self.axis is not None and not self.is_initializing()
        across = self.axis if shared and lax.axis_size(self.axis) > 1 else None
        made: Any = normalised(y, scale, bias, self.eps, Axes((1, 2, 3), across=across))
        y, (mean, var) = made
        if self.is_mutable_collection("stats") and not self.is_initializing():
            count = y[0, ..., 0].size * (lax.axis_size(across) if across else 1)
            unbias = count / max(count - 1, 1)  # PyTorch stores the unbiased variance
            for avg, new in ((mean_avg, mean), (var_avg, var * unbias)):
                # Moved towards this batch's, averaged over its groups.
                new = lax.stop_gradient(new).mean((0, 1, 2, 3)).astype(avg.value.dtype)
                avg.value = self.momentum * avg.value + (1 - self.momentum) * new
        return y.reshape(x.shape)


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
        groups, param_dtype = _divisor(c, self.groups or c), self.policy.param_dtype
        parameters: tuple[Array | None, Array | None] = (None, None)
        if self.affine:
            scale = self.param("scale", Normal(1.0, self.scale_std), (c,), param_dtype)
            bias = self.param("bias", nn.initializers.zeros, (c,), param_dtype)
            parameters = (
                scale.reshape(1, 1, 1, groups, c // groups),
                bias.reshape(1, 1, 1, groups, c // groups),
            )
        y = x.reshape(b, h, w, groups, c // groups)
        made: Any = normalised(y, *parameters, self.eps, Axes((1, 2), (4,)))
        return made[0].reshape(x.shape)


def _divisor(channels: int, most: int) -> int:
    """The largest divisor of `channels` up to `most`."""
    return next(n for n in range(min(most, channels), 0, -1) if channels % n == 0)
