"""What network a state dict of the published PyTorch layout holds, told by its tensors alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from p2p_jax.config import ConfigError
from p2p_jax.weights.layout import COUNTER, Arrays, Layer, Network, layers, unet_block

GENERATOR, DISCRIMINATOR = "model.generator.", "model.discriminator."
SLOPE, EPS = 0.2, 1e-5  # the reference's, which it has no options for
_CLASSES = "UnetGenerator, ResnetGenerator, NLayerDiscriminator, PixelDiscriminator"
_PREFIX = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
# Which convolutions have biases there whatever the norm, as `bias` of a config names it.
_ALWAYS = {"unet": "last", "resnet": "last", "patchgan": "ends", "pixel": "first"}


def reference_dropout(depth: int) -> tuple[int, ...]:
    """The decoder blocks, from the innermost, that drop half in the reference's U-Net of a depth.

    Those with eight times the first width on both sides, save the innermost.
    """
    return tuple(range(2, depth - 3))


def settled_bias(kind: str, norm: str, bias: str) -> str:
    """What `auto` means for a network; anything else is left alone."""
    if bias != "auto":
        return bias
    return "all" if norm == "instance" else _ALWAYS[kind]


def clean(tensors: Arrays) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors without wrappers' prefixes, counters, and statistics that mean nothing.

    Returns:
      Tensors by key, and what the user should know.

    Raises:
      ConfigError: keys that are the same but for their prefixes.
    """
    kept: dict[str, np.ndarray] = {}
    problems = []
    for name, tensor in tensors.items():
        key = _PREFIX.sub("", name)
        if key in kept:
            problems.append(f"{key}: there twice, once as {name}")
        elif not f".{key}".endswith(COUNTER):
            kept[key] = tensor
    if problems:
        raise ConfigError(problems)
    stray = [key for key in kept if key.endswith((".running_mean", ".running_var"))]
    # Before PyTorch 0.4, instance norm without parameters kept statistics that it never used.
    if stray and not any(f"{key.rpartition('.')[0]}.weight" in kept for key in stray):
        kept = {key: tensor for key, tensor in kept.items() if key not in stray}
        return kept, [f"{len(stray)} running statistics of norms without parameters were left out"]
    return kept, []


def recognise(tensors: Arrays) -> Network | None:
    """The network that keys and ranks tell of, if any."""
    blocks = _consecutive(tensors, lambda k: f"model.{9 + k}.conv_block.")
    if blocks:
        second = [key for key in tensors if key.endswith(".conv_block.6.weight")]
        return Network("resnet", blocks, any(tensors[key].ndim == 4 for key in second))
    depth = _consecutive(tensors, lambda k: f"{unet_block(k - 1)}.")
    if depth > 1:
        return Network("unet", depth)
    if any(key.startswith("net.0.") for key in tensors):
        return Network("pixel", 1)
    numbers = [re.fullmatch(r"model\.(\d+)\.weight", key) for key in tensors]
    convolutions = [int(n[1]) for n in numbers if n and tensors[n[0]].ndim == 4]
    if 0 in convolutions and max(convolutions) >= 5:
        return Network("patchgan", (max(convolutions) - 2) // 3)
    return None


def _consecutive(tensors: Arrays, prefix: Any) -> int:
    """How many of the prefixes 1, 2, ... some key begins with."""
    count = 0
    while any(key.startswith(prefix(count + 1)) for key in tensors):
        count += 1
    return count


def detect_generator(tensors: Arrays) -> tuple[Network, dict[str, Any]]:
    """The generator that cleaned tensors hold.

    Returns:
      What decides its keys, and values of the config's keys. `model.generator.dropout` is among
      them for a resnet only: in a U-Net's tensors it cannot be seen.

    Raises:
      ConfigError: it is none, or too little of one to tell.
    """
    network = _known(tensors, ("unet", "resnet"), "a discriminator; give it as --discriminator")
    convs = layers(network)
    norm = _norm(tensors, convs)
    first, last = _shape(tensors, convs[0]), _shape(tensors, convs[-1])
    values: dict[str, Any] = {
        "data.channels": (first[1], last[1 if network.kind == "unet" else 0]),
        f"{GENERATOR}name": network.kind,
        f"{GENERATOR}base_features": first[0],
        f"{GENERATOR}norm": norm,
        f"{GENERATOR}bias": _bias(tensors, convs, norm),
        f"{GENERATOR}upsample": "auto",
        f"{GENERATOR}noise": 0,
        # What no tensor tells, but those who made them had no choice in.
        f"{GENERATOR}slope": SLOPE,
        "model.norm_eps": EPS,
    }
    if network.kind == "resnet":
        dropped = tuple(range(1, network.size + 1)) if network.dropout else ()
        values |= {f"{GENERATOR}blocks": network.size, f"{GENERATOR}dropout": dropped}
        return network, values
    widths = tuple(_shape(tensors, conv)[0] for conv in convs[: network.size])
    doubling = tuple(first[0] * 2 ** min(k, 3) for k in range(network.size))
    values |= {
        f"{GENERATOR}depth": network.size,
        f"{GENERATOR}features": () if widths == doubling else widths,
        f"{GENERATOR}innermost_norm": "auto",
        f"{GENERATOR}skip_activation": "auto",
    }
    return network, values


def detect_discriminator(
    tensors: Arrays, channels: tuple[int, int]
) -> tuple[Network, dict[str, Any]]:
    """The discriminator that cleaned tensors hold.

    Args:
      tensors: by key.
      channels: of source and target, as the generator has them.

    Returns:
      What decides its keys, and values of the config's keys.

    Raises:
      ConfigError: it is none, too little of one to tell, or one of other channels.
    """
    network = _known(tensors, ("patchgan", "pixel"), "a generator; give it as --input")
    convs = layers(network)
    norm = _norm(tensors, convs)
    features, seen = _shape(tensors, convs[0])[:2]
    source, target = channels
    if seen not in (source + target, target):
        raise ConfigError(
            [
                f"{convs[0].conv}.weight: takes {seen} channels, neither source and target of the "
                f"generator ({source} + {target}) nor target alone ({target})"
            ]
        )
    values: dict[str, Any] = {
        f"{DISCRIMINATOR}name": network.kind,
        f"{DISCRIMINATOR}base_features": features,
        f"{DISCRIMINATOR}conditional": seen != target,
        f"{DISCRIMINATOR}norm": norm,
        f"{DISCRIMINATOR}bias": _bias(tensors, convs, norm),
        f"{DISCRIMINATOR}scales": 1,
        f"{DISCRIMINATOR}spectral": False,
        f"{DISCRIMINATOR}slope": SLOPE,
    }
    if network.kind == "patchgan":
        values[f"{DISCRIMINATOR}layers"] = network.size
    return network, values


def _known(tensors: Arrays, kinds: tuple[str, ...], other: str) -> Network:
    network = recognise(tensors)
    if network is None:
        some = ", ".join(list(tensors)[:3]) or "none"
        raise ConfigError(
            [f"holds no network of the published layouts ({_CLASSES}); its first keys: {some}"]
        )
    if network.kind not in kinds:
        raise ConfigError([f"holds {other}"])
    return network


def _shape(tensors: Arrays, conv: Layer) -> tuple[int, ...]:
    """The shape of a kernel that must be there to tell the rest."""
    key = f"{conv.conv}.weight"
    if key not in tensors:
        raise ConfigError([f"{key}: missing"])
    if tensors[key].ndim != 4:
        raise ConfigError([f"{key}: of shape {list(tensors[key].shape)}, must have 4 axes"])
    return tensors[key].shape


def _norm(tensors: Arrays, convs: list[Layer]) -> str:
    """Which norm: by its parameters and statistics, or by the biases that only one norm wants."""

    def any_of(*names: str) -> bool:
        return any(f"{c.norm}.{name}" in tensors for c in convs if c.norm for name in names)

    if any_of("weight", "bias"):
        return "batch" if any_of("running_mean", "running_var") else "instance_affine"
    return "instance" if _everywhere(tensors, convs) else "none"


def _everywhere(tensors: Arrays, convs: list[Layer]) -> bool:
    """Whether convolutions have biases that not every such network has."""
    return any(f"{c.conv}.bias" in tensors for c in convs if not c.biased)


def _bias(tensors: Arrays, convs: list[Layer], norm: str) -> str:
    return "all" if norm != "instance" and _everywhere(tensors, convs) else "auto"
