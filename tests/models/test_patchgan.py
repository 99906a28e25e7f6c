"""The PatchGAN: sizes, parameters, and its forward pass against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PLAIN64, discriminator, oracle_conv, paths, quick_jit, rel, scrambled

from p2p_jax.models.conv import Policy
from p2p_jax.state import count

# layers: receptive field, patches at 256, parameters at 64 features with 3 + 3 channels
PUBLISHED = {
    1: (16, 126, 139_585),
    2: (34, 62, 666_433),
    3: (70, 30, 2_768_705),
    4: (142, 14, 6_964_033),
    5: (286, 6, 11_159_361),
}


def shapes(net, height, width):
    """Shapes of logits and variables of one image."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    ((*_, logits),), variables = jax.eval_shape(
        lambda *a: net.init_with_output(jax.random.key(0), *a), image, image
    )
    return logits, variables


def logits_of(net, *args):
    """The logits alone: the last of what the layers of its one scale make."""
    ((*_, logits),) = net.apply(*args)
    return logits


@pytest.mark.parametrize("layers", PUBLISHED)
def test_published_sizes(layers):
    field, patches, parameters = PUBLISHED[layers]
    net = discriminator(Policy(), layers=layers, base_features=64)
    logits, variables = shapes(net, 256, 256)
    assert net.patches(256, 256) == ((patches, patches, field),)
    assert logits.shape == (1, patches, patches, 1)
    assert count(variables["params"]) == parameters


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("size", [(24, 64), (37, 51), (46, 31), (25, 55)])
def test_patches_of_any_image(layers, size):
    net = discriminator(Policy(), layers=layers)
    logits, _ = shapes(net, *size)
    (patches,) = net.patches(*size)
    assert logits.shape == (1, patches.height, patches.width, 1)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_receptive_field_is_what_one_logit_sees(layers):
    net = discriminator(Policy(), layers=layers, base_features=1, norm="none")
    field = net.patches(256, 256)[0].field
    size = field + 2 * 2**layers
    image = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    variables = scrambled(shapes(net, size, size)[1])
    middle = net.patches(size, size)[0].height // 2

    def logit(image):
        return logits_of(net, variables, image, image)[0, middle, middle, 0]

    seen = np.asarray(jnp.abs(quick_jit(jax.grad(logit))(image)).sum((0, 3))) > 0
    for axis in (0, 1):
        where = np.flatnonzero(seen.any(axis))
        assert where[-1] - where[0] + 1 == field


def test_names_and_shapes_are_the_checkpoint_format():
    net = discriminator(Policy(), layers=2)
    _, variables = shapes(net, 32, 32)
    assert {k: v.shape for k, v in paths(variables).items()} == {
        "params/conv1/conv/kernel": (4, 4, 6, 4),
        "params/conv1/conv/bias": (4,),
        "params/conv2/conv/kernel": (4, 4, 4, 8),
        "params/conv2/norm/scale": (8,),
        "params/conv2/norm/bias": (8,),
        "params/conv3/conv/kernel": (4, 4, 8, 16),
        "params/conv3/norm/scale": (16,),
        "params/conv3/norm/bias": (16,),
        "params/conv4/conv/kernel": (4, 4, 16, 1),
        "params/conv4/conv/bias": (1,),
        "stats/conv2/norm/mean": (8,),
        "stats/conv2/norm/var": (8,),
        "stats/conv3/norm/mean": (16,),
        "stats/conv3/norm/var": (16,),
    }


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_forward_pass_against_numpy(norm, running):
    """Isola et al. 2017, 6.1.2: LeakyReLU 0.2, no norm on the first and last, source first."""
    with jax.enable_x64(True):
        net = discriminator(PLAIN64, layers=2, norm=norm)
        v = scrambled(shapes(net, 24, 16)[1])
        source, image = np.random.default_rng(1).uniform(-1, 1, (2, 2, 24, 16, 3))
        got = quick_jit(lambda v, s, t: logits_of(net, v, s, t, running))(v, source, image)

    x = np.concatenate([source, image], -1)
    for k in range(1, 5):
        params = v["params"][f"conv{k}"]
        x = oracle_conv("down" if k <= 2 else "conv", x, params["conv"]["kernel"])
        if k in (1, 4):
            x = x + params["conv"]["bias"]
        elif norm == "batch":
            mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
            if running:
                mean, var = (v["stats"][f"conv{k}"]["norm"][s] for s in ("mean", "var"))
            x = (x - mean) / np.sqrt(var + 1e-5)
            x = x * params["norm"]["scale"] + params["norm"]["bias"]
        if k < 4:
            x = np.where(x > 0, x, 0.2 * x)
    assert rel(got, x) < 1e-12


def test_logits_are_at_least_float32():
    net = discriminator(Policy(dtype="bfloat16", precision="default"))
    assert shapes(net, 16, 16)[0].dtype == jnp.float32
