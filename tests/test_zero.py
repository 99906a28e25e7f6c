"""Each device with its share of the optimiser's state: the same training with less memory."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from helpers import CPU64, QUICK, fresh, hyper, images, leaves, rel, same, tiny_gan, turned
from jax.sharding import PartitionSpec as P
from test_devices import collectives

from p2p_jax.config import base, merge
from p2p_jax.mesh import make_mesh, put_replicated, put_split
from p2p_jax.networks import abstract_state, draw, make_gan
from p2p_jax.step import laid_out_for, make_train_step
from p2p_jax.zero import spec, split_axis

ROWS, BATCH = 3, 8


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def gan(**changes):
    return tiny_gan(CPU64, ema_decay=0.9, **changes)


class Run:
    """A compiled step of eight examples, and what it makes of three from a fresh state."""

    def __init__(self, gan, devices):
        mesh = make_mesh(devices)
        self.like = abstract_state(gan, mesh)
        lowered = make_train_step(gan, mesh, ROWS).lower(
            self.like, images(ROWS, BATCH), hyper(ROWS, gan), np.int32(1)
        )
        self.step = lowered.compile(QUICK)
        self.text = self.step.as_text()
        self.fed = put_split(mesh, images(ROWS, BATCH), 1)
        self.mesh, self.gan = mesh, gan
        self.start = self.put(fresh(gan))
        self.state, self.losses = self(self.start, hyper(ROWS, gan))

    def put(self, state):
        def one(x, like):
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.wrap_key_data(np.array(jax.random.key_data(x)))
                return jax.device_put(x, like.sharding)
            return jax.device_put(np.array(x), like.sharding)

        return jax.tree.map(one, state, self.like)

    def __call__(self, state, table, count=ROWS):
        """State and losses; donates nothing."""
        rest = put_replicated(self.mesh, (table, np.int32(count)))
        state, losses = self.step(self.put(state), self.fed, *rest)
        return state, np.asarray(losses)


@functools.cache
def run(devices, **changes):
    return Run(gan(**changes), devices)


def assert_equal_training(got, wanted):
    assert rel(got.losses, wanted.losses) < 1e-12
    a, b = leaves(got.state), leaves(wanted.state)
    assert a.keys() == b.keys()
    for name, value in b.items():
        if value.dtype.kind == "f" and value.any():
            assert abs(a[name] - value).max() <= 1e-12 * max(1, abs(value).max()), name
        else:
            assert (a[name] == value).all(), name


def test_training_is_that_without_shares(x64):
    assert_equal_training(run(4, shard_optimizer=True), run(1))
    assert len({row.tobytes() for row in run(1).losses}) == ROWS


@pytest.mark.slow
def test_also_on_two_devices_of_a_batch_in_parts_with_bad_steps_skipped(x64):
    made = run(2, shard_optimizer=True, accumulate=2, skip_nonfinite=True)
    assert_equal_training(made, run(1))


def test_one_device_has_all(x64):
    """The same program, letter by letter."""
    texts, mesh = [], make_mesh(1)
    for on in (True, False):
        made = gan(shard_optimizer=on)
        like = abstract_state(made, mesh)
        assert {x.sharding.spec for x in jax.tree.leaves(like)} == {P()}
        step = make_train_step(made, mesh, 1)
        lowered = step.lower(like, images(1, BATCH), hyper(1, made), np.int32(1))
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


def kernels(tree):
    return [x for x in jax.tree.leaves(tree) if x.ndim == 4]


def test_each_device_keeps_a_share_of_the_averages_and_all_else(x64):
    state = run(4, shard_optimizer=True).state
    for net in (state.gen, state.disc):
        for moments in (net.opt_state.mu, net.opt_state.nu):
            for x in kernels(moments):
                assert 4 * x.addressable_shards[0].data.size == x.size
            assert any(x.ndim == 1 for x in jax.tree.leaves(moments))
        whole = jax.tree.leaves((net.params, net.stats, net.opt_state.count))
        whole += [x for x in jax.tree.leaves(net.opt_state) if x.ndim < 4]
        assert all(x.sharding.is_fully_replicated for x in whole)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.ema))


def test_as_much_is_sent_as_without(x64):
    """Gradients of kernels go to their device, the rest to all; then new kernels to all."""
    split = run(4, shard_optimizer=True)
    sent = collectives(split.text)
    assert {name for name, _ in sent} == {"all-reduce", "reduce-scatter", "all-gather"}
    sums = {name: sum(size for n, size in sent if n == name) for name, _ in sent}
    nets = [(net.params, net.stats) for net in (split.state.gen, split.state.disc)]
    size = 8 * sum(x.size for x in kernels(nets))
    whole = 8 * sum(x.size for x in jax.tree.leaves(nets))
    assert sums["all-gather"] == size
    assert 4 * sums["reduce-scatter"] == size
    assert sums["all-reduce"] == whole - size + 8 * len(split.gan.metric_names)
    assert [name for name, _ in sent].count("all-reduce") == 2


def test_a_checkpoint_is_the_same_either_way(x64):
    a, b = (abstract_state(gan(shard_optimizer=on), make_mesh(4)) for on in (True, False))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), a, b))
    drawn = draw(gan(shard_optimizer=True), 0, a)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, drawn, a))
    wanted = leaves(fresh(gan()))
    assert all(np.allclose(x, wanted[name], 1e-6, 1e-9) for name, x in leaves(drawn).items())


@pytest.mark.slow
def test_a_bad_step_is_skipped_where_one_device_alone_sees_it(x64):
    """The square of a gradient, of which each device has a share, is beyond what a float holds."""
    skipping = run(2, shard_optimizer=True, accumulate=2, skip_nonfinite=True)
    table = hyper(ROWS, skipping.gan, l1=1e170)
    state, losses = skipping(skipping.start, table, 1)
    assert np.isnan(losses[0]).all() and int(state.step) == 1
    assert same(state._replace(step=skipping.start.step), skipping.start)


def test_a_state_is_laid_out_as_the_compiled_step_wants_it(x64):
    split = run(4, shard_optimizer=True)
    assert laid_out_for(split.step, split.start) is split.start
    formats = jax.tree.map(lambda x: x.format, turned(split.start._replace(key=split.start.step)))
    formats = formats._replace(key=split.start.key.sharding)
    program = jax.jit(lambda state: state, in_shardings=(formats,)).lower(split.like)
    there = laid_out_for(program.compile(QUICK), split.start)
    kernel = there.gen.opt_state.mu["enc1"]["conv"]["kernel"]
    assert kernel.format.layout.major_to_minor == (0, 1, 3, 2)
    assert kernel.sharding == split.start.gen.opt_state.mu["enc1"]["conv"]["kernel"].sharding
    assert same(there, split.start)


@pytest.mark.parametrize(
    ("shape", "parts", "axis"),
    [
        ((4, 4, 64, 128), 4, 3),
        ((4, 4, 512, 512), 8, 2),
        ((4, 4, 512, 1), 8, 2),
        ((4, 4, 3, 64), 3, 2),
        ((4, 4, 3, 5), 2, 0),
        ((7, 7, 3, 5), 2, None),
        ((512,), 2, None),
        ((), 2, None),
        ((4, 4, 64, 128), 1, None),
    ],
)
def test_the_largest_dimension_that_divides_is_split(shape, parts, axis):
    assert split_axis(shape, parts) == axis
    assert spec(shape, "data", parts) == (P() if axis is None else P(*[None] * axis, "data"))


def test_nearly_all_of_the_paper_s_networks_is_split():
    made = make_gan(merge(base(), {"train.shard_optimizer": True}))
    assert made.shard_optimizer and not make_gan(base()).shard_optimizer
    like = abstract_state(make_gan(base()), make_mesh(1))
    for net in (like.gen, like.disc):
        shapes = [x.shape for x in jax.tree.leaves(net.params)]
        for parts in (4, 8, 64):
            whole = sum(math.prod(s) for s in shapes if split_axis(s, parts) is None)
            assert whole < 0.001 * sum(map(math.prod, shapes)), parts
