"""PatchGAN discriminators: a convolutional network that judges overlapping patches.

Isola et al. 2017, sections 3.2.2 and 6.1.2. The names of layers (`conv1`, `conv2`, ...) are the
checkpoint format.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from p2p_jax.models.conv import Array, Policy
from p2p_jax.models.layers import ConvNorm, DiscriminatorOptions


class PatchGan(nn.Module):
    """4x4 convolutions with padding 1: `layers` of stride 2, then two of stride 1.

    LeakyReLU(0.2) follows all but the last. Three stride-2 layers, the default, make five
    convolutions and see patches of 70x70.

    Attributes:
      layers: stride-2 convolutions.
      base_features: of the first; doubled by each further one, up to eightfold.
      norm: `batch` or `none`, on all but the first and the last convolution.
      norm_group: examples that share statistics; see `layers.BatchNorm`.
      policy: how it computes.
      axis: the mesh axis that splits the batch.
    """

    layers: int
    base_features: int
    norm: str
    norm_group: int
    policy: Policy
    axis: str | None = None

    @nn.compact
    def __call__(self, source: Array, image: Array, running: bool = False) -> Array:
        """Judges images.

        Args:
          source: `[b, h, w, c]` in [-1, 1], the condition.
          image: `[b, h, w, c']` in [-1, 1], real or fake.
          running: normalise by the running statistics, not the batch's.

        Returns:
          Logits `[b, h', w', 1]`, at least float32; positive means real. For h' see `output_size`.
        """
        x = jnp.concatenate([source, image.astype(source.dtype)], -1)
        for k in range(1, self.layers + 3):
            first, last = k == 1, k == self.layers + 2
            features = 1 if last else self.base_features * 2 ** min(k - 1, 3)
            kind = "down" if k <= self.layers else "conv"
            norm = "none" if first or last else self.norm
            x = ConvNorm(
                features,
                kind,
                bias=first or last,
                norm=norm,
                norm_group=self.norm_group,
                policy=self.policy,
                axis=self.axis,
                name=f"conv{k}",
            )(x, running)
            if not last:
                x = nn.leaky_relu(x, 0.2)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def output_size(self, size: int) -> int:
        """Patches along an axis of `size` pixels; below 1 the image is too small."""
        return size // 2**self.layers - 2

    @property
    def receptive_field(self) -> int:
        """Pixels along an axis that one logit sees."""
        field = 7  # two 4x4 convolutions of stride 1
        for _ in range(self.layers):
            field = field * 2 + 2
        return field


def patchgan(options: DiscriminatorOptions, policy: Policy, axis: str | None) -> PatchGan:
    """The paper's PatchGAN; 2,768,705 parameters with 3 layers and 3 + 3 channels."""
    return PatchGan(
        options.layers, options.base_features, options.norm, options.norm_group, policy, axis
    )
