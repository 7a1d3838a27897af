"""The calibration pass: run the float32 network over images and count the values of its tensors."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from sodeploy.artifacts import write_manifest
from sodeploy.calib_data import Sample
from sodeploy.errors import UserError
from sodeploy.quant.calibration.histogram import Counted, MagnitudeHistogram, count
from sodeploy.quant.calibration.inspect_graph import as_input, distinct, per_channel
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.calibration.statistics import FIXED_POINT, Statistics, is_in_half, load_statistics
from sodeploy.quant.graph import PASSING, Network, channel_axis_read
from sodeploy.terminal import note, progress

_CHECKPOINT_SECONDS = 20.0  # the most work that an interrupt can cost


@dataclass
class _Observed:
    """One image on its way into the statistics: the counts of its tensors, perhaps still to come, and channel means."""

    sample: Sample
    digest: str
    counts: list["Future[dict[str, Counted]]"] = field(default_factory=list)
    means: dict[str, np.ndarray] = field(default_factory=dict)


def calibrate(
    network: Network,
    images: Iterable[Sample],
    statistics: Statistics | None = None,
    checkpoint: Callable[[Statistics], None] | None = None,
) -> Statistics:
    """Run the float32 network over `images` once and count the values of its tensors.

    The network runs on while a thread counts what it computed last, so that counting hardly takes time of its own.

    Args:
        images: samples of `calib_data`; masks are not read.
        statistics: counts of an earlier, interrupted run over some of the same images, to be completed.
        checkpoint: called with the statistics so far, of whole images only: every 20 seconds, and at the end.

    Returns:
        Statistics over all images: those of `statistics` and the new ones. An image that occurs twice counts once.

    Raises:
        UserError: no image; a value in the network is NaN or infinite (image and tensor named).
    """
    statistics = statistics or Statistics(network.digest)
    observer = Observer(network)
    saved = time.monotonic()
    before: _Observed | None = None
    counting: Future[dict[str, Counted]] | None = None
    with ThreadPoolExecutor(1) as counter:
        for sample in progress(images, "calibrating"):
            image = _Observed(sample, sample.digest())
            if image.digest in statistics.images or (before is not None and image.digest == before.digest):
                continue
            for values, means in observer.run(sample):
                if counting is not None:
                    counting.result()  # the values of two parts are in memory at most
                counting = counter.submit(_count, values, sample.name)
                image.counts.append(counting)
                image.means |= means
            if before is not None:
                _add(statistics, before)
                if checkpoint and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    checkpoint(statistics)
                    saved = time.monotonic()
            before = image
        if before is not None:
            _add(statistics, before)
    if not statistics.images:
        raise UserError("the calibration set holds no image; give --calib a folder or a list with images")
    if checkpoint:
        checkpoint(statistics)
    return statistics


def _count(values: Mapping[str, np.ndarray], image: str) -> dict[str, Counted]:
    counted = {}
    for tensor, array in values.items():
        try:
            counted[tensor] = count(array)
        except ValueError as error:
            raise UserError(
                f"image {image}, tensor {tensor}: {error}; the float32 network itself overflows there, so "
                "check the checkpoint and the contract's mean, std and divide_by"
            ) from None
    return counted


def _add(statistics: Statistics, image: _Observed) -> None:
    """Add a whole image, or, if its counts failed, nothing."""
    parts = [part.result() for part in image.counts]
    both = (statistics.histograms, statistics.half) if is_in_half(image.digest) else (statistics.histograms,)
    for tensor, counted in (item for part in parts for item in part.items()):
        for histograms in both:
            histograms.setdefault(tensor, MagnitudeHistogram()).include(counted)
    for tensor, mean in image.means.items():
        fixed = np.rint(mean.astype(np.float64) * FIXED_POINT).astype(np.int64)
        statistics.channel_sums[tensor] = statistics.channel_sums.get(tensor, 0) + fixed
    statistics.images[image.digest] = image.sample.name


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
    """The float32 network, made to return what calibration looks at besides its map."""

    def __init__(self, network: Network) -> None:
        self.contract = network.contract
        self.observed = observed_tensors(network)
        averaged = {node.input[0]: node for node in network.nodes if network.is_weighted(node)}
        model = copy.deepcopy(network.model)
        self._averaged = {
            per_channel(model.graph, "ReduceMean", name, len(network.shape(name)), channel_axis_read(node)): name
            for name, node in averaged.items()
            if name in network.float_tensors
        }
        _put_beside_makers(model.graph, len(network.model.graph.node))
        self._graph = GraphInParts(model, [*self.observed, *self._averaged])

    def run(self, sample: Sample) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """One image, a part of the network at a time.

        Yields:
            The observed tensors of the part, float32, and for each tensor that it averages the mean of every channel,
            `(C,) float32`.
        """
        for tensors in self._graph.run(as_input(sample, self.contract)):
            means = {self._averaged[name]: tensors.pop(name) for name in list(tensors) if name in self._averaged}
            yield tensors, means


def _put_beside_makers(graph: onnx.GraphProto, count: int) -> None:
    """Move every node behind the first `count` to the node that makes its input, so that both are in one part."""
    nodes, added = list(graph.node[:count]), list(graph.node[count:])
    made = {name for node in nodes for name in node.output}
    ordered = [node for node in added if node.input[0] not in made]
    for node in nodes:
        ordered += [node, *(one for one in added if one.input[0] in node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


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
