"""The reference PyTorch implementation itself: counts, sizes, keys, losses and the step's order."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch_reference import (  # noqa: E402
    NORMS,
    NLayerDiscriminator,
    PixelDiscriminator,
    ResnetGenerator,
    Trainer,
    UnetGenerator,
    adversarial,
    gradient_penalty,
    seeded,
)

META = torch.device("meta")  # shapes only: full-size networks cost nothing

COUNTS = [
    (UnetGenerator, {"downs": 8}, "batch", 54_413_955),
    (UnetGenerator, {"downs": 8}, "instance", 54_409_603),
    (UnetGenerator, {"downs": 7}, "batch", 41_828_995),
    (ResnetGenerator, {"blocks": 9}, "batch", 11_383_427),
    (ResnetGenerator, {"blocks": 9}, "instance", 11_378_179),
    (ResnetGenerator, {"blocks": 6}, "batch", 7_841_411),
    (ResnetGenerator, {"blocks": 6}, "instance", 7_837_699),
    (PixelDiscriminator, {}, "batch", 9_024),
    (NLayerDiscriminator, {"layers": 1}, "batch", 139_585),
    (NLayerDiscriminator, {"layers": 2}, "batch", 666_433),
    (NLayerDiscriminator, {"layers": 3}, "batch", 2_768_705),
    (NLayerDiscriminator, {"layers": 3}, "instance", 2_767_809),
    (NLayerDiscriminator, {"layers": 4}, "batch", 6_964_033),
    (NLayerDiscriminator, {"layers": 5}, "batch", 11_159_361),
]


def on_meta(kind, options, norm="batch"):
    channels = (3, 3) if kind in (UnetGenerator, ResnetGenerator) else (6,)
    with META:
        return kind(*channels, norm=norm, **options)


@pytest.mark.parametrize(("kind", "options", "norm", "count"), COUNTS)
def test_parameter_counts(kind, options, norm, count):
    net = on_meta(kind, options, norm)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("kind", [UnetGenerator, ResnetGenerator])
@pytest.mark.parametrize("norm", NORMS)
def test_dropout_has_no_parameters(kind, norm):
    options = {"downs": 8} if kind is UnetGenerator else {}
    counts = {
        sum(p.numel() for p in on_meta(kind, options | {"dropout": d}, norm).parameters())
        for d in (False, True)
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        (UnetGenerator, {"downs": 8}, (1, 3, 256, 256)),
        (UnetGenerator, {"downs": 7}, (1, 3, 256, 256)),
        (ResnetGenerator, {"blocks": 9}, (1, 3, 256, 256)),
        (PixelDiscriminator, {}, (1, 1, 256, 256)),
        (NLayerDiscriminator, {"layers": 1}, (1, 1, 126, 126)),
        (NLayerDiscriminator, {"layers": 2}, (1, 1, 62, 62)),
        (NLayerDiscriminator, {"layers": 3}, (1, 1, 30, 30)),
        (NLayerDiscriminator, {"layers": 4}, (1, 1, 14, 14)),
        (NLayerDiscriminator, {"layers": 5}, (1, 1, 6, 6)),
    ],
)
def test_output_sizes(kind, options, shape):
    channels = 3 if kind in (UnetGenerator, ResnetGenerator) else 6
    image = torch.empty(1, channels, 256, 256, device=META)
    assert on_meta(kind, options)(image).shape == shape


def layout(net):
    """The shape of every key that a convolution or a norm's scale has."""
    return {k: tuple(v.shape) for k, v in net.state_dict().items() if v.ndim}


def without_norms(keys):
    """The keys of convolutions alone, which are of rank 4, and their biases."""
    weights = {k for k, shape in keys.items() if k.endswith("weight") and len(shape) == 4}
    return {
        k: s for k, s in keys.items() if k in weights or k.replace(".bias", ".weight") in weights
    }


def modules_of(keys):
    return {k.rpartition(".")[0] for k in keys}


@pytest.mark.parametrize("downs", [5, 7, 8])
@pytest.mark.parametrize("norm", NORMS)
def test_unet_keys(downs, norm):
    """Every key and shape, spelled by depth."""
    with META:
        keys = layout(UnetGenerator(1, 2, downs, norm=norm, dropout=True))
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    wanted = {"model.model.0.weight": (64, 1, 4, 4), "model.model.3.weight": (128, 2, 4, 4)}
    wanted["model.model.3.bias"] = (2,)
    norms = {}
    if norm == "instance":
        wanted["model.model.0.bias"] = (64,)
    for d in range(1, downs):
        at = "model.model.1.model" + (d - 1) * ".3.model"
        outer, inner, last = widths[d - 1], widths[d], d == downs - 1
        up = f"{at}.3" if last else f"{at}.5"
        wanted[f"{at}.1.weight"] = (inner, outer, 4, 4)
        wanted[f"{up}.weight"] = (inner if last else 2 * inner, outer, 4, 4)
        if norm == "instance":
            wanted[f"{at}.1.bias"], wanted[f"{up}.bias"] = (inner,), (outer,)
        if norm == "batch":
            norms[f"{at}.4" if last else f"{at}.6"] = (outer,)
            norms |= {} if last else {f"{at}.2": (inner,)}
    for at, shape in norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{at}.{leaf}"] = shape
    assert keys == wanted


@pytest.mark.parametrize(("downs", "depths"), [(5, []), (7, [4, 5]), (8, [4, 5, 6])])
def test_unet_dropout(downs, depths):
    with META:
        net = UnetGenerator(3, 3, downs, dropout=True)
    found = {k: m.p for k, m in net.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {"model.model.1.model" + (d - 1) * ".3.model" + ".7": 0.5 for d in depths}


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("blocks", [6, 9])
def test_resnet_keys(blocks, norm, dropout):
    with META:
        keys = layout(ResnetGenerator(3, 2, 64, norm, dropout, blocks))
    n = blocks
    convs = {
        "1": (64, 3, 7, 7),
        "4": (128, 64, 3, 3),
        "7": (256, 128, 3, 3),
        f"{10 + n}": (256, 128, 3, 3),
        f"{13 + n}": (128, 64, 3, 3),
        f"{17 + n}": (2, 64, 7, 7),
    }
    second = 6 if dropout else 5
    inside = [f"{10 + i}.conv_block.{j}" for i in range(n) for j in (1, second)]
    convs |= {at: (256, 256, 3, 3) for at in inside}
    kernels = without_norms(keys)
    assert {k: s for k, s in kernels.items() if k.endswith("weight")} == {
        f"model.{at}.weight": shape for at, shape in convs.items()
    }
    biased = convs if norm == "instance" else [f"{17 + n}"]
    assert {k for k in kernels if k.endswith("bias")} == {f"model.{at}.bias" for at in biased}
    norms = {"2", "5", "8", f"{11 + n}", f"{14 + n}"}
    norms |= {f"{10 + i}.conv_block.{j}" for i in range(n) for j in (2, second + 1)}
    expected = {f"model.{at}" for at in norms} if norm == "batch" else set()
    assert modules_of(keys.keys() - kernels.keys()) == expected


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_patchgan_keys(layers, norm):
    with META:
        net = NLayerDiscriminator(6, 64, layers, norm)
    keys, kernels = layout(net), without_norms(layout(net))
    at = [0, *(3 * k - 1 for k in range(1, layers + 2))]
    widths = [*(6, 64, 128, 256, 512, 512, 512)[: layers + 2], 1]
    shapes = {
        f"model.{i}.weight": (b, a, 4, 4)
        for i, a, b in zip(at, widths[:-1], widths[1:], strict=True)
    }
    assert {k: s for k, s in kernels.items() if k.endswith("weight")} == shapes
    biased = at if norm == "instance" else [at[0], at[-1]]
    assert {k for k in kernels if k.endswith("bias")} == {f"model.{i}.bias" for i in biased}
    norms = {f"model.{3 * k}" for k in range(1, layers + 1)} if norm == "batch" else set()
    assert modules_of(keys.keys() - kernels.keys()) == norms
    strides = [m.stride[0] for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert strides == [2] * layers + [1, 1]


@pytest.mark.parametrize("norm", NORMS)
def test_pixel_keys(norm):
    with META:
        keys = layout(PixelDiscriminator(6, 64, norm))
    wanted = {"net.0.weight": (64, 6, 1, 1), "net.0.bias": (64,)}
    wanted |= {"net.2.weight": (128, 64, 1, 1), "net.5.weight": (1, 128, 1, 1)}
    if norm == "instance":
        wanted |= {"net.2.bias": (128,), "net.5.bias": (1,)}
    if norm == "batch":
        leaves = ("weight", "bias", "running_mean", "running_var")
        wanted |= {f"net.3.{leaf}": (128,) for leaf in leaves}
    assert keys == wanted


def forward_by_hand(net, x):
    """The networks once more, of functions and keys alone; instance norm, no dropout."""
    F = torch.nn.functional
    state = net.state_dict()

    def conv(x, at, stride=1, padding=0):
        return F.conv2d(x, state[f"{at}.weight"], state[f"{at}.bias"], stride, padding)

    def deconv(x, at, out):
        return F.conv_transpose2d(x, state[f"{at}.weight"], state[f"{at}.bias"], 2, 1, out)

    def norm(x):
        mean = x.mean((2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    def edge(x, n):
        return F.pad(x, (n, n, n, n), mode="reflect")

    if isinstance(net, UnetGenerator):
        blocks = ["model.model.1.model" + d * ".3.model" for d in range(net_depth(state))]
        skips = [conv(x, "model.model.0", 2, 1)]
        for at in blocks:
            y = conv(leaky(skips[-1]), f"{at}.1", 2, 1)
            skips.append(y if at == blocks[-1] else norm(y))
        y = skips.pop()
        for at in reversed(blocks):
            y = norm(deconv(F.relu(y), f"{at}.3" if at == blocks[-1] else f"{at}.5", 0))
            y = torch.cat([skips.pop(), y], 1)
        return torch.tanh(deconv(F.relu(y), "model.model.3", 0))
    if isinstance(net, ResnetGenerator):
        y = F.relu(norm(conv(edge(x, 3), "model.1")))
        y = F.relu(norm(conv(y, "model.4", 2, 1)))
        y = F.relu(norm(conv(y, "model.7", 2, 1)))
        for at in ("model.10.conv_block", "model.11.conv_block"):
            z = F.relu(norm(conv(edge(y, 1), f"{at}.1")))
            y = y + norm(conv(edge(z, 1), f"{at}.5"))
        y = F.relu(norm(deconv(y, "model.12", 1)))
        y = F.relu(norm(deconv(y, "model.15", 1)))
        return torch.tanh(conv(edge(y, 3), "model.19"))
    if isinstance(net, NLayerDiscriminator):
        y = leaky(conv(x, "model.0", 2, 1))
        y = leaky(norm(conv(y, "model.2", 2, 1)))
        y = leaky(norm(conv(y, "model.5", 1, 1)))
        return conv(y, "model.8", 1, 1)
    y = leaky(norm(conv(leaky(conv(x, "net.0")), "net.2")))
    return conv(y, "net.5")


def net_depth(state):
    """How many levels the U-Net has within the outermost one."""
    return sum(k.endswith(".1.weight") for k in state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnetGenerator(3, 2, 6, 4, "instance"),
        lambda: ResnetGenerator(3, 2, 4, "instance", False, 2),
        lambda: NLayerDiscriminator(3, 4, 2, "instance"),
        lambda: PixelDiscriminator(3, 4, "instance"),
    ],
)
def test_forward_by_hand(make):
    net = seeded(make().double(), 5)
    shape = (2, 3, 64, 128)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        wanted = forward_by_hand(net, image)
        torch.testing.assert_close(net(image), wanted, rtol=1e-10, atol=1e-10)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="downs=4"):
        UnetGenerator(3, 3, 4)
    with pytest.raises(ValueError, match="layers=0"):
        NLayerDiscriminator(6, 4, 0)
    with pytest.raises(ValueError, match="norm='group'"):
        PixelDiscriminator(6, 4, "group")
    with pytest.raises(ValueError, match="kind='wgangp'"):
        adversarial("wgangp")


@pytest.mark.parametrize(
    ("kind", "disc", "gen"),
    [
        # Of the real logits (2, -0.5) and the fake ones (0.5, -3), by hand.
        (
            "vanilla",
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2
            + (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))) / 2,
            (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3))) / 2,
        ),
        ("lsgan", (1 + 2.25) / 2 + (0.25 + 9) / 2, (0.25 + 16) / 2),
        ("hinge", (0 + 1.5) / 2 + (1.5 + 0) / 2, 1.25),
        ("wgan", -1.25 - 0.75, 1.25),
    ],
)
def test_adversarial_by_hand(kind, disc, gen):
    loss = adversarial(kind)
    real, fake = torch.tensor([[2.0, -0.5]]).double(), torch.tensor([[0.5, -3.0]]).double()
    assert loss.disc(real, fake).item() == pytest.approx(disc, rel=1e-12)
    assert loss.gen(fake).item() == pytest.approx(gen, rel=1e-12)


def test_gradient_penalty_by_hand():
    """Logits w * x * x have the gradient 2 w x, at a mixed x that differs by example."""
    real, fake = (torch.full((2, 3, 2, 2), v, dtype=torch.float64) for v in (1.0, -1.0))
    alpha = torch.tensor([0.75, 0.5]).double()  # so x is 0.5 and 0
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def discriminator(x):
        return weight * x * x

    penalty = gradient_penalty(discriminator, real, fake, alpha)
    wanted = ((2 * 2 * 0.5 * math.sqrt(12) - 1) ** 2 + 1) / 2
    assert penalty.item() == pytest.approx(wanted, rel=1e-12)
    (slope,) = torch.autograd.grad(penalty, weight)
    by_hand = (2 * 0.5 * 2 * math.sqrt(12) - 1) * 2 * 0.5 * math.sqrt(12)
    assert slope.item() == pytest.approx(by_hand, rel=1e-12)
    image = gradient_penalty(discriminator, real, fake, alpha, image_channels=2)
    assert image.item() == pytest.approx(((2 * math.sqrt(8) - 1) ** 2 + 1) / 2, rel=1e-12)


def small(seed=0):
    """A tiny pair of networks in float64, and one batch of two images."""
    gen = seeded(UnetGenerator(3, 3, 5, 4).double(), seed)
    disc = seeded(NLayerDiscriminator(6, 4, 2).double(), seed + 1)
    rng = torch.Generator().manual_seed(seed)
    shape = (2, 3, 32, 32)
    images = [torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(2)]
    return gen, disc, *images


def adam_first(before, after, grads, lr):
    """Adam's first step is -lr * g / (|g| + eps), whatever the betas."""
    for name, value in after.items():
        g = grads[name]
        torch.testing.assert_close(
            value, before[name] - lr * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-12
        )


def parameters(net):
    return {k: p.detach().clone() for k, p in net.named_parameters()}


def test_step_is_the_discriminator_first_and_the_generator_against_the_new_one():
    gen, disc, source, target = small()
    gen2, disc2 = copy.deepcopy(gen), copy.deepcopy(disc)
    start_g, start_d = parameters(gen), parameters(disc)
    trainer = Trainer(gen, disc, "lsgan", lambda_l1=10.0, lr=1e-3)
    got = trainer.step(source, target)

    fake = gen2(source)
    fake_loss = (disc2(torch.cat([source, fake.detach()], 1)) ** 2).mean()
    real_loss = ((disc2(torch.cat([source, target], 1)) - 1) ** 2).mean()
    names = list(start_d)
    grads = torch.autograd.grad((fake_loss + real_loss) / 2, list(disc2.parameters()))
    adam_first(start_d, parameters(disc), dict(zip(names, grads, strict=True)), 1e-3)
    for parameter, grad in zip(disc.parameters(), grads, strict=True):  # none of the generator's
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    assert got["disc"] == pytest.approx((fake_loss + real_loss).item(), rel=1e-12)

    with torch.no_grad():  # the generator meets the discriminator as it now is
        for old, new in zip(disc2.parameters(), disc.parameters(), strict=True):
            old.copy_(new)
    gan = ((disc2(torch.cat([source, fake], 1)) - 1) ** 2).mean()
    l1 = (fake - target).abs().mean()
    grads = torch.autograd.grad(gan + 10 * l1, list(gen2.parameters()))
    adam_first(start_g, parameters(gen), dict(zip(start_g, grads, strict=True)), 1e-3)
    assert got["gan"] == pytest.approx(gan.item(), rel=1e-12)
    assert got["l1"] == pytest.approx(l1.item(), rel=1e-12)
    assert set(got) == {"disc", "gan", "l1"}
    assert all(type(v) is float for v in got.values())

    # Running statistics: one forward of the generator, three (fake, real, fake) of the other.
    for mine, theirs in ((gen, gen2), (disc, disc2)):
        for (name, a), b in zip(mine.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_do_not_pile_up():
    """Without learning, the same batch has the same gradients again."""
    gen, disc, source, target = small()
    trainer = Trainer(gen, disc, lr=0.0)
    seen = []
    for _ in range(2):
        losses = trainer.step(source, target)
        grads = [p.grad.clone() for p in [*gen.parameters(), *disc.parameters()]]
        seen.append((losses, grads))
    (first, old), (second, new) = seen
    assert first == pytest.approx(second, rel=1e-12)
    for a, b in zip(old, new, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["vanilla", "lsgan", "hinge"])
def test_steps_learn(kind):
    gen, disc, source, _ = small()
    trainer = Trainer(gen, disc, kind, lr=2e-3)
    target = torch.full_like(source, 0.5)
    losses = [trainer.step(source, target)["l1"] for _ in range(60)]
    assert losses[-1] < losses[0] / 3


EVERY = [
    lambda norm: UnetGenerator(3, 3, 6, 4, norm),
    lambda norm: ResnetGenerator(3, 3, 4, norm, False, 2),
    lambda norm: NLayerDiscriminator(3, 4, 2, norm),
    lambda norm: PixelDiscriminator(3, 4, norm),
]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("norm", NORMS)
def test_seeded(make, norm):
    net, same, other = seeded(make(norm), 3), seeded(make(norm).double(), 3), seeded(make(norm), 4)
    for (name, a), b, c in zip(
        net.state_dict().items(),
        same.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b.to(a.dtype), msg=name)
        assert not torch.equal(a, c), name
        assert not (a == 0).any(), name
        assert not (a == 1).all(), name
        assert "running_var" not in name or (a > 0).all(), name
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for train in (True, False):
            y = copy.deepcopy(net).train(train)(image)
            assert 0.01 < y.std() < 2
            assert y.abs().mean() < 0.95
            exact = copy.deepcopy(same).train(train)(image.double())
            assert exact.dtype == torch.float64
            torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-3)
