"""PatchGAN discriminators: a convolutional network that judges overlapping patches.

Isola et al. 2017, sections 3.2.2 and 6.1.2. The names of layers (`conv1`, `conv2`, ...) are the
checkpoint format.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from p2p_jax.models.conv import Array
from p2p_jax.models.layers import ConvNorm, Style, leaky_relu
from p2p_jax.models.options import DiscriminatorOptions

Judgement = tuple[tuple[Array, ...], ...]


class Patches(NamedTuple):
    """What a discriminator's logits judge, at one scale.

    Attributes:
      height: logits along it.
      width: logits along it.
      field: pixels along an axis that one logit sees.
    """

    height: int
    width: int
    field: int


class PatchGan(nn.Module):
    """4x4 convolutions with padding 1: `layers` of stride 2, then two of stride 1.

    LeakyReLU follows all but the last; a norm all but the first and the last. Three stride-2
    layers, the default, make five convolutions and see patches of 70x70. No layers at all is the
    PixelGAN: three 1x1 convolutions that judge each pixel by itself.

    Attributes:
      layers: stride-2 convolutions, or 0.
      base_features: of the first; doubled by each further one, up to eightfold.
      conditional: whether it sees the source beside the image.
      style: of all layers.
    """

    layers: int
    base_features: int
    conditional: bool
    style: Style

    @nn.compact
    def __call__(self, source: Array, image: Array, running: bool = False) -> Judgement:
        """Judges images.

        Args:
          source: `[b, h, w, c]` in [-1, 1], the condition.
          image: `[b, h, w, c']` in [-1, 1], real or fake.
          running: normalise by the running statistics, not the batch's.

        Returns:
          For each scale, of which there is one, what each layer makes: the last are the logits
          `[b, h', w', 1]`, at least float32; positive means real. For h' see `patches`.
        """
        x = jnp.concatenate([source, image.astype(source.dtype)], -1) if self.conditional else image
        maps = []
        convolutions = self.layers + 2 if self.layers else 3
        for k in range(1, convolutions + 1):
            first, last = k == 1, k == convolutions
            features = 1 if last else self.base_features * 2 ** min(k - 1, 3)
            kind = "point" if not self.layers else "down" if k <= self.layers else "conv"
            normed = not (first or last)
            x = ConvNorm(features, kind, self.style, normed, first, last, name=f"conv{k}")(
                x, running
            )
            if not last:
                x = leaky_relu(x, self.style.slope)
            maps.append(x)
        return ((*maps[:-1], x.astype(jnp.promote_types(x.dtype, jnp.float32))),)

    def patches(self, height: int, width: int) -> tuple[Patches, ...]:
        """What it makes of an image; without a logit the image is too small."""
        if not self.layers:
            return (Patches(height, width, 1),)
        field = 7  # two 4x4 convolutions of stride 1
        for _ in range(self.layers):
            field = 2 * field + 2
        height, width = (max(0, size // 2**self.layers - 2) for size in (height, width))
        return (Patches(height, width, field),)


class MultiScale(nn.Module):
    """Discriminators of one kind for an image and its halves (Wang et al. 2018, section 3.2).

    Attributes:
      judges: one for each scale, the finest first; called `scale1`, `scale2`, ...
    """

    judges: tuple[Any, ...]

    @nn.compact
    def __call__(self, source: Array, image: Array, running: bool = False) -> Judgement:
        """Judges images; arguments and result as of `PatchGan`, with an entry for each scale."""
        judgement: Judgement = ()
        for k, judge in enumerate(self.judges, 1):
            if k > 1:
                source, image = halve(source), halve(image)
            judgement += judge.copy(parent=self, name=f"scale{k}")(source, image, running)
        return judgement

    def patches(self, height: int, width: int) -> tuple[Patches, ...]:
        """What each makes of an image, in pixels of that image."""
        found: tuple[Patches, ...] = ()
        for k, judge in enumerate(self.judges):
            for p in judge.patches(height, width):
                field = p.field
                for _ in range(k):
                    field = 2 * field + 1  # a mean over 3 at stride 2
                found += (p._replace(field=field),)
            height, width = (-(-size // 2) for size in (height, width))
        return found


def halve(x: Array) -> Array:
    """Means of `[b, h, w, c]` over 3x3 pixels at stride 2, padding left out of them."""
    for axis in (1, 2):
        n = x.shape[axis]
        out = -(-n // 2)
        pads = [(1, 2) if a == axis else (0, 0) for a in range(4)]
        wide = jnp.pad(x, pads)
        rows = [wide[(slice(None),) * axis + (slice(k, k + 2 * out - 1, 2),)] for k in range(3)]
        counts = jnp.array([sum(0 <= 2 * i + k - 1 < n for k in range(3)) for i in range(out)])
        shape = [out if a == axis else 1 for a in range(4)]
        x = (rows[0] + rows[1] + rows[2]) / counts.astype(x.dtype).reshape(shape)
    return x


def patchgan(options: DiscriminatorOptions, style: Style) -> PatchGan:
    """The paper's PatchGAN; 2,768,705 parameters with 3 layers and 3 + 3 channels."""
    if not options.layers:
        return pixel(options, style)
    style = style.settled("ends")
    return PatchGan(options.layers, options.base_features, options.conditional, style)


def pixel(options: DiscriminatorOptions, style: Style) -> PatchGan:
    """The PixelGAN, whatever `layers` is; 9,024 parameters with 3 + 3 channels."""
    return PatchGan(0, options.base_features, options.conditional, style.settled("first"))
