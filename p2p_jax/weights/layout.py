"""The published PyTorch layout of the networks: its keys, and its tensors as ours and back.

A layout is a list of entries, each with the key in a `state_dict`, our path, and how the one
becomes the other; both directions follow it. All arrays are numpy's. Ours are called by paths like
`params/enc1/conv/kernel` and `stats/enc2/norm/mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from p2p_jax.config import ConfigError, shortened

Arrays = Mapping[str, np.ndarray]
Shape = tuple[int, ...]
COUNTER = ".num_batches_tracked"  # of each batch norm there; nothing depends on it


class Network(NamedTuple):
    """What decides the keys of a network.

    Attributes:
      kind: `unet`, `resnet`, `patchgan` or `pixel`.
      size: levels of a U-Net, blocks of a resnet, layers of stride 2 of a PatchGAN; 1 for `pixel`.
      dropout: whether a resnet's blocks have a dropout layer, which moves what follows by one.
    """

    kind: str
    size: int
    dropout: bool = False


class Layer(NamedTuple):
    """A convolution, and what may follow it.

    Attributes:
      conv: its name there.
      norm: that of the norm which follows, or empty.
      path: the name of both here.
      kind: of the kernel; see `TRANSFORMS`.
      biased: whether it has a bias there whatever the norm.
    """

    conv: str
    norm: str
    path: str
    kind: str = "conv"
    biased: bool = False


class Entry(NamedTuple):
    """A tensor: its key there, its path here, and how the one becomes the other."""

    key: str
    path: str
    kind: str


class Transform(NamedTuple):
    """How a tensor there becomes an array here, and back."""

    into: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


def _swapped(kernel: np.ndarray) -> np.ndarray:
    """The halves of the input channels of `[kh, kw, in, out]` in the other order."""
    return np.roll(kernel, kernel.shape[2] // 2, axis=2)


TRANSFORMS = {
    # [out, in, kh, kw] to [kh, kw, in, out].
    "conv": Transform(lambda w: w.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1)),
    # [in, out, kh, kw] to [kh, kw, in, out], unflipped: see `models.conv.conv_up`.
    "up": Transform(lambda w: w.transpose(2, 3, 0, 1), lambda k: k.transpose(2, 3, 0, 1)),
    # The same where skip and decoder meet: the skip comes first there, the decoder first here.
    "joined": Transform(
        lambda w: _swapped(w.transpose(2, 3, 0, 1)), lambda k: _swapped(k).transpose(2, 3, 0, 1)
    ),
    "vector": Transform(lambda v: v, lambda v: v),
}


def layers(network: Network) -> list[Layer]:
    """The convolutions of a network, in the order of its `state_dict`."""
    return {
        "unet": lambda: _unet(network.size),
        "resnet": lambda: _resnet(network.size, network.dropout),
        "patchgan": lambda: _patchgan(network.size),
        "pixel": _pixel,
    }[network.kind]()


def unet_block(level: int) -> str:
    """The name of a U-Net's nested block, counted from 0 outermost."""
    return "model.model" if level == 0 else "model.model.1.model" + ".3.model" * (level - 1)


def _unet(depth: int) -> list[Layer]:
    found = []
    for level in range(depth):
        block = unet_block(level)
        norm = f"{block}.2" if 0 < level < depth - 1 else ""
        found.append(Layer(f"{block}.{min(level, 1)}", norm, f"enc{level + 1}"))
    for level in reversed(range(depth)):
        block, path = unet_block(level), f"dec{depth - level}"
        if level == 0:
            found.append(Layer(f"{block}.3", "", path, "joined", biased=True))
        elif level == depth - 1:
            found.append(Layer(f"{block}.3", f"{block}.4", path, "up"))
        else:
            found.append(Layer(f"{block}.5", f"{block}.6", path, "joined"))
    return found


def _resnet(blocks: int, dropout: bool) -> list[Layer]:
    found = [Layer(f"model.{i}", f"model.{i + 1}", f"enc{k}") for k, i in ((1, 1), (2, 4), (3, 7))]
    second = 6 if dropout else 5
    for k in range(1, blocks + 1):
        for part, i in ((1, 1), (2, second)):
            block = f"model.{9 + k}.conv_block"
            found.append(Layer(f"{block}.{i}", f"{block}.{i + 1}", f"res{k}/conv{part}"))
    for k, i in ((1, 10 + blocks), (2, 13 + blocks)):
        found.append(Layer(f"model.{i}", f"model.{i + 1}", f"dec{k}", "up"))
    return [*found, Layer(f"model.{17 + blocks}", "", "dec3", biased=True)]


def _patchgan(count: int) -> list[Layer]:
    middle = [Layer(f"model.{3 * k - 1}", f"model.{3 * k}", f"conv{k + 1}") for k in _upto(count)]
    last = Layer(f"model.{3 * count + 2}", "", f"conv{count + 2}", biased=True)
    return [Layer("model.0", "", "conv1", biased=True), *middle, last]


def _upto(count: int) -> range:
    return range(1, count + 1)


def _pixel() -> list[Layer]:
    return [
        Layer("net.0", "", "conv1", biased=True),
        Layer("net.2", "net.3", "conv2"),
        Layer("net.5", "", "conv3"),
    ]


def layout(network: Network, paths: Collection[str]) -> list[Entry]:
    """What a state dict holds of a network that has arrays by these paths.

    Raises:
      ValueError: the layout has no place for an array.
    """
    entries = [
        entry for layer in layers(network) for entry in _entries(layer) if entry.path in paths
    ]
    homeless = set(paths) - {entry.path for entry in entries}
    if homeless:
        raise ValueError(f"the layout has no place for {', '.join(sorted(homeless))}")
    return entries


def _entries(layer: Layer) -> Iterator[Entry]:
    """All that a convolution and its norm may have."""
    yield Entry(f"{layer.conv}.weight", f"params/{layer.path}/conv/kernel", layer.kind)
    yield Entry(f"{layer.conv}.bias", f"params/{layer.path}/conv/bias", "vector")
    if layer.norm:
        for name, path in (
            ("weight", "params/{}/norm/scale"),
            ("bias", "params/{}/norm/bias"),
            ("running_mean", "stats/{}/norm/mean"),
            ("running_var", "stats/{}/norm/var"),
        ):
            yield Entry(f"{layer.norm}.{name}", path.format(layer.path), "vector")


def to_flax(
    tensors: Arrays, entries: Sequence[Entry], shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """A state dict's tensors by our paths.

    Args:
      tensors: by key.
      entries: from `layout`.
      shapes: of our arrays, by path.

    Raises:
      ConfigError: tensors that are missing, left over or of another shape, all of them.
    """
    problems = []
    for entry in entries:
        want = _shape_there(entry, shapes[entry.path])
        if entry.key not in tensors:
            problems.append(f"{entry.key}: missing, of shape {list(want)}")
        elif tensors[entry.key].shape != want:
            there = list(tensors[entry.key].shape)
            problems.append(f"{entry.key}: of shape {there}, must be {list(want)}")
    known = {entry.key for entry in entries}
    problems += [
        f"{key}: left over, of shape {list(tensor.shape)}"
        for key, tensor in tensors.items()
        if key not in known
    ]
    if problems:
        raise ConfigError(shortened(problems))
    return {
        entry.path: np.ascontiguousarray(TRANSFORMS[entry.kind].into(tensors[entry.key]))
        for entry in entries
    }


def _shape_there(entry: Entry, shape: Shape) -> Shape:
    # An array that takes no memory, so that only the transform knows about axes.
    return TRANSFORMS[entry.kind].back(np.broadcast_to(np.float32(0), shape)).shape


def to_torch(arrays: Arrays, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Our arrays, by path, as a state dict's tensors: float32, and with counters where wanted."""
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        array = np.asarray(arrays[entry.path], np.float32)
        # A copy, as torch wants memory that it may write to.
        tensors[entry.key] = np.array(TRANSFORMS[entry.kind].back(array), order="C")
        if entry.key.endswith(".running_var"):
            tensors[entry.key.removesuffix(".running_var") + COUNTER] = np.array(0, np.int64)
    return tensors
