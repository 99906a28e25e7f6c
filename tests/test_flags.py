"""The command line, parsed: values in their types, and every mistake in one go."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from running import CONFIG, get_config

from p2p_jax import report
from p2p_jax.config import ConfigError, base, flatten
from p2p_jax.flags import parse, read_value
from p2p_jax.validate import resolved

# What the tiny config comes to: its task is left to its source.
FLAT = flatten(get_config()) | {"data.task": "translate"}


def _problems(*argv):
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return caught.value.problems


def _parse(*argv):
    return parse([CONFIG, "--workdir=w", *argv])


@pytest.mark.parametrize(
    ("text", "like", "want"),
    [
        ("3", 1, 3), ("-3", 1, -3), ("3", 1.0, 3), ("1e-3", 1.0, 1e-3), ("2.5", 1.0, 2.5),
        ("true", False, True), ("False", True, False), ("1", False, True), ("0", True, False),
        ("facades", "", "facades"), ("3", "", "3"), ("", "x", ""), ("(1,2)", "", "(1,2)"),
        ("286,286", (1, 2), (286, 286)), ("(64, 32)", (1, 2), (64, 32)), ("64", (1, 2), 64),
        ("[64,32]", (1, 2), [64, 32]), ("()", (1, 2, 3), ()), ("", (1, 2, 3), ()),
        ("1,", (1, 2, 3), (1,)), ("4,8,8", (), (4, 8, 8)), ("4", (), 4),
        ("l1,psnr", ("l1",), ("l1", "psnr")), ("('l1', 'psnr')", ("l1",), ("l1", "psnr")),
        ("l1", ("l1", "psnr"), ("l1",)),
        # What cannot be read stays text, for `coerce` to refuse.
        ("four", 1, "four"), ("1+", 1.0, "1+"), ("yes", True, "yes"), ("__import__('os')", 1,
                                                                        "__import__('os')"),
    ],
)  # fmt: skip
def test_read_value(text, like, want):
    got = read_value(text, like)
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    ("flag", "key", "want"),
    [
        ("--config.train.steps=7", "train.steps", 7),
        ("--config.optim.gen.lr=1", "optim.gen.lr", 1.0),
        ("--config.data.crop_size=64", "data.crop_size", (64, 64)),
        ("--config.data.load_size=40,48", "data.load_size", (40, 48)),
        ("--config.data.flip=false", "data.flip", False),
        ("--config.model.generator.dropout=()", "model.generator.dropout", ()),
        ("--config.model.generator.dropout=2", "model.generator.dropout", (2,)),
        ("--config.eval.metrics=l1,psnr", "eval.metrics", ("l1", "psnr")),
        ("--config.data.name=a=b --c", "data.name", "a=b --c"),
    ],
)
def test_an_override(flag, key, want):
    more = ["--config.data.load_size=70,70"] if "crop_size" in flag else []
    got = flatten(_parse(flag, *more).config)[key]
    assert got == want and type(got) is type(want)


def test_the_other_keys_are_those_of_the_file():
    command = _parse("--config.train.steps=7")
    assert flatten(command.config) == FLAT | {"train.steps": 7}
    assert command.mode == "train" and str(command.workdir) == "w"
    assert not command.allow_config_change
    assert _parse("--allow_config_change").allow_config_change


def test_name_and_value_may_be_two_words():
    flags = [*CONFIG.split("="), "--workdir", "w", "--config.train.steps", "7"]
    command = parse(flags)
    assert str(command.workdir) == "w" and command.config.train.steps == 7


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.train.stesp=3", "--config.train.stesp: no such key; did you mean train.steps?"),
        ("--config.batch_size=3", "batch_size: no such key; did you mean"),
        ("--config.train=3", "--config.train: no such key"),
        ("--config.train.steps=three", "--config.train.steps: 'three' is not a whole number"),
        ("--config.train.steps=2.5", "--config.train.steps: 2.5 is not a whole number"),
        ("--config.train.steps=True", "--config.train.steps: True is not a whole number"),
        ("--config.optim.gen.lr=fast", "--config.optim.gen.lr: 'fast' is not a number"),
        ("--config.data.flip=maybe", "--config.data.flip: 'maybe' is not True or False"),
        ("--config.data.crop_size=a,b", "--config.data.crop_size: 'a,b' is not a tuple"),
        (
            "--config.data.crop_size=1.5,2",
            "--config.data.crop_size: (1.5, 2) must hold whole numbers only",
        ),
        ("--config.train.steps", "--config.train.steps: needs a value"),
        ("--mode=evl", "--mode: 'evl' is not one of train, eval; did you mean eval?"),
        ("--wrokdir=x", "--wrokdir: no such flag; did you mean --workdir?"),
        ("workdir", "workdir: not a flag; flags are --name=value"),
        ("--allow_config_change=no", "--allow_config_change: takes no value"),
    ],
)
def test_one_mistake(flag, says):
    (problem,) = _problems(CONFIG, "--workdir=w", flag)
    assert says in problem


@pytest.mark.parametrize(
    ("name", "argument", "wanted"),
    [("task.py", "", "runs/task"), ("task.py", ":few", "runs/task_few"),
     ("my.task.py", ":many", "runs/my.task_many")],
)  # fmt: skip
def test_a_run_has_its_workdir_from_its_config(tmp_path, monkeypatch, name, argument, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    text = WITH_ARGUMENT if argument else WITH_ARGUMENT.replace("(steps)", "(steps='few')")
    (tmp_path / "tasks" / name).write_text(text)
    flag = f"--config=tasks/{name}{argument}"
    assert str(parse([flag]).workdir) == wanted
    assert str(parse([flag, "--mode=train"]).workdir) == wanted
    assert str(parse([flag, "--workdir=w"]).workdir) == "w"
    # What is evaluated must be said; the config says nothing of it.
    assert any(p.startswith("--workdir: needed") for p in _problems(flag, "--mode=eval"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tasks"]


@pytest.mark.parametrize("flags", [(), ("--config.data.source=synthetic",)])
def test_evaluation_needs_a_workdir_that_is_named(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    report.write_json(tmp_path / "config.json", get_config().to_dict())
    (problem,) = _problems("--mode=eval", *flags)
    assert problem.startswith("--workdir: needed")


def test_the_task_that_is_left_to_the_source_is_said(workdir):
    (workdir / "train").mkdir()
    pixels = np.zeros((32, 64, 3), np.uint8)
    for name in "01":
        Image.fromarray(pixels).save(workdir / "train" / f"{name}.png")
    tasks = {"synthetic": "translate", "folder": "translate", "edges": "translate",
             "colorization": "colorize", "inpaint": "inpaint", "labels": "labels"}  # fmt: skip
    for source, task in tasks.items():
        flags = [f"--config.data.source={source}", f"--config.data.path={workdir}"]
        flags += ["--config.data.classes=3"] * (source == "labels")
        assert _parse(*flags).config.data.task == task
    assert _parse("--config.data.source=colorization", f"--config.data.path={workdir}",
                  "--config.data.task=grey").config.data.task == "grey"  # fmt: skip
    assert _parse("--config.data.task=colorize").config.data.task == "colorize"
    # And where a run is evaluated on another source, its own task holds.
    saved = resolved(get_config()).to_dict()
    saved["data"]["task"] = "inpaint"
    report.write_json(workdir / "config.json", saved)
    command = parse(["--mode=eval", f"--workdir={workdir}", "--config.data.source=folder",
                     f"--config.data.path={workdir}"])  # fmt: skip
    assert command.config.data.task == "inpaint"


def test_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert any(p.startswith("--config: needed") for p in _problems("--workdir=w"))
    assert len(_problems()) == 2
    # Only a workdir that was named lends its config.
    report.write_json(tmp_path / "config.json", get_config().to_dict())
    assert [p.split(":")[0] for p in _problems()] == ["--workdir", "--config"]


def test_key_type_value_and_folder_at_once():
    problems = _problems(
        CONFIG,
        "--config.train.stesp=3",
        "--config.train.batch_size=four",
        "--config.model.generator.name=unett",
        "--config.data.source=folder",
        "--config.data.path=/nowhere/at/all",
        "--flip",
    )
    text = "\n".join(problems)
    for part in ("train.stesp: no such key", "'four' is not a whole number",
                 "did you mean 'unet'?", "'/nowhere/at/all' does not exist", "--flip"):  # fmt: skip
        assert part in text
    assert len(problems) == 5


# --- config files --------------------------------------------------------------------------------

HEAD = "from p2p_jax.config import base\n\n\ndef get_config():\n    c = base()\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (HEAD + "    c.train.steps = (\n    return c\n", 6, "'(' was never closed"),
        (HEAD + "    c.train.stesp = 3\n    return c\n", 6, "stesp"),
        (HEAD + "    c.train.steps = 'three'\n    return c\n", 6, "int"),
        (HEAD + "    c.nothing.at.all = 3\n    return c\n", 6, "nothing"),
        (HEAD + "    return 1 / 0\n", 6, "division by zero"),
        ("import nothing_of_the_kind\n", 1, "nothing_of_the_kind"),
        ("x = 1\n", None, "get_config"),
        (HEAD, None, "get_config() of"),
    ],
)
def test_a_config_file_with_a_mistake(tmp_path, text, line, says):
    path = tmp_path / "task.py"
    path.write_text(text)
    (problem,) = _problems(f"--config={path}", "--workdir=w")
    assert problem.startswith("--config: ") and str(path) in problem and says in problem
    if line:
        assert f"{path}:{line}: " in problem


WITH_ARGUMENT = (
    "from p2p_jax.config import base\n\n\ndef get_config(steps):\n    c = base()\n"
    "    c.data.source = 'synthetic'\n    c.mesh.devices = 1\n"
    "    c.train.steps = {'few': 7, 'many': 70}[steps]\n    return c\n"
)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(WITH_ARGUMENT)
    return path


@pytest.mark.parametrize(("argument", "steps"), [("few", 7), ("many", 70)])
def test_a_config_file_may_take_an_argument(task, argument, steps):
    assert parse([f"--config={task}:{argument}", "--workdir=w"]).config.train.steps == steps
    two_words = ["--config", f"{task}:{argument}", "--workdir=w", "--config.train.steps=8"]
    assert parse(two_words).config.train.steps == 8


def test_an_argument_that_is_missing_or_too_much(task, tmp_path):
    (problem,) = _problems(f"--config={task}", "--workdir=w")
    assert problem.startswith(f"--config: {task}: ")
    assert "get_config() missing 1 required positional argument: 'steps'" in problem
    plain = tmp_path / "plain.py"
    plain.write_text(HEAD + "    return c\n")
    (problem,) = _problems(f"--config={plain}:few", "--workdir=w")
    assert problem.startswith(f"--config: {plain}: ")
    assert "get_config() takes 0 positional arguments but 1 was given" in problem


def test_an_argument_that_the_file_does_not_know(task):
    (problem,) = _problems(f"--config={task}:fw", "--workdir=w")
    assert problem == f"--config: {task}:8: 'fw'"


def test_a_file_whose_name_has_a_colon_takes_none(tmp_path):
    """The file that there is comes first."""
    path = tmp_path / "task.py:few"
    path.write_text(WITH_ARGUMENT)
    (problem,) = _problems(f"--config={path}", "--workdir=w")
    assert problem == f"--config: {path} is not a Python file"


def test_a_file_that_is_missing_is_named_without_its_argument(task):
    missing = task.with_name("tusk.py")
    (problem,) = _problems(f"--config={missing}:few", "--workdir=w")
    assert f"--config: {missing} is not a file; did you mean {task}?" in problem


def test_overrides_are_checked_even_when_the_file_is_not_one(tmp_path):
    (tmp_path / "facades.py").write_text(HEAD + "    return c\n")
    missing = tmp_path / "facade.py"
    problems = _problems(f"--config={missing}", "--workdir=w", "--config.train.stesp=3")
    assert len(problems) == 2
    assert f"{missing} is not a file; did you mean {tmp_path / 'facades.py'}?" in problems[0]


def test_a_config_of_other_keys_than_base(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict({'seed': 1, 'steps': 3})\n"
    )
    problems = _problems(f"--config={path}", "--workdir=w")
    assert len(problems) == 1 and str(path) in problems[0]
    assert "steps: no such key; did you mean train.steps?" in problems[0]


# --- the workdir's own config --------------------------------------------------------------------


def test_training_without_a_config_goes_on_with_the_saved_one(workdir):
    command = parse([f"--workdir={workdir}"])
    assert command.mode == "train"
    assert flatten(command.config) == FLAT
    command = parse([f"--workdir={workdir}", "--config.train.steps=99"])
    assert flatten(command.config) == FLAT | {"train.steps": 99}


def test_the_saved_config_is_checked_for_training_too(workdir):
    """What only training needs is left out of an evaluation, but not of this."""
    flags = [f"--workdir={workdir}", "--config.train.batch_size=6"]
    (problem,) = _problems(*flags)
    assert problem.startswith("train.batch_size: 6 does not divide over 4 devices")
    assert parse(["--mode=eval", *flags]).config.train.batch_size == 6


def test_a_config_that_is_given_wins_over_the_saved_one(workdir, task):
    assert parse([f"--workdir={workdir}", f"--config={task}:few"]).config.train.steps == 7


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"train": {"stesp": 3}}'])
def test_a_saved_config_that_does_not_do_is_named(workdir, text):
    (workdir / "config.json").write_text(text)
    (problem,) = _problems(f"--workdir={workdir}")
    assert str(workdir / "config.json") in problem


# --- evaluation ----------------------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path):
    report.write_json(tmp_path / "config.json", get_config().to_dict())
    return tmp_path


def test_evaluation_takes_the_saved_config_and_overrides(workdir):
    command = parse(["--mode=eval", f"--workdir={workdir}", "--config.eval.examples=2"])
    assert command.mode == "eval"
    assert flatten(command.config) == FLAT | {"eval.examples": 2}


def test_evaluation_shares_no_image_whatever_training_did(workdir):
    """So it runs on devices that are no groups of those."""
    command = parse(["--mode=eval", f"--workdir={workdir}", "--config.mesh.spatial=3"])
    assert command.config.mesh.spatial == 1


def test_evaluation_tells_all_mistakes(workdir):
    problems = _problems(
        "--mode=eval", f"--workdir={workdir}", "--config.eval.exmples=2",
        "--config.eval.ema=perhaps", "--config.eval.norm_stats=bach", "--config.eval.batch_size=3",
    )  # fmt: skip
    text = "\n".join(problems)
    for part in ("did you mean eval.examples?", "'perhaps'", "did you mean 'batch'?"):
        assert part in text
    assert len(problems) == 3 + ("eval.batch_size: 3" in text)


def test_evaluation_of_a_folder_that_is_no_run(tmp_path):
    problems = _problems("--mode=eval", f"--workdir={tmp_path}", "--config.eval.exmples=2")
    assert f"--workdir: {tmp_path} holds no config.json" in problems[0]
    assert "did you mean eval.examples?" in problems[1] and len(problems) == 2


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "3"])
def test_a_saved_config_that_is_not_a_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (problem,) = _problems("--mode=eval", f"--workdir={tmp_path}")
    assert str(tmp_path / "config.json") in problem


def test_every_key_can_be_set_to_its_own_value():
    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    defaults = FLAT
    flags = [f"--config.{key}={text(value)}" for key, value in defaults.items()]
    assert flatten(_parse(*flags).config) == defaults
    assert defaults.keys() == flatten(base()).keys()
