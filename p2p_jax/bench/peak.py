"""What a device could do at best: measured by matrix products, and as its data sheet says."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

_GIGA, _TERA = 1e9, 1e12
# Of one device: operations a second by precision, of dense products, and bytes a second of its
# memory. TPUs: the pages of each version at cloud.google.com/tpu/docs; they multiply in bfloat16
# and say nothing of float32. GPUs: NVIDIA's data sheets, without sparsity.
SHEETS: dict[str, dict[str, float]] = {
    "TPU v4": {"bfloat16": 275 * _TERA, "bandwidth": 1228 * _GIGA},
    "TPU v5e": {"bfloat16": 197 * _TERA, "bandwidth": 819 * _GIGA},
    "TPU v5p": {"bfloat16": 459 * _TERA, "bandwidth": 2765 * _GIGA},
    "TPU v6e": {"bfloat16": 918 * _TERA, "bandwidth": 1638 * _GIGA},
    "NVIDIA A100": {"bfloat16": 312 * _TERA, "tf32": 156 * _TERA, "float32": 19.5 * _TERA},
    "NVIDIA H100": {
        **{"bfloat16": 989 * _TERA, "tf32": 494 * _TERA, "float32": 67 * _TERA},
        "bandwidth": 3350 * _GIGA,
    },
    "NVIDIA H200": {
        **{"bfloat16": 989 * _TERA, "tf32": 494 * _TERA, "float32": 67 * _TERA},
        "bandwidth": 4800 * _GIGA,
    },
}
_OTHERWISE = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e"}
_SLOWER = ("PCIe", "NVL")  # of the same names, with other figures


def known(kind: str) -> str:
    """The key of `SHEETS` for what JAX calls a kind of device, or ''."""
    kind = _OTHERWISE.get(kind, kind)
    if any(word in kind for word in _SLOWER):
        return ""
    return next((name for name in SHEETS if kind.startswith(name)), "")


def sheet(device: Any, precision: str) -> float | None:
    """Operations a second that the data sheet promises, where it is known."""
    return SHEETS.get(known(device.device_kind), {}).get(precision)


def measured(device: Any, precision: str, size: int = 0) -> float:
    """Operations a second of matrix products on one device: the best of several.

    Args:
      device: which.
      precision: float32 (full products), tf32 or bfloat16.
      size: of the square matrices; 0: one that is large for the device.
    """
    size = size or (2048 if device.platform == "cpu" else 8192)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    how = {"tf32": "high", "bfloat16": "default"}.get(precision, "highest")
    matrix = jax.device_put(jnp.full((size, size), 1 / size, dtype), device)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=how))
    x = product(matrix, matrix).block_until_ready()
    count, best = 1, 0.0
    for _ in range(8):
        begin = time.perf_counter()
        for _ in range(count):
            x = product(x, matrix)
        x.block_until_ready()
        seconds = time.perf_counter() - begin
        best = max(best, 2 * size**3 * count / seconds)
        # Long enough that starting it takes nothing of it.
        count = min(100, max(count, round(count * 0.1 / seconds)))
    return best
