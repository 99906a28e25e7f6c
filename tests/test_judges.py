"""Files of networks that judge pictures."""

from __future__ import annotations

import hashlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from p2p_jax import judges
from p2p_jax.config import ConfigError
from p2p_jax.models import inception, perceptual


def zeros(shapes):
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def written(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return str(path)


def problems(**files):
    with pytest.raises(ConfigError) as caught:
        judges.load(**files)
    return caught.value.problems


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """The linear layers and the backbone, as files and tensors."""
    folder, rng = tmp_path_factory.mktemp("lpips"), np.random.default_rng(0)
    parts = {}
    for name, shapes in (
        ("alex", perceptual.linear_shapes("alex")),
        ("alexnet", perceptual.backbone_shapes("alex")),
    ):
        tensors = {key: rng.normal(size=shape).astype("f") for key, shape in shapes.items()}
        parts[name] = written(folder / f"{name}.safetensors", tensors), tensors
    return parts


def test_nothing_is_loaded_where_nothing_is_named():
    assert judges.load() == judges.Judges()
    assert judges.load().identity() == {}


def test_lpips_of_two_files(lpips):
    (linear, lin), (network, net) = lpips.values()
    loaded = judges.load(lpips=linear, lpips_network=network)
    assert loaded.inception is None and loaded.backbone == "alex"
    assert np.array_equal(loaded.lpips.params["lin2"], lin["lin2.model.1.weight"].ravel())
    kernel = loaded.lpips.params["3"]["kernel"]
    assert np.array_equal(kernel[1, 2, 3, 4], net["features.3.weight"][4, 3, 1, 2])
    for path in (linear, network):
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        name = path.rpartition("/")[2]
        assert f"{name} (sha256 {digest[:8]})" in loaded.identity()["lpips"]
    assert "AlexNet" in loaded.lpips.about


def test_lpips_by_the_names_of_its_whole_module(lpips, tmp_path):
    """One file for both, with what the module has beside."""
    (linear, lin), (network, net) = lpips.values()
    stages = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    whole = {"scaling_layer.shift": np.zeros((1, 3, 1, 1), "f"), "classifier.1.bias": np.ones(9)}
    whole |= lin | {re.sub(r"^lin(\d)", r"lins.\1", key): value for key, value in lin.items()}
    for key, value in net.items():
        place = int(key.split(".")[1])
        whole[key.replace("features", f"net.slice{stages[place]}")] = value
    lin_path = written(tmp_path / "newer.safetensors", {
        re.sub(r"^lin(\d)", r"lins.\1", key): value for key, value in lin.items()
    })  # fmt: skip
    wanted = judges.load(lpips=linear, lpips_network=network).lpips.params
    del whole["classifier.1.bias"]
    path = written(tmp_path / "whole.safetensors", whole)
    for files in ((path, path), (lin_path, network)):
        got = judges.load(lpips=files[0], lpips_network=files[1]).lpips.params
        assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(wanted)))


def test_what_is_wrong_with_the_files_is_told_at_once(lpips, tmp_path):
    tensors = dict(lpips["alexnet"][1])
    tensors["features.9.weight"] = tensors.pop("features.8.weight")
    tensors["features.10.bias"] = np.zeros(7, "f")
    network = written(tmp_path / "net.safetensors", tensors | {"classifier.1.bias": np.ones(3)})
    absent = str(tmp_path / "absent.safetensors")
    found = problems(inception=absent, lpips=lpips["alexnet"][0], lpips_network=network)
    text = "\n".join(found)
    assert f"{absent}: there is no such file" in text
    for i in range(5):
        assert f"alexnet.safetensors: lacks lin{i}.model.1.weight" in text
    assert "linear layers of LPIPS v0.1 for eval.lpips_backbone=alex" in text
    assert f"{network}: lacks features.8.weight" in text
    assert f"{network}: features.9.weight belongs to no layer" in text
    assert f"{network}: features.10.bias is (7,), not (256,)" in text
    assert f"{network}: wanted is AlexNet in torchvision's layout" in text
    assert "classifier" not in text


def test_files_for_another_backbone(lpips):
    (linear, _), (network, _) = lpips.values()
    text = "\n".join(problems(lpips=linear, lpips_network=network, lpips_backbone="vgg"))
    assert "lin1.model.1.weight is (1, 192, 1, 1), not (1, 128, 1, 1)" in text
    assert "wanted is VGG16" in text and "lacks features.2.weight" in text


def test_lpips_needs_both_files_and_a_known_backbone(lpips):
    (linear, _), (network, _) = lpips.values()
    assert "eval.lpips_network: LPIPS needs both" in problems(lpips=linear)[0]
    assert "eval.lpips: LPIPS needs both" in problems(lpips_network=network)[0]
    assert "'squeeze' must be alex or vgg" in problems(lpips_backbone="squeeze")[0]


def test_inception_of_a_file(tmp_path):
    shapes = inception.shapes()
    tensors = zeros(shapes) | {"Conv2d_1a_3x3.bn.bias": np.full(32, 2, "f")}
    beside = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    beside |= {"fc.weight": np.zeros((2, 2), "f"), "AuxLogits.fc.bias": np.zeros(2, "f")}
    half = {"Mixed_7c.branch1x1.bn.running_var": np.ones(320, np.float16)}
    path = written(tmp_path / "inception.safetensors", tensors | beside | half)
    judge = judges.load(inception=path).inception
    assert len(judge.params) == 94
    assert (judge.params["Conv2d_1a_3x3"]["bias"] == 2).all()
    assert "inception.safetensors (sha256 " in judge.about
    assert "1 tensors of float16 became float32" in judge.about
    assert "not pytorch-fid's own file (6726825d)" in judge.about


def test_inception_of_a_file_of_another_network(lpips):
    found = problems(inception=lpips["alexnet"][0])
    assert len(found) == 22 and "and 460 more" in found[20]
    assert "Conv2d_1a_3x3.conv.weight" in found[0]
    assert "pt_inception-2015-12-05-6726825d.pth" in found[21]
