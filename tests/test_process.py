"""The lock of a workdir: one at a time, and free of whoever was killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from p2p_jax import process, storage
from p2p_jax.lease import Lease
from p2p_jax.process import Busy, Early, Lost, Stop, alone_in
from tests import buckets

HELD = r"is being trained by process \d+ on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+\d\d:\d\d; "


@pytest.fixture(params=["bucket", "disk without locks"])
def workdir(request, tmp_path, monkeypatch):
    """A folder where the lock is a lease, with times in which a test can wait."""
    monkeypatch.setattr(Lease, "RENEW", 0.05)
    monkeypatch.setattr(Lease, "STALE", 0.4)
    monkeypatch.setattr(Lease, "SETTLE", 0.02)
    if request.param == "bucket":
        buckets.make(monkeypatch)
        return buckets.workdir()

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    return tmp_path


def place(workdir):
    return workdir / ("lock" if storage.is_remote(workdir) else "lock.json")


def eventually(true):
    """Waits for a while: machines that run tests are busy."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def count(workdir):
    return json.loads(storage.found(place(workdir)))["count"]


def leases():
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


# --- signals -------------------------------------------------------------------------------------

# Its main thread waits for ever outside of Python, as in a long computation.
AWAY = """
import ctypes, sys
from p2p_jax.process import Stop
Stop.GRACE = 0.1
with Stop() as stop:
    if sys.argv[1] == "training":
        stop.wait()
    print("there", flush=True)
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)
"""


@pytest.mark.parametrize(
    ("when", "signals", "code", "says"),
    [
        ("training", ("SIGINT", "SIGINT"), 130, ["stopping after the work", "left at once"]),
        ("training", ("SIGTERM", "SIGUSR1", "SIGINT"), 130, ["stopping after", "left at once"]),
        ("starting", ("SIGTERM",), 75, ["stopped by SIGTERM before training began"]),
        ("starting", ("SIGINT",), 130, ["stopped by SIGINT before training began"]),
    ],
)
def test_signals_are_heard_whatever_the_main_thread_does(when, signals, code, says):
    with subprocess.Popen(
        [sys.executable, "-c", AWAY, when],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout and child.stderr and child.stdout.readline() == "there\n"
        text = ""
        time.sleep(0.3)  # it is there soon after it says so
        for i, name in enumerate(signals):
            child.send_signal(signal.Signals[name])
            while when == "training" and i == 0 and says[0] not in text:
                text += child.stderr.readline()
            time.sleep(0.05)
        text += child.communicate(timeout=20)[1]
    assert child.returncode == code
    assert all(line in text for line in says)


def test_a_signal_whose_exception_was_lost_is_known(monkeypatch):
    class Careless:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))
    with Stop() as stop:
        Careless()
        assert lost == [Early]
        stop.wait()
        assert stop.name == "SIGTERM"


def test_what_signals_did_before_they_do_again():
    before, came = signal.getsignal(signal.SIGUSR1), []
    signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
    try:
        with Stop() as stop:
            stop.wait()
            signal.raise_signal(signal.SIGUSR1)
            assert stop.name == "SIGUSR1" and not came
            stop.forgo()
            assert came == [1]
        signal.raise_signal(signal.SIGUSR1)
        assert came == [1, 1]
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- on a disk -----------------------------------------------------------------------------------


def test_a_second_one_is_refused_and_told_who_has_it(tmp_path):
    workdir = tmp_path / "new" / "run"
    with alone_in(workdir) as lock:
        text = (workdir / "lock").read_text()
        with pytest.raises(Busy, match=HELD) as caught, alone_in(workdir):
            pass
        assert f"{workdir} is being trained by process {os.getpid()} on " in str(caught.value)
        assert (workdir / "lock").read_text() == text
        assert lock.lost() == ""
        lock.check()
    with alone_in(workdir):  # it is free again
        pass
    assert os.listdir(workdir) == ["lock"]


def test_a_killed_process_has_no_lock(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom p2p_jax.process import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout and child.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {child.pid} on "), alone_in(tmp_path):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    with alone_in(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_other_errors_of_a_lock_are_not_taken_for_a_disk_without(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"), alone_in(tmp_path):
        pass


# --- a lease -------------------------------------------------------------------------------------


def test_a_lease_is_renewed_and_given_back(workdir, monkeypatch):
    monkeypatch.setattr(Lease, "STALE", 60.0)
    told = []
    with alone_in(workdir, told.append) as lock:
        first = json.loads(storage.found(place(workdir)))
        assert first["process"] == os.getpid()
        with pytest.raises(Busy, match=HELD), alone_in(workdir, told.append):
            pass
        assert count(workdir) > first["count"]
        lock.check()
    (note,) = told
    assert f"{place(workdir)} was left or is held by process {os.getpid()} on " in note
    assert storage.found(place(workdir)) is None and not leases()


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"process": 1, "host": "x", "since": "then"}'])
def test_what_nobody_renews_is_taken_over(workdir, text):
    storage.write_atomic(place(workdir), text)
    begun = time.monotonic()
    with alone_in(workdir) as lock:
        assert time.monotonic() - begun > Lease.STALE
        lock.check()
        assert json.loads(storage.found(place(workdir)))["process"] == os.getpid()
    assert storage.found(place(workdir)) is None


def test_what_is_given_back_meanwhile_is_taken(workdir, monkeypatch):
    monkeypatch.setattr(Lease, "STALE", 1e9)
    storage.write_atomic(place(workdir), b"left")
    threading.Timer(0.05, lambda: place(workdir).unlink()).start()
    with alone_in(workdir) as lock:
        lock.check()


def test_of_several_who_take_it_over_one_gets_it(workdir, monkeypatch):
    monkeypatch.setattr(Lease, "SETTLE", 0.5)
    storage.write_atomic(place(workdir), b"left")
    held, had, refused, most = [], [], [], 0

    def enter():
        nonlocal most
        try:
            with alone_in(workdir) as lock:
                held.append(1)
                had.append(1)
                most = max(most, len(held))
                time.sleep(0.3)
                lock.check()
                held.pop()
        except Busy as error:
            refused.append(error)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and held == [] and len(refused) + len(had) == 4 and refused
    assert storage.found(place(workdir)) is None and not leases()


def test_a_lease_that_was_taken_away_is_noticed_and_left_alone(workdir):
    other = b'{"process": 7, "host": "node9", "since": "now", "token": "x"}'
    with pytest.raises(Lost, match="was taken over by process 7 on node9 since now: "):
        with alone_in(workdir) as lock:
            storage.write_atomic(place(workdir), other)
            assert lock.lost() == "process 7 on node9 since now"
            place(workdir).unlink()
            assert lock.lost()  # once lost is lost
            storage.write_atomic(place(workdir), other)
            time.sleep(0.15)
            lock.check()
    assert storage.found(place(workdir)) == other and not leases()


def test_a_lease_that_somebody_removed_is_made_again(workdir):
    with alone_in(workdir) as lock:
        place(workdir).unlink()
        assert lock.lost() == "" and storage.found(place(workdir)) is not None
        place(workdir).unlink()
        eventually(lambda: storage.found(place(workdir)) is not None)


def test_a_store_that_fails_for_a_while_loses_nothing(workdir, monkeypatch):
    with alone_in(workdir) as lock:
        with monkeypatch.context() as patch:
            for name in ("found", "write_atomic"):
                patch.setattr(storage, name, lambda *a, **k: (_ for _ in ()).throw(OSError("away")))
            time.sleep(0.15)
            lock.check()
        before = count(workdir)
        eventually(lambda: count(workdir) > before)


def test_a_try_that_succeeded_unheard_is_ours(workdir, monkeypatch):
    real = storage.create

    def unheard(path, data):
        real(path, data)
        return False  # as where the answer was lost, and the library tried again

    monkeypatch.setattr(Lease, "STALE", 20.0)
    monkeypatch.setattr(storage, "create", unheard)
    begun = time.monotonic()
    with alone_in(workdir) as lock:
        assert time.monotonic() - begun < Lease.STALE
        lock.check()


def test_a_wait_that_is_broken_off_leaves_nothing_of_ours(workdir, monkeypatch):
    storage.write_atomic(place(workdir), b"left")
    real, slept = time.sleep, []

    def interrupted(seconds):
        slept.append(seconds)
        if seconds == Lease.SETTLE:  # it has written its own by then
            raise KeyboardInterrupt
        real(seconds)

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt), alone_in(workdir):
        pass
    assert Lease.SETTLE in slept and storage.found(place(workdir)) is None


def test_the_times_leave_room_for_failed_renewals():
    assert Lease.STALE > 4 * Lease.RENEW > 10 * Lease.SETTLE
    assert issubclass(Busy, process.Failure) and issubclass(Lost, process.Failure)
