"""Labels to photos of streets, as in the paper: 200 epochs, batch 1.

    python -m p2p_jax.main --config=configs/cityscapes.py

The set is downloaded on first use: photo left and labels right, 2,975 in `train` and 500 in `val`,
of 256x256 a half. `--config.data.path=FILE_OR_FOLDER` takes cityscapes.tar.gz, or a folder with
such splits, instead. As others train it: `cityscapes.py:junyanz`, `:affinelayer` and so on.

Published, by the FCN-8s score on the 500 of `val` (a segmenter of 256x256 photos, its labels
compared at 1024x2048, 19 classes; per-pixel, per-class accuracy, class IoU):

    paper, L1 + cGAN                    0.66  0.23  0.17
    paper, L1 alone (loss.gan=0)        0.42  0.15  0.11
    the same, in the CycleGAN paper     0.71  0.25  0.18
    the photos themselves               0.80  0.26  0.21

The other way, `--config.data.direction=AtoB`, by the nearest class colour: 0.83 0.36 0.29, and 0.86
0.42 0.35 with L1 alone. Scores of other segmenters ("mIoU 42" is by DRN) do not compare.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The facades recipe on another set."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/cityscapes"
    c.data.direction = "BtoA"
    c.train.batch_size = 1
    c.train.epochs = 200.0
    return c
