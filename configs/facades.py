"""Labels to photos of facades, as in the paper: U-Net 256, 70x70 PatchGAN, batch 1, 200 epochs.

    python -m p2p_jax.main --config=configs/facades.py

The CMP Facade Database, as the paper's authors distribute it, is downloaded on first use: photo
left and labels right, 400 in `train`, 100 in `val` and 106 in `test`, of 256x256 a half.
`--config.data.path=FILE_OR_FOLDER` takes facades.tar.gz, or a folder with such splits, instead. As
others train it: `facades.py:junyanz`, `:affinelayer`, `:tf_tutorial`, `:seed`.

Published: FID 125.0 (MMagic's training, 80,000 steps of batch 1) and 119.1 (junyanz's weights),
both by MMagic on the 106 of `test`, with dropout and each image's own statistics. So few images
make FID large: compare equal numbers only.

What to expect early on (`--config.train.steps=800`, 2 of 200 epochs), on 50 pairs of `val`:

                step 0   step 400   step 800   best constant image
    eval/l1     0.223    0.190      0.184      0.177
    eval/psnr   11.4     12.5       12.9       13.3
    eval/ssim   0.056    0.215      0.228      0.230

By then windows, doors and balconies stand where the labels say, still grey and with a pattern of
the patches; the one image nearest to all photos is a blur, which these figures reward. A step takes
1.25 s on two cores of an AMD EPYC (float32, Python 3.11, jax 0.10.2), 1.05 s with
`--config.train.steps_per_dispatch=8`.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The defaults are this recipe; only the data differs."""
    c = base_in(dialect)
    c.data.source = "tfds"
    c.data.name = "pix2pix/facades"
    c.data.direction = "BtoA"
    c.train.batch_size = 1
    c.train.epochs = 150.0 if dialect == "tf_tutorial" else 200.0  # as it has it
    return c
