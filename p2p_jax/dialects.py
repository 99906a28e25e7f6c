"""Where the well-known implementations differ: what to set for each of them.

The paper leaves details open, and those who implemented it settled them differently. A dialect is a
choice of all of them; task configs take it as an argument: `--config=configs/facades.py:junyanz`.

What is not reproduced:

- paper (phillipi/pix2pix): channels in the order blue, green, red; crops that begin at 1..30, where
  0..30 fit; a generator loss of what the discriminator said before its update, with the gradient
  taken through its weights after it (here both are after it); a discriminator's loss that the text
  halves and the code does not (here it is halved); no trained biases at all in the code.
- junyanz (pytorch-CycleGAN-and-pix2pix): images rounded to 8 bits after resizing; a rate of exactly
  zero in the last epoch, as in its versions of 2020 to 2024.
- affinelayer (pix2pix-tensorflow): the generator loss, as in paper; 1e-12 added within logarithms;
  mirroring before resizing, which gives the same pictures.
- tf_tutorial (TensorFlow's tutorial): its 150 epochs, which `configs/facades.py` has.
- All but junyanz: an eps of Adam that is added before the correction of bias, as if it were larger
  by 1 / sqrt(1 - b2**step): 32 times at the first update, soon none. Here it is added after it.
"""

from __future__ import annotations

import difflib
from typing import Any

from p2p_jax.config import Config, ConfigError, base, merge

# The batch shares statistics, as wherever a norm knows nothing of groups.
_WHOLE_BATCH = {"model.generator.norm_group": 0, "model.discriminator.norm_group": 0}

# Dotted keys relative to `base`.
DIALECTS: dict[str, dict[str, Any]] = {
    # Isola et al. 2017, sections 3.3 and 6, and train.lua and models.lua of their code.
    "paper": {},
    "junyanz": {
        **_WHOLE_BATCH,  # nn.BatchNorm2d, networks.py
        "data.resize": "bicubic",  # Image.BICUBIC, base_dataset.py
        "model.generator.dropout": (2, 3, 4),  # UnetGenerator, networks.py, at depth 8; (2, 3) at 7
        "optim.schedule": "linear",  # lr_policy, n_epochs and n_epochs_decay, train_options.py
        "optim.decay_from": 0.5,  # 100 epochs and 100 more
        "optim.by_epoch": True,  # update_learning_rate, train.py
    },
    "affinelayer": {
        **_WHOLE_BATCH,  # tf.layers.batch_normalization, pix2pix.py
        "data.resize": "area",  # ResizeMethod.AREA, load_examples
        "model.generator.bias": "all",  # gen_conv and gen_deconv
        "model.discriminator.bias": "all",  # discrim_conv
        "model.generator.innermost_norm": "yes",  # encoder_8, create_generator
        "loss.disc": 1.0,  # discrim_loss is not halved, create_model
    },
    "tf_tutorial": {
        **_WHOLE_BATCH,  # BatchNormalization of Keras
        "data.resize": "nearest",  # resize()
        "model.generator.bias": "last",  # downsample and upsample: use_bias=False
        "model.discriminator.bias": "last",  # likewise, in the first convolution too
        "model.generator.innermost_norm": "yes",  # only the first downsample has none, Generator()
        "model.generator.skip_activation": "leaky",  # skips are what downsample returns
        "model.generator.slope": 0.3,  # LeakyReLU of Keras
        "model.discriminator.slope": 0.3,
        "model.norm_eps": 1e-3,  # BatchNormalization of Keras, as are the next two
        "model.norm_momentum": 0.99,
        "model.norm_scale_std": 0.0,  # scales begin at exactly 1
        "loss.disc": 1.0,  # real_loss + generated_loss, discriminator_loss()
        "train.simultaneous": True,  # both gradients, then both updates, train_step()
        "optim.gen.eps": 1e-7,  # Adam of Keras
        "optim.disc.eps": 1e-7,
    },
    # The paper's training of another generator: seven levels of upsampling and convolution.
    "seed": {
        "model.generator.name": "unet_upsample",
        "model.generator.depth": 7,
    },
}


def base_in(dialect: str) -> Config:
    """The defaults as a dialect has them.

    Args:
      dialect: a key of `DIALECTS`.

    Raises:
      ConfigError: there is no such dialect.
    """
    if dialect not in DIALECTS:
        near = difflib.get_close_matches(dialect, DIALECTS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError([f"dialect {dialect!r} is not one of {', '.join(DIALECTS)}{hint}"])
    return merge(base(), DIALECTS[dialect])
