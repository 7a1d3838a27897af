"""The whole way in small: every step of the demo, with a recipe of two steps."""

import re
from pathlib import Path

import pytest

from sodeploy import demo

RECIPE = """
network: u2net_tiny
train: synthetic:train:8:64
validation: {data: "synthetic:val:2:64", every: 2, best: s}
size: 64
augment: []
loss: {bce: 1}
optimizer: {name: adam, lr: 0.001}
schedule: {name: constant}
batch: 4
steps: 2
workers: 0
"""


def test_the_demo_walks_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "recipe.yaml")
    monkeypatch.setattr(demo, "CALIBRATION", "synthetic:calib:3:80")
    monkeypatch.setattr(demo, "EVALUATION", "synthetic:eval:3:80")
    table = demo.demo(tmp_path / "out").read_text()
    assert re.findall(r"^\| u2net_tiny\S* \| u2net_tiny \| (fp32|fp16|int8) ", table, re.MULTILINE) == [
        "fp32",
        "fp16",
        "int8",
    ]
    assert "without interval" in table  # which needs more images
    assert "Times on 3 images cannot be compared" in table
    told = capsys.readouterr().err
    assert re.findall(r"^\$ sodeploy (\w+)", told, re.MULTILINE) == ["train", "export", "build", "bench"]

    demo.demo(tmp_path / "out")  # what is trained stays trained
    assert "is finished" in capsys.readouterr().err
