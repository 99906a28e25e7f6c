"""Updates of which something is not finite are left out, and training goes on after them."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import CPU32, QUICK, Step, fresh, hyper, images, leaves, same, tiny_gan

from p2p_jax.config import base, merge
from p2p_jax.images import Values
from p2p_jax.mesh import make_mesh
from p2p_jax.networks import make_gan
from p2p_jax.objectives import HYPER
from p2p_jax.state import init
from p2p_jax.step import make_train_step

ROWS = 3


def skipping(**changes):
    """Float sources, which can be NaN, and averaged parameters."""
    values = Values("float32", 0, 255), Values()
    return tiny_gan(CPU32, skip_nonfinite=True, ema_decay=0.9, values=values, **changes)


def batch():
    source, target = images(ROWS)
    return source.astype(np.float32), target


class FloatStep(Step):
    """A step that is given the floats of `batch`."""

    def __init__(self, devices):
        self.gan, self.rows, self.mesh = skipping(), ROWS, make_mesh(devices)
        state = jax.eval_shape(lambda: init(self.gan, 0))
        lowered = make_train_step(self.gan, self.mesh, ROWS).lower(
            state, batch(), hyper(ROWS, self.gan), np.int32(1)
        )
        self._compiled = lowered.compile(QUICK)


@functools.cache
def step(devices):
    return FloatStep(devices)


def one(step, state, at, batch, table):
    """The state and losses after the step at this place alone."""
    part = tuple(np.roll(x, -at, 0) for x in batch)
    state, losses = step(state, part, np.roll(table, -at, 0), 1)
    return state, losses[0]


def with_nan_source():
    source, target = batch()
    source[1, 3, 5, 5, 0] = np.nan  # one value of one image, on the last device
    return (source, target), hyper(ROWS, skipping())


def with_rate(name, value):
    table = hyper(ROWS, skipping())
    table[1, HYPER.index(name)] = value
    return batch(), table


CASES = {
    "source": with_nan_source,
    # Losses are finite with these: it is seen by the gradient, its square or the rate alone.
    "weight": lambda: with_rate("l1", np.inf),
    "square": lambda: with_rate("disc", 1e30),
    "rate": lambda: with_rate("gen_lr", np.nan),
}


@pytest.mark.parametrize(
    ("case", "devices"),
    [("source", 1), ("weight", 1), ("square", 1), ("rate", 1), ("source", 2), ("square", 2)],
)
def test_a_bad_step_leaves_the_state_to_the_bit_and_the_next_is_as_if_it_had_not_been(
    case, devices
):
    run = step(devices)
    given, table = CASES[case]()
    start = fresh(run.gan)
    first, losses = one(run, start, 0, given, table)
    assert np.isfinite(losses).all() and not same(first.gen, start.gen)
    second, bad = one(run, first, 1, given, table)
    assert np.isnan(bad).all()
    assert int(second.step) == 2
    assert same(second._replace(step=first.step), first)
    third, after = one(run, second, 2, given, table)
    # At that step, from the state before the bad one: the good step that there was.
    wanted, wanted_losses = one(run, first._replace(step=second.step), 2, given, table)
    assert same(third, wanted) and (after == wanted_losses).all() and np.isfinite(after).all()
    changed = [
        name for name, x in leaves(second.gen).items() if (x != leaves(third.gen)[name]).any()
    ]
    assert len(changed) == len(leaves(second.gen))
    # And all three in one dispatch.
    state, rows = run(start, given, table, 3)
    assert same(state, third)
    assert rows.tobytes() == np.stack([losses, bad, after]).tobytes()


def test_a_config_says_so():
    for value in ("stop", "skip", "rollback"):
        gan = make_gan(merge(base(), {"train.on_nan": value}))
        assert gan.skip_nonfinite == (value == "skip")
