"""The networks, by the names that a config uses.

To add one: a function with the signature of its neighbours, and a line here.
"""

from __future__ import annotations

from p2p_jax.models.patchgan import patchgan
from p2p_jax.models.unet import unet, unet_upsample

GENERATORS = {"unet": unet, "unet_upsample": unet_upsample}
DISCRIMINATORS = {"patchgan": patchgan}
