"""The launchers of sweeps: what they would do, and that they do it, to commands that pretend."""

from __future__ import annotations

import os
import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest
import yaml

from p2p_jax.sweeping import options

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPT = LAUNCH / "sweep.sbatch"
SEARCH = ("--config=c.py", "--space=s.py", "--workdir=/shared/a b", "--trials=4")
JOB = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    line = ["bash", str(SCRIPT), *words]
    return subprocess.run(line, env=os.environ | env, capture_output=True, text=True, timeout=60)


def job(folder: Path, code: int, state: str = "RUNNING") -> tuple[int, list[str]]:
    """The exit code of a job whose search ends with a code, and what was called."""
    (folder / "bin").mkdir()
    for name, then in (("python", f"exit {code}"), ("scontrol", f"echo JobState={state}")):
        path = folder / "bin" / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{folder}/calls\n{then}\n')
        path.chmod(0o755)
    ran = run(*SEARCH, PATH=f"{folder / 'bin'}:{os.environ['PATH']}", PYTHON="python", **JOB)
    return ran.returncode, (folder / "calls").read_text().splitlines()


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck comes with the extra `dev`")
    ran = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_dry_run_says_what_would_be_run():
    text = run(*SEARCH, DRY_RUN="1", PYTHON="python", **JOB).stdout
    assert (
        "python -m p2p_jax.sweep --config=c.py --space=s.py --workdir=/shared/a\\ b --trials=4"
        in text
    )
    assert "scontrol requeue 7_2" in text and "#SBATCH --signal=B:TERM@180" in text


def test_slurm_reads_its_options_before_any_command():
    lines = SCRIPT.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_nothing_to_search_is_bad_input():
    assert run().returncode == 2


@pytest.mark.parametrize("code", [0, 1, 2])
def test_it_ends_with_the_code_of_the_search(tmp_path, code):
    assert job(tmp_path, code) == (code, [f"python -m p2p_jax.sweep {' '.join(SEARCH)}"])


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_a_stopped_job_is_put_back_unless_cancelled(tmp_path, state):
    code, calls = job(tmp_path, 75, state)
    assert code == 75
    assert ("scontrol requeue 7_2" in calls) == (state == "RUNNING")


def test_the_job_of_kubernetes_is_whole():
    text = (LAUNCH / "sweep.yaml").read_text()
    exports = dict(re.findall(r"(\w+)=(\S+)", "\n".join(re.findall("#   export (.*)", text))))
    told = yaml.safe_load(string.Template(text).substitute(exports | {"NAME": "search"}))
    spec = told["spec"]
    assert (told["kind"], spec["completions"], spec["parallelism"]) == ("Job", 4, 4)
    rules = spec["podFailurePolicy"]["rules"]
    codes = {
        code: r["action"] for r in rules for code in r.get("onExitCodes", {}).get("values", ())
    }
    assert codes == {2: "FailJob", 75: "Ignore"}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-3:] == ["python", "-m", "p2p_jax.sweep"]
    flags = [arg.removeprefix("--").partition("=")[0] for arg in container["args"]]
    assert {*flags} <= {*options.FLAGS}
