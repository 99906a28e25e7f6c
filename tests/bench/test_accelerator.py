"""What one command measures on an accelerator: what comes, what is left out, what it computes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from running import ROOT, environment, get_config

from p2p_jax import mesh as meshes
from p2p_jax.bench import (
    accelerator,
    accelerator_step,
    facades,
    measuring,
    nets,
    peak,
    step,
    torch_step,
)
from p2p_jax.bench.clock import Clock
from p2p_jax.bench.facades import Evaluation, Pairs, Run, read
from p2p_jax.bench.rows import Options, row
from p2p_jax.build import build
from p2p_jax.config import merge
from p2p_jax.evaluate import Evaluator
from p2p_jax.state import init
from p2p_jax.words import ConfigError

STANDARD = nets.standard
TRAIN, VAL = 6, 3


def write_pairs(folder, size=16, suffix=".png"):
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (size, 2 * size, 3)).astype(np.uint8)
            Image.fromarray(image).save(folder / split / f"{i}{suffix}")


@pytest.fixture
def tiny(monkeypatch):
    """Small networks, a small peak, few batch sizes, and of torch only what needs no compiler."""
    measured, theirs = peak.measured, torch_step.TorchTraining
    small = functools.partial(theirs, sizes=torch_step.Sizes(16, 2, 4, 1))
    monkeypatch.setattr(nets, "standard", lambda *a, **k: STANDARD(*a, **(k | {"tiny": True})))
    monkeypatch.setattr(peak, "measured", lambda *a: measured(*a, size=64))
    monkeypatch.setattr(torch_step, "TorchTraining", small)
    monkeypatch.setattr(step, "_TRIAL_SECONDS", 0.01)
    monkeypatch.setattr(accelerator, "BATCHES", (2, 1))
    monkeypatch.setattr(accelerator_step, "_TORCH_SMALL", (("", "bfloat16"), ("", "tf32")))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def run(tmp_path, *argv, code=0):
    path = tmp_path / "rows.json"
    assert accelerator.main([*argv, f"--json={path}"]) == code
    return json.loads(path.read_text())


def told(rows):
    return [(r["part"], r["impl"], r["form"], r["precision"], r["batch_size"]) for r in rows]


# --- time ----------------------------------------------------------------------------------------


def test_the_clock_learns_what_a_kind_needs():
    now = [100.0]
    clock = Clock(100, lambda: now[0])
    assert clock.left() == 100 and clock.refuses("ours") == ""
    assert clock.refuses("ours", kept=41) == "needs about 60 s, and 59 s are to spare"
    assert clock.refuses("ours", kept=41, needed=50) == ""
    for took in (20, 30, 10):
        with clock.timed("ours"):
            now[0] += took
    assert clock.left() == 40
    assert clock.refuses("ours", kept=10) == ""  # the longest took 30
    assert clock.refuses("ours", kept=11) == "needs about 30 s, and 29 s are to spare"
    assert clock.refuses("compiled") == "needs about 75 s, and 40 s are to spare"


def test_what_does_not_fit_is_left_out_and_told(tiny, tmp_path, capsys):
    write_pairs(tmp_path)
    rows = run(tmp_path, f"--data={tmp_path}", "--minutes=0.002")
    ours = [("step", "p2p_jax", form, "bfloat16", None) for form in ("plain", "polyphase")]
    theirs = ("step", "torch", "eager channels_last", "bfloat16", None)
    steps = [
        (*each[:4], batch) for batch in (2, 1) for each in (theirs, *ours)
    ]  # fmt: skip
    assert told(rows) == [
        ("peak", "p2p_jax", "", "bfloat16", None),
        ("peak", "p2p_jax", "", "float32", None),
        *steps[:3],
        ("facades", "p2p_jax", "plain", "bfloat16", 64),
        *steps[3:],
        ("facades", "p2p_jax", "products", "float32", 1),
    ]
    assert all(r["peak_flops"] > 0 for r in rows[:2])
    for left_out in rows[2:]:
        assert "s are to spare" in left_out["skipped"] and left_out["images_per_sec"] is None
    assert all(r["machine"]["devices"]["platform"] == "cpu" for r in rows)
    assert "step, torch, eager channels_last, bfloat16, 2: left out: needs" in (
        capsys.readouterr().out
    )


def test_the_fastest_form_comes_first_and_two_of_theirs_take_turns(tiny, monkeypatch):
    compiled = []

    def ours(options, part, subject, batch, precision, form):
        compiled.append(form)
        known = row("step", form, precision=precision, batch_size=batch, devices=1)
        return step.Way(known, lambda count: None, 1)

    rates = iter((3.0, 1.0, 2.0))

    def tried(options, part, form, known):
        known |= {"images_per_sec": next(rates), "ms": 1.0}
        return known["images_per_sec"], step.Way(
            {key: value for key, value in known.items() if key != "trial"}, lambda count: None, 1
        )

    modes = ((name, "bfloat16") for name in ("default", "", "default"))
    monkeypatch.setattr(accelerator_step, "_TORCH_SMALL", tuple(modes))
    monkeypatch.setattr(step, "ours", ours)
    monkeypatch.setattr(step, "tried", tried)
    part = step.Part("step", step.STEP.ours, lambda *a: 1e6, "TorchTraining")
    monkeypatch.setattr(step, "STEP", part)
    before = row("step", "polyphase", precision="bfloat16", batch_size=64, images_per_sec=9.0)
    request = accelerator._parse([])
    shared = measuring.Measuring(
        request, Clock(1e6), Options(folder=None, log=print), {}, [before], {}  # type: ignore[arg-type]
    )  # fmt: skip
    shared.peaks["bfloat16"] = {"peak_flops": 1e12, "sheet_flops": None}
    rows = accelerator_step.steps(shared, 2, 0.0)
    assert compiled == ["polyphase", "plain"]
    trials = [r for r in rows if r.get("trial")]
    assert [r["images_per_sec"] for r in trials] == [3.0, 1.0, 2.0]
    measured = [r for r in rows if not r.get("trial")]
    assert [(r["impl"], r["form"]) for r in measured] == [
        ("p2p_jax", "polyphase"),
        ("p2p_jax", "plain"),
        *[("torch", "compile channels_last")] * 2,
    ]
    best = max(r["images_per_sec"] for r in rows if r["impl"] == "torch")
    for each in measured[:2]:
        assert each["ratio"] == pytest.approx(each["images_per_sec"] / best)
        assert each["mfu"] == pytest.approx(1e6 * each["images_per_sec"] / 2 / 1e12)


def test_a_part_that_fails_does_not_end_the_others(tiny, tmp_path, monkeypatch, capsys):
    def breaks(measuring, batch, kept):
        raise RuntimeError(f"no luck with {batch}\nat all")

    monkeypatch.setattr(accelerator, "steps", breaks)
    rows = run(tmp_path, "--minutes=0.002", code=1)
    assert [r["part"] for r in rows] == ["peak", "peak", "step", "facades", "step", "facades"]
    assert rows[2]["error"] == "RuntimeError: no luck with 2"
    assert rows[3]["skipped"] == rows[5]["skipped"] == "no --data"
    assert "no luck with 1" in capsys.readouterr().err


# --- facades -------------------------------------------------------------------------------------


def test_pairs_are_read_with_either_library(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    train, val = read(tmp_path, (16, 16))
    assert train.source.shape == (TRAIN, 16, 16, 3) and val.target.shape == (VAL, 16, 16, 3)
    for i in range(VAL):
        image = np.asarray(Image.open(tmp_path / "val" / f"{i}.png"))
        assert (val.target[i] == image[:, :16]).all() and (val.source[i] == image[:, 16:]).all()
    monkeypatch.setitem(sys.modules, "cv2", None)
    again = read(tmp_path, (16, 16))[0]
    assert (again.source == train.source).all() and (again.target == train.target).all()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match="needs cv2 or Pillow"):
        read(tmp_path, (16, 16))


@pytest.mark.parametrize("without", ["", "cv2"])
def test_what_is_wrong_with_pairs_is_told_at_once(tmp_path, monkeypatch, without):
    write_pairs(tmp_path, suffix=".jpg")
    (tmp_path / "train" / "2.jpg").write_bytes(b"no image")
    Image.new("RGB", (30, 16)).save(tmp_path / "train" / "4.jpg")
    for file in (tmp_path / "val").iterdir():
        file.unlink()
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    with pytest.raises(ConfigError) as error:
        read(tmp_path, (16, 16))
    unreadable, small, none = error.value.problems
    assert "2.jpg cannot be read" in unreadable and "4.jpg is 30x16, not 32x16" in small
    assert "no images" in none and none.endswith("val")


def test_metrics_are_those_of_evaluation(tmp_path, monkeypatch):
    size = 32
    write_pairs(tmp_path / "data", size)
    keys = {
        **{"data.source": "folder", "data.path": str(tmp_path / "data"), "mesh.devices": 1},
        **{"data.direction": "BtoA", "data.max_examples": 0, "data.load_size": (size, size)},
        **{"data.prepared_dir": str(tmp_path / "prepared"), "eval.dropout": False},
        **{"eval.examples": 0, "eval.batch_size": 2, "train.ema_decay": 0.0},
    }
    experiment = build(merge(get_config(), keys), lambda text: None)
    state = jax.jit(lambda: init(experiment.gan, 0))()
    gen = {"params": state.gen.params, "stats": state.gen.stats, "ema": {}}
    evaluator = Evaluator(experiment)
    wanted = evaluator(gen)
    assert len(wanted.examples) == VAL
    monkeypatch.setattr(facades, "_TOGETHER", 2)
    ours = Evaluation(read(tmp_path / "data", (size, size))[1], experiment.gan, meshes.make_mesh(1))
    got = ours((state.gen.params, state.gen.stats))
    assert got == pytest.approx({n: wanted.means[f"eval/{n}"] for n in got}, rel=1e-6)
    baseline = {n: evaluator.baseline[f"eval/{n}"] for n in got}
    assert ours.baseline() == pytest.approx(baseline, rel=1e-6)


@pytest.mark.slow
def test_a_run_sees_every_pair_and_goes_on_where_it_stood(monkeypatch):
    monkeypatch.setattr(facades, "DISPATCH", 3)
    rng = np.random.default_rng(0)
    pairs = Pairs(*rng.integers(0, 256, (2, 5, 16, 16, 3)).astype(np.uint8))
    whole, parted = (
        Run(pairs, nets.standard(tiny=True), meshes.make_mesh(1), 2, 1e-3, 20) for _ in range(2)
    )
    epochs = whole._order.reshape(4, 5)
    assert (np.sort(epochs) == np.arange(5)).all() and (epochs[0] != epochs[1]).any()
    whole.train(20)
    losses = whole.losses()
    for images in (2, 12, 20):
        parted.train(images)
        before = jax.device_get(parted.generator()) if images == 12 else None
        kept = parted.generator() if images == 12 else None
        if kept is not None:
            parted.train(14)
            for a, b in zip(*map(jax.tree.leaves, (kept, before)), strict=True):
                assert (np.asarray(a) == b).all()
    assert parted.losses() == losses and int(parted._state.step) == 10
    for a, b in zip(*map(jax.tree.leaves, (whole.generator(), parted.generator())), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    assert losses.keys() == {"loss/disc", "loss/gen_gan", "loss/gen_l1"}
    parted._losses = np.array([1.0, np.nan, 1.0])
    with pytest.raises(FloatingPointError, match="after 20 images"):
        parted.losses()


# --- all of it -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_of_it(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "FORMS", ("polyphase",))
    monkeypatch.setattr(accelerator_step, "FORMS", measuring.FORMS)
    write_pairs(tmp_path, suffix=".jpg")
    rows = run(
        tmp_path, f"--data={tmp_path}", "--batch-size=4", "--images=24", "--evaluate-every=12",
        "--seconds=0.01", "--lr=1e-3",
    )  # fmt: skip
    assert not [r for r in rows if "error" in r or "skipped" in r]
    steps = [r for r in rows if r["part"] == "step" and not r.get("trial")]
    assert [(r["impl"], r["batch_size"]) for r in steps] == [
        ("p2p_jax", 2), ("torch", 2), ("p2p_jax", 1), ("torch", 1),
    ]  # fmt: skip
    for each in steps:
        assert each["mfu"] > 0 and each["images_per_sec"] == sorted(each["rounds"])[1]
    assert all(r["ratio"] == r["ratio_best"] > 0 for r in steps if r["impl"] == "p2p_jax")

    fast, exact = (r for r in rows if r["part"] == "facades")
    assert (fast["form"], exact["form"]) == ("polyphase", "products")
    assert (fast["batch_size"], fast["lr"], exact["lr"]) == (4, 1e-3, 2e-4)
    for each in (fast, exact):
        assert [e["images"] for e in each["evaluations"]] == [0, 12, 24]
        assert each["images"] == 24 and each["compile_seconds"] > 0
        assert each["images_per_sec"] == pytest.approx(24 / each["train_seconds"])
        l1 = [e["l1"] for e in each["evaluations"]]
        assert len(set(l1)) == 3 and 0 < min(l1) and max(l1) < 1
    assert 0 < fast["baseline"]["l1"] < 0.5
    pair = [r for r in rows if r["part"] == "equal"]
    for each, of in zip(pair, (fast, exact), strict=True):
        assert each["precision"] == of["precision"] and each["l1"] == of["evaluations"][-1]["l1"]
    out = capsys.readouterr().out
    assert "24 images in" in out and "constant" in out and "MFU" in out


# Without all that a bare machine lacks, torch and cv2 too.
_BARE = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from p2p_jax.bench import accelerator, facades, nets, peak
measured, standard = peak.measured, nets.standard
peak.measured = lambda device, precision: measured(device, precision, size=64)
nets.standard = lambda *args, **options: standard(*args, **(options | dict(tiny=True)))
sys.exit(accelerator.main(sys.argv[1:]))
"""
ABSENT = (
    *("ml_collections", "tensorflow_datasets", "tensorflow", "grain", "array_record", "simplejpeg"),
    *("orbax", "cv2", "tifffile", "imagecodecs", "torch", "safetensors"),
)


def test_a_bare_machine_will_do(tmp_path):
    write_pairs(tmp_path)
    path = tmp_path / "rows.json"
    command = [sys.executable, "-c", _BARE.format(blocked=ABSENT), f"--data={tmp_path}"]
    command += [f"--json={path}", "--minutes=0.002"]
    env = environment(cached=False)
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    rows = json.loads(path.read_text())
    theirs = [r for r in rows if r["impl"] == "torch"]
    assert {r["skipped"] for r in theirs} == {"torch is missing"} and len(theirs) == 3


def test_what_is_wrong_with_a_command_line_is_told_at_once(tmp_path, capsys):
    there = tmp_path / "there.json"
    there.write_text("")
    argv = ["--lr=2", "--minutes=no", "--batch-size=48", "--images=5", "--dat=x", "--config.a=1"]
    assert accelerator.main([*argv, f"--json={there}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    for wanted in ("--lr", "--minutes", "--evaluate-every", "--images", "--dat", "--config.a",
                   "--json"):  # fmt: skip
        assert sum(line.startswith(f"error: {wanted}:") for line in lines) == 1, wanted
    assert len(lines) == 7 and "KEY" not in "".join(lines)
    assert any(line.endswith("--evaluate-every and --help") for line in lines)
    assert there.read_text() == ""
    assert accelerator.main(["--help"]) == 0
    assert "--minutes=9" in capsys.readouterr().out


def test_data_that_is_missing_ends_it_before_anything_is_measured(tiny, tmp_path, capsys):
    assert accelerator.main([f"--data={tmp_path}", f"--json={tmp_path / 'rows.json'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("there are no images") == 2 and not (tmp_path / "rows.json").exists()
