"""Runs a graph to read any of its tensors, and picks the images to run it on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx

from sodeploy.calib_data import Sample
from sodeploy.quant.weights_aside import without_constants
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.onnx_memory import share_memory
from sodeploy.runtime.onnx_session import session_options, start_session
from sodeploy.runtime.processing import preprocess
from sodeploy.workers import usable_cores

if TYPE_CHECKING:
    import onnxruntime

Item = TypeVar("Item")
Result = TypeVar("Result")
_LARGE = 2**30  # bytes of all tensors that a graph makes of one image

Run = Callable[[np.ndarray], list[np.ndarray]]  # (N, 3, h, w) float32 -> the outputs


def opened(
    model: onnx.ModelProto,
    outputs: Sequence[str] | None = None,
    constants: Iterable[onnx.TensorProto] = (),
    *,
    shared_memory: bool = False,
) -> Run:
    """Open a graph in onnxruntime on the CPU, to be run by `side_by_side`.

    Args:
        outputs: float tensors to return instead of the graph's outputs; nodes that none of them needs do not run.
        constants: initializers besides the model's own.
        shared_memory: as of `share_memory`.
    """
    if outputs is not None:
        constants = [*model.graph.initializer, *constants]
        model = without_constants(model)
        del model.graph.output[:]
        for name in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    at_a_time = images_at_a_time(model)
    options = inspection_options(arena=at_a_time > 1, at_a_time=at_a_time)
    if shared_memory:
        share_memory(options)
    session = start_session(model, options, constants=constants)
    name = session.get_inputs()[0].name
    given = [output.name == name for output in session.get_outputs()]

    def run(image: np.ndarray) -> list[np.ndarray]:
        # Before 1.26, onnxruntime returns a graph's input without keeping its memory alive.
        values = session.run(None, {name: image})
        return [image if same else np.asarray(value) for same, value in zip(given, values, strict=True)]

    return run


def inspection_options(arena: bool = True, at_a_time: int | None = None) -> "onnxruntime.SessionOptions":
    """Options for a graph many of whose tensors are outputs: the cores are shared by the images of `side_by_side`.

    Args:
        arena: keep memory for the next run. It never shrinks.
        at_a_time: as of `side_by_side`.
    """
    options = session_options(max(1, usable_cores() // (at_a_time or _at_a_time())))
    options.enable_mem_pattern = False  # every output would be planned for as if it lived throughout
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting takes a core from counting
    return options


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], at_a_time: int | None = None
) -> Iterator[Result]:
    """The results of `work` for each item, such as an image, in their order. Several threads work, each on one item.

    An error in one call ends all: the items that wait are left. Few results wait for their turn.

    Args:
        at_a_time: the number of threads; one per core, up to four, by default.
    """
    count = at_a_time or _at_a_time()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _at_a_time() -> int:
    """Items that are on their way at the same time; each takes memory of its own."""
    return min(4, usable_cores())


def images_at_a_time(model: onnx.ModelProto) -> int:
    """The images that run in a graph at the same time: one where the tensors of one image take gigabytes.

    Args:
        model: its types and shapes inferred.
    """
    return 1 if sum(map(tensor_bytes, model.graph.value_info)) >= _LARGE else _at_a_time()


def tensor_bytes(info: onnx.ValueInfoProto) -> int:
    """The bytes of a float32 tensor; an open dimension counts as 1."""
    return 4 * prod(dim.dim_value or 1 for dim in info.type.tensor_type.shape.dim)


def per_channel(graph: onnx.GraphProto, reduce: str, tensor: str, rank: int, axis: int = 1) -> str:
    """Reduce a tensor to one number per channel inside the graph, so that few numbers leave it.

    Args:
        reduce: the operator, ReduceMean or ReduceMax.
        axis: the axis of channels.

    Returns:
        The name of the result, `(C,)`.
    """
    name = f"{tensor}/{reduce}"
    others = np.array([other for other in range(rank) if other != axis % rank], np.int64)
    graph.initializer.append(onnx.numpy_helper.from_array(others, f"{name}/axes"))
    graph.node.append(onnx.helper.make_node(reduce, [tensor, f"{name}/axes"], [name], keepdims=0))
    return name


def distinct(images: Iterable[Sample]) -> dict[str, Sample]:
    """Digest -> the first sample with it."""
    samples: dict[str, Sample] = {}
    for sample in images:
        samples.setdefault(sample.digest(), sample)
    return samples


def some(images: Iterable[Sample], count: int) -> list[Sample]:
    """Up to `count` different images, the first in the order of their digests."""
    samples = distinct(images)
    return [samples[digest] for digest in sorted(samples)[:count]]


def as_input(sample: Sample, contract: Contract) -> np.ndarray:
    """The image as the network takes it, `(1, 3, h, w) float32`.

    A network of fixed batch N gets it N times, `(N, 3, h, w)`: the share of every value, the largest one and every
    mean are then the image's own.
    """
    return np.repeat(preprocess(sample.image(), contract)[None], contract.batch or 1, axis=0)
