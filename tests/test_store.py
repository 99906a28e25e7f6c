"""A set in the memory of the devices: where it goes, what arrives, what is trained on it."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from helpers import CPU32, QUICK, fresh, hyper, same, tiny_gan
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax import store
from p2p_jax.augment import Augment
from p2p_jax.data.frames import Fit, Frames
from p2p_jax.data.order import IndexFeed
from p2p_jax.data.pairs import DataError, Form, Pair
from p2p_jax.data.pipeline import Feed
from p2p_jax.mesh import AXIS, make_mesh, put_replicated, put_split
from p2p_jax.readers import STREAMED
from p2p_jax.step import make_train_step
from p2p_jax.store import device_memory, fill, placing

RGB = Form(3), Form(3)


class Noise:
    """Noisy pairs of given sizes; counts reads, or fails at one index."""

    def __init__(self, sizes, forms=RGB, bad=-1):
        self.names, self.fingerprint = [str(i) for i in range(len(sizes))], "noise"
        self.sizes, self.forms, self.bad, self.reads = np.array(sizes, np.int32), forms, bad, []

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        self.reads.append(i)
        if i == self.bad:
            raise DataError([f"train[{i}] {i}: truncated"])
        rng = np.random.default_rng(i)
        return Pair(*(
            np.frombuffer(rng.bytes(h * w * f.channels * np.dtype(f.dtype).itemsize), f.dtype)
            .reshape(h, w, f.channels) for (h, w), f in [(self.sizes[i], f) for f in self.forms]
        ))  # fmt: skip


def filled(frames, mesh, way, **changes):
    """The set, laid out as told by leaving it just enough room."""
    row = sum(np.asarray(x).nbytes for x in frames[0] if x is not None)
    rows = len(frames) if way == "replicated" else -(-len(frames) // mesh.shape[AXIS])
    options = dict(share=(rows * row + 1) / device_memory(mesh), threads=2, log=lambda text: None)
    return fill(frames, mesh, **(options | changes))


# --- where it goes -------------------------------------------------------------------------------


def test_a_set_is_replicated_where_it_fits_and_split_where_only_that_fits():
    assert placing(10, 100, 2000, 0.5, 4) == "replicated"
    assert placing(10, 100, 1999, 0.5, 4) == "sharded"
    assert placing(10, 100, 600, 0.5, 4) == "sharded"  # three rows on a device
    with pytest.raises(DataError):
        placing(10, 100, 599, 0.5, 4)
    with pytest.raises(DataError):
        placing(10, 100, 1999, 0.5, 1)


def test_what_fits_nowhere_is_refused_with_the_numbers():
    with pytest.raises(DataError) as error:
        placing(1_000_000, 393_216, 80 * 10**9, 0.5, 8)
    assert str(error.value) == (
        "data.cache=device: the 1000000 pairs are 393 GB, which is 49.2 GB on each of 8 devices, "
        "and data.cache_share=0.5 of its 80 GB allows 40 GB; use data.cache=host, or "
        "data.max_examples=813800, or data.cache_share=0.62 if the networks leave as much"
    )
    # What it says would do, does.
    assert placing(813_800, 393_216, 80 * 10**9, 0.5, 8) == "sharded"
    assert placing(1_000_000, 393_216, 80 * 10**9, 0.62, 8) == "sharded"
    with pytest.raises(DataError, match="which is 3 kB on the device") as error:
        placing(3, 1000, 900, 1.0, 1)
    assert str(error.value).endswith("use data.cache=host")


def test_memory_is_the_devices_or_their_part_of_the_machines():
    memory = device_memory(make_mesh(1))
    assert memory == device_memory(make_mesh(4))
    assert 2**26 < memory * jax.local_device_count() < 2**46


# --- what arrives --------------------------------------------------------------------------------

KINDS = {
    "uint8": ([(5, 6)] * 7, RGB, Fit("none", (5, 6), (5, 6))),
    # Random bits: NaN, infinities and -0.0 among them.
    "float32": ([(5, 6)] * 7, (Form(1, "uint16"), Form(2, "float32")),
                Fit("none", (5, 6), (5, 6))),
    "sizes": ([(4 + i, 9 - i) for i in range(6)], (Form(0), Form(3)), Fit("crop", (9, 9), (4, 4))),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("devices", "way"),
    [(1, "replicated"), (4, "replicated"), (4, "sharded"), (2, "sharded"), ((4, 2), "sharded")],
)
def test_every_example_reaches_every_place_as_it_was(monkeypatch, kind, devices, way):
    """On devices alone, or two and two of which share images."""
    monkeypatch.setattr(store, "_CHUNK", 1000)  # several pieces, the last one smaller
    sizes, forms, fit = KINDS[kind]
    number = devices if isinstance(devices, tuple) else (devices,)
    frames, mesh = Frames(Noise(sizes, forms), fit), make_mesh(*number)
    kept, devices = filled(frames, mesh, way), mesh.shape[AXIS]
    shares = {x.addressable_shards[0].data.shape[0] for x in kept.arrays if x is not None}
    assert shares == {len(frames) if way == "replicated" else -(-len(frames) // devices)}
    indices = np.random.default_rng(0).integers(0, len(frames), (2, 8)).astype(np.int32)
    batch = (kept.arrays, put_split(mesh, indices, 1))
    read = jax.jit(
        jax.shard_map(
            lambda batch, i: kept.reader.take(batch, i, AXIS),
            mesh=mesh, in_specs=(kept.reader.specs(AXIS), P()), out_specs=P(AXIS),
            axis_names={AXIS},
        )
    )  # fmt: skip
    for i in range(2):
        # To the host first: JAX itself takes rows of what is split by adding.
        got = jax.tree.map(np.asarray, read(batch, np.int32(i)))
        for place, index in enumerate(indices[i]):
            for array, wanted in zip(got, frames[int(index)], strict=True):
                assert (array is None) == (wanted is None)
                if wanted is not None:
                    assert array.dtype == wanted.dtype and array.shape[1:] == wanted.shape
                    assert array[place].tobytes() == wanted.tobytes()


def test_each_pair_is_read_once_and_progress_is_told(monkeypatch):
    monkeypatch.setattr(store, "_CHUNK", 400)
    for devices, way in ((2, "replicated"), (4, "sharded")):
        source, told, said = Noise([(5, 6)] * 6), [], []
        frames = Frames(source, Fit("none", (5, 6), (5, 6)))
        filled(frames, make_mesh(devices), way, log=said.append,
               on_progress=lambda *at, told=told: told.append(at))  # fmt: skip
        assert sorted(source.reads) == sorted([0, *range(6)])  # one by `filled`
        assert told == [(2, 6), (4, 6), (6, 6)]
        (sentence,) = said
        assert sentence == (
            "6 pairs (1.08 kB) are kept in the memory of each device" if way == "replicated"
            else "6 pairs (1.08 kB) are kept in the memory of 4 devices together"
        )  # fmt: skip


def test_what_does_not_fit_is_refused_before_anything_is_read():
    source = Noise([(5, 6)] * 6)
    frames, mesh = Frames(source, Fit("none", (5, 6), (5, 6))), make_mesh(2)
    with pytest.raises(DataError, match=r"data.cache=device: the 6 pairs are 1.08 kB"):
        fill(frames, mesh, 1 / device_memory(mesh), 1, print)
    assert source.reads == []


def test_an_unreadable_pair_is_named():
    frames = Frames(Noise([(5, 6)] * 6, bad=4), Fit("none", (5, 6), (5, 6)))
    with pytest.raises(DataError, match="truncated"):
        filled(frames, make_mesh(1), "replicated")


# --- training ------------------------------------------------------------------------------------

STEPS, BATCH = 3, 4
SLOW = pytest.mark.slow
COLLECTIVE = re.compile(
    r" ((?:ragged-)?all-[a-z-]*?|reduce-scatter|collective-[a-z-]*?|send|recv)(?:-start)?\("
)


def trained(gan, mesh, feed, reader):
    """The state and losses after three steps, and the names of what was sent in each."""
    (_, count, batch), *_ = list(feed)
    step = make_train_step(gan, mesh, STEPS, reader)
    table, state = hyper(STEPS, gan), fresh(gan)
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(state.key)))
    state = jax.tree.map(np.array, state._replace(key=0))._replace(key=key)
    arguments = (
        jax.device_put(state, NamedSharding(mesh, P())),
        batch,
        *put_replicated(mesh, (table, np.int32(count))),
    )
    compiled = step.lower(*arguments).compile(QUICK)
    state, losses = compiled(*arguments)
    for array in jax.tree.leaves(batch):
        assert not array.is_deleted()
    return state, np.asarray(losses), sorted(COLLECTIVE.findall(compiled.as_text()))


@functools.cache
def streamed(kind, devices):
    gan, frames = training(kind)
    mesh = make_mesh(devices)
    with Feed(
        frames, batch_size=BATCH, local=slice(0, BATCH), seed=0, shuffle=True, threads=2,
        cache="none", plan=[(0, STEPS)], steps_per_dispatch=STEPS,
        put=lambda batch: put_split(mesh, batch, 1),
    ) as feed:  # fmt: skip
        return trained(gan, mesh, feed, STREAMED)


def training(kind):
    """Jitter, dropout and mirroring; frames of one size, or with sizes of their own."""
    if kind == "one size":
        sizes, augment = [(20, 20)] * 7, Augment((22, 24), (16, 16), True)
        fit = Fit("resize_and_crop", (22, 24), (16, 16))
    else:
        sizes, augment = [(16 + i, 22 - i) for i in range(7)], Augment(None, (16, 16), True)
        fit = Fit("crop", (16, 16), (16, 16))
    return tiny_gan(CPU32, augment=augment), Frames(Noise(sizes), fit)


@pytest.mark.parametrize(
    ("kind", "devices", "way"),
    [
        ("one size", 1, "replicated"),
        ("sizes", 4, "replicated"),
        ("sizes", 4, "sharded"),
        pytest.param("sizes", 1, "replicated", marks=SLOW),
        pytest.param("one size", 4, "replicated", marks=SLOW),
        pytest.param("one size", 4, "sharded", marks=SLOW),
    ],
)
def test_training_is_bit_for_bit_that_on_streamed_examples(kind, devices, way):
    gan, frames = training(kind)
    assert (frames.sizes is None) == (kind == "one size")
    mesh = make_mesh(devices)
    kept = filled(frames, mesh, way)
    feed = IndexFeed(
        len(frames), batch_size=BATCH, local=slice(0, BATCH), seed=0, shuffle=True,
        plan=[(0, STEPS)], steps_per_dispatch=STEPS,
        put=lambda indices: (kept.arrays, put_split(mesh, indices, 1)),
    )  # fmt: skip
    state, losses, sent = trained(gan, mesh, feed, kept.reader)
    wanted, wanted_losses, sent_for_it = streamed(kind, devices)
    assert losses.tobytes() == wanted_losses.tobytes() and np.isfinite(losses).all()
    assert same(state, wanted)
    assert len({row.tobytes() for row in losses}) == STEPS
    # Beside the gradients only where a device holds a part of the set: who wants what, and that.
    arrays = sum(x is not None for x in kept.arrays)
    more = ["all-gather"] + ["all-to-all"] * arrays if way == "sharded" else []
    reduced = ["all-reduce"] * 2 if devices > 1 else []
    assert sent_for_it == reduced and sent == sorted(sent_for_it + more)
