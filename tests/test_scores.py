"""Scores of whole sets against SciPy, scikit-image, PyTorch and plain loops."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
from helpers import rel
from scipy.linalg import sqrtm
from skimage.color import rgb2lab

from p2p_jax import distances, scores
from p2p_jax.mesh import AXIS, make_mesh, put_replicated, put_split
from p2p_jax.metrics import METRICS
from p2p_jax.scores import Judge, Judges, Score, make_metrics, make_scores

ONES = functools.partial(np.ones, dtype=np.int64)


def pictures(n=5, size=(24, 20), channels=3, seed=0):
    """Fakes and targets, uint8, of colours that differ from image to image."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(40, 210, (n, 1, 1, channels))
    target = middle + rng.normal(0, 40, (n, *size, channels))
    fake = target * 0.8 + rng.normal(0, 20, target.shape)
    return tuple(np.clip(x.round(), 0, 255).astype(np.uint8) for x in (fake, target))


def kept(score, fake, target, place=jax.device_put):
    """What a score keeps of images, in numpy."""
    _, found = scores.measuring({}, {"it": score}, place)(fake, target)
    return jax.tree.map(np.asarray, found["it"])


def figures(score, fake, target):
    return score.finish(kept(score, fake, target), ONES(len(fake)))


# --- Frechet's distance --------------------------------------------------------------------------


def by_sqrtm(x, y):
    """The formula, with SciPy's root of the product of covariances."""
    (mx, sx), (my, sy) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    return np.square(mx - my).sum() + np.trace(sx + sy) - 2 * np.trace(sqrtm(sx @ sy)).real


def sample(n, d, seed, scale=1.0):
    """Features that depend on each other; their spread along the axes is over a decade."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.logspace(0, -1, d)
    return scale * rng.normal(size=(n, d)) @ mix + rng.normal(0, 0.3, d)


@pytest.mark.parametrize("counts", [(300, 200), (41, 300), (300, 40)])
def test_frechet_is_that_of_scipy(counts):
    x, y = sample(counts[0], 40, 0), sample(counts[1], 40, 1, 1.5)
    assert abs(distances.frechet(x, y) / by_sqrtm(x, y) - 1) < 1e-6


@pytest.mark.parametrize("least", [1e-3, 1e-5])
def test_frechet_of_covariances_that_are_nearly_singular(least):
    """Half the directions have hardly any spread, in both sets."""
    small = np.where(np.arange(20) < 10, 1, least)
    x, y = sample(200, 20, 0) * small, sample(300, 20, 1) * small
    assert np.linalg.cond(np.cov(x, rowvar=False)) > 1 / least**2
    assert abs(distances.frechet(x, y) / by_sqrtm(x, y) - 1) < 1e-6


def test_frechet_of_fewer_examples_than_features():
    """Singular covariances, of which SciPy's root is only so exact: those in the span instead."""
    x, y = sample(12, 60, 0), sample(9, 60, 1)
    basis, _ = np.linalg.qr(np.concatenate([x - x[0], y - y[0], x[:1] - y[:1]]).T)
    inside = [z @ basis for z in (x, y)]
    assert abs(distances.frechet(x, y) / distances.frechet(*inside) - 1) < 1e-9
    ridge = [np.cov(z, rowvar=False) + 1e-9 * np.eye(60) for z in (x, y)]
    root = np.trace(sqrtm(ridge[0] @ ridge[1])).real
    mean = np.square(x.mean(0) - y.mean(0)).sum()
    assert abs(distances.frechet(x, y) / (mean + np.trace(sum(ridge)) - 2 * root) - 1) < 1e-4


@pytest.mark.parametrize("n", [6, 50])
def test_frechet_of_two_equal_sets_and_of_sets_that_are_apart(n):
    x = sample(n, 20, 0)
    assert abs(distances.frechet(x, x)) < 1e-9
    assert abs(distances.frechet(x, x + 2) - 20 * 4) < 1e-9
    assert abs(distances.frechet(x, x[::-1] * 3 - 2 * x.mean(0)) / (4 * x.var(0, ddof=1).sum()) - 1
               ) < 1e-9  # fmt: skip


def test_one_example_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 examples, not 1"):
        distances.frechet(np.ones((1, 3)), np.ones((4, 3)))


# --- the kernel's distance -----------------------------------------------------------------------


def by_loops(x, y):
    """The unbiased squared discrepancy, pair by pair."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(kernel(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def test_kernel_distance_is_the_formula(monkeypatch):
    x, y = sample(11, 7, 0), sample(11, 7, 1)
    monkeypatch.setattr(distances, "_ROWS", 4)  # so that rows are summed in parts
    assert np.allclose(distances.kernel(x, y, 11, 3, 0), by_loops(x, y), rtol=1e-10)


def test_kernel_distances_of_subsets():
    """Each is that of some subset of either set, and seeds decide which."""
    x, y = sample(4, 5, 0), sample(5, 5, 1)
    subsets = [[z[[i, j]] for i in range(len(z)) for j in range(i)] for z in (x, y)]
    known = np.array([by_loops(a, b) for a in subsets[0] for b in subsets[1]])
    got = distances.kernel(x, y, 2, 50, 3)
    nearest = np.abs(got[:, None] - known).min(1)
    assert got.shape == (50,) and nearest.max() < 1e-9 and len(np.unique(got.round(9))) > 20
    assert np.array_equal(got, distances.kernel(x, y, 2, 50, 3))
    assert not np.array_equal(got, distances.kernel(x, y, 2, 50, 4))


@pytest.mark.parametrize("size", [1, 5])
def test_subsets_that_do_not_exist(size):
    with pytest.raises(ValueError, match=f"subsets of {size}, where 2 to 4"):
        distances.kernel(np.ones((4, 3)), np.ones((6, 3)), size, 1, 0)


# --- FID and KID ---------------------------------------------------------------------------------


def features(n, d=16):
    return {"fake": sample(n, d, 0).astype("f"), "target": sample(n, d, 1).astype("f")}


def inception_scores(**options):
    return make_scores(["fid", "l1", "kid"], Judges(Judge({}, "Inception of FILE")), **options)


def test_fid_and_kid_of_features():
    made, stacked = inception_scores(kid_subset=6, kid_subsets=40, seed=2), features(20)
    assert list(made) == ["fid", "kid"] and made["fid"].collect is made["kid"].collect
    assert not made["fid"].bootstrap and not made["kid"].bootstrap
    fid = made["fid"].finish(stacked, ONES(20))
    assert fid == {"fid": distances.frechet(stacked["fake"], stacked["target"])}
    kid = made["kid"].finish(stacked, ONES(20))
    each = distances.kernel(stacked["fake"], stacked["target"], 6, 40, 2)
    assert np.isclose(kid["kid"], each.mean(), rtol=1e-12)
    assert np.isclose(kid["kid_se"], each.std(ddof=1) / 40**0.5, rtol=1e-12)
    json.dumps(fid | kid)


def test_images_that_count_twice():
    made, stacked = inception_scores(), features(6)
    weights = np.array([2, 1, 0, 1, 1, 1])
    twice = jax.tree.map(lambda x: x[[0, 0, 1, 3, 4, 5]], stacked)
    for score in made.values():
        assert score.finish(stacked, weights) == score.finish(twice, ONES(6))
        with pytest.raises(ValueError, match="one set at a time"):
            score.finish(stacked, ONES((3, 6)))


def test_kid_of_few_images_is_of_halves_of_them():
    made, stacked = inception_scores(kid_subset=20, kid_subsets=10), features(20)
    each = distances.kernel(stacked["fake"], stacked["target"], 10, 10, 0)
    assert np.isclose(made["kid"].finish(stacked, ONES(20))["kid"], each.mean(), rtol=1e-12)
    assert "10 random subsets of 10," in made["kid"].about(20)
    assert "10 random subsets of 20," in made["kid"].about(21)
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        made["kid"].finish(features(3), ONES(3))


def test_what_is_told_of_fid():
    about = inception_scores()["fid"].about
    for text in ("Inception of FILE", "50 outputs", "299x299", "bilinear", "biased far upward"):
        assert text in about(50)
    assert "biased" in about(2047) and "biased" not in about(2048)


@pytest.mark.parametrize("name", ["fid", "kid"])
def test_scores_without_their_network(name):
    with pytest.raises(ValueError, match=rf"{name} needs eval\.inception"):
        make_scores([name], Judges())
    with pytest.raises(ValueError, match=r"eval\.lpips and eval\.lpips_network"):
        make_metrics(["lpips"], Judges())


# --- colours -------------------------------------------------------------------------------------


def by_skimage(fake, target):
    """Intersections of L, a and b."""
    found = []
    for channel, (low, high) in enumerate(((0, 100), (-110, 110), (-110, 110))):
        edges = np.arange(low - 0.5, high + 1)
        shares = []
        for images in (fake, target):
            values = np.concatenate([rgb2lab(x / 255)[..., channel].ravel() for x in images])
            counts, _ = np.histogram(values, edges)
            assert counts.sum() == len(values)
            shares.append(counts / counts.sum())
        found.append(np.minimum(*shares).sum())
    return found


def test_intersections_are_those_of_scikit_image():
    fake, target = pictures(6, (64, 48))
    score = make_scores(["lab"], Judges())["lab"]
    got = figures(score, fake, target)
    assert list(got) == ["lab_l", "lab_a", "lab_b"] == list(score.better)
    wanted = by_skimage(fake, target)
    # A pixel at the edge of a bin may fall on either side of it.
    assert np.abs(np.array(list(got.values())) - wanted).max() < 1e-4
    assert max(wanted) < 0.95 and min(wanted) > 0.3
    same = figures(score, target[::-1], target)
    assert same == {"lab_l": 1.0, "lab_a": 1.0, "lab_b": 1.0}
    assert "6 outputs" in score.about(6)


def test_all_levels_of_grey_are_without_colour():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    histograms = kept(make_scores(["lab"], Judges())["lab"], grey, grey.repeat(3, -1))
    assert np.array_equal(histograms[:, 0], histograms[:, 1])  # grey is red, green and blue
    assert histograms[0, 0, 1, 110] == histograms[0, 0, 2, 110] == 256
    assert histograms[0, 0, 0, 0] > 0 and histograms[0, 0, 0, 100] > 0
    assert histograms[0, 0, 0, 101:].sum() == 0


def test_other_channels_have_no_colour():
    images = np.zeros((1, 4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="need 3 channels, or 1 that is grey, not 4"):
        kept(make_scores(["lab"], Judges())["lab"], images, images)


# --- classes -------------------------------------------------------------------------------------


def classes(n=4, size=(9, 7), count=5, seed=0, dtype=np.uint8):
    """Class numbers of fakes and targets; the last class is in neither, the one before in fakes."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, count - 2, (n, *size, 1))
    fake = np.where(rng.uniform(size=target.shape) < 0.6, target, (target + 1) % (count - 1))
    return fake.astype(dtype), target.astype(dtype)


def by_sets(fake, target, count):
    """Figures of classes, from sets of pixels."""
    share, iou = {}, {}
    for k in range(count):
        wanted, given = target == k, fake == k
        if wanted.any():
            share[k] = (wanted & given).sum() / wanted.sum()
        if (wanted | given).any():
            iou[k] = (wanted & given).sum() / (wanted | given).sum()
    return {
        "pixel_accuracy": (fake == target).mean(),
        "class_accuracy": np.mean(list(share.values())),
        "mean_iou": np.mean(list(iou.values())),
        **{f"iou/{k}": value for k, value in iou.items()},
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_figures_of_classes(dtype):
    fake, target = classes(dtype=dtype)
    score = make_scores(["iou"], Judges(), 5)["iou"]
    got, wanted = figures(score, fake, target), by_sets(fake, target, 5)
    assert got.keys() == wanted.keys() and "iou/3" in got and "iou/4" not in got
    assert all(np.isclose(got[name], wanted[name], rtol=1e-12) for name in got)
    assert got.keys() < score.better.keys()
    json.dumps(got)


def test_pixels_of_no_class():
    """A target of none is left out, a fake of none is wrong."""
    target = np.array([0, 0, 1, 1, 255]).reshape(1, 5, 1)
    fake = np.array([0, 9, 1, 0, 1]).reshape(1, 5, 1)
    score = make_scores(["iou"], Judges(), ["sky", "wall"])["iou"]
    assert figures(score, fake, target) == {
        **{"pixel_accuracy": 0.5, "class_accuracy": 0.5, "mean_iou": (1 / 3 + 1 / 2) / 2},
        **{"iou/sky": 1 / 3, "iou/wall": 1 / 2},
    }
    with pytest.raises(ValueError, match="no pixel of the targets"):
        figures(score, fake, np.full_like(target, 255))


def test_classes_that_cannot_be_told_apart():
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        make_scores(["iou"], Judges(), 1)
    with pytest.raises(ValueError, match="a name of its own for each class, not sky, sky"):
        make_scores(["iou"], Judges(), ["sky", "sky"])


# --- how sure ------------------------------------------------------------------------------------


def test_weights_are_repetitions():
    """One set at a time or several at once."""
    weights = np.array([[2, 0, 1, 1], [1, 1, 1, 1], [0, 4, 0, 0]])
    made = make_scores(["lab", "iou"], Judges(), 5)
    for score, pair in ((made["lab"], pictures(4)), (made["iou"], classes(4))):
        stacked = kept(score, *pair)
        together = score.finish(stacked, weights)
        for i, row in enumerate(weights):
            wanted = figures(score, *(np.repeat(x, row, 0) for x in pair))
            assert wanted == score.finish(stacked, row)
            for name, value in together.items():
                assert value.shape == (3,)
                assert np.isclose(value[i], wanted.get(name, np.nan), rtol=1e-12, equal_nan=True)


def test_intervals_of_a_mean_hold_it_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for i in range(200):
        low, high = scores.bootstrap({"a": rng.normal(3, 1, 40)}, scores.mean, 200, i)["a"]
        inside += low < 3 < high
    assert 0.88 < inside / 200 < 0.98
    width = 2 * 1.96 / 40**0.5
    assert 0.5 * width < high - low < 1.5 * width


def test_intervals_are_percentiles_of_figures_of_resampled_sets():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    got = scores.bootstrap({"a": values}, scores.mean, 250, 7)
    assert got == scores.bootstrap({"a": values}, scores.mean, 250, 7)
    assert got != scores.bootstrap({"a": values}, scores.mean, 250, 8)
    drawn = np.random.default_rng(7).multinomial(4, [0.25] * 4, size=250)
    means = [np.repeat(values, row).mean() for row in drawn]
    assert np.allclose(got["a"], np.percentile(means, [2.5, 97.5]), rtol=1e-12)
    assert scores.bootstrap({"a": np.array([5.0])}, scores.mean, 10, 0) == {"a": (5.0, 5.0)}


def test_intervals_of_classes_that_some_resamples_lack():
    score = make_scores(["iou"], Judges(), 3)["iou"]
    target = np.zeros((3, 4, 4, 1), np.uint8)
    target[0, 0] = 1  # in one of three images
    fake = target.copy()
    fake[:, 3] = 1
    stacked = kept(score, fake, target)
    got = scores.bootstrap(stacked, score.finish, 150, 0)
    whole = score.finish(stacked, ONES(3))
    assert got.keys() == whole.keys() and "iou/2" not in got
    for name, (low, high) in got.items():
        assert low <= whole[name] <= high
    assert got["iou/1"][0] < got["iou/1"][1]
    json.dumps(got)


# --- the device ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow():
    """Narrow networks to judge with, of random weights, and those of PyTorch."""
    torch_judges = pytest.importorskip("torch_judges")
    from p2p_jax.models import perceptual

    linear, network = torch_judges.Lpips("alex", divide=8).parts()
    return Judges(None, Judge(perceptual.convert(network, linear, "alex"), "narrow"), "alex")


def test_lpips_per_image(narrow):
    metrics = make_metrics(["psnr", "lpips", "fid"], narrow)
    assert list(metrics) == ["psnr", "lpips"] and metrics["psnr"] is METRICS["psnr"]
    assert metrics["lpips"].mode == "min" and metrics["lpips"].least == 31
    assert "narrow" in metrics["lpips"].about and narrow.identity() == {"lpips": "narrow"}
    fake, target = pictures(2, (31, 33), channels=1)
    rows, kept_by = scores.measuring(metrics, {})(fake, target)
    wanted, _ = scores.measuring(metrics, {})(*(x.repeat(3, -1) for x in (fake, target)))
    assert kept_by == {} and rows["lpips"].shape == (2,)
    assert np.allclose(rows["lpips"], wanted["lpips"], rtol=1e-5)
    exact = np.square(fake / 255.0 - target / 255.0).mean((1, 2, 3))
    assert np.allclose(rows["psnr"], -10 * np.log10(exact), rtol=1e-5)


def test_what_is_kept_does_not_depend_on_the_batch_or_the_devices(narrow):
    metrics = make_metrics(["l1", "lpips"], narrow)
    made = make_scores(["lab"], narrow)
    fake, target = pictures(4, (33, 40))
    grid = make_mesh(4)
    spread = scores.measuring(metrics, made, functools.partial(put_replicated, grid))
    rows, whole = spread(*put_split(grid, (fake, target), 0, (AXIS,)))
    assert len(rows["lpips"].sharding.device_set) == 4
    one = scores.measuring(metrics, made)
    for i in range(4):
        row, part = one(fake[i : i + 1], target[i : i + 1])
        assert np.array_equal(part["lab"][0], whole["lab"][i])
        assert all(abs(row[name][0] - rows[name][i]) < 1e-6 for name in row)


def test_scores_that_keep_the_same_have_it_computed_once():
    runs = []

    def looks(params, fake, target):
        runs.append(1)
        return (fake * params).sum((1, 2, 3))

    collect = jax.tree_util.Partial(looks, np.float32(2))
    score = Score(collect, lambda *_: {}, {}, str)
    measure = scores.measuring({}, {"a": score, "b": score._replace(bootstrap=False)})
    fake, target = pictures(2)
    _, found = measure(fake, target)
    assert len(runs) == 1
    assert rel(found["a"], 2 * fake.sum((1, 2, 3), dtype="f")) < 1e-6
    assert np.array_equal(found["a"], found["b"])
