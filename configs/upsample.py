"""Labels to photos with seven levels of upsampling and convolution and six skips.

    python -m p2p_jax.main --config=configs/upsample.py --workdir=DIR --config.data.path=FOLDER

FOLDER holds `train/` and `val/` with side-by-side images, photo left and labels right.
"""

from p2p_jax.config import base


def get_config():
    """The facades recipe with another generator."""
    c = base()
    c.data.direction = "BtoA"
    c.model.generator.name = "unet_upsample"
    c.model.generator.depth = 7
    return c
