"""Checkpoints: what is saved comes back to the bit, or not at all and by name."""

from __future__ import annotations

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import turned
from jax.sharding import NamedSharding, PartitionSpec
from running import (
    CONFIG,
    STEPS,
    arrays,
    assert_same_arrays,
    checkpoints,
    files,
    finished,
    train_to,
)

from p2p_jax import checkpoint, storage
from p2p_jax.begin import check_afresh
from p2p_jax.checkpoint import CheckpointError
from p2p_jax.main import main
from p2p_jax.mesh import make_mesh, replicated
from p2p_jax.state import NetState, TrainState
from tests import buckets

# When a restore fails, Orbax closes its event loop under the reads that are still under way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _state(step, ema=True, fill=None):
    """Arrays of the kinds that a state has, different at each step, on all devices."""
    draw = np.random.default_rng(step)

    def array(*shape):
        values = draw.standard_normal(shape).astype(np.float32)
        return values if fill is None else np.full_like(values, fill)

    def net():
        params = {"conv": {"kernel": array(4, 4, 8, 8), "bias": array(8)}}
        return NetState(params, {"mean": array(8)}, (array(4, 4, 8, 8), np.int32(step)))

    key = jax.random.key(step, impl="threefry2x32")
    state = TrainState(np.int32(step), net(), net(), {"k": array(3, 5)} if ema else {}, key)
    return jax.device_put(state, replicated(make_mesh(0)))


def _like(state):
    return checkpoint.split(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    )


def _bits(tree):
    def bits(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return ("key", str(x.dtype), np.asarray(jax.random.key_data(x)).tobytes())
        return (str(x.dtype), x.shape, np.asarray(x).tobytes())

    return jax.tree.structure(tree), [bits(x) for x in jax.tree.leaves(tree)]


def _open(workdir, keep=2, best=lambda: None):
    return checkpoint.open_manager(workdir, keep, best)


def _save(workdir, steps, metrics=None, **options):
    manager = _open(workdir, **options)
    for step in steps:
        checkpoint.save(manager, _state(step), {"at": step}, (metrics or {}).get(step))
    checkpoint.close(manager)


def _restore(workdir, warnings, set_aside=True):
    manager = _open(workdir)
    try:
        return checkpoint.restore(manager, _like(_state(1)), warnings.append, set_aside)
    finally:
        checkpoint.close(manager)


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip_to_the_bit(tmp_path, ema):
    state = _state(7, ema)
    # Values that a careless comparison or conversion would change.
    odd = np.array([-1e-45, -0.0, 3.4e38, 1e-45, 0, 1, 2, 3], np.float32)
    state.gen.params["conv"]["bias"] = jax.device_put(odd, state.step.sharding)
    manager = _open(tmp_path)
    checkpoint.save(manager, state, {"best": 0.5, "losses": {"count": 3, "sums": [0.1]}}, None)
    checkpoint.close(manager)
    found = checkpoint.restore(_open(tmp_path), _like(state), pytest.fail)
    assert found.step == 7
    assert _bits(checkpoint.join(**found.items)) == _bits(state)
    assert found.meta["best"] == 0.5 and found.meta["losses"] == {"count": 3, "sums": [0.1]}
    restored = checkpoint.join(**found.items)
    assert restored.step.sharding == state.step.sharding
    assert (jax.random.bits(restored.key) == jax.random.bits(state.key)).all()


def test_the_generator_alone(tmp_path):
    _save(tmp_path, [3])
    like = {"gen": _like(_state(3))["gen"]}
    found = checkpoint.restore(checkpoint.open_reader(tmp_path), like, pytest.fail)
    assert found.items.keys() == {"gen"}
    assert _bits(found.items["gen"]) == _bits(checkpoint.split(_state(3))["gen"])


def test_nothing_there_is_no_error(tmp_path):
    assert checkpoint.open_reader(tmp_path) is None
    assert _restore(tmp_path, []) is None


def test_the_latest_are_kept_and_the_best(tmp_path):
    best = []
    _save(tmp_path, [1], best=lambda: None)
    _save(tmp_path, [2, 3], best=lambda: 2)
    assert checkpoints(tmp_path) == ["2", "3"]
    _save(tmp_path, [4, 5, 6], best=lambda: 2)
    assert checkpoints(tmp_path) == ["2", "5", "6"]
    _save(tmp_path, [7], best=lambda: best.append(7) or 7, keep=3)
    assert checkpoints(tmp_path) == ["5", "6", "7"] and best == [7]


def _best(workdir, meta, metric="eval/l1", mode="min"):
    manager = _open(workdir)
    try:
        return checkpoint.best_of(manager, meta, metric, mode)
    finally:
        checkpoint.close(manager)


def test_the_best_one_is_told_from_what_was_saved_with_it(tmp_path):
    assert _best(tmp_path, {}) is None
    _save(tmp_path, [0], keep=9)
    assert _best(tmp_path, {"best": None}) is None
    values = {1: 0.5, 2: 0.1, 3: 0.3, 4: float("nan"), 5: float("-inf"), 7: float("inf")}
    metrics = {step: {"eval/l1": v, "eval/psnr": 9 * v} for step, v in values.items()}
    _save(tmp_path, range(1, 8), metrics, keep=9)
    # As older versions saved it: only its value.
    least = {"metric": "eval/l1", "value": 0.1, "step": 2}
    most = {"metric": "eval/psnr", "value": 4.5, "step": 1}
    assert _best(tmp_path, {"best": 0.1}) == least
    assert _best(tmp_path, {"best": 0.1}, "eval/psnr", "max") == most
    # What the run knew stands, as long as it is of this metric and the step is there.
    known = {"metric": "eval/l1", "value": 0.3, "step": 3}
    assert _best(tmp_path, {"best": known}) == known
    assert _best(tmp_path, {"best": known}, "eval/psnr", "max") == most
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    assert _best(tmp_path, {"best": known}) == least


def test_metrics_that_cannot_be_read_are_no_obstacle(tmp_path):
    _save(tmp_path, [1, 2], {1: {"eval/l1": 0.5}, 2: {"eval/l1": 0.1}})
    for path in (tmp_path / "checkpoints" / "2" / "metrics").iterdir():
        path.write_bytes(b"")
    assert _best(tmp_path, {"best": 0.1}) == {"metric": "eval/l1", "value": 0.5, "step": 1}
    assert _restore(tmp_path, []).step == 2


@pytest.mark.parametrize("step", [4, 5])
def test_a_step_that_is_not_the_next_is_refused(tmp_path, step):
    _save(tmp_path, [5])
    before, manager = files(tmp_path), _open(tmp_path)
    with pytest.raises(CheckpointError, match=f"step {step} cannot be saved"):
        checkpoint.save(manager, _state(step), {}, None)
    checkpoint.close(manager)
    assert files(tmp_path) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, value):
    _save(tmp_path, [1])
    before, manager, state = files(tmp_path), _open(tmp_path), _state(2)
    for tree, name in ((state.disc.params["conv"], "bias"), (state.gen.stats, "mean")):
        bad = np.asarray(tree[name]).copy()
        bad[3] = value
        tree[name] = jax.device_put(bad, state.step.sharding)
    wanted = r"the state of step 2 .* in gen/stats/mean, train/disc/params/conv/bias$"
    with pytest.raises(checkpoint.NotFiniteState, match=wanted):
        checkpoint.save(manager, state, {}, None)
    assert checkpoint.latest(manager) == 1
    checkpoint.save(manager, _state(2), {}, None)  # and it is of use as before
    checkpoint.settle(manager)
    assert checkpoint.latest(manager) == 2
    checkpoint.close(manager)
    now = files(tmp_path)
    assert before.items() <= now.items() and checkpoints(tmp_path) == ["1", "2"]


def test_a_fingerprint_says_nothing_of_devices():
    state = checkpoint.split(_state(3))
    one = jax.device_put(state, jax.devices()[0])
    split = NamedSharding(make_mesh(0), PartitionSpec("data"))
    shared = jax.tree.map(lambda x: jax.device_put(x, split) if x.shape[:1] == (8,) else x, state)
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(shared))
    wanted = checkpoint.fingerprint(state)
    assert checkpoint.fingerprint(one) == checkpoint.fingerprint(shared) == wanted


# --- damage --------------------------------------------------------------------------------------


def _data_files(folder):
    """Files that hold arrays, without Orbax's notes on them."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d")


def _flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def _assert_passed_over(workdir, step, sound):
    """Restores `sound`, names `step`, and has it out of the way."""
    warnings = []
    found = _restore(workdir, warnings)
    assert found.step == sound
    assert _bits(checkpoint.join(**found.items)) == _bits(_state(sound))
    assert any(f"checkpoint {step}: " in warning for warning in warnings)
    assert any(f"checkpoint {step} was moved to {step}.damaged" in w for w in warnings)
    names = checkpoints(workdir)
    assert f"{step}.damaged" in names and str(step) not in names
    _save(workdir, [step])  # the run comes by again
    assert _restore(workdir, [], set_aside=False).step == step


@pytest.mark.parametrize("item", ["gen", "train"])
def test_a_flipped_bit_in_any_array_file_never_passes(tmp_path, item):
    _save(tmp_path / "sound", [1, 2])
    places = [p.relative_to(tmp_path / "sound") for p in
              _data_files(tmp_path / "sound" / "checkpoints" / "2" / item)]  # fmt: skip
    noticed = 0
    for number, path in enumerate(places):
        for place in (0.1, 0.5, 0.9):
            copy = tmp_path / f"{number}-{place}"
            shutil.copytree(tmp_path / "sound", copy)
            _flip(copy / path, place)
            found = _restore(copy, [])
            # Either it is told apart, or (in a file that nothing refers to) nothing has changed.
            assert _bits(checkpoint.join(**found.items)) == _bits(_state(found.step)), (path, place)
            noticed += found.step == 1
    assert noticed > 0


def test_twenty_random_bits_are_noticed_or_harmless(tmp_path):
    """Of all files that hold arrays, each as likely as it is long."""
    _save(tmp_path / "sound", [1, 2])
    step = tmp_path / "sound" / "checkpoints" / "2"
    paths = [p for item in ("gen", "train") for p in _data_files(step / item)]
    sizes = np.array([p.stat().st_size for p in paths])
    noticed = 0
    for seed in range(60):
        if seed >= 20 and noticed:  # how many of the files are referred to is left to chance
            break
        rng = np.random.default_rng(seed)
        number = int(rng.choice(len(paths), p=sizes / sizes.sum()))
        place, bit = int(rng.integers(sizes[number])), int(rng.integers(8))
        print(f"seed {seed}: bit {bit} of byte {place} of {paths[number].relative_to(step)}")
        whole = paths[number].read_bytes()
        data = bytearray(whole)
        data[place] ^= 1 << bit
        paths[number].write_bytes(data)
        found = _restore(tmp_path / "sound", [], set_aside=False)
        assert _bits(checkpoint.join(**found.items)) == _bits(_state(found.step)), seed
        noticed += found.step == 1
        paths[number].write_bytes(whole)
    assert noticed


def test_no_file_without_its_content_passes(tmp_path):
    _save(tmp_path, [1, 2], {2: {"eval/l1": 0.5}})
    step, noticed = tmp_path / "checkpoints" / "2", 0
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        whole, warnings = path.read_bytes(), []
        path.write_bytes(b"")
        found = _restore(tmp_path, warnings, set_aside=False)
        assert _bits(checkpoint.join(**found.items)) == _bits(_state(found.step)), path
        assert found.meta["at"] == found.step and (found.step == 1) is bool(warnings)
        noticed += found.step == 1
        path.write_bytes(whole)
    assert noticed >= 6 and _restore(tmp_path, []).step == 2


def test_a_number_that_changed_in_meta_is_noticed(tmp_path):
    _save(tmp_path, [1, 2])
    path = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    text = path.read_text()
    assert '"at": 2' in text
    path.write_text(text.replace('"at": 2', '"at": 3'))
    warnings = []
    assert _restore(tmp_path, warnings).step == 1
    assert "meta is not what was saved" in warnings[0]


# Harm is done to every array file of an item: which of them a checkpoint still refers to (a write
# that is overtaken by the next leaves its file behind) depends on the timing of the save.


def _flip_all(item):
    for path in _data_files(item):
        _flip(path)


@pytest.mark.parametrize("item", ["gen", "train"])
def test_a_flipped_bit_is_named_and_set_aside(tmp_path, item):
    _save(tmp_path, [1, 2])
    _flip_all(tmp_path / "checkpoints" / "2" / item)
    _assert_passed_over(tmp_path, 2, 1)


def test_other_arrays_that_restore_well_are_told_by_their_fingerprints(tmp_path):
    _save(tmp_path, [1, 2])
    _save(tmp_path / "other", [3])
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "gen")
    shutil.copytree(tmp_path / "other/checkpoints/3/gen", tmp_path / "checkpoints/2/gen")
    shutil.rmtree(tmp_path / "other")
    warnings = []
    assert _restore(tmp_path, warnings).step == 1
    assert "is not what was saved" in warnings[0]


def test_one_bit_in_each_array_changes_its_fingerprint():
    for value in (0.0, 1.0, -3.5e-20):
        array = np.full((3, 5), value, np.float32)
        whole = checkpoint.fingerprint([array])
        for place in (0, 7, 14):
            for bit in range(32):
                changed = array.copy()
                changed.view(np.uint32).reshape(-1)[place] ^= np.uint32(1) << np.uint32(bit)
                assert checkpoint.fingerprint([changed]) != whole, (value, place, bit)
    swapped = np.arange(6, dtype=np.float32)
    assert checkpoint.fingerprint([swapped]) != checkpoint.fingerprint([swapped[::-1].copy()])


@pytest.mark.parametrize("harm", ["truncated", "deleted", "no meta", "no item", "nothing"])
def test_what_cannot_be_read_is_passed_over(tmp_path, harm):
    _save(tmp_path, [1, 2])
    folder = tmp_path / "checkpoints" / "2"
    if harm == "truncated":
        for path in _data_files(folder):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif harm == "deleted":
        for path in _data_files(folder / "gen"):
            path.unlink()
    elif harm == "no meta":
        shutil.rmtree(folder / "meta")
    elif harm == "nothing":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        shutil.rmtree(folder / "train")
    _assert_passed_over(tmp_path, 2, 1)


def _failing(monkeypatch, error, times):
    """Reads of checkpoint 2 fail so often."""
    read, left = checkpoint.Manager.restore, [error] * times

    def restore(self, step, **named):
        if step == 2 and left:
            raise left.pop()
        return read(self, step, **named)

    monkeypatch.setattr(checkpoint.Manager, "restore", restore)
    monkeypatch.setattr("p2p_jax.restore._PAUSE", 0.0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
def test_one_failed_read_costs_no_checkpoint(tmp_path, monkeypatch, number):
    _save(tmp_path, [1, 2])
    _failing(monkeypatch, OSError(number, "x"), 1)
    warnings = []
    assert _restore(tmp_path, warnings).step == 2 and checkpoints(tmp_path) == ["1", "2"]
    (told,) = warnings
    assert told.startswith("checkpoint 2 could be read at the second try alone; at the first: ")


@pytest.mark.parametrize("set_aside", [True, False])
def test_nor_do_errors_of_the_moment(tmp_path, monkeypatch, set_aside):
    _save(tmp_path, [1, 2])
    _failing(monkeypatch, ValueError("UNAVAILABLE: 503"), 9)
    wanted = r"checkpoint 2 in .* cannot be read now: ValueError: UNAVAILABLE: 503. Nothing was"
    with pytest.raises(CheckpointError, match=wanted):
        _restore(tmp_path, [], set_aside)
    assert checkpoints(tmp_path) == ["1", "2"]
    _failing(monkeypatch, OSError(errno.EIO, "x"), 2)  # a disk that cannot read it is another thing
    assert _restore(tmp_path, []).step == 1 and "2.damaged" in checkpoints(tmp_path)


def test_set_aside_twice(tmp_path):
    for _ in range(2):
        _save(tmp_path, [2] if checkpoints_or_none(tmp_path) else [1, 2])
        _flip_all(tmp_path / "checkpoints" / "2" / "gen")
        assert _restore(tmp_path, []).step == 1
    assert checkpoints(tmp_path) == ["1", "2.damaged", "2.damaged-1"]


def checkpoints_or_none(workdir):
    return checkpoints(workdir) if (workdir / "checkpoints").exists() else []


def test_none_sound_is_an_error_that_changes_nothing(tmp_path):
    _save(tmp_path, [1, 2])
    for step in ("1", "2"):
        _flip_all(tmp_path / "checkpoints" / step / "gen")
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound.*Nothing was changed"):
        _restore(tmp_path, [])
    assert files(tmp_path) == before


@pytest.mark.parametrize("names", [["2.damaged"], ["1.damaged", "2.damaged-1"]])
def test_where_all_were_set_aside_it_is_not_begun_afresh(tmp_path, names):
    _save(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    for name in names:
        shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / name)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    before = files(tmp_path)
    for set_aside in (True, False):
        with pytest.raises(CheckpointError, match=f"holds {', '.join(names)} and no checkpoint"):
            _restore(tmp_path, [], set_aside)
    reader = checkpoint.open_reader(tmp_path)
    with pytest.raises(CheckpointError, match="another --workdir, or move that folder away"):
        checkpoint.restore(reader, _like(_state(1)), pytest.fail)
    assert files(tmp_path) == before
    # As it is told.
    folder = tmp_path / "checkpoints"
    (folder / names[-1]).rename(folder / "2")
    assert _restore(tmp_path, []).step == 2


def test_a_reader_changes_nothing(tmp_path):
    _save(tmp_path, [1, 2])
    _flip_all(tmp_path / "checkpoints" / "2" / "gen")
    before, warnings = files(tmp_path), []
    like = {"gen": _like(_state(1))["gen"]}
    found = checkpoint.restore(checkpoint.open_reader(tmp_path), like, warnings.append)
    assert found.step == 1 and "checkpoint 2: " in warnings[0]
    assert files(tmp_path) == before and checkpoints(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("gone", ["empty", "missing"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_afresh(tmp_path, gone):
    (tmp_path / "config.json").write_text('{"train": {"save_every": 5}}')
    if gone == "empty":
        (tmp_path / "checkpoints").mkdir()
    manager = _open(tmp_path)
    early = [{"step": step} for step in (0, 5, 10)]  # it was killed in its first save, at 10
    check_afresh(manager, tmp_path, early)
    check_afresh(manager, tmp_path, [])
    wanted = r"metrics.jsonl tells of 11 steps, with a checkpoint every 5, and .*checkpoints is em"
    with pytest.raises(CheckpointError, match=wanted):
        check_afresh(manager, tmp_path, [*early, {"step": 11}])
    (tmp_path / "checkpoints" / "10.damaged").mkdir()  # of which `restore` tells
    check_afresh(manager, tmp_path, [{"step": 11}])
    (tmp_path / "checkpoints" / "10.damaged").rmdir()
    checkpoint.save(manager, _state(1), {}, None)
    check_afresh(manager, tmp_path, [{"step": 11}])
    checkpoint.close(manager)


def test_what_a_failed_save_left_in_a_bucket_is_removed(monkeypatch):
    """A save that is not complete has its own name there, and all that is asked may fail."""
    bucket, workdir = buckets.make(monkeypatch), buckets.workdir()
    for name in ("5/gen/d/a", "5/commit_success.txt", "7/gen/d/a", "7/meta/m", "70/gen/d/a"):
        storage.write_atomic(workdir / name, b"x")
    asked = []

    class Orbaxs:
        directory = workdir

        def refresh(self):
            asked.append(1)
            storage.forget(workdir)

        def all_steps(self):
            return [5, 70]

    checkpoint._clear(Orbaxs(), 7)
    assert bucket.names() == ["run/5/commit_success.txt", "run/5/gen/d/a", "run/70/gen/d/a"]
    assert len(asked) == 2  # once more when it is gone
    checkpoint._clear(Orbaxs(), 5)  # complete, whatever failed
    assert len(bucket.names()) == 3
    monkeypatch.setattr(bucket, "ls", lambda *args, **named: 1 / 0)
    checkpoint._clear(Orbaxs(), 5)  # other processes wait to hear of the failure: nothing is raised


@pytest.mark.slow
def test_what_cannot_go_on_leaves_the_record_of_the_run(tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    before = files(workdir)
    flags = [CONFIG, f"--workdir={workdir}"]
    other = ["--config.model.generator.base_features=8", "--allow_config_change"]
    assert main([*flags, *other]) == 1
    assert "Nothing was changed" in capsys.readouterr().err and files(workdir) == before
    shutil.rmtree(workdir / "checkpoints")
    before = {k: v for k, v in before.items() if not k.startswith("checkpoints/")}
    assert main([*flags, "--config.train.steps=20"]) == 1
    assert "tells of 12 steps, with a checkpoint every 5" in capsys.readouterr().err
    assert files(workdir) == before


@pytest.mark.slow
def test_training_goes_on_from_the_sound_one(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    _flip_all(workdir / "checkpoints" / str(STEPS) / "train")
    printed = train_to(workdir)
    assert f"checkpoint {STEPS}: " in printed and f"{STEPS}.damaged" in printed
    assert "resumed at step 10" in printed
    assert checkpoints(workdir) == ["10", str(STEPS), f"{STEPS}.damaged"]
    assert_same_arrays(arrays(finished()[0], STEPS), arrays(workdir, STEPS))


# --- donation ------------------------------------------------------------------------------------


def test_a_state_in_other_layouts_is_saved_as_any(tmp_path):
    manager = _open(tmp_path)
    checkpoint.save(manager, turned(_state(1)), {}, None)
    checkpoint.close(manager)
    found = checkpoint.restore(_open(tmp_path), _like(_state(1)), pytest.fail)
    assert _bits(checkpoint.join(**found.items)) == _bits(_state(1))


def test_a_save_is_not_harmed_by_the_donation_that_follows(tmp_path):
    state = _state(1)
    before = _bits(state)

    def spoil(x):
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0 - 7

    spoiling = jax.jit(lambda state: jax.tree.map(spoil, state), donate_argnums=0)
    spoiling(jax.tree.map(jnp.copy, state))  # compiled beforehand: no time may pass below
    manager = _open(tmp_path)
    checkpoint.save(manager, state, {}, None)
    for _ in range(20):
        state = spoiling(state)
    jax.block_until_ready(state)
    checkpoint.close(manager)
    found = checkpoint.restore(_open(tmp_path), _like(_state(1)), pytest.fail)
    assert _bits(checkpoint.join(**found.items)) == before


@pytest.mark.slow
def test_nor_by_the_real_step(tmp_path):
    from p2p_jax.begin import begin
    from p2p_jax.build import build
    from p2p_jax.console import Console
    from p2p_jax.flags import parse
    from p2p_jax.train import Trainer

    command = parse([CONFIG, f"--workdir={tmp_path}"])
    experiment = build(command.config, lambda text: None)
    trainer = Trainer(experiment, tmp_path, Console())
    begun = begin(experiment, trainer.manager, trainer.console, trainer.ledger, lambda meta: False)
    step_fn, state, *_ = begun
    rng = np.random.default_rng(0)
    shape = (4, 4, 32, 32, 3)
    batch = tuple(rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2))
    from p2p_jax.data import Batch
    from p2p_jax.mesh import put_replicated, put_split

    batch = put_split(experiment.mesh, Batch(*batch), 1)
    hyper = put_replicated(experiment.mesh, (experiment.hyper(0, 4), np.int32(4)))
    before = _bits(state)
    checkpoint.save(trainer.manager, state, {}, None)
    for _ in range(5):
        state, _ = step_fn(state, batch, *hyper)
    jax.block_until_ready(state)
    assert _bits(state) != before
    checkpoint.close(trainer.manager)
    like = checkpoint.split(experiment.abstract_state())
    found = checkpoint.restore(_open(tmp_path), like, pytest.fail)
    assert _bits(checkpoint.join(**found.items)) == before
