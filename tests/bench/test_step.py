"""The parts `step` and `infer`: what takes turns with what, and what is set against what."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np
import pytest

from p2p_jax import mesh as meshes
from p2p_jax.bench import nets, peak, running, step, subject, torch_step
from p2p_jax.bench.rows import ROUNDS, Options
from p2p_jax.words import ConfigError

MILLISECONDS = {"eager": 8, "eager channels_last": 4, "compile": 2, "compile channels_last": 1}


def options(**changes) -> Options:
    return Options(folder=Path("nowhere"), log=lambda line: None, seconds=0.01, **changes)


@pytest.fixture
def told(monkeypatch):
    """What ran, in order, where nothing is computed: ours takes 2 ms, theirs as above."""
    order = []

    class Ours:
        def __init__(self, subject, gan, mesh, batch, dispatch):
            policy = gan.generator.style.policy
            self.name = ("p2p_jax", policy.form, policy.dtype, batch)
            self.told = {"flops": 5.0, "bytes_accessed": 6.0}

        def steps(self, count):
            order.append(self.name)
            time.sleep(0.002 * count)

    class Theirs:
        def __init__(self, form, batch, device):
            self.name = ("torch", form.name, form.precision, batch)
            self.each = MILLISECONDS[form.name] / 1000

        def steps(self, count):
            order.append(self.name)
            time.sleep(self.each * count)

    part = step.Part("step", Ours, lambda subject, gan, batch: 1e6 * batch, "TorchTraining")  # type: ignore[arg-type]
    monkeypatch.setattr(step, "STEP", part)
    monkeypatch.setattr(step, "_TRIAL_SECONDS", 0.01)
    monkeypatch.setattr(torch_step, "TorchTraining", Theirs)
    monkeypatch.setattr(peak, "measured", lambda device, precision: 1e10)
    monkeypatch.setattr(step, "freed", lambda: None)
    return order


def test_ways_of_a_batch_size_take_turns(told):
    wanted = options(
        batch_sizes=(1, 3), precisions=("float32", "bfloat16"), forms=("plain", "polyphase"),
        torch_forms=("eager", "compile"),
    )  # fmt: skip
    rows = step.step(wanted)
    for batch in (1, 3):
        of_batch = [row for row in rows if row["batch_size"] == batch]
        trials = [row for row in of_batch if row.get("trial")]
        assert [row["form"] for row in trials] == [*MILLISECONDS, *MILLISECONDS]
        kept = [row for row in of_batch if row["impl"] == "torch" and not row.get("trial")]
        best = ["compile channels_last", "compile"]
        assert [row["form"] for row in kept] == [*best, *best]
        # Once a way has been measured, no other is compiled any more.
        ran = [name for name in told if name[3] == batch]
        turns = [*ran[-8 * ROUNDS :]]
        assert turns == turns[:8] * ROUNDS and len(set(turns)) == 8
    for row in rows:
        if row["impl"] == "p2p_jax":
            theirs = {
                precision: max(
                    other["images_per_sec"]
                    for other in rows
                    if other["impl"] == "torch"
                    and not other.get("trial")
                    and other["batch_size"] == row["batch_size"]
                    and other["precision"] in (precision, row["precision"])
                )
                for precision in ("float32", "bfloat16")
            }
            rate = row["images_per_sec"]
            assert row["ratio"] == pytest.approx(rate / theirs[row["precision"]])
            assert row["ratio_best"] == pytest.approx(rate / max(theirs.values()))
            assert row["flops"] == 5.0
        assert row["mfu"] == pytest.approx(1e6 * row["images_per_sec"] / 1e10)
        assert row["mfu_sheet"] is None


def test_torch_forms_can_be_chosen(told):
    rows = step.step(options(batch_sizes=(1,), torch_forms=("eager",)))
    forms = {row["form"] for row in rows if row["impl"] == "torch"}
    assert forms == {"eager", "eager channels_last"}


def test_nothing_is_compared_without_torch(told):
    rows = step.step(options(batch_sizes=(2,)))
    assert [row["impl"] for row in rows] == ["p2p_jax"]
    assert rows[0]["ratio"] is rows[0]["ratio_best"] is None
    assert rows[0]["ms"] == pytest.approx(2000 / rows[0]["images_per_sec"])


def test_a_form_that_fails_is_told_and_others_go_on(told, monkeypatch):
    theirs = torch_step.TorchTraining

    def breaks(form, batch, device):
        if form.compiled:
            raise RuntimeError("no C++ compiler\nat all")
        return theirs(form, batch, device)

    monkeypatch.setattr(torch_step, "TorchTraining", breaks)
    rows = step.step(options(batch_sizes=(1,), torch_forms=("eager", "compile")))
    failed = [row for row in rows if "error" in row]
    assert [row["form"] for row in failed] == ["compile", "compile channels_last"]
    assert {row["error"] for row in failed} == {"RuntimeError: no C++ compiler"}
    assert failed[0]["images_per_sec"] is failed[0]["mfu"] is None
    (ours,) = (row for row in rows if row["impl"] == "p2p_jax")
    assert ours["ratio"] > 0


def test_a_way_without_memory_is_told(told, monkeypatch):
    def steps(self, count):
        raise jax.errors.JaxRuntimeError(self.why)

    monkeypatch.setattr(step.STEP.ours, "steps", steps)
    monkeypatch.setattr(step.STEP.ours, "why", "RESOURCE_EXHAUSTED: 5 GB", raising=False)
    (row,) = step.step(options(batch_sizes=(1,)))
    assert row["error"] == "out of memory" and row["images_per_sec"] is None
    monkeypatch.setattr(step.STEP.ours, "why", "INTERNAL: 5")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        step.step(options(batch_sizes=(1,)))


def test_batches_and_devices_must_fit(told):
    with pytest.raises(ConfigError, match="3 cannot be split over 2 devices"):
        step.step(options(batch_sizes=(2, 3), devices=2))
    with pytest.raises(ConfigError, match="--devices: 99 devices asked for"):
        step.step(options(devices=99))


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_measured_trains_and_translates(monkeypatch):
    monkeypatch.setattr(nets, "standard", tiny := lambda *a: STANDARD(*a, tiny=True))
    known, mesh = subject.chosen(options()), meshes.make_mesh(2)
    gan = tiny("float32", "auto")
    ready = running.Training(known, gan, mesh, 4, 3)
    before = jax.device_get(ready._state.gen.params)
    ready.steps(7)
    assert int(ready._state.step) == 7
    after = jax.device_get(ready._state.gen.params)
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    ]
    assert 1e-5 < max(moved) < 7 * 2e-4 * 1.5  # so much does Adam at most
    told = ready.told
    parameters = sum(leaf.size for leaf in jax.tree.leaves((after, ready._state.disc.params)))
    assert told["all_reduces"] == 2 and told["collectives"] == {}
    assert 4 * parameters <= told["reduced_bytes"] <= 4 * parameters * 1.02 + 64
    assert told["peak_memory"] > told["temporaries"] > 0 and told["bytes_accessed"] > 0
    whole = running.training_work(known, gan, 4)
    assert whole and whole < 2 * told["flops"] < 2 * whole  # each device updates all parameters

    translating = running.Inference(known, gan, mesh, 4, 3)
    translating.steps(2)
    assert translating.told["all_reduces"] == 0
    part = running.inference_work(known, gan, 4)
    assert part and 0.05 * whole < part < 0.3 * whole


STANDARD = nets.standard


def test_counts_fill_the_time():
    assert 3 <= running.enough(lambda count: time.sleep(0.01 * count), 0.1) <= 10
    assert running.enough(lambda count: time.sleep(0.02 * count), 0.001) == 1
