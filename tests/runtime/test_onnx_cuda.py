"""onnxruntime on a GPU, as far as it shows without one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from sodeploy.runtime import session as session_module
from sodeploy.runtime.onnx_cuda import library_folders, nodes_on_cpu, preload_libraries, prepare_cuda
from sodeploy.runtime.session import OnnxRuntimeSession


def test_libraries_of_another_site_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nvidia/cu13/lib/libcudart.so.13", "nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cu13/include/cuda.h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    asked: list[str | None] = []

    def preload(directory: str | None = None) -> None:
        asked.append(directory)
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    preload_libraries()
    there = [str(tmp_path / "nvidia/cu13/lib"), str(tmp_path / "nvidia/cudnn/lib")]
    assert asked[0] is None
    assert set(there) <= set(asked[1:])
    assert set(there) <= set(map(str, library_folders()))
    assert not capsys.readouterr().out


def session_of(*parts: tuple[str, str]) -> Any:
    return SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=lambda: [
            SimpleNamespace(ep_name=name, get_nodes=lambda node=node: [SimpleNamespace(op_type=node, name=f"/{node}")])
            for name, node in parts
        ],
    )


def test_nodes_that_fall_to_the_cpu_are_named(
    save_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = session_of(
        ("CUDAExecutionProvider", "Conv"), ("CPUExecutionProvider", "Resize"), ("CPUExecutionProvider", "Gather")
    )
    assert nodes_on_cpu(found) == ["Resize /Resize"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(session_module, "prepare_cuda", lambda: None)
    given: dict[str, Any] = {}

    def start(path: Path, options: Any, **settings: Any) -> Any:
        given.update(settings)
        return found

    monkeypatch.setattr(session_module, "start_session", start)
    with pytest.raises(AttributeError, match="get_modelmeta"):  # the stand-in has no more
        OnnxRuntimeSession(save_model(), "cuda", gpu=3)
    assert "1 nodes run on the CPU, which copies their tensors at every run: Resize /Resize" in capsys.readouterr().err
    options = given["provider_options"]
    assert (options["device_id"], options["use_tf32"]) == ("3", "0")  # fp32 is fp32
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"  # two sessions may start side by side


def test_onnxruntime_prints_nothing_of_algorithms_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    severities: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", severities.append)
    prepare_cuda()
    assert severities == [4]
