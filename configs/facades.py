"""Labels to photos of facades, as in the paper: U-Net 256, 70x70 PatchGAN, batch 1, 200 epochs.

    python -m p2p_jax.main --config=configs/facades.py --workdir=DIR --config.data.path=FOLDER

FOLDER holds `train/` and `val/` with side-by-side images, photo left and labels right.
"""

from p2p_jax.config import base


def get_config():
    """The defaults are this recipe; only the data differs."""
    c = base()
    c.data.direction = "BtoA"
    return c
