"""The calibration pass: run the float32 network over images and count the values of its tensors."""

import copy
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.inspect_graph import as_input, distinct, opened, per_channel
from sodeploy.quant.calibration.statistics import FIXED_POINT, Statistics, is_in_half, load_statistics
from sodeploy.quant.graph import PASSING, Network, channel_axis_read
from sodeploy.terminal import note, progress

_CHECKPOINT_SECONDS = 20.0  # the most work that an interrupt can cost


def calibrate(
    network: Network,
    images: Iterable[Sample],
    statistics: Statistics | None = None,
    checkpoint: Callable[[Statistics], None] | None = None,
) -> Statistics:
    """Run the float32 network over `images` once and count the values of its tensors.

    Args:
        images: samples of `calib_data`; masks are not read.
        statistics: counts of an earlier, interrupted run, which are completed in place.
        checkpoint: called with the counts so far, of whole images only, every 20 seconds and at the end.

    Returns:
        Counts over the images of `statistics` and the new ones. An image that occurs twice counts once.

    Raises:
        UserError: there is no image; or a value in the network is NaN or infinite (the image and tensor are named).
    """
    statistics = statistics or Statistics(network.digest)
    observer = Observer(network)
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
            fixed = np.rint(mean.astype(np.float64) * FIXED_POINT).astype(np.int64)
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


def gather(network: Network, images: Iterable[Sample], file: Path) -> Statistics:
    """Statistics over exactly `images`; the network runs only on images that `file` does not hold yet.

    `file` then holds them all, with a manifest. After an interrupt it holds the images counted so far.
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
    names = {digest: sample.name for digest, sample in samples.items()}
    if statistics.images != names:  # counted under other names, in another data set or by an older version
        statistics.images = names
        statistics.save(file)
    write_manifest(file, {"model": network.path}, images=len(statistics.images))
    return statistics


def select_shard(images: Iterable[Sample], shard: str) -> list[Sample]:
    """One of several disjoint parts of a data set, equal in size.

    Args:
        shard: number and count, "2/4" for the second of four.

    Raises:
        UserError: `shard` has another form.
    """
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {shard} is not a part such as 1/4, the first of four")
    samples = distinct(images)  # so that a copy of an image does not get into another shard
    return [samples[digest] for digest in sorted(samples)][int(part) - 1 :: int(parts)]


class Observer:
    """The float32 network with the tensors that calibration counts as its outputs."""

    def __init__(self, network: Network) -> None:
        self.contract = network.contract
        self.observed = observed_tensors(network)
        averaged = {node.input[0]: node for node in network.nodes if network.is_weighted(node)}
        self.averaged = [name for name in averaged if name in network.float_tensors]
        model = copy.deepcopy(network.model)
        means = [
            per_channel(model.graph, "ReduceMean", name, len(network.shape(name)), channel_axis_read(averaged[name]))
            for name in self.averaged
        ]
        self._run = opened(model, [*self.observed, *means])

    def run(self, sample: Sample) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run one image: tensor -> values, and tensor -> mean of each channel, `(C,) float32`."""
        values = self._run(as_input(sample, self.contract))
        count = len(self.observed)
        return (
            dict(zip(self.observed, values[:count], strict=True)),
            dict(zip(self.averaged, values[count:], strict=True)),
        )


def observed_tensors(network: Network) -> list[str]:
    """The tensors whose magnitudes must be counted, in the graph's order.

    Not counted are tensors that only pass on values: a MaxPool or a Resize keeps the range of its input, and the
    histogram of a Concat is the sum of its inputs' histograms. Nor is a result that only a ReLU reads, since it is
    never stored in int8.
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
