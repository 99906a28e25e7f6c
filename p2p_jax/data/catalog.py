"""The source `tfds`: any data set of TensorFlow Datasets, the official sets of pix2pix among them.

Sets of others are read from disk, where they must have been prepared as ArrayRecord.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from p2p_jax.data.builders import Blob, Prepared, Recipe, prepare, prepared_dir, sha
from p2p_jax.data.files import AnyPath, at, entries
from p2p_jax.data.folder import Gathered, check_path, two_files, two_halves
from p2p_jax.data.listing import few
from p2p_jax.data.official import SETS, check_official, gather_official, open_official
from p2p_jax.data.origins import stamps
from p2p_jax.data.pairs import DataError, DataOptions, Log, Splits, raise_if
from p2p_jax.data.splits import open_splits

_OFFICIAL = "pix2pix/"


class _Records:
    """One split of a TFDS data set, as an origin."""

    def __init__(self, builder: Any, split: str, features: tuple[str, ...]) -> None:
        self.what = f"'{split}' of {builder.info.full_name}"
        self.where = f"{builder.data_dir} {split} {features}"
        self._builder, self._split, self._features = builder, split, features

    def _files(self) -> list[AnyPath]:
        folder = at(str(self._builder.data_dir))
        return [folder / name for name, is_folder in entries(folder) if not is_folder]

    def stamp(self) -> tuple[str, int]:
        """See `builders.Origin`."""
        return stamps(self._files())

    def content(self) -> str:
        """See `builders.Origin`."""
        digests = []
        for path in self._files():
            try:
                with path.open("rb") as file:  # too large for the memory, perhaps
                    digests.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
            except OSError as error:
                raise DataError([f"'{path}' cannot be read ({error})"]) from error
        return sha(repr((digests, self._split, self._features)).encode())

    def blobs(self) -> Iterator[Blob]:
        """See `builders.Origin`."""
        import tensorflow_datasets as tfds

        skip = tfds.decode.SkipDecoding()
        kinds = self._builder.info.features
        image, nested = tfds.features.Image, tfds.features.FeaturesDict
        decoders = {  # what is not asked for is not decoded either
            name: skip
            for name, kind in kinds.items()
            if not isinstance(kind, nested)
            and (name not in self._features or isinstance(kind, image))
        }
        count = self._builder.info.splits[self._split].num_examples
        if not count:  # which TFDS would not open
            return
        width, i = len(str(count)), -1
        try:
            records = self._builder.as_data_source(self._split, decoders=decoders)
            for i in range(count):
                yield self._blob(f"{i:0{width}d}", records[i])
        except Exception as error:  # ArrayRecord raises many kinds
            which = f"record {i}" if i >= 0 else "it"
            raise DataError([f"{self.what}: {which} cannot be read ({error})"]) from error

    def _blob(self, name: str, example: dict[str, Any]) -> Blob:
        missing = [feature for feature in self._features if example[feature] is None]
        if missing:  # as ArrayRecord gives where a file was cut
            raise ValueError(f"it holds no {' and no '.join(missing)}; is a file truncated?")
        data = tuple(_encoded(example[feature]) for feature in self._features)
        labels = tuple(f"{feature} of record {int(name)}" for feature in self._features)
        return Blob(self._split, name, labels, data)


def _encoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


def _builder(options: DataOptions) -> Any:
    """The builder of a prepared set.

    Raises:
      DataError: there is none.
    """
    import tensorflow_datasets as tfds

    hint = (
        "prepare it where TensorFlow is installed, with tfds build --file_format=array_record, and "
        "give the folder as data.path"
    )
    try:
        builder = _find(tfds, options)
    except Exception as error:  # TFDS raises many kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            [f"data.name: no prepared set '{options.name}' is found ({first}); {hint}"]
        ) from error
    kind = getattr(builder.info.file_format, "value", None)
    if kind != "array_record":
        raise DataError([f"data.name: '{options.name}' is stored as {kind}; {hint}"])
    return builder


def _find(tfds: Any, options: DataOptions) -> Any:
    if options.path and (at(options.path) / "dataset_info.json").exists():
        return tfds.builder_from_directory(at(options.path))
    folder = at(options.path) if options.path else None
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    return builder_from_files(options.name, data_dir=folder)


def check_tfds(options: DataOptions) -> list[str]:
    """Problems of the options; nothing is downloaded or read."""
    if f"{options.name}/".startswith(_OFFICIAL):
        return check_official(options.name.removeprefix(_OFFICIAL), options)
    if not options.name and not options.path:
        sets = ", ".join(_OFFICIAL + name for name in SETS)
        return [f"data.name: '' is empty; say which set of TFDS, for example one of {sets}"]
    if len(options.features) not in (1, 2):
        return [
            f"data.features: {options.features} must be one image that holds both halves, or two"
        ]
    return check_path(options, "data sets of TFDS") if options.path else []


def open_tfds(options: DataOptions, log: Log) -> Splits:
    """Opens a set, official or prepared by others, of which a copy is made for fast reading.

    Raises:
      DataError: there is no such set, or it is not sound.
    """
    raise_if(check_tfds(options))
    if options.name.startswith(_OFFICIAL):
        return open_official(options.name.removeprefix(_OFFICIAL), options, log)
    gathered = gather_tfds(options, log)
    raise_if(list(gathered.problems))
    return open_splits(gathered.sets, gathered.views, options, log)


def gather_tfds(options: DataOptions, log: Log) -> Gathered:
    """Copies what there is of a set if need be; where `open_tfds` raises, this tells."""
    if options.name.startswith(_OFFICIAL):
        return gather_official(options.name.removeprefix(_OFFICIAL), options, log)
    views = two_halves(options) if len(options.features) == 1 else two_files(options)
    try:
        raise_if(check_tfds(options))
        sets = _copied(options, log)
    except DataError as error:
        return Gathered({}, views, options, [], error.problems)
    return Gathered(sets, views, options, [], [])


def _copied(options: DataOptions, log: Log) -> dict[str, Prepared]:
    """The wanted splits.

    Raises:
      DataError: there are none such, or they cannot be read.
    """
    builder = _builder(options)
    there = f"there are {few(sorted(builder.info.splits))}"
    kinds = builder.info.features
    problems = [
        f"data.features: {name!r} is no feature of it; there are {few(sorted(kinds))}"
        for name in options.features
        if name not in kinds
    ]
    if options.train_split not in builder.info.splits:
        problems.append(f"data.train_split: no split '{options.train_split}'; {there}")
    if options.eval_split not in builder.info.splits and not options.hold_out:
        problems.append(f"eval.split: no split '{options.eval_split}'; {there}")
    raise_if(problems)
    cache = prepared_dir(options.prepared_dir)
    return {
        split: prepare(_Records(builder, split, options.features), Recipe(), cache, log)
        for split in dict.fromkeys((options.train_split, options.eval_split))
        if split in builder.info.splits
    }
