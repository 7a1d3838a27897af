# ruff: noqa: F811 (fixtures)
"""Bench with everything on the GPU: kernels, engines, pipeline. No figure means anything where these are emulated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulated_device import InOrder
from test_bench import IMAGES, data  # noqa: F401  (fixture)
from test_engine_session import imitation, save_engine  # noqa: F401  (fixtures)

from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.runtime import bench as script
from sodeploy.runtime.bench import bench
from sodeploy.runtime.gpu import session as device_session
from sodeploy.runtime.gpu.driver import Gpu, driver_problem
from sodeploy.runtime.measure import opening
from sodeploy.runtime.measure.report import bench_tables

SaveModel = Callable[..., Path]


@pytest.fixture
def gpu(device: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What bench takes for the GPU; onnxruntime's CPU provider stands for its CUDA provider."""
    monkeypatch.setattr(opening, "open_device", lambda: device)
    monkeypatch.setattr(script, "current_gpu", lambda: Gpu("NVIDIA L4", "sm89"))
    states = iter([{"clocks.sm": "2040", "temperature.gpu": "41"}, {"clocks.sm": "1980", "temperature.gpu": "52"}])
    monkeypatch.setattr(script, "gpu_state", lambda: next(states))
    monkeypatch.setattr(device_session, "OnnxRuntimeSession", InOrder)
    return device


def test_everything_on_the_gpu(
    gpu: Any, save_model: SaveModel, save_engine: SaveModel, data: Path, tmp_path: Path
) -> None:
    """Everything runs through the kernels and the pipeline; the figures mean nothing here."""
    models = [save_model(batch=None), save_engine()]
    record = bench(models, data, device="cuda", threads=1, workers=1, batch=2, timeline=tmp_path / "trace.json")
    on_cpu = bench(models[:1], data, threads=1, workers=1).rows[0]
    assert record.gpu.after == {"clocks.sm": "1980", "temperature.gpu": "52"}
    assert record.hardware.endswith("and NVIDIA L4")
    for row in record.rows:
        assert row.device == "cuda"
        assert list(row.latency_ms) == ["host", "upload", "pre", "infer", "post", "download", "total"]
        assert all(0 < times.p50 <= times.p99 for times in row.latency_ms.values())
        parts = sum(row.latency_ms[stage].p50 for stage in ("upload", "pre", "infer", "post", "download"))
        assert parts < 2 * row.latency_ms["total"].p99
        assert row.images_per_s > 0
        assert 0 < row.device_memory_mib < 1024
        assert row.metrics == pytest.approx(on_cpu.metrics, abs=0.02)  # maps are within one grey level
    (table,) = (table for table in bench_tables(record) if table.title == "On the GPU")
    assert [cells[0] for cells in table.rows] == list(map(str, models))  # both are called tiny
    assert "in batches of 2" in table.caption
    assert "clocks.sm 2040 -> 1980; temperature.gpu 41 -> 52" in table.caption
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {str(model) for model in models} <= {event["name"] for event in events}
    assert sum(event["name"] == "infer" for event in events) == 2 * IMAGES // 2


def test_an_engine_runs_on_the_gpu_beside_a_model_on_the_cpu(
    gpu: Any, save_model: SaveModel, save_engine: SaveModel, data: Path
) -> None:
    record = bench([save_model(), save_engine()], data, threads=1, workers=1)
    assert [row.device for row in record.rows] == ["cpu", "cuda"]
    assert [row.images_per_s is None for row in record.rows] == [True, False]
    assert len(bench_tables(record)[-1].rows) == 1


def test_images_an_engine_was_calibrated_on_are_refused(gpu: Any, save_engine: SaveModel, data: Path) -> None:
    engine = save_engine()
    manifest = json.loads((engine.parent / "tiny.engine.json").read_text())
    digests = [sample.digest() for sample in open_dataset(data)][:2]
    (engine.parent / "tiny.engine.json").write_text(
        json.dumps(manifest | {"calibration": {"method": "kl", "digests_sha256": digests}})
    )
    with pytest.raises(UserError, match=r"tiny\.engine was calibrated on 2 of the 6 images"):
        bench([engine], data, threads=1, workers=1)


def test_an_engine_that_fails_names_itself_and_the_image(gpu: Any, save_engine: SaveModel, data: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.engine on 0: .* illegal memory access"):
        bench([save_engine(fails_on=1)], data, threads=1, workers=1)
    with pytest.raises(UserError, match=r"tiny\.engine on 0: .* illegal memory access"):  # in the pipeline only
        bench([save_engine(fails_on=3)], data, threads=1, workers=1, batch=3)


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_gpu_it_is_an_error(save_model: SaveModel, data: Path) -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        bench([save_model()], data, device="cuda")
