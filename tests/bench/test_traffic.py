"""Bytes that compiled programs move, by their text."""

from __future__ import annotations

import jax
import pytest

from p2p_jax.bench.rows import row
from p2p_jax.bench.table import lines
from p2p_jax.bench.traffic import Traffic, arrays, traffic


def entry(*instructions: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in instructions)
    return f"HloModule jit_step\n\n{before}\nENTRY %main (p: f32[4]) -> f32[] {{\n{body}\n}}\n"


A = "%a = f32[8,256]{1,0:T(8,128)} parameter(0)"  # 8192 bytes in HBM
B = "%b = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} parameter(1)"  # 4096 bytes on the chip


def test_arrays_of_nested_tuples_and_layouts():
    shape = (
        "((f32[4,4,512,512]{2,3,1,0:T(8,128)S(1)}, /*index=1*/bf16[3,5]{1,0:T(8,128)(2,1)}), "
        "pred[7]{0:T(512)(4,1)}, u8[6]{0}, s32[], u32[]{:S(2)}, f8e4m3fn[10]{0:T(256)SC(0:1)}, "
        "s4[3]{0:E(4)}, f32[<=2,3], f32[0,9]{1,0:S(0)}, token[])"
    )
    assert arrays(shape) == [
        (4 * 16 * 512 * 512, False), (30, True), (7, True), (6, True), (4, True), (4, False),
        (10, True), (2, True), (24, True), (0, True),
    ]  # fmt: skip


def test_operations_count_with_what_lies_in_hbm():
    text = entry(
        A,
        B,
        "%k = f32[]{:T(128)} constant(3)",
        "%f = (f32[8,256]{1,0:T(8,128)S(1)}, f32[256]{0:T(256)}) fusion(%a, /*index=1*/%b), "
        'kind=kLoop, calls=%inside, metadata={op_name="jit(step)/f(%k)"}',
        "%g = f32[8,256]{1,0:T(8,128)S(1)} get-tuple-element(%f), index=0",
        "%c = f32[2048]{0:T(1024)S(1)} bitcast(%g)",
        "ROOT %n = f32[8,256]{1,0:T(8,128)} negate(%g), metadata={}",
        before="%inside (x: f32[8,256]) -> f32[99999] {\n  %x = f32[99999]{0} negate(%x)\n}\n",
    )
    hbm = (8192 + 1024) + 8192  # the fusion's operand and second result; the last result
    assert traffic(text) == Traffic(hbm, hbm + (4096 + 8192) + 8192, hbm)


def test_slices_count_with_what_they_read():
    text = entry(
        "%w = f32[4,64,128]{2,1,0:T(8,128)} parameter(0)",
        *(
            f"%s.{i} = ((f32[4,64,128]{{2,1,0:T(8,128)}}), f32[1,64,128]{{2,1,0:T(8,128)S(1)}}, "
            f"s32[]{{:S(2)}}) slice-start(%w), slice={{[{i}:{i + 1}], [0:64], [0:128]}}"
            for i in range(4)
        ),
        *(f"%d.{i} = f32[1,64,128]{{2,1,0:T(8,128)S(1)}} slice-done(%s.{i})" for i in range(4)),
        "%j = f32[4,64,128]{2,1,0:T(8,128)S(1)} custom-call(%d.0, %d.1, %d.2, %d.3), "
        'custom_call_target="ConcatBitcast"',
        "ROOT %n = f32[4,64,128]{2,1,0:T(8,128)S(1)} negate(%j)",
    )
    whole = 4 * 64 * 128 * 4
    # Each slice reads a fourth; all of them counted whole would come to four times this.
    assert traffic(text) == Traffic(whole, 2 * whole, whole)


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [("", "S(1)", 1), ("S(1)", "", 1), ("", "", 2), ("S(1)", "S(1)", 0)],
)
def test_slices_and_copies_count_at_each_end_in_hbm(source, target, factor):
    def array(rows, space):
        return f"f32[{rows},128]{{1,0:T(8,128){space}}}"

    sliced = entry(
        f"%w = {array(8, source)} parameter(0)",
        f"%s = (({array(8, source)}), {array(2, target)}, s32[]{{:S(2)}}) slice-start(%w)",
        f"ROOT %d = {array(2, target)} slice-done(%s)",
    )
    assert traffic(sliced) == Traffic(factor * 1024, 0, factor * 1024)
    copied = entry(
        f"%w = {array(8, source)} parameter(0)",
        f"%s = ({array(8, target)}, {array(8, source)}, u32[]{{:S(2)}}) copy-start(%w)",
        f"ROOT %d = {array(8, target)} copy-done(%s)",
    )
    assert traffic(copied) == Traffic(factor * 4096, 0, factor * 4096)


def test_what_starts_apart_counts_its_operands_once():
    text = entry(
        A,
        "%r = f32[8,256]{1,0:T(8,128)} all-reduce-start(%a), to_apply=%sum",
        "%rd = f32[8,256]{1,0:T(8,128)} all-reduce-done(%r)",
        "%g = (f32[8,256]{1,0:T(8,128)}, f32[16,256]{1,0:T(8,128)}) all-gather-start(%rd)",
        "ROOT %gd = f32[16,256]{1,0:T(8,128)} all-gather-done(%g)",
    )
    assert traffic(text).hbm_bytes == 2 * 8192 + (8192 + 16384)


LOOPS = """
%inner (p: (s32[], f32[8,256])) -> (s32[], f32[8,256]) {
  %p = (s32[], f32[8,256]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,256]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,256]{1,0:T(8,128)} negate(%x)
  ROOT %t = (s32[], f32[8,256]{1,0:T(8,128)}) tuple(%i, %y)
}

%outer (p: (s32[], f32[8,256])) -> (s32[], f32[8,256]) {
  %p = (s32[], f32[8,256]{1,0:T(8,128)}) parameter(0)
  %w = (s32[], f32[8,256]{1,0:T(8,128)}) while(%p), condition=%until, body=%inner
  %x = f32[8,256]{1,0:T(8,128)} get-tuple-element(%w), index=1
  %y = f32[8,256]{1,0:T(8,128)S(1)} negate(%x)
  ROOT %t = (s32[], f32[8,256]{1,0:T(8,128)}) tuple(%i, %y)
}

%half (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %y = f32[8,128]{1,0:T(8,128)} negate(%p)
}

%whole (p: f32[8,256]) -> f32[8,256] {
  %p = f32[8,256]{1,0:T(8,128)} parameter(0)
  ROOT %y = f32[8,256]{1,0:T(8,128)} negate(%p)
}
"""


def test_loops_count_once_and_apart_from_what_is_outside():
    text = entry(
        A,
        "%n = f32[8,256]{1,0:T(8,128)S(1)} negate(%a)",
        "%t = (s32[], f32[8,256]{1,0:T(8,128)}) tuple(%i, %a)",
        "ROOT %w = (s32[], f32[8,256]{1,0:T(8,128)}) while(%t), condition=%until, body=%outer, "
        'backend_config={"known_trip_count":{"n":"5"}}',
        before=LOOPS,
    )
    assert traffic(text) == Traffic(8192 + 8192 + 2 * 8192, 6 * 8192, 8192)


@pytest.mark.parametrize(
    "which",
    ["branch_computations={%half, %whole}", "true_computation=%whole, false_computation=%half"],
)
def test_calls_and_the_branch_that_moves_most(which):
    text = entry(
        A,
        "%c = f32[8,256]{1,0:T(8,128)} call(%a), to_apply=%whole",
        f"ROOT %d = f32[8,256]{{1,0:T(8,128)}} conditional(%k, %a, %a), {which}",
        before=LOOPS,
    )
    assert traffic(text) == Traffic(4 * 8192, 4 * 8192, 4 * 8192)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        traffic("HloModule empty\n")
    with pytest.raises(ValueError, match="%gone"):
        traffic(entry(A, "ROOT %n = f32[8,256]{1,0:T(8,128)} negate(%gone)"))


def test_elsewhere_all_lies_in_memory():
    def twice(x):
        return jax.lax.fori_loop(0, 2, lambda i, y: y @ y, x)

    compiled = jax.jit(twice).lower(jax.ShapeDtypeStruct((64, 64), "float32")).compile()
    found = traffic(compiled.as_text() or "")
    assert found.hbm_bytes == found.operation_bytes >= 3 * 64 * 64 * 4
    assert found.outside_bytes < found.hbm_bytes


def test_the_table_tells_what_is_moved():
    told = {"bytes_accessed": 9e9, "hbm_bytes": 8 * 10**9, "outside_bytes": 10**9}
    (_, _, line) = lines([row("compile", "auto", **told)])
    assert "9 GB accessed, 8 GB to and from HBM (1 GB of it outside of loops)" in line
