"""Adam, the schedules and the plateau, by definition and against torch where it is installed."""

from __future__ import annotations

import itertools
import json
import math

import jax
import numpy as np
import pytest
from helpers import quick_jit, rel

from p2p_jax.optim import BATCH_SCALING, SCHEDULES, Plateau, ScheduleOptions, adam, factor
from p2p_jax.state import NetState
from p2p_jax.update import _apply_gradients


@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("b1,b2,eps", [(0.5, 0.999, 1e-8), (0.9, 0.99, 1e-6)])
def test_adam_is_that_of_the_paper(dtype, tolerance, b1, b2, eps):
    """Kingma and Ba 2015, algorithm 1, with a rate that changes; eps outside the root."""
    rng = np.random.default_rng(0)
    p = rng.normal(size=(6, 7))
    # Some gradients no larger than eps, where it matters on which side of the root that stands.
    grads = rng.normal(size=(8, 6, 7)) * np.geomspace(1, eps, 7)
    rates = np.linspace(1e-2, 1e-3, 8)
    m, v, wanted = 0.0, 0.0, p.copy()
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        wanted = wanted - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    with jax.enable_x64(dtype == "float64"):
        tx = adam(b1, b2, eps)
        params = {"p": p.astype(dtype)}
        net = NetState(params, {"mean": np.zeros(3, dtype)}, tx.init(params))
        stats = {"mean": np.ones(3, dtype)}
        step = quick_jit(lambda net, g, lr: _apply_gradients(net, tx, {"p": g}, stats, lr))
        for g, lr in zip(grads.astype(dtype), rates.astype(dtype), strict=True):
            net = step(net, g, lr)
        assert net.params["p"].dtype == dtype
        assert rel(net.params["p"] - params["p"], wanted - p) < tolerance * 10
        assert rel(net.params["p"], wanted) < tolerance
        assert (net.stats["mean"] == 1).all()


# --- schedules -----------------------------------------------------------------------------------


def options(name="constant", **changes):
    """The reference's, by steps and without warm-up."""
    defaults = dict(
        decay_from=0.5, decay_every=0.25, decay_factor=0.1, patience=5, warmup_steps=0,
        by_epoch=False,
    )  # fmt: skip
    return ScheduleOptions(name, **(defaults | changes))


def curve(ticks, name, **changes):
    """A schedule at all its ticks."""
    return [SCHEDULES[name](tick, ticks, options(name, **changes)) for tick in range(ticks)]


def test_all_are_known():
    assert list(SCHEDULES) == ["constant", "linear", "step", "cosine", "plateau"]
    assert set(curve(10, "constant")) == set(curve(10, "plateau")) == {1.0}


@pytest.mark.parametrize("ticks", [1, 2, 3, 10, 57])
@pytest.mark.parametrize("decay_from", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_linear_falls_towards_but_never_to_zero(ticks, decay_from):
    factors = curve(ticks, "linear", decay_from=decay_from)
    start = int(ticks * decay_from)
    assert all(f == 1 for f in factors[:start])
    falling = np.array([1.0, *factors[start:], 0.0])  # the one before, and the end
    assert np.allclose(-np.diff(falling), 1 / (ticks - start + 1))  # in equal parts
    assert all(0 < f <= 1 for f in factors)


def test_linear_over_200_epochs_is_the_reference():
    wanted = [1 - max(0, epoch + 1 - 100) / 101 for epoch in range(200)]
    assert np.allclose(curve(200, "linear"), wanted, rtol=1e-13, atol=0)
    assert wanted[99] == 1 > wanted[100] and wanted[199] > 0


def test_step_falls_each_time():
    wanted = [1.0] * 50 + [0.1] * 50 + [0.01] * 50 + [0.001] * 50
    assert np.allclose(curve(200, "step"), wanted, rtol=1e-13, atol=0)
    assert curve(5, "step", decay_every=0.5, decay_factor=0.5) == [1, 1, 1, 0.5, 0.5]
    assert set(curve(5, "step", decay_every=1.0)) == {1.0}
    assert curve(2, "step", decay_every=1e-12) == [1.0, 0.0]  # too small for `_share` to simplify


def test_cosine_is_half_a_wave():
    factors = curve(8, "cosine")
    assert factors[0] == 1 and factors[4] == pytest.approx(0.5) and 0 < factors[7] < 0.05
    assert (np.diff(factors) < 0).all()
    # Around the middle, it is its own mirror image.
    assert np.allclose(np.add(factors[1:], factors[:0:-1]), 1)


@pytest.mark.parametrize("ticks", [10, 49, 100, 300, 700, 1000])
def test_shares_mean_what_they_say(ticks):
    """100 * 0.29 is a little less than 29 in floating point, 3 * 0.1 more than 0.3."""
    for part in range(1, ticks):
        share = part / ticks
        assert SCHEDULES["linear"](part - 1, ticks, options(decay_from=share)) == 1
        assert SCHEDULES["linear"](part, ticks, options(decay_from=share)) < 1
        half = options(decay_every=share, decay_factor=0.5)
        for times in range(1, (ticks - 1) // part + 1):
            assert SCHEDULES["step"](part * times, ticks, half) == 0.5**times
            assert SCHEDULES["step"](part * times - 1, ticks, half) == 0.5 ** (times - 1)


def torch_rates(make, epochs):
    """The rate of each epoch, from 1, with a scheduler of torch."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    for _ in range(epochs):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "name,make",
    [
        ("constant", lambda s, o: s.ConstantLR(o, factor=1.0)),
        ("linear", lambda s, o: s.LambdaLR(o, lambda e: 1 - max(0, e + 1 - 100) / (100 + 1))),
        ("step", lambda s, o: s.StepLR(o, step_size=50, gamma=0.1)),
        ("cosine", lambda s, o: s.CosineAnnealingLR(o, T_max=200, eta_min=0)),
    ],
)
def test_schedules_are_those_of_torch(name, make):
    """By epochs of 400 steps, over 200 epochs."""
    wanted = list(torch_rates(make, 200))
    by_epoch = options(name, by_epoch=True)
    for inside in (0, 399):
        got = [factor(by_epoch, e * 400 + inside, 80_000, 400, 1) for e in range(200)]
        assert np.allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_cosine_is_the_closed_form_of_torch():
    """Its `step` is recursive, and rounds more the longer it goes."""

    def make(schedulers, optimizer):
        scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=200, eta_min=0)
        return schedulers.LambdaLR(optimizer, lambda e: closed(scheduler, e))

    def closed(scheduler, epoch):
        scheduler.last_epoch = epoch
        return scheduler._get_closed_form_lr()[0]

    assert np.allclose(curve(200, "cosine"), list(torch_rates(make, 200)), rtol=1e-12, atol=1e-15)


# --- factor --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_by_step_the_tick_is_the_step(name):
    got = [factor(options(name), step, 30, 7, 4) for step in range(30)]
    assert got == curve(30, name)


@pytest.mark.parametrize("examples,batch", [(100, 1), (100, 3), (7, 2), (3, 1), (16, 16), (5, 9)])
@pytest.mark.parametrize("epochs", [1, 4, 200])
def test_by_epoch_the_tick_is_the_epoch_that_a_step_begins_in(examples, batch, epochs):
    """Whether the last step is a whole one or not, epochs are as many as were asked for."""
    steps = -(-epochs * examples // batch)
    ahead = options("linear", decay_from=0.0, by_epoch=True)
    for step in range(steps):
        # By counting the examples one by one, as it were.
        epoch = sum(1 for e in range(1, epochs + 1) if e * examples <= step * batch)
        ticks = steps * batch // examples if batch > examples else epochs
        assert factor(ahead, step, steps, examples, batch) == (ticks - epoch) / (ticks + 1)


def test_large_runs_are_exact():
    """Where step / (examples / batch) in floating point is a little off a whole number."""
    examples, batch, epochs = 10**7 + 19, 3, 3000
    steps = -(-epochs * examples // batch)
    ahead = options("linear", decay_from=0.0, by_epoch=True)
    for epoch in (1, 2, 999, 1001, 2999):
        first = -(-epoch * examples // batch)  # the first step that begins in it
        assert factor(ahead, first, steps, examples, batch) == (epochs - epoch) / (epochs + 1)
        assert factor(ahead, first - 1, steps, examples, batch) > (epochs - epoch) / (epochs + 1)


@pytest.mark.parametrize("by_epoch", [False, True])
def test_warm_up_rises_by_steps_to_the_schedule(by_epoch):
    cold = options("cosine", by_epoch=by_epoch)
    warm = options("cosine", by_epoch=by_epoch, warmup_steps=5)
    ratios = [factor(warm, s, 20, 4, 1) / factor(cold, s, 20, 4, 1) for s in range(20)]
    assert np.allclose(ratios, [0.2, 0.4, 0.6, 0.8] + [1.0] * 16)


# --- plateau -------------------------------------------------------------------------------------


def series(seed, mode, n=200):
    """Values that get better for a while, by more and by less than the threshold, and stall."""
    rng = np.random.default_rng(seed)
    values = np.maximum.accumulate(rng.normal(1, 0.05, n)) + rng.normal(0, 0.004, n)
    values = np.round(values, 2)  # so that some meet the threshold exactly
    values[rng.integers(0, n, 4)] = np.nan
    return (values if mode == "max" else np.round(1 / values, 2)).tolist()


def scales(plateau, values):
    """The scale after each value."""
    for value in values:
        plateau.update(value)
        yield plateau.scale


CASES = list(itertools.product(("min", "max"), (0, 1, 5), range(3)))


@pytest.mark.parametrize("mode,patience,seed", CASES)
def test_plateau_falls_after_patience(mode, patience, seed):
    values = series(seed, mode)
    scale, bad, best, wanted = 1.0, 0, None, []
    for value in values:
        better = not math.isnan(value) and (
            best is None or (value > best * 1.01 if mode == "max" else value < best * 0.99)
        )
        best, bad = (value, 0) if better else (best, bad + 1)
        if bad == patience + 1:
            scale, bad = scale * 0.5, 0
        wanted.append(scale)
    assert wanted[-1] < 1
    assert list(scales(Plateau(mode, 0.5, patience), values)) == wanted


@pytest.mark.parametrize("mode,patience,seed", CASES)
def test_plateau_is_that_of_torch(mode, patience, seed):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.7, threshold=0.01, patience=patience, eps=0.0
    )
    values, wanted = series(seed, mode), []
    for value in values:
        scheduler.step(value)
        wanted.append(optimizer.param_groups[0]["lr"])
    assert list(scales(Plateau(mode, 0.7, patience), values)) == wanted


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_goes_on_where_it_was(mode):
    values = [math.nan, *series(3, mode, 60)]
    wanted = list(scales(Plateau(mode, 0.7, 2), values))
    assert wanted[-1] < 1
    for at in range(len(values) + 1):
        before = Plateau(mode, 0.7, 2)
        got = list(scales(before, values[:at]))
        saved = json.loads(json.dumps(before.saved(), allow_nan=False))
        after = Plateau(mode, 0.7, 2, saved=saved)
        assert after.scale == before.scale and after.saved() == before.saved()
        assert got + list(scales(after, values[at:])) == wanted


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_not_finite_is_no_progress(mode, value):
    plateau = Plateau(mode, 0.5, 1)
    assert list(scales(plateau, [value, value])) == [1.0, 0.5]
    assert list(scales(plateau, [np.float32(3.0), value, value])) == [0.5, 0.5, 0.25]
    assert json.loads(json.dumps(plateau.saved())) == {"scale": 0.25, "best": 3.0, "bad": 0}


@pytest.mark.parametrize("mode,values", [("max", [-10.0, -9.95, -9.8]), ("min", [-10, -10, -10.2])])
def test_below_zero_better_is_better_too(mode, values):
    """Torch would take -10.05 for more than -10, as it is above -10 * 1.01."""
    plateau = Plateau(mode, 0.5, 0)
    assert list(scales(plateau, values)) == [1.0, 0.5, 0.5]
    assert list(scales(plateau, [values[-1]])) == [0.25]


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'best' must be 'min' or 'max'"):
        Plateau("best", 0.5, 1)


# --- batch size ----------------------------------------------------------------------------------


def test_batch_scaling():
    assert list(BATCH_SCALING) == ["none", "linear", "sqrt"]
    got = {name: [fn(b) for b in (1, 4, 16)] for name, fn in BATCH_SCALING.items()}
    assert got == {"none": [1, 1, 1], "linear": [1, 4, 16], "sqrt": [1, 2, 4]}
    assert all(isinstance(value, float) for values in got.values() for value in values)
