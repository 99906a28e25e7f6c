"""A folder of exported files: written, tried and put in its place."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from p2p_jax import mesh
from p2p_jax.exporting import formats, tensors
from p2p_jax.exporting.card import card
from p2p_jax.exporting.graph import OPSET
from p2p_jax.exporting.translation import Translation, translation
from p2p_jax.inference import Inference
from p2p_jax.process import Failure
from p2p_jax.report import write_json
from p2p_jax.storage import AnyPath, write_atomic

TOLERANCE = 1e-4  # of the range from low to high, or one level where numbers are whole


def write(
    output: Path,
    chosen: Sequence[str],
    inference: Inference,
    exported: Translation,
    workdir: AnyPath,
    note: Callable[[str], None],
) -> list[tuple[str, str]]:
    """Writes a folder beside its place, tries each file of it, and moves it there.

    Args:
      output: where to; nothing yet, or an empty folder.
      chosen: the formats.
      inference: what is exported.
      exported: the function of it.
      workdir: of the run.
      note: is told what takes time.

    Returns:
      Of each format what came out of trying it.

    Raises:
      Failure: a file gives something else than what it was made of.
    """
    near = output.absolute().parent
    while not near.is_dir():
        near = near.parent
    with tempfile.TemporaryDirectory(prefix=".export-", dir=near, ignore_cleanup_errors=True) as d:
        stage, rows = Path(d) / "exported", []
        stage.mkdir()
        given, wanted = _example(exported, inference)
        for name in chosen:
            note(f"{name}: writing, and running it beside what it is made of")
            got = _WRITERS[name](stage, inference, exported, given)
            rows.append((name, _compared(name, got, wanted, exported)))
        versions = {"jax": jax.__version__, "opset": OPSET}
        text = card(inference, exported, chosen, workdir, versions)
        write_atomic(stage / "README.md", text.encode())
        output.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(output)  # over an empty folder at most
    return rows


def _example(
    exported: Translation, inference: Inference
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """What each file is tried with, and what it should make of it."""
    step, side = exported.step, exported.given
    crop = [max(-(-n // step) * step, exported.least) for n in inference.config.data.crop_size]
    shape = (1, *(exported.size or crop), side.channels)
    drawn = np.random.default_rng(0).uniform(side.low, side.high, shape)
    whole = np.issubdtype(side.dtype, np.integer)
    images = (np.rint(drawn) if whole else drawn).astype(side.dtype)
    given = (images, *(np.array([7], np.uint32),) * exported.seeded)
    return given, np.asarray(jax.jit(exported.fn)(*given))


def _stablehlo(folder: Path, inference: Inference, exported: Translation, given: Any) -> Any:
    write_atomic(folder / formats.STABLEHLO, formats.to_stablehlo(exported))
    found = export.deserialize(bytearray((folder / formats.STABLEHLO).read_bytes()))
    return jax.jit(found.call)(*given)


def _safetensors(folder: Path, inference: Inference, exported: Translation, given: Any) -> Any:
    write_atomic(folder / tensors.FILE, tensors.packed(inference))
    write_json(folder / "config.json", tensors.portable(inference.config))
    write_json(folder / tensors.ABOUT, tensors.about(inference))
    mesh.use_precision(inference.config.train.precision)
    found = tensors.load_safetensors(folder)
    mesh.use_precision("float32")
    return jax.jit(translation(found, exported.seeded, exported.size).fn)(*given)


def _onnx(folder: Path, inference: Inference, exported: Translation, given: Any) -> Any:
    try:
        write_atomic(folder / formats.ONNX, formats.to_onnx(exported))
    except NotImplementedError as error:
        raise Failure(f"--format: onnx cannot hold this network: {error}") from error
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / formats.ONNX, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": given[0]})[0]


_WRITERS: dict[str, Callable[[Path, Inference, Translation, Any], Any]] = {
    "stablehlo": _stablehlo,
    "safetensors": _safetensors,
    "onnx": _onnx,
}


def _compared(name: str, got: Any, wanted: np.ndarray, exported: Translation) -> str:
    """What to tell of a file that was run.

    Raises:
      Failure: it gives something else than what it was made of.
    """
    if got is None:
        return "written, but not tried: onnxruntime is not installed"
    off = np.abs(np.asarray(got).astype(np.float64) - wanted)
    side = exported.made
    if "class" in side.what:  # another colour where two are about as likely
        share, unit = float((off > 0).mean()), "of the numbers differ"
        allowed = 1e-3
    elif np.issubdtype(side.dtype, np.integer):
        share, unit = float(off.max()), "levels apart at most"
        allowed = max(1.0, TOLERANCE * (side.high - side.low))
    else:
        share, unit = float(off.max() / (side.high - side.low)), "of the range apart at most"
        allowed = TOLERANCE
    if np.asarray(got).shape != wanted.shape or not share <= allowed:
        raise Failure(f"{name}: gives something else than it should: {share:.3g} {unit}")
    return f"tried: {share:.2g} {unit}"
