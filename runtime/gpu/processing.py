"""Pre- and post-processing on the GPU: `runtime.processing` and `runtime.composition` as CUDA kernels.

A batch of differently sized images goes up in one copy, which also carries everything that the kernels need to know
of each image; one launch makes the network's input (two where an image is divided by its own maximum). Two launches
make pictures of its output, which come down in one copy. Resized bytes are exactly cv2's, maps within one grey level
of the CPU path.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.composition import CHANNELS, Style
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.buffers import Buffer, ComputeDevice, Layout
from sodeploy.runtime.gpu.resize_taps import Resize, Rule, covered, map_taps

# struct Image of kernels/image.cuh, struct Picture and struct Range of kernels/postprocess.cu
_IMAGE = np.dtype([("pixels", "<u8"), ("rows", "<u8"), ("columns", "<u8"), ("height", "<i4"), ("width", "<i4"),
                   ("rule", "<i4"), ("scale", "<f4"), ("stretch", "<i4"), ("cell", "<i4")])  # fmt: skip
_PICTURE = np.dtype([("pixels", "<u8"), ("image", "<u8"), ("rows", "<u8"), ("columns", "<u8"),
                     ("height", "<i4"), ("width", "<i4"), ("stripe", "<i4"), ("unused", "<i4")])  # fmt: skip
_RANGE = np.dtype([("least", "<u4"), ("greatest", "<u4"), ("broken", "<u4")])

_SUFFIXES = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}  # of the kernels' names
_THREADS = 128  # of a block of the resize kernels
_STAGE_PIECES = 12288 // 16  # STAGE_BYTES of kernels/preprocess.cu
_TILE, _BLOCKS = 16, 4096  # output rows of such a block, at most; fewer where that leaves less blocks than that
_STRIPES, _PATCH_VALUES = 4, 6144  # of kernels/postprocess.cu
# Rows of a picture that one thread of `compose` makes, at most; on an H200 the others were slower. Where the image is
# shown, a thread waits for its pixels in every row, and more threads wait beside each other.
_STRIPE: dict[Style, int] = {"map": 32, "rgba": 16, "green": 16, "overlay": 16}
_FEW_PIXELS = 1 << 23  # of a batch; up to here a thread makes half the rows, else its blocks do not fill a large GPU


class Staged(NamedTuple):
    """A batch in pinned memory.

    Attributes:
        input: device address of the network's input (N, 3, h, w), which `preprocess` fills on the stream.
        output: device address with room for its output (N, 1, h, w).
        work: equal for batches whose work is the same but for the pixels, as of images of the same sizes in the same
            order. A graph of it fits them all, as long as `buffers` stays.
        buffers: how often each buffer has been taken anew; with another one, older graphs hold old addresses.
    """

    input: int
    output: int
    work: Hashable
    buffers: tuple[int, ...]


class CudaProcessing:
    """Takes one batch at a time over one stream, and keeps its buffers for the next.

    Call `stage` and `preprocess`, run the network on the same stream, call `postprocess`, synchronise the stream, call
    `pictures`.
    """

    def __init__(
        self,
        device: ComputeDevice,
        contract: Contract,
        stream: Any,
        style: Style = "map",
        input_dtype: type[np.generic] = np.float32,
        output_dtype: type[np.generic] = np.float32,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """
        Args:
            stream: the device's stream on which everything is enqueued.
            style: what `pictures` returns.
            input_dtype, output_dtype: the network's, np.float32 or np.float16.
            mark: called with "staged" before the first thing is enqueued, then with the name of each stage after its
                last: "upload", "preprocess", "postprocess", "download".
        """
        self._device, self._contract, self._stream, self._style = device, contract, stream, style
        self._input_dtype, self._output_dtype, self._mark = np.dtype(input_dtype), np.dtype(output_dtype), mark
        self._up, self._down = Buffer(device, pinned=True), Buffer(device, pinned=True)
        self._input, self._output, self._work = Buffer(device), Buffer(device), Buffer(device)
        self._buffers = (self._up, self._down, self._input, self._output, self._work)
        self._normalisation = _normalisation(contract)
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._tables: list[_Tables] = []  # of each image
        self._map_size = (0, 0)

    def stage(self, images: Sequence[np.ndarray], size: tuple[int, int] | None = None, room: int = 1) -> Staged:
        """Copy a batch into pinned memory, with what the kernels need to know of it; nothing is enqueued.

        Args:
            images: N >= 1 of (H, W, 3) uint8 RGB, each of its own size.
            size: (h, w) of the input; the contract's by default.
            room: have memory for a batch of at least so many, for an engine that takes no smaller one.

        Raises:
            OutOfDeviceMemory: the batch does not fit.
            UserError: an image is over 4000 times wider than the input.
            ValueError: an image is not (H, W, 3) uint8.
        """
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
                raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
        height, width = self._map_size = size or (self._contract.height, self._contract.width)
        self._sizes = tuple((image.shape[0], image.shape[1]) for image in images)
        count, pixels = len(images), height * width
        self._input.reserve(max(count, room) * 3 * pixels * self._input_dtype.itemsize)
        self._output.reserve(max(count, room) * pixels * self._output_dtype.itemsize)
        self._reserve_work(count, pixels)
        self._write(images)
        work = (self._sizes, self._up_size, self._factors, self._jobs, self._pictures)
        return Staged(self._input.address, self._output.address, work, tuple(buffer.taken for buffer in self._buffers))

    def preprocess(self) -> None:
        """Enqueue the way from the staged images to the network's input.

        Raises:
            UserError: the kernels cannot be compiled for this GPU.
        """
        self._mark("staged")
        self._device.upload(self._up.address, self._up.host[: self._up_size], self._stream)
        self._mark("upload")
        height, width = self._map_size
        count, pixels = len(self._sizes), height * width
        stretch = min(tables.stretch for tables in self._tables)  # it needs the most blocks; those too many end at once
        across = -(-width // stretch)
        tile = _TILE
        while tile > 1 and across * -(-height // tile) * count < _BLOCKS:
            tile //= 2
        suffix, grid, block = _SUFFIXES[self._input_dtype], (across, -(-height // tile), count), (_THREADS, 1, 1)
        bgr = np.int32(self._contract.colour == "BGR")
        shape = (np.int32(width), np.int32(height), np.int32(tile), bgr)
        if self._contract.divide_by == "255":
            name = f"resize_normalise_{suffix}"
            self._launch(name, grid, block, self._jobs, self._input.address, *shape, self._factors)
        else:
            self._device.clear(self._maxima, count * 4, self._stream)
            self._launch("resize_bytes", grid, block, self._jobs, self._bytes, *shape, self._maxima)
            name, grid, block = f"normalise_by_maximum_{suffix}", (-(-pixels // 256), 3, count), (256, 1, 1)
            self._launch(
                name, grid, block, self._bytes, self._input.address, np.int32(pixels), self._maxima, self._factors
            )
        self._mark("preprocess")

    def postprocess(self) -> None:
        """Enqueue the way from the output, at the address that `stage` gave, to pictures in host memory."""
        count, (height, width) = len(self._sizes), self._map_size
        logit, stretch = np.int32(self._contract.output == "logit"), np.int32(self._contract.stretch)
        ranges, output, suffix = self._down.address, self._output.address, _SUFFIXES[self._output_dtype]
        self._device.clear(ranges, count * _RANGE.itemsize, self._stream)
        grid = (min(-(-height * width // 4096), 32), count, 1)  # about four times four values a thread
        pixels = np.int32(height * width)
        self._launch(f"output_range_{suffix}", grid, (256, 1, 1), output, pixels, logit, ranges)
        columns = max(-(-width // _columns(self._style)) for _, width in self._sizes)
        rows = max(
            -(-size[0] // (_STRIPES * tables.stripe)) for size, tables in zip(self._sizes, self._tables, strict=True)
        )
        map_size = (np.int32(height), np.int32(width))
        self._launch(
            f"compose_{self._style}_{suffix}",
            (columns, rows, count),
            (32, _STRIPES, 1),
            self._pictures,
            output,
            *map_size,
            logit,
            stretch,
            ranges,
        )
        self._mark("postprocess")
        self._device.download(self._down.host[: self._down_size], ranges, self._stream)
        self._mark("download")

    def pictures(self) -> list[np.ndarray | UserError]:
        """The results of `postprocess`, once the stream is synchronized: one entry for each image of the batch.

        Each is uint8 as `sodeploy.runtime.composition.compose` describes it, a copy of its own; or, where the network
        put out NaN or infinity, the error that says so.
        """
        ranges = self._down.host[: len(self._sizes) * _RANGE.itemsize].view(_RANGE)
        channels = CHANNELS[self._style]
        results: list[np.ndarray | UserError] = []
        for (height, width), place, broken in zip(self._sizes, self._places_down, ranges["broken"], strict=True):
            if broken:
                results.append(_broken_output(self._contract))
                continue
            shape = (height, width) if channels == 1 else (height, width, channels)
            results.append(self._down.host[place : place + height * width * channels].reshape(shape).copy())
        return results

    def release(self) -> None:
        """Free the buffers, which the next batch reserves anew; the stream must be idle."""
        for buffer in self._buffers:
            buffer.free()

    def _launch(
        self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], *arguments: int | np.generic
    ) -> None:
        """Plain ints are addresses."""
        typed = tuple(np.uint64(value) if isinstance(value, int) else value for value in arguments)
        self._device.launch(kernel, grid, block, typed, self._stream)

    def _reserve_work(self, count: int, pixels: int) -> None:
        """Room on the device that the host never sees: resized bytes and maxima, where images are divided by theirs."""
        if self._contract.divide_by != "max":
            return
        layout = Layout()
        places = [layout.room(size) for size in (count * 3 * pixels, count * 4)]
        self._work.reserve(layout.size)
        self._bytes, self._maxima = (self._work.address + place for place in places)

    def _write(self, images: Sequence[np.ndarray]) -> None:
        """Put images, taps and what the kernels need to know into pinned memory."""
        up, down = Layout(), Layout()
        down.room(len(images) * _RANGE.itemsize)
        self._places_down = [down.room(h * w * CHANNELS[self._style]) for h, w in self._sizes]
        self._down_size = down.size
        self._down.reserve(down.size)

        jobs, pictures = np.zeros(len(images), _IMAGE), np.zeros(len(images), _PICTURE)
        most = _STRIPE[self._style]
        if sum(height * width for height, width in self._sizes) <= _FEW_PIXELS:
            most //= 2
        self._tables = [
            _tables(size, self._map_size, self._contract.interpolation, self._style, most) for size in self._sizes
        ]
        for n, (image, size, tables) in enumerate(zip(images, self._sizes, self._tables, strict=True)):
            place = up.add(image)
            resize, down_place = tables.resize, self._down.address + self._places_down[n]
            taps = map(up.add, resize.tables)
            jobs[n] = (place, *taps, *size, resize.rule, resize.factor, tables.stretch, tables.cell)
            pictures[n] = (down_place, place, *map(up.add, tables.map_taps), *size, tables.stripe, 0)
        self._factors = up.add(self._normalisation)
        self._jobs, self._pictures = up.add(jobs), up.add(pictures)

        self._up_size = up.size
        self._up.reserve(up.size)
        base = self._up.address  # from here on places become addresses
        for field in ("pixels", "rows", "columns"):
            jobs[field] += base
        for field in ("image", "rows", "columns"):
            pictures[field] += base
        self._factors, self._jobs, self._pictures = self._factors + base, self._jobs + base, self._pictures + base
        up.write(self._up.host)


class _Tables(NamedTuple):
    """Facts that the kernels need, equal for all images of one size.

    Attributes:
        resize: to the network's input.
        stretch: output pixels of a row that a block makes.
        cell: source pixels of a row that make an output pixel, at most.
        map_taps: of the rows and of the columns, from the map to the picture.
        stripe: rows of a picture that a thread of `compose` makes.
    """

    resize: Resize
    stretch: int
    cell: int
    map_taps: tuple[np.ndarray, np.ndarray]
    stripe: int


@functools.lru_cache(maxsize=256)
def _tables(size: tuple[int, int], map_size: tuple[int, int], interpolation: str, style: Style, most: int) -> _Tables:
    """
    Args:
        most: rows of a picture that a thread may make, at most.
    """
    resize = Resize(size, map_size, interpolation)
    rows, columns = (map_taps(*sides) for sides in zip(map_size, size, strict=True))
    stripe = _stripe(rows, columns, style, most)
    return _Tables(resize, _stretch(resize), covered(resize.columns, 1), (rows, columns), stripe)


def _columns(style: Style) -> int:
    """Of a picture, that a block of `compose` makes: 8 bytes of the map a thread, or 4 pixels."""
    return 256 if style == "map" else 128


def _stripe(rows: np.ndarray, columns: np.ndarray, style: Style, most: int) -> int:
    """How many rows of a picture a thread may make, `most` at most.

    The block's part of the map should fit into its shared memory. Where not even the part for one row does, the kernel
    does without it.
    """
    width, stripe = covered(columns, _columns(style)), most
    while stripe > 1 and covered(rows, _STRIPES * stripe) * width > _PATCH_VALUES:
        stripe //= 2
    return stripe


def _stretch(resize: Resize) -> int:
    """How many output pixels of a row a block may make: the source bytes of one row must fit into its shared memory.

    Raises:
        UserError: not even those of one pixel do.
    """
    if resize.rule is Rule.LINEAR:
        return _THREADS
    stretch = _THREADS
    while stretch:
        if (covered(resize.columns, stretch) * 3 + 30) // 16 <= _STAGE_PIECES:
            return stretch
        stretch //= 2
    raise UserError(
        f"an image {resize.source[1]} pixels wide cannot be shrunk to {resize.target[1]} on the GPU; cut it into parts"
    )


def _normalisation(contract: Contract) -> np.ndarray:
    """Factors per channel and what is then taken off; float32, rounded as in runtime.processing.

    (6,) where the divisor is 255; (259, 3) where it may be anything up to 255, the last row being taken off.
    """
    divisors = [255.0] if contract.divide_by == "255" else [max(float(maximum), 1.0) for maximum in range(256)]
    factors = [[1.0 / (divisor * std) for std in contract.std] for divisor in divisors]
    return np.array([*factors, [m / s for m, s in zip(contract.mean, contract.std, strict=True)]]).astype(np.float32)


def _broken_output(contract: Contract) -> UserError:
    return UserError(
        f"{contract.network}: the output has values that are NaN or infinite; "
        "if the model is fp16, keep the layers that overflow in fp32, else check the weights"
    )
