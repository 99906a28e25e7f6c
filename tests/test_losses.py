"""The losses, against numpy, and against torch where it is installed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit, rel
from skimage.metrics import structural_similarity

from p2p_jax.losses import (
    ADVERSARIAL,
    RECONSTRUCTION,
    charbonnier,
    cross_entropy,
    feature_matching,
    gradient_penalty,
    l1,
    l2,
    smooth_l1,
    ssim,
)

VANILLA = ADVERSARIAL["vanilla"]


def binary_cross_entropy(logits, label):
    """Binary cross entropy of probabilities, by its definition."""
    p = 1 / (1 + np.exp(-logits))
    return -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()


# Of numpy logits: (discriminator's of real and fake, generator's of fake).
ORACLES = {
    "vanilla": (
        lambda real, fake: binary_cross_entropy(real, 1) + binary_cross_entropy(fake, 0),
        lambda fake: binary_cross_entropy(fake, 1),  # not saturating: it wants to be taken for real
    ),
    "lsgan": (
        lambda real, fake: ((real - 1) ** 2).mean() + (fake**2).mean(),
        lambda fake: ((fake - 1) ** 2).mean(),
    ),
    "hinge": (
        lambda real, fake: np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
    "wgan-gp": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
}


def slope(fn, x, *rest, along, by=1e-5):
    """The derivative of fn along a direction, by a central difference."""
    return (fn(x + by * along, *rest) - fn(x - by * along, *rest)) / (2 * by)


def test_all_are_known():
    assert ADVERSARIAL.keys() == ORACLES.keys()
    assert [name for name, pair in ADVERSARIAL.items() if pair.penalty] == ["wgan-gp"]
    wanted = [l1, l2, smooth_l1, charbonnier, ssim, cross_entropy]
    assert RECONSTRUCTION == {loss.__name__: loss for loss in wanted}


# --- adversarial ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_losses_are_those_of_their_definition(name):
    (disc, gen), pair = ORACLES[name], ADVERSARIAL[name]
    with jax.enable_x64(True):
        real, fake, along = np.random.default_rng(0).normal(0, 3, (3, 2, 5, 4, 1))
        assert rel(pair.disc(real, fake), disc(real, fake)) < 1e-12
        assert rel(pair.gen(fake), gen(fake)) < 1e-12
        of_real, of_fake = jax.grad(pair.disc, argnums=(0, 1))(real, fake)
        wanted = slope(disc, real, fake, along=along)
        assert rel((of_real * along).sum(), wanted) < 1e-6
        wanted = slope(lambda fake: disc(real, fake), fake, along=along)
        assert rel((of_fake * along).sum(), wanted) < 1e-6
        wanted = slope(gen, fake, along=along)
        assert rel((jax.grad(pair.gen)(fake) * along).sum(), wanted) < 1e-6


def test_adversarial_losses_are_those_of_torch():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    real, fake = np.random.default_rng(1).normal(0, 3, (2, 2, 5, 4, 1))
    r, k = torch.from_numpy(real), torch.from_numpy(fake)
    one, zero = torch.ones_like(r), torch.zeros_like(r)
    bce, mse = f.binary_cross_entropy_with_logits, f.mse_loss
    wanted = {
        "vanilla": (bce(r, one) + bce(k, zero), bce(k, one)),
        "lsgan": (mse(r, one) + mse(k, zero), mse(k, one)),
        # With labels of -1, this is the mean of max(0, margin - x).
        "hinge": (f.hinge_embedding_loss(r, -one) + f.hinge_embedding_loss(-k, -one), -k.mean()),
        "wgan-gp": (k.mean() - r.mean(), -k.mean()),
    }
    with jax.enable_x64(True):
        for name, (disc, gen) in wanted.items():
            assert rel(ADVERSARIAL[name].disc(real, fake), disc.numpy()) < 1e-12
            assert rel(ADVERSARIAL[name].gen(fake), gen.numpy()) < 1e-12


def test_undecided_logits_cost_one_bit_a_side():
    zero = jnp.zeros((1, 2, 2, 1))
    assert VANILLA.disc(zero, zero) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert VANILLA.gen(zero) == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.parametrize("logit", [1e3, 1e5])
def test_large_logits_overflow_nowhere(logit):
    big = jnp.full((1, 2, 2, 1), logit)
    assert VANILLA.disc(big, -big) == 0 and VANILLA.gen(big) == 0
    assert VANILLA.disc(-big, big) == 2 * logit and VANILLA.gen(-big) == logit
    for pair in ADVERSARIAL.values():
        for x in (big, -big):
            assert np.isfinite(pair.disc(x, -x)) and np.isfinite(pair.gen(x))
            assert np.isfinite(jax.grad(pair.gen)(x)).all()
            for of in jax.grad(pair.disc, argnums=(0, 1))(x, x):
                assert np.isfinite(of).all()
    # Where the generator loses, its gradient is whole, one over the number of logits.
    assert np.allclose(jax.grad(VANILLA.gen)(-big), -0.25)


def test_hinge_leaves_what_is_beyond_the_margin():
    far = jnp.full((1, 2, 2, 1), 1.5)
    hinge = ADVERSARIAL["hinge"].disc
    assert hinge(far, -far) == 0
    assert all((of == 0).all() for of in jax.grad(hinge, argnums=(0, 1))(far, -far))


# --- gradient penalty ----------------------------------------------------------------------------


def test_the_gradient_penalty_is_that_of_the_norm():
    # By example: an ordinary one, a huge and a tiny one.
    g = np.random.default_rng(2).normal(0, 1, (3, 6, 5, 4))
    g *= np.array([0.1, 1e6, 1e-9]).reshape(3, 1, 1, 1)
    with jax.enable_x64(True):
        penalty = quick_jit(jax.value_and_grad(gradient_penalty))
        for part in (g, g[:1], g[1:2], g[2:]):
            value, of = penalty(part)
            norms = np.sqrt((part**2).sum((1, 2, 3)))
            assert rel(value, ((norms - 1) ** 2).mean()) < 1e-12
            # d/dg of (norm - 1)^2 / b
            wanted = (2 * (norms - 1) / norms / len(part)).reshape(-1, 1, 1, 1) * part
            assert rel(of, wanted) < 1e-12


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_gradient_penalty_is_smooth_at_zero(dtype):
    """Squares below what float32 holds included, and in a batch with an ordinary example."""
    with jax.enable_x64(True):
        penalty = quick_jit(jax.value_and_grad(gradient_penalty))
        for size in (0.0, 1e-19, 1e-20, 1e-22, 1e-25):
            g = np.full((2, 4, 4, 3), size)
            g[1] = 0.01
            value, of = penalty(jnp.asarray(g, dtype))
            assert value.dtype == ("float64" if dtype == "float64" else "float32")
            assert of.dtype == dtype
            wanted = (1 + (1 - 0.01 * np.sqrt(48)) ** 2) / 2
            assert rel(value, wanted) < (1e-2 if dtype == "bfloat16" else 1e-6)
            of = np.asarray(of, np.float64)
            assert np.isfinite(of).all() and (of[1] < 0).all()
            # That of (norm - 1)^2 / b is 2 / b long at most.
            assert np.sqrt((of[0] ** 2).sum()) <= 1.01
            if size == 0:
                assert (of[0] == 0).all()


def test_the_gradient_penalty_of_a_network_can_be_descended():
    """The second derivative that training needs, of a linear network, whose norm is known."""

    def loss(w, x):
        return gradient_penalty(jax.grad(lambda x: (x * w).sum())(x))

    with jax.enable_x64(True):
        x = np.random.default_rng(3).normal(size=(2, 3, 3, 2))
        w = np.random.default_rng(4).normal(size=(1, 3, 3, 2))
        norm = np.sqrt((w**2).sum())
        slope_of = quick_jit(jax.grad(lambda w: loss(jnp.broadcast_to(w, x.shape), x)))
        got = slope_of(w)
        assert rel(got, 2 * (norm - 1) * w / norm) < 1e-12
        assert (slope_of(np.zeros_like(w)) == 0).all()


# --- reconstruction ------------------------------------------------------------------------------


def test_reconstruction_is_a_mean_over_all_pixels():
    with jax.enable_x64(True):
        fake, target = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 5, 3))
        d = np.abs(fake - target)
        assert 0.2 < (d < 1).mean() < 0.8  # both branches of smooth_l1
        assert rel(l1(fake, target), d.mean()) < 1e-12
        assert rel(l2(fake, target), (d**2).mean()) < 1e-12
        wanted = np.where(d < 1, 0.5 * d**2, d - 0.5).mean()
        assert rel(smooth_l1(fake, target), wanted) < 1e-12
        assert rel(charbonnier(fake, target), np.sqrt(d**2 + 1e-6).mean()) < 1e-12
        assert rel(charbonnier(fake, fake), 1e-3) < 1e-12


def test_reconstruction_gradients():
    with jax.enable_x64(True):
        target = np.zeros((1, 1, 5, 1))
        d = np.array([-2.0, -0.5, 0.0, 0.5, 1.0]).reshape(target.shape)
        wanted = {
            "l1": np.sign(d),
            "l2": 2 * d,
            "smooth_l1": np.clip(d, -1, 1),
            "charbonnier": d / np.sqrt(d**2 + 1e-6),
        }
        for name, each in wanted.items():
            assert rel(jax.grad(RECONSTRUCTION[name])(d, target), each / 5) < 1e-12


def test_smooth_l1_is_that_of_torch():
    torch = pytest.importorskip("torch")
    fake, target = np.random.default_rng(5).uniform(-1, 1, (2, 3, 4, 5, 3))
    ours = torch.from_numpy(fake).requires_grad_()
    wanted = torch.nn.functional.smooth_l1_loss(ours, torch.from_numpy(target), beta=1.0)
    wanted.backward()
    with jax.enable_x64(True):
        value, of = jax.value_and_grad(smooth_l1)(fake, target)
        assert rel(value, wanted.detach().numpy()) < 1e-12
        assert rel(of, ours.grad.numpy()) < 1e-12


def test_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(6)
    target = np.kron(rng.uniform(-1, 1, (3, 4, 5, 3)), np.ones((1, 4, 4, 1)))
    fake = np.clip(target + rng.normal(0, 0.3, target.shape), -1, 1)
    wanted = [
        1 - structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2,
            channel_axis=-1,
        ) for a, b in zip(fake + 1, target + 1, strict=True)
    ]  # fmt: skip
    with jax.enable_x64(True):
        along = rng.normal(size=fake.shape)
        loss = quick_jit(ssim)
        assert rel(loss(fake, target), np.mean(wanted)) < 1e-10
        of = quick_jit(jax.grad(ssim))(fake, target)
        assert rel((of * along).sum(), slope(loss, fake, target, along=along)) < 1e-6


def test_equal_images_have_no_ssim_loss():
    """Flat ones as well, where all variances are zero."""
    x = np.random.default_rng(7).uniform(-1, 1, (2, 12, 13, 3)).astype(np.float32)
    loss = quick_jit(jax.value_and_grad(ssim))
    for same in (x, np.full_like(x, -1), np.zeros_like(x), np.ones_like(x)):
        value, of = loss(same, same)
        assert abs(value) < 1e-5
        assert np.isfinite(of).all() and np.abs(of).max() < 1e-3


def test_ssim_names_what_is_too_small():
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(jnp.zeros((1, 10, 16, 3)), jnp.zeros((1, 10, 16, 3)))


def labelled(seed, dtype, scale=3.0):
    """Logits of five classes, and which one it is."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (3, 4, 6, 5)).astype(dtype)
    return logits, np.eye(5, dtype=dtype)[rng.integers(0, 5, (3, 4, 6))]


@pytest.mark.parametrize("dtype,within", [("float32", 1e-5), ("float64", 1e-12)])
def test_cross_entropy_is_that_of_its_definition_with_its_gradient(dtype, within):
    with jax.enable_x64(dtype == "float64"):
        logits, target = labelled(10, dtype)
        fake = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        value, of = quick_jit(jax.value_and_grad(cross_entropy))(fake, target)
        exact = fake.astype(np.float64)
        assert value.dtype == of.dtype == dtype
        assert rel(value, -np.log(exact[target == 1]).mean()) < within
        assert rel(of, -target / exact / (3 * 4 * 6)) < within
        assert cross_entropy(target, target) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_holds_where_probabilities_vanish(dtype):
    """Through softmax, whose gradient is then that of logits: probabilities less the target."""
    with jax.enable_x64(dtype == "float64"):
        logits, target = labelled(11, dtype)
        logits[target == 1] = np.linspace(5, -68, 3 * 4 * 6)

        def loss(logits):
            return cross_entropy(jax.nn.softmax(logits), target)

        value, of = map(np.asarray, quick_jit(jax.value_and_grad(loss))(logits))
        wide = logits.astype(np.float64)
        shifted = wide - wide.max(-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        assert logs[target == 1].min() < np.log(1e-30)
        assert rel(value, -logs[target == 1].mean()) < 1e-6
        wanted = (np.exp(logs) - target) / (3 * 4 * 6)
        assert rel(of, wanted) < 1e-5 and rel(of[target == 1], wanted[target == 1]) < 1e-5
        # What is no number any more does no harm.
        value, of = jax.value_and_grad(cross_entropy)(np.zeros_like(target), target)
        assert np.isfinite(value) and value > 87 and np.isfinite(of).all()


# --- features ------------------------------------------------------------------------------------


def features(seed, dtype="float64"):
    """Of two scales, with two and three layers and the logits."""
    rng = np.random.default_rng(seed)
    shapes = [[(8, 4), (4, 6), (3, 1)], [(6, 4), (5, 3), (4, 6), (3, 1)]]
    draw = [[rng.normal(size=(2, size, size, c)) for size, c in scale] for scale in shapes]
    return tuple(tuple(jnp.asarray(x, dtype) for x in scale) for scale in draw)


def test_feature_matching_is_that_of_pix2pixhd():
    with jax.enable_x64(True):
        fake, real = features(8), features(9)
        wanted = 0.0  # as its `compute_generator_loss` has it, by weights
        for ours, theirs in zip(fake, real, strict=True):
            for a, b in zip(ours[:-1], theirs[:-1], strict=True):
                wanted += 1 / 2 * 4 / (len(ours) - 1) * np.abs(a - b).mean()
        loss = quick_jit(jax.value_and_grad(feature_matching, argnums=(0, 1)))
        assert loss(fake, fake)[0] == 0
        value, (of_fake, of_real) = loss(fake, real)
        assert rel(value, wanted) < 1e-12
        assert all((x == 0).all() for x in jax.tree.leaves(of_real))
        for of, ours, theirs in zip(of_fake, fake, real, strict=True):
            assert (of[-1] == 0).all()  # the logits
            for g, a, b in zip(of[:-1], ours[:-1], theirs[:-1], strict=True):
                assert rel(g, 2 / (len(ours) - 1) / a.size * np.sign(a - b)) < 1e-12


def test_feature_matching_of_bfloat16_is_in_float32():
    fake, real = features(8, "bfloat16"), features(9, "bfloat16")
    loss = quick_jit(feature_matching)
    got = loss(fake, real)
    assert got.dtype == "float32"
    fake, real = jax.tree.map(lambda x: x.astype("float32"), (fake, real))
    assert got == loss(fake, real)


def test_feature_matching_needs_as_many_maps_of_both():
    fake, real = features(8, "float32"), features(9, "float32")
    with pytest.raises(ValueError, match="shorter"):
        feature_matching(fake, real[:1])
    with pytest.raises(ValueError, match="shorter"):
        feature_matching(fake, (real[0], real[1][:-1]))
