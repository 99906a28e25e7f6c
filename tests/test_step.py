"""The training step: its order, against a plain reimplementation, and its loop."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CPU32,
    PLAIN64,
    QUICK,
    Step,
    cpu_gan,
    cpu_step,
    equations,
    fresh,
    generator,
    hyper,
    images,
    leaves,
    quick_jit,
    same,
    tiny_gan,
    turned,
)

from p2p_jax.images import Values
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.mesh import make_mesh
from p2p_jax.models import products
from p2p_jax.models.conv import Policy, conv_down, conv_up
from p2p_jax.objectives import HYPER
from p2p_jax.state import TrainState, init
from p2p_jax.step import laid_out_for, make_sample, make_train_step
from p2p_jax.tasks import TASKS, TaskOptions


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def after_two(step):
    """A state whose moments and statistics have left their first values."""
    state = fresh(step.gan)
    for _ in range(2):
        state, _ = step(state, images())
    return state


def changed(before, after):
    """Which leaves of two trees differ."""
    a, b = leaves(before), leaves(after)
    return {name for name in a if a[name].tobytes() != b[name].tobytes()}


def test_a_state_is_laid_out_as_the_compiled_step_wants_it():
    state = fresh(cpu_gan("float32"))
    formats = jax.tree.map(lambda x: x.format, turned(state._replace(key=state.step)))
    formats = formats._replace(key=state.key.sharding)

    compiled = jax.jit(lambda state: state, in_shardings=(formats,)).lower(state).compile(QUICK)
    there = laid_out_for(compiled, state)
    assert laid_out_for(compiled, there) is there
    assert there.gen.params["enc1"]["conv"]["kernel"].format.layout.major_to_minor == (0, 1, 3, 2)
    assert same(compiled(there), state)


# --- one update ----------------------------------------------------------------------------------


def plain_update(gan, state, source, target, row, stale=False):
    """One update as the paper tells it: whole losses differentiated one after the other.

    `stale` lets the generator see the discriminator from before its update, which is wrong.
    """
    h = dict(zip(HYPER, row, strict=True))
    key = jax.random.fold_in(state.key, state.step)

    def keys(purpose):
        base = jax.random.fold_in(key, purpose)
        return jnp.stack([jax.random.fold_in(base, i) for i in range(len(source))])

    pair = gan.augment(keys(1), *(jnp.asarray(x, jnp.float64) for x in (source, target)))
    source, target = (x / 127.5 - 1 for x in pair)
    masks = keys(2)

    def generate(params):
        variables = {"params": params, "stats": state.gen.stats}
        fake, new = gan.generator.apply(variables, source, masks, mutable=["stats"])
        return fake, new["stats"]

    def judge(params, stats, image):
        variables = {"params": params, "stats": stats}
        ((*_, logits),), new = gan.discriminator.apply(variables, source, image, mutable=["stats"])
        return logits, new["stats"]

    def adam(net, grads, lr):
        old = net.opt_state
        t = old.count + 1
        mu = jax.tree.map(lambda m, g: 0.5 * m + 0.5 * g, old.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, old.nu, grads)

        def move(p, m, v):
            return p - lr * (m / (1 - 0.5**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)

        return jax.tree.map(move, net.params, mu, nu), old._replace(count=t, mu=mu, nu=nu)

    fake, gen_stats = generate(state.gen.params)

    def disc_loss(params):
        fake_logits, stats = judge(params, state.disc.stats, fake)
        real_logits, stats = judge(params, stats, target)
        loss = jnp.logaddexp(0, -real_logits).mean() + jnp.logaddexp(0, fake_logits).mean()
        return h["disc"] * loss, (loss, stats)

    grads, (loss_disc, disc_stats) = jax.grad(disc_loss, has_aux=True)(state.disc.params)
    params, opt_state = adam(state.disc, grads, h["disc_lr"])
    disc = state.disc._replace(params=params, stats=disc_stats, opt_state=opt_state)
    seen = state.disc if stale else disc

    def gen_loss(params):
        fake, _ = generate(params)
        logits, _ = judge(seen.params, seen.stats, fake)
        gan_loss, l1 = jnp.logaddexp(0, -logits).mean(), jnp.abs(fake - target).mean()
        return h["gan"] * gan_loss + h["l1"] * l1, (gan_loss, l1)

    grads, (gan_loss, l1) = jax.grad(gen_loss, has_aux=True)(state.gen.params)
    params, opt_state = adam(state.gen, grads, h["gen_lr"])
    gen = state.gen._replace(params=params, stats=gen_stats, opt_state=opt_state)
    losses = jnp.stack([loss_disc, gan_loss, l1])
    return TrainState(state.step + 1, gen, disc, state.ema, state.key), losses


def difference(a, b):
    """The largest difference of two trees, relative to the largest value of its leaf."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    return {k: np.abs(a[k] - b[k]).max() / max(np.abs(b[k]).max(), 1e-300) for k in a}


def test_an_update_is_that_of_the_paper(x64):
    """Through the discriminator already updated; statistics, moments and unweighted losses too."""
    step = cpu_step("float64")
    gan = tiny_gan(PLAIN64)
    state, (source, target), row = after_two(step), images(), hyper(1, gan, l1=10.0)
    got, losses = step(state, (source, target), row)
    both = quick_jit(
        lambda state, s, t, row: [plain_update(gan, state, s, t, row, old) for old in (False, True)]
    )
    (wanted, wanted_losses), (stale, stale_losses) = both(state, source[0], target[0], row[0])
    assert max(difference(got, wanted).values()) < 1e-10
    assert np.abs(losses[0] / wanted_losses - 1).max() < 1e-10
    # That this could tell the order: the generator's moments hold its gradient.
    off = difference(got.gen.opt_state.mu, stale.gen.opt_state.mu)
    assert min(off.values()) > 1e-6
    assert abs(losses[0, 1] / stale_losses[1] - 1) > 1e-6
    assert max(difference(got.disc, stale.disc).values()) < 1e-10


def test_losses_are_unweighted_and_each_weight_reaches_its_network(x64):
    step = cpu_step("float64")
    state, batch = after_two(step), images()

    def run(**changes):
        after, losses = step(state, batch, hyper(1, step.gan, **changes))
        return after, losses[0]

    base, losses = run(disc_lr=0.0)
    for changes, nets in (
        (dict(disc=5.0), {"disc"}),  # its moments alone, as its rate is zero here
        (dict(gan=3.0), {"gen"}),
        (dict(l1=7.0), {"gen"}),
        (dict(gen_lr=1e-4), {"gen"}),
    ):
        after, again = run(disc_lr=0.0, **changes)
        assert (again == losses).all(), changes
        for net in ("gen", "disc"):
            assert same(getattr(after, net), getattr(base, net)) == (net not in nets), (
                changes,
                net,
            )
    # A weight that belongs to no loss of this Gan does nothing.
    assert same(run(disc_lr=0.0, l2=9.0)[0], base)


def test_each_network_is_updated_by_its_own_rate(x64):
    step = cpu_step("float64")
    state, batch = after_two(step), images()
    only_disc, _ = step(state, batch, hyper(1, step.gan, gen_lr=0.0))
    assert same(only_disc.gen.params, state.gen.params)
    assert len(changed(state.disc.params, only_disc.disc.params)) == len(leaves(state.disc.params))
    only_gen, _ = step(state, batch, hyper(1, step.gan, disc_lr=0.0))
    assert same(only_gen.disc.params, state.disc.params)
    assert len(changed(state.gen.params, only_gen.gen.params)) == len(leaves(state.gen.params))
    # The discriminator does not care what its opponent's loss is.
    other, _ = step(state, batch, hyper(1, step.gan, gan=9.0, l1=0.0, gen_lr=1e-5))
    usual, _ = step(state, batch)
    assert same(other.disc, usual.disc)
    assert not same(other.gen.params, usual.gen.params)
    # The update is proportional to the rate.
    for lr in (1e-3, 4e-3):
        after, _ = step(state, batch, hyper(1, step.gan, gen_lr=lr))
        for name, moved in leaves(after.gen.params).items():
            whole = leaves(usual.gen.params)[name] - leaves(state.gen.params)[name]
            part = moved - leaves(state.gen.params)[name]
            assert np.allclose(part, whole * lr / 2e-3, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("depth,layers", [(2, 1), (3, 2)])
def test_the_generator_runs_forward_once(depth, layers):
    """Convolutions of one update, counted: a second forward pass would add 2 * depth of them."""
    dropped = dict(depth=depth, dropout=(1,))
    gan = tiny_gan(Policy(), gen=dropped, disc=dict(layers=layers))
    step = make_train_step(gan, make_mesh(1), 1)
    state = jax.eval_shape(lambda: init(gan, 0))
    jaxpr = step.trace(state, images(), hyper(1, gan), np.int32(1)).jaxpr
    found = sum(eqn.primitive.name == "conv_general_dilated" for eqn in equations(jaxpr))
    n, m = 2 * depth, layers + 2  # convolutions of the generator and the discriminator
    # Forward, weights, inputs; no network's own input needs a gradient.
    generator = n + n + (n - 1)
    on_real_and_fake = 2 * (m + m + (m - 1))
    for_the_generator = m + m  # forward and inputs, down to the fake image; no weights
    assert found == generator + on_real_and_fake + for_the_generator


@pytest.mark.slow
def test_without_norms_and_with_an_average_of_parameters():
    gan = tiny_gan(Policy(), dict(norm="none"), dict(norm="none"), ema_decay=0.75)
    state = fresh(gan)
    assert state.gen.stats == state.disc.stats == {}
    assert same(state.ema, state.gen.params)
    after, losses = Step(gan)(state, images())
    assert np.isfinite(losses).all()
    assert after.gen.stats == after.disc.stats == {}
    assert len(changed(state.gen.params, after.gen.params)) == len(leaves(state.gen.params))
    old, new, ema = (leaves(x) for x in (state.ema, after.gen.params, after.ema))
    for name in ema:
        assert np.allclose(ema[name], 0.75 * old[name] + 0.25 * new[name], rtol=1e-6, atol=1e-9)
    assert fresh(cpu_gan("float32")).ema == {}


@pytest.mark.slow
def test_stored_numbers_are_told_apart_by_their_values():
    """16 bits, floats and bytes that mean the same train the same."""
    base = cpu_step("float32")
    _, wanted = base(fresh(base.gan), images())
    values = Values("uint16", 0, 65535), Values("float32", -1, 1)
    gan = dataclasses.replace(base.gan, values=values)
    source, target = images()
    stored = source.astype(np.uint16) * 257, (target / 127.5 - 1).astype(np.float32)

    def arguments(batch):
        return jax.tree.map(jnp.copy, fresh(gan)), batch, hyper(1, gan), np.int32(1)

    step = make_train_step(gan, make_mesh(1), 1).lower(*arguments(stored)).compile(QUICK)
    _, losses = step(*arguments(stored))
    assert np.allclose(losses, wanted, rtol=1e-4)
    _, others = step(*arguments((source.astype(np.uint16), target.astype(np.float32))))
    assert (np.abs(others / wanted - 1) > 1e-2).any()


GOLDEN = {
    "first": (1.393563, 0.64586687, 0.51183289),
    "second": (1.3898606, 0.64372897, 0.51213342),
}


def test_golden_losses():
    step = cpu_step("float32")
    state, first = step(fresh(step.gan), images())
    _, second = step(state, images())
    for name, row in (("first", first[0]), ("second", second[0])):
        assert np.allclose(row, GOLDEN[name], rtol=1e-5), (
            f"The {name} step's losses are {[float(f'{x:.8g}') for x in row]}, not {GOLDEN[name]}. "
            "Every run that users hope to repeat has changed with them. Update the numbers only "
            "for a change that is meant to alter training (initial values, the order of random "
            "draws, the losses, the optimiser), say so in the release notes, and never to make a "
            "refactoring pass."
        )


# --- the loop ------------------------------------------------------------------------------------


def run_in(groups, step, table, batch):
    """Six steps, dispatched in groups; the rows of losses that count."""
    state, rows, done = fresh(step.gan), [], 0
    for count in groups:
        # What lies beyond the count must not matter: other images, and rates that would show.
        part = tuple(np.full((step.rows, *x.shape[1:]), 255 - done, np.uint8) for x in batch)
        rates = np.full((step.rows, len(HYPER)), 9, table.dtype)
        for x, whole in zip((*part, rates), (*batch, table), strict=True):
            x[:count] = whole[done : done + count]
        state, losses = step(state, part, rates, count)
        assert (losses[count:] == 0).all()
        rows.append(losses[:count])
        done += count
    return state, np.concatenate(rows)


def check_groupings(steps):
    gan = steps[1].gan
    table = hyper(6, gan) * np.linspace(1, 0.5, 6, dtype=gan.dtype)[:, None]
    batch = images(6)
    state, rows = run_in([1] * 6, steps[1], table, batch)
    assert int(state.step) == 6 and len({row.tobytes() for row in rows}) == 6
    for length, groups in ((3, [3, 3]), (3, [1, 2, 3]), (4, [4, 2]), (4, [2, 2, 2]), (4, [3, 3])):
        other, again = run_in(groups, steps[length], table, batch)
        assert again.tobytes() == rows.tobytes(), (length, groups)
        assert changed(state, other) == set(), (length, groups)


def test_any_grouping_of_steps_gives_the_same_bits():
    """One compiled program a length serves all counts."""
    check_groupings({rows: cpu_step("float32", rows=rows) for rows in (1, 3, 4)})


@pytest.mark.slow
def test_any_grouping_of_steps_gives_the_same_bits_with_all_optimisations():
    gan = cpu_step("float32").gan
    check_groupings({rows: Step(gan, rows=rows, options={}) for rows in (1, 3, 4)})


def test_no_step_at_all_changes_nothing():
    step = cpu_step("float32", rows=3)
    state = fresh(step.gan)
    after, losses = step(state, images(3), count=0)
    assert same(after, state) and not losses.any()


# --- what the CPU runs ---------------------------------------------------------------------------


def slow_convolutions(text):
    """Convolutions of a compiled program that XLA's CPU backend runs on its naive path.

    Those are the gradients of convolutions: dilated, or with a window as large as the image.
    """
    found = re.findall(r"= \S+ convolution\(.*?window=\{([^}]*)\}", text)
    assert len(found) == text.count(" convolution(")
    windows = [re.search(r"size=(\d+)x(\d+)", window) for window in found]
    return [
        window
        for window, size in zip(found, windows, strict=True)
        if "dilate" in window or size is None or max(map(int, size.groups())) > 4
    ]


def test_the_loop_has_no_naive_convolutions(monkeypatch):
    """In the ways that large images go; small ones would be matrix products throughout."""
    for name in ("_FEW", "_SOME", "_NARROW"):
        monkeypatch.setattr(products, name, 0)
    jax.clear_caches()  # of what was traced with the thresholds as they are
    text = Step(cpu_gan("float32"), 1).text
    jax.clear_caches()
    assert "while/body" in text
    assert slow_convolutions(text) == [] and " convolution(" in text
    # Nor do they hide in calls of a library.
    assert not re.search(r'custom_call_target="[^"]*conv', text)


@pytest.mark.parametrize("form", ["plain", "polyphase"])
def test_naive_convolutions_would_be_noticed(form):
    def text(grad):
        policy = Policy(form=form, grad=grad)

        def loss(w):
            return jnp.square(conv_up(conv_down(x, w, policy), w, policy)).sum()

        x = jnp.ones((2, 16, 16, 4))
        body = lambda i, w: w - 0.1 * jax.grad(loss)(w)  # noqa: E731
        loop = jax.jit(lambda w, n: jax.lax.fori_loop(0, n, body, w))
        return loop.lower(np.ones((4, 4, 4, 4), np.float32), 3).compile(QUICK).as_text()

    assert slow_convolutions(text("xla"))
    # The plain form's transposed convolution is itself dilated; its gradients are not.
    forward = 1 if form == "plain" else 0
    assert len(slow_convolutions(text("products"))) <= forward < len(slow_convolutions(text("xla")))


# --- sampling ------------------------------------------------------------------------------------


def sampler(devices, running=False, dropout=True):
    gan = cpu_gan("float64")
    fn = make_sample(gan, make_mesh(devices), running, dropout, (16, 16))
    state = fresh(gan)

    def arguments(source, target, ids):
        return state.gen.params, state.gen.stats, state.key, source, target, ids

    example = arguments(*(x[0] for x in images()), np.zeros(4, np.uint32))
    compiled = fn.lower(*example).compile(QUICK)

    def run(*batch):
        args = jax.device_put(arguments(*batch), compiled.input_shardings[0])
        *pictures, stored = compiled(*args)
        assert stored is None  # 8 bits, as the pictures are
        return [np.asarray(x) for x in pictures]

    return run


def test_samples_follow_the_example_not_its_place(x64):
    source, target = (x[0] for x in images())
    ids = np.array([7, 3, 11, 2], np.uint32)
    run = sampler(1)
    outs = run(source, target, ids)
    assert all(x.shape == (4, 16, 16, 3) and x.dtype == np.uint8 for x in outs)
    turned = run(source[::-1], target[::-1], ids[::-1])
    assert all((a == b[::-1]).all() for a, b in zip(outs, turned, strict=True))
    others = run(source, target, ids + 1)
    assert (others[1] != outs[1]).any((1, 2, 3)).all()
    assert (others[0] == outs[0]).all() and (others[2] == outs[2]).all()
    for a, b in zip(sampler(4)(source, target, ids), outs, strict=True):
        assert (a == b).all()


def test_samples_without_dropout_need_no_identity(x64):
    source, target = (x[0] for x in images())
    ids = np.arange(4, dtype=np.uint32)
    run, running = (sampler(1, running, dropout=False) for running in (False, True))
    assert (run(source, target, ids)[1] == run(source, target, ids + 9)[1]).all()
    assert (run(source, target, ids)[1] != running(source, target, ids)[1]).any()


def test_images_of_any_size_are_translated_whole_and_kept_as_they_are_stored():
    values = Values(), Values("uint16", 0, 65535)
    gan = dataclasses.replace(cpu_gan("float32"), values=values)
    fn, state = make_sample(gan, make_mesh(2), False, False), fresh(gan)
    for size in ((8, 12), (20, 16)):
        source, target = (x[0, :, : size[0], : size[1]] for x in images())
        ids = np.arange(4, dtype=np.uint32)
        variables = state.gen.params, state.gen.stats, state.key
        made = fn(*variables, source, target.astype(np.uint16) * 257, ids)
        assert (made.source == source).all() and (made.target == target).all()
        assert made.fake.shape == made.stored.shape == (4, *size, 3)
        assert made.fake.dtype == np.uint8 and made.stored.dtype == np.uint16
        assert np.abs(np.asarray(made.stored) / 257 - np.asarray(made.fake)).max() <= 0.502
        assert (np.asarray(made.stored) % 257).any()


def test_what_is_not_stored_is_not_given_as_if_it_were():
    """Colours without their lightness are no photo."""
    task = TASKS["colorize"](TaskOptions())
    values = Values(), Values("uint16", 0, 65535)
    gan = tiny_gan(CPU32, task=task, values=values, generator=generator(policy=CPU32, channels=2))
    fn, state = make_sample(gan, make_mesh(1), False, False), jax.eval_shape(lambda: init(gan, 0))
    shapes = [jax.ShapeDtypeStruct((1, 16, 16, 3), d) for d in ("uint8", "uint16")]
    ids = jax.ShapeDtypeStruct((1,), np.uint32)
    made = jax.eval_shape(fn, state.gen.params, state.gen.stats, state.key, *shapes, ids)
    assert made.stored is None and made.fake.shape == (1, 16, 16, 3)


def test_columns_and_names_keep_their_order():
    """Schedules write the columns by place, and logs read the losses by place."""
    assert HYPER == (
        *("gen_lr", "disc_lr", "disc", "gan", "gradient_penalty", "feature_matching"),
        *("l1", "l2", "smooth_l1", "charbonnier", "ssim", "cross_entropy"),
    )
    gan = tiny_gan(Policy(), reconstruction=tuple(RECONSTRUCTION.items()))
    names = ("l1", "l2", "smooth_l1", "charbonnier", "ssim", "cross_entropy")
    pixels = tuple(f"loss/gen_{name}" for name in names)
    assert gan.metric_names == ("loss/disc", "loss/gen_gan", *pixels)
    gan = dataclasses.replace(gan, adversarial=ADVERSARIAL["wgan-gp"], feature_matching=True)
    assert gan.metric_names == (
        *("loss/disc", "loss/disc_penalty", "loss/gen_gan", "loss/gen_feature_matching"), *pixels,
    )  # fmt: skip
