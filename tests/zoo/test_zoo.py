"""A part of the zoo; `python benchmarks/zoo.py` shows the whole."""

from pathlib import Path

import pytest

from tests.zoo.kinds import KINDS
from tests.zoo.measure import measure

SHOWN = (
    "convolution, depthwise",
    "convolution, computed bias",
    "convolution, one dimension",
    "convolution, weight behind nodes",
    "Gemm, alpha and beta",
    "activations of 1e-6",
    "Constant, sparse",
    "If",
    "Where",
    "attention",
    "batch normalization",
    "group normalization",
    "weights of 1e-7 before a normalization",
    "U-Net, opset 7",
    "U-Net, opset 21",
)


@pytest.mark.parametrize("name", SHOWN)
def test_every_graph_is_close(tmp_path: Path, name: str) -> None:
    measured = measure(KINDS[name], tmp_path)
    assert not measured.low, measured


@pytest.mark.parametrize(
    ("name", "least", "reason"),
    [
        ("concatenation of mixed ranges", 20, "Conv: its input joins tensors of different magnitudes"),
        ("instance normalization", 19, "Conv: features; int8 leaves 27"),
    ],
)
def test_what_int8_loses_has_its_reason(tmp_path: Path, name: str, least: float, reason: str) -> None:
    measured = measure(KINDS[name], tmp_path)
    assert measured.decibels["int8.trt"] > least
    assert any(one.startswith(reason) for one in measured.reasons), measured


def test_the_zoo_is_large() -> None:
    assert len([name for name in KINDS if not name.startswith("U-Net")]) >= 40
    assert {kind.opset for kind in KINDS.values()} == set(range(7, 24))
