"""Labelled boxes to shaded facades: built-in pairs, a small U-Net, minutes on a laptop CPU.

python -m p2p_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from p2p_jax.config import base


def get_config():
    """The paper's recipe at 64x64, on pairs that are drawn by a program."""
    c = base()
    c.data.source = "synthetic"
    c.data.load_size = c.data.crop_size = (64, 64)
    c.data.cache = "host"
    c.model.generator.depth = 5
    c.model.generator.base_features = 32
    c.model.generator.dropout = (1,)
    c.model.discriminator.layers = 2
    c.model.discriminator.base_features = 32
    c.train.batch_size = 4
    c.train.steps = 2000
    c.train.steps_per_dispatch = 10
    c.train.eval_every = 500
    c.train.sample_every = 500
    c.train.save_every = 500
    c.eval.batch_size = 8
    return c
