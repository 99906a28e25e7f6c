"""Photos without their middle to whole ones, as in the paper: 25 epochs, batch 4, mirroring.

    python -m p2p_jax.main --config=configs/inpainting.py --workdir=DIR --config.data.path=FOLDER

FOLDER holds photos in `train/` and `val/`, or simply photos, of any sizes and in any folders below;
they are resized to 256x256, and half of the height and width is cut out of their middle
(`data.hole`). The paper has 14,900 of Paris StreetView. As others train it:
`inpainting.py:junyanz`, `:affinelayer` and so on.

No published figure is known; the paper shows pictures only.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """Whole pictures, and statistics of the whole batch, as in all implementations."""
    c = base_in(dialect)
    c.data.source = "inpaint"
    c.data.task = "inpaint"
    c.data.load_size = c.data.crop_size = (256, 256)
    c.model.generator.norm_group = c.model.discriminator.norm_group = 0
    c.train.batch_size = 4
    c.train.epochs = 25.0
    return c
