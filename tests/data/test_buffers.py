"""Memory is given again only when nobody holds it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from p2p_jax.data.buffers import Buffers


def place(array):
    return array.__array_interface__["data"][0]


def test_what_is_held_is_not_given_again():
    buffers = Buffers((64, 64), "uint8", 3)
    first, second = buffers.take(), buffers.take()
    assert place(first) != place(second)
    assert first.shape == (64, 64) and first.dtype == np.uint8
    was = place(first)
    del first
    again = buffers.take()
    assert place(again) == was


@pytest.mark.parametrize("view", [lambda x: x[3:], lambda x: x.reshape(-1), memoryview])
def test_views_hold_their_memory(view):
    buffers = Buffers((64, 64), "uint8", 1)
    array = buffers.take()
    was, held = place(array), view(array)
    del array
    assert place(buffers.take()) != was
    del held
    assert place(buffers.take()) == was


def test_an_array_of_the_device_keeps_its_values():
    """On a CPU the device may share the memory; on others the copy may be under way."""
    buffers = Buffers((1 << 20,), "uint8", 2)
    sent = []
    for value in range(8):
        array = buffers.take()
        array[:] = value
        sent.append(jax.device_put(array))
        del array
    assert [set(np.unique(x)) for x in sent] == [{value} for value in range(8)]


def test_no_more_are_kept_than_wanted():
    buffers = Buffers((8,), "uint8", 2)
    held = [buffers.take() for _ in range(5)]
    assert len({place(x) for x in held}) == 5
    assert len(buffers._kept) == 2
