"""The paper's networks and recipe, made without a config, and what trains them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from p2p_jax import mesh as meshes
from p2p_jax.augment import Augment
from p2p_jax.losses import ADVERSARIAL, RECONSTRUCTION
from p2p_jax.models import DISCRIMINATORS, GENERATORS
from p2p_jax.models.conv import policy_for
from p2p_jax.models.layers import REMAT, Style
from p2p_jax.models.options import DiscriminatorOptions, GeneratorOptions
from p2p_jax.objectives import HYPER
from p2p_jax.optim import adam
from p2p_jax.state import Gan, TrainState, init, specs
from p2p_jax.tasks import TASKS, TaskOptions

# The defaults of `config.base`; a name that is missing is 0.
RECIPE = {
    "gen_lr": 2e-4,
    "disc_lr": 2e-4,
    "disc": 0.5,
    "gan": 1.0,
    "gradient_penalty": 10.0,
    "l1": 100.0,
}


def standard(
    precision: str = "float32",
    form: str = "auto",
    norm_group: int = 1,
    dropout: bool = True,
    tiny: bool = False,
    platform: str = "",
) -> Gan:
    """The paper's U-Net of 256x256 and the PatchGAN of 70x70, as `config.base` has them.

    Args:
      precision: `float32`, `tf32`, `bfloat16` or `float64`.
      form: of the convolutions, one of `models.conv.FORMS`, or `auto`.
      norm_group: images that share statistics.
      dropout: of the decoder's three innermost blocks.
      tiny: a pair of few features for images of 16x16 instead, to try things with.
      platform: to compute on; by default that of the devices at hand.
    """
    policy = policy_for(platform or jax.devices()[0].platform, precision, form)
    style = Style(policy=policy, axis=meshes.AXIS, norm_group=norm_group)
    size, margin = (16, 4) if tiny else (256, 30)
    generator, discriminator = options(dropout, tiny)
    task = TASKS["translate"](TaskOptions())
    return Gan(
        generator=GENERATORS["unet"](generator, style.but(output=task.output), task.channels[1]),
        discriminator=DISCRIMINATORS["patchgan"](discriminator, style),
        gen_tx=adam(0.5, 0.999, 1e-8),
        disc_tx=adam(0.5, 0.999, 1e-8),
        adversarial=ADVERSARIAL["vanilla"],
        reconstruction=(("l1", RECONSTRUCTION["l1"]),),
        feature_matching=False,
        simultaneous=False,
        augment=Augment(
            load_size=(size + margin, size + margin),
            crop_size=(size, size),
            flip=True,
            methods=task.methods("bilinear"),
        ),
        task=task,
        ema_decay=0.0,
        dtype=policy.param_dtype,
        axis=meshes.AXIS,
    )


def options(
    dropout: bool = True, tiny: bool = False
) -> tuple[GeneratorOptions, DiscriminatorOptions]:
    """Those of both networks; arguments as of `standard`."""
    depth, features, layers, dropped = (2, 4, 1, (1,)) if tiny else (8, 64, 3, (1, 2, 3))
    generator = GeneratorOptions(
        name="unet",
        depth=depth,
        base_features=features,
        features=(),
        blocks=0,
        upsample="auto",
        innermost_norm="auto",
        skip_activation="auto",
        noise=0,
        dropout=dropped if dropout else (),
    )
    return generator, DiscriminatorOptions(
        name="patchgan", layers=layers, base_features=features, conditional=True
    )


def hyper(rows: int) -> np.ndarray:
    """Rates and weights of the recipe, `[rows, len(HYPER)]`."""
    return np.tile(np.array([RECIPE.get(name, 0.0) for name in HYPER], np.float32), (rows, 1))


def abstract(gan: Gan, mesh: Mesh) -> TrainState:
    """Shapes and types of a state, laid out over the mesh; nothing is computed."""
    shapes: Any = jax.eval_shape(lambda: init(gan, 0))
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        shapes,
        specs(gan, mesh.shape[gan.axis]),
    )


def draw(gan: Gan, mesh: Mesh) -> TrainState:
    """A fresh state on the devices of a mesh."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    drawing = jax.jit(
        lambda: init(gan, 0),
        out_shardings=meshes.replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 1} if on_cpu else None,
    )
    return drawing()


def plain(gan: Gan) -> Gan:
    """The same with every convolution as it is defined, once: what its work is counted from."""

    def but(net: Any) -> Any:
        policy = dataclasses.replace(net.style.policy, form="plain", grad="xla")
        return net.clone(style=net.style.but(policy=policy))

    judge: Any = gan.discriminator
    judges = getattr(judge, "judges", None)
    return dataclasses.replace(
        gan,
        accumulate=1,
        remat=REMAT["none"],
        generator=but(gan.generator),
        discriminator=judge.clone(judges=tuple(map(but, judges))) if judges else but(judge),
    )
