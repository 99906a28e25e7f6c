"""What a config says of the networks; the keys are explained in `config.base`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class GeneratorOptions:
    """Of a generator, beside its `layers.Style`."""

    name: str
    depth: int
    base_features: int
    features: tuple[int, ...]
    blocks: int
    upsample: str
    innermost_norm: str
    skip_activation: str
    noise: int
    dropout: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DiscriminatorOptions:
    """Of a discriminator, beside its `layers.Style`."""

    name: str
    layers: int
    base_features: int
    conditional: bool
