"""What compiled programs say of themselves, and programs for devices that are not here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax
import pytest

from p2p_jax import mesh as meshes
from p2p_jax.bench import nets, programs
from p2p_jax.bench.rows import Options
from p2p_jax.words import ConfigError

TEXT = """
%add (a: f32[], b: f32[]) -> f32[] {
}
%all-reduce.5 = f32[16,4]{1,0} all-reduce(f32[16,4]{1,0} %p), to_apply=%add
%all-reduce-start.1 = (f32[8]{0:T(256)}, /*index=1*/bf16[2,3]{1,0}, f32[]) all-reduce-start(%x, %y)
%all-reduce-done.1 = (f32[8]{0}, bf16[2,3]{1,0}, f32[]) all-reduce-done(%all-reduce-start.1)
%gte = f32[8]{0} get-tuple-element(%all-reduce-done.1), index=0
%fusion = f32[16,4]{1,0} fusion(%all-reduce.5), kind=kLoop, calls=%all-reduce-like
%ag = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4]{0} %z), dimensions={0}
%agd = f32[16]{0} all-gather-done((f32[4]{0}, f32[16]{0}) %ag)
%a2a.1 = f32[4,2]{1,0} all-to-all(f32[4,2]{1,0} %z), replica_groups={{0,1}}
%cp = f32[4]{0} collective-permute(f32[4]{0} %z), source_target_pairs={{0,1}}
ROOT %rs = pred[4]{0} reduce-scatter(f32[8]{0} %z), dimensions={0}
"""


def test_collectives_are_counted_once():
    counts, reduced = programs.collectives(TEXT)
    assert counts == {
        "all-reduce": 2, "all-gather": 1, "all-to-all": 1, "collective-permute": 1,
        "reduce-scatter": 1,
    }  # fmt: skip
    assert reduced == 4 * 64 + (4 * 8 + 2 * 6 + 4)


def test_costs_that_a_backend_does_not_tell_are_none():
    class Silent:
        def __init__(self, found):
            self.found = found

        def cost_analysis(self):
            return self.found

    assert programs.costs(Silent(None)) == {"flops": None, "bytes_accessed": None}
    assert programs.costs(Silent([])) == {"flops": None, "bytes_accessed": None}
    assert programs.costs(Silent([{"flops": 3}])) == {"flops": 3.0, "bytes_accessed": None}
    assert programs.costs(Silent({"flops": -1.0, "bytes accessed": 2}))["bytes_accessed"] == 2


def test_what_lies_where_is_told_of_tpus_alone():
    compiled = jax.jit(lambda x: x @ x + 1).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
    told = programs.described(compiled)
    assert told["bytes_accessed"] > 0
    assert told["hbm_bytes"] is told["operation_bytes"] is told["outside_bytes"] is None


def options(**changes) -> Options:
    return Options(folder=Path("nowhere"), log=lambda line: None, **changes)


def test_compiling_for_tpus_without_their_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        programs.compile_for("v5e:2x4", options())
    (problem,) = raised.value.problems
    assert "libtpu" in problem and "pip install 'p2p_jax[tpu]'" in problem


@pytest.mark.slow
def test_compiling_for_tpus(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    with pytest.raises(ConfigError, match=r"'v5e:nope'.*v5e:2x4"):
        programs.compile_for("v5e:nope", options())
    standard = nets.standard
    monkeypatch.setattr(nets, "standard", lambda *a, **k: standard(*a, **k, tiny=True))
    compiled, described = [], programs.described
    monkeypatch.setattr(programs, "described", lambda c: compiled.append(c) or described(c))
    (found,) = programs.compile_for("v5e:2x2", options(batch_sizes=(2,)))
    # The state goes back into the next dispatch as it came out of the last.
    assert compiled[0].input_formats[0][0] == compiled[0].output_formats[0]
    assert (found["devices"], found["batch_size"], found["per_device"]) == (4, 8, 2)
    assert (found["precision"], found["device_kind"]) == ("bfloat16", "TPU v5 lite")
    gan = nets.standard("bfloat16")
    state = nets.abstract(gan, meshes.make_mesh(1))
    params = jax.tree.leaves((state.gen.params, state.disc.params))
    least = sum(4 * leaf.size for leaf in params)
    assert least <= found["reduced_bytes"] <= 1.02 * least + 64
    assert found["all_reduces"] >= 2 and found["collectives"] == {}
    assert 0 <= found["outside_bytes"] < found["hbm_bytes"] < found["bytes_accessed"]
    # Prefetches beside what operations use add less than that again.
    assert 0 < found["hbm_bytes"] < 2 * found["operation_bytes"]
    # Parameters and Adam's two moments of them are read and written at least.
    assert found["operation_bytes"] > 6 * least
    assert found["traffic_ms"] == pytest.approx(1e3 * found["hbm_bytes"] / 819e9)
    assert found["arithmetic_ms"] == pytest.approx(1e3 * found["flops"] / 197e12)
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    assert "TPU_SKIP_MDS_QUERY" not in os.environ
