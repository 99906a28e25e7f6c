"""What figures depend on: processor, memory, devices, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from p2p_jax.bench.table import size

_PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "simplejpeg", "pillow", "libtpu", "torch"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and the versions of what is installed."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": cores(),
        "memory": memory(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `machine` found, as rows of a name and a text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        ("processor", f"{found['cpu']}, {found['cores']} cores, {size(found['memory'])} of memory"),
        ("versions", versions),
    ]


def devices() -> dict[str, Any]:
    """The devices that JAX computes on: platform, kind and number; takes hold of them."""
    import jax

    there = jax.devices()
    return {
        "platform": there[0].platform,
        "kind": there[0].device_kind,
        "count": len(there),
        "runtime": there[0].client.platform_version.splitlines()[0],
    }
