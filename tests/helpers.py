"""What several tests share: tiny networks and batches, compiled steps, convolutions by loops."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from p2p_jax.bench import nets
from p2p_jax.mesh import AXIS, make_mesh, put_replicated, put_split
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import Style
from p2p_jax.objectives import HYPER
from p2p_jax.state import Gan, TrainState, init
from p2p_jax.step import make_train_step

PLAIN64 = Policy(dtype="float64", param_dtype="float64")
# What `build` chooses on this platform, in both precisions.
CPU32 = Policy(form="products", grad="products")
CPU64 = Policy(dtype="float64", param_dtype="float64", form="products", grad="products")

# LLVM's optimisations cost two thirds of the compilation and change no decision of XLA's.
QUICK = {"xla_backend_optimization_level": 0}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def rel(got: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value wanted."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def equations(jaxpr: Any) -> Iterator[Any]:
    """All primitives of a jaxpr, those in loops and calls too, each once."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


# --- networks ------------------------------------------------------------------------------------


def _network(kinds: dict[str, Any], options: Any, policy: Policy, changes: Any, *more: Any) -> Any:
    """A network; each change goes to its options, or to the style of its layers."""
    names = {field.name for field in dataclasses.fields(options)}
    options = dataclasses.replace(options, **{k: v for k, v in changes.items() if k in names})
    style = Style(policy, AXIS, **{k: v for k, v in changes.items() if k not in names})
    return kinds[options.name](options, style, *more)


def generator(name: str = "unet", policy: Policy = PLAIN64, channels: int = 3, **changes) -> Any:
    """A generator of depth 2 with 4 features and dropout, unless changed; options and style."""
    options, _ = nets.options(tiny=True)
    return _network(GENERATORS, options, policy, {"name": name, "blocks": 2} | changes, channels)


def discriminator(policy: Policy = PLAIN64, **changes) -> Any:
    """A PatchGAN of one strided layer with 4 features, unless changed; options and style."""
    _, options = nets.options(tiny=True)
    return _network(DISCRIMINATORS, options, policy, changes)


def tiny_gan(policy: Policy, gen: Any = None, disc: Any = None, **changes) -> Gan:
    """Both networks on 16x16 crops of 20x20 images, with dropout, jitter and mirroring."""
    options = dict(
        generator=generator(policy=policy, **(gen or {})),
        discriminator=discriminator(policy, **(disc or {})),
        dtype=policy.param_dtype,
    )
    return dataclasses.replace(nets.standard(tiny=True), **(options | changes))


def paths(tree: Any) -> dict[str, Any]:
    """Slashed paths to leaves."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in flat}


def scrambled(variables: Any, seed: int = 0) -> Any:
    """Random values for every leaf, so that none is neutral; variances stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        value = rng.normal(0, 0.3, leaf.shape) + (name == "scale")
        return (1 + value**2 if name == "var" else value).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


# --- steps ---------------------------------------------------------------------------------------


def images(rows: int = 1, batch: int = 4, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Source and target, uint8 `[rows, batch, size, size, 3]`; arithmetic, so always the same."""
    n = np.arange(rows * batch * size * size * 3).reshape(rows, batch, size, size, 3)
    return ((n * n // 7 + n * 31) % 256).astype(np.uint8), ((n * n // 5) % 256).astype(np.uint8)


def hyper(rows: int, gan: Gan, /, **changes: float) -> np.ndarray:
    """The same rates and weights `[rows, len(HYPER)]` for every step."""
    row = dict.fromkeys(HYPER, 0.0)
    row |= {"gen_lr": 2e-3, "disc_lr": 1e-3, "disc": 0.5, "gan": 1.0, "l1": 100.0} | changes
    assert row.keys() == set(HYPER), changes
    return np.array([list(row.values())] * rows, gan.dtype)


@functools.cache
def fresh(gan: Gan, seed: int = 0) -> TrainState:
    """A fresh state; compiled, as only the draws are left of it then."""
    return quick_jit(lambda: init(gan, seed))()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Names to numpy arrays, keys as their data."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for path, x in flat
    }


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits."""
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def turned(tree: Any) -> Any:
    """The same with the last two axes of every kernel changed over in memory, as a TPU may want."""

    def turn(x: jax.Array) -> jax.Array:
        return jax.device_put(x, Format(Layout((0, 1, 3, 2)), x.sharding)) if x.ndim == 4 else x

    return jax.tree.map(turn, tree)


class Step:
    """`make_train_step` compiled ahead of time, called with numpy arrays; donates nothing of ours.

    Attributes:
      text: the compiled program.
    """

    def __init__(self, gan: Gan, devices: int = 1, rows: int = 1, batch: int = 4, options=None):
        self.gan, self.rows, self.mesh = gan, rows, make_mesh(devices)
        state = jax.eval_shape(lambda: init(gan, 0))
        lowered = make_train_step(gan, self.mesh, rows).lower(
            state, images(rows, batch), hyper(rows, gan), np.int32(1)
        )
        self._compiled = lowered.compile(options or QUICK)
        self.text = self._compiled.as_text()

    def __call__(
        self,
        state: TrainState,
        batch: Any,
        table: np.ndarray | None = None,
        count: int | None = None,
    ) -> tuple[TrainState, np.ndarray]:
        """The state and losses after `count` steps, by default all."""
        table = hyper(self.rows, self.gan) if table is None else table
        key = jax.random.wrap_key_data(np.array(jax.random.key_data(state.key)))
        state = jax.tree.map(np.array, state._replace(key=0))._replace(key=key)
        state, losses = self._compiled(
            jax.device_put(state, NamedSharding(self.mesh, PartitionSpec())),
            put_split(self.mesh, batch, 1),
            put_replicated(self.mesh, table),
            put_replicated(self.mesh, np.int32(self.rows if count is None else count)),
        )
        return state, np.asarray(losses)


@functools.cache
def cpu_gan(precision: str) -> Gan:
    """The tiny Gan as `build` would have it on this platform."""
    return tiny_gan({"float32": CPU32, "float64": CPU64}[precision])


@functools.cache
def cpu_step(precision: str, devices: int = 1, rows: int = 1) -> Step:
    """Its step, compiled once for all tests."""
    return Step(cpu_gan(precision), devices, rows)


# --- convolutions by their definition ------------------------------------------------------------


def _taps(kind: str, size: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Along one axis: output size, and all (input, kernel, output) indices that meet."""
    if kind == "up":  # ConvTranspose2d(4, 2, 1): output 2i + k - 1 receives input i times kernel k
        out = 2 * size
        near = ((i, k, 2 * i + k - 1) for i in range(size) for k in range(4))
        return out, [t for t in near if 0 <= t[2] < out]
    if kind == "nearest":  # Upsample(2), Conv2d(3, 1, 1): input position p holds pixel p // 2
        out = 2 * size
        near = ((o + k - 1, k, o) for o in range(out) for k in range(3))
        return out, [(p // 2, k, o) for p, k, o in near if 0 <= p < out]
    stride = {"down": 2, "conv": 1}[kind]  # Conv2d(4, stride, 1)
    out = (size + 2 - 4) // stride + 1
    near = ((o * stride + k - 1, k, o) for o in range(out) for k in range(4))
    return out, [t for t in near if 0 <= t[0] < size]


def oracle_conv(kind: str, x: np.ndarray, w: np.ndarray, g: np.ndarray | None = None) -> Any:
    """The convolution of `[b, h, w, c]` with `[k, k, c, o]` by loops; kinds as in `layers.Conv`.

    Returns:
      The output, or, where its cotangent `g` is given, those of x and w.
    """
    (h, rows), (wide, columns) = (_taps(kind, size) for size in x.shape[1:3])
    y = np.zeros((x.shape[0], h, wide, w.shape[-1]), x.dtype)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for (i, k, o), (j, m, q) in itertools.product(rows, columns):
        if g is None:
            y[:, o, q] += x[:, i, j] @ w[k, m]
        else:
            dx[:, i, j] += g[:, o, q] @ w[k, m].T
            dw[k, m] += x[:, i, j].T @ g[:, o, q]
    return y if g is None else (dx, dw)
