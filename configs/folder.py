"""Your own pairs, trained as the paper's facades: U-Net 256, 70x70 PatchGAN, batch 1, 200 epochs.

    python -m p2p_jax.main --config=configs/folder.py --config.data.path=PATH

PATH holds side-by-side images, A left and B right, in `train/` and perhaps `val/` and `test/`;
`--config.data.direction=BtoA` translates the right half to the left one. Pairs that come in another
way have another `--config.data.source`; see the README. As others train it: `folder.py:junyanz`,
`:affinelayer` and so on.

No figure can be published of your pairs; evaluation shows the best constant image's beside its own.
"""

from p2p_jax.dialects import base_in


def get_config(dialect="paper"):
    """The defaults are this recipe."""
    c = base_in(dialect)
    c.data.source = "folder"
    c.train.batch_size = 1
    c.train.epochs = 150.0 if dialect == "tf_tutorial" else 200.0  # as it has it
    return c
