"""The loop: what is done when, what is written, and what ends it."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import (
    CONFIG,
    ROOT,
    STEPS,
    arrays,
    assert_same_arrays,
    checkpoints,
    finished,
    get_config,
    start,
    train_to,
)

from p2p_jax import report, train
from p2p_jax.build import TrainOptions
from p2p_jax.checkpoint import SaveFailed
from p2p_jax.console import Console
from p2p_jax.data import DataError, Feed, Fit, Form, Frames, IndexFeed, Pair, order
from p2p_jax.data.substitute import Substituting
from p2p_jax.early import Early
from p2p_jax.ledger import KINDS, Ledger
from p2p_jax.tally import Losses, NotFinite
from p2p_jax.train import Trainer, plan
from p2p_jax.validate import resolved

OPTIONS = TrainOptions(
    batch_size=4, steps=STEPS, steps_per_dispatch=4, shuffle=True, cache="none",
    cache_share=0.5, substitutes=False, threads=1, log_every=4, eval_every=7, sample_every=9,
    save_every=5, keep=2, best="l1", on_nan="stop", on_save_error="stop", init_from="",
    init_nets="both",
)  # fmt: skip
LOSSES = ("loss/disc", "loss/gen_gan", "loss/gen_l1")


def _train_lines(workdir):
    return [row for row in report.read(workdir) if row["split"] == "train"]


# --- parts ---------------------------------------------------------------------------------------


def test_the_plan_of_the_tiny_run():
    assert list(plan(OPTIONS, 0)) == [(0, 4), (4, 1), (5, 2), (7, 1), (8, 1), (9, 1), (10, 2)]
    assert list(plan(OPTIONS, 9)) == [(9, 1), (10, 2)]
    assert list(plan(OPTIONS, STEPS)) == []


@pytest.mark.parametrize("seed", range(30))
def test_dispatches_end_where_something_is_due_and_cover_each_step_once(seed):
    draw = np.random.default_rng(seed)
    names = ("steps_per_dispatch", "log_every", "eval_every", "sample_every", "save_every")
    values = {name: int(draw.integers(1, 40)) for name in names}
    options = dataclasses.replace(OPTIONS, steps=int(draw.integers(1, 200)), **values)
    start = int(draw.integers(0, options.steps))
    done = start
    for first, count in plan(options, start):
        assert first == done and 1 <= count <= options.steps_per_dispatch
        done = first + count
        inside = range(first + 1, done)  # steps after which nothing can be done
        assert not any(step % values[name] == 0 for step in inside for name in names[1:])
        # No shorter than needed.
        due = done == options.steps or any(done % values[name] == 0 for name in names[1:])
        assert due or count == options.steps_per_dispatch
    assert done == options.steps


class Numbered:
    """Pairs of one pixel, which is their index; some cannot be read."""

    def __init__(self, count, bad=()):
        self.names, self.fingerprint = [str(i) for i in range(count)], "numbered"
        self.forms, self.sizes = (Form(1), Form(1)), np.ones((count, 2), np.int32)
        self._bad = bad

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        if i in self._bad:
            raise DataError([f"train[{i}]: truncated"])
        return Pair(np.full((1, 1, 1), i, np.uint8), np.full((1, 1, 1), 255 - i, np.uint8))


def _given(frames, hosts, entries, cache, threads=2):
    """Examples by global position, as all hosts together are given them; and how many stand in."""
    count, parts = 8 // hosts, []
    replaced = 0
    for host in range(hosts):
        common = dict(
            batch_size=8, local=slice(host * count, (host + 1) * count), seed=3, shuffle=True,
            plan=iter(entries), steps_per_dispatch=4,
        )  # fmt: skip
        if cache == "device":
            bad = frames.bad
            feed = IndexFeed(len(frames), **common, put=lambda x: x[..., None], bad=bad)
        else:
            feed = Feed(frames, **common, threads=threads, cache=cache,
                        put=lambda batch: batch.source[:, :, 0, 0])  # fmt: skip
        with feed:
            rows = [batch[:done, :, 0] for _, done, batch in feed]
            replaced += feed.replaced
        parts.append(np.concatenate(rows))
    return np.concatenate(parts, 1).reshape(-1), replaced


OF_EIGHT = dataclasses.replace(OPTIONS, batch_size=8, steps=15)  # 120 examples: 12 epochs of 10


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_each_epoch_has_each_example_once_on_any_hosts_over_a_resume(cache, stop):
    frames = Frames(Numbered(10), Fit("none", (1, 1), (1, 1)))
    before = [entry for entry in plan(dataclasses.replace(OF_EIGHT, steps=stop), 0)]
    wanted = order(3, 10, 0, 120, True)
    for hosts in (1, 2, 4):
        parts = [before, list(plan(OF_EIGHT, stop))]
        seen = np.concatenate([_given(frames, hosts, p, cache)[0] for p in parts if p])
        assert seen.tolist() == wanted.tolist()
    epochs = wanted.reshape(12, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({row.tobytes() for row in epochs}) == 12


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_substitutes_stand_where_the_order_has_what_they_stand_for(cache):
    bad = (2, 5)
    source = Substituting(Numbered(10, bad), lambda text: None)
    frames = Frames(source, Fit("none", (1, 1), (1, 1)))
    if cache == "device":  # it has read all before
        stands_for = [int(frames[i].source.item()) for i in range(10)]
    entries = list(plan(OF_EIGHT, 0))
    wanted = order(3, 10, 0, 120, True)
    for hosts in (1, 2, 4):
        seen, replaced = _given(frames, hosts, entries, cache)
        assert replaced == np.isin(wanted, bad).sum() == 24
        if cache != "device":
            stands_for = [int(frames[i].source.item()) for i in range(10)]
            wanted_there = np.array(stands_for)[wanted]
        else:
            wanted_there = wanted
        assert seen.tolist() == wanted_there.tolist()
    assert not set(stands_for) & set(bad) and [i for i in range(10) if stands_for[i] != i] == [2, 5]


def test_losses_are_means_since_the_last_line():
    losses = Losses(("a", "b"), {})
    losses.add(2, 2, jnp.array([[1.0, 10.0], [2.0, 20.0], [9.0, 9.0]]))  # the third was not done
    losses.add(3, 1, jnp.array([[6.0, 60.0], [9.0, 9.0], [9.0, 9.0]]))
    losses.settle()
    assert losses.saved() == {"count": 3, "sums": [9.0, 90.0]}
    assert losses.take() == {"a": 3.0, "b": 30.0}
    losses.add(4, 1, jnp.array([[5.0, 50.0]]))
    losses.settle()
    assert losses.take() == {"a": 5.0, "b": 50.0}


def test_losses_go_on_from_a_checkpoint():
    losses = Losses(("a",), {"count": 2, "sums": [3.0]})
    losses.add(3, 1, jnp.array([[6.0]]))
    losses.settle()
    assert losses.take() == {"a": 3.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_named_by_its_step(bad):
    losses = Losses(("a", "b"), {})
    losses.add(8, 3, jnp.array([[1.0, 1.0], [1.0, bad], [bad, bad]]))  # steps 6, 7 and 8
    with pytest.raises(NotFinite, match=r"a loss of step 7 is not finite \(a 1, b -?(nan|inf)\)"):
        losses.settle()
    fine = Losses(("a",), {})
    fine.add(1, 1, jnp.array([[1.0], [bad]]))  # what was not done does not count
    fine.settle()
    assert fine.take() == {"a": 1.0}


def test_updates_that_were_skipped_are_counted_and_not_averaged():
    bad = float("nan")
    losses = Losses(("a",), {}, skip=True)
    losses.add(3, 3, jnp.array([[1.0], [bad], [3.0]]))
    losses.settle()
    again = Losses(("a",), losses.saved(), skip=True)
    again.add(4, 1, jnp.array([[bad]]))
    again.settle()
    assert again.skipped == 2 and again.take() == {"a": 2.0} and again.skipped == 0
    again.add(5, 1, jnp.array([[bad]]))
    again.settle()
    assert np.isnan(again.take()["a"])


def test_nothing_but_skipped_updates_stops():
    bad = float("nan")
    losses = Losses(("a",), {}, skip=True)
    losses.add(9, 9, jnp.array([[bad]] * 9))
    losses.settle()
    saved = losses.saved()
    losses.add(11, 2, jnp.array([[1.0], [bad]]))
    losses.settle()
    losses = Losses(("a",), saved, skip=True)  # what is in a row is so over a stop
    losses.add(10, 1, jnp.array([[bad]]))
    with pytest.raises(NotFinite, match="10 updates in a row up to step 10 were skipped"):
        losses.settle()


def _trainer(**parts):
    trainer = object.__new__(Trainer)
    vars(trainer).update(parts)
    return trainer


def test_what_failed_to_be_saved_is_not_the_best_to_compare_with(monkeypatch):
    def failed(manager):
        manager.saving = None
        raise SaveFailed(7, "checkpoint 7 was not saved")

    monkeypatch.setattr(train.checkpoint, "settle", failed)
    names = {"metric": "eval/l1"}
    trainer = _trainer(
        **names, mode="min", plateau=None, early=Early(OPTIONS, "min", {}),
        ledger=Ledger(0.0), console=Console(silent=True),
        options=dataclasses.replace(OPTIONS, on_save_error="continue"),
        manager=types.SimpleNamespace(saving=(7, 5)),
        best=names | {"value": 0.1, "step": 7}, _best_before=names | {"value": 0.5, "step": 5},
    )  # fmt: skip
    assert trainer._better(14, {"eval/l1": 0.3})
    assert trainer.best == names | {"value": 0.3, "step": 14}
    trainer._not_saved(14)
    assert trainer.best == names | {"value": 0.5, "step": 5}
    assert not trainer._better(21, {"eval/l1": 0.6})


def test_one_process_alone_reads_the_lines_that_it_replaces(monkeypatch):
    monkeypatch.setattr(train.peers, "first", lambda: False)
    monkeypatch.setattr(report, "read", lambda workdir: pytest.fail("read"))
    assert _trainer()._before() == 0.0


# --- a run ---------------------------------------------------------------------------------------


def test_the_lines_of_the_log():
    rows = report.read(finished()[0])
    assert [(row["step"], row["split"]) for row in rows] == [
        (0, "val"), (4, "train"), (7, "val"), (8, "train"), (12, "train"), (12, "val"),
    ]  # fmt: skip
    head, tail = ["step", "images", "split"], ["images_per_sec", "data_wait_frac"]
    tail += [f"seconds/{kind}" for kind in KINDS]
    for row in rows:
        names = list(row)
        assert row["images"] == 4 * row["step"]
        if row["split"] == "train":
            assert names == [*head, *LOSSES, *tail]
            assert row["images_per_sec"] > 0 and 0 <= row["data_wait_frac"] <= 1
        else:
            assert names == [*head, "eval/l1", "eval/psnr", "eval/ssim"]


def test_the_grids_on_the_way():
    samples = finished()[0] / "samples"
    assert sorted(p.name for p in samples.iterdir()) == ["0.png", "12.png", "9.png"]
    pictures = {p.stem: np.asarray(Image.open(p)) for p in samples.iterdir()}
    # The same pairs in all of them, translated by another generator.
    assert (pictures["0"][:, :32] == pictures["12"][:, :32]).all()
    assert (pictures["0"][:, -32:] == pictures["12"][:, -32:]).all()
    assert (pictures["0"][:, 36:68] != pictures["12"][:, 36:68]).any()


def test_the_checkpoints_that_are_kept():
    kept = checkpoints(finished()[0])
    assert kept[-2:] == ["10", "12"]
    best = min((row["eval/l1"], row["step"]) for row in report.read(finished()[0])
               if row["split"] == "val" and row["step"])[1]  # fmt: skip
    assert str(best) in kept


def test_the_record_of_the_run():
    workdir = finished()[0]
    config = json.loads((workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(resolved(get_config()).to_dict()))
    (entry,) = json.loads((workdir / "run.json").read_text())["starts"]
    assert entry["python"] == platform.python_version()
    assert entry["devices"] | {"kind": ""} == {
        "platform": "cpu", "kind": "", "count": 4, "processes": 1,
    }  # fmt: skip
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "p2p_jax"} <= entry["versions"].keys()
    counts = {split: of["examples"] for split, of in entry["data"].items()}
    assert counts == {"train": 10, "eval (val)": 5}
    digests = {of["fingerprint"] for of in entry["data"].values()}
    assert len(digests) == 2 and all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
    assert entry["config_changes"] == {}


def test_the_baseline_stands_beside_the_figures():
    out = finished()[1]
    assert len(re.findall(r"l1 +0\.\d+ +\(best constant image: 0\.\d+\)", out)) == 3
    assert "index.html" in out and f"samples/{STEPS}.png" in out


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_means_are_those_of_the_single_steps(tmp_path):
    train_to(tmp_path, 0, "--config.train.log_every=1")
    single = {row["step"]: row for row in _train_lines(tmp_path)}
    assert list(single) == list(range(1, STEPS + 1))
    for row in _train_lines(finished()[0]):
        for name in LOSSES:
            values = [single[step][name] for step in range(row["step"] - 3, row["step"] + 1)]
            assert row[name] == sum(values) / 4, (row["step"], name)
    # To look more often changes nothing.
    assert_same_arrays(arrays(tmp_path, STEPS), arrays(finished()[0], STEPS))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    flags = ["--config.optim.gen.lr=1e30", "--config.train.save_every=1"]
    for _ in range(2):  # and again, as nothing has changed
        ran = start(CONFIG, f"--workdir={tmp_path}", *flags)
        assert ran.returncode == 1
        last = ran.stderr.strip().splitlines()[-1]
        named = re.match(r"error: a loss of step (\d+) is not finite \(loss/disc ", last)
        assert named and "lower optim.gen.lr" in last
        assert "Traceback" not in ran.stderr
        step = int(named[1])
        assert 1 < step <= STEPS
        kept = [int(name) for name in checkpoints(tmp_path)]
        assert all(k < step for k in kept), kept
        assert all(row["step"] < step for row in _train_lines(tmp_path))


@pytest.mark.slow
def test_the_quickstart_prints_the_baseline_beside(tmp_path):
    ran = start(
        f"--config={ROOT / 'configs' / 'quickstart.py'}", f"--workdir={tmp_path}",
        "--config.train.steps=2", "--config.eval.examples=3", "--config.data.max_examples=8",
        "--config.model.generator.base_features=4", "--config.model.discriminator.base_features=4",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for step in (0, 2):
        assert f"evaluation at step {step}: val, 3 examples" in ran.stdout
    assert len(re.findall(r"  (l1|psnr|ssim) +\S+ +\(best constant image: \S+\)", ran.stdout)) == 6


@pytest.mark.slow
def test_real_facades(tmp_path):
    folder = ROOT / ".." / "shared" / "data" / "facades"
    if not folder.is_dir():
        pytest.skip("the facades are not here")
    ran = start(
        f"--config={ROOT / 'configs' / 'facades.py'}", f"--workdir={tmp_path / 'run'}",
        "--config.data.source=folder", "--config.data.name=", f"--config.data.path={folder}",
        f"--config.data.prepared_dir={tmp_path / 'prepared'}",
        "--config.train.steps=2", "--config.train.batch_size=4", "--config.eval.examples=3",
        "--config.data.load_size=72", "--config.data.crop_size=64",
        "--config.model.generator.depth=5", "--config.model.generator.base_features=4",
        "--config.model.discriminator.layers=2", "--config.model.discriminator.base_features=4",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "400 to train on, 3 to evaluate" in ran.stdout and "BtoA" in ran.stdout
    metrics = json.loads((tmp_path / "run" / "eval" / "val" / "2" / "metrics.json").read_text())
    name = metrics["per_example"][0]["name"]
    # Labels, the right half, are the source: few colours, unlike a photo.
    pictures = {
        kind: np.asarray(Image.open(tmp_path / "run" / "eval/val/2" / kind / f"{name}.png"))
        for kind in ("source", "target")
    }
    colours = {k: len(np.unique(v.reshape(-1, 3) // 32, axis=0)) for k, v in pictures.items()}
    assert pictures["source"].shape == (256, 256, 3)  # as the file has it, not as trained
    whole = np.asarray(Image.open(next((folder / "val").glob(f"{name}.*"))).convert("RGB"))
    right = whole[:, whole.shape[1] // 2 :].mean((0, 1))
    assert np.abs(pictures["source"].mean((0, 1)) - right).max() < 4, colours
