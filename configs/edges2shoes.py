"""Edges to photos of shoes, as in the paper: 15 epochs, batch 4, neither jitter nor mirroring.

    python -m p2p_jax.main --config=configs/edges2shoes.py

The set (about 2 GB) is downloaded on first use: edges left and photo right, 49,825 in `train` and
200 in `val`, of 256x256 a half. `--config.data.path=FILE_OR_FOLDER` takes edges2shoes.tar.gz, or a
folder with such splits, instead. As others train it: `edges2shoes.py:junyanz`, `:affinelayer` and
so on.

Published: FID 84.4 (MMagic's training, 190,000 steps of batch 4) and 75.8 (junyanz's weights), both
by MMagic on the 200 of `val`, with dropout and each image's own statistics. The 24.1 of GAN
Compression is of 2,048 images, another split and a larger network, and does not compare.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """Whole pictures, and statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/edges2shoes"
    c.data.direction = "AtoB"
    c.data.load_size = c.data.crop_size = (256, 256)
    c.data.flip = False
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 15.0
    return c
