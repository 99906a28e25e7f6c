"""Edges to photos of handbags, as in the paper: 15 epochs, batch 4, no jitter, no mirroring.

    python -m p2p_jax.main --config=configs/edges2handbags.py

The set (about 8 GB) is downloaded on first use: edges left and photo right, 138,567 in `train` and
200 in `val`, of 256x256 a half. `--config.data.path=FILE_OR_FOLDER` takes edges2handbags.tar.gz, or
a folder with such splits, instead. As others train it: `edges2handbags.py:junyanz`, `:affinelayer`
and so on.

No published figure is known; the paper shows pictures only.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """Whole pictures, and statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/edges2handbags"
    c.data.direction = "AtoB"
    c.data.load_size = c.data.crop_size = (256, 256)
    c.data.flip = False
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 15.0
    return c
