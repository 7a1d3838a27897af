"""The golden values in this repository: complete, small, and strict enough to notice a wrong output."""

import json
from pathlib import Path

import cut
import golden_values
import numpy as np
import pytest
from golden_values import DATA, METRICS, SAMPLES, Golden, positions, summary
from research_data import SOURCES, ResearchFile, reason_missing

from sodeploy.training.models import NETWORKS

SHAPE = (1, 1, 30, 40)
# Ours; SwinB on another grid; and the networks before pruning, whose sizes test_csnet.py checks
WITHOUT_GOLDEN_VALUES = {"u2net_tiny", "inspyrenet_swinb_1024", "csnet_x1_unpruned", "csnet_x2_unpruned"}


@pytest.fixture
def tensor() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, SHAPE).astype(np.float32)


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: np.ndarray) -> Golden:
    """Golden values of one cut tensor `map`, one tensor `input` kept whole and one number `loss`."""
    folder = tmp_path / "networks" / "made"
    folder.mkdir(parents=True)
    np.savez(folder / "golden.npz", map=tensor, input=tensor, loss=np.array([2.5]))
    source = cut.Source("made/golden.npz", cut=("map", "loss"), whole=("input",))
    monkeypatch.setattr(cut, "SOURCES", {"made": source})
    cut.write(tmp_path / "networks", tmp_path / "data")
    monkeypatch.setattr(golden_values, "DATA", tmp_path / "data")
    monkeypatch.setenv("SODEPLOY_RESEARCH", str(tmp_path / "absent"))
    return Golden("made")


def test_what_was_cut_is_found_equal(golden: Golden, tensor: np.ndarray) -> None:
    golden.check("map", tensor)
    golden.check("map", tensor + np.float32(1e-4), atol=2e-4)
    golden.check("input", tensor)
    golden.check("loss", 2.5)
    np.testing.assert_array_equal(golden["input"], tensor)
    with pytest.raises(AssertionError, match="map is cut"):
        golden["map"]


def test_one_wrong_sample_is_noticed(golden: Golden, tensor: np.ndarray) -> None:
    tensor.reshape(-1)[positions("map", tensor.size)[100]] += 0.01
    with pytest.raises(AssertionError, match="map, sampled"):
        golden.check("map", tensor, atol=1e-3)


@pytest.mark.parametrize("wrong", ["one outlier", "many small errors"])
def test_errors_beside_the_samples_are_noticed(golden: Golden, tensor: np.ndarray, wrong: str) -> None:
    beside = np.setdiff1d(np.arange(tensor.size), positions("map", tensor.size))
    if wrong == "one outlier":
        tensor.reshape(-1)[beside[7]] = tensor.max() + 0.01
    else:
        tensor.reshape(-1)[beside] += 0.01
    with pytest.raises(AssertionError, match="map: mean, deviation, least, largest"):
        golden.check("map", tensor, atol=1e-3)


def test_another_shape_is_noticed(golden: Golden, tensor: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"map has shape \(1, 1, 30, 40\), not \(1, 1, 40, 30\)"):
        golden.check("map", tensor.transpose(0, 1, 3, 2))


def test_where_research_data_lie_every_value_counts(
    golden: Golden, tensor: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = np.setdiff1d(np.arange(tensor.size), positions("map", tensor.size))
    inner = beside[np.argmin(np.abs(tensor.reshape(-1)[beside] - tensor.mean()))]
    tensor.reshape(-1)[inner] += 0.01  # too little for the summary
    golden.check("map", tensor, atol=1e-3)
    monkeypatch.setenv("SODEPLOY_RESEARCH", str(tmp_path))
    with pytest.raises(AssertionError, match="map, whole"):
        Golden("made").check("map", tensor, atol=1e-3)


def test_the_same_arrays_give_the_same_bytes(golden: Golden, tmp_path: Path) -> None:
    cut.write(tmp_path / "networks", tmp_path / "again")
    assert (tmp_path / "again" / "made.npz").read_bytes() == (tmp_path / "data" / "made.npz").read_bytes()


def test_positions_are_spread_and_depend_on_the_name() -> None:
    found = positions("map", 10_000)
    assert len(set(found)) == SAMPLES
    assert found.max() < 10_000
    assert found.tolist() == sorted(found)
    assert found.tolist() != positions("other", 10_000).tolist()
    assert positions("map", 100).tolist() == list(range(100))


def test_the_summary_is_numpys() -> None:
    np.testing.assert_array_equal(summary(np.array([1.0, 2.0, 3.0, 6.0])), np.float32([3, np.sqrt(3.5), 1, 6]))


def test_the_files_are_small_and_every_network_has_one() -> None:
    files = {path.stem: path for path in DATA.iterdir()}
    assert set(files) == set(cut.SOURCES)
    assert set(NETWORKS) - WITHOUT_GOLDEN_VALUES == {name for name in files if Golden(name).state_dict}
    assert sum(path.stat().st_size for path in (*files.values(), *METRICS.rglob("*.*"))) < 1.5e6


def test_the_files_are_what_the_script_makes(research_file: ResearchFile) -> None:
    networks = research_file("networks")
    for name, source in cut.SOURCES.items():
        made = cut.cut_down(networks, source)
        with np.load(DATA / f"{name}.npz") as kept:
            assert json.loads(made["index"].tobytes()) == json.loads(kept["index"].tobytes()), name
            assert set(kept) == set(made)
            for kind in kept:
                np.testing.assert_array_equal(kept[kind], made[kind], err_msg=name)


@pytest.mark.parametrize("start", SOURCES)
def test_a_skipped_test_says_what_is_missing_and_its_source(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SODEPLOY_RESEARCH", "/somewhere")
    reason = reason_missing(f"{start}file")
    assert reason.startswith(f"needs {start}file in /somewhere (the folder of SODEPLOY_RESEARCH): ")
    assert SOURCES[start] in reason
