"""The paper's networks and losses in PyTorch, for comparison; imports torch.

Isola et al. 2017, sections 3 and 6.1. Tensors are `[b, c, h, w]`. Activations work in place, as
none of them stands where what it overwrites is needed again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L1 = 100.0  # weight of the mean absolute error beside the adversarial loss
DISC = 0.5  # weight of the discriminator's loss, both sides added up
DROPPED = (1, 2, 3)  # decoder blocks, from the innermost, that drop half of their outputs
_SLOPE = 0.2


class _Down(nn.Module):
    """4x4 stride-2 convolution, and batch norm where there is one."""

    def __init__(self, inputs: int, outputs: int, normed: bool, running: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=running) if normed else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class _Up(nn.Module):
    """4x4 stride-2 transposed convolution, batch norm and dropout; the last has a bias alone."""

    def __init__(self, inputs: int, outputs: int, last: bool, dropped: bool, running: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=last)
        self.norm = None if last else nn.BatchNorm2d(outputs, track_running_stats=running)
        self.dropout = nn.Dropout(0.5) if dropped else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.dropout is None else self.dropout(x)


class UNet(nn.Module):
    """The paper's U-Net; 54,413,955 parameters at depth 8 with 64 base features.

    Blocks of the decoder begin with their ReLU, which the skips pass as well. The innermost block
    of the encoder has no norm.

    Args:
      depth: how often the size is halved.
      base_features: of the first block; doubled by each further one, up to eightfold.
      running: whether the norm keeps running statistics; without them `eval`, too, normalises by
        those of the batch.
    """

    def __init__(self, depth: int = 8, base_features: int = 64, running: bool = True) -> None:
        super().__init__()
        widths = [base_features * 2 ** min(k, 3) for k in range(depth)]
        self.encoder = nn.ModuleList(
            _Down(inputs, outputs, 0 < k < depth - 1, running)
            for k, (inputs, outputs) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.decoder = nn.ModuleList(
            _Up(
                widths[depth - k] * (1 if k == 1 else 2),
                3 if k == depth else widths[depth - k - 1],
                last=k == depth,
                dropped=k in DROPPED and k < depth,
                running=running,
            )
            for k in range(1, depth + 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Translates `[b, 3, h, w]` in [-1, 1] to as many, at least float32."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(F.leaky_relu_(x, _SLOPE) if skips else x)
            skips.append(x)
        x = F.relu_(skips.pop())
        for block in self.decoder[:-1]:
            # The skip was rectified by LeakyReLU already, where it went down a level.
            x = F.relu_(torch.cat([block(x), skips.pop()], 1))
        x = self.decoder[-1](x)
        return torch.tanh(_full(x))


class PatchGan(nn.Module):
    """The paper's discriminator; 70x70 patches and 2,768,705 parameters as it stands.

    4x4 convolutions with padding 1, `layers` of stride 2 and two of stride 1; batch norm on all but
    the first and the last, which have a bias instead.

    Args:
      layers: convolutions of stride 2.
      base_features: of the first; doubled by each further one, up to eightfold.
    """

    def __init__(self, layers: int = 3, base_features: int = 64) -> None:
        super().__init__()
        widths = [base_features * 2 ** min(k, 3) for k in range(layers + 1)]
        stack: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(zip([6, *widths], widths, strict=False)):
            stride = 2 if k < layers else 1
            stack.append(nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=k == 0))
            stack += [nn.BatchNorm2d(outputs)] if k else []
            stack.append(nn.LeakyReLU(_SLOPE, inplace=True))
        self.stack = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        """Logits `[b, 1, h', w']`, at least float32, of images given their source."""
        return _full(self.stack(torch.cat([source, image], 1)))


def initialised(net: Any, seed: int) -> Any:
    """Fills all weights in place, as the paper does: N(0, 0.02), scales of norms N(1, 0.02).

    Args:
      net: a `UNet` or `PatchGan`, on any device.
      seed: of the draws.

    Returns:
      `net`, its biases zero.
    """
    device = next(net.parameters()).device
    draws = torch.Generator(device).manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            nn.init.normal_(module.weight, mean, 0.02, generator=draws)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def translate(generator: UNet, source: Tensor) -> Tensor:
    """The fake `[b, 3, h, w]` of a source."""
    return generator(source)


def disc_losses(
    discriminator: PatchGan, source: Tensor, target: Tensor, fake: Tensor
) -> tuple[Tensor, Tensor]:
    """What the discriminator minimises, and the same before its weight, detached."""
    real_logits, fake_logits = discriminator(source, target), discriminator(source, fake)
    loss = _cross_entropy(real_logits, 1.0) + _cross_entropy(fake_logits, 0.0)
    return DISC * loss, loss.detach()


def gen_losses(
    discriminator: PatchGan, source: Tensor, target: Tensor, fake: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the generator minimises, and its parts, detached: adversarial and L1, unweighted."""
    gan, l1 = _cross_entropy(discriminator(source, fake), 1.0), F.l1_loss(fake, target)
    return gan + L1 * l1, gan.detach(), l1.detach()


def _cross_entropy(logits: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def _full(x: Tensor) -> Tensor:
    """In float32 where it is less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
