"""U-Net generators: the paper's, and a variant that upsamples and convolves.

Isola et al. 2017, sections 3.2.1 and 6.1.1. The names of layers (`enc1`, `dec1`, ..., each with
`conv` and `norm`) are the checkpoint format.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from p2p_jax.models.conv import Array, Policy
from p2p_jax.models.layers import ConvNorm, GeneratorOptions, dropout


class UNet(nn.Module):
    """Encoder and decoder of equal depth, with skips between levels of equal size.

    Encoder block k: 4x4 stride-2 convolution, norm (not on the first), LeakyReLU(0.2). Decoder
    block k: doubling, norm, dropout, ReLU; the last ends in a bias and tanh instead. With depth n,
    what encoder block k makes joins the output of decoder block n - k on channels, decoder first.

    Attributes:
      out_channels: channels of the image made.
      widths: features of the encoder blocks; their number is the depth. The decoder mirrors them.
      upsample: `deconv` (4x4 transposed convolution) or `nearest` (doubling, 3x3 convolution).
      norm: `batch` or `none`.
      norm_group: examples that share statistics; see `layers.BatchNorm`.
      norm_innermost: whether the innermost encoder block is normalised; at 1x1, and one image a
        group, that would leave nothing.
      rectified: whether skips and the innermost output pass ReLU before the decoder, as in Torch's
        `models.lua`, where blocks begin with their activation, or arrive as LeakyReLU left them.
      bias: convolutions with a bias: `last`, or `unnormed` (all that no norm follows).
      skips: False leaves the skips out.
      dropped: decoder blocks, counted from 1, that drop half of their outputs.
      policy: how it computes.
      axis: the mesh axis that splits the batch.
    """

    out_channels: int
    widths: tuple[int, ...]
    upsample: str
    norm: str
    norm_group: int
    norm_innermost: bool
    rectified: bool
    bias: str
    skips: bool
    dropped: tuple[int, ...]
    policy: Policy
    axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, running: bool = False) -> Array:
        """Translates images.

        Args:
          x: `[b, h, w, c]` in [-1, 1]; h and w multiples of `size_step`.
          keys: `[b]` typed keys for dropout; None for no dropout.
          running: normalise by the running statistics, not the batch's.

        Returns:
          `[b, h, w, out_channels]` in [-1, 1], at least float32.

        Raises:
          ValueError: a size that the depth does not allow.
        """
        depth = len(self.widths)
        if any(size % self.size_step for size in x.shape[1:3]):
            raise ValueError(f"{x.shape[1]}x{x.shape[2]} is not a multiple of {self.size_step}")
        skips = []
        for k, features in enumerate(self.widths, 1):
            normed = k > 1 and (k < depth or self.norm_innermost)
            x = nn.leaky_relu(self._block(f"enc{k}", features, "down", normed)(x, running), 0.2)
            skips.append(nn.relu(x) if self.rectified else x)
        x = skips[-1]
        up = "up" if self.upsample == "deconv" else self.upsample
        for k, features in enumerate((*self.widths[-2::-1], self.out_channels), 1):
            if k > 1 and self.skips:
                x = jnp.concatenate([x, skips[depth - k]], -1)
            x = self._block(f"dec{k}", features, up, normed=k < depth, last=k == depth)(x, running)
            if k < depth:
                x = nn.relu(dropout(x, keys if k in self.dropped else None, k))
        return jnp.tanh(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def _block(
        self, name: str, features: int, kind: str, normed: bool, last: bool = False
    ) -> ConvNorm:
        norm = self.norm if normed else "none"
        bias = last or (self.bias == "unnormed" and norm == "none")
        return ConvNorm(
            features, kind, bias, norm, self.norm_group, self.policy, self.axis, name=name
        )

    @property
    def size_step(self) -> int:
        """Height and width must be multiples of this, as each level halves them."""
        return 2 ** len(self.widths)


def unet(options: GeneratorOptions, policy: Policy, channels: int, axis: str | None) -> UNet:
    """The paper's U-Net; 54,413,955 parameters at depth 8 with 3 channels."""
    return _unet(options, policy, channels, axis, "deconv", "last", innermost=False, rectified=True)


def unet_upsample(
    options: GeneratorOptions, policy: Policy, channels: int, axis: str | None
) -> UNet:
    """Seven levels of upsampling and convolution with six skips; 30,243,907 parameters.

    Skips join block outputs, activations included: what encoder block k makes after LeakyReLU
    stands beside what decoder block 7 - k makes after ReLU.
    """
    return _unet(
        options, policy, channels, axis, "nearest", "unnormed", innermost=True, rectified=False
    )


def _unet(
    options: GeneratorOptions,
    policy: Policy,
    channels: int,
    axis: str | None,
    upsample: str,
    bias: str,
    innermost: bool,
    rectified: bool,
) -> UNet:
    """The options, with what `auto` means for the network named."""
    # The paper's 64, 128, 256, 512, 512, ... scaled to the base, unless a list is given.
    doubling = (options.base_features * 2 ** min(k, 3) for k in range(options.depth))
    return UNet(
        out_channels=channels,
        widths=options.features or tuple(doubling),
        upsample=upsample if options.upsample == "auto" else options.upsample,
        norm=options.norm,
        norm_group=options.norm_group,
        norm_innermost=innermost,
        rectified=rectified,
        bias=bias if options.bias == "auto" else options.bias,
        skips=options.skips,
        dropped=options.dropout,
        policy=policy,
        axis=axis,
    )
