"""Objectives beyond the paper's: each kind of adversary, several scales, features, penalties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CPU32,
    CPU64,
    PLAIN64,
    Step,
    discriminator,
    fresh,
    hyper,
    images,
    leaves,
    quick_jit,
    rel,
    scrambled,
    tiny_gan,
)
from helpers import generator as make_generator

from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.models import MultiScale
from p2p_jax.models.conv import Policy
from p2p_jax.models.patchgan import Patches, halve
from p2p_jax.objectives import discriminator_gradients, generator_cotangent
from p2p_jax.state import NetState, init


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def judges(scales, policy=PLAIN64, **changes):
    return MultiScale((discriminator(policy, **changes),) * scales)


# --- several scales ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (1, 4)])
def test_halving_is_a_mean_of_three_at_stride_two_without_padding(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    out = [-(-n // 2) for n in size]
    wanted = np.zeros((2, *out, 3))
    for i in range(out[0]):
        for j in range(out[1]):
            rows, columns = (slice(max(0, 2 * n - 1), 2 * n + 2) for n in (i, j))
            wanted[:, i, j] = x[:, rows, columns].mean((1, 2))
    with jax.enable_x64(True):
        assert rel(quick_jit(halve)(x), wanted) < 1e-12


@pytest.mark.slow
def test_each_scale_is_a_discriminator_of_its_own(x64):
    net = judges(3, layers=1, norm="instance")
    source, image = np.random.default_rng(0).normal(size=(2, 2, 28, 36, 3))
    v = scrambled(jax.eval_shape(lambda: net.init(jax.random.key(0), source, image)))
    assert set(v["params"]) == {"scale1", "scale2", "scale3"}
    got = quick_jit(net.apply)(v, source, image)
    single = discriminator(layers=1, norm="instance")
    for k, maps in enumerate(got, 1):
        (wanted,) = single.apply({"params": v["params"][f"scale{k}"]}, source, image)
        assert len(maps) == len(wanted) == 3
        for a, b in zip(maps, wanted, strict=True):
            assert rel(a, b) < 1e-12
        source, image = halve(source), halve(image)


def test_fields_and_logits_of_each_scale():
    """One logit of the second scale sees 2 * 16 + 1 pixels of the whole image."""
    net = judges(2, Policy(), layers=1, base_features=1, norm="none")
    size = 60
    image = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    v = scrambled(jax.eval_shape(lambda: net.init(jax.random.key(0), image, image)))
    expected = net.patches(size, size)
    assert expected == (Patches(28, 28, 16), Patches(13, 13, 33))
    for k, (height, width, field) in enumerate(expected):

        def logit(image, k=k, height=height, width=width):
            logits = net.apply(v, image, image)[k][-1]
            assert logits.shape == (1, height, width, 1)
            return logits[0, height // 2, width // 2, 0]

        seen = np.asarray(jnp.abs(quick_jit(jax.grad(logit))(image)).sum((0, 3))) > 0
        for axis in (0, 1):
            where = np.flatnonzero(seen.any(axis))
            assert where[-1] - where[0] + 1 == field


def test_the_pixel_discriminator_sees_pixels():
    net = discriminator(Policy(), layers=0, base_features=64)
    image = jax.ShapeDtypeStruct((1, 7, 9, 3), jnp.float32)
    (maps,), v = jax.eval_shape(
        lambda *a: net.init_with_output(jax.random.key(0), *a), image, image
    )
    assert maps[-1].shape == (1, 7, 9, 1)
    assert net.patches(7, 9) == (Patches(7, 9, 1),)
    assert sum(x.size for x in jax.tree.leaves(v["params"])) == 9_024
    assert discriminator(Policy(), name="pixel", layers=3, base_features=64) == net


def test_without_a_condition_the_source_is_not_seen(x64):
    source, image = np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3))
    outputs = {}
    for conditional in (True, False):
        net = discriminator(conditional=conditional)
        v = scrambled(jax.eval_shape(lambda net=net: net.init(jax.random.key(0), source, image)))
        assert v["params"]["conv1"]["conv"]["kernel"].shape[2] == (6 if conditional else 3)
        outputs[conditional] = [net.apply(v, s, image)[0][-1] for s in (source, -source)]
    assert (outputs[False][0] == outputs[False][1]).all()
    assert (outputs[True][0] != outputs[True][1]).any()


# --- sums of losses ------------------------------------------------------------------------------


def arguments(gan, batch=2, size=24):
    rng = np.random.default_rng(3)
    source, target, fake = rng.uniform(-1, 1, (3, batch, size, size, 3))
    v = jax.eval_shape(lambda: gan.discriminator.init(jax.random.key(0), source, target))
    v = scrambled(v)
    disc = NetState(v["params"], v.get("stats", {}), ())
    keys = jax.random.split(jax.random.key(1), batch)
    row = {"disc": 0.7, "gan": 2.0, "gradient_penalty": 3.0, "feature_matching": 5.0, "l1": 7.0}
    return disc, keys, (source, target), fake, row


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_losses_of_scales_add_up_and_features_are_matched(x64, kind):
    gan = tiny_gan(
        PLAIN64, discriminator=judges(2, norm="instance"), adversarial=ADVERSARIAL[kind],
        feature_matching=True,
    )  # fmt: skip
    disc, keys, pair, fake, row = arguments(gan)
    source, target = pair

    def both(disc, fake):
        parts, _, _ = discriminator_gradients(gan, disc, keys, pair, fake, row)
        return parts, generator_cotangent(gan, disc, pair, fake, row)

    disc_parts, (gen_parts, cotangent) = quick_jit(both)(disc, fake)
    on_fake, on_real = (
        gan.discriminator.apply({"params": disc.params}, source, x) for x in (fake, target)
    )
    losses = ADVERSARIAL[kind]
    wanted = sum(losses.disc(r[-1], f[-1]) for r, f in zip(on_real, on_fake, strict=True))
    assert rel(disc_parts["disc"], wanted) < 1e-12
    assert rel(gen_parts["gen_gan"], sum(losses.gen(f[-1]) for f in on_fake)) < 1e-12
    features = np.mean([
        4 * np.mean([np.abs(np.subtract(a, b)).mean() for a, b in zip(f[:-1], r[:-1], strict=True)])
        for f, r in zip(on_fake, on_real, strict=True)
    ])  # fmt: skip
    assert rel(gen_parts["gen_feature_matching"], features) < 1e-12
    assert ("disc_penalty" in disc_parts) == (kind == "wgan-gp")

    # The gradient is that of the weighted sum: a small step tells.
    direction = np.random.default_rng(4).normal(size=fake.shape)

    def total(x):
        parts, _ = generator_cotangent(gan, disc, pair, x, row)
        return sum(row[name.removeprefix("gen_")] * value for name, value in parts.items())

    h = 1e-6
    run = quick_jit(total)
    slope = (run(fake + h * direction) - run(fake - h * direction)) / (2 * h)
    assert np.isclose((cotangent * direction).sum(), slope, rtol=1e-5)


# --- the gradient penalty ------------------------------------------------------------------------


@functools.cache
def wgan_gan(norm="instance", policy=CPU64):
    return tiny_gan(policy, disc=dict(norm=norm), adversarial=ADVERSARIAL["wgan-gp"])


@pytest.mark.parametrize("norm", ["instance", "batch", "layer"])
def test_the_penalty_against_small_steps(x64, norm):
    """The slope of the summed logits at the mixture, by differences, pixel by pixel."""
    gan = wgan_gan(norm, PLAIN64)
    disc, keys, pair, fake, row = arguments(gan, batch=2, size=8)
    source, target = pair
    parts, _, _ = quick_jit(lambda disc: discriminator_gradients(gan, disc, keys, pair, fake, row))(
        disc
    )
    share = np.stack([np.asarray(jax.random.uniform(k, (1, 1, 1), jnp.float32)) for k in keys])
    mixture = share * target + (1 - share) * fake

    def logits(x):
        variables = {"params": disc.params, "stats": disc.stats}
        out, _ = gan.discriminator.apply(variables, source, x, mutable=["stats"])
        return out[0][-1].sum((1, 2, 3))

    h = 1e-5
    steps = h * np.eye(8 * 8 * 3).reshape(-1, 1, 8, 8, 3)
    slopes = quick_jit(jax.vmap(lambda step: logits(mixture + step) - logits(mixture - step)))
    norms = ((np.asarray(slopes(steps)) / (2 * h)) ** 2).sum(0)
    wanted = ((np.sqrt(norms) - 1) ** 2).mean()
    assert rel(parts["disc_penalty"], wanted) < 1e-6


def test_the_penalty_and_its_gradient_against_torch(x64):
    torch = pytest.importorskip("torch")
    from torch_reference import NLayerDiscriminator, adversarial, gradient_penalty

    gan = wgan_gan()
    disc, keys, pair, fake, row = arguments(gan)
    net = NLayerDiscriminator(6, 4, 1, "instance").double()
    convolutions = [net.model[i] for i in (0, 2, 5)]
    for k, layer in enumerate(convolutions, 1):
        ours = disc.params[f"conv{k}"]["conv"]
        layer.weight.data = torch.tensor(ours["kernel"].transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.tensor(ours["bias"])
    share = np.stack([np.asarray(jax.random.uniform(k, (1, 1, 1), jnp.float32)) for k in keys])
    real, made = (
        torch.tensor(np.concatenate([pair[0], x], -1).transpose(0, 3, 1, 2))
        for x in (pair[1], fake)
    )
    penalty = gradient_penalty(net, real, made, torch.tensor(share.astype(np.float64)), 3)
    loss = adversarial("wgan").disc(net(real), net(made))
    (row["disc"] * (loss + row["gradient_penalty"] * penalty)).backward()

    parts, grads, _ = quick_jit(
        lambda disc: discriminator_gradients(gan, disc, keys, pair, fake, row)
    )(disc)
    assert rel(parts["disc_penalty"], penalty.item()) < 1e-10
    assert rel(parts["disc"], loss.item()) < 1e-10
    for k, layer in enumerate(convolutions, 1):
        ours = grads[f"conv{k}"]["conv"]
        assert rel(ours["kernel"], layer.weight.grad.numpy().transpose(2, 3, 1, 0)) < 1e-9, k
        # Instance norm takes the second bias out, and wgan the last.
        assert k > 1 or rel(ours["bias"], layer.bias.grad.numpy()) < 1e-9


@functools.cache
def wgan_step(devices):
    return Step(wgan_gan(), devices)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_penalty_is_that_of_one_device_on_several(x64, devices):
    runs = {}
    for n in (1, devices):
        step = wgan_step(n)
        table = hyper(1, step.gan, gradient_penalty=10.0)
        runs[n] = step(fresh(step.gan), images(), table)
    (state, losses), (wanted, wanted_losses) = runs[devices], runs[1]
    assert step.gan.metric_names[1] == "loss/disc_penalty" and wanted_losses[0, 1] > 0
    assert np.abs(losses / wanted_losses - 1).max() < 1e-9
    moments, expected = (leaves(s.disc.opt_state.mu) for s in (state, wanted))
    for name, moment in expected.items():
        if np.abs(moment).max() > 1e-12:  # no gradient for the bias before instance norm
            assert rel(moments[name], moment) < 1e-9, name
    # It is in the gradient: without its weight there is another.
    step = wgan_step(1)
    bare, _ = step(fresh(step.gan), images(), hyper(1, step.gan, gradient_penalty=0.0))
    assert rel(leaves(bare.disc.opt_state.mu)["['conv1']['conv']['kernel']"],
               expected["['conv1']['conv']['kernel']"]) > 1e-3  # fmt: skip


# --- a step with all of it -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hinge", "wgan-gp"])
def test_a_step_with_everything_on(kind):
    disc = dict(norm="layer", spectral=True)
    gan = tiny_gan(
        CPU32, gen=dict(noise=2, norm="group"), discriminator=judges(2, CPU32, **disc),
        adversarial=ADVERSARIAL[kind], feature_matching=True,
        reconstruction=tuple(RECONSTRUCTION.items()),
    )  # fmt: skip
    weights = dict.fromkeys(RECONSTRUCTION, 1.0) | dict(
        feature_matching=10.0, gradient_penalty=10.0
    )
    before = fresh(gan)
    assert before.gen.params["enc1"]["conv"]["kernel"].shape == (4, 4, 5, 4)
    state, losses = Step(gan)(before, images(), hyper(1, gan, **weights))
    assert losses.shape == (1, len(gan.metric_names)) and np.isfinite(losses).all()
    for net in ("gen", "disc"):
        old, new = (leaves(getattr(s, net).params) for s in (before, state))
        still = {name for name in old if (old[name] == new[name]).all()}
        # What is added to all logits is nothing to wgan.
        nothing = {f"['scale{k}']['conv3']['conv']['bias']" for k in (1, 2)}
        assert still == (nothing if (net, kind) == ("disc", "wgan-gp") else set())
    old, new = (leaves(s.disc.stats) for s in (before, state))
    moved = [name for name in old if (old[name] != new[name]).any()]
    assert len(old) == 6 and len(moved) == 4  # the last layer's vector has one number, 1


@pytest.mark.slow
def test_both_at_once_sees_the_discriminator_before_its_update(x64):
    """With a rate of zero for the discriminator, the two orders are one; else only losses of G."""
    nets = dict(gen=dict(dropout=()), disc={})
    after, at_once = (Step(tiny_gan(PLAIN64, **nets, simultaneous=s)) for s in (False, True))
    start = fresh(after.gan)
    for rate in (0.0, 1e-2):
        table = hyper(1, after.gan, disc_lr=rate)
        (a, losses_a), (b, losses_b) = (step(start, images(), table) for step in (after, at_once))
        assert losses_a[0, 0] == pytest.approx(losses_b[0, 0], rel=1e-12)
        moved = rel(*(leaves(s.gen.opt_state.mu)["['enc1']['conv']['kernel']"] for s in (a, b)))
        assert moved < 1e-12 if rate == 0 else moved > 1e-6
        if rate:
            _, losses = after(start, images(), hyper(1, after.gan, disc_lr=0.0))
            assert losses_b[0, 1] == pytest.approx(losses[0, 1], rel=1e-12)
            assert losses_a[0, 1] != pytest.approx(losses[0, 1], rel=1e-6)


# --- noise ---------------------------------------------------------------------------------------


def test_noise_follows_the_example_and_is_zero_without_keys():
    net = make_generator("unet", CPU32, noise=3, dropout=())
    x = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    v = scrambled(jax.eval_shape(lambda: net.init(jax.random.key(0), x)))
    keys = jax.random.split(jax.random.key(1), 4)
    run = quick_jit(lambda x, keys: net.apply(v, x, keys))
    some = np.asarray(run(x, keys))
    assert (some == run(x, keys)).all()
    assert np.allclose(run(x[::-1], keys[::-1]), some[::-1], atol=1e-6)
    assert (run(x, keys[::-1]) != some).any()
    without = quick_jit(lambda x: net.apply(v, x))(x)
    bare = make_generator("unet", CPU32, dropout=())
    kernel = v["params"]["enc1"]["conv"]["kernel"]
    assert kernel.shape[2] == 6
    v["params"]["enc1"]["conv"]["kernel"] = kernel[:, :, :3]
    assert np.allclose(quick_jit(lambda x: bare.apply(v, x))(x), without, atol=1e-5)


def test_noise_is_gaussian():
    from p2p_jax.models.layers import with_noise

    keys = jax.random.split(jax.random.key(1), 8)
    drawn = np.asarray(with_noise(jnp.zeros((8, 32, 32, 1)), keys, 2))[..., 1:]
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 5 / np.sqrt(2 * drawn.size)
    assert abs(np.corrcoef(drawn[..., 0].ravel(), drawn[..., 1].ravel())[0, 1]) < 0.06
    gan = tiny_gan(CPU32, gen=dict(noise=1))
    assert jax.eval_shape(lambda: init(gan, 0)).gen.params["enc1"]["conv"]["kernel"].shape[2] == 4
