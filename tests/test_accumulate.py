"""Parts of a batch one after another, and activations computed again: less memory, same result."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import (
    CPU64,
    QUICK,
    Step,
    equations,
    fresh,
    generator,
    hyper,
    images,
    leaves,
    rel,
    tiny_gan,
)

from p2p_jax.augment import Augment
from p2p_jax.config import base, flatten
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.mesh import make_mesh
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import REMAT
from p2p_jax.state import init
from p2p_jax.step import make_train_step
from p2p_jax.validate import validate


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# What could tell parts from the whole: statistics of groups, draws by place, several losses.
GANS = {
    "groups": {"gen": {"norm_group": 2}, "disc": {"norm_group": 2}, "ema_decay": 0.9},
    "instance": {"gen": {"norm": "instance"}, "disc": {"norm": "instance"}, "simultaneous": True},
    "spectral": {
        "disc": {"spectral": True, "norm": "none", "bias": "all"},
        "adversarial": ADVERSARIAL["hinge"],
        "reconstruction": tuple(RECONSTRUCTION.items()),
        "feature_matching": True,
    },
    "penalty": {"disc": {"norm": "layer"}, "adversarial": ADVERSARIAL["wgan-gp"]},
}
BATCH = 8


def trained(gan, devices=1, steps=3):
    """State and losses after some steps of eight examples."""
    step, state = Step(gan, devices, steps, BATCH), fresh(gan)
    weights = {"feature_matching": 10.0, "gradient_penalty": 10.0, "ssim": 1.0}
    return step(state, images(steps, BATCH), hyper(steps, gan, **weights))


@functools.cache
def paper():
    return trained(tiny_gan(CPU64))


def assert_same_training(one, other):
    (a, losses), (b, others) = one, other
    assert rel(losses, others) < 1e-9
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.dtype.kind == "f" and value.any():
            # A gradient that is zero but for rounding, as of a bias before a norm, makes a step of
            # Adam's that is rounding divided by its eps.
            bound = 1e-8 * abs(value).max() + 1e-15
            if "['conv']['bias']" in name:
                bound = 1e-13 if "opt_state" in name else 1e-8
            assert abs(value - b[name]).max() < bound, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, parts, devices",
    [("groups", 2, 2), ("penalty", 4, 1)],
)
def test_parts_are_the_whole(x64, name, parts, devices):
    gan = tiny_gan(CPU64, **GANS[name])
    in_parts = dataclasses.replace(gan, accumulate=parts)
    assert_same_training(trained(gan), trained(in_parts, devices))


def test_parts_are_the_whole_in_the_paper(x64):
    """One example a part, the most that there can be; losses move, so that it says something."""
    assert len(set(paper()[1][:, 0])) == 3
    assert_same_training(paper(), trained(tiny_gan(CPU64, accumulate=BATCH)))


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_computed_again_is_the_same(x64, parts):
    again = tiny_gan(CPU64, remat=REMAT["activations"], accumulate=parts)
    assert_same_training(paper(), trained(again))


@pytest.mark.parametrize("policy", [CPU64, Policy("bfloat16")], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("name", GANS)
def test_the_step_has_loops_and_recomputes_as_it_is_told(x64, name, policy):
    """On two devices; nothing is compiled."""
    found = {}
    for parts, remat in ((1, "none"), (2, "none"), (1, "activations"), (2, "activations")):
        gan = tiny_gan(policy, **GANS[name], accumulate=parts, remat=REMAT[remat])
        state = jax.eval_shape(lambda gan=gan: init(gan, 0))
        step = make_train_step(gan, make_mesh(2), 1)
        traced = step.trace(state, images(1, BATCH), hyper(1, gan), np.int32(1))
        names = [eqn.primitive.name for eqn in equations(traced.jaxpr)]
        found[parts, remat] = names.count("scan"), names.count("remat2") + names.count("checkpoint")
    loops, again = found[1, "none"]
    assert again == 0 and found[2, "none"] == (loops + 2, 0)
    # The discriminator's loss, the generator, and its loss; with parts it is made once more.
    assert found[1, "activations"][0] == loops and found[1, "activations"][1] >= 3
    assert found[2, "activations"][0] == loops + 2 and found[2, "activations"][1] >= 3


def test_groups_of_several_examples_are_drawn_with_one():
    gan = tiny_gan(Policy(), gen={"norm_group": 2}, disc={"norm_group": 4})
    assert jax.eval_shape(lambda: init(gan, 0)).step.shape == ()


def test_parts_that_do_not_divide_the_examples_are_refused():
    gan = tiny_gan(Policy(), accumulate=3)
    with pytest.raises(ValueError, match="accumulate=3 does not divide the 4 examples"):
        Step(gan, 2, 1, BATCH)


def _temporaries(gan, batch=16, size=64):
    """Bytes that the compiled step needs beside what it is given."""
    state = jax.eval_shape(lambda: init(gan, 0))
    step = make_train_step(gan, make_mesh(1), 1)
    args = (state, images(1, batch, size), hyper(1, gan), jax.numpy.int32(1))
    return step.lower(*args).compile(QUICK).memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_parts_need_less_memory():
    gan = tiny_gan(
        Policy(),  # convolutions as accelerators have them, without the copies of products
        gen={"depth": 4, "base_features": 16}, disc={"layers": 2, "base_features": 8},
        augment=Augment((64, 64), (64, 64), True),
    )  # fmt: skip
    whole = _temporaries(gan)
    assert _temporaries(dataclasses.replace(gan, accumulate=4)) < 0.5 * whole


def test_only_what_convolutions_make_is_kept():
    """XLA's CPU backend orders a program as it likes, so the bytes kept are counted before it."""
    net = generator(policy=Policy(), depth=4)
    source = np.zeros((2, 64, 64, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), source))

    def kept(remat):
        def translated(params):
            def forward(params):
                variables_ = {"params": params, "stats": stats}
                return net.apply(variables_, source, keys, mutable=["stats"])[0]

            stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables["stats"])
            return jax.vjp(remat(forward), params)[1]

        pull = jax.eval_shape(translated, variables["params"])
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))

    assert kept(REMAT["activations"]) < 0.6 * kept(REMAT["none"])


# --- configs -------------------------------------------------------------------------------------


def problems(**changes):
    config = base().unlock()
    config.data.path = "/"
    config.mesh.devices = 2
    config.train.batch_size = 24
    for key, value in changes.items():
        node = config
        *path, leaf = key.split("__")
        for part in path:
            node = node[part]
        node[leaf] = value
    assert set(flatten(config)) == set(flatten(base()))
    return [p for p in validate(config, training=True) if p.startswith(("train.", "model."))]


def test_a_batch_that_has_such_parts_is_taken():
    assert problems(train__accumulate=4) == []
    assert problems(train__accumulate=12) == []
    assert problems(train__accumulate=4, model__generator__norm_group=3) == []
    assert problems(train__remat="activations") == []


def test_parts_that_do_not_divide_a_batch_are_refused():
    assert problems(train__accumulate=5) == [
        "train.accumulate: 5 does not divide the 12 images of each of 2 devices; one of 1, 2, 3, "
        "4, 6, 12 does"
    ]
    assert "1 (the whole batch at once) or more" in problems(train__accumulate=0)[0]
    assert "'activation' is not one of none, activations" in problems(train__remat="activation")[0]


def test_groups_may_not_straddle_parts():
    (problem,) = problems(train__accumulate=4, model__generator__norm_group=2)
    assert problem == (
        "model.generator.norm_group: 2 does not divide the 12 images of each of 2 devices in 4 "
        "parts; one of 1, 3 does"
    )


def test_statistics_of_the_whole_batch_cannot_be_taken_in_parts():
    assert problems(train__accumulate=4, model__discriminator__norm_group=0) == [
        "model.discriminator.norm_group: 0 takes statistics of the whole batch, of which "
        "train.accumulate=4 has a part at a time; use one of 1, 3"
    ]
    assert (
        problems(
            train__accumulate=4,
            model__discriminator__norm_group=0,
            model__discriminator__norm="layer",
        )
        == []
    )
