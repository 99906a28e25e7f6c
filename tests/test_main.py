"""The command line from end to end: what it says, how it exits, what it leaves alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from running import CONFIG, STEPS, environment, files, finished, get_config, start

from p2p_jax import report
from p2p_jax.config import ConfigError
from p2p_jax.flags import Command, parse
from p2p_jax.main import main
from p2p_jax.process import alone_in
from p2p_jax.resuming import check_changes, check_data
from p2p_jax.validate import resolved


@pytest.fixture(autouse=True)
def prepared(monkeypatch, tmp_path):
    """Prepared sets belong into tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Bad input must be told before it costs time."""
    for place in ("begin.make_train_step", "evaluate.make_sample"):
        monkeypatch.setattr(f"p2p_jax.{place}", lambda *_: pytest.fail("something compiles"))


def _refused(capsys, workdir, *argv):
    """What a refusal says on standard error."""
    assert main([CONFIG, f"--workdir={workdir}", *argv]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert all(line.startswith("error: ") for line in err.splitlines()), err
    assert not workdir.exists()
    return err


def _folder(path, count=6, size=(32, 64), suffix="png"):
    """Side-by-side images: the right half is the left one turned upside down."""
    for split, number in (("train", count), ("val", 2)):
        (path / split).mkdir(parents=True)
        for i in range(number):
            rng = np.random.default_rng((i, number))
            left = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            pair = np.concatenate([left, left[::-1]], 1)[: size[0], : size[1]]
            Image.fromarray(pair).save(path / split / f"{i:03d}.{suffix}")
    return path


def _from(folder):
    return ["--config.data.source=folder", f"--config.data.path={folder}"]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.train.stesp=3"], "--config.train.stesp: no such key; did you mean train.steps"),
        (["--config.model.generator.name=unett"], "'unett' is not one of unet, unet_upsample, "),
        (["--config.data.load_size=16,64"], "height 32 is larger than data.load_size's 16"),
        (["--config.data.source=folder"], "data.path: '' is empty; give the folder that holds"),
        (["--config.data.crop_size=40,32", "--config.data.load_size=64"], "multiples of 16: "),
        (["--config.train.steps=three"], "--config.train.steps: 'three' is not a whole number"),
        (["--config.train.steps=2.5"], "--config.train.steps: 2.5 is not a whole number"),
        (["--config.train.batch_size=6"], "6 does not divide over 4 devices; use a multiple of 4"),
        (["--config.train.batch_size=8", "--config.model.generator.norm_group=4"], "of each of 4"),
        (["--mode=evl"], "--mode: 'evl' is not one of train, eval; did you mean eval?"),
        (["--wrokdir=x"], "--wrokdir: no such flag; did you mean --workdir?"),
        (["train"], "train: not a flag; flags are --name=value"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("nothing_compiles")
def test_a_mistake_is_named_and_nothing_done(capsys, tmp_path, flags, says):
    err = _refused(capsys, tmp_path / "run", *flags)
    assert says in err and len(err.splitlines()) == 1


@pytest.mark.usefixtures("nothing_compiles")
def test_evaluation_needs_the_workdir(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([CONFIG, "--mode=eval"]) == 2
    assert "--workdir: needed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_compiles")
def test_a_run_without_a_workdir_goes_where_its_config_is_called(tmp_path, monkeypatch, started):
    monkeypatch.chdir(tmp_path)
    assert main([CONFIG]) == 0
    assert str(started["workdir"]) == "runs/running"


@pytest.mark.usefixtures("nothing_compiles")
def test_a_folder_that_is_not_there(capsys, tmp_path):
    (tmp_path / "facades").mkdir()
    err = _refused(capsys, tmp_path / "run", *_from(tmp_path / "facade"))
    assert f"did you mean {tmp_path / 'facades'}?" in err


@pytest.mark.usefixtures("nothing_compiles")
def test_a_folder_without_images(capsys, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "notes.txt").write_text("x")
    err = _refused(capsys, tmp_path / "run", *_from(tmp_path / "data"))
    assert f"'train' of '{tmp_path / 'data'}' holds no image" in err
    assert "found notes.txt" in err


@pytest.mark.usefixtures("nothing_compiles")
def test_a_width_that_cannot_be_halved(capsys, tmp_path):
    folder = _folder(tmp_path / "data", size=(32, 63))
    err = _refused(capsys, tmp_path / "run", *_from(folder))
    assert f"train[0] {folder / 'train' / '000.png'}: width 63 is odd" in err
    assert err.count("width 63 is odd") == 8  # each image of both splits
    assert len(err.splitlines()) == 8


@pytest.mark.usefixtures("nothing_compiles")
def test_a_truncated_jpeg(capsys, tmp_path):
    folder = _folder(tmp_path / "data", suffix="jpg")
    harmed = folder / "train" / "003.jpg"
    harmed.write_bytes(harmed.read_bytes()[:-60])
    err = _refused(capsys, tmp_path / "run", *_from(folder))
    assert f"train[3] {harmed}: broken or truncated" in err and len(err.splitlines()) == 1
    assert "replace or remove it" in err


@pytest.mark.usefixtures("nothing_compiles")
def test_key_type_value_and_folder_at_once(capsys, tmp_path):
    err = _refused(
        capsys, tmp_path / "run", "--config.train.stesp=3", "--config.train.batch_size=four",
        "--config.model.generator.name=unett", *_from(tmp_path / "nowhere"), "--mdoe=train",
    )  # fmt: skip
    for part in ("train.stesp", "'four'", "'unett'", "nowhere' does not exist", "--mdoe"):
        assert part in err
    assert len(err.splitlines()) == 5


@pytest.mark.parametrize(("mistake", "says"), [("c.train.steps = (", "closed"), ("c.x = 1", "x")])
@pytest.mark.usefixtures("nothing_compiles")
def test_a_mistake_in_the_config_file(capsys, tmp_path, mistake, says):
    task = tmp_path / "task.py"
    head = "from p2p_jax.config import base\ndef get_config():\n    c = base()\n"
    task.write_text(f"{head}    {mistake}\n    return c\n")
    assert main([f"--config={task}", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --config: {task}:4: ") and says in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--config=FILE[:ARGUMENT] --workdir=DIR" in capsys.readouterr().out


# --- a workdir of another run --------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A workdir as far as the config is concerned."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    report.write_json(workdir / "config.json", resolved(get_config()).to_dict())
    return workdir


@pytest.fixture
def started(monkeypatch):
    """What would be trained, instead of training."""
    found = {}

    def train(experiment, workdir, console, changes, ledger, stop):
        found.update(experiment=experiment, workdir=workdir, changes=changes)
        return 0

    monkeypatch.setattr("p2p_jax.train.train", train)
    return found


@pytest.mark.usefixtures("nothing_compiles")
def test_another_config_is_refused_field_by_field(capsys, trained):
    before = files(trained)
    flags = ["--config.seed=3", "--config.data.flip=false", "--config.train.log_every=1"]
    assert main([CONFIG, f"--workdir={trained}", *flags]) == 2
    err = capsys.readouterr().err
    assert "error: seed: 0 so far, 3 now" in err
    assert "error: data.flip: True so far, False now" in err
    assert "log_every" not in err and "--allow_config_change" in err
    assert files(trained) == before


def test_another_config_on_request(trained, started, monkeypatch):
    monkeypatch.setattr("p2p_jax.begin.make_train_step", None)
    argv = [CONFIG, f"--workdir={trained}", "--config.seed=3", "--config.train.steps=99"]
    assert main([*argv, "--allow_config_change"]) == 0
    assert started["changes"] == {"seed": [0, 3]}
    assert started["experiment"].seed == 3 and started["experiment"].train.steps == 99
    # The length alone is free.
    assert main([CONFIG, f"--workdir={trained}", "--config.train.steps=99"]) == 0
    assert started["changes"] == {}


@pytest.mark.usefixtures("nothing_compiles")
def test_training_goes_on_with_the_saved_config(trained, started):
    saved = resolved(get_config()).to_dict() | {"seed": 5}
    report.write_json(trained / "config.json", saved)
    assert main([f"--workdir={trained}", "--config.train.steps=99"]) == 0
    assert started["experiment"].seed == 5 and started["experiment"].train.steps == 99
    assert started["changes"] == {}


@pytest.mark.usefixtures("nothing_compiles")
def test_an_override_of_the_saved_config_is_a_change_too(capsys, trained):
    before = files(trained)
    assert main([f"--workdir={trained}", "--config.seed=3"]) == 2
    assert "error: seed: 0 so far, 3 now" in capsys.readouterr().err
    assert files(trained) == before


@pytest.fixture
def begun(trained):
    """A workdir of networks that have not been trained here."""
    (trained / "checkpoints" / "3").rename(trained / "checkpoints" / "0")
    return trained


@pytest.mark.usefixtures("nothing_compiles")
def test_before_the_first_step_training_may_still_change(begun, started):
    flags = ["--config.seed=3", "--config.loss.l1=7", "--config.train.batch_size=8",
             "--config.optim.schedule=linear", "--config.data.flip=false"]  # fmt: skip
    assert main([CONFIG, f"--workdir={begun}", *flags]) == 0
    assert started["experiment"].seed == 3 and started["changes"] == {}


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("model.generator.norm=group", "model.generator.norm: 'batch' so far, 'group' now"),
        ("data.channels=1,3", "data.channels: (3, 3) so far, (1, 3) now"),
        ("data.task=colorize", "data.task: 'translate' so far, 'colorize' now"),
        ("train.precision=bfloat16", "train.precision: 'float32' so far, 'bfloat16' now"),
        ("train.ema_decay=0.5", "train.ema_decay: 0.9 so far, 0.5 now"),
    ],
)
@pytest.mark.usefixtures("nothing_compiles")
def test_but_not_the_networks(capsys, begun, flag, says):
    before = files(begun)
    assert main([CONFIG, f"--workdir={begun}", f"--config.{flag}", "--config.seed=3"]) == 2
    err = capsys.readouterr().err
    assert f"error: {says}" in err and "seed: " not in err
    assert files(begun) == before


@pytest.mark.usefixtures("nothing_compiles")
def test_a_step_beside_step_0_holds_the_whole_config(capsys, begun):
    (begun / "checkpoints" / "5").mkdir()
    assert main([CONFIG, f"--workdir={begun}", "--config.loss.l1=7"]) == 2
    assert "error: loss.l1: 100.0 so far, 7.0 now" in capsys.readouterr().err


def test_two_processes_do_not_share_a_workdir(capsys, tmp_path):
    with alone_in(tmp_path):
        before = files(tmp_path)
        assert main([CONFIG, f"--workdir={tmp_path}"]) == 1
        assert files(tmp_path) == before
    assert f"error: {tmp_path} is being trained by process" in capsys.readouterr().err


# --- evaluation ----------------------------------------------------------------------------------


def _eval(capsys, workdir, *argv):
    code = main(["--mode=eval", f"--workdir={workdir}", *argv])
    return code, capsys.readouterr()


@pytest.mark.usefixtures("nothing_compiles")
def test_evaluation_of_a_folder_that_is_no_run(capsys, tmp_path):
    code, (_, err) = _eval(capsys, tmp_path / "nowhere")
    assert code == 2 and "holds no config.json" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_evaluation_before_any_checkpoint(capsys, trained):
    (trained / "checkpoints" / "3").rmdir()
    before = files(trained)
    code, (_, err) = _eval(capsys, trained)
    assert code == 2 and f"{trained} holds no checkpoint yet; train first" in err
    assert "Traceback" not in err and files(trained) == before


@pytest.mark.usefixtures("nothing_compiles")
def test_evaluation_with_mistakes(capsys, trained):
    flags = ["--config.eval.exmples=2", "--config.eval.ema=perhaps", "--config.eval.norm_stats=b"]
    code, (_, err) = _eval(capsys, trained, *flags)
    assert code == 2 and "Traceback" not in err
    for part in (
        "did you mean eval.examples?",
        "'perhaps' is not True or False",
        "norm_stats: 'b'",
    ):
        assert part in err


def test_evaluation_of_other_examples(capsys, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished()[0], workdir)
    shutil.rmtree(workdir / "eval")
    before = files(workdir)
    code, (out, err) = _eval(capsys, workdir, "--config.eval.examples=3", "--config.eval.ema=true")
    assert code == 0, err
    assert "best constant image" in out
    after = files(workdir)
    new = {name for name in after if name not in before}
    assert {name: after[name] for name in before} == before  # nothing of the run changed
    assert len([name for name in new if name.startswith(f"eval/val/{STEPS}/images/")]) == 3
    assert all(name.startswith(f"eval/val/{STEPS}/") for name in new)


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_bad_input_in_a_process(tmp_path):
    ran = start(CONFIG, f"--workdir={tmp_path / 'run'}", "--config.train.stesp=3")
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.strip() == (
        "error: --config.train.stesp: no such key; did you mean train.steps?"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_nothing_imports_tensorflow(tmp_path):
    stub, told = tmp_path / "stub" / "tensorflow", tmp_path / "tensorflow was imported"
    stub.mkdir(parents=True)
    # Not an ImportError, which somebody may expect and pass over.
    (stub / "__init__.py").write_text(f"open({str(told)!r}, 'w')\nraise RuntimeError('stub')\n")
    folder = _folder(tmp_path / "data", count=9)
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    env["PYTHONPATH"] = f"{tmp_path / 'stub'}:{env['PYTHONPATH']}"
    flags = [f"--workdir={tmp_path / 'run'}", *_from(folder)]
    ran = start(CONFIG, *flags, "--config.train.steps=3", "--config.data.cache=host", env=env)
    assert ran.returncode == 0, ran.stderr
    assert list((tmp_path / "cache" / "p2p_jax").glob("pairs-*"))  # the builder has run
    trained = (tmp_path / "run" / "eval" / "val" / "3" / "metrics.json").read_text()
    shutil.rmtree(tmp_path / "run" / "eval")
    ran = start("--mode=eval", f"--workdir={tmp_path / 'run'}", env=env)
    assert ran.returncode == 0, ran.stderr
    again = (tmp_path / "run" / "eval" / "val" / "3" / "metrics.json").read_text()
    assert again == trained
    images = sorted(p.name for p in (tmp_path / "run/eval/val/3/images").iterdir())
    assert images == ["000.png", "001.png"]
    assert not told.exists()
    subprocess.run([sys.executable, "-c", "import tensorflow"], env=env, stderr=subprocess.DEVNULL)
    assert told.exists()  # the stub does stand first


def test_a_config_may_change_until_something_is_saved(tmp_path):
    report.write_json(tmp_path / "config.json", resolved(get_config()).to_dict())
    command = parse([CONFIG, f"--workdir={tmp_path}", "--config.loss.l1=7"])
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert check_changes(command) == {}
    (tmp_path / "checkpoints" / "3").mkdir()
    with pytest.raises(ConfigError, match=r"loss.l1: .* so far, 7.0 now"):
        check_changes(command)


# --- the data of a run ---------------------------------------------------------------------------


def _photos(folder, count=4):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((32, 32, 3), 9 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.usefixtures("nothing_compiles")
def test_a_run_among_its_own_photos_is_refused(capsys, tmp_path):
    photos = _photos(tmp_path / "photos")
    flags = ["--config.data.source=inpaint", f"--config.data.path={photos}"]
    err = _refused(capsys, photos / "runs" / "one", *flags)
    assert "--workdir: " in err and "lies inside data.path" in err
    assert not (photos / "runs").exists()


def test_other_training_pairs_are_noticed_on_resume(tmp_path):
    command = Command("train", tmp_path, None, False)
    experiment = SimpleNamespace(train_frames=_Sized("new", 7))
    before = {"data": {"train": {"examples": 6, "fingerprint": "old"}}}
    check_data(command, experiment, before)  # no checkpoint yet
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"the 7 training pairs are not the 6 that .*removed"):
        check_data(command, experiment, before)
    check_data(command._replace(allow_config_change=True), experiment, before)
    same = {"data": {"train": {"examples": 7, "fingerprint": "new"}}}
    check_data(command, experiment, same)
    check_data(command, experiment, {})  # of a version that did not record it


class _Sized:
    def __init__(self, fingerprint, count):
        self.fingerprint, self._count = fingerprint, count

    def __len__(self):
        return self._count
