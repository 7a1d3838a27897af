"""A record that grows by runs of single networks."""

import json
from pathlib import Path

import by_network
import pytest

from sodeploy.errors import UserError


def test_a_network_is_added_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    by_network.add([{"model": "a.onnx", "x": 1}, {"model": "b.onnx", "x": 1}], file)
    by_network.add([{"model": "elsewhere/a.onnx", "x": 2}], file)
    assert json.loads(file.read_text()) == [{"model": "b.onnx", "x": 1}, {"model": "elsewhere/a.onnx", "x": 2}]


@pytest.mark.parametrize("text", ["x", "[{}]", '{"format": 1}'])
def test_another_file_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="no record of this benchmark"):
        by_network.add([{"model": "a.onnx"}], tmp_path / "record.json")
    assert (tmp_path / "record.json").read_text() == text
