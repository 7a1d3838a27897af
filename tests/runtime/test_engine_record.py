"""Whether an engine fits the machine: decided from its record, before anything of TensorRT is touched."""

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sodeploy.artifacts import manifest_path, write_manifest
from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu import driver as gpu
from sodeploy.runtime.gpu import engine_record
from sodeploy.runtime.gpu.driver import Gpu
from sodeploy.runtime.gpu.engine_record import check_engine, read_record

REBUILD = "python quant/engine.py small.onnx --output small.engine --builder tensorrt"


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Writes an engine with the record of one that TensorRT 10.13 built on an L4."""

    def make(**facts: Any) -> Path:
        path = tmp_path / "small.engine"
        path.write_bytes(b"plan")
        contract = Contract(network="small", height=64, width=64, mean=(0, 0, 0), std=(1, 1, 1))
        record = {
            "contract": contract.model_dump(mode="json"),
            "precision": "int8",
            "builder": "tensorrt",
            "builder_version": "10.13.0.35",
            "targets": ["sm89"],
            "gpu": "NVIDIA L4",
            "any_newer_gpu": False,
            "any_newer_version": False,
            "rebuild": REBUILD,
        }
        write_manifest(path, {}, **record | facts)
        return path

    return make


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what TensorRT and GPU are here."""

    def be(version: str | None = "10.13.0.35", here: Gpu | None = Gpu("NVIDIA L4", "sm89")) -> None:
        monkeypatch.setattr(engine_record, "installed_version", lambda _: version)
        monkeypatch.setattr(engine_record, "driver_problem", lambda: None if here else "no NVIDIA driver is installed")
        monkeypatch.setattr(engine_record, "current_gpu", lambda: here)

    return be


def test_engine_of_this_machine_passes(made: Any, machine: Any) -> None:
    machine()
    assert check_engine(made()).contract.network == "small"


@pytest.mark.parametrize(
    ("facts", "here", "message"),
    [
        ({}, {"version": "11.4.0.106"}, f"built by tensorrt 10.13.0.35, here is 11.4.0.106; build it again: {REBUILD}"),
        ({}, {"version": "10.13.1.1"}, "here is 10.13.1.1"),
        ({}, {"version": None}, "needs tensorrt 10.13.0.35: pip install"),
        ({}, {"here": Gpu("NVIDIA H200", "sm90")}, f"built for sm89, here is NVIDIA H200 .sm90.; .*: {REBUILD}"),
        ({}, {"here": None}, "runs on a GPU, but no NVIDIA driver"),
        ({"any_newer_version": True}, {"version": "10.12.9.9"}, "here is 10.12.9.9"),
        ({"any_newer_version": True}, {"version": "12.0.0.0"}, "here is 12.0.0.0"),
        ({"any_newer_gpu": True}, {"here": Gpu("NVIDIA T4", "sm75")}, "here is NVIDIA T4"),
    ],
)
def test_engine_of_another_machine_is_refused_in_one_line(
    made: Any, machine: Any, facts: dict[str, Any], here: dict[str, Any], message: str
) -> None:
    machine(**here)
    with pytest.raises(UserError, match=message) as caught:
        check_engine(made(**facts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "here"),
    [
        ({"any_newer_version": True}, {"version": "10.16.1.11"}),
        ({"any_newer_version": True}, {"version": "11.4.0.106"}),
        ({"any_newer_gpu": True}, {"here": Gpu("NVIDIA H200", "sm90")}),
        ({"builder": "tensorrt_rtx", "targets": ["sm80", "sm120"], "gpu": None}, {"here": Gpu("RTX 5090", "sm120")}),
    ],
)
def test_portable_engine_passes(made: Any, machine: Any, facts: dict[str, Any], here: dict[str, Any]) -> None:
    machine(**here)
    check_engine(made(**facts))


def test_same_architecture_under_another_name_is_a_warning(made: Any, machine: Any, capsys: Any) -> None:
    machine(here=Gpu("NVIDIA L40S", "sm89"))
    check_engine(made())
    assert "was tuned on NVIDIA L4" in " ".join(capsys.readouterr().err.split())


def test_truncated_engine_and_lost_or_broken_record(made: Any) -> None:
    path = made()
    path.write_bytes(b"pl")
    with pytest.raises(UserError, match=f"truncated or was replaced; build it again: {REBUILD}"):
        read_record(path)
    path = made()
    record = json.loads(manifest_path(path).read_text())
    del record["precision"]
    manifest_path(path).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"small\.engine\.json: precision: Field required"):
        read_record(path)
    manifest_path(path).unlink()
    with pytest.raises(UserError, match=r"no small\.engine\.json beside it"):
        read_record(path)
    with pytest.raises(UserError, match="does not exist"):
        read_record(path.parent / "none.engine")


class Driver:
    """libcuda as far as it is asked: one Blackwell GPU, or none."""

    def __init__(self, status: int = 0, count: int = 1) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA RTX PRO 6000"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 12, 76: 0}[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (OSError(), "libcuda.so.1 is missing"),
        (Driver(status=100), "cuInit returned 100"),
        (Driver(count=0), "sees no GPU"),
        (Driver(), None),
    ],
)
def test_driver(monkeypatch: pytest.MonkeyPatch, driver: Any, message: str | None) -> None:
    def load(_: str) -> Any:
        if isinstance(driver, Exception):
            raise driver
        return driver

    monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(**vars(ctypes) | {"CDLL": load}))
    gpu.driver_problem.cache_clear()
    try:
        if message is None:
            assert gpu.driver_problem() is None
            assert gpu.current_gpu() == Gpu("NVIDIA RTX PRO 6000", "sm120")
        else:
            assert message in str(gpu.driver_problem())
            with pytest.raises(UserError, match="a GPU is needed, but "):
                gpu.current_gpu()
    finally:
        gpu.driver_problem.cache_clear()
