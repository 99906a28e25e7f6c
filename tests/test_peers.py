"""How processes find one another, and agree."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from p2p_jax import peers
from p2p_jax.peers import Alone, Peers, found
from p2p_jax.words import ConfigError, Problems

EXPLICIT = {"coordinator": "node1:8476", "num_processes": "4", "process_id": "3"}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0",
}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
MPI5 = MPI | {
    "JAX_COORDINATOR_ADDRESS": "n:1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip
CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("flags", "env", "wanted"),
    [
        ({}, {}, None),
        (EXPLICIT, {}, Peers("flags", "node1:8476", 4, 3)),
        (EXPLICIT, VARIABLES, Peers("flags", "node1:8476", 4, 3)),
        ({}, VARIABLES, Peers("environment", "10.0.0.1:1234", 2, 0)),
        ({}, {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, None),
        ({}, {"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}, Peers("SLURM")),
        ({}, {"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),  # sbatch's own shell
        ({}, {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({}, MPI | {"OMPI_MCA_orte_hnp_uri": "x"}, Peers("Open MPI", None, 8, 5)),
        ({}, MPI | {"JAX_COORDINATOR_ADDRESS": "n:1"}, Peers("Open MPI", "n:1", 8, 5)),
        ({}, {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        # One GPU each, where nothing else has shared them out.
        ({}, MPI5, Peers("Open MPI", "n:1", 8, 5, 1)),
        ({}, MPI5 | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Peers("Open MPI", "n:1", 8, 5, 1)),
        ({}, MPI5 | {"CUDA_VISIBLE_DEVICES": "1"}, Peers("Open MPI", "n:1", 8, 5)),
        ({}, MPI5 | {"JAX_LOCAL_DEVICE_IDS": "1"}, Peers("Open MPI", "n:1", 8, 5)),
    ],
)
def test_who_else_there_is(flags, env, wanted):
    assert found(flags, CPU | env) == wanted


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, Peers("TPU")),  # the machine's metadata tells how many there are
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Peers("TPU")),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Peers("TPU")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_PROCESS_ADDRESSES": "local"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_a_machine_with_tpus_may_be_one_of_several(monkeypatch, env, wanted):
    monkeypatch.setattr(peers.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    assert found({}, env) == wanted


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"process_id": "1"}, ["--coordinator: needed beside", "--num_processes: needed beside"]),
        (EXPLICIT | {"process_id": "4"}, ["--process_id: 4 is not below --num_processes=4"]),
        (EXPLICIT | {"process_id": "-1"}, ["--process_id: '-1' is not a whole number"]),
        (EXPLICIT | {"num_processes": "x"}, ["--num_processes: 'x' is not a whole number"]),
        (EXPLICIT | {"coordinator": "node1"}, ["--coordinator: 'node1' is not HOST:PORT"]),
        (EXPLICIT | {"coordinator": ":80"}, ["--coordinator: ':80' is not HOST:PORT"]),
        (EXPLICIT | {"coordinator": "a:99999"}, ["--coordinator: 'a:99999' is not HOST:PORT"]),
    ],
)
def test_what_is_incomplete_is_named(flags, says):
    with pytest.raises(ConfigError) as caught:
        found(flags, CPU)
    assert len(caught.value.problems) == len(says)
    assert all(any(text in p for p in caught.value.problems) for text in says)


def test_open_mpi_that_does_not_say_where_is_told_what_to_set():
    with pytest.raises(ConfigError, match="JAX_COORDINATOR_ADDRESS: Open MPI started several"):
        found({}, CPU | MPI)


# --- agreement -----------------------------------------------------------------------------------


@pytest.fixture
def three(monkeypatch):
    """Process 1 of 3; gives what it sends, and lets a test say what others do."""
    others = {}

    def allgather(mine):
        sent = others["sent"] = np.asarray(mine)
        values = [pickle.dumps(others[i]) if i != 1 else others.get("mine") for i in range(3)]
        if sent.shape == ():
            others["size"] = int(sent)
            return np.array([len(v) if v else int(sent) for v in values], np.int32)
        rows = np.zeros((3, len(sent)), np.uint8)
        for row, value in zip(rows, values, strict=True):
            data = sent if value is None else np.frombuffer(value, np.uint8)
            row[: len(data)] = data
        return rows

    monkeypatch.setattr(peers.jax, "process_count", lambda: 3)
    monkeypatch.setattr(peers.multihost_utils, "process_allgather", allgather)
    return others


def test_values_of_all_come_in_order(three):
    three[0], three[2] = "a" * 300, None
    assert peers.gather({"x": 1}) == ["a" * 300, {"x": 1}, None]


def test_what_fails_elsewhere_fails_here(three):
    three[0], three[2] = None, ([], "OSError: no room")
    with pytest.raises(Alone, match="process 2 of 3 failed: OSError: no room"):
        peers.together(lambda: 1)
    three[2] = (["data.path: nothing there"], "")
    with pytest.raises(Problems, match=r"process 2 of 3: data.path: nothing there"):
        peers.together(lambda: 1)
    three[2] = None
    assert peers.together(lambda: 1) == 1


def test_what_fails_here_is_told_and_raised(three):
    three[0] = three[2] = None

    def fail():
        raise ConfigError(["seed: bad"])

    with pytest.raises(ConfigError, match="seed: bad"):
        peers.together(fail)
    assert b"seed: bad" in three["sent"].tobytes()


def test_values_that_differ_are_named(three):
    three[0] = three[2] = {"train.steps": 5, "seed": 1, "--mode": "train"}
    with pytest.raises(Problems) as caught:
        peers.agree_all({"train.steps": 6, "seed": 2, "--mode": "train"})
    assert [p.partition(";")[0] for p in caught.value.problems] == [
        "train.steps: process 1 has 6, process 0 has 5",
        "seed: process 1 has 2, process 0 has 1",
    ]
    three[0] = three[2] = {"seed": 1}
    peers.agree("seed", 1)


def test_alone_there_is_nobody_to_ask():
    wish = [False]
    ballot = peers.Ballot(lambda: wish[0])
    assert peers.gather(3) == [3] and peers.together(lambda: 4) == 4 and peers.name() == ""
    vote = ballot.cast()
    assert not ballot.count(vote)
    wish[0] = True
    assert ballot.now()
