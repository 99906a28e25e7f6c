"""Weights of the published PyTorch layout: in, out, and everything that is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from running import arrays, assert_same_arrays, checkpoints, files, finished, get_config

from p2p_jax import checkpoint, convert, main, mesh
from p2p_jax.config import ConfigError, base, flatten, merge
from p2p_jax.finetune import restore_networks
from p2p_jax.flags import saved_config
from p2p_jax.networks import abstract_state, make_gan
from p2p_jax.state import init
from p2p_jax.validate import resolved
from p2p_jax.weights import export
from p2p_jax.weights import files as weight_files
from p2p_jax.weights.detect import (
    clean,
    detect_discriminator,
    detect_generator,
    recognise,
    reference_dropout,
)
from p2p_jax.weights.layout import COUNTER, Network, layers, layout, to_flax, to_torch

G, D = "model.generator.", "model.discriminator."
TINY = {f"{G}depth": 2, f"{G}base_features": 2, f"{G}dropout": (), "data.crop_size": (32, 32)}
TINY |= {f"{D}layers": 1, f"{D}base_features": 2, "data.load_size": (32, 32)}


def sized(size):
    return [f"--config.data.load_size={size}", f"--config.data.crop_size={size}"]


def crop(size):
    """Of images, and a discriminator that is drawn quickly."""
    return [*sized(size), f"--config.{D}layers=1", f"--config.{D}base_features=2"]


def config_of(**changes):
    """A small config with changes, `G__norm` being `model.generator.norm`."""
    keys = {key.replace("G__", G).replace("D__", D).replace("__", "."): v for key, v in
            changes.items()}  # fmt: skip
    return merge(base(), TINY | keys)


def drawn(config, nets="GD", seed=0):
    """Networks of a config as state dicts of arrays, every value another one."""
    state = abstract_state(make_gan(config), mesh.make_mesh(1))
    rng = np.random.default_rng(seed)
    found = []
    for net in nets:
        held = state.gen if net == "G" else state.disc
        tree = {"params": held.params, "stats": held.stats}
        arrays = {
            path: rng.uniform(0.1, 1, x.shape).astype(np.float32)
            for path, x in traverse_util.flatten_dict(tree, sep="/").items()
        }
        entries = layout(export.network_of(config, net), arrays)
        found.append(to_torch(arrays, entries))
    return found


def store(path, tensors):
    path.write_bytes(safetensors.numpy.save({k: np.ascontiguousarray(v).reshape(np.shape(v)) for
                                             k, v in tensors.items()}))  # fmt: skip
    return path


def networks(workdir, step=None):
    """Both networks of a workdir: the Gan and, for each, its variables."""
    gan, found = restore_networks(workdir, mesh.make_mesh(1), pytest.fail, ("gen", "train"), step)
    gen, disc = found.items["gen"], found.items["train"]["disc"]
    return gan, *({k: net[k] for k in ("params", "stats")} for net in (gen, disc))


def arrays_of(variables):
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: np.asarray(array) for path, array in flat.items()}


def succeed(*argv):
    assert convert.main([str(word) for word in argv]) == 0


def fail(capsys, *argv, code=2):
    """The complaints of a command line that must be refused."""
    capsys.readouterr()
    assert convert.main([str(word) for word in argv]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def gen_file(tmp_path):
    return store(tmp_path / "latest_net_G.safetensors", drawn(config_of())[0])


@pytest.fixture
def run(tmp_path, gen_file):
    """A workdir made of a tiny U-Net."""
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'run'}", *crop(32))
    return tmp_path / "run"


# --- the same function as in PyTorch -------------------------------------------------------------


def images(channels, size, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (1, size, size, channels)).astype(np.float32)


def there(torch, net, image, training):
    """What a network of PyTorch makes of `[b, h, w, c]`, without dropout."""
    net.train(training)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        made = net(torch.from_numpy(image).permute(0, 3, 1, 2).contiguous())
    net.load_state_dict(state)  # without the statistics' update
    return made.permute(0, 2, 3, 1).numpy()


def same_bits(torch, one, other):
    assert one.keys() == other.keys()
    for key in one:
        if not key.endswith(COUNTER):
            assert one[key].dtype == other[key].dtype == torch.float32, key
            assert one[key].shape == other[key].shape, key
            assert one[key].numpy().tobytes() == other[key].numpy().tobytes(), key


NAMES = ("latest_net_G.pth", "latest_net_D.pth")
# What a batch of one image is normalised by, in either framework.
ALONE = [f"--config.{net}norm_group=1" for net in (G, D)]


def read_in(folder, workdir, size):
    inputs = zip(("input", "discriminator"), NAMES, strict=True)
    flags = [f"--{flag}={folder / name}" for flag, name in inputs]
    succeed(*flags, f"--workdir={workdir}", *sized(size), *ALONE)


def written_out(workdir, folder):
    """Bytes of both files."""
    for net, name in zip("GD", NAMES, strict=True):
        succeed(f"--workdir={workdir}", f"--output={folder / name}", f"--net={net}")
    return [(folder / name).read_bytes() for name in NAMES]


def check_parity(tmp_path, gen, disc, size):
    """In, forward, out, forward; in again and out again, bit for bit."""
    torch = pytest.importorskip("torch")
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    nets, prefixes = (gen, disc), ("module._orig_mod.", "_orig_mod.module.module.")
    for net, prefix, name in zip(nets, prefixes, NAMES, strict=True):
        torch.save({prefix + k: v for k, v in net.state_dict().items()}, tmp_path / name)
    read_in(tmp_path, first, size)
    gan, *held = networks(first)
    a, b = gan.task.channels
    source, image = images(a, size), images(b, size, 1)
    judged = np.concatenate([source, image], -1) if gan.discriminator.conditional else image

    def forward(gen, disc, running):
        made = gan.generator.apply(gen, source, running=running)
        return made, gan.discriminator.apply(disc, source, image, running)[0][-1]

    def theirs(running):
        return there(torch, gen, source, not running), there(torch, disc, judged, not running)

    statistics = bool(held[0]["stats"] or held[1]["stats"])
    before = {running: theirs(running) for running in (False, *[True] * statistics)}
    for running, want in before.items():
        for ours, his in zip(jax.jit(forward, static_argnums=2)(*held, running), want, strict=True):
            np.testing.assert_allclose(ours, his, rtol=0, atol=1e-4)
            assert his.std() > 1e-2

    files_out = written_out(first, out)
    for net, name in zip(nets, NAMES, strict=True):
        written = torch.load(out / name, weights_only=True)
        same_bits(torch, written, net.state_dict())
        for tensor in net.state_dict().values():
            tensor.zero_()
        net.load_state_dict(written, strict=True)
    for running, want in before.items():
        for one, other in zip(theirs(running), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

    read_in(out, second, size)
    for one, other in zip(held, networks(second)[1:], strict=True):
        assert_same_arrays(arrays_of(one), arrays_of(other))
    assert written_out(second, tmp_path / "out again") == files_out


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["instance", *(pytest.param(n, marks=pytest.mark.slow) for n in ("batch", "none"))]
)
def test_unet_and_patchgan_of_one_layer(tmp_path, norm):
    pytest.importorskip("torch")
    import torch_reference as t

    gen = t.seeded(t.UnetGenerator(2, 3, 5, ngf=3, norm=norm, dropout=True), 0)
    disc = t.seeded(t.NLayerDiscriminator(5, ndf=3, layers=1, norm=norm), 1)
    check_parity(tmp_path, gen, disc, 64 if norm == "instance" else 32)


@pytest.mark.parametrize(
    ("blocks", "dropout", "norm", "layers", "size"),
    [
        pytest.param(6, True, "batch", 0, 16, marks=pytest.mark.slow),
        pytest.param(6, False, "none", 2, 32, marks=pytest.mark.slow),
        pytest.param(9, True, "instance", 2, 32, marks=pytest.mark.slow),
        pytest.param(9, False, "batch", 3, 48, marks=pytest.mark.slow),
        pytest.param(6, False, "instance", 0, 16, marks=pytest.mark.slow),
    ],
)
def test_resnet_and_discriminators(tmp_path, blocks, dropout, norm, layers, size):
    """No layers is the pixel discriminator."""
    pytest.importorskip("torch")
    import torch_reference as t

    gen = t.ResnetGenerator(1, 2, ngf=3, norm=norm, dropout=dropout, blocks=blocks)
    disc = t.NLayerDiscriminator(3, 3, layers, norm) if layers else t.PixelDiscriminator(3, 3, norm)
    check_parity(tmp_path, t.seeded(gen, 0), t.seeded(disc, 1), size)
    found = flatten(saved_config(tmp_path / "first"))
    assert bool(found[f"{G}dropout"]) == dropout and found["data.channels"] == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downs", "norm", "layers"), [(8, "batch", 5), (7, "batch", 3), (7, "none", 4)]
)
def test_unets_as_deep_as_published(tmp_path, downs, norm, layers):
    pytest.importorskip("torch")
    import torch_reference as t

    gen = t.seeded(t.UnetGenerator(3, 3, downs, ngf=2, norm=norm, dropout=True), 0)
    disc = t.seeded(t.NLayerDiscriminator(3, ndf=2, layers=layers, norm=norm), 1)
    check_parity(tmp_path, gen, disc, 2**downs)
    found = flatten(saved_config(tmp_path / "first"))
    assert found[f"{D}conditional"] is False
    assert found[f"{G}dropout"] == {8: (2, 3, 4), 7: (2, 3)}[downs]


# --- what the tensors tell -----------------------------------------------------------------------


def shapes_only(torch, make):
    """A state dict of the right shapes that takes no memory."""
    with torch.device("meta"):
        state = make().state_dict()
    return {k: np.broadcast_to(np.float32(0), tuple(v.shape)) for k, v in state.items()}


FIXED = {f"{G}slope": 0.2, "model.norm_eps": 1e-5}  # by those who made the tensors


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("downs", [5, 7, 8])
def test_a_unet_is_detected(downs, norm):
    torch = pytest.importorskip("torch")
    import torch_reference as t

    tensors, notes = clean(shapes_only(torch, lambda: t.UnetGenerator(4, 2, downs, 48, norm)))
    network, values = detect_generator(tensors)
    assert network == Network("unet", downs) and not notes
    assert values == {
        "data.channels": (4, 2), f"{G}name": "unet", f"{G}depth": downs, f"{G}base_features": 48,
        f"{G}features": (), f"{G}norm": norm, f"{G}bias": "auto", f"{G}upsample": "auto",
        f"{G}noise": 0, f"{G}innermost_norm": "auto", f"{G}skip_activation": "auto",
        **FIXED,
    }  # fmt: skip


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("blocks", [1, 6, 9])
def test_a_resnet_is_detected(blocks, dropout, norm):
    torch = pytest.importorskip("torch")
    import torch_reference as t

    made = shapes_only(torch, lambda: t.ResnetGenerator(1, 3, 32, norm, dropout, blocks))
    network, values = detect_generator(clean(made)[0])
    assert network == Network("resnet", blocks, dropout)
    assert values == {
        "data.channels": (1, 3), f"{G}name": "resnet", f"{G}blocks": blocks,
        f"{G}base_features": 32, f"{G}norm": norm, f"{G}bias": "auto", f"{G}upsample": "auto",
        f"{G}noise": 0, f"{G}dropout": tuple(range(1, blocks + 1)) if dropout else (),
        **FIXED,
    }  # fmt: skip


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("seen", [7, 4])
def test_a_discriminator_is_detected(count, norm, seen):
    torch = pytest.importorskip("torch")
    import torch_reference as t

    made = shapes_only(
        torch,
        lambda: (
            t.NLayerDiscriminator(seen, 16, count, norm)
            if count
            else t.PixelDiscriminator(seen, 16, norm)
        ),
    )
    network, values = detect_discriminator(clean(made)[0], (3, 4))
    assert network == (Network("patchgan", count) if count else Network("pixel", 1))
    want = {
        f"{D}name": network.kind, f"{D}base_features": 16, f"{D}conditional": seen == 7,
        f"{D}norm": norm, f"{D}bias": "auto", f"{D}scales": 1, f"{D}spectral": False,
        f"{D}slope": 0.2,
    }  # fmt: skip
    assert values == want | ({f"{D}layers": count} if count else {})


def test_the_layout_is_the_published_one():
    """Keys spelled out, for nobody to change both directions at once."""
    unet = [layer.conv for layer in layers(Network("unet", 3))]
    inner = "model.model.1.model"
    assert unet == ["model.model.0", f"{inner}.1", f"{inner}.3.model.1", f"{inner}.3.model.3",
                    f"{inner}.5", "model.model.3"]  # fmt: skip
    assert [x.norm for x in layers(Network("unet", 3))] == [
        "", f"{inner}.2", "", f"{inner}.3.model.4", f"{inner}.6", ""]  # fmt: skip
    resnet = [layer.conv for layer in layers(Network("resnet", 9, True))]
    assert resnet[:3] == ["model.1", "model.4", "model.7"]
    assert resnet[3:5] == ["model.10.conv_block.1", "model.10.conv_block.6"]
    assert resnet[-3:] == ["model.19", "model.22", "model.26"]
    assert [x.conv for x in layers(Network("patchgan", 3))] == [
        f"model.{i}" for i in (0, 2, 5, 8, 11)]  # fmt: skip
    assert [x.norm for x in layers(Network("pixel", 1))] == ["", "net.3", ""]
    assert reference_dropout(8) == (2, 3, 4) and reference_dropout(7) == (2, 3)
    assert reference_dropout(5) == reference_dropout(2) == ()


@pytest.mark.parametrize(
    ("changes", "norm", "bias"),
    [
        ({"G__norm": "instance_affine"}, "instance_affine", "auto"),
        ({"G__norm": "instance_affine", "G__bias": "all"}, "instance_affine", "all"),
        ({"G__norm": "batch", "G__bias": "all"}, "batch", "all"),
        ({"G__norm": "instance"}, "instance", "auto"),
        ({"G__norm": "none"}, "none", "auto"),
    ],
)
def test_norms_and_biases_are_told_apart(changes, norm, bias):
    _, values = detect_generator(clean(drawn(config_of(**changes))[0])[0])
    assert (values[f"{G}norm"], values[f"{G}bias"]) == (norm, bias)


def test_widths_that_do_not_double():
    config = config_of(G__depth=3, G__features=(4, 6, 6))
    _, values = detect_generator(clean(drawn(config)[0])[0])
    assert values[f"{G}features"] == (4, 6, 6) and values[f"{G}base_features"] == 4
    _, values = detect_generator(clean(drawn(config_of(G__depth=5))[0])[0])
    assert values[f"{G}features"] == () and values[f"{G}base_features"] == 2


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.module."])
def test_prefixes_are_taken_off(prefix):
    tensors = drawn(config_of())[0]
    kept, notes = clean({prefix + key: value for key, value in tensors.items()})
    assert list(kept) == [key for key in tensors if not key.endswith(COUNTER)] and not notes
    with pytest.raises(ConfigError, match="there twice"):
        clean(tensors | {prefix + key: value for key, value in tensors.items()})


# --- both ways, without torch --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"G__depth": 3, "G__features": (4, 2, 6), "G__norm": "instance_affine"},
        {"G__name": "resnet", "G__blocks": 2, "G__norm": "none", "G__dropout": (1, 2)},
        {"G__norm": "instance", "D__name": "pixel", "D__conditional": False},
        {"D__norm": "instance_affine", "D__bias": "all", "data__channels": (1, 2)},
    ],
)
def test_files_of_safetensors_both_ways(tmp_path, changes):
    tensors = drawn(config_of(**changes))
    names = ("G.safetensors", "D.safetensors")
    paths = [store(tmp_path / n, held) for n, held in zip(names, tensors, strict=True)]
    workdir = tmp_path / "run"
    flags = [f"--input={paths[0]}", f"--discriminator={paths[1]}"]
    succeed(*flags, f"--workdir={workdir}", *sized(32))
    for kind, held, path in zip("GD", tensors, paths, strict=True):
        out = tmp_path / "out" / path.name
        succeed("--workdir", workdir, "--output", out, "--net", kind)
        written = safetensors.numpy.load_file(out)
        assert_same_arrays(written, held)
        assert {v.dtype for k, v in written.items() if k.endswith(COUNTER)} <= {np.dtype(np.int64)}
    (start,) = json.loads((workdir / "run.json").read_text())["starts"]
    assert start["converted"] == {"input": names[0], "discriminator": names[1]}


def test_a_fresh_discriminator_is_the_one_that_training_would_draw(run, capsys):
    gan, _, disc = networks(run)
    seed = saved_config(run).seed
    state = jax.jit(lambda: init(gan, seed))()
    fresh = arrays_of({"params": state.disc.params, "stats": state.disc.stats})
    found = arrays_of(disc)
    assert found.keys() == fresh.keys()
    for path, array in fresh.items():
        np.testing.assert_allclose(found[path], array, rtol=0, atol=1e-6, err_msg=path)


def test_without_a_config_the_recipe_is_the_references(run):
    found = flatten(saved_config(run))
    assert found[f"{G}norm_group"] == 0 and found["optim.schedule"] == "linear"
    assert found[f"{G}dropout"] == () and found[f"{G}depth"] == 2
    assert checkpoints(run) == ["0"] and sorted(p.name for p in run.iterdir()) == [
        "checkpoints", "config.json", "run.json"]  # fmt: skip


def test_averaged_weights_begin_as_the_others(tmp_path, gen_file, capsys):
    workdir = tmp_path / "run"
    succeed(f"--input={gen_file}", f"--workdir={workdir}", *crop(32),
            "--config.train.ema_decay=0.99")  # fmt: skip
    for name, flags in (("plain", []), ("ema", ["--ema"])):
        out = tmp_path / f"{name}.safetensors"
        succeed(f"--workdir={workdir}", f"--output={out}", *flags)
        assert_same_arrays(safetensors.numpy.load_file(out), safetensors.numpy.load_file(gen_file))
    assert "running statistics are those" in capsys.readouterr().out


def test_an_empty_or_unrelated_folder_is_fine(tmp_path, gen_file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'run'}", *crop(32))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.json", "notes.txt", "run.json"]  # fmt: skip
    networks(tmp_path / "run")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_precisions(tmp_path, kind, capsys):
    tensors = drawn(config_of())[0]
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    cast = {k: v if k.endswith(COUNTER) else v.astype(dtype) for k, v in tensors.items()}
    path = store(tmp_path / "G.safetensors", cast)
    succeed(f"--input={path}", f"--workdir={tmp_path / 'run'}", *crop(32))
    what = "were rounded to" if kind == "float64" else "became"
    assert f"of {kind} {what} float32" in capsys.readouterr().out
    kernel = arrays_of(networks(tmp_path / "run")[1])["params/enc1/conv/kernel"]
    there = cast["model.model.0.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    assert kernel.dtype == np.float32 and kernel.tobytes() == there.tobytes()


def test_statistics_that_mean_nothing_are_left_out(tmp_path, capsys):
    tensors = drawn(config_of(G__norm="instance"))[0]
    norms = {c.norm: tensors[f"{c.conv}.bias"] for c in layers(Network("unet", 2)) if c.norm}
    stray = {f"{n}.running_{k}": b for n, b in norms.items() for k in ("mean", "var")}
    stray |= {f"{n}{COUNTER}": np.array(3) for n in norms}
    path = store(tmp_path / "G.safetensors", tensors | stray)
    succeed(f"--input={path}", f"--workdir={tmp_path / 'run'}", *crop(32))
    assert "2 running statistics of norms without parameters" in capsys.readouterr().out
    assert saved_config(tmp_path / "run").model.generator.norm == "instance"


def test_tensors_win_over_the_config_and_say_so(tmp_path, gen_file, capsys):
    config = Path(__file__).resolve().parent / "running.py"
    flags = [f"--config={config}", f"--config.{G}norm=instance", "--config.train.steps=77"]
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'run'}", *flags, *sized(32))
    out = capsys.readouterr().out
    assert f"{G}norm: 'instance' -> 'batch', as the tensors say" in out
    assert f"{G}depth: 4 -> 2, as the tensors say" in out and f"{G}upsample" not in out
    want = resolved(get_config())
    found = flatten(saved_config(tmp_path / "run"))
    changed = {key for key, value in flatten(want).items() if found[key] != value}
    assert changed == {f"{G}depth", f"{G}base_features", f"{G}dropout", "train.steps",
                       "data.load_size"}  # fmt: skip


def test_nothing_is_overruled_where_nothing_was_asked_for(tmp_path, gen_file, capsys):
    flags = [f"--config.{G}upsample=deconv", f"--config.{G}bias=last", f"--config.{G}blocks=3"]
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'run'}", *flags, *crop(32))
    assert "as the tensors say" not in capsys.readouterr().out
    assert saved_config(tmp_path / "run").model.generator.upsample == "deconv"


def test_what_no_tensor_tells_is_the_reference_s(tmp_path, gen_file, capsys):
    """A recipe with another slope and eps would make another network of the same tensors."""
    config = f"--config={Path(__file__).parents[1] / 'configs' / 'quickstart.py'}:tf_tutorial"
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'w'}", config, *sized(32))
    out = capsys.readouterr().out
    model = saved_config(tmp_path / "w").model
    assert model.norm_eps == 1e-5 and "model.norm_eps: 0.001 -> 1e-05" in out
    assert model.generator.slope == 0.2 and f"{G}slope: 0.3 -> 0.2" in out
    assert model.generator.skip_activation == "auto"
    assert f"{G}skip_activation: 'leaky' -> 'auto'" in out
    assert model.discriminator.slope == 0.3  # a fresh one, as the recipe has it


def test_dropout_of_a_unet(tmp_path, capsys):
    config = config_of(G__depth=6, G__base_features=1, data__crop_size=64, data__load_size=64)
    flags = [f"--input={store(tmp_path / 'G.safetensors', drawn(config)[0])}", *crop(64)]
    succeed(*flags, f"--workdir={tmp_path / 'a'}")
    assert f"as in the reference, {G}dropout=(2,) (trained with" in capsys.readouterr().out
    assert saved_config(tmp_path / "a").model.generator.dropout == (2,)
    succeed(*flags, f"--workdir={tmp_path / 'b'}", f"--config.{G}dropout=1,4")
    assert "cannot be seen" not in capsys.readouterr().out
    assert saved_config(tmp_path / "b").model.generator.dropout == (1, 4)
    succeed(f"--workdir={tmp_path / 'b'}", f"--output={tmp_path / 'o.safetensors'}")
    out = capsys.readouterr().out
    assert "UnetGenerator(num_downs=6) --norm batch --ngf 1 --input_nc 3 --output_nc 3" in out
    assert "drops out in the decoder blocks (2,), this network in (1, 4)" in out


# --- refusals on the way in ----------------------------------------------------------------------


def refused(capsys, tmp_path, path, *flags):
    """The complaints about a file; nothing may be left behind."""
    before = files(tmp_path)
    found = fail(capsys, f"--input={path}", f"--workdir={tmp_path / 'a' / 'b'}", *crop(32), *flags)
    assert files(tmp_path) == before and not (tmp_path / "a").exists()
    return found


def test_missing_left_over_and_misshapen_tensors_are_all_named(tmp_path, capsys):
    gen, disc = drawn(config_of())
    del gen["model.model.1.model.4.running_mean"]
    gen["model.model.1.model.1.weight"] = gen["model.model.1.model.1.weight"][:, :1]
    gen["model.model.9.weight"] = np.zeros((2, 3), np.float32)
    disc["model.5.weight"] = disc["model.5.weight"][..., :3]
    del disc["model.3.bias"]
    path = store(tmp_path / "G.safetensors", gen)
    other = store(tmp_path / "D.safetensors", disc)
    found = refused(capsys, tmp_path, path, f"--discriminator={other}")
    assert found == [
        f"--input: {path}: model.model.1.model.1.weight: of shape [4, 1, 4, 4], "
        "must be [4, 2, 4, 4]",
        f"--input: {path}: model.model.1.model.4.running_mean: missing, of shape [2]",
        f"--input: {path}: model.model.9.weight: left over, of shape [2, 3]",
        f"--discriminator: {other}: model.3.bias: missing, of shape [4]",
        f"--discriminator: {other}: model.5.weight: of shape [1, 4, 4, 3], must be [1, 4, 4, 4]",
    ]


def test_long_lists_have_an_end(tmp_path, capsys):
    extra = {f"extra.{i}": np.zeros(1, np.float32) for i in range(50)}
    path = store(tmp_path / "G.safetensors", drawn(config_of())[0] | extra)
    found = refused(capsys, tmp_path, path)
    assert len(found) == 21 and found[-1].endswith("and 30 more")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "holds no tensors"),
        ({"fc.weight": (3, 3)}, "holds no network of the published layouts"),
        ({"model.model.1.model.1.weight": (3, 3, 4, 4)}, "model.model.0.weight: missing"),
        ({"model.model.0.weight": (3, 3), "model.model.1.model.1.weight": (3, 3, 4, 4)},
         "model.model.0.weight: of shape [3, 3], must have 4 axes"),
        ({"model.0.weight": (2, 6, 4, 4), "model.5.weight": (1, 2, 4, 4)},
         "holds a discriminator; give it as --discriminator"),
    ],
)  # fmt: skip
def test_files_of_something_else(tmp_path, capsys, content, says):
    held = {key: np.ones(shape, np.float32) for key, shape in content.items()}
    (found,) = refused(capsys, tmp_path, store(tmp_path / "G.safetensors", held))
    assert says in found


@pytest.mark.parametrize(
    ("dtype", "value", "says"),
    [(np.int32, 1, "model.model.3.bias is of int32, not floating-point numbers"),
     (np.float32, np.nan, "model.model.3.bias holds values that are not finite"),
     (np.float16, np.inf, "model.model.3.bias holds values that are not finite")],
)  # fmt: skip
def test_tensors_that_are_no_weights(tmp_path, capsys, dtype, value, says):
    held = drawn(config_of())[0] | {"model.model.3.bias": np.full(3, value, dtype)}
    (found,) = refused(capsys, tmp_path, store(tmp_path / "G.safetensors", held))
    assert says in found


def test_a_discriminator_of_other_channels_or_a_generator_in_its_place(tmp_path, capsys, gen_file):
    disc = drawn(config_of(data__channels=(4, 3)))[1]
    path = store(tmp_path / "D.safetensors", disc)
    (found,) = refused(capsys, tmp_path, gen_file, f"--discriminator={path}")
    assert "model.0.weight: takes 7 channels, neither" in found and "(3 + 3)" in found
    (found,) = refused(capsys, tmp_path, gen_file, f"--discriminator={gen_file}")
    assert "holds a generator; give it as --input" in found


def test_files_that_cannot_be_read(tmp_path, capsys, gen_file):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(gen_file.read_bytes()[:-100])
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"not one of these")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    for path in (cut, noise, empty):
        (found,) = refused(capsys, tmp_path, path)
        assert f"--input: {path}: not a sound safetensors file: " in found
    (found,) = refused(capsys, tmp_path, tmp_path / "none.safetensors")
    assert found.endswith("none.safetensors: there is no such file")
    (tmp_path / "folder.safetensors").mkdir()
    (found,) = refused(capsys, tmp_path, tmp_path / "folder.safetensors")
    assert found.endswith("folder.safetensors: not a file")
    found = refused(capsys, tmp_path, tmp_path / "G.ckpt")
    assert "G.ckpt: must end in .pth, .pt or .safetensors" in found[0]


def test_torch_is_asked_for_where_it_is_needed(tmp_path, capsys, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "G.pth"
    path.touch()
    (found,) = refused(capsys, tmp_path, path)
    assert f"{path}: .pth files need the package torch" in found
    assert "pip install 'p2p_jax[torch]', or use .safetensors" in found
    (found,) = fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'out.pt'}")
    assert found.startswith(f"--output: {tmp_path / 'out.pt'}: .pt files need the package torch")


class Touch:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    trap, path = tmp_path / "trap", tmp_path / "G.pth"
    for held in (Touch(trap), {"model.model.0.weight": torch.zeros(1), "more": Touch(trap)}):
        for new in (True, False):
            torch.save(held, path, _use_new_zipfile_serialization=new)
            (found,) = refused(capsys, tmp_path, path)
            assert f"--input: {path}: refused: to load it would run code (posix.mkdir)" in found
            assert "torch.save(net.state_dict(), FILE)" in found
            assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have


def test_torch_files_of_something_else(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "G.pth"

    def complaint(held):
        torch.save(held, path)
        (found,) = refused(capsys, tmp_path, path)
        return found

    assert "refused: to load it would run code (torch.nn." in complaint(torch.nn.Conv2d(1, 1, 1))
    assert "holds a Tensor, not a state dict" in complaint(torch.zeros(3))
    assert "'epoch' is a int, not a tensor" in complaint({"epoch": 3, "w": torch.zeros(3)})
    assert "'state_dict' is a dict, not a tensor" in complaint({"state_dict": {}})
    assert "is sparse, quantised" in complaint({"w": torch.eye(3).to_sparse()})
    assert "is of complex64" in complaint({"w": torch.zeros(3, dtype=torch.complex64)})
    torch.save({"w": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK nonsense", b"nonsense"):
        path.write_bytes(content)
        (found,) = refused(capsys, tmp_path, path)
        assert f"{path}: not a sound file of weights" in found and "weights_only" not in found


def test_bfloat16_from_torch_is_exact(tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    torch.save({"w": tensor.T}, tmp_path / "w.pt")
    held, notes = weight_files.read(tmp_path / "w.pt")
    assert held["w"].tobytes() == tensor.T.contiguous().float().numpy().tobytes()
    assert notes == [f"{tmp_path / 'w.pt'}: 1 tensors of bfloat16 became float32"]


def test_a_folder_that_is_a_run_is_left_alone(run, gen_file, capsys, tmp_path):
    before = files(run)
    (found,) = fail(capsys, f"--input={gen_file}", f"--workdir={run}", *crop(32))
    assert found == f"--workdir: {run} holds config.json already; use a new folder"
    assert files(run) == before
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (found,) = fail(capsys, f"--input={gen_file}", f"--workdir={tmp_path / 'other'}", *crop(32))
    assert "other holds checkpoints already" in found
    for folder in (gen_file, gen_file / "run"):
        (found,) = fail(capsys, f"--input={gen_file}", f"--workdir={folder}", *crop(32))
        assert found == f"--workdir: {gen_file} is not a folder"


def test_nothing_stays_where_saving_fails(tmp_path, capsys, gen_file, monkeypatch):
    def broken(*args):
        raise checkpoint.CheckpointError("no room")

    monkeypatch.setattr(checkpoint, "save", broken)
    before = files(tmp_path)
    flags = [f"--input={gen_file}", f"--workdir={tmp_path / 'a' / 'b'}", *crop(32)]
    assert fail(capsys, *flags, code=1) == ["no room"]
    assert files(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == [gen_file.name]


def test_a_config_that_does_not_fit(tmp_path, capsys, gen_file):
    found = refused(capsys, tmp_path, gen_file, "--config.loss.gan=-1", "--config.eval.best=l1")
    assert any("eval.best: no such key" in problem for problem in found)
    found = refused(capsys, tmp_path, gen_file, "--config.data.crop_size=30,31")
    assert len(found) == 1 and "data.crop_size: (30, 31) does not fit" in found[0]
    found = refused(capsys, tmp_path, gen_file, "--config=none.py")
    assert len(found) == 1 and "none.py is not a file" in found[0]


def test_colorization_is_suggested_where_it_may_be_meant(tmp_path, capsys):
    config = config_of(data__channels=(1, 2))
    flags = [f"--input={store(tmp_path / 'G.safetensors', drawn(config)[0])}", *crop(32)]
    succeed(*flags, f"--workdir={tmp_path / 'a'}")
    assert "add --config.data.task=colorize" in capsys.readouterr().out
    succeed(*flags, f"--workdir={tmp_path / 'b'}", "--config.data.task=colorize")
    assert "colorize" not in capsys.readouterr().out


def test_where_the_data_lies_may_be_said_later(tmp_path, gen_file):
    succeed(f"--input={gen_file}", f"--workdir={tmp_path / 'run'}", *crop(32),
            "--config.data.path=/nowhere/yet")  # fmt: skip
    assert saved_config(tmp_path / "run").data.path == "/nowhere/yet"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ["--input or --output: one of them is needed"]),
        (["--input=a.pth", "--output=b.pth", "--workdir=w"], ["--input or --output: one of them"]),
        (["--inptu=a.pth"], ["--inptu: no such flag; did you mean --input?", "--input or"]),
        (["--input=a.safetensors"], ["--workdir: needed", "a.safetensors: there is no such file"]),
        (
            ["--input=a.safetensors", "--workdir=w", "--net=D", "--ema", "--config.a.b=3"],
            ["--net: means nothing beside --input", "--ema: means nothing", "a.b: no such key",
             "there is no such file"],
        ),
        (
            ["--output=a.safetensors", "--workdir=w", "--discriminator=d", "--config.seed=3",
             "--net=g", "--step=last"],
            ["--discriminator: means nothing beside --output", "--config.seed: means nothing",
             "--net: 'g' is not one of G, D", "--step: 'last' is not a step",
             "w holds no config.json"],
        ),
    ],
)  # fmt: skip
def test_command_lines(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    found = fail(capsys, *argv)
    assert len(found) == len(says)
    for problem, part in zip(found, says, strict=True):
        assert part in problem


def test_help(capsys):
    assert convert.main(["--help"]) == 0
    assert "python -m p2p_jax.convert --input=" in capsys.readouterr().out


# --- refusals on the way out ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "changes", "says"),
    [
        ("G", {"G__name": "unet_upsample"}, f"{G}name: 'unet_upsample' is not unet or resnet"),
        ("G", {"G__name": "encoder_decoder"}, f"{G}name: 'encoder_decoder' is not"),
        ("G", {"G__upsample": "nearest"}, f"{G}upsample: 'nearest'; the layout knows deconv"),
        ("G", {"G__upsample": "bilinear", "G__name": "resnet"}, f"{G}upsample: 'bilinear'"),
        ("G", {"G__upsample": "pixel_shuffle"}, f"{G}upsample: 'pixel_shuffle'"),
        ("G", {"G__innermost_norm": "yes"}, f"{G}innermost_norm: 'yes'"),
        ("G", {"G__skip_activation": "leaky"}, f"{G}skip_activation: 'leaky'"),
        ("G", {"G__slope": 0.3}, f"{G}slope: 0.3; the reference's is 0.2"),
        ("G", {"G__noise": 1}, f"{G}noise: 1; the reference draws none"),
        ("G", {"G__norm": "group"}, f"{G}norm: 'group'; the layout knows"),
        ("G", {"G__norm": "layer"}, f"{G}norm: 'layer'; the layout knows"),
        ("G", {"model__norm_eps": 1e-3}, "model.norm_eps: 0.001; the reference's is 1e-05"),
        ("G", {"G__bias": "all"}, f"{G}bias: 'all'; the reference's, with this norm, is 'last'"),
        ("G", {"G__bias": "unnormed"}, f"{G}bias: 'unnormed'; the reference's"),
        ("G", {"G__bias": "last", "G__norm": "instance"}, f"{G}bias: 'last'; the reference's, with "
         "this norm, is 'all'"),
        ("D", {"D__scales": 2}, f"{D}scales: 2; the layout has one"),
        ("D", {"D__spectral": True}, f"{D}spectral: True"),
        ("D", {"D__slope": 0.3}, f"{D}slope: 0.3; the reference's is 0.2"),
        ("D", {"D__norm": "layer"}, f"{D}norm: 'layer'; the layout knows"),
        ("D", {"model__norm_eps": 1e-3}, "model.norm_eps: 0.001; the reference's is 1e-05"),
        ("D", {"D__bias": "last"}, f"{D}bias: 'last'; the reference's, with this norm, is 'ends'"),
        ("D", {"D__bias": "unnormed", "D__name": "pixel"}, f"{D}bias: 'unnormed'; the reference's,"
         " with this norm, is 'first'"),
    ],
)  # fmt: skip
def test_networks_that_the_layout_cannot_express(net, changes, says):
    (found,) = export.refusals(config_of(**changes), net)
    assert found.startswith(says)


@pytest.mark.parametrize(
    ("net", "changes"),
    [
        ("G", {}), ("D", {}), ("G", {"D__scales": 2, "D__slope": 0.3, "D__norm": "layer"}),
        ("D", {"G__name": "unet_upsample", "G__slope": 0.3}), ("G", {"G__bias": "last"}),
        ("D", {"D__bias": "unnormed"}), ("D", {"D__layers": 0}), ("G", {"G__upsample": "deconv"}),
        ("G", {"G__innermost_norm": "no", "G__skip_activation": "relu"}),
        ("G", {"G__name": "resnet", "G__slope": 0.3, "G__skip_activation": "leaky"}),
        ("G", {"G__norm": "none", "model__norm_eps": 1e-3}),
        ("G", {"G__norm": "instance_affine"}),
        ("G", {"G__norm": "instance_affine", "G__bias": "all"}),
        ("G", {"G__norm": "instance", "G__bias": "all"}),
    ],
)  # fmt: skip
def test_networks_that_it_can(net, changes):
    config = config_of(**changes)
    assert export.refusals(config, net) == []
    (held,) = drawn(config, net)
    assert all(v.dtype == np.float32 for k, v in held.items() if not k.endswith(COUNTER))


def test_every_reason_is_given(tmp_path, capsys):
    from p2p_jax.report import write_json

    config = config_of(G__name="unet_upsample", G__slope=0.3, G__noise=2, G__norm="group",
                       G__skip_activation="leaky", model__norm_eps=1e-3)  # fmt: skip
    write_json(tmp_path / "config.json", config.to_dict())
    out = tmp_path / "G.safetensors"
    found = fail(capsys, f"--workdir={tmp_path}", f"--output={out}", "--ema")
    keys = [f"{G}name", f"{G}skip_activation", f"{G}slope", f"{G}noise", f"{G}norm",
            "model.norm_eps", "--ema"]  # fmt: skip
    assert [problem.split(":")[0] for problem in found] == keys and not out.exists()


@pytest.mark.parametrize(
    ("net", "changes", "says"),
    [
        ("G", {"G__depth": 8, "G__dropout": (2, 3, 4), "G__base_features": 64},
         "--netG unet_256 --norm batch --ngf 64 --input_nc 3 --output_nc 3 --direction AtoB, with "
         "dropout"),
        ("G", {"G__depth": 8, "G__dropout": (1, 2, 3)}, "(2, 3, 4), this network in (1, 2, 3)"),
        ("G", {"G__name": "resnet"}, "--netG resnet_9blocks"),
        ("G", {"G__name": "resnet"}, "--no_dropout"),
        ("G", {"G__name": "resnet", "G__blocks": 4}, "ResnetGenerator(n_blocks=4)"),
        ("G", {"G__depth": 6}, "UnetGenerator(num_downs=6)"),
        ("G", {"data__task": "colorize"}, "--input_nc 1 --output_nc 2 --model colorization"),
        ("D", {"data__task": "colorize", "D__conditional": False}, "made for 2 channels"),
        ("G", {"G__depth": 4}, "its U-Nets have at least 5 levels, not 4"),
        ("G", {"G__depth": 5, "G__features": (4, 4, 4, 4, 4)}, "these are (4, 4, 4, 4, 4)"),
        ("G", {"G__norm": "instance_affine"}, "InstanceNorm2d(affine=True), its convolutions made "
         "with use_bias=False"),
        ("D", {"D__layers": 3, "data__direction": "BtoA"}, "--netD basic --norm batch --ndf 2 "
         "--input_nc 3 --output_nc 3 --direction BtoA"),
        ("D", {"D__layers": 5}, "--netD n_layers --n_layers_D 5"),
        ("D", {"D__layers": 0}, "--netD pixel"),
        ("D", {"D__conditional": False}, "the reference's is to be made for 3 channels"),
    ],
)  # fmt: skip
def test_what_the_reference_must_be_told(net, changes, says):
    assert says in "\n".join(export.hints(config_of(**changes), net))


def test_an_output_that_exists_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    (found,) = fail(capsys, f"--workdir={run}", f"--output={out}")
    assert found == f"--output: {out} exists already; use another name"
    assert out.read_text() == "mine"
    (found,) = fail(capsys, f"--workdir={run}", f"--output={tmp_path / 'out.onnx'}")
    assert "out.onnx: must end in .pth, .pt or .safetensors" in found


def test_steps_that_are_not_there(run, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    (found,) = fail(capsys, f"--workdir={run}", f"--output={out}", "--step=7")
    assert found == f"--workdir: {run} holds no checkpoint of step 7; there are 0"
    (found,) = fail(capsys, f"--workdir={run}", f"--output={out}", "--net=D", "--ema")
    assert "--ema: there are averaged weights of the generator alone" in found
    (found,) = fail(capsys, f"--workdir={run}", f"--output={out}", "--ema")
    assert "--ema: the run keeps no averaged weights" in found
    succeed(f"--workdir={run}", f"--output={out}", "--step=0")


def test_a_layout_without_a_place_for_an_array():
    with pytest.raises(ValueError, match="no place for params/enc9/conv/kernel"):
        layout(Network("unet", 2), ["params/enc1/conv/kernel", "params/enc9/conv/kernel"])


def test_transforms_are_inverses():
    for config in (config_of(), config_of(G__name="resnet", G__blocks=1)):
        tensors = clean(drawn(config)[0])[0]
        network = recognise(tensors)
        assert network is not None
        state = abstract_state(make_gan(config), mesh.make_mesh(1))
        tree = {"params": state.gen.params, "stats": state.gen.stats}
        shapes = {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}
        entries = layout(network, shapes)
        arrays = to_flax(tensors, entries, shapes)
        assert {path: array.shape for path, array in arrays.items()} == shapes
        assert_same_arrays(clean(to_torch(arrays, entries))[0], tensors)


# --- what a converted run does -------------------------------------------------------------------


@pytest.mark.slow
def test_a_converted_run_is_evaluated_and_trained(run, tmp_path, capsys):
    synthetic = ["--config.data.source=synthetic", "--config.eval.examples=2"]
    assert main.main(["--mode=eval", f"--workdir={run}", *synthetic]) == 0
    assert "restored the checkpoint of step 0" in capsys.readouterr().out
    assert (run / "eval" / "val" / "0" / "metrics.json").is_file()
    _, before, _ = networks(run)
    flags = ["--config.train.steps=2", "--config.mesh.devices=1", "--config.data.max_examples=4"]
    flags += ["--config.seed=7"]  # all that is random begins with the training
    assert main.main([f"--workdir={run}", *synthetic, *flags]) == 0
    assert "resumed at step 0 of 2" in capsys.readouterr().out
    assert checkpoints(run) == ["0", "2"]
    key = jax.random.key_data(jax.random.key(7, impl="threefry2x32"))
    assert np.array_equal(arrays(run, 2)["train/key"], key)
    assert_same_arrays(arrays_of(before), arrays_of(networks(run, 0)[1]))
    for step, same in (("0", True), ("2", False)):
        out = tmp_path / f"{step}.safetensors"
        succeed(f"--workdir={run}", f"--output={out}", f"--step={step}")
        there = safetensors.numpy.load_file(out)
        given = safetensors.numpy.load_file(tmp_path / "latest_net_G.safetensors")
        equal = [np.array_equal(there[key], given[key]) for key in given if COUNTER not in key]
        assert all(equal) if same else not any(equal)


@pytest.mark.slow
def test_a_trained_run_is_written_and_read_back(tmp_path):
    workdir, _ = finished()
    paths = {}
    for name, flags in {"G": ["--net=G"], "D": ["--net=D"], "ema": ["--ema"]}.items():
        paths[name] = tmp_path / f"{name}.safetensors"
        succeed(f"--workdir={workdir}", f"--output={paths[name]}", *flags)
    held = {name: safetensors.numpy.load_file(path) for name, path in paths.items()}
    key = "model.model.0.weight"
    assert not np.array_equal(held["G"][key], held["ema"][key])
    again = tmp_path / "again"
    succeed(f"--input={paths['G']}", f"--discriminator={paths['D']}", f"--workdir={again}",
            f"--config={Path(__file__).resolve().parent / 'running.py'}")  # fmt: skip
    for one, other in zip(networks(workdir)[1:], networks(again)[1:], strict=True):
        assert_same_arrays(arrays_of(one), arrays_of(other))
    for net in "GD":
        out = tmp_path / "again" / f"{net}.safetensors"
        succeed(f"--workdir={again}", f"--output={out}", f"--net={net}")
        assert out.read_bytes() == paths[net].read_bytes()
