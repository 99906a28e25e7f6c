"""The model card of an export, README.md: what the model is, and how to use each file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from p2p_jax import __version__, report
from p2p_jax.data import SOURCES
from p2p_jax.exporting import tensors
from p2p_jax.exporting.translation import Translation
from p2p_jax.inference import Inference
from p2p_jax.state import count
from p2p_jax.storage import AnyPath

_STABLEHLO = """\
### model.stablehlo

Needs `jax` and `flatbuffers`; runs on CPU, CUDA and TPU.

```python
import jax, jax.export, pathlib
program = bytearray(pathlib.Path("model.stablehlo").read_bytes())
translate = jax.jit(jax.export.deserialize(program).call)
translated = translate(images{seeds})
```

JAX reads such files for six months after the version that wrote them ({jax}); to keep a model for
longer, keep the weights.
"""
_SAFETENSORS = """\
### model.safetensors

Weights by path, in the layout of p2p_jax (kernels `[height, width, in, out]`); config.json says
what network they make, export.json the rest. Needs `p2p_jax`.

```python
from p2p_jax import export
translate = export.load(".")
translated = translate(images)
```
"""
_ONNX = """\
### model.onnx

Needs `onnxruntime`, or any other runtime of ONNX operators of set {opset}; {sizes}.

```python
import onnxruntime
translate = onnxruntime.InferenceSession("model.onnx")
(translated,) = translate.run(None, {{"images": images}})
```
"""


def card(
    inference: Inference,
    translation: Translation,
    formats: Sequence[str],
    workdir: AnyPath,
    versions: dict[str, Any],
) -> str:
    """The text of README.md.

    Args:
      inference: what is exported.
      translation: likewise.
      formats: that there are files of.
      workdir: of the run, whose evaluations of the same weights are told.
      versions: what to tell of them: `jax`, and of ONNX the `opset`.
    """
    seeds = ", seeds" * translation.seeded
    usage = {
        "stablehlo": _STABLEHLO.format(seeds=seeds, **versions),
        "safetensors": _SAFETENSORS,
        "onnx": _ONNX.format(sizes=translation.sizes(), **versions),
    }
    parts = [
        _head(inference),
        _about(inference, translation, workdir),
        "## Use\n\n" + _interface(translation) + "\n" + "\n".join(usage[name] for name in formats),
        _metrics(inference, workdir, translation.seeded),
        "## Licence\n\nNone is stated. Whoever publishes this model chooses one, and sees to it "
        "that the pictures it was trained on allow that.\n",
    ]
    return "\n".join(parts)


def _head(inference: Inference) -> str:
    """What hubs read."""
    return (
        "---\nlibrary_name: p2p_jax\npipeline_tag: image-to-image\ntags:\n- pix2pix\n- jax\n---\n\n"
        f"# {_data(inference)}: image-to-image translation\n"
    )


def _data(inference: Inference) -> str:
    data = inference.config.data
    return data.name or tensors.portable(inference.config)["data"]["path"] or data.source


def _about(inference: Inference, translation: Translation, workdir: AnyPath) -> str:
    config, size = inference.config, "x".join(map(str, inference.config.data.crop_size))
    data = report.last_start(workdir).get("data", {}).get("train", {})
    pairs = f"{data['examples']:,} pairs of " if "examples" in data else ""
    task = SOURCES[config.data.source].task if config.data.task == "auto" else config.data.task
    statistics = "running statistics" if inference.running else "each image by itself"
    weights = f"{count(inference.params):,} parameters" + ", averaged" * inference.averaged
    other = ("adversarial", "disc", "gradient_penalty")
    losses = [(k, v) for k, v in config.loss.items() if k not in other and v]
    rows = [
        ("generator", f"{config.model.generator.name}, {weights}"),
        ("normalises", f"{statistics} ({config.model.generator.norm})"),
        ("dropout and noise", "on, by seeds" if translation.seeded else "off"),
        ("task", task),
        ("trained on", f"{pairs}{_data(inference)}, {config.data.direction}, at {size}"),
        ("steps", f"{inference.step:,}, {config.train.batch_size} pairs each"),
        ("loss", f"{config.loss.adversarial}; " + ", ".join(f"{k} {v:g}" for k, v in losses)),
        ("made by", f"p2p_jax {__version__}"),
    ]
    return _table(("model", ""), rows)


def _interface(translation: Translation) -> str:
    seeds = "- `seeds`: uint32 `[batch]`; equal ones draw equal dropout and noise, in any batch\n"
    return (
        f"- `images`: `[batch, height, width, {translation.given.channels}]`, {translation.given}\n"
        + seeds * translation.seeded
        + f"- `translated`: `[batch, height, width, {translation.made.channels}]`, "
        f"{translation.made}\n- sizes: {translation.sizes()}; others are refused\n"
    )


def _metrics(inference: Inference, workdir: AnyPath, dropout: bool) -> str:
    """Tables of the run's evaluations of these weights, normalised and dropped as here."""
    same = {
        "norm_stats": "running" if inference.running else "batch",
        "dropout": dropout,
        "ema": inference.averaged,
    }
    parts = []
    for path in sorted(workdir.glob("eval/*/*/metrics.json")):
        try:
            found = json.loads(path.read_text())
            if found["step"] != inference.step:
                continue
            differs = [f"{key} {found[key]}" for key, value in same.items() if found[key] != value]
            told = f"of {found['examples']} pairs of the split `{found['split']}`"
            told += f" (evaluated otherwise than exported: {', '.join(differs)})" * bool(differs)
            parts.append(f"Evaluation {told}:\n\n" + _table(("figure", "value"), _figures(found)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # an evaluation under way, or not one of ours
    return "## Metrics\n\n" + ("\n".join(parts) or "The run holds no evaluation of this step.\n")


def _figures(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name in found["better"]:
        low_high = found.get("intervals", {}).get(name)
        interval = f" (95%: {low_high[0]:.4g} to {low_high[1]:.4g})" if low_high else ""
        better = {"min": "lower is better", "max": "higher is better"}[found["better"][name]]
        label = f"{name.removeprefix('eval/')}, {better}"
        rows.append((label, report.number(found.get(name)) + interval))
    return rows


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {a} | {b} |" for a, b in (head, ("---", "---"), *rows)]
    return "\n".join(lines) + "\n"
