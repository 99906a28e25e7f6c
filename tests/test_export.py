"""Exported generators: each format is run and compared with the run's own networks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import equations, quick_jit, scrambled
from running import files, get_config

from p2p_jax import export, mesh
from p2p_jax.build import stored_values
from p2p_jax.config import ConfigError, merge
from p2p_jax.data import Form
from p2p_jax.exporting import folder as folders
from p2p_jax.exporting import formats, tensors
from p2p_jax.exporting.graph import Graph
from p2p_jax.exporting.operators import OPERATORS
from p2p_jax.exporting.program import converted
from p2p_jax.exporting.translation import translation
from p2p_jax.inference import Inference, forms, restore
from p2p_jax.networks import make_gan, make_generator
from p2p_jax.state import init
from p2p_jax.step import make_sample
from p2p_jax.weights.load import save

G = "model.generator."
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """One thread of onnxruntime; packages that are absent skip what needs them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def config_of(**changes):
    """The tiny config with changes, `G__norm` being `model.generator.norm`."""
    keys = {k.replace("G__", G).replace("__", "."): v for k, v in changes.items()}
    small = {f"{G}depth": 2, f"{G}base_features": 4, f"{G}blocks": 1, f"{G}dropout": (1,)}
    small |= {"model.discriminator.base_features": 2}
    small |= {"data.load_size": (16, 16), "data.crop_size": (16, 16)}
    return merge(get_config(), small | keys)


def inference_of(tmp_path, running=False, target=None, **changes):
    """A generator of arbitrary weights; targets are floats in [0, 1] unless said otherwise."""
    if target is None:
        target, changes = Form(3, "float32", ".npy"), {"data__target_range": (0.0, 1.0)} | changes
    config = config_of(**changes)
    gan = make_gan(config)
    source, usual = forms(config, gan, tmp_path)
    target = target or usual
    alone = make_generator(config, gan.task.channels[1], gan.task.output, own_statistics=True)
    values = stored_values(config, gan, (source, target))
    gan = dataclasses.replace(gan, generator=alone, values=values)
    x = jnp.zeros((1, 16, 16, gan.task.channels[0]))
    drawn = scrambled(jax.eval_shape(lambda: alone.init(jax.random.key(0), x)))
    params, stats = drawn["params"], drawn.get("stats", {})
    return Inference(config, gan, params, stats, 7, running, source, target)


def images_for(given, batch=3, size=(16, 24)):
    drawn = np.random.default_rng(1).uniform(given.low, given.high, (batch, *size, given.channels))
    return (drawn if given.dtype == "float32" else np.rint(drawn)).astype(given.dtype)


def original(inference, images):
    """What evaluation would make of the images: the networks in the form they are trained in."""
    gan, made = inference.gan, not inference.source.channels
    nothing = np.zeros((*images.shape[:3], 0), inference.target.dtype)
    pair = (images[..., :0], images) if made else (images, nothing)
    sample = make_sample(gan, mesh.make_mesh(1), inference.running, False)
    ids, key = np.zeros(len(images), np.uint32), jax.random.key(0)
    sampled = sample(inference.params, inference.stats, key, *pair, ids)
    return np.asarray(sampled.fake if sampled.stored is None else sampled.stored, np.float64)


def run_stablehlo(data, *given):
    return np.asarray(jax.export.deserialize(bytearray(data)).call(*given), np.float64)


def run_onnx(data, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0].astype(np.float64)


# --- programs ------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "running"),
    [
        ("unet", False),
        pytest.param("unet", True, marks=SLOW),
        pytest.param("unet_upsample", False, marks=SLOW),
        pytest.param("unet_upsample", True, marks=SLOW),
        pytest.param("resnet", False, marks=SLOW),
        pytest.param("resnet", True, marks=SLOW),
    ],
)
def test_programs_give_what_the_run_does(tmp_path, name, running):
    pytest.importorskip("flatbuffers")
    inference = inference_of(tmp_path, running, G__name=name)
    exported = translation(inference)
    images = images_for(exported.given)
    wanted = original(inference, images)
    assert wanted.std() > 0.1  # neither grey nor saturated
    got = run_stablehlo(formats.to_stablehlo(exported), images)
    assert np.abs(got - wanted).max() < TOLERANCE
    pytest.importorskip("onnx")
    model = formats.to_onnx(exported)
    assert np.abs(run_onnx(model, images) - wanted).max() < TOLERANCE
    # In a batch of its own.
    assert np.abs(run_onnx(model, images[:1]) - wanted[:1]).max() < TOLERANCE


def test_one_program_serves_all_sizes(tmp_path):
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnx")
    exported = translation(inference_of(tmp_path))
    data, model = formats.to_stablehlo(exported), formats.to_onnx(exported)
    for batch, size in ((1, (4, 8)), (2, (20, 12))):
        images = images_for(exported.given, batch, size)
        got = run_stablehlo(data, images)
        assert got.shape == (batch, *size, 3)
        assert np.abs(got - run_onnx(model, images)).max() < TOLERANCE


VARIANTS: dict[str, dict[str, Any]] = {
    "labels, bilinear, group norm": {
        **{"data__task": "labels", "data__labels": "both", "data__classes": 4, "target": ()},
        **{"G__upsample": "bilinear", "G__norm": "group"},
    },
    "16 bits, noise, pixel shuffle": {
        **{"target": Form(1, "uint16"), "data__channels": (1, 1)},
        **{"G__upsample": "pixel_shuffle", "G__norm": "instance", "G__noise": 2},
    },
    "colorize": {"data__task": "colorize", "target": ()},
    "grey, no norm": {
        **{"data__task": "grey", "target": ()},
        **{"G__name": "encoder_decoder", "G__norm": "none"},
    },
    "inpaint": {"data__task": "inpaint", "size": (16, 24)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_programs_of_other_tasks_and_layers(tmp_path, name):
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnx")
    changes = dict(VARIANTS[name])
    size = changes.pop("size", None)
    inference = inference_of(tmp_path, **changes)
    exported = translation(inference, size=size)
    images = images_for(exported.given)
    wanted = original(inference, images)
    data = formats.to_stablehlo(exported)
    made = jax.export.deserialize(bytearray(data)).out_avals[0]
    assert made.dtype == exported.made.dtype and made.shape[3] == exported.made.channels
    # Rounding may tip over to the next level.
    allowed = TOLERANCE if exported.made.dtype == "float32" else max(1, TOLERANCE * wanted.max())
    for got in (run_stablehlo(data, images), run_onnx(formats.to_onnx(exported), images)):
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= allowed, name
    assert wanted.std() > 0


def test_an_artifact_is_of_three_platforms_and_of_plain_convolutions(tmp_path):
    pytest.importorskip("flatbuffers")
    inference = inference_of(tmp_path)
    trained = inference.gan.generator.style.policy
    assert (trained.form, trained.grad) == ("products", "products")  # what this platform trains in
    exported = jax.export.deserialize(bytearray(formats.to_stablehlo(translation(inference))))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    kernels = [x for x in jax.tree.leaves(inference.params) if x.ndim == 4]
    # JAX has a branch for each platform there.
    assert text.count("stablehlo.convolution") == 3 * len(kernels)
    assert "stablehlo.dot_general" not in text
    # They check sizes; nothing that one platform alone would know is called.
    assert set(re.findall(r"custom_call @(\w+)", text)) == {"shape_assertion"}
    assert str(exported.in_avals[0].shape) == "(b, 4*h, 4*w, 3)"
    assert exported.in_avals[0].dtype == np.uint8


def test_sizes_and_types_that_do_not_fit_are_refused(tmp_path):
    pytest.importorskip("flatbuffers")
    exported = translation(inference_of(tmp_path))
    call = jax.export.deserialize(bytearray(formats.to_stablehlo(exported))).call
    images = images_for(exported.given)
    with pytest.raises(ValueError, match=r"Division had remainder 2(.|\n)*4\*h"):
        call(images[:, :14])
    with pytest.raises(ValueError, match="expected uint8"):
        call(images.astype(np.float32))
    with pytest.raises(ValueError, match="shape"):
        call(images[..., :1])
    fixed = translation(inference_of(tmp_path), size=(16, 24))
    call = jax.export.deserialize(bytearray(formats.to_stablehlo(fixed))).call
    with pytest.raises(ValueError, match="24"):
        call(images[:, :, :16])


@pytest.mark.parametrize(
    ("changes", "size", "told"),
    [
        ({}, (14, 24), "must_be_multiples_of_4"),
        ({"G__name": "resnet"}, (16, 4), "must_be_multiples_of_4_from_8_on"),
    ],
)
def test_onnx_names_what_is_wrong_with_a_size(tmp_path, changes, size, told):
    pytest.importorskip("onnx")
    exported = translation(inference_of(tmp_path, **changes))
    model = formats.to_onnx(exported)
    with pytest.raises(Exception, match=told):
        run_onnx(model, images_for(exported.given, size=size))


@pytest.mark.slow
def test_dropout_comes_from_seeds_alone(tmp_path):
    pytest.importorskip("flatbuffers")
    inference = inference_of(tmp_path)
    exported = translation(inference, dropout=True)
    images, data = images_for(exported.given), formats.to_stablehlo(exported)
    seeds = np.array([5, 6, 5], np.uint32)
    images[2] = images[1] = images[0]
    got = run_stablehlo(data, images, seeds)
    assert np.abs(got[0] - got[2]).max() < 1e-6
    assert np.abs(got[0] - got[1]).max() > 0.1
    # In a batch of its own, and by the run's own networks.
    lone = run_stablehlo(data, images[1:2], seeds[1:2])
    assert np.abs(got[1:2] - lone).max() < 1e-6
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)
    source, _ = inference.gan.task.encode(jnp.asarray(images, jnp.float32), images[..., :0])
    variables = {"params": inference.params, "stats": inference.stats}
    fake = quick_jit(inference.gan.generator.apply)(variables, source, keys)
    assert np.abs(got - (np.asarray(fake) + 1) / 2).max() < TOLERANCE
    with pytest.raises(ValueError, match="dropout"):
        formats.to_onnx(exported)


# --- operations ----------------------------------------------------------------------------------

OPERATIONS = {
    "stack": lambda x: jnp.stack([x, 2 * x], 3),
    "repeat": lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2),
    "reflect": lambda x: jnp.pad(x, ((0, 0), (3, 3), (2, 2), (0, 0)), mode="reflect"),
    "edge": lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"),
    "zeros": lambda x: jax.lax.pad(x, 0.5, ((0, 0, 0), (1, 2, 0), (0, 1, 0), (0, 0, 0))),
    "strides": lambda x: jnp.flip(jax.lax.slice_in_dim(x, 1, x.shape[1], 2, 1), 2)[:, 1:],
    "rows of a table": lambda x: jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[x.argmax(-1)],
    "a channel": lambda x: x[..., 1] - x[..., 2],
    "sizes in numbers": lambda x: x / (x.shape[1] * x.shape[2]) + x.shape[0] ** 2 - x.shape[2],
    "merged": lambda x: x.reshape(x.shape[0], -1, 3).sum(1),
    "cube root": lambda x: jnp.cbrt(x - 2),
    "clamp": lambda x: jax.lax.clamp(-0.5, x, 0.5),
    "round": lambda x: jnp.round(x * 4) + x**3 + jnp.square(x) + jax.lax.rsqrt(x * x + 1),
    "softmax": lambda x: jax.nn.softmax(x, -1) + jax.nn.sigmoid(x) + jnp.abs(jnp.sign(x)),
    "choice": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x < -1), x, -x),
    "types": lambda x: (x * 100).astype(jnp.int32) * 7 + 3,
    "remat": jax.checkpoint(lambda x: jnp.tanh(x) * x.min((1, 2), keepdims=True)),
}


def in_onnx(fn, x, dynamic=True):
    """A function of one float32 array, run by onnxruntime."""
    helper = pytest.importorskip("onnx").helper
    onnxruntime = pytest.importorskip("onnxruntime")
    shape = jax.export.symbolic_shape("b, h, w, 3", constraints=["h >= 4", "w >= 4"])
    given = jax.ShapeDtypeStruct(shape if dynamic else x.shape, np.float32)
    program = jax.jit(fn).trace(given).jaxpr
    graph = Graph()
    sizes = graph.add("Shape", "x")
    for place, name in enumerate("bhw"):
        where = graph.constant(np.array([place], np.int64))
        graph.know_sizes({name: graph.add("Gather", sizes, where, axis=0)})
    (y,) = converted(graph, program, "x")
    graph.add("Identity", graph.name(y), name="y")
    wanted = np.asarray(fn(x))
    kind = helper.np_dtype_to_tensor_dtype(wanted.dtype)
    model = graph.model(
        [helper.make_tensor_value_info("x", 1, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info("y", kind, [None] * wanted.ndim)],
        {},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0], wanted, graph


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_in_onnx(name):
    x = np.random.default_rng(2).normal(size=(2, 5, 6, 3)).astype(np.float32)
    got, wanted, _ = in_onnx(OPERATIONS[name], x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert got.dtype == wanted.dtype


def test_an_operation_that_is_not_known_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="the operation sort"):
        in_onnx(lambda x: jnp.sort(x, 1), np.zeros((1, 4, 4, 3), np.float32))


def test_what_is_known_is_computed_at_once():
    """Kernels are turned, and norms' scales worked out, before the model is written."""
    kernel = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    x = np.zeros((1, 4, 4, 3), np.float32)
    _, _, graph = in_onnx(lambda x: x + jnp.flip(kernel, 0).T.sum(1).reshape(1, 1, 1, 3) ** 2, x)
    model = graph.model([], [pytest.importorskip("onnx").helper.make_empty_tensor_value_info("y")],
                        {})  # fmt: skip
    assert [node.op_type for node in model.graph.node] == ["Add", "Identity"]


def test_every_operation_of_the_generators_is_in_the_table(tmp_path):
    """Those of a network with all there is, so that new ones are noticed without onnx as well."""
    names = set()
    inner = {"jit", "custom_vjp_call", "custom_jvp_call"}
    for name in ("unet", "resnet"):
        exported = translation(inference_of(tmp_path, G__name=name))
        program = jax.jit(exported.fn).trace(*formats.traced(exported)).jaxpr
        names |= {eqn.primitive.name for eqn in equations(program)}
    assert names - inner - OPERATORS.keys() == set()


# --- folders -------------------------------------------------------------------------------------


def stored(workdir, config):
    """Saves a run of arbitrary weights; its averaged ones are others."""
    gan = make_gan(config)
    state = jax.eval_shape(lambda: init(gan, 0))
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state._replace(key=()))
    drawn = scrambled({"params": state.gen.params, "stats": state.gen.stats})
    drawn, ema = jax.tree.map(jnp.asarray, (drawn, scrambled(state.ema, seed=1)))
    gen = blank.gen._replace(**drawn)
    save(workdir, config, blank._replace(gen=gen, ema=ema, key=jax.random.key(0)), {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with an evaluation."""
    workdir = tmp_path_factory.mktemp("runs") / "facades"
    stored(workdir, config_of(data__path="/home/someone/photos/facades", eval__dropout=False))
    found = {"step": 0, "examples": 5, "split": "val", "norm_stats": "batch", "dropout": False,
             "ema": False, "better": {"eval/l1": "min"}, "eval/l1": 0.125,
             "intervals": {"eval/l1": [0.1, 0.15]}}  # fmt: skip
    (workdir / "eval/val/0").mkdir(parents=True)
    (workdir / "eval/val/0/metrics.json").write_text(json.dumps(found))
    return workdir


def succeed(*argv):
    assert export.main([str(word) for word in argv]) == 0


def fail(capsys, *argv, code=2):
    """The complaints of a command line that must be refused."""
    capsys.readouterr()
    assert export.main([str(word) for word in argv]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnx")
    output = tmp_path_factory.mktemp("exported") / "of/facades"
    before = files(run)
    succeed(f"--workdir={run}", f"--output={output}", "--format=stablehlo,safetensors,onnx")
    assert files(run) == before
    return output


def test_a_folder_of_all_formats(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {"model.stablehlo", "model.safetensors", "model.onnx", "config.json",
                     "export.json", "README.md"}  # fmt: skip
    assert [path.name for path in exported.parent.iterdir()] == ["facades"]  # nothing beside it
    images = images_for(translation(restore(run)).given, 1, (16, 16))
    wanted = original(restore(run), images)
    for got in (
        run_stablehlo((exported / "model.stablehlo").read_bytes(), images),
        run_onnx((exported / "model.onnx").read_bytes(), images),
        np.asarray(export.load(exported)(images), np.float64),
    ):
        assert np.abs(got - wanted).max() <= 1 and wanted.std() > 10


def test_the_card_tells_what_it_is_and_how_to_use_it(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: p2p_jax\npipeline_tag: image-to-image\n")
    texts = ("unet, 1,", "trained on | facades, AtoB, at 16x16", "0, 4 pairs each", "Licence",
             "task | translate", "vanilla; gan 1, l1 100", "multiples of 4", "5 pairs of the split",
             "l1, lower is better | 0.125 (95%: 0.1 to 0.15)",
             "`[batch, height, width, 3]`, uint8")  # fmt: skip
    for text in texts:
        assert text in card, text
    assert "/home/someone" not in card and "evaluated otherwise" not in card


def blocks_of(card):
    """The Python of a card, by the section that it stands in."""
    parts = card.split("### ")[1:]
    return {p.split("\n")[0]: p.split("```python\n")[1].split("```")[0] for p in parts}


def test_what_the_card_says_runs(exported, monkeypatch):
    blocks = blocks_of((exported / "README.md").read_text())
    assert blocks.keys() == {"model.stablehlo", "model.safetensors", "model.onnx"}
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(exported)
    images = images_for(translation(export.load_safetensors(exported)).given, 1, (16, 16))
    wanted = np.asarray(export.load(exported)(images), np.float64)
    for block in blocks.values():
        known = {"images": images}
        exec(block, known)
        assert np.abs(np.asarray(known["translated"], np.float64) - wanted).max() <= 1
        assert 3 <= len(block.splitlines()) <= 4


def test_weights_come_back_as_they_were(run, exported):
    one, other = restore(run), export.load_safetensors(exported)
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for a, b in zip(jax.tree.leaves((one.params, one.stats)),
                    jax.tree.leaves((other.params, other.stats)), strict=True):  # fmt: skip
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert one._replace(config=0, gan=0, params=0, stats=0) == other._replace(
        config=0, gan=0, params=0, stats=0
    )
    assert one.gan.values == other.gan.values and one.gan.task == other.gan.task
    config = json.loads((exported / "config.json").read_text())
    assert config["data"]["path"] == "facades"
    keys = safetensors.numpy.load_file(exported / "model.safetensors").keys()
    assert {"params/enc1/conv/kernel", "stats/dec1/norm/mean"} < keys


@pytest.mark.slow
def test_averaged_weights_and_running_statistics(run, tmp_path):
    output = tmp_path / "made"
    succeed(f"--workdir={run}", f"--output={output}", "--format=safetensors", "--ema",
            "--norm_stats=running", "--step=0")  # fmt: skip
    found, wanted = export.load_safetensors(output), restore(run, ema=True, running=True)
    assert found.averaged and found.running
    kernel = found.params["enc1"]["conv"]["kernel"]
    assert (kernel == np.asarray(wanted.params["enc1"]["conv"]["kernel"])).all()
    assert not (kernel == np.asarray(restore(run).params["enc1"]["conv"]["kernel"])).any()
    card = (output / "README.md").read_text()
    assert "evaluated otherwise than exported: norm_stats batch, ema False" in card
    assert "model.stablehlo" not in card and "running statistics" in card


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "model.safetensors: "),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: "),
        (lambda f: (f / "export.json").write_text("{}"), "export.json: not as p2p_jax.export"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: rewrite(f, lambda t: t.pop("params/enc1/conv/kernel")), "kernel is absent;"),
        (
            lambda f: rewrite(f, lambda t: t["stats/dec1/norm/var"].fill(np.nan)),
            "var holds values that are not finite",
        ),
    ],
)
def test_a_damaged_folder_is_refused(exported, tmp_path, damage, told):
    for name in ("model.safetensors", "export.json", "config.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    damage(tmp_path)
    with pytest.raises(ConfigError, match=told):
        export.load_safetensors(tmp_path)


def rewrite(folder, change):
    held = safetensors.numpy.load_file(folder / tensors.FILE)
    change(held)
    (folder / tensors.FILE).write_bytes(safetensors.numpy.save(held))


def test_all_that_is_wrong_is_told_at_once(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/precious").write_text("mine")
    wrong = ["--format=onnx,tflite", "--step=last", "--dropout=True", "--norm_stats=none"]
    wrong += ["--size=18,16", "--outptu=x"]
    told = fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'there'}", *wrong)
    assert len(told) == 7
    for text, line in zip(
        ("no such flag; did you mean --output", "'tflite' is not one of", "exists already",
         "'last' is not a step", "'none' is not one of batch", "ONNX would draw",
         "18,16 does not fit the network: multiples of 4"),
        told, strict=True,
    ):  # fmt: skip
        assert text in line
    assert files(tmp_path) == {"there/precious": b"mine"}
    assert fail(capsys, f"--output={tmp_path / 'new'}")[0].startswith("--workdir: needed")
    assert "holds no config.json" in fail(capsys, f"--workdir={tmp_path}", "--output=new")[0]
    assert (
        "no checkpoint of step 3"
        in fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'new'}", "--step=3")[0]
    )
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_missing_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    told = fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'new'}",
                "--format=stablehlo,onnx")  # fmt: skip
    assert [line.split(";")[1] for line in told] == [" pip install 'p2p_jax[export]'"] * 2
    assert "flatbuffers" in told[0] and "onnx" in told[1]


def test_a_file_that_gives_something_else_is_not_left_behind(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        folders._WRITERS, "safetensors", lambda *args: np.zeros((1, 16, 16, 3), np.uint8)
    )
    told = fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'new'}", "--format=safetensors",
                code=1)  # fmt: skip
    assert "safetensors: gives something else than it should" in told[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_jax_alone_runs_an_artifact(exported, tmp_path):
    blocks = blocks_of((exported / "README.md").read_text())
    images = images_for(translation(export.load_safetensors(exported)).given, 1, (16, 16))
    np.save(tmp_path / "images.npy", images)
    blocked = ["p2p_jax", "flax", "optax", "orbax", "onnx", "ml_collections", "tensorflow"]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport numpy\n"
        f"images = numpy.load({str(tmp_path / 'images.npy')!r})\n{blocks['model.stablehlo']}\n"
        f"numpy.save({str(tmp_path / 'made.npy')!r}, translated)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=exported, env=env, check=True, timeout=120)
    wanted = np.asarray(export.load(exported)(images), np.int32)
    assert np.abs(np.load(tmp_path / "made.npy") - wanted).max() <= 1


@pytest.mark.slow
def test_a_run_of_64_bits_is_exported_in_32(tmp_path):
    pytest.importorskip("flatbuffers")
    config = config_of(train__precision="float64")
    mesh.use_precision("float64")
    try:
        stored(tmp_path / "run", config)
        succeed(f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'made'}")
        assert not jax.config.read("jax_enable_x64")
        kernels = safetensors.numpy.load_file(tmp_path / "made/model.safetensors")
        assert {array.dtype.name for array in kernels.values()} == {"float64"}
        data = (tmp_path / "made/model.stablehlo").read_bytes()
        assert "f64" not in jax.export.deserialize(bytearray(data)).mlir_module()
        with pytest.raises(ConfigError, match="precision=float64"):
            export.load_safetensors(tmp_path / "made")
    finally:
        mesh.use_precision("float32")
