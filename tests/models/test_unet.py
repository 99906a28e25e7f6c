"""The U-Nets: parameters, names, refusals, and their forward pass against numpy."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CPU32, PLAIN64, generator, oracle_conv, paths, quick_jit, rel, scrambled

from p2p_jax.models.conv import Policy
from p2p_jax.state import count


def shapes(net, height=16, width=16, channels=3):
    """Shapes of the output and the variables for one image."""
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    return jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x), image)


# --- parameters ----------------------------------------------------------------------------------


def test_unet_has_the_published_number_of_parameters():
    out, v = shapes(generator("unet", Policy(), depth=8, base_features=64), 256, 256)
    assert out.shape == (1, 256, 256, 3)
    assert count(v["params"]) == 54_413_955


def test_unet_upsample_has_the_number_its_blocks_add_up_to():
    """Encoder 64 128 256 512 512 512 512; decoder mirrored, six of its inputs doubled by skips."""
    down = [3, 64, 128, 256, 512, 512, 512, 512]
    encoder = sum(4 * 4 * a * b for a, b in itertools.pairwise(down))
    inputs = [512, 512 + 512, 512 + 512, 512 + 512, 256 + 256, 128 + 128, 64 + 64]
    outputs = [512, 512, 512, 256, 128, 64, 3]
    decoder = sum(3 * 3 * a * b for a, b in zip(inputs, outputs, strict=True))
    norms = 2 * (sum(down[2:]) + sum(outputs[:-1]))  # neither on the first nor on the last block
    biases = 64 + 3
    assert encoder + decoder + norms + biases == 30_243_907
    out, v = shapes(generator("unet_upsample", Policy(), depth=7, base_features=64), 256, 256)
    assert out.shape == (1, 256, 256, 3)
    assert count(v["params"]) == 30_243_907


def test_names_and_shapes_are_the_checkpoint_format():
    v = shapes(generator("unet", Policy(), depth=3))[1]
    assert {k: x.shape for k, x in paths(v).items()} == {
        "params/enc1/conv/kernel": (4, 4, 3, 4),
        "params/enc2/conv/kernel": (4, 4, 4, 8),
        "params/enc2/norm/scale": (8,),
        "params/enc2/norm/bias": (8,),
        "params/enc3/conv/kernel": (4, 4, 8, 16),
        "params/dec1/conv/kernel": (4, 4, 16, 8),
        "params/dec1/norm/scale": (8,),
        "params/dec1/norm/bias": (8,),
        "params/dec2/conv/kernel": (4, 4, 16, 4),
        "params/dec2/norm/scale": (4,),
        "params/dec2/norm/bias": (4,),
        "params/dec3/conv/kernel": (4, 4, 8, 3),
        "params/dec3/conv/bias": (3,),
        **{
            f"stats/{block}/norm/{name}": (size,)
            for block, size in (("enc2", 8), ("dec1", 8), ("dec2", 4))
            for name in ("mean", "var")
        },
    }


def test_names_and_shapes_of_unet_upsample():
    v = shapes(generator("unet_upsample", Policy(), depth=3))[1]
    got = {k: x.shape for k, x in paths(v["params"]).items()}
    norms = {"enc2": 8, "enc3": 16, "dec1": 8, "dec2": 4}
    assert got == {
        "enc1/conv/kernel": (4, 4, 3, 4),
        "enc1/conv/bias": (4,),
        "enc2/conv/kernel": (4, 4, 4, 8),
        "enc3/conv/kernel": (4, 4, 8, 16),
        "dec1/conv/kernel": (3, 3, 16, 8),
        "dec2/conv/kernel": (3, 3, 16, 4),
        "dec3/conv/kernel": (3, 3, 8, 3),
        "dec3/conv/bias": (3,),
        **{f"{b}/norm/{n}": (size,) for b, size in norms.items() for n in ("scale", "bias")},
    }


def test_widths_may_be_listed():
    v = shapes(generator("unet", Policy(), depth=3, features=(5, 7, 6)))[1]
    kernels = {k.split("/")[0]: x.shape[2:] for k, x in paths(v["params"]).items() if "kernel" in k}
    assert kernels == {
        "enc1": (3, 5), "enc2": (5, 7), "enc3": (7, 6),
        "dec1": (6, 7), "dec2": (14, 5), "dec3": (10, 3),
    }  # fmt: skip


def test_the_form_of_convolutions_changes_no_parameter():
    for name in ("unet", "unet_upsample"):
        plain, polyphase = (shapes(generator(name, p, depth=3))[1] for p in (Policy(), CPU32))
        assert jax.tree.map(lambda x: x.shape, plain) == jax.tree.map(lambda x: x.shape, polyphase)


@pytest.mark.parametrize("name", ["unet", "unet_upsample"])
def test_initial_values(name):
    net = generator(name, Policy(), depth=3, base_features=32)
    x = jnp.zeros((1, 16, 16, 3))
    drawn = paths(quick_jit(lambda: net.init(jax.random.key(0), x))()["params"])
    for path, value in drawn.items():
        value = np.asarray(value, np.float64)
        if path.endswith("conv/bias") or path.endswith("norm/bias"):
            assert (value == 0).all()
            continue
        mean = 1 if path.endswith("scale") else 0
        # Five standard errors of the mean, and of the standard deviation.
        assert abs(value.mean() - mean) < 5 * 0.02 / np.sqrt(value.size), path
        assert abs(value.std() / 0.02 - 1) < 5 / np.sqrt(2 * value.size), path
    kernels = [np.ravel(v)[:20] for k, v in drawn.items() if "kernel" in k]
    assert len({tuple(k) for k in kernels}) == len(kernels)


def test_initial_values_are_the_same_with_64_bits():
    def draw(policy):
        net = generator("unet", policy)
        return quick_jit(lambda: net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))()

    single = jax.tree.map(np.asarray, draw(Policy()))
    with jax.enable_x64(True):
        double = jax.tree.map(np.asarray, draw(PLAIN64))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        assert a.dtype == np.float32 and b.dtype == np.float64 and (a == b).all()


# --- forward pass --------------------------------------------------------------------------------


def forward(name, v, x, *, depth, masks=(), running=False, skips=True, upsample=None):
    """Isola et al. 2017, 6.1.1, by loops in numpy; `masks` holds the factor of each dropped block.

    The U-Net here begins each block with its activation, as the paper's code does: LeakyReLU before
    an encoder's convolution, ReLU over all that enters a decoder's. The upsampling variant ends
    blocks with them.
    """
    torch_like = name == "unet"
    upsample = upsample or ("up" if torch_like else "nearest")

    def block(tag, x, kind):
        params = v["params"][tag]
        x = oracle_conv(kind, x, params["conv"]["kernel"]) + params["conv"].get("bias", 0.0)
        if "norm" in params:
            mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
            if running:
                mean, var = (v["stats"][tag]["norm"][s] for s in ("mean", "var"))
            x = (x - mean) / np.sqrt(var + 1e-5)
            x = x * params["norm"]["scale"] + params["norm"]["bias"]
        return x

    def relu(x):
        return np.maximum(x, 0)

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    levels = []
    for k in range(1, depth + 1):
        x = block(f"enc{k}", leaky(x) if torch_like and k > 1 else x, "down")
        if not torch_like:
            x = leaky(x)
        levels.append(x)
    for k in range(1, depth + 1):
        if k > 1 and skips:
            x = np.concatenate([x, levels[depth - k]], -1)
        x = block(f"dec{k}", relu(x) if torch_like else x, upsample)
        if k in masks:
            x = x * masks[k]
        if k < depth and not torch_like:
            x = relu(x)
    return np.tanh(x)


@functools.partial(quick_jit, static_argnums=(1, 2))
def bits(key, layer, shape):
    """The random bits of one example's dropout."""
    return jax.random.bits(jax.random.fold_in(key, layer), shape, jnp.uint32)


CASES = [
    dict(),
    dict(skips=False),
    dict(norm="none"),
    dict(dropout=(2,)),
    dict(dropout=()),
    dict(running=True, dropout=(1, 2)),
    dict(bias="last"),
    dict(bias="unnormed", upsample="other"),
]


@pytest.mark.parametrize("name", ["unet", "unet_upsample"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_pass_against_numpy(name, case):
    case = dict(case)
    running, skips = case.pop("running", False), case.pop("skips", True)
    if case.get("upsample"):
        case["upsample"] = "nearest" if name == "unet" else "deconv"
    with jax.enable_x64(True):
        plain = "encoder_decoder" if name == "unet" and not skips else name
        net = generator(plain, PLAIN64, **(dict(depth=3, base_features=2) | case))
        if net.skips != skips:  # an ablation of the other U-Net that has no name
            net = net.clone(skips=skips)
        v = scrambled(shapes(net)[1])
        x = np.random.default_rng(1).uniform(-1, 1, (2, 16, 24, 3))
        keys = jax.random.split(jax.random.key(7), 2)
        got = quick_jit(lambda v, x, k: net.apply(v, x, k, running))(v, x, keys)
        masks = {}
        for k in net.dropped:  # dec1 is 4x6 with 4 features, dec2 8x12 with 2
            shape = (2 * 2**k, 3 * 2**k, net.widths[2 - k])
            drawn = [np.asarray(bits(key, k, shape)) for key in keys]
            masks[k] = 2.0 * (np.stack(drawn) >= 2**31)
    upsample = {"deconv": "up", "nearest": "nearest"}.get(case.get("upsample"))
    wanted = forward(
        name, v, x, depth=3, masks=masks, running=running, skips=skips, upsample=upsample
    )
    assert got.shape == x.shape and np.median(np.abs(wanted)) < 0.95  # not just signs
    assert rel(got, wanted) < 1e-12


def test_dropout_needs_keys():
    net = generator("unet", Policy(), depth=3, dropout=(1, 2))
    v = scrambled(shapes(net)[1])
    x = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(7), 2)
    run = quick_jit(lambda k: net.apply(v, x, k))
    none, some = run(None), run(keys)
    assert (none != some).any()
    assert (some == run(keys)).all()
    assert (run(keys[::-1]) != some).any()


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (32, 8)])
def test_sizes_that_the_depth_allows(size):
    out, _ = shapes(generator("unet", Policy(), 2, depth=3), *size)
    assert out.shape == (1, *size, 2)


@pytest.mark.parametrize("size", [(24, 20), (12, 16), (4, 4)])
def test_sizes_that_it_does_not_are_named(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} is not a multiple of 8"):
        shapes(generator("unet", Policy(), depth=3), *size)


@pytest.mark.parametrize("name", ["unet", "unet_upsample", "encoder_decoder", "resnet"])
def test_output_may_be_probabilities_of_the_same_parameters(name):
    """Softmax of what would else go through tanh."""
    with jax.enable_x64(True):
        nets = {out: generator(name, PLAIN64, 5, output=out) for out in ("tanh", "softmax")}
        made = [shapes(net)[1] for net in nets.values()]
        assert paths(made[0]).keys() == paths(made[1]).keys()
        v = scrambled(made[0])
        last = v["params"][max(name for name in v["params"] if name.startswith("dec"))]["conv"]
        last["kernel"] *= 0.1  # so that tanh can be undone
        x = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3))
        got = {out: np.asarray(quick_jit(net.apply)(v, x)) for out, net in nets.items()}
    assert np.abs(got["tanh"]).max() < 0.999999
    powers = np.exp(np.arctanh(got["tanh"]))
    assert rel(got["softmax"], powers / powers.sum(-1, keepdims=True)) < 1e-8
    low = generator(name, Policy(dtype="bfloat16", precision="default"), 5, output="softmax")
    assert shapes(low)[0].dtype == jnp.float32


def test_output_is_at_least_float32_and_in_range():
    net = generator("unet", Policy(dtype="bfloat16", precision="default"))
    out, v = shapes(net)
    assert out.dtype == jnp.float32
    v = jax.tree.map(lambda x: 9 * x, scrambled(v))
    y = quick_jit(net.apply)(v, np.ones((1, 16, 16, 3), np.float32))
    assert np.abs(y).max() <= 1 and np.abs(y).max() > 0.9
