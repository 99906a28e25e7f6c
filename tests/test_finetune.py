"""A run that begins with the networks of another one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from running import (
    CONFIG,
    STEPS,
    arrays,
    assert_same_arrays,
    files,
    finished,
    start,
    train_to,
)

from p2p_jax import checkpoint
from p2p_jax.begin import begin
from p2p_jax.build import build
from p2p_jax.config import ConfigError, flatten
from p2p_jax.console import Console
from p2p_jax.finetune import begin_from, check
from p2p_jax.flags import parse
from p2p_jax.main import main
from p2p_jax.networks import draw
from p2p_jax.train import Trainer


@pytest.fixture
def nothing_compiles(monkeypatch):
    """What does not fit is told in place of a run."""
    monkeypatch.setattr("p2p_jax.begin.make_train_step", lambda *_: _Uncompiled())
    monkeypatch.setattr("p2p_jax.begin.laid_out_for", lambda step_fn, state: state)


class _Uncompiled:
    """Stands for the step, which is compiled beside the drawing of the state."""

    def lower(self, *_):
        return self

    def compile(self):
        return self


def _first(tmp_path, *flags):
    """The state that training would begin with, by path, as a checkpoint would hold it."""
    command = parse([CONFIG, f"--workdir={tmp_path / 'run'}", *flags])
    trainer = Trainer(build(command.config, lambda text: None), tmp_path / "run", Console())
    try:
        _, state, meta, _ = begin(
            trainer.experiment, trainer.manager, trainer.console, trainer.ledger, lambda meta: False
        )
    finally:
        checkpoint.close(trainer.manager)
    assert meta == {} and int(state.step) == 0
    return state


def _tree(part):
    flat, _ = jax.tree_util.tree_flatten_with_path(part)
    return {"/".join(str(key.key) for key in path): np.asarray(x) for path, x in flat}


def _saved(prefix):
    """What the finished run's last checkpoint holds below a path."""
    found = arrays(finished()[0], STEPS)
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _differs(one, other):
    return one.keys() == other.keys() and all(
        (one[k] != other[k]).any() for k in one if "kernel" in k
    )


FROM = "--config.train.init_from={}"


@pytest.mark.usefixtures("nothing_compiles")
def test_both_networks_are_those_of_the_other_run(tmp_path):
    donor = finished()[0]
    before = files(donor)
    # Another seed, and other rates: only the networks come from there.
    flags = ("--config.seed=3", "--config.optim.gen.lr=1e-3")
    state = _first(tmp_path, FROM.format(donor), *flags)
    fresh = _first(tmp_path / "fresh", *flags)
    assert files(donor) == before
    for part in ("params", "stats"):
        assert_same_arrays(_tree(getattr(state.gen, part)), _saved(f"gen/{part}/"))
        assert_same_arrays(_tree(getattr(state.disc, part)), _saved(f"train/disc/{part}/"))
        assert part == "stats" or _differs(_tree(state.gen.params), _tree(fresh.gen.params))
    # Averages begin anew, at the parameters; so do optimisers, the count of steps and the key.
    assert_same_arrays(_tree(state.ema), _saved("gen/params/"))
    for net in ("gen", "disc"):
        moments = jax.tree.leaves(getattr(state, net).opt_state)
        assert not any(np.asarray(x).any() for x in moments)
    keys = [np.asarray(jax.random.key_data(s.key)).tolist() for s in (state, fresh)]
    assert keys[0] == keys[1]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiles")
def test_the_generator_alone(tmp_path):
    # The discriminator may be another one then.
    flags = ("--config.train.init_nets=generator", "--config.model.discriminator.layers=2")
    state = _first(tmp_path, FROM.format(finished()[0]), *flags)
    fresh = _first(tmp_path / "fresh", *flags)
    for part in ("params", "stats"):
        assert_same_arrays(_tree(getattr(state.gen, part)), _saved(f"gen/{part}/"))
        ours, drawn = (_tree(getattr(s.disc, part)) for s in (state, fresh))
        assert_same_arrays(ours, drawn)
    assert_same_arrays(_tree(state.ema), _saved("gen/params/"))


@pytest.mark.slow
def test_the_state_is_laid_out_like_a_fresh_one(tmp_path):
    """The step was compiled for arrays on all devices."""
    command = parse([CONFIG, f"--workdir={tmp_path}"])
    experiment = build(command.config, lambda text: None)
    trainer = Trainer(experiment, tmp_path, Console())
    try:
        fresh = draw(experiment.gan, experiment.seed, experiment.abstract_state())
    finally:
        checkpoint.close(trainer.manager)
    state = begin_from(finished()[0], "both", fresh, experiment.mesh, Console())
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        assert (new.shape, new.dtype, new.sharding) == (old.shape, old.dtype, old.sharding)
    # One buffer must not be donated twice.
    pointers = [
        x.addressable_shards[0].data.unsafe_buffer_pointer()
        for x in jax.tree.leaves((state.gen, state.disc, state.ema))
    ]
    assert len(set(pointers)) == len(pointers)


def test_another_function_of_the_same_weights_is_pointed_out(capsys):
    donor = finished()[0]
    command = parse([
        CONFIG, "--workdir=/nowhere", FROM.format(donor), "--config.model.generator.slope=0.3",
        "--config.model.norm_scale_std=0.5", "--config.model.discriminator.slope=0.1",
        "--config.train.init_nets=generator",
    ])  # fmt: skip
    check(command.config, Console())
    printed = " ".join(capsys.readouterr().out.split())
    assert f"model.generator.slope: 0.3, but 0.2 in {donor}" in printed
    # What only matters when networks are drawn is no difference, nor is a network not taken.
    assert "norm_scale_std" not in printed and "discriminator" not in printed


@pytest.mark.slow
def test_it_trains(tmp_path):
    donor = finished()[0]
    flags = ("--config.train.steps=2", "--config.seed=3")
    printed = train_to(tmp_path / "run", 0, FROM.format(donor), *flags)
    assert f"begins with the generator and discriminator of {donor}, step {STEPS}" in printed
    # It goes on by itself, but cannot begin once more.
    again = ("--config.seed=3", "--config.train.steps=3")
    ran = start(CONFIG, f"--workdir={tmp_path / 'run'}", FROM.format(tmp_path), *again)
    assert ran.returncode == 2 and "has begun already" in ran.stderr
    resumed = train_to(tmp_path / "run", 0, *again)
    assert "resumed at step 2 of 3" in resumed and "begins with" not in resumed
    assert arrays(tmp_path / "run", 3)["train/step"] == 3


# --- refusals ------------------------------------------------------------------------------------


def _refused(capsys, workdir, *flags):
    """The lines on standard error; no folder may be made."""
    assert main([CONFIG, f"--workdir={workdir}", *flags]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines), err
    assert not workdir.exists()
    return [line.removeprefix("error: ") for line in lines]


def test_other_widths_are_named_tensor_by_tensor(capsys, tmp_path):
    donor = finished()[0]
    before = files(donor)
    flags = (FROM.format(donor), "--config.model.generator.base_features=8")
    *tensors, hint = _refused(capsys, tmp_path / "run", *flags)
    kernel = "float32[4, 4, 64, 32] in this run, float32[4, 4, 32, 16] there"
    assert f"generator params/dec1/conv/kernel: {kernel}" in tensors
    assert tensors[-1].startswith("and ") and tensors[-1].endswith(" more") and len(tensors) == 21
    assert all(t.startswith("generator ") for t in tensors[:-1])
    assert hint.startswith(f"train.init_from: {donor} has other networks; make model.*")
    assert "init_nets" not in hint  # the generator is another one, too
    assert files(donor) == before


@pytest.mark.slow
def test_layers_that_are_missing_are_named(capsys, tmp_path):
    donor = finished()[0]
    flags = (FROM.format(donor), "--config.model.discriminator.layers=2")
    problems = _refused(capsys, tmp_path / "run", *flags)
    for tensor in ("params/conv4/conv/kernel: float32[4, 4, 16, 1]", "stats/conv3/norm/mean: "
                   "float32[16]"):  # fmt: skip
        assert f"discriminator {tensor} in this run, absent there" in problems
    assert not any(p.startswith("generator ") for p in problems)
    assert problems[-1].endswith(", or take train.init_nets=generator")
    # Said of the generator alone, with no way out that there is not.
    flags = (FROM.format(donor), "--config.train.init_nets=generator",
             "--config.model.generator.norm=instance_affine")  # fmt: skip
    problems = _refused(capsys, tmp_path / "other", *flags)
    assert "generator stats/dec1/norm/mean: absent in this run, float32[16] there" in problems
    assert "init_nets" not in problems[-1]


def test_a_folder_that_is_no_run(capsys, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        (problem,) = _refused(capsys, tmp_path / "run", FROM.format(folder))
        assert problem.startswith(f"train.init_from: {folder} holds no config.json")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("folder", [True, False])
def test_a_run_without_a_checkpoint(capsys, tmp_path, folder):
    donor = tmp_path / "donor"
    (donor / "checkpoints" if folder else donor).mkdir(parents=True)
    (donor / "config.json").write_bytes((finished()[0] / "config.json").read_bytes())
    before = files(donor)
    (problem,) = _refused(capsys, tmp_path / "run", FROM.format(donor))
    assert problem == f"train.init_from: {donor} holds no checkpoint yet; train first"
    assert files(donor) == before


@pytest.mark.slow
def test_numbers_of_another_width(tmp_path):
    donor = finished()[0]
    ran = start(CONFIG, f"--workdir={tmp_path / 'run'}", FROM.format(donor),
                "--config.train.precision=float64")  # fmt: skip
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert f"train.init_from: {donor} has train.precision=float32; use the same" in ran.stderr


def test_the_saved_config_says_where_it_began(tmp_path):
    """And it may be taken out again, as it matters at the start alone."""
    command = parse([CONFIG, f"--workdir={tmp_path}", FROM.format("/x")])
    assert flatten(command.config)["train.init_from"] == "/x"
    experiment = build(command.config, lambda text: None)
    assert experiment.train.init_from == "/x" and experiment.train.init_nets == "both"
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        begin_from(tmp_path / "x", "both", None, experiment.mesh, Console())
