"""The parts `loop` and `start`."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import get_config

from p2p_jax.bench import loop, start
from p2p_jax.bench.rows import Options
from p2p_jax.config import merge
from p2p_jax.process import Failure

SMALL = {
    "mesh.devices": 1,
    "model.generator.depth": 2,
    "model.generator.base_features": 2,
    "model.generator.dropout": (),
    "model.discriminator.base_features": 2,
    "train.batch_size": 2,
    "eval.metrics": ("l1",),
}


def options(folder: Path, **changes) -> Options:
    small = merge(get_config(), SMALL)
    return Options(folder=folder, log=lambda line: None, seconds=0.01, config=small, **changes)


def test_the_loop_is_set_against_the_step_before_and_after_it(tmp_path, monkeypatch):
    told, seen = [], []

    def trained(experiment, workdir):
        seen.append((experiment, workdir))
        told.append("loop")
        waits, speeds = [0.9] * 4 + [0.02] * 8, [1.0] * 4 + [10.0, 30.0] * 4
        return [
            {"data_wait_frac": wait, "images_per_sec": speed}
            for wait, speed in zip(waits, speeds, strict=True)
        ]

    def step(experiment, config, dispatch, seconds):
        return lambda: told.append(f"step {dispatch}") or 20.0 * dispatch

    monkeypatch.setattr(loop, "_trained", trained)
    monkeypatch.setattr(loop, "_step", step)
    rows = loop.loop(options(tmp_path, steps=70))
    assert told == [
        word
        for _, dispatch in loop.WAYS
        for word in (f"step {dispatch}", "loop", f"step {dispatch}")
    ]
    assert len({workdir for _, workdir in seen}) == len(rows) == 5
    for row, (experiment, _), (cache, dispatch) in zip(rows, seen, loop.WAYS, strict=True):
        assert row["form"] == f"cache {cache}, {dispatch} a dispatch"
        assert row["images_per_sec"] == pytest.approx(15)  # as many images at 10 as at 30
        assert row["data_wait_frac"] == pytest.approx(0.02)
        assert row["ratio"] == row["ratio_step"] == pytest.approx(15 / (20 * dispatch))
        train = experiment.train
        assert (train.cache, train.steps_per_dispatch) == (cache, dispatch)
        assert (train.steps, train.log_every, train.save_every, train.eval_every) == (64, 4, 16, 64)
        assert len(experiment.train_frames) <= 16 * train.batch_size  # seen before it counts


def test_the_end_of_a_step_is_seen_in_the_log(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert not start._logged(log, 1)
    log.write_text('{"step": 0, "split": "val"}\n{"step": 1, "split": "val"}\n{"step": 1, "spl')
    assert not start._logged(log, 1)
    log.write_text('{"step": 0, "split": "val"}\n{"step": 1, "split": "train"}\n')
    assert start._logged(log, 1) and not start._logged(log, 2)


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    config = merge(get_config(), {"data.source": "folder", "data.path": str(tmp_path / "none")})
    with pytest.raises(Failure, match=r"(?s)exit code 2.*data.path"):
        start.first_step(config, tmp_path / "run", 1, tmp_path / "compiled")


@pytest.mark.slow
def test_starts(tmp_path):
    rows = start.start(options(tmp_path))
    assert [row["form"] for row in rows] == [
        "nothing compiled", "compiled before", "resumed, compiled before", "restore alone",
    ]  # fmt: skip
    assert all(row["ms"] == pytest.approx(1000 * row["seconds"]) for row in rows)
    cold, warm, resumed, restored = (row["seconds"] for row in rows)
    assert min(cold, warm, resumed) > restored > 0
    assert any((tmp_path / "compiled").iterdir())
    assert (tmp_path / "start_warm" / "checkpoints" / "2").is_dir()
    assert (tmp_path / "start_cold" / "checkpoints" / "1").is_dir()
