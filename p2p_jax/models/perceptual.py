"""LPIPS v0.1 (Zhang et al. 2018): how far apart two images are in the features of a classifier.

Arrays are `[b, h, w, c]`. Layers of the backbones, AlexNet and VGG16, are named by their place in
torchvision's `features`; the weights say how wide each is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Params = dict[str, Any]

# Of images in [-1, 1]: what makes them as ImageNet's mean and deviation do those in [0, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Conv(NamedTuple):
    """A convolution with bias, and ReLU; `place` is its number in `features`."""

    place: int
    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """What lies between two places where features are compared.

    Attributes:
      pool: pixels a side of the pooling it begins with (maximum, stride 2); 0: none.
      convs: its convolutions.
    """

    pool: int
    convs: tuple[Conv, ...]


def _vgg(pool: int, features: int, *places: int) -> Stage:
    return Stage(pool, tuple(Conv(place, features) for place in places))


BACKBONES = {
    "alex": (
        Stage(0, (Conv(0, 64, 11, 4, 2),)),
        Stage(3, (Conv(3, 192, 5, 1, 2),)),
        Stage(3, (Conv(6, 384),)),
        Stage(0, (Conv(8, 256),)),
        Stage(0, (Conv(10, 256),)),
    ),
    "vgg": (
        _vgg(0, 64, 0, 2),
        _vgg(2, 128, 5, 7),
        _vgg(2, 256, 10, 12, 14),
        _vgg(2, 512, 17, 19, 21),
        _vgg(2, 512, 24, 26, 28),
    ),
}


def backbone_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Keys of a backbone's state dict with the shapes of their tensors."""
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    for stage in BACKBONES[backbone]:
        for conv in stage.convs:
            found[f"features.{conv.place}.weight"] = (conv.features, channels, conv.size, conv.size)
            found[f"features.{conv.place}.bias"] = (conv.features,)
            channels = conv.features
    return found


def linear_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Keys of the linear layers, `lin0.model.1.weight` and so on, with their tensors' shapes."""
    return {
        f"lin{i}.model.1.weight": (1, stage.convs[-1].features, 1, 1)
        for i, stage in enumerate(BACKBONES[backbone])
    }


def convert(
    network: Mapping[str, np.ndarray], linear: Mapping[str, np.ndarray], backbone: str
) -> Params:
    """Parameters from two state dicts with the keys of the functions above, of any width."""
    params: Params = {}
    for i, stage in enumerate(BACKBONES[backbone]):
        for conv in stage.convs:
            kernel = network[f"features.{conv.place}.weight"].transpose(2, 3, 1, 0)
            bias = network[f"features.{conv.place}.bias"]
            params[str(conv.place)] = {
                "kernel": np.ascontiguousarray(kernel, np.float32),
                "bias": np.asarray(bias, np.float32),
            }
        params[f"lin{i}"] = np.asarray(linear[f"lin{i}.model.1.weight"], np.float32).reshape(-1)
    return params


def distance(params: Params, fake: Array, target: Array, backbone: str) -> Array:
    """LPIPS of pairs.

    Args:
      params: as `convert` gives them.
      fake: `[b, h, w, 3]` in [0, 1], at the size they are to be compared.
      target: the same.
      backbone: `alex` or `vgg`.

    Returns:
      `[b]`, 0 where they are the same.
    """
    # Both of a pair beside each other, so that a batch that is split over devices stays so.
    pairs = jnp.stack([fake, target], 1).reshape(-1, *fake.shape[1:])
    shift, scale = (np.array(v, pairs.dtype).reshape(1, 1, 1, 3) for v in (_SHIFT, _SCALE))
    x = (2 * pairs - 1 - shift) / scale
    total = jnp.zeros(len(fake), x.dtype)
    for i, stage in enumerate(BACKBONES[backbone]):
        if stage.pool:
            window = (1, stage.pool, stage.pool, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 2, 2, 1), "VALID")
        for conv in stage.convs:
            x = _conv(params[str(conv.place)], conv, x)
        unit = x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + 1e-10)
        unit = unit.reshape(len(fake), 2, *x.shape[1:])
        apart = jnp.square(unit[:, 0] - unit[:, 1]) * params[f"lin{i}"].reshape(1, 1, 1, -1)
        total += apart.sum(-1).mean((1, 2))
    return total


def _conv(params: dict[str, Any], conv: Conv, x: Array) -> Array:
    x = lax.conv_general_dilated(
        x,
        params["kernel"],
        (conv.stride, conv.stride),
        ((conv.padding, conv.padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.maximum(x + params["bias"].reshape(1, 1, 1, -1), 0)
