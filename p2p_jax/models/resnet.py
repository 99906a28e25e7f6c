"""The residual generator of Johnson et al. 2016, as pix2pix and CycleGAN implementations offer it.

The names of layers (`enc1` to `enc3`, `res1`, ..., `dec1` to `dec3`) are the checkpoint format.
"""

from __future__ import annotations

import flax.linen as nn

from p2p_jax.models.conv import Array
from p2p_jax.models.layers import ConvNorm, Style, dropout, finished, with_noise
from p2p_jax.models.options import GeneratorOptions


class Block(nn.Module):
    """Two 3x3 convolutions of mirrored images around ReLU and dropout, added to their input.

    Attributes:
      index: of the block, from 1.
      dropped: whether it drops half of what is between.
      style: of its layers.
    """

    index: int
    dropped: bool
    style: Style

    @nn.compact
    def __call__(self, x: Array, keys: Array | None, running: bool) -> Array:
        """`[b, h, w, c]` to the same."""
        features = x.shape[-1]
        y = nn.relu(ConvNorm(features, "reflect3", self.style, name="conv1")(x, running))
        y = dropout(y, keys if self.dropped else None, self.index)
        return x + ConvNorm(features, "reflect3", self.style, name="conv2")(y, running)


class ResNet(nn.Module):
    """7x7 convolution, two halvings, residual blocks, two doublings, 7x7 convolution, output.

    Attributes:
      out_channels: channels of the image made.
      base_features: after the first convolution; each halving doubles them.
      blocks: residual blocks, at a quarter of the size.
      upsample: the `layers.Conv` that doubles the size.
      dropped: whether every block drops half of what is between its convolutions.
      noise: channels of noise beside the source.
      style: of all layers.
    """

    out_channels: int
    base_features: int
    blocks: int
    upsample: str
    dropped: bool
    noise: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, running: bool = False) -> Array:
        """Translates images.

        Args:
          x: `[b, h, w, c]` in [-1, 1]; h and w multiples of `size_step`, and at least 8.
          keys: `[b]` typed keys for dropout and noise; None for neither.
          running: normalise by the running statistics, not the batch's.

        Returns:
          `[b, h, w, out_channels]`, at least float32: in [-1, 1], or probabilities of the channels
          where the style's output is `softmax`.

        Raises:
          ValueError: a size that cannot be halved twice and mirrored.
        """
        h, w = x.shape[1:3]
        # One by one: the least of two symbolic sizes, as exports have them, is undecidable.
        if h % self.size_step or w % self.size_step or h < self.min_size or w < self.min_size:
            raise ValueError(f"{h}x{w} is not a multiple of {self.size_step} from {self.min_size}")
        style, base = self.style, self.base_features
        x = with_noise(x, keys, self.noise)
        x = nn.relu(ConvNorm(base, "reflect7", style, first=True, name="enc1")(x, running))
        for k in (2, 3):
            features = base * 2 ** (k - 1)
            x = nn.relu(ConvNorm(features, "down3", style, name=f"enc{k}")(x, running))
        for k in range(1, self.blocks + 1):
            x = Block(k, self.dropped, style, name=f"res{k}")(x, keys, running)
        for k in (1, 2):
            features = base * 2 ** (2 - k)
            x = nn.relu(ConvNorm(features, self.upsample, style, name=f"dec{k}")(x, running))
        x = ConvNorm(self.out_channels, "reflect7", style, normed=False, last=True, name="dec3")(
            x, running
        )
        return finished(x, style)

    @property
    def size_step(self) -> int:
        """Height and width must be multiples of this, as they are halved twice."""
        return 4

    @property
    def min_size(self) -> int:
        """The least height and width: a quarter of it is mirrored by a pixel, it itself by 3."""
        return 8


def resnet(options: GeneratorOptions, style: Style, channels: int) -> ResNet:
    """The residual generator; 11,383,427 parameters with 9 blocks and 3 channels."""
    return ResNet(
        out_channels=channels,
        base_features=options.base_features,
        blocks=options.blocks,
        upsample="up3" if options.upsample in ("auto", "deconv") else options.upsample,
        dropped=bool(options.dropout),
        noise=options.noise,
        style=style.settled("last"),
    )
