"""Aerial photos to maps, as in the paper, or the other way: 200 epochs, batch 1.

    python -m p2p_jax.main --config=configs/maps.py

`--config.data.direction=BtoA` makes photos of maps. The set is downloaded on first use: photo left
and map right, 1,096 in `train` and 1,098 in `val`, of 600x600 a half.
`--config.data.path=FILE_OR_FOLDER` takes maps.tar.gz, or a folder with such splits, instead. As
others train it: `maps.py:junyanz`, `:affinelayer` and so on.

Published:

                                                              to maps      to photos
    paper: taken for real by people, L1 + cGAN                6.1 +- 1.3   18.9 +- 2.5 %
    paper: L1 alone (loss.gan=0)                              2.8 +- 1.0   0.8 +- 0.3 %
    FID, MMagic's training, 220,000 steps of batch 1          122.6        88.5
    FID, junyanz's weights, by MMagic                         149.7        102.1

People saw each picture for a second; the paper's photos were made at 512x512. FID is of the 1,098
of `val`, with dropout and each image's own statistics; Inception weights differ, and FID with them.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The facades recipe on another set."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/maps"
    c.data.direction = "AtoB"
    c.train.batch_size = 1
    c.train.epochs = 200.0
    return c
