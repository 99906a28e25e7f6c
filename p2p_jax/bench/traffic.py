"""What a compiled program moves to and from memory, counted from its optimized text.

XLA's own `bytes accessed` does not tell that on a TPU. It counts each prefetch of a slice into
on-chip memory as if all of the array were read, each asynchronous copy three times, and what lies
on the chip already as if it came from memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes that one device moves in one dispatch of one step.

    Arrays count without the padding of tiles. Of those whose sides do not fill tiles, as 64
    channels do not fill 128 lanes, the device holds and moves more.

    Attributes:
      hbm_bytes: between the chip and its memory, HBM.
      operation_bytes: operands and results of operations, wherever they lie; no prefetches.
      outside_bytes: the part of `hbm_bytes` that is outside of loops: paid once a dispatch, however
        many steps that has.
    """

    hbm_bytes: int = 0
    operation_bytes: int = 0
    outside_bytes: int = 0


class Array(NamedTuple):
    """An array in a program's text."""

    size: int  # bytes, without the padding of tiles
    in_hbm: bool  # the memory that a layout names no other for


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    operands: list[str]
    attributes: str


# Those that move nothing; what a `-done` ends is counted where it starts.
_STILL = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"),
    *("add-dependency", "opt-barrier"),
}
_ENDS = ("-done", "-update")
_SLICES = ("slice-start", "dynamic-slice-start")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(?:(pred)|[a-z]+?(\d+)[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
# Of a layout, as `{1,0:T(8,128)(2,1)S(1)}`; HBM is space 0, which is left out.
_SPACE = re.compile(r"(?<![A-Z])S\(0*[1-9]\d*\)")
_BODY = re.compile(r"\b(?:body|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%\S+))")


def traffic(text: str) -> Traffic:
    """What a program moves, from `compiled.as_text()`.

    The program is its entry and what that calls; the body of a loop counts once, and of a
    conditional the branch that moves most. A fusion is one operation, so one that reads a slice
    alone counts with its whole operand, as does one that updates a slice in place.

    Raises:
      ValueError: this is no program's text, or it names what it does not have.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("text: has no ENTRY computation; give that of a compiled program")
    try:
        return _moved(entry, computations)
    except KeyError as error:
        raise ValueError(f"text: names %{error.args[0]} and does not define it before") from error


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape, also of nested tuples: `((f32[8,3]{1,0:T(8,128)S(1)}), u32[])`."""
    found = []
    for pred, bits, sides, layout in _ARRAY.findall(shape):
        count = math.prod(int(side.removeprefix("<=")) for side in sides.split(",") if side)
        size = -(-count * (8 if pred else int(bits)) // 8)
        found.append(Array(size, not _SPACE.search(layout)))
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the entry, '' if there is none."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if line.startswith("}"):
            name = ""
        elif head := _HEAD.fullmatch(line.rstrip()):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _moved(name: str, computations: dict[str, list[str]]) -> Traffic:
    """What a computation moves, with all that it calls but fusions' own computations."""
    shapes: dict[str, list[Array]] = {}
    total = Traffic()
    for instruction in _instructions(computations[name]):
        shapes[instruction.name] = arrays(instruction.shape)
        operation, attributes = instruction.operation, instruction.attributes
        if operation in ("while", "call"):
            inner = _moved(_BODY.findall(attributes)[0], computations)
            found = inner._replace(outside_bytes=0) if operation == "while" else inner
        elif operation == "conditional":
            branches = _NAME.findall(" ".join(map("".join, _BRANCHES.findall(attributes))))
            found = max(_moved(branch, computations) for branch in branches)
        else:
            found = _alone(instruction, shapes)
        total = Traffic(*map(sum, zip(total, found, strict=True)))
    return total


def _alone(instruction: _Instruction, shapes: dict[str, list[Array]]) -> Traffic:
    """What an instruction that calls nothing moves."""
    name, _, operation, operands, attributes = instruction
    if (
        operation in _STILL
        or operation.endswith(_ENDS)
        or 'custom_call_target="ConcatBitcast"' in attributes  # puts slices together where they lie
    ):
        return Traffic()
    own = shapes[name]
    if operation in _SLICES:  # ((source, ...), slice, context), as many in front as operands
        source, part = own[0], own[len(operands)]
        moved = part.size * (source.in_hbm + part.in_hbm)
        return Traffic(moved, 0, moved)
    touched = list(own)
    # What starts something asynchronous has its operands in its result, but for all-reduce-start.
    if not operation.endswith("-start") or operation == "all-reduce-start":
        for operand in operands:
            touched += shapes[operand]
    moved = sum(array.size for array in touched if array.in_hbm)
    if operation == "copy-start":
        return Traffic(moved, 0, moved)
    return Traffic(moved, sum(array.size for array in touched), moved)


def _instructions(lines: list[str]) -> Iterator[_Instruction]:
    for line in lines:
        if not (begin := _LINE.match(line)):
            continue  # a long constant's further lines
        rest = line[begin.end() :]
        end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
        opening = rest.index("(", end)
        closing = _closing(rest, opening)
        operands = _NAME.findall(rest[opening:closing])
        operation = rest[end:opening].strip()
        yield _Instruction(begin[1], rest[:end], operation, operands, rest[closing:])


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` has closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return len(text)
