"""Layers shared by all networks: convolution modules, dropout and noise by keys.

Arrays are `[b, h, w, c]`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from p2p_jax.models import conv as convs
from p2p_jax.models.bands import convolved
from p2p_jax.models.conv import Array, Policy
from p2p_jax.models.norms import Normal, norm_layer


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common; the keys are explained in `config.base`.

    Attributes:
      policy: how they compute.
      axis: the mesh axis that splits the batch.
      norm: `batch`, `instance`, `instance_affine`, `group`, `layer` or `none`.
      norm_group: examples that share the statistics of `batch`; 0 is the whole batch.
      norm_eps: added to variances.
      norm_momentum: share of the old running statistics of `batch` that is kept.
      norm_scale_std: deviation of the first scales from 1.
      bias: which convolutions have one; see `biased`.
      slope: of LeakyReLU below zero.
      init: how the first kernels are drawn; see `kernel_init`.
      init_gain: their scale.
      spectral: kernels are divided by their largest singular value.
      output: what a generator ends in, a key of `OUTPUTS`.
      spatial: the mesh axis over which devices share images, or None; see `bands`.
    """

    policy: Policy
    axis: str | None = None
    norm: str = "batch"
    norm_group: int = 1
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9
    norm_scale_std: float = 0.02
    bias: str = "auto"
    slope: float = 0.2
    init: str = "normal"
    init_gain: float = 0.02
    spectral: bool = False
    output: str = "tanh"
    spatial: str | None = None

    def but(self, **changes) -> Style:
        """The same with other values."""
        return dataclasses.replace(self, **changes)

    def settled(self, bias: str) -> Style:
        """The same with `auto` settled: `bias`, or `all` with instance norm, as in the reference.

        Instance norm without parameters takes every constant out, so only there does the reference
        give biases to convolutions that a norm follows.
        """
        if self.bias != "auto":
            return self
        return self.but(bias="all" if self.norm == "instance" else bias)


def biased(style: Style, normed: bool, first: bool = False, last: bool = False) -> bool:
    """Whether a convolution has a bias.

    Args:
      style: its `bias` is `all`, `first`, `last`, `ends` (both), or `unnormed`: where no norm
        follows.
      normed: whether a norm follows.
      first: it is the network's first.
      last: it is its last.
    """
    return {
        "all": True,
        "first": first,
        "last": last,
        "ends": first or last,
        "unnormed": not normed,
    }[style.bias]


def finished(x: Array, style: Style) -> Array:
    """What a generator's last convolution made as its image, in at least float32."""
    return OUTPUTS[style.output](x.astype(jnp.promote_types(x.dtype, jnp.float32)))


# [-1, 1], or a probability for each channel.
OUTPUTS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "softmax": nn.softmax}

# What is kept of a network for its gradients: all that they need, or what convolutions make alone,
# from which norms, activations and dropout are computed again (Chen et al. 2016, section 4).
_MADE = "made by a convolution"
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda fn: fn,
    "activations": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_MADE)
    ),
}

BIASES = ("auto", "all", "first", "last", "ends", "unnormed")


class Kind(NamedTuple):
    """A way to convolve.

    Attributes:
      size: of the square kernel.
      fn: of (x, kernel, policy).
      phases: outputs of the kernel for each feature.
      transposed: whether the kernel spreads an input, rather than gathers an output.
    """

    size: int
    fn: Callable[[Array, Array, Policy], Array]
    phases: int = 1
    transposed: bool = False


KINDS = {
    "conv": Kind(4, lambda x, w, policy: convs.conv(x, w, ((1, 1), (1, 1)), policy)),
    "point": Kind(1, lambda x, w, policy: convs.conv(x, w, ((0, 0), (0, 0)), policy)),
    "reflect3": Kind(3, convs.reflect_conv),
    "reflect7": Kind(7, convs.reflect_conv),
    "down": Kind(4, convs.conv_down),
    "down3": Kind(3, convs.conv_down),
    "up": Kind(4, convs.conv_up, transposed=True),
    "up3": Kind(3, convs.conv_up, transposed=True),
    "nearest": Kind(3, convs.upsample_conv),
    "bilinear": Kind(3, convs.bilinear_conv),
    "pixel_shuffle": Kind(3, convs.shuffle_conv, phases=4),
}


class Conv(nn.Module):
    """A convolution.

    Attributes:
      features: output channels.
      kind: `conv` (4x4, stride 1, padding 1), `point` (1x1), `reflect3`, `reflect7` (stride 1, the
        image mirrored at its border), `down`, `down3` (4x4 or 3x3, stride 2), or one that doubles
        the size: `up`, `up3` (transposed), `nearest`, `bilinear`, `pixel_shuffle` (each 3x3).
      bias: whether a bias is added; zero at first.
      style: how it computes and is drawn.
    """

    features: int
    kind: str
    bias: bool
    style: Style

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` to `[b, h', w', features]`."""
        policy, kind = self.style.policy, KINDS[self.kind]
        dtype = jnp.dtype(policy.dtype)
        shape = (kind.size, kind.size, x.shape[-1], kind.phases * self.features)
        kernel = self.param(
            "kernel", kernel_init(self.style, kind.transposed), shape, policy.param_dtype
        )
        if self.style.spectral:
            kernel = kernel / self._largest_singular_value(kernel)
        y = convolved(
            lambda x, w: kind.fn(x, w, policy),
            x.astype(dtype),
            kernel.astype(dtype),
            self.style.spatial,
        )
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), policy.param_dtype)
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
        return y

    def _largest_singular_value(self, kernel: Array) -> Array:
        """An estimate by one round of the power method a pass (Miyato et al. 2018, algorithm 1)."""

        def unit(vector: Array) -> Array:
            return vector / jnp.maximum(jnp.sqrt(jnp.sum(vector * vector)), 1e-12)

        def first() -> Array:
            drawn = jax.random.normal(self.make_rng("params"), kernel.shape[-1:], jnp.float32)
            return unit(drawn.astype(kernel.dtype))

        left = self.variable("stats", "left", first)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        fixed = jax.lax.stop_gradient(matrix)
        right = unit(_product(fixed, left.value))
        new = unit(_product(fixed.T, right))
        if self.is_mutable_collection("stats") and not self.is_initializing():
            left.value = new
        return jnp.sum(new * _product(matrix.T, right))


def _product(matrix: Array, vector: Array) -> Array:
    return jnp.matmul(matrix, vector, precision="highest")


def kernel_init(style: Style, transposed: bool) -> Callable[..., Array]:
    """Draws kernels `[kh, kw, in, out]`, in 32 bits so that x64 does not change the draw.

    `normal` is N(0, gain); `xavier` (Glorot and Bengio 2010) and `orthogonal` (Saxe et al. 2014)
    are scaled by the gain; `kaiming` (He et al. 2015) takes none. Transposed kernels count their
    outputs as inputs, as the reference does.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
        area = shape[0] * shape[1]
        fan_in, fan_out = shape[2] * area, shape[3] * area
        if transposed:
            fan_in, fan_out = fan_out, fan_in
        if style.init == "orthogonal":
            draw = nn.initializers.orthogonal(style.init_gain, column_axis=2 if transposed else 3)
            return draw(key, shape, jnp.float32).astype(dtype)
        stddev = {
            "normal": style.init_gain,
            "xavier": style.init_gain * math.sqrt(2 / (fan_in + fan_out)),
            "kaiming": math.sqrt(2 / fan_in),
        }[style.init]
        return Normal(0.0, stddev)(key, shape, dtype)

    return init


INITIALISERS = ("normal", "xavier", "kaiming", "orthogonal")


class ConvNorm(nn.Module):
    """A convolution and, where wanted, its normalisation.

    Attributes:
      features: output channels.
      kind: see `Conv`.
      style: see `Style`.
      normed: whether the style's norm follows, if it has one.
      first: the convolution is the network's first.
      last: it is its last.
    """

    features: int
    kind: str
    style: Style
    normed: bool = True
    first: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, x: Array, running: bool) -> Array:
        """`[b, h, w, c]` to `[b, h', w', features]`."""
        normed = self.normed and self.style.norm != "none"
        bias = biased(self.style, normed, self.first, self.last)
        x = Conv(self.features, self.kind, bias, self.style, name="conv")(x)
        x = checkpoint_name(x, _MADE)
        return norm_layer(self.style, name="norm")(x, running) if normed else x


def leaky_relu(x: Array, slope: float) -> Array:
    """LeakyReLU, `slope` in [0, 1] below zero; like PyTorch's, the gradient at zero is `slope`.

    Its gradient is told from what it gives, which the next convolution keeps as well, so that what
    it is given need not be kept beside it.
    """
    made: Any = _leaky_relu(x, slope)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _leaky_relu(x: Array, slope: float) -> Array:
    return jnp.where(x > 0, x, x * slope)


def _leaky_relu_forward(x: Array, slope: float) -> tuple[Array, Array]:
    y = leaky_relu(x, slope)
    return y, y


def _leaky_relu_backward(slope: float, y: Array, bar: Array) -> tuple[Array]:
    return (jnp.where(y > 0, bar, bar * slope),)


_leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


def dropout(x: Array, keys: Array | None, index: int, rate: float = 0.5) -> Array:
    """Zeroes elements of `[b, h, w, c]` with probability `rate`, scaling the rest by 1/(1 - rate).

    Args:
      x: activations.
      keys: `[b]` typed keys, one per example, so that a mask does not depend on how the batch is
        laid out over devices; None leaves `x` alone.
      index: which dropout layer of the network this is, from 1.
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


def with_noise(x: Array, keys: Array | None, channels: int) -> Array:
    """Appends `channels` of Gaussian noise N(0, 1) to `[b, h, w, c]`.

    Args:
      x: images.
      keys: `[b]` typed keys, as for `dropout`; without them the noise is its mean, zero.
      channels: how many; 0 leaves `x` alone.

    Returns:
      `[b, h, w, c + channels]`.
    """
    if not channels:
        return x
    shape = (*x.shape[1:3], channels)
    if keys is None:
        noise = jnp.zeros((x.shape[0], *shape), x.dtype)
    else:
        # The index that no dropout layer has.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    return jnp.concatenate([x, noise.astype(x.dtype)], -1)
