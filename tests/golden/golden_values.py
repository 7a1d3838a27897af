"""Expected values of the published code: cut down in this repository, whole where the research data lie.

README.md beside this file describes the format; `cut.py` writes it.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from research_data import research_folder

_FOLDER = Path(__file__).resolve().parent
DATA = _FOLDER / "data"
METRICS = _FOLDER / "metrics"  # three predictions, their masks, and the scores that PySODMetrics publishes for them
SAMPLES = 256  # values kept of a tensor that is cut
_SUMMARY = 4  # mean, deviation, least and largest value, which stand before the samples


def positions(key: str, size: int) -> np.ndarray:
    """Flat indices, ascending, of the values kept of a cut tensor. They depend on its name and size only."""
    return np.sort(np.random.RandomState(zlib.crc32(key.encode())).permutation(size)[:SAMPLES])


def summary(values: np.ndarray) -> np.ndarray:
    """Mean, population standard deviation, least and largest value, computed in float64."""
    exact = values.astype(np.float64)
    return np.array([exact.mean(), exact.std(), exact.min(), exact.max()], np.float32)


def to_planes(values: np.ndarray) -> np.ndarray:
    """All first bytes, then all second ones: signs and exponents resemble each other and compress better alone."""
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(len(values), -1).T)


def from_planes(planes: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of `to_planes`."""
    return np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<")).reshape(-1).astype(kind)


class Golden:
    """The golden values of one network or one function, by name: `Golden("u2netp")`.

    Every comparison reads the values in this repository. Where the research data lie (SODEPLOY_RESEARCH), it reads the
    whole tensors there too.
    """

    def __init__(self, name: str) -> None:
        with np.load(DATA / f"{name}.npz") as file:
            index = json.loads(file["index"].tobytes())
            values = {kind: from_planes(file[kind], kind) for kind in file.files if kind != "index"}
        self.state_dict: list[tuple[str, list[int], str]] = [tuple(entry) for entry in index["state_dict"]]
        self.texts: dict[str, Any] = index["texts"]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: dict[str, np.ndarray] = {}
        read = dict.fromkeys(values, 0)
        for key, shape, kind, count in index["tensors"]:
            self._shapes[key] = tuple(shape)
            self._kept[key] = values[kind][read[kind] : read[kind] + count]
            read[kind] += count
        whole = research_folder() / "networks" / index["source"]
        self._whole = np.load(whole) if whole.is_file() else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __getitem__(self, key: str) -> np.ndarray:
        """A tensor that is kept whole: a parameter, an input, or any tensor of few values."""
        kept = self._kept[key]
        assert not self._is_cut(key), f"{key} is cut: compare with `check`"
        return kept.reshape(self._shapes[key])

    def check(self, key: str, found: Any, *, atol: float = 0, rtol: float = 0) -> None:
        """Assert that `found` (an array, a tensor without gradient, or a number) is the golden tensor `key`.

        The tolerances are `numpy.testing.assert_allclose`'s. Mean, deviation and extremes of a cut tensor get the
        largest tolerance of its values: they cannot differ by more where no value does.
        """
        got = np.asarray(found)
        shape = self._shapes[key]
        assert got.shape == shape or got.size == np.prod(shape) == 1, f"{key} has shape {shape}, not {got.shape}"
        got = got.reshape(shape)
        if self._is_cut(key):
            expected, samples = np.split(self._kept[key], [_SUMMARY])
            largest = np.abs(expected[2:]).max()
            rounded = 1e-6 * largest  # the summary is stored in float32
            kept = got.reshape(-1)[positions(key, got.size)]
            np.testing.assert_allclose(kept, samples, atol=atol, rtol=rtol, err_msg=f"{key}, sampled")
            tolerance = atol + rtol * largest + rounded
            np.testing.assert_allclose(
                summary(got), expected, atol=tolerance, rtol=0, err_msg=f"{key}: mean, deviation, least, largest"
            )
        else:
            np.testing.assert_allclose(got, self[key], atol=atol, rtol=rtol, err_msg=key)
        if self._whole is not None:
            np.testing.assert_allclose(got, self._whole[key], atol=atol, rtol=rtol, err_msg=f"{key}, whole")

    def _is_cut(self, key: str) -> bool:
        return len(self._kept[key]) != int(np.prod(self._shapes[key]))
