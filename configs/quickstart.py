"""Labelled boxes to shaded facades: built-in pairs, a small U-Net, minutes on a laptop CPU.

    python -m p2p_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Needs nothing: the pairs are drawn by a program. About three minutes of training on two cores of an
AMD EPYC (45 images/s; Python 3.11, jax 0.10.2) reached, on the 64 evaluation pairs,

                step 0   step 500   step 2000   best constant image
    eval/l1     0.209    0.083      0.063       0.172
    eval/psnr   12.1     17.9       19.7        13.2
    eval/ssim   0.05     0.65       0.77        0.15

As others train it, but for its sizes and dropout: `quickstart.py:junyanz` and so on.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The paper's recipe at 64x64, on pairs that are drawn by a program."""
    c = base_in(dialect)
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
