"""Layers shared by all networks: convolution modules, grouped normalisation, keyed dropout.

Arrays are `[b, h, w, c]`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from p2p_jax.models.conv import Array, Policy, conv, conv_down, conv_up, upsample_conv


@dataclasses.dataclass(frozen=True)
class GeneratorOptions:
    """What a config says of a generator; the keys are explained in `config.base`."""

    name: str
    depth: int
    base_features: int
    features: tuple[int, ...]
    upsample: str
    norm: str
    norm_group: int
    bias: str
    skips: bool
    dropout: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DiscriminatorOptions:
    """What a config says of a discriminator; the keys are explained in `config.base`."""

    name: str
    layers: int
    base_features: int
    norm: str
    norm_group: int


class Conv(nn.Module):
    """A convolution, stride 1 or 4x4 stride 2, or one of the two ways to double the size.

    Attributes:
      features: output channels.
      kind: `conv` (4x4, stride 1, padding 1), `down` (4x4, stride 2), `up` (4x4 transposed,
        stride 2), `nearest` (nearest-neighbour doubling and a 3x3 convolution).
      bias: whether a bias is added; zero at first.
      policy: how it computes.
    """

    features: int
    kind: str
    bias: bool
    policy: Policy

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` to `[b, h', w', features]`."""
        policy, dtype = self.policy, jnp.dtype(self.policy.dtype)
        size = 3 if self.kind == "nearest" else 4
        kernel = self.param(
            "kernel", normal(0.02), (size, size, x.shape[-1], self.features), policy.param_dtype
        )
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if self.kind == "conv":
            y = conv(x, kernel, ((1, 1), (1, 1)), policy)
        else:
            fn = {"down": conv_down, "up": conv_up, "nearest": upsample_conv}[self.kind]
            y = fn(x, kernel, policy)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), policy.param_dtype)
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
        return y


def normal(stddev: float, mean: float = 0.0) -> Any:
    """Initialiser N(mean, stddev), drawn in 32 bits so that x64 does not change the draw."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return (mean + stddev * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


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
    """

    group: int
    policy: Policy
    axis: str | None = None
    eps: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, running: bool) -> Array:
        """Normalises `[b, h, w, c]`; `running` uses the stored statistics and updates nothing.

        Raises:
          ValueError: the batch is not a whole number of groups.
        """
        b, c = x.shape[0], x.shape[-1]
        param_dtype = self.policy.param_dtype
        scale = self.param("scale", normal(0.02, mean=1.0), (c,), param_dtype)
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


def dropout(x: Array, keys: Array | None, index: int, rate: float = 0.5) -> Array:
    """Zeroes elements of `[b, h, w, c]` with probability `rate`, scaling the rest by 1/(1 - rate).

    Args:
      x: activations.
      keys: `[b]` typed keys, one per example, so that a mask does not depend on how the batch is
        laid out over devices; None leaves `x` alone.
      index: which dropout layer of the network this is.
      rate: probability of zero.

    Returns:
      `[b, h, w, c]`.
    """
    if keys is None or rate == 0:
        return x
    threshold = jnp.uint32(round(rate * 2**32))

    def kept(key: Array) -> Array:
        bits = jax.random.bits(jax.random.fold_in(key, index), x.shape[1:], jnp.uint32)
        return bits >= threshold

    return jnp.where(jax.vmap(kept)(keys), x / (1 - rate), jnp.zeros((), x.dtype))


class ConvNorm(nn.Module):
    """A convolution and, unless `norm` is `none`, its normalisation.

    Attributes:
      features: output channels.
      kind: see `Conv`.
      bias: whether the convolution has a bias.
      norm: `batch` or `none`.
      norm_group: see `BatchNorm.group`.
      policy: how it computes.
      axis: the mesh axis that splits the batch.
    """

    features: int
    kind: str
    bias: bool
    norm: str
    norm_group: int
    policy: Policy
    axis: str | None

    @nn.compact
    def __call__(self, x: Array, running: bool) -> Array:
        """`[b, h, w, c]` to `[b, h', w', features]`."""
        x = Conv(self.features, self.kind, self.bias, self.policy, name="conv")(x)
        if self.norm == "batch":
            x = BatchNorm(self.norm_group, self.policy, self.axis, name="norm")(x, running)
        return x
