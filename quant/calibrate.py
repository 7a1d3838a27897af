"""One streaming pass over the calibration images: the statistics from which every plan is made.

Memory does not grow with the number of images, and nothing depends on their order or on how they were divided over
processes: counts are integers, and channel means are summed in fixed point, so that sums are exact. Many images can so
be divided over processes or machines:

    python quant/calibrate.py out/u2netp.onnx --calib DATA --shard 1/4 --output part1.npz     (2/4, 3/4, 4/4 elsewhere)
    python quant/calibrate.py --merge part1.npz part2.npz part3.npz part4.npz --output all.npz
    python quant/build_engine.py out/u2netp.onnx --int8 --statistics all.npz
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer

from sodeploy.artifacts import atomic_write
from sodeploy.calib_data import Sample, open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.inspect_graph import as_input, distinct, opened, per_channel
from sodeploy.quant.graph import PASSING, Network, channel_axis_read, load_network
from sodeploy.quant.planning.plan import Rounding
from sodeploy.terminal import note, progress, run

_FORMAT = 2  # of the file of statistics
_FIXED_POINT = 2.0**24
_CHECKPOINT_SECONDS = 20.0  # the most work that an interrupt can cost


@dataclass
class Statistics:
    """What calibration saw of one network.

    Attributes:
        network: sha256 of the ONNX file.
        histograms: tensor -> magnitudes.
        channel_sums: input tensor of a weighted layer -> (C,) int64, the sum over images of each channel's mean, in
            units of 2**-24.
        images: image digest -> name, of the images that were counted.
        half: tensor -> magnitudes in about half of the images, those that `is_in_half`: how far the ranges of these are
            from the ranges of all says whether the images were enough (quant/planning/drift.py).
        steps: node -> int8, weights that were rounded adaptively (quant/planning/rounding.py); kept in a file of their
        own,
            which `rounding` names.
        input_errors: input tensor of a layer -> (C,), how far quantizing it moves each channel's mean
            (quant/planning/input_error.py); like `steps` no part of the file.
    """

    network: str
    histograms: dict[str, MagnitudeHistogram] = field(default_factory=dict)
    channel_sums: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    half: dict[str, MagnitudeHistogram] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    rounding: Rounding | None = None
    input_errors: dict[str, np.ndarray] = field(default_factory=dict)

    def channel_means(self, tensor: str) -> np.ndarray:
        """`(C,) float64`: the mean of each channel over all images and positions."""
        return self.channel_sums[tensor] / (_FIXED_POINT * len(self.images))

    def merge(self, other: "Statistics") -> None:
        """Add what another process or machine saw of other images.

        Raises:
            UserError: of another network, or an image stands in both.
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
            arrays[f"bins_{index}"] = occupied.astype(np.int32)
            arrays[f"counts_{index}"] = histogram.counts[occupied]
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
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]

    def _all_histograms(self) -> Iterator[tuple[str, bool, MagnitudeHistogram]]:
        """(tensor, whether of the half, histogram)"""
        for in_half, histograms in ((False, self.histograms), (True, self.half)):
            for tensor, histogram in sorted(histograms.items()):
                yield tensor, in_half, histogram


def is_in_half(digest: str) -> bool:
    """Whether an image is one of those counted a second time: by its content, whenever and wherever it is met."""
    return int(digest[-1], 16) % 2 == 0


def load_statistics(path: str | Path) -> Statistics:
    """Read what `Statistics.save` wrote.

    Raises:
        UserError: not such a file.
    """
    try:
        with np.load(path) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header.get("format") != _FORMAT:
                raise ValueError("written by another version")
            statistics = Statistics(header["network"], images=header["images"])
            for index, (tensor, low, high, in_half) in enumerate(header["tensors"]):
                histogram = MagnitudeHistogram()
                (statistics.half if in_half else statistics.histograms)[tensor] = histogram
                histogram.counts[arrays[f"bins_{index}"]] = arrays[f"counts_{index}"]
                histogram.low, histogram.high = low, high
            for index, tensor in enumerate(header["channels"]):
                statistics.channel_sums[tensor] = arrays[f"channels_{index}"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; calibrate first") from None
    except Exception as error:  # zipfile, json and numpy each have their own
        raise UserError(f"{path} holds no calibration statistics ({error}); delete it and calibrate again") from None
    return statistics


def observed_tensors(network: Network) -> list[str]:
    """The tensors whose magnitudes must be counted: those that do not merely pass on the values of others.

    The range of a MaxPool's or a Resize's output is that of its input, and a Concat's histogram is the sum of its
    inputs'; a result that only feeds a ReLU is never stored in int8.
    """
    observed = []
    for name in dict.fromkeys([network.input, *(output for node in network.nodes for output in node.output)]):
        node = network.producer.get(name)
        if name not in network.float_tensors or (node is not None and node.op_type in (*PASSING, "Concat")):
            continue
        readers = network.consumers[name]
        if readers and all(reader.op_type == "Relu" for reader in readers):
            continue
        observed.append(name)
    return observed


def calibrate(
    network: Network,
    images: Iterable[Sample],
    statistics: Statistics | None = None,
    checkpoint: Callable[[Statistics], None] | None = None,
    threads: int | None = None,
) -> Statistics:
    """Run the float32 network over `images` once and count what its tensors hold.

    Args:
        images: samples of `calib_data`; masks are not read.
        statistics: of an earlier, interrupted run over some of the same images, to be completed.
        checkpoint: called with the statistics so far, of whole images only: every 20 seconds, and at the end.
        threads: of onnxruntime; None for one per core.

    Returns:
        Statistics over all images: those of `statistics` and the new ones. An image that occurs twice counts once.

    Raises:
        UserError: no image; a value in the network is NaN or infinite (image and tensor named).
    """
    statistics = statistics or Statistics(network.digest)
    observer = Observer(network, threads)
    saved = time.monotonic()
    for sample in progress(images, "calibrating"):
        digest = sample.digest()
        if digest in statistics.images:
            continue
        values, means = observer.run(sample)
        for tensor, array in values.items():
            histogram = MagnitudeHistogram()
            try:
                histogram.add(array)
            except ValueError as error:
                raise UserError(
                    f"image {sample.name}, tensor {tensor}: {error}; the float32 network itself overflows there, so "
                    "check the checkpoint and the contract's mean, std and divide_by"
                ) from None
            for counted in (statistics.histograms, statistics.half) if is_in_half(digest) else (statistics.histograms,):
                counted.setdefault(tensor, MagnitudeHistogram())
                counted[tensor] += histogram
        for tensor, mean in means.items():
            fixed = np.rint(mean.astype(np.float64) * _FIXED_POINT).astype(np.int64)
            statistics.channel_sums[tensor] = statistics.channel_sums.get(tensor, 0) + fixed
        statistics.images[digest] = sample.name
        if checkpoint and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            checkpoint(statistics)
            saved = time.monotonic()
    if not statistics.images:
        raise UserError("the calibration set holds no image; give --calib a folder or a list with images")
    if checkpoint:
        checkpoint(statistics)
    return statistics


class Observer:
    """The float32 network, made to return what calibration looks at besides its map."""

    def __init__(self, network: Network, threads: int | None = None) -> None:
        self.contract = network.contract
        self.observed = observed_tensors(network)
        averaged = {node.input[0]: node for node in network.nodes if network.is_weighted(node)}
        self.averaged = [name for name in averaged if name in network.float_tensors]
        model = onnx.ModelProto()
        model.CopyFrom(network.model)
        means = [
            per_channel(model.graph, "ReduceMean", name, len(network.shape(name)), channel_axis_read(averaged[name]))
            for name in self.averaged
        ]
        self._run = opened(model, [*self.observed, *means], threads)

    def run(self, sample: Sample) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """One image: the observed tensors, float32, and per averaged tensor its channel means, `(C,) float32`."""
        values = self._run(as_input(sample, self.contract))
        count = len(self.observed)
        return (
            dict(zip(self.observed, values[:count], strict=True)),
            dict(zip(self.averaged, values[count:], strict=True)),
        )


def gather(network: Network, images: Iterable[Sample], file: Path) -> Statistics:
    """Statistics over exactly `images`: from `file` as far as it holds them, the rest by running the network.

    `file` holds them all afterwards, and so far as they were counted if this is interrupted.
    """
    samples = distinct(images)
    statistics = Statistics(network.digest)
    if file.exists():
        found = load_statistics(file)
        if found.network == network.digest and found.images.keys() <= samples.keys():
            statistics = found
            note(f"{file}: {len(found.images)} of {len(samples)} images are counted already")
        else:
            note(f"{file} is of another network or of other images; calibrating anew")
    if statistics.images.keys() != samples.keys() or not samples:
        left = [sample for digest, sample in samples.items() if digest not in statistics.images]
        statistics = calibrate(network, left, statistics, checkpoint=lambda so_far: so_far.save(file))
    return statistics


def select_shard(images: Iterable[Sample], shard: str) -> list[Sample]:
    """The part of a set that `shard`, "2/4" for the second of four, names: of equal sizes, no image in two of them.

    Raises:
        UserError: not such a text.
    """
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {shard} is not a part such as 1/4, the first of four")
    samples = distinct(images)  # a copy of an image must not stand in another shard
    return [samples[digest] for digest in sorted(samples)][int(part) - 1 :: int(parts)]


def main(
    files: Annotated[list[Path], typer.Argument(help="float32 ONNX with a contract; with --merge the parts, .npz")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .npz to write; completed if it was interrupted")],
    calib: Annotated[str | None, typer.Option(help="images: folder, list, or synthetic:calib[:N]")] = None,
    shard: Annotated[str | None, typer.Option(help="count this part of them alone, such as 1/4")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="add up parts that were counted apart")] = False,
) -> None:
    """Count what a network's tensors hold over images, or add up such counts; quant/build_engine.py reads them."""
    if merge:
        if calib is not None or shard is not None:
            raise UserError("--merge adds up files of statistics; leave --calib and --shard out")
        statistics = load_statistics(files[0])
        for part in files[1:]:
            statistics.merge(load_statistics(part))
        statistics.save(output)
    else:
        if len(files) > 1 or calib is None:
            raise UserError("give one ONNX file and --calib DATA, or files of statistics and --merge")
        images: Iterable[Sample] = open_dataset(calib, masks=False)
        statistics = gather(load_network(files[0]), select_shard(images, shard) if shard else images, output)
    note(f"wrote {output}: {len(statistics.images)} images, {len(statistics.histograms)} tensors")


if __name__ == "__main__":
    run(main)
