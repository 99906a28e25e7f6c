"""Sweeps: who runs which trial, what becomes of it over any death, and what is left."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from browser import browser
from optuna.trial import TrialState
from running import ROOT, environment

from p2p_jax import report
from p2p_jax.console import Console
from p2p_jax.process import Stop
from p2p_jax.space import choice, log
from p2p_jax.sweeping import options, places, record, results, running, study
from p2p_jax.sweeping.controller import Controller
from p2p_jax.sweeping.owners import Owners, alone
from p2p_jax.sweeping.places import Place
from p2p_jax.sweeping.running import Plan
from p2p_jax.sweeping.study import OWNER, REASON, Trials
from p2p_jax.words import ConfigError

SPACE = {"loss.l1": choice(1.0, 10.0, 100.0), "optim.gen.lr": log(1e-5, 1e-3)}
GRID = {"loss.l1": choice(1.0, 10.0, 100.0), "train.batch_size": choice(1, 2)}

# A training that takes no time: its figure is the weight of L1 over the step. What it does beside
# is told by the environment.
FAKE = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
values = dict(word.split("=") for word in sys.argv[2:])
starts = workdir / "starts"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
what = os.environ.get("FAKE", "")
if what == "crash" and values["loss.l1"] == "10.0":
    print("error: the disk is made of cheese")
    sys.exit(1)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "once" and not count:
    sys.exit(75)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
for step in (0, 1, 2, 3):
    with open(workdir / "metrics.jsonl", "a") as file:
        value = float(values["loss.l1"]) / (step + 1)
        row = {"step": step, "images": step, "split": "val", "eval/l1": value}
        file.write(json.dumps(row) + "\\n")
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + float(os.environ.get("PAUSE", "0"))
    while time.monotonic() < until and not stopped:
        time.sleep(0.02)
    if stopped:
        sys.exit(75)
"""


def fake_plan(folder: Path, prunes: bool = False, **env: str) -> Plan:
    def words(workdir, values):
        return ["-c", FAKE, str(workdir), *(f"{k}={v!r}" for k, v in values.items())]

    return Plan(folder, "l1", "min", os.environ | env, words, prunes)


def opened(
    folder: Path, owners: Owners, space=SPACE, sampler="random", pruner="none", seed=0, url=""
):
    made = optuna.create_study(
        storage=study.open_storage(folder, url),
        study_name="sweep",
        load_if_exists=True,
        direction="minimize",
        pruner=study.make_pruner(pruner, 1, 3, 2),
    )
    return Trials(
        made, folder, owners, space, lambda n: study.make_sampler(sampler, space, seed, n)
    )


def ran(folder: Path, count: int, plan: Plan | None = None, at: int = 2, **options) -> Trials:
    """A sweep of fake trials, run to its end."""
    plan = plan or fake_plan(folder)
    with Owners(folder) as owners:
        trials = opened(folder, owners, **options)
        spots = [Place(f"spot:{i}", {}) for i in range(at)]
        controller = Controller(
            plan, trials, owners, spots, Console(silent=True), lambda: results.write(plan, trials)
        )
        assert controller.run(count, Stop()) == 0
    return trials


def states(trials: Trials) -> list[TrialState]:
    return [trial.state for trial in trials.all()]


# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_decides_the_draws_whoever_makes_them(tmp_path, sampler):
    drawn = []
    for name, each in (("one", 6), ("two", 2)):
        folder, found = tmp_path / name, []
        for _ in range(6 // each):
            with Owners(folder) as owners:
                trials = opened(folder, owners, sampler=sampler, seed=7)
                for _ in range(each):
                    trial, again = trials.next(6)
                    assert not again
                    trials.tell(trial, TrialState.COMPLETE, trial.params["optim.gen.lr"], "")
                    found.append(trials.values(trial))
        drawn.append(found)
    assert drawn[0] == drawn[1]
    assert len({str(each) for each in drawn[0]}) == 6


def test_never_more_trials_than_asked_for(tmp_path):
    with Owners(tmp_path) as owners:
        trials = opened(tmp_path, owners)
        assert [trials.next(3) is None for _ in range(5)] == [False] * 3 + [True] * 2


def test_a_grid_gives_each_point_once_over_controllers_and_deaths(tmp_path):
    seen = []
    for _ in range(4):  # each takes two, ends one and dies with the other
        with Owners(tmp_path) as owners:
            trials = opened(tmp_path, owners, space=GRID, sampler="grid")
            for ends in (True, False):
                if (found := trials.next(6)) is not None:
                    if ends:
                        trials.tell(found[0], TrialState.COMPLETE, 1.0, "")
                        seen.append(tuple(found[0].params.values()))
    trials = ran(tmp_path, 6, space=GRID, sampler="grid")
    points = [tuple(trials.values(each).values()) for each in trials.all()]
    assert len(points) == len(set(points)) == 6 == study.points(GRID)
    assert len(seen) == len(set(seen))


# --- taking over ---------------------------------------------------------------------------------


def test_a_trial_of_a_living_controller_is_left_alone(tmp_path):
    with Owners(tmp_path) as one, Owners(tmp_path) as other:
        trial, _ = opened(tmp_path, one).next(1)
        assert opened(tmp_path, other).next(1) is None
        assert opened(tmp_path, one).is_mine(trial)


def test_a_trial_of_a_dead_controller_goes_on_with_number_and_values(tmp_path):
    with Owners(tmp_path) as dead:
        first, _ = opened(tmp_path, dead).next(2)
    with Owners(tmp_path) as owners:
        trials = opened(tmp_path, owners)
        trial, again = trials.next(2)
        assert again and trial.number == first.number and trial.params == first.params
        assert trials.is_mine(trial)
        second, again = trials.next(2)
        assert not again and second.number == 1


def test_one_that_died_while_it_drew_is_completed(tmp_path):
    with Owners(tmp_path) as dead:
        trials = opened(tmp_path, dead)
        trials.study.sampler = study.make_sampler("random", SPACE, 0, 0)
        trials.study.ask()  # without owner and values
    with Owners(tmp_path) as owners:
        trial, again = opened(tmp_path, owners).next(1)
        assert again and trial.number == 0 and trial.params.keys() == SPACE.keys()


def test_a_controller_elsewhere_is_dead_once_it_has_been_silent(tmp_path, monkeypatch):
    with Owners(tmp_path) as owners:
        path = tmp_path / "controllers" / "far-1-aa.json"
        path.write_text(json.dumps({"host": "far", "pid": 1, "count": 1}))
        assert owners.lives("far-1-aa")
        monkeypatch.setattr(Owners, "STALE", 0.05)
        time.sleep(0.1)
        path.write_text(json.dumps({"host": "far", "pid": 1, "count": 2}))
        assert owners.lives("far-1-aa")  # it was heard of
        time.sleep(0.1)
        assert not owners.lives("far-1-aa")


def test_one_process_at_a_time_decides(tmp_path):
    inside, most = [], []

    def decide():
        for _ in range(3):
            with alone(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=decide) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == [1] * 9


# --- trials --------------------------------------------------------------------------------------


def test_trials_end_and_the_best_is_told(tmp_path):
    trials = ran(tmp_path, 5)
    assert states(trials) == [TrialState.COMPLETE] * 5
    best = json.loads((tmp_path / "best.json").read_text())
    values = [trial.params["loss.l1"] / 4 for trial in trials.all()]
    assert best["value"] == min(values) and best["params"].keys() == SPACE.keys()
    assert "trial" in (tmp_path / "sweep.html").read_text()
    assert "complete" in results.table(fake_plan(tmp_path), trials, trials.all())


def test_the_page_shows_trials_and_curves_without_network(tmp_path):
    plan = fake_plan(tmp_path, FAKE="crash")
    trials = ran(tmp_path, 6, plan, space=GRID, sampler="grid")
    page = tmp_path / "trials" / "0" / "eval" / "val" / "3" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>report</p>")
    results.write(plan, trials)
    with browser() as tab:
        tab.page.goto((tmp_path / "sweep.html").as_uri())
        rows = tab.page.locator("#trials tbody tr")
        assert rows.count() == 6
        first = results.ordered(trials.all(), "min")[0].number
        assert rows.first.get_attribute("data-trial") == str(first)
        assert "the disk is made of cheese" in rows.last.inner_text()
        assert tab.page.locator("#coordinates path").count() == 4  # of which none crashed
        assert tab.page.locator("#curves figure").count() == 1
        assert tab.page.locator("#importance .track").count() == 2
        tab.page.click('#trials tr[data-trial="0"] a')
        assert tab.page.inner_text("p") == "report" and tab.problems == []


def test_a_crash_is_recorded_with_its_reason_and_the_rest_go_on(tmp_path):
    trials = ran(tmp_path, 6, fake_plan(tmp_path, FAKE="crash"), space=GRID, sampler="grid")
    for trial in trials.all():
        crashed = trial.params["loss.l1"] == 10.0
        assert (trial.state == TrialState.FAIL) == crashed
        assert trial.user_attrs.get(REASON) == ("the disk is made of cheese" if crashed else None)


def test_a_stopped_process_goes_on_and_one_that_always_dies_is_given_up(tmp_path):
    trials = ran(tmp_path / "once", 1, fake_plan(tmp_path / "once", FAKE="once"))
    assert states(trials) == [TrialState.COMPLETE]
    assert (tmp_path / "once/trials/0/starts").read_text() == "xx"
    trials = ran(tmp_path / "die", 1, fake_plan(tmp_path / "die", FAKE="die"))
    assert states(trials) == [TrialState.FAIL]
    assert (tmp_path / "die/trials/0/starts").read_text() == "xxxx"
    assert "SIGKILL 4 times" in trials.all()[0].user_attrs[REASON]


def test_losers_are_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_LOOK", 0.05)
    plan = fake_plan(tmp_path, prunes=True, PAUSE="0.4")
    trials = ran(tmp_path, 6, plan, at=1, space=GRID, sampler="grid", pruner="halving")
    found = states(trials)
    assert TrialState.PRUNED in found and TrialState.COMPLETE in found
    pruned = [t for t in trials.all() if t.state == TrialState.PRUNED]
    assert max(t.params["loss.l1"] for t in pruned) == 100.0
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["params"]["loss.l1"] == 1.0


def test_hyperband_ends_every_trial_once(tmp_path):
    plan = fake_plan(tmp_path, prunes=True)
    trials = ran(tmp_path, 6, plan, space=GRID, sampler="grid", pruner="hyperband")
    assert len(states(trials)) == 6 and {*states(trials)} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
    }


def test_a_trial_whose_figure_is_never_finite_has_failed(tmp_path):
    plan = fake_plan(tmp_path)._replace(figure="psnr")
    trials = ran(tmp_path, 1, plan)
    assert trials.all()[0].user_attrs[REASON] == "eval/psnr was never finite"


def test_a_signal_lets_trials_save_and_others_go_on_with_them(tmp_path):
    plan = fake_plan(tmp_path, PAUSE="5")
    with Owners(tmp_path) as owners:
        trials = opened(tmp_path, owners)
        stop = Stop()
        spots = [Place("a", {}), Place("b", {})]
        controller = Controller(plan, trials, owners, spots, Console(silent=True), lambda: None)
        threading.Timer(1.5, lambda: setattr(stop, "name", "SIGTERM")).start()
        assert controller.run(4, stop) == 75
    assert states(trials) == [TrialState.RUNNING] * 2
    assert [trial.user_attrs[OWNER] for trial in trials.all()] == ["", ""]
    before = [trial.params for trial in trials.all()]
    trials = ran(tmp_path, 4, fake_plan(tmp_path))
    assert states(trials) == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in trials.all()][:2] == before


def test_a_line_of_the_journal_that_was_cut_off_is_dropped(tmp_path):
    ran(tmp_path, 1)
    with open(tmp_path / study.JOURNAL, "ab") as file:
        file.write(b'{"op_code":4,"wor')
    trials = ran(tmp_path, 2)
    assert states(trials) == [TrialState.COMPLETE] * 2


def test_a_database_does_as_well(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    for count in (1, 3):
        trials = ran(tmp_path, count, url=url)
    assert states(trials) == [TrialState.COMPLETE] * 3
    assert study.hidden("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


# --- places --------------------------------------------------------------------------------------


def test_places_are_pinned():
    env = {"CUDA_VISIBLE_DEVICES": "4,7"}
    one, two = places.parse("gpu:0,gpu:1", env)
    assert (one.env, two.env) == ({"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"})
    assert [p.name for p in places.parse("auto", env)] == ["gpu:0", "gpu:1"]
    (chip,) = places.parse("tpu:2", {})
    assert chip.env["TPU_VISIBLE_CHIPS"] == "2" and chip.env["TPU_PROCESS_BOUNDS"] == "1,1,1"
    (whole,) = places.parse("auto", {"JAX_PLATFORMS": "cpu"})
    assert whole.cores == () and whole.env == {"JAX_PLATFORMS": "cpu"}
    assert places.parse("cpu", {}) == [whole]
    (cores,) = places.parse(f"cpu:{places.usable()[0]}", {})
    assert cores.cores == (places.usable()[0],)


def test_places_that_are_none_are_told_together():
    with pytest.raises(ConfigError) as raised:
        places.parse("gpu:5,gpu:x,disk,cpu:90000,cpu/0", {"CUDA_VISIBLE_DEVICES": "0"})
    assert len(raised.value.problems) == 5


# --- the command line ----------------------------------------------------------------------------

SPACE_FILE = """
from p2p_jax.space import choice, log

def get_space():
    return {"loss.l1": choice(0.0, 10.0, 100.0), "optim.gen.lr": log(1e-5, 1e-2)}
"""


def words(folder: Path, *more: str, trials: int = 2) -> list[str]:
    (folder / "space.py").write_text(SPACE_FILE)
    return [
        f"--config={ROOT}/tests/running.py",
        f"--space={folder}/space.py",
        f"--workdir={folder}/sweep",
        f"--trials={trials}",
        *more,
    ]


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as raised:
        options.parse(
            [
                *words(tmp_path, "--sampler=tpa", "--metric=gan", "--seed=x", "--workers=3"),
                *("--config.loss.l1=3", "--devices=disk", "--pruner=grid"),
            ]
        )
    text = "\n".join(raised.value.problems)
    for word in (
        "--sampler",
        "--metric",
        "--seed",
        "--workers",
        "loss.l1",
        "--devices",
        "--pruner",
    ):
        assert word in text, word


def test_a_grid_without_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.gen\.lr has no end"):
        options.parse(words(tmp_path, "--sampler=grid"))


def test_another_sweep_is_not_continued_but_more_trials_are(tmp_path):
    (tmp_path / "sweep").mkdir()
    assert record.remember(options.parse(words(tmp_path))) == "sweep"
    assert record.remember(options.parse(words(tmp_path, trials=9))) == "sweep"
    with pytest.raises(ConfigError) as raised:
        more = ("--sampler=random", "--metric=ssim", "--config.train.batch_size=8")
        record.remember(options.parse(words(tmp_path, *more)))
    told = [problem.split(":")[0] for problem in raised.value.problems]
    assert {"sampler", "metric", "better", "config.train.batch_size", "--workdir"} <= {*told}


def start(folder: Path, *more: str, trials: int = 2, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "p2p_jax.sweep", *words(folder, *more, trials=trials)],
        env=environment(**env),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    text, _ = process.communicate(timeout=900)
    assert process.returncode == code, text
    return text


def finished(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = study.open_storage(folder / "sweep", "")
    return optuna.load_study(study_name="sweep", storage=storage).get_trials()


def whole(folder: Path, count: int) -> None:
    """Exactly so many trials, all ended; no step of any missing or twice."""
    trials = finished(folder)
    assert [trial.number for trial in trials] == list(range(count))
    assert all(trial.state.is_finished() for trial in trials)
    assert not [t.user_attrs for t in trials if t.state == TrialState.FAIL]
    for trial in trials:
        rows = report.read(folder / "sweep" / "trials" / str(trial.number))
        steps = [row["step"] for row in rows if row["split"] != "train"]
        assert steps == sorted(set(steps)), (trial.number, steps)


def test_a_mistake_ends_with_2_and_no_traceback(tmp_path):
    text = finish(start(tmp_path, "--config.train.bach_size=3"), 2)
    assert "Traceback" not in text and "did you mean train.batch_size" in text


@pytest.mark.slow
def test_eight_trials_on_two_workers_and_the_best_again(tmp_path):
    more = ("--devices=cpu/2", "--pruner=halving", "--reduction=2", "--config.train.eval_every=3")
    text = finish(start(tmp_path, *more, trials=8))
    whole(tmp_path, 8)
    assert {t.state for t in finished(tmp_path)} == {TrialState.COMPLETE, TrialState.PRUNED}, text
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    again = shlex.split(best["command"].replace(" python ", f" {sys.executable} "))
    subprocess.run(again, env=environment(), cwd=ROOT, check=True, capture_output=True)

    def evaluations(folder: str) -> list[float]:
        rows = report.read(tmp_path / "sweep" / folder)
        return [row["eval/l1"] for row in rows if row["split"] != "train" and row["step"]]

    assert evaluations("best") == evaluations(f"trials/{best['trial']}")
    assert min(evaluations("best")) == best["value"]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["trial", "controller", "both"])
def test_a_kill_loses_nothing_and_runs_nothing_twice(tmp_path, who):
    process = start(tmp_path, "--devices=cpu/2", "--config.train.steps=60", trials=3)
    lock = tmp_path / "sweep" / "trials" / "0" / "checkpoints" / "5"
    until = time.monotonic() + 300
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.05)
    holder = (tmp_path / "sweep/trials/0/lock").read_text().split()[1]
    before = [trial.params for trial in finished(tmp_path)]
    if who != "trial":
        process.kill()
        process.communicate()
    if who != "controller":
        os.kill(int(holder), signal.SIGKILL)
    if who != "trial":
        process = start(tmp_path, "--devices=cpu/2", "--config.train.steps=60", trials=3)
    finish(process)
    whole(tmp_path, 3)
    assert [trial.params for trial in finished(tmp_path)][: len(before)] == before


def test_several_share_a_process_and_one_that_fails_is_told_apart(tmp_path):
    fails = """
import json, pathlib, sys
for name, values in json.loads(sys.argv[1]).items():
    folder = pathlib.Path(name)
    if values["loss.l1"] == 10.0:
        print(f"error: {folder}: its loss is made of cheese")
        continue
    row = {"step": 3, "images": 3, "split": "val", "eval/l1": values["loss.l1"]}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
sys.exit(3)
"""

    def together(members):
        return ["-c", fails, json.dumps({str(k): v for k, v in members.items()})]

    plan = fake_plan(tmp_path)._replace(together=together)
    with Owners(tmp_path) as owners:
        trials = opened(tmp_path, owners, space=GRID, sampler="grid")
        controller = Controller(
            plan, trials, owners, [Place("a", {})], Console(silent=True), lambda: None, members=6
        )
        assert controller.run(6, Stop()) == 0
    for trial in trials.all():
        failed = trial.params["loss.l1"] == 10.0
        assert (trial.state == TrialState.FAIL) == failed
        assert trial.user_attrs.get(REASON) == ("its loss is made of cheese" if failed else None)


def test_what_makes_another_program_is_not_trained_together(tmp_path):
    with pytest.raises(ConfigError, match=r"--vmap: loss\.l1: is 0 in some"):
        options.parse(words(tmp_path, "--vmap=4"))


@pytest.mark.slow
def test_trials_are_trained_together_and_a_kill_loses_nothing(tmp_path):
    more = ("--vmap=2", "--devices=cpu", "--config.train.steps=30", "--config.mesh.devices=1")
    given = words(tmp_path, *more, trials=3)
    (tmp_path / "space.py").write_text(SPACE_FILE.replace("0.0, 10.0", "1.0, 10.0"))
    command = [sys.executable, "-m", "p2p_jax.sweep", *given]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    saved = tmp_path / "sweep/trials/1/checkpoints/5"
    while not saved.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    whole(tmp_path, 3)
    assert "trial 0 goes on" in done.stdout and "trial 1 goes on" in done.stdout
    assert (tmp_path / "sweep" / "trials" / "0-1.log").exists()


@pytest.mark.slow
def test_two_controllers_share_one_journal(tmp_path):
    cores = places.usable()
    each = [f"--devices=cpu:{core}" for core in (cores[0], cores[-1])]
    pair = [start(tmp_path, more, trials=4) for more in each]
    texts = [finish(process) for process in pair]
    whole(tmp_path, 4)
    assert sum(text.count(" begins on ") for text in texts) == 4
    assert all(" begins on " in text for text in texts)
