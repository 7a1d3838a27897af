"""Everything that only a GPU can show, in one command that works offline from what is installed.

    python benchmarks/gpu_check.py [--models out/demo] [--data DATA] [--output benchmarks/results]   (make gpu-check)

Runs the GPU tests, times the kernels against the least their bytes could take, compares ways of pre- and
post-processing, builds and times engines of the models at hand, measures their accuracy. What is missing is skipped by
name. Writes <gpu>-<date>.json and .md after every part; takes at most 8 minutes, because no part begins once 6 have
passed.
"""

import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import versions, write_text
from sodeploy.errors import UserError
from sodeploy.runtime.gpu.device import Device, installed_bindings, open_device
from sodeploy.runtime.gpu.driver import gpu_state

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
# What is measured, and what for. The pages that performance_section.py writes list what still awaits a GPU.
PARTS = {
    "GPU tests": "device, kernels, sessions, the pipeline and its CUDA graphs on a real driver",
    "Kernels": "time of each kernel against the least that its bytes take at this GPU's copy bandwidth, with images "
    "that are not in the cache; goals: at least 80 % of it for 32 images of 1920x1080, pre and post of one such "
    "image in under 60 us together",
    "Pre- and post-processing": "our kernels against OpenCV on the CPU and torch's interpolate on the same GPU, with "
    "copies",
    "Engines": "every graph at hand by every builder, and what the engine then really runs",
    "Accuracy": "engines against the float32 graph; which to deploy on this GPU, and whether int8 pays",
    "End to end": "images/s through the pipeline against the usual way with the same network; goal: 5 times as many at "
    "batch 8; device memory",
}
LAST_START = 360  # seconds after which no part is begun
TEST_LIMIT = 100  # seconds for the GPU tests through one binding of the driver
EVALUATION = "synthetic:eval:50"
GPU_TESTS = [
    "test_device.py",
    "test_cuda_processing.py",
    "test_engine_session.py",
    "test_graphs.py",
    "test_pipeline.py",
]
_ON_GPU = "not emulated and not stay_within"  # these run on the CPU
_NOT_FOR_A_GPU = ([".sim"], [".cpu"], [".openvino"])
_WHEELS = "benchmarks/gpu_machine/prepare.py collects the wheels for a machine without a network"

Row = dict[str, Any]


@dataclass
class Part:
    """One part of the report: measured, skipped or failed; `reason` says why it is not measured, `notes` what follows
    from the rows."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gpu_before: dict[str, str] = field(default_factory=dict)
    gpu_after: dict[str, str] = field(default_factory=dict)


class Report:
    """The parts of a check, written to disk after each of them: a later part may take the process along."""

    def __init__(self, device: Device, output: Path) -> None:
        """
        Args:
            output: folder for <gpu>-<date>.json and .md.
        """
        self._device, self._started = device, time.monotonic()
        self._date = datetime.date.today().isoformat()
        stem = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
        self.path = output / f"{stem}-{self._date}.md"
        self.parts: list[Part] = []

    @property
    def deadline(self) -> float:
        """The time of `time.monotonic` after which nothing is begun."""
        return self._started + LAST_START

    def part(self, name: str, needs: Iterable[str], work: Callable[[], Iterable[Row | str]]) -> None:
        """Measure a part, unless a module that it needs is missing or the time is over."""
        assert name in PARTS
        missing = [module for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            self.parts.append(Part(name, "skipped", f"{', '.join(missing)} is not installed; {_WHEELS}"))
        elif time.monotonic() > self.deadline:
            self.parts.append(Part(name, "skipped", f"{LAST_START} s had passed"))
        else:
            terminal.note(f"{name} ...")
            self.parts.append(_measure(name, work))
        self._write()

    def _write(self) -> None:
        record = {
            "gpu": self._device.name,
            "capability": self._device.capability,
            "date": self._date,
            "binding": type(self._device).__name__,
            "versions": versions(),
            "seconds": time.monotonic() - self._started,
            "parts": [vars(part) for part in self.parts],
        }
        write_text(self.path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        write_text(self.path, to_markdown(record))


def check(models: Path, output: Path, data: str = EVALUATION) -> tuple[Path, list[str]]:
    """Run all parts; returns the Markdown file and the names of the parts that failed.

    Args:
        models: a folder of ONNX files with contracts, as `make demo` leaves it.
        data: images with masks for the accuracy, as `bench --data` takes them.

    Raises:
        UserError: there is no usable GPU; nothing is written.
    """
    graphs = sorted(path for path in models.glob("*.onnx") if path.suffixes[-2:-1] not in _NOT_FOR_A_GPU)
    engines: list[Path] = []

    def engine_rows() -> Iterable[Row]:
        if not graphs:
            raise Skipped(f"{models} has no ONNX files; run `make demo` first, or give --models")
        for path, row in _module("end_to_end").build_engines(graphs, Path(folder), report.deadline):
            engines.extend([path] if path else [])
            yield row
        if not engines:
            raise Skipped("no builder could build an engine for this GPU")

    def runnable() -> list[Path]:
        found = [*engines, *(graphs if _module("end_to_end").runs_onnx_on_gpu() else [])]
        if not found:
            raise Skipped("there are no engines, and no onnxruntime with CUDA to run graphs")
        return found

    def accuracy_rows() -> Iterable[Row | str]:
        runnable()
        yield from _module("end_to_end").accuracy_rows(graphs, engines, data)

    with open_device() as device, device.current(), tempfile.TemporaryDirectory() as folder:
        report = Report(device, output)
        report.part("GPU tests", ["pytest", "hypothesis", "onnx"], _tests)
        report.part("Kernels", ["pydantic"], lambda: _module("kernel_times").kernel_rows(device))
        report.part("Pre- and post-processing", ["pydantic"], lambda: _module("end_to_end").processing_rows(device))
        report.part("Engines", ["pydantic", "onnx"], engine_rows)
        report.part("Accuracy", ["pydantic", "py_sod_metrics"], accuracy_rows)
        report.part("End to end", ["pydantic"], lambda: _module("end_to_end").pipeline_rows(device, runnable()))
    return report.path, [part.name for part in report.parts if part.status == "failed"]


class Skipped(Exception):
    """A part cannot be measured here; the message says what is missing."""


def to_markdown(record: dict[str, Any]) -> str:
    """The report on one machine."""
    installed = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"# {record['gpu']} ({record['capability']}), {record['date']}",
        f"The whole check took {record['seconds']:.0f} s. {installed}.",
    ]
    for part in record["parts"]:
        lines.append(f"## {part['name']}")
        if part["status"] != "measured":
            lines.append(f"{part['status'].capitalize()}: {part['reason']}.")
        if part["gpu_before"]:
            before, after = part["gpu_before"], part["gpu_after"]
            state = "; ".join(f"{key} {before[key]} -> {after.get(key, '?')}" for key in before)
            lines.append(f"{part['seconds']:.0f} s; {state}")
        if part["rows"]:
            lines.append(table(part["rows"]))
        lines += part["notes"]
    return "\n\n".join(lines) + "\n"


def _measure(name: str, work: Callable[[], Iterable[Row | str]]) -> Part:
    """A part's report; a string among its rows is a note."""
    done = Part(name, "measured", gpu_before=gpu_state())
    begin = time.monotonic()
    try:
        for found in work():
            if isinstance(found, str):
                done.notes.append(found)
            else:
                done.rows.append(found)
    except Skipped as reason:
        done.status, done.reason = "skipped", str(reason)
    except Exception as error:  # whatever it is, the other parts may still succeed, and the report says so
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        done.status, done.reason = "failed", kind + " ".join(str(error).split())
    done.seconds, done.gpu_after = time.monotonic() - begin, gpu_state()
    return done


def _tests() -> Iterable[Row]:
    files = [str(ROOT / "tests/runtime" / name) for name in GPU_TESTS]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "-k", _ON_GPU]
    failed: list[str] = []
    for binding in installed_bindings():
        environment = os.environ | {"TEST_BINDING": binding}
        try:
            run = subprocess.run(
                [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TEST_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the GPU tests through {binding} took more than {TEST_LIMIT} s") from None
        lines = run.stdout.strip().splitlines() or [run.stderr.strip()[-200:]]
        yield {"tests": " ".join(GPU_TESTS), "binding": binding, "result": lines[-1].strip("= ")}
        if run.returncode:
            terminal.note(run.stdout)
            failed += [f"{binding}: {line}" for line in lines if line.startswith(("FAILED", "ERROR"))] or [binding]
    if failed:
        raise UserError("GPU tests failed: " + "; ".join(failed))


def _module(name: str) -> Any:
    """A module of this folder, imported late: a part that cannot be imported must not take the others along."""
    return importlib.import_module(name)


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; a row that lacks a column has an empty cell there."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key, "")) for key in header] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["--"] * len(header), *cells))


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def main(
    models: Annotated[Path, typer.Option(help="folder of ONNX files, as `make demo` leaves it")] = ROOT / "out/demo",
    data: Annotated[str, typer.Option(help="images with masks for the accuracy, as `bench --data`")] = EVALUATION,
    output: Annotated[Path, typer.Option(help="folder for the report")] = RESULTS,
) -> None:
    """Check and measure everything that needs an NVIDIA GPU."""
    report, failed = check(models, output, data)
    terminal.results.print(str(report), soft_wrap=True)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; {report} says how")


if __name__ == "__main__":
    command_line.run(main)
