"""The files that a translation is exported to, and the way back out of them."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import numpy as np
from jax import export

from p2p_jax.exporting.graph import Graph
from p2p_jax.exporting.program import converted
from p2p_jax.exporting.translation import Side, Translation

STABLEHLO, ONNX = "model.stablehlo", "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")
# What each format needs beside what p2p_jax always has.
NEEDS = {"stablehlo": ("flatbuffers",), "safetensors": (), "onnx": ("onnx",)}


def lacking(format_: str) -> list[str]:
    """What is not installed that a format needs."""
    return [
        f"--format: {format_} needs the package {name}; pip install 'p2p_jax[export]'"
        for name in NEEDS[format_]
        if importlib.util.find_spec(name) is None
    ]


def traced(translation: Translation) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Arguments of any batch and of any size that fits, or of the one wanted."""
    if translation.size:
        (batch,) = export.symbolic_shape("b")
        return translation.arguments(batch, translation.size)
    step, least = translation.step, translation.least // translation.step
    limits = [f"h >= {least}", f"w >= {least}"]
    batch, h, w = export.symbolic_shape("b, h, w", constraints=limits)
    return translation.arguments(batch, (step * h, step * w))


def to_stablehlo(translation: Translation) -> bytes:
    """A serialised `export.Exported` for CPU, CUDA and TPU, of any batch."""
    program = export.export(jax.jit(translation.fn), platforms=PLATFORMS)
    return bytes(program(*traced(translation)).serialize())


def to_onnx(translation: Translation) -> bytes:
    """An ONNX model of any batch, its input `images` and its output `translated`.

    Raises:
      NotImplementedError: the network has an operation that ONNX has not, or that nobody has
        written down yet.
      ValueError: dropout is on.
    """
    from onnx import checker

    if translation.seeded:
        raise ValueError("ONNX draws other random numbers: there is no dropout in it")
    program = jax.jit(translation.fn).trace(*traced(translation)).jaxpr
    graph = Graph()
    (made,) = converted(graph, program, _checked_sizes(graph, translation))
    graph.add("Identity", graph.name(made), name="translated")
    about = {
        "sizes": translation.sizes(),
        "images": str(translation.given),
        "translated": str(translation.made),
    }
    model = graph.model(
        [_tensor("images", translation.given, translation)],
        [_tensor("translated", translation.made, translation)],
        about,
    )
    checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _tensor(name: str, side: Side, translation: Translation) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(side.dtype))
    size = translation.size or ("height", "width")
    return helper.make_tensor_value_info(name, kind, ["batch", *size, side.channels])


def _checked_sizes(graph: Graph, translation: Translation) -> str:
    """The input, once it is known that its size fits; what is in the way is named after it.

    Without that, a runtime would stop somewhere in the network, or nowhere.
    """
    shape = graph.add("Shape", "images")

    def side(place: int) -> str:
        return graph.add("Gather", shape, graph.constant(np.array([place], np.int64)), axis=0)

    graph.know_sizes({"b": side(0)})
    if translation.size:
        return "images"
    step = graph.constant(np.array([translation.step], np.int64))
    least = graph.constant(np.array([translation.least // translation.step], np.int64))
    counts = {"h": side(1), "w": side(2)}
    counts = {k: graph.add("Max", graph.add("Div", v, step), least) for k, v in counts.items()}
    graph.know_sizes(counts)
    batch, h, w = (graph.size(name) for name in ("b", "h", "w"))
    channels = graph.constant(np.array([translation.given.channels], np.int64))
    wanted = graph.add(
        "Concat", batch, graph.add("Mul", h, step), graph.add("Mul", w, step), channels, axis=0
    )
    name = f"height_and_width_must_be_multiples_of_{translation.step}"
    name += f"_from_{translation.least}_on" * (translation.least > translation.step)
    return graph.add("Reshape", "images", wanted, name=name)
