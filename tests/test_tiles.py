"""Tiles: they cover, they add up, and how far a network sees is what makes them exact."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers import generator, quick_jit, scrambled
from trained import smooth

from p2p_jax.models.conv import Policy
from p2p_jax.tiles import joined, plan, reach, seams, weights

CASES = [
    (length, tile, overlap, unit)
    for unit in (1, 4, 8)
    for tile in (8 * unit, 16 * unit)
    for overlap in (0, unit, tile // 2 // unit * unit, tile - unit)
    for length in (tile + unit, 2 * tile - unit, 2 * tile, 5 * tile + 3 * unit)
]


@pytest.mark.parametrize("margin", [0, 3])
def test_tiles_cover_the_canvas_and_add_up_to_one(margin):
    for length, tile, overlap, unit in CASES:
        laid = plan((length, tile), (tile, tile), overlap, unit, margin, False)
        rows, columns = laid.starts
        assert columns == (0,) and rows[0] == 0 and rows[-1] == length - tile
        assert all(start % unit == 0 for start in rows)
        assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(rows))
        total = np.zeros(length)
        parts = weights(rows, tile, margin)
        for start, part in zip(rows, parts, strict=True):
            assert (part >= 0).all()
            total[start : start + tile] += part
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_no_more_tiles_than_needed():
    assert len(plan((100, 100), (64, 64), 16, 4, 0, False).places) == 4
    assert plan((64, 40), (64, 64), 16, 4, 0, False).tile == (64, 40)
    assert plan((64, 40), (64, 64), 16, 4, 0, False).exact


def test_margins_do_not_count_where_overlaps_hide_them():
    for overlap in (6, 8, 12):
        parts = weights((0, 16 - overlap, 2 * (16 - overlap)), 16, 3)
        assert not parts[0][-3:].any() and not parts[1][:3].any() and not parts[1][-3:].any()
        assert parts[0][:3].all() and parts[2][-3:].all()
    assert weights((0, 12), 16, 3)[1][:3].any()  # of 4 shared pixels none is beyond both


def test_parts_of_an_image_join_to_it():
    image = np.random.default_rng(0).normal(size=(52, 36, 3)).astype(np.float32)
    for tile, overlap in (((16, 16), 4), ((16, 16), 12), ((52, 16), 8), ((52, 36), 8)):
        laid = plan((52, 36), tile, overlap, 4, 0, False)
        cuts = (image[t : t + laid.tile[0], c : c + laid.tile[1]] for t, c in laid.places)
        bands = [(top, band.copy()) for top, band in joined(laid, cuts)]
        assert [top for top, _ in bands] == list(laid.starts[0])
        np.testing.assert_allclose(np.concatenate([b for _, b in bands]), image, atol=1e-5)


def test_bands_come_before_the_next_row_of_tiles_is_made():
    laid, made = plan((64, 32), (16, 16), 4, 4, 0, False), []

    def tiles():
        for place in laid.places:
            made.append(place)
            yield np.zeros((16, 16, 1), np.float32)

    next(joined(laid, tiles()))
    assert len(made) == len(laid.starts[1])


def test_seams_show_where_tiles_are_cut_and_not_where_they_fade():
    picture = smooth((96, 96)).astype(np.float32)
    found = {}
    for overlap in (0, 16):
        laid = plan((96, 96), (32, 32), overlap, 8, 0, False)
        # Each tile is somewhat lighter or darker, as its own statistics would have it.
        rng = np.random.default_rng(0)
        cuts = (picture[t : t + 32, c : c + 32] + rng.normal(0, 6) for t, c in laid.places)
        made = np.concatenate([band.copy() for _, band in joined(laid, cuts)])
        found[overlap] = seams(made, laid)
    assert found[0] > 1.8 and found[16] < 1.2
    laid = plan((96, 96), (32, 32), 16, 8, 0, False)
    assert seams(picture, laid) == pytest.approx(1, abs=0.1)
    assert seams(picture, plan((96, 96), (96, 96), 16, 8, 0, False)) == 1
    assert seams(np.zeros((96, 96, 1)), laid) == 1


# --- how far a network sees ----------------------------------------------------------------------


class Blur(nn.Module):
    """Five by three pixels, and nothing else."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(1, (5, 3), padding="SAME")(x)


class Everything(nn.Module):
    """Normalises over the image."""

    @nn.compact
    def __call__(self, x):
        return x - x.mean((1, 2), keepdims=True)


def thin(name, **changes):
    options = {"norm": "none", "base_features": 1, "dropout": (), **changes}
    return generator(name, Policy(), 1, **options)


def test_the_reach_of_known_networks():
    assert reach(Blur(), 1) == 2
    assert reach(Everything(), 1) is None


# By hand. What is made of pixels before the cut: resnet, up to place 2 after 7x7, 1 after each
# halving, 2 more a block, from n to 2n + 1 by each doubling, and 3 more: places 0 to 8 blocks + 10.
# U-Net of one level: 4x4 at stride 2, and back; each further level sees twice as far.
@pytest.mark.parametrize("name,changes,wanted", [
    pytest.param("unet", {"depth": 1}, 3, marks=pytest.mark.slow),
    ("unet", {"depth": 2}, 7),
    pytest.param("unet", {"depth": 3}, 15, marks=pytest.mark.slow),
    ("resnet", {"blocks": 2}, 27),
    pytest.param("resnet", {"blocks": 3}, 35, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_reach_of_generators(name, changes, wanted):
    module = thin(name, **changes)
    assert reach(module, module.size_step, getattr(module, "min_size", 1)) == wanted


def test_what_lies_beyond_the_reach_changes_nothing():
    module = thin("unet", depth=2, base_features=8)
    pixels = reach(module, 4)
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 64, 8, 1)).astype(np.float32)
    other = one.copy()
    other[:, :32] += rng.normal(size=(1, 32, 8, 1)).astype(np.float32)
    params = scrambled(jax.eval_shape(module.init, jax.random.key(0), one))
    made = quick_jit(module.apply)(params, np.concatenate([one, other]))
    apart = np.abs(made[0] - made[1]).max((1, 2))
    assert not apart[32 + pixels :].any() and apart[32 + pixels - 1] > 0
