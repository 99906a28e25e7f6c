"""Figures of a whole set of images: colours, classes, features; and how sure such figures are.

A score is taken in two steps. `collect` runs on the device and keeps a little of each image;
`finish` makes figures, in float64 numpy, of what was kept of all of them. So nothing depends on
how the images were batched, and resampling images (`bootstrap`) costs no second look at them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from p2p_jax import counts, distances
from p2p_jax.metrics import LPIPS_SIZE, METRICS, Metric
from p2p_jax.models import inception, perceptual
from p2p_jax.resampling import Figures, bootstrap, mean

__all__ = ["bootstrap", "mean"]  # part of the interface here
Array = jax.Array
Tree = Any

# Score names to the figures of each and which way is better; `iou` has those of each class too,
# as `iou/NAME`.
FIGURES: dict[str, dict[str, str]] = {
    "lab": {"lab_l": "max", "lab_a": "max", "lab_b": "max"},
    "iou": {"pixel_accuracy": "max", "class_accuracy": "max", "mean_iou": "max"},
    "fid": {"fid": "min"},
    "kid": {"kid": "min"},
}
# Names, of scores and of the metric lpips, to the config keys of the files they need.
FILES = {
    "fid": ("eval.inception",),
    "kid": ("eval.inception",),
    "lpips": ("eval.lpips", "eval.lpips_network"),
}
# What looks at colours: images must have 3 channels, or 1, which is taken for grey.
COLOUR = ("lab", "fid", "kid", "lpips")


class Judge(NamedTuple):
    """A network of others.

    Attributes:
      params: its weights, as the module in `models` wants them.
      about: its name, that of its file and the first 8 digits of the file's sha256.
    """

    params: Tree
    about: str


class Judges(NamedTuple):
    """What is there to judge with; None where the user gave no file.

    Attributes:
      inception: for `fid` and `kid`.
      lpips: for the metric `lpips`.
      backbone: of lpips, `alex` or `vgg`.
    """

    inception: Judge | None = None
    lpips: Judge | None = None
    backbone: str = "alex"

    def identity(self) -> dict[str, str]:
        """What of the files an evaluation depends on, by `inception` and `lpips`."""
        judges = {"inception": self.inception, "lpips": self.lpips}
        return {name: judge.about for name, judge in judges.items() if judge is not None}


class Score(NamedTuple):
    """Figures of a whole set.

    Attributes:
      collect: (fake, target), uint8 `[b, h, w, 1|3]`, or class numbers `[b, h, w, 1]` for `iou`, to
        a tree of arrays `[b, ...]`. Use it through `measuring`, which keeps weights out of the
        program. Scores whose `collect` is the same share what is kept.
      finish: (that tree stacked over all n images, in numpy; weights, how often each image counts,
        `[n]` whole numbers, or `[m, n]` for m resamples at once) to figures by name: floats, or
        arrays `[m]`. Resamples may hold NaN (a class that does not occur in them).
      better: figure names to `min` or `max`; `kid_se` is in none, being an error.
      about: number of images to what is to be printed beside the figures.
      bootstrap: whether resampling images tells how sure the figures are; not where an image that
        occurs twice biases them, as FID and KID.
    """

    collect: Callable[[Array, Array], Tree]
    finish: Callable[[Tree, np.ndarray], Figures]
    better: dict[str, str]
    about: Callable[[int], str]
    bootstrap: bool = True


def rgb(images: Array) -> Array:
    """`[b, h, w, 3]` of `[b, h, w, 1|3]`: grey is repeated.

    Raises:
      ValueError: another number of channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{', '.join(COLOUR)} need 3 channels, or 1 that is grey, not {images.shape[-1]}"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))


def make_metrics(names: Sequence[str], judges: Judges) -> dict[str, Metric]:
    """The metrics per image among `names`: those of `METRICS`, and `lpips`.

    Raises:
      ValueError: `lpips`, but no files of it.
    """
    made = {}
    for name in names:
        if name in METRICS:
            made[name] = METRICS[name]
        elif name == "lpips":
            judge = _needed(judges.lpips, name)
            fn = Partial(_LPIPS[judges.backbone], judge.params)
            about = f"LPIPS: {judge.about}; images at their own size"
            made[name] = Metric(fn, "min", LPIPS_SIZE[judges.backbone], about)
    return made


def _needed(judge: Judge | None, name: str) -> Judge:
    if judge is None:
        raise ValueError(f"{name} needs {' and '.join(FILES[name])}")
    return judge


def _lpips(backbone: str, params: Tree, fake: Array, target: Array) -> Array:
    return perceptual.distance(params, rgb(fake), rgb(target), backbone)


# Made once, as a program is compiled again for another function.
_LPIPS = {name: functools.partial(_lpips, name) for name in perceptual.BACKBONES}


def make_scores(
    names: Sequence[str],
    judges: Judges,
    classes: int | Sequence[str] = 0,
    *,
    kid_subset: int = 1000,
    kid_subsets: int = 100,
    seed: int = 0,
) -> dict[str, Score]:
    """The scores among `names`.

    Args:
      names: of metrics and scores; what is no score is left out.
      judges: networks for `fid` and `kid`.
      classes: for `iou`: how many there are, or their names, for the figures `iou/NAME`.
      kid_subset: images of either kind in each of the random subsets whose mean KID is; of no more
        images than that, subsets are half of them.
      kid_subsets: how many of those.
      seed: of the subsets.

    Raises:
      ValueError: a score lacks what it needs.
    """
    makers = {
        "lab": lambda: _LAB,
        "iou": lambda: _iou(classes),
        "fid": lambda: _fid(_needed(judges.inception, "fid"), collect),
        "kid": lambda: _kid(
            _needed(judges.inception, "kid"), collect, kid_subset, kid_subsets, seed
        ),
    }
    collect = Partial(_features, judges.inception and judges.inception.params)
    return {name: makers[name]() for name in names if name in makers}


def measuring(
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Score],
    place: Callable[[Tree], Tree] = jax.device_put,
) -> Callable[[Array, Array], tuple[dict[str, Array], dict[str, Tree]]]:
    """A compiled function of uint8 (fake, target), `[b, h, w, c]`.

    It gives the metrics `[b]` by name, and what each score keeps, `[b, ...]`, by name.

    Args:
      metrics: of each image, which they see in [0, 1].
      scores: of the whole.
      place: puts the weights of networks where they are wanted, once: over a mesh
        `functools.partial(mesh.put_replicated, grid)`.
    """
    # As arguments, for constants would be part of the program: slow to compile, large to keep.
    # Each collecting function once, as the weights of one that is shared are the same argument.
    shared = {id(score.collect): score.collect for score in scores.values()}
    order = list(shared)
    fns = [_as_tree(metric.fn) for metric in metrics.values()]
    fns, collects = place((fns, [_as_tree(fn) for fn in shared.values()]))

    @jax.jit
    def run(fns: Tree, collects: Tree, fake: Array, target: Array) -> tuple[list[Array], Tree]:
        pair = [x.astype(jnp.float32) / 255 for x in (fake, target)]
        return [fn(*pair) for fn in fns], [collect(fake, target) for collect in collects]

    def measure(fake: Array, target: Array) -> tuple[dict[str, Array], dict[str, Tree]]:
        rows, kept = run(fns, collects, fake, target)
        by_score = {name: kept[order.index(id(s.collect))] for name, s in scores.items()}
        return dict(zip(metrics, rows, strict=True)), by_score

    return measure


def _as_tree(fn: Callable[..., Any]) -> Partial:
    return fn if isinstance(fn, Partial) else Partial(fn)


def _lab(fake: Array, target: Array) -> Array:
    return counts.lab(rgb(fake), rgb(target))


def _lab_about(examples: int) -> str:
    return (
        f"Lab: intersection (1: equal) of the distributions of CIE L, a and b over all pixels of "
        f"{examples} outputs and of their targets, in bins of 1"
    )


_LAB = Score(
    _lab,
    functools.partial(counts.intersections, tuple(FIGURES["lab"])),
    FIGURES["lab"],
    _lab_about,
)


def _iou(classes: int | Sequence[str]) -> Score:
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    if len(names) < 2:
        raise ValueError(f"iou needs at least 2 classes, not {len(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"iou needs a name of its own for each class, not {', '.join(names)}")

    def about(examples: int) -> str:
        return (
            f"Pixels of {examples} images in {len(names)} classes, counted together; "
            "class_accuracy is the mean over classes that occur in targets, mean_iou over those in "
            "targets or outputs"
        )

    return Score(
        functools.partial(counts.confusion, len(names)),
        functools.partial(counts.accuracies, names),
        FIGURES["iou"] | {f"iou/{name}": "max" for name in names},
        about,
    )


def _features(params: Tree, fake: Array, target: Array) -> dict[str, Array]:
    """Inception's, `[b, 2048]` of each."""
    # Both of a pair beside each other, so that a batch that is split over devices stays so.
    pairs = jnp.stack([rgb(fake), rgb(target)], 1)
    pairs = pairs.reshape(-1, *pairs.shape[2:]).astype(jnp.float32) / 255
    found = inception.features(params, pairs).reshape(len(fake), 2, -1)
    return {"fake": found[:, 0], "target": found[:, 1]}


def _repeated(stacked: Tree, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if weights.ndim != 1:
        raise ValueError("FID and KID are of one set at a time")
    return np.repeat(stacked["fake"], weights, 0), np.repeat(stacked["target"], weights, 0)


def _resized(judge: Judge, examples: int) -> str:
    return (
        f"{judge.about}; {examples} outputs and {examples} targets, resized to "
        f"{inception.SIZE}x{inception.SIZE} (bilinear, not antialiased, as pytorch-fid)"
    )


def _fid(judge: Judge, collect: Callable[[Array, Array], Tree]) -> Score:
    def about(examples: int) -> str:
        text = f"FID: {_resized(judge, examples)}"
        if examples < inception.FEATURES:
            text += (
                f"; from fewer than {inception.FEATURES} images it is biased far upward: compare "
                "it only with FID of as many"
            )
        return text

    def finish(stacked: Tree, weights: np.ndarray) -> Figures:
        return {"fid": distances.frechet(*_repeated(stacked, weights))}

    return Score(collect, finish, FIGURES["fid"], about, False)


def _kid(
    judge: Judge, collect: Callable[[Array, Array], Tree], subset: int, subsets: int, seed: int
) -> Score:
    def size(examples: int) -> int:
        return subset if subset < examples else examples // 2

    def about(examples: int) -> str:
        return (
            f"KID: {_resized(judge, examples)}; mean of {subsets} random subsets of "
            f"{size(examples)}, kid_se its standard error over them"
        )

    def finish(stacked: Tree, weights: np.ndarray) -> Figures:
        x, y = _repeated(stacked, weights)
        if len(x) < 4:
            raise ValueError(f"kid needs at least 4 images, not {len(x)}")
        each = distances.kernel(x, y, size(len(x)), subsets, seed)
        return {"kid": float(each.mean()), "kid_se": float(each.std(ddof=1) / np.sqrt(subsets))}

    return Score(collect, finish, FIGURES["kid"], about, False)
