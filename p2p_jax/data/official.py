"""The six sets that the authors of pix2pix distribute, as a TFDS builder with a config each.

They are downloaded on first use, or read from an archive at hand, and prepared without being
unpacked. Splits are those of the archives.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from p2p_jax.data.archives import SPLITS
from p2p_jax.data.builders import (
    Prepared,
    Recipe,
    Row,
    content_of,
    features,
    locked,
    open_prepared,
    opened,
    prepared_dir,
    usable,
    write,
    write_index,
)
from p2p_jax.data.download import download
from p2p_jax.data.files import at, is_remote
from p2p_jax.data.folder import (
    HALVES,
    Gathered,
    check_folder,
    check_path,
    gather_folder,
    open_folder,
    two_halves,
)
from p2p_jax.data.listing import few
from p2p_jax.data.origins import Archive
from p2p_jax.data.pairs import DataError, DataOptions, Log, Splits, raise_if
from p2p_jax.data.splits import open_splits

URL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets"
VERSION = "2.0.0"  # of what is prepared
SETS = {
    "facades": "facades (A) and their labels (B), CMP Facade Database",
    "cityscapes": "street scenes (A) and their labels (B), Cityscapes",
    "maps": "aerial photos (A) and maps (B) of New York, Google Maps",
    "edges2shoes": "edges (A) and photos (B) of shoes, UT Zappos50K",
    "edges2handbags": "edges (A) and photos (B) of handbags, Amazon",
    "night2day": "night (A) and day (B) of the same webcams, Transient Attributes",
}


@functools.cache
def builder_class() -> type:
    """The TFDS builder; a function, because TFDS takes half a second to import."""
    import tensorflow_datasets as tfds

    class Pix2pix(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Side-by-side images as their files have them, and names; one config a set."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = tuple(
            tfds.core.BuilderConfig(name=name, description=text) for name, text in SETS.items()
        )
        # Nothing lies beside the class (checksums, citations); looking for it would need
        # importlib_resources, which TFDS imports but does not require.
        code_path = None

        def __init__(self, archive: Archive, log: Log, **kwargs: Any) -> None:
            self._archive, self._log = archive, log
            self.rows: dict[str, tuple[Row, ...]] = {}  # by split, once prepared
            super().__init__(**kwargs)

        def _info(self):
            info = tfds.core.DatasetInfo(
                builder=self,
                description="Pairs of images side by side (Isola et al. 2017).",
                features=features(),
                homepage="https://phillipi.github.io/pix2pix",
                disable_shuffling=True,
            )
            # It would leave an empty folder in the system's temporary one each time.
            info.initialize_from_bucket = lambda: None
            return info

        def _download_and_prepare(self, dl_manager, download_config=None):
            info = self._info()  # of the temporary folder that is ours for now
            self.rows = write(self._archive.blobs(), Recipe(), info, self._log)
            self.info.set_splits(info.splits)

        def _split_generators(self, dl_manager):
            raise NotImplementedError  # abstract in the base; the archive is written in one pass

        def _generate_examples(self):
            raise NotImplementedError

        def _log_download_bytes(self) -> None:
            """Prints nothing: `log` has told."""

        def _log_download_done(self) -> None:
            """Prints nothing: `log` will tell."""

    return Pix2pix


def check_official(name: str, options: DataOptions) -> list[str]:
    """Problems of the options; nothing is downloaded."""
    if name not in SETS:
        return [f"data.name: 'pix2pix/{name}' is not one of pix2pix/{', pix2pix/'.join(SETS)}"]
    if not options.path:
        return []
    wants = f"the set: {name}.tar.gz, or what was unpacked of it"
    if _unpacked(options):
        return check_folder(HALVES, options)
    wrong = check_path(options, wants, folder=False)
    if not wrong and is_remote(options.path):
        return [f"data.path: '{options.path}' must be a file of this machine, or be unpacked"]
    return wrong


def _unpacked(options: DataOptions) -> bool:
    """Whether `data.path` is the folder that is in the archive, rather than that."""
    try:
        return bool(options.path) and at(options.path).is_dir()
    except (OSError, ImportError):  # `check_path` tells
        return False


def open_official(name: str, options: DataOptions, log: Log) -> Splits:
    """Downloads and prepares a set if need be, and opens it.

    Raises:
      DataError: it cannot be downloaded, or is not sound.
    """
    raise_if(check_official(name, options))
    if _unpacked(options):
        return open_folder(HALVES, two_halves(options), options, log)
    gathered = gather_official(name, options, log)
    raise_if(list(gathered.problems))
    return open_splits(gathered.sets, gathered.views, options, log, gathered.notes)


def gather_official(name: str, options: DataOptions, log: Log) -> Gathered:
    """Downloads and prepares a set if need be; where `open_official` raises, this tells."""
    views, problems = two_halves(options), check_official(name, options)
    if _unpacked(options) and name in SETS:
        return gather_folder(HALVES, views, options, log)
    if problems:
        return Gathered({}, views, options, [], problems)
    try:
        prepared = _prepared(name, options, log)
    except DataError as error:
        return Gathered({}, views, options, [], error.problems)
    there = f"pix2pix/{name} has {few(sorted(prepared.rows))}"
    if options.train_split not in prepared.rows:
        problems.append(f"data.train_split: there is no split '{options.train_split}'; {there}")
    if options.eval_split not in prepared.rows and not options.hold_out:
        problems.append(f"eval.split: there is no split '{options.eval_split}'; {there}")
    wanted = dict.fromkeys((options.train_split, options.eval_split))
    sets = {split: prepared for split in wanted if split in prepared.rows}
    notes = []
    if prepared.others:
        notes.append(f"files of the archive that were not used: {few(prepared.others)}.")
    return Gathered(sets, views, options, notes, problems)


def _prepared(name: str, options: DataOptions, log: Log) -> Prepared:
    cache = prepared_dir(options.prepared_dir)
    with usable(cache):
        if options.path:
            splits = {*SPLITS, options.train_split, options.eval_split} - {""}
            archive = Archive(Path(options.path).expanduser(), splits)
            with locked(cache, log):
                return _build(name, archive, cache, log)
        prepared = _known(cache, name)
        if prepared is None:
            with locked(cache, log):
                prepared = _known(cache, name) or _of_download(name, options, cache, log)
        _download_of(cache, name).unlink(missing_ok=True)  # left where the process was killed
        return prepared


def _download_of(cache: Path, name: str) -> Path:
    return cache / "official" / f"{name}.tar.gz"


def _known(cache: Path, name: str) -> Prepared | None:
    """What a download became; it is removed once it is prepared, and a file tells this."""
    try:
        known = json.loads((cache / "official" / f"{name}.json").read_text())
        return opened(_folder(cache, name, known["content"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_download(name: str, options: DataOptions, cache: Path, log: Log) -> Prepared:
    """Downloads a set and prepares it; of one that turns out unsound nothing is kept."""
    path = _download_of(cache, name)
    download(f"{(options.url or URL).rstrip('/')}/{name}.tar.gz", path, log)
    try:
        prepared = _build(name, Archive(path), cache, log)
    except DataError:  # so that running again helps
        path.unlink(missing_ok=True)
        raise
    path.with_name(f"{name}.json").write_text(json.dumps({"content": prepared.content}))
    return prepared


def _folder(cache: Path, name: str, content: str) -> Path:
    """Where a set is prepared: in the layout of TFDS, below a folder for its content."""
    return cache / f"official-{content[:32]}" / "pix2pix" / name / VERSION


def _build(name: str, archive: Archive, cache: Path, log: Log) -> Prepared:
    """Opens the prepared set of an archive, preparing it if there is none; under the lock."""
    import tensorflow_datasets as tfds

    content, before = content_of(archive, cache, log)
    target = _folder(cache, name, content)
    prepared = opened(target)
    if prepared is not None:
        return prepared
    for junk in (target, *target.parent.glob("*incomplete*")):  # of a killed process
        shutil.rmtree(junk, ignore_errors=True)
    log(f"preparing pix2pix/{name} from {archive.what}")
    tfds.disable_progress_bar()  # progress goes through `log`
    builder = builder_class()(
        archive, log, config=name, data_dir=target.parents[2], file_format="array_record"
    )
    try:
        builder.download_and_prepare(
            download_dir=cache / "official",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        if archive.stamp()[0] != before:
            raise DataError([f"data.path: {archive.what} changed while it was read; run again"])
        write_index(target, content, builder.rows, archive.others)
    except BaseException:  # else an empty folder of another archive would stay each time
        shutil.rmtree(target.parents[2], ignore_errors=True)
        raise
    prepared = open_prepared(target)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in prepared.rows.items())
    log(f"prepared pix2pix/{name}: {counts}")
    return prepared
