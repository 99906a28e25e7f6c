"""Convolutions in two forms that agree to rounding, and gradients that stay fast inside a loop.

Arrays are `[b, h, w, c]`. Kernels keep the plain layout `[kh, kw, in, out]` whatever form computes
them, so a checkpoint does not know which form trained it.

The 4x4 or 3x3 stride-2 convolution (padding 1) and its transpose have two forms:

* `plain`: one strided or dilated `lax.conv_general_dilated`, as every framework does it.
* `polyphase`: space-to-depth and a 2x2 convolution, or a 2x2 convolution and depth-to-space.
  XLA's CPU backend runs dilated convolutions, which are the plain form's gradients, on a slow path.

`grad="taps"` replaces XLA's gradient of a stride-1 convolution by one matrix product per kernel tap
(weights) and an ordinary convolution (input): inside a compiled loop XLA's CPU backend otherwise
computes these gradients some forty times slower.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMS = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How the networks compute: nothing here changes the mathematics beyond rounding.

    Attributes:
      dtype: of activations and products (`float32`, `bfloat16`, `float64`).
      param_dtype: of parameters and normalisation statistics.
      precision: of products, as `lax.Precision` names it (`highest` is full float32).
      form: `plain` or `polyphase`, for strided and transposed convolutions.
      grad: `xla`, or `taps` for the gradients that stay fast inside a loop on CPU.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "highest"
    form: str = "plain"
    grad: str = "xla"


def _conv(x: Array, w: Array, stride: int, padding: Padding, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=_DIMS, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_taps(x: Array, w: Array, padding: Padding, precision: str) -> Array:
    """Stride-1 convolution whose gradients avoid XLA's gradient convolutions."""
    return _conv(x, w, 1, padding, precision)


def _conv_taps_fwd(x, w, padding, precision):
    return _conv(x, w, 1, padding, precision), (x, w)


def _conv_taps_bwd(padding, precision, residuals, g):
    x, w = residuals
    kh, kw, c_in, c_out = w.shape
    (top, bottom), (left, right) = padding
    flipped = w[::-1, ::-1].swapaxes(2, 3)
    reach = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
    dx = _conv_taps(g, flipped, reach, precision)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    gh, gw = g.shape[1:3]
    flat_g = g.reshape(-1, c_out)
    taps = [
        jnp.matmul(
            padded[:, i : i + gh, j : j + gw].reshape(-1, c_in).T, flat_g, precision=precision
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return dx, jnp.stack(taps).reshape(w.shape)


_conv_taps.defvjp(_conv_taps_fwd, _conv_taps_bwd)


def conv(x: Array, w: Array, padding: Padding, policy: Policy) -> Array:
    """Stride-1 convolution of `[b, h, w, c]` with a `[kh, kw, c, o]` kernel.

    Args:
      x: input.
      w: kernel.
      padding: zeros before and after, per spatial axis.
      policy: the product's precision, and which gradients.

    Returns:
      `[b, h', w', o]`.
    """
    if policy.grad == "taps":
        return _conv_taps(x, w, padding, policy.precision)
    return _conv(x, w, 1, padding, policy.precision)


def _with_gradients_of(
    polyphase: Callable[[Array, Array, Policy], Array],
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Gives a plain form, where `grad="taps"`, the gradients of its polyphase twin."""

    def decorate(plain: Callable[[Array, Array, Policy], Array]) -> Callable[..., Array]:
        def backward(policy: Policy, residuals: tuple[Array, Array], g: Array):
            twin = dataclasses.replace(policy, form="polyphase")
            _, pull = jax.vjp(lambda x, w: polyphase(x, w, twin), *residuals)
            return pull(g)

        taps = jax.custom_vjp(plain, nondiff_argnums=(2,))
        taps.defvjp(lambda x, w, policy: (plain(x, w, policy), (x, w)), backward)
        return lambda x, w, policy: (taps if policy.grad == "taps" else plain)(x, w, policy)

    return decorate


def space_to_depth(x: Array) -> Array:
    """`[b, 2h, 2w, c]` to `[b, h, w, 4c]`, channels ordered (row, column, c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def depth_to_space(x: Array) -> Array:
    """`[b, h, w, 4c]` to `[b, 2h, 2w, c]`, the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def _as_4x4(w: Array) -> Array:
    """A 3x3 kernel as the 4x4 one that, at stride 2 and padding 1, does the same."""
    return w if w.shape[0] == 4 else jnp.pad(w, ((0, 1), (0, 1), (0, 0), (0, 0)))


def _phase_kernel(w: Array) -> Array:
    """A `[4, 4, c, o]` kernel as the `[2, 2, 4c, o]` kernel of the space-to-depth image."""
    c, o = w.shape[2:]
    return w.reshape(2, 2, 2, 2, c, o).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, o)


def conv_down(x: Array, w: Array, policy: Policy) -> Array:
    """4x4 or 3x3 convolution, stride 2, padding 1: halves the size.

    Args:
      x: `[b, h, w, c]`, at least 2x2. With a 4x4 kernel an odd size loses its last row or column,
        as in PyTorch; a 3x3 kernel wants even sizes.
      w: `[4, 4, c, o]` or `[3, 3, c, o]`.
      policy: form, precision and gradients.

    Returns:
      `[b, h // 2, w // 2, o]`.
    """
    if policy.form == "plain":
        return _plain_down(x, w, policy)
    # An odd size gets no padding behind: the window that would read it has no room.
    spatial = [(1, 1 - size % 2, 0) for size in x.shape[1:3]]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    return conv(space_to_depth(x), _phase_kernel(_as_4x4(w)), ((0, 0), (0, 0)), policy)


def conv_up(x: Array, w: Array, policy: Policy) -> Array:
    """4x4 or 3x3 transposed convolution, stride 2, padding 1: doubles the size.

    Args:
      x: `[b, h, w, c]`.
      w: `[4, 4, c, o]`, PyTorch's `ConvTranspose2d` weight transposed (2, 3, 0, 1) and unflipped:
        output row `2i + k - 1` receives input row `i` times kernel row `k`. Or `[3, 3, c, o]`, as
        there with an output padding of 1.
      policy: form, precision and gradients.

    Returns:
      `[b, 2h, 2w, o]`.
    """
    if policy.form == "plain":
        return _plain_up(x, w, policy)
    w = _as_4x4(w)
    c, o = w.shape[2:]
    # Kernel rows (0, 1) belong to input row i, rows (2, 3) to row i - 1; within a pair the first
    # row makes output row 2i - 1 and the second output row 2i.
    phases = w.reshape(2, 2, 2, 2, c, o)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    y = conv(x, phases.reshape(2, 2, c, 4 * o), ((1, 1), (1, 1)), policy)
    return depth_to_space(y)[:, 1:-1, 1:-1]


@_with_gradients_of(conv_down)
def _plain_down(x: Array, w: Array, policy: Policy) -> Array:
    return _conv(x, w, 2, ((1, 1), (1, 1)), policy.precision)


@_with_gradients_of(conv_up)
def _plain_up(x: Array, w: Array, policy: Policy) -> Array:
    before = w.shape[0] - 2
    return lax.conv_general_dilated(
        x,
        w[::-1, ::-1],
        (1, 1),
        ((before, 2), (before, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=_DIMS,
        precision=policy.precision,
    )


def upsample_conv(x: Array, w: Array, policy: Policy) -> Array:
    """Nearest-neighbour doubling, then a 3x3 convolution with padding 1.

    Args:
      x: `[b, h, w, c]`.
      w: `[3, 3, c, o]`.
      policy: form, precision and gradients.

    Returns:
      `[b, 2h, 2w, o]`.
    """
    if policy.form == "plain":
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv(x, w, ((1, 1), (1, 1)), policy)
    # An even output row reads input rows (i - 1, i, i), an odd one (i, i, i + 1): kernel rows that
    # meet the same input row add up. That makes exactly the 4x4 transposed kernel below.
    for axis in (0, 1):
        a, b, c = (lax.index_in_dim(w, k, axis, keepdims=True) for k in range(3))
        w = jnp.concatenate([c, b + c, a + b, a], axis)
    return conv_up(x, w, policy)


def bilinear_conv(x: Array, w: Array, policy: Policy) -> Array:
    """Bilinear doubling (half-pixel centres, edges repeated), then a 3x3 convolution of padding 1.

    Args:
      x: `[b, h, w, c]`.
      w: `[3, 3, c, o]`.
      policy: precision and gradients.

    Returns:
      `[b, 2h, 2w, o]`.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        edges = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(x, edges, mode="edge")
        before, after = (lax.slice_in_dim(wide, k, k + n, axis=axis) for k in (0, 2))
        x = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = x.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 2 :])
    return conv(x, w, ((1, 1), (1, 1)), policy)


def shuffle_conv(x: Array, w: Array, policy: Policy) -> Array:
    """3x3 convolution of padding 1 to four phases, then depth-to-space (Shi et al. 2016).

    Args:
      x: `[b, h, w, c]`.
      w: `[3, 3, c, 4o]`, its outputs ordered (row, column, o).
      policy: precision and gradients.

    Returns:
      `[b, 2h, 2w, o]`.
    """
    return depth_to_space(conv(x, w, ((1, 1), (1, 1)), policy))


def reflect_conv(x: Array, w: Array, policy: Policy) -> Array:
    """Stride-1 convolution with an odd kernel, the image mirrored about its outermost pixels.

    Args:
      x: `[b, h, w, c]`, larger than half the kernel.
      w: `[k, k, c, o]`.
      policy: precision and gradients.

    Returns:
      `[b, h, w, o]`.
    """
    reach = w.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return conv(x, w, ((0, 0), (0, 0)), policy)
