"""Inception v3 (Szegedy et al. 2015) as FID wants it: the variant of pytorch-fid.

It is the network that was ported from TensorFlow's file of 2015-12-05, and differs from
torchvision's: average poolings leave padding out of the average, and the last block takes a maximum
instead. The weights say how wide each layer is; batch norms are folded into the convolutions.

Arrays are `[b, h, w, c]`; names are those of torchvision's layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Params = dict[str, dict[str, Any]]

SIZE = 299  # pixels a side that images are resized to
FEATURES = 2048
_EPSILON = 1e-3  # of the batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")


class Conv(NamedTuple):
    """A convolution without bias, its batch norm and ReLU; stride 2 goes without padding."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


class Fork(NamedTuple):
    """Branches of the same input, whose outputs are put side by side.

    A branch is steps in a row: convolutions, forks, or a pooling of 3x3 pixels, one of `average`
    and `max` (same size), `halve` (maximum, stride 2, no padding).
    """

    name: str
    branches: tuple[tuple[Any, ...], ...]


def _a(name: str, pooled: int) -> Fork:
    double = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return Fork(
        name,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
            (*double, Conv("branch3x3dbl_3", 96, (3, 3))),
            ("average", Conv("branch_pool", pooled)),
        ),
    )


def _b(name: str) -> Fork:
    double = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return Fork(
        name,
        (
            (Conv("branch3x3", 384, (3, 3), 2),),
            (*double, Conv("branch3x3dbl_3", 96, (3, 3), 2)),
            ("halve",),
        ),
    )


def _c(name: str, inner: int) -> Fork:
    wide, tall = (1, 7), (7, 1)
    single = (inner, (1, 1)), (inner, wide), (192, tall)
    double = (inner, (1, 1)), (inner, tall), (inner, wide), (inner, tall), (192, wide)
    return Fork(
        name,
        (
            (Conv("branch1x1", 192),),
            tuple(Conv(f"branch7x7_{i}", *layer) for i, layer in enumerate(single, 1)),
            tuple(Conv(f"branch7x7dbl_{i}", *layer) for i, layer in enumerate(double, 1)),
            ("average", Conv("branch_pool", 192)),
        ),
    )


def _d(name: str) -> Fork:
    long = (Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)))
    return Fork(
        name,
        (
            (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
            (*long, Conv("branch7x7x3_3", 192, (7, 1)), Conv("branch7x7x3_4", 192, (3, 3), 2)),
            ("halve",),
        ),
    )


def _e(name: str, pooling: str) -> Fork:
    def split(stem: str) -> Fork:
        return Fork("", ((Conv(f"{stem}a", 384, (1, 3)),), (Conv(f"{stem}b", 384, (3, 1)),)))

    double = (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)))
    return Fork(
        name,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), split("branch3x3_2")),
            (*double, split("branch3x3dbl_3")),
            (pooling, Conv("branch_pool", 192)),
        ),
    )


NETWORK = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "halve",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    "halve",
    *(_a("Mixed_5b", 32), _a("Mixed_5c", 64), _a("Mixed_5d", 64)),
    _b("Mixed_6a"),
    *(_c("Mixed_6b", 128), _c("Mixed_6c", 160), _c("Mixed_6d", 160), _c("Mixed_6e", 192)),
    _d("Mixed_7a"),
    *(_e("Mixed_7b", "average"), _e("Mixed_7c", "max")),
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Keys of the state dict that the features need, with the shapes of their tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (conv, channels) in _convs().items():
        found[f"{name}.conv.weight"] = (conv.features, channels, *conv.size)
        found |= {f"{name}.bn.{part}": (conv.features,) for part in _NORM}
    return found


def _convs() -> dict[str, tuple[Conv, int]]:
    """All convolutions by name, each with the channels it takes."""
    found: dict[str, tuple[Conv, int]] = {}

    def walk(steps: tuple[Any, ...], prefix: str, channels: int) -> int:
        """Adds those of steps in a row; returns the channels that these give."""
        for step in steps:
            if isinstance(step, Conv):
                found[prefix + step.name] = step, channels
                channels = step.features
            elif isinstance(step, Fork):
                inner = _inside(prefix, step)
                channels = sum([walk(branch, inner, channels) for branch in step.branches])
        return channels

    assert walk(NETWORK, "", 3) == FEATURES
    return found


def _inside(prefix: str, fork: Fork) -> str:
    return f"{prefix}{fork.name}." if fork.name else prefix


def convert(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from a state dict with the keys of `shapes`, of any width; others are left out."""
    params = {}
    for name in _convs():
        scale, bias, mean, var = (np.asarray(tensors[f"{name}.bn.{p}"], np.float64) for p in _NORM)
        scale = scale / np.sqrt(var + _EPSILON)
        kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale
        folded = {"kernel": kernel, "bias": bias - mean * scale}
        params[name] = {key: value.astype(np.float32) for key, value in folded.items()}
    return params


def features(params: Params, images: Array) -> Array:
    """What the last pooling gives (`pool3`).

    Args:
      params: as `convert` gives them.
      images: `[b, h, w, 3]` in [0, 1]; they are resized to 299x299 bilinearly, without
        antialiasing, corners not aligned, as pytorch-fid does it.

    Returns:
      `[b, 2048]`, none negative.
    """
    shape = (len(images), SIZE, SIZE, images.shape[-1])
    precision = lax.Precision.HIGHEST
    images = jax.image.resize(images, shape, "linear", antialias=False, precision=precision)
    return body(params, 2 * images - 1).mean((1, 2))


def body(params: Params, x: Array) -> Array:
    """The convolutions alone, from `[b, h, w, 3]` in [-1, 1], 75 pixels a side at least."""
    return _run(params, NETWORK, "", x)


def _run(params: Params, steps: tuple[Any, ...], prefix: str, x: Array) -> Array:
    for step in steps:
        if isinstance(step, Conv):
            x = _conv(params[prefix + step.name], step, x)
        elif isinstance(step, Fork):
            inner = _inside(prefix, step)
            x = jnp.concatenate([_run(params, b, inner, x) for b in step.branches], -1)
        else:
            x = _POOLINGS[step](x)
    return x


def _conv(params: dict[str, Any], conv: Conv, x: Array) -> Array:
    padding = [(n // 2, n // 2) if conv.padded and conv.stride == 1 else (0, 0) for n in conv.size]
    x = lax.conv_general_dilated(
        x,
        params["kernel"],
        (conv.stride, conv.stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.maximum(x + params["bias"].reshape(1, 1, 1, -1), 0)


def _pool(x: Array, start: float, reduce: Any, stride: int, pad: int) -> Array:
    edges = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return lax.reduce_window(x, start, reduce, (1, 3, 3, 1), (1, stride, stride, 1), edges)


def _average(x: Array) -> Array:
    """Of the pixels that there are; padding is none."""
    count = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, 1, 1)
    return _pool(x, 0.0, lax.add, 1, 1) / count


_POOLINGS = {
    "average": _average,
    "max": lambda x: _pool(x, -jnp.inf, lax.max, 1, 1),
    "halve": lambda x: _pool(x, -jnp.inf, lax.max, 2, 0),
}
