"""Inception's features against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick_jit, rel

from p2p_jax import judges
from p2p_jax.models import inception

torch = pytest.importorskip("torch")
torch_judges = pytest.importorskip("torch_judges")


def images(size, n=2):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 1, (n, 8, 8, 3))
    big = np.kron(coarse, np.ones((1, -(-size[0] // 8), -(-size[1] // 8), 1)))
    return (big[:, : size[0], : size[1]] * 0.8 + rng.uniform(0, 0.2, (n, *size, 3))).astype("f")


def from_torch(net, x):
    return net(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()


def test_features_are_those_of_pytorch():
    # Enlarged along one axis, and made smaller, without antialiasing, along the other.
    net, x = torch_judges.Inception(divide=16), images((50, 420))
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    got = quick_jit(inception.features)(inception.convert(state), x)
    wanted = from_torch(net, x)
    assert got.shape == (2, inception.FEATURES // 16) and wanted.std(1).min() > 0.1
    assert rel(got, wanted) < 1e-4
    # And not those of torchvision's network, with the same weights.
    other = torch_judges.Inception(divide=16, torchvision=True)
    other.load_state_dict(net.state_dict())
    assert rel(got, from_torch(other, x)) > 1e-2


def test_keys_and_shapes_are_those_of_the_state_dict():
    net = torch_judges.Inception()
    state = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    left = {key for key in state if not key.startswith("fc.") and "num_batches" not in key}
    assert inception.shapes() == {key: state[key] for key in left}


@pytest.mark.slow
def test_features_of_a_file_of_full_width(tmp_path):
    net, x = torch_judges.Inception(), images((64, 64))
    state = net.state_dict() | {"AuxLogits.conv0.conv.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "inception.pth")
    judge = judges.load(str(tmp_path / "inception.pth")).inception
    got = quick_jit(inception.features)(judge.params, x)
    assert got.shape == (2, 2048)
    assert rel(got, from_torch(net, x)) < 1e-4
