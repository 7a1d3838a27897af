"""The report of a bench as a page, and its limits as an exit status."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_bench import data  # noqa: F401  (fixture)

from sodeploy import command_line
from sodeploy.errors import UserError
from sodeploy.runtime import bench as stage
from sodeploy.runtime.bench import bench
from sodeploy.runtime.measure.metrics import Scores
from sodeploy.runtime.measure.record import BenchRecord
from sodeploy.runtime.review.evidence import EvidenceLog, image_changes
from sodeploy.runtime.review.gate import checks, junit
from sodeploy.runtime.review.page import Extras, write_page
from sodeploy.runtime.review.regions import REGIONS, regional_losses, regions_of

SaveModel = Callable[..., Path]
NAMES = list(REGIONS)


def scene() -> np.ndarray:
    """A square with a thin whisker, and a dot, (200, 200) bool."""
    mask = np.zeros((200, 200), bool)
    mask[60:140, 60:140] = True
    mask[98:102, 140:190] = True
    mask[10:14, 10:14] = True
    return mask


def test_each_pixel_belongs_to_one_region() -> None:
    found = regions_of(scene())
    assert NAMES[found[100, 100]] == "inside"
    assert NAMES[found[100, 170]] == "thin parts"
    assert NAMES[found[12, 12]] == "small objects"
    assert {NAMES[found[60, 100]], NAMES[found[59, 100]]} == {"boundary"}
    assert NAMES[found[190, 10]] == "background"
    empty = regions_of(np.zeros((20, 30), bool))
    assert set(empty.ravel()) == {NAMES.index("background")}


def test_the_parts_add_up_to_the_change_of_mae() -> None:
    rng, mask = np.random.default_rng(0), scene()
    before, after = rng.random((2, 200, 200))
    parts = regional_losses(before, after, mask, regions_of(mask))
    assert parts.sum() == pytest.approx(np.abs(after - mask).mean() - np.abs(before - mask).mean(), abs=1e-12)
    wrong_dot = mask.astype(float)
    wrong_dot[10:14, 10:14] = 0
    parts = regional_losses(mask.astype(float), wrong_dot, mask, regions_of(mask))
    assert dict(zip(NAMES, parts, strict=True)) == pytest.approx(
        dict.fromkeys(NAMES, 0.0) | {"small objects": 16 / 40000}
    )


def test_changes_of_images_follow_the_direction_of_the_metric() -> None:
    before = Scores({"mae": np.array([0.1, 0.2]), "s": np.array([0.9, 0.8])}, ("mae", "s"))
    after = Scores({"mae": np.array([0.3, 0.1]), "s": np.array([0.7, 0.85])}, ("mae", "s"))
    np.testing.assert_allclose(image_changes(before, after, "mae"), [0.2, -0.1])
    np.testing.assert_allclose(image_changes(before, after, "s"), [0.2, -0.05])


class Page(HTMLParser):
    """The addresses and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.unlabelled = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href") if name in found and tag != "use"]
        self.unlabelled += tag == "img" and not found.get("alt")


@pytest.fixture
def two(save_model: SaveModel) -> list[Path]:
    """A network and a worse one, as an int8 graph for onnxruntime."""
    facts = {"sodeploy.precision": "int8", "sodeploy.quantised_for": "cpu"}
    return [save_model("good.onnx"), save_model("worse.onnx", weights=(0.0, 0.1, 0.9), metadata=facts)]


def test_the_page_is_whole_and_loads_nothing(two: list[Path], data: Path, tmp_path: Path) -> None:  # noqa: F811
    log = EvidenceLog()
    record = bench(two, data, threads=1, workers=1, log=log)
    assert record == bench(two, data, threads=1, workers=1).model_copy(
        update={"rows": record.rows, "recommendation": record.recommendation}
    )
    rows = record.rows
    change = rows[1].metrics["mae"] - rows[0].metrics["mae"]
    assert log.evidence.losses[1].sum() == pytest.approx(change, abs=1e-9)
    assert log.evidence.losses[0].sum() == 0
    assert log.evidence.shares.sum() == pytest.approx(1)
    plan = tmp_path / "plan.json"
    layers = {
        "Conv_0": {"op": "Conv", "precision": "int8", "reason": "features"},
        "Conv_1": {"op": "Conv", "precision": "fp16", "reason": "<head>"},
    }
    plan.write_text(json.dumps({"layers": layers}))
    costs = tmp_path / "layers.json"
    costs.write_text(json.dumps({"rows": [{"node": "Conv_0", "map_error": 0.01}], "images": ["a", "b"]}))
    write_page([log.evidence], tmp_path / "index.html", {"mae": 0.001}, Extras(plan, costs))
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert not page.unlabelled
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "&lt;head&gt;" in text
    assert "worse" in text
    assert "without an interval, which needs 20 images" in text
    assert "Which layers cost most" in text
    write_page([log.evidence], tmp_path / "again.html", {"mae": 0.001}, Extras(plan, costs))
    assert (tmp_path / "again.html").read_text() == text


def record_of(value: float, ci95: tuple[float, float] | None, metric: str = "s") -> BenchRecord:
    difference = {"value": value, "ci95": ci95}
    row = {
        **dict.fromkeys(("name", "model", "network", "precision", "target", "engine", "stand_in", "dataset"), "m"),
        "method": None,
        "device": "cpu",
        "params_m": None,
        "macs_g": None,
        "images_per_s": None,
        "size_mib": 1.0,
        "device_memory_mib": None,
        "calibrated_on": None,
        "images": 30,
        "input_shape": [1, 3, 8, 8],
        "published": {"params_m": None, "flops_g": None, "params_as": "graph"},
        "metrics": {metric: 0.9},
        "delta": {metric: difference},
        "latency_ms": {},
        "time_ratio": {"value": 1.0, "ci95": None},
    }
    return BenchRecord.model_validate(
        {
            "rows": [row | {"name": "base"}, row | {"name": "int8 <x>"}],
            "dataset": "d",
            "images": 30,
            "left_out": [],
            "threads": 1,
            "batch": 1,
            "hardware": "",
            "versions": {},
            "gpu": {"before": {}, "after": {}},
            "recommendation": {"budget": None, "model": None, "engine": None, "int8_pays": None, "text": []},
        }
    )


@pytest.mark.parametrize(
    ("metric", "value", "ci95", "passed"),
    [
        ("s", -0.001, (-0.0029, 0.001), True),
        ("s", -0.001, (-0.0031, 0.001), False),  # the bound counts, not the value
        ("s", 0.001, None, False),  # without an interval nothing is known
        ("mae", 0.001, (0.0, 0.0029), True),
        ("mae", -0.001, (-0.01, 0.0031), False),
    ],
)
def test_the_bound_decides(metric: str, value: float, ci95: tuple[float, float] | None, passed: bool) -> None:
    (check,) = checks([record_of(value, ci95, metric)], {metric: 0.003})
    assert check.passed == passed
    root = ElementTree.fromstring(junit([check]))
    assert root.attrib["failures"] == str(int(not passed))
    (case,) = root.iter("testcase")
    assert case.attrib["classname"] == "d.int8 <x>"
    assert (case.find("failure") is None) == passed


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--fail-on", "mae=0.9", "--junit", "junit.xml"], 3, "without an interval"),
        (["--junit", "junit.xml"], 1, "add --fail-on"),
        (["--plan", "plan.json"], 1, "add --report DIR"),
        (["--fail-on", "mae=2"], 1, "--fail-on mae=2: mae=2 is not between 0 and 1"),
        (["--report", "report", "--plan", "absent.json"], 1, "absent.json"),
    ],
)
def test_the_command(
    two: list[Path],
    data: Path,  # noqa: F811
    tmp_path: Path,
    repository: Path,
    options: list[str],
    status: int,
    said: str,
) -> None:
    command = [sys.executable, repository / "runtime/bench.py", *two, "--data", data, "--workers", "1", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "junit.xml").exists() == (status == 3)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("options", "limits"), [((), {"s": 0.3}), (("--fail-on", "mae=0.9"), {"mae": 0.9})])
def test_the_limits_of_the_page(
    two: list[Path],
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    limits: dict[str, float],
) -> None:
    """They are the limits that end the run; without such ones, the budget of the recommendation."""
    pages: list[Any] = []
    monkeypatch.setattr(stage, "write_page", lambda *arguments: pages.append(arguments))
    line = [
        *map(str, two),
        "--data",
        str(data),
        "--workers",
        "1",
        "--report",
        "report",
        "--max-drop",
        "s=0.3",
        *options,
    ]
    with pytest.raises(SystemExit):
        command_line.application_of(stage.main)(line)
    assert [page[2] for page in pages] == [limits]


def test_without_the_packages_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"a report needs jinja2; install it: pip install 'sodeploy\[report\]'"):
        write_page([], tmp_path / "index.html")
