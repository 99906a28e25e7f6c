"""What the runs of older versions beside this file were begun with."""

from p2p_jax.config import base


def get_config():
    """The smallest networks there are, four steps, and a save and an evaluation every other."""
    c = base()
    c.data.source = "synthetic"
    c.data.load_size = (34, 34)
    c.data.crop_size = (32, 32)
    c.data.max_examples = 6
    c.model.generator.depth = 2
    c.model.generator.base_features = 2
    c.model.generator.dropout = (1,)
    c.model.discriminator.layers = 1
    c.model.discriminator.base_features = 2
    c.train.batch_size = 2
    c.train.steps = 4
    c.train.steps_per_dispatch = 2
    c.train.ema_decay = 0.9
    c.train.log_every = 2
    c.train.save_every = 2
    c.train.eval_every = 2
    c.train.sample_every = 4
    c.eval.examples = 3
    c.eval.sample_count = 1
    return c
