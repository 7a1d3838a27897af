"""Everything that only a GPU can show, in one command that works offline from what is installed.

    python benchmarks/gpu_check.py [--models out/demo] [--output benchmarks/results]       (make gpu-check)

Runs the GPU tests, times the kernels against the least their bytes could take, compares ways of pre- and
post-processing, builds and times engines of the models at hand, measures their accuracy. What is missing is skipped by
name. Writes <gpu>-<date>.json and .md; takes at most 8 minutes, because no part begins once 6 have passed.
"""

import datetime
import importlib.util
import json
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
from kernel_times import copy_bandwidth, kernel_rows

from sodeploy import command_line, terminal
from sodeploy.artifacts import versions, write_text
from sodeploy.errors import UserError
from sodeploy.runtime.gpu.device import Device
from sodeploy.runtime.gpu.driver import gpu_state

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
# What is measured, and what for. The pages that performance_section.py writes list what still awaits a GPU.
PARTS = {
    "GPU tests": "device, kernels, sessions and CUDA graphs on a real driver",
    "Kernels": "time of each kernel against the least that its bytes take at this GPU's copy bandwidth; goals: at "
    "least 80 % of it for batches of 1920x1080 and up, pre and post of one such image in under 60 us together",
    "Pre- and post-processing": "our kernels against OpenCV on the CPU and torch's interpolate on the same GPU, with "
    "copies",
    "Engines": "every graph at hand by every builder, and what the engine then really runs",
    "End to end": "images/s through the pipeline against the usual way with the same network; goal: 5 times as many at "
    "batch 8; device memory",
    "Accuracy": "engines against the float32 graph; which to deploy on this GPU, and whether int8 pays",
}
LAST_START = 360  # seconds after which no part is begun
TEST_LIMIT = 150  # seconds for the GPU tests
GPU_TESTS = ["test_device.py", "test_cuda_processing.py", "test_engine_session.py"]
_ON_GPU = "not emulated and not stay_within"  # these run on the CPU

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


def check(models: Path, output: Path) -> tuple[Path, list[str]]:
    """Run all parts; returns the Markdown file and the names of the parts that failed.

    Args:
        models: a folder of ONNX files with contracts, as `make demo` leaves it.

    Raises:
        UserError: there is no usable GPU; nothing is written.
    """
    device = Device()
    started = time.monotonic()
    parts: list[Part] = []

    def part(name: str, needs: Iterable[str], work: Callable[[], Iterable[Row | str]]) -> None:
        assert name in PARTS
        missing = [module for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            parts.append(Part(name, "skipped", f"{', '.join(missing)} is not installed"))
        elif time.monotonic() - started > LAST_START:
            parts.append(Part(name, "skipped", f"{LAST_START} s had passed"))
        else:
            terminal.note(f"{name} ...")
            parts.append(_measure(name, work))

    graphs = sorted(path for path in models.glob("*.onnx") if path.suffixes[-2:-1] not in ([".sim"], [".cpu"]))
    engines: list[Path] = []

    def engine_parts(folder: Path) -> Iterable[Row]:
        from end_to_end import build_engines

        if not graphs:
            raise Skipped(f"{models} has no ONNX files; run `make demo` first, or give --models")
        for path, row in build_engines(graphs, folder, started + LAST_START):
            engines.extend([path] if path else [])
            yield row
        if not engines:
            raise Skipped("no builder could build an engine for this GPU")

    with device.current(), tempfile.TemporaryDirectory() as folder:
        part("GPU tests", ["pytest", "hypothesis", "onnx"], _tests)
        bandwidth = copy_bandwidth(device)
        part("Kernels", [], lambda: kernel_rows(device, bandwidth))
        part("Pre- and post-processing", [], lambda: _end_to_end().processing_rows(device))
        part("Engines", ["onnx"], lambda: engine_parts(Path(folder)))
        runnable = [*engines, *(graphs if _end_to_end().runs_onnx_on_gpu() else [])]
        for name, needs, work in (
            ("End to end", [], lambda: _end_to_end().pipeline_rows(device, runnable)),
            ("Accuracy", ["py_sod_metrics"], lambda: _end_to_end().accuracy_rows(graphs, engines)),
        ):
            if runnable:
                part(name, needs, work)
            else:
                parts.append(Part(name, "skipped", "there are no engines, and no onnxruntime with CUDA to run graphs"))

    date = datetime.date.today().isoformat()
    record = {
        "gpu": device.name,
        "capability": device.capability,
        "date": date,
        "copy_bandwidth_gb_s": bandwidth / 1e9,
        "versions": versions(),
        "seconds": time.monotonic() - started,
        "parts": [vars(part) for part in parts],
    }
    stem = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    write_text(output / f"{stem}-{date}.json", json.dumps(record, indent=1) + "\n")
    write_text(output / f"{stem}-{date}.md", to_markdown(record))
    return output / f"{stem}-{date}.md", [part.name for part in parts if part.status == "failed"]


class Skipped(Exception):
    """A part cannot be measured here; the message says what is missing."""


def to_markdown(record: dict[str, Any]) -> str:
    """The report on one machine."""
    installed = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"# {record['gpu']} ({record['capability']}), {record['date']}",
        f"Copy bandwidth on this GPU: {record['copy_bandwidth_gb_s']:.0f} GB/s, read and written bytes counted. "
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
    try:
        run = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=TEST_LIMIT)
    except subprocess.TimeoutExpired:
        raise UserError(f"the GPU tests took more than {TEST_LIMIT} s") from None
    lines = run.stdout.strip().splitlines() or [run.stderr.strip()[-200:]]
    yield {"tests": " ".join(GPU_TESTS), "result": lines[-1].strip("= ")}
    if run.returncode:
        raise UserError("GPU tests failed: " + "; ".join(line for line in lines if line.startswith("FAILED")))


def _end_to_end() -> Any:
    """Imported late: a part that cannot be imported must not take the others along."""
    import end_to_end

    return end_to_end


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; a row that lacks a column has an empty cell there."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key, "")) for key in header] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["--"] * len(header), *cells))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(
    models: Annotated[Path, typer.Option(help="folder of ONNX files, as `make demo` leaves it")] = ROOT / "out/demo",
    output: Annotated[Path, typer.Option(help="folder for the report")] = RESULTS,
) -> None:
    """Check and measure everything that needs an NVIDIA GPU."""
    report, failed = check(models, output)
    terminal.results.print(str(report), soft_wrap=True)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; {report} says how")


if __name__ == "__main__":
    command_line.run(main)
