"""The counts of a calibration pass, and their file."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sodeploy.artifacts import atomic_write, one_line, parse_json
from sodeploy.errors import UserError
from sodeploy.quant.arrays import read_arrays
from sodeploy.quant.calibration.histogram import MagnitudeHistogram

_FORMAT = 2  # of the file
_FIXED_POINT = 2.0**24
_LARGEST_MEAN = 2.0**29  # far beyond fp16, so that no layer reads it in int8; sums of 1000 images fit into 64 bits


@dataclass
class Statistics:
    """The counts of one network over some images.

    Attributes:
        network: sha256 of the ONNX file.
        histograms: tensor -> how often each magnitude occurred.
        channel_sums: input tensor of a weighted layer -> `(C,) int64`, the mean of each channel, summed over images,
            in units of 2**-24.
        images: digest -> name of each counted image. Names are relative to the data set.
        half: tensor -> magnitudes in about half of the images, chosen by `is_in_half`. The distance between ranges of
            the half and ranges of all images shows whether the images were enough (quant/planning/drift.py).
    """

    network: str
    histograms: dict[str, MagnitudeHistogram] = field(default_factory=dict)
    channel_sums: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    half: dict[str, MagnitudeHistogram] = field(default_factory=dict)

    def channel_means(self, tensor: str) -> np.ndarray:
        """`(C,) float64`: the mean of each channel over all images and positions."""
        return self.channel_sums[tensor] / (_FIXED_POINT * len(self.images))

    def merge(self, other: "Statistics") -> None:
        """Add the counts of another process or machine, over other images.

        Raises:
            UserError: the counts are of another network, or both have an image in common.
        """
        if other.network != self.network:
            raise UserError(
                "statistics of two different networks cannot be merged; calibrate both shards on one ONNX file"
            )
        if common := self.images.keys() & other.images.keys():
            name = self.images[min(common)]
            raise UserError(
                f"both statistics counted the same {len(common)} image(s), e.g. {name}; make the shards disjoint"
            )
        for ours, theirs in ((self.histograms, other.histograms), (self.half, other.half)):
            for tensor, histogram in theirs.items():
                ours[tensor] = ours.get(tensor, MagnitudeHistogram()) + histogram
        for tensor, sums in other.channel_sums.items():
            self.channel_sums[tensor] = self.channel_sums.get(tensor, 0) + sums
        self.images |= other.images

    def save(self, path: str | Path) -> None:
        """Write to an .npz file, atomically."""
        arrays: dict[str, np.ndarray] = {}
        tensors: list[tuple[str, float, float, bool]] = []
        for index, (tensor, in_half, histogram) in enumerate(self._all_histograms()):
            (occupied,) = np.nonzero(histogram.counts)
            arrays[f"bins_{index}"] = _short(occupied)
            arrays[f"counts_{index}"] = _short(histogram.counts[occupied])
            tensors.append((tensor, histogram.low, histogram.high, in_half))
        for index, tensor in enumerate(channels := sorted(self.channel_sums)):
            arrays[f"channels_{index}"] = self.channel_sums[tensor]
        images = dict(sorted(self.images.items()))
        header = {
            "format": _FORMAT,
            "network": self.network,
            "images": images,
            "tensors": tensors,
            "channels": channels,
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]

    def _all_histograms(self) -> Iterator[tuple[str, bool, MagnitudeHistogram]]:
        """(tensor, whether it is of the half, histogram)"""
        for in_half, histograms in ((False, self.histograms), (True, self.half)):
            for tensor, histogram in sorted(histograms.items()):
                yield tensor, in_half, histogram


def _short(numbers: np.ndarray) -> np.ndarray:
    """The same numbers, >= 0, in the shortest integers: so the file is small without compression, which takes long."""
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))


def fixed_point(means: np.ndarray) -> np.ndarray:
    """Means in units of 2**-24, int64. They end at 2**29; one that overflowed is 0 or ends there."""
    finite = np.nan_to_num(means.astype(np.float64), nan=0.0)
    return np.rint(np.clip(finite, -_LARGEST_MEAN, _LARGEST_MEAN) * _FIXED_POINT).astype(np.int64)


def is_in_half(digest: str) -> bool:
    """Whether an image belongs to the half that is counted a second time; its content alone decides."""
    return int(digest[-1], 16) % 2 == 0


def load_statistics(path: str | Path) -> Statistics:
    """Read a file of `Statistics.save`.

    Raises:
        UserError: it is missing, or not such a file.
    """
    remedy = "delete it and calibrate again"
    arrays = read_arrays(path, "calibration statistics", remedy)
    try:
        header = parse_json(arrays["header"].tobytes(), path, remedy)
        if header.get("format") != _FORMAT:
            raise ValueError("written by another version")
        if not isinstance(header["network"], str) or not all(map(_is_text, header["images"].items())):
            raise ValueError("its header names no network and images")
        statistics = Statistics(header["network"], images=header["images"])
        for index, (tensor, low, high, in_half) in enumerate(header["tensors"]):
            if not isinstance(tensor, str) or not -math.inf < float(low) <= 0 <= float(high) < math.inf:
                raise ValueError(f"the range of {tensor} is {low} to {high}")
            histogram = MagnitudeHistogram()
            (statistics.half if in_half else statistics.histograms)[tensor] = histogram
            bins, counts = arrays[f"bins_{index}"], arrays[f"counts_{index}"]
            if bins.shape != counts.shape or bins.dtype.kind not in "iu" or (bins < 0).any() or (counts < 0).any():
                raise ValueError(f"the counts of {tensor} make no sense")
            histogram.counts[bins] = counts
            histogram.low, histogram.high = float(low), float(high)
        for index, tensor in enumerate(header["channels"]):
            sums = arrays[f"channels_{index}"]
            if not isinstance(tensor, str) or sums.ndim != 1 or sums.dtype != np.int64:
                raise ValueError(f"the channel sums of {tensor} make no sense")
            statistics.channel_sums[tensor] = sums
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} holds no calibration statistics ({one_line(error)}); {remedy}") from None
    return statistics


def _is_text(pair: tuple[object, object]) -> bool:
    return all(isinstance(part, str) for part in pair)
