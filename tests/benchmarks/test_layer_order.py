"""The order of layers by different images, and by estimates."""

import json
from pathlib import Path
from typing import Any

import layer_order
import numpy as np
import pytest

from sodeploy.errors import UserError


def rows(errors: dict[str, list[float]], exact: bool = True) -> list[dict[str, Any]]:
    ordered = sorted(errors, key=lambda name: -float(np.mean(errors[name])))
    return [{"node": name, "by_image": errors[name], "exact": exact} for name in ordered]


def test_the_same_order_agrees_and_another_one_does_not() -> None:
    exact = rows({"a": [3, 3], "b": [2, 2], "c": [1, 1]})
    same = layer_order.agreement_of_estimate(exact, rows({"a": [9, 9], "b": [8, 8], "c": [1, 1]}, exact=False))
    assert same.rows == [["1.00", "yes", "3"]]
    other = layer_order.agreement_of_estimate(exact, rows({"a": [1, 1], "b": [2, 2], "c": [3, 3]}, exact=False))
    assert other.rows == [["-1.00", "no", "3"]]


def test_reports_of_other_layers_are_refused() -> None:
    with pytest.raises(UserError, match="same plan"):
        layer_order.agreement_of_estimate(rows({"a": [1, 1]}), rows({"b": [1, 1]}))


@pytest.mark.parametrize("text", ["{}", '{"rows": [1]}', '{"rows": [{"by_image": [1], "node": "a"}]}', "x"])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="no JSON of a layer report"):
        layer_order.main(tmp_path / "report.json")


def test_a_report_of_estimates_has_no_order_to_judge(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows({"a": [1, 1], "b": [2, 2]}, exact=False)}))
    with pytest.raises(UserError, match="--exact"):
        layer_order.main(tmp_path / "report.json")
