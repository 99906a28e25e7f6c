"""Who may import whom: the layers of the package, read from its syntax trees."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "p2p_jax"
BELOW = object()  # every module of an earlier line

# From bottom to top: a module, and what it may import of the package. Names of earlier lines only,
# so nothing can import upward. A package stands for the modules in it. Each may also import the
# root package, which holds a version, and imports nothing until it is asked for `load`.
LAYERS: dict[str, set[str] | object] = {
    "words": set(),
    "storage": set(),
    "lease": {"storage"},
    "process": {"lease", "storage"},
    "images": set(),
    "metrics": set(),
    "resampling": set(),
    "distances": set(),
    "losses": {"metrics"},
    "optim": set(),
    "colour": set(),
    "counts": {"colour", "resampling"},
    "augment": {"colour", "images"},
    "tasks": {"colour", "images"},
    "models.options": set(),
    "models.inception": set(),
    "models.perceptual": set(),
    "models.products": set(),
    "models.conv": {"models.products"},
    "models.norms": {"models.conv"},
    "models.bands": set(),
    "models.layers": {"models.bands", "models.conv", "models.norms"},
    "models.unet": {"models.conv", "models.layers", "models.options"},
    "models.resnet": {"models.conv", "models.layers", "models.options"},
    "models.patchgan": {"models.conv", "models.layers", "models.options"},
    "models": {"models.unet", "models.resnet", "models.patchgan"},
    "scores": {
        *("counts", "distances", "metrics", "models.inception", "models.perceptual", "resampling"),
    },
    "data.synthetic": set(),
    "data.refusals": set(),
    "data.exif": set(),
    "data.pillow": {"data.exif", "data.refusals"},
    "data.png": {"data.exif", "data.pillow", "data.refusals"},
    "data.tiff": {"data.refusals"},
    "data.decoding": {"data.exif", "data.pillow", "data.png", "data.refusals", "data.tiff"},
    "data.labels": set(),
    "data.pairs": {"words"},
    "data.files": {"data.pairs", "storage"},
    "data.listing": {"data.decoding", "data.files"},
    "data.walk": {"data.decoding", "data.pairs"},
    "data.zips": {"data.walk"},
    "data.archives": {"data.decoding", "data.pairs", "data.walk", "data.zips"},
    "data.progress": {"data.pairs"},
    "data.partial": {"data.pairs", "data.progress"},
    "data.download": {"data.pairs", "data.partial", "data.progress"},
    "data.builders": {"data.decoding", "data.files", "data.pairs"},
    "data.origins": {
        *("data.archives", "data.builders", "data.files", "data.listing", "data.pairs"),
    },
    "data.recipes": {"data.builders", "data.decoding", "data.labels"},
    "data.records": {
        "data.files",
        *("data.builders", "data.decoding", "data.listing", "data.pairs", "data.recipes"),
    },
    "data.substitute": {"data.pairs"},
    "data.splits": {"data.builders", "data.pairs", "data.records", "data.substitute"},
    "data.folder": {
        *("data.builders", "data.decoding", "data.files", "data.listing", "data.origins"),
        *("data.pairs", "data.records", "data.splits"),
    },
    "data.official": {
        *("data.archives", "data.builders", "data.download", "data.files", "data.folder"),
        *("data.listing", "data.origins", "data.pairs", "data.splits"),
    },
    "data.catalog": {
        *("data.builders", "data.files", "data.folder", "data.listing", "data.official"),
        *("data.origins", "data.pairs", "data.splits"),
    },
    "data.sources": {
        *("data.builders", "data.catalog", "data.files", "data.folder", "data.labels"),
        *("data.pairs", "data.recipes", "data.records", "data.synthetic"),
    },
    "data.survey": {
        *("data.builders", "data.decoding", "data.folder", "data.pairs", "data.records"),
        *("data.sources", "data.splits"),
    },
    "data.fitting": {"data.pairs"},
    "data.frames": {"data.fitting", "data.pairs", "data.substitute"},
    "data.order": set(),
    "data.buffers": set(),
    "data.pipeline": {"data.buffers", "data.frames", "data.order", "data.pairs"},
    "data": {
        *("data.fitting", "data.frames", "data.labels", "data.order", "data.pairs"),
        *("data.pipeline", "data.sources"),
    },
    "mesh": set(),
    "peers": {"process", "words"},
    "sharing": {"peers", "storage", "words"},
    "ledger": set(),
    "growing": {"storage"},
    "report": {"growing", "process", "storage"},
    "pictures": {"storage"},
    "tally": {"process"},
    "console": {"report"},
    "thumbs": {"storage"},
    "page": {"report", "storage", "thumbs"},
    "zero": set(),
    "state": {"augment", "images", "losses", "tasks", "zero"},
    "objectives": {"state", "losses"},
    "readers": set(),
    "update": {"state", "objectives", "images", "models.bands", "zero"},
    "step": {"state", "objectives", "images", "readers", "update"},
    "store": {"data", "mesh", "readers"},
    "fingerprints": set(),
    "manager": {"peers", "storage"},
    "restore": {"fingerprints", "manager", "peers", "process", "storage"},
    "checkpoint": {
        *("fingerprints", "manager", "peers", "process", "restore", "state", "storage"),
    },
    "config": {"losses", "words"},
    "board": {"config", "storage"},
    "figures": {"data.labels", "metrics", "scores", "storage"},
    "dialects": {"config"},
    "older": set(),
    "command": {"process", "words"},
    "networks": {
        *("augment", "config", "mesh", "models", "losses", "optim", "state", "tasks"),
        *("data", "data.labels"),
    },
    "rules": {
        *("config", "figures", "networks", "data", "models", "models.conv"),
        *("images", "losses", "metrics", "optim", "tasks"),
    },
    "validate": {
        *("board", "config", "figures", "networks", "data", "losses", "metrics"),
        *("models.bands", "rules", "tasks"),
    },
    "flags": {"config", "validate", "mesh", "older", "peers", "storage", "words"},
    "weights.layout": {"config"},
    "weights.files": {"config", "report", "weights.layout"},
    "judges": {
        *("config", "models.inception", "models.perceptual", "scores", "weights.files"),
        "weights.layout",
    },
    "build": {
        *("config", "figures", "judges", "networks", "validate", "state", "objectives", "mesh"),
        *("data", "data.labels", "images", "losses", "metrics", "optim", "scores", "tasks"),
    },
    "summary": {"build", "data", "rules", "state"},
    "finetune": {
        *("networks", "checkpoint", "config", "console", "flags", "manager", "mesh", "state"),
        "storage",
    },
    "weights": set(),
    "weights.detect": {"config", "weights.layout"},
    "weights.export": {
        *("config", "models", "networks", "weights.layout", "weights.detect"),
    },
    "weights.load": {
        *("config", "metrics", "state", "networks", "checkpoint", "mesh", "report", "console"),
        *("weights.layout", "weights.detect"),
    },
    "convert": {
        *("config", "dialects", "validate", "flags", "networks", "command", "finetune", "mesh"),
        *("console", "weights.layout", "weights.files", "weights.detect", "weights.export"),
        *("storage", "weights.load", "words"),
    },
    "bench.rows": set(),
    "bench.table": {"bench.rows"},
    "bench.machine": {"bench.table"},
    "bench.rates": {"data"},
    "contact": {
        *("data", "data.frames", "data.pairs", "images", "pictures", "report", "state", "update"),
    },
    "inspection": {
        *("bench.rates", "build", "config", "contact", "metrics", "networks", "state", "validate"),
        *("data", "data.fitting", "data.pipeline", "data.survey"),
    },
    "inspect_data": {
        *("command", "config", "console", "flags", "inspection", "mesh", "report"),
        *("bench.machine", "bench.table"),
        *("validate", "data", "data.files", "data.survey"),
        "words",
    },
    "gallery": {"build", "data", "data.labels", "pictures", "step", "storage"},
    "begin": {
        *("build", "checkpoint", "console", "data", "finetune", "ledger", "manager", "mesh"),
        *("networks", "readers", "state", "step", "storage", "store"),
    },
    "inference": {
        *("build", "config", "data", "finetune", "flags", "mesh", "networks", "report"),
        *("state", "storage"),
    },
    "tiles": set(),
    "stored": {"data", "data.decoding", "data.labels", "inference", "networks", "step"},
    "runner": {"inference", "mesh", "process", "step"},
    "canvases": {"inference", "networks", "tiles"},
    "translator": {
        *("canvases", "config", "data", "data.frames", "flags", "inference", "mesh", "runner"),
        *("storage", "stored", "tiles"),
    },
    "inputs": {"data.decoding", "data.files", "data.listing", "words"},
    "results": {"pictures", "storage"},
    "progress": {"console"},
    "jobs": {
        *("console", "data", "data.files", "inputs", "progress", "results", "tiles", "translator"),
    },
    "predict": {
        *("command", "config", "console", "flags", "inputs", "jobs", "mesh", "process", "tiles"),
        *("translator", "words"),
    },
    "segmenter": {
        *("config", "data.labels", "images", "inference", "mesh", "networks", "words"),
    },
    "measures": {"build", "figures", "mesh", "peers", "scores", "segmenter", "step"},
    "early": {"build", "report"},
    "evaluated": {"config", "flags", "report", "storage"},
    "comparison": {"evaluated", "report"},
    "compare": {
        *("command", "comparison", "config", "console", "evaluated", "page", "report", "storage"),
        *("thumbs", "words"),
    },
    "alike": {"config", "losses"},
    "space": {"config", "mesh", "validate", "words"},
    "sweeping.tied": set(),
    "sweeping.places": {"words"},
    "sweeping.owners": {"process"},
    "sweeping.study": {"process", "space", "sweeping.owners"},
    "sweeping.child": {"report", "sweeping.places", "sweeping.tied"},
    "sweeping.running": {
        *("console", "process", "sweeping.child", "sweeping.places", "sweeping.study"),
    },
    "sweeping.controller": {
        *("console", "process", "report", "sweeping.owners", "sweeping.places"),
        *("sweeping.running", "sweeping.study"),
    },
    "sweeping.charts": {"page", "report", "storage", "sweeping.running", "sweeping.study"},
    "sweeping.results": {
        *("console", "report", "sweeping.charts", "sweeping.running", "sweeping.study"),
    },
    "sweeping.options": {
        *("alike", "config", "figures", "flags", "space", "storage", "sweeping.places"),
        "sweeping.study",
        *("validate", "words"),
    },
    "sweeping.record": {
        *("config", "report", "sweeping.options", "sweeping.owners", "sweeping.study", "words"),
    },
    "sweeping.command": {
        *("console", "process", "report", "space", "sweeping.controller", "sweeping.options"),
        *("sweeping.owners", "sweeping.record", "sweeping.results", "sweeping.running"),
        "sweeping.study",
    },
    "sweeping": set(),
    "sweep": {"command", "process", "sweeping.command", "words"},
    "demo_inks": {"config", "data", "data.synthetic"},
    "demo_pictures": {
        *("config", "data.decoding", "data.frames", "data.labels", "images", "storage"),
        "translator",
    },
    "demo_server": {"demo_pictures"},
    "demo": {
        *("canvases", "command", "console", "demo_inks", "demo_pictures", "demo_server", "flags"),
        *("mesh", "runner", "translator", "words"),
    },
    "exporting.graph": set(),
    "exporting.operators": {"exporting.graph"},
    "exporting.program": {"exporting.graph", "exporting.operators"},
    "exporting.translation": {"images", "inference", "models.conv"},
    "exporting.formats": {"exporting.graph", "exporting.program", "exporting.translation"},
    "exporting.tensors": {
        *("build", "config", "data", "flags", "inference", "mesh", "networks"),
    },
    "exporting.card": {
        *("data", "exporting.tensors", "exporting.translation", "inference", "report", "state"),
        "storage",
    },
    "exporting.folder": {
        *("exporting.card", "exporting.formats", "exporting.graph", "exporting.tensors"),
        *("exporting.translation", "inference", "mesh", "process", "report", "storage"),
    },
    "exporting": set(),
    "export": BELOW,
    "evaluate": BELOW,
    "train": BELOW,
    "resuming": {"build", "config", "flags", "storage"},
    "main": BELOW,
    "lockstep": BELOW,
    "members": BELOW,
    "bench.jpegs": {"bench.machine"},
    "bench.nets": {
        *("augment", "losses", "mesh", "models", "models.conv", "models.layers", "models.options"),
        *("objectives", "optim", "state", "tasks"),
    },
    "bench.peak": set(),
    "bench.traffic": set(),
    "bench.programs": {
        *("bench.nets", "bench.peak", "bench.rows", "bench.traffic", "objectives", "state", "step"),
        "words",
    },
    # What they do with a config is in functions that import when they are called.
    "bench.subject": {"bench.nets", "bench.rows", "build", "config", "networks", "state"},
    "bench.running": {
        *("bench.nets", "bench.programs", "bench.subject", "images", "mesh", "objectives"),
        *("readers", "state", "step"),
    },
    "bench.torch_forms": set(),
    "bench.torch_nets": set(),
    "bench.torch_step": {"bench.torch_forms", "bench.torch_nets"},
    "bench.step": {
        *("bench.peak", "bench.rows", "bench.running", "bench.subject", "bench.torch_step", "mesh"),
        "words",
    },
    "bench.data": BELOW,
    "bench.loop": BELOW,
    "bench.start": BELOW,
    "bench.facades": {
        *("bench.nets", "mesh", "metrics", "objectives", "readers", "state", "step", "words"),
    },
    "bench.clock": set(),
    "bench.measuring": {
        *("bench.clock", "bench.facades", "bench.rows", "bench.step", "bench.table"),
    },
    "bench.accelerator_step": {
        *("bench.measuring", "bench.rows", "bench.step", "bench.subject", "bench.torch_step"),
    },
    "bench.accelerator_facades": {
        *("bench.clock", "bench.facades", "bench.measuring", "bench.nets", "bench.rows"),
        *("mesh", "state"),
    },
    "bench.accelerator": {
        *("bench.accelerator_facades", "bench.accelerator_step", "bench.clock", "bench.facades"),
        *("bench.machine", "bench.measuring", "bench.nets", "bench.rows", "command", "words"),
    },
    "bench": set(),
    "benchmark": BELOW,
}

# And all of models.
PURE = (
    *("images", "losses", "metrics", "optim", "colour", "augment", "tasks", "state", "objectives"),
    *("readers", "step", "scores", "counts", "distances", "resampling"),
)
EFFECTS = {
    *("os", "sys", "time", "pathlib", "absl", "logging", "ml_collections"),
    *("tensorflow_datasets", "grain", "PIL", "cv2", "tifffile", "imagecodecs"),
}


def modules() -> dict[str, str]:
    """Sources by module name without the package's, which itself is ''."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return found


def imports(name: str, source: str, known: Mapping[str, object]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of each import, wherever in the file it stands.

    `from package import module` is an import of the module where `known` has it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: write the import in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix(f"{PACKAGE}.") in known
                yield node.lineno, full if is_module else str(node.module)


def violations(sources: Mapping[str, str], layers: Mapping[str, object]) -> list[str]:
    """Each import of the package that the table does not allow."""
    found = []
    order = list(layers)
    for name, source in sources.items():
        allowed = layers.get(name, set()) if name else {"translator"}
        if allowed is BELOW:
            allowed = set(order[: order.index(name)])
        assert isinstance(allowed, set)
        for line, target in imports(name, source, sources):
            if target == PACKAGE or not f"{target}.".startswith(f"{PACKAGE}."):
                continue
            target = target.removeprefix(f"{PACKAGE}.")
            if not {target, target.rpartition(".")[0]} & allowed:
                found.append(f"{PACKAGE}.{name}, line {line}: may not import {PACKAGE}.{target}")
    return found


def test_every_module_has_a_line_in_the_table():
    present = set(modules()) - {""}
    assert present - LAYERS.keys() == set(), "add these modules to LAYERS, where they belong"
    assert LAYERS.keys() - present == set(), "take these lines out of LAYERS: no such module"


def test_the_table_names_only_earlier_lines():
    order = list(LAYERS)
    for name, allowed in LAYERS.items():
        if allowed is not BELOW:
            assert set(allowed) <= set(order[: order.index(name)]), name


def test_nothing_imports_upward():
    assert violations(modules(), LAYERS) == []


@pytest.mark.parametrize(
    "source",
    [
        "import p2p_jax.train",
        "from p2p_jax import train",
        "from p2p_jax.train import train",
        "import numpy, p2p_jax.train as t",
        "def f():\n    from p2p_jax import objectives, train",
    ],
)
def test_an_import_upward_is_found(source):
    sources = {"step": source, "train": "import p2p_jax.step", "objectives": ""}
    assert len(violations(sources, LAYERS)) == 1
    assert "step, line" in violations(sources, LAYERS)[0]
    assert violations(sources | {"step": "from p2p_jax import objectives"}, LAYERS) == []


def test_a_package_stands_for_its_modules_but_not_the_other_way_round():
    sources = {"models": "", "models.unet": "", "build": "import p2p_jax.models.unet"}
    assert violations(sources, {"models.unet": set(), "build": {"models"}}) == []
    sources["build"] = "import p2p_jax.models"
    assert len(violations(sources, {"models.unet": set(), "build": {"models.unet"}})) == 1


def test_a_module_that_the_table_lacks_may_import_nothing():
    assert violations({"new": "from p2p_jax import losses", "losses": ""}, LAYERS)


def test_pure_modules_import_no_effects():
    sources = modules()
    pure = [name for name in sources if name in PURE or name.split(".")[0] == "models"]
    assert set(PURE) < set(pure)
    found = [
        f"{PACKAGE}.{name}, line {line}: imports {target}, but is to be pure"
        for name in pure
        for line, target in imports(name, sources[name], sources)
        if target.split(".")[0] in EFFECTS
    ]
    assert found == []


@pytest.mark.parametrize("name", ["models", "losses", "colour", "step", "checkpoint"])
def test_imports_with_jax_flax_optax_orbax_and_numpy_alone(name):
    # rich is not on the list because flax itself imports it.
    blocked = ["tensorflow", "tensorflow_datasets", "grain", "ml_collections", "array_record"]
    blocked += ["PIL", "simplejpeg", "cv2", "tifffile", "imagecodecs"]
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport {PACKAGE}.{name}\n"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
