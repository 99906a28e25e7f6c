"""Programs as JAX traces them, written as ONNX.

Whatever a config makes of a network is followed; an operation that is not in the table is refused.
Operations of which all is known, as the turning of a kernel, are done at once and leave a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

from p2p_jax.exporting.graph import EMPTY, Graph, Value
from p2p_jax.exporting.operators import OPERATORS


def converted(graph: Graph, closed: Any, *args: Value) -> list[Value]:
    """Adds a program to a graph.

    Args:
      graph: to add to.
      closed: a closed jaxpr.
      *args: its arguments.

    Returns:
      What it gives.

    Raises:
      NotImplementedError: it has an operation that is not in the table.
    """
    return _run(graph, closed.jaxpr, [np.asarray(c) for c in closed.consts], args)


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
    env: dict[Any, Value] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return env[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for eqn in _live(jaxpr):
        made = _equation(graph, eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, made, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _live(jaxpr: Any) -> list[Any]:
    """The equations that what a jaxpr gives depends on."""
    needed, live = {id(atom) for atom in jaxpr.outvars}, []
    for eqn in reversed(jaxpr.eqns):
        if any(id(var) in needed for var in eqn.outvars):
            needed.update(id(atom) for atom in eqn.invars)
            live.append(eqn)
    return live[::-1]


def _equation(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    shapes = [var.aval.shape for var in eqn.outvars]
    # Part of an edge that is not there, or targets, of which there are none.
    if all(0 in (d for d in shape if isinstance(d, int)) for shape in shapes):
        return [EMPTY] * len(shapes)
    name = eqn.primitive.name
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    if inner is not None:
        closed = hasattr(inner, "consts")
        return converted(graph, inner, *values) if closed else _run(graph, inner, [], values)
    static = all(isinstance(d, int) for shape in shapes for d in shape)
    if static and name != "dim_as_value" and all(isinstance(v, np.ndarray) for v in values):
        made = eqn.primitive.bind(*values, **eqn.params)
        made = made if eqn.primitive.multiple_results else [made]
        return [np.asarray(array) for array in made]
    if name not in OPERATORS:
        raise NotImplementedError(f"the operation {name}, which cannot be written in ONNX yet")
    return [OPERATORS[name](graph, eqn, *values)]
