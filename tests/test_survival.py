"""What a run does where losses are not finite or a disk is full, and when a signal comes early."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest
from running import CONFIG, STEPS, arrays, assert_same_arrays, checkpoints, finished

from p2p_jax import begin, checkpoint, report, train
from p2p_jax.main import main
from p2p_jax.tally import Losses, NotFinite

# When a write fails, Orbax closes its event loop under those that are still under way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FSIZE = resource.RLIMIT_FSIZE
LIMIT = 30_000  # bytes of a file, below those of a checkpoint and above those of anything else
ONE = "--config.mesh.devices=1"
SOONER = "--config.train.log_every=2"  # finite losses are logged before the first that is not


def _steps(workdir):
    return [row["step"] for row in report.read(workdir) if row["split"] == "train"]


@pytest.mark.slow
def test_back_to_the_checkpoint_and_on_with_other_jitter(tmp_path, capsys, monkeypatch):
    """Once, at step 9, a loss is not finite: steps 8 and 9 are done again, and differ."""
    settle, failed = Losses._settle, []

    def broken(self, late):
        if late and late[0] == 9 and not failed:
            failed.append(9)
            raise NotFinite("a loss of step 9 is not finite", 9)
        settle(self, late)

    monkeypatch.setattr(Losses, "_settle", broken)
    assert main([CONFIG, f"--workdir={tmp_path}", ONE, "--config.train.on_nan=rollback"]) == 0
    out = capsys.readouterr().out
    assert "a loss of step 9 is not finite. Back to step 7, try 1 of 3" in out
    assert _steps(tmp_path) == [4, 8, 12]
    whole, ours = (arrays(path, STEPS) for path in (finished(ONE)[0], tmp_path))
    assert (whole["train/key"] != ours["train/key"]).any()
    assert any((whole[k] != ours[k]).any() for k in whole if k.startswith("gen/params"))


@pytest.mark.slow
def test_tries_end(tmp_path, capsys):
    flags = [ONE, SOONER, "--config.optim.gen.lr=1e30", "--config.train.on_nan=rollback"]
    assert main([CONFIG, f"--workdir={tmp_path}", *flags]) == 1
    out, err = capsys.readouterr()
    assert "try 3 of 3" in out and "try 4" not in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 3 more tries from step 0 on have failed: ")
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_skipped_updates_are_counted_and_too_many_stop(tmp_path, capsys):
    flags = [ONE, SOONER, "--config.optim.gen.lr=1e30", "--config.train.on_nan=skip",
             "--config.train.steps=40"]  # fmt: skip
    assert main([CONFIG, f"--workdir={tmp_path}", *flags]) == 1
    assert "10 updates in a row up to step" in capsys.readouterr().err
    skipped = [row["train/skipped"] for row in report.read(tmp_path) if row["split"] == "train"]
    assert sum(skipped) in (8, 9) and skipped[-1] == 2  # the tenth ended it


def _no_room_for(monkeypatch, step):
    """From the save of a step on until it is waited for, no file may grow above some size."""
    save, settle, limits = checkpoint.save, checkpoint.settle, resource.getrlimit(FSIZE)

    def begun(manager, state, *args):
        if int(state.step) == step:
            resource.setrlimit(FSIZE, (LIMIT, limits[1]))
        save(manager, state, *args)

    def settled(manager):
        waits = manager.saving is not None
        try:
            settle(manager)
        finally:
            if waits:
                resource.setrlimit(FSIZE, limits)

    monkeypatch.setattr(train.checkpoint, "save", begun)
    monkeypatch.setattr(train.checkpoint, "settle", settled)


def _unsafe_at(monkeypatch, *steps):
    """Lines of metrics cannot be made safe before the saves of these steps, but at the end."""
    save = train.Trainer._save

    def saved(self, state, step, *args):
        with monkeypatch.context() as patch:
            if step in steps:
                patch.setattr(report.MetricsLog, "sync", lambda log: False)
            save(self, state, step, *args)

    monkeypatch.setattr(train.Trainer, "_save", saved)


@pytest.mark.slow
def test_saves_that_fail_may_be_gone_without_but_the_last(tmp_path, capsys, monkeypatch):
    """At 5 there is no room; at 7, the best so far, and at the end lines are not safe."""
    flags = [CONFIG, ONE, f"--workdir={tmp_path}"]
    with monkeypatch.context() as patch:
        _no_room_for(patch, 5)
        _unsafe_at(patch, 7, STEPS)
        assert main([*flags, "--config.train.on_save_error=continue"]) == 1
    out, err = capsys.readouterr()
    assert "checkpoint 5 was not saved: there is no room: File too large; there is none" in out
    assert "training goes on" in out and "checkpoint 7 is left out: metrics.jsonl cannot" in out
    assert err.strip().endswith(
        f"error: checkpoint {STEPS} was left out, as metrics.jsonl could not grow; run again to go "
        "on from step 10"
    )
    assert checkpoints(tmp_path) == ["10"] and _steps(tmp_path) == [4, 8, 12]
    meta = json.loads((tmp_path / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["best"] is None  # of 7 there is no checkpoint
    with monkeypatch.context() as patch:
        _no_room_for(patch, STEPS)
        assert main(flags) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: checkpoint {STEPS} was not saved: there is no room: File too")
    assert "those of steps 10 are intact" in last and checkpoints(tmp_path) == ["10"]
    assert main(flags) == 0
    assert_same_arrays(arrays(finished(ONE)[0], STEPS), arrays(tmp_path, STEPS))


@pytest.mark.slow
def test_a_signal_while_the_step_compiles_has_nothing_to_save(tmp_path, monkeypatch, capsys):
    compiled = begin.compiled

    def signalled(*args):
        step_fn = compiled(*args)
        os.kill(os.getpid(), signal.SIGUSR1)
        return step_fn

    monkeypatch.setattr(begin, "compiled", signalled)
    assert main([CONFIG, f"--workdir={tmp_path}", ONE]) == 75
    out = capsys.readouterr().out
    assert "stopped by SIGUSR1  before the first step; run again to begin" in out
    assert checkpoints(tmp_path) == [] and report.read(tmp_path) == []


def test_a_signal_before_that_leaves_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("p2p_jax.main.build", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main([CONFIG, f"--workdir={tmp_path}"]) == 75
    assert "stopped by SIGTERM before training began; run again" in capsys.readouterr().out


@pytest.mark.slow
def test_an_evaluation_that_was_left_is_done_on_resume(tmp_path, monkeypatch, capsys):
    """A signal in the middle of the evaluation at step 7: it is there, once, in the end."""
    real, asked = train.Evaluator, []

    class Left(real):
        def __init__(self, experiment, stopping, warn):
            def now():
                asked.append(1)
                # The evaluation at step 0 asks 5 times, the grid 3 times; so this is step 7's.
                if len(asked) == 10:
                    signal.raise_signal(signal.SIGTERM)
                return stopping()

            super().__init__(experiment, now, warn)

    monkeypatch.setattr(train, "Evaluator", Left)
    assert main([CONFIG, f"--workdir={tmp_path}", ONE]) == 75
    assert "saved at step 7; run again" in capsys.readouterr().out
    assert (7, "val") not in [(r["step"], r["split"]) for r in report.read(tmp_path)]
    monkeypatch.setattr(train, "Evaluator", real)
    assert main([CONFIG, f"--workdir={tmp_path}", ONE]) == 0
    whole, _ = finished(ONE)
    kept = [(r["step"], r["split"], r.get("eval/l1")) for r in report.read(tmp_path)]
    assert kept == [(r["step"], r["split"], r.get("eval/l1")) for r in report.read(whole)]
    assert_same_arrays(arrays(whole, STEPS), arrays(tmp_path, STEPS))
