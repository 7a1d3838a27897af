"""Our calls of TensorRT's Python API exist in the listings of the real bindings of 10.16 and 11.4."""

import json
import subprocess
import sys
from pathlib import Path

from research_data import ResearchFile


def check(research_file: ResearchFile, report: Path, *sources: Path) -> tuple[list[dict[str, object]], str]:
    """The names, arguments and overrides that a TensorRT version lacks, and the summary of the checker."""
    checker = research_file("tools/check_trt_api.py")
    run = subprocess.run(
        [sys.executable, checker, *sources, "--json", report], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode in (0, 1), run.stderr
    return json.loads(report.read_text()), run.stdout


def test_every_use_exists_in_both_majors(research_file: ResearchFile, repository: Path, tmp_path: Path) -> None:
    findings, summary = check(research_file, tmp_path / "report.json", repository / "quant", repository / "runtime")
    unguarded = [finding for finding in findings if str(finding["code"]).startswith("E") and not finding["guarded"]]
    assert not unguarded
    uses = int(summary.split(" files, ")[1].split()[0])
    assert uses >= 80, "the checker no longer recognises our uses"


def test_check_can_fail(research_file: ResearchFile, tmp_path: Path) -> None:
    source = tmp_path / "old.py"
    source.write_text("import tensorrt as trt\nflag = trt.BuilderFlag.INT8\nbuilder = trt.Builder(trt.Logger(), 1)\n")
    findings, _ = check(research_file, tmp_path / "report.json", source)
    assert {(finding["line"], finding["code"]) for finding in findings} >= {(2, "E1"), (3, "E3")}
