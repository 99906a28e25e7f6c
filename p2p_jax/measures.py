"""What evaluation keeps of each image, and the figures of all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from p2p_jax import mesh, peers
from p2p_jax.build import Experiment
from p2p_jax.figures import FIGURES
from p2p_jax.scores import Score, bootstrap, make_metrics, make_scores, mean, measuring
from p2p_jax.segmenter import Segmenter, class_numbers
from p2p_jax.step import Sampled

Array = jax.Array
Tree = Any
_BAND = 2**26  # bytes of all targets that are looked at at once, for their median
REAL = "real"  # what is kept of real photos for the score fcn


class Kept(NamedTuple):
    """What is kept of one example.

    Attributes:
      values: the metrics of the image itself.
      parts: what each score of the whole wants of it.
    """

    values: dict[str, float]
    parts: dict[str, Tree]


class Finished(NamedTuple):
    """Figures of a whole split, by name as `eval/l1`; see `evaluate.Evaluation`."""

    means: dict[str, float]
    examples: list[dict[str, float]]
    intervals: dict[str, tuple[float, float]]
    spread: dict[str, float]
    real: dict[str, float]


class Measures:
    """Measures batches of one experiment, and makes figures of what was kept.

    Each process measures its own images on its own devices.

    Attributes:
      identity: what of networks that judge the figures depend on.
    """

    def __init__(self, experiment: Experiment, warn: Callable[[str], None]) -> None:
        """Loads what judges; see `segmenter.Segmenter` for what is raised."""
        options = self._options = experiment.eval
        self._frames, self._grid = experiment.eval_frames, _own(experiment.mesh)
        self.identity: dict[str, str] = {}
        place = functools.partial(mesh.put_replicated, self._grid)
        metrics = make_metrics(options.metrics, options.judges)
        named = [colour_name(colour) for colour in options.palette]
        kid = {"kid_subset": options.kid_subset, "kid_subsets": options.kid_subsets}
        scores = make_scores(options.metrics, options.judges, named, **kid)
        if {"fid", "kid", "lpips"} & set(options.metrics):
            self.identity |= options.judges.identity()
        self._scores: dict[str, Score] = dict(scores)
        iou = scores.pop("iou", None)
        self._measure = measuring(metrics, scores, place)
        # Of what a constant image has, the networks of others need not be asked.
        cheap = {name: score for name, score in scores.items() if name == "lab"}
        self._plain = measuring(metrics, cheap, place)
        self._count = measuring({}, {"iou": iou}, place) if iou else None
        self._numbers = jax.jit(lambda x: class_numbers(x, options.palette))
        self._segmenter = None
        if "fcn" in options.metrics:
            self._segmenter = Segmenter(options.segmenter, self._grid, warn)
            self.identity["segmenter"] = self._segmenter.identity
            names = [colour_name(colour) for colour in self._segmenter.palette]
            fcn = make_scores(("iou",), options.judges, names)["iou"]
            self._judge = measuring({}, {"fcn": fcn}, place)
            better = {_of_fcn(name): mode for name, mode in fcn.better.items()}
            self._scores["fcn"] = fcn._replace(better=better, finish=_renamed(fcn.finish))
        self._metrics = metrics

    @property
    def better(self) -> dict[str, str]:
        """Figures to `min` or `max`."""
        found = {name: metric.mode for name, metric in self._metrics.items()}
        for score in self._scores.values():
            found |= score.better
        return {f"eval/{name}": mode for name, mode in found.items()}

    def about(self, count: int) -> dict[str, str]:
        """What is to be known of figures of so many examples."""
        found = {n: metric.about for n, metric in self._metrics.items() if metric.about}
        for name, score in self._scores.items():
            text = score.about(count)
            if name == "fcn" and self._segmenter:
                text = f"{self._segmenter.about}. {text}"
            found |= dict.fromkeys((f for f in score.better if "/" not in f), text)
        return {f"eval/{name}": text for name, text in found.items()}

    def collect(
        self, sampled: Sampled, everyone: Sequence[int], indices: Sequence[int], real: bool
    ) -> list[Kept]:
        """What is kept of each of our examples of a batch, by what of the canvas is the image.

        Args:
          sampled: the batch.
          everyone: its examples.
          indices: those of this process.
          real: whether to judge the real photos too.
        """
        images = jax.tree.map(self._here, sampled._replace(stored=None))
        whole = images.fake.shape[1:3]
        if all(self._frames.content(i) == whole for i in everyone):
            found = [self._of(images)]
            looked = [images]
        else:
            looked = [self._cropped(images, row, i) for row, i in enumerate(indices)]
            found = [self._of(one) for one in looked]
        if self._segmenter and found:
            found.append(({}, self._fcn(looked, len(images.fake), real)))
        kept = []
        values = _stacked([values for values, _ in found])
        parts = _stacked([parts for _, parts in found])
        for row in range(len(indices)):
            one = {name: float(column[row]) for name, column in values.items()}
            kept.append(Kept(one, jax.tree.map(lambda x, row=row: x[row], parts)))
        return kept

    def _of(self, images: Sampled) -> tuple[dict, dict]:
        """Metrics and what scores want of a batch that has targets."""
        if images.target is None:
            return {}, {}
        values, parts = self._measure(images.fake, images.target)
        if self._count:
            pair = (self._numbers(x) for x in (images.fake, images.target))
            parts = parts | self._count(*pair)[1]
        return jax.tree.map(np.asarray, (values, parts))

    def _fcn(self, looked: Sequence[Sampled], rows: int, real: bool) -> dict[str, np.ndarray]:
        """What the segmenter sees in photos, against their label maps."""
        assert self._segmenter is not None
        judge = self._segmenter
        wanted = self._together([judge.wanted(x.source) for x in looked], rows)
        seen = {"fcn": self._together([judge.fit(x.fake) for x in looked], rows)}
        photos = [x.target for x in looked if x.target is not None]
        if real and photos:
            seen[REAL] = self._together([judge.fit(x) for x in photos], rows)
        return {
            name: np.asarray(self._judge(judge.classify(photos), wanted)[1]["fcn"])
            for name, photos in seen.items()
        }

    def _together(self, parts: Sequence[Array], rows: int) -> Array:
        """One batch of the parts, filled up so that the devices divide it."""
        if len(parts) == 1 and len(parts[0]) == rows:
            return parts[0]
        batch = np.concatenate([np.asarray(part) for part in parts])
        batch = np.concatenate([batch, *[batch[-1:]] * (rows - len(batch))])
        return mesh.put_split(self._grid, batch, 0)

    def _cropped(self, images: Sampled, row: int, i: int) -> Sampled:
        h, w = self._frames.content(i)
        return jax.tree.map(lambda x: np.asarray(x)[row : row + 1, :h, :w], images)

    def _here(self, array: Array) -> Array:
        """This process's rows of an array that is split over all devices, on its own."""
        if array.is_fully_addressable:
            return array
        parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        shape = (sum(len(part.data) for part in parts), *array.shape[1:])
        split = NamedSharding(self._grid, P(mesh.AXIS))
        return jax.make_array_from_single_device_arrays(shape, split, [p.data for p in parts])

    def finish(self, seeds: Sequence[Sequence[Kept]], sure: bool) -> Finished:
        """Figures of what was kept of all examples, in their order, once for each seed.

        Args:
          seeds: what was kept.
          sure: whether to resample scores of the whole too, which takes a while.
        """
        stacked = [_columns(rows) for rows in seeds]
        count = len(seeds[0])
        once, options = np.ones(count, np.int64), self._options
        each: list[dict[str, float]] = [{} for _ in seeds]
        intervals: dict[str, tuple[float, float]] = {}
        examples: list[dict[str, float]] = [{} for _ in range(count)]
        for name in options.metrics:
            trees = [columns[name] for columns in stacked if name in columns]
            if not trees:
                continue
            score = self._scores.get(name)
            finish = score.finish if score else mean
            for figures, tree in zip(each, trees, strict=True):
                figures |= {k: float(v) for k, v in finish(tree, once).items()}
            if options.bootstrap and (not score or (score.bootstrap and sure)):
                averaged = functools.partial(_over_seeds, finish)
                intervals |= bootstrap(trees, averaged, options.bootstrap, 0)
            if not score or score.bootstrap:
                own = [n for n in each[0] if n in FIGURES[name]]
                for i, row in enumerate(examples):
                    one = [jax.tree.map(lambda x, i=i: x[i : i + 1], tree) for tree in trees]
                    row |= _of_one(finish, one, own)
        real = {}
        if REAL in stacked[0]:
            real = self._scores["fcn"].finish(stacked[0][REAL], once)
        return Finished(
            _named(_averaged(each)),
            [_named(row) for row in examples],
            _named(intervals),
            _named(_spread(each)),
            _named({name: float(value) for name, value in real.items()}),
        )

    def constant(self, targets: Mapping[int, np.ndarray]) -> dict[int, Kept]:
        """What is kept of the one image that, whatever the source, has the least L1: the median.

        Of classes it is the one that has most pixels right. There is none where targets differ in
        size. The processes exchange a band of rows at a time, and never hold all targets.

        Args:
          targets: by example, uint8 `[h, w, c]`, those of this process.
        """
        shapes = {shape for part in peers.gather(_shapes(targets)) for shape in part}
        if len(shapes) != 1:
            return {}
        median: Any = _median(list(targets.values()), *shapes)[None]
        images: dict[int, Any] = {i: target[None] for i, target in targets.items()}
        kept = {}
        for i, image in images.items():
            values, parts = self._plain(median, image)
            kept[i] = Kept(*jax.tree.map(lambda x: np.asarray(x)[0], (values, parts)))
        if self._count:
            numbers: dict[int, Any] = {i: np.asarray(self._numbers(x)) for i, x in images.items()}
            usual: Any = _usual(list(numbers.values()), len(self._options.palette), *shapes)
            for i, number in numbers.items():
                kept[i].parts["iou"] = np.asarray(self._count(usual, number)[1]["iou"])[0]
        return kept

    def baseline(self, kept: Sequence[Kept]) -> dict[str, float]:
        """Figures of what is kept of a constant image, for all examples."""
        if not kept:
            return {}
        columns, once, found = _columns(kept), np.ones(len(kept), np.int64), {}
        for name in self._options.metrics:
            if name in columns:
                finish = self._scores[name].finish if name in self._scores else mean
                found |= {k: float(v) for k, v in finish(columns[name], once).items()}
        return _named(found)


def _shapes(targets: Mapping[int, np.ndarray]) -> frozenset[tuple[int, ...]]:
    return frozenset(target.shape for target in targets.values())


def _median(targets: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Of all processes' targets, uint8 of that shape."""
    count = sum(peers.gather(len(targets)))
    height = max(1, _BAND // (count * shape[1] * shape[2]))
    bands = []
    for y in range(0, shape[0], height):
        band = np.array([target[y : y + height] for target in targets], np.uint8)
        parts = [part for part in peers.gather(band) if len(part)]
        bands.append(np.median(np.concatenate(parts), axis=0))
    return np.concatenate(bands).astype(np.uint8)


def _usual(numbers: Sequence[np.ndarray], classes: int, shape: tuple[int, ...]) -> np.ndarray:
    """The class that each pixel is most often in all processes' targets, int32 `[1, h, w, 1]`."""
    often = []
    for k in range(classes):
        here = np.zeros((1, *shape[:2], 1), np.int32)
        for number in numbers:
            here += number == k
        often.append(sum(peers.gather(here)))
    return np.argmax(often, 0).astype(np.int32)


def _own(grid: Mesh) -> Mesh:
    """The devices of this process, in their order."""
    here = [d for d in grid.devices.flat if d.process_index == jax.process_index()]
    return Mesh(np.array(here), (mesh.AXIS,), axis_types=(AxisType.Auto,))


def colour_name(colour: Sequence[int]) -> str:
    """What to call a class that has no name."""
    return "#" + bytes(colour).hex()


def _of_fcn(name: str) -> str:
    return f"fcn_{name}"


def _renamed(finish: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda tree, weights: {_of_fcn(n): v for n, v in finish(tree, weights).items()}


def _stacked(parts: Sequence[dict[str, Tree]]) -> dict[str, Tree]:
    """Batches of one after another, by name."""
    named: dict[str, list[Tree]] = {}
    for part in parts:
        for name, tree in part.items():
            named.setdefault(name, []).append(tree)
    return {
        name: jax.tree.map(lambda *leaves: np.concatenate([np.asarray(x) for x in leaves]), *trees)
        for name, trees in named.items()
    }


def _columns(rows: Sequence[Kept]) -> dict[str, Tree]:
    """By metric or score, what `finish` takes."""
    columns: dict[str, Tree] = {
        name: {name: np.array([row.values[name] for row in rows])} for name in rows[0].values
    }
    for name in rows[0].parts:
        trees = [row.parts[name] for row in rows]
        columns[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return columns


def _over_seeds(finish: Callable[..., Any], trees: Sequence[Tree], weights: np.ndarray) -> Any:
    found = [finish(tree, weights) for tree in trees]
    common = [name for name in found[0] if all(name in figures for figures in found)]
    return {name: sum(figures[name] for figures in found) / len(found) for name in common}


def _of_one(
    finish: Callable[..., Any], trees: Sequence[Tree], names: Sequence[str]
) -> dict[str, float]:
    """Figures of one example; none where it has not what they need."""
    try:
        found = _over_seeds(finish, trees, np.ones(1, np.int64))
    except ValueError:  # no pixel of the classes
        return {}
    return {name: float(found[name]) for name in names if name in found}


def _averaged(each: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for name in each[0] if all(name in figures for figures in each)]
    return {name: float(np.mean([figures[name] for figures in each])) for name in names}


def _spread(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Standard deviations over seeds; none of one."""
    if len(each) == 1:
        return {}
    return {name: float(np.std([f[name] for f in each], ddof=1)) for name in _averaged(each)}


def _named(figures: dict[str, Any]) -> dict[str, Any]:
    return {f"eval/{name}": value for name, value in figures.items()}
