"""The networks that are measured without a config are those of the default config."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2p_jax.bench import nets
from p2p_jax.config import base, merge
from p2p_jax.networks import make_gan
from p2p_jax.objectives import HYPER, RATES
from p2p_jax.update import example_keys


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("form", ["auto", "plain"])
def test_standard_is_what_the_default_config_makes(precision, form):
    config = merge(base(), {"train.precision": precision, "train.conv_form": form})
    ours, theirs = nets.standard(precision, form), make_gan(config)
    for field in dataclasses.fields(ours):
        if field.name in ("gen_tx", "disc_tx", "task", "reconstruction", "remat"):
            continue  # functions
        assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert ours.remat(jnp.sin) is theirs.remat(jnp.sin) is jnp.sin
    assert dict(ours.reconstruction).keys() == dict(theirs.reconstruction).keys() == {"l1"}
    assert (ours.task.channels, ours.task.output) == (theirs.task.channels, theirs.task.output)


def test_the_optimisers_are_those_of_the_default_config():
    config, ours = base(), nets.standard()
    theirs = make_gan(config)
    params = {"w": jnp.array([1.0, -2.0])}
    for name in ("gen_tx", "disc_tx"):
        updates = []
        for tx in (getattr(ours, name), getattr(theirs, name)):
            state = tx.init(params)
            for grad in (0.3, -4.0):
                found, state = tx.update({"w": jnp.array([grad, 1e-9])}, state, params)
            updates.append(found["w"])
        np.testing.assert_array_equal(*updates)


def test_rates_and_weights_are_those_of_the_default_config():
    config = base()
    expected = [
        config.optim[name.removesuffix("_lr")].lr if name in RATES else config.loss[name]
        for name in HYPER
    ]
    np.testing.assert_allclose(nets.hyper(3), np.tile(np.float32(expected), (3, 1)), rtol=1e-6)


def test_plain_computes_the_same():
    gan = nets.standard(tiny=True, dropout=True, form="polyphase")
    keys = example_keys(jax.random.key(0), 1, jnp.arange(2))
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
    variables = jax.jit(gan.generator.init)(jax.random.key(2), x)
    plain = nets.plain(gan)
    style = plain.generator.style  # type: ignore[attr-defined]
    assert (style.policy.form, style.policy.grad) == ("plain", "xla")
    assert plain.discriminator.style.policy == style.policy  # type: ignore[attr-defined]
    made = [jax.jit(net.generator.apply)(variables, x, keys) for net in (gan, plain)]
    np.testing.assert_allclose(*made, atol=1e-5)
