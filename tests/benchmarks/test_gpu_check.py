"""`make gpu-check` without a GPU: its messages, its arithmetic, and a whole run on an imitated driver."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract, embed
from sodeploy.runtime.gpu.driver import driver_problem

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# In a process of its own, with sizes that a CPU manages, and with onnxruntime's CPU provider for its CUDA provider.
SMALL_CHECK = """
import sys
sys.path[:0] = [{benchmarks!r}, {tests!r}]
import end_to_end, gpu_check, kernel_times
import sodeploy.runtime.gpu.session, sodeploy.runtime.session
from pathlib import Path
from emulated_device import InOrder
kernel_times.CASES = [((48, 64), 1, (32, 32)), ((90, 160), 2, (32, 32))]
kernel_times.JUDGED = ((90, 160), 2)
kernel_times._REPEATS, kernel_times._COPY_BYTES, kernel_times._CACHE_BYTES = 2, 4096, 100_000
kernel_times._DELAY_BYTES, kernel_times._DELAY_COPIES = 4096, 1
end_to_end._BATCH, end_to_end._REPEATS, end_to_end._FILES, end_to_end.FULL_HD = 2, 1, 4, (90, 160)
end_to_end.runs_onnx_on_gpu = lambda: {graphs_run!r}
gpu_check._tests = lambda: [{{"tests": "none"}}]
open_session = sodeploy.runtime.session.open_session
end_to_end.open_session = lambda path, device: open_session(path, "cpu")
sodeploy.runtime.gpu.session.OnnxRuntimeSession = InOrder
print(gpu_check.check(Path({models!r}), Path({output!r}), "synthetic:eval:6:64"))
"""


def save_model(path: Path) -> None:
    """A network whose saliency is the green channel."""
    fields = {"network": "green", "batch": None, "height": 16, "width": 24, "mean": (0, 0, 0), "std": (1, 1, 1)}
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "weight"], ["saliency"])],
        "green",
        [tensor("image", 1, ["N", 3, 16, 24])],
        [tensor("saliency", 1, ["N", 1, 16, 24])],
        [onnx.numpy_helper.from_array(np.float32([0, 1, 0]).reshape(1, 3, 1, 1), "weight")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    embed(model, Contract.model_validate(fields))
    onnx.save(model, path)


@pytest.fixture
def kernel_times(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kernel_times

    return kernel_times


def contract(interpolation: str) -> Contract:
    fields = {"network": "tiny", "height": 320, "width": 320, "interpolation": interpolation}
    return Contract.model_validate(fields | {"mean": (0, 0, 0), "std": (1, 1, 1)})


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_gpu_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--output", tmp_path / "results"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        "error: a GPU is needed, but no NVIDIA driver is installed (libcuda.so.1 is missing)"
    ]
    assert not (tmp_path / "results").exists()


def test_the_least_bytes_of_preprocessing(kernel_times) -> None:
    written = 3 * 320 * 320 * 4
    assert kernel_times.preprocess_bytes([(1080, 1920)], contract("area"), 4) == 1080 * 1920 * 3 + written
    # 1080 -> 320 rows: two of every 3.375 are read, whole, because columns are 6 pixels = 18 bytes apart
    assert kernel_times.preprocess_bytes([(1080, 1920)], contract("linear"), 4) == 640 * 1920 * 3 + written
    assert kernel_times.preprocess_bytes([(320, 320)] * 2, contract("linear"), 2) == 2 * (320 * 320 * 3 + written // 2)
    # 32000 pixels wide: columns 300 bytes apart, of which a sector each is read, or two where the taps straddle them
    sectors = (kernel_times.preprocess_bytes([(320, 32000)], contract("linear"), 4) - written) / 320 / 32
    assert 320 <= sectors <= 640


def test_the_least_bytes_of_postprocessing(kernel_times) -> None:
    size, pixels, output = (100, 200), 100 * 200, 320 * 320 * 4
    least = {style: kernel_times.postprocess_bytes([size], (320, 320), style) for style in ("map", "rgba", "green")}
    assert least == {"map": output + pixels, "rgba": output + 7 * pixels, "green": output + 6 * pixels}


def test_batches_take_turns_so_that_none_finds_its_images_in_the_cache(
    kernel_times, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_times, "_REPEATS", 4)
    done: list[object] = []
    event = SimpleNamespace(record=lambda stream: None, time_till=lambda other: 2.0)
    device = SimpleNamespace(
        allocate=lambda size: SimpleNamespace(address=0, free=lambda: None),
        copy=lambda *arguments: done.append("delay"),
        event=lambda: event,
        launch=done.append,
        wait=lambda stream: None,
    )
    turns = [[("launch", (batch,))] for batch in range(3)]
    assert kernel_times._replay(device, turns, None) == 2e-3
    assert done == ["delay"] * kernel_times._DELAY_COPIES + [0, 1, 2, 0]


def test_works_are_timed_in_turn(kernel_times) -> None:
    calls: list[str] = []
    seconds = kernel_times.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3  # the first round warms up
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_the_record_is_on_disk_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    report = gpu_check.Report(SimpleNamespace(name="NVIDIA H200", capability="sm90"), tmp_path)

    def parts() -> list[tuple[str, str, int]]:
        record = json.loads(report.path.with_suffix(".json").read_text())
        return [(part["status"], part["reason"], len(part["rows"])) for part in record["parts"]]

    def failing() -> Iterator[dict[str, int]]:
        yield {"rows before": 1}
        raise RuntimeError("an illegal\nmemory access")

    def ending() -> Iterator[dict[str, int]]:
        yield {"rows before": 1}
        raise SystemExit(139)  # as a crash: nothing of this process runs on

    report.part("Kernels", ["json"], lambda: [{"us": 1.0}, {"us": 2.0}])
    report.part("Engines", [], failing)
    known = [("measured", "", 2), ("failed", "RuntimeError: an illegal memory access", 1)]
    assert parts() == known
    report.part("Accuracy", ["no_such_module"], lambda: pytest.fail("is not begun"))
    known.append(("skipped", f"no_such_module is not installed; {gpu_check._WHEELS}", 0))
    with pytest.raises(SystemExit):
        report.part("End to end", [], ending)
    assert parts() == known
    monkeypatch.setattr(gpu_check, "LAST_START", -1)
    report.part("GPU tests", [], lambda: pytest.fail("is not begun"))
    assert parts()[-1] == ("skipped", "-1 s had passed", 0)


def test_one_failing_model_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import end_to_end

    def open_model(path: Path, *_: object) -> contextlib.AbstractContextManager[None]:
        if path.name == "broken.onnx":
            raise UserError("broken.onnx cannot be loaded")
        return contextlib.nullcontext()

    monkeypatch.setattr(end_to_end, "open_on_device", open_model)
    monkeypatch.setattr(end_to_end, "open_session", open_model)
    monkeypatch.setattr(end_to_end, "_photographs", lambda folder: [])
    monkeypatch.setattr(end_to_end, "_pipeline_figures", lambda *_: {"batch": 8})
    models = [Path("broken.onnx"), Path("whole.onnx")]
    assert list(end_to_end.pipeline_rows(SimpleNamespace(), models)) == [
        {"model": "broken.onnx", "failed": "broken.onnx cannot be loaded"},
        {"model": "whole.onnx", "batch": 8},
    ]


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU: run make gpu-check")
@pytest.mark.parametrize("graphs_run", [True, False])
def test_the_whole_check_on_an_imitated_driver(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    graphs_run: bool,
) -> None:
    """Every part that needs no engine runs and is reported. The figures mean nothing here."""
    monkeypatch.syspath_prepend(str(repository / "tests/runtime"))
    from emulated_device import imitated_driver

    environment = imitated_driver(tmp_path, "cuda-bindings")
    models = tmp_path / ("models" if graphs_run else "none")
    if graphs_run:
        models.mkdir()
        save_model(models / "green.onnx")
    program = SMALL_CHECK.format(
        benchmarks=str(BENCHMARKS),
        tests=str(repository / "tests/runtime"),
        models=str(models),
        output=str(tmp_path / "results"),
        graphs_run=graphs_run,
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (file,) = (tmp_path / "results").glob("imitated-sm-90-*.json")
    record = json.loads(file.read_text())
    assert {part["name"]: part["status"] for part in record["parts"]} == {
        "GPU tests": "measured",
        "Kernels": "measured",
        "Pre- and post-processing": "measured",
        "Engines": "skipped",
        "End to end": "measured" if graphs_run else "skipped",
        "Accuracy": "measured" if graphs_run else "skipped",
    }
    kernels = record["parts"][1]["rows"]
    assert len(kernels) == 2 * (4 + 4)
    assert all(row["measured us"] > 0 and row["floor us"] > 0 for row in kernels)
    text = file.with_suffix(".md").read_text()
    if graphs_run:
        assert re.search(r"^\| green.onnx \| [\d.e-]+ \| 2 \|", text, re.MULTILINE)
        assert re.search(r"^\| green.onnx \| cuda \|", text, re.MULTILINE)
        assert "A loss on 6 images cannot be judged at 95 %; give 20 or more." in text
    else:
        assert re.search(r"^## Engines\n\nSkipped: .*none has no ONNX files; run `make demo` first", text, re.MULTILINE)
    assert "| pre area float32 | 160x90 | 2 |" in text
    assert "imitated CUDA: 0 allocations, 0 graphs" in run.stderr


def test_the_readme_section_shows_the_newest_report_of_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check
    import performance_section

    nothing = performance_section.section(tmp_path)
    assert nothing.startswith("Awaiting a GPU:\n\n- GPU tests: device,")
    assert performance_section.page(tmp_path).count("**awaits a GPU**") == len(gpu_check.PARTS) == nothing.count("\n- ")
    for date, value in (("2026-01-02", 90.0), ("2026-01-01", 10.0)):
        rows = [{"kernels": "pre area float32", "image": "1920x1080", "batch": batch, "%": value} for batch in (8, 32)]
        parts = [
            {"name": "Kernels", "status": "measured", "reason": "", "rows": rows, "notes": ["a note"]},
            {"name": "End to end", "status": "skipped", "reason": "there are no engines", "rows": [], "notes": []},
        ]
        (tmp_path / f"l4-{date}.json").write_text(
            json.dumps({"gpu": "NVIDIA L4", "date": date, "versions": {"python": "3.12"}, "parts": parts})
        )
    short, text = (performance_section.section(tmp_path, whole) for whole in (False, True))
    assert "End to end: skipped" in short
    assert "pre area" not in short
    assert "### NVIDIA L4, 2026-01-02" in text
    assert "python 3.12.\n" in text
    assert "| pre area float32 | 1920x1080 | 32 | 90 |\n\na note" in text
    assert "| 8 | 90 |" not in text
    assert "2026-01-01" not in text
    assert "End to end: skipped, there are no engines." in text
    assert "- End to end: images/s" in text
    assert "- Kernels" not in text
    page = performance_section.page(tmp_path)
    assert re.search(r"^\| Kernels \| .* \| NVIDIA L4 \|$", page, re.MULTILINE)
    assert page.count("**awaits a GPU**") == len(gpu_check.PARTS) - 1

    monkeypatch.setattr(performance_section, "RESULTS", tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{performance_section.BEGIN}\nold\n{performance_section.END}\nafter\n")
    performance_section.main(readme)
    assert "old" not in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("\nafter\n")
    readme.write_text("no markers")
    with pytest.raises(UserError, match="lacks the lines"):
        performance_section.main(readme)


def test_the_readme_shows_what_the_results_say(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import performance_section as performance

    section = f"{performance.BEGIN}\n{performance.section()}\n{performance.END}"
    assert section in (repository / "README.md").read_text(), "run benchmarks/performance_section.py README.md"
    assert (performance.RESULTS / "README.md").read_text() == performance.page()
