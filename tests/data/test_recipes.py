"""What is done to images when they are prepared."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from p2p_jax.data import recipes
from p2p_jax.data.decoding import decode
from p2p_jax.data.labels import Labels
from tests.data.making import encoded, noise

PALETTE = ((0, 0, 0), (255, 0, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_keeps_every_value(dtype):
    image = noise(0, 5, 7, 1, dtype)
    assert (decode(recipes.png(image)) == image).all()
    with Image.open(io.BytesIO(recipes.png(image))) as back:
        assert (np.asarray(back).astype(dtype) == image[..., 0]).all()


def test_halves_are_cut_in_the_middle():
    image = noise(0)
    assert recipes.cut(image, "whole") is image
    assert (recipes.cut(image, "left") == image[:, :8]).all()
    assert (recipes.cut(image, "right") == image[:, 8:]).all()
    with pytest.raises(ValueError, match="width 7 is odd"):
        recipes.cut(image[:, :7], "left")


def test_recipes_can_be_sent_to_other_processes_and_are_told_apart():
    parts = ((0, "left", True), (0, "right", False))
    made = [
        recipes.edges((100, 200)), recipes.edges((100, 201)),
        recipes.label_maps(Labels(PALETTE, 2, 0), parts),
        recipes.label_maps(Labels(PALETTE, 2, 1), parts),
        recipes.label_maps(Labels(PALETTE[::-1], 2, 0), parts),
        recipes.label_maps(Labels(PALETTE, 2, 0), parts[::-1]),
    ]  # fmt: skip
    assert len({recipe.key for recipe in made}) == len(made)
    data = (encoded(np.zeros((4, 8, 3), np.uint8)),)
    for recipe in made:
        again = pickle.loads(pickle.dumps(recipe))
        assert again.key == recipe.key and again.apply(data) == recipe.apply(data)
    assert made[0].processes and not made[2].processes


def test_edges_are_the_same_each_time_and_the_photo_stays():
    photo = encoded(noise(0, 32, 32))
    lines, kept = recipes.edges((100, 200)).apply((photo,))
    assert kept == photo and recipes.edges((100, 200)).apply((photo,)) == (lines, kept)
    assert set(np.unique(decode(lines))) <= {0, 255}


def test_label_maps_beside_photos():
    wanted = noise(0, 4, 4, 1) % 2
    photo = noise(1, 4, 4)
    both = encoded(np.concatenate([photo, np.array(PALETTE, np.uint8)[wanted[..., 0]]], 1))
    parts = ((0, "left", False), (0, "right", True))
    kept, indices = recipes.label_maps(Labels(PALETTE, 2, 0), parts).apply((both,))
    assert kept == both and (decode(indices) == wanted).all()
    with pytest.raises(ValueError, match="colour of no class"):
        recipes.label_maps(Labels(PALETTE[:1], 1, 0), parts).apply((both,))


def test_more_than_256_classes():
    wanted = noise(0, 4, 4, 1, np.uint16) % 1000
    data = io.BytesIO()
    np.save(data, wanted)
    (indices,) = recipes.label_maps(Labels((), 1000), ((0, "whole", True),)).apply(
        (data.getvalue(),)
    )
    assert decode(indices).dtype == np.uint16 and (decode(indices) == wanted).all()
