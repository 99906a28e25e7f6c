"""How data is measured: rates, memory, generated pictures. No speed."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from p2p_jax.bench import jpegs, rates, rows
from p2p_jax.data import Frames, HostCache
from p2p_jax.data.fitting import Fit
from p2p_jax.data.sources import SyntheticSource


def test_measurements_take_turns():
    told = []
    ways = {name: lambda name=name: told.append(name) or float(len(told)) for name in "abc"}
    found = rows.in_turn(ways)
    assert told == list("abc") * rows.ROUNDS
    assert found["b"] == [2.0, 5.0, 8.0] and statistics.median(found["b"]) == 5.0


def test_rates_count_what_is_done():
    asked = []

    def slow(item: int) -> None:
        asked.append(item)
        time.sleep(0.01)

    assert 20 < rates.one_thread(slow, [7, 8, 9], 0.2) <= 100
    assert asked[:4] == [7, 8, 9, 7]
    asked.clear()
    # Sleeping threads do not share a core: twice as many do twice as much.
    assert 60 < rates.all_threads(slow, range(4), 0.3, 4) <= 400
    assert set(asked) == {0, 1, 2, 3}


def test_the_rate_of_a_feed_is_that_of_its_frames():
    class Slow(SyntheticSource):
        def __getitem__(self, i):
            time.sleep(0.01)
            return super().__getitem__(0)

    frames = Frames(Slow(0, 8, (32, 32), "AtoB"), Fit("none", (32, 32), (32, 32)))
    frames[0]
    slow = rates.feed_rate(rates.streaming(frames, 4, 1), 4, 0.3)
    assert 5 < slow <= 110
    kept = HostCache(frames)
    for i in range(8):
        kept[i]
    fast = rates.feed_rate(rates.streaming(kept, 4, 1, "host"), 4, 0.1)
    assert fast > slow
    assert rates.feed_rate(rates.indices_alone(8, 4), 4, 0.05) > 0


def test_memory_that_is_used_is_seen():
    # In a process of its own: in this one, what earlier tests held may be given back meanwhile.
    script = """
import numpy as np
from p2p_jax.bench import data

before = data.resident()
held = np.ones(2**26, np.uint8)
print(held.nbytes, data.resident() - before, data.resident("VmHWM") >= data.resident())
"""
    told = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    size, grown, highest = told.stdout.split()
    assert 0.8 * int(size) < int(grown) < 2 * int(size)
    assert highest == "True"


def test_generated_pairs_are_as_photos_are(tmp_path):
    jpegs.write_pairs(tmp_path / "pairs", 66)
    paths = sorted((tmp_path / "pairs").iterdir())
    assert len(paths) == 66 and len({path.read_bytes() for path in paths}) == 66
    # Facades at this size and quality are 30 to 60 kB.
    assert all(20_000 < path.stat().st_size < 100_000 for path in paths)
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image, np.float32)
    assert pixels.shape == (256, 512, 3) and 20 < pixels.std() < 90
    near, far = np.abs(np.diff(pixels, axis=1)).mean(), np.abs(pixels[:, 64:] - pixels[:, :-64])
    assert near < 0.5 * far.mean()  # neighbours are alike
