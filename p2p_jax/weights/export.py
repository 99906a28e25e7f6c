"""Which networks the published PyTorch layout can express, and what the reference calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from p2p_jax.config import Config
from p2p_jax.models.conv import Policy
from p2p_jax.models.layers import Style, biased
from p2p_jax.networks import make_task
from p2p_jax.weights.detect import (
    DISCRIMINATOR,
    EPS,
    GENERATOR,
    SLOPE,
    reference_dropout,
    settled_bias,
)
from p2p_jax.weights.layout import Network, layers


def network_of(config: Config, net: str) -> Network:
    """What decides the keys of a network that `refusals` has nothing against.

    Args:
      config: of the run.
      net: `G` or `D`.
    """
    gen, disc = config.model.generator, config.model.discriminator
    if net == "D":
        pixel = disc.name == "pixel" or not disc.layers
        return Network("pixel", 1) if pixel else Network("patchgan", disc.layers)
    if gen.name == "resnet":
        return Network("resnet", gen.blocks, bool(gen.dropout))
    return Network("unet", gen.depth)


def refusals(config: Config, net: str) -> list[str]:
    """Why the layout, or the code that reads it, cannot express a network; every reason."""
    return list(_generator(config) if net == "G" else _discriminator(config))


def _generator(config: Config) -> Iterator[str]:
    gen = config.model.generator
    known = gen.name in ("unet", "resnet")
    levels = gen.name != "resnet"
    if not known:
        yield f"{GENERATOR}name: {gen.name!r} is not unet or resnet, which the layout knows"
    if gen.upsample not in ("auto", "deconv"):
        yield f"{GENERATOR}upsample: {gen.upsample!r}; the layout knows deconv alone"
    if levels and gen.innermost_norm == "yes":
        yield f"{GENERATOR}innermost_norm: 'yes'; the layout has no norm there"
    if levels and gen.skip_activation == "leaky":
        yield f"{GENERATOR}skip_activation: 'leaky'; in the reference skips pass ReLU"
    if levels and gen.slope != SLOPE:
        yield f"{GENERATOR}slope: {gen.slope!r}; the reference's is {SLOPE}"
    if gen.noise:
        yield f"{GENERATOR}noise: {gen.noise}; the reference draws none"
    yield from _shared(config, gen, GENERATOR, network_of(config, "G") if known else None)


def _discriminator(config: Config) -> Iterator[str]:
    disc = config.model.discriminator
    if disc.scales != 1:
        yield f"{DISCRIMINATOR}scales: {disc.scales}; the layout has one"
    if disc.spectral:
        yield f"{DISCRIMINATOR}spectral: True; the layout has no place for it"
    if disc.slope != SLOPE:
        yield f"{DISCRIMINATOR}slope: {disc.slope!r}; the reference's is {SLOPE}"
    yield from _shared(config, disc, DISCRIMINATOR, network_of(config, "D"))


def _shared(config: Config, chosen: Any, prefix: str, network: Network | None) -> Iterator[str]:
    if chosen.norm in ("group", "layer"):
        yield f"{prefix}norm: {chosen.norm!r}; the layout knows batch, instance and none"
    if chosen.norm != "none" and config.model.norm_eps != EPS:
        yield f"model.norm_eps: {config.model.norm_eps!r}; the reference's is {EPS}"
    if network is None:
        return
    own = settled_bias(network.kind, chosen.norm, chosen.bias)
    usual = settled_bias(network.kind, chosen.norm, "auto")
    # The reference has no instance norm with parameters; made of its parts it would have all.
    allowed = [usual, "all"] if chosen.norm == "instance_affine" else [usual]
    if _biases(network, own, chosen.norm) not in [
        _biases(network, bias, chosen.norm) for bias in allowed
    ]:
        yield f"{prefix}bias: {chosen.bias!r}; the reference's, with this norm, is {usual!r}"


def _biases(network: Network, bias: str, norm: str) -> list[bool]:
    """Which convolutions have one."""
    style, convs = Style(Policy(), bias=bias), layers(network)
    return [
        biased(style, bool(c.norm) and norm != "none", first=c is convs[0], last=c is convs[-1])
        for c in convs
    ]


def hints(config: Config, net: str) -> list[str]:
    """What the reference must be told to load and use a network, and where it would differ."""
    network, gen = network_of(config, net), config.model.generator
    chosen = gen if net == "G" else config.model.discriminator
    name, notes = _name(config, network)
    norm = {"instance_affine": "instance"}.get(chosen.norm, chosen.norm)
    width = (gen.features or (gen.base_features,))[0] if net == "G" else chosen.base_features
    source, target = make_task(config).channels
    text = f"{name} --norm {norm} --n{'g' if net == 'G' else 'd'}f {width}"
    text += f" --input_nc {source} --output_nc {target}"
    if config.data.task == "colorize":
        text += " --model colorization --dataset_mode colorization"
    else:
        text += f" --direction {config.data.direction}"
    if net == "G":
        text += ", with dropout" if gen.dropout else " --no_dropout"
    if chosen.norm == "instance_affine":
        everywhere = settled_bias(network.kind, chosen.norm, chosen.bias) == "all"
        notes.append(
            "the reference has no option for this norm: it is InstanceNorm2d(affine=True), its "
            f"convolutions made with use_bias={everywhere}"
        )
    if net == "D" and not chosen.conditional:
        notes.append(f"it judges images alone: the reference's is to be made for {target} channels")
    return [f"the reference loads it with {text}", *notes]


def _name(config: Config, network: Network) -> tuple[str, list[str]]:
    """The reference's options for a network, and what they do not say."""
    gen, size = config.model.generator, network.size
    if network.kind == "pixel":
        return "--netD pixel", []
    if network.kind == "patchgan":
        return ("--netD basic" if size == 3 else f"--netD n_layers --n_layers_D {size}"), []
    if network.kind == "resnet":
        usual = size in (6, 9)
        made = f"--netG resnet_{size}blocks" if usual else f"ResnetGenerator(n_blocks={size})"
        return made, []
    notes = []
    if size < 5:
        notes.append(f"its U-Nets have at least 5 levels, not {size}")
    if gen.features:
        notes.append(f"its U-Nets double their widths up to eightfold; these are {gen.features}")
    usual = reference_dropout(size)
    if gen.dropout and sorted(gen.dropout) != list(usual):
        there = f"in the decoder blocks {usual}" if usual else "nowhere at this depth"
        notes.append(f"it drops out {there}, this network in {gen.dropout}")
    known = {8: "--netG unet_256", 7: "--netG unet_128"}
    return known.get(size, f"UnetGenerator(num_downs={size})"), notes
