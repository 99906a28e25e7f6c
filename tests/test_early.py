"""A run that ends where evaluations stop getting better, over stops and changes of mind."""

from __future__ import annotations

import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from running import ROOT, arrays, assert_same_arrays, files

from p2p_jax import report
from p2p_jax.early import Early
from p2p_jax.main import main
from p2p_jax.tally import Losses


def _early(patience=2, mode="min", saved=None, **identity):
    options = SimpleNamespace(early_stop=patience, best="l1")
    return Early(options, mode, {"ema": False, "seeds": None} | identity, saved)


def _fed(early, values):
    """After which of the values it is over."""
    told = []
    for step, value in enumerate(values, 1):
        early.update(value, step)
        told.append(early.over)
    return told


def test_it_counts_evaluations_in_a_row_without_progress():
    assert _fed(_early(), (3.0, 2.0, 2.0, 1.9, 1.9, 2.5)) == [False] * 5 + [True]
    assert _fed(_early(mode="max"), (1.0, 2.0, 1.5, 2.0)) == [False, False, False, True]
    assert _fed(_early(0), (1.0, 2.0, 3.0, 4.0)) == [False] * 4


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_not_finite_is_no_progress(mode):
    for bad in (math.nan, math.inf, -math.inf):
        assert _fed(_early(mode=mode), (bad, bad)) == [False, True]
        early = _early(mode=mode)
        assert _fed(early, (bad, 1.0, bad, bad)) == [False, False, False, True]
        assert early.saved()["best"] == 1.0


def test_it_goes_on_where_it_stood_unless_the_figure_is_another():
    early = _early(3)
    _fed(early, (1.0, 2.0, 3.0))
    saved = early.saved()
    assert (saved["best"], saved["step"], saved["bad"]) == (1.0, 1, 2)
    again = _early(3, saved=saved)
    assert again.saved() == saved and _fed(again, (1.5,)) == [True]
    assert "ended early at step 9: 3 evaluations without progress of eval/l1" in again.told(9)
    assert "the best is 1 at step 1" in again.told(9)
    assert not _early(4, saved=again.saved()).over  # more patience
    assert _early(2, saved=saved).over  # less
    for other in ({"ema": True}, {"seeds": 2}):
        assert _early(3, saved=saved, **other).saved()["bad"] == 0


# --- a run ---------------------------------------------------------------------------------------

# A generator that learns nothing: the evaluation of step 1 is the best there is.
FLAGS = (
    f"--config={ROOT / 'tests' / 'golden' / 'tiny.py'}", "--config.optim.gen.lr=0.0",
    "--config.train.eval_every=1", "--config.train.save_every=100", "--config.train.steps=12",
    "--config.train.sample_every=100", "--config.mesh.devices=1",
)  # fmt: skip


def _train(workdir, patience, *flags):
    return main([*FLAGS, f"--workdir={workdir}", f"--config.train.early_stop={patience}", *flags])


def _lines(workdir):
    clock = ("images_per_sec", "data_wait_frac")
    return [
        {k: v for k, v in row.items() if k not in clock and not k.startswith("seconds/")}
        for row in report.read(workdir)
    ]


@pytest.mark.slow
def test_a_run_ends_early_and_goes_on_with_more_patience(tmp_path, capsys, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _train(whole, 3) == 0
    out = capsys.readouterr().out
    assert "ended early at step 4: 3 evaluations without progress of eval/l1" in out
    assert "the best is" in out and "at step 1)" in out
    # All that a last step leaves.
    assert (whole / "eval" / "val" / "4" / "index.html").exists()
    assert (whole / "samples" / "4.png").exists() and (whole / "checkpoints" / "4").exists()
    assert [r["step"] for r in _lines(whole) if r["split"] == "val"] == [0, 1, 2, 3, 4]

    # Stopped in between, the count goes on.
    add = Losses.add

    def stopping(self, step, count, losses):
        add(self, step, count, losses)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Losses, "add", stopping)
        assert _train(parts, 3) == 75
    assert _train(parts, 3) == 0
    assert_same_arrays(arrays(parts, 4), arrays(whole, 4))
    assert _lines(parts) == _lines(whole)
    for folder in ("samples", "eval"):
        assert files(parts / folder) == files(whole / folder)

    # Started again it says so, compiles nothing and changes nothing.
    before = files(whole)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("p2p_jax.begin.make_train_step", None)
        assert _train(whole, 3) == 0
    assert "ended early at step 4" in capsys.readouterr().out
    after = files(whole)
    assert before.pop("run.json") != after.pop("run.json") and before == after

    # With more patience it is the run that had it from the beginning.
    straight = tmp_path / "straight"
    assert _train(whole, 5) == _train(straight, 5) == 0
    assert_same_arrays(arrays(whole, 6), arrays(straight, 6))
    assert _lines(whole) == _lines(straight)
    shutil.rmtree(straight)

    # Less patience ends at once, with all that an end leaves.
    assert _train(parts, 0, "--config.train.steps=5") == 0
    assert _train(parts, 9, "--config.train.steps=7") == 0
    shutil.rmtree(parts / "eval")
    capsys.readouterr()
    assert _train(parts, 1, "--config.train.steps=12") == 0
    assert "ended early at step 7" in capsys.readouterr().out
    assert (parts / "eval" / "val" / "7" / "index.html").exists()
