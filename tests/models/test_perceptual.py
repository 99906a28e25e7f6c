"""LPIPS against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import quick_jit

from p2p_jax.metrics import LPIPS_SIZE
from p2p_jax.models import perceptual

torch = pytest.importorskip("torch")
torch_judges = pytest.importorskip("torch_judges")


def pairs(size, n=3):
    """The same, a little noise, another image."""
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 1, (n, *size, 3))
    fake = np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1)
    fake[0], fake[2] = target[0], rng.uniform(0, 1, (*size, 3))
    return fake.astype("f"), target.astype("f")


@pytest.mark.parametrize(
    "backbone,size",
    [("alex", (64, 48)), ("alex", (LPIPS_SIZE["alex"],) * 2), ("vgg", (LPIPS_SIZE["vgg"], 35))],
)
def test_distances_are_those_of_pytorch(backbone, size):
    net, (fake, target) = torch_judges.Lpips(backbone, divide=8), pairs(size)
    linear, network = net.parts()
    params = perceptual.convert(network, linear, backbone)
    got = quick_jit(lambda *args: perceptual.distance(*args, backbone))(params, fake, target)
    wanted = net(*(torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in (fake, target))).numpy()
    assert np.allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert got[0] == 0 and 0.01 < got[1] < got[2]


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_images_that_poolings_leave_nothing_of(backbone):
    net = torch_judges.Lpips(backbone, divide=8)
    small = torch.zeros(1, 3, 64, LPIPS_SIZE[backbone] - 1)
    with pytest.raises(RuntimeError, match="too small"):
        net(small, small)


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_keys_and_shapes_are_those_of_the_state_dict(backbone):
    linear, network = torch_judges.Lpips(backbone).parts()
    shapes = perceptual.linear_shapes(backbone), perceptual.backbone_shapes(backbone)
    assert shapes == tuple({k: v.shape for k, v in part.items()} for part in (linear, network))
