"""GPU time of pre- and post-processing, beside the least it could be: the bytes that must move, at copy bandwidth."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sodeploy.runtime.composition import CHANNELS, STYLES, Style
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.device import Device
from sodeploy.runtime.gpu.processing import CudaProcessing
from sodeploy.runtime.gpu.resize_taps import Resize, Rule

Size = tuple[int, int]

_REPEATS = 20
_COPY_BYTES = 1 << 30
_DELAY_BYTES, _DELAY_COPIES = 1 << 28, 40  # 5 ms on the fastest GPU: longer than the host takes to launch what follows
_SECTOR = 32  # bytes; the least a GPU reads from its memory
_CACHE_BYTES = 128 << 20  # more than the L2 of any GPU of today holds: images in turn come from memory
FULL_HD, ULTRA_HD, SMALL = (1080, 1920), (2160, 3840), (480, 640)
NETWORK, LARGE_NETWORK = (320, 320), (1024, 1024)
CASES: list[tuple[Size, int, Size]] = [
    *(
        (size, count, NETWORK)
        for size, count in [(FULL_HD, 1), (FULL_HD, 8), (FULL_HD, 32), (ULTRA_HD, 8), (SMALL, 32)]
    ),
    (FULL_HD, 1, LARGE_NETWORK),
    (FULL_HD, 8, LARGE_NETWORK),
]
JUDGED = (FULL_HD, 32)  # fewer images do not fill a large GPU
GOAL_PERCENT = 80


def copy_bandwidth(device: Device) -> float:
    """Bytes read and written per second by a device-to-device copy of 1 GiB, the best of ten."""
    size = _COPY_BYTES
    stream, memory = device.stream(), device.allocate(2 * size)
    seconds = []
    for _ in range(10):
        before, after = device.event(), device.event()
        before.record(stream)
        device.copy(memory.address + size, memory.address, size, stream)
        after.record(stream)
        device.wait(stream)
        seconds.append(before.time_till(after) / 1e3)
    memory.free()
    device.keep(stream)
    return 2 * size / min(seconds)


def preprocess_bytes(sizes: Sequence[Size], contract: Contract, itemsize: int) -> int:
    """The bytes that must be read from the images and written to the input.

    A shrinking bilinear resize needs only some rows, and of these only sectors that hold a tap.
    """
    target = (contract.height, contract.width)
    return sum(_read_bytes(Resize(size, target, contract.interpolation)) for size in sizes) + (
        len(sizes) * 3 * target[0] * target[1] * itemsize
    )


def postprocess_bytes(sizes: Sequence[Size], map_size: Size, style: Style, itemsize: int = 4) -> int:
    """The bytes read from the output (and the images, where a style shows them) and written to the pictures."""
    total = 0
    for height, width in sizes:
        total += map_size[0] * map_size[1] * itemsize + height * width * CHANNELS[style]
        total += 0 if style == "map" else height * width * 3
    return total


def kernel_rows(device: Device) -> Iterator[dict[str, Any] | str]:
    """Time of every kernel chain of interest, a row each; then what follows, in sentences."""
    bandwidth = copy_bandwidth(device)
    yield f"Copy bandwidth on this GPU: {bandwidth / 1e9:.0f} GB/s, read and written bytes counted."
    short: list[str] = []
    for size, count, network in CASES:
        sizes = [size] * count
        for row in _rows_of(device, sizes, network, bandwidth):
            if (size, count) == JUDGED and row["of copy bandwidth %"] < GOAL_PERCENT:
                short.append(f"{row['kernels']} {row['of copy bandwidth %']:.0f} %")
            yield row
    if any(case[:2] == JUDGED for case in CASES):
        reached = f"below it: {', '.join(short)}" if short else "all reach it"
        yield f"Of the goal of {GOAL_PERCENT} % of copy bandwidth at {JUDGED[1]} images of 1920x1080: {reached}."


def _rows_of(device: Device, sizes: list[Size], network: Size, bandwidth: float) -> Iterator[dict[str, Any]]:
    for interpolation, divide_by, dtype in (
        ("linear", "255", np.float32),
        ("area", "255", np.float32),
        ("area", "255", np.float16),
        ("linear", "max", np.float32),
    ):
        contract = benchmark_contract(network, interpolation, divide_by)
        least = preprocess_bytes(sizes, contract, np.dtype(dtype).itemsize)
        name = f"pre {interpolation} {np.dtype(dtype).name}" + (" by maximum" if divide_by == "max" else "")
        yield _row(name, sizes, network, least, bandwidth, _time(device, contract, sizes, "map", dtype)[0])
    for style in STYLES:
        least = postprocess_bytes(sizes, network, style)
        seconds = _time(device, benchmark_contract(network, "linear", "255"), sizes, style, np.float32)[1]
        yield _row(f"post {style}", sizes, network, least, bandwidth, seconds)


class WorkLog:
    """A device that remembers the kernels and clears that were put on it, to do them again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.work: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, *arguments: Any) -> None:
        self._do("launch", arguments)

    def clear(self, *arguments: Any) -> None:
        self._do("clear", arguments)

    def _do(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.work.append((name, arguments))
        getattr(self._device, name)(*arguments)


def _time(
    device: Device, contract: Contract, sizes: list[Size], style: Style, dtype: type[np.generic]
) -> tuple[float, float]:
    """GPU seconds of the work before and after the network, medians.

    Several batches take turns, so that none finds its images in the cache.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*sizes[0], 3), dtype=np.uint8)
    copies = min(_REPEATS, 1 + _CACHE_BYTES // (image.nbytes * len(sizes)))
    stream = device.stream()
    before, after, batches = [], [], []
    for _ in range(copies):
        log = WorkLog(device)
        processing = CudaProcessing(log, contract, stream, style, dtype)
        processing.stage([image] * len(sizes))
        processing.preprocess()
        before.append(list(log.work))
        processing.postprocess()
        after.append(log.work[len(before[-1]) :])
        device.wait(stream)
        batches.append(processing)
    seconds = tuple(_replay(device, turns, stream) for turns in (before, after))
    for processing in batches:
        processing.release()
    device.keep(stream)
    return seconds[0], seconds[1]


def _replay(device: Device, turns: list[list[tuple[str, tuple[Any, ...]]]], stream: Any) -> float:
    """Median seconds of a turn's work, one thing after another, with no host in between.

    Python takes longer to launch a kernel than some run. So a long copy goes first, behind which they queue up.
    """
    size = _DELAY_BYTES
    delay = device.allocate(2 * size)
    events = [(device.event(), device.event()) for _ in range(_REPEATS)]
    for _ in range(_DELAY_COPIES):
        device.copy(delay.address + size, delay.address, size, stream)
    for number, (begin, end) in enumerate(events):
        begin.record(stream)
        for name, arguments in turns[number % len(turns)]:
            getattr(device, name)(*arguments)
        end.record(stream)
    device.wait(stream)
    delay.free()
    return statistics.median(begin.time_till(end) for begin, end in events) / 1e3


def _row(name: str, sizes: list[Size], network: Size, least: int, bandwidth: float, seconds: float) -> dict[str, Any]:
    return {
        "kernels": name,
        "image": f"{sizes[0][1]}x{sizes[0][0]}",
        "batch": len(sizes),
        "network": f"{network[1]}x{network[0]}",
        "MiB to move": least / 2**20,
        "floor us": least / bandwidth * 1e6,
        "measured us": seconds * 1e6,
        "of copy bandwidth %": 100 * least / bandwidth / seconds,
    }


def _read_bytes(resize: Resize) -> int:
    if resize.rule is not Rule.LINEAR:
        return resize.source[0] * resize.source[1] * 3
    rows, columns = (np.union1d(taps["first"], taps["last"]) for taps in (resize.rows, resize.columns))
    sectors = np.union1d(columns * 3 // _SECTOR, (columns * 3 + 2) // _SECTOR)
    return min(len(sectors) * _SECTOR, resize.source[1] * 3) * len(rows)


def benchmark_contract(network: Size, interpolation: str, divide_by: str) -> Contract:
    return Contract.model_validate(
        {
            "network": "benchmark",
            "height": network[0],
            "width": network[1],
            "interpolation": interpolation,
            "divide_by": divide_by,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "stretch": True,
        }
    )


def alternate(works: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each of `works`, taken in turn, so that what drifts drifts for all; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds
