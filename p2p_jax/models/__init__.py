"""The networks, by the names that a config uses.

To add one: a function with the signature of its neighbours, and a line here. A generator has
`size_step`, of which height and width must be multiples, and may have `min_size`; a discriminator
has `patches`.
"""

from __future__ import annotations

from p2p_jax.models.patchgan import MultiScale, patchgan, pixel
from p2p_jax.models.resnet import resnet
from p2p_jax.models.unet import encoder_decoder, unet, unet_upsample

GENERATORS = {
    "unet": unet,
    "unet_upsample": unet_upsample,
    "encoder_decoder": encoder_decoder,
    "resnet": resnet,
}
DISCRIMINATORS = {"patchgan": patchgan, "pixel": pixel}

__all__ = ["DISCRIMINATORS", "GENERATORS", "MultiScale"]
