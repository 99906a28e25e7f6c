"""The launchers for clusters: what they would do, and that they do it, to commands that pretend."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax
import jsonschema
import pytest
import yaml

from p2p_jax import flags, peers, validate

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCHEMAS = Path(__file__).parent
SHELL = ["tpu_vm.sh", "xpk.sh", "slurm.sbatch"]
TRAIN = ("--config=c.py", "--workdir=gs://b/a b")

# Writes down how it was called, then does what the next line of NAME.script says.
_PRETEND = """#!/usr/bin/env bash
cd {folder} || exit
printf '%q ' "$(basename "$0")" "$@" | sed 's/ $//' >>calls
echo >>calls
mkdir turn 2>/dev/null # only one at a time, for gcloud is called by a trap too
line=$(head -n1 "$(basename "$0").script" 2>/dev/null)
sed -i 1d "$(basename "$0").script" 2>/dev/null
rmdir turn
eval "$line"
"""


def pretend(folder: Path, **scripts: list[str]) -> dict[str, str]:
    """An environment in which some commands are none, and each call does the next of its lines."""
    for name, lines in scripts.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_PRETEND.format(folder=folder))
        path.chmod(0o755)
        (folder / f"{name}.script").write_text("".join(f"{line}\n" for line in lines))
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a launcher."""
    line = ["bash", str(LAUNCH / words[0]), *words[1:]]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)


def calls(folder: Path) -> list[str]:
    """What was called, a line each, backslashes of quoting left out."""
    return (folder / "calls").read_text().replace("\\", "").splitlines()


@pytest.mark.parametrize("name", SHELL)
def test_shellcheck_finds_nothing(name):
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck comes with the extra `dev`")
    ran = subprocess.run([program, str(LAUNCH / name)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("name", [*SHELL, "local.py"])
def test_it_can_be_run_as_it_is(name):
    assert os.access(LAUNCH / name, os.X_OK) == name.endswith(".sh")
    if name in SHELL:
        assert subprocess.run(["bash", "-n", str(LAUNCH / name)]).returncode == 0


@pytest.mark.parametrize("name", ["tpu_vm.sh", "xpk.sh"])
def test_help_is_the_head_of_the_file(name):
    said = run(name, "--help")
    assert said.returncode == 0
    assert said.stdout.splitlines()[2].startswith(f"  launch/{name}")
    assert "set -euo" not in said.stdout


def problems(words: list[str], devices: int, monkeypatch) -> list[str]:
    """What training would refuse of a command line on so many devices."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    prefix = "config."
    overrides = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    config, found = flags.override(flags.config_file(str(ROOT / given["config"])), overrides)
    return found + validate.validate(config)


@pytest.mark.parametrize("name", ["tpu_vm.sh", "slurm.sbatch", "xpk.sh"])
def test_the_example_divides_over_its_devices(name, monkeypatch):
    head = "".join(re.findall(r"^#(.*?)\\?\n", (LAUNCH / name).read_text(), re.MULTILINE))
    start = head.index(" --config=configs/")
    words = re.findall(r"--config=configs/\S+|--config\.\S+", head[start:])
    slices, nodes = re.search(r"v5litepod-(\d+)", head), re.search(r"sbatch --nodes=(\d+)", head)
    found = slices or nodes
    assert found is not None
    devices = int(found[1]) * (1 if slices else 8)  # GPUs of a node
    assert problems(words, devices, monkeypatch) == []
    assert problems(words[:1], devices, monkeypatch)  # which says that they are counted


def test_nothing_of_any_one_machine_is_in_them():
    for path in [*LAUNCH.iterdir(), ROOT / "docs" / "scaling.md"]:
        if path.is_file():
            assert not re.search(r"/(root|home|work)/", path.read_text()), path


# TPU slices ------------------------------------------------------------------------------------

SLICE = ("--name=pod", "--zone=z", "--type=v5litepod-32", "--version=v2")
STATE = "echo pod {}; echo other FAILED"
MARK = "echo '3072 SHA256:a+b/c me (RSA)'"  # as ssh-keygen and ssh-add tell of a key


def tpu(folder: Path, lines: list[str], *flags: str, action: str = "train"):
    """Trains on a slice that is not there; `lines` are what gcloud does."""
    env = pretend(folder, gcloud=lines, **{"ssh-keygen": [MARK], "ssh-add": [MARK]})
    return run("tpu_vm.sh", action, *SLICE, "--poll=0", *flags, "--", *TRAIN, env=env)


def kinds(folder: Path) -> list[str]:
    """The calls of gcloud by what they are for."""
    patterns = {
        "list": "queued-resources list",
        "create": "queued-resources create",
        "delete": "queued-resources delete",
        "scp": "tpu-vm scp",
        "stop": "kill -TERM",
        "run": "-m p2p_jax.main",
        "ssh": "tpu-vm ssh",
    }
    gcloud = [call for call in calls(folder) if call.startswith("gcloud ")]
    return [next(k for k, p in patterns.items() if p in call) for call in gcloud]


def test_dry_run_of_a_slice():
    said = run("tpu_vm.sh", "--dry-run", "train", *SLICE, "--spot", "--project=p", "--", *TRAIN)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.replace("\\", "").splitlines()
    key, create, wait, folder, copy, install, train, again = lines
    where = "--zone=z --project=p"
    assert create == (
        f"gcloud compute tpus queued-resources create pod --node-id=pod {where} "
        "--accelerator-type=v5litepod-32 --runtime-version=v2 --spot"
    )
    assert "ssh-agent" in key and wait.startswith("# waits") and again.startswith("# starts again")
    ssh = f"gcloud compute tpus tpu-vm ssh pod {where} --worker=all --command="
    assert folder == f"{ssh}mkdir -p p2p_jax"
    assert copy.startswith(f"gcloud compute tpus tpu-vm scp --recurse {ROOT}/p2p_jax ")
    assert copy.endswith(f" pod:p2p_jax/ {where} --worker=all")
    assert install.startswith(ssh) and '".[tpu,gcp]"' in install
    assert train.startswith(f"{ssh}cd p2p_jax && flock ")
    assert train.endswith("venv/bin/python -m p2p_jax.main --config=c.py --workdir=gs://b/a b")


@pytest.mark.parametrize("action", ["create", "setup", "run", "stop", "delete"])
def test_dry_run_of_one_action_calls_nothing(tmp_path, action):
    env = pretend(tmp_path, gcloud=["exit 9"])
    said = run("tpu_vm.sh", "--dry-run", action, *SLICE, "--", *TRAIN, env=env)
    assert said.returncode == 0 and "\ngcloud compute tpus " in "\n" + said.stdout
    assert not (tmp_path / "calls").exists()


def test_a_slice_is_asked_for_and_set_up_and_trains(tmp_path):
    waiting = [STATE.format(s) for s in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")]
    ran = tpu(tmp_path, ["true", "true", *waiting, "true", "true", "true", "true"])
    assert ran.returncode == 0, ran.stderr
    assert kinds(tmp_path) == ["list", "create", *["list"] * 3, "ssh", "scp", "ssh", "run"]


def test_a_preempted_slice_is_asked_for_anew(tmp_path):
    active, gone = STATE.format("ACTIVE"), STATE.format("SUSPENDED")
    begin = [active, "true", "true", "true", "exit 255"]  # set up; the connection broke
    lag = [active, active, "exit 255"]  # it is still called that, once
    anew = [gone, gone, "true", "true", "true", active, "true", "true", "true", "exit 1"]
    done = [active, active, "true"]  # one failure is free again on the new slice
    ran = tpu(tmp_path, [*begin, *lag, *anew, *done], "--restarts=1")
    assert ran.returncode == 0, ran.stderr
    assert kinds(tmp_path)[8:] == [
        *("list", "list", "delete", "list", "create", "list", "ssh", "scp", "ssh", "run"),
        *("list", "list", "run"),
    ]


def test_the_state_is_asked_after_the_pause(tmp_path):
    active = STATE.format("ACTIVE")
    lines = [active, "true", "true", "true", "exit 255", STATE.format("SUSPENDED"), "exit 1"]
    env = pretend(tmp_path, gcloud=lines, sleep=[], **{"ssh-keygen": [MARK], "ssh-add": [MARK]})
    run("tpu_vm.sh", "train", *SLICE, "--poll=9", "--restarts=0", "--", *TRAIN, env=env)
    made = [call.split()[0] for call in calls(tmp_path)[2:]]
    assert made[:7] == [*["gcloud"] * 5, "sleep", "gcloud"]


def test_a_slice_that_fails_again_and_again_is_given_up(tmp_path):
    failed = STATE.format("FAILED")
    env = pretend(
        tmp_path,
        gcloud=[failed, "true", "true", "true", failed, "true", "true", "true", failed],
        sleep=[],
        **{"ssh-keygen": [MARK], "ssh-add": [MARK]},
    )
    ran = run("tpu_vm.sh", "create", *SLICE, "--restarts=2", env=env)
    assert ran.returncode == 1 and "queued-resources describe pod --zone=z" in ran.stderr
    assert kinds(tmp_path) == [*["list", "delete", "list", "create"] * 2, "list"]
    assert calls(tmp_path).count("sleep 60") == 2


@pytest.mark.parametrize(
    ("mark", "keys", "size", "said"),
    [
        (MARK, MARK, 32, ""),
        (MARK, "exit 2", 32, ""),  # no agent, and no passphrase either
        ("true", "exit 2", 8, ""),  # one worker
        (MARK, "echo 256 SHA256:other you", 32, "ssh-add"),
        ("exit 255", MARK, 32, "ssh-keygen -t rsa"),
    ],
)
def test_the_key_is_looked_at_before_a_slice_costs(tmp_path, mark, keys, size, said):
    tools = {"ssh-keygen": [mark, "true"], "ssh-add": [keys]}
    env = pretend(tmp_path, gcloud=[STATE.format("ACTIVE")], **tools)
    ran = run("tpu_vm.sh", "create", *SLICE, f"--type=v5litepod-{size}", env=env)
    assert ran.returncode == (2 if said else 0) and said in ran.stderr
    assert any(call.startswith("gcloud") for call in calls(tmp_path)) == (not said)


def test_a_passphrase_is_asked_for_before_a_slice_costs(tmp_path):
    tools = {"ssh-keygen": [MARK, "exit 255"], "ssh-add": ["exit 1"]}
    ran = run("tpu_vm.sh", "create", *SLICE, env=pretend(tmp_path, gcloud=[], **tools))
    assert ran.returncode == 2 and "ssh-add" in ran.stderr


# A terminal, whose keys are what comes to standard input.
_TERMINAL = """
import os, pty, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup: what hangs would be left behind
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def in_terminal(env: dict[str, str], action: str, *flags: str) -> subprocess.Popen[bytes]:
    """Runs the launcher of slices in a terminal."""
    line = ["bash", str(LAUNCH / "tpu_vm.sh"), action, *SLICE, *flags, "--", *TRAIN]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", _TERMINAL, *line], env=env, **pipes)


def typed(it: subprocess.Popen[bytes], folder: Path, awaited: str, keys: bytes) -> None:
    """Waits until something was called, types, and waits for the end."""
    until = time.monotonic() + 20
    path = folder / "calls"
    try:
        while not (path.exists() and awaited in path.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
        assert it.stdin is not None
        it.stdin.write(keys)
        it.stdin.flush()
        it.wait(20)
    finally:
        it.kill()
        it.communicate()


def test_a_line_typed_while_training_does_not_stop_it(tmp_path):
    env = pretend(tmp_path, gcloud=["cat; /bin/sleep 1"])  # reads as ssh does
    it = in_terminal(env, "run")
    typed(it, tmp_path, "gcloud", b"hello\n")
    assert it.returncode == 0


@pytest.mark.parametrize(
    ("lines", "awaited", "last"),
    [
        ([STATE.format("PROVISIONING")], "sleep", "list"),  # between looks at a slice to come
        (["exec /bin/sleep 20"], "list", "list"),  # during one
        (
            [STATE.format("ACTIVE"), *["true"] * 3, "until grep TERM calls; do :; done; exit 75"],
            "p2p_jax.main",
            "stop",
        ),
    ],
)
def test_ctrl_c_in_a_terminal_ends_with_75(tmp_path, lines, awaited, last):
    tools = {"ssh-keygen": [MARK], "ssh-add": [MARK], "sleep": ["exec /bin/sleep 20"]}
    it = in_terminal(pretend(tmp_path, gcloud=lines, **tools), "train")
    typed(it, tmp_path, awaited, b"\x03")
    assert it.returncode == 75 and kinds(tmp_path)[-1] == last


def test_75_goes_on_without_setting_up_again(tmp_path):
    active = STATE.format("ACTIVE")
    lines = [active, "true", "true", "true", "exit 75", active, "exit 75", active]
    ran = tpu(tmp_path, lines, "--restarts=0")
    assert ran.returncode == 0, ran.stderr
    assert kinds(tmp_path).count("run") == 3 and kinds(tmp_path).count("scp") == 1


def test_failures_on_a_slice_are_bounded(tmp_path):
    ran = tpu(tmp_path, ["exit 1"] * 3, "--restarts=2", action="run")
    assert ran.returncode == 1
    assert kinds(tmp_path) == ["run"] * 3


def test_bad_input_on_a_slice_is_final(tmp_path):
    assert tpu(tmp_path, ["exit 2"], action="run").returncode == 2
    assert kinds(tmp_path) == ["run"]


def test_a_cloud_that_does_not_answer_is_told(tmp_path):
    ran = tpu(tmp_path, ["exit 1"] * 2, "--restarts=1")
    assert ran.returncode == 1 and "no word of pod" in ran.stderr
    assert kinds(tmp_path) == ["list"] * 2


def test_a_refused_request_is_repeated_and_told(tmp_path):
    ran = tpu(tmp_path, ["true", "exit 1", "true", "exit 1"], "--restarts=1")
    assert ran.returncode == 1 and "pod could not be asked for" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_the_slice_save_and_is_not_restarted(tmp_path, number):
    ends = "until [ -e stopped ]; do sleep 0.02; done; sleep 0.1; exit 75"
    env = pretend(tmp_path, gcloud=[ends, "touch stopped"])
    line = ["bash", str(LAUNCH / "tpu_vm.sh"), "run", *SLICE, "--", *TRAIN]
    with subprocess.Popen(
        line, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as it:
        try:
            until = time.monotonic() + 20
            while not (tmp_path / "calls").exists() and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(0.2)
            it.send_signal(number)
            _, said = it.communicate(timeout=30)
        finally:
            if it.poll() is None:
                os.killpg(it.pid, signal.SIGKILL)
    assert it.returncode == 75, said
    assert kinds(tmp_path) == ["run", "stop"]


# SLURM -----------------------------------------------------------------------------------------


def slurm(folder: Path, srun: list[str], state: str = "RUNNING", **more: str):
    """Runs the batch script in a job; `srun` is what the steps do."""
    scontrol = [f"echo JobId=7 JobState={state} Reason=None", "true"]
    env = pretend(folder, srun=srun, scontrol=scontrol, scancel=["true"]) | {"SLURM_JOB_ID": "7"}
    return run("slurm.sbatch", *TRAIN, env=env | {"PYTHON": "python"} | more)


STEP = (
    "srun --cpus-per-task=4 --kill-on-bad-exit=0 --wait=0 --gpu-bind=none --label "
    "python -m p2p_jax.main --config=c.py --workdir=gs://b/a b"
)


def test_dry_run_of_slurm(tmp_path):
    said = slurm(tmp_path, ["exit 9"], DRY_RUN="1")
    assert said.returncode == 0 and not (tmp_path / "calls").exists()
    *head, step, again, _ = said.stdout.replace("\\", "").splitlines()
    assert "#SBATCH --signal=TERM@120" in head and "#SBATCH --requeue" in head
    assert step == STEP and "scontrol requeue 7" in again


def test_slurm_reads_its_options_before_any_command():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert all(line.startswith("#") for line in lines[: options[-1]])
    found = dict(lines[i].removeprefix("#SBATCH --").partition("=")[::2] for i in options)
    assert found["gpus-per-node"] == found["ntasks-per-node"]  # a task a GPU
    assert "B:" not in found["signal"]  # to the tasks


def test_slurm_gives_each_task_its_cpus(tmp_path):
    slurm(tmp_path, ["true"], SLURM_CPUS_PER_TASK="7")
    assert "--cpus-per-task=7 " in calls(tmp_path)[0]


@pytest.mark.parametrize("code", [0, 2])
def test_slurm_ends_when_done_or_wrong(tmp_path, code):
    assert slurm(tmp_path, [f"exit {code}"]).returncode == code
    assert calls(tmp_path) == [STEP]


def test_slurm_puts_a_stopped_job_back_into_the_queue(tmp_path):
    assert slurm(tmp_path, ["exit 75"]).returncode == 75
    assert calls(tmp_path) == [STEP, "scontrol show job --oneliner 7", "scontrol requeue 7"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_slurm_leaves_a_cancelled_or_preempted_job_alone(tmp_path, state):
    assert slurm(tmp_path, ["exit 75"], state).returncode == 75
    assert "scontrol requeue 7" not in calls(tmp_path)


def test_slurm_stops_without_progress_are_bounded(tmp_path):
    work = tmp_path / "w"

    def queued(step: str) -> bool:
        """Whether a job that goes on from the newest checkpoint is put back into the queue."""
        (tmp_path / "calls").unlink(missing_ok=True)
        scontrol = ["echo JobState=RUNNING", "true"]
        env = pretend(tmp_path, srun=[f"{step}; exit 75"], scontrol=scontrol)
        env |= {"SLURM_JOB_ID": "7", "PYTHON": "python", "RESTARTS": "2"}
        ran = run("slurm.sbatch", "--config=c.py", f"--workdir={work}", env=env)
        again = "scontrol requeue 7" in calls(tmp_path)
        assert ran.returncode == 75
        assert ("without a newer checkpoint" in ran.stderr) == (not again)
        return again

    saves = f"mkdir -p {work}/checkpoints/{{}}"
    assert queued("true") and queued("true")
    assert queued(saves.format(5))  # progress: counted anew
    assert queued(saves.format("10"))  # more than 5, though not in the alphabet
    assert queued(saves.format("11.tmp")) and queued("true")
    assert not queued("true")
    assert [path.name for path in work.iterdir()] == ["checkpoints"]


def test_slurm_failures_are_bounded(tmp_path):
    ran = slurm(tmp_path, ["exit 134", "exit 1", "exit 137"], RESTARTS="2")
    assert ran.returncode == 137 and calls(tmp_path) == [STEP] * 3


def test_slurm_hands_on_what_only_the_script_was_told(tmp_path):
    program = ["kill -TERM $PPID; until grep -q scancel calls; do sleep 0.02; done; exit 75"]
    # The step's parent is the script.
    assert slurm(tmp_path, program).returncode == 75
    assert "scancel --quiet --signal=TERM 7" in calls(tmp_path)


# xpk -------------------------------------------------------------------------------------------


def test_xpk(tmp_path):
    env = pretend(tmp_path, xpk=["exit 3"])
    flags = ("--name=n", "--cluster=c", "--type=v5litepod-32", "--image=i:1", "--zone=z")
    said = run("xpk.sh", "--dry-run", *flags, "--", *TRAIN, env=env)
    assert said.returncode == 0 and not (tmp_path / "calls").exists()
    words = said.stdout.replace("\\", "").strip()
    assert words == (
        "xpk workload create --workload=n --cluster=c --tpu-type=v5litepod-32 --num-slices=1 "
        "--docker-image=i:1 --max-restarts=100 --restart-on-exit-codes=1,75 "
        "--termination-grace-period-seconds=300 --zone=z "
        "--command=exec python -m p2p_jax.main --config=c.py --workdir=gs://b/a b"
    )
    assert run("xpk.sh", *flags, "--", *TRAIN, env=env).returncode == 3
    assert calls(tmp_path) == [words]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("xpk.sh", "--name=n", "--", "x"), "--cluster: needed"),
        (("xpk.sh", "--nmae=n"), "--nmae=n: not a flag"),
        (("xpk.sh", "--name=n", "--cluster=c", "--type=t", "--image=i"), "say what to train"),
        (("tpu_vm.sh", "--name=n", "--zone=z"), "say what to do"),
        (("tpu_vm.sh", "train", "--name=n", "--zone=z", "--", "x"), "--type and --version: needed"),
        (("tpu_vm.sh", "run", "--name=n", "--zone=z"), "say what to train"),
        (("tpu_vm.sh", "run", "--zone=z", "--", "x"), "--name and --zone: needed"),
        (("slurm.sbatch",), "say what to train"),
    ],
)
def test_a_wrong_command_line_is_refused(line, said):
    ran = run(*line)
    assert ran.returncode == 2 and said in ran.stderr


# YAML ------------------------------------------------------------------------------------------

VALUES = {
    "NAME": "facades",
    "IMAGE": "registry.example/p2p_jax:1",
    "HOSTS": "2",
    "GPUS": "8",
    "CLAIM": "shared",
    "CONFIG": "configs/facades.py",
    "WORKDIR": "/shared/runs/facades",
    "BATCH": "16",
}


def schema(name: str) -> jsonschema.protocols.Validator:
    """A schema of what a file of another project may hold, as far as it is used here.

    Both were written for this project, closed where the originals are open, and compared with
    those, as their "$comment" says. They find slips of the pen; a cluster's own opinion is asked by
    `kubectl create --dry-run=server` and `sky launch --dryrun`.
    """
    found = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def jobset() -> dict:
    """The manifest as `envsubst` leaves it."""
    text = string.Template((LAUNCH / "jobset.yaml").read_text()).substitute(VALUES)
    return yaml.safe_load(text)


def test_jobset_fits_its_schema():
    schema("jobset").validate(jobset())


def test_every_mapping_in_the_schemas_is_closed():
    def walk(node):
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert "additionalProperties" in node, node
            for value in node.values():
                walk(value)

    for name in ("jobset", "skypilot"):
        walk(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def test_a_misspelt_key_does_not_fit():
    for path in (("spec",), ("spec", "failurePolicy"), ("spec", "replicatedJobs", 0, "template")):
        broken = jobset()
        node = broken
        for key in path:
            node = node[key]
        node["maxRestart"] = 1
        assert not schema("jobset").is_valid(broken), path


def test_envsubst_renders_the_same():
    program = shutil.which("envsubst")
    if program is None:
        pytest.skip("envsubst is not installed")
    text = (LAUNCH / "jobset.yaml").read_text()
    env = os.environ | VALUES
    done = subprocess.run([program], input=text, env=env, capture_output=True, text=True)
    assert yaml.safe_load(done.stdout) == jobset()


def test_what_the_head_of_the_jobset_says_is_trained(monkeypatch):
    head = re.findall(r"^#   (export .*)", (LAUNCH / "jobset.yaml").read_text(), re.MULTILINE)
    names = string.Template((LAUNCH / "jobset.yaml").read_text()).get_identifiers()
    told = subprocess.run(["bash", "-c", "\n".join([*head, "env"])], capture_output=True, text=True)
    values = dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)
    assert {name: values[name] for name in names} == VALUES | {"IMAGE": "REGISTRY/p2p_jax:1"}
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]["containers"][0]
    devices = job["completions"] * pod["resources"]["limits"]["nvidia.com/gpu"]
    assert devices == 16 and problems(pod["args"], devices, monkeypatch) == []


def test_pods_are_told_what_training_reads():
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]["containers"][0]
    given = {entry["name"]: entry.get("value") for entry in pod["env"]}
    found = peers.found({}, {k: v if v is not None else "1" for k, v in given.items()})
    assert found is not None and found.how == "environment"
    assert found.coordinator == "facades-worker-0-0.facades:8476"
    assert (found.count, found.index) == (2, 1)
    assert job["completions"] == job["parallelism"] == 2


@pytest.mark.parametrize(
    ("reason", "message", "action"),
    [
        # Messages as Kubernetes' job controller writes them.
        ("PodFailurePolicy", "Container train for pod default/facades-worker-0-1-x failed with "
         "exit code 75 matching FailJob rule at index 0", "RestartJobSetAndIgnoreMaxRestarts"),
        ("PodFailurePolicy", "Container train for pod default/facades-worker-0-1-x failed with "
         "exit code 2 matching FailJob rule at index 0", "FailJobSet"),
        ("PodFailurePolicy", "Pod default/facades-worker-0-1-x has condition DisruptionTarget "
         "matching FailJob rule at index 1", "RestartJobSetAndIgnoreMaxRestarts"),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", None),
    ],
)  # fmt: skip
def test_what_jobset_does_after_a_failure(reason, message, action):
    policy = jobset()["spec"]["failurePolicy"]
    matching = [
        rule["action"]
        for rule in policy["rules"]
        if reason in rule["onJobFailureReasons"]
        and any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
    ]
    assert matching[:1] == ([action] if action else [])  # none: RestartJobSet, which counts
    assert policy["maxRestarts"] > 0


def skypilot() -> dict:
    """The task."""
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def test_skypilot_fits_its_schema():
    schema("skypilot").validate(skypilot())
    assert not schema("skypilot").is_valid(skypilot() | {"resource": {}})


@pytest.mark.parametrize(
    ("rank", "code", "slept", "batch"), [("0", 75, 0, 0), ("1", 75, 1, 0), ("1", 3, 0, 64)]
)
def test_what_skypilot_runs_on_each_machine(tmp_path, monkeypatch, rank, code, slept, batch):
    program = tmp_path / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" >calls\nexit {code}\n')
    program.chmod(0o755)
    task = skypilot()
    gpus = task["resources"]["accelerators"].partition(":")[2]
    env = pretend(tmp_path, sleep=["true"]) | {
        **task["envs"],
        "WORKDIR": "gs://b/a",
        "BATCH": str(batch) if batch else task["envs"]["BATCH"],
        "SKYPILOT_NUM_GPUS_PER_NODE": gpus,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": rank,
    }
    line = ["bash", "-c", task["run"]]
    assert subprocess.run(line, env=env, cwd=tmp_path, timeout=20).returncode == code
    told, *slumber = calls(tmp_path)
    assert slumber == ["sleep 30"] * slept
    words = [word.removeprefix("--").split("=") for word in told.split()[2:]]
    found = peers.found(dict(words), {})
    assert found is not None
    assert (found.coordinator, found.count, found.index) == ("10.0.0.1:8476", 2, int(rank))
    devices = task["num_nodes"] * int(gpus)
    own = [word for word in told.split()[2:] if word.startswith("--config")]
    assert devices == 16 and problems(own, devices, monkeypatch) == []
    assert f"--config.train.batch_size={batch or devices}" in own


# Docker ----------------------------------------------------------------------------------------


def test_the_image_has_what_it_needs():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(" ", 1) for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    kinds = {kind for kind, _ in steps}
    assert steps[0][0] == "FROM" and kinds <= {
        *("FROM", "WORKDIR", "ARG", "COPY", "RUN", "ENV", "ENTRYPOINT")
    }
    for kind, rest in steps:
        if kind == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = next(rest for kind, rest in steps if kind == "ARG").partition("=")[2].split(",")
    assert set(given) <= set(extras["optional-dependencies"])
    # A list: no shell stands between a signal and the training.
    entry = json.loads(next(rest for kind, rest in steps if kind == "ENTRYPOINT"))
    assert entry == ["tini", "--", "python", "-m", "p2p_jax.main"]
    assert any(kind == "RUN" and "install" in rest and " tini " in rest for kind, rest in steps)


@pytest.mark.parametrize(("extras", "asked"), [("", "."), ("tpu,gcp", ".[tpu,gcp]")])
def test_the_image_is_made_with_or_without_extras(tmp_path, extras, asked):
    text = (LAUNCH / "Dockerfile").read_text()
    line = next(line for line in text.splitlines() if line.startswith("RUN pip"))
    env = pretend(tmp_path, pip=["true"]) | {"EXTRAS": extras}
    subprocess.run(["sh", "-c", line.removeprefix("RUN ")], env=env, check=True)
    assert calls(tmp_path)[0].split()[-1] == asked
