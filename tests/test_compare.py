"""Runs side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
from browser import browser
from running import files

from p2p_jax import pictures
from p2p_jax.compare import main
from p2p_jax.comparison import interval
from p2p_jax.config import base
from p2p_jax.data import synthetic
from p2p_jax.report import write_json

NAMES = ["a", "b#1", "c<d>", "e"]


def _run(workdir, l1, step="20", names=NAMES, data="same", rate=2e-4, fid=50.0, log=True):
    """A run with one evaluation, `l1` of its images given."""
    config = base()
    config.optim.gen.lr = rate
    write_json(workdir / "config.json", config.to_dict())
    folder = workdir / "eval" / "val" / step
    rows = []
    for i, name in enumerate(names):
        source, target = synthetic.render(i, (64, 48))
        for kind, image in (("source", source), ("images", target // 2), ("target", target)):
            pictures.save(folder / kind / f"{name}.png", image)
        rows.append({"name": name, "eval/l1": l1[i], "eval/psnr": 10 / (1 + l1[i])})
    found = {
        **{"step": int(step.split("_")[0]), "split": "val", "data": data, "dropout": rate > 1e-3},
        "better": {"eval/l1": "min", "eval/psnr": "max", "eval/fid": "min"},
        "about": {"eval/fid": "from <weights>"},
        **{key: float(np.mean([row[key] for row in rows])) for key in ("eval/l1", "eval/psnr")},
        "eval/fid": fid,
        "intervals": {"eval/l1": [0.0, 9.0]},
        "per_example": rows,
    }
    write_json(folder / "metrics.json", found)
    lines = [{"step": s, "split": "train", "loss/disc": 1 / (1 + s * rate)} for s in range(1, 21)]
    if log:
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return workdir


def _call(capsys, *words):
    code = main([str(word) for word in words])
    return code, capsys.readouterr()


def _record(folder):
    return json.loads((folder / "compare.json").read_text())


@pytest.fixture
def two(tmp_path):
    first = _run(tmp_path / "one", [0.1, 0.2, 0.3, 0.4])
    return first, _run(tmp_path / "two", [0.15, 0.22, 0.33, 0.5], rate=2e-3, fid=40.0)


# --- figures -------------------------------------------------------------------------------------


def test_differences_are_paired_and_their_intervals_resampled(two, tmp_path, capsys):
    before = files(two[0]) | files(two[1])
    code, said = _call(capsys, *two, f"--output={tmp_path / 'out'}")
    assert code == 0 and "l1: one 0.25  two 0.3 (+0.05" in said.out
    l1, psnr, fid = _record(tmp_path / "out")["figures"]
    assert l1["name"] == "l1" and l1["better"] == "min" and l1["intervals"][0] == [0.0, 9.0]
    gained = l1["differences"][1]
    assert l1["differences"][0] is None and gained["value"] == pytest.approx(0.05)
    # All means of four of the differences, drawn with replacement, by counting.
    each = np.array([0.05, 0.02, 0.03, 0.1])
    means = np.array(np.meshgrid(*[each] * 4)).reshape(4, -1).mean(0)
    low, high = np.percentile(means, (2.5, 97.5))
    assert gained["interval"] == pytest.approx([low, high], abs=0.004)
    assert gained["interval"][0] > 0  # sure, though the figures' own intervals overlap
    assert psnr["differences"][1]["value"] < 0
    assert fid["values"] == [50.0, 40.0] and fid["intervals"] == [None, None]
    assert fid["differences"][1] == {"value": -10.0, "interval": None}
    assert files(two[0]) | files(two[1]) == before


def test_an_interval_needs_two_values_and_knows_of_no_nan():
    assert interval(np.array([1.0])) is None and interval(np.array([1.0, np.nan])) is None
    assert interval(np.array([2.0, 2.0, np.nan])) == [2.0, 2.0]
    draws = np.random.default_rng(1).normal(3, 2, 400)
    low, high = interval(draws)
    assert (high - low) / 2 == pytest.approx(1.96 * draws.std() / 20, rel=0.1)


def test_on_other_data_only_names_in_common_are_compared_and_that_is_said(two, tmp_path, capsys):
    three = _run(tmp_path / "three", [0.2, 0.4, 0.6], names=["b#1", "e", "new"], data="other")
    code, said = _call(capsys, two[0], three, f"--output={tmp_path / 'out'}")
    assert code == 0 and "other data (images: one 4, three 3)" in said.out
    record = _record(tmp_path / "out")
    assert record["images"] == 2 and "the 2 of the same name" in record["notes"][0]
    l1, psnr = record["figures"]  # of FID nothing is known
    assert l1["values"] == pytest.approx([0.3, 0.3])
    assert l1["intervals"][0] == pytest.approx([0.2, 0.4]) and psnr["name"] == "psnr"


def test_labels_tell_runs_apart_and_steps_can_be_named(tmp_path, capsys):
    for step, value in (("9", 0.5), ("10", 0.4), ("10_2", 0.3)):
        run = _run(tmp_path / "x" / "run", [value] * 4, step=step)
    other = _run(tmp_path / "y" / "run", [0.1] * 4, step="10", log=False)
    code, said = _call(capsys, run, f"{run}@9", f"{run}@10_2", other, "--output", tmp_path / "out")
    assert code == 0 and "run has several evaluations of step 10" in said.out
    assert "10 is taken, not @10_2" in said.out
    l1 = _record(tmp_path / "out")["figures"][0]
    assert l1["values"] == pytest.approx([0.4, 0.5, 0.3, 0.1])
    text = (tmp_path / "out" / "index.html").read_text()
    assert all(f'"name":"{label}"' in text for label in ("x/run@10", "x/run@9", "y/run@10"))


# --- where it goes -------------------------------------------------------------------------------


def test_nothing_but_the_same_comparison_is_overwritten(two, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _call(capsys, *two)[0] == 0
    first = tmp_path / "compare" / "one_vs_two"
    made = files(first)
    names = {str(path) for path in made}
    assert any(name.endswith("index.html") for name in names)
    assert _call(capsys, *two)[0] == 0
    assert files(first) == made and [p.name for p in first.parent.iterdir()] == ["one_vs_two"]
    # Another one of the same names gets a folder of its own.
    _run(two[1], [0.0] * 4, step="30")
    assert _call(capsys, *two)[0] == 0
    assert sorted(p.name for p in first.parent.iterdir()) == ["one_vs_two", "one_vs_two_2"]
    assert files(first) == made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    for folder in (tmp_path / "mine", first):
        code, said = _call(capsys, *two, f"--output={folder}")
        assert code == 2 and "holds something else" in said.err
    assert (tmp_path / "mine" / "index.html").read_text() == "mine" and files(first) == made


def test_all_problems_are_told_at_once(two, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, said = _call(capsys, tmp_path / "no", "--split=val", "--size=3", "--colour=red")
    assert code == 2 and "there is no folder" in said.err and "two runs or more" in said.err
    assert "--colour: no such flag" in said.err and "--size: '3'" in said.err
    code, said = _call(capsys, two[0], tmp_path / "empty", f"{two[1]}@7", "--split=test")
    assert code == 2 and said.err.count("holds no evaluation of 'test'") == 3
    assert "there are val: use --split" in said.err and "evaluate it first" in said.err
    code, said = _call(capsys, two[0], f"{two[1]}@7")
    assert code == 2 and "@7: no such evaluation of 'val'; there are 20" in said.err
    code, said = _call(capsys, two[0], f"{two[0]}@20")
    assert code == 2 and "named twice" in said.err
    (two[1] / "eval" / "val" / "20" / "metrics.json").write_text("[]")
    code, said = _call(capsys, *two)
    assert code == 2 and "cannot be read as an evaluation" in said.err
    alone = _run(tmp_path / "alone", [1.0], names=["z"])
    code, said = _call(capsys, two[0], alone)
    assert code == 2 and "no image in common" in said.err
    assert main(["--help"]) == 0 and "python -m p2p_jax.compare" in capsys.readouterr().out


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_in_a_browser(two, tmp_path, capsys):
    third = _run(tmp_path / "three", [0.1, 0.9, 0.3, 0.0])
    assert _call(capsys, *two, third, f"--output={tmp_path / 'out'}", "--size=32")[0] == 0
    for run in (*two, third):
        run.rename(tmp_path / f"gone_{run.name}")
    with browser() as tab:
        opened = tab.page
        opened.goto((tmp_path / "out" / "index.html").as_uri())
        cells = opened.locator("#figures tr[data-name=l1] td").all_inner_texts()
        assert len(cells) == 3 and "worse" in cells[1] and "not sure" in cells[2]
        assert "from <weights>" in opened.inner_text("#figures")
        settings = opened.inner_text("#settings")
        assert "optim.gen.lr" in settings and "(evaluation) dropout" in settings
        assert opened.locator(".chart path").count() == 3
        opened.locator("#curves input[type=checkbox]").nth(1).uncheck()
        assert opened.locator(".chart path").count() == 2

        def shown():
            return opened.locator(".card .name").all_text_contents()

        assert shown() == ["b#1", "e", "a", "c<d>"]
        opened.select_option("#gallery select", "l1 three")
        assert shown()[0] == "e" and shown()[-1] == "b#1"
        opened.click("text=least first")
        assert shown()[0] == "b#1"
        assert opened.locator(".card >> nth=0").locator("img").count() == 5
        opened.wait_for_function(
            "[...document.querySelectorAll('.card img')].every(i => i.complete && i.naturalWidth)"
        )
        opened.click(".card .pane >> nth=1")
        assert opened.locator("dialog .tag").all_inner_texts() == ["one", "two"]
        opened.select_option("dialog select >> nth=1", label="target")
        assert opened.locator("dialog .tag").all_inner_texts() == ["one", "target"]
        opened.keyboard.press("Escape")
        tab.look(360, 700)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.problems == []
