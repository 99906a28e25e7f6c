"""The pix2pix training step in PyTorch, in the forms that its users run, to compare ours with.

Networks, losses and optimizer are those of our default configuration, but for the norm: here it is
ordinary batch norm over the whole batch, as in every PyTorch pix2pix, where ours defaults to
statistics per image. At batch size 1 the two are the same, and above it batch norm is not slower
for PyTorch. Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2p_jax.bench import torch_forms
from p2p_jax.bench.torch_forms import TorchForm, available, forms, version

if TYPE_CHECKING:
    import torch

__all__ = [
    "PAPER",
    "Sizes",
    "TorchForm",
    "TorchInference",
    "TorchTraining",
    "available",
    "forms",
    "version",
]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large networks and images are.

    Attributes:
      image: height and width; a multiple of 2**depth.
      depth: of the U-Net.
      base_features: of both networks.
      layers: of the PatchGAN, of stride 2.
    """

    image: int = 256
    depth: int = 8
    base_features: int = 64
    layers: int = 3


PAPER = Sizes()


class TorchTraining:
    """Training steps on data that is on the device.

    A step: the generator once; the discriminator on real and fake, and its update; the
    generator's update, through the updated discriminator. Dropout draws from torch's own
    generator of random numbers; weights and data are drawn from `seed`.

    Args:
      form: how to run it. A compiled one compiles in its first steps: with `reduce-overhead` in
        the first three.
      batch_size: images a step.
      device: `cpu` or `cuda`.
      sizes: of networks and images.
      seed: of weights and data.

    Attributes:
      generator: the U-Net.
      discriminator: the PatchGAN.
      source: `[b, 3, h, w]`, uniform in [-1, 1].
      target: as `source`.

    Raises:
      ValueError: what does not fit together, all at once.
      ModuleNotFoundError: torch is not installed.
    """

    def __init__(
        self, form: TorchForm, batch_size: int, device: str, sizes: Sizes = PAPER, seed: int = 0
    ) -> None:
        torch_forms.check(form, batch_size, device, sizes.image, sizes.depth)
        nets = _nets()
        self._form, self._device = form, device
        generator = nets.UNet(sizes.depth, sizes.base_features)
        self.generator = _placed(generator, form, device, seed)
        discriminator = nets.PatchGan(sizes.layers, sizes.base_features)
        self.discriminator = _placed(discriminator, form, device, seed + 1)
        self._adam_g = torch_forms.adam(self.generator.parameters())
        self._adam_d = torch_forms.adam(self.discriminator.parameters())
        self.source, self.target = torch_forms.images(
            2, batch_size, sizes.image, device, form, seed + 2
        )
        self._translate = torch_forms.compiled(nets.translate, form)
        self._disc_losses = torch_forms.compiled(nets.disc_losses, form)
        self._gen_losses = torch_forms.compiled(nets.gen_losses, form)
        self._losses: dict[str, torch.Tensor] = {}

    def steps(self, count: int) -> None:
        """Does `count` steps and waits until they are done."""
        _repeated(self._step, count, self._form, self._device)

    def losses(self) -> dict[str, float]:
        """Of the last step, unweighted: `disc`, both sides added up, `gen_gan` and `gen_l1`.

        Raises:
          RuntimeError: no step was done.
        """
        if not self._losses:
            raise RuntimeError("no losses before the first step: call steps(1)")
        return {name: loss.item() for name, loss in self._losses.items()}

    def _step(self) -> None:
        self._losses = {}  # in graph memory, which the next step overwrites
        torch_forms.begin(self._form)
        with torch_forms.autocast(self._form, self._device):
            fake = self._translate(self.generator, self.source)
        disc = self._update_discriminator(fake.detach())
        gan, l1 = self._update_generator(fake)
        self._losses = {"disc": disc, "gen_gan": gan, "gen_l1": l1}

    def _update_discriminator(self, fake: torch.Tensor) -> torch.Tensor:
        with torch_forms.autocast(self._form, self._device):
            loss, disc = self._disc_losses(self.discriminator, self.source, self.target, fake)
        loss.backward()
        _apply(self._adam_d)
        return disc

    def _update_generator(self, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.discriminator.requires_grad_(False)
        with torch_forms.autocast(self._form, self._device):
            loss, gan, l1 = self._gen_losses(self.discriminator, self.source, self.target, fake)
        loss.backward()
        self.discriminator.requires_grad_(True)
        _apply(self._adam_g)
        return gan, l1


class TorchInference:
    """The generator alone, in inference mode, on data that is on the device.

    It normalises by the statistics of the batch, as the paper does at test time; dropout is off.
    Arguments and errors are those of `TorchTraining`.

    Attributes:
      generator: the U-Net.
      source: `[b, 3, h, w]`, uniform in [-1, 1].
    """

    def __init__(
        self, form: TorchForm, batch_size: int, device: str, sizes: Sizes = PAPER, seed: int = 0
    ) -> None:
        torch_forms.check(form, batch_size, device, sizes.image, sizes.depth)
        nets = _nets()
        self._form, self._device = form, device
        generator = nets.UNet(sizes.depth, sizes.base_features, running=False).eval()
        self.generator = _placed(generator, form, device, seed)
        (self.source,) = torch_forms.images(1, batch_size, sizes.image, device, form, seed + 2)
        self._translate = torch_forms.compiled(nets.translate, form)

    def steps(self, count: int) -> None:
        """Translates the batch `count` times and waits until that is done."""
        with torch_forms.torch_module().inference_mode():
            _repeated(self._step, count, self._form, self._device)

    def _step(self) -> None:
        torch_forms.begin(self._form)
        with torch_forms.autocast(self._form, self._device):
            self._translate(self.generator, self.source)


def _nets() -> Any:
    return importlib.import_module("p2p_jax.bench.torch_nets")


def _placed(net: Any, form: TorchForm, device: str, seed: int) -> Any:
    """A network with the paper's weights, on the device."""
    return torch_forms.placed(_nets().initialised(net.to(device), seed), form)


def _repeated(step: Callable[[], None], count: int, form: TorchForm, device: str) -> None:
    """Does so many steps as the form has them, and waits until they are done."""
    with torch_forms.settings(form, device):
        for _ in range(count):
            step()
    torch_forms.wait(device)


def _apply(optimizer: Any) -> None:
    """Updates by the gradients, and frees them before CUDA graphs overwrite them."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
