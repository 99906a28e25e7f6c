r"""Edges to photos of handbags, as in the paper: 15 epochs, batch 4, no jitter, no mirroring.

    python -m p2p_jax.main --config=configs/edges2handbags.py --workdir=DIR \
        --config.data.path=FOLDER

FOLDER holds side-by-side images, edges left and photo right: 138,567 in `train/` and 200 in `val/`,
of 256x256 a half. As others train it: `edges2handbags.py:junyanz`, `:affinelayer` and so on.

No published figure is known; the paper shows pictures only.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """Whole pictures, and statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.direction = "AtoB"
    c.data.load_size = c.data.crop_size = (256, 256)
    c.data.flip = False
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 15.0
    return c
