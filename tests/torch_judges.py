"""The networks that judge pictures, in PyTorch, of any width; written from their papers' layouts.

Keys are those of torchvision's and LPIPS's state dicts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Basic(nn.Module):
    def __init__(self, given, out, size=1, **options):
        super().__init__()
        self.conv = nn.Conv2d(given, out, size, bias=False, **options)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def chain(block, x, *names):
    for name in names:
        x = getattr(block, name)(x)
    return x


def around(size):
    return {"size": size, "padding": tuple(n // 2 for n in size)}


class Block(nn.Module):
    def __init__(self, given, width, pooling="average"):
        super().__init__()
        self.given, self.width, self.pooling = given, width, pooling
        self.build()

    def add(self, name, given, out, **options):
        setattr(self, name, Basic(given, out, **options))

    def pool(self, x):
        if self.pooling == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.pooling == "padded average")


class A(Block):
    pooled = 32

    def build(self):
        w, given = self.width, self.given
        self.add("branch1x1", given, w(64))
        self.add("branch5x5_1", given, w(48))
        self.add("branch5x5_2", w(48), w(64), size=5, padding=2)
        self.add("branch3x3dbl_1", given, w(64))
        self.add("branch3x3dbl_2", w(64), w(96), size=3, padding=1)
        self.add("branch3x3dbl_3", w(96), w(96), size=3, padding=1)
        self.add("branch_pool", given, w(self.pooled))
        self.out = w(64) + w(64) + w(96) + w(self.pooled)

    def forward(self, x):
        five = chain(self, x, "branch5x5_1", "branch5x5_2")
        three = chain(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(self.pool(x))], 1)


class A64(A):
    pooled = 64


class B(Block):
    def build(self):
        w, given = self.width, self.given
        self.add("branch3x3", given, w(384), size=3, stride=2)
        self.add("branch3x3dbl_1", given, w(64))
        self.add("branch3x3dbl_2", w(64), w(96), size=3, padding=1)
        self.add("branch3x3dbl_3", w(96), w(96), size=3, stride=2)
        self.out = w(384) + w(96) + given

    def forward(self, x):
        three = chain(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], 1)


class C(Block):
    inner = 128

    def build(self):
        w, given, c = self.width, self.given, self.width(self.inner)
        wide, tall = around((1, 7)), around((7, 1))
        self.add("branch1x1", given, w(192))
        self.add("branch7x7_1", given, c)
        self.add("branch7x7_2", c, c, **wide)
        self.add("branch7x7_3", c, w(192), **tall)
        self.add("branch7x7dbl_1", given, c)
        self.add("branch7x7dbl_2", c, c, **tall)
        self.add("branch7x7dbl_3", c, c, **wide)
        self.add("branch7x7dbl_4", c, c, **tall)
        self.add("branch7x7dbl_5", c, w(192), **wide)
        self.add("branch_pool", given, w(192))
        self.out = 4 * w(192)

    def forward(self, x):
        single = chain(self, x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
        double = chain(self, x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(self.pool(x))], 1)


class C160(C):
    inner = 160


class C192(C):
    inner = 192


class D(Block):
    def build(self):
        w, given = self.width, self.given
        self.add("branch3x3_1", given, w(192))
        self.add("branch3x3_2", w(192), w(320), size=3, stride=2)
        self.add("branch7x7x3_1", given, w(192))
        self.add("branch7x7x3_2", w(192), w(192), **around((1, 7)))
        self.add("branch7x7x3_3", w(192), w(192), **around((7, 1)))
        self.add("branch7x7x3_4", w(192), w(192), size=3, stride=2)
        self.out = w(320) + w(192) + given

    def forward(self, x):
        three = chain(self, x, "branch3x3_1", "branch3x3_2")
        seven = chain(self, x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class E(Block):
    def build(self):
        w, given = self.width, self.given
        self.add("branch1x1", given, w(320))
        self.add("branch3x3_1", given, w(384))
        self.add("branch3x3_2a", w(384), w(384), **around((1, 3)))
        self.add("branch3x3_2b", w(384), w(384), **around((3, 1)))
        self.add("branch3x3dbl_1", given, w(448))
        self.add("branch3x3dbl_2", w(448), w(384), size=3, padding=1)
        self.add("branch3x3dbl_3a", w(384), w(384), **around((1, 3)))
        self.add("branch3x3dbl_3b", w(384), w(384), **around((3, 1)))
        self.add("branch_pool", given, w(192))
        self.out = w(320) + 4 * w(384) + w(192)

    def forward(self, x):
        single = self.branch3x3_1(x)
        double = chain(self, x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*parts, self.branch_pool(self.pool(x))], 1)


class Inception(nn.Module):
    """FID's; with `torchvision`, the poolings as they are there."""

    def __init__(self, divide=1, torchvision=False):
        super().__init__()

        def w(n):
            return n // divide

        self.Conv2d_1a_3x3 = Basic(3, w(32), 3, stride=2)
        self.Conv2d_2a_3x3 = Basic(w(32), w(32), 3)
        self.Conv2d_2b_3x3 = Basic(w(32), w(64), 3, padding=1)
        self.Conv2d_3b_1x1 = Basic(w(64), w(80), 1)
        self.Conv2d_4a_3x3 = Basic(w(80), w(192), 3)
        kinds = {"5b": A, "5c": A64, "5d": A64, "6a": B, "6b": C, "6c": C160, "6d": C160}
        kinds |= {"6e": C192, "7a": D, "7b": E, "7c": E}
        given, self.names = w(192), [f"Mixed_{name}" for name in kinds]
        for name, kind in kinds.items():
            pooling = "padded average" if torchvision else "max" if name == "7c" else "average"
            block = kind(given, w, pooling)
            setattr(self, f"Mixed_{name}", block)
            given = block.out
        self.fc = nn.Linear(given, 8)
        randomise(self)

    def forward(self, x):
        """Features of `[b, 3, h, w]` in [0, 1]."""
        x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        x = chain(self, 2 * x - 1, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        x = chain(self, F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        return chain(self, F.max_pool2d(x, 3, 2), *self.names).mean((2, 3))


ALEX = ((64, 11, 4, 2), "R", 3, (192, 5, 1, 2), "R", 3, (384,), "R", (256,), "R", (256,), "R")
VGG = tuple(
    step
    for i, (n, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for step in ((2,) if i else ()) + ((n,), "R") * count
)
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


class Lpips(nn.Module):
    """Version 0.1."""

    def __init__(self, backbone, divide=1):
        super().__init__()
        layers, given, self.taps = [], 3, TAPS[backbone]
        for step in {"alex": ALEX, "vgg": VGG}[backbone]:
            if step == "R":
                layers.append(nn.ReLU())
            elif isinstance(step, int):
                layers.append(nn.MaxPool2d(step, 2))
            else:
                out, size, stride, padding = (*step, *(3, 1, 1)[len(step) - 1 :])
                layers.append(nn.Conv2d(given, out // divide, size, stride, padding))
                given = out // divide
        self.features = nn.Sequential(*layers)
        for i, tap in enumerate(self.taps):
            out = [x for x in layers[:tap] if isinstance(x, nn.Conv2d)][-1].out_channels
            line = nn.Conv2d(out, 1, 1, bias=False)
            setattr(self, f"lin{i}", nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), line)}))
        randomise(self)
        for i in range(len(self.taps)):
            getattr(self, f"lin{i}")["model"][1].weight.data.abs_()

    def parts(self):
        """State dicts of the linear layers and of the backbone, in numpy."""
        state = {key: value.numpy() for key, value in self.state_dict().items()}
        linear = {key: value for key, value in state.items() if key.startswith("lin")}
        return linear, {key: value for key, value in state.items() if key not in linear}

    def forward(self, fake, target):
        """Of `[b, 3, h, w]` in [0, 1]."""
        total = 0
        shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
        x, y = ((2 * z - 1 - shift) / scale for z in (fake, target))
        for place, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if place in self.taps:
                i = self.taps.index(place)
                unit = [z / (z.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
                line = getattr(self, f"lin{i}")["model"]
                total = total + line((unit[0] - unit[1]) ** 2).mean((1, 2, 3))
        return total


def randomise(module, seed=0):
    """Weights that keep activations of about one size; norms that do something."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, generator=rng)
                if layer.bias is not None:
                    layer.bias.normal_(0, 0.2, generator=rng)
            elif isinstance(layer, nn.BatchNorm2d):
                for tensor, low, high in (
                    (layer.weight, 0.7, 1.3),
                    (layer.bias, -0.2, 0.3),
                    (layer.running_mean, -0.3, 0.3),
                    (layer.running_var, 0.7, 1.3),
                ):
                    tensor.uniform_(low, high, generator=rng)
    module.eval().requires_grad_(False)
