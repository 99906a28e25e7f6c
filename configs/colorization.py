"""Grey photos to colour, as in the paper: 6 epochs, batch 4, mirroring, no jitter.

    python -m p2p_jax.main --config=configs/colorization.py --workdir=DIR --config.data.path=FOLDER

The networks see lightness and make the two colour channels of CIE Lab. FOLDER holds photos in
`train/` and `val/`, or simply photos, of any sizes and in any folders below; they are resized to
256x256. The paper has 1.2 million, those of ImageNet. `--config.data.task=grey` makes RGB of grey
instead. As others train it: `colorization.py:junyanz`, `:affinelayer` and so on.

Published, the share that people took for real within a second each: 22.5 +- 1.6 % for the paper's,
16.3 +- 2.4 % for the regression and 27.8 +- 2.7 % for the classification of Zhang et al. 2016.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """Whole pictures, and statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.source = "colorization"
    c.data.task = "colorize"
    c.data.load_size = c.data.crop_size = (256, 256)
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 6.0
    c.train.eval_every = 20000
    c.eval.examples = 1000  # of what are 50,000 in ImageNet
    return c
