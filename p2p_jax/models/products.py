"""Convolutions and their gradients as matrix products, in the way that suits their shape.

A convolution relates three arrays: a fine grid `x` `[b, H, W, c]`, a coarse grid `y`
`[b, h, w, o]` and a kernel `k` `[size, size, c, o]` (or `[size, size, o, c]`), through one sum,
linear in each:

    sum over b, h, w, i, j, c, o of x[b, s h + i, s w + j, c] k[i, j, c, o] y[b, h, w, o]

Its derivative by `y` is the convolution (`gather`), by `x` the transposed convolution (`lift`), by
`k` the weight gradient (`correlate`). So each is a gradient of the others, and all derivatives, to
any order, are these three again.

They are for XLA's CPU backend, which computes gradients of convolutions on a naive path inside a
loop, and transposes the whole kernel for small images, where that is most of the work. The
thresholds were measured on two cores with jax 0.10.2 and 0.12; see docs/performance.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMS = ("NHWC", "HWIO", "NHWC")
# Rows of the coarse grid, over the batch, up to which one large product beats a convolution: there
# the time goes into rearranging the kernel, which a product reads where it lies.
_FEW = 256
_VERY_FEW = 64  # the same, for kernel gradients that would have to be rearranged themselves
_SOME = 1024  # the same, for transposed convolutions whose kernel lies as a product wants it,
_THIN = 8  # and with so many channels at least, as a product over one is none
_NARROW = 256  # columns of a product that are few
_WHOLE = 1024  # rows of one image from which kernel gradients go image by image
_LARGE = 2**22  # elements of a kernel that it does not pay to rearrange
_CHUNKS = 8  # of a batch, at most, whose kernel gradients are added up


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What is fixed of a convolution.

    Attributes:
      kernel: its height and width.
      stride: of the windows on the fine grid.
      padding: zeros before and after the fine grid, per spatial axis.
      size: (height, width) of the fine grid.
      coarse_first: the kernel is `[size, size, o, c]`: that of a transposed convolution.
      precision: of products, as `lax.Precision` names it.
    """

    kernel: int
    stride: int
    padding: Padding
    size: tuple[int, int]
    coarse_first: bool
    precision: str

    def __post_init__(self) -> None:
        """Checks that the windows leave nothing out.

        Raises:
          ValueError: a kernel that the stride does not suit.
        """
        if self.stride != 1 and (self.stride != 2 or self.kernel not in (3, 4)):
            raise ValueError(
                f"stride {self.stride} with a {self.kernel}x{self.kernel} kernel: only stride 1, "
                "or 2 with 3x3 or 4x4, is known"
            )

    @property
    def coarse(self) -> tuple[int, int]:
        """(height, width) of the coarse grid; windows that would not fit are left out."""
        h, w = (
            (n + sum(pads) - self.kernel) // self.stride + 1
            for n, pads in zip(self.size, self.padding, strict=True)
        )
        return h, w

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Row and column of each element of the kernel."""
        return [(i, j) for i in range(self.kernel) for j in range(self.kernel)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gather(x: Array, k: Array, g: Geometry) -> Array:
    """The convolution of the fine grid `[b, H, W, c]`: the coarse one `[b, h, w, o]`."""
    b, (h, w), o = x.shape[0], g.coarse, k.shape[2 if g.coarse_first else 3]
    if b * h * w > _FEW and g.kernel > 1:
        k = k.swapaxes(2, 3) if g.coarse_first else k
        strides = (g.stride, g.stride)
        return lax.conv_general_dilated(
            x, k, strides, g.padding, dimension_numbers=_DIMS, precision=g.precision
        )
    if g.coarse_first and k.size > _LARGE:
        y = _product(_stacked(x, g), _flat(k, g).swapaxes(1, 2), g).sum(0)
    else:
        k = k.swapaxes(2, 3) if g.coarse_first else k
        y = _product(_beside(x, g), k.reshape(-1, o), g)
    return y.reshape(b, h, w, o).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lift(y: Array, k: Array, g: Geometry) -> Array:
    """The transposed convolution of the coarse grid `[b, h, w, o]`: the fine one `[b, H, W, c]`."""
    b, h, w, o = y.shape
    rows, flat = b * h * w, y.reshape(-1, o)
    if g.coarse_first and rows <= _FEW:
        every = jnp.broadcast_to(flat, (len(g.taps), *flat.shape))
        parts = _product(every, _flat(k, g), g).reshape(-1, b, h, w, k.shape[3])
        return _spread([parts[n] for n in range(len(g.taps))], g).astype(y.dtype)
    if not g.coarse_first and (g.kernel == 1 or (rows <= _SOME and o >= _THIN)):
        parts = _product(flat, k.reshape(-1, o).T, g).reshape(b, h, w, -1, k.shape[2])
        return _spread([parts[:, :, :, n] for n in range(len(g.taps))], g).astype(y.dtype)
    k = k if g.coarse_first else k.swapaxes(2, 3)
    return (_lift_at_once if g.stride == 1 else _lift_in_phases)(y, k, g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(x: Array, y: Array, g: Geometry) -> Array:
    """The gradient of the kernel, of both grids: `[size, size, c, o]`, or with o before c."""
    (h, w), c, o, taps = g.coarse, x.shape[3], y.shape[3], len(g.taps)
    rows = x.shape[0] * h * w
    if taps * c <= _NARROW:
        way, as_kernel = _patches_by_coarse, not g.coarse_first
    elif g.stride == 1 and taps * o <= _NARROW:
        way, as_kernel = _fine_by_patches, not g.coarse_first
    elif g.coarse_first:
        way, as_kernel = (_coarse_by_taps if rows <= _VERY_FEW else _coarse_by_patches), True
    else:
        way, as_kernel = (_patches_by_coarse if rows <= _FEW else _taps_by_coarse), True
    k = _over_images(way, x, y, g).astype(x.dtype)
    return k if as_kernel else k.swapaxes(2, 3)


def _gather_back(g, saved, bar):
    x, k = saved
    return lift(bar, k, g), correlate(x, bar, g)


def _lift_back(g, saved, bar):
    y, k = saved
    return gather(bar, k, g), correlate(bar, y, g)


def _correlate_back(g, saved, bar):
    x, y = saved
    return lift(y, bar, g), gather(x, bar, g)


gather.defvjp(lambda x, k, g: (gather(x, k, g), (x, k)), _gather_back)
lift.defvjp(lambda y, k, g: (lift(y, k, g), (y, k)), _lift_back)
correlate.defvjp(lambda x, y, g: (correlate(x, y, g), (x, y)), _correlate_back)


# --- patches -------------------------------------------------------------------------------------


def _product(a: Array, b: Array, g: Geometry) -> Array:
    """In at least float32: where sums of products follow, they are rounded once, at the end."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(a, b, precision=g.precision, preferred_element_type=wide)


def _flat(k: Array, g: Geometry) -> Array:
    return k.reshape(len(g.taps), *k.shape[2:])


def _windows(x: Array, g: Geometry) -> list[Array]:
    """For each element of the kernel, what it meets: `[b h w, c]`."""
    x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)))
    s, (h, w) = g.stride, g.coarse
    return [
        x[:, i : i + s * (h - 1) + 1 : s, j : j + s * (w - 1) + 1 : s].reshape(-1, x.shape[3])
        for i, j in g.taps
    ]


def _stacked(x: Array, g: Geometry) -> Array:
    return jnp.stack(_windows(x, g))


def _beside(x: Array, g: Geometry) -> Array:
    """`[b h w, size size c]`, in the order of the kernel."""
    return jnp.concatenate(_windows(x, g), 1)


def _spread(parts: Sequence[Array], g: Geometry) -> Array:
    """Adds up what each element of the kernel makes, `[b, h, w, c]`, at its place on the fine grid.

    Each place within a stride (a phase) gets its own sum; then the phases are interleaved.
    """
    s, reach = g.stride, -(-g.kernel // g.stride) - 1
    sums: list[list[Array]] = [[] for _ in range(s * s)]
    for (i, j), part in zip(g.taps, parts, strict=True):
        down, right = i // s, j // s
        pads = ((0, 0), (down, reach - down), (right, reach - right), (0, 0))
        sums[i % s * s + j % s].append(jnp.pad(part, pads))
    phases = [functools.reduce(jnp.add, parts) for parts in sums]
    b, h, w, c = phases[0].shape
    fine = jnp.stack(phases).reshape(s, s, b, h, w, c).transpose(2, 3, 0, 4, 1, 5)
    return _cropped(fine.reshape(b, s * h, s * w, c), g)


def _cropped(fine: Array, g: Geometry) -> Array:
    """Takes the padding off; rows and columns that no window reached are zero."""
    for axis, (n, (before, _)) in enumerate(zip(g.size, g.padding, strict=True), 1):
        missing = before + n - fine.shape[axis]
        if missing > 0:
            fine = jnp.pad(fine, [(0, missing if a == axis else 0) for a in range(4)])
        fine = lax.slice_in_dim(fine, before, before + n, axis=axis)
    return fine


# --- transposed convolutions of many rows, k as [size, size, o, c] -------------------------------


def _lift_at_once(y: Array, k: Array, g: Geometry) -> Array:
    reach = [
        (g.kernel - 1 - before, n - size + before)
        for n, size, (before, _) in zip(g.size, y.shape[1:3], g.padding, strict=True)
    ]
    return lax.conv_general_dilated(
        y, k[::-1, ::-1], (1, 1), reach, dimension_numbers=_DIMS, precision=g.precision
    )


def _lift_in_phases(y: Array, k: Array, g: Geometry) -> Array:
    """A 4x4 or 3x3 kernel at stride 2: a 2x2 convolution to four phases, then interleaved."""
    k = jnp.pad(k, ((0, 4 - g.kernel), (0, 4 - g.kernel), (0, 0), (0, 0)))
    o, c = k.shape[2:]
    # Kernel rows (0, 1) belong to coarse row h, rows (2, 3) to row h - 1.
    phases = k.reshape(2, 2, 2, 2, o, c)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    fine = lax.conv_general_dilated(
        y,
        phases.reshape(2, 2, o, 4 * c),
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=_DIMS,
        precision=g.precision,
    )
    b, h, w, _ = fine.shape
    fine = fine.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return _cropped(fine.reshape(b, 2 * h, 2 * w, c), g)


# --- weight gradients ----------------------------------------------------------------------------


def _over_images(
    way: Callable[[Array, Array, Geometry], Array], x: Array, y: Array, g: Geometry
) -> Array:
    """Large images one after another: what is made of each stays in the processor's cache."""
    b, (h, w) = x.shape[0], g.coarse
    if h * w < _WHOLE:
        return way(x, y, g)
    size = -(-b // _CHUNKS)
    parts = [way(x[n : n + size], y[n : n + size], g) for n in range(0, b, size)]
    return functools.reduce(jnp.add, parts)


def _patches_by_coarse(x: Array, y: Array, g: Geometry) -> Array:
    k = _product(_beside(x, g).T, y.reshape(-1, y.shape[3]), g)
    return k.reshape(g.kernel, g.kernel, x.shape[3], y.shape[3])


def _taps_by_coarse(x: Array, y: Array, g: Geometry) -> Array:
    flat = y.reshape(-1, y.shape[3])
    k = jnp.stack([_product(window.T, flat, g) for window in _windows(x, g)])
    return k.reshape(g.kernel, g.kernel, x.shape[3], y.shape[3])


def _fine_by_patches(x: Array, y: Array, g: Geometry) -> Array:
    """Where the coarse grid is narrow: its patches, on the padded fine grid, at stride 1."""
    x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)))
    (h, w), o = g.coarse, y.shape[3]
    height, width = x.shape[1:3]
    shifted = [
        jnp.pad(y, ((0, 0), (i, height - h - i), (j, width - w - j), (0, 0))).reshape(-1, o)
        for i, j in g.taps
    ]
    k = _product(x.reshape(-1, x.shape[3]).T, jnp.concatenate(shifted, 1), g)
    return k.reshape(x.shape[3], g.kernel, g.kernel, o).transpose(1, 2, 0, 3)


def _coarse_by_taps(x: Array, y: Array, g: Geometry) -> Array:
    flat = y.reshape(-1, y.shape[3]).T
    k = _product(jnp.broadcast_to(flat, (len(g.taps), *flat.shape)), _stacked(x, g), g)
    return k.reshape(g.kernel, g.kernel, y.shape[3], x.shape[3])


def _coarse_by_patches(x: Array, y: Array, g: Geometry) -> Array:
    k = _product(y.reshape(-1, y.shape[3]).T, _beside(x, g), g)
    return k.reshape(y.shape[3], g.kernel, g.kernel, x.shape[3]).transpose(1, 2, 0, 3)
