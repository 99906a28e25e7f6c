"""Pairs of images: where they come from, and how they reach the training step."""

from p2p_jax.data.pairs import (
    Batch,
    DataError,
    DataOptions,
    Pair,
    PairSource,
    Source,
    Splits,
)
from p2p_jax.data.pipeline import Feed, HostCache, eval_batches, order
from p2p_jax.data.sources import SOURCES

__all__ = [
    "SOURCES",
    "Batch",
    "DataError",
    "DataOptions",
    "Feed",
    "HostCache",
    "Pair",
    "PairSource",
    "Source",
    "Splits",
    "eval_batches",
    "order",
]
