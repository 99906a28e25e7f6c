"""A translator as a call: what comes back, on what it depends, and tiles against the whole."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers import quick_jit
from trained import FLOATS, image, run, smooth

from p2p_jax.config import ConfigError
from p2p_jax.data import DataError
from p2p_jax.tiles import seams
from p2p_jax.translator import load

PLAIN = {"model__generator__dropout": ()}
RUNNING = {"eval__norm_stats": "running", **PLAIN}
PALETTE = "#000000 #ff0000 #00ff00 #0000ff"
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
LABELS = {"data__task": "labels", "data__palette": PALETTE, **PLAIN}


@functools.cache
def translator(options=(), **changes):
    """Of such a run; `options` are pairs for `load`."""
    forms = {
        "source": changes.pop("source", None), "target": changes.pop("target", None),
    }  # fmt: skip
    forms = {name: dict(form) if form else None for name, form in forms.items()}
    return load(run(**forms, **changes), warn=pytest.fail, **dict(options))


@functools.cache
def dropping(**options):
    return translator(tuple(options.items()))


# --- what it makes -------------------------------------------------------------------------------


def test_results_are_what_the_network_makes_of_the_mirrored_image():
    translate = translator(**RUNNING)
    found = translate.inference
    given = image(size=(13, 22))
    canvas = np.pad(given, ((0, 3), (0, 2), (0, 0)), "symmetric")
    apply = quick_jit(lambda x: found.gan.generator.apply(
        {"params": found.params, "stats": found.stats}, x, None, True))  # fmt: skip
    wanted = np.asarray(apply(canvas[None].astype(np.float32) / 127.5 - 1))[0, :13, :22]
    made = translate(given)
    assert made.dtype == np.uint8 and translate.deterministic and translate.notes == ()
    np.testing.assert_allclose(made, (wanted + 1) * 127.5, atol=0.51)
    assert made.std() > 10


def test_what_comes_back_is_as_what_is_given():
    translate = translator(**RUNNING)
    one, other = image(1), image(2)
    made = translate(one)
    assert made.shape == (16, 16, 3)
    stack = translate(np.stack([one, other]))
    assert isinstance(stack, np.ndarray) and (stack[0] == made).all() and len(stack) == 2
    several = translate([other, image(3, (7, 30)), one[..., 0]])
    assert isinstance(several, list)
    assert [x.shape for x in several] == [(16, 16, 3), (7, 30, 3), (16, 16, 3)]
    assert (several[0] == stack[1]).all()
    grey = np.repeat(one[..., :1], 3, -1)
    assert (several[2] == translate(grey)).all() and (several[2] == translate(one[..., 0])).all()
    assert translate([]) == []


def test_all_that_cannot_be_used_is_told_at_once():
    translate = translator(**RUNNING)
    bad = [
        image(),
        image(channels=5),
        image(top=60000),
        np.zeros((0, 4, 3), np.uint8),
        image(channels=4),
    ]
    with pytest.raises(DataError) as error:
        translate(bad, names="abcde")
    told = error.value.problems
    assert [text[0] for text in told] == ["b", "c", "d", "e"]
    assert (
        "5 channels" in told[0] and "uint16, where the translator was trained on uint8" in told[1]
    )
    assert "no image" in told[2] and "alpha" in told[3]


def test_transparency_is_settled_as_asked_for():
    translate = translator((("alpha", "white"),), **RUNNING)
    clear = np.concatenate([image(), np.zeros((16, 16, 1), np.uint8)], -1)
    white = np.full((16, 16, 3), 255, np.uint8)
    assert (translate(clear) == translate(white)).all()


def test_images_are_resized_first_and_back():
    translate = translator(**RUNNING)
    made = translate(smooth((40, 56)), size=(16, 16))
    assert made.shape == (40, 56, 3)
    flat = np.full((40, 56, 3), 90, np.uint8)
    assert (
        translate(flat, size=(16, 16))[::39, ::55] == translate(flat[:16, :16])[::15, ::15]
    ).all()


# --- what it depends on --------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_draws_come_from_the_seed_and_the_image_alone(devices):
    images = [image(i) for i in range(3)]
    alone = [dropping()(x) for x in images]
    together = dropping(batch_size=4, devices=devices)([images[2], images[0], images[1]])
    for made, wanted in zip(together, (alone[2], alone[0], alone[1]), strict=True):
        assert np.abs(made.astype(int) - wanted).max() <= 1  # rounding
    assert (dropping()(images[0]) == alone[0]).all()
    assert (dropping(seed=1)(images[0]) != alone[0]).any()
    assert not dropping().deterministic and "drawn from seed 0" in dropping().notes[0]


def test_equal_images_draw_alike_and_others_do_not():
    # Of zero weights before it, dropout would show alone; here a constant image does as well.
    flat = np.full((16, 16, 3), 100, np.uint8)
    same = dropping(batch_size=4, devices=2)([flat, flat.copy(), flat + 1])
    assert (same[0] == same[1]).all()
    assert (same[0] != same[2]).any()


def test_dropout_can_be_turned_off():
    off = dropping(dropout=False)
    assert off.deterministic and off.notes == ()
    assert (off(image()) != dropping()(image())).any()


def test_statistics_of_several_images_are_replaced_and_told():
    translate = translator(model__generator__norm_group=0, **PLAIN)
    assert "normalised by its own" in translate.notes[0]
    pair = translate([image(1), image(2)])
    assert (pair[0] == translate(image(1))).all()


@pytest.mark.slow
def test_averaged_weights_and_running_statistics_are_told():
    options = (("ema", True), ("norm_stats", "running"))
    notes = translator(options, train__ema_decay=0.5, **PLAIN).notes
    assert notes == ("running statistics are those of the weights that were not averaged",)


def test_what_does_not_fit_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        load(run(), devices=9, norm_stats="mean", alpha="red", seed=-1)
    assert [text.split(":")[0] for text in error.value.problems] == [
        "--devices", "--norm_stats", "--alpha", "--seed",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="3 is no multiple of 2 devices"):
        load(run(), devices=2, batch_size=3)


@pytest.mark.slow
def test_64_bits_stay_in_the_translator():
    exact = {"data__target_range": (-1.0, 1.0), "target": tuple(FLOATS.items()), **RUNNING}
    translate = translator(train__precision="float64", **exact)
    kernel = jax.tree.leaves(translate.inference.params)[0]
    assert kernel.dtype == np.float64 and not jax.config.read("jax_enable_x64")
    made, single = translate(image()), translator(**exact)(image())
    assert made.dtype == np.float32
    assert 0 < np.abs(made - single).max() < 1e-4
    assert (
        np.abs(
            translate.tiled(image(size=(64, 40)), (32, 32)) - translate(image(size=(64, 40)))
        ).max()
        < 1e-6
    )


# --- kinds ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_label_maps_are_given_as_colours_or_as_classes():
    translate = translator(**LABELS)
    assert translate.palette == tuple(map(tuple, COLOURS.tolist()))
    assert translate.target_palette == () and translate.channels == (1, 3)
    classes = image(top=4, channels=1)
    made = translate(classes)
    assert made.shape == (16, 16, 3)
    assert (made == translate(COLOURS[classes[..., 0]])).all()
    assert (made == translate(classes[..., 0])).all()
    with pytest.raises(DataError, match="image 0: value 9 at row 0, column 0, where 4 classes"):
        translate([np.full((16, 16), 9, np.uint8)])


@pytest.mark.slow
def test_classes_come_out_as_numbers_and_in_tiles_too():
    translate = translator(data__labels="target", eval__norm_stats="running", **LABELS)
    given = smooth((64, 48))
    made = translate(given)
    assert made.shape == (64, 48, 1) and made.dtype == np.uint8 and len(np.unique(made)) > 1
    assert made.max() < 4 and translate.channels == (3, 1)
    assert (translate.stored.shown(made) == COLOURS[made[..., 0]]).all()
    tiled = translate.tiled(given, (32, 32))
    assert (tiled != made).mean() < 1e-3
    assert translate.difference(given, (32, 32), 4).mean <= 1


@pytest.mark.slow
def test_sixteen_bits_stay_sixteen_and_colours_of_greys_are_made():
    deep = tuple({"channels": 3, "dtype": "uint16", "suffix": ".png"}.items())
    translate = translator(source=deep, target=deep, **RUNNING)
    made = translate(image(top=65536))
    assert made.dtype == np.uint16 and made.max() > 300
    assert translate.stored.shown(made).dtype == np.uint8
    np.testing.assert_allclose(translate.stored.shown(made), made / 257, atol=0.51)

    colours = translator(data__task="colorize", **RUNNING)
    grey = smooth((40, 52))[..., :1]
    made = colours(grey)
    assert colours.channels == (3, 3) and made.shape == (40, 52, 3)
    assert (made == colours(np.repeat(grey, 3, -1))).all()
    assert np.abs(colours.tiled(grey, (32, 32)).astype(int) - made).max() <= 1

    edges = {"channels": 1, "dtype": "uint8", "suffix": ".png"}
    sketch = translator(source=tuple(edges.items()), **RUNNING)
    assert (sketch(np.repeat(grey, 3, -1)) == sketch(grey)).all()


# --- tiles ---------------------------------------------------------------------------------------


def floating(**changes):
    """Gives what the network makes itself."""
    form = tuple(FLOATS.items())
    return translator(target=form, data__target_range=(-1.0, 1.0), **RUNNING, **changes)


def apart(translate, given, tile, overlap=None):
    made = translate.tiled(given, tile, overlap)
    assert made.shape == (*given.shape[:2], 3) and made.dtype == np.float32
    whole = translate(given)
    assert 0.1 < whole.std() < 0.7  # else nearly all were black or white
    return np.abs(made - whole).max()


def test_tiles_of_a_resnet_with_running_statistics_are_exactly_the_whole():
    translate = floating(model__generator__name="resnet")
    given = image(size=(66, 106))
    plan = translate.canvases.plan(given.shape, (64, 64))
    assert plan.exact and len(plan.places) == 6 and translate.canvases.enough == 40
    assert apart(translate, given, (64, 64)) < 1e-5
    # And no less would do.
    assert not translate.canvases.plan(given.shape, (64, 64), 36).exact
    assert apart(translate, given, (64, 64), 36) > 1e-5
    assert "overlap of 40" in translate.canvases.told(
        translate.canvases.plan(given.shape, (64, 64), 8)
    )


def test_tiles_of_a_unet_too_in_either_direction():
    translate = floating()
    assert translate.canvases.enough == 16
    assert len(translate.canvases.plan((70, 66), (32, 48)).places) == 8
    assert apart(translate, image(size=(70, 66)), (32, 48)) < 1e-5


def test_one_tile_is_the_whole_with_dropout_too():
    assert (dropping().tiled(image(), (64, 64)) == dropping()(image())).all()


def test_other_tiles_show_no_seams_and_the_difference_is_measured():
    translate, given = dropping(), smooth((150, 150))
    plan = translate.canvases.plan(given.shape, (64, 64))
    assert not plan.exact and "dropout or noise of its own" in translate.canvases.told(plan)
    found = translate.difference(given, (64, 64))
    assert found.size == (64, 112) and 0 < found.mean < found.worst
    assert 0.8 < found.seams < 1.2
    assert "statistics of its own" in translator(**PLAIN).canvases.told(plan)


@pytest.mark.slow
def test_tiles_do_not_depend_on_batches_either():
    given = smooth((100, 70))
    one, other = (dropping(batch_size=n).tiled(given, (64, 64)).astype(int) for n in (1, 4))
    assert np.abs(one - other).max() <= 1


@pytest.mark.slow
def test_edges_of_tiles_look_like_the_same_lines_of_the_whole():
    translate, given = translator(**PLAIN), smooth((192, 256))
    plan = translate.canvases.plan(given.shape, (64, 64))
    whole = seams(translate(given), plan)
    assert abs(seams(translate.tiled(given, (64, 64)), plan) - whole) < 0.05
    cut = translate.canvases.plan(given.shape, (64, 64), 0)
    apart = seams(translate.tiled(given, (64, 64), 0), cut) - seams(translate(given), cut)
    assert abs(apart) > 0.1  # as they do not where tiles do not overlap


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError) as error:
        translator(**RUNNING).tiled(image(), (30, 32), 64)
    assert [text.split(":")[0] for text in error.value.problems] == ["--tile", "--overlap"]
    assert "32,32 would do" in error.value.problems[0]
    hole = translator(data__task="inpaint", **RUNNING)
    assert "middle of the whole image" in hole.canvases.problems((32, 32))[0]
