"""The calibration pass: run the float32 network over images and count the values of its tensors."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import Sample, open_photographs
from sodeploy.errors import UserError
from sodeploy.quant.calibration.channels import Channels
from sodeploy.quant.calibration.histogram import Counted, MagnitudeHistogram, add_up, count
from sodeploy.quant.calibration.inspect_graph import as_input, distinct, side_by_side
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.calibration.statistics import Statistics, fixed_point, is_in_half, load_statistics
from sodeploy.quant.graph import PASSING, Network, attribute, channel_axis_read, load_network
from sodeploy.quant.weights_aside import without_constants
from sodeploy.terminal import note, progress

_CHECKPOINT_SECONDS = 20.0  # the most work that an interrupt can cost
Checkpoint = Callable[[Statistics], None]


@dataclass(frozen=True)
class Observed:
    """One image in the network.

    Attributes:
        counts: tensor -> its magnitudes.
        means: input of a layer -> the mean of each channel, `(C,) float64`.
    """

    counts: Mapping[str, Counted]
    means: Mapping[str, np.ndarray]


def calibrate(
    network: Network | str | Path,
    images: Iterable[Sample] | str | Path,
    statistics: Statistics | None = None,
    checkpoint: Checkpoint | None = None,
) -> Statistics:
    """Run the float32 network over `images` once and count the values of its tensors.

    Several images are on their way at a time, each on a core of its own, so that no core waits for another one.

    Args:
        network: a float32 network, or its ONNX file.
        images: samples, or a data set as `open_photographs` takes it.
        statistics: counts of an earlier, interrupted run over some of the same images, to be completed.
        checkpoint: called with the statistics so far, of whole images only: every 20 seconds, and at the end.

    Returns:
        Statistics over all images: those of `statistics` and the new ones. An image that occurs twice counts once.

    Raises:
        UserError: no image; a value in the network is NaN or infinite (image and tensor named).
    """
    network = network if isinstance(network, Network) else load_network(network)
    images = open_photographs(images) if isinstance(images, str | Path) else images
    statistics = statistics or Statistics(network.digest)
    samples = {digest: image for digest, image in distinct(images).items() if digest not in statistics.images}
    counted = add_images(statistics, Observer(network), samples)
    return keep(progress(counted, "calibrating", total=len(samples)), statistics, checkpoint)


def add_images(statistics: Statistics, observer: "Observer", samples: Mapping[str, Sample]) -> Iterator[Sample]:
    """Count images, by their digests; gives each one when `statistics` holds it."""
    observed = side_by_side(observer.observe, samples.values(), observer.at_a_time)
    for (digest, sample), image in zip(samples.items(), observed, strict=True):
        _add(statistics, digest, image)
        statistics.images[digest] = sample.name
        yield sample


def keep(steps: Iterable[object], statistics: Statistics, checkpoint: Checkpoint | None) -> Statistics:
    """Take all steps, each of which adds to `statistics`; returns them. `checkpoint` as of `calibrate`.

    Raises:
        UserError: no image was counted.
    """
    saved = time.monotonic()
    for _ in steps:
        if checkpoint and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            checkpoint(statistics)
            saved = time.monotonic()
    if not statistics.images:
        raise UserError("the calibration set holds no image; give --calib a folder or a list with images")
    if checkpoint:
        checkpoint(statistics)
    return statistics


def _add(statistics: Statistics, digest: str, image: Observed) -> None:
    both = (statistics.histograms, statistics.half) if is_in_half(digest) else (statistics.histograms,)
    for tensor, counted in image.counts.items():
        for histograms in both:
            if tensor not in histograms:
                histograms[tensor] = MagnitudeHistogram()
            histograms[tensor].include(counted)
    for tensor, mean in image.means.items():
        statistics.channel_sums[tensor] = statistics.channel_sums.get(tensor, 0) + fixed_point(mean)


def gather(
    network: Network, images: Iterable[Sample], file: Path, count: Callable[..., Statistics] = calibrate
) -> Statistics:
    """Statistics over exactly `images`; the network runs only on images that `file` does not hold yet.

    `file` then holds them all, with a manifest. After an interrupt it holds the images counted so far.

    Args:
        count: `calibrate`, or another function with its parameters.
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
        statistics = count(network, left, statistics, checkpoint=lambda so_far: so_far.save(file))
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
    """The float32 network, made to return what calibration looks at besides its map."""

    def __init__(self, network: Network) -> None:
        self.contract = network.contract
        self.observed = observed_tensors(network)
        read = {node.input[0]: channel_axis_read(node) for node in network.nodes if network.is_weighted(node)}
        axes = {name: axis for name, axis in read.items() if name in network.float_tensors}
        self._joined = {name: list(_joined(network, name, axes)) for name in axes}
        self._averaged = {
            part: (axes[name], len(network.shape(part))) for name, parts in self._joined.items() for part in parts
        }
        wanted = dict.fromkeys([*self.observed, *self._averaged])
        constants = network.model.graph.initializer
        self._graph = GraphInParts(without_constants(network.model), list(wanted), constants, ordered=False)
        self._counted = frozenset(self.observed)
        self.at_a_time = self._graph.at_a_time

    def observe(self, sample: Sample) -> Observed:
        """Run one image, and count the values of a part of the network before the next part makes its own.

        Raises:
            UserError: a value is NaN or infinite.
        """
        counts: dict[str, Counted] = {}
        means: dict[str, np.ndarray] = {}
        for tensors in self._graph.run(as_input(sample, self.contract)):
            for name, values in tensors.items():
                channels = Channels(values, *self._averaged[name]) if name in self._averaged else None
                if name in self._counted:
                    counts[name] = _count(values, channels, name, sample.name)
                elif channels is not None:
                    add_up(channels.rows, channels.sums)
                if channels is not None:
                    means[name] = channels.means()
        return Observed(
            counts, {name: np.concatenate([means[part] for part in parts]) for name, parts in self._joined.items()}
        )


def _count(values: np.ndarray, channels: Channels | None, tensor: str, image: str) -> Counted:
    try:
        return count(values) if channels is None else count(channels.rows, channels.sums)
    except ValueError as error:
        raise UserError(
            f"image {image}, tensor {tensor}: {error}; the float32 network itself overflows there, so "
            "check the checkpoint and the contract's mean, std and divide_by"
        ) from None


def _joined(network: Network, tensor: str, axes: Mapping[str, int]) -> Iterator[str]:
    """The tensors whose channels a tensor joins; the tensor alone if no Concat makes it.

    The means of a joined tensor are the means of its parts, most of which are read elsewhere too.

    Args:
        axes: input of a layer -> its axis of channels.
    """
    node = network.producer.get(tensor)
    if node is None or node.op_type != "Concat" or attribute(node, "axis") != 1 or axes.get(tensor, 1) != 1:
        yield tensor
        return
    parts = list(node.input)
    known = set(parts) <= network.float_tensors and all(map(network.has_rank, parts))
    if known and all(axes.get(part, 1) == 1 for part in parts):
        for part in parts:
            yield from _joined(network, part, axes)
    else:
        yield tensor


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
