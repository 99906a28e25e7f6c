"""ONNX graphs under construction: nodes, constants, and sizes that are known only when they run."""

from __future__ import annotations

import ast
import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OPSET = 18  # of 2022: onnxruntime from 1.14 on, and what runs in browsers and on phones
_IR_VERSION = 8  # the format that came with it
_ARITHMETIC = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}

Dimension = Any  # an int, or a size that JAX knows as an expression of the input's


class Empty:
    """Stands for an array without elements, which ONNX cannot reshape."""


EMPTY = Empty()
# The name of a tensor that the graph computes, an array that is known already, or one without
# elements.
Value = str | np.ndarray | Empty


class Graph:
    """Collects the nodes of an ONNX graph; tensors go by their names."""

    def __init__(self) -> None:
        """Begins with nothing in it."""
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, str] = {}
        self._count: collections.Counter[str] = collections.Counter()
        self._sizes: dict[str, str] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node of one output, and returns the name of that."""
        from onnx import helper

        made = name or self._fresh(operator)
        self._nodes.append(helper.make_node(operator, list(inputs), [made], made, **attributes))
        return made

    def constant(self, array: Any) -> str:
        """The name of an array; equal small ones share it."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 16 else id(array))
        if key not in self._known:
            self._known[key] = self._fresh("constant" if array.size <= 16 else "weight")
            # Kept, so that no other array gets the id.
            self._constants[self._known[key]] = array
        return self._known[key]

    def name(self, value: Value) -> str:
        """The name of a value that the graph may not have computed."""
        if isinstance(value, Empty):
            raise NotImplementedError("an array without elements where ONNX takes none")
        return value if isinstance(value, str) else self.constant(value)

    def _fresh(self, word: str) -> str:
        self._count[word] += 1
        return f"{word}_{self._count[word]}"

    # --- sizes -----------------------------------------------------------------------------------

    def know_sizes(self, sizes: Mapping[str, str]) -> None:
        """Tells in which int64 tensors `[1]` the sizes are that expressions are made of."""
        self._sizes.update(sizes)

    def size(self, dimension: Dimension) -> str:
        """The int64 tensor `[1]` that holds a size."""
        if isinstance(dimension, int):
            return self.constant(np.array([dimension], np.int64))
        # What an expression is made of cannot be asked for; what it is called is as documented for
        # `jax.export.symbolic_shape`, which reads the same.
        text = str(dimension)
        if text not in self._sizes:
            tree = ast.parse(text.replace("^", "**"), mode="eval").body
            self._sizes[text] = self._computed(tree, text)
        return self._sizes[text]

    def _computed(self, tree: ast.expr, text: str) -> str:
        match tree:
            case ast.Constant(value=int(number)):
                return self.constant(np.array([number], np.int64))
            case ast.Name(id=name) if name in self._sizes:
                return self._sizes[name]
            case ast.UnaryOp(op=ast.USub(), operand=part):
                return self.add("Neg", self._computed(part, text))
            case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=int(power))):
                part = self._computed(base, text)
                made = part
                for _ in range(power - 1):
                    made = self.add("Mul", made, part)
                return made
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                sides = (self._computed(side, text) for side in (left, right))
                return self.add(_ARITHMETIC[type(op)], *sides)
            case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
                return self.add(_FUNCTIONS[name], *(self._computed(arg, text) for arg in args))
        raise NotImplementedError(f"a size of {text}, which cannot be written in ONNX yet")

    def shape(self, dimensions: Sequence[Dimension]) -> str:
        """The int64 tensor `[n]` that holds n sizes."""
        if all(isinstance(d, int) for d in dimensions):
            return self.constant(np.array(dimensions, np.int64))
        return self.add("Concat", *(self.size(d) for d in dimensions), axis=0)

    def reshape(self, x: str, old: Sequence[Dimension], new: Sequence[Dimension]) -> str:
        """Reshapes; where it can be told without computing sizes, it is."""
        if list(map(str, old)) == list(map(str, new)):
            return x
        told: list[Dimension] = [
            0 if i < len(old) and not isinstance(d, int) and str(old[i]) == str(d) else d
            for i, d in enumerate(new)
        ]
        open_ = [i for i, d in enumerate(told) if not isinstance(d, int)]
        if len(open_) == 1:
            told[open_[0]] = -1
        elif open_:
            told = list(new)
        return self.add("Reshape", x, self.shape(told))

    # --- the whole -------------------------------------------------------------------------------

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], about: Mapping[str, str]) -> Any:
        """The model, without what its outputs do not need.

        Args:
          inputs: as `onnx.helper.make_tensor_value_info` gives them.
          outputs: likewise.
          about: what to write into it, by key.
        """
        from onnx import helper, numpy_helper

        needed, nodes = {output.name for output in outputs}, []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [
            numpy_helper.from_array(array, name)
            for name, array in self._constants.items()
            if name in needed
        ]
        graph = helper.make_graph(nodes[::-1], "p2p_jax", inputs, outputs, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="p2p_jax",
        )
        helper.set_model_props(model, dict(about))
        return model
