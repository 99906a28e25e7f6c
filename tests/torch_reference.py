"""The reference PyTorch implementation of the networks, the losses and the training step.

Modules nest so that `state_dict` keys are those of the published PyTorch layout. Tensors are
`[b, c, h, w]`. A test module that imports this one is skipped where torch is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional
torch.set_num_threads(1)  # tests run side by side, and its threads wait by spinning

NORMS = ("batch", "instance", "none")
Tensor = Any  # torch.Tensor: torch is absent where annotations are read without it


def _norm(kind: str, channels: int) -> Any:
    """Normalization, at its own index of a sequence even where it does nothing."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, eps=1e-5, affine=False, track_running_stats=False)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm={kind!r}: must be one of {NORMS}")


def _bias(kind: str) -> bool:
    """Whether a convolution whose bias depends on the norm has one: for `none`, too, it has not."""
    return kind == "instance"


class UnetSkipConnectionBlock(nn.Module):
    """One level of the U-Net: its encoder half, the levels within, its decoder half.

    Without `child` it is the innermost level. Without `norm` it is the outermost, which returns
    its output alone; the others return `[input, output]` concatenated over channels.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        norm: str,
        child: UnetSkipConnectionBlock | None = None,
        outermost: bool = False,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(in_channels, inner, 4, stride=2, padding=1, bias=_bias(norm))
        up = nn.ConvTranspose2d(
            inner if child is None else 2 * inner,
            out_channels,
            4,
            stride=2,
            padding=1,
            bias=outermost or _bias(norm),
        )
        if outermost:
            layers = [down, child, nn.ReLU(), up, nn.Tanh()]
        elif child is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, _norm(norm, out_channels)]
        else:
            layers = [nn.LeakyReLU(0.2), down, _norm(norm, inner), child]
            layers += [nn.ReLU(), up, _norm(norm, out_channels)]
            layers += [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return y if self.outermost else torch.cat([x, y], dim=1)


class UnetGenerator(nn.Module):
    """U-Net of `downs` levels: 8 is `unet_256`, 7 is `unet_128`.

    The widths are `ngf` times 1, 2, 4, 8, 8, ... Dropout, where asked for, is in the levels of
    8 * ngf channels on both sides except the innermost: d = 4 ... downs - 2, counted from 0
    outermost.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        downs: int,
        ngf: int = 64,
        norm: str = "batch",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        if downs < 5:
            raise ValueError(f"downs={downs}: must be at least 5")
        widths = [ngf * min(2**d, 8) for d in range(downs)]
        block = None
        for d in range(downs - 1, 0, -1):
            outer, inner = widths[d - 1], widths[d]
            drop = dropout and 4 <= d < downs - 1
            block = UnetSkipConnectionBlock(outer, inner, outer, norm, block, dropout=drop)
        self.model = UnetSkipConnectionBlock(
            in_channels, ngf, out_channels, norm, block, outermost=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, padded by reflection, around which the input is added."""

    def __init__(self, channels: int, norm: str, dropout: bool) -> None:
        super().__init__()

        def conv() -> list[Any]:
            plain = nn.Conv2d(channels, channels, 3, bias=_bias(norm))
            return [nn.ReflectionPad2d(1), plain, _norm(norm, channels)]

        drop = [nn.Dropout(0.5)] if dropout else []
        self.conv_block = nn.Sequential(*conv(), nn.ReLU(), *drop, *conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Two strided convolutions, `blocks` residual blocks at a quarter of the size, and back."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ngf: int = 64,
        norm: str = "batch",
        dropout: bool = False,
        blocks: int = 9,
    ) -> None:
        super().__init__()
        bias = _bias(norm)
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, ngf, 7, bias=bias)]
        layers += [_norm(norm, ngf), nn.ReLU()]
        for width in (ngf, 2 * ngf):
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias)]
            layers += [_norm(norm, 2 * width), nn.ReLU()]
        layers += [ResnetBlock(4 * ngf, norm, dropout) for _ in range(blocks)]
        for width in (2 * ngf, ngf):
            up = nn.ConvTranspose2d(
                2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=bias
            )
            layers += [up, _norm(norm, width), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class NLayerDiscriminator(nn.Module):
    """PatchGAN of `layers` + 2 convolutions, the last two of stride 1; returns logits."""

    def __init__(
        self, in_channels: int, ndf: int = 64, layers: int = 3, norm: str = "batch"
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: must be at least 1")
        stack = [nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for k in range(1, layers + 1):
            before, width = width, ndf * min(2**k, 8)
            stride = 2 if k < layers else 1
            stack += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=_bias(norm))]
            stack += [_norm(norm, width), nn.LeakyReLU(0.2)]
        stack += [nn.Conv2d(width, 1, 4, stride=1, padding=1)]
        self.model = nn.Sequential(*stack)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PixelDiscriminator(nn.Module):
    """The 1x1 PatchGAN; returns one logit for each pixel."""

    def __init__(self, in_channels: int, ndf: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, ndf, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=_bias(norm)),
            _norm(norm, 2 * ndf),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * ndf, 1, 1, bias=_bias(norm)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Adversarial(NamedTuple):
    """Both losses of one kind, each a scalar tensor of logits of any shape."""

    disc: Callable[[Tensor, Tensor], Tensor]  # (real logits, fake logits): the sum, not halved
    gen: Callable[[Tensor], Tensor]  # fake logits


def adversarial(kind: str) -> Adversarial:
    """The losses of `vanilla` (the non-saturating one), `lsgan`, `hinge` or `wgan`."""

    def bce(logits: Tensor, target: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def mse(logits: Tensor, target: float) -> Tensor:
        return F.mse_loss(logits, torch.full_like(logits, target))

    def minus_mean(fake: Tensor) -> Tensor:
        return -fake.mean()

    kinds = {
        "vanilla": Adversarial(
            lambda real, fake: bce(real, 1.0) + bce(fake, 0.0), lambda fake: bce(fake, 1.0)
        ),
        "lsgan": Adversarial(
            lambda real, fake: mse(real, 1.0) + mse(fake, 0.0), lambda fake: mse(fake, 1.0)
        ),
        "hinge": Adversarial(
            lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), minus_mean
        ),
        "wgan": Adversarial(lambda real, fake: fake.mean() - real.mean(), minus_mean),
    }
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: must be one of {tuple(kinds)}")
    return kinds[kind]


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real_pair: Tensor,
    fake_pair: Tensor,
    alpha: Tensor,
    image_channels: int | None = None,
) -> Tensor:
    """WGAN-GP's penalty between real and fake pairs, unweighted and differentiable.

    `alpha` `[b]` is each example's share of the real pair. The reference differentiates with
    respect to the whole pair; `image_channels` keeps only that many last channels, the image.
    """
    alpha = alpha.reshape(-1, 1, 1, 1)
    mixed = (alpha * real_pair + (1 - alpha) * fake_pair).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    if image_channels is not None:
        gradient = gradient[:, -image_channels:]
    # The reference adds 1e-16 to the gradient, not to its norm.
    norms = (gradient.flatten(1) + 1e-16).norm(2, dim=1)
    return ((norms - 1) ** 2).mean()


class Trainer:
    """The reference's training loop for paired images: a discriminator step, then a generator step.

    The networks are trained in place, in the mode they are in.
    """

    def __init__(
        self,
        generator: Any,
        discriminator: Any,
        kind: str = "vanilla",
        lambda_l1: float = 100.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.loss = adversarial(kind)
        self.lambda_l1 = lambda_l1
        self.adam_g = torch.optim.Adam(generator.parameters(), lr=lr, betas=betas, eps=eps)
        self.adam_d = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=betas, eps=eps)

    def step(self, source: Tensor, target: Tensor) -> dict[str, float]:
        """One step on `[b, c, h, w]` images in [-1, 1]; returns the unweighted losses."""
        fake = self.generator(source)
        disc = self._discriminator_step(source, target, fake.detach())
        gan, l1 = self._generator_step(source, target, fake)
        return {"disc": disc.item(), "gan": gan.item(), "l1": l1.item()}

    def _discriminator_step(self, source: Tensor, target: Tensor, fake: Tensor) -> Tensor:
        self.discriminator.requires_grad_(True)
        # Fake first: the order in which batch norm's running statistics see the two.
        fake_logits = self.discriminator(torch.cat([source, fake], dim=1))
        real_logits = self.discriminator(torch.cat([source, target], dim=1))
        loss = self.loss.disc(real_logits, fake_logits)
        self.adam_d.zero_grad()
        (0.5 * loss).backward()
        self.adam_d.step()
        return loss

    def _generator_step(self, source: Tensor, target: Tensor, fake: Tensor) -> tuple[Any, Any]:
        self.discriminator.requires_grad_(False)
        gan = self.loss.gen(self.discriminator(torch.cat([source, fake], dim=1)))
        l1 = F.l1_loss(fake, target)
        self.adam_g.zero_grad()
        (gan + self.lambda_l1 * l1).backward()
        self.adam_g.step()
        self.discriminator.requires_grad_(True)
        return gan, l1


def _fan_in(module: Any) -> float:
    """How many products make up one output, away from borders."""
    out_in = module.weight.shape
    if isinstance(module, nn.ConvTranspose2d):  # its weight is [in, out, h, w]
        return out_in[0] * math.prod(out_in[2:]) / math.prod(module.stride)
    return math.prod(out_in[1:])


def seeded(net: Any, seed: int) -> Any:
    """Fill every parameter and running statistic from `seed`, in place; returns `net`.

    The same values, up to rounding, in every precision. None is neutral, so that a test notices
    one that is dropped, and activations stay of the order of 1.
    """
    rng = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, mean: float, std: float) -> None:
        noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
        tensor.copy_(mean + std * noise)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                fill(module.weight, 0.0, min(max(_fan_in(module) ** -0.5, 0.02), 0.5))
                if module.bias is not None:
                    fill(module.bias, 0.0, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                fill(module.weight, 1.0, 0.1)
                fill(module.bias, 0.0, 0.1)
                fill(module.running_mean, 0.0, 0.1)
                spread = torch.rand(module.running_var.shape, generator=rng, dtype=torch.float64)
                module.running_var.copy_(0.5 + spread)
                module.num_batches_tracked.copy_(torch.randint(1, 1000, (), generator=rng))
            elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
                raise TypeError(f"no rule to fill a {type(module).__name__}")
    return net
