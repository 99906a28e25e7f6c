"""Pairs of images: where they come from, and how they reach the training step."""

from p2p_jax.data.fitting import PREPROCESS, Fit
from p2p_jax.data.frames import EvalFrames, Frames
from p2p_jax.data.labels import read_palette
from p2p_jax.data.order import IndexFeed, order
from p2p_jax.data.pairs import (
    Batch,
    DataError,
    DataOptions,
    Form,
    Pair,
    PairSource,
    Source,
    Splits,
)
from p2p_jax.data.pipeline import Feed, HostCache, eval_batches
from p2p_jax.data.sources import SOURCES

__all__ = [
    "PREPROCESS",
    "SOURCES",
    "Batch",
    "DataError",
    "DataOptions",
    "EvalFrames",
    "Feed",
    "Fit",
    "Form",
    "Frames",
    "HostCache",
    "IndexFeed",
    "Pair",
    "PairSource",
    "Source",
    "Splits",
    "eval_batches",
    "order",
    "read_palette",
]
