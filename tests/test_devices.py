"""One, two and four devices train alike: examples, draws, losses, gradients; and what is sent."""

from __future__ import annotations

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CPU32,
    CPU64,
    Step,
    cpu_step,
    discriminator,
    fresh,
    generator,
    hyper,
    images,
    leaves,
    rel,
    same,
    tiny_gan,
)

from p2p_jax.augment import Augment
from p2p_jax.mesh import make_mesh
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import dropout
from p2p_jax.networks import abstract_state
from p2p_jax.state import count, init
from p2p_jax.step import make_train_step


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- examples and draws --------------------------------------------------------------------------


class Sink:
    """What the networks were called with, call by call."""

    def __init__(self):
        self.gen, self.disc = [], []


class SpyGenerator(nn.Module):
    """A one-parameter generator that shows what it is given, and the mask dropout would make."""

    seen: Sink

    @nn.compact
    def __call__(self, source, keys=None, running=False):
        if keys is not None:
            mask = dropout(jnp.ones((len(keys), 4, 5, 6)), keys, 1)
            jax.debug.callback(
                lambda *call: self.seen.gen.append(call), jax.random.key_data(keys), source, mask
            )
        return jnp.tanh(source * self.param("p", nn.initializers.ones, (1, 1, 1, 3)))


class SpyDiscriminator(nn.Module):
    """A one-parameter discriminator that shows the pairs it is given."""

    seen: Sink

    @nn.compact
    def __call__(self, source, image, running=False):
        jax.debug.callback(lambda *call: self.seen.disc.append(call), source, image)
        logits = (source + image) * self.param("p", nn.initializers.ones, (1, 1, 1, 3))
        return ((logits,),)


def examples(calls):
    """What was seen, one entry an example, whatever device it came from."""
    return [tuple(np.asarray(x[i]).tobytes() for x in call) for call in calls
            for i in range(len(call[0]))]  # fmt: skip


@functools.cache
def watched(devices):
    """What the networks see of two steps of four examples."""
    seen = Sink()
    gan = tiny_gan(Policy(), generator=SpyGenerator(seen), discriminator=SpyDiscriminator(seen))
    step, state = Step(gan, devices), fresh(gan)
    result = []
    for _ in range(2):
        jax.effects_barrier()
        seen.gen.clear()
        seen.disc.clear()
        state, _ = step(state, images())
        jax.effects_barrier()
        result.append({"gen": examples(seen.gen), "disc": examples(seen.disc)})
    return result


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_examples_crops_and_masks_are_exactly_those_of_one_device(devices):
    for alone, together in zip(watched(1), watched(devices), strict=True):
        assert len(set(alone["gen"])) == 4
        assert sorted(together["gen"]) == sorted(alone["gen"])
        # Real and fake, and the fake once more for the generator: targets are cut as sources are.
        assert len(alone["disc"]) == 12
        assert sorted(together["disc"]) == sorted(alone["disc"])


def test_draws_follow_seed_step_and_place_in_the_global_batch():
    first, second = watched(1)
    assert not {seen[0] for seen in first["gen"]} & {seen[0] for seen in second["gen"]}
    assert not {seen[2] for seen in first["gen"]} & {seen[2] for seen in second["gen"]}
    key = jax.random.key(0, impl="threefry2x32")
    gan = tiny_gan(Policy())
    for number, step in enumerate((first, second)):
        base = jax.random.fold_in(key, number)
        for i, (drop_key, source, _) in enumerate(step["gen"]):
            augment_key, wanted = (
                jax.random.fold_in(jax.random.fold_in(base, purpose), i) for purpose in (1, 2)
            )
            assert drop_key == np.asarray(jax.random.key_data(wanted)).tobytes()
            top, left, mirrored = map(int, gan.augment.draw(augment_key))
            crop = images()[0][0, i, top : top + 16, left : left + 16].astype(np.float32)
            crop = (crop[:, ::-1] if mirrored else crop) / np.float32(127.5) - 1
            got = np.frombuffer(source, np.float32).reshape(16, 16, 3)
            assert np.allclose(got, crop, atol=1e-6)


# --- losses and gradients ------------------------------------------------------------------------


def gradients(state):
    """Both networks' gradients after one step from a fresh state: Adam's first moment is half."""
    return {
        f"{net}{name}": 2 * moment
        for net in ("gen", "disc")
        for name, moment in leaves(getattr(state, net).opt_state.mu).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_five_steps_have_the_losses_of_one_device(x64, devices):
    rows = {}
    for n in (1, devices):
        step = cpu_step("float64", n)
        state, rows[n] = fresh(step.gan), []
        for _ in range(5):
            state, losses = step(state, images())
            rows[n].append(losses[0])
    assert np.abs(np.array(rows[devices]) / np.array(rows[1]) - 1).max() < 1e-9
    assert len({row.tobytes() for row in rows[1]}) == 5


def first_losses(step):
    return step(fresh(step.gan), images())[1]


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_first_step_in_float32_has_the_losses_of_one_device(devices):
    one, many = (first_losses(cpu_step("float32", n)) for n in (1, devices))
    assert np.abs(many / one - 1).max() < 1e-6


@pytest.mark.parametrize("devices", [2, 4])
def test_the_gradient_is_the_mean_over_devices(x64, devices):
    """Not the sum, which Adam would nearly hide; and the whole state follows."""
    one, many = (cpu_step("float64", n) for n in (1, devices))
    wanted, got = (step(fresh(step.gan), images())[0] for step in (one, many))
    assert gradients(got).keys() == gradients(wanted).keys()
    for name, gradient in gradients(wanted).items():
        assert np.abs(gradient).max() > 1e-6
        assert rel(gradients(got)[name], gradient) < 1e-10, name
    for net in ("gen", "disc"):
        for name, value in leaves(getattr(wanted, net).stats).items():
            assert rel(leaves(getattr(got, net).stats)[name], value) < 1e-12
    assert same(got.key, wanted.key) and int(got.step) == 1


@functools.cache
def whole_batch_gan():
    return tiny_gan(CPU64, dict(norm_group=0), dict(norm_group=0))


@functools.cache
def whole_batch_step(devices):
    return Step(whole_batch_gan(), devices)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_statistics_of_the_whole_batch_span_devices(x64, devices):
    """Outputs, by the losses, and gradients, which flow through the statistics of all examples."""
    one, many = (whole_batch_step(n) for n in (1, devices))
    (wanted, wanted_losses), (got, losses) = (
        step(fresh(step.gan), images()) for step in (one, many)
    )
    assert np.abs(losses / wanted_losses - 1).max() < 1e-12
    for name, gradient in gradients(wanted).items():
        assert rel(gradients(got)[name], gradient) < 1e-10, name
    for net in ("gen", "disc"):
        for name, value in leaves(getattr(wanted, net).stats).items():
            assert rel(leaves(getattr(got, net).stats)[name], value) < 1e-12
    # Not by accident: statistics of each image make other losses.
    alone = cpu_step("float64")
    assert np.abs(alone(fresh(alone.gan), images())[1] / losses - 1).max() > 1e-4


def test_a_group_that_straddles_devices_is_refused():
    with pytest.raises(ValueError, match="norm_group=2 does not divide the 1 examples"):
        Step(tiny_gan(CPU32, dict(norm_group=2)), 4)


# --- what is sent --------------------------------------------------------------------------------

COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute",
    "collective-broadcast", "ragged-all-to-all", "send", "recv",
)  # fmt: skip
WIDTHS = {"f32": 4, "f64": 8, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


def collectives(text):
    """Name and bytes of each collective of a compiled program, start and done counted once."""
    found = re.findall(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    sent = []
    for shape, name in found:
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        size = sum(WIDTHS[t] * math.prod(int(d) for d in dims.split(",") if d)
                   for t, dims in shapes)  # fmt: skip
        sent.append((name, size))
    return sent


@pytest.mark.parametrize("devices", [2, 4])
def test_two_all_reduces_a_step_and_nothing_else(devices):
    """One a network: its gradients with the running statistics and losses, each sent once."""
    step = cpu_step("float32", devices)
    sent = collectives(step.text)
    assert [name for name, _ in sent] == ["all-reduce"] * 2
    state = fresh(step.gan)
    numbers = sum(count((net.params, net.stats)) for net in (state.gen, state.disc))
    assert sum(size for _, size in sent) == 4 * (numbers + len(step.gan.metric_names))


@pytest.mark.slow
def test_other_collectives_would_be_noticed(x64):
    """Synchronised statistics send more: the count above can fail."""
    assert len(collectives(whole_batch_step(4).text)) > 2


def test_statistics_and_losses_add_little_to_the_gradients():
    """At the size that is used: at most two in a hundred on top of the parameters."""
    gan = tiny_gan(
        Policy(),
        generator=generator(policy=Policy(), depth=8, base_features=64),
        discriminator=discriminator(Policy(), layers=3, base_features=64),
        augment=Augment((286, 286), (256, 256), True),
    )
    state = jax.eval_shape(lambda: init(gan, 0))
    params = count((state.gen.params, state.disc.params))
    extra = count((state.gen.stats, state.disc.stats)) + len(gan.metric_names)
    assert params == 54_413_955 + 2_768_705
    assert params + extra <= 1.02 * params


@pytest.mark.parametrize("norm", ["instance", "instance_affine", "group", "none"])
def test_other_norms_are_split_over_devices_too(norm):
    """Whether the types that arrays have on a mesh fit is told before anything is compiled."""
    gan = tiny_gan(CPU32, dict(norm=norm), dict(norm=norm))
    mesh = make_mesh(2)
    like = abstract_state(gan, mesh)
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in images()]
    steps = jax.ShapeDtypeStruct((), np.int32)
    make_train_step(gan, mesh, 1).lower(like, tuple(given), hyper(1, gan), steps)


@pytest.mark.slow
def test_two_all_reduces_with_many_levels():
    gan = tiny_gan(
        CPU32,
        dict(depth=4, dropout=(1, 2)),
        dict(layers=2),
    )
    assert [name for name, _ in collectives(Step(gan, 4).text)] == ["all-reduce"] * 2
