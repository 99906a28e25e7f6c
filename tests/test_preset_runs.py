"""Every shipped config, made tiny: it trains, saves, resumes and evaluates."""

from __future__ import annotations

import json
import math

import jax
import pytest
from helpers import QUICK
from jax.experimental.compilation_cache import compilation_cache
from test_presets import CONFIGS, FED, NAMES, preset

from p2p_jax.config import flatten, merge
from p2p_jax.dialects import DIALECTS
from p2p_jax.flags import saved_config
from p2p_jax.main import main
from p2p_jax.validate import resolved


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs are compiled quickly, and those that tests here share by the first of them."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    folder = tmp_path_factory.mktemp("compiled")
    for name, value in zip(names, (str(folder), 0.1), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    compile_it = jax.stages.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda self: compile_it(self, QUICK))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def shrunk(config):
    """Changes that make a config tiny, and leave all else as it is."""
    load = 36 if config.data.load_size != config.data.crop_size else 32
    return FED | {
        "data.max_examples": 8,
        "data.load_size": (load, load),
        "data.crop_size": (32, 32),
        "model.generator.depth": 3,
        "model.generator.base_features": 4,
        "model.generator.dropout": tuple(k for k in config.model.generator.dropout if k < 3),
        "model.discriminator.layers": 1,
        "model.discriminator.base_features": 4,
        "train.log_every": 1,
        "train.eval_every": 2,
        "eval.batch_size": 1,
        "eval.examples": 2,
        "eval.sample_count": 2,
    }


def words(changes):
    """Changes as a user would write them."""
    for key, value in changes.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        yield f"--config.{key}={text}"


def logged(workdir, split):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(v) for row in rows for k, v in row.items() if k != "split")
    return [row for row in rows if row["split"] == split]


# Each config in one dialect, in turn: `test_presets` builds every pair.
SOME = [(name, list(DIALECTS)[i % len(DIALECTS)]) for i, name in enumerate(NAMES)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dialect"), SOME)
def test_train_resume_evaluate(name, dialect, tmp_path, capsys, compiled_once):
    workdir = tmp_path / "run"
    config = preset(name, dialect)
    held = config.data.eval_split
    changes = shrunk(config)
    argv = [f"--config={CONFIGS / name}.py:{dialect}", f"--workdir={workdir}", *words(changes)]
    # Rates that fall by the end of the run are others where the end is.
    moved = ["--allow_config_change"] * (config.optim.schedule != "constant")

    assert main([*argv, "--config.train.steps=2"]) == 0
    first = logged(workdir, "train")
    assert [row["step"] for row in first] == [1, 2]
    assert [row["images"] for row in first] == [config.train.batch_size * k for k in (1, 2)]
    assert {"loss/disc", "loss/gen_gan", "loss/gen_l1"} <= first[0].keys()
    assert (workdir / "checkpoints" / "2").is_dir()

    capsys.readouterr()
    assert main([*argv, "--config.train.steps=3", *moved]) == 0
    assert "resumed at step 2 of 3" in capsys.readouterr().out
    assert logged(workdir, "train")[:2] == first
    assert [row["step"] for row in logged(workdir, "train")] == [1, 2, 3]
    assert [row["step"] for row in logged(workdir, held)] == [0, 2, 3]
    assert (workdir / "checkpoints" / "3").is_dir()
    saved = flatten(saved_config(workdir))
    assert saved == flatten(resolved(merge(config, changes | {"train.steps": 3})))

    evaluated = workdir / "eval" / held / "3"
    page = evaluated / "index.html"
    page.unlink()
    assert main(["--mode=eval", f"--workdir={workdir}"]) == 0
    assert page.is_file()
    metrics = json.loads((evaluated / "metrics.json").read_text())
    last = logged(workdir, held)[-1]
    for name in config.eval.metrics:
        assert metrics[f"eval/{name}"] == last[f"eval/{name}"]
    assert len(list((evaluated / "images").iterdir())) >= 2
