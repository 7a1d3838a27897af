"""Who is told that a CPU saturates int8 sums."""

from pathlib import Path

import pytest

from sodeploy.runtime import cpu
from sodeploy.runtime.contract import DIALECT_KEY, PRECISION_KEY
from sodeploy.runtime.session import open_session

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("text", "saturates"),
    [
        ("processor : 0\nflags : fpu sse4_2 avx avx2 fma\n", True),
        ("flags\t\t: avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: avx2 avx_vnni\n", False),
        ("processor : 0\nFeatures : fp asimd asimddp\n", False),  # ARM
        (None, False),
    ],
)
def test_x86_without_vnni_saturates(
    text: str | None, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu.saturates_int8() is saturates


@pytest.mark.parametrize(
    ("flags", "metadata", "told"),
    [
        ("avx2", {PRECISION_KEY: "int8"}, True),
        ("avx2 avx_vnni", {PRECISION_KEY: "int8"}, False),
        ("avx2", {PRECISION_KEY: "int8", DIALECT_KEY: "cpu"}, False),
        ("avx2", {}, False),
    ],
)
def test_a_session_tells_of_it_where_it_matters(
    save_model, flags, metadata, told, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    with open_session(save_model(metadata=metadata), threads=1):
        assert ("no VNNI" in capsys.readouterr().err) is told
