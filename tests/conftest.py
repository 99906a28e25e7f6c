"""Test set-up: four simulated CPU devices, chosen before jax is first imported."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests compile much and compute little: less of LLVM's work saves most of their time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1"
).strip()

# All processes of a test run share what is dear to make; the first one, which starts the others,
# clears it away.
os.environ.setdefault(
    "P2P_JAX_TESTS", os.path.join(tempfile.gettempdir(), f"p2p-jax-tests-{os.getpid()}")
)

# Programs among them: each is compiled once, whichever process needs it first.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["P2P_JAX_TESTS"], "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax

# Where a script runs the tests in the background, Ctrl-C is ignored, and would be by every process
# that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A silently broadcast [b] against [b, 1] is a wrong loss; let it raise.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["P2P_JAX_TESTS"], ignore_errors=True)


def pytest_make_parametrize_id(val, argname):
    # Bytes are named after their argument: the name of a test must be the same in every process,
    # and compressed bytes hold the time they were made.
    return argname if isinstance(val, bytes) else None
