"""U-Net generators: the paper's, its ablation without skips, and one that upsamples and convolves.

Isola et al. 2017, sections 3.2.1 and 6.1.1. The names of layers (`enc1`, `dec1`, ..., each with
`conv` and `norm`) are the checkpoint format.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from p2p_jax.models.conv import Array
from p2p_jax.models.layers import ConvNorm, Style, dropout, finished, leaky_relu, with_noise
from p2p_jax.models.options import GeneratorOptions


class UNet(nn.Module):
    """Encoder and decoder of equal depth, with skips between levels of equal size.

    Encoder block k: 4x4 stride-2 convolution, norm (not on the first), LeakyReLU. Decoder block k:
    doubling, norm, dropout, ReLU; the last ends in the style's output, tanh, instead. With depth n,
    what encoder block k makes joins the output of decoder block n - k on channels, decoder first.

    Attributes:
      out_channels: channels of the image made.
      widths: features of the encoder blocks; their number is the depth. The decoder mirrors them.
      upsample: the `layers.Conv` that doubles the size.
      innermost_norm: whether the innermost encoder block is normalised; at 1x1, and one image a
        group, that would leave nothing.
      rectified: whether skips and the innermost output pass ReLU before the decoder, as in Torch's
        `models.lua`, where blocks begin with their activation, or arrive as LeakyReLU left them.
      skips: whether there are any.
      dropped: decoder blocks, counted from 1, that drop half of their outputs.
      noise: channels of noise beside the source.
      style: of all layers.
    """

    out_channels: int
    widths: tuple[int, ...]
    upsample: str
    innermost_norm: bool
    rectified: bool
    skips: bool
    dropped: tuple[int, ...]
    noise: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, running: bool = False) -> Array:
        """Translates images.

        Args:
          x: `[b, h, w, c]` in [-1, 1]; h and w multiples of `size_step`.
          keys: `[b]` typed keys for dropout and noise; None for neither.
          running: normalise by the running statistics, not the batch's.

        Returns:
          `[b, h, w, out_channels]`, at least float32: in [-1, 1], or probabilities of the channels
          where the style's output is `softmax`.

        Raises:
          ValueError: a size that the depth does not allow.
        """
        depth, style = len(self.widths), self.style
        if any(size % self.size_step for size in x.shape[1:3]):
            raise ValueError(f"{x.shape[1]}x{x.shape[2]} is not a multiple of {self.size_step}")
        x = with_noise(x, keys, self.noise)
        skips = []
        for k, features in enumerate(self.widths, 1):
            normed = k > 1 and (k < depth or self.innermost_norm)
            block = ConvNorm(features, "down", style, normed, first=k == 1, name=f"enc{k}")
            x = leaky_relu(block(x, running), style.slope)
            skips.append(nn.relu(x) if self.rectified else x)
        x = skips[-1]
        for k, features in enumerate((*self.widths[-2::-1], self.out_channels), 1):
            if k > 1 and self.skips:
                x = jnp.concatenate([x, skips[depth - k]], -1)
            last = k == depth
            x = ConvNorm(features, self.upsample, style, not last, last=last, name=f"dec{k}")(
                x, running
            )
            if not last:
                x = nn.relu(dropout(x, keys if k in self.dropped else None, k))
        return finished(x, self.style)

    @property
    def size_step(self) -> int:
        """Height and width must be multiples of this, as each level halves them."""
        return 2 ** len(self.widths)


def unet(options: GeneratorOptions, style: Style, channels: int) -> UNet:
    """The paper's U-Net; 54,413,955 parameters at depth 8 with 3 channels."""
    return _unet(options, style.settled("last"), channels, "deconv", innermost=False)


def encoder_decoder(options: GeneratorOptions, style: Style, channels: int) -> UNet:
    """The paper's ablation: its U-Net without skips."""
    style = style.settled("last")
    return _unet(options, style, channels, "deconv", innermost=False, skips=False)


def unet_upsample(options: GeneratorOptions, style: Style, channels: int) -> UNet:
    """Upsampling and convolution; at depth 7, six skips and 30,243,907 parameters.

    Skips join block outputs, activations included: what encoder block k makes after LeakyReLU
    stands beside what decoder block 7 - k makes after ReLU.
    """
    style = style.settled("unnormed")
    return _unet(options, style, channels, "nearest", innermost=True, rectified=False)


def _unet(
    options: GeneratorOptions,
    style: Style,
    channels: int,
    upsample: str,
    innermost: bool,
    rectified: bool = True,
    skips: bool = True,
) -> UNet:
    """The options, with what `auto` means for the network named."""
    # The paper's 64, 128, 256, 512, 512, ... scaled to the base, unless a list is given.
    doubling = (options.base_features * 2 ** min(k, 3) for k in range(options.depth))
    upsample = upsample if options.upsample == "auto" else options.upsample
    return UNet(
        out_channels=channels,
        widths=options.features or tuple(doubling),
        upsample="up" if upsample == "deconv" else upsample,
        innermost_norm={"auto": innermost}.get(
            options.innermost_norm, options.innermost_norm == "yes"
        ),
        rectified={"auto": rectified}.get(
            options.skip_activation, options.skip_activation == "relu"
        ),
        skips=skips,
        dropped=options.dropout,
        noise=options.noise,
        style=style,
    )
