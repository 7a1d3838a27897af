"""A foreign file as it is, run by plain onnxruntime: what the adopted graph must compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sodeploy.errors import UserError
from sodeploy.export.adapters import InputForm
from sodeploy.runtime.onnx_file import one_line
from sodeploy.runtime.onnx_session import session_options, start_session

_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(uint16)": np.uint16, "tensor(int16)": np.int16,
    "tensor(int32)": np.int32, "tensor(uint32)": np.uint32, "tensor(int64)": np.int64, "tensor(uint64)": np.uint64,
}  # fmt: skip


class Refused(Exception):
    """onnxruntime does not open or run the file; the message is its reason."""


class Original:
    """A model without any of onnxruntime's optimizations. It takes (N, 3, H, W) float32 and gives its outputs."""

    def __init__(self, model: onnx.ModelProto | Path, form: InputForm, path: Path) -> None:
        """Open a file, or a model that is in memory.

        Args:
            path: what an error calls the model.

        Raises:
            Refused: onnxruntime does not read it, for example because it has no kernel for an operator.
        """
        options = session_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.form = form
        try:
            self._session = start_session(model, options, name=path)
        except UserError as error:
            raise Refused(str(error)) from None
        kind = self._session.get_inputs()[0].type
        if kind not in _TYPES:
            raise Refused(f"onnxruntime's Python cannot give it an input of type {kind}")
        self._dtype = _TYPES[kind]
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, batch: np.ndarray, output: str) -> np.ndarray:
        """One output for a batch, as the file gives it.

        Raises:
            Refused: the run fails, for example because the graph does not take this size.
        """
        return self.run_all(batch, [output])[0]

    def run_all(self, batch: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """Several outputs for a batch. Errors as in `run`."""
        given = {self._session.get_inputs()[0].name: self.form.to_file(batch).astype(self._dtype)}
        with _reasons():
            return [np.asarray(result) for result in self._session.run(list(outputs), given)]

    def takes(self, shape: tuple[int, int, int, int], output: str) -> bool:
        """Whether it runs on inputs of this shape."""
        try:
            self.run(np.zeros(shape, np.float32), output)
        except Refused:
            return False
        return True


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no base class in common
        if not type(error).__module__.startswith("onnxruntime") and not isinstance(error, (RuntimeError, ValueError)):
            raise
        raise Refused(one_line(error)) from None


# Sides that saliency networks are made for, the most usual first.
COMMON_SIZES = (320, 352, 224, 256, 384, 512, 1024, 416, 448, 640, 288, 64)


def remedy_for_size(original: Original, dims: Sequence[int | str], batch: int, size: tuple[int, int], out: str) -> str:
    """The next step after a run at a size failed: sizes near it that work, or the reason why none does.

    Args:
        dims: the declared N, C, H, W: numbers, and names of what is free.
    """
    if all(isinstance(dim, int) for dim in (dims[0], *dims[2:])):
        return "its graph contradicts the input that it declares: export it again"
    step, near = sizes_near(original, batch, size, out)
    if near:
        return f"its sides must be multiples of {step}: --size " + " or --size ".join(f"{h} {w}" for h, w in near)
    if isinstance(dims[2], int) or isinstance(dims[3], int):
        return "give another --size or --batch"
    for side in COMMON_SIZES:
        if (side, side) != size and original.takes((batch, 3, side, side), out):
            return f"it takes {side}x{side}: --size {side}"
    return "it runs at no common size, so its graph contradicts itself, or it takes another batch: --batch"


def sizes_near(original: Original, batch: int, size: tuple[int, int], output: str) -> tuple[int, list[tuple[int, int]]]:
    """Sizes near `size` that the network takes, and the number that their sides are multiples of; (0, []) if none."""
    for step in (2, 4, 8, 16, 32, 64):
        lower = tuple(max(side // step, 1) * step for side in size)
        upper = tuple(-(-side // step) * step for side in size)
        found = [
            (height, width)
            for height, width in dict.fromkeys([lower, upper])
            if (height, width) != size and original.takes((batch, 3, height, width), output)
        ]
        if len(found) == len({lower, upper} - {size}) and found:
            return step, found
    return 0, []


def batch_that_works(original: Original, size: tuple[int, int], output: str) -> int | None:
    """None if the graph takes any batch, as it declares; otherwise the one batch that it takes.

    A batch declared free may be fixed inside, for example by a Reshape to one image. Two images must give the maps
    that each gives alone.

    Raises:
        UserError: it takes no batch up to 16.
    """
    working = [count for count in (1, 2, 3) if original.takes((count, 3, *size), output)]
    if working == [1, 2, 3]:
        pair = np.random.default_rng(1).random((2, 3, *size), np.float32) * (255 if original.form.integer else 1)
        together = original.run(pair, output).astype(np.float32)
        alone = np.concatenate([original.run(image[None], output) for image in pair]).astype(np.float32)
        same = together.shape == alone.shape and np.abs(together - alone).mean() <= 1e-2 * np.ptp(alone)
        return None if same else 1
    if working:
        return working[0]
    for count in (4, 8, 16, 5, 6, 7, 9, 10, 12):
        if original.takes((count, 3, *size), output):
            return count
    raise UserError(f"it runs on no batch of 1 to 16 images of {size[0]}x{size[1]}")
