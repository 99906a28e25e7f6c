"""Convolutions in three forms that agree to rounding, and gradients that stay fast inside a loop.

Arrays are `[b, h, w, c]`. Kernels keep the plain layout `[kh, kw, in, out]` whatever form computes
them, so a checkpoint does not know which form trained it.

* `plain`: one strided or dilated `lax.conv_general_dilated`, as every framework does it.
* `polyphase`: for the 4x4 or 3x3 stride-2 convolution (padding 1) and its transpose, space-to-depth
  and a 2x2 convolution, or a 2x2 convolution and depth-to-space.
* `products`: matrix products where they are faster; see `products`.

`grad="products"` gives the first two the gradients of the third: inside a compiled loop XLA's CPU
backend otherwise computes gradients of convolutions some forty times slower.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from p2p_jax.models.products import Geometry, correlate, gather, lift

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

FORMS = ("plain", "polyphase", "products")
_DIMS = ("NHWC", "HWIO", "NHWC")
_ONE = ((1, 1), (1, 1))


@dataclasses.dataclass(frozen=True)
class Policy:
    """How the networks compute: nothing here changes the mathematics beyond rounding.

    Attributes:
      dtype: of activations and products (`float32`, `bfloat16`, `float64`).
      param_dtype: of parameters and normalisation statistics.
      precision: of products, as `lax.Precision` names it (`highest` is full float32).
      form: of the convolutions, one of `FORMS`.
      grad: of theirs: `xla`, or `products`, which `form="products"` always has.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str = "highest"
    form: str = "plain"
    grad: str = "xla"


def policy_for(platform: str, precision: str, form: str = "auto") -> Policy:
    """The policy of a run.

    Args:
      platform: `cpu`, `gpu`, `tpu`, as JAX names it.
      precision: `float32`, `tf32`, `bfloat16` or `float64`.
      form: one of `FORMS`, or `auto`: what is fastest there.
    """
    dtype = precision if precision in ("float64", "bfloat16") else "float32"
    if form == "auto":
        form = "products" if platform == "cpu" else "plain"
    return Policy(
        dtype=dtype,
        param_dtype="float64" if precision == "float64" else "float32",
        precision={"tf32": "high", "bfloat16": "default"}.get(precision, "highest"),
        form=form,
        grad="products" if platform == "cpu" else "xla",
    )


Way = Any  # (x, w, geometry) to an array; differentiable, which its type would not say


def _xla_gather(x: Array, w: Array, g: Geometry) -> Array:
    strides = (g.stride, g.stride)
    return lax.conv_general_dilated(
        x, w, strides, g.padding, dimension_numbers=_DIMS, precision=g.precision
    )


def _chosen(form: Way, products: Way, x: Array, w: Array, g: Geometry, policy: Policy) -> Array:
    """The form that the policy wants, with the gradients that it wants."""
    if policy.form == "products":
        return products(x, w, g)
    if policy.grad == "xla":
        return form(x, w, g)
    return _with_products_gradients(form, products, g, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_products_gradients(form: Way, products: Way, g: Geometry, x: Array, w: Array) -> Array:
    del products
    return form(x, w, g)


def _forward(form: Way, products: Way, g: Geometry, x: Array, w: Array):
    del products
    return form(x, w, g), (x, w)


def _backward(form: Way, products: Way, g: Geometry, saved: tuple[Array, Array], bar: Array):
    del form
    x, w = saved
    if products is gather:
        return lift(bar, w, g), correlate(x, bar, g)
    return gather(bar, w, g), correlate(bar, x, g)


_with_products_gradients.defvjp(_forward, _backward)


def conv(x: Array, w: Array, padding: Padding, policy: Policy) -> Array:
    """Stride-1 convolution of `[b, h, w, c]` with a `[k, k, c, o]` kernel.

    Args:
      x: input.
      w: kernel.
      padding: zeros before and after, per spatial axis.
      policy: form, precision and gradients.

    Returns:
      `[b, h', w', o]`.
    """
    g = Geometry(w.shape[0], 1, padding, (x.shape[1], x.shape[2]), False, policy.precision)
    return _chosen(_xla_gather, gather, x, w, g, policy)


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
    g = Geometry(w.shape[0], 2, _ONE, (x.shape[1], x.shape[2]), False, policy.precision)
    form = _polyphase_down if policy.form == "polyphase" else _xla_gather
    return _chosen(form, gather, x, w, g, policy)


def _polyphase_down(x: Array, w: Array, g: Geometry) -> Array:
    # An odd size gets no padding behind: the window that would read it has no room.
    spatial = [(1, 1 - size % 2, 0) for size in x.shape[1:3]]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    none = dataclasses.replace(g, stride=1, padding=((0, 0), (0, 0)))
    return _xla_gather(space_to_depth(x), _phase_kernel(_as_4x4(w)), none)


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
    size = (2 * x.shape[1], 2 * x.shape[2])
    g = Geometry(w.shape[0], 2, _ONE, size, True, policy.precision)
    form = _polyphase_up if policy.form == "polyphase" else _plain_up
    return _chosen(form, lift, x, w, g, policy)


def _polyphase_up(x: Array, w: Array, g: Geometry) -> Array:
    w = _as_4x4(w)
    c, o = w.shape[2:]
    # Kernel rows (0, 1) belong to input row i, rows (2, 3) to row i - 1; within a pair the first
    # row makes output row 2i - 1 and the second output row 2i.
    phases = w.reshape(2, 2, 2, 2, c, o)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    at_once = dataclasses.replace(g, stride=1)
    y = _xla_gather(x, phases.reshape(2, 2, c, 4 * o), at_once)
    return depth_to_space(y)[:, 1:-1, 1:-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _plain_up(x: Array, w: Array, g: Geometry) -> Array:
    before = w.shape[0] - 2
    return lax.conv_general_dilated(
        x,
        w[::-1, ::-1],
        (1, 1),
        ((before, 2), (before, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=_DIMS,
        precision=g.precision,
    )


def _plain_up_back(g: Geometry, saved: tuple[Array, Array], bar: Array):
    """The gradients as those of the strided convolution that this is the transpose of.

    Left to itself, the kernel's gradient comes out mirrored, and XLA for TPU turns activations
    round rather than kernels.
    """
    x, w = saved
    dx, pull = jax.vjp(lambda k: _xla_gather(bar, k, g), w.swapaxes(2, 3))
    (dw,) = pull(x)
    return dx, dw.swapaxes(2, 3)


_plain_up.defvjp(lambda x, w, g: (_plain_up(x, w, g), (x, w)), _plain_up_back)


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
        return conv(x, w, _ONE, policy)
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
      policy: form, precision and gradients.

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
    return conv(x, w, _ONE, policy)


def shuffle_conv(x: Array, w: Array, policy: Policy) -> Array:
    """3x3 convolution of padding 1 to four phases, then depth-to-space (Shi et al. 2016).

    Args:
      x: `[b, h, w, c]`.
      w: `[3, 3, c, 4o]`, its outputs ordered (row, column, o).
      policy: form, precision and gradients.

    Returns:
      `[b, 2h, 2w, o]`.
    """
    return depth_to_space(conv(x, w, _ONE, policy))


def reflect_conv(x: Array, w: Array, policy: Policy) -> Array:
    """Stride-1 convolution with an odd kernel, the image mirrored about its outermost pixels.

    Args:
      x: `[b, h, w, c]`, larger than half the kernel.
      w: `[k, k, c, o]`.
      policy: form, precision and gradients.

    Returns:
      `[b, h, w, o]`.
    """
    reach = w.shape[0] // 2
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return conv(x, w, ((0, 0), (0, 0)), policy)
