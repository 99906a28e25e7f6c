"""Images that several devices share train as on one, and are never put together again."""

from __future__ import annotations

import functools
import math
import re

import jax
import numpy as np
import pytest
from helpers import PLAIN64, QUICK, discriminator, fresh, hyper, leaves, rel, tiny_gan
from jax.sharding import PartitionSpec as P
from test_devices import WIDTHS

from p2p_jax.augment import Augment
from p2p_jax.config import base, merge
from p2p_jax.mesh import SPATIAL, every_axis, make_mesh, put_replicated, put_split
from p2p_jax.models import MultiScale
from p2p_jax.models.bands import LEAST, banded
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import REMAT
from p2p_jax.networks import abstract_state, make_gan
from p2p_jax.step import make_sample, make_train_step
from p2p_jax.validate import validate

ROWS, BATCH = 2, 2
PLAIN32 = Policy()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def gan(policy=PLAIN64, size=(64, 32), gen=None, disc=None, **changes):
    """Three levels, of which 4 devices share two, and a discriminator whose maps have odd sizes."""
    shared = {"spatial": SPATIAL}
    return tiny_gan(
        policy,
        gen=shared | {"depth": 3} | (gen or {}),
        disc=shared | {"layers": 2} | (disc or {}),
        spatial=SPATIAL,
        augment=Augment((size[0] + 4, size[1] + 4), size, True),
        **changes,
    )


def pictures(rows, batch, size):
    """Noise over large shapes: bands differ."""
    rng = np.random.default_rng(0)
    shape = rows, batch, *size, 3
    slope = np.linspace(0, 155, size[0]).reshape(-1, 1, 1)
    return tuple((rng.integers(0, 100, shape) + slope).astype(np.uint8) for _ in range(2))


class Run:
    """A compiled step and what it makes of a fresh state."""

    def __init__(self, gan, devices=1, spatial=1):
        mesh, table = make_mesh(devices, spatial), hyper(ROWS, gan, ssim=1.0, feature_matching=10.0)
        like = abstract_state(gan, mesh)
        batch = pictures(ROWS, BATCH, (40, 24))
        program = make_train_step(gan, mesh, ROWS).lower(like, batch, table, np.int32(1))
        compiled = program.compile(QUICK)
        self.text, self.gan = compiled.as_text(), gan

        def put(x, like):
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.wrap_key_data(np.array(jax.random.key_data(x)))
                return jax.device_put(x, like.sharding)
            return jax.device_put(np.array(x), like.sharding)

        rest = put_replicated(mesh, (table, np.int32(ROWS)))
        state = jax.tree.map(put, fresh(gan), like)
        state, losses = compiled(state, put_split(mesh, batch, 1), *rest)
        self.state, self.losses = leaves(state), np.asarray(losses)


@functools.cache
def run(devices=1, spatial=1, policy=PLAIN64):
    return Run(gan(policy), devices, spatial)


def assert_equal_training(got, wanted, bound):
    assert rel(got.losses, wanted.losses) < bound
    assert np.isfinite(wanted.losses).all()
    assert got.state.keys() == wanted.state.keys()
    for name, value in wanted.state.items():
        # Of the averages, which hold gradients, and of parameters and statistics alike.
        if value.dtype.kind == "f" and value.any():
            assert rel(got.state[name], value) < bound, name


def test_training_is_that_of_one_device(x64):
    """Losses, gradients, statistics and parameters of two updates, with jitter and dropout."""
    assert_equal_training(run(4, 4), run(), 1e-9)
    assert len({row.tobytes() for row in run().losses}) == ROWS


@pytest.mark.slow
def test_also_in_float32(x64):
    wanted, got = run(), run(4, 4, PLAIN32)
    assert rel(got.losses, wanted.losses) < 1e-4
    for name, value in wanted.state.items():
        if ".mu[" in name:
            assert rel(got.state[name], value) < 1e-4, name


VARIANTS = {
    # Rows of 40, 20, 10 and 5: of the first two alone 4 devices have as many each.
    "uneven, upsampling, several losses and scales": dict(
        size=(80, 32),
        gen={"name": "unet_upsample", "depth": 4, "norm_group": 0},
        discriminator=MultiScale((discriminator(PLAIN64, spatial=SPATIAL),) * 2),
        feature_matching=True,
    ),
    "in parts, less kept, shared averages": dict(
        gen={"norm": "group", "noise": 1, "upsample": "pixel_shuffle"},
        disc={"spectral": True, "norm": "none", "bias": "all"},
        remat=REMAT["activations"],
        skip_nonfinite=True,
        shard_optimizer=True,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_training_in_other_ways_is_that_of_one_device(x64, name):
    made = gan(**VARIANTS[name])
    devices = (4, 2) if made.shard_optimizer else (4, 4)
    got = Run(made, *devices)
    assert_equal_training(got, Run(made), 1e-9)
    assert_nothing_whole(got, devices[1])


# --- what is sent --------------------------------------------------------------------------------

GATHERS = ("all-gather", "all-to-all", "ragged-all-to-all", "collective-broadcast")


def gathered(text):
    """Shape and bytes of each array that a compiled program puts together or deals out anew."""
    found = re.findall(rf"= (.+?) ({'|'.join(GATHERS)})(?:-start)?\(", text)
    return [
        (tuple(int(d) for d in dims.split(",") if d), WIDTHS[kind])
        for shape, _ in found
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]


def assert_nothing_whole(run, spatial):
    """Gathered are parameters, or what has too few rows to be shared: four a device at most."""
    kernels = {x.shape for name, x in run.state.items() if "kernel" in name}
    kernels |= {(*shape[:2], shape[3], shape[2]) for shape in kernels}
    for shape, _ in gathered(run.text):
        few = len(shape) == 4 and shape[1] < 2 * LEAST * spatial
        assert shape in kernels or few, shape
    assert len(re.findall(r" collective-permute(?:-start)?\(", run.text)) > 10


def test_no_image_or_activation_is_put_together(x64):
    assert_nothing_whole(run(4, 4), 4)
    height, width = run().gan.augment.crop_size
    image = height * width * 3
    assert all(math.prod(shape) < image for shape, _ in gathered(run(4, 4).text))


def test_one_that_is_would_be_noticed(x64):
    mesh = make_mesh(4, 4)

    def whole(x):
        return banded(jax.lax.with_sharding_constraint(banded(x * 2, SPATIAL), P()), SPATIAL)

    split = jax.shard_map(
        whole, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"},
        check_vma=False,
    )  # fmt: skip
    text = jax.jit(split).lower(jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)).compile(QUICK)
    assert gathered(text.as_text()) == [((1, 64, 32, 3), 4)]


def test_each_device_has_its_band():
    mesh = make_mesh(4, 2)
    for rows, shard in ((16, 8), (4, 2), (2, 2)):
        split = jax.shard_map(
            lambda x: banded(x + 1, SPATIAL), mesh=mesh, in_specs=P("data"), out_specs=P("data"),
            axis_names={"data"},
        )  # fmt: skip
        x = np.zeros((2, rows, 4, 3), np.float32)
        out = jax.jit(split)(x)
        assert {s.data.shape for s in out.addressable_shards} == {(1, shard, 4, 3)}
    assert banded(x, SPATIAL) is x and banded(x, None) is x  # no mesh, no axis


# --- sampling, configs ---------------------------------------------------------------------------


def test_evaluation_gives_each_device_its_own_images(x64):
    made = gan()
    state, (source, target) = fresh(made), (x[0] for x in pictures(1, 4, (64, 32)))
    ids, results = np.arange(4, dtype=np.uint32), []
    for mesh in (make_mesh(1), make_mesh(4, 2)):
        fn = make_sample(made, mesh, False, True)
        given = put_split(mesh, (source, target, ids), 0, every_axis(mesh))
        variables = jax.device_put(
            (state.gen.params, state.gen.stats), jax.sharding.NamedSharding(mesh, P())
        )
        key = jax.device_put(state.key, jax.sharding.NamedSharding(mesh, P()))
        compiled = fn.lower(*variables, key, *given).compile(QUICK)
        results.append(compiled(*variables, key, *given))
    one, many = results
    assert (np.asarray(one.fake) == np.asarray(many.fake)).all()
    assert {s.data.shape for s in many.fake.addressable_shards} == {(1, 64, 32, 3)}
    assert "collective-permute" not in compiled.as_text() and not gathered(compiled.as_text())


def config(**changes):
    keys = {"mesh.spatial": 2, "train.batch_size": 2, "data.source": "synthetic"}
    return merge(base(), keys | {k.replace("__", "."): v for k, v in changes.items()})


def problems(**changes):
    return [p for p in validate(config(**changes)) if not p.startswith("data.")]


def test_a_config_with_shared_images_is_made_into_networks():
    assert problems() == []
    for spatial, name in ((1, None), (2, SPATIAL)):
        made = make_gan(config(mesh__spatial=spatial))
        styles = [made.generator.style, made.discriminator.style]
        assert made.spatial == name and [style.spatial for style in styles] == [name] * 2
        plain = [(style.policy.form, style.policy.grad) == ("plain", "xla") for style in styles]
        assert plain == [spatial > 1] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"mesh.spatial": 4, "mesh.devices": 2},
            "mesh.spatial: 4 does not divide the 2 devices; one of 1, 2 does",
        ),
        (
            {"train.batch_size": 3},
            "train.batch_size: 3 does not divide over 2 groups of mesh.spatial=2 devices; use a "
            "multiple of 2 (4), or mesh.devices=2",
        ),
        ({"eval.batch_size": 2}, "eval.batch_size: 2 does not divide over 4 devices"),
        ({"train.conv_form": "products"}, "train.conv_form: 'products' needs whole images"),
        ({"model.generator.name": "resnet"}, "model.generator.name: 'resnet' mirrors images"),
        ({"model.generator.upsample": "bilinear"}, "model.generator.upsample: 'bilinear'"),
        (
            {"loss.adversarial": "wgan-gp", "model.discriminator.norm": "layer"},
            "loss.adversarial: the gradient penalty",
        ),
        (
            {
                "mesh.spatial": 4, "data.crop_size": (12, 12), "data.load_size": (12, 12),
                "model.generator.depth": 2, "model.generator.dropout": (),
                "model.discriminator.layers": 1, "eval.metrics": ("l1",),
            },
            "mesh.spatial: 4 devices cannot share a data.crop_size of height 12, which must be a "
            "multiple of 8, at least 16; of this height, 1 or 2 devices can",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_with_what_can(changes, words):
    (problem,) = problems(**changes)
    assert problem.startswith(words)
