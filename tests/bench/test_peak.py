"""What devices could do at best."""

from __future__ import annotations

import jax
import pytest

from p2p_jax.bench import peak


@pytest.mark.parametrize(
    "kind, name, tera",
    [
        ("TPU v5 lite", "TPU v5e", 197),
        ("TPU v5", "TPU v5p", 459),
        ("TPU v6 lite", "TPU v6e", 918),
        ("TPU v4", "TPU v4", 275),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100", 989),
        ("NVIDIA H100 PCIe", "", None),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100", 312),
        ("cpu", "", None),
    ],
)
def test_data_sheets(kind, name, tera):
    class Device:
        device_kind = kind

    assert peak.known(kind) == name
    found = peak.sheet(Device(), "bfloat16")
    assert found == (tera and tera * 1e12)


def test_a_peak_is_measured():
    for precision in ("float32", "bfloat16"):
        assert 1e7 < peak.measured(jax.devices()[0], precision, size=128) < 1e13
