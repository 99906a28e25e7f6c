"""Photos by day to photos by night, as in the paper: 17 epochs, batch 4.

    python -m p2p_jax.main --config=configs/night2day.py

The set (about 2 GB) is downloaded on first use: night left and day right, of 256x256 a half, 17,823
in `train` and 2,287 in `test`, which is evaluated. `--config.data.path=FILE_OR_FOLDER` takes
night2day.tar.gz, or a folder with such splits, instead. `--config.data.direction=AtoB` turns night
into day. As others train it: `night2day.py:junyanz`, `:affinelayer` and so on.

No published figure is known; the paper shows pictures only.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The facades recipe with statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/night2day"
    c.data.eval_split = "test"
    c.data.direction = "BtoA"
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 17.0
    return c
